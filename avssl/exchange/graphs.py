"""Export of encoders as graphs that run without this package: torch.export and ONNX. Each graph is checked.

A graph maps a batch of model-ready views of one modality, as avssl.transforms.view_maker.ViewMaker makes them
(normalized pixels, or the normalized spectrogram), to the encoder's feature (B, F) and the unit embedding (B, D). The
batch size is free, the other sizes are fixed by the run. The file itself describes how its input is made
(`graph_facts`).
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from avssl.embedding.embedder import Embedder
from avssl.embedding.loading import EMBEDDING_MODULES
from avssl.losses.base import Loss
from avssl.transforms.spectrogram import STD_FLOOR

MAX_DIFFERENCE = 1e-4  # of an output, relative to its largest absolute value
EXAMPLE_BATCH = 2
CHECKED_BATCHES = (1, 2, 5)
OUTPUTS = ("feature", "embedding")
FACTS_NAME = "avssl.json"  # of the extra file in torch_export; in onnx the metadata key is "avssl"
KINDS = {"torch_export": ".pt2", "onnx": ".onnx"}

Runner = Callable[[torch.Tensor], Sequence[torch.Tensor]]


class EmbeddingGraph(nn.Module):
    """Encoder and embedding of one modality: (B, ...) -> feature (B, F), unit embedding (B, D), float32."""

    def __init__(self, loss: Loss, modality: str) -> None:
        super().__init__()
        self.loss, self.modality = loss, modality

    def forward(self, view: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """View (B, ...) -> (feature, embedding)."""
        feature = self.loss.encoders[self.modality](view)
        return feature.float(), self.loss.embedding(self.modality, feature)


def export_graph(run: str | Path, kind: str, modality: str, out: str | Path) -> dict[str, float]:
    """Write the graph of one modality; return {"feature", "embedding": largest relative difference to eager}.

    kind: torch_export (.pt2) or onnx (.onnx). The written file is read again and run on random input of several batch
    sizes. If a difference exceeds MAX_DIFFERENCE, the file is removed and ValueError raised.
    """
    if kind not in KINDS:
        raise ValueError(f"--to is {kind}; allowed: {', '.join(KINDS)}")
    out = Path(out)
    if out.suffix != KINDS[kind]:
        raise ValueError(f"--out is {out}; a file of {kind} ends with {KINDS[kind]}")
    embedder = Embedder.from_run(run)
    if modality not in embedder.modalities:
        raise ValueError(f"{run} has no {modality} encoder; it has {', '.join(embedder.modalities)}")
    graph = EmbeddingGraph(_only(embedder.loss, modality), modality).eval()
    facts = graph_facts(embedder, modality)
    shape = facts["input_shape"][1:]
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(EXAMPLE_BATCH, *shape, generator=generator)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.stem}.tmp{out.suffix}")
    try:
        write = {"torch_export": _write_torch_export, "onnx": _write_onnx}[kind]
        with warnings.catch_warnings():
            # PyTorch's exporters warn about deprecations and shapes traced as constants; the check below decides.
            warnings.simplefilter("ignore")
            run_file = write(graph, example, temporary, json.dumps(facts))
        batches = [torch.randn(size, *shape, generator=generator) for size in CHECKED_BATCHES]
        differences = largest_differences(graph, run_file, batches)
        largest = max(differences.values())
        if not largest <= MAX_DIFFERENCE:
            raise ValueError(
                f"the {kind} graph of {modality} differs from eager by {largest:.2e}, more than {MAX_DIFFERENCE:.0e}; "
                "no file was kept"
            )
        temporary.rename(out)
    finally:
        temporary.unlink(missing_ok=True)
    return differences


@torch.no_grad()
def largest_differences(graph: nn.Module, run_file: Runner, batches: Sequence[torch.Tensor]) -> dict[str, float]:
    """{"feature", "embedding": max |eager - file| / max |eager|} over the batches; infinite for NaN or other shapes."""
    largest = dict.fromkeys(OUTPUTS, 0.0)
    for batch in batches:
        for name, eager, output in zip(OUTPUTS, graph(batch), run_file(batch), strict=True):
            difference = float("inf")
            if output.shape == eager.shape and output.isfinite().all():
                scale = eager.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
                difference = float((eager - output).abs().max() / scale)
            largest[name] = max(largest[name], difference)
    return largest


def graph_facts(embedder: Embedder, modality: str) -> dict[str, Any]:
    """Plain values that a user of the graph needs: shapes, how the input is made, hash of the weights."""
    views = embedder.config.views
    facts: dict[str, Any] = {"modality": modality, "weights": embedder.weights_hash, "outputs": list(OUTPUTS)}
    if modality == "audio":
        audio = views.audio
        if audio.transform == "processor":
            raise ValueError(
                "this run's audio encoder makes its input of the waveform by its library's processor, which is no "
                "graph; export another modality, or the model with its own library"
            )
        normalize = embedder.views.normalize_audio
        return facts | {
            "input_shape": [-1, 1, audio.num_frames, embedder.views.spectrogram.num_bins],
            "axes": "batch, channel, frames, bins",
            "seconds": audio.seconds,
            "rate_hz": audio.rate_hz,
            "transform": audio.transform,
            "window_samples": audio.window_samples,
            "hop_samples": audio.hop_samples,
            "bins_averaged": audio.bins_averaged if audio.transform == "log_spectrogram" else None,
            "normalization": f"(decibels - mean) / (std + {STD_FLOOR}), by bin",
            "mean": normalize.mean.tolist(),
            "std": normalize.std.tolist(),
        }
    config = views.video if modality == "video" else views.image
    size = config.size_px
    pixels = {"range": [0, 1], "mean": list(config.mean), "std": list(config.std)}
    if modality == "video":
        frames = views.video.num_frames
        shape, axes = [-1, 3, frames, size, size], "batch, RGB, frames, height, width"
        return facts | {"input_shape": shape, "axes": axes, "fps": views.video.fps, "pixels": pixels}
    return facts | {"input_shape": [-1, 3, size, size], "axes": "batch, RGB, height, width", "pixels": pixels}


def _only(loss: Loss, modality: str) -> Loss:
    """The loss reduced to the modules that the embedding of one modality depends on (no banks, teachers, ...)."""
    unneeded = [name for name, _ in loss.named_children() if name not in EMBEDDING_MODULES]
    unneeded += [name for name, _ in loss.named_buffers(recurse=False)]
    unneeded += [name for name, _ in loss.named_parameters(recurse=False)]
    for name in unneeded:
        delattr(loss, name)
    for group in EMBEDDING_MODULES:
        modules = cast("nn.ModuleDict", getattr(loss, group))
        for name in [name for name in modules if name != modality]:
            del modules[name]
    return loss.requires_grad_(False)


def _write_torch_export(graph: nn.Module, example: torch.Tensor, path: Path, facts: str) -> Runner:
    batch = torch.export.Dim("batch")
    program = torch.export.export(graph, (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, str(path), extra_files={FACTS_NAME: facts})
    return cast("Runner", torch.export.load(str(path)).module())


class _GlobalMaximum(nn.Module):
    """Global maximum pooling, as AdaptiveMaxPool2d(1) and AdaptiveMaxPool3d(1): (B, C, ...) -> (B, C, 1, ...)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.amax(dim=list(range(2, x.ndim)), keepdim=True)


def _with_plain_maxima(graph: nn.Module) -> nn.Module:
    """The graph with _GlobalMaximum for adaptive pooling, which the ONNX exporter of PyTorch 2.11 does not support."""
    for module in list(graph.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveMaxPool2d | nn.AdaptiveMaxPool3d) and child.output_size == 1:
                setattr(module, name, _GlobalMaximum())
    return graph


def _write_onnx(graph: nn.Module, example: torch.Tensor, path: Path, facts: str) -> Runner:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed; ONNX needs the extra: pip install 'avssl[onnx]'") from error
    torch.onnx.export(
        _with_plain_maxima(copy.deepcopy(graph)),
        (example,),
        str(path),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
        input_names=["view"],
        output_names=list(OUTPUTS),
    )
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {"avssl": facts})
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run_file(view: torch.Tensor) -> list[torch.Tensor]:
        return [torch.from_numpy(np.asarray(value)) for value in session.run(None, {"view": view.numpy()})]

    return run_file
