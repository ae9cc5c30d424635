"""data_prep stats: loudness against FFmpeg; silence, stillness and duplicates that are known; sums; the page."""

import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from avssl.shards.shard_set import ShardSet
from data_prep.__main__ import main
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.inspect.stats.charts import ticks
from data_prep.inspect.stats.collect import Thresholds, collect_stats
from data_prep.inspect.stats.tally import MAX_NAMES, OTHER, QUANTITIES, Histogram, Tally
from data_prep.measures.audio import AudioMeter
from data_prep.measures.near_duplicates import (
    NO_HASH,
    distances,
    equal_groups,
    near_groups,
    perceptual_hash,
    small_image,
)
from data_prep.measures.video import measure_video, middle_frame, sampled_frames
from data_prep.transcode.encode import write_media
from data_prep.transcode.options import WriteOptions
from data_prep.write.run import write_shards


def meter(samples, rate_hz, silence_dbfs=-60.0, piece=4096):
    one = AudioMeter(rate_hz, silence_dbfs)
    for begin in range(0, len(samples), piece):
        one.add(samples[begin : begin + piece].astype(np.float32))
    return one.facts()


def sine(seconds, rate_hz, amplitude=1.0, hz=997.0):
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)


def landscape(seed, height=96, width=128):
    """uint8 (height, width, 3): soft random colors, as different from each other as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def panning(seed, num_frames, step=2):
    wide = landscape(seed, 96, 128 + step * num_frames)
    return [np.ascontiguousarray(wide[:, step * k : step * k + 128]) for k in range(num_frames)]


def hash_of(luma):
    return perceptual_hash(small_image(luma))


# --- audio ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_hz", [8000, 24000, 44100, 48000, 96000])
def test_a_full_scale_sine_has_the_loudness_that_the_standard_says(rate_hz):
    """BS.1770: 997 Hz at 0 dBFS in one channel is -3.01 LUFS."""
    facts = meter(sine(3, rate_hz), rate_hz)
    assert abs(facts.loudness_lufs + 3.01) < 0.05
    assert abs(facts.rms_dbfs + 3.01) < 0.01
    assert abs(facts.peak_dbfs) < 0.05


def ffmpeg_loudness(samples, rate_hz):
    """Integrated loudness by FFmpeg's ebur128 filter."""
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=rate_hz, format="flt", layout="mono")
    graph.link_nodes(source, graph.add("ebur128", "metadata=1"), graph.add("abuffersink")).configure()
    frame = av.AudioFrame.from_ndarray(samples.astype(np.float32)[None], format="flt", layout="mono")
    frame.sample_rate, frame.pts = rate_hz, 0
    graph.push(frame)
    graph.push(None)
    while True:
        try:
            loudness = float(graph.pull().metadata["lavfi.r128.I"])
        except (av.BlockingIOError, av.EOFError):
            return loudness


@pytest.mark.parametrize("rate_hz", [24000, 44100, 48000])
def test_loudness_is_that_of_ffmpeg(rate_hz):
    """Colored noise with loud, soft and silent passages, so that both gates have something to do."""
    rng = np.random.default_rng(rate_hz)
    noise = np.convolve(rng.normal(size=9 * rate_hz), [1, -0.6, 0.3])[: 9 * rate_hz]
    levels = np.repeat([0.2, 0.05, 0.0, 0.001, 0.1, 0.15, 0.01, 0.2, 0.0], rate_hz)
    samples = np.clip(noise * levels, -1, 1)
    assert abs(meter(samples, rate_hz).loudness_lufs - ffmpeg_loudness(samples, rate_hz)) < 0.1


def test_the_share_of_silence_is_known_and_pieces_do_not_matter():
    rate_hz = 24000
    samples = np.concatenate(
        [sine(1, rate_hz, 0.5), np.zeros(rate_hz * 2), sine(1, rate_hz, 0.001), sine(6, rate_hz, 0.1)]
    )
    facts = meter(samples, rate_hz)
    assert facts.silent_share == pytest.approx(0.3)  # 0.001 is -63 dBFS RMS
    assert meter(samples, rate_hz, silence_dbfs=-66).silent_share == pytest.approx(0.2)
    for piece in (1000, 7777, len(samples)):
        assert vars(meter(samples, rate_hz, piece=piece)) == pytest.approx(vars(facts))
    assert facts.rms_dbfs == pytest.approx(10 * np.log10(np.mean(samples**2)), abs=1e-3)


