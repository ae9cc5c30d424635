"""A row of a list, and how a list is read: bad rows are reported by number, and the others are used."""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

from avssl.files.location import is_remote, local_path
from avssl.shards.keys import Segment
from avssl.shards.places import Place, Within
from avssl.types import FailureReason

Raw = TypeVar("Raw")
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True)
class ListedFile:
    """What a list says of one sample: either its path, or names of files to look for.

    path: a URL, absolute, or relative to the folder of the media. names: of files (without extension) that hold just
    this sample, the best first. whole_names: of files of which `segment` is the sample. labels: {field: [names]}.
    segment: (begin, end) in seconds. split: e.g. "train". key: as the list states it; None: it is made of `name`.
    caption, within, sound: as of Entry; then `name` names the row. kind: "media" or "images"; "": by the path's suffix.
    error: (reason, message) if there are no media to open.
    """

    path: str | None = None
    names: tuple[str, ...] = ()
    whole_names: tuple[str, ...] = ()
    labels: dict[str, list[str]] = field(default_factory=dict)
    segment: Segment | None = None
    split: str | None = None
    key: str | None = None
    name: str = ""
    caption: str = ""
    within: Within | None = None
    sound: Place | None = None
    kind: str = ""
    error: tuple[FailureReason, str] | None = None


@dataclass(frozen=True)
class ListSettings:
    """Facts that a published list does not state.

    trimmed: a file named by the bare id holds the listed seconds alone. classes: AudioSet's class_labels_indices.csv;
    None: the file beside the list. fold: which split of a folder of UCF-101 or HMDB-51 lists, 1 to 3.
    Of archives and tables: kind: "media", "images", or None: by what they hold. columns: columns of a table, or
    suffixes of members, that hold the media. label_fields: columns, or fields of a json, that are
    labels; None: those by rule. caption_field: the one that is the caption; None: by its name.
    """

    trimmed: bool = False
    classes: Path | None = None
    fold: int | None = None
    kind: str | None = None
    columns: tuple[str, ...] = ()
    label_fields: tuple[str, ...] | None = None
    caption_field: str | None = None


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used. where: its position in the list, e.g. "line 7"."""

    where: str
    message: str


ListedFiles = Iterator[tuple[str, ListedFile | BadRow]]


def is_url(path: str) -> bool:
    """Whether the path is a URL (s3://..., https://...) and not a path of the file system."""
    return URL.match(path) is not None


def parsed(
    raw: Iterator[tuple[int, Raw]], parse: Callable[[Raw], ListedFile | None], unit: str = "line"
) -> ListedFiles:
    """(where, row) of each raw row. What `parse` refuses with ValueError becomes a BadRow; None is left out."""
    for number, content in raw:
        where = f"{unit} {number}"
        try:
            row = parse(content)
            if row is not None:
                check_text(row)
        except ValueError as error:
            yield where, BadRow(where, str(error))
        else:
            if row is not None:
                yield where, row


def check_text(row: ListedFile) -> None:
    """ValueError for labels that are not UTF-8 or empty, or such a caption (paths may be any bytes)."""
    try:
        row.caption.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("the caption is not UTF-8") from error
    for name, values in row.labels.items():
        for text in (name, *values):
            if not text.strip():
                raise ValueError("a label is empty")
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ValueError(f"the label {text!a} is not UTF-8") from error


@contextmanager
def opened_text(path: Path) -> Iterator[IO[str]]:
    """A text file, .gz or not, open as UTF-8. Bytes that are not UTF-8 (a path may hold any) are as os.fsencode takes
    them. ValueError if a .gz is cut or damaged.
    """
    with path.open("rb") as file:
        stream = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
        try:
            yield io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}: cannot be unpacked, as it is cut or damaged ({error}); copy it anew") from error


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of all lines that are not blank."""
    with opened_text(path) as file:
        for number, line in enumerate(file, start=1):
            if text := line.rstrip("\r\n"):
                yield number, text


def csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of its last line, cells) of each row that is not blank, comments (#) included. Spaces around cells are
    removed.
    """
    with opened_text(path) as file:
        reader = csv.reader(file, skipinitialspace=True)
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                cells = [f"({error})"]
            if any(cell.strip() for cell in cells):
                yield reader.line_num, [cell.strip() for cell in cells]


def seconds(text: str, name: str) -> float:
    """The number of seconds that a text says; ValueError with the name if it says none."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} is {text!a}; it must be a number of seconds") from None


def segment_of(begin: str, end: str) -> Segment:
    """(begin, end) in seconds; ValueError unless 0 <= begin < end."""
    segment = seconds(begin, "the begin"), seconds(end, "the end")
    if not 0 <= segment[0] < segment[1] < math.inf:
        raise ValueError(f"it lasts from {begin} s to {end} s; it must be 0 <= begin < end")
    return segment


def video_id(text: str) -> str:
    """The text itself, as the id of a video; ValueError if it holds characters that an id cannot have."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
        raise ValueError(f"the video id is {text!a}; it may hold A-Z a-z 0-9 _ - only")
    return text


def plain_path(text: str) -> str:
    """A path, normalized, or a URL; ValueError for an empty one, or a protocol that is not allowed."""
    if not text or "\0" in text:
        raise ValueError(f"the path is {text!a}")
    return text if is_remote(text) else os.path.normpath(local_path(text))
