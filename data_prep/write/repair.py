"""Repairs a finished folder of which files are damaged or missing: the same command writes them again.

Whole shards stay as they are and their files are not read again: a part whose shard is whole gets its summary back,
from side-car and skipped.jsonl. Files that were skipped then stay skipped, so that every sample keeps its index. The
other parts are read from the sources, and the write continues like one that was interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace

from avssl.files.checked_json import Fields
from avssl.processes.pool import Sandbox
from avssl.shards.format import SKIPPED_NAME, ShardIndex, SideCar, dump_json, sha256_file, shard_name, side_car_name
from avssl.shards.shard_set import parse_members
from avssl.types import FAILURE_REASONS
from data_prep.manifest import Entry
from data_prep.write.folder import OutputFolder
from data_prep.write.job import Job
from data_prep.write.pack import load_side_car, shard_tasks
from data_prep.write.parts import PartSummary, part_name
from data_prep.write.reading import read_all

NUM_SHOWN = 5
Skips = dict[str, dict[str, str]]


def whole_shards(folder: OutputFolder, index: ShardIndex) -> dict[str, SideCar]:
    """The side-cars, by name, of the shards whose size and side-car match index.json. `verify` checks the bytes."""
    found = {}
    for record in index.shards:
        side_car = _side_car(folder, record.name)
        if side_car is not None and side_car.record == record:
            found[record.name] = side_car
    return found


def has_skipped(folder: OutputFolder, index: ShardIndex) -> bool:
    """Whether skipped.jsonl holds as many records as index.json says."""
    return folder.exists(SKIPPED_NAME) and len(known_skips(folder)) == index.num_skipped


def known_skips(folder: OutputFolder) -> Skips:
    """{key: {"reason", "message"}} of skipped.jsonl, as far as it can be read."""
    found: Skips = {}
    if folder.exists(SKIPPED_NAME):
        for line in folder.read_bytes(SKIPPED_NAME).splitlines():
            try:
                fields = Fields.parse(line, SKIPPED_NAME)
                reason = fields.choice("reason", FAILURE_REASONS)
                found[fields.text("key")] = {"reason": reason, "message": fields.text("message")}
            except ValueError:  # a damaged record: its file is read again
                continue
    return found


def _side_car(folder: OutputFolder, name: str) -> SideCar | None:
    try:
        side_car = load_side_car(folder, name)
    except (ValueError, FileNotFoundError):
        return None
    return side_car if folder.size(name) == side_car.record.bytes else None


def prepare_repair(job: Job, whole: Mapping[str, SideCar], labels: dict[str, list[str]] | None) -> Job:
    """Restore the summary of every part whose shard is whole; the job that makes the other parts.

    labels: label names of all samples; None: they are read from the shards.
    """
    job = replace(job, skips=known_skips(job.folder))
    position = first_index = 0
    for number in range(job.num_parts):
        entries = job.entries(number)
        keys = [entry.key for entry in entries if entry.error is None]
        name = shard_name(position)
        side_car = whole.get(name)
        is_whole = not keys
        if side_car is not None and keys:
            is_whole = side_car.keys == keys and side_car.record.first_index == first_index
        if is_whole and PartSummary.load(job.folder, number) is None:
            found = labels if labels is not None else _labels(job.folder, side_car)
            skipped = [_skip(entry) for entry in entries if entry.error is not None]
            summary = PartSummary(len(keys), skipped, found, "", 1)
            job.folder.write_bytes(part_name(number, "json"), dump_json(asdict(summary)))
        has_shard = bool(keys) if side_car is None else side_car.keys[0] in {entry.key for entry in entries}
        if has_shard:
            count = len(keys) if side_car is None else len(side_car.keys)
            position, first_index = position + 1, first_index + count
    return job


def _skip(entry: Entry) -> dict[str, str]:
    assert entry.error is not None
    reason, message = entry.error["reason"], entry.error["message"]
    return {"path": entry.path, "key": entry.key, "reason": reason, "message": message}


def _labels(folder: OutputFolder, side_car: SideCar | None) -> dict[str, list[str]]:
    """The label names of a shard's samples."""
    names: dict[str, set[str]] = {}
    if side_car is not None:
        with folder.local_file(side_car.record.name) as path, path.open("rb") as file:
            for key, begin, end in zip(side_car.keys, side_car.offsets[:-1], side_car.offsets[1:], strict=True):
                file.seek(begin)
                info = parse_members(file.read(end - begin), f"{side_car.record.name}, sample {key}").info
                for field, values in info.labels.items():
                    names.setdefault(field, set()).update(values)
    return {field: sorted(values) for field, values in sorted(names.items())}


