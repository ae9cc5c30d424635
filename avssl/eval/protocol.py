"""The standard evaluation of a run, from two embedding tables: weighted kNN for every modality that it has, and
audio <-> video retrieval where it has both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from avssl.eval.knn import knn_chance, knn_classify
from avssl.eval.neighbours import label_numbers
from avssl.eval.positives import positive_precision
from avssl.eval.retrieval import chance_levels, retrieval_metrics
from avssl.tables import MODALITIES, EmbeddingTable


@dataclass
class TaskConfig:
    """What to evaluate on. Recalls and ranks are over all pairs of the test split."""

    task: str = "standard"
    train: str = ""  # shard folder whose labels the kNN knows
    test: str = ""  # shard folder that is scored
    num_neighbours: int = 20
    temperature: float = 0.07
    knn_on: Literal["feature", "embedding"] = "feature"  # encoder output, or the shared space after the projector
    num_positives: int = 32  # size of the CMA positive sets whose precision is measured
    window_seconds: float = 0.0  # 0: the run's audio clip, or its video clip if it has no sound
    batch_size: int = 64
    num_workers: int = 2
    device: str = "cpu"


def sample_list_hash(table: EmbeddingTable) -> str:
    """Of the sorted keys: two results are comparable only when it is equal."""
    return hashlib.sha256("\n".join(sorted(set(table.keys))).encode()).hexdigest()[:16]


def knn_metrics(
    train: EmbeddingTable, test: EmbeddingTable, task: TaskConfig
) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracy of every modality on every label field, and its chance level: {"video_knn_<field>": value}."""
    values, chance = {}, {}
    for label_field in test.label_fields():
        for modality in MODALITIES:
            column = f"{modality}_{task.knn_on}"
            known, asked = _with(train, modality, label_field), _with(test, modality, label_field)
            if known is None or asked is None:
                continue
            # A test class without a training row is counted as wrong, not refused.
            names, asked_names = known.label(label_field), asked.label(label_field)
            classes = sorted({str(name) for name in [*names, *asked_names]})
            numbers, targets = label_numbers(names, classes)[0], label_numbers(asked_names, classes)[0]
            found = knn_classify(
                getattr(known, column),
                numbers,
                getattr(asked, column),
                targets,
                num_neighbours=task.num_neighbours,
                temperature=task.temperature,
            )
            values[f"{modality}_knn_{label_field}"] = found.accuracy
            chance[f"{modality}_knn_{label_field}"] = knn_chance(numbers, targets)
    return values, chance


def _with(table: EmbeddingTable, modality: str, label_field: str) -> EmbeddingTable | None:
    """Rows that have the modality and a label; None when there are none."""
    if label_field not in table.label_fields() or table.embedding(modality) is None:
        return None
    labelled = np.array([name is not None for name in table.label(label_field)])
    rows = labelled & table.has(modality)
    return table.select(rows) if rows.any() else None


def cross_modal_metrics(test: EmbeddingTable) -> tuple[dict[str, float], dict[str, float]]:
    """Retrieval in both directions over the pairs of the test split, and chance.

    Class precision leaves a clip's own other half out: finding that is what recall counts.
    """
    if test.video_embedding is None or test.audio_embedding is None:
        return {}, {}
    pairs = test.select(test.has_video & test.has_audio)
    if len(pairs) == 0:
        return {}, {}
    values = retrieval_metrics(pairs.video_embedding, pairs.audio_embedding)
    chance = chance_levels(len(pairs))
    for label_field in pairs.label_fields():
        if None in pairs.label(label_field):
            continue
        numbers, _ = label_numbers(pairs.label(label_field))
        with_labels = retrieval_metrics(pairs.video_embedding, pairs.audio_embedding, labels=numbers, exclude_pair=True)
        by_chance = chance_levels(len(pairs), labels=numbers, exclude_pair=True)
        for name in with_labels:
            if name.endswith("class_precision"):
                values[f"{name}_{label_field}"] = with_labels[name]
                chance[f"{name}_{label_field}"] = by_chance[name]
    return values, chance


def positive_metrics(
    positives: Mapping[str, torch.Tensor], train: EmbeddingTable
) -> tuple[dict[str, float], dict[str, float]]:
    """Precision of positive sets, {agreement: (N, k)}, against every label field of the training split."""
    values, chance = {}, {}
    by_index = train.select(np.argsort(train.index))
    for label_field in by_index.label_fields():
        if None in by_index.label(label_field):
            continue
        numbers, _ = label_numbers(by_index.label(label_field))
        for agreement, sets in positives.items():
            found = positive_precision(sets, numbers)
            values[f"positive_precision_{agreement}_{label_field}"] = found.overall
            chance[f"positive_precision_{agreement}_{label_field}"] = found.chance
    return values, chance


def evaluate_tables(
    train: EmbeddingTable,
    test: EmbeddingTable,
    task: TaskConfig,
    positives: Mapping[str, torch.Tensor] | None = None,
) -> tuple[dict[str, float], dict[str, float]]:
    """All metrics of one set of weights, and their chance levels. Windows of a clip are pooled first.

    ValueError when nothing can be measured: kNN needs labels in both splits, retrieval video and sound of one clip.
    """
    train, test = train.pool_by_key(), test.pool_by_key()
    parts = [knn_metrics(train, test, task), cross_modal_metrics(test), positive_metrics(positives or {}, train)]
    values: dict[str, float] = {}
    chance: dict[str, float] = {}
    for part_values, part_chance in parts:
        values |= part_values
        chance |= part_chance
    if not values:
        raise ValueError(
            f"nothing can be evaluated: embedded are {', '.join(test.modalities()) or 'nothing'}; the training split "
            f"has the label fields {train.label_fields()}, the test split {test.label_fields()}. kNN needs a field "
            "that both have (python -m data_prep index --labels), retrieval video and sound of the same clips"
        )
    return values, chance


def protocol(train: EmbeddingTable, test: EmbeddingTable, task: TaskConfig) -> dict[str, Any]:
    """What must be equal for two results to be compared."""
    return {
        "num_train": len(set(train.keys)),
        "num_test": len(set(test.keys)),
        "modalities": test.modalities(),
        "train_samples": sample_list_hash(train),
        "test_samples": sample_list_hash(test),
        "num_neighbours": task.num_neighbours,
        "temperature": task.temperature,
        "knn_on": task.knn_on,
        "num_positives": task.num_positives,
        "window_seconds": test.metadata.get("window_seconds"),
        "ties": "pessimistic",
    }
