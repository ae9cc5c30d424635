"""Where the recipes and their YAMLs lie, in a checkout or in an installed package, and YAMLs by name."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

CONFIGS = "configs"


def recipes_folder() -> Path:
    """The folder of `avssl.recipes`: `recipes/` of the checkout, or its copy in the installed package."""
    spec = find_spec("avssl.recipes")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "the package avssl.recipes is missing; install avssl again: pip install --force-reinstall avssl"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def config_files() -> dict[str, Path]:
    """{name: YAML} of all recipes, sorted; those of evaluation are called evaluate/NAME."""
    folder = recipes_folder() / CONFIGS
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def replace_names(arguments: Sequence[str], prefix: str = "") -> list[str]:
    """The arguments with each name of a YAML replaced by its path; a file of that name comes first.

    prefix: "evaluate/" where the names are those of evaluation.
    """
    files: dict[str, Path] = {}
    replaced = []
    for argument in arguments:
        is_name = "=" not in argument and not argument.startswith("-") and not Path(argument).is_file()
        if is_name and not files:
            files = config_files()
        replaced.append(str(files.get(f"{prefix}{argument}", argument)) if is_name else argument)
    return replaced


def description(path: Path, width: int = 100) -> str:
    """What a YAML is, in one line of that width: the first line of its comment that is no command."""
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#"):
            break
        if text and text.split()[0] not in ("accelerate", "python", "torchrun", "avssl"):
            return textwrap.shorten(text, width, placeholder=" ...")
    return ""
