"""Frames that nobody looks at, and that no other frame is made from, are not decoded.

Works on PyAV's objects without importing PyAV; see playing.py.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

from avssl.media.packets import FORMATS_TO_SHARE

# Of other codecs a frame that is marked as of no use to others may be of use to some of them.
CODEC = "h264"
MOST_AHEAD = 32  # packets; in h264 no frame is shown more than 16 frames after it was stored
STAMPS_KEPT = 64


class SkippingContainer:
    """A PyAV container whose `demux` also tells the decoder, before each packet, whether it may leave it out.

    wanted: rising ticks at which the frame on screen is wanted; all frames after the last of them are. Read anew for
    each packet. Everything else is the container's. One stream only; of an edited one nothing is left out.
    """

    def __init__(self, container: Any, wanted: list[int]) -> None:
        self._container, self._wanted = container, wanted
        self._is_edited: bool | None = None  # None: not looked at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def demux(self, stream: Any) -> Iterator[Any]:
        """The packets of one stream, all of them."""
        packets: Iterator[Any] = self._container.demux(stream)
        # Only where streams lie beside each other is a packet one frame, with a stamp of its own.
        if self._container.format.name not in FORMATS_TO_SHARE or stream.codec_context.name != CODEC:
            return packets
        if self._is_edited is None:
            self._is_edited = _is_edited(stream.index_entries)
        return packets if self._is_edited else self._choosing(stream.codec_context, packets)

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
            self._is_edited = self._is_edited or ahead.is_edited
            context.skip_frame = "DEFAULT"
            packets.close()


def _is_edited(entries: Iterable[Any]) -> bool:
    """Does an edit list hide frames, or show some out of order or twice? By the index, which FFmpeg makes from it.

    Then stamps do not say what is on screen: hidden frames have some, and at a seam the decoder may go on from frames
    that belong elsewhere.
    """
    return any(
        one.is_discard or following.is_discard or following.timestamp < one.timestamp
        for one, following in pairwise(entries)
    )


class _Ahead:
    """Packets in the order in which they are stored, some of them looked at before they are taken.

    is_edited: a packet was seen that is hidden or out of order, as of an edit list that the index did not show.
    has_turned_back: one was seen that is shown before another that is stored before it. Until then stamps may be those
    of the order of storing (presentation.py).
    """

    def __init__(self, packets: Iterator[Any]) -> None:
        self._packets = packets
        self._waiting: deque[Any] = deque()
        self._stamps: list[int] = []  # of the packets that were looked at, rising
        self._reached: int | None = None  # all that were not are shown at or after it; None: unknown
        self.is_edited = self.has_turned_back = False

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
        while not self.is_edited:
            following = bisect_right(self._stamps, stamp)
            if following < len(self._stamps) and self._stamps[following] <= wanted[number]:
                return self.has_turned_back
            is_sure = self._reached is None or self._reached > wanted[number]
            if is_sure or len(self._waiting) >= MOST_AHEAD or not self._look():
                return False
        return False

    def _look(self) -> bool:
        """At one more packet; False after the last one."""
        packet = next(self._packets, None)
        if packet is None:
            return False
        self._waiting.append(packet)
        is_back = self._reached is not None and any(
            ticks is not None and ticks < self._reached for ticks in (packet.dts, packet.pts)
        )
        self.is_edited |= packet.is_discard or is_back
        self._reached = packet.dts
        if packet.pts is not None:
            self.has_turned_back |= bool(self._stamps) and packet.pts < self._stamps[-1]
            insort(self._stamps, packet.pts)
            del self._stamps[:-STAMPS_KEPT]
        return True
