"""Samples for the page of a selection: those next to each cut, and pairs of duplicates; and clips of them that play.

Clips are made anew, small, in the processes of the sandbox, whatever the files are.
"""

from __future__ import annotations

import heapq
import io
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from avssl.embedding.media import Media, media_of_sample, open_file
from avssl.embedding.sources import file_of_entry
from avssl.embedding_pages.clips import Clip, clip_of
from avssl.files.checked_json import Fields, parse
from avssl.files.progress import Bar
from avssl.processes.limits import Limits
from avssl.processes.pool import Sandbox
from avssl.shards.manifest import Entry, FileSource
from avssl.shards.shard_set import ShardSet
from avssl.types import MediaError, Span
from data_prep.index.mnist import IdxFile
from data_prep.select.corpus import Corpus
from data_prep.select.distributions import QUANTITIES, Distribution
from data_prep.select.expression import FALSE, TRUE, Condition
from data_prep.select.facts_file import FactsFile, numbers
from data_prep.select.outcome import LEFT_OUT_NAME, beside
from data_prep.select.rule import DUPLICATES, REASONS

NUM_EXAMPLES = 20  # on either side of a cut
NUM_PAIRS = 10  # of duplicates of each kind
CLIP_LIMITS = Limits(seconds=60.0)


@dataclass(frozen=True)
class Example:
    """A sample of the page. value: of the fact that is cut, None if there is no one. reason: "" if it is kept."""

    row: int
    key: str
    reason: str
    value: float | None = None


@dataclass
class Side:
    """The samples for which a part of the condition is true, or not: how many, and those nearest to the cut."""

    count: int = 0
    nearest: list[tuple[float, int, Example]] = field(default_factory=list)

    def add(self, distance: float, example: Example) -> None:
        """Count a sample, and keep it if it is among the nearest."""
        heapq.heappush(self.nearest, (-distance, -example.row, example))
        if len(self.nearest) > NUM_EXAMPLES:
            heapq.heappop(self.nearest)

    def examples(self) -> list[Example]:
        """The nearest, in the order of their values and rows."""
        found = [example for *_, example in self.nearest]
        return sorted(found, key=lambda one: (one.value is not None and one.value, one.row))


@dataclass
class Chosen:
    """What the page shows.

    distributions: {fact: over the samples}. sides: for each part of the condition (true, false). pairs: {kind of
    duplicate: (the one left out, the one kept, how near)}.
    """

    distributions: dict[str, Distribution]
    sides: list[tuple[Side, Side]]
    pairs: dict[str, list[tuple[Example, Example, str]]]

    def rows(self) -> list[int]:
        """The rows of all samples that are shown, ascending."""
        shown = [example.row for sides in self.sides for side in sides for example in side.examples()]
        shown += [example.row for pairs in self.pairs.values() for *both, _ in pairs for example in both]
        return sorted(set(shown))


def choose(out: Path, facts: FactsFile, condition: Condition | None) -> Chosen:
    """The distributions, and the samples that are shown: of what the files of a selection say."""
    cuts = condition.cuts if condition else []
    at: dict[str, list[float]] = {}
    for cut in cuts:
        if cut is not None:
            at.setdefault(cut[0], []).extend(cut[1])
    names = [name for name in QUANTITIES if name in facts.columns]
    found = Chosen(
        {name: Distribution.of(name, at.get(name, ())) for name in names}, [(Side(), Side()) for _ in cuts], {}
    )
    left_out = _left_out(out)
    record = next(left_out, None)
    waiting: list[tuple[str, Example, str, str]] = []
    for first, block in facts.blocks(facts.columns):
        keys = block["key"].to_pylist()
        reasons = [""] * len(keys)
        for number, key in enumerate(keys):
            if record is not None and record["key"] == key:
                reasons[number] = str(record["reason"])
                if reasons[number] in DUPLICATES and _count(waiting, reasons[number]) < NUM_PAIRS:
                    near = f"{record['bits']} bits" if "bits" in record else ""
                    near = f"cosine {record['cosine']:.3f}" if "cosine" in record else near
                    example = Example(first + number, key, reasons[number])
                    waiting.append((reasons[number], example, str(record["duplicate_of"]), near))
                record = next(left_out, None)
        _add_values(found, block, reasons)
        if condition is not None:
            _add_sides(found, condition, first, block, keys, reasons)
    _add_pairs(found, waiting, facts)
    return found


def _left_out(out: Path) -> Iterator[Mapping[str, Any]]:
    path = beside(out, LEFT_OUT_NAME)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield Fields.parse(line, f"{path}, line {number}").record


