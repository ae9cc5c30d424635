"""Checkpoints of a run while it trains. Written under a temporary name, synced, then renamed: whole or absent."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from avssl.checkpoint.shards import load_shards, save_shards
from avssl.disk_errors import clear_errors
from avssl.distributed import barrier, broadcast_object, world_size
from avssl.types import Progress
from avssl.whole_files import sync

if TYPE_CHECKING:
    from accelerate import Accelerator

STEP_FOLDER = re.compile(r"step_(\d{6,})")


def checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first. Temporary ones do not match."""
    found = [path for path in run.glob("step_*") if STEP_FOLDER.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name[5:]))


def save(accelerator: Accelerator, run: Path, progress: Progress, facts: Mapping[str, object], keep: int) -> Path:
    """Write run/step_<step>/ from all ranks and drop all but the newest `keep`.

    facts are what must be equal when the run goes on (data set, batch, order); `resume` compares them.
    """
    target = run / f"step_{progress.step:06d}"
    temporary = run / f".{target.name}.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    barrier()
    hook = accelerator.register_save_state_pre_hook(save_shards)
    with clear_errors(target, "written"):
        accelerator.save_state(str(temporary))
    hook.remove()
    barrier()
    if accelerator.is_main_process:
        state = {"progress": progress.state_dict(), "facts": dict(facts), "world_size": world_size()}
        (temporary / "progress.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        for path in temporary.iterdir():
            sync(path)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        sync(run)
        older = [path for path in checkpoints(run) if path != target]
        for old in older[: max(0, len(older) + 1 - max(1, keep))]:  # a negative end would count from the newest
            shutil.rmtree(old)
    barrier()
    return target


def resume(accelerator: Accelerator, run: Path, progress: Progress, facts: Mapping[str, object]) -> Path | None:
    """Load the newest checkpoint of the run into the prepared objects and `progress`; None when there is none.

    Raises ValueError when the run was made with other data, batch size, order or number of processes.
    """
    found = broadcast_object([str(path) for path in checkpoints(run)])
    if not found:
        return None
    newest = Path(found[-1])
    state = json.loads((newest / "progress.json").read_text(encoding="utf-8"))
    given = {**facts, "world_size": world_size()}
    stored = {**state["facts"], "world_size": state["world_size"]}
    changed = [
        f"{name}: {stored.get(name)!r} then, {value!r} now"
        for name, value in given.items()
        if stored.get(name) != value
    ]
    if changed:
        raise ValueError(
            f"{newest} cannot be resumed exactly, for something changed ({'; '.join(changed)}). Put it back, or start "
            f"a new run with init_from={run}"
        )
    hook = accelerator.register_load_state_pre_hook(load_shards)
    accelerator.load_state(str(newest))
    hook.remove()
    progress.load_state_dict(state["progress"])
    return newest
