"""The protocols of recipes/evaluate.py: one file per task in this folder, found by name. `register` adds your own.

A task is a configuration and a function. The door calls the function once with the run's weights and once with random
ones, averages over repeats (folds, seeds), and writes RUN/evaluations/<task>-<name>.json with everything around it:

    @dataclass
    class Config(LabelTaskConfig):              # avssl/eval/outcome.py: the keys of tasks on labels
        num_neighbors: int = 20                 # keys of the YAML; unknown ones are refused

    @register("knn", Config)
    def knn(embedder: Embedder, config: Config) -> Outcome: ...

What the function gets. `embedder` (avssl/embedding/embedder.py) has the networks of the run in eval mode on its device:
`embedder.encoders` and `.projectors` {modality: module}, `.views` (raw views -> tensors), `.config` (the run's),
`.modalities`, `.device`, `.weights_hash`. It belongs to the caller: a task that trains takes copy.deepcopy of what it
changes. The function runs in every process of torchrun alike; what it reads it shares out (avssl/eval/features.py does,
and avssl.distributed has the collectives), and every process returns the same Outcome. Only the first one writes.

What it gives back. An `Outcome`: one `Repeat` per fold or seed, each with the keys of the test rows, arrays of what was
measured of each row, and `Metric`s that are computed from those arrays and nothing else. So a comparison can resample
rows and compute the same number again. For classification `classified(...)` in outcome.py makes a Repeat from scores
and targets. `Outcome.protocol` says what the configuration does not: sizes, layers, what is frozen, which rows were
left out and why. The door adds the configuration, the sample lists' hashes, versions, the commit and the weights' hash.

Bad input is a ValueError that says what was given, what is allowed and what to do; a sample that cannot be read is an
error, for a smaller test set would be another test set.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from avssl.eval.outcome import Outcome, TaskConfig

__all__ = ["Task", "get", "names", "register"]


class Task(NamedTuple):
    """A protocol: its name, its configuration, and its function (embedder, config) -> Outcome."""

    name: str
    Config: type[TaskConfig]
    run: Callable[[Any, Any], Outcome]


_REGISTRY: dict[str, Task] = {}


def register(name: str, config: type[TaskConfig]) -> Callable[[Callable[[Any, Any], Outcome]], Any]:
    """Decorator: `@register("knn", Config)` makes a function reachable as `task: knn`. A taken name is an error."""

    def add(function: Callable[[Any, Any], Outcome]) -> Callable[[Any, Any], Outcome]:
        known = _REGISTRY.get(name)
        if known is not None and known.run.__module__ != function.__module__:
            raise ValueError(f"task name {name!r} is taken by {known.run.__module__}")
        _REGISTRY[name] = Task(name, config, function)
        return function

    return add


def names() -> list[str]:
    """All registered names, sorted. Imports every file of the folder once."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return sorted(_REGISTRY)


def get(name: str) -> Task:
    """The task of a name; ValueError with the allowed names and the nearest one otherwise."""
    if name not in _REGISTRY and name not in names():
        near = difflib.get_close_matches(name, _REGISTRY, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no task is called {name!r}.{hint} There are: {', '.join(sorted(_REGISTRY))}")
    return _REGISTRY[name]
