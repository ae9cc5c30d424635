"""The registered encoders as a table: `python -m avssl.models`; docs/encoders.md has it."""

from __future__ import annotations

import argparse
import re
import sys

from avssl.plugins import required

HEADER = ("name", "modality", "dim", "parameters", "options", "source")
MARKERS = ("<!-- encoders: python -m avssl.models -->", "<!-- end of encoders -->")
MODALITIES = ("video", "audio", "image")


def rows() -> list[tuple[str, ...]]:
    """A row for every registered encoder with its default options, in the order of HEADER, by modality and name."""
    import torch  # here, as what follows: --help needs none of it

    from avssl.models.create import create_encoder
    from avssl.models.registry import ENCODERS

    table: list[tuple[str, ...]] = []
    for name in sorted(ENCODERS.names(), key=lambda name: (MODALITIES.index(ENCODERS[name].modality), name)):
        entry = ENCODERS[name]
        with torch.device("meta"):  # its sizes are known without its weights
            encoder = create_encoder(name)
        millions = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
        options = ", ".join(f"`{option}`" for option in entry.options)
        table.append((f"`{name}`", entry.modality, str(encoder.dim), f"{millions:.2f} M", options, entry.source))
    return table


def markdown_table() -> str:
    """The table as docs/encoders.md has it between MARKERS, arXiv numbers as links."""
    lines = [HEADER, ("---",) * len(HEADER), *rows()]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m avssl.models", description="The registered encoders as a table.")
    required.add_options(parser)
    options = parser.parse_args(arguments)
    required.use(options.plugin)
    sys.stdout.write(markdown_table())


if __name__ == "__main__":
    main(sys.argv[1:])
