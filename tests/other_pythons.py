"""Programs that cannot be installed beside the project's own newest packages: they are run by a Python of their own.

AVSSL_DATASETS_PYTHON, AVSSL_FIFTYONE_PYTHON and AVSSL_LIGHTLY_PYTHON each name the Python of an environment in which
`pip install "avssl[EXTRA]"` was done. A test is skipped, with the reason, if neither this Python nor such a one has the
program.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile

import pytest

from tests.conftest import ROOT


def python_with(module, variable):
    """A Python that has the module: this one, or that of the environment variable."""
    if importlib.util.find_spec(module):
        return sys.executable
    if python := os.environ.get(variable):
        return python
    return pytest.skip(f"needs {module}: install it, or set {variable} to a Python that has it")


def printed_by(module, variable, code, *arguments, **environment):
    """What code prints as JSON in its last line, run by a Python that has the module and sees this project."""
    python = python_with(module, variable)
    # To files: a database that the program starts may outlive it for a while, and would hold a pipe open.
    with tempfile.NamedTemporaryFile("r") as stdout, tempfile.NamedTemporaryFile("r") as stderr:
        status = subprocess.call(
            [python, "-c", code, *map(str, arguments)], stdout=stdout.fileno(), stderr=stderr.fileno(),
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        )  # fmt: skip
        for file in (stdout, stderr):
            file.seek(0)  # the child has moved the position that it shares
        assert status == 0, stderr.read()[-3000:]
        return json.loads(stdout.read().splitlines()[-1])
