"""A file anywhere as a seekable stream of which only what is read is fetched: for archives and tables."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from avssl.files import storage

READ_AHEAD_BYTES = 1 << 20  # of a remote file: small members that follow each other are one request


class SeekableBytes(io.RawIOBase):
    """So many bytes for reading, each part fetched when it is asked for.

    No caller gets memory for more bytes than there are: a damaged header may state any number.
    """

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes, self._at = num_bytes, 0

    def _content(self, begin: int, end: int) -> bytes:
        """The bytes begin..end; fewer only if they are gone."""
        raise NotImplementedError

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position, 0 if it would be negative; the position from the beginning. Nothing is fetched."""
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.num_bytes}[whence])
        return self._at

    def tell(self) -> int:
        """The position in bytes from the beginning."""
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes; fewer only at the end."""
        rest = max(0, self.num_bytes - self._at)
        content = self._content(self._at, self._at + (rest if size is None or size < 0 else min(size, rest)))
        self._at += len(content)
        return content

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as there are bytes; how many were read, 0 at the end."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


class RangedFile(SeekableBytes):
    """A location, open for reading. Raises OSError as storage.py, also while it is read."""

    def __init__(self, location: storage.Location, read_ahead_bytes: int = READ_AHEAD_BYTES) -> None:
        super().__init__(storage.size(location))
        self._location, self._read_ahead = os.fspath(location), read_ahead_bytes
        self._file = None if storage.is_remote(location) else storage.local_path(location).open("rb")
        self._block, self._block_begin = b"", 0

    def size(self) -> int:
        """The number of bytes, as PyArrow asks for it."""
        return self.num_bytes

    def _content(self, begin: int, end: int) -> bytes:
        if self._file is not None:
            return os.pread(self._file.fileno(), end - begin, begin)
        first = begin - self._block_begin
        if first < 0 or end > self._block_begin + len(self._block):
            stop = min(max(end, begin + self._read_ahead), self.num_bytes)
            self._block = storage.read_range(self._location, begin, stop, self.num_bytes)
            self._block_begin, first = begin, 0
        return self._block[first : first + end - begin]

    def close(self) -> None:
        """Close the file; of a remote one no connection is open."""
        if self._file is not None:
            self._file.close()
        super().close()


@contextmanager
def open_ranged(location: storage.Location) -> Iterator[RangedFile]:
    """A context with the open file."""
    with RangedFile(location) as file:
        yield file
