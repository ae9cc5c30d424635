"""Quick kernels are asked on a small case whether they compute what they should, before a run rests on them.

A library chooses kernels by processor, number type and shape, and some are wrong: PyTorch 2.14's bfloat16 gradient of a
3 x 1 x 1 convolution over two frames is 1e35 times too large on some CPUs. The reference is float64, which such
kernels do not serve. What was chosen for the user falls back with a warning; what the user asked for is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional

# (frames, side) of the small cases: one frame, an even number and an odd one.
CASES = ((1, 3), (2, 2), (3, 1))
# Largest relative error that rounding one number to this type makes.
UNIT_ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
CONVOLUTIONS = {nn.Conv1d: functional.conv1d, nn.Conv2d: functional.conv2d, nn.Conv3d: functional.conv3d}


def allowed_error(dtype: torch.dtype, device: torch.device) -> float:
    """Largest relative error, by norms, of a layer computed in this type from numbers that the type holds.

    The result is rounded once (u); 8 u leave three bits to kernels that transform first or add parts in that type. In
    float32, sums of n terms err by up to sqrt(n) n u of their norm, 2^-12 for the n = 2^8 of most small cases and far
    less in practice; a GPU may use TF32 (u = 2^-11) there.
    """
    if dtype == torch.float32:
        return 8 * 2.0**-11 if device.type == "cuda" else 2.0**-12
    return 8 * UNIT_ROUNDOFF[dtype]


def _layers(networks: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Each kind of convolution and linear layer once, with a name for people."""
    seen = set()
    for module in networks.modules():
        if type(module) is nn.Linear:
            name = f"Linear({module.in_features}, {module.out_features})"
        elif type(module) in CONVOLUTIONS:
            name = str(module)
        else:
            continue
        weight: torch.Tensor = module.get_parameter("weight")
        if (name, weight.stride()) not in seen:
            seen.add((name, weight.stride()))
            yield name, module


