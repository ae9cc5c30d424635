"""Webdataset tars of other programs: what webdataset's own reader sees is what is listed, read and written."""

import json
import shutil
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest

import avssl
from avssl.embedding.folder import FolderJob
from avssl.embedding.table import EmbeddingTable
from avssl.files.storage import read_bytes
from avssl.files.whole import content_digest
from avssl.shards.foreign_tars import TarEnd, TarSample, list_tar
from avssl.shards.opened import opened
from avssl.shards.places import Place, Range, Sounding
from avssl.shards.ranged_file import RangedFile
from avssl.shards.shard_set import ShardSet
from avssl.types import MediaError
from data_prep.__main__ import main
from data_prep.transcode.encode import write_media
from tests.clips import make_clip, skips, square_frames, tone
from tests.foreign import as_read_by_webdataset, rows_of, write_members, write_tar

WRITE = ["--short-side-px", "48", "--num-workers", "1"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{name: bytes} of small media: a clip with both streams, and one of each stream alone, a second each."""
    folder = tmp_path_factory.mktemp("files")
    make_clip(folder / "both.mp4")
    make_clip(folder / "other.mp4", seed=1)
    write_media(folder / "seen.mp4", video=square_frames(20), video_fps=20)
    write_media(folder / "heard.flac", audio=tone(1.0), audio_rate_hz=48_000, audio_codec="flac")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def index(*arguments):
    return main(["index", *map(str, arguments)])


def samples(path, texts=frozenset()):
    return [item for item in list_tar(path, texts) if isinstance(item, TarSample)]


# --- what webdataset itself reads ------------------------------------------------------------------------------------

ODD_NAMES = [
    "a.mp4", "a.TXT", "a.json", "b/c.left.mp4", "b/c.Right.MP4", "b/c.txt", "no_suffix", ".hidden", "__meta__/x.mp4",
    "__info__", "a.mp4", "b/.d.mp4", "e..mp4", "x.y/f.mp4", "x.y/f.cls", "g.tar.gz", "long/" + "n" * 150 + ".mp4",
    "b/ü.mp4", "./h.mp4", "/abs.mp4",
]  # fmt: skip


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_samples_are_those_of_webdatasets_own_reader_with_the_bytes_of_their_ranges(tmp_path, tar_format):
    members = [(name, f"{number} {name}".encode() * (number + 1)) for number, name in enumerate(ODD_NAMES)]
    path = write_members(tmp_path / "odd.tar", members, tar_format)
    found = [
        (
            sample.key,
            {name: read_bytes(path, at.offset, at.offset + at.num_bytes) for name, at in sample.members.items()},
        )
        for sample in samples(path)
    ]
    assert found == as_read_by_webdataset(path)
    assert len(found) == 11
    assert not any(sample.problems for sample in samples(path))


def test_texts_are_read_with_the_headers_and_media_are_not(tmp_path, files, monkeypatch):
    path = write_tar(tmp_path / "x.tar", [{"__key__": "a", "mp4": files["both.mp4"], "txt": b"a cat"}])
    read, content = [], RangedFile._content
    monkeypatch.setattr(RangedFile, "_content", lambda *where: read.append(where[2] - where[1]) or content(*where))
    assert samples(path, frozenset(["txt"]))[0].texts == {"txt": b"a cat"}
    assert sum(read) < len(files["both.mp4"]) // 2


# --- rows and shards ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archives(files, tmp_path_factory):
    """A folder of two tars as video2dataset writes them, one sample with its sound apart, and the loose files."""
    folder = tmp_path_factory.mktemp("archives")
    loose = folder / "loose"
    loose.mkdir()
    for key, name in (("0000", "both.mp4"), ("0001", "other.mp4"), ("0003", "heard.flac")):
        (loose / f"{key}{name[name.index('.') :]}").write_bytes(files[name])
    first = [
        {"__key__": "0000", "mp4": files["both.mp4"], "txt": "a square ü", "json": {"label": "red", "url": "u"}},
        {"__key__": "0001", "mp4": files["other.mp4"], "json": {"caption": "a tone", "labels": ["a", "b"]}},
    ]
    second = [
        {"__key__": "0002", "mp4": files["seen.mp4"], "flac": files["heard.flac"], "cls": b"7\n"},
        {"__key__": "0003", "flac": files["heard.flac"], "jpg": b"a thumbnail"},
    ]
    for number, content in enumerate((first, second)):
        encoded = [
            {name: json.dumps(value).encode() if name == "json" else value for name, value in sample.items()}
            for sample in content
        ]
        encoded = [
            {name: value.encode() if name == "txt" else value for name, value in sample.items()} for sample in encoded
        ]
        write_tar(folder / "tars" / f"x-{number:03d}.tar", encoded)
    return folder


@pytest.fixture(scope="module")
def written(archives):
    """The manifest of the tars and its shards."""
    assert index(archives / "tars", "--out", archives / "corpus.jsonl", "--num-workers", 1) == 0
    options = ["--on-missing-video", "keep", *WRITE]
    assert main(["write", str(archives / "corpus.jsonl"), "--out", str(archives / "shards"), *options]) == 0
    return archives


def test_rows_address_members_and_say_labels_and_captions(written, files):
    rows = rows_of(written / "corpus.jsonl")
    assert list(rows) == ["0000", "0001", "0002", "0003"]
    assert [row["path"] for row in rows.values()] == ["tars/x-000.tar"] * 2 + ["tars/x-001.tar"] * 2
    assert rows["0000"]["labels"] == {"label": ["red"]}
    assert rows["0000"]["caption"] == "a square ü"
    assert rows["0001"]["labels"] == {"labels": ["a", "b"]}
    assert rows["0001"]["caption"] == "a tone"
    assert rows["0002"]["labels"] == {"label": ["7"]}
    assert "caption" not in rows["0002"]
    tar = (written / "tars" / "x-001.tar").read_bytes()
    picture, sound = rows["0002"]["within"], rows["0002"]["sound"]["within"]
    assert tar[picture["offset"] : picture["offset"] + picture["bytes"]] == files["seen.mp4"]
    assert tar[sound["offset"] : sound["offset"] + sound["bytes"]] == files["heard.flac"]
    assert rows["0002"]["bytes"] == len(files["seen.mp4"]) + len(files["heard.flac"])
    assert rows["0000"]["content"] == content_digest(files["both.mp4"])
    assert rows["0002"]["video"]["width"] == 64
    assert rows["0002"]["audio"]["rate_hz"] == 48_000
    assert rows["0003"]["video"] is None


def test_shards_of_a_tar_hold_the_bytes_of_shards_of_its_loose_files(written, files, tmp_path):
    assert index(written / "loose", "--out", tmp_path / "loose.jsonl", "--num-workers", 1) == 0
    options = ["--on-missing-video", "keep", *WRITE]
    assert main(["write", str(tmp_path / "loose.jsonl"), "--out", str(tmp_path / "shards"), *options]) == 0
    shards, loose = ShardSet(written / "shards"), ShardSet(tmp_path / "shards")
    of_tar = {sample.info.key: sample for sample in map(shards.read, range(len(shards)))}
    for sample in map(loose.read, range(len(loose))):
        twin = of_tar[sample.info.key.partition("_")[0]]
        assert (twin.video, twin.audio) == (sample.video, sample.audio)
        assert twin.info.source["content"] == sample.info.source["content"]
    both = of_tar["0002"]
    assert both.video is not None
    assert both.audio == of_tar["0003"].audio  # the same sound, read apart from its video
    assert both.info.av_offset_seconds == 0
    assert (of_tar["0000"].info.caption, of_tar["0002"].info.caption) == ("a square ü", "")
    assert json.loads((written / "shards" / "index.json").read_text())["has_captions"] is True
    assert b"caption" not in (tmp_path / "shards" / "index.json").read_bytes()
    assert all("caption" not in vars(sample.info)["source"] for sample in of_tar.values())


def test_a_sample_without_a_caption_is_stored_as_before(written):
    shards = ShardSet(written / "shards")
    texts = {info.key: info.to_json() for info in map(shards.read_info, range(len(shards)))}
    assert b'"caption": "a square \\u00fc"' in texts["0000"]
    assert b"caption" not in texts["0002"]


@pytest.mark.slow
def test_two_runs_and_any_way_to_name_the_tars_give_the_same_rows(written, tmp_path):
    tars = written / "tars"
    for source in (f"{tars}/x-{{000..001}}.tar", tars, f"file://{tars}/x-{{000,001}}.tar"):
        assert index(source, "--out", written / "again.jsonl", "--num-workers", 2) == 0
        assert (written / "again.jsonl").read_bytes() == (written / "corpus.jsonl").read_bytes()
    (written / "again.jsonl").unlink()
    assert index(tars / "x-001.tar", "--out", tmp_path / "one.jsonl", "--num-workers", 1) == 0
    assert list(rows_of(tmp_path / "one.jsonl")) == ["0002", "0003"]


@pytest.mark.slow
def test_split_and_coverage_understand_rows_within_archives(written, tmp_path, capsys):
    manifest = tmp_path / "corpus.jsonl"
    shutil.copytree(written / "tars", tmp_path / "tars")
    shutil.copy(written / "corpus.jsonl", manifest)
    assert main(["split", str(manifest), "--test-share", "0.5", "--seed", "auto", "--near-duplicates"]) == 0
    parts = [rows_of(tmp_path / f"corpus.{part}.jsonl") for part in ("train", "test")]
    assert sorted([*parts[0], *parts[1]]) == ["0000", "0001", "0002", "0003"]
    assert all("within" in row for part in parts for row in part.values())
    capsys.readouterr()
    assert main(["coverage", str(written / "corpus.jsonl"), str(written / "shards")]) == 0


@pytest.mark.slow
def test_embeddings_of_a_tar_are_those_of_its_loose_files_and_have_its_captions(written, files, tiny_run, tmp_path):
    assert index(written / "loose", "--out", tmp_path / "loose.jsonl", "--num-workers", 1) == 0
    embedder = avssl.load_embedder(str(tiny_run))
    options = {"window_seconds": 0.5, "stride_seconds": 0.5}
    tables = {}
    for name, manifest in (("tar", written / "corpus.jsonl"), ("loose", tmp_path / "loose.jsonl")):
        FolderJob.begin(embedder, [manifest], tmp_path / name, **options).run(embedder)
        tables[name] = EmbeddingTable.read(tmp_path / name)
    tar, loose = tables["tar"], tables["loose"]
    rows = np.array([key != "0002" for key in tar.keys])
    assert [key for key in tar.keys if key != "0002"] == [key.partition("_")[0] for key in loose.keys]
    np.testing.assert_allclose(tar.video_embedding[rows], loose.video_embedding, atol=1e-5, equal_nan=True)
    np.testing.assert_allclose(tar.audio_embedding[rows], loose.audio_embedding, atol=1e-5, equal_nan=True)
    apart = [number for number, key in enumerate(tar.keys) if key == "0002"]
    assert tar.has_video[apart].all()
    assert tar.has_audio[apart].all()
    captions = {"0000": "a square ü", "0001": "a tone", "0002": None, "0003": None}
    assert tar.captions == [captions[key] for key in tar.keys]
    assert loose.captions is None
    assert "caption" not in pq.read_schema(tmp_path / "loose" / "embeddings.parquet").names
    FolderJob.begin(embedder, [written / "shards"], tmp_path / "of_shards", **options).run(embedder)
    of_shards = EmbeddingTable.read(tmp_path / "of_shards")
    assert of_shards.captions == [captions[key] for key in of_shards.keys]
    assert of_shards.select([0]).captions == of_shards.captions[:1]
    assert list(of_shards.pool_by_key().to_pandas()["caption"]) == [
        captions[key] for key in dict.fromkeys(of_shards.keys)
    ]


# --- what cannot be read --------------------------------------------------------------------------------------------


def test_a_cut_archive_lists_what_it_holds_and_says_where_it_ends(tmp_path, files):
    whole = write_tar(tmp_path / "x.tar", [{"__key__": key, "mp4": files["both.mp4"]} for key in "abc"])
    content = whole.read_bytes()
    end = samples(whole)[1].members["mp4"]
    whole.write_bytes(content[: end.offset + end.num_bytes - 1000])
    assert index(whole, "--out", tmp_path / "c.jsonl", "--num-workers", 1) == 0
    rows = rows_of(tmp_path / "c.jsonl")
    assert {key: row["error"] and row["error"]["reason"] for key, row in rows.items()} == {
        "a": None, "b": "truncated", "x/end": "truncated",
    }  # fmt: skip
    assert "ends 1000 bytes before its member 'b.mp4' does" in rows["x/end"]["error"]["message"]
    assert main(["write", str(tmp_path / "c.jsonl"), "--out", str(tmp_path / "shards"), *WRITE]) == 0
    index_json = json.loads((tmp_path / "shards" / "index.json").read_text())
    assert (index_json["num_listed"], index_json["num_samples"], index_json["num_skipped"]) == (3, 1, 2)


@pytest.mark.parametrize(
    ("cut", "problem"),
    [
        (lambda content, end: content[:end], "no mark of its end"),
        (lambda content, end: content[: end + 100] + b"x", "no header of a member"),
        (lambda content, end: content[:end] + b"\xff" * 512 + content[end + 512 :], "no header of a member"),
    ],
)
def test_what_tarfile_takes_for_an_end_is_told_from_an_end(tmp_path, cut, problem):
    path = write_members(tmp_path / "x.tar", [("a.mp4", b"x" * 700), ("b.mp4", b"y" * 700)])
    content, end = path.read_bytes(), 512 + 1024
    path.write_bytes(cut(content, end) if "header" not in problem else cut(content[:end] + b"z" * 600, end))
    *found, last = list_tar(path, frozenset())
    assert [sample.key for sample in found] == ["a"]
    assert isinstance(last, TarEnd)
    assert problem in last.problem
    path.write_bytes(content)
    assert list(list_tar(path, frozenset()))[-1].problem == ""


def test_samples_that_cannot_be_used_say_why(tmp_path, files):
    clip = files["seen.mp4"]
    members = [
        ("text.txt", b"alone"), ("two.a.mp4", clip), ("two.b.mp4", clip), ("same.mp4", clip), ("same.mp4", clip),
        ("json.mp4", clip), ("json.json", b"{"), ("junk.mp4", b"no media"), ("empty.mp4", b""), ("utf.mp4", clip),
        ("utf.txt", b"\xff"), ("label.mp4", clip), ("label.json", b'{"label": {"a": 1}}'), ("good.mp4", clip),
    ]  # fmt: skip
    path = write_members(tmp_path / "x.tar", members)
    assert index(path, "--out", tmp_path / "c.jsonl", "--num-workers", 1) == 0
    errors = {key: row["error"] for key, row in rows_of(tmp_path / "c.jsonl").items()}
    assert {key: error and error["reason"] for key, error in errors.items()} == {
        "text": "missing_file", "two": "bad_sample", "same": "bad_sample", "json": "bad_sample", "junk": "not_media",
        "empty": "empty_file", "utf": "bad_sample", "label": "bad_sample", "good": None,
    }  # fmt: skip
    assert "has no member that is video or audio; it has .txt" in errors["text"]["message"]
    assert ".a.mp4, .b.mp4; choose by --columns" in errors["two"]["message"]
    assert "x.tar: junk.mp4: no known media format" in errors["junk"]["message"]
    assert index(path, "--out", tmp_path / "d.jsonl", "--num-workers", 1, "--columns", "a.mp4") == 0
    assert rows_of(tmp_path / "d.jsonl")["two"]["error"] is None


@pytest.mark.slow
def test_an_archive_that_changed_or_went_is_told_by_each_of_its_samples(tmp_path, files):
    path = write_tar(tmp_path / "x.tar", [{"__key__": key, "mp4": files["both.mp4"]} for key in "ab"])
    assert index(path, "--out", tmp_path / "c.jsonl", "--num-workers", 1) == 0
    write_tar(path, [{"__key__": key, "mp4": files["other.mp4"]} for key in "ab"])
    assert main(["write", str(tmp_path / "c.jsonl"), "--out", str(tmp_path / "changed"), *WRITE]) == 1
    assert {skip["reason"] for skip in skips(tmp_path / "changed").values()} == {"changed_file"}
    path.unlink()
    assert main(["write", str(tmp_path / "c.jsonl"), "--out", str(tmp_path / "gone"), *WRITE]) == 1
    assert {skip["reason"] for skip in skips(tmp_path / "gone").values()} == {"missing_file"}


def test_wrong_sources_are_one_line_that_says_what_to_do(tmp_path, capsys):
    (tmp_path / "x.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    (tmp_path / "y.tar").write_bytes(b"no archive" * 100)
    (tmp_path / "none").mkdir()
    for source, message in (
        ("x.tar", "is compressed (gzip)"), ("y.tar", "is no tar archive"), ("z.tar", "No such file"),
        ("x-{00..01.tar", "braces do not match"),
    ):  # fmt: skip
        assert index(tmp_path / source, "--out", tmp_path / "c.jsonl") == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1
    assert index(f"{tmp_path}/{{x,y}}.tar", "--out", tmp_path / "c.jsonl") == 2
    assert "2 of 2 rows cannot be used" in capsys.readouterr().err


# --- the door -------------------------------------------------------------------------------------------------------


def test_large_members_are_copied_to_a_file_for_as_long_as_they_are_open(tmp_path, monkeypatch):
    monkeypatch.setattr("avssl.shards.opened.MAX_BYTES_IN_MEMORY", 10)
    (tmp_path / "x").write_bytes(b"0123456789abcdefghij")
    place = Place(str(tmp_path / "x"), Range("m.mp4", 2, 15))
    with opened(Sounding(place)) as media:
        path = media.media
        assert path.read_bytes() == b"23456789abcdefg"
        assert (media.num_bytes, media.suffix, media.content) == (15, ".mp4", content_digest(b"23456789abcdefg"))
    assert not path.exists()
    with (
        pytest.raises(MediaError, match="has 19 bytes, and the file ends after 18"),
        opened(Sounding(Place(str(tmp_path / "x"), Range("m.mp4", 2, 19)))),
    ):
        pass
