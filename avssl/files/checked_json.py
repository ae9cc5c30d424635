"""json that others may have written or damaged: parsed within bounds, and its fields taken by type and range.

The one place where json from a file becomes values. Every error is a ValueError of one line that names the file (and
line), the field, what was found and what is allowed; nothing else is raised, whatever the bytes are.
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

MAX_DEPTH = 64  # of objects and lists in each other; far above what is written here, far below what recursion can take
MAX_COUNT = 2**53  # above it a float is no longer exact; nothing that is counted here comes near
Json = dict[str, Any]
_REQUIRED: Any = object()


def parse(content: bytes | str, where: str, *, finite: bool = True) -> Any:
    """The value that json text holds. ValueError names `where`: no json, nested too deep, or a number out of range.

    finite: False for logs, where NaN and Infinity are what was measured.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        try:
            value = (_DECODER if finite else _LENIENT_DECODER).decode(text)
        except _OutOfRangeError as error:
            place = next(_places(_LENIENT_DECODER.decode(text)), "")
            raise ValueError(f"{where}: {place or 'it'} is {error}") from error
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


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _OutOfRangeError(f"{brief(text)}; a number must be finite")
    return value


def _whole(text: str) -> int:
    if len(text) > 20:  # 64 bits take 19 digits and a sign
        raise _OutOfRangeError(f"a number of {len(text.lstrip('-'))} digits; whole numbers have at most 64 bits")
    return int(text)


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole)
_LENIENT_DECODER = json.JSONDecoder(parse_int=lambda text: math.inf if len(text) > 20 else int(text))


