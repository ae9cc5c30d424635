"""Rows of a Parquet file, a few at a time. The only user of pyarrow in data_prep."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROWS_AT_A_TIME = 1024


def parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, {column: value}) of each row. ValueError if it is no Parquet file."""
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
