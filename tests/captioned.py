"""Shards of the small corpus with captions made of its labels, and a tiny CLIP whose tokenizer knows their words."""

from __future__ import annotations

import shutil
from dataclasses import replace

import torch
from transformers import CLIPConfig, CLIPModel

from avssl.shards.format import ShardIndex
from avssl.shards.shard_set import ShardSet
from data_prep.demo.corpus import SOUND_CLASSES, VISUAL_CLASSES
from data_prep.write.folder import OutputFolder
from data_prep.write.pack import write_shard
from tests import public_sounds

MAX_TOKENS = 16
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def caption_of(labels):
    """The caption of a clip."""
    return f"a video of {labels['visual'][0]} with the sound of {labels['sound'][0]}"


def with_captions(shards, folder, without=()):
    """A copy of a shard folder whose samples have captions, but for the indices `without`."""
    source, out, records = ShardSet(shards), OutputFolder.open(folder), []
    for record in source.index.shards:
        samples = []
        for index in range(record.first_index, record.first_index + record.num_samples):
            sample = source.read(index)
            caption = "" if index in without else caption_of(sample.info.labels)
            samples.append(replace(sample, info=replace(sample.info, caption=caption)))
        records.append(write_shard(out, record.name, samples, record.first_index))
    index = replace(ShardIndex.load(shards), shards=records, has_captions=True)
    (folder / "index.json").write_bytes(index.to_json())
    shutil.copy(shards / "skipped.jsonl", folder)
    return folder


def make_text_model(folder, projection_dim=8):
    """A tiny CLIP with random weights, saved as a published model with its tokenizer."""
    torch.manual_seed(0)
    known = dict.fromkeys([*public_sounds.WORDS, "with", *VISUAL_CLASSES, *SOUND_CLASSES])
    words = public_sounds.tokenizer(MAX_TOKENS, known)
    ends = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    text = {"vocab_size": len(words), "max_position_embeddings": MAX_TOKENS, **ends, **SIZES}
    vision = {"image_size": 32, "patch_size": 16, **SIZES}
    net = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection_dim))
    return public_sounds.saved(folder, net, words)
