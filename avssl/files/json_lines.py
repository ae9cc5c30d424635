"""Files of what a training says of itself: a line of json, with its "step", after another."""

from __future__ import annotations

from pathlib import Path

from avssl.files.checked_json import Fields
from avssl.files.whole import write_whole


def keep_until(path: Path, step: int) -> None:
    """Drop the lines of steps beyond the one that is gone on from: they come again. So does half a line of a kill.

    ValueError naming the file for a line that is no json. The file is then the new one, or the one before.
    """
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.startswith("{") and line.endswith("}\n")]
    kept = [line for line in whole if Fields.parse(line, str(path), finite=False).count("step") <= step]
    write_whole(path, "".join(kept))
