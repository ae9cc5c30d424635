"""Values of Parquet files by row group, row and column: only the column's pages up to the row are read, by range.

Rows that are read in order, as when a table is listed, go on where the last one was: a column is read once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from avssl.files import storage
from avssl.files.damaged_files import value_errors_naming
from avssl.shards.places import Cell
from avssl.shards.ranged_file import RangedFile
from avssl.types import MediaError

BUFFER_BYTES = 1 << 20  # of a column that is read; without it, all of the row group's column is in memory
LATER_VERSION = "Make the manifest anew with `avssl prep index`"


class _Column:
    """A column of a row group, open at its next row."""

    def __init__(self, path: str, column: str, row_group: int) -> None:
        import pyarrow.parquet as pq

        self.next_row = 0
        self._file = RangedFile(path)
        self._table: Any = None
        try:
            self._table = pq.ParquetFile(self._file, buffer_size=BUFFER_BYTES, pre_buffer=False)
            if not 0 <= row_group < self._table.num_row_groups or not self._has(column):
                raise LookupError(f"there is no row group {row_group} with a column {column}")
            self._batches: Iterator[Any] = self._table.iter_batches(1, row_groups=[row_group], columns=[column])
        except BaseException:
            self.close()
            raise

    def _has(self, column: str) -> bool:
        """Whether there is a column, or a part of one, of this name."""
        names = (self._table.metadata.schema.column(n).path for n in range(self._table.metadata.num_columns))
        return any(name == column or name.startswith(f"{column}.") for name in names)

    def take(self, row: int) -> Any:
        """The value of this row or a later one than that taken last. LookupError if there is none."""
        for batch in self._batches:
            self.next_row += 1
            if self.next_row > row:
                return batch.column(0)[0].as_py()
        raise LookupError(f"the row group has {self.next_row} rows")

    def close(self) -> None:
        if self._table is not None:
            self._table.close()
        self._file.close()


_open: dict[tuple[object, ...], _Column] = {}  # the column that was read last in this process


def read_cell(path: str, cell: Cell, name: str) -> bytes:
    """The bytes of a cell. name: of the place, for messages.

    Raises:
        MediaError: changed_file: there is no such cell, or it is empty; truncated: the table is damaged there.
        OSError: the file cannot be opened or fetched.
    """
    key = (path, storage.facts(path), cell.column, cell.row_group)
    try:
        with value_errors_naming(path, "Parquet file"):
            value = _take(key, cell)
    except LookupError as error:
        raise MediaError("changed_file", f"{name}: {error.args[0]}. {LATER_VERSION}") from error
    except ValueError as error:
        raise MediaError("truncated", f"{name}: cannot be read ({error})") from error
    content = _bytes_of(value, cell)
    if content is None:
        raise MediaError("changed_file", f"{name}: holds no bytes. {LATER_VERSION}")
    return content


def _take(key: tuple[object, ...], cell: Cell) -> Any:
    column = _open.pop(key, None)
    if column is None or column.next_row > cell.row:
        forget_columns()
        column = _Column(str(key[0]), cell.column, cell.row_group)
    try:
        value = column.take(cell.row)
    except BaseException:
        column.close()
        raise
    _open[key] = column
    return value


def _bytes_of(value: Any, cell: Cell) -> bytes | None:
    """The bytes in a value: its own, those of its field `bytes`, or of an element of a list of either."""
    if cell.element is not None:
        value = value[cell.element] if isinstance(value, list) and cell.element < len(value) else None
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if isinstance(value, bytes) else None


def forget_columns() -> None:
    """Close the column that is open for the rows that follow."""
    while _open:
        _open.popitem()[1].close()
