"""Exact and near duplicates: of each group one sample stays, by the rule, and the others name it.

Exact: the same content. Near: pictures whose perceptual hashes differ in few bits, in a frame near the middle and in
the first one, and the same of the sound; a sample with a sound is never one of a sample without, nor is one of another
length. Both compare only samples that are kept so far, so that what stands for a group fulfils the condition.

Samples are taken from the best to the worst: one that is near to a better one that stays is left out. So no two that
stay are near to each other, and each that is left out is near to the one that it names, however long a chain is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise

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
    """Leave out samples that look and sound like a better one. About 150 bytes a sample are in memory."""
    rows = np.concatenate([np.zeros(0, np.int64), *_kept_blocks(state)])
    rows = rows[state.picture[rows] != NO_HASH]
    equal, best_of_equal = _equal(state, rows)
    rows = np.setdiff1d(rows, equal, assume_unique=True)
    rows = rows[np.lexsort((rows, -state.quality[rows]))]  # the best first
    compared = np.stack([state.picture[rows], state.first[rows], state.sound[rows]], axis=1)
    seconds, kinds = state.seconds[rows], state.kinds[rows]
    with (state.folder / "near").open("w+b") as file:
        for one, other in near_pairs(compared, NEAR_BITS):
            same = (kinds[one] == kinds[other]) & _same_length(seconds[one], seconds[other])
            better, worse = np.minimum(one[same], other[same]), np.maximum(one[same], other[same])
            file.write((better.astype(np.uint64) << np.uint64(32) | worse.astype(np.uint64)).tobytes())
        file.flush()
        found = np.memmap(file, np.uint64, "r+") if file.tell() else np.zeros(0, np.uint64)
        found.sort()
        better, worse = (found >> np.uint64(32)).astype(np.int64), (found & np.uint64(2**32 - 1)).astype(np.int64)
        best = rows[best_of_pairs(better, worse, len(rows))]
    stays = np.arange(state.num_rows)
    stays[rows] = best
    out = np.concatenate([rows[best != rows], equal])
    named = stays[np.concatenate([best[best != rows], best_of_equal])]
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


def best_of_pairs(better: Rows, worse: Rows, count: int) -> Rows:
    """The one that stays for each of `count` samples, which stand from the best to the worst: int64 (count,).

    better, worse: (n,), pairs of near samples by their places, better < worse, sorted; the same pair may come again.
    """
    best = np.arange(count)
    ends = np.append(np.flatnonzero(np.diff(better)) + 1, len(better)).tolist() if len(better) else []
    for begin, end in pairwise([0, *ends]):
        one = better[begin]
        if best[one] == one:
            near = worse[begin:end]
            best[near[best[near] == near]] = one
    return best


def _equal(state: State, rows: Rows) -> tuple[Rows, Rows]:
    """(those that equal a better one in all that is compared, the better one): ascending, int64 (n,) each."""
    lengths = np.round(np.log(np.maximum(state.seconds[rows], 1e-3)) / SAME_SHARE).astype(np.int64).astype(np.uint64)
    mark = mixed(state.picture[rows])
    for values in (state.first[rows], state.sound[rows], state.kinds[rows].astype(np.uint64), lengths):
        mark = mixed(mark ^ values)
    order = np.argsort(mark, kind="stable")
    best = np.empty(len(rows), np.int64)
    best[order] = _best_of_groups(state, mark[order], rows[order])
    return rows[best != rows], best[best != rows]


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


def _same_length(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.asarray(np.abs(one - other) <= np.maximum(SAME_SECONDS, SAME_SHARE * np.maximum(one, other)))


def _kept_blocks(state: State) -> Iterator[Rows]:
    """The rows that are kept so far, many at a time."""
    for begin in range(0, state.num_rows, ROWS_AT_A_TIME):
        yield state.kept(begin, begin + ROWS_AT_A_TIME)
