"""A flat map of the embeddings: the first two principal components of all modalities together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from avssl.embedding.table import MODALITIES, EmbeddingTable
from avssl.pages.markup import Html, join, tag
from avssl.pages.media import MediaLibrary
from avssl.report.neighbors import NAMES, row_noun

MAX_POINTS = 400  # per modality
MAX_SPOTS = 150  # clips whose picture and sound the map shows; decoding them takes some 20 ms each
SPOT_BYTES = 40_000  # base64 text of a picture and an excerpt, at most
NUM_COLORS = 12  # c0 to c11 in style.css
WIDTH, HEIGHT, EDGE = 640.0, 460.0, 22.0
SHAPES = {"video": "discs are videos", "audio": "triangles are audio clips", "image": "squares are images"}


def principal_plane(points: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """PCA by SVD: (n, D) -> coordinates float64 (n, 2) and the two axes' shares of the variance (2,).

    The largest coordinate of each axis is positive, so that the same input gives the same map.
    """
    centered = points.astype(np.float64) - points.astype(np.float64).mean(axis=0)
    directions, singular_values, _ = np.linalg.svd(centered, full_matrices=False)
    plane = np.zeros((len(points), 2))
    count = min(2, len(singular_values))
    plane[:, :count] = directions[:, :count] * singular_values[:count]
    extreme = plane[np.abs(plane).argmax(axis=0), [0, 1]]
    plane *= np.where(extreme < 0, -1.0, 1.0)
    shares = np.zeros(2)
    total = float((singular_values**2).sum())
    if total > 0:
        shares[:count] = singular_values[:count] ** 2 / total
    return plane, shares


def even_rows(present: NDArray[np.bool_], limit: int = MAX_POINTS) -> NDArray[np.int64]:
    """At most `limit` of the rows that are present, evenly spread over the table."""
    rows = np.flatnonzero(present)
    return rows if len(rows) <= limit else rows[np.linspace(0, len(rows) - 1, limit).round().astype(np.int64)]


def class_colors(labels: Sequence[str | None]) -> dict[str, int]:
    """Class name -> color 0 to 10 for the most frequent classes (11 = all others and no label), sorted by name."""
    names = [name for name in labels if name is not None]
    frequent = sorted(set(names), key=lambda name: (-names.count(name), name))
    kept = sorted(frequent[: NUM_COLORS - 1])
    return {name: kept.index(name) if name in kept else NUM_COLORS - 1 for name in sorted(frequent)}


def _mark(modality: str, x: float, y: float, **attributes: object) -> Html:
    """The mark of a point: a disc for video, a triangle for audio, a square for an image."""
    title = tag("title", attributes.pop("title")) if "title" in attributes else ""
    if modality == "video":
        return tag("circle", title, cx=x, cy=y, r=4.2, **attributes)
    if modality == "image":
        return tag("rect", title, x=x - 3.9, y=y - 3.9, width=7.8, height=7.8, **attributes)
    corners = f"{x:.1f},{y - 5.2:.1f} {x + 4.8:.1f},{y + 3.6:.1f} {x - 4.8:.1f},{y + 3.6:.1f}"
    return tag("polygon", title, points=corners, **attributes)


def _legend(field: str, number: int, colors: dict[str, int]) -> Html:
    """Buttons that bring one class to the front; hidden unless the map is colored by this field."""
    shown: dict[int, list[str]] = {}
    for name, color in colors.items():
        shown.setdefault(color, []).append(name)
    items = []
    for color, names in sorted(shown.items()):
        text = names[0] if len(names) == 1 else f"{len(names)} other classes"
        sample = tag(
            "svg", tag("circle", cx=6, cy=6, r=5), viewBox="0 0 12 12", class_=f"key c{color}", aria_hidden="true"
        )
        button = tag("button", sample, text, type="button", aria_pressed="false", data_class=color)
        items.append(tag("li", button))
    return tag(
        "ul", *items, class_="legend classes", data_field=number, aria_label=f"Classes of {field}", hidden=number > 0
    )


def _points(table: EmbeddingTable) -> tuple[list[tuple[str, int]], NDArray[np.float32]]:
    """[(modality, row)] and the embeddings (n, D) of the points; only of the first modality if the dims differ."""
    marks: list[tuple[str, int]] = []
    vectors: list[NDArray[np.float32]] = []
    for modality in MODALITIES:
        values = table.embedding(modality)
        if values is None or (vectors and values.shape[1] != vectors[0].shape[1]):
            continue
        rows = even_rows(table.has(modality))
        marks += [(modality, int(row)) for row in rows]
        vectors.append(values[rows])
    return marks, np.concatenate(vectors) if vectors else np.zeros((0, 1), np.float32)


def _gap_text(marks: Sequence[tuple[str, int]], vectors: NDArray[np.float32]) -> str:
    """A sentence on the distance between the mean video and the mean audio clip; "" without both."""
    video, audio = (vectors[[modality == name for modality, _ in marks]] for name in ("video", "audio"))
    if not len(video) or not len(audio):
        return ""
    gap = float(np.linalg.norm(video.mean(axis=0) - audio.mean(axis=0)))
    return f" The mean video and the mean audio clip are {gap:.2f} apart (two opposite unit vectors: 2)."


def spots(rows: Sequence[int], table: EmbeddingTable, library: MediaLibrary) -> dict[int, dict[str, str | None]]:
    """{row: ids of its picture and its excerpt of sound}, evenly spread over the rows while the library has room."""
    found: dict[int, dict[str, str | None]] = {}
    has_sound, has_picture = "audio" in table.modalities(), table.modalities() != ["audio"]
    # Steps of the golden ratio spread any number of first ones evenly.
    spread = sorted(range(len(rows)), key=lambda place: place * 0.6180339887498949 % 1)
    for place in spread[:MAX_SPOTS] if library.available else ():
        if library.room < SPOT_BYTES:
            break
        key = table.keys[rows[place]]
        media = {"data_picture": library.embed(key, "picture") if has_picture else None}
        media |= {"data_sound": library.embed(key, "excerpt") if has_sound else None}
        if any(media.values()):
            found[rows[place]] = media
    return found


def map_section(table: EmbeddingTable, library: MediaLibrary) -> Html:
    """The map with a legend per label field.

    A point under the pointer or the keyboard shows key, labels and picture, and a line joins video and audio of its
    clip; a click plays its sound.
    """
    marks, vectors = _points(table)
    if len(marks) < 3:
        return tag("p", "Fewer than three embeddings: no map.", class_="note")
    plane, shares = principal_plane(vectors)
    fields = table.label_fields()
    labels = {field: table.label(field) for field in fields}
    colors = {field: class_colors(values) for field, values in labels.items()}
    media = spots(sorted({row for _, row in marks}), table, library)
    drawn = []
    for (modality, row), (x, y) in zip(marks, _places(plane), strict=True):
        classes = [colors[f].get(labels[f][row] or "", NUM_COLORS - 1) for f in fields]
        named = ", ".join(f"{field} {labels[field][row]}" for field in fields if labels[field][row])
        title = f"{table.keys[row]} ({NAMES[modality]}){': ' if named else ''}{named}"
        attributes = {"class_": f"point c{classes[0] if classes else 0}", "data_row": row, "title": title}
        attributes |= media.get(row, {})
        drawn.append(_mark(modality, float(x), float(y), data_classes=" ".join(map(str, classes)), **attributes))
    # The modalities alternate in the drawing order, so that none covers another.
    order = np.argsort([row for _, row in marks], kind="stable")
    modalities = [modality for modality in MODALITIES if any(modality == of_mark for of_mark, _ in marks)]
    svg = _drawing([drawn[number] for number in order], modalities)
    caption = (
        f"Principal components: {shares[0] * 100:.0f} % of the variance to the right, {shares[1] * 100:.0f} % upwards; "
        "distances beyond these two directions are not visible." + _gap_text(marks, vectors)
    )
    if library.available:
        what = " and ".join(_what_spots_have(table))
        clips = len({row for _, row in marks})
        caption += f" {len(media)} of the {clips} {row_noun(table)} have {what} in this page."
    figure = tag("figure", svg, tag("figcaption", caption, class_="note"))
    return tag("div", figure, tag("div", _controls(modalities, fields, colors), _spot(modalities)), class_="atlas")


def _places(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coordinates (n, 2), the second one upwards, -> places in the drawing (n, 2), from its upper left corner."""
    low, high = plane.min(axis=0), plane.max(axis=0)
    scale = np.array([WIDTH - 2 * EDGE, HEIGHT - 2 * EDGE]) / np.maximum(high - low, 1e-12)
    places: NDArray[np.float64] = EDGE + (plane - low) * scale
    places[:, 1] = HEIGHT - places[:, 1]
    return places


