"""Public models of audio of transformers: AST, CLAP, PE-AV's audio tower and the Wav2Vec2 family, as encoders.

What the views need (rate, length, bins) comes from the model's own feature extractor, whose settings a run keeps in
config.yaml beside the architecture.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from math import inf, prod
from typing import Any

from torch import nn

from avssl.models.public import extractors, hub_files
from avssl.models.public.encoder import Demand, Tower, check_options
from avssl.models.public.hub_files import Located
from avssl.models.public.transformers_door import config_of, library, plain_config, quiet, read_weights
from avssl.models.public.waveform_encoders import (
    ClapAudio,
    PerceptionAudio,
    SpectrogramTransformer,
    SpeechModel,
    WaveformEncoder,
)
from avssl.types import Modality

SPEECH = (
    "wav2vec2", "wav2vec2-conformer", "hubert", "wavlm", "data2vec-audio", "unispeech", "unispeech-sat", "sew", "sew-d",
)  # fmt: skip
AST, CLAP, PE_AUDIO = "audio-spectrogram-transformer", ("clap", "clap_audio_model"), ("pe_audio", "pe_audio_video")
OPTIONS = ("pretrained", "architecture", "processor", "sha256")
KALDI_WINDOW_SECONDS, KALDI_HOP_SECONDS = 0.025, 0.010  # of AST's filterbanks


def modalities(model: Located) -> tuple[Modality, ...]:
    """("audio",) for a model of this file."""
    kinds = (AST, *CLAP, *SPEECH, "pe_audio")
    return ("audio",) if model.config.get("model_type") in kinds else ()


def is_pretrained(model: Located, options: Mapping[str, Any]) -> bool:  # noqa: ARG001
    """Whether published weights are read: unless pretrained is false."""
    return bool(options.get("pretrained", True))


def architecture(model: Located) -> dict[str, Any]:
    """Options from which the encoder is built without the files of the model: its configuration and its processor's."""
    found = {"architecture": plain_config(model.config)}
    if model.folder is not None:
        found["processor"] = plain_config(extractors.extractor_settings(model, {}))
    return found


