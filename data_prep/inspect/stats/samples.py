"""Samples of the page of `stats`: a grid of some that play, and those whose values lie far out, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from avssl.pages.markup import Html, join, tag
from avssl.pages.media import ClipMedia, MediaLibrary
from avssl.shards.shard_set import ShardSet
from avssl.types import MediaError
from data_prep.inspect.stats.collect import Stats
from data_prep.inspect.stats.tally import NUM_EXTREMES, QUANTITIES, Histogram
from data_prep.inspect.stats.units import shown

NUM_SAMPLES = 12
MAX_MEDIA_BYTES = 6_000_000  # base64 text of what plays in the page
NUM_FENCES = 1.5  # interquartile ranges beyond the quartiles: Tukey's fences


def media_of(shards: ShardSet) -> Callable[[str], ClipMedia]:
    """key -> the files of a sample; nothing for one that cannot be read, which the page says elsewhere."""
    numbers = {key: number for number, key in enumerate(shards.keys)}

    def media(key: str) -> ClipMedia:
        try:
            sample = shards.read(numbers[key])
        except MediaError:
            return ClipMedia()
        return ClipMedia(sample.video, sample.audio, sample.image)

    return media


def sample_grid(shards: ShardSet, library: MediaLibrary) -> Html:
    """Cards of evenly picked samples with players for what they have."""
    keys, count = shards.keys, min(NUM_SAMPLES, len(shards.keys))
    cards = [_card(keys[turn * len(keys) // count], library) for turn in range(count)]
    note = f"{count} of {len(keys):,}, evenly picked." if count < len(keys) else "All of them."
    return join(tag("p", note, class_="muted"), tag("ul", *cards, class_="samples"))


def _card(key: str, library: MediaLibrary) -> Html:
    clip = library.clip(key)
    kinds = [kind for kind in ("image", "video", "audio") if getattr(clip, kind) is not None]
    players = [library.player(key, kind) for kind in kinds] or [tag("span", "cannot be read", class_="missing")]
    return tag("li", *players, tag("code", key, title=key, class_="name"), class_="clip")


def fences(histogram: Histogram) -> tuple[float, float]:
    """Tukey's fences of the values, in the logarithm where the bins are logarithmic."""
    first, third = (histogram.quantile(fraction) for fraction in (0.25, 0.75))
    if histogram.quantity.is_logarithmic:
        reach = NUM_FENCES * math.log(third / first)
        return first * math.exp(-reach), third * math.exp(reach)
    reach = NUM_FENCES * (third - first)
    return first - reach, third + reach


def outliers(stats: Stats) -> Iterator[Html]:
    """A list per quantity with values beyond its fences: the lowest and the highest samples by name."""
    for name in QUANTITIES:
        histogram = stats.tally.numbers.get(name)
        if histogram is None or histogram.num_values < 8:  # quartiles of fewer say nothing
            continue
        low, high = fences(histogram)
        lowest, highest = stats.tally.extremes[name].lowest, stats.tally.extremes[name].highest
        found = [*(one for one in lowest if one[0] < low), *(one for one in highest if one[0] > high)]
        if found:
            yield _list(histogram, found, (low, high))


def _list(histogram: Histogram, found: list[tuple[float, str]], limits: tuple[float, float]) -> Html:
    unit = histogram.quantity.unit
    rows = [
        tag("div", tag("dt", tag("code", key)), tag("dd", shown(value, unit))) for value, key in dict.fromkeys(found)
    ]
    usual = f"usual: {shown(max(limits[0], histogram.least), unit)} to {shown(min(limits[1], histogram.most), unit)}"
    return tag(
        "div", tag("h3", histogram.quantity.title), tag("small", usual), tag("dl", *rows), class_="panel outliers"
    )


def outlier_note(lists: list[Html]) -> str:
    """How an outlier is defined."""
    rule = (
        f"Beyond {NUM_FENCES:g} interquartile ranges of the quartiles (of logarithms for times and sizes); at most "
        f"{NUM_EXTREMES} on each side are named. An outlier is not an error: look at it."
    )
    return rule if lists else f"None. {rule}"
