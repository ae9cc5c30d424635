"""Reads the lines of a manifest for a split, in processes: what groups, sources and labels they belong to.

What was read is kept as pairs of numbers on disk, so that memory does not grow with the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avssl.files.checked_json import Fields
from avssl.files.progress import Bar
from avssl.processes.pool import Sandbox
from avssl.shards.manifest import with_line
from data_prep.split.rule import PARTS, TRAIN, Hashes, Row

RANGE_BYTES = 8 << 20
NUM_BUCKETS = 64  # files of pairs that are sorted one by one, each 1/64 of all


@dataclass(frozen=True)
class ScanTask:
    """Bytes [begin, end) of a manifest: the rows that begin there. by: the label field; "" for none."""

    path: Path
    begin: int
    end: int
    group: str
    by: str


@dataclass(frozen=True)
class Scanned:
    """What a range holds.

    groups, sources: uint64 (n,), of each of n rows; a row without the label of `--group` is a group of its source, and
    num_without such are counted. label_rows, label_numbers: int64 (m,), the rows that have a label, and which of
    label_names. fields: all label fields. other_part: the part of an earlier split that a row belongs to; "" for none,
    or train.
    """

    groups: Hashes
    sources: Hashes
    label_rows: NDArray[np.int64]
    label_numbers: NDArray[np.int64]
    label_names: list[str]
    fields: set[str]
    num_without: int
    other_part: str


def scan(path: Path, group: str, by: str, num_workers: int) -> Iterator[Scanned]:
    """The ranges of a manifest in order. ValueError names the first line that does not fit, or says that it is empty.

    FileNotFoundError if there is no such manifest.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such manifest; make one with `avssl prep index`")
    size = path.stat().st_size
    if not size:
        raise ValueError(f"{path}: lists no files")
    tasks = [ScanTask(path, begin, min(begin + RANGE_BYTES, size), group, by) for begin in range(0, size, RANGE_BYTES)]
    try:
        if len(tasks) == 1:
            yield scan_range(tasks[0])
            return
        with (
            Sandbox(min(num_workers, len(tasks)), None) as sandbox,
            Bar("split", len(tasks), "part") as bar,
        ):
            for _, scanned in sandbox.run(scan_range, tasks, lambda task: f"{task.path}, byte {task.begin}"):
                assert isinstance(scanned, Scanned)  # without limits, errors are raised
                yield scanned
                bar.update()
    except ValueError as error:
        raise ValueError(with_line(str(error), path)) from error


def scan_range(task: ScanTask) -> Scanned:
    """The rows that begin in a byte range. ValueError names a bad row by its byte. Runs in a worker."""
    groups: list[int] = []
    sources: list[int] = []
    label_rows: list[int] = []
    label_numbers: list[int] = []
    names: dict[str, int] = {}
    fields: set[str] = set()
    num_without, other_part = 0, ""
    with task.path.open("rb") as file:
        file.seek(max(0, task.begin - 1))
        if task.begin:
            file.readline()  # the rest of the row before, at least its end of line
        while (begin := file.tell()) < task.end:
            where = f"{task.path}, byte {begin}"
            row = Row.of(Fields.parse(file.readline(), where))
            source = row.source()
            group = row.group(task.group, source, where)
            fields.update(row.labels)
            for name in row.labels.get(task.by, ()):
                label_rows.append(len(groups))
                label_numbers.append(names.setdefault(name, len(names)))
            num_without += group is None
            other_part = row.part if row.part not in ("", PARTS[TRAIN]) else other_part
            groups.append(source if group is None else group)
            sources.append(source)
    return Scanned(
        np.array(groups, np.uint64),
        np.array(sources, np.uint64),
        np.array(label_rows, np.int64),
        np.array(label_numbers, np.int64),
        list(names),
        fields,
        num_without,
        other_part,
    )


class PairFiles:
    """Pairs (first, second) of uint64, distributed to files by the upper bits of the first, which is a hash.

    folder: an existing one for the files, which the caller removes.
    """

    def __init__(self, stack: ExitStack, folder: Path, name: str) -> None:
        paths = (folder / f"{name}.{number:02d}" for number in range(NUM_BUCKETS))
        self._files = [stack.enter_context(path.open("w+b")) for path in paths]

    def add(self, first: NDArray[np.uint64], second: NDArray[np.uint64]) -> None:
        """Add pairs: uint64 (n,) each."""
        bucket = (first >> np.uint64(58)).astype(np.int64)
        order = np.argsort(bucket, kind="stable")
        pairs = np.stack([first, second], axis=1)[order]
        cuts = np.searchsorted(bucket[order], np.arange(1, NUM_BUCKETS))
        for file, part in zip(self._files, np.split(pairs, cuts), strict=True):
            file.write(part.tobytes())

    def distinct(self) -> Iterator[NDArray[np.uint64]]:
        """The pairs, each once and in order, many at a time: uint64 (n, 2); all pairs of a first come together."""
        for file in self._files:
            file.seek(0)
            pairs = np.frombuffer(file.read(), np.uint64).reshape(-1, 2)
            pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
            is_new = np.ones(len(pairs), np.bool_)
            is_new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
            yield pairs[is_new]
