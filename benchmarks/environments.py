"""Virtual environments with a package to compare with, which does not become a dependency of this project."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def beside_project(folder: Path, *requirements: str) -> Path:
    """The Python of an environment in `folder` that has this project's packages and these, without what they depend on.
    Made at the first call.
    """
    python = folder / "venv" / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        packages = next(path for path in map(Path, sys.path) if path.name == "site-packages")
        target = next((folder / "venv" / "lib").glob("python*/site-packages"))
        (target / "project.pth").write_text(f"{packages}\n")
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", *requirements], check=True)
    return python
