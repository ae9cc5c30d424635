"""Tables of embeddings: one row per window of a clip, as Parquet or npz. The only user of pyarrow."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT_VERSION = 1
SCALAR_COLUMNS: dict[str, Any] = {
    "index": np.int64,
    "start_seconds": np.float64,
    "end_seconds": np.float64,
    "has_audio": np.bool_,
    "has_video": np.bool_,
}
VECTOR_COLUMNS = ("video_embedding", "audio_embedding", "video_feature", "audio_feature")
_METADATA_KEY = "avssl"
_SUFFIXES = (".parquet", ".npz")


@dataclass(frozen=True)
class EmbeddingTable:
    """n windows with their embeddings; every array has n rows, in the order in which they were written.

    keys: names of the clips, length n (several windows of one clip share a key).
    index: int64 (n,), the sample's index in its shard folder, -1 for plain files.
    start_seconds, end_seconds: float64 (n,), the window on the clip's clock.
    has_audio, has_video: bool (n,).
    video_embedding, audio_embedding: float32 (n, D), unit rows, all NaN where the modality is absent; None if the
        whole table lacks the column. D may differ between modalities.
    video_feature, audio_feature: float32 (n, F), the encoder's output before the projector; NaN and None as above.
    labels: {field: [names]} per row.
    metadata: run, weights hash, window_seconds, stride_seconds, normalised, ...: whatever json can hold.
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
    labels: list[dict[str, list[str]]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Convert to the types above; ValueError where lengths or presence do not fit."""
        set_field = object.__setattr__
        set_field(self, "keys", [str(key) for key in self.keys])
        set_field(self, "labels", list(self.labels) or [{} for _ in self.keys])
        for name, dtype in SCALAR_COLUMNS.items():
            set_field(self, name, np.asarray(getattr(self, name), dtype=dtype))
        for name in ("labels", *SCALAR_COLUMNS):
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

    def _label_texts(self) -> list[str]:
        return [json.dumps(row, sort_keys=True, ensure_ascii=False) for row in self.labels]

    def _present(self, name: str) -> NDArray[np.bool_]:
        """bool (n,): which rows have the modality of a vector column."""
        return self.has_video if name.startswith("video") else self.has_audio

    def _check_vectors(self, name: str) -> None:
        """Rows that are present must be finite, absent rows all NaN: a zero or a stale vector would pass for data."""
        values, present = getattr(self, name), self._present(name)
        if values.ndim != 2 or len(values) != len(self.keys) or values.shape[1] == 0:
            raise ValueError(
                f"column {name!r} has shape {values.shape}; expected ({len(self.keys)}, width) with width > 0"
            )
        wrong = np.where(present, ~np.isfinite(values).all(axis=1), ~np.isnan(values).all(axis=1))
        if wrong.any():
            row = int(np.argmax(wrong))
            state = "has this modality, but its vector is not finite" if present[row] else "lacks it, but is not NaN"
            raise ValueError(f"column {name!r}, row {row} (key {self.keys[row]!r}): the row {state}")

    def __len__(self) -> int:
        return len(self.keys)

    def label_fields(self) -> list[str]:
        """Names of the label fields, sorted."""
        return sorted({name for row in self.labels for name in row})

    def label(self, label_field: str) -> list[str | None]:
        """One name per row for a field: None where a row has none, several names joined by " | ".

        Raises:
            KeyError: no row has this field.
        """
        if label_field not in self.label_fields():
            raise KeyError(f"no row has labels of field {label_field!r}; this table has {self.label_fields()}")
        return [" | ".join(row[label_field]) if row.get(label_field) else None for row in self.labels]

    def select(self, rows: NDArray[Any] | Sequence[int]) -> EmbeddingTable:
        """The given rows as a new table. rows: bool (n,) mask or integer positions in [0, n), order kept."""
        chosen = np.asarray(rows)
        if chosen.dtype == np.bool_:
            if chosen.shape != (len(self),):
                raise ValueError(f"mask has shape {chosen.shape}; expected ({len(self)},)")
            chosen = np.flatnonzero(chosen)
        chosen = chosen.astype(np.int64)
        names = (*SCALAR_COLUMNS, *VECTOR_COLUMNS)
        arrays = {name: values[chosen] for name in names if (values := getattr(self, name)) is not None}
        keys, labels = [self.keys[row] for row in chosen], [self.labels[row] for row in chosen]
        return EmbeddingTable(keys=keys, labels=labels, metadata=dict(self.metadata), **arrays)

    def pool_by_key(self) -> EmbeddingTable:
        """One row per key, in order of first appearance: embeddings = mean of the unit windows, made unit again.

        Features are averaged and left as they are; the time span is the union of the windows; index and labels are
        the first window's. Windows without a modality do not enter its mean.
        """
        _, first, group = np.unique(np.array(self.keys, np.str_), return_index=True, return_inverse=True)
        order = np.argsort(first)
        group = np.argsort(order)[group]
        pooled = self.select(first[order])
        columns: dict[str, Any] = {"metadata": {**self.metadata, "pooled": "mean of windows by key"}}
        spans = {"start_seconds": np.minimum, "end_seconds": np.maximum}
        for name, union in {**spans, "has_audio": np.logical_or, "has_video": np.logical_or}.items():
            columns[name] = getattr(pooled, name).copy()
            union.at(columns[name], group, getattr(self, name))
        for name in VECTOR_COLUMNS:
            if (values := getattr(self, name)) is not None:
                unit = name.endswith("embedding")
                columns[name] = _group_means(values, self._present(name), group, len(pooled), unit=unit)
        return replace(pooled, **columns)

    def write(self, path: str | Path) -> Path:
        """Write as Parquet or npz by the suffix, complete or not at all; the same table gives the same bytes."""
        destination = Path(path)
        if destination.suffix not in _SUFFIXES:
            raise ValueError(f"cannot write {str(destination)!r}: the suffix must be one of {', '.join(_SUFFIXES)}")
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = destination.with_name(f".{destination.name}.tmp")
        with temporary.open("wb") as stream:
            (_write_parquet if destination.suffix == ".parquet" else _write_npz)(self, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(destination)
        return destination

    @classmethod
    def read(cls, path: str | Path) -> EmbeddingTable:
        """Read a .parquet or .npz file, or a folder of parts (its .parquet files, else its .npz files, by name).

        Raises:
            FileNotFoundError: nothing there, or a folder without parts.
            ValueError: not an embedding table of this format version, or parts that do not belong together.
        """
        source = Path(path)
        if not source.exists():
            raise FileNotFoundError(f"no embedding table at {str(source)!r}")
        if source.is_file():
            return _read_file(source)
        for suffix in _SUFFIXES:
            parts = sorted(part for part in source.glob(f"*{suffix}") if not part.name.startswith("."))
            if parts:
                return concatenate([_read_file(part) for part in parts])
        raise FileNotFoundError(f"the folder {str(source)!r} holds no .parquet and no .npz file")


def concatenate(tables: Sequence[EmbeddingTable]) -> EmbeddingTable:
    """All rows, one table after the other. ValueError if metadata or columns differ or a window comes twice."""
    if not tables:
        raise ValueError("nothing to concatenate: pass at least one table")
    first = tables[0]
    for other in tables[1:]:
        names = first.metadata.keys() | other.metadata.keys()
        differing = sorted(name for name in names if first.metadata.get(name) != other.metadata.get(name))
        if differing:
            raise ValueError(f"parts with different metadata do not belong together; they differ in {differing}")
    windows = [(key, start) for table in tables for key, start in zip(table.keys, table.start_seconds, strict=True)]
    if len(tables) > 1 and len(set(windows)) != len(windows):
        raise ValueError("two parts hold the same key and start_seconds; remove the parts of an earlier run")
    columns: dict[str, Any] = {}
    for name in SCALAR_COLUMNS:
        columns[name] = np.concatenate([getattr(table, name) for table in tables])
    for name in VECTOR_COLUMNS:
        parts = [getattr(table, name) for table in tables]
        widths = {"absent" if part is None else str(part.shape[1]) for part in parts}
        if len(widths) > 1:
            raise ValueError(f"parts disagree about the width of column {name!r}: {sorted(widths)}")
        columns[name] = None if parts[0] is None else np.concatenate(parts)
    keys, labels = [key for table in tables for key in table.keys], [row for table in tables for row in table.labels]
    return EmbeddingTable(keys=keys, labels=labels, metadata=dict(first.metadata), **columns)


def _group_means(
    values: NDArray[np.float32], present: NDArray[np.bool_], group: NDArray[np.int64], count: int, *, unit: bool
) -> NDArray[np.float32]:
    """Mean of the present rows of each group in float64, NaN for groups with none: (n, D) -> (count, D)."""
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, group[present], values[present].astype(np.float64))
    number = np.bincount(group[present], minlength=count)[:, None]
    means = np.divide(sums, number, out=np.full_like(sums, np.nan), where=number > 0)
    if unit:
        # Opposite windows can cancel: the mean then has no direction and stays the zero vector.
        length = np.linalg.norm(means, axis=1, keepdims=True)
        means = np.divide(means, length, out=means, where=length > 0)
    return means.astype(np.float32)


def _payload(table: EmbeddingTable) -> str:
    return json.dumps({"format_version": FORMAT_VERSION, "metadata": table.metadata}, sort_keys=True)


def _metadata(payload: str, source: Path) -> dict[str, Any]:
    found = json.loads(payload)
    if found.get("format_version") != FORMAT_VERSION:
        given = f"{str(source)!r} has embedding table format {found.get('format_version')}"
        raise ValueError(f"{given}, this version reads {FORMAT_VERSION}; write the table again with recipes/embed.py")
    return dict(found["metadata"])


def _write_parquet(table: EmbeddingTable, stream: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"key": pa.array(table.keys, pa.string())}
    for name in SCALAR_COLUMNS:
        columns[name] = pa.array(getattr(table, name))
    for name in VECTOR_COLUMNS:
        values = getattr(table, name)
        if values is not None:
            absent = ~table._present(name)
            flat = pa.array(np.where(absent[:, None], np.float32(0), values).reshape(-1), pa.float32())
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=pa.array(absent))
    columns["labels"] = pa.array(table._label_texts(), pa.string())
    pq.write_table(pa.table(columns, metadata={_METADATA_KEY: _payload(table)}), stream, compression="zstd")


def _write_npz(table: EmbeddingTable, stream: Any) -> None:
    names = (*SCALAR_COLUMNS, *VECTOR_COLUMNS)
    columns: dict[str, Any] = {name: values for name in names if (values := getattr(table, name)) is not None}
    # Fixed-width text, never object arrays: those would need a loader that can run code.
    columns |= {"key": np.array(table.keys, np.str_), "labels": np.array(table._label_texts(), np.str_)}
    columns[_METADATA_KEY] = np.array(_payload(table))
    np.savez(stream, **columns)


def _read_file(source: Path) -> EmbeddingTable:
    if source.suffix not in _SUFFIXES:
        raise ValueError(f"cannot read {str(source)!r}: the suffix must be one of {', '.join(_SUFFIXES)}")
    columns = dict(_parquet_columns(source) if source.suffix == ".parquet" else _npz_columns(source))
    missing = {"key", "labels", *SCALAR_COLUMNS} - columns.keys()
    if missing:
        raise ValueError(f"{str(source)!r} lacks the columns {sorted(missing)}: it is not an embedding table")
    labels = [json.loads(row) for row in columns.pop("labels")]
    return EmbeddingTable(keys=columns.pop("key"), labels=labels, **columns)


def _parquet_columns(source: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(source)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{str(source)!r} is not a readable Parquet file: {error}") from error
    payload = (table.schema.metadata or {}).get(_METADATA_KEY.encode())
    if payload is None:
        raise ValueError(f"{str(source)!r} is Parquet, but no embedding table: it lacks the {_METADATA_KEY!r} metadata")
    yield "metadata", _metadata(payload.decode(), source)
    for name in table.column_names:
        column = table[name].combine_chunks()
        if name in VECTOR_COLUMNS:
            values = np.full((len(column), column.type.list_size), np.nan, np.float32)
            present = np.asarray(column.is_valid())
            values[present] = column.flatten().to_numpy().reshape(-1, column.type.list_size)
            yield name, values
        else:
            yield name, column.to_pylist() if name in ("key", "labels") else column.to_numpy(zero_copy_only=False)


def _npz_columns(source: Path) -> Iterator[tuple[str, Any]]:
    with np.load(source, allow_pickle=False) as archive:
        if _METADATA_KEY not in archive:
            raise ValueError(f"{str(source)!r} is no embedding table: it lacks the {_METADATA_KEY!r} entry")
        yield "metadata", _metadata(str(archive[_METADATA_KEY]), source)
        for name in archive.files:
            if name != _METADATA_KEY:
                yield name, [str(text) for text in archive[name]] if name in ("key", "labels") else archive[name]
