"""Decodes the loader's clips by torchcodec, in an environment and a process of its own; for benchmarks/loader.py.

torchcodec needs FFmpeg's shared libraries, from the system or from .cache/torchcodec/ffmpeg (unpacked packages).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".cache" / "torchcodec"
NUM_FRAMES, FPS, AUDIO_SECONDS = 8, 16, 2.0


class TorchCodec:
    """Decodes clips of samples, given as (bytes of mp4, bytes of FLAC), in a process that gets requests by a pipe."""

    def __init__(self, samples: list[tuple[bytes, bytes]]) -> None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        from benchmarks.environments import beside_project  # not in the process that has torchcodec

        python = beside_project(FOLDER, "torchcodec")
        for number, (video, audio) in enumerate(samples):
            (FOLDER / f"{number}.mp4").write_bytes(video)
            (FOLDER / f"{number}.flac").write_bytes(audio)
        libraries = [str(path.parent) for path in (FOLDER / "ffmpeg").rglob("libavcodec.so.*")]
        paths = os.pathsep.join([*libraries, os.environ.get("LD_LIBRARY_PATH", "")])
        self._process = subprocess.Popen(
            [str(python), str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"LD_LIBRARY_PATH": paths, "OMP_NUM_THREADS": "1"},
        )
        self.version = str(self._answer())

    def decode(self, clips: list[tuple[int, float, float]]) -> float:
        """CPU seconds of decoding 8 frames and 2 s of audio of each (sample, start of video, start of audio)."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(clips) + "\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("torchcodec's process ended; see its message above")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


def serve() -> None:
    """What the process does: it prints the version, then the CPU seconds of each request."""
    import torch
    import torchcodec
    from torchcodec.decoders import AudioDecoder, VideoDecoder

    torch.set_num_threads(1)
    paths = sorted(FOLDER.glob("*.mp4"), key=lambda path: int(path.stem))
    media = [(path.read_bytes(), path.with_suffix(".flac").read_bytes()) for path in paths]
    print(json.dumps(torchcodec.__version__), flush=True)
    for line in sys.stdin:
        before = time.process_time()
        for index, video_start, audio_start in json.loads(line):
            video, audio = media[index]
            # One thread and no scan of the file beforehand: its fastest settings that still find these frames.
            decoder = VideoDecoder(video, num_ffmpeg_threads=1, seek_mode="approximate", dimension_order="NHWC")
            times = [video_start + (k + 0.5) / FPS for k in range(NUM_FRAMES)]
            frames = decoder.get_frames_played_at(times).data
            waveform = AudioDecoder(audio).get_samples_played_in_range(audio_start, audio_start + AUDIO_SECONDS).data
            assert len(frames) == NUM_FRAMES
            assert waveform.shape[1] > 0
        print(json.dumps(time.process_time() - before), flush=True)


if __name__ == "__main__":
    serve()
