"""Shards of a remote folder: the bytes are those of the local one, and damage is never read."""

import json
import os
import subprocess
import sys

import pytest
import torch

from avssl.data.loader import Loader
from avssl.data.loader_config import LoaderConfig
from avssl.embedding.sources import resolve_sources
from avssl.files import storage
from avssl.shards import remote as remote_shards
from avssl.shards.format import shard_name
from avssl.shards.shard_set import ShardSet
from avssl.transforms.config import AudioViewConfig, VideoViewConfig, ViewsConfig
from avssl.transforms.view_maker import ViewMaker
from avssl.types import MediaError, View
from data_prep.__main__ import main
from tests.conftest import ROOT
from tests.served_shards import NUM_SAMPLES, SAMPLES, cached, read_all, serve, use_small_blocks, write_samples


@pytest.fixture(autouse=True)
def fast(monkeypatch, tmp_path):
    use_small_blocks(monkeypatch, tmp_path)


@pytest.fixture
def folder(tmp_path):
    return write_samples(tmp_path / "local")


@pytest.fixture
def served(folder, web):
    return serve(folder, web)


def put(folder, location):
    for path in folder.iterdir():
        storage.upload(path, storage.join(location, path.name))
    return location


@pytest.mark.quick(1)
@pytest.mark.parametrize("protocol", ["s3", "memory", "http"])
def test_every_sample_equals_the_local_one(protocol, request, folder, tmp_path):
    if protocol == "s3":
        request.getfixturevalue("s3")
    if protocol == "http":
        location = request.getfixturevalue("served").location
    else:
        location = put(folder, f"{protocol}://bucket/{tmp_path.name}-{os.getpid()}")
    local, remote = ShardSet(folder), ShardSet(location)
    assert read_all(remote) == read_all(local) == SAMPLES
    assert (remote.keys, remote.fingerprint, remote.shard_sizes) == (local.keys, local.fingerprint, local.shard_sizes)
    assert json.loads((remote.folder / "index.json").read_text()) == json.loads((folder / "index.json").read_text())
    remote.close()
    assert remote.read(3) == SAMPLES[3]


