"""docs/figures/family_*.svg: what keeps each family of losses from collapse, and what happens without it.

    python docs/tools/families.py

A small network learns 300 steps on 96 samples in six groups, with the losses of avssl: once as published, once
without the part that keeps embeddings apart. The embeddings have two dimensions, so that all of them can be seen.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import svg
import torch
from torch import nn
from torch.nn.functional import mse_loss, normalize

from avssl.losses import nt_xent, regression, swapped_prediction, vicreg
from avssl.ops import embedding_spread, sinkhorn

GROUPS, PER_GROUP, WIDTH, STEPS, BATCH = 6, 16, 24, 300, 48
Views = tuple[torch.Tensor, torch.Tensor]


class Trained(NamedTuple):
    """Embeddings (96, 2) of unit length or, for VICReg, as they are, and how far they are spread (0: one point)."""

    rows: torch.Tensor
    spread: float


def samples() -> torch.Tensor:
    """(96, 24): six groups, each a direction with its samples around it, seen through a fixed random layer."""
    angles = torch.arange(GROUPS * PER_GROUP) // PER_GROUP * (2 * math.pi / GROUPS)
    angles = angles + 0.15 * torch.randn(len(angles))
    return torch.tanh(torch.stack([angles.cos(), angles.sin()], dim=1) @ torch.randn(2, WIDTH))


def network(width: int = WIDTH) -> nn.Sequential:
    """An encoder with its projector, or a predictor: two layers with batch norm between."""
    return nn.Sequential(nn.Linear(width, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 2))


def train(loss_of: Callable[[nn.Module], Callable[[Views], torch.Tensor]], *, is_unit: bool = True) -> Trained:
    """Embeddings after training. loss_of: a function of the encoder that gives a function of two views; parts of it
    that learn are found as its `parameters`, what comes after a step as its `after`.
    """
    torch.manual_seed(0)
    data, encoder = samples(), network()
    loss = loss_of(encoder)
    learned = [*encoder.parameters(), *getattr(loss, "parameters", [])]
    optimizer = torch.optim.Adam(learned, lr=5e-3)
    for _ in range(STEPS):
        rows = data[torch.randperm(len(data))[:BATCH]]
        views = rows + 0.2 * torch.randn_like(rows), rows + 0.2 * torch.randn_like(rows)
        optimizer.zero_grad()
        loss(views).backward()
        optimizer.step()
        getattr(loss, "after", lambda: None)()
    with torch.no_grad():
        rows = encoder.eval()(data)
    return Trained(normalize(rows, dim=1) if is_unit else rows, float(embedding_spread(rows)))


def agreement(encoder: nn.Module) -> Callable[[Views], torch.Tensor]:
    """Only what all families share: two views of a sample shall agree."""
    return lambda views: 2 - 2 * nn.functional.cosine_similarity(encoder(views[0]), encoder(views[1])).mean()


def contrastive(encoder: nn.Module) -> Callable[[Views], torch.Tensor]:
    """SimCLR."""
    return lambda views: nt_xent(encoder(views[0]), encoder(views[1]), temperature=0.2)


def distillation(encoder: nn.Module) -> Callable[[Views], torch.Tensor]:
    """BYOL."""
    predictor, teacher = network(2), copy.deepcopy(encoder)

    def loss(views: Views) -> torch.Tensor:
        with torch.no_grad():
            targets = [teacher(view) for view in views]
        predictions = [predictor(encoder(view)) for view in views]
        return regression(predictions[0], targets[1]) + regression(predictions[1], targets[0])

    def after() -> None:
        with torch.no_grad():
            for slow, quick in zip(teacher.parameters(), encoder.parameters(), strict=True):
                slow.lerp_(quick, 0.01)

    loss.parameters, loss.after = list(predictor.parameters()), after  # type: ignore[attr-defined]
    return loss


def clustering(is_balanced: bool) -> Callable[[nn.Module], Callable[[Views], torch.Tensor]]:
    """SwAV, whose codes are balanced over the batch, or each sample's own softmax."""

    def loss_of(encoder: nn.Module) -> Callable[[Views], torch.Tensor]:
        prototypes = nn.Parameter(normalize(torch.randn(GROUPS, 2), dim=1))

        def loss(views: Views) -> torch.Tensor:
            scores = [normalize(encoder(view), dim=1) @ normalize(prototypes, dim=1).T for view in views]
            codes = [
                sinkhorn(score.detach(), 0.05, 3) if is_balanced else (score.detach() / 0.05).softmax(dim=1)
                for score in scores
            ]
            return swapped_prediction(scores, codes, temperature=0.1)

        loss.parameters = [prototypes]  # type: ignore[attr-defined]
        return loss

    return loss_of


def redundancy(encoder: nn.Module) -> Callable[[Views], torch.Tensor]:
    """VICReg."""
    return lambda views: vicreg(encoder(views[0]), encoder(views[1]), 25.0, 25.0, 1.0)


def invariance(encoder: nn.Module) -> Callable[[Views], torch.Tensor]:
    """VICReg's first term alone."""
    return lambda views: 25 * mse_loss(encoder(views[0]), encoder(views[1]))


def untrained(encoder: nn.Module) -> Callable[[Views], torch.Tensor]:
    """A loss that changes nothing."""
    return lambda views: 0 * encoder(views[0]).sum()


def panel(left: float, title: str, trained: Trained) -> list[str]:
    """One set of embeddings: dots of the six groups in a square."""
    scale = 62 / max(1.0, float(trained.rows.abs().max()) / 1.2)
    x, y = left + 100, 128.0
    parts = [svg.text(x, 30, title, "middle bold"), svg.ring(x, y, scale)]
    for number, (first, second) in enumerate(trained.rows.tolist()):
        parts.append(svg.dot(x + scale * first, y - scale * second, svg.HUES[number // PER_GROUP]))
    return [*parts, svg.text(x, 226, f"spread {trained.spread:.2f}", "middle soft")]


FAMILIES = {
    "contrastive": ("without negatives", agreement, "with negatives (SimCLR)", contrastive, True),
    "distillation": ("without teacher, predictor", agreement, "with both (BYOL)", distillation, True),
    "clustering": ("codes not balanced", clustering(False), "balanced codes (SwAV)", clustering(True), True),
    "redundancy": ("agreement alone", invariance, "variance and covariance (VICReg)", redundancy, False),
}


def main() -> None:
    """Write the four figures."""
    for family, (without, loss_without, published, loss, is_unit) in FAMILIES.items():
        runs = {
            "untrained": train(untrained, is_unit=is_unit),
            without: train(loss_without, is_unit=is_unit),
            published: train(loss, is_unit=is_unit),
        }
        parts = [part for number, run in enumerate(runs.items()) for part in panel(240 * number + 10, *run)]
        words = "; ".join(f"{name}: spread {run.spread:.2f}" for name, run in runs.items())
        svg.save(f"family_{family}", 720, 244, f"Embeddings of six groups of samples. {words}", parts)


if __name__ == "__main__":
    main()
