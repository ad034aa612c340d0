// Behavior that all pages share. Every page also works without it, except for what needs a script by nature.
"use strict";

for (const form of document.querySelectorAll("form[data-submit-on-change]")) {
  form.addEventListener("change", (event) => {
    if (event.target.matches("select")) form.requestSubmit();
  });
  form.addEventListener("submit", () => leaveOutEmpty(form));
}

// Keeps empty fields out of the address, until the browser comes back to this page.
function leaveOutEmpty(form) {
  for (const field of form.elements) if (field.name && !field.value) field.disabled = true;
}
addEventListener("pageshow", () => {
  for (const field of document.querySelectorAll("form[method=get] [name]")) field.disabled = false;
});

// n and p, or the arrow keys, lead to the neighboring page unless the user is writing.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select, .scroll")) return;
  const wanted = { n: "next", ArrowRight: "next", p: "prev", ArrowLeft: "prev" }[event.key];
  const link = wanted && document.querySelector(`a[rel="${wanted}"]`);
  if (link) {
    event.preventDefault();
    link.click();
  }
});

// Asks for the state of a piece of work until it has ended, and tells what is being done meanwhile.
async function finished(address, tell) {
  for (;;) {
    let found;
    try {
      const answer = await fetch(address, { headers: { Accept: "application/json" } });
      found = await answer.json();
      if (!answer.ok) return { state: "failed", note: found.problem };
    } catch {
      return { state: "failed", note: "The server does not answer; start clip-scgi ui again and reload this page." };
    }
    if (found.state !== "working") return found;
    tell(found.note);
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
}
