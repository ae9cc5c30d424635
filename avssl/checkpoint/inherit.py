"""Starting a run from another one: state with the same name and shape is taken over, the rest is reported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from avssl.checkpoint.bank_rows import take_rows
from avssl.checkpoint.weights import read_provenance, read_weights

NAMED_TENSORS = 6


def inherit(loss: nn.Module, source: str | Path, fingerprint: str) -> dict[str, list[str]]:
    """Start `loss` from the state of a finished run; returns the report of `load_matching`.

    State with a row per sample (banks, positive sets) is taken over only if the source was trained on the very same
    shards, whose fingerprint this is: rows of other samples would be silently wrong even if the numbers of samples
    agree. ValueError if the encoders do not fit.
    """
    weights = read_weights(source)
    data = read_provenance(source)["data"]
    foreign = {}
    if data["fingerprint"] != fingerprint:
        rows = data["num_samples"]
        learned = {f"loss.{name}" for name, _ in loss.named_parameters()}
        foreign = {
            key: value for key, value in weights.items() if key not in learned and _is_per_sample(key, value, rows)
        }
    refused = [key for key in weights if key.startswith("loss.encoders.") and not _fits(key, weights[key], loss)]
    if refused:
        raise ValueError(
            f"init_from={source}: its encoders are not these: {len(refused)} tensors do not fit, the first is "
            f"{refused[0]} {tuple(weights[refused[0]].shape)}. Use the encoders of {source}/config.yaml"
        )
    usable = {key: value for key, value in weights.items() if key not in foreign}
    report = load_matching(loss, usable, "loss.")
    taken = take_rows(loss, usable, "loss.")
    report["loaded"] += taken
    report["not taken"] = [line for line in report["not taken"] if line.split(" ")[0] not in taken]
    report["not taken"] += [f"{key.removeprefix('loss.')} (rows of other samples)" for key in foreign]
    return report


def _fits(key: str, value: torch.Tensor, loss: nn.Module) -> bool:
    target = loss.state_dict().get(key.removeprefix("loss."))
    return target is not None and target.shape == value.shape


def _is_per_sample(key: str, value: torch.Tensor, num_samples: int) -> bool:
    """Whether one axis is as long as the data set, as in banks (N, D), positive sets (N, k), labels (heads, N)."""
    return num_samples in value.shape and not key.startswith(("loss.encoders.", "loss.projectors.", "views."))


def inherit_views(views: nn.Module, source: str | Path) -> bool:
    """Take over the statistics of a finished run; False, without any change, if its views have another shape."""
    state = {
        key.removeprefix("views."): value for key, value in read_weights(source).items() if key.startswith("views.")
    }
    before = views.state_dict()
    if before.keys() != state.keys() or any(before[key].shape != state[key].shape for key in before):
        return False
    views.load_state_dict(state)
    return True


def load_matching(module: nn.Module, state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, list[str]]:
    """Copy every tensor of `state` under `prefix` that the module has with the same name and shape.

    Returns {"loaded": names, "not in the source": names of the module, "not taken": names of the source, with reasons}.
    """
    target = module.state_dict()
    source = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    loaded = [key for key, value in source.items() if key in target and target[key].shape == value.shape]
    module.load_state_dict({key: source[key] for key in loaded}, strict=False)
    refused = [
        f"{key} (here {tuple(target[key].shape)}, there {tuple(value.shape)})"
        if key in target
        else f"{key} (no such tensor here)"
        for key, value in source.items()
        if key not in loaded
    ]
    return {"loaded": loaded, "not in the source": [key for key in target if key not in source], "not taken": refused}


def describe_matching(report: Mapping[str, list[str]], source: str) -> str:
    """The report of `load_matching` as lines of text, with up to NAMED_TENSORS names of each kind."""
    lines = [f"starting from {source}"]
    for name, keys in report.items():
        listed = ", ".join(keys[:NAMED_TENSORS]) + (" ..." if len(keys) > NAMED_TENSORS else "")
        lines.append(f"  {name}: {len(keys)} tensors" + (f": {listed}" if keys and name != "loaded" else ""))
    return "\n".join(lines)
