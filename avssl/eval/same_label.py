"""Search within one modality: what has the query's label counts as right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from avssl.ops.nearest import similarity_chunks, unit_rows


class Found(NamedTuple):
    """Of M queries: float64 (M,) average precision, int64 (M,) rank of the first right row; both 0 without any."""

    average_precision: NDArray[np.float64]
    first_rank: NDArray[np.int64]


def same_label_search(
    queries: Any, query_labels: Any, gallery: Any, gallery_labels: Any, *, exclude_own: bool
) -> Found:
    """Rank the gallery (N, D) by cosine for each of the queries (M, D); labels are integers (M,) and (N,).

    exclude_own: queries and gallery are the same rows; row i does not find itself. Ties are pessimistic: of equally
    close rows those with another label come first. Average precision is the mean over right rows of the share of right
    rows at or before them.
    """
    left, right = unit_rows(queries, "queries"), unit_rows(gallery, "gallery")
    asked, there = torch.as_tensor(query_labels), torch.as_tensor(gallery_labels)
    if exclude_own and left.shape != right.shape:
        raise ValueError(f"exclude_own: queries are {tuple(left.shape)}, the gallery {tuple(right.shape)}; be the same")
    precision, first = np.zeros(len(left)), np.zeros(len(left), np.int64)
    for start, similarity in similarity_chunks(left, right):
        for row, cosines in enumerate(similarity, start=start):
            same = there == asked[row]
            kept = torch.ones(len(right), dtype=torch.bool)
            if exclude_own:
                kept[row] = False
            same, close = same[kept], cosines[kept]
            if not bool(same.any()):
                continue
            # Two stable sorts: by being wrong, then by cosine. Equal cosines keep the wrong ones in front.
            order = torch.argsort(same.to(torch.int8), stable=True)
            order = order[torch.argsort(close[order], descending=True, stable=True)]
            ranks = torch.nonzero(same[order])[:, 0].double() + 1
            precision[row] = float((torch.arange(1, len(ranks) + 1) / ranks).mean())
            first[row] = int(ranks[0])
    return Found(precision, first)


def chance_of_same_label(
    query_labels: NDArray[Any], gallery_labels: NDArray[Any], recall_at: Sequence[int], *, exclude_own: bool
) -> dict[str, float]:
    """What a random order reaches on average: {"mean_average_precision", "recall_at_<k>"}, over queries with a match.

    Recall at k: 1 - the chance that k rows drawn without replacement are all wrong. Average precision of R right rows
    of N: the right rows lie anywhere; the j-th of them is at rank r with its known distribution, so that the mean is
    (1 / N) sum_r (1 + (r - 1) (R - 1) / (N - 1)) / r.
    """
    counts = np.bincount(gallery_labels, minlength=int(max(query_labels.max(), gallery_labels.max())) + 1)
    total = len(gallery_labels) - int(exclude_own)
    precision: list[float] = []
    recalls: dict[int, list[float]] = {k: [] for k in recall_at}
    ranks = np.arange(1, total + 1)
    for label in query_labels:
        right = int(counts[label]) - int(exclude_own)
        if right < 1:
            continue
        share = (right - 1) / (total - 1) if total > 1 else 0.0
        precision.append(float(((1 + (ranks - 1) * share) / ranks).mean()))
        for k in recall_at:
            # product over the first k places of (wrong rows left) / (rows left)
            places = np.arange(min(k, total))
            recalls[k].append(1.0 - float(np.prod(np.clip(total - right - places, 0, None) / (total - places))))
    levels = {"mean_average_precision": float(np.mean(precision)) if precision else 0.0}
    return levels | {f"recall_at_{k}": float(np.mean(values)) if values else 0.0 for k, values in recalls.items()}
