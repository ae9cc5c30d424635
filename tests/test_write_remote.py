"""`write` with everything in S3: list, files and shards. The bytes are those of the local way, also in several goes."""

import pytest

from avssl.files import storage
from avssl.shards.format import dump_json
from data_prep.__main__ import main
from data_prep.write.job import Share
from data_prep.write.run import write_shards
from tests.clips import OPTIONS, digest, make_clip

NAMES = [f"clip_{seed}.mp4" for seed in range(7)]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Seven clips, one absent file, and the shards made of them on the disk."""
    folder = tmp_path_factory.mktemp("remote")
    for seed, name in enumerate(NAMES):
        make_clip(folder / name, seed, seconds=0.5)
    rows = [{"path": name, "key": name[:-4], "labels": {}, "error": None} for name in [*NAMES, "absent.mp4"]]
    (folder / "corpus.jsonl").write_bytes(b"".join(dump_json(row) for row in rows))
    write_shards(folder / "corpus.jsonl", folder / "written", OPTIONS)
    return folder


@pytest.fixture(scope="module")
def bucket(s3, local):
    """The same files below a URL; the manifest's paths are relative to it."""
    for name in [*NAMES, "corpus.jsonl"]:
        storage.upload(local / name, f"s3://bucket/corpus/{name}")
    return "s3://bucket/corpus"


def fetched(location, folder):
    """All files of a remote folder, on the disk."""
    for name, _ in storage.files_below(location):
        storage.download(storage.join(location, name), folder / name)
    return folder


@pytest.mark.slow
def test_list_files_and_shards_in_s3_give_the_bytes_of_the_local_way(bucket, local, tmp_path, capsys):
    options = ["--short-side-px", "48", "--samples-per-shard", "3", "--num-workers", "2"]
    assert main(["write", f"{bucket}/corpus.jsonl", "--out", "s3://bucket/shards", *options]) == 0
    assert "1 skipped: missing_file" in capsys.readouterr().out
    there = digest(fetched("s3://bucket/shards", tmp_path / "shards"))
    here = digest(local / "written")
    assert {**there, "skipped.jsonl": ""} == {**here, "skipped.jsonl": ""}  # it names URLs instead of paths
    assert main(["verify", "s3://bucket/shards"]) == 0


@pytest.mark.slow
def test_shares_and_a_second_go_leave_the_same_objects_and_no_others(bucket, local, tmp_path):
    out = "s3://bucket/shares"
    for number in range(2):
        assert write_shards(f"{bucket}/corpus.jsonl", out, OPTIONS, share=Share(number, 2)) is None
    write_shards(f"{bucket}/corpus.jsonl", out, OPTIONS)
    there = digest(fetched(out, tmp_path / "shards"))
    here = digest(local / "written")
    assert {**there, "skipped.jsonl": ""} == {**here, "skipped.jsonl": ""}


@pytest.mark.slow
def test_a_list_on_the_disk_may_name_files_in_s3(bucket, local, tmp_path):
    rows = [{"path": f"{bucket}/{name}", "key": name[:-4], "labels": {}, "error": None} for name in NAMES]
    (tmp_path / "corpus.jsonl").write_bytes(b"".join(dump_json(row) for row in rows))
    index = write_shards(tmp_path / "corpus.jsonl", tmp_path / "shards", OPTIONS)
    assert (index.num_samples, index.num_skipped) == (7, 0)


@pytest.mark.slow
def test_files_that_cannot_be_reached_are_counted_as_such(s3, tmp_path, monkeypatch):
    monkeypatch.setattr("avssl.files.retry.MAX_TRIES", 1)
    row = {"path": "http://127.0.0.1:9/clip.mp4", "key": "clip", "labels": {}, "error": None}
    (tmp_path / "corpus.jsonl").write_bytes(dump_json(row))
    index = write_shards(tmp_path / "corpus.jsonl", tmp_path / "shards", OPTIONS)
    assert index.skipped_by_reason == {"unreachable": 1}
