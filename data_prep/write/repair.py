"""Repairs a finished folder that has damaged or missing files: the same `write` command writes them again.

Undamaged shards stay as they are, and their source files are not read again: the part of such a shard gets its summary
back, from side-car and skipped.jsonl. Files that were skipped stay skipped, so that every sample keeps its index. The
other parts are read from the sources, and the write continues like one that was interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace

from avssl.files.checked_json import Fields
from avssl.files.whole import sha256_file
from avssl.processes.pool import Sandbox
from avssl.shards.format import SKIPPED_NAME, ShardIndex, SideCar, dump_json, shard_name, side_car_name
from avssl.shards.manifest import Entry
from avssl.shards.shard_set import parse_members
from avssl.types import FAILURE_REASONS
from data_prep.write.folder import OutputFolder
from data_prep.write.job import Job
from data_prep.write.pack import load_side_car, shard_tasks
from data_prep.write.parts import PartSummary, part_name
from data_prep.write.reading import read_all

NUM_SHOWN = 5  # missing files that the error names
Skips = dict[str, dict[str, str]]


def whole_shards(folder: OutputFolder, index: ShardIndex) -> dict[str, SideCar]:
    """{name: side-car} of the shards whose size and side-car match index.json. `verify` checks their bytes."""
    side_cars = {}
    for record in index.shards:
        side_car = _side_car(folder, record.name)
        if side_car is not None and side_car.record == record:
            side_cars[record.name] = side_car
    return side_cars


def has_skipped(folder: OutputFolder, index: ShardIndex) -> bool:
    """Whether skipped.jsonl holds as many records as index.json says."""
    return folder.exists(SKIPPED_NAME) and len(known_skips(folder)) == index.num_skipped


def known_skips(folder: OutputFolder) -> Skips:
    """{key: {"reason", "message"}} of skipped.jsonl, as far as it can be read."""
    skips: Skips = {}
    if folder.exists(SKIPPED_NAME):
        for line in folder.read_bytes(SKIPPED_NAME).splitlines():
            try:
                fields = Fields.parse(line, SKIPPED_NAME)
                reason = fields.choice("reason", FAILURE_REASONS)
                skips[fields.text("key")] = {"reason": reason, "message": fields.text("message")}
            except ValueError:  # a damaged record: its file is read again
                continue
    return skips


def _side_car(folder: OutputFolder, name: str) -> SideCar | None:
    """The side-car of a shard; None if it is missing or damaged, or the shard has another size."""
    try:
        side_car = load_side_car(folder, name)
    except (ValueError, FileNotFoundError):
        return None
    return side_car if folder.size(name) == side_car.record.bytes else None


def prepare_repair(job: Job, whole: Mapping[str, SideCar], labels: dict[str, list[str]] | None) -> Job:
    """Restore the summary of every part whose shard is undamaged, and return the job that makes the other parts.

    whole: {name: side-car} of the undamaged shards. labels: label names of all samples; None: read them from the
    shards.
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
            label_names = labels if labels is not None else _labels(job.folder, side_car)
            skipped = [_skip(entry) for entry in entries if entry.error is not None]
            summary = PartSummary(len(keys), skipped, label_names, "", 1)
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
    """ValueError if samples are missing now, because then the undamaged shards would have wrong indices. To be called
    before packing.
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
    """{name: side-car} of the undamaged shards of a folder without index.json if this command writes the same shards,
    otherwise {}.

    The first sample of one of them is read from its source again and must equal the stored one, which shows that
    manifest, seed and options are the same. Side-cars of changed shards are removed, so that these are written again.
    """
    folder, side_cars = job.folder, {}
    for name in folder.names("shard-"):
        if name.endswith(".tar") and (side_car := _side_car(folder, name)) is not None:
            with folder.local_file(name) as path:
                if sha256_file(path) == side_car.record.sha256:
                    side_cars[name] = side_car
    if not side_cars or not _writes_same(job, next(iter(side_cars.values()))):
        return {}
    for name in folder.names("shard-"):
        if name.endswith(".tar") and name not in side_cars:
            folder.remove(side_car_name(name))
    return side_cars


def _writes_same(job: Job, side_car: SideCar) -> bool:
    """Whether the job has a part with the keys of this shard and would write the same bytes for its first sample."""
    keys, (begin, end) = set(side_car.keys), side_car.offsets[:2]
    for number in range(job.num_parts):
        entries = {row.key: row for row in job.entries(number) if row.key in keys}
        entry = entries.get(side_car.keys[0])
        if entry is None:
            continue
        if list(entries) != side_car.keys:  # written with another seed or samples_per_shard
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
