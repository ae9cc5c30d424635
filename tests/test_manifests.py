"""Manifests of any list: what each format says, bad rows by number, absent files, segments, keys, memory, sandbox."""

import csv
import gzip
import hashlib
import json
import os
import shutil
import signal
import time
import tracemalloc
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from avssl.processes.limits import Limits
from avssl.shards import keys as keys_module
from avssl.shards.keys import plain_key
from avssl.shards.manifest import stream_manifest
from avssl.types import MediaError
from data_prep.__main__ import main
from data_prep.index import walk as walk_module
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.index.cutting import Cutting, claimed_seconds, clips, scenes
from data_prep.index.labels import Labels
from data_prep.index.lists.row import ListSettings
from data_prep.index.probing import ProbedFile, Prober
from data_prep.index.walk import Walk
from tests.clips import make_clip, square_frames


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """One second of video and audio; copy it to wherever a list wants a file."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    make_clip(path)
    return path


@pytest.fixture
def media(tmp_path, clip):
    """media(name, ...) puts copies of the clip below tmp_path/media and returns that folder."""

    def put(*names):
        for name in names:
            path = tmp_path / "media" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(clip, path)
        return tmp_path / "media"

    return put


def listed(tmp_path, name, text, **options):
    """{key: entry} of a list with this text, and the summary."""
    source = tmp_path / name
    source.write_text(text)
    options = {"media": tmp_path / "media", "probe": False} | options
    summary = build_manifest(source, tmp_path / "corpus.jsonl", IndexOptions(**options))
    return {entry.key: entry for entry in stream_manifest(tmp_path / "corpus.jsonl")}, summary


def refusal(tmp_path, name, text, **options):
    with pytest.raises(ValueError) as error:
        listed(tmp_path, name, text, **options)
    assert not (tmp_path / "corpus.jsonl").exists()
    assert not list(tmp_path.glob(".corpus*"))
    return str(error.value)


def facts(entries):
    """{key: (path, labels, segment, reason)}."""
    return {
        key: (entry.path, entry.labels, entry.segment, entry.error and entry.error["reason"])
        for key, entry in entries.items()
    }


# --- what each format says ------------------------------------------------------------------------------------------

KINETICS = """label,youtube_id,time_start,time_end,split
"playing, drums",abcdefghij0,10,20,train
abseiling,abcdefghij1,0,10,train
abseiling,-bcdefghij_,7,17,train
abseiling,absentabsen,5,15,validate
"""


def test_kinetics_files_are_found_by_id_or_by_id_and_seconds_flat_or_in_class_folders(tmp_path, media):
    media("abcdefghij0.mkv", "abseiling/abcdefghij1_000000_000010.mp4", "playing_drums/-bcdefghij_.mp4",
          "abseiling/-bcdefghij_.webm")  # fmt: skip
    entries, summary = listed(tmp_path, "train.csv", KINETICS)
    assert facts(entries) == {
        "abcdefghij0_10000_20000": ("media/abcdefghij0.mkv", {"label": ["playing, drums"]}, (10.0, 20.0), None),
        "abcdefghij1_0_10000": ("media/abseiling/abcdefghij1_000000_000010.mp4", {"label": ["abseiling"]}, None, None),
        "-bcdefghij_7000_17000": ("media/abseiling/-bcdefghij_.webm", {"label": ["abseiling"]}, (7.0, 17.0), None),
        "absentabsen_5000_15000": ("media/absentabsen", {"label": ["abseiling"]}, (5.0, 15.0), "missing_file"),
    }
    assert summary.failed_by_reason == {"missing_file": 1}
    assert "absentabsen_000005_000015 or " in entries["absentabsen_5000_15000"].error["message"]
    assert summary.all_splits == {"train": 3, "validate": 1}


def test_kinetics_splits_and_lists_without_labels(tmp_path, media):
    media("absentabsen.mp4")
    entries, summary = listed(tmp_path, "all.csv", KINETICS, split="validate", settings=ListSettings(trimmed=True))
    assert facts(entries) == {"absentabsen_5000_15000": ("media/absentabsen.mp4", {"label": ["abseiling"]}, None, None)}
    assert summary.left_out_by_split == {"train": 3}
    assert "no row has the split 'val'; there are train (3 rows), validate (1 rows)" in refusal(
        tmp_path / "media", "all.csv", KINETICS, split="val", media=tmp_path
    )
    entries, _ = listed(tmp_path, "test.csv", "youtube_id,time_start,time_end,split\nabsentabsen,1,11,test\n")
    assert facts(entries) == {"absentabsen_1000_11000": ("media/absentabsen.mp4", {}, (1.0, 11.0), None)}


AUDIOSET = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=3, num_segs=3, num_unique_labels=3, num_positive_labels=4
# YTID, start_seconds, end_seconds, positive_labels
--abcdefgh0, 30.000, 40.000, "/m/09x0r,/m/04rlf"
Zabcdefgh_1, 0.500, 10.500, "/m/04rlf"
Zabcdefgh_1, 70.000, 80.000, "/t/dd00088"
"""
CLASSES = 'index,mid,display_name\n0,/m/09x0r,Speech\n137,/m/04rlf,"Music, loud"\n5,/t/dd00088,Gargling\n'


