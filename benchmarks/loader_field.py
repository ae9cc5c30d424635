"""This program's loader among others: clips per second and core, with workers by the clock, memory, first batch.

    python benchmarks/loader_field.py [--shards FOLDER] [--clips 48] [--rounds 7] [--methods ours,spdl] [--python P]

Each method runs in a process of its own, which gets requests and takes turns with the others. All load the same clips
of the same bytes: 8 frames at 16 per second, cropped to the same boxes and resized to 224 px by the same function, and
2 s of audio, drawn as AVID draws them; before anything is measured, frames and audio are compared with ours. Each
method has the settings that its documentation recommends for this: one thread a decoder, no scan of the file, workers.

ours         from the shard file; with workers the batches come as the training process gets them
torchcodec   VideoDecoder(seek_mode="approximate") and AudioDecoder, in PyTorch's DataLoader
spdl         spdl.io, demuxing from the keyframe on; with workers its own pipeline of threads
decord       decord2's VideoReader, in PyTorch's DataLoader; it reads no FLAC from memory: frames alone
webdataset   the tar read as a stream, decoded by torchcodec, in PyTorch's DataLoader
bare         the shortest program for PyAV, in PyTorch's DataLoader

CPU time is that of the process (in one process) and of it and all its workers (with workers). The packages are
installed below .cache, or lie in the environment of --python. torchcodec needs the system's FFmpeg.
"""

# ruff: noqa: TID251 - others' libraries are what is compared with
from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from avssl.shards.shard_set import Sample, ShardSet, spans
from avssl.transforms.config import ViewsConfig, clip_lengths
from avssl.transforms.crop import Box, crop_resize, random_resized_crop_box
from avssl.transforms.time_sampling import random_clip_times, snap_to_frames
from benchmarks.claims import ROOT, Claim, command_line, machine, median_ratio, publish

PACKAGES = ("torchcodec==0.17.0", "spdl==0.8.0", "spdl-core==0.8.0", "spdl-io==0.8.0", "decord2==3.4.0")
CONFIG = ViewsConfig()
NUM_FRAMES, FPS, SIZE_PX = CONFIG.video.num_frames, CONFIG.video.fps, CONFIG.video.size_px
RATE_HZ, AUDIO_SECONDS = CONFIG.audio.rate_hz, CONFIG.audio.seconds
NUM_SAMPLES = round(RATE_HZ * AUDIO_SECONDS)
BATCH = 12
WORKERS = 2

Place = tuple[int, float, float, tuple[int, int, int, int]]  # index, start of the video, of the audio, box of the crop
Loaded = tuple[torch.Tensor, torch.Tensor]  # frames uint8 (8, 3, 224, 224), waveform float32 (1, 48,000)
Decode = Callable[[Sample, float, float], Loaded]  # frames uint8 (8, 3, H, W), waveform


def places_of(shards: ShardSet, count: int, seed: int) -> list[Place]:
    """The clips of a round, drawn as AVID draws them, from samples that are long enough for all of each clip."""
    infos = [shards.read_info(index) for index in range(len(shards))]
    seconds = AUDIO_SECONDS + NUM_FRAMES / FPS
    long = [info.index for info in infos if min(info.num_frames / info.video_fps,
            info.num_audio_samples / info.audio_rate_hz) > seconds]  # fmt: skip
    places: list[Place] = []
    for number in range(count):
        index = long[number % len(long)]
        sample = shards.read(index)
        generator = np.random.default_rng((seed, number))
        video, audio = spans(sample)
        assert video is not None
        times = random_clip_times(video, audio, clip_lengths(CONFIG), generator)
        times = snap_to_frames(times, video, sample.info.video_fps)
        box = random_resized_crop_box(generator, *size_of(sample))
        last = sample.info.num_frames - NUM_FRAMES  # near the end AVID's clips repeat frames, and others' cannot
        start = min(float(times.video_start_seconds or 0) - video.start_seconds, last / sample.info.video_fps)
        sound = max(0.0, float(times.audio_start_seconds or 0) - sample.info.audio_start_seconds)
        places.append((index, start, round(sound * RATE_HZ) / RATE_HZ, tuple(box)))
    return places


