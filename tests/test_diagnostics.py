"""Diagnostics of embeddings against NumPy, and the rules that report a collapse."""

import numpy as np
import pytest
import torch

from avssl.ops import diagnostics
from avssl.train.collapse import NUM_BROKEN, RULES, CollapseWatch

RNG = np.random.default_rng(0)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("shape", [(12, 5), (6, 40)])
def test_effective_rank_equals_numpys_singular_values(shape):
    z = RNG.normal(size=shape) * np.geomspace(1, 0.01, shape[1])
    singular = np.linalg.svd(unit(z), compute_uv=False)
    share = singular / singular.sum()
    assert diagnostics.effective_rank(torch.tensor(z)).item() == pytest.approx(
        np.exp(-(share * np.log(share)).sum()), rel=1e-4
    )


def test_effective_rank_is_one_of_a_line_and_the_dim_of_an_orthogonal_basis():
    line = np.outer(RNG.uniform(0.1, 2, size=20), RNG.normal(size=8))
    assert diagnostics.effective_rank(torch.tensor(line)).item() == pytest.approx(1, abs=1e-3)
    assert diagnostics.effective_rank(torch.eye(7)).item() == pytest.approx(7, rel=1e-5)


def test_embeddings_that_are_not_numbers_have_no_rank_and_raise_nothing():
    assert diagnostics.effective_rank(torch.full((4, 3), torch.nan)).isnan()
    assert diagnostics.uniformity(torch.full((4, 3), torch.nan)).isnan()


def test_alignment_and_uniformity_equal_loops_over_pairs():
    first, second = RNG.normal(size=(9, 4)), RNG.normal(size=(9, 4))
    one, two = unit(first), unit(second)
    assert diagnostics.alignment(torch.tensor(first), torch.tensor(second)).item() == pytest.approx(
        np.mean([((a - b) ** 2).sum() for a, b in zip(one, two, strict=True)]), rel=1e-5
    )
    pairs = [np.exp(-2 * ((one[i] - one[j]) ** 2).sum()) for i in range(9) for j in range(i)]
    assert diagnostics.uniformity(torch.tensor(first)).item() == pytest.approx(np.log(np.mean(pairs)), rel=1e-5)
    assert diagnostics.uniformity(torch.ones(5, 3)).item() == pytest.approx(0, abs=1e-5)


def test_large_batches_are_sampled_and_half_precision_gives_float32(monkeypatch):
    z = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    part = diagnostics.effective_rank(z[:20]), diagnostics.uniformity(z[:20])
    monkeypatch.setattr(diagnostics, "MAX_ROWS", 20)
    assert (diagnostics.effective_rank(z), diagnostics.uniformity(z)) == part
    for metric in (diagnostics.effective_rank, diagnostics.uniformity, diagnostics.embedding_spread):
        assert metric(z.half()).dtype == torch.float32


def reports(values, name="video_embedding_spread", total_steps=100, start=10):
    watch = CollapseWatch(total_steps)
    counts = [watch.check(start + step, {name: value, "loss": 1.0}) for step, value in enumerate(values)]
    return watch, [len(findings) for findings in counts]


def test_a_collapse_is_reported_once_after_three_logging_steps_and_again_after_a_recovery():
    watch, counts = reports([0.01] * 5 + [0.5] + [0.01] * 3)
    assert NUM_BROKEN == 3
    assert counts == [0, 0, 1, 0, 0, 0, 0, 0, 1]
    assert [(finding.step, finding.until) for finding in watch.findings] == [(12, 15), (18, None)]
    text = "the embeddings of a batch are nearly the same: video_embedding_spread is 0.01 at step 12 until step 15"
    assert str(watch.findings[0]).startswith(f"collapse: {text}. Try: ")


def test_single_dips_the_start_of_a_run_and_names_without_a_rule_are_ignored():
    assert reports([0.01, 0.01, 0.5] * 3)[1] == [0] * 9
    assert reports([0.01] * 5, start=0)[1] == [0] * 5  # the first twentieth
    assert reports([0.0] * 5, name="learning_rate")[1] == [0] * 5


def test_nan_counts_as_a_collapse():
    assert reports([float("nan")] * 3)[1] == [0, 0, 1]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.suffix)
def test_every_rule_has_a_good_and_a_bad_side(rule):
    bad = rule.least - 0.01 if rule.least > -np.inf else rule.most + 0.001
    assert reports([bad] * 3, name=f"first_{rule.suffix}")[1] == [0, 0, 1]
    assert reports([(rule.least + 1) if rule.least > -np.inf else 0.5] * 3, name=rule.suffix)[1] == [0, 0, 0]
