"""Manifests of lists and folders: bad rows by number, keys, labels, and memory that does not grow."""

import csv
import gzip
import hashlib
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import pytest

from avssl.shards import keys as keys_module
from avssl.shards.manifest import stream_manifest
from data_prep.__main__ import main
from data_prep.index import walk as walk_module
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.index.command import describe
from data_prep.index.cutting import Cutting
from data_prep.index.labels import LabelGaps, Labels
from data_prep.index.walk import Walk
from tests.listed import KINETICS, listed, refusal

# --- bad rows -------------------------------------------------------------------------------------------------------


def test_bad_rows_are_named_by_number_and_can_be_skipped(tmp_path, media):
    media("a.mp4")
    rows = ['{"path": "a.mp4"}', "not json", '{"label": "x"}', '{"path": "b.mp4", "segment": [2, 1]}', "[1]",
            '{"path": "c.mp4", "key": "ä"}', '{"path": "d.mp4", "label": {"a": 1}}', '{"path": "e.mp4", "label": ""}',
            '{"path": "f.mp4", "begin_seconds": 1}', '{"path": "a.mp4", "label": "again"}',
            '{"path": "g.mp4", "key": "k"}', '{"path": "h.mp4", "key": "k"}']  # fmt: skip
    message = refusal(tmp_path, "mine.jsonl", "\n".join(rows))
    assert "11 of 12 rows cannot be used" in message
    for number, words in {
        2: "is not json", 3: "path is None", 4: "0 <= begin < end", 5: "must be a json object", 6: "key is 'ä'",
        7: "label 'label' is {'a': 1}", 8: "a label is empty", 9: "give both or none",
        10: "lists the same file and seconds as line 1", 11: "has the key k, which another row has too",
        12: "has the key k",
    }.items():  # fmt: skip
        line = next(line for line in message.splitlines() if line.startswith(f"  line {number}: "))
        assert words in line
    assert "--skip-bad-rows" in message
    entries, summary = listed(tmp_path, "mine.jsonl", "\n".join(rows), skip_bad_rows=True)
    assert (len(entries), summary.num_bad_rows) == (1, 11)


