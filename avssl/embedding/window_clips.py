"""Clips of one medium at times that go on: each stream is opened once and decoded once, whatever is cut from it.

Clips may overlap. What several of them show is decoded, cropped and resized once; what is needed again later is kept,
what lies between them is jumped over where the container can seek.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, groupby

import numpy as np
import torch
from numpy.typing import NDArray

from avssl.media.ffmpeg import Source
from avssl.media.info import AudioBlock
from avssl.media.readers import AudioReader, VideoReader
from avssl.transforms.config import AudioViewConfig, VideoViewConfig
from avssl.transforms.crop import Box, center_crop_box, crop_resize
from avssl.transforms.time_sampling import frame_times_seconds
from avssl.types import MediaError, Span

# Opening the file anew and seeking costs about what decoding so much sound costs.
SKIP_SOUND_SECONDS = 20.0
FRAMES_TOGETHER = 8  # that are resized together


class VideoClips:
    """The deterministic view of clips of a video, their center crops.

    Args:
        source, name: as decode.read_video. span: of the video, on the clock on which clips begin.
        stream: the source's, opened and not read from; default: open it here.
    """

    def __init__(
        self, source: Source, name: str, config: VideoViewConfig, span: Span, stream: VideoReader | None = None
    ) -> None:
        self.name, self.config, self.span = name, config, span
        self._stream = VideoReader(source, name) if stream is None else stream
        self._kept: dict[float, NDArray[np.uint8]] = {}  # seconds -> (S, S, 3), for the clips of later calls
        self._last_seconds, self._last_frame = -np.inf, np.empty(0, np.uint8)  # of what was read last, as in _kept

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def read(self, starts: Sequence[float], later_starts: Sequence[float] = ()) -> torch.Tensor:
        """uint8 (n, T, 3, S, S), channels last in memory: the clips that begin at these seconds.

        later_starts: of the clips of later calls that begin before the last of these ends. Clips must not begin before
        an earlier call's last frame, unless that call was told of them. Raises MediaError as decode.read_video.
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
        """Seconds from the stream's beginning of the frames of clips, clip by clip."""
        each, fps = self.config.num_frames, self.config.fps
        return [
            seconds
            for start in starts
            for seconds in (frame_times_seconds(start, each, fps, self.span) - self.span.start_seconds).tolist()
        ]

    def _frames(self, times: list[float]) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """(seconds, uint8 (S, S, 3)) of the frames on screen at rising seconds; each is cropped and resized once."""
        self._stream.expect(times)
        for first in range(0, len(times), FRAMES_TOGETHER):
            crops, which = [], []
            for seconds in times[first : first + FRAMES_TOGETHER]:
                picture = self._stream.on_screen(seconds)
                if picture is None:
                    raise MediaError("no_video", f"{self.name}: the video stream holds no decodable frame")
                if picture.seconds != self._last_seconds:
                    crops.append(self._stream.part(picture, center_crop_box))
                    self._last_seconds = picture.seconds
                which.append(len(crops))
            found = [self._last_frame, *self._resized(crops)]
            self._last_frame = found[-1]
            yield from zip(times[first:], (found[number] for number in which), strict=False)

    def _resized(self, crops: list[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        """uint8 (S, S, 3) of each; those of one size together, for a call costs as much as a fifth of a frame.

        Each in memory of its own: one that is kept must not keep the others.
        """
        for shape, alike in groupby(crops, key=np.shape):
            clip = torch.from_numpy(np.stack(list(alike))).movedim(-1, -3)
            together = crop_resize(clip, Box(0, 0, *shape[:2]), self.config.size_px).movedim(-3, -1).numpy()
            yield from (frame.copy() for frame in together)


class AudioClips:
    """The waveform of clips of a sound, mono, at the views' rate.

    Args:
        source, name: as decode.read_audio. span: of the sound, on the clock on which clips begin.
        stream: the source's, opened and not read from; default: open it here.
    """

    def __init__(
        self, source: Source, name: str, config: AudioViewConfig, span: Span, stream: AudioReader | None = None
    ) -> None:
        self.source, self.name, self.config, self.span = source, name, config, span
        self._stream = AudioReader(source, name) if stream is None else stream
        self._blocks: Iterator[AudioBlock] | None = None
        self._waveform = np.empty(0, np.float32)  # the samples from number _first on that were read and not forgotten
        self._first = 0

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def forget(self, before_seconds: float) -> None:
        """No clip will begin before this: what was read up to there is dropped, and much that was not is skipped."""
        rate = self.config.rate_hz
        first = max(self._first, round((before_seconds - self.span.start_seconds) * rate))
        kept = self._waveform[first - self._first :]
        reached = self._first + len(self._waveform)
        if self._blocks is not None and not len(kept):
            if first - reached <= SKIP_SOUND_SECONDS * rate:
                first = reached  # it is cheaper to read on from here
            else:
                self._stream.close()
                self._stream, self._blocks = AudioReader(self.source, self.name), None
        self._waveform, self._first = kept.copy(), first

    def read(self, starts: Sequence[float]) -> torch.Tensor:
        """float32 (n, 1, samples) in [-1, 1]: the clips that begin at these seconds, zeros outside the stream.

        In any order, but none before what `forget` was told. Raises MediaError as decode.read_audio.
        """
        rate, length = self.config.rate_hz, round(self.config.seconds * self.config.rate_hz)
        if self._stream.info is None:
            raise MediaError("no_audio", f"{self.name}: the audio stream holds no decodable sample")
        clips = np.zeros((len(starts), 1, length), np.float32)
        for clip, start in zip(clips, starts, strict=True):
            first = round((start - self.span.start_seconds) * rate)
            begin, end = max(0, first), max(0, first + length)
            self._read_up_to(end)
            piece = self._waveform[begin - self._first : end - self._first]
            clip[0, begin - first : begin - first + len(piece)] = piece
        return torch.from_numpy(clips)

    def _read_up_to(self, end: int) -> None:
        """Have the samples before number `end` in memory, as far as the stream goes."""
        if self._blocks is None:
            self._blocks = self._stream.play(self.config.rate_hz, self._first)
        pieces, reached = [self._waveform], self._first + len(self._waveform)
        while reached < end:
            block = next(self._blocks, None)
            if block is None:
                break
            pieces.append(block)
            reached += len(block)
        if len(pieces) > 1:
            self._waveform = np.concatenate(pieces)
