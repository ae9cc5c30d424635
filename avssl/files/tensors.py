"""safetensors files whose bytes are a function of their content alone: equal tensors have equal hashes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch


def write_tensors(state: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors (copied where two share memory) to a file with the usual rights of a new file.

    The library sorts the tensors; the metadata are sorted here. disk_errors.clear_errors explains its errors.
    """
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, value in state.items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    # None, not {}: safetensors 0.8.0 writes a header that it cannot read for no tensors and metadata of no entries.
    save_file(tensors, str(path), metadata=dict(metadata) or None)
    _sort_metadata(path)
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata in the header of a file, in place; spaces keep its length, as the format allows."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length and header["__metadata__"]:
            file.seek(8)
            file.write(text.ljust(length))
