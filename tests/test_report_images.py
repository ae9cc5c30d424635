"""The report of runs without both video and audio: images, silent videos, audio alone."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from avssl.embedding.table import EmbeddingTable
from avssl.eval.configs import StandardConfig
from avssl.eval.tasks.standard import evaluate_tables
from avssl.pages.media import MediaLibrary, image_thumbnail
from avssl.report import write_report
from avssl.report.curves import read_metrics, training_facts
from avssl.report.neighbors import find_matches, pick_queries, row_noun, searches
from tests.test_report import Checker, clip

__all__ = ["clip"]  # a fixture

COLORS = {"red": (230, 20, 20), "blue": (20, 20, 230)}


def image_file(color: str, size: tuple[int, int] = (24, 16), file_format: str = "PNG") -> bytes:
    """An image file of one color, of width x height pixels."""
    stream = io.BytesIO()
    Image.new("RGB", size, COLORS[color]).save(stream, file_format)
    return stream.getvalue()


def metrics_of(train: EmbeddingTable, test: EmbeddingTable) -> tuple[dict[str, float], dict[str, float | None]]:
    """({metric: value}, {metric: chance}) of the test clips by the task `standard`."""
    clips = evaluate_tables(train, test, StandardConfig(num_neighbors=3)).repeats[0]
    return clips.values(), {name: metric.chance for name, metric in clips.metrics.items()}


def make_table(modality: str, num_rows: int = 8, seed: int = 0, **metadata: Any) -> EmbeddingTable:
    """Rows of one modality in two classes that the embedding tells apart."""
    rows = np.random.default_rng(seed).normal(size=(num_rows, 4)) * 0.1 + np.arange(num_rows)[:, None] % 2 * 2 - 1
    columns: dict[str, Any] = {
        f"has_{name}": np.full(num_rows, name == modality) for name in ("audio", "video", "image")
    }
    columns[f"{modality}_feature"] = rows
    columns[f"{modality}_embedding"] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return EmbeddingTable(
        keys=[f"{list(COLORS)[row % 2]}/{row}" for row in range(num_rows)],
        index=np.arange(num_rows),
        start_seconds=np.zeros(num_rows),
        end_seconds=np.zeros(num_rows),
        labels=[{"label": [list(COLORS)[row % 2]]} for row in range(num_rows)],
        metadata=metadata,
        **columns,
    )


def report(folder: Path, table: EmbeddingTable, media: Any) -> tuple[str, Checker, str]:
    """(the page, its parsed form, its words)."""
    folder.mkdir(exist_ok=True)
    rows = [{"step": n, "samples_seen": n, "loss": 1 / n, "first_embedding_spread": 0.5 + n / 100} for n in range(1, 9)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values, chance = metrics_of(table, make_table(table.modalities()[0], seed=1))
    results = {"trained": values, "untrained": dict.fromkeys(values, 0.5)}
    evaluation = {"run": "simclr", "protocol": {"num_test": 8}, "chance": chance, "results": results}
    text = write_report(folder, evaluation=evaluation, table=table, media=media).read_text(encoding="utf-8")
    page = Checker(text)
    assert page.wrong == []
    assert page.open == []
    return text, page, " ".join(" ".join(page.text).replace("\u00a0", " ").split())


def test_the_page_reports_a_collapse_of_a_run_and_only_then(tmp_path: Path) -> None:
    words = {}
    for name, last in (("alive", 0.9), ("dead", 0.01)):
        folder = tmp_path / name
        folder.mkdir()
        rows = [
            {"step": n, "samples_seen": n, "loss": 1.0, "first_embedding_spread": 0.9 if n < 15 else last}
            for n in range(1, 30)
        ]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
        page = Checker(write_report(folder).read_text(encoding="utf-8"))
        words[name] = " ".join(" ".join(page.text).split())
    told = "collapse: the embeddings of a batch are nearly the same: first_embedding_spread is 0.01 at step 17."
    assert told in words["dead"]
    assert "collapse: the embeddings" not in words["alive"]


def test_results_of_tasks_are_tables_with_their_deviation_random_weights_and_chance(tmp_path: Path) -> None:
    (tmp_path / "evaluations").mkdir()
    metric = "video_feature_top1_accuracy"
    result = {
        "task": "few_label", "name": "<b>demo</b>", "data": {"train": "a", "test": "shards/test"},
        "weights": {"trained": "abc"}, "environment": {"commit": "123"},
        "protocol": {"label_share": 0.1, "num_test": 40}, "chance": {metric: 0.125},
        "results": {"trained": {metric: 0.75, "d_prime": 1.5}, "untrained": {metric: 0.25}},
        "deviation": {"trained": {metric: 0.02, "d_prime": None}, "untrained": {metric: None}},
        "repeats": {"trained": [{}, {}, {}], "untrained": [{}, {}, {}]},
    }  # fmt: skip
    (tmp_path / "evaluations" / "few_label-demo.json").write_text(json.dumps(result))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    page = Checker(text)
    assert (page.wrong, page.open) == ([], [])
    assert "<b>demo" not in text
    words = " ".join(" ".join(page.text).replace("\u00a0", " ").split())
    assert "few label · <b>demo</b> shards/test; mean ± deviation of 3 folds or seeds" in words
    assert f"{metric} 40 75.0 % ± 2.0 % 25.0 % 12.5 %" in words
    assert "d_prime 40 1.5 – –" in words
    (tmp_path / "evaluations" / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json is damaged"):
        write_report(tmp_path)


@pytest.mark.parametrize("modality", ["image", "video", "audio"])
def test_one_modality_is_searched_within_itself_without_the_query(modality: str) -> None:
    table = make_table(modality)
    assert searches(table) == [(modality, modality)]
    labels = table.label("label")
    queries = pick_queries(table, modality, labels, 4)
    vectors = table.embedding(modality)
    assert vectors is not None
    for query, matches in zip(queries, find_matches(table, modality, queries, labels, 3, among=modality), strict=True):
        cosine = vectors.astype(np.float64) @ vectors[query]
        cosine[query] = -2
        assert [match.row for match in matches] == np.argsort(-cosine)[:3].tolist()
        assert not any(match.is_own for match in matches)
        assert all(match.is_right for match in matches), "the classes lie on opposite sides"


def test_an_image_with_a_twin_still_leaves_only_itself_out() -> None:
    table = make_table("image", 4)
    assert table.image_embedding is not None
    same = EmbeddingTable(**{**table.__dict__, "image_embedding": table.image_embedding[[0, 0, 0, 3]]})
    (matches,) = find_matches(same, "image", [2], same.label("label"), 3, among="image")
    assert [match.row for match in matches] == [0, 1, 3]


def test_the_page_of_an_image_run_shows_images_and_names_nothing_else(tmp_path: Path) -> None:
    media = {f"{color}/{row}": (None, None, image_file(color)) for row in range(8) for color in COLORS}
    text, page, words = report(tmp_path / "run", make_table("image"), media)
    for expected in ("Nearest neighbors", "From an image to the closest other images", "Query image", "Image kNN",
                     "Evenly picked images.", "squares are images", "✓ right class", "100.0 %"):  # fmt: skip
        assert expected in words or expected in text, expected
    for wrong in ("no video", "no audio", "not embedded", "▶", "waveform", "Does a video find", "triangles", "clips"):
        assert wrong not in re.sub(r"<script.*?</script>|<style.*?</style>", "", text, flags=re.S), wrong
    images = [attributes for name, attributes in page.tags if name == "img"]
    assert len(images) == 4 * (1 + 4) + 8, "queries with their matches, and a card for every image"
    assert all(image["src"].startswith("data:image/jpeg") and image["alt"] for image in images)
    assert (
        sum(name == "rect" and attributes.get("class", "").startswith("point") for name, attributes in page.tags) == 8
    )
    assert not any(name in ("audio", "video") for name, _ in page.tags)


def test_the_headings_of_every_section_have_something_below_them(tmp_path: Path) -> None:
    media = {f"{color}/{row}": (None, None, image_file(color)) for row in range(8) for color in COLORS}
    text, _, _ = report(tmp_path / "run", make_table("image"), media)
    sections = re.findall(r"<section[^>]*>(.*?)</section>", text, re.S)
    assert len(sections) == 7
    for section in sections:
        assert len(re.sub(r"<h2.*?</h2>", "", section, flags=re.S)) > 150, section[:200]


@pytest.mark.parametrize(
    ("modality", "there", "absent"),
    [
        (
            "video",
            ["closest other videos", "four frames.", "discs are videos"],
            ["no audio", "triangles"],
        ),
        ("audio", ["closest other audio clips", "their waveforms", "triangles are audio clips"], ["no video", "discs"]),
    ],
)
def test_the_page_of_a_run_on_one_modality_leaves_the_other_out(
    tmp_path: Path, clip: tuple[bytes, bytes], modality: str, there: list[str], absent: list[str]
) -> None:
    media = (clip[0], None) if modality == "video" else (None, clip[1])
    text, page, words = report(tmp_path / "run", make_table(modality), lambda key: media)
    for expected in there:
        assert expected in words or expected in text, expected
    for wrong in absent:
        assert wrong not in re.sub(r"<script.*?</script>|<style.*?</style>", "", text, flags=re.S), wrong
    assert any(name == modality for name, _ in page.tags), "there is a player"
    assert "with the" not in words, "nothing plays together with a query of the same kind"


def test_spreads_of_every_loss_are_drawn_in_one_chart(tmp_path: Path) -> None:
    _, page, words = report(tmp_path / "run", make_table("image"), None)
    assert "Near 0 = collapse" in words
    charts = [attributes["aria-label"] or "" for _, attributes in page.tags if attributes.get("class") == "plot"]
    assert [label for label in charts if label.startswith("Embedding spread") and "first ends at" in label]
    assert not any("First embedding spread" in label for label in charts)


def test_training_time_is_the_sum_over_the_logged_steps(tmp_path: Path) -> None:
    """Every row of the log has the time since the row before."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "seconds": 100}\n{"step": 2, "seconds": 60}\n{"step": 3, "seconds": 40.2}\n')
    assert training_facts(read_metrics(path))["Training time"] == "3 min 20 s"


