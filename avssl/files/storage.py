"""Files anywhere: a local path, or a URL of s3://, gs://, hf://, http(s):// or memory://.

A location is text: a path, or PROTOCOL://... . Remote ones go through fsspec, which only this file uses; local ones do
not. Transient failures (a dropped connection, a timeout, a status of 5xx) are tried again with growing pauses
(retry.py); downloads go on where they stopped, a range of BLOCK_BYTES at a time, and their length is checked. All
functions raise FileNotFoundError, PermissionError, ConnectionError (all tries failed) or another OSError that names the
location, and ValueError for a location that is not allowed.

Credentials and endpoints are those of the library of each protocol: from the environment, its files, or the
configuration of fsspec.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from avssl.files.location import READ_ONLY, REMOTE, Location, is_remote, join, local_path, protocol_of, redacted
from avssl.files.retry import MAX_TRIES, with_retries
from avssl.files.scratch import temporary_folder
from avssl.files.whole import whole_file

__all__ = [
    "Facts", "Location", "WrongSize", "allow_redirects", "copy_range", "copy_to", "download", "exists", "facts",
    "files_below", "is_remote", "join", "local_copy", "local_path", "names", "protocol_of", "read_bytes", "read_range",
    "redacted", "remove", "size", "upload", "write_bytes",
]  # fmt: skip


MAX_BYTES_IN_MEMORY = 1 << 30
BLOCK_BYTES = 8 << 20
_file_systems: dict[tuple[int, str], Any] = {}  # by process and protocol


class Facts(NamedTuple):
    """Facts about an object of a store. num_bytes: None if unknown. version: changes when the content does."""

    num_bytes: int | None
    version: str
    is_folder: bool


class WrongSize(OSError):
    """A file of another size than it must have. num_bytes: its actual size."""

    def __init__(self, location: str, num_bytes: int, expected: int) -> None:
        super().__init__(f"{redacted(location)}: has {num_bytes} bytes; it must have {expected}")
        self.num_bytes, self._given = num_bytes, (redacted(location), num_bytes, expected)

    def __reduce__(self) -> tuple[type[WrongSize], tuple[str, int, int]]:
        """From another process it comes with what it says; its own arguments are not those of OSError."""
        return type(self), self._given


class WrongLength(ConnectionError):
    """The store sent another number of bytes than were requested."""


def facts(location: Location) -> Facts:
    """Size and version of a file or folder."""
    text = os.fspath(location)
    if not is_remote(location):
        status = local_path(location).stat()
        return Facts(status.st_size, str(status.st_mtime_ns), local_path(location).is_dir())
    info = _on_store(text, "looked up", lambda files: files.info(text))
    # Each server behind one name may give another ETag; the date is that of the file.
    tags = () if protocol_of(text) in READ_ONLY else ("ETag", "etag", "generation", "blob_id")
    dates = ("LastModified", "Last-Modified", "last_modified", "created", "updated", "mtime")
    version = [str(info[name]) for name in (*tags, *dates) if name in info]
    num_bytes = info.get("size")
    return Facts(None if num_bytes is None else int(num_bytes), " ".join(version), info.get("type") == "directory")


def exists(location: Location) -> bool:
    """Whether there is such a file or folder; an error if the store cannot tell."""
    with suppress(FileNotFoundError, NotADirectoryError):
        facts(location)
        return True
    return False


def size(location: Location) -> int:
    """The size of a file in bytes. OSError if the server does not tell it."""
    num_bytes = facts(location).num_bytes
    if num_bytes is None:
        raise OSError(f"{redacted(os.fspath(location))}: the server does not tell its size")
    return num_bytes


def names(location: Location) -> list[str]:
    """Sorted names of the files and folders directly in a folder. FileNotFoundError if there is no such folder."""
    text = os.fspath(location)
    if not is_remote(location):
        return sorted(os.listdir(local_path(location)))  # noqa: PTH208  (names are needed)
    paths = _on_store(text, "listed", lambda files: files.ls(text, detail=False))
    return sorted({name for path in paths if (name := str(path).rstrip("/").rpartition("/")[2])})


def files_below(location: Location) -> list[tuple[str, int | None]]:
    """(name relative to the folder, bytes if known) of every file below a folder, sorted by name."""
    text = os.fspath(location)
    if not is_remote(location):
        root = local_path(location)
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder")
        return sorted((p.relative_to(root).as_posix(), p.stat().st_size) for p in root.rglob("*") if p.is_file())

    def find(files: Any) -> list[tuple[str, int | None]]:
        root = str(files._strip_protocol(text)).rstrip("/") + "/"
        infos = files.find(text, detail=True)
        return [(path.removeprefix(root), info.get("size")) for path, info in infos.items() if path.startswith(root)]

    entries: list[tuple[str, int | None]] = sorted(_on_store(text, "listed", find))
    if not entries:
        facts(text)  # raises FileNotFoundError if there is no such folder
    return entries


def read_bytes(location: Location, begin: int | None = None, end: int | None = None) -> bytes:
    """The content of a file, or its bytes begin..end (end not included; fewer where the file ends before).

    Of a remote file at most MAX_BYTES_IN_MEMORY; OSError for more.
    """
    text = os.fspath(location)
    if not is_remote(location):
        with local_path(location).open("rb") as file:
            file.seek(begin or 0)
            return file.read() if end is None else file.read(max(0, end - (begin or 0)))
    needs_size = begin is not None or end is not None or protocol_of(text) not in READ_ONLY
    num_bytes = facts(text).num_bytes if needs_size else None
    if num_bytes is None:
        return bytes(_on_store(text, "read", lambda files: files.cat_file(text))[begin or 0 : end])
    first, last = min(begin or 0, num_bytes), num_bytes if end is None else min(end, num_bytes)
    if last - first > MAX_BYTES_IN_MEMORY:
        raise OSError(f"{redacted(text)}: has {last - first} bytes; at most {MAX_BYTES_IN_MEMORY} are read into memory")
    return b"".join(_blocks(text, first, last, num_bytes))


def read_range(location: Location, begin: int, end: int, num_bytes: int) -> bytes:
    """The bytes begin..end of a remote file of which the size is known, which saves a request for it."""
    return b"".join(_blocks(os.fspath(location), begin, min(end, num_bytes), num_bytes))


def copy_range(location: Location, file: BinaryIO, begin: int, end: int) -> int:
    """Write the bytes begin..end of a file to an open one; the result is their number, less where the file ends before.

    A piece at a time is in memory.
    """
    num_bytes = size(location)
    end = min(end, num_bytes)
    if is_remote(location):
        file.writelines(_blocks(os.fspath(location), begin, end, num_bytes))
    else:
        for first in range(begin, end, BLOCK_BYTES):
            file.write(read_bytes(location, first, min(first + BLOCK_BYTES, end)))
    return max(0, end - begin)


def copy_to(location: Location, file: BinaryIO, num_bytes: int | None = None) -> int:
    """Write a whole file to an open one, at its position; the result is the number of bytes.

    num_bytes: the size that it must have, else WrongSize; a caller that knows it also checks the hash. If it is None, a
    file that changes meanwhile is read again, MAX_TRIES times in all, then OSError is raised.
    """
    text, start = os.fspath(location), file.tell()
    if num_bytes is not None:
        _copy_of_size(text, file, num_bytes)
        return num_bytes
    for _ in range(MAX_TRIES):
        before = facts(text)
        if not is_remote(location):
            with local_path(location).open("rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)
        elif before.num_bytes is None:
            file.write(_on_store(text, "read", lambda files: files.cat_file(text)))
        else:
            file.writelines(_blocks(text, 0, before.num_bytes, before.num_bytes))
        written = file.tell() - start
        if before.num_bytes in (None, written) and (written <= BLOCK_BYTES or facts(text) == before):
            return written
        file.seek(start)
        file.truncate()
    raise OSError(f"{redacted(text)}: changed while it was read, {MAX_TRIES} times; wait until nobody writes it")


def _copy_of_size(location: str, file: BinaryIO, num_bytes: int) -> None:
    """Copy a file of known size. The store is asked for the size only after an error, which saves a request."""
    if not is_remote(location):
        if (actual := size(location)) != num_bytes:
            raise WrongSize(location, actual, num_bytes)
        with local_path(location).open("rb") as source:
            shutil.copyfileobj(source, file, 1 << 20)
        return
    try:
        file.writelines(_blocks(location, 0, num_bytes, num_bytes))
    except OSError as error:
        is_wrong_length = isinstance(error.__cause__, WrongLength)
        if is_wrong_length or not isinstance(error, FileNotFoundError | PermissionError | ConnectionError):
            with suppress(FileNotFoundError, PermissionError, ConnectionError):
                actual = size(location)
                if actual != num_bytes:
                    raise WrongSize(location, actual, num_bytes) from error
        raise


def download(location: Location, path: Path) -> int:
    """Copy a file to a local path, whole or not at all; the result is the number of bytes."""
    with whole_file(path) as file:
        return copy_to(location, file)


def upload(path: Path, location: Location) -> None:
    """Copy a local file to a location, whole or not at all."""
    if not is_remote(location):
        download(path, local_path(location))
        return
    text, num_bytes = os.fspath(location), path.stat().st_size
    _refuse_read_only(text)
    _on_store(text, "written", partial(_put, text, num_bytes, lambda files: files.put_file(str(path), text)))


def write_bytes(location: Location, content: bytes) -> None:
    """Make a file of this content, whole or not at all."""
    if is_remote(location):
        text = os.fspath(location)
        _refuse_read_only(text)
        _on_store(text, "written", partial(_put, text, len(content), lambda files: files.pipe_file(text, content)))
        return
    with whole_file(local_path(location)) as file:
        file.write(content)


def remove(location: Location) -> None:
    """Remove a file, if there is one."""
    text = os.fspath(location)
    if not is_remote(location):
        local_path(location).unlink(missing_ok=True)
        return
    _refuse_read_only(text)
    with suppress(FileNotFoundError):
        _on_store(text, "removed", lambda files: files.rm_file(text))


def allow_redirects(hosts: list[str]) -> None:
    """Follow redirects of web servers to these hosts, too, in this process and those that it starts."""
    if hosts:
        from avssl.files import web_files

        web_files.allow_redirects(hosts)


@contextmanager
def local_copy(location: Location) -> Iterator[Path]:
    """A path to read: that of a local location, or of a temporary copy with the same last name."""
    if not is_remote(location):
        yield local_path(location)
        return
    with temporary_folder() as folder:
        path = folder / (re.sub(r"\?.*", "", os.fspath(location)).rstrip("/").rpartition("/")[2] or "file")
        download(location, path)
        yield path


def _put(location: str, num_bytes: int, action: Callable[[Any], Any], files: Any) -> None:
    action(files)
    actual = files.info(location).get("size")
    if actual != num_bytes:
        raise ConnectionError(f"{actual} bytes arrived instead of {num_bytes}")


def _refuse_read_only(location: str) -> None:
    if protocol_of(location) in READ_ONLY:
        raise ValueError(
            f"{redacted(location)}: http(s) can only be read; write to a local path, s3://, gs:// or hf://"
        )


def _on_store(location: str, doing: str, action: Callable[[Any], Any]) -> Any:
    """The result of `action` with the file system of a location, by `with_retries`."""

    def attempt() -> Any:
        files = _file_system(protocol_of(location))
        if doing in ("looked up", "listed"):
            files.dircache.clear()  # huggingface_hub keeps lists although it is told not to
        try:
            return action(files)
        except FileNotFoundError:
            if not len(files.dircache):
                raise
            files.dircache.clear()  # the object may be newer than the list
            return action(files)

    return with_retries(attempt, location, doing)


def _blocks(location: str, begin: int, end: int, num_bytes: int) -> Iterator[bytes]:
    """The bytes begin..end of an object of num_bytes, in order. A dropped connection costs at most BLOCK_BYTES."""
    while begin < end:
        stop = min(begin + BLOCK_BYTES, end)
        content = _on_store(location, "read", partial(_range, location, begin, stop, num_bytes))
        if len(content) == num_bytes > stop - begin:  # the server ignores ranges, and this is everything
            yield content[begin:end]
            return
        yield content
        begin = stop


def _range(location: str, begin: int, end: int, num_bytes: int, files: Any) -> bytes:
    """The bytes begin..end, or all num_bytes if the server ignores ranges. WrongLength if it is neither."""
    options: dict[str, Any] = {"cache_type": "none"} if protocol_of(location) == "hf" else {}  # do not read ahead
    if protocol_of(location) in READ_ONLY:
        options = {"most": num_bytes}
    content = bytes(files.cat_file(location, start=begin, end=end, **options))
    if len(content) not in (end - begin, num_bytes):
        raise WrongLength(f"{len(content)} bytes came instead of {end - begin}, from byte {begin} of {num_bytes}")
    return content


def _file_system(protocol: str) -> Any:
    """The file system of a protocol, one per process because a fork needs its own connections. Lists are not cached."""
    key = (os.getpid(), protocol)
    if key not in _file_systems:
        package, extra = REMOTE[protocol]
        try:
            import fsspec

            options = _options(protocol, fsspec.config.conf.get(protocol, {}))
            make = _web_files() if protocol in READ_ONLY else partial(fsspec.filesystem, protocol)
            _file_systems[key] = make(use_listings_cache=False, **options)
        except ImportError as error:
            raise ValueError(
                f"{protocol}:// needs the package {package}, which is missing ({error}); install it with "
                f"`pip install 'avssl[{extra}]'`"
            ) from error
    return _file_systems[key]


def _web_files() -> Callable[..., Any]:
    from avssl.files.web_files import WebFiles

    return WebFiles


def _options(protocol: str, configured: dict[str, Any]) -> dict[str, Any]:
    """The options of a file system: those of fsspec's configuration, and limits that it does not set."""
    if protocol in READ_ONLY:
        from avssl.files.web_files import session_options

        session = session_options()
        client = configured.get("client_kwargs", {})
        session |= {**client, "headers": {**session["headers"], **client.get("headers", {})}}
        return {**configured, "client_kwargs": session, "skip_instance_cache": True}
    if protocol == "s3" and "config_kwargs" not in configured and "AWS_MAX_ATTEMPTS" not in os.environ:
        return {"config_kwargs": {"retries": {"total_max_attempts": 1}}}  # s3fs and with_retries already try again
    return {}
