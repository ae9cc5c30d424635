"""Reads rows of a manifest by number, at memory that does not grow with the manifest.

One pass over the file, parallel over byte ranges, checks every row and stores where it begins (8 bytes per row, in a
file beside the parts that is called by the manifest's hash: a command with another manifest, which is refused later,
must not change what one that runs, or goes on, reads). After that any process reads any row with one read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.files import storage
from avssl.files.checked_json import Fields, parse
from avssl.files.whole import hashed_file, sha256_file, write_whole
from avssl.processes.pool import in_processes
from avssl.shards.manifest import Entry, with_line

RANGE_BYTES = 64 << 20
NUM_BUCKETS = 64  # files of key hashes that are sorted one by one, each 1/64 of all hashes


@dataclass(frozen=True)
class ByteRange:
    """Bytes [begin, end) of a manifest: the rows that begin there."""

    path: Path
    begin: int
    end: int


@dataclass(frozen=True)
class Scanned:
    """What a byte range holds: where its rows begin, 64 bits of the hash of each key, how many rows are images, the
    parts of a split that they belong to, and whether any has a caption.
    """

    offsets: NDArray[np.int64]
    key_hashes: NDArray[np.uint64]
    num_images: int
    split_parts: frozenset[str]
    has_captions: bool = False


def _files_of(scratch: Path, sha256: str) -> tuple[Path, Path]:
    """The files of the offsets and of the facts of a manifest with this hash."""
    return scratch / f"rows-{sha256[:16]}.offsets", scratch / f"rows-{sha256[:16]}.json"


class ManifestRows:
    """The rows of a manifest. Picklable; every process opens the file anew.

    Args:
        manifest: the jsonl file. scratch: the folder of the offsets that `scan` wrote. sha256: of the manifest.
        changed_ns: its time of modification before the hash was taken.
    """

    def __init__(self, manifest: Path, scratch: Path, sha256: str, changed_ns: int) -> None:
        self._offsets_path, facts_path = _files_of(scratch, sha256)
        facts = Fields.read(facts_path)
        self.manifest, self.sha256, self.are_images = manifest, facts.text("sha256"), facts.flag("are_images")
        self._state = facts.count("bytes"), changed_ns
        self.split_parts: list[str] = facts.items("split_parts", str, [])
        self.has_captions = facts.flag("has_captions", False)
        self._count = facts.count("rows")

    def __len__(self) -> int:
        return self._count

    def read(self, numbers: Sequence[int] | NDArray[np.int64]) -> list[Entry]:
        """The entries of these rows, in this order. ValueError if the manifest changed since it was scanned."""
        offsets = np.memmap(self._offsets_path, dtype=np.int64, mode="r")
        entries = []
        with self.manifest.open("rb") as file:
            status = os.fstat(file.fileno())
            if (status.st_size, status.st_mtime_ns) != self._state:
                raise ValueError(f"{self.manifest}: changed while it was being written to shards; start again")
            for number in numbers:
                begin, end = int(offsets[number]), int(offsets[number + 1])
                line = os.pread(file.fileno(), end - begin, begin)
                entries.append(Entry.from_json(parse(line, where := f"{self.manifest}, line {int(number) + 1}"), where))
        return entries


def parent_of(manifest: str | Path) -> str:
    """The folder or URL that the relative paths of a manifest refer to."""
    text = str(manifest)
    return text.rpartition("/")[0] if "://" in text else str(Path(text).absolute().parent)


def scanned(manifest: str | Path, scratch: Path, num_workers: int) -> ManifestRows:
    """The rows of a manifest's path or URL, as `scan` gives them; a remote one is fetched first."""
    if "://" not in str(manifest):
        return scan(Path(manifest), scratch, num_workers)
    path = scratch / "manifest.jsonl"
    scratch.mkdir(parents=True, exist_ok=True)
    storage.download(str(manifest), path)
    return scan(path, scratch, num_workers)


def scan(manifest: Path, scratch: Path, num_workers: int = 1) -> ManifestRows:
    """The rows of a manifest, after checking each and storing where it begins.

    An earlier scan of the same bytes is used again.

    Raises:
        FileNotFoundError: no such manifest.
        ValueError: it lists nothing, a row does not fit (by line number), keys repeat, or it mixes images with media.
    """
    if not manifest.is_file():
        raise FileNotFoundError(f"{manifest}: no such manifest; make one with `avssl prep index`")
    changed_ns = manifest.stat().st_mtime_ns
    sha256 = sha256_file(manifest)
    offsets_path, facts_path = _files_of(scratch, sha256)
    if _is_scanned(offsets_path, facts_path, sha256):
        return ManifestRows(manifest, scratch, sha256, changed_ns)
    size = manifest.stat().st_size
    if size == 0:
        raise ValueError(f"{manifest}: lists no files")
    byte_ranges = [ByteRange(manifest, begin, min(begin + RANGE_BYTES, size)) for begin in range(0, size, RANGE_BYTES)]
    scratch.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        offsets = stack.enter_context(hashed_file(offsets_path))
        hashes = Buckets(stack, Path(stack.enter_context(TemporaryDirectory(dir=scratch, prefix="keys-"))))
        num_rows = num_images = 0
        split_parts: set[str] = set()
        has_captions = False
        for scanned in _in_order(byte_ranges, num_workers):
            offsets.write(scanned.offsets.tobytes())
            hashes.add(scanned.key_hashes, num_rows)
            split_parts |= scanned.split_parts
            has_captions |= scanned.has_captions
            num_rows, num_images = num_rows + len(scanned.offsets), num_images + scanned.num_images
        offsets.write(np.int64(size).tobytes())
        repeated = hashes.repeated()
    if repeated:
        raise ValueError(
            f"{manifest}: keys must be unique; repeated: {', '.join(_keys_at(manifest, offsets_path, repeated))}"
        )
    if num_images not in (0, num_rows):
        raise ValueError(f"{manifest}: lists images beside video or audio files; make a manifest of each kind")
    facts: dict[str, Any] = {"sha256": sha256, "rows": num_rows, "are_images": num_images > 0, "bytes": size}
    facts |= {"split_parts": sorted(split_parts), "has_captions": has_captions}
    write_whole(facts_path, json.dumps(facts).encode())
    return ManifestRows(manifest, scratch, sha256, changed_ns)


