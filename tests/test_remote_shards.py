"""Shards of a remote folder: the bytes are those of the local one, the cache keeps its bound, damage is never read."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from avssl import config
from avssl.data.loader import Loader
from avssl.data.loader_config import LoaderConfig
from avssl.embedding.sources import resolve_sources
from avssl.files import retry, storage
from avssl.shards import remote as remote_shards
from avssl.shards.cache import ShardCache, default_cache_dir
from avssl.shards.format import shard_name
from avssl.shards.shard_set import ShardSet
from avssl.transforms.config import AudioViewConfig, VideoViewConfig, ViewsConfig
from avssl.transforms.view_maker import ViewMaker
from avssl.types import MediaError, View
from data_prep.__main__ import main
from tests.conftest import ROOT
from tests.stores import s3_server, web_server
from tests.test_shards import sample, write_folder

NUM_SAMPLES, PER_SHARD = 12, 2
SAMPLES = [sample(i, video=bytes([i]) * 1000) for i in range(NUM_SAMPLES)]


@pytest.fixture(scope="module")
def s3():
    with s3_server() as environment:
        yield environment


@pytest.fixture
def web():
    with web_server() as server:
        yield server


@pytest.fixture(autouse=True)
def fast(monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "BLOCK_BYTES", 1 << 14)
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """A local shard folder: six shards of two samples, of growing size."""
    (tmp_path / "local").mkdir()
    write_folder(tmp_path / "local", SAMPLES, PER_SHARD)
    return tmp_path / "local"


@pytest.fixture
def served(folder, web):
    """The folder at a web server."""
    web.files |= {f"set/{path.name}": path.read_bytes() for path in folder.iterdir()}
    web.location = f"{web.url}/set"
    return web


def put(folder, location):
    for path in folder.iterdir():
        storage.upload(path, storage.join(location, path.name))
    return location


def cached(tmp_path):
    """{file name: bytes on the disk} of the cache's entries."""
    return {path.name: path.stat().st_size for path in (tmp_path / "cache" / "shards").iterdir()}


def shards_cached(tmp_path):
    return sum(name.endswith(".tar") for name in cached(tmp_path))


def read_all(shards):
    return [shards.read(index) for index in range(len(shards))]


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


def test_a_shard_is_fetched_once_for_all_that_share_the_cache(served):
    shards = ShardSet(served.location)
    read_all(shards)
    served.requests.clear()
    copy = pickle.loads(pickle.dumps(shards))
    assert read_all(copy) == read_all(ShardSet(served.location)) == SAMPLES
    assert {name for _, name, _ in served.requests} == {"set/index.json"}


def test_keys_need_no_shard(served):
    assert ShardSet(served.location).keys == [one.info.key for one in SAMPLES]
    assert not any(name.endswith(".tar") for _, name, _ in served.requests)


@pytest.mark.slow
def test_the_cache_stays_below_its_bound_and_drops_what_was_used_longest_ago(served, tmp_path):
    sizes = [record.bytes for record in ShardSet(served.location).index.shards]
    bound = 3 * max(sizes) + 3000
    shards = ShardSet(served.location, cache_bytes=bound)
    for index in range(NUM_SAMPLES):
        shards.read(0)  # in use all the time: stays
        assert shards.read(index) == SAMPLES[index]
        assert sum(cached(tmp_path).values()) <= bound
    assert served.gets(f"set/{shard_name(0)}") == ["bytes=0-10239"]
    served.requests.clear()
    for index in (0, 11):
        shards.read(index)
    assert served.requests == []
    shards.read(2)
    assert len(served.gets(f"set/{shard_name(1)}")) > 0


@pytest.mark.slow
def test_what_another_process_removes_is_read_to_the_end_and_then_closed(served, tmp_path):
    shards = ShardSet(served.location)
    read_all(shards)
    for path in (tmp_path / "cache" / "shards").iterdir():
        path.unlink()
    served.requests.clear()
    assert shards.read(0) == SAMPLES[0]
    assert served.requests == []
    assert len(shards._remote._open) == 1
    assert shards.read(2) == SAMPLES[2]
    assert len(served.gets(f"set/{shard_name(1)}")) > 0


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


@pytest.mark.slow
@pytest.mark.parametrize("damage", [lambda content: content[:-500], lambda content: bytes(len(content))])
def test_a_copy_damaged_on_this_machine_is_fetched_again(damage, served, tmp_path):
    read_all(ShardSet(served.location))
    for path in (tmp_path / "cache" / "shards").glob("*.tar"):
        path.write_bytes(damage(path.read_bytes()))
    assert read_all(ShardSet(served.location)) == SAMPLES


@pytest.mark.slow
def test_a_damaged_side_car_on_this_machine_is_fetched_again(served, tmp_path):
    read_all(ShardSet(served.location))
    for path in (tmp_path / "cache" / "shards").glob("*.json"):
        path.write_bytes(b"{")
    assert read_all(ShardSet(served.location)) == SAMPLES


def test_what_a_killed_process_left_behind_makes_room(served, tmp_path):
    bound = 60_000
    shards = ShardSet(served.location, cache_bytes=bound)
    left = tmp_path / "cache" / "shards" / f"{'0' * 64}.tar.part"
    with left.open("wb") as file:
        file.truncate(bound - 10)
    assert read_all(shards) == SAMPLES
    assert not left.exists()


