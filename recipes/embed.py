"""Embeddings of files, folders or shards with a finished run, as Parquet and npz.

    python recipes/embed.py runs/avid_cma VIDEOS_OR_SHARDS --out embeddings/ --window 2 --stride 1
    python recipes/embed.py runs/simclr PICTURES_OR_SHARDS --out embeddings/

One row a window, or a picture: key, index, start_seconds, end_seconds (0 and 0 of a picture), has_audio, has_video,
has_image, the unit embeddings (of video and audio in one space) and the encoders' features, of what the run has
encoders for. The same input gives the same rows for any batch size and worker count.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from avssl.embed import Embedder
from avssl.tables import MODALITIES


def main(arguments: argparse.Namespace) -> int:
    embedder = Embedder.from_run(arguments.run, device=arguments.device, untrained=arguments.untrained)
    table, failures = embedder.embed(
        arguments.sources[0] if len(arguments.sources) == 1 else arguments.sources,
        window_seconds=arguments.window,
        stride_seconds=arguments.stride,
        modalities=arguments.modalities,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        progress=True,
    )
    out = Path(arguments.out)
    paths = [table.write(out / f"embeddings.{suffix}") for suffix in arguments.formats]
    skipped = out / "skipped.jsonl"
    skipped.write_text(
        "".join(
            json.dumps({"key": key, "reason": error.reason, "message": error.message}) + "\n"
            for key, error in failures.items()
        )
    )
    print(f"{len(set(table.keys))} of {len(set(table.keys) | set(failures))} sources embedded, {len(table)} rows")
    for key, error in list(failures.items())[:10]:
        print(f"  skipped {key}: {error}")
    print("\n".join(str(path) for path in [*paths, skipped]))
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("sources", nargs="+", help="media files or pictures, folders of them, or one shard folder")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument(
        "--window", type=float, help="seconds of a window (default: the run's audio clip, or video clip)"
    )
    parser.add_argument("--stride", type=float, help="seconds between windows (default: the window)")
    parser.add_argument("--modalities", nargs="+", choices=MODALITIES, help="default: what the run has")
    parser.add_argument("--formats", nargs="+", choices=["parquet", "npz"], default=["parquet", "npz"])
    parser.add_argument("--batch-size", type=int, default=64, help="clips per forward pass")
    parser.add_argument("--num-workers", type=int, default=2, help="decoding processes; 0 decodes in this one")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--untrained", action="store_true", help="random weights from the run's seed, as a baseline")
    return parser.parse_args(argv)


if __name__ == "__main__":
    try:
        sys.exit(main(parse(sys.argv[1:])))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
