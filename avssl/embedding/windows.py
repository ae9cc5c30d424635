"""Media cut into windows on one time grid for all modalities, decoded in workers: what embedding reads.

A window is filled with evenly spaced clips of video and of sound; a clip longer than the window is centered on it. What
several of the windows that are read together hold is one clip. A picture has no time: it belongs to the first window,
and pictures alone have one window of no length, [0, 0].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from math import floor
from pathlib import Path
from typing import Self

import numpy as np
import torch

from avssl.embedding.media import Media, WindowBatch
from avssl.embedding.sources import Sources, num_sources, open_media, sample_media
from avssl.embedding.table import MODALITIES
from avssl.embedding.window_clips import AudioClips, VideoClips
from avssl.media.images import read_image
from avssl.media.readers import AudioReader, VideoReader
from avssl.processes.limits import failure
from avssl.processes.worker import Message
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
    """(window, start in seconds) of every clip of a modality. Windows that hold nothing of it have none."""
    if modality == "image":
        return [(number, 0.0) for number in np.flatnonzero(grid[:, 0] == 0).tolist()]
    span = media.spans[modality]
    seconds = config.video.num_frames / config.video.fps if modality == "video" else config.audio.seconds
    # A window that does not overlap the stream by more than rounding has nothing of this modality.
    overlaps = (grid[:, 1] > span.start_seconds + 1e-3) & (grid[:, 0] < span.end_seconds - 1e-3)
    last = max(span.start_seconds, span.end_seconds - seconds)
    starts = [
        (number, min(max(wanted, span.start_seconds), last))
        for number in np.flatnonzero(overlaps).tolist()
        for wanted in clip_starts(grid[number], seconds)
    ]
    return [(number, _with_its_frame(media, start)) for number, start in starts] if modality == "audio" else starts


def _distinct(times: Sequence[tuple[int, float]]) -> list[tuple[float, list[int]]]:
    """(start, its windows) of the clips that begin at different times: where windows overlap, they share clips."""
    found: dict[int, tuple[float, list[int]]] = {}
    for window, start in times:
        found.setdefault(round(start / TIME_TOLERANCE_SECONDS), (start, []))[1].append(window)
    return list(found.values())


def _with_its_frame(media: Media, start: float) -> float:
    """The sound of a shard from the frame on that is on screen at a time, as in training: without this it would lead by
    up to a frame, beside what the frame itself is late. It may begin up to a frame before its stream (zeros).
    """
    video = media.spans.get("video")
    if video is None or not media.frame_seconds or not video.start_seconds <= start < video.end_seconds:
        return start
    frame = floor((start - video.start_seconds) / media.frame_seconds + TIME_TOLERANCE_SECONDS)
    return video.start_seconds + frame * media.frame_seconds


class MediaReader:
    """The windows of one media, some at a time and in order; every stream is decoded once. A context manager.

    Clips are their center crops, as in training's own evaluation.
    """

    def __init__(self, media: Media, config: ViewsConfig, modalities: Sequence[str]) -> None:
        self.media, self.config = media, config
        self.modalities = [name for name in MODALITIES if name in media.sources and name in modalities]
        self._video: VideoClips | None = None
        self._audio: AudioClips | None = None

    def __enter__(self) -> Self:
        try:
            for name in self.modalities:
                if name == "image":
                    continue
                where = self.media.sources[name], self.media.key
                span, stream = self.media.spans[name], self.media.streams.get(name)
                if name == "video":
                    assert not isinstance(stream, AudioReader)  # they are kept by name
                    self._video = VideoClips(*where, self.config.video, span, stream)
                else:
                    assert not isinstance(stream, VideoReader)
                    self._audio = AudioClips(*where, self.config.audio, span, stream)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for clips in (self._video, self._audio, self.media):
            if clips is not None:
                clips.close()

    def read(self, grid: np.ndarray, later: np.ndarray) -> WindowBatch:
        """Decode the clips of some windows, (n, 2) seconds; later: all those that follow."""
        result = WindowBatch(self.media, grid, {}, {}, {})
        for name in MODALITIES:
            times = _clip_times(self.media, grid, self.config, name) if name in self.modalities else []
            distinct = _distinct(times)
            result.has[name] = np.isin(np.arange(len(grid)), [number for number, _ in times])
            result.owners[name] = [windows for _, windows in distinct]
            result.clips[name] = self._clips(name, times, distinct, later) if times else None
        return result

    def _clips(
        self,
        modality: str,
        times: list[tuple[int, float]],
        distinct: list[tuple[float, list[int]]],
        later: np.ndarray,
    ) -> RawView:
        starts = [start for start, _ in distinct]
        if modality == "video":
            assert self._video is not None  # it is wanted, and there
            return RawView(modality, self._video.read(starts, self._starts_before(max(starts), later)))
        if modality == "audio":
            assert self._audio is not None
            waveforms, first_starts = [], dict(reversed(times))
            for number, clips in groupby(distinct, key=lambda clip: clip[1][0]):
                self._audio.forget(first_starts[number])
                waveforms.append(self._audio.read([start for start, _ in clips]))
            return RawView(modality, torch.cat(waveforms))
        picture = read_image(self.media.sources[modality], name=self.media.key)[None]
        clip = raw_image(modality, picture, self.config.image, None, None).media
        return RawView(modality, torch.stack([clip for _ in starts]))

    def _starts_before(self, last_start: float, later: np.ndarray) -> list[float]:
        """Starts of the video clips of later windows that begin before the last of these ends."""
        end = last_start + self.config.video.num_frames / self.config.video.fps
        found: list[float] = []
        for number in range(len(later)):
            starts = [start for _, start in _clip_times(self.media, later[number : number + 1], self.config, "video")]
            if not starts or starts[0] >= end:
                break
            found += starts
        return found


class WindowStream:
    """Sources decoded some windows at a time. A failure ends that source only; what shards raise of themselves, all.

    Iterate over it in this process, or let SandboxedStreams do its pieces in others, and `read` them.

    window_seconds and stride_seconds are of no use, and may be 0, where modalities are pictures alone. blocks: the
    numbers of the sources to read, in order; default all.
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
        """Of the sources to read, in order."""
        return chain.from_iterable(self.blocks)

    def name_of(self, number: int) -> str:
        """What to call a source that could not be opened."""
        return f"sample {number}" if isinstance(self.sources, ShardSet) else self.sources[number][1]

    def __iter__(self) -> Iterator[tuple[int, WindowBatch | MediaError]]:
        for number in self.numbers():
            try:
                begun = self.begin(number)
            except MediaError as error:
                yield number, error
                continue
            windows = self._windows(begun)
            while True:
                try:
                    found = next(windows)
                except Exception as error:
                    yield number, failure(self.name_of(number), error)
                    break
                yield number, found
                if found.is_last:
                    break

    def begin(self, number: int) -> Media | tuple[Path, str]:
        """A sample of the shards as it is stored; of a file its path and key, for nothing of it is read here."""
        return sample_media(self.sources.read(number)) if isinstance(self.sources, ShardSet) else self.sources[number]

    def pieces(self, begun: Media | tuple[Path, str]) -> Iterator[Message]:
        """A source's windows as they travel between processes."""
        return map(_packed, self._windows(begun))

    def read(self, piece: Message) -> WindowBatch:
        """The windows that `pieces` sent; of media no more than its names."""
        return _unpacked(piece)

    def _windows(self, begun: Media | tuple[Path, str]) -> Iterator[WindowBatch]:
        media = begun if isinstance(begun, Media) else open_media(*begun, self.modalities)
        with MediaReader(media, self.config, self.modalities) as reader:
            grid = np.zeros((1, 2))
            if media.spans and tuple(self.modalities) != ("image",):
                end = max(span.end_seconds for span in media.spans.values())
                grid = window_grid(0.0, end, self.window_seconds, self.stride_seconds)
            for first in range(0, len(grid), WINDOWS_PER_READ):
                after = first + WINDOWS_PER_READ
                windows = reader.read(grid[first:after], grid[after:])
                windows.is_last = after >= len(grid)
                yield windows


def _packed(windows: WindowBatch) -> Message:
    media = windows.media
    values = {"key": media.key, "index": media.index, "labels": media.labels, "owners": windows.owners}
    arrays = {f"has {name}": has for name, has in windows.has.items()} | {"grid": windows.grid}
    for name, raw in windows.clips.items():
        if raw is not None:  # channels travel last, as they lie in memory
            arrays[f"clips {name}"] = (raw.media if name == "audio" else raw.media.movedim(-3, -1)).numpy()
    return Message(values, arrays, windows.is_last)


def _unpacked(piece: Message) -> WindowBatch:
    values, arrays = piece.values, piece.arrays
    clips: dict[str, RawView | None] = dict.fromkeys(MODALITIES)
    for name in MODALITIES:
        if f"clips {name}" in arrays:
            media = torch.from_numpy(arrays[f"clips {name}"])
            clips[name] = RawView(name, media if name == "audio" else media.movedim(-1, -3))
    return WindowBatch(
        Media(values["key"], values["index"], labels=values["labels"]),
        arrays["grid"],
        {name: arrays[f"has {name}"] for name in MODALITIES},
        clips,
        values["owners"],
        piece.is_last,
    )
