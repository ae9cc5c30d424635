"""Full fine-tuning: the whole network on labels, tested by several clips of each sample.

If asked for, the head alone comes first, on an encoder whose weights are frozen. The published protocols are in
recipes/configs/evaluate/finetune_*.yaml, with their sources; docs/finetuning.md shows the commands.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from avssl.eval.finetune.data import ShardFold
from avssl.eval.finetune.task import TrainedConfig, check, repeats, run_repeat, scheduled
from avssl.eval.finetune.training import Classifier, Stage
from avssl.eval.frozen import wanted_modalities
from avssl.eval.outcome import Outcome
from avssl.eval.tasks import register
from avssl.optim.config import OptimConfig
from avssl.transforms.config import ViewsConfig
from avssl.transforms.view_maker import ViewMaker

if TYPE_CHECKING:
    from avssl.embedding.embedder import Embedder


@dataclass
class FinetuneConfig(TrainedConfig):
    """The head: dropout and a linear layer on the encoder's feature, of `modality: both` on the two side by side."""

    dropout: float = 0.5  # of the feature, before the linear layer
    head_epochs: int = 0  # of the head alone, before; epochs as in `epochs`
    head_optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-4, weight_decay=0.0))
    head_batch_norm: Literal["train", "frozen"] = "frozen"  # the encoder's then: `train` moves its running statistics
    batch_norm: Literal["train", "frozen"] = "train"  # the encoder's afterwards
    encoder_lr_scale: float = 1.0  # the encoder's learning rate over the head's


@register("finetune", FinetuneConfig)
def finetune(embedder: Embedder, config: FinetuneConfig) -> Outcome:
    """Every fold with every seed."""
    check(config)
    if config.head_epochs < 0:
        raise ValueError(f"head_epochs must be at least 0, got {config.head_epochs}")
    modalities = wanted_modalities(config, embedder)

    def model(fold: ShardFold, maker: ViewMaker, views: ViewsConfig) -> Classifier:  # noqa: ARG001
        encoders = {modality: copy.deepcopy(embedder.encoders[modality]) for modality in modalities}
        return Classifier(encoders, len(fold.classes), dropout=config.dropout, head=config.modality)

    def stages(steps_per_pass: int) -> list[Stage]:
        per_epoch = config.clips_per_sample * steps_per_pass
        whole = Stage(
            config.epochs * per_epoch, scheduled(config, steps_per_pass), True, config.batch_norm,
            config.encoder_lr_scale,
        )  # fmt: skip
        head = Stage(config.head_epochs * per_epoch, replace(config.head_optim), False, config.head_batch_norm)
        return [head, whole] if config.head_epochs else [whole]

    found = {
        name: run_repeat(embedder, config, name, seed, fold, model, stages)
        for name, seed, fold in repeats(config, embedder)
    }
    protocol: dict[str, Any] = {
        "trained": "the whole network" + (", after the head alone" if config.head_epochs else ""),
        "batch_norm": f"{config.batch_norm}; with the head alone {config.head_batch_norm}",
        "scores": "mean over clips of the " + ("sigmoid" if config.multi_label else "softmax"),
        "repeats": {name: one.protocol for name, one in found.items()},
    }
    facts = {"training": {name: one.facts for name, one in found.items()}}
    return Outcome([one.repeat for one in found.values()], protocol, facts)
