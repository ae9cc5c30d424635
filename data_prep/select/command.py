"""The command `select`: keeps the samples of a corpus that are worth training on, and says why the others are not."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from avssl.files.location import is_remote
from avssl.files.plain_text import emit, plain, say
from avssl.processes.limits import default_num_workers
from data_prep.select.corpus import Corpus, open_corpus
from data_prep.select.expression import Condition
from data_prep.select.facts_file import FactsFile, expected_columns
from data_prep.select.outcome import LEFT_OUT_NAME, beside
from data_prep.select.rule import DEDUP_ALLOWED, KEEP, Rule, dedup_options
from data_prep.select.run import Selected, select
from data_prep.select.state import State


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `avssl prep select`."""
    parser.add_argument("corpus", help="a manifest of `avssl prep index`, or a finished shard folder")
    parser.add_argument(
        "--out", type=Path, required=True, help="the kept samples, e.g. kept.jsonl; the rest lies beside"
    )
    parser.add_argument(
        "--where", default="", metavar="EXPR", help="a condition on facts: 'loudness_lufs > -50 and motion > .3'"
    )
    parser.add_argument(
        "--dedup", nargs="+", default=[], metavar="LEVEL", help=f"leave out duplicates: {DEDUP_ALLOWED}; each holds"
        " those before it"
    )  # fmt: skip
    parser.add_argument(
        "--keep", choices=KEEP, default=KEEP[0], help="which one of duplicates is kept; of equal ones, the first"
    )
    parser.add_argument("--keep-per-class", type=int, metavar="N", help="at most so many samples of each class")
    parser.add_argument("--by", default="label", metavar="FIELD", help="the label field of the classes")
    parser.add_argument("--max-hours", type=float, metavar="H", help="at most so many hours")
    parser.add_argument("--seed", type=int, default=0, help="of which samples are drawn for both limits")
    parser.add_argument(
        "--facts", type=Path, metavar="FILE", help="the table of `avssl prep facts`, which is computed if it is not"
        " there (default: CORPUS.facts.parquet, beside the corpus)"
    )  # fmt: skip
    parser.add_argument("--embeddings", type=Path, metavar="FOLDER", help="of `avssl embed` of the same samples")
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FOLDER",
        help="write select.html, one page with every fact and cut, to this folder",
    )
    parser.add_argument(
        "--explain", metavar="KEY", help="say why a sample of an earlier selection was kept or left out"
    )
    parser.add_argument("--num-workers", type=int, default=default_num_workers(), help="processes (default: all cores)")


def rule_of(arguments: argparse.Namespace) -> Rule:
    """The rule of the options. ValueError for a value that is not allowed."""
    rule = Rule(
        where=arguments.where,
        **dedup_options(arguments.dedup),
        keep=arguments.keep,
        by=arguments.by,
        keep_per_class=arguments.keep_per_class,
        max_hours=arguments.max_hours,
        seed=arguments.seed,
    )
    if rule.cosines and arguments.embeddings is None:
        raise ValueError(
            f"--dedup {' '.join(arguments.dedup)} compares embeddings; give --embeddings, a folder of `avssl "
            "embed`, or take --dedup near"
        )
    return rule


