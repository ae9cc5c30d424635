"""The programs as Python calls: `avssl.prepare`, `avssl.pretrain`, `avssl.evaluate`. A command and its call are one.

Errors are exceptions. Keywords are the keys of a command; dotted ones are given as **{"optim.lr": 1e-3}.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from avssl.processes.stopping import STOP_SIGNALS
from avssl.recipe_files import replace_names


@dataclass(frozen=True)
class Pretrained:
    """A run after `pretrain`: its folder, its log, the optimizer steps that it has made, and whether these are all."""

    run: Path
    metrics: Path
    steps: int
    is_finished: bool


def pretrain(recipe: str, data: Any, out: str, changes: dict[str, Any]) -> Pretrained:
    """What `avssl pretrain RECIPE data.shards=DATA run=OUT key=value ...` does."""
    from avssl import checkpoint, config

    program = import_module("avssl.recipes.pretrain")  # by name, as the command finds it
    given = {"data.shards": data, **({"run": out} if out else {}), **changes}
    arguments = config.run_plugins([*replace_names([recipe]), *arguments_of(given)])
    cfg = config.parse(config.RunConfig, arguments)
    config.require(cfg, *config.REQUIRED)
    program.name_run(cfg, arguments)
    with own_run():
        program.main(cfg)
    run = Path(cfg.run)
    saved = checkpoint.checkpoints(run)  # none after a stop before the first step
    steps = int(saved[-1].name.partition("_")[2]) if saved else 0
    provenance = run / checkpoint.PROVENANCE_FILE
    is_finished = provenance.is_file() and checkpoint.read_provenance(run).get("steps") == steps
    return Pretrained(run, run / "metrics.jsonl", steps, is_finished)


def evaluate(run: str, task: str, changes: dict[str, Any]) -> dict[str, Any]:
    """What `avssl evaluate RUN TASK key=value ...` does; the content of the result's file."""
    from avssl import config
    from avssl.eval.results import read_evaluation

    program = import_module("avssl.recipes.evaluate")
    with own_run():
        path = program.start(run, program.task_arguments([task, *arguments_of(changes)]), config.parse)
    return dict(read_evaluation(path))


def arguments_of(changes: Mapping[str, Any]) -> list[str]:
    """{dotted key: value} as changes of a command line. ConfigError for a value that YAML has no text for."""
    from avssl import config

    try:
        return [f"{key}={json.dumps(value, default=os.fspath, ensure_ascii=False)}" for key, value in changes.items()]
    except (TypeError, ValueError) as error:
        raise config.ConfigError(f"changes: {error}; values are numbers, texts, paths, lists and mappings") from error


@contextmanager
def own_run() -> Iterator[None]:
    """A context after which the process is as before a run: Accelerate's state, signals, processes, threads, locks.

    Several runs can follow each other in one process, for example in a notebook.
    """
    import torch

    from avssl.processes.peers import unwatch_processes
    from avssl.train.run_folder import release_run

    num_threads = torch.get_num_threads()
    is_main_thread = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGALRM)}
    children = set(multiprocessing.active_children())
    timer_seconds, interval_seconds = signal.getitimer(signal.ITIMER_REAL)
    began = time.monotonic()
    states = _forget_accelerate()
    try:
        yield
    finally:
        unwatch_processes()
        for process in set(multiprocessing.active_children()) - children:
            if process.daemon:
                process.kill()
        release_run()
        if is_main_thread:  # elsewhere none was set
            for number, handler in handlers.items():
                signal.signal(number, handler)
            left_seconds = max(1e-3, timer_seconds - (time.monotonic() - began)) if timer_seconds else 0.0
            signal.setitimer(signal.ITIMER_REAL, left_seconds, interval_seconds)
        torch.set_num_threads(num_threads)
        _forget_accelerate()
        for kind, state in states:
            kind._shared_state.update(state)


def _forget_accelerate() -> list[tuple[Any, dict[str, Any]]]:
    """Let the next Accelerator of this process have other settings; under torchrun the group of processes stays.

    Returns (class, its state until now), which the caller of a run puts back.
    """
    from accelerate.state import AcceleratorState, GradientState, PartialState

    kinds = (AcceleratorState, PartialState, GradientState)
    states = [(kind, dict(kind._shared_state)) for kind in kinds]
    for kind in kinds:
        kind._shared_state.clear()
    return states
