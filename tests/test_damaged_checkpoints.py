"""Checkpoints that are not as they were written: named, never used, and the newest whole one is used in their place."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from avssl.checkpoint import DamagedCheckpointError, checkpoints, save
from avssl.checkpoint import steps as module
from avssl.checkpoint.checksums import _content, damage
from avssl.checkpoint.steps import newest_whole
from avssl.types import Progress
from tests.conftest import run_python

FILES = ("model.safetensors", "optimizer.bin", "random_states_0.pkl", "random_states_1.pkl", "scaler.pt")
OURS = ("view_statistics.safetensors", "progress.json", "checksums.json")


class Writer:
    """Stands for an Accelerator of two processes; stop_after: files after which the process is killed."""

    is_main_process = True

    def __init__(self, stop_after=None):
        self.stop_after = stop_after

    def register_save_state_pre_hook(self, hook):
        return SimpleNamespace(remove=lambda: None)

    def save_state(self, folder):
        for number, name in enumerate(FILES):
            if number == self.stop_after:
                raise KeyboardInterrupt
            Path(folder, name).write_bytes(f"{folder} {name}".encode() * 100)


def written(run, *steps, writer=None, keep=9):
    """The checkpoints of these steps, written."""
    return [
        save(writer or Writer(), run, nn.BatchNorm1d(2), Progress(total_steps=99, step=step), {"seed": 0}, keep)
        for step in steps
    ]


def flip(path, byte, bit=0):
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "first bit": lambda path: flip(path, 0),
    "middle bit": lambda path: flip(path, path.stat().st_size // 2, 3),
    "last bit": lambda path: flip(path, -1, 7),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


def contents(run):
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_the_newest_checkpoint_is_taken_when_it_is_whole(tmp_path, capsys):
    assert newest_whole(tmp_path) is None
    *_, newest = written(tmp_path, 5, 10)
    assert sorted(path.name for path in newest.iterdir()) == sorted([*FILES, *OURS])
    assert newest_whole(tmp_path) == newest_whole(tmp_path, strict=True) == newest
    assert not capsys.readouterr().err


@pytest.mark.quick(6)
@pytest.mark.parametrize("name", [*FILES, *OURS])
@pytest.mark.parametrize("kind", DAMAGE)
def test_any_damage_is_named_and_the_one_before_is_used(name, kind, tmp_path, capsys):
    before, newest = written(tmp_path, 5, 10)
    DAMAGE[kind](newest / name)
    as_found = contents(tmp_path)
    with pytest.raises(DamagedCheckpointError, match=rf"step_000010 is damaged: {name}.*resume=strict takes no older"):
        newest_whole(tmp_path, strict=True)
    assert contents(tmp_path) == as_found
    assert newest_whole(tmp_path) == before
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {newest} is damaged: {name}")
    assert said.endswith(f"going on from {before}, the newest whole one\n")
    assert checkpoints(tmp_path) == [before]
    assert (tmp_path / "damaged_step_000010").is_dir()
    assert newest_whole(tmp_path, strict=True) == before  # it stays aside


def test_a_checkpoint_of_an_earlier_version_is_taken_as_it_is_and_one_of_this_version_is_not(tmp_path):
    """Earlier ones have no checksums, and the statistics of the views beside them."""
    (newest,) = written(tmp_path, 5)
    (newest / "checksums.json").unlink()
    (newest / "view_statistics.safetensors").rename(tmp_path / "view_statistics.safetensors")
    assert newest_whole(tmp_path, strict=True) == newest
    *_, newest = written(tmp_path, 10)
    (newest / "checksums.json").unlink()
    with pytest.raises(DamagedCheckpointError, match=r"step_000010 is damaged: checksums\.json"):
        newest_whole(tmp_path, strict=True)


@pytest.mark.slow
def test_every_bit_of_the_checksums_counts(tmp_path):
    """Spaces, names and numbers: json has many ways to say the same, and a name could come twice."""
    (newest,) = written(tmp_path, 5)
    path = newest / "checksums.json"
    whole = path.read_bytes()
    for position in range(0, 8 * len(whole), 3):  # three and eight share no factor: every bit of a byte has its turn
        changed = bytearray(whole)
        changed[position // 8] ^= 1 << position % 8
        path.write_bytes(changed)
        assert damage(newest).startswith("checksums.json"), position
    path.write_bytes(whole)
    assert not damage(newest)


def test_checksums_of_other_files_or_of_nothing_do_not_count(tmp_path):
    (newest,) = written(tmp_path, 5)
    for records in ({}, {"model.safetensors": 1}, {"../../x": {"bytes": 1}}, {"a\0": {}}, {"": {}}, {"a" * 300: None}):
        (newest / "checksums.json").write_bytes(_content(records))
        assert damage(newest)


def test_several_damaged_ones_are_passed_over_and_each_is_named(tmp_path, capsys):
    first, second, third = written(tmp_path, 5, 10, 15)
    (third / "optimizer.bin").unlink()
    flip(second / "random_states_1.pkl", 50)
    assert newest_whole(tmp_path) == first
    said = capsys.readouterr().err
    assert f"{third} is damaged: optimizer.bin is missing" in said
    assert f"{second} is damaged: random_states_1.pkl has other bytes than were written" in said


def test_without_a_whole_one_nothing_is_begun_anew_and_nothing_is_moved(tmp_path):
    for path in written(tmp_path, 5, 10):
        (path / "model.safetensors").write_bytes(b"")
    as_found = contents(tmp_path)
    with pytest.raises(DamagedCheckpointError, match=r"has 0 bytes instead of \d+.*No whole checkpoint"):
        newest_whole(tmp_path)
    assert contents(tmp_path) == as_found


def test_a_damaged_one_takes_no_place_among_those_that_are_kept(tmp_path):
    """Else the whole one before it would be the first to go."""
    before, newest = written(tmp_path, 5, 10)
    flip(newest / "model.safetensors", 7)
    newest_whole(tmp_path)
    (after,) = written(tmp_path, 7, keep=2)
    assert checkpoints(tmp_path) == [before, after]


@pytest.mark.parametrize("number_of_files", range(len(FILES)))
def test_a_kill_between_two_files_leaves_the_checkpoint_before(number_of_files, tmp_path):
    (before,) = written(tmp_path, 5)
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path, 10, writer=Writer(stop_after=number_of_files))
    assert newest_whole(tmp_path, strict=True) == before
    (after,) = written(tmp_path, 10)
    assert newest_whole(tmp_path, strict=True) == after
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000005", "step_000010"]


def test_a_kill_before_anything_is_forced_to_the_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    """At every such place in turn; the last one of all is after the new checkpoint has its name."""
    written(tmp_path, 5)
    force, left = os.fsync, 0

    def stop_at_last(descriptor):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        force(descriptor)

    monkeypatch.setattr(os, "fsync", stop_at_last)
    found = []
    for place in range(99):
        left = place
        try:
            written(tmp_path, 10)
        except KeyboardInterrupt:
            found.append(newest_whole(tmp_path, strict=True).name)
        else:
            break
    assert len(found) >= len(FILES) + len(OURS)
    assert found == ["step_000005"] * (len(found) - 1) + ["step_000010"]


def test_every_rank_takes_what_the_first_one_found(tmp_path, monkeypatch):
    """A rank that looked for itself would see the folders before or after they were renamed."""
    monkeypatch.setattr(module, "rank", lambda: 1)
    monkeypatch.setattr(module, "broadcast_object", lambda mine: ("runs/a/step_000005", ""))
    assert newest_whole(tmp_path).name == "step_000005"
    monkeypatch.setattr(module, "broadcast_object", lambda mine: ("", "step_000010 is damaged"))
    with pytest.raises(DamagedCheckpointError, match="step_000010 is damaged"):
        newest_whole(tmp_path)


@pytest.mark.slow
def test_a_run_whose_newest_checkpoint_is_damaged_ends_as_the_uninterrupted_one(shards):
    """Each file once, each in another way; losses and weights bit for bit. The long check has all of them."""
    process = run_python(
        "-m", "tests.soak.training_storm", "--shards", shards["train"], "--kinds", "1", "--rounds", "0"
    )
    assert json.loads(process.stdout.splitlines()[-1])["cases"] == 6
