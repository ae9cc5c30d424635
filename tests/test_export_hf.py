"""Shards as Hugging Face data sets: typed columns, whole or absent, the same bytes; our tars in other readers."""

import json
import os
import shutil
import subprocess
import sys
from unittest import mock

import pyarrow.parquet as pq
import pytest

from avssl.exchange.targets import command, hf_columns, hugging_face
from avssl.shards.shard_set import ShardSet
from tests.conftest import ROOT


def write(out, *words):
    command.command([*map(str, words), "--to", "hf", "--out", str(out)])


def columns_of(path):
    return json.loads(pq.read_schema(path).metadata[b"huggingface"])["info"]["features"]


def test_a_data_set_holds_every_member_and_says_its_types(shards, tmp_path, capsys):
    write(tmp_path / "set", f"train={shards['train']}", f"test={shards['test']}", "--license", "CC-BY-4.0")
    assert "24 samples (train 18, test 6) in 2 files" in capsys.readouterr().out
    for split, count in (("train", 18), ("test", 6)):
        path = tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet"
        types = columns_of(path)
        names = sorted({name for folder in shards.values() for name in ShardSet(folder).index.label_names["visual"]})
        assert types["video"] == {"_type": "Video"}
        assert types["audio"] == {"_type": "Audio"}
        assert types["visual"] == {"names": names, "_type": "ClassLabel"}  # the same numbers in both splits
        rows, stored = pq.read_table(path).to_pylist(), ShardSet(shards[split])
        assert len(rows) == count == len(stored)
        for index, row in enumerate(rows):
            sample = stored.read(index)
            assert (row["key"], row["index"]) == (sample.info.key, index)
            assert (row["video"]["bytes"], row["audio"]["bytes"]) == (sample.video, sample.audio)
            assert row["video"]["path"].endswith(".mp4")
            assert [names[row["visual"]]] == sample.info.labels["visual"]
            assert row["av_offset_seconds"] == sample.info.av_offset_seconds
    card = (tmp_path / "set" / "README.md").read_text()
    assert "license: cc-by-4.0\n" in card
    assert "path: data/train-*" in card
    assert str(shards["train"].parent) not in card  # no path of this machine
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [".lock", "README.md", "data", "export.json"]


def infos(labels, **facts):
    """The json of samples with these labels."""
    from avssl.shards.format import SampleInfo

    for index, names in enumerate(labels):
        yield SampleInfo(index, f"k{index}", 1.0, 8.0, 8, 0.0, 0, 0, names, {}, **facts)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([{"c": ["b"]}, {"c": ["a"]}, {"c": ["a"]}, {"c": ["b"]}], {"names": ["a", "b"], "_type": "ClassLabel"}),
        ([{"c": ["a"]}, {}, {"c": ["a"]}, {"c": []}], {"names": ["a"], "_type": "ClassLabel"}),
        ([{"c": ["title one"]}, {"c": ["title two"]}], {"dtype": "string", "_type": "Value"}),
        (
            [{"c": ["a", "b"]}, {"c": ["a"]}, {"c": ["b"]}],
            {"feature": {"names": ["a", "b"], "_type": "ClassLabel"}, "_type": "List"},
        ),
        ([{"c": ["a", "b"]}, {"c": []}], {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"}),
    ],
)
def test_labels_are_classes_where_they_recur(labels, expected):
    contents = hf_columns.Contents()
    for info in infos(labels):
        contents.add("train", info)
    assert contents.features["c"] == expected


def test_names_of_a_field_are_counted_no_further_than_classes_go(monkeypatch):
    monkeypatch.setattr(hf_columns, "MAX_CLASSES", 3)
    contents = hf_columns.Contents()
    for info in infos([{"title": [f"t{number // 2}"]} for number in range(100)]):
        contents.add("train", info)
    assert len(contents.names["title"]) == 4
    assert contents.features["title"]["_type"] == "Value"


def test_a_field_called_like_a_column_is_renamed():
    contents = hf_columns.Contents()
    for info in infos([{"video": ["a"]}, {"video": ["a"]}]):
        contents.add("train", info)
    assert contents.features["video"] == {"_type": "Video"}
    assert contents.features["label_video"]["_type"] == "ClassLabel"


