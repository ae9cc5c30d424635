"""Media to shards in one call, and a folder of media in place of shards."""

import dataclasses
import json
import re
import shlex
import shutil

import pytest

import avssl
from avssl import config
from avssl.prepared import options_for, shards_of
from avssl.shards.shard_set import ShardSet
from data_prep.__main__ import main
from data_prep.transcode.options import WriteOptions
from tests.conftest import ROOT, TINY, run_python
from tests.test_recipes import RECIPES

SMALL = {"short_side_px": 32, "samples_per_shard": 7, "num_workers": 1}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def recipe(name, *changes):
    return config.parse(config.RunConfig, [str(ROOT / f"recipes/configs/{name}.yaml"), *changes])


@pytest.mark.slow
def test_the_call_writes_the_bytes_of_the_two_commands_and_counts_as_they_do(corpus, tmp_path):
    videos = tmp_path / "videos"
    shutil.copytree(corpus / "test", videos)
    (videos / "broken.mp4").write_bytes(b"no media at all")
    prepared = avssl.prepare(videos, tmp_path / "one", labels=str(videos / "labels.csv"), **SMALL)
    manifest = tmp_path / "one.jsonl"  # of the same name: the paths in it are relative
    assert (prepared.shards, prepared.manifest) == (tmp_path / "one", manifest)
    assert (prepared.num_listed, prepared.num_samples, prepared.num_skipped) == (7, 6, 1)
    assert prepared.skipped_by_reason == {"not_media": 1}
    assert "1 skipped: not_media" in str(prepared)

    by_hand = tmp_path / "by_hand.jsonl"
    assert main(["index", str(videos), "--out", str(by_hand), "--labels", str(videos / "labels.csv")]) == 0
    assert by_hand.read_bytes() == manifest.read_bytes()
    options = ["--short-side-px", "32", "--samples-per-shard", "7"]
    assert main(["write", str(by_hand), "--out", str(tmp_path / "two"), *options]) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_media_that_have_not_changed_are_not_written_again_and_others_are_refused(corpus, tmp_path):
    videos = tmp_path / "videos"
    shutil.copytree(corpus / "test", videos)
    first = avssl.prepare(videos, tmp_path / "shards", **SMALL)
    written = {path: path.stat().st_mtime_ns for path in first.shards.iterdir()}
    again = avssl.prepare(videos, tmp_path / "shards", **SMALL)
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in again.shards.iterdir()} == written
    name = next(videos.rglob("*.mkv"), None) or next(videos.rglob("*.mp4"))
    name.unlink()
    with pytest.raises(ValueError, match="another manifest"):
        avssl.prepare(videos, tmp_path / "shards", **SMALL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short_side": 32}, "no option 'short_side'; did you mean 'short_side_px'"),
        ({"part": "0/2"}, "prepare has no option 'part'; "),
        ({"crf": "good"}, "argument --crf: invalid int value: 'good'"),
        ({"on_missing_audio": "ignore"}, "invalid choice: 'ignore'"),
        ({"num_workers": 0}, "num_workers is 0; it must be at least 1"),
    ],
)
def test_wrong_options_are_errors_that_say_what_there_is(options, message, corpus, tmp_path):
    with pytest.raises(ValueError, match=message):
        avssl.prepare(corpus / "test", tmp_path / "shards", **options)


def test_nothing_that_could_be_used_is_an_error_with_the_accounting(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/a.mp4").write_bytes(b"not a video")
    with pytest.raises(ValueError, match=r"nothing could be used(.|\n)*1 skipped: not_media"):
        avssl.prepare(tmp_path / "videos", tmp_path / "shards")


def test_options_follow_the_views_of_the_recipe():
    default = WriteOptions()
    avid = options_for(recipe("avid"), ["audio", "video"])
    for name in ("short_side_px", "fps", "audio_rate_hz", "on_missing_audio", "on_missing_video"):
        assert avid[name] == getattr(default, name), "AVID's views are those of the defaults"
    demo = options_for(recipe("demo_avid"), ["audio", "video"])
    assert (demo["short_side_px"], demo["fps"], demo["audio_rate_hz"]) == (56, 8.0, 16_000)
    sounds = options_for(recipe("byol_audio"), ["audio"])
    assert sounds == {
        "kind": "media", "audio_rate_hz": 16_000, "on_missing_video": "keep", "on_missing_audio": "skip"
    }  # fmt: skip
    assert options_for(recipe("simclr"), ["image"]) == {"kind": "images", "short_side_px": 256}


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", RECIPES)
def test_options_of_every_recipe_are_options_of_write(name):
    from avssl import losses

    cfg = recipe(name)
    options = options_for(cfg, losses.get(cfg.loss.name).modalities(cfg.loss))
    assert options.pop("kind") in ("media", "images")
    assert dataclasses.asdict(WriteOptions(**options))


@pytest.fixture
def no_media(tmp_path):
    folder = tmp_path / "letters"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").touch()
    (folder / "a.zip").touch()
    return folder


def test_a_folder_of_neither_says_what_it_holds(no_media, tmp_path):
    cfg = recipe("avid", f"data.shards={no_media}", f"run={tmp_path}/run")
    with pytest.raises(ValueError, match=r"holds no media files; it holds 3 \.txt, 1 \.zip"):
        shards_of(cfg, ["audio", "video"])


@pytest.mark.slow
def test_what_is_no_folder_of_shards_or_media_is_an_error_that_says_what_it_is(shards, tmp_path):
    def refused(location, error, message):
        with pytest.raises(error, match=message):
            shards_of(recipe("avid", f"data.shards={location}", f"run={tmp_path}/run"), ["audio", "video"])

    refused(tmp_path / "nowhere", FileNotFoundError, "nowhere: no such folder")
    (tmp_path / "list.csv").touch()
    refused(tmp_path / "list.csv", ValueError, r"list\.csv: is a file; .*`avssl prep index` takes lists")
    refused(shards["train"].parent, ValueError, "holds no shards itself, but these folders in it do: test, train")
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "x-000.tar").touch()
    for foreign in ("tars", "tars/x-000.tar", "x-{000..009}.tar", "data.parquet"):
        command = re.escape(
            f"avssl prep index {shlex.quote(str(tmp_path / foreign))} --out corpus.jsonl && avssl prep write"
        )
        refused(tmp_path / foreign, ValueError, f"every sample keeps its number. Prepare them once: {command}")
    refused("https://example.org/x.tar", ValueError, "avssl prep index https://example.org/x.tar")


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["index.json", ".parts", "shard-000000.tar"])
def test_unfinished_or_damaged_shards_are_left_to_their_own_error(name, tmp_path):
    (tmp_path / name).touch()
    assert shards_of(recipe("avid", f"data.shards={tmp_path}"), ["audio", "video"]) == str(tmp_path)
    assert shards_of(recipe("avid", "data.shards=s3://bucket/shards"), ["video"]) == "s3://bucket/shards"


