"""Whether a file holds all bytes that its own structure states, found from sizes alone, without a decoder.

FFmpeg opens what is left of a cut file silently, and often adjusts the duration of the header. But most containers
state their number of bytes somewhere, and streams of packets end with a whole packet.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO

# The first bytes of all files of a format. A file that begins with them and cannot be opened is cut or damaged.
SIGNATURES = (
    (4, (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"), "an mp4"),
    (0, (b"\x1a\x45\xdf\xa3",), "a Matroska or WebM file"),
    (0, (b"RIFF", b"RF64", b"RIFX"), "an AVI or WAV file"),
    (0, (b"riff\x2e\x91",), "a Wave64 file"),
    (0, (b"FORM",), "an AIFF file"),
    (0, (b"OggS",), "an Ogg file"),
    (0, (b"fLaC",), "a FLAC file"),
    (0, (b"FLV\x01",), "an FLV file"),
    (0, (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",), "an ASF (wmv, wma) file"),
    (0, (b"\x00\x00\x01\xba",), "an MPEG program stream"),
    (0, (b"wvpk",), "a WavPack file"),
)  # fmt: skip
HEAD_BYTES = 256
# A writer that could not seek back leaves a number near one of these for "unknown".
UNKNOWN_FROM = 0x7F000000
UNKNOWN_FROM_64 = 1 << 62
MOST_OGG_PAGE_BYTES = 65_307
MOST_INDEX_BYTES = 1 << 20  # of an mp4's index that is read; hours of video have more
LEAST_FRACTION_OF_BYTES = 0.9
MP3_SYNC_BYTES = (b"\xfb", b"\xfa", b"\xf3", b"\xf2", b"\xe3", b"\xe2")  # the second byte of a frame header
ASF_HEADER_BYTES, MOST_ASF_OBJECTS = 30, 100
ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def known_format(head: bytes) -> str | None:
    """The format of a file by its first bytes, in words; None if it is unknown here."""
    for offset, names, what in SIGNATURES:
        if any(head[offset : offset + len(name)] == name for name in names):
            return what
    return None


class FileBytes:
    """The bytes of an open file by position. size: of the file. head: its first HEAD_BYTES bytes."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self.size = file, size
        self.head = self.at(0, HEAD_BYTES)

    def at(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from `offset` on."""
        if offset >= self.size:
            return b""
        self._file.seek(offset)
        return self._file.read(count)


def missing_end(content: FileBytes) -> str | None:
    """The evidence, in words, that the end of a file is missing; None if there is none.

    If the file states its number of bytes, LEAST_FRACTION_OF_BYTES of them are enough.
    """
    head, size = content.head, content.size
    stated = stated_bytes(content)
    if stated is not None:
        if size < LEAST_FRACTION_OF_BYTES * stated:
            return f"has {size} bytes; by its own header it has at least {stated}"
        return None
    for packet, first in ((188, 0), (192, 4), (204, 0)):
        if len(head) > first + packet and head[first] == head[first + packet] == 0x47 and size % packet:
            return f"ends inside a packet of {packet} bytes"
    if head[:4] == b"OggS":
        tail = content.at(max(0, size - MOST_OGG_PAGE_BYTES), MOST_OGG_PAGE_BYTES)
        at = tail.rfind(b"OggS")
        if at >= 0 and (at + 27 > len(tail) or _ogg_page_bytes(tail[at:]) > len(tail) - at):
            return "ends inside a page"
    return None


def stated_bytes(content: FileBytes) -> int | None:
    """The number of bytes that a file must have by its own header; None if it states none."""
    head = content.head
    size_of: Callable[[FileBytes], int | None] | None
    if known_format(head) == "an mp4":
        size_of = _boxes
    elif head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] in MP3_SYNC_BYTES):
        size_of = _mp3
    else:
        size_of = {
            b"RIFF": _riff, b"RIFX": _riff, b"RF64": _riff, b"FORM": _riff, b"\x1a\x45\xdf\xa3": _matroska,
            b"\x30\x26\xb2\x75": _asf, b".snd": _au, b"caff": _caf, b"riff": _wave64,
        }.get(head[:4])  # fmt: skip
    try:
        return None if size_of is None else size_of(content)
    except (struct.error, IndexError):  # the header itself is cut: FFmpeg's error tells more
        return None


def _boxes(content: FileBytes) -> int | None:
    """The end of the last box of an mp4; None if something else follows it."""
    end = 0
    for begin, length, kind in _each_box(content):
        if not all(32 <= letter < 127 or letter == 0xA9 for letter in kind):
            return None
        if length == 0:  # to the end of the file
            return content.size
        if length < 8:
            return None
        end = begin + length
    return end


def _each_box(content: FileBytes) -> Iterator[tuple[int, int, bytes]]:
    """(position, length as written, kind) of the boxes of an mp4, up to one without a length."""
    position = 0
    while position + 8 <= content.size:
        start = content.at(position, 16)
        length, kind = struct.unpack_from(">I4s", start)
        if length == 1:
            (length,) = struct.unpack_from(">Q", start, 8)
        yield position, length, kind
        if length < 8:
            return
        position += length


def is_mp4_in_order(content: FileBytes) -> bool:
    """Whether it is an mp4 whose frames are shown in the order in which they are stored.

    Then it has no table of offsets between decoding and presentation (ctts), and no fragments, which may hold such
    offsets (mvex); and a decoder never holds a frame back.
    """
    if known_format(content.head) != "an mp4":
        return False
    try:
        for position, length, kind in _each_box(content):
            if kind == b"moov":
                index = content.at(position, length) if length <= MOST_INDEX_BYTES else b"ctts"
                return b"ctts" not in index and b"mvex" not in index
    except struct.error:
        pass
    return False


def _riff(content: FileBytes) -> int | None:
    """The size of AVI (large files are several RIFFs in a row), WAV, RF64 and AIFF."""
    name = content.head[:4]
    if name == b"RF64":
        length = int(struct.unpack_from("<Q", content.head, 20)[0])
        return None if length >= UNKNOWN_FROM_64 else length + 8
    order = ">" if name in (b"RIFX", b"FORM") else "<"
    position = 0
    while content.at(position, 4) == name:
        (length,) = struct.unpack(order + "I", content.at(position + 4, 4))
        if length == 0 or length >= UNKNOWN_FROM:
            return None
        position += 8 + length + length % 2
    return position


def _matroska(content: FileBytes) -> int | None:
    """The end of the segment of a Matroska file; None if the writer did not know it."""
    length, position = _vint(content.head, 4)
    position += length or 0
    start = content.at(position, 12)
    if start[:4] != b"\x18\x53\x80\x67":
        return None
    length, used = _vint(start, 4)
    return None if length is None else position + used + length


def _vint(head: bytes, at: int) -> tuple[int | None, int]:
    """(value, position of its end) of the EBML variable-size integer at a position; the value is None for "unknown"."""
    length = 9 - head[at].bit_length()
    if length > 8:
        return None, at + 1
    value = int.from_bytes(head[at : at + length], "big") - (1 << 7 * length)
    return (None if value == (1 << 7 * length) - 1 else value), at + length


def states_frame_count(content: FileBytes) -> bool:
    """Whether it is an mp3 with a header that states the number of frames."""
    try:
        header = _mp3_header(content)
    except (struct.error, IndexError):  # too short for a header
        return False
    return header is not None and bool(header[1] & 1)


def _mp3(content: FileBytes) -> int | None:
    """The end of an mp3 by its Xing, Info or VBRI header, if there is one."""
    header = _mp3_header(content)
    if header is None:
        return None
    begin, flags, fields = header
    return begin + fields[1 if flags & 1 else 0] if flags & 2 else None


def _mp3_header(content: FileBytes) -> tuple[int, int, tuple[int, int]] | None:
    """(position of the first frame, flags of the fields, the first two fields) of a Xing, Info or VBRI header."""
    begin = 0
    if content.head[:3] == b"ID3":
        begin = 10 + sum((content.head[6 + number] & 0x7F) << 21 - 7 * number for number in range(4))
    start = content.at(begin, HEAD_BYTES)
    for at in (13, 21, 36):
        if start[:1] == b"\xff" and start[at : at + 4] in (b"Xing", b"Info"):
            flags, *fields = struct.unpack_from(">III", start, at + 4)
            return begin, flags, (fields[0], fields[1])
    if start[:1] == b"\xff" and start[36:40] == b"VBRI":
        num_bytes, num_frames = struct.unpack_from(">II", start, 46)
        return begin, 3, (num_frames, num_bytes)
    return None


def _asf(content: FileBytes) -> int | None:
    """The size in the file properties object of ASF, unless the file is marked as a broadcast."""
    position = ASF_HEADER_BYTES
    for _ in range(MOST_ASF_OBJECTS):
        start = content.at(position, 92)
        if len(start) < 92:
            return None
        (length,) = struct.unpack_from("<Q", start, 16)
        if start[:16] == ASF_FILE_PROPERTIES:
            num_bytes, (flags,) = struct.unpack_from("<Q", start, 40)[0], struct.unpack_from("<I", start, 88)
            return None if flags & 1 else int(num_bytes) or None
        position += max(24, length)
    return None


def _au(content: FileBytes) -> int | None:
    begin, length = struct.unpack_from(">II", content.head, 4)
    return None if length >= UNKNOWN_FROM else int(begin + length)


def _caf(content: FileBytes) -> int | None:
    position = 8
    while position + 12 <= content.size:
        (length,) = struct.unpack(">q", content.at(position + 4, 8))
        if length < 0:
            return None
        position += 12 + length
    return position


def _wave64(content: FileBytes) -> int | None:
    (length,) = struct.unpack_from("<Q", content.head, 16)
    return int(length) if 0 < length < UNKNOWN_FROM_64 else None


def _ogg_page_bytes(page: bytes) -> int:
    num_segments = page[26]
    return 27 + num_segments + sum(page[27 : 27 + num_segments])
