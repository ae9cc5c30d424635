"""Augments of your own: an erased square with a drawn place, transforms of torchvision, and noise for audio.

avssl pretrain simclr --plugin own_augment.py "loss.augments=[erased, turned]" data.shards=shards/ run=runs/mine
avssl pretrain avid --plugin own_augment.py views.video.augment.operation=erased \
    views.audio.augment.operation=hiss data.shards=shards/ run=runs/avid
"""

import torch
from torchvision.transforms import v2

from avssl.transforms import register_augment


@register_augment("erased", "image", "video")
def erased(frames, generator):
    """uint8 (T, 3, H, W): a quarter of the area becomes gray, the same in all frames."""
    height, width = frames.shape[2:]
    top, left = (int(generator.integers(side - side // 2 + 1)) for side in (height, width))
    frames[:, :, top : top + height // 2, left : left + width // 2] = 128
    return frames


# torch's global generator is seeded from `generator` for each call, so this is reproducible too.
TURN = v2.Compose([v2.RandomRotation(20), v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()])


@register_augment("turned", "image", "video")
def turned(frames, generator):
    return TURN(frames)


@register_augment("hiss", "audio")
def hiss(waveform, generator):
    """float32 (1, samples): white noise of a drawn loudness is added."""
    return waveform + generator.uniform(0, 0.05) * torch.randn_like(waveform)
