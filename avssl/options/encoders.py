"""What the program's own encoders can be told, read from their sources: to import them takes the seconds of PyTorch.

`avssl pretrain RECIPE --help` prints it, and a mistyped option is an error before anything is loaded. Encoders of
plugins and public models are not known here; `models.create_encoder` checks all of them.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent.parent / "models"
DECORATOR = "register_encoder"
Options = dict[str, tuple[str, str]]  # {option: (its type, its default), as the source has them}


@cache
def encoder_options() -> dict[str, Options]:
    """{name of an encoder: its options} of the program's own encoders.

    >>> encoder_options()["avid_audio"]["width"]
    ('int', '64')
    """
    found: dict[str, Options] = {}
    for path in sorted(SOURCES.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if f"@{DECORATOR}" in text:
            tree = ast.parse(text)
            for node in tree.body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef):
                    found |= {name: _keyword_options(node) for name in _registered_names(node, tree)}
    return found


def _registered_names(node: ast.ClassDef | ast.FunctionDef, tree: ast.Module) -> Iterator[str]:
    """The names under which a class or function is registered by its decorator."""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == DECORATOR:
            for argument in decorator.args:
                if isinstance(argument, ast.Starred):  # of a table of this file
                    yield from _keys_of(getattr(argument.value, "id", ""), tree)
                else:
                    yield str(ast.literal_eval(argument))


def _keys_of(table: str, tree: ast.Module) -> list[str]:
    """The keys of a dictionary, or the entries of a tuple, that a file assigns to this name."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(getattr(target, "id", "") == table for target in targets):
            value: Any = getattr(node, "value", None)
            keys: list[Any] = value.keys if isinstance(value, ast.Dict) else value.elts
            return [str(ast.literal_eval(key)) for key in keys]
    return []


def _keyword_options(node: ast.ClassDef | ast.FunctionDef) -> Options:
    function: Any = node
    if isinstance(node, ast.ClassDef):
        function = next(part for part in node.body if getattr(part, "name", "") == "__init__")
    given = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    return {
        option.arg: (
            ast.unparse(option.annotation) if option.annotation else "Any",
            ast.unparse(default) if default else "required",
        )
        for option, default in given
    }


def check_encoders(sections: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that the encoder of a section does not have, as far as its options are known."""
    for modality, section in sections.items():
        name = section.get("name", "")
        options = encoder_options().get(name, {})
        for option in section if options else ():
            if option != "name" and option not in options:
                near = difflib.get_close_matches(option, options, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise ValueError(
                    f"encoders.{modality}: encoder {name!r} has no option {option!r}{hint}; "
                    f"its options: {', '.join(options)}"
                )


def encoder_text(modality: str, section: Mapping[str, Any]) -> str:
    """A section of `encoders` as the lines of a help: its encoder, and each of its options with its value."""
    options = encoder_options().get(section.get("name", ""), {})
    lines = [f"  {modality}:", f"    name: str = {section.get('name')!r}"]
    for option, (kind, default) in options.items():
        lines.append(f"    {option}: {kind} = {repr(section[option]) if option in section else default}")
    lines += [f"    {option} = {value!r}" for option, value in section.items() if option not in ("name", *options)]
    return "\n".join(lines) + "\n"
