"""The registered losses as a table: `python -m avssl.losses`, and with `--markdown` the README's table."""

from __future__ import annotations

import argparse
import re
import sys

from avssl.plugins import required
from avssl.types import Modality

HEADER = ("name", "family", "runs on", "paper", "state kept")
README_MARKERS = ("<!-- losses: python -m avssl.losses --markdown -->", "<!-- end of losses -->")


def describe_pairs(pairs: tuple[tuple[Modality, ...], ...]) -> str:
    """(("video", "video"), ("video", "audio")) -> "video, video + audio": two views of one modality, or one of each."""
    return ", ".join(dict.fromkeys(" + ".join(dict.fromkeys(pair)) for pair in pairs))


def rows() -> list[tuple[str, ...]]:
    """A row for every registered loss, in the order of HEADER, sorted by family and name."""
    from avssl.losses import registry  # here: it imports PyTorch, which --help does without

    classes = {name: registry.get(name) for name in registry.names()}
    table = [(name, cls.family, describe_pairs(cls.pairs), cls.paper, cls.state) for name, cls in classes.items()]
    return sorted(table, key=lambda row: (row[1], row[0]))


def plain_table() -> str:
    """The table as text, its columns aligned by spaces."""
    table = [HEADER, *rows()]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADER))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def markdown_table() -> str:
    """The table as the README has it between README_MARKERS: names as code, arXiv numbers as links."""
    table = [HEADER, ("---",) * len(HEADER)]
    for name, family, runs_on, paper, state in rows():
        linked = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paper)
        table.append((f"`{name}`", family, runs_on, linked, state))
    return "".join(f"| {' | '.join(row)} |\n" for row in table)


def main(arguments: list[str]) -> None:
    """Print the table, plain or as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m avssl.losses", description="The registered losses as a table.")
    parser.add_argument("--markdown", action="store_true", help="the README's table")
    required.add_options(parser)
    options = parser.parse_args(arguments)
    required.use(options.plugin)
    sys.stdout.write(markdown_table() if options.markdown else plain_table())


if __name__ == "__main__":
    main(sys.argv[1:])
