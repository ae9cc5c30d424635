"""Evaluation of embeddings: kNN and retrieval on arrays; the tasks of `avssl evaluate` are in tasks/."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avssl.exports import offer

if TYPE_CHECKING:
    from avssl.eval.configs import LabelTaskConfig as LabelTaskConfig
    from avssl.eval.configs import TaskConfig as TaskConfig
    from avssl.eval.knn import KNNResult as KNNResult
    from avssl.eval.knn import knn as knn
    from avssl.eval.outcome import Metric as Metric
    from avssl.eval.outcome import Outcome as Outcome
    from avssl.eval.outcome import Repeat as Repeat
    from avssl.eval.outcome import classified as classified
    from avssl.eval.registry import register_task as register_task
    from avssl.eval.retrieval import retrieval as retrieval

offer(
    __name__,
    {
        "configs": "LabelTaskConfig TaskConfig",
        "knn": "knn KNNResult",
        "outcome": "Metric Outcome Repeat classified",
        "registry": "register_task",
        "retrieval": "retrieval",
    },
)
