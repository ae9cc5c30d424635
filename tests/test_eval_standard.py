"""The task `standard`: its rows against scikit-learn and loops, comparisons of results, two processes against one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from avssl import config
from avssl.embedding.embed_shards import embed_split
from avssl.embedding.embedder import Embedder
from avssl.embedding.table import VECTOR_COLUMNS, EmbeddingTable
from avssl.eval import tasks
from avssl.eval.compare import is_comparable, refuse_unless_comparable
from avssl.eval.configs import StandardConfig
from avssl.eval.outcome import Outcome
from avssl.eval.results import read_evaluation, read_rows
from avssl.eval.tasks.standard import evaluate_tables, positive_sets, protocol_of
from recipes import evaluate as recipe
from tests.conftest import run_python

OPTIONS = ("num_neighbors=3", "num_positives=3", "num_workers=0")
FIELDS = {"video": "shape", "audio": "tone"}


def made_table(num_clips: int, seed: int) -> EmbeddingTable:
    """One window per clip: every fifth has no video, every third no audio, every seventh no label `tone`."""
    generator = np.random.default_rng(seed)
    classes = generator.integers(0, 4, num_clips)
    has = {"video": np.arange(num_clips) % 5 != 0, "audio": np.arange(num_clips) % 3 != 0}
    columns: dict[str, Any] = {}
    for modality, present in has.items():
        rows = generator.normal(size=(num_clips, 6)) + 1.5 * np.eye(6)[classes]
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        columns[f"{modality}_feature"] = np.where(present[:, None], rows, np.nan)
        columns[f"{modality}_embedding"] = np.where(present[:, None], unit, np.nan)
    names = ["abcd"[number] for number in classes]
    labels = [{"shape": [name], **({"tone": [name]} if row % 7 else {})} for row, name in enumerate(names)]
    times = {"start_seconds": np.zeros(num_clips), "end_seconds": np.ones(num_clips)}
    present = {f"has_{modality}": rows for modality, rows in has.items()}
    keys = [f"{seed}-{row}" for row in range(num_clips)]
    return EmbeddingTable(keys, np.arange(num_clips), labels=labels, **times, **present, **columns)


@pytest.fixture(scope="module")
def tables() -> dict[str, EmbeddingTable]:
    return {"train": made_table(60, 0), "test": made_table(40, 1)}


@pytest.fixture(scope="module")
def outcome(tables: dict[str, EmbeddingTable]) -> Outcome:
    positives = {"union": torch.from_numpy((np.arange(60)[:, None] + [1, 2, 5]) % 60)}
    return evaluate_tables(tables["train"], tables["test"], StandardConfig(num_neighbors=5), positives)


def test_other_labels_of_the_same_samples_are_another_protocol(tables: dict[str, EmbeddingTable]) -> None:
    """They were compared as if a right answer were the same in both."""
    settings = StandardConfig(num_neighbors=5)
    first = {"protocol": protocol_of(tables["train"], tables["test"], settings)}
    for split, table in tables.items():
        names = [{**row, "shape": ["e"]} if number == 3 else row for number, row in enumerate(table.labels)]
        others = tables | {split: replace(table, labels=names)}
        second = {"protocol": protocol_of(others["train"], others["test"], settings)}
        assert not is_comparable(first, second)
        with pytest.raises(ValueError, match="targets: "):
            refuse_unless_comparable(first, second, ("a", "b"))
    turned = {split: table.select(np.arange(len(table))[::-1]) for split, table in tables.items()}
    assert is_comparable(first, {"protocol": protocol_of(turned["train"], turned["test"], settings)})
    earlier = {key: value for key, value in first["protocol"].items() if key != "targets"}
    assert is_comparable(first, {"protocol": earlier}), "of results of earlier versions it is not known"


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_each_clip_is_right_or_wrong_as_scikit_learn_says(tables: Any, outcome: Outcome, modality: str) -> None:
    train, test = tables["train"], tables["test"]
    rows = outcome.repeats[0]
    for label_field in ("shape", "tone"):
        name = f"{modality}_knn_{label_field}"
        sides = []
        for table in (train, test):
            labels = np.array([row.get(label_field, [""])[0] for row in table.labels])
            kept = table.has(modality) & (labels != "")
            features = getattr(table, f"{modality}_feature")[kept].astype(np.float64)
            sides.append((kept, features, labels[kept]))
        (_, train_rows, names), (kept, test_rows, truth) = sides
        oracle = KNeighborsClassifier(
            5, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
        ).fit(train_rows, names)
        assert rows.columns[f"{name}_asked"].tolist() == kept.tolist()
        np.testing.assert_array_equal(rows.columns[f"{name}_right"][kept], oracle.predict(test_rows) == truth)
        assert rows.values()[name] == pytest.approx(oracle.score(test_rows, truth))


def test_each_clip_has_its_rank_and_the_class_of_the_closest_clip(tables: Any, outcome: Outcome) -> None:
    test, rows = tables["test"], outcome.repeats[0]
    pairs = np.flatnonzero(test.has_video & test.has_audio)
    shapes = np.array([row["shape"][0] for row in test.labels])
    sides = {name: getattr(test, f"{name}_embedding").astype(np.float64) for name in ("video", "audio")}
    assert np.flatnonzero(rows.columns["has_pair"]).tolist() == pairs.tolist()
    for first, second in (("video", "audio"), ("audio", "video")):
        name, ranks, right = f"{first}_to_{second}", [], []
        for clip in pairs:
            cosines = sides[second][pairs] @ sides[first][clip]
            order = pairs[np.argsort(-cosines)]
            ranks.append(int(np.flatnonzero(order == clip)[0]) + 1)
            right.append(float(shapes[order[order != clip][0]] == shapes[clip]))
        assert rows.columns[f"{name}_rank"][pairs].tolist() == ranks
        np.testing.assert_allclose(rows.columns[f"{name}_class_precision_shape"][pairs], right)
        values = rows.values()
        assert values[f"{name}_median_rank"] == np.median(ranks)
        assert values[f"{name}_recall_at_5"] == pytest.approx(np.mean(np.array(ranks) <= 5))
        assert values[f"{name}_class_precision_shape"] == pytest.approx(np.mean(right))
        assert rows.metrics[f"{name}_recall_at_5"].chance == pytest.approx(5 / len(pairs))
    assert not any("class_precision_tone" in name for name in rows.metrics), "some clips have no tone"


def test_each_anchor_has_the_share_of_its_positives_that_are_right(tables: Any, outcome: Outcome) -> None:
    anchors = outcome.repeats[1]
    shapes = [row["shape"][0] for row in tables["train"].labels]
    shares = [np.mean([shapes[(row + step) % 60] == shapes[row] for step in (1, 2, 5)]) for row in range(60)]
    np.testing.assert_allclose(anchors.columns["positive_precision_union_shape"], shares)
    assert anchors.values().keys() == {"positive_precision_union_shape"}


@pytest.fixture(scope="module")
def run(tiny_run: Path, shards: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was evaluated in one process."""
    copy = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("standard") / "avid"))
    splits = {"train": str(shards["train"]), "test": str(shards["test"])}
    recipe.evaluate(copy, StandardConfig(**splits, num_neighbors=3, num_positives=3, num_workers=0))
    return copy