def test_files_are_of_whole_shards_and_row_groups_of_about_their_size(shards, tmp_path):
    stored = ShardSet(shards["train"])  # three shards
    limit = stored.index.shards[0].bytes + 1
    record = hugging_face.write_data_set({"train": stored}, tmp_path, file_bytes=limit, row_group_bytes=30_000)
    assert [item["num_samples"] for item in record["files"]] == stored.shard_sizes
    for item in record["files"]:
        metadata = pq.ParquetFile(tmp_path / item["name"]).metadata
        sizes = [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]
        assert len(sizes) > 1
        assert max(sizes) < 45_000


@pytest.mark.slow
def test_images_are_a_column_of_images(image_shards, tmp_path):
    write(tmp_path / "set", image_shards)
    path = tmp_path / "set" / "data" / "train-00000-of-00001.parquet"
    assert columns_of(path)["image"] == {"_type": "Image"}
    assert {"video", "audio"}.isdisjoint(columns_of(path))
    rows = pq.read_table(path).to_pylist()
    assert rows[0]["image"]["bytes"][:4] == b"\x89PNG"
    assert rows[0]["image"]["path"].endswith(".png")


@pytest.mark.slow
def test_an_interrupted_export_goes_on_and_gives_the_same_bytes(shards, tmp_path):
    """Ended after each of its writes in turn."""
    stored = {"train": ShardSet(shards["train"])}
    limit = stored["train"].index.shards[0].bytes + 1

    def files(folder):
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    hugging_face.write_data_set(stored, tmp_path / "whole", file_bytes=limit)
    whole = files(tmp_path / "whole")
    for number in range(100):
        out = tmp_path / str(number)
        with mock.patch("os.fsync", side_effect=[None] * number + [KeyboardInterrupt] + [None] * 100):
            try:
                hugging_face.write_data_set(stored, out, file_bytes=limit)
                break  # it syncs no more often
            except KeyboardInterrupt:
                assert not (out / "export.json").exists()
        hugging_face.write_data_set(stored, out, file_bytes=limit)
        assert files(out) == whole
    assert number > 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "index.json: is missing, so nowhere is no finished shard folder"),
        (["train", "test"], "two folders would be the split train; write SPLIT=FOLDER for each"),
        (["a=train", "a=test"], "two folders would be the split a"),
        (["train", "--private"], "--private is for --push ORG/NAME"),
        (["train", "--push", "no name"], "'no name' is no name of a repository at the hub; write ORG/NAME"),
        (["train", "--vectors", "feature"], "--to hf has no option --vectors; it has --license, --push, --private"),
        (["train", "--out", "mine"], "mine holds 'file'; choose another --out, or --overwrite"),
        (["train", "--out", "other"], "other holds an export of other shards or settings (splits.train: "),
        (["cut"], "bad_sample: cut/shard-000000.tar, sample 3"),
    ],
)
def test_wrong_input_is_one_line_and_no_data_set(words, message, shards, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        (tmp_path / split).symlink_to(shards[split])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    hugging_face.write_data_set({"train": ShardSet(shards["test"])}, tmp_path / "other")
    shutil.copytree(shards["train"], tmp_path / "cut")
    tar = tmp_path / "cut" / "shard-000000.tar"
    begin = ShardSet(tmp_path / "cut").side_cars()[0].offsets[3]
    with tar.open("r+b") as file:
        file.seek(begin)
        file.write(bytes(512))
    with pytest.raises(SystemExit):
        command.command([*words, "--to", "hf", *([] if "--out" in words else ["--out", "set"])])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "set" / "README.md").exists()
    assert not (tmp_path / "set" / "data").exists()