def _apply(module: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The layer on x with another weight and without bias."""
    if isinstance(module, nn.Linear):
        return functional.linear(x, weight)
    convolution: Any = CONVOLUTIONS[type(module)]  # type: ignore[index]
    options = (getattr(module, name) for name in ("stride", "padding", "dilation", "groups"))
    result: torch.Tensor = convolution(x, weight, None, *options)
    return result


def _shape(module: nn.Module, frames: int, side: int) -> tuple[int, ...]:
    """A small input of two samples, large enough for the kernel."""
    if isinstance(module, nn.Linear):
        return (2 * side, module.in_features)
    layer: Any = module
    sizes = (*[frames] * (type(module) is nn.Conv3d), *[side] * (len(layer.kernel_size) - (type(module) is nn.Conv3d)))
    needed = [dilation * (kernel - 1) + 1 for dilation, kernel in zip(layer.dilation, layer.kernel_size, strict=True)]
    padding = [0] * len(sizes) if isinstance(layer.padding, str) else layer.padding
    spans = (max(size, need - 2 * pad) for size, need, pad in zip(sizes, needed, padding, strict=True))
    return (2, layer.in_channels, *spans)


def _errors(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Relative errors of output, weight gradient and input gradient; infinite or not a number where they are so."""
    stored: torch.Tensor = module.get_parameter("weight")
    generator = torch.Generator().manual_seed(0)

    def drawn(like: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(like, generator=generator).to(dtype).float().to(device)

    x, weight = drawn(shape).requires_grad_(), torch.empty_like(stored, dtype=torch.float32, device=device)
    weight = weight.copy_(drawn(tuple(stored.shape))).requires_grad_()
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        output = _apply(module, x, weight)
    gradient = drawn(tuple(output.shape))
    found = [output, *torch.autograd.grad(output, (weight, x), gradient.to(output.dtype))]
    exact_x, exact_weight = (one.detach().double().requires_grad_() for one in (x, weight))
    exact_output = _apply(module, exact_x, exact_weight)
    exact = [exact_output, *torch.autograd.grad(exact_output, (exact_weight, exact_x), gradient.double())]
    return {
        name: float((one.detach().double() - true.detach()).norm() / true.detach().norm().clamp_min(1e-300))
        for name, one, true in zip(("output", "weight gradient", "input gradient"), found, exact, strict=True)
    }


def wrong_layer(networks: nn.Module, dtype: torch.dtype, device: torch.device) -> str | None:
    """The first kind of layer of these networks that this machine computes wrongly in `dtype`, in words; or None.

    Each kind of convolution and linear layer, with the strides of its weights, is run forward and backward on small
    inputs. Neither weights nor random states are touched.
    """
    for name, module in _layers(networks):
        allowed = allowed_error(dtype, device)
        for frames, side in CASES[:1] if isinstance(module, nn.Linear) else CASES:
            shape = _shape(module, frames, side)
            for what, error in _errors(module, shape, dtype, device).items():
                if not error <= allowed:
                    where = " x ".join(map(str, shape))
                    return f"{name} on {where}: the {what} is off by {error:.1e} of its norm, {allowed:.1e} allowed"
    return None


def refuse_wrong_kernels(networks: nn.Module, precision: str, device: torch.device) -> None:
    """ValueError where this machine's bf16 or fp16 kernels of these networks are wrong; nothing for fp32."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    wrong = dtype and wrong_layer(networks, dtype, device)
    if wrong:
        raise ValueError(
            f"mixed_precision={precision}: PyTorch {torch.__version__} computes it wrongly on this machine "
            f"({torch.backends.cpu.get_cpu_capability()}): {wrong}; use mixed_precision=fp32 (or auto)"
        )


@cache
def autocast_is_right(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a small factorised convolution is right under autocast; asked once a process, before `auto` takes it."""
    block = nn.Sequential(
        nn.Conv3d(16, 16, (1, 3, 3), padding=(0, 1, 1)), nn.Conv3d(16, 16, (3, 1, 1), padding=(1, 0, 0))
    )
    return _warned(wrong_layer(block, dtype, device), f"mixed_precision=auto is fp32: {dtype}")


@cache
def channels_last_is_right(dimensions: int, device: torch.device) -> bool:
    """Whether small convolutions with channels last are right; asked once a process.

    Not tried on a CPU below AVX-512: there PyTorch 2.14's backward of few channels (1 x 1, stride 2, 4 to 8 channels)
    writes beyond its memory, which ends the process or corrupts it, and no comparison can tell beforehand.
    """
    if device.type == "cpu" and torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    kind, order = {2: (nn.Conv2d, torch.channels_last), 3: (nn.Conv3d, torch.channels_last_3d)}[dimensions]
    layers = nn.Sequential(kind(16, 24, 3, stride=2, padding=1), kind(16, 24, 1))
    for parameter in layers.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.empty_like(parameter.data, memory_format=order).copy_(parameter.data)
    return _warned(
        wrong_layer(layers, torch.float32, device), f"channels stay first: {dimensions}-D convolutions, channels last"
    )


@cache
def fused_is_right(kind: Any, device: torch.device) -> bool:
    """Whether two steps of the fused optimiser are those of the plain one; asked once a process.

    A step is a dozen operations that round by 2^-24 each: 2^-20 of the weights, which are at most 1.
    """
    ends = []
    for fused in (False, True):
        weight = nn.Parameter(torch.linspace(-1, 1, 37, device=device))
        momentum: dict[str, Any] = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.01, "fused": fused, **momentum}
        optimizer = kind([weight], **options)
        for _ in range(2):
            weight.grad = weight.detach().cos()
            optimizer.step()
        ends.append(weight.detach())
    error = float((ends[1] - ends[0]).abs().max())
    wrong = None if error <= 2.0**-20 else f"two steps are off by {error:.1e}"
    return _warned(wrong, f"the plain optimiser is used: fused {kind.__name__}")


@cache
def products_are_right(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether matrix products keep to the error of their type, with sums in float32 or better; asked once a process."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(rows, 130, generator=generator).to(device, dtype) for rows in (33, 47))
    exact, sizes = left.double() @ right.double().T, left.double().abs() @ right.double().abs().T
    unit = 2.0**-24 if device.type == "cpu" else 2.0**-22
    slack = UNIT_ROUNDOFF[dtype] * exact.abs() + 2 * 130 * unit * sizes
    excess = float((((left @ right.T).double() - exact).abs() / slack).max())
    wrong = None if excess <= 1 else f"off by {excess:.1e} times what its rounding allows"
    return _warned(wrong, f"a slower search is used: products in {dtype}")


def _warned(wrong: str | None, what: str) -> bool:
    """True where nothing is wrong; else a warning and False."""
    if wrong:
        warnings.warn(f"{what} on {torch.__version__} of PyTorch and this machine: {wrong}", stacklevel=3)
    return not wrong
