"""Open data that was made to run code, to reach elsewhere or to act on a terminal or a page: nothing of it happens.

python -m tests.soak.malicious
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import socket
import sys
import tempfile
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avssl import checkpoint, config
from avssl.checkpoint.weights import load_module
from avssl.config import ConfigError
from avssl.embedding.table import EmbeddingTable
from avssl.exchange.avid_release import read_published
from avssl.exchange.card import write_card
from avssl.files.damaged_files import open_npz
from avssl.files.location import join
from avssl.media.decode import probe, read_audio, read_video
from avssl.media.images import read_image
from avssl.models.weights import load_weights
from avssl.report import write_report
from avssl.types import MediaError
from data_prep.__main__ import main as prepare
from tests.made_runs import SMALL_AVID, made_run
from tests.soak.outcome import Outcome

TEXT = "a\x1b[31m\x9b2J\nINJECTED\rINJECTED\x85INJECTED\u2028INJECTED\u202eb"
MARKUP = (
    "</script><script>alert(1)</script>",
    '" onload="INJECTED',
    "<img src=x onerror=alert(1)>",
    "</title><b>",
    "`<i>`",
)
INNOCENT = ("film.mp4", "sound.wav", "picture.jpg", "film.mkv")


class Malicious:
    """Unpickling this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (self.path,)


def acting_lines(text: str) -> list[str]:
    """Lines of an output that began in data, or that hold what acts on a terminal."""
    return [one for one in text.splitlines() if one.startswith("INJECTED") or re.search("[\x1b\x9b\u202e]", one)]


