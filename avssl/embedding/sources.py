"""What embedding reads: files, folders of them and samples of shards, and where their streams lie in time.

Folders may have any size: their listing is streamed, in a fixed order, and frozen on disk to be read by number.
"""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from avssl.embedding.media import Media
from avssl.files.disk_errors import clear_errors
from avssl.files.folders import UnreadableFolderError, entries_in, is_folder
from avssl.files.location import is_remote
from avssl.media.decode import probe, stream_audio, stream_video
from avssl.media.ffmpeg import Source
from avssl.media.images import IMAGE_SUFFIXES, probe_image
from avssl.media.info import MEDIA_SUFFIXES, AudioInfo, VideoInfo
from avssl.media.readers import AudioReader, VideoReader
from avssl.shards.shard_set import Sample, ShardSet, spans
from avssl.types import MediaError, Span

Sources = ShardSet | Sequence[tuple[Path, str]]


def open_media(path: str | Path, key: str, modalities: Sequence[str]) -> Media:
    """A plain file: a picture if only pictures are wanted or its suffix says so, otherwise video and sound, open.

    MediaError when it cannot be opened or holds none of them. The pixels of a picture are not decoded here.
    """
    if "image" in modalities and (len(modalities) == 1 or Path(path).suffix.lower() in IMAGE_SUFFIXES):
        probe_image(path)
        return Media(key, -1, {"image": path})
    with ExitStack() as opened:
        both: dict[str, VideoReader | AudioReader] = {
            "video": opened.enter_context(VideoReader(path, str(path))),
            "audio": opened.enter_context(AudioReader(path, str(path))),
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


NAMES_IN_MEMORY = 200_000  # of one folder; more are sorted in pieces on the disk

LINES_A_STEP = 128  # one offset is kept for so many lines


def files_below(folder: str | Path, suffixes: Iterable[str], names_in_memory: int = NAMES_IN_MEMORY) -> Iterator[str]:
    """Paths below a folder, relative and with slashes, of the files with one of the suffixes (".mp4", any case).

    The order is that of the names, folder by folder, the same on every machine. Links to files are followed, links to
    folders are not. Whatever has such a name and is no folder is listed, also links that lead nowhere, and so is a
    folder below that cannot be read, by its own name: opening them says why they cannot be used, and they are counted.
    OSError if `folder` itself cannot be read.
    """
    wanted = frozenset(suffixes)
    for name, holds_more in _sorted_names(folder, wanted, names_in_memory):
        if holds_more:
            below = files_below(Path(folder) / name, wanted, names_in_memory)
            try:
                first = next(below, None)
            except UnreadableFolderError:
                yield name
                continue
            if first is not None:
                yield from (f"{name}/{rest}" for rest in chain([first], below))
        else:
            yield name


def _sorted_names(folder: str | Path, suffixes: frozenset[str], names_in_memory: int) -> Iterator[tuple[str, bool]]:
    """(name, is it a folder) of what a folder holds, by name; at constant memory."""
    with ExitStack() as stack:
        entries = _entries(folder, suffixes)
        batch = sorted(islice(entries, names_in_memory))
        runs: list[Iterator[tuple[str, bool]]] = []
        while len(batch) == names_in_memory:
            file = stack.enter_context(TemporaryFile("w+", encoding="ascii"))
            file.writelines(json.dumps(entry) + "\n" for entry in batch)
            file.seek(0)
            runs.append(_stored(file))
            batch = sorted(islice(entries, names_in_memory))
        yield from heapq.merge(*runs, batch)


def _stored(lines: Iterable[str]) -> Iterator[tuple[str, bool]]:
    for line in lines:
        name, is_folder = json.loads(line)
        yield name, is_folder


def _entries(folder: str | Path, suffixes: frozenset[str]) -> Iterator[tuple[str, bool]]:
    for entry in entries_in(folder):
        if is_folder(entry, follow_links=False):
            yield entry.name, True
        elif os.path.splitext(entry.name)[1].lower() in suffixes and not is_folder(entry, follow_links=True):  # noqa: PTH122
            yield entry.name, False


def key_of(path: str) -> str:
    """A path as a key: text that every file format can hold, whatever bytes the name is made of."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def media_in(roots: Sequence[Path], suffixes: Iterable[str]) -> Iterator[tuple[int, str]]:
    """(number of the root, path below it; "" for a root that is a file) of everything to read, in order.

    Raises:
        FileNotFoundError: a root that is not there, or a folder without such files.
        ValueError: two files that would have the same key.
    """
    wanted = frozenset(suffixes)
    names: dict[str, Path] = {}
    folders: list[Path] = []
    for number, root in enumerate(roots):
        if not root.exists():
            raise FileNotFoundError(f"{root}: no such file or folder")
        is_empty = True
        for below in [""] if root.is_file() else files_below(root, wanted):
            is_empty = False
            name, path = below or root.name, root / below
            others = [names[name]] if name in names else []
            for other in [*others, *(folder / name for folder in folders)]:
                if other.is_file():
                    raise ValueError(
                        f"{other} and {path} would both be called {name!r}; embed them in two calls, or what is above"
                    )
            yield number, below
        if is_empty:
            raise FileNotFoundError(f"{root}: no files below this folder with the suffixes {' '.join(sorted(wanted))}")
        if root.is_file():
            names[root.name] = root
        else:
            folders.append(root)


def write_listing(file: Path, found: Iterable[tuple[int, str]]) -> int:
    """Write what `media_in` gives to `file` and its offsets beside it (.npy); the number of entries.

    Not atomic: whoever calls it says elsewhere when it is whole.
    """
    offsets, count = [], 0
    with clear_errors(file, "written"), file.open("wb") as lines:
        for entry in found:
            if count % LINES_A_STEP == 0:
                offsets.append(lines.tell())
            lines.write(json.dumps(entry).encode("ascii") + b"\n")
            count += 1
        lines.flush()
        os.fsync(lines.fileno())
    with clear_errors(file, "written"), file.with_suffix(".npy").open("wb") as stream:
        np.save(stream, np.array([*offsets, count], np.int64))
        stream.flush()
        os.fsync(stream.fileno())
    return count


class Listing(Sequence[tuple[Path, str]]):
    """(path, key) by number, from a file of `write_listing`. Picklable; a few lines are in memory at a time."""

    def __init__(self, file: Path, roots: Sequence[Path]) -> None:
        self.file, self.roots = file, list(roots)
        *self._offsets, self._count = np.load(file.with_suffix(".npy"), allow_pickle=False).tolist()
        self._step, self._lines = -1, [b""]

    def __len__(self) -> int:
        return int(self._count)

    def __getitem__(self, number: Any) -> Any:
        """The entry with this number, from 0."""
        if not 0 <= number < len(self):
            raise IndexError(f"entry {number} of a listing of {len(self)}")
        step, line = divmod(number, LINES_A_STEP)
        if step != self._step:
            with self.file.open("rb") as lines:
                lines.seek(self._offsets[step])
                self._lines = list(islice(lines, LINES_A_STEP))
            self._step = step
        root, below = json.loads(self._lines[line])
        return self.roots[root] / below, key_of(below or self.roots[root].name)
