"""Checkpoints of a run, and its final export. Written under a temporary name, synced, then renamed: whole or absent.

run/
  config.yaml            resolved configuration
  metrics.jsonl          one line a logging step
  step_000123/           Accelerate's state (loss with all its state, optimiser, scaler, RNG per rank) and progress.json
  encoders.safetensors   on finish: encoders, heads, statistics of the views, banks and constants; no optimiser
  provenance.json        versions, data, steps
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from avssl.distributed import barrier, broadcast_object, world_size
from avssl.types import Progress

if TYPE_CHECKING:
    from accelerate import Accelerator

STEP_FOLDER = re.compile(r"step_(\d{6,})")
WEIGHTS_FILE = "encoders.safetensors"
PROVENANCE_FILE = "provenance.json"


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
    accelerator.save_state(str(temporary))
    barrier()
    if accelerator.is_main_process:
        state = {"progress": progress.state_dict(), "facts": dict(facts), "world_size": world_size()}
        (temporary / "progress.json").write_text(json.dumps(state, indent=1))
        for path in temporary.iterdir():
            _sync(path)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        _sync(run)
        older = [path for path in checkpoints(run) if path != target]
        for old in older[: len(older) + 1 - max(1, keep)]:
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
    state = json.loads((newest / "progress.json").read_text())
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
    accelerator.load_state(str(newest))
    progress.load_state_dict(state["progress"])
    return newest


def export(run: Path, modules: Mapping[str, nn.Module], provenance: Mapping[str, Any]) -> Path:
    """Write encoders.safetensors: the state of each module under `<name>.`; call on the main process only."""
    state = {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    path = run / WEIGHTS_FILE
    facts = run / f"{PROVENANCE_FILE}.tmp"
    facts.write_text(json.dumps(dict(provenance), indent=1))
    facts.rename(run / PROVENANCE_FILE)
    temporary = path.with_suffix(".tmp")
    save_file(state, str(temporary), metadata={"format": "avssl-run", "version": "1"})
    _sync(temporary)
    temporary.rename(path)  # last: a run is finished when this is there
    return path


def save_module(module: nn.Module, path: Path) -> None:
    """State of one module as safetensors, atomically."""
    temporary = path.with_suffix(".tmp")
    save_file({key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}, str(temporary))
    temporary.rename(path)


def load_module(module: nn.Module, path: Path) -> None:
    """Load what `save_module` wrote, strictly."""
    module.load_state_dict(load_file(str(path)))


def read_weights(run: str | Path) -> dict[str, torch.Tensor]:
    """The exported tensors of a finished run; FileNotFoundError says what to do when there are none."""
    path = Path(run) / WEIGHTS_FILE
    if not path.is_file():
        if not Path(run).is_dir():
            raise FileNotFoundError(f"{run}: no such run folder")
        raise FileNotFoundError(
            f"{path} is missing: {run} has not finished; resume it with recipes/pretrain.py run={run}"
        )
    try:
        return load_file(str(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); write it again by resuming the run") from error


def inherit(loss: nn.Module, source: str | Path, fingerprint: str) -> dict[str, list[str]]:
    """Start `loss` from a finished run: `load_matching` on its loss state.

    State with a row per sample (banks, positive sets) is taken only when the source was trained on the very same
    shards: rows of other samples would be silently wrong even where the numbers of samples agree.
    """
    weights = read_weights(source)
    data = json.loads((Path(source) / PROVENANCE_FILE).read_text())["data"]
    foreign = {}
    if data["fingerprint"] != fingerprint:
        rows = data["num_samples"]
        learnt = {f"loss.{name}" for name, _ in loss.named_parameters()}
        foreign = {
            key: value for key, value in weights.items() if key not in learnt and _is_per_sample(key, value, rows)
        }
    refused = [key for key in weights if key.startswith("loss.encoders.") and not _fits(key, weights[key], loss)]
    if refused:
        raise ValueError(
            f"init_from={source}: its encoders are not these: {len(refused)} tensors do not fit, the first is "
            f"{refused[0]} {tuple(weights[refused[0]].shape)}. Use the encoders of {source}/config.yaml"
        )
    report = load_matching(loss, {key: value for key, value in weights.items() if key not in foreign}, "loss.")
    report["not taken"] += [f"{key.removeprefix('loss.')} (rows of other samples)" for key in foreign]
    return report


def _fits(key: str, value: torch.Tensor, loss: nn.Module) -> bool:
    own = loss.state_dict().get(key.removeprefix("loss."))
    return own is not None and own.shape == value.shape


def _is_per_sample(key: str, value: torch.Tensor, num_samples: int) -> bool:
    """A buffer with an axis as long as the data set: banks (N, D), positive sets (N, k), labels (heads, N)."""
    return num_samples in value.shape and not key.startswith(("loss.encoders.", "loss.projectors.", "views."))


def inherit_views(views: nn.Module, source: str | Path) -> bool:
    """Take over the statistics of a finished run; False, and nothing taken, when its views are of another shape."""
    state = {
        key.removeprefix("views."): value for key, value in read_weights(source).items() if key.startswith("views.")
    }
    own = views.state_dict()
    if own.keys() != state.keys() or any(own[key].shape != state[key].shape for key in own):
        return False
    views.load_state_dict(state)
    return True


def load_matching(module: nn.Module, state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, list[str]]:
    """Copy every tensor of `state` under `prefix` whose name and shape the module has.

    Returns {"loaded": names, "not in the source": names of the module, "not taken": names of the source with why}.
    """
    own = module.state_dict()
    given = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    loaded = [key for key, value in given.items() if key in own and own[key].shape == value.shape]
    module.load_state_dict({key: given[key] for key in loaded}, strict=False)
    refused = [
        f"{key} (here {tuple(own[key].shape)}, there {tuple(value.shape)})"
        if key in own
        else f"{key} (no such tensor here)"
        for key, value in given.items()
        if key not in loaded
    ]
    return {"loaded": loaded, "not in the source": [key for key in own if key not in given], "not taken": refused}


def describe_matching(report: Mapping[str, list[str]], source: str, show: int = 6) -> str:
    """The result of `load_matching` as a few lines."""
    lines = [f"starting from {source}"]
    for name, keys in report.items():
        listed = (
            "" if name == "loaded" or not keys else ": " + ", ".join(keys[:show]) + (" ..." if len(keys) > show else "")
        )
        lines.append(f"  {name}: {len(keys)} tensors{listed}")
    return "\n".join(lines)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
