"""Checkpoints of a run while it trains. Written under a temporary name, synced, then renamed: whole or absent.

Later damage by a disk, a copy or a user is found before a checkpoint is used: avssl/checkpoint/checksums.py.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file
from torch import nn

from avssl.checkpoint.bank_rows import load_divided_otherwise, load_rows, save_rows
from avssl.checkpoint.checksums import VIEWS_FILE, DamagedCheckpointError, damage, is_unsealed, seal
from avssl.checkpoint.step_folders import checkpoints
from avssl.checkpoint.weights import load_module, save_module
from avssl.distributed import barrier, broadcast_object, rank, world_size
from avssl.files.checked_json import Fields
from avssl.files.disk_errors import clear_errors
from avssl.files.plain_text import say
from avssl.files.whole import sync
from avssl.types import Progress

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

PROGRESS_FILE, MODEL_FILE = "progress.json", "model.safetensors"


def save(
    accelerator: Accelerator,
    run: Path,
    views: nn.Module,
    progress: Progress,
    facts: Mapping[str, object],
    keep: int,
) -> Path:
    """Write run/step_<step>/ from all ranks and drop all but the newest `keep`.

    views: the module with the measured statistics. facts: values that must be equal when the run goes on (data set,
    batch, order); `resume` compares them.
    """
    target = run / f"step_{progress.step:06d}"
    temporary = run / f".{target.name}.tmp"
    if accelerator.is_main_process:
        for leftover in run.glob(".step_*.tmp"):  # of a run that was killed
            shutil.rmtree(leftover)
        temporary.mkdir(parents=True)
    barrier()
    hook = accelerator.register_save_state_pre_hook(save_rows)
    with clear_errors(target, "written"):
        accelerator.save_state(str(temporary))
    hook.remove()
    barrier()
    if accelerator.is_main_process:
        state = {"progress": progress.state_dict(), "facts": dict(facts), "world_size": world_size()}
        with clear_errors(target, "written"):
            save_module(views, temporary / VIEWS_FILE)
            (temporary / PROGRESS_FILE).write_text(json.dumps(state, indent=1), encoding="utf-8")
            seal(temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        sync(run)
        older = [path for path in checkpoints(run) if path != target]
        for old in older[: max(0, len(older) + 1 - max(1, keep))]:  # a negative end would count from the newest
            shutil.rmtree(old)
    barrier()
    return target


def resume(
    accelerator: Accelerator,
    run: Path,
    views: nn.Module,
    progress: Progress,
    facts: Mapping[str, object],
    *,
    strict: bool = False,
) -> Path | None:
    """Load the newest whole checkpoint into the prepared objects, `views` and `progress`; None if there is none.

    The number of processes may be another one (`saved_world_size`): the state is the same on all of them, and rows of
    split banks are divided anew. The random states are then those of no process of before: the caller draws them anew.

    Raises ValueError if the run was made with other data, batch size or order, and DamagedCheckpointError as
    `newest_whole` does.
    """
    newest = newest_whole(run, strict=strict)
    if newest is None:
        return None
    state = Fields.read(newest / PROGRESS_FILE).record
    stored = state["facts"]
    changed = [
        f"{name}: {stored.get(name)!r} then, {value!r} now"
        for name, value in facts.items()
        if stored.get(name) != value
    ]
    if changed:
        lanes = stored.get("num_lanes")
        keep = f" (data.order_lanes={lanes} keeps the order)" if lanes != facts.get("num_lanes", lanes) else ""
        raise ValueError(
            f"{newest} cannot be resumed exactly, for something changed ({'; '.join(changed)}). Put it back{keep}, or "
            f"start a new run with init_from={run}"
        )
    is_divided_alike = state["world_size"] == world_size()
    hook = accelerator.register_load_state_pre_hook(load_rows if is_divided_alike else load_divided_otherwise)
    accelerator.load_state(str(newest))
    hook.remove()
    load_module(views, (run if is_unsealed(newest) else newest) / VIEWS_FILE)
    progress.load_state_dict(state["progress"])
    return newest


def saved_world_size(checkpoint: Path) -> int:
    """The number of processes that wrote a checkpoint."""
    return Fields.read(checkpoint / PROGRESS_FILE).count("world_size", least=1)


def at_step(run: Path, checkpoint: str) -> Path:
    """The checkpoint of a run that a text names: "latest", the newest undamaged one, or the number of a step.

    Nothing is renamed. FileNotFoundError: there is none; DamagedCheckpointError: it is damaged; ValueError: no such
    name.
    """
    paths = checkpoints(run)
    steps = ", ".join(str(int(path.name[5:])) for path in paths) or "none"
    if checkpoint == "latest":
        found = next((path for path in reversed(paths) if not damage(path)), None)
        if found is None:
            raise FileNotFoundError(f"{run} has no whole checkpoint; its checkpoints are of the steps: {steps}")
        return found
    if not checkpoint.isdecimal():
        raise ValueError(f"checkpoint is {checkpoint!r}; it must be latest or the number of a step: {steps}")
    path = next((path for path in paths if int(path.name[5:]) == int(checkpoint)), None)
    if path is None:
        raise FileNotFoundError(f"{run} has no checkpoint of step {int(checkpoint)}; there are: {steps}")
    if fault := damage(path):
        raise DamagedCheckpointError(f"{path} is damaged: {fault}; take another one, or latest")
    return path


def read_step(run: Path, checkpoint: str) -> tuple[dict[str, torch.Tensor], int, int]:
    """(tensors named as in the export of a finished run, the step, the number of samples) of a run's checkpoint.

    Without the rows of sharded banks. Raises as `at_step`.
    """
    path = at_step(run, checkpoint)
    weights = {f"loss.{name}": value for name, value in load_file(str(path / MODEL_FILE)).items()}
    statistics = (run if is_unsealed(path) else path) / VIEWS_FILE
    if statistics.is_file():
        weights |= {f"views.{name}": value for name, value in load_file(str(statistics)).items()}
    state = Fields.read(path / PROGRESS_FILE)
    return weights, int(path.name[5:]), state.section("facts").count("num_samples")


def newest_whole(run: Path, *, strict: bool = False) -> Path | None:
    """The newest undamaged checkpoint; None if the run has no checkpoint at all.

    Newer ones, which are damaged, are named on standard error and renamed to damaged_step_<step>, so that the run takes
    none of them for its newest and does not count them among those that it keeps. The first rank decides for all.
    DamagedCheckpointError on every rank if no whole checkpoint is left, or, with strict, if a newer one is damaged.
    """
    newest, problem = "", ""
    if rank() == 0:
        try:
            newest = str(_newest_whole(run, strict) or "")
        except DamagedCheckpointError as error:
            problem = str(error)
    newest, problem = broadcast_object((newest, problem))
    if problem:
        raise DamagedCheckpointError(problem)
    return Path(newest) if newest else None


def _newest_whole(run: Path, strict: bool) -> Path | None:
    faults: dict[Path, str] = {}
    newest = None
    for path in reversed(checkpoints(run)):
        if not (fault := damage(path)):
            newest = path
            break
        faults[path] = fault
    if not faults:
        return newest
    damaged = "; ".join(f"{path} is damaged: {fault}" for path, fault in faults.items())
    if newest is None:
        raise DamagedCheckpointError(
            f"{damaged}. No whole checkpoint is left; put one back, name another run, or remove these to begin anew"
        )
    if strict:
        raise DamagedCheckpointError(
            f"{damaged}. resume=strict takes no older one; resume=true goes on from {newest}, the newest whole one"
        )
    names = []
    for path in faults:
        aside = path.with_name(f"damaged_{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        names.append(aside.name)
    say(f"warning: {damaged}. Now {', '.join(names)}; going on from {newest}, the newest whole one", sys.stderr)
    return newest