def test_a_cache_too_small_for_a_shard_is_refused_at_once(served):
    with pytest.raises(ValueError, match=r"data.cache_bytes is 1000; .*has a shard of \d+ bytes"):
        ShardSet(served.location, cache_bytes=1000)
    with pytest.raises(ValueError, match=r"data\.cache_bytes is 0"):
        ShardSet(served.location, cache_bytes=0)


def test_a_cache_folder_that_cannot_be_made_is_refused(served, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match=r"set data\.cache_dir"):
        ShardSet(served.location, cache_dir=tmp_path / "file" / "cache")


def test_a_full_disk_is_said_to_be_full(served, tmp_path, monkeypatch):
    shards = ShardSet(served.location)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "copy_to", full)
    with pytest.raises(ValueError, match=r"cache: the disk of the cache is full; lower data.cache_bytes"):
        shards.read(0)
    assert cached(tmp_path) == {}


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


def test_the_cache_lies_where_the_environment_says_or_in_the_users_folder(monkeypatch, tmp_path):
    assert default_cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("AVSSL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "avssl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "avssl"


def test_the_settings_are_part_of_the_configuration_and_may_change_when_a_run_goes_on():
    cfg = config.parse(config.RunConfig, ["data.shards=s3://bucket/set", "data.cache_dir=/fast", "data.cache_bytes=7"])
    assert (cfg.data.shards, cfg.data.cache_dir, cfg.data.cache_bytes) == ("s3://bucket/set", "/fast", 7)
    assert {"data.cache_dir", "data.cache_bytes"} <= config.CHANGEABLE_KEYS


def test_embedding_takes_an_address_for_shards(served):
    sources = resolve_sources(served.location, ["video"])
    assert isinstance(sources, ShardSet)
    assert len(sources) == NUM_SAMPLES


def _read_thrice(location, bound, start):
    shards = ShardSet(location, cache_bytes=bound)
    for number in range(3 * NUM_SAMPLES):
        index = (start + 5 * number) % NUM_SAMPLES
        assert shards.read(index) == SAMPLES[index]


def readers(location, bound):
    """Two processes that read everything three times, in different orders, at the same time; how they left."""
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=_read_thrice, args=(location, bound, start)) for start in (0, 7)]
    for process in running:
        process.start()
    for process in running:
        process.join(timeout=60)
    return [process.exitcode for process in running]


@pytest.mark.slow
def test_two_processes_share_a_cache_and_fetch_each_shard_once(served):
    assert readers(served.location, 10_000_000) == [0, 0]
    shards = [name for name in served.files if name.endswith(".tar")]
    for name in shards:
        assert len(served.gets(name)) == len(set(served.gets(name))), name


@pytest.mark.slow
def test_two_processes_share_a_cache_that_is_too_small_for_all(served, tmp_path):
    largest = max(len(content) for content in served.files.values())
    bound = 2 * largest + 5000
    worst = []
    served.after_get = lambda _: worst.append(sum(cached(tmp_path).values()))
    assert readers(served.location, bound) == [0, 0]
    assert max(worst) <= bound
    assert sum(cached(tmp_path).values()) <= bound


def test_a_process_killed_while_it_fetches_stops_nobody(served, tmp_path):
    stalled = threading.Event()
    served.after_get = lambda _: stalled.wait(30) if served.gets(f"set/{shard_name(5)}") else None
    process = multiprocessing.get_context("fork").Process(target=ShardSet(served.location).read, args=(11,))
    process.start()
    while not served.gets(f"set/{shard_name(5)}"):
        time.sleep(0.01)
    assert [name for name in cached(tmp_path) if name.endswith(".tar.part")]
    process.kill()
    process.join()
    served.after_get = None
    assert ShardSet(served.location).read(11) == SAMPLES[11]
    assert not [name for name in cached(tmp_path) if name.endswith(".part")]
    stalled.set()


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
    assert main(["verify", location, "--workers", "1"]) == 0
    assert "s3://bucket/verified: ok, 6 samples in 1 shards" in capsys.readouterr().out
    name = storage.join(location, shard_name(0))
    content = storage.read_bytes(name)
    storage.write_bytes(name, content[:3000] + bytes(byte ^ 255 for byte in content[3000:4000]) + content[4000:])
    storage.remove(storage.join(location, "skipped.jsonl"))
    storage.write_bytes(storage.join(location, "shard-000009.tar"), b"")
    assert main(["verify", location, "--workers", "1"]) == 1
    out = capsys.readouterr().out
    assert f"{name}: has sha256" in out
    assert f"{location}/skipped.jsonl: is missing" in out
    assert f"{location}/shard-000009.tar: is not listed in index.json" in out
    assert "/tmp" not in out
    storage.remove(storage.join(location, "index.json"))
    assert main(["verify", location, "--workers", "1"]) == 1
    assert f"{location}/index.json" in capsys.readouterr().out


def test_the_cache_is_picklable(tmp_path):
    cache = ShardCache(tmp_path / "cache", 10)
    assert pickle.loads(pickle.dumps(cache)) == cache