def test_a_folder_of_media_in_a_list_becomes_shards_and_keeps_its_weight(shards, corpus, tmp_path):
    cfg = recipe("avid", f"run={tmp_path}/run", "views.video.size_px=28")
    cfg.data.shards = [{"path": str(shards["train"]), "weight": 1.0}, {"path": str(corpus / "test"), "weight": 2.0}]
    assert shards_of(cfg, ["audio", "video"]) == [
        {"path": str(shards["train"]), "weight": 1.0}, {"path": f"{tmp_path}/run/shards-1", "weight": 2.0}
    ]  # fmt: skip
    assert ShardSet(tmp_path / "run/shards-1").num_samples == 6


@pytest.mark.slow
def test_a_run_reads_the_shards_that_are_made_of_its_media_and_finds_them_again(corpus, tmp_path, capsys):
    cfg = recipe("avid", f"data.shards={corpus / 'test'}", f"run={tmp_path}/run", "views.video.size_px=28")
    assert shards_of(cfg, ["audio", "video"]) == f"{tmp_path}/run/shards"
    said = capsys.readouterr().out
    assert f"holds no shards: they are made of its media in {tmp_path}/run/shards (kind=media, short_side_px=32" in said
    assert "6 written" in said
    index = tmp_path / "run/shards/index.json"
    written = index.stat().st_mtime_ns
    assert shards_of(cfg, ["audio", "video"]) == f"{tmp_path}/run/shards"
    assert index.stat().st_mtime_ns == written
    cfg.views.video.size_px = 56
    with pytest.raises(ValueError, match=rf"is no longer that of which {tmp_path}/run/shards was made .*short_side_px"):
        shards_of(cfg, ["audio", "video"])


@pytest.mark.slow
def test_a_run_prepares_media_trains_on_them_and_goes_on_with_the_same_shards(corpus, tmp_path):
    videos = tmp_path / "videos"
    shutil.copytree(corpus / "test", videos)
    command = ["recipes/pretrain.py", "recipes/configs/avid.yaml", *TINY, f"run={tmp_path}/run"]
    first = run_python(*command, f"data.shards={videos}", "steps=1").stdout
    assert f"{videos} holds no shards: they are made of its media in {tmp_path}/run/shards (kind=media" in first
    assert "6 written" in first
    index = tmp_path / "run/shards/index.json"
    assert json.loads(index.read_text())["options"]["short_side_px"] == 38  # of 32 px views
    assert config.load_run(tmp_path / "run").data.shards == f"{tmp_path}/run/shards"
    changed = index.stat().st_mtime_ns
    again = run_python(*command, f"data.shards={videos}", "steps=2").stdout
    assert "going on from" in again
    assert index.stat().st_mtime_ns == changed
    next(videos.rglob("*.mp4")).unlink()
    process = run_python(*command, f"data.shards={videos}", "steps=3", check=False)
    assert process.returncode == 1
    assert f"is no longer that of which {tmp_path}/run/shards was made" in process.stderr
    assert f"data.shards={tmp_path}/run/shards" in process.stderr
    assert "going on from" in run_python(*command, f"data.shards={tmp_path}/run/shards", "steps=3").stdout


@pytest.mark.slow
def test_one_of_two_processes_prepares_for_both(corpus, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "recipes/pretrain.py"]
    changes = [*TINY, f"run={tmp_path}/run", f"data.shards={corpus / 'test'}", "steps=1"]
    process = run_python(*launcher, "recipes/configs/avid.yaml", *changes)
    assert process.stdout.count("6 written") == 1
    assert ShardSet(tmp_path / "run/shards").num_samples == 6
    process = run_python(*launcher, "recipes/configs/avid.yaml", *changes, f"data.shards={tmp_path}/none", check=False)
    assert process.returncode != 0
    assert process.stderr.count("none: no such folder") >= 1


@pytest.mark.slow
def test_an_image_recipe_makes_image_shards(tmp_path):
    import numpy as np
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(generator.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    small = ["cpu=true", "encoders.image={name: resnet10, width: 4}", "views.image.size_px=32", "steps=1"]
    auto = ["data.global_batch_size=auto", "data.num_workers=auto"]
    process = run_python(
        "recipes/pretrain.py", "recipes/configs/simclr.yaml", *small, *auto, f"run={tmp_path}/run",
        f"data.shards={folder}", "sync_batch_norm=false",
    )  # fmt: skip
    assert "(kind=images, short_side_px=38)" in process.stdout
    assert ShardSet(tmp_path / "run/shards").read(0).image is not None
