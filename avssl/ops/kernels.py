"""Checks of fast kernels on small cases, before a run relies on their results.

PyTorch chooses kernels by processor, dtype and shape, and some are wrong: PyTorch 2.14's bfloat16 gradient of a
3 x 1 x 1 convolution over two frames is 1e35 times too large on some CPUs. The reference is float64, for which such
kernels are not used. A setting chosen for the user falls back with a warning; one that the user set raises an error.

Other wrong kernels end the process. So a CPU's kernels are tried in a process of their own, whose program is this
file: it reads descriptions of layers as JSON and writes what is wrong.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional

# (frames, side) of the small cases: one frame, an even number and an odd one.
CASES = ((1, 3), (2, 2), (3, 1))
# Largest relative error of rounding one number to this dtype.
UNIT_ROUNDOFF = {
    torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24, torch.float64: 2.0**-53,
}  # fmt: skip
CONVOLUTIONS = {"Conv1d": functional.conv1d, "Conv2d": functional.conv2d, "Conv3d": functional.conv3d}
# Output channels from which channels last is chosen for a convolution: narrower ones gain nothing from it, and
# PyTorch 2.14's backward of some of them writes beyond its memory.
LEAST_CHANNELS = 16


def sum_roundoff(device: torch.device) -> float:
    """Unit roundoff of float32 sums in products: tensor cores of a GPU may cut off where a CPU rounds."""
    return 2.0**-24 if device.type == "cpu" else 2.0**-22


def allowed_error(dtype: torch.dtype, device: torch.device) -> float:
    """Largest relative error, by norms, of a layer computed in this dtype from numbers that the dtype holds exactly.

    The result is rounded once (u); 8 u leave three bits to kernels that transform first or add parts in that dtype. In
    float32, sums of n terms err by up to sqrt(n) n u of their norm, 2^-12 for the n = 2^8 of most small cases and far
    less in practice; a GPU may use TF32 (u = 2^-11) there.
    """
    if dtype == torch.float32:
        return 8 * 2.0**-11 if device.type == "cuda" else 2.0**-12
    return 8 * UNIT_ROUNDOFF[dtype]


@dataclass(frozen=True)
class Layer:
    """The properties of a convolution or linear layer by which its kernels are chosen, and its name for messages."""

    name: str
    kind: str  # Linear or a key of CONVOLUTIONS
    weight_shape: tuple[int, ...]
    weight_strides: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @classmethod
    def of(cls, module: Any) -> Layer:
        """The description of an nn.Linear or of one of nn's convolutions."""
        kind, weight = type(module).__name__, module.weight
        if kind == "Linear":
            name = f"Linear({module.in_features}, {module.out_features})"
            return cls(name, kind, tuple(weight.shape), weight.stride())
        options = (module.stride, module.padding, module.dilation, module.groups)
        return cls(str(module), kind, tuple(weight.shape), weight.stride(), *options)

    @classmethod
    def read(cls, stored: dict[str, Any]) -> Layer:
        """The layer stored as JSON, in which tuples have become lists."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
        }
        return cls(**fields)

    def apply(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The layer applied to x with this weight and without bias."""
        if self.kind == "Linear":
            return functional.linear(x, weight)
        convolution: Any = CONVOLUTIONS[self.kind]
        result: torch.Tensor = convolution(x, weight, None, self.stride, self.padding, self.dilation, self.groups)
        return result

    def input_shape(self, frames: int, side: int) -> tuple[int, ...]:
        """Shape of a small input of two samples (a matrix for Linear), large enough for the kernel."""
        if self.kind == "Linear":
            return (2 * side, self.weight_shape[1])
        kernel = self.weight_shape[2:]
        sizes = (*[frames] * (self.kind == "Conv3d"), *[side] * (len(kernel) - (self.kind == "Conv3d")))
        needed = [dilation * (width - 1) + 1 for dilation, width in zip(self.dilation, kernel, strict=True)]
        padding = [0] * len(sizes) if isinstance(self.padding, str) else self.padding
        spans = (max(size, need - 2 * pad) for size, need, pad in zip(sizes, needed, padding, strict=True))
        return (2, self.weight_shape[1] * self.groups, *spans)


