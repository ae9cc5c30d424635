"""stats.html: the statistics of a shard folder on one page that needs nothing but a browser."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from html import escape
from itertools import islice

from avssl.media.decode import read_video
from avssl.media.images import read_image
from avssl.pages.html_page import html_page
from avssl.pages.markup import Html, join, tag
from avssl.pages.media import MediaLibrary
from avssl.shards.shard_set import Sample, ShardSet
from avssl.types import MediaError
from data_prep.inspect.stats.charts import bar_list, histogram_chart
from data_prep.inspect.stats.collect import Groups, Stats
from data_prep.inspect.stats.samples import MAX_MEDIA_BYTES, media_of, outlier_note, outliers, sample_grid
from data_prep.inspect.stats.tally import FACTS, QUANTITIES, Histogram
from data_prep.inspect.stats.text import NUMBER_COLUMNS, limits_note, number_cells, totals
from data_prep.inspect.stats.units import count_of, shown
from data_prep.measures.video import middle_frame

NUM_GROUPS, NUM_MEMBERS = 8, 5  # groups of duplicates that are shown, and samples of each
THUMBNAIL_PX = 192


def page(stats: Stats) -> str:
    """The page as HTML. The same folder and thresholds give the same text."""
    name = stats.folder.resolve().name
    tally = stats.tally
    library = MediaLibrary(None, 0)
    sections = [_cards(stats)]
    if tally.failed:
        sections.append(_failures(stats))
    if tally.num_samples:
        shards = ShardSet(stats.folder)
        library = MediaLibrary(media_of(shards), MAX_MEDIA_BYTES)
        sections.append(_section("Samples", sample_grid(shards, library)))
        shards.close()
    if tally.numbers:
        lists = list(outliers(stats))
        found = f'<p class="muted">{escape(outlier_note(lists))}</p><div class="panels">{"".join(lists)}</div>'
        sections += [_section("Numbers", _histograms(stats) + _table(stats)), _section("Outliers", found)]
    if tally.labels:
        sections.append(_section("Classes", f'<div class="panels">{"".join(_classes(stats))}</div>'))
    if tally.facts:
        sections.append(_section("What the files are", _facts(stats)))
    if stats.groups:
        sections.append(_section("Duplicates", "".join(_duplicates(stats))))
    sections.append(_section("How this was measured", _method(stats)))
    lead = tag("header", tag("h1", name), tag("p", totals(stats), class_="muted"))
    body = join(lead, tag("main", Html("".join(sections))))
    return html_page(f"{name}: statistics", body, media=library.embedded, styles=[STYLE])


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _cards(stats: Stats) -> str:
    """The large numbers on top."""
    tally = stats.tally
    cards = [("Samples", f"{tally.num_samples:,}", count_of(len(stats.index.shards), "shard"))]
    if "duration_seconds" in tally.numbers:
        duration = tally.numbers["duration_seconds"]
        cards.append(("Together", shown(duration.total, "s"), f"{shown(duration.mean, 's')} in the mean"))
    cards.append(("Size", shown(stats.index.total_bytes, "B"), ""))
    for name, counter in sorted(tally.labels.items())[:2]:
        cards.append((f"Classes, {name}", f"{len(counter):,}", ""))
    for name, title, noun in (("silent_share", "Silence", "silent"), ("still_share", "Still video", "still")):
        if name in tally.numbers:
            note = f"{tally.counts[f'wholly {noun}']:,} {noun} throughout"
            cards.append((title, shown(tally.numbers[name].mean, "%"), note))
    for name, groups in stats.groups.items():
        note = f"in {count_of(len(groups), 'group')}" if groups else ""
        cards.append((name.capitalize(), f"{sum(map(len, groups)):,}", note))
    cells = (
        f"<div><dt>{escape(title)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for title, value, note in cards
    )
    return f'<dl class="cards">{"".join(cells)}</dl>'


def _failures(stats: Stats) -> str:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in stats.tally.failed.most_common())
    messages = "".join(f"<br><code>{escape(message)}</code>" for message in stats.tally.messages)
    return f'<h2>Cannot be read</h2><div class="panel bad">{escape(reasons)}{messages}</div>'


def _histograms(stats: Stats) -> str:
    """Histograms of the quantities with more than one filled bin."""
    spread = (histogram for histogram in _numbers_in_order(stats) if (histogram.counts > 0).sum() > 1)
    return f'<div class="panels">{"".join(histogram_chart(histogram) for histogram in spread)}</div>'


def _numbers_in_order(stats: Stats) -> list[Histogram]:
    return [stats.tally.numbers[name] for name in QUANTITIES if name in stats.tally.numbers]


def _table(stats: Stats) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("", "samples", *NUMBER_COLUMNS))
    rows = (
        f"<tr><th>{escape(histogram.quantity.title)}</th><td>{histogram.num_values:,}</td>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in number_cells(histogram))
        + "</tr>"
        for histogram in _numbers_in_order(stats)
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="box below">{table}</div>'


def _classes(stats: Stats) -> Iterator[str]:
    tally = stats.tally
    for name, counter in sorted(tally.labels.items()):
        values = counter.most_common()
        if not values:
            continue
        note = f"{count_of(len(values), 'class')}, {values[-1][1]:,} to {values[0][1]:,} samples each"
        if unlabeled := tally.num_samples - tally.num_labeled[name]:
            note += f"; {unlabeled:,} samples without a label"
        yield bar_list(name, values, tally.num_samples, note)


def _facts(stats: Stats) -> str:
    """Bars for facts with several values, and a list of the facts with a single value."""
    facts = [(title, stats.tally.facts[name]) for name, title in FACTS.items() if name in stats.tally.facts]
    panels = [
        bar_list(
            title, counter.most_common(), counter.total(), f"{len(counter):,} different" if len(counter) > 10 else ""
        )
        for title, counter in facts
        if len(counter) > 1
    ]
    same = [(title, next(iter(counter))) for title, counter in facts if len(counter) == 1]
    rows = "".join(f"<div><dt>{escape(title)}</dt><dd>{escape(value)}</dd></div>" for title, value in same)
    always = f'<dl class="same box">{rows}</dl>' if same else ""
    return f'<div class="panels">{"".join(panels)}</div>{always}'


def _duplicates(stats: Stats) -> Iterator[str]:
    shards = ShardSet(stats.folder)
    for name, groups in stats.groups.items():
        if groups:
            yield from _groups(name, groups, shards)
        else:
            yield f'<p class="muted">{name.capitalize()}: none.</p>'
    shards.close()


def _groups(name: str, groups: Groups, shards: ShardSet) -> Iterator[str]:
    """The largest groups with thumbnails. name: e.g. "near-duplicate videos"."""
    title = name.capitalize()
    for group in groups[:NUM_GROUPS]:
        members = "".join(_member(shards, int(index)) for index in islice(group, NUM_MEMBERS))
        more = f"<li>and {len(group) - NUM_MEMBERS:,} more</li>" if len(group) > NUM_MEMBERS else ""
        yield f'<div class="panel group"><b>{title}</b>: {len(group):,} samples<ul>{members}{more}</ul></div>'
    if len(groups) > NUM_GROUPS:
        yield f'<p class="muted">{title}: {len(groups) - NUM_GROUPS:,} more groups; --numbers lists them.</p>'


def _member(shards: ShardSet, index: int) -> str:
    try:
        sample = shards.read(index)
        jpeg = thumbnail(sample)
    except MediaError as error:
        return f"<li>{index}: {escape(error.message)}</li>"
    image = "" if jpeg is None else f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'
    return f"<li>{image}{index}: {escape(sample.info.key)}</li>"


def thumbnail(sample: Sample) -> bytes | None:
    """A small JPEG of the image, or of the `middle_frame` of the video; None for audio. MediaError for damage."""
    from PIL import Image

    if sample.image is not None:
        pixels = read_image(sample.image, name=sample.info.key)
    elif sample.video is not None:
        number = middle_frame(sample.info.num_frames, sample.info.video_fps)
        pixels = read_video(sample.video, [number / sample.info.video_fps], name=sample.info.key)[0]
    else:
        return None
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    image.thumbnail((2 * THUMBNAIL_PX, THUMBNAIL_PX))
    output = io.BytesIO()
    image.save(output, "JPEG", quality=80)
    return output.getvalue()


def _method(stats: Stats) -> str:
    limits = stats.thresholds
    notes = [
        "Quantiles come from histograms and are exact to a bin (3 to 4 % for times and sizes); counts, sums, "
        "least and greatest values are exact. Facts of codecs, rates and sizes are those of the source files."
    ]
    if stats.decode:
        notes += [
            *limits_note(stats),
            "Loudness is the integrated loudness of ITU-R BS.1770-4 of the stored mono audio; audio shorter than "
            "400 ms or below its gate of -70 LUFS has none. RMS and peak are of all samples of a waveform.",
            "Motion is the mean absolute change of the mean luma of 16 x 16 squares between frames half a second apart "
            "(further apart in videos of more than 16 s).",
            "Near duplicates are linked in pairs: the 64-bit DCT hashes of two images differ in at most "
            f"{limits.max_distance} bits; for videos, those of a frame near the middle and of the first frame. A group "
            "is a chain of such pairs, so that some of its samples may differ more. Crops, mirror images and excerpts "
            "from other seconds are not found.",
        ]
    else:
        notes.append("Nothing was decoded (--no-decode): duplicates are members with equal bytes.")
    return "".join(f'<p class="muted">{escape(note[0].upper() + note[1:])}</p>' for note in notes)


STYLE = """
:root { --bar: #2f6fb5; --track: #eaedef; --median: #b4500f; }
@media (prefers-color-scheme: dark) { :root { --bar: #7fb2f0; --track: #262d36; --median: #ffad6b; } }
header { padding-bottom: 0; } header h1 { margin-bottom: 0; }
section { padding: 32px 0 0; } main { padding-bottom: 60px; }
.muted, small { color: var(--muted); }
small { display: block; font-size: .82rem; font-weight: 400; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(185px, 1fr)); gap: 12px; margin: 22px 0 0; }
.cards div, .panel, .box { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.cards div { padding: 12px 16px; }
.cards dt { color: var(--muted); font-size: .85rem; }
.cards dd { margin: 0; font-size: 1.6rem; font-weight: 650; line-height: 1.3; font-variant-numeric: tabular-nums; }
.cards dd small { font-size: .8rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 14px; }
.panel { margin: 0; padding: 12px 16px; min-width: 0; }
figcaption { font-weight: 600; margin-bottom: 6px; overflow-wrap: anywhere; }
.panel svg { display: block; width: 100%; height: auto; }
.column { fill: var(--bar); } .column:hover { opacity: .75; }
.axis { stroke: var(--muted); } .median { stroke: var(--median); stroke-width: 1.5; stroke-dasharray: 4 3; }
.tick { fill: var(--muted); font-size: 12px; text-anchor: middle; } .strong { fill: var(--median); font-weight: 600; }
.bars { list-style: none; margin: 0; padding: 0; font-size: .88rem; font-variant-numeric: tabular-nums; }
.bars li { display: grid; grid-template-columns: minmax(0, 9.5em) 1fr auto 3.4em; gap: 10px; align-items: center;
  padding: 2px 0; }
.bars .rest { display: block; color: var(--muted); padding-top: 6px; }
.value { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.track { height: 10px; border-radius: 5px; background: var(--track); overflow: hidden; }
.track i { display: block; height: 100%; min-width: 2px; border-radius: 5px; background: var(--bar); }
.count, .share { text-align: right; } .share { color: var(--muted); }
.box { overflow-x: auto; padding: 6px 0; }
.outliers dl { margin: 6px 0 0; font-size: .88rem; } .outliers dl > div { display: flex; gap: 12px; }
.outliers dt { min-width: 0; overflow-wrap: anywhere; flex: 1; } .outliers dd { margin: 0; white-space: nowrap; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: 6px 14px; text-align: right; white-space: nowrap; min-width: 0; }
th:first-child { text-align: left; font-weight: 600; } thead th { color: var(--muted); font-weight: 500; }
tbody tr > * { border-top: 1px solid var(--rule); }
.same { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 2px 24px; margin: 14px 0 0;
  padding: 12px 16px; }
.below { margin-top: 14px; }
.same div { display: flex; justify-content: space-between; gap: 12px; }
.same dt { color: var(--muted); } .same dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
.group { margin: 0 0 12px; padding: 12px 16px; }
.group ul { list-style: none; display: flex; flex-wrap: wrap; gap: 12px; margin: 8px 0 0; padding: 0; }
.group li { max-width: 170px; font-size: .78rem; color: var(--muted); overflow-wrap: anywhere; }
.group img { display: block; height: 96px; max-width: 170px; object-fit: contain; border-radius: 6px;
  margin-bottom: 4px; }
.bad { border-left: 4px solid var(--median); padding: 10px 16px; }
@media (max-width: 560px) { .bars li { grid-template-columns: minmax(0, 7em) 1fr auto 3.2em; gap: 8px; } }
"""
