"""Reader of tables with media in them: Parquet and Arrow of Hugging Face data sets, from anywhere, and any others.

Which columns hold what is read from Hugging Face's metadata in the schema (Video, Audio, Image, ClassLabel, a List of
these); of other tables from the types and names of columns. A row is a sample; of a list of media each is one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from avssl.files import storage
from avssl.files.checked_json import Fields
from avssl.files.location import Location, is_remote, local_path, redacted
from avssl.files.plain_text import brief
from avssl.shards.places import Place
from avssl.types import FailureReason
from data_prep.index.lists.arrow_files import Column, TableRow, Value, columns_of, rows_of
from data_prep.index.lists.described import CAPTION_FIELDS, FILE_COLUMN, LABEL_FIELDS, caption_of, labels_of
from data_prep.index.lists.records import segment_in
from data_prep.index.lists.row import BadRow, ListedFile, ListedFiles, ListSettings, is_url, parsed, plain_path

SUFFIXES = (".parquet", ".arrow")
FEATURES = {"Video": "video", "Audio": "audio", "Image": "image"}
WORDS = {
    "image": ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo"),
    "audio": ("audio", "sound", "speech", "wav", "flac", "mp3", "m4a", "ogg", "opus"),
    "video": ("video", "clip", "movie", "mp4", "mkv", "webm", "mov", "avi", "media", "bytes", "content", "data"),
}
OTHER_FIELDS = ("key", "__key__", "split", "segment", "begin_seconds", "end_seconds")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


@dataclass(frozen=True)
class _Plan:
    """What is read of a table. kind: "media" or "images". media: its columns, the first for the sample itself, a second
    for a sound apart. plain: the other columns that are read.
    """

    kind: str
    media: tuple[Column, ...]
    plain: tuple[Column, ...]


def huggingface(source: Location, settings: ListSettings) -> ListedFiles:
    """Read a Parquet or Arrow file, a folder of them as the hub has it, or one of save_to_disk; local or a URL.

    A table that cannot be read is a bad row, but if it is the only one. One that is damaged further on lists the rows
    before, and one that says where it ends.
    """
    tables = tables_of(source)
    for location, split in tables:
        name = redacted(location).rpartition("/")[2]
        try:
            columns = columns_of(location)
            plan = _plan(columns, settings, name)
        except (OSError, ValueError) as error:
            if len(tables) == 1:
                raise
            yield name, BadRow(name, redacted(str(error)))
            continue
        settings = replace(settings, kind=plan.kind)  # of all tables, that of the first
        yield from parsed(
            iter(enumerate(_rows(location, plan, split, settings), start=1)),
            lambda made: made(),
            f"{name}, row",
        )


def _rows(location: str, plan: _Plan, split: str | None, settings: ListSettings) -> Iterator[Callable[[], ListedFile]]:
    """Functions that make the rows of a table, and may raise ValueError for one of them; then one that says its end."""
    number = 0
    try:
        for row in rows_of(location, plan.media, [column.name for column in plan.plain]):
            number = row.number + 1
            yield from _samples(location, row, plan, split, settings)
    except ValueError as error:
        problem: tuple[FailureReason, str] = ("truncated", f"after {number} rows: {error}")
        end = ListedFile(path=location, name=f"{_stem(location)}/end", kind=plan.kind, error=problem)
        yield lambda: end


def has_media(source: Path) -> bool:
    """Whether a Parquet file holds media in its columns, or names them otherwise than by `path` as lists do."""
    columns = {column.name: column for column in columns_of(source)}
    has_bytes = any(column.storage in ("struct", "bytes") for column in columns.values())
    return has_bytes or ("path" not in columns and any(_names_files(column) for column in columns.values()))


# --- which files ----------------------------------------------------------------------------------------------------


def tables_of(source: Location) -> list[tuple[str, str | None]]:
    """(location, split or None) of every table of a source: in the order of SPLITS, then by name.

    FileNotFoundError if there are none.
    """
    text = os.fspath(source)
    if not is_remote(text) and not local_path(text).is_dir():
        return [(os.path.abspath(local_path(text)), None)]  # noqa: PTH100
    if is_remote(text) and _is_table(text):
        return [(text, None)]
    names = [name for name, _ in storage.files_below(text) if not re.search(r"(^|/)[.]", name)]
    saved = [name for name in names if name.rpartition("/")[2] == "state.json"]
    listed = [table for name in saved for table in _saved(text, name)]
    listed += [name for name in names if _is_table(name) and not listed]
    found = [(storage.join(text, name) if is_remote(text) else str(local_path(text).absolute() / name), split_of(name))
             for name in listed]  # fmt: skip
    if not found:
        raise FileNotFoundError(f"{redacted(text)}: holds no {' or '.join(SUFFIXES)} files")
    order = list(SPLITS)
    return sorted(found, key=lambda table: (order.index(table[1]) if table[1] else -1, table[0]))


def _is_table(name: str) -> bool:
    return name.partition("?")[0].lower().endswith(SUFFIXES)


def _saved(folder: str, state: str) -> list[str]:
    """The tables of a data set of save_to_disk, by its state.json; caches that lie beside them are none."""
    content = storage.read_bytes(storage.join(folder, state))
    files = Fields.parse(content, f"{redacted(folder)}/{state}").sections("_data_files")
    parent = state.rpartition("/")[0]
    return [f"{parent}/{name}".lstrip("/") for name in (file.file_name("filename") for file in files)]


def split_of(name: str) -> str | None:
    """The split that the name of a file, or of a folder that it lies in, says; None if it says none or several."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    found = [split for split, spelled in SPLITS.items() if words & set(spelled)]
    return found[0] if len(found) == 1 else None