def test_a_thumbnail_is_the_image_at_the_height_of_the_page() -> None:
    small = Image.open(io.BytesIO(image_thumbnail(image_file("red", (24, 16)))))
    large = Image.open(io.BytesIO(image_thumbnail(image_file("blue", (300, 400), "JPEG"))))
    assert (small.size, large.size) == ((144, 96), (72, 96))
    assert np.asarray(small).mean(axis=(0, 1)).argmax() == 0
    assert np.asarray(large).mean(axis=(0, 1)).argmax() == 2


def test_a_missing_or_broken_image_is_named() -> None:
    library = MediaLibrary({"broken": (None, None, b"no image"), "film": (b"film", None)}, 100)
    assert "cannot be shown: not_media" in library.image("broken")
    assert "no image" in library.image("film")
    assert "no image" in library.image("elsewhere")
    assert library.embedded == {}


def test_a_shown_image_is_the_one_of_its_key(tmp_path: Path) -> None:
    library = MediaLibrary({color: (None, None, image_file(color)) for color in COLORS}, 0)
    for color, channel in (("red", 0), ("blue", 2)):
        uri = re.search(r"base64,([^\"]+)", library.player(color, "image"))
        assert uri is not None
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri[1]))))
        assert pixels.mean(axis=(0, 1)).argmax() == channel


def test_the_noun_for_rows_depends_on_their_modality() -> None:
    assert [row_noun(make_table(modality)) for modality in ("image", "video", "audio")] == [
        "images",
        "clips",
        "audio clips",
    ]


def test_what_cannot_be_evaluated_says_what_it_needs() -> None:
    table = make_table("image")
    unlabeled = EmbeddingTable(**{**table.__dict__, "labels": [{}] * len(table)})
    with pytest.raises(ValueError, match=r"embedded are image.*label fields \['label'\], the test split \[\]"):
        evaluate_tables(table, unlabeled, StandardConfig())


def test_only_modalities_of_the_table_have_metrics() -> None:
    for modality in ("image", "video", "audio"):
        values, chance = metrics_of(make_table(modality), make_table(modality, seed=1))
        assert values == {f"{modality}_knn_label": 1.0}
        assert chance == {f"{modality}_knn_label": 0.5}