def test_a_local_folder_makes_no_cache_and_needs_no_file_system(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_file_system", None)
    assert read_all(ShardSet(folder)) == read_all(ShardSet(f"file://{folder}")) == SAMPLES
    assert not (tmp_path / "cache").exists()


def test_opening_reads_the_index_alone_and_reading_only_what_is_asked_for(served):
    shards = ShardSet(served.location)
    assert {name for _, name, _ in served.requests} == {"set/index.json"}
    shards.read(5)
    assert {name for _, name, _ in served.requests} == {
        f"set/{n}" for n in ("index.json", shard_name(2), "shard-000002.json")
    }


def test_keys_need_no_shard(served):
    assert ShardSet(served.location).keys == [one.info.key for one in SAMPLES]
    assert not any(name.endswith(".tar") for _, name, _ in served.requests)


def test_a_truncated_shard_is_never_read(served, tmp_path, monkeypatch):
    name = f"set/{shard_name(1)}"
    whole, served.files[name] = served.files[name], served.files[name][:-1000]
    shards = ShardSet(served.location)
    with pytest.raises(MediaError, match=rf"{shard_name(1)}: has \d+ bytes; it must have \d+, by index.json") as error:
        shards.read(2)
    assert error.value.reason == "truncated"
    assert cached(tmp_path) == {}
    asked = len(served.requests)
    with pytest.raises(MediaError, match="truncated"):
        shards.read(3)
    assert len(served.requests) == asked  # the failure is remembered, for a while
    served.files[name] = whole
    monkeypatch.setattr(remote_shards, "REMEMBER_FAILURE_SECONDS", 0.0)
    assert shards.read(2) == SAMPLES[2]


def test_a_changed_shard_is_never_read(served, tmp_path):
    name = f"set/{shard_name(1)}"
    served.files[name] = served.files[name].replace(bytes([3]) * 100, bytes([99]) * 100)
    with pytest.raises(MediaError, match=r"has sha256 \w+; index.json says \w+. Restore it") as error:
        ShardSet(served.location).read(2)
    assert error.value.reason == "bad_sample"
    assert cached(tmp_path) == {}
    assert served.gets(name).count("bytes=0-16383") == 2  # it might have been a fault on the way


def test_a_fault_on_the_way_is_fetched_again(served):
    name = f"set/{shard_name(1)}"
    whole, served.files[name] = served.files[name], bytes(len(served.files[name]))

    def repair(_):
        if len(served.gets(name)) == 1:  # of one block
            served.files[name] = whole

    served.after_get = repair
    assert ShardSet(served.location).read(2) == SAMPLES[2]


def test_drops_on_the_way_cost_no_sample(served):
    shards = ShardSet(served.location)
    served.num_drops, served.drop_after_bytes = 4, 5000
    assert read_all(shards) == SAMPLES


def test_a_side_car_that_does_not_fit_is_a_bad_sample(served):
    name = "set/shard-000001.json"
    served.files[name] = served.files[name][:-30]
    with pytest.raises(MediaError, match=r"/set/shard-000001\.json: is not json") as error:
        ShardSet(served.location).read(2)
    assert error.value.reason == "bad_sample"
    served.files[name] = served.files["set/shard-000002.json"]
    with pytest.raises(MediaError, match=r"shard-000001\.json: says .* index\.json says"):
        ShardSet(served.location).read(2)


def test_a_folder_without_index_is_refused_by_name(served):
    del served.files["set/index.json"]
    with pytest.raises(FileNotFoundError, match=r"/set: holds no index\.json.*avssl prep write"):
        ShardSet(served.location)
    served.files["set/index.json"] = b"{"
    with pytest.raises(ValueError, match=rf"{served.location}/index\.json: is not json"):
        ShardSet(served.location)


def test_a_missing_shard_is_a_missing_file_and_a_store_that_is_away_unreachable(served):
    shards = ShardSet(served.location)
    del served.files[f"set/{shard_name(0)}"]
    with pytest.raises(MediaError, match=shard_name(0)) as error:
        shards.read(0)
    assert error.value.reason == "missing_file"
    served.num_failures = 10**6
    with pytest.raises(MediaError, match="in 5 tries") as error:
        shards.read(2)
    assert error.value.reason == "unreachable"
    with pytest.raises(MediaError, match="unreachable"):
        ShardSet(served.location)
    with pytest.raises(MediaError, match="unreachable"):
        _ = shards.keys


@pytest.mark.parametrize("location", ["pipe:cat x", "simplecache::s3://bucket/x", "ftp://host/x"])
def test_other_protocols_are_refused(location):
    with pytest.raises(ValueError, match=r"not allowed|not read"):
        ShardSet(location)


def test_names_in_an_index_cannot_lead_out_of_the_folder(served):
    served.files["set/index.json"] = served.files["set/index.json"].replace(b"shard-000000.tar", b"../000000000.tar")
    with pytest.raises(ValueError, match="must be the name of a shard in the same folder"):
        ShardSet(served.location).read(0)


def test_embedding_takes_an_address_for_shards(served):
    sources = resolve_sources(served.location, ["video"])
    assert isinstance(sources, ShardSet)
    assert len(sources) == NUM_SAMPLES


VIEWS = (View("video", "video"), View("audio", "audio"))
CONFIG = ViewsConfig(
    video=VideoViewConfig(num_frames=4, size_px=24),
    audio=AudioViewConfig(seconds=0.5, window_samples=256, hop_samples=480, num_frames=25),
)


def epoch_of(location, num_workers=0):
    """The batches of an epoch."""
    loader = Loader(
        ShardSet(location),
        LoaderConfig(global_batch_size=4, num_workers=num_workers),
        VIEWS,
        ViewMaker(CONFIG, ["audio", "video"]),
        seed=0,
        device=torch.device("cpu"),
    )
    return loader.epoch(0)


@pytest.mark.slow
def test_an_epoch_from_s3_equals_the_local_one(s3, shards):
    location = put(shards["train"], "s3://bucket/train")
    for left, right in zip(epoch_of(shards["train"]), epoch_of(location), strict=True):
        assert torch.equal(left.index, right.index)
        assert all(torch.equal(left.views[name], right.views[name]) for name in ("video", "audio"))


@pytest.mark.slow
def test_stopping_early_is_quiet(s3, shards):
    """A process of its own, with workers: nothing but what it prints, also not while it ends."""
    location = put(shards["train"], "s3://bucket/quiet")
    code = (
        f"from tests.test_remote_shards import epoch_of; print(next(epoch_of({location!r}, num_workers=1)).index.shape)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "torch.Size([4])\n", "")


@pytest.mark.slow
def test_verify_reads_any_store(s3, shards, capsys, tmp_path):
    location = put(shards["test"], "s3://bucket/verified")
    assert main(["verify", location, "--num-workers", "1"]) == 0
    assert "s3://bucket/verified: ok, 6 samples in 1 shards" in capsys.readouterr().out
    name = storage.join(location, shard_name(0))
    content = storage.read_bytes(name)
    storage.write_bytes(name, content[:3000] + bytes(byte ^ 255 for byte in content[3000:4000]) + content[4000:])
    storage.remove(storage.join(location, "skipped.jsonl"))
    storage.write_bytes(storage.join(location, "shard-000009.tar"), b"")
    assert main(["verify", location, "--num-workers", "1"]) == 1
    out = capsys.readouterr().out
    assert f"{name}: has sha256" in out
    assert f"{location}/skipped.jsonl: is missing" in out
    assert f"{location}/shard-000009.tar: is not listed in index.json" in out
    assert "/tmp" not in out
    storage.remove(storage.join(location, "index.json"))
    assert main(["verify", location, "--num-workers", "1"]) == 1
    assert f"{location}/index.json" in capsys.readouterr().out
