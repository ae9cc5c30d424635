"""How each loader of loader_field.py reads the same clips: what decodes a clip, and batches with workers."""

# ruff: noqa: TID251 - others' libraries are what is compared with
from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from avssl.shards.shard_set import Sample, ShardSet, spans
from avssl.transforms.config import ViewsConfig, clip_lengths
from avssl.transforms.crop import Box, crop_resize, random_resized_crop_box
from avssl.transforms.time_sampling import random_clip_times, snap_to_frames

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
