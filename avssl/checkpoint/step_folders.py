"""Which folders of a run are its checkpoints."""

from __future__ import annotations

import re
from pathlib import Path

STEP_FOLDER = re.compile(r"step_(\d{6,})")


def checkpoints(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first, without temporary ones, those set aside as damaged and copies of the user."""
    paths = [path for path in run.glob("step_*") if STEP_FOLDER.fullmatch(path.name)]
    return sorted(paths, key=lambda path: int(path.name[5:]))
