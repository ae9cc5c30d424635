"""FAISS agrees with the exact search where it looks at all rows, and reports truly what it finds where it does not."""

import json
import shutil

import numpy as np
import pytest

from avssl.embedding import faiss_index
from avssl.embedding.index import FAISS_KINDS
from avssl.embedding.search import EmbeddingIndex
from tests.test_search import WIDTH, make_index, textbook


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder of 3,000 rows with an index of each kind; {kind: facts}."""
    pytest.importorskip("faiss")
    table, index = make_index(tmp_path_factory.mktemp("faiss") / "index", 3000, rows_per_file=1100)
    return table, index, {kind: faiss_index.build(index, kind) for kind in FAISS_KINDS}


@pytest.mark.parametrize("options", [{}, {"exclude": {f"key{n}" for n in range(300)}}, {"one_per_key": True}])
def test_a_flat_index_gives_the_exact_result(built, options):
    _, index, facts = built
    queries = np.random.default_rng(1).standard_normal((4, WIDTH))
    for modality in ("video", "audio"):
        assert faiss_index.LoadedIndex(index, "flat", modality).search(queries, 10, **options) == index.search(
            modality, queries, 10, **options
        )
        assert facts["flat"][modality]["recall_at_10"] == 1.0


@pytest.mark.slow
def test_a_flat_index_gives_the_exact_result_where_many_rows_are_equal(tmp_path):
    pytest.importorskip("faiss")
    _, index = make_index(tmp_path / "index", 1200, repeat=300)
    faiss_index.build(index, "flat")
    queries = np.random.default_rng(1).standard_normal((2, WIDTH))
    assert faiss_index.LoadedIndex(index, "flat", "video").search(queries, 5) == index.search("video", queries, 5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_the_recall_that_is_reported_is_what_searches_have(built, kind):
    table, index, facts = built
    reported = json.loads((index.folder / "faiss" / f"video-{kind}.json").read_text())
    assert reported == facts[kind]["video"]
    assert reported["num_rows"] == table.has_video.sum()
    assert 0.6 < reported["recall_at_10"] <= 1
    rows = np.flatnonzero(table.has_video)
    queries = table.video_embedding[rows[:: len(rows) // 100][:100]]
    expected = textbook(table, "video", queries, 10)
    found = faiss_index.LoadedIndex(index, kind, "video").search(queries, 10)
    pairs = zip(found, expected, strict=True)
    recall = np.mean(
        [len({hit.row for hit in ranked} & {row for row, _ in reference}) / 10 for ranked, reference in pairs]
    )
    assert recall == pytest.approx(reported["recall_at_10"], abs=1e-6)
    noise = np.random.default_rng(0).standard_normal(queries.shape)
    noisy = queries + noise / np.linalg.norm(noise, axis=1, keepdims=True)
    expected = textbook(table, "video", noisy, 10)
    pairs = zip(faiss_index.LoadedIndex(index, kind, "video").search(noisy, 10), expected, strict=True)
    recall = np.mean(
        [len({hit.row for hit in ranked} & {row for row, _ in reference}) / 10 for ranked, reference in pairs]
    )
    assert recall == pytest.approx(reported["noisy_recall_at_10"], abs=1e-6)
    for ranked in found:
        assert [hit.score for hit in ranked] == sorted((hit.score for hit in ranked), reverse=True)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_more_depth_finds_more_and_all_of_it_everything(built, kind):
    _, index, facts = built
    queries = np.random.default_rng(1).standard_normal((50, WIDTH))
    exact = index.search("video", queries, 10)
    recalls = []
    for depth in (1, 0, 3000 if kind == "hnsw" else facts["ivf"]["video"]["lists"]):
        found = faiss_index.LoadedIndex(index, kind, "video", depth).search(queries, 10)
        pairs = [
            ({hit.row for hit in ranked}, {hit.row for hit in reference})
            for ranked, reference in zip(found, exact, strict=True)
        ]
        recalls.append(np.mean([len(ranked & reference) / 10 for ranked, reference in pairs]))
    assert recalls[0] <= recalls[1] <= recalls[2] == 1
    if kind == "ivf":  # hnsw keeps at least the candidates that are asked of it
        assert recalls[0] < recalls[1]
    with pytest.raises(ValueError, match="depth is -1"):
        faiss_index.LoadedIndex(index, kind, "video", -1)


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_queries_that_come_together_find_the_same_with_one_reading_of_the_folder(built, kind, monkeypatch):
    _, index, _ = built
    loaded = faiss_index.LoadedIndex(index, kind, "video")
    queries = np.random.default_rng(2).standard_normal((30, WIDTH))
    alone = [loaded.search(query[None], 10)[0] for query in queries]
    readings, rows = [], EmbeddingIndex.rows
    monkeypatch.setattr(
        EmbeddingIndex, "rows", lambda self, *args, **options: readings.append(1) or rows(self, *args, **options)
    )
    assert loaded.search(queries, 10) == alone
    assert len(readings) == 1
    monkeypatch.setattr(faiss_index, "MOST_NUMBERS", 7 * 72 * WIDTH)  # seven queries at a time
    assert loaded.search(queries, 10) == alone
    assert len(readings) == 1 + 5


def test_an_index_of_other_files_is_refused(built, tmp_path):
    _, index, _ = built
    make_index(tmp_path / "other", 3000, seed=5)
    shutil.copytree(index.folder / "faiss", tmp_path / "other" / "faiss")
    with pytest.raises(ValueError, match="built from other files"):
        faiss_index.LoadedIndex(EmbeddingIndex(tmp_path / "other"), "flat", "video").search(np.ones((1, WIDTH)))
