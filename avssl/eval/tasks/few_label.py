"""How far few labels go: a classifier fitted on a share, or so many a class, of the training samples, over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from avssl.eval.classifiers import knn_scores, logistic_scores, require_sklearn
from avssl.eval.labelled import FROZEN, Fold, FrozenConfig, folds, fused, labels_digest
from avssl.eval.outcome import Outcome, Repeat, classified
from avssl.eval.tasks import register

if TYPE_CHECKING:
    from avssl.embed import Embedder


@dataclass
class Config(FrozenConfig):
    """Stratified: of each class its share, rounded, and at least one."""

    fractions: list[float] = field(default_factory=lambda: [0.01, 0.1])  # of the training samples
    per_class: list[int] = field(default_factory=list)  # so many a class
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])  # of the draw
    classifier: str = "linear"  # linear (logistic regression), or knn
    cost: float = 1.0  # C of the logistic regression
    max_iterations: int = 1000
    num_neighbours: int = 20
    temperature: float = 0.07


@register("few_label", Config)
def few_label(embedder: Embedder, config: Config) -> Outcome:
    """Every amount on every layer, once a seed (and fold)."""
    if config.multi_label or config.classifier not in ("linear", "knn"):
        raise ValueError(
            f"few_label draws by class and fits linear or knn; multi_label is {config.multi_label}, classifier "
            f"{config.classifier!r}. Use the task linear for several labels a sample"
        )
    wrong = [share for share in config.fractions if not 0 < share <= 1] + [n for n in config.per_class if n < 1]
    if wrong or not config.seeds or not [*config.fractions, *config.per_class]:
        raise ValueError(f"fractions must lie in (0, 1], per_class be at least 1, seeds not be empty; wrong: {wrong}")
    if config.classifier == "linear":
        require_sklearn()
    report: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    repeats, left_out, labels = [], {}, []
    for fold in folds(embedder, config):
        labels.append(labels_digest(fold).hex()[:16])
        left_out[fold.name] = fold.left_out
        for seed in config.seeds:
            repeat, used = _repeat(fold, config, seed, report)
            repeats.append(repeat)
            sizes |= {f"{fold.name} {amount}".strip(): number for amount, number in used.items()}
    return Outcome(repeats, {**FROZEN, "training_samples": sizes, "left_out": left_out, "labels": labels}, report)


def _repeat(fold: Fold, config: Config, seed: int, report: dict[str, Any]) -> tuple[Repeat, dict[str, int]]:
    targets = fold.train.targets
    amounts: list[tuple[str, float, int]] = [(f"{share * 100:g}_percent", share, 0) for share in config.fractions]
    amounts += [(f"{number}_per_class", 0.0, number) for number in config.per_class]
    columns: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    for amount, share, number in amounts:
        chosen = stratified(targets, share, number, seed)
        sizes[amount] = len(chosen)
        for layer in config.layers:
            known, asked = (fused(part.features, config, layer) for part in (fold.train, fold.test))
            scores = [
                _scores(rows[chosen], targets[chosen], others, len(fold.classes), config, report)
                for rows, others in zip(known, asked, strict=True)
            ]
            found = classified(
                fold.test.features.keys,
                np.mean(scores, axis=0),
                fold.test.targets,
                fold.classes,
                prefix=f"{amount}_{config.modality}_{layer}_",
                train_targets=targets[chosen],
            )
            columns |= found.columns
            metrics |= found.metrics
    name = f"{fold.name}, seed {seed}" if fold.name else f"seed {seed}"
    train_keys = fold.train.features.keys
    return Repeat(name, fold.test.features.keys, columns, metrics, train_keys, fold.classes), sizes


def _scores(
    train: Any, targets: Any, test: Any, num_classes: int, config: Config, report: dict[str, Any]
) -> NDArray[Any]:
    if config.classifier == "knn":
        neighbours, temperature = config.num_neighbours, config.temperature
        return knn_scores(train, targets, test, num_classes, num_neighbours=neighbours, temperature=temperature)
    return logistic_scores(
        train,
        targets,
        test,
        num_classes,
        costs=[config.cost],
        max_iterations=config.max_iterations,
        report=report,
    )


def stratified(targets: NDArray[np.int64], share: float, number: int, seed: int) -> NDArray[np.int64]:
    """Sorted positions of a share in (0, 1] of each class (rounded, at least one), or of `number` of each if share is
    0.

    targets: int (n,). A class with fewer than `number` rows gives all that it has. The smaller draw of a seed is part
    of the larger one.
    """
    generator = np.random.default_rng(seed)
    chosen: Sequence[NDArray[np.int64]] = [
        order[: max(1, round(share * len(order))) if share else number]
        for order in (generator.permutation(np.flatnonzero(targets == one)) for one in np.unique(targets))
    ]
    return np.sort(np.concatenate(chosen))
