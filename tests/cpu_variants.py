"""Numerical claims hold on other CPUs: `python -m tests.cpu_variants` runs these tests as such CPUs compute.

Kernels differ in the order of their sums by instruction set and by threads. A claim of equality that leans on one
order fails in one of these variants on a machine where it holds in the plain run.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
CLAIM = re.compile(r"allclose|assert_close|approx\(|torch\.equal|array_equal")
# Every kernel of PyTorch and oneDNN that newer CPUs do not take by themselves, and both numbers of threads.
VARIANTS = (
    {"ATEN_CPU_CAPABILITY": "default", "AVSSL_TEST_THREADS": "2"},
    {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "AVSSL_TEST_THREADS": "1"},
)


def numerical_tests() -> list[str]:
    """Tests that compare numbers, themselves or in a function of their file, of files that use torch.

    A rule instead of a list, so that new tests are in.
    """
    names = []
    for path in sorted(FOLDER.glob("test_*.py")):
        text = path.read_text()
        nodes = (
            [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)] if "torch" in text else []
        )
        lines = text.splitlines()
        functions = {node.name: "\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in nodes}
        comparing = {name for name, source in functions.items() if CLAIM.search(source)}
        helpers = re.compile(r"\b(" + "|".join(comparing) + r")\(") if comparing else CLAIM
        names += [
            f"{path}::{name}"
            for name, source in functions.items()
            if name.startswith("test_") and (name in comparing or helpers.search(source.partition("\n")[2]))
        ]
    return names


def differs(variant: dict[str, str]) -> bool:
    """Whether this CPU can compute otherwise than in the plain run: one that has no more than AVX2 is its own variant.

    PyTorch believes ATEN_CPU_CAPABILITY, and ends with an illegal instruction where the CPU has less.
    """
    return variant["ATEN_CPU_CAPABILITY"] != "avx2" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def run(variant: dict[str, str], tests: list[str], arguments: list[str]) -> bool:
    """One variant of these tests and a line about them; what pytest wrote is shown where they fail."""
    command = [sys.executable, "-m", "pytest", "-n", str(os.cpu_count() or 1), "-m", "not slow", *arguments]
    begin = time.monotonic()
    process = subprocess.run(
        [*command, *tests],
        cwd=FOLDER.parent,
        env=os.environ | variant,
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        sys.stdout.write(process.stdout + process.stderr)
    name = " ".join(f"{key}={value}" for key, value in variant.items())
    result = (process.stdout.strip().splitlines() or ["no output"])[-1].strip("= ")
    sys.stdout.write(f"{name}: {result}; {time.monotonic() - begin:.0f} s\n")
    sys.stdout.flush()
    return process.returncode == 0


if __name__ == "__main__":
    failed = [variant for variant in VARIANTS if differs(variant) and not run(variant, numerical_tests(), sys.argv[1:])]
    sys.exit(bool(failed))
