"""safetensors files whose bytes are a function of their content alone: equal tensors have equal hashes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch


def write_tensors(state: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors (copied where two share memory) with the rights that any new file has, not for its owner alone.

    The library sorts the tensors, but leaves the order of the metadata to chance: they are sorted here.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    own: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, value in state.items():
        here = value.detach().cpu().contiguous()
        storage = here.untyped_storage().data_ptr()
        own[name] = here.clone() if storage in seen else here
        seen.add(storage)
    # None, not {}: safetensors 0.8.0 writes a header that it cannot read for no tensors and metadata of no entries.
    try:
        save_file(own, str(path), metadata=dict(metadata) or None)
    except SafetensorError as error:  # the library has no class of its own for a disk that is full
        found = re.search(r"os error (\d+)", str(error))
        raise error if found is None else OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
    _sort_metadata(path)
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def _sort_metadata(path: Path) -> None:
    """Rewrite the header in place; it keeps its length, filled up with spaces, as the format allows."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length and header["__metadata__"]:
            file.seek(8)
            file.write(text.ljust(length))
