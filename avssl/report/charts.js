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
