"""The table of one kind of part, by name: losses, encoders, augments and evaluation tasks all behave alike.

A name that is taken is an error; an unknown name is one that suggests the nearest. A name that is not there is first
looked for in the program's own files and then in installed packages that have an entry point in the group
`avssl.plugins`:

    [project.entry-points."avssl.plugins"]
    mine = "my_package.losses"        # a module; importing it registers

Such packages are imported when a name is looked up that nothing else has registered. They are trusted as all installed
software is: installing one is the decision to run it.
"""

from __future__ import annotations

import difflib
import logging
import traceback
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from avssl.plugins.files import PluginError, Record, now_running, on_failure, running

logger = logging.getLogger("avssl")
GROUP = "avssl.plugins"
_has_imported = False  # the installed packages
_of_script: set[str] = set()  # names of parts that the main program itself has registered
Part = TypeVar("Part")


class UnknownNameError(ValueError, KeyError):
    """A name that no registered part has."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show its repr


class Registry(dict[str, Part]):
    """{name: part} of everything that was registered so far; `find` and `names` also look for more.

    Args:
        kind: what a part is called in messages, such as "loss".
        import_own: imports the program's own parts of this kind, at the first look-up that needs it.
        others: names that stand for more than can be listed, for messages.

    >>> heads = Registry("head")
    >>> heads.add("linear", torch.nn.Linear, torch.nn.Linear)
    >>> "linear" in heads.names(), heads.find("linear").__name__
    (True, 'Linear')
    """

    def __init__(self, kind: str, import_own: Callable[[], object] = lambda: None, others: str = "") -> None:
        super().__init__()
        self.kind, self._import_own, self._others = kind, import_own, others
        self._defined: dict[str, tuple[str, str]] = {}  # where the object of a name is defined: module and name there
        self._plugins: dict[str, Record | None] = {}

    def add(self, name: str, part: Part, definition: object) -> None:
        """Register a part under a name. definition: the class or function that the user wrote.

        The same definition may come again, as when a cell of a notebook runs twice. ValueError for a taken name.
        """
        if not isinstance(name, str) or not name:
            raise TypeError(f"a {self.kind} is registered under a name, a text that is not empty; given {name!r}")
        where = getattr(definition, "__module__", ""), getattr(definition, "__qualname__", "")
        is_own = where[0].startswith("avssl.")
        if not is_own:
            self._import_own()  # their names are taken, even if nobody has looked one up
        if name in self and self._defined.get(name) != where:
            raise ValueError(
                f"the {self.kind} name {name!r} is taken by {'.'.join(self._defined.get(name, ('another',)))}; choose "
                "another name"
            )
        if not is_own:  # the program's own parts stay: their files are imported once, whoever was the first
            before = self.get(name), self._defined.get(name), self._plugins.get(name)
            on_failure(where[0], partial(self._put_back, name, *before))
        self[name], self._defined[name] = part, where
        if where[0] == "__main__" and self.kind == "augment":  # workers need no other part
            _of_script.add(name)
        # A plugin may be the first to import one of the program's own parts.
        self._plugins[name] = None if is_own else now_running()

    def _put_back(self, name: str, part: Part | None, defined: tuple[str, str] | None, plugin: Record | None) -> None:
        """Let a name stand for what it stood for before a plugin failed; for nothing if part is None."""
        del self[name], self._defined[name], self._plugins[name]
        if part is not None and defined is not None:
            self[name], self._defined[name], self._plugins[name] = part, defined, plugin

    def find(self, name: str) -> Part:
        """The part of a name. UnknownNameError, a ValueError and a KeyError, names the nearest and all others."""
        if not self.knows(name):
            near = difflib.get_close_matches(name, self, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            names = ", ".join([*sorted(self), *filter(None, [self._others])])
            raise UnknownNameError(
                f"no {self.kind} is called {name!r}.{hint} There are: {names}. One of your own comes with --plugin FILE"
            )
        return self[name]

    def knows(self, name: str) -> bool:
        """Whether a part of this name can be found."""
        for look in (self._import_own, import_packages):
            if name in self:
                break
            look()
        return name in self

    def names(self) -> list[str]:
        """The names of all parts, sorted: the program's, those of installed packages and those that were registered.

        A package that fails is a warning: a list, as in --help, must not break because of it.
        """
        self._import_own()
        try:
            import_packages()
        except PluginError as error:
            logger.warning("%s", error)
        return sorted(self)

    def plugin_of(self, name: str) -> Record | None:
        """The plugin that registered this part; None for the program's own and those of the calling script."""
        return self._plugins.get(name) if name in self else None


def has_parts_of_script() -> bool:
    """Whether the main program, a script or notebook, has registered parts itself: its workers then need its file."""
    return bool(_of_script)


def import_packages() -> None:
    """Import every installed plugin package, once. PluginError names the one that fails, with file and line."""
    global _has_imported  # noqa: PLW0603  (installed packages are one state of the process)
    if _has_imported:
        return
    from importlib import metadata  # here: it takes as long as all that `--help` needs

    _has_imported = True  # a package that looks up a name meanwhile does not begin anew
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda point: (point.value, point.name)):
        if point.dist is None:
            continue
        record = {"package": point.dist.name, "version": point.dist.version}
        try:
            with running(record):
                point.load()
        except Exception as error:
            _has_imported = False
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise PluginError(
                f"the installed plugin package {point.dist.name} {point.dist.version} ({point.name} = {point.value}) "
                f"failed: {last.filename}, line {last.lineno}: {type(error).__name__}: {error}. Repair it or "
                "uninstall it"
            ) from error