def test_audioset_has_several_labels_a_clip_and_several_clips_a_video(tmp_path, media):
    media("wav/Y--abcdefgh0.wav", "Zabcdefgh_1.m4a", "video/Zabcdefgh_1.mp4")
    (tmp_path / "class_labels_indices.csv").write_text(CLASSES)
    entries, _ = listed(tmp_path, "eval_segments.csv", AUDIOSET)
    assert facts(entries) == {
        "-abcdefgh0_30000_40000".replace("-abc", "--abc"): (
            "media/wav/Y--abcdefgh0.wav", {"label": ["Speech", "Music, loud"]}, None, None),
        "Zabcdefgh_1_500_10500": ("media/video/Zabcdefgh_1.mp4", {"label": ["Music, loud"]}, (0.5, 10.5), None),
        "Zabcdefgh_1_70000_80000": ("media/video/Zabcdefgh_1.mp4", {"label": ["Gargling"]}, (70.0, 80.0), None),
    }  # fmt: skip
    (tmp_path / "class_labels_indices.csv").unlink()
    entries, _ = listed(tmp_path, "eval_segments.csv", AUDIOSET)
    assert entries["Zabcdefgh_1_70000_80000"].labels == {"label": ["/t/dd00088"]}


def test_audioset_bad_rows(tmp_path, media):
    media("x.mp4")
    (tmp_path / "class_labels_indices.csv").write_text(CLASSES)
    text = (
        AUDIOSET
        + 'abcdefghijk, 1.0, 11.0, "/m/nobody"\nabcdefghijk, 1.0, 0.5, "/m/09x0r"\nabcdefghijk, 1.0, 11.0, ""\n'
    )
    message = refusal(tmp_path, "eval.csv", text)
    assert "3 of 6 rows cannot be used" in message
    assert "line 7: has the label '/m/nobody', which class_labels_indices.csv does not know" in message
    assert "line 8: it lasts from 1.0 s to 0.5 s" in message
    assert "line 9: has no label" in message


def test_vggsound_clips_last_ten_seconds(tmp_path, media):
    media("---g-f_I2yQ_000001.mp4", "video/0cdefghij_k.mp4", "audio/0cdefghij_k.wav")
    text = '---g-f_I2yQ,1,"people marching",test\n0cdefghij_k,30,"dog barking, far",train\n'
    entries, summary = listed(tmp_path, "vggsound.csv", text)
    assert facts(entries) == {
        "---g-f_I2yQ_1000_11000": ("media/---g-f_I2yQ_000001.mp4", {"label": ["people marching"]}, None, None),
        "0cdefghij_k_30000_40000": (
            "media/video/0cdefghij_k.mp4", {"label": ["dog barking, far"]}, (30.0, 40.0), None),
    }  # fmt: skip
    assert summary.all_splits == {"train": 1, "test": 1}
    entries, _ = listed(tmp_path, "vggsound.csv", text, split="test")
    assert list(entries) == ["---g-f_I2yQ_1000_11000"]


