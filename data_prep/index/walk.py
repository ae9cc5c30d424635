"""Lists the files of a folder in sorted order at constant memory, and finds files by their names."""

from __future__ import annotations

import heapq
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Self

from avssl.files.folders import UnreadableFolderError, entries_in, is_folder
from avssl.files.scratch import temporary_folder
from avssl.media.images import IMAGE_SUFFIXES
from avssl.media.info import MEDIA_SUFFIXES

NAMES_AT_A_TIME = 100_000  # names of one folder that are sorted in memory; more are sorted through files
MAX_SUFFIXES = 1000  # suffixes that are counted one by one
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".opus", ".wma", ".aif", ".aiff"})


@dataclass
class Walk:
    """The files below `folder` with these suffixes, as sorted paths relative to it. Others are counted in `ignored`.

    Hidden files and folders and links to folders are counted, too, and not entered. Broken links and pipes with such a
    suffix are listed, and so is a folder that cannot be read: opening them gives the reason why they cannot be used.
    Names that are not UTF-8 are as os.fsdecode gives them.
    """

    folder: Path
    suffixes: Collection[str]
    ignored: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[str]:
        self.ignored.clear()
        yield from self._below("")

    def _below(self, parent: str) -> Iterator[str]:
        with ExitStack() as stack:
            try:
                names = _sorted_names(stack, self._media_names(parent))
            except UnreadableFolderError:
                if not parent:
                    raise
                yield parent.rstrip("/")
                return
            for name in names:
                if name.endswith("/"):
                    yield from self._below(parent + name)
                else:
                    yield parent + name

    def _media_names(self, parent: str) -> Iterator[str]:
        """Names of files with these suffixes, and of folders with a / at the end: sorted names are in the order of
        whole paths.
        """
        for entry in entries_in(self.folder / parent):
            is_hidden = entry.name.startswith(".")
            if is_folder(entry, follow_links=False):
                self.ignored["hidden"] += is_hidden
                if not is_hidden:
                    yield f"{entry.name}/"
            elif is_folder(entry, follow_links=True):
                self.ignored["links to folders"] += 1
            elif (suffix := "hidden" if is_hidden else suffix_of(entry.name)) in self.suffixes:
                yield entry.name
            else:
                is_known = suffix in self.ignored or len(self.ignored) < MAX_SUFFIXES
                self.ignored[(suffix or "none") if is_known else "others"] += 1


# Paths are text here: a Path keeps its parts in a table of the interpreter, which is slow and large for millions.


def suffix_of(path: str) -> str:
    """The extension of a file in lower case, with its dot; "" if there is none."""
    name = path.rpartition("/")[2]
    dot = name.rfind(".")
    return name[dot:].lower() if 0 < dot < len(name) - 1 else ""


def _stem(path: str) -> str:
    """The name of a file without its extension."""
    return path.rpartition("/")[2].rpartition(".")[0]


def num_bytes(path: str) -> int:
    """Size of a file in bytes. OSError if there is no such file."""
    return os.stat(path).st_size  # noqa: PTH116


def _sorted_names(stack: ExitStack, names: Iterator[str]) -> Iterator[str]:
    """The names in order, at constant memory: runs of names are sorted, written to files, and merged."""
    run = sorted(islice(names, NAMES_AT_A_TIME))
    if len(run) < NAMES_AT_A_TIME:
        return iter(run)
    folder = stack.enter_context(temporary_folder())
    runs: list[Iterator[str]] = []
    while run:
        path = folder / str(len(runs))
        path.write_bytes(b"".join(os.fsencode(name) + b"\0" for name in run))
        runs.append(_null_ended(stack.enter_context(path.open("rb"))))
        run = sorted(islice(names, NAMES_AT_A_TIME))
    return heapq.merge(*runs)


def _null_ended(file: IO[bytes]) -> Iterator[str]:
    rest = b""
    while block := file.read(1 << 12):
        *names, rest = (rest + block).split(b"\0")
        yield from (os.fsdecode(name) for name in names)


class NameIndex:
    """Finds files of a folder by their name without extension, in any sub-folder. A context manager.

    The names are in `database`, a file that must not exist yet, and not in memory.
    """

    def __init__(self, folder: Path, suffixes: Collection[str], database: Path) -> None:
        self._database = sqlite3.connect(database)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("CREATE TABLE files (name BLOB, path BLOB)")
        rows = ((os.fsencode(_stem(path)), os.fsencode(path)) for path in Walk(folder, suffixes))
        self._database.executemany("INSERT INTO files VALUES (?, ?)", rows)
        self._database.execute("CREATE INDEX by_name ON files (name)")
        self._database.commit()

    def find(self, names: Sequence[str], folders: Collection[str] = ()) -> str | None:
        """The path, relative to the folder, of a file with the first of the names that exists; None if there is none.

        Of several files with that name, one in a folder that is named like one of `folders` (a class or a split, in any
        spelling) is preferred, then one that is not audio, then the first by path.
        """
        order = {os.fsencode(name): number for number, name in enumerate(names)}
        marks = ", ".join("?" * len(order))
        rows = self._database.execute(f"SELECT name, path FROM files WHERE name IN ({marks})", list(order)).fetchall()
        if not rows:
            return None
        best = min(order[name] for name, _ in rows)
        paths = (os.fsdecode(path) for name, path in rows if order[name] == best)
        return min(paths, key=lambda path: _rank(path, folders))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()


def _rank(path: str, folders: Collection[str]) -> tuple[bool, bool, str]:
    parents = {_spelling(part) for part in path.split("/")[:-1]}
    is_elsewhere = not parents & {_spelling(folder) for folder in folders}
    return is_elsewhere, suffix_of(path) in AUDIO_SUFFIXES, path


def _spelling(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower())


def kind_of(folder: Path) -> str:
    """What a folder is searched for by default: "media" if it holds video or audio files, otherwise "images".

    A GIF counts as what the other files are; if there are only GIFs, they count as videos.
    """
    walk = Walk(folder, MEDIA_SUFFIXES)
    # A folder that cannot be read comes with its own name, of any suffix.
    only_images = all(suffix_of(path) in IMAGE_SUFFIXES for path in walk if suffix_of(path) in MEDIA_SUFFIXES)
    return "images" if only_images and IMAGE_SUFFIXES & walk.ignored.keys() else "media"
