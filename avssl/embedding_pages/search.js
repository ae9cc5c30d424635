// Results that play. A player is made when it is first asked for, so that a page of many clips opens at once.
let plays = [], through = [];
const partsOf = (button) => ({ hit: button.closest(".hit"), now: all(".now", button.closest(".hit")) });

function playerOf(button) {
  if (button.player) return button.player;
  const player = document.createElement(button.dataset.kind);
  player.src = media[button.dataset.clip];
  player.preload = "auto";
  player.playsInline = true;
  player.tabIndex = -1;
  player.setAttribute("aria-hidden", "true");
  const { hit, now } = partsOf(button);
  (hit.querySelector(".screen") || hit).append(player);
  const follow = () => {
    const at = player.duration ? player.currentTime / player.duration : 0;
    for (const line of now) line.style.left = at * 100 + "%";
    if (!player.paused && !player.ended) requestAnimationFrame(follow);
  };
  player.addEventListener("play", () => { hit.classList.add("playing", "begun"); label(button, "Pause"); follow(); });
  player.addEventListener("pause", () => { hit.classList.remove("playing"); label(button, "Play"); });
  player.addEventListener("seeked", follow);
  player.addEventListener("ended", () => {
    hit.classList.remove("playing", "begun");
    player.currentTime = 0;
    const next = through[0] === button ? (through = through.slice(1))[0] : null;
    if (next) { next.focus(); next.scrollIntoView({ block: "nearest" }); start(next); }
  });
  button.player = player;
  return player;
}
const label = (button, word) => button.setAttribute("aria-label", button.getAttribute("aria-label").replace(/^\S+/, word));
const start = (button) => playerOf(button).play().catch(() => {});

// Gives the buttons below an element their work; called again for results that come later.
function arm(root) {
  through = [];
  plays = all("button.play");
  for (const button of all("button.play", root)) {
    button.addEventListener("click", () => {
      through = [];
      const player = playerOf(button);
      if (player.paused) start(button); else player.pause();
    });
    // The picture of the sound is a time line: a click goes there.
    for (const picture of all(".wave-picture", button.closest(".hit"))) {
      picture.addEventListener("click", (event) => {
        through = [];
        const player = playerOf(button);
        const box = picture.getBoundingClientRect();
        const go = () => { player.currentTime = (event.clientX - box.left) / box.width * player.duration; start(button); };
        if (player.duration) go(); else player.addEventListener("loadedmetadata", go, { once: true });
      });
    }
    button.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const next = step && plays[plays.indexOf(button) + step];
      if (!next) return;
      event.preventDefault();
      next.focus();
      next.scrollIntoView({ block: "nearest" });
    });
  }
  for (const button of all("button.through", root)) {
    button.addEventListener("click", () => {
      through = all("button.play", button.closest("section"));
      if (through.length) { const player = playerOf(through[0]); player.currentTime = 0; start(through[0]); }
    });
  }
}
arm(document);
