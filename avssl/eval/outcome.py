"""The outcome of evaluation tasks: repeats with metrics that can be computed again.

A metric is a function of arrays with one entry per test row and of the rows' weights, and of nothing else. Weights of 1
give the value; counts of a bootstrap give the value on resampled rows (avssl/eval/compare.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.eval.configs import TaskConfig
from avssl.eval.metrics import KINDS, OF_PAIRS, prepared

Array = NDArray[Any]

ANCHORS = "positives"  # the repeat of the task `standard` whose rows are the training samples

# {key that was added to the configurations of tasks: its value where it is not used}
ADDED_KEYS: dict[str, Any] = {"encoders": {}, "layer_decay": 1.0, "final_weight_decay": None}


@dataclass(frozen=True)
class Metric:
    """A kind of avssl/eval/metrics.py and the columns of a Repeat that it is computed from.

    chance: the value for features without information, None where it is not known.

    >>> Metric("mean", ("right",), chance=0.5).kind
    'mean'
    """

    kind: str
    columns: tuple[str, ...]
    chance: float | None = None


@dataclass(frozen=True)
class Repeat:
    """One fold or one seed.

    name: "" for the only one, else "fold 1", "seed 0", ... keys: of the n test rows (samples, or what the protocol
    says), each once. columns: arrays (n, ...) of numbers or bools that the metrics are computed from. train_keys: of
    the training samples, for the hash of the sample list. classes: names of the columns of scores. sources: uint64
    (n,), digests of the files that the rows are from, None where they are not known; `avssl evaluate` fills them in
    for rows that are samples of the task's folders.

    >>> accuracy = Metric("mean", ("right",))
    >>> Repeat("seed 0", ["a", "b"], {"right": np.array([True, False])}, {"accuracy": accuracy}).values()
    {'accuracy': 0.5}
    """

    name: str
    keys: list[str]
    columns: dict[str, Array]
    metrics: dict[str, Metric]
    train_keys: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    sources: NDArray[np.uint64] | None = None

    def __post_init__(self) -> None:
        """ValueError for lengths that differ, repeated keys, unknown kinds of metrics and missing columns."""
        if len(set(self.keys)) != len(self.keys) or not self.keys:
            raise ValueError(f"repeat {self.name!r} has {len(self.keys)} rows of {len(set(self.keys))} keys: each once")
        for name, values in self.columns.items():
            if len(values) != len(self.keys):
                raise ValueError(f"column {name!r} has {len(values)} rows; there are {len(self.keys)} keys")
        if self.sources is not None and self.sources.shape != (len(self.keys),):
            raise ValueError(f"sources have shape {self.sources.shape}; there are {len(self.keys)} keys")
        for name, metric in self.metrics.items():
            missing = [column for column in metric.columns if column not in self.columns]
            if missing or metric.kind not in KINDS:
                raise ValueError(f"metric {name!r}: kind {metric.kind!r} of {sorted(KINDS)}, columns missing {missing}")

    @cached_property
    def _prepared(self) -> dict[str, Callable[[Array], float]]:
        return {
            name: prepared(metric.kind, *(self.columns[column] for column in metric.columns))
            for name, metric in self.metrics.items()
        }

    def values(self, weights: Array | None = None, halves: Array | None = None) -> dict[str, float]:
        """{metric: value}. weights: (n,), of the rows; None counts each row once. halves: the same for the metrics of
        OF_PAIRS, without copies of a row; default `weights`.
        """
        row_weights = np.ones(len(self.keys)) if weights is None else weights
        of_pairs = row_weights if halves is None else halves
        return {
            name: float(function(of_pairs if self.metrics[name].kind in OF_PAIRS else row_weights))
            for name, function in self._prepared.items()
        }


@dataclass(frozen=True)
class Outcome:
    """The result of a task with one set of weights.

    protocol: what must be equal for two results to be compared, besides the configuration; facts: what may differ
    (times, the steps of a solver); notes: sentences that are shown and not stored.

    >>> Outcome([classified(["a", "b"], np.eye(2), np.array([0, 1]), ["cat", "dog"])]).protocol
    {}
    """

    repeats: list[Repeat]
    protocol: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def classified(
    keys: Sequence[str],
    scores: Array,
    targets: Array,
    classes: Sequence[str],
    *,
    name: str = "",
    prefix: str = "",
    train_keys: Sequence[str] = (),
    train_targets: Array | None = None,
) -> Repeat:
    """The scores of a classifier as a Repeat.

    Args:
        keys: n test rows. scores: float (n, C), higher is more likely. classes: C names.
        targets: int (n,), class numbers in [0, C), single-label; or bool (n, C), multi-label.
        name: of the fold or seed. prefix: of the metrics' and columns' names, for example "video_conv5x_".
        train_keys, train_targets: of the training samples; the targets give the chance level of accuracy.

    Single-label: top1_accuracy, top5_accuracy (with more than 5 classes), class_mean_accuracy. Of equal scores the
    lower class comes first in top 1; a true class that ties with others is ranked last among them in top 5. Chance of
    top 1 is always predicting the most frequent class of train_targets; of the class mean, 1 / (classes tested).
    Multi-label: mean_average_precision, roc_auc, d_prime, each the mean over the classes of some but not all rows.

    >>> classified(["a", "b"], np.eye(2), np.array([0, 0]), ["cat", "dog"]).values()["top1_accuracy"]
    0.5
    """
    scores, targets = np.asarray(scores, dtype=np.float32), np.asarray(targets)
    shape = (len(keys), len(classes))
    if scores.shape != shape or targets.shape not in (shape, shape[:1]) or not np.isfinite(scores).all():
        raise ValueError(
            f"scores {scores.shape} and targets {targets.shape}: must be finite, of {shape} (rows, classes)"
        )
    columns: dict[str, Array] = {f"{prefix}scores": scores, "targets": targets}
    if targets.ndim == 2:
        columns["targets"] = targets.astype(np.bool_)
        metrics = _multi_label_metrics(prefix, targets)
    else:
        metrics = _single_label_metrics(prefix, columns, train_targets)
    return Repeat(name, list(keys), columns, metrics, list(train_keys), list(classes))


def _multi_label_metrics(prefix: str, targets: Array) -> dict[str, Metric]:
    of_scores = (f"{prefix}scores", "targets")
    usable = targets.any(axis=0) & ~targets.all(axis=0)
    frequency = float(targets[:, usable].mean(axis=0).mean()) if usable.any() else None
    return {
        f"{prefix}mean_average_precision": Metric("mean_average_precision", of_scores, frequency),
        f"{prefix}roc_auc": Metric("roc_auc", of_scores, 0.5),
        f"{prefix}d_prime": Metric("d_prime", of_scores, 0.0),
    }


def _single_label_metrics(prefix: str, columns: dict[str, Array], train_targets: Array | None) -> dict[str, Metric]:
    """The metrics of single labels; the columns that they need are added to `columns`."""
    scores, targets = columns[f"{prefix}scores"], columns["targets"]
    columns[f"{prefix}right"] = scores.argmax(axis=1) == targets
    most_frequent = None if train_targets is None else int(np.bincount(np.asarray(train_targets)).argmax())
    metrics = {
        f"{prefix}top1_accuracy": Metric(
            "mean", (f"{prefix}right",), None if most_frequent is None else float((targets == most_frequent).mean())
        ),
        f"{prefix}class_mean_accuracy": Metric(
            "class_mean", (f"{prefix}right", "targets"), 1 / len(np.unique(targets))
        ),
    }
    if scores.shape[1] > 5:
        of_target = scores[np.arange(len(scores)), targets][:, None]
        columns[f"{prefix}top5_right"] = (scores >= of_target).sum(axis=1) <= 5
        metrics[f"{prefix}top5_accuracy"] = Metric("mean", (f"{prefix}top5_right",), 5 / scores.shape[1])
    return metrics


def merged(repeats: Sequence[Repeat]) -> Repeat:
    """Several layers or modalities of one fold as one Repeat. ValueError unless they have the same rows."""
    first = repeats[0]
    columns: dict[str, Array] = {}
    metrics: dict[str, Metric] = {}
    for repeat in repeats:
        if (repeat.name, repeat.keys, repeat.train_keys, repeat.classes) != (
            first.name,
            first.keys,
            first.train_keys,
            first.classes,
        ):
            raise ValueError(f"repeats {first.name!r} and {repeat.name!r} have different rows and cannot be merged")
        columns |= repeat.columns
        metrics |= repeat.metrics
    return Repeat(first.name, first.keys, columns, metrics, first.train_keys, first.classes)


def settings_of(config: TaskConfig) -> dict[str, Any]:
    """The keys of a configuration as plain values, without those that later versions added and that are not used.

    So the results and trainings of earlier versions are those of the same protocol.
    """
    settings = asdict(config)
    for section in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        for key, unused in ADDED_KEYS.items():
            if key in section and section[key] == unused:
                del section[key]
    return settings


def targets_digest(keys: Sequence[str], labels: Sequence[Any]) -> str:
    """16 hex digits of the label names (any plain value) of rows in the order of their keys: equal for equal labels."""
    named = sorted(zip(keys, labels, strict=True), key=lambda pair: pair[0])
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]


def keys_digest(keys: Sequence[str]) -> str:
    """16 hex digits of the sorted keys; results are comparable only if it is equal."""
    return hashlib.sha256("\n".join(sorted(set(keys))).encode()).hexdigest()[:16]
