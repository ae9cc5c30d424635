"""Logs of a training: files of JSON lines, each with a "step"."""

from __future__ import annotations

from pathlib import Path

from avssl.files.checked_json import Fields
from avssl.files.whole import write_whole


def truncate_log(path: Path, step: int) -> None:
    """Drop the lines after `step`, which a resumed run writes again, and half a line left by a killed run.

    ValueError with the name of the file for a line that is no JSON. The file is replaced whole or not at all.
    """
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.startswith("{") and line.endswith("}\n")]
    kept = [line for line in whole if Fields.parse(line, str(path), finite=False).count("step") <= step]
    write_whole(path, "".join(kept))
