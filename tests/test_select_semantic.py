"""Semantic duplicates of `avssl prep select`: near in every modality, found in cells, at memory that does not grow."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from avssl.embedding.index import FileRecord, FolderIndex
from avssl.embedding.table import EmbeddingTable
from data_prep.__main__ import main
from data_prep.facts.embeddings import Pooled
from data_prep.select import semantic
from data_prep.select.state import State
from tests.made_facts import lines_of, made_corpus

DIM = 16


def near(vector: np.ndarray, cosine: float, random: np.random.Generator) -> np.ndarray:
    """A unit vector with this cosine to a unit vector."""
    other = random.standard_normal(len(vector))
    other -= (other @ vector) * vector
    return cosine * vector + np.sqrt(1 - cosine**2) * other / np.linalg.norm(other)


def units(random: np.random.Generator, count: int) -> np.ndarray:
    rows = random.standard_normal((count, DIM))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_embeddings(folder: Path, rows: dict[str, tuple[np.ndarray | None, np.ndarray | None]]) -> Path:
    """A folder of `avssl embed` with two windows of each key: {key: (video, audio)}."""
    keys = [key for key in rows for _ in range(2)]
    columns, has = {}, {}
    for place, name in enumerate(("video", "audio")):
        found = [rows[key][place] for key in keys]
        has[name] = np.array([one is not None for one in found])
        columns[f"{name}_embedding"] = np.array([np.full(DIM, np.nan) if one is None else one for one in found])
    count = len(keys)
    table = EmbeddingTable(
        keys, np.full(count, -1), np.arange(count) % 2, np.arange(count) % 2 + 1.0, has["audio"], has["video"],
        metadata={"weights": "w"}, **columns,
    )  # fmt: skip
    folder.mkdir()
    files = [
        FileRecord.of_file(table.select(range(*ends)).write(folder / f"embeddings-{number}.parquet"), ends[1] - ends[0])
        for number, ends in enumerate(pairwise([0, count // 2, count]))
    ]
    FolderIndex(
        settings={"weights": "w", "modalities": ["video", "audio"], "sources": ["/videos"], "shards": None},
        widths=dict.fromkeys(columns, DIM), num_listed=1, num_embedded=1, num_skipped=0, skipped_by_reason={},
        num_rows=count, rows_with={name: int(rows.sum()) for name, rows in has.items()}, run_folder="", files=files,
    ).write(folder)  # fmt: skip
    return folder


def run(folder: Path, rows: list[dict], embeddings: Path, *options: str) -> int:
    manifest, facts = made_corpus(folder, rows)
    return main(["select", str(manifest), "--facts", str(facts), "--embeddings", str(embeddings), "--out",
                 str(folder / "kept.jsonl"), *options])  # fmt: skip


def test_duplicates_are_near_in_every_modality_by_the_threshold_of_each(tmp_path):
    random = np.random.default_rng(0)
    video, audio = units(random, 8), units(random, 8)
    rows = {
        "clip": (video[0], audio[0]),
        "copy": (near(video[0], 0.97, random), near(audio[0], 0.96, random)),
        "other_sound": (near(video[0], 0.99, random), audio[1]),
        "other_picture": (video[1], near(audio[0], 0.99, random)),
        "quieter_copy": (near(video[0], 0.99, random), near(audio[0], 0.92, random)),
        "muted": (near(video[0], 0.99, random), None),
        "muted_copy": (near(video[0], 0.999, random), None),
        "sound": (None, near(audio[0], 0.99, random)),
        "alone": (video[2], audio[2]),
        "not_embedded": (video[3], audio[3]),
    }
    embeddings = write_embeddings(tmp_path / "rows", {key: row for key, row in rows.items() if key != "not_embedded"})
    for options, expected in {
        (".95",): {"copy": "clip", "muted_copy": "muted"},
        (".95", "audio=.9"): {"copy": "clip", "quieter_copy": "clip", "muted_copy": "muted"},
    }.items():
        assert run(tmp_path / str(len(options)), [{"key": key} for key in rows], embeddings, "--dedup", *options) == 0
        left_out = {row["key"]: row for row in lines_of(tmp_path / str(len(options)) / "kept.select.left_out.jsonl")}
        assert {key: row["duplicate_of"] for key, row in left_out.items()} == expected
        assert left_out["copy"]["reason"] == "semantic_duplicate"
        assert left_out["copy"]["cosine"] == pytest.approx(0.96, abs=1e-4)
    header = json.loads((tmp_path / "2" / "kept.select.json").read_text())
    assert header["rule"]["cosines"] == {"video": 0.95, "audio": 0.9, "image": 0.95}
    assert header["embeddings"]["weights"] == "w"


def test_embeddings_of_other_keys_and_a_missing_threshold_are_one_line(tmp_path, capsys):
    random = np.random.default_rng(0)
    embeddings = write_embeddings(tmp_path / "rows", {"other": (units(random, 1)[0], units(random, 1)[0])})
    assert run(tmp_path / "a", [{}, {}], embeddings, "--dedup", ".9") == 2
    assert "holds embeddings of none of these samples" in capsys.readouterr().err
    assert run(tmp_path / "b", [{"key": "other"}, {}], embeddings, "--dedup", "video=.9") == 2
    assert "--dedup has no cosine for audio, which the embeddings have" in capsys.readouterr().err
    assert not list(tmp_path.glob("*/kept*"))


def clustered(tmp_path, num_clusters: int, seed: int) -> tuple[State, dict[str, Pooled], np.ndarray]:
    """Clusters of 1 to 5 near samples in two modalities, in any order; which one each is of."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 6, num_clusters)
    cluster = random.permutation(np.repeat(np.arange(num_clusters), sizes))
    count, vectors = len(cluster), {}
    for name in ("video", "audio"):
        centers = units(random, num_clusters)[cluster]
        noise = random.standard_normal((count, DIM))
        rows = centers + 0.02 * noise
        vectors[name] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    (tmp_path / "state").mkdir()
    state = State(tmp_path / "state", count)
    state.quality[:] = random.integers(0, 50, count)
    return state, {name: Pooled(values, np.arange(count)) for name, values in vectors.items()}, cluster


