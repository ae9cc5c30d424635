"""Plain JPEG in memory, as in shards, decoded by torchvision's decoder: the pixels of Pillow in half of its time.

Both call libjpeg-turbo; Pillow makes four bytes of a pixel and copies them to three. Plain is a picture of three colors
in YCbCr with 8 bits, whose metadata state nothing that Pillow would act on. Whether both decoders agree here is tried
once in a process on a small picture. Everything else, and what torchvision refuses, is left to Pillow, which also has
the errors.
"""

from __future__ import annotations

import importlib.util
import io
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

# Markers of the header: frames that torchvision and Pillow decode alike, segments that change nothing, and the scan.
BASELINE, EXTENDED, PROGRESSIVE, SCAN = 0xC0, 0xC1, 0xC2, 0xDA
TABLES = (0xDB, 0xC4, 0xDD, 0xFE, 0xE0)  # quantization, Huffman, restarts, comment, JFIF
MOST_PLAIN_PIXELS = 1 << 26  # above it Pillow's limit decides
RGB = 3  # torchvision's number of this mode


def is_plain_jpeg(content: bytes) -> bool:
    """Whether it is a JPEG of three colors in YCbCr, 8 bits, without metadata but JFIF and comments, by its header."""
    if content[:2] != b"\xff\xd8":
        return False
    at, has_frame = 2, False
    while at + 4 <= len(content) and content[at] == 0xFF:
        kind, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if kind == SCAN:
            return has_frame
        if kind in (BASELINE, EXTENDED, PROGRESSIVE):
            if has_frame or not _is_plain_frame(content[at + 4 : at + 2 + length]):
                return False
            has_frame = True
        elif kind not in TABLES:
            return False
        at += 2 + length
    return False


def _is_plain_frame(header: bytes) -> bool:
    """8 bits, components 1, 2, 3, which without other metadata are YCbCr, and a size that is not 0 or huge."""
    if len(header) < 15 or header[0] != 8 or header[5] != 3 or header[6:15:3] != b"\1\2\3":
        return False
    height, width = int.from_bytes(header[1:3], "big"), int.from_bytes(header[3:5], "big")
    return 0 < height * width <= MOST_PLAIN_PIXELS


def decode_plain_jpeg(content: bytes) -> torch.Tensor | None:
    """The picture of a plain JPEG, uint8 (3, H, W), channels last in memory; None if torchvision does not decode it."""
    return _decoded(content) if _agrees_with_pillow() else None


def _decoded(content: bytes) -> torch.Tensor | None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the bytes are not writable, and nothing writes into them
        encoded = torch.frombuffer(content, dtype=torch.uint8)
    try:
        decoded: torch.Tensor = torch.ops.image.decode_jpeg(encoded, RGB, False)
    except RuntimeError:  # Pillow says what is wrong
        return None
    return decoded


@cache
def _agrees_with_pillow() -> bool:
    """Load torchvision's decoder, without the package, which takes a second; False if it is absent or gives others."""
    import torch
    from PIL import Image

    package = importlib.util.find_spec("torchvision")
    libraries = (
        [] if package is None or package.origin is None else sorted(Path(package.origin).parent.glob("image*.so"))
    )
    try:
        torch.ops.load_library(libraries[0])
    except (IndexError, OSError):
        return False
    y, x = np.mgrid[:24, :38]
    scene = np.stack([7 * x + 3 * y, 200 - 5 * x + 2 * y, 40 + 9 * y * x], axis=-1).astype(np.uint8)
    for options in ({"subsampling": 2}, {"subsampling": 0, "progressive": True}):
        file = io.BytesIO()
        Image.fromarray(scene).save(file, "JPEG", **options)
        found = _decoded(file.getvalue())
        with Image.open(file) as image:
            if found is None or not np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(image)):
                return False
    return True