def test_of_many_bad_rows_twenty_are_shown(tmp_path):
    message = refusal(tmp_path, "kinetics.csv", KINETICS + "x\n" * 30, media=tmp_path)
    assert message.count("has 1 cells; the header has 5") == 20
    assert "and 10 more" in message
    assert "  line 6: " in message


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("k.csv", "youtube_id,split\na,b\n", {}, "time_start, time_end missing"),
        ("k.csv", KINETICS.splitlines()[0], {}, "lists nothing"),
        ("a.txt", "a.mp4\n", {"split": "train"}, "list lists have no splits"),
        ("a.jsonl", '{"path": "a.mp4"}', {"split": "train"}, "no row has the split 'train'; there are no splits"),
        ("a.dat", "a.mp4\n", {}, "no list that is known"),
        ("a.txt", "a.mp4\n", {"kind": "sounds"}, "--kind is 'sounds'; allowed: media, images"),
        ("a.txt", "a.mp4\n", {"format": "hmdb51"}, "its name must be like brush_hair_test_split1.txt"),
        ("a.txt", "a.mp4\n", {"cutting": Cutting(clip_seconds=2.0)}, "with --no-probe their lengths are unknown"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(tmp_path, name, text, options, message):
    assert message in refusal(tmp_path, name, text, media=tmp_path, **options)


def test_options_for_lists_are_refused_for_folders_and_missing_folders_named(tmp_path, capsys):
    out = ["--out", str(tmp_path / "c.jsonl")]
    assert main(["index", str(tmp_path), *out, "--split", "train"]) == 2
    assert "--split is for lists" in capsys.readouterr().err
    (tmp_path / "a.txt").write_text("a.mp4\n")
    assert main(["index", str(tmp_path / "a.txt"), *out, "--media", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: is no folder" in capsys.readouterr().err
    assert main(["index", str(tmp_path / "a.txt"), *out, "--clip-stride", "2"]) == 2
    assert "give --clip-seconds" in capsys.readouterr().err


# --- keys, labels, folders ------------------------------------------------------------------------------------------


def test_keys_are_safe_and_unique(tmp_path, media):
    folder = media("a/b c.mp4", "a/b_c.mp4", "ü.mp4", "plain/x-1.mkv")
    build_manifest(folder, tmp_path / "c.jsonl", IndexOptions(probe=False))
    keys = {entry.path: entry.key for entry in stream_manifest(tmp_path / "c.jsonl")}
    assert keys["media/plain/x-1.mkv"] == "plain/x-1_mkv"
    assert keys["media/ü.mp4"] == "_mp4"
    assert keys["media/a/b c.mp4"] == "a/b_c_mp4-" + hashlib.sha256(b"a/b c.mp4").hexdigest()[:8]
    assert len(set(keys.values())) == 4


def test_a_key_made_unique_or_of_a_segment_never_meets_another_row(tmp_path, media):
    folder = media("a b.mp4", "a_b.mp4")
    taken = "a_b_mp4-" + hashlib.sha256(b"a b.mp4").hexdigest()[:8]
    media(f"{taken[:-9]}-{taken[-8:]}")  # no suffix: not media, so not listed
    text = json.dumps({"path": "x.mp4", "key": taken}) + '\n{"path": "a b.mp4"}\n{"path": "a_b.mp4"}\n'
    text += '{"path": "y.mp4", "key": "a_b_mp4_0_500"}\n'
    entries, _ = listed(tmp_path, "mine.jsonl", text, media=folder)
    assert len(entries) == 4
    assert taken + hashlib.sha256(b"a b.mp4").hexdigest()[8:16] in entries
    text = '{"path": "a_b.mp4"}\n{"path": "y.mp4", "key": "a_b_mp4_0_500"}\n'
    entries, _ = listed(tmp_path, "mine.jsonl", text, media=folder, probe=True, cutting=Cutting(clip_seconds=0.5))
    assert len(entries) == 3
    assert entries["a_b_mp4_0_500"].path == "media/y.mp4"


def test_labels_come_from_folders_or_a_csv(tmp_path):
    paths = ["cats/a.mp4", "b.mp4"]

    def read(labels, name):
        table = Labels(labels, tmp_path / name)
        found = [table.of(path) for path in paths]
        table.check()
        return found

    assert read("folder", "1") == [{"label": ["cats"]}, {}]
    assert read("none", "2") == [{}, {}]
    table = tmp_path / "labels.csv"
    table.write_text("path,animal,place\ncats/a.mp4,cat|kitten,\n")
    assert read(str(table), "3") == [{"animal": ["cat", "kitten"]}, {}]
    table.write_text("path,animal\nelsewhere.mp4,cat\n")
    with pytest.raises(ValueError, match=r"elsewhere\.mp4"):
        read(str(table), "4")
    with pytest.raises(ValueError, match=r"they are relative to it, as 'cats/a\.mp4' is"):
        read(str(table), "5")
    table.write_text("file,animal\na,cat\n")
    with pytest.raises(ValueError, match=r"its first line, 'file,animal', has no column 'path'$"):
        read(str(table), "6")
    table.write_text("path;animal\na;cat\n")
    with pytest.raises(
        ValueError, match=r"'path;animal', has no column 'path'; its columns must be separated by commas"
    ):
        read(str(table), "7")
    table.write_text("path,animal\n")
    with pytest.raises(ValueError, match="has no row below its header"):
        read(str(table), "8")


def test_files_without_a_label_and_rows_without_a_file_are_counted_and_said(tmp_path):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / "videos" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "videos" / name).touch()
    table, out = tmp_path / "labels.csv", tmp_path / "corpus.jsonl"

    def said(text):
        table.write_text(text)
        summary = build_manifest(tmp_path / "videos", out, IndexOptions(labels=str(table), probe=False))
        return [line.strip() for line in describe(summary, out, None) if "--labels" in line]

    assert said("path,animal\nb.mp4,cat\nB.mp4,dog\n") == [
        "2 files have no row in --labels, and so no label, e.g. 'a.mp4'",
        "1 rows of --labels name no file that was found, e.g. 'B.mp4'",
    ]
    assert said("path,animal\na.mp4,cat\nb.mp4,cat\nc.mp4,dog\n") == []


def test_a_file_without_a_label_counts_once_whatever_number_of_its_segments_a_list_has(tmp_path):
    (tmp_path / "labels.csv").write_text("path,animal\na.mp4,cat\n")
    table = Labels(str(tmp_path / "labels.csv"), tmp_path / "labels.db")
    cat = {"animal": ["cat"]}
    assert [table.of(f"{name}.mp4") for name in "abba"] == [cat, {}, {}, cat]
    assert table.check() == LabelGaps(1, "b.mp4", 0, "")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (b"animal,path\ncat\n", "line 2: has no path"),
        (b"path,animal\na.mp4,caf\xe9\n", "line 2: the label 'caf.udce9' is not UTF-8"),
        (b"path,animal\na.mp4," + b"x" * 140_000 + b"\n", "line 2: field larger than field limit"),
        (b"\0" * 140_000, "line 1: field larger than field limit"),
    ],
)
def test_a_row_of_labels_that_cannot_be_used_is_named(tmp_path, rows, says):
    (tmp_path / "labels.csv").write_bytes(rows)
    with pytest.raises(ValueError, match=rf"labels\.csv, {says}"):
        Labels(str(tmp_path / "labels.csv"), tmp_path / "labels.db")


