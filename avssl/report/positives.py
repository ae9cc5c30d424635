"""Positive sets of CMA with their anchors: the samples that each of the four agreements takes for one and the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from avssl.ops.agreement import COMBINE, most_agreeing
from avssl.pages.markup import Html, join, number, tag
from avssl.pages.media import MediaLibrary
from avssl.report.neighbors import label_text
from avssl.types import Agreement

AGREEMENTS: dict[Agreement, str] = {
    "consensus": "alike in video and in audio (the lower cosine counts)",
    "union": "alike in video or in audio (the higher cosine counts)",
    "video": "alike in video",
    "audio": "alike in audio",
}
Labels = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Banks:
    """The memory banks of a run and the samples that their rows stand for.

    video, audio: (N, D) unit rows. key, labels: of a sample by its number. num_positives: of a set in the run.
    """

    video: torch.Tensor
    audio: torch.Tensor
    key: Callable[[int], str]
    labels: Callable[[int], Labels]
    num_positives: int


@dataclass(frozen=True)
class Positive:
    """A sample of a positive set: its number and both cosines to the anchor."""

    number: int
    video: float
    audio: float


def positive_sets(banks: Banks, anchor: int) -> dict[Agreement, list[Positive]]:
    """{agreement: the positives of one anchor, those that agree most first; of equal ones the lower number first}."""
    sets: dict[Agreement, list[Positive]] = {}
    k = min(banks.num_positives, len(banks.video) - 1)
    video, audio = banks.video.float(), banks.audio.float()
    for agreement in AGREEMENTS:
        numbers = most_agreeing(video, audio, k, agreement, anchor, anchor + 1)[0]
        cosines = {
            name: (bank[numbers].double() @ bank[anchor].double())
            for name, bank in (("video", video), ("audio", audio))
        }
        combine = COMBINE.get(agreement)
        scores = combine(cosines["video"], cosines["audio"]) if combine else cosines[agreement]
        order = torch.argsort(scores, descending=True, stable=True).tolist()
        sets[agreement] = [
            Positive(int(numbers[row]), float(cosines["video"][row]), float(cosines["audio"][row])) for row in order
        ]
    return sets


def positives_section(banks: Banks, library: MediaLibrary, num_anchors: int, num_shown: int) -> Html:
    """Anchors, evenly picked, each with the best of its positive set under every agreement."""
    count = len(banks.video)
    if count < 2:
        return tag("p", "The run saw fewer than two samples: no positive sets.", class_="note")
    anchors = sorted({(2 * turn + 1) * count // (2 * num_anchors) for turn in range(num_anchors)})
    intro = (
        f"The sets that CMA would take from the memories of this run, of {min(banks.num_positives, count - 1)} samples "
        f"each; the {num_shown} that agree most are shown, with both cosines. Anchors are evenly picked, not by "
        "result. ✓ marks a label that is the anchor's. Sounds are excerpts."
    )
    first, *others = (_anchor(banks, anchor, library, num_shown) for anchor in anchors)
    folded = [
        tag("details", tag("summary", f"Anchor {banks.key(anchor)}"), body, class_="fold")
        for anchor, body in zip(anchors[1:], others, strict=True)
    ]
    return join(tag("p", intro), first, *folded)


def _anchor(banks: Banks, anchor: int, library: MediaLibrary, num_shown: int) -> Html:
    labels = banks.labels(anchor)
    head = tag("p", tag("b", "Anchor"), class_="rank")
    key = banks.key(anchor)
    card = tag("div", head, *_media(key, library), label_text(labels), _name(key), class_="query clip")
    rows = []
    for agreement, positives in positive_sets(banks, anchor).items():
        share = _shares(banks, labels, positives)
        title = tag("h4", agreement.capitalize(), tag("small", f" {AGREEMENTS[agreement]}{share}"))
        cards = [_card(banks, labels, positive, library) for positive in positives[:num_shown]]
        rows.append(join(title, tag("ol", *cards, class_="set", tabindex=0, aria_label=f"{agreement} of {key}")))
    return tag("div", card, tag("div", *rows), class_="search anchor")


def _shares(banks: Banks, labels: Labels, positives: Sequence[Positive]) -> str:
    """How many of a whole set have the anchor's label, by field; "" without labels."""
    texts = []
    for field, names in sorted(labels.items()):
        same = [bool(set(names) & set(banks.labels(positive.number).get(field, ()))) for positive in positives]
        texts += [f"{sum(same)} of {len(same)} with its {field}"] if names else []
    return f"; {', '.join(texts)}" if texts else ""


def _card(banks: Banks, labels: Labels, positive: Positive, library: MediaLibrary) -> Html:
    key, own = banks.key(positive.number), banks.labels(positive.number)
    same = {field for field, names in own.items() if set(names) & set(labels.get(field, ()))}
    marks = {f"✓ {field}" if field in same else field: names for field, names in own.items()}
    cosines = [
        tag("span", f"{name} {number(round(value, 2))}")
        for name, value in (("video", positive.video), ("audio", positive.audio))
    ]
    return tag(
        "li",
        *_media(key, library),
        tag("small", *cosines, class_="cosines"),
        label_text(marks),
        _name(key),
        class_="clip",
    )


def _media(key: str, library: MediaLibrary) -> list[Html]:
    return [library.thumbnails(key, 1), library.excerpt_button(key)]


def _name(key: str) -> Html:
    return tag("code", key, title=key, class_="name")
