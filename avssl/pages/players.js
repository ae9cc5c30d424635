"use strict";
const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));

// Media: every file is in the page once; each player gets its data: URI here.
const media = JSON.parse(document.getElementById("media").textContent);
for (const player of all("[data-media]")) {
  player.src = media[player.dataset.media];
  if (player.tagName !== "VIDEO") continue;
  player.muted = true;
  for (const name of ["pointerenter", "focus"]) player.addEventListener(name, () => { player.controls = true; });
  for (const name of ["pointerleave", "blur"]) player.addEventListener(name, () => { player.controls = false; });
}

// One thing plays at a time, or a query together with one of its neighbours.
let together = [];
document.addEventListener("play", (event) => {
  if (!together.includes(event.target)) together = [event.target];
  for (const player of all("audio, video")) if (!together.includes(player)) player.pause();
}, true);
for (const name of ["play", "pause", "ended"]) {
  document.addEventListener(name, (event) => {
    event.target.closest(".clip")?.classList.toggle("playing", name === "play");
  }, true);
}
for (const button of all("button[data-play]")) {
  button.addEventListener("click", () => {
    together = [button.closest(".clip").querySelector("[data-media]")];
    if ("withQuery" in button.dataset) together.push(button.closest(".search").querySelector(".query [data-media]"));
    for (const player of together) { player.currentTime = 0; player.play(); }
  });
}

// One tooltip for charts and map.
const tip = document.body.appendChild(document.createElement("div"));
tip.id = "tip";
tip.hidden = true;
function showTip(text, event, picture) {
  tip.textContent = text;
  if (picture) tip.prepend(Object.assign(document.createElement("img"), { src: picture, alt: "" }));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8)) + "px";
  tip.style.top = (event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 12 : event.clientY + 18) + "px";
}
const short = (value) => Number(value.toPrecision(4)).toLocaleString("en");
