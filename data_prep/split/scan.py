"""Reads the lines of a manifest for a split, in processes: what groups, sources and labels they belong to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from avssl.files.checked_json import Fields
from avssl.processes.pool import REFRESH_SECONDS, Sandbox
from avssl.shards.manifest import with_line
from data_prep.split.rule import PARTS, TRAIN, Hashes, Row

RANGE_BYTES = 8 << 20


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
    label_names. other_part: the part of an earlier split that a row belongs to; "" for none, or train.
    """

    groups: Hashes
    sources: Hashes
    label_rows: NDArray[np.int64]
    label_numbers: NDArray[np.int64]
    label_names: list[str]
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
            tqdm(total=size, desc="split", unit="B", unit_scale=True, mininterval=REFRESH_SECONDS) as bar,
        ):
            for task, scanned in sandbox.run(scan_range, tasks, lambda task: f"{task.path}, byte {task.begin}"):
                assert isinstance(scanned, Scanned)  # without limits, errors are raised
                yield scanned
                bar.update(task.end - task.begin)
    except ValueError as error:
        raise ValueError(with_line(str(error), path)) from error


def scan_range(task: ScanTask) -> Scanned:
    """The rows that begin in a byte range. ValueError names a bad row by its byte. Runs in a worker."""
    groups, sources, label_rows, label_numbers = [], [], [], []
    names: dict[str, int] = {}
    num_without, other_part = 0, ""
    with task.path.open("rb") as file:
        file.seek(max(0, task.begin - 1))
        if task.begin:
            file.readline()  # the rest of the row before, at least its end of line
        while (begin := file.tell()) < task.end:
            where = f"{task.path}, byte {begin}"
            row = Row.of(Fields.parse(file.readline(), where))
            source, group = row.source(), row.group(task.group, where)
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
        num_without,
        other_part,
    )