def _stem(location: str) -> str:
    return Path(location.partition("?")[0]).stem


# --- which columns --------------------------------------------------------------------------------------------------


def _plan(columns: Sequence[Column], settings: ListSettings, name: str) -> _Plan:
    """What to read of a table. ValueError if it is not clear which columns hold the media, or none does."""
    known = {column.name: column for column in columns}
    for wanted in (*settings.columns, *(settings.label_fields or ()), *filter(None, [settings.caption_field])):
        if wanted not in known:
            raise ValueError(f"{name}: has no column {brief(wanted)}; it has {', '.join(known)}")
    roles = _roles([known[wanted] for wanted in settings.columns] or columns, is_named=bool(settings.columns))
    if not any(roles.values()):
        roles = _roles([column for column in columns if _names_files(column)], is_named=True)
    kind = settings.kind or ("media" if roles["video"] or roles["audio"] else "images")
    media = [*roles["image"]] if kind == "images" else [*roles["video"], *roles["audio"]]
    if not media:
        shown = ", ".join(f"{column.name} ({column.feature or column.storage})" for column in columns)
        raise ValueError(f"{name}: no column holds {kind}; it has {shown}. Name the one that does with --columns")
    several = [column.name for of_role in roles.values() if len(of_role) > 1 for column in of_role if column in media]
    if several or (len(media) > 1 and any(column.is_list for column in media)):
        names = ", ".join(several or [column.name for column in media])
        raise ValueError(
            f"{name}: several columns hold media: {names}; choose one with --columns, or a video and its sound"
        )
    taken = {column.name for of_role in roles.values() for column in of_role}
    named = {*LABEL_FIELDS, *CAPTION_FIELDS, *OTHER_FIELDS, *(settings.label_fields or ()), settings.caption_field}
    plain = [column for column in columns if column.name in named or column.feature == "ClassLabel"]
    plain = [column for column in plain if column.name not in taken and column.storage not in ("struct", "bytes")]
    return _Plan(kind, tuple(media), tuple(plain))


def _roles(columns: Sequence[Column], *, is_named: bool) -> dict[str, list[Column]]:
    roles: dict[str, list[Column]] = {"video": [], "audio": [], "image": []}
    for column in columns:
        role = role_of(column, is_named=is_named)
        if role:
            roles[role].append(column)
    return roles


def _names_files(column: Column) -> bool:
    """Whether a column of text names media files, by its own name."""
    return column.storage == "text" and FILE_COLUMN.fullmatch(column.name.lower()) is not None


