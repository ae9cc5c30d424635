"""Embeddings of files, folders, manifests or shards with a run, as a folder of Parquet files.

    avssl embed runs/avid_cma VIDEOS_OR_SHARDS --out embeddings/ --window 2 --stride 1
    avssl embed runs/simclr IMAGES_OR_SHARDS --out embeddings/
    avssl embed runs/avid_cma corpus.jsonl --out embeddings/     # a manifest: its keys, labels and seconds
    avssl embed runs/avid_cma VIDEOS --out embeddings/ --checkpoint latest   # of a run that goes on or was stopped
    torchrun --nproc_per_node 8 -m avssl.recipes.embed runs/avid_cma VIDEOS --out embeddings/   # or --part 0/8 ... 7/8
    avssl embed runs/avid_cma SHARDS --out embeddings/ --executor slurm --slurm-tasks 16 --gpus-per-task 1   # or ray

One row per window, or per image: key, index, start_seconds, end_seconds (both 0 for an image), has_audio, has_video,
has_image, and for each modality of the run the unit embedding (of video and audio in one space) and the encoder's
feature. The same input gives the same rows for any batch size, number of workers, processes and machines.

If it is stopped, the same command goes on; what is done is not done again. docs/embeddings.md has the details.
"""

import argparse
import os
import sys
from pathlib import Path

from avssl.config import load_run
from avssl.embedding.index import ROWS_PER_FILE, SKIPPED_NAME, SOURCES_PER_BLOCK, FolderIndex, Share
from avssl.embedding.table import MODALITIES
from avssl.errors import one_line_errors
from avssl.files.plain_text import PlainParser, begin_command, emit, say, say_lines
from avssl.plugins import required
from avssl.processes.cluster import add_executor_options, submit_array
from avssl.processes.limits import Limits
from avssl.processes.slurm import take_ranks_of_slurm
from avssl.types import HUB_SCHEME, PUBLIC_PREFIXES

PUBLIC_FOLDER = "public_model"  # in OUT: the configuration of a public model


def main(arguments: argparse.Namespace) -> int:
    # pyarrow's own allocator keeps what it once held, 40 MiB of it for a group of rows; the system's takes no longer.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    share, limits = Share.parse(arguments.part), Limits(arguments.file_seconds, arguments.file_memory_mib << 20)
    if arguments.overwrite and share.count > 1:
        raise ValueError(
            "--overwrite is for one process, because several would remove each other's files; remove --out by hand"
        )
    refuse_wrong_executor(arguments, share.count)
    if not arguments.run.startswith((*PUBLIC_PREFIXES, HUB_SCHEME)):
        load_run(arguments.run)
    # Imported here, so that --help and the errors above come at once.
    from avssl.embedding.embedder import Embedder
    from avssl.embedding.folder import FolderJob, RayTasks
    from avssl.embedding.public import names_public_model, write_public_run

    run, out = arguments.run, Path(arguments.out)
    loading = {"untrained": arguments.untrained, "changes": arguments.set, "checkpoint_name": arguments.checkpoint}
    device = arguments.device or default_device()
    if arguments.executor != "local":
        device = "cpu"  # here nothing is embedded
    embedder = Embedder.from_run(run, device=device, **loading)
    job = FolderJob.begin(
        embedder,
        arguments.sources,
        arguments.out,
        window_seconds=arguments.window,
        stride_seconds=arguments.stride,
        modalities=arguments.modalities,
        sources_per_block=arguments.sources_per_block,
        rows_per_file=arguments.rows_per_file,
        overwrite=arguments.overwrite,
    )
    if names_public_model(run):
        run = write_public_run(
            embedder.config, out / PUBLIC_FOLDER, replace=True
        )  # for searches, with what --set changed
    effort = {"batch_size": arguments.batch_size, "num_workers": arguments.num_workers, "limits": limits}
    elsewhere = None
    if arguments.executor == "slurm" and job.sources is not None:
        say_lines(submit(arguments, job.blocks.count))
        return 0
    if arguments.executor == "ray":
        elsewhere = RayTasks(
            run=arguments.run,
            loading={**loading, "device": device_of_tasks(arguments)},
            plugins=arguments.plugin,
            may_differ=arguments.plugin_changed,
            gpus=arguments.gpus_per_task,
            **effort,
        )
    index = job.run(embedder, share=share, run_folder=run, progress=True, elsewhere=elsewhere, **effort)
    if index is None:
        say(f"share {share.number} of {share.count} is done; the share that ends last finishes {arguments.out}")
        emit("result", folder=arguments.out, part=arguments.part)
        return 0
    for path in (*index.paths(out), out / SKIPPED_NAME):
        say(path)
    say_lines(summary(index))
    names = ("num_listed", "num_embedded", "num_rows", "rows_with", "num_skipped", "skipped_by_reason")
    emit("result", folder=arguments.out, **{name: getattr(index, name) for name in names})
    if not index.num_rows:
        raise ValueError(f"nothing could be embedded: {out / SKIPPED_NAME} says why")
    return 0


def summary(index: FolderIndex) -> str:
    """The last lines of the output: how many sources were embedded, and how many skipped for which reason."""
    rows_with = ", ".join(f"{count} with {name}" for name, count in index.rows_with.items())
    reasons = ", ".join(f"{count} {reason}" for reason, count in index.skipped_by_reason.items())
    rows = f"{index.num_embedded} of {index.num_listed} sources embedded, {index.num_rows} rows ({rows_with})"
    counts = f"listed {index.num_listed} = embedded {index.num_embedded} + skipped {index.num_skipped}"
    return f"{rows}\n{counts}" + (f" ({reasons})" if reasons else "")