def test_a_packed_list_that_is_cut_is_one_line(tmp_path):
    for name in ("a.txt.gz", "a.jsonl.gz"):
        packed = gzip.compress(b"".join(hashlib.sha256(bytes([n])).hexdigest().encode() + b"\n" for n in range(200)))
        (tmp_path / name).write_bytes(packed[:-1000])
        with pytest.raises(ValueError, match=rf"{name}: cannot be unpacked, as it is cut or damaged"):
            build_manifest(tmp_path / name, tmp_path / "c.jsonl", IndexOptions(probe=False))


def test_a_manifest_does_not_take_the_place_of_what_it_is_made_of(tmp_path, media):
    folder = media("a.mp4")
    (tmp_path / "list.txt").write_text("a.mp4\n")
    (tmp_path / "labels.csv").write_text("path,label\na.mp4,cat\n")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "list.txt")
    options = IndexOptions(media=folder, labels=str(tmp_path / "labels.csv"), probe=False)
    before = {path: path.read_bytes() for path in (tmp_path / "list.txt", tmp_path / "labels.csv", folder / "a.mp4")}
    for out in (*before, tmp_path / "link.jsonl"):
        with pytest.raises(ValueError, match="give another name"):
            build_manifest(tmp_path / "list.txt", out, options)
    assert {path: path.read_bytes() for path in before} == before


def test_a_video_that_is_listed_with_several_sounds_has_a_key_for_each(tmp_path, media):
    folder = media("a.mp4", "en.flac", "fr.flac")
    entries, _ = listed(tmp_path, "mine.csv", "video,audio\na.mp4,en.flac\na.mp4,fr.flac\n", media=folder)
    assert sorted(entry.sound.path for entry in entries.values()) == ["media/en.flac", "media/fr.flac"]