def ucf(tmp_path):
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 ApplyEyeMakeup\n2 Archery\n")
    (lists / "trainlist01.txt").write_text(
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\nArchery/v_Archery_g01_c02.avi 2\r\n"
    )
    (lists / "testlist01.txt").write_text("Archery/v_Archery_g25_c01.avi\n")
    (lists / "testlist02.txt").write_text("Archery/v_Archery_g01_c02.avi\n")
    return lists


def test_ucf101_lists_name_class_and_split(tmp_path, media):
    media("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "v_Archery_g01_c02.mp4", "Archery/v_Archery_g25_c01.avi")
    lists = ucf(tmp_path)
    manifest = tmp_path / "corpus.jsonl"
    build_manifest(lists / "trainlist01.txt", manifest, IndexOptions(media=tmp_path / "media", probe=False))
    train = {
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01": (
            "media/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", {"label": ["ApplyEyeMakeup"]}, None, None),
        "Archery/v_Archery_g01_c02": ("media/v_Archery_g01_c02.mp4", {"label": ["Archery"]}, None, None),
    }  # fmt: skip
    assert facts({entry.key: entry for entry in stream_manifest(manifest)}) == train
    command = ["index", str(lists), "--format", "ucf101", "--media", str(tmp_path / "media"), "--out", str(manifest),
               "--no-probe"]  # fmt: skip
    assert main([*command, "--fold", "1", "--split", "test"]) == 0
    (entry,) = stream_manifest(manifest)
    assert (entry.path, entry.labels) == ("media/Archery/v_Archery_g25_c01.avi", {"label": ["Archery"]})
    assert main(command) == 2  # which fold?
    assert main([*command, "--fold", "3"]) == 2


def test_ucf101_rows_that_do_not_fit_the_class_table(tmp_path):
    lists = ucf(tmp_path)
    (lists / "trainlist03.txt").write_text("Archery/v_a.avi 1\nBowling/v_b.avi 3\nv_c.avi 1\n")
    with pytest.raises(ValueError) as error:
        build_manifest(lists / "trainlist03.txt", tmp_path / "corpus.jsonl", IndexOptions(media=tmp_path))
    assert "trainlist03.txt line 1: says that Archery is class 1; classInd.txt says 2" in str(error.value)
    assert "trainlist03.txt line 2: has the class 'Bowling'" in str(error.value)
    assert "trainlist03.txt line 3: is 'v_c.avi 1'; it must be Class/v_Name.avi" in str(error.value)


def test_hmdb51_split_comes_from_the_number_and_the_class_from_the_file_name(tmp_path, media):
    media("brush_hair/April+09 (1)#x.avi", "wave/a.avi", "wave/b.avi", "brush_hair/a.avi")
    lists = tmp_path / "splits"
    lists.mkdir()
    (lists / "brush_hair_test_split1.txt").write_text("April+09 (1)#x.avi 1 \na.avi 2 \n")
    (lists / "wave_test_split1.txt").write_text("a.avi 1 \nb.avi 0 \n")
    manifest = tmp_path / "corpus.jsonl"
    options = {"format": "hmdb51", "media": tmp_path / "media", "probe": False}
    summary = build_manifest(lists, manifest, IndexOptions(**options, split="train"))
    assert facts({entry.key: entry for entry in stream_manifest(manifest)}) == {
        "brush_hair/April_09_1_x": ("media/brush_hair/April+09 (1)#x.avi", {"label": ["brush_hair"]}, None, None),
        "wave/a": ("media/wave/a.avi", {"label": ["wave"]}, None, None),
    }
    assert summary.left_out_by_split == {"test": 1, "unused": 1}
    assert build_manifest(lists, manifest, IndexOptions(**options)).left_out_by_split == {"unused": 1}
    assert len(list(stream_manifest(manifest))) == 3


