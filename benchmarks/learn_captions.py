"""Whether text finds what a run on captions has learned: `clip_frozen_text` on the demo corpus with made captions.

    python benchmarks/learn_captions.py [--seeds 2] [--out FOLDER]

The corpus, networks and optimizer are those of benchmarks/learn_audiovisual.py. A clip's caption names its shape and
its timbre in one of CAPTIONS. The text encoder is made here, in CLIP's own classes: a bag of words, the mean of a
random vector for each of them. It can tell texts apart and knows nothing of what they mean. (Of a transformer with
random weights all captions have cosines above .97, and even the captions themselves are not told apart by PROMPTS.)
Judged on 300 test clips, with 95 % intervals over other samples: the class whose PROMPTS are closest among eight; among
the ten clips closest to a class's prompts, the share of that class; and a clip's own sound among all. Runs are kept
below --out.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from avssl import config
from avssl.data.every_sample import ClipPlan
from avssl.embedding.embedder import Embedder
from avssl.eval import tasks
from avssl.eval.features import extract
from avssl.eval.intervals import bootstrap, ends, values_of
from avssl.eval.outcome import Metric, Repeat
from avssl.shards.shard_set import ShardSet
from benchmarks import learn_audiovisual, learning
from benchmarks.claims import machine
from data_prep.demo.corpus import SOUND_CLASSES, VISUAL_CLASSES
from recipes.demo import SHARD_OPTIONS

CAPTIONS = (
    "a video of a {visual} with the sound of a {sound}", "the sound of a {sound} beside a {visual}",
    "{visual} and {sound}",
)  # fmt: skip
PROMPTS = ["a video of a {}", "the sound of a {}", "{}"]
FIELDS = {"video": "visual", "audio": "sound"}
SHARES = ("shape among closest 10", "timbre among closest 10")
STEPS, WIDTH, MAX_TOKENS, CLOSEST = 600, 64, 24, 10
VARIANTS = {"text, and video against audio": 1.0, "text alone": 0.0}  # {what is compared: across_weight}


def prepare(folder: Path) -> dict[str, Path]:
    """Shards of the demo corpus with captions, by split."""
    learn_audiovisual.prepare(folder)
    shards = {split: folder / "captioned" / split for split in ("train", "test")}
    for split, path in shards.items():
        if (path / "index.json").is_file():
            continue
        source, manifest = folder / "videos" / split, folder / f"captioned_{split}.jsonl"
        with (source / "labels.csv").open() as file:
            rows = list(csv.DictReader(file))
        with (source / "captions.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "caption", "visual", "sound"])
            for number, row in enumerate(rows):
                words = {name: row[name].replace("_", " ") for name in ("visual", "sound")}
                caption = CAPTIONS[number % len(CAPTIONS)].format(**words)
                writer.writerow([row["path"], caption, row["visual"], row["sound"]])
        run = [sys.executable, "-m", "data_prep"]
        index = [*run, "index", str(source / "captions.csv"), "--out", str(manifest)]
        learning.run_command(index, folder / f"index_captioned_{split}.log")
        write = [*run, "write", str(manifest), "--out", str(path), *SHARD_OPTIONS.split()]
        learning.run_command(write, folder / f"write_captioned_{split}.log")
    return shards


def make_text_encoder(folder: Path) -> Path:
    """A CLIP whose text embedding is the mean of its words' vectors, as a folder of transformers.

    One layer whose attention is uniform, from the last token to all, with norms that only scale.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast  # noqa: TID251

    if (folder / "model.safetensors").is_file():
        return folder
    texts = [*CAPTIONS, *PROMPTS, *(name.replace("_", " ") for name in (*VISUAL_CLASSES, *SOUND_CLASSES))]
    words = sorted({word for text in texts for word in text.split() if "{" not in word})
    known = {word: number for number, word in enumerate(["<pad>", "<unk>", "<s>", *words, "</s>"])}
    tokens = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    begin, end = known["<s>"], known["</s>"]
    tokens.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", begin), ("</s>", end)]
    )
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, model_max_length=MAX_TOKENS, **named)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    text = {"vocab_size": len(known), "max_position_embeddings": MAX_TOKENS, "bos_token_id": begin,
            "eos_token_id": end, "pad_token_id": known["<pad>"], **sizes}  # fmt: skip
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 16, **sizes}
    net = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))
    with torch.no_grad():
        bag = net.text_model
        for weights in bag.parameters():
            weights.zero_()
        for layer in bag.modules():
            if isinstance(layer, torch.nn.LayerNorm):
                layer.weight.fill_(1)
        words_of = bag.embeddings.token_embedding.weight
        words_of[3:end].normal_()  # those of the ends stay 0, so that the last token says what the others say
        attention = bag.encoder.layers[0].self_attn
        for projection in (attention.v_proj, attention.out_proj, net.text_projection):
            projection.weight.copy_(torch.eye(WIDTH))
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def one_run(across_weight: float, seed: int, folder: Path, shards: dict[str, Path]) -> tuple[Repeat, list[float]]:
    """Train and judge: the metrics with the rows that their intervals are drawn from, and the shares of video and audio
    among the CLOSEST rows of a class.
    """
    run = folder / "captioned_runs" / f"{across_weight:g}-{seed}"
    options = [
        "loss.name=clip_frozen_text", f"loss.text_encoder.name=hf/{folder / 'text'}", "loss.without_caption=error",
        f"loss.across_weight={across_weight}", f"steps={STEPS}", f"seed={seed}", f"loss.seed={seed}",
        f"data.shards={shards['train']}",
    ]  # fmt: skip
    learning.pretrain(run, [*learn_audiovisual.SHARED, *options])
    embedder = Embedder.from_run(run)
    columns: dict[str, Any] = {}
    metrics: dict[str, Metric] = {}
    keys: list[str] = []
    shares: list[float] = []
    for modality, field in FIELDS.items():
        task = tasks.get("zero_shot")
        given = [f"test={shards['test']}", f"modality={modality}", f"label_field={field}", "num_workers=0",
                 "per_class=false", f"templates={PROMPTS!r}"]  # fmt: skip
        (repeat,) = task.run(embedder, config.parse(task.Config, given)).repeats
        name, keys = f"{modality}_top1_accuracy", repeat.keys
        columns |= repeat.columns
        metrics[name] = repeat.metrics[name]
        scores, targets = repeat.columns[f"{modality}_scores"], repeat.columns["targets"]
        closest = np.argsort(-scores, axis=0, kind="stable")[:CLOSEST]
        share = float(np.mean(targets[closest] == np.arange(scores.shape[1])[None]))
        shares.append(share)
        columns[f"{modality}_right"] = scores.argmax(axis=1) == targets
        metrics[name] = Metric("mean", (f"{modality}_right",), 1 / scores.shape[1])
    features = extract(embedder, ShardSet(shards["test"]), list(FIELDS), ["embedding"], ClipPlan(1), num_workers=0)
    assert features.keys == keys
    rows = [features.rows[modality]["embedding"][:, 0] for modality in FIELDS]
    cosines = rows[0] @ rows[1].T
    ranks = 1 + (cosines > np.diag(cosines)[:, None]).sum(axis=1)
    columns["found"] = ranks <= CLOSEST
    metrics["video_to_audio_recall_at_10"] = Metric("mean", ("found",), CLOSEST / len(ranks))
    used = {name for metric in metrics.values() for name in metric.columns}
    return Repeat("", keys, {name: columns[name] for name in used}, metrics), shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(".cache/learn_audiovisual"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.out.resolve()
    shards = prepare(folder)
    make_text_encoder(folder / "text")
    head = f"{machine()}; {learn_audiovisual.NUM_TRAIN} clips, {STEPS} steps of {learn_audiovisual.BATCH_SIZE}; test "
    print(f"{head}{learn_audiovisual.NUM_TEST}\n")
    print(learning.markdown([["compared", "seed", "zero-shot shape", "zero-shot timbre", "v to a R@10", *SHARES]]))
    for name, weight in VARIANTS.items():
        for seed in range(arguments.seeds):
            repeat, shares = one_run(weight, seed, folder, shards)
            drawn, values = bootstrap([[repeat]])[0], values_of([repeat])
            cells = []
            for metric, one in repeat.metrics.items():
                low, high = ends(np.array(drawn[metric]))
                chance = f", chance {100 * (one.chance or 0):.1f}"
                cells.append(f"{100 * values[metric]:.1f} [{100 * low:.1f}, {100 * high:.1f}]{chance}")
            cells += [f"{100 * share:.1f}" for share in shares]
            print(f"| {' | '.join([name, str(seed), *cells])} |", flush=True)


if __name__ == "__main__":
    main()
