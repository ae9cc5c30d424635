"""A listing of files in folders of any size: streamed, in a fixed order, and frozen on disk to be read by number."""

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
