"""Text that comes from data, as a terminal, a log or a message may have it: one line, and nothing that acts.

Class names, keys, file names and messages of libraries can hold what moves a terminal's cursor, retitles its window,
reverses the reading order or begins a line of its own. `plain` shows such characters as escapes; everything here that
prints does so through `say`. Imports nothing of ours.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import unicodedata
from typing import NoReturn, TextIO

# Control (C0, C1), format (bidi overrides, zero widths), surrogate, private, separators of lines and paragraphs.
ACTING = frozenset(["Cc", "Cf", "Cs", "Co", "Zl", "Zp"])
JOINERS = "\u200c\u200d"  # of the category Cf, and part of how words of several scripts and emoji are written
MAX_VALUE_CHARACTERS = 80


def plain(text: object) -> str:
    r"""str(text) in one line: characters that act on a terminal become escapes (\x1b, \n, \u202e, \udcff)."""
    found = str(text)
    return found if found.isascii() and found.isprintable() else "".join(map(_plain_character, found))


def plain_lines(text: object) -> str:
    """As `plain`, but the ends of lines stay: for text of several lines whose parts have been made plain before."""
    return "\n".join(map(plain, str(text).split("\n")))


def brief(value: object) -> str:
    """A value from a file for a message: its repr, plain and cut off when it is long."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 1000:
        return "a number of more than 300 digits"
    if isinstance(value, str | bytes):
        text = repr(value[: MAX_VALUE_CHARACTERS + 1])
    elif isinstance(value, list | tuple | dict) and len(value) > MAX_VALUE_CHARACTERS:
        text = f"a {type(value).__name__} of {len(value)} entries"
    else:
        try:
            text = repr(value)
        except (RecursionError, ValueError):  # of a list that is nested too deep, or that holds too long a number
            text = f"a {type(value).__name__}"
    text = plain(text)
    return text if len(text) <= MAX_VALUE_CHARACTERS else f"{text[: MAX_VALUE_CHARACTERS - 3]}..."


def say(text: object = "", file: TextIO | None = None) -> None:
    """Print one line, to the standard output unless told otherwise, whatever encoding that has."""
    stream = file or sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    line = plain(text).encode(encoding, "backslashreplace").decode(encoding)
    if "tqdm" in sys.modules:  # a bar, if there is one, is drawn anew below the line
        from tqdm import tqdm

        tqdm.write(line, file=stream)
    else:
        stream.write(f"{line}\n")
    stream.flush()


def say_lines(text: object, file: TextIO | None = None) -> None:
    """`say` for each line of a text whose parts from data have been made plain."""
    for line in str(text).split("\n"):
        say(line, file)


class PlainParser(argparse.ArgumentParser):
    """A parser whose errors show arguments as `plain` does."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and leave with status 2."""
        super().error(plain(message))


class PlainRecords(logging.Filter):
    """Makes the message of every record of a logger plain."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = plain(record.getMessage()), None
        return True


def _plain_character(one: str) -> str:
    if one.isprintable() or one in JOINERS or unicodedata.category(one) not in ACTING:
        return one
    return one.encode("unicode_escape", "surrogatepass").decode("ascii")


def run_in_utf8() -> None:
    """Start the program anew in Python's UTF-8 mode where the locale is another: names of files may be any text.

    First thing of every command; of no library function.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
