"""Classifiers on stored features of frozen networks: their configuration, folds and scores."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from avssl.data.every_sample import ClipPlan
from avssl.eval.classifiers import FitAndScore, classify_layer, fused
from avssl.eval.configs import FrozenConfig, LabelTaskConfig
from avssl.eval.features import extract
from avssl.eval.labels import FeatureSet, Fold, labels_digest, make_fold
from avssl.eval.outcome import Outcome, merged
from avssl.shards.shard_set import ShardSet

if TYPE_CHECKING:
    from avssl.embedding.embedder import Embedder

FROZEN = {"frozen": "encoders, projectors, statistics of the views", "batch_norm": "eval (running statistics)"}


def modalities_of(config: LabelTaskConfig, embedder: Embedder) -> tuple[str, ...]:
    """The modalities that `config.modality` means; ValueError for those that the run lacks."""
    modalities = ("video", "audio") if config.modality == "both" else (config.modality,)
    missing = [modality for modality in modalities if modality not in embedder.modalities]
    if missing or config.modality not in ("video", "audio", "image", "both"):
        raise ValueError(
            f"modality is {config.modality!r}; allowed are video, audio, image and both, and this run has encoders for "
            f"{', '.join(embedder.modalities)}"
        )
    return modalities


def fold_paths(config: LabelTaskConfig) -> list[tuple[str, str, str]]:
    """(name, train folder, test folder) of every fold; with `fold_field` one entry, whose test folder is ""."""
    folders = config.train + config.test
    if config.fold_field:
        if config.test or config.folds:
            raise ValueError("fold_field says which samples of `train` are tested: leave out `test` and `folds`")
        return [("", config.train, "")]
    if not config.test:
        raise ValueError("test is not set; add test=SHARDS to the command or to the YAML (or fold_field)")
    if bool(config.folds) != ("{fold}" in folders):
        raise ValueError(
            f"folds is {list(config.folds)} and the folders are {config.train}, {config.test}: with folds {{fold}} "
            "must stand in them, without it must not"
        )
    pairs = [
        (f"fold {number}", config.train.replace("{fold}", str(number)), config.test.replace("{fold}", str(number)))
        for number in config.folds
    ] or [("", config.train, config.test)]
    for _, train, test in pairs:
        if ShardSet(train).fingerprint == ShardSet(test).fingerprint:
            raise ValueError(f"train={train} and test={test} hold the same clips; the test set must be another one")
    return pairs


def clip_plans(config: FrozenConfig) -> tuple[ClipPlan, ClipPlan]:
    """The clips of training samples and of test samples. ValueError for a range that has not two ends."""
    for name, values in (("speed", config.speed), ("volume", config.volume)):
        if len(values) != 2:
            raise ValueError(f"{name} is {list(values)}; give the two ends of a range, for example [0.75, 1.333]")
    train = ClipPlan(
        config.train_clips,
        config.random_train_clips,
        (config.speed[0], config.speed[1]),
        (config.volume[0], config.volume[1]),
        config.seed,
    )
    return train, ClipPlan(config.test_clips)


def folds(embedder: Embedder, config: FrozenConfig) -> Iterator[Fold]:
    """Every fold with its features. Under torchrun it is a collective: all processes must call it alike."""
    modalities = modalities_of(config, embedder)
    train_plan, test_plan = clip_plans(config)

    def read(folder: str, plan: ClipPlan) -> FeatureSet:
        options = {"batch_size": config.batch_size, "num_workers": config.num_workers}
        return extract(embedder, folder, modalities, config.layers, plan, **options)

    paths = fold_paths(config)
    for folder in dict.fromkeys(folder for _, *pair in paths for folder in pair if folder):
        check_label_field(ShardSet(folder), config.label_field)  # before hours of decoding
    for name, train_folder, test_folder in paths:
        train = read(train_folder, train_plan)
        if test_folder:
            yield make_fold(name, train, read(test_folder, test_plan), config, modalities)
            continue
        test = train if train_plan == test_plan else read(train_folder, test_plan)
        fold_names = [" | ".join(labels.get(config.fold_field, [])) for labels in train.labels]
        if "" in fold_names:
            fields = sorted({name for labels in train.labels for name in labels})
            raise ValueError(
                f"sample {train.keys[fold_names.index('')]} has no label field {config.fold_field!r}; the samples of "
                f"{train_folder} have {', '.join(fields) or 'none'}"
            )
        fold_of_sample = np.array(fold_names)
        if len(set(fold_names)) < 2:
            raise ValueError(
                f"fold_field {config.fold_field!r} has one value, {fold_names[0]!r}; there must be at least two"
            )
        for fold_name in sorted(set(fold_names), key=lambda text: (len(text), text)):
            is_test = fold_of_sample == fold_name
            yield make_fold(f"fold {fold_name}", train.select(~is_test), test.select(is_test), config, modalities)


def check_label_field(shards: ShardSet, label_field: str) -> None:
    """Raise ValueError if the index.json of a shard folder has no label of the field."""
    names = shards.index.label_names
    if label_field not in names:
        raise ValueError(
            f"{shards.location} has no label field {label_field!r}; its samples have "
            f"{', '.join(sorted(names)) or 'none'}: set label_field"
        )


def classify(embedder: Embedder, config: FrozenConfig, fit_and_score: FitAndScore) -> Outcome:
    """A classifier on every layer of every fold."""
    repeats, sizes, left_out, dims = [], {}, {}, {}
    labels = hashlib.sha256()
    for fold in folds(embedder, config):
        repeats.append(
            merged(
                [
                    classify_layer(fold, config.modality, layer, fit_and_score, fuse=config.fuse)
                    for layer in config.layers
                ]
            )
        )
        for layer in config.layers:
            dims[layer] = [rows.shape[2] for rows in fused(fold.train.features, config.modality, layer, config.fuse)]
        sizes[fold.name] = [len(fold.train.features), len(fold.test.features), len(fold.classes)]
        left_out[fold.name] = fold.left_out
        labels.update(labels_digest(fold))
    return Outcome(
        repeats,
        {
            **FROZEN,
            "train_test_classes": sizes,
            "left_out": left_out,
            "labels": labels.hexdigest()[:16],
        },
        {"feature_dims": dims},
    )
