"""Computes the table of facts of a corpus, once: by any number of workers and machines, again after a kill.

1. The rows of the corpus are blocks of ROWS_PER_BLOCK. The facts of a block are measured in a sandbox and stored in
   OUT.parts/block-N.parquet. A block that is there is never measured again.
2. When all blocks are done they become OUT, whole, and OUT.parts is removed.
3. With an embedding folder, OUT is written again with its columns (embeddings.py); nothing is measured again.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from avssl.files.checked_json import Fields
from avssl.files.disk_errors import clear_errors
from avssl.files.locks import locked
from avssl.files.progress import Bar
from avssl.files.scratch import scratch_folder
from avssl.files.whole import write_whole
from avssl.processes.cluster import on_ray
from avssl.processes.limits import Limits
from avssl.processes.pool import Sandbox
from avssl.types import MediaError
from data_prep.facts.measure import SILENCE_DBFS, STILL_LEVELS
from data_prep.facts.sources import Corpus, Task, corpus_identity, open_corpus
from data_prep.facts.table import SUFFIX, Row, read_metadata, read_tables, table_of_rows, with_columns, write_table
from data_prep.measures.frames import GRID_FPS
from data_prep.write.job import Share

ROWS_PER_BLOCK = 256
SETTINGS = {"silence_dbfs": SILENCE_DBFS, "still_levels": STILL_LEVELS, "grid_fps": GRID_FPS}
IDENTITY_NAME = "computed_from.json"


@dataclass(frozen=True)
class Blocks:
    """The blocks of a corpus and their files in `folder`."""

    corpus: Corpus
    folder: Path

    @property
    def count(self) -> int:
        """Number of blocks, done or not."""
        return -(-self.corpus.num_rows // ROWS_PER_BLOCK)

    def rows_of(self, block: int) -> range:
        """The rows of a block."""
        return range(block * ROWS_PER_BLOCK, min((block + 1) * ROWS_PER_BLOCK, self.corpus.num_rows))

    def path(self, block: int) -> Path:
        """The file of a block."""
        return self.folder / f"block-{block:08d}{SUFFIX}"

    def missing(self, share: Share) -> list[int]:
        """The blocks of a share that are not done."""
        return [number for number in range(self.count) if share.holds(number) and not self.path(number).is_file()]

    def tasks(self, block: int) -> Iterator[Task]:
        """The tasks of a block."""
        rows = self.rows_of(block)
        return self.corpus.tasks(rows.start, rows.stop)

    def write(self, block: int, rows: list[Row]) -> None:
        """Store the facts of a block: it is done."""
        if len(rows) != len(self.rows_of(block)):
            raise RuntimeError(f"{self.path(block)}: {len(rows)} facts of {len(self.rows_of(block))} rows")
        write_table(self.path(block), [table_of_rows(rows)], {})


@dataclass(frozen=True)
class Facts:
    """A finished table. metadata: what it was computed from. num_samples = readable ones + unreadable_by_reason."""

    path: Path
    metadata: dict[str, Any]

    @property
    def num_samples(self) -> int:
        """The number of rows."""
        return int(self.metadata["num_samples"])

    @property
    def unreadable_by_reason(self) -> dict[str, int]:
        """How many samples cannot be read, by reason."""
        return dict(self.metadata["unreadable_by_reason"])


def make_facts(
    source: str,
    out: Path,
    *,
    embeddings: Path | None = None,
    num_workers: int = 1,
    limits: Limits | None = None,
    share: Share | None = None,
    executor: str = "local",
) -> Facts | None:
    """Compute the facts, or what is missing of them; None if only a share was done.

    Args:
        source: a manifest's path or URL (.jsonl), or a shard folder's. out: the Parquet file.
        embeddings: a finished folder of `avssl embed` of the same samples, whose facts become columns.
        limits: time and memory that one file may take. share: do only these blocks. executor: "local" or "ray".

    Raises:
        ValueError, FileNotFoundError: no such corpus or embeddings; `out` holds facts of another corpus.
        OSError: the disk is full or the folder cannot be written; what is finished is kept.
    """
    if out.suffix != SUFFIX:
        raise ValueError(f"--out is {out}; facts are a Parquet file, with the suffix {SUFFIX}")
    share, folder = share or Share(), out.with_name(f"{out.name}.parts")
    computed_from = {"corpus": corpus_identity(source), "settings": SETTINGS}
    described = _described(embeddings)
    with clear_errors(folder, "made"):
        folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, share):
        if out.is_file():
            bases = [out]
            _refuse_unless_same(out, read_metadata(out), computed_from)
        else:
            blocks = _begin(source, folder, computed_from, num_workers)
            _measure(blocks, share, num_workers, limits or Limits(), executor)
            if share.count > 1:
                return None
            bases = [blocks.path(number) for number in range(blocks.count)]
        if share.count > 1:
            return None
        facts = _finish(out, bases, computed_from, embeddings, described)
        shutil.rmtree(folder)
    return facts


def _begin(source: str, folder: Path, computed_from: dict[str, Any], num_workers: int) -> Blocks:
    """The blocks of the corpus in the folder, which is of no other corpus."""
    path = folder / IDENTITY_NAME
    if path.is_file():
        _refuse_unless_same(folder, Fields.read(path).record, computed_from)
    else:
        write_whole(path, json.dumps(computed_from, sort_keys=True))
    return Blocks(open_corpus(source, folder, num_workers), folder)


def _refuse_unless_same(where: Path, recorded: dict[str, Any], computed_from: dict[str, Any]) -> None:
    for name, what in (("corpus", "another corpus"), ("settings", "other settings")):
        if recorded.get(name) != computed_from[name]:
            raise ValueError(f"{where}: holds facts of {what}; choose another --out, or delete it")


@contextmanager
def _locked(folder: Path, share: Share) -> Iterator[None]:
    """Lock the share, so that no other process does it. The lock ends with the process."""
    busy = f"{folder}: another process computes these facts; wait for it"
    with ExitStack() as stack:
        names = ["lock"] if share.count == 1 else ["lock", f"lock-{share.number}-of-{share.count}"]
        for name in names:
            is_shared = name == "lock" and share.count > 1
            stack.enter_context(locked(folder / name, shared=is_shared, wait_seconds=0, busy=busy))
        yield


# --- measuring -------------------------------------------------------------------------------------------------------


def _measure(blocks: Blocks, share: Share, num_workers: int, limits: Limits, executor: str) -> None:
    """Measure the missing blocks of the share."""
    missing = blocks.missing(share)
    mine = sum(len(blocks.rows_of(number)) for number in range(blocks.count) if share.holds(number))
    to_do = sum(len(blocks.rows_of(number)) for number in missing)
    reasons: Counter[str] = Counter()
    with Bar("facts", mine, "sample", done=mine - to_do) as bar:
        for more in _run(blocks, missing, num_workers, limits, executor):
            if more.failed:
                reasons += more.failed
                bar.show(f"cannot be read: {reasons.total()}", unreadable_by_reason=dict(reasons))
            bar.update(more.num_rows)


@dataclass(frozen=True)
class Measured:
    """Rows that were measured now: how many, and how many of them cannot be read, by reason."""

    num_rows: int
    failed: Counter[str]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Self:
        """Of these rows."""
        return cls(len(rows), Counter(row["reason"] for row in rows if row.get("reason")))


def _run(blocks: Blocks, missing: list[int], num_workers: int, limits: Limits, executor: str) -> Iterator[Measured]:
    if executor == "ray":
        for done in on_ray(measure_block, (blocks, limits), missing, local_cpus=num_workers):
            yield from done
        return
    if missing:
        with Sandbox(num_workers, limits) as sandbox:
            yield from measure_blocks(blocks, missing, sandbox)


def measure_block(blocks: Blocks, limits: Limits, number: int) -> list[Measured]:
    """Measure and store one block in a sandbox of its own. A task of Ray."""
    with Sandbox(1, limits) as sandbox:
        return list(measure_blocks(blocks, [number], sandbox))


def measure_blocks(blocks: Blocks, numbers: Sequence[int], sandbox: Sandbox) -> Iterator[Measured]:
    """Measure blocks and store each as soon as its last row is known; yields what was measured."""
    remaining = iter(numbers)
    number, rows = next(remaining, None), []
    for measured in _rows(sandbox, (task for block in numbers for task in blocks.tasks(block))):
        rows += measured
        yield Measured.of(measured)
        if number is not None and len(rows) == len(blocks.rows_of(number)):
            blocks.write(number, rows)
            number, rows = next(remaining, None), []


def _rows(sandbox: Sandbox, tasks: Iterable[Task]) -> Iterator[list[Row]]:
    """The rows of each task, in order. A task whose process fails is done again row by row."""
    for task, outcome in sandbox.run(measure_task, tasks, lambda task: task.name):
        if not isinstance(outcome, MediaError):
            yield outcome
        elif len(alone := task.alone()) == 1:
            yield [task.failed(outcome)]
        else:
            yield from _rows(sandbox, alone)


def measure_task(task: Task) -> list[Row]:
    """The rows of a task. Runs in a worker."""
    return task.measure()


# --- the table -------------------------------------------------------------------------------------------------------


def _described(embeddings: Path | None) -> dict[str, Any] | None:
    """What tells the embeddings from others. Raises before anything is measured if there are none."""
    if embeddings is None:
        return None
    from data_prep.facts.embeddings import describe_folder  # here: torch is for embeddings alone

    return describe_folder(embeddings)


def _finish(
    out: Path,
    bases: list[Path],
    computed_from: dict[str, Any],
    embeddings: Path | None,
    described: dict[str, Any] | None,
) -> Facts:
    """Write the table from its blocks, or from an earlier table, with the columns of the embeddings if they are new."""
    earlier = read_metadata(out) if bases == [out] else {}
    if earlier and (described or {}).items() <= (earlier.get("embeddings") or {}).items():
        return Facts(out, earlier)
    columns: dict[str, Any] = {}
    if embeddings is not None and described is not None:
        from data_prep.facts.embeddings import embedding_columns

        keys = (table["key"].to_pylist() for table in _tables(bases, ["key"]))
        with scratch_folder(out.absolute().parent, out.name) as scratch:
            columns, found = embedding_columns(embeddings, keys, scratch)
        described |= found
    metadata = computed_from | {"embeddings": described} | _counts(bases)
    write_table(out, _joined(bases, columns), metadata)
    return Facts(out, read_metadata(out))


def _tables(paths: Iterable[Path], columns: Collection[str] | None = None) -> Iterator[Any]:
    for path in paths:
        yield from read_tables(path, columns)


def _counts(paths: Iterable[Path]) -> dict[str, Any]:
    reasons: Counter[str] = Counter()
    num_samples = 0
    for table in _tables(paths, ["reason"]):
        num_samples += table.num_rows
        reasons.update(reason for reason in table["reason"].drop_null().to_pylist())
    return {"num_samples": num_samples, "unreadable_by_reason": dict(sorted(reasons.items()))}


def _joined(paths: Iterable[Path], columns: dict[str, Any]) -> Iterator[Any]:
    """The rows of the files with the columns of the embeddings, of which each has a value for every row."""
    first = 0
    for table in _tables(paths):
        end = first + table.num_rows
        yield with_columns(table, {name: values[first:end] for name, values in columns.items()})
        first = end
