"""The command `verify`: checks that a shard folder is complete, agrees with its json, and can be decoded.

Of a remote folder each worker holds one shard at a time as a temporary file on this machine (in TMPDIR).
"""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from avssl.files import storage
from avssl.files.checked_json import Fields
from avssl.files.location import READ_ONLY
from avssl.files.whole import sha256_file
from avssl.media.decode import probe, read_audio, read_video, stream_audio, stream_frames
from avssl.media.images import read_image
from avssl.processes.pool import in_processes
from avssl.shards.format import (
    AUDIO_MEMBER,
    INDEX_NAME,
    JSON_MEMBER,
    SKIPPED_NAME,
    VIDEO_MEMBER,
    SampleInfo,
    ShardIndex,
    ShardRecord,
    SideCar,
)
from avssl.shards.sample_digests import media_digest, source_digest
from avssl.shards.shard_set import Sample, image_member, parse_members
from avssl.shards.tar_members import DAMAGED_TAR, open_tar
from avssl.types import FAILURE_REASONS, MediaError

PROBE_SECONDS = 0.1
END_OF_ARCHIVE_BYTES = 1024


@dataclass(frozen=True)
class Problem:
    """A defect, and the file (or shard and sample) that has it."""

    file: str
    message: str


@dataclass
class Report:
    """The counts of a shard folder, and the defects that `verify` found."""

    num_shards: int = 0
    num_samples: int = 0
    num_skipped: int = 0
    total_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems


@dataclass(frozen=True)
class ShardCheck:
    """The task of a worker: one shard to check."""

    folder: storage.Location
    record: ShardRecord
    label_names: dict[str, list[str]]
    decode_all: bool


def verify_folder(folder: storage.Location, decode_all: bool = False, num_workers: int = 1) -> Report:
    """Check everything in a shard folder (a path or URL): json, sizes, hashes, members, indices, sums, and that the
    media decode.

    decode_all: decode every frame and all audio and compare their number with the json; otherwise only the first frame
    and the first tenth of a second of audio (the hashes already show that the bytes are those that were written).
    Images are always decoded.

    Raises OSError if index.json or skipped.jsonl cannot be fetched.
    """
    report = Report()
    try:
        with _local(folder, INDEX_NAME) as path:
            index = ShardIndex.load(path.parent)
    except (ValueError, FileNotFoundError) as error:
        report.problems.append(Problem(storage.join(folder, INDEX_NAME), str(error)))
        return report
    report.num_shards, report.num_samples = len(index.shards), index.num_samples
    report.total_bytes, report.num_skipped = index.total_bytes, index.num_skipped
    tasks = [ShardCheck(folder, record, index.label_names, decode_all) for record in index.shards]
    sizes = [record.num_samples for record in index.shards]
    where: dict[str, str] = {}
    results = sorted(
        in_processes(check_shard, tasks, num_workers, "verify", sizes), key=lambda result: result[0].record.name
    )
    for task, (problems, keys) in results:
        report.problems += problems
        for key in keys:
            if key in where:
                report.problems.append(Problem(task.record.name, f"the key {key} is also in {where[key]}"))
            where[key] = task.record.name
    report.problems += _check_skipped(folder, index, where)
    report.problems += _check_unlisted(folder, index)
    return report


@contextmanager
def _local(folder: storage.Location, name: str) -> Iterator[Path]:
    """A path to a file of the folder. Errors about a temporary copy name the file itself."""
    where = storage.join(folder, name)
    with storage.local_copy(where) as path:
        try:
            yield path
        except (ValueError, FileNotFoundError) as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(str(error).replace(str(path), where)) from error


