"""data_prep.write.folder: the same folder wherever it lies; what cannot be written says why and leaves
what was there."""

import errno
import os
import pickle
import resource
import tempfile
from pathlib import Path

import pytest

from avssl.files import retry, storage
from avssl.files.whole import hashed_file
from data_prep.write import folder as folder_module
from data_prep.write.folder import OutputFolder


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request, tmp_path):
    if request.param == "s3":
        request.getfixturevalue("s3")
    local = request.param == "local"
    return OutputFolder.open(tmp_path / "out" if local else f"{request.param}://bucket/{tmp_path.name}-{os.getpid()}/")


@pytest.mark.quick(2)
def test_files_are_written_found_read_and_removed(folder):
    assert folder.names() == folder.names("sub/") == []
    assert (folder.exists("a"), folder.size("a"), folder.size("sub/a")) == (False, None, None)
    for name in ("b.bin", "a.bin", "a.json", "sub/part-2", "sub/part-1", "sub/other"):
        folder.write_bytes(name, name.encode())
    folder.write_bytes("a.bin", b"again")
    assert (folder.exists("a.bin"), folder.size("a.bin"), folder.read_bytes("a.bin")) == (True, 5, b"again")
    assert folder.names("a") == ["a.bin", "a.json"]
    assert folder.names() == ["a.bin", "a.json", "b.bin", "sub"]
    assert folder.names("sub/part-") == ["sub/part-1", "sub/part-2"]
    folder.remove("a.bin")
    folder.remove("a.bin")
    assert not folder.exists("a.bin")
    with pytest.raises(FileNotFoundError):
        folder.read_bytes("a.bin")


def test_a_file_moves_in_whole_and_comes_out_whole(folder, tmp_path):
    with folder.whole_file("sub/shard.tar") as file:
        file.write(b"content" * 1000)
        assert not folder.exists("sub/shard.tar")
    assert folder.names("sub/") == ["sub/shard.tar"]
    with folder.local_file("sub/shard.tar") as path:
        assert (path.name, path.read_bytes()) == ("shard.tar", b"content" * 1000)
    folder.get_file("sub/shard.tar", tmp_path / "deep" / "copy")
    assert (tmp_path / "deep" / "copy").read_bytes() == b"content" * 1000
    with pytest.raises(FileNotFoundError):
        folder.get_file("nothing", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_folder_is_handed_to_other_processes(folder):
    folder.write_bytes("a", b"1")
    assert pickle.loads(pickle.dumps(folder)).read_bytes("a") == b"1"


def test_only_a_local_folder_has_paths(folder):
    if folder.is_local:
        assert folder.path("a") == Path(str(folder)) / "a"
    else:
        with pytest.raises(ValueError, match="is no local folder"):
            folder.path("a")


@pytest.mark.parametrize("location", ["https://host/out", "pipe:cat", "simplecache::s3://bucket/out", "ftp://host/out"])
def test_folders_that_cannot_be_written_to_are_refused(location):
    with pytest.raises(ValueError, match=r"can only be read|not allowed|not read"):
        OutputFolder.open(location)


def test_a_full_disk_is_one_clear_error_and_leaves_what_was_there(tmp_path):
    """A real limit of the system, on the size of a file: it comes back from the same calls as a full disk does."""
    folder = OutputFolder.open(tmp_path / "out")
    folder.write_bytes("a", b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"out/a: could not be written, the disk .* is full; free space") as error:
            folder.write_bytes("a", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG
    assert "the same command goes on from there" in str(error.value)
    assert folder.read_bytes("a") == b"before"
    assert folder.names() == ["a"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "is full; free space"),
        (errno.EDQUOT, "is full; free space"),
        (errno.EROFS, "read-only file system; choose another --out"),
        (errno.EACCES, "access is refused; choose another --out, or get the right"),
        (errno.EPERM, "access is refused"),
    ],
)
def test_what_the_system_refuses_says_what_to_do(tmp_path, monkeypatch, code, message):
    folder = OutputFolder.open(tmp_path / "out")

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(folder_module, "write_whole", refuse)
    with pytest.raises(OSError, match=message) as error:
        folder.write_bytes("a", b"")
    assert error.value.errno == code
    assert str(error.value).startswith(f"{tmp_path}/out/a: ")


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(OSError, match="a file lies where a folder is needed"):
        OutputFolder.open(tmp_path / "out")


def test_a_store_that_is_away_is_one_clear_error_and_nothing_stays_here(tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = OutputFolder.open("memory://bucket/away")

    class Away:
        def put_file(self, *_):
            raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(storage, "_file_system", lambda protocol: Away())
    message = r"memory://bucket/away/a: could not be written in 5 tries.*reset by peer"
    with pytest.raises(ConnectionError, match=message), folder.whole_file("a") as file:
        file.write(b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_worker_of_a_killed_run_does_not_bring_a_removed_folder_back(tmp_path):
    with pytest.raises(FileNotFoundError), hashed_file(tmp_path / "removed" / "part.tar") as file:
        file.write(b"late")
    assert not (tmp_path / "removed").exists()