def size_of(sample: Sample) -> tuple[int, int]:
    """Height and width of the frames."""
    from avssl.media.decode import probe

    info = probe(sample.video or b"").video
    assert info is not None
    return info.height, info.width


def frame_seconds(start: float) -> list[float]:
    """When the frames of a clip begin."""
    return [start + k / FPS for k in range(NUM_FRAMES)]


# --- methods: what decodes a clip ------------------------------------------------------------------------------------


def ours() -> Decode:
    from avssl.media.decode import read_audio, read_video

    def decode(sample: Sample, start: float, sound: float) -> Loaded:
        assert sample.video is not None
        assert sample.audio is not None
        return read_video(sample.video, frame_seconds(start)), read_audio(sample.audio, sound, NUM_SAMPLES, RATE_HZ)

    return decode


def torchcodec() -> Decode:
    from torchcodec.decoders import AudioDecoder, VideoDecoder

    def decode(sample: Sample, start: float, sound: float) -> Loaded:
        # NHWC is the order of the decoder; the default makes a copy in another one.
        decoder = VideoDecoder(sample.video, num_ffmpeg_threads=1, seek_mode="approximate", dimension_order="NHWC")
        times = [seconds + 0.5 / FPS for seconds in frame_seconds(start)]
        frames = decoder.get_frames_played_at(times).data.permute(0, 3, 1, 2)
        audio = AudioDecoder(sample.audio).get_samples_played_in_range(sound, sound + AUDIO_SECONDS).data
        return frames, padded(audio)

    return decode


def spdl() -> Decode:
    import spdl.io

    def decode(sample: Sample, start: float, sound: float) -> Loaded:
        window = (start - 0.25 / FPS, start + (NUM_FRAMES - 0.25) / FPS)
        buffer = spdl.io.load_video(sample.video, window)
        frames = spdl.io.to_torch(buffer)
        audio = spdl.io.to_torch(spdl.io.load_audio(sample.audio, (sound, sound + AUDIO_SECONDS)))
        audio = audio.reshape(1, -1) if audio.shape[-1] == 1 else audio[:1]
        return frames[:NUM_FRAMES].permute(0, 3, 1, 2), padded(audio)

    return decode


def decord() -> Decode:
    import decord as library

    def decode(sample: Sample, start: float, sound: float) -> Loaded:
        reader = library.VideoReader(io.BytesIO(sample.video or b""), num_threads=1)
        first = round(start * FPS)
        frames = reader.get_batch(range(first, first + NUM_FRAMES)).asnumpy()
        return torch.from_numpy(frames).permute(0, 3, 1, 2), torch.zeros(1, NUM_SAMPLES)

    return decode


