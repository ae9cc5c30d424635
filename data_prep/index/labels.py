"""Labels of files by their path: the name of their folder, or rows of a csv of any length that is searched on disk."""

from __future__ import annotations

import csv
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from avssl.shards.keys import folder_labels
from data_prep.index.lists.row import ListedFile, check_text, opened_text


class Labels:
    """The labels that `--labels` gives.

    Args:
        labels: "folder" (name of the top-level folder), "none", or a csv file with a column `path`; every other column
            is a label field, several names separated by |. Of several rows with one path the last one is used.
        database: a file for the csv's rows, which must not exist yet.

    Raises:
        FileNotFoundError, ValueError: there is no such csv, or it has no column `path` or no rows.
    """

    def __init__(self, labels: str, database: Path) -> None:
        self._labels, self._num_found, self._database = labels, 0, None
        if labels not in ("folder", "none"):
            self._database = _stored(Path(labels), labels, database)

    def of(self, path: str) -> dict[str, list[str]]:
        """{field: [names]} of a file, its path relative to the folder."""
        if self._database is not None:
            query = "SELECT labels FROM labels WHERE path = ?"
            row = self._database.execute(query, (os.fsencode(path),)).fetchone()
            self._num_found += row is not None
            return dict(json.loads(row[0])) if row else {}
        return {} if self._labels == "none" else folder_labels(path)

    def check(self) -> None:
        """ValueError if the csv has none of the files. To be called after the last file; it closes the csv."""
        if self._database is None:
            return
        (example,) = self._database.execute("SELECT path FROM labels LIMIT 1").fetchone()
        self._database.close()
        if not self._num_found:
            raise ValueError(
                f"{self._labels}: none of its paths is in the folder, e.g. {os.fsdecode(example)!a}; they are relative "
                "to it"
            )


def _stored(path: Path, labels: str, database: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise FileNotFoundError(f"--labels {labels}: no such file; allowed: folder, none, or a csv file")
    store = sqlite3.connect(database)
    store.execute("PRAGMA journal_mode = OFF")
    store.execute("PRAGMA synchronous = OFF")
    store.execute("CREATE TABLE labels (path BLOB PRIMARY KEY, labels TEXT) WITHOUT ROWID")
    with opened_text(path) as file:
        rows = csv.DictReader(file)
        if "path" not in (rows.fieldnames or ()):
            raise ValueError(f"{path}: needs a header with a column 'path' and at least one row")
        store.executemany("INSERT OR REPLACE INTO labels VALUES (?, ?)", _labeled(rows, path))
    store.commit()
    if store.execute("SELECT COUNT(*) FROM labels").fetchone() == (0,):
        raise ValueError(f"{path}: needs a header with a column 'path' and at least one row")
    return store


def _labeled(rows: csv.DictReader[str], path: Path) -> Iterator[tuple[bytes, str]]:
    """(path, labels as json) of each row. ValueError names the line that cannot be read, or has no path."""
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise ValueError(f"{path}, line {rows.line_num + 1}: {error}") from error
        if row is None:
            return
        labels = {
            field: [name for name in value.split("|") if name]
            for field, value in row.items()
            if field not in (None, "path") and value
        }
        try:
            if not row["path"]:
                raise ValueError("has no path")
            check_text(ListedFile(labels=labels))
        except ValueError as error:
            raise ValueError(f"{path}, line {rows.line_num}: {error}") from error
        yield os.fsencode(row["path"]), json.dumps(labels)
