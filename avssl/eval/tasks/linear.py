"""A linear classifier on stored features of frozen networks: multinomial logistic regression, one per layer.

The clips are not augmented, and L-BFGS runs to convergence. The published probes, which are trained by gradient steps
on augmented clips, are the task `linear_probe`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from avssl.eval.classifiers import logistic_scores, require_sklearn
from avssl.eval.frozen import FrozenConfig, classify
from avssl.eval.outcome import Outcome
from avssl.eval.tasks import register

if TYPE_CHECKING:
    from avssl.embedding.embedder import Embedder


@dataclass
class LinearConfig(FrozenConfig):
    """The keys of the classifier; its L2 regularization is 1 / (2 C) |w|^2 beside the sum of the losses."""

    costs: list[float] = field(default_factory=lambda: [1.0])  # C; of several, the best on a fifth of the training set
    max_iterations: int = 1000


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
