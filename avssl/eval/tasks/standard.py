"""The task `standard`, from two embedding tables: weighted kNN for every modality and label field, audio <-> video
retrieval, and the precision of CMA's positives (how many are of the anchor's own class). Every measure keeps its rows,
so that two results can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from avssl.embedding.table import MODALITIES, EmbeddingTable
from avssl.eval.knn import knn_chance, knn_classify
from avssl.eval.outcome import Metric, Outcome, Repeat, keys_digest
from avssl.eval.retrieval import DIRECTIONS, RECALL_AT, chance_levels, class_precision_rows, retrieval_ranks
from avssl.ops.nearest import class_numbers, label_numbers

Columns = dict[str, NDArray[Any]]
Metrics = dict[str, Metric]


@dataclass
class StandardConfig:
    """What to evaluate on. Recalls and ranks are over all pairs of the test split."""

    task: str = "standard"
    train: str = ""  # shard folder whose labels the kNN knows
    test: str = ""  # shard folder that is scored
    num_neighbors: int = 20
    temperature: float = 0.07
    knn_on: Literal["feature", "embedding"] = "feature"  # encoder output, or the shared space after the projector
    num_positives: int = 32  # size of the CMA positive sets whose precision is measured
    window_seconds: float = 0.0  # 0: the run's audio clip, or its video clip if it has no sound
    allow_overlap: bool = False  # evaluate a test set that was trained on; the result says how many samples were
    batch_size: int = 64
    num_workers: int = 2
    device: str = "cpu"

    @property
    def name(self) -> str:
        """There is one such result a run."""
        return ""


def evaluate_tables(
    train: EmbeddingTable,
    test: EmbeddingTable,
    task: StandardConfig,
    positives: Mapping[str, torch.Tensor] | None = None,
) -> Outcome:
    """All measures of one set of weights. Windows of a clip are pooled first.

    Two repeats, of different rows: "test", the test clips, and "positives", the training clips as anchors. The second
    has no metrics for runs without positives; its rows are there all the same, so that any two runs can be compared.

    Args:
        positives: {agreement: int64 (N, k)} of the N training clips.

    Raises:
        ValueError: nothing can be measured: kNN needs labels in both splits, retrieval video and sound of one clip.
    """
    facts = protocol(train, test, task)
    train, test = train.pool_by_key(), test.pool_by_key()
    columns: Columns = {}
    metrics: Metrics = {}
    _knn(train, test, task, columns, metrics)
    _across(test, columns, metrics)
    anchors = _positives(positives or {}, train)
    if not metrics and not anchors.metrics:
        raise ValueError(
            f"nothing can be evaluated: embedded are {', '.join(test.modalities()) or 'nothing'}; the training split "
            f"has the label fields {train.label_fields()}, the test split {test.label_fields()}. kNN needs a field "
            "that both have (python -m data_prep index --labels), retrieval video and sound of the same clips"
        )
    return Outcome([Repeat("test", test.keys, columns, metrics, train.keys), anchors], facts)


def _knn(train: EmbeddingTable, test: EmbeddingTable, task: StandardConfig, columns: Columns, metrics: Metrics) -> None:
    """<modality>_knn_<label field>: was each test clip that has both named right?"""
    for label_field in test.label_fields():
        for modality in MODALITIES:
            asked_rows, known_rows = (_labeled(table, modality, label_field) for table in (test, train))
            if not asked_rows.any() or not known_rows.any():
                continue
            known, asked = train.select(known_rows), test.select(asked_rows)
            # A test class without a training row is counted as wrong, not refused.
            names, asked_names = known.label(label_field), asked.label(label_field)
            classes = sorted({str(name) for name in [*names, *asked_names]})
            numbers, targets = label_numbers(names, classes)[0], label_numbers(asked_names, classes)[0]
            column = f"{modality}_{task.knn_on}"
            options: dict[str, Any] = {"num_neighbors": task.num_neighbors, "temperature": task.temperature}
            found = knn_classify(getattr(known, column), numbers, getattr(asked, column), targets, **options)
            name = f"{modality}_knn_{label_field}"
            columns[f"{name}_asked"] = asked_rows
            columns[f"{name}_right"] = _spread(found.predicted == targets.numpy(), asked_rows)
            metrics[name] = Metric("mean_where", (f"{name}_right", f"{name}_asked"), knn_chance(numbers, targets))


def _labeled(table: EmbeddingTable, modality: str, label_field: str) -> NDArray[np.bool_]:
    """bool (n,): rows that have the modality and a label."""
    if label_field not in table.label_fields() or table.embedding(modality) is None:
        return np.zeros(len(table), np.bool_)
    return np.array([name is not None for name in table.label(label_field)]) & table.has(modality)


def _spread(values: NDArray[Any], rows: NDArray[np.bool_]) -> NDArray[Any]:
    """Values of some rows (bool (n,)) as a column of all n, 0 elsewhere."""
    result = np.zeros(len(rows), values.dtype)
    result[rows] = values
    return result


def _across(test: EmbeddingTable, columns: Columns, metrics: Metrics) -> None:
    """Ranks in both directions over the clips with video and sound, and the class of what is closest.

    Class precision leaves a clip's own other half out: finding that is what recall counts.
    """
    if test.video_embedding is None or test.audio_embedding is None:
        return
    has_pair = test.has_video & test.has_audio
    if not has_pair.any():
        return
    pairs = test.select(has_pair)
    chance = chance_levels(len(pairs))
    columns["has_pair"] = has_pair
    sides = (pairs.video_embedding, pairs.audio_embedding)
    both = list(zip(DIRECTIONS, (sides, sides[::-1]), strict=True))
    for name, (queries, gallery) in both:
        ranks = retrieval_ranks(queries, gallery)
        columns[f"{name}_rank"] = _spread(ranks, has_pair)
        for k in RECALL_AT:
            columns[f"{name}_found_at_{k}"] = _spread(ranks <= k, has_pair)
            recall = f"{name}_recall_at_{k}"
            metrics[recall] = Metric("mean_where", (f"{name}_found_at_{k}", "has_pair"), chance[recall])
        middle = f"{name}_median_rank"
        metrics[middle] = Metric("median_where", (f"{name}_rank", "has_pair"), chance[middle])
    for label_field in pairs.label_fields():
        if None in pairs.label(label_field):
            continue
        numbers, _ = label_numbers(pairs.label(label_field))
        levels = chance_levels(len(pairs), labels=numbers, exclude_pair=True)
        for name, (queries, gallery) in both:
            precision = f"{name}_class_precision_{label_field}"
            columns[precision] = _spread(class_precision_rows(queries, gallery, numbers, exclude_pair=True), has_pair)
            metrics[precision] = Metric("mean_where", (precision, "has_pair"), levels[f"{name}_class_precision"])


def _positives(positives: Mapping[str, torch.Tensor], train: EmbeddingTable) -> Repeat:
    """Precision of every anchor's positive set against every label field that all training clips have."""
    by_index = train.select(np.argsort(train.index))
    columns: Columns = {}
    metrics: Metrics = {}
    for label_field in by_index.label_fields():
        if None in by_index.label(label_field):
            continue
        numbers, _ = label_numbers(by_index.label(label_field))
        for agreement, sets in positives.items():
            name = f"positive_precision_{agreement}_{label_field}"
            found = positive_precision(sets, numbers)
            columns[name] = found.per_anchor
            metrics[name] = Metric("mean", (name,), found.chance)
    return Repeat("positives", by_index.keys, columns, metrics)


