"""Clips of one stream at increasing times: the stream is opened once and decoded once, whatever is cut from it.

Clips may overlap. A frame that several clips show is decoded, cropped and resized once. Frames and samples that later
clips need are kept; what lies between clips is skipped if the container can seek.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, groupby

import numpy as np
import torch
from numpy.typing import NDArray

from avssl.media.info import AudioBlock
from avssl.media.readers import AudioReader, VideoReader
from avssl.media.sources import Source
from avssl.transforms.config import AudioViewConfig, VideoViewConfig
from avssl.transforms.test_view import kept_box, square_of_kept
from avssl.transforms.time_sampling import frame_times_seconds
from avssl.types import MediaError, Span

# Opening the file again and seeking costs about as much as decoding this much audio.
SKIP_AUDIO_SECONDS = 20.0
FRAMES_PER_RESIZE = 8  # frames resized in one call


class VideoClips:
    """Clips of a video in their deterministic view, the center crop.

    Args:
        source, name: as decode.read_video. span: of the video, on the clock on which clips begin.
        stream: the opened, unread reader of the source; by default it is opened here.
        stream_start: where the stream begins on that clock, if not with the span.
    """

    def __init__(
        self,
        source: Source,
        name: str,
        config: VideoViewConfig,
        span: Span,
        stream: VideoReader | None = None,
        stream_start: float | None = None,
    ) -> None:
        self.name, self.config, self.span = name, config, span
        self._stream_start = span.start_seconds if stream_start is None else stream_start
        self._stream = VideoReader(source, name) if stream is None else stream
        self._kept: dict[float, NDArray[np.uint8]] = {}  # seconds -> frame (S, S, 3), for the clips of later calls
        self._last_seconds, self._last_frame = -np.inf, np.empty(0, np.uint8)  # the frame that was read last

    def close(self) -> None:
        """Close the reader of the stream."""
        self._stream.close()

    def read(self, starts: Sequence[float], later_starts: Sequence[float] = ()) -> torch.Tensor:
        """uint8 (n, T, 3, S, S), channels last in memory: the clips that begin at these seconds.

        later_starts: starts of the clips of later calls that begin before the last of these clips ends. A clip must
        not begin before the last frame of an earlier call, unless that call had it in later_starts. Raises MediaError
        as decode.read_video.
        """
        size, times = self.config.size_px, self._times(starts)
        frames = np.empty((len(times), size, size, 3), np.uint8)
        last = max(times, default=0.0)
        later = {seconds for seconds in self._times(later_starts) if seconds <= last}
        ready, self._kept = self._kept, {}
        positions: dict[float, list[int]] = {seconds: [] for seconds in later}
        for position, seconds in enumerate(times):
            positions.setdefault(seconds, []).append(position)
        new = self._frames(sorted(seconds for seconds in positions if seconds not in ready))
        for seconds, frame in chain(((seconds, ready[seconds]) for seconds in positions if seconds in ready), new):
            for position in positions[seconds]:
                frames[position] = frame
            if seconds in later:
                self._kept[seconds] = frame
        clips = torch.from_numpy(frames.reshape(len(starts), self.config.num_frames, size, size, 3))
        return clips.movedim(-1, -3)

    def _times(self, starts: Sequence[float]) -> list[float]:
        """Times of the frames of clips, clip by clip, in seconds from the beginning of the stream."""
        num_frames, fps = self.config.num_frames, self.config.fps
        return [
            seconds
            for start in starts
            for seconds in (frame_times_seconds(start, num_frames, fps, self.span) - self._stream_start).tolist()
        ]

    def _frames(self, times: list[float]) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """(seconds, frame uint8 (S, S, 3)) on screen at increasing times; each frame is cropped and resized once."""
        self._stream.expect(times)
        for first in range(0, len(times), FRAMES_PER_RESIZE):
            crops, numbers = [], []
            for seconds in times[first : first + FRAMES_PER_RESIZE]:
                frame = self._stream.on_screen(seconds)
                if frame is None:
                    raise MediaError("no_video", f"{self.name}: the video stream holds no decodable frame")
                if frame.seconds != self._last_seconds:
                    pixels = self._stream.pixels(frame)
                    top, left, height, width = kept_box(pixels.shape[0], pixels.shape[1], self.config)
                    crops.append(pixels[top : top + height, left : left + width].copy())  # not all of it, if it can be
                    self._last_seconds = frame.seconds
                numbers.append(len(crops))
            resized = [self._last_frame, *self._resized(crops)]
            self._last_frame = resized[-1]
            yield from zip(times[first:], (resized[number] for number in numbers), strict=False)

    def _resized(self, crops: list[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        """Each crop as uint8 (S, S, 3); crops of one size are resized together: a call costs a fifth of a frame.

        Each result is a copy, because one that is kept must not keep the memory of the others.
        """
        for _, alike in groupby(crops, key=np.shape):
            clip = torch.from_numpy(np.stack(list(alike))).movedim(-1, -3)
            resized = square_of_kept(clip, self.config).movedim(-3, -1).numpy()
            yield from (frame.copy() for frame in resized)


class AudioClips:
    """Waveforms of clips of an audio stream, mono, at the sampling rate of the views.

    Args:
        source, name: as decode.read_audio. span: of the audio, on the clock on which clips begin.
        stream: the opened, unread reader of the source; by default it is opened here.
        stream_start: where the stream begins on that clock, if not with the span; the end of the span is then that of
            the audio, whatever the stream still holds.
    """

    def __init__(
        self,
        source: Source,
        name: str,
        config: AudioViewConfig,
        span: Span,
        stream: AudioReader | None = None,
        stream_start: float | None = None,
    ) -> None:
        self.source, self.name, self.config = source, name, config
        self._stream_start = span.start_seconds if stream_start is None else stream_start
        last = np.inf if stream_start is None else round((span.end_seconds - stream_start) * config.rate_hz)
        self._end = last  # number of the sample at which the audio ends
        self._stream = AudioReader(source, name) if stream is None else stream
        self._blocks: Iterator[AudioBlock] | None = None
        self._waveform = np.empty(0, np.float32)  # samples from number _first on that were read and not forgotten
        self._first = 0

    def close(self) -> None:
        """Close the reader of the stream."""
        self._stream.close()

    def forget(self, before_seconds: float) -> None:
        """Drop the samples before a time, before which no later clip begins; skip unread samples if they are many."""
        rate = self.config.rate_hz
        first = max(self._first, round((before_seconds - self._stream_start) * rate))
        kept = self._waveform[first - self._first :]
        reached = self._first + len(self._waveform)
        if self._blocks is not None and not len(kept):
            if first - reached <= SKIP_AUDIO_SECONDS * rate:
                first = reached  # it is cheaper to read on from here
            else:
                self._stream.close()
                self._stream, self._blocks = AudioReader(self.source, self.name), None
        self._waveform, self._first = kept.copy(), first

    def read(self, starts: Sequence[float]) -> torch.Tensor:
        """float32 (n, 1, samples) in [-1, 1]: the clips that begin at these seconds, zeros before the stream.

        Samples after the end of the stream are config.padding.

        In any order, but none before the time given to `forget`. Raises MediaError as decode.read_audio.
        """
        rate, length = self.config.rate_hz, round(self.config.seconds * self.config.rate_hz)
        if self._stream.info is None:
            raise MediaError("no_audio", f"{self.name}: the audio stream holds no decodable sample")
        clips = np.full((len(starts), 1, length), self.config.padding, np.float32)
        for clip, start in zip(clips, starts, strict=True):
            first = round((start - self._stream_start) * rate)
            begin, end = max(0, first), int(max(0, min(first + length, self._end)))
            self._read_up_to(end)
            samples = self._waveform[begin - self._first : end - self._first]
            clip[0, : max(0, -first)] = 0
            clip[0, begin - first : begin - first + len(samples)] = samples
        return torch.from_numpy(clips)

    def _read_up_to(self, end: int) -> None:
        """Read until the samples before number `end` are in memory, or the stream ends."""
        if self._blocks is None:
            self._blocks = self._stream.play(self.config.rate_hz, self._first)
        blocks, reached = [self._waveform], self._first + len(self._waveform)
        while reached < end:
            block = next(self._blocks, None)
            if block is None:
                break
            blocks.append(block)
            reached += len(block)
        if len(blocks) > 1:
            self._waveform = np.concatenate(blocks)
