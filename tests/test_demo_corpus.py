"""The demo corpus: repeatable, labeled, in sync on the decoded files, timbres easy and shapes hard to tell apart."""

from __future__ import annotations

import argparse
import csv
import hashlib
from pathlib import Path

import av
import numpy as np
import pytest
from scipy import ndimage, signal
from sklearn.neighbors import KNeighborsClassifier

from data_prep.demo.audio import Score, draw_score, synthesize
from data_prep.demo.corpus import (
    PACKAGINGS,
    SOUND_CLASSES,
    VISUAL_CLASSES,
    CorpusSettings,
    DemoClip,
    add_arguments,
    make_demo_corpus,
    plan_clip,
    render_clip,
    run,
)
from data_prep.demo.frames import SHAPES
from data_prep.transcode.encode import write_media

FPS = 16


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*.*") if path.name != "corpus.json")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def decode(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """(frame seconds, frames, mono waveform from second 0 on, rate)."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    with av.open(str(path)) as container:
        blocks = list(container.decode(audio=0))
    resampler = av.AudioResampler(format="fltp", layout="mono")
    sound = np.concatenate([out.to_ndarray()[0] for b in [*blocks, None] for out in resampler.resample(b) if out])
    start = round(blocks[0].time * blocks[0].sample_rate)
    sound = np.concatenate([np.zeros(max(start, 0)), sound])[max(-start, 0) :]
    times = np.array([frame.time for frame in frames])
    return times, np.stack([frame.to_ndarray(format="rgb24") for frame in frames]), sound, blocks[0].sample_rate


def object_masks(frames: np.ndarray) -> np.ndarray:
    """Pixels that do not lie on the plane through the frame's rim: the object, where the background is a gradient."""
    size = frames.shape[1]
    y, x = np.mgrid[:size, :size] / size - 0.5
    design = np.stack([np.ones_like(x), x, y], axis=-1)
    rim = np.maximum(np.abs(x), np.abs(y)) > 0.46
    still = np.median(frames[:, rim], axis=0)  # the object crosses the rim only now and then
    plane = design @ np.linalg.lstsq(design[rim], still, rcond=None)[0]
    return np.abs(frames - plane).sum(axis=-1) > 90


def correlations(first: np.ndarray, second: np.ndarray, lags: range) -> list[float]:
    """Pearson correlation of first[k] with second[k + lag]."""
    count = len(first)
    pairs = [(first[max(0, -lag) : count - max(0, lag)], second[max(0, lag) : count + min(0, lag)]) for lag in lags]
    return [float(np.corrcoef(a, b)[0, 1]) for a, b in pairs]


def of_packaging(settings: CorpusSettings, extension: str, count: int) -> list[DemoClip]:
    plans = [plan_clip(settings, "train", number) for number in range(64)]
    return [plan for plan in plans if plan.packaging.extension == extension][:count]


@pytest.mark.slow
@pytest.mark.parametrize("packaging", PACKAGINGS, ids=lambda packaging: packaging.extension)
def test_object_size_follows_loudness_in_decoded_files(packaging: object, tmp_path: Path) -> None:
    settings = CorpusSettings(difficulty=0.0)
    extension = packaging.extension  # type: ignore[attr-defined]
    at_zero, best_lags = [], []
    for plan in of_packaging(settings, extension, 6):
        clip = render_clip(settings, plan)
        path = tmp_path / Path(plan.relative_path).name
        write_media(
            path,
            video=clip.frames,
            video_fps=FPS,
            audio=clip.waveform,
            audio_rate_hz=settings.audio_rate_hz,
            video_codec=plan.packaging.video_codec,
            audio_codec=plan.packaging.audio_codec,
            video_options=plan.packaging.video_options,
            audio_options=plan.packaging.audio_options,
        )
        times, frames, sound, rate_hz = decode(path)
        assert len(frames) == 32
        assert len(sound) >= 2 * rate_hz
        width = np.sqrt(object_masks(frames).sum(axis=(1, 2)))
        loud = [sound[round(t * rate_hz) : round((t + 1 / FPS) * rate_hz)].std() for t in times]
        found = correlations(np.array(loud), width, range(-4, 5))
        at_zero.append(found[4])
        best_lags.append(int(np.argmax(found)) - 4)
    assert max(abs(lag) for lag in best_lags) <= 1
    assert np.median(best_lags) == 0
    assert np.median(at_zero) > 0.95
    assert min(at_zero) > 0.8


