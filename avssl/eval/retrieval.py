"""Retrieval between modalities (of the audio of a video, and of the video of an audio clip) and within one modality.

Within a modality, rows with the label of the query are right. Between modalities, row i of queries and gallery is the
same clip. Ties are counted pessimistically: every row that is as similar as the target is ranked before it. Thus a
constant embedding gets the last rank everywhere and recall 0 (for k < N).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from avssl.ops.nearest import class_numbers, similarity_chunks, unit_rows

RECALL_AT = (1, 5, 10)
DIRECTIONS = ("video_to_audio", "audio_to_video")


def _paired(queries: Any, gallery: Any) -> tuple[torch.Tensor, torch.Tensor]:
    query_rows, gallery_rows = unit_rows(queries, "queries"), unit_rows(gallery, "gallery")
    if query_rows.shape != gallery_rows.shape or len(query_rows) == 0:
        raise ValueError(
            f"queries have shape {tuple(query_rows.shape)} and the gallery {tuple(gallery_rows.shape)}; row i of one "
            "belongs to row i of the other, so both must be equal and hold at least one row"
        )
    return query_rows, gallery_rows.to(query_rows.device)


def retrieval_ranks(queries: Any, gallery: Any, *, chunk_size: int | None = None) -> NDArray[np.int64]:
    """Rank of row i of the gallery (N, D) for query i of (N, D) by cosine: int64 (N,) in [1, N], 1 is the most similar.

    Pessimistic under ties: the rank is the number of gallery rows at least as similar as the target.
    """
    query_rows, gallery_rows = _paired(queries, gallery)
    ranks = []
    for start, similarity in similarity_chunks(query_rows, gallery_rows, chunk_size):
        target = torch.arange(start, start + len(similarity), device=similarity.device)[:, None]
        ranks.append((similarity >= similarity.gather(1, target)).sum(dim=1).cpu())
    return torch.cat(ranks).numpy()


def recall(ranks: NDArray[np.int64], recall_at: Sequence[int] = RECALL_AT) -> dict[str, float]:
    """{"recall_at_<k>": share of ranks <= k, ..., "median_rank": median} of ranks (N,) >= 1, N >= 1."""
    if len(ranks) == 0 or min(recall_at, default=1) < 1:
        raise ValueError(f"recall needs at least one rank and k >= 1; got {len(ranks)} ranks, k = {list(recall_at)}")
    result = {f"recall_at_{k}": float((ranks <= k).mean()) for k in recall_at}
    return {**result, "median_rank": float(np.median(ranks))}


def class_precision_rows(
    queries: Any, gallery: Any, labels: Any, *, exclude_pair: bool = False, chunk_size: int | None = None
) -> NDArray[np.float64]:
    """Whether the gallery row closest to each query has its label: float64 (N,), 1 or 0, or a share where rows tie.

    queries, gallery: (N, D), row i of both is the same clip; labels: (N,) integers. Several equally close rows count
    with the share of them that has the label, so that a constant embedding gets exactly chance.
    exclude_pair: leave row i out of the gallery of query i; otherwise finding it counts as right.
    """
    query_rows, gallery_rows = _paired(queries, gallery)
    numbers = class_numbers(labels, len(query_rows)).to(query_rows.device)
    if exclude_pair and len(query_rows) < 2:
        raise ValueError("exclude_pair leaves an empty gallery: at least 2 rows are needed")
    precisions = []
    for start, similarity in similarity_chunks(query_rows, gallery_rows, chunk_size):
        rows = torch.arange(start, start + len(similarity), device=similarity.device)
        if exclude_pair:
            similarity[rows - start, rows] = -torch.inf
        closest = similarity == similarity.amax(dim=1, keepdim=True)
        same = numbers[rows][:, None] == numbers[None, :]
        precisions.append(((closest & same).sum(dim=1) / closest.sum(dim=1).double()).cpu())
    return torch.cat(precisions).numpy()


def class_precision(
    queries: Any, gallery: Any, labels: Any, *, exclude_pair: bool = False, chunk_size: int | None = None
) -> float:
    """The mean of class_precision_rows: the share of queries whose closest gallery row has their label."""
    return float(
        class_precision_rows(queries, gallery, labels, exclude_pair=exclude_pair, chunk_size=chunk_size).mean()
    )


def retrieval(
    video: Any,
    audio: Any,
    *,
    labels: Any = None,
    recall_at: Sequence[int] = RECALL_AT,
    exclude_pair: bool = False,
    chunk_size: int | None = None,
) -> dict[str, float]:
    """The metrics of both directions between video (N, D) and audio (N, D) embeddings of the same N clips.

    Returns {"video_to_audio_recall_at_1", ..., "video_to_audio_median_rank", and with labels (N,)
    "video_to_audio_class_precision"} and the same for "audio_to_video".

    >>> retrieval(np.eye(4), np.eye(4), recall_at=[1])["video_to_audio_recall_at_1"]
    1.0
    """
    metrics: dict[str, float] = {}
    for direction, (queries, gallery) in zip(DIRECTIONS, ((video, audio), (audio, video)), strict=True):
        of_direction = recall(retrieval_ranks(queries, gallery, chunk_size=chunk_size), recall_at)
        if labels is not None:
            of_direction["class_precision"] = class_precision(
                queries, gallery, labels, exclude_pair=exclude_pair, chunk_size=chunk_size
            )
        metrics |= {f"{direction}_{name}": value for name, value in of_direction.items()}
    return metrics


def chance_levels(
    num_rows: int, *, labels: Any = None, recall_at: Sequence[int] = RECALL_AT, exclude_pair: bool = False
) -> dict[str, float]:
    """The mean of the metrics over random orders of the gallery, under the names of retrieval.

    Recall at k: min(k / N, 1); median rank: (N + 1) / 2; class precision: the probability that a random row of
    the gallery (with exclude_pair other than row i) has the label of query i.
    """
    if num_rows < 1:
        raise ValueError(f"num_rows is {num_rows}; chance needs at least one row")
    levels = {f"recall_at_{k}": min(k / num_rows, 1.0) for k in recall_at}
    levels["median_rank"] = (num_rows + 1) / 2
    if labels is not None:
        counts = torch.bincount(class_numbers(labels, num_rows)).double()
        excluded = 1 if exclude_pair else 0
        levels["class_precision"] = float(
            (counts * (counts - excluded)).sum() / (num_rows * max(1, num_rows - excluded))
        )
    return {f"{direction}_{name}": value for direction in DIRECTIONS for name, value in levels.items()}


class LabelSearch(NamedTuple):
    """Of M queries: float64 (M,) average precision, int64 (M,) rank of the first right row; both 0 if there is none."""

    average_precision: NDArray[np.float64]
    first_rank: NDArray[np.int64]


def same_label_search(
    queries: Any, query_labels: Any, gallery: Any, gallery_labels: Any, *, exclude_own: bool
) -> LabelSearch:
    """Rank the gallery (N, D) by cosine for each of the queries (M, D); labels are integers (M,) and (N,).

    exclude_own: queries and gallery are the same rows, and row i is left out for query i. Ties are pessimistic: of
    equally close rows those with another label come first. Average precision is the mean, over the right rows, of the
    share of right rows up to each of them.
    """
    query_rows, gallery_rows = unit_rows(queries, "queries"), unit_rows(gallery, "gallery")
    query_classes, gallery_classes = torch.as_tensor(query_labels), torch.as_tensor(gallery_labels)
    if exclude_own and query_rows.shape != gallery_rows.shape:
        raise ValueError(
            f"exclude_own: queries are {tuple(query_rows.shape)}, the gallery {tuple(gallery_rows.shape)}; give the "
            "same rows"
        )
    precision, first = np.zeros(len(query_rows)), np.zeros(len(query_rows), np.int64)
    for start, similarity in similarity_chunks(query_rows, gallery_rows):
        for row, cosines in enumerate(similarity, start=start):
            same = gallery_classes == query_classes[row]
            kept = torch.ones(len(gallery_rows), dtype=torch.bool)
            if exclude_own:
                kept[row] = False
            same, close = same[kept], cosines[kept]
            if not bool(same.any()):
                continue
            # Two stable sorts, the wrong rows first and then by cosine, leave wrong rows first among equal cosines.
            order = torch.argsort(same.to(torch.int8), stable=True)
            order = order[torch.argsort(close[order], descending=True, stable=True)]
            ranks = torch.nonzero(same[order])[:, 0].double() + 1
            precision[row] = float((torch.arange(1, len(ranks) + 1) / ranks).mean())
            first[row] = int(ranks[0])
    return LabelSearch(precision, first)


def chance_of_same_label(
    query_labels: NDArray[Any], gallery_labels: NDArray[Any], recall_at: Sequence[int], *, exclude_own: bool
) -> dict[str, float]:
    """The mean over random orders: {"mean_average_precision", "recall_at_<k>"}, over queries with a right row.

    Recall at k: 1 - the probability that k rows drawn without replacement are all wrong. Average precision with R
    right rows of N: with the distribution of the rank r of the j-th right row, the mean is
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
            # product over the first k ranks of (wrong rows that remain) / (rows that remain)
            before = np.arange(min(k, total))
            recalls[k].append(1.0 - float(np.prod(np.clip(total - right - before, 0, None) / (total - before))))
    levels = {"mean_average_precision": float(np.mean(precision)) if precision else 0.0}
    return levels | {f"recall_at_{k}": float(np.mean(values)) if values else 0.0 for k, values in recalls.items()}
