"""Frames that nobody looks at, and that no other frame is made from, are not decoded.

Works on PyAV's objects without importing PyAV; see playing.py.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator
from typing import Any

from avssl.data.sharing import FORMATS_TO_SHARE

# Of other codecs a frame that is marked as of no use to others may be of use to some of them.
CODEC = "h264"
MOST_AHEAD = 32  # packets; in h264 no frame is shown more than 16 frames after it was stored
STAMPS_KEPT = 64


class SkippingContainer:
    """A PyAV container whose `demux` also tells the decoder, before each packet, whether it may leave it out.

    wanted: rising ticks at which the frame on screen is wanted; all frames after the last of them are. Read anew for
    each packet. Everything else is the container's.
    """

    def __init__(self, container: Any, wanted: list[int]) -> None:
        self._container, self._wanted = container, wanted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def demux(self, stream: Any) -> Iterator[Any]:
        """The packets of one stream, all of them."""
        packets: Iterator[Any] = self._container.demux(stream)
        # Only where streams lie beside each other is a packet one frame, with a stamp of its own.
        if self._container.format.name in FORMATS_TO_SHARE and stream.codec_context.name == CODEC:
            return self._choosing(stream.codec_context, packets)
        return packets

    def _choosing(self, context: Any, packets: Any) -> Iterator[Any]:
        ahead = _Ahead(packets)
        skips = False
        try:
            while (packet := ahead.take()) is not None:
                if skips != ahead.is_passed_over(packet.pts, self._wanted):
                    skips = not skips
                    context.skip_frame = "NONREF" if skips else "DEFAULT"
                yield packet
        finally:
            context.skip_frame = "DEFAULT"
            packets.close()


class _Ahead:
    """Packets in the order in which they are stored, some of them looked at before they are taken."""

    def __init__(self, packets: Iterator[Any]) -> None:
        self._packets = packets
        self._waiting: deque[Any] = deque()
        self._stamps: list[int] = []  # of the packets that were looked at, rising
        self._reached: int | None = None  # all that were not are shown at or after it; None: unknown

    def take(self) -> Any:
        """The next packet; None after the last one."""
        if not self._waiting and not self._look():
            return None
        return self._waiting.popleft()

    def is_passed_over(self, stamp: int | None, wanted: list[int]) -> bool:
        """Is a later frame than that with this stamp on screen at the next wanted ticks?"""
        number = 0 if stamp is None else bisect_left(wanted, stamp)
        if stamp is None or number == len(wanted):
            return False
        while True:
            following = bisect_right(self._stamps, stamp)
            if following < len(self._stamps) and self._stamps[following] <= wanted[number]:
                return True
            is_sure = self._reached is None or self._reached > wanted[number]
            if is_sure or len(self._waiting) >= MOST_AHEAD or not self._look():
                return False

    def _look(self) -> bool:
        """At one more packet; False after the last one."""
        packet = next(self._packets, None)
        if packet is None:
            return False
        self._waiting.append(packet)
        self._reached = packet.dts
        if packet.pts is not None:
            insort(self._stamps, packet.pts)
            del self._stamps[:-STAMPS_KEPT]
        return True
