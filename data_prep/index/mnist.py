"""Files that hold many gray images and their classes, in the idx format of MNIST and Fashion-MNIST; .gz or not.

`<name>images-idx3-ubyte` holds big-endian 0x803, the number of images, rows and columns as 32-bit integers, then one
byte per pixel; `<name>labels-idx1-ubyte` beside it holds 0x801, the number of labels, then one byte per label.
"""

from __future__ import annotations

import gzip
import re
import stat
import zlib
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from avssl.types import MediaError

IDX_IMAGES, IDX_LABELS = 0x803, 0x801
IDX_NAME = re.compile(r"images[-.]idx3[-.]ubyte(\.gz)?$")


@dataclass(frozen=True)
class IdxFile:
    """An idx file of images."""

    path: str

    def image(self, item: int) -> NDArray[np.uint8]:
        """Image number `item`, uint8 (H, W). A process reads the file once. MediaError if there is no such image."""
        try:
            facts = Path(self.path).stat()
        except OSError as error:
            raise MediaError("missing_file", f"{self.path}: cannot be opened ({error.strerror})") from error
        images = _cached_images(self, facts.st_mtime_ns, facts.st_size)
        if isinstance(images, MediaError):
            raise MediaError(images.reason, images.message)
        if item >= len(images):
            raise MediaError("decode_error", f"{self.path}: has {len(images)} images, none with number {item}")
        return cast("NDArray[np.uint8]", images[item])

    def images(self) -> NDArray[np.uint8]:
        """All images, uint8 (N, H, W). MediaError if the file is missing, damaged or no idx file."""
        return _read_idx(Path(self.path), IDX_IMAGES)

    def facts(self, size: tuple[int, int]) -> dict[str, Any]:
        """What the manifest says about an image of size (width, height)."""
        return {"format": "idx", "mode": "L", "width": size[0], "height": size[1]}


@lru_cache(maxsize=4)
def _cached_images(file: IdxFile, modified_ns: int, num_bytes: int) -> NDArray[np.uint8] | MediaError:
    """All images, or the error, so that a damaged file is not read again for each of its items."""
    del modified_ns, num_bytes  # in the key of the cache, so that a changed file is read again
    try:
        return file.images()
    except MediaError as error:
        return error


def is_idx_file(path: str | Path) -> bool:
    """Whether the name is that of an idx file of images."""
    return IDX_NAME.search(Path(path).name) is not None


def open_idx_file(path: Path, *, with_labels: bool = True) -> tuple[IdxFile, NDArray[np.uint8], list[str] | None]:
    """(the file, its images as uint8 (N, H, W), N class names; None instead of names if with_labels is False).

    Raises ValueError (MediaError for damage), or FileNotFoundError without the label file.
    """
    file = IdxFile(str(path))
    images = file.images()
    if not with_labels:
        return file, images, None
    labels: NDArray[Any] = _read_idx(_label_file(path), IDX_LABELS)
    if len(labels) != len(images):
        raise ValueError(f"{_label_file(path)}: holds {len(labels)} labels for {len(images)} images of {path.name}")
    return file, images, [str(label) for label in labels.tolist()]


def _label_file(images: Path) -> Path:
    """train-images-idx3-ubyte.gz -> train-labels-idx1-ubyte.gz beside it, compressed or not."""
    head, _, tail = images.name.rpartition("images")
    name = f"{head}labels{tail.replace('idx3', 'idx1')}".removesuffix(".gz")
    for candidate in (images.with_name(name), images.with_name(f"{name}.gz")):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"{images}: its labels are missing; looked for {name} and {name}.gz beside it. --labels none needs none"
    )


def _read_bytes(path: Path) -> bytes:
    """The content, unpacked. MediaError if there is none or it ends early."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for somebody to write into it
            raise MediaError("missing_file", f"{path}: is no regular file")
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, zlib.error) as error:
        raise MediaError("decode_error", f"{path}: is no gzip file, or damaged ({error})") from error
    except OSError as error:
        raise MediaError("missing_file", f"{path}: cannot be opened ({error.strerror})") from error
    except EOFError as error:
        raise MediaError("truncated", f"{path}: ends early ({error})") from error
    if not content:
        raise MediaError("empty_file", f"{path}: has zero bytes")
    return content


def _read_idx(path: Path, magic: int) -> NDArray[np.uint8]:
    """uint8 array of an idx file whose magic number says how many dimensions it has."""
    content = _read_bytes(path)
    num_dimensions = magic & 0xFF
    begin = 4 + 4 * num_dimensions
    if len(content) < begin:
        raise MediaError("truncated", f"{path}: has {len(content)} bytes; its header alone takes {begin}")
    if (number := int.from_bytes(content[:4], "big")) != magic:
        raise MediaError("not_media", f"{path}: begins with {number:#x}; an idx file like this begins with {magic:#x}")
    shape = tuple(np.frombuffer(content, ">u4", num_dimensions, 4).tolist())
    num_bytes = len(content) - begin
    if num_bytes != prod(shape) or not num_bytes:
        size = " x ".join(map(str, shape))
        message = f"{path}: {num_bytes} bytes follow its header, which says {size}"
        raise MediaError("truncated" if num_bytes < prod(shape) else "decode_error", message)
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape)
