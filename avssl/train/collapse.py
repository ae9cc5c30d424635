"""Warnings of collapse: rules on the logged diagnostics, the same in training and in the report.

In many of the methods a network that maps every sample to one point, one line, or one prediction has a low loss. A rule
on the diagnostics that every loss logs must be broken at three logging steps in a row, after the first twentieth of the
run, before it is reported; it is reported again only after a recovery.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

NUM_BROKEN = 3  # logging steps in a row
SETTLING_SHARE = 0.05  # of the run, at its start, in which nothing is reported


@dataclass(frozen=True)
class Rule:
    """A logged name that ends with `suffix` breaks the rule below `least` or above `most`."""

    suffix: str
    meaning: str
    remedy: str
    least: float = float("-inf")
    most: float = float("inf")


RULES = (
    Rule(
        "embedding_spread",
        "the embeddings of a batch are nearly the same",
        "lower optim.lr, use a larger batch, or, where the loss has it, loss.projector_final_batch_norm=true",
        least=0.05,
    ),
    Rule(
        "effective_rank",
        "the embeddings of a batch lie on one line",
        "lower optim.lr; look at the views: do two samples still differ?",
        least=1.5,
    ),
    Rule(
        "prediction_entropy",
        "the predictions of a batch use next to no clusters",
        "lower optim.lr, use fewer clusters or prototypes; of dino a lower loss.center_momentum",
        least=0.1,
    ),
    Rule(
        "assignment_entropy",
        "every sample is predicted to belong to all prototypes alike",
        "keep the prototypes fixed for longer (loss.freeze_steps, loss.freeze_epochs) or lower optim.lr; "
        "loss.projector_final_batch_norm=true helps across modalities, of dino a lower loss.teacher_temperature",
        most=0.995,
    ),
    Rule("label_entropy", "the labels of the data set use next to no clusters", "use fewer clusters", least=0.1),
)


@dataclass(frozen=True)
class Finding:
    """One collapse: the logged name and value, the step of its report, and of its recovery (None: never)."""

    name: str
    value: float
    step: int
    rule: Rule
    until: int | None = None

    def __str__(self) -> str:
        until = "" if self.until is None else f" until step {self.until}"
        return (
            f"collapse: {self.rule.meaning}: {self.name} is {self.value:.3g} at step {self.step}{until}. "
            f"Try: {self.rule.remedy}"
        )


class CollapseWatch:
    """Checks the logged scalars step by step; `findings` holds all collapses so far."""

    def __init__(self, total_steps: int) -> None:
        self.settled = SETTLING_SHARE * total_steps
        self.counts: dict[str, int] = {}
        self.findings: list[Finding] = []

    def check(self, step: int, scalars: Mapping[str, float]) -> list[Finding]:
        """The collapses that are new at this step. NaN breaks a rule; names without a rule are ignored."""
        new: list[Finding] = []
        if step < self.settled:
            return new
        for name, value in scalars.items():
            rule = next((rule for rule in RULES if name.endswith(rule.suffix)), None)
            if rule is None:
                continue
            if rule.least <= value <= rule.most:
                if self.counts.pop(name, 0) >= NUM_BROKEN:
                    self._recovered(name, step)
                continue
            self.counts[name] = self.counts.get(name, 0) + 1
            if self.counts[name] == NUM_BROKEN:
                new.append(Finding(name, value, step, rule))
        self.findings += new
        return new

    def _recovered(self, name: str, step: int) -> None:
        for position, finding in enumerate(self.findings):
            if finding.name == name and finding.until is None:
                self.findings[position] = replace(finding, until=step)
