"""The report page: self-contained, well-formed, escaped, complete, the same bytes for the same input."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from avssl.embedding.table import EmbeddingTable
from avssl.pages.html_page import kit_file
from avssl.pages.markup import Html, join, number, tag
from avssl.pages.media import MediaLibrary, audio_outline, video_thumbnails
from avssl.report import write_report
from avssl.report.charts import Curves, Series, binned
from avssl.report.curves import read_metrics, training_facts
from avssl.report.embedding_map import class_colors, even_rows, principal_plane
from avssl.report.neighbors import find_matches, pick_queries
from avssl.report.page import ReportOptions
from avssl.report.scores import flat_numbers, is_share, lower_is_better, metric_title
from data_prep.transcode.encode import write_media

HOSTILE = "<script>alert('x')</script> & \"quoted\" </style><img src=http://evil.example/x onerror=alert(1)>"
VOID = {"meta", "img", "br", "hr", "input", "link", "source", "wbr"}
RESULTS = {
    "video_knn_visual": 0.93,
    "audio_knn_sound": 0.985,
    "video_to_audio_recall_at_5": 0.165,
    "audio_to_video_recall_at_5": 0.172,
    "video_to_audio_median_rank": 24.0,
    "positive_precision_consensus": 0.84,
    "something_new": {"inner": 3.25},
}


class Checker(HTMLParser):
    """Collects tags and attributes and notes what is not balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if len(dict(attrs)) != len(attrs):
            self.wrong.append(f"attribute twice in {tag}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)


def waveform_of_a_tone(seconds: float = 0.5, rate_hz: int = 24_000) -> NDArray[np.float32]:
    """Quiet first half, loud second half."""
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    return (np.where(time < seconds / 2, 0.1, 0.8) * np.sin(2 * np.pi * 440 * time))[None].astype(np.float32)


@pytest.fixture(scope="module")
def clip() -> tuple[bytes, bytes]:
    """A video that turns from red to blue half-way, and a tone."""
    frames = [np.full((32, 48, 3), (230, 20, 20) if place < 8 else (20, 20, 230), np.uint8) for place in range(16)]
    video, audio = io.BytesIO(), io.BytesIO()
    write_media(video, video=frames, video_fps=16, container_format="mp4", keyframe_interval=8)
    write_media(audio, audio=waveform_of_a_tone(), audio_codec="flac", container_format="flac")
    return video.getvalue(), audio.getvalue()


def make_table(num_rows: int = 12, hostile: bool = False) -> EmbeddingTable:
    """Two windows per clip, two label fields; some rows lack a modality."""
    rng = np.random.default_rng(0)
    video, audio = rng.normal(size=(2, num_rows, 5)).astype(np.float32)
    video, audio = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (video, audio))
    has_video, has_audio = np.arange(num_rows) // 2 != 1, np.arange(num_rows) // 2 != 3
    video[~has_video], audio[~has_audio] = np.nan, np.nan
    name = HOSTILE if hostile else "clip"
    return EmbeddingTable(
        keys=[f"{name}/{row // 2}" for row in range(num_rows)],
        index=np.arange(num_rows) // 2,
        start_seconds=np.arange(num_rows) % 2 * 0.5,
        end_seconds=np.arange(num_rows) % 2 * 0.5 + 0.5,
        has_audio=has_audio,
        has_video=has_video,
        video_embedding=video,
        audio_embedding=audio,
        labels=[
            {"visual": [f"{name}-{row // 4}"], "sound": ["bell" if row % 4 < 2 else name]} for row in range(num_rows)
        ],
        metadata={"run": name, "normalized": True},
    )


def make_run(folder: Path, hostile: bool = False) -> Path:
    folder.mkdir()
    rows = [
        {
            "step": step,
            "samples_seen": step * 16,
            "loss": 5 - step / 400,
            "lr": 1e-3,
            "data_wait_share": 0.1,
            "video_to_audio": 1.0,
        }
        for step in range(0, 1200, 3)
    ]
    rows[5]["loss"] = float("nan")
    if hostile:
        rows[-1][HOSTILE] = 1.0
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 12', encoding="utf-8")
    (folder / "config.yaml").write_text(f"loss:\n  name: avid # {HOSTILE if hostile else ''}\n", encoding="utf-8")
    return folder


