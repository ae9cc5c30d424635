"""Clips and views: a sample of a shard -> raw views (in a worker) -> model-ready tensors (on the device).

A worker decodes once and does only what makes the data smaller: which seconds, which crop. Colour, flips, normalisation
and spectrograms are batched tensor operations on the device. What is random about a sample is a function of (seed,
epoch, index, view name), its seconds of (seed, epoch, index, clip number), and of nothing else: not of the worker, the
rank or the batch.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import default_collate

from avssl.data.copies import to_device
from avssl.data.read_views import read_background, read_clip
from avssl.data.shared_memory import Piece, padded
from avssl.shards.shard_set import ShardSet
from avssl.transforms.audio import (
    Sound,
    crop_spectrogram,
    draw_sound,
    mix_power,
    scale_volume,
    shift_time,
)
from avssl.transforms.color import apply_looks
from avssl.transforms.config import (
    AudioViewConfig,
    ImageViewConfig,
    VideoViewConfig,
    ViewsConfig,
    picture_augment,
    picture_size_px,
)
from avssl.transforms.draw import PictureAugment, centre_crop_box, draw_picture_parameters
from avssl.transforms.geometry import crop_resize, normalize, to_float, to_model_layout
from avssl.transforms.jigsaw import GRID, NUM_TILES, centred_puzzle, cut_patches, cut_tiles, puzzle_size
from avssl.transforms.spectrogram import BinNormalize, LogMel, LogSpectrogram
from avssl.types import Clip, View

BLUR_KERNEL_SHARE = 0.1  # of the side, as in SimCLR: 23 px of 224


@dataclass
class RawView:
    """One view of a batch as a worker sends it; of a single sample the same without the batch axis.

    media: uint8 (B, T, 3, S, S), of a puzzle (B, 9, T, 3, P, P), a picture with T = 1; in memory as it was decoded,
    channels last; or float32 (B, 1, samples).
    The other fields are what was drawn, None where nothing is.
    """

    modality: str
    media: torch.Tensor
    looks: torch.Tensor | None = None  # float32 (B, fields of Look), of a puzzle (B, 9, fields)
    sounds: torch.Tensor | None = None  # float32 (B, fields of Sound)
    background: torch.Tensor | None = None  # float32 (B, 1, samples), to be mixed in
    tiles: torch.Tensor | None = None  # int64 (B, 9), the order of a spectrogram's tiles

    def tensors(self) -> dict[str, Any]:
        """The fields that are there."""
        named = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}

    def pin_memory(self) -> RawView:
        """The same in pinned memory."""
        return replace(self, **{name: value.pin_memory() for name, value in self.tensors().items()})


def raw_views(
    shards: ShardSet, index: int, views: Sequence[View], config: ViewsConfig, seed: int, epoch: int
) -> dict[str, RawView]:
    """All views of one sample. epoch -1 gives the deterministic clip and crop, whatever the views' augment and clip.

    Views of one clip number share one pair of windows, and only what they need of it is decoded; a picture is decoded
    once. Raises MediaError as `read_clip`.
    """
    sample = shards.read(index)
    by_clip: dict[int, list[View]] = {}
    for view in views:
        by_clip.setdefault(view.clip if epoch >= 0 and view.modality != "image" else 0, []).append(view)
    result = {}
    for number, group in by_clip.items():
        # Clip 0 is drawn as if there were no other.
        of_clip = (seed, epoch, index) if number == 0 else (seed, epoch, index, number)
        generator = None if epoch < 0 else np.random.default_rng(of_clip)
        clip = read_clip(sample, config, {view.modality for view in group}, generator)
        for view in group:
            generator = None
            if epoch >= 0 and view.augment != "test":
                generator = np.random.default_rng((seed, epoch, index, zlib.crc32(view.name.encode())))
            result[view.name] = _raw_view(clip, view, config, shards, generator)
    return result


def _raw_view(
    clip: Clip, view: View, config: ViewsConfig, shards: ShardSet, generator: np.random.Generator | None
) -> RawView:
    """One view of a decoded clip, which has the view's modality."""
    if clip.audio is not None and view.modality == "audio":
        raw = raw_audio(clip.audio, config.audio, generator)
        if generator is not None and config.audio.augment.mixup_ratio > 0:
            raw.background = read_background(shards, clip.index, config, generator)
        if view.augment == "jigsaw":
            order = np.arange(NUM_TILES) if generator is None else generator.permutation(NUM_TILES)
            raw.tiles = torch.from_numpy(order)
        return raw
    augment = picture_augment(view, config)
    if clip.image is not None and view.modality == "image":
        return raw_picture("image", clip.image[None], config.image, augment, generator)
    if clip.video is not None and view.modality == "video":
        return raw_picture("video", clip.video, config.video, augment, generator)
    raise ValueError(f"view {view.name!r} of modality {view.modality!r} asked for, but the clip has none: {clip.key}")


def raw_picture(
    modality: str,
    clip: torch.Tensor,
    config: ImageViewConfig | VideoViewConfig,
    augment: PictureAugment | None,
    generator: np.random.Generator | None,
) -> RawView:
    """Crop, resize and, for a puzzle, cut one clip, uint8 (T, 3, H, W). A generator draws where and how.

    Without a generator, or a set, it is the central crop; the set still says which size and whether it is a puzzle.
    """
    height, width = clip.shape[2:]
    size_px = picture_size_px(augment, config)
    cut = puzzle_size(size_px) if augment is not None and augment.puzzle else None
    looks = None
    if augment is None or generator is None:
        box, puzzle = centre_crop_box(height, width), None if cut is None else centred_puzzle(cut)
    else:
        box, drawn, puzzle = draw_picture_parameters(
            generator, height, width, augment, size_px=config.size_px, puzzle_size=cut
        )
        looks = torch.tensor(drawn if puzzle is not None else drawn[0])
    if cut is None or puzzle is None:
        return RawView(modality, crop_resize(clip, box, size_px), looks)
    return RawView(modality, cut_patches(crop_resize(clip, box, GRID * cut.cell_px), puzzle, cut), looks)


