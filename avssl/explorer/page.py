"""The HTML of the explorer: what can be asked, what was asked, and the closest rows of each modality."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from avssl.embedding.sources import MANIFEST_SUFFIX
from avssl.embedding.table import MODALITIES, RowFacts
from avssl.embedding_pages.cards import HEADINGS, KINDS, Shown, card, query_card, row_card, seconds_text
from avssl.embedding_pages.origins import Origins
from avssl.explorer.cuts import ClipStore, Cut
from avssl.explorer.question import (
    ALL_WINDOWS,
    CLIPS_ADDRESS,
    MOST_TEXT,
    Answer,
    Asked,
    UploadLimits,
    address,
    asked_of,
)
from avssl.files.location import is_remote
from avssl.pages.html_page import html_page, kit_file
from avssl.pages.markup import Html, join, tag
from avssl.shards.manifest import FileSource

MOST_OPTIONS = 2000  # keys that are offered while typing, labels of the menu
FIRST_ROWS = 12  # on the first page
MOST_STEPS = 20_000  # windows whose seconds the slider names while it moves


class Explored(Protocol):
    """What a page shows; see Explorer."""

    folder: Path
    num_rows: int
    modalities: list[str]
    settings: dict[str, Any]
    limits: UploadLimits
    clips: ClipStore
    keys: dict[str, NDArray[np.int64]]
    labels: dict[str, NDArray[np.int64]]
    text_modalities: tuple[str, ...]

    def resolved(self, asked: Asked) -> Asked:
        """What is asked for, with key and window in place of a row's number."""

    def answer(self, asked: Asked, top: int) -> Answer:
        """The closest rows."""

    def first_rows(self, most: int) -> list[tuple[int, RowFacts, str]]:
        """(number, facts, modality) of some rows to begin with."""


@dataclass(frozen=True)
class Place:
    """Where media lie: the files of the folder by key, and those of uploads. origins: of all keys of the explorer."""

    origins: Origins

    def cut(self, row: RowFacts, *, upload: Path | None = None, from_start: bool = False) -> Cut:
        """The clip to make of a row, or of an upload."""
        settings = self.origins.settings
        modalities = ("image",) if settings["modalities"] == ["image"] else MODALITIES
        if upload is not None:
            return Cut(row, FileSource(str(upload), row.key), modalities, from_start)
        source = self.origins.files.get(row.key) if settings["shards"] is None else None
        if source is not None and self.is_named(source.path):
            return Cut(row, source, modalities, from_start)
        none = Origins(self.origins.folder, settings, ())  # of shards; or of a key that is gone, which says so
        return Cut(row, none, modalities, from_start)

    def named(self, shown: Sequence[Shown]) -> list[Shown]:
        """The rows with the names of their files."""
        return [replace(one, name=self.origins.name(one.row.key)) for one in shown]

    def is_named(self, path: str) -> bool:
        """Whether a listed file lies where the sources of the folder are; a manifest names its files itself."""
        sources = self.origins.settings["sources"]
        if is_remote(path) or any(source.lower().endswith(MANIFEST_SUFFIX) for source in sources):
            return True
        return any(PurePath(os.path.normpath(path)).is_relative_to(source) for source in sources)


def page_of(explorer: Explored, place: Place, values: Mapping[str, str], top: int) -> tuple[str, int]:
    """(the page that the values of an address ask for, or the reason why it cannot be made; its HTTP status)."""
    asked = Asked()
    try:
        asked = explorer.resolved(asked_of(values))
        return render(explorer, place, asked, top), 200
    except ValueError as error:
        return render(explorer, place, asked, top, str(error)), 400


