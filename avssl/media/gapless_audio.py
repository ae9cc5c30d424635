"""One audio stream as gapless mono blocks from a given sample on: what decoding from the beginning gives there.

Positions are counts of samples. After a jump only a stamp could tell them, so a jump is made only where the file
proves that stamp and count agree; elsewhere all packets are read, and those that lie long enough before the wanted
sample are counted instead of decoded. Works on PyAV's objects without importing PyAV; see decode.py and playing.py.
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
    """How much is decoded before a sample counts: so many of a codec's frames of so many samples."""

    frames: int
    frame_samples: int

    @property
    def samples(self) -> int:
        """In all."""
        return self.frames * self.frame_samples


# After a fresh start the decoder gives what it gives on the way, after so many frames: benchmarks/audio_preroll.py,
# docs/format.md. Each packet of these holds as many samples as it lasts. Of other codecs (predictors that never forget,
# packets that share frames, noise of the decoder's own as in AC-3) all is decoded from the beginning.
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
    """Of a codec by FFmpeg's name; None: it has to be decoded from the beginning."""
    return NO_PREROLL if PCM.match(codec) else PREROLL.get(codec)


class Passing:
    """Tells which packets need not be decoded to hear a stream from its sample `first` on.

    How many samples a packet holds is learned from packets that were decoded: those of one stated duration must agree.
    position: of the next sample, None while it is unknown; whoever counts samples sets it.
    """

    def __init__(self, stream: Any) -> None:
        self.first = 0
        self.position: int | None = None
        self._context = stream.codec_context
        self._preroll = preroll_of(self._context.codec.canonical_name)
        self._lengths: dict[int, int] = {}  # stated duration in ticks -> samples
        self._latest = (0, 0)  # of the packet that was decoded last
        self._resumed_length = 0  # of a packet with which decoding begins anew

    def count(self, packet: Any) -> int:
        """The samples of a packet that need not be decoded; 0: decode it."""
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
        """A packet was decoded to so many samples. How many are missing before them, for the decoder began anew."""
        duration, length = packet.duration or 0, self._resumed_length
        self._resumed_length = 0
        if samples < length and self._preroll is not None and self._preroll.frames:  # else it is a shorter last one
            return length - samples
        is_sure = samples and self._latest == (
            duration,
            samples,
        )  # one alone may be the first, of which some is cut off
        if is_sure and self._lengths.setdefault(duration, samples) != samples:
            self._preroll = None  # durations do not tell
        self._latest = duration, samples
        return 0


class GaplessAudio:
    """The sound of an open container that stands at its beginning.

    start_ticks, rate_hz: of the stream's first sample, None and 0 before `find_first` where the header does not tell.
    """

    def __init__(self, container: Any, stream: Any, label: str) -> None:
        self._container, self._stream, self._label = container, stream, label
        self._passing = Passing(stream)
        self._sounds = frames_from_here(container, stream, label, self._passing)
        self.start_ticks = exact_start(container, stream)
        self.rate_hz = 0 if self.start_ticks is None else int(stream.codec_context.sample_rate)
        self.first: tuple[int, AudioFrame] | None = None

    def find_first(self) -> tuple[int, AudioFrame] | None:
        """(ticks, the first decoded block); None if there is none."""
        for ticks, sound in self._sounds:
            assert isinstance(sound, AudioFrame)  # nothing is passed over before a position is known
            self.start_ticks, self.rate_hz = ticks, sound.sample_rate
            self.first = ticks, sound
            return self.first
        return None

    def blocks(self, first: int, *, may_jump: bool = True) -> Blocks | None:
        """(rate_hz, position, samples) from before sample `first` on, from the beginning where that is shorter.

        Blocks follow each other without a gap. None: a jump came out wrong; open the file anew and do not jump.
        """
        if may_jump and (aim := self._aim(first)) is not None:
            return self._after_jump(*aim, first)
        self._passing.first = first
        sounds = self._sounds if self.first is None else itertools.chain([self.first], self._sounds)
        start = None if self.first is not None else self.start_ticks
        return mono_blocks(sounds, self._stream, start, self._label, first, self._passing)

    def _aim(self, first: int) -> tuple[int, int] | None:
        """(ticks to jump to, samples of each packet there or 0); None where no stamp after a jump can be checked."""
        stream, name = self._stream, self._container.format.name
        codec = stream.codec_context.codec.canonical_name
        preroll = preroll_of(codec)
        ratio = stream.time_base * self.rate_hz  # samples a tick
        if preroll is None or self.start_ticks is None or ratio.denominator != 1:
            return None
        aim = first - preroll.samples
        if aim <= AUDIO_SEEK_SECONDS * self.rate_hz:
            return None
        ticks = self.start_ticks + aim // int(ratio)
        if PCM.match(codec):
            proven = name == MP4 or (name in PCM_FORMATS and _states_true_bytes(stream, codec, self.rate_hz))
            return (ticks, 0) if proven else None
        if name == "flac":  # each of its frames states its number
            return ticks, 0
        step = _even_step(stream.index_entries, ticks) if name == MP4 else 0
        return (ticks, step * int(ratio)) if step else None

    def _after_jump(self, ticks: int, packet_samples: int, first: int) -> Blocks | None:
        if not seek(self._container, self._stream, ticks):
            return None
        sounds = frames_from_here(self._container, self._stream, self._label)
        blocks = mono_blocks(sounds, self._stream, self.start_ticks, self._label)
        head = next(blocks, None)
        if head is None or head[1] > first or (packet_samples and len(head[2]) != packet_samples):
            return None
        return itertools.chain([head], blocks)


def _states_true_bytes(stream: Any, codec: str, rate_hz: int) -> bool:
    """Is the header's number of bytes a second, by which FFmpeg jumps, that of these samples?"""
    match = PCM.match(codec)
    assert match is not None  # the caller has looked
    bits = int(match[1] or match[2] or 8)
    return bool(stream.codec_context.bit_rate == bits * stream.codec_context.channels * rate_hz)


def _even_step(entries: Any, ticks: int) -> int:
    """The ticks between packets if all packets up to there are as long as the second one by the index, else 0."""
    found = entries.search_timestamp(ticks) if len(entries) > 3 else -1
    if not 2 <= found < len(entries) - 1:
        return 0
    second, step = entries[1].timestamp, entries[2].timestamp - entries[1].timestamp
    return int(step) if step > 0 and entries[found].timestamp == second + (found - 1) * step else 0
