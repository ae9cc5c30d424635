"""avssl.files.storage: any store gives the bytes that were put there, whole or not at all, or says what is wrong."""

import io
import json
import os
import sys

import aiohttp
import botocore.exceptions
import numpy as np
import pytest

from avssl.files import retry, storage
from avssl.types import MediaError
from tests.stores import forget_connections, web_server

BLOCK = 4096


def content_of(num_bytes, seed=0):
    return np.random.default_rng(seed).bytes(num_bytes)


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(storage, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture(params=["local", "file", "memory", "s3"])
def root(request, tmp_path):
    if request.param == "s3":
        request.getfixturevalue("s3")
    folder = f"{tmp_path.name}-{os.getpid()}"
    roots = {"local": tmp_path / "store", "file": f"file://{tmp_path}/store"}
    return roots.get(request.param, f"{request.param}://bucket/{folder}")


@pytest.mark.quick(2)
def test_what_is_written_is_read_back_whole_and_in_parts(root):
    location, content = storage.join(root, "deep/one.bin"), content_of(3 * BLOCK + 5)
    assert not storage.exists(location)
    storage.write_bytes(location, b"before")
    storage.write_bytes(location, content)
    assert storage.exists(location)
    assert storage.size(location) == len(content)
    assert storage.read_bytes(location) == content
    for begin, end in ((0, 1), (7, BLOCK + 9), (BLOCK, None), (len(content) - 3, len(content) + 8), (5, 5), (None, 4)):
        assert storage.read_bytes(location, begin, end) == content[begin:end]
    storage.write_bytes(location, b"")
    assert storage.read_bytes(location) == b""


def test_folders_are_listed_by_name(root):
    for name in ("b.bin", "a.bin", "deep/c.bin", "deep/er/d.bin"):
        storage.write_bytes(storage.join(root, name), name.encode())
    assert storage.names(root) == ["a.bin", "b.bin", "deep"]
    assert storage.files_below(root) == [("a.bin", 5), ("b.bin", 5), ("deep/c.bin", 10), ("deep/er/d.bin", 13)]
    storage.remove(storage.join(root, "a.bin"))
    storage.remove(storage.join(root, "a.bin"))
    assert storage.names(root) == ["b.bin", "deep"]
    for read in (storage.names, storage.files_below, storage.read_bytes, storage.size):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            read(storage.join(root, "nowhere"))


def test_files_go_up_and_come_down_unchanged(root, tmp_path):
    content = content_of(5 * BLOCK + 1)
    (tmp_path / "here").write_bytes(content)
    location = storage.join(root, "a.bin")
    storage.upload(tmp_path / "here", location)
    assert storage.download(location, tmp_path / "folder" / "back") == len(content)
    assert (tmp_path / "folder" / "back").read_bytes() == content
    with storage.local_copy(location) as path:
        assert (path.name, path.read_bytes()) == ("a.bin", content)
    assert path.exists() == (not storage.is_remote(location))
    assert sorted(one.name for one in tmp_path.rglob("*.tmp")) == []


def test_a_download_goes_on_by_range_after_a_drop(web, tmp_path):
    content = content_of(20 * BLOCK)
    web.files["a"], web.num_drops, web.drop_after_bytes = content, 3, BLOCK // 2
    storage.download(f"{web.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == content
    assert web.bytes_sent == len(content) + 3 * (BLOCK // 2)  # nothing twice but what was cut off
    assert web.gets("a").count(f"bytes=0-{BLOCK - 1}") == 4


def test_drops_all_along_the_way_do_not_end_a_download(web, tmp_path, monkeypatch):
    """It is failures in a row that are counted, not all of them."""
    web.files["a"] = content_of(12 * BLOCK)

    def drop_again(num_gets):
        web.num_drops, web.drop_after_bytes = num_gets % 2, 100

    web.after_get = drop_again
    storage.download(f"{web.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == web.files["a"]
    assert len(web.gets("a")) > 2 * retry.MAX_TRIES


def test_a_server_that_ignores_ranges_is_read_in_one_piece(web, tmp_path):
    web.files["a"], web.honours_ranges = content_of(9 * BLOCK + 2), False
    storage.download(f"{web.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == web.files["a"]
    assert web.bytes_sent == len(web.files["a"])
    assert storage.read_bytes(f"{web.url}/a", 10, 20) == web.files["a"][10:20]
    web.num_drops, web.drop_after_bytes = 2, 5 * BLOCK
    storage.download(f"{web.url}/a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == web.files["a"]


def test_a_busy_server_is_asked_again(web):
    web.files["a"], web.num_failures = b"content", 4
    assert storage.read_bytes(f"{web.url}/a") == b"content"


def test_a_server_that_stays_busy_is_an_error_with_the_name_the_tries_and_the_cause(web, tmp_path):
    web.files["a"], web.num_failures = b"content", 10**6
    with pytest.raises(ConnectionError, match=rf"{web.url}/a: could not be looked up in 5 tries, .*503"):
        storage.download(f"{web.url}/a", tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_connection_that_always_drops_leaves_nothing_behind(web, tmp_path):
    web.files["a"], web.num_drops, web.drop_after_bytes = content_of(3 * BLOCK), 10**6, 7
    with pytest.raises(ConnectionError, match="could not be read in 5 tries"):
        storage.download(f"{web.url}/a", tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    assert len(web.gets("a")) == retry.MAX_TRIES


def test_nobody_there_is_an_error_after_all_tries(tmp_path):
    with web_server() as server:
        url = f"{server.url}/a"
    with pytest.raises(ConnectionError, match=r"5 tries.*check the network"):
        storage.read_bytes(url)
    with pytest.raises(ConnectionError):
        storage.exists(url)


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, FileNotFoundError), (410, FileNotFoundError), (401, PermissionError), (403, PermissionError)],
)
def test_what_does_not_pass_is_not_tried_again(web, status, error):
    web.files["a"], web.num_failures, web.fail_status = b"content", 10**6, status
    with pytest.raises(error, match=f"{web.url}/a"):
        storage.read_bytes(f"{web.url}/a")
    assert len(web.requests) == 1


def test_a_file_that_changes_while_it_is_read_is_read_anew(web, tmp_path):
    before, after = content_of(4 * BLOCK, seed=1), content_of(4 * BLOCK, seed=2)
    web.files["a"] = before

    def change(num_gets):
        if num_gets == 2:
            web.files["a"], web.dates["a"] = after, "Fri, 02 Jan 2026 00:00:00 GMT"

    web.after_get = change
    storage.download(f"{web.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == after


def test_a_file_that_becomes_shorter_is_never_taken_for_whole(web, tmp_path):
    web.files["a"] = content_of(4 * BLOCK)

    def cut(num_gets):
        web.files["a"] = web.files["a"][: 2 * BLOCK + 10]

    web.after_get = cut
    with pytest.raises(OSError, match=web.url):
        storage.download(f"{web.url}/a", tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_the_size_that_is_known_beforehand_is_checked(root):
    storage.write_bytes(storage.join(root, "a"), b"12345")
    with pytest.raises(storage.WrongSize, match="has 5 bytes; it must have 6"):
        storage.copy_to(storage.join(root, "a"), io.BytesIO(), num_bytes=6)


@pytest.mark.parametrize(
    "location",
    ["pipe:cat /etc/passwd", "pipe://cat", "simplecache::s3://bucket/a", "file::/etc/passwd", "zip://a::s3://bucket/b",
     "simplecache::/etc/passwd", "ftp://host/a", "sftp://host/a", "github://a:b@/c", "reference://a", "nonsense://a"],
)  # fmt: skip
def test_pipes_chains_and_other_protocols_are_refused(location, tmp_path):
    for use in (storage.is_remote, storage.read_bytes, storage.exists, storage.names, storage.remove, storage.size):
        with pytest.raises(ValueError, match=r"not allowed|not read"):
            use(location)
    with pytest.raises(ValueError, match=r"not allowed|not read"):
        storage.write_bytes(location, b"")


@pytest.mark.parametrize("name", ["../a", "deep/../../a", "/etc/passwd", "s3://bucket/a"])
def test_a_name_cannot_lead_out_of_its_folder(name):
    with pytest.raises(ValueError, match="must lie below its folder"):
        storage.join("s3://bucket/folder", name)


def test_names_are_put_before_the_query_of_an_address():
    assert storage.join("https://host/folder/?signature=1", "a.tar") == "https://host/folder/a.tar?signature=1"


def test_an_address_that_was_made_a_path_is_refused(tmp_path):
    with pytest.raises(ValueError, match="pass it on as text"):
        storage.is_remote(type(tmp_path)("s3://bucket/a"))


def test_secrets_in_an_address_do_not_reach_messages(web):
    url = web.url.replace("//", "//user:password@")
    with pytest.raises(FileNotFoundError) as error:
        storage.read_bytes(f"{url}/a?token=secret")
    assert "password" not in str(error.value)
    assert "secret" not in str(error.value)


def test_web_servers_are_only_read(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    for write in (
        lambda: storage.write_bytes("https://host/a", b""),
        lambda: storage.upload(tmp_path / "a", "https://host/a"),
        lambda: storage.remove("https://host/a"),
    ):
        with pytest.raises(ValueError, match="can only be read"):
            write()


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    monkeypatch.setattr(storage, "_file_systems", {})
    with pytest.raises(ValueError, match=r"s3:// needs the package s3fs.*pip install 'avssl\[s3\]'"):
        storage.read_bytes("s3://bucket/a")


def raised_from(error, cause):
    error.__cause__ = cause
    return error


def client_error(status, code="X"):
    return botocore.exceptions.ClientError(
        {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Get"
    )


def web_error(status):
    return aiohttp.ClientResponseError(None, (), status=status)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionResetError(), "transient"),
        (TimeoutError(), "transient"),
        (aiohttp.ClientPayloadError(), "transient"),
        (aiohttp.ServerDisconnectedError(), "transient"),
        (web_error(500), "transient"),
        (web_error(429), "transient"),
        (web_error(403), "refused"),
        (web_error(416), "other"),
        (FileNotFoundError(), "missing"),
        (raised_from(FileNotFoundError("url"), web_error(503)), "transient"),
        (raised_from(FileNotFoundError("url"), web_error(403)), "refused"),
        (raised_from(FileNotFoundError("url"), web_error(404)), "missing"),
        (raised_from(FileNotFoundError("name"), KeyError("name")), "missing"),
        (raised_from(OSError(5, "?"), client_error(503)), "transient"),
        (raised_from(OSError(5, "?"), client_error(400)), "other"),
        (OSError(16, "Please reduce your request rate"), "transient"),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="x"), "transient"),
        (botocore.exceptions.ReadTimeoutError(endpoint_url="x"), "transient"),
        (json.JSONDecodeError("x", "", 0), "other"),
        (PermissionError(), "refused"),
        (OSError(28, "No space left on device"), "other"),
        (KeyError("x"), "other"),
    ],
    ids=repr,
)
def test_only_what_passes_by_itself_is_tried_again(error, kind):
    assert retry.kind_of(error) == kind


def test_waits_grow_and_are_bounded(monkeypatch):
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.5)
    for num_failures, longest in ((1, 0.5), (2, 1.0), (3, 2.0), (20, 8.0)):
        waits = [retry.wait_seconds(num_failures) for _ in range(50)]
        assert longest / 2 <= min(waits) < max(waits) <= longest


def test_a_failure_is_counted_by_its_reason():
    assert retry.as_media_error(FileNotFoundError("a")).reason == "missing_file"
    assert retry.as_media_error(ConnectionError("a")).reason == "unreachable"
    assert isinstance(retry.as_media_error(PermissionError("a")), MediaError)


def test_programming_errors_are_not_dressed_up():
    def fail():
        raise KeyError("x")

    with pytest.raises(KeyError):
        retry.with_retries(fail, "s3://a/b", "read")


def test_bytes_of_s3_do_not_come_from_an_old_list(s3, tmp_path):
    location = "s3://bucket/changing/a"
    storage.write_bytes(location, b"first")
    assert storage.names("s3://bucket/changing") == ["a"]
    forget_connections()
    storage.write_bytes(location, b"second, longer")
    storage.write_bytes("s3://bucket/changing/b", b"")
    assert storage.read_bytes(location) == b"second, longer"
    assert storage.names("s3://bucket/changing") == ["a", "b"]
