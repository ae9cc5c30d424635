"""Weighted k nearest neighbors (Wu et al. 2018, arXiv 1805.01978, with k = 200 and T = 0.07 on ImageNet)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from avssl.eval.classifiers import knn_scores
from avssl.eval.configs import KNNConfig
from avssl.eval.frozen import classify
from avssl.eval.outcome import Outcome
from avssl.eval.tasks import register

if TYPE_CHECKING:
    from avssl.embedding.embedder import Embedder


@register("knn", KNNConfig)
def knn(embedder: Embedder, config: KNNConfig) -> Outcome:
    """Classify the test samples by a vote of the closest training samples, on every layer."""
    return classify(
        embedder, config, partial(knn_scores, num_neighbors=config.num_neighbors, temperature=config.temperature)
    )
