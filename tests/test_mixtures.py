"""Training on several shard folders: one index over all of them, exact resume, bad lists, and whole runs."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from avssl import checkpoint, config
from avssl.data.loader import Loader, LoaderConfig
from avssl.data.order import mixed_rank_order, rank_order
from avssl.eval import overlap
from avssl.exchange.card import card
from avssl.exchange.folder import export_folder
from avssl.shards.folders import shard_folders
from avssl.shards.mixture import ShardMixture, check_modalities, open_shards
from avssl.shards.shard_set import ShardSet
from avssl.transforms.config import AudioViewConfig, VideoViewConfig, ViewsConfig
from avssl.transforms.view_maker import ViewMaker
from avssl.types import MediaError, View
from tests.conftest import TINY, losses_of, run_python


def loader_of(shards, seed=0, **options):
    options = {"global_batch_size": 4, "num_workers": 0} | options
    audio = AudioViewConfig(seconds=0.5, window_samples=256, hop_samples=480, num_frames=25)
    maker = ViewMaker(ViewsConfig(video=VideoViewConfig(num_frames=4, size_px=24), audio=audio), ["audio", "video"])
    views = (View("video", "video"), View("audio", "audio"))
    return Loader(shards, LoaderConfig(**options), views, maker, seed=seed, device=torch.device("cpu"))


def test_a_list_without_weights_is_a_folder_of_all_samples(shards):
    both = open_shards([str(shards["train"]), str(shards["test"])])
    assert both.weights is None
    assert both.shard_sizes == [7, 7, 4, 6]
    expected = rank_order([7, 7, 4, 6], seed=4, epoch=2, global_batch_size=12, num_lanes=4, shuffle_block=16, rank=0,
                          world_size=1)  # fmt: skip
    assert loader_of(both, global_batch_size=12, order_lanes=4, shuffle_block=16, seed=4)._order(epoch=2).tolist() == (
        expected.tolist()
    )


@pytest.fixture
def weighted(shards):
    """`data.shards` of the 18 training samples with weight 1 and the 6 test samples with weight 2."""
    return [{"path": str(shards["train"]), "weight": 1}, {"path": str(shards["test"]), "weight": 2.0}]


def test_samples_are_those_of_the_folders_with_one_index_over_all(weighted, shards):
    both = pickle.loads(pickle.dumps(open_shards(weighted)))
    train, test = ShardSet(shards["train"]), ShardSet(shards["test"])
    assert both.num_samples == len(both) == 24
    assert both.keys == [*train.keys, *test.keys]
    for position in (0, 17, 18, 23):
        part, row = (train, position) if position < 18 else (test, position - 18)
        sample, alone = both.read(position), part.read(row)
        assert (sample.video, sample.audio) == (alone.video, alone.audio)
        assert sample.info.index == both.read_info(position).index == position
        assert sample.info.key == both.read_info(position).key == alone.info.key
        assert both.shard_of(position) == part.shard_of(row)
    for position in (-1, 24):
        with pytest.raises(IndexError, match=r"there are 0\.\.23"):
            both.read(position)
    assert both.index.num_samples == 24
    assert [record.first_index for record in both.index.shards] == [0, 7, 14, 18]
    assert both.index.num_listed == train.index.num_listed + test.index.num_listed
    assert set(both.index.label_names) == set(train.index.label_names)
    assert len(both.side_cars()) == 4
    both.close()


def test_the_fingerprint_depends_on_the_folders_and_their_order_and_not_on_where_they_lie(shards, tmp_path):
    moved = shutil.copytree(shards["test"], tmp_path / "moved")
    train, test = str(shards["train"]), str(shards["test"])
    both, again, turned = (open_shards(paths) for paths in ([train, test], [train, str(moved)], [test, train]))
    assert both.fingerprint == again.fingerprint != turned.fingerprint
    assert open_shards([train]).fingerprint == open_shards(train).fingerprint == ShardSet(train).fingerprint


def test_an_epoch_begun_in_the_middle_gives_the_same_batches(weighted):
    straight = list(loader_of(open_shards(weighted)).epoch(1))
    resumed = list(loader_of(open_shards(weighted), num_workers=1).epoch(1, first_batch=3))
    assert len(straight) == 24 // 4
    for left, right in zip(straight[3:], resumed, strict=True):
        assert torch.equal(left.index, right.index)
        assert all(torch.equal(view, right.views[name]) for name, view in left.views.items())


def test_a_pass_over_everything_has_every_sample_of_all_folders_once(weighted):
    indices = [
        index for batch in loader_of(open_shards(weighted)).every_sample_once() for index in batch.index.tolist()
    ]
    assert indices == list(range(24))


def test_folders_of_a_server_are_mixed_with_those_of_a_disk(shards, tmp_path):
    import fsspec

    store = fsspec.filesystem("memory")
    for path in shards["test"].iterdir():
        store.pipe_file(f"/mixed/{path.name}", path.read_bytes())
    both = open_shards([str(shards["train"]), "memory://mixed"], tmp_path / "cache")
    assert both.is_remote
    assert both.read(20).info.key == ShardSet(shards["test"]).keys[2]
    assert both.fingerprint == open_shards([str(shards["train"]), str(shards["test"])]).fingerprint
    both.close()


def test_a_damaged_sample_does_not_end_the_check_of_modalities(shards, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(shards["test"], damaged)
    side_car = ShardSet(damaged).side_cars()[0]
    path = damaged / side_car.record.name
    content = bytearray(path.read_bytes())

    def break_first(count):
        content[: side_car.offsets[count]] = bytes(side_car.offsets[count])
        path.write_bytes(content)
        return open_shards([str(shards["train"]), str(damaged)])

    both = break_first(1)
    with pytest.raises(MediaError):
        both.read_info(18)
    check_modalities(both, ["video", "audio"])
    with pytest.raises(ValueError, match="has no image"):
        check_modalities(both, ["image"])
    check_modalities(break_first(6), ["video"])  # the loader says that all are damaged


# Lists that are refused


def test_a_folder_without_samples_is_refused_by_name(shards, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    index = json.loads((shards["test"] / "index.json").read_text())
    index |= {
        "shards": [],
        "num_samples": 0,
        "num_written": 0,
        "num_shards": 0,
        "total_bytes": 0,
        "num_listed": 0,
        "num_skipped": 0,
        "skipped_by_reason": {},
    }
    (empty / "index.json").write_text(json.dumps(index))
    for entries in ([shards["train"], empty], [empty, shards["train"]]):
        with pytest.raises(
            ValueError, match=r"data\.shards has .*empty, which holds no samples; take it from the list"
        ):
            open_shards([str(entry) for entry in entries])


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    ("shards", "words"),
    [
        ([], "an empty list; it must be a folder or URL, or a list"),
        (3, r"data\.shards is 3; it must be"),
        ({"path": "a"}, "it must be a folder or URL, or a list of them"),
        (["a", 3], r"data\.shards\[1\] is 3; it must be a path or {path: ..., weight: ..., keys: ...}"),
        (["a", ""], r"data\.shards\[1\] is ''"),
        ([{"path": "a", "weigth": 1}], r"data\.shards\[0\] has the key 'weigth'\. Did you mean 'weight'\?"),
        ([{"weight": 1}], r"data\.shards\[0\] has the path None"),
        ([{"path": "a", "weight": -1}, "b"], r"\(a\) has the weight -1; it must be a number above 0"),
        ([{"path": "a", "weight": 0}], "To leave a folder out, take it from the list"),
        ([{"path": "a", "weight": True}], "has the weight True"),
        ([{"path": "a", "weight": float("nan")}], "has the weight nan"),
        ([{"path": "a", "weight": "much"}], "has the weight 'much'"),
        ([{"path": "a", "weight": 1}, "b"], "b has no weight, and others have one"),
    ],
)
def test_a_bad_list_is_refused_with_what_is_allowed(shards, words):
    with pytest.raises(ValueError, match=words):
        shard_folders(shards)
    given = json.dumps(shards).replace("NaN", ".nan")
    with pytest.raises(config.ConfigError, match=words):
        config.parse(config.RunConfig, [f"data.shards={given}"])


def test_a_missing_folder_and_a_folder_twice_are_refused(shards, tmp_path):
    train = str(shards["train"])
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/none"):
        open_shards([train, f"{tmp_path}/none"])
    with pytest.raises(ValueError, match="hold the same shards: every sample would have two indices"):
        open_shards([train, str(shutil.copytree(train, tmp_path / "copy"))])


def test_a_folder_of_other_modalities_is_refused(shards, image_shards):
    both = open_shards([str(shards["train"]), str(image_shards)])
    with pytest.raises(ValueError, match=rf"{image_shards} has no audio and no video \(its samples have image\)"):
        check_modalities(both, ["audio", "video"])
    check_modalities(open_shards([str(shards["train"]), str(shards["test"])]), ["audio", "video"])


def test_a_single_folder_of_other_modalities_is_refused_with_the_value_that_fits(shards, image_shards):
    held = r"the loss reads image, and .* has no image \(its samples have video and audio\)"
    with pytest.raises(
        ValueError, match=rf"{held}\. Add loss.modalities=\[video,video\] or loss.modalities=\[audio,audio\]$"
    ):
        check_modalities(open_shards(str(shards["train"])), ["image"], ("image", "image"))
    with pytest.raises(ValueError, match=r"has no audio and no video \(its samples have image\)$"):
        check_modalities(open_shards(str(image_shards)), ["audio", "video"])
    check_modalities(open_shards(str(image_shards)), ["image"], ("image", "image"))


# Runs


@pytest.fixture(scope="module")
def mixed_run(shards, tmp_path_factory):
    """A finished AVID run of one epoch over both folders, with weights."""
    run = tmp_path_factory.mktemp("mixed") / "run"
    listed = f"data.shards=[{{path: {shards['train']}, weight: 1}}, {{path: {shards['test']}, weight: 2}}]"
    run_python("-m", "avssl", "pretrain", "avid", *TINY, f"run={run}", listed, "epochs=1")
    return run


@pytest.mark.slow
def test_the_memory_bank_of_avid_has_a_row_for_every_sample_of_all_folders(mixed_run, weighted):
    banks = load_file(mixed_run / "encoders.safetensors")
    banks = {key: value for key, value in banks.items() if ".banks." in key}
    assert sorted(value.shape for value in banks.values()) == [(24, 8), (24, 8)]
    order = mixed_rank_order([[7, 7, 4], [6]], [1, 2], seed=0, epoch=0, global_batch_size=4, num_lanes=2,
                             shuffle_block=4096, rank=0, world_size=1)  # fmt: skip
    seen = set(order.ravel().tolist())
    assert len(seen) < 24
    # A run of no step of learning has the rows with which the banks begin: only those of samples that came have moved.
    from avssl.losses.avid import AVID, AVIDConfig
    from avssl.models import create_encoder

    cfg = config.load_run(mixed_run)
    encoders = {name: create_encoder(**cfg.encoders[name]) for name in ("audio", "video")}
    begun = AVID(AVIDConfig(**vars(cfg.loss)), encoders, 24).state_dict()
    for key, value in banks.items():
        moved = np.abs(value - begun[key.removeprefix("loss.")].numpy()).max(axis=1) > 1e-6
        assert set(np.flatnonzero(moved).tolist()) == seen


@pytest.mark.slow
def test_a_run_says_what_all_folders_are(mixed_run, shards, tmp_path):
    facts = checkpoint.read_provenance(mixed_run)
    assert facts["data"]["num_samples"] == 24
    folders = facts["data"]["shards"]
    assert [(item["shards"], item["num_samples"], item["weight"]) for item in folders] == [
        (str(shards["train"]), 18, 1.0), (str(shards["test"]), 6, 2.0),
    ]  # fmt: skip
    assert [item["fingerprint"] for item in folders] == [
        ShardSet(shards[name]).fingerprint for name in ("train", "test")
    ]
    for name in ("train", "test"):
        measured = overlap.measure_overlap(mixed_run, [("", str(shards[name]))])
        assert measured["by_run"] == "known"
        assert measured["tests"][0]["num_in_run"] == measured["tests"][0]["num_test"]
    text = card(config.load_run(mixed_run), facts, {}, "mixed")
    assert "24 samples, `train` (18, weight 1) and `test` (6, weight 2)" in text
    export_folder(mixed_run, tmp_path / "out")
    exported = checkpoint.read_provenance(tmp_path / "out")["data"]["shards"]
    assert [item["shards"] for item in exported] == ["train", "test"]
    run_python("-m", "avssl", "report", mixed_run)
    page = (mixed_run / "report.html").read_text()
    assert all(str(shards[name]) in page for name in ("train", "test"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ("[{{path: {train}, weight: 1}}, {{path: {test}, weight: 3}}]", "weights: [1.0, 2.0] then, [1.0, 3.0] now"),
        ("[{train}, {test}]", "weights: [1.0, 2.0] then, None now"),
        ("[{{path: {test}, weight: 1}}, {{path: {train}, weight: 2}}]", "manifest: "),
        ("{train}", "num_samples: 24 then, 18 now"),
    ],
)
def test_other_weights_and_another_order_of_folders_are_refused_by_name(listed, words, mixed_run, shards, tmp_path):
    run = shutil.copytree(mixed_run, tmp_path / "run")
    options = [*TINY, f"run={run}", f"data.shards={listed.format(**shards)}", "epochs=2"]
    process = run_python("-m", "avssl", "pretrain", "avid", *options, check=False)
    assert process.returncode == 1
    assert words in process.stderr


def test_media_that_two_folders_share_are_said(shards, tmp_path):
    part = ShardSet(shards["test"])
    other = ShardMixture([ShardSet(shards["train"]), part])
    assert overlap.mixture_warnings(other) == []
    assert overlap.mixture_warnings(part) == []

    class Renamed(ShardSet):
        location = "renamed"

    renamed = Renamed(shards["test"])
    renamed.__dict__["fingerprint"] = "another"
    assert [line[:64] for line in overlap.mixture_warnings(ShardMixture([part, renamed]))] == [
        f"6 of 6 samples of {shards['test']} have the same media as"[:64]
    ]


# Encoders without batch norm, which knows only the samples of its process.
PLAIN_ENCODERS = """
from torch import nn
from avssl.models import register_encoder

