"""Images from a path or bytes, decoded by Pillow; plain JPEG in memory by torchvision, to the same pixels (jpeg.py).

Every image becomes RGB, 8 bits, upright:

- Gray is repeated in the three channels, palettes are looked up, CMYK and YCbCr are converted as by Pillow.
- Transparency is dropped, not blended: the stored color stays, as in torchvision's ImageFolder.
- Pixels of 16 bits keep their high byte. 32-bit and float pixels are refused, because their range is unknown.
- The orientation of EXIF (or XMP) is applied. Color profiles are ignored.
- If a file holds several images (animations, pages), the first one is read.

Every failure is a MediaError with a typed reason. Only the formats below are opened: Pillow itself decodes them, and
none of them starts a program (as Pillow's EPS reader does) or refers to other files.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from avssl.media.jpeg import decode_plain_jpeg, is_plain_jpeg
from avssl.media.sources import Source, label_of, open_source
from avssl.types import MediaError

if TYPE_CHECKING:
    import torch

# The suffixes that a search of a folder finds. A file that is given by its name may have any suffix.
IMAGE_SUFFIXES = frozenset(f".{name}" for name in ("jpg", "jpeg", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff"))
# Pillow knows a format once its module is imported; only these two modules must be imported here.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", WebPImagePlugin.WebPImageFile.format, TiffImagePlugin.TiffImageFile.format)
SIGNATURE = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|GIF8|RIFF....WEBP|II\*\0|MM\0\*", re.DOTALL)
MAX_PIXELS = 178_956_970  # half a GiB as RGB, above which Pillow calls an image a decompression bomb
GRAY_16_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # mode I is 16-bit PNG before Pillow 11
GRAY_MODES = ("1", "L", "LA", *GRAY_16_BITS)
ORIENTATION_TAG = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageInfo:
    """The header of an image. format, mode: Pillow's names. width, height: as stored, before the orientation."""

    format: str
    mode: str
    width: int
    height: int

    @classmethod
    def of(cls, image: Image.Image) -> Self:
        """The facts of an open image, which need not be decoded."""
        return cls(str(image.format), image.mode, image.width, image.height)

    def to_json(self) -> dict[str, Any]:
        """The header as a plain dict for JSON."""
        return asdict(self)


def read_image(source: Source, *, name: str = "") -> torch.Tensor:
    """An image as RGB; the docstring of this module says how other colors are converted.

    Args:
        source: path, or the file's bytes; name: for error messages, default the path.

    Returns:
        uint8 (3, H, W) in [0, 255], upright, in channels-last memory.

    Raises:
        MediaError: missing_file, empty_file, not_media, truncated, decode_error (also more than MAX_PIXELS pixels).

    >>> read_image(image).shape
    torch.Size([3, 40, 48])
    """
    if isinstance(source, bytes) and is_plain_jpeg(source) and (decoded := decode_plain_jpeg(source)) is not None:
        return decoded
    with open_image(source, name) as image:
        pixels = np.array(to_rgb(image))
    import torch  # here: to list files takes no tensors

    return torch.from_numpy(pixels).permute(2, 0, 1)


def probe_image(source: Source, *, name: str = "") -> ImageInfo:
    """The header of an image; its pixels are not decoded. MediaError as `read_image`.

    >>> probe_image(image).width
    48
    """
    with open_image(source, name) as image:
        return ImageInfo.of(image)


@contextmanager
def open_image(source: Source, name: str = "") -> Iterator[Image.Image]:
    """The open image, its pixels not yet decoded. Use the block for Pillow only: its errors become MediaErrors."""
    label = label_of(source, name)
    with open_source(source, label) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, for damaged metadata and large images: MAX_PIXELS decides
        try:
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    size = f"{image.width} x {image.height} pixels"
                    raise MediaError("decode_error", f"{label}: claims {size}; allowed are at most {MAX_PIXELS}")
                if image.mode in ("I", "F") and image.format != "PNG":
                    modes = f"{label}: has pixels of mode {image.mode}, whose range is unknown"
                    raise MediaError("decode_error", f"{modes}; allowed are 8 and 16 bits")
                yield image
        except MediaError:
            raise
        except Exception as error:  # for damaged files Pillow's readers raise errors of any type, even MemoryError
            raise _media_error(error, file, label) from error


def _media_error(error: Exception, file: BinaryIO, label: str) -> MediaError:
    """Pillow's error as a MediaError with a typed reason."""
    if isinstance(error, UnidentifiedImageError):
        file.seek(0)
        if SIGNATURE.match(file.read(16)):
            return MediaError("decode_error", f"{label}: begins like an image, but its header cannot be read")
        return MediaError("not_media", f"{label}: is none of the formats {', '.join(map(str, FORMATS))}")
    is_cut_off = isinstance(error, EOFError) or "truncated" in str(error).lower() or _is_cut_off_webp(file)
    return MediaError("truncated" if is_cut_off else "decode_error", f"{label}: {type(error).__name__}: {error}")


def _is_cut_off_webp(file: BinaryIO) -> bool:
    """Whether a RIFF file is shorter than its header says. WebP's decoder does not tell this from other damage."""
    file.seek(0)
    head = file.read(8)
    return head[:4] == b"RIFF" and file.seek(0, os.SEEK_END) < 8 + int.from_bytes(head[4:], "little")


def is_upright(image: Image.Image) -> bool:
    """Whether the metadata states no turn or flip. Right before decoding for JPEG alone, which states it first."""
    return image.getexif().get(ORIENTATION_TAG, 1) not in TURNS


def to_rgb(image: Image.Image) -> Image.Image:
    """The decoded upright image in mode RGB, without metadata. Call it in the block of `open_image`."""
    image.load()  # first: PNG may give the orientation after the pixels, and TIFF applies it here
    turn = TURNS.get(image.getexif().get(ORIENTATION_TAG, 1))
    if image.mode in GRAY_16_BITS:
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode != "RGB":
        image.info.pop("transparency", None)  # Pillow would warn
        image = image.convert("RGB")
    if turn is not None:
        image = image.transpose(turn)
    image.info = {}
    return image