def test_a_plain_list_keeps_urls_and_absolute_paths(tmp_path, media, clip):
    media("b c.mp4", "deep/a.mp4")
    text = (
        f"# my files\n\nb c.mp4\ndeep/../deep/a.mp4\n{clip}\ns3://bucket/x/y.mp4\nhttps://host/y.mp4?size=1\ngone.mp4\n"
    )
    entries, _ = listed(tmp_path, "files.txt", text)
    assert facts(entries) == {
        "b_c_mp4": ("media/b c.mp4", {}, None, None),
        "deep/a_mp4": ("media/deep/a.mp4", {}, None, None),
        plain_key(str(clip).lstrip("/")): (str(clip), {}, None, None),
        "bucket/x/y_mp4": ("s3://bucket/x/y.mp4", {}, None, None),
        "host/y_mp4_size_1": ("https://host/y.mp4?size=1", {}, None, None),
        "gone_mp4": ("media/gone.mp4", {}, None, "missing_file"),
    }
    entries, _ = listed(tmp_path, "files.txt", "b c.mp4\ndeep/a.mp4\n", labels="folder")
    assert entries["deep/a_mp4"].labels == {"label": ["deep"]}
    assert "line 1" in refusal(tmp_path / "media", "files.txt", "pipe://rm\n", media=tmp_path)


RECORDS = [
    {"path": "a.mp4", "labels": {"animal": ["cat", "kitten"], "place": "home"}},
    {"path": "b.mp4", "label": "dog", "segment": [1, 2.5], "note": "does not count"},
    {"path": "b.mp4", "label": ["dog", "loud"], "begin_seconds": 3.0, "end_seconds": 4.25},
    {"path": "c.mp4", "key": "mine/c", "split": "test"},
]
WANTED = {
    "a_mp4": ("media/a.mp4", {"animal": ["cat", "kitten"], "place": ["home"]}, None, None),
    "b_mp4_1000_2500": ("media/b.mp4", {"label": ["dog"]}, (1.0, 2.5), None),
    "b_mp4_3000_4250": ("media/b.mp4", {"label": ["dog", "loud"]}, (3.0, 4.25), None),
    "mine/c": ("media/c.mp4", {}, None, None),
}


def test_json_lines_say_path_key_labels_and_seconds(tmp_path, media):
    media("a.mp4", "b.mp4", "c.mp4")
    text = "".join(json.dumps(record) + "\n" for record in RECORDS)
    assert facts(listed(tmp_path, "mine.jsonl", text)[0]) == WANTED
    assert list(listed(tmp_path, "mine.jsonl", text, split="test")[0]) == ["mine/c"]
    (tmp_path / "mine.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    build_manifest(
        tmp_path / "mine.jsonl.gz", tmp_path / "gz.jsonl", IndexOptions(media=tmp_path / "media", probe=False)
    )
    assert (tmp_path / "gz.jsonl").read_bytes() != b""


def test_a_manifest_can_be_listed_again(tmp_path, media):
    media("a.mp4")
    first, _ = listed(tmp_path, "mine.jsonl", json.dumps(RECORDS[0]))
    shutil.copy(tmp_path / "corpus.jsonl", tmp_path / "again.jsonl")
    build_manifest(tmp_path / "again.jsonl", tmp_path / "new.jsonl", IndexOptions(probe=False))
    assert {entry.key: entry for entry in stream_manifest(tmp_path / "new.jsonl")} == first


