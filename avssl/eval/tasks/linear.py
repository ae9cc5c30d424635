"""A linear classifier on stored features of frozen networks: multinomial logistic regression, one per layer.

The features are of clips without augmentation, fitted to the end by L-BFGS. The published probes that train by gradient
steps on augmented clips are another task.
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
    """L2 regularization 1 / (2 C) |w|^2 against the sum of the losses, as in scikit-learn."""

    costs: list[float] = field(default_factory=lambda: [1.0])  # C; of several, the best on a fifth of the training set
    max_iterations: int = 1000


@register("linear", LinearConfig)
def linear(embedder: Embedder, config: LinearConfig) -> Outcome:
    """Logistic regression on standardized features."""
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
