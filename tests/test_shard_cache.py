"""The cache of shards from afar: its bound, damage on this machine, and processes that share it."""

import multiprocessing
import pickle
import threading
import time
from pathlib import Path

import pytest

from avssl import config
from avssl.files import storage
from avssl.shards.cache import ShardCache, default_cache_dir
from avssl.shards.format import shard_name
from avssl.shards.shard_set import ShardSet
from tests.served_shards import NUM_SAMPLES, SAMPLES, cached, read_all, serve, use_small_blocks, write_samples


@pytest.fixture(autouse=True)
def fast(monkeypatch, tmp_path):
    use_small_blocks(monkeypatch, tmp_path)


@pytest.fixture
def served(web, tmp_path):
    return serve(write_samples(tmp_path / "local"), web)


def test_a_shard_is_fetched_once_for_all_that_share_the_cache(served):
    shards = ShardSet(served.location)
    read_all(shards)
    served.requests.clear()
    copy = pickle.loads(pickle.dumps(shards))
    assert read_all(copy) == read_all(ShardSet(served.location)) == SAMPLES
    assert {name for _, name, _ in served.requests} == {"set/index.json"}


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


def test_the_cache_is_picklable(tmp_path):
    cache = ShardCache(tmp_path / "cache", 10)
    assert pickle.loads(pickle.dumps(cache)) == cache