def _check_skipped(folder: storage.Location, index: ShardIndex, written: dict[str, str]) -> list[Problem]:
    """Problems of skipped.jsonl: it must agree with the counts in index.json, and its keys must not be written ones."""
    path = storage.join(folder, SKIPPED_NAME)
    try:
        content = storage.read_bytes(path)
    except FileNotFoundError:
        return [Problem(path, "is missing")]
    problems = []
    reasons: Counter[str] = Counter()
    keys: set[str] = set()
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            record = Fields.parse(line, f"line {number}")
            reason, key = record.text("reason"), record.text("key")
        except ValueError as error:
            problems.append(Problem(path, f"{error}; it is no skip record"))
            continue
        if reason not in FAILURE_REASONS:
            problems.append(Problem(path, f"line {number}: unknown reason {reason!r}"))
        if key in keys or key in written:
            problems.append(Problem(path, f"line {number}: {key} is listed twice, or was also written"))
        keys.add(key)
        reasons[reason] += 1
    if dict(reasons) != index.skipped_by_reason:
        problems.append(Problem(path, f"counts {dict(reasons)}; {INDEX_NAME} says {index.skipped_by_reason}"))
    return problems


def _check_unlisted(folder: storage.Location, index: ShardIndex) -> list[Problem]:
    """A problem for each shard that index.json does not list, and each leftover of a write. Web servers list no folders
    and are not checked.
    """
    if storage.protocol_of(folder) in READ_ONLY:
        return []
    listed = {record.name for record in index.shards} | {Path(record.name).stem + ".json" for record in index.shards}
    others = [name for name in storage.names(folder) if name not in {*listed, INDEX_NAME, SKIPPED_NAME}]
    ours = [name for name in others if name.startswith(("shard-", ".parts")) or name.endswith(".tmp")]
    return [Problem(storage.join(folder, name), f"is not listed in {INDEX_NAME}") for name in ours]


def check_shard(task: ShardCheck) -> tuple[list[Problem], list[str]]:
    """(problems of a shard, its keys; none if its side-car cannot be read). Runs in a worker."""
    where = storage.join(task.folder, task.record.name)
    try:
        with storage.local_copy(where) as path:
            return _check_shard(task, path, where)
    except FileNotFoundError:
        return [Problem(where, "is missing")], []
    except OSError as error:
        return [Problem(where, f"could not be checked ({error})")], []


def _check_shard(task: ShardCheck, path: Path, where: str) -> tuple[list[Problem], list[str]]:
    """`check_shard` of a shard that is on this machine at `path`; FileNotFoundError if it is missing."""
    record, problems = task.record, []
    side_car_name = f"{Path(record.name).stem}.json"
    if (size := path.stat().st_size) != record.bytes:
        problems.append(Problem(where, f"has {size} bytes; {INDEX_NAME} says {record.bytes}"))
    if (sha256 := sha256_file(path)) != record.sha256:
        how = "remove it and run the same `write` command again: it writes this shard anew"
        problems.append(Problem(where, f"has sha256 {sha256}; {INDEX_NAME} says {record.sha256}; {how}"))
    try:
        with _local(task.folder, side_car_name) as side_car_path:
            side_car = SideCar.load(side_car_path)
    except (ValueError, FileNotFoundError) as error:
        return [*problems, Problem(storage.join(task.folder, side_car_name), str(error))], []
    if side_car.record != record:
        problems.append(
            Problem(storage.join(task.folder, side_car_name), f"says {side_car.record}; {INDEX_NAME} says {record}")
        )
    try:
        groups, end = _group_members(path)
    except DAMAGED_TAR as error:
        return [*problems, Problem(where, f"cannot be read as tar ({error})")], side_car.keys
    keys, offsets = [key for key, _ in groups], [*(offset for _, offset in groups), end]
    if keys != side_car.keys:
        problems.append(Problem(where, f"holds {len(keys)} groups of members, not the {len(side_car.keys)} keys of "
                                "its side-car in their order"))  # fmt: skip
    elif offsets != side_car.offsets:
        problems.append(Problem(where, "its samples do not lie at the offsets of its side-car"))
    else:
        problems += _check_samples(task, path, side_car, where)
    return problems, side_car.keys


