"""The manifest -> a shard folder. Parallel over processes, and the same bytes whatever their number.

1. The manifest, sorted by key, is shuffled with the seed and cut into runs of samples_per_shard.
2. Each run is transcoded to a part below .parts (parts.py). A part that is finished is never redone.
3. When all parts exist, the number of samples of each is known, hence every sample's index: parts become shards.
4. index.json is written last. A folder without it is unfinished; running again continues.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from avssl.data.shards import INDEX_NAME, SKIPPED_NAME, ShardIndex, ShardRecord, dump_json, load_json
from data_prep.files import write_atomically
from data_prep.manifest import Entry, read_manifest
from data_prep.options import WriteOptions
from data_prep.parts import PartTask, ShardTask, Transcode, load_part, make_part, make_shard, part_path
from data_prep.pool import in_processes
from data_prep.transcode import transcode

PARTS_NAME = ".parts"
OPTIONS_NAME, CRASHED_NAME, LOCK_NAME = "options.json", "crashed.json", "lock"
MAX_UNEXPLAINED_CRASHES = 3


@dataclass(frozen=True)
class _Job:
    """Everything that stays the same during a write."""

    folder: Path
    manifest: Path
    manifest_sha256: str
    runs: list[tuple[Entry, ...]]
    options: WriteOptions
    num_workers: int
    transcode: Transcode

    @property
    def parts(self) -> Path:
        return self.folder / PARTS_NAME

    @property
    def num_listed(self) -> int:
        return sum(len(run) for run in self.runs)

    @property
    def recorded_options(self) -> dict[str, Any]:
        return self.options.to_json(images=self.runs[0][0].is_image)


def write_shards(
    manifest: Path,
    folder: Path,
    options: WriteOptions,
    num_workers: int = 1,
    transcode: Transcode = transcode,
) -> ShardIndex:
    """Write all shards, or continue where an earlier run was stopped. Returns the finished index.json.

    transcode: how a file becomes a sample's media; another function must be importable by name.

    Raises:
        ValueError, FileNotFoundError: the manifest does not fit, or the folder holds shards of other options.
        RuntimeError: worker processes keep dying; what is finished is kept.
    """
    entries, manifest_sha256 = read_manifest(manifest)
    job = _Job(folder, manifest, manifest_sha256, shuffled_runs(entries, options), options, num_workers, transcode)
    if (folder / INDEX_NAME).exists():
        index = _already_written(job)
        shutil.rmtree(job.parts, ignore_errors=True)
        return index
    _begin(job)
    with _locked(job.parts / LOCK_NAME):
        _make_all_parts(job)
        index = _make_all_shards(job)
        _check_conservation(index, job)
        write_atomically(folder / INDEX_NAME, index.to_json())
    shutil.rmtree(job.parts)
    return index


def shuffled_runs(entries: list[Entry], options: WriteOptions) -> list[tuple[Entry, ...]]:
    """The manifest in its global order, cut into one run a shard. A pure function of entries' keys, seed and size."""
    ordered = sorted(entries, key=lambda entry: entry.key)
    shuffled = [ordered[position] for position in np.random.default_rng(options.seed).permutation(len(ordered))]
    size = options.samples_per_shard
    return [tuple(shuffled[begin : begin + size]) for begin in range(0, len(shuffled), size)]


def _identity(job: _Job) -> dict[str, Any]:
    return {"manifest_sha256": job.manifest_sha256, "options": job.recorded_options}


def _refuse_unless_same(found: dict[str, Any], job: _Job) -> None:
    wanted = _identity(job)
    if found == wanted:
        return
    differing = [
        f"{name}: {found['options'].get(name)!r} there, {value!r} now"
        for name, value in wanted["options"].items()
        if found["options"].get(name) != value
    ]
    if found["manifest_sha256"] != wanted["manifest_sha256"]:
        differing.append("another manifest")
    raise ValueError(
        f"{job.folder}: already holds shards of other options ({'; '.join(differing)}); choose another --out, "
        "or delete the folder"
    )


def _already_written(job: _Job) -> ShardIndex:
    index = ShardIndex.load(job.folder)
    _refuse_unless_same({"manifest_sha256": index.manifest_sha256, "options": index.options}, job)
    for record in index.shards:
        path = job.folder / record.name
        if not path.is_file() or path.stat().st_size != record.bytes:
            raise ValueError(f"{path}: is missing or changed since it was written; delete the folder and write again")
    return index


