"""Named columns as Parquet, and back: the files of embedding tables. The only user of pyarrow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from avssl.files.checked_json import Fields
from avssl.files.damaged_files import value_errors_naming
from avssl.files.plain_text import brief
from avssl.files.whole import whole_file

FORMAT_VERSION = 1
SUFFIX = ".parquet"
ROWS_PER_GROUP = 4096  # rows in memory at a time when many are written or read
_METADATA_KEY = "avssl"
Present = Mapping[str, NDArray[np.bool_]]


def write_columns(destination: Path, columns: Mapping[str, Any], present: Present, metadata: Mapping[str, Any]) -> Path:
    """Write a Parquet file, complete or not at all; the same columns give the same bytes.

    Args:
        destination: file to write; its folder is made if it does not exist.
        columns: name -> list of str, array (n,), or float32 (n, dim), all of the same length n.
        present: for each column (n, dim), which rows hold a vector, bool (n,); the other rows become null.
        metadata: any values that JSON can hold.
    """
    import pyarrow.parquet as pq

    if destination.suffix != SUFFIX:
        raise ValueError(f"cannot write {str(destination)!r}: a table is a Parquet file, with the suffix {SUFFIX}")
    table = _arrow_table(columns, present, _payload(metadata))
    with whole_file(destination) as stream:
        pq.write_table(table, stream, row_group_size=ROWS_PER_GROUP, **_layout(table.schema))
    return destination


def write_row_groups(
    destination: Path, groups: Iterable[tuple[Mapping[str, Any], Present]], metadata: Mapping[str, Any]
) -> int:
    """As `write_columns`, with a row group per (columns, present), one in memory at a time; return the number of rows.

    All groups have the same columns and dims. ValueError if there are none.
    """
    import pyarrow.parquet as pq

    num_rows, writer = 0, None
    with whole_file(destination) as stream, ExitStack() as stack:
        for columns, present in groups:
            table = _arrow_table(columns, present, _payload(metadata))
            writer = writer or stack.enter_context(pq.ParquetWriter(stream, table.schema, **_layout(table.schema)))
            writer.write_table(table)
            num_rows += table.num_rows
        if writer is None:
            raise ValueError(f"{destination}: no rows to write")
    return num_rows


def _layout(schema: Any) -> dict[str, Any]:
    """How a writer stores the columns. A dictionary of vectors would be larger than they are."""
    import pyarrow as pa

    named = [field.name for field in schema if not pa.types.is_fixed_size_list(field.type)]
    return {"compression": "zstd", "use_dictionary": named}


def merge_parquet(sources: Iterable[Path], targets: Sequence[tuple[Path, int]]) -> None:
    """Write the rows of files with one schema, in order, to (file, number of rows); a row group is in memory at a time.

    The bytes depend on the rows alone, not on how the sources are divided. Each target is complete or absent.
    ValueError if the sources hold fewer rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    batches = _batches(sources)
    batch = next(batches, None)
    for path, num_rows in targets:
        missing, writer = num_rows, None
        with whole_file(path) as stream, ExitStack() as stack:
            while missing:
                group: list[Any] = []
                room = min(missing, ROWS_PER_GROUP)
                while room:
                    if batch is None:
                        raise ValueError(f"{path}: {missing} rows are missing")
                    group.append(batch.slice(0, room))
                    missing, room = missing - group[-1].num_rows, room - group[-1].num_rows
                    batch = batch.slice(group[-1].num_rows)
                    if batch.num_rows == 0:
                        batch = next(batches, None)
                table = pa.Table.from_batches(group).combine_chunks()
                writer = writer or stack.enter_context(pq.ParquetWriter(stream, table.schema, **_layout(table.schema)))
                writer.write_table(table, row_group_size=ROWS_PER_GROUP)


