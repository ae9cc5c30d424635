"""One name for one thing: keys and labels are those of the manifest wherever a file is embedded from."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

import avssl
from avssl.embedding.folder import FolderJob
from avssl.embedding.search import EmbeddingIndex, keys_of_file
from avssl.embedding.sources import list_sources, resolve_sources
from avssl.embedding.table import EmbeddingTable
from avssl.shards.manifest import stream_manifest
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.transcode.encode import write_media
from tests.conftest import run_python
from tests.test_embed import frames, same_rows, sine
from tests.written_before import GOLDEN, written_run

NAMES = (
    "a/film one.mp4",
    "a/film_one.mp4",
    "a/film  one.mp4",
    "b/film one.mp4",
    "b/Ü ß.MP4",
    "b/deep/er/x.WAV",
    "top.mp4",
    "c/.hidden.mp4",
    ".cache/y.mp4",
    "a/notes.txt",
)


@pytest.fixture
def odd_corpus(tmp_path):
    """A folder of odd names: collisions, no ASCII, spaces, capitals, hidden files, links, and no UTF-8."""
    root = tmp_path / "videos"
    for name in (*NAMES, os.fsdecode(b"b/caf\xe9.mp4")):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (root / "b" / "link.mp4").symlink_to(root / "a" / "film one.mp4")
    (root / "folder link").symlink_to(root / "a")
    return root


def listed(paths, tmp_path, modalities=("video", "audio")):
    scratch = tmp_path / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    return list(list_sources(paths, modalities, scratch))


def test_a_folder_gives_the_keys_and_labels_of_its_manifest(odd_corpus, tmp_path):
    build_manifest(odd_corpus, tmp_path / "corpus.jsonl", IndexOptions(probe=False))
    expected = {entry.path: (entry.key, entry.labels) for entry in stream_manifest(tmp_path / "corpus.jsonl")}
    found = {os.path.relpath(file.path, tmp_path): (file.key, file.labels) for file in listed([odd_corpus], tmp_path)}
    assert found == expected
    keys = [key for key, _ in found.values()]
    assert len(keys) == len(set(keys)) == 9
    assert found["videos/b/deep/er/x.WAV"] == ("b/deep/er/x_WAV", {"label": ["b"]})
    assert found["videos/top.mp4"] == ("top_mp4", {})
    assert found["videos/a/film one.mp4"][0].startswith("a/film_one_mp4-")
    through_manifest = {file.path: (file.key, file.labels) for file in listed([tmp_path / "corpus.jsonl"], tmp_path)}
    assert {os.path.relpath(path, tmp_path): facts for path, facts in through_manifest.items()} == expected


def test_the_way_to_a_folder_does_not_change_its_keys(odd_corpus, tmp_path, monkeypatch):
    straight = listed([odd_corpus], tmp_path)
    monkeypatch.chdir(odd_corpus / "a")
    (tmp_path / "way").symlink_to(odd_corpus)
    for way in ("..", "../../videos/", tmp_path / "way", f"{odd_corpus}/b/../"):
        assert listed([way], tmp_path) == straight
    alone = listed([odd_corpus / "b" / "link.mp4"], tmp_path)
    assert [(file.key, file.labels) for file in alone] == [("link_mp4", {})]  # by the name that was given


def test_a_manifest_is_taken_as_it_stands_or_refused(odd_corpus, tmp_path):
    manifest = tmp_path / "corpus.jsonl"
    build_manifest(odd_corpus, manifest, IndexOptions(probe=False))
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join([*lines, lines[0]]))
    with pytest.raises(ValueError, match="is in several lines; index the files again"):
        listed([manifest], tmp_path)
    with pytest.raises(ValueError, match="a manifest is the only source"):
        listed([manifest, odd_corpus], tmp_path)
    manifest.write_text('{"path": 3}\n')
    with pytest.raises(ValueError, match=r"corpus\.jsonl, line 1: path is 3"):
        listed([manifest], tmp_path)
    manifest.write_text(json.dumps({**json.loads(lines[0]), "image": {"width_px": 8}}) + "\n")
    (image,) = listed([manifest], tmp_path)
    assert image.error[0] == "no_video"


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    folder = tmp_path_factory.mktemp("film")
    (folder / "class").mkdir()
    sound = sine(3.2) * np.linspace(0.2, 1, 76_800, dtype=np.float32)
    write_media(folder / "class" / "film.mp4", video=frames(51), video_fps=16, audio=sound, audio_rate_hz=24_000)
    return folder


@pytest.mark.slow
def test_some_seconds_of_a_file_are_embedded_as_those_seconds(film, tiny_run, tmp_path):
    entry = {"path": str(film / "class" / "film.mp4"), "labels": {"label": ["x"]}, "error": None, "container": None,
             "duration_seconds": 3.2, "video": None, "audio": None, "bytes": 0}  # fmt: skip
    spans = {"first": [0.5, 1.5], "second": [1.5, 2.5], "late": [9.0, 10.0]}
    manifest = tmp_path / "corpus.jsonl"
    lines = [json.dumps({**entry, "key": key, "segment": span}) for key, span in spans.items()]
    lines.append(json.dumps({**entry, "key": "gone", "error": {"reason": "missing_file", "message": "no such file"}}))
    manifest.write_text("\n".join(lines) + "\n")
    embedder = avssl.load_embedder(str(tiny_run))
    table, failures = embedder.embed(manifest, window_seconds=0.5)
    assert table.keys == ["first", "first", "second", "second"]
    assert table.start_seconds.tolist() == [0.0, 0.5, 0.0, 0.5]
    assert table.labels == [{"label": ["x"]}] * 4
    assert {key: error.reason for key, error in failures.items()} == {"late": "too_short", "gone": "missing_file"}
    whole = embedder.embed(film, window_seconds=0.5)[0].select(range(1, 5))
    for name in ("video_embedding", "audio_embedding"):
        np.testing.assert_allclose(getattr(table, name), getattr(whole, name), atol=1e-5, err_msg=name)
    job = FolderJob.begin(embedder, [manifest], tmp_path / "out", window_seconds=0.5)
    index = job.run(embedder, num_workers=1, run_folder=tiny_run)
    assert (index.num_listed, index.num_skipped) == (4, 2)
    same_rows(EmbeddingTable.read(tmp_path / "out"), table)
    assert keys_of_file(EmbeddingIndex(tmp_path / "out"), film / "class" / "film.mp4") == {*spans, "gone"}
    manifest.write_text("\n".join(lines[:2]) + "\n")
    with pytest.raises(ValueError, match="holds embeddings of other settings"):
        FolderJob.begin(embedder, [manifest], tmp_path / "out", window_seconds=0.5)


@pytest.mark.slow
def test_a_segment_ends_where_it_ends_though_the_file_goes_on(film, tiny_run, tmp_path):
    """The oracle is a file that holds these seconds alone."""
    sound = (sine(3.2) * np.linspace(0.2, 1, 76_800, dtype=np.float32))[:, 24_000:31_200]
    write_media(tmp_path / "cut.wav", audio=sound, audio_rate_hz=24_000, audio_codec="pcm_s16le")
    whole = sine(3.2) * np.linspace(0.2, 1, 76_800, dtype=np.float32)
    write_media(tmp_path / "whole.wav", audio=whole, audio_rate_hz=24_000, audio_codec="pcm_s16le")
    manifest = tmp_path / "corpus.jsonl"
    entry = {"path": "whole.wav", "key": "part", "labels": {}, "error": None, "segment": [1.0, 1.3]}
    manifest.write_text(json.dumps(entry) + "\n")
    embedder = avssl.load_embedder(str(tiny_run))
    part, cut = (embedder.embed(source)[0] for source in (manifest, tmp_path / "cut.wav"))
    np.testing.assert_allclose(part.audio_embedding, cut.audio_embedding, atol=1e-5)
    assert part.end_seconds.tolist() == pytest.approx(cut.end_seconds.tolist())


def test_folders_that_earlier_versions_wrote_are_read_and_searched_by_their_own_keys(film, tiny_run, tmp_path):
    embedder = avssl.load_embedder(str(tiny_run))
    FolderJob.begin(embedder, [film], tmp_path / "out").run(embedder, run_folder=tiny_run)
    assert keys_of_file(EmbeddingIndex(tmp_path / "out"), film / "class" / "film.mp4") == {"class/film_mp4"}
    (tmp_path / "out" / "sources.jsonl").unlink()  # as they were
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    del index["settings"]["keys"]
    (tmp_path / "out" / "index.json").write_text(json.dumps(index))
    old = EmbeddingIndex(tmp_path / "out")
    assert keys_of_file(old, film / "class" / "film.mp4") == {"class/film.mp4"}
    with pytest.raises(ValueError, match="none of the files"):
        keys_of_file(old, tmp_path / "other.mp4")
    with pytest.raises(ValueError, match="keys: None there, 'manifest' now"):
        FolderJob.begin(embedder, [film], tmp_path / "out")
    assert len(EmbeddingTable.read(GOLDEN / "embeddings")) == len(
        EmbeddingTable.read(GOLDEN / "embeddings").to_pandas()
    )


@pytest.mark.slow
def test_a_run_that_goes_on_is_embedded_from_a_checkpoint(film, tmp_path):
    run = written_run(tmp_path / "run")
    finished = avssl.load_embedder(str(run))
    (run / "encoders.safetensors").unlink()
    (run / "provenance.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has not finished.*--checkpoint latest"):
        avssl.load_embedder(str(run))
    third = avssl.load_embedder(str(run), checkpoint=3)
    latest = avssl.load_embedder(str(run), checkpoint="latest")
    assert third.weights_hash == latest.weights_hash != finished.weights_hash
    table = third.embed(film)[0]
    assert table.metadata["checkpoint_step"] == 3
    assert not np.allclose(table.video_embedding, finished.embed(film)[0].video_embedding, atol=1e-3)
    for name, error, message in (("9", FileNotFoundError, "no checkpoint of step 9; there are: 3"),
                                 ("newest", ValueError, "must be latest or the number of a step: 3")):  # fmt: skip
        with pytest.raises(error, match=message):
            avssl.load_embedder(str(run), checkpoint=name)


@pytest.mark.slow
def test_commands_take_a_checkpoint_and_search_asks_with_it(film, tmp_path, shards):
    run = written_run(tmp_path / "run")
    (run / "encoders.safetensors").unlink()
    (run / "provenance.json").unlink()
    out = tmp_path / "out"
    run_python("recipes/embed.py", run, film, "--out", out, "--checkpoint", "latest", "--num-workers", "0")
    said = run_python("recipes/search.py", out, film / "class" / "film.mp4", "--top", "1").stdout
    assert "class/film_mp4" in said
    task = ("standard", f"train={shards['train']}", f"test={shards['test']}", "num_workers=0")
    run_python("recipes/evaluate.py", run, *task, "--checkpoint", "3")
    result = json.loads((run / "evaluations" / "standard-step_000003.json").read_text())
    assert result["checkpoint_step"] == 3
    assert (run / "embeddings" / "step_000003" / "test.parquet").is_file()
    assert not (run / "evaluation.json").exists()


def test_a_table_is_short_as_text_and_a_data_frame_on_demand(monkeypatch):
    table = EmbeddingTable.read(GOLDEN / "embeddings")
    assert len(repr(table)) < 200
    assert f"{len(table)} rows of 6 keys; video {len(table)} x 8" in repr(table)
    frame = table.to_pandas()
    assert frame["key"].tolist() == table.keys
    np.testing.assert_array_equal(np.stack(frame["video_embedding"]), table.video_embedding)
    assert frame["label"].tolist() == table.label("label")
    vectors, labels = [[np.nan] * 2, [0, 1]], [{"key": ["x", "y"], "label_key": ["z"]}, {}]
    no_video, has_audio = [False, False], [False, True]
    hidden = EmbeddingTable(
        ["a", "b"], [-1, -1], [0, 0], [1, 1], has_audio, no_video, audio_embedding=vectors, labels=labels
    ).to_pandas()
    assert hidden["label_key"].tolist() == ["x | y", None]
    assert hidden["label_label_key"].tolist() == ["z", None]
    assert hidden["audio_embedding"][0] is None
    assert "audio_embedding" not in table.to_pandas(vectors=False)
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match=r'pip install "avssl\[pandas\]"'):
        table.to_pandas()


def test_sources_in_python_are_those_of_the_command(odd_corpus, tmp_path):
    assert list(resolve_sources([odd_corpus], ("video", "audio"))) == listed([odd_corpus], tmp_path)
