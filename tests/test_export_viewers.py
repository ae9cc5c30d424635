"""`avssl export` to programs that show media: FiftyOne and LightlyStudio, as these read what was written."""

import shutil
from collections import Counter
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest

from avssl.exchange.targets import clips, command, fiftyone_dataset, lightly_database, rows
from avssl.media.info import MEDIA_SUFFIXES
from avssl.shards.shard_set import ShardSet
from tests.embedding_folders import make_embeddings
from tests.other_pythons import printed_by

ALL_VECTORS = ("embedding", "feature")


def test_clips_are_the_runs_of_rows_of_a_key_and_their_means_those_of_pooling(tmp_path, monkeypatch):
    monkeypatch.setattr("avssl.embedding.parquet.ROWS_PER_GROUP", 7)  # keys lie across row groups and files
    table = make_embeddings(tmp_path / "rows", rows_per_file=15)
    pooled = table.pool_by_key()
    found = list(clips.clips_of(rows.RowSource(tmp_path / "rows", ALL_VECTORS)))
    assert [clip.key for clip in found] == pooled.keys
    for number, clip in enumerate(found):
        assert clip.first == 2 * number
        assert clip.windows.shape == (2, 2)
        for column in ("video_embedding", "audio_embedding", "video_feature"):
            mean, expected = clip.mean(column), getattr(pooled, column)[number]
            if mean is None:
                assert np.isnan(expected).all()
            else:
                np.testing.assert_allclose(mean, expected, atol=1e-6)


def test_samples_of_shards_are_written_as_files_that_play(shards, tmp_path):
    import av

    stored = ShardSet(shards["test"])
    settings = {"shards": stored.fingerprint, "sources": [str(shards["test"])]}
    make_embeddings(tmp_path / "rows", 2, settings=settings)
    source = rows.RowSource(tmp_path / "rows")
    clip = next(clips.clips_of(source))
    clip.key, clip.index = stored.keys[3], 3
    path = clips.MediaFiles(source, tmp_path / "media").file_of(clip)
    assert path == tmp_path / "media" / f"{stored.keys[3]}.mp4"
    with av.open(str(path)) as file:
        assert {stream.type for stream in file.streams} == {"video", "audio"}
        assert file.streams.video[0].frames == stored.read_info(3).num_frames
    clip.key = "../../outside"
    with pytest.raises(ValueError, match=r"outside: the shard folder holds .* in its place"):
        clips.MediaFiles(source, tmp_path / "media").file_of(clip)
    sample = stored.read(3)  # shards that somebody else made may have any key
    hostile = replace(sample, info=replace(sample.info, key=clip.key))
    media = clips.MediaFiles(source, tmp_path / "media")
    media._shards = mock.Mock(read=lambda index: hostile)
    assert media.file_of(clip) == tmp_path / "media" / "_/_/outside_3.mp4"


@pytest.mark.parametrize(
    ("moved", "media", "message"),
    [
        ([("/films/", "https://there/")], None, "lies on a server; only files on this machine can be shown"),
        ([], None, "is not there any more; say with --moved OLD=NEW where it lies now"),
        ([], "folder", "--media is for embeddings of shards"),
    ],
)
def test_media_that_cannot_be_shown_are_one_line(moved, media, message, tmp_path):
    make_embeddings(tmp_path / "rows", 2)
    source = rows.RowSource(tmp_path / "rows", moved=moved)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        clips.MediaFiles(source, media).file_of(next(clips.clips_of(source)))


def test_shards_need_a_folder_for_their_media(shards, tmp_path):
    settings = {"shards": ShardSet(shards["test"]).fingerprint, "sources": [str(shards["test"])]}
    make_embeddings(tmp_path / "rows", 2, settings=settings)
    with pytest.raises(ValueError, match="give --media FOLDER, where each is written as a file that plays"):
        clips.MediaFiles(rows.RowSource(tmp_path / "rows"), None)
    gone = rows.RowSource(tmp_path / "rows", moved=[(str(shards["test"]), "/nowhere")])
    with pytest.raises(FileNotFoundError, match="say where they are now with --moved OLD=NEW"):
        clips.MediaFiles(gone, tmp_path / "media")


