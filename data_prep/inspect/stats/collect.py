"""Statistics of a shard folder, collected shard by shard in processes. Decides what is measured of a sample."""

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
from data_prep.inspect.stats.metrics import FLOOR_DBFS, measure_audio, measure_image, measure_video
from data_prep.inspect.stats.near_duplicates import MAX_DISTANCE, NO_HASH, Hashes, equal_groups, near_groups
from data_prep.inspect.stats.tally import Tally

Groups = list[NDArray[np.int64]]

# The kinds of 64-bit hashes that a sample can have.
MIDDLE, FIRST, PICTURE = "middle frame", "first frame", "picture"
SOUND_BYTES, VIDEO_BYTES, PICTURE_BYTES = "sound bytes", "video bytes", "picture bytes"


@dataclass(frozen=True)
class Thresholds:
    """silence_dbfs: 50 ms of sound with less RMS are silent. still_levels: frames half a second apart are still if the
    mean luma of no square of 16 x 16 changes by so many levels of 255. max_distance: of the 64 bits of alike images.
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
    """The task of a worker: one shard to measure. decode: False leaves out everything that needs decoded media."""

    folder: Path
    record: ShardRecord
    decode: bool
    thresholds: Thresholds


@dataclass
class Stats:
    """Statistics of a folder. groups: {kind of likeness: groups of sample indices, the largest first}."""

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
        """Plain values; groups as lists of indices."""
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
    """Measure every sample. The numbers do not depend on num_workers.

    Memory: one shard's sums a worker and a few 8-byte hashes a sample. A sample whose media cannot be read counts in
    `tally.failed`.

    Raises FileNotFoundError or ValueError if this is no finished shard folder.
    """
    stats = Stats(folder, ShardIndex.load(folder), thresholds or Thresholds(), decode)
    hashes: dict[str, Hashes] = {}
    for record, tally, found in _in_order(stats, num_workers):
        stats.tally.merge(tally)
        for name, values in found.items():
            whole = hashes.setdefault(name, np.zeros(stats.index.num_samples, np.uint64))
            whole[record.first_index : record.first_index + record.num_samples] = values
    distance = stats.thresholds.max_distance
    if MIDDLE in hashes:
        stats.groups["alike videos"] = near_groups(np.stack([hashes[MIDDLE], hashes[FIRST]], axis=1), distance)
    if PICTURE in hashes:
        stats.groups["alike pictures"] = near_groups(hashes[PICTURE][:, None], distance)
    for name, title in ((SOUND_BYTES, "same sounds"), (VIDEO_BYTES, "same videos"), (PICTURE_BYTES, "same pictures")):
        if name in hashes:
            stats.groups[title] = equal_groups(hashes[name])
    return stats


def _in_order(stats: Stats, num_workers: int) -> Iterator[tuple[ShardRecord, Tally, dict[str, Hashes]]]:
    """The shards' results in the order of the shards, so that sums do not depend on which worker was faster."""
    records = stats.index.shards
    tasks = [StatsTask(stats.folder, record, stats.decode, stats.thresholds) for record in records]
    waiting: dict[str, tuple[Tally, dict[str, Hashes]]] = {}
    coming = iter(records)
    expected = next(coming, None)
    for task, result in in_processes(
        measure_shard, tasks, num_workers, "stats", [record.num_samples for record in records]
    ):
        waiting[task.record.name] = result
        while expected is not None and expected.name in waiting:
            yield (expected, *waiting.pop(expected.name))
            expected = next(coming, None)


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
            tally.num_samples += 1
            try:
                sample = parse_members(file.read(end - begin), f"{path}, sample {key}")
                _add_facts(tally, sample)
                found = _measure(tally, sample, task)
            except MediaError as error:
                tally.add_failure(error.reason, f"{key}: {error.message}")
                continue
            for name, value in found.items():
                hashes.setdefault(name, np.zeros(task.record.num_samples, np.uint64))[number] = value
    return tally, hashes


def _add_facts(tally: Tally, sample: Sample) -> None:
    """Count the facts of the json and the sizes of the members."""
    info, source = sample.info, sample.info.source
    video, audio, image = (source.get(name) or {} for name in ("video", "audio", "image"))
    members = [name for name, has in (("video", info.has_video), ("sound", info.has_audio)) if has]
    tally.add_fact("streams", "picture" if info.has_image else " and ".join(members))
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
    """Decode and measure the members of a sample; its hashes. MediaError if a member is damaged."""
    info, limits = sample.info, task.thresholds
    found: dict[str, int] = {}
    is_audible = True
    if task.decode and sample.audio is not None:
        sound = measure_audio(sample.audio, info.audio_rate_hz, limits.silence_dbfs, f"{info.key}, sound")
        for name, value in vars(sound).items():
            tally.add_number(name, value)
        tally.counts["wholly silent"] += sound.silent_share == 1
        tally.counts["digital silence"] += sound.peak_dbfs <= FLOOR_DBFS
        is_audible = sound.peak_dbfs > FLOOR_DBFS
    if sample.audio is not None and is_audible:  # silences of one length are equal, but no duplicates
        found[SOUND_BYTES] = content_hash(sample.audio)
    if sample.video is not None and task.decode:
        video = measure_video(sample.video, info.num_frames, info.video_fps, limits.still_levels, f"{info.key}, video")
        tally.add_number("motion", video.motion)
        tally.add_number("still_share", video.still_share)
        tally.add_fact("stored_size", f"{video.width_px} x {video.height_px}")
        tally.counts["wholly still"] += video.still_share == 1
        tally.counts["flat pictures"] += video.middle_hash == NO_HASH
        found |= {MIDDLE: video.middle_hash, FIRST: video.first_hash}
    elif sample.video is not None:
        found[VIDEO_BYTES] = content_hash(sample.video)
    if sample.image is not None and task.decode:
        found[PICTURE] = measure_image(sample.image, f"{info.key}, picture")
        tally.counts["flat pictures"] += found[PICTURE] == NO_HASH
    elif sample.image is not None:
        found[PICTURE_BYTES] = content_hash(sample.image)
    return found


def content_hash(content: bytes) -> int:
    """64 bits of BLAKE2b; two of 100 million different members are equal with a chance of 1 in 3700."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
