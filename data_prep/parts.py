"""A run of the shuffled manifest, read file by file in a sandbox and stored as a part.

A part is three files below .parts: part-N.bin, the media one after the other; part-N.records, what lies where; and
part-N.json, the summary, written last: a part is done when it is there. It has no sample indices yet: these need the
counts of all parts before it (pack.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import tee
from pathlib import Path
from typing import Any, Self

from avssl.data.shards import Sample, SampleInfo, dump_json
from avssl.data.storage import is_remote, local_copy
from avssl.types import MediaError
from data_prep.files import HashedFile, atomic_file
from data_prep.folder import OutputFolder
from data_prep.images import store_file, store_item
from data_prep.manifest import Entry
from data_prep.mnist import PictureFile
from data_prep.options import PolicyError, WriteOptions
from data_prep.pool import Limits, Sandbox
from data_prep.transcode import Transcoded, transcode

PARTS = ".parts"
MEMBERS = ("video", "audio", "image")
PICTURES_PER_TASK = 64

Transcode = Callable[[str, WriteOptions, tuple[float, float] | None], Transcoded]
Outcome = Sample | MediaError | PolicyError


@dataclass(frozen=True)
class Work:
    """How files become samples. root: the folder (or URL) that the manifest's paths are relative to."""

    root: str
    options: WriteOptions
    limits: Limits = field(default_factory=Limits)
    transcode: Transcode = transcode


@dataclass(frozen=True)
class PartTask:
    """Rows of the manifest, in their order, that make a part.

    kept: keys that an earlier attempt (number kept_attempt) wrote already and that are taken over.
    """

    number: int
    entries: tuple[Entry, ...]
    attempt: int = 1
    kept: frozenset[str] = frozenset()
    kept_attempt: int = 0

    @property
    def to_read(self) -> list[Entry]:
        """What must be read now: not what is kept, nor what the manifest knows to be unreadable."""
        return [entry for entry in self.entries if entry.key not in self.kept and entry.error is None]


@dataclass(frozen=True)
class PartSummary:
    """part-N.json. skipped: {"path", "key", "reason", "message"} each; sha256: of the media."""

    num_written: int
    skipped: list[dict[str, str]]
    label_names: dict[str, list[str]]
    sha256: str
    attempt: int

    @classmethod
    def load(cls, folder: OutputFolder, number: int) -> Self | None:
        """The summary of a part that is done, else None."""
        name = part_name(number, "json")
        return cls(**json.loads(folder.read_bytes(name))) if folder.exists(name) else None

    def is_done(self, attempt: int) -> bool:
        """Need nothing of this part be read in this attempt?"""
        return self.attempt >= attempt or not self.skipped


def part_name(number: int, suffix: str, attempt: int = 1) -> str:
    """A file of a part, as a name in the output folder: suffix bin, records or json.

    Media and records have the attempt in their names, so that the summary, which tells it, changes all at once.
    """
    again = f".{attempt}" if attempt > 1 and suffix != "json" else ""
    return f"{PARTS}/part-{number:06d}{again}.{suffix}"


def source_path(root: str, path: str) -> str:
    """Where a file of the manifest lies: a URL or an absolute path as it is, others below the manifest's folder."""
    if is_remote(path):
        return path
    return f"{root}/{path}" if is_remote(root) else str(Path(root) / path)


# --- what runs in the sandbox ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileTask:
    """Files that one process reads one after the other: one video or sound, or several pictures."""

    entries: tuple[Entry, ...]
    work: Work

    @property
    def name(self) -> str:
        """For messages."""
        return source_path(self.work.root, self.entries[0].path)


def read_files(task: FileTask) -> list[Outcome]:
    """Runs in a worker: each file as a sample without index, or why there is none."""
    return [_read_file(entry, task.work) for entry in task.entries]


def _read_file(entry: Entry, work: Work) -> Outcome:
    path = source_path(work.root, entry.path)
    try:
        with local_copy(path) as local:
            if entry.is_image:
                return _image_sample(str(local), entry, work.options)
            return _media_sample(str(local), entry, work)
    except (MediaError, PolicyError) as error:
        return error
    except FileNotFoundError as error:
        return MediaError("missing_file", f"{path}: {error}")
    except OSError as error:
        return MediaError("unreachable", f"{path}: {error}")
    except ValueError as error:  # FFmpeg or the encoder refuses it in a way that has no reason of its own
        return MediaError("decode_error", f"{path}: cannot be transcoded ({type(error).__name__}: {error})")


def _media_sample(path: str, entry: Entry, work: Work) -> Sample:
    result = work.transcode(path, work.options, entry.segment)
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
        source=_source(entry) | result.info.to_json(),
    )
    return Sample(info, result.video, result.audio)


def _image_sample(path: str, entry: Entry, options: WriteOptions) -> Sample:
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
        source=_source(entry) | stored.source,
        image_height_px=stored.height_px,
        image_width_px=stored.width_px,
    )
    return Sample(info, None, None, stored.content)


def _source(entry: Entry) -> dict[str, Any]:
    facts: dict[str, Any] = {"path": entry.path, "bytes": entry.num_bytes}
    return facts if entry.segment is None else facts | {"segment": list(entry.segment)}


