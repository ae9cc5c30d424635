"""Data for training on labels: folds of shard folders with their targets, and the views of the run with some changes.

A fold says which samples are left out, and why. Changes of the views are for example longer clips, other augmentation.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from avssl.eval.configs import LabelTaskConfig
from avssl.eval.frozen import check_label_field, fold_paths
from avssl.eval.labels import label_targets
from avssl.shards.shard_set import ShardSet
from avssl.shards.subset import ShardSubset
from avssl.transforms.config import ViewsConfig
from avssl.transforms.image_augment import ImageAugment
from avssl.types import View

T = TypeVar("T")
CROP_AND_FLIP = "deepcluster"  # the published set without colors: for training classifiers of images


@dataclass(frozen=True)
class ShardFold:
    """Training and test samples of one fold.

    Targets are in the order of the samples' index: int64 (n,), or with several labels per sample float32 (n, C) of
    zeros and ones. left_out: {"train", "test"}: {reason: number of samples}.
    """

    name: str
    train: ShardSet
    test: ShardSet
    train_targets: torch.Tensor
    test_targets: torch.Tensor
    classes: list[str]
    left_out: dict[str, dict[str, int]]


@dataclass(frozen=True)
class _Split:
    """A shard folder with the labels, folds and modalities of its samples, read without their media."""

    shards: ShardSet
    labels: list[list[str]]
    folds: list[str]
    has: dict[str, NDArray[np.bool_]]

    def usable(self, modalities: Sequence[str]) -> tuple[NDArray[np.bool_], dict[str, int]]:
        """(bool (n,): whether a sample has a label and all modalities, {reason: number of samples left out})."""
        chosen = np.array([bool(names) for names in self.labels])
        left_out = {"no label": int((~chosen).sum())}
        for modality in modalities:
            left_out[f"no {modality}"] = int((chosen & ~self.has[modality]).sum())
            chosen &= self.has[modality]
        return chosen, left_out


def _read_split(folder: str, config: LabelTaskConfig) -> _Split:
    shards = ShardSet(folder)
    for label_field in filter(None, (config.label_field, config.fold_field)):
        check_label_field(shards, label_field)
    infos = [shards.read_info(position) for position in range(shards.num_samples)]
    has = {
        "video": np.array([info.has_video for info in infos]),
        "audio": np.array([info.has_audio for info in infos]),
        "image": np.array([info.has_image for info in infos]),
    }
    labels = [info.labels.get(config.label_field, []) for info in infos]
    folds = ["|".join(info.labels.get(config.fold_field, [])) for info in infos]
    return _Split(shards, labels, folds, has)


def shard_folds(config: LabelTaskConfig, modalities: Sequence[str]) -> Iterator[ShardFold]:
    """Every fold of a configuration: of train and test folders, of {fold} in their names, or of `fold_field`.

    ValueError for folders without the label field, folds without samples, several labels where one is expected.
    """
    for name, train_folder, test_folder in fold_paths(config):
        train = _read_split(train_folder, config)
        if test_folder:
            test = _read_split(test_folder, config)
            everything = np.ones(len(train.labels), np.bool_), np.ones(len(test.labels), np.bool_)
            yield _fold(name, train, test, *everything, config, modalities)
            continue
        numbers = np.array(train.folds)
        missing = int((numbers == "").sum())
        if missing or len(set(train.folds)) < 2:
            raise ValueError(
                f"fold_field {config.fold_field!r} of {train_folder} has the values {sorted(set(train.folds))[:9]}, "
                f"and {missing} samples have none; every sample needs one, and there must be at least two"
            )
        for number in sorted(set(train.folds), key=lambda text: (len(text), text)):
            yield _fold(f"fold {number}", train, train, numbers != number, numbers == number, config, modalities)


def _fold(
    name: str,
    train: _Split,
    test: _Split,
    in_train: NDArray[np.bool_],
    in_test: NDArray[np.bool_],
    config: LabelTaskConfig,
    modalities: Sequence[str],
) -> ShardFold:
    chosen, left_out = {}, {}
    for side, split, members in (("train", train, in_train), ("test", test, in_test)):
        is_usable, left_out[side] = split.usable(modalities)
        chosen[side] = np.flatnonzero(is_usable & members)
        if len(chosen[side]) == 0:
            raise ValueError(
                f"{name or 'the ' + side + ' split'}: none of {int(members.sum())} samples of {split.shards.location} "
                f"has a label of field {config.label_field!r} and {' and '.join(modalities)} (left out: "
                f"{left_out[side]})"
            )
    train_shards, test_shards = _subset(train.shards, chosen["train"]), _subset(test.shards, chosen["test"])
    train_names, test_names = (
        [split.labels[row] for row in chosen[side]] for side, split in (("train", train), ("test", test))
    )
    # A test class without a training sample counts as wrong; it is not an error.
    classes = sorted({label for names in (*train_names, *test_names) for label in names})
    targets = [
        torch.from_numpy(label_targets(shards.keys, names, classes, multi_label=config.multi_label))
        for shards, names in ((train_shards, train_names), (test_shards, test_names))
    ]
    train_targets, test_targets = (values.float() if config.multi_label else values for values in targets)
    return ShardFold(name, train_shards, test_shards, train_targets, test_targets, classes, left_out)


def _subset(shards: ShardSet, positions: NDArray[np.int64]) -> ShardSet:
    return shards if len(positions) == shards.num_samples else ShardSubset(shards, positions)


def few_labels(fold: ShardFold, share: float, seed: int) -> ShardFold:
    """The fold with a share of its training samples, drawn per class (at least one each) from the seed.

    With several labels per sample, a share of all samples is drawn.
    """
    if not 0 < share <= 1:
        raise ValueError(f"label_share must be above 0 and at most 1, got {share}")
    if share == 1:
        return fold
    targets = fold.train_targets.numpy()
    groups = [np.arange(len(targets))]
    if targets.ndim == 1:
        groups = [np.flatnonzero(targets == number) for number in np.unique(targets)]
    generator = np.random.default_rng(seed)
    exact = Fraction(str(share))  # in floats 0.07 * 100 is above 7
    chosen = np.sort(np.concatenate([generator.permutation(rows)[: ceil(exact * len(rows))] for rows in groups]))
    return ShardFold(
        fold.name, ShardSubset(fold.train, chosen), fold.test, fold.train_targets[chosen], fold.test_targets,
        fold.classes, fold.left_out,
    )  # fmt: skip


def changed(config: T, changes: Mapping[str, Any], where: str = "views") -> T:
    """A copy of a configuration with nested changes, {"video": {"num_frames": 32}}.

    A dictionary of augmentation sets takes new names. ValueError for an unknown key, or a value of another
    type than the one before.
    """
    fields = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}  # type: ignore[arg-type]
    new = {}
    for name, value in changes.items():
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where} has no key {name!r}.{hint} It has: {', '.join(fields)}")
        new[name] = _changed_value(fields[name], value, f"{where}.{name}")
    return dataclasses.replace(config, **new)  # type: ignore[type-var]


def _changed_value(before: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(before):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is {value!r}; it must be a section with keys of its own")
        return changed(before, value, where)
    if isinstance(before, dict):
        return before | {
            name: _changed_value(before.get(name, ImageAugment()), item, f"{where}.{name}")
            for name, item in value.items()
        }
    if isinstance(before, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(before, tuple) and isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_changed_value(old, item, where) for old, item in zip(before, value, strict=True))
    if type(value) is not type(before):
        raise ValueError(f"{where} is {value!r}; it must be of type {type(before).__name__}, as {before!r}")
    return value


def training_views(modalities: Sequence[str], augment: str) -> tuple[View, ...]:
    """One view per modality, named after it. augment: an augmentation set for images and video; "" for the default.

    The default is that of the run (views.video.augment), and crop and flip for images. Audio always has its own set.
    """
    default = {"image": CROP_AND_FLIP, "video": "train", "audio": "train"}
    return tuple(
        View(modality, modality, default[modality] if modality == "audio" or not augment else augment)  # type: ignore[arg-type]
        for modality in modalities
    )


def has_same_spectrograms(first: ViewsConfig, second: ViewsConfig) -> bool:
    """Whether spectrograms are made in the same way, except for augmentation: then they have the same statistics."""
    settings = [
        dataclasses.replace(views.audio, augment=second.audio.augment, seconds=0.0, num_frames=0)
        for views in (first, second)
    ]
    return settings[0] == settings[1]
