"""The task `standard`: weighted kNN for every modality and label field, audio <-> video retrieval, precision of
positives.

The precision of CMA's positives is the share with the class of their anchor. Every metric keeps its rows, so that
results can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from avssl import checkpoint, distributed
from avssl.embedding.embed_shards import embed_split
from avssl.embedding.table import MODALITIES, EmbeddingTable
from avssl.eval.configs import StandardConfig
from avssl.eval.knn import knn, knn_chance
from avssl.eval.outcome import ANCHORS, Metric, Outcome, Repeat, keys_digest, targets_digest
from avssl.eval.retrieval import DIRECTIONS, RECALL_AT, chance_levels, class_precision_rows, retrieval_ranks
from avssl.eval.tasks import register
from avssl.losses import registry
from avssl.losses.avid_cma import positive_set
from avssl.ops.nearest import class_numbers, label_numbers
from avssl.shards.shard_set import ShardSet
from avssl.types import Agreement

if TYPE_CHECKING:
    from avssl.embedding.embedder import Embedder

BANKS = ("loss.banks.video.rows", "loss.banks.audio.rows")
AGREEMENTS: tuple[Agreement, ...] = ("consensus", "union", "video", "audio")
Columns = dict[str, NDArray[Any]]
Metrics = dict[str, Metric]


@register("standard", StandardConfig)
def standard(embedder: Embedder, config: StandardConfig) -> Outcome:
    """Embed both splits and evaluate the tables; with trained weights they are written to RUN/embeddings/.

    The precision of positives needs the memory banks of the finished run, and its training split as `train`.
    """
    run = embedder.run_folder
    if run is None or not config.train or not config.test:
        raise ValueError(
            f"standard needs train and test, and the folder of a run; they are {config.train!r}, {config.test!r} and "
            f"{run}. Add train=SHARDS test=SHARDS to the command or to the YAML"
        )
    if ShardSet(config.train).fingerprint == ShardSet(config.test).fingerprint:
        raise ValueError(
            f"train={config.train} and test={config.test} hold the same clips; the kNN would find each clip itself"
        )
    options: dict[str, Any] = {
        "window_seconds": config.window_seconds or None,
        "batch_size": config.batch_size,
        "num_workers": config.num_workers,
    }
    train, test = (embed_split(embedder, split, **options) for split in (config.train, config.test))
    if embedder.weights_hash == "untrained":
        return evaluate_tables(train, test, config)
    is_public = embedder.config.loss.name == registry.PUBLIC_MODEL
    positives, notes = ({}, []) if is_public or config.checkpoint else positive_sets(run, config)
    outcome = evaluate_tables(train, test, config, positives)
    if distributed.rank() == 0:
        below = f"step_{int(config.checkpoint):06d}" if config.checkpoint else ""
        for split, table in (("train", train), ("test", test)):
            table.write(run / "embeddings" / below / f"{split}.parquet")
    if not any("_knn_" in name for name in outcome.repeats[0].metrics):
        fields = f"{train.label_fields() or 'none'} in {config.train}, {test.label_fields() or 'none'} in {config.test}"
        notes.append(f"no kNN: it needs a label field that both splits have; there are {fields}")
    return replace(outcome, notes=notes)


def positive_sets(run: Path, config: StandardConfig) -> tuple[dict[str, torch.Tensor], list[str]]:
    """({agreement: the positives that CMA would take now, int64 (N, k)}, a note if they cannot be evaluated).

    {} for runs without the two banks, for runs that were not trained on `config.train`, whose labels are known, and for
    fewer samples than a set would have.
    """
    weights = checkpoint.read_weights(run)
    if not all(name in weights for name in BANKS):
        return {}, []
    if ShardSet(config.train).fingerprint != checkpoint.read_provenance(run)["data"]["fingerprint"]:
        return {}, [f"no precision of positives: {run} was not trained on {config.train}, whose labels are known"]
    video, audio = (weights[name] for name in BANKS)
    if len(video) <= config.num_positives:
        why = f"{config.train} has {len(video)} samples, and a set num_positives={config.num_positives} others of them"
        return {}, [f"no precision of positives: {why}; a smaller num_positives gives it"]
    return {agreement: positive_set(video, audio, config.num_positives, agreement) for agreement in AGREEMENTS}, []


def evaluate_tables(
    train: EmbeddingTable,
    test: EmbeddingTable,
    config: StandardConfig,
    positives: Mapping[str, torch.Tensor] | None = None,
) -> Outcome:
    """All metrics of one set of weights. The windows of a clip are pooled first.

    Two repeats with different rows: "test", the test clips, and "positives", the training clips as anchors. Without
    positives the second has no metrics but the same rows, so that any two runs can be compared.

    Args:
        positives: {agreement: int64 (N, k)} of the N training clips.

    Raises:
        ValueError: there is no metric: kNN needs labels in both splits, retrieval video and audio of one clip.
    """
    protocol = protocol_of(train, test, config)
    train, test = train.pool_by_key(), test.pool_by_key()
    columns: Columns = {}
    metrics: Metrics = {}
    _knn(train, test, config, columns, metrics)
    _across(test, columns, metrics)
    anchors = _positives(positives or {}, train)
    if not metrics and not anchors.metrics:
        raise ValueError(
            f"nothing can be evaluated: embedded are {', '.join(test.modalities()) or 'nothing'}; the training split "
            f"has the label fields {train.label_fields()}, the test split {test.label_fields()}. kNN needs a field "
            "that both have (`avssl prep index --labels`), retrieval video and audio of the same clips"
        )
    return Outcome([Repeat("test", test.keys, columns, metrics, train.keys), anchors], protocol)


def _knn(
    train: EmbeddingTable, test: EmbeddingTable, config: StandardConfig, columns: Columns, metrics: Metrics
) -> None:
    """Add <modality>_knn_<label field>, over the test clips that have the modality and a label of the field."""
    for label_field in test.label_fields():
        for modality in MODALITIES:
            is_test, is_train = (_labeled(table, modality, label_field) for table in (test, train))
            if not is_test.any() or not is_train.any():
                continue
            train_rows, test_rows = train.select(is_train), test.select(is_test)
            # A test class without a training row is counted as wrong, not refused.
            train_names, test_names = train_rows.label(label_field), test_rows.label(label_field)
            classes = sorted({str(name) for name in [*train_names, *test_names]})
            train_labels, test_labels = label_numbers(train_names, classes)[0], label_numbers(test_names, classes)[0]
            column = f"{modality}_{config.knn_on}"
            options: dict[str, Any] = {"num_neighbors": config.num_neighbors, "temperature": config.temperature}
            result = knn(getattr(train_rows, column), train_labels, getattr(test_rows, column), test_labels, **options)
            name = f"{modality}_knn_{label_field}"
            columns[f"{name}_asked"] = is_test
            columns[f"{name}_right"] = _spread(result.predicted == test_labels.numpy(), is_test)
            metrics[name] = Metric(
                "mean_where", (f"{name}_right", f"{name}_asked"), knn_chance(train_labels, test_labels)
            )


def _labeled(table: EmbeddingTable, modality: str, label_field: str) -> NDArray[np.bool_]:
    """bool (n,): whether a row has the modality and a label."""
    if label_field not in table.label_fields() or table.embedding(modality) is None:
        return np.zeros(len(table), np.bool_)
    return np.array([name is not None for name in table.label(label_field)]) & table.has(modality)


def _spread(values: NDArray[Any], rows: NDArray[np.bool_]) -> NDArray[Any]:
    """The values of the rows that are True in bool (n,), as a column of all n rows with 0 elsewhere."""
    result = np.zeros(len(rows), values.dtype)
    result[rows] = values
    return result


def _across(test: EmbeddingTable, columns: Columns, metrics: Metrics) -> None:
    """Add ranks and class precision of both directions, over the clips with video and audio.

    Class precision leaves the other modality of the query's own clip out of the gallery: recall counts that.
    """
    if test.video_embedding is None or test.audio_embedding is None:
        return
    has_pair = test.has_video & test.has_audio
    if not has_pair.any():
        return
    pairs = test.select(has_pair)
    chance = chance_levels(len(pairs))
    columns["has_pair"] = has_pair
    video, audio = pairs.video_embedding, pairs.audio_embedding
    directions = list(zip(DIRECTIONS, ((video, audio), (audio, video)), strict=True))
    for name, (queries, gallery) in directions:
        ranks = retrieval_ranks(queries, gallery)
        columns[f"{name}_rank"] = _spread(ranks, has_pair)
        for k in RECALL_AT:
            columns[f"{name}_found_at_{k}"] = _spread(ranks <= k, has_pair)
            recall = f"{name}_recall_at_{k}"
            metrics[recall] = Metric("mean_where", (f"{name}_found_at_{k}", "has_pair"), chance[recall])
        median = f"{name}_median_rank"
        metrics[median] = Metric("median_where", (f"{name}_rank", "has_pair"), chance[median])
    for label_field in pairs.label_fields():
        if None in pairs.label(label_field):
            continue
        numbers, _ = label_numbers(pairs.label(label_field))
        levels = chance_levels(len(pairs), labels=numbers, exclude_pair=True)
        for name, (queries, gallery) in directions:
            precision = f"{name}_class_precision_{label_field}"
            columns[precision] = _spread(class_precision_rows(queries, gallery, numbers, exclude_pair=True), has_pair)
            metrics[precision] = Metric("mean_where", (precision, "has_pair"), levels[f"{name}_class_precision"])


def _positives(positives: Mapping[str, torch.Tensor], train: EmbeddingTable) -> Repeat:
    """The precision of every anchor's positives, for every label field that all training clips have."""
    by_index = train.select(np.argsort(train.index))
    columns: Columns = {}
    metrics: Metrics = {}
    for label_field in by_index.label_fields():
        if None in by_index.label(label_field):
            continue
        numbers, _ = label_numbers(by_index.label(label_field))
        for agreement, sets in positives.items():
            name = f"positive_precision_{agreement}_{label_field}"
            columns[name], chance = positive_precision(sets, numbers)
            metrics[name] = Metric("mean", (name,), chance)
    return Repeat(ANCHORS, by_index.keys, columns, metrics)


