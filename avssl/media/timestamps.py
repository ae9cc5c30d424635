"""Repairs of timestamps: clocks that are reset in the middle, stamps of several frames, stamps in coding order.

Works on PyAV's objects without importing PyAV; see ffmpeg.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

# In these several frames share a PES packet, which has one timestamp.
FORMATS_OF_PES_PACKETS = ("mpeg",)

# Recordings and concatenated files in these formats may reset their clock in the middle, as FFmpeg's own tools expect.
FORMATS_WITH_BREAKS = ("mpegts", "mpeg", "ogg")
BREAK_FORWARD_SECONDS = 10
BREAK_BACKWARD_SECONDS = Fraction(1, 4)

# These store only the position of a chunk: players show the first frame at the time of the first chunk. (A bare MPEG-1
# stream stores nothing at all, and FFmpeg notices too late how many frames its decoder holds back.)
FORMATS_THAT_COUNT = (("avi", None), ("mpegvideo", "mpeg1video"))
# These store the time at which a frame may be decoded, which is when the decoder has the previous frame ready.
FORMATS_OF_DECODING_TIMES = ("asf",)
STAMPS_KEPT = 64  # packets; no decoder holds back more than 16 frames


def on_one_clock(packets: Iterator[Any], stream: Any) -> Iterator[Any]:
    """The packets of `stream`; after a break of the file's clock all timestamps are shifted to continue.

    packets: of all streams that must stay in sync, in the file's order. A shift applies to all of them.
    """
    shift = Fraction(0)
    due: dict[int, Fraction] = {}  # when the next packet of a stream is expected
    for packet in packets:
        index = packet.stream.index  # stream_index is 0 in the packets that flush a decoder
        stamp = packet.dts if packet.dts is not None else packet.pts
        if stamp is not None:
            tick = Fraction(packet.time_base)
            seconds = stamp * tick + shift
            late = seconds - due.get(index, seconds)
            if not -BREAK_BACKWARD_SECONDS <= late <= BREAK_FORWARD_SECONDS:
                shift -= late
                seconds -= late
            due[index] = max(due.get(index, seconds), seconds) + (packet.duration or 0) * tick
            if shift:
                for name in ("pts", "dts"):
                    if getattr(packet, name) is not None:
                        setattr(packet, name, getattr(packet, name) + round(shift / tick))
        if index == stream.index:
            yield packet


def without_unreliable_stamps(packets: Iterator[Any], stream: Any, *, from_beginning: bool) -> Iterator[Any]:
    """The packets; those of the video `stream` that share a PES packet with another frame lose their timestamps.

    The stamp of a PES packet belongs to the first frame that begins in it. FFmpeg gives it to the first frame whose
    picture header is in it, although the headers before that may be in the previous PES packet, and derives the stamps
    of the other frames from it. A packet's pos is that of the PES packet, and None for most frames but its first one.
    from_beginning: the first packet is the first one of the file, and keeps its stamps.
    """
    if stream.type != "video" or stream.container.format.name not in FORMATS_OF_PES_PACKETS:
        return packets
    return _without_shared_stamps(packets, stream.index, from_beginning)


def _without_shared_stamps(packets: Iterator[Any], index: int, keeps_first: bool) -> Iterator[Any]:
    waiting: list[Any] = []  # a packet of the stream, and what follows before its next one
    for packet in packets:
        if packet.stream.index == index:
            if waiting:
                shares = waiting[0].pos is None or (packet.size and packet.pos in (None, waiting[0].pos))
                if waiting[0].size and shares and not keeps_first:
                    waiting[0].pts = waiting[0].dts = None
                keeps_first = False
                yield from waiting
            waiting = [packet]
        elif waiting:
            waiting.append(packet)
        else:
            yield packet
    yield from waiting


class PresentationClock:
    """The times at which the frames of a stream are shown: `take` each packet, then `stamp` its frames.

    Frames that are predicted from later ones are stored after them. Some containers state only when a frame is decoded
    (AVI and MXF count them, ASF writes that time), and so do some files in other containers. FFmpeg then gives the
    first frame of a group a time that belongs to a later one, and the times are 1, 3, 2, 5, 4.

    A decoder that holds back d frames gives one frame for each packet, the first one with packet d. So the frame that
    comes with packet i is shown at the time of packet i - d. This holds wherever decoding begins.
    """

    def __init__(self, container_format: str, context: Any) -> None:
        self._format, self._context = container_format, context
        self._counts = any((container_format, name) in FORMATS_THAT_COUNT for name in (None, context.name))
        self._stamps: deque[int | None] = deque(maxlen=STAMPS_KEPT)
        self._num_packets = self._position = 0
        self._is_rising = True  # so far each packet has a later stamp than all before it
        self._is_in_coding_order = False

    def take(self, packet: Any) -> None:
        """Note a packet that the decoder was given; an empty packet flushes it."""
        if packet.size:
            stamp = packet.dts if self._counts else packet.pts
            last = self._stamps[-1] if self._stamps else None
            self._is_rising &= stamp is not None and (last is None or stamp > last)
            self._stamps.append(stamp)
            self._num_packets += 1
        self._position = max(0, self._num_packets - bool(packet.size) - int(self._context.reorder_depth))

    def stamp(self, frame: Any) -> int | None:
        """The time at which the frame is shown, in ticks; None if it is unknown."""
        position, self._position = self._position, self._position + 1
        frame_stamp: int | None = frame.pts if frame.pts is not None else frame.dts
        number = position - self._num_packets
        packet_stamp = self._stamps[number] if -len(self._stamps) <= number < 0 else None
        if self._counts:
            return packet_stamp
        if not self._context.reorder_depth:
            return frame_stamp
        if self._format in FORMATS_OF_DECODING_TIMES:
            return frame.dts  # type: ignore[no-any-return]
        # If frames are stored out of order, their stamps rise only if they are stamped in the order of storage.
        if self._is_rising and frame_stamp is not None and packet_stamp is not None and frame_stamp > packet_stamp:
            self._is_in_coding_order = True
        return packet_stamp if self._is_rising and self._is_in_coding_order else frame_stamp
