"""Write shards or embeddings in the form that another program reads.

    avssl export shards/ --to hf --out dataset/                            # datasets.load_dataset("dataset/")
    avssl export train=shards/train test=shards/test --to hf --out dataset/
    avssl export embeddings/ --to lance --out dogs.lance                   # avssl search dogs.lance QUERY
    avssl export embeddings/ --to csv --out rows.csv
    avssl export embeddings/ --to numpy --out arrays/
    avssl export embeddings/ --to fiftyone --out clips                     # fiftyone app launch clips
    avssl export embeddings/ --to lightly-studio --out clips.db            # lightly-studio gui --db-file clips.db

Parquet needs no export: `avssl embed` writes the rows as embeddings*.parquet. Models are exported, imported and pushed
by `avssl exchange`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from avssl.errors import one_line_errors
from avssl.files.plain_text import PlainParser, begin_command, brief, emit, plain, say

VECTOR_KINDS = ("embedding", "feature")


@dataclass(frozen=True)
class Target:
    """A form that other programs read.

    source: "shards" or "embeddings". module: has `export(arguments)`, which writes `arguments.out` and returns the
    fields of the result; "summary" among them is the line for people. text: of --help. options: those of OPTIONS that
    it takes. writes_path: whether --out is a path, and no name in a database.
    """

    source: str
    module: str
    text: str
    options: tuple[str, ...] = ()
    writes_path: bool = True


_HERE = "avssl.exchange.targets"
TARGETS = {
    "hf": Target("shards", f"{_HERE}.hugging_face", "a Hugging Face data set", ("license", "push", "private")),
    "lance": Target("embeddings", f"{_HERE}.lance_table", "a table with an index, for `avssl search`", ("moved",)),
    "csv": Target("embeddings", f"{_HERE}.csv_file", "one table of text", ("vectors", "moved")),
    "numpy": Target("embeddings", f"{_HERE}.numpy_files", "a folder of .npy arrays", ("vectors", "moved")),
    "fiftyone": Target(
        "embeddings",
        f"{_HERE}.fiftyone_dataset",
        "a data set of FiftyOne, called --out",
        ("vectors", "moved", "media"),
        writes_path=False,
    ),
    "lightly-studio": Target(
        "embeddings", f"{_HERE}.lightly_database", "a database file of LightlyStudio", ("vectors", "moved", "media")
    ),
}
# Options that only some targets take: what argparse is told of each.
OPTIONS: dict[str, dict[str, Any]] = {
    "media": {
        "type": Path,
        "metavar": "FOLDER",
        "help": "of embeddings of shards: where to write each sample as a file that plays",
    },
    "license": {"help": "license of the data, for the card, such as cc-by-4.0"},
    "push": {"metavar": "ORG/NAME", "help": "then upload it to this repository of the hub, made if it is not there"},
    "private": {"action": "store_true", "help": "make that repository one that only its owners see"},
    "vectors": {"nargs": "+", "choices": VECTOR_KINDS, "help": "which vectors of each modality (default: embedding)"},
    "moved": {
        "action": "append",
        "metavar": "OLD=NEW",
        "help": "media whose path began with OLD begin with NEW now; may be given again",
    },
}


def command(arguments: list[str]) -> int:
    """The program `avssl export`: its exit status."""
    arguments = begin_command("export", arguments)
    with one_line_errors():
        parsed = parse(arguments)
        target = TARGETS[parsed.to]
        _check_sources(parsed, target)
        facts = import_module(target.module).export(parsed)
        say(facts.pop("summary"))
        emit("result", to=parsed.to, out=str(parsed.out), **facts)
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments of the command line, checked."""
    width = max(map(len, TARGETS))
    lines = [f"  {name:<{width}}  {target.source}: {target.text}" for name, target in TARGETS.items()]
    epilog = "\n".join(["targets:", *lines])
    parser = PlainParser(
        prog="avssl export",
        description=__doc__,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="a shard folder or a folder that `avssl embed` wrote"
    )
    parser.add_argument("--to", required=True, choices=TARGETS, help="what to write")
    parser.add_argument("--out", required=True, type=Path, help="file or folder to write, or the name of the data set")
    parser.add_argument("--overwrite", action="store_true", help="write over what is at --out")
    for name, settings in OPTIONS.items():
        takers = ", ".join(target for target, spec in TARGETS.items() if name in spec.options)
        parser.add_argument(f"--{name.replace('_', '-')}", **{**settings, "help": f"{takers}: {settings['help']}"})
    parsed = parser.parse_args(argv)
    taken = TARGETS[parsed.to].options
    for name in OPTIONS:
        if getattr(parsed, name) and name not in taken:
            options = ", ".join(f"--{option.replace('_', '-')}" for option in taken) or "none of its own"
            parser.error(f"--to {parsed.to} has no option --{name.replace('_', '-')}; it has {options}")
    pairs = [text.partition("=") for text in parsed.moved or []]
    if wrong := next((pair for pair in pairs if not (pair[0] and pair[1] and pair[2])), None):
        parser.error(f"--moved is {brief(''.join(wrong))}; write OLD=NEW")
    parsed.moved = [(before, after) for before, _, after in pairs]
    return parsed


def _check_sources(parsed: argparse.Namespace, target: Target) -> None:
    """ValueError if a source is not of the kind that the target takes, or if --out is, holds or lies in a source."""
    if target.source == "embeddings" and len(parsed.sources) > 1:
        raise ValueError(f"--to {parsed.to} takes one folder of embeddings; {len(parsed.sources)} sources are given")
    for source in parsed.sources:
        folder = Path(source.partition("=")[2] or source)
        kind = kind_of(folder)
        if kind == "run":
            raise ValueError(
                f"{plain(folder)} is a run: its weights are exported by `avssl exchange export RUN --out ...`"
            )
        if kind and kind != target.source:
            others = ", ".join(name for name, other in TARGETS.items() if other.source == kind)
            raise ValueError(
                f"{plain(folder)} holds {kind}, and --to {parsed.to} is for {target.source}; {kind} go to {others}"
            )
        if target.writes_path and folder.exists():
            out, there = parsed.out.resolve(), folder.resolve()
            relations = {"is": out == there, "holds": out in there.parents, "lies in": there in out.parents}
            if relation := next((name for name, holds in relations.items() if holds), ""):
                raise ValueError(
                    f"--out {plain(parsed.out)} {relation} the source {plain(folder)}; choose another --out"
                )


def kind_of(folder: Path) -> str:
    """ "shards", "embeddings" or "run" for a local folder of these; "" for all else."""
    from avssl.embedding.index import KIND
    from avssl.files.checked_json import Fields
    from avssl.shards.format import FORMAT_NAME, INDEX_NAME

    if (folder / "config.yaml").is_file() or (folder / "provenance.json").is_file():
        return "run"
    if not (folder / INDEX_NAME).is_file():
        return ""
    record = Fields.read(folder / INDEX_NAME).record
    return "shards" if record.get("format") == FORMAT_NAME else "embeddings" if record.get("kind") == KIND else ""
