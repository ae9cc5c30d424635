"""The report in a browser: it reads, plays and answers to the keyboard at three widths, light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest

from avssl.report import write_report
from tests.browser import (  # noqa: F401  (chromium is a fixture)
    DESKTOP,
    VIEWS,
    Chromium,
    View,
    chromium,
    contrast,
    faint_texts,
    overflow_px,
    plays,
    reached_by_keyboard,
    unnamed_controls,
)
from tests.test_report import clip, evaluation, make_run, make_table  # noqa: F401  (clip is a fixture)


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((118, 118, 118), (255, 255, 255)) == pytest.approx(4.54, abs=0.01)  # the known limit, #767676
    assert contrast((255, 0, 0), (255, 0, 0)) == 1


def test_what_is_wrong_with_a_page_is_found(chromium: Chromium, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "bad.html"
    path.write_text(
        "<p style='color:#999;background:#fff'>faint</p><p>clear</p><button></button><div style='width:4000px'>x</div>"
        "<script>console.log('said'); fetch('file:///etc/hostname').catch(() => 0)</script>"
    )
    with pytest.raises(AssertionError, match="said"):
        look_at(chromium, path)


def look_at(chromium: Chromium, path: Path) -> None:  # noqa: F811
    """Find each fault of the bad page."""
    with chromium.open(path) as page:
        assert [text.split(": ")[1] for text in faint_texts(page)] == ["faint"]
        assert unnamed_controls(page) == ["<button></button>"]
        assert overflow_px(page) > 2000
        assert not reached_by_keyboard(page, "a", most=3)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, clip: tuple[bytes, bytes]) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("report")
    return write_report(make_run(folder / "avid"), evaluation=evaluation(), table=make_table(), media=lambda key: clip)


@pytest.mark.quick(1)
@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_the_report_reads_plays_and_answers_to_the_keyboard(chromium: Chromium, report: Path, view: View) -> None:  # noqa: F811
    with chromium.open(report, view) as page:
        assert faint_texts(page) == []
        assert unnamed_controls(page) == []
        assert overflow_px(page) == 0
        assert reached_by_keyboard(page, "button[data-play]")
        assert plays(page, "video[data-media]")
        assert plays(page, "audio[data-media]")


def test_the_map_takes_the_colors_of_another_label(chromium: Chromium, report: Path) -> None:  # noqa: F811
    with chromium.open(report, DESKTOP) as page:
        colors = "() => [...document.querySelectorAll('.map .point')].map((point) => point.getAttribute('class'))"
        before = page.evaluate(colors)
        page.get_by_role("button", name="visual", exact=True).click()
        assert page.evaluate(colors) != before
