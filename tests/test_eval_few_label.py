"""The draw of few labels against a plain version, and the task with several labels per sample against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler

from avssl.eval.configs import FewLabelConfig
from avssl.eval.labels import FeatureSet, make_fold
from avssl.eval.tasks.few_label import few_label, stratified


def several_labels(num_samples: int = 120, seed: int = 0) -> np.ndarray:
    """bool (n, 6): classes from frequent to rare, one without samples; each sample has at least one."""
    generator = np.random.default_rng(seed)
    targets = generator.random((num_samples, 6)) < [0.5, 0.3, 0.2, 0.1, 0.05, 0.0]
    targets[~targets.any(axis=1), 0] = True
    return targets


def plain_draw(targets: np.ndarray, share: float, number: int, seed: int) -> set[int]:
    """The documented draw with lists and sets: turns one after the other, each found from scratch."""
    generator = np.random.default_rng(seed)
    order = {}
    for label in range(targets.shape[1]):
        having = [row for row in range(len(targets)) if targets[row, label]]
        if having:
            order[label] = generator.permutation(having).tolist()
    due = {label: max(1, int(np.floor(share * len(rows) + 0.5))) if share else number for label, rows in order.items()}
    drawn: set[int] = set()
    waiting = [(label, turn) for label, rows in order.items() for turn in range(1, 1 + min(due[label], len(rows)))]
    while waiting:

        def place(entry: tuple[int, int]) -> tuple[bool, float, int, int]:
            label, turn = entry
            return turn > 1, (turn - 0.5) / len(order[label]) if share else turn, len(order[label]), label

        # All first turns are at once, whatever the size of the class.
        first = min(waiting, key=lambda entry: (False, 0, *place(entry)[2:]) if entry[1] == 1 else place(entry))
        waiting.remove(first)
        label, turn = first
        if len(drawn & set(order[label])) < turn:
            drawn.add(next(row for row in order[label] if row not in drawn))
    return drawn


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("share", "number"), [(0.1, 0), (0.33, 0), (0.0, 1), (0.0, 5), (0.0, 20), (1.0, 0)])
def test_the_draw_is_the_plain_one_with_one_label_and_with_several(share: float, number: int, seed: int) -> None:
    targets = several_labels(seed=seed)
    assert set(stratified(targets, share, number, seed)) == plain_draw(targets, share, number, seed)
    single = targets.argmax(axis=1)
    one_hot = single[:, None] == np.arange(6)
    assert set(stratified(single, share, number, seed)) == plain_draw(one_hot, share, number, seed)


@pytest.mark.parametrize("number", [1, 3, 10])
def test_every_class_gets_the_samples_it_is_due_and_samples_keep_their_other_labels(number: int) -> None:
    targets = several_labels()
    chosen = stratified(targets, 0.0, number, 0)
    counts, there = targets[chosen].sum(axis=0), targets.sum(axis=0)
    assert (counts >= np.minimum(number, there)).all()
    union = set()  # what drawing for every class alone, without looking at the others, would take
    generator = np.random.default_rng(0)
    for label in range(5):
        union |= set(generator.permutation(np.flatnonzero(targets[:, label]))[:number].tolist())
    assert len(chosen) <= len(union)
    assert set(stratified(targets, 0.0, number - 1 or 1, 0)) <= set(chosen), "the smaller draw is part of the larger"
    assert not np.array_equal(chosen, stratified(targets, 0.0, number, 1))


def test_shares_are_nested_and_near_the_share_of_the_samples() -> None:
    targets = several_labels(num_samples=400)
    before: set[int] = set()
    for share in (0.01, 0.05, 0.1, 0.25, 0.5, 1.0):
        chosen = set(stratified(targets, share, 0, 3))
        assert before <= chosen
        counts = targets[sorted(chosen)].sum(axis=0)
        assert (counts >= np.floor(share * targets.sum(axis=0) + 0.5)).all()
        # Every label of a sample counts: without that it would be up to three times the share.
        assert len(chosen) <= max(6, 1.35 * share * 400)
        before = chosen


@pytest.mark.parametrize("classifier", ["linear", "knn"])
def test_several_labels_are_scored_by_mean_average_precision(classifier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = []
    for seed, count in ((0, 120), (1, 80)):
        targets = several_labels(count, seed)
        rows = np.random.default_rng(seed).normal(size=(count, 1, 8)).astype(np.float32)
        rows[:, 0, :6] += targets
        labels = [{"label": ["abcdef"[label] for label in np.flatnonzero(own)]} for own in targets]
        present = {"video": np.ones(count, np.bool_)}
        keys = [f"{seed}-{row}" for row in range(count)]
        sides.append((rows, targets, FeatureSet(keys, labels, present, {"video": {"feature": rows}}, [""] * count)))
    (train, known, _), (test, truth, _) = sides
    config = FewLabelConfig(
        train="a", test="b", multi_label=True, fractions=[], per_class=[4], seeds=[0, 1], classifier=classifier
    )
    fold = make_fold("", sides[0][2], sides[1][2], config, ["video"])
    monkeypatch.setattr("avssl.eval.tasks.few_label.folds", lambda *_: [fold])
    found = few_label(None, config)
    for seed, repeat in enumerate(found.repeats):
        chosen = sorted(plain_draw(known, 0.0, 4, seed))
        own, asked = train[chosen, 0].astype(np.float64), test[:, 0].astype(np.float64)
        scores = np.zeros((len(test), 5))
        if classifier == "linear":
            scale = StandardScaler().fit(own)
            for label in range(5):
                oracle = LogisticRegression(max_iter=1000).fit(scale.transform(own), known[chosen, label])
                scores[:, label] = oracle.predict_proba(scale.transform(asked))[:, 1]
        else:
            own, asked = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (own, asked))
            for row, cosines in enumerate(asked @ own.T):
                near = np.argsort(-cosines)[:20]
                weights = np.exp(cosines[near] / 0.07)
                scores[row] = weights @ known[chosen, :5][near] / weights.sum()
        expected = average_precision_score(truth[:, :5], scores, average="macro")
        name = "4_per_class_video_feature_"
        assert repeat.values()[f"{name}mean_average_precision"] == pytest.approx(expected, abs=2e-4)
        assert repeat.metrics[f"{name}mean_average_precision"].chance == pytest.approx(truth[:, :5].mean())
        assert {f"{name}roc_auc", f"{name}d_prime"} < repeat.metrics.keys()
    sizes = [len(plain_draw(known, 0.0, 4, seed)) for seed in (0, 1)]
    assert found.protocol["training_samples"]["4_per_class"] == (sizes[0] if sizes[0] == sizes[1] else sizes)
    counts = [known[sorted(plain_draw(known, 0.0, 4, seed)), :5].sum(axis=0) for seed in (0, 1)]
    assert found.protocol["samples_of_a_class"]["4_per_class"] == [np.min(counts), np.max(counts)]


def test_an_unknown_classifier_is_refused() -> None:
    with pytest.raises(ValueError, match="few_label fits linear or knn"):
        few_label(None, FewLabelConfig(train="a", test="b", classifier="svm"))
