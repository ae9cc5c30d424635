"""The table of evaluation tasks: the files of avssl/eval/tasks and those of the user's own, by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from avssl.eval.configs import TaskConfig
from avssl.eval.outcome import Outcome
from avssl.plugins.registry import Registry

Function = TypeVar("Function", bound=Callable[[Any, Any], Outcome])


class Task(NamedTuple):
    """An evaluation task: its name, its configuration, and its function (embedder, config) -> Outcome."""

    name: str
    Config: type[TaskConfig]
    run: Callable[[Any, Any], Outcome]


def _import_tasks() -> None:
    """Import every file of avssl/eval/tasks, each of which registers its task."""
    folder = importlib.import_module("avssl.eval.tasks")
    for module in pkgutil.iter_modules(folder.__path__):
        importlib.import_module(f"{folder.__name__}.{module.name}")


TASKS: Registry[Task] = Registry("task", _import_tasks)
plugin_of = TASKS.plugin_of


def register_task(name: str, config: type[TaskConfig] = TaskConfig) -> Callable[[Function], Function]:
    """Decorator: `@register_task("knn", Config)` makes a function (embedder, config) -> Outcome reachable by its name.

    avssl/eval/tasks/__init__.py has the contract of the function. config: TaskConfig, LabelTaskConfig or a dataclass
    that is a subclass of one of them; its fields are the keys of the task. ValueError for a taken name.

    >>> from avssl.eval import Metric, Repeat
    >>> @register_task("number_of_runs")
    ... def number_of_runs(embedder, config):
    ...     return Outcome([Repeat("", ["run"], {"count": np.ones(1)}, {"count": Metric("mean", ("count",))})])
    >>> get("number_of_runs").run(None, TaskConfig()).repeats[0].values()
    {'count': 1.0}
    """
    if not issubclass(config, TaskConfig):
        raise ValueError(f"task {name!r}: its configuration {config.__name__} is no subclass of TaskConfig")

    def add(function: Function) -> Function:
        TASKS.add(name, Task(name, config, function), function)
        return function

    return add


def names() -> list[str]:
    """All registered names, sorted. Imports every file of avssl/eval/tasks once, and the installed plugin packages."""
    return TASKS.names()


def get(name: str) -> Task:
    """The task of a name; UnknownNameError, a ValueError, with the allowed names and the nearest one otherwise."""
    return TASKS.find(name)
