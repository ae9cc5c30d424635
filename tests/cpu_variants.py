"""Numerical claims hold on other CPUs: `python -m tests.cpu_variants` runs their tests as such CPUs compute.

Kernels differ in the order of their sums by instruction set and by threads. A claim of equality that leans on one
order fails in one of these variants on a machine where it holds in the plain run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
CLAIM = re.compile(r"allclose|assert_close|approx\(|torch\.equal|array_equal")
VARIANTS = (
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"AVSSL_TEST_THREADS": "1"},
    {"AVSSL_TEST_THREADS": "2"},
)


def numerical_files() -> list[Path]:
    """Test files that use torch and compare numbers: a rule instead of a list, so that new files are in."""
    texts = {path: path.read_text() for path in sorted(FOLDER.glob("test_*.py"))}
    return [path for path, text in texts.items() if "torch" in text and CLAIM.search(text)]


def can_run(variant: dict[str, str]) -> bool:
    """PyTorch believes ATEN_CPU_CAPABILITY, and ends with an illegal instruction where the CPU has less."""
    return variant.get("ATEN_CPU_CAPABILITY") != "avx2" or torch.backends.cpu.get_cpu_capability() != "DEFAULT"


def run(variant: dict[str, str], files: list[Path], arguments: list[str]) -> bool:
    """One variant of these tests and a line about them; what pytest wrote is shown where they fail."""
    processes = max(1, (os.cpu_count() or 1) // int(variant.get("AVSSL_TEST_THREADS", "1")))
    command = [sys.executable, "-m", "pytest", "-n", str(processes), "-m", "not slow", *arguments]
    begin = time.monotonic()
    process = subprocess.run(
        [*command, *map(str, files)],
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
    failed = [variant for variant in VARIANTS if can_run(variant) and not run(variant, numerical_files(), sys.argv[1:])]
    sys.exit(bool(failed))
