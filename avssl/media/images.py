"""Bytes or a path -> a picture. The only reader of pictures; Pillow decodes.

Every picture becomes RGB, 8 bits, upright:

- Gray is repeated in the three channels; palettes are looked up; CMYK and YCbCr are converted as Pillow does.
- Transparency is dropped, not blended: what is stored below it shows, as in torchvision's ImageFolder.
- 16 bits keep their high byte. 32-bit and float pixels are refused, for nothing says which range they have.
- The orientation of EXIF (or XMP) is applied. Color profiles are ignored.
- Of several pictures in a file (animations, pages) the first one is read.

Whatever goes wrong is a MediaError with a typed reason. Only the formats below are opened: all of them are decoded by
Pillow itself, none of them starts a program (as Pillow's EPS reader does) or refers to other files.
"""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import torch
from PIL import Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from avssl.types import MediaError

__all__ = [
    "GRAY_MODES", "IMAGE_SUFFIXES", "MAX_PIXELS", "ImageInfo", "Source", "is_upright", "opened_image", "probe_image",
    "read_image", "to_rgb",
]  # fmt: skip

Source = str | os.PathLike[str] | bytes

# What a folder is searched for. A file that is named itself may have any suffix.
IMAGE_SUFFIXES = frozenset(f".{name}" for name in ("jpg", "jpeg", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff"))
# Pillow knows a format once its module is imported; all but these two come along by themselves.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", WebPImagePlugin.WebPImageFile.format, TiffImagePlugin.TiffImageFile.format)
SIGNATURE = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|GIF8|RIFF....WEBP|II\*\0|MM\0\*", re.DOTALL)
MAX_PIXELS = 178_956_970  # half a GiB as RGB, where Pillow, too, calls a picture a decompression bomb
GRAY_16_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # I: 16-bit PNG before Pillow 11
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
    """What a picture's header says. format, mode: Pillow's names. width, height: as stored, before the orientation."""

    format: str
    mode: str
    width: int
    height: int

    @classmethod
    def of(cls, image: Image.Image) -> Self:
        """Of an open picture that is not yet decoded."""
        return cls(str(image.format), image.mode, image.width, image.height)

    def to_json(self) -> dict[str, Any]:
        """Plain dict for json."""
        return asdict(self)


def read_image(source: Source, *, name: str = "") -> torch.Tensor:
    """A picture as RGB (see the top of this file for what becomes of other colors).

    Args:
        source: path, or the file's bytes; name: what error messages call it, default the path.

    Returns:
        uint8 (3, H, W) in [0, 255], upright, in channels-last memory.

    Raises:
        MediaError: missing_file, empty_file, not_media, truncated, decode_error (also more than MAX_PIXELS pixels).
    """
    with opened_image(source, name) as image:
        pixels = np.array(to_rgb(image))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def probe_image(source: Source, *, name: str = "") -> ImageInfo:
    """The header of a picture; its pixels are not decoded. MediaError as `read_image`."""
    with opened_image(source, name) as image:
        return ImageInfo.of(image)


@contextmanager
def opened_image(source: Source, name: str = "") -> Iterator[Image.Image]:
    """The open picture, its pixels not yet decoded. For Pillow calls alone: errors of the block become MediaErrors."""
    label = name or ("<bytes>" if isinstance(source, bytes) else os.fspath(source))
    with _opened_file(source, label) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, on damaged metadata and large pictures: MAX_PIXELS decides
        try:
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    size = f"{image.width} x {image.height} pixels"
                    raise MediaError("decode_error", f"{label}: claims {size}; allowed are at most {MAX_PIXELS}")
                if image.mode in ("I", "F") and image.format != "PNG":
                    modes = f"{label}: has pixels of mode {image.mode}, whose range nobody knows"
                    raise MediaError("decode_error", f"{modes}; allowed are 8 and 16 bits")
                yield image
        except MediaError:
            raise
        except Exception as error:  # Pillow's readers raise what they stumble over in a damaged file, MemoryError too
            raise _media_error(error, file, label) from error


def _media_error(error: Exception, file: IO[bytes], label: str) -> MediaError:
    """What Pillow raised, with a typed reason."""
    if isinstance(error, UnidentifiedImageError):
        file.seek(0)
        if SIGNATURE.match(file.read(16)):
            return MediaError("decode_error", f"{label}: begins like a picture, but its header cannot be read")
        return MediaError("not_media", f"{label}: is none of the formats {', '.join(map(str, FORMATS))}")
    is_cut_off = isinstance(error, EOFError) or "truncated" in str(error).lower() or _is_cut_off_webp(file)
    return MediaError("truncated" if is_cut_off else "decode_error", f"{label}: {type(error).__name__}: {error}")


def _is_cut_off_webp(file: IO[bytes]) -> bool:
    """Does a RIFF file end before its header says? WebP's decoder does not tell this from other damage."""
    file.seek(0)
    head = file.read(8)
    return head[:4] == b"RIFF" and file.seek(0, os.SEEK_END) < 8 + int.from_bytes(head[4:], "little")


@contextmanager
def _opened_file(source: Source, label: str) -> Iterator[IO[bytes]]:
    """The file or bytes, open for reading; MediaError if there is nothing to read."""
    try:
        if not isinstance(source, bytes) and not stat.S_ISREG(
            Path(source).stat().st_mode
        ):  # a pipe would be waited for
            raise MediaError("missing_file", f"{label}: is no regular file")
        file: IO[bytes] = io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb")  # noqa: SIM115 (below)
    except OSError as error:
        raise MediaError("missing_file", f"{label}: cannot be opened ({error.strerror})") from error
    with file:
        if not file.read(1):
            raise MediaError("empty_file", f"{label}: has zero bytes")
        file.seek(0)
        yield file


def is_upright(image: Image.Image) -> bool:
    """Is the picture stored as it is to be seen, with no turn or flip in its metadata? (For JPEG, before decoding.)"""
    return image.getexif().get(ORIENTATION_TAG, 1) not in TURNS


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode: the upright picture in mode RGB, without metadata. To be called in the block of `opened_image`."""
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
