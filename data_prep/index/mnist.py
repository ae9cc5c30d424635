"""Files that hold many gray pictures and their classes: MNIST's idx, and csv with a row a picture; .gz or not.

idx (the format of MNIST, Fashion-MNIST and their kin): `<name>images-idx3-ubyte` holds big-endian 0x803, the number of
pictures, rows and columns as 32-bit integers, then a byte a pixel; `<name>labels-idx1-ubyte` beside it holds 0x801, the
number of labels, then a byte a label.

csv: whole numbers 0 to 255 separated by commas, a square picture a row, with its class in the first or last column, or
without a class. A header may name that column (`label` or `class`). Without a header it is the one of the two whose
values are 0..K-1, each of them there; if that fits both or neither, someone has to say which it is.
"""

from __future__ import annotations

import gzip
import io
import re
import stat
import zlib
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt, prod
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from avssl.types import MediaError

IDX_IMAGES, IDX_LABELS = 0x803, 0x801
IDX_NAME = re.compile(r"images[-.]idx3[-.]ubyte(\.gz)?$")
CSV_NAME = re.compile(r"\.csv(\.gz)?$", re.IGNORECASE)
LABEL_COLUMNS = {"first": 0, "last": -1}
LABEL_NAMES = ("label", "class")


@dataclass(frozen=True)
class ImageFile:
    """A file of many pictures. label_column: of a csv, "first", "last" or "none"; None for idx."""

    path: str
    label_column: str | None = None

    def picture(self, item: int) -> NDArray[np.uint8]:
        """uint8 (H, W) of picture number `item`. The file is read once a process. MediaError if it cannot be had."""
        try:
            facts = Path(self.path).stat()
        except OSError as error:
            raise MediaError("missing_file", f"{self.path}: cannot be opened ({error.strerror})") from error
        pictures = _cached_pictures(self, facts.st_mtime_ns, facts.st_size)
        if isinstance(pictures, MediaError):
            raise MediaError(pictures.reason, pictures.message)
        if item >= len(pictures):
            raise MediaError("decode_error", f"{self.path}: has {len(pictures)} pictures, none with number {item}")
        return cast("NDArray[np.uint8]", pictures[item])

    def pictures(self) -> NDArray[np.uint8]:
        """uint8 (N, H, W), all of them. MediaError if the file is not as it should be."""
        if self.label_column is None:
            return _read_idx(Path(self.path), IDX_IMAGES)
        return _split_columns(self, _read_csv(Path(self.path))[1])[0]

    def facts(self, size: tuple[int, int]) -> dict[str, Any]:
        """What the manifest says of a picture of (width, height)."""
        facts = {"format": "idx" if self.label_column is None else "csv", "mode": "L"}
        if self.label_column is not None:
            facts["label_column"] = self.label_column  # so that `write` reads the same columns
        return facts | {"width": size[0], "height": size[1]}


@lru_cache(maxsize=4)
def _cached_pictures(file: ImageFile, modified_ns: int, num_bytes: int) -> NDArray[np.uint8] | MediaError:
    """All pictures, or why there are none: a damaged file, too, is read once and not again for each of its items."""
    del modified_ns, num_bytes  # part of the key: a file that was changed is another file
    try:
        return file.pictures()
    except MediaError as error:
        return error


def is_picture_file(path: Path) -> bool:
    """Does the name say that this is an idx or csv file of pictures?"""
    return IDX_NAME.search(path.name) is not None or CSV_NAME.search(path.name) is not None


def open_picture_file(
    path: Path, label_column: str | None = None, *, with_labels: bool = True
) -> tuple[ImageFile, NDArray[np.uint8], list[str] | None]:
    """(the file, uint8 (N, H, W), N class names).

    label_column: of a csv, "first" or "last"; None: see the top of this file. with_labels: an idx file needs its label
    file; otherwise the names are None, as they are for a csv without a column of classes.

    Raises ValueError (MediaError for damage) or FileNotFoundError.
    """
    if IDX_NAME.search(path.name):
        if label_column is not None:
            raise ValueError(f"{path}: --csv-label {label_column} is for csv files; idx has its labels beside it")
        file = ImageFile(str(path))
        pictures = file.pictures()
        labels: NDArray[Any] | None = _read_idx(_label_file(path), IDX_LABELS) if with_labels else None
    else:
        names, rows = _read_csv(path)
        file = ImageFile(str(path), _label_column(path, names, rows, label_column))
        pictures, labels = _split_columns(file, rows)
    if labels is not None and len(labels) != len(pictures):
        raise ValueError(f"{_label_file(path)}: holds {len(labels)} labels for {len(pictures)} pictures of {path.name}")
    return file, pictures, [str(label) for label in labels.tolist()] if with_labels and labels is not None else None


