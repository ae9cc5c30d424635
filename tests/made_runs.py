"""Finished runs without any training: random weights under the names that a run's export has."""

import torch

from avssl import checkpoint, config, losses
from avssl.models import create_encoder
from avssl.transforms.view_maker import ViewMaker

NUM_SAMPLES = 40
SMALL_VIEWS = (
    "views.video.size_px=32",
    "views.video.num_frames=4",
    "views.image.size_px=32",
    "views.audio.seconds=0.5",
    "views.audio.num_frames=40",
)
SMALL_AVID = (
    "loss.num_negatives=8",
    "loss.projector_hidden_dims=[16]",
    "encoders.video.depth=10",
    "encoders.video.width=4",
    "encoders.audio.width=4",
)


def made_run(folder, *changes, seed=0, provenance=()):
    """Write a run folder for `loss.name=...` and other changes. Batch norms get random statistics: they matter."""
    cfg = config.parse(config.RunConfig, [*SMALL_VIEWS, f"run={folder}", "data.shards=/somewhere/shards", *changes])
    torch.manual_seed(seed)
    loss_class = losses.get(cfg.loss.name)
    modalities = loss_class.modalities(cfg.loss)
    encoders = {modality: create_encoder(**cfg.encoders[modality]) for modality in modalities}
    loss = loss_class(cfg.loss, encoders, NUM_SAMPLES)
    for module in loss.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    views = ViewMaker(cfg.views, modalities)
    if "audio" in modalities:
        views.normalize_audio.mean.fill_(-40.0)
        views.normalize_audio.std.fill_(20.0)
    folder.mkdir(parents=True, exist_ok=True)
    config.save(cfg, folder / "config.yaml")
    facts = {
        "versions": {"avssl": "0.1.0"},
        "data": {"shards": "/somewhere/shards", "fingerprint": "abc", "num_samples": NUM_SAMPLES},
        "loss": cfg.loss.name,
        "init_from": "",
        "steps": 7,
        "samples_seen": 56,
        **dict(provenance),
    }
    checkpoint.export(folder, {"loss": loss, "views": views}, facts)
    return folder
