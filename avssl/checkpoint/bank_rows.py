"""Banks whose rows are split over the ranks: one file per rank in a checkpoint, whole banks in the export.

Such rows are not in state_dict, which is the same on all ranks. A run that goes on with another number of processes
takes each row from the file that holds it, and so does `init_from` from an export.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model
from torch import nn

from avssl.checkpoint.step_folders import checkpoints
from avssl.distributed import rank
from avssl.files.tensors import write_tensors
from avssl.ops.memory import MemoryBank
from avssl.ops.sharded_memory import ShardedMemoryBank

FILE_NAME = "rows_of_rank_{:05d}.safetensors"
MODEL_FILE, DDP_PREFIX = "model.safetensors", "module."  # of Accelerate's state; of all names of several processes


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


def load_divided_otherwise(models: list[nn.Module], folder: str) -> None:
    """Load the models of a checkpoint that another number of processes wrote; a hook of Accelerate's load_state.

    The list is emptied, which tells Accelerate that they are loaded: it expects the names of this number of processes,
    and banks that are split as here. ValueError names tensors that only one side has.
    """
    path = Path(folder) / MODEL_FILE
    for model in models:
        loss = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        with safe_open(str(path), framework="pt") as file:
            is_prefixed = all(name.startswith(DDP_PREFIX) for name in file.keys())  # noqa: SIM118  (no mapping)
        holder = nn.ModuleDict({DDP_PREFIX.rstrip("."): loss}) if is_prefixed else loss
        one_sided = {
            name.removeprefix(DDP_PREFIX) for names in load_model(holder, path, strict=False) for name in names
        }
        for name, bank in _banks(loss).items():
            if isinstance(bank, ShardedMemoryBank):
                bank.rows[: bank.last - bank.first] = _read_rows(path, name, bank.first, bank.last).to(bank.rows)
            elif name in one_sided:
                bank.rows.copy_(_read_rows(path, name, 0, bank.num_samples))
            one_sided.discard(name)
        if one_sided:
            raise ValueError(f"{path} and this run do not have the same tensors: {', '.join(sorted(one_sided)[:6])}")
    models.clear()


def _banks(module: nn.Module) -> dict[str, MemoryBank | ShardedMemoryBank]:
    """{name of the rows: bank} of all banks, split or not, sorted by name."""
    banks = {n: bank for n, bank in module.named_modules() if isinstance(bank, MemoryBank | ShardedMemoryBank)}
    return {f"{name}.rows": banks[name] for name in sorted(banks)}


def _read_rows(model_file: Path, name: str, first: int, last: int) -> torch.Tensor:
    """Rows first to last - 1 of a bank, (last - first, D), of a checkpoint in which it is split in any way, or whole.

    model_file: the checkpoint's model, where a whole bank is; the files of split ones lie beside it.
    """
    files = sorted(model_file.parent.glob(FILE_NAME.replace("{:05d}", 5 * "[0-9]"))) or [model_file]
    parts, start = [], 0
    for path in files:
        with safe_open(str(path), framework="pt") as file:
            key = name if name in file.keys() else DDP_PREFIX + name  # noqa: SIM118  (no mapping)
            rows = file.get_slice(key)
            size = rows.get_shape()[0]
            low, high = (min(max(row - start, 0), size) for row in (first, last))
            parts.append(rows[low:high] if low < high else torch.zeros(0, rows.get_shape()[1]))
            start += size
    return torch.cat(parts)


def whole_banks(run: Path, loss: nn.Module) -> dict[str, torch.Tensor]:
    """{"loss.<name>": rows (N, D)} from the newest checkpoint of the run; {} if no bank is sharded."""
    banks = sharded_banks(loss)
    if not banks:
        return {}
    newest = checkpoints(run)[-1]
    return {f"loss.{name}": _read_rows(newest / MODEL_FILE, name, 0, bank.num_samples) for name, bank in banks.items()}


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
