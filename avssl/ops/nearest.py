"""Nearest rows by cosine, exactly and the same for every chunk size: used by kNN, retrieval and the report.

Cosines are computed in float64 from any input dtype and rounded to multiples of 2^-30. A matrix product may give
two equal rows scores that differ in the last bit, depending on where a chunk ends; after rounding they are equal, so
every result is the same for any chunk size, thread count or order of summation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_RESOLUTION = 2.0**30
_CHUNK_ELEMENTS = 2**24  # float64 similarities held at once: 128 MiB


def unit_rows(features: Any, name: str = "features") -> torch.Tensor:
    """(N, D) array or tensor of numbers -> float64 tensor (N, D) with rows of length 1, on the input's device.

    Zero rows stay zero (cosine 0 with all rows). Raises ValueError for other shapes and for rows that are not finite.
    """
    rows = torch.as_tensor(features).detach().to(torch.float64)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"{name} has shape {tuple(rows.shape)}; expected (rows, dim) with dim > 0")
    wrong = ~torch.isfinite(rows).all(dim=1)
    if bool(wrong.any()):
        raise ValueError(
            f"{name} has {int(wrong.sum())} rows that are not finite, the first is row {int(wrong.int().argmax())}; "
            "leave out rows without this modality (table.select(table.has_video))"
        )
    return torch.nn.functional.normalize(rows, dim=1, eps=1e-300)


def class_numbers(labels: Any, num_rows: int, name: str = "labels") -> torch.Tensor:
    """(N,) integers -> int64 tensor. Raises ValueError for another length, other kinds of numbers or negative ones."""
    numbers = torch.as_tensor(labels).detach()
    if numbers.shape != (num_rows,):
        raise ValueError(f"{name} has shape {tuple(numbers.shape)}; expected ({num_rows},), one per row")
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise ValueError(f"{name} has type {numbers.dtype}; expected integers (see label_numbers for names)")
    if num_rows and int(numbers.min()) < 0:
        raise ValueError(f"{name} holds {int(numbers.min())}; class numbers start at 0")
    return numbers.to(torch.int64)


def label_numbers(names: Sequence[str | None], classes: Sequence[str] | None = None) -> tuple[torch.Tensor, list[str]]:
    """Names -> (int64 (N,), class names): number i stands for class name i.

    classes: the order of the classes, for example of the training split; default: the names that occur, sorted.

    Raises ValueError if a row has no name, or a name that is not among `classes`.
    """
    missing = [row for row, name in enumerate(names) if name is None]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(names)} rows have no label, the first is row {missing[0]}; select rows"
        )
    order = sorted({str(name) for name in names}) if classes is None else [str(name) for name in classes]
    number = {name: position for position, name in enumerate(order)}
    unknown = sorted({str(name) for name in names} - number.keys())
    if unknown:
        raise ValueError(
            f"labels {unknown[:5]} are not among the {len(order)} classes; pass the classes of both splits"
        )
    return torch.tensor([number[str(name)] for name in names], dtype=torch.int64), order


def similarity_chunks(
    queries: torch.Tensor, gallery: torch.Tensor, chunk_size: int | None = None
) -> Iterator[tuple[int, torch.Tensor]]:
    """Pairs (first query row, rounded cosines float64 (rows, N)) over queries (M, D) and gallery (N, D), unit rows.

    chunk_size: number of queries per chunk; None: as many as fit into 128 MiB. It does not change the result.
    """
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries have dim {queries.shape[1]} and the gallery {gallery.shape[1]}; both must be equal")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1")
    size = chunk_size or max(1, _CHUNK_ELEMENTS // max(1, len(gallery)))
    for start in range(0, len(queries), size):
        yield start, torch.round(queries[start : start + size] @ gallery.T * _RESOLUTION) / _RESOLUTION


def nearest(
    queries: Any, gallery: Any, num_neighbors: int, *, chunk_size: int | None = None
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.float64]]]:
    """Rows of `gallery` (N, D) nearest to each of `queries` (M, D) by cosine, best first; of equals the lower row.

    Returns (rows int64 (M, k), cosines float64 (M, k)) with k = min(num_neighbors, N). Raises ValueError for an empty
    gallery.
    """
    left, right = unit_rows(queries, "queries"), unit_rows(gallery, "gallery")
    if len(right) == 0 or num_neighbors < 1:
        raise ValueError(f"cannot give {num_neighbors} neighbors out of {len(right)} gallery rows; both must be >= 1")
    count = min(num_neighbors, len(right))
    rows = [torch.empty((0, count), dtype=torch.int64)]
    cosines = [torch.empty((0, count), dtype=torch.float64)]
    for _, similarity in similarity_chunks(left, right.to(left.device), chunk_size):
        values, positions = _stable_top(similarity, count)
        rows.append(positions.cpu())
        cosines.append(values.cpu())
    return torch.cat(rows).numpy(), torch.cat(cosines).numpy()


def possible_nearest(
    queries: Any, gallery: NDArray[Any], count: int, groups: Sequence[str] | None = None
) -> NDArray[np.int64]:
    """Rows of `gallery` (N, D), in order, among which are the `count` nearest of every one of `queries` (M, D).

    A look in float32, which takes a fraction of the time of `nearest`: rows are kept whose cosine may be among the
    best, by the bound of its rounding. With `groups`, a name a row, only the nearest row of each group is counted.
    Rows whose length float32 cannot square, or that are not finite, are kept: `nearest` decides about them.
    """
    left, right = unit_rows(queries, "queries").cpu().float(), np.asarray(gallery, np.float32)
    with np.errstate(all="ignore"):
        squares = np.einsum("nd,nd->n", right, right)
        is_sure = (squares > 1e-30) & (squares < 1e30)
        lengths = np.sqrt(squares)
    slack = (right.shape[1] + 8) * 2.0**-22  # twice the error of a sum of D products and of both lengths, in any order
    chosen = ~is_sure
    size = min(len(left), max(1, _CHUNK_ELEMENTS // max(1, len(right))))
    held = np.empty((size, len(right)), np.float32)
    for start in range(0, len(left), max(1, size)):
        some = left[start : start + size]
        cosines = held[: len(some)]
        # NumPy's own threads wait for each other at this size.
        torch.mm(some, torch.from_numpy(right).T, out=torch.from_numpy(cosines))
        with np.errstate(all="ignore"):
            cosines /= lengths
        cosines[:, ~is_sure] = -np.inf
        for row in cosines:
            chosen |= row >= _kth_best(row, count, groups) - slack
    return np.flatnonzero(chosen)


def _kth_best(values: NDArray[np.float32], count: int, groups: Sequence[str] | None) -> float:
    """The count-th largest value, of groups that of their best; -inf if there are fewer."""
    if groups is None:
        return float(np.partition(values, -count)[-count]) if count <= len(values) else -np.inf
    seen = set()
    for position in np.argsort(-values):
        seen.add(groups[position])
        if len(seen) == count:
            return float(values[position])
    return -np.inf


def _stable_top(similarity: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As topk, but of equal values the lower positions are taken and come first."""
    values, positions = similarity.topk(count, dim=1)
    threshold = values[:, -1:]
    tied = (similarity >= threshold).sum(dim=1) > count
    if bool(tied.any()):
        # All positions above the threshold are taken; of those equal to it, the lowest fill up to the count.
        above, equal = similarity[tied] > threshold[tied], similarity[tied] == threshold[tied]
        remaining = count - above.sum(dim=1, keepdim=True)
        chosen = above | (equal & (equal.cumsum(dim=1) <= remaining))
        positions[tied] = chosen.nonzero()[:, 1].reshape(-1, count)
    positions = positions.sort(dim=1).values
    values = similarity.gather(1, positions)
    order = values.argsort(dim=1, descending=True, stable=True)
    return values.gather(1, order), positions.gather(1, order)


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows (..., D) divided by their lengths; zero rows stay zero."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    result: NDArray[np.float32] = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    return result
