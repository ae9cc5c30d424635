"""Where a run is: a folder here, or a model of a hub."""

from __future__ import annotations

import re
from pathlib import Path

from avssl.checkpoint.weights import EXCHANGE_FILE, PROVENANCE_FILE

CONFIG_FILE, CARD_FILE = "config.json", "README.md"
FILES = (CONFIG_FILE, PROVENANCE_FILE, EXCHANGE_FILE, CARD_FILE)  # of an exchange folder
HUB_SCHEME = "hf://"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


def locate(run: str | Path) -> Path:
    """A local folder for what was asked for: the folder itself, or a copy of `owner/name`, `hf://owner/name[@revision]`.

    Only what is no folder here and looks like a hub's name is asked for there. Raises FileNotFoundError when it is in
    neither place.
    """
    text = str(run)
    if text.startswith(HUB_SCHEME):
        text = text.removeprefix(HUB_SCHEME).strip("/")
        if not HUB_ID.fullmatch(text):
            raise ValueError(f"{run}: write hf://owner/name or hf://owner/name@revision")
    elif Path(run).exists() or not HUB_ID.fullmatch(text):
        return Path(run)
    from avssl.checkpoint.hub import download

    name, _, revision = text.partition("@")
    folder = download(name, revision or None, FILES)
    missing = [file for file in FILES if not (folder / file).is_file() and file != CARD_FILE]
    if missing:
        raise FileNotFoundError(f"{name} at the hub is no model of avssl: it has no {', '.join(missing)}")
    return folder
