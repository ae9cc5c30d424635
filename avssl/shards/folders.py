"""What `data.shards` may be: a folder, or a list of folders with or without weights. It opens nothing."""

from __future__ import annotations

import difflib
import math
import os
from dataclasses import dataclass

from avssl.files.plain_text import brief

ALLOWED = (
    "a folder or URL, or a list of them, each a path or {path: ..., weight: a number above 0, keys: a file of `avssl "
    "prep select`}"
)


FIELDS = ("path", "weight", "keys")


@dataclass(frozen=True)
class ShardFolder:
    """An entry of a list of shard folders.

    weight: None if the list has none. keys: the file of `avssl prep select` that lists the samples to read; "": all.
    """

    path: str
    weight: float | None = None
    keys: str = ""


def shard_folders(shards: object) -> list[ShardFolder]:
    """The entries of `data.shards`: of a path one without a weight. ValueError says what is wrong and what is allowed.

    >>> shard_folders([{"path": "a/", "weight": 1}, {"path": "b/", "weight": 3}])[1]
    ShardFolder(path='b/', weight=3.0, keys='')
    """
    if isinstance(shards, str | os.PathLike):
        return [ShardFolder(os.fspath(shards))]
    if not isinstance(shards, list | tuple):
        raise ValueError(f"data.shards is {brief(shards)}; it must be {ALLOWED}")
    if not shards:
        raise ValueError(f"data.shards is an empty list; it must be {ALLOWED}")
    folders = [_folder(number, entry) for number, entry in enumerate(shards)]
    unweighted = [folder.path for folder in folders if folder.weight is None]
    if unweighted and len(unweighted) < len(folders):
        raise ValueError(
            f"data.shards: {', '.join(unweighted)} has no weight, and others have one; give every folder a weight, or "
            "none: then each has as many samples in an epoch as it holds"
        )
    return folders


def _folder(number: int, entry: object) -> ShardFolder:
    where = f"data.shards[{number}]"
    if isinstance(entry, str) and entry:
        return ShardFolder(entry)
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {brief(entry)}; it must be a path or {{path: ..., weight: ..., keys: ...}}")
    for key in entry:
        if key not in FIELDS:
            near = difflib.get_close_matches(str(key), FIELDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where} has the key {brief(key)}.{hint} It may have {', '.join(FIELDS)}")
    path, weight, keys = entry.get("path"), entry.get("weight"), entry.get("keys", "")
    if not isinstance(path, str) or not path:
        raise ValueError(f"{where} has the path {brief(path)}; it must be a folder or URL")
    if not isinstance(keys, str | os.PathLike) or ("keys" in entry and not os.fspath(keys)):
        raise ValueError(f"{where} ({path}) has the keys {brief(keys)}; it must be a file of `avssl prep select`")
    if weight is None:
        return ShardFolder(path, keys=os.fspath(keys))
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not (math.isfinite(weight) and weight > 0):
        raise ValueError(
            f"{where} ({path}) has the weight {brief(weight)}; it must be a number above 0. To leave a folder out, "
            "take it from the list"
        )
    return ShardFolder(path, float(weight), os.fspath(keys))
