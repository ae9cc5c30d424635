"""Copies that look and sound alike come on one side: made copies by what they were made of, and nothing else."""

import itertools

import numpy as np
import pytest

from avssl.shards.places import Place, Sounding
from data_prep.__main__ import main
from data_prep.split.fingerprint import FileTask, are_copies, fingerprint
from data_prep.split.near import near_sources
from data_prep.split.rule import SplitRule
from data_prep.split.run import split_manifest
from data_prep.transcode.encode import write_media
from tests.test_split import entry, manifest_of, parts_of

FPS, RATE_HZ, SECONDS = 12, 16_000, 5


def film(seed, seconds=SECONDS):
    """Blurred patches that fade into each other, and a melody with a harmonic: (frames, audio)."""
    random = np.random.default_rng(seed)
    pictures = np.kron(random.integers(0, 256, (seconds + 1, 6, 8, 3)), np.ones((1, 16, 16, 1)))
    times = np.arange(seconds * FPS) / FPS
    weight = (times % 1)[:, None, None, None]
    frames = pictures[times.astype(int)] * (1 - weight) + pictures[times.astype(int) + 1] * weight
    pitches = np.repeat(random.uniform(300, 900, seconds * 5), RATE_HZ // 5)
    phase = 2 * np.pi * np.cumsum(pitches) / RATE_HZ
    noise = random.normal(0, 0.02, len(phase))
    return frames.astype(np.uint8), (0.3 * np.sin(phase) + 0.15 * np.sin(2 * phase) + noise)[None].astype(np.float32)


def halved(frames):
    return frames.reshape(len(frames), 48, 2, 64, 2, 3).mean(axis=(2, 4)).astype(np.uint8)


COPIES = {
    "same": lambda frames, audio: ("mp4", frames, audio, {}),
    "encoded anew": lambda frames, audio: ("mp4", frames, audio, {"video_options": {"crf": "36"}}),
    "scaled": lambda frames, audio: ("mp4", halved(frames), audio, {}),
    "cropped": lambda frames, audio: ("mp4", frames[:, 4:-4, 4:-4], audio, {}),
    "cut": lambda frames, audio: ("mp4", frames[FPS + 1 :], audio[:, RATE_HZ + RATE_HZ // FPS :], {}),
    "in another container": lambda frames, audio: ("mkv", frames, audio, {"audio_codec": "libmp3lame"}),
    "louder and brighter": lambda frames, audio: ("mp4", 20 + frames // 10 * 9, 0.6 * audio, {}),
}


def write_copy(folder, name, seed):
    frames, audio = film(seed)
    suffix, frames, audio, options = COPIES[name](frames, audio)
    path = folder / f"{name.replace(' ', '_')}_{seed}.{suffix}"
    write_media(path, video=frames, video_fps=FPS, audio=audio, audio_rate_hz=RATE_HZ, **options)
    return path


def taken(path, *, is_image=False):
    return fingerprint(FileTask(Sounding(Place(str(path))), 0, is_image))


@pytest.mark.slow
def test_copies_are_found_and_other_films_are_not(tmp_path):
    found = {(name, seed): taken(write_copy(tmp_path, name, seed)) for name in COPIES for seed in range(2)}
    for (one, first), (other, second) in itertools.combinations(found, 2):
        assert are_copies(found[one, first], found[other, second]) == (first == second), (one, first, other, second)


@pytest.mark.slow
def test_the_same_picture_with_other_sound_and_the_same_sound_with_another_picture_are_no_copies(tmp_path):
    (frames, audio), (other_frames, other_audio) = film(1), film(2)
    for name, video, sound in (
        ("a", frames, audio), ("dubbed", frames, other_audio), ("other", other_frames, audio), ("mute", frames, None),
        ("sound", None, audio),
    ):  # fmt: skip
        write_media(tmp_path / f"{name}.mkv", video=video, video_fps=FPS, audio=sound, audio_rate_hz=RATE_HZ)
    prints = {name: taken(tmp_path / f"{name}.mkv") for name in ("a", "dubbed", "other", "mute", "sound")}
    copies = {name for name in prints if are_copies(prints["a"], prints[name])}
    assert copies == {"a", "mute", "sound"}


def test_sounds_without_pictures_are_found_by_their_keys(tmp_path):
    for seed in range(4):
        _, audio = film(seed)
        write_media(tmp_path / f"{seed}_whole.flac", audio=audio, audio_rate_hz=RATE_HZ, audio_codec="flac")
        write_media(tmp_path / f"{seed}_cut.m4a", audio=audio[:, 9000:], audio_rate_hz=RATE_HZ)
    paths = sorted(tmp_path.iterdir())
    prints = [taken(path) for path in paths]
    for first, second in itertools.combinations(range(8), 2):
        assert are_copies(prints[first], prints[second]) == (paths[first].name[0] == paths[second].name[0])
        near = any(
            (one ^ other).bit_count() <= 6
            for one in prints[first].keys.tolist()
            for other in prints[second].keys.tolist()
        )
        assert near == (paths[first].name[0] == paths[second].name[0])


@pytest.mark.slow
def test_the_command_keeps_copies_on_one_side_and_decodes_each_file_once(tmp_path, capsys):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("same", "cropped", "cut"):
        for seed in range(6):
            write_copy(videos, name, seed)
    (videos / "broken.mp4").write_bytes(b"nothing")
    command = ["index", str(videos), "--out", str(tmp_path / "corpus.jsonl"), "--test-share", ".4", "--near-duplicates"]
    assert main(command) == 0
    first = parts_of(tmp_path / "corpus.jsonl")
    sides = {seed: {part for key, part in first.items() if key.endswith(f"_{seed}_mp4")} for seed in range(6)}
    assert all(len(side) == 1 for side in sides.values()), sides
    assert set().union(*sides.values()) == {"train", "test"}
    stamp = (tmp_path / "corpus.fingerprints").stat().st_mtime_ns
    write_copy(videos, "scaled", 3)
    for name in ("cropped", "encoded anew"):
        write_copy(videos, name, 7)
    assert main(command) == 0
    second = parts_of(tmp_path / "corpus.jsonl")
    assert first.items() <= second.items()
    assert second["scaled_3_mp4"] == second["same_3_mp4"]
    assert second["cropped_7_mp4"] == second["encoded_anew_7_mp4"]
    assert (tmp_path / "corpus.fingerprints").stat().st_mtime_ns > stamp
    assert main(command) == 0
    assert parts_of(tmp_path / "corpus.jsonl") == second


def test_a_new_file_joins_the_side_of_its_copy_and_one_between_two_sides_is_left_out(tmp_path):
    """The links are given, so that what is decided with them is seen alone."""
    rule = SplitRule(test_share=0.5, near_duplicates=True)
    rows = [entry(number) for number in range(20)]
    manifest = manifest_of(rows, tmp_path / "corpus.jsonl")
    split_manifest(manifest, rule, near=lambda _: iter(()))
    before = parts_of(manifest)
    train, test = (next(row for row in rows if before[row.key] == part) for part in ("train", "test"))
    sources = [int(fingerprint_source(row), 16) for row in (train, test, entry(100), entry(101), entry(102))]
    links = [(sources[2], sources[0]), (sources[3], sources[1]), (sources[0], sources[4]), (sources[1], sources[4])]
    for chosen, expected in ((links[:2], ["train", "test", None]), (links[2:], [None, None, "left_out"])):
        new = [entry(100 + number) for number, part in enumerate(expected) if part]
        manifest_of([*rows, *new], manifest)
        split_manifest(manifest, rule, near=lambda _, chosen=chosen: iter(chosen))
        after = parts_of(manifest)
        assert before.items() <= after.items()
        assert [after[row.key] for row in new] == [part for part in expected if part]


def fingerprint_source(row):
    from avssl.shards.keys import source_of

    return source_of(row.content, row.path, row.num_bytes, row.item)


def test_images_are_copies_within_six_bits(tmp_path):
    from PIL import Image

    random = np.random.default_rng(3)
    for seed in range(3):
        picture = Image.fromarray(np.kron(random.integers(0, 256, (6, 8, 3)), np.ones((16, 16, 1))).astype(np.uint8))
        picture.save(tmp_path / f"{seed}_a.png")
        picture.resize((64, 48)).save(tmp_path / f"{seed}_b.jpg", quality=60)
    paths = sorted(tmp_path.iterdir())
    prints = [taken(path, is_image=True) for path in paths]
    for first, second in itertools.combinations(range(6), 2):
        assert are_copies(prints[first], prints[second]) == (paths[first].name[0] == paths[second].name[0])


def test_many_files_of_one_key_are_compared_each_with_the_next(tmp_path, monkeypatch):
    """A thousand files that share a frame cost a thousand comparisons and not half a million."""
    from data_prep.split import near

    keys, owners = np.full(1000, 77, np.uint64), np.arange(1000, dtype=np.uint64)
    assert len(list(near._pairs(keys, owners))) == 999
    monkeypatch.setattr(near, "_take_fingerprints", lambda *_: 0)
    manifest = manifest_of([entry(number) for number in range(3)], tmp_path / "corpus.jsonl")
    pairs = near_sources(manifest, tmp_path / "store", num_workers=1, limits=None, tell=print)
    assert list(pairs) == []
    (tmp_path / "store").write_bytes(b"no database" * 1000)
    with pytest.raises(ValueError, match=r"store: is no file of fingerprints .*remove it"):
        list(near_sources(manifest, tmp_path / "store", num_workers=1, limits=None, tell=print))
