"""The members of one sample from their bytes in a tar archive, for the headers that shards are written with.

The rest (long names, links, damage) is left to webdataset's reader, which takes five times as long for the usual case.
Pure Python.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from avssl.shards.ranged_file import SeekableBytes

BLOCK_BYTES = 512
NAME, SIZE, CHECKSUM, KIND, PREFIX = slice(0, 100), slice(124, 136), slice(148, 156), slice(156, 157), slice(345, 500)
REGULAR_FILE = (b"0", b"\0")
# The errors that tarfile raises for damage; a chain of headers without end ends in RecursionError.
DAMAGED_TAR = (tarfile.TarError, ValueError, EOFError, OSError, OverflowError, RecursionError)


def plain_members(content: bytes) -> dict[str, Any] | None:
    """{"__key__": key, extension: bytes} of the members of one sample; None unless all headers are as usual.

    content: whole blocks, without the archive's end. The first dot of a file's name parts key and extension, as in
    webdataset.
    """
    sample: dict[str, bytes] = {}
    key: str | None = None
    position = 0
    while position < len(content):
        header = content[position : position + BLOCK_BYTES]
        if len(header) < BLOCK_BYTES or header[KIND] not in REGULAR_FILE or any(header[PREFIX]):
            return None
        size, checksum = _number(header[SIZE]), _number(header[CHECKSUM])
        if size is None or checksum != sum(header) - sum(header[CHECKSUM]) + 8 * ord(" "):
            return None
        name = header[NAME].partition(b"\0")[0]
        folder, slash, file = name.rpartition(b"/")
        base, dot, extension = file.partition(b".")
        begin = position + BLOCK_BYTES
        if not (name.isascii() and base and dot) or begin + size > len(content):
            return None
        if key not in (None, name_key := (folder + slash + base).decode()) or extension.decode() in sample:
            return None
        key = name_key
        sample[extension.decode()] = content[begin : begin + size]
        position = begin - -size // BLOCK_BYTES * BLOCK_BYTES
    return None if key is None or position != len(content) else {"__key__": key, **sample}


def _number(field: bytes) -> int | None:
    """The value of an octal number that a zero byte or a space ends; None for any other text."""
    digits = field.strip(b"\0 ")
    return int(digits, 8) if digits and not digits.strip(b"01234567") else None


@contextmanager
def open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """A context with an open archive. Raises DAMAGED_TAR. No header makes it read more bytes than the file has."""
    size = path.stat().st_size
    with path.open("rb") as file, tarfile.open(fileobj=FilePart(file, 0, size), mode="r:") as archive:
        yield archive


def member_content(archive: tarfile.TarFile, member: tarfile.TarInfo, num_bytes: int) -> bytes:
    """The bytes of a regular file. ReadError for a size above the archive's num_bytes, and for sparse files."""
    if member.size > num_bytes or member.sparse is not None:
        raise tarfile.ReadError(f"a member of {member.size} bytes, in an archive of {num_bytes}, or one with holes")
    file = archive.extractfile(member)
    if file is None:
        raise tarfile.ReadError("a member that is no file")
    return file.read()


class FilePart(SeekableBytes):
    """The bytes begin..end of a file as a file of its own, read on demand, because the tar reader skips members."""

    def __init__(self, file: BinaryIO, begin: int, end: int) -> None:
        super().__init__(end - begin)
        self._file, self._begin = file, begin

    def _content(self, begin: int, end: int) -> bytes:
        return os.pread(self._file.fileno(), end - begin, self._begin + begin)
