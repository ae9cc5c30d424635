"""One self-contained HTML page of a run: data, curves, results, playable neighbors, a 2-D map.

    avssl report runs/avid_cma [runs/avid ...] --shards shards/test

Further run folders are drawn and listed beside it. Uses RUN/evaluation.json and RUN/embeddings/test.parquet if they
exist.
"""

import argparse
import sys
from pathlib import Path

from avssl.errors import one_line_errors
from avssl.files.checked_json import Fields
from avssl.files.plain_text import PlainParser, run_in_utf8, say
from avssl.plugins import required


def main(run: Path, others: list[Path], shards: str) -> Path:
    from avssl import checkpoint
    from avssl.embedding.table import EmbeddingTable
    from avssl.eval.results import standard_results
    from avssl.pages.media import ClipMedia
    from avssl.report.page import write_report
    from avssl.shards.shard_set import ShardSet

    for folder in (run, *others):
        if not (folder / "config.yaml").is_file() and not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"{folder} is not a run folder: it has no config.yaml, which `avssl pretrain` writes"
            )
    shard_set = ShardSet(shards) if shards else None
    numbers = {key: number for number, key in enumerate(shard_set.keys)} if shard_set else {}
    table_path, result = run / "embeddings" / "test.parquet", run / "evaluation.json"
    provenance = run / checkpoint.PROVENANCE_FILE

    def media(key: str) -> ClipMedia:
        if shard_set is None or key not in numbers:
            return ClipMedia()  # embedded from another source: listed without media
        sample = shard_set.read(numbers[key])
        return ClipMedia(sample.video, sample.audio, sample.image)

    return write_report(
        run,
        evaluations=[path for folder in (run, *others) for path in standard_results(folder) if path != result],
        table=EmbeddingTable.read(table_path) if table_path.is_file() else None,
        media=media if shard_set else None,
        other_runs={other.name: other for other in others},
        index=Fields.read(shard_set.folder / "index.json").record if shard_set else None,
        facts=checkpoint.read_provenance(run) if provenance.is_file() else None,
    )


def command(arguments: list[str]) -> int:
    """The program: its exit status."""
    run_in_utf8()
    parser = PlainParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("others", nargs="*", type=Path, help="runs to compare with")
    parser.add_argument("--shards", default="", help="shard folder of the embedded split, for images and audio")
    required.add_options(parser)
    parsed = parser.parse_args(arguments)
    with one_line_errors():
        required.use(parsed.plugin, may_differ=parsed.plugin_changed)
        say(main(parsed.run, parsed.others, parsed.shards))
    return 0


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
