"""Evaluate a run by a task, and compare it with untrained weights and chance.

    avssl evaluate RUN TASK.yaml [key=value ...]
    avssl evaluate runs/avid_cma svm_esc50 train=shards/esc50
    avssl evaluate runs/avid_cma svm_esc50 train=shards/esc50 --checkpoint latest    # or a step; of a stopped run, too
    avssl evaluate hf/facebook/dinov2-small TASK.yaml out=results/dinov2 [model.views.video.fps=2] ...
    torchrun --nproc_per_node 4 -m avssl.recipes.evaluate RUN TASK.yaml device=cuda ...
    avssl evaluate --compare A.json B.json [weights=trained,trained] [draws=1000] [confidence=0.95] [seed=0]
    avssl evaluate --help [TASK]

`task:` in the YAML names one of avssl/eval/tasks; its result is RUN/evaluations/<task>-<name>.json. The default is
`standard`: weighted kNN of every modality of the run, audio <-> video retrieval and precision of positives. Its result
is RUN/evaluation.json, and the embeddings of both splits lie below RUN/embeddings/.
`--plugin my_task.py` runs a file of your own first, with a task or what the run was made with (docs/plugins.md).
--compare prints the differences of two results with confidence intervals. docs/evaluation.md describes all tasks.

A sample that cannot be read is an error: a smaller test set would be another test set.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avssl import config
from avssl.errors import end_now, one_line_errors
from avssl.eval.configs import CONFIGURATIONS
from avssl.files.plain_text import begin_command, brief, emit, say, say_lines
from avssl.help_text import describe
from avssl.plugins import required
from avssl.plugins.registry import GROUP
from avssl.processes.slurm import take_ranks_of_slurm
from avssl.recipe_files import replace_names
from avssl.types import HUB_SCHEME, PUBLIC_PREFIXES

# What is heavy is imported in the functions, so that --help comes at once.
if TYPE_CHECKING:
    from avssl.eval.configs import TaskConfig

OUT, MODEL = "out=", "model."  # arguments for public models: the folder of results, and changes of how it embeds


def checked_overlap(run: Path, task: TaskConfig) -> dict[str, Any]:
    """The overlap of test and training samples, measured before hours of work. ValueError unless the task allows it."""
    from avssl import distributed
    from avssl.eval import overlap
    from avssl.eval.configs import LabelTaskConfig

    if not task.train and not task.test:
        return {"by_run": "unknown", "tests": []}  # the error of the task says what is missing
    fold_field = task.fold_field if isinstance(task, LabelTaskConfig) else ""
    measured = overlap.measure_overlap(run, list(overlap.data_folders(task)), fold_field)
    overlap.refuse_overlap(measured, allowed=task.allow_overlap)
    if distributed.rank() == 0:
        for line in (*overlap.describe_overlap(measured), *overlap.describe_parts(measured)):
            say(f"note: {line}", sys.stderr)
    return measured


def evaluate(run: Path, task: TaskConfig) -> Path:
    """Evaluate a run by a task, with the run's weights and with random ones; the path of the result.

    Every process of torchrun comes here; the first one writes.
    """
    from avssl import checkpoint, distributed
    from avssl.embedding.embedder import Embedder, inputs_of
    from avssl.eval import overlap, results, tasks
    from avssl.eval.configs import LabelTaskConfig
    from avssl.losses import registry

    if task.checkpoint:  # settled once: the run may go on meanwhile
        task.checkpoint = distributed.from_first_rank(lambda: checkpoint.at_step(run, task.checkpoint).name[5:], 600.0)
    elif config.load_run(run).loss.name != registry.PUBLIC_MODEL:
        checkpoint.read_weights(run)  # its error says what is missing
    measured_overlap = checked_overlap(run, task)
    path = results.result_path(run, task)
    if isinstance(task, LabelTaskConfig):
        task.folder = task.folder or str(path.with_suffix(""))
    outcomes, hashes, inputs = {}, {}, {}
    for weights in ("trained", "untrained") if task.untrained else ("trained",):
        embedder = Embedder.from_run(
            run, device=task.device, untrained=weights == "untrained", checkpoint_name=task.checkpoint
        )
        outcomes[weights] = overlap.with_sources(tasks.get(task.task).run(embedder, task), task)
        hashes[weights] = embedder.weights_hash
        inputs = inputs_of(embedder.config, embedder.modalities)
    evaluation = results.evaluation_of(outcomes, task, run.name, hashes, inputs) | {"overlap": measured_overlap}
    if task.checkpoint:
        evaluation["checkpoint_step"] = int(task.checkpoint)
    if plugin := tasks.plugin_of(task.task):
        evaluation["protocol"]["plugin"] = plugin  # results of two versions of a task are not compared
    if distributed.rank() > 0:
        return path
    results.write(path.parent, outcomes, evaluation, path.stem)
    say_lines("\n".join([*outcomes["trained"].notes, results.table(evaluation)]))
    say(path)
    emit("result", file=path, **evaluation)
    return path


def task_arguments(arguments: list[str], files: Sequence[str] = (), *, may_differ: bool | None = None) -> list[str]:
    """The arguments with the name of a YAML replaced by its path, and the name of a task by task=NAME.

    The plugin files that are named run first, for they may register tasks. files, may_differ: as of
    `config.run_plugins`.
    """
    from avssl.eval import tasks

    replaced = config.run_plugins(replace_names(arguments, "evaluate/"), files, may_differ=may_differ)
    return [f"task={argument}" if argument in tasks.names() else argument for argument in replaced]


def load_task(arguments: list[str], read: Callable[..., TaskConfig] = config.load) -> TaskConfig:
    """The configuration of the task that the arguments name; its name is by default that of the YAML."""
    from accelerate import PartialState

    from avssl import distributed
    from avssl.eval import tasks
    from avssl.eval.configs import LabelTaskConfig

    kind = tasks.get(config.value_of(arguments, "task", "standard"))
    task = read(kind.Config, [*arguments, f"task={kind.name}"])
    if isinstance(task, LabelTaskConfig):
        files = [Path(argument).stem for argument in arguments if Path(argument).is_file()]
        task.name = task.name or next((stem.removeprefix(kind.name).strip("_") for stem in reversed(files)), "")
    if "/" in task.name:
        raise ValueError(f"name is {task.name!r}; it becomes part of a file's name and must have no slash")
    if task.device == "cuda" and distributed.is_active():
        task.device = str(PartialState().device)  # under torchrun each process has a GPU of its own
    return task


def start(run: str, arguments: list[str], read: Callable[..., TaskConfig] = config.load) -> Path:
    """Evaluate a run, or a public model, by the task that the arguments name; the path of the result.

    read: as config.load.
    """
    from accelerate import PartialState

    from avssl.embedding.public import names_public_model
    from avssl.processes.peers import DEFAULT_LIMIT_SECONDS, unwatch_processes, watch_processes

    PartialState(cpu=config.value_of(arguments, "device", "cpu") == "cpu")  # the process group of torchrun
    watch_processes(DEFAULT_LIMIT_SECONDS, end_now)
    own = [argument for argument in arguments if argument.startswith((OUT, MODEL))]
    arguments = [argument for argument in arguments if argument not in own]
    folder = Path(run)
    if names_public_model(run):
        folder = public_folder(run, own)
    elif own:
        raise ValueError(f"{own[0]} is for public models; results of a run go below its folder")
    path = evaluate(folder, load_task(arguments, read))
    unwatch_processes()
    return path


def public_folder(name: str, arguments: list[str]) -> Path:
    """The folder for the results of a public model, named by out=, with the model's configuration."""
    from avssl import distributed
    from avssl.embedding.public import public_config, write_public_run

    outs = [argument.removeprefix(OUT) for argument in arguments if argument.startswith(OUT)]
    if not outs or not outs[-1]:
        raise ValueError(f"{name} is a public model; add out=FOLDER, where its results go")
    changes = [argument.removeprefix(MODEL) for argument in arguments if argument.startswith(MODEL)]
    folder, problem = Path(outs[-1]), None
    if distributed.rank() == 0:
        try:
            write_public_run(public_config(name, changes), folder)
        except (ValueError, OSError) as error:
            problem = error
    problem = distributed.broadcast_object(problem)
    if problem is not None:
        raise problem
    return folder


