"""The times at which frames are shown, for containers that stamp frames in the order in which they are stored.

Frames that are predicted from later ones are stored after them. Some containers state only when a frame is decoded (AVI
and MXF count them, ASF writes that time), and so do some files in other containers. FFmpeg then gives the first frame
of a group a time that belongs to a later one, and the times are 1, 3, 2, 5, 4. Works on PyAV's objects without
importing PyAV; see ffmpeg.py.
"""

from __future__ import annotations

from collections import deque
from typing import Any

# These store only the position of a chunk: players show the first frame at the time of the first chunk. (A bare MPEG-1
# stream stores nothing at all, and FFmpeg notices too late how many frames its decoder holds back.)
FORMATS_THAT_COUNT = (("avi", None), ("mpegvideo", "mpeg1video"))
# These store the time at which a frame may be decoded, which is when the decoder has the previous frame ready.
FORMATS_OF_DECODING_TIMES = ("asf",)
STAMPS_KEPT = 64  # packets; no decoder holds back more than 16 frames


class PresentationClock:
    """The time stamps of the frames of a stream, from where decoding begins: `take` each packet, then `stamp` its
    frames.

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
