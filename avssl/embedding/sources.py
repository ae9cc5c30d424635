"""What embedding reads: files, folders of them and samples of shards, and where their streams lie in time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from avssl.data.read_views import spans
from avssl.embedding.listing import files_below, key_of
from avssl.files.location import is_remote
from avssl.media.decode import probe, stream_audio, stream_video
from avssl.media.ffmpeg import Source
from avssl.media.images import IMAGE_SUFFIXES, probe_image
from avssl.media.info import MEDIA_SUFFIXES, AudioInfo, VideoInfo
from avssl.media.readers import PictureStream, SoundStream
from avssl.shards.shard_set import Sample, ShardSet
from avssl.transforms.time_sampling import Span
from avssl.types import MediaError

Sources = ShardSet | Sequence[tuple[Path, str]]


@dataclass(frozen=True)
class Media:
    """One thing to embed: {modality: path or bytes}, and where video and sound lie on a clock that begins with the
    first of them.

    frame_seconds: how long a frame of the video lasts where all do, as in shards; 0 elsewhere. streams: of a file that
    is open, its readers; whoever reads them closes them.
    """

    key: str
    index: int
    sources: dict[str, Source] = field(default_factory=dict)
    spans: dict[str, Span] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)
    frame_seconds: float = 0.0
    streams: dict[str, PictureStream | SoundStream] = field(default_factory=dict, compare=False)

    def close(self) -> None:
        """Close the file, if it is open."""
        for stream in self.streams.values():
            stream.close()


def open_media(path: str | Path, key: str, modalities: Sequence[str]) -> Media:
    """A plain file: a picture if only pictures are wanted or its suffix says so, otherwise video and sound, open.

    MediaError when it cannot be opened or holds none of them. The pixels of a picture are not decoded here.
    """
    if "image" in modalities and (len(modalities) == 1 or Path(path).suffix.lower() in IMAGE_SUFFIXES):
        probe_image(path)
        return Media(key, -1, {"image": path})
    with ExitStack() as opened:
        both: dict[str, PictureStream | SoundStream] = {
            "video": opened.enter_context(PictureStream(path, str(path))),
            "audio": opened.enter_context(SoundStream(path, str(path))),
        }
        facts = {name: stream.info for name, stream in both.items() if stream.info is not None}
        if not facts:
            probe(path, name=str(path))  # may know better
            raise MediaError("no_video", f"{path}: has neither video nor audio")
        zero = min(info.start_seconds for info in facts.values())
        where = {name: _span(path, info, zero) for name, info in facts.items()}
        opened.pop_all()
    return Media(key, -1, dict.fromkeys(facts, path), where, streams=both)


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


def sample_media(sample: Sample) -> Media:
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


def num_sources(sources: Sources) -> int:
    """How many there are."""
    return sources.num_samples if isinstance(sources, ShardSet) else len(sources)
