"""Encoders of waveforms around networks of transformers: AST, CLAP and PE-AV's audio towers, the Wav2Vec2 family.

A view of audio is the waveform here (views.audio.transform=processor). What a network reads is made of it by the
model's own feature extractor, with the library's code: the filterbanks of AST, the mel spectrograms of CLAP, the
normalized waveforms of the others. NaN at the end of a waveform stands for what lies beyond its stream; it is cut off
first, so that the model's own padding takes its place, and a clip gives the same input in any batch.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from avssl.models.public.encoder import PublicEncoder, embeddings_of, layers_of

Clips = Sequence[NDArray[np.float32]]  # a waveform (samples,) each
Inputs = dict[str, torch.Tensor]


class WaveformEncoder(PublicEncoder):
    """An audio network behind its feature extractor. Subclasses write `inputs` and `features`.

    Args:
        net, dim: as PublicEncoder. extractor: of the library.
        longest_seconds: more is refused; 0 for any length.
        shortest_samples: what the network needs at least; shorter clips get zeros up to there.
    """

    block = re.compile(r"layers\.\d+(?:\.blocks\.\d+)?")  # in the names of parameters

    def __init__(
        self, net: nn.Module, dim: int, extractor: Any, longest_seconds: float = 0.0, shortest_samples: int = 1
    ) -> None:
        layers = layers_of([name for name, _ in net.named_parameters()], self.block)
        super().__init__(net, "audio", dim, layer_ids=layers, no_decay=embeddings_of(net))
        self.extractor, self.rate_hz = extractor, int(extractor.sampling_rate)
        self.longest_seconds, self.shortest_samples = longest_seconds, shortest_samples

    def inputs(self, clips: Clips, num_samples: int) -> Inputs:
        """What the network reads; num_samples: of the longest clip that a batch may have."""
        raise NotImplementedError(f"{type(self).__name__}.inputs")

    def features(self, inputs: Any) -> torch.Tensor:
        """The network's inputs -> (B, dim)."""
        raise NotImplementedError(f"{type(self).__name__}.features")

    def forward(self, media: torch.Tensor) -> torch.Tensor:
        """Waveforms (B, 1, samples), with NaN beyond the end of their streams -> (B, dim)."""
        if media.ndim != 3 or media.shape[1] != 1:
            raise ValueError(
                f"this encoder takes waveforms (B, 1, samples), got {tuple(media.shape)}; its views need "
                "views.audio.transform=processor"
            )
        num_samples = media.shape[2]
        if self.longest_seconds and num_samples > round(self.longest_seconds * self.rate_hz):
            raise ValueError(
                f"this encoder reads at most {self.longest_seconds:g} s at {self.rate_hz} Hz, and would cut "
                f"{num_samples / self.rate_hz:g} s; set views.audio.seconds"
            )
        return self.encode(self.clips_of(media), num_samples, media.device)

    def encode(self, clips: Clips, num_samples: int, device: torch.device) -> torch.Tensor:
        """Clips of any lengths up to num_samples -> (B, dim) on the device."""
        inputs = self.inputs(clips, num_samples)
        return self.features({name: values.to(device) for name, values in inputs.items()})

    def clips_of(self, waveforms: torch.Tensor) -> list[NDArray[np.float32]]:
        """The waveforms (B, 1, samples) without the NaN at their ends; one of NaN alone is silence."""
        clips = []
        for row in waveforms[:, 0].detach().float().cpu().numpy():
            valid = np.flatnonzero(~np.isnan(row))
            clip = row[: valid[-1] + 1] if len(valid) else np.zeros_like(row)
            clips.append(np.pad(clip, (0, max(0, self.shortest_samples - len(clip)))))
        return clips

    def extracted(self, clips: Clips, **options: Any) -> Inputs:
        """What the library's feature extractor makes of clips."""
        made = self.extractor(list(clips), sampling_rate=self.rate_hz, return_tensors="pt", **options)
        return dict(made.items())


