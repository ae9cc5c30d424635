"""Numbers with their units, as text: 3.25 s, 1.5 h, 12.3 MB, -23.1 LUFS, 4 %."""

from __future__ import annotations


def count_of(number: int, noun: str) -> str:
    """A number with its noun in singular or plural: 1 group, 2 groups, 12,000 classes."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def shown(value: float, unit: str) -> str:
    """A value with its unit: 3.25 s, 1.5 h, 12.3 MB, -23.1 LUFS, 4 %."""
    if unit == "B":
        return bytes_text(value)
    if unit == "%":
        return f"{value * 100:.1f} %".replace(".0 %", " %")
    if unit == "s":
        return _seconds(value)
    if unit in ("dBFS", "LUFS"):
        return f"{value:.1f} {unit}".replace(".0 ", " ")
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def bytes_text(value: float) -> str:
    """A number of bytes with three digits and its unit, such as 1.25 GB; units are powers of 1000."""
    for size, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.3g} {name}" if value < 999.5 * size else f"{value / size:.0f} {name}"
    return f"{value:.0f} B"


def _seconds(value: float) -> str:
    if abs(value) < 1:
        return f"{value * 1000:.3g} ms" if value else "0 s"
    if abs(value) < 120:
        return f"{value:.3g} s"
    return f"{value / 60:.3g} min" if abs(value) < 7200 else f"{value / 3600:,.1f} h"
