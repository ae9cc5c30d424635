"""Evaluate a finished run by one of several protocols, beside untrained weights and chance.

    python recipes/evaluate.py RUN TASK.yaml [key=value ...]
    python recipes/evaluate.py runs/avid_cma recipes/configs/evaluate/svm_esc50.yaml train=shards/esc50
    torchrun --nproc_per_node 4 recipes/evaluate.py RUN TASK.yaml device=cuda ...
    python recipes/evaluate.py --compare A.json B.json [weights=trained,trained] [draws=1000] [confidence=0.95] [seed=0]
    python recipes/evaluate.py --help [TASK]

`task:` in the YAML says which protocol: `standard` (the default: weighted kNN of what the run has encoders for,
audio <-> video retrieval and precision of positives; RUN/evaluation.json, its rows beside it, and the embeddings of
both splits below RUN/embeddings/), or one of avssl/eval/tasks, which write RUN/evaluations/<task>-<name>.json.
--compare prints the differences of two results with confidence intervals. docs/evaluation.md has them all.

A sample that cannot be read is an error: a smaller test set would be another test set.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from avssl import checkpoint, config, distributed
from avssl.embedding.embed_shards import embed_split
from avssl.embedding.embedder import Embedder
from avssl.eval import compare, overlap, results, tasks
from avssl.eval.outcome import TaskConfig as AnyTaskConfig
from avssl.eval.tasks.standard import StandardConfig, evaluate_tables
from avssl.files.disk_errors import one_line
from avssl.files.plain_text import run_in_utf8, say, say_lines
from avssl.losses.avid_cma import positive_set
from avssl.shards.shard_set import ShardSet

BANKS = ("loss.banks.video.rows", "loss.banks.audio.rows")
AGREEMENTS = ("consensus", "union", "video", "audio")


def positive_sets(run: Path, num_positives: int) -> dict[str, torch.Tensor]:
    """What CMA would take as positives now, for every kind of agreement; empty for runs without the two banks."""
    weights = checkpoint.read_weights(run)
    if not all(name in weights for name in BANKS):
        return {}
    video, audio = (weights[name] for name in BANKS)
    return {agreement: positive_set(video, audio, num_positives, agreement) for agreement in AGREEMENTS}


def main(run: Path, task: StandardConfig) -> Path:
    """The task `standard`. Every process of torchrun comes here; the first one writes."""
    stored = checkpoint.read_weights(run)  # says what is missing
    if ShardSet(task.train).fingerprint == ShardSet(task.test).fingerprint:
        raise ValueError(
            f"train={task.train} and test={task.test} hold the same clips; the kNN would find each clip itself"
        )
    found_overlap = checked_overlap(run, task)
    is_first = distributed.rank() == 0
    has_positives = ShardSet(task.train).fingerprint == checkpoint.read_provenance(run)["data"]["fingerprint"]
    if is_first and not has_positives and all(name in stored for name in BANKS):
        say(f"no precision of positives: {run} was not trained on {task.train}, whose labels are known")
    reading = {"window_seconds": task.window_seconds or None, "batch_size": task.batch_size}
    outcomes, hashes, inputs = {}, {}, {}
    for weights in ("trained", "untrained"):
        embedder = Embedder.from_run(run, device=task.device, untrained=weights == "untrained")
        train, test = (
            embed_split(embedder, split, num_workers=task.num_workers, **reading) for split in (task.train, task.test)
        )
        positives = positive_sets(run, task.num_positives) if weights == "trained" and has_positives else {}
        outcomes[weights] = evaluate_tables(train, test, task, positives)
        hashes[weights], inputs = embedder.weights_hash, inputs_of(embedder)
        if is_first and weights == "trained":
            for split, table in (("train", train), ("test", test)):
                table.write(run / "embeddings" / f"{split}.parquet")
    evaluation = results.evaluation_of(outcomes, task, run.name, hashes, inputs) | {"overlap": found_overlap}
    if not is_first:
        return run / "evaluation.json"
    if not any("_knn_" in name for name in evaluation["chance"]):
        fields = f"{train.label_fields() or 'none'} in {task.train}, {test.label_fields() or 'none'} in {task.test}"
        say(f"no kNN: it needs a label field that both splits have; there are {fields}")
    path = results.write(run, outcomes, evaluation, "evaluation")
    say_lines(results.table(evaluation))
    say(path)
    return path


def checked_overlap(run: Path, task: AnyTaskConfig | StandardConfig) -> dict[str, Any]:
    """How many test samples were trained on. Before hours of work; ValueError unless the task allows any."""
    if not task.train and not task.test:
        return {"by_run": "unknown", "tests": []}  # the task itself says what is missing
    found = overlap.measure_overlap(run, list(overlap.data_folders(task)))
    overlap.refuse_overlap(found, allowed=task.allow_overlap)
    if distributed.rank() == 0:
        for line in overlap.describe_overlap(found):
            say(f"note: {line}", sys.stderr)
    return found


def inputs_of(embedder: Embedder) -> dict[str, Any]:
    """What the networks see, by the run's own configuration."""
    views = asdict(embedder.config.views)
    return {modality: views[modality] for modality in embedder.modalities}


