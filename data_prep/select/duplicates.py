"""Exact and near duplicates: of each group one sample stays, by the rule, and the others name it.

Exact: the same content. Near: pictures whose perceptual hashes differ in few bits, in a frame near the middle and in
the first one, and the same of the sound; a sample with a sound is never one of a sample without, nor is one of another
length. Both compare only samples that are kept so far, so that what stands for a group fulfils the condition.

Samples are taken from the best to the worst: one that is near to a better one that stays is left out. So no two that
stay are near to each other, and each that is left out is near to the one that it names, however long a chain is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from data_prep.measures.near_duplicates import NO_HASH, distances, near_pairs
from data_prep.select.rule import DUPLICATES, EXACT, NEAR, NEAR_BITS
from data_prep.select.state import State
from data_prep.split.rule import mixed
from data_prep.split.scan import PairFiles

Rows = NDArray[np.int64]
SAME_SHARE, SAME_SECONDS = 0.02, 0.25  # lengths that differ by less are the same
ROWS_AT_A_TIME = 1 << 20


def leave_out_exact(state: State) -> None:
    """Leave out samples whose content a better one has."""
    with ExitStack() as stack:
        pairs = PairFiles(stack, state.folder, "contents")
        for kept in _kept_blocks(state):
            rows = kept[state.content[kept] != 0]
            pairs.add(state.content[rows], rows.astype(np.uint64))
        for bucket in pairs.distinct():
            rows = bucket[:, 1].astype(np.int64)
            best = _best_of_groups(state, bucket[:, 0], rows)
            worse = best != rows
            state.leave_out(rows[worse], EXACT, best[worse])


def leave_out_near(state: State) -> None:
    """Leave out samples that look and sound like a better one. About 190 bytes a sample are in memory."""
    rows = np.concatenate([np.zeros(0, np.int64), *_kept_blocks(state)])
    rows = rows[state.picture[rows] != NO_HASH]
    rows = rows[np.lexsort((rows, -state.quality[rows]))]  # the best first
    alike, seconds = Alike(_marks(state, rows)), state.seconds[rows]
    with (state.folder / "near").open("w+b") as file:
        for one, other in _near_groups(state, rows, alike):
            both = np.concatenate([one << np.uint64(32) | other, other << np.uint64(32) | one])
            file.write(both.tobytes())
        file.flush()
        found = np.memmap(file, np.uint64, "r+") if file.tell() else np.zeros(0, np.uint64)
        found.sort()
        best = rows[best_of_near(alike, found, seconds)]
    out, named = rows[best != rows], best[best != rows]
    state.leave_out(out, NEAR, named, distances(state.picture[out], state.picture[named]))


def name_those_that_stay(state: State) -> None:
    """Where the one that a duplicate names was left out as a duplicate later, it names the one that stands for both.

    How near it is to that one is not known, unless both were found by the same embeddings or hashes.
    """
    numbers = [state.number(reason) for reason in DUPLICATES]
    for begin in range(0, state.num_rows, ROWS_AT_A_TIME):
        rows = begin + np.flatnonzero(np.isin(state.reason[begin : begin + ROWS_AT_A_TIME], numbers))
        named = np.array(state.detail[rows])
        while (again := np.isin(state.reason[named], numbers)).any():
            named[again] = state.detail[named[again]]
        other = named != state.detail[rows]
        state.detail[rows[other]], state.score[rows[other]] = named[other], np.nan


class Alike:
    """Groups of samples with the same mark, so that many copies are compared with others only once.

    marks: (n,), of samples by their places.

    Attributes:
        group_of: int32 (n,). sizes: of each of G groups, int32 (G,). first: the least place of each, int32 (G,).
    """

    def __init__(self, marks: NDArray[np.uint64]) -> None:
        _, *found = np.unique(marks, return_index=True, return_inverse=True, return_counts=True)
        self.first, self.group_of, self.sizes = (values.astype(np.int32) for values in found)
        del found
        self._places = np.argsort(self.group_of, kind="stable").astype(np.int32)
        self._ends = np.cumsum(self.sizes, dtype=np.int32)

    def members(self, groups: Iterable[int]) -> NDArray[np.int32]:
        """The places in some groups, group after group."""
        return np.concatenate([self._places[self._ends[one] - self.sizes[one] : self._ends[one]] for one in groups])

    def range_of(self, values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(the least, the highest) value in each group: (G,) each. values: (n,)."""
        if not len(values):
            return values, values
        starts, ordered = self._ends - self.sizes, values[self._places]
        return np.minimum.reduceat(ordered, starts), np.maximum.reduceat(ordered, starts)