def test_object_height_follows_the_melody() -> None:
    settings = CorpusSettings(difficulty=0.0)
    found = []
    for number in range(8):
        clip = render_clip(settings, plan_clip(settings, "train", number))
        masks = object_masks(clip.frames)
        center_y = np.array([ndimage.center_of_mass(mask)[0] for mask in masks]) / 64
        drift = np.polyval(np.polyfit(np.arange(32), center_y + 0.125 * clip.heights, 1), np.arange(32))
        found.append(np.corrcoef(drift - center_y, clip.heights)[0, 1])
    assert np.median(found) > 0.9


@pytest.mark.slow
def test_files_do_not_depend_on_workers_or_on_how_many_are_made(tmp_path: Path) -> None:
    settings = {"seed": 3, "size_px": 32, "duration_seconds": 1.0}
    make_demo_corpus(tmp_path / "one", 9, 3, num_workers=1, progress=False, **settings)
    make_demo_corpus(tmp_path / "two", 9, 3, num_workers=2, progress=False, **settings)
    one = digests(tmp_path / "one")
    assert one == digests(tmp_path / "two")
    assert len(one) == 9 + 3 + 2
    make_demo_corpus(tmp_path / "few", 5, 1, num_workers=1, progress=False, **settings)
    few = {name: digest for name, digest in digests(tmp_path / "few").items() if not name.endswith(".csv")}
    assert few.items() <= one.items()
    make_demo_corpus(tmp_path / "other", 2, 0, num_workers=1, progress=False, **{**settings, "seed": 4})
    other = {digest for name, digest in digests(tmp_path / "other").items() if not name.endswith(".csv")}
    assert not other & set(one.values())


