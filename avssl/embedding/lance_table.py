"""Embeddings in a Lance table, for searches in millions of rows and with conditions. The only user of lance.

    table = LanceTable("dogs.lance")  # that `avssl export embeddings/ --to lance` wrote
    table.search("audio", queries, top=10, where="label = 'dog' and start_seconds >= 10")

A row of the table is a row of the folder, in the same order: exchange/targets/lance_table.py says what the columns are.
Of a modality with more than MOST_COMPARED_ROWS rows Lance keeps an index, which gives candidates; their scores are then
computed as the exact search computes them, from the same bits. Fewer rows are all compared.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.embedding.index import KIND as FOLDER_KIND
from avssl.embedding.index import FolderIndex, is_lance_table
from avssl.embedding.search import EmbeddingIndex, best_of, check_top, hits_among
from avssl.embedding.table import MODALITIES, EmbeddingRows, EmbeddingTable, Hit, RowFacts
from avssl.files.checked_json import Fields, parse
from avssl.files.damaged_files import value_errors_naming
from avssl.files.plain_text import brief, plain

KIND = "avssl embeddings in a Lance table"
MOST_COMPARED_ROWS, MOST_GRAPH_ROWS = 20_000, 500_000  # of a modality without an index; with a graph, not codes
DIMS_PER_CODE = 4  # dims that a byte of IVF_PQ stands for
CANDIDATES, SEARCHED_PARTITIONS = 256, 128  # of a query, as searches have it by default
MOST_NUMBERS = 2**24  # in the vectors of all candidates of the queries that are searched together: 64 MiB
ROWS_PER_FILE, ROWS_AT_A_TIME = 2**20, 2**13
ROWS_PER_PARTITION = {"IVF_HNSW_SQ": 2**20, "IVF_PQ": 4096}
ROW_COLUMNS = ("row", "key", "index", "start_seconds", "end_seconds")
_PLACES_IN_LANCE = re.compile(r",? ?/\S+\.rs:\d+:\d+")  # where in Lance's own sources an error was raised


def import_lance() -> Any:
    """The module lance; ValueError if it is not installed."""
    try:
        import lance
    except ImportError as error:
        raise ValueError('this needs Lance, an extra: pip install "avssl[lance]"') from error
    return lance


def is_index(folder: Path) -> bool:
    """Whether a folder is one of embeddings that `avssl embed` has finished, or a Lance table of one."""
    try:
        FolderIndex.read(folder, KIND if is_lance_table(folder) else FOLDER_KIND)
    except (OSError, ValueError):
        return False
    return True


def open_index(folder: str | Path) -> EmbeddingIndex:
    """A folder of embeddings, or a Lance table of one; raises as EmbeddingIndex and LanceTable."""
    return LanceTable(folder) if is_lance_table(folder) else EmbeddingIndex(folder)


class LanceTable(EmbeddingIndex):
    """A table that `avssl export --to lance` wrote. Attributes: as EmbeddingIndex.

    FileNotFoundError if it is no such table, ValueError if it is damaged or Lance is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        lance = import_lance()
        if not is_lance_table(self.folder):
            raise FileNotFoundError(f"{self.folder} is no Lance table; make one with `avssl export ... --to lance`")
        self.content = FolderIndex.read(self.folder, KIND)
        self.modalities = [name for name in MODALITIES if self.content.rows_with.get(name, 0)]
        with value_errors_naming(self.folder, "Lance table"):
            self._table = lance.dataset(str(self.folder))
            num_rows = self._table.count_rows()
            self._indexed = {name for index in self._table.describe_indices() for name in index.field_names}
        if num_rows != self.content.num_rows:
            raise ValueError(f"{self.folder} holds {num_rows} rows, and its index.json says {self.content.num_rows}")

    def rows(
        self, modality: str, numbers: NDArray[np.int64] | None = None, *, with_vectors: bool = True
    ) -> Iterator[EmbeddingRows]:
        """As EmbeddingIndex.rows; a batch of Lance at a time."""
        self.check(modality)
        column, shown = f"{modality}_embedding", modality if with_vectors else ""
        with value_errors_naming(self.folder, "Lance table"):
            if numbers is None:
                columns = [*ROW_COLUMNS, *([column] if with_vectors else [])]
                batches = self._table.to_batches(columns=columns, filter=f"{column} IS NOT NULL")
            else:  # the vectors say which of them have the modality
                batches = (self._with_modality(part, column) for part in _parts(numbers))
            yield from (_rows_of(batch, shown) for batch in batches if batch.num_rows)

    def _with_modality(self, numbers: NDArray[np.int64], column: str) -> Any:
        """Those of some rows that have a vector in a column."""
        found = self._table.take(numbers, columns=[*ROW_COLUMNS, column])
        return found.filter(found[column].is_valid())

    def table_of(self, key: str) -> tuple[EmbeddingTable, NDArray[np.int64]]:
        """As EmbeddingIndex.table_of; the table has embeddings and no features."""
        with value_errors_naming(self.folder, "Lance table"):
            found = self._table.to_table(columns=self._columns, filter=f"key = {_quoted(key)}")
        if not found.num_rows:
            raise ValueError(f"{self.folder} has no rows of the key {brief(key)}")
        return self._read(found), found["row"].to_numpy()

    def names(self) -> Iterator[tuple[list[str], list[str]]]:
        """As EmbeddingIndex.names."""
        with value_errors_naming(self.folder, "Lance table"):
            for batch in self._table.to_batches(columns=["key", "labels"]):
                yield batch["key"].to_pylist(), batch["labels"].to_pylist()

    def head(self, num_rows: int) -> EmbeddingTable:
        """As EmbeddingIndex.head, no more rows than asked for; the table has embeddings and no features."""
        with value_errors_naming(self.folder, "Lance table"):
            found = self._table.to_table(columns=self._columns, limit=num_rows)
        if not found.num_rows:
            raise ValueError(f"{self.folder} holds no rows")
        return self._read(found)

    @property
    def _columns(self) -> list[str]:
        return [*ROW_COLUMNS, "labels", *(f"{name}_embedding" for name in self.modalities)]

    def _read(self, found: Any) -> EmbeddingTable:
        """Rows of `_columns` as a table."""
        labels = [self._labels(text, row) for text, row in _pairs(found, "labels", "row")]
        values: dict[str, Any] = {name: found[name].to_numpy() for name in ("index", "start_seconds", "end_seconds")}
        values |= {f"has_{modality}": np.zeros(found.num_rows, np.bool_) for modality in MODALITIES}
        for modality in self.modalities:
            name = f"{modality}_embedding"
            values[name] = _vectors(found[name])
            values[f"has_{modality}"] = np.asarray(found[name].is_valid())
        return EmbeddingTable(found["key"].to_pylist(), labels=labels, metadata=self.content.settings, **values)

    def facts(self, numbers: Collection[int]) -> dict[int, RowFacts]:
        """As EmbeddingIndex.facts."""
        with value_errors_naming(self.folder, "Lance table"):
            found = self._table.take(sorted(set(numbers)), columns=[*ROW_COLUMNS, "labels"])
        return {
            row: RowFacts(key, index, start, end, self._labels(text, row))
            for row, key, index, start, end, text in _pairs(found, *ROW_COLUMNS, "labels")
        }

    def _labels(self, text: str, row: int) -> dict[str, list[str]]:
        return Fields({"labels": parse(text, f"{self.folder}, row {row}")}, str(self.folder)).labels("labels")

    def search(
        self,
        modality: str,
        queries: Any,
        top: int = 10,
        *,
        exclude: Collection[str] = (),
        one_per_key: bool = False,
        where: str = "",
        depth: int = 0,
        compare_all: bool = False,
    ) -> list[list[Hit]]:
        """The closest rows, as EmbeddingIndex.search.

        Args:
            where: a condition on the columns in the SQL of Lance, such as "label = 'dog'"; only rows of it are found.
            depth: rows that the index gives as candidates for a query, for which it reads half as many partitions, and
                SEARCHED_PARTITIONS at least; 0: CANDIDATES, or more for a large `top`. More is slower and finds more.
            compare_all: leave the index out, so that the result is that of the exact search.
        """
        check_top(top)
        vectors = self.check_queries(modality, queries)
        if depth < 0:
            raise ValueError(f"depth is {depth}; it must be at least 1, or 0 for {CANDIDATES}")
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0).astype(np.float32)
        condition = self._condition(where, exclude)
        is_exact = compare_all or f"{modality}_embedding" not in self._indexed
        num_rows = self.content.rows_with[modality]
        result: list[list[Hit]] = [[] for _ in vectors]
        waiting, count = np.arange(len(vectors)), min(num_rows, max(depth or CANDIDATES, 4 * top + 32))
        while len(waiting):
            unfinished = []
            for query, rows in self._candidates(modality, unit, waiting, count, condition, is_exact):
                hits = hits_among(rows, vectors[query][None], len(rows.keys))[0]
                best = result[query] = best_of(hits, top, one_per_key=one_per_key)
                # More candidates are needed while those of some keys fill the list, or while rows as good as the last
                # hit may be missing from a comparison of all rows, which Lance does in float32.
                is_full = len(best) == top and not (is_exact and hits[-1].score > best[-1].score - 1e-5)
                if not is_full and len(hits) == count < num_rows:
                    unfinished.append(query)
            waiting, count = np.array(unfinished, np.int64), min(num_rows, 4 * count)
        return result

    def _candidates(
        self, modality: str, unit: NDArray[np.float32], numbers: Any, count: int, condition: str | None, is_exact: bool
    ) -> Iterator[tuple[int, EmbeddingRows]]:
        """(number of a query, its `count` candidates) of some queries; fewer if the condition leaves fewer."""
        column = f"{modality}_embedding"
        size = max(1, MOST_NUMBERS // (count * unit.shape[1]))
        names = ["row", "key", "start_seconds", "end_seconds", column, "_distance"]
        for chunk in np.split(numbers, range(size, len(numbers), size)):
            nearest = {
                "column": column, "q": unit[chunk], "k": count, "metric": "cosine", "use_index": not is_exact,
                "minimum_nprobes": max(SEARCHED_PARTITIONS, count // 2), "ef": 2 * count,
            }  # fmt: skip
            with value_errors_naming(self.folder, "Lance table"):
                found = self._table.to_table(columns=names, nearest=nearest, filter=condition, prefilter=True)
            asked = found["query_index"].to_numpy()
            for place, query in enumerate(chunk.tolist()):
                yield query, _rows_of(found.filter(asked == place), modality)

    def _condition(self, where: str, exclude: Collection[str]) -> str | None:
        """The filter of a search; None if there is none. ValueError if Lance does not take `where`."""
        if where:
            try:
                # In parentheses, for Lance ignores what follows a condition.
                self._table.scanner(columns=["row"], filter=f"({where})").explain_plan()
            except (ValueError, OSError, RuntimeError) as error:
                reason = _PLACES_IN_LANCE.sub("", plain(error)).removeprefix("Invalid user input: ")
                shown = ", ".join(field.name for field in self._table.schema if not field.name.endswith("_embedding"))
                raise ValueError(
                    f"--where {brief(where)} is no condition on {self.folder}: {reason[:200]}; its columns are {shown}"
                ) from error
        parts = [f"key NOT IN ({', '.join(map(_quoted, sorted(exclude)))})"] if exclude else []
        parts += [f"({where})"] if where else []
        return " AND ".join(parts) or None

    def build_index(self, modality: str, kind: str = "") -> dict[str, Any]:
        """Build the index of a modality; its facts, {} if its rows are so few that they are all compared.

        kind: IVF_HNSW_SQ (a graph over vectors of a byte a dim), IVF_PQ (codes of a byte for four dims) or "none";
            "": by the number of rows.
        """
        num_rows, dim = self.content.rows_with[modality], self.content.widths[f"{modality}_embedding"]
        if not kind:
            graph_or_codes = "IVF_HNSW_SQ" if num_rows <= MOST_GRAPH_ROWS else "IVF_PQ"
            kind = "none" if num_rows <= MOST_COMPARED_ROWS else graph_or_codes
        if kind == "none":
            return {}
        options: dict[str, Any] = {"num_partitions": max(1, num_rows // ROWS_PER_PARTITION[kind])}
        if kind == "IVF_PQ":
            options["num_sub_vectors"] = next(dim // size for size in (DIMS_PER_CODE, 2, 1) if dim % size == 0)
        self._table.create_index(f"{modality}_embedding", kind, name=modality, metric="cosine", replace=True, **options)
        self._indexed.add(f"{modality}_embedding")
        return {"kind": kind, **options}


def _rows_of(found: Any, modality: str) -> EmbeddingRows:
    """Rows of Lance that have a modality; modality "": without their vectors."""
    vectors = _vectors(found[f"{modality}_embedding"]) if modality else np.zeros((found.num_rows, 0), np.float32)
    numbers, starts, ends = (np.asarray(found[name]) for name in ("row", "start_seconds", "end_seconds"))
    return EmbeddingRows(numbers, vectors, found["key"].to_pylist(), starts, ends)


def _vectors(column: Any) -> NDArray[np.float32]:
    """A column of vectors as float32 (n, D), NaN where it is null."""
    column = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    values = np.full((len(column), column.type.list_size), np.nan, np.float32)
    values[np.asarray(column.is_valid())] = np.asarray(column.flatten()).reshape(-1, column.type.list_size)
    return values


def _parts(numbers: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Numbers of rows in parts that are read at once."""
    return (numbers[first : first + ROWS_AT_A_TIME] for first in range(0, len(numbers), ROWS_AT_A_TIME))


def _pairs(found: Any, *names: str) -> Iterator[tuple[Any, ...]]:
    """The rows of some columns, as plain values."""
    return zip(*(found[name].to_pylist() for name in names), strict=True)


def _quoted(text: str) -> str:
    """A text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def write_rows(folder: Path, groups: Iterable[Mapping[str, Any]], columns: Mapping[str, Any]) -> None:
    """Write the rows of a table, a group in memory at a time.

    Args:
        folder: new. groups: {column: values of one length} each: arrays (n,) or float32 (n, D), of which rows of NaN
            become null, or lists of what the column holds, or None.
        columns: {name: dtype of NumPy, "text", "texts" (lists of text), or the dim of vectors}.
    """
    import pyarrow as pa

    text = pa.string()
    special = {"text": text, "texts": pa.list_(text)}

    def type_of(kind: Any) -> Any:
        if isinstance(kind, int):
            return pa.list_(pa.float32(), kind)
        return special[kind] if isinstance(kind, str) else pa.from_numpy_dtype(kind)

    schema = pa.schema([(name, type_of(kind)) for name, kind in columns.items()])

    failures: list[Exception] = []

    def batches() -> Iterator[Any]:
        try:
            for group in groups:
                pairs = [(group[name], schema.field(name).type) for name in columns]
                yield pa.record_batch([_array(*pair) for pair in pairs], schema=schema)
        except Exception as error:
            failures.append(error)
            raise

    reader = pa.RecordBatchReader.from_batches(schema, batches())
    try:
        import_lance().write_dataset(reader, str(folder), max_rows_per_file=ROWS_PER_FILE)
    except Exception as error:
        # What the groups raise comes through Lance as another class, with a traceback in its message.
        raise (failures[0] if failures else error) from None


def _array(values: Any, kind: Any) -> Any:
    """Values of a column as Arrow. Vectors of NaN become null; what is no Unicode, as in a name of a file, escapes."""
    import pyarrow as pa

    if pa.types.is_string(kind):
        return pa.array([None if text is None else text.encode("utf-8", "backslashreplace") for text in values], kind)
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(values, kind)
    absent = np.isnan(values).any(axis=1)
    flat = pa.array(np.where(absent[:, None], np.float32(0), values).reshape(-1), pa.float32())
    return pa.FixedSizeListArray.from_arrays(flat, kind.list_size, mask=pa.array(absent))