def test_folders_are_walked_in_the_order_of_whole_paths_also_through_files(tmp_path, monkeypatch):
    names = ["a.mp4", "a/b.mp4", "a-b/c.mp4", "a b/d.mp4", "B.mp4", "a/z/é.mp4", "a/z.mp4", "a0.mp4", "Ω/x.mp4"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert list(Walk(tmp_path, {".mp4"})) == sorted(names)
    monkeypatch.setattr(walk_module, "NAMES_AT_A_TIME", 2)
    assert list(Walk(tmp_path, {".mp4"})) == sorted(names)
    walk = Walk(tmp_path, {".mkv"})
    assert (list(walk), +walk.ignored) == ([], {".mp4": 9, "links to folders": 1})


def test_file_names_that_are_not_utf8_go_all_the_way(tmp_path, clip):
    from avssl.shards.shard_set import ShardSet
    from data_prep.transcode.options import WriteOptions
    from data_prep.write.run import write_shards

    folder = os.fsencode(tmp_path / "videos") + b"/caf\xe9"
    Path(os.fsdecode(folder)).mkdir(parents=True)
    shutil.copy(clip, folder + b"/\xff\xfe.mp4")
    summary = build_manifest(tmp_path / "videos", tmp_path / "corpus.jsonl", IndexOptions())
    assert (summary.num_listed, summary.num_with_video) == (1, 1)
    (entry,) = stream_manifest(tmp_path / "corpus.jsonl")
    assert os.fsencode(entry.path) == b"videos/caf\xe9/\xff\xfe.mp4"
    assert (entry.key, entry.labels) == ("caf_/_mp4", {"label": ["caf\ufffd"]})
    write_shards(tmp_path / "corpus.jsonl", tmp_path / "shards", WriteOptions(short_side_px=48))
    assert ShardSet(tmp_path / "shards").keys == ["caf_/_mp4"]
    source = tmp_path / "list.txt"
    source.write_bytes(b"caf\xe9/\xff\xfe.mp4\n")
    build_manifest(source, tmp_path / "listed.jsonl", IndexOptions(media=tmp_path / "videos", probe=False))
    assert os.fsencode(next(stream_manifest(tmp_path / "listed.jsonl")).path) == os.fsencode(entry.path)


@pytest.mark.parametrize("name", ["a::b.mp4", "pipe:x.mp4", "s3:/bucket/x.mp4", "file:/x.mp4"])
def test_file_names_that_look_like_urls_are_files(tmp_path, clip, name):
    from avssl.files.location import is_remote

    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(clip, tmp_path / name)
    summary = build_manifest(tmp_path, tmp_path / "corpus.jsonl", IndexOptions())
    assert (summary.num_listed, summary.num_with_video) == (1, 1)
    (entry,) = stream_manifest(tmp_path / "corpus.jsonl")
    assert entry.path == f"./{name}"
    assert not is_remote(entry.path)


# --- memory ---------------------------------------------------------------------------------------------------------


def peak_bytes(tmp_path, number, source_name):
    """Peak of Python's memory while a list of this many rows is indexed."""
    source = tmp_path / source_name
    with source.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
        rows.writerows(
            [f"class {k % 7}", f"{k // 2:011d}", 10 * (k % 2), 10 * (k % 2) + 10, "train"] for k in range(number)
        )
    tracemalloc.start()
    options = IndexOptions(media=tmp_path / "media", probe=False)
    summary = build_manifest(source, tmp_path / "corpus.jsonl", options)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (summary.num_listed, summary.failed_by_reason) == (number, {"missing_file": number - 4})
    return peak


@pytest.mark.slow
def test_memory_does_not_grow_with_the_list(tmp_path, media):
    media("00000000000.mp4", "00000000001.mp4")
    peak_bytes(tmp_path, 100, "warm.csv")
    small, large = peak_bytes(tmp_path, 500, "small.csv"), peak_bytes(tmp_path, 8_000, "large.csv")
    assert large < small + 400_000  # 8,000 rows are 2.5 MB of manifest


@pytest.mark.slow
def test_memory_does_not_grow_with_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(walk_module, "NAMES_AT_A_TIME", 1000)
    monkeypatch.setattr(keys_module, "HASHES_AT_A_TIME", 100)

    def peak(number):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        for k in range(number):
            (folder / f"{k:06d} {'x' * 60}.mp4").touch()
        tracemalloc.start()
        assert build_manifest(folder, tmp_path / "c.jsonl", IndexOptions(probe=False)).num_listed == number
        _, found = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return found

    peak(10)
    assert peak(6000) < peak(1000) + 300_000  # 6,000 names are 800 kB
