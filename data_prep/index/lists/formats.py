"""The formats of lists with their readers, those of the user's own too, and how a file's format is detected."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from avssl.files import storage
from avssl.files.location import Location, is_remote, local_path, redacted
from avssl.media.images import IMAGE_SUFFIXES
from avssl.media.info import MEDIA_SUFFIXES
from avssl.plugins.registry import Registry
from data_prep.index.lists.described import FILE_COLUMN
from data_prep.index.lists.published import (
    HMDB_LIST,
    UCF_LIST,
    audioset,
    hmdb51,
    kinetics,
    ucf101,
    vggsound,
)
from data_prep.index.lists.records import json_lines, parquet, paths, table
from data_prep.index.lists.row import (
    BadRow,
    ListedFile,
    ListedFiles,
    ListSettings,
    csv_rows,
    parsed,
    plain_path,
    segment_of,
)
from data_prep.index.lists.tables import has_media, huggingface
from data_prep.index.lists.tars import webdataset

IDX = "pictures"  # the value of --format for a file of images in MNIST's format
OTHERS = ("auto", "folder", IDX)  # values of --format that are no lists
HOLD_MEDIA = {".tar": "webdataset", ".parquet": "huggingface", ".arrow": "huggingface"}
Reader = Callable[[Any, ListSettings], ListedFiles]
OwnReader = TypeVar("OwnReader", bound=Callable[[Path], Iterable[ListedFile | BadRow]])
READERS: Registry[Reader] = Registry("list format", others=", ".join(OTHERS))
READERS.update(
    kinetics=kinetics, audioset=audioset, vggsound=vggsound, ucf101=ucf101, hmdb51=hmdb51, list=paths,
    jsonl=json_lines, csv=table, parquet=parquet, webdataset=webdataset, huggingface=huggingface,
)  # fmt: skip
FORMATS = (*OTHERS, *READERS)
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".arrow": "huggingface", ".txt": "list", ".lst": "list"}
HAVE_SPLITS = ("kinetics", "vggsound", "ucf101", "hmdb51", "jsonl", "csv", "parquet", "huggingface")
NO_SPLITS = ("audioset", "list", "webdataset")
ANYWHERE = ("webdataset", "huggingface")  # may be URLs, patterns and folders, too
HAVE_FOLDS = ("ucf101", "hmdb51")


def register_list_format(name: str) -> Callable[[OwnReader], OwnReader]:
    """Decorator: makes a function of a list's path a value of `avssl prep index --format` (docs/plugins.md).

    The function yields a ListedFile for each row that can be used, and a BadRow for each that cannot: bad rows are
    reported by their place, and end the command unless --skip-bad-rows. Labels that are empty or not UTF-8 make a row a
    bad one. What it raises for the whole list should be a ValueError that says what to do.
    ValueError for a name that is taken.
    """

    def add(function: OwnReader) -> OwnReader:
        def read(source: Path, _: ListSettings) -> ListedFiles:
            for number, row in enumerate(function(source), start=1):
                if isinstance(row, BadRow):
                    yield row.where, row
                else:
                    yield from parsed(iter([(number, row)]), _checked, "row")

        READERS.add(name, read, function)
        return function

    if name in OTHERS:
        raise ValueError(f"the list format name {name!r} is taken; choose another name")
    return add


def _checked(row: object) -> ListedFile:
    """A row of the user's own reader; ValueError for one that cannot be used."""
    if not isinstance(row, ListedFile):
        raise ValueError(f"the reader gave {type(row).__name__}; it must give ListedFile or BadRow")
    if row.segment is not None:
        segment_of(*map(str, row.segment))
    return row if row.path is None else replace(row, path=plain_path(row.path))


def detect(location: Location) -> str:
    """The format of a path, URL or pattern by its name and its first lines; IDX for any file that is none of these.

    ValueError for a URL of which the name says nothing.
    """
    text = os.fspath(location)
    if re.search(r"\.tar(\?.*)?$", text, re.IGNORECASE) and not Path(text).is_dir():
        return "webdataset"
    if is_remote(text):
        suffix = Path(text.partition("?")[0]).suffix.lower()
        return HOLD_MEDIA[suffix] if suffix in HOLD_MEDIA else _detect_remote(text)
    source = local_path(text)
    return _detect_folder(source) if source.is_dir() else _detect_file(source)


def _detect_file(source: Path) -> str:
    if UCF_LIST.fullmatch(source.name):
        return "ucf101"
    if HMDB_LIST.fullmatch(source.name):
        return "hmdb51"
    if re.search(r"\.csv(\.gz)?$", source.name, re.IGNORECASE):
        return _detect_csv(source)
    if source.suffix.lower() == ".parquet":
        return "huggingface" if _has_media(source) else "parquet"
    suffixes = [suffix.lower() for suffix in source.suffixes if suffix.lower() != ".gz"]
    return SUFFIXES.get(suffixes[-1], IDX) if suffixes else IDX


def _has_media(source: Path) -> bool:
    try:
        return has_media(source)
    except (OSError, ValueError):  # no readable Parquet file, which its reader says
        return False


def _entries(folder: Path | os.DirEntry[str]) -> Iterator[os.DirEntry[str]]:
    """What lies in a folder, one by one, however much it is; nothing in what is no folder or must not be read."""
    with suppress(NotADirectoryError, PermissionError, FileNotFoundError), os.scandir(folder) as entries:
        yield from entries


def _detect_folder(folder: Path) -> str:
    """The format of a folder: of the tars or tables that it, or a folder in it, holds if no media are there."""
    found: set[str] = set()
    for entry in chain(
        _entries(folder), (below for each in _entries(folder) if each.is_dir() for below in _entries(each))
    ):
        suffix = Path(entry.name).suffix.lower()
        if suffix in MEDIA_SUFFIXES | IMAGE_SUFFIXES and not entry.name.startswith("."):
            return "folder"
        if suffix in HOLD_MEDIA and entry.is_file():
            found.add(HOLD_MEDIA[suffix])
    return "webdataset" if "webdataset" in found else found.pop() if found else "folder"


def _detect_remote(url: str) -> str:
    """The format of a remote folder by what it holds."""
    suffixes = Counter(Path(name).suffix.lower() for name, _ in storage.files_below(url))
    if found := {HOLD_MEDIA[suffix] for suffix in suffixes if suffix in HOLD_MEDIA}:
        return "webdataset" if "webdataset" in found else found.pop()
    held = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in suffixes.most_common(8))
    raise ValueError(f"{redacted(url)}: holds no .tar, .parquet or .arrow files; it holds {held}")


def _detect_csv(source: Path) -> str:
    try:
        rows = [cells for _, cells in islice(csv_rows(source), 4)]
    except (OSError, EOFError):
        return IDX
    first = rows[0] if rows else []
    if first and first[0].startswith("#") and any("YTID" in cells[0] or "Segments csv" in cells[0] for cells in rows):
        return "audioset"
    if "youtube_id" in [cell.lower() for cell in first]:
        return "kinetics"
    if any(FILE_COLUMN.fullmatch(cell.lower()) for cell in first):
        return "csv"
    if len(first) == 4 and re.fullmatch(r"[A-Za-z0-9_-]{11}", first[0]) and first[3] in ("train", "test"):
        return "vggsound"
    return IDX
