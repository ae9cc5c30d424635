"""Tables of embeddings: one row per window of a video or audio file, or per image. parquet.py writes their files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.embedding.index import table_files
from avssl.embedding.parquet import ROWS_PER_GROUP, read_columns, write_columns, write_row_groups
from avssl.files.checked_json import Fields
from avssl.files.damaged_files import value_errors_naming
from avssl.files.plain_text import brief
from avssl.shards.keys import label_columns

MODALITIES = ("video", "audio", "image")
SCALAR_COLUMNS: dict[str, Any] = {
    "index": np.int64,
    "start_seconds": np.float64,
    "end_seconds": np.float64,
    "has_audio": np.bool_,
    "has_video": np.bool_,
    "has_image": np.bool_,
}
VECTOR_COLUMNS = tuple(f"{modality}_{kind}" for kind in ("embedding", "feature") for modality in MODALITIES)


@dataclass(frozen=True)
class RowFacts:
    """What is known of a row besides its vectors. index: of its sample in a shard folder, -1 of a plain file."""

    key: str
    index: int
    start_seconds: float
    end_seconds: float
    labels: dict[str, list[str]]


@dataclass(frozen=True)
class Hit:
    """A row that a search found. row: its number in the folder, from 0; score: the cosine, in [-1, 1]."""

    key: str
    start_seconds: float
    end_seconds: float
    score: float
    row: int


@dataclass(frozen=True)
class EmbeddingRows:
    """Rows that have a modality: numbers int64 (n,), vectors float32 (n, D), and the keys and windows of the rows."""

    numbers: NDArray[np.int64]
    vectors: NDArray[np.float32]
    keys: list[str]
    start_seconds: NDArray[np.float64]
    end_seconds: NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class EmbeddingTable:
    """n windows or images with their embeddings; every array has n rows, in the order in which they were written.

    keys: names of the sources, length n (several windows of one source share a key).
    index: int64 (n,), the sample's index in its shard folder, -1 for plain files.
    start_seconds, end_seconds: float64 (n,), the window on the clock of its source; both are 0 for an image.
    has_audio, has_video, has_image: bool (n,). Tables of early versions lack has_image: it is False there.
    video_embedding, audio_embedding, image_embedding: float32 (n, D), unit rows, all NaN where the modality is absent;
        None if the whole table lacks the column. D may differ between modalities.
    video_feature, audio_feature, image_feature: float32 (n, F), the encoder's output before the projector; NaN and
        None as above.
    labels: {field: [names]} per row.
    captions: text per row, None where a row has none; None if the whole table lacks the column `caption`.
    metadata: run, weights hash, window_seconds, stride_seconds, normalized and any other values that JSON can hold.

    >>> table = EmbeddingTable.read(embeddings)
    >>> table.video_embedding.dtype, len(table.pool_by_key())
    (dtype('float32'), 6)
    """

    keys: list[str]
    index: NDArray[np.int64]
    start_seconds: NDArray[np.float64]
    end_seconds: NDArray[np.float64]
    has_audio: NDArray[np.bool_]
    has_video: NDArray[np.bool_]
    video_embedding: NDArray[np.float32] | None = None
    audio_embedding: NDArray[np.float32] | None = None
    video_feature: NDArray[np.float32] | None = None
    audio_feature: NDArray[np.float32] | None = None
    image_embedding: NDArray[np.float32] | None = None
    image_feature: NDArray[np.float32] | None = None
    has_image: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    labels: list[dict[str, list[str]]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    captions: list[str | None] | None = None

    def __post_init__(self) -> None:
        """Convert to the types above; ValueError if lengths differ or vectors contradict has_*."""
        set_field = object.__setattr__
        set_field(self, "keys", [str(key) for key in self.keys])
        set_field(self, "labels", list(self.labels) or [{} for _ in self.keys])
        if self.captions is not None:
            set_field(self, "captions", [text or None for text in self.captions])
        if len(self.has_image) == 0:
            set_field(self, "has_image", np.zeros(len(self.keys), np.bool_))
        for name, dtype in SCALAR_COLUMNS.items():
            set_field(self, name, np.asarray(getattr(self, name), dtype=dtype))
        for name in ("labels", *SCALAR_COLUMNS, *([] if self.captions is None else ["captions"])):
            if len(getattr(self, name)) != len(self.keys):
                raise ValueError(
                    f"column {name!r} has {len(getattr(self, name))} rows, but there are {len(self.keys)} keys; "
                    "every column needs one entry per key"
                )
        for name in VECTOR_COLUMNS:
            values = getattr(self, name)
            if values is not None:
                set_field(self, name, np.asarray(values, dtype=np.float32))
                self._check_vectors(name)

    def has(self, modality: str) -> NDArray[np.bool_]:
        """bool (n,): which rows have a modality, given by its name or that of a vector column (video_embedding)."""
        rows: NDArray[np.bool_] = getattr(self, f"has_{modality.split('_', maxsplit=1)[0]}")
        return rows

    def embedding(self, modality: str) -> NDArray[np.float32] | None:
        """The embeddings (n, D) of a modality, None if the table lacks the column."""
        rows: NDArray[np.float32] | None = getattr(self, f"{modality}_embedding")
        return rows

    def modalities(self) -> list[str]:
        """Modalities of which at least one row has an embedding, in the order of MODALITIES."""
        return [name for name in MODALITIES if self.embedding(name) is not None and self.has(name).any()]

    def _check_vectors(self, name: str) -> None:
        """Rows with the modality must be finite, the others all NaN: a zero or stale vector would pass for data."""
        values, present = getattr(self, name), self.has(name)
        if values.ndim != 2 or len(values) != len(self.keys) or values.shape[1] == 0:
            raise ValueError(f"column {name!r} has shape {values.shape}; expected ({len(self.keys)}, dim) with dim > 0")
        wrong = np.where(present, ~np.isfinite(values).all(axis=1), ~np.isnan(values).all(axis=1))
        if wrong.any():
            row = int(np.argmax(wrong))
            state = "has this modality, but its vector is not finite" if present[row] else "lacks it, but is not NaN"
            raise ValueError(f"column {name!r}, row {row} (key {self.keys[row]!r}): the row {state}")

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        parts = [f"{len(self)} rows of {len(set(self.keys))} keys"]
        for name in MODALITIES:
            vectors = self.embedding(name)
            if vectors is not None:
                parts.append(f"{name} {int(self.has(name).sum())} x {vectors.shape[1]}")
        if fields := self.label_fields():
            parts.append(f"labels {brief(', '.join(fields))}")
        if "window_seconds" in self.metadata:
            parts.append(f"windows of {self.metadata['window_seconds']:g} s")
        return f"EmbeddingTable({'; '.join(parts)})"

    def to_pandas(self, *, vectors: bool = True) -> Any:
        """A pandas DataFrame with the same rows; needs `pip install "avssl[pandas]"`.

        Columns: key, index, start_seconds, end_seconds, has_video, has_audio, has_image; caption, if any row has one;
        one for each label field, as
        `label` gives it (label_NAME if a column is called NAME already); and with `vectors` one for each of the
        table's vector columns, of float32 arrays (D,), None where the row lacks the modality.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(f'to_pandas needs pandas: pip install "avssl[pandas]" ({error})') from error
        columns: dict[str, Any] = {"key": self.keys} | {name: getattr(self, name) for name in SCALAR_COLUMNS}
        if self.captions is not None:
            columns["caption"] = pd.Series(self.captions, dtype=object)
        names = label_columns(self.label_fields(), {*columns, *VECTOR_COLUMNS})
        columns |= {shown: pd.Series(self.label(name), dtype=object) for name, shown in names.items()}
        for name in VECTOR_COLUMNS if vectors else ():
            if (values := getattr(self, name)) is not None:
                rows = [row if present else None for row, present in zip(values, self.has(name), strict=True)]
                columns[name] = pd.Series(rows, dtype=object)
        return pd.DataFrame(columns)

    def label_fields(self) -> list[str]:
        """Names of the label fields of all rows, sorted."""
        return sorted({name for row in self.labels for name in row})

    def label(self, label_field: str) -> list[str | None]:
        """One name per row for a label field: None if the row has none; several names are joined by " | ".

        Raises:
            KeyError: no row has this field.
        """
        if label_field not in self.label_fields():
            raise KeyError(f"no row has labels of field {label_field!r}; this table has {self.label_fields()}")
        return [" | ".join(row[label_field]) if row.get(label_field) else None for row in self.labels]

    def select(self, rows: NDArray[Any] | Sequence[int]) -> EmbeddingTable:
        """Some rows as a new table. rows: bool (n,) mask, or integer positions in [0, n), whose order is kept."""
        chosen = np.asarray(rows)
        if chosen.dtype == np.bool_:
            if chosen.shape != (len(self),):
                raise ValueError(f"mask has shape {chosen.shape}; expected ({len(self)},)")
            chosen = np.flatnonzero(chosen)
        chosen = chosen.astype(np.int64)
        names = (*SCALAR_COLUMNS, *VECTOR_COLUMNS)
        arrays = {name: values[chosen] for name in names if (values := getattr(self, name)) is not None}
        keys, labels = [self.keys[row] for row in chosen], [self.labels[row] for row in chosen]
        captions = None if self.captions is None else [self.captions[row] for row in chosen]
        return EmbeddingTable(keys=keys, labels=labels, metadata=dict(self.metadata), captions=captions, **arrays)

    def pool_by_key(self) -> EmbeddingTable:
        """One row per key, in order of first appearance: its embedding is the normalized mean of the unit embeddings.

        Features are averaged and left as they are; the time span is the union of the windows; index and labels are
        the first window's. Windows without a modality do not enter its mean.
        """
        _, first, group = np.unique(np.array(self.keys, np.str_), return_index=True, return_inverse=True)
        order = np.argsort(first)
        group = np.argsort(order)[group]
        pooled = self.select(first[order])
        columns: dict[str, Any] = {"metadata": {**self.metadata, "pooled": "mean of windows by key"}}
        unions = {"start_seconds": np.minimum, "end_seconds": np.maximum}
        for name, union in (unions | {f"has_{modality}": np.logical_or for modality in MODALITIES}).items():
            columns[name] = getattr(pooled, name).copy()
            union.at(columns[name], group, getattr(self, name))
        for name in VECTOR_COLUMNS:
            if (values := getattr(self, name)) is not None:
                unit = name.endswith("embedding")
                columns[name] = _group_means(values, self.has(name), group, len(pooled), unit=unit)
        return replace(pooled, **columns)

    def write(self, path: str | Path) -> Path:
        """Write a .parquet file, complete or not at all; the same table gives the same bytes."""
        return write_columns(Path(path), *_stored(self), self.metadata)

    @classmethod
    def read(cls, path: str | Path) -> EmbeddingTable:
        """Read a .parquet file, or a folder: the files of its index.json, else its .parquet files.

        Raises:
            FileNotFoundError: no such file or folder, a folder without tables, or one that `avssl embed` has not
                finished.
            ValueError: not an embedding table of this format version, or tables that do not belong together.
        """
        source = Path(path)
        if not source.exists():
            raise FileNotFoundError(f"no embedding table at {str(source)!r}")
        if source.is_file():
            return _read_file(source)
        tables = [_read_file(file) for file in table_files(source)]
        with value_errors_naming(source, "folder of one embedding table"):
            return concatenate(tables)


