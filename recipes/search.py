"""Find the rows of a folder of embeddings that are closest to a file, a key or text, within and across modalities.

    avssl search embeddings/ QUERY.mp4 --top 10
    avssl search embeddings/ QUERY.mp4 --html results.html  # one file to open: pictures, sounds, clips that play
    avssl search embeddings/ QUERY.wav --modality video --json
    avssl search embeddings/ --key dogs/rex_mp4             # one of the embedded files
    avssl search embeddings/ --text "a dog barks"           # embeddings of a model that reads text
    avssl search dogs.lance QUERY.mp4 --where "label = 'dog' and start_seconds >= 10"

INDEX is a folder that `avssl embed` wrote, or a Lance table that `avssl export INDEX --to lance` made of one; the run
that made it embeds the query, with the same windows. The query is the mean of its windows, or with --each-window every
window. Text is read by the public model that made INDEX, or by the text encoder of a run on captions. A folder is
searched exactly, at constant memory; a Lance table by its index, if it has one, which misses some of the closest rows:
docs/embeddings.md has numbers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avssl.embedding.index import refuse_no_index
from avssl.embedding.table import MODALITIES
from avssl.errors import one_line_errors
from avssl.files.plain_text import PlainParser, begin_command, emit, is_json, say
from avssl.plugins import required

OF_LANCE_TABLES = ("where", "depth", "compare_all")  # options

# What is heavy is imported in the functions, so that --help comes at once.
if TYPE_CHECKING:
    from avssl.embedding.embedder import Embedder
    from avssl.embedding.search import EmbeddingIndex, Query
    from avssl.embedding.table import EmbeddingTable, Hit


def main(arguments: argparse.Namespace) -> int:
    refuse_no_index(arguments.index_folder)
    from avssl.embedding.lance_table import LanceTable, open_index
    from avssl.embedding.search import keys_of_file

    required.use(arguments.plugin, may_differ=arguments.plugin_changed)
    index = open_index(arguments.index_folder)
    only_table = {name: getattr(arguments, name) for name in OF_LANCE_TABLES if getattr(arguments, name)}
    if only_table and not isinstance(index, LanceTable):
        raise ValueError(
            f"--{next(iter(only_table)).replace('_', '-')} is for Lance tables; make one of {index.folder} with `avssl "
            f"export {index.folder} --to lance --out TABLE.lance`"
        )
    query = query_of(index, arguments)
    exclude = set(arguments.exclude)
    if arguments.exclude_self:
        exclude |= {query.key} if query.key else keys_of_file(index, arguments.query)
    options = {"exclude": exclude, "one_per_key": arguments.one_per_key, **only_table}
    results = {name: index.search(name, rows, arguments.top, **options) for name, rows in query.vectors.items()}
    if arguments.html:
        from avssl.embedding_pages.search_page import write_search_page

        say(write_search_page(arguments.html, index, query, results))
    if is_json():
        facts = {"query": query.name, "query_modality": query.modality, "weights": index.weights_hash}
        how = "lance" if isinstance(index, LanceTable) and not arguments.compare_all else "exact"
        emit("result", **facts, page=arguments.html, index=how, answers=answers(query.parts, results))
        return 0
    if arguments.html:
        return 0
    for number, part in enumerate(query.parts):
        for name, hits in results.items():
            if "text" in part:
                say(f"text {part['text']!r} -> {name}")
            else:
                start, end = part["start_seconds"], part["end_seconds"]
                say(f"{query.modality} of {query.name} [{start:.2f} to {end:.2f} s] -> {name}")
            for rank, hit in enumerate(hits[number], 1):
                say(f"{rank:4d}  {hit.score:7.4f}  {hit.start_seconds:9.2f} {hit.end_seconds:9.2f}  {hit.key}")
    return 0


def query_of(index: EmbeddingIndex, arguments: argparse.Namespace) -> Query:
    """The query of the command line: a file, a key of the folder, or texts."""
    from avssl.embedding.search import load_embedder_of

    if arguments.key:
        return key_query(index, arguments)
    embedder = load_embedder_of(index, arguments.run, arguments.device)
    return (text_query if arguments.text else media_query)(index, embedder, arguments)


def media_query(index: EmbeddingIndex, embedder: Embedder, arguments: argparse.Namespace) -> Query:
    """The query of a file: its windows, or their mean."""
    from avssl.embedding.search import Query

    settings = index.content.settings
    grid = {name: settings[name] for name in ("window_seconds", "stride_seconds") if name in settings}
    modalities = [arguments.query_modality] if arguments.query_modality else settings["modalities"]
    table, failures = embedder.embed(arguments.query, modalities=modalities, **grid)
    for error in failures.values():
        raise error
    modality = table.modalities()[0]
    windows = table.select(table.has(modality))
    query = windows if arguments.each_window else windows.pool_by_key()
    targets = targets_of(index, modality, arguments, embedder)
    spans = zip(query.start_seconds, query.end_seconds, strict=True)
    parts = [{"start_seconds": float(start), "end_seconds": float(end)} for start, end in spans]
    name = str(arguments.query)
    return Query(name, modality, dict.fromkeys(targets, directed(query, modality, name)), parts, path=name)


def key_query(index: EmbeddingIndex, arguments: argparse.Namespace) -> Query:
    """The query of rows that are in the folder: those of a key, or their mean. The run is needed across modalities."""
    import numpy as np

    from avssl.embedding.search import Query

    table, numbers = index.table_of(arguments.key)
    has = [arguments.query_modality] if arguments.query_modality else table.modalities()
    modality = has[0]
    if modality not in table.modalities():
        raise ValueError(f"the rows of {arguments.key} have no {modality}; they have {', '.join(table.modalities())}")
    rows = np.flatnonzero(table.has(modality))
    windows = table.select(rows)
    query = windows if arguments.each_window else windows.pool_by_key()
    targets = targets_of(index, modality, arguments)
    parts = [
        {"start_seconds": float(start), "end_seconds": float(end), "row": int(numbers[row])}
        for start, end, row in zip(query.start_seconds, query.end_seconds, rows, strict=False)
    ]
    vectors = directed(query, modality, arguments.key)
    return Query(arguments.key, modality, dict.fromkeys(targets, vectors), parts, key=arguments.key)


def directed(query: EmbeddingTable, modality: str, name: str) -> Any:
    """The embeddings of a query; ValueError if one of them has no direction."""
    import numpy as np

    vectors = query.embedding(modality)
    assert vectors is not None  # the modality is one that the table has
    if not np.abs(vectors).sum(axis=1).all():
        raise ValueError(f"{name}: the mean of its windows is 0; search with --each-window")
    return vectors


def targets_of(
    index: EmbeddingIndex, modality: str, arguments: argparse.Namespace, embedder: Embedder | None = None
) -> list[str]:
    """The modalities to search: those that were asked for, or all in one space with the query's."""
    from avssl.embedding.search import in_one_space, load_embedder_of

    wanted = arguments.modality or index.modalities
    for name in wanted:
        index.check(name)
    if list(wanted) == [modality]:
        return [modality]
    embedder = embedder or load_embedder_of(index, arguments.run, arguments.device)
    targets = [name for name in wanted if in_one_space(embedder, modality, name)]
    if arguments.modality and targets != list(wanted):
        other = next(name for name in wanted if name not in targets)
        raise ValueError(
            f"{modality} and {other} embeddings of this run lie in different spaces and cannot be compared"
        )
    return targets


