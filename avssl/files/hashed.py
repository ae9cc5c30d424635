"""Whole files (avssl/files/whole.py) whose sha256 is kept along the way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from avssl.files.whole import whole_file

CONTENT_PIECE_BYTES = 65_536


class HashedFile:
    """A binary file being written, its sha256 kept along the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash = file, hashlib.sha256()

    def write(self, content: bytes) -> int:
        """Append."""
        self._hash.update(content)
        return self._file.write(content)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    @property
    def sha256(self) -> str:
        """Of all that was written so far, in hex."""
        return self._hash.hexdigest()


@contextmanager
def atomic_file(path: Path) -> Iterator[HashedFile]:
    """As `whole_file` in a folder that is there, with its hash."""
    with whole_file(path, make_folder=False) as file:
        yield HashedFile(file)


def content_digest(path: str | os.PathLike[str]) -> str:
    """16 hex digits of a file's size and of its first, middle and last 64 KiB: soon done, also for each of the
    thousand segments of a long film.
    """
    with Path(path).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        state = hashlib.sha256(f"{size} ".encode())
        for begin in sorted({0, max(0, size // 2 - CONTENT_PIECE_BYTES // 2), max(0, size - CONTENT_PIECE_BYTES)}):
            file.seek(begin)
            state.update(file.read(CONTENT_PIECE_BYTES))
    return state.hexdigest()[:16]
