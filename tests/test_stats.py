"""data_prep stats: sums, and a whole folder with duplicates, silence and stillness that are known; the page."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avssl.shards.shard_set import ShardSet
from data_prep.__main__ import main
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.inspect.stats.charts import ticks
from data_prep.inspect.stats.collect import collect_stats
from data_prep.inspect.stats.tally import MAX_NAMES, OTHER, QUANTITIES, Histogram, Tally
from data_prep.transcode.encode import write_media
from data_prep.transcode.options import WriteOptions
from data_prep.write.run import write_shards
from tests.clips import landscape, panning, sine

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
        "--num-workers",
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
    assert main(["stats", str(shards), "--num-workers", "1", "--no-decode"]) == 0
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
    assert main(["stats", str(copy), "--num-workers", "1", "--out", str(tmp_path)]) == 1
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
