"""`avssl doctor` finds what is wrong with a machine, and says what to do."""

import importlib.metadata

import pytest

from avssl import doctor
from avssl.media.ffmpeg import missing_codecs
from tests.conftest import run_python


@pytest.fixture
def examined(monkeypatch, capsys):
    """A function: these checks alone -> (status, lines)."""

    def examine(*checks):
        monkeypatch.setattr(doctor, "CHECKS", checks)
        status = doctor.examine()
        return status, capsys.readouterr().out.splitlines()

    return examine


def test_this_machine_decodes_has_its_codecs_and_room(examined):
    status, lines = examined(doctor.codecs, doctor.machine, doctor.clip, doctor.accelerators)
    assert status == 0, lines
    assert lines[-1] == "nothing is wrong"
    assert "ok     a clip that was encoded here is decoded right" in lines


@pytest.mark.slow
def test_two_processes_add_up(examined):
    assert examined(doctor.processes) == (0, ["ok     two processes compute together", "nothing is wrong"])


def test_a_check_that_breaks_is_wrong_and_the_others_go_on(examined):
    def broken_library():
        raise OSError("libsomething.so: cannot open shared object file")

    status, lines = examined(broken_library, doctor.codecs)
    assert status == 1
    assert lines == [
        "WRONG  broken library: OSError: libsomething.so: cannot open shared object file",
        "ok     FFmpeg has all codecs that are needed",
        "1 wrong",
    ]


def test_versions_that_do_not_fit_and_missing_packages_are_named_with_the_command(examined, monkeypatch):
    requires = ["numpy>=1000", "no-such-package>=2", "torch>=1", "not-asked-for; extra == 'dev'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requires)
    status, lines = examined(doctor.versions)
    assert status == 1
    numpy = importlib.metadata.version("numpy")
    assert f"WRONG  numpy is {numpy}: pip install 'numpy>=1000'" in lines
    assert "WRONG  no-such-package is missing: pip install 'no-such-package>=2'" in lines
    assert not any("not-asked-for" in line or "WRONG  torch" in line for line in lines)


def test_codecs_that_ffmpeg_lacks_are_named(examined, monkeypatch):
    assert missing_codecs(["h264", "nonsense"], ["libx264", "h263x"]) == ["nonsense", "h263x"]
    monkeypatch.setattr(doctor, "DECODERS", ("h264", "nonsense"))
    status, lines = examined(doctor.codecs)
    assert status == 1
    assert lines[0].startswith("WRONG  FFmpeg lacks nonsense: use PyAV's wheel")


def test_little_memory_and_a_full_disk_are_wrong(examined, monkeypatch):
    monkeypatch.setattr(doctor, "SMALL_DISK_BYTES", 1 << 60)
    monkeypatch.setattr(doctor, "SMALL_MEMORY_BYTES", 1 << 60)
    status, lines = examined(doctor.machine)
    assert status == 1
    assert sum(line.startswith("WRONG") for line in lines) == 2
    assert any("use another folder" in line for line in lines)


def test_a_clip_that_comes_back_otherwise_is_wrong(examined, monkeypatch):
    import torch

    from avssl.media import decode

    monkeypatch.setattr(decode, "read_video", lambda path, times: torch.zeros(len(times), 3, 48, 64))
    status, lines = examined(doctor.clip)
    assert status == 1
    assert lines[0] == "WRONG  a clip that was encoded here is decoded wrong: install av again"


@pytest.mark.slow
def test_the_command_examines_everything():
    assert run_python("-m", "avssl", "doctor").stdout.endswith("nothing is wrong\n")
