"""The figures of docs/figures as text: shapes, and one style that follows light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

FIGURES = Path(__file__).parents[1] / "figures"
# Six hues that are told apart on white and on black, also by who sees no red or green.
HUES = ("#0f7fbf", "#d9730d", "#2f9e6e", "#b0559a", "#9a7d0a", "#5b6ee1")
STYLE = """
svg { --ink: #1f2430; --soft: #667085; --line: #c9ced8; --paper: #ffffff; --box: #f2f4f8; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e6e9ef; --soft: #a3acbb; --line: #4a5262; --paper: #1d2027; --box: #2a2f3a; }
}
text { font: 13px system-ui, sans-serif; fill: var(--ink); }
.soft { fill: var(--soft); font-size: 12px; } .bold { font-weight: 600; } .middle { text-anchor: middle; }
.end { text-anchor: end; } .line { stroke: var(--line); fill: none; } .box { fill: var(--box); stroke: var(--line); }
.arrow { stroke: var(--soft); fill: none; stroke-width: 1.5; marker-end: url(#head); }
"""


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """A line of text. kind: classes of STYLE."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(words)}</text>'


def dot(x: float, y: float, color: str, radius: float = 3) -> str:
    """A filled circle."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{color}" fill-opacity=".75"/>'


def ring(x: float, y: float, radius: float) -> str:
    """A circle of the color of lines."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="line"/>'


def curve(points: Iterable[tuple[float, float]], color: str, dashes: str = "") -> str:
    """A polyline."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"{dashed}/>'


def arrow(x1: float, y1: float, x2: float, y2: float, bend: float = 0) -> str:
    """An arrow, bent to the left of its way by so many units."""
    length = ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5 or 1
    middle = (x1 + x2) / 2 + bend * (y2 - y1) / length, (y1 + y2) / 2 - bend * (x2 - x1) / length
    return f'<path d="M{x1:.1f},{y1:.1f} Q{middle[0]:.1f},{middle[1]:.1f} {x2:.1f},{y2:.1f}" class="arrow"/>'


def box(x: float, y: float, width: float, height: float, lines: Sequence[str], color: str = "") -> str:
    """A box with centered lines of text."""
    edge = f' style="stroke:{color};stroke-width:2"' if color else ""
    first = y + height / 2 + 4.5 - 8.5 * (len(lines) - 1)
    words = [
        text(x + width / 2, first + 17 * number, line, "middle" + (" soft" if number else ""))
        for number, line in enumerate(lines)
    ]
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" class="box"{edge}/>' + "".join(words)


def save(name: str, width: int, height: int, title: str, parts: Iterable[str]) -> None:
    """Write docs/figures/NAME.svg. title: what the figure shows, for readers who do not see it."""
    head = '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    head += '<path d="M0,0 L8,4 L0,8 z" fill="context-stroke"/></marker>'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style><defs>{head}</defs>",
        f'<rect width="{width}" height="{height}" rx="8" style="fill:var(--paper)"/>',
        *parts,
        "</svg>\n",
    ]
    FIGURES.mkdir(exist_ok=True)
    (FIGURES / f"{name}.svg").write_text("\n".join(lines), encoding="utf-8")
