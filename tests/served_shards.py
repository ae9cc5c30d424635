"""Twelve made-up samples as shards at a web server: for the tests of shards from afar and of their cache."""

from avssl.files import retry, storage
from tests.test_shards import sample, write_folder

NUM_SAMPLES, PER_SHARD = 12, 2
SAMPLES = [sample(i, video=bytes([i]) * 1000) for i in range(NUM_SAMPLES)]


def use_small_blocks(monkeypatch, tmp_path):
    """Blocks of a fetch are smaller than a shard, tries follow each other at once, the cache is of this test alone."""
    monkeypatch.setattr(storage, "BLOCK_BYTES", 1 << 14)
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))


def write_samples(folder):
    """A local shard folder: six shards of two samples, of growing size."""
    folder.mkdir()
    write_folder(folder, SAMPLES, PER_SHARD)
    return folder


def serve(folder, web):
    """The web server, with the folder at its `location`."""
    web.files |= {f"set/{path.name}": path.read_bytes() for path in folder.iterdir()}
    web.location = f"{web.url}/set"
    return web


def cached(tmp_path):
    """{file name: bytes on the disk} of the cache's entries."""
    return {path.name: path.stat().st_size for path in (tmp_path / "cache" / "shards").iterdir()}


def read_all(shards):
    return [shards.read(index) for index in range(len(shards))]