def _is_scanned(offsets_path: Path, facts_path: Path, sha256: str) -> bool:
    """Whether there is an undamaged scan of these bytes."""
    try:
        facts = Fields.read(facts_path)
        num_bytes = offsets_path.stat().st_size
        return facts.text("sha256") == sha256 and num_bytes == 8 * (facts.count("rows") + 1)
    except (OSError, ValueError):
        return False


def scan_range(byte_range: ByteRange) -> Scanned:
    """Check the rows that begin in a byte range. ValueError names the first bad row by its byte. Runs in a worker."""
    offsets, hashes, num_images, parts, has_captions = [], [], 0, set(), False
    with byte_range.path.open("rb") as file:
        file.seek(max(0, byte_range.begin - 1))
        if byte_range.begin:
            file.readline()  # the rest of the row before, at least its end of line
        while (begin := file.tell()) < byte_range.end:
            line = file.readline()
            where = f"{byte_range.path}, byte {begin}"
            entry = Entry.from_json(parse(line, where), where)
            offsets.append(begin)
            hashes.append(hashlib.blake2b(entry.key.encode(), digest_size=8).digest())
            num_images += entry.is_image
            parts.add(entry.part)
            has_captions |= bool(entry.caption)
    key_hashes = np.frombuffer(b"".join(hashes), np.uint64)
    return Scanned(np.array(offsets, np.int64), key_hashes, num_images, frozenset(parts - {""}), has_captions)


def _in_order(byte_ranges: list[ByteRange], num_workers: int) -> Iterator[Scanned]:
    """The scans of the ranges, in their order. ValueError names a bad row by its line."""
    try:
        if len(byte_ranges) == 1:
            yield scan_range(byte_ranges[0])
            return
        done: dict[int, Scanned] = {}
        number = 0
        sizes = [(byte_range.end - byte_range.begin) >> 20 for byte_range in byte_ranges]
        for byte_range, scanned in in_processes(
            scan_range, byte_ranges, num_workers, "read the manifest", sizes, unit="MiB"
        ):
            done[byte_range.begin // RANGE_BYTES] = scanned
            while number in done:
                yield done.pop(number)
                number += 1
    except ValueError as error:
        raise ValueError(with_line(str(error), byte_ranges[0].path)) from error


class Buckets:
    """(64 bits of hash, row) of all keys, distributed by the upper bits of the hash to files small enough to sort."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._files = [stack.enter_context((folder / f"{number:02d}").open("w+b")) for number in range(NUM_BUCKETS)]

    def add(self, hashes: NDArray[np.uint64], first_row: int) -> None:
        """Add the hashes of rows first_row, first_row + 1, ...: uint64 (n,)."""
        pairs = np.stack([hashes, np.arange(first_row, first_row + len(hashes), dtype=np.uint64)], axis=1)
        bucket = (hashes >> np.uint64(58)).astype(np.int64)
        order = np.argsort(bucket, kind="stable")
        cuts = np.searchsorted(bucket[order], np.arange(1, NUM_BUCKETS))
        for file, part in zip(self._files, np.split(pairs[order], cuts), strict=True):
            file.write(part.tobytes())

    def repeated(self) -> list[int]:
        """At most five rows whose hash another row has, too."""
        rows: list[int] = []
        for file in self._files:
            file.seek(0)
            pairs = np.frombuffer(file.read(), np.uint64).reshape(-1, 2)
            order = np.argsort(pairs[:, 0], kind="stable")
            same = np.flatnonzero(np.diff(pairs[order, 0]) == 0)
            rows += [int(pairs[order[position], 1]) for position in same[:5]]
        return sorted(rows)[:5]


def _keys_at(manifest: Path, offsets_path: Path, rows: list[int]) -> list[str]:
    """The keys of these rows. Two keys of a corpus differ although their hashes are equal once in 3,700 corpora of 100
    million rows; then one of them has to be renamed.
    """
    offsets = np.memmap(offsets_path, dtype=np.int64, mode="r")
    keys = []
    with manifest.open("rb") as file:
        for row in rows:
            file.seek(int(offsets[row]))
            keys.append(Fields.parse(file.readline(), str(manifest)).text("key"))
    return list(dict.fromkeys(keys))
