"""How far few labels go: a classifier fitted on a share, or so many a class, of the training samples, over seeds.

With several labels a sample (`multi_label`) a drawn sample brings all of its labels, those of other classes too; see
`stratified` for the draw, and avssl/eval/outcome.py for what is measured then.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from avssl.eval.classifiers import knn_scores, logistic_scores, require_sklearn
from avssl.eval.frozen import FROZEN, FitAndScore, FrozenConfig, classify_layer, folds
from avssl.eval.labels import Fold, LabeledFeatures, labels_digest
from avssl.eval.outcome import Outcome, Repeat
from avssl.eval.tasks import register

if TYPE_CHECKING:
    from avssl.embedding.embedder import Embedder


@dataclass
class FewLabelConfig(FrozenConfig):
    """Stratified: of each class its share, rounded (halves up), and at least one."""

    fractions: list[float] = field(default_factory=lambda: [0.01, 0.1])  # of the training samples
    per_class: list[int] = field(default_factory=list)  # so many a class
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])  # of the draw
    classifier: str = "linear"  # linear (logistic regression), or knn
    cost: float = 1.0  # C of the logistic regression
    max_iterations: int = 1000
    num_neighbors: int = 20
    temperature: float = 0.07


@register("few_label", FewLabelConfig)
def few_label(embedder: Embedder, config: FewLabelConfig) -> Outcome:
    """Every amount on every layer, once a seed (and fold)."""
    if config.classifier not in ("linear", "knn"):
        raise ValueError(f"classifier is {config.classifier!r}; few_label fits linear or knn")
    wrong = [share for share in config.fractions if not 0 < share <= 1] + [n for n in config.per_class if n < 1]
    if wrong or not config.seeds or not [*config.fractions, *config.per_class]:
        raise ValueError(f"fractions must lie in (0, 1], per_class be at least 1, seeds not be empty; wrong: {wrong}")
    if config.classifier == "linear":
        require_sklearn()
    report: dict[str, Any] = {}
    fit_and_score: FitAndScore = (
        partial(knn_scores, num_neighbors=config.num_neighbors, temperature=config.temperature)
        if config.classifier == "knn"
        else partial(logistic_scores, costs=[config.cost], max_iterations=config.max_iterations, report=report)
    )
    drawn: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    repeats, left_out, labels = [], {}, []
    for fold in folds(embedder, config):
        labels.append(labels_digest(fold).hex()[:16])
        left_out[fold.name] = fold.left_out
        for seed in config.seeds:
            repeat, used = _repeat(fold, config, seed, fit_and_score)
            repeats.append(repeat)
            for amount, counts in used.items():
                drawn[f"{fold.name} {amount}".strip()].append(counts)
    protocol = {**FROZEN, **_amounts_drawn(drawn, config), "left_out": left_out, "labels": labels}
    return Outcome(repeats, protocol, report)


def _amounts_drawn(drawn: dict[str, list[tuple[int, int, int]]], config: FewLabelConfig) -> dict[str, Any]:
    """How many samples each amount was, of every seed where they differ; with several labels also of how many a class
    had the fewest and the most.
    """
    sizes = {amount: [samples for samples, _, _ in over_seeds] for amount, over_seeds in drawn.items()}
    found: dict[str, Any] = {
        "training_samples": {amount: each[0] if len(set(each)) == 1 else each for amount, each in sizes.items()}
    }
    if config.multi_label:
        found["samples_of_a_class"] = {
            amount: [min(fewest for _, fewest, _ in over_seeds), max(most for _, _, most in over_seeds)]
            for amount, over_seeds in drawn.items()
        }
    return found


def _repeat(
    fold: Fold, config: FewLabelConfig, seed: int, fit_and_score: FitAndScore
) -> tuple[Repeat, dict[str, tuple[int, int, int]]]:
    """One draw, and of each amount (samples, those of the class with the fewest, those of the one with the most)."""
    targets = fold.train.targets
    amounts: list[tuple[str, float, int]] = [(f"{share * 100:g}_percent", share, 0) for share in config.fractions]
    amounts += [(f"{number}_per_class", 0.0, number) for number in config.per_class]
    columns: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    sizes: dict[str, tuple[int, int, int]] = {}
    for amount, share, number in amounts:
        chosen = stratified(targets, share, number, seed)
        per_class = targets[chosen].sum(axis=0) if config.multi_label else np.bincount(targets[chosen])
        sizes[amount] = len(chosen), int(per_class[per_class > 0].min()), int(per_class.max())
        drawn = replace(fold, train=LabeledFeatures(fold.train.features.select(chosen), targets[chosen]))
        for layer in config.layers:
            result = classify_layer(drawn, config, layer, fit_and_score, prefix=f"{amount}_")
            columns |= result.columns
            metrics |= result.metrics
    name = f"{fold.name}, seed {seed}" if fold.name else f"seed {seed}"
    train_keys = fold.train.features.keys
    return Repeat(name, fold.test.features.keys, columns, metrics, train_keys, fold.classes), sizes


def stratified(targets: NDArray[Any], share: float, number: int, seed: int) -> NDArray[np.int64]:
    """Sorted positions of a share in (0, 1] of each class (rounded, at least one), or of `number` of each if share is
    0.

    targets: int (n,), or bool (n, C) with several labels a sample. A class with fewer than `number` samples gives all.

    Every class that occurs has an order of its samples: generator.permutation, class after class, with
    generator = numpy.random.default_rng(seed). Classes take turns: in its r-th turn a class of which fewer than r
    samples are drawn so far, for whichever class, takes the first of its order that is not drawn. It has as many turns
    as it is due samples. Turns come by r with `number`, and by (r - 1/2) / (samples of the class) with a share, every
    class's first turn before all others; at once: the rarer class, then the lower. So each class has at least what it
    is due; with one label a sample exactly that; and the smaller draw of a seed is part of the larger one.
    """
    several = targets.ndim == 2
    generator = np.random.default_rng(seed)
    orders = {
        int(one): generator.permutation(np.flatnonzero(targets[:, one] if several else targets == one))
        for one in (np.flatnonzero(targets.any(axis=0)) if several else np.unique(targets))
    }
    turns = []
    for one, order in orders.items():
        due = max(1, int(share * len(order) + 0.5)) if share else min(number, len(order))
        for turn in range(1, due + 1):
            when = 0.0 if turn == 1 else (turn - 0.5) / len(order) if share else float(turn)
            turns.append((when, len(order), one, turn))
    is_drawn, counts = np.zeros(len(targets), np.bool_), np.zeros(max(orders) + 1, np.int64)
    places = dict.fromkeys(orders, 0)
    for _, _, one, turn in sorted(turns):
        if counts[one] < turn:
            while is_drawn[orders[one][places[one]]]:
                places[one] += 1
            sample = orders[one][places[one]]
            is_drawn[sample] = True
            counts[targets[sample, : len(counts)] if several else targets[sample]] += 1
    return np.flatnonzero(is_drawn)
