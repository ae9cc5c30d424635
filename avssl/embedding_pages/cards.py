"""Cards of rows of embeddings on a page: still, sound picture, play button, score, key, seconds and labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from avssl.embedding.media import Media
from avssl.embedding.table import RowFacts
from avssl.embedding_pages.clips import Clip, clip_of
from avssl.pages.markup import Html, tag
from avssl.pages.media import data_uri
from avssl.processes.limits import failure
from avssl.types import MediaError, Span

PLAY = Html('<svg viewBox="0 0 24 24" aria-hidden="true"><path class="go" d="M8 5.2v13.6L19 12z"/>'
            '<path class="stop" d="M7 5h3.6v14H7zm6.4 0H17v14h-3.6z"/></svg>')  # fmt: skip
KINDS = {"video": "video", "audio": "sound", "image": "image"}
HEADINGS = {"video": "Closest videos", "audio": "Closest sounds", "image": "Closest images"}


@dataclass(frozen=True)
class Shown:
    """A row as the page shows it. movie: the id of its clip; "" if none plays. problem: why its media are not shown.

    name: what the row is called on the page; "": its key.
    still, sound: data: URIs, "" without. clip: what they show; None if it could not be made.
    """

    row: RowFacts
    clip: Clip | None = None
    movie: str = ""
    still: str = ""
    sound: str = ""
    problem: str = ""
    name: str = ""


class PageMedia:
    """The media of a page, each window's made once, up to a bound of bytes of text.

    Attributes: movies {id: data: URI}, num_bytes, num_left_out (clips that did not fit).
    """

    def __init__(self, max_bytes: int) -> None:
        self._room = max_bytes
        self.movies: dict[str, str] = {}
        self.num_bytes = self.num_left_out = 0
        self._made: dict[tuple[str, str, float, float], Shown] = {}

    def shown(self, row: RowFacts, place: str, opened: Callable[[], Media], *, from_start: bool = False) -> Shown:
        """The media of a row. place: tells sources of one key apart. opened: opens them, or raises MediaError."""
        identity = (row.key, place, row.start_seconds, row.end_seconds)
        if identity not in self._made:
            self._made[identity] = self._make(row, opened, from_start=from_start)
        return self._made[identity]

    def _make(self, row: RowFacts, opened: Callable[[], Media], *, from_start: bool) -> Shown:
        if self._room <= 0:
            return Shown(row, problem="the page is full")
        try:
            with closing(opened()) as media:
                clip = clip_of(media, Span(row.start_seconds, row.end_seconds), from_start=from_start)
        except Exception as error:  # of a damaged file; the other results are worth showing
            return Shown(row, problem=_reason(row.key, error))
        return self.of_clip(row, clip)

    def of_clip(self, row: RowFacts, clip: Clip | MediaError) -> Shown:
        """The media of a row of which a clip was made, or why there is none."""
        if isinstance(clip, MediaError):
            return Shown(row, problem=clip.message)
        still, sound = (self._uri(content, "image/jpeg") for content in (clip.still, clip.sound))
        movie = ""
        uri = self._uri(clip.movie, "video/mp4" if clip.has_video else "audio/mp4")
        if uri:
            movie = f"clip-{len(self.movies)}"
            self.movies[movie] = uri
        elif clip.movie is not None:
            self.num_left_out += 1
        return Shown(row, clip, movie, still, sound)

    def _uri(self, content: bytes | None, mime_type: str) -> str:
        """The content as a data: URI, "" if there is none or if it does not fit."""
        uri = "" if content is None else data_uri(content, mime_type)
        if len(uri) > self._room:
            return ""
        self._room -= len(uri)
        self.num_bytes += len(uri)
        return uri


def _reason(key: str, error: Exception) -> str:
    """Why a clip could not be made, as one sentence."""
    return failure(key, error).message


def seconds_text(start: float, end: float) -> str:
    """A window as a reader has it: 0:01.50 – 0:02.00, with hours if there are any; "" of an image."""
    return "" if end <= 0 else f"{_clock(start)} – {_clock(end)}"


def _clock(seconds: float) -> str:
    hundredths = round(seconds * 100)
    minutes, rest = divmod(hundredths, 6000)
    hours, minutes = divmod(minutes, 60)
    end = f"{rest // 100:02d}.{rest % 100:02d}"
    return f"{hours}:{minutes:02d}:{end}" if hours else f"{minutes}:{end}"


def card(
    rank: int, shown: Shown, score: float, modality: str, labels: Mapping[str, Sequence[str]], more: Html | str = ""
) -> Html:
    """The card of a result. labels: of the query; a result's label that is the same is marked. more: markup below."""
    about = tag("div", _score(score), _name(shown), _labels(shown.row.labels, labels), more, class_="about")
    picture = _picture(shown, modality, f"result {rank}", tag("b", rank, class_="place"))
    return tag("li", picture, about, class_="hit")


