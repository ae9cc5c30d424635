"""A GPU that is pretended: tensors with shapes and a device but without numbers, for finding mixtures of devices.

PyTorch's FakeTensorMode refuses what a GPU would refuse: an operation on tensors of two devices. It has no numbers for
random generators, so these are checked here: one of the CPU cannot draw on a GPU. Backward needs a driver even so;
PyTorch's device "meta", which has no numbers either, does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from avssl.ops import kernels

CUDA = torch.device("cuda")


class Generator(torch.Generator):
    """A generator that says on which device it was made; a GPU's exists only where there is one."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        made: Generator = super().__new__(cls, "cpu")
        made.pretended = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.pretended


class Drawing(TorchFunctionMode):
    """Refuses a generator of another device than that of what is drawn."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        generator = (kwargs or {}).get("generator")
        both = isinstance(generator, Generator) and isinstance(result, torch.Tensor)
        if both and generator.device.type != result.device.type:
            raise RuntimeError(f"a generator on {generator.device} cannot draw on {result.device}")
        return result


@contextmanager
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """A block in which tensors of the device "cuda" can be made and computed with; no tensor in it has numbers."""
    with pretended_generators(monkeypatch), FakeTensorMode(allow_non_fake_inputs=True) as mode, Drawing():
        yield mode


@contextmanager
def pretended_generators(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A block with generators of any device, and without the trials of a GPU's kernels, which need numbers."""
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "fused_is_right", lambda kind, device: False)
        patch.setattr(kernels, "products_are_right", lambda dtype, device, dim: True)
        patch.setattr(torch, "Generator", Generator)
        yield


def move(mode: FakeTensorMode, network: nn.Module) -> None:
    """Move a network to the pretended GPU in place, as `network.to("cuda")`; tensors that are shared stay shared."""
    known: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in known:
            made = mode.from_tensor(tensor.detach()).to(CUDA)
            is_weight = isinstance(tensor, nn.Parameter)
            known[id(tensor)] = nn.Parameter(made, requires_grad=tensor.requires_grad) if is_weight else made
        return known[id(tensor)]

    for module in network.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in list(held.items()):
                if tensor is not None:
                    held[name] = fake(tensor)  # type: ignore[assignment]
