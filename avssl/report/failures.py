"""What goes wrong, by name: clips that are not found, classes that are mistaken, inputs that were skipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from avssl.embedding.table import EmbeddingTable
from avssl.ops.nearest import nearest, unit_rows
from avssl.pages.markup import Html, join, number, tag
from avssl.pages.media import MediaLibrary
from avssl.report.neighbors import NAMES, searches

NUM_WORST, NUM_CONFUSIONS, NUM_SKIPPED = 8, 8, 50
CHUNK_ROWS = 1024


def own_ranks(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Row i of both (n, D) is one clip: at which place, from 1, query i finds its own; int64 (n,).

    Rows with the same cosine as the clip's own count as before it by half, rounded down.
    """
    rows, columns = unit_rows(queries), unit_rows(gallery)
    own = (rows * columns).sum(dim=1, keepdim=True)
    ranks = []
    for begin in range(0, len(rows), CHUNK_ROWS):
        cosines = rows[begin : begin + CHUNK_ROWS] @ columns.T
        level = own[begin : begin + CHUNK_ROWS]
        equal = (cosines - level).abs() <= 1e-12
        better = ((cosines > level) & ~equal).sum(dim=1)
        ranks.append(1 + better + torch.div(equal.sum(dim=1) - 1, 2, rounding_mode="floor").clamp(min=0))
    return torch.cat(ranks).numpy()


def failures_section(
    table: EmbeddingTable, library: MediaLibrary, fields: Mapping[str, str | None], *, num_shown: int = NUM_WORST
) -> Html:
    """The worst queries of every search with their names, and which classes are taken for which."""
    parts = [_search(table, search, fields[search[1]], library, num_shown) for search in searches(table)]
    return tag("div", *parts, class_="tables")


class _Closest(NamedTuple):
    """What each of n queries finds: arrays (n,), row i for query i."""

    queries: np.ndarray  # rows of the table
    found: np.ndarray  # the row of the table that is closest, other than the query's own
    cosines: np.ndarray
    ranks: np.ndarray  # across modalities: at which place, from 1, it finds its own clip; within one: 0


def _closest(table: EmbeddingTable, modality: str, other: str) -> _Closest | None:
    """What the rows that have both modalities find among themselves; None if fewer than two have both."""
    rows = np.flatnonzero(table.has(modality) & table.has(other))
    source, target = table.embedding(modality), table.embedding(other)
    if source is None or target is None or len(rows) < 2:
        return None
    across = modality != other
    found, cosines = nearest(source[rows], target[rows], 1 if across else 2)
    # Within a modality a clip finds itself first, unless an equal one stands before it.
    column = np.zeros(len(rows), int) if across else (found[:, 0] == np.arange(len(rows))).astype(int)
    first, cosine = (np.asarray(values)[np.arange(len(rows)), column] for values in (found, cosines))
    ranks = own_ranks(source[rows], target[rows]) if across else np.zeros(len(rows), int)
    return _Closest(rows, rows[first], cosine, ranks)


def _search(
    table: EmbeddingTable, search: tuple[str, str], field: str | None, library: MediaLibrary, num_shown: int
) -> Html:
    modality, other = search
    closest = _closest(table, modality, other)
    if closest is None:
        return Html("")
    rows, found, cosine, ranks = closest
    labels: list[str | None] = [None] * len(table) if field is None else table.label(field)
    pairs = [(labels[row], labels[to]) for row, to in zip(rows, found, strict=True)]
    is_wrong = np.array([None not in pair and pair[0] != pair[1] for pair in pairs])
    across = modality != other
    worst = (
        np.lexsort((rows, -cosine, -ranks))
        if across
        else np.flatnonzero(is_wrong)[np.argsort(-cosine[is_wrong], kind="stable")]
    )
    body = [
        tag(
            "tr",
            tag(
                "th",
                _thumbnail(table.keys[rows[place]], modality, library),
                tag("span", table.keys[rows[place]]),
                scope="row",
            ),
            *([tag("td", f"{ranks[place]:,} of {len(rows):,}")] if across else []),
            tag("td", table.keys[found[place]]),
            *([tag("td", _labels(*pairs[place]))] if field else []),
            tag("td", number(round(float(cosine[place]), 3))),
        )
        for place in worst[:num_shown]
    ]
    title = f"From {NAMES[modality]} to {NAMES[other]}"
    heads = [f"Query {NAMES[modality]}", *(["place of its own"] if across else []), f"closest {NAMES[other]}"]
    heads += [*([f"{field}: query, closest"] if field else []), "cosine"]
    head = tag("tr", *(tag("th", name, scope="col") for name in heads))
    note = f"The {len(body)} queries whose own {NAMES[other]} comes last." if across else (
        f"{int(is_wrong.sum())} of {len(rows)} have a closest other {NAMES[other]} of another class."
    )  # fmt: skip
    grid = tag("table", tag("thead", head), tag("tbody", *body), aria_label=title, class_="plain names")
    scroll = tag("div", grid, class_="scroll", tabindex=0, role="region", aria_label=f"Table: {title}")
    return tag("div", tag("h3", title), tag("p", note), scroll if body else "", _confusions(pairs, field), class_="box")


def _thumbnail(key: str, modality: str, library: MediaLibrary) -> Html:
    if not library.available or modality == "audio":
        return Html("")
    return library.image(key) if modality == "image" else library.thumbnails(key, 1)


def _labels(query: str | None, closest: str | None) -> str:
    return f"{query or 'no label'}, {closest or 'no label'}"


def _confusions(pairs: Sequence[tuple[str | None, str | None]], field: str | None) -> Html:
    """The most frequent mistakes: of all queries of a class, how many have a closest one of that other class."""
    if field is None:
        return Html("")
    totals = Counter(query for query, closest in pairs if query and closest)
    wrong = Counter((query, closest) for query, closest in pairs if query and closest and query != closest)
    if not wrong:
        return tag("p", f"Every closest one has the query's {field}." if totals else f"No {field} labels to compare.")
    ordered = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))[:NUM_CONFUSIONS]
    texts = [f"{query} for {closest}: {count} of {totals[query]}" for (query, closest), count in ordered]
    share = f"{sum(wrong.values())} of {sum(totals.values())} closest ones have another {field} label, most often "
    return tag("p", share, join(*texts, by="; "), ".")


def skipped_section(skipped: Sequence[Mapping[str, object]]) -> Html:
    """The inputs that preparation skipped, by name, with the reason; empty markup if there are none."""
    if not skipped:
        return Html("")
    items = [
        tag(
            "li",
            tag("code", entry.get("key") or entry.get("path") or "without a name"),
            f" {entry.get('reason')}: {entry.get('message')}",
        )
        for entry in skipped[:NUM_SKIPPED]
    ]
    rest = len(skipped) - len(items)
    items += [tag("li", f"and {rest:,} more in skipped.jsonl of the shard folder")] if rest else []
    return tag(
        "details", tag("summary", f"Skipped inputs by name ({len(skipped):,})"), tag("ul", *items, class_="names")
    )
