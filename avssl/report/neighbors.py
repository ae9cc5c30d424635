"""Nearest neighbors with playable media: across video and audio, or within each modality if not both are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from avssl.embedding.table import EmbeddingTable
from avssl.ops.nearest import nearest
from avssl.pages.markup import Html, join, number, tag
from avssl.pages.media import MediaLibrary

OTHER = {"video": "audio", "audio": "video"}
NAMES = {"video": "video", "audio": "audio clip", "image": "image"}
Search = tuple[str, str]  # the modality of the query, the modality that is searched


@dataclass(frozen=True)
class Match:
    """One neighbor: its row in the table, and its cosine.

    is_own: whether it is the clip of the query. is_right: whether it has the class of the query; None if one of the two
    has no label.
    """

    row: int
    cosine: float
    is_own: bool
    is_right: bool | None


def pick_queries(table: EmbeddingTable, modality: str, labels: Sequence[str | None], count: int) -> list[int]:
    """Rows to show: the first row of each class, classes in sorted order, then the second rows, and so on.

    The choice depends on order and labels only, not on the matches, so that it does not favor good ones.
    """
    by_class: dict[str, list[int]] = {}
    for row in np.flatnonzero(table.has(modality)).tolist():
        by_class.setdefault(labels[row] or "", []).append(row)
    ordered = [by_class[name] for name in sorted(by_class)]
    if len(ordered) > count:
        ordered = [ordered[number * len(ordered) // count] for number in range(count)]
    longest = max((len(rows) for rows in ordered), default=0)
    return [rows[turn] for turn in range(longest) for rows in ordered if turn < len(rows)][:count]


def find_matches(
    table: EmbeddingTable,
    modality: str,
    queries: Sequence[int],
    labels: Sequence[str | None],
    count: int,
    *,
    among: str | None = None,
) -> list[list[Match]]:
    """For each query row of one modality, the closest `count` rows of another one, best first.

    among: the modality that is searched, by default the other one of video and audio. Within one modality the query
    itself is left out.
    """
    other = among or OTHER[modality]
    rows = np.flatnonzero(table.has(other))
    source, target = table.embedding(modality), table.embedding(other)
    if source is None or target is None or not len(rows) or not len(queries):
        return [[] for _ in queries]
    neighbors, cosines = nearest(source[list(queries)], target[rows], count + int(other == modality))
    results = []
    for query, positions, scores in zip(queries, neighbors, cosines, strict=True):
        matches = []
        for position, cosine in zip(positions, scores, strict=True):
            row, label = int(rows[position]), labels[query]
            if other == modality and row == query:
                continue
            is_right = None if label is None or labels[row] is None else labels[row] == label
            matches.append(Match(row, float(cosine), table.keys[row] == table.keys[query], is_right))
        results.append(matches[:count])
    return results


def label_text(labels: Mapping[str, Sequence[str]]) -> Html:
    """All labels of a clip as `field name` pairs, or "no label"."""
    shown = [tag("span", tag("i", name), " ", ", ".join(names)) for name, names in sorted(labels.items()) if names]
    return tag("span", *shown, class_="labels") if shown else tag("span", "no label", class_="labels")


def _verdict(match: Match) -> Html:
    """Whether a match is right, as a word and a sign, not by color alone."""
    if match.is_own:
        return tag("span", "★ its own", class_="verdict own")
    if match.is_right is None:
        return tag("span", "no label", class_="verdict")
    return tag(
        "span",
        "✓ right class" if match.is_right else "✗ other class",
        class_=f"verdict {'yes' if match.is_right else 'no'}",
    )


def _query_card(table: EmbeddingTable, row: int, modality: str, library: MediaLibrary) -> Html:
    key = table.keys[row]
    head = tag("p", tag("b", f"Query {NAMES[modality]}"), class_="rank")
    return tag(
        "div", head, library.player(key, modality), label_text(table.labels[row]), _key(key), class_="query clip"
    )


def _key(key: str) -> Html:
    return tag("code", key, title=key, class_="name")


def _match_card(
    table: EmbeddingTable, match: Match, rank: int, search: Search, *, query_key: str, library: MediaLibrary
) -> Html:
    modality, other = search
    key = table.keys[match.row]
    button: Html | str = ""
    if other != modality and library.embed(query_key, modality) and library.embed(key, other):
        label = f"Play {NAMES[other]} {rank} with the query"
        text = f"▶ with the {NAMES[modality]}"
        button = tag("button", text, type="button", data_play=True, data_with_query=True, aria_label=label)
    head = tag("p", tag("b", f"{rank}."), tag("span", f"cosine {number(round(match.cosine, 3))}"), class_="rank")
    about = (_verdict(match), label_text(table.labels[match.row]), _key(key))
    parts = (head, library.player(key, other), button, *about)
    state = "own" if match.is_own else "yes" if match.is_right else "no"
    return tag("li", *parts, class_=f"clip {state}")


def _direction(
    table: EmbeddingTable, search: Search, field: str | None, library: MediaLibrary, counts: tuple[int, int]
) -> Html:
    modality, other = search
    labels: list[str | None] = [None] * len(table) if field is None else table.label(field)
    queries = pick_queries(table, modality, labels, counts[0])
    results = find_matches(table, modality, queries, labels, counts[1], among=other)
    rows = []
    for query, matches in zip(queries, results, strict=True):
        cards = [
            _match_card(table, match, rank, search, query_key=table.keys[query], library=library)
            for rank, match in enumerate(matches, start=1)
        ]
        if cards:
            rows.append(tag("div", _query_card(table, query, modality, library), tag("ol", *cards), class_="search"))
    if not rows:
        lacking = "No clip has both modalities" if other != modality else f"There is one {NAMES[modality]} at most"
        return tag("p", f"{lacking}, so there is no search from {modality}.", class_="note")
    sought, query_name = NAMES[other], "clip" if other != modality else NAMES[modality]
    rule = (
        ""
        if field is None
        else f"Right class: the retrieved {sought} and the query's {query_name} have the same “{field}”."
    )
    heading = tag(
        "h3", f"From {_article(NAMES[modality])} to the closest {'other ' if other == modality else ''}{sought}s"
    )
    return tag("div", heading, tag("p", rule, class_="note"), *rows, class_="direction")


def searches(table: EmbeddingTable) -> list[Search]:
    """(modality of the query, modality searched): both directions between video and audio, or within each modality."""
    modalities = table.modalities()
    if "video" in modalities and "audio" in modalities:
        return [("video", "audio"), ("audio", "video")]
    return [(modality, modality) for modality in modalities]


def neighbors_section(
    table: EmbeddingTable,
    library: MediaLibrary,
    fields: Mapping[str, str | None],
    *,
    num_queries: int,
    num_neighbors: int,
) -> Html:
    """The results of every search. fields: {modality searched: label field by which a match is right, or None}."""
    counts = (num_queries, num_neighbors)
    pairs = searches(table)
    if not pairs:
        return tag("p", "The table holds no embeddings, so there is nothing to search.", class_="note")
    parts = [_direction(table, search, fields[search[1]], library, counts) for search in pairs]
    text = f"The closest of all {len(table)} {row_noun(table)} by cosine. "
    text += "Queries are chosen by class and order, not by result."
    if any(modality != other for modality, other in pairs):
        text += " “Its own” is the other modality of the query's clip."
    return join(tag("p", text), *parts)


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'ai' else 'a'} {noun}"


def row_noun(table: EmbeddingTable) -> str:
    """The noun for the rows of a pooled table: "images" or "audio clips" if it has nothing else, otherwise "clips"."""
    names = {"image": "images", "audio": "audio clips"}
    modalities = table.modalities()
    return names.get(modalities[0], "clips") if len(modalities) == 1 else "clips"