def evaluation(run: str = "avid", **results: Any) -> dict[str, Any]:
    weights = results or {"trained": RESULTS, "untrained": {name: 0.1 for name in RESULTS if name != "something_new"}}
    chance = {"video_knn_visual": 0.125, "video_to_audio_recall_at_5": 0.025}
    return {"run": run, "protocol": {"test_clips": 200}, "chance": chance, "results": weights}


def build(tmp_path: Path, clip: tuple[bytes, bytes], hostile: bool = False) -> str:
    name = HOSTILE if hostile else "avid"
    path = write_report(
        make_run(tmp_path / "run", hostile),
        evaluation=evaluation(name),
        evaluations=[evaluation("avid_cma", **{name: RESULTS})],
        table=make_table(hostile=hostile),
        media=lambda key: clip,
        title=name,
        other_runs={name: make_run(tmp_path / "other")},
        index={"num_listed": 9, "num_written": 7, "skipped_by_reason": {"truncated": 2}, "label_names": {name: [name]}},
        facts={"Commit": name},
    )
    assert path == tmp_path / "run" / "report.html"
    return path.read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_makes_no_requests(tmp_path: Path, clip: tuple[bytes, bytes]) -> None:
    page = Checker(build(tmp_path, clip))
    assert page.wrong == []
    assert page.open == []
    for name, attributes in page.tags:
        for key in ("src", "href", "poster", "data", "action"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:", "#")), (name, key, value[:80])
    style = re.findall(r"url\([^#]|@import", kit_file("style.css"))
    assert style == []
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy.split("script-src")[1]


def test_hostile_names_stay_text(tmp_path: Path, clip: tuple[bytes, bytes]) -> None:
    text = build(tmp_path, clip, hostile=True)
    page = Checker(text)
    assert page.wrong == []
    assert page.open == []
    assert HOSTILE not in text
    assert "<script>alert" not in text
    assert [a.get("id") for name, a in page.tags if name == "script" and "id" in a] == ["media", "curves"]
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert sum(HOSTILE in piece for piece in page.text) > 10, "the names are shown"


def test_every_metric_run_and_chance_level_is_shown(tmp_path: Path, clip: tuple[bytes, bytes]) -> None:
    page = Checker(build(tmp_path, clip))
    shown = [a["data-metric"] for _, a in page.tags if "data-metric" in a]
    assert sorted(filter(None, shown)) == sorted(flat_numbers(RESULTS))
    words = " ".join(page.text).replace("\u00a0", " ")
    for expected in ("93.0 %", "98.5 %", "16.5 %", "17.2 %", "24", "84.0 %", "3.25", "12.5 %", "2.5 %"):
        assert expected in words, expected
    for expected in (
        "avid · trained",
        "avid · untrained",
        "avid_cma · avid",
        "chance",
        "lower is better",
        "lower is better",
    ):
        assert expected in words, expected


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, clip: tuple[bytes, bytes]) -> None:
    run = make_run(tmp_path / "run")
    table = make_table()
    pages = [
        write_report(run, evaluation=evaluation(), table=table, media=dict.fromkeys(table.keys, clip)).read_bytes()
        for _ in range(2)
    ]
    assert pages[0] == pages[1]
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "metrics.jsonl", "report.html"]


def test_curves_data_and_facts_are_there(tmp_path: Path, clip: tuple[bytes, bytes]) -> None:
    page = Checker(build(tmp_path, clip))
    words = " ".join(page.text)
    for expected in ("Loss", "Learning rate", "Waiting for data", "Skipped inputs by reason", "truncated", "torch"):
        assert expected in words, expected
    assert "unreadable lines in metrics.jsonl: 1" in words
    assert "values that are not finite and leave gaps in the lines: 1" in words
    charts = [a["aria-label"] or "" for name, a in page.tags if a.get("class") == "plot"]
    assert any(label.startswith("Loss.") and "ends at" in label for label in charts)
    assert all(a.get("alt") for name, a in page.tags if name == "img")
    assert all(a.get("aria-label") for name, a in page.tags if name in ("audio", "video"))


