"""Encoders by name. `create_encoder("avid_video", depth=10, width=8)` is the whole interface."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from avssl.models.audio import AVIDAudio
from avssl.models.heads import mlp
from avssl.models.image import ResNet, VisionTransformer
from avssl.models.video import AVIDVideo, TorchvisionVideo
from avssl.types import Modality

__all__ = ["ENCODERS", "create_encoder", "encoder_names", "mlp"]


class EncoderEntry(NamedTuple):
    """A row of the table: what the encoder reads, how it is built, which options it takes."""

    modality: Modality
    build: Callable[..., nn.Module]
    options: tuple[str, ...]


_RESNET_OPTIONS = ("width", "small_stem", "zero_init_residual", "weights")
_VIT_OPTIONS = ("num_heads", "depth", "image_size_px", "patch_size_px", "fixed_positions", "freeze_patches")

ENCODERS: dict[str, EncoderEntry] = {
    "resnet10": EncoderEntry("image", partial(ResNet, "resnet10"), _RESNET_OPTIONS),
    "resnet18": EncoderEntry("image", partial(ResNet, "resnet18"), _RESNET_OPTIONS),
    "resnet34": EncoderEntry("image", partial(ResNet, "resnet34"), _RESNET_OPTIONS),
    "resnet50": EncoderEntry("image", partial(ResNet, "resnet50"), _RESNET_OPTIONS),
    "vit_tiny": EncoderEntry("image", partial(VisionTransformer, "vit_tiny", width=192, num_heads=3), _VIT_OPTIONS),
    "vit_small": EncoderEntry("image", partial(VisionTransformer, "vit_small", width=384, num_heads=6), _VIT_OPTIONS),
    "avid_video": EncoderEntry("video", AVIDVideo, ("depth", "width", "stem_pool")),
    "avid_audio": EncoderEntry("audio", AVIDAudio, ("width", "first_stride")),
    "r2plus1d_18": EncoderEntry("video", partial(TorchvisionVideo, "r2plus1d_18"), ("weights",)),
    "r3d_18": EncoderEntry("video", partial(TorchvisionVideo, "r3d_18"), ("weights",)),
    "mc3_18": EncoderEntry("video", partial(TorchvisionVideo, "mc3_18"), ("weights",)),
    "s3d": EncoderEntry("video", partial(TorchvisionVideo, "s3d"), ("weights",)),
    "mvit_v2_s": EncoderEntry("video", partial(TorchvisionVideo, "mvit_v2_s"), ("weights",)),
}


def encoder_names(modality: Modality | None = None) -> tuple[str, ...]:
    """Names that `create_encoder` knows, all or those of one modality."""
    return tuple(name for name, entry in ENCODERS.items() if modality in (None, entry.modality))


def create_encoder(name: str, **options: Any) -> nn.Module:
    """Build an untrained encoder: a module with `.dim`, `.modality` and forward to (B, dim).

    Args:
        name: a key of ENCODERS. Image encoders take (B, 3, H, W), video encoders
            (B, 3, T, H, W), audio encoders (B, 1, frames, bins).
        options: keyword options of that encoder, e.g. depth=10, width=8 for avid_video.

    Raises ValueError for an unknown name, option or value, saying what is allowed.
    """
    if name not in ENCODERS:
        raise ValueError(f"unknown encoder {name!r}{_suggest(name, ENCODERS)}; known: {', '.join(ENCODERS)}")
    entry = ENCODERS[name]
    for option in options:
        if option not in entry.options:
            raise ValueError(
                f"encoder {name!r} has no option {option!r}{_suggest(option, entry.options)}; "
                f"its options: {', '.join(entry.options)}"
            )
    return entry.build(**options)


def _suggest(given: str, allowed: Iterable[str]) -> str:
    """' (did you mean ...?)' for a near miss, else the empty string."""
    near = difflib.get_close_matches(given, list(allowed), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
