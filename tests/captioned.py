"""Shards of the small corpus with captions made of its labels, and a tiny CLIP whose tokenizer knows their words."""

from __future__ import annotations

import csv
import shutil

import torch
from transformers import CLIPConfig, CLIPModel

from data_prep.demo.corpus import SOUND_CLASSES, VISUAL_CLASSES
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.transcode.options import WriteOptions
from data_prep.write.run import write_shards
from tests import public_sounds

EVERY = (*VISUAL_CLASSES, *SOUND_CLASSES)
MAX_TOKENS = 16
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def caption_of(visual, sound):
    """The caption of a clip."""
    return f"a video of {visual} with the sound of {sound}"


def make_captioned_shards(corpus, folder, split="train", without=()):
    """Shards of a split of the corpus; of the files numbered in `without`, in the order of its labels, no caption."""
    rows = list(csv.DictReader((corpus / split / "labels.csv").open()))
    media = folder / split
    shutil.copytree(corpus / split, media)
    with (media / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "caption", "visual", "sound"])
        for number, row in enumerate(rows):
            caption = "" if number in without else caption_of(row["visual"], row["sound"])
            writer.writerow([row["path"], caption, row["visual"], row["sound"]])
    build_manifest(media / "captions.csv", folder / f"{split}.jsonl", IndexOptions())
    options = WriteOptions(short_side_px=32, samples_per_shard=7)
    write_shards(folder / f"{split}.jsonl", folder / f"{split}-shards", options)
    return folder / f"{split}-shards"


def make_text_model(folder, projection_dim=8):
    """A tiny CLIP with random weights, saved as a published model with its tokenizer."""
    torch.manual_seed(0)
    words = public_sounds.tokenizer(MAX_TOKENS, [*public_sounds.WORDS, "with", *EVERY])
    ends = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    text = {"vocab_size": len(words), "max_position_embeddings": MAX_TOKENS, **ends, **SIZES}
    vision = {"image_size": 32, "patch_size": 16, **SIZES}
    net = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection_dim))
    return public_sounds.saved(folder, net, words)
