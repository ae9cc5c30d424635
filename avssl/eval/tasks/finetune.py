"""Fine-tuning of the whole network on labels; it is tested on several clips of each sample.

With head_epochs, the head alone is trained first, on an encoder with frozen weights. The published protocols are in
recipes/configs/evaluate/finetune_*.yaml, with their sources; docs/finetuning.md shows the commands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from avssl.eval.configs import FinetuneConfig
from avssl.eval.finetune.data import ShardFold
from avssl.eval.finetune.task import check, encoder_of, repeats, run_repeat, scheduled
from avssl.eval.finetune.training import Classifier, Stage
from avssl.eval.frozen import modalities_of
from avssl.eval.outcome import Outcome
from avssl.eval.tasks import register
from avssl.transforms.config import ViewsConfig
from avssl.transforms.view_maker import ViewMaker

if TYPE_CHECKING:
    from avssl.embedding.embedder import Embedder


@register("finetune", FinetuneConfig)
def finetune(embedder: Embedder, config: FinetuneConfig) -> Outcome:
    """Fine-tune on every fold with every seed."""
    check(config)
    modalities = modalities_of(config, embedder)

    def model(fold: ShardFold, maker: ViewMaker, views: ViewsConfig) -> Classifier:  # noqa: ARG001
        encoders = {modality: encoder_of(embedder, config, modality) for modality in modalities}
        return Classifier(encoders, len(fold.classes), dropout=config.dropout, head=config.modality)

    def stages(steps_per_pass: int) -> list[Stage]:
        per_epoch = config.clips_per_sample * steps_per_pass
        whole = Stage(
            config.epochs * per_epoch, scheduled(config, steps_per_pass), True, config.batch_norm,
            config.encoder_lr_scale,
        )  # fmt: skip
        head = Stage(config.head_epochs * per_epoch, config.head_optim, False, config.head_batch_norm)
        return [head, whole] if config.head_epochs else [whole]

    results = {
        name: run_repeat(embedder, config, name, seed, fold, model, stages)
        for name, seed, fold in repeats(config, embedder)
    }
    protocol: dict[str, Any] = {
        "trained": "the whole network" + (", after the head alone" if config.head_epochs else ""),
        "batch_norm": f"{config.batch_norm}; with the head alone {config.head_batch_norm}",
        "scores": "mean over clips of the " + ("sigmoid" if config.multi_label else "softmax"),
        "repeats": {name: result.protocol for name, result in results.items()},
        "targets": {name: result.targets for name, result in results.items()},
    }
    facts = {"training": {name: result.facts for name, result in results.items()}}
    return Outcome([result.repeat for result in results.values()], protocol, facts)
