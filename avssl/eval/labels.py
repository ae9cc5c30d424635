"""Labeled features for classification: folds, targets, what is left out and why, modalities alone or together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.eval.outcome import LabelTaskConfig


@dataclass(frozen=True)
class FeatureSet:
    """Features of N samples, in the order of their index.

    keys, labels: N each. present: {modality: bool (N,)}. rows: {modality: {layer: float32 (N, K, D)}} of K clips a
    sample, NaN where the sample lacks the modality. reasons: why a sample has no clips at all, "" otherwise.
    """

    keys: list[str]
    labels: list[dict[str, list[str]]]
    present: dict[str, NDArray[np.bool_]]
    rows: dict[str, dict[str, NDArray[np.float32]]]
    reasons: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    def select(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> FeatureSet:
        """These samples alone: a mask (N,) or positions."""
        numbers = np.arange(len(self))[chosen]
        return FeatureSet(
            [self.keys[row] for row in numbers],
            [self.labels[row] for row in numbers],
            {modality: values[numbers] for modality, values in self.present.items()},
            {m: {layer: values[numbers] for layer, values in layers.items()} for m, layers in self.rows.items()},
            [self.reasons[row] for row in numbers],
        )


Rows = NDArray[np.float32]  # (n, K, D): K clips of n samples
Targets = NDArray[Any]  # int64 (n,), or bool (n, C) with several labels


@dataclass(frozen=True)
class LabeledFeatures:
    """Samples that have a label and the modality. targets as in the module's Targets."""

    features: FeatureSet
    targets: Targets


@dataclass(frozen=True)
class Fold:
    """What is learned from and what is scored. left_out: {"train", "test"}: {reason: number of samples}."""

    name: str
    train: LabeledFeatures
    test: LabeledFeatures
    classes: list[str]
    left_out: dict[str, dict[str, int]]


def make_fold(
    name: str, train: FeatureSet, test: FeatureSet, config: LabelTaskConfig, modalities: Sequence[str]
) -> Fold:
    """Targets of both sides by one list of classes; samples without a label or a modality are left out and counted."""
    parts, left_out = {}, {}
    for side, features in (("train", train), ("test", test)):
        parts[side], left_out[side] = usable(features, config.label_field, modalities)
    names = {one for part in parts.values() for labels in part.labels for one in labels[config.label_field]}
    classes = sorted(names)
    labeled = {
        side: LabeledFeatures(part, targets_of(part, config.label_field, classes, multi_label=config.multi_label))
        for side, part in parts.items()
    }
    return Fold(name, labeled["train"], labeled["test"], classes, left_out)


def usable(features: FeatureSet, label_field: str, modalities: Sequence[str]) -> tuple[FeatureSet, dict[str, int]]:
    """Samples with a label (label_field "" asks for none) and all of the modalities, and how many lack what.

    ValueError when none is left.
    """
    labeled = np.array([not label_field or bool(labels.get(label_field)) for labels in features.labels])
    left_out = {"no label": int((~labeled).sum())} if label_field else {}
    chosen = labeled
    for modality in modalities:
        left_out[f"no {modality}"] = int((chosen & ~features.present[modality]).sum())
        chosen = chosen & features.present[modality]
    if not chosen.any():
        found = sorted({one for labels in features.labels for one in labels})
        counts = ", ".join(f"{why}: {count}" for why, count in left_out.items())
        raise ValueError(
            f"none of {len(features)} samples has a label of field {label_field!r} and {' and '.join(modalities)} "
            f"({counts}). Label fields here are {', '.join(found) or 'none'}: set label_field"
        )
    return features.select(chosen), left_out


def targets_of(features: FeatureSet, label_field: str, classes: Sequence[str], *, multi_label: bool) -> Targets:
    """int64 (n,), or bool (n, C) with multi_label. ValueError for several labels where one is expected."""
    number = {name: position for position, name in enumerate(classes)}
    names = [labels[label_field] for labels in features.labels]
    if multi_label:
        table = np.zeros((len(names), len(classes)), np.bool_)
        for row, own in enumerate(names):
            table[row, [number[one] for one in own]] = True
        return table
    several = [row for row, own in enumerate(names) if len(own) > 1]
    if several:
        raise ValueError(
            f"sample {features.keys[several[0]]} has the labels {', '.join(names[several[0]])}, and {len(several)} "
            f"samples have several of field {label_field!r}; set multi_label: true"
        )
    return np.array([number[own[0]] for own in names], np.int64)


def labels_digest(fold: Fold) -> bytes:
    """Of the keys and targets of both sides: the same samples with other labels are another task."""
    digest = hashlib.sha256("\n".join(fold.classes).encode())
    for side in (fold.train, fold.test):
        order = np.argsort(np.array(side.features.keys))
        digest.update(np.ascontiguousarray(side.targets[order].astype(np.int64)).tobytes())
    return digest.digest()
