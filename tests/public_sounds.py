"""Tiny public models of sound and text: real classes of transformers with random weights, saved with their processors.

Each function writes a folder as the library's own `save_pretrained` does, and returns it. Sizes are far from those of
published models, so that a second is plenty.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    PeAudioFeatureExtractor,
    PeAudioVideoConfig,
    PeAudioVideoModel,
    PeAudioVideoProcessor,
    PeVideoVideoProcessor,
    PreTrainedTokenizerFast,
    Wav2Vec2FeatureExtractor,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.utils import logging

logging.disable_progress_bar()
RATE_HZ = 16_000
WORDS = ["a", "the", "of", "photo", "sound", "dog", "cat", "barks", "rain", "red", "green", "blue", "video", ".", ","]
PE_SIZES = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 20_000},
}  # fmt: skip


def tokenizer(max_tokens=40, known=WORDS):
    """A tokenizer of whole words; unknown ones are <unk>."""
    vocabulary = {word: number for number, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *known])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", 0), ("</s>", 2)]
    words.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=max_tokens, **names)


def saved(folder, net, *parts):
    net.save_pretrained(folder)
    for part in parts:
        part.save_pretrained(folder)
    return folder


def make_ast(folder, **changes):
    """0.3 s at most: 32 frames of 10 ms, 16 bins."""
    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, num_mel_bins=16,
        max_length=32, patch_size=8, frequency_stride=8, time_stride=8,
    )  # fmt: skip
    extractor = ASTFeatureExtractor(**{"num_mel_bins": 16, "max_length": 32, **changes})
    return saved(folder, ASTModel(config), extractor)


def make_clap(folder, *, fused=False, **changes):
    """A second at 16 kHz; 16 bins, fused 64: the library's excerpts have no other number."""
    torch.manual_seed(0)
    bins = 64 if fused else 16
    config = ClapConfig(
        text_config={
            "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "projection_dim": 8, "max_position_embeddings": 64,
        },
        audio_config={
            "window_size": 2, "num_mel_bins": bins, "spec_size": 128 if fused else 64, "hidden_size": 32,
            "patch_size": 4, "patch_stride": [4, 4], "num_classes": 4, "depths": [1, 1], "num_attention_heads": [2, 2],
            "patch_embeds_hidden_size": 16, "projection_dim": 8, "enable_fusion": fused,
            "fusion_type": "aff_2d" if fused else None, "aff_block_r": 2,
        },
        projection_dim=8,
    )  # fmt: skip
    extractor = ClapFeatureExtractor(
        **{
            "feature_size": bins, "sampling_rate": RATE_HZ, "hop_length": 160, "max_length_s": 1,
            "fft_window_size": 512, "frequency_min": 50, "frequency_max": 8000,
            "truncation": "fusion" if fused else "rand_trunc", **changes,
        }
    )  # fmt: skip
    return saved(folder, ClapModel(config), ClapProcessor(extractor, tokenizer()))


def make_speech(folder, kind="wav2vec2", **changes):
    """A frame per 80 samples."""
    torch.manual_seed(0)
    takes_mask = changes.get("feat_extract_norm", "group") == "layer"
    config = CONFIG_MAPPING[kind](
        **{
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
            "conv_dim": [8, 8], "conv_kernel": [20, 8], "conv_stride": [10, 8], "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2, "vocab_size": 4, **changes,
        }
    )  # fmt: skip
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=takes_mask)
    return saved(folder, MODEL_MAPPING[type(config)](config), extractor)


def make_pe_audio_video(folder, *, with_tokenizer=True, **changes):
    """PE-AV: a frame of audio per 32 samples, images of 32 px, a joint space of 16 dims."""
    torch.manual_seed(0)
    vision = {
        "model_type": "timm_wrapper", "architecture": "vit_pe_core_tiny_patch16_384", "do_pooling": True,
        "num_classes": 16, "global_pool": "map", "initializer_range": 0.02,
        "model_args": {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2},
    }  # fmt: skip
    codec = {
        "model_type": "dac", "downsampling_ratios": [4, 8], "upsampling_ratios": [8, 4], "encoder_hidden_size": 8,
        "decoder_hidden_size": 16, "codebook_dim": 8, "hidden_size": 32, "hop_length": 32,
    }  # fmt: skip
    config = PeAudioVideoConfig(
        text_config={
            "model_type": "modernbert", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
            "cls_token_id": 0, "sep_token_id": 2,
        },
        audio_video_config={
            **PE_SIZES,
            "audio_config": {"model_type": "pe_audio_encoder", **PE_SIZES, "dac_config": codec},
            "video_config": {"model_type": "pe_video_encoder", **PE_SIZES, "vision_config": vision},
        },
    )  # fmt: skip
    extractor = PeAudioFeatureExtractor(**{"sampling_rate": RATE_HZ, "hop_length": 32, **changes})
    video = PeVideoVideoProcessor(
        size={"height": 32, "width": 32}, do_resize=True, do_rescale=True, do_normalize=True,
        image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True, do_sample_frames=False,
    )  # fmt: skip
    words = [tokenizer()] if with_tokenizer else []
    return saved(
        folder,
        PeAudioVideoModel(config),
        *([PeAudioVideoProcessor(extractor, video, *words)] if words else (extractor, video)),
    )
