"""The clips of a shard folder as a plain map-style Dataset, for a training loop of your own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from avssl.data.read_views import read_clip
from avssl.shards.shard_set import ShardSet
from avssl.transforms.config import ViewsConfig
from avssl.transforms.raw_view import raw_image

MODALITIES = ("video", "audio", "image")


class ShardDataset(Dataset[Any]):
    """One clip of each sample of a shard folder, decoded on access, for any sampler and any number of workers.

    An item is a dict: "index" (int), "key" (str), "label" (str, with label_field) and those of `modalities`:

        "video": uint8 (T, 3, H, W), RGB;
        "audio": float32 (1, samples) in [-1, 1]; the video clip begins and ends within it, or up to
            `views.max_offset_seconds` outside, as drawn in AVID;
        "image": uint8 (3, H, W), RGB.

    Without a transform, frames are cropped at their center and resized to the size in `views`, so that PyTorch's
    default collate function makes batches. With one, frames are passed as decoded (with the short side of the shards),
    for torchvision.transforms.v2 to crop.

    Args:
        shards: a shard folder, its URL, or a ShardSet of them.
        modalities: one or several of video, audio and image. A sample that lacks one of them raises MediaError.
        views: clip lengths, frame rate, sampling rate and sizes; the default is AVID's.
        is_random: clips begin at times that are drawn anew in every epoch; False: they are always the center clips.
        seed: of these draws. The same seed, epoch and index give the same clip in any process.
        label_field: the field of labels whose first name becomes "label"; "label" is "" for samples without one.
        transform: called with each item; its result replaces the item.

    Raises:
        ValueError: an unknown modality, or shards that do not fit the schema.
        FileNotFoundError: the folder holds no shards.

    >>> dataset = ShardDataset(shards, modalities=("video",), label_field="label")
    >>> len(dataset), dataset[0]["video"].shape
    (18, torch.Size([8, 3, 224, 224]))
    """

    def __init__(
        self,
        shards: str | Path | ShardSet,
        modalities: Sequence[str] = ("video", "audio"),
        *,
        views: ViewsConfig | None = None,
        is_random: bool = True,
        seed: int = 0,
        label_field: str = "",
        transform: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        unknown = sorted(set(modalities) - set(MODALITIES))
        if unknown or not modalities:
            raise ValueError(
                f"modalities are {list(modalities)}; allowed are one or several of {', '.join(MODALITIES)}"
            )
        self.shards = shards if isinstance(shards, ShardSet) else ShardSet(str(shards))
        self.modalities = tuple(modalities)
        self.views = views or ViewsConfig()
        self.is_random, self.seed, self.epoch = is_random, seed, 0
        self.label_field, self.transform = label_field, transform

    def set_epoch(self, epoch: int) -> None:
        """Draw the clips of this epoch from now on. Running workers (persistent_workers=True) do not see it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.shards.num_samples

    def __getitem__(self, index: int) -> Any:
        """The item of one sample. Raises MediaError if it cannot be read; it is not replaced by another one."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range: there are {len(self)} samples")
        index %= len(self)
        sample = self.shards.read(index)
        generator = np.random.default_rng((self.seed, self.epoch, index)) if self.is_random else None
        clip = read_clip(sample, self.views, set(self.modalities), generator)
        item: dict[str, Any] = {"index": index, "key": clip.key}
        if self.label_field:
            item["label"] = next(iter(sample.info.labels.get(self.label_field, [])), "")
        if clip.audio is not None:
            item["audio"] = clip.audio
        if clip.video is not None:
            item["video"] = clip.video if self.transform else self._center("video", clip.video)
        if clip.image is not None:
            item["image"] = clip.image if self.transform else self._center("image", clip.image[None])[0]
        return self.transform(item) if self.transform else item

    def _center(self, modality: str, frames: Any) -> Any:
        """The center crop of frames uint8 (T, 3, H, W), resized to (T, 3, size_px, size_px)."""
        config = self.views.video if modality == "video" else self.views.image
        return raw_image(modality, frames, config, None, None).media.contiguous()
