"""The cosine to the nearest other row, of each row: exactly, or among the rows of near cells of k-means.

Candidates are found in float32, and the cosine of the best few is computed in float64: it does not depend on how the
rows are divided. Rows lie in files; a block of them is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from avssl.files.progress import Bar
from avssl.ops.kmeans import spherical_kmeans

EXACT_ROWS = 100_000  # of more rows, only those of near cells are compared
NUM_CANDIDATES = 4
QUERIES_AT_A_TIME, GALLERY_AT_A_TIME = 2048, 16_384
# More rows: about as many cells as rows in a cell; those of PROBES cells are compared, the row's own among them.
SAMPLED_PER_CELL, ITERATIONS, PROBES = 64, 10, 8
NUM_CHECKED = 1000  # rows whose nearest one is also found exactly, to say how often the cells find it

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]


def nearest_cosines(
    vectors: Vectors, rows: Rows, path: Path, name: str, exact_rows: int = EXACT_ROWS
) -> tuple[Vectors, float | None]:
    """(cosine of each row to the nearest other one, float32 (R,), NaN if there is no other; recall).

    Args:
        vectors: float32 (N, D), unit rows, may lie in a file. rows: int64 (R,), ascending, those that are compared.
        path: of a file that may be made. name: of the bar.

    recall: share of some rows whose nearest one was found; None if all rows were compared.
    """
    if len(rows) < 2:
        return np.full(len(rows), np.nan, np.float32), None
    found = np.empty(len(rows), np.float32)
    with Bar(name, len(rows), "sample") as bar:
        if len(rows) <= exact_rows:
            for places in _parts(np.arange(len(rows)), QUERIES_AT_A_TIME):
                found[places] = _best(vectors, rows[places], rows)
                bar.update(len(places))
            return found, None
        for places, gallery, ordered in _cells(vectors, rows, path):
            for part in _parts(places, QUERIES_AT_A_TIME):
                found[ordered.rows[part]] = _best(ordered.vectors, part, gallery)
                bar.update(len(part))
    checked = np.unique(np.linspace(0, len(rows) - 1, NUM_CHECKED).astype(np.int64))
    exact = _best(vectors, rows[checked], rows)
    return found, float((found[checked] >= exact - 1e-6).mean())


def _best(vectors: Vectors, queries: Rows, gallery: Rows) -> Vectors:
    """The highest cosine of each query to a row of the gallery other than itself: float32 (Q,); NaN without another.

    queries, gallery: rows of `vectors`.
    """
    left = torch.from_numpy(np.asarray(vectors[queries]))
    cosines = torch.full((len(queries), 0), -2.0)
    candidates = torch.zeros((len(queries), 0), dtype=torch.int64)
    for part in _parts(gallery, GALLERY_AT_A_TIME):
        products = left @ torch.from_numpy(np.asarray(vectors[part])).T
        products[torch.from_numpy(queries[:, None] == part)] = -2.0
        best, places = products.topk(min(NUM_CANDIDATES, len(part)), dim=1)
        cosines = torch.cat([cosines, best], dim=1)
        candidates = torch.cat([candidates, torch.from_numpy(part)[places]], dim=1)
        kept = cosines.topk(min(NUM_CANDIDATES, cosines.shape[1]), dim=1).indices
        cosines, candidates = cosines.gather(1, kept), candidates.gather(1, kept)
    others = np.asarray(vectors[candidates.numpy().reshape(-1)], np.float64).reshape(*candidates.shape, -1)
    exact = np.einsum("qd,qcd->qc", left.numpy().astype(np.float64), others)
    exact = np.where(candidates.numpy() == queries[:, None], -np.inf, np.round(exact * 2.0**30) / 2.0**30)
    best_of_each = exact.max(axis=1)
    return np.where(np.isfinite(best_of_each), best_of_each, np.nan).astype(np.float32)


class _Ordered:
    """The compared rows in the order of their cells, in a file. rows: the place of each among those compared."""

    def __init__(self, vectors: Vectors, rows: Rows, cell_of: Rows, path: Path) -> None:
        self.rows = np.argsort(cell_of, kind="stable")
        self.vectors = np.memmap(path, np.float32, "w+", shape=(len(rows), vectors.shape[1]))
        for places in _parts(np.arange(len(rows)), GALLERY_AT_A_TIME):
            self.vectors[places] = vectors[rows[self.rows[places]]]


def _cells(vectors: Vectors, rows: Rows, path: Path) -> Iterator[tuple[Rows, Rows, _Ordered]]:
    """(places of a cell's rows, places of the rows that they are compared with, the ordered rows) of each cell."""
    count = round(len(rows) ** 0.5)
    sample = rows[:: max(1, len(rows) // (SAMPLED_PER_CELL * count))]
    generator = torch.Generator().manual_seed(0)
    centroids, _ = spherical_kmeans(torch.from_numpy(np.asarray(vectors[sample])), count, ITERATIONS, generator)
    cell_of = np.empty(len(rows), np.int64)
    for places in _parts(np.arange(len(rows)), GALLERY_AT_A_TIME):
        products = torch.from_numpy(np.asarray(vectors[rows[places]])) @ centroids.T
        cell_of[places] = products.argmax(dim=1).numpy()
    ordered = _Ordered(vectors, rows, cell_of, path)
    ends = np.cumsum(np.bincount(cell_of, minlength=count))
    spans = list(pairwise([0, *ends.tolist()]))
    near = (centroids @ centroids.T).topk(min(PROBES, count), dim=1).indices.numpy()
    for number, (begin, end) in enumerate(spans):
        if begin < end:
            probed = sorted({number, *near[number].tolist()})
            gallery = np.concatenate([np.arange(*spans[cell]) for cell in probed])
            yield np.arange(begin, end), gallery, ordered


def _parts(values: Rows, size: int) -> Iterator[Rows]:
    for begin in range(0, len(values), size):
        yield values[begin : begin + size]
