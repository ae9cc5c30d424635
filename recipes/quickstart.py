"""The whole way in a minute and a half: `avssl quickstart [FOLDER]`, FOLDER being ./quickstart by default.

Makes 360 short videos in which shapes move to sounds, turns the training part into verified shards, pretrains AVID on
them for a moment, embeds the 60 videos that it never saw, and asks which of their sounds fit one of the videos. The
answer is a page that plays them. Every step is a command as a user types it, printed before it runs.

A stopped quickstart goes on when it is started again; removing FOLDER removes everything.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
import webbrowser
from pathlib import Path

from avssl.errors import one_line_errors
from avssl.files.plain_text import JSON_OPTION, PlainParser, begin_command, emit, is_json, say, say_lines

NUM_TRAIN, NUM_TEST, STEPS = 300, 60, 240
RANKS, SHOWN = 5, 6
SHARD_OPTIONS = "--short-side-px 64 --fps 8 --keyframe-interval 4 --audio-rate-hz 16000"
NEXT = """
With videos of your own, on this machine:

  avssl prep index VIDEOS --out corpus.jsonl --clip-seconds 2 --test-share .2 --seed auto
  avssl prep write corpus.train.jsonl --out shards/train
  avssl prep write corpus.test.jsonl --out shards/test
  avssl pretrain avid_small data.shards=shards/train
  avssl evaluate runs/avid_small train=shards/train test=shards/test
  avssl embed runs/avid_small VIDEOS --out embeddings
  avssl search embeddings VIDEOS/one.mp4 --exclude-self --one-per-key --html search.html
  avssl report runs/avid_small --shards shards/test

With few videos a network that others trained is better: docs/public_models.md. `avssl recipes` lists every recipe,
`avssl demo` is this corpus in full: AVID, AVID+CMA, intervals and a report.
"""


def run(command: str) -> None:
    """Run one command of the program in this process, printing it as a user types it."""
    from avssl.calls import own_run
    from avssl.command import main

    json_option = [JSON_OPTION] if is_json() else []
    say()
    say(f"$ avssl {command}")
    with own_run():
        status = main([*shlex.split(command), *json_option])
    begin_command("quickstart", json_option)
    if status:
        raise SystemExit(status)


def own_sounds(folder: Path) -> tuple[int, int]:
    """(videos whose own sound is among the RANKS nearest of all sounds, videos) of a folder of embeddings."""
    from avssl.embedding import EmbeddingTable
    from avssl.eval import retrieval

    table = EmbeddingTable.read(folder).pool_by_key()
    found = retrieval(table.video_embedding, table.audio_embedding, recall_at=(RANKS,))
    return round(found[f"video_to_audio_recall_at_{RANKS}"] * len(table)), len(table)


def main(folder: Path, opens: bool) -> None:
    began = time.monotonic()
    # Small networks gain nothing from a second thread, and a process beside this one decodes.
    os.environ |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    at = {name: shlex.quote(str(folder / name)) for name in ("videos", "shards", "run", "embeddings", "search.html")}
    train, test = f"{at['videos']}/train", f"{at['videos']}/test"
    manifest = shlex.quote(str(folder / "train.jsonl"))

    run(f"prep demo-corpus {at['videos']} --num-train {NUM_TRAIN} --num-test {NUM_TEST} --agreement 0.9 --difficulty 0")
    run(f"prep index {train} --out {manifest} --labels {train}/labels.csv")
    run(f"prep write {manifest} --out {at['shards']} {SHARD_OPTIONS}")
    run(f"prep verify {at['shards']}")
    run(f"pretrain demo_avid run={at['run']} data.shards={at['shards']} steps={STEPS}")
    run(f"embed {at['run']} {test} --out {at['embeddings']} --overwrite --window 2 --stride 2")
    query = sorted((folder / "videos" / "test").rglob("*.mp4"))[0]
    run(f"search {at['embeddings']} {shlex.quote(str(query))} --top {SHOWN} --one-per-key --html {at['search.html']}")

    found, count = own_sounds(folder / "embeddings")
    say()
    say(f"Of {count} videos that it never saw, {found} have their own sound among the {RANKS} nearest of {count}; "
        f"chance is {RANKS}.")  # fmt: skip
    say(f"Finished in {time.monotonic() - began:.0f} s. The answer, with videos and sounds that play:")
    say(f"  {folder / 'search.html'}")
    say_lines(NEXT)
    emit("result", page=folder / "search.html", num_videos=count, num_found=found, nearest=RANKS)
    if opens:
        webbrowser.open((folder / "search.html").resolve().as_uri())


def has_screen() -> bool:
    """Whether a page can be opened: somebody reads the terminal, and there is a screen."""
    screen = sys.platform == "darwin" or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    return sys.stdout.isatty() and screen


def command(arguments: list[str]) -> int:
    """The program: its exit status."""
    arguments = begin_command("quickstart", arguments)
    parser = PlainParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, nargs="?", default=Path("quickstart"), help="default: ./%(default)s"
    )
    parser.add_argument("--no-open", action="store_true", help="print where the page is and open no browser")
    parsed = parser.parse_args(arguments)
    with one_line_errors():
        main(parsed.folder, has_screen() and not parsed.no_open)
    return 0


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
