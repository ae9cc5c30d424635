"""Where the media of a listed sample lies: in a file of its own, or within one that holds many, and is read by range.

    Range   bytes of a file: a member of a tar archive, or a value of an Arrow file
    Cell    a value of a Parquet file, by row group, row and column
    Place   a file, and what of it; None: all of it

A manifest states a place as {"path": ..., "within": {...}}. Nothing here opens a file (opened.py does).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, Self

from avssl.files.checked_json import Fields
from avssl.files.location import is_remote
from avssl.files.plain_text import plain


@dataclass(frozen=True)
class Range:
    """Bytes of a file. name: of the member, also for its suffix. offset: of the first byte. num_bytes: how many."""

    name: str
    offset: int
    num_bytes: int

    def to_json(self) -> dict[str, Any]:
        """The range as a plain dict for JSON."""
        return {"name": self.name, "offset": self.offset, "bytes": self.num_bytes}

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Cell:
    """A value of a Parquet file. name: of the file that it was, "" if unknown. column: its name, a.b for a field b of a
    struct. row_group, row: from 0, the row counted in its group. element: of a list, from 0; None: it is no list.
    """

    name: str
    column: str
    row_group: int
    row: int
    element: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The cell as a plain dict for JSON."""
        record = {"name": self.name, "column": self.column, "row_group": self.row_group, "row": self.row}
        return record if self.element is None else record | {"element": self.element}

    def __str__(self) -> str:
        element = "" if self.element is None else f", element {self.element}"
        named = f" ({self.name})" if self.name else ""
        return f"row group {self.row_group}, row {self.row}, column {self.column}{element}{named}"


Within = Range | Cell


@dataclass(frozen=True)
class Place:
    """path: of a file, absolute, a URL, or relative to a manifest's folder. within: what of it; None: all."""

    path: str
    within: Within | None = None

    @property
    def name(self) -> str:
        """The name of the media file, of which the suffix may be told; "" if it has none."""
        return self.path if self.within is None else self.within.name

    def at(self, root: str | os.PathLike[str]) -> Self:
        """The place with its path below the folder or URL `root`; URLs and absolute paths stay."""
        return replace(self, path=path_at(self.path, root))

    def to_json(self) -> dict[str, Any]:
        """The place as a plain dict for JSON."""
        return {"path": self.path} | ({} if self.within is None else {"within": self.within.to_json()})

    @classmethod
    def from_json(cls, fields: Fields) -> Self:
        """The place of a parsed record. ValueError names the field that does not fit."""
        path = fields.text("path")
        if not path or "\0" in path:
            raise fields.wrong("path", "the path or URL of a file")
        return cls(path, within_of(fields))

    def __str__(self) -> str:
        return self.path if self.within is None else f"{self.path}: {plain(str(self.within))}"


@dataclass(frozen=True)
class Sounding:
    """A place, and where its sound lies if that is apart. What `opened` needs; Entry and FileSource have the same."""

    place: Place
    sound: Place | None = None


def within_of(fields: Fields) -> Within | None:
    """What of the file is meant by the field `within` of a record; None if there is none. ValueError if it is wrong."""
    if fields.record.get("within") is None:
        return None
    inner = fields.section("within")
    name = inner.text("name")
    if "offset" in inner.record:
        return Range(name, inner.count("offset"), inner.count("bytes"))
    element = None if inner.record.get("element") is None else inner.count("element")
    return Cell(name, inner.text("column"), inner.count("row_group"), inner.count("row"), element)


def path_at(path: str, root: str | os.PathLike[str]) -> str:
    """The location of a file of a manifest: a URL or an absolute path stays, others are relative to the root.

    ValueError for an absolute path below a root from afar: whoever made that manifest shall not choose what is read
    here and goes into shards.
    """
    if is_remote(path):
        return path
    if path.startswith("/") and is_remote(root):
        raise ValueError(
            f"{path}: is a file of this machine, which a manifest from afar may not name; it may name URLs and files "
            "below its own folder. Download the manifest to read files of this machine by it"
        )
    return path if path.startswith("/") or not os.fspath(root) else f"{os.fspath(root)}/{path}"