def _batches(sources: Iterable[Path]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    for source in sources:
        with closing(pq.ParquetFile(source)) as file:
            yield from (batch for batch in file.iter_batches(batch_size=ROWS_PER_GROUP) if batch.num_rows)


def read_row_groups(
    source: Path,
    names: Sequence[str],
    is_needed: Callable[[int, int], bool] = lambda first, end: True,  # noqa: ARG005
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(first row, {name: column}) of each row group of a file of `write_columns`, one in memory at a time.

    is_needed: (first row, end) -> whether to read the row group. Raises ValueError as `read_columns`.
    """
    import pyarrow.parquet as pq

    with value_errors_naming(source, "Parquet file"):
        file = pq.ParquetFile(source)
    with closing(file):
        missing = set(names) - set(file.schema_arrow.names)
        if missing:
            raise ValueError(f"{str(source)!r} lacks the columns {sorted(missing)}; it has {file.schema_arrow.names}")
        first = 0
        for number in range(file.num_row_groups):
            end = first + file.metadata.row_group(number).num_rows
            if is_needed(first, end):
                with value_errors_naming(source, "Parquet file"):
                    columns = _columns(file.read_row_group(number, columns=list(names)))
                yield first, columns
            first = end


def column_names(source: Path) -> list[str]:
    """Names of the columns of a file of `write_columns`. Raises ValueError as `read_columns`."""
    import pyarrow.parquet as pq

    with value_errors_naming(source, "Parquet file"):
        return list(pq.read_schema(source).names)


@contextmanager
def csv_writer(stream: IO[bytes]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that appends columns of one length, a list of str or None or an array (n,), to a CSV file.

    The first columns are the header. None and NaN are empty cells; numbers are the shortest that read back the same.
    """
    import pyarrow as pa
    from pyarrow import csv

    with ExitStack() as stack:
        writer: Any = None

        def write(columns: Mapping[str, Any]) -> None:
            nonlocal writer
            arrays = [
                pa.array(values, pa.string()) if isinstance(values, list) else pa.array(values, from_pandas=True)
                for values in columns.values()
            ]
            table = pa.Table.from_arrays(arrays, names=list(columns))
            writer = writer or stack.enter_context(csv.CSVWriter(stream, table.schema))
            writer.write_table(table)

        yield write


def _payload(metadata: Mapping[str, Any]) -> str:
    return json.dumps({"format_version": FORMAT_VERSION, "metadata": metadata}, sort_keys=True)


def read_columns(source: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(columns, metadata) as given to `write_columns`; vectors that are null in the file are NaN.

    ValueError for another suffix, another format version, or a file that cannot be read.
    """
    import pyarrow.parquet as pq

    if source.suffix == ".npz":
        raise ValueError(
            f"cannot read {str(source)!r}: earlier versions wrote tables as npz, too, and this one reads Parquet "
            "alone; write the table again with `avssl embed`"
        )
    if source.suffix != SUFFIX:
        raise ValueError(f"cannot read {str(source)!r}: a table is a Parquet file, with the suffix {SUFFIX}")
    with value_errors_naming(source, "embedding table"):  # also what its columns hold
        with value_errors_naming(source, "Parquet file"):
            table = pq.read_table(source)
        payload = (table.schema.metadata or {}).get(_METADATA_KEY.encode())
        if payload is None:
            raise ValueError(
                f"{str(source)!r} is Parquet, but no embedding table: it lacks the {_METADATA_KEY!r} metadata"
            )
        return _columns(table), _metadata(payload.decode(), source)


def _metadata(payload: str, source: Path) -> dict[str, Any]:
    fields = Fields.parse(payload, str(source))
    if fields.record.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{str(source)!r} has embedding table format {brief(fields.record.get('format_version'))}, this version "
            f"reads {FORMAT_VERSION}; write the table again with `avssl embed`"
        )
    return dict(fields.mapping("metadata"))


def _arrow_table(columns: Mapping[str, Any], present: Present, payload: str) -> Any:
    import pyarrow as pa

    arrays: dict[str, Any] = {}
    for name, values in columns.items():
        if isinstance(values, list):
            arrays[name] = pa.array(values, pa.string())
        elif values.ndim == 1:
            arrays[name] = pa.array(values)
        else:
            absent = ~present[name]
            flat = pa.array(np.where(absent[:, None], np.float32(0), values).reshape(-1), pa.float32())
            arrays[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=pa.array(absent))
    return pa.table(arrays, metadata={_METADATA_KEY: payload})


def _columns(table: Any) -> dict[str, Any]:
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            values = np.full((len(column), column.type.list_size), np.nan, np.float32)
            present = np.asarray(column.is_valid())
            values[present] = column.flatten().to_numpy().reshape(-1, column.type.list_size)
            columns[name] = values
        elif pa.types.is_string(column.type):
            columns[name] = column.to_pylist()
        else:
            columns[name] = column.to_numpy(zero_copy_only=False)
    return columns
