"""The command `facts`: one table of facts about every sample of a corpus, which `select` decides by."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from avssl.files.location import is_remote
from avssl.files.plain_text import emit, plain, say
from avssl.processes.cluster import add_executor_options, submit_array
from avssl.processes.limits import add_limit_options, default_num_workers, limits_of
from data_prep.facts.run import Facts, make_facts
from data_prep.write.job import Share


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `avssl prep facts`."""
    parser.add_argument(
        "corpus", help="a manifest of `avssl prep index` (.jsonl), or a finished shard folder; or a URL"
    )
    parser.add_argument("--out", type=Path, required=True, help="the Parquet file; what is in it already is kept")
    parser.add_argument(
        "--embeddings",
        type=Path,
        metavar="FOLDER",
        help="of `avssl embed` of the same samples: adds how near the nearest other sample is, and how well sound and"
        " picture belong together",
    )
    parser.add_argument("--num-workers", type=int, default=default_num_workers(), help="processes (default: all cores)")
    add_executor_options(parser)
    parser.add_argument(
        "--part", help="i/n, e.g. 3/8: do share i of n, for any scheduler; at the end run the command without --part"
    )
    add_limit_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compute the facts, and say how many samples there are and how many cannot be read."""
    if arguments.executor == "slurm":
        text = _submit(arguments)
        say(text)
        emit("result", facts=arguments.out, lines=[text])
        return 0
    facts = make_facts(
        arguments.corpus,
        arguments.out,
        embeddings=arguments.embeddings,
        num_workers=arguments.num_workers,
        limits=limits_of(arguments),
        share=None if arguments.part is None else Share.parse(arguments.part),
        executor=arguments.executor,
    )
    if facts is None:
        say(f"{plain(arguments.out)}: share {arguments.part} is done; when all shares are, run the same command without"
            " --part")  # fmt: skip
        emit("result", facts=arguments.out, part=arguments.part)
        return 0
    for line in lines(facts):
        say(line)
    emit("result", facts=arguments.out, **facts.metadata)
    return 0


def lines(facts: Facts) -> Iterator[str]:
    """What was computed, as lines of text."""
    yield f"{plain(facts.path)}: facts of {facts.num_samples:,} samples"
    for reason, count in facts.unreadable_by_reason.items():
        yield f"  {count:8d} cannot be read: {reason}"
    embeddings = facts.metadata.get("embeddings")
    if embeddings:
        yield f"  {embeddings['num_embedded']:8d} have embeddings, of weights {plain(embeddings['weights'])[:12]}"


def share_command(arguments: argparse.Namespace, share: str | None) -> list[str]:
    """The command that does one share, "i/n"; None: the command that writes the table."""
    command = [sys.executable, "-m", "data_prep"]
    for host in arguments.redirect_host:
        command += ["--redirect-host", host]
    corpus = arguments.corpus if is_remote(arguments.corpus) else str(Path(arguments.corpus).absolute())
    command += ["facts", corpus, "--out", str(arguments.out.absolute()), "--num-workers", str(arguments.num_workers)]
    command += ["--file-seconds", f"{arguments.file_seconds:g}", "--file-memory-mib", str(arguments.file_memory_mib)]
    if share is not None:
        return [*command, "--part", share]
    return command if arguments.embeddings is None else [*command, "--embeddings", str(arguments.embeddings.absolute())]


def _submit(arguments: argparse.Namespace) -> str:
    """Submit all jobs to Slurm; a message for the user. ValueError if that cannot be."""
    if arguments.part is not None:
        raise ValueError("--executor slurm makes the shares itself: leave out --part")
    return submit_array(
        "avssl-facts",
        lambda share: share_command(arguments, share),
        arguments.slurm_tasks,
        str(arguments.out),
        last="writes the table",
        cpus=arguments.num_workers,
        partition=arguments.slurm_partition,
    )
