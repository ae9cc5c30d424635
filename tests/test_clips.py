"""The times of clips: tables of boundary cases, and properties over random media."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import kstest

from avssl.transforms.time_sampling import (
    ClipTimes,
    center_clip_times,
    frame_times_seconds,
    random_clip_times,
    snap_to_frames,
    uniform_clip_times,
    window_grid,
)
from avssl.types import ClipLengths, Span

AVID = ClipLengths(0.5, 2.0, 0.5)
ALIGNED = ClipLengths(0.5, 2.0, 0.0)


def draws(video: Span | None, audio: Span | None, lengths: ClipLengths, num: int = 4000) -> np.ndarray:
    generator = np.random.default_rng(0)
    clip_times = [random_clip_times(video, audio, lengths, generator) for _ in range(num)]
    return np.array([(np.nan if v is None else v, np.nan if a is None else a) for v, a in clip_times])


@pytest.mark.parametrize(
    ("video", "audio", "audio_interval"),
    [
        (Span(0, 10), Span(0, 10), (0, 8)),
        (Span(1, 10), Span(0, 10), (1, 8)),
        (Span(0, 10), Span(0.7, 9), (0.7, 7)),
        (Span(0, 5), Span(0, 10), (0, 4.5)),
        (Span(3, 20), Span(5, 8), (5, 6)),
    ],
)
def test_training_pairs_are_uniform_in_the_published_intervals(
    video: Span, audio: Span, audio_interval: tuple[float, float]
) -> None:
    starts = draws(video, audio, AVID)
    low, high = audio_interval
    assert kstest(starts[:, 1], "uniform", (low, high - low)).pvalue > 1e-3
    video_low = np.maximum(starts[:, 1] - 0.5, video.start_seconds)
    video_high = np.minimum(starts[:, 1] + 2.0 + 0.5 - 0.5, video.end_seconds)
    position = (starts[:, 0] - video_low) / (video_high - video_low)
    assert kstest(position, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(position, starts[:, 1])[0, 1]) < 0.06  # the two draws are independent


def test_without_offset_the_video_clip_lies_inside_the_audio_clip() -> None:
    starts = draws(Span(0, 10), Span(0, 10), ALIGNED)
    assert (starts[:, 0] >= starts[:, 1]).all()
    assert (starts[:, 0] + 0.5 <= starts[:, 1] + 2.0 + 1e-9).all()


@pytest.mark.parametrize(
    ("span", "seconds_column", "interval"),
    [(Span(1, 9), 0, (1, 8.5)), (Span(1, 9), 1, (1, 7.0))],
)
def test_one_stream_alone_is_uniform_where_its_clip_fits(
    span: Span, seconds_column: int, interval: tuple[float, float]
) -> None:
    starts = draws(span if seconds_column == 0 else None, span if seconds_column == 1 else None, AVID)
    low, high = interval
    assert kstest(starts[:, seconds_column], "uniform", (low, high - low)).pvalue > 1e-3
    assert np.isnan(starts[:, 1 - seconds_column]).all()


@pytest.mark.parametrize(
    ("video", "audio", "expected_audio", "video_interval"),
    [
        (Span(0, 10), Span(3, 4), 3.0, (2.5, 5.0)),  # audio shorter than its clip: begins with it
        (Span(0, 0.3), Span(0, 10), 0.0, (0.0, 0.3)),  # video shorter than its clip
        (Span(9, 10), Span(0, 10), 8.0, (9.0, 10.0)),  # little overlap: a whole audio clip around the video
        (Span(1, 5), Span(0, 1.5), 0.0, (1.0, 2.0)),  # audio shorter than its clip and before the video
        (Span(5, 8), Span(0, 2), 0.0, (5.0, 5.0)),  # no overlap, audio first
        (Span(0, 2), Span(5, 8), 5.0, (1.5, 1.5)),  # no overlap, video first
        (Span(0, 0), Span(0, 0), 0.0, (0.0, 0.0)),  # nothing at all
        (Span(0, 10), Span(0, 2), 0.0, (0.0, 2.0)),  # exactly one clip long
    ],
)
def test_short_media_give_the_nearest_clips(
    video: Span, audio: Span, expected_audio: float, video_interval: tuple[float, float]
) -> None:
    starts = draws(video, audio, AVID, 500)
    np.testing.assert_allclose(starts[:, 1], expected_audio, atol=1e-12)
    low, high = video_interval
    assert (starts[:, 0] >= low).all()
    assert (starts[:, 0] <= high).all()
    np.testing.assert_allclose([starts[:, 0].min(), starts[:, 0].max()], [low, high], atol=0.02 * (high - low) + 1e-9)


def test_random_clip_times_stay_in_their_intervals_whatever_the_media() -> None:
    generator = np.random.default_rng(11)
    for _ in range(3000):
        v0, v1, a0, a1 = np.sort(generator.uniform(0, 6, (2, 2)), axis=1).round(generator.integers(4)).ravel()
        lengths = ClipLengths(generator.uniform(0.1, 3), generator.uniform(0.1, 3), generator.choice([0.0, 0.5]))
        video_start, audio_start = random_clip_times(Span(v0, v1), Span(a0, a1), lengths, generator)
        assert video_start is not None
        assert audio_start is not None
        assert v0 <= video_start <= v1
        assert a0 <= audio_start <= max(a0, a1 - lengths.audio_seconds)
        for times in uniform_clip_times(Span(v0, v1), Span(a0, a1), lengths, 3):
            assert v0 <= times.video_start_seconds <= max(v0, v1 - lengths.video_seconds)
            assert a0 <= times.audio_start_seconds <= max(a0, a1 - lengths.audio_seconds)


def test_the_number_of_draws_does_not_depend_on_the_media() -> None:
    states = []
    for video, audio in (
        (Span(0, 10), Span(0, 10)),
        (None, Span(0, 1)),
        (Span(0, 0.1), None),
        (Span(0, 1), Span(7, 8)),
    ):
        generator = np.random.default_rng(3)
        random_clip_times(video, audio, AVID, generator)
        states.append(generator.random())
    assert len(set(states)) == 1


@pytest.mark.parametrize(
    ("video", "audio", "expected"),
    [
        (Span(0, 10), Span(0, 10), (4.75, 4.0)),
        (Span(2, 10), Span(0, 8), (4.75, 4.0)),
        (Span(0, 10), None, (4.75, None)),
        (None, Span(1, 9), (None, 4.0)),
        (Span(0, 1), Span(0, 1), (0.25, 0.0)),
        (Span(0, 10), Span(0, 1), (0.25, 0.0)),
        (Span(0, 0.2), Span(0, 10), (0.0, 0.0)),
        (Span(5, 8), Span(0, 2), (5.0, 0.0)),
    ],
)
def test_center_clip_times(video: Span | None, audio: Span | None, expected: tuple[float | None, float | None]) -> None:
    clip_times = center_clip_times(video, audio, ALIGNED)
    for ours, wanted in zip(clip_times, expected, strict=True):
        assert ours == (None if wanted is None else pytest.approx(wanted))


@pytest.mark.parametrize(
    ("video", "audio", "num", "video_starts", "audio_starts"),
    [
        (Span(0, 10), None, 3, [0, 4.75, 9.5], None),
        (None, Span(1, 10), 2, None, [1, 8]),
        (Span(0, 10), Span(0, 10), 3, [0.75, 4.75, 8.75], [0, 4, 8]),
        (Span(0, 10), Span(0, 10), 1, [4.75], [4]),
        (Span(0, 0.5), None, 4, [0, 0, 0, 0], None),
        (Span(0, 1), Span(0, 2), 2, [0.25, 0.25], [0, 0]),
    ],
)
def test_uniform_clip_times(
    video: Span | None,
    audio: Span | None,
    num: int,
    video_starts: list[float] | None,
    audio_starts: list[float] | None,
) -> None:
    clip_times = uniform_clip_times(video, audio, ALIGNED, num)
    assert len(clip_times) == num
    for column, wanted in enumerate((video_starts, audio_starts)):
        ours = [times[column] for times in clip_times]
        assert ours == ([None] * num if wanted is None else pytest.approx(wanted))


@pytest.mark.parametrize(
    ("start", "end", "num_frames", "expected"),
    [
        (1.0, 10.0, 4, [1.0, 1.25, 1.5, 1.75]),
        (9.25, 10.0, 4, [9.25, 9.5, 9.75, 9.25]),  # three frames left: tiled
        (9.75, 10.0, 4, [9.75] * 4),
        (10.0, 10.0, 3, [10.0] * 3),  # the reader shows the last frame
        (9.6, 10.0, 4, [9.6, 9.85, 9.6, 9.85]),
        (0.0, 0.0, 2, [0.0, 0.0]),
    ],
)
def test_frames_past_the_end_repeat_the_clip(start: float, end: float, num_frames: int, expected: list[float]) -> None:
    np.testing.assert_allclose(frame_times_seconds(start, num_frames, 4.0, Span(0.0, end)), expected)


def test_rounding_does_not_add_a_frame_after_the_end() -> None:
    assert (0.4 - 0.1) * 10 > 3  # in floating point
    np.testing.assert_allclose(frame_times_seconds(0.1, 4, 10, Span(0.0, 0.4)), [0.1, 0.2, 0.3, 0.1])


@pytest.mark.parametrize("fps", [16.0, 25.0, 30000 / 1001, 11.9])
def test_a_clip_that_just_fits_is_not_tiled(fps: float) -> None:
    for first in range(40):
        video = Span(0.3, 0.3 + 48 / fps)
        times = frame_times_seconds(0.3 + first / fps, 8, fps, video)
        assert (np.diff(times) > 0).all()


@pytest.mark.parametrize(
    ("clip_times", "expected"),
    [
        (ClipTimes(1.30, 1.0), (1.25, 0.95)),
        (ClipTimes(1.25, 1.0), (1.25, 1.0)),
        (ClipTimes(0.3, 0.0), (0.25, -0.05)),
        (ClipTimes(10.25, 8.0), (10.0, 7.75)),  # after the last frame: the last frame is on screen
        (ClipTimes(1.30, None), (1.25, None)),
        (ClipTimes(None, 1.3), (None, 1.3)),
    ],
)
def test_snapping_moves_both_streams_by_the_same_time(
    clip_times: ClipTimes, expected: tuple[float | None, float | None]
) -> None:
    snapped = snap_to_frames(clip_times, Span(0.25, 10.25), 4.0)
    assert snapped == tuple(None if wanted is None else pytest.approx(wanted) for wanted in expected)


def test_snapping_a_frame_time_changes_nothing_in_floating_point() -> None:
    for frame in range(480):
        start = 0.1 + frame / 16
        snapped = snap_to_frames(ClipTimes(start, start), Span(0.1, 30.1), 16)
        assert snapped.video_start_seconds == pytest.approx(start, abs=1e-9)


@pytest.mark.parametrize(
    ("start", "end", "window", "stride", "expected"),
    [
        (0, 10, 2, 4, [(0, 2), (4, 6), (8, 10)]),  # the grid ends with the media
        (0, 10, 2, 3, [(0, 2), (3, 5), (6, 8), (8, 10)]),  # one more window covers the end
        (0, 3, 2, 1, [(0, 2), (1, 3)]),
        (1, 3.5, 2, 1, [(1, 3), (1.5, 3.5)]),
        (0, 2, 2, 1, [(0, 2)]),
        (0, 1.2, 2, 1, [(0, 1.2)]),  # shorter than a window
        (5, 5, 2, 1, [(5, 5)]),  # nothing
        (0, 2.0000000001, 2, 1, [(0, 2.0000000001)]),
        (0, 9, 2, 5, [(0, 2), (5, 7), (7, 9)]),  # gaps by request
    ],
)
def test_window_grid(
    start: float, end: float, window: float, stride: float, expected: list[tuple[float, float]]
) -> None:
    np.testing.assert_allclose(window_grid(start, end, window, stride), expected)


def test_grids_cover_the_media_without_gaps_and_in_order() -> None:
    generator = np.random.default_rng(2)
    for _ in range(2000):
        start = generator.uniform(0, 3)
        end = start + generator.uniform(0, 20)
        window = generator.choice([0.5, 0.96, 2.0])
        stride = window * generator.choice([0.1, 0.5, 1 / 3, 1.0])
        grid = window_grid(start, end, window, stride)
        assert grid[0, 0] == start
        assert grid[-1, 1] == pytest.approx(end, abs=1e-5)
        assert grid.max() <= end
        assert (np.diff(grid[:, 0]) > 0).all()
        assert (grid[1:, 0] <= grid[:-1, 1] + 1e-6).all()
        if len(grid) > 1:
            np.testing.assert_allclose(grid[:, 1] - grid[:, 0], window, atol=2e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ClipLengths(video_seconds=0), "must be positive"),
        (lambda: ClipLengths(max_offset_seconds=-1), "not negative"),
        (lambda: ClipLengths(audio_seconds=float("nan")), "must be positive"),
        (lambda: center_clip_times(None, None, AVID), "got neither"),
        (lambda: center_clip_times(Span(2, 1), None, AVID), "the video must have finite start <= end"),
        (lambda: random_clip_times(None, Span(0, float("inf")), AVID, np.random.default_rng()), "the audio must have"),
        (lambda: random_clip_times(None, Span(float("nan"), 1), AVID, np.random.default_rng()), "the audio must have"),
        (lambda: uniform_clip_times(Span(0, 1), None, AVID, 0), "at least 1, got 0"),
        (lambda: frame_times_seconds(0, 0, 16, Span(0, 1)), "num_frames=0"),
        (lambda: frame_times_seconds(0, 8, 0, Span(0, 1)), "fps=0"),
        (lambda: window_grid(0, 1, 0, 1), "window > 0"),
        (lambda: window_grid(0, 1, 1, -1), "stride > 0"),
        (lambda: window_grid(2, 1, 1, 1), "start <= end"),
        (lambda: window_grid(0, float("nan"), 1, 1), "finite"),
    ],
)
def test_wrong_arguments_are_explained(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value)
