"""CPU seconds of video2dataset's steps for a file. Run by prepare.py in a virtual environment that has video2dataset.

    python video2dataset_run.py FILE ROUNDS FPS SHORT_SIDE_PX RATE_HZ

Its steps for frame rate, resolution and audio run one after the other, as its worker calls them: each is an ffmpeg
command, and the video is encoded twice. Its other steps (reading lists, tar files) are left out. Prints one number per
round.
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path


def cpu_seconds():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def main():
    from video2dataset.subsamplers import AudioRateSubsampler, FrameSubsampler, ResolutionSubsampler

    path, rounds, fps, short_side_px, rate_hz = sys.argv[1], *map(int, sys.argv[2:])
    steps = FrameSubsampler(fps), ResolutionSubsampler(["scale"], height=short_side_px)
    audio_step = AudioRateSubsampler(rate_hz, "flac", 1)
    with tempfile.TemporaryDirectory() as folder:
        audio = Path(folder) / "audio.m4a"
        for _ in range(rounds):
            before = cpu_seconds()
            subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", path, "-vn", "-c", "copy", str(audio)], check=True)
            streams = {"video": [Path(path).read_bytes()], "audio": [audio.read_bytes()]}
            for step in (*steps, audio_step):
                streams, _, error = step(streams, None)
                if error is not None:
                    raise RuntimeError(error)
            print(cpu_seconds() - before, flush=True)


if __name__ == "__main__":
    main()