def _count(waiting: list[tuple[str, Example, str, str]], kind: str) -> int:
    return sum(one[0] == kind for one in waiting)


def _add_values(found: Chosen, block: Any, reasons: list[str]) -> None:
    """Add the values of a block; samples that cannot be read have none."""
    readable = np.array([not reason or reason in REASONS for reason in reasons])
    kept = np.array([not reason for reason in reasons])
    for name, distribution in found.distributions.items():
        values = numbers(block, name)
        known = np.isfinite(values)
        distribution.listed.add_all(values[known & readable])
        distribution.kept.add_all(values[known & kept])


def _add_sides(
    found: Chosen, condition: Condition, first: int, block: Any, keys: list[str], reasons: list[str]
) -> None:
    """Add the samples of a block that lie near a cut; the first ones where a part cuts no one fact."""
    truths = condition.values(block)
    readable = np.array([not reason or reason in REASONS for reason in reasons])
    for part, cut in enumerate(condition.cuts):
        values = numbers(block, cut[0]) if cut else np.zeros(len(keys))
        distances = np.min([np.abs(values - number) for number in cut[1]], axis=0) if cut else np.zeros(len(keys))
        for side, truth in zip(found.sides[part], (TRUE, FALSE), strict=True):
            rows = np.flatnonzero((truths[:, part] == truth) & readable & np.isfinite(values))
            side.count += len(rows)
            for row in rows[np.lexsort((rows, distances[rows]))][:NUM_EXAMPLES].tolist():
                value = float(values[row]) if cut else None
                side.add(float(distances[row]), Example(first + row, keys[row], reasons[row], value))


def _add_pairs(found: Chosen, waiting: list[tuple[str, Example, str, str]], facts: FactsFile) -> None:
    """Add the pairs, for which the rows of the kept ones are looked up."""
    wanted = {kept for _, _, kept, _ in waiting}
    rows: dict[str, int] = {}
    if wanted:
        for first, block in facts.blocks(["key"]):
            rows |= {key: first + number for number, key in enumerate(block["key"].to_pylist()) if key in wanted}
    for kind, example, kept, near in waiting:
        found.pairs.setdefault(kind, []).append((example, Example(rows[kept], kept, ""), near))


@dataclass(frozen=True)
class ClipTask:
    """A sample of which a clip is made: of a file these modalities, or sample `row` of the shard folder `shards`.

    item: number of an image within the file; None: the file is the sample.
    """

    row: int
    key: str
    file: FileSource | None = None
    modalities: tuple[str, ...] = ()
    item: int | None = None
    shards: str = ""


def clips(corpus: Corpus, rows: list[int], num_workers: int) -> dict[int, Clip | MediaError]:
    """{row: its clip, or why there is none}."""
    tasks = list(_tasks(corpus, rows))
    if not tasks:
        return {}
    made: dict[int, Clip | MediaError] = {}
    with Sandbox(min(num_workers, len(tasks)), CLIP_LIMITS) as sandbox, Bar("clips", len(tasks), "clip") as bar:
        for task, outcome in sandbox.run(make_clip, tasks, lambda task: task.key):
            made[task.row] = outcome
            bar.update()
    return made


def _tasks(corpus: Corpus, rows: list[int]) -> Iterator[ClipTask]:
    if corpus.kind == "shards":
        keys = ShardSet(corpus.name).keys
        yield from (ClipTask(row, keys[row], shards=corpus.name) for row in rows)
        return
    wanted, path = set(rows), Path(corpus.name)
    with path.open("rb") as file:
        for row, line in enumerate(file):
            if row in wanted:
                where = f"{path}, line {row + 1}"
                entry = Entry.from_json(parse(line, where), where)
                names = ("image",) if entry.is_image else ("video", "audio")
                source = file_of_entry(replace(entry, item=None), path.absolute().parent, names, captions=False)
                yield ClipTask(row, entry.key, source, names, entry.item)


def make_clip(task: ClipTask) -> Clip:
    """The clip of a sample. MediaError if it cannot be shown. Runs in a worker."""
    from PIL import Image

    if task.file is None:
        sample = _opened(task.shards).read(task.row)
        media = media_of_sample(sample)
    elif task.item is not None:
        stream = io.BytesIO()
        Image.fromarray(IdxFile(task.file.path).image(task.item)).save(stream, "PNG")
        media = Media(task.key, -1, {"image": stream.getvalue()})
    else:
        media = open_file(task.file, task.modalities)
    with closing(media):
        end = max((span.end_seconds for span in media.spans.values()), default=0.0)
        return clip_of(media, Span(0.0, end), from_start=True)


@lru_cache(maxsize=1)
def _opened(location: str) -> ShardSet:
    return ShardSet(location)
