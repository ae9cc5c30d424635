"""Linear probes on augmented clips: one classifier per layer of a frozen network, all trained in one pass.

The network has no gradients and batch norm in eval mode, so that neither weights nor running statistics move. The
published code of AVID leaves batch norm in training mode here, so its numbers may differ (recipes/configs/evaluate/
linear_probe_kinetics400.yaml). Logistic regression on stored features, without augmentation, is the task `linear`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from avssl.data.every_sample import clip_set
from avssl.eval.configs import LinearProbeConfig
from avssl.eval.finetune.data import ShardFold
from avssl.eval.finetune.layer_probes import LinearProbes
from avssl.eval.finetune.task import check, encoder_of, repeats, run_repeat, scheduled
from avssl.eval.finetune.training import Stage
from avssl.eval.frozen import FROZEN, modalities_of
from avssl.eval.outcome import Outcome
from avssl.eval.tasks import register
from avssl.transforms.config import ViewsConfig
from avssl.transforms.view_maker import ViewMaker

if TYPE_CHECKING:
    from avssl.embedding.embedder import Embedder


@register("linear_probe", LinearProbeConfig)
def linear_probe(embedder: Embedder, config: LinearProbeConfig) -> Outcome:
    """Train and test a probe on every layer, for every fold and seed."""
    check(config)
    if config.optim.clip_norm:
        raise ValueError(
            f"optim.clip_norm is {config.optim.clip_norm}; it would couple the probes, which must be independent: "
            "leave it at 0"
        )
    modalities = modalities_of(config, embedder)
    dims: dict[str, int] = {}

    def model(fold: ShardFold, maker: ViewMaker, views: ViewsConfig) -> LinearProbes:
        encoders = {modality: encoder_of(embedder, config, modality) for modality in modalities}
        clips = clip_set(fold.train.read(0), views, modalities, 1)
        with torch.no_grad():
            example = maker(clips, embedder.device)
        probes = LinearProbes(
            encoders, list(config.layers), example, len(fold.classes), batch_norm=config.probe_batch_norm
        )
        dims.update(probes.dims)
        return probes

    def stages(steps_per_pass: int) -> list[Stage]:
        steps = config.epochs * config.clips_per_sample * steps_per_pass
        return [Stage(steps, scheduled(config, steps_per_pass), False, "frozen")]

    results = {
        name: run_repeat(embedder, config, name, seed, fold, model, stages)
        for name, seed, fold in repeats(config, embedder)
    }
    metric = "mean_average_precision" if config.multi_label else "top1_accuracy"
    metrics = [result.repeat.values() for result in results.values()]
    means = {layer: float(np.mean([result[f"{layer}_{metric}"] for result in metrics])) for layer in dims}
    protocol: dict[str, Any] = {
        **FROZEN,
        "layers": dims,
        "probe_batch_norm": config.probe_batch_norm,
        "scores": "mean over clips of the " + ("sigmoid" if config.multi_label else "softmax"),
        "repeats": {name: result.protocol for name, result in results.items()},
        "targets": {name: result.targets for name, result in results.items()},
    }
    best = max(means, key=lambda layer: means[layer])
    facts: dict[str, Any] = {"best_layer": best, "best_layer_is_chosen_by": f"{metric} on the test samples"}
    facts["training"] = {name: result.facts for name, result in results.items()}
    return Outcome([result.repeat for result in results.values()], protocol, facts)