def _stored(table: EmbeddingTable) -> tuple[dict[str, Any], dict[str, NDArray[np.bool_]]]:
    """(columns, which rows have a vector) as parquet.py writes them."""
    names = (*SCALAR_COLUMNS, *VECTOR_COLUMNS)
    columns: dict[str, Any] = {"key": table.keys}
    columns |= {name: values for name in names if (values := getattr(table, name)) is not None}
    if table.captions is not None:
        columns["caption"] = table.captions
    columns["labels"] = [json.dumps(row, sort_keys=True, ensure_ascii=False) for row in table.labels]
    return columns, {name: table.has(name) for name in VECTOR_COLUMNS}


def write_tables(path: Path, tables: Iterable[EmbeddingTable], metadata: dict[str, Any]) -> int:
    """Write tables with the same columns as one Parquet file, a row group at a time; return the number of rows.

    The file gets `metadata` in place of the tables' own. ValueError if there are no tables.
    """
    return write_row_groups(path, map(_stored, _grouped(tables)), metadata)


def _grouped(tables: Iterable[EmbeddingTable]) -> Iterator[EmbeddingTable]:
    """The same rows in tables of at least a row group each, except the last one."""
    waiting: list[EmbeddingTable] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= ROWS_PER_GROUP:
            yield concatenate(waiting)
            waiting = []
    if waiting:
        yield concatenate(waiting)


