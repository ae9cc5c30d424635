"""The name of a sample: a key that manifests, shards, embeddings, reports and searches share; and labels: by folder,
and as columns of a table.

A key is the path below the folder that was listed, with characters other than A-Z a-z 0-9 / - made one _, and behind
it the milliseconds if only some seconds of the file are the sample. Keys that several rows would have get digits of a
hash.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from avssl.shards.format import dump_json

Segment = tuple[float, float]  # (begin, end) in seconds
HASH_LENGTHS = (8, 16, 64)
HASHES_AT_A_TIME = 1 << 20


def plain_key(path: str) -> str:
    """The key of a path: characters other than A-Z a-z 0-9 / - become _.

    A run of such characters becomes a single _: webdataset takes members below __name__ for metadata and drops them.
    """
    return re.sub(r"[^A-Za-z0-9/-]+", "_", path)


def segment_key(key: str, segment: Segment) -> str:
    """The key of a segment of a file: KEY_BEGIN_END, in milliseconds."""
    return f"{key}_{round(segment[0] * 1000)}_{round(segment[1] * 1000)}"


def row_key(name: str, segment: Segment | None) -> str:
    """The key of a row that is named by a path: `plain_key`, with the seconds of the segment if there is one."""
    return plain_key(name) if segment is None else segment_key(plain_key(name), segment)


def folder_labels(path: str) -> dict[str, list[str]]:
    """{"label": [name]} by the top-level folder of a path below the folder that was listed; {} of a file in no folder.

    A label is text: bytes that are not UTF-8 are replaced.
    """
    if "/" not in path:
        return {}
    return {"label": [os.fsencode(path.split("/", maxsplit=1)[0]).decode("utf-8", "replace")]}


def label_columns(fields: Iterable[str], taken: Collection[str], written: Callable[[str], str] = str) -> dict[str, str]:
    """{label field: the column that it is in a table}, no two the same.

    written: a field's name as the table can have it. A name that another column has begins with label_.

    >>> label_columns(["dog", "key", "label_key"], {"key"})
    {'dog': 'dog', 'key': 'label_key', 'label_key': 'label_label_key'}
    """
    columns: dict[str, str] = {}
    used = set(taken)
    for field in fields:
        name = written(field)
        while name in used:
            name = f"label_{name}"
        used.add(name)
        columns[field] = name
    return columns


def source_of(content: str | None, path: str | None, num_bytes: int | None, item: int | None) -> str:
    """16 hex digits of a source: a file, whatever its name and whatever seconds are taken of it, or an image in a file.

    content: `files.content_digest`; where it is not known the path stands for it.
    """
    return hashlib.sha256(dump_json([content or path, num_bytes, item])).hexdigest()[:16]


class KeyHashes:
    """The hashes of texts of any number of rows, of which it knows those that occur more than once.

    8 bytes a row, in a file that is sorted on disk. Wrongly says that a text is there once in 10^19 rows.

    Args:
        path: of the file, which the caller removes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = path.open("wb")
        self._count = 0

    def add(self, text: str) -> None:
        """Count a text."""
        self._file.write(_hash(text).tobytes())
        self._count += 1

    def close(self) -> None:
        """Close the file; nothing is sorted."""
        self._file.close()

    def finish(self) -> None:
        """Sort the hashes; `add` must not be called any more."""
        self._file.close()
        self._ordered: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._repeated: NDArray[np.uint64] = np.zeros(0, np.uint64)
        if not self._count:
            return
        hashes = np.memmap(self._path, np.uint64, "r+")
        hashes.sort()
        repeated = []
        for begin in range(0, len(hashes) - 1, HASHES_AT_A_TIME):
            block = np.asarray(hashes[begin : begin + HASHES_AT_A_TIME + 1])
            repeated.append(np.unique(block[1:][block[1:] == block[:-1]]))
        self._ordered = hashes
        self._repeated = np.unique(np.concatenate(repeated)) if repeated else self._repeated

    @property
    def has_repeated(self) -> bool:
        """Whether any text was added more than once."""
        return len(self._repeated) > 0

    def is_repeated(self, text: str) -> bool:
        """Whether a text was added more than once."""
        return _is_in(self._repeated, _hash(text))

    def has(self, text: str) -> bool:
        """Whether a text was added."""
        return _is_in(self._ordered, _hash(text))

    def unused_key(self, key: str, identity: str) -> str:
        """The key followed by as much of a hash of `identity` as makes it a key that was not added."""
        digest = hashlib.sha256(os.fsencode(identity)).hexdigest()
        candidates = (f"{key}-{digest[:length]}" for length in HASH_LENGTHS)
        return next(candidate for candidate in candidates if not self.has(candidate))

    def unique_key(self, key: str, identity: str) -> str:
        """The key itself if it was added once, otherwise `unused_key`."""
        return self.unused_key(key, identity) if self.is_repeated(key) else key


def _hash(text: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(os.fsencode(text), digest_size=8).digest(), "little"))


def _is_in(ordered: NDArray[np.uint64], value: np.uint64) -> bool:
    position = int(np.searchsorted(ordered, value))
    return position < len(ordered) and bool(ordered[position] == value)
