"""Flash and beep stay together, to less than a frame, from the file to shard, loader and embedding windows."""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from avssl.data.loader import Loader
from avssl.data.loader_config import LoaderConfig
from avssl.embedding.media import open_media
from avssl.embedding.windows import WindowReader
from avssl.media.decode import probe, read_audio, read_video
from avssl.shards.manifest import FileSource
from avssl.shards.places import Place, Sounding
from avssl.shards.shard_set import ShardSet
from avssl.transforms.config import AudioViewConfig, VideoViewConfig, ViewsConfig
from avssl.transforms.view_maker import ViewMaker
from avssl.types import View
from data_prep.facts.measure import media_facts
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.index.probing import Prober
from data_prep.inspect.verify import verify_folder
from data_prep.transcode.encode import write_media
from data_prep.transcode.file import transcode
from data_prep.transcode.options import WriteOptions
from data_prep.write.run import write_shards

# The film's clock: flash and beep begin at EVENT_SECONDS of it, and last LENGTH_SECONDS.
EVENT_SECONDS, LENGTH_SECONDS, FILM_SECONDS = 1.5, 0.25, 3.0
SHARD_FPS, RATE_HZ = 16, 24_000
FRAME_SECONDS = 1 / SHARD_FPS
CLIP_SECONDS, BIN_SECONDS = 1.75, 0.01
CONFIG = ViewsConfig(
    video=VideoViewConfig(num_frames=28, fps=SHARD_FPS, size_px=32),
    audio=AudioViewConfig(seconds=CLIP_SECONDS, rate_hz=RATE_HZ, window_samples=256, hop_samples=240, num_frames=175),
    max_offset_seconds=0.0,  # both clips begin at the same time
)
VIEWS = (View("film", "video", "test"), View("audio", "audio", "test"))


@dataclass(frozen=True)
class Film:
    """How a film is written. late: how much later the beep is than the flash, as the file has it."""

    suffix: str = ".mp4"
    video_start: float = 0.0
    audio_start: float = 0.0
    late: float = 0.0
    fps: Any = 25
    rate_hz: int = 48_000
    uneven: bool = False
    codecs: dict[str, Any] = field(default_factory=dict)

    def write(self, path):
        times = np.arange(round(FILM_SECONDS * float(self.fps))) / float(self.fps)
        if self.uneven:
            generator = np.random.default_rng(0)
            times = np.sort(generator.choice(np.arange(1, 180), 60, replace=False)) / 60
            times[0] = 0.0
        times = times[times < FILM_SECONDS - self.video_start]
        shown = times + self.video_start
        is_bright = (shown >= EVENT_SECONDS - 1e-6) & (shown < EVENT_SECONDS + LENGTH_SECONDS - 1e-6)
        frames = np.where(is_bright, 250, 20).astype(np.uint8)[:, None, None, None] * np.ones((1, 48, 64, 3), np.uint8)
        heard = np.arange(round((FILM_SECONDS - self.audio_start) * self.rate_hz)) / self.rate_hz + self.audio_start
        begin = EVENT_SECONDS + self.late
        is_loud = (heard >= begin) & (heard < begin + LENGTH_SECONDS)
        wave = (0.6 * np.sin(2 * np.pi * 1500 * (heard - begin)) * is_loud).astype(np.float32)[None]
        write_media(
            path, video=frames, video_fps=self.fps, frame_times_seconds=times.tolist() if self.uneven else None,
            audio=wave, audio_rate_hz=self.rate_hz, video_start_seconds=self.video_start,
            audio_start_seconds=self.audio_start, **self.codecs,
        )  # fmt: skip
        return begin - shown[np.flatnonzero(is_bright)[0]]


