"""Packets at which decoding may begin after a seek, so that the frames are those of decoding from the beginning.

What a container marks as a keyframe need not be one: encoders of live video refresh frames strip by strip (periodic
intra refresh) and mark where such a round begins. A decoder that begins there shows half frames or wrong ones. This
file works on PyAV's objects without importing PyAV; see cursor.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from avssl.media.packets import FORMATS_OF_PES_PACKETS, without_doubtful_stamps

H264_SLICE, H264_IDR, H264_SEI = 1, 5, 6
H264_PARTITION = 2
RECOVERY_POINT, DISPLAY_ORIENTATION = 6, 47
HEVC_SEI = 39
HEVC_PICTURES, HEVC_ENTRIES = (
    range(32),
    range(16, 22),
)  # IDR, CRA, BLA; the decoder drops what precedes a CRA
INTRA_SLICES = (2, 4, 7, 9)
SLICE_HEADER_BYTES = 64  # enough for the first two numbers of a slice header


class EntryContainer:
    """A PyAV container whose `demux`, after a seek, begins with a packet of `stream` at which decoding may begin.

    If there is no such packet up to the time of the seek, `demux` gives no packets. All else is the container's.
    """

    def __init__(self, container: Any, stream: Any) -> None:
        self._container, self._stream = container, stream
        self._aim: int | None = None
        self._codec: str = stream.codec_context.name
        self._length_bytes = _length_bytes(self._codec, stream.codec_context.extradata or b"")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def seek(self, ticks: int, *, stream: Any) -> None:
        """Seek as PyAV's container does, and remember the time."""
        self._container.seek(ticks, stream=stream)
        self._aim = ticks

    def demux(self, streams: Any) -> Iterator[Any]:
        """The packets of one stream or several; after a seek from an entry point on."""
        packets: Iterator[Any] = self._container.demux(streams)
        aim, self._aim = self._aim, None
        if aim is None:
            return packets
        if self._container.format.name in FORMATS_OF_PES_PACKETS:
            packets = without_doubtful_stamps(packets, self._stream, begins=False)
        return self._from_entry(packets, aim)

    def _from_entry(self, packets: Any, aim: int) -> Iterator[Any]:
        has_begun = False
        try:
            for packet in packets:
                if not has_begun and packet.stream.index == self._stream.index:
                    if packet.dts is not None and packet.dts > aim:
                        return
                    has_begun = self._is_entry(packet)
                    if not has_begun:
                        continue
                yield packet
        finally:
            packets.close()

    def _is_entry(self, packet: Any) -> bool:
        """Whether the packet has a time stamp and no later packet needs earlier ones."""
        if not packet.size or packet.pts is None:
            return False
        if self._codec not in ("h264", "hevc"):
            return bool(packet.is_keyframe)
        begins = h264_begins if self._codec == "h264" else hevc_begins
        return begins(units(memoryview(packet), self._length_bytes))


def _length_bytes(codec: str, extradata: bytes) -> int:
    """The number of bytes before each NAL unit that state its length; 0 if units begin with 0 0 1."""
    at = {"h264": 4, "hevc": 21}.get(codec, len(extradata))
    return (extradata[at] & 3) + 1 if len(extradata) > at and extradata[0] == 1 else 0


def units(data: Any, length_bytes: int) -> Iterator[Any]:
    """The NAL units of an h264 or hevc packet, as memoryviews. Some files lack lengths that their header announces."""
    if length_bytes and bytes(data[:4]) != b"\0\0\0\1":
        at = 0
        while at + length_bytes < len(data):
            length = int.from_bytes(data[at : at + length_bytes], "big")
            at += length_bytes
            yield data[at : at + length]
            at += length
        return
    content = bytes(data)
    at = content.find(b"\0\0\1")
    while at >= 0:
        following = content.find(b"\0\0\1", at + 3)
        yield memoryview(content)[at + 3 : following if following >= 0 else len(content)]
        at = following


def h264_begins(nal_units: Iterator[Any]) -> bool:
    """Whether decoding may begin with these units: an IDR frame, or an intra frame at an exact recovery point."""
    is_exact = False
    for unit in nal_units:
        kind = unit[0] & 31 if len(unit) else 0
        if kind == H264_IDR:
            return True
        if kind == H264_SEI:
            is_exact |= any(_is_exact(content) for name, content in messages(unit[1:]) if name == RECOVERY_POINT)
        elif kind in (H264_SLICE, H264_PARTITION):
            if not is_exact:
                return False
            header = Bits(unescaped(unit[1:SLICE_HEADER_BYTES]))
            header.number()  # the position of the slice in the frame
            return header.number() in INTRA_SLICES
    return False


def says_orientation(packet: bytes, context: Any) -> bool:
    """Whether the first frame of an h264 or hevc stream states its own orientation (a display orientation message)."""
    header = {"h264": 1, "hevc": 2}.get(context.name)
    if header is None:
        return False
    for unit in units(memoryview(packet), _length_bytes(context.name, context.extradata or b"")):
        kind = (unit[0] & 31 if header == 1 else unit[0] >> 1 & 63) if len(unit) else 0
        if kind in (H264_SLICE, H264_PARTITION, H264_IDR) if header == 1 else kind in HEVC_PICTURES:
            return False
        if kind == (H264_SEI if header == 1 else HEVC_SEI) and any(
            name == DISPLAY_ORIENTATION for name, _ in messages(unit[header:])
        ):
            return True
    return False


def hevc_begins(nal_units: Iterator[Any]) -> bool:
    """Whether decoding may begin with these units."""
    kinds = (unit[0] >> 1 & 63 for unit in nal_units if len(unit))
    return next((kind in HEVC_ENTRIES for kind in kinds if kind in HEVC_PICTURES), False)


def messages(payload: Any) -> Iterator[tuple[int, bytes]]:
    """(kind, content) of the messages in a unit of supplemental enhancement information (SEI), without its header."""
    data, at = unescaped(payload), 0
    while at + 2 <= len(data) and data[at:] != b"\x80":
        head = [0, 0]  # kind, length
        for number in range(2):
            while at < len(data) and data[at] == 0xFF:
                head[number] += 0xFF
                at += 1
            head[number] += data[at] if at < len(data) else 0
            at += 1
        yield head[0], data[at : at + head[1]]
        at += head[1]


def _is_exact(content: bytes) -> bool:
    """Whether, by a recovery point, this frame and all later ones are as if decoded from the beginning."""
    bits = Bits(content)
    return bits.number() == 0 and bits.take(1) == 1 and bits.take(1) == 0  # frame count; exact match; broken link


def unescaped(data: Any) -> bytes:
    """The data of a unit without the emulation prevention bytes, which keep 0 0 1 from appearing inside it."""
    return bytes(data).replace(b"\0\0\3", b"\0\0")


class Bits:
    """A reader of bits; past the end it reads zeros."""

    def __init__(self, data: bytes) -> None:
        self._bits, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        """The next bits as a number."""
        self._left -= count
        value = self._bits >> self._left if self._left >= 0 else self._bits << -self._left
        return value & (1 << count) - 1

    def number(self) -> int:
        """The next Exp-Golomb number."""
        zeros = 0
        while self._left > 0 and not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)
