"""The rows of embeddings as a folder of NumPy arrays, each of n rows in one order.

key.npy                     text, <U
index.npy, ...              and start_seconds, end_seconds, has_audio, has_video, has_image
media_begin_seconds.npy, media_end_seconds.npy     the row's seconds in its file
video_embedding.npy, ...    float32 (n, D), NaN where the row lacks the modality
rows.jsonl                  a line a row: key, labels, caption, media (path or URL, or null)
columns.json                number of rows, the shape and dtype of each array, and how the rows were made

Arrays may be larger than memory: np.load(file, mmap_mode="r"). No file needs allow_pickle.
"""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from avssl.embedding.table import SCALAR_COLUMNS
from avssl.exchange.targets.rows import Rows, RowSource
from avssl.files.whole import whole_folder

ROWS_NAME, COLUMNS_NAME = "rows.jsonl", "columns.json"


def export(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the folder of `avssl export --to numpy`; the fields of its result."""
    rows = RowSource(arguments.sources[0], arguments.vectors or ("embedding",), arguments.moved)
    with whole_folder(arguments.out, is_export, overwrite=arguments.overwrite) as folder:
        arrays = write_arrays(rows, folder)
    shown = ", ".join(f"{name} {rows.widths[name]}" for name in rows.vectors)
    return {
        "num_rows": len(rows),
        "widths": rows.widths,
        "arrays": arrays,
        "summary": f"{len(rows):,} rows in {arguments.out} ({shown})",
    }


def is_export(folder: Path) -> bool:
    """Whether a folder is of an export to numpy."""
    return (folder / COLUMNS_NAME).is_file()


def write_arrays(rows: RowSource, folder: Path) -> dict[str, dict[str, Any]]:
    """Write the files into an empty folder; {array: its dtype and shape}. The same rows give the same bytes."""
    dtypes: dict[str, Any] = {"key": f"<U{rows.longest_key}", **SCALAR_COLUMNS}
    dtypes |= dict.fromkeys(("media_begin_seconds", "media_end_seconds"), np.float64)
    dtypes |= dict.fromkeys(rows.vectors, np.float32)
    arrays: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        for name, dtype in dtypes.items():
            shape = (len(rows), rows.widths[name]) if name in rows.widths else (len(rows),)
            files[name] = stack.enter_context((folder / f"{name}.npy").open("wb"))
            described = np.lib.format.dtype_to_descr(np.dtype(dtype).newbyteorder("<"))
            header = {"descr": described, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(files[name], header)
            arrays[name] = {"dtype": described, "shape": list(shape)}
        lines = stack.enter_context((folder / ROWS_NAME).open("wb"))
        for group in rows.groups():
            for name, values in _arrays(group).items():
                files[name].write(values.astype(arrays[name]["dtype"], copy=False).tobytes())
            texts = zip(group.keys, group.labels, group.captions, group.media, strict=True)
            for key, labels, caption, media in texts:
                record = {"key": key, "labels": labels, "caption": caption, "media": media}
                lines.write(json.dumps(record, sort_keys=True).encode("ascii") + b"\n")
    content = {"num_rows": len(rows), "arrays": arrays, "settings": rows.index.settings}
    (folder / COLUMNS_NAME).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="ascii")
    return arrays


def _arrays(rows: Rows) -> dict[str, NDArray[Any]]:
    times = {"media_begin_seconds": rows.begin_seconds, "media_end_seconds": rows.end_seconds}
    return {"key": np.array(rows.keys, np.str_), **rows.scalars, **times, **rows.vectors}
