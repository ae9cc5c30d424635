"""The formats of lists with their readers, and how a file's format is detected."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path

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
from data_prep.index.lists.row import ListedFiles, csv_rows

READERS: dict[str, Callable[[Path, ListSettings], ListedFiles]] = {
    "kinetics": kinetics,
    "audioset": audioset,
    "vggsound": vggsound,
    "ucf101": ucf101,
    "hmdb51": hmdb51,
    "list": paths,
    "jsonl": json_lines,
    "csv": table,
    "parquet": parquet,
}
IDX = "pictures"  # the value of --format for a file of images in MNIST's format
FORMATS = ("auto", "folder", IDX, *READERS)
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".txt": "list", ".lst": "list"}
HAVE_SPLITS = ("kinetics", "vggsound", "ucf101", "hmdb51", "jsonl", "csv", "parquet")
HAVE_FOLDS = ("ucf101", "hmdb51")


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
