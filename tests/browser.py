"""Pages as a reader has them: in Debian's Chromium, at three widths, light and dark.

    from tests.browser import VIEWS, chromium  # noqa: F401  (a fixture)

    @pytest.mark.parametrize("view", VIEWS, ids=str)
    def test_a_page(chromium, view):
        with chromium.open(path, view) as page:      # fails if anything was written to the console
            page.keyboard.press("Tab")

`page` is a Page of Playwright (its wheel has no browser in it, and none is downloaded: AVSSL_CHROMIUM, or the program
`chromium`, is started). A test without a browser is skipped with the reason.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
NO_TEXT = ("SCRIPT", "STYLE", "NOSCRIPT", "TITLE", "OPTION")


@dataclass(frozen=True)
class View:
    """A window: its width and height in CSS pixels, and the reader's preference of light or dark."""

    width_px: int
    height_px: int
    scheme: str

    def __str__(self) -> str:
        return f"{self.width_px}-{self.scheme}"


SIZES = ((1440, 900), (768, 1024), (390, 844))
VIEWS = [View(width, height, scheme) for width, height in SIZES for scheme in ("light", "dark")]
DESKTOP, PHONE = VIEWS[0], VIEWS[4]


class Chromium:
    """A browser that is started with the first page and is used by all tests of a process."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._playwright: Any = None
        self._browser: Any = None

    def _started(self) -> Any:
        if self._browser is None:
            from playwright.sync_api import sync_playwright

            self._playwright = sync_playwright().start()
            # Containers have no user namespaces for its sandbox, and a small /dev/shm.
            arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required"]
            self._browser = self._playwright.chromium.launch(executable_path=self._program, args=arguments)
        return self._browser

    def end(self) -> None:
        """Close the browser, if it runs."""
        if self._browser is not None:
            self._browser.close()
            self._playwright.stop()

    @contextlib.contextmanager
    def open(self, where: Path | str, view: View = DESKTOP, **context: Any) -> Iterator[Any]:
        """A page with a file or URL. AssertionError at the end if there were messages in the console, or requests that
        failed or, from a file, that left the file.

        context: options of Playwright's new_context, such as has_touch=True, java_script_enabled=False,
        reduced_motion="reduce".
        """
        url = where.resolve().as_uri() if isinstance(where, Path) else where
        options = {"viewport": {"width": view.width_px, "height": view.height_px}, "color_scheme": view.scheme}
        session = self._started().new_context(**{**options, **context})
        said: list[str] = []
        try:
            page = session.new_page()
            page.set_default_timeout(60_000)
            page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: said.append(f"error: {error}"))
            page.on("requestfailed", lambda request: said.append(f"failed: {request.url[:200]}"))
            if isinstance(where, Path):
                page.on("request", lambda request: said.extend(_outside(request.url, where)))
            page.goto(url)
            yield page
            assert said == [], said
        finally:
            session.close()


def _outside(url: str, file: Path) -> list[str]:
    """A complaint if a page of a file asks for anything but itself and what is inside it."""
    address = urllib.parse.urlsplit(url)
    is_itself = address.scheme == "file" and Path(urllib.parse.unquote(address.path)) == file.resolve()
    return [] if is_itself or address.scheme in ("data", "blob", "about") else [f"asked for {url[:200]}"]


def found_program() -> str | None:
    """The browser of this machine."""
    return os.environ.get("AVSSL_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


_shared: list[
    Chromium
] = []  # once for each file of tests that imports the fixture; Playwright starts once in a process


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """The browser, see Chromium.open."""
    program = found_program()
    if program is None:
        pytest.skip(
            f"this machine has no browser ({', '.join(NAMES)}): apt-get install chromium, or AVSSL_CHROMIUM=..."
        )
    _shared.append(_shared[0] if _shared else Chromium(program))
    yield _shared[0]
    if len(_shared) == 1:
        _shared[0].end()
    _shared.pop()


def contrast(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """The contrast ratio of two colors (r, g, b) of 0 to 255, 1 to 21, by WCAG 2.2."""

    def luminance(color: tuple[float, ...]) -> float:
        parts = [part / 255 for part in color[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


_TEXTS = """(skipped) => {
  const numbers = (color) => {
    const found = color.match(/[-.\\d]+/g).map(Number);
    const [r, g, b, a = 1] = found;
    return color.startsWith("color(") ? [r * 255, g * 255, b * 255, a] : [r, g, b, a];
  };
  const over = (top, below) => [0, 1, 2].map((k) => top[k] * top[3] + below[k] * (1 - top[3]));
  const texts = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    const isSeen = element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
    if (!node.data.trim() || skipped.includes(element.tagName) || !isSeen) continue;
    const style = getComputedStyle(element);
    let alpha = 1;
    const layers = [];
    for (let one = element; one; one = one.parentElement) {
      const own = getComputedStyle(one);
      alpha *= Number(own.opacity);
      layers.push(numbers(own.backgroundColor));
    }
    const page = matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
    const below = layers.reverse().reduce((color, layer) => over(layer, color), page);
    const paint = numbers(element instanceof SVGElement ? style.fill : style.color);
    paint[3] *= alpha;
    const size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const where = element.tagName + "." + (element.getAttribute("class") || "");
    texts.push([node.data.trim().slice(0, 60), over(paint, below), below, isLarge, where]);
  }
  return texts;
}"""


def faint_texts(page: Any) -> list[str]:
    """The visible texts of a page whose contrast is below WCAG's AA: 4.5, or 3 for large letters. Pictures and
    gradients behind a text are not seen.
    """
    texts = page.evaluate(_TEXTS, list(NO_TEXT))
    assert texts, "the page shows no text at all"
    found = [(contrast(paint, below), is_large, text, where) for text, paint, below, is_large, where in texts]
    return [
        f"{ratio:.2f} {where}: {text}" for ratio, is_large, text, where in found if ratio < (3 if is_large else 4.5)
    ]


_UNNAMED = """() => {
  const named = (one) => (one.getAttribute("aria-label") || "").trim() || one.labels?.length || one.textContent.trim()
    || (one.getAttribute("aria-labelledby") && document.getElementById(one.getAttribute("aria-labelledby")));
  const kinds = "a[href], button, input:not([type=hidden]), select, textarea, video, audio, summary, [tabindex]";
  return [...document.querySelectorAll(kinds)]
    .filter((one) => !named(one)).map((one) => one.outerHTML.slice(0, 120));
}"""


def unnamed_controls(page: Any) -> list[str]:
    """Links, buttons, fields, players and regions that a screen reader could not name."""
    found: list[str] = page.evaluate(_UNNAMED)
    return found


def reached_by_keyboard(page: Any, selector: str, most: int = 400) -> bool:
    """Whether Tab, pressed from the top of the page, comes to an element of the selector."""
    page.evaluate("() => { document.activeElement?.blur(); scrollTo(0, 0); }")
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("(selector) => document.activeElement?.matches(selector) ?? false", selector):
            return True
    return False


def overflow_px(page: Any) -> int:
    """By how many pixels the page is wider than its window: 0 unless it must be scrolled sideways."""
    wide: int = page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return wide


def plays(page: Any, selector: str) -> bool:
    """Whether the first player of the selector plays: its time moves on."""
    script = """async (player) => {
      player.currentTime = 0;
      await player.play();
      for (let turn = 0; turn < 600 && player.currentTime === 0; turn += 1) {
        await new Promise((go) => setTimeout(go, 50));
      }
      return player.currentTime > 0;
    }"""
    moved: bool = page.locator(selector).first.evaluate(script)
    return moved
