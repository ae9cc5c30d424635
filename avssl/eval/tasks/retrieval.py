"""Retrieval across modalities (of the same clip) and within one (of clips with the same label).

Within a modality the row of the query is left out. Ties are pessimistic: rows as close as a right one are ranked before
it, so that constant features find nothing. With `train` set, test clips search the training clips, as is usual on
UCF-101 and HMDB-51; otherwise they search the test clips.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from avssl.data.every_sample import ClipPlan
from avssl.eval.configs import RetrievalConfig
from avssl.eval.features import extract
from avssl.eval.frozen import FROZEN, modalities_of
from avssl.eval.labels import FeatureSet, targets_of, usable
from avssl.eval.outcome import Metric, Outcome, Repeat, targets_digest
from avssl.eval.retrieval import chance_of_same_label, retrieval_ranks, same_label_search
from avssl.eval.tasks import register
from avssl.ops.nearest import unit
from avssl.shards.shard_set import ShardSet

if TYPE_CHECKING:
    from avssl.embedding.embedder import Embedder


@register("retrieval", RetrievalConfig)
def retrieval(embedder: Embedder, config: RetrievalConfig) -> Outcome:
    """Recall at k, median rank, and within a modality the mean average precision."""
    modalities = modalities_of(config, embedder)
    across = config.modality == "both"
    if config.folds or config.fold_field or config.multi_label or not config.test or not (config.label_field or across):
        raise ValueError(
            f"retrieval needs test (it is {config.test!r}), and label_field for one modality; folds and multi_label "
            "do not apply"
        )
    if min(config.recall_at, default=0) < 1:
        raise ValueError(f"recall_at is {list(config.recall_at)}; give numbers of at least 1")
    options: dict[str, Any] = {"batch_size": config.batch_size, "num_workers": config.num_workers}
    plan = ClipPlan(config.test_clips)
    test, left_out = usable(
        extract(embedder, config.test, modalities, config.layers, plan, **options), config.label_field, modalities
    )
    protocol: dict[str, Any] = {
        **FROZEN,
        "num_test": len(test),
        "left_out": {"test": left_out},
        "ties": "pessimistic",
        "gallery": "train" if config.train else "test, own row left out within a modality",
    }
    gallery = test
    if config.train:
        if ShardSet(config.train).fingerprint == ShardSet(config.test).fingerprint:
            raise ValueError(
                f"train={config.train} and test={config.test} hold the same clips, so that each clip would find itself"
            )
        samples = extract(embedder, config.train, modalities, config.layers, plan, **options)
        gallery, protocol["left_out"]["train"] = usable(samples, config.label_field, modalities)
        protocol["num_train"] = len(gallery)
    columns: dict[str, Any] = {}
    metrics: dict[str, Metric] = {}
    if across:
        _across(test, config, columns, metrics)
    if config.label_field:
        classes = sorted({labels[config.label_field][0] for split in (test, gallery) for labels in split.labels})
        protocol["labels"] = hashlib.sha256("\n".join(classes).encode()).hexdigest()[:16]
        protocol["targets"] = [
            targets_digest(split.keys, [labels[config.label_field] for labels in split.labels])
            for split in (gallery, test)
        ]
        for modality in modalities:
            for layer in config.layers:
                _within(modality, layer, test, gallery, classes, config, columns, metrics)
    train_keys = gallery.keys if config.train else []
    return Outcome([Repeat("", test.keys, columns, metrics, train_keys)], protocol)


def _pooled(features: FeatureSet, modality: str, layer: str) -> np.ndarray:
    rows: np.ndarray = unit(features.rows[modality][layer]).mean(axis=1)
    return rows


def _across(test: FeatureSet, config: RetrievalConfig, columns: dict[str, Any], metrics: dict[str, Metric]) -> None:
    """Add the metrics of both directions between video and audio over the clips of `test`."""
    if "embedding" not in config.layers:
        return
    rows = {modality: _pooled(test, modality, "embedding") for modality in ("video", "audio")}
    if rows["video"].shape[1] != rows["audio"].shape[1]:
        raise ValueError(
            f"embeddings of video have {rows['video'].shape[1]} dims and of audio {rows['audio'].shape[1]}: this run "
            "did not train them together; set modality to one of them"
        )
    for first, second in (("video", "audio"), ("audio", "video")):
        name = f"{first}_to_{second}"
        columns[f"{name}_rank"] = ranks = retrieval_ranks(rows[first], rows[second])
        for k in config.recall_at:
            columns[f"{name}_found_at_{k}"] = ranks <= k
            metrics[f"{name}_recall_at_{k}"] = Metric("mean", (f"{name}_found_at_{k}",), min(1.0, k / len(ranks)))
        metrics[f"{name}_median_rank"] = Metric("median", (f"{name}_rank",), (len(ranks) + 1) / 2)


def _within(
    modality: str,
    layer: str,
    test: FeatureSet,
    gallery: FeatureSet,
    classes: list[str],
    config: RetrievalConfig,
    columns: dict[str, Any],
    metrics: dict[str, Metric],
) -> None:
    """Add the metrics of search by label; queries whose label the gallery lacks have weight 0 (`has_match`)."""
    query_labels, gallery_labels = (
        targets_of(split, config.label_field, classes, multi_label=False) for split in (test, gallery)
    )
    search = same_label_search(
        _pooled(test, modality, layer),
        query_labels,
        _pooled(gallery, modality, layer),
        gallery_labels,
        exclude_own=gallery is test,
    )
    has_match = search.first_rank > 0
    if not has_match.any():
        raise ValueError(
            f"no label of {config.label_field!r} occurs twice, so that no query within {modality} has a match"
        )
    columns["has_match"] = has_match
    name = f"{modality}_to_{modality}_{layer}"
    chance = chance_of_same_label(query_labels, gallery_labels, config.recall_at, exclude_own=gallery is test)
    columns[f"{name}_average_precision"] = search.average_precision
    metrics[f"{name}_mean_average_precision"] = Metric(
        "mean_where", (f"{name}_average_precision", "has_match"), chance["mean_average_precision"]
    )
    for k in config.recall_at:
        columns[f"{name}_found_at_{k}"] = has_match & (search.first_rank <= k)
        metrics[f"{name}_recall_at_{k}"] = Metric(
            "mean_where", (f"{name}_found_at_{k}", "has_match"), chance[f"recall_at_{k}"]
        )
