"use strict";
{
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
  const map = document.querySelector("svg.map");
  const spot = document.querySelector(".spot");
  const parts = spot && {
    image: Object.assign(document.createElement("img"), { alt: "Picture of the chosen point", hidden: true }),
    text: spot.firstElementChild,
    sound: Object.assign(document.createElement("audio"), { controls: true, hidden: true, preload: "none" }),
  };
  parts?.sound.setAttribute("aria-label", "Sound of the chosen point");
  spot?.append(parts.image, parts.text, parts.sound);
  const hasSounds = points.some((point) => point.dataset.sound);
  let chosen = null;
  const twinOf = (point) => points.find((other) => other !== point && other.dataset.row === point.dataset.row);
  function light(point, isLit) {
    const twin = twinOf(point);
    for (const one of [point, twin]) one?.classList.toggle("lit", isLit);
    partner.style.visibility = isLit && twin ? "visible" : "hidden";
    if (!isLit || !twin) return;
    const [[x1, y1], [x2, y2]] = [centre(point), centre(twin)];
    for (const [name, value] of Object.entries({ x1, y1, x2, y2 })) partner.setAttribute(name, value);
  }
  // The chosen point beside the map: its picture, its names, and its sound.
  function choose(point, isHeard) {
    if (chosen) light(chosen, false);
    chosen = point;
    light(point, true);
    const { image, text, sound } = parts;
    text.textContent = point.getAttribute("aria-label");
    image.hidden = !point.dataset.picture;
    if (point.dataset.picture) image.src = media[point.dataset.picture];
    sound.pause();
    sound.hidden = !point.dataset.sound;
    if (!point.dataset.sound) { sound.removeAttribute("src"); text.textContent += hasSounds ? "\nIts sound is not in this page." : ""; return; }
    sound.src = media[point.dataset.sound];
    if (isHeard) { together = [sound]; sound.play(); }
  }
  // The nearest point in a direction: what lies aside counts twice.
  function next(from, key) {
    const [x, y] = centre(from);
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
    const far = (point) => {
      const [a, b] = centre(point), along = (a - x) * dx + (b - y) * dy, aside = Math.abs((a - x) * dy) + Math.abs((b - y) * dx);
      return along > 0.01 ? along + 2 * aside : Infinity;
    };
    const nearest = points.reduce((best, point) => (far(point) < far(best) ? point : best), from);
    return far(nearest) < Infinity ? nearest : from;
  }
  for (const point of points) {
    const title = point.querySelector("title");
    const text = title.textContent;
    title.remove();
    point.setAttribute("aria-label", text);
    point.addEventListener("pointermove", (event) => { showTip(text, event, media[point.dataset.picture]); light(point, true); });
    point.addEventListener("pointerleave", () => {
      tip.hidden = true;
      if (point !== chosen) light(point, false);
    });
    point.addEventListener("click", () => choose(point, true));
  }
  map?.addEventListener("keydown", (event) => {
    if (event.key.startsWith("Arrow")) choose(chosen ? next(chosen, event.key) : points[0], false);
    else if ((event.key === "Enter" || event.key === " ") && chosen) choose(chosen, true);
    else return;
    event.preventDefault();
  });
}
