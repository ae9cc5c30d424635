"""The rows of a manifest that is being made, on disk: keys are made unique over all of them at constant memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from avssl.files.checked_json import Fields
from avssl.shards.keys import KeyHashes, Segment
from avssl.shards.manifest import sound_of
from avssl.shards.places import Place, Within, within_of
from data_prep.index.lists.row import BadRow


@dataclass(frozen=True)
class Pending:
    """A row whose file was found, or is missing.

    where: its line in the list. path: as the manifest will state it. key: not yet unique. is_given: whether the list
    states the key. identity: text that differs between rows that would have the same key. missing: why there are
    no media to open, like the names that were searched for; reason: of types.FailureReason. caption, within, sound: as
    of Entry.
    """

    where: str
    path: str
    key: str
    is_given: bool
    identity: str
    labels: dict[str, list[str]]
    segment: Segment | None = None
    missing: str | None = None
    reason: str = "missing_file"
    caption: str = ""
    within: Within | None = None
    sound: Place | None = None


class IndexSpool:
    """Takes rows one by one; after `finish` it can be iterated, in order and with unique keys, as often as needed.

    folder: for its files, which the caller removes. 16 bytes per row are sorted on disk.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "rows.jsonl"
        self._file = self._path.open("wb")
        self._keys, self._rows = KeyHashes(folder / "key.hashes"), KeyHashes(folder / "row.hashes")
        self._count = 0

    def add(self, row: Pending) -> None:
        """Append a row."""
        self._file.write(json.dumps(vars(row), default=_plain).encode("ascii") + b"\n")
        self._keys.add(row.key)
        self._rows.add(_source(row))
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def finish(self) -> None:
        """Close the spool for writing and sort the hashes."""
        self._file.close()
        self._keys.finish()
        self._rows.finish()

    def __iter__(self) -> Iterator[Pending | BadRow]:
        """The rows with their final keys; a BadRow for a row that repeats another, or its stated key."""
        seen: dict[str, str] = {}
        for row in self._read():
            source = _source(row)
            is_repeated = self._rows.is_repeated(source)
            if is_repeated and (first := seen.setdefault(source, row.where)) != row.where:
                yield BadRow(row.where, f"lists the same file and seconds as {first}: {row.path!a}")
            elif not self._keys.is_repeated(row.key):
                yield row
            elif row.is_given:
                yield BadRow(row.where, f"has the key {row.key}, which another row has too")
            else:
                yield replace(row, key=self.unused_key(row.key, row.identity))

    def repeated(self) -> Iterator[BadRow]:
        """The rows that repeat another row, or its stated key."""
        if self._rows.has_repeated or self._keys.has_repeated:
            yield from (row for row in self if isinstance(row, BadRow))

    def unused_key(self, key: str, identity: str) -> str:
        """The key followed by as much of a hash of `identity` as makes it a key that no row has."""
        return self._keys.unused_key(key, identity)

    def has_key(self, key: str) -> bool:
        """Whether any row had this key before keys were made unique. Wrongly true once in 10^19 rows."""
        return self._keys.has(key)

    def _read(self) -> Iterator[Pending]:
        with self._path.open("rb") as file:
            for line in file:
                record: dict[str, Any] = json.loads(line)
                segment, fields = record["segment"], Fields.of(record, str(self._path))
                record["segment"] = None if segment is None else (segment[0], segment[1])
                yield Pending(**(record | {"within": within_of(fields), "sound": sound_of(fields)}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._file, self._keys, self._rows):
            file.close()


def _source(row: Pending) -> str:
    """The file and seconds of a row as text. Two rows with the same text are the same sample."""
    return json.dumps([row.path, row.segment, row.missing, row.within, row.sound], default=_plain)


def _plain(place: Within | Place) -> dict[str, Any]:
    return place.to_json()
