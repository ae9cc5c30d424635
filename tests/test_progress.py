"""How far work is: a bar on a terminal, plain lines elsewhere, JSON lines with --json; and stages of a run."""

import io
import json
import os
import pty
import re
import subprocess
import sys
import time

import pytest

from avssl.files import plain_text, progress
from avssl.files.progress import Bar, Stages, track
from tests.conftest import ROOT


class Clock:
    """Seconds that only a test moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def run(self, work, seconds, each=lambda: None):
        for _ in range(seconds):
            self.now += 1
            each()
            work.tick()


@pytest.fixture(autouse=True)
def no_threads(monkeypatch):
    """The tests tick themselves."""
    monkeypatch.setattr(progress._Ticker, "_run", lambda ticker: None)


@pytest.fixture
def in_json(monkeypatch):
    monkeypatch.setattr(plain_text, "_json_of", "prep write")


def test_without_a_terminal_there_is_a_whole_line_every_30_seconds(capsys):
    clock = Clock()
    bar = Bar("write", 1000, "file", clock=clock)
    clock.run(bar, 95, each=lambda: bar.update(2))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "\r" not in printed.err
    assert "\x1b" not in printed.err
    lines = printed.err.splitlines()
    assert [line.split(" of")[0] for line in lines] == ["write: 60", "write: 120", "write: 180"]
    assert lines[1].startswith("write: 120 of 1000 files (12%), 2.0 files/s, about 7 min to go, until ")
    assert re.search(r"until (\d{4}-\d\d-\d\d )?\d\d:\d\d$", lines[1])
    bar.close()


def test_a_rate_is_that_of_the_last_two_minutes(capsys):
    clock = Clock()
    bar = Bar("read", None, "clip", clock=clock)
    clock.run(bar, 300, each=lambda: bar.update(9))
    clock.run(bar, 150, each=bar.update)
    assert capsys.readouterr().err.splitlines()[-1] == "read: 2850 clips, 1.0 clips/s"


def test_work_that_stands_still_says_so(capsys):
    clock = Clock()
    bar = Bar("embed", 10, "clip", clock=clock)
    bar.show("skipped 1: no_audio 1")
    clock.run(bar, 60)
    assert capsys.readouterr().err.splitlines()[-1] == (
        "embed: 0 of 10 clips (0%), none in 60 s, skipped 1: no_audio 1"
    )


def test_with_json_progress_is_an_object_a_line(capsys, in_json):
    clock = Clock()
    bar = Bar("write", 100, "file", done=40, clock=clock)
    bar.show("skipped 1: no_audio 1", skipped_by_reason={"no_audio": 1}, loss=float("nan"))
    clock.run(bar, 7, each=bar.update)
    bar.close()
    first, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {
        "event": "progress", "command": "prep write", "task": "write", "unit": "file", "done": 45, "total": 100,
        "per_second": 1.0, "seconds_left": 55.0, "skipped_by_reason": {"no_audio": 1}, "loss": None,
    }  # fmt: skip
    assert last["done"] == 47


def test_what_is_not_shown_says_nothing(capsys):
    assert list(track(range(3), "positives", 3, "block", shown=False)) == [0, 1, 2]
    printed = capsys.readouterr()
    assert printed.out + printed.err == ""


def test_a_stage_is_named_when_it_takes_long_and_then_every_30_seconds(capsys):
    clock = Clock()
    with Stages(clock=clock) as stages:
        stages.now("loading PyTorch")
        clock.run(stages, 4)
        stages.now("opening the index")
        clock.run(stages, 40)
        stages.now("")
        clock.run(stages, 100)
    assert capsys.readouterr().err.splitlines() == [
        "opening the index ... 5 s so far",
        "opening the index ... 35 s so far",
    ]


def test_a_stage_that_takes_long_is_an_object_with_json(capsys, in_json):
    clock = Clock()
    with Stages(clock=clock) as stages:
        stages.now("opening the index")
        clock.run(stages, 6)
    assert json.loads(capsys.readouterr().out) == {
        "event": "stage", "command": "prep write", "stage": "opening the index", "seconds": 5.0
    }  # fmt: skip


def test_a_run_that_ends_by_an_error_leaves_no_bar_behind():
    bar = Bar("avid", 10, "step")

    def fail():
        with Stages() as stages:
            stages.bar = bar
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert bar._ticker is None


ON_A_TERMINAL = """
import time
from avssl.files.plain_text import say
from avssl.files.progress import Bar
with Bar("write", 4, "file") as bar:
    for number in range(4):
        time.sleep(0.3)
        bar.update()
        say(f"line {number}")
"""


def test_on_a_terminal_a_bar_moves_at_every_step_without_color():
    main, terminal = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL], stdout=terminal, stderr=terminal, env=environment, close_fds=True
    )
    os.close(terminal)
    shown = io.BytesIO()
    while True:
        try:
            part = os.read(main, 4096)
        except OSError:  # the program has closed the terminal
            break
        if not part:
            break
        shown.write(part)
    assert process.wait(timeout=30) == 0
    os.close(main)
    text = shown.getvalue().decode()
    assert "4/4" in text
    assert {"1/4", "2/4", "3/4"} <= set(re.findall(r"\d/4", text))
    assert "line 2" in text
    assert not re.search(r"\x1b\[[0-9;]*m", text)  # colors


def test_the_clock_runs_on_while_nothing_is_done():
    """By a thread of its own."""
    ticks = []
    ticker = progress._Ticker.__new__(progress._Ticker)
    ticker._tick, ticker._is_over = lambda: ticks.append(time.monotonic()), progress.threading.Event()
    original, progress.TICK_SECONDS = progress.TICK_SECONDS, 0.01
    try:
        thread = progress.threading.Thread(target=RUN, args=(ticker,), daemon=True)
        thread.start()
        while len(ticks) < 3:
            time.sleep(0.01)
        ticker._is_over.set()
        thread.join(5)
    finally:
        progress.TICK_SECONDS = original
    assert not thread.is_alive()


RUN = progress._Ticker._run  # before the fixture replaces it
