"""One audio stream as gapless mono blocks from a given sample on, the same as decoding from the beginning gives.

Positions are counts of samples. After a seek only a timestamp tells the position, so a seek is made only where the file
proves that timestamp and count agree. Elsewhere all packets are read, and those long enough before the requested sample
are counted instead of decoded. Works on PyAV's objects without importing PyAV; see decode.py and readers.py.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avssl.media.ffmpeg import decode_frames, exact_start, seek
from avssl.media.info import (
    AUDIO_GAP_SECONDS,
    AUDIO_SEEK_SECONDS,
    AudioBlock,
    AudioFrame,
    SkippedSamples,
    mix_to_mono,
    to_float,
)
from avssl.types import MediaError

Blocks = Iterator[tuple[int, int, AudioBlock]]  # (rate_hz, position of the first sample, float32 (samples,))

# In these the audio is one run of bytes: FFmpeg computes timestamps from the header or from rounded durations.
FORMATS_WITHOUT_STAMPS = ("wav", "w64", "aiff", "au", "caf")
# The largest error of a timestamp by rounding (to milliseconds, or of durations that are summed).
STAMP_ROUNDING_SECONDS = 0.002


class Preroll(NamedTuple):
    """How much is decoded before the first sample that is used: `frames` codec frames of frame_samples samples each."""

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
MP4 = "mov,mp4,m4a,3gp,3g2,mj2"


def preroll_of(codec: str) -> Preroll | None:
    """The preroll of a codec, which FFmpeg calls `codec`; None if it must be decoded from the beginning."""
    return NO_PREROLL if PCM.match(codec) else PREROLL.get(codec)


class PacketSkipper:
    """Decides which packets need not be decoded to read a stream from its sample `first` on.

    The number of samples of a packet is learned from decoded packets: those of the same stated duration must agree.
    position: of the next sample, None while it is unknown; `mono_blocks`, which counts samples, sets it.
    """

    def __init__(self, stream: Any) -> None:
        self.first = 0
        self.position: int | None = None
        self._context = stream.codec_context
        self._preroll = preroll_of(self._context.codec.canonical_name)
        self._lengths: dict[int, int] = {}  # stated duration in ticks -> samples
        self._latest = (0, 0)  # (duration, samples) of the last decoded packet
        self._resumed_length = 0  # samples of the packet with which decoding restarts

    def samples_to_skip(self, packet: Any) -> int:
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
        """Learn from a packet that was decoded to so many samples, and return how many a restarted decoder left out."""
        duration, length = packet.duration or 0, self._resumed_length
        self._resumed_length = 0
        if samples < length and self._preroll is not None and self._preroll.frames:  # else it is a shorter last packet
            return length - samples
        is_sure = samples and self._latest == (duration, samples)  # the first packet may be cut
        if is_sure and self._lengths.setdefault(duration, samples) != samples:
            self._preroll = None  # durations do not determine the number of samples
        self._latest = duration, samples
        return 0


class GaplessAudio:
    """The audio stream of an open container that is at its beginning.

    start_ticks, rate_hz: of the first sample; None and 0 until `find_first` if the header does not state them.
    """

    def __init__(self, container: Any, stream: Any, label: str) -> None:
        self._container, self._stream, self._label = container, stream, label
        self._skipper = PacketSkipper(stream)
        self._frames = decode_frames(container, stream, label, self._skipper)
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

    def blocks(self, first: int, *, may_seek: bool = True) -> Blocks | None:
        """Blocks without gaps between them, from one that begins at or before sample `first`.

        None if a seek led to a wrong position: open the file again and set may_seek to False.
        """
        if may_seek and (target := self._seek_target(first)) is not None:
            return self._blocks_after_seek(*target, first)
        self._skipper.first = first
        frames = self._frames if self.first is None else itertools.chain([self.first], self._frames)
        start = None if self.first is not None else self.start_ticks
        return mono_blocks(frames, self._stream, start, self._label, first, self._skipper)

    def _seek_target(self, first: int) -> tuple[int, int] | None:
        """(ticks to seek to, samples per packet there or 0 if unknown); None where a seek could not be checked."""
        stream, name = self._stream, self._container.format.name
        codec = stream.codec_context.codec.canonical_name
        preroll = preroll_of(codec)
        ratio = stream.time_base * self.rate_hz  # samples per tick
        if preroll is None or self.start_ticks is None or ratio.denominator != 1:
            return None
        target = first - preroll.samples
        if target <= AUDIO_SEEK_SECONDS * self.rate_hz:
            return None
        ticks = self.start_ticks + target // int(ratio)
        if PCM.match(codec):
            is_proven = name == MP4 or (
                name in FORMATS_WITHOUT_STAMPS and _states_true_bytes(stream, codec, self.rate_hz)
            )
            return (ticks, 0) if is_proven else None
        if name == "flac":  # each frame states its position
            return ticks, 0
        step = _even_step(stream.index_entries, ticks) if name == MP4 else 0
        return (ticks, step * int(ratio)) if step else None

    def _blocks_after_seek(self, ticks: int, packet_samples: int, first: int) -> Blocks | None:
        if not seek(self._container, self._stream, ticks):
            return None
        frames = decode_frames(self._container, self._stream, self._label)
        blocks = mono_blocks(frames, self._stream, self.start_ticks, self._label)
        head = next(blocks, None)
        if head is None or head[1] > first or (packet_samples and len(head[2]) != packet_samples):
            return None
        return itertools.chain([head], blocks)


def plain_flac(container: Any, stream: Any, first: int, last: int) -> AudioBlock | None:
    """Samples [first, last) of mono FLAC of 16 bits, whose frames state their positions; shorter where it ends.

    Equal to what GaplessAudio gives, with fewer steps for each of its short frames. None where that has to decide:
    other formats, a failed seek, frames that do not follow each other. The container is at its beginning, and used up.
    """
    context = stream.codec_context
    is_plain = container.format.name == "flac" and context.layout.nb_channels == 1 and context.format.name == "s16"
    if not is_plain or stream.time_base * context.sample_rate != 1 or stream.start_time != 0:
        return None
    context.thread_count = 1
    if first > AUDIO_SEEK_SECONDS * context.sample_rate and not seek(container, stream, first):
        return None
    parts: list[NDArray[np.int16]] = []
    begin = reached = -1
    packets = container.demux(stream)
    try:
        for packet in packets:
            for frame in packet.decode():
                if frame.pts is None or frame.pts > (first if reached < 0 else reached) or frame.pts < reached:
                    return None
                if not parts:
                    begin = frame.pts
                reached = frame.pts + frame.samples
                if reached > first:
                    parts.append(np.frombuffer(frame.planes[0], np.int16, frame.samples))
            if reached >= last:
                break
    finally:
        packets.close()  # as in decode_frames
    return to_float(np.concatenate(parts)[first - begin : last - begin]) if parts else np.empty(0, np.float32)


def _states_true_bytes(stream: Any, codec: str, rate_hz: int) -> bool:
    """Whether the header's bytes per second, by which FFmpeg seeks, are those of the samples."""
    match = PCM.match(codec)
    assert match is not None  # the caller has checked
    bits = int(match[1] or match[2] or 8)
    return bool(stream.codec_context.bit_rate == bits * stream.codec_context.channels * rate_hz)


