"""The manifest, corpus.jsonl: one json object per line for every listed file, including those that cannot be used.

A line is a file, some seconds of one (`segment`), one image of a file that holds many (`item`), or a member of an
archive or a value of a table (`within`). A manifest lists either video and audio files, or images.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from avssl.files.checked_json import Fields, parse
from avssl.files.plain_text import brief
from avssl.shards.format import dump_json
from avssl.shards.keys import Segment
from avssl.shards.places import Place, Within, within_of
from avssl.types import FAILURE_REASONS, FailureReason

KEY = re.compile(r"[A-Za-z0-9_/-]+")
MAX_ITEMS, MAX_SEGMENT_SECONDS = 2**31, 1e9
MEDIA_FACTS = ("container", "duration_seconds", "video", "audio")


@dataclass(frozen=True)
class Entry:
    """A line of the manifest.

    path: absolute, or relative to the manifest's folder. key: unique, [A-Za-z0-9_/-] only. labels: {field: [names]}.
    media: what probing found (MediaInfo.to_json; {"image": ImageInfo.to_json or None} of an image), {} if it failed.
    error: {"reason", "message"} or None. num_bytes: file size when it was indexed. item: number of an image in the
    file, from 0; None: the file is the sample. segment: (begin, end) in seconds from the start of the stream that
    starts first; None: the whole file is the sample. content: files.content_digest when it was indexed; "" for a file
    that was not opened, or that holds many images. part: that `avssl prep split` put it in, e.g. "test"; "" for none.
    caption: text that describes the sample; "" for none. within: where in the file the media lies (places.py); None: it
    is the file; then num_bytes and content are those of the media. sound: where the audio lies if it is apart from the
    video, both from their own time 0; num_bytes is the sum, content the digest of both.
    """

    path: str
    key: str
    labels: dict[str, list[str]]
    media: dict[str, Any]
    error: dict[str, str] | None
    num_bytes: int
    item: int | None = None
    segment: Segment | None = None
    content: str = ""
    part: str = ""
    caption: str = ""
    within: Within | None = None
    sound: Place | None = None

    @property
    def place(self) -> Place:
        """Where the media lies, but for a sound apart."""
        return Place(self.path, self.within)

    @property
    def is_image(self) -> bool:
        """Whether the entry is an image, even one that cannot be read."""
        return "image" in self.media

    def to_json(self) -> bytes:
        """The entry as a line of the manifest."""
        record: dict[str, Any] = {"path": self.path, "key": self.key, "labels": self.labels, "error": self.error}
        names = ("image",) if self.is_image else MEDIA_FACTS
        record |= {name: self.media.get(name) for name in names} | {"bytes": self.num_bytes}
        if self.item is not None:
            record["item"] = self.item
        if self.segment is not None:
            record["segment"] = list(self.segment)
        if self.content:
            record["content"] = self.content
        if self.part:
            record["part"] = self.part
        if self.caption:
            record["caption"] = self.caption
        if self.within is not None:
            record["within"] = self.within.to_json()
        if self.sound is not None:
            record["sound"] = self.sound.to_json()
        return dump_json(record)

    @classmethod
    def from_json(cls, record: Any, where: str) -> Self:
        """The entry of a parsed line. ValueError names `where` and the field that does not fit."""
        fields = Fields.of(record, where)
        path, key, labels = fields.text("path"), fields.text("key"), fields.labels("labels")
        if not path or "\0" in path:
            raise fields.wrong("path", "the path or URL of a file")
        if not KEY.fullmatch(key):
            raise fields.wrong("key", "made of A-Z a-z 0-9 _ / - only")
        item = record.get("item")
        if item is not None and (type(item) is not int or not 0 <= item < MAX_ITEMS or not record.get("image")):
            raise fields.wrong("item", "a number from 0, of an image")
        media = {name: record.get(name) for name in (("image",) if "image" in record else MEDIA_FACTS)}
        _check_media(fields, media)
        segment, content = read_segment(record.get("segment"), where), fields.text("content", "")
        part, caption = fields.text("part", ""), fields.text("caption", "")
        within, sound = within_of(fields), sound_of(fields)
        num_bytes = fields.count("bytes", 0)
        given = item, segment, content, part, caption, within, sound
        return cls(path, key, labels, media, _error(fields), num_bytes, *given)


def sound_of(fields: Fields) -> Place | None:
    """The place of a sound apart, of a record; None if there is none. ValueError names the field that does not fit."""
    return None if fields.record.get("sound") is None else Place.from_json(fields.section("sound"))


def _error(fields: Fields) -> dict[str, str] | None:
    """The reason and message that say why the file cannot be used; None if it can be used."""
    if fields.record.get("error") is None:
        return None
    error = fields.section("error")
    error.choice("reason", FAILURE_REASONS)
    error.text("message", "")
    return {"message": "", **error.record}


def _check_media(fields: Fields, media: dict[str, Any]) -> None:
    """ValueError if a fact that is used before the file is opened again has a wrong type."""
    if media.get("container") is not None:
        fields.text("container")
    if media.get("duration_seconds") is not None:
        fields.number("duration_seconds", least=0)
    for name in ("video", "audio", "image"):
        if media.get(name) is not None:
            inner = fields.section(name)
            for fact, value in inner.record.items():
                if fact.endswith(("_seconds", "_fps", "fps", "_hz", "_px", "_bytes")) and value is not None:
                    inner.number(fact)


@dataclass(frozen=True)
class FileSource:
    """A file to embed, or some seconds of one, as a manifest lists it.

    path: absolute, or a URL. segment: the seconds that are the source, from the start of the stream that starts first;
    None: all of it. error: (reason, message) why it cannot be used, if that is known already. within, sound: as of
    Entry. caption: text; "" for none where other sources have one, None where none has.
    """

    path: str
    key: str
    labels: dict[str, list[str]] = field(default_factory=dict)
    segment: Segment | None = None
    error: tuple[FailureReason, str] | None = None
    within: Within | None = None
    sound: Place | None = None
    caption: str | None = None

    @property
    def place(self) -> Place:
        """Where the media lies, but for a sound apart."""
        return Place(self.path, self.within)


def read_segment(value: Any, where: str) -> Segment | None:
    """[begin, end] in seconds, 0 <= begin < end, or None. ValueError names `where`."""
    if value is None:
        return None
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2 and {type(end) for end in value} <= {int, float}
    if not is_pair or not 0 <= value[0] < value[1] or not value[1] <= MAX_SEGMENT_SECONDS:
        raise ValueError(f"{where}: segment is {brief(value)}; it must be [begin, end] in seconds, 0 <= begin < end")
    return float(value[0]), float(value[1])


def stream_manifest(path: Path) -> Iterator[Entry]:
    """The entries in order. ValueError names the line; FileNotFoundError says what to do."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such manifest; make one with `avssl prep index`")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            yield Entry.from_json(parse(line, where), where)


def has_captions(path: Path) -> bool:
    """Whether any entry of a manifest has a caption; lines that cannot have one are not parsed."""
    with path.open("rb") as file:
        lines = ((number, line) for number, line in enumerate(file, start=1) if b'"caption"' in line)
        return any(Fields.parse(line, f"{path}, line {number}").text("caption", "") for number, line in lines)


def with_line(message: str, path: Path) -> str:
    """The message of an error about a manifest with "line 2" instead of "byte 123"."""
    before, _, rest = message.partition(f"{path}, byte ")
    offset, _, text = rest.partition(":")
    if not offset.isdecimal():
        return message
    with path.open("rb") as file:
        line = 1 + sum(block.count(b"\n") for block in _blocks(file, int(offset)))
    return f"{before}{path}, line {line}:{text}"


def _blocks(file: Any, num_bytes: int) -> Iterator[bytes]:
    while num_bytes > 0 and (block := file.read(min(num_bytes, 1 << 20))):
        num_bytes -= len(block)
        yield block