def layers_of(networks: nn.Module) -> list[Layer]:
    """The distinct convolutions and linear layers of the networks, with the strides of their weights."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return list(dict.fromkeys(Layer.of(module) for module in networks.modules() if type(module) in kinds))


def _errors(layer: Layer, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Relative errors of output, weight gradient and input gradient; infinite or NaN where the results are so."""
    generator = torch.Generator().manual_seed(0)

    def drawn(size: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(dtype).float().to(device)

    x, weight = drawn(shape).requires_grad_(), torch.empty_strided(layer.weight_shape, layer.weight_strides)
    weight = weight.to(device).copy_(drawn(layer.weight_shape)).requires_grad_()
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        output = layer.apply(x, weight)
    gradient = drawn(tuple(output.shape))
    results = [output, *torch.autograd.grad(output, (weight, x), gradient.to(output.dtype))]
    exact_x, exact_weight = (tensor.detach().double().requires_grad_() for tensor in (x, weight))
    exact_output = layer.apply(exact_x, exact_weight)
    exact = [exact_output, *torch.autograd.grad(exact_output, (exact_weight, exact_x), gradient.double())]
    return {
        name: float((result.detach().double() - true.detach()).norm() / true.detach().norm().clamp_min(1e-300))
        for name, result, true in zip(("output", "weight gradient", "input gradient"), results, exact, strict=True)
    }


def first_wrong(layers: Iterable[Layer], dtype: torch.dtype, device: torch.device) -> str | None:
    """A description of the first layer that this process computes wrongly, or None. A kernel may end the process."""
    allowed = allowed_error(dtype, device)
    for layer in layers:
        for frames, side in CASES[:1] if layer.kind == "Linear" else CASES:
            shape = layer.input_shape(frames, side)
            for name, error in _errors(layer, shape, dtype, device).items():
                if not error <= allowed:  # also NaN
                    size = " x ".join(map(str, shape))
                    return (
                        f"{layer.name} on {size}: the {name} is off by {error:.1e} of its norm, {allowed:.1e} allowed"
                    )
    return None


def first_wrong_apart(layers: Iterable[Layer], dtype: torch.dtype, device: torch.device) -> str | None:
    """As `first_wrong`, in a process of its own; its layers are wrong, too, if that process fails."""
    dtype_name = str(dtype).removeprefix("torch.")
    request = {"layers": [asdict(layer) for layer in layers], "dtype": dtype_name, "device": device.type}
    # -P: otherwise modules of the standard library would be searched in this file's folder first.
    process = subprocess.run(
        [sys.executable, "-P", __file__], input=json.dumps(request), capture_output=True, text=True, check=False
    )
    if process.returncode == 0:
        wrong: str | None = json.loads(process.stdout)
        return wrong
    by_signal = process.returncode < 0
    ending = signal.Signals(-process.returncode).name if by_signal else f"status {process.returncode}"
    last_line = (process.stderr.strip().splitlines() or ["no message"])[-1]
    return f"a process that tried its layers in {dtype_name} ended with {ending} ({last_line})"


@cache
def _first_wrong_cached(layers: tuple[Layer, ...], dtype: torch.dtype, device: torch.device) -> str | None:
    """`first_wrong`, on a GPU in this process: its kernels raise errors, and a second context would take its memory."""
    if not layers:
        return None
    return (first_wrong_apart if device.type == "cpu" else first_wrong)(layers, dtype, device)


def wrong_layer(networks: nn.Module, dtype: torch.dtype, device: torch.device) -> str | None:
    """A description of the first layer of these networks that this machine computes wrongly in `dtype`, or None.

    Each distinct convolution and linear layer is run forward and backward on small inputs. Neither weights nor random
    states are changed.
    """
    return _first_wrong_cached(tuple(layers_of(networks)), dtype, device)


def refuse_wrong_kernels(networks: nn.Module, precision: str, device: torch.device) -> None:
    """Raise ValueError if this machine's bf16 or fp16 kernels for these networks are wrong; fp32 is not checked."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    wrong = dtype and wrong_layer(networks, dtype, device)
    if wrong:
        raise ValueError(
            f"mixed_precision={precision}: PyTorch {torch.__version__} computes it wrongly on this machine "
            f"({torch.backends.cpu.get_cpu_capability()}): {wrong}; use mixed_precision=fp32"
        )


def autocast_is_right(networks: nn.Module, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether these networks are computed rightly under autocast; warns if not."""
    return _warned(wrong_layer(networks, dtype, device), f"mixed_precision=auto is fp32: {dtype}")


def wrong_channels_last(networks: nn.Module, dimensions: int, device: torch.device) -> str | None:
    """What is wrong with the networks' `dimensions`-D convolutions with channels last, or None.

    Not tried on a CPU below AVX-512: there PyTorch 2.14's backward of few channels (1 x 1, stride 2, 4 to 8 channels)
    writes beyond its memory, which ends the process or corrupts it, and no comparison can detect this beforehand.
    """
    if not _may_try_channels_last(device):
        return "PyTorch's backward of some writes beyond its memory on CPUs below AVX-512"
    order = {2: torch.channels_last, 3: torch.channels_last_3d}[dimensions]
    layers = tuple(
        replace(layer, weight_strides=torch.empty(layer.weight_shape, memory_format=order, device="meta").stride())
        for layer in _convolutions(networks, dimensions)
    )
    return _first_wrong_cached(layers, torch.float32, device)


def offers_channels_last(networks: nn.Module, dimensions: int, device: torch.device) -> bool:
    """Whether channels last may be chosen by default: the device can, no convolution is narrow, and all are right."""
    is_narrow = any(layer.weight_shape[0] < LEAST_CHANNELS for layer in _convolutions(networks, dimensions))
    if is_narrow or not _may_try_channels_last(device):
        return False
    return _warned(
        wrong_channels_last(networks, dimensions, device),
        f"channels stay first: {dimensions}-D convolutions, channels last",
    )


def _may_try_channels_last(device: torch.device) -> bool:
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability() == "AVX512"


def _convolutions(networks: nn.Module, dimensions: int) -> list[Layer]:
    return [layer for layer in layers_of(networks) if layer.kind == f"Conv{dimensions}d"]


@cache
def fused_is_right(kind: Any, device: torch.device) -> bool:
    """Whether two steps of the fused optimizer equal those of the plain one; tried once per process.

    A step is a dozen operations that round by 2^-24 each: 2^-20 of the weights, which are at most 1, is allowed.
    """
    weights = []
    for fused in (False, True):
        weight = nn.Parameter(torch.linspace(-1, 1, 37, device=device))
        momentum: dict[str, Any] = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.01, "fused": fused, **momentum}
        optimizer = kind([weight], **options)
        for _ in range(2):
            weight.grad = weight.detach().cos()
            optimizer.step()
        weights.append(weight.detach())
    error = float((weights[1] - weights[0]).abs().max())
    wrong = None if error <= 2.0**-20 else f"two steps are off by {error:.1e}"
    return _warned(wrong, f"the plain optimizer is used: fused {kind.__name__}")


