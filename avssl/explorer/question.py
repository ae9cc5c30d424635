"""What a reader of the explorer asks, as the address of a page says it, and what is answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

from avssl.embedding.table import EmbeddingRows, EmbeddingTable, Hit, RowFacts
from avssl.files.plain_text import brief
from avssl.processes.limits import Limits

ALL_WINDOWS = 0
MOST_TEXT = 500  # characters
CLIPS_ADDRESS = "/media/"


@dataclass(frozen=True)
class Asked:
    """What is asked for: rows of a key, an upload, or a text; without any of them the first page.

    row: a row of the folder, in place of its key and window. window: of the source, from 1; ALL_WINDOWS for their mean.
    by: the modality that asks; "" for the first that there is. label: "field: name" of the rows to find; "" for all.
    with_own: rows of the source itself are found too. each_row: a file may be found several times.
    """

    row: int | None = None
    key: str = ""
    upload: str = ""
    text: str = ""
    window: int = ALL_WINDOWS
    by: str = ""
    label: str = ""
    with_own: bool = False
    each_row: bool = False


@dataclass(frozen=True)
class UploadLimits:
    """What an upload may be. num_bytes: of the file; seconds: how long it lasts; reading: of each step of decoding."""

    num_bytes: int = 200 << 20
    seconds: float = 600.0
    reading: Limits = field(default_factory=lambda: Limits(120.0))


@dataclass(frozen=True)
class Upload:
    """A file that somebody gave. path: where it lies now. table: its windows."""

    name: str
    path: Path
    table: EmbeddingTable


@dataclass(frozen=True)
class Answer:
    """What was found. row: the seconds that asked, None for text. windows: those of the source that have the modality.

    modalities: by which the source can be asked. hits: {modality: rows, best first}. facts: of the rows of `hits`.
    upload: the file that asked, if it is one.
    """

    name: str
    modality: str
    hits: dict[str, list[Hit]]
    facts: dict[int, RowFacts]
    modalities: tuple[str, ...] = ()
    windows: EmbeddingRows | None = None
    row: RowFacts | None = None
    upload: Upload | None = None


def address(asked: Asked) -> str:
    """The address of what is asked for, below the server's."""
    values = {
        "row": "" if asked.row is None else asked.row,
        "key": asked.key,
        "upload": asked.upload,
        "text": asked.text,
        "window": asked.window if asked.window != ALL_WINDOWS else "",
        "by": asked.by,
        "label": asked.label,
        "own": "1" if asked.with_own else "",
        "each": "1" if asked.each_row else "",
    }
    query = urlencode({name: value for name, value in values.items() if value != ""}, errors="surrogatepass")
    return f"/?{query}" if query else "/"


def asked_of(values: Mapping[str, str]) -> Asked:
    """What the address of a page asks for; ValueError for a number that is none."""

    def number(name: str, default: int | None) -> int | None:
        text = values.get(name, "")
        if not text:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise ValueError(f"{name}={brief(text)} must be a whole number of at least 0")
        return int(text)

    return Asked(
        number("row", None),
        values.get("key", ""),
        values.get("upload", ""),
        values.get("text", "").strip(),
        number("window", ALL_WINDOWS) or ALL_WINDOWS,
        values.get("by", ""),
        values.get("label", ""),
        values.get("own") == "1",
        values.get("each") == "1",
    )
