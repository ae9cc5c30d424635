"""Atomic writing: files are written under another name, synced to the disk, then renamed; and their hashes."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

from avssl.files.disk_errors import clear_errors
from avssl.files.scratch import lock_file, scratch_folder

DIGEST_PART_BYTES = 65_536


@contextmanager
def whole_path(path: Path, *, make_folder: bool = True) -> Iterator[Path]:
    """A temporary path to write a file at, which is synced and renamed to `path` if the block ends without an error.

    Its name is hidden, ends with .tmp, and is the same each time, so that the leftover of a killed process is
    overwritten. If another process is writing to it, or there are no locks, machine, process and thread are part of the
    name. make_folder: False where a worker of a killed run must not make a folder again that the next run has removed.

    OSError says what to do if the disk is full or the folder is not writable.
    """
    with clear_errors(path, "written"):
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        temporary, lock = _temporary(path)
        try:
            yield temporary
            sync(temporary)
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):  # the disk has become read-only, which the first error says
                temporary.unlink(missing_ok=True)
            raise
        finally:
            if lock is not None:
                os.close(lock)
        sync(path.parent)  # so that the new name is on the disk, too


@contextmanager
def whole_folder(path: Path, is_earlier: Callable[[Path], bool], *, overwrite: bool) -> Iterator[Path]:
    """A new folder to fill, which is synced and renamed to `path` if the block ends without an error.

    It lies beside `path`; what a killed process left there is removed first. overwrite: what is at `path` is removed
    at the end if is_earlier(path) says that the same command wrote it. FileExistsError for anything else that is there
    and not empty; OSError says what to do if the disk is full or the folder is not writable.
    """
    if not (overwrite and is_earlier(path)):
        refuse_existing(path, overwrite=overwrite)
    with clear_errors(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(path.parent, path.name) as scratch:
            new, old = scratch / "new", scratch / "old"
            new.mkdir()
            yield new
            for below in [*new.rglob("*"), new]:
                sync(below)
            if path.exists() or path.is_symlink():
                path.rename(old)
            new.rename(path)
        sync(path.parent)


def refuse_existing(path: Path, *, overwrite: bool = False) -> None:
    """FileExistsError if there is a file, or a folder that is not empty. overwrite: whether --overwrite is given."""
    if path.is_symlink() or path.is_file() or (path.is_dir() and any(path.iterdir())):
        advice = (
            ", and no earlier export; choose another --out" if overwrite else "; choose another --out, or --overwrite"
        )
        raise FileExistsError(f"{path} is there already{advice}")


def refuse_folder(path: Path) -> None:
    """FileExistsError if there is a folder, even an empty one, where a file is to be written."""
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder, and a file is to be written there; choose another --out")


def _temporary(path: Path) -> tuple[Path, int | None]:
    """An empty file beside `path`, and the descriptor that holds its lock, if there are locks."""
    usual = path.with_name(f".{path.name}.tmp")
    unique = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}.tmp")
    with suppress(OSError):  # another user left it, or a link lies there
        lock = lock_file(usual)
        if lock is not None:
            os.ftruncate(lock, 0)
            return usual, lock
    return unique, lock_file(unique)


@contextmanager
def whole_file(path: Path, *, make_folder: bool = True) -> Iterator[BinaryIO]:
    """The file of `whole_path`, opened for writing bytes."""
    with whole_path(path, make_folder=make_folder) as temporary, temporary.open("wb") as file:
        yield file
        file.flush()


def write_whole(path: Path, content: bytes | str) -> Path:
    """Write a file (text as UTF-8); on an error the earlier file stays. The result is the path."""
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return path


def sync(path: Path) -> None:
    """Sync the content of a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class HashedFile:
    """A binary file open for writing that computes the sha256 of its content."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash = file, hashlib.sha256()

    def write(self, content: bytes) -> int:
        """Append bytes; returns their number."""
        self._hash.update(content)
        return self._file.write(content)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    @property
    def sha256(self) -> str:
        """Hex sha256 of all bytes written so far."""
        return self._hash.hexdigest()


@contextmanager
def hashed_file(path: Path) -> Iterator[HashedFile]:
    """As `whole_file` in an existing folder, and it computes the hash of the content."""
    with whole_file(path, make_folder=False) as file:
        yield HashedFile(file)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hex sha256 of a file's bytes, which are not all held in memory."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(source: str | os.PathLike[str] | bytes) -> str:
    """16 hex digits of the sha256 of a file's size and its first, middle and last 64 KiB. source: path, or the bytes.

    It takes little time even if each of a thousand segments of a long film needs it.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        state = hashlib.sha256(f"{size} ".encode())
        for begin in sorted({0, max(0, size // 2 - DIGEST_PART_BYTES // 2), max(0, size - DIGEST_PART_BYTES)}):
            file.seek(begin)
            state.update(file.read(DIGEST_PART_BYTES))
    return state.hexdigest()[:16]
