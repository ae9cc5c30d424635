"""What a run was made with against what is there: plugins are compared by name and content. Nothing is run here."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from avssl.files.plain_text import PlainParser, brief
from avssl.plugins.files import PluginError, Record, path_of, ran, run_files

logger = logging.getLogger("avssl")
KEYS = (["file", "sha256"], ["package", "version"])
_may_differ = False  # whether the user has said that changed plugins are right


def use(paths: Iterable[Any], *, may_differ: bool | None = None) -> list[Record]:
    """Run the user's plugin files, as `run_files`; their records.

    may_differ: whether from now on these files may stand for others of the same name that a run was made with; None:
    as before.
    """
    global _may_differ  # noqa: PLW0603  (plugins are one state of the process)
    if may_differ is not None:
        _may_differ = may_differ
    return run_files(paths)


def may_differ() -> bool:
    """Whether a changed plugin is no error."""
    return _may_differ


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --plugin and --plugin-changed to the parser of a command that opens runs."""
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE",
        help="a Python file of your own to run first: losses, encoders, transforms, tasks (docs/plugins.md); may be "
        "given several times",
    )
    parser.add_argument(
        "--plugin-changed",
        action="store_true",
        help="take the given plugins although the run was made with other contents of them",
    )


def take_options(arguments: Sequence[str]) -> tuple[list[str], list[str], bool]:
    """(the other arguments, the files of --plugin, whether --plugin-changed is given)."""
    parser = PlainParser(add_help=False, allow_abbrev=False, usage="... [--plugin FILE] [--plugin-changed]")
    add_options(parser)
    options, rest = parser.parse_known_args(arguments)
    return rest, options.plugin, options.plugin_changed


def require(entries: object, where: str) -> list[Record]:
    """The records of the plugins that a configuration names: a file as text, or a record of an earlier run.

    Raises PluginError that names all plugins that were not run or are not installed, and those of another content than
    that of the record (unless the user said that it may differ); and for anything that is neither.
    """
    if not isinstance(entries, list | tuple):
        raise PluginError(f"{where}: plugins is {brief(entries)}; it must be a list of files, such as [my_loss.py]")
    found: list[Record] = []
    missing, changed = [], []
    for entry in entries:
        record = {"file": entry} if isinstance(entry, str) else _checked(entry, where)
        here = _here(record)
        if here is None:
            missing.append(record)
        elif here.get("sha256") != record.get("sha256", here.get("sha256")) and not _may_differ:
            changed.append(f"{described([record])}; given is {described([here])}")
        else:
            found.append(here)
    if missing:
        steps = [f"install {record['package']}" for record in missing if "package" in record]
        if options := " ".join(f"--plugin {record['file']}" for record in missing if "file" in record):
            steps.append(f"add {options} (in Python plugins=[...])")
        raise PluginError(
            f"{where} needs {described(missing)}: {' and '.join(steps)}. A run that is opened runs no file"
        )
    if changed:
        raise PluginError(
            f"{where} was made with {' and with '.join(changed)}. Give the file that it was made with, or add "
            "--plugin-changed to take the given one all the same"
        )
    return found


def _checked(entry: object, where: str) -> Record:
    """A record as a run writes it."""
    is_text = isinstance(entry, dict) and all(isinstance(value, str) and value for value in entry.values())
    if not is_text or sorted(entry) not in KEYS:  # type: ignore[call-overload]
        raise PluginError(
            f"{where}: plugins has {brief(entry)}; each must be the path of a file, or what a run writes: "
            "{file, sha256} or {package, version}"
        )
    return cast("Record", entry)


def _here(record: Record) -> Record | None:
    """The record of the plugin that is there for one of a configuration; None if there is none."""
    if "package" in record:
        name, version = record["package"], record["version"]
        installed = installed_version(name)
        if installed and installed != version:
            logger.warning("made with the plugin package %s %s; installed is %s", name, version, installed)
        return record if installed else None
    if "sha256" not in record:  # a path as the user wrote it
        return next((plugin.record for plugin in ran() if plugin.path == str(path_of(record["file"]))), None)
    same = [plugin.record for plugin in ran() if plugin.sha256 == record["sha256"]]
    named = [plugin.record for plugin in ran() if plugin.name == record["file"]]
    return next(iter([*same, *named]), None)


def described(records: Iterable[Mapping[str, str]]) -> str:
    """Records in words for a message: "my_loss.py (sha256 3f2a...), my-package 1.2"; "none" for none."""
    words = [
        f"{record['file']} (sha256 {record['sha256']})" if "sha256" in record else " ".join(record.values())
        for record in records
    ]
    return ", ".join(words) or "none"


def installed_version(package: str) -> str:
    """The version of an installed distribution; "" if it is not installed."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except (metadata.PackageNotFoundError, ValueError):
        return ""
