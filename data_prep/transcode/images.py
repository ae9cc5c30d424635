"""Turns a source image into the image of a sample: JPEG if it was compressed with loss, otherwise PNG.

A JPEG that is small enough, upright, and gray or RGB is copied byte for byte, with its metadata. Every other image is
decoded (see avssl/media/images.py), scaled down if necessary, and encoded without metadata.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from avssl.media.images import GRAY_MODES, ImageInfo, is_upright, open_image, to_rgb
from avssl.media.sources import Source
from data_prep.index.mnist import IdxFile
from data_prep.transcode.options import WriteOptions


@dataclass(frozen=True)
class StoredImage:
    """content: JPEG or PNG. height_px, width_px: of the upright image in it. source: facts of the original."""

    content: bytes
    height_px: int
    width_px: int
    source: dict[str, Any]


def store_file(source: Source, options: WriteOptions, *, name: str = "") -> StoredImage:
    """The stored form of an image file. MediaError says why it must be skipped. name: for messages."""
    with open_image(source, name) as image:
        info = ImageInfo.of(image)
        may_be_copied = info.format == "JPEG" and info.mode in ("L", "RGB") and is_upright(image)
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        is_lossy = info.format in ("JPEG", "MPO") or (info.format == "WEBP" and b"VP8L" not in content)
        pixels = to_rgb(image)  # an image that is copied is decoded, too, to show that it can be
        size = smaller_size(pixels.width, pixels.height, options.short_side_px)
        if not may_be_copied or size != pixels.size:
            if info.mode in GRAY_MODES:
                pixels = pixels.convert("L")
            content = encode(pixels, size, options.image_quality if is_lossy else None)
    return StoredImage(content, size[1], size[0], {"image": info.to_json()})


def store_item(file: IdxFile, item: int, options: WriteOptions) -> StoredImage:
    """The stored form of an image in a file that holds many: PNG. MediaError says why it must be skipped."""
    pixels = Image.fromarray(file.image(item))
    size = smaller_size(pixels.width, pixels.height, options.short_side_px)
    return StoredImage(encode(pixels, size, None), size[1], size[0], {"item": item, "image": file.facts(pixels.size)})


def smaller_size(width: int, height: int, short_side_px: int) -> tuple[int, int]:
    """(width, height) of the same shape, the shorter side at most short_side_px; never larger than given."""
    scale = min(1.0, short_side_px / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def encode(pixels: Image.Image, size: tuple[int, int], quality: int | None) -> bytes:
    """The image, resized to (width, height) by antialiased bicubic, as JPEG of a quality in 1 to 100; None: as PNG."""
    if size != pixels.size:
        pixels = pixels.resize(size, Image.Resampling.BICUBIC)
    output = io.BytesIO()
    if quality is None:
        pixels.save(output, "PNG")
    else:
        pixels.save(output, "JPEG", quality=quality)
    return output.getvalue()
