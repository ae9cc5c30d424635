"""The rows of embeddings as a Lance table, which `avssl search` searches by its index, and LanceDB opens as it is.

Columns: row (its number in the folder), key, index, start_seconds, end_seconds, media, media_begin_seconds,
media_end_seconds, caption, labels (JSON: all fields and names), one for each label field (text; a list of texts if a
row has several names of it), and the vectors, null where the row lacks the modality. Beside Lance's own files lie
index.json of the folder, its sources.jsonl and skipped.jsonl if it has them, and indices.json: of each modality the
kind of its index, and the share of the true closest rows that it finds (its recall).

The rows are the same each time. Names of Lance's files and times are not, nor is an index: k-means starts anywhere.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from avssl.embedding.index import LISTING_NAME, SKIPPED_NAME, is_lance_table
from avssl.embedding.lance_table import KIND, ROW_COLUMNS, LanceTable, import_lance, is_index, write_rows
from avssl.embedding.search import EmbeddingIndex
from avssl.exchange.targets.rows import Rows, RowSource, label_text
from avssl.files.plain_text import note
from avssl.files.whole import whole_folder, write_whole
from avssl.shards.keys import label_columns

INDICES_NAME = "indices.json"
NUM_RECALL_QUERIES, RECALL_AT = 100, 10


def export(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the folder of `avssl export --to lance`; the fields of its result."""
    import_lance()
    rows = RowSource(arguments.sources[0], ("embedding",), arguments.moved)
    with whole_folder(arguments.out, is_export, overwrite=arguments.overwrite) as folder:
        indices = write_lance_table(rows, folder)
    for modality, facts in indices.items():
        note(f"{modality}: {_sentence(facts)}")
    return {
        "num_rows": len(rows),
        "widths": rows.widths,
        "indices": indices,
        "summary": f"{len(rows):,} rows in {arguments.out}; avssl search {arguments.out} QUERY",
    }


def is_export(folder: Path) -> bool:
    """Whether a folder is a Lance table that this program wrote."""
    return is_lance_table(folder) and is_index(folder)


def _sentence(facts: dict[str, Any]) -> str:
    if not facts.get("kind"):
        return f"{facts['num_rows']:,} rows without an index: all are compared"
    recall, noisy, count = facts["recall_at_10"], facts["noisy_recall_at_10"], facts["num_recall_queries"]
    return (
        f"{facts['kind']} of {facts['num_rows']:,} rows, in {facts['build_seconds']:.1f} s: recall at 10 is "
        f"{recall:.3f} over {count} stored rows, {noisy:.3f} with noise added"
    )


def write_lance_table(rows: RowSource, folder: Path, kind: str = "") -> dict[str, dict[str, Any]]:
    """Write the table into an empty folder, a row group in memory at a time; {modality: facts of its index}.

    kind: of the index of every modality; "": by its number of rows (LanceTable.build_index).
    """
    fields = _label_columns(rows)
    columns: dict[str, Any] = {"row": np.int64, "key": "text", "index": np.int64}
    columns |= dict.fromkeys(("start_seconds", "end_seconds"), np.float64) | {"media": "text"}
    columns |= dict.fromkeys(("media_begin_seconds", "media_end_seconds"), np.float64)
    columns |= {"caption": "text", "labels": "text"}
    columns |= {name: "texts" if field in rows.several else "text" for field, name in fields.items()}
    write_rows(folder, (_columns(group, fields, rows.several) for group in rows.groups()), columns | rows.widths)
    replace(rows.index, files=[]).write(folder, KIND)
    for name in (LISTING_NAME, SKIPPED_NAME):
        if (rows.folder / name).is_file():
            shutil.copyfile(rows.folder / name, folder / name)
    source, table = EmbeddingIndex(rows.folder), LanceTable(folder)
    indices = {}
    for modality in table.modalities:
        began = time.monotonic()
        facts = {"num_rows": rows.index.rows_with[modality], **table.build_index(modality, kind)}
        if "kind" in facts:
            facts["build_seconds"] = round(time.monotonic() - began, 3)
            facts |= _recall(source, table, modality)
        indices[modality] = facts
    write_whole(folder / INDICES_NAME, json.dumps(indices, indent=1) + "\n")
    return indices


def _label_columns(rows: RowSource) -> dict[str, str]:
    """{label field: its column}, names that SQL takes without quotes: of letters, digits and _, no digit first."""

    def written(field: str) -> str:
        name = re.sub(r"\W", "_", field)
        return f"label_{name}" if not name or name[0].isdecimal() else name

    taken = {*ROW_COLUMNS, "media", "media_begin_seconds", "media_end_seconds", "caption", "labels", *rows.widths}
    return label_columns(rows.label_fields, taken, written)


def _columns(rows: Rows, fields: dict[str, str], several: set[str]) -> dict[str, Any]:
    """The columns of a group of rows."""
    columns: dict[str, Any] = {
        "row": np.arange(rows.first, rows.first + len(rows)),
        "key": rows.keys,
        **{name: rows.scalars[name] for name in ("index", "start_seconds", "end_seconds")},
        "media": rows.media,
        "media_begin_seconds": rows.begin_seconds,
        "media_end_seconds": rows.end_seconds,
        "caption": rows.captions,
        "labels": [json.dumps(labels, sort_keys=True, ensure_ascii=False) for labels in rows.labels],
    }
    for field, name in fields.items():
        has_several = field in several
        columns[name] = [
            labels.get(field) or None if has_several else label_text(labels, field) for labels in rows.labels
        ]
    return columns | rows.vectors


def _recall(source: EmbeddingIndex, table: LanceTable, modality: str) -> dict[str, Any]:
    """The share of the hits that are among the true closest by score; among equal scores any row counts.

    The queries are stored rows, and the same rows with noise of the same length added (cosine with the row about .7): a
    graph was built by searching for the stored rows, and finds what is near them more easily than the neighbors of new
    files.
    """
    step = max(1, source.content.rows_with[modality] // NUM_RECALL_QUERIES)
    stored = np.concatenate(list(_every(source, modality, step)))[:NUM_RECALL_QUERIES]
    noise = np.random.default_rng(0).standard_normal(stored.shape)
    noisy = stored + noise / np.linalg.norm(noise, axis=1, keepdims=True)
    exact = source.search(modality, np.concatenate([stored, noisy]), RECALL_AT)
    found = table.search(modality, np.concatenate([stored, noisy]), RECALL_AT)
    correct = np.array(
        [sum(hit.score >= best[-1].score for hit in hits) / len(best) for best, hits in zip(exact, found, strict=True)]
    )
    names = (f"recall_at_{RECALL_AT}", f"noisy_recall_at_{RECALL_AT}")
    shares = correct.reshape(2, -1).mean(axis=1).tolist()
    return {"num_recall_queries": len(stored), **dict(zip(names, shares, strict=True))}


def _every(source: EmbeddingIndex, modality: str, step: int) -> Iterator[Any]:
    """The vectors of every `step`th row that has a modality."""
    num_read = 0
    for rows in source.rows(modality):
        yield rows.vectors[-num_read % step :: step]
        num_read += len(rows.numbers)
