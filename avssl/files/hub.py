"""Files of the Hugging Face hub. Only this file imports huggingface_hub, of the extra `hub`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal

from avssl.files.plain_text import brief

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")


def download(name: str, revision: str | None, files: Sequence[str]) -> Path:
    """The folder of the hub's cache with these files of `owner/name`; files in the cache are not fetched again.

    files: names or patterns with `*`. With HF_HUB_OFFLINE=1 only the cache is read. FileNotFoundError if the hub has no
    such model or revision, or cannot be reached.
    """
    hub = library(f"{name} is no folder here, and asking the hub for it needs huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except (OSError, ValueError) as error:  # the errors of the library for names, rights and connections
        at = f" at revision {revision}" if revision else ""
        raise FileNotFoundError(
            f"{name} is no folder here, and the hub did not give it{at}: {' '.join(str(error).split())[:300]}"
        ) from error


def upload(
    folder: Path,
    name: str,
    files: Sequence[str],
    *,
    kind: Literal["model", "dataset"],
    private: bool,
    message: str,
    replaced: Sequence[str] = (),
) -> str:
    """Upload files of a folder to the repository `owner/name`, made if it does not exist; the address of the commit.

    message: of the commit. replaced: patterns with `*`; the same commit removes files of such names from the
    repository, but for those that it uploads. The login is huggingface_hub's own (`hf auth login`, or HF_TOKEN).
    ValueError if the name is none, FileNotFoundError without the library, OSError if the hub does not take it.
    """
    check_name(name)
    api = library("pushing needs huggingface_hub").HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True, repo_type=kind)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=str(folder),
            allow_patterns=list(files),
            delete_patterns=list(replaced) or None,
            repo_type=kind,
            commit_message=message,
        )
    except Exception as error:  # the library and its transport have many kinds
        raise OSError(f"the hub did not take {folder} as {name}: {' '.join(str(error).split())[:300]}") from error
    return str(commit)


def check_name(name: str) -> None:
    """ValueError unless a text is a name of a repository, `owner/name`."""
    if not HUB_ID.fullmatch(name) or "@" in name:
        raise ValueError(f"{brief(name)} is no name of a repository at the hub; write ORG/NAME")


def commit_of(folder: Path) -> str:
    """The commit of a folder that `download` gave: 40 hex digits; "" for another folder."""
    return folder.name if COMMIT.fullmatch(folder.name) and folder.parent.name == "snapshots" else ""


def library(purpose: str) -> ModuleType:
    """huggingface_hub. FileNotFoundError that begins with the purpose if it is not installed."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise FileNotFoundError(f"{purpose}; install the extra: pip install 'avssl[hub]'") from error
    return huggingface_hub
