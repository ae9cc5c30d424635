"""One-vs-all linear SVM on pooled layers, as AVID evaluates its audio network on ESC-50 and DCASE.

Morgado et al. 2021 (arXiv 2004.12943): hinge loss, 200 iterations, C = 10 (ESC-50) or 1 (DCASE), features pooled to
12, 8, 6 and 4 squared and standardized with (deviation + 0.01), 10 or 60 crops per sample, decision values averaged.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from avssl.eval.classifiers import require_sklearn, svm_scores
from avssl.eval.configs import SVMConfig
from avssl.eval.frozen import classify
from avssl.eval.outcome import Outcome
from avssl.eval.tasks import register

if TYPE_CHECKING:
    from avssl.embedding.embedder import Embedder


@register("svm", SVMConfig)
def svm(embedder: Embedder, config: SVMConfig) -> Outcome:
    """One SVM per class on standardized features; facts count those that do not converge in max_iterations."""
    require_sklearn()
    report: dict[str, Any] = {}
    fit = partial(
        svm_scores,
        cost=config.cost,
        max_iterations=config.max_iterations,
        deviation_offset=config.deviation_offset,
        seed=config.seed,
        report=report,
    )
    outcome = classify(embedder, config, fit)
    return replace(outcome, facts={**outcome.facts, **report})