def test_the_shortest_and_the_silent_have_no_loudness():
    for samples in (sine(0.3, 24000), np.zeros(24000), np.zeros(3), np.zeros(0)):
        assert meter(samples, 24000).loudness_lufs is None
    assert meter(np.zeros(3), 24000).silent_share == 1
    assert meter(sine(0.01, 24000), 24000).silent_share == 0


# --- images and video ------------------------------------------------------------------------------------------------


def test_the_hash_is_the_sign_of_scipys_dct_of_pillows_means():
    luma = landscape(1).mean(axis=2)
    small = np.array(Image.fromarray(luma.astype(np.float32)).resize((32, 32), Image.Resampling.BOX))
    frequencies = dctn(small.astype(np.float64), norm=None)
    lowest = sorted((u + v, u, v) for u in range(11) for v in range(11))[1:65]
    values = np.array([frequencies[u, v] for _, u, v in lowest])
    bits = "".join("1" if value > np.median(values) else "0" for value in values)
    assert bin(hash_of(luma) ^ int(bits, 2)).count("1") <= 1  # sums in another order


def test_the_hash_stays_through_size_jpeg_and_brightness_and_tells_images_apart():
    hashes = []
    for seed in range(30):
        image = Image.fromarray(landscape(seed)).convert("L")
        own = hash_of(np.array(image))
        hashes.append(own)
        jpeg = io.BytesIO()
        image.resize((67, 50), Image.Resampling.BICUBIC).save(jpeg, "JPEG", quality=40)
        for other in (np.array(Image.open(jpeg)), np.array(image) * 0.7 + 20):
            assert bin(own ^ hash_of(other)).count("1") <= Thresholds().max_distance
    pairs = np.array([(a, b) for position, a in enumerate(hashes) for b in hashes[:position]], np.uint64)
    assert distances(pairs[:, 0], pairs[:, 1]).min() > 2 * Thresholds().max_distance
    assert hash_of(np.full((40, 60), 99, np.uint8)) == NO_HASH