def test_parquet_has_the_same_columns(tmp_path, media):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    media("a.mp4", "b.mp4", "c.mp4")
    strings = pa.list_(pa.string())
    labels = pa.array([[("animal", ["cat", "kitten"]), ("place", ["home"])], None, None, None],
                      pa.map_(pa.string(), strings))  # fmt: skip
    table = pa.table({
        "path": [record["path"] for record in RECORDS],
        "key": [None, None, None, "mine/c"],
        "labels": labels,
        "label": pa.array([None, ["dog"], ["dog", "loud"], None], strings),
        "begin_seconds": [None, 1.0, 3.0, None],
        "end_seconds": [None, 2.5, 4.25, None],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "mine.parquet")
    build_manifest(
        tmp_path / "mine.parquet", tmp_path / "corpus.jsonl", IndexOptions(media=tmp_path / "media", probe=False)
    )
    assert facts({entry.key: entry for entry in stream_manifest(tmp_path / "corpus.jsonl")}) == WANTED
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="no readable Parquet"):
        build_manifest(tmp_path / "bad.parquet", tmp_path / "c.jsonl", IndexOptions(probe=False))


def test_a_csv_with_paths_is_a_list_too(tmp_path, media):
    media("a.mp4", "b.mp4")
    text = "path,begin_seconds,end_seconds,animal,label\na.mp4,,,cat|kitten,\nb.mp4,1,2.5,,dog\n"
    assert facts(listed(tmp_path, "mine.csv", text)[0]) == {
        "a_mp4": ("media/a.mp4", {"animal": ["cat", "kitten"]}, None, None),
        "b_mp4_1000_2500": ("media/b.mp4", {"label": ["dog"]}, (1.0, 2.5), None),
    }


def test_a_list_of_images_is_a_manifest_of_images(tmp_path):
    from PIL import Image

    (tmp_path / "media").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "media" / "a.png")
    entries, summary = listed(tmp_path, "files.txt", "a.png\nb.png\n", probe=True)
    assert summary.num_images == 2
    assert (entries["a_png"].media["image"]["width"], entries["b_png"].error["reason"]) == (20, "missing_file")


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
    table.write_text("file,animal\na,cat\n")
    with pytest.raises(ValueError, match="column 'path'"):
        read(str(table), "5")


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


# --- cutting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("whole", "clip_seconds", "stride", "least", "wanted"),
    [
        ((0, 10), 4, 4, 2, [(0, 4), (4, 8), (8, 10)]),
        ((0, 10), 4, 4, 2.5, [(0, 4), (4, 8)]),
        ((0, 8), 4, 4, 0, [(0, 4), (4, 8)]),
        ((0, 8.0005), 4, 4, 0, [(0, 4), (4, 8)]),
        ((0, 3), 4, 4, 2, [(0, 3)]),
        ((0, 1), 4, 4, 2, []),
        ((0, 10), 4, 2, 2, [(0, 4), (2, 6), (4, 8), (6, 10)]),
        ((0, 11), 4, 2, 2, [(0, 4), (2, 6), (4, 8), (6, 10), (8, 11)]),
        ((0, 10), 2, 5, 1, [(0, 2), (5, 7)]),
        ((30, 40), 4, 4, 2, [(30, 34), (34, 38), (38, 40)]),
    ],
)
def test_clips_cover_a_file_and_the_tail_has_a_rule(whole, clip_seconds, stride, least, wanted):
    assert list(clips(whole, clip_seconds, stride, least)) == wanted


def test_scenes_cover_a_file_and_short_ones_join_their_neighbor():
    assert scenes((0, 10), [3, 3.5, 6], 1.0) == [(0, 3), (3, 6), (6, 10)]
    assert scenes((0, 10), [0.5, 9.5], 1.0) == [(0, 10)]
    assert scenes((2, 5), [1, 3.2, 8], 1.0) == [(2, 3.2), (3.2, 5)]
    assert list(Cutting(2.0, scenes=True).segments((0, 5), [3])) == [(0, 2), (2, 3), (3, 5)]


def test_a_file_lasts_until_its_last_stream_ends():
    video = {"start_seconds": 1.0, "duration_seconds": 4.0}
    assert claimed_seconds({"video": video, "audio": {"start_seconds": 0.5, "duration_seconds": 4.0}}) == 4.5
    assert claimed_seconds({"video": video | {"duration_seconds": None}, "audio": None, "duration_seconds": 6.0}) == 5.0
    assert claimed_seconds({"video": None, "audio": None}) is None
    assert (
        claimed_seconds({"video": video | {"duration_seconds": None}, "audio": None, "duration_seconds": None}) is None
    )


