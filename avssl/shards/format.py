"""The format of a shard folder: the JSON of a sample, of a shard and of the folder. Pure Python, no media.

A folder holds shard-000000.tar, shard-000000.json (side-car), ..., index.json and skipped.jsonl. A sample is tar
members next to each other: KEY.json (SampleInfo) and KEY.video.mp4, KEY.audio.flac, KEY.image.jpg or KEY.image.png.
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from avssl.files.checked_json import Fields, dump

SCHEMA_VERSION = 1
FORMAT_NAME = "avssl-shards"
VIDEO_MEMBER, AUDIO_MEMBER, JSON_MEMBER = "video.mp4", "audio.flac", "json"
IMAGE_MEMBERS = {"image.jpg": b"\xff\xd8\xff", "image.png": b"\x89PNG\r\n\x1a\n"}  # {name: first bytes}
INDEX_NAME, SKIPPED_NAME = "index.json", "skipped.jsonl"
SHARD_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.tar")
# No recording reaches these: a number beyond them is damage, and arithmetic on it would not be exact.
MAX_SECONDS, MIN_VIDEO_FPS, MAX_VIDEO_FPS, MAX_AUDIO_RATE_HZ = 1e9, 1e-6, 1e6, 10_000_000


def shard_name(number: int) -> str:
    """File name of the shard with this number."""
    return f"shard-{number:06d}.tar"


def side_car_name(shard: str) -> str:
    """File name of the side-car of a shard with this file name."""
    return f"{shard.removesuffix('.tar')}.json"


def dump_json(value: Any) -> bytes:
    """The bytes of a JSON value, the same for equal values: sorted keys, ASCII, a newline at the end."""
    return (dump(value, sort_keys=True, separators=(", ", ": ")) + "\n").encode("ascii")


@dataclass(frozen=True)
class SampleInfo:
    """The json member of a sample.

    Clock: time 0 of a sample is the start of the stream that starts first. The video member's own time 0 lies at
    video_start_seconds on that clock, the audio member's at audio_start_seconds.

    index: contiguous 0..N-1 over the folder. duration_seconds: end of the later stream on the clock. video_fps:
    constant; 0 without video, as num_frames. av_offset_seconds: audio start minus video start in the source; 0 if one
    is missing. audio_rate_hz: 0 without audio, as num_audio_samples. labels: {field: [names]}. source: path and
    results of probing. image_height_px, image_width_px: 0 without an image, and then not in the json. caption: text
    that describes the sample; "" for none, and then not in the json.
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
    caption: str = ""

    @property
    def has_image(self) -> bool:
        """Whether there is an image member."""
        return self.image_height_px > 0

    @property
    def has_video(self) -> bool:
        """Whether there is a video member."""
        return self.num_frames > 0

    @property
    def has_audio(self) -> bool:
        """Whether there is an audio member."""
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
        """The bytes of the member."""
        absent = () if self.has_image else ("image_height_px", "image_width_px")
        absent = absent if self.caption else (*absent, "caption")
        return dump_json({name: value for name, value in vars(self).items() if name not in absent})

    @classmethod
    def from_json(cls, content: bytes | dict[str, Any], where: str = "sample") -> Self:
        """Parse and check. ValueError names `where` and the field."""
        fields = Fields.parse(content, where) if isinstance(content, bytes) else Fields.of(content, where)
        num_frames, num_audio_samples = fields.count("num_frames"), fields.count("num_audio_samples")
        return cls(
            index=fields.count("index"),
            key=fields.text("key"),
            duration_seconds=fields.number("duration_seconds", least=0, most=MAX_SECONDS),
            # Numbers of frames are divided by it.
            video_fps=fields.number("video_fps", least=MIN_VIDEO_FPS if num_frames else 0, most=MAX_VIDEO_FPS),
            num_frames=num_frames,
            av_offset_seconds=fields.number("av_offset_seconds", least=-MAX_SECONDS, most=MAX_SECONDS),
            audio_rate_hz=fields.count("audio_rate_hz", least=min(1, num_audio_samples), most=MAX_AUDIO_RATE_HZ),
            num_audio_samples=num_audio_samples,
            labels=fields.labels("labels"),
            source=fields.mapping("source"),
            image_height_px=fields.count("image_height_px", 0),
            image_width_px=fields.count("image_width_px", 0),
            caption=fields.text("caption", ""),
        )


def _check_version(fields: Fields) -> None:
    version, where = fields.take("schema_version", int, "a whole number"), fields.where
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{where}: has schema version {version}; this program reads version {SCHEMA_VERSION}. Write the shards "
            "again with `avssl prep write`, or use the version of avssl that wrote them"
        )


@dataclass(frozen=True)
class ShardRecord:
    """A shard in index.json. first_index: `index` of its first sample."""

    name: str
    num_samples: int
    bytes: int
    sha256: str
    first_index: int

    @classmethod
    def of(cls, fields: Fields) -> Self:
        """The checked record; ValueError names the file and the field."""
        allowed = "the name of a shard in the same folder, like shard-000000.tar"
        return cls(
            name=fields.matching("name", SHARD_NAME, allowed),
            num_samples=fields.count("num_samples"),
            bytes=fields.count("bytes"),
            sha256=fields.text("sha256"),
            first_index=fields.count("first_index"),
        )


