"""Model-ready tensors on the device, from raw views that a worker made from a sample of a shard.

A worker decodes once and does only what makes the data smaller: choosing the times and the crop. Color, flips,
normalization and spectrograms are batched tensor operations on the device. The random parameters of a view depend only
on (seed, epoch, index, view name), and the times of a clip only on (seed, epoch, index, clip number): not on the
worker, the rank or the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from avssl.transforms.audio import AudioParams, crop_spectrogram, mix_power, scale_volume, shift_time
from avssl.transforms.color_augment import apply_color_params
from avssl.transforms.config import ImageViewConfig, VideoViewConfig, ViewsConfig
from avssl.transforms.frame_tensors import normalize, to_device, to_float, to_model_layout
from avssl.transforms.jigsaw import cut_tiles
from avssl.transforms.raw_view import RawView
from avssl.transforms.spectrogram import BinNormalize, LogMel, LogSpectrogram

BLUR_KERNEL_FRACTION = 0.1  # of the side, as in SimCLR: 23 px of 224


class ViewMaker(nn.Module):
    """Makes model-ready tensors on the device from raw views.

    Images are (B, 3, S, S), videos (B, 3, T, S, S), their jigsaws (B, 9, 3, P, P) and (B, 9, 3, T, P, P); audio is
    (B, 1, frames, bins), its jigsaw (B, 9, 1, frames // 3, bins // 3), with audio.transform=processor the waveform
    (B, 1, samples), NaN after the end of the stream.

    Its only state are the per-bin statistics of the spectrogram, which belong to the run.

    >>> maker = ViewMaker(ViewsConfig(), ["video"])
    >>> raw = RawView("video", torch.zeros(2, 8, 3, 224, 224, dtype=torch.uint8))
    >>> maker({"first": raw}, torch.device("cpu"))["first"].shape
    torch.Size([2, 3, 8, 224, 224])
    """

    def __init__(self, config: ViewsConfig, modalities: Sequence[str]) -> None:
        super().__init__()
        self.config = config
        if "audio" in modalities and config.audio.transform != "processor":
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
        """The model-ready tensors {name: tensor} of all views of a batch."""
        make = {"image": self.image, "video": self.video, "audio": self.audio}
        return {name: make[view.modality](view, device) for name, view in raw.items()}

    def image(self, view: RawView, device: torch.device) -> torch.Tensor:
        """uint8 (B, 1, 3, S, S) -> float32 (B, 3, S, S), changed as in `video`."""
        return self._normalized(view, device, self.config.image).squeeze(-4)

    def video(self, view: RawView, device: torch.device) -> torch.Tensor:
        """uint8 (B, T, 3, S, S) -> float32 (B, 3, T, S, S), normalized after the color operations that were drawn."""
        return to_model_layout(self._normalized(view, device, self.config.video))

    def _normalized(
        self, view: RawView, device: torch.device, config: ImageViewConfig | VideoViewConfig
    ) -> torch.Tensor:
        """Apply color operations and normalization; the order of the axes does not change."""
        media = to_device(view.media, device).contiguous()  # workers leave channels last
        if view.color_params is None:
            return normalize(to_float(media), config.mean, config.std)
        clips, color_params = media.flatten(0, -5), view.color_params.flatten(0, -2)  # each patch counts as a clip
        radius_px = int(config.size_px * BLUR_KERNEL_FRACTION / 2)
        frames = apply_color_params(clips, color_params, blur_radius_px=radius_px)
        return normalize(frames, config.mean, config.std).view(media.shape)

    def audio(self, view: RawView, device: torch.device) -> torch.Tensor:
        """float32 (B, 1, samples) -> normalized spectrogram (B, 1, frames, bins), augmented as drawn; or its tiles.

        With transform=processor the waveform, augmented as drawn.
        """
        waveform = to_device(view.media, device)
        params: AudioParams[torch.Tensor] | None = None
        if view.audio_params is not None:
            params = AudioParams(*to_device(view.audio_params, device).unbind(1))
            if AudioParams(*view.audio_params.unbind(1)).shift_samples.any():  # on the CPU: no wait for the device
                waveform = shift_time(waveform, params.shift_samples)
            waveform = scale_volume(waveform, params.volume)
        if self.config.audio.transform == "processor":
            return waveform
        decibels = self.spectrogram(waveform)
        if params is not None and view.background is not None:
            background = to_device(view.background, device)
            decibels = mix_power(decibels, self.spectrogram(background), params.mixup_ratio)
        spectrogram = self.normalize_audio(decibels)
        if params is not None and self.config.audio.augment.crops:
            spectrogram = crop_spectrogram(spectrogram, params)
        if view.tiles is not None:
            spectrogram = cut_tiles(spectrogram, to_device(view.tiles, device))
        return spectrogram  # type: ignore[no-any-return]