@pytest.mark.parametrize("key", ["name", "folds", "label_field", "modality", "untrained", "folder"])
def test_keys_of_other_tasks_are_refused(key: str, shards: Any) -> None:
    with pytest.raises(config.ConfigError, match=key):
        config.parse(tasks.get("standard").Config, [f"train={shards['train']}", f"{key}=1"])


@pytest.mark.slow
def test_two_results_are_compared_in_pairs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "evaluation.json"
    recipe.compare_files([str(path), str(path), "weights=trained,untrained", "draws=20"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[3:]}
    evaluation = read_evaluation(path)
    assert lines.keys() == evaluation["results"]["untrained"].keys(), "positives are of trained weights alone"
    assert "p = " in lines["video_knn_visual"]
    assert "p = " in lines["video_to_audio_recall_at_5"]
    for weights in ("trained", "untrained"):
        repeats = read_rows(path, evaluation, weights)
        assert [repeat.name for repeat in repeats] == ["test", "positives"]
        values = {name: value for repeat in repeats for name, value in repeat.values().items()}
        assert values == evaluation["results"][weights]


@pytest.mark.slow
def test_the_gathered_table_is_that_of_embed(run: Path, shards: Any) -> None:
    embedder = Embedder.from_run(run)
    table, expected = embed_split(embedder, str(shards["test"])), embedder.embed(shards["test"])[0]
    assert (table.keys, table.labels, table.metadata) == (expected.keys, expected.labels, expected.metadata)
    for name in VECTOR_COLUMNS:
        np.testing.assert_array_equal(getattr(table, name), getattr(expected, name))


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(run: Path, tiny_run: Path, shards: Any, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_run, tmp_path / "avid"))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    splits = [f"{split}={folder}" for split, folder in shards.items()]
    run_python(*launcher, "recipes/evaluate.py", copy, *splits, *OPTIONS)
    evaluation, copied = (json.loads((folder / "evaluation.json").read_text()) for folder in (run, copy))
    for part in ("results", "chance", "protocol", "weights", "repeats"):
        assert evaluation[part] == copied[part], part
    for weights in ("trained", "untrained"):
        sides = [
            read_rows(folder / "evaluation.json", read, weights) for folder, read in ((run, evaluation), (copy, copied))
        ]
        for first, second in zip(*sides, strict=True):
            assert first.keys == second.keys
            for column, values in first.columns.items():
                np.testing.assert_allclose(values, second.columns[column], err_msg=column)
    for split in shards:
        tables = [EmbeddingTable.read(folder / "embeddings" / f"{split}.parquet") for folder in (run, copy)]
        assert tables[0].keys == tables[1].keys
        for name in VECTOR_COLUMNS:
            if getattr(tables[0], name) is not None:
                np.testing.assert_allclose(getattr(tables[0], name), getattr(tables[1], name), atol=1e-5)


def test_samples_too_few_for_positive_sets_leave_their_precision_out_with_a_note(tiny_run, shards):
    config = StandardConfig(train=str(shards["train"]), test=str(shards["test"]))
    found, (note,) = positive_sets(tiny_run, config)
    assert found == {}
    assert note.endswith("has 18 samples, and a set num_positives=32 others of them; a smaller num_positives gives it")
    assert len(positive_sets(tiny_run, replace(config, num_positives=17))[0]) == 4
