"""Turns parts into shards. It runs once all parts are done, because a sample's index depends on all counts before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from avssl.files.whole import sha256_file
from avssl.shards.format import ShardRecord, SideCar, shard_name, side_car_name
from avssl.shards.sample_digests import media_digest, source_digest, with_digests
from avssl.shards.shard_set import Sample, write_tar
from data_prep.write.folder import OutputFolder
from data_prep.write.parts import PartSummary, load_samples, part_name


@dataclass(frozen=True)
class ShardTask:
    """What a worker needs to make a shard from a part."""

    folder: OutputFolder
    part_number: int
    shard_number: int
    first_index: int


def shard_tasks(folder: OutputFolder, counts: Iterable[int]) -> Iterator[ShardTask]:
    """A task for every part that has samples. counts: samples of each part, in order."""
    shard_number = first_index = 0
    for part_number, count in enumerate(counts):
        if count:
            yield ShardTask(folder, part_number, shard_number, first_index)
            shard_number, first_index = shard_number + 1, first_index + count


def make_shard(task: ShardTask) -> ShardRecord:
    """Copy a part to its shard, write the side-car, and remove the media of the part. Runs in a worker.

    Raises RuntimeError if the part is gone, ValueError if it was changed since it was written; then its summary is
    removed, so that the next run makes it again.
    """
    folder, name = task.folder, shard_name(task.shard_number)
    summary = PartSummary.load(folder, task.part_number)
    if summary is None:
        raise RuntimeError(
            f"{folder}: part {task.part_number} went away while it was packed; run the same command again"
        )
    media = part_name(task.part_number, "bin", summary.attempt)
    if (shard := finished_shard(task, summary.num_written)) is not None:  # made before this run was interrupted
        folder.remove(media)
        return shard
    if not summary.has_data(folder, task.part_number):
        raise _damaged(task, media)
    with folder.local_file(media) as path:
        if sha256_file(path) != summary.sha256:
            raise _damaged(task, media)
        samples = load_samples(folder, task.part_number, summary.attempt, task.first_index)
        shard = write_shard(folder, name, samples, task.first_index)
    folder.remove(media)
    return shard


def _damaged(task: ShardTask, media: str) -> ValueError:
    """The error for a damaged part. Removes its summary, so that it is made again."""
    folder = task.folder
    folder.remove(part_name(task.part_number, "json"))
    return ValueError(
        f"{folder.where(media)}: was changed or damaged since it was written; run the same command again: it reads the "
        "files of this part once more"
    )


def finished_shard(task: ShardTask, num_samples: int) -> ShardRecord | None:
    """The record of the shard if it and its side-car exist and belong to this part, otherwise None."""
    name = shard_name(task.shard_number)
    if not task.folder.exists(side_car_name(name)):
        return None
    try:
        record = load_side_car(task.folder, name).record
    except (ValueError, FileNotFoundError):
        return None
    is_this_part = (record.first_index, record.num_samples) == (task.first_index, num_samples)
    return record if is_this_part and task.folder.size(name) == record.bytes else None


def write_shard(folder: OutputFolder, name: str, samples: Iterable[Sample], first_index: int) -> ShardRecord:
    """Write samples as a shard, then its side-car."""
    keys: list[str] = []
    digests: list[tuple[str, str]] = []

    def noted() -> Iterator[Sample]:
        for sample in samples:
            keys.append(sample.info.key)
            digests.append((media_digest(sample), source_digest(sample.info)))
            yield sample

    with folder.whole_file(name) as file:
        offsets = [0, *write_tar(file, noted())]
        size = file.tell()
    record = ShardRecord(name, len(keys), size, file.sha256, first_index)
    folder.write_bytes(side_car_name(name), with_digests(SideCar(record, keys, offsets), digests).to_json())
    return record


def load_side_car(folder: OutputFolder, name: str) -> SideCar:
    """A shard's side-car. FileNotFoundError or ValueError names the file."""
    with folder.local_file(side_car_name(name)) as path:
        return SideCar.load(path)
