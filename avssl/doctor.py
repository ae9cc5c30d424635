"""`avssl doctor`: whether this machine can do what the program needs, a line for each thing.

`python -m avssl.doctor RANKS` is what it starts by torchrun: processes that add up a number.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from avssl.files.plain_text import emit, say

SMALL_DISK_BYTES, SMALL_MEMORY_BYTES = 5 << 30, 4 << 30
RANKS_SECONDS = 180
DECODERS = ("h264", "hevc", "vp9", "av1", "mpeg4", "aac", "mp3", "opus", "vorbis", "flac", "pcm_s16le")
ENCODERS = ("libx264", "flac", "aac")
Finding = tuple[bool, str]  # whether all is well, and a line


def examine() -> int:
    """Print a line per finding; exit status 1 if anything is wrong, otherwise 0."""
    wrong = 0
    for check in CHECKS:
        try:
            findings = list(check())
        except Exception as error:  # a broken library is what this command looks for
            findings = [(False, f"{check.__name__.replace('_', ' ')}: {type(error).__name__}: {error}")]
        for is_well, line in findings:
            say(f"{'ok   ' if is_well else 'WRONG'}  {line}")
            emit("finding", is_well=is_well, text=line)
            wrong += not is_well
    emit("result", num_wrong=wrong)
    say(f"{wrong} wrong" if wrong else "nothing is wrong")
    return int(wrong > 0)


def versions() -> Iterator[Finding]:
    """Python, and what the package requires against what is installed."""
    from packaging.requirements import Requirement

    yield True, f"Python {platform.python_version()}, {platform.platform()}"
    installed, problems = [], []
    for text in importlib.metadata.requires("avssl") or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is missing: pip install '{requirement}'")
            continue
        installed.append(f"{requirement.name} {version}")
        if not requirement.specifier.contains(version.partition("+")[0], prereleases=True):
            problems.append(f"{requirement.name} is {version}: pip install '{requirement}'")
    yield True, ", ".join(installed)
    for problem in problems:
        yield False, problem


def codecs() -> Iterator[Finding]:
    """FFmpeg's decoders and encoders that the program uses."""
    from avssl.media.ffmpeg import missing_codecs

    missing = missing_codecs(DECODERS, ENCODERS)
    lost = f"lacks {', '.join(missing)}: use PyAV's wheel (pip install --force-reinstall --only-binary av av)"
    yield not missing, f"FFmpeg {lost if missing else 'has all codecs that are needed'}"


def machine() -> Iterator[Finding]:
    """Cores, memory, disk and shared memory."""
    from avssl.processes.limits import default_num_workers

    yield True, f"{default_num_workers()} cores for this process"
    memory = Path("/proc/meminfo")
    if memory.is_file():
        facts = dict(line.split(":", 1) for line in memory.read_text(encoding="ascii").splitlines())
        available = int(facts["MemAvailable"].split()[0]) << 10
        advice = "" if available >= SMALL_MEMORY_BYTES else "; training needs a few GiB: end other programs"
        yield not advice, f"{available / 2**30:.1f} GiB of memory available{advice}"
    free = shutil.disk_usage(".").free
    advice = "" if free >= SMALL_DISK_BYTES else "; shards and checkpoints need more: use another folder"
    yield not advice, f"{free / 2**30:.1f} GiB free in {Path.cwd()}{advice}"
    yield os.access(".", os.W_OK), f"files can {'' if os.access('.', os.W_OK) else 'not '}be written in {Path.cwd()}"


def clip() -> Iterator[Finding]:
    """A clip of a flash and a tone is encoded and decoded, and is the same."""
    import numpy as np

    from avssl.media.decode import read_audio, read_video
    from data_prep.transcode.encode import write_media

    frames = [np.full((48, 64, 3), 255 if number == 8 else 0, np.uint8) for number in range(16)]
    tone = np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000, dtype=np.float32)[None] * 0.5
    with TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_media(path, video=frames, video_fps=16, audio=tone, audio_rate_hz=24_000)
        brightness = read_video(path, [number / 16 for number in range(16)]).float().mean(dim=(1, 2, 3))
        loudness = float(read_audio(path, 0.25, 12_000, 24_000).abs().max())
    is_right = int(brightness.argmax()) == 8 and 0.4 < loudness < 0.6
    yield is_right, f"a clip that was encoded here is decoded {'right' if is_right else 'wrong: install av again'}"


def accelerators() -> Iterator[Finding]:
    """GPUs and the precision that they have."""
    import torch

    if torch.backends.mps.is_available():
        yield True, "an Apple GPU, which has no float64: runs stay on the CPU"
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        precision = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        yield True, f"GPU {number}: {facts.name}, {facts.total_memory / 2**30:.0f} GiB, {precision}"
    if not torch.cuda.device_count():
        driver = shutil.which("nvidia-smi")
        advice = f"PyTorch {torch.__version__} cannot use it: install the build for its driver's CUDA version"
        yield not driver, f"a GPU is there, but {advice}" if driver else "no GPU: runs stay on the CPU, in fp32"


def processes() -> Iterator[Finding]:
    """Two processes of torchrun that add a number each."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "avssl.doctor", "RANKS"]
    done = subprocess.run(
        [sys.executable, *launch], capture_output=True, text=True, timeout=RANKS_SECONDS, check=False,
        env={"OMP_NUM_THREADS": "1"} | os.environ,
    )  # fmt: skip
    reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
    yield (
        not done.returncode,
        f"two processes {'compute together' if not done.returncode else 'cannot compute together: ' + reason[0]}",
    )


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (versions, codecs, machine, clip, accelerators, processes)


def add_up() -> None:
    """What each of the two processes does: NCCL where each has a GPU, otherwise gloo."""
    import torch
    from accelerate import PartialState

    from avssl import distributed

    state = PartialState(cpu=torch.cuda.device_count() < 2)
    total = distributed.all_sum(torch.tensor([1.0 + distributed.rank()], device=state.device))
    state.destroy_process_group()
    sys.exit(0 if total.item() == 3 else f"the sum of 1 and 2 is {total.item()}")


if __name__ == "__main__" and sys.argv[1:] == ["RANKS"]:
    add_up()
