"""Tiny networks of transformers' real classes with random weights, saved with their processors as models are."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from transformers.utils import logging as transformers_logging

SIDE = 32
TRANSFORMER = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": SIDE,
    "patch_size": 8,
}  # fmt: skip
WINDOWS = {
    "image_size": SIDE, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4,
}  # fmt: skip
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
RESIDUAL = {**STAGES, "embedding_size": 8}
HIERA = {
    "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], "image_size": [SIDE, SIDE],
    "patch_size": [7, 7], "patch_stride": [4, 4], "patch_padding": [3, 3], "masked_unit_size": [8, 8],
    "query_stride": [2, 2], "num_query_pool": 3,
}  # fmt: skip
VJEPA2 = {
    "crop_size": SIDE, "patch_size": 8, "frames_per_clip": 4, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1,
}  # fmt: skip
IMAGE_CONFIGS = {
    "beit": {**TRANSFORMER, "use_mean_pooling": True},
    "bit": {**RESIDUAL, "num_groups": 2},
    "clip_vision_model": {**TRANSFORMER, "projection_dim": 16},
    "convnext": STAGES,
    "convnextv2": STAGES,
    "data2vec-vision": TRANSFORMER,
    "deit": TRANSFORMER,
    "dinov2": TRANSFORMER,
    "dinov2_with_registers": TRANSFORMER,
    "dinov3_convnext": STAGES,
    "dinov3_vit": {**TRANSFORMER, "num_register_tokens": 2},
    "hiera": HIERA,
    "ijepa": TRANSFORMER,
    "pixio": TRANSFORMER,
    "poolformer": STAGES,
    "regnet": {**RESIDUAL, "groups_width": 8},
    "resnet": RESIDUAL,
    "siglip_vision_model": TRANSFORMER,
    "swin": WINDOWS,
    "swinv2": WINDOWS,
    "vit": TRANSFORMER,
    "vit_mae": TRANSFORMER,
    "vit_msn": TRANSFORMER,
}
VIDEO_CONFIGS = {
    "timesformer": {**TRANSFORMER, "num_frames": 4},
    "videomae": {**TRANSFORMER, "num_frames": 4},
    "vivit": {**TRANSFORMER, "num_frames": 4, "tubelet_size": [2, 8, 8]},
    "vjepa2": VJEPA2,
}
SQUARE, SHORT = {"height": SIDE, "width": SIDE}, {"shortest_edge": SIDE + 5}
# {type: (class of its published models' processor, its sizes)}; others have ViT's.
PROCESSORS = {
    "beit": ("BeitImageProcessor", {"size": {"height": 36, "width": 36}, "crop_size": SQUARE, "do_center_crop": True}),
    "clip": ("CLIPImageProcessor", {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE}),
    "clip_vision_model": ("CLIPImageProcessor", {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE}),
    "convnext": ("ConvNextImageProcessor", {"size": {"shortest_edge": SIDE}}),
    "dinov2": ("BitImageProcessor", {"size": SHORT, "crop_size": SQUARE}),
    "dinov3_vit": ("DINOv3ViTImageProcessor", {"size": SQUARE}),
    "siglip": ("SiglipImageProcessor", {"size": SQUARE}),
    "siglip_vision_model": ("SiglipImageProcessor", {"size": SQUARE}),
    "timesformer": ("VideoMAEImageProcessor", {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE}),
    "videomae": ("VideoMAEImageProcessor", {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE}),
    "vivit": ("VivitImageProcessor", {"size": SHORT, "crop_size": SQUARE}),
    "vjepa2": ("VJEPA2VideoProcessor", {"crop_size": SIDE}),
}


def save_network(folder: Path, kind: str, **changes):
    """Save a network of a type with random weights into a folder; it is returned in eval mode."""
    torch.manual_seed(0)
    values = {**IMAGE_CONFIGS, **VIDEO_CONFIGS}[kind] | changes
    config = transformers.CONFIG_MAPPING[kind].from_dict({"model_type": kind, **values})
    network = transformers.MODEL_MAPPING[type(config)](config).eval()
    randomize(network)
    transformers_logging.disable_progress_bar()
    network.save_pretrained(folder)
    return network


def save_public(folder: Path, kind: str, **changes):
    """Save a network and its processor, as a published model; both are returned."""
    name, sizes = PROCESSORS.get(kind, ("ViTImageProcessor", {"size": SQUARE}))
    processor = getattr(transformers, name)(**sizes)
    processor.save_pretrained(folder)
    return save_network(folder, kind, **changes), processor


def save_clip(folder: Path):
    """Save a CLIP network with its text part and its processor of images; the network is returned."""
    torch.manual_seed(0)
    text = {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 99,
    }
    config = transformers.CLIPConfig(vision_config=dict(TRANSFORMER), text_config=text, projection_dim=16)
    network = transformers.CLIPModel(config).eval()
    randomize(network)
    transformers_logging.disable_progress_bar()
    network.save_pretrained(folder)
    transformers.CLIPImageProcessor(**PROCESSORS["clip"][1]).save_pretrained(folder)
    return network


@torch.no_grad()
def randomize(network: torch.nn.Module) -> None:
    """Give every parameter random values: what starts at zero or one would hide that it is not loaded."""
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
