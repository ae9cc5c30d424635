"""The times of clips, on the common clock of a sample's two streams.

A stream is a `Span` in seconds. A missing stream is None, and then its start time is None, too. Media may be shorter
than a clip: the clip then begins where the stream begins, `frame_times_seconds` repeats the frames, and the audio
reader pads with zeros at the end.
"""

from __future__ import annotations

from itertools import pairwise
from math import floor, isfinite
from typing import NamedTuple

import numpy as np

from avssl.types import ClipLengths, Span

TIME_TOLERANCE_SECONDS = 1e-6  # far below a frame or a sample, far above float64 rounding


class ClipTimes(NamedTuple):
    """Start times of the clips of both streams, in seconds on the sample's clock; None for a missing stream."""

    video_start_seconds: float | None
    audio_start_seconds: float | None


def random_clip_times(
    video: Span | None, audio: Span | None, lengths: ClipLengths, generator: np.random.Generator
) -> ClipTimes:
    """Random start times of a training pair, uniform in AVID's intervals. Always draws two numbers.

    With A, V the clip lengths, d the largest offset, [v0, v1] the video and [a0, a1] the audio:
        audio start ~ U(max(a0, v0), min(a1 - A, v1 - V))
        video start ~ U(max(audio start - d, v0), min(audio start + A + d - V, v1))
    so near the end of the video less than V may be left, and its frames are then repeated. If there is only one stream,
    its start is uniform in the interval in which the whole clip fits.

    If an interval is empty (a stream shorter than its clip, little or no overlap), the start is the upper limit of the
    interval, moved into the stream: this gives the most audio without padding, and the video clip nearest to it.
    """
    audio_draw, video_draw = generator.random(2)
    _check(video, audio)
    if video is None or audio is None:
        video_start = None if video is None else _uniform(*_starts(video, lengths.video_seconds), video_draw)
        audio_start = None if audio is None else _uniform(*_starts(audio, lengths.audio_seconds), audio_draw)
        return ClipTimes(video_start, audio_start)

    low = max(audio.start_seconds, video.start_seconds)
    high = min(audio.end_seconds - lengths.audio_seconds, video.end_seconds - lengths.video_seconds)
    audio_start = _uniform(low, high, audio_draw) if low <= high else max(high, audio.start_seconds)

    reach = lengths.audio_seconds + lengths.max_offset_seconds - lengths.video_seconds
    low = max(audio_start - lengths.max_offset_seconds, video.start_seconds)
    high = min(audio_start + reach, video.end_seconds)
    if low <= high:
        return ClipTimes(_uniform(low, high, video_draw), audio_start)
    return ClipTimes(_clamp(high, *_starts(video, lengths.video_seconds)), audio_start)


def equal_parts(video: Span, audio: Span, num_parts: int) -> list[Span]:
    """The seconds that both streams have, in equal parts: clips of different parts share no second.

    >>> equal_parts(Span(0.0, 2.0), Span(0.5, 3.0), 2)
    [Span(start_seconds=0.5, end_seconds=1.25), Span(start_seconds=1.25, end_seconds=2.0)]
    """
    _check(video, audio)
    start = max(video.start_seconds, audio.start_seconds)
    end = max(start, min(video.end_seconds, audio.end_seconds))
    ends = np.linspace(start, end, num_parts + 1).tolist()
    return [Span(*both) for both in pairwise(ends)]


def uniform_clip_times(video: Span | None, audio: Span | None, lengths: ClipLengths, num_clips: int) -> list[ClipTimes]:
    """Evenly spaced clips for deterministic evaluation. The first one begins and the last one ends with the media.

    Paired streams share their times: both clips are centered on the same times, spread over the overlap of the streams,
    then each is moved into its own stream. A single clip is the central one. For streams without overlap the clips are
    those nearest to the middle of the gap.
    """
    _check(video, audio)
    if num_clips < 1:
        raise ValueError(f"num_clips must be at least 1, got {num_clips}")
    streams = [(video, lengths.video_seconds), (audio, lengths.audio_seconds)]
    present = [(span, seconds) for span, seconds in streams if span is not None]
    start = max(span.start_seconds for span, _ in present)
    end = min(span.end_seconds for span, _ in present)
    half = max(seconds for _, seconds in present) / 2
    middle = (start + end) / 2
    first, last = min(start + half, middle), max(end - half, middle)
    if num_clips == 1:
        first = last = middle
    return [clip_times_around(center, video, audio, lengths) for center in np.linspace(first, last, num_clips).tolist()]