def test_long_files_become_clips_also_within_listed_segments(tmp_path):
    make_clip(tmp_path / "media" / "a.mkv", seconds=2.5, video_codec="libvpx-vp9", audio_codec="flac")
    text = '{"path": "a.mkv", "label": "x"}\n'
    text += '{"path": "a.mkv", "segment": [0.5, 1.75]}\n{"path": "a.mkv", "segment": [3, 4]}\n'
    entries, summary = listed(tmp_path, "mine.jsonl", text, probe=True, cutting=Cutting(clip_seconds=1.0))
    found = {key: (entry.segment, entry.error and entry.error["reason"]) for key, entry in entries.items()}
    assert found == {
        "a_mkv_0_1000": ((0.0, 1.0), None),
        "a_mkv_1000_2000": ((1.0, 2.0), None),
        "a_mkv_2000_2500": ((2.0, 2.5), None),
        "a_mkv_500_1750_500_1500": ((0.5, 1.5), None),
        "a_mkv_3000_4000": ((3.0, 4.0), "too_short"),
    }
    assert summary.num_segments == 5
    assert entries["a_mkv_0_1000"].labels == {"label": ["x"]}
    assert "--trimmed" in entries["a_mkv_3000_4000"].error["message"]


@pytest.mark.slow
def test_scenes_are_cut_where_frames_change(tmp_path):
    pytest.importorskip("scenedetect")
    colors = ((24, (200, 30, 30)), (30, (20, 40, 220)), (4, (240, 240, 240)), (30, (10, 90, 10)))
    frames = np.concatenate([np.full((number, 48, 64, 3), color, np.uint8) for number, color in colors])
    make_clip(tmp_path / "media" / "a.mp4", seconds=88 / 20, video=frames)
    make_clip(tmp_path / "media" / "still.mp4", video=square_frames(20))
    make_clip(tmp_path / "media" / "audio.m4a", video=None)
    (tmp_path / "media" / "bad.mp4").write_bytes(b"no media")
    command = ["index", str(tmp_path / "media"), "--out", str(tmp_path / "c.jsonl"), "--scenes", "--workers", "1"]
    assert main(command) == 0
    entries = {entry.key: entry for entry in stream_manifest(tmp_path / "c.jsonl")}
    spans = [entry.segment for key, entry in entries.items() if key.startswith("a_mp4")]
    assert [begin for begin, _ in spans] == pytest.approx([0.0, 1.2, 2.7], abs=0.051)
    assert [end for _, end in spans[:-1]] == [begin for begin, _ in spans[1:]]
    assert spans[-1][1] == pytest.approx(4.4, abs=0.05)
    assert [key for key in entries if key.startswith("still")] == ["still_mp4_0_1000"]
    assert entries["bad_mp4"].error["reason"] == "not_media"
    assert len(entries) == 6


def test_scenes_without_pyscenedetect_say_what_to_install(monkeypatch):
    monkeypatch.setattr("data_prep.index.cutting.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'avssl\[scenes\]'"):
        IndexOptions(cutting=Cutting(scenes=True))


@pytest.mark.parametrize("claim", [None, 1e6])
def test_a_duration_that_a_header_lacks_or_exaggerates_is_measured(tmp_path, monkeypatch, claim):
    make_clip(tmp_path / "a.mkv", seconds=2.0, audio_start_seconds=0.5)
    monkeypatch.setattr("data_prep.index.probing.claimed_seconds", lambda media: claim)
    look = Prober(cutting=Cutting(clip_seconds=1.0))(str(tmp_path / "a.mkv"))
    assert look.seconds == pytest.approx(2.5, abs=0.05)
    assert Prober()(str(tmp_path / "a.mkv")).seconds == claim


# --- the sandbox, and every file once -------------------------------------------------------------------------------


