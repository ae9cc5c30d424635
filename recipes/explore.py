"""Explore a folder of embeddings in a browser: drop a video or a sound, type text, see and hear the closest rows.

    avssl explore embeddings/
    avssl explore embeddings/ --port 0 --top 6
    avssl explore embeddings/ --host 0.0.0.0        # for other machines, who need the printed address with its token

INDEX is a folder that `avssl embed` wrote, or a Lance table of one; the run that made it embeds what is dropped. Text
is read by the public model that made INDEX, if it has a text tower. Rows are found in every modality of the same space,
among those of a label if one is chosen; a slider moves along the windows of a long video. Media are decoded in
processes of their own, and what the browser gets are short clips cut from them. Needs an extra:
pip install "avssl[explore]". Ctrl+C ends it.
"""

from __future__ import annotations

import argparse
import ipaddress
import secrets
import signal
import sys
from contextlib import suppress
from pathlib import Path

from avssl.embedding.index import refuse_no_index
from avssl.errors import one_line_errors
from avssl.files.plain_text import PlainParser, begin_command, emit, say
from avssl.plugins import required

PORT = 8760


def main(arguments: argparse.Namespace) -> int:
    # What is heavy is imported here, so that --help and the first errors come at once.
    from avssl.explorer.server import check_installed, listen

    check_installed()
    refuse_no_index(arguments.index_folder)
    from avssl.embedding.lance_table import open_index
    from avssl.embedding.search import load_embedder_of
    from avssl.embedding.sources import suffixes_of
    from avssl.embedding_pages.origins import Origins
    from avssl.explorer.answers import Explorer
    from avssl.explorer.cuts import ClipStore
    from avssl.explorer.page import Place, page_of
    from avssl.explorer.question import UploadLimits
    from avssl.explorer.server import Service, serve
    from avssl.files.scratch import temporary_folder
    from avssl.processes.limits import Limits, default_num_workers
    from avssl.processes.pool import Sandbox

    required.use(arguments.plugin, may_differ=arguments.plugin_changed)
    index = open_index(arguments.index_folder)
    index.refuse_empty()
    embedder = load_embedder_of(index, arguments.run, arguments.device)
    reading = Limits(arguments.file_seconds, arguments.file_memory_mib << 20)
    limits = UploadLimits(arguments.upload_mib << 20, arguments.upload_seconds, reading)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that temporary files are removed
    workers = arguments.num_workers or default_num_workers()
    with (
        listen(arguments.host, arguments.port) as listening,
        temporary_folder() as folder,
        Sandbox(workers, reading) as sandbox,
    ):
        explorer = Explorer(index, embedder, ClipStore(folder, sandbox), limits)
        token = secrets.token_urlsafe(24)
        place = Place(Origins(index.folder, index.content.settings, explorer.keys))
        service = Service(
            token,
            folder,
            limits,
            suffixes_of(explorer.settings["modalities"]),
            pages=lambda values: page_of(explorer, place, values, arguments.top),
            take=explorer.take,
            clip_path=explorer.clips.path,
        )
        host, port = listening.getsockname()[:2]
        say(f"{index.content.num_rows:,} rows of {len(explorer.keys):,} sources; open")
        for name in shown_hosts(host):
            address = f"http://{name}:{port}/?token={token}"
            say(f"  {address}")
            emit("address", url=address)
        if not ipaddress.ip_address(host).is_loopback:
            say("Other machines can reach it, and the token and the clips travel unencrypted: on a network that "
                "others use, leave out --host and take `ssh -L`.", sys.stderr)  # fmt: skip
        say("Ctrl+C ends it.")
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):
            serve(service, listening)
    emit("result", num_rows=index.content.num_rows, num_sources=len(explorer.keys))
    return 0


def shown_hosts(host: str) -> list[str]:
    """The names under which a browser finds an address; those of this machine for all its addresses."""
    import socket

    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        return ["127.0.0.1", socket.gethostname()]
    return [f"[{host}]" if address.version == 6 else host]


def command(arguments: list[str]) -> int:
    """The program: its exit status."""
    arguments = begin_command("explore", arguments)
    parser = PlainParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "index_folder", metavar="INDEX", type=Path, help="folder that `avssl embed` wrote, or a Lance table"
    )
    parser.add_argument("--run", default="", help="the run that made INDEX (default: the folder where it lay then)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: for other machines too (default: %(default)s)")
    parser.add_argument("--port", type=int, default=PORT, help="0: a free one (default: %(default)s)")
    parser.add_argument("--top", type=int, default=8, help="rows of each modality (default: %(default)s)")
    parser.add_argument("--upload-mib", type=int, default=200, help="size of an upload (default: %(default)s)")
    parser.add_argument("--upload-seconds", type=float, default=600, help="how long it may last (default: %(default)g)")
    parser.add_argument(
        "--file-seconds", type=float, default=120, help="for each step of decoding a file (default: %(default)g)"
    )
    parser.add_argument(
        "--file-memory-mib", type=int, default=4096, help="memory for decoding a file (default: %(default)s)"
    )
    parser.add_argument("--num-workers", type=int, default=0, help="processes that cut clips (default: one per core)")
    parser.add_argument("--device", default="cpu", help="for what is dropped (default: %(default)s)")
    required.add_options(parser)
    parsed = parser.parse_args(arguments)
    for name, least, most in (("port", 0, 65535), ("top", 1, 60), ("upload_mib", 1, 1 << 20), ("num_workers", 0, 256)):
        if not least <= (value := getattr(parsed, name)) <= most:
            parser.error(f"--{name.replace('_', '-')} is {value}; it must be from {least} to {most}")
    if not parsed.upload_seconds > 0:
        parser.error(f"--upload-seconds is {parsed.upload_seconds:g}; it must be more than 0")
    with one_line_errors():
        return main(parsed)


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
