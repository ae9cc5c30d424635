"""The command `avssl explore` as it serves: its port, its signals, what it leaves, and its pages in a browser."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

from avssl.embedding.index import FolderIndex
from avssl.embedding.search import EmbeddingIndex
from avssl.explorer.server import listen
from data_prep.transcode.encode import write_media
from recipes import explore as explore_recipe
from tests.browser import (  # noqa: F401  (chromium is a fixture)
    PHONE,
    VIEWS,
    Chromium,
    View,
    chromium,
    faint_texts,
    found_program,
    overflow_px,
    plays,
    reached_by_keyboard,
    unnamed_controls,
)
from tests.conftest import ROOT
from tests.pictures import as_webp
from tests.test_embed import frames, sine
from tests.test_search_page import CLASS, found  # noqa: F401  (a fixture)


def test_a_port_in_use_and_a_missing_extra_are_errors_of_one_line(monkeypatch):
    with listen("127.0.0.1", 0) as first, pytest.raises(OSError, match="--port 0"):
        listen("127.0.0.1", first.getsockname()[1])
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    said = []
    monkeypatch.setattr("avssl.errors.say", lambda text, *_: said.append(text))
    with pytest.raises(SystemExit):
        explore_recipe.command(["nowhere"])
    assert 'pip install "avssl[explore]"' in said[0]


def test_a_folder_without_rows_is_an_error_of_one_line_before_anything_is_served(monkeypatch, tmp_path):
    settings = {"weights": "w", "modalities": ["video"], "sources": ["/media"], "shards": None}
    FolderIndex(settings, {}, 1, 0, 1, {"not_media": 1}, 0, {}, "", []).write(tmp_path)
    said = []
    monkeypatch.setattr("avssl.errors.say", lambda text, *_: said.append(text))
    with pytest.raises(SystemExit):
        explore_recipe.command([str(tmp_path), "--port", "0"])
    assert said == [f"error: {tmp_path} holds no rows: skipped.jsonl says why nothing could be embedded"]


@contextlib.contextmanager
def started(index, folder, *options):
    """(address with the token, process) of the command; folder: for its temporary files."""
    command = [sys.executable, "-m", "avssl", "explore", index, "--port", "0", "--top", "3", "--num-workers", "1"]
    command += options
    environment = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        lines = []
        last = "{" if "--json" in options else "Ctrl+C"
        while not (lines and lines[-1].startswith(last)):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            lines.append(line)
        yield re.search(r"http://[^\s\"]+", "".join(lines))[0], process
    finally:
        process.terminate()
        process.communicate()


@pytest.fixture
def server(found, tmp_path):  # noqa: F811
    """(address with the token, folder of temporary files, process) of the command."""
    with started(found[1], tmp_path) as (where, process):
        yield where, tmp_path, process


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "options"), [(signal.SIGTERM, []), (signal.SIGINT, ["--json"])])
def test_the_command_guards_its_pages_and_leaves_nothing_behind(found, tmp_path, sent, options):  # noqa: F811
    import urllib.error
    import urllib.request

    with started(found[1], tmp_path, *options) as (where, process):
        assert urlsplit(where).hostname == "127.0.0.1"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(where.partition("?")[0])
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        assert b"Begin with one of these" in opener.open(where).read()
        assert any(tmp_path.rglob("*.mp4"))
        process.send_signal(sent)
        out, err = process.communicate(timeout=60)
    assert process.returncode == (143 if sent == signal.SIGTERM else 0), err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())
    if options:
        assert "Ctrl+C ends it." in err
        num_rows = EmbeddingIndex(found[1]).content.num_rows
        assert json.loads(out) == {"event": "result", "command": "explore", "num_rows": num_rows, "num_sources": 4}


@pytest.mark.slow
def test_the_explorer_in_a_browser(chromium, server, tmp_path):  # noqa: F811
    where, _, _ = server
    clip = tmp_path / "clip.mp4"
    write_media(clip, video=frames(32, 32), video_fps=16, audio=sine(2.0), audio_rate_hz=24_000)
    for view in VIEWS:
        with chromium.open(where, view) as page:
            assert faint_texts(page) == []
            assert unnamed_controls(page) == []
            assert overflow_px(page) == 0
            page.get_by_role("link", name=re.compile("Closest to .*two")).click()
            page.get_by_role("heading", name="Closest sounds").wait_for()
            assert faint_texts(page) == []
            assert unnamed_controls(page) == []
            assert overflow_px(page) == 0
            assert reached_by_keyboard(page, "#window")
    with chromium.open(where, PHONE) as page:
        page.locator("#file").set_input_files(clip)
        page.get_by_text("Asked by this video").wait_for()
        assert page.locator(".query-card .path b").text_content() == "clip.mp4"
        page.locator(".query-card button.play").click()
        page.locator(".query-card .playing video").wait_for()
        assert plays(page, ".query-card video")
        page.locator("#window").focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_url("**window=1**")
        assert page.locator("#now").text_content().startswith("1 of ")
        page.locator("#label").select_option(label=f"label: {CLASS}")
        page.wait_for_url("**label=**")
        assert all(CLASS in text for text in page.locator(".hits .chips").all_text_contents())
        page.locator("#by-audio").check()
        page.get_by_text("Asked by this sound").wait_for()
        page.locator(".hits .audio, .hits .sound").first.wait_for()
        page.go_back()
        page.get_by_text("Asked by this video").wait_for()
    assert Image.open(io.BytesIO(picture(chromium, where))).size == (1100, 1000)


def picture(browser, where):
    """WebP of an answer, for the documentation: python -m tests.test_explorer_server EMBEDDINGS docs/pictures."""
    with browser.open(where, View(1100, 1000, "light")) as page:
        page.locator("a.onward").last.click()
        page.get_by_text("Asked by this").wait_for()
        page.locator("main:not([aria-busy])").wait_for()
        page.wait_for_timeout(500)
        return as_webp(page.screenshot(), "explorer")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary, started(Path(sys.argv[1]), temporary) as (address_given, _):
        one = Chromium(found_program())
        (Path(sys.argv[2]) / "explorer.webp").write_bytes(picture(one, address_given))
        one.end()