def _begin(job: _Job) -> None:
    """Make the parts folder, or check that what it holds belongs to this job."""
    path = job.parts / OPTIONS_NAME
    if path.exists():
        _refuse_unless_same(load_json(path), job)
        return
    if job.folder.exists() and any(job.folder.glob("shard-*")):
        raise ValueError(f"{job.folder}: holds shards but no {INDEX_NAME}; choose another --out, or delete the folder")
    job.parts.mkdir(parents=True, exist_ok=True)
    write_atomically(path, dump_json(_identity(job)))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Nobody else writes here meanwhile. The lock goes with the process, however it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{path.parent.parent}: another process is writing here; wait for it") from error
        yield


def _make_all_parts(job: _Job) -> None:
    """All parts, restarted after a worker's death without the file that caused it."""
    num_unexplained = 0
    while missing := [n for n in range(len(job.runs)) if not part_path(job.parts, n, "json").exists()]:
        for stale in job.parts.glob("part-*.now"):
            stale.unlink()
        crashed = _crashed(job)
        tasks = [_part_task(job, number, crashed) for number in missing]
        try:
            sizes = [len(task.entries) for task in tasks]
            for _ in in_processes(make_part, tasks, job.num_workers, "write", sizes):
                pass
        except BrokenProcessPool as error:
            notes = [path.read_text().partition("\n")[0].split(" ", 1) for path in job.parts.glob("part-*.now")]
            suspects = {note[1] for note in notes if len(note) == 2}
            guilty = {key for key in sorted(suspects) if _kills_its_process(job, key, crashed)}
            write_atomically(job.parts / CRASHED_NAME, dump_json(sorted(crashed | guilty)))
            num_unexplained += not guilty
            if num_unexplained >= MAX_UNEXPLAINED_CRASHES:
                raise RuntimeError(
                    f"worker processes keep dying while they read one of: {', '.join(sorted(suspects))}. Is the machine"
                    f" short of memory? Finished parts are kept in {job.parts}; continue with fewer --workers"
                ) from error


def _part_task(job: _Job, number: int, crashed: frozenset[str]) -> PartTask:
    folder = job.manifest.absolute().parent
    return PartTask(number, job.runs[number], job.parts, folder, job.options, crashed, job.transcode)


def _crashed(job: _Job) -> frozenset[str]:
    path = job.parts / CRASHED_NAME
    return frozenset(json.loads(path.read_bytes())) if path.exists() else frozenset()


def _kills_its_process(job: _Job, key: str, crashed: frozenset[str]) -> bool:
    """Transcode one file alone in a process of its own."""
    entry = next(entry for run in job.runs for entry in run if entry.key == key)
    trial = job.parts / "trial"
    trial.mkdir(exist_ok=True)
    task = replace(_part_task(job, 0, crashed), entries=(entry,), folder=trial)
    try:
        for _ in in_processes(make_part, [task], 1, f"try {key}", [1]):
            pass
    except BrokenProcessPool:
        return True
    finally:
        shutil.rmtree(trial)
    return False


def _make_all_shards(job: _Job) -> ShardIndex:
    parts = [load_part(job.parts, number) for number in range(len(job.runs))]
    counts = [len(part["written"]) for part in parts]
    first_indices = [0, *accumulate(counts)]
    filled = [number for number, count in enumerate(counts) if count]
    tasks = [
        ShardTask(number, shard_number, first_indices[number], job.parts, job.folder)
        for shard_number, number in enumerate(filled)
    ]
    sizes = [counts[number] for number in filled]
    shards: list[ShardRecord] = [shard for _, shard in in_processes(make_shard, tasks, job.num_workers, "pack", sizes)]
    skipped = sorted((skip for part in parts for skip in part["skipped"]), key=lambda skip: str(skip["key"]))
    write_atomically(job.folder / SKIPPED_NAME, b"".join(dump_json(skip) for skip in skipped))
    return ShardIndex(
        shards=sorted(shards, key=lambda shard: shard.first_index),
        num_samples=sum(counts),
        num_listed=job.num_listed,
        num_skipped=len(skipped),
        skipped_by_reason=dict(sorted(Counter(str(skip["reason"]) for skip in skipped).items())),
        label_names=_label_names(parts),
        options=job.recorded_options,
        manifest_sha256=job.manifest_sha256,
    )


def _label_names(parts: list[dict[str, Any]]) -> dict[str, list[str]]:
    names: dict[str, set[str]] = {}
    for part in parts:
        for record in part["written"]:
            for field, values in record["info"]["labels"].items():
                names.setdefault(field, set()).update(values)
    return {field: sorted(values) for field, values in sorted(names.items())}


def _check_conservation(index: ShardIndex, job: _Job) -> None:
    """Nothing may disappear: this cannot fail unless the program is wrong or someone edited .parts."""
    if index.num_listed != index.num_samples + index.num_skipped:
        raise RuntimeError(
            f"{index.num_listed} files are listed, but {index.num_samples} were written and {index.num_skipped} "
            f"skipped; delete {job.parts} and write again"
        )
