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
function showTip(text, event) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8)) + "px";
  tip.style.top = (event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 12 : event.clientY + 18) + "px";
}
const short = (value) => Number(value.toPrecision(4)).toLocaleString("en");

// Charts: the drawn points, read back through the axes, are the values under the pointer.
for (const chart of all("svg.chart")) {
  const [x0, x1, y0, y1] = chart.dataset.domain.split(" ").map(Number);
  const [left, top, width, height] = chart.dataset.area.split(" ").map(Number);
  const cursor = chart.querySelector(".cursor");
  const lines = all("[data-series]", chart).map((line) => ({
    name: line.dataset.series,
    points: Array.from(line.getAttribute("d").matchAll(/[ML]([-\d.]+) ([-\d.]+)/g), (m) => [Number(m[1]), Number(m[2])]),
  }));
  chart.addEventListener("pointermove", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse()).x;
    if (at < left - 4 || at > left + width + 4) { cursor.style.visibility = "hidden"; tip.hidden = true; return; }
    const found = lines.map(({ name, points }) => {
      const near = points.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
      const value = y0 + (top + height - near[1]) / height * (y1 - y0);
      return { x: near[0], text: name + ": " + (chart.dataset.unit === "%" ? short(value * 100) + " %" : short(value)) };
    });
    const x = found[0].x;
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.style.visibility = "visible";
    const seen = Math.round(x0 + (x - left) / width * (x1 - x0));
    showTip("at " + seen.toLocaleString("en") + "\n" + found.map((one) => one.text).join("\n"), event);
  });
  chart.addEventListener("pointerleave", () => { cursor.style.visibility = "hidden"; tip.hidden = true; });
}

// Map: colour by a label field, bring a class to the front, join the two halves of a clip.
const points = all(".map .point");
let field = 0;
let kept = null;
const classOf = (point) => Number((point.dataset.classes || "0").split(" ")[field] || 0);
function paint() {
  for (const point of points) {
    point.setAttribute("class", "point c" + classOf(point) + (kept !== null && classOf(point) !== kept ? " faded" : ""));
  }
  for (const button of all("[data-class]")) button.setAttribute("aria-pressed", String(Number(button.dataset.class) === kept));
  for (const list of all(".classes")) list.hidden = Number(list.dataset.field) !== field;
  for (const button of all("[data-colour-by]")) button.setAttribute("aria-pressed", String(Number(button.dataset.colourBy) === field));
}
for (const button of all("[data-colour-by]")) {
  button.addEventListener("click", () => { field = Number(button.dataset.colourBy); kept = null; paint(); });
}
for (const button of all("[data-class]")) {
  button.addEventListener("click", () => { const own = Number(button.dataset.class); kept = kept === own ? null : own; paint(); });
}
const partner = document.querySelector(".partner");
function centre(point) {
  const box = point.getBBox();
  return [box.x + box.width / 2, box.y + box.height / 2];
}
for (const point of points) {
  const title = point.querySelector("title");
  const text = title.textContent;
  title.remove();
  point.setAttribute("aria-label", text);
  const twin = points.find((other) => other !== point && other.dataset.row === point.dataset.row);
  point.addEventListener("pointermove", (event) => {
    showTip(text, event);
    point.classList.add("lit");
    if (!twin) return;
    twin.classList.add("lit");
    const [[x1, y1], [x2, y2]] = [centre(point), centre(twin)];
    for (const [name, value] of Object.entries({ x1, y1, x2, y2 })) partner.setAttribute(name, value);
    partner.style.visibility = "visible";
  });
  point.addEventListener("pointerleave", () => {
    tip.hidden = true;
    partner.style.visibility = "hidden";
    for (const one of [point, twin]) one?.classList.remove("lit");
  });
}
