"""Collects the statistics of a shard folder, shard by shard in processes, and decides what is measured of a sample."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.processes.pool import in_processes
from avssl.shards.format import SampleInfo, ShardIndex, ShardRecord, SideCar
from avssl.shards.shard_set import Sample, parse_members
from avssl.types import MediaError
from data_prep.inspect.stats.tally import Tally
from data_prep.measures.audio import FLOOR_DBFS, measure_audio
from data_prep.measures.near_duplicates import MAX_DISTANCE, NO_HASH, Hashes, equal_groups, near_groups
from data_prep.measures.video import measure_image, measure_video

Groups = list[NDArray[np.int64]]

# The kinds of 64-bit hashes that a sample can have: of what it looks like, and of the bytes of a member.
MIDDLE_FRAME, FIRST_FRAME, IMAGE = "middle frame", "first frame", "image"
AUDIO_BYTES, VIDEO_BYTES, IMAGE_BYTES = "audio bytes", "video bytes", "image bytes"
EQUAL = {AUDIO_BYTES: "equal audio", VIDEO_BYTES: "equal videos", IMAGE_BYTES: "equal images"}


@dataclass(frozen=True)
class Thresholds:
    """What counts as silent, still and nearly the same.

    silence_dbfs: 50 ms of audio with less RMS are silent. still_levels: frames half a second apart are still if the
    mean luma of no square of 16 x 16 changes by so many levels of 255. max_distance: number of the 64 bits of their
    hashes in which near-duplicate images may differ.
    """

    silence_dbfs: float = -60.0
    still_levels: float = 2.0
    max_distance: int = 6

    def __post_init__(self) -> None:
        if not FLOOR_DBFS < self.silence_dbfs <= 0:
            raise ValueError(f"--silence-dbfs is {self.silence_dbfs}; it must be above {FLOOR_DBFS:g} and at most 0")
        if not 0 <= self.still_levels <= 255:
            raise ValueError(f"--still-levels is {self.still_levels}; it must be in 0..255")
        if not 0 <= self.max_distance <= MAX_DISTANCE:
            raise ValueError(f"--max-distance is {self.max_distance}; it must be in 0..{MAX_DISTANCE}")


@dataclass(frozen=True)
class StatsTask:
    """The task of a worker: one shard to measure. decode: False: measure nothing that needs decoded media."""

    folder: Path
    record: ShardRecord
    decode: bool
    thresholds: Thresholds


@dataclass
class Stats:
    """Statistics of a folder. groups: {e.g. "near-duplicate videos": groups of sample indices, the largest first}."""

    folder: Path
    index: ShardIndex
    thresholds: Thresholds
    decode: bool
    tally: Tally = field(default_factory=Tally)
    groups: dict[str, Groups] = field(default_factory=dict)

    def key_of(self, index: int) -> str:
        """The key of a sample, read from its shard's side-car."""
        record = next(shard for shard in self.index.shards if index < shard.first_index + shard.num_samples)
        return SideCar.load(self.folder / Path(record.name).with_suffix(".json")).keys[index - record.first_index]

    def to_json(self) -> dict[str, Any]:
        """The statistics as nested dicts and lists; groups are lists of indices."""
        return {
            "folder": str(self.folder),
            "num_shards": len(self.index.shards),
            "total_bytes": self.index.total_bytes,
            "skipped_by_reason": self.index.skipped_by_reason,
            "decoded": self.decode,
            "thresholds": asdict(self.thresholds),
            "groups": {name: [group.tolist() for group in groups] for name, groups in self.groups.items()},
        } | self.tally.to_json()


def collect_stats(
    folder: Path, *, decode: bool = True, num_workers: int = 1, thresholds: Thresholds | None = None
) -> Stats:
    """The statistics of a folder, from measuring every sample. They do not depend on num_workers.

    Memory: the sums of one shard per worker, and a few hashes of 8 bytes per sample. A sample whose media cannot be
    read counts in `tally.failed`.

    Raises FileNotFoundError or ValueError if this is no finished shard folder.
    """
    stats = Stats(folder, ShardIndex.load(folder), thresholds or Thresholds(), decode)
    hashes: dict[str, Hashes] = {}
    for record, tally, shard_hashes in _in_order(stats, num_workers):
        stats.tally.merge(tally)
        for kind, values in shard_hashes.items():
            whole = hashes.setdefault(kind, np.zeros(stats.index.num_samples, np.uint64))
            whole[record.first_index : record.first_index + record.num_samples] = values
    distance = stats.thresholds.max_distance
    if MIDDLE_FRAME in hashes:
        frames = np.stack([hashes[MIDDLE_FRAME], hashes[FIRST_FRAME]], axis=1)
        stats.groups["near-duplicate videos"] = near_groups(frames, distance)
    if IMAGE in hashes:
        stats.groups["near-duplicate images"] = near_groups(hashes[IMAGE][:, None], distance)
    stats.groups |= {title: equal_groups(hashes[kind]) for kind, title in EQUAL.items() if kind in hashes}
    return stats


def _in_order(stats: Stats, num_workers: int) -> Iterator[tuple[ShardRecord, Tally, dict[str, Hashes]]]:
    """The shards' results in the order of the shards, so that sums do not depend on which worker was faster."""
    records = stats.index.shards
    tasks = [StatsTask(stats.folder, record, stats.decode, stats.thresholds) for record in records]
    sizes = [record.num_samples for record in records]
    done: dict[str, tuple[Tally, dict[str, Hashes]]] = {}
    number = 0
    for task, result in in_processes(measure_shard, tasks, num_workers, "stats", sizes):
        done[task.record.name] = result
        while number < len(records) and records[number].name in done:
            yield (records[number], *done.pop(records[number].name))
            number += 1