def compare_files(arguments: list[str]) -> None:
    """Print the differences of two result files."""
    from avssl.eval import compare

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
    for name, metric in differences.items():
        emit("difference", metric=name, difference=metric.difference, **asdict(metric))
    emit("result", first=files[0], second=files[1], weights=weights, confidence=confidence)


def refuse_what_is_not(run: str, arguments: list[str]) -> None:
    """FileNotFoundError for no run, ConfigError for no file, recipe, task, key or value: before PyTorch is imported."""
    if not run.startswith(PUBLIC_PREFIXES):
        config.load_run(run)
    words = [word for word in replace_names(arguments, "evaluate/") if not word.startswith((OUT, MODEL))]
    for word in words:
        if not (Path(word).is_file() or "=" in word or word.startswith("-") or word in CONFIGURATIONS):
            raise config.ConfigError(
                f"{brief(word)}: no such file, recipe of evaluation (`avssl recipes` lists them) or task "
                f"({', '.join(CONFIGURATIONS)})"
            )
    changes = [f"task={word}" if word in CONFIGURATIONS else word for word in words]
    kind = CONFIGURATIONS.get(config.value_of(changes, "task", "standard"))
    if kind and not config.value_of(changes, "plugins", ""):
        config.load(kind, changes)


def usage(arguments: list[str]) -> str:
    """The text above, and the keys of a task if one is named."""
    named = [argument for argument in arguments if argument not in ("-h", "--help") and not Path(argument).is_dir()]
    if not named:
        return f"{__doc__}\nTasks: {', '.join(CONFIGURATIONS)}; `avssl evaluate --help TASK` prints the keys of one"
    is_name = len(named) == 1 and "=" not in named[0] and not Path(named[0]).is_file()
    name = named[0] if is_name else config.value_of(named, "task", "standard")
    schema = CONFIGURATIONS.get(name)
    if schema is None:  # of a plugin
        from avssl.eval import tasks

        schema = tasks.get(name).Config
    return f"{__doc__}\nTasks: {', '.join(CONFIGURATIONS)}\n\n{name}:\n{describe(schema)}"


def command(arguments: list[str]) -> int:
    """The program: its exit status."""
    arguments = begin_command("evaluate", arguments)
    take_ranks_of_slurm()
    with one_line_errors():
        arguments, files, is_changed = required.take_options(arguments)
        if not arguments or "-h" in arguments or "--help" in arguments:
            say_lines(usage(config.run_plugins(arguments, files, may_differ=is_changed)))
            return 0 if arguments else 2
        if arguments[0].startswith(HUB_SCHEME):
            raise ValueError(f"{arguments[0]}: results go below RUN, which must be a folder here")
        if "--checkpoint" in arguments:
            place = arguments.index("--checkpoint")
            if place + 1 == len(arguments):
                raise ValueError("--checkpoint needs latest or the number of a step")
            arguments = [*arguments[:place], *arguments[place + 2 :], f"checkpoint={arguments[place + 1]}"]
        if "--compare" in arguments:
            compare_files([argument for argument in arguments if argument != "--compare"])
        else:
            if not files and not entry_points(group=GROUP):  # which may register what the run or the task needs
                refuse_what_is_not(arguments[0], arguments[1:])
            start(arguments[0], task_arguments(arguments[1:], files, may_differ=is_changed))
    return 0


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
