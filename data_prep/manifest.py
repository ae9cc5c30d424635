"""The manifest, corpus.jsonl: one json object a line for everything found, also what cannot be used.

A line is a file, or one picture of a file that holds many (then it has an `item`). A manifest lists either videos and
sounds, or pictures.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from avssl.data.shards import dump_json
from avssl.types import FAILURE_REASONS

MEDIA_FACTS = ("container", "duration_seconds", "video", "audio")


@dataclass(frozen=True)
class Entry:
    """A line of the manifest.

    path: absolute, or relative to the manifest's folder. key: unique, [A-Za-z0-9_/-] only. labels: {field: [names]}.
    media: what probing found (MediaInfo.to_json; {"image": ImageInfo.to_json or None} of a picture), {} if it failed.
    error: {"reason", "message"} or None. num_bytes: file size when it was indexed. item: number of a picture inside the
    file, from 0; None: the file is the sample. segment: (begin, end) in seconds from the start of the stream that
    starts first, if only these seconds of a video or a sound are the sample.
    """

    path: str
    key: str
    labels: dict[str, list[str]]
    media: dict[str, Any]
    error: dict[str, str] | None
    num_bytes: int
    item: int | None = None
    segment: tuple[float, float] | None = None

    @property
    def is_image(self) -> bool:
        """Is it a picture, if perhaps a broken one?"""
        return "image" in self.media

    def to_json(self) -> bytes:
        """The line."""
        record: dict[str, Any] = {"path": self.path, "key": self.key, "labels": self.labels, "error": self.error}
        names = ("image",) if self.is_image else MEDIA_FACTS
        record |= {name: self.media.get(name) for name in names} | {"bytes": self.num_bytes}
        if self.item is not None:
            record["item"] = self.item
        if self.segment is not None:
            record["segment"] = list(self.segment)
        return dump_json(record)

    @classmethod
    def from_json(cls, record: Any, where: str) -> Self:
        """Check; ValueError names `where`."""
        if not isinstance(record, dict):
            raise ValueError(f"{where}: must be a json object")
        path, key, labels, error = (record.get(name) for name in ("path", "key", "labels", "error"))
        if not isinstance(path, str) or not isinstance(key, str) or not key or re.search(r"[^A-Za-z0-9_/-]", key):
            raise ValueError(f"{where}: path is {path!r}, key is {key!r}; the key may hold A-Z a-z 0-9 _ / - only")
        if not isinstance(labels, dict) or not all(isinstance(names, list) for names in labels.values()):
            raise ValueError(f"{where}: labels is {labels!r}; it must be {{field: [names]}}")
        if error is not None and (not isinstance(error, dict) or error.get("reason") not in FAILURE_REASONS):
            raise ValueError(f"{where}: error is {error!r}; its reason must be one of {', '.join(FAILURE_REASONS)}")
        item = record.get("item")
        if item is not None and (type(item) is not int or item < 0 or not record.get("image")):
            raise ValueError(f"{where}: item is {item!r}; it must be a number from 0, of a picture")
        media = {name: record.get(name) for name in (("image",) if "image" in record else MEDIA_FACTS)}
        segment = read_segment(record.get("segment"), where)
        return cls(path, key, labels, media, error, int(record.get("bytes", 0)), item, segment)


def read_segment(value: Any, where: str) -> tuple[float, float] | None:
    """[begin, end] in seconds, 0 <= begin < end, or None. ValueError names `where`."""
    if value is None:
        return None
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2 and all(type(one) in (int, float) for one in value)
    if not is_pair or not 0 <= value[0] < value[1] or not math.isfinite(value[1]):
        raise ValueError(f"{where}: segment is {value!r}; it must be [begin, end] in seconds, 0 <= begin < end")
    return float(value[0]), float(value[1])


def stream_manifest(path: Path) -> Iterator[Entry]:
    """The entries one by one. ValueError names the line; FileNotFoundError says what to do."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such manifest; make one with `python -m data_prep index`")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise ValueError(f"{where}: is not json ({error})") from error
            yield Entry.from_json(record, where)


def read_manifest(path: str | os.PathLike[str]) -> tuple[list[Entry], str]:
    """All entries and the manifest's sha256. ValueError names the line; FileNotFoundError says what to do."""
    path = Path(path)
    entries = list(stream_manifest(path))
    content = path.read_bytes()
    repeated = [key for key, count in Counter(entry.key for entry in entries).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: keys must be unique; repeated: {', '.join(repeated[:5])}")
    if len({entry.is_image for entry in entries}) > 1:
        raise ValueError(f"{path}: lists pictures beside videos or sounds; make a manifest of each")
    if not entries:
        raise ValueError(f"{path}: lists no files")
    return entries, hashlib.sha256(content).hexdigest()


def plain_key(path: str) -> str:
    """A path as a key: other characters than A-Z a-z 0-9 / - become _.

    Several such characters in a row become one _: webdataset takes members below __name__ for metadata and drops them.
    """
    return re.sub(r"[^A-Za-z0-9/-]+", "_", path)