def measure_shard(task: StatsTask) -> tuple[Tally, dict[str, Hashes]]:
    """(statistics of a shard, {kind of hash: uint64 (samples of the shard,)}). Runs in a worker."""
    path = task.folder / task.record.name
    side_car = SideCar.load(path.with_suffix(".json"))
    tally = Tally()
    hashes: dict[str, Hashes] = {}
    with path.open("rb") as file:
        for number, key in enumerate(side_car.keys):
            begin, end = side_car.offsets[number : number + 2]
            file.seek(begin)
            tally.begin(key)
            try:
                sample = parse_members(file.read(end - begin), f"{path}, sample {key}")
                _add_facts(tally, sample)
                sample_hashes = _measure(tally, sample, task)
            except MediaError as error:
                tally.add_failure(error.reason, f"{key}: {error.message}")
                continue
            for kind, value in sample_hashes.items():
                hashes.setdefault(kind, np.zeros(task.record.num_samples, np.uint64))[number] = value
    return tally, hashes


def _add_facts(tally: Tally, sample: Sample) -> None:
    """Count the facts of the json and the sizes of the members."""
    info, source = sample.info, sample.info.source
    video, audio, image = (source.get(name) or {} for name in ("video", "audio", "image"))
    members = [name for name, has in (("video", info.has_video), ("audio", info.has_audio)) if has]
    tally.add_fact("streams", "image" if info.has_image else " and ".join(members))
    if not info.has_image:
        tally.add_number("duration_seconds", info.duration_seconds)
        tally.add_fact("container", source.get("container"))
    if len(members) == 2:
        tally.add_number("av_offset_seconds", info.av_offset_seconds)
    if info.has_video:
        tally.add_number("num_frames", info.num_frames)
        tally.add_fact("stored_fps", info.video_fps)
    if info.has_audio:
        tally.add_fact("stored_rate_hz", info.audio_rate_hz)
    for name, content in (("video", sample.video), ("audio", sample.audio), ("image", sample.image)):
        tally.add_number(f"{name}_bytes", None if content is None else len(content))
    tally.add_number("source_bytes", source.get("bytes"))
    tally.add_labels(info.labels)
    _add_source(tally, info, video, audio, image)


def _add_source(
    tally: Tally, info: SampleInfo, video: dict[str, Any], audio: dict[str, Any], image: dict[str, Any]
) -> None:
    """Count the facts that probing found in the source file."""
    for facts, names in (
        (video, {"codec": "video_codec", "rotation_degrees": "rotation_degrees", "pixel_format": "pixel_format"}),
        (audio, {"codec": "audio_codec", "rate_hz": "source_rate_hz", "channels": "channels"}),
        (image, {"format": "image_format", "mode": "image_mode"}),
    ):
        for name, fact in names.items():
            tally.add_fact(fact, facts.get(name))
    if "fps" in video:
        tally.add_fact("source_fps", round(float(video["fps"]), 2))
    for facts in (video, image):
        if "width" in facts and "height" in facts:
            tally.add_fact("source_size", f"{facts['width']} x {facts['height']}")
    if info.has_image:
        tally.add_fact("stored_size", f"{info.image_width_px} x {info.image_height_px}")


def _measure(tally: Tally, sample: Sample, task: StatsTask) -> dict[str, int]:
    """Measure the members of a sample into the tally, and return its hashes. MediaError if a member is damaged."""
    info, limits = sample.info, task.thresholds
    hashes: dict[str, int] = {}
    is_audible = True
    if task.decode and sample.audio is not None:
        audio = measure_audio(sample.audio, info.audio_rate_hz, limits.silence_dbfs, f"{info.key}, audio")
        for name, value in vars(audio).items():
            tally.add_number(name, value)
        tally.counts["wholly silent"] += audio.silent_share == 1
        tally.counts["digital silence"] += audio.peak_dbfs <= FLOOR_DBFS
        is_audible = audio.peak_dbfs > FLOOR_DBFS
    if sample.audio is not None and is_audible:  # digital silence of one length is equal, but no duplicate
        hashes[AUDIO_BYTES] = content_hash(sample.audio)
    if sample.video is not None and task.decode:
        video = measure_video(sample.video, info.num_frames, info.video_fps, limits.still_levels, f"{info.key}, video")
        tally.add_number("motion", video.motion)
        tally.add_number("still_share", video.still_share)
        tally.add_fact("stored_size", f"{video.width_px} x {video.height_px}")
        tally.counts["wholly still"] += video.still_share == 1
        tally.counts["flat images"] += video.middle_hash == NO_HASH
        hashes |= {MIDDLE_FRAME: video.middle_hash, FIRST_FRAME: video.first_hash}
    elif sample.video is not None:
        hashes[VIDEO_BYTES] = content_hash(sample.video)
    if sample.image is not None and task.decode:
        hashes[IMAGE] = measure_image(sample.image, f"{info.key}, image")
        tally.counts["flat images"] += hashes[IMAGE] == NO_HASH
    elif sample.image is not None:
        hashes[IMAGE_BYTES] = content_hash(sample.image)
    return hashes


def content_hash(content: bytes) -> int:
    """64 bits of BLAKE2b. That any two of 100 million different members get the same has a chance of 1 in 3,700."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
