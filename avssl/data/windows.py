"""Media cut into windows on one time grid for both modalities, decoded in workers: what embedding reads.

A window is filled with evenly spaced clips of each modality; a clip longer than the window is centred on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from avssl.data.clips import Span, window_grid
from avssl.data.decode import MEDIA_SUFFIXES, AudioInfo, Source, VideoInfo, probe, stream_audio, stream_video
from avssl.data.shards import ShardSet
from avssl.data.views import (
    RawView,
    ViewsConfig,
    decode_audio_clip,
    decode_video_clip,
    raw_audio,
    raw_video,
    spans,
    stack_raw_views,
)
from avssl.types import MediaError

MODALITIES = ("video", "audio")
Sources = ShardSet | list[tuple[Path, str]]
WINDOWS_PER_READ = 16  # windows decoded together: bounds the memory of long media


@dataclass(frozen=True)
class Media:
    """One thing to embed. Spans are on its own clock, which begins with its first stream."""

    key: str
    index: int
    video: Source | None
    audio: Source | None
    video_span: Span | None
    audio_span: Span | None
    labels: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Windows:
    """Some windows of one media, decoded.

    clips[modality]: raw view (n_clips, ...) or None; owner[modality]: the window of each clip.
    """

    media: Media
    grid: np.ndarray  # (n, 2) seconds
    has: dict[str, np.ndarray]  # modality -> bool (n,)
    clips: dict[str, RawView | None]
    owner: dict[str, list[int]]


def open_media(path: str | Path, key: str) -> Media:
    """A plain media file; MediaError when it holds neither video nor audio."""
    info = probe(path, name=str(path))
    streams = [stream for stream in (info.video, info.audio) if stream is not None]
    if not streams:
        raise MediaError("no_video", f"{path}: has neither video nor audio")
    zero = min(stream.start_seconds for stream in streams)
    video_span = None if info.video is None else _span(path, info.video, zero)
    audio_span = None if info.audio is None else _span(path, info.audio, zero)
    return Media(key, -1, path if video_span else None, path if audio_span else None, video_span, audio_span)


def _span(path: str | Path, stream: VideoInfo | AudioInfo, zero: float) -> Span:
    start = stream.start_seconds - zero
    duration = stream.duration_seconds
    if not duration:  # the header does not say: look
        duration = 0.0
        if isinstance(stream, VideoInfo):
            for seconds, _ in stream_video(path):
                duration = seconds + 1 / stream.fps
        else:
            for seconds, block in stream_audio(path, stream.rate_hz):
                duration = seconds + block.shape[1] / stream.rate_hz
    return Span(start, start + duration)


def find_media(path: str | Path) -> list[tuple[Path, str]]:
    """(path, key) of one file, or of every media file below a folder, sorted; the key is the path below the folder."""
    root = Path(path)
    if root.is_file():
        return [(root, root.name)]
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such file or folder")
    found = [file for file in sorted(root.rglob("*")) if file.suffix.lower() in MEDIA_SUFFIXES and file.is_file()]
    if not found:
        raise FileNotFoundError(
            f"{root}: no media files below this folder (suffixes: {' '.join(sorted(MEDIA_SUFFIXES))})"
        )
    return [(file, file.relative_to(root).as_posix()) for file in found]


def resolve_sources(sources: ShardSet | str | Path | Sequence[str | Path]) -> Sources:
    """Shards stay shards; a path to a shard folder opens it; files and folders become (path, key) pairs."""
    if isinstance(sources, ShardSet):
        return sources
    if isinstance(sources, str | Path):
        if (Path(sources) / "index.json").is_file():
            return ShardSet(sources)
        return find_media(sources)
    if len(sources) == 1:
        return resolve_sources(sources[0])
    found = [pair for source in sources for pair in find_media(source)]
    paths: dict[str, Path] = {}
    for path, key in found:
        if key in paths:
            raise ValueError(
                f"{paths[key]} and {path} would both be called {key!r}; embed them in two calls, or the folder above"
            )
        paths[key] = path
    return found


def clip_starts(window: Sequence[float], clip_seconds: float) -> list[float]:
    """Starts of the evenly spaced clips that fill a window (start, end); a longer clip is centred on the window."""
    start, end = float(window[0]), float(window[1])
    count = max(1, round((end - start) / clip_seconds))
    centres = start + (end - start) * (np.arange(count) + 0.5) / count
    return [float(centre) - clip_seconds / 2 for centre in centres]


def _decode(media: Media, grid: np.ndarray, config: ViewsConfig, modalities: Sequence[str]) -> Windows:
    """Decode the clips of some windows of one media."""
    result = Windows(media, grid, {}, {}, {})
    for modality in MODALITIES:
        source, span = (media.video, media.video_span) if modality == "video" else (media.audio, media.audio_span)
        seconds = config.video.num_frames / config.video.fps if modality == "video" else config.audio.seconds
        overlaps = np.zeros(len(grid), dtype=bool)
        views: list[dict[str, RawView]] = []
        owner: list[int] = []
        if span is not None and source is not None and modality in modalities:
            # A window that does not overlap the stream by more than rounding has nothing of this modality.
            overlaps = (grid[:, 1] > span.start_seconds + 1e-3) & (grid[:, 0] < span.end_seconds - 1e-3)
            last = max(span.start_seconds, span.end_seconds - seconds)
            for number in np.flatnonzero(overlaps).tolist():
                for wanted in clip_starts(grid[number], seconds):
                    start = min(max(wanted, span.start_seconds), last)
                    views.append({"view": _decode_clip(source, start, config, span, media.key, modality)})
                    owner.append(number)
        result.has[modality], result.owner[modality] = overlaps, owner
        result.clips[modality] = stack_raw_views(views, config.video.augment)["view"] if views else None
    return result


def _decode_clip(source: Source, start: float, config: ViewsConfig, span: Span, key: str, modality: str) -> RawView:
    if modality == "video":
        return raw_video(decode_video_clip(source, start, config.video, span, key), config.video.augment, None)
    return raw_audio(decode_audio_clip(source, start, config.audio, span, key), config.audio.augment, None)


class WindowStream(IterableDataset[Any]):
    """In each worker: its share of the sources, decoded some windows at a time. A failure ends that source only."""

    def __init__(
        self,
        sources: Sources,
        config: ViewsConfig,
        modalities: Sequence[str],
        window_seconds: float,
        stride_seconds: float,
    ) -> None:
        self.sources, self.config, self.modalities = sources, config, modalities
        self.window_seconds, self.stride_seconds = window_seconds, stride_seconds

    def __len__(self) -> int:
        return self.sources.num_samples if isinstance(self.sources, ShardSet) else len(self.sources)

    def name_of(self, number: int) -> str:
        """What to call a source that could not be opened."""
        return f"sample {number}" if isinstance(self.sources, ShardSet) else self.sources[number][1]

    def _open(self, number: int) -> Media:
        if not isinstance(self.sources, ShardSet):
            return open_media(*self.sources[number])
        sample = self.sources.read(number)
        return Media(sample.info.key, sample.info.index, sample.video, sample.audio, *spans(sample), sample.info.labels)

    def __iter__(self) -> Iterator[tuple[int, Windows | MediaError]]:
        worker = get_worker_info()
        numbers = range(worker.id, len(self), worker.num_workers) if worker else range(len(self))
        for number in numbers:
            try:
                for windows in self._windows(number):
                    yield number, windows
            except MediaError as error:
                yield number, error

    def _windows(self, number: int) -> Iterator[Windows]:
        media = self._open(number)
        present = [span for span in (media.video_span, media.audio_span) if span is not None]
        end = max(span.end_seconds for span in present)
        grid = window_grid(0.0, end, self.window_seconds, self.stride_seconds)
        for first in range(0, len(grid), WINDOWS_PER_READ):
            yield _decode(media, grid[first : first + WINDOWS_PER_READ], self.config, self.modalities)