def render(explorer: Explored, place: Place, asked: Asked, top: int, error: str = "") -> str:
    """The page of what is asked for; with an error the page that says it. ValueError as Explorer.answer."""
    shown: list[Shown] = []
    answer = None
    if error:
        body = tag("div", tag("p", error, class_="problem", role="alert"), id="answer")
    elif asked.key or asked.upload or asked.text:
        answer = explorer.answer(asked, top)
        body, shown = _answer(explorer, place, asked, answer)
    else:
        body, shown = _first(explorer, place, asked)
    name = explorer.folder.resolve().name
    title = f"{answer.name if answer else name} · avssl explore"
    rows = f"{explorer.num_rows:,} rows of {len(explorer.keys):,} sources, {' and '.join(explorer.modalities)}"
    page = join(
        tag("a", "Skip to the results", href="#answer", class_="skip"),
        tag(
            "header",
            tag("p", "avssl explore", class_="kicker"),
            tag("h1", tag("a", name, href="/", class_="home")),
            tag("p", rows, class_="lead"),
        ),
        tag("main", _ask(explorer, asked), _options(explorer, asked, answer), body),
        tag("footer", tag("p", "Keys: Space plays, ← and → go from result to result; on the slider from window to "
                          "window. Scores are cosines: 1 = the same direction, 0 = unrelated.")),
    )  # fmt: skip
    movies = {one.movie: CLIPS_ADDRESS + one.movie for one in shown if one.movie}
    style = [kit_file("search.css", "avssl.embedding_pages"), kit_file("explorer.css", "avssl.explorer")]
    script = [kit_file("search.js", "avssl.embedding_pages"), kit_file("explorer.js", "avssl.explorer")]
    return html_page(title, page, media=movies, styles=style, scripts=script, is_served=True)


def _ask(explorer: Explored, asked: Asked) -> Html:
    """The three ways to ask."""
    limits = explorer.limits
    most = f"up to {limits.num_bytes / 2**20:.0f} MiB and {limits.seconds:g} s; it stays on this server"
    what = "an image" if explorer.settings["modalities"] == ["image"] else "a video or a sound"
    drop = tag(
        "div",
        tag("label", tag("b", f"Drop {what} here"), " or choose a file", for_="file"),
        tag("input", type="file", id="file"),
        tag("small", most),
        class_="drop",
    )
    keys = list(explorer.keys)[:MOST_OPTIONS]
    source = _form(
        asked,
        ("label", "own", "each"),
        tag("label", "A source of the folder", for_="key"),
        tag("div", tag("input", name="key", id="key", list="keys", required=True, autocomplete="off",
                       value=asked.key or None, placeholder="its key"), _go("Find"), class_="line"),
        tag("datalist", *(tag("option", value=key) for key in keys), id="keys"),
    )  # fmt: skip
    text: Html | str = ""
    if explorer.text_modalities:
        text = _form(
            asked,
            ("label", "each"),
            tag("label", "What it is about, in words", for_="text"),
            tag("div", tag("input", name="text", id="text", required=True, maxlength=MOST_TEXT,
                           value=asked.text or None, placeholder="a dog barks"), _go("Find"), class_="line"),
        )  # fmt: skip
    said = tag("p", "", id="said", role="status")
    return tag("section", drop, tag("div", source, text, class_="forms"), said, class_="ask", aria_label="Ask")


def _form(asked: Asked, kept: Sequence[str], *fields: Html | str) -> Html:
    """A form that keeps what else is set."""
    values = {
        "key": asked.key,
        "upload": asked.upload,
        "text": asked.text,
        "label": asked.label,
        "own": "1" if asked.with_own else "",
        "each": "1" if asked.each_row else "",
    }
    hidden = [tag("input", type="hidden", name=name, value=values[name]) for name in kept if values[name]]
    return tag("form", *hidden, *fields, method="get", action="/")


def _go(word: str) -> Html:
    return tag("button", word, type="submit")


def _options(explorer: Explored, asked: Asked, answer: Answer | None) -> Html | str:
    """What narrows an answer: label, modality that asks, windows."""
    if answer is None:
        return tag("div", id="options")
    fields: list[Html] = []
    if explorer.labels:
        largest = sorted(explorer.labels, key=lambda label: -len(explorer.labels[label]))[:MOST_OPTIONS]
        labels = sorted({*largest, *filter(None, [asked.label])})
        options = [tag("option", label, value=label, selected=label == asked.label) for label in labels]
        menu = tag("select", tag("option", "all rows", value=""), *options, name="label", id="label")
        fields.append(tag("div", tag("label", "Only rows with the label", for_="label"), menu))
    if len(answer.modalities) > 1:
        choices = [
            tag(
                "label",
                tag("input", type="radio", id=f"by-{name}", name="by", value=name, checked=name == answer.modality),
                KINDS[name],
            )
            for name in answer.modalities
        ]
        fields.append(tag("fieldset", tag("legend", "Asked by its"), *choices))
    boxes = [("each", asked.each_row, "several rows of one source")]
    if asked.key:
        boxes.append(("own", asked.with_own, "rows of the source itself"))
    checks = [
        tag("label", tag("input", type="checkbox", id=name, name=name, value="1", checked=on), text)
        for name, on, text in boxes
    ]
    fields.append(tag("fieldset", tag("legend", "Find also"), *checks))
    slider = _slider(asked, answer)
    return tag("div", _form(asked, ("key", "upload", "text"), tag("div", *fields, class_="fields"), slider,
                            tag("div", _go("Show"), class_="apply")), id="options")  # fmt: skip


