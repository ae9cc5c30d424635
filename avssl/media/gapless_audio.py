"""One audio stream as gapless mono blocks from a given sample on, the same as decoding from the beginning gives.

Positions are counts of samples. After a seek only a time stamp tells the position, so seeking is done only where the
file proves that stamp and count agree. Elsewhere all packets are read, and those long enough before the requested
sample are counted instead of decoded. Works on PyAV's objects without importing PyAV; see decode.py and readers.py.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from avssl.media.ffmpeg import exact_start, frames_from_here, seek
from avssl.media.info import AUDIO_SEEK_SECONDS, AudioBlock, AudioFrame
from avssl.media.streams import mono_blocks

Blocks = Iterator[tuple[int, int, AudioBlock]]


class Preroll(NamedTuple):
    """How much is decoded before the first sample that is used: a number of codec frames of frame_samples each."""

    frames: int
    frame_samples: int

    @property
    def samples(self) -> int:
        """The number of samples of all these frames."""
        return self.frames * self.frame_samples


# After so many frames a restarted decoder gives the same samples as an uninterrupted one: benchmarks/audio_preroll.py,
# docs/format.md. For these codecs a packet holds as many samples as its duration says. Other codecs (predictors that
# never forget, packets that share frames, decoder noise as in AC-3) are decoded from the beginning.
PREROLL = {
    "mp1": Preroll(2, 384),
    "mp2": Preroll(2, 1152),
    "mp3": Preroll(96, 576),  # its bit reservoir is 255 bytes (MPEG-2), and a frame may add as few as 3
    "aac": Preroll(2, 2048),
    "opus": Preroll(64, 960),
    "flac": Preroll(0, 4608),
    "alac": Preroll(0, 4096),
    "tta": Preroll(0, 46_080),
    "wavpack": Preroll(0, 44_100),
    "adpcm_ima_wav": Preroll(0, 2041),
    "adpcm_ms": Preroll(0, 2036),
    "adpcm_swf": Preroll(0, 4096),
}
NO_PREROLL = Preroll(0, 1)
PCM = re.compile(r"pcm_(?:[suf](\d+)(?:le|be)(?:_planar)?|[su](8)(?:_planar)?|alaw|mulaw)$")
PCM_FORMATS = ("wav", "w64", "aiff", "au", "caf")
MP4 = "mov,mp4,m4a,3gp,3g2,mj2"


def preroll_of(codec: str) -> Preroll | None:
    """The preroll of a codec by FFmpeg's name; None if it must be decoded from the beginning."""
    return NO_PREROLL if PCM.match(codec) else PREROLL.get(codec)


class Passing:
    """Decides which packets need not be decoded to read a stream from its sample `first` on.

    The number of samples of a packet is learned from decoded packets: those of the same stated duration must agree.
    position: of the next sample, None while it is unknown; set by the caller, who counts samples.
    """

    def __init__(self, stream: Any) -> None:
        self.first = 0
        self.position: int | None = None
        self._context = stream.codec_context
        self._preroll = preroll_of(self._context.codec.canonical_name)
        self._lengths: dict[int, int] = {}  # stated duration in ticks -> samples
        self._latest = (0, 0)  # (duration, samples) of the last decoded packet
        self._resumed_length = 0  # samples of the packet with which decoding restarts

    def count(self, packet: Any) -> int:
        """The number of samples of a packet that need not be decoded; 0 if it must be decoded."""
        length = self._lengths.get(packet.duration or 0, 0) if packet.size else 0
        if self._preroll is None or self.position is None:
            return 0
        if length and self.position + length + self._preroll.samples <= self.first:
            self._resumed_length = -1
            return length
        if self._resumed_length < 0:
            self._context.flush_buffers()
            self._resumed_length = length
        return 0

    def learn(self, packet: Any, samples: int) -> int:
        """Learn from a packet that was decoded to so many samples; returns how many a restarted decoder left out."""
        duration, length = packet.duration or 0, self._resumed_length
        self._resumed_length = 0
        if samples < length and self._preroll is not None and self._preroll.frames:  # else it is a shorter last packet
            return length - samples
        is_sure = samples and self._latest == (duration, samples)  # a single packet may be the first one, which is cut
        if is_sure and self._lengths.setdefault(duration, samples) != samples:
            self._preroll = None  # durations do not determine the number of samples
        self._latest = duration, samples
        return 0


