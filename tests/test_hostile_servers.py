"""A web server that is not to be trusted: no body without end, none that inflates, no other host, no credentials."""

import gzip
import itertools
import json
import time
import tracemalloc

import fsspec
import pytest

from avssl.files import retry, storage, web_files
from avssl.shards.shard_set import ShardSet
from avssl.types import MediaError
from tests.stores import forget_connections, web_server
from tests.test_shards import sample, write_folder

ZEROS = bytes(1 << 16)


@pytest.fixture(autouse=True)
def fast(monkeypatch, tmp_path):
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(retry, "MAX_TRIES", 2)
    monkeypatch.setattr(web_files, "MAX_UNSTATED_BYTES", 1 << 20)
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(web_files.HOSTS_VARIABLE, raising=False)
    forget_connections()
    yield
    forget_connections()


def endless():
    """4 GiB of zeros, if anybody takes them."""
    return itertools.repeat(ZEROS, 1 << 16)


BOMB = gzip.compress(bytes(64 << 20))


def bomb():
    return [BOMB]


def serve(folder, web):
    write_folder(folder, [sample(i, video=bytes([i]) * 1000) for i in range(2)], 2)
    web.files |= {f"set/{path.name}": path.read_bytes() for path in folder.iterdir()}
    return f"{web.url}/set"


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["shard-000000.tar", "shard-000000.json"])
@pytest.mark.parametrize("body", [({}, endless), ({"Content-Encoding": "gzip"}, bomb)], ids=["endless", "bomb"])
def test_a_shard_or_side_car_without_end_is_given_up_after_as_much_as_it_may_have(name, body, web, tmp_path):
    location = serve(tmp_path, web)
    shards = ShardSet(location)
    web.bodies[f"set/{name}"] = body
    tracemalloc.start()
    with pytest.raises(MediaError) as caught:
        shards.read(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.reason in ("truncated", "unreachable")
    assert web.bytes_sent < 64 << 20
    assert peak < 48 << 20


@pytest.mark.parametrize("body", [({}, endless), ({"Content-Encoding": "gzip"}, bomb)], ids=["endless", "bomb"])
def test_an_index_or_a_file_of_untold_size_without_end_is_given_up(body, web, tmp_path):
    web.bodies["set/index.json"] = web.bodies["clip.mp4"] = body
    with pytest.raises(MediaError, match=r"unreachable.*index\.json.*more than"):
        ShardSet(f"{web.url}/set")
    with pytest.raises(OSError, match="more than"):
        storage.download(f"{web.url}/clip.mp4", tmp_path / "clip.mp4")
    assert not (tmp_path / "clip.mp4").exists()
    assert web.bytes_sent < 128 << 20


def test_a_body_that_trickles_is_given_up(web, monkeypatch):
    monkeypatch.setattr(web_files, "STALL_SECONDS", 0.2)
    monkeypatch.setattr(web_files, "LEAST_BYTES_PER_SECOND", 1000)

    def trickle():
        for _ in range(200):
            yield b"x"
            time.sleep(0.05)

    web.bodies["slow"] = ({}, trickle)
    with pytest.raises(ConnectionError, match="too slow"):
        storage.read_bytes(f"{web.url}/slow")
    assert web.bytes_sent < 100


def test_a_redirect_to_another_host_is_refused_with_the_key_that_allows_it(web, monkeypatch):
    with web_server() as other:
        other.files["there"] = b"content"
        web.redirects = {"here": f"{other.url}/there", "round": "/round", "file": "file:///etc/passwd"}
        for read in (storage.read_bytes, storage.size):
            with pytest.raises(OSError, match=r"data\.redirect_hosts=\[127\.0\.0\.1\].*--redirect-host"):
                read(f"{web.url}/here")
        assert other.requests == []
        monkeypatch.setenv(web_files.HOSTS_VARIABLE, "")
        storage.allow_redirects(["127.0.0.1"])
        assert storage.read_bytes(f"{web.url}/here") == b"content"
        assert storage.size(f"{web.url}/here") == 7
        for name in ("round", "file"):
            with pytest.raises(OSError, match="sends on"):
                storage.read_bytes(f"{web.url}/{name}")


def test_a_redirect_on_the_same_server_is_followed(web):
    web.files["new"] = b"content"
    web.redirects["old"] = "/new"
    assert storage.read_bytes(f"{web.url}/old") == b"content"


def test_credentials_do_not_follow_a_redirect(web, monkeypatch):
    secret = {"headers": {"X-Token": "secret", "Cookie": "a=secret"}}
    monkeypatch.setitem(fsspec.config.conf, "http", {"client_kwargs": secret, "headers": {"X-Other": "secret"}})
    monkeypatch.setenv(web_files.HOSTS_VARIABLE, "127.0.0.1")
    forget_connections()
    with web_server() as other:
        other.files["there"] = b"content"
        web.redirects["here"] = f"{other.url}/there"
        assert storage.read_bytes(web.url.replace("//", "//user:secret@") + "/here") == b"content"
        assert "secret" in json.dumps(web.headers)
        assert "secret" not in json.dumps(other.headers)
        assert "Authorization" not in other.headers[0]


def test_the_bound_of_a_range_is_the_range(web):
    web.files["file"] = bytes(range(256)) * 1000
    assert storage.read_bytes(f"{web.url}/file", 5, 300) == web.files["file"][5:300]
    web.honours_ranges = False
    assert storage.read_bytes(f"{web.url}/file", 5, 300) == web.files["file"][5:300]
    assert storage.BLOCK_BYTES == 8 << 20
