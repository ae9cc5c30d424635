"""Plugin files: a Python file of the user's own that is run for its `@register(...)`. Only its own user names it.

A file is read once. Its content is what runs, here and in every worker process, and what its sha256 is of, so a change
on the disk while a run trains changes nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from avssl.files.location import protocol_of
from avssl.files.plain_text import brief

MAX_BYTES = 1 << 20
KEPT_FOLDER = "plugins"  # in the folder of a run: the files that it was made with
Record = dict[str, str]  # {"file", "sha256"} or {"package", "version"}, as config.yaml has it


class PluginError(ValueError):
    """A plugin that is missing, is another one, or failed.

    DataLoader raises an error of a worker anew, with the whole traceback as its text: of that the message is kept.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.rpartition("PluginError: ")[2].rstrip())


@dataclass(frozen=True)
class PluginFile:
    """A file of the user's own: its absolute path, and its content when it was read."""

    path: str
    content: bytes

    @property
    def name(self) -> str:
        """The file's name, by which runs know it."""
        return Path(self.path).name

    @property
    def module(self) -> str:
        """The name of its module in this process and in its workers."""
        return "avssl_plugin_" + re.sub(r"\W", "_", Path(self.path).stem)

    @cached_property
    def sha256(self) -> str:
        """Hex sha256 of the content."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def record(self) -> Record:
        """What config.yaml says about it."""
        return {"file": self.name, "sha256": self.sha256}


@dataclass(frozen=True)
class _Running:
    """A plugin while it runs, and what undoes that which it has registered so far."""

    record: Record
    modules: frozenset[str]  # that were imported before
    undo: list[tuple[str, Callable[[], None]]]  # the module that has registered a part, and what takes it back


_files: dict[str, PluginFile] = {}  # those that were run in this process, by the names of their modules
_running: list[_Running] = []


def ran() -> list[PluginFile]:
    """The files that were run in this process, in their order."""
    return list(_files.values())


def run_files(paths: Iterable[str | os.PathLike[str]]) -> list[Record]:
    """Run each file unless this process has run the same content already; their records.

    Raises PluginError for a URL, for what is no Python file, for two files of one name, and for a file that raises.
    """
    plugins = [read(path) for path in paths]
    modules: dict[str, str] = {}
    for plugin in plugins:
        if modules.setdefault(plugin.module, plugin.path) != plugin.path:
            raise PluginError(
                f"{plugin.path} and {modules[plugin.module]} have the same name, by which a run knows its plugins; "
                "rename one of them"
            )
    for plugin in plugins:
        run(plugin)
    return [plugin.record for plugin in plugins]


def read(path: str | os.PathLike[str]) -> PluginFile:
    """A plugin file that was read and not run."""
    text = os.fspath(path)
    if protocol_of(text):
        raise PluginError(f"{brief(text)}: a plugin is not fetched; download it, read it, and name the local file")
    file = path_of(text)
    if not file.is_file():
        raise PluginError(f"plugin {brief(text)}: there is no such file; name a Python file of your own")
    if file.suffix != ".py":
        raise PluginError(f"plugin {brief(text)}: its name does not end in .py; a plugin is one Python file")
    if file.stat().st_size > MAX_BYTES:
        raise PluginError(f"plugin {brief(text)}: has {file.stat().st_size} bytes; a plugin has at most {MAX_BYTES}")
    return PluginFile(str(file), file.read_bytes())


def path_of(text: str) -> Path:
    """The absolute path of a plugin file as the user writes it."""
    return Path(text.removeprefix("file://")).expanduser().absolute()


def run(plugin: PluginFile) -> None:
    """Run a file as a module of its own. A newer content of a file replaces what the older one registered."""
    known = _files.get(plugin.module)
    if known == plugin:
        return
    if known is not None and known.path != plugin.path and known.content != plugin.content:
        raise PluginError(
            f"plugin {plugin.path}: this process has run {known.path}, which has the same name; rename one"
        )
    module = ModuleType(plugin.module)
    module.__file__ = plugin.path
    before = sys.modules.get(plugin.module)
    sys.modules[plugin.module] = module  # dataclasses and pickle look a class's module up there
    try:
        with running(plugin.record):
            exec(compile(plugin.content, plugin.path, "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        sys.modules.pop(plugin.module, None)
        if before is not None:
            sys.modules[plugin.module] = before
        raise failed(f"plugin {plugin.path}", error, plugin.path) from error
    _files[plugin.module] = plugin


@contextmanager
def running(record: Record) -> Iterator[None]:
    """A context in which what is registered belongs to this plugin. Of one that fails nothing stays."""
    _running.append(_Running(record, frozenset(sys.modules), []))
    try:
        yield
    except BaseException:
        for module, undo in reversed(_running[-1].undo):
            undo()
            if module not in _running[-1].modules:
                sys.modules.pop(module, None)  # when it is imported again, it registers again
        raise
    finally:
        _running.pop()


def now_running() -> Record | None:
    """The plugin that is being run; None outside of one."""
    return _running[-1].record if _running else None


def on_failure(module: str, undo: Callable[[], None]) -> None:
    """Call `undo` if the plugin that is being run fails; module: which registered the part that is taken back then."""
    if _running:
        _running[-1].undo.append((module, undo))


def failed(what: str, error: BaseException, path: str) -> PluginError:
    """The error for a plugin that raised, with the line of the file `path` at which it did."""
    line = error.lineno if isinstance(error, SyntaxError) else _line(error, [path])[1]
    place = f", line {line}" if line else ""
    if isinstance(error, SyntaxError):
        return PluginError(f"{what}{place}: {type(error).__name__}: {error.msg}")
    return PluginError(f"{what}{place}: {type(error).__name__}: {error}")


def place(error: BaseException) -> str:
    """ "FILE, line N": where in a plugin an error was raised; "" if it was raised elsewhere."""
    path, line = _line(error, [plugin.path for plugin in ran()])
    return f"{path}, line {line}" if line else ""


def _line(error: BaseException, paths: list[str]) -> tuple[str, int]:
    """The innermost place of an error in one of the files: (path, line), ("", 0) if it is in none."""
    frames = traceback.extract_tb(error.__traceback__)
    return next(((f.filename, f.lineno or 0) for f in reversed(frames) if f.filename in paths), ("", 0))


class Carried:
    """The files that this process has run; unpickled in another process, they are run there.

    A worker process gets this first, because what it gets next may need what they define.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _run_carried, (tuple(ran()),)


def _run_carried(plugins: tuple[PluginFile, ...]) -> Carried:
    for plugin in plugins:
        run(plugin)
    return Carried()
