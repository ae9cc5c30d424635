"""Finds files that look and sound alike. Fingerprints are kept in NAME.fingerprints, so each file is decoded once.

Files whose keys differ in few bits are compared; a key of many files links each with the next alone, so that the work
grows with the number of files and not with its square. Memory: about 1 kB a file.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.files.checked_json import Fields
from avssl.files.progress import Bar
from avssl.processes.limits import Limits
from avssl.processes.pool import Sandbox
from avssl.shards.manifest import sound_of
from avssl.shards.places import Place, Sounding
from avssl.types import MediaError
from data_prep.measures.near_duplicates import Hashes, candidates, distances
from data_prep.split.fingerprint import KEY_BITS, FileTask, Fingerprint, are_copies, fingerprint
from data_prep.split.links import Links
from data_prep.split.rule import Row

TABLE = "fingerprints_1"  # another number when fingerprints are computed in another way
FILES_PER_KEY = 4  # that are compared with the files of a near key
ROWS_PER_COMMIT = 64


def near_sources(
    manifest: Path, store: Path, *, num_workers: int, limits: Limits, tell: Callable[[str], None]
) -> Iterator[tuple[int, int]]:
    """Pairs of hashes of sources that are copies of each other. Copies of copies may come as a chain of pairs.

    store: the file of fingerprints. tell: takes a line on how many files could not be decoded.
    ValueError for a manifest of files that hold many images.
    """
    with closing(_opened(store)) as database:
        _list_files(database, manifest)
        num_failed = _take_fingerprints(database, num_workers, limits)
        if num_failed:
            tell(f"{num_failed} files cannot be decoded: they are placed without a look at them")
        keys, owners = _keys(database)
        links = Links()
        for first, second in _pairs(keys, owners):
            if links.first_of(first) == links.first_of(second):
                continue
            if are_copies(_stored(database, first), _stored(database, second)):
                links.join(first, second)
                yield first, second


def _opened(store: Path) -> sqlite3.Connection:
    database = sqlite3.connect(store)
    try:
        database.execute(
            f"CREATE TABLE IF NOT EXISTS {TABLE} "
            "(source TEXT PRIMARY KEY, frames BLOB, sound BLOB, keys BLOB, is_image INTEGER)"
        )
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{store}: is no file of fingerprints ({error}); remove it: they are taken anew") from error
    database.execute("CREATE TEMP TABLE wanted (source TEXT PRIMARY KEY, place TEXT, is_image INTEGER)")
    return database


def _list_files(database: sqlite3.Connection, manifest: Path) -> None:
    """Note each source of the manifest with where it lies."""
    folder = str(manifest.absolute().parent)

    def rows() -> Iterator[tuple[str, str, bool]]:
        with manifest.open("rb") as file:
            for number, line in enumerate(file, start=1):
                fields = Fields.parse(line, f"{manifest}, line {number}")
                row = Row.of(fields)
                if row.item is not None:
                    raise ValueError(f"{manifest}: lists images of one file; --near-duplicates is for files")
                if not row.has_error:
                    yield f"{row.source():016x}", json.dumps(_record(fields, folder)), "image" in fields.record

    database.executemany("INSERT OR IGNORE INTO wanted VALUES (?, ?, ?)", rows())


def _record(fields: Fields, folder: str) -> dict[str, Any]:
    """Where the media of a line of a manifest in `folder` lie, for `_file`."""
    sound = sound_of(fields)
    record = Place.from_json(fields).at(folder).to_json()
    return record if sound is None else record | {"sound": sound.at(folder).to_json()}


def _name(task: FileTask) -> str:
    return str(task.file.place)


def _file(record: str) -> Sounding:
    fields = Fields.parse(record, "a place")
    return Sounding(Place.from_json(fields), sound_of(fields))


def _take_fingerprints(database: sqlite3.Connection, num_workers: int, limits: Limits) -> int:
    """Store what is not there yet; the number of files that cannot be decoded."""
    missing = f"FROM wanted WHERE source NOT IN (SELECT source FROM {TABLE})"
    (num_files,) = database.execute(f"SELECT COUNT(*) {missing}").fetchone()
    rows = database.execute(f"SELECT place, source, is_image {missing} ORDER BY source").fetchall() if num_files else []
    tasks = (FileTask(_file(place), int(source, 16), bool(is_image)) for place, source, is_image in rows)
    num_failed = 0
    if not rows:
        return 0
    with (
        Sandbox(min(num_workers, num_files), limits) as sandbox,
        Bar("fingerprints", num_files, "file") as bar,
    ):
        for number, (task, outcome) in enumerate(
            sandbox.run(fingerprint, tasks, lambda task: str(task.file.place)), start=1
        ):
            bar.update()
            if isinstance(outcome, MediaError):
                num_failed += 1
                continue
            arrays = (array.tobytes() for array in (outcome.frames, outcome.sound, outcome.keys))
            row = (f"{task.source:016x}", *arrays, outcome.is_image)
            database.execute(f"INSERT OR IGNORE INTO {TABLE} VALUES (?, ?, ?, ?, ?)", row)
            if number % ROWS_PER_COMMIT == 0:
                database.commit()
        database.commit()
    return num_failed


def _stored(database: sqlite3.Connection, source: int) -> Fingerprint:
    query = f"SELECT frames, sound, keys, is_image FROM {TABLE} WHERE source = ?"
    frames, sound, keys, is_image = database.execute(query, (f"{source:016x}",)).fetchone()
    return Fingerprint(
        np.frombuffer(frames, np.uint64),
        np.frombuffer(sound, np.uint32),
        np.frombuffer(keys, np.uint64),
        bool(is_image),
    )


def _keys(database: sqlite3.Connection) -> tuple[Hashes, Hashes]:
    """All keys of the wanted files, and the source of each: uint64 (n,) each, in the order of the keys."""
    keys, owners = [], []
    rows = database.execute(f"SELECT source, keys FROM {TABLE} JOIN wanted USING (source) ORDER BY source")
    for source, content in rows:
        keys.append(np.frombuffer(content, np.uint64))
        owners.append(np.full(len(keys[-1]), int(source, 16), np.uint64))
    if not keys:
        return np.zeros(0, np.uint64), np.zeros(0, np.uint64)
    whole, sources = np.concatenate(keys), np.concatenate(owners)
    order = np.argsort(whole, kind="stable")
    return whole[order], sources[order]


def _pairs(keys: Hashes, owners: Hashes) -> Iterator[tuple[int, int]]:
    """Pairs of sources with equal or near keys; some come more than once."""
    same = np.flatnonzero((keys[1:] == keys[:-1]) & (owners[1:] != owners[:-1]))
    yield from zip(owners[same].tolist(), owners[same + 1].tolist(), strict=True)
    distinct, begins, counts = np.unique(keys, return_index=True, return_counts=True)
    for first, second in candidates(distinct, KEY_BITS):
        near = (first != second) & (distances(distinct[first], distinct[second]) <= KEY_BITS)
        for left, right in _once(first[near], second[near]):
            lefts, rights = (
                set(owners[begins[place] : begins[place] + min(counts[place], FILES_PER_KEY)].tolist())
                for place in (left, right)
            )
            yield from ((one, other) for one in lefts for other in rights if one != other)


def _once(first: NDArray[np.int64], second: NDArray[np.int64]) -> list[list[int]]:
    pairs = np.sort(np.stack([first, second], axis=1), axis=1)
    return np.unique(pairs, axis=0).tolist() if len(pairs) else []
