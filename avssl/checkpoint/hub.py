"""Models of avssl at the Hugging Face hub: finding and pushing them. Needs the extra `hub`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from avssl.checkpoint.weights import EXCHANGE_FILE, PROVENANCE_FILE
from avssl.files.hub import HUB_ID, download, upload
from avssl.types import HUB_SCHEME

CONFIG_FILE, CARD_FILE = "config.json", "README.md"
FILES = (CONFIG_FILE, PROVENANCE_FILE, EXCHANGE_FILE, CARD_FILE)  # of an exchange folder


def push(folder: Path, name: str, files: Sequence[str], *, private: bool = False) -> str:
    """Upload files of the folder to the model repository `owner/name`, made if it does not exist; return its address.

    The login is huggingface_hub's own (`hf auth login`, or HF_TOKEN).
    """
    message = "Weights, configuration and card written by avssl"
    return upload(folder, name, files, kind="model", private=private, message=message)


def locate(run: str | Path) -> Path:
    """The local folder of a run: the folder itself, or a copy of `owner/name` or `hf://owner/name[@revision]`.

    The hub is asked only for names that are no local folder and look like those of the hub. FileNotFoundError if the
    hub has no such model.
    """
    text = str(run)
    if text.startswith(HUB_SCHEME):
        text = text.removeprefix(HUB_SCHEME).strip("/")
        if not HUB_ID.fullmatch(text):
            raise ValueError(f"{run}: write hf://owner/name or hf://owner/name@revision")
    elif Path(run).exists() or not HUB_ID.fullmatch(text):
        return Path(run)
    name, _, revision = text.partition("@")
    folder = download(name, revision or None, FILES)
    missing = [file for file in FILES if not (folder / file).is_file() and file != CARD_FILE]
    if missing:
        raise FileNotFoundError(f"{name} at the hub is no model of avssl: it has no {', '.join(missing)}")
    return folder
