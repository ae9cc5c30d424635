"""Collectives; only this file imports torch.distributed. With one process each returns its input unchanged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist

T = TypeVar("T")
STORE_SECONDS = 30.0  # for the store of a run to be found


def is_active() -> bool:
    """Whether there is a process group of more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Rank of this process; 0 without others."""
    return dist.get_rank() if is_active() else 0


def world_size() -> int:
    """Number of processes; 1 without others."""
    return dist.get_world_size() if is_active() else 1


def seed_of_rank(seed: int, step: int) -> int:
    """A seed in [0, 2^32) that is a pure function of (seed, step, rank of this process)."""
    return int(np.random.SeedSequence((seed & 0xFFFF_FFFF, step, rank())).generate_state(1)[0])


def local_processes() -> int:
    """Number of processes of the run on this machine, as torchrun says; 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


class RunStore:
    """Small texts that every process of a run writes and reads without waiting for another one.

    They lie with the launcher of the first host, or with the first process. The connection is one of its own.
    RuntimeError if the store cannot be reached, or a key is not there.

    name: of a part of the store.
    """

    def __init__(self, name: str) -> None:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        found_within = timedelta(seconds=STORE_SECONDS)
        store = dist.TCPStore(address, port, is_master=False, timeout=found_within)  # type: ignore[attr-defined]
        self._store = dist.PrefixStore(name, store)  # type: ignore[attr-defined]

    def set(self, key: str, text: str) -> None:
        """Write a text."""
        self._store.set(key, text)

    def first(self, key: str, text: str) -> str:
        """Write a text unless there is one that is not empty; returns the one that is there then."""
        return self._store.compare_set(key, "", text).decode()

    def get(self, keys: list[str]) -> list[str]:
        """The texts of the keys."""
        return [text.decode() for text in self._store.multi_get(keys)]


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate (B, ...) tensors of equal shape from all ranks in rank order -> (W * B, ...). No gradient."""
    tensor = tensor.detach()
    if not is_active():
        return tensor
    tensors = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(tensors, tensor.contiguous())
    return torch.cat(tensors)


def gather_uneven(tensor: torch.Tensor) -> torch.Tensor:
    """As `gather`, but the length of the first axis may differ between ranks. No gradient."""
    if not is_active():
        return tensor.detach()
    length = torch.tensor([tensor.shape[0]], device=tensor.device)
    lengths = gather(length).tolist()
    padding = tensor.new_zeros((max(lengths) - tensor.shape[0], *tensor.shape[1:]))
    padded = gather(torch.cat([tensor, padding]))
    rows = padded.split(max(lengths))
    return torch.cat([padded_rows[:count] for padded_rows, count in zip(rows, lengths, strict=True)])


class _GatherWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        ctx.rows = tensor.shape[0]
        return gather(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        # The sum over ranks makes the gradient of a loss on the gathered batch exact under DDP's mean; all_gather alone
        # would drop the gradients of the other ranks.
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def gather_with_grad(tensor: torch.Tensor) -> torch.Tensor:
    """As `gather`, and its backward sums the ranks' gradients and returns this rank's slice.

    A loss computed identically on every rank from gathered tensors then has, after DDP's mean over ranks, exactly the
    gradient of one process on the whole batch.
    """
    if not is_active():
        return tensor
    return cast("torch.Tensor", _GatherWithGrad.apply(tensor))


def all_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of equal-shaped tensors over ranks, on every rank. No gradient; the input is not changed."""
    result = tensor.detach().clone()
    if is_active():
        dist.all_reduce(result)
    return result


def all_mean(tensor: torch.Tensor) -> torch.Tensor:
    """Mean over ranks, on every rank. No gradient."""
    return all_sum(tensor) / world_size()


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether every number of some tensors of one device is finite on every rank; the same answer everywhere."""
    broken = torch.stack([~tensor.detach().isfinite().all() for tensor in tensors]).any()
    return not bool(all_sum(broken.int()))


def exchange_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Of (W * B, ...) on every rank, the sum over ranks of this rank's B rows: (B, ...). No gradient.

    The rows are exchanged, then summed in rank order: a reduction would sum in an order that the backend chooses.
    """
    if not is_active():
        return tensor.detach()
    received = torch.empty_like(tensor)
    dist.all_to_all_single(received, tensor.detach().contiguous())
    return received.view(world_size(), -1, *tensor.shape[1:]).sum(dim=0)


def broadcast(tensor: torch.Tensor, source: int) -> torch.Tensor:
    """The tensor of rank `source` on every rank, of equal shape everywhere. No gradient; the input is not changed."""
    if not is_active() or rank() == source:
        result = tensor.detach()
    else:
        result = torch.empty_like(tensor)
    if is_active():
        dist.broadcast(result, src=source)
    return result


def broadcast_object(value: Any) -> Any:
    """Rank 0's value on every rank, for small plain data such as a file listing."""
    if not is_active():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def from_first_rank(work: Callable[[], T], limit_seconds: float) -> T:
    """The result of a long work that only the first rank does, on every rank; plain data. Others wait up to the limit.

    The wait is one of its own: the limit of other collectives stays as it is. An exception of the work is raised on
    every rank.
    """
    if not is_active():
        return work()
    group: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=limit_seconds))
    outcome: list[Any] = [None]
    if rank() == 0:
        try:
            outcome = [work()]
        except Exception as error:
            outcome = [error]
    dist.broadcast_object_list(outcome, src=0, group=group)
    dist.destroy_process_group(group)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return cast("T", outcome[0])


def gather_objects(value: Any) -> list[Any]:
    """The value of every rank in rank order, on every rank, for small plain data such as keys and labels."""
    if not is_active():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_state(module: torch.nn.Module) -> None:
    """Give every rank the state of the first one, in place: running statistics of batch norm differ between ranks."""
    if is_active():
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


def broadcast_running_statistics(module: torch.nn.Module) -> None:
    """Give every rank the running statistics of batch norm of the first one, in place.

    In training each rank has its own. A pass over samples with all ranks in eval mode then uses one network, the same
    as a resumed run does, because a checkpoint holds the statistics of the first rank.
    """
    if not is_active():
        return
    for layer in module.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            for buffer in layer.buffers(recurse=False):
                dist.broadcast(buffer, src=0)


def barrier() -> None:
    """Wait until every process has called this."""
    if is_active():
        dist.barrier()
