"""The report in a browser: it reads, plays and answers to the keyboard at three widths, light and dark."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from avssl.report import write_comparison, write_report
from avssl.report.positives import Banks
from avssl.report.watch import banner
from data_prep.inspect.stats.collect import collect_stats
from data_prep.inspect.stats.page import page as stats_page
from tests.browser import (  # noqa: F401  (chromium is a fixture)
    DESKTOP,
    PHONE,
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
from tests.pictures import MAX_BYTES, Picture, taken
from tests.test_report import clip, evaluation, make_table  # noqa: F401  (clip is a fixture)


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((118, 118, 118), (255, 255, 255)) == pytest.approx(4.54, abs=0.01)  # the known limit, #767676
    assert contrast((255, 0, 0), (255, 0, 0)) == 1


@pytest.mark.slow
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


COLORS = "() => [...document.querySelectorAll('.map .point')].map((point) => point.getAttribute('class'))"
# A number that differs if the pixels of a canvas do.
INK = """(canvas) => {
  const { width, height } = canvas, data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  let sum = 0;
  for (let k = 0; k < data.length; k += 4) sum = (sum * 31 + data[k] + 7 * data[k + 1] + 13 * data[k + 3]) % 1000003;
  return sum;
}"""


def long_run(folder: Path, offset: float = 0.0, **config: object) -> Path:
    """A run with 2,000 logged steps of what AVID logs, whose loss falls from 5 + offset."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = []
    for step in range(1, 2001):
        row = {"step": 10 * step, "epoch": step // 100, "samples_seen": 320 * step, "seconds": 3.6, "lr": 1e-3}
        row |= {"loss": 1 + offset + 4 * 0.999**step + 0.3 * rng.normal(), "data_wait_share": 0.1, "term": 2.0}
        row |= {f"{name}_{kind}_score": 0.1 for name in ("video_to_audio",) for kind in ("positive", "negative")}
        row |= {f"{name}_{kind}": 0.9 for name in ("video", "audio") for kind in ("embedding_spread", "uniformity")}
        lines.append(json.dumps(row))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    values = {"run": str(folder), "steps": 20_000, "optim": {"lr": 1e-3}, **config}
    (folder / "config.yaml").write_text(json.dumps(values), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, clip: tuple[bytes, bytes]) -> Path:  # noqa: F811
    """The page of a run with everything: results, neighbors, failures, positive sets, map and curves."""
    table = make_table()
    unit = torch.nn.functional.normalize(torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    banks = Banks(unit[0], unit[1], lambda number: f"clip/{number}", lambda number: {"sound": ["bell"]}, 4)
    return write_report(
        long_run(tmp_path_factory.mktemp("report") / "avid"),
        evaluation=evaluation(),
        table=table,
        media=lambda key: clip,
        banks=banks,
        train_media=lambda key: clip,
        skipped=[{"key": "broken/clip", "reason": "truncated", "message": "ends early"}],
    )


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_the_report_reads_plays_and_answers_to_the_keyboard(chromium: Chromium, report: Path, view: View) -> None:  # noqa: F811
    with chromium.open(report, view) as page:
        page.evaluate("() => { for (const fold of document.querySelectorAll('details')) fold.open = true; }")
        assert faint_texts(page) == []
        assert unnamed_controls(page) == []
        assert overflow_px(page) == 0
        assert reached_by_keyboard(page, "button[data-play]")
        assert reached_by_keyboard(page, ".map")
        assert reached_by_keyboard(page, "#smoothing")
        assert reached_by_keyboard(page, ".plot")
        assert plays(page, "video[data-media]")
        assert plays(page, "audio[data-media^='audio']")
        assert plays(page, "audio[data-media^='train-excerpt']")


def span(page: Any, chart: str = "Loss") -> tuple[float, float]:
    """The ends of the x axis of a chart, read by the keyboard: the cursor stops at both ends."""
    plot = page.get_by_role("img", name=f"{chart}.")
    plot.focus()
    ends = []
    for key in ("ArrowLeft", "ArrowRight"):
        for _ in range(200):
            page.keyboard.press(key)
        page.wait_for_function("() => document.querySelector('#chart-value').textContent.trim().includes(' ')")
        ends.append(float(page.inner_text("#chart-value").split()[1].replace(",", "")))
    return ends[0], ends[1]


def drag(page: Any, chart: str, first: float, last: float) -> None:
    """Drag across a chart, from one share of its plotting area to another."""
    over = page.locator(".panel", has_text=chart).locator(".u-over").first
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    page.mouse.move(box["x"] + first * box["width"], box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + (first + last) / 2 * box["width"], box["y"] + 70)
    page.mouse.move(box["x"] + last * box["width"], box["y"] + 70)
    page.mouse.up()


@pytest.mark.slow
def test_zoom_zooms_all_charts_and_goes_back(chromium: Chromium, report: Path) -> None:  # noqa: F811
    with chromium.open(report) as page:
        low, high = span(page)
        assert low < 2000
        assert high > 638_000
        drag(page, "Loss", 0.25, 0.5)
        low, high = span(page)
        assert 150_000 < low < 170_000
        assert 310_000 < high < 330_000
        assert span(page, "Embedding spread") == (low, high)
        page.keyboard.press("+")
        assert span(page)[1] - span(page)[0] < 0.6 * (high - low)
        page.get_by_role("button", name="Show all").click()
        assert span(page)[1] > 638_000


@pytest.mark.slow
def test_the_wheel_with_ctrl_zooms_where_the_pointer_is_and_alone_scrolls(chromium: Chromium, report: Path) -> None:  # noqa: F811
    with chromium.open(report) as page:
        whole = span(page)
        over = page.locator(".panel", has_text="Loss").locator(".u-over").first
        box = over.bounding_box()
        page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 60)
        page.keyboard.down("Control")
        page.mouse.wheel(0, -100)
        page.keyboard.up("Control")
        low, high = span(page)
        length = whole[1] - whole[0]
        assert (low, high) == pytest.approx(
            (0.05 * length, 0.85 * length), abs=0.01 * length
        )  # 0.25 stays in its place
        scrolled = page.evaluate("() => scrollY")
        page.mouse.wheel(0, -100)
        page.wait_for_function(f"() => scrollY < {scrolled}")
        assert span(page) == (low, high)


@pytest.mark.slow
def test_the_axis_smoothing_logarithm_and_runs_change_what_is_drawn(chromium: Chromium, tmp_path: Path) -> None:  # noqa: F811
    runs = {name: long_run(tmp_path / name, offset) for name, offset in (("one", 0.0), ("two", 2.0))}
    page_file = write_comparison(tmp_path, runs)
    with chromium.open(page_file) as page:
        canvas = page.locator(".plot canvas").first
        canvas.scroll_into_view_if_needed()
        seen = [canvas.evaluate(INK)]

        def has_changed() -> bool:
            seen.append(page.locator(".plot canvas").first.evaluate(INK))
            return seen[-1] != seen[-2]

        page.select_option("#x-axis", "hours")
        assert has_changed()
        assert span(page) == pytest.approx((0.0, 2.0), abs=0.01)  # 2,000 steps of 3.6 s
        page.select_option("#x-axis", "step")
        assert span(page)[1] == pytest.approx(20_000, rel=0.01)
        page.locator("#smoothing").fill("0.9")
        assert has_changed()
        page.locator("#log-axis").check()
        assert has_changed()
        page.locator("[data-run-switch='1']").uncheck()
        assert has_changed()
        assert page.locator(".values [data-run='1']:visible").count() == 0


@pytest.mark.slow
def test_smoothing_is_an_average_whose_weights_sum_to_one(chromium: Chromium, tmp_path: Path) -> None:  # noqa: F811
    run = tmp_path / "run"
    run.mkdir()
    losses = [4.0, 2.0, 3.0, 1.0]
    rows = [{"step": step, "samples_seen": step, "loss": loss} for step, loss in enumerate(losses)]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with chromium.open(write_report(run)) as page:
        page.locator("#smoothing").fill("0.5")
        page.get_by_role("img", name="Loss.").focus()
        for _ in range(200):
            page.keyboard.press("ArrowRight")
        weights = 0.5 ** np.arange(4)[::-1]
        expected = float((weights * losses).sum() / weights.sum())
        assert float(page.inner_text("#chart-value").split()[-1]) == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_minor_curves_are_folded_and_are_drawn_when_they_are_opened(chromium: Chromium, report: Path) -> None:  # noqa: F811
    with chromium.open(report) as page:
        fold = page.locator("details.fold", has_text="Speed and learning rate")
        assert fold.locator("canvas").count() == 0
        fold.locator("summary").click()
        fold.locator("canvas").first.wait_for()


@pytest.mark.slow
def test_a_finger_zooms_and_a_tap_does_not(chromium: Chromium, report: Path) -> None:  # noqa: F811
    with chromium.open(report, PHONE, has_touch=True, is_mobile=True) as page:
        page.get_by_role("img", name="Loss.").scroll_into_view_if_needed()
        over = page.locator(".u-over").first
        over.scroll_into_view_if_needed()
        box = over.bounding_box()
        client = page.context.new_cdp_session(page)

        def touch(kind: str, *shares: float) -> None:
            points = [{"x": box["x"] + share * box["width"], "y": box["y"] + 50} for share in shares]
            client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        before = span(page)
        touch("touchStart", 0.5)
        touch("touchEnd")
        assert span(page) == before
        touch("touchStart", 0.2)
        for share in (0.25, 0.3, 0.4, 0.5, 0.6):
            touch("touchMove", share)
        touch("touchEnd")
        low, high = span(page)
        assert high - low < 0.5 * (before[1] - before[0])


@pytest.mark.slow
def test_a_point_of_the_map_is_seen_and_heard_and_takes_other_colors(chromium: Chromium, report: Path) -> None:  # noqa: F811
    with chromium.open(report, DESKTOP) as page:
        before = page.evaluate(COLORS)
        page.get_by_role("button", name="visual", exact=True).click()
        assert page.evaluate(COLORS) != before
        page.locator(".map .point[data-sound][data-picture]").first.hover()
        assert page.locator("#tip img").is_visible()
        page.locator(".map").focus()
        page.keyboard.press("ArrowRight")
        first = page.inner_text(".spot p")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        assert page.inner_text(".spot p") != first
        page.keyboard.press("Enter")
        assert plays(page, ".spot audio")


@pytest.mark.slow
def test_without_scripts_the_page_says_what_is_missing(chromium: Chromium, report: Path) -> None:  # noqa: F811
    with chromium.open(report, java_script_enabled=False) as page:
        assert "need JavaScript" in page.content()
        assert page.get_by_text("ends at").count() == 0
        assert page.locator(".values td").first.is_visible()


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_the_comparison_reads_at_every_size(chromium: Chromium, tmp_path: Path, view: View) -> None:  # noqa: F811
    runs = {f"run_{number}": long_run(tmp_path / f"run_{number}", number, seed=number) for number in range(5)}
    with chromium.open(write_comparison(tmp_path, runs), view) as page:
        assert faint_texts(page) == []
        assert unnamed_controls(page) == []
        assert overflow_px(page) == 0
        assert reached_by_keyboard(page, "[data-run-switch='4']")


@pytest.mark.slow
def test_a_page_that_is_written_again_keeps_the_place_of_its_reader(chromium: Chromium, tmp_path: Path) -> None:  # noqa: F811
    run = long_run(tmp_path / "run")
    path = write_report(run, banner=banner([run], 4.0))
    with chromium.open(path) as page:
        page.locator("#log-axis").check()
        page.select_option("#x-axis", "step")
        drag(page, "Loss", 0.25, 0.5)
        zoomed = span(page)
        page.locator("details.fold summary").first.click()
        page.evaluate("() => scrollTo(0, 700)")
        write_report(run, title="written again", banner=banner([run], 4.0))
        page.wait_for_function("() => document.querySelector('h1').textContent === 'written again'")
        page.wait_for_function("() => scrollY === 700")
        assert page.locator("#log-axis").is_checked()
        assert page.locator("#x-axis").input_value() == "step"
        assert page.locator("details.fold[open]").count() == 1
        assert span(page) == pytest.approx(zoomed, rel=0.01)
        page.get_by_role("button", name="Stop reloading").click()
        write_report(run, title="a third time")
        page.wait_for_timeout(2500)
        assert page.inner_text("h1") == "written again"


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_the_statistics_read_and_play(
    chromium: Chromium,  # noqa: F811
    shards: dict[str, Path],
    tmp_path: Path,
    view: View,
) -> None:
    path = tmp_path / "stats.html"
    path.write_text(stats_page(collect_stats(shards["train"])), encoding="utf-8")
    with chromium.open(path, view) as page:
        assert faint_texts(page) == []
        assert unnamed_controls(page) == []
        assert overflow_px(page) == 0
        assert reached_by_keyboard(page, "button[data-play]")
        assert plays(page, ".samples video")
        assert plays(page, ".samples audio")


@pytest.mark.slow
def test_a_picture_for_the_documentation_fits(chromium: Chromium, report: Path) -> None:  # noqa: F811
    picture = Picture("loss", "report.html", "#training .panel >> nth=0")
    content = taken(chromium, picture, report.parent)
    assert len(content) <= MAX_BYTES
    shot = Image.open(io.BytesIO(content))
    assert min(shot.size) > 200
    assert len(np.unique(np.asarray(shot.convert("L")))) > 50, "something is drawn"