def test_labels_name_every_file_and_its_classes(tmp_path: Path) -> None:
    summary = make_demo_corpus(
        tmp_path, 16, 8, seed=1, size_px=32, duration_seconds=0.5, agreement=1.0, num_workers=1, progress=False
    )
    for split, count in (("train", 16), ("test", 8)):
        with (tmp_path / split / "labels.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        media = {str(path.relative_to(tmp_path / split)) for path in (tmp_path / split).glob("*/*")}
        assert {row["path"] for row in rows} == media
        assert len(rows) == count
        for row in rows:
            assert row["path"].split("/")[0] == row["visual"]
            assert VISUAL_CLASSES.index(row["visual"]) == SOUND_CLASSES.index(row["sound"])
    assert summary["agreement"] == 1.0
    assert summary["packagings"] == {"avi": 6, "mkv": 6, "mp4": 6, "webm": 6}
    assert summary["bytes"] == sum(path.stat().st_size for path in tmp_path.glob("*/*/*"))


@pytest.mark.parametrize("agreement", [0.0, 0.25, 0.8, 1.0])
def test_agreement_is_the_share_of_matching_classes(agreement: float) -> None:
    settings = CorpusSettings(agreement=agreement)
    plans = [plan_clip(settings, "train", number) for number in range(600)]
    visual = np.array([VISUAL_CLASSES.index(plan.visual) for plan in plans])
    sound = np.array([SOUND_CLASSES.index(plan.sound) for plan in plans])
    assert (visual == sound).mean() == pytest.approx(agreement, abs=0.01)
    np.testing.assert_array_equal(np.bincount(visual), 75)
    if agreement == 0.0:  # the others are uniform over the seven other classes
        counts = np.array([[np.sum((visual == v) & (sound == s)) for s in range(8)] for v in range(8)])
        off_diagonal = counts[~np.eye(8, dtype=bool)]
        assert ((off_diagonal - 75 / 7) ** 2 / (75 / 7)).sum() < 76  # chi-square, 48 degrees of freedom, p > .005


def test_codecs_say_nothing_about_classes() -> None:
    plans = [plan_clip(CorpusSettings(agreement=1.0), "train", number) for number in range(64)]
    pairs = {(plan.visual, plan.packaging.extension) for plan in plans}
    assert len(pairs) == 8 * len(PACKAGINGS)


def features(settings: CorpusSettings, split: str, count: int) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    plans = [plan_clip(settings, split, number) for number in range(count)]
    pixels, spectra = [], []
    for plan in plans:
        clip = render_clip(settings, plan)
        _, _, power = signal.stft(clip.waveform[0], settings.audio_rate_hz, nperseg=512)
        spectra.append(np.log(np.abs(power) + 1e-4).mean(axis=1))
        pixels.append(clip.frames[len(clip.frames) // 2].ravel() / 255)
    spectrum = np.stack(spectra)
    spectrum -= spectrum.mean(axis=1, keepdims=True)
    return np.stack(pixels), spectrum, [plan.visual for plan in plans], [plan.sound for plan in plans]


@pytest.mark.slow
def test_timbres_are_easy_and_pixels_hard() -> None:
    settings = CorpusSettings(difficulty=0.5, agreement=0.5, size_px=32, duration_seconds=1.0)
    train, test = features(settings, "train", 320), features(settings, "test", 160)
    heard = KNeighborsClassifier(5).fit(train[1], train[3]).score(test[1], test[3])
    seen = KNeighborsClassifier(5).fit(train[0], train[2]).score(test[0], test[2])
    assert heard > 0.8
    assert seen < 0.4


@pytest.mark.slow
def test_difficulty_hides_the_shape() -> None:
    contrasts = []
    for difficulty in (0.0, 1.0):
        settings = CorpusSettings(difficulty=difficulty)
        frames = np.stack([render_clip(settings, plan_clip(settings, "train", k)).frames[8] for k in range(16)]) / 255.0
        contrasts.append(np.abs(np.diff(frames, axis=2)).mean())
    assert contrasts[1] > 2 * contrasts[0]


@pytest.mark.parametrize(
    ("shape", "num_parts", "num_holes"),
    [(name, 3 if name == "bars" else 1, 1 if name == "ring" else 0) for name in SHAPES],
)
def test_shapes_have_their_parts_and_holes(shape: str, num_parts: int, num_holes: int) -> None:
    y, x = np.mgrid[-1.5:1.5:301j, -1.5:1.5:301j]
    inside = SHAPES[shape](x, y) < 0
    assert ndimage.label(inside)[1] == num_parts
    assert ndimage.label(~inside)[1] == 1 + num_holes
    assert 0.25 < inside.sum() * 1e-4 < 2.7
    assert np.hypot(x, y)[inside].max() < 1.15


@pytest.mark.parametrize("shape", ["disc", "ring", "square", "triangle", "star", "crescent", "cross", "bars"])
def test_shapes_measure_distance_near_their_outline(shape: str) -> None:
    y, x = np.mgrid[-1.5:1.5:301j, -1.5:1.5:301j]
    value = SHAPES[shape](x, y)
    slope = np.hypot(*np.gradient(value, 0.01))[np.abs(value) < 0.05]
    assert np.median(slope) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("timbre", ["bell", "square", "brass", "plucked"])
def test_pitched_timbres_have_the_pitch_of_the_score(timbre: str) -> None:
    rate_hz, pitch_hz = 24_000, 250.0
    score = Score(rate_hz, pitch_hz, np.zeros(1), np.ones(rate_hz), np.zeros(rate_hz))
    sound = synthesize(timbre, score, np.random.default_rng(0))
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(rate_hz)))  # one line a Hz
    found_hz = 100 + int(np.argmax(spectrum[100:375]))  # the fundamental, not an overtone
    assert abs(found_hz - pitch_hz) <= 3


@pytest.mark.parametrize("timbre", SOUND_CLASSES)
def test_every_timbre_is_loud_and_follows_the_score(timbre: str) -> None:
    generator = np.random.default_rng(5)
    score = draw_score(generator, 2.0, 24_000)
    sound = synthesize(timbre, score, generator)
    assert np.abs(sound).max() == pytest.approx(1.0)
    blocks = sound.reshape(32, -1).std(axis=1)
    assert np.corrcoef(blocks, score.envelope.reshape(32, -1).mean(axis=1))[0, 1] > 0.75


@pytest.mark.parametrize(
    ("setting", "value"),
    [("agreement", 1.5), ("difficulty", -0.1), ("num_classes", 9), ("size_px", 33), ("num_train", 0), ("fps", 0.0)],
)
def test_wrong_settings_are_named(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=setting):
        CorpusSettings(**{setting: value})  # type: ignore[arg-type]


def test_foreign_folder_is_refused_and_a_begun_one_is_continued(tmp_path: Path) -> None:
    small = {"size_px": 16, "duration_seconds": 0.25, "num_workers": 1, "progress": False}
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="foreign"):
        make_demo_corpus(foreign, 2, 0, **small)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    make_demo_corpus(tmp_path / "mine", 3, 1, **small)
    before = digests(tmp_path / "mine")
    next((tmp_path / "mine").glob("train/*/*")).unlink()
    make_demo_corpus(tmp_path / "mine", 3, 1, **small)
    assert digests(tmp_path / "mine") == before
    with pytest.raises(FileExistsError, match="mine"):
        make_demo_corpus(tmp_path / "mine", 3, 1, seed=9, **small)


def test_command_makes_a_corpus(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = {
        "num-train": 2,
        "num-test": 1,
        "size-px": 16,
        "duration-seconds": 0.25,
        "num-workers": 1,
        "num-classes": 2,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    assert run(parser.parse_args([str(tmp_path / "out"), *words])) == 0
    assert len(list((tmp_path / "out").glob("*/*/*"))) == 3
