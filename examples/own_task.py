"""An evaluation task of your own: accuracy of the nearest class mean.

avssl evaluate runs/mine task=nearest_mean --plugin own_task.py modality=image train=shards/train test=shards/test
"""

from dataclasses import dataclass

import numpy as np

from avssl.eval import LabelTaskConfig, Outcome, classified, register_task


@dataclass
class NearestMeanConfig(LabelTaskConfig):
    center: bool = True  # keys of the task besides those of LabelTaskConfig


def features(embedder, folder, config):
    """(keys, features of the encoder, labels) of the samples of a shard folder."""
    table, failures = embedder.embed(folder, batch_size=config.batch_size, num_workers=config.num_workers)
    if failures:
        raise ValueError(f"{folder}: {len(failures)} samples cannot be read, the first is {next(iter(failures))}")
    table = table.pool_by_key()
    rows = getattr(table, f"{config.modality}_feature")  # float32 (n, F)
    return table.keys, rows, [labels[config.label_field][0] for labels in table.labels]


@register_task("nearest_mean", NearestMeanConfig)
def nearest_mean(embedder, config):
    train_keys, train, train_labels = features(embedder, config.train, config)
    keys, test, labels = features(embedder, config.test, config)
    shift = train.mean(axis=0) if config.center else 0.0
    classes = sorted(set(train_labels))
    means = np.stack([(train - shift)[np.array(train_labels) == name].mean(axis=0) for name in classes])
    scores = -np.square((test - shift)[:, None] - means).sum(axis=2)  # (n, classes)
    targets = np.array([classes.index(label) for label in labels])
    return Outcome([classified(keys, scores, targets, classes, train_keys=train_keys)])
