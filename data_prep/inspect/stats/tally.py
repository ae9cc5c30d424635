"""Sums, histograms and counts over samples, which are merged shard by shard: memory does not grow with the samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_NAMES = 2000  # values that are counted per fact; further values count as OTHER
OTHER = "(others)"
MAX_MESSAGES = 20
NUM_EXTREMES = 5  # samples with the lowest and with the highest value of a quantity that are named


@dataclass(frozen=True)
class Quantity:
    """A number that samples can have, and the bins of its histogram. low, high: values beyond them count in the first
    or last bin.
    """

    name: str
    title: str
    unit: str
    low: float
    high: float
    num_bins: int
    is_logarithmic: bool = False

    @cached_property
    def edges(self) -> NDArray[np.float64]:
        """(num_bins + 1,) limits of the bins."""
        if self.is_logarithmic:
            return np.geomspace(self.low, self.high, self.num_bins + 1)
        return np.linspace(self.low, self.high, self.num_bins + 1)


# Logarithmic bins are 3 to 4 % wide, so medians are exact to 3 to 4 %.
QUANTITIES = {
    quantity.name: quantity
    for quantity in (
        Quantity("duration_seconds", "Duration", "s", 1e-3, 1e6, 600, True),
        Quantity("num_frames", "Frames", "", 1, 1e8, 512, True),
        Quantity("video_bytes", "Video member", "B", 1, 1e12, 800, True),
        Quantity("audio_bytes", "Audio member", "B", 1, 1e12, 800, True),
        Quantity("image_bytes", "Image member", "B", 1, 1e12, 800, True),
        Quantity("source_bytes", "Source file", "B", 1, 1e14, 900, True),
        Quantity("av_offset_seconds", "Audio start less video start", "s", -5, 5, 1000),
        Quantity("loudness_lufs", "Loudness, BS.1770", "LUFS", -70, 5, 150),
        Quantity("rms_dbfs", "RMS", "dBFS", -120, 0, 240),
        Quantity("peak_dbfs", "Peak", "dBFS", -120, 0, 240),
        Quantity("silent_share", "Share of silence", "%", 0, 1, 100),
        Quantity("motion", "Motion, levels of 255", "", 1e-2, 256, 200, True),
        Quantity("still_share", "Share of still video", "%", 0, 1, 100),
    )
}

FACTS = {
    "streams": "Streams",
    "stored_size": "Stored size",
    "stored_fps": "Stored fps",
    "stored_rate_hz": "Stored Hz",
    "container": "Container",
    "video_codec": "Video codec",
    "source_size": "Source size",
    "source_fps": "Source fps",
    "rotation_degrees": "Rotation",
    "pixel_format": "Pixel format",
    "audio_codec": "Audio codec",
    "source_rate_hz": "Source Hz",
    "channels": "Channels",
    "image_format": "Image format",
    "image_mode": "Image mode",
}


class Histogram:
    """Counts of a quantity's values, with their exact number, sum, least and greatest."""

    def __init__(self, quantity: Quantity) -> None:
        self.quantity = quantity
        self.counts = np.zeros(quantity.num_bins, dtype=np.int64)
        self.total = 0.0
        self.least, self.most = np.inf, -np.inf

    @property
    def num_values(self) -> int:
        """The number of values."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """The mean of the values themselves, not of the bins."""
        return self.total / self.num_values

    def add(self, value: float) -> None:
        """Count a finite value."""
        position = int(np.searchsorted(self.quantity.edges, value, side="right")) - 1
        self.counts[min(max(position, 0), self.quantity.num_bins - 1)] += 1
        self.total += value
        self.least, self.most = min(self.least, value), max(self.most, value)

    def add_all(self, values: NDArray[np.float64]) -> None:
        """Count finite values (n,)."""
        if len(values):
            positions = np.searchsorted(self.quantity.edges, values, side="right") - 1
            places = np.clip(positions, 0, self.quantity.num_bins - 1)
            self.counts += np.bincount(places, minlength=self.quantity.num_bins)
            self.total += float(values.sum())
            self.least, self.most = min(self.least, float(values.min())), max(self.most, float(values.max()))

    def merge(self, other: Histogram) -> None:
        """Add the values of another histogram of the same quantity."""
        self.counts += other.counts
        self.total += other.total
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)

    def quantile(self, fraction: float) -> float:
        """The value below which this fraction of the values lies, exact to a bin; always in least..most."""
        upto = np.cumsum(self.counts)
        rank = fraction * upto[-1]
        position = min(int(np.searchsorted(upto, rank, side="left")), len(upto) - 1)
        while self.counts[position] == 0:  # only for the fraction 0
            position += 1
        within = (rank - (upto[position] - self.counts[position])) / self.counts[position]
        low, high = self.quantity.edges[position : position + 2]
        value = low * (high / low) ** within if self.quantity.is_logarithmic else low + (high - low) * within
        return float(min(max(value, self.least), self.most))

    def to_json(self) -> dict[str, Any]:
        """Numbers, quantiles and the bins that are not empty: [lower edge, upper edge, count]."""
        edges, filled = self.quantity.edges, np.flatnonzero(self.counts)
        return {
            "unit": self.quantity.unit,
            "count": self.num_values,
            "sum": self.total,
            "mean": self.mean,
            "min": self.least,
            "max": self.most,
            "quantiles": {str(fraction): self.quantile(fraction) for fraction in (0.05, 0.25, 0.5, 0.75, 0.95)},
            "bins": [[float(edges[k]), float(edges[k + 1]), int(self.counts[k])] for k in filled],
        }


@dataclass
class Extremes:
    """The samples with the lowest and the highest values of a quantity: (value, key), the most extreme first; of equal
    values the keys in their order.
    """

    lowest: list[tuple[float, str]] = field(default_factory=list)
    highest: list[tuple[float, str]] = field(default_factory=list)

    def add(self, *found: tuple[float, str]) -> None:
        """Add samples; of all of them the NUM_EXTREMES most extreme ones stay."""
        self.lowest = sorted([*self.lowest, *found])[:NUM_EXTREMES]
        self.highest = sorted([*self.highest, *found], key=lambda one: (-one[0], one[1]))[:NUM_EXTREMES]

    def merge(self, other: Extremes) -> None:
        """Add the samples of another part."""
        self.lowest = sorted([*self.lowest, *other.lowest])[:NUM_EXTREMES]
        both = [*self.highest, *other.highest]
        self.highest = sorted(both, key=lambda one: (-one[0], one[1]))[:NUM_EXTREMES]


@dataclass
class Tally:
    """Statistics of samples.

    numbers: {Quantity.name: histogram}. facts: {name of FACTS: {value: number of samples}}. labels: {field: {name:
    number of samples}}. num_labeled: {field: samples with any name in it}. failed: {reason: samples whose media could
    not be measured}. messages: the first of their errors. counts: samples with other properties (wholly silent, ...).
    extremes: {Quantity.name: the samples with the lowest and highest values}. key: of the sample that is being added.
    """

    num_samples: int = 0
    numbers: dict[str, Histogram] = field(default_factory=dict)
    facts: dict[str, Counter[str]] = field(default_factory=dict)
    labels: dict[str, Counter[str]] = field(default_factory=dict)
    num_labeled: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    extremes: dict[str, Extremes] = field(default_factory=dict)
    key: str = ""

    def begin(self, key: str) -> None:
        """Count a sample, whose values are added until the next one begins."""
        self.key = key
        self.num_samples += 1

    def add_number(self, name: str, value: float | None) -> None:
        """Count the value of a quantity that the current sample has; None is ignored."""
        if value is not None:
            self.numbers.setdefault(name, Histogram(QUANTITIES[name])).add(value)
            self.extremes.setdefault(name, Extremes()).add((value, self.key))

    def add_fact(self, name: str, value: object) -> None:
        """Count a sample's value of a fact; None is ignored."""
        if value is not None:
            shown = f"{value:.6g}" if isinstance(value, float) else str(value)
            self._count(self.facts.setdefault(name, Counter()), [(shown, 1)])

    def add_labels(self, labels: dict[str, list[str]]) -> None:
        """Count a sample's labels."""
        for name, values in labels.items():
            self.labels.setdefault(name, Counter()).update(set(values))
            self.num_labeled[name] += bool(values)

    def add_failure(self, reason: str, message: str) -> None:
        """Count a sample whose media could not be measured."""
        self.failed[reason] += 1
        if len(self.messages) < MAX_MESSAGES:
            self.messages.append(message)

    def merge(self, other: Tally) -> None:
        """Add the statistics of other samples."""
        self.num_samples += other.num_samples
        for name, histogram in other.numbers.items():
            self.numbers.setdefault(name, Histogram(histogram.quantity)).merge(histogram)
        for name, extremes in other.extremes.items():
            self.extremes.setdefault(name, Extremes()).merge(extremes)
        for name, counter in other.facts.items():
            self._count(self.facts.setdefault(name, Counter()), counter.items())
        for name, counter in other.labels.items():
            self.labels.setdefault(name, Counter()).update(counter)
        self.num_labeled.update(other.num_labeled)
        self.failed.update(other.failed)
        self.messages = (self.messages + other.messages)[:MAX_MESSAGES]
        self.counts.update(other.counts)

    @staticmethod
    def _count(counter: Counter[str], items: Iterable[tuple[str, int]]) -> None:
        for value, count in items:
            counter[value if value in counter or len(counter) < MAX_NAMES else OTHER] += count

    def to_json(self) -> dict[str, Any]:
        """The statistics as nested dicts; values of facts and labels are in order of frequency."""
        return {
            "num_samples": self.num_samples,
            "numbers": {name: self.numbers[name].to_json() for name in QUANTITIES if name in self.numbers},
            "facts": {name: dict(self.facts[name].most_common()) for name in FACTS if name in self.facts},
            "labels": {name: dict(counter.most_common()) for name, counter in sorted(self.labels.items())},
            "num_labeled": dict(sorted(self.num_labeled.items())),
            "failed": dict(self.failed.most_common()),
            "messages": self.messages,
            "counts": dict(sorted(self.counts.items())),
            "extremes": {name: asdict(self.extremes[name]) for name in QUANTITIES if name in self.extremes},
        }
