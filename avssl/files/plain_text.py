"""Text from data made safe for terminals, logs and messages: one line, without characters that act on a terminal.

Class names, keys, file names and messages of libraries can contain characters that move a terminal's cursor, change the
title of its window, reverse the reading order or begin a new line. `plain` shows such characters as escapes; all
output of this program goes through `say`, or with --json through `emit` (docs/json.md). Imports no other module of
avssl.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import signal
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

# Unicode categories: control, format (bidi overrides, zero widths), surrogate, private, line and paragraph separators.
ACTING_CATEGORIES = frozenset(["Cc", "Cf", "Cs", "Co", "Zl", "Zp"])
JOINERS = "\u200c\u200d"  # of the category Cf, but needed to write words of several scripts, and emoji
MAX_VALUE_CHARACTERS = 80
JSON_OPTION = "--json"
_json_of = ""  # the command whose output is JSON lines


def plain(text: object) -> str:
    r"""str(text) in one line: characters that act on a terminal become escapes (\x1b, \n, \u202e, \udcff)."""
    line = str(text)
    return line if line.isascii() and line.isprintable() else "".join(map(_plain_character, line))


def plain_lines(text: object) -> str:
    """As `plain` for each line of a text, whose line ends stay; its parts from data must be plain already."""
    return "\n".join(map(plain, str(text).split("\n")))


def brief(value: object) -> str:
    """The repr of a value for a message: plain, and cut off at MAX_VALUE_CHARACTERS."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 1000:
        return "a number of more than 300 digits"
    if isinstance(value, str | bytes):
        text = repr(value[: MAX_VALUE_CHARACTERS + 1])
    elif isinstance(value, list | tuple | dict) and len(value) > MAX_VALUE_CHARACTERS:
        text = f"a {type(value).__name__} of {len(value)} entries"
    else:
        try:
            text = repr(value)
        except (RecursionError, ValueError):  # a list that is nested too deep, or that has too long a number
            text = f"a {type(value).__name__}"
    text = plain(text)
    return text if len(text) <= MAX_VALUE_CHARACTERS else f"{text[: MAX_VALUE_CHARACTERS - 3]}..."


def say(text: object = "", file: TextIO | None = None) -> None:
    """Print one plain line, by default to the standard output, in any encoding; with --json to the standard error."""
    _write(plain(text), file or (sys.stderr if _json_of else sys.stdout))


def _write(text: str, stream: TextIO) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    line = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        if "tqdm" in sys.modules:  # a progress bar, if there is one, is drawn again below the line
            from tqdm import tqdm

            tqdm.write(line, file=stream)
        else:
            stream.write(f"{line}\n")
        stream.flush()
    except BrokenPipeError:  # whoever read it has ended, as `head` does; the work goes on unread
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def note(text: object, event: str = "note") -> None:
    """Lines of the first process of a run; with --json also an event "note" or "warning" each.

    Warnings go to the standard error.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    for line in filter(None, str(text).split("\n")):
        say(line, sys.stderr if event == "warning" else None)
        emit(event, text=plain(line))


def say_lines(text: object, file: TextIO | None = None) -> None:
    """`say` for each line of a text whose parts from data are plain already."""
    for line in str(text).split("\n"):
        say(line, file)


def begin_command(name: str, arguments: Sequence[str]) -> list[str]:
    """What every command calls first: UTF-8 mode, and JSON lines if --json is among the arguments; the others."""
    global _json_of  # noqa: PLW0603  (what this process writes)
    run_in_utf8()
    _json_of = name if JSON_OPTION in arguments else ""
    return [argument for argument in arguments if argument != JSON_OPTION]


def is_json() -> bool:
    """Whether the standard output is JSON lines."""
    return bool(_json_of)


def emit(event: str, **fields: Any) -> None:
    """With --json print one JSON object in a line, by the first process of a run; otherwise nothing.

    Numbers that JSON has not (NaN, infinite ones) become null; paths and what else is no JSON become text.
    """
    if _json_of and os.environ.get("RANK", "0") == "0":
        record = {"event": event, "command": _json_of, **fields}
        _write(json.dumps(_json_value(record), allow_nan=False, default=str), sys.stdout)


def _json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class PlainParser(argparse.ArgumentParser):
    """A parser whose errors show arguments as `plain` does, whose help has every default, and that knows --json."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if options.get("add_help", True):
            self.add_argument(
                JSON_OPTION,
                action="store_true",
                help="a JSON object a line on the standard output, and text on the standard error (docs/json.md)",
            )

    def format_help(self) -> str:
        """The help, in which options that do not say their default do."""
        for action in self._actions:
            if action.option_strings and action.help != argparse.SUPPRESS:
                action.help = _with_default(action)
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and leave with status 2."""
        emit("error", message=message, status=2)
        super().error(plain(message))


def _with_default(action: argparse.Action) -> str:
    text = action.help or ""
    if "default" in text or action.required or isinstance(action, argparse._HelpAction):
        return text
    if isinstance(action, argparse._StoreTrueAction):
        return f"{text} (default: no)".lstrip()
    is_empty = action.default in (None, "", []) or action.default is argparse.SUPPRESS
    return f"{text} (default: {'none' if is_empty else '%(default)s'})".lstrip()


class PlainRecords(logging.Filter):
    """A filter that makes the message of every record of a logger plain."""

    def filter(self, record: logging.LogRecord) -> bool:
        """True: every record is kept, with its message made plain."""
        record.msg, record.args = plain(record.getMessage()), None
        return True


def _plain_character(character: str) -> str:
    if character.isprintable() or character in JOINERS or unicodedata.category(character) not in ACTING_CATEGORIES:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def run_in_utf8() -> None:
    """Restart the program in Python's UTF-8 mode if its locale is another: names of files may be any text.

    Every command calls this first; no library function does.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def interrupted() -> int:
    """Say that Ctrl+C ends the program; its exit status, as shells know it."""
    status = 128 + signal.SIGINT
    say("interrupted", sys.stderr)
    emit("error", message="interrupted", status=status)
    return status