def make_sounds(folder: Path, classes: list[str], names: tuple[str, ...] = ("ton",)) -> None:
    """Half a second of noise a class and name, as wav."""
    for number, (class_name, name) in enumerate((one, two) for one in classes for two in names):
        (folder / class_name).mkdir(parents=True, exist_ok=True)
        with wave.open(str(folder / class_name / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(np.random.default_rng(number).integers(-9000, 9000, 4000, dtype=np.int16).tobytes())


def told(*arguments: object) -> tuple[int, str]:
    """Exit status and whole output of a command of data_prep, which runs in this process."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        try:
            status = prepare([str(one) for one in arguments])
        except SystemExit as error:
            status = int(error.code or 0)
    return status, said.getvalue()


@contextmanager
def listener() -> Iterator[tuple[str, Callable[[], bool]]]:
    """An address on this machine, and whether anybody has connected to it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)

        def was_reached() -> bool:
            with suppress(BlockingIOError):
                server.accept()[0].close()
                return True
            return False

        yield f"127.0.0.1:{server.getsockname()[1]}", was_reached


def playlists(outcome: Outcome, folder: Path, *, quick: bool = False) -> None:
    """Lists and protocols, as the content of files, as the names of files and as entries of a manifest."""
    make_sounds(folder, ["canary"])
    canary = folder / "canary" / "ton.wav"
    with listener() as (address, was_reached):
        url = f"http://{address}/x.ts"
        contents = {
            f"{kind} of {what}": content
            for what, target in (("a url", url), ("a file", f"file:{canary}"), ("a path", str(canary)))
            for kind, content in {
                "m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n",
                "concat": f"ffconcat version 1.0\nfile '{target}'\n",
                "sdp": f"v=0\no=- 0 0 IN IP4 {address[:9]}\ns=x\nc=IN IP4 {address[:9]}\nt=0 0\n"
                f"m=audio {address[10:]} RTP/AVP 0\n",
                "smil": f'<smil><body><audio src="{target}"/></body></smil>',
                "mpd": f'<?xml version="1.0"?><MPD><Period><AdaptationSet><BaseURL>{target}</BaseURL></AdaptationSet>'
                "</Period></MPD>",
                "pls": f"[playlist]\nFile1={target}\nNumberOfEntries=1\n",
                "svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{target}"/></svg>',
            }.items()
        }
        names = [url, f"concat:{canary}|{canary}", f"subfile,,start,0,end,0,,:{canary}", f"pipe:cat {canary}",
                 "data:audio/wav;base64,UklGRg==",
                 f"file:{canary}", f"crypto:{canary}", f"cache:{canary}",
                 f"async:file:{canary}", f"tcp://{address}"]  # fmt: skip
        reads: list[Callable[[Any], object]] = [
            probe, lambda one: read_audio(one, 0.0, 100, 8000), lambda one: read_video(one, [0.0]), read_image,
        ]  # fmt: skip
        for title, content in list(contents.items())[: 7 if quick else None]:
            for name in INNOCENT[: 1 if quick else None]:
                path = folder / name
                path.write_text(content, encoding="utf-8")
                for source in (path, content.encode()):
                    with outcome.case(f"{title} called {name}"):
                        _all_refuse(reads, source)
                        assert not was_reached(), "a connection was made"
        for name in names:
            with outcome.case(f"{name} as a file's name"):
                _all_refuse(reads, name)
                assert not was_reached(), "a connection was made"
        entries = "".join(f"{one}\n" for one in names if not one.startswith("http"))
        (folder / "list.txt").write_text(entries, encoding="utf-8")
        with outcome.case("the names as entries of a list"):
            told("index", folder / "list.txt", "--out", folder / "list.jsonl", "--num-workers", "1")
            lines = (folder / "list.jsonl").read_text("utf-8").splitlines() if (folder / "list.jsonl").is_file() else []
            assert all(json.loads(line)["error"] for line in lines), "an entry was opened"
            assert not was_reached(), "a connection was made"


def _all_refuse(reads: list[Callable[[Any], object]], source: object) -> None:
    for read in reads:
        try:
            read(source)
        except (MediaError, ValueError, FileNotFoundError):
            continue
        raise AssertionError("it was opened")


def pickles(outcome: Outcome, folder: Path, *, quick: bool = False) -> None:
    """Pickles wherever something reads."""
    canary = folder / "was-run"
    made = {"a pickle": pickle.dumps(Malicious(canary), protocol=2), "a file of torch.save": _saved(Malicious(canary))}
    array = io.BytesIO()
    np.savez(array, avssl=np.array([Malicious(canary)], dtype=object))
    made["a npz of objects"] = array.getvalue()
    run = folder / "run"
    run.mkdir()

    def opened(name: str, content: bytes, read: Callable[[Path], object]) -> None:
        for what, data in made.items():
            with outcome.case(f"{what} as {name}"):
                (run / name).write_bytes(content or data)
                try:
                    read(run / name)
                except Exception as error:  # whatever the libraries raise: that nothing ran is what is asked
                    assert not isinstance(error, AssertionError), error  # noqa: PT017
                else:
                    raise AssertionError("it was opened")
                assert not canary.exists(), "it was run"

    from accelerate.utils.other import load as accelerate_load

    network = torch.nn.Linear(2, 2)
    opened("encoders.safetensors", b"", lambda path: checkpoint.read_weights(path.parent))
    opened("module.safetensors", b"", lambda path: load_module(network, path))
    opened("weights.pth", b"", lambda path: load_weights(network, str(path), "avid_video"))
    opened("weights.safetensors", b"", lambda path: load_weights(network, str(path), "avid_video"))
    opened("published.pth.tar", b"", lambda path: read_published(path, "avid"))
    opened("optimizer.bin", b"", accelerate_load)
    opened("random_states_0.pkl", b"", accelerate_load)
    opened("arrays.npz", b"", _arrays)
    opened("table.parquet", b"", EmbeddingTable.read)
    opened("clip.mp4", b"", probe)
    opened("clip.jpg", b"", read_image)
    opened("config.yaml", b"!!python/object/apply:os.mkdir [%s]\n" % str(canary).encode(), _configuration)
    opened("other.yaml", b"run: !!python/object/new:os.mkdir [%s]\n" % str(canary).encode(), _configuration)
    opened("aliases.yaml", b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", _configuration)


def _configuration(path: Path) -> object:
    try:
        return config.parse(config.RunConfig, [str(path)])
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _arrays(path: Path) -> object:
    with open_npz(path, "file of arrays") as arrays:
        return {name: arrays[name] for name in arrays}


def _saved(value: object) -> bytes:
    content = io.BytesIO()
    torch.save({"model": value}, content)
    return content.getvalue()


def terminal(outcome: Outcome, folder: Path, *, quick: bool = False) -> None:
    """Names of files and classes, and keys of shards, that act on a terminal."""
    make_sounds(folder / "media", [TEXT, f"b{TEXT}"])
    (folder / "media" / TEXT / f"no{TEXT}.mp4").write_bytes(b"nothing")
    manifest, shards = folder / "m.jsonl", folder / "shards"
    few = ("--num-workers", "1")
    commands: list[tuple[object, ...]] = [
        ("index", folder / "media", "--out", manifest, *few),
        ("coverage", manifest),
        ("write", manifest, "--out", shards, "--on-missing-video", "keep", *few),
        ("verify", shards, *few),
        ("stats", shards, "--no-decode", "--out", folder / "page", *few),
        ("show", shards, "--list"),
        ("show", shards, "0", "--out", folder / "x.flac"),
        ("index", f"absent{TEXT}", "--out", manifest),
        ("show", shards, TEXT),
        ("verify", f"absent{TEXT}"),
        (TEXT,),
        ("write", manifest, "--out", shards, f"--{TEXT}"),
        ("write", manifest, "--out", shards, "--preset", TEXT),
    ]
    for command in commands:
        with outcome.case(f"{command[0]!r} {command[-1]!r}"):
            _, said = told(*command)
            assert said.strip(), "nothing was said"
            assert not acting_lines(said), acting_lines(said)
    _damaged_folders(outcome, shards, few)


def _damaged_folders(outcome: Outcome, shards: Path, few: tuple[str, ...]) -> None:
    """Keys and names in the json of a shard folder that act, and names of shards that lead out of it."""
    index, side_car = shards / "index.json", shards / "shard-000000.json"
    whole = {path: json.loads(path.read_text("utf-8")) for path in (index, side_car)}
    keys = [TEXT, *whole[side_car]["keys"][1:]]
    changes: list[tuple[Path, dict[str, Any]]] = [
        (side_car, {"keys": keys}),
        (index, {"label_names": {TEXT: [TEXT]}}),
        (index, {"skipped_by_reason": {TEXT: whole[index]["num_skipped"]}}),
    ]
    for name in ("../x.tar", "/etc/passwd", "a/b.tar", "..", TEXT, "http://x/y.tar"):
        changes.append((index, {"shards": [whole[index]["shards"][0] | {"name": name}]}))
    for path, change in changes:
        path.write_text(json.dumps(whole[path] | change), encoding="utf-8")
        for command in (("verify", shards, *few), ("show", shards, "--list"), ("stats", shards, "--no-decode", *few)):
            with outcome.case(f"{command[0]} of {change!r}"):
                status, said = told(*command)
                assert not acting_lines(said), acting_lines(said)
                assert "shards" not in change or status, "a name outside the folder was taken"
        path.write_text(json.dumps(whole[path]), encoding="utf-8")


def paths(outcome: Outcome, folder: Path, *, quick: bool = False) -> None:
    """Names that lead out of a folder, in locations and among the members of a shard."""
    for name in ("../x", "/etc/passwd", "a/../../x", "file:///etc/passwd", "http://x/y"):
        with outcome.case(f"{name} joined to a folder"):
            try:
                join(folder, name)
            except ValueError:
                continue
            raise AssertionError("it was taken")
    for name in ("../../evil", "/evil", "..", "a/../../evil"):
        with outcome.case(f"{name} as a key of a manifest"):
            line = {"path": str(folder / "x"), "key": name, "labels": {}, "error": None, "bytes": 1}
            (folder / "m.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
            status, _ = told("write", folder / "m.jsonl", "--out", folder / "out", "--num-workers", "1")
            assert status, "it was written"
            assert not list(folder.parent.glob("evil*")), "it lies outside"


class Elements(HTMLParser):
    """The elements of a page with the names of their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "small":  # the report has one or none in a heading, by the metric's name
            self.found.append((tag, tuple(name for name, _ in attrs)))


def pages(outcome: Outcome, folder: Path, *, quick: bool = False) -> None:
    """Names of classes, keys and runs in the page of stats, in the report and in the model card."""
    for number, text in enumerate(["harmless", *(["".join(MARKUP)] if quick else MARKUP)]):
        place = folder / str(number)
        made_run(
            place / "run",
            "loss.name=avid",
            *SMALL_AVID,
            provenance={"license": "mit"} if not number else {"license": f"mit\n{text}"},
        )
        make_sounds(place / "media", ["one", "two"])
        rows = "path,class\n" + "".join(
            f'{one}/ton.wav,"{text.replace(chr(34), chr(34) * 2)}"\n' for one in ("one", "two")
        )
        (place / "labels.csv").write_text(rows, encoding="utf-8")
        told(
            "index", place / "media", "--out", place / "m.jsonl", "--labels", place / "labels.csv", "--num-workers", "1"
        )
        told("write", place / "m.jsonl", "--out", place / "shards", "--on-missing-video", "keep", "--num-workers", "1")
        told("stats", place / "shards", "--no-decode", "--out", place, "--num-workers", "1")
        rows_of = np.eye(4, dtype=np.float32)
        always = np.ones(4, bool)
        table = EmbeddingTable(
            [f"{text}{one}" for one in range(4)], np.arange(4), np.zeros(4), np.ones(4), always, always,
            video_embedding=rows_of, audio_embedding=rows_of, labels=[{"visual": [text]}] * 4,
        )  # fmt: skip
        evaluation = {
            "results": {"trained": {text: 0.5}},
            "chance": {text: 0.1},
            "deviation": {},
            "protocol": {"train": text},
        }
        write_report(place / "run", table=table, title=text, evaluation=evaluation, facts={text: text})
        (place / "run" / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
        write_card(place / "run", place / "run", title=text)
        found = {
            "stats": Elements((place / "stats.html").read_text("utf-8")).found,
            "report": Elements((place / "run" / "report.html").read_text("utf-8")).found,
        }
        if not number:
            harmless = found
            continue
        for page, elements in found.items():
            with outcome.case(f"{text} in the page of {page}"):
                assert elements == harmless[page], sorted(set(elements) ^ set(harmless[page]))
        with outcome.case(f"{text} in the card"):
            shown = re.sub(r"\\.|`[^`]*`", "", (place / "run" / "README.md").read_text("utf-8").split("## Use")[0])
            assert not Elements(shown.split("---", 2)[2]).found, shown
            front = shown.split("---", 2)[1]
            assert front.count("\n") == 8, front


KINDS: dict[str, Callable[..., None]] = {
    "playlists": playlists,
    "pickles": pickles,
    "terminal": terminal,
    "paths": paths,
    "pages": pages,
}


def main() -> int:
    outcome = Outcome("nothing that opens data runs code, reaches elsewhere, or acts on a terminal or a page")
    for name, kind in KINDS.items():
        with tempfile.TemporaryDirectory(prefix="avssl-soak-") as temporary:
            kind(outcome, Path(temporary))
        print(f"{name}: {outcome.num_cases} cases so far", file=sys.stderr, flush=True)
    return outcome.finish()


if __name__ == "__main__":
    sys.exit(main())
