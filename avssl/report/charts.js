"use strict";
// Charts: uPlot draws the curves; axis, smoothing, zoom and the runs that are shown are the same in all charts.
{
  const block = document.getElementById("curves");
  const { axes, charts } = block ? JSON.parse(block.textContent) : { axes: [], charts: [] };
  const figures = all("[data-chart]");
  const control = (id) => document.getElementById(id);
  const state = { axis: control("x-axis")?.value, smoothing: 0, isLog: false, range: null, hidden: new Set() };
  const drawn = new Map(); // element -> uPlot
  const dashes = [[], [6, 4], [2, 4], [9, 3, 2, 3]];
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  function tickText(value, unit) {
    if (unit === "%") return short(value * 100) + " %";
    const size = Math.abs(value);
    for (const [limit, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) if (size >= limit * 0.9999) return short(value / limit) + letter;
    return size > 0 && size < 1e-3 ? value.toExponential().replace(/\.\d{3,}/, (digits) => digits.slice(0, 3)) : String(Number(value.toPrecision(4)));
  }

  // Moving average whose weights fall by `factor` from a point to the one before, and always sum to one.
  function smoothed(values, factor) {
    let sum = 0, weight = 0;
    return values.map((value) => {
      if (value === null) return null;
      sum = sum * factor + value;
      weight = weight * factor + 1;
      return sum / weight;
    });
  }

  // The lines of a chart on one axis. A point that only another line has is undefined, which is spanned; null is a gap.
  function table(chart) {
    const lines = chart.lines.filter((line) => !state.hidden.has(line.run));
    const xs = [...new Set(lines.flatMap((line) => axes[line.axis][state.axis]))].sort((a, b) => a - b);
    const place = new Map(xs.map((x, position) => [x, position]));
    const positive = (values) => (state.isLog ? values.map((value) => (value > 0 ? value : null)) : values);
    const spread = (line, values) => {
      const column = new Array(xs.length).fill(undefined);
      positive(values).forEach((value, k) => { column[place.get(axes[line.axis][state.axis][k])] = value; });
      return column;
    };
    const columns = [xs], series = [{}], bands = [], found = [];
    for (const line of lines) {
      const stroke = color(line.color);
      const style = { stroke, width: 2, dash: dashes[line.dash], points: { show: line.mean.length === 1 } };
      if (line.low && !state.smoothing) {
        bands.push({ series: [series.length + 1, series.length], fill: stroke + "29" });
        columns.push(spread(line, line.low), spread(line, line.high));
        series.push({ stroke: "transparent", points: { show: false } }, { stroke: "transparent", points: { show: false } });
      }
      if (state.smoothing) {
        columns.push(spread(line, line.mean));
        series.push({ ...style, stroke: stroke + "40", width: 1, dash: [] });
      }
      const values = state.smoothing ? smoothed(line.mean, state.smoothing) : line.mean;
      columns.push(spread(line, values));
      series.push(style);
      found.push({ name: line.name, xs: axes[line.axis][state.axis], values });
    }
    return { columns, series, bands, lines: found };
  }

  function yRange(chart) {
    return (plot, low, high) => {
      if (low === null || high === null) return state.isLog ? [0.1, 1] : [0, 1];
      if (state.isLog) return uPlot.rangeLog(low, high, 10, false);
      const reach = state.range ? [] : chart.include;
      const [least, most] = [Math.min(low, ...reach), Math.max(high, ...reach)];
      const [bottom, top] = least === most ? uPlot.rangeNum(least, most, 0.1, true) : [least, most];
      const room = (top - bottom) * 0.04;
      return [reach.includes(bottom) ? bottom : bottom - room, reach.includes(top) ? top : top + room];
    };
  }

  function readOut(chart, lines, x) {
    const texts = lines.map(({ name, xs, values }) => {
      let best = -1;
      xs.forEach((one, k) => { if (values[k] !== null && (best < 0 || Math.abs(one - x) < Math.abs(xs[best] - x))) best = k; });
      return best < 0 ? "" : `${name}: ${chart.unit === "%" ? short(values[best] * 100) + " %" : short(values[best])}`;
    });
    return [`at ${short(x)} ${axisName()}`, ...texts.filter(Boolean)].join("\n");
  }
  const axisName = () => control("x-axis").selectedOptions[0].textContent;

  function draw(element) {
    const chart = charts[Number(element.dataset.chart)];
    const { columns, series, bands, lines } = table(chart);
    drawn.get(element)?.destroy();
    drawn.delete(element);
    if (columns[0].length === 0) { element.textContent = "No run is chosen."; return; }
    element.textContent = "";
    const axis = { stroke: color("muted"), font: "12px system-ui, sans-serif", grid: { stroke: color("rule"), width: 1 }, ticks: { stroke: color("rule"), width: 1 } };
    const plot = new uPlot({
      width: element.clientWidth, height: 230, series, bands, padding: [8, 10, 0, 0],
      legend: { show: false },
      cursor: { y: false, drag: { x: true, y: false, setScale: false }, points: { show: false }, bind: { dblclick: () => () => zoom(null) } },
      scales: { x: { time: false, range: (plot, low, high) => (low === high ? [low - 0.5, high + 0.5] : [low, high]) }, y: { distr: state.isLog ? 3 : 1, range: yRange(chart) } },
      axes: [
        { ...axis, values: (plot, ticks) => ticks.map((tick) => tickText(tick, "")), label: axisName(), labelSize: 18, size: 28, labelFont: axis.font, space: 60 },
        { ...axis, values: (plot, ticks) => ticks.map((tick) => (tick === null ? "" : tickText(tick, chart.unit))), size: 52 },
      ],
      hooks: { setSelect: [(plot) => {
        const { left, width } = plot.select;
        plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
        if (width > 4) zoom([plot.posToVal(left, "x"), plot.posToVal(left + width, "x")]);
      }] },
    }, columns, element);
    plot.over.addEventListener("pointermove", (event) => {
      if (plot.cursor.left >= 0) showTip(readOut(chart, lines, plot.posToVal(event.clientX - plot.rect.left, "x")), event);
    });
    plot.over.addEventListener("pointerleave", () => { tip.hidden = true; });
    touch(plot);
    wheel(plot);
    drawn.set(element, plot);
    element.readAt = (x) => readOut(chart, lines, x);
    show(plot);
  }

  // A finger that moves sideways marks what is zoomed into; up and down still scrolls the page (touch-action: pan-y).
  function touch(plot) {
    let start = null;
    const at = (event) => Math.max(0, Math.min(plot.over.clientWidth, event.clientX - plot.over.getBoundingClientRect().left));
    const mark = (from, to) => plot.setSelect({ left: Math.min(from, to), width: Math.abs(to - from), top: 0, height: plot.over.clientHeight }, false);
    plot.over.addEventListener("pointerdown", (event) => { if (event.pointerType === "touch") start = at(event); });
    plot.over.addEventListener("pointermove", (event) => { if (start !== null) mark(start, at(event)); });
    plot.over.addEventListener("pointercancel", () => { start = null; mark(0, 0); });
    plot.over.addEventListener("pointerup", (event) => {
      if (start === null) return;
      const [from, to] = [Math.min(start, at(event)), Math.max(start, at(event))];
      start = null;
      mark(0, 0);
      if (to - from > 12) zoom([plot.posToVal(from, "x"), plot.posToVal(to, "x")]);
    });
  }

  // The wheel alone scrolls the page; with Ctrl, as two fingers on a touchpad send it, it zooms where the pointer is.
  function wheel(plot) {
    plot.over.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      zoomBy(event.deltaY < 0 ? 0.8 : 1.25, plot, plot.posToVal(event.clientX - plot.rect.left, "x"));
    }, { passive: false });
  }

  const whole = (plot) => { const xs = plot.data[0]; return [xs[0], xs[xs.length - 1]]; };
  function show(plot) {
    const [min, max] = state.range || whole(plot);
    plot.setScale("x", { min, max });
  }
  function zoom(range) {
    state.range = range;
    for (const plot of drawn.values()) { plot.cursor.left = -10; show(plot); }
    for (const button of all("[data-zoom='reset']")) button.disabled = range === null;
  }
  // The place `at` (without it the middle of what is shown) stays where it is on the screen.
  function zoomBy(factor, plot = drawn.values().next().value, at = null) {
    if (!plot) return;
    const [first, last] = whole(plot), { min, max } = plot.scales.x;
    const fixed = at ?? (min + max) / 2;
    const range = [Math.max(first, fixed - (fixed - min) * factor), Math.min(last, fixed + (max - fixed) * factor)];
    zoom(range[0] <= first && range[1] >= last ? null : range);
  }
  function keyboard(element, event) {
    const plot = drawn.get(element);
    if (!plot) return;
    const { min, max } = plot.scales.x, step = (max - min) / 40;
    const at = Math.min(max, Math.max(min, element.at ?? (min + max) / 2));
    const moves = { ArrowLeft: -step, ArrowRight: step };
    if (event.key in moves) {
      element.at = Math.min(max, Math.max(min, at + moves[event.key]));
      const left = plot.valToPos(element.at, "x");
      plot.setCursor({ left, top: 0 });
      const text = element.readAt(element.at), box = plot.over.getBoundingClientRect();
      control("chart-value").textContent = text;
      showTip(text, { clientX: box.left + left, clientY: box.top });
    } else if (event.key === "+" || event.key === "=") zoomBy(0.5, plot, at);
    else if (event.key === "-") zoomBy(2, plot, at);
    else if (event.key === "0" || event.key === "Escape") zoom(null);
    else return;
    event.preventDefault();
  }

  function hide(run, isHidden) {
    if (isHidden) state.hidden.add(run); else state.hidden.delete(run);
    for (const cell of all(`.values [data-run="${run}"]`)) cell.hidden = isHidden;
    for (const box of all(`[data-run-switch="${run}"]`)) box.checked = !isHidden;
  }
  const redraw = () => { for (const element of [...drawn.keys()]) draw(element); };
  // A chart is drawn when it comes near the window, which those in a closed group never do.
  const near = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) if (isIntersecting && !drawn.has(target)) draw(target);
  }, { rootMargin: "300px" });
  const sizes = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const plot = drawn.get(target);
      if (plot && target.clientWidth && target.clientWidth !== plot.width) plot.setSize({ width: target.clientWidth, height: plot.height });
    }
  });
  for (const element of figures) {
    near.observe(element);
    sizes.observe(element);
    element.addEventListener("focus", () => { if (!drawn.has(element)) draw(element); });  // keys come before the observer
    element.addEventListener("keydown", (event) => keyboard(element, event));
    element.addEventListener("blur", () => { tip.hidden = true; });
  }
  if (figures.length) {
    control("x-axis").addEventListener("change", (event) => { state.axis = event.target.value; zoom(null); redraw(); });
    control("log-axis").addEventListener("change", (event) => { state.isLog = event.target.checked; redraw(); });
    control("smoothing").addEventListener("input", (event) => {
      state.smoothing = Number(event.target.value);
      event.target.nextElementSibling.textContent = event.target.value;
      redraw();
    });
    for (const button of all("[data-zoom]")) {
      button.addEventListener("click", () => ({ in: () => zoomBy(0.5), out: () => zoomBy(2), reset: () => zoom(null) })[button.dataset.zoom]());
    }
    for (const box of all("[data-run-switch]")) {
      box.addEventListener("change", () => {
        hide(Number(box.dataset.runSwitch), !box.checked);
        redraw();
      });
    }
    zoom(null);
    document.addEventListener("charts-keep", (event) => Object.assign(event.detail, { ...state, hidden: [...state.hidden] }));
    document.addEventListener("charts-restore", ({ detail }) => {
      Object.assign(state, { ...detail, hidden: new Set(detail.hidden) });
      control("x-axis").value = state.axis;
      control("log-axis").checked = state.isLog;
      control("smoothing").value = control("smoothing").nextElementSibling.textContent = state.smoothing;
      for (const run of state.hidden) hide(run, true);
      zoom(state.range);
      redraw();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  }
}
