"""What stands in a shard folder: the json of a sample, of a shard and of the folder. Pure Python, no media.

A folder holds shard-000000.tar, shard-000000.json (side-car), ..., index.json and skipped.jsonl. A sample is tar
members next to each other: KEY.json (SampleInfo) and KEY.video.mp4, KEY.audio.flac, KEY.image.jpg or KEY.image.png.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

SCHEMA_VERSION = 1
FORMAT_NAME = "avssl-shards"
VIDEO_MEMBER, AUDIO_MEMBER, JSON_MEMBER = "video.mp4", "audio.flac", "json"
IMAGE_MEMBERS = {"image.jpg": b"\xff\xd8\xff", "image.png": b"\x89PNG\r\n\x1a\n"}  # and how their bytes begin
INDEX_NAME, SKIPPED_NAME = "index.json", "skipped.jsonl"

Number = (int, float)


def shard_name(number: int) -> str:
    """File name of the shard with this number."""
    return f"shard-{number:06d}.tar"


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hex sha256 of a file's bytes, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def dump_json(value: Any) -> bytes:
    """The one way json is written here: sorted keys, no spaces to spare, ASCII, a newline at the end."""
    return (json.dumps(value, sort_keys=True, separators=(", ", ": "), allow_nan=False) + "\n").encode("ascii")


def load_json(path: Path) -> dict[str, Any]:
    """A json object from a file; ValueError names the file."""
    try:
        value = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not json ({error}); write the shards again or restore the file") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds a {type(value).__name__}; it must be a json object")
    return value


def take(record: dict[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """record[name], of the right type (bool is no number); ValueError says what was found."""
    if name not in record:
        raise ValueError(f"{where}: the field {name!r} is missing; found {', '.join(sorted(record)) or 'nothing'}")
    value = record[name]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(one.__name__ for one in kinds)
        raise ValueError(f"{where}: {name} is {value!r}; it must be {wanted}")
    return value


def take_count(record: dict[str, Any], name: str, where: str) -> int:
    """A whole number that is at least 0."""
    value = int(take(record, name, int, where))
    if value < 0:
        raise ValueError(f"{where}: {name} is {value}; it must be at least 0")
    return value


def take_labels(record: dict[str, Any], name: str, where: str) -> dict[str, list[str]]:
    """{field: [names]}."""
    labels = take(record, name, dict, where)
    for field, names in labels.items():
        if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
            raise ValueError(f"{where}: {name}[{field!r}] is {names!r}; it must be a list of strings")
    return {str(field): list(names) for field, names in labels.items()}


@dataclass(frozen=True)
class SampleInfo:
    """The json member of a sample.

    Clock: time 0 of a sample is the start of the stream that starts first. The video member's own time 0 lies at
    video_start_seconds on that clock, the audio member's at audio_start_seconds.

    index: contiguous 0..N-1 over the folder. duration_seconds: end of the later stream on the clock. video_fps:
    constant; 0 without video, as num_frames. av_offset_seconds: audio start minus video start in the source; 0 if one
    is missing. audio_rate_hz: 0 without audio, as num_audio_samples. labels: {field: [names]}. source: path and
    what probing found. image_height_px, image_width_px: 0, and then not in the json, without a picture.
    """

    index: int
    key: str
    duration_seconds: float
    video_fps: float
    num_frames: int
    av_offset_seconds: float
    audio_rate_hz: int
    num_audio_samples: int
    labels: dict[str, list[str]]
    source: dict[str, Any]
    image_height_px: int = 0
    image_width_px: int = 0

    @property
    def has_image(self) -> bool:
        """Is there an image member?"""
        return self.image_height_px > 0

    @property
    def has_video(self) -> bool:
        """Is there a video member?"""
        return self.num_frames > 0

    @property
    def has_audio(self) -> bool:
        """Is there an audio member?"""
        return self.num_audio_samples > 0

    @property
    def video_start_seconds(self) -> float:
        """The video member's time 0 on the sample's clock."""
        return max(0.0, -self.av_offset_seconds)

    @property
    def audio_start_seconds(self) -> float:
        """The audio member's time 0 on the sample's clock."""
        return max(0.0, self.av_offset_seconds)

    def to_json(self) -> bytes:
        """The member's bytes."""
        absent = () if self.has_image else ("image_height_px", "image_width_px")
        return dump_json({name: value for name, value in vars(self).items() if name not in absent})

    @classmethod
    def from_json(cls, content: bytes | dict[str, Any], where: str = "sample") -> Self:
        """Parse and check. ValueError names `where` and the field."""
        if isinstance(content, bytes):
            try:
                content = json.loads(content)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise ValueError(f"{where}: the json member is not json ({error})") from error
        if not isinstance(content, dict):
            raise ValueError(f"{where}: the json member is {type(content).__name__}; it must be an object")
        return cls(
            index=take_count(content, "index", where),
            key=str(take(content, "key", str, where)),
            duration_seconds=float(take(content, "duration_seconds", Number, where)),
            video_fps=float(take(content, "video_fps", Number, where)),
            num_frames=take_count(content, "num_frames", where),
            av_offset_seconds=float(take(content, "av_offset_seconds", Number, where)),
            audio_rate_hz=take_count(content, "audio_rate_hz", where),
            num_audio_samples=take_count(content, "num_audio_samples", where),
            labels=take_labels(content, "labels", where),
            source=dict(take(content, "source", dict, where)),
            image_height_px=take_count({"image_height_px": 0} | content, "image_height_px", where),
            image_width_px=take_count({"image_width_px": 0} | content, "image_width_px", where),
        )


