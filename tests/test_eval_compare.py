"""Paired comparisons against textbook formulas and scipy; results that cannot be compared are refused."""

from __future__ import annotations

import json
import shutil
import time
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from avssl.eval.compare import compare, mcnemar, paired_differences
from avssl.eval.configs import LabelTaskConfig
from avssl.eval.outcome import Metric, Outcome, Repeat, classified
from avssl.eval.results import evaluation_of, read_evaluation, read_rows, write
from recipes import evaluate as recipe

ROWS = 200
KEYS = [f"clip{number:03d}" for number in range(ROWS)]


def repeat(seed: int, skill: float, *, multi_label: bool = False, name: str = "") -> Repeat:
    """A made-up classifier of the same 200 rows; skill is added to the score of the true class."""
    targets = np.arange(ROWS) % 7
    scores = np.random.default_rng(seed).normal(size=(ROWS, 7)) + skill * np.eye(7)[targets]
    labels = np.eye(7, dtype=np.bool_)[targets] if multi_label else targets
    return classified(KEYS, scores, labels, list("abcdefg"), name=name, train_keys=["x"])


def stored(folder: Path, outcome: Outcome, name: str = "one", **settings: Any) -> Path:
    config = LabelTaskConfig(task="knn", name=name, **settings)
    evaluation = evaluation_of({"trained": outcome}, config, "run", {"trained": "abc"}, {})
    return write(folder, {"trained": outcome}, evaluation)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    generator = np.random.default_rng(0)
    for size in (5, 60, 5000):
        first, second = generator.random((2, size)) < [[0.5], [0.6]]
        only_first, only_second, p_value = mcnemar(first, second)
        assert (only_first, only_second) == ((first & ~second).sum(), (second & ~first).sum())
        expected = stats.binomtest(only_first, only_first + only_second, 0.5).pvalue
        assert p_value == pytest.approx(expected, rel=1e-9)
    same = np.ones(4, np.bool_)
    assert mcnemar(same, same) == (0, 0, 1.0)


def test_mcnemar_of_many_rows_is_quick_and_as_the_sum_of_all_coefficients() -> None:
    """The sum of them took time cubic in the rows that differ: more than a minute for 20,000."""
    for only_first, only_second in ((0, 0), (0, 9), (3, 4), (5, 5), (41, 60), (300, 420), (1, 1200), (100, 1500)):
        rows = np.arange(only_first + only_second)
        expected = min(1.0, 2 * sum(comb(len(rows), n) for n in range(only_first + 1)) / 2 ** len(rows))
        assert mcnemar(rows < only_first, rows >= only_first)[2] == pytest.approx(expected, rel=1e-12, abs=0)
    rows, began = np.arange(60_000), time.process_time()
    p_value = mcnemar(rows < 29_800, rows >= 29_800)[2]
    assert time.process_time() - began < 5
    assert p_value == pytest.approx(2 * stats.binom.cdf(29_800, 60_000, 0.5), rel=1e-8)


@pytest.mark.slow
def test_the_interval_of_a_mean_is_that_of_the_paired_normal_theory() -> None:
    first, second = repeat(0, 1.0), repeat(1, 1.6)
    found = paired_differences([first], [second], num_draws=4000, seed=3)["top1_accuracy"]
    paired = second.columns["right"].astype(float) - first.columns["right"]
    assert found.difference == pytest.approx(paired.mean())
    half = stats.norm.ppf(0.975) * paired.std(ddof=1) / np.sqrt(ROWS)
    assert found.low == pytest.approx(paired.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(paired.mean() + half, abs=0.1 * half)
    assert found.mcnemar == mcnemar(first.columns["right"], second.columns["right"])


def test_equal_results_differ_by_nothing_and_draws_are_reproducible() -> None:
    first, second = repeat(0, 1.0), repeat(1, 1.0)
    for difference in paired_differences([first], [first], num_draws=50).values():
        assert (difference.difference, difference.low, difference.high) == (0, 0, 0)
    runs = [paired_differences([first], [second], num_draws=50, seed=seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    backward = paired_differences([second], [first], num_draws=50, seed=1)["top1_accuracy"]
    assert backward.low == pytest.approx(-runs[0]["top1_accuracy"].high)


def test_bootstrap_of_mean_average_precision_recomputes_it_on_the_resampled_rows() -> None:
    from sklearn.metrics import average_precision_score

    first, second = repeat(0, 0.5, multi_label=True), repeat(1, 1.5, multi_label=True)
    found = paired_differences([first], [second], num_draws=30, seed=5)["mean_average_precision"]
    generator, draws = np.random.default_rng(5), []
    for _ in range(30):
        rows = generator.integers(0, ROWS, ROWS)
        values = [
            average_precision_score(side.columns["targets"][rows], side.columns["scores"][rows], average="macro")
            for side in (first, second)
        ]
        draws.append(values[1] - values[0])
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])))
    assert found.low > 0, "a classifier that is clearly better is found to be"


