"""What a run was made with against what is there: plugins are compared by name and content. Nothing is run here."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Sequence
from typing import Any

from avssl.files.plain_text import PlainParser, brief
from avssl.plugins.files import PluginError, Record, path_of, ran, run_files

logger = logging.getLogger("avssl")
KEYS = (["file", "sha256"], ["package", "version"])
_may_differ = False  # whether the user has said that changed plugins are right


def use(paths: Iterable[Any], *, may_differ: bool = False) -> list[Record]:
    """Run the user's plugin files, as `run_files`; their records.

    may_differ: from now on these files may stand for others of the same name that a run was made with.
    """
    global _may_differ  # noqa: PLW0603  (plugins are one state of the process)
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

    Raises PluginError for a plugin that was not run or is not installed, for another content than that of the record
    (unless the user said that it may differ), and for anything that is neither.
    """
    if not isinstance(entries, list | tuple):
        raise PluginError(f"{where}: plugins is {brief(entries)}; it must be a list of files, such as [my_loss.py]")
    return [_found(entry, where) for entry in entries]


def _found(entry: object, where: str) -> Record:
    if isinstance(entry, str):
        plugin = next((plugin for plugin in ran() if plugin.path == str(path_of(entry))), None)
        if plugin is None:
            raise PluginError(f"{where} needs the plugin {brief(entry)}, which nothing has run; add --plugin {entry}")
        return plugin.record
    if not isinstance(entry, dict) or sorted(entry) not in KEYS or not all(isinstance(v, str) for v in entry.values()):
        raise PluginError(
            f"{where}: plugins has {brief(entry)}; each must be the path of a file, or what a run writes: "
            "{file, sha256} or {package, version}"
        )
    return _found_package(entry, where) if "package" in entry else _found_file(entry, where)


def _found_file(record: Record, where: str) -> Record:
    name, sha256 = record["file"], record["sha256"]
    same = next((plugin for plugin in ran() if plugin.sha256 == sha256), None)
    if same is not None:
        return same.record
    other = next((plugin for plugin in ran() if plugin.name == name), None)
    if other is None:
        raise PluginError(
            f"{where} was made with the plugin {name} of sha256 {sha256}; add --plugin .../{name} (in Python "
            f"plugins=[...]). Opening a run never runs a file by itself"
        )
    if not _may_differ:
        raise PluginError(
            f"{where} was made with the plugin {name} of sha256 {sha256}; {other.path} has {other.sha256}. Give the "
            "file that it was made with, or add --plugin-changed to take this one all the same"
        )
    return other.record


def _found_package(record: Record, where: str) -> Record:
    name, version = record["package"], record["version"]
    installed = installed_version(name)
    if not installed:
        raise PluginError(f"{where} was made with the package {name} {version}, which is not installed; pip install it")
    if installed != version:
        logger.warning("%s was made with %s %s; installed is %s", where, name, version, installed)
    return record


def described(records: Iterable[Record]) -> str:
    """Records in words for a message: "my_loss.py (sha256 3f2a...), my-package 1.2"; "none" for none."""
    words = [
        f"{record['file']} (sha256 {record['sha256']})" if "file" in record else " ".join(record.values())
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
