"""Facts about streams and the arithmetic of reading them: excerpts of audio, mixing channels, sizes of frames.

Pure Python and NumPy. Times are seconds from the stream's own first frame or sample unless a name says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Matroska and FLV round times to whole milliseconds: the timestamp of a frame may be this much too late.
FRAME_TIME_TOLERANCE_SECONDS = 0.0006
# Timestamps that differ less than this from the running count of samples are rounded; more is a gap.
AUDIO_GAP_SECONDS = 0.05
# A jump forward by more than this is a broken clock, not a pause.
MAX_GAP_SECONDS = 3600.0
# A jump back by more than this is a broken clock, too: what follows would be lost, because frames come in the order in
# which they are shown.
MAX_BACKWARD_SECONDS = 1.0
# Resampling filters need this much before the first sample that is used.
RESAMPLER_MARGIN_SECONDS = 0.02
# Seeking over less than this costs more than decoding it.
AUDIO_SEEK_SECONDS = 0.5

# A file whose first timestamp is later than this is part of a longer recording.
LATE_SECONDS = 1.0
FORMATS_OF_UNCLEAR_LENGTHS = ("matroska,webm", "asf", "flv", "nut", "ogg")

# The suffixes that a search of a folder finds. A file that is given by its name may have any suffix.
VIDEO_SUFFIXES = "mp4 m4v mov mkv webm avi mpg mpeg ts mts m2ts flv f4v wmv asf 3gp 3g2 ogv vob mxf rm rmvb gif dv"
AUDIO_SUFFIXES = "m4a mka mp3 wav flac ogg oga opus aac aif aiff au caf ac3 amr wma w64 wv ape tta"
MEDIA_SUFFIXES = frozenset(f".{name}" for name in f"{VIDEO_SUFFIXES} {AUDIO_SUFFIXES}".split())

AudioBlock = NDArray[np.float32]


class Orientation(NamedTuple):
    """How to make a stored frame upright: mirror it left to right if is_mirrored, then make clockwise quarter turns."""

    turns: int = 0
    is_mirrored: bool = False


UPRIGHT = Orientation()


@dataclass(frozen=True)
class VideoInfo:
    """A video stream. width, height: pixels of the upright frame (after the rotation). fps: the header's average.

    rotation_degrees: clockwise turn that makes the stored frame upright, 0, 90, 180 or 270, after it is mirrored left
    to right if is_mirrored (decode.py returns upright frames). pixel_aspect: width / height of one upright pixel.
    start_seconds: the first decoded frame on the file's clock. duration_seconds: by the header, None if it states none.
    stream_index: its number in the file. num_streams: the number of video streams in the file, with cover images.

    >>> probe(clip).video.fps
    20.0
    """

    codec: str
    width: int
    height: int
    fps: float
    rotation_degrees: int
    start_seconds: float
    duration_seconds: float | None
    pixel_format: str
    pixel_aspect: float = 1.0
    stream_index: int = 0
    num_streams: int = 1
    is_mirrored: bool = False


@dataclass(frozen=True)
class AudioInfo:
    """An audio stream. rate_hz, channels: as decoded. start_seconds: the first decoded sample on the file's clock.

    duration_seconds: by the header, None if it states none. stream_index: its number in the file. num_streams: the
    number of audio streams in the file.

    >>> probe(clip).audio.channels
    1
    """

    codec: str
    rate_hz: int
    channels: int
    start_seconds: float
    duration_seconds: float | None
    stream_index: int = 0
    num_streams: int = 1


@dataclass(frozen=True)
class MediaInfo:
    """A media file. container: FFmpeg's name. duration_seconds: by the header, None if it states none.

    >>> probe(clip).container
    'mov,mp4,m4a,3gp,3g2,mj2'
    """

    container: str
    video: VideoInfo | None
    audio: AudioInfo | None
    duration_seconds: float | None

    def to_json(self) -> dict[str, Any]:
        """The facts as a plain dict for JSON."""
        return asdict(self)


def is_clear_length(stated_seconds: float, container: str, file_start_seconds: float) -> bool:
    """Whether the duration in a header is surely a length, and not the time of the end.

    In FORMATS_OF_UNCLEAR_LENGTHS that depends on the writer. If a file begins near 0, both are the same; if it begins
    late, a duration that is smaller than the start must be a length.
    """
    is_alike = container not in FORMATS_OF_UNCLEAR_LENGTHS or file_start_seconds <= LATE_SECONDS
    return is_alike or stated_seconds <= file_start_seconds


def least_length(stated_seconds: float, start_seconds: float) -> float:
    """The smaller of the two lengths that an unclear duration can mean (see is_clear_length)."""
    return stated_seconds - max(0.0, start_seconds) if stated_seconds > start_seconds else stated_seconds


def parse_clock(text: str) -> float | None:
    """Seconds of "HH:MM:SS.fraction" (Matroska's DURATION tag); None if it is something else."""
    parts = text.strip().split(":")
    try:
        hours, minutes, seconds = (float(part) for part in parts)
    except ValueError:
        return None
    return hours * 3600 + minutes * 60 + seconds


@lru_cache
def mono_weights(channel_names: tuple[str, ...]) -> AudioBlock:
    """The weight of each channel in the mono mix: float32 (channels,), with sum 1, so that the mix cannot clip.

    The usual down-mix: center 1, front left and right 0.71, surrounds 0.5, bass effects 0. Stereo gives the mean.
    """
    table = {"FC": 1.0, "FL": math.sqrt(0.5), "FR": math.sqrt(0.5), "LFE": 0.0, "LFE2": 0.0}
    weights = np.array([table.get(name, 0.5) for name in channel_names], dtype=np.float64)
    if weights.sum() == 0:
        weights[:] = 1.0
    normalized = np.asarray(weights / weights.sum(), dtype=np.float32)
    normalized.flags.writeable = False  # the cache returns the same array to all callers
    return normalized


def to_float(samples: NDArray[Any]) -> AudioBlock:
    """Decoded samples of any type as float32 in [-1, 1]; integers are divided by their full scale."""
    kind = samples.dtype
    if kind == np.float32:
        return samples
    if kind.kind == "f":
        return samples.astype(np.float32)
    if kind == np.uint8:
        return (samples.astype(np.float32) - 128.0) / np.float32(128.0)
    scale = np.float32(2.0 ** -(8 * kind.itemsize - 1))  # a power of two: multiplying is exact
    if kind.itemsize <= 2:
        scaled: AudioBlock = np.multiply(samples, scale, dtype=np.float32)
        return scaled
    return np.asarray(samples.astype(np.float64) * scale, dtype=np.float32)


def mix_to_mono(samples: NDArray[Any], is_planar: bool, channel_names: tuple[str, ...]) -> AudioBlock:
    """A decoded block, (channels, samples) if planar, else (1, samples * channels), as mono float32 (samples,)."""
    num_channels = len(channel_names)
    if num_channels == 1:
        return to_float(samples.reshape(-1))
    channels = samples if is_planar else samples.reshape(-1, num_channels).T
    return np.asarray(mono_weights(channel_names) @ to_float(np.ascontiguousarray(channels)), dtype=np.float32)


@dataclass(frozen=True)
class AudioSpan:
    """The source samples that an excerpt needs so that the result does not depend on where decoding begins.

    first, last: source samples [first, last). skip: resampled samples before the requested ones.
    """

    first: int
    last: int
    skip: int


def audio_span(first_output: int, num_samples: int, source_rate_hz: int, rate_hz: int) -> AudioSpan:
    """The source samples behind output samples [first_output, first_output + num_samples), first_output >= 0.

    `first` is a source sample that is also an output sample, so the grid is that of resampling from 0.
    """
    if source_rate_hz == rate_hz:
        return AudioSpan(first_output, first_output + num_samples, 0)
    margin = math.ceil(RESAMPLER_MARGIN_SECONDS * source_rate_hz)
    step = source_rate_hz // math.gcd(source_rate_hz, rate_hz)
    first = max(0, first_output * source_rate_hz // rate_hz - margin) // step * step
    last = -(-(first_output + num_samples) * source_rate_hz // rate_hz) + margin
    return AudioSpan(first, last, first_output - first * rate_hz // source_rate_hz)


def fitted_size(width: int, height: int, pixel_aspect: float, short_side_px: int) -> tuple[int, int]:
    """(width, height), both even, with square pixels, that keeps the frame's shape and has this short side.

    Frames are never enlarged: a short side below short_side_px stays as it is.
    """
    true_width = width * (pixel_aspect if pixel_aspect > 0 else 1.0)
    scale = min(1.0, short_side_px / min(true_width, height))
    return max(2, round(true_width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


def collect(blocks: Iterable[tuple[int, int, AudioBlock]], first: int, last: int) -> AudioBlock:
    """Samples [first, last) of consecutive (rate, position, samples) blocks; shorter if the stream ends before.

    Before the first block there are zeros.
    """
    parts: list[AudioBlock] = []
    reached: int | None = None
    for _, position, block in blocks:
        if reached is None and position > first:
            parts.append(np.zeros(min(position, last) - first, np.float32))
        reached = position + len(block)
        if reached > first and position < last:
            parts.append(block[max(0, first - position) : last - position])
        if reached >= last:
            break
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def placed_excerpt(
    read: Callable[[int, int], AudioBlock], start_seconds: float, num_samples: int, rate_hz: int, padding: float
) -> AudioBlock:
    """num_samples of a resampled stream from start_seconds on, float32: zeros before it, `padding` after its end.

    read(first, count): the stream's samples [first, first + count), fewer where it ends; not called if none is needed.
    """
    output = np.full(num_samples, padding, np.float32)
    first = round(start_seconds * rate_hz)
    leading = min(num_samples, max(0, -first))
    output[:leading] = 0
    if leading < num_samples:
        excerpt = read(max(0, first), num_samples - leading)
        output[leading : leading + len(excerpt)] = excerpt
    return output


class AudioFrame(NamedTuple):
    """A decoded audio block. samples: (channels, n) if planar, else (1, channels * n), of any sample type."""

    sample_rate: int
    channel_names: tuple[str, ...]
    samples: NDArray[Any]
    is_planar: bool

    @property
    def num_samples(self) -> int:
        """The number of samples per channel."""
        return self.samples.size // len(self.channel_names)


class SkippedSamples(NamedTuple):
    """A number of samples that stand for a packet that was counted instead of decoded, because it is not needed."""

    num_samples: int