def _group_members(path: Path) -> tuple[list[tuple[str, int]], int]:
    """([(key, offset of its first header)] of each group of adjacent members with one key, offset of the end)."""
    groups: list[tuple[str, int]] = []
    end = 0
    with open_tar(path) as archive:
        for member in archive:
            key = member.name.rsplit("/", 1)[0] + "/" if "/" in member.name else ""
            key += member.name.rsplit("/", 1)[-1].split(".", 1)[0]
            if not groups or groups[-1][0] != key:
                groups.append((key, end))
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    if path.stat().st_size < end + END_OF_ARCHIVE_BYTES:
        raise tarfile.ReadError("the end of the archive is missing")
    return groups, end


def _check_samples(task: ShardCheck, path: Path, side_car: SideCar, shard: str) -> list[Problem]:
    problems = []
    with path.open("rb") as file:
        for number, key in enumerate(side_car.keys):
            begin, end = side_car.offsets[number : number + 2]
            file.seek(begin)
            where = f"{shard}, sample {key}"
            try:
                sample = parse_members(file.read(end - begin), where)
                _check_info(sample.info, task.record.first_index + number, key, task.label_names)
                _check_media(sample, task.decode_all)
                _check_digests(sample, side_car, number)
            except (MediaError, ValueError) as error:
                problems.append(Problem(where, str(error)))
    return problems


def _check_info(info: SampleInfo, index: int, key: str, label_names: dict[str, list[str]]) -> None:
    """ValueError if the json contradicts its position in the shard, index.json or itself."""
    if info.index != index or info.key != key:
        raise ValueError(f"its {JSON_MEMBER} says index {info.index}, key {info.key}; it must be {index}, {key}")
    for name, values in info.labels.items():
        if unknown := set(values) - set(label_names.get(name, [])):
            raise ValueError(f"its label {name} has names that are not in {INDEX_NAME}: {sorted(unknown)}")
    video_end = info.video_start_seconds + info.num_frames / info.video_fps if info.has_video else 0.0
    audio_end = info.audio_start_seconds + info.num_audio_samples / info.audio_rate_hz if info.has_audio else 0.0
    if abs(max(video_end, audio_end) - info.duration_seconds) > 1e-6:
        raise ValueError(f"duration_seconds is {info.duration_seconds}; the streams end at {max(video_end, audio_end)}")


def _check_media(sample: Sample, decode_all: bool) -> None:
    """ValueError or MediaError if a member cannot be decoded or contradicts the json."""
    info = sample.info
    if sample.image is not None:
        name = f"{info.key}.{image_member(sample.image)}"
        height_px, width_px = read_image(sample.image, name=name).shape[1:]
        _compare(name, "rows", height_px, info.image_height_px)
        _compare(name, "columns", width_px, info.image_width_px)
    if sample.video is not None:
        name = f"{info.key}.{VIDEO_MEMBER}"
        read_video(sample.video, [0.0], rgb=False, name=name)
        if decode_all:
            _compare(name, "frames", sum(1 for _ in stream_frames(sample.video, name=name)), info.num_frames)
    if sample.audio is not None:
        name = f"{info.key}.{AUDIO_MEMBER}"
        facts = probe(sample.audio, name=name).audio
        _compare(name, "Hz", facts.rate_hz if facts else 0, info.audio_rate_hz)
        read_audio(sample.audio, 0.0, max(1, round(PROBE_SECONDS * info.audio_rate_hz)), info.audio_rate_hz, name=name)
        if decode_all:
            num_samples = sum(block.shape[1] for _, block in stream_audio(sample.audio, name=name))
            _compare(name, "samples", num_samples, info.num_audio_samples)


def _check_digests(sample: Sample, side_car: SideCar, number: int) -> None:
    """ValueError if the side-car has other digests, by which evaluations recognize samples; old shards have none."""
    for kind, digest in (("media", media_digest(sample)), ("sources", source_digest(sample.info))):
        stored = getattr(side_car, kind)[16 * number : 16 * number + 16]
        if stored not in ("", digest):
            raise ValueError(f"its digest of {kind} is {digest}; the side-car says {stored}")


def _compare(name: str, unit: str, count: int, stated: int) -> None:
    if count != stated:
        raise ValueError(f"{name} has {count} {unit}; its json says {stated}")
