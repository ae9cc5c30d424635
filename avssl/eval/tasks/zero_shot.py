"""Zero-shot classes: a sample is of the class whose description is closest to it, by a model that reads text.

That is a public model with a text tower, or a run that was trained on captions beside a frozen text encoder.

A class is described by its label in every template ("a photo of a {}.", Radford et al. 2021, arXiv 2103.00020); with
several templates it is the mean of their unit vectors. Nothing is learned, so that there is no training set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from avssl.data.every_sample import ClipPlan
from avssl.eval.configs import SLOT, ZeroShotConfig
from avssl.eval.features import extract
from avssl.eval.frozen import FROZEN, check_label_field, modalities_of
from avssl.eval.labels import targets_of, usable
from avssl.eval.outcome import Metric, Outcome, Repeat, classified
from avssl.eval.tasks import register
from avssl.ops.nearest import unit
from avssl.shards.shard_set import ShardSet

if TYPE_CHECKING:
    from avssl.embedding.embedder import Embedder


@register("zero_shot", ZeroShotConfig)
def zero_shot(embedder: Embedder, config: ZeroShotConfig) -> Outcome:
    """Top 1, top 5, the mean over classes and every class, from cosines between samples and described classes."""
    (modality,) = _checked(embedder, config)
    shards = ShardSet(config.test)
    check_label_field(shards, config.label_field)
    classes = sorted(shards.index.label_names[config.label_field])
    prompts = prompts_of(classes, config)
    described = class_vectors(embedder, prompts, modality)  # before hours of decoding
    options = {"batch_size": config.batch_size, "num_workers": config.num_workers}
    features = extract(embedder, shards, [modality], ["embedding"], ClipPlan(config.test_clips), **options)
    kept, left_out = usable(features, config.label_field, [modality])
    scores = unit(kept.rows[modality]["embedding"]).mean(axis=1) @ described.T
    targets = targets_of(kept, config.label_field, classes, multi_label=config.multi_label)
    repeat = classified(kept.keys, scores, targets, classes, prefix=f"{modality}_")
    if not config.multi_label:
        repeat = with_classes(repeat, modality, per_class=config.per_class)
    protocol: dict[str, Any] = {**FROZEN, "num_classes": len(classes), "num_test": len(kept), "left_out": left_out}
    protocol["prompts"] = hashlib.sha256("\n".join(text for row in prompts for text in row).encode()).hexdigest()[:16]
    order = np.argsort(np.array(kept.keys))
    protocol["labels"] = hashlib.sha256(np.ascontiguousarray(targets[order]).tobytes()).hexdigest()[:16]
    return Outcome([repeat], protocol, {"first_prompts": prompts[0]})


def _checked(embedder: Embedder, config: ZeroShotConfig) -> tuple[str, ...]:
    if config.train or config.folds or config.fold_field:
        raise ValueError("zero_shot learns nothing: leave out train, folds and fold_field")
    if not config.test:
        raise ValueError("test is not set; add test=SHARDS to the command or to the YAML")
    if config.untrained:
        raise ValueError("untrained is true; random weights share no space with text, so leave it out")
    if config.modality == "both":
        raise ValueError("modality is 'both'; zero_shot compares text with one of video, audio and image")
    wrong = [template for template in config.templates if template.count(SLOT) != 1]
    if wrong or not config.templates:
        raise ValueError(
            f"templates is {list(config.templates)}; give at least one text, each with one {SLOT} for the class"
        )
    return modalities_of(config, embedder)


def prompts_of(classes: Sequence[str], config: ZeroShotConfig) -> list[list[str]]:
    """The texts of every class, one per template. ValueError for words of a label that no sample has.

    A label is used as it stands, with spaces for underscores, unless class_names has words for it.
    """
    unknown = sorted(config.class_names.keys() - set(classes))
    if unknown:
        raise ValueError(
            f"class_names has {unknown[0]!r}, which is no label of {config.test}; its labels are "
            f"{', '.join(classes[:10])}{' ...' if len(classes) > 10 else ''}"
        )
    words = [config.class_names.get(name, name.replace("_", " ")) for name in classes]
    return [[template.replace(SLOT, word) for template in config.templates] for word in words]


def class_vectors(embedder: Embedder, prompts: Sequence[Sequence[str]], modality: str) -> NDArray[Any]:
    """Unit rows float64 (C, D): of each class the mean of the unit vectors of its texts, divided by its length."""
    texts = [text for row in prompts for text in row]
    rows = embedder.embed_text(texts, modality).astype(np.float64).reshape(len(prompts), len(prompts[0]), -1)
    return unit(rows.mean(axis=1))


def with_classes(repeat: Repeat, modality: str, *, per_class: bool) -> Repeat:
    """The repeat with the chance of top 1, and with the share of each class's samples that are named right."""
    targets, right = repeat.columns["targets"], f"{modality}_right"
    top1 = replace(repeat.metrics[f"{modality}_top1_accuracy"], chance=1 / len(repeat.classes))
    metrics, columns = repeat.metrics | {f"{modality}_top1_accuracy": top1}, dict(repeat.columns)
    for number in np.unique(targets).tolist() if per_class else ():
        columns[f"is_class_{number}"] = targets == number
        name = f"{modality}_accuracy of {repeat.classes[number]}"
        metrics[name] = Metric("mean_where", (right, f"is_class_{number}"), 1 / len(repeat.classes))
    return replace(repeat, metrics=metrics, columns=columns)
