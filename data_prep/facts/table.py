"""The table of facts: its columns, and its file, which is Parquet with the key `avssl` in its metadata.

docs/selection.md says what each column means.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from avssl.files.checked_json import Fields
from avssl.files.damaged_files import value_errors_naming
from avssl.files.whole import whole_file

SUFFIX = ".parquet"
METADATA_KEY = b"avssl"
KIND, VERSION = "avssl facts", 1
ROWS_PER_GROUP = 65_536

# {column: type of Arrow}; all but key and path are null where a sample has no such fact.
COLUMNS = {
    "key": "string", "path": "string", "reason": "string", "message": "string", "labels": "string",
    "caption": "string", "content": "string", "bytes": "int64", "duration_seconds": "double",
    "width_px": "int32", "height_px": "int32", "fps": "double", "rate_hz": "int32", "channels": "int32",
    "loudness_lufs": "double", "silent_share": "double", "peak_dbfs": "double", "sound_hash": "uint64",
    "motion": "double", "still_share": "double", "num_shots": "int32", "brightness": "double",
    "entropy_bits": "double", "middle_hash": "uint64", "first_hash": "uint64", "image_hash": "uint64",
}  # fmt: skip
EMBEDDING_COLUMNS = {
    "nearest_video": "float", "nearest_audio": "float", "nearest_image": "float", "av_cosine": "float",
    "av_correspondence": "float",
}  # fmt: skip

Row = dict[str, Any]  # {column: value}; a column that is absent is null


def table_of_rows(rows: Sequence[Row]) -> Any:
    r"""Rows of facts as a table of Arrow with all of COLUMNS.

    What is no Unicode, as in the name of a file, becomes an escape like \udce9; in labels, which are json, one of json.
    """
    import pyarrow as pa

    schema = pa.schema([(name, getattr(pa, _FACTORY.get(kind, kind))()) for name, kind in COLUMNS.items()])
    return pa.Table.from_pylist([{name: _unicode(row.get(name)) for name in COLUMNS} for row in rows], schema)


def _unicode(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


_FACTORY = {"double": "float64", "float": "float32"}  # pyarrow's functions that make the types


def with_columns(table: Any, columns: dict[str, Any]) -> Any:
    """The table with columns of float32 (n,) appended, NaN as null, in place of earlier ones of their names."""
    import pyarrow as pa

    for name, values in columns.items():
        array = pa.array(values, pa.float32(), from_pandas=True)  # NaN becomes null
        place = table.schema.get_field_index(name)
        table = table.append_column(name, array) if place < 0 else table.set_column(place, name, array)
    return table


def write_table(path: Path, tables: Iterable[Any], metadata: dict[str, Any]) -> int:
    """Write tables of one schema as one file, whole or not at all; return the number of rows.

    The bytes depend on the rows and the metadata, not on how the rows are divided into tables. A row group is in memory
    at a time. ValueError if there is no table.
    """
    import pyarrow.parquet as pq

    stored = {METADATA_KEY: json.dumps({"kind": KIND, "version": VERSION, **metadata}, sort_keys=True)}
    num_rows, writer = 0, None
    with whole_file(path) as file, ExitStack() as stack:
        for group in _row_groups(tables):
            table = group.replace_schema_metadata(stored)
            writer = writer or stack.enter_context(pq.ParquetWriter(file, table.schema, compression="zstd"))
            writer.write_table(table, row_group_size=ROWS_PER_GROUP)
            num_rows += table.num_rows
        if writer is None:
            raise ValueError(f"{path}: no rows to write")
    return num_rows


def _row_groups(tables: Iterable[Any]) -> Iterator[Any]:
    """The rows in tables of ROWS_PER_GROUP, the last one shorter, each column in one piece."""
    import pyarrow as pa

    waiting: list[Any] = []
    for given in tables:
        table = given
        while sum(part.num_rows for part in waiting) + table.num_rows >= ROWS_PER_GROUP:
            room = ROWS_PER_GROUP - sum(part.num_rows for part in waiting)
            yield pa.concat_tables([*waiting, table.slice(0, room)]).combine_chunks()
            waiting, table = [], table.slice(room)
        waiting.append(table)
    if sum(part.num_rows for part in waiting):
        yield pa.concat_tables(waiting).combine_chunks()


def read_metadata(path: Path) -> dict[str, Any]:
    """What a file of facts was computed from. FileNotFoundError; ValueError if it is no such file, or damaged."""
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table of facts; make it with `avssl prep facts`")
    with value_errors_naming(path, "Parquet file"):
        stored = pq.read_schema(path, memory_map=False).metadata or {}
    fields = Fields.parse(stored.get(METADATA_KEY, b"{}"), str(path))
    if (fields.record.get("kind"), fields.record.get("version")) != (KIND, VERSION):
        raise ValueError(f"{path}: is no table of facts of this version of avssl; make it with `avssl prep facts`")
    return dict(fields.record)


def empty_table(path: Path) -> Any:
    """A table of Arrow with the columns of a file and no rows. ValueError if the file is damaged."""
    import pyarrow.parquet as pq

    with value_errors_naming(path, "Parquet file"):
        return pq.read_schema(path, memory_map=False).empty_table()


def read_tables(path: Path, columns: Collection[str] | None = None) -> Iterator[Any]:
    """The rows of a file, some thousands at a time, as tables of Arrow. columns: their names; None: all.

    ValueError if the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = None if columns is None else list(columns)
    with value_errors_naming(path, "Parquet file"), closing(pq.ParquetFile(path, memory_map=False)) as file:
        for batch in file.iter_batches(batch_size=ROWS_PER_GROUP, columns=names):
            yield pa.Table.from_batches([batch])