@dataclass(frozen=True)
class SideCar:
    """shard-N.json. offsets: where each sample's first tar header begins, and where the last sample ends.

    media, sources: 16 hex digits per sample, one after the other (sample_digests.py says of what); "" in shards of an
    earlier version of the program.
    """

    record: ShardRecord
    keys: list[str]
    offsets: list[int]
    media: str = ""
    sources: str = ""

    def to_json(self) -> bytes:
        """The bytes of the file."""
        body = asdict(self.record) | {"schema_version": SCHEMA_VERSION, "keys": self.keys, "offsets": self.offsets}
        digests = {"media": self.media, "sources": self.sources}
        return dump_json(body | {name: text for name, text in digests.items() if text})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check. FileNotFoundError or ValueError names the file."""
        if not path.is_file():
            raise FileNotFoundError(f"{path}: the shard's side-car is missing; write the shards again or restore it")
        fields, where = Fields.read(path), str(path)
        _check_version(fields)
        record = ShardRecord.of(fields)
        keys, offsets = fields.items("keys", str), fields.items("offsets", int)
        if len(keys) != record.num_samples or len(offsets) != record.num_samples + 1:
            raise ValueError(
                f"{where}: {len(keys)} keys and {len(offsets)} offsets for {record.num_samples} samples; "
                "there must be one key per sample and one offset more"
            )
        if offsets != sorted(set(offsets)) or offsets[:1] != [0]:
            raise ValueError(f"{where}: offsets must be whole numbers that rise from 0")
        if offsets[-1] > record.bytes:
            raise ValueError(f"{where}: offsets end at {offsets[-1]}; the shard has {record.bytes} bytes")
        media, sources = (_take_digests(fields, name, record.num_samples) for name in ("media", "sources"))
        return cls(record, keys, offsets, media, sources)


def _take_digests(fields: Fields, name: str, num_samples: int) -> str:
    text = fields.text(name, "")
    if text and not re.fullmatch(f"[0-9a-f]{{{16 * num_samples}}}", text):
        raise fields.wrong(name, f"16 hex digits for each of {num_samples} samples")
    return text


@dataclass(frozen=True)
class ShardIndex:
    """index.json: the shards of a folder, the counts of samples, and the options that made them.

    split_parts: the parts of `avssl prep split` that the manifest's rows belong to, e.g. ["test"]; [] for none.
    has_captions: whether any row of the manifest has one.
    """

    shards: list[ShardRecord]
    num_samples: int
    num_listed: int
    num_skipped: int
    skipped_by_reason: dict[str, int]
    label_names: dict[str, list[str]]
    options: dict[str, Any]
    manifest_sha256: str
    split_parts: list[str] = field(default_factory=list)
    has_captions: bool = False

    @property
    def total_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)

    def to_json(self) -> bytes:
        """The bytes of the file."""
        derived = {
            "schema_version": SCHEMA_VERSION,
            "format": FORMAT_NAME,
            "num_shards": len(self.shards),
            "num_written": self.num_samples,
            "total_bytes": self.total_bytes,
        }
        record = asdict(self) | derived
        if not self.split_parts:  # as in the folders of earlier versions, byte for byte
            del record["split_parts"]
        if not self.has_captions:
            del record["has_captions"]
        return (dump(record, sort_keys=True, indent=1) + "\n").encode("ascii")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read a folder's index.json and check it. FileNotFoundError or ValueError says what to do."""
        path = Path(folder) / INDEX_NAME
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: is missing, so {folder} is no finished shard folder; run `avssl prep write` "
                "(it continues where it stopped)"
            )
        fields, where = Fields.read(path), str(path)
        if fields.record.get("format") != FORMAT_NAME:
            raise fields.wrong("format", repr(FORMAT_NAME))
        _check_version(fields)
        index = cls(
            shards=[ShardRecord.of(record) for record in fields.sections("shards")],
            num_samples=fields.count("num_samples"),
            num_listed=fields.count("num_listed"),
            num_skipped=fields.count("num_skipped"),
            skipped_by_reason=fields.counts("skipped_by_reason"),
            label_names=fields.labels("label_names"),
            options=fields.mapping("options"),
            manifest_sha256=fields.text("manifest_sha256"),
            split_parts=fields.items("split_parts", str, []),
            has_captions=fields.flag("has_captions", False),
        )
        index._check_sums(fields, where)
        return index

    def _check_sums(self, fields: Fields, where: str) -> None:
        """ValueError unless counts, first indices and totals agree with each other."""
        first = 0
        for shard in self.shards:
            if shard.first_index != first:
                raise ValueError(f"{where}: {shard.name} begins at index {shard.first_index}; it must be {first}")
            first += shard.num_samples
        facts = {
            "num_samples": (self.num_samples, first),
            "num_written": (fields.count("num_written"), first),
            "num_shards": (fields.count("num_shards"), len(self.shards)),
            "total_bytes": (fields.count("total_bytes"), self.total_bytes),
            "num_skipped": (self.num_skipped, sum(self.skipped_by_reason.values())),
            "num_listed": (self.num_listed, first + self.num_skipped),
        }
        for name, (stated, counted) in facts.items():
            if stated != counted:
                raise ValueError(f"{where}: {name} is {stated}; the rest of the file says {counted}")
