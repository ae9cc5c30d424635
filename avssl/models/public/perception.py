"""PE-AV (Vyas et al. 2025, arXiv 2512.19687) of transformers: encoders of audio and of video with one joint space.

Its embeddings are compared by their cosine here, as all are; the library's own logits scale their dot product.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from avssl.models.public import sound
from avssl.models.public.encoder import Demand, PublicEncoder, Tower, check_options, embeddings_of, layers_of
from avssl.models.public.hub_files import Located
from avssl.models.public.processors import demands_of_processor, preprocess
from avssl.models.public.sound import is_pretrained, license_of, load_net, with_files
from avssl.models.public.transformers_door import config_of, plain_config, processor_of
from avssl.types import Modality

__all__ = [
    "architecture", "build", "demands", "is_pretrained", "license_of", "modalities", "preprocess", "tower",
    "with_files",
]  # fmt: skip
BLOCK = re.compile(r"(?:layers|blocks)\.\d+")  # of frames first, then of their sequence
CLIP_SECONDS, NUM_FRAMES = 10.0, 16  # of a clip, where neither recipe nor processor says it


class PerceptionVideo(PublicEncoder):
    """The video tower of PE-AV, before its head."""

    def __init__(self, net: nn.Module, dim: int) -> None:
        layers = layers_of([name for name, _ in net.named_parameters()], BLOCK)
        super().__init__(net, "video", dim, layer_ids=layers, no_decay=embeddings_of(net))

    def features(self, media: torch.Tensor) -> torch.Tensor:
        """(B, 3, T, H, W) -> (B, dim)."""
        return cast("torch.Tensor", self.net(media.transpose(1, 2).contiguous()).pooler_output)


def modalities(model: Located) -> tuple[Modality, ...]:
    """Those of the model's towers; () for another model."""
    known: dict[str, tuple[Modality, ...]] = {"pe_audio_video": ("audio", "video"), "pe_video": ("video",)}
    return known.get(str(model.config.get("model_type")), ())


def architecture(model: Located) -> dict[str, Any]:
    """Options from which an encoder is built without the files of the model."""
    has_audio = "audio" in modalities(model)
    return sound.architecture(model) if has_audio else {"architecture": plain_config(model.config)}


def demands(model: Located, modality: str, options: Mapping[str, Any], size_px: int | None = None) -> dict[str, Demand]:
    """What the model's processor demands of the views of a modality."""
    if modality == "audio":
        return sound.demands(model, modality, options) | {"seconds": Demand(CLIP_SECONDS, is_fixed=False)}
    if model.folder is None:
        return {}  # of a run, whose config.yaml has them
    found = demands_of_processor(model, modality, None, size_px)
    count = int(getattr(processor_of(model, ("AutoVideoProcessor",)), "num_frames", None) or NUM_FRAMES)
    times = {"num_frames": Demand(count, is_fixed=False), "fps": Demand(count / CLIP_SECONDS, is_fixed=False)}
    return {**times, **found, "size_px": Demand(found["size_px"].value)}


def build(model: Located, modality: Modality, options: Mapping[str, Any]) -> nn.Module:
    """The encoder of a modality. ValueError for an option that it lacks, and for files that do not fit each other."""
    return tower(model, modality, options).encoder


def tower(model: Located, modality: Modality, options: Mapping[str, Any]) -> Tower:
    """The encoder and the projection of a modality. See `build`."""
    check_options(model.name, options, sound.OPTIONS)
    is_both = model.config["model_type"] == "pe_audio_video"
    extractor = sound.extractor_of(model, options) if modality == "audio" else None
    kind = "PeAudioVideoModel" if is_both else "PeVideoModel"
    whole = load_net(kind, model, config_of(model.name, model.config), options)
    if extractor is not None:
        return Tower(sound.perception_audio(whole.audio_model, extractor), whole.audio_model.audio_head)
    video = whole.video_model if is_both else whole
    return Tower(PerceptionVideo(video.video_encoder, video.video_encoder.config.hidden_size), video.video_head)