def query_card(shown: Shown, modality: str) -> Html:
    """The card of what was asked."""
    what = tag("p", f"Asked by this {KINDS[modality]}", class_="what")
    about = tag("div", _name(shown), _labels(shown.row.labels, {}), class_="about")
    return tag(
        "div", what, tag("div", _picture(shown, modality, "the query", ""), about, class_="hit"), class_="query-card"
    )


def row_card(shown: Shown, modality: str, more: Html | str = "") -> Html:
    """The card of a row that is no result. more: markup below."""
    about = tag("div", _name(shown), _labels(shown.row.labels, {}), more, class_="about")
    return tag("li", _picture(shown, modality, "a row", ""), about, class_="hit")


def _picture(shown: Shown, modality: str, name: str, place: Html | str) -> Html:
    """The part of a card that is looked at and played."""
    row, clip = shown.row, shown.clip
    seconds = seconds_text(row.start_seconds, row.end_seconds)
    time = tag("span", seconds, class_="time") if seconds else ""
    label = f"{name}, {row.key}{', ' if seconds else ''}{seconds}"
    if clip is None:
        return tag(
            "div", tag("p", f"Cannot be shown: {shown.problem}", class_="missing"), place, time, class_="shot none"
        )
    kind = "video" if clip.has_video else "audio"
    button: Html | str = ""
    if shown.movie:
        attributes = {"type": "button", "class_": "play", "data_clip": shown.movie, "data_kind": kind}
        button = tag("button", PLAY, **attributes, aria_label=f"Play {label}")
    still = tag("img", src=shown.still, alt=f"Frame of {label}", class_="still") if shown.still else ""
    if clip.movie is None:  # an image
        return tag("div", still or _lacking(shown), place, class_="shot movie")
    sound = _sound(shown, label)
    is_sound = modality == "audio" or not clip.has_video
    if is_sound:
        inset = tag("div", still, class_="inset screen") if still else tag("div", class_="screen hidden")
        return tag("div", sound or _lacking(shown), inset, button, place, time, class_="shot sound")
    screen = tag("div", still or _lacking(shown), class_="screen")
    strip = tag("div", sound, class_="sound-strip") if sound else tag("p", "no sound", class_="sound-strip mute")
    return tag("div", tag("div", screen, button, place, time, class_="shot movie"), strip)


def _lacking(shown: Shown) -> Html:
    return tag("p", "not in the page: it is full" if not shown.still else "", class_="missing")


def _sound(shown: Shown, label: str) -> Html:
    """The picture of the sound with the seconds that were compared marked, and the line that moves; or nothing."""
    clip = shown.clip
    if clip is None or not shown.sound:
        return Html("")
    length = max(clip.span.end_seconds - clip.span.start_seconds, 1e-9)
    left = (shown.row.start_seconds - clip.span.start_seconds) / length
    right = (clip.span.end_seconds - shown.row.end_seconds) / length
    sides = [
        tag("i", class_="shade", style=f"{side}:0;width:{min(share, 1) * 100:.2f}%")
        for side, share in (("left", left), ("right", right))
        if share > 0.005
    ]
    picture = tag("img", src=shown.sound, alt=f"Spectrogram of {label}")
    return tag("span", picture, *sides, tag("i", class_="now"), class_="wave-picture")


def _score(score: float) -> Html:
    width = f"width:{min(max(score, 0.0), 1.0) * 100:.1f}%"
    bar = tag("span", tag("i", style=width), class_="score-bar", aria_hidden="true")
    return tag("p", tag("b", f"{score:.3f}"), bar, class_="score", title="cosine")


def _name(shown: Shown) -> Html:
    folder, slash, name = (shown.name or shown.row.key).rpartition("/")
    return tag("p", tag("span", folder + slash), tag("b", name), class_="path", title=shown.row.key)


def _labels(labels: Mapping[str, Sequence[str]], asked: Mapping[str, Sequence[str]]) -> Html | str:
    chips = []
    for field, names in sorted(labels.items()):
        for name in names:
            is_same = name in asked.get(field, ())
            mark = tag("span", "✓ ", title="as the query") if is_same else ""
            chips.append(tag("li", mark, tag("small", field), " ", name, class_="chip same" if is_same else "chip"))
    return tag("ul", *chips, class_="chips") if chips else ""
