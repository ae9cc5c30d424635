"""The formats of lists with their readers, those of the user's own too, and how a file's format is detected."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

from avssl.plugins.registry import Registry
from data_prep.index.lists.published import (
    HMDB_LIST,
    UCF_LIST,
    ListSettings,
    audioset,
    hmdb51,
    kinetics,
    ucf101,
    vggsound,
)
from data_prep.index.lists.records import json_lines, parquet, paths, table
from data_prep.index.lists.row import BadRow, ListedFile, ListedFiles, csv_rows, parsed, plain_path, segment_of

IDX = "pictures"  # the value of --format for a file of images in MNIST's format
OTHERS = ("auto", "folder", IDX)  # values of --format that are no lists
Reader = Callable[[Path, ListSettings], ListedFiles]
OwnReader = TypeVar("OwnReader", bound=Callable[[Path], Iterable[ListedFile | BadRow]])
READERS: Registry[Reader] = Registry("list format", others=", ".join(OTHERS))
READERS.update(
    kinetics=kinetics, audioset=audioset, vggsound=vggsound, ucf101=ucf101, hmdb51=hmdb51, list=paths,
    jsonl=json_lines, csv=table, parquet=parquet,
)  # fmt: skip
FORMATS = (*OTHERS, *READERS)
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".txt": "list", ".lst": "list"}
HAVE_SPLITS = ("kinetics", "vggsound", "ucf101", "hmdb51", "jsonl", "csv", "parquet")
NO_SPLITS = ("audioset", "list")
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


def detect(source: Path) -> str:
    """The format of a path by its name and its first lines; IDX for any file that is none of these lists."""
    if source.is_dir():
        return "folder"
    if UCF_LIST.fullmatch(source.name):
        return "ucf101"
    if HMDB_LIST.fullmatch(source.name):
        return "hmdb51"
    if re.search(r"\.csv(\.gz)?$", source.name, re.IGNORECASE):
        return _detect_csv(source)
    suffixes = [suffix.lower() for suffix in source.suffixes if suffix.lower() != ".gz"]
    return SUFFIXES.get(suffixes[-1], IDX) if suffixes else IDX


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
    if "path" in first:
        return "csv"
    if len(first) == 4 and re.fullmatch(r"[A-Za-z0-9_-]{11}", first[0]) and first[3] in ("train", "test"):
        return "vggsound"
    return IDX
