"""Temporary names: a killed process's are gone after the next run, a living one's stay."""

import subprocess
import sys
import time

import pytest

from avssl.files.scratch import LOCK_NAME, remove_leftovers, scratch_folder
from avssl.files.whole import whole_file, write_whole
from tests.conftest import ROOT

HOLD = """
import sys, time
from pathlib import Path
from avssl.files.scratch import scratch_folder
from avssl.files.whole import whole_file
out = Path(sys.argv[1])
with scratch_folder(out.parent, out.name) as folder, whole_file(out) as file:
    (folder / "rows").write_text("x")
    file.write(b"half of a very long content")
    file.flush()
    print("ready", flush=True)
    time.sleep(60)
"""


class Writer:
    """A process that is in the middle of writing `out`."""

    def __init__(self, out):
        self.process = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, cwd=ROOT)
        assert self.process.stdout.readline() == b"ready\n"

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def hidden(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_what_a_killed_process_left_goes_with_the_next_run_and_a_living_ones_stays(tmp_path):
    out = tmp_path / "corpus.jsonl"
    dead, other = Writer(out), Writer(tmp_path / "other.jsonl")
    dead.kill()
    left = hidden(tmp_path)
    assert len(left) == 4
    with scratch_folder(tmp_path, "other.jsonl"):  # another output: neither the dead one's nor the living one's
        assert len(hidden(tmp_path)) == 5
    assert hidden(tmp_path) == left
    with scratch_folder(tmp_path, out.name) as folder, whole_file(out) as file:
        assert folder.is_dir()
        file.write(b"short")
    assert out.read_bytes() == b"short"
    assert hidden(tmp_path) == [name for name in left if name.startswith(".other.jsonl.")]
    other.kill()
    remove_leftovers(tmp_path, ".*")
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_a_second_run_of_the_same_output_takes_nothing_from_the_first(tmp_path):
    out = tmp_path / "corpus.jsonl"
    first = Writer(out)
    try:
        before = hidden(tmp_path)
        remove_leftovers(tmp_path, r"corpus\.jsonl|out")
        with scratch_folder(tmp_path, out.name):
            write_whole(out, b"second")
        assert out.read_bytes() == b"second"
        assert hidden(tmp_path) == before
    finally:
        first.kill()


def test_a_process_that_was_killed_before_it_had_its_lock_leaves_nothing_either(tmp_path):
    (tmp_path / ".corpus.jsonl.abcdefgh.scratch").mkdir()
    with scratch_folder(tmp_path, "corpus.jsonl"):
        assert len(hidden(tmp_path)) == 1
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("name", [".corpus.jsonl", ".corpus.jsonl.notes", ".corpus.jsonl.scratch", "corpus.jsonl.tmp"])
def test_files_of_the_user_are_no_leftovers(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with scratch_folder(tmp_path, "corpus.jsonl"):
        write_whole(tmp_path / "corpus.jsonl", b"")
    remove_leftovers(tmp_path, r"corpus\.jsonl|out")
    assert (tmp_path / name).read_text() == "mine"


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".out.tmp").symlink_to(tmp_path / "mine")
    write_whole(tmp_path / "out", b"content")
    assert ((tmp_path / "out").read_bytes(), (tmp_path / "mine").read_text()) == (b"content", "mine")
    assert not (tmp_path / "out").is_symlink()


def test_a_folder_that_is_taken_for_left_behind_before_it_is_locked_is_made_anew(tmp_path, monkeypatch):
    """The worst moment: somebody removes it between its making and its lock."""
    from avssl.files import scratch

    real, taken = scratch.lock_file, []

    def late(path, **options):
        if path.name == LOCK_NAME and not taken and not options:
            taken.append(path.parent)
            path.parent.rmdir()
        return real(path, **options)

    monkeypatch.setattr(scratch, "lock_file", late)
    with scratch_folder(tmp_path, "x") as folder:
        assert folder.is_dir()
        assert folder != taken[0]


def test_writers_that_are_killed_at_any_moment_never_mix_their_content(tmp_path):
    """Several writers of one file, killed and started again: it always holds the whole content of one of them."""
    write = (
        "import sys\nfrom pathlib import Path\nfrom avssl.files.whole import write_whole\n"
        "while True:\n    write_whole(Path(sys.argv[1]), sys.argv[2] * 100_000)"
    )
    out = tmp_path / "out"
    processes = [subprocess.Popen([sys.executable, "-c", write, str(out), letter], cwd=ROOT) for letter in "abc"]
    while not out.exists():
        time.sleep(0.01)
    for process in processes:
        for _ in range(20):
            content = out.read_bytes()
            assert content == content[:1] * 100_000
        process.kill()
        process.wait()
    write_whole(out, b"last")
    remove_leftovers(tmp_path, r"corpus\.jsonl|out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
