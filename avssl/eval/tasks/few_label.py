"""A classifier fitted on a share of the training samples, or on a number per class, over seeds.

With several labels per sample (`multi_label`) a drawn sample has all of its labels, also those of other classes; see
`stratified` for the draw, and avssl/eval/outcome.py for the metrics.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from avssl.eval.classifiers import FitAndScore, classify_layer, knn_scores, logistic_scores, require_sklearn
from avssl.eval.configs import FewLabelConfig
from avssl.eval.frozen import FROZEN, folds
from avssl.eval.labels import Fold, LabeledFeatures, labels_digest
from avssl.eval.outcome import Outcome, Repeat
from avssl.eval.tasks import register

if TYPE_CHECKING:
    from avssl.embedding.embedder import Embedder


@register("few_label", FewLabelConfig)
def few_label(embedder: Embedder, config: FewLabelConfig) -> Outcome:
    """Every amount on every layer, once per fold and seed."""
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
    """{"training_samples": {amount: number, or a list over seeds where it differs}}.

    With several labels also {"samples_of_a_class": {amount: [the fewest of a class, the most]}}.
    """
    sizes = {amount: [samples for samples, _, _ in over_seeds] for amount, over_seeds in drawn.items()}
    entries: dict[str, Any] = {
        "training_samples": {
            amount: over_seeds[0] if len(set(over_seeds)) == 1 else over_seeds for amount, over_seeds in sizes.items()
        }
    }
    if config.multi_label:
        entries["samples_of_a_class"] = {
            amount: [min(fewest for _, fewest, _ in over_seeds), max(most for _, _, most in over_seeds)]
            for amount, over_seeds in drawn.items()
        }
    return entries


def _repeat(
    fold: Fold, config: FewLabelConfig, seed: int, fit_and_score: FitAndScore
) -> tuple[Repeat, dict[str, tuple[int, int, int]]]:
    """(one draw, {amount: (samples, those of the class with the fewest, those of the class with the most)})."""
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
            result = classify_layer(drawn, config.modality, layer, fit_and_score, fuse=config.fuse, prefix=f"{amount}_")
            columns |= result.columns
            metrics |= result.metrics
    name = f"{fold.name}, seed {seed}" if fold.name else f"seed {seed}"
    train_keys = fold.train.features.keys
    return Repeat(name, fold.test.features.keys, columns, metrics, train_keys, fold.classes), sizes


def stratified(targets: NDArray[Any], share: float, number: int, seed: int) -> NDArray[np.int64]:
    """Sorted numbers of the drawn rows: a share of each class, or `number` rows per class if share is 0.

    share: in (0, 1], rounded, at least one row. A class with fewer than `number` samples gives all. targets: int (n,),
    or bool (n, C) with several labels per sample.

    Each class with samples has an order of them: generator.permutation, class after class, with
    generator = numpy.random.default_rng(seed). A class is due a number of samples, and has as many turns. In its r-th
    turn, a class of which fewer than r samples are drawn so far (by any class) draws the first one of its order that is
    not drawn. Turns are sorted by r with `number`, and by (r - 1/2) / (samples of the class) with a share, where every
    first turn comes before all others; equal turns by fewer samples of the class, then by the class number. So each
    class gets at least the samples that it is due, with one label per sample exactly those, and the smaller draw of a
    seed is a part of the larger one.
    """
    several = targets.ndim == 2
    generator = np.random.default_rng(seed)
    orders = {
        int(class_number): generator.permutation(
            np.flatnonzero(targets[:, class_number] if several else targets == class_number)
        )
        for class_number in (np.flatnonzero(targets.any(axis=0)) if several else np.unique(targets))
    }
    turns = []
    for class_number, order in orders.items():
        due = max(1, int(share * len(order) + 0.5)) if share else min(number, len(order))
        for turn in range(1, due + 1):
            when = 0.0 if turn == 1 else (turn - 0.5) / len(order) if share else float(turn)
            turns.append((when, len(order), class_number, turn))
    is_drawn, counts = np.zeros(len(targets), np.bool_), np.zeros(max(orders) + 1, np.int64)
    next_in_order = dict.fromkeys(orders, 0)
    for _, _, class_number, turn in sorted(turns):
        if counts[class_number] < turn:
            while is_drawn[orders[class_number][next_in_order[class_number]]]:
                next_in_order[class_number] += 1
            sample = orders[class_number][next_in_order[class_number]]
            is_drawn[sample] = True
            counts[targets[sample, : len(counts)] if several else targets[sample]] += 1
    return np.flatnonzero(is_drawn)
