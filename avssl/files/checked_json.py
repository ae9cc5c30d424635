"""Parsing of JSON that others may have written or damaged: within bounds, and with fields checked by type and range.

All JSON from files is parsed here. Whatever the bytes are, the only error is a ValueError of one line that names the
file (and line), the field, its value and what is allowed.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avssl.files.plain_text import brief, plain

MAX_DEPTH = 64  # of nested objects and lists; far more than this program writes, far less than recursion allows
MAX_COUNT = 2**53  # above it a float is no longer exact; no count of this program comes near
Json = dict[str, Any]
_REQUIRED: Any = object()


def parse(content: bytes | str, where: str, *, finite: bool = True) -> Any:
    """The value of JSON text. ValueError names `where`: no JSON, nested too deep, or a number out of range.

    finite: False for logs, in which metrics may be NaN or Infinity.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        try:
            value = (_DECODER if finite else _LENIENT_DECODER).decode(text)
        except _OutOfRangeError as error:
            field = next(_not_finite(_LENIENT_DECODER.decode(text)), "it")
            raise ValueError(f"{where}: {field} is {error}") from error
    except RecursionError:
        raise ValueError(f"{where}: is nested more than {MAX_DEPTH} deep") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: is not json ({error})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: is not json ({error})") from error
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise ValueError(f"{where}: is nested more than {MAX_DEPTH} deep")
    return value


class _OutOfRangeError(ArithmeticError):
    """A number that no field may hold."""


def _refuse_constant(name: str) -> float:
    raise _OutOfRangeError(f"{name}; a number must be finite")


def _parse_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _OutOfRangeError(f"{brief(text)}; a number must be finite")
    return value


def _parse_int(text: str) -> int:
    if len(text) > 20:  # 64 bits take 19 digits and a sign
        raise _OutOfRangeError(f"a number of {len(text.lstrip('-'))} digits; whole numbers have at most 64 bits")
    return int(text)


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_parse_float, parse_int=_parse_int)
_LENIENT_DECODER = json.JSONDecoder(parse_int=lambda text: math.inf if len(text) > 20 else int(text))


