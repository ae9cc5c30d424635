"""Plugin files as a user writes them, and the options of a small run that uses them."""

from __future__ import annotations

import textwrap
from pathlib import Path

LOSS = """
    from dataclasses import dataclass
    from avssl.losses import get, register
    SimCLR = get("simclr")

    @dataclass
    class MineConfig(SimCLR.Config):
        strength: float = 2.0

    @register("mine")
    class Mine(SimCLR):
        Config = MineConfig
"""
AUGMENT = """
    import torch
    from avssl.transforms import register_augment

    @register_augment("dotted", "image")
    def dotted(frames, generator):
        row, column = (int(generator.integers(side)) for side in frames.shape[2:])
        frames[..., row, column] = torch.randint(256, (), dtype=torch.uint8)
        return frames
"""


def written(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


SMALL = [
    "cpu=true", "mixed_precision=fp32", "log_every_steps=1", "data.global_batch_size=4", "views.image.size_px=24",
    "encoders.image={name: resnet10, width: 4}", "optim.warmup_steps=0", "data.order_lanes=2",
]  # fmt: skip
