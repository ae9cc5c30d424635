"""Whole files (avssl/whole_files.py) whose sha256 is kept along the way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from avssl.whole_files import whole_file


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
