"""Random access points: packets at which decoding may begin after a seek and gives the same frames as from the start.

What a container marks as a keyframe need not be one: encoders of live video refresh frames strip by strip (periodic
intra refresh) and mark where such a round begins. A decoder that begins there shows half frames or wrong ones. Works on
PyAV's objects without importing PyAV; see cursor.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from avssl.media.timestamps import without_unreliable_stamps

# Types of NAL units.
H264_SLICE, H264_PARTITION, H264_IDR, H264_SEI = 1, 2, 5, 6
HEVC_SEI, HEVC_SLICES = 39, range(32)
HEVC_ACCESS_POINTS = range(16, 22)  # IDR, CRA, BLA; the decoder drops what precedes a CRA
# Types of SEI messages and of slices.
RECOVERY_POINT, DISPLAY_ORIENTATION = 6, 47
INTRA_SLICES = (2, 4, 7, 9)
SLICE_HEADER_BYTES = 64  # enough for the first two numbers of a slice header


class RandomAccessContainer:
    """A PyAV container whose `demux`, after a seek, begins with a random access point of `stream`.

    If there is none up to the time of the seek, `demux` gives no packets. All else is the container's.
    """

    def __init__(self, container: Any, stream: Any) -> None:
        self._container, self._stream = container, stream
        self._target_ticks: int | None = None
        self._codec: str = stream.codec_context.name
        self._length_bytes = _length_bytes(self._codec, stream.codec_context.extradata or b"")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def seek(self, ticks: int, *, stream: Any) -> None:
        """Seek as PyAV's container does, and remember the time."""
        self._container.seek(ticks, stream=stream)
        self._target_ticks = ticks

    def demux(self, streams: Any) -> Iterator[Any]:
        """The packets of one stream or several; after a seek from the access point on."""
        packets: Iterator[Any] = self._container.demux(streams)
        target, self._target_ticks = self._target_ticks, None
        if target is None:
            return packets
        packets = without_unreliable_stamps(packets, self._stream, from_beginning=False)
        return self._from_access_point(packets, target)

    def _from_access_point(self, packets: Any, target: int) -> Iterator[Any]:
        has_begun = False
        try:
            for packet in packets:
                if not has_begun and packet.stream.index == self._stream.index:
                    if packet.dts is not None and packet.dts > target:
                        return
                    has_begun = self._is_access_point(packet)
                    if not has_begun:
                        continue
                yield packet
        finally:
            packets.close()

    def _is_access_point(self, packet: Any) -> bool:
        """Whether the packet has a timestamp and no later packet needs earlier ones."""
        if not packet.size or packet.pts is None:
            return False
        if self._codec not in ("h264", "hevc"):
            return bool(packet.is_keyframe)
        is_access_point = is_h264_access_point if self._codec == "h264" else is_hevc_access_point
        return is_access_point(split_units(memoryview(packet), self._length_bytes))


def _length_bytes(codec: str, extradata: bytes) -> int:
    """The number of bytes before each NAL unit that state its length; 0 if units begin with 0 0 1."""
    at = {"h264": 4, "hevc": 21}.get(codec, len(extradata))
    return (extradata[at] & 3) + 1 if len(extradata) > at and extradata[0] == 1 else 0


def split_units(data: Any, length_bytes: int) -> Iterator[Any]:
    """The NAL units of an h264 or hevc packet, as memoryviews. Some files lack the lengths that they announce."""
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


def is_h264_access_point(nal_units: Iterator[Any]) -> bool:
    """Whether decoding may begin with these units: an IDR frame, or an intra frame at an exact recovery point."""
    is_exact = False
    for unit in nal_units:
        kind = unit[0] & 31 if len(unit) else 0
        if kind == H264_IDR:
            return True
        if kind == H264_SEI:
            is_exact |= any(_is_exact(content) for name, content in sei_messages(unit[1:]) if name == RECOVERY_POINT)
        elif kind in (H264_SLICE, H264_PARTITION):
            if not is_exact:
                return False
            header = BitReader(without_emulation_prevention(unit[1:SLICE_HEADER_BYTES]))
            header.exp_golomb()  # the position of the slice in the frame
            return header.exp_golomb() in INTRA_SLICES
    return False


def is_hevc_access_point(nal_units: Iterator[Any]) -> bool:
    """Whether decoding may begin with these units: their first slice is an IDR, CRA or BLA frame."""
    kinds = (unit[0] >> 1 & 63 for unit in nal_units if len(unit))
    return next((kind in HEVC_ACCESS_POINTS for kind in kinds if kind in HEVC_SLICES), False)


def states_orientation(packet: bytes, context: Any) -> bool:
    """Whether the first frame of an h264 or hevc stream states its own orientation (a display orientation message)."""
    header = {"h264": 1, "hevc": 2}.get(context.name)
    if header is None:
        return False
    for unit in split_units(memoryview(packet), _length_bytes(context.name, context.extradata or b"")):
        kind = (unit[0] & 31 if header == 1 else unit[0] >> 1 & 63) if len(unit) else 0
        if kind in (H264_SLICE, H264_PARTITION, H264_IDR) if header == 1 else kind in HEVC_SLICES:
            return False
        if kind == (H264_SEI if header == 1 else HEVC_SEI) and any(
            name == DISPLAY_ORIENTATION for name, _ in sei_messages(unit[header:])
        ):
            return True
    return False


def sei_messages(payload: Any) -> Iterator[tuple[int, bytes]]:
    """(kind, content) of the supplemental enhancement information (SEI) messages in a NAL unit without header."""
    data, at = without_emulation_prevention(payload), 0
    while at + 2 <= len(data) and data[at:] != b"\x80":
        head = [0, 0]  # kind, length
        for field in range(2):
            while at < len(data) and data[at] == 0xFF:
                head[field] += 0xFF
                at += 1
            head[field] += data[at] if at < len(data) else 0
            at += 1
        yield head[0], data[at : at + head[1]]
        at += head[1]


def _is_exact(content: bytes) -> bool:
    """Whether a recovery point promises that this and all later frames are as if decoded from the beginning."""
    bits = BitReader(content)
    return bits.exp_golomb() == 0 and bits.take(1) == 1 and bits.take(1) == 0  # frame count; exact match; broken link


def without_emulation_prevention(data: Any) -> bytes:
    """The data of a NAL unit without the bytes that keep 0 0 1 from appearing inside it."""
    return bytes(data).replace(b"\0\0\3", b"\0\0")


class BitReader:
    """A reader of bits; past the end it reads zeros."""

    def __init__(self, data: bytes) -> None:
        self._bits, self._num_left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        """The next `count` bits as a number."""
        self._num_left -= count
        value = self._bits >> self._num_left if self._num_left >= 0 else self._bits << -self._num_left
        return value & (1 << count) - 1

    def exp_golomb(self) -> int:
        """The next number in Exp-Golomb code."""
        zeros = 0
        while self._num_left > 0 and not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)