def run(arguments: argparse.Namespace) -> int:
    """Select, and say what was kept and what was not; or explain one sample of an earlier selection."""
    rule, out = rule_of(arguments), arguments.out
    if out.suffix != ".jsonl":
        raise ValueError(f"--out is {out}; it must end with .jsonl, for it is a list of samples")
    corpus = open_corpus(arguments.corpus)
    if out.resolve() == Path(arguments.corpus).resolve():
        raise ValueError(f"--out is {out}, the corpus itself; give another name")
    path = _facts_path(arguments)
    if rule.where and not path.is_file():  # a mistake is said before hours of decoding
        Condition(rule.where, expected_columns(with_embeddings=arguments.embeddings is not None))
    facts = FactsFile(_computed_facts(arguments, path))
    if arguments.explain is not None:
        return _explain(arguments.explain, out, facts)
    semantic = partial(_leave_out_semantic, facts, arguments.embeddings, rule) if rule.cosines else None
    selected = select(corpus, facts, rule, out, semantic)
    for line in lines(selected, corpus):
        say(line)
    page = None
    if arguments.page is not None:
        from data_prep.select.page import write_page  # here: decoding is for it alone

        page = write_page(arguments.page, out, selected.record, corpus, facts, arguments.num_workers)
        say(f"  page: {plain(page)}")
    names = ("num_listed", "num_kept", "num_left_out", "left_out_by_reason", "kept_seconds")
    numbers = {name: selected.record[name] for name in names}
    emit("result", out=out, left_out=beside(out, LEFT_OUT_NAME), facts=facts.path, page=page, **numbers)
    return 0


def _facts_path(arguments: argparse.Namespace) -> Path:
    """Where the facts lie, or will lie."""
    if arguments.facts is not None:
        return Path(arguments.facts)
    if is_remote(arguments.corpus):
        raise ValueError(f"{arguments.corpus}: is remote; say with --facts where the table of its facts lies")
    corpus = Path(arguments.corpus).absolute()
    return corpus.with_name(f"{corpus.name.removesuffix('.jsonl')}.facts.parquet")


def _computed_facts(arguments: argparse.Namespace, path: Path) -> Path:
    """The file of facts, in which what was missing is there now."""
    if path.is_file() and arguments.embeddings is None:
        return path  # whether it is of this corpus is seen when both are read
    from data_prep.facts.run import make_facts

    made = make_facts(arguments.corpus, path, embeddings=arguments.embeddings, num_workers=arguments.num_workers)
    assert made is not None  # of all shares
    return made.path


def _leave_out_semantic(facts: FactsFile, folder: Path, rule: Rule, state: State) -> dict[str, Any]:
    """Leave out semantic duplicates; by which embeddings."""
    from data_prep.facts.embeddings import describe_folder, pooled_vectors
    from data_prep.select.semantic import leave_out_semantic

    keys = (block["key"].to_pylist() for _, block in facts.blocks(["key"]))
    leave_out_semantic(state, pooled_vectors(folder, keys, state.folder), rule.cosines)
    described = describe_folder(folder)
    return {name: described[name] for name in ("sha256", "weights", "modalities")}


def _explain(key: str, out: Path, facts: FactsFile) -> int:
    from data_prep.select.explain import explain, explanation_lines

    found = explain(key, out, facts)
    for line in explanation_lines(found):
        say(line)
    emit("result", key=key, is_kept=not found.record, **{name: getattr(found, name) for name in (
        "record", "parts", "stands_for", "facts")})  # fmt: skip
    return 0


def lines(selected: Selected, corpus: Corpus) -> Iterator[str]:
    """What was kept and what was not, as lines of text."""
    record: dict[str, Any] = selected.record
    yield f"{plain(selected.out)}: {record['num_kept']:,} of {record['num_listed']:,} samples{_hours(record)}"
    for reason, count in record["left_out_by_reason"].items():
        yield f"  {count:8d} left out: {reason}"
        for part, many in record["left_out_by_condition"].items():
            if many.get(reason):
                yield f"           {plain(part)}: {many[reason]:,}"
    if not record["num_kept"]:
        yield "  nothing is kept: see which condition leaves out most"
    yield f"  which and why: {plain(beside(selected.out, LEFT_OUT_NAME))}"
    if record["num_kept"] and corpus.kind == "shards":
        yield f"  to train on it: data.shards=[{{path: {plain(corpus.name)}, keys: {plain(selected.out)}}}]"


def _hours(record: dict[str, Any]) -> str:
    if not record["listed_seconds"]:
        return ""
    return f", {record['kept_seconds'] / 3600:.2f} of {record['listed_seconds'] / 3600:.2f} h"
