"""select.html: what a selection keeps and leaves out, on one page that needs nothing but a browser.

The distribution of every fact with its cuts, samples on either side of each cut that play, and pairs of duplicates.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avssl.embedding.table import RowFacts
from avssl.embedding_pages.cards import PageMedia, Shown, row_card
from avssl.embedding_pages.clips import Clip
from avssl.files.whole import write_whole
from avssl.pages.html_page import html_page, kit_file
from avssl.pages.markup import Html, join, tag
from avssl.types import MediaError
from data_prep.inspect.stats.units import count_of, shown
from data_prep.select.corpus import Corpus
from data_prep.select.distributions import QUANTITIES, chart
from data_prep.select.examples import Chosen, Example, Side, choose, clips
from data_prep.select.expression import Condition
from data_prep.select.facts_file import FactsFile
from data_prep.select.rule import CONDITION_FALSE, CONDITION_UNKNOWN, REASONS

PAGE_NAME = "select.html"
MAX_MEDIA_BYTES = 40_000_000  # base64 text of what plays in the page
KINDS = {
    "exact_duplicate": "Exact duplicates: the same content",
    "near_duplicate": "Near duplicates: pictures and sounds whose hashes are near",
    "semantic_duplicate": "Semantic duplicates: embeddings that are near in every modality",
}
MEANINGS = {
    CONDITION_FALSE: "a part of the condition is false",
    CONDITION_UNKNOWN: "a fact of the condition is missing, and no part is false",
    "exact_duplicate": "a kept sample has the same content",
    "near_duplicate": "a kept sample looks and sounds the same",
    "semantic_duplicate": "a kept sample has near embeddings in every modality",
    "class_full": "enough samples of its class were drawn before it",
    "hours_full": "enough hours were drawn before it",
}


def write_page(
    folder: Path, out: Path, record: Mapping[str, Any], corpus: Corpus, facts: FactsFile, num_workers: int
) -> Path:
    """Write select.html of a finished selection, whole or not at all; the same selection gives the same bytes."""
    where = record["rule"]["where"]
    condition = Condition(where, facts.schema()) if where else None
    chosen = choose(out, facts, condition)
    made = clips(corpus, chosen.rows(), num_workers)
    media = PageMedia(MAX_MEDIA_BYTES)
    path = folder / PAGE_NAME
    folder.mkdir(parents=True, exist_ok=True)
    return write_whole(
        path, _page(out, record, condition, chosen, _Cards(media, made)).encode("utf-8", "backslashreplace")
    )


class _Cards:
    """The cards of samples."""

    def __init__(self, media: PageMedia, made: Mapping[int, Clip | MediaError]) -> None:
        self.media, self._made = media, made

    def card(self, example: Example, more: Html | str) -> Html:
        """A sample with its clip, and what is said below it."""
        clip = self._made[example.row]
        end = 0.0 if isinstance(clip, MediaError) else clip.span.end_seconds
        row = RowFacts(example.key, -1, 0.0, end, {})
        found: Shown = self.media.of_clip(row, clip)
        return row_card(found, "video", more)


def _page(out: Path, record: Mapping[str, Any], condition: Condition | None, chosen: Chosen, cards: _Cards) -> str:
    sections = [_section("Account", _account(record))]
    charts = [chart(one) for one in chosen.distributions.values() if (one.listed.counts > 0).sum() > 1]
    if charts:
        key = tag("p", tag("i", class_="swatch kept"), " kept ", tag("i", class_="swatch"), " left out", class_="muted")
        sections.append(_section("Facts", join(key, tag("div", *charts, class_="panels"))))
    for part, sides in enumerate(chosen.sides):
        assert condition is not None
        sections.append(_cut(condition, part, sides, cards))
    for kind, pairs in chosen.pairs.items():
        items = [
            tag(
                "li",
                tag(
                    "ol",
                    cards.card(left, _said("left out", near)),
                    cards.card(kept, _said("kept", "")),
                    class_="hits pair",
                ),
            )
            for left, kept, near in pairs
        ]
        sections.append(_section(KINDS[kind], tag("ul", *items, class_="pairs")))
    sections.append(_section("How this was selected", _method(record)))
    title = f"{out.name}: {record['num_kept']:,} of {record['num_listed']:,} samples"
    hours = ""
    if record["listed_seconds"]:
        hours = f"{shown(record['kept_seconds'], 's')} of {shown(record['listed_seconds'], 's')}; "
    lead = f"{hours}selected from {record['corpus']['name']}"
    body = join(
        tag("a", "Skip to the account", href="#account", class_="skip"),
        tag("header", tag("p", "avssl prep select", class_="kicker"), tag("h1", title), tag("p", lead, class_="lead")),
        tag("main", *sections),
        tag("footer", tag("p", _footer(cards.media))),
    )
    styles = [kit_file("search.css", "avssl.embedding_pages"), STYLE]
    scripts = [kit_file("search.js", "avssl.embedding_pages")]
    return html_page(f"{out.name} · avssl prep select", body, media=cards.media.movies, styles=styles, scripts=scripts)


def _section(title: str, content: Html) -> Html:
    return tag("section", tag("h2", title), content, id="account" if title == "Account" else None)


def _account(record: Mapping[str, Any]) -> Html:
    """listed = kept + left out, with the reasons and, of the condition, the parts."""
    rows = [("kept", record["num_kept"], "")]
    for reason, count in record["left_out_by_reason"].items():
        rows.append((reason, count, MEANINGS.get(reason, "cannot be read")))
        for part, many in record["left_out_by_condition"].items():
            if many.get(reason):
                rows.append((f"    {part}", many[reason], "of these"))
    rows.append(("listed", record["num_listed"], ""))
    cells = [
        tag("tr", tag("th", tag("code", name), scope="row"), tag("td", f"{count:,}"),
            tag("td", f"{count / max(1, record['num_listed']):.1%}"), tag("td", meaning, class_="meaning"))
        for name, count, meaning in rows
    ]  # fmt: skip
    return tag("div", tag("table", tag("tbody", *cells)), class_="box", tabindex=0, role="region", aria_label="Account")


def _cut(condition: Condition, part: int, sides: tuple[Side, Side], cards: _Cards) -> Html:
    """The samples on either side of a cut."""
    cut = condition.cuts[part]
    unit = QUANTITIES[cut[0]].unit if cut and cut[0] in QUANTITIES else ""
    lists = []
    for side, name in zip(sides, ("true", "false"), strict=True):
        examples = side.examples()
        which = "nearest to the cut" if cut else "first in the corpus"
        note = f"{count_of(side.count, 'sample')}, {which}: {len(examples)}" if examples else "No sample."
        items = [
            cards.card(one, _said(one.reason or "kept", "" if one.value is None else shown(one.value, unit)))
            for one in examples
        ]
        lists.append(tag("section", tag("h3", name), tag("p", note, class_="muted"), tag("ol", *items, class_="hits")))
    return tag("section", tag("h2", "Cut: ", tag("code", condition.parts[part])), *lists, class_="cut")


def _said(state: str, value: str) -> Html:
    kind = "kept" if state == "kept" else "out" if state in REASONS or state == "left out" else "bad"
    return tag("p", tag("span", state.replace("_", " "), class_=f"state {kind}"), " ", tag("b", value) if value else "")


def _method(record: Mapping[str, Any]) -> Html:
    """The rule, and of what it was applied to."""
    rule = record["rule"]
    cosines = ", ".join(f"{name} {value:g}" for name, value in rule["cosines"].items())
    facts = {
        "condition": rule["where"] or "none",
        "duplicates": ", ".join(name for name in ("exact", "near") if rule[name]) or "kept",
        "least cosines of semantic duplicates": cosines or "not looked for",
        "of duplicates is kept": f"the {rule['keep']}",
        "samples per class": "no limit"
        if rule["keep_per_class"] is None
        else f"{rule['keep_per_class']} of each {rule['by']}",
        "hours": "no limit" if rule["max_hours"] is None else f"{rule['max_hours']:g}",
        "seed of what is drawn": rule["seed"],
        "sha256 of the corpus": record["corpus"]["sha256"],
        "sha256 of the facts": record["facts"]["sha256"],
        "sha256 of the kept": record["kept_sha256"],
    }
    if record["embeddings"]:
        facts |= {f"embeddings, {name}": value for name, value in record["embeddings"].items()}
    rows = [tag("div", tag("dt", name), tag("dd", str(value))) for name, value in facts.items()]
    return tag("dl", *rows, class_="rule box")


def _footer(media: PageMedia) -> str:
    left = f" {media.num_left_out} clips did not fit into the page and do not play." if media.num_left_out else ""
    return f"One file, no outside requests; {media.num_bytes / 1e6:.1f} MB of media.{left}"


STYLE = """
:root { --bar: #2f6fb5; --track: #d3d8de; --cut: #b4500f; }
@media (prefers-color-scheme: dark) { :root { --bar: #7fb2f0; --track: #3a434f; --cut: #ffad6b; } }
header, main, footer { max-width: 1360px; }
section { padding: 32px 0 0; } main { padding-bottom: 60px; }
.muted, small { color: var(--muted); } small { display: block; font-size: .82rem; font-weight: 400; }
.panel, .box { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 14px; }
.panel { margin: 0; padding: 12px 16px; min-width: 0; } .panel svg { display: block; width: 100%; height: auto; }
figcaption { font-weight: 600; margin-bottom: 6px; overflow-wrap: anywhere; }
.column { fill: var(--bar); } .axis { stroke: var(--muted); }
.median { stroke: var(--cut); stroke-width: 1.5; stroke-dasharray: 4 3; }
.tick { fill: var(--muted); font-size: 12px; text-anchor: middle; } .strong { fill: var(--cut); font-weight: 600; }
.box { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: 6px 14px; text-align: right; min-width: 0; } th { text-align: left; font-weight: 600; }
tbody tr + tr > * { border-top: 1px solid var(--rule); }
.listed { fill: var(--track); stroke: var(--rule); stroke-width: .5; }
.swatch { display: inline-block; width: .8em; height: .8em; background: var(--track); border-radius: 2px; }
.swatch.kept { background: var(--bar); }
.cut h3 { margin: 18px 0 2px; } .cut section { padding: 0; }
h2 code, figcaption code { font-size: .85em; overflow-wrap: anywhere; }
.meaning { text-align: left; color: var(--muted); white-space: normal; }
.box th code { white-space: pre-wrap; overflow-wrap: anywhere; }
.state { border-radius: 999px; padding: 1px 9px; font-size: .8rem; background: var(--sunk); }
.state.kept { box-shadow: inset 0 0 0 1.5px var(--good); color: var(--good); background: none; }
.pairs { list-style: none; margin: 0; padding: 0; display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); }
.hits.pair { grid-template-columns: 1fr 1fr; }
.hits { list-style: none; margin: 0; padding: 0; }
.rule { padding: 12px 16px; margin: 0; }
.rule div { display: grid; grid-template-columns: minmax(9em, 18em) 1fr; gap: 4px 16px; padding: 3px 0; }
.rule dt { color: var(--muted); } .rule dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 560px) { .meaning { display: none; } }
@media (max-width: 560px) { .rule div { grid-template-columns: 1fr; } th, td { padding: 6px 8px; } }
"""
