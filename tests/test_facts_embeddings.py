"""Facts of embeddings: nearest samples and correspondence, against loops in float64."""

import hashlib
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from avssl.shards.format import dump_json
from data_prep.__main__ import main
from data_prep.facts import embeddings as facts_embeddings
from data_prep.facts.cells import nearest_cosines
from data_prep.facts.embeddings import embedding_columns
from data_prep.facts.run import make_facts
from tests.test_search import make_index

NUM_KEYS = 40


@pytest.fixture
def folder(tmp_path):
    """Four windows of each of 40 samples, some without video or audio."""
    make_index(tmp_path / "rows", 4 * NUM_KEYS, rows_per_file=50)
    return tmp_path / "rows"


def pooled(folder, modality, keys):
    """{key: unit vector} by a loop."""
    found = {}
    for path in sorted(folder.glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            if row[f"has_{modality}"] and row["key"] in keys:
                found.setdefault(row["key"], []).append(np.array(row[f"{modality}_embedding"], np.float64))
    return {key: (total := np.sum(rows, axis=0)) / np.linalg.norm(total) for key, rows in found.items()}


def textbook(folder, keys, num_references):
    """{column: {key: value}}."""
    seen, heard = (pooled(folder, modality, set(keys)) for modality in ("video", "audio"))
    columns = {}
    for name, vectors in (("nearest_video", seen), ("nearest_audio", heard)):
        columns[name] = {
            key: max(float(one @ other) for rest, other in vectors.items() if rest != key)
            for key, one in vectors.items()
        }
    both = sorted(seen.keys() & heard.keys())
    order = sorted(
        both, key=lambda key: int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
    )
    references = order[:num_references]
    columns["av_cosine"] = {key: float(seen[key] @ heard[key]) for key in both}
    columns["av_correspondence"] = {}
    for key in both:
        own, worse, pairs = columns["av_cosine"][key], 0, 0
        for other in references:
            if other != key:
                worse += int(seen[key] @ heard[other] < own) + int(seen[other] @ heard[key] < own)
                pairs += 2
        columns["av_correspondence"][key] = worse / pairs
    return columns


@pytest.mark.parametrize("num_references", [1000, 7])
def test_nearest_and_correspondence_are_those_of_a_loop_in_any_order_of_the_corpus(
    folder, tmp_path, monkeypatch, num_references
):
    monkeypatch.setattr(facts_embeddings, "NUM_REFERENCES", num_references)
    keys = [f"key{number}" for number in np.random.default_rng(1).permutation(NUM_KEYS)] + ["other"]
    (tmp_path / "scratch").mkdir()
    columns, facts = embedding_columns(folder, [keys[:9], keys[9:]], tmp_path / "scratch")
    assert facts == {"num_embedded": NUM_KEYS}
    expected = textbook(folder, keys, num_references)
    for name, values in expected.items():
        for row, key in enumerate(keys):
            if key in values:
                assert columns[name][row] == pytest.approx(values[key], abs=1e-6), (name, key)
            else:
                assert np.isnan(columns[name][row])
    assert np.isnan(columns["nearest_image"]).all()


def test_rows_of_other_samples_are_no_neighbors(folder, tmp_path):
    (tmp_path / "scratch").mkdir()
    keys = ["key1", "key2", "key3"]
    columns, _ = embedding_columns(folder, [keys], tmp_path / "scratch")
    expected = textbook(folder, keys, 1000)["nearest_video"]
    assert columns["nearest_video"] == pytest.approx([expected[key] for key in keys], abs=1e-6)
    (tmp_path / "alone").mkdir()
    columns, _ = embedding_columns(folder, [["key1"]], tmp_path / "alone")
    assert np.isnan(columns["nearest_video"]).all()
    assert np.isnan(columns["av_correspondence"]).all()
    assert np.isfinite(columns["av_cosine"]).all()


def test_cells_find_nearly_all_nearest_rows_of_clustered_vectors_and_say_how_many(tmp_path):
    generator = np.random.default_rng(0)
    centers = generator.standard_normal((60, 16))
    vectors = (centers[generator.integers(0, 60, 4000)] + 0.4 * generator.standard_normal((4000, 16))).astype(
        np.float32
    )
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = np.flatnonzero(np.arange(4000) % 7 != 0)
    exact, none = nearest_cosines(vectors, rows, tmp_path / "cells", "nearest")
    products = vectors[rows].astype(np.float64) @ vectors[rows].astype(np.float64).T
    np.fill_diagonal(products, -1)
    assert none is None
    assert exact == pytest.approx(products.max(axis=1), abs=1e-6)
    found, recall = nearest_cosines(vectors, rows, tmp_path / "cells", "nearest", exact_rows=100)
    assert (found <= exact + 1e-6).all()
    assert recall == pytest.approx((found >= exact - 1e-6).mean(), abs=0.03)
    assert recall > 0.9


def test_columns_of_embeddings_are_added_without_measuring_again_and_other_keys_are_refused(
    folder, tmp_path, monkeypatch, capsys
):
    gone = {"reason": "missing_file", "message": "gone"}

    def listed(name, keys):
        rows = [{"path": "gone.mp4", "key": key, "labels": {}, "error": gone} for key in keys]
        (tmp_path / name).write_bytes(b"".join(map(dump_json, rows)))
        return tmp_path / name

    manifest, out = listed("corpus.jsonl", [f"key{number}" for number in range(NUM_KEYS)]), tmp_path / "facts.parquet"
    make_facts(str(manifest), out)
    monkeypatch.setattr("data_prep.facts.run._measure", None)  # would fail
    assert main(["facts", str(manifest), "--out", str(out), "--embeddings", str(folder)]) == 0
    assert "40 have embeddings" in capsys.readouterr().out
    stored = pq.read_table(out)
    assert stored["nearest_image"].null_count == NUM_KEYS
    assert 0 <= min(stored["av_correspondence"].drop_null().to_pylist()) <= 1
    assert json.loads(stored.schema.metadata[b"avssl"])["embeddings"]["weights"] == "w"
    once = out.read_bytes()
    make_facts(str(manifest), out, embeddings=folder)
    assert out.read_bytes() == once
    monkeypatch.undo()
    other = listed("other.jsonl", ["a", "b"])
    assert main(["facts", str(other), "--out", str(tmp_path / "other.parquet"), "--embeddings", str(folder)]) == 2
    assert "holds embeddings of none of these samples (their keys differ); embed the same" in capsys.readouterr().err
    make_facts(str(other), tmp_path / "other.parquet")  # the facts themselves were kept
    assert main(["facts", str(other), "--out", str(out), "--embeddings", str(tmp_path / "none")]) == 2
