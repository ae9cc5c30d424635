"""The networks of a finished run, and the hash of the weights that its embeddings depend on."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from avssl import checkpoint
from avssl.config import RunConfig, load_run
from avssl.losses import registry
from avssl.losses.base import Loss
from avssl.losses.public_model import PublicModel
from avssl.models import public
from avssl.models.create import create_encoder, without_weights
from avssl.models.public.encoder import Tower
from avssl.transforms.spectrogram import UnmeasuredStatistics
from avssl.transforms.view_maker import ViewMaker

EMBEDDING_MODULES = ("encoders", "projectors", "predictors")  # modules of a loss that embeddings depend on
MAX_STATE_ROWS = 2**17  # more than any number of clusters or neighbors that a loss needs the samples for


def load_networks(
    run: Path, *, untrained: bool = False, checkpoint_name: str = ""
) -> tuple[RunConfig, Loss, ViewMaker, str, int | None]:
    """(configuration, loss with its encoders and heads, view maker, hash of the weights, step of the checkpoint) of a
    run or exchange folder.

    untrained=True takes random weights from the run's seed; the hash is "untrained" then. checkpoint_name: "latest" or
    a step, of a run that need not be finished; "": the finished run, whose step here is None.
    """
    config = load_run(run)
    if config.loss.name == registry.PUBLIC_MODEL:
        return *load_public(config, untrained=untrained), None
    step = None
    if checkpoint_name:
        weights, step, num_samples = checkpoint.read_step(run, checkpoint_name)
    else:
        weights = checkpoint.read_weights(run)
        num_samples = checkpoint.read_provenance(run)["data"]["num_samples"]
    loss_class = registry.get(config.loss.name)
    modalities = loss_class.modalities(config.loss)
    torch.manual_seed(config.seed)
    encoders = {name: create_encoder(modality=name, **_options(config, name, untrained)) for name in modalities}
    # State with a row per sample is not loaded: millions of rows would only fill the memory. A queue holds at most all.
    num_rows = max(min(num_samples, MAX_STATE_ROWS), getattr(config.loss, "queue_size", 0))
    loss = loss_class(config.loss, encoders, num_rows)
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
    return config, loss, views, "untrained" if untrained else hash_of_weights(weights), step


def load_public(config: RunConfig, *, untrained: bool = False) -> tuple[RunConfig, Loss, ViewMaker, str]:
    """As `load_networks`, of the configuration of a public model (embedding/public.py).

    The hash is of the networks here and of the files of weights, which hold its text tower, too.
    """
    towers = _public_towers(config, untrained=untrained)
    loss = PublicModel(config.loss, {name: tower.encoder for name, tower in towers.items()}, 1)
    projections = {name: tower.projection for name, tower in towers.items() if tower.projection is not None}
    loss.projectors = nn.ModuleDict(projections)
    state = {f"loss.{name}": value for name, value in loss.state_dict().items()}
    files = sorted({str(config.encoders[name].get("sha256")) for name in towers})
    weights_hash = hashlib.sha256("".join([hash_of_weights(state), *files]).encode()).hexdigest()[:16]
    return config, loss, ViewMaker(config.views, list(towers)), "untrained" if untrained else weights_hash


def _public_towers(config: RunConfig, *, untrained: bool = False) -> dict[str, Tower]:
    """{modality: encoder and projection}; image and video share one network if their options are equal.

    untrained: random, from the seed.
    """
    torch.manual_seed(config.seed)
    towers: dict[str, Tower] = {}
    for modality in PublicModel.modalities(config.loss):  # a configuration that was read has sections for all
        section = config.encoders[modality]
        if modality == "video" and "image" in towers and config.encoders["image"] == section:
            encoder = copy.copy(towers["image"].encoder)
            encoder.modality = modality  # type: ignore[assignment]
            towers[modality] = towers["image"]._replace(encoder=encoder)
            continue
        options = {**section, "pretrained": False} if untrained else section
        towers[modality] = public.tower(modality=modality, **options)
    return towers


def _options(config: RunConfig, modality: str, untrained: bool) -> dict[str, Any]:
    """Options of an encoder. The weights that a run began with are only needed to begin as it did; not those of public
    models, whose baseline is random.
    """
    section = config.encoders[modality]
    return section if untrained and not public.is_public(str(section.get("name"))) else without_weights(section)


def hash_of_weights(weights: dict[str, torch.Tensor]) -> str:
    """16 hex digits of the SHA-256 of the names and values of all tensors that embeddings depend on."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        if key.startswith(("views.", *(f"loss.{name}." for name in EMBEDDING_MODULES))):
            digest.update(key.encode() + weights[key].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
