"""Labels of files by their path: the name of their folder, or rows of a csv of any length that is searched on disk."""

from __future__ import annotations

import csv
import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from avssl.shards.keys import folder_labels
from data_prep.index.lists.row import ListedFile, check_text, opened_text


@dataclass(frozen=True)
class LabelGaps:
    """What a csv of labels and the files have not in common: counts, and an example of each.

    num_unlabeled: files without a row. num_unused: rows whose path is no file.
    """

    num_unlabeled: int = 0
    unlabeled: str = ""
    num_unused: int = 0
    unused: str = ""


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
        self._num_unlabeled, self._unlabeled = 0, ""
        if labels not in ("folder", "none"):
            self._database = _stored(Path(labels), labels, database)

    def of(self, path: str) -> dict[str, list[str]]:
        """{field: [names]} of a file, its path relative to the folder."""
        if self._database is not None:
            name = (os.fsencode(path),)
            row = self._database.execute("SELECT labels, is_used FROM labels WHERE path = ?", name).fetchone()
            if row is None:
                self._num_unlabeled += 1
                self._unlabeled = self._unlabeled or path
                # A list may have many segments of a file, which counts once.
                self._database.execute("INSERT INTO labels VALUES (?, '{}', 1)", name)
                return {}
            if not row[1]:
                self._num_found += 1
                self._database.execute("UPDATE labels SET is_used = 1 WHERE path = ?", name)
            return dict(json.loads(row[0]))
        return {} if self._labels == "none" else folder_labels(path)

    def check(self) -> LabelGaps | None:
        """What csv and files have not in common; None without a csv. ValueError if the csv has none of the files.

        To be called after the last file; it closes the csv.
        """
        if self._database is None:
            return None
        query = "SELECT COUNT(*), MIN(path) FROM labels WHERE NOT is_used"
        num_unused, first = self._database.execute(query).fetchone()
        unused = os.fsdecode(first or b"")
        self._database.close()
        if not self._num_found:
            raise ValueError(
                f"{self._labels}: none of its paths is in the folder, e.g. {unused!a}; they are relative to it, as "
                f"{self._unlabeled!a} is"
            )
        return LabelGaps(self._num_unlabeled, self._unlabeled, num_unused, unused)


def _stored(path: Path, labels: str, database: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise FileNotFoundError(f"--labels {labels}: no such file; allowed: folder, none, or a csv file")
    store = sqlite3.connect(database)
    store.execute("PRAGMA journal_mode = OFF")
    store.execute("PRAGMA synchronous = OFF")
    store.execute("CREATE TABLE labels (path BLOB PRIMARY KEY, labels TEXT, is_used INTEGER) WITHOUT ROWID")
    with opened_text(path) as file:
        rows = csv.DictReader(file)
        names = _header(rows, path)
        if "path" not in names:
            header = ",".join(names)
            semicolons = "; its columns must be separated by commas" if ";" in header or "\t" in header else ""
            raise ValueError(f"{path}: its first line, {header[:200]!a}, has no column 'path'{semicolons}")
        store.executemany("INSERT OR REPLACE INTO labels VALUES (?, ?, 0)", _labeled(rows, path))
    store.commit()
    if store.execute("SELECT COUNT(*) FROM labels").fetchone() == (0,):
        raise ValueError(f"{path}: has no row below its header")
    return store


def _header(rows: csv.DictReader[str], path: Path) -> list[str]:
    try:
        return list(rows.fieldnames or ())
    except csv.Error as error:  # of a file of another kind
        raise ValueError(f"{path}, line 1: {error}; it must be a csv with a column 'path'") from error


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
