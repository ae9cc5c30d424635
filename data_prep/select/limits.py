"""Limits on what is kept: samples per class, and hours. Which ones is drawn by the key of each and the seed alone.

So the choice is even over the corpus, the same for the same keys in any order, and with a larger limit it holds the
samples of a smaller one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from avssl.files.checked_json import Fields
from avssl.files.plain_text import brief
from data_prep.select.facts_file import FactsFile, texts
from data_prep.select.rule import CLASS_FULL, HOURS_FULL
from data_prep.select.state import State
from data_prep.split.scan import PairFiles

ROWS_AT_A_TIME = 1 << 20
MOST_TEXTS = 100_000  # different texts of labels that are remembered


def leave_out_full_classes(state: State, facts: FactsFile, by: str, most: int) -> None:
    """Leave out samples of which every class has `most` drawn before them; those without a class count as one class.

    ValueError if no sample has labels of the field.
    """
    classes = _Classes(state, facts, by)
    counts: Counter[int] = Counter()
    with ExitStack() as stack:
        for rows in _drawn(state, stack):
            full = []
            for row, names in zip(rows.tolist(), classes.of(rows), strict=True):
                if all(counts[name] >= most for name in names):
                    full.append(row)
                else:
                    counts.update(names)
            state.leave_out(np.array(full, np.int64), CLASS_FULL)


def leave_out_hours(state: State, hours: float) -> None:
    """Leave out samples from the first drawn on that is too much for so many hours.

    ValueError if no sample has a duration.
    """
    if not state.seconds.any():
        raise ValueError("--max-hours counts the seconds of samples, and none has any; take it from the command")
    total, is_full = 0.0, False
    with ExitStack() as stack:
        for rows in _drawn(state, stack):
            ends = total + np.cumsum(state.seconds[rows])
            fits = 0 if is_full else int(np.searchsorted(ends, hours * 3600, "right"))
            is_full = fits < len(rows)
            total = float(ends[-1]) if len(ends) else total
            state.leave_out(rows[fits:], HOURS_FULL)


def _drawn(state: State, stack: ExitStack) -> Iterator[NDArray[np.int64]]:
    """The rows that are kept so far in the order of their draws, many at a time."""
    pairs = PairFiles(stack, state.folder, "draws")
    for begin in range(0, state.num_rows, ROWS_AT_A_TIME):
        rows = state.kept(begin, begin + ROWS_AT_A_TIME)
        pairs.add(state.draw[rows], rows.astype(np.uint64))
    for bucket in pairs.distinct():
        yield bucket[:, 1].astype(np.int64)


class _Classes:
    """The classes of every row as numbers, in files: 0 is that of samples without one."""

    def __init__(self, state: State, facts: FactsFile, by: str) -> None:
        self._ends = np.memmap(state.folder / "class_ends", np.int64, "w+", shape=(state.num_rows + 1,))
        self._numbers: dict[str, int] = {}
        known: dict[str | None, list[int]] = {}
        with (state.folder / "classes").open("wb") as file:
            end = 0
            for first, block in facts.blocks(["labels"]):
                codes: list[int] = []
                ends = []
                for number, text in enumerate(texts(block, "labels")):
                    if text not in known:
                        if len(known) == MOST_TEXTS:
                            known.clear()
                        known[text] = self._of_text(text, by, f"{facts.path}, row {first + number + 1}")
                    codes += known[text]
                    ends.append(end + len(codes))
                file.write(np.array(codes, np.int32).tobytes())
                self._ends[first + 1 : first + 1 + len(ends)] = ends
                end += len(codes)
        if not self._numbers:
            raise ValueError(f"{facts.path}: no sample has a label {brief(by)}; --by takes one of the label fields")
        self._codes = np.memmap(state.folder / "classes", np.int32, "r")

    def of(self, rows: NDArray[np.int64]) -> Iterator[list[int]]:
        """The numbers of the classes of each row."""
        for begin, end in zip(self._ends[rows].tolist(), self._ends[rows + 1].tolist(), strict=True):
            yield self._codes[begin:end].tolist()

    def _of_text(self, text: str | None, by: str, where: str) -> list[int]:
        names = Fields.parse(f'{{"labels": {text or "{}"}}}', where).labels("labels").get(by, [])
        return sorted({self._numbers.setdefault(name, len(self._numbers) + 1) for name in names}) or [0]
