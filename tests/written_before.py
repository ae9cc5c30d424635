"""What commit 8b62841 wrote (tests/golden), with the names that keys of its configuration have now."""

import shutil

from avssl import config
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "commit_8b62841"


def written_run(folder):
    """A copy of the run folder, its configuration with the new names of keys."""
    shutil.copytree(GOLDEN / "run", folder)
    text = (folder / "config.yaml").read_text()
    for old, new in config.RENAMED_KEYS.items():
        text = text.replace(f"{old}:", f"{new}:")
    (folder / "config.yaml").write_text(text)
    return folder
