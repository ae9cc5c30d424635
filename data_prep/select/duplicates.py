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

from data_prep.measures.near_duplicates import NO_HASH, ChunkIndex, are_near, distances
from data_prep.select.rule import DUPLICATES, EXACT, NEAR, NEAR_BITS
from data_prep.select.state import State
from data_prep.split.scan import PairFiles

Rows = NDArray[np.int64]
SAME_SHARE, SAME_SECONDS = 0.02, 0.25  # lengths that differ by less are the same
ROWS_AT_A_TIME = 1 << 20
MOST_AT_ONCE = 1 << 14  # samples whose near ones are looked for together


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
    """Leave out samples that look and sound like a better one. Their hashes and an index of them are in memory."""
    rows = np.concatenate([np.zeros(0, np.int64), *_kept_blocks(state)])
    rows = rows[state.picture[rows] != NO_HASH]
    rows = rows[np.lexsort((rows, -state.quality[rows]))]  # the best first
    best = rows[_best_of_near(state, rows)]
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


def _best_of_near(state: State, rows: Rows) -> Rows:
    """The place of the one that stays for each of n rows, which stand from the best to the worst: int64 (n,).

    Those that are near to one that stays are out at once, and are compared with no others: of many that are near to
    each other few stay, so that far fewer than all pairs are looked at.
    """
    hashes = np.stack([state.picture[rows], state.first[rows], state.sound[rows]], axis=1)
    seconds, kinds = state.seconds[rows], state.kinds[rows]
    best = np.arange(len(rows))
    waiting, done, num_out, at_once = best.copy(), 0, 0, MOST_AT_ONCE
    index = ChunkIndex(hashes[:, 0], seconds, NEAR_BITS)
    while done < len(waiting):
        block = waiting[done : done + at_once]
        asked = block[best[block] == block]
        counts, found = index.candidates_of(hashes[asked, 0], *_same_lengths(seconds[asked]))
        pairs = [np.zeros(0, np.int64)]
        for number, other in found:
            one, two = asked[number], waiting[other]
            undecided = (one < two) & (best[two] == two) & (kinds[one] == kinds[two])
            one, two = one[undecided], two[undecided]
            near = _same_length(seconds[one], seconds[two]) & are_near(hashes, one, two, NEAR_BITS)
            pairs.append(one[near] << 32 | two[near])
        num_out += _take_out(np.unique(np.concatenate(pairs)), best)
        num_done = int(np.searchsorted(block, asked[len(counts)])) if len(counts) < len(asked) else len(block)
        done += num_done
        # Of a crowd few are asked together: most of them are out after the first.
        asked = asked[: len(counts)]
        is_wasted = 2 * counts[best[asked] == asked].sum() < counts.sum()
        at_once = max(1, num_done // 2) if is_wasted else min(2 * num_done, MOST_AT_ONCE)
        if done < len(waiting) < 2 * (done + num_out):
            waiting = waiting[done:]
            waiting, done, num_out = waiting[best[waiting] == waiting], 0, 0
            index = ChunkIndex(hashes[waiting, 0], seconds[waiting], NEAR_BITS)
    return best


def _take_out(pairs: Rows, best: Rows) -> int:
    """Write into `best` the one that stays for those that are near to it; returns for how many.

    pairs: one place << 32 | a worse one that is near, sorted, each once: all of some places, none of better ones.
    """
    better, worse = pairs >> 32, pairs & 2**32 - 1
    starts = np.flatnonzero(np.diff(better, prepend=-1)).tolist()
    num_out = 0
    for begin, end in pairwise([*starts, len(pairs)]):
        one = better[begin]
        if best[one] == one:
            near = worse[begin:end]
            near = near[best[near] == near]
            best[near] = one
            num_out += len(near)
    return num_out


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


def _same_lengths(seconds: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(the least, the most) seconds of a length that may be the same as each: a little more than `_same_length`."""
    least = np.minimum(seconds - SAME_SECONDS, seconds * (1 - SAME_SHARE))
    most = np.maximum(seconds + SAME_SECONDS, seconds / (1 - SAME_SHARE))
    return least * (1 - 1e-9) - 1e-9, most * (1 + 1e-9)


def _kept_blocks(state: State) -> Iterator[Rows]:
    """The rows that are kept so far, many at a time."""
    for begin in range(0, state.num_rows, ROWS_AT_A_TIME):
        yield state.kept(begin, begin + ROWS_AT_A_TIME)