def raw_audio(audio: torch.Tensor, config: AudioViewConfig, generator: np.random.Generator | None) -> RawView:
    """One waveform (1, samples) with what a generator draws for it."""
    if generator is None:
        return RawView("audio", audio)
    return RawView("audio", audio, sounds=torch.tensor(draw_sound(generator, config.augment, config.rate_hz)))


def stack_raw_views(rows: Sequence[Mapping[str, RawView]], piece: Piece | None = None) -> dict[str, RawView]:
    """Batch of raw views from single samples, in a piece of shared memory if one is given.

    Pictures whose memory has channels last keep it so.
    """
    result = {}
    for name, first in rows[0].items():
        stacked: dict[str, Any] = {
            field: _stacked([getattr(row[name], field) for row in rows], piece) for field in first.tensors()
        }
        result[name] = replace(first, **stacked)
    return result


def stacked_bytes(rows: Sequence[Mapping[str, RawView]]) -> int:
    """What a batch of them takes of a piece of shared memory."""
    views = rows[0].values()
    return sum(padded(len(rows) * tensor.nbytes) for view in views for tensor in view.tensors().values())


def _stacked(parts: list[torch.Tensor], piece: Piece | None) -> torch.Tensor:
    has_channels_last = parts[0].ndim >= 4 and parts[0].shape[-3] == 3 and parts[0].stride(-3) == 1
    if has_channels_last:
        parts = [part.movedim(-3, -1) for part in parts]
    if piece is None:
        batch: torch.Tensor = default_collate(parts)
    else:
        batch = torch.stack(parts, out=piece.empty((len(parts), *parts[0].shape), parts[0].dtype))
    return batch.movedim(-1, -3) if has_channels_last else batch


class ViewMaker(nn.Module):
    """Raw views -> model-ready tensors on the device.

    Image (B, 3, S, S), video (B, 3, T, S, S), their puzzles (B, 9, 3, P, P) and (B, 9, 3, T, P, P); audio
    (B, 1, frames, bins), its puzzle (B, 9, 1, frames // 3, bins // 3).

    Its only state are the per-bin statistics of the spectrogram, which belong to the run.
    """

    def __init__(self, config: ViewsConfig, modalities: Sequence[str]) -> None:
        super().__init__()
        self.config = config
        if "audio" in modalities:
            audio = config.audio
            options: dict[str, Any] = {
                "rate_hz": audio.rate_hz,
                "window_samples": audio.window_samples,
                "hop_samples": audio.hop_samples,
                "num_frames": audio.num_frames,
            }
            self.spectrogram: LogSpectrogram | LogMel
            if audio.transform == "log_mel":
                self.spectrogram = LogMel(num_bins=audio.num_mels, **options)
            else:
                self.spectrogram = LogSpectrogram(bins_averaged=audio.bins_averaged, **options)
            self.normalize_audio = BinNormalize(self.spectrogram.num_bins)

    @torch.no_grad()
    def forward(self, raw: Mapping[str, RawView], device: torch.device) -> dict[str, torch.Tensor]:
        """Every view of a batch."""
        make = {"image": self.image, "video": self.video, "audio": self.audio}
        return {name: make[view.modality](view, device) for name, view in raw.items()}

    def image(self, view: RawView, device: torch.device) -> torch.Tensor:
        """uint8 (B, 1, 3, S, S) -> float32 (B, 3, S, S); as `video`."""
        return self._pictures(view, device, self.config.image.size_px).squeeze(-4)

    def video(self, view: RawView, device: torch.device) -> torch.Tensor:
        """uint8 (B, T, 3, S, S) -> float32 (B, 3, T, S, S), with the looks that were drawn, normalised."""
        return to_model_layout(self._pictures(view, device, self.config.video.size_px))

    def _pictures(self, view: RawView, device: torch.device, size_px: int) -> torch.Tensor:
        """Looks and normalisation; the axes stay."""
        media = to_device(view.media, device).contiguous()  # workers leave channels last
        if view.looks is None:
            return normalize(to_float(media))
        clips, looks = media.flatten(0, -5), view.looks.flatten(0, -2)  # patches are clips of their own
        radius_px = int(size_px * BLUR_KERNEL_SHARE / 2)
        return normalize(apply_looks(clips, looks, blur_radius_px=radius_px)).view(media.shape)

    def audio(self, view: RawView, device: torch.device) -> torch.Tensor:
        """float32 (B, 1, samples) -> normalised spectrogram (B, 1, frames, bins), augmented as drawn, cut to tiles."""
        waveform = to_device(view.media, device)
        drawn = None if view.sounds is None else Sound(*view.sounds.unbind(1))
        sound = None if view.sounds is None else Sound(*to_device(view.sounds, device).unbind(1))
        if sound is not None and drawn is not None:
            if drawn.shift_samples.any():
                waveform = shift_time(waveform, sound.shift_samples)
            waveform = scale_volume(waveform, sound.volume)
        decibels = self.spectrogram(waveform)
        if sound is not None and view.background is not None:
            background = to_device(view.background, device)
            decibels = mix_power(decibels, self.spectrogram(background), sound.mixup_share)
        spectrogram = self.normalize_audio(decibels)
        if sound is not None and self.config.audio.augment.crops:
            spectrogram = crop_spectrogram(spectrogram, sound)
        if view.tiles is not None:
            spectrogram = cut_tiles(spectrogram, to_device(view.tiles, device))
        return spectrogram  # type: ignore[no-any-return]