def test_a_small_thing_that_moves_is_no_still_video():
    frames = [landscape(5) for _ in range(32)]
    for number, frame in enumerate(frames):
        frame[40:46, 20 + number // 8 * 6 : 26 + number // 8 * 6] = 255
    for video, share in ((frames, 0.0), (frames[:8] * 4, 1.0)):
        file = io.BytesIO()
        write_media(file, video=video, video_fps=16, container_format="mp4")
        assert measure_video(file.getvalue(), 32, 16.0, Thresholds().still_levels, "made").still_share == share


def test_motion_and_stillness_are_those_of_the_frames():
    """A second of one frame, a second of alternating gray levels 40 apart every half second."""
    still, levels = [landscape(3)] * 16, [np.full((96, 128, 3), 60 + 40 * (k // 8 % 2), np.uint8) for k in range(17)]
    file = io.BytesIO()
    write_media(file, video=still + levels, video_fps=16, container_format="mp4", video_options={"crf": "10"})
    facts = measure_video(file.getvalue(), 33, 16.0, 2.0, "made")
    assert (facts.width_px, facts.height_px) == (128, 96)
    assert sampled_frames(33, 16.0) == [0, 8, 16, 24, 32]
    assert facts.still_share == 0.25  # frames 0 and 8, of four pairs
    luma = 219 / 255 * 40  # limited range
    squares = Image.fromarray(landscape(3)).convert("L").resize((16, 16), Image.Resampling.BOX)
    to_gray = np.abs(np.array(squares).astype(float) - 60).mean() * 219 / 255
    assert facts.motion == pytest.approx((0 + to_gray + 2 * luma) / 4, abs=1)


def test_the_middle_frame_stays_where_it_is_when_a_copy_is_a_little_shorter():
    for seconds in (1, 2, 5, 10, 11):
        places = {middle_frame(round(seconds * 16) + change, 16.0) for change in (-3, -2, -1, 0, 1, 2)}
        assert len(places) == 1, (seconds, places)
    assert all(0 <= middle_frame(count, fps) < count for count in range(1, 100) for fps in (1.0, 12.5, 30.0))


# --- duplicates -------------------------------------------------------------------------------------------------------


@pytest.mark.quick(3)
@pytest.mark.parametrize("max_distance", range(8))
def test_groups_are_those_of_comparing_all_with_all(max_distance):
    rng = np.random.default_rng(max_distance)
    hashes = rng.integers(1, 2**63, (300, 2), dtype=np.uint64)
    for position in range(100, 300):  # copies with a few flipped bits, in one column or both
        hashes[position] = hashes[rng.integers(position)]
        for column in range(rng.integers(1, 3)):
            for bit in rng.choice(64, rng.integers(0, 10), replace=False):
                hashes[position, column] ^= np.uint64(1 << int(bit))
    hashes[rng.choice(300, 20), 1] = NO_HASH
    hashes[rng.choice(300, 20), 0] = NO_HASH
    group_of = list(range(300))
    for one in range(300):
        for other in range(one):
            pairs = [(int(hashes[one, c]), int(hashes[other, c])) for c in range(2)]
            both_there = pairs[0][0] != 0 and pairs[0][1] != 0
            if both_there and all(a == 0 or b == 0 or bin(a ^ b).count("1") <= max_distance for a, b in pairs):
                old, new = group_of[one], group_of[other]
                group_of = [new if group == old else group for group in group_of]
    wanted = [[k for k in range(300) if group_of[k] == group] for group in set(group_of)]
    found = {tuple(group) for group in near_groups(hashes, max_distance)}
    assert found == {tuple(group) for group in wanted if len(group) > 1}


def test_equal_hashes_are_grouped_the_largest_first():
    hashes = np.array([5, 7, 0, 5, 9, 7, 0, 5], np.uint64)
    assert [group.tolist() for group in equal_groups(hashes)] == [[0, 3, 7], [1, 5]]
    assert equal_groups(np.zeros(0, np.uint64)) == near_groups(np.zeros((4, 1), np.uint64), 6) == []


# --- sums -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["duration_seconds", "loudness_lufs"])
def test_histograms_add_up_and_give_quantiles_to_within_a_bin(name):
    quantity = QUANTITIES[name]
    values = np.random.default_rng(0).gamma(2, 5, 1000) - (0 if quantity.is_logarithmic else 40)
    whole, parts = Histogram(quantity), [Histogram(quantity) for _ in range(2)]
    for position, value in enumerate(values):
        whole.add(float(value))
        parts[position % 2].add(float(value))
    parts[0].merge(parts[1])
    assert (parts[0].counts == whole.counts).all()
    assert (parts[0].least, parts[0].most) == (values.min(), values.max())
    assert parts[0].mean == pytest.approx(values.mean())
    for share in (0.0, 0.05, 0.5, 0.95, 1.0):
        error = whole.quantile(share) - np.quantile(values, share)
        assert abs(error) < (0.05 * np.quantile(values, share) if quantity.is_logarithmic else 0.6)
    outside = Histogram(quantity)
    outside.add(-1e9)
    outside.add(1e9)
    assert (outside.counts[[0, -1]] == 1).all()


def test_facts_of_many_values_stay_bounded():
    tally = Tally()
    for value in range(MAX_NAMES + 50):
        tally.add_fact("source_size", value)
    assert len(tally.facts["source_size"]) == MAX_NAMES + 1
    assert tally.facts["source_size"][OTHER] == 50


@pytest.mark.parametrize(
    ("low", "high", "logarithmic"), [(0, 1, False), (-33.5, -11.5, False), (2e3, 5e9, True), (1, 1.04, True)]
)
def test_ticks_are_few_and_inside(low, high, logarithmic):
    found = ticks(low, high, logarithmic)
    assert 1 <= len(found) <= 6
    assert all(low <= value <= high for value in found)


# --- a whole folder ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Eight samples: a clip and two copies of it, another one, a still one, audio and two copies of it."""
    folder = tmp_path_factory.mktemp("stats")
    media = folder / "media"
    media.mkdir()
    half = np.concatenate([sine(1, 24000, 0.25), np.zeros(24000)]).astype(np.float32)[None]
    pan = panning(1, 32)
    small = [np.array(Image.fromarray(frame).resize((96, 72), Image.Resampling.BICUBIC)) for frame in pan[:-1]]
    audio = {"audio": half, "audio_rate_hz": 24000}
    write_media(media / "clip.mp4", video=pan, **audio)
    write_media(media / "copy.webm", video=small, video_codec="libvpx-vp9", audio_codec="libopus", **audio)
    write_media(media / "crushed.mkv", video=pan, video_options={"crf": "38"}, **audio)
    write_media(media / "other.mp4", video=panning(2, 32))
    write_media(
        media / "still.mkv",
        video=[landscape(9)] * 40,
        audio=np.zeros((1, 60000), np.float32),
        audio_codec="flac",
        audio_rate_hz=24000,
    )
    tone = sine(1.5, 24000, 0.5, hz=440).astype(np.float32)[None]
    write_media(media / "tone.flac", audio=tone, audio_rate_hz=24000, audio_codec="flac")
    write_media(media / "tone.wav", audio=tone, audio_rate_hz=24000, audio_codec="pcm_s16le")
    write_media(media / "quieter.flac", audio=tone / 2, audio_rate_hz=24000, audio_codec="flac")
    rows = ["path,what,place"] + [
        f"{path.name},{'<b>clip</b>' if path.suffix in ('.mp4', '.mkv', '.webm') else 'tone'},"
        f"{'here' if path.stem == 'clip' else ''}"
        for path in media.iterdir()
    ]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    build_manifest(media, folder / "all.jsonl", IndexOptions(labels=str(folder / "labels.csv")))
    options = WriteOptions(samples_per_shard=3, on_missing_audio="keep", on_missing_video="keep")
    write_shards(folder / "all.jsonl", folder / "shards", options)
    return folder / "shards"


@pytest.fixture(scope="module")
def stats(shards):
    return collect_stats(shards, num_workers=2)


# The first two are the same AAC in two containers.
EQUAL_AUDIO = [{"clip_mp4", "crushed_mkv"}, {"tone_flac", "tone_wav"}]


def names_of(stats, title):
    return [{stats.key_of(int(index)) for index in group} for group in stats.groups[title]]


@pytest.mark.slow
def test_copies_are_found_and_nothing_else(stats):
    assert names_of(stats, "near-duplicate videos") == [{"clip_mp4", "copy_webm", "crushed_mkv"}]
    assert sorted(map(sorted, names_of(stats, "equal audio"))) == sorted(map(sorted, EQUAL_AUDIO))


def test_numbers_and_facts_are_those_of_the_samples(stats, shards):
    tally, infos = stats.tally, [ShardSet(shards).read(index).info for index in range(8)]
    assert tally.num_samples == 8
    assert tally.facts["streams"] == {"video and audio": 4, "video": 1, "audio": 3}
    assert tally.facts["video_codec"] == {"h264": 4, "vp9": 1}
    assert tally.facts["source_size"] == {"128 x 96": 4, "96 x 72": 1}
    assert tally.facts["stored_size"] == {"128 x 96": 4, "96 x 72": 1}
    assert tally.numbers["duration_seconds"].total == pytest.approx(sum(info.duration_seconds for info in infos))
    assert tally.numbers["num_frames"].total == sum(info.num_frames for info in infos)
    assert tally.labels == {"what": {"tone": 3, "<b>clip</b>": 5}, "place": {"here": 1}}
    assert tally.num_labeled == {"what": 8, "place": 1}
    assert tally.counts["wholly silent"] == tally.counts["digital silence"] == tally.counts["wholly still"] == 1
    assert tally.numbers["silent_share"].mean == pytest.approx((3 * 0.5 + 1) / 7, abs=0.02)
    assert tally.numbers["still_share"].total == 1
    assert tally.numbers["rms_dbfs"].most == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.02)


def test_the_number_of_workers_changes_nothing(stats, shards):
    assert collect_stats(shards, num_workers=1).to_json() == stats.to_json()


class Page(HTMLParser):
    """Tags that close in the right order, what they refer to, and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.references, self.words = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.references += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def test_the_command_writes_a_table_a_page_that_needs_nothing_else_and_json(shards, tmp_path, capsys):
    arguments = [
        "stats",
        str(shards),
        "--workers",
        "1",
        "--out",
        str(tmp_path / "page"),
        "--numbers",
        str(tmp_path / "s.json"),
    ]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "8 samples in 3 shards" in printed
    assert "near-duplicate videos: 3 samples in 1 group" in printed
    text = (tmp_path / "page" / "stats.html").read_text()
    page = Page(text)
    assert all(reference.startswith("data:") for reference in page.references)
    pictures = [reference for reference in page.references if reference.startswith("data:image/jpeg;base64,")]
    assert len(pictures) == 3 + 2  # an image of each sample in a group that has one; players have posters
    assert "<b>clip</b>" in page.words  # a label is text, not markup
    numbers = json.loads((tmp_path / "s.json").read_text())
    assert numbers["num_samples"] == 8
    assert sum(count for _, _, count in numbers["numbers"]["motion"]["bins"]) == 5


def test_without_decoding_equal_bytes_are_duplicates(shards, capsys):
    assert main(["stats", str(shards), "--workers", "1", "--no-decode"]) == 0
    printed = capsys.readouterr().out
    assert "equal audio: 4 samples in 2 groups" in printed
    assert "equal videos: none" in printed
    assert "Loudness" not in printed


def test_a_damaged_sample_is_counted_and_named(shards, tmp_path, capsys):
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    position = ShardSet(shards).keys.index("tone_wav")
    at = (tar := copy / f"shard-{position // 3:06d}.tar").read_bytes()
    audio = ShardSet(shards).read(position).audio
    tar.write_bytes(at.replace(audio[:5000], b"\0" * 5000))
    assert main(["stats", str(copy), "--workers", "1", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "cannot be read: 1 not_media" in printed
    assert "tone_wav" in printed
    assert "tone_wav" in Page((tmp_path / "stats.html").read_text()).words


@pytest.mark.slow
def test_images_have_sizes_and_near_duplicates(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for seed in range(4):
        Image.fromarray(landscape(seed)).save(tmp_path / "images" / f"{seed}.png")
    Image.fromarray(landscape(2)).resize((100, 75)).save(tmp_path / "images" / "copy.jpg", quality=50)
    Image.fromarray(np.full((50, 50, 3), 7, np.uint8)).save(tmp_path / "images" / "flat.png")
    build_manifest(tmp_path / "images", tmp_path / "all.jsonl", IndexOptions())
    write_shards(tmp_path / "all.jsonl", tmp_path / "shards", WriteOptions(samples_per_shard=4))
    stats = collect_stats(tmp_path / "shards")
    assert names_of(stats, "near-duplicate images") == [{"2_png", "copy_jpg"}]
    assert stats.tally.counts["flat images"] == 1
    assert stats.tally.facts["stored_size"] == {"128 x 96": 4, "100 x 75": 1, "50 x 50": 1}
    assert stats.tally.facts["image_format"] == {"PNG": 5, "JPEG": 1}


def test_wrong_arguments_are_named(shards, tmp_path, capsys):
    for wrong in (["--max-distance", "40"], ["--silence-dbfs", "3"], ["--still-levels", "-1"]):
        assert main(["stats", str(shards), *wrong]) == 2
        assert f"{wrong[0]} is" in capsys.readouterr().err
    assert main(["stats", str(tmp_path)]) == 2
    assert "no finished shard folder" in capsys.readouterr().err