def bare() -> Decode:
    import av

    def decode(sample: Sample, start: float, sound: float) -> Loaded:
        frames: list[np.ndarray] = []
        with av.open(io.BytesIO(sample.video or b"")) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            container.seek(int(start / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if frame.time > start - 1e-3:
                    frames.append(frame.reformat(format="rgb24", threads=1).to_ndarray())
                    if len(frames) == NUM_FRAMES:
                        break
        blocks: list[np.ndarray] = []
        first = 0.0
        with av.open(io.BytesIO(sample.audio or b"")) as container:
            audio = container.streams.audio[0]
            container.seek(int(sound / audio.time_base), stream=audio)
            for block in container.decode(audio):
                first = block.time if not blocks else first
                blocks.append(block.to_ndarray())
                if block.time + block.samples / block.sample_rate >= sound + AUDIO_SECONDS:
                    break
        skip = round((sound - first) * RATE_HZ)
        waveform = torch.from_numpy(np.concatenate(blocks, axis=1)[:1, skip : skip + NUM_SAMPLES]).float() / 32768
        return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2), padded(waveform)

    return decode


def padded(waveform: torch.Tensor) -> torch.Tensor:
    """The waveform with zeros at its end."""
    waveform = waveform[:, :NUM_SAMPLES]
    return torch.nn.functional.pad(waveform, (0, NUM_SAMPLES - waveform.shape[1]))


METHODS: dict[str, Callable[[], Decode]] = {
    "ours": ours, "torchcodec": torchcodec, "spdl": spdl, "decord": decord, "webdataset": torchcodec, "bare": bare,
}  # fmt: skip


# --- loaders: what makes batches -------------------------------------------------------------------------------------


class Clips(torch.utils.data.Dataset[Any]):
    """Clips by number, for a DataLoader."""

    def __init__(self, folder: str, method: str, places: list[Place]) -> None:
        self.shards, self.method, self.places = ShardSet(folder), method, places
        self.decode: Decode | None = None

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> Loaded:
        return self.load(self.shards.read(self.places[number][0]), self.places[number])

    def load(self, sample: Sample, place: Place) -> Loaded:
        """A clip of a sample."""
        self.decode = self.decode or METHODS[self.method]()
        frames, waveform = self.decode(sample, place[1], place[2])
        return crop_resize(frames, Box(*place[3]), SIZE_PX), waveform


class Stream(torch.utils.data.IterableDataset[Any]):
    """The same clips from the tars as streams, as webdataset reads them; each sample once, with all of its clips."""

    def __init__(self, folder: str, places: list[Place]) -> None:
        self.folder, self.clips = folder, Clips(folder, "webdataset", places)

    def __iter__(self) -> Iterator[Loaded]:
        import webdataset

        from avssl.shards.format import SampleInfo

        by_index: dict[int, list[Place]] = {}
        for place in self.clips.places:
            by_index.setdefault(place[0], []).append(place)
        tars = sorted(str(path) for path in Path(self.folder).glob("*.tar"))
        worker = torch.utils.data.get_worker_info()
        for number, item in enumerate(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)):
            if worker is None or number % worker.num_workers == worker.id:
                info = SampleInfo.from_json(item["json"])
                sample = Sample(info, item["video.mp4"], item["audio.flac"])
                yield from (self.clips.load(sample, place) for place in by_index.get(info.index, ()))


def batches(folder: str, method: str, places: list[Place], workers: int) -> Iterator[Any]:
    """Batches of a method's clips. workers: 0 loads in this process."""
    options: dict[str, Any] = {"batch_size": BATCH, "num_workers": workers}
    if workers:
        options |= {"prefetch_factor": 4, "worker_init_fn": one_thread, "multiprocessing_context": "forkserver"}
    if method == "ours":
        yield from our_batches(folder, places, workers)
    elif method == "spdl" and workers:
        yield from spdl_pipeline(Clips(folder, method, places), workers)
    elif method == "webdataset":
        yield from torch.utils.data.DataLoader(Stream(folder, places), **options)
    else:
        yield from torch.utils.data.DataLoader(Clips(folder, method, places), **options)


def one_thread(worker: int) -> None:
    torch.set_num_threads(1)


class OurClips(Clips):
    """Clips as raw views, for our own batches in shared memory."""

    def __getitem__(self, number: int) -> Any:
        from avssl.transforms.raw_view import RawView

        frames, waveform = super().__getitem__(number)
        return self.places[number][0], {"video": RawView("video", frames), "audio": RawView("audio", waveform)}


def our_batches(folder: str, places: list[Place], workers: int) -> Iterator[Any]:
    """As data/loader.py sends and receives batches."""
    from avssl.data.batch import Collate
    from avssl.data.workers import start_worker
    from avssl.processes.worker_server import worker_context

    options: dict[str, Any] = {}
    if workers:
        options = {
            "prefetch_factor": 4, "worker_init_fn": start_worker, "multiprocessing_context": worker_context(),
        }  # fmt: skip
    clips = OurClips(folder, "ours", places)
    yield from torch.utils.data.DataLoader(
        clips, batch_size=BATCH, num_workers=workers, collate_fn=Collate(), **options
    )


