"""What each format of list says: files, labels, seconds, splits, and absent files."""

import gzip
import json
import shutil

import pytest

from avssl.shards.keys import plain_key
from avssl.shards.manifest import stream_manifest
from data_prep.__main__ import main
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.index.lists.row import ListSettings
from tests.listed import KINETICS, facts, listed, refusal


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