def evaluate(run: Path, task: AnyTaskConfig) -> Path:
    """A task of avssl/eval/tasks, with the run's weights and with random ones. Every process of torchrun comes here."""
    checkpoint.read_weights(run)  # says what is missing
    found_overlap = checked_overlap(run, task)
    folder = run / "evaluations"
    task.folder = task.folder or str(folder / results.stem_of(task.task, task.name))
    outcomes, hashes, inputs = {}, {}, {}
    for weights in ("trained", "untrained") if task.untrained else ("trained",):
        embedder = Embedder.from_run(run, device=task.device, untrained=weights == "untrained")
        outcomes[weights] = tasks.get(task.task).run(embedder, task)
        hashes[weights] = embedder.weights_hash
        inputs = inputs_of(embedder)
    evaluation = results.evaluation_of(outcomes, task, run.name, hashes, inputs) | {"overlap": found_overlap}
    if distributed.rank() > 0:
        return folder
    path = results.write(folder, outcomes, evaluation)
    say_lines(results.table(evaluation))
    say(path)
    return path


def load_task(arguments: list[str]) -> AnyTaskConfig:
    """The configuration of a task other than `standard`; its name is by default that of the YAML."""
    kind = tasks.get(config.value_of(arguments, "task", "standard"))
    task = config.load(kind.Config, [*arguments, f"task={kind.name}"])
    files = [Path(argument).stem for argument in arguments if Path(argument).is_file()]
    task.name = task.name or next((stem.removeprefix(kind.name).strip("_") for stem in reversed(files)), "")
    if "/" in task.name:
        raise ValueError(f"name is {task.name!r}; it becomes part of a file's name and must have no slash")
    own_device(task)
    return task


def own_device(task: AnyTaskConfig | StandardConfig) -> None:
    """Under torchrun each process has a GPU of its own."""
    if task.device == "cuda" and distributed.is_active():
        task.device = str(PartialState().device)


def start(run: Path, arguments: list[str]) -> None:
    """The task that the arguments name, on a run."""
    PartialState(cpu=config.value_of(arguments, "device", "cpu") == "cpu")  # the process group of torchrun
    if config.value_of(arguments, "task", "standard") != "standard":
        evaluate(run, load_task(arguments))
        return
    task = config.load(StandardConfig, arguments, required=("train", "test"))
    own_device(task)
    main(run, task)


def compare_files(arguments: list[str]) -> None:
    """Print the differences of two result files."""
    files = [argument for argument in arguments if "=" not in argument]
    options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    unknown = options.keys() - {"weights", "draws", "confidence", "seed"}
    if len(files) != 2 or unknown:
        raise ValueError(f"--compare takes two result files and weights, draws, confidence, seed; given: {arguments}")
    weights = options.get("weights", "trained,trained").split(",")
    if len(weights) != 2:
        raise ValueError(f"weights is {options['weights']!r}; name two, for example weights=trained,untrained")
    confidence = float(options.get("confidence", 0.95))
    differences = compare.compare(
        files[0],
        files[1],
        weights=(weights[0], weights[1]),
        num_draws=int(options.get("draws", 1000)),
        confidence=confidence,
        seed=int(options.get("seed", 0)),
    )
    say(f"first: {files[0]} ({weights[0]})")
    say(f"second: {files[1]} ({weights[1]})")
    say_lines(compare.comparison_table(differences, confidence))


def usage(arguments: list[str]) -> str:
    """The text above, and the keys of a task; of `standard` if none is named."""
    asked = [argument for argument in arguments if argument not in ("-h", "--help") and not Path(argument).is_dir()]
    is_name = len(asked) == 1 and "=" not in asked[0] and not Path(asked[0]).is_file()
    name = asked[0] if is_name else config.value_of(asked, "task", "standard")
    schema = StandardConfig if name == "standard" else tasks.get(name).Config
    listed = ", ".join(["standard", *tasks.names()])
    return f"{__doc__}\nTasks: {listed}\n\n{name}:\n{config.describe(schema)}"


if __name__ == "__main__":
    run_in_utf8()
    given = sys.argv[1:]
    try:
        if not given or "-h" in given or "--help" in given:
            say_lines(usage(given))
            sys.exit(0 if given else 2)
        if given[0].startswith(checkpoint.HUB_SCHEME):
            raise ValueError(f"{given[0]}: results go below RUN, which must be a folder here")
        if "--compare" in given:
            compare_files([argument for argument in given if argument != "--compare"])
        else:
            start(Path(given[0]), given[1:])
    except (OSError, FloatingPointError, ImportError, ValueError) as error:
        say(f"error: {one_line(error)}", sys.stderr)
        sys.exit(1)
