"""The command `coverage`: how many entries of a manifest were found, are decodable, have video or audio, were written;
in total and per class.

The manifest is read line by line. Every sample of a shard folder takes 13 bytes of memory. Of a remote folder only the
side-cars are fetched, which list the samples but not their lengths.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.files import storage
from avssl.files.checked_json import Fields
from avssl.files.plain_text import emit, say
from avssl.files.whole import sha256_file, write_whole
from avssl.shards.format import (
    INDEX_NAME,
    JSON_MEMBER,
    SKIPPED_NAME,
    SampleInfo,
    ShardIndex,
    ShardRecord,
    SideCar,
)
from avssl.shards.manifest import Entry, stream_manifest
from avssl.shards.tar_members import DAMAGED_TAR, member_content, open_tar
from avssl.types import FAILURE_REASONS
from data_prep.index.cutting import claimed_seconds

ABSENT = ("missing_file", "unreachable")
# Reasons of files that can be read and that an option of `write` leaves out.
POLICY = ("no_video", "no_audio", "too_short", "silent_audio", "still_video")
WRITTEN = 0  # the stored fate of a written sample; of a skipped one 1 + the position of the reason in FAILURE_REASONS
COLUMNS = ("listed", "found", "decodable", "with_video", "with_audio", "written", "skipped")
NAME_WIDTH = 36


@dataclass
class Counts:
    """Numbers of entries of a manifest, and their hours.

    found: their file exists. decodable: their file was opened, by `index` or `write`, and holds something that can be
    decoded. written, skipped: by `write`. listed_hours: as headers claim; written_hours: as decoded. reasons: why
    entries cannot be used.
    """

    listed: int = 0
    found: int = 0
    decodable: int = 0
    with_video: int = 0
    with_audio: int = 0
    written: int = 0
    skipped: int = 0
    listed_hours: float = 0.0
    written_hours: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, entry: Entry, fate: Fate | None) -> None:
        """Count an entry. fate: what `write` did with it; None if there are no shards."""
        reason = fate.reason if fate is not None else None
        if reason is None and entry.error is not None:
            reason = entry.error["reason"]
        is_written = fate is not None and fate.reason is None
        has_video = entry.media.get("video") is not None or (fate is not None and fate.has_video)
        has_audio = entry.media.get("audio") is not None or (fate is not None and fate.has_audio)
        has_media = has_video or has_audio or entry.media.get("image") is not None
        was_opened = is_written or (fate is not None and not any(entry.media.values()) and entry.error is None)
        self.listed += 1
        self.found += reason not in ABSENT
        self.decodable += (has_media or was_opened) and (reason is None or reason in POLICY)
        self.with_video += has_video
        self.with_audio += has_audio
        self.written += is_written
        self.skipped += fate is not None and fate.reason is not None
        self.listed_hours += _listed_seconds(entry) / 3600
        self.written_hours += fate.seconds / 3600 if fate is not None else 0.0
        if reason is not None:
            self.reasons[reason] += 1

    def to_json(self) -> dict[str, Any]:
        """The fields as a dict, hours rounded to about a second."""
        hours = {name: round(getattr(self, name), 4) for name in ("listed_hours", "written_hours")}
        return vars(self) | hours | {"reasons": dict(self.reasons)}


@dataclass
class Coverage:
    """The coverage of a manifest and of the shards made from it.

    classes: {label field: {name: counts}}; an entry with several names counts for each. unlabeled: entries without any
    label. num_not_opened: entries without facts, as `index --no-probe` makes them. has_shards: whether `write` is
    covered, too.
    """

    total: Counts = field(default_factory=Counts)
    classes: dict[str, dict[str, Counts]] = field(default_factory=dict)
    unlabeled: Counts = field(default_factory=Counts)
    num_not_opened: int = 0
    has_shards: bool = False

    def to_json(self) -> dict[str, Any]:
        """The coverage as nested dicts."""
        return {
            "total": self.total.to_json(),
            "classes": {
                field_name: {name: counts.to_json() for name, counts in names.items()}
                for field_name, names in self.classes.items()
            },
            "unlabeled": self.unlabeled.to_json(),
            "num_not_opened": self.num_not_opened,
            "has_shards": self.has_shards,
        }


@dataclass(frozen=True)
class Fate:
    """What `write` did with an entry. reason: why it was skipped; None: it was written. seconds: of the sample."""

    reason: str | None
    has_video: bool = False
    has_audio: bool = False
    seconds: float = 0.0


class Fates:
    """The fate of every entry by its key, in 13 bytes each: sorted hashes of the keys, and facts."""

    def __init__(self, location: str, index: ShardIndex) -> None:
        hashes: list[NDArray[np.uint64]] = []
        facts: list[NDArray[Any]] = []
        kinds = [("fate", "u1"), ("streams", "u1"), ("seconds", "f4")]
        for record in [*index.shards, None]:
            rows = list(_skipped(location) if record is None else _written(location, record))
            hashes.append(np.array([_hash(key) for key, *_ in rows], np.uint64))
            facts.append(np.array([row[1:] for row in rows], kinds))
        whole = np.concatenate(hashes)
        order = np.argsort(whole, kind="stable")
        self._hashes, self._facts = whole[order], np.concatenate(facts)[order]

    def of(self, key: str) -> Fate | None:
        """The fate of a key; None if it was neither written nor skipped."""
        value = _hash(key)
        position = int(np.searchsorted(self._hashes, value))
        if position == len(self._hashes) or self._hashes[position] != value:
            return None
        fate, streams, seconds = self._facts[position].tolist()
        reason = None if fate == WRITTEN else FAILURE_REASONS[fate - 1]
        return Fate(reason, bool(streams & 1), bool(streams & 2), seconds)


def _hash(key: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little"))


def _skipped(location: str) -> Iterator[tuple[str, int, int, float]]:
    """(key, fate, 0, 0.0) of each skipped file, as `_written`."""
    with storage.local_copy(storage.join(location, SKIPPED_NAME)) as path, path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            record = Fields.parse(line, f"{storage.join(location, SKIPPED_NAME)}, line {number}")
            yield record.text("key"), 1 + FAILURE_REASONS.index(record.choice("reason", FAILURE_REASONS)), 0, 0.0


def _written(location: str, record: ShardRecord) -> Iterator[tuple[str, int, int, float]]:
    """(key, WRITTEN, 1 for video + 2 for audio, seconds) of each sample of a shard."""
    if storage.is_remote(location):
        side_car = storage.join(location, Path(record.name).with_suffix(".json").name)
        with storage.local_copy(side_car) as path:
            yield from ((key, WRITTEN, 0, 0.0) for key in SideCar.load(path).keys)
        return
    path = storage.local_path(location) / record.name
    try:
        with open_tar(path) as archive:
            for member in archive:
                if member.name.endswith(f".{JSON_MEMBER}") and member.isreg():
                    content = member_content(archive, member, record.bytes)
                    info = SampleInfo.from_json(content, f"{path}, {member.name}")
                    yield info.key, WRITTEN, info.has_video + 2 * info.has_audio, info.duration_seconds
    except DAMAGED_TAR as error:
        raise ValueError(f"{path}: cannot be read ({error}); see `avssl prep verify`") from error


def _listed_seconds(entry: Entry) -> float:
    if entry.segment is not None:
        return entry.segment[1] - entry.segment[0]
    return claimed_seconds(entry.media) or 0.0


def measure(manifest: str, shards: str | None = None) -> Coverage:
    """The coverage of a manifest and of the shard folder that was made from it, each a path or URL.

    Raises:
        ValueError, FileNotFoundError: one of them is missing or damaged, or the shards are of another manifest.
    """
    coverage = Coverage(has_shards=shards is not None)
    fates: Fates | None = None
    with storage.local_copy(manifest) as path:
        if not path.is_file():
            raise FileNotFoundError(f"{manifest}: no such manifest; make one with `avssl prep index`")
        if shards is not None:
            with storage.local_copy(storage.join(shards, INDEX_NAME)) as index_path:
                index = ShardIndex.load(index_path.parent)
            if index.manifest_sha256 != sha256_file(path):
                raise ValueError(
                    f"{shards}: was not written from {manifest} as it is now; give the manifest that it was written "
                    "from, or write again"
                )
            fates = Fates(shards, index)
        for entry in stream_manifest(path):
            fate = None if fates is None else fates.of(entry.key)
            if fates is not None and fate is None:
                raise ValueError(f"{shards}: neither wrote nor skipped {entry.key}; see `avssl prep verify`")
            _add(coverage, entry, fate)
    return coverage


def _add(coverage: Coverage, entry: Entry, fate: Fate | None) -> None:
    coverage.total.add(entry, fate)
    coverage.num_not_opened += entry.error is None and not any(entry.media.values())
    if not any(entry.labels.values()):
        coverage.unlabeled.add(entry, fate)
    for label_field, names in entry.labels.items():
        for name in names:
            coverage.classes.setdefault(label_field, {}).setdefault(name, Counts()).add(entry, fate)


def table(coverage: Coverage, num_classes: int = 30) -> list[str]:
    """Lines of text: totals, reasons, and for each label field the num_classes with most entries (0: all)."""
    columns = COLUMNS if coverage.has_shards else COLUMNS[:5]
    hours = ("listed_hours", "written_hours") if coverage.has_shards else ("listed_hours",)

    def line(title: str, counts: Counts) -> str:
        title = title if len(title) <= NAME_WIDTH else f"{title[: NAME_WIDTH - 3]}..."
        cells = [f"{getattr(counts, name):>11,}" for name in columns]
        cells += [f"{getattr(counts, name):>14,.2f}" for name in hours]
        return f"{title:<{NAME_WIDTH}}{''.join(cells)}"

    titles = [f"{name.replace('_', ' '):>11}" for name in columns] + [f"{name.replace('_', ' '):>14}" for name in hours]
    lines = [" " * NAME_WIDTH + "".join(titles)]
    lines.append(line("all", coverage.total))
    if coverage.total.reasons:
        lines += ["", "cannot be used, because of"]
        lines += [f"  {name:<{NAME_WIDTH - 2}}{count:>11,}" for name, count in coverage.total.reasons.most_common()]
    for label_field, classes in sorted(coverage.classes.items()):
        ordered = sorted(classes.items(), key=lambda item: (-item[1].listed, item[0]))
        shown = ordered[:num_classes] if num_classes else ordered
        lines += ["", f"{label_field}: {len(classes)} classes", *(line(f"  {name}", counts) for name, counts in shown)]
        if len(shown) < len(ordered):
            lines.append(f"  and {len(ordered) - len(shown)} more; --classes 0 and --numbers show all")
    if coverage.classes and coverage.unlabeled.listed:
        lines += ["", line("without a label", coverage.unlabeled)]
    if coverage.num_not_opened:
        lines += ["", f"{coverage.num_not_opened:,} entries were not opened, or hold nothing that can be decoded"]
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `avssl prep coverage`."""
    parser.add_argument("manifest", help="a path or URL")
    parser.add_argument("shards", nargs="?", help="the shard folder that was written from it: a path or URL")
    parser.add_argument("--numbers", type=Path, metavar="FILE", help="also write all numbers to this file, as JSON")
    parser.add_argument("--classes", type=int, default=30, help="classes shown per label field, 0: all (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Measure the coverage and print it. The exit code is always 0."""
    if arguments.classes < 0:
        raise ValueError(f"--classes is {arguments.classes}; it must be 0 (all) or more")
    coverage = measure(arguments.manifest, arguments.shards)
    for line in table(coverage, arguments.classes):
        say(line)
    if arguments.numbers is not None:
        content = json.dumps(coverage.to_json(), sort_keys=True, indent=1, ensure_ascii=True)
        write_whole(arguments.numbers, f"{content}\n".encode())
    emit("result", **coverage.to_json())
    return 0
