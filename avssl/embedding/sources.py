"""Sources: lists of files, folders of files, and shard folders.

A folder may have any number of files: its listing is read as a stream, in a fixed order, and written to a file on disk
from which its entries are read by number.
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

from avssl.files.disk_errors import clear_errors
from avssl.files.folders import UnreadableFolderError, entries_in, is_folder
from avssl.files.location import is_remote
from avssl.media.images import IMAGE_SUFFIXES
from avssl.media.info import MEDIA_SUFFIXES
from avssl.shards.shard_set import ShardSet

Sources = ShardSet | Sequence[tuple[Path, str]]  # (path, key) of files
NAMES_IN_MEMORY = 200_000  # of one folder; more are sorted in several runs on disk
LINES_PER_STEP = 128  # lines of a listing per stored offset


def suffixes_of(modalities: Sequence[str]) -> frozenset[str]:
    """Suffixes of files that can hold one of the modalities."""
    image_suffixes = IMAGE_SUFFIXES if "image" in modalities else frozenset()
    return image_suffixes | MEDIA_SUFFIXES if set(modalities) - {"image"} else image_suffixes


def is_shard_folder(path: str | Path) -> bool:
    """Whether a path is a shard folder, or the URL of one."""
    return is_remote(path) or (Path(path) / "index.json").is_file()


def resolve_sources(sources: ShardSet | str | Path | Sequence[str | Path], modalities: Sequence[str]) -> Sources:
    """A shard set as it is; one shard folder or its URL as a shard set; files and folders of files as (path, key).

    Of a folder, the files that can hold one of the modalities are taken. The key is the path below the folder, or the
    name of a file that is a source itself. Raises as `list_files`.
    """
    if isinstance(sources, ShardSet):
        return sources
    paths = [sources] if isinstance(sources, str | Path) else sources
    if len(paths) == 1 and is_shard_folder(paths[0]):
        return ShardSet(paths[0])
    roots = [Path(path) for path in paths]
    files = list_files(roots, suffixes_of(modalities))
    return [(roots[number] / below, key_of(below or roots[number].name)) for number, below in files]


def num_sources(sources: Sources) -> int:
    """The number of files, or of the samples of a shard set."""
    return sources.num_samples if isinstance(sources, ShardSet) else len(sources)


def files_below(folder: str | Path, suffixes: Iterable[str], names_in_memory: int = NAMES_IN_MEMORY) -> Iterator[str]:
    """Paths below a folder, relative and with slashes, of the files with one of the suffixes (".mp4", any case).

    They are sorted by name, folder by folder, the same on every machine. Links to files are followed, links to folders
    are not. Everything with such a suffix that is no folder is listed, also links that lead nowhere. A
    subfolder that cannot be read is listed by its own name, so that opening it gives the reason and it is counted.
    OSError if `folder` itself cannot be read.
    """
    allowed = frozenset(suffixes)
    for name, is_subfolder in _sorted_names(folder, allowed, names_in_memory):
        if is_subfolder:
            below = files_below(Path(folder) / name, allowed, names_in_memory)
            try:
                first = next(below, None)
            except UnreadableFolderError:
                yield name
                continue
            if first is not None:
                yield from (f"{name}/{path}" for path in chain([first], below))
        else:
            yield name


def _sorted_names(folder: str | Path, suffixes: frozenset[str], names_in_memory: int) -> Iterator[tuple[str, bool]]:
    """(name, whether it is a folder) of the entries of a folder, sorted by name, at constant memory."""
    with ExitStack() as stack:
        entries = _entries(folder, suffixes)
        batch = sorted(islice(entries, names_in_memory))
        runs: list[Iterator[tuple[str, bool]]] = []
        while len(batch) == names_in_memory:
            file = stack.enter_context(TemporaryFile("w+", encoding="ascii"))
            file.writelines(json.dumps(entry) + "\n" for entry in batch)
            file.seek(0)
            runs.append(_entries_of_run(file))
            batch = sorted(islice(entries, names_in_memory))
        yield from heapq.merge(*runs, batch)


def _entries_of_run(lines: Iterable[str]) -> Iterator[tuple[str, bool]]:
    for line in lines:
        name, is_subfolder = json.loads(line)
        yield name, is_subfolder


def _entries(folder: str | Path, suffixes: frozenset[str]) -> Iterator[tuple[str, bool]]:
    for entry in entries_in(folder):
        if is_folder(entry, follow_links=False):
            yield entry.name, True
        elif os.path.splitext(entry.name)[1].lower() in suffixes and not is_folder(entry, follow_links=True):  # noqa: PTH122
            yield entry.name, False


def key_of(path: str) -> str:
    """A path as a key: text that every file format can hold, whatever bytes the name consists of."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def list_files(roots: Sequence[Path], suffixes: Iterable[str]) -> Iterator[tuple[int, str]]:
    """(number of the root, path below it) of the files with a suffix, in order; the path is "" if the root is a file.

    Raises:
        FileNotFoundError: a root that does not exist, or a folder without such files.
        ValueError: two files that would have the same key.
    """
    allowed = frozenset(suffixes)
    names: dict[str, Path] = {}
    folders: list[Path] = []
    for number, root in enumerate(roots):
        if not root.exists():
            raise FileNotFoundError(f"{root}: no such file or folder")
        is_empty = True
        for below in [""] if root.is_file() else files_below(root, allowed):
            is_empty = False
            name, path = below or root.name, root / below
            others = [names[name]] if name in names else []
            for other in [*others, *(folder / name for folder in folders)]:
                if other.is_file():
                    raise ValueError(
                        f"{other} and {path} would both be called {name!r}; embed them in two calls, or the folder "
                        "above"
                    )
            yield number, below
        if is_empty:
            raise FileNotFoundError(f"{root}: no files below this folder with the suffixes {' '.join(sorted(allowed))}")
        if root.is_file():
            names[root.name] = root
        else:
            folders.append(root)


def write_listing(file: Path, entries: Iterable[tuple[int, str]]) -> int:
    """Write the entries of `list_files` to `file` and their offsets beside it (.npy); return the number of entries.

    Not atomic: the caller records elsewhere that the listing is complete.
    """
    offsets, count = [], 0
    with clear_errors(file, "written"), file.open("wb") as lines:
        for entry in entries:
            if count % LINES_PER_STEP == 0:
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
    """(path, key) by number, from a file of `write_listing`. Picklable; LINES_PER_STEP lines are in memory."""

    def __init__(self, file: Path, roots: Sequence[Path]) -> None:
        self.file, self.roots = file, list(roots)
        *self._offsets, self._count = np.load(file.with_suffix(".npy"), allow_pickle=False).tolist()
        self._step, self._lines = -1, [b""]

    def __len__(self) -> int:
        return int(self._count)

    def __getitem__(self, number: Any) -> Any:
        """(path, key) of the entry with this number, from 0."""
        if not 0 <= number < len(self):
            raise IndexError(f"entry {number} of a listing of {len(self)}")
        step, line = divmod(number, LINES_PER_STEP)
        if step != self._step:
            with self.file.open("rb") as lines:
                lines.seek(self._offsets[step])
                self._lines = list(islice(lines, LINES_PER_STEP))
            self._step = step
        root, below = json.loads(self._lines[line])
        return self.roots[root] / below, key_of(below or self.roots[root].name)