def _label_file(images: Path) -> Path:
    """train-images-idx3-ubyte.gz -> train-labels-idx1-ubyte.gz beside it, compressed or not."""
    head, _, tail = images.name.rpartition("images")
    name = f"{head}labels{tail.replace('idx3', 'idx1')}".removesuffix(".gz")
    for candidate in (images.with_name(name), images.with_name(f"{name}.gz")):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"{images}: its labels are missing; looked for {name} and {name}.gz beside it. --labels none does without"
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
    if (found := int.from_bytes(content[:4], "big")) != magic:
        raise MediaError("not_media", f"{path}: begins with {found:#x}; an idx file like this begins with {magic:#x}")
    shape = tuple(np.frombuffer(content, ">u4", num_dimensions, 4).tolist())
    num_bytes = len(content) - begin
    if num_bytes != prod(shape) or not num_bytes:
        size = " x ".join(map(str, shape))
        message = f"{path}: {num_bytes} bytes follow its header, which says {size}"
        raise MediaError("truncated" if num_bytes < prod(shape) else "decode_error", message)
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape)


def _read_csv(path: Path) -> tuple[list[str] | None, NDArray[np.int16]]:
    """(names of the columns if there is a header, int16 (rows, columns))."""
    content = _read_bytes(path).removeprefix(b"\xef\xbb\xbf")  # a byte order mark would make the first row a header
    first, _, others = content.partition(b"\n")
    cells = [cell.strip('" \r') for cell in first.decode("utf-8", "replace").split(",")]
    names, rows = (None, content) if any(map(_is_number, cells)) else (cells, others)
    if not rows.strip():
        raise MediaError("decode_error", f"{path}: has no rows of numbers")
    try:
        values = np.loadtxt(io.BytesIO(rows), np.int16, comments=None, delimiter=",", ndmin=2)
    except (ValueError, OverflowError) as error:
        raise MediaError("decode_error", f"{path}: its rows are not equally many whole numbers ({error})") from error
    return names, values


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _label_column(path: Path, names: list[str] | None, rows: NDArray[np.int16], asked: str | None) -> str:
    """ "first", "last" or "none"; ValueError if it cannot be told."""
    num_columns = rows.shape[1]
    if isqrt(num_columns) ** 2 == num_columns and asked is None:
        return "none"
    if isqrt(num_columns - 1) ** 2 != num_columns - 1:
        raise ValueError(f"{path}: has {num_columns} columns; a square picture and its class take n * n + 1")
    if asked is not None:
        return asked
    fitting = [name for name, at in LABEL_COLUMNS.items() if names and names[at].lower() in LABEL_NAMES]
    fitting = fitting or [name for name, at in LABEL_COLUMNS.items() if _looks_like_classes(rows[:, at])]
    if len(fitting) != 1:
        raise ValueError(f"{path}: cannot tell which column is the class; give --csv-label first or last")
    return fitting[0]


def _looks_like_classes(values: NDArray[np.int16]) -> bool:
    found = np.unique(values)
    return len(found) > 1 and bool((found == np.arange(len(found))).all())


def _split_columns(file: ImageFile, rows: NDArray[np.int16]) -> tuple[NDArray[np.uint8], NDArray[np.int16] | None]:
    """(uint8 (N, side, side), int16 (N,) classes or None). MediaError if pixels are not 0 to 255."""
    labels: NDArray[np.int16] | None = None
    if file.label_column == "first":
        labels, rows = rows[:, 0], rows[:, 1:]
    elif file.label_column == "last":
        labels, rows = rows[:, -1], rows[:, :-1]
    side = isqrt(rows.shape[1])
    if side**2 != rows.shape[1]:
        raise MediaError("decode_error", f"{file.path}: {rows.shape[1]} pixels a row make no square picture")
    if rows.min() < 0 or rows.max() > 255:
        raise MediaError("decode_error", f"{file.path}: pixels are {rows.min()} to {rows.max()}; allowed are 0 to 255")
    return rows.astype(np.uint8).reshape(-1, side, side), labels
