"""A Lance table holds what the folder holds, and is searched as it is; its index finds what it says that it finds."""

import json
import shutil

import numpy as np
import pytest

from avssl.embedding import lance_table
from avssl.embedding.index import FolderIndex
from avssl.embedding.lance_table import KIND, LanceTable, open_index
from avssl.embedding.search import EmbeddingIndex, search
from avssl.exchange.targets import command as export
from avssl.exchange.targets import lance_table as target
from avssl.exchange.targets.lance_table import INDICES_NAME, write_lance_table
from avssl.exchange.targets.rows import RowSource
from tests.embedding_folders import VIDEO_DIM, make_embeddings, media_of_row
from tests.test_search import WIDTH, make_index, textbook

LABELS = ("dog", "cat", "it's")


def labels_of(num_rows):
    """One name of `kind`, and one or two of `seen in`, per row."""
    return [
        {"kind": [LABELS[row % 3]], "seen in": ["day", "rain"][: 1 + row % 2]} if row % 7 else {}
        for row in range(num_rows)
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(table of 400 rows, their folder, the Lance table of it), without an index."""
    root = tmp_path_factory.mktemp("lance")
    table = make_embeddings(root / "embeddings", 400, rows_per_file=150, labels=labels_of(400))
    assert export.command([str(root / "embeddings"), "--to", "lance", "--out", str(root / "dogs.lance")]) == 0
    return table, EmbeddingIndex(root / "embeddings"), LanceTable(root / "dogs.lance")


def indexed_of(root, num_rows, kinds):
    """(table, its folder, {kind: (Lance table with that index, its facts)}) of random rows."""
    table, index = make_index(root / "embeddings", num_rows, rows_per_file=2500)
    tables = {}
    for kind in kinds:
        (root / kind).mkdir()
        facts = write_lance_table(RowSource(root / "embeddings"), root / kind, kind)
        tables[kind] = LanceTable(root / kind), facts
    return table, index, tables


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    return indexed_of(tmp_path_factory.mktemp("indexed"), 6000, ("IVF_HNSW_SQ", "IVF_PQ"))


@pytest.mark.parametrize("options", [{}, {"exclude": {"-0003/clip_mp4", "it's"}}, {"one_per_key": True}])
def test_a_table_without_an_index_answers_as_the_folder(made, options):
    _, index, lance = made
    queries = np.random.default_rng(1).standard_normal((4, VIDEO_DIM))
    assert lance.modalities == index.modalities
    for top in (1, 10, 1000):
        assert lance.search("video", queries, top, **options) == index.search("video", queries, top, **options)
    assert search(lance, queries, "video", 3) == search(index.folder, queries, "video", 3)


@pytest.mark.slow
def test_equal_rows_are_found_in_the_order_of_the_folder(tmp_path):
    _, index = make_index(tmp_path / "index", 1200, repeat=300)
    (tmp_path / "t.lance").mkdir()
    write_lance_table(RowSource(tmp_path / "index"), tmp_path / "t.lance")
    queries = np.random.default_rng(1).standard_normal((2, WIDTH))
    lance = LanceTable(tmp_path / "t.lance")
    assert lance.search("video", queries, 5) == index.search("video", queries, 5)


@pytest.mark.parametrize(
    ("where", "is_meant"),
    [
        ("kind = 'dog'", lambda labels, start: labels.get("kind") == ["dog"]),
        ("kind = 'it''s' OR kind IS NULL", lambda labels, start: labels.get("kind") in (["it's"], None)),
        (
            "array_has(seen_in, 'rain') AND start_seconds > 0.05",
            lambda labels, start: "rain" in labels.get("seen in", ()) and start > 0.05,
        ),
        ("start_seconds BETWEEN 5 AND 6", lambda labels, start: False),
    ],
)
def test_conditions_on_labels_and_times_leave_the_rows_that_they_mean(made, where, is_meant):
    table, _, lance = made
    pairs = zip(table.labels, table.start_seconds, strict=True)
    meant = np.flatnonzero([is_meant(labels, start) for labels, start in pairs])
    queries = np.random.default_rng(2).standard_normal((3, VIDEO_DIM))
    chosen = table.select(meant)
    expected = textbook(chosen, "video", queries, 20, exclude={"-0001/clip_mp4"}) if len(meant) else [[], [], []]
    found = lance.search("video", queries, 20, where=where, exclude={"-0001/clip_mp4"})
    assert [[hit.row for hit in hits] for hits in found] == [[meant[row] for row, _ in hits] for hits in expected]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["IVF_PQ", "IVF_HNSW_SQ"])
def test_an_index_gives_true_scores_and_finds_what_it_says(indexed, kind):
    table, index, tables = indexed
    lance, facts = tables[kind]
    assert json.loads((lance.folder / INDICES_NAME).read_text()) == facts
    assert facts["video"]["kind"] == kind
    assert facts["video"]["num_rows"] == table.has_video.sum()
    rows = np.flatnonzero(table.has_video)
    queries = table.video_embedding[rows[:: len(rows) // 100][:100]].astype(np.float64)
    noise = np.random.default_rng(0).standard_normal(queries.shape)
    noisy = queries + noise / np.linalg.norm(noise, axis=1, keepdims=True)
    for name, asked in (("recall_at_10", queries), ("noisy_recall_at_10", noisy)):
        expected = index.search("video", asked, 10)
        found = lance.search("video", asked, 10)
        scores = {(number, hit.row): hit.score for number, hits in enumerate(expected) for hit in hits}
        shared = [(number, hit) for number, hits in enumerate(found) for hit in hits if (number, hit.row) in scores]
        assert all(hit.score == scores[number, hit.row] for number, hit in shared)
        assert len(shared) / 1000 == pytest.approx(facts["video"][name], abs=1e-9)
        assert len(shared) / 1000 > 0.8
        assert lance.search("video", asked, 10, compare_all=True) == expected
    where = "start_seconds = 2 AND key < 'key3'"
    meant = np.flatnonzero((table.start_seconds == 2) & (np.array(table.keys) < "key3"))
    found = lance.search("video", queries[:20], 5, where=where, exclude={"key20"})
    assert {hit.row for hits in found for hit in hits} <= set(meant.tolist())
    assert all(len(hits) == 5 and all(hit.key != "key20" for hit in hits) for hits in found)


def test_a_small_index_gives_true_scores(tmp_path, monkeypatch):
    monkeypatch.setattr(target, "NUM_RECALL_QUERIES", 2)
    _, index, tables = indexed_of(tmp_path, 400, ["IVF_PQ"])
    lance, facts = tables["IVF_PQ"]
    assert facts["video"]["num_rows"] == 320
    queries = np.random.default_rng(1).standard_normal((3, WIDTH))
    expected = index.search("video", queries, 320)
    found = lance.search("video", queries, 10)
    for exact, hits in zip(expected, found, strict=True):
        scores = {hit.row: hit.score for hit in exact}
        assert [hit.score for hit in hits] == [scores[hit.row] for hit in hits]
        assert len({hit.row for hit in hits} & {hit.row for hit in exact[:10]}) >= 8
    assert lance.search("video", queries, 10, compare_all=True) == [hits[:10] for hits in expected]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["IVF_PQ", "IVF_HNSW_SQ"])
def test_more_depth_finds_more_and_one_row_a_key_is_found_however_many_are_near(indexed, kind):
    _, index, tables = indexed
    lance, _ = tables[kind]
    queries = np.random.default_rng(3).standard_normal((30, WIDTH))
    exact = index.search("video", queries, 10)
    shares = []
    for depth in (1, 0, 6000):
        found = lance.search("video", queries, 10, depth=depth)
        pairs = zip(found, exact, strict=True)
        shares.append(np.mean([len({h.row for h in a} & {h.row for h in b}) / 10 for a, b in pairs]))
    assert shares[0] <= shares[1] <= shares[2] == 1
    found = lance.search("video", queries, 50, one_per_key=True)
    assert all(len(hits) == len({hit.key for hit in hits}) == 50 for hits in found)


def test_the_columns_hold_the_rows_and_where_their_media_lie(made):
    import lance

    table, _, made_table = made
    rows = lance.dataset(str(made_table.folder)).to_table().to_pylist()
    assert [row["row"] for row in rows] == list(range(400))
    assert [row["key"] for row in rows] == table.keys
    for number, row in enumerate(rows):
        media, first = media_of_row(number)
        start, end = table.start_seconds[number], table.end_seconds[number]
        assert row["media"] == media.encode("utf-8", "backslashreplace").decode()
        assert (row["media_begin_seconds"], row["media_end_seconds"]) == (first + start, first + end)
        assert (row["start_seconds"], row["end_seconds"]) == (start, end)
        assert json.loads(row["labels"]) == table.labels[number]
        assert row["kind"] == (table.labels[number]["kind"][0] if table.labels[number] else None)
        assert row["seen_in"] == table.labels[number].get("seen in")
        for name in ("video", "audio"):
            vector = table.embedding(name)[number]
            assert row[f"{name}_embedding"] == (vector.tolist() if table.has(name)[number] else None)
    assert "video_feature" not in rows[0]


def test_rows_facts_and_keys_are_those_of_the_folder(made):
    table, index, lance = made
    numbers = np.array([3, 4, 151, 399])
    assert lance.facts(numbers) == index.facts(numbers)
    for with_vectors in (True, False):
        for chosen in (None, numbers):
            (here, there) = (list(source.rows("audio", chosen, with_vectors=with_vectors)) for source in (lance, index))
            for name in ("numbers", "vectors", "keys", "start_seconds", "end_seconds"):
                one, other = (np.concatenate([getattr(rows, name) for rows in found]) for found in (here, there))
                np.testing.assert_array_equal(one, other)
    mine, where = lance.table_of(table.keys[7])
    theirs, there = index.table_of(table.keys[7])
    np.testing.assert_array_equal(where, there)
    assert mine.labels == theirs.labels
    np.testing.assert_array_equal(mine.video_embedding, theirs.video_embedding)
    np.testing.assert_array_equal(mine.has_audio, theirs.has_audio)
    with pytest.raises(ValueError, match=r"has no rows of the key 'x'"):
        lance.table_of("x")


def test_rows_are_read_a_part_at_a_time_and_vectors_only_where_they_are_asked_for(made, monkeypatch):
    whole, index, lance = made
    table, asked = lance._table, []

    class Recorder:
        def take(self, numbers, columns):
            asked.append((len(numbers), columns))
            return table.take(numbers, columns=columns)

        def to_batches(self, columns, **options):
            asked.append((0, columns))
            return table.to_batches(columns=columns, **options)

    monkeypatch.setattr(lance, "_table", Recorder())
    monkeypatch.setattr(lance_table, "ROWS_AT_A_TIME", 7)
    numbers = np.arange(3, 40)
    found, expected = (list(source.rows("video", numbers)) for source in (lance, index))
    for name in ("numbers", "vectors", "keys"):
        one, other = (np.concatenate([getattr(rows, name) for rows in part]) for part in (found, expected))
        np.testing.assert_array_equal(one, other)
    assert [count for count, _ in asked] == [7, 7, 7, 7, 7, 2]
    asked.clear()
    assert sum(len(rows.keys) for rows in lance.rows("video", with_vectors=False)) == whole.has_video.sum()
    assert [columns for _, columns in asked] == [list(lance_table.ROW_COLUMNS)]


def test_fewer_than_one_hit_is_no_search(made):
    table, index, lance = made
    for source in (table, index, lance, index.folder):
        with pytest.raises(ValueError, match=r"^top is 0; it must be at least 1$"):
            search(source, np.ones((1, VIDEO_DIM)), "video", 0)
    for source in (index, lance):
        with pytest.raises(ValueError, match=r"^top is -1; it must be at least 1$"):
            source.search("video", np.ones((1, VIDEO_DIM)), -1)


def test_bad_input_is_one_line(made, tmp_path, capsys):
    _, index, lance = made
    queries = np.ones((1, VIDEO_DIM))
    wrong = {"nope = 3": "No field named nope", "kind ==== 'dog'": "sql parser error", "1": "boolean", "kind = 3": "3",
             "kind = 'dog' and": "sql parser error", "kind = 'dog' nonsense": "sql parser error"}  # fmt: skip
    for where, reason in wrong.items():
        with pytest.raises(ValueError, match=r"^--where .* is no condition on .*; its columns are row, key") as caught:
            lance.search("video", queries, where=where)
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)
        assert ".rs:" not in str(caught.value)
    with pytest.raises(ValueError, match="depth is -1"):
        lance.search("video", queries, depth=-1)
    with pytest.raises(ValueError, match=rf"must be \(M, {VIDEO_DIM}\)"):
        lance.search("video", np.ones((1, 4)))
    with pytest.raises(FileNotFoundError, match="is no Lance table; make one with `avssl export"):
        LanceTable(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder that `avssl embed` has finished"):
        open_index(tmp_path)
    with pytest.raises(SystemExit):
        export.command([str(index.folder), "--to", "lance", "--out", str(lance.folder)])
    assert "is there already; choose another --out, or --overwrite" in capsys.readouterr().err
    foreign = tmp_path / "foreign.lance"
    shutil.copytree(lance.folder, foreign)
    (foreign / "index.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"foreign\.lance.*index\.json"):
        open_index(foreign)
    fewer = FolderIndex.read(lance.folder, KIND)
    object.__setattr__(fewer, "num_rows", 3)
    fewer.write(foreign, KIND)
    with pytest.raises(ValueError, match=r"holds 400 rows, and its index\.json says 3"):
        open_index(foreign)


def test_overwrite_replaces_an_earlier_table_and_nothing_else(made, tmp_path, capsys):
    _, index, lance = made
    words = [str(index.folder), "--to", "lance", "--overwrite", "--out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    shutil.copytree(index.folder, tmp_path / "other embeddings")
    shutil.copytree(lance.folder, tmp_path / "table of another program")
    (tmp_path / "table of another program" / "index.json").unlink()
    for folder in list(tmp_path.iterdir()):
        names = sorted(folder.iterdir())
        with pytest.raises(SystemExit):
            export.command([*words, str(folder)])
        assert "is there already, and no earlier export; choose another --out" in capsys.readouterr().err
        assert sorted(folder.iterdir()) == names
    shutil.copytree(lance.folder, tmp_path / "table")
    (tmp_path / "table" / "old").touch()
    export.command([*words, str(tmp_path / "table")])
    assert not (tmp_path / "table" / "old").exists()
    assert LanceTable(tmp_path / "table").content.num_rows == 400


@pytest.mark.slow
def test_a_damaged_table_is_named(made, tmp_path):
    _, _, lance = made
    files = sorted([*lance.folder.glob("data/*.lance"), *lance.folder.glob("_versions/*.manifest")])
    assert {path.suffix for path in files} == {".lance", ".manifest"}
    for path in files:
        for kept in (0, 0.5):
            folder = tmp_path / f"{path.name}{kept}"
            shutil.copytree(lance.folder, folder)
            copy = folder / path.relative_to(lance.folder)
            content = copy.read_bytes()
            copy.write_bytes(content[: int(len(content) * kept)])
            with pytest.raises(ValueError, match=r"is no readable Lance table") as caught:
                LanceTable(folder).search("video", np.ones((1, VIDEO_DIM)))
            assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_lancedb_opens_the_table_and_searches_it(made):
    import lancedb

    table, _, lance = made
    opened = lancedb.connect(str(lance.folder.parent)).open_table("dogs")
    assert opened.count_rows() == len(table)
    query = np.random.default_rng(1).standard_normal(VIDEO_DIM)
    found = opened.search(query.tolist(), vector_column_name="video_embedding").distance_type("cosine").where(
        "kind = 'dog'", prefilter=True).limit(5).to_list()  # fmt: skip
    expected = lance.search("video", query[None], 5, where="kind = 'dog'")[0]
    assert [row["row"] for row in found] == [hit.row for hit in expected]


def test_names_and_first_rows_are_those_of_the_folder(made):
    table, index, lance = made
    for source in (index, lance):
        pairs = [pair for keys, labels in source.names() for pair in zip(keys, labels, strict=True)]
        assert [key for key, _ in pairs] == table.keys
        assert [json.loads(text) for _, text in pairs] == table.labels
    mine, theirs = lance.head(170), index.head(170)
    assert len(mine) == 170
    assert len(theirs) == 300, "whole files"
    assert mine.keys == table.keys[:170]
    assert mine.labels == table.labels[:170]
    np.testing.assert_array_equal(mine.audio_embedding, theirs.audio_embedding[:170])
    np.testing.assert_array_equal(mine.has_video, theirs.has_video[:170])
