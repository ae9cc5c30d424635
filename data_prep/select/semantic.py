"""Semantic duplicates: samples whose embeddings are near in every modality that they have.

Two samples are compared only if they have the same modalities, and are duplicates only if the cosine reaches the
threshold of each: the same picture with another sound is none, nor is the reverse. As in NeMo Curator and SemDeDup
(Abbas et al. 2023, arXiv 2303.09540), k-means divides the samples into cells by one modality, and pairs are looked for
within a cell. Pairs that a border divides are found in a second pass with other cells, in which only those are that
stay after the first.

Within a cell samples are taken from the best to the worst, and one that is near to a better one that stays is left out;
so a cell of a million copies is as fast as one without any. In memory are the vectors of those that stay in one cell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from avssl.files.progress import Bar
from data_prep.select.rule import MODALITIES, SEMANTIC
from data_prep.select.state import State
from data_prep.split.scan import PairFiles

if TYPE_CHECKING:
    from data_prep.facts.embeddings import Pooled

Rows = NDArray[np.int64]
Vectors = Mapping[str, NDArray[np.float32]]
NUM_PASSES = 2
EXACT_ROWS, ROWS_PER_CELL = 32_768, 8192  # all pairs of so many; of more, those within cells of so many in the mean
TRAINED_PER_CELL, ITERATIONS = 64, 10  # of k-means
ROWS_AT_A_TIME = 4096
ROWS_PER_STEP = 256  # that are compared with those that stay


def leave_out_semantic(state: State, embeddings: Mapping[str, Pooled], cosines: Mapping[str, float]) -> None:
    """Leave out samples that are near to a better one; samples that are not embedded stay.

    Args:
        embeddings: of each modality, one vector a sample. cosines: the least of duplicates, for each of them.

    ValueError if a threshold is missing.
    """
    vectors = {modality: pooled.vectors for modality, pooled in embeddings.items()}
    has = np.memmap(state.folder / "embedded", np.uint8, "w+", shape=(state.num_rows,))
    for modality, pooled in embeddings.items():
        has[pooled.rows] |= 1 << MODALITIES.index(modality)
    for modality in vectors:
        if modality not in cosines:
            raise ValueError(
                f"--dedup has no cosine for {modality}, which the embeddings have; add {modality}=COSINE, or one number"
                " for all"
            )
    with Bar("semantic duplicates", len(state.kept()), "sample") as bar:
        for mask in range(1, 1 << len(MODALITIES)):
            names = [name for place, name in enumerate(MODALITIES) if mask >> place & 1]
            if vectors.keys() >= set(names):
                held = {name: vectors[name] for name in names}
                for seed in range(NUM_PASSES):
                    sizes = [
                        _leave_out_in_cell(state, rows, held, cosines)
                        for rows in _cells(state, held[names[0]], has, mask, seed)
                    ]
                    if seed == 0:
                        bar.update(sum(sizes))
                    if len(sizes) < 2:  # all pairs were compared
                        break
    _name_those_that_stay(state, vectors, has)


def _leave_out_in_cell(state: State, rows: Rows, vectors: Vectors, cosines: Mapping[str, float]) -> int:
    """Leave out what is near to a better one of a cell; the size of the cell."""
    ordered = rows[np.lexsort((rows, -state.quality[rows]))]
    near, cosine = _nearest_better(ordered, vectors, cosines)
    out = near >= 0
    state.leave_out(ordered[out], SEMANTIC, ordered[near[out]], cosine[out])
    return len(rows)


def _cells(state: State, vectors: NDArray[np.float32], has: NDArray[np.uint8], mask: int, seed: int) -> Iterator[Rows]:
    """The samples with just these modalities that are kept so far, cell by cell. vectors: of the first of them."""
    with ExitStack() as stack:
        members = stack.enter_context((state.folder / f"members-{seed}-{mask}").open("w+b"))
        for begin in range(0, state.num_rows, ROWS_AT_A_TIME):
            rows = state.kept(begin, begin + ROWS_AT_A_TIME)
            members.write(rows[has[rows] == mask].tobytes())
        members.flush()
        if not members.tell():
            return
        rows = np.memmap(members, np.int64, "r")
        if len(rows) <= EXACT_ROWS:
            yield np.array(rows)
            return
        count = -(-len(rows) // ROWS_PER_CELL)
        centroids = _centroids(vectors, rows, count, seed)
        pairs = PairFiles(stack, state.folder, "cells")
        for begin in range(0, len(rows), ROWS_AT_A_TIME):
            some = np.array(rows[begin : begin + ROWS_AT_A_TIME])
            cells = (vectors[some] @ centroids.T).argmax(axis=1)
            pairs.add(cells.astype(np.uint64) * np.uint64(2**64 // count), some.astype(np.uint64))
        for bucket in pairs.distinct():
            starts = np.flatnonzero(np.diff(bucket[:, 0], prepend=~bucket[:1, 0]))
            yield from np.split(bucket[:, 1].astype(np.int64), starts[1:])


def _centroids(vectors: NDArray[np.float32], rows: Rows, count: int, seed: int) -> NDArray[np.float32]:
    """Unit centroids of k-means by cosine on evenly spaced rows: float32 (count, D)."""
    import torch

    from avssl.ops.kmeans import spherical_kmeans

    step = max(1, len(rows) // (TRAINED_PER_CELL * count))
    sample = torch.from_numpy(np.array(vectors[rows[::step]]))
    generator = torch.Generator().manual_seed(seed)
    centroids = spherical_kmeans(sample, count, ITERATIONS, generator)[0]
    return np.asarray(centroids.numpy(), np.float32)


def _nearest_better(
    ordered: Rows, vectors: Vectors, cosines: Mapping[str, float]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(the place of the first better row that stays and is near, -1 if the row itself stays; the least cosine with it)

    of each row. ordered: from the best to the worst.
    """
    near, least = np.full(len(ordered), -1, np.int64), np.full(len(ordered), np.nan, np.float32)
    stay = np.zeros(0, np.int64)
    kept = {name: np.zeros((0, values.shape[1]), np.float32) for name, values in vectors.items()}
    for begin in range(0, len(ordered), ROWS_PER_STEP):
        places = np.arange(begin, min(begin + ROWS_PER_STEP, len(ordered)))
        found = {name: np.array(values[ordered[places]]) for name, values in vectors.items()}
        is_near, cosine = _compared(found, kept, cosines)
        if len(stay):
            first = is_near.argmax(axis=1)
            some = is_near[np.arange(len(places)), first]
            near[places[some]], least[places[some]] = stay[first[some]], cosine[some, first[some]]
        is_near, cosine = _compared(found, found, cosines)
        for place in range(len(places)):
            if near[places[place]] < 0:
                worse = place + 1 + np.flatnonzero(is_near[place, place + 1 :] & (near[places[place + 1 :]] < 0))
                near[places[worse]], least[places[worse]] = places[place], cosine[place, worse]
        new = np.flatnonzero(near[places] < 0)
        stay = np.concatenate([stay, places[new]])
        kept = {name: np.concatenate([values, found[name][new]]) for name, values in kept.items()}
    return near, least