def clip_times_around(center_seconds: float, video: Span | None, audio: Span | None, lengths: ClipLengths) -> ClipTimes:
    """Clips of both streams with their middle at a time, each moved into its own stream."""
    streams = [(video, lengths.video_seconds), (audio, lengths.audio_seconds)]
    starts = [
        None if span is None else _clamp(center_seconds - seconds / 2, *_starts(span, seconds))
        for span, seconds in streams
    ]
    return ClipTimes(*starts)


def center_clip_times(video: Span | None, audio: Span | None, lengths: ClipLengths) -> ClipTimes:
    """The clips around the middle of the overlap of both streams."""
    return uniform_clip_times(video, audio, lengths, 1)[0]


def snap_to_frames(clip_times: ClipTimes, video: Span, fps: float) -> ClipTimes:
    """Move the video start back to the beginning of its frame (start + k / fps), and the audio start by as much.

    Without this the audio would lead by up to a frame, because the video reader shows the latest frame. The new audio
    start may lie up to 1 / fps before its stream, where the reader gives zeros.
    """
    if clip_times.video_start_seconds is None:
        return clip_times
    frame = floor((clip_times.video_start_seconds - video.start_seconds) * fps + TIME_TOLERANCE_SECONDS)
    snapped = video.start_seconds + min(max(frame, 0), _num_frames(video, fps) - 1) / fps
    shift = snapped - clip_times.video_start_seconds
    audio_start = clip_times.audio_start_seconds
    return ClipTimes(snapped, None if audio_start is None else audio_start + shift)


def frame_times_seconds(start_seconds: float, num_frames: int, fps: float, video: Span) -> np.ndarray:
    """Times of the frames of a clip, float64 (num_frames,), on the same clock as the span.

    Frame k is at start + k / fps. Instead of frames at or after the end of the video, the clip is repeated from its
    first frame, so there is always at least one frame.
    """
    if num_frames < 1 or fps <= 0:
        raise ValueError(f"a clip needs num_frames >= 1 and fps > 0, got num_frames={num_frames}, fps={fps}")
    available = _num_frames(Span(start_seconds, max(video.end_seconds, start_seconds)), fps)
    times: np.ndarray = start_seconds + (np.arange(num_frames) % available) / fps
    return times


def window_grid(start_seconds: float, end_seconds: float, window_seconds: float, stride_seconds: float) -> np.ndarray:
    """Windows over long media, (n, 2) float64 of start and end seconds, n >= 1, in order: one grid for both modalities.

    Window k begins at start + k * stride. If the last one ends before the media, one more window is added that ends
    exactly with the media, so the end is always covered. Media shorter than a window give one window, [start, end];
    readers pad the rest. A stride longer than the window leaves gaps.
    """
    values = (start_seconds, end_seconds, window_seconds, stride_seconds)
    if not all(map(isfinite, values)) or window_seconds <= 0 or stride_seconds <= 0 or end_seconds < start_seconds:
        raise ValueError(
            "a grid needs finite start <= end, window > 0 and stride > 0 seconds, "
            f"got start={start_seconds}, end={end_seconds}, window={window_seconds}, stride={stride_seconds}"
        )
    room = end_seconds - start_seconds - window_seconds
    if room <= TIME_TOLERANCE_SECONDS:
        return np.array([[start_seconds, end_seconds]])
    last = floor(room / stride_seconds)
    starts = start_seconds + np.arange(last + 1) * stride_seconds
    if starts[-1] + window_seconds < end_seconds - TIME_TOLERANCE_SECONDS:
        starts = np.append(starts, end_seconds - window_seconds)
    return np.stack([starts, np.minimum(starts + window_seconds, end_seconds)], axis=1)


def _check(video: Span | None, audio: Span | None) -> None:
    if video is None and audio is None:
        raise ValueError("clip times need at least one of video and audio, got neither")
    for name, span in (("video", video), ("audio", audio)):
        if span is not None and not (isfinite(span.start_seconds) and span.start_seconds <= span.end_seconds < np.inf):
            raise ValueError(f"the {name} must have finite start <= end seconds, got {span}")


def _starts(span: Span, seconds: float) -> tuple[float, float]:
    """The interval of start times at which the clip fits; only the stream's start if the clip is longer."""
    return span.start_seconds, max(span.start_seconds, span.end_seconds - seconds)


def _uniform(low: float, high: float, draw: float) -> float:
    """The draw in [0, 1) mapped to [low, high]."""
    return min(low + draw * (high - low), high)


def _clamp(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _num_frames(video: Span, fps: float) -> int:
    """The number of frames at start + k / fps that begin before the end; at least 1."""
    seconds = video.end_seconds - video.start_seconds
    return max(1, -floor(-(seconds * fps - TIME_TOLERANCE_SECONDS)))