def test_label_fields_get_names_that_fiftyone_takes():
    labels = ["visual", "tags", "a.b", "a b", "=", "caption", "video_embedding", "1st", "_x", "label"]
    names = fiftyone_dataset.field_names(labels)
    assert names["visual"] == "visual"
    assert names["tags"] == "label_tags"
    assert len(set(names.values())) == len(labels)
    assert all(name.isidentifier() and not name.startswith("_") for name in names.values())


@pytest.mark.parametrize(("target", "name"), [("fiftyone", "FiftyOne"), ("lightly-studio", "LightlyStudio")])
def test_without_the_program_the_error_says_what_to_install(target, name, tmp_path, monkeypatch, capsys):
    make_embeddings(tmp_path / "rows", 2)
    for module in ("fiftyone", "lightly_studio", "lightly_studio.database"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(SystemExit):
        command.command([str(tmp_path / "rows"), "--to", target, "--out", str(tmp_path / "clips.db")])
    assert f"needs {name}: pip install 'avssl[{target}]'" in capsys.readouterr().err
    assert not (tmp_path / "clips.db").exists()


def test_a_second_export_of_a_name_leaves_what_the_first_is_filling(tmp_path, monkeypatch, capsys):
    """With a stand-in for FiftyOne's database; the second begins while the first fills its data set."""
    make_embeddings(tmp_path / "rows", 2)
    database = {"clips.unfinished": object()}  # as a killed export left it

    class Dataset:
        media_type = "video"

        def __init__(self, name):
            assert name not in database
            database[name] = self

        def __setattr__(self, key, value):
            if key == "name":
                database[value] = database.pop(next(name for name, one in database.items() if one is self))

        def __len__(self):
            return 1

        def get_field_schema(self):
            return {}

    stand_in = mock.Mock(Dataset=Dataset, dataset_exists=database.__contains__, delete_dataset=database.__delitem__)
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fiftyone_dataset, "library", lambda: stand_in)
    monkeypatch.setattr(fiftyone_dataset, "MediaFiles", lambda *arguments: None)
    words = [str(tmp_path / "rows"), "--to", "fiftyone", "--out", "clips"]

    def fill_while_another_begins(dataset, *arguments):
        monkeypatch.setattr(fiftyone_dataset, "fill", lambda *arguments: {})
        with pytest.raises(SystemExit):
            command.command(words)
        assert "another process exports 'clips' to FiftyOne; wait for it, or end it" in capsys.readouterr().err
        assert database == {"clips.unfinished": dataset}
        command.command([*words[:-1], "others"])  # another name may
        return {}

    monkeypatch.setattr(fiftyone_dataset, "fill", fill_while_another_begins)
    command.command(words)
    assert sorted(database) == ["clips", "others"]
    command.command([*words, "--overwrite"])  # the lock is free again
    assert sorted(database) == ["clips", "others"]


def test_an_overwritten_database_opens_and_no_other_file_is_overwritten(tmp_path, monkeypatch, capsys):
    """With DuckDB alone in the place of LightlyStudio. The earlier database was left open, with its log beside it."""
    duckdb = pytest.importorskip("duckdb")
    make_embeddings(tmp_path / "rows", 2)
    out, log = tmp_path / "clips.db", tmp_path / "clips.db.wal"

    class Manager:
        def connect(self, db_file):
            self.database = duckdb.connect(db_file)
            self.database.execute("create table clips (key text)")

        def close(self):
            self.database.close()

    manager = Manager()
    manager.connect(str(tmp_path / "earlier.db"))
    manager.database.execute("checkpoint")
    manager.database.execute("insert into clips values ('earlier')")
    shutil.copy(tmp_path / "earlier.db", out)
    shutil.copy(tmp_path / "earlier.db.wal", log)
    manager.close()

    def fill(*arguments):
        manager.database.execute("insert into clips values ('new')")
        return Counter(samples=1)

    monkeypatch.setattr(lightly_database, "library", lambda: manager)
    monkeypatch.setattr(lightly_database, "fill", fill)
    monkeypatch.setattr(lightly_database, "MediaFiles", lambda *arguments: None)
    words = [str(tmp_path / "rows"), "--to", "lightly-studio", "--overwrite", "--out"]
    command.command([*words, str(out)])
    with duckdb.connect(str(out)) as database:
        assert database.execute("select key from clips").fetchall() == [("new",)]
    assert not log.exists()
    (tmp_path / "mine.db").write_text("mine")
    with pytest.raises(SystemExit):
        command.command([*words, str(tmp_path / "mine.db")])
    assert "mine.db is there already, and no earlier export; choose another --out" in capsys.readouterr().err
    assert (tmp_path / "mine.db").read_text() == "mine"


