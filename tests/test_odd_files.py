"""Broken and odd files: each is written with the right facts, or skipped with the right reason; none is lost."""

import json

import numpy as np
import pytest

from avssl.media.decode import probe, read_audio, read_video
from avssl.shards.manifest import stream_manifest
from avssl.shards.shard_set import ShardSet
from avssl.types import FAILURE_REASONS, MediaError
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.inspect.verify import verify_folder
from data_prep.transcode.options import WriteOptions
from data_prep.write.run import write_shards
from tests.odd_files import ODD, make_odd_files

OPTIONS = WriteOptions(short_side_px=48, crf=12, on_missing_audio="keep", on_missing_video="keep")
FPS, RATE_HZ = 16, 24_000


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(entries by file name, samples by file name, skips by file name, ShardIndex, shard folder)."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "files").mkdir()
    make_odd_files(folder / "files")
    manifest, out = folder / "odd.jsonl", folder / "shards"
    build_manifest(folder / "files", manifest, IndexOptions(num_workers=2, labels="none"))
    index = write_shards(manifest, out, OPTIONS, num_workers=2)
    entries = {entry.path.removeprefix("files/"): entry for entry in stream_manifest(manifest)}
    names = {entry.key: name for name, entry in entries.items()}
    skips = {}
    for line in (out / "skipped.jsonl").read_text().splitlines():
        record = json.loads(line)
        skips[names[record["key"]]] = record
    shards = ShardSet(out)
    samples = {names[key]: shards.read(number) for number, key in enumerate(shards.keys)}
    return entries, samples, skips, index, out


@pytest.mark.slow
def test_every_file_is_accounted_for(prepared):
    entries, samples, skips, index, out = prepared
    assert set(entries) == set(ODD)
    assert set(samples) | set(skips) == set(ODD)
    assert not set(samples) & set(skips)
    assert index.num_listed == index.num_samples + index.num_skipped == len(ODD)
    assert [problem.message for problem in verify_folder(out, decode_all=True, num_workers=2).problems] == []


@pytest.mark.slow
def test_what_is_skipped_has_its_reason_and_names_the_file(prepared):
    skips = prepared[2]
    found = {name: record["reason"] for name, record in skips.items()}
    wanted = {name: odd.reason for name, odd in ODD.items() if odd.reason is not None}
    assert found == wanted, {name: skips.get(name) for name in found.keys() ^ wanted.keys()}
    assert set(wanted.values()) <= set(FAILURE_REASONS)
    for name, record in skips.items():
        assert name in record["message"]
        assert ODD[name].words in record["message"], record["message"]


def problems(name, sample):
    """What is not as the table says of a file that was written."""
    odd, info = ODD[name], sample.info
    for modality, wanted, found in (
        ("video", odd.video, info.num_frames / (info.video_fps or 1)),
        ("audio", odd.audio, info.num_audio_samples / (info.audio_rate_hz or 1)),
    ):
        if (wanted is None) != (found == 0) or abs((wanted or 0) - found) > 0.08:
            yield f"{modality} lasts {found}, not {wanted}"
    if odd.offset is not None and abs(info.av_offset_seconds - odd.offset) > 0.025:
        yield f"the audio begins {info.av_offset_seconds} s after the film, not {odd.offset}"
    for fact, wanted in odd.source.items():
        part, field = fact.split(".")
        if info.source[part][field] != wanted:
            yield f"{fact} is {info.source[part][field]}, not {wanted}"
    if sample.video is not None:
        yield from pictures_problems(odd, sample)
    if sample.audio is not None:
        wave = read_audio(sample.audio, 0.0, info.num_audio_samples, RATE_HZ)[0].numpy()
        loud = info.audio_start_seconds + np.flatnonzero(np.abs(wave) > 0.15) / RATE_HZ
        if odd.is_aligned and not len(loud):
            yield "nothing is heard"
        elif odd.is_aligned and sample.video is not None:
            seen = flash_seconds(sample)
            if not -0.01 < seen - loud[0] < 1 / FPS + 0.01:
                yield f"the flash is at {seen}, the beep at {loud[0]}"
        elif odd.is_aligned and odd.audio == 1.0 and abs(loud[0] - 0.5) > 0.03:
            yield f"the beep is at {loud[0]}"


def pictures_problems(odd, sample):
    """The size, and the red corner at the top left and nowhere else."""
    image = read_video(sample.video, [0.0])[0].permute(1, 2, 0).numpy().astype(int)
    height, width = image.shape[:2]
    if (width, height) != odd.size:
        yield f"images are {width}x{height}, not {odd.size}"
    redness = image[:, :, 0] - image[:, :, 1:].max(axis=2)
    corner = redness[: max(1, height // 4), : width // 4].mean()
    elsewhere = redness[height // 2 :].mean()
    if corner < 120 or elsewhere > 40:
        yield f"the corner is {corner} red, elsewhere it is {elsewhere}"


def flash_seconds(sample):
    info = sample.info
    times = np.arange(info.num_frames) / FPS
    frames = read_video(sample.video, times).float().numpy()
    bright = frames[:, :, :, frames.shape[3] * 5 // 8 :].mean(axis=(1, 2, 3)) > 140
    return info.video_start_seconds + times[np.flatnonzero(bright)[0]]


@pytest.mark.slow
def test_what_is_written_has_the_facts_of_the_file(prepared):
    samples = prepared[1]
    assert set(samples) == {name for name, odd in ODD.items() if odd.reason is None}
    wrong = {name: found for name, sample in samples.items() if (found := list(problems(name, sample)))}
    assert wrong == {}


@pytest.mark.slow
def test_the_index_knows_already_what_need_not_be_decoded(prepared):
    entries, skips = prepared[0], prepared[2]
    for name, entry in entries.items():
        if entry.error is not None:
            assert entry.error["reason"] == skips[name]["reason"]
    reasons = {skips[name]["reason"] for name in skips if entries[name].error is None}
    assert reasons <= {"truncated", "decode_error", "too_short"}  # only decoding all of it shows these


@pytest.mark.slow
@pytest.mark.parametrize("order", ["tff", "bff"])
def test_of_interlaced_frames_the_first_field_is_read(prepared, order, tmp_path):
    samples = prepared[1]
    name = f"interlaced_{order}.mp4"
    ODD[name].make(tmp_path / name)
    for source in (samples[name].video, tmp_path / name):
        image = read_video(source, [0.25])[0, 1].numpy().astype(int)[20:44, 32:]
        assert np.abs(np.diff(image, axis=0)).mean() < 6  # of a comb it is above 50
        bar = np.flatnonzero(image.mean(axis=0) > 130)[[0, -1]]
        assert np.abs(bar - (2 * 5 * 4 % 24 + np.array([0, 7]))).max() <= 1  # image 5, field 10


def test_lists_and_references_are_not_followed(tmp_path):
    """Nothing but the file itself is opened, even where a list stands in a format that FFmpeg knows."""
    for name in ("list.mp4", "list_of_pages.mkv", "concat.mov"):
        ODD[name].make(tmp_path / name)
        with pytest.raises(MediaError, match="not_media"):
            probe(tmp_path / name)
