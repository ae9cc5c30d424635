"""Named columns as Parquet or npz, and back: the files of embedding tables. The only user of pyarrow."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT_VERSION = 1
SUFFIXES = (".parquet", ".npz")
_METADATA_KEY = "avssl"


def write_columns(
    destination: Path, columns: Mapping[str, Any], present: Mapping[str, NDArray[np.bool_]], metadata: Mapping[str, Any]
) -> Path:
    """Write as Parquet or npz by the suffix, complete or not at all; the same columns give the same bytes.

    Args:
        destination: its folder is made if need be.
        columns: name -> list of str, or array (n,) or float32 (n, width), of equal length.
        present: for each column (n, width), which rows hold a vector, bool (n,); the others become null in Parquet.
        metadata: whatever json can hold.
    """
    if destination.suffix not in SUFFIXES:
        raise ValueError(f"cannot write {str(destination)!r}: the suffix must be one of {', '.join(SUFFIXES)}")
    payload = json.dumps({"format_version": FORMAT_VERSION, "metadata": metadata}, sort_keys=True)
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = destination.with_name(f".{destination.name}.tmp")
    with temporary.open("wb") as stream:
        if destination.suffix == ".parquet":
            _write_parquet(columns, present, payload, stream)
        else:
            _write_npz(columns, payload, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(destination)
    return destination


def read_columns(source: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(columns, metadata) as `write_columns` took them; vectors that are null in Parquet are NaN.

    Raises ValueError: another suffix, not a file of this format version, or unreadable.
    """
    if source.suffix not in SUFFIXES:
        raise ValueError(f"cannot read {str(source)!r}: the suffix must be one of {', '.join(SUFFIXES)}")
    return _read_parquet(source) if source.suffix == ".parquet" else _read_npz(source)


def _metadata(payload: str, source: Path) -> dict[str, Any]:
    found = json.loads(payload)
    if found.get("format_version") != FORMAT_VERSION:
        given = f"{str(source)!r} has embedding table format {found.get('format_version')}"
        raise ValueError(f"{given}, this version reads {FORMAT_VERSION}; write the table again with recipes/embed.py")
    return dict(found["metadata"])


def _write_parquet(
    columns: Mapping[str, Any], present: Mapping[str, NDArray[np.bool_]], payload: str, stream: Any
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

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
    pq.write_table(pa.table(arrays, metadata={_METADATA_KEY: payload}), stream, compression="zstd")


def _write_npz(columns: Mapping[str, Any], payload: str, stream: Any) -> None:
    # Fixed-width text, never object arrays: those would need a loader that can run code.
    arrays: dict[str, Any] = {
        name: np.array(values, np.str_) if isinstance(values, list) else values for name, values in columns.items()
    }
    arrays[_METADATA_KEY] = np.array(payload)
    np.savez(stream, **arrays)


def _read_parquet(source: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(source)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{str(source)!r} is not a readable Parquet file: {error}") from error
    payload = (table.schema.metadata or {}).get(_METADATA_KEY.encode())
    if payload is None:
        raise ValueError(f"{str(source)!r} is Parquet, but no embedding table: it lacks the {_METADATA_KEY!r} metadata")
    metadata = _metadata(payload.decode(), source)
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
    return columns, metadata


def _read_npz(source: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with np.load(source, allow_pickle=False) as archive:
        if _METADATA_KEY not in archive:
            raise ValueError(f"{str(source)!r} is no embedding table: it lacks the {_METADATA_KEY!r} entry")
        metadata = _metadata(str(archive[_METADATA_KEY]), source)
        arrays = {name: archive[name] for name in archive.files if name != _METADATA_KEY}
    columns = {name: [str(text) for text in one] if one.dtype.kind == "U" else one for name, one in arrays.items()}
    return columns, metadata