@cache
def products_are_right(dtype: torch.dtype, device: torch.device, dim: int) -> bool:
    """Whether products of rows of this length err no more than rounding to `dtype` and sums in float32 allow.

    Tried once per process, for a small product and for one as large as those of a search, whose kernels may differ.
    """
    generator = torch.Generator().manual_seed(0)
    excess = 0.0
    for shape in ((33, 47), (256, 512)):
        left, right = (torch.randn(rows, dim, generator=generator).to(device, dtype) for rows in shape)
        exact, sizes = left.double() @ right.double().T, left.double().abs() @ right.double().abs().T
        slack = UNIT_ROUNDOFF[dtype] * exact.abs() + 2 * dim * sum_roundoff(device) * sizes
        excess = max(excess, float((((left @ right.T).double() - exact).abs() / slack).nan_to_num(torch.inf).max()))
    wrong = None if excess <= 1 else f"off by {excess:.1e} times what its rounding allows"
    return _warned(wrong, f"a slower search is used: products in {dtype}")


def _warned(wrong: str | None, consequence: str) -> bool:
    """True if nothing is wrong; otherwise False, with a warning that tells the consequence."""
    if wrong:
        warnings.warn(f"{consequence} on {torch.__version__} of PyTorch and this machine: {wrong}", stacklevel=3)
    return not wrong


def main() -> None:
    """Read layers from standard input and write what is wrong with them, or null."""
    request = json.load(sys.stdin)
    layers = [Layer.read(stored) for stored in request["layers"]]
    wrong = first_wrong(layers, getattr(torch, request["dtype"]), torch.device(request["device"]))
    sys.stdout.write(json.dumps(wrong))


if __name__ == "__main__":
    main()
