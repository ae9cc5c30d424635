"""k-means on features against labels that it never saw: NMI, adjusted Rand index and purity (scikit-learn)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from avssl.data.every_sample import ClipPlan
from avssl.eval.classifiers import require_sklearn
from avssl.eval.features import extract
from avssl.eval.frozen import FROZEN, FrozenConfig, fused, wanted_modalities
from avssl.eval.labels import targets_of, usable
from avssl.eval.metrics import KINDS
from avssl.eval.outcome import Metric, Outcome, Repeat
from avssl.eval.tasks import register
from avssl.ops.nearest import unit

if TYPE_CHECKING:
    from avssl.embedding.embedder import Embedder

MEASURES = ("normalized_mutual_information", "adjusted_rand_index", "purity")
NUM_SHUFFLES = 20  # random assignments, with clusters of the same sizes, whose mean is chance


@dataclass
class ClusteringConfig(FrozenConfig):
    """Clusters of the test samples, by the mean of their unit clips."""

    num_clusters: int = 0  # 0: as many as there are classes
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])  # of k-means
    num_restarts: int = 10  # of each seed, the one with the tightest clusters counts


@register("clustering", ClusteringConfig)
def clustering(embedder: Embedder, config: ClusteringConfig) -> Outcome:
    """Cluster `test` (no training split is used); one repeat a seed."""
    require_sklearn()
    from sklearn.cluster import KMeans

    if config.train or config.folds or config.fold_field or config.multi_label or config.fuse != "concatenate":
        raise ValueError(
            "clustering looks at `test` alone, with one label a sample: leave out train, folds, fold_field, "
            "multi_label and fuse"
        )
    if not config.test or not config.seeds:
        raise ValueError("test and seeds must not be empty; add test=SHARDS to the command or to the YAML")
    modalities = wanted_modalities(config, embedder)
    options = {"batch_size": config.batch_size, "num_workers": config.num_workers}
    everything = extract(embedder, config.test, modalities, config.layers, ClipPlan(config.test_clips), **options)
    features, left_out = usable(everything, config.label_field, modalities)
    classes = sorted({labels[config.label_field][0] for labels in features.labels})
    targets = targets_of(features, config.label_field, classes, multi_label=False)
    count = config.num_clusters or len(classes)
    if count > len(features):
        raise ValueError(f"{count} clusters of {len(features)} samples are asked for; set num_clusters to fewer")
    repeats = []
    for seed in config.seeds:
        columns, metrics = {"targets": targets}, {}
        for layer in config.layers:
            rows = unit(fused(features, config, layer)[0]).mean(axis=1).astype(np.float64)
            found = KMeans(count, n_init=config.num_restarts, random_state=seed).fit_predict(rows).astype(np.int64)
            prefix = f"{config.modality}_{layer}_"
            columns[f"{prefix}cluster"] = found
            for measure in MEASURES:
                level = by_chance(measure, found, targets, seed)
                metrics[f"{prefix}{measure}"] = Metric(measure, (f"{prefix}cluster", "targets"), level)
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
    return replace(Outcome(repeats), protocol=protocol)


def by_chance(measure: str, clusters: np.ndarray, targets: np.ndarray, seed: int) -> float:
    """What clusters of these sizes, filled at random, reach: purity and NMI of chance are far from 0."""
    generator = np.random.default_rng(seed)
    ones = np.ones(len(targets))
    values = [KINDS[measure](generator.permutation(clusters), targets, ones) for _ in range(NUM_SHUFFLES)]
    return float(np.mean(values))
