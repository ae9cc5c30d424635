"""A linear classifier on stored features of frozen networks: multinomial logistic regression, one per layer.

The clips are not augmented, and L-BFGS runs to convergence. The published probes, which are trained by gradient steps
on augmented clips, are the task `linear_probe`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from avssl.eval.classifiers import logistic_scores, require_sklearn
from avssl.eval.configs import LinearConfig
from avssl.eval.frozen import classify
from avssl.eval.outcome import Outcome
from avssl.eval.tasks import register

if TYPE_CHECKING:
    from avssl.embedding.embedder import Embedder


@register("linear", LinearConfig)
def linear(embedder: Embedder, config: LinearConfig) -> Outcome:
    """Logistic regression on the standardized features of every layer."""
    require_sklearn()
    report: dict[str, Any] = {}
    fit = partial(
        logistic_scores,
        costs=list(config.costs),
        max_iterations=config.max_iterations,
        seed=config.seed,
        report=report,
    )
    outcome = classify(embedder, config, fit)
    return replace(outcome, facts={**outcome.facts, **report})
