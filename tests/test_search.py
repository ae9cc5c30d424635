"""Searches find what an argsort finds, however rows are divided into files, also from the command line."""

import json
import shutil
import tracemalloc
from importlib import import_module
from itertools import pairwise

import numpy as np
import pytest

import avssl
from avssl import losses
from avssl.embedding import parquet
from avssl.embedding.folder import FolderJob
from avssl.embedding.index import FileRecord, FolderIndex
from avssl.embedding.search import EmbeddingIndex, EmbeddingRows, hits_among, in_one_space, load_embedder_of
from avssl.embedding.table import EmbeddingTable
from avssl.exchange.targets import command as export
from avssl.files.plain_text import begin_command
from avssl.ops import nearest as ops
from avssl.ops.nearest import nearest, possible_nearest
from data_prep.transcode.encode import write_media
from recipes import search as search_recipe
from tests.conftest import run_python
from tests.test_embed import frames, sine

WIDTH = 8


def make_index(folder, num_rows, *, rows_per_file=10_000, seed=0, repeat=1):
    """A folder with random unit vectors: video in all rows but every fifth, audio in all but every third."""
    generator = np.random.default_rng(seed)
    columns, has = {}, {"video": np.arange(num_rows) % 5 != 0, "audio": np.arange(num_rows) % 3 != 0}
    for name in has:
        vectors = generator.standard_normal((num_rows, WIDTH))
        vectors = vectors[np.arange(num_rows) // repeat * repeat]  # with repeat, equal rows and so equal scores
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        columns[f"{name}_embedding"] = np.where(has[name][:, None], vectors, np.nan)
    table = EmbeddingTable(
        [f"key{row // 4}" for row in range(num_rows)], np.full(num_rows, -1), np.arange(num_rows) % 4,
        np.arange(num_rows) % 4 + 1.0, has["audio"], has["video"], metadata={"weights": "w"}, **columns,
    )  # fmt: skip
    folder.mkdir()
    bounds = [*range(0, num_rows, rows_per_file), num_rows]
    files = []
    for number, (first, end) in enumerate(pairwise(bounds)):
        path = table.select(range(first, end)).write(folder / f"embeddings-{number}.parquet")
        files.append(FileRecord.of_file(path, end - first))
    FolderIndex(
        settings={"weights": "w", "modalities": ["video", "audio"], "sources": ["/videos"], "shards": None},
        widths={f"{name}_embedding": WIDTH for name in has},
        num_listed=1, num_embedded=1, num_skipped=0, skipped_by_reason={}, num_rows=num_rows,
        rows_with={name: int(rows.sum()) for name, rows in has.items()}, run_folder="", files=files,
    ).write(folder)  # fmt: skip
    return table, EmbeddingIndex(folder)


def textbook(table, modality, queries, top, *, exclude=(), one_per_key=False):
    """(row, cosine) by a loop in float64; of equal cosines the lower row."""
    vectors = table.embedding(modality).astype(np.float64)
    answers = []
    for query in np.asarray(queries, np.float64):
        scored = []
        for row in range(len(table)):
            if table.has(modality)[row] and table.keys[row] not in exclude:
                norms = np.linalg.norm(query) * np.linalg.norm(vectors[row])
                scored.append((round(-float(query @ vectors[row]) / norms, 9), row))
        found, seen = [], set()
        for score, row in sorted(scored):
            if not (one_per_key and table.keys[row] in seen):
                found.append((row, -score))
            seen.add(table.keys[row])
        answers.append(found[:top])
    return answers


def test_a_search_for_one_row_of_each_key_holds_the_results_of_some_queries(monkeypatch):
    """All rows of all queries at once were 16 bytes times rows times queries."""
    random, held = np.random.default_rng(0), []
    vectors = random.standard_normal((200, 4)).astype(np.float32)
    keys = [f"k{number}" for number in random.integers(0, 40, 200)]
    rows = EmbeddingRows(np.arange(200), vectors, keys, np.zeros(200), np.ones(200))
    queries = random.standard_normal((30, 4))
    expected = [hits_among(rows, query[None], 39, one_per_key=True)[0] for query in queries]

    def counted(*arguments):
        found = nearest(*arguments)
        held.append(found[0].size)
        return found

    module = import_module("avssl.embedding.search")  # its function has the same name in the package
    monkeypatch.setattr(module, "nearest", counted)
    monkeypatch.setattr(module, "RESULTS_AT_ONCE", 1000)
    assert hits_among(rows, queries, 39, one_per_key=True) == expected
    assert sum(held) > 3000
    assert max(held) <= 1000


def assert_same(hits, expected, table):
    assert [[hit.row for hit in ranked] for ranked in hits] == [[row for row, _ in ranked] for ranked in expected]
    for ranked, reference in zip(hits, expected, strict=True):
        np.testing.assert_allclose([hit.score for hit in ranked], [score for _, score in reference], atol=2e-9)
        for hit in ranked:
            where = (table.keys[hit.row], table.start_seconds[hit.row], table.end_seconds[hit.row])
            assert (hit.key, hit.start_seconds, hit.end_seconds) == where


@pytest.mark.quick(1)
@pytest.mark.parametrize("options", [{}, {"exclude": {"key3", "key10"}}, {"one_per_key": True}])
@pytest.mark.parametrize("repeat", [1, 12])
def test_exact_search_is_an_argsort_of_all_rows(tmp_path, monkeypatch, options, repeat):
    """Over three files of several row groups each, with and without equal rows in several of them."""
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 16)
    table, index = make_index(tmp_path / "index", 200, rows_per_file=70, repeat=repeat)
    queries = np.random.default_rng(1).standard_normal((3, WIDTH))
    for modality in ("video", "audio"):
        for top in (1, 10, 1000):
            expected = textbook(table, modality, queries, top, **options)
            assert_same(index.search(modality, queries, top, **options), expected, table)


