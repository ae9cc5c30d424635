"""Facts of corpora that are made up: manifests and the tables that `avssl prep facts` would write about them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from avssl.shards.manifest import Entry
from data_prep.facts.run import SETTINGS
from data_prep.facts.sources import corpus_identity
from data_prep.facts.table import EMBEDDING_COLUMNS, table_of_rows, with_columns, write_table

USUAL = {"labels": '{"label": ["a"]}', "duration_seconds": 10.0, "width_px": 64, "height_px": 48, "channels": 1}


def facts_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A table with a row for each dict, whose values differ from those of a usual clip."""
    full = []
    for number, row in enumerate(rows):
        key = row.get("key", f"k{number}")
        known = {"key": key, "path": f"{key}.mp4", "content": f"{number:016x}", "bytes": 100 + number}
        full.append(USUAL | known | row)
    table = table_of_rows(full)
    embedded = {name: np.array([row.get(name, np.nan) for row in full], np.float32) for name in EMBEDDING_COLUMNS}
    return with_columns(table, embedded)


def made_corpus(folder: Path, rows: Sequence[Mapping[str, Any]], without: Sequence[str] = ()) -> tuple[Path, Path]:
    """(manifest, facts) with a line and a row for each dict."""
    table = facts_table(rows)
    manifest, facts = folder / "corpus.jsonl", folder / "facts.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    with manifest.open("wb") as file:
        for row in table.to_pylist():
            error = None if row["reason"] is None else {"reason": row["reason"], "message": ""}
            media = {"container": "mp4", "duration_seconds": row["duration_seconds"]}
            labels, content = json.loads(row["labels"]), row["content"]
            file.write(Entry(row["path"], row["key"], labels, media, error, row["bytes"], content=content).to_json())
    write_facts(facts, manifest, table.drop_columns(list(without)))
    return manifest, facts


def write_facts(path: Path, corpus: Path, table: pa.Table) -> None:
    """The file that `avssl prep facts` would write about a corpus."""
    computed_from = {"corpus": corpus_identity(str(corpus)), "settings": SETTINGS, "embeddings": None}
    write_table(path, [table], computed_from | {"num_samples": table.num_rows, "unreadable_by_reason": {}})


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]
