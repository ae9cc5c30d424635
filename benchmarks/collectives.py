"""Counts what a loss sends to other processes in a step, in a single process that takes itself for one of several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from avssl import distributed


@dataclass
class PretendedWorld:
    """Replaces torch.distributed: every other process holds what this one holds, and calls are recorded.

    calls: (name, bytes that this process sends), in order.
    """

    num_processes: int
    calls: list[tuple[str, int]] = field(default_factory=list)

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def get_world_size(self) -> int:
        return self.num_processes

    def get_rank(self) -> int:
        return 0

    def all_gather(self, pieces: list[torch.Tensor], tensor: torch.Tensor) -> None:
        self.calls.append(("all_gather", tensor.nbytes))
        for piece in pieces:
            piece.copy_(tensor)

    def all_reduce(self, tensor: torch.Tensor) -> None:
        self.calls.append(("all_reduce", tensor.nbytes))
        tensor.mul_(self.num_processes)


@contextmanager
def pretended_world(num_processes: int) -> Iterator[PretendedWorld]:
    """Within it avssl.distributed talks to a PretendedWorld."""
    world, real = PretendedWorld(num_processes), distributed.dist
    distributed.dist = world  # type: ignore[assignment]
    try:
        yield world
    finally:
        distributed.dist = real
