"""Labeled features for classification: folds, targets, and which samples are left out and why."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.eval.configs import LabelTaskConfig


@dataclass(frozen=True)
class FeatureSet:
    """Features of N samples, in the order of their index.

    keys, labels: N each. present: {modality: bool (N,)}. rows: {modality: {layer: float32 (N, K, D)}} of K clips per
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
        """The features of some samples. chosen: a mask bool (N,), or positions."""
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
    """Samples that have a label and all modalities, and their targets."""

    features: FeatureSet
    targets: Targets


@dataclass(frozen=True)
class Fold:
    """Training and test samples of one fold. left_out: {"train", "test"}: {reason: number of samples}."""

    name: str
    train: LabeledFeatures
    test: LabeledFeatures
    classes: list[str]
    left_out: dict[str, dict[str, int]]


def make_fold(
    name: str, train: FeatureSet, test: FeatureSet, config: LabelTaskConfig, modalities: Sequence[str]
) -> Fold:
    """A fold with one list of classes; samples without a label or a modality are left out and counted."""
    splits, left_out = {}, {}
    for split, features in (("train", train), ("test", test)):
        splits[split], left_out[split] = usable(features, config.label_field, modalities)
    classes = sorted(
        {name for kept in splits.values() for labels in kept.labels for name in labels[config.label_field]}
    )
    labeled = {
        split: LabeledFeatures(kept, targets_of(kept, config.label_field, classes, multi_label=config.multi_label))
        for split, kept in splits.items()
    }
    return Fold(name, labeled["train"], labeled["test"], classes, left_out)


def usable(features: FeatureSet, label_field: str, modalities: Sequence[str]) -> tuple[FeatureSet, dict[str, int]]:
    """(samples with a label and all of the modalities, {reason: number of samples that are left out}).

    label_field: "" if no label is needed. ValueError if no sample is left.
    """
    labeled = np.array([not label_field or bool(labels.get(label_field)) for labels in features.labels])
    left_out = {"no label": int((~labeled).sum())} if label_field else {}
    chosen = labeled
    for modality in modalities:
        left_out[f"no {modality}"] = int((chosen & ~features.present[modality]).sum())
        chosen = chosen & features.present[modality]
    if not chosen.any():
        fields = sorted({name for labels in features.labels for name in labels})
        counts = ", ".join(f"{reason}: {count}" for reason, count in left_out.items())
        raise ValueError(
            f"none of {len(features)} samples has a label of field {label_field!r} and {' and '.join(modalities)} "
            f"({counts}). Label fields here are {', '.join(fields) or 'none'}: set label_field"
        )
    return features.select(chosen), left_out


def targets_of(features: FeatureSet, label_field: str, classes: Sequence[str], *, multi_label: bool) -> Targets:
    """The targets of labeled samples; see `label_targets`."""
    names = [labels[label_field] for labels in features.labels]
    return label_targets(features.keys, names, classes, multi_label=multi_label)


def label_targets(
    keys: Sequence[str], names: Sequence[Sequence[str]], classes: Sequence[str], *, multi_label: bool
) -> Targets:
    """Class numbers int64 (n,), or with multi_label bool (n, C), from the label names of each of n samples.

    ValueError for a sample with several labels without multi_label; it names its key.
    """
    number = {name: position for position, name in enumerate(classes)}
    if multi_label:
        table = np.zeros((len(names), len(classes)), np.bool_)
        for row, labels in enumerate(names):
            table[row, [number[name] for name in labels]] = True
        return table
    several = [row for row, labels in enumerate(names) if len(labels) > 1]
    if several:
        raise ValueError(
            f"sample {keys[several[0]]} has the labels {', '.join(names[several[0]])}, and {len(several)} of "
            f"{len(keys)} samples have several labels; set multi_label: true"
        )
    return np.array([number[labels[0]] for labels in names], np.int64)


def labels_digest(fold: Fold) -> bytes:
    """SHA-256 of the classes and of the targets in the order of the keys: equal only for the same labels."""
    digest = hashlib.sha256("\n".join(fold.classes).encode())
    for split in (fold.train, fold.test):
        order = np.argsort(np.array(split.features.keys))
        digest.update(np.ascontiguousarray(split.targets[order].astype(np.int64)).tobytes())
    return digest.digest()