@pytest.fixture
def embedded(corpus, tmp_path):
    """(folder of embeddings of six real files, two windows each; its table)."""
    paths = sorted(path for path in (corpus / "test").rglob("*") if path.suffix in MEDIA_SUFFIXES)
    labels = [{"visual": ["disc" if row < 6 else "bars"], "tag": ["a", "b"][: row // 2 % 3]} for row in range(12)]
    table = make_embeddings(tmp_path / "rows", 12, rows_per_file=5, paths=paths, labels=labels)
    listing = tmp_path / "rows" / "sources.jsonl"
    listing.write_text(listing.read_text().replace(', "segment": [2.5, 9.0]', ""))  # the files are shorter
    return tmp_path / "rows", table, paths


FIFTYONE = """
import json, sys
import fiftyone as fo
import fiftyone.brain as fob
from avssl.exchange.targets import command
folder, shard_rows, media = sys.argv[1:]
fo.Dataset("clips.unfinished", persistent=True)  # as a killed export left it
command.command([folder, "--to", "fiftyone", "--out", "clips"])
def refused(words):
    try:
        command.command(words)
    except SystemExit as left:
        return left.code
again = refused([folder, "--to", "fiftyone", "--out", "clips"])
command.command([folder, "--to", "fiftyone", "--out", "clips", "--overwrite"])
lost = refused([folder, "--to", "fiftyone", "--out", "lost", "--moved", "/=/nowhere/"])
command.command([shard_rows, "--to", "fiftyone", "--out", "of_shards", "--media", media])
clips = fo.load_dataset("clips")
samples = [
    {"path": s.filepath, "key": s.key, "visual": s.visual.label, "tag": [c.label for c in s.tag.classifications],
     "video": None if s.video_embedding is None else s.video_embedding.tolist(),
     "windows": [[d.row, d.begin_seconds, d.end_seconds, *d.support] for d in s.windows.detections],
     "frames": s.metadata.total_frame_count, "rate": s.metadata.frame_rate}
    for s in clips
]
fob.compute_similarity(clips, embeddings="video_embedding", brain_key="near")
nearest = [s.key for s in clips.sort_by_similarity(clips.first().id, brain_key="near", k=2)]
view = clips.to_clips("windows")
shown = [[c.windows.row, list(c.support)] for c in view]
points = fob.compute_visualization(clips, embeddings="audio_embedding", method="pca", brain_key="map").points.shape
print(json.dumps({"names": fo.list_datasets(), "again": again, "lost": lost, "media_type": clips.media_type,
    "persistent": clips.persistent, "samples": samples, "nearest": nearest, "clips": shown, "points": points,
    "of_shards": [s.filepath for s in fo.load_dataset("of_shards")]}))
"""


@pytest.mark.slow
def test_fiftyone_shows_a_sample_a_file_with_windows_labels_and_vectors(embedded, shards, tmp_path):
    """Run by AVSSL_FIFTYONE_PYTHON, with FiftyOne's own database in an empty folder."""
    folder, table, paths = embedded
    stored = ShardSet(shards["test"])
    settings = {"shards": stored.fingerprint, "sources": [str(shards["test"])]}
    make_embeddings(tmp_path / "of_shards", 12, settings=settings, keys=stored.keys)
    told = printed_by(
        "fiftyone", "AVSSL_FIFTYONE_PYTHON", FIFTYONE, folder, tmp_path / "of_shards", tmp_path / "media",
        FIFTYONE_DATABASE_DIR=str(tmp_path / "database"), FIFTYONE_DO_NOT_TRACK="true",
        FIFTYONE_DATABASE_VALIDATION="false", AVSSL_CACHE=str(tmp_path / "cache"),
    )  # fmt: skip
    assert sorted(told["names"]) == ["clips", "of_shards"]  # neither "lost" nor anything unfinished
    assert (told["again"], told["lost"], told["media_type"], told["persistent"]) == (1, 1, "video", True)
    pooled = table.pool_by_key()
    assert [sample["path"] for sample in told["samples"]] == list(map(str, paths))
    for number, sample in enumerate(told["samples"]):
        assert sample["key"] == pooled.keys[number]
        assert [sample["visual"]] == table.labels[2 * number]["visual"]
        assert sample["tag"] == table.labels[2 * number]["tag"]
        np.testing.assert_allclose(sample["video"], pooled.video_embedding[number], atol=1e-6)
        for place, (row, begin, end, first, last) in enumerate(sample["windows"]):
            assert row == 2 * number + place
            assert (begin, end) == (table.start_seconds[row], table.end_seconds[row])
            assert abs((first - 1) / sample["rate"] - begin) <= 0.5 / sample["rate"] + 1e-9
            assert 1 <= first <= last <= sample["frames"]
    cosines = pooled.video_embedding @ pooled.video_embedding[0]
    assert told["nearest"] == [pooled.keys[row] for row in np.argsort(-cosines)[:2]]
    assert told["clips"] == [[row, [first, last]] for s in told["samples"] for row, _, _, first, last in s["windows"]]
    assert told["points"] == [6, 2]
    assert told["of_shards"] == [str(tmp_path / "media" / f"{key}.mp4") for key in stored.keys]


LIGHTLY = """
import json, sys
from avssl.exchange.targets import command
folder, out = sys.argv[1:]
command.command([folder, "--to", "lightly-studio", "--out", out])
def refused(words):
    try:
        command.command(words)
    except SystemExit as left:
        return left.code
again = refused([folder, "--to", "lightly-studio", "--out", out])
lost = refused([folder, "--to", "lightly-studio", "--out", out + ".lost", "--moved", "/=/nowhere/"])
import lightly_studio
from lightly_studio.database import db_manager
from lightly_studio.resolvers import embedding_model_resolver, sample_embedding_resolver
db_manager.connect(db_file=out, must_exist=True)
data = lightly_studio.VideoDataset.load("clips")
models = embedding_model_resolver.get_all_by_dataset_id(session=data.session, dataset_id=data.dataset_id)
vectors = {}
for model in models:
    got = sample_embedding_resolver.get_all_by_collection_id(
        session=data.session, collection_id=data.collection_id, embedding_model_id=model.embedding_model_id)
    vectors[model.name.split()[0]] = {str(row.sample_id): [float(x) for x in row.embedding] for row in got}
samples = [
    {"id": str(s.sample_id), "path": s.file_path_abs, "key": s.metadata["key"], "end": s.metadata["end_seconds"],
     "names": sorted(a.class_name for a in s.annotations)}
    for s in data
]
print(json.dumps({"again": again, "lost": lost, "vectors": vectors, "samples": samples}))
"""


@pytest.mark.slow
def test_lightly_studio_has_a_video_a_file_with_labels_times_and_vectors(embedded, tmp_path):
    """Run by AVSSL_LIGHTLY_PYTHON."""
    folder, table, paths = embedded
    told = printed_by("lightly_studio", "AVSSL_LIGHTLY_PYTHON", LIGHTLY, folder, tmp_path / "clips.db")
    assert (told["again"], told["lost"]) == (1, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"rows", "clips.db"}
    pooled = table.pool_by_key()
    samples = {sample["path"]: sample for sample in told["samples"]}
    assert list(map(str, paths)) == sorted(samples)
    for number, path in enumerate(map(str, paths)):
        sample, labels = samples[path], table.labels[2 * number]
        assert (sample["key"], sample["end"]) == (pooled.keys[number], pooled.end_seconds[number])
        assert sample["names"] == sorted([*labels["visual"], *labels["tag"]])
        for name in ("video", "audio"):
            vector = told["vectors"][f"{name}_embedding"].get(sample["id"])
            assert (vector is not None) == pooled.has(name)[number]
            if vector is not None:
                np.testing.assert_allclose(vector, pooled.embedding(name)[number], atol=1e-6)