def protocol(train: EmbeddingTable, test: EmbeddingTable, task: StandardConfig) -> dict[str, Any]:
    """What must be equal for two results to be compared."""
    return {
        "num_train": len(set(train.keys)),
        "num_test": len(set(test.keys)),
        "modalities": test.modalities(),
        "train_samples": keys_digest(train.keys),
        "test_samples": keys_digest(test.keys),
        "num_neighbors": task.num_neighbors,
        "temperature": task.temperature,
        "knn_on": task.knn_on,
        "num_positives": task.num_positives,
        "window_seconds": test.metadata.get("window_seconds"),
        "ties": "pessimistic",
    }


@dataclass(frozen=True)
class PositivePrecision:
    """overall: share in [0, 1] of all positives with their anchor's label; chance: the same for random positives.

    per_class: {class number: share over the anchors of that class}, classes without anchors left out.
    per_anchor: the same share of each anchor, float64 (N,).
    """

    overall: float
    per_class: dict[int, float]
    chance: float
    per_anchor: NDArray[np.float64]


def positive_precision(positives: Any, labels: Any) -> PositivePrecision:
    """Precision of positive sets against labels that training has never seen.

    Args:
        positives: int64 (N, k), row i holds the clips taken as positives of clip i, each in [0, N) and not i itself.
        labels: (N,) integers.

    Raises:
        ValueError: other shapes, an index out of range, or an anchor among its own positives (it would always count
            as right and make any search look better than it is).
    """
    sets = torch.as_tensor(positives).detach().cpu()
    if sets.ndim != 2 or sets.is_floating_point() or 0 in sets.shape:
        raise ValueError(f"positives are {sets.dtype} {tuple(sets.shape)}; expected integers (N, k) with N, k > 0")
    count = len(sets)
    numbers = class_numbers(labels, count).cpu()
    if int(sets.min()) < 0 or int(sets.max()) >= count:
        raise ValueError(f"positives lie in [{int(sets.min())}, {int(sets.max())}]; allowed is [0, {count - 1}]")
    own = (sets == torch.arange(count)[:, None]).any(dim=1)
    if bool(own.any()):
        raise ValueError(
            f"{int(own.sum())} anchors are among their own positives, the first is {int(own.int().argmax())}"
        )
    share = (numbers[sets.long()] == numbers[:, None]).double().mean(dim=1)
    per_class = {int(number): float(share[numbers == number].mean()) for number in torch.unique(numbers)}
    sizes = torch.bincount(numbers).double()
    chance = float((sizes * (sizes - 1)).sum() / (count * (count - 1)))
    return PositivePrecision(float(share.mean()), per_class, chance, share.numpy())
