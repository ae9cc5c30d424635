"""k-means on features, compared with labels that it does not use: NMI, adjusted Rand index and purity."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from avssl.data.every_sample import ClipPlan
from avssl.eval.classifiers import fused, require_sklearn
from avssl.eval.configs import ClusteringConfig
from avssl.eval.features import extract
from avssl.eval.frozen import FROZEN, modalities_of
from avssl.eval.labels import targets_of, usable
from avssl.eval.metrics import KINDS
from avssl.eval.outcome import Metric, Outcome, Repeat
from avssl.eval.tasks import register
from avssl.ops.nearest import unit

if TYPE_CHECKING:
    from avssl.embedding.embedder import Embedder

METRICS = ("normalized_mutual_information", "adjusted_rand_index", "purity")
NUM_SHUFFLES = 20  # chance is the mean over random assignments with clusters of the same sizes


@register("clustering", ClusteringConfig)
def clustering(embedder: Embedder, config: ClusteringConfig) -> Outcome:
    """Cluster the samples of `test`, without a training split; one repeat per seed."""
    require_sklearn()
    from sklearn.cluster import KMeans

    if config.train or config.folds or config.fold_field or config.multi_label or config.fuse != "concatenate":
        raise ValueError(
            "clustering uses `test` alone, with one label per sample: leave out train, folds, fold_field, "
            "multi_label and fuse"
        )
    if not config.test or not config.seeds:
        raise ValueError("test and seeds must not be empty; add test=SHARDS to the command or to the YAML")
    modalities = modalities_of(config, embedder)
    options = {"batch_size": config.batch_size, "num_workers": config.num_workers}
    samples = extract(embedder, config.test, modalities, config.layers, ClipPlan(config.test_clips), **options)
    features, left_out = usable(samples, config.label_field, modalities)
    classes = sorted({labels[config.label_field][0] for labels in features.labels})
    targets = targets_of(features, config.label_field, classes, multi_label=False)
    count = config.num_clusters or len(classes)
    if count > len(features):
        raise ValueError(f"num_clusters is {count}, but there are {len(features)} samples; set fewer clusters")
    repeats = []
    for seed in config.seeds:
        columns, metrics = {"targets": targets}, {}
        for layer in config.layers:
            rows = unit(fused(features, config.modality, layer)[0]).mean(axis=1).astype(np.float64)
            clusters = KMeans(count, n_init=config.num_restarts, random_state=seed).fit_predict(rows).astype(np.int64)
            prefix = f"{config.modality}_{layer}_"
            columns[f"{prefix}cluster"] = clusters
            for name in METRICS:
                chance = chance_of(name, clusters, targets, seed)
                metrics[f"{prefix}{name}"] = Metric(name, (f"{prefix}cluster", "targets"), chance)
        repeats.append(Repeat(f"seed {seed}", features.keys, columns, metrics, classes=classes))
    protocol = {
        **FROZEN,
        "clusters": count,
        "num_test": len(features),
        "num_classes": len(classes),
        "left_out": left_out,
        "labels": hashlib.sha256("\n".join(classes[number] for number in targets).encode()).hexdigest()[:16],
        "chance": f"mean of {NUM_SHUFFLES} shuffled assignments",
    }
    return Outcome(repeats, protocol)


def chance_of(name: str, clusters: np.ndarray, targets: np.ndarray, seed: int) -> float:
    """The mean of a metric over random clusters of the same sizes: purity and NMI of chance are far from 0."""
    generator = np.random.default_rng(seed)
    ones = np.ones(len(targets))
    values = [KINDS[name](generator.permutation(clusters), targets, ones) for _ in range(NUM_SHUFFLES)]
    return float(np.mean(values))
