"""Virtual environments of the packages that are compared with: beside this project's packages, not among them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def beside_project(folder: Path, requirement: str) -> Path:
    """The Python of an environment below the folder with one more package, without what that depends on. Made once."""
    python = folder / "venv" / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        own = next(path for path in map(Path, sys.path) if path.name == "site-packages")
        target = next((folder / "venv" / "lib").glob("python*/site-packages"))
        (target / "project.pth").write_text(f"{own}\n")
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", requirement], check=True)
    return python