def _not_finite(value: Any) -> Iterator[str]:
    """The paths of the numbers in a value that are not finite, like "source.video[3]"."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        path = f"[{name}]" if isinstance(value, list) else plain(name)
        if isinstance(inner, dict | list):
            yield from (path + ("" if rest.startswith("[") else ".") + rest for rest in _not_finite(inner))
        elif isinstance(inner, float) and not math.isfinite(inner):
            yield path


def _depth(value: Any) -> int:
    """How deep lists and objects are nested; counting ends at MAX_DEPTH + 1."""
    depth, level = 0, [value]
    while depth <= MAX_DEPTH:
        level = [item for item in level if isinstance(item, dict | list)]
        if not level:
            break
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
        depth += 1
    return depth


def dump(value: Any, **options: Any) -> str:
    """The JSON text of a value, which `parse` reads back. ValueError for a number that is not finite."""
    return json.dumps(value, allow_nan=False, **options)


@dataclass(frozen=True)
class Fields:
    """A JSON object whose fields are taken one by one, each checked. where: the file, for messages.

    All methods raise ValueError with `where` and the field if the field does not fit, or if it is missing and no
    `default` is given.
    """

    record: Json
    where: str
    prefix: str = ""  # of the names of fields in messages, if this object lies inside another

    @classmethod
    def of(cls, value: Any, where: str, prefix: str = "") -> Fields:
        """The fields of a value, which must be an object."""
        if not isinstance(value, dict):
            name = prefix.removesuffix(".")
            raise ValueError(f"{where}: {name}{' ' if name else ''}is {brief(value)}; it must be a json object")
        return cls(value, where, prefix)

    @classmethod
    def parse(cls, content: bytes | str, where: str, *, finite: bool = True) -> Fields:
        """The fields of JSON text; arguments as of the function `parse`."""
        return cls.of(parse(content, where, finite=finite), where)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Fields:
        """The fields of a file; FileNotFoundError if there is none."""
        return cls.parse(Path(path).read_bytes(), os.fspath(path))

    def take(self, name: str, types: type | tuple[type, ...], allowed: str, default: Any = _REQUIRED) -> Any:
        """A field of one of these types; bool does not count as a number. allowed: the types in words."""
        value = self.record.get(name, default)
        if value is _REQUIRED:
            names = ", ".join(brief(key) for key in sorted(self.record)[:20]) or "nothing"
            raise ValueError(f"{self.where}: the field {brief(self.prefix + name)} is missing; found {names}")
        if name not in self.record:
            return value
        types = types if isinstance(types, tuple) else (types,)
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise self.wrong(name, allowed)
        return value

    def wrong(self, name: str, allowed: str) -> ValueError:
        """The error to raise for a field that does not fit."""
        return ValueError(f"{self.where}: {self.prefix}{name} is {brief(self.record.get(name))}; it must be {allowed}")

    def count(self, name: str, default: Any = _REQUIRED, *, least: int = 0, most: int = MAX_COUNT) -> int:
        """A whole number from least to most."""
        allowed = f"a whole number, at least {least}" + ("" if most == MAX_COUNT else f" and at most {most}")
        value = self.take(name, int, allowed, default)
        if name in self.record and not least <= value <= most:
            raise self.wrong(name, allowed)
        return value  # type: ignore[no-any-return]

    def number(self, name: str, default: Any = _REQUIRED, *, least: float = -math.inf, most: float = math.inf) -> float:
        """A finite number from least to most, as float."""
        allowed = "a finite number" + (f", at least {least:g}" if least > -math.inf else "")
        allowed += f" and at most {most:g}" if most < math.inf else ""
        value = self.take(name, (int, float), allowed, default)
        if name not in self.record:
            return value  # type: ignore[no-any-return]
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number) or not least <= number <= most:
            raise self.wrong(name, allowed)
        return number

    def text(self, name: str, default: Any = _REQUIRED) -> str:
        """A string."""
        return self.take(name, str, "a string", default)  # type: ignore[no-any-return]

    def matching(self, name: str, pattern: re.Pattern[str], allowed: str) -> str:
        """A string that the pattern matches as a whole. allowed: the pattern in words."""
        value = self.text(name)
        if not pattern.fullmatch(value):
            raise self.wrong(name, allowed)
        return value

    def file_name(self, name: str) -> str:
        """The name of a file in the same folder: printable, of at most 255 bytes."""
        value = self.text(name)
        if value in ("", ".", "..") or "/" in value or not value.isprintable() or len(value.encode()) > 255:
            raise self.wrong(name, "the name of a file in the same folder")
        return value

    def flag(self, name: str, default: Any = _REQUIRED) -> bool:
        """A boolean."""
        return self.take(name, bool, "true or false", default)  # type: ignore[no-any-return]

    def mapping(self, name: str, default: Any = _REQUIRED) -> Json:
        """An object whose own fields are not checked."""
        return self.take(name, dict, "a json object", default)  # type: ignore[no-any-return]

    def section(self, name: str, default: Any = _REQUIRED) -> Fields:
        """The fields of an object inside this one."""
        return Fields(self.mapping(name, default), self.where, f"{self.prefix}{name}.")

    def sections(self, name: str) -> Iterator[Fields]:
        """The fields of each object of a list."""
        for number, item in enumerate(self.items(name)):
            yield Fields.of(item, self.where, f"{self.prefix}{name}[{number}].")

    def items(self, name: str, types: type | tuple[type, ...] | None = None, default: Any = _REQUIRED) -> list[Any]:
        """A list, whose values have one of the types if there are any (bool is no number)."""
        types = types if isinstance(types, tuple) else (types,) if types else ()
        allowed = f"a list of {_names(types)}" if types else "a list"
        values: list[Any] = self.take(name, list, allowed, default)
        if types and not all(type(value) in types for value in values):
            raise self.wrong(name, allowed)
        return values

    def labels(self, name: str, default: Any = _REQUIRED) -> dict[str, list[str]]:
        """{label field: [names]}."""
        allowed = "{field: [names]}, each name a string"
        values = self.mapping(name, default)
        for names in values.values():
            if not isinstance(names, list) or not all(type(label) is str for label in names):
                raise self.wrong(name, allowed)
        return {field: list(names) for field, names in values.items()}

    def counts(self, name: str, default: Any = _REQUIRED) -> dict[str, int]:
        """{name: whole number, at least 0}."""
        values = self.mapping(name, default)
        if not all(type(count) is int and 0 <= count <= MAX_COUNT for count in values.values()):
            raise self.wrong(name, "{name: whole number, at least 0}")
        return dict(values)

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """One of these strings."""
        value = self.text(name)
        if value not in choices:
            raise self.wrong(name, f"one of {', '.join(choices)}")
        return value


def _names(types: Sequence[type]) -> str:
    names = {int: "whole numbers", float: "numbers", str: "strings", dict: "objects", list: "lists"}
    return " or ".join(names.get(kind, kind.__name__) for kind in types)
