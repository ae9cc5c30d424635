"""One self-contained HTML page of a run: data, curves, results, playable neighbors, a 2-D map; or of embeddings.

    avssl report runs/avid_cma [runs/avid ...] --shards shards/test
    avssl report runs/                  # all runs in a folder: curves, results, and how their settings differ
    avssl report runs/avid --watch      # while it trains: the page is written again, and reloads itself
    avssl report embeddings/            # that `avssl embed` wrote, or a Lance table of them: coverage, map, neighbors

Further run folders are drawn and listed beside it. Uses RUN/evaluation.json and RUN/embeddings/test.parquet if they
exist.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avssl.errors import one_line_errors
from avssl.files.checked_json import Fields
from avssl.files.plain_text import PlainParser, begin_command, emit, say
from avssl.plugins import required

if TYPE_CHECKING:
    from avssl.pages.markup import Html
    from avssl.pages.media import ClipMedia
    from avssl.report.positives import Banks
    from avssl.shards.shard_set import ShardSet


def main(
    run: Path, others: list[Path], shards: str = "", train_shards: str = "", watch_seconds: float | None = None
) -> Path:
    for folder in (run, *others):
        if not folder.is_dir():
            raise FileNotFoundError(not_a_run(folder))
    # What is heavy is imported here, so that --help and the error above come at once.
    from avssl.embedding.lance_table import is_index, open_index
    from avssl.embedding_pages.folder_page import write_folder_page
    from avssl.pages.markup import Html
    from avssl.report.comparison import is_run, run_folders, run_names
    from avssl.report.page import write_comparison
    from avssl.report.watch import watch
    from avssl.train.run_folder import is_at_work

    if is_index(run):
        if others or shards or train_shards or watch_seconds is not None:
            raise ValueError(f"{run} is a folder of embeddings: its page takes no further runs and no options")
        return write_folder_page(open_index(run))
    for folder in others:
        if not is_run(folder):
            raise FileNotFoundError(not_a_run(folder))
    if is_run(run):
        runs = [run, *others]
    else:
        runs = [*(run_folders(run) if run.is_dir() else []), *others]
        if not runs:
            raise FileNotFoundError(not_a_run(run))

    def write(banner: Html) -> Path:
        if runs[0] == run:
            return write_run(run, others, shards, train_shards, banner)
        return write_comparison(run, run_names(runs), banner=banner)

    if watch_seconds is None:
        return write(Html(""))
    if not any(map(is_at_work, runs)):
        say(f"no run is at work in {', '.join(map(str, runs))}: the page is written once", sys.stderr)
    return watch(runs, write, watch_seconds, told=lambda line: say(line, sys.stderr), at_work=is_at_work)


def not_a_run(folder: Path) -> str:
    return (
        f"{folder} is not a run folder and holds none: it has no config.yaml, which `avssl pretrain` writes "
        "(avssl report RUN, or avssl report FOLDER_OF_RUNS); nor is it one of embeddings: it has no index.json, which "
        "`avssl embed` writes last"
    )


def write_run(run: Path, others: list[Path], shards: str, train_shards: str, banner: Html) -> Path:
    from avssl import checkpoint
    from avssl.embedding.table import EmbeddingTable
    from avssl.eval.results import standard_results
    from avssl.report.comparison import run_names
    from avssl.report.page import write_report
    from avssl.shards.shard_set import ShardSet

    shard_set = ShardSet(shards) if shards else None
    table_path, result = run / "embeddings" / "test.parquet", run / "evaluation.json"
    provenance = run / checkpoint.PROVENANCE_FILE

    trained_on = training_shards(run, train_shards)
    return write_report(
        run,
        evaluations=[path for folder in (run, *others) for path in standard_results(folder) if path != result],
        table=EmbeddingTable.read(table_path) if table_path.is_file() else None,
        media=media_of(shard_set) if shard_set else None,
        keys=shard_set.keys if shard_set else (),
        other_runs=run_names(others),
        index=Fields.read(shard_set.folder / "index.json").record if shard_set else None,
        facts=checkpoint.read_provenance(run) if provenance.is_file() else None,
        skipped=skipped_of(shard_set) if shard_set else (),
        banks=banks_of(run, trained_on) if trained_on else None,
        train_media=media_of(trained_on) if trained_on else None,
        banner=banner,
    )


def media_of(shard_set: ShardSet) -> Callable[[str], ClipMedia]:
    """key -> the files of a sample; nothing for a key of another source, which is listed without media."""
    from avssl.pages.media import ClipMedia

    numbers = {key: number for number, key in enumerate(shard_set.keys)}

    def media(key: str) -> ClipMedia:
        if key not in numbers:
            return ClipMedia()
        sample = shard_set.read(numbers[key])
        return ClipMedia(sample.video, sample.audio, sample.image)

    return media


def skipped_of(shard_set: ShardSet) -> list[dict[str, Any]]:
    """The records of skipped.jsonl; none for shards of others, which have no such file."""
    path = Path(shard_set.folder) / "skipped.jsonl"
    if not path.is_file():
        return []
    return [Fields.parse(line, str(path)).record for line in path.read_text(encoding="utf-8").splitlines()]


def training_shards(run: Path, named: str) -> ShardSet | None:
    """The shards whose samples the rows of the banks of a run are; None for a run without banks, or if they are not at
    the place where they were. ValueError if others are named.
    """
    from avssl import checkpoint
    from avssl.eval.tasks.standard import BANKS
    from avssl.shards.shard_set import ShardSet

    if not (run / checkpoint.WEIGHTS_FILE).is_file() or not (run / checkpoint.PROVENANCE_FILE).is_file():
        return None
    data = checkpoint.read_provenance(run)["data"]
    place = named or data.get("shards")
    if not isinstance(place, str) or (not named and not (Path(place) / "index.json").is_file()):
        return None
    if not all(name in checkpoint.read_weights(run) for name in BANKS):
        return None
    shards = ShardSet(place)
    if shards.fingerprint == data["fingerprint"]:
        return shards
    if named:
        raise ValueError(f"--train-shards {named}: {run} was trained on other shards ({data.get('shards')})")
    return None


def banks_of(run: Path, shards: ShardSet) -> Banks:
    """The memory banks of a run, with the keys and labels of the samples that it trained on."""
    from functools import cache

    from avssl import checkpoint, config
    from avssl.eval.tasks.standard import BANKS
    from avssl.report.positives import Banks

    weights = checkpoint.read_weights(run)
    num_positives = getattr(config.load_run(run).loss, "num_positives", 32)
    labels = cache(lambda number: shards.read(number).info.labels)
    video, audio = (weights[name] for name in BANKS)
    return Banks(video, audio, lambda number: shards.keys[number], labels, num_positives)


def positive_seconds(text: str) -> float:
    if not float(text) >= 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a number of seconds of at least 1")
    return float(text)


def command(arguments: list[str]) -> int:
    """The program: its exit status."""
    arguments = begin_command("report", arguments)
    parser = PlainParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run",
        type=Path,
        help="folder of a run, folder of run folders, folder that avssl embed wrote, or a Lance table of one",
    )
    parser.add_argument("others", nargs="*", type=Path, help="runs to compare with")
    parser.add_argument("--shards", default="", help="shard folder of the embedded split, for images and audio")
    parser.add_argument(
        "--train-shards",
        default="",
        help="shard folder that the run trained on, for its positive sets; default: where it was",
    )
    parser.add_argument(
        "--watch", nargs="?", type=positive_seconds, const=30.0, metavar="SECONDS",
        help="while a run trains, write the page again, at most every SECONDS (default 30); ends with the run",
    )  # fmt: skip
    required.add_options(parser)
    parsed = parser.parse_args(arguments)
    with one_line_errors():
        required.use(parsed.plugin, may_differ=parsed.plugin_changed)
        page = main(parsed.run, parsed.others, parsed.shards, parsed.train_shards, parsed.watch)
        say(page)
        emit("result", page=page)
    return 0


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
