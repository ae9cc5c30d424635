"""The columns of shards as a Hugging Face data set: their types, and the row of a sample."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from avssl.exchange.targets.hf_parquet import Feature, class_label, list_of, value
from avssl.files.plain_text import plain
from avssl.shards.format import SampleInfo
from avssl.shards.keys import label_columns
from avssl.shards.manifest import read_segment
from avssl.shards.shard_set import Sample, image_member

MAX_CLASSES, SAMPLES_PER_CLASS = 10_000, 2
MEDIA = ("video", "audio", "image")
OWN = {
    "key", "index", *MEDIA, "duration_seconds", "video_fps", "num_frames", "audio_rate_hz", "num_audio_samples",
    "av_offset_seconds", "source_begin_seconds", "source_end_seconds", "caption",
}  # fmt: skip


@dataclass
class Contents:
    """What the samples of all splits have, of one reading of their json.

    counts: {split: Counter of samples with "video", "audio", "image", "caption", "segment"}. seconds: {split: sum of
    durations}. names: {label field: Counter of its names}, of which no more are kept than classes may be. several:
    fields of which some sample has more than one name.
    """

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    names: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    several: set[str] = field(default_factory=set)

    def add(self, split: str, info: SampleInfo) -> None:
        """Count a sample."""
        present = {"video": info.has_video, "audio": info.has_audio, "image": info.has_image}
        present |= {"caption": bool(info.caption), "segment": info.source.get("segment") is not None}
        self.counts.setdefault(split, Counter()).update(name for name, has in present.items() if has)
        self.seconds[split] = self.seconds.get(split, 0.0) + info.duration_seconds
        for name, labels in info.labels.items():
            counter = self.names[name]
            counter.update(label for label in labels if label in counter or len(counter) <= MAX_CLASSES)
            if len(labels) > 1:
                self.several.add(name)

    def has(self, name: str) -> bool:
        """Whether any sample has a modality or a caption."""
        return any(counts[name] for counts in self.counts.values())

    def is_class(self, name: str) -> bool:
        """Whether the names of a label field are classes: at most MAX_CLASSES, each of SAMPLES_PER_CLASS on average."""
        names = self.names[name]
        return 0 < len(names) <= MAX_CLASSES and names.total() >= SAMPLES_PER_CLASS * len(names)

    @cached_property
    def numbers(self) -> dict[str, dict[str, int]]:
        """{label field that is a class: {name: its number}}, to be asked for when all samples are counted."""
        fields = [name for name in self.names if self.is_class(name)]
        return {field: {name: number for number, name in enumerate(sorted(self.names[field]))} for field in fields}

    @cached_property
    def columns(self) -> dict[str, str]:
        """{label field: its column}, to be asked for when all samples are counted."""
        return columns_of(self.names)

    @cached_property
    def features(self) -> dict[str, Feature]:
        """{column: its type of `datasets`}; the classes of a label field are numbered by the order of their names."""
        columns: dict[str, Feature] = {"key": value("string"), "index": value("int64")}
        columns |= {name: {"_type": name.capitalize()} for name in MEDIA if self.has(name)}
        columns["duration_seconds"] = value("float64")
        if self.has("video"):
            columns |= {"video_fps": value("float64"), "num_frames": value("int64")}
        if self.has("audio"):
            columns |= {"audio_rate_hz": value("int64"), "num_audio_samples": value("int64")}
        if self.has("video") and self.has("audio"):
            columns["av_offset_seconds"] = value("float64")
        if self.has("segment"):
            columns |= {"source_begin_seconds": value("float64"), "source_end_seconds": value("float64")}
        if self.has("caption"):
            columns["caption"] = value("string")
        for name in sorted(self.names):
            one = class_label(sorted(self.names[name])) if self.is_class(name) else value("string")
            columns[self.columns[name]] = list_of(one) if name in self.several else one
        return columns

    def row(self, sample: Sample) -> dict[str, Any]:
        """The columns of a sample, and some that a data set may lack."""
        info = sample.info
        stem = info.key.replace("/", "_")
        media = {
            "video": (sample.video, f"{stem}.mp4"),
            "audio": (sample.audio, f"{stem}.flac"),
            "image": (sample.image, stem + image_member(sample.image).removeprefix("image") if sample.image else ""),
        }
        begin, end = read_segment(info.source.get("segment"), info.key) or (None, None)
        row: dict[str, Any] = {
            **{name: getattr(info, name) for name in ("key", "index", "duration_seconds", "av_offset_seconds")},
            **{name: {"bytes": content, "path": path} if content else None for name, (content, path) in media.items()},
            "video_fps": info.video_fps if info.has_video else None,
            "num_frames": info.num_frames if info.has_video else None,
            "audio_rate_hz": info.audio_rate_hz if info.has_audio else None,
            "num_audio_samples": info.num_audio_samples if info.has_audio else None,
            "source_begin_seconds": begin,
            "source_end_seconds": end,
            "caption": info.caption or None,
        }
        for name in self.names:
            labels: list[Any] = info.labels.get(name, [])
            if name in self.numbers:
                labels = [self.numbers[name][label] for label in labels]
            row[self.columns[name]] = labels if name in self.several else labels[0] if labels else None
        return row


def columns_of(fields: Iterable[str]) -> dict[str, str]:
    """{label field: its column} of a data set with these fields."""
    return label_columns(sorted(fields), OWN, plain)