def test_only_some_row_groups_are_read_for_some_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 16)
    table, index = make_index(tmp_path / "index", 100, rows_per_file=70)
    wanted = np.array([1, 14, 17, 71, 98])
    found = list(index.rows("video", wanted))
    assert [rows.numbers.tolist() for rows in found] == [[1, 14], [17], [71], [98]]
    np.testing.assert_array_equal(np.concatenate([rows.vectors for rows in found]), table.video_embedding[wanted])
    assert sum(len(rows.numbers) for rows in index.rows("audio")) == table.has_audio.sum()


def test_a_search_that_cannot_be_is_refused(tmp_path):
    _, index = make_index(tmp_path / "index", 20)
    with pytest.raises(ValueError, match="has no image rows; it has video, audio"):
        index.search("image", np.ones((1, WIDTH)))
    with pytest.raises(
        ValueError, match=r"queries have shape \(1, 5\); it must be \(M, 8\), the dim of the video rows of"
    ):
        index.search("video", np.ones((1, 5)))
    with pytest.raises(FileNotFoundError, match=r"is not a folder that `avssl embed` has finished"):
        EmbeddingIndex(tmp_path)
    path = tmp_path / "index" / "embeddings-0.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"bytes; index\.json says"):
        EmbeddingIndex(tmp_path / "index")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"is missing, but index\.json lists it"):
        EmbeddingIndex(tmp_path / "index")


