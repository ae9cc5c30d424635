"""The networks of a finished run, and the hash of the weights that its embeddings depend on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn

from avssl import checkpoint
from avssl.config import RunConfig, load_run
from avssl.losses import registry
from avssl.losses.base import Loss
from avssl.models import create_encoder
from avssl.transforms.spectrogram import UnmeasuredStatistics
from avssl.transforms.view_maker import ViewMaker

EMBEDDING_MODULES = ("encoders", "projectors", "predictors")  # modules of a loss that embeddings depend on
MAX_STATE_ROWS = 2**17  # more than any number of clusters or neighbors that a loss needs the samples for


def load_networks(run: Path, *, untrained: bool = False) -> tuple[RunConfig, Loss, ViewMaker, str]:
    """(configuration, loss with its encoders and heads, view maker, hash of the weights) of a run or exchange folder.

    untrained=True takes random weights from the run's seed; the hash is "untrained" then.
    """
    config = load_run(run)
    weights = checkpoint.read_weights(run)
    loss_class = registry.get(config.loss.name)
    modalities = loss_class.modalities(config.loss)
    torch.manual_seed(config.seed)
    # The file of weights that the run began with is only needed to begin as the run did.
    unneeded = () if untrained else ("weights",)
    options = {m: {k: v for k, v in config.encoders[m].items() if k not in unneeded} for m in modalities}
    encoders = {modality: create_encoder(**options[modality]) for modality in modalities}
    # State with a row per sample is not loaded: millions of rows would only fill the memory.
    num_samples = min(checkpoint.read_provenance(run)["data"]["num_samples"], MAX_STATE_ROWS)
    loss = loss_class(config.loss, encoders, num_samples)
    views = ViewMaker(config.views, modalities)
    modules: list[tuple[nn.Module, str]] = []
    if not untrained:
        modules += [(getattr(loss, name), f"loss.{name}.") for name in EMBEDDING_MODULES]
    if hasattr(views, "normalize_audio") and not any(key.startswith("views.") for key in weights):
        views.normalize_audio = UnmeasuredStatistics(views.spectrogram.num_bins, run)
    else:
        modules.append((views, "views."))
    for module, prefix in modules:
        module.load_state_dict(
            {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        )
    return config, loss, views, "untrained" if untrained else _weights_hash(weights)


def _weights_hash(weights: dict[str, torch.Tensor]) -> str:
    """16 hex digits of the SHA-256 of the names and values of all tensors that embeddings depend on."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        if key.startswith(("views.", *(f"loss.{name}." for name in EMBEDDING_MODULES))):
            digest.update(key.encode() + weights[key].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