# --- parts ----------------------------------------------------------------------------------------------------------


def make_parts(
    folder: OutputFolder,
    work: Work,
    tasks: Iterable[PartTask],
    sandbox: Sandbox,
    done: Callable[[Outcome], None] | None = None,
) -> Iterator[PartSummary]:
    """Read the files of all parts and store each part as soon as its last file is read.

    done: told of every file. Files of the parts that follow are read ahead, so that no process waits at a part's end.
    Raises PolicyError where a policy says that a file ends the run.
    """
    ahead, here = tee(tasks)
    outcomes = read_all(sandbox, work, (entry for task in ahead for entry in task.to_read))
    for task in here:
        with PartWriter(folder, task) as part:
            for entry, outcome in _with_known(folder, task, outcomes):
                if isinstance(outcome, PolicyError):
                    raise outcome
                part.add(entry, outcome)
                if done is not None:
                    done(outcome)
        yield part.summary


def read_all(sandbox: Sandbox, work: Work, entries: Iterable[Entry]) -> Iterator[Outcome]:
    """What becomes of each entry, in their order."""
    for task, outcomes in sandbox.run(read_files, _file_tasks(work, entries), lambda task: task.name):
        if not isinstance(outcomes, MediaError):
            yield from outcomes
        elif len(task.entries) == 1:
            yield outcomes
        else:  # one of several pictures did it: each alone
            yield from (one for entry in task.entries for one in read_all(sandbox, work, [entry]))


def _file_tasks(work: Work, entries: Iterable[Entry]) -> Iterator[FileTask]:
    batch: list[Entry] = []
    for entry in entries:
        batch.append(entry)
        if not entry.is_image or len(batch) == PICTURES_PER_TASK:
            yield FileTask(tuple(batch), work)
            batch = []
    if batch:
        yield FileTask(tuple(batch), work)


def _with_known(folder: OutputFolder, task: PartTask, read: Iterator[Outcome]) -> Iterator[tuple[Entry, Outcome]]:
    """Every entry of a part with its outcome: kept from an earlier attempt, known from the manifest, or just read."""
    kept = load_samples(folder, task.number, task.kept_attempt) if task.kept else iter(())
    for entry in task.entries:
        if entry.key in task.kept:
            yield entry, next(kept)
        elif entry.error is not None:
            yield entry, MediaError(entry.error["reason"], entry.error["message"])  # type: ignore[arg-type]
        else:
            yield entry, next(read)


class PartWriter:
    """Writes one part; a context manager. Nothing is there unless the block ends well."""

    def __init__(self, folder: OutputFolder, task: PartTask) -> None:
        self._folder, self._task = folder, task
        self._records: list[bytes] = []
        self._skipped: list[dict[str, str]] = []
        self._labels: dict[str, set[str]] = {}
        self._scratch = folder.scratch(part_name(task.number, "bin", task.attempt))
        self._atomic = atomic_file(self._scratch)
        self._file: HashedFile
        self.summary: PartSummary

    def add(self, entry: Entry, outcome: Sample | MediaError) -> None:
        """The next file of the part."""
        if isinstance(outcome, MediaError):
            reason, message = outcome.reason, outcome.message
            self._skipped.append({"path": entry.path, "key": entry.key, "reason": reason, "message": message})
            return
        place: dict[str, Any] = {}
        for name in MEMBERS:
            content = getattr(outcome, name)
            place[name] = None if content is None else [self._file.tell(), len(content)]
            if content is not None:
                self._file.write(content)
        self._records.append(dump_json(place | {"info": vars(outcome.info)}))
        for label_field, names in outcome.info.labels.items():
            self._labels.setdefault(label_field, set()).update(names)

    def __enter__(self) -> Self:
        self._file = self._atomic.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, at: Any) -> None:
        self._atomic.__exit__(kind, error, at)
        if kind is not None:
            return
        number, attempt = self._task.number, self._task.attempt
        labels = {name: sorted(values) for name, values in sorted(self._labels.items())}
        counts = len(self._records), self._skipped, labels
        self.summary = PartSummary(*counts, self._file.sha256, attempt)
        self._folder.put_file(self._scratch, part_name(number, "bin", attempt))
        self._folder.write_bytes(part_name(number, "records", attempt), b"".join(self._records))
        self._folder.write_bytes(part_name(number, "json"), dump_json(asdict(self.summary)))


def load_samples(folder: OutputFolder, number: int, attempt: int, first_index: int = 0) -> Iterator[Sample]:
    """The samples of a part that is done, indices from first_index on."""
    records = folder.read_bytes(part_name(number, "records", attempt)).splitlines()
    with folder.local_file(part_name(number, "bin", attempt)) as path, path.open("rb") as media:
        for index, line in enumerate(records, start=first_index):
            record = json.loads(line)
            content: dict[str, bytes | None] = {}
            for name in MEMBERS:
                content[name] = None
                if record[name] is not None:
                    offset, size = record[name]
                    media.seek(offset)
                    content[name] = media.read(size)
            where = f"part record {record['info'].get('key')}"
            info = SampleInfo.from_json(record["info"] | {"index": index}, where)
            yield Sample(info, content["video"], content["audio"], content["image"])
