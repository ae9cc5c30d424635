"""When a picture is shown, where a container stamps pictures in the order in which they are stored.

Pictures that are made from later ones are stored after them. Some containers tell only when a picture is decoded (AVI
and MXF count them, ASF writes that time), and some files of others were written so. FFmpeg then gives the first picture
of a group a time that belongs to a later one, and times go 1, 3, 2, 5, 4. Works on PyAV's objects without importing
PyAV; see ffmpeg.py.
"""

from __future__ import annotations

from collections import deque
from typing import Any

# Here nothing is stored but the place of a chunk: players show the first picture at the first chunk's time. (A bare
# stream of MPEG-1 stores nothing at all, and FFmpeg notices too late how many pictures its decoder holds back.)
FORMATS_THAT_COUNT = (("avi", None), ("mpegvideo", "mpeg1video"))
# Here the time at which a picture may be decoded is stored, which is when the decoder has the one before it ready.
FORMATS_OF_DECODING_TIMES = ("asf",)
STAMPS_KEPT = 64  # packets; no decoder holds back more than 16 pictures


class PresentationClock:
    """The stamps of the pictures of a stream, from where decoding begins. It is told of each packet, then asked for its
    pictures.

    A decoder that holds back d pictures gives one for each packet, of which the first comes with packet d: so the one
    that comes with packet i is shown in the place of packet i - d. This holds wherever decoding begins.
    """

    def __init__(self, container_format: str, context: Any) -> None:
        self._format, self._context = container_format, context
        self._counts = any((container_format, name) in FORMATS_THAT_COUNT for name in (None, context.name))
        self._stamps: deque[int | None] = deque(maxlen=STAMPS_KEPT)
        self._num_packets = self._place = 0
        self._is_rising = True  # so far each packet is stamped later than all before it
        self._is_in_coding_order = False

    def take(self, packet: Any) -> None:
        """The packet that the decoder was given; the empty one flushes it."""
        if packet.size:
            stamp = packet.dts if self._counts else packet.pts
            last = self._stamps[-1] if self._stamps else None
            self._is_rising &= stamp is not None and (last is None or stamp > last)
            self._stamps.append(stamp)
            self._num_packets += 1
        self._place = max(0, self._num_packets - bool(packet.size) - int(self._context.reorder_depth))

    def stamp(self, picture: Any) -> int | None:
        """When it is shown, in ticks; None if nothing tells."""
        place, self._place = self._place, self._place + 1
        own: int | None = picture.pts if picture.pts is not None else picture.dts
        number = place - self._num_packets
        of_place = self._stamps[number] if -len(self._stamps) <= number < 0 else None
        if self._counts:
            return of_place
        if not self._context.reorder_depth:
            return own
        if self._format in FORMATS_OF_DECODING_TIMES:
            return picture.dts  # type: ignore[no-any-return]
        # Of pictures that are stored out of order not all stamps rise, unless they are those of the order of storing.
        if self._is_rising and own is not None and of_place is not None and own > of_place:
            self._is_in_coding_order = True
        return of_place if self._is_rising and self._is_in_coding_order else own
