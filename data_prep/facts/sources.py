"""Where samples come from: the rows of a manifest, or a shard folder; and the tasks in which they are measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol, Self

from avssl.files.location import is_remote
from avssl.files.storage import local_copy
from avssl.files.whole import sha256_file
from avssl.media.images import read_image
from avssl.shards.format import INDEX_NAME
from avssl.shards.keys import Segment
from avssl.shards.manifest import Entry
from avssl.shards.opened import Opened, opened, unreadable
from avssl.shards.sample_digests import members_sha256
from avssl.shards.shard_set import Sample, ShardSet
from avssl.types import MediaError
from data_prep.facts.measure import media_facts, picture_facts
from data_prep.facts.table import Row
from data_prep.index.mnist import IdxFile
from data_prep.write.reading import IMAGES_PER_TASK, check_unchanged
from data_prep.write.rows import ManifestRows, parent_of, scanned

SAMPLES_PER_TASK = 4  # of a shard folder; when one makes the process fail, each is read alone
MANIFEST_SUFFIX = ".jsonl"


class Task(Protocol):
    """Rows that one process measures one after the other."""

    @property
    def name(self) -> str:
        """For messages."""

    def measure(self) -> list[Row]:
        """The row of each sample; of one that cannot be read, with its reason. Runs in a worker."""

    def alone(self) -> list[Self]:
        """A task for each of its rows."""

    def failed(self, error: MediaError) -> Row:
        """The row of a task of one row, which could not be measured."""


@dataclass(frozen=True)
class FileTask:
    """Rows of a manifest. root: the folder (or URL) that paths are relative to."""

    entries: tuple[Entry, ...]
    root: str

    @property
    def name(self) -> str:
        """The location of its first file, for messages."""
        return str(self.entries[0].place.at(self.root))

    def measure(self) -> list[Row]:
        """A row for each entry. One that could not be indexed keeps the reason of the manifest."""
        return [self._row(entry) for entry in self.entries]

    def alone(self) -> list[FileTask]:
        """A task for each entry."""
        return [FileTask((entry,), self.root) for entry in self.entries]

    def failed(self, error: MediaError) -> Row:
        """What the manifest knows of its only entry, and the reason."""
        return _known(self.entries[0]) | _reason(error)

    def _row(self, entry: Entry) -> Row:
        if entry.error is not None:
            return _known(entry) | {name: entry.error[name] for name in ("reason", "message")}
        try:
            return _known(entry) | file_facts(entry, self.root)
        except MediaError as error:
            return _known(entry) | _reason(error)


def _known(entry: Entry) -> Row:
    return {"key": entry.key, "path": entry.path, "labels": _labels(entry.labels), "caption": entry.caption or None}


def _labels(labels: dict[str, list[str]]) -> str:
    return json.dumps(labels, sort_keys=True, ensure_ascii=False)  # as in tables of embeddings


def _reason(error: MediaError) -> Row:
    return {"reason": error.reason, "message": error.message}


def file_facts(entry: Entry, root: str) -> Row:
    """The columns of a row of a manifest. MediaError if it cannot be read."""
    place = entry.place.at(root)
    try:
        with opened(entry, root) as media:
            check_unchanged(entry, media, media.content)
            return _of_media(entry, media)
    except MediaError:
        raise
    except OSError as error:
        raise unreadable(place.path, error) from error
    except ValueError as error:  # FFmpeg refuses it in a way that has no reason of its own
        raise MediaError("decode_error", f"{place}: cannot be decoded ({type(error).__name__}: {error})") from error


def _of_media(entry: Entry, media: Opened) -> Row:
    if entry.item is not None:
        assert isinstance(media.media, Path)  # many images in one file lie in no archive
        pixels = IdxFile(str(media.media)).image(entry.item)
        content = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        return picture_facts(pixels) | {"content": content, "bytes": pixels.nbytes}
    if entry.is_image:
        columns = picture_facts(read_image(media.media, name=media.name).numpy())
    else:
        sound = media.media if media.sound is None else media.sound
        columns = media_facts(media.media, sound, media.name, entry.segment)
    return columns | {"content": content_of(media, entry.segment), "bytes": media.num_bytes}


def content_of(media: Opened, segment: Segment | None) -> str:
    """What tells exact duplicates: sha256 of the media; of some seconds of a file, sha256 of a digest of parts of the
    file and of the seconds, because each of a thousand segments of a long film has one.
    """
    if segment is not None:
        return hashlib.sha256(f"{media.content} {segment[0]!r} {segment[1]!r}".encode()).hexdigest()
    files = [media.media] if media.sound is None else [media.media, media.sound]
    digests = [hashlib.sha256(one).hexdigest() if isinstance(one, bytes) else sha256_file(one) for one in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


@dataclass(frozen=True)
class ManifestCorpus:
    """The rows of a manifest. root: the folder (or URL) that their paths are relative to."""

    rows: ManifestRows
    root: str

    @property
    def num_rows(self) -> int:
        """The number of listed samples."""
        return len(self.rows)

    def tasks(self, begin: int, end: int) -> Iterator[FileTask]:
        """The tasks of rows [begin, end): images together, other files each alone."""
        batch: list[Entry] = []
        for entry in self.rows.read(range(begin, end)):
            batch.append(entry)
            if not (entry.is_image or entry.error) or len(batch) == IMAGES_PER_TASK:
                yield FileTask(tuple(batch), self.root)
                batch = []
        if batch:
            yield FileTask(tuple(batch), self.root)


@dataclass(frozen=True)
class ShardTask:
    """Samples of a shard folder, from the index `begin` on. keys: theirs."""

    location: str
    begin: int
    keys: tuple[str, ...]

    @property
    def name(self) -> str:
        """The folder and the key of its first sample, for messages."""
        return f"{self.location}, sample {self.keys[0]}"

    def measure(self) -> list[Row]:
        """A row for each sample."""
        return [self._row(self.begin + number, key) for number, key in enumerate(self.keys)]

    def alone(self) -> list[ShardTask]:
        """A task for each sample."""
        return [ShardTask(self.location, self.begin + number, (key,)) for number, key in enumerate(self.keys)]

    def failed(self, error: MediaError) -> Row:
        """The key of its only sample, and the reason."""
        return _unread(self.keys[0]) | _reason(error)

    def _row(self, number: int, key: str) -> Row:
        try:
            sample = _opened(self.location).read(number)
        except MediaError as error:
            return _unread(key) | _reason(error)
        info = sample.info
        known: Row = {"key": key, "path": str(info.source.get("path", key)), "labels": _labels(info.labels)}
        known["caption"] = info.caption or None
        try:
            return known | sample_facts(sample, f"{self.location}, sample {key}")
        except MediaError as error:
            return known | _reason(error)


def _unread(key: str) -> Row:
    return {"key": key, "path": key, "labels": _labels({})}


@lru_cache(maxsize=2)
def _opened(location: str) -> ShardSet:
    return ShardSet(location)


def sample_facts(sample: Sample, name: str) -> Row:
    """The columns of what a shard stores of a sample. MediaError if it cannot be read."""
    parts = [part for part in (sample.video, sample.audio, sample.image) if part is not None]
    known = {"content": members_sha256(sample), "bytes": sum(map(len, parts))}
    if sample.image is not None:
        return picture_facts(read_image(sample.image, name=name).numpy()) | known
    first = parts[0]  # the schema has checked that there is one; it stands for a stream that is absent
    columns = media_facts(sample.video or first, sample.audio or first, name)
    return columns | known | {"duration_seconds": sample.info.duration_seconds}


@dataclass(frozen=True)
class ShardCorpus:
    """The samples of a shard folder, in the order of their indices."""

    shards: ShardSet

    @property
    def num_rows(self) -> int:
        """The number of samples."""
        return self.shards.num_samples

    def tasks(self, begin: int, end: int) -> Iterator[ShardTask]:
        """The tasks of samples [begin, end)."""
        for first in range(begin, end, SAMPLES_PER_TASK):
            keys = tuple(self.shards.keys[first : min(first + SAMPLES_PER_TASK, end)])
            yield ShardTask(self.shards.location, first, keys)


Corpus = ManifestCorpus | ShardCorpus


def is_manifest(location: str) -> bool:
    """Whether a corpus is a manifest; else it is a shard folder."""
    return location.endswith(MANIFEST_SUFFIX) and (is_remote(location) or not Path(location).is_dir())


def corpus_identity(location: str) -> dict[str, str]:
    """What tells a corpus from others: of a manifest's path or URL (.jsonl), or of a shard folder's.

    FileNotFoundError or ValueError if it is neither, or damaged.
    """
    if is_manifest(location):
        if not is_remote(location) and not Path(location).is_file():
            raise FileNotFoundError(f"{location}: no such manifest; make one with `avssl prep index`")
        with local_copy(location) as path:
            return {"kind": "manifest", "sha256": sha256_file(path)}
    if not is_remote(location) and not (Path(location) / INDEX_NAME).is_file():
        raise FileNotFoundError(
            f"{location}: is neither a manifest of `avssl prep index` (.jsonl) nor a finished shard folder"
        )
    return {"kind": "shards", "sha256": ShardSet(location).fingerprint}


def open_corpus(location: str, scratch: Path, num_workers: int) -> Corpus:
    """The corpus of a location. scratch: a folder for where the rows of a manifest begin. Raises as corpus_identity."""
    if is_manifest(location):
        return ManifestCorpus(scanned(location, scratch, num_workers), parent_of(location))
    return ShardCorpus(ShardSet(location))
