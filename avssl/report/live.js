"use strict";
// The page of a run that goes on is written again and again: it reloads itself, and the reader stays where he was.
{
  const note = document.querySelector("[data-reload-seconds]");
  const fold = (one) => all("details").indexOf(one);
  const fields = () => all("a[href], button, input, select, summary, [tabindex]");
  const store = { get: (key) => { try { return sessionStorage.getItem(key); } catch { return null; } },
    set: (key, value) => { try { sessionStorage.setItem(key, value); } catch { /* the place is lost, the page is not */ } } };
  const key = "avssl " + location.pathname;
  function restore() {
    const kept = JSON.parse(store.get(key) || "null");
    if (!kept) return;
    history.scrollRestoration = "manual";
    for (const number of kept.open) all("details")[number]?.setAttribute("open", "");
    if (kept.numFields === fields().length) fields()[kept.focus]?.focus({ preventScroll: true });
    if (kept.charts) document.dispatchEvent(new CustomEvent("charts-restore", { detail: kept.charts }));
    scrollTo(0, kept.top);
    requestAnimationFrame(() => scrollTo(0, kept.top));
  }
  function keep() {
    const asked = new CustomEvent("charts-keep", { detail: {} });
    document.dispatchEvent(asked);
    store.set(key, JSON.stringify({ top: scrollY, open: all("details[open]").map(fold), focus: fields().indexOf(document.activeElement),
      numFields: fields().length, charts: asked.detail }));
  }
  if (note) {
    restore();
    const button = note.querySelector("button");
    let isPaused = false;
    button.addEventListener("click", () => {
      isPaused = !isPaused;
      button.textContent = isPaused ? "Reload again" : "Stop reloading";
    });
    // Nothing is reloaded under the hand of a reader who listens, watches or drags.
    let isDown = false;
    for (const [name, value] of [["pointerdown", true], ["pointerup", false], ["pointercancel", false]]) {
      addEventListener(name, () => { isDown = value; }, true);
    }
    setInterval(() => {
      const isBusy = isDown || document.hidden || all("audio, video").some((player) => !player.paused);
      if (isPaused || isBusy) return;
      keep();
      location.reload();
    }, Number(note.dataset.reloadSeconds) * 1000);
  }
}
