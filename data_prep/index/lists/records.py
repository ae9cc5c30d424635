"""Readers of a user's own lists: a path per line, json lines, csv, Parquet. A row names a file and may describe it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from avssl.files.checked_json import Fields
from avssl.files.plain_text import brief
from avssl.shards.keys import Segment
from avssl.shards.manifest import read_segment
from avssl.shards.places import Place
from data_prep.index.lists.described import FILE_COLUMN, names_of
from data_prep.index.lists.row import (
    ListedFile,
    ListedFiles,
    ListSettings,
    csv_rows,
    parsed,
    plain_path,
    seconds,
    text_lines,
)

COLUMNS = ("path", "key", "label", "labels", "segment", "begin_seconds", "end_seconds", "split", "caption")
ROWS_AT_A_TIME = 1024  # of a Parquet file


def paths(source: Path, settings: ListSettings) -> ListedFiles:
    """Read a path or URL per line. Blank lines and those that begin with # are left out."""
    del settings
    lines = ((number, text) for number, text in text_lines(source) if text.strip() and not text.startswith("#"))
    return parsed(lines, lambda text: ListedFile(path=plain_path(text)))


def json_lines(source: Path, settings: ListSettings) -> ListedFiles:
    """Read a json object per line with the fields of `record_row`."""
    del settings

    def parse(text: str) -> ListedFile:
        return record_row(Fields.parse(text, "the row").record)

    return parsed(text_lines(source), parse)


def table(source: Path, settings: ListSettings) -> ListedFiles:
    """Read a csv with a header: the columns of `record_row`, all others are label fields. cat|kitten: several names.

    The file is named by `path`, or by columns that are called like file_name, video or audio_path: one, or a video and
    its sound. settings say other columns of files, labels and the caption.
    """
    rows = csv_rows(source)
    _, header = next(rows, (1, [""]))
    files = _file_columns(source, header, settings)
    caption = settings.caption_field or "caption"
    other = {*COLUMNS, *files, caption} - {"label"}

    def parse(cells: list[str]) -> ListedFile:
        if len(cells) != len(header):
            raise ValueError(f"has {len(cells)} cells; the header has {len(header)}")
        record: dict[str, Any] = {name: cell for name, cell in zip(header, cells, strict=True) if cell}
        labels = [name for name in record if name not in other]
        if settings.label_fields is not None:
            labels = [name for name in record if name in settings.label_fields]
        fields = {name: _split(record[name]) for name in labels}
        for name in ("begin_seconds", "end_seconds"):
            record |= {name: seconds(record[name], name)} if name in record else {}
        if refused := {"labels", "segment"} & record.keys() - {*labels}:
            raise ValueError(f"cannot hold {', '.join(sorted(refused))}; use label, begin_seconds and end_seconds")
        kept = {name: record[name] for name in COLUMNS if name in record and name not in ("label", "labels", "caption")}
        paths = [record[name] for name in files if name in record]
        kept |= {"path": paths[0] if paths else None, "caption": record.get(caption)}
        row = record_row(kept | {"labels": {name: names for name, names in fields.items() if names}})
        return row if len(paths) < 2 else replace(row, sound=Place(plain_path(paths[1])))

    return parsed(rows, parse)


def _file_columns(source: Path, header: list[str], settings: ListSettings) -> list[str]:
    """The columns of a csv that name files: one, or of the video and of its sound. ValueError if that is not clear."""
    if len(set(header)) != len(header):
        raise ValueError(f"{source}: has the columns {', '.join(header)}; each name may be there once")
    named = [name for name in header if FILE_COLUMN.fullmatch(name.lower())]
    files = [*settings.columns] or (["path"] if "path" in header else named)
    if missing := [name for name in files if name not in header]:
        raise ValueError(f"{source}: has no column {', '.join(missing)}; it has {', '.join(header)}")
    if not files:
        raise ValueError(
            f"{source}: has the columns {', '.join(header)}; needs one that names files: `path`, or video, audio, "
            "image, file_name; --columns says another"
        )
    files.sort(key=lambda name: bool(re.search("audio|sound", name.lower())))
    if len(files) > 2 or (len(files) == 2 and not re.search("audio|sound", files[1].lower())):
        raise ValueError(f"{source}: several columns name files: {', '.join(files)}; choose one with --columns, or a "
                         "video and its sound (called audio or sound)")  # fmt: skip
    return files


def parquet(source: Path, settings: ListSettings) -> ListedFiles:
    """Read a Parquet file with the columns of `record_row`; labels may be a struct or a map."""
    del settings

    def parse(record: dict[str, Any]) -> ListedFile:
        record = {name: value for name, value in record.items() if value is not None}
        labels = record.get("labels")
        if isinstance(labels, list):  # a map, as PyArrow gives it
            if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in labels):
                raise ValueError(f"labels is {brief(labels)}; it must be a struct or a map")
            labels = dict(labels)
        if isinstance(labels, dict):
            record["labels"] = {name: names for name, names in labels.items() if names is not None}
        return record_row(record)

    return parsed(parquet_rows(source), parse, "row")


def record_row(record: dict[str, Any]) -> ListedFile:
    """The row that a record describes. ValueError says which field does not fit.

    Required: path. Optional: key; labels {field: name or [names]} or label (one name or several); segment [begin, end]
    or begin_seconds and end_seconds; split; caption. Other fields are ignored.
    """
    path, key, split = record.get("path"), record.get("key"), record.get("split")
    if not isinstance(path, str):
        raise ValueError(f"path is {brief(path)}; it must be text")
    if key is not None and (not isinstance(key, str) or not re.fullmatch(r"[A-Za-z0-9_/-]+", key)):
        raise ValueError(f"key is {brief(key)}; it may hold A-Z a-z 0-9 _ / - only")
    if record.get("caption") is not None and not isinstance(record["caption"], str):
        raise ValueError(f"caption is {brief(record['caption'])}; it must be text")
    if split is not None and not isinstance(split, str):
        raise ValueError(f"split is {brief(split)}; it must be text")
    labels = record.get("labels") or {}
    if not isinstance(labels, dict):
        raise ValueError(f"labels is {brief(labels)}; it must be {{field: [names]}}")
    if record.get("label") is not None:
        labels = labels | {"label": record["label"]}
    return ListedFile(
        path=plain_path(path),
        labels={str(name): names_of(name, names) for name, names in labels.items()},
        segment=segment_in(record),
        split=split,
        key=key,
        caption=(record.get("caption") or "").strip(),
    )


def segment_in(record: dict[str, Any]) -> Segment | None:
    """The segment that a record states; None for the whole file. ValueError for one that is none."""
    begin, end = record.get("begin_seconds"), record.get("end_seconds")
    if (begin is None) != (end is None):
        raise ValueError("has one of begin_seconds and end_seconds; give both or none")
    if begin is not None and record.get("segment") is not None:
        raise ValueError("has a segment and begin_seconds; give one of them")
    return read_segment(record.get("segment") if begin is None else [begin, end], "the row")


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split("|") if name.strip()]


def parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, {column: value}) of each row of a file. ValueError if it is no Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=ROWS_AT_A_TIME):
                names = batch.schema.names
                columns = [column.to_pylist() for column in batch.columns]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield number, dict(zip(names, values, strict=True))
    except (pa.ArrowException, OSError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is no readable Parquet file ({error})") from error
