"""Skipping frames that are neither requested nor referenced by other frames: the decoder leaves them out.

Works on PyAV's objects without importing PyAV; see readers.py.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

# In these containers a packet is one frame with a timestamp of its own.
FORMATS_OF_SINGLE_FRAMES = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
# In other codecs a frame that is marked as unreferenced may still be referenced by some frames.
CODEC = "h264"
MOST_AHEAD = 32  # packets; in h264 no frame is shown more than 16 frames after it is stored
STAMPS_KEPT = 64  # packets


class SkippingContainer:
    """A PyAV container whose `demux` also tells the decoder, before each packet, whether it may skip it.

    requested: rising ticks at which the frame on screen is requested; the list is read again for each packet. All
    frames after the last of these ticks are decoded. Only one stream may be read. In a stream with edits nothing is
    skipped.
    """

    def __init__(self, container: Any, requested: list[int]) -> None:
        self._container, self._requested = container, requested
        self._is_edited: bool | None = None  # None: not known yet

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def demux(self, stream: Any) -> Iterator[Any]:
        """All packets of one stream."""
        packets: Iterator[Any] = self._container.demux(stream)
        if self._container.format.name not in FORMATS_OF_SINGLE_FRAMES or stream.codec_context.name != CODEC:
            return packets
        if self._is_edited is None:
            self._is_edited = _is_edited(stream.index_entries)
        return packets if self._is_edited else self._skipping(stream.codec_context, packets)

    def _skipping(self, context: Any, packets: Any) -> Iterator[Any]:
        ahead = _LookAhead(packets)
        skips = False
        try:
            while (packet := ahead.take()) is not None:
                if skips != ahead.may_skip(packet.pts, self._requested):
                    skips = not skips
                    context.skip_frame = "NONREF" if skips else "DEFAULT"
                yield packet
        finally:
            self._is_edited = self._is_edited or ahead.is_edited
            context.skip_frame = "DEFAULT"
            packets.close()


def _is_edited(entries: Iterable[Any]) -> bool:
    """Whether an edit list hides frames, or shows some out of order or twice, by the index that FFmpeg makes from it.

    Then timestamps do not tell what is on screen: hidden frames have timestamps, too, and after a cut the decoder may
    continue from frames before it.
    """
    return any(
        entry.is_discard or following.is_discard or following.timestamp < entry.timestamp
        for entry, following in pairwise(entries)
    )


class _LookAhead:
    """Packets in the order of storage, some of them read ahead.

    is_edited: a packet was hidden or out of order, from an edit list that the index did not show. has_turned_back: a
    packet is shown before an earlier one. Until then timestamps may follow the order of storage (timestamps.py).
    """

    def __init__(self, packets: Iterator[Any]) -> None:
        self._packets = packets
        self._waiting: deque[Any] = deque()
        self._stamps: list[int] = []  # of the packets that were read, rising
        self._reached: int | None = None  # packets that were not read are shown at or after it; None: unknown
        self.is_edited = self.has_turned_back = False

    def take(self) -> Any:
        """The next packet; None after the last one."""
        if not self._waiting and not self._read():
            return None
        return self._waiting.popleft()

    def may_skip(self, stamp: int | None, requested: list[int]) -> bool:
        """Whether at the next requested ticks a later frame than the one with this stamp is on screen."""
        number = 0 if stamp is None else bisect_left(requested, stamp)
        if stamp is None or number == len(requested):
            return False
        while not self.is_edited:
            following = bisect_right(self._stamps, stamp)
            if following < len(self._stamps) and self._stamps[following] <= requested[number]:
                return self.has_turned_back
            is_sure = self._reached is None or self._reached > requested[number]
            if is_sure or len(self._waiting) >= MOST_AHEAD or not self._read():
                return False
        return False

    def _read(self) -> bool:
        """Read one more packet ahead; False after the last one."""
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
