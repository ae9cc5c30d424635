"""Export of an encoder's weights under torchvision's names, for torchvision's own network of the same name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from avssl.checkpoint.weights import read_weights
from avssl.config import load_run
from avssl.files.tensors import write_tensors
from avssl.files.whole import whole_path

SUFFIXES = (".safetensors", ".pth")


def torchvision_state(run: str | Path, modality: str) -> tuple[str, dict[str, torch.Tensor], list[str]]:
    """(torchvision's name of the network, its state without the head, names of the head's tensors).

    Raises ValueError with the reason if torchvision has no network that takes these tensors.
    """
    from torchvision import models

    cfg = load_run(run)
    prefix = f"loss.encoders.{modality}."
    encoder = {k.removeprefix(prefix): v for k, v in read_weights(run).items() if k.startswith(prefix)}
    if not encoder:
        raise ValueError(f"{run} has no {modality} encoder")
    name = str(cfg.encoders[modality]["name"])
    if name not in models.list_models():
        raise ValueError(
            f"encoder {name} of {run} has no counterpart in torchvision, whose networks differ from it; "
            "export it with --to torch_export or onnx, or the whole run as a folder (without --to)"
        )
    state = {key.removeprefix("net."): value for key, value in encoder.items()}
    head = _head_of_torchvision(name, state, options=cfg.encoders[modality])
    return name, state, head


def export_torchvision(run: str | Path, modality: str, out: str | Path) -> tuple[str, list[str]]:
    """Write the state to `out` (.safetensors or .pth); return torchvision's name and the omitted head tensors."""
    out = Path(out)
    if out.suffix not in SUFFIXES:
        raise ValueError(f"--out is {out}; its name must end with {' or '.join(SUFFIXES)}")
    name, state, head = torchvision_state(run, modality)
    with whole_path(out) as temporary:
        if out.suffix == ".pth":
            torch.save(state, temporary)
        else:
            write_tensors(state, temporary, {"format": "pt"})
    return name, head


def _head_of_torchvision(name: str, state: Mapping[str, torch.Tensor], options: Mapping[str, object]) -> list[str]:
    """Names of torchvision's tensors that the state lacks; ValueError unless they are the head and all shapes match."""
    from torchvision import models

    with torch.device("meta"):
        expected = models.get_model(name, weights=None).state_dict()
    unknown = [key for key in state if key not in expected]
    shapes = [key for key in state if key in expected and expected[key].shape != state[key].shape]
    head = [key for key in expected if key not in state]
    body = [key for key in head if not key.startswith(("fc.", "classifier.", "head.", "heads."))]
    if unknown or shapes or body:
        key = [*shapes, *unknown, *body][0]
        shown = {k: v for k, v in options.items() if k not in ("name", "weights")}
        raise ValueError(
            f"this {name} with options {shown} is not torchvision's: {len(shapes)} tensors have another shape, "
            f"{len(unknown)} are unknown to it, {len(body)} are missing; the first is {key}. Only the network with "
            "torchvision's own width and stem loads there"
        )
    return head
