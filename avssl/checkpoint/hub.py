"""Download from and upload to the Hugging Face hub. Only this file imports huggingface_hub, of the extra `hub`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from avssl.checkpoint.weights import EXCHANGE_FILE, PROVENANCE_FILE

CONFIG_FILE, CARD_FILE = "config.json", "README.md"
FILES = (CONFIG_FILE, PROVENANCE_FILE, EXCHANGE_FILE, CARD_FILE)  # of an exchange folder
HUB_SCHEME = "hf://"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


def download(name: str, revision: str | None, files: Sequence[str]) -> Path:
    """The folder of the hub's cache with these files of `owner/name`; files in the cache are not fetched again.

    FileNotFoundError if the hub has no such model or cannot be reached.
    """
    hub = _library(f"{name} is no folder here, and asking the hub for it needs huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except (OSError, ValueError) as error:  # the errors of the library for names, rights and connections
        raise FileNotFoundError(
            f"{name} is no folder here, and the hub did not give it: {' '.join(str(error).split())[:300]}"
        ) from error


def push(folder: Path, name: str, files: Sequence[str], *, private: bool = False) -> str:
    """Upload files of the folder to the model repository `owner/name`, made if it does not exist; return its address.

    The login is huggingface_hub's own (`hf auth login`, or HF_TOKEN).
    """
    api = _library("pushing needs huggingface_hub").HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True, repo_type="model")
        commit = api.upload_folder(
            repo_id=name,
            folder_path=str(folder),
            allow_patterns=list(files),
            repo_type="model",
            commit_message="Weights, configuration and card written by avssl",
        )
    except Exception as error:  # the library and its transport have many kinds
        raise OSError(f"the hub did not take {folder} as {name}: {' '.join(str(error).split())[:300]}") from error
    return str(commit)


def _library(purpose: str) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise FileNotFoundError(f"{purpose}; install the extra: pip install 'avssl[hub]'") from error
    return huggingface_hub


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