def _even_step(entries: Any, ticks: int) -> int:
    """The ticks between packets if the index shows that all up to `ticks` are as long as the second one, else 0."""
    last = entries.search_timestamp(ticks) if len(entries) > 3 else -1
    if not 2 <= last < len(entries) - 1:
        return 0
    second, step = entries[1].timestamp, entries[2].timestamp - entries[1].timestamp
    return int(step) if step > 0 and entries[last].timestamp == second + (last - 1) * step else 0


def _has_stamps(stream: Any) -> bool:
    """Whether timestamps of an audio stream show gaps. In AVI they do if each chunk is a tick, even an empty one."""
    name, entries = stream.container.format.name, stream.index_entries
    if name == "avi":
        return len(entries) > 1 and entries[1].timestamp - entries[0].timestamp == 1
    return name not in FORMATS_WITHOUT_STAMPS


class _SampleClock:
    """The positions of audio blocks, in samples from start_ticks on (None: from the first block).

    Blocks follow each other, and timestamps are used only to find true gaps. Small differences between a timestamp and
    the count of samples at each step are rounding or a wrong clock, however large their sum is.
    """

    def __init__(self, stream: Any, start_ticks: int | None, rate: int) -> None:
        self._start, self._rate = start_ticks, rate
        ratio = Fraction(stream.time_base) * rate
        self._numerator, self._denominator = ratio.numerator, ratio.denominator  # fractions themselves are slow
        self._has_stamps = _has_stamps(stream)
        self._stamp_end: int | None = None
        self._next = 0
        self._drift = self._jumped = 0  # samples: the sum of all differences, and of those above rounding

    def position_of(self, ticks: int, num_samples: int) -> int:
        """The position of the next block, which has this timestamp and number of samples."""
        if self._start is None:
            self._start = ticks
        stamp = (2 * (ticks - self._start) * self._numerator + self._denominator) // (2 * self._denominator)
        if self._stamp_end is None:
            self._next = stamp
        else:
            self._next += self._gap(stamp - self._stamp_end)
        self._stamp_end = stamp + num_samples
        position, self._next = self._next, self._next + num_samples
        return position

    def _gap(self, step: int) -> int:
        """Samples between the previous block and this one, negative if they overlap; step: the same by timestamps."""
        if not self._has_stamps:
            return 0
        self._drift += step
        if abs(step) > STAMP_ROUNDING_SECONDS * self._rate:
            self._jumped += step
        least = AUDIO_GAP_SECONDS * self._rate
        if not (min(self._drift, self._jumped) > least or max(self._drift, self._jumped) < -least):
            return 0
        gap, self._drift, self._jumped = self._jumped, 0, 0
        return gap


