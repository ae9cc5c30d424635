"""Parquet and Arrow of Hugging Face data sets, and other tables with media: listed as `datasets` reads them."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from avssl.files import storage
from avssl.files.whole import content_digest
from avssl.shards.opened import opened
from avssl.shards.parquet_cells import forget_columns
from avssl.shards.places import Cell, Place, Sounding, within_of
from avssl.shards.shard_set import ShardSet
from avssl.types import MediaError
from data_prep.__main__ import main
from data_prep.index.lists.tables import split_of, tables_of
from data_prep.transcode.encode import write_media
from tests.clips import make_clip, skips, square_frames, tone
from tests.foreign import FEATURES, hugging_face_table, rows_of, write_arrow_stream, write_parquet

WRITE = ["--short-side-px", "48", "--num-workers", "1", "--on-missing-video", "keep"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{name: bytes} of small media: a clip with both streams, one of each stream alone, and pictures."""
    folder = tmp_path_factory.mktemp("files")
    make_clip(folder / "both.mp4")
    write_media(folder / "seen.mp4", video=square_frames(20, 2), video_fps=20)
    write_media(folder / "heard.flac", audio=tone(1.0), audio_rate_hz=48_000, audio_codec="flac")
    for number in range(3):
        pixels = np.full((40, 48, 3), 60 * number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def rows(files):
    """Rows of a data set: with both streams in one file, apart, without a video, and with nothing."""
    return [
        {"video": {"bytes": files["both.mp4"], "path": "a/both.mp4"}, "audio": None, "label": 0, "tags": [0, 2],
         "caption": "a red square ü"},
        {"video": {"bytes": files["seen.mp4"], "path": "seen.mp4"}, "label": 1,
         "audio": {"bytes": files["heard.flac"], "path": None}, "tags": [], "caption": None},
        {"video": None, "audio": {"bytes": files["heard.flac"], "path": "heard.flac"}, "label": -1, "tags": None,
         "caption": ""},
        {"video": {"bytes": None, "path": None}, "audio": None, "label": None, "tags": [1], "caption": "nothing"},
    ]  # fmt: skip


def index(*arguments):
    return main(["index", *map(str, arguments)])


def bytes_of(row, root):
    """What the door gives for the row of a manifest: (media, sound)."""
    from avssl.shards.manifest import Entry

    with opened(Entry.from_json(row, "row"), root) as media:
        return media.media, media.sound


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_rows_of_a_table_are_samples_with_the_bytes_labels_and_captions_of_its_features(tmp_path, files, rows, kind):
    table = hugging_face_table(rows)
    if kind == "parquet":
        write_parquet(tmp_path / "t.parquet", table)
    else:
        write_arrow_stream(tmp_path / "t.arrow", table)
    assert index(tmp_path / f"t.{kind}", "--out", tmp_path / "c.jsonl", "--num-workers", 1) == 0
    found = rows_of(tmp_path / "c.jsonl")
    assert list(found) == ["a/both_mp4", "seen_mp4", "heard_flac", "t/000003"]
    both, apart, sound, empty = found.values()
    assert [row["path"] for row in found.values()] == [f"t.{kind}"] * 4
    assert bytes_of(both, tmp_path) == (files["both.mp4"], None)
    assert bytes_of(apart, tmp_path) == (files["seen.mp4"], files["heard.flac"])
    assert bytes_of(sound, tmp_path) == (files["heard.flac"], None)
    assert [row["labels"] for row in found.values()] == [
        {"label": ["red"], "tags": ["big", "slow"]}, {"label": ["blue"]}, {}, {"tags": ["loud"]},
    ]  # fmt: skip
    assert [row.get("caption") for row in found.values()] == ["a red square ü", None, None, "nothing"]
    assert both["content"] == content_digest(files["both.mp4"])
    assert apart["bytes"] == len(files["seen.mp4"]) + len(files["heard.flac"])
    assert (apart["video"]["width"], apart["audio"]["rate_hz"]) == (64, 48_000)
    assert empty["error"]["reason"] == "missing_file"
    assert "row 3 holds nothing in video and audio" in empty["error"]["message"]


def test_tables_and_loose_files_give_shards_of_the_same_media(tmp_path, files, rows):
    write_parquet(tmp_path / "t.parquet", hugging_face_table(rows[:3]))
    write_arrow_stream(tmp_path / "t.arrow", hugging_face_table(rows[:3]))
    (tmp_path / "loose" / "a").mkdir(parents=True)
    (tmp_path / "loose" / "a" / "both.mp4").write_bytes(files["both.mp4"])
    (tmp_path / "loose" / "heard.flac").write_bytes(files["heard.flac"])
    stored = {}
    for source in ("t.parquet", "t.arrow", "loose"):
        manifest, shards = tmp_path / f"{source}.jsonl", tmp_path / f"{source}.shards"
        assert index(tmp_path / source, "--out", manifest, "--num-workers", 1) == 0
        assert main(["write", str(manifest), "--out", str(shards), *WRITE]) == 0
        reader = ShardSet(shards)
        samples = {(sample := reader.read(number)).info.key: sample for number in range(len(reader))}
        stored[source] = {key: (sample.video, sample.audio) for key, sample in samples.items()}
        if source != "loose":
            assert samples["a/both_mp4"].info.caption == "a red square ü"
    assert stored["t.parquet"] == stored["t.arrow"]
    assert stored["t.parquet"].items() > stored["loose"].items()
    video, audio = stored["t.parquet"]["seen_mp4"]
    assert video is not None
    assert audio == stored["loose"]["heard_flac"][1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_each_picture_of_a_list_is_a_sample(tmp_path, files, kind):
    pictures = [{"bytes": files[f"{number}.png"], "path": None} for number in range(3)]
    table = hugging_face_table([{"frames": pictures[:2]}, {"frames": []}, {"frames": None}, {"frames": pictures[2:]}])
    (write_parquet if kind == "parquet" else write_arrow_stream)(tmp_path / f"t.{kind}", table)
    assert index(tmp_path / f"t.{kind}", "--out", tmp_path / "c.jsonl", "--num-workers", 1) == 0
    found = rows_of(tmp_path / "c.jsonl")
    assert list(found) == ["t/000000/0", "t/000000/1", "t/000003/0"]
    assert [bytes_of(row, tmp_path)[0] for row in found.values()] == [picture["bytes"] for picture in pictures]
    assert all(row["image"]["format"] == "PNG" for row in found.values())
    assert main(["write", str(tmp_path / "c.jsonl"), "--out", str(tmp_path / "s"), "--num-workers", "1"]) == 0
    assert ShardSet(tmp_path / "s").num_samples == 3


@pytest.mark.slow
def test_media_that_lie_beside_a_table_are_named_by_its_paths(tmp_path, files):
    (tmp_path / "media").mkdir()
    for name in ("both.mp4", "seen.mp4", "heard.flac"):
        (tmp_path / "media" / name).write_bytes(files[name])
    table = hugging_face_table([{"video": {"bytes": None, "path": "media/both.mp4"}, "label": 1}])
    write_parquet(tmp_path / "t.parquet", table)
    pq.write_table(
        pa.table({"video_path": ["media/seen.mp4"], "audio_path": ["media/heard.flac"]}), tmp_path / "u.parquet"
    )
    (tmp_path / "v.csv").write_text("video,sound,caption,color\nmedia/seen.mp4,media/heard.flac,a square,red|big\n")
    (tmp_path / "w.csv").write_text("file_name,label\nmedia/both.mp4,x\n")
    found = {}
    for name in ("t.parquet", "u.parquet", "v.csv", "w.csv"):
        assert index(tmp_path / name, "--out", tmp_path / "c.jsonl", "--num-workers", 1) == 0
        (found[name],) = rows_of(tmp_path / "c.jsonl").values()
        assert "within" not in found[name]
    assert [found[name]["path"] for name in found] == [
        "media/both.mp4",
        "media/seen.mp4",
        "media/seen.mp4",
        "media/both.mp4",
    ]
    assert found["u.parquet"]["sound"] == found["v.csv"]["sound"] == {"path": "media/heard.flac"}
    assert found["u.parquet"]["audio"]["rate_hz"] == 48_000
    assert (found["v.csv"]["caption"], found["v.csv"]["labels"]) == ("a square", {"color": ["red", "big"]})
    assert found["t.parquet"]["labels"] == {"label": ["blue"]}


def test_a_table_from_afar_names_no_file_of_this_machine(tmp_path, files, capsys):
    """Else whoever made the table would choose which private files go into shards."""
    private = tmp_path / "private.flac"
    private.write_bytes(files["heard.flac"])
    named = [str(private), f"file://{private}", f"FILE://{private}", "../private.flac", "media/../../private.flac",
             "media/heard.flac", "memory://elsewhere/heard.flac"]  # fmt: skip
    values = pa.array([{"bytes": None, "path": path} for path in named], pa.struct({"bytes": "binary", "path": "str"}))
    for table in (pa.table({"audio_path": named}), pa.table({"audio": values})):
        written = write_parquet(tmp_path / "t.parquet", table)
        storage.write_bytes("memory://afar/t.parquet", written.read_bytes())
        source = ["memory://afar/t.parquet", "--format", "huggingface", "--no-probe"]
        assert index(*source, "--out", tmp_path / "c.jsonl") == 2
        error = capsys.readouterr().err
        assert "5 of 7 rows cannot be used" in error
        assert error.count("a table from afar may name URLs and files below its own folder") == 3
        assert index(*source, "--out", tmp_path / "c.jsonl", "--skip-bad-rows") == 0
        found = rows_of(tmp_path / "c.jsonl")
        paths = [row["path"] for row in found.values()]
        assert paths == ["memory://afar/media/heard.flac", "memory://elsewhere/heard.flac"]


def test_a_folder_as_the_hub_has_it_gives_its_splits_in_order(tmp_path, files, capsys):
    row = {"audio": {"bytes": files["heard.flac"], "path": None}}
    for name in ("test-00000-of-00001", "train-00001-of-00002", "train-00000-of-00002"):
        write_parquet(tmp_path / "set" / "data" / f"{name}.parquet", hugging_face_table([row, row]))
    assert index(tmp_path / "set", "--out", tmp_path / "c.jsonl", "--no-probe") == 0
    assert list(rows_of(tmp_path / "c.jsonl")) == [
        f"{name}/{row:06d}"
        for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")
        for row in range(2)
    ]
    assert (
        "several splits are listed together: test (2 rows), train (4 rows); --split takes one"
        in capsys.readouterr().out
    )
    assert index(tmp_path / "set", "--out", tmp_path / "c.jsonl", "--no-probe", "--split", "test") == 0
    assert list(rows_of(tmp_path / "c.jsonl")) == ["test-00000-of-00001/000000", "test-00000-of-00001/000001"]
    assert [split_of(name) for name in ("a/dev/x.arrow", "latest.parquet", "train/test.parquet")] == [
        "validation",
        None,
        None,
    ]


def test_columns_labels_and_the_caption_may_be_named(tmp_path, files):
    table = pa.table({
        "left": [files["both.mp4"]], "right": [files["seen.mp4"]], "genre": ["jazz"], "says": ["hello"], "year": [1999],
    })  # fmt: skip
    path = write_parquet(tmp_path / "t.parquet", table)
    options = ["--columns", "right", "--label-fields", "genre,year", "--caption-field", "says"]
    assert index(path, "--out", tmp_path / "c.jsonl", "--num-workers", 1, *options) == 0
    (row,) = rows_of(tmp_path / "c.jsonl").values()
    assert bytes_of(row, tmp_path)[0] == files["seen.mp4"]
    assert (row["labels"], row["caption"]) == ({"genre": ["jazz"], "year": ["1999"]}, "hello")


# --- what cannot be read --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cut_table_a_cut_video_and_a_changed_table_each_have_their_reason(tmp_path, files, rows):
    cut = files["both.mp4"][: len(files["both.mp4"]) // 2]
    table = hugging_face_table([*rows[:2], {"video": {"bytes": cut, "path": "cut.mp4"}}])
    parquet = write_parquet(tmp_path / "t.parquet", table)
    assert index(parquet, "--out", tmp_path / "c.jsonl", "--num-workers", 1) == 0
    errors = {key: row["error"] for key, row in rows_of(tmp_path / "c.jsonl").items()}
    assert {key: error and error["reason"] for key, error in errors.items()} == {
        "a/both_mp4": None, "seen_mp4": None, "cut_mp4": "truncated",
    }  # fmt: skip
    assert "t.parquet: row group 1, row 0, column video.bytes (cut.mp4)" in errors["cut_mp4"]["message"]
    content = parquet.read_bytes()
    for damaged, reason in (
        (write_parquet(tmp_path / "u.parquet", hugging_face_table(rows[2:3])).read_bytes(), "changed_file"),
        (content[:200] + bytes(len(content) - 2000) + content[len(content) - 1800 :], "truncated"),
    ):
        parquet.write_bytes(damaged)
        shards = tmp_path / reason
        assert main(["write", str(tmp_path / "c.jsonl"), "--out", str(shards), *WRITE]) == 1
        assert {skips(shards)[key]["reason"] for key in ("a/both_mp4", "seen_mp4")} == {reason}


def test_an_arrow_stream_that_is_cut_lists_the_rows_before(tmp_path, files):
    row = {"audio": {"bytes": files["heard.flac"], "path": None}}
    path = write_arrow_stream(tmp_path / "t.arrow", hugging_face_table([row] * 4))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - len(files["heard.flac"])])
    assert index(path, "--out", tmp_path / "c.jsonl", "--num-workers", 1) == 0
    found = rows_of(tmp_path / "c.jsonl")
    assert list(found) == ["t/000000", "t/000001", "t/end"]
    assert found["t/end"]["error"]["reason"] == "truncated"
    assert "after 2 rows" in found["t/end"]["error"]["message"]


def test_wrong_tables_are_one_line_that_says_what_to_do(tmp_path, files, rows, capsys):
    write_parquet(tmp_path / "two.parquet", pa.table({"video_a": [b"x"], "video_b": [b"y"]}))
    write_parquet(tmp_path / "none.parquet", pa.table({"n": [1]}))
    whole = write_parquet(tmp_path / "cut.parquet", hugging_face_table(rows))
    whole.write_bytes(whole.read_bytes()[:-50])
    (tmp_path / "cut").mkdir()
    shutil.move(whole, tmp_path / "cut" / "cut.parquet")
    for source, options, message in (
        ("two.parquet", [], "several columns hold media: video_a, video_b; choose one with --columns"),
        ("two.parquet", ["--columns", "video"], "has no column 'video'; it has video_a, video_b"),
        ("none.parquet", ["--format", "huggingface"], "no column holds images; it has n (other)"),
        ("cut", [], "is no readable Parquet file"),
    ):
        assert index(tmp_path / source, "--out", tmp_path / "c.jsonl", *options) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1


def test_rows_that_are_read_in_order_read_a_column_once_and_others_read_it_again(tmp_path, files, monkeypatch):
    from avssl.shards import parquet_cells

    table = hugging_face_table([{"video": {"bytes": bytes([number]) * 10_000, "path": None}} for number in range(8)])
    path = str(write_parquet(tmp_path / "t.parquet", table, rows_per_group=4))
    begun = []
    monkeypatch.setattr(
        parquet_cells, "_Column", lambda *where, kept=parquet_cells._Column: begun.append(where) or kept(*where)
    )
    forget_columns()

    def read(group, row):
        with opened(Sounding(Place(path, Cell("", "video.bytes", group, row)))) as media:
            return media.media[:1]

    assert [read(number // 4, number % 4) for number in range(8)] == [bytes([number]) for number in range(8)]
    assert len(begun) == 2
    assert [read(0, 2), read(0, 3), read(0, 1)] == [b"\2", b"\3", b"\1"]
    assert len(begun) == 4
    with pytest.raises(MediaError, match=r"changed_file.*the row group has 4 rows"):
        read(0, 4)
    with pytest.raises(MediaError, match=r"changed_file.*there is no row group 2"):
        read(2, 0)
    forget_columns()


# --- the library itself ---------------------------------------------------------------------------------------------


def of_the_library(rows):
    """The rows as a Dataset: media columns first as plain ones, because encoding audio would need torchcodec."""
    import datasets

    features = datasets.Features.from_dict({name: FEATURES[name] for name in rows[0]})
    media = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    plain = {name: media if name in ("video", "audio") else feature for name, feature in features.items()}
    return datasets.Dataset.from_list(rows, features=datasets.Features(plain)).cast(features)


@pytest.mark.slow
def test_what_datasets_writes_is_read_as_datasets_reads_it(tmp_path, files, rows):
    import datasets

    whole = [{"video": None, "audio": None} | row for row in rows[:3]]
    data = of_the_library(whole)
    assert json.loads(data.data.table.schema.metadata[b"huggingface"])["info"]["features"] == {
        name: FEATURES[name] for name in whole[0]
    }
    data.to_parquet(tmp_path / "t.parquet")
    datasets.DatasetDict({"train": data, "test": data.select([2, 0])}).save_to_disk(tmp_path / "disk")
    (tmp_path / "disk" / "train" / "cache-1.arrow").write_bytes(b"of another time")
    by_library = {
        "t.parquet": [datasets.load_dataset("parquet", data_files=str(tmp_path / "t.parquet"), split="train",
                                            cache_dir=str(tmp_path / "cache"))],
        "disk": [datasets.load_from_disk(tmp_path / "disk")[split] for split in ("train", "test")],
    }  # fmt: skip
    for source, sets in by_library.items():
        assert index(tmp_path / source, "--out", tmp_path / "c.jsonl", "--num-workers", 1) == 0
        found = list(map(json.loads, (tmp_path / "c.jsonl").read_text().splitlines()))
        expected = [row for data in sets for row in data]
        assert len(found) == len(expected)
        names = sets[0].features["label"].names
        for row, by_datasets in zip(found, expected, strict=True):
            media = [by_datasets[name]["bytes"] for name in ("video", "audio") if by_datasets[name]]
            assert bytes_of(row, tmp_path) == (media[0], media[1] if len(media) > 1 else None)
            assert row["labels"].get("label", []) == [names[by_datasets["label"]]] * (by_datasets["label"] >= 0)
            assert row.get("caption", "") == (by_datasets["caption"] or "")
    assert [split for _, split in tables_of(tmp_path / "disk")] == ["train", "test"]


def test_places_survive_the_manifest_and_wrong_ones_are_refused():
    from avssl.files.checked_json import Fields

    cell = Cell("x.mp4", "video.bytes", 3, 2, 1)
    assert within_of(Fields.of({"within": cell.to_json()}, "row")) == cell
    with pytest.raises(ValueError, match="row_group is -1"):
        within_of(Fields.of({"within": cell.to_json() | {"row_group": -1}}, "row"))
    with pytest.raises(ValueError, match="offset"):
        within_of(Fields.of({"within": {"name": "x", "offset": "0", "bytes": 1}}, "row"))
