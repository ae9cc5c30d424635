"""The rows of a manifest that is being made, on disk: keys are made unique over all of them at constant memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from data_prep.index.lists.row import BadRow
from data_prep.manifest import Segment, plain_key

HASH_LENGTHS = (8, 16, 64)
HASHES_AT_A_TIME = 1 << 20


@dataclass(frozen=True)
class Pending:
    """A row whose file was found, or is missing.

    where: its line in the list. path: as the manifest will state it. key: not yet unique. is_given: whether the list
    states the key. identity: text that differs between rows that would have the same key. missing: the message of a
    missing file, with the names that were searched for.
    """

    where: str
    path: str
    key: str
    is_given: bool
    identity: str
    labels: dict[str, list[str]]
    segment: Segment | None = None
    missing: str | None = None


class IndexSpool:
    """Takes rows one by one; after `finish` it can be iterated, in order and with unique keys, as often as needed.

    folder: for its files, which the caller removes. 16 bytes per row are sorted on disk.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "rows.jsonl"
        self._hash_paths = {name: folder / f"{name}.hashes" for name in ("key", "row")}
        self._file = self._path.open("wb")
        self._hashes = {name: path.open("wb") for name, path in self._hash_paths.items()}
        self._count = 0

    def add(self, row: Pending) -> None:
        """Append a row."""
        self._file.write(json.dumps(vars(row)).encode("ascii") + b"\n")
        self._hashes["key"].write(_hash(row.key).tobytes())
        self._hashes["row"].write(_hash(_source(row)).tobytes())
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def finish(self) -> None:
        """Close the spool for writing and sort the hashes."""
        for file in (self._file, *self._hashes.values()):
            file.close()
        self._keys, self._repeated_keys = self._sorted("key")
        _, self._repeated_rows = self._sorted("row")

    def __iter__(self) -> Iterator[Pending | BadRow]:
        """The rows with their final keys; a BadRow for a row that repeats another, or its stated key."""
        seen: dict[str, str] = {}
        for row in self._read():
            source = _source(row)
            is_repeated = _is_in(self._repeated_rows, _hash(source))
            if is_repeated and (first := seen.setdefault(source, row.where)) != row.where:
                yield BadRow(row.where, f"lists the same file and seconds as {first}: {row.path!a}")
            elif not _is_in(self._repeated_keys, _hash(row.key)):
                yield row
            elif row.is_given:
                yield BadRow(row.where, f"has the key {row.key}, which another row has too")
            else:
                yield replace(row, key=self.unused_key(row.key, row.identity))

    def repeated(self) -> Iterator[BadRow]:
        """The rows that repeat another row, or its stated key."""
        if len(self._repeated_rows) or len(self._repeated_keys):
            yield from (row for row in self if isinstance(row, BadRow))

    def unused_key(self, key: str, identity: str) -> str:
        """The key followed by as much of a hash of `identity` as makes it a key that no row has."""
        digest = hashlib.sha256(os.fsencode(identity)).hexdigest()
        candidates = (f"{key}-{digest[:length]}" for length in HASH_LENGTHS)
        return next(candidate for candidate in candidates if not self.has_key(candidate))

    def has_key(self, key: str) -> bool:
        """Whether any row had this key before keys were made unique. Wrongly true once in 10^19 rows."""
        return _is_in(self._keys, _hash(key))

    def _read(self) -> Iterator[Pending]:
        with self._path.open("rb") as file:
            for line in file:
                record: dict[str, Any] = json.loads(line)
                segment = record["segment"]
                yield Pending(**(record | {"segment": None if segment is None else (segment[0], segment[1])}))

    def _sorted(self, name: str) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """(all hashes in order, on disk; the hashes that occur more than once), both uint64 (n,)."""
        if not self._count:
            return np.zeros(0, np.uint64), np.zeros(0, np.uint64)
        hashes = np.memmap(self._hash_paths[name], np.uint64, "r+")
        hashes.sort()
        repeated = []
        for begin in range(0, len(hashes) - 1, HASHES_AT_A_TIME):
            block = np.asarray(hashes[begin : begin + HASHES_AT_A_TIME + 1])
            repeated.append(np.unique(block[1:][block[1:] == block[:-1]]))
        return hashes, np.unique(np.concatenate(repeated)) if repeated else hashes[:0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._file, *self._hashes.values()):
            file.close()


def segment_key(key: str, segment: Segment) -> str:
    """The key of a segment of a file: KEY_BEGIN_END, in milliseconds."""
    return f"{key}_{round(segment[0] * 1000)}_{round(segment[1] * 1000)}"


def row_key(name: str, segment: Segment | None) -> str:
    """The key of a row that is named by a path: `plain_key`, with the seconds of the segment if there is one."""
    return plain_key(name) if segment is None else segment_key(plain_key(name), segment)


def _source(row: Pending) -> str:
    """The file and seconds of a row as text. Two rows with the same text are the same sample."""
    return json.dumps([row.path, row.segment, row.missing])


def _hash(text: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(os.fsencode(text), digest_size=8).digest(), "little"))


def _is_in(ordered: NDArray[np.uint64], value: np.uint64) -> bool:
    position = int(np.searchsorted(ordered, value))
    return position < len(ordered) and bool(ordered[position] == value)