def _slider(asked: Asked, answer: Answer) -> Html | str:
    """The slider over the windows of a source; nothing if it has only one."""
    windows = answer.windows
    if windows is None or len(windows.keys) < 2:
        return ""
    count = len(windows.keys)
    spans = zip(windows.start_seconds[:MOST_STEPS], windows.end_seconds[:MOST_STEPS], strict=True)
    names = [f"all {count} windows", *(f"{place} of {count}, {seconds_text(float(start), float(end))}"
                                       for place, (start, end) in enumerate(spans, start=1))]  # fmt: skip
    now = names[asked.window] if asked.window < len(names) else f"{asked.window} of {count}"
    steps = tag("ol", *(tag("li", name) for name in names), id="steps", hidden=True)
    field = tag("input", type="range", name="window", id="window", min=0, max=count, value=asked.window)
    return tag(
        "div", tag("label", "Window ", tag("output", now, id="now"), for_="window"), field, steps, class_="slide"
    )


def _answer(explorer: Explored, place: Place, asked: Asked, answer: Answer) -> tuple[Html, list[Shown]]:
    """(what was asked beside what was found, the rows that are shown)."""
    hits = [(name, rank, hit) for name, found in answer.hits.items() for rank, hit in enumerate(found, start=1)]
    cuts = [place.cut(answer.facts[hit.row]) for _, _, hit in hits]
    if answer.row is not None:
        upload = answer.upload.path if answer.upload else None
        cuts.append(place.cut(answer.row, upload=upload, from_start=asked.window == ALL_WINDOWS))
    shown = place.named(explorer.clips.shown(cuts))
    labels = answer.row.labels if answer.row else {}
    lists: dict[str, list[Html]] = {name: [] for name in answer.hits}
    for (name, rank, hit), one in zip(hits, shown, strict=False):
        lists[name].append(card(rank, one, hit.score, name, labels, _onward(asked, hit.row, hit.key, name)))
    parts = []
    for name, cards in lists.items():
        through = tag("button", "▶ Play all", type="button", class_="through") if len(cards) > 1 else ""
        none = tag("p", "No row is left to compare with.", class_="note")
        found = tag("ol", *cards, class_="hits") if cards else none
        heading = tag("div", tag("h2", HEADINGS[name]), through, class_="head")
        parts.append(tag("section", heading, found, aria_label=HEADINGS[name]))
    if answer.row is None:
        asking = tag("div", tag("p", "You asked for", class_="what"), tag("blockquote", answer.name), class_="quote")
    else:
        asking = query_card(shown[-1], answer.modality)
    asking = tag("aside", asking, aria_label="Query")
    body = tag("div", asking, tag("div", *parts, class_="lists"), class_="asked")
    return tag("div", body, id="answer"), shown


def _onward(asked: Asked, number: int, key: str, modality: str) -> Html:
    """The link from a row to what is close to it."""
    onward = replace(asked, row=number, key="", upload="", text="", by=modality, window=ALL_WINDOWS)
    return tag("a", "closest to this", href=address(onward), class_="onward", aria_label=f"Closest to {key}")


def _first(explorer: Explored, place: Place, asked: Asked) -> tuple[Html, list[Shown]]:
    """(some rows to begin with, these rows)."""
    rows = explorer.first_rows(FIRST_ROWS)
    shown = place.named(explorer.clips.shown([place.cut(row) for _, row, _ in rows]))
    cards = [
        row_card(one, modality, _onward(asked, number, row.key, modality))
        for one, (number, row, modality) in zip(shown, rows, strict=True)
    ]
    heading = tag("div", tag("h2", "Begin with one of these"), class_="head")
    section = tag("section", heading, tag("ol", *cards, class_="hits"), aria_label="Some rows")
    return tag("div", tag("div", section, class_="lists"), id="answer"), shown