def textbook(state: State, embeddings: dict[str, Pooled], cosine: float) -> np.ndarray:
    """Which samples stay, by comparing each with all better ones that stay, in float64."""
    vectors = [pooled.vectors.astype(np.float64) for pooled in embeddings.values()]
    stays: list[int] = []
    for row in sorted(range(state.num_rows), key=lambda row: (-state.quality[row], row)):
        close = np.ones(len(stays), bool)
        for values in vectors:
            close &= values[stays] @ values[row] >= cosine
        if not close.any():
            stays.append(row)
    return np.sort(stays)


def test_all_pairs_of_a_cell_are_compared_as_by_a_loop(tmp_path):
    state, embeddings, cluster = clustered(tmp_path, 300, seed=1)
    semantic.leave_out_semantic(state, embeddings, {"video": 0.95, "audio": 0.95})
    assert state.kept().tolist() == textbook(state, embeddings, 0.95).tolist()
    out = np.flatnonzero(state.reason)
    assert (state.reason[state.detail[out]] == 0).all()  # it names one that stays
    assert (cluster[state.detail[out]] == cluster[out]).all()
    assert len(out) > 300


def test_cells_find_nearly_all_that_comparing_all_pairs_finds(tmp_path, monkeypatch):
    monkeypatch.setattr(semantic, "EXACT_ROWS", 100)
    monkeypatch.setattr(semantic, "ROWS_PER_CELL", 150)  # about 20 cells
    state, embeddings, cluster = clustered(tmp_path, 1000, seed=2)
    semantic.leave_out_semantic(state, embeddings, {"video": 0.95, "audio": 0.95})
    found, true = set(np.flatnonzero(state.reason).tolist()), set(range(state.num_rows))
    true -= set(textbook(state, embeddings, 0.95).tolist())
    assert len(found & true) / len(true) > 0.95
    assert len(found - true) <= 0.02 * len(true)
    out = np.array(sorted(found))
    assert (state.reason[state.detail[out]] == 0).all()
    assert (cluster[state.detail[out]] == cluster[out]).all()