def concatenate(tables: Sequence[EmbeddingTable]) -> EmbeddingTable:
    """The rows of all tables in order. ValueError if metadata or columns differ, or if two tables hold one window."""
    if not tables:
        raise ValueError("nothing to concatenate: pass at least one table")
    first = tables[0]
    for other in tables[1:]:
        names = first.metadata.keys() | other.metadata.keys()
        differing = sorted(name for name in names if first.metadata.get(name) != other.metadata.get(name))
        if differing:
            raise ValueError(f"tables with different metadata do not belong together; they differ in {differing}")
    windows = [(key, start) for table in tables for key, start in zip(table.keys, table.start_seconds, strict=True)]
    if len(tables) > 1 and len(set(windows)) != len(windows):
        raise ValueError("two tables hold the same key and start_seconds; remove the files of an earlier run")
    columns: dict[str, Any] = {}
    for name in SCALAR_COLUMNS:
        columns[name] = np.concatenate([getattr(table, name) for table in tables])
    for name in VECTOR_COLUMNS:
        values = [getattr(table, name) for table in tables]
        dims = {"absent" if vectors is None else str(vectors.shape[1]) for vectors in values}
        if len(dims) > 1:
            raise ValueError(f"tables disagree about the dim of column {name!r}: {sorted(dims)}")
        columns[name] = None if values[0] is None else np.concatenate(values)
    keys, labels = [key for table in tables for key in table.keys], [row for table in tables for row in table.labels]
    captions: list[str | None] | None = None
    if any(table.captions is not None for table in tables):
        captions = [text for table in tables for text in table.captions or [None] * len(table)]
    return EmbeddingTable(keys=keys, labels=labels, metadata=dict(first.metadata), captions=captions, **columns)


