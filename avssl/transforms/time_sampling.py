"""Which seconds to read: pure time maths on the common clock of a sample's two streams.

Nothing is read here. A stream is a `Span` in seconds; a stream that is missing is None, and its start then comes
back as None. Media shorter than a clip are allowed: the window then begins where the stream does, `frame_times_seconds`
tiles the few frames there are, and the audio reader fills up with zeros at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, isfinite
from typing import NamedTuple

import numpy as np

from avssl.types import Span

TIME_TOLERANCE_SECONDS = 1e-6  # far below a frame or a sample, far above float64 rounding


class ClipTimes(NamedTuple):
    """Where to begin reading each stream, in seconds on the sample's clock; None for a stream that is missing."""

    video_start_seconds: float | None
    audio_start_seconds: float | None


@dataclass(frozen=True)
class ClipLengths:
    """How long the clips are, and how far the video clip may reach out of the audio clip, in seconds.

    video_seconds is num_frames / fps (0.5 for AVID's 8 frames at 16 fps). Evaluation uses max_offset_seconds = 0.
    """

    video_seconds: float = 0.5
    audio_seconds: float = 2.0
    max_offset_seconds: float = 0.5

    def __post_init__(self) -> None:
        if not (self.video_seconds > 0 and self.audio_seconds > 0 and self.max_offset_seconds >= 0):
            raise ValueError(f"clip lengths must be positive and max_offset_seconds not negative, got {self}")


def random_windows(
    video: Span | None, audio: Span | None, lengths: ClipLengths, generator: np.random.Generator
) -> ClipTimes:
    """Random start times of a training pair, uniform in AVID's intervals. Always takes two draws.

    With A, V the clip lengths, d the largest offset, [v0, v1] the video and [a0, a1] the audio:
        audio start ~ U(max(a0, v0), min(a1 - A, v1 - V))
        video start ~ U(max(audio start - d, v0), min(audio start + A + d - V, v1))
    so near its end the video clip may be shorter than V (and is tiled). With one stream alone its start is uniform
    where the whole clip fits.

    Where an interval is empty (a stream shorter than its clip, little or no overlap) the start is its upper limit,
    moved into the stream: as much real audio as there is, and the video clip nearest to it.
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


def uniform_windows(video: Span | None, audio: Span | None, lengths: ClipLengths, num_windows: int) -> list[ClipTimes]:
    """Evenly spaced windows for deterministic evaluation; the first begins and the last ends where the media does.

    Paired streams share their instants: both windows are centered on the same times, spread over the overlap of the
    streams, then moved into their own stream. One window is the center one. Streams without overlap give the
    windows nearest to the gap's middle.
    """
    _check(video, audio)
    if num_windows < 1:
        raise ValueError(f"num_windows must be at least 1, got {num_windows}")
    streams = [(video, lengths.video_seconds), (audio, lengths.audio_seconds)]
    present = [(span, seconds) for span, seconds in streams if span is not None]
    start = max(span.start_seconds for span, _ in present)
    end = min(span.end_seconds for span, _ in present)
    half = max(seconds for _, seconds in present) / 2
    middle = (start + end) / 2
    first, last = min(start + half, middle), max(end - half, middle)
    if num_windows == 1:
        first = last = middle
    windows = []
    for center in np.linspace(first, last, num_windows).tolist():
        starts = [
            None if span is None else _clamp(center - seconds / 2, *_starts(span, seconds)) for span, seconds in streams
        ]
        windows.append(ClipTimes(*starts))
    return windows


def center_windows(video: Span | None, audio: Span | None, lengths: ClipLengths) -> ClipTimes:
    """The pair of windows around the middle of what both streams cover."""
    return uniform_windows(video, audio, lengths, 1)[0]


def snap_to_frames(windows: ClipTimes, video: Span, fps: float) -> ClipTimes:
    """Move the video start back to the frame on screen then (frames lie at start + k / fps), the audio with it.

    Without this the audio would lead by up to a frame, since the video reader shows the latest frame. The audio start
    may come to lie up to 1 / fps before its stream, where the reader gives zeros.
    """
    if windows.video_start_seconds is None:
        return windows
    frame = floor((windows.video_start_seconds - video.start_seconds) * fps + TIME_TOLERANCE_SECONDS)
    snapped = video.start_seconds + min(max(frame, 0), _num_frames(video, fps) - 1) / fps
    shift = snapped - windows.video_start_seconds
    audio_start = windows.audio_start_seconds
    return ClipTimes(snapped, None if audio_start is None else audio_start + shift)


def frame_times_seconds(start_seconds: float, num_frames: int, fps: float, video: Span) -> np.ndarray:
    """Times of a clip's frames, float64 (num_frames,), on the same clock as the span.

    Frame k is at start + k / fps. Frames that would lie at or after the end of the video repeat the clip from its
    first frame (tiling), so there is always at least one frame to show.
    """
    if num_frames < 1 or fps <= 0:
        raise ValueError(f"a clip needs num_frames >= 1 and fps > 0, got num_frames={num_frames}, fps={fps}")
    available = _num_frames(Span(start_seconds, max(video.end_seconds, start_seconds)), fps)
    times: np.ndarray = start_seconds + (np.arange(num_frames) % available) / fps
    return times


def window_grid(start_seconds: float, end_seconds: float, window_seconds: float, stride_seconds: float) -> np.ndarray:
    """Windows over long media, (n, 2) float64 of start and end seconds, n >= 1, in order: one grid for both modalities.

    Window k begins at start + k * stride. If the last of them ends before the media does, one more window that ends
    exactly there is added, off the grid, so the end is always covered. Media shorter than a window give one
    window, [start, end]; readers fill up what is missing. A stride above the window leaves gaps.
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
        raise ValueError("a window needs at least one of video and audio, got neither")
    for name, span in (("video", video), ("audio", audio)):
        if span is not None and not (isfinite(span.start_seconds) and span.start_seconds <= span.end_seconds < np.inf):
            raise ValueError(f"the {name} must have finite start <= end seconds, got {span}")


def _starts(span: Span, seconds: float) -> tuple[float, float]:
    """The interval of starts for which a clip fits; just the stream's start if it does not."""
    return span.start_seconds, max(span.start_seconds, span.end_seconds - seconds)


def _uniform(low: float, high: float, draw: float) -> float:
    """The draw in [0, 1) moved to [low, high]."""
    return min(low + draw * (high - low), high)


def _clamp(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _num_frames(video: Span, fps: float) -> int:
    """How many frames, at start + k / fps, begin before the end; at least 1."""
    seconds = video.end_seconds - video.start_seconds
    return max(1, -floor(-(seconds * fps - TIME_TOLERANCE_SECONDS)))