def misbehaving(path):
    """Does to its process what the file's name says, and notes that it was opened."""
    name = Path(path).stem.rstrip("0123456789")
    with Path(path).with_name("opened.log").open("a") as log:
        log.write(Path(path).stem + "\n")
    if name == "hang":
        time.sleep(60)
    elif name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif name == "memory":
        return bytearray(1 << 30)
    elif name == "bug":
        raise IndexError("list index out of range")
    elif name == "bad":
        raise MediaError("truncated", f"{path}: ends early")
    return ProbedFile({"video": {"start_seconds": 0.0, "duration_seconds": 9.0}, "audio": None}, None, 1)


@pytest.mark.slow
def test_a_file_that_misbehaves_costs_itself_alone_and_says_why(tmp_path):
    names = ["good1", "hang", "good2", "crash", "good3", "memory", "bug", "good4", "bad", "good5", "gone"]
    for name in names[:-1]:
        (tmp_path / f"{name}.mp4").touch()
    (tmp_path / "files.txt").write_text("".join(f"{name}.mp4\n" for name in names))
    options = IndexOptions(num_workers=2, limits=Limits(1.5, 256 << 20))
    summary = build_manifest(tmp_path / "files.txt", tmp_path / "c.jsonl", options, misbehaving_or_missing)
    reasons = {entry.key: entry.error and entry.error["reason"] for entry in stream_manifest(tmp_path / "c.jsonl")}
    assert reasons == {f"{name}_mp4": None for name in names} | {
        "hang_mp4": "timeout", "crash_mp4": "crashed", "memory_mp4": "out_of_memory", "bug_mp4": "crashed",
        "bad_mp4": "truncated", "gone_mp4": "missing_file",
    }  # fmt: skip
    assert list(reasons) == [f"{name}_mp4" for name in names]
    assert summary.num_with_video == 5


def misbehaving_or_missing(path):
    """As probing does, for files that are not there."""
    if not Path(path).exists():
        raise MediaError("missing_file", f"{path}: cannot be opened")
    return misbehaving(path)


def test_a_file_with_several_rows_is_opened_once(tmp_path):
    for name in ("good1", "good2", "good3"):
        (tmp_path / f"{name}.mp4").touch()
    rows = [{"path": f"{name}.mp4", "segment": [begin, begin + 1]}
            for name, times in (("good1", range(5)), ("good2", range(3)), ("good3", range(1)))
            for begin in times]  # fmt: skip
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = build_manifest(tmp_path / "mine.jsonl", tmp_path / "c.jsonl", IndexOptions(), misbehaving)
    assert (summary.num_listed, summary.num_segments, summary.num_with_video) == (9, 9, 9)
    assert (tmp_path / "opened.log").read_text().split() == ["good1", "good2", "good3"]


def test_listed_urls_are_fetched_and_probed(tmp_path, clip):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=clip.parent)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        host = f"http://127.0.0.1:{server.server_port}"
        entries, _ = listed(tmp_path, "files.txt", f"{host}/clip.mp4\n{host}/gone.mp4\n", media=tmp_path, probe=True)
        server.shutdown()
    found = {entry.path.rpartition("/")[2]: entry for entry in entries.values()}
    assert [entry.path for entry in entries.values()] == [f"{host}/clip.mp4", f"{host}/gone.mp4"]
    assert found["clip.mp4"].media["video"]["width"] == 64
    assert found["clip.mp4"].num_bytes == clip.stat().st_size
    assert found["gone.mp4"].error["reason"] == "missing_file"
    assert f"{host}/gone.mp4" in found["gone.mp4"].error["message"]


def test_file_seconds_and_memory_reach_the_sandbox(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a.mp4\n")
    command = ["index", str(tmp_path / "a.txt"), "--out", str(tmp_path / "c.jsonl")]
    assert main([*command, "--file-seconds", "0"]) == 2
    assert main([*command, "--file-memory-mib", "1"]) == 2
    assert "at least 64 MiB" in capsys.readouterr().err


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
