"""Nearest neighbours across modalities that one can see, hear and play together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from avssl.eval.neighbours import nearest
from avssl.report.markup import Html, join, number, tag
from avssl.report.media import MediaLibrary
from avssl.tables import EmbeddingTable

OTHER = {"video": "audio", "audio": "video"}
NAMES = {"video": "video", "audio": "sound"}


@dataclass(frozen=True)
class Match:
    """One neighbour: its row in the table, cosine, whether it is the query's own clip, and of the right class.

    right is None where query or neighbour has no label to compare.
    """

    row: int
    cosine: float
    own: bool
    right: bool | None


def pick_queries(table: EmbeddingTable, modality: str, labels: Sequence[str | None], count: int) -> list[int]:
    """Rows to show: the first row of each class in turn, classes in sorted order, then the next rows.

    The choice looks at order and labels only, never at how well a row is matched: the page must not show off.
    """
    present = table.has_video if modality == "video" else table.has_audio
    by_class: dict[str, list[int]] = {}
    for row in np.flatnonzero(present).tolist():
        by_class.setdefault(labels[row] or "", []).append(row)
    ordered = [by_class[name] for name in sorted(by_class)]
    if len(ordered) > count:
        ordered = [ordered[place * len(ordered) // count] for place in range(count)]
    longest = max((len(rows) for rows in ordered), default=0)
    # Each class starts at another place, so that the rows are not all of the same source file.
    return [rows[turn] for turn in range(longest) for rows in ordered if turn < len(rows)][:count]


def find_matches(
    table: EmbeddingTable, modality: str, queries: Sequence[int], labels: Sequence[str | None], count: int
) -> list[list[Match]]:
    """For each query row of one modality the closest `count` rows of the other modality, best first."""
    other = OTHER[modality]
    embeddings = {"video": table.video_embedding, "audio": table.audio_embedding}
    rows = np.flatnonzero(table.has_video if other == "video" else table.has_audio)
    source, target = embeddings[modality], embeddings[other]
    if source is None or target is None or not len(rows) or not len(queries):
        return [[] for _ in queries]
    places, cosines = nearest(source[list(queries)], target[rows], count)
    found = []
    for query, near, scores in zip(queries, places, cosines, strict=True):
        matches = []
        for place, cosine in zip(near, scores, strict=True):
            row, label = int(rows[place]), labels[query]
            right = None if label is None or labels[rows[place]] is None else labels[rows[place]] == label
            matches.append(Match(row, float(cosine), table.keys[row] == table.keys[query], right))
        found.append(matches)
    return found


def label_text(labels: Mapping[str, Sequence[str]]) -> Html:
    """All labels of a clip: `field name` pairs."""
    shown = [tag("span", tag("i", name), " ", ", ".join(names)) for name, names in sorted(labels.items()) if names]
    return tag("span", *shown, class_="labels") if shown else tag("span", "no label", class_="labels")


def _verdict(match: Match) -> Html:
    """A word and a sign, never colour alone."""
    if match.own:
        return tag("span", "★ its own", class_="verdict own")
    if match.right is None:
        return tag("span", "no label", class_="verdict")
    return tag(
        "span", "✓ right class" if match.right else "✗ other class", class_=f"verdict {'yes' if match.right else 'no'}"
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
    table: EmbeddingTable, match: Match, place: int, modality: str, *, query_key: str, library: MediaLibrary
) -> Html:
    key, other = table.keys[match.row], OTHER[modality]
    first, second = library.embed(query_key, modality), library.embed(key, other)
    together: Html | str = ""
    if first and second:
        label = f"Play {NAMES[other]} {place} with the query"
        text = f"▶ with the {NAMES[modality]}"
        together = tag("button", text, type="button", data_play=True, data_with_query=True, aria_label=label)
    head = tag("p", tag("b", f"{place}."), tag("span", f"cosine {number(round(match.cosine, 3))}"), class_="rank")
    about = (_verdict(match), label_text(table.labels[match.row]), _key(key))
    parts = (head, library.player(key, other), together, *about)
    state = "own" if match.own else "yes" if match.right else "no"
    return tag("li", *parts, class_=f"clip {state}")


def _direction(
    table: EmbeddingTable, modality: str, field: str | None, library: MediaLibrary, counts: tuple[int, int]
) -> Html:
    labels: list[str | None] = [None] * len(table) if field is None else table.label(field)
    queries = pick_queries(table, modality, labels, counts[0])
    found = find_matches(table, modality, queries, labels, counts[1])
    rows = []
    for query, matches in zip(queries, found, strict=True):
        cards = [
            _match_card(table, match, place + 1, modality, query_key=table.keys[query], library=library)
            for place, match in enumerate(matches)
        ]
        if cards:
            rows.append(tag("div", _query_card(table, query, modality, library), tag("ol", *cards), class_="search"))
    if not rows:
        return tag("p", f"No clip has both sides, so there is no search from {modality}.", class_="note")
    other = NAMES[OTHER[modality]]
    rule = "" if field is None else f"Right class: the {other} found and the query's clip have the same “{field}”."
    heading = tag("h3", f"From a {NAMES[modality]} to the closest {other}s")
    return tag("div", heading, tag("p", rule, class_="note"), *rows, class_="direction")


def neighbours_section(
    table: EmbeddingTable,
    library: MediaLibrary,
    fields: Mapping[str, str | None],
    *,
    num_queries: int,
    num_neighbours: int,
) -> Html:
    """Both directions. fields: the label field by which a match counts, by the modality that is searched for."""
    counts = (num_queries, num_neighbours)
    parts = [_direction(table, side, fields[OTHER[side]], library, counts) for side in ("video", "audio")]
    intro = tag(
        "p",
        f"The closest of all {len(table)} clips by cosine. Queries are picked by class and order, not by result. "
        "“Its own” is the other half of the query's clip.",
    )
    return join(intro, *parts)
