"""The peer of benchmarks/image_losses.py: lightly's heads and losses, in the environment that image_data.py makes.

    python benchmarks/lightly_images.py train|heads LOSS STEPS key=value ...

train: a plain loop like solo-learn's, with torchvision's transforms in the workers of a DataLoader; prints the images
per second of the last two thirds of 3 STEPS steps. heads: on random features; prints the median CPU seconds of a step.
"""

from __future__ import annotations

import copy
import io
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from avssl import config
from avssl.shards.shard_set import ShardSet
from benchmarks.claims import cpu_seconds
from benchmarks.lightly_run import METHODS

NUM_IMAGES = 2_000


def images_of(shards: str) -> list[bytes]:
    """The first image files of a shard folder, in memory."""
    reader = ShardSet(shards)
    return [reader.read(index).image for index in range(min(NUM_IMAGES, reader.num_samples))]


class TwoViews(Dataset[Any]):
    """Two views of each image, as torchvision makes them."""

    def __init__(self, images: list[bytes], size_px: int) -> None:
        self.images = images
        kernel = max(3, int(0.1 * size_px) // 2 * 2 + 1)
        self.view = transforms.Compose(
            [
                transforms.RandomResizedCrop(size_px, scale=(0.08, 1.0)),
                transforms.RandomApply([transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
                transforms.RandomGrayscale(p=0.2),
                transforms.RandomApply([transforms.GaussianBlur(kernel, sigma=(0.1, 2.0))], p=0.5),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = Image.open(io.BytesIO(self.images[index])).convert("RGB")
        return self.view(image), self.view(image)


def train(name: str, steps: int, cfg: Any) -> float:
    """Images per second of training."""
    device = torch.device("cpu" if cfg.cpu else "cuda")
    loader = DataLoader(
        TwoViews(images_of(cfg.data.shards), cfg.views.image.size_px), batch_size=cfg.data.global_batch_size,
        shuffle=True, drop_last=True, num_workers=cfg.data.num_workers, persistent_workers=cfg.data.num_workers > 0,
        pin_memory=not cfg.cpu,
    )  # fmt: skip
    method = METHODS[name](cfg).to(device).train()
    weights = [weight for weight in method.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=cfg.optim.lr, momentum=0.9, weight_decay=cfg.optim.weight_decay)
    done, began = 0, 0.0
    while True:
        for first, second in loader:
            if done == steps:
                began = time.perf_counter()
            views = {"first": first.to(device, non_blocking=True), "second": second.to(device, non_blocking=True)}
            method.before(done, 3 * steps)
            with torch.autocast(device.type, torch.bfloat16, enabled=cfg.mixed_precision == "bf16"):
                loss = method.value(views)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if done == 3 * steps:
                if not cfg.cpu:
                    torch.cuda.synchronize()
                return 2 * steps * cfg.data.global_batch_size / (time.perf_counter() - began)


def heads(name: str, repeats: int, cfg: Any) -> float:
    """Median CPU seconds of heads, loss and backward on features (B, 512) of two views."""
    method = METHODS[name](cfg)
    encoder = torch.nn.Identity()
    encoder.register_parameter(
        "unused", torch.nn.Parameter(torch.zeros(1))
    )  # lightly's teachers need at least one weight
    method.encoder = encoder
    if hasattr(method, "slow_encoder"):
        method.slow_encoder = copy.deepcopy(encoder)
    generator = torch.Generator().manual_seed(0)
    shape = (cfg.data.global_batch_size, 512)
    views = {key: torch.randn(shape, generator=generator).requires_grad_() for key in ("first", "second")}
    seconds = []
    for number in range(repeats + 2):
        began = cpu_seconds()
        method.before(number, 1000)
        method.value(views).backward()
        seconds.append(cpu_seconds() - began)
    return statistics.median(seconds[2:])


if __name__ == "__main__":
    torch.set_num_threads(1)
    mode, loss_name, count, *rest = sys.argv[1:]
    cfg = config.parse(config.RunConfig, rest)
    torch.manual_seed(0)
    print(train(loss_name, int(count), cfg) if mode == "train" else heads(loss_name, 10, cfg))
