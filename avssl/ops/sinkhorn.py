"""Balanced soft assignments by Sinkhorn-Knopp (Cuturi 2013, arXiv 1306.0895), as SwAV uses them.

Q = exp(scores / epsilon) is scaled so that every prototype gets the same mass and every sample has mass 1: the
prototypes' marginals, then the samples', in turn. The samples' come last, so rows sum to 1 exactly and prototypes'
masses approach B / K.
"""

from __future__ import annotations

import torch

# From here on codes of cosines keep all that counts without logarithms: in these they differ by 2 / epsilon = 40, by
# twice as much after an iteration, and float32 goes down to -87.
LEAST_LINEAR_EPSILON = 0.05


@torch.no_grad()
def sinkhorn(scores: torch.Tensor, epsilon: float, iterations: int) -> torch.Tensor:
    """Soft codes of a batch, without gradient.

    Args:
        scores: (B, K) of the samples of all ranks against the prototypes; any float.
        epsilon: > 0; smaller gives harder codes.
        iterations: >= 1; each scales the prototypes' marginals and then the samples'.

    Returns:
        (B, K) float32, rows sum to 1; finite for every finite score. The first iteration is on logarithms. So are the
        others for a small epsilon, where codes that underflow could grow again; else scores further apart than cosines
        lose the smallest ones.
    """
    if epsilon <= 0 or iterations < 1:
        raise ValueError(f"sinkhorn: epsilon is {epsilon} and iterations {iterations}; they must be > 0 and >= 1")
    # The constants 1/K and 1/B of the marginals cancel: each scaling is undone up to a factor by the next one.
    log_codes = (scores.float() / epsilon).log_softmax(dim=0)
    if epsilon < LEAST_LINEAR_EPSILON:
        for _ in range(iterations - 1):
            log_codes = log_codes.log_softmax(dim=1).log_softmax(dim=0)
        return log_codes.softmax(dim=1)
    codes = log_codes.softmax(dim=1)
    for _ in range(iterations - 1):
        codes /= codes.sum(dim=0)
        codes /= codes.sum(dim=1, keepdim=True)
    return codes
