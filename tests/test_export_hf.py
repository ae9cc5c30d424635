"""Shards as Hugging Face data sets: typed columns, whole or absent, the same bytes; our tars in other readers."""

import json
import shutil
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pyarrow.parquet as pq
import pytest
import yaml

from avssl.exchange.targets import command, hf_card, hf_columns, hugging_face
from avssl.shards.shard_set import ShardSet
from tests.other_pythons import printed_by


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


def test_captions_are_a_column_where_any_sample_has_one(shards):
    contents = hf_columns.Contents()
    for info in infos([{}, {}]):
        contents.add("train", info)
    assert "caption" not in contents.features
    contents = hf_columns.Contents()
    for info in infos([{}], caption="a dog barks"):
        contents.add("train", info)
    assert contents.features["caption"] == {"dtype": "string", "_type": "Value"}
    sample = ShardSet(shards["test"]).read(0)
    rows = [contents.row(replace(sample, info=replace(sample.info, caption=text))) for text in ("a dog barks", "")]
    assert [row["caption"] for row in rows] == ["a dog barks", None]


def test_a_field_called_like_a_column_is_renamed():
    contents = hf_columns.Contents()
    for info in infos([{"video": ["a"]}, {"video": ["a"]}]):
        contents.add("train", info)
    assert contents.features["video"] == {"_type": "Video"}
    assert contents.features["label_video"]["_type"] == "ClassLabel"


def test_no_label_field_takes_the_column_of_another(shards, tmp_path):
    contents = hf_columns.Contents()
    labels = {"key": ["a"], "label_key": ["b"]}
    for info in infos([labels, labels]):
        contents.add("train", info)
    sample = ShardSet(shards["test"]).read(0)
    row = contents.row(replace(sample, info=replace(sample.info, labels=labels)))
    named = {name: feature["names"][row[name]] for name, feature in contents.features.items() if "names" in feature}
    assert sorted(named.values()) == ["a", "b"]
    record = {"features": contents.features, "splits": {"train": {"num_samples": 2, "seconds": 2.0, "with": {}}}}
    text = hf_card.card("title", record | {"settings": {"license": ""}}, contents.names, {})
    for name, value in named.items():
        field = next(field for field, names in labels.items() if names == [value])
        assert f"| `{name}` | `ClassLabel(1 names)` | label field {field} |" in text
        assert f"- `{name}`: {value} (2)" in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [("Clips \U0001f3ac", "Clips \U0001f3ac"), ('"a": {\u2028\x9f\ud800', '"a": {\\u2028\\x9f\\ud800')],
)
def test_the_header_of_a_card_is_yaml_of_the_text_itself(text, shown):
    key = {"dtype": "string", "_type": "Value"}
    record = {"features": {"key": key}, "splits": {"train": {"num_samples": 2, "seconds": 2.0, "with": {}}}}
    header = hf_card.card(text, record | {"settings": {"license": text}}, {}, {}).split("---\n")[1]
    read = yaml.safe_load(header.encode())
    assert (read["pretty_name"], read["license"]) == (shown, shown.lower())


@pytest.mark.parametrize("text", ["no", "yes", "null", "y", "1.0", "2024_01", "mit"])
def test_a_license_and_a_split_are_read_as_the_words_that_they_are(text):
    key = {"dtype": "string", "_type": "Value"}
    record = {"features": {"key": key}, "splits": {text: {"num_samples": 2, "seconds": 2.0, "with": {}}}}
    header = hf_card.card("title", record | {"settings": {"license": text}}, {}, {}).split("---\n")[1]
    read = yaml.safe_load(header)
    assert [read["license"], read["configs"][0]["data_files"][0]["split"]] == [text, text]
    assert ('"' in header.partition("license: ")[2].partition("\n")[0]) == (text != "mit")


