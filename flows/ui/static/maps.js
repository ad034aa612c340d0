// Relevance maps on demand: ask until they are computed, then show them.
"use strict";

const panel = document.getElementById("maps");
const note = document.getElementById("maps-note");
const pair = panel.querySelector(".pair");
let asked = 0;

async function showMaps(button) {
  const number = ++asked;
  panel.hidden = false;
  pair.hidden = true;
  panel.scrollIntoView({ block: "nearest" });
  note.textContent = "";
  await fetch(`${button.dataset.maps}?again=true`).catch(() => {});
  const found = await finished(button.dataset.maps, (words) => { if (number === asked) note.textContent = words; });
  if (number !== asked) return;
  if (found.state === "failed") {
    note.textContent = found.note;
    return;
  }
  note.textContent = `Similarity ${found.similarity.toFixed(3)}`;
  document.getElementById("map-rank").textContent = `Rank ${button.dataset.rank}`;
  for (const side of ["query", "hit"]) document.getElementById(`map-${side}`).src = `${button.dataset.maps}/${side}`;
  pair.hidden = false;
}

for (const button of document.querySelectorAll("button[data-maps]")) {
  button.addEventListener("click", () => showMaps(button));
}