NOT_OF_A_SHARE = ("run", "sources", "out", "device", "part", "overwrite", "executor", "slurm_tasks", "slurm_partition",
                  "gpus_per_task")  # fmt: skip


def refuse_wrong_executor(arguments: argparse.Namespace, num_shares: int) -> None:
    """ValueError for options that do not go with --executor."""
    if arguments.executor == "local":
        if arguments.gpus_per_task:
            raise ValueError("--gpus-per-task is for --executor ray and slurm; here the GPU is chosen by --device")
        return
    if num_shares > 1:
        raise ValueError(f"--executor {arguments.executor} makes the shares itself: leave out --part and torchrun")
    if arguments.gpus_per_task < 0 or (arguments.executor == "slurm" and arguments.gpus_per_task % 1):
        raise ValueError(
            f"--gpus-per-task is {arguments.gpus_per_task:g}; it must be a whole number, or for Ray also a part of one"
        )


def device_of_tasks(arguments: argparse.Namespace) -> str:
    """The device of a task of Ray or Slurm: the GPU that it asks for, otherwise the CPU."""
    return arguments.device or ("cuda" if arguments.gpus_per_task else "cpu")


def share_command(arguments: argparse.Namespace, share: str | None) -> list[str]:
    """The command that embeds one share, "i/n"; None: the command that embeds what is still missing and finishes."""
    here = [str(Path(name).absolute()) if Path(name).exists() else name for name in (arguments.run, *arguments.sources)]
    out, given = str(Path(arguments.out).absolute()), vars(arguments)
    words = [sys.executable, "-m", "avssl", "embed", *here, "--out", out, "--device", device_of_tasks(arguments)]
    defaults = vars(parse([arguments.run, "source", "--out", out]))
    for name in (name for name in given if name not in NOT_OF_A_SHARE and given[name] != defaults[name]):
        option, value = f"--{name.replace('_', '-')}", given[name]
        if name == "plugin":
            words += [word for file in value for word in (option, str(Path(file).absolute()))]
        else:
            values = [] if value is True else value if isinstance(value, list) else [value]
            words += [option, *map(str, values)]
    return words if share is None else [*words, "--part", share]


def submit(arguments: argparse.Namespace, num_blocks: int) -> str:
    """Submit the shares to Slurm, at most one for each block; a message for the user."""
    if num_blocks < arguments.slurm_tasks:
        say(
            f"{num_blocks} blocks of --sources-per-block {arguments.sources_per_block} for --slurm-tasks "
            f"{arguments.slurm_tasks}: smaller blocks would use more tasks"
        )
    return submit_array(
        "avssl-embed",
        lambda share: share_command(arguments, share),
        min(arguments.slurm_tasks, num_blocks),
        arguments.out,
        last="embeds what is missing and finishes",
        cpus=max(1, arguments.num_workers),
        gpus=int(arguments.gpus_per_task),
        partition=arguments.slurm_partition,
    )


def default_device() -> str:
    """The GPU of this process if there is one, otherwise the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = PlainParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a finished run, or a public model: timm/NAME, hf/ORG/NAME, hf/FOLDER")
    parser.add_argument(
        "sources",
        nargs="+",
        help="media files or images, folders of them; or one manifest of avssl prep index; or one shard folder",
    )
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument(
        "--window", type=float, help="seconds of a window (default: the run's audio clip, or video clip)"
    )
    parser.add_argument("--stride", type=float, help="seconds between windows (default: the window)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="of a public model, such as views.video.fps=2"
    )
    parser.add_argument("--modalities", nargs="+", choices=MODALITIES, help="default: what the run has")
    parser.add_argument("--batch-size", type=int, default=64, help="clips per forward pass")
    parser.add_argument(
        "--num-workers",
        type=int,
        default=2,
        help="decoding processes; 0 decodes in this process, which a broken file may crash",
    )
    parser.add_argument(
        "--file-seconds",
        type=float,
        default=600.0,
        help="seconds after which a file that gives no new window is given up",
    )
    parser.add_argument(
        "--file-memory-mib", type=int, default=4096, help="memory that decoding a file may take (Linux)"
    )
    parser.add_argument("--device", default="", help="default: a GPU if there is one, otherwise cpu")
    parser.add_argument("--part", default="0/1", help="i/n: embed only share i of n, 0 <= i < n")
    add_executor_options(parser)
    parser.add_argument(
        "--gpus-per-task", type=float, default=0.0, help="GPUs that each task of Ray or Slurm asks for (default: 0)"
    )
    parser.add_argument(
        "--sources-per-block",
        type=int,
        default=SOURCES_PER_BLOCK,
        help="sources that may have to be embedded again after a kill",
    )
    parser.add_argument(
        "--rows-per-file", type=int, default=ROWS_PER_FILE, help="largest number of rows of a Parquet file"
    )
    parser.add_argument("--overwrite", action="store_true", help="first remove the embeddings in --out")
    parser.add_argument("--checkpoint", default="", metavar="latest|STEP", help="embed with a checkpoint of the run")
    parser.add_argument("--untrained", action="store_true", help="random weights from the run's seed, as a baseline")
    required.add_options(parser)
    return parser.parse_args(argv)


def command(arguments: list[str]) -> int:
    """The program: its exit status."""
    arguments = begin_command("embed", arguments)
    take_ranks_of_slurm()
    with one_line_errors():
        parsed = parse(arguments)
        required.use(parsed.plugin, may_differ=parsed.plugin_changed)
        return main(parsed)


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