@pytest.mark.slow
def test_seeds_on_the_same_rows_are_drawn_together_and_folds_apart() -> None:
    """Ten copies of a seed are no more evidence than one; ten folds are."""
    first, second = repeat(0, 1.0), repeat(1, 1.2)
    single = paired_differences([first], [second], num_draws=300)["top1_accuracy"]
    copies = [
        [Repeat(f"seed {n}", side.keys, side.columns, side.metrics) for n in range(10)] for side in (first, second)
    ]
    seeds = paired_differences(*copies, num_draws=300)["top1_accuracy"]
    assert (seeds.low, seeds.high) == pytest.approx((single.low, single.high))
    assert seeds.mcnemar is None, "one row comes ten times: not ten independent rows"
    folds = [
        [Repeat(f"fold {n}", [f"{n}/{key}" for key in side.keys], side.columns, side.metrics) for n in range(10)]
        for side in (first, second)
    ]
    apart = paired_differences(*folds, num_draws=300)["top1_accuracy"]
    assert apart.high - apart.low < 0.5 * (single.high - single.low)
    assert apart.mcnemar is not None


def test_files_come_back_as_they_were_and_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = stored(tmp_path / "a", Outcome([repeat(0, 1.0)], {"left_out": {}}))
    second = stored(tmp_path / "b", Outcome([repeat(1, 1.6)], {"left_out": {}}), name="two", batch_size=3)
    evaluation = read_evaluation(first)
    back = read_rows(first, evaluation, "trained")[0]
    assert back.values() == repeat(0, 1.0).values() == evaluation["results"]["trained"]
    differences = compare(first, second, num_draws=200)
    recipe.compare_files([str(first), str(second), "draws=200"])
    shown = capsys.readouterr().out
    first = differences["top1_accuracy"]
    assert f"{first.difference:+.4f}" in shown
    assert f"[{first.low:+.4f}, {first.high:+.4f}]" in shown
    assert "p = " in shown


def test_results_of_different_protocols_are_refused_with_the_differences(tmp_path: Path) -> None:
    outcome = Outcome([repeat(0, 1.0)], {"left_out": {}})
    first = stored(tmp_path / "a", outcome)
    with pytest.raises(ValueError, match=r"label_field: 'label' and 'other'"):
        compare(first, stored(tmp_path / "b", outcome, label_field="other"))
    fewer = repeat(0, 1.0)
    rows = {name: values[:-1] for name, values in fewer.columns.items()}
    shorter = Outcome([Repeat("", fewer.keys[:-1], rows, fewer.metrics, fewer.train_keys)], {"left_out": {}})
    with pytest.raises(ValueError, match="samples: "):
        compare(first, stored(tmp_path / "c", shorter))
    with pytest.raises(ValueError, match="left_out: "):
        compare(first, stored(tmp_path / "d", Outcome(outcome.repeats, {"left_out": {"test": {"no audio": 1}}})))
    with pytest.raises(ValueError, match="has no weights 'untrained'"):
        compare(first, first, weights=("trained", "untrained"))


def test_metrics_that_only_some_repeats_have_are_compared_on_those() -> None:
    """As in `standard`, where test clips are one repeat, training clips another, and only some runs have positives."""
    tested, anchors = repeat(0, 1.0, name="test"), np.random.default_rng(3).random((2, ROWS))
    keys = [f"train{number}" for number in range(ROWS)]
    sides = [
        [tested, Repeat("positives", keys, {"share": share}, {"precision": Metric("mean", ("share",))})]
        for share in anchors
    ]
    found = paired_differences(*sides, num_draws=100)
    assert found["precision"].difference == pytest.approx(anchors[1].mean() - anchors[0].mean())
    assert found["precision"].low < found["precision"].difference < found["precision"].high
    assert found["top1_accuracy"].difference == 0
    without = [tested, Repeat("positives", keys, {}, {})]
    assert "precision" not in paired_differences(sides[0], without, num_draws=10)


def test_mcnemar_of_a_share_of_some_rows_counts_only_these() -> None:
    generator = np.random.default_rng(4)
    right, asked = generator.random((2, ROWS)) < 0.6, generator.random(ROWS) < 0.5
    sides = [
        [Repeat("", KEYS, {"right": is_right, "asked": asked}, {"m": Metric("mean_where", ("right", "asked"))})]
        for is_right in right
    ]
    found = paired_differences(*sides, num_draws=10)["m"]
    assert found.mcnemar == mcnemar(right[0][asked], right[1][asked])
    assert found.first == pytest.approx(right[0][asked].mean())


def test_a_file_of_rows_of_another_result_is_refused(tmp_path: Path) -> None:
    first = stored(tmp_path / "a", Outcome([repeat(0, 1.0)]))
    second = stored(tmp_path / "b", Outcome([repeat(1, 1.0)]))
    rows = next(first.parent.glob("*.npz"))
    shutil.copy(next(second.parent.glob("*.npz")), rows)
    with pytest.raises(ValueError, match="does not belong to"):
        compare(first, second)
    rows.unlink()
    with pytest.raises(FileNotFoundError, match="is missing"):
        compare(first, second)
    standard = tmp_path / "evaluation.json"
    standard.write_text(json.dumps({"results": {}}))
    with pytest.raises(ValueError, match="evaluate the run again"):
        compare(standard, second)
    with pytest.raises(FileNotFoundError, match="no such file"):
        compare(tmp_path / "nothing.json", second)


def test_a_number_that_does_not_exist_is_null_in_the_file(tmp_path: Path) -> None:
    lonely = Repeat(
        "", ["a"], {"x": np.zeros(1), "no": np.zeros(1, np.bool_)}, {"m": Metric("mean_where", ("x", "no"))}
    )
    path = stored(tmp_path, Outcome([lonely]))
    assert json.loads(path.read_text())["results"]["trained"]["m"] is None
    assert "NaN" not in path.read_text()
