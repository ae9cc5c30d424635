// Map: color by a label field, bring a class to the front, join the two halves of a clip.
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
  for (const button of all("[data-color-by]")) button.setAttribute("aria-pressed", String(Number(button.dataset.colorBy) === field));
}
for (const button of all("[data-color-by]")) {
  button.addEventListener("click", () => { field = Number(button.dataset.colorBy); kept = null; paint(); });
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