class SpectrogramTransformer(WaveformEncoder):
    """AST (Gong et al. 2021, arXiv 2104.01778): the mean of the class and the distillation token."""

    def inputs(self, clips: Clips, num_samples: int) -> Inputs:  # noqa: ARG002  (the contract)
        """{"input_values": (B, max_length, mel bins)}."""
        return self.extracted(clips)

    def features(self, inputs: Any) -> torch.Tensor:
        """(B, max_length, mel bins) -> (B, dim)."""
        pooled: torch.Tensor = self.net(**inputs).pooler_output
        return pooled


class ClapAudio(WaveformEncoder):
    """The audio tower of CLAP (Wu et al. 2023, arXiv 2211.06687), before its projection.

    Every clip goes through the feature extractor alone, as a single one would, and with the same random draws: a fused
    model takes three excerpts of a clip that is longer than its spectrogram.
    """

    def inputs(self, clips: Clips, num_samples: int) -> Inputs:  # noqa: ARG002
        """{"input_features": (B, 1 or 4, frames, mel bins), "is_longer": (B, 1)}."""
        alone = []
        for clip in clips:
            with same_draws():
                alone.append(self.extracted([clip]))
        return {name: torch.cat([made[name] for made in alone]) for name in alone[0]}

    def features(self, inputs: Any) -> torch.Tensor:
        """-> (B, dim)."""
        pooled: torch.Tensor = self.net(inputs["input_features"].float(), is_longer=inputs["is_longer"]).pooler_output
        return pooled


class SpeechModel(WaveformEncoder):
    """A model of the Wav2Vec2 family: the mean over the frames that are not padding.

    Models that were trained with a mask get one. The others see every clip in its own length: padding would change
    what they make of its samples.
    """

    block = re.compile(r"encoder\.layers\.\d+")

    def inputs(self, clips: Clips, num_samples: int) -> Inputs:
        """{"input_values", "attention_mask": (B, num_samples)}, each clip normalized alone."""
        longest = max(num_samples, self.shortest_samples)
        return self.extracted(clips, padding="max_length", max_length=longest, return_attention_mask=True)

    def features(self, inputs: Any) -> torch.Tensor:
        """-> (B, dim)."""
        mask, net = inputs["attention_mask"], cast("Any", self.net)
        takes_mask = bool(self.extractor.return_attention_mask)
        with warnings.catch_warnings():
            # WavLM adds a mask of one type to a bias of another, which torch will not do for ever.
            warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
            frames = net(inputs["input_values"], attention_mask=mask if takes_mask else None).last_hidden_state
        is_frame = net._get_feature_vector_attention_mask(frames.shape[1], mask)[..., None].bool()
        mean: torch.Tensor = frames.masked_fill(~is_frame, 0.0).sum(dim=1) / is_frame.sum(dim=1).clamp_min(1)
        return mean

    def encode(self, clips: Clips, num_samples: int, device: torch.device) -> torch.Tensor:
        """Clips of one length together, unless the model takes a mask."""
        if self.extractor.return_attention_mask:
            return super().encode(clips, num_samples, device)
        rows: dict[int, torch.Tensor] = {}
        for length in sorted({len(clip) for clip in clips}):
            numbers = [number for number, clip in enumerate(clips) if len(clip) == length]
            features = super().encode([clips[number] for number in numbers], length, device)
            rows |= dict(zip(numbers, features, strict=True))
        return torch.stack([rows[number] for number in range(len(clips))])


class PerceptionAudio(WaveformEncoder):
    """The audio tower of PE-AV (Vyas et al. 2025, arXiv 2512.19687), before its head. Its codec stays as it is."""

    def inputs(self, clips: Clips, num_samples: int) -> Inputs:
        """{"input_values": (B, 1, samples), "padding_mask": (B, samples)}, a multiple of the codec's hop."""
        hop = int(self.extractor.hop_length)
        return self.extracted(clips, padding="max_length", max_length=-(-num_samples // hop) * hop)

    def features(self, inputs: Any) -> torch.Tensor:
        """-> (B, dim)."""
        pooled: torch.Tensor = self.net(**inputs).pooler_output
        return pooled


@contextmanager
def same_draws() -> Iterator[None]:
    """NumPy's global generator begins from one seed, and afterwards is as before."""
    state = np.random.get_state()  # the library draws from it
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)