def spdl_pipeline(clips: Clips, workers: int) -> Iterator[Any]:
    """SPDL's pipeline: clips are loaded by threads, and its libraries leave the interpreter's lock."""
    from spdl.pipeline import PipelineBuilder

    pipeline = (
        PipelineBuilder()
        .add_source(range(len(clips)))
        .pipe(clips.__getitem__, concurrency=workers, output_order="input")
        .aggregate(BATCH)
        .pipe(torch.utils.data.default_collate)
        .add_sink(4)
        .build(num_threads=workers)
    )
    with pipeline.auto_stop():
        yield from pipeline.get_iterator()


# --- the process of a method -----------------------------------------------------------------------------------------


def cpu_seconds_of_tree() -> float:
    """CPU seconds of this process and of all processes below it that live."""
    ticks, pids = 0, [os.getpid()]
    while pids:
        pid = pids.pop()
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        except FileNotFoundError:
            continue
        ticks += sum(map(int, fields[11:15]))  # its own, and those of children that have ended
    return ticks / os.sysconf("SC_CLK_TCK")


def serve(folder: str, method: str) -> None:
    """Answer requests: {"places": [...], "workers": n, "check": bool} -> seconds, memory, or the clips' facts."""
    from avssl.data.workers import keep_freed_memory

    torch.set_num_threads(1)
    if method == "ours":
        keep_freed_memory()
    for line in sys.stdin:
        request = json.loads(line)
        places = [(index, start, sound, tuple(box)) for index, start, sound, box in request["places"]]
        if request["check"]:
            decode = METHODS[method]()
            shards = ShardSet(folder)
            found = [decode(shards.read(place[0]), place[1], place[2]) for place in places]
            torch.save(found, request["check"])
            print(json.dumps({}), flush=True)
            continue
        clock = cpu_seconds_of_tree if request["workers"] else time.process_time
        cpu, wall, count = clock(), time.perf_counter(), 0
        used = taken = 0.0
        is_first = request["workers"] > 0
        for batch in batches(folder, method, places, request["workers"]):
            if is_first:  # the workers have started
                cpu, wall, is_first = clock(), time.perf_counter(), False
                continue
            count += BATCH
            used, taken = clock() - cpu, time.perf_counter() - wall
            del batch
        status = Path("/proc/self/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
        print(json.dumps({"cpu": used / max(1, count), "wall": taken / max(1, count), "mib": peak}), flush=True)


class Peer:
    """The process of a method."""

    def __init__(self, python: str, folder: str, method: str) -> None:
        self.begun = time.perf_counter()
        command = [python, str(Path(__file__).resolve()), "--serve", method, "--shards", folder]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, places: list[Place], workers: int = 0, check: str = "") -> dict[str, float]:
        """The answer to a request."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"places": places, "workers": workers, "check": check}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process of a method ended; see its message above")
        return dict(json.loads(line))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


def differences(found: list[Loaded], ours_found: list[Loaded]) -> tuple[float, float, float]:
    """How a method's clips differ from ours: mean levels of pixels in the worst clip, the mean with ours moved by a
    frame (what a wrong frame would give), and the largest difference of the audio.
    """

    def apart(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a.float() - b.float()).abs().mean())

    levels = max(apart(a, b) for (a, _), (b, _) in zip(found, ours_found, strict=True))
    moved = float(np.mean([apart(a[1:], b[:-1]) for (a, _), (b, _) in zip(found, ours_found, strict=True)]))
    sound = max(float((a - b).abs().max()) for (_, a), (_, b) in zip(found, ours_found, strict=True))
    return levels, moved, sound


def check(peers: dict[str, Peer], places: list[Place], folder: Path) -> list[str]:
    """Compare all methods' frames and audio with ours; lines that say how they differ. SystemExit for other frames."""
    lines, found = [], {}
    for name, peer in peers.items():
        peer.ask(places, check=str(folder / f"{name}.pt"))
        found[name] = torch.load(folder / f"{name}.pt", weights_only=True)
    for name in peers:
        levels, moved, sound = differences(found[name], found["ours"])
        lines.append(f"{name}: frames {levels:.2f} levels from ours (a frame off: {moved:.1f}), audio {sound:.1e}")
        if levels > max(1.0, moved / 4) or (sound > 1e-3 and name != "decord"):
            sys.exit(f"{lines[-1]}: not the same clips")
    return lines