def best_of_near(alike: Alike, pairs: NDArray[np.uint64], seconds: NDArray[np.float64]) -> Rows:
    """The one that stays for each of n samples, which stand from the best to the worst: int64 (n,).

    pairs: one group << 32 | another one with near hashes, in both directions, sorted; the same pair may come again.
    Samples of a group and of such pairs are near if their lengths are the same. That is asked of each with each: the
    best of a group may be near to a better one whose length is not that of the others.
    """
    best = np.arange(len(seconds))
    ends = np.searchsorted(pairs, np.arange(len(alike.sizes) + 1, dtype=np.uint64) << np.uint64(32))
    has_near = (np.diff(ends) > 0) | (alike.sizes > 1)
    for place in np.flatnonzero(has_near[alike.group_of]).tolist():
        if best[place] == place:
            group = alike.group_of[place]
            others = pairs[ends[group] : ends[group + 1]] & np.uint64(2**32 - 1)
            near = alike.members([group, *others.tolist()])
            near = near[(near > place) & (best[near] == near)]
            best[near[_same_length(seconds[near], seconds[place])]] = place
    return best


def _near_groups(state: State, rows: Rows, alike: Alike) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint64]]]:
    """Pairs of groups with near hashes and lengths that may be the same, many at a time."""
    some = rows[alike.first]
    compared, kinds = np.stack([state.picture[some], state.first[some], state.sound[some]], axis=1), state.kinds[some]
    least, highest = alike.range_of(state.seconds[rows])
    for one, other in near_pairs(compared, NEAR_BITS):
        above, below = np.maximum(least[one], least[other]), np.minimum(highest[one], highest[other])
        same = (kinds[one] == kinds[other]) & ((above <= below) | _same_length(above, below))
        yield one[same].astype(np.uint64), other[same].astype(np.uint64)


def _marks(state: State, rows: Rows) -> NDArray[np.uint64]:
    """A number for each, the same for those that are equal in all hashes and whose lengths differ by 2 % at most."""
    lengths = np.round(np.log(np.maximum(state.seconds[rows], 1e-3)) / SAME_SHARE).astype(np.int64).astype(np.uint64)
    mark = mixed(state.picture[rows])
    for values in (state.first[rows], state.sound[rows], state.kinds[rows].astype(np.uint64), lengths):
        mark = mixed(mark ^ values)
    return mark


def _best_of_groups(state: State, marks: NDArray[np.uint64], rows: Rows) -> Rows:
    """The best row of those with the same mark, for each row: int64 (n,). marks: sorted."""
    if not len(rows):
        return rows
    is_start = np.diff(marks, prepend=~marks[:1]) != 0
    group = np.cumsum(is_start) - 1
    sizes = np.bincount(group)
    best = np.array(rows[is_start])
    several = sizes[group] > 1
    some, groups = rows[several], group[several]
    order = np.lexsort((some, -state.quality[some], groups))
    first = order[np.flatnonzero(np.diff(groups[order], prepend=-1))]
    best[groups[first]] = some[first]
    found: Rows = best[group]
    return found


def _same_length(one: NDArray[np.float64], other: NDArray[np.float64] | np.float64) -> NDArray[np.bool_]:
    return np.asarray(np.abs(one - other) <= np.maximum(SAME_SECONDS, SAME_SHARE * np.maximum(one, other)))


def _kept_blocks(state: State) -> Iterator[Rows]:
    """The rows that are kept so far, many at a time."""
    for begin in range(0, state.num_rows, ROWS_AT_A_TIME):
        yield state.kept(begin, begin + ROWS_AT_A_TIME)
