"""`write`: the same bytes however it is run, stopped or divided; a bad file costs itself; failures can be retried."""

import errno
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import data_prep.write.run as write_shards_module
from avssl.files.whole import hashed_file
from avssl.processes.limits import Limits
from avssl.shards.format import dump_json
from avssl.shards.shard_set import ShardSet
from data_prep.__main__ import main
from data_prep.transcode.file import transcode
from data_prep.transcode.options import WriteOptions
from data_prep.write.job import Share
from data_prep.write.pack import make_shard, shard_tasks
from data_prep.write.run import write_shards
from tests.clips import OPTIONS, complaints, digest, make_clip, skips

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Eleven good clips of half a second, one file that is none, one that is listed and absent."""
    folder = tmp_path_factory.mktemp("write")
    for seed in range(11):
        make_clip(folder / "videos" / f"clip {seed}.mp4", seed, seconds=0.5)
    (folder / "videos" / "text.mp4").write_text("no video\n")
    names = [*(f"clip {seed}" for seed in range(11)), "text", "absent"]
    rows = [
        {"path": f"videos/{name}.mp4", "key": f"{name.replace(' ', '_')}_mp4", "labels": {}, "error": None}
        for name in names
    ]
    (folder / "corpus.jsonl").write_bytes(b"".join(dump_json(row) for row in rows))
    return folder / "corpus.jsonl"


@pytest.fixture(scope="module")
def written(manifest):
    """The shard folder of one undisturbed write."""
    folder = manifest.parent / "written"
    write_shards(manifest, folder, OPTIONS)
    assert complaints(folder) == []
    return folder


def write_command(manifest, out, *options):
    given = ["--short-side-px", "48", "--samples-per-shard", "3", "--num-workers", "2", *options]
    return [sys.executable, "-m", "data_prep", "write", str(manifest), "--out", str(out), *given]


def kill_and_continue(manifest, out, num_kills, seed):
    """Start the command, kill its whole group at a random moment, and again; then let it finish."""
    moments = random.Random(seed)
    took = None
    for _ in range(num_kills):
        began = time.monotonic()
        process = subprocess.Popen(
            write_command(manifest, out), cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        # The first run tells when work begins (imports take a while); then moments from there to the end of the work.
        while not (out / ".parts" / "options.json").exists() and time.monotonic() < began + 20:
            time.sleep(0.01)
        took = took or time.monotonic() - began
        time.sleep(max(0.0, took - (time.monotonic() - began)) + moments.uniform(0.0, 1.5))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.returncode in (-signal.SIGKILL, 0)
    write_shards(manifest, out, OPTIONS, num_workers=2)


@pytest.mark.slow
def test_five_kills_at_random_moments_leave_the_same_bytes(manifest, written, tmp_path):
    kill_and_continue(manifest, tmp_path / "shards", num_kills=5, seed=0)
    assert digest(tmp_path / "shards") == digest(written)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_fifty_kills_at_random_moments_leave_the_same_bytes(manifest, written, tmp_path, seed):
    kill_and_continue(manifest, tmp_path / "shards", num_kills=5, seed=seed)
    assert digest(tmp_path / "shards") == digest(written)


@pytest.mark.slow
def test_a_run_whose_parent_alone_was_killed_continues_to_the_same_bytes(manifest, written, tmp_path):
    """As the kernel's out-of-memory killer does it: the workers are not told, and the rerun comes at once."""
    out = tmp_path / "shards"
    process = subprocess.Popen(write_command(manifest, out), cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((out / ".parts").glob("part-*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert list((out / ".parts").glob("part-*.json"))  # it had finished some work
    write_shards(manifest, out, OPTIONS, num_workers=2)
    assert digest(out) == digest(written)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [2, 5])
def test_the_number_of_workers_does_not_change_the_bytes(manifest, written, tmp_path, num_workers):
    write_shards(manifest, tmp_path / "shards", OPTIONS, num_workers=num_workers)
    assert digest(tmp_path / "shards") == digest(written)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 7])
def test_shares_made_apart_and_finished_together_give_the_same_bytes(manifest, written, tmp_path, count):
    out = tmp_path / "shards"
    for number in reversed(range(count)):
        assert write_shards(manifest, out, OPTIONS, share=Share(number, count)) is None
        assert not (out / "index.json").exists()
    shards_of_shares = list(out.glob("shard-*.tar"))
    assert shards_of_shares  # the last share found all parts there and packed its own
    index = write_shards(manifest, out, OPTIONS)
    assert (index.num_listed, index.num_samples) == (13, 11)
    assert digest(out) == digest(written)


@pytest.mark.parametrize("text", ["8/8", "9/8", "1", "a/b", "0/0"])
def test_a_share_that_is_none_is_refused(text, manifest, tmp_path, capsys):
    assert main(["write", str(manifest), "--out", str(tmp_path / "shards"), "--part", text]) == 2
    assert "i/n with 0 <= i < n" in capsys.readouterr().err


