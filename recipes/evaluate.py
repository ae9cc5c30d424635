"""Evaluate a finished run, trained and untrained: weighted kNN of what it has encoders for, audio <-> video retrieval
and precision of positives if it has both.

    python recipes/evaluate.py runs/avid_cma recipes/configs/evaluate.yaml train=shards/train test=shards/test

Writes RUN/evaluation.json (values, chance levels, protocol) and the embeddings of both splits below RUN/embeddings/.
A sample that cannot be read is an error: a smaller test set would be another test set.
"""

import json
import sys
from pathlib import Path

import torch

from avssl import checkpoint, config
from avssl.data.shards import ShardSet
from avssl.embed import Embedder
from avssl.eval.protocol import TaskConfig, evaluate_tables, protocol
from avssl.losses.avid_cma import positive_set
from avssl.tables import EmbeddingTable

AGREEMENTS = ("consensus", "union", "video", "audio")


def embed_split(embedder: Embedder, shards: str, task: TaskConfig) -> EmbeddingTable:
    table, failures = embedder.embed(
        ShardSet(shards),
        window_seconds=task.window_seconds or None,
        batch_size=task.batch_size,
        num_workers=task.num_workers,
        progress=True,
    )
    for key, error in failures.items():
        raise ValueError(f"{len(failures)} samples of {shards} could not be embedded, the first is {key}: {error}")
    return table


def positive_sets(run: Path, num_positives: int) -> dict[str, torch.Tensor]:
    """What CMA would take as positives now, for every kind of agreement; empty for runs without the two banks."""
    weights = checkpoint.read_weights(run)
    names = ("loss.banks.video.rows", "loss.banks.audio.rows")
    if not all(name in weights for name in names):
        return {}
    video, audio = (weights[name] for name in names)
    return {agreement: positive_set(video, audio, num_positives, agreement) for agreement in AGREEMENTS}


def main(run: Path, task: TaskConfig) -> Path:
    results, chance, facts = {}, {}, {}
    checkpoint.read_weights(run)  # says what is missing
    if ShardSet(task.train).fingerprint == ShardSet(task.test).fingerprint:
        raise ValueError(
            f"train={task.train} and test={task.test} hold the same clips; the kNN would find each clip itself"
        )
    trained_on = json.loads((run / checkpoint.PROVENANCE_FILE).read_text())["data"]["fingerprint"]
    for weights in ("trained", "untrained"):
        embedder = Embedder.from_run(run, device=task.device, untrained=weights == "untrained")
        train, test = embed_split(embedder, task.train, task), embed_split(embedder, task.test, task)
        positives = positive_sets(run, task.num_positives) if weights == "trained" else {}
        if positives and ShardSet(task.train).fingerprint != trained_on:
            print(f"no precision of positives: {run} was not trained on {task.train}, whose labels are known")
            positives = {}
        results[weights], levels = evaluate_tables(train, test, task, positives)
        chance |= levels
        facts = protocol(train, test, task)
        if weights == "trained":
            facts_of_weights = embedder.weights_hash
            for split, table in (("train", train), ("test", test)):
                table.write(run / "embeddings" / f"{split}.parquet")
    evaluation = {
        "run": run.name,
        "weights": facts_of_weights,
        "protocol": {**facts, "train": task.train, "test": task.test},
        "chance": chance,
        "results": results,
    }
    path = run / "evaluation.json"
    path.write_text(json.dumps(evaluation, indent=1))
    width = max(map(len, chance))
    print(f"{'':{width}}  trained  untrained  chance")
    for name, level in chance.items():
        untrained = results["untrained"].get(name)
        shown = "-" if untrained is None else f"{untrained:.3f}"
        print(f"{name:{width}}  {results['trained'][name]:7.3f}  {shown:>9}  {level:6.3f}")
    print(path)
    return path


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if not arguments or "-h" in arguments or "--help" in arguments:
        sys.exit(f"{__doc__}\n{config.describe(TaskConfig)}")
    try:
        main(Path(arguments[0]), config.load(TaskConfig, arguments[1:], required=("train", "test")))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
