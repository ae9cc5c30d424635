"""Parquet and Arrow files row by row: plain columns as values, media columns as the place of their bytes.

No media are read. In Parquet a value's place is its row group, row and column (avssl/shards/parquet_cells.py reads it).
In Arrow (streams as `save_to_disk` writes them, and files) a value lies uncompressed in one piece, so its place is a
range of bytes. The only user of pyarrow among the lists, but for records.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from avssl.files.checked_json import parse
from avssl.files.damaged_files import value_errors_naming
from avssl.files.location import Location, is_remote, local_path, redacted
from avssl.shards.places import Cell, Range, Within
from avssl.shards.ranged_file import open_ranged

ROWS_AT_A_TIME = 1024
ARROW_FILE_MARK, ARROW_END = b"ARROW1\0\0", b"\xff\xff\xff\xff\0\0\0\0"


@dataclass(frozen=True)
class Column:
    """A column of a table. storage: "struct" ({bytes, path}), "bytes", "text", or "other". is_list: of such values.
    feature: its type by Hugging Face's metadata, like "Video" or "ClassLabel"; "" if there is none. names: of a
    ClassLabel.
    """

    name: str
    storage: str
    is_list: bool = False
    feature: str = ""
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Value:
    """A value of a media column. within: where its bytes are; None: there are none. path: the file it names, or was.
    element: its number in a list; None: it is in none.
    """

    within: Within | None
    path: str
    element: int | None = None


@dataclass(frozen=True)
class TableRow:
    """A row: its number in the file from 0, plain values {column: value}, media {column: values, several of a list}."""

    number: int
    values: dict[str, Any]
    media: dict[str, list[Value]]


def columns_of(location: Location) -> list[Column]:
    """The columns of a file. ValueError if it cannot be read, OSError if it cannot be opened or fetched."""
    with _opened(location) as table, value_errors_naming(redacted(str(location)), table.kind):
        return _columns(table.schema)


def rows_of(location: Location, media: Sequence[Column], plain: Sequence[str]) -> Iterator[TableRow]:
    """The rows of a file in order. ValueError, after the rows before, where it is cut or damaged."""
    with _opened(location) as table:
        rows = table.rows(media, plain)
        while True:
            with value_errors_naming(redacted(str(location)), table.kind):
                row = next(rows, None)
            if row is None:
                return
            yield row


@contextmanager
def _opened(location: Location) -> Iterator[_Parquet | _Arrow]:
    import pyarrow as pa

    text = redacted(str(location))
    with open_ranged(location) as file:
        if file.read(4) == b"PAR1":
            file.seek(0)
            with value_errors_naming(text, "Parquet file"):
                table = _Parquet(file)
            yield table
            return
        file.seek(0)
        begin = len(ARROW_FILE_MARK) if file.read(len(ARROW_FILE_MARK)) == ARROW_FILE_MARK else 0
        source = pa.PythonFile(file) if is_remote(location) else pa.memory_map(str(local_path(location)))
        with source, value_errors_naming(text, "Arrow file"):
            source.seek(begin)
            yield _Arrow(source)


def _columns(schema: Any) -> list[Column]:
    text = (schema.metadata or {}).get(b"huggingface", b"{}")
    features: Any = parse(text, "its metadata 'huggingface'")
    for name in ("info", "features"):
        features = features.get(name) if isinstance(features, dict) else None
    known = features if isinstance(features, dict) else {}
    return [_column(field, known.get(field.name)) for field in schema]


def _column(field: Any, feature: Any) -> Column:
    from pyarrow import types

    kind, is_list = field.type, False
    if types.is_list(kind) or types.is_large_list(kind):
        kind, is_list = kind.value_type, True
    names = {kind.field(n).name: kind.field(n).type for n in range(kind.num_fields)} if types.is_struct(kind) else {}
    if "bytes" in names and _is_binary(names["bytes"]):
        storage = "struct"
    elif _is_binary(kind):
        storage = "bytes"
    else:
        storage = "text" if types.is_string(kind) or types.is_large_string(kind) else "other"
    if isinstance(feature, list) and feature:  # as earlier versions of datasets say it
        feature = feature[0]
    elif isinstance(feature, dict) and isinstance(feature.get("feature"), dict):
        feature = feature["feature"]
    feature = feature if isinstance(feature, dict) else {}
    labels = feature.get("names")
    labels = tuple(map(str, labels)) if isinstance(labels, list) else ()
    return Column(field.name, storage, is_list, str(feature.get("_type", "")), labels)


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))


class _Parquet:
    """An open Parquet file."""

    kind = "Parquet file"

    def __init__(self, file: Any) -> None:
        import pyarrow.parquet as pq

        self._table = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        self.schema = self._table.schema_arrow

    def rows(self, media: Sequence[Column], plain: Sequence[str]) -> Iterator[TableRow]:
        number = 0
        for group in range(self._table.num_row_groups):
            cells = {column.name: self._values(group, column) for column in media}
            values = self._plain(group, plain)
            for _ in range(self._table.metadata.row_group(group).num_rows):
                found = {name: next(of_column) for name, of_column in cells.items()}
                yield TableRow(number, next(values) if plain else {}, found)
                number += 1

    def _plain(self, group: int, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        if names:
            for batch in self._table.iter_batches(ROWS_AT_A_TIME, row_groups=[group], columns=list(names)):
                yield from batch.to_pylist()

    def _values(self, group: int, column: Column) -> Iterator[list[Value]]:
        """The values of a media column in each row of a group. Only the names are read if all, or none, have bytes."""
        is_known, has_bytes = self._known(group, column)
        if not is_known:
            yield from self._read_values(group, column)
            return
        row = 0
        for batch in self._table.iter_batches(ROWS_AT_A_TIME, row_groups=[group], columns=[f"{column.name}.path"]):
            for value in batch.column(0).to_pylist():
                path = (value or {}).get("path") or ""
                yield [Value(_cell(path, column, group, row) if has_bytes else None, path)]
                row += 1

    def _known(self, group: int, column: Column) -> tuple[bool, bool]:
        """(whether it is known without reading that all rows have bytes, or none has; whether all have)."""
        facts = self._table.metadata.row_group(group)
        chunks = {(chunk := facts.column(n)).path_in_schema: chunk.statistics for n in range(facts.num_columns)}
        statistics = chunks.get(f"{column.name}.bytes")
        if f"{column.name}.path" not in chunks or statistics is None or not statistics.has_null_count:
            return False, False
        return statistics.null_count in (0, facts.num_rows), statistics.null_count == 0

    def _read_values(self, group: int, column: Column) -> Iterator[list[Value]]:
        """As `_values`, by reading the column a row at a time."""
        at_a_time = ROWS_AT_A_TIME if column.storage == "text" else 1
        batches = self._table.iter_batches(at_a_time, row_groups=[group], columns=[column.name])
        scalars = (scalar for batch in batches for scalar in batch.column(0))
        for row, value in enumerate(scalar.as_py() for scalar in scalars):
            items = (value or []) if column.is_list else [value]
            found = []
            for number, item in enumerate(items):
                content, path = (item.get("bytes"), item.get("path")) if isinstance(item, dict) else (item, None)
                if isinstance(item, str):
                    content, path = None, item
                element = number if column.is_list else None
                cell = None if content is None else _cell(path or "", column, group, row, element)
                found.append(Value(cell, path or "", element))
            yield found


def _cell(path: str, column: Column, group: int, row: int, element: int | None = None) -> Cell:
    name = f"{column.name}.bytes" if column.storage == "struct" and element is None else column.name
    return Cell(path.rpartition("/")[2], name, group, row, element)


class _Arrow:
    """An open Arrow stream or file, from its schema on."""

    kind = "Arrow file"

    def __init__(self, source: Any) -> None:
        import pyarrow as pa

        self._source = source
        self._messages = pa.ipc.MessageReader.open_stream(source)
        try:
            self.schema = pa.ipc.read_schema(self._messages.read_next_message())
        except StopIteration:
            raise ValueError("it has no schema") from None

    def rows(self, media: Sequence[Column], plain: Sequence[str]) -> Iterator[TableRow]:
        import pyarrow as pa

        number = 0
        while True:
            try:
                message = self._messages.read_next_message()
            except StopIteration:
                self._check_end()
                return
            if message.type != "record batch":
                raise ValueError(f"it holds a {message.type}, which is not read; write it as Parquet")
            body = message.body
            begin = self._source.tell() - body.size
            batch = pa.ipc.read_record_batch(message, self.schema)
            places = {column.name: _in_body(batch.column(column.name), column, body, begin) for column in media}
            values = batch.select(list(plain)).to_pylist() if plain else [{}] * batch.num_rows
            for row in range(batch.num_rows):
                yield TableRow(number, values[row], {name: found[row] for name, found in places.items()})
                number += 1

    def _check_end(self) -> None:
        """ValueError unless the messages end with their mark: a stream that is cut between two of them lacks it."""
        end = self._source.tell()
        self._source.seek(max(0, end - len(ARROW_END)))
        if self._source.read(len(ARROW_END)) != ARROW_END:
            raise ValueError("it has no mark of its end: it was cut, or its writer never closed it")


def _in_body(array: Any, column: Column, body: Any, begin: int) -> list[list[Value]]:
    """The values of a media column of a record batch, whose body lies at byte `begin` of the file."""
    if not column.is_list:
        return [[value] for value in _ranges(array, body, begin)]
    offsets = array.offsets.to_pylist()
    values = _ranges(array.values, body, begin)
    return [
        [Value(value.within, value.path, number) for number, value in enumerate(values[first:end])]
        for first, end in pairwise(offsets)
    ]


def _ranges(array: Any, body: Any, begin: int) -> list[Value]:
    from pyarrow import types

    if types.is_string(array.type) or types.is_large_string(array.type):
        return [Value(None, path or "") for path in array.to_pylist()]
    content, paths = array, [None] * len(array)
    present = np.asarray(array.is_valid())
    if types.is_struct(array.type):
        content = array.field("bytes")
        present = present & np.asarray(content.is_valid())
        if array.type.get_field_index("path") >= 0:
            paths = array.field("path").to_pylist()
    if not len(array):
        return []
    width = np.int64 if types.is_large_binary(content.type) else np.int32
    _, bounds, data = content.buffers()
    ends = np.frombuffer(bounds, width)[content.offset : content.offset + len(content) + 1].astype(np.int64)
    first = 0 if data is None or not ends[-1] else data.address - body.address
    if not 0 <= first <= first + int(ends[-1]) <= body.size:
        raise ValueError("its record batches are compressed, so a value cannot be read by itself; write it as Parquet")
    return [
        Value(
            Range((path or "").rpartition("/")[2], begin + first + int(at), int(end - at)) if is_there else None,
            path or "",
        )
        for path, is_there, at, end in zip(paths, present, ends[:-1], ends[1:], strict=True)
    ]
