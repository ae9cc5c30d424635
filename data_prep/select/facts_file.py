"""The facts of a corpus, a row per listed sample, read a block at a time: a file of `avssl prep facts`."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.files.checked_json import Fields
from avssl.files.whole import sha256_file
from data_prep.facts.table import (
    COLUMNS,
    EMBEDDING_COLUMNS,
    empty_table,
    read_metadata,
    read_tables,
    table_of_rows,
    with_columns,
)

HASHES = ("middle_hash", "first_hash", "image_hash", "sound_hash")  # of near duplicates


class FactsFile:
    """A Parquet file of facts.

    Raises:
        FileNotFoundError: there is none. ValueError: it is no such file, or lacks a column.

    Attributes:
        path, columns (names in order), num_rows. source: what it was computed from, as the file says.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.source = path, read_metadata(path)
        self._empty = empty_table(path)
        self.columns: list[str] = list(self._empty.column_names)
        self.num_rows = Fields(self.source, str(path)).count("num_samples")
        for name in COLUMNS:
            if name not in self.columns:
                near = difflib.get_close_matches(name, self.columns, 3)
                hint = f" (it has {' and '.join(near)})" if near else ""
                raise ValueError(
                    f"{path}: lacks the column {name}{hint}; compute the facts again with `avssl prep facts`"
                )

    def schema(self) -> Any:
        """A pyarrow table with the columns and no rows."""
        return self._empty

    def blocks(self, names: Collection[str]) -> Iterator[tuple[int, Any]]:
        """(first row, pyarrow table of these columns), some thousands of rows at a time.

        ValueError if the file is damaged.
        """
        first = 0
        for block in read_tables(self.path, [name for name in self.columns if name in names]):
            yield first, block
            first += block.num_rows

    def sha256(self) -> str:
        """Hex sha256 of the file."""
        return sha256_file(self.path)


def expected_columns(*, with_embeddings: bool) -> Any:
    """A pyarrow table with the columns that `avssl prep facts` writes and no rows."""
    table = table_of_rows([])
    return with_columns(table, {name: np.zeros(0, np.float32) for name in EMBEDDING_COLUMNS if with_embeddings})


def numbers(block: Any, name: str) -> NDArray[np.float64]:
    """A column of numbers as float64 (n,); NaN where there is none."""
    return np.asarray(block[name].cast("float64").to_numpy(), np.float64)


def hashes(block: Any, name: str, none: int) -> NDArray[np.uint64]:
    """A column of hashes as uint64 (n,); `none` where there is none."""
    return np.asarray(block[name].fill_null(none).to_numpy(), np.uint64)


def texts(block: Any, name: str) -> list[str | None]:
    """A column of texts; None where there is none."""
    found: list[str | None] = block[name].to_pylist()
    return found
