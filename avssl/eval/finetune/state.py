"""Checkpoints of the training of a classifier: one safetensors file, whole or absent, replaced at every checkpoint.

Order, augmentation and dropout are functions of (seed, step), so weights, the moments of the optimizer and the number
of steps are the whole state.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from avssl.files.tensors import write_tensors
from avssl.files.whole import whole_path
from avssl.plugins import required

TRAINING_FILE = "training.safetensors"  # while it runs
CLASSIFIER_FILE = "classifier.safetensors"  # when it has finished
MAX_NAME_BYTES = 100  # of a fold in the name of a folder, of which file systems take 255
MAX_KEPT_CHARACTERS = 20  # of a fold that has another name there


def training_folder(folder: str | Path, weights_hash: str, fold: str, name: str) -> Path:
    """The folder of a training, below that of the task. fold: "fold LABEL", or ""; name: of the repeat, begins with it.

    The label comes from the data: one that is not plain letters, digits and _ . - is cleaned, and has a part of its
    hash, so that it names no other folder, nor that of another fold.
    """
    label = fold.removeprefix("fold ")
    words = name.removeprefix(fold).replace(",", "").split()
    return Path(folder) / "-".join([weights_hash, *(["fold", _plain_name(label)] if label else []), *words])


def _plain_name(text: str) -> str:
    if re.fullmatch(r"[\w.-]+", text) and text.strip(".") and len(text.encode()) <= MAX_NAME_BYTES:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    cleaned = re.sub(r"[^\w.-]+", "_", text)[:MAX_KEPT_CHARACTERS]
    return f"{cleaned}-{digest[:8]}"


def save_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None, step: int, facts: Mapping[str, Any]
) -> None:
    """Write weights, moments, step and facts (plain values) to `path`. Call it on one process."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    moments = {} if optimizer is None else optimizer.state_dict()["state"]
    for number, values in moments.items():
        tensors |= {f"optimizer.{number}.{name}": v for name, v in values.items() if isinstance(v, torch.Tensor)}
    # Each is copied: safetensors refuses two names of one storage.
    contents = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    with whole_path(path) as temporary:
        write_tensors(contents, temporary, {"step": str(step), "facts": json.dumps(dict(facts))})


def read_step(path: Path, facts: Mapping[str, Any]) -> int:
    """The step of a checkpoint, 0 without a file. ValueError names the facts that differ from those of the file.

    Plugins may be others than then if the user has said so.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return 0
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata()
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to start this training again") from error
    then = json.loads(metadata["facts"])
    now = json.loads(json.dumps(dict(facts)))
    free = {"plugins"} if required.may_differ() else set()
    changed = [name for name in sorted({*then, *now}) if name not in free and then.get(name) != now.get(name)]
    if changed:
        shown = "; ".join(f"{name}: {then.get(name)!r} then, {now.get(name)!r} now" for name in changed)
        raise ValueError(
            f"{path} cannot be resumed, because something changed ({shown}). Put it back, give this evaluation "
            "another name, or delete that file"
        )
    return int(metadata["step"])


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Load what `save_state` wrote into the model and, if given, the optimizer, strictly."""
    from safetensors.torch import load_file

    tensors = load_file(str(path))
    model.load_state_dict(_under(tensors, "model."))
    if optimizer is None:
        return
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in _under(tensors, "optimizer.").items():
        number, key = name.split(".", maxsplit=1)
        moments.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def _under(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