def text_query(index: EmbeddingIndex, embedder: Embedder, arguments: argparse.Namespace) -> Query:
    """The query of one or several texts, for every modality of the folder that the model compares text with."""
    from avssl.embedding.search import Query

    allowed = embedder.text_modalities()
    if not allowed:
        embedder.embed_text(arguments.text, "")  # says why not
    targets = arguments.modality or [name for name in index.modalities if name in allowed]
    for name in targets:
        index.check(name)
    if not targets:
        raise ValueError(
            f"{index.folder} has {' and '.join(index.modalities) or 'no rows'}, and its model compares text with "
            f"{' and '.join(allowed)}"
        )
    vectors = {name: embedder.embed_text(arguments.text, name) for name in targets}
    return Query(" | ".join(arguments.text), "text", vectors, [{"text": text} for text in arguments.text])


def answers(parts: list[dict[str, Any]], results: Mapping[str, list[list[Hit]]]) -> list[dict[str, Any]]:
    """For each part of the query (its seconds, or its text) the hits of every modality, as plain values."""
    return [
        {**part, "hits": {name: [asdict(hit) for hit in hits[number]] for name, hits in results.items()}}
        for number, part in enumerate(parts)
    ]


def parse(argv: list[str]) -> argparse.Namespace:
    parser = PlainParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "index_folder", metavar="INDEX", type=Path, help="folder that `avssl embed` wrote, or a Lance table"
    )
    parser.add_argument("query", metavar="QUERY", type=Path, nargs="?", help="a video, an audio file or an image")
    parser.add_argument("--text", nargs="+", help="search for texts instead; INDEX must be of a model that reads text")
    parser.add_argument("--key", help="search for the rows of this key of INDEX instead of a file")
    parser.add_argument("--run", default="", help="the run that made INDEX (default: the folder where it lay then)")
    parser.add_argument(
        "--query-modality", choices=MODALITIES, help="modality of the query (default: its video, otherwise its audio)"
    )
    parser.add_argument(
        "--modality", nargs="+", choices=MODALITIES, help="modalities to find (default: all in the same space)"
    )
    parser.add_argument("--top", type=int, default=10, help="rows per modality (default: %(default)s)")
    parser.add_argument(
        "--each-window", action="store_true", help="search for each window of the query instead of their mean"
    )
    parser.add_argument("--one-per-key", action="store_true", help="only the best row of each file")
    parser.add_argument("--exclude", nargs="+", default=[], metavar="KEY", help="keys whose rows are left out")
    parser.add_argument("--exclude-self", action="store_true", help="leave out the query's own rows")
    parser.add_argument(
        "--where", default="", metavar="CONDITION", help="only rows of a Lance table for which this SQL is true"
    )
    parser.add_argument(
        "--depth", type=int, default=0, help="candidates that the index of a Lance table gives (default: 256)"
    )
    parser.add_argument(
        "--compare-all", action="store_true", help="compare all rows of a Lance table, without its index"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page with pictures and clips that play, one offline file"
    )
    required.add_options(parser)
    arguments = parser.parse_args(argv)
    given = [name for name, value in (("QUERY", arguments.query), ("--text", arguments.text), ("--key", arguments.key))
             if value is not None]  # fmt: skip
    if len(given) != 1:
        parser.error(f"give one of QUERY (a file), --key and --text; given: {', '.join(given) or 'none'}")
    of_files = {"--query-modality": arguments.query_modality, "--each-window": arguments.each_window,
                "--exclude-self": arguments.exclude_self}  # fmt: skip
    if arguments.text and (unfit := [name for name, value in of_files.items() if value]):
        parser.error(f"{unfit[0]} is for files and keys; leave it out with --text")
    if arguments.top < 1:
        parser.error(f"--top is {arguments.top}; it must be at least 1")
    return arguments


def command(arguments: list[str]) -> int:
    """The program: its exit status."""
    arguments = begin_command("search", arguments)
    with one_line_errors():
        return main(parse(arguments))


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