class GaplessAudio:
    """The audio stream of an open container that is at its beginning.

    start_ticks, rate_hz: of the stream's first sample; None and 0 before `find_first` if the header does not tell them.
    """

    def __init__(self, container: Any, stream: Any, label: str) -> None:
        self._container, self._stream, self._label = container, stream, label
        self._passing = Passing(stream)
        self._frames = frames_from_here(container, stream, label, self._passing)
        self.start_ticks = exact_start(container, stream)
        self.rate_hz = 0 if self.start_ticks is None else int(stream.codec_context.sample_rate)
        self.first: tuple[int, AudioFrame] | None = None

    def find_first(self) -> tuple[int, AudioFrame] | None:
        """(ticks, the first decoded block); None if there is none."""
        for ticks, frame in self._frames:
            assert isinstance(frame, AudioFrame)  # nothing is skipped before a position is known
            self.start_ticks, self.rate_hz = ticks, frame.sample_rate
            self.first = ticks, frame
            return self.first
        return None

    def blocks(self, first: int, *, may_jump: bool = True) -> Blocks | None:
        """(rate_hz, position, samples) of blocks that begin at or before sample `first`, without gaps between them.

        None if a seek led to a wrong position: open the file again and set may_jump to False.
        """
        if may_jump and (aim := self._aim(first)) is not None:
            return self._after_jump(*aim, first)
        self._passing.first = first
        frames = self._frames if self.first is None else itertools.chain([self.first], self._frames)
        start = None if self.first is not None else self.start_ticks
        return mono_blocks(frames, self._stream, start, self._label, first, self._passing)

    def _aim(self, first: int) -> tuple[int, int] | None:
        """(ticks to seek to, samples of each packet there or 0); None if a stamp after a seek could not be checked."""
        stream, name = self._stream, self._container.format.name
        codec = stream.codec_context.codec.canonical_name
        preroll = preroll_of(codec)
        ratio = stream.time_base * self.rate_hz  # samples per tick
        if preroll is None or self.start_ticks is None or ratio.denominator != 1:
            return None
        aim = first - preroll.samples
        if aim <= AUDIO_SEEK_SECONDS * self.rate_hz:
            return None
        ticks = self.start_ticks + aim // int(ratio)
        if PCM.match(codec):
            is_proven = name == MP4 or (name in PCM_FORMATS and _states_true_bytes(stream, codec, self.rate_hz))
            return (ticks, 0) if is_proven else None
        if name == "flac":  # each frame states its number
            return ticks, 0
        step = _even_step(stream.index_entries, ticks) if name == MP4 else 0
        return (ticks, step * int(ratio)) if step else None

    def _after_jump(self, ticks: int, packet_samples: int, first: int) -> Blocks | None:
        if not seek(self._container, self._stream, ticks):
            return None
        frames = frames_from_here(self._container, self._stream, self._label)
        blocks = mono_blocks(frames, self._stream, self.start_ticks, self._label)
        head = next(blocks, None)
        if head is None or head[1] > first or (packet_samples and len(head[2]) != packet_samples):
            return None
        return itertools.chain([head], blocks)


def _states_true_bytes(stream: Any, codec: str, rate_hz: int) -> bool:
    """Whether the header's bytes per second, which FFmpeg uses for seeking, are those of these samples."""
    match = PCM.match(codec)
    assert match is not None  # the caller has checked
    bits = int(match[1] or match[2] or 8)
    return bool(stream.codec_context.bit_rate == bits * stream.codec_context.channels * rate_hz)


def _even_step(entries: Any, ticks: int) -> int:
    """The ticks between packets if by the index all packets up to `ticks` are as long as the second one, else 0."""
    last = entries.search_timestamp(ticks) if len(entries) > 3 else -1
    if not 2 <= last < len(entries) - 1:
        return 0
    second, step = entries[1].timestamp, entries[2].timestamp - entries[1].timestamp
    return int(step) if step > 0 and entries[last].timestamp == second + (last - 1) * step else 0
