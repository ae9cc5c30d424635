"""One open file read by two readers, each of which asks for the packets of its own stream.

Works on PyAV's objects without importing PyAV; see playing.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

# Here streams lie beside each other, and no packet needs a look at those of another stream.
FORMATS_TO_SHARE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
MAX_WAITING_BYTES = 64 << 20


class StreamsFarApartError(Exception):
    """More packets of one stream wait for the other than memory should hold: open the file for each of them."""


class SharedContainer:
    """A PyAV container whose `demux` may be called once for each of `streams`; everything else is the container's.

    What one reader passes on its way waits for the other one, so neither should be far ahead.
    """

    def __init__(self, container: Any, streams: Sequence[Any]) -> None:
        self._container = container
        self._packets: Iterator[Any] = container.demux(list(streams))
        self._waiting: dict[int, deque[Any]] = {stream.index: deque() for stream in streams}
        self._waiting_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def demux(self, stream: Any) -> Iterator[Any]:
        """The packets of one stream from the beginning. Raises StreamsFarApartError."""
        mine = self._waiting[stream.index]
        while True:
            if mine:
                packet = mine.popleft()
                self._waiting_bytes -= packet.size
                yield packet
                continue
            packet = next(self._packets, None)
            if packet is None:
                return
            index = packet.stream.index  # not packet.stream_index, which is 0 in the packets that flush a decoder
            if index == stream.index:
                yield packet
            else:
                self._waiting[index].append(packet)
                self._waiting_bytes += packet.size
                if self._waiting_bytes > MAX_WAITING_BYTES:
                    raise StreamsFarApartError