def _places(value: Any) -> Iterator[str]:
    """Where numbers that are not finite stand: "source.video[3]"."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        here = f"[{name}]" if isinstance(value, list) else plain(name)
        if isinstance(inner, dict | list):
            yield from (here + ("" if rest.startswith("[") else ".") + rest for rest in _places(inner))
        elif isinstance(inner, float) and not math.isfinite(inner):
            yield here


def _depth(value: Any) -> int:
    """How deep lists and objects lie in each other; at most one more than MAX_DEPTH is looked at."""
    depth, level = 0, [value]
    while depth <= MAX_DEPTH:
        level = [one for one in level if isinstance(one, dict | list)]
        if not level:
            break
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
        depth += 1
    return depth


def dump(value: Any, **options: Any) -> str:
    """The text of a value that `parse` takes back. ValueError for a number that is not finite."""
    return json.dumps(value, allow_nan=False, **options)


@dataclass(frozen=True)
class Fields:
    """A json object whose fields are taken one by one, each checked. where: what messages name.

    All methods raise ValueError naming `where` and the field if the field is missing (unless `absent` says what then
    to give) or does not fit.
    """

    record: Json
    where: str
    prefix: str = ""  # of the fields' names in messages, of an object inside another

    @classmethod
    def of(cls, value: Any, where: str, prefix: str = "") -> Fields:
        """Of a value that must be an object."""
        if not isinstance(value, dict):
            name = prefix.removesuffix(".")
            raise ValueError(f"{where}: {name}{' ' if name else ''}is {brief(value)}; it must be a json object")
        return cls(value, where, prefix)

    @classmethod
    def parse(cls, content: bytes | str, where: str, *, finite: bool = True) -> Fields:
        """Of json text, as the function `parse`."""
        return cls.of(parse(content, where, finite=finite), where)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Fields:
        """Of a file; FileNotFoundError if there is none."""
        return cls.parse(Path(path).read_bytes(), os.fspath(path))

    def take(self, name: str, kinds: type | tuple[type, ...], wanted: str, absent: Any = _REQUIRED) -> Any:
        """A field of one of these types; bool is no number."""
        value = self.record.get(name, absent)
        if value is _REQUIRED:
            found = ", ".join(brief(one) for one in sorted(self.record)[:20]) or "nothing"
            raise ValueError(f"{self.where}: the field {brief(self.prefix + name)} is missing; found {found}")
        if name not in self.record:
            return value
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.wrong(name, wanted)
        return value

    def wrong(self, name: str, wanted: str) -> ValueError:
        """What to raise for a field that does not fit."""
        return ValueError(f"{self.where}: {self.prefix}{name} is {brief(self.record.get(name))}; it must be {wanted}")

    def count(self, name: str, absent: Any = _REQUIRED, *, least: int = 0, most: int = MAX_COUNT) -> int:
        """A whole number from least to most."""
        wanted = f"a whole number, at least {least}" + ("" if most == MAX_COUNT else f" and at most {most}")
        value = self.take(name, int, wanted, absent)
        if name in self.record and not least <= value <= most:
            raise self.wrong(name, wanted)
        return value  # type: ignore[no-any-return]

    def number(self, name: str, absent: Any = _REQUIRED, *, least: float = -math.inf, most: float = math.inf) -> float:
        """A finite number from least to most, as float."""
        wanted = "a finite number" + (f", at least {least:g}" if least > -math.inf else "")
        wanted += f" and at most {most:g}" if most < math.inf else ""
        value = self.take(name, (int, float), wanted, absent)
        if name not in self.record:
            return value  # type: ignore[no-any-return]
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if not math.isfinite(found) or not least <= found <= most:
            raise self.wrong(name, wanted)
        return found

    def text(self, name: str, absent: Any = _REQUIRED) -> str:
        """A string."""
        return self.take(name, str, "a string", absent)  # type: ignore[no-any-return]

    def matching(self, name: str, pattern: re.Pattern[str], wanted: str) -> str:
        """A string that the whole pattern fits. wanted: the pattern in words."""
        value = self.text(name)
        if not pattern.fullmatch(value):
            raise self.wrong(name, wanted)
        return value

    def file_name(self, name: str) -> str:
        """The name of a file in the same folder: printable, of at most 255 bytes."""
        value = self.text(name)
        if value in ("", ".", "..") or "/" in value or not value.isprintable() or len(value.encode()) > 255:
            raise self.wrong(name, "the name of a file in the same folder")
        return value

    def flag(self, name: str, absent: Any = _REQUIRED) -> bool:
        """true or false."""
        return self.take(name, bool, "true or false", absent)  # type: ignore[no-any-return]

    def mapping(self, name: str, absent: Any = _REQUIRED) -> Json:
        """An object, as it is."""
        return self.take(name, dict, "a json object", absent)  # type: ignore[no-any-return]

    def section(self, name: str, absent: Any = _REQUIRED) -> Fields:
        """An object whose fields are taken in turn."""
        return Fields(self.mapping(name, absent), self.where, f"{self.prefix}{name}.")

    def sections(self, name: str) -> Iterator[Fields]:
        """The objects of a list."""
        for number, one in enumerate(self.items(name)):
            yield Fields.of(one, self.where, f"{self.prefix}{name}[{number}].")

    def items(self, name: str, kinds: type | tuple[type, ...] | None = None, absent: Any = _REQUIRED) -> list[Any]:
        """A list of values of one type (bool is no number)."""
        several = kinds if isinstance(kinds, tuple) else (kinds,) if kinds else ()
        wanted = "a list" if not several else f"a list of {_names(several)}"
        values: list[Any] = self.take(name, list, wanted, absent)
        if several and not all(type(one) in several for one in values):
            raise self.wrong(name, wanted)
        return values

    def labels(self, name: str, absent: Any = _REQUIRED) -> dict[str, list[str]]:
        """{label field: [names]}."""
        wanted = "{field: [names]}, each name a string"
        found = self.mapping(name, absent)
        for names in found.values():
            if not isinstance(names, list) or not all(type(one) is str for one in names):
                raise self.wrong(name, wanted)
        return {field: list(names) for field, names in found.items()}

    def counts(self, name: str, absent: Any = _REQUIRED) -> dict[str, int]:
        """{name: whole number from 0}."""
        found = self.mapping(name, absent)
        if not all(type(one) is int and 0 <= one <= MAX_COUNT for one in found.values()):
            raise self.wrong(name, "{name: whole number, at least 0}")
        return dict(found)

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """One of these strings."""
        value = self.text(name)
        if value not in choices:
            raise self.wrong(name, f"one of {', '.join(choices)}")
        return value


def _names(kinds: Sequence[type]) -> str:
    names = {int: "whole numbers", float: "numbers", str: "strings", dict: "objects", list: "lists"}
    return " or ".join(names.get(kind, kind.__name__) for kind in kinds)
