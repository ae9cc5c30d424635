"""The results of a search as one HTML page: query and results with stills, sound pictures and clips that play.

    write_search_page("results.html", index, query, results)

It is made for looking through: what was asked stands on the left (or on top), the closest rows of each modality beside
it. All media are inside the file, cut to a few seconds, up to a bound; the page asks for nothing from outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from avssl.embedding.media import Media, open_file
from avssl.embedding.search import EmbeddingIndex, Query
from avssl.embedding.table import Hit, RowFacts
from avssl.embedding_pages.cards import HEADINGS, PageMedia, Shown, card, query_card
from avssl.embedding_pages.origins import Origins
from avssl.files.whole import write_whole
from avssl.pages.html_page import html_page, kit_file
from avssl.pages.markup import Html, join, tag
from avssl.shards.manifest import FileSource

MAX_BYTES = 16_000_000  # of all media of a page, as text
MAX_CARDS = 240  # of a page, the queries aside
Results = Mapping[str, Sequence[Sequence[Hit]]]


@dataclass(frozen=True)
class WrittenPage:
    """What a page holds. num_playing: clips that play; num_left_out: those that did not fit; num_cut: results cut."""

    path: Path
    num_bytes: int
    num_playing: int
    num_left_out: int
    num_cut: int = 0

    def __str__(self) -> str:
        text = f"{self.path}: {self.num_bytes / 1e6:.1f} MB, one file, {self.num_playing} clips that play"
        if self.num_left_out:
            text += f"; {self.num_left_out} more did not fit: a smaller --top makes room"
        return text + (f"; {self.num_cut} results are not shown" if self.num_cut else "")


def write_search_page(
    path: str | Path,
    index: EmbeddingIndex,
    query: Query,
    results: Results,
    *,
    title: str = "",
    note: str = "",
    max_bytes: int = MAX_BYTES,
) -> WrittenPage:
    """Write the page of a search, whole or not at all; the same input gives the same bytes.

    Args:
        path: the file to write. index: the folder that was searched.
        query: what was asked. results: {modality searched: for each part of the query its hits, best first}.
        title: heading; default: what was asked. note: a sentence below it.
        max_bytes: of base64 text of all media; clips beyond it are shown as stills, then as names.

    Media that cannot be read any more do not fail the page: their cards say why.
    """
    shown, num_cut = _cut(results)
    hits = [hit for parts in shown.values() for part in parts for hit in part]
    facts = index.facts({hit.row for hit in hits} | {part["row"] for part in query.parts if "row" in part})
    keys = {hit.key for hit in hits} | ({query.key} if query.key else set())
    origins = Origins(index.folder, index.content.settings, keys)
    media = PageMedia(max_bytes)
    labels = _labels_of(query, facts)
    parts = [
        _part(number, query, {name: found[number] for name, found in shown.items()}, facts, origins, media, labels)
        for number in range(len(query.parts))
    ]
    heading = title or (f"“{query.name}”" if query.modality == "text" else query.name.rpartition("/")[2])
    body = join(
        tag("a", "Skip to the results", href="#results", class_="skip"),
        tag(
            "header",
            tag("p", "avssl search", class_="kicker"),
            tag("h1", heading),
            tag("p", _summary(index, query), class_="lead"),
            tag("p", note, class_="lead") if note else "",
        ),
        tag("main", *parts, id="results"),
        tag("footer", _footer(media, num_cut)),
    )
    style, script = (kit_file(name, "avssl.embedding_pages") for name in ("search.css", "search.js"))
    text = html_page(f"{heading} · avssl search", body, media=media.movies, styles=[style], scripts=[script])
    content = text.encode("utf-8", "backslashreplace")
    write_whole(Path(path), content)
    return WrittenPage(Path(path), len(content), len(media.movies), media.num_left_out, num_cut)


def _cut(results: Results) -> tuple[dict[str, list[list[Hit]]], int]:
    """(results with at most MAX_CARDS hits: as many of each list, from the best on; the number of those left out)."""
    lists = [part for parts in results.values() for part in parts]
    depth = max(map(len, lists), default=0)
    while depth > 1 and sum(min(len(part), depth) for part in lists) > MAX_CARDS:
        depth -= 1
    shown = {name: [list(part[:depth]) for part in parts] for name, parts in results.items()}
    return shown, sum(max(0, len(part) - depth) for part in lists)


def _labels_of(query: Query, facts: Mapping[int, RowFacts]) -> dict[str, list[str]]:
    """The labels of the query, if it is a row of the folder; {} otherwise."""
    rows = [facts[part["row"]].labels for part in query.parts if part.get("row") in facts]
    return rows[0] if rows else {}


def _part(
    number: int,
    query: Query,
    found: Mapping[str, Sequence[Hit]],
    facts: Mapping[int, RowFacts],
    origins: Origins,
    media: PageMedia,
    labels: Mapping[str, Sequence[str]],
) -> Html:
    """A part of the query with its results."""
    part = query.parts[number]
    asked = _query_of(query, part, facts, origins, media)
    lists = []
    for name, hits in found.items():
        cards = [
            card(rank, _shown(facts[hit.row], origins, media), hit.score, name, labels)
            for rank, hit in enumerate(hits, start=1)
        ]
        heading = tag("h2", HEADINGS[name])
        through = tag("button", "▶ Play all", type="button", class_="through") if len(cards) > 1 else ""
        body = tag("ol", *cards, class_="hits") if cards else tag("p", "No row is left to compare with.", class_="note")
        lists.append(tag("section", tag("div", heading, through, class_="head"), body, aria_label=HEADINGS[name]))
    aside = tag("aside", asked, aria_label="Query")
    return tag("div", aside, tag("div", *lists, class_="lists"), class_="asked")


def _query_of(
    query: Query, part: Mapping[str, Any], facts: Mapping[int, RowFacts], origins: Origins, media: PageMedia
) -> Html:
    if "text" in part:
        return tag("div", tag("p", "You asked for", class_="what"), tag("blockquote", part["text"]), class_="quote")
    row = RowFacts(query.key or query.name, -1, part["start_seconds"], part["end_seconds"], {})
    if part.get("row") in facts:
        row = RowFacts(row.key, facts[part["row"]].index, row.start_seconds, row.end_seconds, facts[part["row"]].labels)
    if query.path:
        source = FileSource(str(Path(query.path).absolute()), query.name)
        names = ["image"] if query.modality == "image" else ["video", "audio"]
        shown = media.shown(row, query.path, lambda: open_file(source, names), from_start=True)
    else:
        shown = _shown(row, origins, media, from_start=True)
    return query_card(shown, query.modality)


def _shown(row: RowFacts, origins: Origins, media: PageMedia, *, from_start: bool = False) -> Shown:
    def opened() -> Media:
        return origins.media(row.key, row.index)

    shown = media.shown(row, origins.place(row.key), opened, from_start=from_start)
    return replace(shown, name=origins.name(row.key))


def _summary(index: EmbeddingIndex, query: Query) -> str:
    """A sentence on what was compared."""
    content = index.content
    what = "image" if content.settings["modalities"] == ["image"] else "window"
    rows = f"{content.num_rows:,} {what}s of {content.num_embedded:,} file{'s' * (content.num_embedded != 1)}"
    parts = f" in {len(query.parts)} parts" if len(query.parts) > 1 else ""
    return (
        f"Asked by {query.modality}{parts}; the closest of {rows}, by cosine (1 = the same direction, 0 = unrelated)."
    )


def _footer(media: PageMedia, num_cut: int) -> Html:
    size = f"One file, no outside requests; {media.num_bytes / 1e6:.1f} MB of media. "
    left = f"{media.num_left_out} clips did not fit into the page and do not play. " if media.num_left_out else ""
    cut = f"{num_cut} further results are not shown. " if num_cut else ""
    return tag("p", size, left, cut, "Keys: Space plays, ← and → go from result to result.")
