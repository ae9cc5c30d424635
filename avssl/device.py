"""How the networks run on their device, by the configuration: precision, memory format, compilation."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from avssl.distributed import local_processes, world_size
from avssl.models.create import create_encoder, without_weights
from avssl.ops import kernels

if TYPE_CHECKING:
    from avssl.config import RunConfig

Module = TypeVar("Module", bound=nn.Module)


def usable_device(name: str) -> torch.device:
    """The device of that name. ValueError with the names of the usable ones if PyTorch cannot use it."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # no GPU, none of that number, no such name
        usable = ", ".join(["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))])
        raise ValueError(f"device is {name!r}, which PyTorch cannot use on this machine; there is: {usable}") from error
    return device


def keeps_off_apple_gpu() -> bool:
    """Whether a training stays on the CPU because the only other device is an Apple GPU (MPS).

    It has no float64, in which losses, spectrograms and diagnostics sum, and no test of ours has run on one.
    """
    return torch.backends.mps.is_available() and not torch.cuda.is_available()


def free_memory_bytes(device: torch.device) -> int:
    """Memory that this process may still take: of its GPU, or a share of the machine's (or of the container's)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    status = Path("/proc/meminfo")
    if not status.is_file():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines())
    free = int(lines["MemAvailable"].split()[0]) << 10
    group = Path("/sys/fs/cgroup")  # of a container, on Linux
    limit = group / "memory.max"
    if limit.is_file() and (most := limit.read_text(encoding="ascii").strip()).isdecimal():
        taken = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        free = min(free, int(most) - int(taken["anon"]))
    return free // local_processes()


def use_threads(device: torch.device, count: int) -> None:
    """Let PyTorch compute with so many threads on a CPU; 0 leaves it as it is. ValueError for a negative number.

    All threads wait for the slowest after each operation, which takes longer than a small operation itself where
    workers use the same cores.
    """
    if count < 0:
        raise ValueError(f"num_cpu_threads is {count}; it is a number of threads, or 0 for PyTorch's own choice")
    if count and device.type == "cpu":
        torch.set_num_threads(count)


def settle_precision(cfg: RunConfig, modalities: Iterable[str]) -> None:
    """Replace mixed_precision=auto by what suits this machine, and set TF32 as configured.

    auto is bf16 where a GPU computes it natively and the layers of these modalities' encoders are right on small
    cases, else fp32; a run on the CPU is fp32: some CPUs' bf16 kernels are wrong (avssl.ops.kernels). TF32 keeps 10 of
    a float32's 23 bits of mantissa: "convolutions" concerns the networks alone, "all" the matrix products of heads and
    losses too.
    """
    from accelerate.utils import parse_flag_from_env

    if cfg.mixed_precision == "auto":
        has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        is_right = has_bf16 and not cfg.cpu and not parse_flag_from_env("ACCELERATE_USE_CPU")
        if is_right:
            sections = {modality: without_weights(cfg.encoders[modality]) for modality in modalities}
            encoders = nn.ModuleDict({name: create_encoder(modality=name, **sections[name]) for name in sections})
            is_right = kernels.autocast_is_right(encoders, torch.bfloat16, torch.device("cuda"))
        cfg.mixed_precision = "bf16" if is_right else "fp32"
    # The attribute exists at run time (torch/backends/cudnn), but not in the type hints.
    torch.backends.cudnn.conv.fp32_precision = "ieee" if cfg.tf32 == "none" else "tf32"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "tf32" if cfg.tf32 == "all" else "ieee"


def use_channels_last(networks: nn.Module, setting: bool | None, device: torch.device) -> None:
    """Put the channels of the convolutions' weights last in memory; names, shapes and values stay.

    setting: None for the cases measured to be faster: two-dimensional convolutions on a CPU, unless some are narrow
    (docs/decisions.md); clips of AVID's size are slower with it, and no GPU has been measured. If kernels of the
    machine are wrong (avssl.ops.kernels), None leaves the order as it is, and True raises ValueError.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if setting is None:
        is_chosen = device.type == "cpu" and kernels.offers_channels_last(networks, 2, device)
        formats = {4: torch.channels_last} if is_chosen else {}
    elif not setting:
        return
    for ndim in formats if setting else ():
        wrong = kernels.wrong_channels_last(networks, ndim - 2, device)
        if wrong:
            raise ValueError(
                f"channels_last=true: {ndim - 2}-D convolutions with channels last are wrong on this machine "
                f"({device.type}, {torch.backends.cpu.get_cpu_capability()}): {wrong}; leave it out"
            )
    for parameter in networks.parameters():
        if parameter.ndim in formats:
            # Kernels of 1 x 1 get new memory, too: DDP compares their strides with those of the gradients.
            moved = torch.empty_like(parameter.data, memory_format=formats[parameter.ndim])
            parameter.data = moved.copy_(parameter.data)


def synced_batch_norms(loss: Module, device: torch.device) -> Module:
    """The loss with batch norms that see the rows of all processes. ValueError for several processes on CPUs."""
    synced: Module = nn.SyncBatchNorm.convert_sync_batchnorm(loss)
    if device.type == "cpu" and world_size() > 1 and any(isinstance(one, nn.SyncBatchNorm) for one in synced.modules()):
        raise ValueError(
            "sync_batch_norm=true: PyTorch gathers batch norm on GPUs alone. On CPUs start one process, or add "
            "sync_batch_norm=false: then each process normalizes the rows of its own"
        )
    return synced


def compile_encoders(loss: nn.Module, backend: str = "inductor") -> None:
    """Compile each encoder in place; the names of its weights stay. Losses are not compiled and run in float32."""
    for encoder in loss.get_submodule("encoders").children():
        encoder.compile(backend=backend)
