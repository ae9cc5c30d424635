"""Files are looked at in the sandbox, each once: what misbehaves costs itself alone."""

import json
import os
import signal
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from avssl.processes.limits import Limits
from avssl.shards.manifest import stream_manifest
from avssl.types import MediaError
from data_prep.__main__ import main
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.index.probing import ProbedFile
from tests.clips import make_clip
from tests.listed import listed


def misbehaving(path):
    """Does to its process what the file's name says, and notes that it was opened."""
    name = Path(path).stem.rstrip("0123456789")
    with Path(path).with_name("opened.log").open("a") as log:
        log.write(Path(path).stem + "\n")
    if name == "hang":
        time.sleep(60)
    elif name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif name == "memory":
        return bytearray(1 << 30)
    elif name == "bug":
        raise IndexError("list index out of range")
    elif name == "bad":
        raise MediaError("truncated", f"{path}: ends early")
    return ProbedFile({"video": {"start_seconds": 0.0, "duration_seconds": 9.0}, "audio": None}, None, 1)


@pytest.mark.slow
def test_a_file_that_misbehaves_costs_itself_alone_and_says_why(tmp_path):
    names = ["good1", "hang", "good2", "crash", "good3", "memory", "bug", "good4", "bad", "good5", "gone"]
    for name in names[:-1]:
        (tmp_path / f"{name}.mp4").touch()
    (tmp_path / "files.txt").write_text("".join(f"{name}.mp4\n" for name in names))
    options = IndexOptions(num_workers=2, limits=Limits(1.5, 256 << 20))
    summary = build_manifest(tmp_path / "files.txt", tmp_path / "c.jsonl", options, misbehaving_or_missing)
    reasons = {entry.key: entry.error and entry.error["reason"] for entry in stream_manifest(tmp_path / "c.jsonl")}
    assert reasons == {f"{name}_mp4": None for name in names} | {
        "hang_mp4": "timeout", "crash_mp4": "crashed", "memory_mp4": "out_of_memory", "bug_mp4": "crashed",
        "bad_mp4": "truncated", "gone_mp4": "missing_file",
    }  # fmt: skip
    assert list(reasons) == [f"{name}_mp4" for name in names]
    assert summary.num_with_video == 5


def misbehaving_or_missing(path):
    """As probing does, for files that are not there."""
    if not Path(path).exists():
        raise MediaError("missing_file", f"{path}: cannot be opened")
    return misbehaving(path)


def test_a_file_with_several_rows_is_opened_once(tmp_path):
    for name in ("good1", "good2", "good3"):
        (tmp_path / f"{name}.mp4").touch()
    rows = [{"path": f"{name}.mp4", "segment": [begin, begin + 1]}
            for name, times in (("good1", range(5)), ("good2", range(3)), ("good3", range(1)))
            for begin in times]  # fmt: skip
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = build_manifest(tmp_path / "mine.jsonl", tmp_path / "c.jsonl", IndexOptions(), misbehaving)
    assert (summary.num_listed, summary.num_segments, summary.num_with_video) == (9, 9, 9)
    assert (tmp_path / "opened.log").read_text().split() == ["good1", "good2", "good3"]


def test_listed_urls_are_fetched_and_probed(tmp_path):
    clip = tmp_path / "served" / "clip.mp4"
    make_clip(clip)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=clip.parent)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        host = f"http://127.0.0.1:{server.server_port}"
        entries, _ = listed(tmp_path, "files.txt", f"{host}/clip.mp4\n{host}/gone.mp4\n", media=tmp_path, probe=True)
        server.shutdown()
    found = {entry.path.rpartition("/")[2]: entry for entry in entries.values()}
    assert [entry.path for entry in entries.values()] == [f"{host}/clip.mp4", f"{host}/gone.mp4"]
    assert found["clip.mp4"].media["video"]["width"] == 64
    assert found["clip.mp4"].num_bytes == clip.stat().st_size
    assert found["gone.mp4"].error["reason"] == "missing_file"
    assert f"{host}/gone.mp4" in found["gone.mp4"].error["message"]


def test_file_seconds_and_memory_reach_the_sandbox(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a.mp4\n")
    command = ["index", str(tmp_path / "a.txt"), "--out", str(tmp_path / "c.jsonl")]
    assert main([*command, "--file-seconds", "0"]) == 2
    assert main([*command, "--file-memory-mib", "1"]) == 2
    assert "at least 64 MiB" in capsys.readouterr().err