def test_files_are_of_whole_shards_and_row_groups_of_about_their_size(shards, tmp_path):
    stored = ShardSet(shards["train"])  # three shards
    limit = stored.index.shards[0].bytes + 1
    limit_of_groups = 100_000
    record = hugging_face.write_data_set({"train": stored}, tmp_path, file_bytes=limit, row_group_bytes=limit_of_groups)
    assert [item["num_samples"] for item in record["files"]] == stored.shard_sizes
    for item in record["files"]:
        with closing(pq.ParquetFile(tmp_path / item["name"])) as file:
            groups = [file.read_row_group(number).to_pylist() for number in range(file.num_row_groups)]
        sizes = [[len(row["video"]["bytes"]) + len(row["audio"]["bytes"]) for row in group] for group in groups]
        assert len(sizes) > 1
        assert all(sum(group) <= limit_of_groups for group in sizes)
        assert all(sum(group) + following[0] > limit_of_groups for group, following in pairwise(sizes))


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
def test_an_interrupted_export_goes_on_and_gives_the_same_bytes(shards, tmp_path, request):
    """Ended after each of its writes in turn."""
    stored = {"train": ShardSet(shards["train"])}
    request.addfinalizer(stored["train"].close)
    limit = stored["train"].index.shards[0].bytes + 1

    def files(folder):
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    hugging_face.write_data_set(stored, tmp_path / "whole" / "set", file_bytes=limit)
    whole = files(tmp_path / "whole" / "set")
    for number in range(100):
        out = tmp_path / str(number) / "set"
        with mock.patch("os.fsync", side_effect=[None] * number + [KeyboardInterrupt] + [None] * 100):
            try:
                hugging_face.write_data_set(stored, out, file_bytes=limit)
                break  # it syncs no more often
            except KeyboardInterrupt:
                assert not (out / "data").exists() or len(list((out / "data").iterdir())) == 3
        hugging_face.write_data_set(stored, out, file_bytes=limit)
        assert files(out) == whole
    assert number > 12