def role_of(column: Column, *, is_named: bool) -> str:
    """What a column holds: "video", "audio", "image", or "" if no media. is_named: the user says that it holds some."""
    if column.feature in FEATURES:
        return FEATURES[column.feature]
    if column.feature == "ClassLabel" or column.storage == "other":
        return ""
    words = set(re.split(r"[^a-z0-9]+", column.name.lower()))
    role = next((role for role, spelled in WORDS.items() if words & set(spelled)), "")
    if column.storage in ("struct", "bytes") or is_named:
        return role or ("video" if column.storage == "struct" or is_named else "")
    return ""


# --- rows -----------------------------------------------------------------------------------------------------------


def _samples(
    location: str, row: TableRow, plan: _Plan, split: str | None, settings: ListSettings
) -> Iterator[Callable[[], ListedFile]]:
    """A function for each sample of a row, which makes it, or raises ValueError."""
    first = plan.media[0]
    values = row.media[first.name]
    if first.is_list:
        for value in values:
            yield partial(_sample, location, row, [value], plan, split, settings)
        return
    apart = [row.media[column.name][0] for column in plan.media[1:]]
    yield partial(_sample, location, row, [values[0], *apart], plan, split, settings)


def _sample(
    location: str, row: TableRow, values: Sequence[Value], plan: _Plan, split: str | None, settings: ListSettings
) -> ListedFile:
    record = _named_classes(row.values, plan.plain)
    there = [place for value in values if (place := _place(location, value)) is not None]
    number = f"{row.number:06d}" if values[0].element is None else f"{row.number:06d}/{values[0].element}"
    name = _name(values) or f"{_stem(location)}/{number}"
    key = record.get("key", record.get("__key__"))
    fields = {column.name for column in plan.plain if column.feature == "ClassLabel"}
    listed = settings if settings.label_fields is not None else replace(
        settings, label_fields=(*LABEL_FIELDS, *sorted(fields - {*LABEL_FIELDS}))
    )  # fmt: skip
    error: tuple[FailureReason, str] | None = None
    if not there:
        columns = " and ".join(column.name for column in plan.media)
        error = "missing_file", f"{redacted(location)}: row {row.number} holds nothing in {columns}"
    own_split = record.get("split")
    return ListedFile(
        path=there[0].path if there else location,
        name=name,
        labels=labels_of(record, listed),
        segment=segment_in(record),
        split=own_split if isinstance(own_split, str) else split,
        key=key if isinstance(key, str) and re.fullmatch(r"[A-Za-z0-9_/-]+", key) else None,
        caption=caption_of(record, settings),
        within=there[0].within if there else None,
        sound=there[1] if len(there) > 1 else None,
        kind=plan.kind,
        error=error,
    )


def _place(location: str, value: Value) -> Place | None:
    """Where the bytes of a value are: within the table, or in the file that it names; None if it is empty.

    ValueError for a file of this machine that a table from afar names: whoever made it shall not choose what is read
    here and goes into shards.
    """
    if value.within is not None:
        return Place(location, value.within)
    if not value.path:
        return None
    path = plain_path(value.path)
    if path.startswith("/") and is_remote(location):
        raise ValueError(
            f"it names {brief(path)}, a file of this machine; a table from afar may name URLs and files below its own "
            "folder. Download the table to read files of this machine by it"
        )
    if is_url(path) or path.startswith("/"):
        return Place(path)
    folder = location.rpartition("/")[0]
    return Place(storage.join(folder, path) if is_remote(location) else os.path.normpath(f"{folder}/{path}"))


def _name(values: Sequence[Value]) -> str:
    """What a row is called: by the file that its media were, without folders of another machine; "" if unknown."""
    path = next((value.path for value in values if value.path and value.element is None), "")
    return path.rpartition("/")[2] if is_url(path) or path.startswith("/") else path


def _named_classes(record: dict[str, Any], columns: Sequence[Column]) -> dict[str, Any]:
    """The record with the names of its classes in place of their numbers; -1 is no class."""
    named = {}
    for column in columns:
        value = record.get(column.name)
        if column.feature == "ClassLabel":
            numbers = value if isinstance(value, list) else [value]
            for number in numbers:
                if number is not None and not -1 <= number < len(column.names):
                    raise ValueError(f"{column.name} is {brief(number)}; there are {len(column.names)} classes")
            value = [column.names[number] for number in numbers if number is not None and number >= 0]
        named[column.name] = value
    return {name: value for name, value in named.items() if value is not None}
