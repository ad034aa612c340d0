// Search: sends a chosen picture first, and waits for an answer that takes long.
"use strict";

const form = document.getElementById("search");
const file = document.getElementById("file");
const problem = document.getElementById("problem");
const progress = document.getElementById("progress");

function fail(sentence) {
  problem.textContent = sentence;
  problem.hidden = false;
}

async function send(picture) {
  const answer = await fetch("/search/pictures", {
    method: "POST",
    headers: {
      Accept: "application/json",
      "Content-Type": "application/octet-stream",
      "X-CSRF-Token": document.querySelector("meta[name=csrf-token]").content,
    },
    body: picture,
  });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.problem);
  return found.picture;
}

form?.addEventListener("submit", async (event) => {
  if (file.files.length) {
    event.preventDefault();
    try {
      form.elements.picture.value = await send(file.files[0]);
    } catch (error) {
      fail(error instanceof TypeError ? "The picture could not be sent; it may be larger than 32 MiB." : error.message);
      return;
    }
    form.elements.text.value = "";
    file.value = "";
    form.requestSubmit();
    return;
  }
  leaveOutEmpty(form);
});

if (progress) {
  finished(progress.dataset.address, (words) => { progress.textContent = words; }).then((found) => {
    if (found.state === "done") location.reload();
    else {
      progress.hidden = true;
      fail(found.note);
    }
  });
}