def test_the_command_of_a_share_says_what_comes_next(manifest, tmp_path, capsys):
    command = write_command(manifest, tmp_path / "shards", "--part", "0/2")[3:]
    assert main(command) == 0
    assert "when all shares are, run the same command without --part" in capsys.readouterr().out


def test_two_writers_do_not_mix(manifest, tmp_path):
    out = tmp_path / "shards"
    (out / ".parts").mkdir(parents=True)
    with (out / ".parts" / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(ValueError, match="another process is writing here"):
            write_shards(manifest, out, OPTIONS)
        with (out / ".parts" / "lock-0-of-2").open("w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(ValueError, match="another process is writing here"):
                write_shards(manifest, out, OPTIONS, share=Share(0, 2))
        assert write_shards(manifest, out, OPTIONS, share=Share(1, 2)) is None  # another share may go on


# --- one file ---------------------------------------------------------------------------------------------------------


def misbehave(path, options, segment):
    """Stands for decoders that take the process with them, never come back, or eat all memory."""
    if "clip 5" in path:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "clip 6" in path:
        time.sleep(60)
    if "clip 7" in path:
        bytearray(1 << 30)
    if "clip 8" in path:
        raise IndexError("tuple index out of range")
    return transcode(path, options, segment)


def test_a_file_that_crashes_hangs_or_eats_memory_costs_itself_and_has_its_reason(manifest, tmp_path):
    out = tmp_path / "shards"
    limits = Limits(seconds=3.0, memory_bytes=512 << 20)
    index = write_shards(manifest, out, OPTIONS, num_workers=2, transcode=misbehave, limits=limits)
    assert index.num_samples == 7
    reasons = {key: record["reason"] for key, record in skips(out).items()}
    assert reasons == {
        "clip_5_mp4": "crashed", "clip_6_mp4": "timeout", "clip_7_mp4": "out_of_memory", "clip_8_mp4": "crashed",
        "text_mp4": "not_media", "absent_mp4": "missing_file",
    }  # fmt: skip
    assert "IndexError: tuple index out of range" in skips(out)["clip_8_mp4"]["message"]
    assert "clip 6.mp4" in skips(out)["clip_6_mp4"]["message"]
    assert complaints(out) == []


@pytest.mark.slow
def test_a_policy_that_says_error_ends_the_run_and_names_the_file(manifest, tmp_path, capsys):
    make_clip(manifest.parent / "mute.mp4", audio=None)
    mute = manifest.parent / "mute.jsonl"
    row = {"path": "mute.mp4", "key": "mute", "labels": {}, "error": None}
    mute.write_bytes(b"".join(manifest.read_bytes().splitlines(keepends=True)[:4]) + dump_json(row))
    assert main(write_command(mute, tmp_path / "shards", "--on-missing-audio", "error")[3:]) == 2
    assert "mute.mp4" in capsys.readouterr().err
    assert not (tmp_path / "shards" / "index.json").exists()
    assert main(write_command(mute, tmp_path / "other", "--on-missing-audio", "keep")[3:]) == 0
    assert ShardSet(tmp_path / "other").num_samples == 5


# --- retry ------------------------------------------------------------------------------------------------------------


def fail_on_some(path, options, segment):
    """Fails on three files, of different parts, as a network that is down does."""
    if any(f"clip {number}." in path for number in (1, 4, 9)):
        raise ValueError("not now")
    return transcode(path, options, segment)


@pytest.mark.slow
@pytest.mark.parametrize("is_index_lost", [False, True])
def test_retry_failed_gives_the_bytes_of_a_write_in_which_nothing_failed(manifest, written, tmp_path, is_index_lost):
    out = tmp_path / "shards"
    index = write_shards(manifest, out, OPTIONS, transcode=fail_on_some)
    assert index.num_samples == 8
    assert write_shards(manifest, out, OPTIONS).num_samples == 8  # without being asked nothing is tried again
    if is_index_lost:
        (out / "index.json").unlink()
    assert write_shards(manifest, out, OPTIONS, retry_failed=True).num_samples == 11
    assert digest(out) == digest(written)


@pytest.mark.slow
def test_retry_failed_keeps_what_was_written_and_reads_only_what_failed(manifest, tmp_path, monkeypatch):
    out = tmp_path / "shards"
    write_shards(manifest, out, OPTIONS, transcode=fail_on_some)
    before = digest(out)
    again = write_shards(manifest, out, OPTIONS, transcode=only_what_failed, retry_failed=True)
    assert again.num_samples == 8
    assert {name: value for name, value in digest(out).items() if name != "skipped.jsonl"} == {
        name: value for name, value in before.items() if name != "skipped.jsonl"
    }
    assert {record["message"].split("(")[-1] for key, record in skips(out).items() if key.startswith("clip")} == {
        "ValueError: still not)"
    }


def only_what_failed(path, options, segment):
    """Says so if it is asked for a file that had been written."""
    if "text" in path or "absent" in path:
        return transcode(path, options, segment)
    if not any(f"clip {number}." in path for number in (1, 4, 9)):
        raise SystemError(f"{path} was read again")
    raise ValueError("still not")


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", range(0, 12, 2))
def test_an_interrupted_retry_goes_on_to_the_same_bytes(manifest, written, tmp_path, monkeypatch, stop_at):
    """It stops before the nth change to the folder: while shards become parts, while files are read, while packing."""
    out = tmp_path / "shards"
    write_shards(manifest, out, OPTIONS, transcode=fail_on_some)
    changes = 0

    def counted(original):
        def change(*arguments):
            nonlocal changes
            changes += 1
            if changes > 3 * stop_at:
                raise KeyboardInterrupt
            return original(*arguments)

        return change

    folder = write_shards_module.OutputFolder
    with monkeypatch.context() as patched:
        for name in ("write_bytes", "whole_file", "remove"):
            patched.setattr(folder, name, counted(getattr(folder, name)))
        with pytest.raises(KeyboardInterrupt):
            write_shards(manifest, out, OPTIONS, retry_failed=True)
    if (out / "index.json").exists():  # nothing had been changed yet
        assert stop_at == 0
        write_shards(manifest, out, OPTIONS, retry_failed=True)
    else:
        write_shards(manifest, out, OPTIONS)
    assert digest(out) == digest(written)


@pytest.mark.slow
def test_failed_files_are_read_again_after_a_kill_while_parts_became_shards(manifest, written, tmp_path, monkeypatch):
    """The media of the first part lie in its shard alone by then."""
    out = tmp_path / "shards"

    def pack_one(job, counts):
        make_shard(next(shard_tasks(job.folder, counts)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(write_shards_module, "_pack", pack_one)
        with pytest.raises(KeyboardInterrupt):
            write_shards(manifest, out, OPTIONS, transcode=fail_on_some)
    assert write_shards(manifest, out, OPTIONS, retry_failed=True).num_samples == 11
    assert digest(out) == digest(written)


# --- the target -------------------------------------------------------------------------------------------------------


def test_a_part_that_was_damaged_is_not_packed(manifest, tmp_path, monkeypatch):
    out = tmp_path / "shards"
    original = write_shards_module._pack

    def damage_first(job, counts):
        path = next((out / ".parts").glob("part-*.bin"))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        return original(job, counts)

    monkeypatch.setattr(write_shards_module, "_pack", damage_first)
    with pytest.raises(ValueError, match="was changed or damaged since it was written"):
        write_shards(manifest, out, OPTIONS)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip("a file system can only be mounted by the administrator")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_said_clearly_and_the_run_goes_on_from_there(manifest, written, small_disk, capsys):
    command = write_command(manifest, small_disk / "shards")[3:]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "is full" in error
    assert "run the same command again" in error
    finished = list((small_disk / "shards" / ".parts").glob("part-*.json"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    before = {path: path.stat().st_mtime_ns for path in finished}
    if before:
        assert main(write_command(manifest, small_disk / "shards", "--part", "0/1000")[3:]) == 0
        assert {path: path.stat().st_mtime_ns for path in finished} == before
    assert main(command) == 0
    assert digest(small_disk / "shards") == digest(written)


@pytest.mark.slow
def test_a_write_error_anywhere_leaves_a_state_to_go_on_from(manifest, written, tmp_path, monkeypatch):
    out, messages = tmp_path / "shards", set()
    calls = 0

    def full(descriptor):
        nonlocal calls
        calls += 1
        if calls % 7 == 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for _ in range(30):
        try:
            write_shards(manifest, out, OPTIONS)
            break
        except OSError as error:
            messages.add(str(error))
    assert all("full" in message or "No space" in message for message in messages)
    assert digest(out) == digest(written)


def test_a_folder_that_cannot_be_made_is_said_clearly(manifest, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(write_command(manifest, tmp_path / "file" / "shards")[3:]) == 1
    assert "a file lies where a folder is needed" in capsys.readouterr().err


def test_two_writers_of_one_file_at_once_do_not_share_a_temporary_name(tmp_path):
    with hashed_file(tmp_path / "file") as first, hashed_file(tmp_path / "file") as second:
        assert len(list(tmp_path.glob("*.tmp"))) == 2
        first.write(b"first")
        second.write(b"second")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"first"  # it ends last


def test_segments_of_one_file_become_samples_of_their_own(manifest, tmp_path):
    rows = [json.loads(line) for line in manifest.read_bytes().splitlines() if b"clip 3" in line]
    segments = [(0.0, 0.25), (0.25, 0.5), (5.0, 6.0)]
    lines = [dump_json(rows[0] | {"key": f"part{n}", "segment": list(one)}) for n, one in enumerate(segments)]
    (manifest.parent / "segments.jsonl").write_bytes(b"".join(lines))
    index = write_shards(manifest.parent / "segments.jsonl", tmp_path / "shards", WriteOptions(short_side_px=48))
    assert (index.num_samples, index.skipped_by_reason) == (2, {"too_short": 1})
    shards = ShardSet(tmp_path / "shards")
    for position in range(2):
        info = shards.read(position).info
        assert info.duration_seconds == pytest.approx(0.25, abs=0.07)
        assert info.source["segment"] in ([0.0, 0.25], [0.25, 0.5])