def _drawing(marks: Sequence[Html], modalities: Sequence[str]) -> Html:
    """The marks in their frame, with the line that map.js puts between two of one clip, and its name, read out."""
    frame = tag("rect", x=0.5, y=0.5, width=WIDTH - 1, height=HEIGHT - 1, rx=8, class_="frame")
    partner = tag("line", class_="partner", x1=0, x2=0, y1=0, y2=0)
    keys = "Arrow keys go from point to point" + (", Enter plays its sound." if "audio" in modalities else ".")
    name = f"Map of {len(marks)} embeddings; {', '.join(SHAPES[modality] for modality in modalities)}. {keys}"
    box = {
        "viewBox": f"0 0 {WIDTH:.0f} {HEIGHT:.0f}",
        "role": "group",
        "aria_label": name,
        "class_": "map",
        "tabindex": 0,
    }
    return tag("svg", frame, partner, *marks, **box)


def _what_spots_have(table: EmbeddingTable) -> list[str]:
    """What is embedded of the clips of a table with these modalities."""
    names = table.modalities()
    picture = ["a picture"] if set(names) & {"video", "image"} else []
    return picture + (["the first seconds of sound"] if "audio" in names else [])


def _spot(modalities: Sequence[str]) -> Html:
    """Where the chosen point is shown: map.js fills it."""
    text = "Choose a point: it is shown and heard here." if "audio" in modalities else (
        "Choose a point: it is shown here."
    )  # fmt: skip
    return tag("div", tag("p", text), class_="clip spot", aria_live="polite")


def _controls(modalities: Sequence[str], fields: Sequence[str], colors: dict[str, dict[str, int]]) -> Html:
    shapes = []
    for modality in modalities:
        sample = tag("svg", _mark(modality, 6.0, 6.0), viewBox="0 0 12 12", class_="key", aria_hidden="true")
        shapes.append(tag("li", sample, NAMES[modality]))
    switches = [
        tag("button", field, type="button", aria_pressed="false" if number else "true", data_color_by=number)
        for number, field in enumerate(fields)
    ]
    chooser = tag("p", "Color by ", *switches, class_="switches") if len(fields) > 1 else ""
    return join(
        tag("ul", *shapes, class_="legend"),
        chooser,
        *(_legend(field, number, colors[field]) for number, field in enumerate(fields)),
    )
