"""Starting a run from another one: what is taken over, by name and shape, and what is not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from avssl.checkpoint.bank_rows import take_rows
from avssl.checkpoint.weights import read_provenance, read_weights


def inherit(loss: nn.Module, source: str | Path, fingerprint: str) -> dict[str, list[str]]:
    """Start `loss` from a finished run: `load_matching` on its loss state.

    State with a row per sample (banks, positive sets) is taken only when the source was trained on the very same
    shards: rows of other samples would be silently wrong even where the numbers of samples agree.
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
    own = {key: value for key, value in weights.items() if key not in foreign}
    report = load_matching(loss, own, "loss.")
    taken = take_rows(loss, own, "loss.")
    report["loaded"] += taken
    report["not taken"] = [line for line in report["not taken"] if line.split(" ")[0] not in taken]
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