def mono_blocks(
    frames: Iterable[tuple[int, AudioFrame | SkippedSamples]],
    stream: Any,
    start_ticks: int | None,
    label: str,
    first: int = 0,
    skipper: PacketSkipper | None = None,
) -> Blocks:
    """Decoded blocks mixed to mono, without gaps.

    Positions count source samples from start_ticks (None: from the first block). A pause becomes blocks of zeros, and
    overlaps are cut. Blocks that end before sample `first` are left out. skipper.position is set to the position that
    was reached.
    """
    expected: int | None = None
    rate = 0
    clock: _SampleClock | None = None
    for ticks, frame in frames:
        if isinstance(frame, AudioFrame):
            if rate and frame.sample_rate != rate:
                where = f"{label}: after {(expected or 0) / rate:.2f} s the sample rate changes from {rate} to"
                advice = "only one rate can be read: cut the file there, or encode it again with one rate"
                raise MediaError("decode_error", f"{where} {frame.sample_rate} Hz; {advice}")
            rate = frame.sample_rate
        clock = clock or _SampleClock(stream, start_ticks, rate)
        position = clock.position_of(ticks, frame.num_samples)
        expected = position if expected is None else expected
        expected = max(expected, min(first, position))
        while expected < position:
            pause = np.zeros(min(rate, position - expected), np.float32)
            yield rate, expected, pause
            expected += len(pause)
        end = max(expected, position + frame.num_samples)
        if isinstance(frame, AudioFrame) and expected < end and end > first:
            block = _mono(frame, label)[expected - position :]
            yield rate, expected, block
        expected = end
        if skipper is not None:
            skipper.position = expected


def _mono(frame: AudioFrame, label: str) -> AudioBlock:
    """The mono mix, float32 (samples,). Raises MediaError for NaN and infinite samples."""
    block = mix_to_mono(frame.samples, frame.is_planar, frame.channel_names)
    if frame.samples.dtype.kind == "f" and not np.isfinite(block).all():
        raise MediaError("decode_error", f"{label}: its audio holds samples that are no numbers (NaN or infinite)")
    return block
