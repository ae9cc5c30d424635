"""How often do the positive sets of cross-modal agreement (AVID+CMA) hold clips of the anchor's own class?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from avssl.ops.nearest import class_numbers


@dataclass(frozen=True)
class PositivePrecision:
    """overall: share in [0, 1] of all positives with their anchor's label; chance: the same for random positives.

    per_class: {class number: share over the anchors of that class}, classes without anchors left out.
    per_anchor: the same share of each anchor, float64 (N,).
    """

    overall: float
    per_class: dict[int, float]
    chance: float
    per_anchor: NDArray[np.float64]


def positive_precision(positives: Any, labels: Any) -> PositivePrecision:
    """Precision of positive sets against labels that training has never seen.

    Args:
        positives: int64 (N, k), row i holds the clips taken as positives of clip i, each in [0, N) and not i itself.
        labels: (N,) integers.

    Raises:
        ValueError: other shapes, an index out of range, or an anchor among its own positives (it would always count
            as right and make any search look better than it is).
    """
    sets = torch.as_tensor(positives).detach().cpu()
    if sets.ndim != 2 or sets.is_floating_point() or 0 in sets.shape:
        raise ValueError(f"positives are {sets.dtype} {tuple(sets.shape)}; expected integers (N, k) with N, k > 0")
    count = len(sets)
    numbers = class_numbers(labels, count).cpu()
    if int(sets.min()) < 0 or int(sets.max()) >= count:
        raise ValueError(f"positives lie in [{int(sets.min())}, {int(sets.max())}]; allowed is [0, {count - 1}]")
    own = (sets == torch.arange(count)[:, None]).any(dim=1)
    if bool(own.any()):
        raise ValueError(
            f"{int(own.sum())} anchors are among their own positives, the first is {int(own.int().argmax())}"
        )
    share = (numbers[sets.long()] == numbers[:, None]).double().mean(dim=1)
    per_class = {int(number): float(share[numbers == number].mean()) for number in torch.unique(numbers)}
    sizes = torch.bincount(numbers).double()
    chance = float((sizes * (sizes - 1)).sum() / (count * (count - 1)))
    return PositivePrecision(float(share.mean()), per_class, chance, share.numpy())
