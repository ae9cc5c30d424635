"""The rows of embeddings as one CSV file, and the rule by which its texts are written.

Columns: key, index, start_seconds, end_seconds, has_audio, has_video, has_image, media, media_begin_seconds,
media_end_seconds, caption, labels (JSON: all fields and names), one for each label field (its names, " | " between
them), and one for each number of a vector: video_embedding_0, ... A cell without a value is empty; a text without
letters is "".

Texts (but not the JSON, which has a rule of its own) are written so that no program that opens the file acts on them:
a backslash is doubled, characters that act on a terminal or end a line become escapes, and a text that a spreadsheet
would take for a formula begins with an apostrophe. `original` undoes both.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from avssl.embedding.parquet import csv_writer
from avssl.exchange.targets.rows import Rows, RowSource, label_text
from avssl.files.plain_text import plain
from avssl.files.whole import refuse_existing, refuse_folder, whole_file
from avssl.shards.keys import label_columns

FORMULA_BEGINS = "=+-@\uff1d\uff0b\uff0d\uff20"  # also as East Asian keyboards write them
MAX_LABEL_FIELDS = 100
_ESCAPE = re.compile(r"\\(\\|n|r|t|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
_FIRST = (
    "key", "index", "start_seconds", "end_seconds", "has_audio", "has_video", "has_image", "media",
    "media_begin_seconds", "media_end_seconds", "caption", "labels",
)  # fmt: skip


def export(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the file of `avssl export --to csv`; the fields of its result."""
    refuse_folder(arguments.out)
    if not arguments.overwrite:
        refuse_existing(arguments.out)
    rows = RowSource(arguments.sources[0], arguments.vectors or ("embedding",), arguments.moved)
    write_csv(rows, arguments.out)
    size = arguments.out.stat().st_size
    summary = f"{len(rows):,} rows in {arguments.out} ({size / 1e6:.1f} MB)"
    return {"num_rows": len(rows), "widths": rows.widths, "bytes": size, "summary": summary}


def write_csv(rows: RowSource, path: Path) -> None:
    """Write rows as a CSV file, complete or not at all; the same rows give the same bytes.

    ValueError if there are more than MAX_LABEL_FIELDS label fields, each of which would be a column.
    """
    fields = rows.label_fields
    if len(fields) > MAX_LABEL_FIELDS:
        raise ValueError(
            f"{rows.folder} has {len(fields)} label fields, each of which would be a column; at most "
            f"{MAX_LABEL_FIELDS} are written. The target numpy takes any number"
        )
    numbers = [f"{name}_{place}" for name, width in rows.widths.items() for place in range(width)]
    columns = label_columns(fields, {*_FIRST, *numbers}, lambda name: cell(name) or "")
    with whole_file(path) as stream, csv_writer(stream) as write:
        for group in rows.groups():
            write(_columns(group, columns))


def _columns(rows: Rows, fields: dict[str, str]) -> dict[str, Any]:
    columns: dict[str, Any] = {"key": [cell(key) for key in rows.keys]}
    columns |= {name: rows.scalars[name] for name in _FIRST if name in rows.scalars}
    columns["media"] = [cell(path) for path in rows.media]
    columns |= {"media_begin_seconds": rows.begin_seconds, "media_end_seconds": rows.end_seconds}
    columns["caption"] = [cell(text) for text in rows.captions]
    columns["labels"] = [json.dumps(labels, sort_keys=True) for labels in rows.labels]
    for field, name in fields.items():
        columns[name] = [cell(label_text(labels, field)) for labels in rows.labels]
    for name, vectors in rows.vectors.items():
        columns |= {f"{name}_{place}": np.ascontiguousarray(column) for place, column in enumerate(vectors.T)}
    return columns


def cell(text: str | None) -> str | None:
    r"""A text as it is written into a cell; None, an empty cell, stays None.

    >>> cell("=1+1\n")
    "'=1+1\\n"
    """
    if text is None:
        return None
    escaped = plain(text.replace("\\", "\\\\"))
    return f"'{escaped}" if escaped.startswith(("'", *FORMULA_BEGINS)) else escaped


def original(text: str) -> str:
    r"""The text of a cell that `cell` wrote.

    >>> original(cell("'=1+1\n"))
    "'=1+1\n"
    """
    return _ESCAPE.sub(_character, text.removeprefix("'"))


def _character(escape: re.Match[str]) -> str:
    kind, digits = escape[1][0], escape[1][1:]
    return chr(int(digits, 16)) if digits else {"\\": "\\", "n": "\n", "r": "\r", "t": "\t"}[kind]