def averages(channels, pool):
    net = nn.Sequential(pool, nn.Flatten(), nn.Linear(channels, 8))
    net.dim = 8
    return net

@register_encoder("plain_video", modality="video")
def plain_video():
    return averages(3 * 16, nn.AdaptiveAvgPool3d((1, 4, 4)))

@register_encoder("plain_audio", modality="audio")
def plain_audio():
    return averages(16, nn.AdaptiveAvgPool2d(4))
"""


@pytest.mark.slow
def test_a_mixed_run_resumes_exactly_and_two_processes_compute_what_one_computes(weighted, tmp_path):
    (tmp_path / "plain.py").write_text(PLAIN_ENCODERS)
    encoders = ["encoders.video={name: plain_video}", "encoders.audio={name: plain_audio}"]
    tiny = [option for option in TINY if not option.startswith("encoders.")]
    options = ["avid", *tiny, *encoders, "--plugin=plain.py", f"data.shards={json.dumps(weighted)}"]
    options += ["checkpoint_every_steps=1", "data.num_workers=1"]

    for run, steps in (("whole", 14), ("stopped", 8), ("stopped", 14)):
        run_python("-m", "avssl", "pretrain", *options, f"run={run}", f"steps={steps}", folder=tmp_path)
    assert losses_of(tmp_path / "whole") == losses_of(tmp_path / "stopped")
    assert len(losses_of(tmp_path / "whole")) == 14  # over two epochs
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "avssl.recipes.pretrain"]
    run_python(*launcher, *options, "run=two", "steps=14", folder=tmp_path)
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "whole"), rel=1e-4)
    whole, two = (load_file(tmp_path / run / "encoders.safetensors") for run in ("whole", "two"))
    for name in ("loss.banks.video.rows", "loss.banks.audio.rows"):
        np.testing.assert_allclose(two[name], whole[name], atol=1e-4)
