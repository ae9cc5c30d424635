"""Media cut into windows on one time grid for all modalities, decoded in workers: what embedding reads.

A window is filled with evenly spaced clips of video and of sound; a clip longer than the window is centred on it. A
picture has no time: it belongs to the first window, and pictures alone have one window of no length, [0, 0].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from avssl.data.clips import TIME_TOLERANCE_SECONDS, Span, frame_times_seconds, window_grid
from avssl.data.decode import (
    MEDIA_SUFFIXES,
    AudioInfo,
    Source,
    VideoInfo,
    probe,
    read_video,
    stream_audio,
    stream_video,
)
from avssl.data.listing import files_below, key_of
from avssl.data.location import is_remote
from avssl.data.pictures import IMAGE_SUFFIXES, probe_image, read_image
from avssl.data.shards import Sample, ShardSet
from avssl.data.views import (
    RawView,
    ViewsConfig,
    decode_audio_clip,
    raw_audio,
    raw_picture,
    spans,
    stack_raw_views,
)
from avssl.tables import MODALITIES
from avssl.types import MediaError

Sources = ShardSet | Sequence[tuple[Path, str]]
WINDOWS_PER_READ = 16  # windows decoded together: bounds the memory of long media
FRAMES_PER_READ = 32  # full frames decoded together, or those of one clip


@dataclass(frozen=True)
class Media:
    """One thing to embed: {modality: path or bytes}, and where video and sound lie on a clock that begins with the
    first of them.

    frame_seconds: how long a frame of the video lasts where all do, as in shards; 0 elsewhere.
    """

    key: str
    index: int
    sources: dict[str, Source] = field(default_factory=dict)
    spans: dict[str, Span] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)
    frame_seconds: float = 0.0


@dataclass
class Windows:
    """Some windows of one media, decoded.

    clips[modality]: raw view (n_clips, ...) or None; owner[modality]: the window of each clip; is_last: no more follow.
    """

    media: Media
    grid: np.ndarray  # (n, 2) seconds
    has: dict[str, np.ndarray]  # modality -> bool (n,)
    clips: dict[str, RawView | None]
    owner: dict[str, list[int]]
    is_last: bool = True


def open_media(path: str | Path, key: str, modalities: Sequence[str]) -> Media:
    """A plain file: a picture if only pictures are wanted or its suffix says so, otherwise video and sound.

    MediaError when it cannot be opened or holds none of them. The pixels of a picture are not decoded here.
    """
    if "image" in modalities and (len(modalities) == 1 or Path(path).suffix.lower() in IMAGE_SUFFIXES):
        probe_image(path)
        return Media(key, -1, {"image": path})
    info = probe(path, name=str(path))
    streams = {name: stream for name, stream in (("video", info.video), ("audio", info.audio)) if stream is not None}
    if not streams:
        raise MediaError("no_video", f"{path}: has neither video nor audio")
    zero = min(stream.start_seconds for stream in streams.values())
    where = {name: _span(path, stream, zero) for name, stream in streams.items()}
    return Media(key, -1, dict.fromkeys(streams, path), where)


def _span(path: str | Path, stream: VideoInfo | AudioInfo, zero: float) -> Span:
    start = stream.start_seconds - zero
    duration = stream.duration_seconds
    if not duration:  # the header does not say: look
        duration = 0.0
        if isinstance(stream, VideoInfo):
            for seconds, _ in stream_video(path):
                duration = seconds + (1 / stream.fps if stream.fps else 0.0)
        else:
            for seconds, block in stream_audio(path, stream.rate_hz):
                duration = seconds + block.shape[1] / stream.rate_hz
    return Span(start, start + duration)


def _sample_media(sample: Sample) -> Media:
    """A sample of a shard."""
    stored = {"video": sample.video, "audio": sample.audio, "image": sample.image}
    sources: dict[str, Source] = {name: content for name, content in stored.items() if content is not None}
    where = {name: span for name, span in zip(("video", "audio"), spans(sample), strict=True) if span is not None}
    frame_seconds = 1 / sample.info.video_fps if "video" in where else 0.0
    return Media(sample.info.key, sample.info.index, sources, where, sample.info.labels, frame_seconds)


def suffixes_of(modalities: Sequence[str]) -> frozenset[str]:
    """Suffixes of files that can hold one of the modalities."""
    pictures = IMAGE_SUFFIXES if "image" in modalities else frozenset()
    return pictures | MEDIA_SUFFIXES if set(modalities) - {"image"} else pictures


def find_media(path: str | Path, modalities: Sequence[str]) -> list[tuple[Path, str]]:
    """(path, key) of one file, or of every file below a folder that can hold one of the modalities, sorted.

    The key is the path below the folder. FileNotFoundError when there is none.
    """
    root = Path(path)
    if root.is_file():
        return [(root, key_of(root.name))]
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such file or folder")
    suffixes = suffixes_of(modalities)
    found = [(root / below, key_of(below)) for below in files_below(root, suffixes)]
    if not found:
        kind = "pictures" if list(modalities) == ["image"] else "media files"
        raise FileNotFoundError(f"{root}: no {kind} below this folder (suffixes: {' '.join(sorted(suffixes))})")
    return found


def resolve_sources(sources: ShardSet | str | Path | Sequence[str | Path], modalities: Sequence[str]) -> Sources:
    """Shards stay shards; a path to a shard folder or a URL opens it; files and folders become (path, key) pairs."""
    if isinstance(sources, ShardSet):
        return sources
    if isinstance(sources, str | Path):
        if is_remote(sources) or (Path(sources) / "index.json").is_file():
            return ShardSet(sources)
        return find_media(sources, modalities)
    if len(sources) == 1:
        return resolve_sources(sources[0], modalities)
    found = [pair for source in sources for pair in find_media(source, modalities)]
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


def _with_its_frame(media: Media, start: float) -> float:
    """The sound of a shard from the frame on that is on screen at a time, as in training: without this it would lead by
    up to a frame, beside what the frame itself is late. It may begin up to a frame before its stream (zeros).
    """
    video = media.spans.get("video")
    if video is None or not media.frame_seconds or not video.start_seconds <= start < video.end_seconds:
        return start
    frame = floor((start - video.start_seconds) / media.frame_seconds + TIME_TOLERANCE_SECONDS)
    return video.start_seconds + frame * media.frame_seconds


def _decode(media: Media, grid: np.ndarray, config: ViewsConfig, modalities: Sequence[str]) -> Windows:
    """Decode the clips of some windows of one media."""
    result = Windows(media, grid, {}, {}, {})
    for modality in MODALITIES:
        wanted = modality in media.sources and modality in modalities
        times = _clip_times(media, grid, config, modality) if wanted else []
        owner = [number for number, _ in times]
        views = [{"view": view} for view in _decode_clips(media, [start for _, start in times], config, modality)]
        result.has[modality], result.owner[modality] = np.isin(np.arange(len(grid)), owner), owner
        result.clips[modality] = stack_raw_views(views)["view"] if views else None
    return result


def _decode_clips(media: Media, starts: Sequence[float], config: ViewsConfig, modality: str) -> Iterator[RawView]:
    """The deterministic views of clips: their centre crops, as in training's own evaluation.

    Several of video are read together: opening and finding one's place in a long file costs more than a clip of it.
    """
    if not starts:
        return
    source, key = media.sources[modality], media.key
    if modality == "image":
        picture = read_image(source, name=key)[None]
        yield from (raw_picture("image", picture, config.image, None, None) for _ in starts)
        return
    span = media.spans[modality]
    if modality == "video":
        each, at_once = config.video.num_frames, max(1, FRAMES_PER_READ // config.video.num_frames)
        for first in range(0, len(starts), at_once):
            times = [frame_times_seconds(s, each, config.video.fps, span) for s in starts[first : first + at_once]]
            frames = read_video(source, (np.concatenate(times) - span.start_seconds).tolist(), name=key)
            for clip in frames.split(each):
                yield raw_picture("video", clip, config.video, None, None)
        return
    for start in starts:  # one by one: where containers round their times, a sound begins where it is sought
        yield raw_audio(decode_audio_clip(source, start, config.audio, span, key), config.audio, None)


def num_sources(sources: Sources) -> int:
    """How many there are."""
    return sources.num_samples if isinstance(sources, ShardSet) else len(sources)


class WindowStream(IterableDataset[Any]):
    """In each worker: its share of the sources, decoded some windows at a time. A failure ends that source only.

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

    def name_of(self, number: int) -> str:
        """What to call a source that could not be opened."""
        return f"sample {number}" if isinstance(self.sources, ShardSet) else self.sources[number][1]

    def _open(self, number: int) -> Media:
        if not isinstance(self.sources, ShardSet):
            return open_media(*self.sources[number], self.modalities)
        return _sample_media(self.sources.read(number))

    def __iter__(self) -> Iterator[tuple[int, Windows | MediaError]]:
        worker = get_worker_info()
        every = chain.from_iterable(self.blocks)
        for number in islice(every, worker.id, None, worker.num_workers) if worker else every:
            try:
                for windows in self._windows(number):
                    yield number, windows
            except MediaError as error:
                yield number, error

    def _windows(self, number: int) -> Iterator[Windows]:
        media = self._open(number)
        grid = np.zeros((1, 2))
        if media.spans and tuple(self.modalities) != ("image",):
            end = max(span.end_seconds for span in media.spans.values())
            grid = window_grid(0.0, end, self.window_seconds, self.stride_seconds)
        for first in range(0, len(grid), WINDOWS_PER_READ):
            windows = _decode(media, grid[first : first + WINDOWS_PER_READ], self.config, self.modalities)
            windows.is_last = first + WINDOWS_PER_READ >= len(grid)
            yield windows