WEBM = {"video_codec": "libvpx-vp9", "audio_codec": "libopus"}
MKV = {"audio_codec": "flac"}
TS = {"container_format": "mpegts"}
FILMS = {
    "plain": Film(),
    "beep_late": Film(late=0.5),
    "beep_early": Film(late=-0.5, codecs=MKV, suffix=".mkv"),
    "beep_a_little_late": Film(late=0.13, suffix=".webm", codecs=WEBM),
    "sound_starts_late": Film(audio_start=0.41),
    "film_starts_late": Film(video_start=0.37),
    "film_starts_late_mkv": Film(video_start=0.5, late=-0.2, suffix=".mkv", codecs=MKV),
    "sound_starts_late_webm": Film(audio_start=0.3, late=0.3, suffix=".webm", codecs=WEBM),
    "both_late": Film(video_start=0.8, audio_start=0.6, suffix=".mkv"),
    "uneven": Film(uneven=True),
    "uneven_mkv": Film(uneven=True, video_start=0.2, late=0.2, suffix=".mkv", codecs=MKV),
    "broadcast_rate": Film(fps=Fraction(30000, 1001), rate_hz=44_100),
    "mp3_in_avi": Film(suffix=".avi", codecs={"video_codec": "mpeg4", "audio_codec": "libmp3lame"}, rate_hz=44_100),
    "transport_stream": Film(suffix=".ts", codecs=TS, rate_hz=44_100),
    "opus_priming": Film(suffix=".mkv", codecs={"audio_codec": "libopus"}, video_start=0.05),
    "slow": Film(fps=10),
}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """(paths by name, how much later the beep is than the flash in each, shard folder)."""
    folder = tmp_path_factory.mktemp("films")
    (folder / "files").mkdir()
    paths, wanted = {}, {}
    for name, film in FILMS.items():
        paths[name] = folder / "files" / (name + film.suffix)
        wanted[name] = film.write(paths[name])
    build_manifest(folder / "files", folder / "films.jsonl", IndexOptions(num_workers=2, labels="none"))
    write_shards(folder / "films.jsonl", folder / "shards", WriteOptions(short_side_px=48), num_workers=2)
    assert verify_folder(folder / "shards", decode_all=True).problems == []
    return paths, wanted, folder / "shards"


def first_above(values, threshold):
    return int(np.flatnonzero(np.asarray(values) > threshold)[0])


def onset(values, threshold, quiet=1):
    """Where values first exceed a threshold; None if never, or within the first `quiet`: it began before them."""
    above = np.flatnonzero(np.asarray(values) > threshold)
    return None if len(above) == 0 or above[0] < quiet else int(above[0])


def beep_seconds(wave, rate_hz):
    return first_above(np.abs(wave), 0.2) / rate_hz


def assert_together(measured, wanted, frame_seconds, name, slack=0.005):
    """Frames are shown from the next multiple of their length on: the flash may be up to one frame late, not early."""
    late = wanted - measured  # how much later the flash came out
    assert -slack < late < frame_seconds + slack, (
        f"{name}: the beep is {measured:.4f} s after the flash, not {wanted:.4f} s"
    )


@pytest.mark.quick(4)
@pytest.mark.parametrize("name", FILMS)
def test_in_the_file(films, name):
    """read_video and read_audio, each from its stream's start, which probe measures."""
    paths, wanted, _ = films
    info = probe(paths[name])
    times = np.arange(0, FILM_SECONDS, 0.005)
    bright = read_video(paths[name], times).float().mean(dim=(1, 2, 3)).numpy()
    flash = info.video.start_seconds + times[first_above(bright, 128)]
    wave = read_audio(paths[name], 0.0, 3 * 48_000, 48_000)[0].numpy()
    beep = info.audio.start_seconds + beep_seconds(wave, 48_000)
    assert abs(beep - flash - wanted[name]) < 0.012  # the steps above, and coders that blur beginnings


def sample_of(shards, name):
    key = next(key for key in shards.keys if key == (name + FILMS[name].suffix).replace(".", "_"))
    return shards.read(shards.keys.index(key))


@pytest.mark.parametrize("name", FILMS)
def test_in_the_shard(films, name):
    _, wanted, folder = films
    sample = sample_of(ShardSet(folder), name)
    info = sample.info
    bright = read_video(sample.video, np.arange(info.num_frames) / SHARD_FPS).float().mean(dim=(1, 2, 3)).numpy()
    flash = info.video_start_seconds + first_above(bright, 128) / SHARD_FPS
    wave = read_audio(sample.audio, 0.0, info.num_audio_samples, RATE_HZ)[0].numpy()
    beep = info.audio_start_seconds + beep_seconds(wave, RATE_HZ)
    assert_together(beep - flash, wanted[name], FRAME_SECONDS, name)


def test_in_the_batches_of_the_loader(films):
    """Random seconds of every film, through workers' views, normalization and spectrograms."""
    _, wanted, folder = films
    shards = ShardSet(folder)
    names = {key: name for name, film in FILMS.items() for key in [(name + film.suffix).replace(".", "_")]}
    maker = ViewMaker(CONFIG, ["video", "audio"])
    config = LoaderConfig(global_batch_size=4, num_workers=0)
    loader = Loader(shards, config, VIEWS, maker, seed=5, device=torch.device("cpu"))
    seen = set()
    for epoch in range(4):
        for batch in loader.epoch(epoch):
            for index, film, audio in zip(batch.index.tolist(), batch.views["film"], batch.views["audio"], strict=True):
                brightness = film.mean(dim=(0, 2, 3)).numpy()
                loudness = audio[0].amax(dim=1).numpy()
                flash = onset(brightness, (brightness.min() + brightness.max()) / 2)
                beep = onset(loudness, (loudness.min() + loudness.max()) / 2)
                if flash is None or beep is None or np.ptp(brightness) < 1:
                    continue  # it begins before the clip
                name = names[shards.keys[index]]
                # A window of the spectrogram is loud from its last samples on: it may seem a bin early.
                assert_together(beep * BIN_SECONDS - flash / SHARD_FPS, wanted[name], FRAME_SECONDS, name, slack=0.011)
                seen.add(name)
    assert seen == set(FILMS)