def test_media_is_embedded_once_and_playable(tmp_path: Path, clip: tuple[bytes, bytes]) -> None:
    text = build(tmp_path, clip)
    media = json.loads(re.search(r'<script type="application/json" id="media">(.*?)</script>', text, re.S)[1])
    tags = Checker(text).tags
    players = [a["data-media"] for _, a in tags if "data-media" in a]
    points = {a[name] for _, a in tags for name in ("data-picture", "data-sound") if name in a}
    assert set(players) | points == set(media)
    assert len(players) > len(set(players)), "clips that are shown twice are in the page once"
    assert {media[name][:15] for name in players} == {"data:video/mp4;", "data:audio/flac"}
    assert {str(media[name])[:15] for name in points if name} == {"data:image/jpeg", "data:audio/wav;"}
    assert "✓ right class" in text
    assert "✗ other class" in text
    assert "★ its own" in text


def test_media_beyond_the_budget_is_shown_but_not_embedded(tmp_path: Path, clip: tuple[bytes, bytes]) -> None:
    run = make_run(tmp_path / "run")
    options = ReportOptions(max_media_bytes=0, max_map_bytes=0)
    text = write_report(run, table=make_table(), media=lambda key: clip, options=options).read_text(encoding="utf-8")
    assert 'id="media">{}</script>' in text
    assert "not embedded" in text
    assert "files did not fit into the page" in text


def test_an_empty_run_folder_gives_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    page = Checker(write_report(tmp_path).read_text(encoding="utf-8"))
    words = " ".join(page.text)
    assert page.wrong == []
    remedy = f"avssl evaluate {tmp_path} train=SHARDS test=TEST_SHARDS"
    for expected in ("No training curves", "No evaluation yet", "No samples are shown: --shards", remedy):
        assert expected in words, expected
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_report(tmp_path / "nowhere")


def test_a_stored_evaluation_is_found_and_broken_media_is_named(tmp_path: Path, clip: tuple[bytes, bytes]) -> None:
    run = make_run(tmp_path / "run")
    (run / "evaluation.json").write_text(json.dumps(evaluation()), encoding="utf-8")
    text = write_report(run, table=make_table(), media=lambda key: (b"no video at all", None)).read_text(
        encoding="utf-8"
    )
    assert "video_knn_visual" in text
    assert "cannot be shown: not_media" in text
    assert "no audio" in text
    with pytest.raises(KeyError, match="place"):
        write_report(run, table=make_table(), options=ReportOptions(label_fields={"video": "place"}))


def test_thumbnails_show_the_moments_they_claim(clip: tuple[bytes, bytes]) -> None:
    from PIL import Image

    first, last = (Image.open(io.BytesIO(data)) for data in video_thumbnails(clip[0], 2))
    assert first.size == (144, 96)
    assert np.asarray(first).mean(axis=(0, 1)).argmax() == 0
    assert np.asarray(last).mean(axis=(0, 1)).argmax() == 2


def test_the_waveform_is_the_envelope_of_the_audio(clip: tuple[bytes, bytes]) -> None:
    low, high, seconds = audio_outline(clip[1])
    assert seconds == pytest.approx(0.5, abs=0.01)
    assert high[5:50].max() == pytest.approx(0.1, abs=0.02)
    assert high[70:110].max() == pytest.approx(0.8, abs=0.05)
    assert low[70:110].min() == pytest.approx(-0.8, abs=0.05)


def test_neighbors_are_the_closest_rows_of_the_other_modality() -> None:
    table = make_table().pool_by_key()
    labels = table.label("sound")
    queries = pick_queries(table, "video", labels, 3)
    assert all(table.has_video[row] for row in queries)
    assert len({labels[row] for row in queries}) == 2, "every class has a query"
    assert table.video_embedding is not None
    assert table.audio_embedding is not None
    for query, matches in zip(queries, find_matches(table, "video", queries, labels, 3), strict=True):
        cosine = np.nan_to_num(table.audio_embedding @ table.video_embedding[query], nan=-2)
        assert [match.row for match in matches] == np.argsort(-cosine)[:3].tolist()
        assert [match.is_own for match in matches] == [match.row == query for match in matches]
        assert [match.is_right for match in matches] == [labels[match.row] == labels[query] for match in matches]


def test_the_map_is_the_principal_plane_of_scikit_learn() -> None:
    points = np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32) * [3, 2, 1, 1, 1, 1]
    plane, shares = principal_plane(points.astype(np.float32))
    oracle = PCA(2, svd_solver="full").fit(points)
    np.testing.assert_allclose(np.abs(plane), np.abs(oracle.transform(points)), atol=1e-4)
    np.testing.assert_allclose(shares, oracle.explained_variance_ratio_, atol=1e-5)
    assert (plane[np.abs(plane).argmax(axis=0), [0, 1]] > 0).all()
    assert principal_plane(np.ones((5, 3), np.float32))[1].tolist() == [0, 0]
    assert even_rows(np.arange(1000) % 2 == 0, 4).tolist() == [0, 332, 666, 998]
    colors = class_colors([f"c{place:02d}" for place in range(20)] + ["c19"])
    assert sorted(colors.values()) == [*range(11), *[11] * 9]
    assert colors["c19"] == 10


