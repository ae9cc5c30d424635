"""How many copies of real films `avssl prep split --near-duplicates` finds, and how many different films it links.

    python benchmarks/near_duplicates.py [--out FOLDER]

The 27 films of audiovisual_corpora.py, which are 25 (gradio's b.avi and b.mp4 are the first 5 s of its world.mp4), and
what the command `ffmpeg` makes of each. Found: the copy is linked with its film, directly or by other copies. Cuts of
1.5 s and more are made of films of at least 4 s.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from avssl.files.checked_json import Fields
from avssl.media.decode import probe
from avssl.processes.limits import Limits
from benchmarks import learning
from benchmarks.audiovisual_corpora import prep, prepare
from benchmarks.claims import machine
from data_prep.split.links import Links
from data_prep.split.near import near_sources
from data_prep.split.rule import Row

SAME = {"b": "world"}
EVEN = "scale=trunc(iw/2)*2:trunc(ih/2)*2,format=yuv420p"
# {kind: (options before the input, after it, ending, seconds that the film must have)}
KINDS: dict[str, tuple[str, str, str, float]] = {
    "h264 at crf 35, AAC of 48 kbit/s": ("", f"-vf {EVEN} -c:v libx264 -crf 35 -c:a aac -b:a 48k", "mp4", 0),
    "VP9 and Opus in WebM": ("", f"-vf {EVEN} -c:v libvpx-vp9 -deadline realtime -cpu-used 8 -c:a libopus", "webm", 0),
    "half the width": ("", f"-vf scale=iw/2:ih/2,{EVEN} -c:v libx264 -c:a aac", "mp4", 0),
    "stretched to 4:3": ("", "-vf scale=320:240,format=yuv420p -c:v libx264 -c:a aac", "mp4", 0),
    "10 frames a second": ("", f"-vf fps=10,{EVEN} -c:v libx264 -c:a aac", "mp4", 0),
    "brighter, half as loud": ("", f"-vf eq=brightness=0.1,{EVEN} -af volume=0.5 -c:v libx264 -c:a aac", "mp4", 0),
    "mono at 11 kHz": ("", f"-vf {EVEN} -c:v libx264 -ac 1 -ar 11025 -c:a libmp3lame", "mkv", 0),
    "without its first 1.5 s": ("-ss 1.5", f"-vf {EVEN} -c:v libx264 -c:a aac", "mp4", 4),
    "the first half": ("-t {half}", f"-vf {EVEN} -c:v libx264 -c:a aac", "mp4", 4),
    "5 % cut off on each side": ("", f"-vf crop=iw*0.9:ih*0.9,{EVEN} -c:v libx264 -c:a aac", "mp4", 0),
    "without sound": ("", f"-vf {EVEN} -c:v libx264 -an", "mp4", 0),
}  # fmt: skip
NOT_PROMISED: dict[str, tuple[str, str, str, float]] = {
    "mirrored": ("", f"-vf hflip,{EVEN} -c:v libx264 -c:a aac", "mp4", 0),
    "a quarter cut off on each side": ("", f"-vf crop=iw*0.5:ih*0.5,{EVEN} -c:v libx264 -c:a aac", "mp4", 0),
    "1.1 times as fast": ("", f"-vf setpts=PTS/1.1,{EVEN} -af atempo=1.1 -c:v libx264 -c:a aac", "mp4", 0),
}


def make_copies(films: Path, folder: Path) -> dict[str, dict[str, str]]:
    """{kind: {file of the copy: the film}}, with the films themselves as the kind "film"."""
    made: dict[str, dict[str, str]] = defaultdict(dict)
    folder.mkdir(parents=True, exist_ok=True)
    for film in sorted(films.iterdir()):
        made["film"][film.name] = name = SAME.get(film.stem, film.stem)
        target = folder / film.name
        if not target.exists():
            target.symlink_to(film.resolve())
        seconds = probe(film).duration_seconds
        for number, (kind, (before, after, ending, least)) in enumerate({**KINDS, **NOT_PROMISED}.items()):
            if seconds < least:
                continue
            copy = folder / f"{film.stem}_{film.suffix[1:]}_{number:02d}.{ending}"
            if not copy.exists():
                part = copy.with_name(f".{copy.name}")  # what is hidden is not listed
                options = before.format(half=seconds / 2).split()
                command = ["ffmpeg", "-v", "error", "-y", *options, "-i", str(film), *after.split(), str(part)]
                subprocess.run(command, check=True)
                part.rename(copy)
            made[kind][copy.name] = name
    return made


def linked(folder: Path, work: Path) -> dict[str, int]:
    """{file: the first source of what it is linked with}."""
    manifest = work / "corpus.jsonl"
    prep(["index", str(folder), "--out", str(manifest)], work / "index.log")
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    links = Links()
    for pair in near_sources(manifest, work / "fingerprints", num_workers=1, limits=Limits(), tell=print):
        links.join(*pair)
    sources = {Path(row["path"]).name: Row.of(Fields(row, str(manifest))).source() for row in rows}
    return {name: links.first_of(source) for name, source in sources.items()}


def report(made: dict[str, dict[str, str]], group_of: dict[str, int]) -> str:
    """The table, and the films that are linked with another."""
    groups_of_film: dict[str, set[int]] = defaultdict(set)
    for name, film in made["film"].items():
        groups_of_film[film].add(group_of[name])
    rows = [["copy", "found", "of"]]
    for kind in (*KINDS, *NOT_PROMISED):
        copies = made[kind]
        found = sum(group_of[name] in groups_of_film[film] for name, film in copies.items())
        rows.append([f"{kind}{' (not promised)' if kind in NOT_PROMISED else ''}", str(found), str(len(copies))])
    films_of_group: dict[int, set[str]] = defaultdict(set)
    for copies in made.values():
        for name, film in copies.items():
            films_of_group[group_of[name]].add(film)
    wrong = [sorted(films) for films in films_of_group.values() if len(films) > 1]
    number = len(groups_of_film)
    said = f"Of {number} films, which are {number * (number - 1) // 2} pairs, linked with another: {wrong or 'none'}."
    return f"{learning.markdown(rows)}\n\n{said}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(".cache/near_duplicates"))
    out = parser.parse_args().out.resolve()
    prepare("films", out / "corpora")
    made = make_copies(out / "corpora/films/films", out / "videos")
    print(machine(), report(made, linked(out / "videos", out)), sep="\n\n")


if __name__ == "__main__":
    main()
