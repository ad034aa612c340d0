// The editor of a caption: saves without leaving the page, and shows both sides of a conflict.
"use strict";

const editor = document.getElementById("editor");
const text = editor.querySelector("textarea");
const inputs = [...editor.querySelectorAll(".slots input")];
const author = document.getElementById("author");
const state = document.getElementById("state");
const problem = document.getElementById("problem");
const clash = document.getElementById("clash");
const token = document.querySelector("meta[name=csrf-token]").content;
const NAMES = {
  text: "Corrected", slots: "Corrected", wrong: "Marked as wrong", reset: "The model's text is kept",
  model: "As the model wrote it",
};
let revision = Number(editor.dataset.revision);
let changed = false;
let pending = null;

author.value = localStorage.getItem("author") || author.value;
author.addEventListener("change", () => localStorage.setItem("author", author.value));
for (const field of [text, ...inputs]) field.addEventListener("input", () => { changed = true; });
window.addEventListener("beforeunload", (event) => { if (changed) event.preventDefault(); });

function show(caption) {
  text.value = caption.text;
  for (const input of inputs) input.value = caption.slots[input.name];
  revision = caption.revision;
  changed = false;
  state.textContent = NAMES[caption.kind] + (caption.author ? `, by ${caption.author}, ${caption.time}` : "");
}

function said(caption) {
  return caption.kind === "wrong" ? "(marked as wrong)" : caption.kind === "reset" ? "(the model's text)" : caption.text;
}

function fail(sentence) {
  problem.textContent = sentence;
  problem.hidden = false;
}

// Returns true if the caption was saved. edit: kind, and text or slots.
async function save(edit) {
  problem.hidden = true;
  clash.hidden = true;
  let answer, found;
  try {
    answer = await fetch(editor.dataset.address, {
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: "application/json", "X-CSRF-Token": token },
      body: JSON.stringify({ ...edit, author: author.value, revision }),
    });
    found = await answer.json();
  } catch {
    fail("The server does not answer, so nothing was saved; start clip-scgi ui again and reload this page.");
    return false;
  }
  if (answer.status === 409) {
    pending = { edit, theirs: found.theirs };
    document.querySelector("[data-clash=theirs]").textContent = said(found.theirs);
    document.querySelector("[data-clash=theirs-by]").textContent =
      found.theirs.author && `(${found.theirs.author}, ${found.theirs.time})`;
    document.querySelector("[data-clash=mine]").textContent = said(found.mine);
    clash.hidden = false;
    clash.focus();
    return false;
  }
  if (!answer.ok) {
    fail(found.problem);
    return false;
  }
  show(found);
  return true;
}

function written(kind) {
  if (kind === "text") return { kind, text: text.value };
  return { kind, slots: Object.fromEntries(inputs.map((input) => [input.name, input.value])) };
}

for (const form of editor.querySelectorAll("form")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    save(written(form.dataset.kind));
  });
}
for (const button of editor.querySelectorAll("button[type=button][data-kind]")) {
  button.addEventListener("click", () => save({ kind: button.dataset.kind }));
}
for (const button of clash.querySelectorAll("button")) {
  button.addEventListener("click", () => {
    clash.hidden = true;
    show(pending.theirs);
    if (button.dataset.choose === "mine") save(pending.edit);
    text.focus();
  });
}

document.addEventListener("keydown", async (event) => {
  const form = event.target.closest?.("#editor form");
  if (event.key === "Escape") event.target.blur();
  if ((event.ctrlKey || event.metaKey) && (event.key === "Enter" || event.key === "s")) {
    event.preventDefault();
    const saved = await save(written(form ? form.dataset.kind : "text"));
    const next = document.querySelector("a[rel=next]");
    if (saved && event.key === "Enter" && next) next.click();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
  const actions = {
    e: () => text.focus(),
    a: () => inputs[0].focus(),
    w: () => save({ kind: "wrong" }),
    k: () => save({ kind: "reset" }),
  };
  if (actions[event.key]) {
    event.preventDefault();
    actions[event.key]();
  }
});
