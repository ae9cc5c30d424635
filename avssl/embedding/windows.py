"""Sources cut into windows on one time grid for all modalities, and decoded by worker processes.

A window is filled with evenly spaced clips of video and of audio; a clip longer than the window is centered on it. A
clip that several of the windows read together hold is decoded once. An image has no time: it belongs to the first
window, and a source that is an image alone has one window of no length, [0, 0].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, groupby
from math import floor
from typing import Self

import numpy as np
import torch

from avssl.embedding.media import Media, WindowBatch, media_of_sample, open_file
from avssl.embedding.sources import Sources, num_sources
from avssl.embedding.table import MODALITIES
from avssl.embedding.window_clips import AudioClips, VideoClips
from avssl.media.images import read_image
from avssl.media.readers import AudioReader, VideoReader
from avssl.processes.limits import failure
from avssl.processes.worker import Message
from avssl.shards.manifest import FileSource
from avssl.shards.shard_set import ShardSet
from avssl.transforms.config import ViewsConfig
from avssl.transforms.raw_view import RawView, raw_image
from avssl.transforms.time_sampling import TIME_TOLERANCE_SECONDS, window_grid
from avssl.types import MediaError

WINDOWS_PER_READ = 16  # windows decoded together: bounds the memory of long media


def clip_starts(window: Sequence[float], clip_seconds: float) -> list[float]:
    """Starts of the evenly spaced clips that fill a window (start, end); a longer clip is centered on the window."""
    start, end = float(window[0]), float(window[1])
    count = max(1, round((end - start) / clip_seconds))
    centers = start + (end - start) * (np.arange(count) + 0.5) / count
    return [float(center) - clip_seconds / 2 for center in centers]


def _clip_times(media: Media, grid: np.ndarray, config: ViewsConfig, modality: str) -> list[tuple[int, float]]:
    """(window, start in seconds) of every clip of a modality; windows that hold nothing of it have no clip."""
    if modality == "image":
        return [(window, 0.0) for window in np.flatnonzero(grid[:, 0] == 0).tolist()]
    span = media.spans[modality]
    seconds = config.video.num_frames / config.video.fps if modality == "video" else config.audio.seconds
    # A window that does not overlap the stream by more than rounding has nothing of this modality.
    overlaps = (grid[:, 1] > span.start_seconds + 1e-3) & (grid[:, 0] < span.end_seconds - 1e-3)
    last_start = max(span.start_seconds, span.end_seconds - seconds)
    times = [
        (window, min(max(start, span.start_seconds), last_start))
        for window in np.flatnonzero(overlaps).tolist()
        for start in clip_starts(grid[window], seconds)
    ]
    return [(window, _frame_start(media, start)) for window, start in times] if modality == "audio" else times


def _by_start(times: Sequence[tuple[int, float]]) -> list[tuple[float, list[int]]]:
    """(start, windows that hold it) of the distinct clips: windows that overlap share clips."""
    clips: dict[int, tuple[float, list[int]]] = {}
    for window, start in times:
        clips.setdefault(round(start / TIME_TOLERANCE_SECONDS), (start, []))[1].append(window)
    return list(clips.values())


def _frame_start(media: Media, seconds: float) -> float:
    """Start of the frame of a shard's video that is on screen at a time: there its audio clip begins, as in training.

    Without this the audio would lead the video by up to a frame, besides the time by which the frame itself is late.
    The clip may begin up to a frame before its stream (zeros).
    """
    video = media.spans.get("video")
    if video is None or not media.frame_seconds or not video.start_seconds <= seconds < video.end_seconds:
        return seconds
    frame = floor((seconds - video.start_seconds) / media.frame_seconds + TIME_TOLERANCE_SECONDS)
    return video.start_seconds + frame * media.frame_seconds


class MediaReader:
    """Windows of one media, read in order and a batch at a time; every stream is decoded once. A context manager.

    Clips are center crops, as in the evaluation during training.
    """

    def __init__(self, media: Media, config: ViewsConfig, modalities: Sequence[str]) -> None:
        self.media, self.config = media, config
        self.modalities = [name for name in MODALITIES if name in media.files and name in modalities]
        self._video: VideoClips | None = None
        self._audio: AudioClips | None = None

    def __enter__(self) -> Self:
        try:
            for name in self.modalities:
                if name == "image":
                    continue
                file, span, stream = self.media.files[name], self.media.spans[name], self.media.streams.get(name)
                start = self.media.stream_starts.get(name)
                if name == "video":
                    assert not isinstance(stream, AudioReader)  # streams are stored by modality
                    self._video = VideoClips(file, self.media.key, self.config.video, span, stream, start)
                else:
                    assert not isinstance(stream, VideoReader)
                    self._audio = AudioClips(file, self.media.key, self.config.audio, span, stream, start)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for opened in (self._video, self._audio, self.media):
            if opened is not None:
                opened.close()

    def read(self, grid: np.ndarray, later_grid: np.ndarray) -> WindowBatch:
        """Decode the clips of windows (n, 2), in seconds; later_grid: all windows that follow."""
        batch = WindowBatch(self.media, grid, {}, {}, {})
        for name in MODALITIES:
            times = _clip_times(self.media, grid, self.config, name) if name in self.modalities else []
            distinct = _by_start(times)
            batch.has[name] = np.isin(np.arange(len(grid)), [window for window, _ in times])
            batch.owners[name] = [windows for _, windows in distinct]
            batch.clips[name] = self._decode(name, times, distinct, later_grid) if times else None
        return batch

    def _decode(
        self,
        modality: str,
        times: list[tuple[int, float]],
        distinct: list[tuple[float, list[int]]],
        later_grid: np.ndarray,
    ) -> RawView:
        starts = [start for start, _ in distinct]
        if modality == "video":
            assert self._video is not None  # opened, because it has clips
            return RawView(modality, self._video.read(starts, self._later_starts(max(starts), later_grid)))
        if modality == "audio":
            assert self._audio is not None
            waveforms, first_starts = [], dict(reversed(times))
            for window, clips in groupby(distinct, key=lambda clip: clip[1][0]):
                self._audio.forget(first_starts[window])
                waveforms.append(self._audio.read([start for start, _ in clips]))
            return RawView(modality, torch.cat(waveforms))
        image = read_image(self.media.files[modality], name=self.media.key)[None]
        clip = raw_image(modality, image, self.config.image, None, None).media
        return RawView(modality, torch.stack([clip for _ in starts]))

    def _later_starts(self, last_start: float, later_grid: np.ndarray) -> list[float]:
        """Starts of the video clips of later windows that begin before the clip at `last_start` ends."""
        end = last_start + self.config.video.num_frames / self.config.video.fps
        later_starts: list[float] = []
        for number in range(len(later_grid)):
            window = later_grid[number : number + 1]
            starts = [start for _, start in _clip_times(self.media, window, self.config, "video")]
            if not starts or starts[0] >= end:
                break
            later_starts += starts
        return later_starts


class WindowReader:
    """Windows of many sources, a batch of one source at a time.

    An error ends its source alone; an error of the shard folder itself ends everything.
    Iterate over it in this process, or let SandboxedStreams send its messages from other processes, and `read` them.

    window_seconds and stride_seconds have no effect, and may be 0, if the only modality is image. blocks: numbers of
    the sources to read, in order; default all.
    """

    def __init__(
        self,
        sources: Sources,
        config: ViewsConfig,
        modalities: Sequence[str],
        window_seconds: float,
        stride_seconds: float,
        blocks: Sequence[range] | None = None,
    ) -> None:
        self.sources, self.config, self.modalities = sources, config, modalities
        self.window_seconds, self.stride_seconds = window_seconds, stride_seconds
        self.blocks = [range(num_sources(sources))] if blocks is None else blocks

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    def numbers(self) -> Iterator[int]:
        """Numbers of the sources to read, in order."""
        return chain.from_iterable(self.blocks)

    def name_of(self, number: int) -> str:
        """The name of a source that could not be opened, for messages."""
        return f"sample {number}" if isinstance(self.sources, ShardSet) else self.sources[number].key

    def __iter__(self) -> Iterator[tuple[int, WindowBatch | MediaError]]:
        for number in self.numbers():
            try:
                begun = self.begin(number)
            except MediaError as error:
                yield number, error
                continue
            batches = self._batches(begun)
            while True:
                try:
                    batch = next(batches)
                except Exception as error:
                    yield number, failure(self.name_of(number), error)
                    break
                yield number, batch
                if batch.is_last:
                    break

    def begin(self, number: int) -> Media | FileSource:
        """The media of a sample; of a file only where it lies, so that an error of the file ends this file alone."""
        if isinstance(self.sources, ShardSet):
            media = media_of_sample(self.sources.read(number))
            return replace(media, caption=media.caption or "") if self.sources.index.has_captions else media
        return self.sources[number]

    def messages(self, begun: Media | FileSource) -> Iterator[Message]:
        """The window batches of a source as messages between processes."""
        return map(_message_of, self._batches(begun))

    def read(self, message: Message) -> WindowBatch:
        """The window batch in a message of `messages`; its media has only a key, an index and labels."""
        return _batch_of(message)

    def _batches(self, begun: Media | FileSource) -> Iterator[WindowBatch]:
        media = begun if isinstance(begun, Media) else open_file(begun, self.modalities)
        with MediaReader(media, self.config, self.modalities) as reader:
            grid = np.zeros((1, 2))
            if media.spans and tuple(self.modalities) != ("image",):
                end = max(span.end_seconds for span in media.spans.values())
                grid = window_grid(0.0, end, self.window_seconds, self.stride_seconds)
            for first in range(0, len(grid), WINDOWS_PER_READ):
                after = first + WINDOWS_PER_READ
                batch = reader.read(grid[first:after], grid[after:])
                batch.is_last = after >= len(grid)
                yield batch


def _message_of(batch: WindowBatch) -> Message:
    media = batch.media
    values = {
        "key": media.key,
        "index": media.index,
        "labels": media.labels,
        "caption": media.caption,
        "owners": batch.owners,
    }
    arrays = {f"has {name}": has for name, has in batch.has.items()} | {"grid": batch.grid}
    for name, clips in batch.clips.items():
        if clips is not None:  # channels are sent last, as they lie in memory
            arrays[f"clips {name}"] = (clips.media if name == "audio" else clips.media.movedim(-3, -1)).numpy()
    return Message(values, arrays, batch.is_last)


def _batch_of(message: Message) -> WindowBatch:
    values, arrays = message.values, message.arrays
    clips: dict[str, RawView | None] = dict.fromkeys(MODALITIES)
    for name in MODALITIES:
        if f"clips {name}" in arrays:
            tensor = torch.from_numpy(arrays[f"clips {name}"])
            clips[name] = RawView(name, tensor if name == "audio" else tensor.movedim(-1, -3))
    return WindowBatch(
        Media(values["key"], values["index"], labels=values["labels"], caption=values["caption"]),
        arrays["grid"],
        {name: arrays[f"has {name}"] for name in MODALITIES},
        clips,
        values["owners"],
        message.is_last,
    )
