"""The project's own errors: each keeps what it says when it comes from another process."""

from __future__ import annotations

import ast
import builtins
import errno
import pickle
from importlib import import_module
from pathlib import Path

import pytest

from avssl.files.disk_errors import clear_errors, one_line
from avssl.types import MediaError
from tests.test_layers import MODULES

ARGUMENTS = {  # of errors that take more than a text
    "ExitedError": (-9,),
    "MediaError": ("truncated", "a.mp4: ends early"),
    "WrongSize": ("s3://bucket/a.tar", 3, 5),
    "_UnusableError": (MediaError("timeout", "a.mp4: took longer than 60 s"),),
}


def error_classes() -> list[tuple[str, str]]:
    """(module, name) of every class that extends an error of Python or of the project, by the sources."""
    found: list[tuple[str, str]] = []
    names = {name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, Exception)}
    bases = {
        (module, node.name): {
            base.attr if isinstance(base, ast.Attribute) else ast.unparse(base) for base in node.bases
        }
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(Path(path).read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    while more := [one for one, its in bases.items() if its & names and one not in found]:
        found += more
        names |= {name for _, name in more}
    return sorted(found)


@pytest.mark.parametrize(("module", "name"), error_classes(), ids=lambda value: value.rpartition(".")[2])
def test_an_error_comes_whole_from_another_process(module, name):
    error = getattr(import_module(module), name)(*ARGUMENTS.get(name, ("a text",)))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error) != ""
    values, expected = ({key: str(value) for key, value in vars(one).items()} for one in (again, error))
    assert values == expected


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_an_explained_error_of_the_disk_keeps_class_and_number_from_another_process(number, tmp_path):
    with pytest.raises(OSError, match=r"a: could not be written") as raised, clear_errors(tmp_path / "a", "written"):
        raise OSError(number, "why")
    error = pickle.loads(pickle.dumps(raised.value))
    assert (type(error), error.errno, str(error)) == (type(OSError(number, "why")), number, str(raised.value))
    assert one_line(error) == str(raised.value)


def test_the_sources_have_the_errors_that_are_named_here():
    assert {name for _, name in error_classes()} > {*ARGUMENTS, "ConfigError", "PolicyError", "UnknownNameError"}