def check_repair(job: Job, counts: list[int], whole: Mapping[str, SideCar]) -> None:
    """ValueError if samples are missing now, because then the whole shards would have wrong indices. Called before
    packing.
    """
    for task in shard_tasks(job.folder, counts):
        side_car = whole.get(shard_name(task.shard_number))
        if side_car is not None and (side_car.record.first_index, len(side_car.keys)) != (
            task.first_index,
            counts[task.part_number],
        ):
            raise _sources_gone(job)
    if any(_new_skips(job, number) for number in range(job.num_parts)) and job.skips:
        raise _sources_gone(job)


def _new_skips(job: Job, number: int) -> list[dict[str, str]]:
    summary = PartSummary.load(job.folder, number)
    return [] if summary is None else [skip for skip in summary.skipped if skip["key"] not in job.skips]


def _sources_gone(job: Job) -> ValueError:
    gone: list[str] = []
    for number in range(job.num_parts):
        if new := _new_skips(job, number):
            gone += [f"{skip['path']} ({skip['reason']})" for skip in new]
            job.folder.remove(part_name(number, "json"))  # to be read again
    more = f" and {len(gone) - NUM_SHOWN} more" if len(gone) > NUM_SHOWN else ""
    return ValueError(
        f"{job.folder}: shards are damaged, and files that they were written from cannot be read now: "
        f"{', '.join(gone[:NUM_SHOWN])}{more}; bring them back and run the same command again. Shards that are whole "
        "were not touched. To write without these files choose another --out"
    )


def proven_shards(job: Job) -> dict[str, SideCar]:
    """The whole shards of a folder without index.json, if this command writes the same ones; otherwise none.

    The first sample of one of them is read from its source again and must equal the stored one, which shows that
    manifest, seed and options are the same. Side-cars of changed shards are removed, so that these are written again.
    """
    folder, found = job.folder, {}
    for name in folder.names("shard-"):
        if name.endswith(".tar") and (side_car := _side_car(folder, name)) is not None:
            with folder.local_file(name) as path:
                if sha256_file(path) == side_car.record.sha256:
                    found[name] = side_car
    if not found or not _is_written_alike(job, next(iter(found.values()))):
        return {}
    for name in folder.names("shard-"):
        if name.endswith(".tar") and name not in found:
            folder.remove(side_car_name(name))
    return found


def _is_written_alike(job: Job, side_car: SideCar) -> bool:
    key, held, (begin, end) = side_car.keys[0], set(side_car.keys), side_car.offsets[:2]
    for number in range(job.num_parts):
        entries = {row.key: row for row in job.entries(number) if row.key in held}
        entry = entries.get(key)
        if entry is None:
            continue
        if list(entries) != side_car.keys:  # of another seed or division
            return False
        with job.folder.local_file(side_car.record.name) as path, path.open("rb") as file:
            file.seek(begin)
            stored = parse_members(file.read(end - begin), side_car.record.name)
        with Sandbox(1, job.file_options.limits) as sandbox:
            (outcome,) = read_all(sandbox, job.file_options, [entry])
        if isinstance(outcome, Exception):
            return False
        return replace(outcome, info=replace(outcome.info, index=stored.info.index)) == stored
    return False