@pytest.mark.quick(1)
@pytest.mark.parametrize("stride", [0.25, 0.23])
@pytest.mark.parametrize("kind", ["files", "shards"])
def test_in_the_windows_of_embedding(films, kind, stride):
    paths, wanted, folder = films
    names = {(path.name if kind == "files" else path.name.replace(".", "_")): name for name, path in paths.items()}
    sources = ShardSet(folder) if kind == "shards" else [FileSource(str(path), path.name) for path in paths.values()]
    stream = WindowReader(sources, CONFIG, ("video", "audio"), CLIP_SECONDS, stride)
    seen = set()
    for _, windows in stream:
        name, spans = names[windows.media.key], windows.media.spans
        begin = max(span.start_seconds for span in spans.values())
        end = min(span.end_seconds for span in spans.values())
        zero = min(FILMS[name].video_start, FILMS[name].audio_start)  # of the window's clock, on the film's
        clip_of = [
            {window: clip for clip, of in enumerate(windows.owners[name]) for window in of}
            for name in ("video", "audio")
        ]
        for number, (start, stop) in enumerate(windows.grid):
            if start < begin - 1e-6 or stop > end + 1e-6:
                continue  # one of the clips is moved into its stream
            film = windows.clips["video"].media[clip_of[0][number]].float().mean(dim=(1, 2, 3)).numpy()
            flash, wave = onset(film, 128), windows.clips["audio"].media[clip_of[1][number], 0].numpy()
            beep = onset(np.abs(wave), 0.2, quiet=RATE_HZ // 100)
            if flash is None or beep is None:
                continue
            beep, flash = beep / RATE_HZ, flash / SHARD_FPS
            assert_together(beep - flash, wanted[name], FRAME_SECONDS, name)
            # Priming counts as audio in some formats; the audio of a shard begins with a frame of it.
            most = 0.03 + (FRAME_SECONDS if kind == "shards" else 0)
            assert abs(zero + start + beep - EVENT_SECONDS - FILMS[name].late) < most, name
            seen.add(name)
    assert seen == set(FILMS)


@pytest.mark.parametrize(
    ("video", "sound", "sound_start", "offset"),
    [
        ("mp4", "flac", 0.0, 0.0),
        ("mp4", "mp3", 0.0, 0.0),  # what its encoder adds before the first sample is no delay
        ("mpegts", "flac", 0.0, 0.0),  # its clock begins at 1.4 s
        ("mpegts", "mp3", 0.0, 0.0),
        ("mp4", "mpegts", 0.0, 0.0),
        ("mpegts", "mpegts", 0.5, 0.5),  # one clock
    ],
)
def test_a_sound_apart_begins_with_its_video_whatever_their_clocks_say(tmp_path, video, sound, sound_start, offset):
    film, wave = tmp_path / f"film.{video}", tmp_path / f"sound.{sound}"
    frames = np.zeros((50, 48, 64, 3), np.uint8)
    write_media(film, video=frames, video_fps=25, container_format=video, video_options={"bf": "0"})
    codec = {"mpegts": "mp2", "mp3": "libmp3lame"}.get(sound, sound)
    beep = np.sin(np.arange(96_000) * 0.05).astype(np.float32)[None] / 2
    settings = {"audio_rate_hz": 48_000, "audio_codec": codec, "audio_start_seconds": sound_start}
    write_media(wave, audio=beep, container_format=sound, **settings)
    written = transcode(str(film), WriteOptions(), sound=str(wave))
    assert written.av_offset_seconds == pytest.approx(offset, abs=0.015)
    places = Sounding(Place(str(film)), Place(str(wave)))
    listed = Prober()(places).media
    assert listed["audio"]["start_seconds"] - listed["video"]["start_seconds"] == pytest.approx(offset, abs=0.015)
    media = open_media(str(film), "film", ["video", "audio"], sound=str(wave))
    media.close()
    assert media.spans["audio"].start_seconds - media.spans["video"].start_seconds == pytest.approx(offset, abs=0.015)
    assert media_facts(str(film), str(wave), "film")["duration_seconds"] == pytest.approx(2.0 + offset, abs=0.06)