def _check_version(record: dict[str, Any], where: str) -> None:
    version = take(record, "schema_version", int, where)
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{where}: has schema version {version}; this program reads version {SCHEMA_VERSION}. Write the shards "
            "again with `python -m data_prep write`, or use the version of avssl that wrote them"
        )


@dataclass(frozen=True)
class ShardRecord:
    """A shard's line in index.json. first_index: `index` of its first sample."""

    name: str
    num_samples: int
    bytes: int
    sha256: str
    first_index: int

    @classmethod
    def from_json(cls, record: dict[str, Any], where: str) -> Self:
        """Check; ValueError names `where` and the field."""
        return cls(
            name=str(take(record, "name", str, where)),
            num_samples=take_count(record, "num_samples", where),
            bytes=take_count(record, "bytes", where),
            sha256=str(take(record, "sha256", str, where)),
            first_index=take_count(record, "first_index", where),
        )


@dataclass(frozen=True)
class SideCar:
    """shard-N.json. offsets: where each sample's first tar header begins, and where the last sample ends."""

    record: ShardRecord
    keys: list[str]
    offsets: list[int]

    def to_json(self) -> bytes:
        """The file's bytes."""
        body = asdict(self.record) | {"schema_version": SCHEMA_VERSION, "keys": self.keys, "offsets": self.offsets}
        return dump_json(body)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check. FileNotFoundError or ValueError names the file."""
        if not path.is_file():
            raise FileNotFoundError(f"{path}: the shard's side-car is missing; write the shards again or restore it")
        content = load_json(path)
        where = str(path)
        _check_version(content, where)
        record = ShardRecord.from_json(content, where)
        keys, offsets = take(content, "keys", list, where), take(content, "offsets", list, where)
        if len(keys) != record.num_samples or len(offsets) != record.num_samples + 1:
            raise ValueError(
                f"{where}: {len(keys)} keys and {len(offsets)} offsets for {record.num_samples} samples; "
                "there must be one key a sample and one offset more"
            )
        if not all(type(one) is int for one in offsets) or offsets != sorted(set(offsets)) or offsets[:1] != [0]:
            raise ValueError(f"{where}: offsets must be whole numbers that rise from 0")
        return cls(record, [str(key) for key in keys], offsets)


@dataclass(frozen=True)
class ShardIndex:
    """index.json: what a shard folder holds, how it was made, and that the numbers add up."""

    shards: list[ShardRecord]
    num_samples: int
    num_listed: int
    num_skipped: int
    skipped_by_reason: dict[str, int]
    label_names: dict[str, list[str]]
    options: dict[str, Any]
    manifest_sha256: str

    @property
    def total_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)

    def to_json(self) -> bytes:
        """The file's bytes."""
        derived = {
            "schema_version": SCHEMA_VERSION,
            "format": FORMAT_NAME,
            "num_shards": len(self.shards),
            "num_written": self.num_samples,
            "total_bytes": self.total_bytes,
        }
        return (json.dumps(asdict(self) | derived, sort_keys=True, indent=1, allow_nan=False) + "\n").encode("ascii")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read a folder's index.json and check it. FileNotFoundError or ValueError says what to do."""
        path = Path(folder) / INDEX_NAME
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: is missing, so {folder} is no finished shard folder; run `python -m data_prep write` "
                "(it continues where it stopped)"
            )
        content, where = load_json(path), str(path)
        if content.get("format") != FORMAT_NAME:
            raise ValueError(f"{where}: format is {content.get('format')!r}; it must be {FORMAT_NAME!r}")
        _check_version(content, where)
        shards = [ShardRecord.from_json(record, where) for record in take(content, "shards", list, where)]
        index = cls(
            shards=shards,
            num_samples=take_count(content, "num_samples", where),
            num_listed=take_count(content, "num_listed", where),
            num_skipped=take_count(content, "num_skipped", where),
            skipped_by_reason={str(k): int(v) for k, v in take(content, "skipped_by_reason", dict, where).items()},
            label_names=take_labels(content, "label_names", where),
            options=dict(take(content, "options", dict, where)),
            manifest_sha256=str(take(content, "manifest_sha256", str, where)),
        )
        index.check_sums(content, where)
        return index

    def check_sums(self, content: dict[str, Any], where: str) -> None:
        """ValueError unless counts, first indices and totals agree with each other."""
        first = 0
        for shard in self.shards:
            if shard.first_index != first:
                raise ValueError(f"{where}: {shard.name} begins at index {shard.first_index}; it must be {first}")
            first += shard.num_samples
        facts = {
            "num_samples": (self.num_samples, first),
            "num_written": (take_count(content, "num_written", where), first),
            "num_shards": (take_count(content, "num_shards", where), len(self.shards)),
            "total_bytes": (take_count(content, "total_bytes", where), self.total_bytes),
            "num_skipped": (self.num_skipped, sum(self.skipped_by_reason.values())),
            "num_listed": (self.num_listed, first + self.num_skipped),
        }
        for name, (found, wanted) in facts.items():
            if found != wanted:
                raise ValueError(f"{where}: {name} is {found}; the rest of the file says {wanted}")
