"""What packets say beside their content: how many a decoder refuses, and clocks that are set anew on the way.

Works on PyAV's objects without importing PyAV; see ffmpeg.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from avssl.types import MediaError

# A stream may lose this share of its packets, and so many in a row, before it is no longer what was filmed.
MAX_REFUSED_SHARE = 0.05
MAX_REFUSED_IN_A_ROW = 25
# Elsewhere than here a header tells how long a stream is, and whoever decodes all of it can compare.
# (Not mp3: its decoder takes half a frame, and what it refuses at the end is a tag.)
FORMATS_WITHOUT_LENGTH = ("mpegts", "mpeg", "aac", "ac3", "eac3", "dts", "amr", "h264", "hevc", "m4v", "mpegvideo")

# Here pictures share parcels of bytes (PES packets), and each parcel has one stamp.
FORMATS_OF_PARCELS = ("mpeg",)

# Recordings and concatenated files of these set their clock anew on the way, as FFmpeg's own tools expect of them.
FORMATS_WITH_BREAKS = ("mpegts", "mpeg", "ogg")
BREAK_FORWARD_SECONDS = 10
BREAK_BACKWARD_SECONDS = Fraction(1, 4)


class Refused:
    """Counts the packets of one stream that its decoder refuses, and knows when they are too many.

    A few are left out: the picture before them stays on screen, sound has a pause. Raises MediaError when it is told of
    too many: decode_error, or truncated if they are the last ones.
    """

    def __init__(self, kind: str, container_format: str, label: str) -> None:
        self._kind, self._label = kind, label
        self._has_length = container_format not in FORMATS_WITHOUT_LENGTH
        self._num_packets = self._num_refused = self._in_a_row = 0
        self._error: Exception | None = None

    def took(self) -> None:
        """A packet was decoded."""
        self._num_packets += 1
        self._in_a_row = 0

    def refused(self, error: Exception) -> None:
        """A packet was not."""
        self._num_packets += 1
        self._num_refused += 1
        self._in_a_row += 1
        self._error = error
        if self._in_a_row > MAX_REFUSED_IN_A_ROW:
            self._give_up("decode_error", f"{self._in_a_row} {self._kind} packets in a row cannot be decoded")

    def ended(self) -> None:
        """There are no more packets."""
        if not self._num_refused:
            return
        of_all = f"{self._num_refused} of {self._num_packets} {self._kind} packets cannot be decoded"
        only_the_last = self._in_a_row == self._num_refused < self._num_packets
        if self._num_refused > MAX_REFUSED_SHARE * self._num_packets:
            self._give_up("truncated" if only_the_last else "decode_error", of_all)
        if self._in_a_row and not self._has_length:
            self._give_up("truncated", f"the {self._kind} ends inside a packet")

    def _give_up(self, reason: Any, what: str) -> None:
        raise MediaError(reason, f"{self._label}: {what} ({self._error})") from self._error


def on_one_clock(packets: Iterator[Any], wanted: Any) -> Iterator[Any]:
    """The packets of the stream `wanted`; where the file's clock breaks, all that follows is moved to go on there.

    packets: of all streams that shall stay together, in the file's order. What moves one stream moves all of them.
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
        if index == wanted.index:
            yield packet


def trusted(packets: Iterator[Any], wanted: Any) -> Iterator[Any]:
    """The packets of a stream from the file's beginning on, without stamps that may be another picture's."""
    if wanted.type != "video" or wanted.container.format.name not in FORMATS_OF_PARCELS:
        return packets
    return without_doubtful_stamps(packets, wanted, begins=True)


def without_doubtful_stamps(packets: Iterator[Any], wanted: Any, *, begins: bool) -> Iterator[Any]:
    """The packets, of which those of the stream `wanted` that share a parcel have no stamps.

    A parcel's stamp is that of the first picture that begins in it. FFmpeg gives it to the first whose picture header
    lies there, though the headers before that may lie in the parcel before; and it makes up the stamps of the others
    from that one. pos: of the parcel, None for most but its first picture. begins: the first packet is the file's, and
    keeps its stamps.
    """
    waiting: list[Any] = []  # a packet of that stream, and what follows up to its next one
    for packet in packets:
        if packet.stream.index == wanted.index:
            if waiting:
                _settle(waiting[0], packet, begins)
                begins = False
                yield from waiting
            waiting = [packet]
        elif waiting:
            waiting.append(packet)
        else:
            yield packet
    yield from waiting


def _settle(packet: Any, following: Any, is_first: bool) -> None:
    shares = packet.pos is None or (following.size and following.pos in (None, packet.pos))
    if packet.size and shares and not is_first:
        packet.pts = packet.dts = None


def preferred(streams: Sequence[Any], default: Any, second_choice: Any) -> Any | None:
    """The stream to take of several: one that can be decoded, the file's default, no second choice, the first of them.

    default, second_choice: flags of a stream's disposition.
    """
    return min(
        streams,
        key=lambda stream: (
            stream.codec_context is None,
            bool(stream.disposition & second_choice),
            not stream.disposition & default,
            stream.index,
        ),
        default=None,
    )


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
