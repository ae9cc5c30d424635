"""Parts: the files of consecutive shuffled rows are read in a sandbox and stored together.

A part is three files below .parts: part-N.bin, the media one after the other; part-N.records, the position of each
member; and part-N.json, the summary, written last: once it exists, the part is done. The samples have no indices yet,
because an index depends on the counts of all parts before (pack.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import tee
from typing import Any, Self

from avssl.files.checked_json import Fields
from avssl.files.whole import HashedFile
from avssl.processes.pool import Sandbox
from avssl.shards.format import SampleInfo, dump_json
from avssl.shards.manifest import Entry
from avssl.shards.shard_set import Sample
from avssl.types import MediaError
from data_prep.transcode.options import PolicyError
from data_prep.write.folder import OutputFolder
from data_prep.write.reading import FileOptions, Outcome, read_all

PARTS = ".parts"
MEMBERS = ("video", "audio", "image")


@dataclass(frozen=True)
class PartTask:
    """The rows of a part in their order.

    kept: keys that an earlier attempt (number kept_attempt) wrote and that are taken over.
    """

    number: int
    entries: tuple[Entry, ...]
    attempt: int = 1
    kept: frozenset[str] = frozenset()
    kept_attempt: int = 0

    @property
    def to_read(self) -> list[Entry]:
        """The entries that have to be read: not kept, and readable according to the manifest."""
        return [entry for entry in self.entries if entry.key not in self.kept and entry.error is None]


@dataclass(frozen=True)
class PartSummary:
    """The content of part-N.json. skipped: {"path", "key", "reason", "message"} per skipped file. sha256: of
    part-N.bin.
    """

    num_written: int
    skipped: list[dict[str, str]]
    label_names: dict[str, list[str]]
    sha256: str
    attempt: int

    @classmethod
    def load(cls, folder: OutputFolder, number: int) -> Self | None:
        """The summary of a part that is done; None if there is none that can be read."""
        name = part_name(number, "json")
        if not folder.exists(name):
            return None
        try:
            fields = Fields.parse(folder.read_bytes(name), folder.where(name))
            skipped = [
                {name: record.text(name) for name in ("path", "key", "reason", "message")}
                for record in fields.sections("skipped")
            ]
            counts = fields.count("num_written"), skipped, fields.labels("label_names")
            return cls(*counts, fields.text("sha256"), fields.count("attempt", least=1))
        except (ValueError, FileNotFoundError):  # truncated, changed, or removed in this moment
            return None

    def has_data(self, folder: OutputFolder, number: int) -> bool:
        """Whether its media and records exist. Packing checks the bytes of the media."""
        if not self.num_written:
            return True
        records = part_name(number, "records", self.attempt)
        if not folder.exists(part_name(number, "bin", self.attempt)) or not folder.exists(records):
            return False
        content = folder.read_bytes(records)
        return content.endswith(b"\n") and content.count(b"\n") == self.num_written

    def is_done(self, attempt: int) -> bool:
        """Whether no file of this part has to be read in the attempt with this number."""
        return self.attempt >= attempt or not self.skipped


def part_name(number: int, suffix: str, attempt: int = 1) -> str:
    """The name in the output folder of a file of a part. suffix: bin, records or json.

    Media and records of a later attempt have other names, so that replacing the summary, which states the attempt,
    replaces the whole part at once.
    """
    again = f".{attempt}" if attempt > 1 and suffix != "json" else ""
    return f"{PARTS}/part-{number:06d}{again}.{suffix}"


def make_parts(
    folder: OutputFolder,
    file_options: FileOptions,
    tasks: Iterable[PartTask],
    sandbox: Sandbox,
    done: Callable[[Outcome], None] | None = None,
) -> Iterator[PartSummary]:
    """Read the files of all parts and store each part as soon as its last file is read.

    done: called with the outcome of every file. Files of the next parts are read ahead, so that no process is idle when
    a part ends.

    Raises PolicyError if an option says that a file ends the run.
    """
    ahead, current = tee(tasks)
    outcomes = read_all(sandbox, file_options, (entry for task in ahead for entry in task.to_read))
    for task in current:
        with PartWriter(folder, task) as part:
            for entry, outcome in _with_known(folder, task, outcomes):
                if isinstance(outcome, PolicyError):
                    raise outcome
                part.add(entry, outcome)
                if done is not None:
                    done(outcome)
        yield part.summary


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
    """Writes one part; a context manager. The part is stored only if the block ends without an error."""

    def __init__(self, folder: OutputFolder, task: PartTask) -> None:
        self._folder, self._task = folder, task
        self._records: list[bytes] = []
        self._skipped: list[dict[str, str]] = []
        self._labels: dict[str, set[str]] = {}
        self._whole = folder.whole_file(part_name(task.number, "bin", task.attempt))
        self._file: HashedFile
        self.summary: PartSummary

    def add(self, entry: Entry, outcome: Sample | MediaError) -> None:
        """Add the next file of the part: its sample, or the reason why it is skipped."""
        if isinstance(outcome, MediaError):
            reason, message = outcome.reason, outcome.message
            self._skipped.append({"path": entry.path, "key": entry.key, "reason": reason, "message": message})
            return
        positions: dict[str, Any] = {}
        for name in MEMBERS:
            content = getattr(outcome, name)
            positions[name] = None if content is None else [self._file.tell(), len(content)]
            if content is not None:
                self._file.write(content)
        self._records.append(dump_json(positions | {"info": vars(outcome.info)}))
        for label_field, names in outcome.info.labels.items():
            self._labels.setdefault(label_field, set()).update(names)

    def __enter__(self) -> Self:
        self._file = self._whole.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, at: Any) -> None:
        self._whole.__exit__(kind, error, at)
        if kind is not None:
            return
        number, attempt = self._task.number, self._task.attempt
        labels = {name: sorted(values) for name, values in sorted(self._labels.items())}
        counts = len(self._records), self._skipped, labels
        self.summary = PartSummary(*counts, self._file.sha256, attempt)
        self._folder.write_bytes(part_name(number, "records", attempt), b"".join(self._records))
        self._folder.write_bytes(part_name(number, "json"), dump_json(asdict(self.summary)))


def load_samples(folder: OutputFolder, number: int, attempt: int, first_index: int = 0) -> Iterator[Sample]:
    """The samples of a part that is done, with indices from first_index on."""
    records = folder.read_bytes(part_name(number, "records", attempt)).splitlines()
    with folder.local_file(part_name(number, "bin", attempt)) as path, path.open("rb") as media:
        for index, line in enumerate(records, start=first_index):
            fields = Fields.parse(line, f"{folder.where(part_name(number, 'records', attempt))}, line {index}")
            record = fields.record
            content: dict[str, bytes | None] = {}
            for name in MEMBERS:
                content[name] = None
                if record.get(name) is not None:
                    offset, size = _position(fields, name)
                    media.seek(offset)
                    content[name] = media.read(size)
            info = SampleInfo.from_json(fields.mapping("info") | {"index": index}, fields.where)
            yield Sample(info, content["video"], content["audio"], content["image"])


def _position(fields: Fields, name: str) -> tuple[int, int]:
    """(first byte, number of bytes) of a member in the media of the part."""
    position = fields.items(name, int)
    if len(position) != 2 or min(position) < 0:
        raise fields.wrong(name, "[first byte, number of bytes]")
    return position[0], position[1]