def _group_means(
    values: NDArray[np.float32], present: NDArray[np.bool_], group: NDArray[np.int64], count: int, *, unit: bool
) -> NDArray[np.float32]:
    """Mean of the present rows of each group, summed in float64; NaN for groups without one: (n, D) -> (count, D)."""
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, group[present], values[present].astype(np.float64))
    number = np.bincount(group[present], minlength=count)[:, None]
    means = np.divide(sums, number, out=np.full_like(sums, np.nan), where=number > 0)
    if unit:
        # Opposite windows can cancel each other: their mean has no direction and stays the zero vector.
        length = np.linalg.norm(means, axis=1, keepdims=True)
        means = np.divide(means, length, out=means, where=length > 0)
    return means.astype(np.float32)


def _read_file(source: Path) -> EmbeddingTable:
    columns, metadata = read_columns(source)
    missing = {"key", "labels", *SCALAR_COLUMNS} - {"has_image"} - columns.keys()
    if missing:
        raise ValueError(f"{str(source)!r} lacks the columns {sorted(missing)}: it is not an embedding table")
    unknown = columns.keys() - {"key", "labels", "caption", *SCALAR_COLUMNS, *VECTOR_COLUMNS}
    if unknown:
        raise ValueError(f"{str(source)!r} has the columns {brief(sorted(unknown))}: it is not an embedding table")
    with value_errors_naming(source, "embedding table"):
        rows = [Fields.parse(row, f"{source}, row {number}") for number, row in enumerate(columns.pop("labels"))]
        labels = [Fields({"labels": row.record}, row.where).labels("labels") for row in rows]
        texts = {"keys": columns.pop("key"), "captions": columns.pop("caption", None)}
        return EmbeddingTable(labels=labels, metadata=metadata, **texts, **columns)
