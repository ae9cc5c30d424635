"""How many copies of real videos `avssl prep split --near-duplicates` finds, and how often it is wrong.

    python -m benchmarks.near_copies VIDEOS --out copies/

Of each video the program ffmpeg makes one copy of every kind below, 240 px high but for `half the size`. A split links
what it takes for copies. Recall, of each kind: the share of copies that are linked with their video. Precision: the
share of linked pairs, over all files, that are of one video. Videos that are copies of each other already are named
with --same A,B; files without sound or without pictures have no copies of the kinds that need them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from avssl.files.checked_json import Fields
from avssl.media.decode import probe
from avssl.processes.limits import Limits, default_num_workers
from benchmarks.claims import machine
from data_prep.split.links import Links
from data_prep.split.near import near_sources
from data_prep.split.rule import Row

X264 = ["-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p"]
AAC = ["-c:a", "aac", "-b:a", "96k"]
SMALL = "scale=-2:240"
LEAST_SECONDS = 2.0  # shorter videos are not trimmed


def crop(share: float) -> str:
    """A filter that cuts off this share of width and of height, half of it at each side."""
    return f"crop=iw*{1 - share}:ih*{1 - share},{SMALL}"


# {kind: (suffix, filter of pictures, further options)}; "" for no change but the size
PICTURES = {
    "encoded anew (crf 36, aac 48k)": (".mp4", SMALL, [*X264, "-crf", "36", "-c:a", "aac", "-b:a", "48k"]),
    "vp8 and opus": (".webm", SMALL, ["-c:v", "libvpx", "-b:v", "300k", "-cpu-used", "8", "-c:a", "libopus"]),
    "half the size": (".mp4", "scale=-2:120", [*X264, *AAC]),
    "10 frames a second": (".mp4", f"{SMALL},fps=10", [*X264, *AAC]),
    "brighter and louder": (".mp4", f"{SMALL},eq=brightness=.06:contrast=1.1", [*X264, *AAC, "-af", "volume=1.6"]),
    "cropped by 5 %": (".mp4", crop(0.05), [*X264, *AAC]),
    "cropped by 10 %": (".mp4", crop(0.10), [*X264, *AAC]),
    "cropped by 20 %": (".mp4", crop(0.20), [*X264, *AAC]),
    "a logo in a corner": (".mp4", f"{SMALL},drawbox=x=8:y=8:w=48:h=24:color=white:t=fill", [*X264, *AAC]),
    "with bars (letterbox)": (".mp4", f"{SMALL},pad=iw:ih+60:0:30", [*X264, *AAC]),
    "mirrored": (".mp4", f"{SMALL},hflip", [*X264, *AAC]),
}
TRIMMED = {
    "without the first second": ["-ss", "1"],
    "without the last third": ["-t", "{two_thirds}"],
    "a third from the middle": ["-ss", "{one_third}", "-t", "{one_third}"],
}
SOUND = {"its sound alone, mp3": (".mp3", ["-vn", "-c:a", "libmp3lame", "-b:a", "96k"])}
SILENT = {"its pictures alone": (".mp4", SMALL, [*X264, "-an"])}


def commands(video: Path, seconds: float, *, has_audio: bool, out: Path) -> list[tuple[str, Path, list[str]]]:
    """(kind, file, command) of the copies of a video."""
    made: list[tuple[str, Path, list[str]]] = []

    def add(kind: str, suffix: str, before: Sequence[str], after: Sequence[str]) -> None:
        path = out / f"{video.stem}{video.suffix.replace('.', '_')}-{len(made):02d}{suffix}"
        options = ["-nostdin", "-v", "error", "-threads", "1"]
        made.append((kind, path, ["ffmpeg", *options, *before, "-i", str(video), "-sn", "-dn", *after, str(path)]))

    for kind, (suffix, pictures, options) in PICTURES.items():
        add(kind, suffix, [], ["-vf", pictures, *options])
    for kind, where in TRIMMED.items() if seconds >= LEAST_SECONDS else ():
        shares = {"one_third": f"{seconds / 3:.3f}", "two_thirds": f"{seconds * 2 / 3:.3f}"}
        add(kind, ".mp4", [word.format(**shares) for word in where], ["-vf", SMALL, *X264, *AAC])
    if has_audio:
        for kind, (suffix, options) in SOUND.items():
            add(kind, suffix, [], options)
        for kind, (suffix, pictures, options) in SILENT.items():
            add(kind, suffix, [], ["-vf", pictures, *options])
    return made


def make_copies(videos: Sequence[Path], out: Path) -> dict[str, tuple[str, str]]:
    """{name of a file in `out`: (name of its video, kind; "" for the video itself)}."""
    truth: dict[str, tuple[str, str]] = {}
    tasks: list[list[str]] = []
    for video in videos:
        info = probe(video)
        (out / video.name).symlink_to(video.resolve())
        truth[video.name] = (video.name, "")
        made = commands(video, info.duration_seconds or 0.0, has_audio=info.audio is not None, out=out)
        truth |= {path.name: (video.name, kind) for kind, path, _ in made}
        tasks += [command for _, _, command in made]
    with ThreadPoolExecutor(default_num_workers()) as pool:
        for done in pool.map(lambda command: subprocess.run(command, check=False, capture_output=True), tasks):
            if done.returncode:
                raise SystemExit(f"{done.args}: {done.stderr.decode()[-300:]}")
    return truth


def linked_files(out: Path) -> list[set[str]]:
    """Sets of files of out/corpus.jsonl that a split would keep together."""
    manifest = out / "corpus.jsonl"
    names: dict[int, str] = {}
    for line in manifest.read_bytes().splitlines():
        row = Row.of(Fields.parse(line, str(manifest)))
        names[row.source()] = Path(row.path).name
    links = Links()
    workers, limits = default_num_workers(), Limits(120.0)
    for first, second in near_sources(manifest, out / "fingerprints", num_workers=workers, limits=limits, tell=print):
        links.join(first, second)
    return [{names[source] for source in component} for component in links.components()]


def measured(
    truth: dict[str, tuple[str, str]], same: Sequence[Sequence[str]], linked: list[set[str]]
) -> dict[str, Any]:
    """Recall of each kind, precision over all linked pairs, and the videos of wrong pairs."""
    subject = {video: min(group) for group in same for video in group}
    of = {name: subject.get(video, video) for name, (video, _) in truth.items()}
    together = {name: number for number, component in enumerate(linked) for name in component}
    recall: dict[str, list[bool]] = {}
    for name, (video, kind) in truth.items():
        if kind:
            recall.setdefault(kind, []).append(name in together and together[name] == together.get(video))
    pairs = [pair for component in linked for pair in itertools.combinations(sorted(component), 2)]
    wrong = sorted({(of[one], of[other]) for one, other in pairs if of[one] != of[other]})
    return {
        "num_videos": len({of[name] for name in of}),
        "num_files": len(truth),
        "recall": {kind: [sum(found), len(found)] for kind, found in recall.items()},
        "num_linked_pairs": len(pairs),
        "num_wrong_pairs": sum(of[one] != of[other] for one, other in pairs),
        "wrong_pairs_of": wrong,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, help="a folder")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--same", action="append", default=[], help="A,B: videos of one picture and sound")
    arguments = parser.parse_args()
    (arguments.out / "corpus").mkdir(parents=True)
    videos = sorted(path for path in arguments.videos.iterdir() if path.is_file())
    truth = make_copies(videos, arguments.out / "corpus")
    command = ["index", arguments.out / "corpus", "--out", arguments.out / "corpus.jsonl", "--labels", "none"]
    subprocess.run([sys.executable, "-m", "data_prep", *map(str, command)], check=True)
    result = measured(truth, [names.split(",") for names in arguments.same], linked_files(arguments.out))
    (arguments.out / "result.json").write_text(json.dumps(result | {"machine": machine()}, indent=1))
    print(f"\n{machine()}\n{result['num_files']} files of {result['num_videos']} videos\n")
    for kind, (found, count) in result["recall"].items():
        print(f"{kind:<34}{found:4} of {count}")
    right = 1 - result["num_wrong_pairs"] / max(1, result["num_linked_pairs"])
    print(f"precision {right:.4f} of {result['num_linked_pairs']} linked pairs; wrong: {result['wrong_pairs_of']}")


if __name__ == "__main__":
    main()
