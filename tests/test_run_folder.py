"""Two runs never write to one folder at once."""

import errno
import fcntl
from functools import partial

import pytest

from avssl.files import locks
from avssl.files.locks import LockedError, locked
from avssl.train import run_folder
from avssl.train.run_folder import hold_run
from tests.conftest import run_python
from tests.test_pretrain import arguments_for


@pytest.fixture(autouse=True)
def let_go():
    yield
    run_folder._held.close()


def test_a_folder_is_held_until_its_run_ends(tmp_path, monkeypatch):
    run = tmp_path / "runs" / "run"
    hold_run(run)
    with pytest.raises(LockedError), locked(run / ".lock", wait_seconds=0):
        pass
    run_folder._held.close()
    monkeypatch.setattr(run_folder, "WAIT_SECONDS", 0.0)
    with locked(run / ".lock"), pytest.raises(LockedError, match=f"{run}: another run is at work in this folder"):
        hold_run(run)
    hold_run(run)


def test_a_run_that_is_ending_is_waited_for(tmp_path, monkeypatch):
    """The other one lets go while this one waits for the next look."""
    other = locked(tmp_path / ".lock")
    other.__enter__()
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: other.__exit__(None, None, None))
    hold_run(tmp_path)


@pytest.mark.slow
def test_a_second_run_in_a_folder_ends_with_one_line(shards, tmp_path):
    """Slow, for the second one waits some time for the first."""
    run = tmp_path / "run"
    run.mkdir()
    with locked(run / ".lock"):
        process = run_python(*arguments_for("avid", shards, run, "steps=1"), check=False)
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1] == (
        f"error: {run}: another run is at work in this folder; wait for it, end it, or name another run"
    )
    assert "Traceback" not in process.stderr
    assert [path.name for path in run.iterdir()] == [".lock"]


def test_shared_holders_are_together_and_alone_is_alone(tmp_path):
    path = tmp_path / "lock"
    alone = partial(locked, path, wait_seconds=0)
    with locked(path, shared=True), alone(shared=True), pytest.raises(LockedError, match="another process"), alone():
        pass
    with alone(), pytest.raises(LockedError, match="it is mine"), alone(shared=True, busy="it is mine"):
        pass


@pytest.mark.parametrize("number", ["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def test_a_file_system_without_locks_is_said_and_trained_on(number, tmp_path, monkeypatch, capsys):
    def refuse(descriptor, kind):
        raise OSError(getattr(errno, number), "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    hold_run(tmp_path)
    assert "no locks on this file system" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        hold_run(tmp_path / "file" / "run")