@pytest.mark.parametrize("killed_at", range(5))
def test_an_overwriting_export_that_was_killed_while_it_removed_is_repeated(killed_at, shards, tmp_path, monkeypatch):
    """Killed in the middle of each removal in turn: of a folder one of its files is gone then."""
    stored = {"train": ShardSet(shards["test"])}
    hugging_face.write_data_set(stored, tmp_path / "set", license="mit")
    unlink, rmtree, removals = Path.unlink, shutil.rmtree, iter(range(100))

    def dying(remove, path, **options):
        if str(path).startswith(str(tmp_path / "set")) and next(removals) == killed_at:
            for below in [below for below in Path(path).rglob("*") if below.is_file()][:1]:
                unlink(below)
            raise KeyboardInterrupt
        remove(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", lambda path, **options: dying(unlink, path, **options))
        patched.setattr(shutil, "rmtree", lambda path, **options: dying(rmtree, path, **options))
        with pytest.raises(KeyboardInterrupt):
            hugging_face.write_data_set(stored, tmp_path / "set", overwrite=True)
    assert killed_at == 0 or not (tmp_path / "set" / "export.json").exists()
    record = hugging_face.write_data_set(stored, tmp_path / "set", overwrite=True)
    assert record["settings"]["license"] == ""
    assert all((tmp_path / "set" / item["name"]).is_file() for item in record["files"])


def test_what_is_left_of_a_removed_beginning_is_not_gone_on_with(shards, tmp_path):
    (tmp_path / ".progress").mkdir()
    (tmp_path / ".progress" / "train-00000.json").write_text('{"name": "data/gone.parquet", "bytes": 1}')
    record = hugging_face.write_data_set({"train": ShardSet(shards["test"])}, tmp_path)
    assert [item["name"] for item in record["files"]] == ["data/train-00000-of-00001.parquet"]


def test_what_an_embedding_has_begun_is_not_overwritten(shards, tmp_path):
    (tmp_path / ".progress").mkdir()
    (tmp_path / ".progress" / "settings.json").write_text('{"weights": "w"}')
    with pytest.raises(ValueError, match=r"settings"):
        hugging_face.write_data_set({"train": ShardSet(shards["test"])}, tmp_path, overwrite=True)
    assert (tmp_path / ".progress" / "settings.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "index.json: is missing, so nowhere is no finished shard folder"),
        (["train", "test"], "two folders would be the split train; write SPLIT=FOLDER for each"),
        (["a=train", "a=test"], "two folders would be the split a"),
        (["train", "--private"], "--private is for --push ORG/NAME"),
        (["train", "--push", "no name"], "'no name' is no name of a repository at the hub; write ORG/NAME"),
        (["train", "--vectors", "feature"], "--to hf has no option --vectors; it has --license, --push, --private"),
        (["train", "--out", "mine"], "mine holds 'file', which is of no export; choose another --out"),
        (["train", "--out", "mine", "--overwrite"], "mine holds 'file', which is of no export; choose another --out"),
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


def test_a_push_removes_the_data_of_an_earlier_one_in_its_commit(shards, tmp_path, monkeypatch):
    """Through the library's own upload_folder: of more files, and of a split that is gone; all else stays."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.hf_api.is_xet_available", lambda: False, raising=False)  # one commit
    earlier = [f"data/train-0000{number}-of-00002.parquet" for number in range(2)]
    earlier += ["data/gone-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"]
    commits = []

    class Hub(huggingface_hub.HfApi):
        def create_repo(self, *arguments, **options):
            """It is there."""

        def _validate_yaml(self, *arguments, **options):
            """It is asked of the hub."""

        def list_repo_files(self, *arguments, **options):
            return [*earlier, ".gitattributes", "README.md", "data/notes.csv", "train.parquet"]

        def create_commit(self, *arguments, operations, **options):
            commits.append(
                [(type(one).__name__.removeprefix("CommitOperation"), one.path_in_repo) for one in operations]
            )
            return huggingface_hub.CommitInfo(
                commit_url="https://huggingface.co/datasets/someone/clips/commit/1",
                commit_message="",
                commit_description="",
                oid="1",
            )

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    write(tmp_path / "set", f"test={shards['test']}", "--push", "someone/clips")
    removed = [("Delete", name) for name in earlier[:3]]
    assert [sorted(commit) for commit in commits] == [sorted([("Add", "README.md"), ("Add", earlier[3]), *removed])]


DATASETS = ("torchcodec", "AVSSL_DATASETS_PYTHON")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@pytest.mark.slow
def test_datasets_loads_an_export_with_typed_columns_that_decode(shards, tmp_path):
    """Run by AVSSL_DATASETS_PYTHON: datasets and torchcodec."""
    write(tmp_path / "set", f"train={shards['train']}", f"test={shards['test']}")
    code = """
import json, sys, datasets
loaded = datasets.load_dataset(sys.argv[1])
row = loaded["test"][2]
print(json.dumps({
    "sizes": {split: len(rows) for split, rows in loaded.items()},
    "types": {name: type(feature).__name__ for name, feature in loaded["train"].features.items()},
    "num_frames": row["video"].metadata.num_frames,
    "waveform": list(row["audio"].get_all_samples().data.shape),
    "rate_hz": row["audio"].metadata.sample_rate,
    "visual": loaded["test"].features["visual"].int2str(row["visual"]),
    "first": next(iter(datasets.load_dataset(sys.argv[1], split="train", streaming=True)))["key"],
}))
"""
    told = printed_by(*DATASETS, code, tmp_path / "set", HF_HOME=str(tmp_path / "cache"), **OFFLINE)
    info = ShardSet(shards["test"]).read_info(2)
    types = told.pop("types")
    assert (types["video"], types["audio"], types["visual"]) == ("Video", "Audio", "ClassLabel")
    assert told == {
        "sizes": {"train": 18, "test": 6}, "num_frames": info.num_frames, "waveform": [1, info.num_audio_samples],
        "rate_hz": info.audio_rate_hz, "visual": info.labels["visual"][0],
        "first": ShardSet(shards["train"]).read_info(0).key,
    }  # fmt: skip


@pytest.mark.slow
def test_datasets_reads_our_tars_as_video_and_audio(shards, tmp_path):
    code = """
import json, sys, datasets
loaded = datasets.load_dataset("webdataset", data_files={"train": sys.argv[1] + "/*.tar"}, split="train")
print(json.dumps({
    "types": {name: type(loaded.features[name]).__name__ for name in ("video.mp4", "audio.flac")},
    "indices": [row["json"]["index"] for row in loaded.select_columns(["json"])],
    "num_frames": loaded[0]["video.mp4"].metadata.num_frames,
}))
"""
    told = printed_by(*DATASETS, code, shards["train"], HF_HOME=str(tmp_path), **OFFLINE)
    assert told == {
        "types": {"video.mp4": "Video", "audio.flac": "Audio"}, "indices": list(range(18)),
        "num_frames": ShardSet(shards["train"]).read_info(0).num_frames,
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves files to be closed later
def test_webdataset_itself_iterates_our_tars(shards):
    import webdataset

    urls = sorted(map(str, shards["train"].glob("*.tar")))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode())
    stored = ShardSet(shards["train"])
    assert [sample["__key__"] for sample in samples] == stored.keys
    assert [sample["json"]["index"] for sample in samples] == list(range(18))
    assert samples[3]["video.mp4"] == stored.read(3).video
    assert samples[3]["audio.flac"] == stored.read(3).audio
