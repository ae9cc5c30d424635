"""Import published weights, and export the weights of a finished run. Data are exported by `avssl export`.

avssl exchange import FILE.pth.tar --out RUN [--statistics SHARDS]   a published AVID-CMA checkpoint
avssl exchange statistics RUN SHARDS                                 spectrogram statistics for it
avssl exchange export RUN --out FOLDER                               one folder to pass on
avssl exchange push FOLDER owner/name [--private]                    to a hub
avssl exchange export RUN --to torchvision --modality video --out FILE.safetensors
avssl exchange export RUN --to onnx --modality audio --out FILE.onnx  also torch_export

--plugin FILE with any of them runs a file of your own first, which the run was made with (docs/plugins.md).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from avssl.files.plain_text import PlainParser, begin_command, emit, plain_lines, say_lines
from avssl.plugins import required
from avssl.types import HUB_SCHEME

GRAPHS = ("torch_export", "onnx")


def command(arguments: list[str]) -> int:
    """The program as `avssl exchange`."""
    main(arguments, "avssl exchange")
    return 0


def main(argv: list[str], program: str = "python -m avssl.exchange") -> None:
    """Run one command; an error in the input prints its message and exits with status 1."""
    argv = begin_command("exchange", argv)
    argv, files, is_changed = required.take_options(argv)
    arguments = parse(argv, program)
    try:
        required.use(files, may_differ=is_changed)
        text = arguments.run_command(arguments).rstrip()
        say_lines(text)
        emit("result", lines=text.splitlines())
    except (OSError, ValueError) as error:
        emit("error", message=str(error), status=1)
        sys.exit(plain_lines(f"error: {error}"))  # several lines if tensors do not match


def import_command(arguments: argparse.Namespace) -> str:
    """Import a published checkpoint as a run folder."""
    from avssl.exchange.avid_release import LICENSE_NOTE
    from avssl.exchange.importing import import_published

    banks = {"video": arguments.video_bank, "audio": arguments.audio_bank}
    published = import_published(
        arguments.file,
        arguments.out,
        small=arguments.small,
        statistics=arguments.statistics,
        banks={modality: name for modality, name in banks.items() if name},
        ignore=arguments.ignore,
    )
    lines = [published.report(), LICENSE_NOTE, arguments.out]
    if not arguments.statistics:
        lines.insert(
            2,
            "The file holds no statistics of the spectrograms, so audio cannot be embedded yet: "
            f"avssl exchange statistics {arguments.out} SHARDS",
        )
    return "\n".join(lines)


def statistics_command(arguments: argparse.Namespace) -> str:
    """Add statistics of the spectrograms to a run that has none."""
    from avssl.exchange.statistics import add_statistics

    return str(add_statistics(arguments.run, arguments.source))


def export_command(arguments: argparse.Namespace) -> str:
    """Export a finished run as a folder, or one of its encoders in torchvision's layout or as a graph."""
    # As with the recipes, the hub is not asked for a mistyped folder.
    from avssl.checkpoint import locate

    run = locate(arguments.run) if arguments.run.startswith(HUB_SCHEME) else Path(arguments.run)
    if (run / "index.json").is_file() and not (run / "config.yaml").is_file():
        raise ValueError(f"{run} is no run; shards and embeddings are exported by `avssl export {run} --to ...`")
    if arguments.to == "folder":
        if arguments.modality:
            raise ValueError("--modality is for --to torchvision and the graphs; a folder holds the whole run")
        from avssl.exchange.folder import export_folder

        return str(export_folder(run, arguments.out, with_state=arguments.with_state, license=arguments.license))
    if arguments.with_state or arguments.license:
        raise ValueError("--with-state and --license are for folders; leave out --to")
    if not arguments.modality:
        raise ValueError(f"--to {arguments.to} writes one encoder; choose it with --modality video, audio or image")
    if arguments.to == "torchvision":
        from avssl.exchange.torchvision import export_torchvision

        name, head = export_torchvision(run, arguments.modality, arguments.out)
        return f"{arguments.out}: torchvision's {name} without its head ({', '.join(head)})"
    from avssl.exchange.graphs import export_graph

    differences = export_graph(run, arguments.to, arguments.modality, arguments.out)
    shown = ", ".join(f"{name} {value:.2e}" for name, value in differences.items())
    return f"largest difference to eager, relative to the largest value: {shown}\n{arguments.out}"


def push_command(arguments: argparse.Namespace) -> str:
    """Push an exchange folder to a hub."""
    from avssl.checkpoint.hub import FILES, push
    from avssl.exchange.folder import check_folder

    return push(check_folder(arguments.folder), arguments.name, FILES, private=arguments.private)


def parse(argv: list[str], program: str = "python -m avssl.exchange") -> argparse.Namespace:
    """The arguments of the command line, checked."""
    parser = PlainParser(prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("import", help="import a published AVID-CMA checkpoint as a run")
    command.set_defaults(run_command=import_command)
    command.add_argument("file", help="the published .pth.tar")
    command.add_argument("--out", required=True, help="run folder to write; new or empty")
    command.add_argument("--statistics", default="", help="shard folder to measure, or .npz with mean and std per bin")
    command.add_argument("--small", action="store_true", help="the small networks of the paper's analysis")
    command.add_argument(
        "--video-bank", default="", help="name of the video bank, if the names in the file do not show it"
    )
    command.add_argument("--audio-bank", default="", help="name of the audio bank, likewise")
    command.add_argument(
        "--ignore", nargs="+", default=[], help="patterns of tensors in the file that are not imported"
    )

    command = commands.add_parser("statistics", help="spectrogram statistics for an imported run")
    command.set_defaults(run_command=statistics_command)
    command.add_argument("run", help="run folder")
    command.add_argument("source", help="shard folder to measure, or .npz with mean and std per bin")

    command = commands.add_parser("export", help="export a finished run as a folder, a state dict or a graph")
    command.set_defaults(run_command=export_command)
    command.add_argument("run", help="finished run, exchange folder, or hf://owner/name")
    command.add_argument("--out", required=True, help="folder or file to write")
    command.add_argument("--to", choices=["folder", "torchvision", *GRAPHS], default="folder")
    command.add_argument("--modality", choices=["video", "audio", "image"], help="encoder to export")
    command.add_argument("--with-state", action="store_true", help="folder: banks, queues, teachers and constants too")
    command.add_argument("--license", default="", help="folder: license of the weights, such as apache-2.0")

    command = commands.add_parser("push", help="push an exchange folder to a hub")
    command.set_defaults(run_command=push_command)
    command.add_argument("folder", help="folder that `export` wrote")
    command.add_argument("name", help="owner/name")
    command.add_argument("--private", action="store_true", help="a repository that only its owner sees")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(sys.argv[1:])
