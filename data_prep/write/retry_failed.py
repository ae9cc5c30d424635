"""`write --retry-failed`: files that were skipped are read again, and what was written is kept.

The result has the bytes of a single write in which these files had been readable. In a finished folder, one more sample
changes the index of every sample after it: so the shards become parts again, the failed files of each part are read
once more, and all parts are packed anew. retry.json records the progress, so that this may be interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from avssl.files.checked_json import Fields
from avssl.files.whole import sha256_file
from avssl.shards.format import INDEX_NAME, SKIPPED_NAME, ShardRecord, dump_json, side_car_name
from avssl.shards.manifest import Entry
from avssl.shards.shard_set import Sample, parse_members
from avssl.types import MediaError
from data_prep.write.folder import OutputFolder
from data_prep.write.pack import load_side_car
from data_prep.write.parts import PARTS, PartSummary, PartTask, PartWriter

RETRY_NAME = f"{PARTS}/retry.json"


def current_attempt(folder: OutputFolder) -> int:
    """The number of the current attempt: 1, and one more for every --retry-failed."""
    return int(_state(folder)["attempt"])


def has_new_shards(folder: OutputFolder) -> bool:
    """Whether there are shards that no attempt is about to make parts of."""
    return bool(folder.names("shard-")) and not _state(folder)["shards"]


def begin_retry(folder: OutputFolder, shards: Sequence[ShardRecord]) -> None:
    """Begin an attempt: skipped files count as not done. shards: those of a finished folder.

    ValueError for shards whose bytes changed: they would get new hashes, by which nobody finds that any more.
    """
    if changed := [record.name for record in shards if not _is_whole(folder, record)]:
        raise ValueError(
            f"{folder}: {', '.join(changed)} changed since they were written; remove these and run the same command "
            "without --retry-failed first: it writes them anew"
        )
    state = _state(folder)
    pending = state["shards"] or [record.name for record in shards]
    folder.write_bytes(RETRY_NAME, dump_json({"attempt": state["attempt"] + 1, "shards": pending}))
    folder.remove(INDEX_NAME)


def _is_whole(folder: OutputFolder, record: ShardRecord) -> bool:
    with folder.local_file(record.name) as path:
        return sha256_file(path) == record.sha256


def _state(folder: OutputFolder) -> dict[str, Any]:
    if not folder.exists(RETRY_NAME):
        return {"attempt": 1, "shards": []}
    fields = Fields.parse(folder.read_bytes(RETRY_NAME), folder.where(RETRY_NAME))
    return {"attempt": fields.count("attempt", least=1), "shards": fields.items("shards", str)}


def unpack_shards(folder: OutputFolder, num_parts: int, entries_of: Callable[[int], tuple[Entry, ...]]) -> None:
    """Turn the shards of a finished folder into parts of the first attempt; other folders are left alone."""
    state = _state(folder)
    names: list[str] = state["shards"]
    if not names:
        return
    skipped = _skipped_by_key(folder)
    attempt, position = state["attempt"] - 1, 0
    for number in range(num_parts):
        summary = PartSummary.load(folder, number)
        if summary is not None:  # unpacked before an interruption
            position += summary.num_written > 0
            continue
        task = PartTask(number, entries_of(number), attempt)
        shard = names[position] if position < len(names) else None
        if shard is not None and load_side_car(folder, shard).keys[0] in {entry.key for entry in task.entries}:
            _unpack(folder, task, shard, skipped)
            position += 1
        else:
            _unpack(folder, task, None, skipped)
    for name in names:
        for file_name in (name, side_car_name(name)):
            if folder.exists(file_name):
                folder.remove(file_name)
    folder.write_bytes(RETRY_NAME, dump_json({"attempt": state["attempt"], "shards": []}))


def _skipped_by_key(folder: OutputFolder) -> dict[str, dict[str, str]]:
    lines = folder.read_bytes(SKIPPED_NAME).splitlines()
    records = (
        Fields.parse(line, f"{folder.where(SKIPPED_NAME)}, line {number}") for number, line in enumerate(lines, start=1)
    )
    return {record.text("key"): {name: record.text(name) for name in ("reason", "message")} for record in records}


def _unpack(folder: OutputFolder, task: PartTask, shard: str | None, skipped: dict[str, dict[str, str]]) -> None:
    """Make a part from its shard; None: all of its files were skipped."""
    samples = {} if shard is None else _samples(folder, shard)
    with PartWriter(folder, task) as part:
        for entry in task.entries:
            if entry.key in samples:
                part.add(entry, samples[entry.key])
            else:
                record = skipped[entry.key]
                part.add(entry, MediaError(record["reason"], record["message"]))  # type: ignore[arg-type]


def _samples(folder: OutputFolder, shard: str) -> dict[str, Sample]:
    side_car = load_side_car(folder, shard)
    samples = {}
    with folder.local_file(shard) as path, path.open("rb") as file:
        for key, begin, end in zip(side_car.keys, side_car.offsets[:-1], side_car.offsets[1:], strict=True):
            file.seek(begin)
            samples[key] = parse_members(file.read(end - begin), f"{shard}, sample {key}")
    return samples
