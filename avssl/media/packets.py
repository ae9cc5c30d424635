"""Packets apart from their content: how many of them a decoder refuses, and clocks that are reset in the middle.

Works on PyAV's objects without importing PyAV; see ffmpeg.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from avssl.types import MediaError

# A stream may lose this fraction of its packets, and so many in a row, before it counts as damaged.
MAX_REFUSED_SHARE = 0.05
MAX_REFUSED_IN_A_ROW = 25
# In other formats a header states the length of a stream, and a caller that decodes all of it can compare.
# (mp3 is not listed: its decoder accepts half a frame, and what it refuses at the end is a tag.)
FORMATS_WITHOUT_LENGTH = ("mpegts", "mpeg", "aac", "ac3", "eac3", "dts", "amr", "h264", "hevc", "m4v", "mpegvideo")

# In these several frames share a PES packet, which has one time stamp.
FORMATS_OF_PES_PACKETS = ("mpeg",)

# Recordings and concatenated files in these formats may reset their clock in the middle, as FFmpeg's own tools expect.
FORMATS_WITH_BREAKS = ("mpegts", "mpeg", "ogg")
BREAK_FORWARD_SECONDS = 10
BREAK_BACKWARD_SECONDS = Fraction(1, 4)


class Refused:
    """Counts the packets of one stream that its decoder refuses, and raises MediaError if they are too many.

    A few are left out: the previous frame stays on screen, and audio has a pause. The reason is decode_error, or
    truncated if only the last packets are refused.
    """

    def __init__(self, kind: str, container_format: str, label: str) -> None:
        self._kind, self._label = kind, label
        self._has_length = container_format not in FORMATS_WITHOUT_LENGTH
        self._num_packets = self._num_refused = self._in_a_row = 0
        self._error: Exception | None = None

    def took(self) -> None:
        """Count a decoded packet."""
        self._num_packets += 1
        self._in_a_row = 0

    def refused(self, error: Exception) -> None:
        """Count a packet that could not be decoded. Raises MediaError."""
        self._num_packets += 1
        self._num_refused += 1
        self._in_a_row += 1
        self._error = error
        if self._in_a_row > MAX_REFUSED_IN_A_ROW:
            self._give_up("decode_error", f"{self._in_a_row} {self._kind} packets in a row cannot be decoded")

    def ended(self) -> None:
        """Check the counts after the last packet. Raises MediaError."""
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
    """The packets of the stream `wanted`; after a break of the file's clock all time stamps are shifted to continue.

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
        if index == wanted.index:
            yield packet


def trusted(packets: Iterator[Any], wanted: Any) -> Iterator[Any]:
    """The packets of a stream from the file's beginning on, without time stamps that may belong to another frame."""
    if wanted.type != "video" or wanted.container.format.name not in FORMATS_OF_PES_PACKETS:
        return packets
    return without_doubtful_stamps(packets, wanted, begins=True)


def without_doubtful_stamps(packets: Iterator[Any], wanted: Any, *, begins: bool) -> Iterator[Any]:
    """The packets; those of the stream `wanted` that share a PES packet with another frame lose their time stamps.

    The stamp of a PES packet belongs to the first frame that begins in it. FFmpeg gives it to the first frame whose
    picture header is in it, although the headers before that may be in the previous PES packet, and derives the stamps
    of the other frames from it. A packet's pos is that of the PES packet, and None for most frames but its first one.
    begins: the first packet is the first one of the file, and keeps its stamps.
    """
    waiting: list[Any] = []  # a packet of that stream, and what follows before its next one
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
    """The stream to read: decodable before undecodable, then no second choice, the file's default, the first one.

    default, second_choice: flags of a stream's disposition. None if there are no streams.
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
