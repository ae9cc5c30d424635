"""Text towers of public models of transformers: text in the space of a model's images, video or audio.

A tower reads text with the tokenizer in the model's own folder, and gives unit rows that are comparable by their cosine
with the embeddings that the same model makes of media. Of PE-AV the rows depend on the modality that they are compared
with: it has a head for text beside audio, and another beside video.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from avssl.files.plain_text import brief
from avssl.models.public.extractors import load_tokenizer
from avssl.models.public.hub_files import Located, license_of, sha256_of_files, weights_of, weights_sha256
from avssl.models.public.sound import load_net
from avssl.models.public.transformers_door import config_of, quiet
from avssl.types import Modality

TEXTS_PER_BATCH = 64
# {type: (class of the whole model, what its text can be compared with)}
WITH_TEXT: dict[str, tuple[str, tuple[Modality, ...]]] = {
    "clap": ("ClapModel", ("audio",)),
    "clip": ("CLIPModel", ("image", "video")),
    "siglip": ("SiglipModel", ("image", "video")),
    "pe_audio": ("PeAudioModel", ("audio",)),
    "pe_video": ("PeVideoModel", ("video",)),
    "pe_audio_video": ("PeAudioVideoModel", ("video", "audio")),
}
# Parts of the whole models that text does not go through, so that their memory is given back.
MEDIA_PARTS = ("vision_model", "visual_projection", "audio_projection", "audio_encoder", "video_encoder")


def text_modalities(model: Located) -> tuple[Modality, ...]:
    """The modalities that the model compares text with; () if it reads no text."""
    return WITH_TEXT.get(str(model.config.get("model_type")), ("", ()))[1]


class TextTower:
    """Text of one public model, in eval mode. Build it with `text_tower`.

    Attributes: name, modalities (that text can be compared with), max_tokens (of one text).
    """

    def __init__(self, model: Located, net: nn.Module, tokenizer: Any) -> None:
        self.name, self.kind, self.modalities = model.name, str(model.config["model_type"]), text_modalities(model)
        self.net, self.tokenizer = net.eval(), tokenizer
        config = cast("Any", net).config.text_config
        # Networks after RoBERTa number their positions from that of the padding token on.
        used = config.pad_token_id + 1 if self.kind == "clap" else 0
        self.max_tokens = min(int(config.max_position_embeddings) - used, int(tokenizer.model_max_length))
        if len(tokenizer) > config.vocab_size:
            raise ValueError(
                f"{self.name}: its tokenizer has {len(tokenizer)} tokens, and its network knows {config.vocab_size}; "
                "they are not of one model"
            )

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], modality: str, *, cut: bool = False) -> torch.Tensor:
        """float32 unit rows (n, D) of n texts on the CPU, comparable with the model's embeddings of a modality.

        cut: of a text that is longer than the model reads, read the beginning. ValueError for no text, for one that is
        empty or, without `cut`, too long, and for a modality that the model lacks.
        """
        if modality not in self.modalities:
            raise ValueError(f"{self.name} compares text with {' and '.join(self.modalities)}, and not with {modality}")
        if isinstance(texts, str) or not texts or not all(text.strip() for text in texts):
            raise ValueError(f"the texts are {brief(texts)}; give a list of texts of which none is empty")
        rows = [
            self._embed(list(texts[first : first + TEXTS_PER_BATCH]), modality, cut=cut)
            for first in range(0, len(texts), TEXTS_PER_BATCH)
        ]
        return nn.functional.normalize(torch.cat(rows).float().cpu(), dim=1)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text; at most `max_tokens` are read."""
        with quiet():  # what is too long is said by the caller
            return [len(ids) for ids in self.tokenizer(list(texts))["input_ids"]]

    def _embed(self, texts: list[str], modality: str, *, cut: bool) -> torch.Tensor:
        lengths = self.lengths(texts)
        if max(lengths) > self.max_tokens and not cut:
            raise ValueError(
                f"the text {brief(texts[lengths.index(max(lengths))])} has {max(lengths)} tokens; {self.name} reads at "
                f"most {self.max_tokens}"
            )
        padding: dict[str, Any] = {"padding": True}
        if self.kind == "siglip":  # was trained on texts of one length
            padding = {"padding": "max_length", "max_length": self.max_tokens}
        if cut:
            padding |= {"truncation": True, "max_length": self.max_tokens}
        read = self.tokenizer(texts, return_tensors="pt", **padding).to(next(self.net.parameters()).device)
        tokens = {name: read[name] for name in ("input_ids", "attention_mask") if name in read}
        net = cast("Any", self.net)
        if not self.kind.startswith("pe_"):
            return cast("torch.Tensor", net.get_text_features(**tokens).pooler_output)
        heads = getattr(net, f"{modality}_model") if self.kind == "pe_audio_video" else net
        first_tokens = net.text_model(**tokens).last_hidden_state[:, 0]
        return cast("torch.Tensor", getattr(heads, f"text_{modality}_head")(first_tokens))


def text_options(model: Located, beside: Sequence[str]) -> dict[str, Any]:
    """What says which text encoder a run began with: its name with the commit, SHA-256 of weights and files, license.

    "modality" is the head for text: that of the first of the modalities `beside` that the model compares text with.
    ValueError if the model reads no text.
    """
    known = text_modalities(model)
    if not known:
        raise _reads_no_text(model)
    head = next((name for name in beside if name in known), known[0])
    found = {"name": model.name, "modality": head, "sha256": weights_sha256(weights_of(model))}
    more = {"files": sha256_of_files(model), "license": license_of(model.folder)}
    return found | {name: value for name, value in more.items() if value}


def _reads_no_text(model: Located) -> ValueError:
    kind = model.config.get("model_type")
    return ValueError(
        f"{model.name} is of the type {kind}, which reads no text; types that do are {', '.join(WITH_TEXT)}"
    )


def text_tower(model: Located, sha256: str = "", device: str = "cpu") -> TextTower:
    """The text tower of a model with its published weights.

    sha256: that the weights must have. ValueError if they have another one, or if the model reads no text or has no
    tokenizer.
    """
    kind = str(model.config.get("model_type"))
    if kind not in WITH_TEXT:
        raise _reads_no_text(model)
    tokenizer = load_tokenizer(model)
    config = config_of(model.name, model.config)
    net = load_net(WITH_TEXT[kind][0], model, config, {"sha256": sha256} if sha256 else {})
    for whole in (net, getattr(net, "audio_model", None), getattr(net, "video_model", None)):
        for part in MEDIA_PARTS:
            if hasattr(whole, part):
                setattr(whole, part, None)
    if kind == "clap":
        net.audio_model = None
    if kind == "pe_audio_video":
        net.audio_video_encoder = None
    return TextTower(model, net.to(device), tokenizer)
