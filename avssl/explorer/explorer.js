// Asking without leaving the page: links, forms, the slider and dropped files bring a new answer into it.
const main = document.querySelector("main");
const said = () => document.getElementById("said");
document.body.classList.add("asks-at-once");
let going = null;

function say(text, isBad) {
  said().textContent = text;
  said().classList.toggle("bad", Boolean(isBad));
}

// parts: selectors of what is replaced by its like in the page that the address gives.
async function go(address, parts, { isStep = false, isBack = false } = {}) {
  going?.abort();
  const mine = (going = new AbortController());
  main.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(address, { signal: mine.signal });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (!page.getElementById("answer")) throw new Error("the server gave no page; is it running, with the same token?");
    const focus = document.activeElement?.id;
    Object.assign(media, JSON.parse(page.getElementById("media").textContent));
    for (const part of parts) document.querySelector(part).replaceWith(document.adoptNode(page.querySelector(part)));
    document.title = page.title;
    if (!isBack) history[isStep ? "replaceState" : "pushState"](null, "", address);
    if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
    arm(document.getElementById("answer"));
    if (parts.includes(".ask")) say("");
  } catch (error) {
    if (error.name !== "AbortError") say(String(error.message || error), true);
  } finally {
    if (going === mine) main.removeAttribute("aria-busy");
  }
}
const WHOLE = [".ask", "#options", "#answer"];

const addressOf = (form) => "/?" + new URLSearchParams([...new FormData(form)].filter(([name, value]) => value && !(name === "window" && value === "0")));
main.addEventListener("submit", (event) => { event.preventDefault(); go(addressOf(event.target), WHOLE); });
main.addEventListener("click", (event) => {
  const link = event.target.closest("a.onward");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(link.getAttribute("href"), WHOLE).then(() => scrollTo(0, 0));
});
window.addEventListener("popstate", () => go(location.pathname + location.search, WHOLE, { isBack: true }));

// The slider: its text moves at once, the answer when it has rested for a moment.
let rest = 0;
main.addEventListener("input", (event) => {
  if (event.target.id !== "window") return;
  const step = document.getElementById("steps").children[event.target.value];
  document.getElementById("now").textContent = step ? step.textContent : event.target.value;
  clearTimeout(rest);
  rest = setTimeout(() => go(addressOf(event.target.form), ["#answer"], { isStep: true }), 200);
});
main.addEventListener("change", (event) => {
  if (event.target.id === "file") { if (event.target.files.length) send(event.target.files[0]); return; }
  if (!event.target.closest("#options") || event.target.id === "window") return;
  const form = event.target.form;
  if (event.target.name === "by" && form.elements.window) form.elements.window.value = 0;  // its windows may be others
  go(addressOf(form), WHOLE);
});

async function send(file) {
  going?.abort();
  say("Reading " + file.name + " …");
  main.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch("/upload?name=" + encodeURIComponent(file.name), { method: "POST", body: file });
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.error);
    await go(told.address, WHOLE);
  } catch (error) {
    main.removeAttribute("aria-busy");
    say(String(error.message || error), true);
  }
}
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  if (event.dataTransfer.files.length) send(event.dataTransfer.files[0]);
});