def _compared(
    some: Vectors, others: Vectors, cosines: Mapping[str, float]
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """(whether all cosines reach their thresholds, the least cosine), (n, m) each."""
    near: NDArray[np.bool_] | None = None
    least: NDArray[np.float32] | None = None
    for name, values in some.items():
        cosine = np.minimum(values @ others[name].T, np.float32(1))
        reached = cosine >= np.float32(cosines[name])
        near = reached if near is None else near & reached
        least = cosine if least is None else np.minimum(least, cosine)
    assert near is not None
    assert least is not None
    return near, least


def _name_those_that_stay(state: State, vectors: Vectors, has: NDArray[np.uint8]) -> None:
    """Where the one that a sample names was left out in the second pass, the sample names the one that stays."""
    number = state.number(SEMANTIC)
    for begin in range(0, state.num_rows, ROWS_AT_A_TIME):
        rows = begin + np.flatnonzero(state.reason[begin : begin + ROWS_AT_A_TIME] == number)
        named = np.array(state.detail[rows])
        while (again := state.reason[named] == number).any():
            named[again] = state.detail[named[again]]
        for row, stays in zip(rows.tolist(), named.tolist(), strict=True):
            if state.detail[row] != stays:
                held = [name for place, name in enumerate(MODALITIES) if has[row] >> place & 1]
                state.detail[row] = stays
                state.score[row] = min(float(vectors[name][row] @ vectors[name][stays]) for name in held)