def protocol_of(train: EmbeddingTable, test: EmbeddingTable, config: StandardConfig) -> dict[str, Any]:
    """The values that must be equal for two results to be compared."""
    return {
        "num_train": len(set(train.keys)),
        "num_test": len(set(test.keys)),
        "modalities": test.modalities(),
        "train_samples": keys_digest(train.keys),
        "test_samples": keys_digest(test.keys),
        "targets": [_targets(table) for table in (train, test)],
        "num_neighbors": config.num_neighbors,
        "temperature": config.temperature,
        "knn_on": config.knn_on,
        "num_positives": config.num_positives,
        "window_seconds": test.metadata.get("window_seconds"),
        "ties": "pessimistic",
    }


def _targets(table: EmbeddingTable) -> str:
    """The digest of all labels of all samples; the windows of a sample have the same."""
    labels = dict(zip(table.keys, table.labels, strict=True))
    return targets_digest(list(labels), [sorted(found.items()) for found in labels.values()])


def positive_precision(positives: Any, labels: Any) -> tuple[NDArray[np.float64], float]:
    """(the share of the positives of each anchor that have its label, float64 (N,); the mean share of random
    positives).

    Args:
        positives: int64 (N, k), row i holds the positives of clip i, each in [0, N) and not i itself.
        labels: (N,) integers.

    Raises:
        ValueError: other shapes, an index out of range, or an anchor among its own positives, which would always
            count as right.
    """
    sets = torch.as_tensor(positives).detach().cpu()
    if sets.ndim != 2 or sets.is_floating_point() or 0 in sets.shape:
        raise ValueError(f"positives are {sets.dtype} {tuple(sets.shape)}; expected integers (N, k) with N, k > 0")
    count = len(sets)
    numbers = class_numbers(labels, count).cpu()
    if int(sets.min()) < 0 or int(sets.max()) >= count:
        raise ValueError(f"positives lie in [{int(sets.min())}, {int(sets.max())}]; allowed is [0, {count - 1}]")
    is_own = (sets == torch.arange(count)[:, None]).any(dim=1)
    if bool(is_own.any()):
        raise ValueError(
            f"{int(is_own.sum())} anchors are among their own positives, the first is {int(is_own.int().argmax())}"
        )
    share = (numbers[sets.long()] == numbers[:, None]).double().mean(dim=1)
    sizes = torch.bincount(numbers).double()
    chance = float((sizes * (sizes - 1)).sum() / (count * (count - 1)))
    return share.numpy(), chance