@pytest.fixture(scope="module")
def videos(tiny_run, tmp_path_factory):
    """(folder of videos, folder of their embeddings)."""
    root = tmp_path_factory.mktemp("search")
    (root / "videos" / "below").mkdir(parents=True)
    for number in range(4):
        path = root / "videos" / ("below" if number % 2 else "") / f"{number}.mp4"
        video = [np.roll(frame, 7 * number, 0) // (number + 1) for frame in frames(16 + 8 * number, 32)]
        write_media(path, video=video, video_fps=16, audio=sine(1 + number / 2) / (number + 1), audio_rate_hz=24_000)
    embedder = avssl.load_embedder(str(tiny_run))
    FolderJob.begin(embedder, [root / "videos"], root / "index", window_seconds=0.5).run(embedder, run_folder=tiny_run)
    return root / "videos", root / "index"


def answers(capsys, *arguments):
    assert search_recipe.command([*map(str, arguments), "--json"]) == 0
    begin_command("search", [])  # --json is over
    return json.loads(capsys.readouterr().out)


def test_a_video_finds_itself_and_the_closest_audio(videos, tiny_run, capsys):
    folder, out = videos
    table = EmbeddingTable.read(out)
    query = avssl.load_embedder(str(tiny_run)).embed(folder / "below" / "1.mp4", window_seconds=0.5)[0]
    found = answers(capsys, out, folder / "below" / "1.mp4", "--top", 5)
    assert (found["query_modality"], found["index"]) == ("video", "exact")
    (answer,) = found["answers"]
    assert answer["hits"].keys() == {"video", "audio"}
    pooled = query.video_embedding.astype(np.float64).mean(axis=0, keepdims=True)
    for name, hits in answer["hits"].items():
        expected = textbook(table, name, pooled, 5)[0]
        np.testing.assert_allclose([hit["score"] for hit in hits], [score for _, score in expected], atol=1e-5)
    each = answers(capsys, out, folder / "below" / "1.mp4", "--top", 1, "--each-window")["answers"]
    assert [answer["start_seconds"] for answer in each] == query.start_seconds.tolist()
    assert all(answer["hits"]["video"][0]["score"] > 1 - 1e-5 for answer in each)
    left_out = answers(capsys, out, folder / "below" / "1.mp4", "--exclude-self", "--top", 100)["answers"][0]["hits"]
    assert {hit["key"] for hit in left_out["video"]} == {"0_mp4", "2_mp4", "below/3_mp4"}
    assert len(left_out["audio"]) == sum(key != "below/1_mp4" for key in table.keys)


@pytest.mark.slow
def test_audio_finds_videos(videos, tmp_path, capsys):
    _, out = videos
    write_media(tmp_path / "q.wav", audio=sine(1.0), audio_rate_hz=24_000, audio_codec="pcm_s16le")
    found = answers(capsys, out, tmp_path / "q.wav", "--modality", "video", "--one-per-key")
    assert found["query_modality"] == "audio"
    hits = found["answers"][0]["hits"]["video"]
    assert sorted(hit["key"] for hit in hits) == ["0_mp4", "2_mp4", "below/1_mp4", "below/3_mp4"]
    given = search_recipe.parse([str(out), str(tmp_path / "q.wav"), "--exclude-self"])
    with pytest.raises(ValueError, match="none of the files"):
        search_recipe.main(given)


@pytest.mark.slow
def test_the_command_line_answers_from_a_lance_table_as_from_the_folder(videos, tmp_path, capsys):
    folder, out = videos
    table = tmp_path / "videos.lance"
    assert export.command([str(out), "--to", "lance", "--out", str(table)]) == 0
    said = capsys.readouterr().out
    assert said.count("rows without an index: all are compared") == 2
    plain = run_python("recipes/search.py", out, folder / "0.mp4", "--top", "3").stdout
    for source in (table, out):
        assert search_recipe.command([str(source), str(folder / "0.mp4"), "--top", "3"]) == 0
        assert capsys.readouterr().out == plain
    for asked in (["--key", "0_mp4", "--exclude-self"], [folder / "0.mp4", "--exclude-self", "--one-per-key"]):
        here, there = (answers(capsys, source, *asked) for source in (table, out))
        assert (here.pop("index"), there.pop("index")) == ("lance", "exact")
        assert here == there
    only = answers(capsys, table, folder / "0.mp4", "--where", "label = 'below' AND start_seconds >= .5")
    for hits in only["answers"][0]["hits"].values():
        assert {hit["key"] for hit in hits} == {"below/1_mp4", "below/3_mp4"}
        assert all(hit["start_seconds"] >= 0.5 for hit in hits)
    for options, message in (
        (["--where", "label ="], "--where 'label =' is no condition on"),
        (["--run", tmp_path], "error: "),
    ):
        with pytest.raises(SystemExit):
            search_recipe.command([str(table), str(folder / "0.mp4"), *map(str, options)])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        search_recipe.command([str(out), str(folder / "0.mp4"), "--where", "label = 'below'"])
    assert "--where is for Lance tables; make one of" in capsys.readouterr().err
    lines = plain.splitlines()
    assert len(lines) == 2 * (1 + 3)
    assert lines[0].endswith("-> video")
    assert lines[1].split()[-1] == "0_mp4"
    missing = run_python("recipes/search.py", out, folder / "none.mp4", check=False)
    assert (missing.returncode, "none.mp4: no such file or folder" in missing.stderr) == (1, True)


@pytest.mark.slow
def test_other_weights_are_refused(videos, tiny_run, tmp_path):
    _, out = videos
    shutil.copytree(out, tmp_path / "index")
    path = tmp_path / "index" / "index.json"
    content = json.loads(path.read_text())
    content["settings"]["weights"] = "0123456789abcdef"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="was made with 0123456789abcdef; search with the run that made it"):
        load_embedder_of(EmbeddingIndex(tmp_path / "index"))
    content["run_folder"] = str(tmp_path / "moved")
    path.write_text(json.dumps(content))
    with pytest.raises(FileNotFoundError, match="moved, which does not exist; give the run with --run"):
        load_embedder_of(EmbeddingIndex(tmp_path / "index"))
    assert load_embedder_of(EmbeddingIndex(out), tiny_run).weights_hash == EmbeddingIndex(out).weights_hash


