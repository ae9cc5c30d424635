"""Banks whose rows are split over the ranks: one file per rank in a checkpoint, whole banks in the export.

Such rows are not in state_dict, which is the same on all ranks. `resume` refuses another number of processes with an
error that says so, so a rank finds its own rows; `init_from` takes an export with any number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from avssl.distributed import rank
from avssl.files.tensors import write_tensors
from avssl.ops.sharded_memory import ShardedMemoryBank

FILE_NAME = "rows_of_rank_{:05d}.safetensors"


def sharded_banks(module: nn.Module) -> dict[str, ShardedMemoryBank]:
    """{name: bank}, sorted by name; the names are those of the rows in a state_dict of replicated banks."""
    banks = {
        f"{name}.rows".removeprefix("module."): bank
        for name, bank in module.named_modules()
        if isinstance(bank, ShardedMemoryBank)
    }
    return dict(sorted(banks.items()))


def save_rows(models: Sequence[nn.Module], weights: object, folder: str) -> None:  # noqa: ARG001
    """Write this rank's rows; a hook of Accelerate's save_state, which calls it on every rank."""
    rows = {name: bank.rows for model in models for name, bank in sharded_banks(model).items()}
    if rows:
        write_tensors(rows, Path(folder) / FILE_NAME.format(rank()), {})


def load_rows(models: Sequence[nn.Module], folder: str) -> None:
    """Read this rank's rows; a hook of Accelerate's load_state. FileNotFoundError if they were not saved."""
    banks = {name: bank for model in models for name, bank in sharded_banks(model).items()}
    if not banks:
        return
    path = Path(folder) / FILE_NAME.format(rank())
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the checkpoint holds no rows of sharded banks for this process")
    rows = load_file(str(path))
    for name, bank in banks.items():
        bank.rows.copy_(rows[name])


def whole_banks(run: Path, loss: nn.Module) -> dict[str, torch.Tensor]:
    """{"loss.<name>": rows (N, D)} from the newest checkpoint of the run; {} if no bank is sharded."""
    banks = sharded_banks(loss)
    if not banks:
        return {}
    newest = max(run.glob("step_*"), key=lambda path: int(path.name[5:]))
    rows_of_ranks = [load_file(str(path)) for path in sorted(newest.glob(FILE_NAME.replace("{:05d}", "*")))]
    return {
        f"loss.{name}": torch.cat([rows[name] for rows in rows_of_ranks])[: bank.num_samples]
        for name, bank in banks.items()
    }


def take_rows(module: nn.Module, state: Mapping[str, torch.Tensor], prefix: str) -> list[str]:
    """Copy this rank's rows from the whole banks (N, D) in `state`, whose names begin with `prefix`; return these
    names without it."""
    taken = []
    for name, bank in sharded_banks(module).items():
        rows = state.get(prefix + name)
        if rows is not None and rows.shape == (bank.num_samples, bank.rows.shape[1]):
            bank.rows[: bank.last - bank.first] = rows[bank.first : bank.last].to(bank.rows)
            taken.append(name)
    return taken