def measured(
    python: str, folder: str, names: list[str], arguments: Any, scratch: Path
) -> dict[str, dict[str, list[float]]]:
    """{method: {measure: a value for each round}}. Prints how the methods' clips differ from ours."""
    shards = ShardSet(folder)
    values: dict[str, dict[str, list[float]]] = {
        name: {key: [] for key in ("cpu", "wall2", "cpu2", "mib", "first")} for name in names
    }
    peers = {name: Peer(python, folder, name) for name in names}
    try:
        lines = check(peers, places_of(shards, BATCH, 99), scratch)
        for number in range(-1, arguments.rounds):
            places = places_of(shards, arguments.clips, number + 1)
            for name in names[:: 1 if number % 2 else -1]:
                answer = peers[name].ask(places)
                if number >= 0:
                    values[name]["cpu"].append(answer["cpu"])
                    values[name]["mib"] = [answer["mib"]]
        print("\n".join([*lines, table_of(values)]), flush=True)  # what follows may take minutes
        for number in range(arguments.worker_rounds):
            places = places_of(shards, 4 * arguments.clips, 1000 + number)
            for name in names[:: 1 if number % 2 else -1]:
                answer = peers[name].ask(places, WORKERS)
                values[name]["wall2"].append(answer["wall"])
                values[name]["cpu2"].append(answer["cpu"])
    finally:
        for peer in peers.values():
            peer.__exit__()
    for number in range(arguments.worker_rounds):
        for name in names[:: 1 if number % 2 else -1]:
            with Peer(python, folder, name) as peer:
                peer.ask(places_of(shards, BATCH, 0), WORKERS)
                values[name]["first"].append(time.perf_counter() - peer.begun)
    return values


def table_of(values: dict[str, dict[str, list[float]]]) -> str:
    """Medians in Markdown, and the ratios to ours, round by round."""
    lines = [
        f"| loader | clips/s and core, one process | ours is | clips/s, {WORKERS} workers | ours is | "
        f"clips/s and core, {WORKERS} workers | first batch s | MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    mine = values["ours"]
    for name, found in values.items():
        times = [median_ratio(found[key], mine[key]) if found[key] else float("nan") for key in ("cpu", "wall2")]
        rate = {key: 1 / statistics.median(found[key]) for key in ("cpu", "wall2", "cpu2") if found[key]}
        first = f"{statistics.median(found['first']):.1f}" if found["first"] else ""
        lines.append(
            f"| {name} | {rate['cpu']:.0f} | {times[0]:.2f} | {rate.get('wall2', 0):.0f} | {times[1]:.2f} | "
            f"{rate.get('cpu2', 0):.0f} | {first} | {found['mib'][0]:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--shards", default="", help="a folder of shards with audio (default: made films)")
    parser.add_argument("--clips", type=int, default=48, help="in a round of a method")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--worker-rounds", type=int, default=3, help="with workers, of four times as many clips")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated; ours is always one")
    parser.add_argument("--python", default="", help="of an environment that has the packages")
    parser.add_argument("--serve", choices=METHODS, help="what the processes of the methods are started with")
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.shards, arguments.serve)
    from benchmarks.environments import beside_project
    from benchmarks.loader_clips import prepared

    folder = arguments.shards or str(prepared()[1])
    python = arguments.python or str(beside_project(ROOT / ".cache" / "loader_field", *PACKAGES))
    names = list(dict.fromkeys(["ours", *arguments.methods.split(",")]))
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        values = measured(python, folder, names, arguments, Path(scratch))
    print(table_of(values))
    claims = []
    for name, found in values.items():
        if name != "ours":
            ours_cpu = values["ours"]["cpu"]
            goal = 1.6 if name in ("torchcodec", "spdl") else None
            claims.append(Claim("loader: a clip in one process", 1 / statistics.median(ours_cpu),
                                1 / statistics.median(found["cpu"]), "clips/s/core", name,
                                median_ratio(found["cpu"], ours_cpu), goal=goal))  # fmt: skip
    publish(claims, arguments.json)
    return None


if __name__ == "__main__":
    main()