@pytest.mark.slow
def test_modalities_that_meet_in_labels_alone_are_not_compared(tiny_run, monkeypatch):
    embedder = avssl.load_embedder(str(tiny_run))
    assert in_one_space(embedder, "video", "audio")
    assert [name for name in losses.names() if not losses.get(name).has_one_space] == ["deepcluster", "sela", "xdc"]
    monkeypatch.setattr(type(embedder.loss), "has_one_space", False)
    assert not in_one_space(embedder, "video", "audio")
    assert in_one_space(embedder, "audio", "audio")


@pytest.mark.parametrize("one_per_key", [False, True])
def test_the_look_in_float32_loses_no_row(one_per_key):
    """Cosines that float32 cannot tell apart, and lengths whose squares it cannot hold; against all rows in float64."""
    generator = np.random.default_rng(5)
    query = generator.standard_normal(64)
    rows = query + 3e-4 * generator.standard_normal((3000, 64))  # cosines within 2e-7 of each other
    rows[::10] = generator.standard_normal((300, 64))
    rows[::7] *= 10.0 ** generator.uniform(-30, 30, (429, 1))
    rows[5::100] = 0
    keys = [f"key{row // 3}" for row in range(3000)]
    given = EmbeddingRows(np.arange(3000), rows.astype(np.float32), keys, np.zeros(3000), np.ones(3000))
    for count in (1, 10, 2999):
        ranked, scores = nearest(query[None], given.vectors, 3000)
        first = dict(reversed([(keys[row], row) for row in ranked[0]])) if one_per_key else None
        expected = [row for row in ranked[0] if first is None or first[keys[row]] == row][:count]
        (hits,) = hits_among(given, query[None], count, one_per_key=one_per_key)
        assert [hit.row for hit in hits] == expected
        assert [hit.score for hit in hits] == [dict(zip(ranked[0], scores[0], strict=True))[row] for row in expected]
    assert len(possible_nearest(query[None], given.vectors, 10)) < 3000


def test_a_search_by_many_vectors_holds_some_products_at_a_time_and_finds_the_same(monkeypatch):
    vectors = np.random.default_rng(6).standard_normal((2000, 8)).astype(np.float32)
    rows = EmbeddingRows(np.arange(2000), vectors, [str(row) for row in range(2000)], np.zeros(2000), np.ones(2000))
    at_once = hits_among(rows, vectors[:1500].astype(np.float64), 1)
    monkeypatch.setattr(ops, "_CHUNK_ELEMENTS", 2**17)  # products of 65 of the vectors; 23 times 65 and 5 more
    tracemalloc.start()
    in_turn = hits_among(rows, vectors[:1500].astype(np.float64), 1)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert in_turn == at_once
    assert most < 4e6  # all products are 12 MB of float32


def test_a_row_that_is_not_finite_is_refused_by_name():
    rows = EmbeddingRows(
        np.arange(3), np.float32([[1, 0], [np.inf, 0], [0, 1]]), ["a", "b", "c"], np.zeros(3), np.ones(3)
    )
    with pytest.raises(ValueError, match="1 rows that are not finite"):
        hits_among(rows, np.array([[1.0, 0.0]]), 1)


@pytest.mark.parametrize("one_per_key", [False, True])
def test_no_queries_have_no_answers(one_per_key):
    rows = EmbeddingRows(np.arange(3), np.eye(3, dtype=np.float32), ["a", "b", "b"], np.zeros(3), np.ones(3))
    for top in (1, 2, 10):
        assert hits_among(rows, np.empty((0, 3)), top, one_per_key=one_per_key) == []