def extractor_of(model: Located, options: Mapping[str, Any]) -> Any:
    """The library's feature extractor of the model. ValueError if it is that of another network."""
    kind = str(model.config.get("model_type"))
    named = {AST: "ASTFeatureExtractor", **dict.fromkeys(CLAP, "ClapFeatureExtractor")}
    named |= dict.fromkeys(PE_AUDIO, "PeAudioFeatureExtractor")
    extractor = extractors.load_extractor(named.get(kind, "Wav2Vec2FeatureExtractor"), model, options)
    config = config_of(model.name, model.config)
    if kind == AST:
        check = {"num_mel_bins": (extractor.num_mel_bins, config.num_mel_bins)}
        check["max_length"] = (extractor.max_length, config.max_length)
    elif kind in CLAP:
        audio = getattr(config, "audio_config", config)
        check = {"feature_size": (extractor.feature_size, audio.num_mel_bins)}
        check["truncation=fusion"] = (extractor.truncation == "fusion", bool(audio.enable_fusion))
        frames = int(extractor.max_length_s * extractor.sampling_rate) // extractor.hop_length + 1
        most = audio.spec_size * (audio.spec_size // audio.num_mel_bins)
        check["frames at most"] = (max(frames, most), most)
    elif kind in PE_AUDIO:
        check = {"hop_length": (extractor.hop_length, prod(_codec(config).downsampling_ratios))}
    else:
        check = {"feature_size": (extractor.feature_size, 1)}
    for name, (given, needed) in check.items():
        if given != needed:
            raise ValueError(
                f"{model.name}: its feature extractor has {name} {given}, and its network needs {needed}; they are not "
                "of one model"
            )
    return extractor


def _codec(config: Any) -> Any:
    audio = config.audio_config
    return getattr(audio, "audio_config", audio).dac_config


def demands(model: Located, modality: str, options: Mapping[str, Any], size_px: int | None = None) -> dict[str, Demand]:
    """What the model's feature extractor demands of views.audio."""
    del modality, size_px
    extractor = extractor_of(model, options)
    rate_hz = int(extractor.sampling_rate)
    found: dict[str, Any] = {"transform": "processor", "rate_hz": rate_hz}
    kind = model.config.get("model_type")
    if kind == AST:
        window, hop = int(rate_hz * KALDI_WINDOW_SECONDS), int(rate_hz * KALDI_HOP_SECONDS)
        frames = int(extractor.max_length)
        found |= {"window_samples": window, "hop_samples": hop, "num_frames": frames}
        found |= {"num_mels": int(extractor.num_mel_bins)}
        seconds = frames * hop / rate_hz
    elif kind in CLAP:
        hop, seconds = int(extractor.hop_length), float(extractor.max_length_s)
        found |= {"window_samples": int(extractor.fft_window_size), "hop_samples": hop}
        found |= {"num_frames": int(seconds * rate_hz) // hop + 1, "num_mels": int(extractor.feature_size)}
    else:
        return {key: Demand(value) for key, value in found.items()}
    return {key: Demand(value) for key, value in found.items()} | {
        "seconds": Demand(seconds, is_fixed=False, at_most=longest_seconds(model, extractor) or inf)
    }


def longest_seconds(model: Located, extractor: Any) -> float:
    """The longest clip that the feature extractor does not cut; 0 if there is none."""
    kind, rate_hz = model.config.get("model_type"), int(extractor.sampling_rate)
    if kind == AST:
        window, hop = int(rate_hz * KALDI_WINDOW_SECONDS), int(rate_hz * KALDI_HOP_SECONDS)
        return (window + (int(extractor.max_length) - 1) * hop) / rate_hz
    return float(extractor.max_length_s) if kind in CLAP and extractor.truncation != "fusion" else 0.0


def build(model: Located, modality: Modality, options: Mapping[str, Any]) -> nn.Module:
    """The encoder of waveforms. ValueError for an option that it lacks, and for files that do not fit each other."""
    return tower(model, modality, options).encoder


def tower(model: Located, modality: Modality, options: Mapping[str, Any]) -> Tower:
    """The encoder and the projection of a modality. See `build`."""
    del modality
    check_options(model.name, options, OPTIONS)
    extractor = extractor_of(model, options)
    kind = model.config.get("model_type")
    projection: nn.Module | None = None
    encoder: WaveformEncoder
    longest = longest_seconds(model, extractor)
    if kind == AST:
        net = load_net("ASTModel", model, config_of(model.name, model.config), options)
        window = int(extractor.sampling_rate * KALDI_WINDOW_SECONDS)
        encoder = SpectrogramTransformer(net, net.config.hidden_size, extractor, longest, window)
    elif kind in CLAP:
        config = config_of(model.name, model.config)
        whole = load_net("ClapAudioModelWithProjection", model, getattr(config, "audio_config", config), options)
        net, projection = whole.audio_model, whole.audio_projection
        encoder = ClapAudio(net, net.config.hidden_size, extractor, longest)
    elif kind == "pe_audio":
        whole = load_net("PeAudioModel", model, config_of(model.name, model.config), options)
        encoder, projection = perception_audio(whole, extractor), whole.audio_head
    else:
        encoder = _speech(model, extractor, options)
    return Tower(encoder, projection)


def load_net(kind: str, model: Located, config: Any, options: Mapping[str, Any]) -> Any:
    """The network of a class of transformers, with the model's weights, or random ones if pretrained is false."""
    network = getattr(library(), kind)
    with redirect_stdout(io.StringIO()):  # the library prints remarks on its own code when it builds PE-AV
        if is_pretrained(model, options):
            return read_weights(model, network, config, options.get("sha256"), unused=("masked_spec_embed",))
        with quiet():
            return network(config)


def perception_audio(whole: Any, extractor: Any) -> PerceptionAudio:
    """The audio encoder of a PeAudioModel; the weights of its codec, which the library never trains, are frozen."""
    net = whole.audio_encoder
    for frozen in (net.embedder.dac_encoder, net.embedder.bottleneck):
        frozen.requires_grad_(False)
    return PerceptionAudio(net, net.config.hidden_size, extractor)


def _speech(model: Located, extractor: Any, options: Mapping[str, Any]) -> SpeechModel:
    # A run has its own augmentations, and DDP needs every layer in every step.
    config = config_of(model.name, {**model.config, "apply_spec_augment": False, "layerdrop": 0.0})
    net = load_net(library().MODEL_MAPPING[type(config)].__name__, model, config, options)
    if hasattr(net, "masked_spec_embed"):
        net.masked_spec_embed.requires_grad_(False)
    # The samples of the frames that the network needs to give one: its convolutions from the last to the first.
    shortest = int(getattr(config, "squeeze_factor", 1))
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        shortest = (shortest - 1) * stride + kernel
    dim = config.output_hidden_size if getattr(config, "add_adapter", False) else config.hidden_size
    return SpeechModel(net, dim, extractor, shortest_samples=shortest)


def with_files(model: Located) -> Located:
    """The model, whose files are known from the beginning."""
    return model


def license_of(model: Located) -> str:
    """The license that the model's card names."""
    return hub_files.license_of(model.folder)
