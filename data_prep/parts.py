"""A run of the shuffled manifest, transcoded to a part; and a part made into a shard. What the workers do.

A part is part-N.bin, the media one after the other, and part-N.json, what lies where and what was skipped. It is done
when its json exists. It has no sample indices yet: these need the counts of all parts before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avssl.data.shards import (
    JSON_MEMBER,
    Sample,
    SampleInfo,
    ShardRecord,
    SideCar,
    dump_json,
    load_json,
    sha256_file,
    shard_name,
    write_tar,
)
from avssl.types import MediaError
from data_prep.files import HashedFile, atomic_file, write_atomically
from data_prep.images import store_file, store_item
from data_prep.manifest import Entry
from data_prep.mnist import PictureFile
from data_prep.options import WriteOptions
from data_prep.transcode import Transcoded, transcode

Transcode = Callable[[str, WriteOptions], Transcoded]


@dataclass(frozen=True)
class PartTask:
    """What a worker needs to make a part. crashed: keys of files that are known to kill the process."""

    number: int
    entries: tuple[Entry, ...]
    folder: Path
    manifest_folder: Path
    options: WriteOptions
    crashed: frozenset[str] = frozenset()
    transcode: Transcode = transcode


@dataclass(frozen=True)
class ShardTask:
    """What a worker needs to make a shard of a part."""

    part_number: int
    shard_number: int
    first_index: int
    parts_folder: Path
    folder: Path


def part_path(folder: Path, number: int, suffix: str) -> Path:
    """A file of a part: suffix "bin" (media), "json" (records) or "now" (first line: number and key being read)."""
    return folder / f"part-{number:06d}.{suffix}"


def make_part(task: PartTask) -> Counter[str]:
    """Transcode a run of entries. Returns how many were "written", and how many skipped by reason."""
    written: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    now = part_path(task.folder, task.number, "now")
    with atomic_file(part_path(task.folder, task.number, "bin")) as file, now.open("wb", buffering=0) as note:
        for number, entry in enumerate(task.entries):
            note.seek(0)
            note.write(f"{number} {entry.key}\n".encode())  # only the first line counts: opening it anew takes long
            try:
                written.append(_write_media(file, entry, task))
            except MediaError as error:
                skipped.append({"path": entry.path, "key": entry.key, "reason": error.reason, "message": error.message})
            except ValueError as error:  # FFmpeg or the encoder refuses it in a way that has no reason of its own
                message = f"{entry.path}: cannot be transcoded ({type(error).__name__}: {error})"
                skipped.append({"path": entry.path, "key": entry.key, "reason": "decode_error", "message": message})
            except Exception as error:
                error.add_note(f"while transcoding {entry.path}")
                raise
        sha256 = file.sha256
    records = {"written": written, "skipped": skipped, "sha256": sha256}
    write_atomically(part_path(task.folder, task.number, "json"), dump_json(records))
    now.unlink(missing_ok=True)
    return Counter(written=len(written)) + Counter(skip["reason"] for skip in skipped)


def _write_media(file: HashedFile, entry: Entry, task: PartTask) -> dict[str, Any]:
    """Append one sample's media or picture to the part. MediaError if it has to be skipped."""
    path = str(task.manifest_folder / entry.path)
    if entry.error is not None:
        raise MediaError(entry.error["reason"], entry.error["message"])  # type: ignore[arg-type]
    if entry.key in task.crashed:
        raise MediaError("decode_error", f"{path}: the decoder crashes the process that reads it")
    sample = _image_sample(path, entry, task.options) if entry.is_image else _media_sample(path, entry, task)
    place: dict[str, Any] = {}
    for name, content in (("video", sample.video), ("audio", sample.audio), ("image", sample.image)):
        place[name] = None if content is None else [file.tell(), len(content)]
        if content is not None:
            file.write(content)
    return place | {"info": vars(sample.info)}


def _media_sample(path: str, entry: Entry, task: PartTask) -> Sample:
    """A video or sound as it is stored; its index is not yet known."""
    result = task.transcode(path, task.options)
    info = SampleInfo(
        index=0,
        key=entry.key,
        duration_seconds=round(result.duration_seconds, 9),
        video_fps=result.video_fps,
        num_frames=result.num_frames,
        av_offset_seconds=result.av_offset_seconds,
        audio_rate_hz=result.audio_rate_hz,
        num_audio_samples=result.num_audio_samples,
        labels=entry.labels,
        source={"path": entry.path, "bytes": entry.num_bytes} | result.info.to_json(),
    )
    return Sample(info, result.video, result.audio)


def _image_sample(path: str, entry: Entry, options: WriteOptions) -> Sample:
    """A picture as it is stored; its index is not yet known."""
    if entry.item is None:
        stored = store_file(path, options)
    else:
        stored = store_item(PictureFile(path, entry.media["image"].get("label_column")), entry.item, options)
    info = SampleInfo(
        index=0,
        key=entry.key,
        duration_seconds=0.0,
        video_fps=0.0,
        num_frames=0,
        av_offset_seconds=0.0,
        audio_rate_hz=0,
        num_audio_samples=0,
        labels=entry.labels,
        source={"path": entry.path, "bytes": entry.num_bytes} | stored.source,
        image_height_px=stored.height_px,
        image_width_px=stored.width_px,
    )
    return Sample(info, None, None, stored.content)


def load_part(folder: Path, number: int) -> dict[str, Any]:
    """{"written": [...], "skipped": [...]} of a finished part."""
    return load_json(part_path(folder, number, "json"))


def make_shard(task: ShardTask) -> ShardRecord:
    """Copy a part to its shard, the samples' indices filled in; write the side-car; remove the part's media."""
    path = task.folder / shard_name(task.shard_number)
    media_path = part_path(task.parts_folder, task.part_number, "bin")
    if not media_path.exists():  # made before this run was interrupted
        return _finished_shard(path, task)
    part = load_part(task.parts_folder, task.part_number)
    if sha256_file(media_path) != part["sha256"]:
        raise ValueError(
            f"{media_path}: was changed or damaged since it was written; delete {task.parts_folder} and write again"
        )
    records = part["written"]
    with media_path.open("rb") as media, atomic_file(path) as file:
        offsets = [0, *write_tar(file, _samples(media, records, task.first_index))]
        size = file.tell()
    keys = [record["info"]["key"] for record in records]
    shard = ShardRecord(path.name, len(records), size, file.sha256, task.first_index)
    write_atomically(path.with_suffix(".json"), SideCar(shard, keys, offsets).to_json())
    media_path.unlink()
    return shard


def _finished_shard(path: Path, task: ShardTask) -> ShardRecord:
    record = SideCar.load(path.with_suffix(".json")).record
    if not path.is_file() or path.stat().st_size != record.bytes or record.first_index != task.first_index:
        raise ValueError(f"{path}: was changed since it was written; delete {task.folder} and write again")
    return record


def _samples(media: Any, records: list[dict[str, Any]], first_index: int) -> Iterator[Sample]:
    for index, record in enumerate(records, start=first_index):
        content: dict[str, bytes | None] = {}
        for name in ("video", "audio", "image"):
            content[name] = None
            if record.get(name) is not None:
                offset, size = record[name]
                media.seek(offset)
                content[name] = media.read(size)
        where = f"part record {record['info'].get('key')}.{JSON_MEMBER}"
        info = SampleInfo.from_json(record["info"] | {"index": index}, where)
        yield Sample(info, content["video"], content["audio"], content["image"])
