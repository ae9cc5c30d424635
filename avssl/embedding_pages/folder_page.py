"""What a folder of embeddings holds, as one HTML page: coverage, failures, a map, nearest neighbors that play.

write_folder_page("embeddings/")        # embeddings/report.html
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path

from avssl.embedding.index import SKIPPED_NAME, FolderIndex
from avssl.embedding.search import EmbeddingIndex
from avssl.embedding.table import EmbeddingTable
from avssl.embedding_pages.clips import members_of
from avssl.embedding_pages.origins import Origins
from avssl.files.checked_json import Fields
from avssl.files.whole import write_whole
from avssl.pages.html_page import html_page, kit_file
from avssl.pages.markup import Html, join, tag
from avssl.pages.media import ClipMedia, MediaLibrary
from avssl.report.embedding_map import map_section
from avssl.report.facts import definition_list
from avssl.report.neighbors import neighbors_section, row_noun
from avssl.types import Span

MAX_ROWS = 200_000  # that are read; of a larger folder the page shows the first ones and says so
MAX_NAMES = 60  # of files that were left out, and of label names
MAX_MEDIA_BYTES = 8_000_000
NUM_QUERIES, NUM_NEIGHBORS = 4, 4
PAGE_NAME = "report.html"


def write_folder_page(folder: str | Path | EmbeddingIndex, *, max_media_bytes: int = MAX_MEDIA_BYTES) -> Path:
    """Write FOLDER/report.html and return its path. The same folder and media give the same bytes.

    folder: of embeddings, opened (also a LanceTable) or not.

    max_media_bytes: base64 text of the clips that play; files beyond it are shown as stills.
    Media that cannot be read any more do not fail the page. Raises as FolderIndex.read, and ValueError for a damaged
    file.
    """
    source = folder if isinstance(folder, EmbeddingIndex) else EmbeddingIndex(folder)
    place, index, table = source.folder, source.content, source.head(MAX_ROWS)
    clips = table.pool_by_key()
    origins = Origins(place, index.settings, clips.keys)
    rows = {key: number for number, key in enumerate(clips.keys)}

    def media(key: str) -> ClipMedia:
        row = rows[key]
        try:
            with closing(origins.media(key, int(clips.index[row]))) as opened:
                return members_of(opened, Span(float(clips.start_seconds[row]), float(clips.end_seconds[row])))
        except (OSError, ValueError):  # gone, damaged or not to be decoded: the page says "no video", "no audio"
            return ClipMedia()

    library = MediaLibrary(media, max_media_bytes)
    sections = [
        ("holds", "What is in it", _facts(index, table, clips)),
        ("coverage", "Coverage", _coverage(place, index, table)),
        ("neighbors", "Nearest neighbors", _neighbors(clips, library)),
        ("map", "Map", map_section(clips, library)),
    ]
    text = _page(place.resolve().name, index, sections, library)
    return write_whole(place / PAGE_NAME, text.encode("utf-8", "backslashreplace"))


def _facts(index: FolderIndex, table: EmbeddingTable, clips: EmbeddingTable) -> Html:
    settings = index.settings
    modalities = {name: f"{count:,} rows" for name, count in index.rows_with.items()}
    held = {
        "Rows": f"{index.num_rows:,}",
        row_noun(clips).capitalize(): f"{len(clips):,}" + ("" if len(table) == index.num_rows else " in what is shown"),
        **{f"With {name}": text for name, text in modalities.items()},
        **{f"Width of {name.replace('_', ' ')}": width for name, width in sorted(index.widths.items())},
    }
    if len(table) < index.num_rows:
        held["Shown here"] = f"the first {len(table):,} rows"
    names = ("run", "weights", "checkpoint_step", "window_seconds", "stride_seconds", "normalized", "avssl_version")
    shown = {name.replace("_", " "): settings[name] for name in names if name in settings}
    made = {**shown, "sources": settings.get("sources", [])}
    lists = [definition_list("Rows", held), definition_list("How they were made", made), _labels(clips)]
    return tag("div", *lists, class_="columns")


def _labels(clips: EmbeddingTable) -> Html:
    """The names of each label field with their counts, most frequent first."""
    fields = clips.label_fields()
    if not fields:
        note = "No row has a label. Folders of classes and a manifest (`avssl prep index --labels FILE.csv`) give them."
        return tag("div", tag("h3", "Labels"), tag("p", note, class_="note"), class_="facts")
    entries: dict[str, object] = {}
    for field in fields:
        counts = Counter(name or "no label" for name in clips.label(field))
        named = [f"{name} ({count:,})" for name, count in counts.most_common(MAX_NAMES)]
        more = f" and {len(counts) - MAX_NAMES} more" if len(counts) > MAX_NAMES else ""
        entries[field] = ", ".join(named) + more
    return definition_list("Labels", entries)


def _coverage(place: Path, index: FolderIndex, table: EmbeddingTable) -> Html:
    share = index.num_embedded / max(1, index.num_listed)
    text = f"{index.num_embedded:,} of {index.num_listed:,} sources have rows ({share * 100:.1f} %). "
    without = [name for name in index.settings["modalities"] if not table.has(name).all()]
    for name in without:
        count = index.num_rows - index.rows_with.get(name, 0)
        text += f"{count:,} rows have no {name}. "
    if not index.num_skipped:
        return tag("p", text, "Nothing was left out.")
    reasons = definition_list("Left out, by reason", dict(sorted(index.skipped_by_reason.items())))
    if not (place / SKIPPED_NAME).is_file():  # of a table that an earlier version exported
        return join(tag("p", text), tag("div", reasons, class_="columns"))
    with (place / SKIPPED_NAME).open("rb") as lines:
        named = enumerate(islice(lines, MAX_NAMES), start=1)
        first = [Fields.parse(line, f"{place / SKIPPED_NAME}, line {number}") for number, line in named]
    cells = [[one.text(name) for name in ("key", "reason", "message")] for one in first]
    items = [tag("tr", tag("th", key, scope="row"), tag("td", reason), tag("td", said)) for key, reason, said in cells]
    head = tag("tr", *(tag("th", name, scope="col") for name in ("Key", "Reason", "Message")))
    body = tag("table", tag("thead", head), tag("tbody", *items))
    more = f"{index.num_skipped - len(items):,} more stand in {SKIPPED_NAME}." if index.num_skipped > len(items) else ""
    names = tag(
        "div", tag("h3", "Files that were left out"), tag("div", body, class_="scroll"), tag("p", more), class_="box"
    )
    return join(tag("p", text), tag("div", reasons, class_="columns"), names)


def _neighbors(clips: EmbeddingTable, library: MediaLibrary) -> Html:
    fields = clips.label_fields()
    default = fields[0] if fields else None
    names: Mapping[str, str | None] = {
        "video": "visual" if "visual" in fields else default,
        "audio": "sound" if "sound" in fields else default,
        "image": default,
    }
    return neighbors_section(clips, library, names, num_queries=NUM_QUERIES, num_neighbors=NUM_NEIGHBORS)


def _page(name: str, index: FolderIndex, sections: list[tuple[str, str, Html]], library: MediaLibrary) -> str:
    links = [tag("a", heading, href=f"#{identifier}") for identifier, heading, _ in sections]
    blocks = []
    for identifier, heading, content in sections:
        title = tag("h2", heading, id=f"{identifier}-title")
        blocks.append(tag("section", title, content, id=identifier, aria_labelledby=f"{identifier}-title"))
    left_out = f"{library.num_left_out} files did not fit into the page." if library.num_left_out else None
    lead = f"{index.num_rows:,} rows of {index.num_embedded:,} sources"
    body = join(
        tag("a", "Skip to the content", href="#holds", class_="skip"),
        tag("header", tag("p", "avssl embeddings", class_="kicker"), tag("h1", name), tag("p", lead, class_="note")),
        tag("nav", *links, aria_label="Sections"),
        tag("main", *blocks),
        tag("footer", tag("p", "One file, no outside requests. ", left_out)),
    )
    scripts = [kit_file("map.js", "avssl.report")]
    return html_page(f"{name} · avssl embeddings", body, media=library.embedded, scripts=scripts)
