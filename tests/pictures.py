"""The pictures of pages that the documentation shows, made from the pages themselves.

    avssl demo
    python -m tests.pictures demo docs/pictures

A picture is one section of a page in a window of a given size; one that is larger than MAX_BYTES is stored coarser.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tests.browser import VIEWS, Chromium, View, found_program

MAX_BYTES = 150_000
NARROW_DARK = VIEWS[5]
DOCUMENT = View(1100, 900, "light")


@dataclass(frozen=True)
class Picture:
    """name: of the file. page: relative to the folder of the demo. part: a selector, or "" for the window."""

    name: str
    page: str
    part: str = ""
    view: View = DOCUMENT
    prepare: Callable[[Any], None] = lambda page: None


def _zoomed(page: Any) -> None:
    """Curves over time, smoothed, with a part of the run marked and read."""
    page.select_option("#x-axis", "hours")
    page.locator("#smoothing").fill("0.8")
    page.locator(".plot").first.scroll_into_view_if_needed()
    page.locator(".plot canvas").first.wait_for()


def _chosen(page: Any) -> None:
    """A point of the map beside which its picture and sound are shown."""
    page.locator(".map").scroll_into_view_if_needed()
    page.locator(".map .point[data-sound][data-picture]").nth(20).click(force=True)
    page.wait_for_timeout(200)


def _opened(page: Any) -> None:
    page.locator("#training").scroll_into_view_if_needed()


REPORT = "runs/avid_cma/report.html"
PICTURES = (
    Picture("report_results", REPORT, view=View(1100, 1000, "light")),
    Picture("report_search", REPORT, "#neighbors .direction:nth-of-type(1) .search:nth-of-type(1)"),
    Picture("report_map", REPORT, "#map", prepare=_chosen),
    Picture("report_training", REPORT, "#training .charts", prepare=_zoomed),
    Picture("report_positives", REPORT, "#positives .anchor >> nth=0"),
    Picture("report_failures", REPORT, "#failures .box >> nth=0"),
    Picture("report_phone", REPORT, "#training .panel >> nth=0", NARROW_DARK, _opened),
    Picture("comparison", "runs/report.html", "#runs"),
    Picture("stats", "stats/stats.html", "", View(1100, 1000, "light")),
)


def taken(browser: Chromium, picture: Picture, folder: Path) -> bytes:
    """The picture as WebP of at most MAX_BYTES. AssertionError if the page writes to the console."""
    with browser.open(folder / picture.page, picture.view) as page:
        picture.prepare(page)
        page.wait_for_timeout(300)
        source = page.locator(picture.part).first if picture.part else page
        return as_webp(source.screenshot(), picture.name)


def as_webp(screenshot: bytes, name: str) -> bytes:
    """A screenshot as WebP of at most MAX_BYTES. ValueError if it does not fit at the lowest quality."""
    shot = Image.open(io.BytesIO(screenshot))
    for quality in (90, 80, 65, 50, 35):
        output = io.BytesIO()
        shot.save(output, "WEBP", quality=quality, method=6)
        if output.tell() <= MAX_BYTES:
            return output.getvalue()
    raise ValueError(f"{name}: {shot.size} does not fit into {MAX_BYTES} bytes; show a smaller part")


def main(folder: Path, out: Path) -> int:
    """Make all pictures of pages that are there; the number of those that are not is the exit status."""
    out.mkdir(parents=True, exist_ok=True)
    browser = Chromium(found_program() or sys.exit("no browser: apt-get install chromium"))
    lacking = 0
    for picture in PICTURES:
        if not (folder / picture.page).is_file():
            print(f"{picture.name}: {folder / picture.page} is missing")
            lacking += 1
            continue
        content = taken(browser, picture, folder)
        (out / f"{picture.name}.webp").write_bytes(content)
        print(f"{picture.name}: {len(content):,} bytes")
    browser.end()
    return lacking


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
