"""Media files to shards: index, split, write, verify; the others look at what there is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING

from avssl.files import storage
from avssl.files.disk_errors import one_line
from avssl.files.plain_text import PlainParser, begin_command, emit, interrupted, say, say_lines
from avssl.processes.cluster import add_executor_options
from avssl.processes.limits import add_limit_options, default_num_workers, limits_of
from data_prep.transcode.options import CHOICES, WriteOptions

if TYPE_CHECKING:
    from avssl.shards.format import ShardIndex

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
# Commands that are modules with add_arguments(parser) and run(arguments) -> exit code or None, and their help.
MODULES = {
    "index": ("data_prep.index.command", "list the files of a folder or a list in a manifest"),
    "split": ("data_prep.split.command", "divide a manifest into train, validation and test"),
    "select": ("data_prep.select.command", "keep the samples that are worth training on: by facts, without duplicates"),
    "coverage": (
        "data_prep.inspect.coverage",
        "count how much of a manifest was found, can be decoded and was written, by class",
    ),
    "demo-corpus": ("data_prep.demo.corpus", "make the demo corpus of videos with audio"),
    "stats": (
        "data_prep.inspect.stats.command",
        "describe a shard folder: sizes, classes, loudness, silence, stillness, duplicates",
    ),
    "facts": ("data_prep.facts.command", "measure every sample of a manifest or a shard folder, in one table"),
    "show": ("data_prep.inspect.show", "write one sample of a shard folder as a file that plays, and print its json"),
}


def build_parser(
    program: str = "python -m data_prep",
    kind: type[argparse.ArgumentParser] = PlainParser,
    named: Collection[str] = tuple(MODULES),
) -> argparse.ArgumentParser:
    """The parser of all commands and their options.

    named: only of these modules are the options added; importing all of them takes seconds.
    """
    parser = kind(prog=program, description=__doc__)
    parser.add_argument(
        "--redirect-host", action="append", default=[], metavar="HOST", help="a host that web servers may send on to"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write", help="turn a manifest into a shard folder; continues when run again")
    write.add_argument("manifest", help="a path or URL")
    write.add_argument("--out", required=True, help="the shard folder: a path, or a URL of s3://, gs:// or hf://")
    _add_write_options(write)
    _add_machine_options(write)
    verify = commands.add_parser("verify", help="check a shard folder; exit code 1 if anything is wrong")
    verify.add_argument("shards", help="a path or URL")
    verify.add_argument("--decode", action="store_true", help="decode all media, not only the beginning of each")
    for command in (write, verify):
        command.add_argument(
            "--num-workers", type=int, default=default_num_workers(), help="processes (default: all cores)"
        )
    for name, (module, text) in MODULES.items():
        command = commands.add_parser(name, help=text)
        if name in named:
            import_module(module).add_arguments(command)
    return parser


def _add_write_options(parser: argparse.ArgumentParser) -> None:
    helps = {
        "short_side_px": "frames and images are scaled down to this short side, never up",
        "fps": "frames per second",
        "keyframe_interval": "frames between keyframes",
        "crf": "quality of the encoder, 0 (lossless) to 51",
        "preset": "x264 effort",
        "audio_rate_hz": "samples per second, mono",
        "samples_per_shard": "listed files per shard",
        "seed": "of the global shuffle",
        "on_missing_audio": "skip files without audio, keep their video, or stop with an error",
        "on_missing_video": "skip files without video, keep their audio, or stop with an error",
        "min_duration_seconds": "skip shorter files",
        "image_quality": "JPEG quality, 1 to 100, of images that are encoded anew and were JPEG or lossy WebP",
        "on_silent_audio": "keep samples whose audio is silent, or skip them",
        "silence_dbfs": "audio that never reaches this level is silent: RMS of 0.1 s, in dB of full scale",
        "on_still_video": "keep samples in which nothing moves, or skip them",
        "still_levels": "still video: no square of 1/16 of the short side changes its mean luma by this, of 255",
        "video_codec": "the encoder; libsvtav1: AV1, which is smaller and slower to write; use it with --crf 32",
        "entropy_coder": "of h264; cavlc: read nearly twice as fast; cabac: 5 to 10 %% smaller, with the same frames",
    }
    for option in fields(WriteOptions):
        default = option.default
        parser.add_argument(
            f"--{option.name.replace('_', '-')}",
            type=type(default),
            default=default,
            choices=CHOICES.get(option.name),
            help=f"{helps[option.name]} (default: {default})",
        )


def _add_machine_options(parser: argparse.ArgumentParser) -> None:
    """Options that say where and how the files are read; none of them changes the bytes of the shards."""
    add_executor_options(parser)
    parser.add_argument(
        "--part", help="i/n, e.g. 3/8: do share i of n, for any scheduler; at the end run the command without --part"
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="read files that were skipped once more; what was written is kept"
    )
    add_limit_options(parser)


def write_options(arguments: argparse.Namespace) -> WriteOptions:
    """The options of `write` that decide the bytes. ValueError for a value that is not allowed."""
    return WriteOptions(**{option.name: getattr(arguments, option.name) for option in fields(WriteOptions)})


def make_shards(arguments: argparse.Namespace) -> ShardIndex | None:
    """Write the shards; their index, None if a share was done alone."""
    from data_prep.write.job import Share
    from data_prep.write.run import write_shards

    return write_shards(
        arguments.manifest,
        arguments.out,
        write_options(arguments),
        arguments.num_workers,
        limits=limits_of(arguments),
        share=None if arguments.part is None else Share.parse(arguments.part),
        executor=arguments.executor,
        retry_failed=arguments.retry_failed,
    )


def describe_shards(index: ShardIndex, out: str) -> list[str]:
    """What was written and what was skipped, as lines of text."""
    lines = [
        f"{out}: {len(index.shards)} shards, {index.total_bytes / 1e6:.1f} MB",
        f"  {index.num_listed:8d} listed",
        f"  {index.num_samples:8d} written",
        *(f"  {count:8d} skipped: {reason}" for reason, count in index.skipped_by_reason.items()),
    ]
    return [*lines, f"  which and why: {out.rstrip('/')}/skipped.jsonl"] if index.num_skipped else lines


def run_write(arguments: argparse.Namespace) -> int:
    """Run `write`; its exit code."""
    if arguments.executor == "slurm":
        from data_prep.write.executors import submit

        text = submit(arguments, write_options(arguments))
        say_lines(text)
        emit("result", shards=arguments.out, lines=text.splitlines())
        return EXIT_OK
    index = make_shards(arguments)
    if index is None:
        say(f"{arguments.out}: share {arguments.part} is done as far as it can be now; when all shares are, run the "
              "same command without --part")  # fmt: skip
        emit("result", shards=arguments.out, part=arguments.part)
        return EXIT_OK
    for line in describe_shards(index, arguments.out):
        say(line)
    if index.num_samples == 0:
        return _failed("nothing was written, every file was skipped", EXIT_FAILED)
    facts = {name: getattr(index, name) for name in ("num_listed", "num_samples", "num_skipped", "skipped_by_reason")}
    emit("result", shards=arguments.out, num_shards=len(index.shards), total_bytes=index.total_bytes, **facts)
    return EXIT_OK


def _failed(message: object, status: int) -> int:
    """Print an error; its exit code."""
    say(f"error: {message}", sys.stderr)
    emit("error", message=str(message), status=status)
    return status


def run_verify(arguments: argparse.Namespace) -> int:
    """Run `verify`; its exit code."""
    from data_prep.inspect.verify import verify_folder

    report = verify_folder(arguments.shards, arguments.decode, arguments.num_workers)
    for problem in report.problems:
        say(f"{problem.file}: {problem.message}")
        emit("problem", file=problem.file, message=problem.message)
    names = ("ok", "num_samples", "num_shards", "total_bytes", "num_skipped")
    facts = {name: getattr(report, name) for name in names}
    emit("result", shards=arguments.shards, num_problems=len(report.problems), **facts)
    if not report.ok:
        say(f"{arguments.shards}: {len(report.problems)} problems", sys.stderr)
        return EXIT_FAILED
    say(f"{arguments.shards}: ok, {report.num_samples} samples in {report.num_shards} shards, "
          f"{report.total_bytes / 1e6:.1f} MB, {report.num_skipped} skipped")  # fmt: skip
    return EXIT_OK


def command(arguments: list[str]) -> int:
    """The program as `avssl prep`."""
    return main(arguments, "avssl prep")


def main(argv: Sequence[str] | None = None, program: str = "python -m data_prep") -> int:
    """Run a command; its exit code: 0 for success, even with skipped files; 1 if nothing was written or something is
    wrong; 2 for wrong usage.
    """
    words = sys.argv[1:] if argv is None else argv
    named = next((word for word in words if word in (*MODULES, "write", "verify")), "")
    words = begin_command(f"prep {named}".rstrip(), words)
    arguments = build_parser(program, named=MODULES.keys() & set(words)).parse_args(words)
    if getattr(arguments, "num_workers", 1) < 1:
        return _failed(f"--num-workers is {arguments.num_workers}; it must be at least 1", EXIT_USAGE)
    storage.allow_redirects(arguments.redirect_host)
    try:
        if arguments.command in MODULES:
            return import_module(MODULES[arguments.command][0]).run(arguments) or EXIT_OK
        commands = {"write": run_write, "verify": run_verify}
        return commands[arguments.command](arguments)
    except KeyboardInterrupt:
        return interrupted()
    except (ValueError, FileNotFoundError) as error:
        return _failed(error, EXIT_USAGE)
    except (RuntimeError, OSError) as error:
        return _failed(one_line(error), EXIT_FAILED)


if __name__ == "__main__":
    sys.exit(main())
