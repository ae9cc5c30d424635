"""Tars and tables in buckets, on the hub and on web servers: the rows and shards of the same files on the disk."""

import json

import pytest

from avssl.files import storage
from avssl.shards.shard_set import ShardSet
from data_prep.__main__ import main
from tests.clips import make_clip
from tests.conftest import run_python
from tests.foreign import hugging_face_table, rows_of, write_arrow_stream, write_parquet, write_tar
from tests.hub import hub_server
from tests.stores import s3_server, web_server

WRITE = ["--short-side-px", "48", "--num-workers", "1"]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A folder of a tar, a Parquet and an Arrow file of the same two clips, with a manifest and shards of each."""
    folder = tmp_path_factory.mktemp("local")
    for number in range(2):
        make_clip(folder / f"{number}.mp4", seed=number)
    clips = [(folder / f"{number}.mp4").read_bytes() for number in range(2)]
    write_tar(
        folder / "tar" / "x.tar", [{"__key__": f"c{n}", "mp4": clip, "txt": b"hi"} for n, clip in enumerate(clips)]
    )
    rows = [
        {"video": {"bytes": clip, "path": f"c{n}.mp4"}, "label": n, "caption": "hi"} for n, clip in enumerate(clips)
    ]
    write_parquet(folder / "parquet" / "data" / "train-0.parquet", hugging_face_table(rows))
    write_arrow_stream(folder / "arrow" / "data.arrow", hugging_face_table(rows))
    for kind in ("tar", "parquet", "arrow"):
        assert main(["index", str(folder / kind), "--out", str(folder / f"{kind}.jsonl"), "--num-workers", "1"]) == 0
        assert main(["write", str(folder / f"{kind}.jsonl"), "--out", str(folder / f"{kind}.shards"), *WRITE]) == 0
    return folder


def media_of(shards):
    reader = ShardSet(shards)
    return [(sample.video, sample.audio, sample.info.caption) for sample in map(reader.read, range(len(reader)))]


def same_but_for_paths(far, near):
    """The rows of two manifests without where their files lie."""
    return [
        [{name: value for name, value in row.items() if name != "path"} for row in rows_of(manifest).values()]
        for manifest in (far, near)
    ]


@pytest.mark.slow
def test_members_of_a_tar_on_a_web_server_are_fetched_by_range_and_nothing_else(local, tmp_path):
    with web_server() as web:
        web.files["x.tar"] = (local / "tar" / "x.tar").read_bytes()
        assert main(["index", f"{web.url}/x.tar", "--out", str(tmp_path / "c.jsonl"), "--num-workers", "1"]) == 0
        far, near = same_but_for_paths(tmp_path / "c.jsonl", local / "tar.jsonl")
        assert far == near
        listing = len(web.gets("x.tar"))
        assert main(["write", str(tmp_path / "c.jsonl"), "--out", str(tmp_path / "shards"), *WRITE]) == 0
        ranges = web.gets("x.tar")[listing:]
    wanted = [(row["within"]["offset"], row["within"]["bytes"]) for row in rows_of(tmp_path / "c.jsonl").values()]
    assert sorted(ranges) == sorted(f"bytes={begin}-{begin + size - 1}" for begin, size in wanted)
    assert media_of(tmp_path / "shards") == media_of(local / "tar.shards")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "parquet", "arrow"])
def test_a_folder_in_s3_gives_the_rows_and_shards_of_the_folder_on_the_disk(local, tmp_path, kind):
    with s3_server():
        for name, _ in storage.files_below(local / kind):
            storage.upload(local / kind / name, f"s3://bucket/{kind}/{name}")
        assert main(["index", f"s3://bucket/{kind}", "--out", str(tmp_path / "c.jsonl"), "--num-workers", "1"]) == 0
        far, near = same_but_for_paths(tmp_path / "c.jsonl", local / f"{kind}.jsonl")
        assert far == near
        assert main(["write", str(tmp_path / "c.jsonl"), "--out", str(tmp_path / "shards"), *WRITE]) == 0
        storage.remove(f"s3://bucket/{kind}/{storage.files_below(local / kind)[0][0]}")
        assert main(["write", str(tmp_path / "c.jsonl"), "--out", str(tmp_path / "gone"), *WRITE]) == 1
    assert media_of(tmp_path / "shards") == media_of(local / f"{kind}.shards")
    assert json.loads((tmp_path / "gone" / "index.json").read_text())["skipped_by_reason"] == {"missing_file": 2}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_data_set_of_the_hub_is_read_by_its_name(local, tmp_path, kind):
    files = {"README.md": b"a card"} | {
        name: (local / kind / name).read_bytes() for name, _ in storage.files_below(local / kind)
    }
    with hub_server("org/name", files) as (url, asked):
        options = {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0"}
        source, manifest = "hf://datasets/org/name", tmp_path / "c.jsonl"
        run_python("-m", "data_prep", "index", source, "--out", manifest, "--num-workers", "1", **options)
        far, near = same_but_for_paths(manifest, local / f"{kind}.jsonl")
        assert far == near
        run_python("-m", "data_prep", "write", manifest, "--out", tmp_path / "shards", *WRITE, **options)
        reads = [asked_range for _, path, asked_range in asked if "/resolve/" in path]
    assert reads
    assert all(reads)  # by range, never a whole file
    assert media_of(tmp_path / "shards") == media_of(local / f"{kind}.shards")
