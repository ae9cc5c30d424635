"""Lengths that a writer could not fill in because it wrote into a pipe, and the bytes that FFmpeg needs instead.

FFmpeg reads AVI, WAV, CAF, FLAC, Matroska and mp4 to their end without these lengths. From the formats in this file it
would read nothing. Works on bytes, without a decoder.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO

from avssl.media.truncation import UNKNOWN_FROM, UNKNOWN_FROM_64, FileBytes

W64_WAVE_BYTES = 40  # guid, length, guid
W64_HEAD_BYTES = 24  # of a chunk: guid, length of all of it
MOST_CHUNKS = 1000  # that are read, such as text and images before the audio

Patches = dict[int, bytes]  # position in the file -> the bytes to read there


def length_patches(content: FileBytes) -> Patches:
    """The patches for lengths of 0 or "unknown" in RF64, Wave64, AIFF and AU: the lengths to the file's end."""
    patches_of = {b"RF64": _rf64, b"riff": _wave64, b"FORM": _aiff, b".snd": _au}.get(content.head[:4])
    try:
        return {} if patches_of is None else patches_of(content)
    except struct.error:  # the file ends inside its header
        return {}


class PatchedFile(io.RawIOBase):
    """A file for reading in which some bytes are replaced."""

    def __init__(self, file: BinaryIO, patches: Patches) -> None:
        self._file, self._patches = file, patches

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position of the file; the position from its beginning."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The position in bytes from the beginning of the file."""
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, patched."""
        begin = self._file.tell()
        block = bytearray(self._file.read(size))
        for position, patch in self._patches.items():
            for number, value in enumerate(patch):
                if 0 <= (at := position + number - begin) < len(block):
                    block[at] = value
        return bytes(block)


def _chunks(content: FileBytes, order: str, *, begin: int = 12) -> Iterator[tuple[bytes, int, int]]:
    """(name, stated length, position of its body) of the chunks of a RIFF or AIFF file."""
    for _ in range(MOST_CHUNKS):
        start = content.at(begin, 8)
        if len(start) < 8:
            return
        name, length = struct.unpack(f"{order}4sI", start)
        yield name, length, begin + 8
        begin += 8 + length + length % 2


def _rf64(content: FileBytes) -> Patches:
    if content.head[12:16] != b"ds64":
        return {}
    (length,) = struct.unpack_from("<Q", content.head, 28)
    for name, _, body in _chunks(content, "<"):
        if name == b"data":
            patch = struct.pack("<Q", content.size - body)
            return {28: patch} if length == 0 or length >= UNKNOWN_FROM_64 else {}
    return {}


def _wave64(content: FileBytes) -> Patches:
    patches: Patches = {}
    if _is_unknown_64(content, 16):
        patches[16] = struct.pack("<Q", content.size)
    begin = W64_WAVE_BYTES
    for _ in range(MOST_CHUNKS):
        start = content.at(begin, W64_HEAD_BYTES)
        if len(start) < W64_HEAD_BYTES:
            break
        if start[:4] == b"data":
            if _is_unknown_64(content, begin + 16):
                patches[begin + 16] = struct.pack("<Q", content.size - begin)
            break
        begin += max(W64_HEAD_BYTES, -(-struct.unpack_from("<Q", start, 16)[0] // 8) * 8)
    return patches


def _is_unknown_64(content: FileBytes, at: int) -> bool:
    length: int = struct.unpack("<Q", content.at(at, 8))[0]
    return length <= W64_HEAD_BYTES or length >= UNKNOWN_FROM_64


def _aiff(content: FileBytes) -> Patches:
    patches: Patches = {}
    frame_bytes, counted_at, num_frames = 0, 0, 0
    if _is_unknown(struct.unpack_from(">I", content.head, 4)[0]):
        patches[4] = struct.pack(">I", min(content.size - 8, UNKNOWN_FROM - 1))
    for name, length, body in _chunks(content, ">"):
        if name == b"COMM":
            channels, num_frames, bits = struct.unpack(">HIH", content.at(body, 8))
            frame_bytes, counted_at = channels * -(-bits // 8), body + 2
        if name == b"SSND":
            if _is_unknown(length):
                num_bytes = min(content.size - body, UNKNOWN_FROM - 1)
                patches[body - 4] = struct.pack(">I", num_bytes)
                if (frame_bytes and _is_unknown(num_frames)) or num_frames * frame_bytes > num_bytes:
                    patches[counted_at] = struct.pack(">I", (num_bytes - 8) // max(1, frame_bytes))
            break
    return patches


def _au(content: FileBytes) -> Patches:
    begin, length = struct.unpack_from(">II", content.head, 4)
    return {8: struct.pack(">I", min(content.size - begin, UNKNOWN_FROM - 1))} if _is_unknown(length) else {}


def _is_unknown(length: int) -> bool:
    """Whether a 32-bit length is a placeholder: 0, or near the largest signed or unsigned number."""
    return length == 0 or length >= UNKNOWN_FROM