def test_numbers_are_written_for_people() -> None:
    assert [number(value) for value in (0.48531, 96_000, 24.0, 2e-8)] == ["0.4853", "96,000", "24", "2e-8"]
    assert metric_title("video_to_audio_recall_at_5") == "Recall at 5"
    assert metric_title("video_knn_visual") == "Video kNN, visual"
    assert is_share("audio_knn_sound")
    assert not is_share("video_to_audio_median_rank")


def test_lower_is_better_by_the_metric_and_not_by_its_label_field() -> None:
    assert all(map(lower_is_better, ("video_to_audio_median_rank", "mean_error", "loss", "audio/train_loss")))
    for metric in (
        "video_knn_taxonomic_rank",
        "audio_knn_glossy",
        "video_to_audio_class_precision_rank",
        "positive_precision_consensus_rank",
        "frank_top1_accuracy",
        "audio_accuracy of loss",
    ):
        assert not lower_is_better(metric), metric


def test_long_curves_are_binned_and_gaps_stay_gaps() -> None:
    y = np.sin(np.arange(1000) / 50)
    y[400:500] = np.nan
    mean, low, high = binned(y, 100)
    assert len(mean) == 100
    assert np.isnan(mean[40:50]).all()
    np.testing.assert_allclose(mean[:40], y[:400].reshape(40, 10).mean(axis=1))
    assert (np.nanmin(low), np.nanmax(high)) == (np.nanmin(y), np.nanmax(y))
    curves = Curves(max_points=100)
    drawn = curves.chart("t", [Series("s", {"step": np.arange(1000.0)}, y)])
    line = curves.to_json()["charts"][0]["lines"][0]
    assert line["mean"][40:50] == [None] * 10
    np.testing.assert_allclose(line["mean"][:40], mean[:40], rtol=1e-5)
    assert curves.axes[line["axis"]]["step"][:2] == [4.5, 14.5]
    assert f"ends at {number(float(y[-1]))}" in drawn
    with pytest.raises(ValueError, match="no finite value"):
        curves.chart("t", [Series("s", {"step": np.arange(9.0)}, np.full(9, np.nan))])


def test_metrics_of_a_resumed_run_keep_the_last_of_a_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 5}\n{"step": 2, "loss": 4}\nbroken\n{"step": 2, "loss": 3, "seconds": 200}\n')
    metrics = read_metrics(path)
    assert ([row["loss"] for row in metrics.rows], metrics.num_unreadable, [*metrics.axes()]) == ([5, 3], 1, ["step"])
    assert training_facts(metrics) == {"Optimizer steps": "2", "Training time": "3 min 20 s"}
    assert read_metrics(tmp_path / "none.jsonl").rows == []


def test_a_probe_without_scores_takes_no_axis_away(tmp_path: Path) -> None:
    """As the first one of a run, or of a folder with too few labels, may be."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, "samples_seen": {8 * step}, "seconds": 2}}\n' for step in (1, 2)))
    lines = [{"step": 0, "samples_seen": 0}, {"step": 2, "samples_seen": 16, "video_knn_visual": 0.5}]
    (tmp_path / "probe.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = read_metrics(path)
    assert [*metrics.axes()] == ["samples_seen", "step", "hours"]
    assert [row.get("probe_video_knn_visual") for row in metrics.rows] == [None, 0.5]


def test_markup_escapes_everything_but_markup() -> None:
    made = tag("a", "<b>", Html("<i></i>"), None, 3, href="\"'&", class_="x", hidden=True, title=None)
    assert made == '<a href="&quot;&#x27;&amp;" class="x" hidden>&lt;b&gt;<i></i>3</a>'
    assert join("a&b", tag("br")) == "a&amp;b<br>"


def test_a_library_without_media_says_so() -> None:
    library = MediaLibrary(None, 100)
    assert not library.available
    assert "no video" in library.thumbnails("k", 1)
    assert MediaLibrary({}, 100).embed("k", "video") is None