def test_a_finished_data_set_is_pushed_file_by_file(shards, tmp_path, monkeypatch, capsys):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    api = mock.create_autospec(huggingface_hub.HfApi, instance=True)
    api.upload_folder.return_value = "the commit"
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    write(tmp_path / "set", shards["test"])
    write(tmp_path / "set", shards["test"], "--push", "someone/clips", "--private")  # goes on with what is there
    api.create_repo.assert_called_once_with("someone/clips", private=True, exist_ok=True, repo_type="dataset")
    sent = api.upload_folder.call_args.kwargs
    assert sent["allow_patterns"] == ["README.md", "data/train-00000-of-00001.parquet"]
    assert (sent["repo_type"], sent["repo_id"]) == ("dataset", "someone/clips")
    assert "the commit" in capsys.readouterr().out


def python_with(module, variable):
    """A Python that has a package which the tests' own may lack: this one, or that of an environment variable."""
    import importlib.util

    if importlib.util.find_spec(module):
        return sys.executable
    if python := os.environ.get(variable):
        return python
    return pytest.skip(f"needs {module}: pip install it, or set {variable} to a Python that has it")


def run_with(module, variable, code, *arguments):
    """The lines that code prints in that Python; it sees this project."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    environment["HF_HOME"] = str(arguments[-1])
    process = subprocess.run(
        [python_with(module, variable), "-c", code, *map(str, arguments)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout.splitlines()


@pytest.mark.slow
def test_datasets_loads_an_export_with_typed_columns_that_decode(shards, tmp_path):
    """AVSSL_DATASETS_PYTHON: a Python with datasets and torchcodec, if this one has none."""
    write(tmp_path / "set", f"train={shards['train']}", f"test={shards['test']}")
    code = """
import sys, datasets
loaded = datasets.load_dataset(sys.argv[1])
print({split: len(rows) for split, rows in loaded.items()})
print({name: type(feature).__name__ for name, feature in loaded["train"].features.items()})
row = loaded["test"][2]
print(row["video"].metadata.num_frames, row["num_frames"])
print(tuple(row["audio"].get_all_samples().data.shape), row["num_audio_samples"], row["audio"].metadata.sample_rate)
print(loaded["test"].features["visual"].int2str(row["visual"]))
print(next(iter(datasets.load_dataset(sys.argv[1], split="train", streaming=True)))["key"])
"""
    sizes, types, frames, samples, label, first = run_with(
        "torchcodec", "AVSSL_DATASETS_PYTHON", code, tmp_path / "set", tmp_path
    )
    assert sizes == "{'train': 18, 'test': 6}"
    assert "'video': 'Video', 'audio': 'Audio'" in types
    assert "'visual': 'ClassLabel'" in types
    info = ShardSet(shards["test"]).read_info(2)
    assert frames == f"{info.num_frames} {info.num_frames}"
    assert samples == f"(1, {info.num_audio_samples}) {info.num_audio_samples} {info.audio_rate_hz}"
    assert [label] == info.labels["visual"]
    assert first == ShardSet(shards["train"]).read_info(0).key


@pytest.mark.slow
def test_datasets_reads_our_tars_as_video_and_audio(shards, tmp_path):
    code = """
import sys, datasets
loaded = datasets.load_dataset("webdataset", data_files={"train": sys.argv[1] + "/*.tar"}, split="train")
print(len(loaded), {name: type(loaded.features[name]).__name__ for name in ("video.mp4", "audio.flac")})
print([row["json"]["index"] for row in loaded.select_columns(["json"])])
print(loaded[0]["video.mp4"].metadata.num_frames, loaded[0]["json"]["num_frames"])
"""
    first, indices, frames = run_with("torchcodec", "AVSSL_DATASETS_PYTHON", code, shards["train"], tmp_path)
    assert first == "18 {'video.mp4': 'Video', 'audio.flac': 'Audio'}"
    assert indices == str(list(range(18)))
    assert len(set(frames.split())) == 1


def test_webdataset_itself_iterates_our_tars(shards):
    import webdataset

    urls = sorted(map(str, shards["train"].glob("*.tar")))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode())
    stored = ShardSet(shards["train"])
    assert [sample["__key__"] for sample in samples] == stored.keys
    assert [sample["json"]["index"] for sample in samples] == list(range(18))
    assert samples[3]["video.mp4"] == stored.read(3).video
    assert samples[3]["audio.flac"] == stored.read(3).audio
