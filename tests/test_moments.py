"""Other moments of a clip as negatives: losses, views, resume."""

import numpy as np
import pytest
import torch

from avssl import losses
from avssl.data import read_views
from avssl.losses.avid import AVID, AVIDConfig
from avssl.losses.base import PairConfig
from avssl.losses.configs import MoCoConfig, SimCLRConfig
from avssl.losses.moco import MoCo, info_nce
from avssl.losses.moments import all_moments, moment_cross_entropy, split_moments, with_moments
from avssl.losses.simclr import SimCLR
from avssl.shards.shard_set import ShardSet
from avssl.transforms.config import AudioViewConfig, VideoViewConfig, ViewsConfig, check_views
from avssl.transforms.time_sampling import equal_parts
from avssl.types import MediaError, Progress, Span, View
from tests.textbook import avid as textbook_avid
from tests.textbook import moco as textbook_moco
from tests.textbook import moments as textbook
from tests.textbook import simclr as textbook_simclr
from tests.textbook.gradients import gradient
from tests.tiny import Run

DIM, BATCH_SIZE, NUM_MOMENTS = 6, 5, 3
GENERATOR = np.random.default_rng(0)
VIDEO, AUDIO = GENERATOR.normal(size=(2, BATCH_SIZE, 1 + NUM_MOMENTS, DIM))
QUEUE = GENERATOR.normal(size=(7, DIM))
PAIR = ("video", "audio")
IN_SYNC = ViewsConfig(
    video=VideoViewConfig(num_frames=4, fps=16.0), audio=AudioViewConfig(seconds=0.25), max_offset_seconds=0.0
)


def tensors(*arrays):
    return [torch.tensor(array, dtype=torch.float32, requires_grad=True) for array in arrays]


def assert_equals_textbook(value, given, expected_value, arrays, relative=1e-5):
    """Value and gradients; central differences are good to about 1e-9 of the value."""
    value.backward()
    assert value.item() == pytest.approx(expected_value(*arrays), rel=relative)
    for mine, expected in zip(given, gradient(expected_value, *arrays), strict=True):
        np.testing.assert_allclose(mine.grad, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_cross_entropies_with_other_moments_equal_the_textbook_in_value_and_gradient(temperature):
    given = tensors(VIDEO, AUDIO)
    value = moment_cross_entropy(*given, temperature)
    assert_equals_textbook(value, given, lambda *x: textbook.moment_cross_entropy(*x, temperature), (VIDEO, AUDIO))
    arrays = VIDEO[:, 0], AUDIO[:, 0]
    video, audio, moments = tensors(*arrays, AUDIO[:, 1:])
    value = info_nce(video, audio, torch.tensor(QUEUE), temperature, moments)
    assert_equals_textbook(
        value, [video], lambda v: textbook_moco.info_nce(v, arrays[1], QUEUE, temperature, AUDIO[:, 1:]), arrays[:1]
    )
    assert moments.grad is None  # keys come from the teacher


def test_moments_pass_through_the_network_with_their_pairs_and_return_to_their_samples():
    rows = torch.arange(3.0)[:, None]
    views = {"second": rows, "second_other_2": rows + 20, "second_other_1": rows + 10, "first_other_1": rows + 90}
    rows = with_moments(views, "second")
    assert rows[:, 0].tolist() == [0, 10, 20, 1, 11, 21, 2, 12, 22]
    own, others = split_moments(rows, 2)
    assert own[:, 0].tolist() == [0, 1, 2]
    assert others[..., 0].tolist() == [[10, 20], [11, 21], [12, 22]]
    assert torch.equal(all_moments({"a": own, "a_moments": others}, "a").flatten(0, 1), rows)


@pytest.mark.parametrize("name", ["avid", "simclr", "moco"])
def test_losses_add_the_negatives_of_the_same_clip_as_the_textbook_says(name):
    run = Run(name, PAIR, num_negatives_same_clip=2, seed=3)
    index = torch.arange(8)
    outputs = run.loss(run.make_views(index, (), 0))
    z = {key: value.detach().double().numpy() for key, value in outputs.items()}
    first, second = PAIR if name == "avid" else ("first", "second")
    others = [z[f"{view}_moments"] for view in (first, second)]
    assert [each.shape[:2] for each in others] == [(8, 2)] * 2
    temperature = run.config.temperature
    value = run.loss.loss(outputs, index, Progress()).total.item()
    if name == "moco":
        queues = {modality: run.loss.queue(modality).rows.double().numpy() for modality in PAIR}
        video = (z["first"], z["second_key"], queues["audio"], temperature, others[1])
        audio = (z["second"], z["first_key"], queues["video"], temperature, others[0])
        expected = (textbook_moco.info_nce(*video) + textbook_moco.info_nce(*audio)) / 2
    else:
        both = [
            np.concatenate([z[view][:, None], other], 1) for view, other in zip((first, second), others, strict=True)
        ]
        if name == "simclr":
            expected = textbook_simclr.two_way_cross_entropy(*(rows.reshape(24, -1) for rows in both), temperature)
        else:
            negatives = run.loss.draw_negatives(index[:, None], Progress()).numpy()
            banks = {modality: run.loss.bank(modality).rows.double().numpy() for modality in PAIR}
            raw = {modality: z[modality] for modality in PAIR}
            expected = textbook_avid.avid(raw, banks, index.numpy(), negatives, temperature, "cross")[0]
            expected += textbook.moment_cross_entropy(*both, temperature)
    assert value == pytest.approx(expected, rel=2e-5)


def test_keys_of_other_moments_do_not_enter_mocos_queue():
    run = Run("moco", PAIR, num_negatives_same_clip=2)
    _, outputs = run.step()
    for view, modality in (("first", "video"), ("second", "audio")):
        expected = torch.nn.functional.normalize(outputs[f"{view}_key"].float(), dim=1)
        assert torch.equal(run.loss.queue(modality).rows, expected)  # a queue of one batch


def test_without_the_options_nothing_changes():
    for config, cls in ((SimCLRConfig(modalities=PAIR), SimCLR), (MoCoConfig(modalities=PAIR), MoCo)):
        assert [view.name for view in cls.views(config)] == ["first", "second"]
    assert [view.name for view in AVID.views(AVIDConfig())] == ["video", "audio"]
    assert set(Run("avid", PAIR).step()[1]) == set(PAIR)


@pytest.mark.parametrize("name", ["avid", "simclr", "moco"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(name):
    options = {"num_negatives_same_clip": 2}
    straight = Run(name, PAIR, **options)
    values = [straight.step()[0].total.item() for _ in range(8)]
    first = Run(name, PAIR, **options)
    for _ in range(3):
        first.step()
    second = Run(name, PAIR, **options)
    second.restore(first.state())
    assert [second.step()[0].total.item() for _ in range(5)] == values[3:]
    for key, tensor in second.loss.state_dict().items():
        assert torch.equal(tensor, straight.loss.state_dict()[key]), key


def test_equal_parts_are_of_the_seconds_that_both_streams_have():
    parts = equal_parts(Span(0.0, 5.0), Span(0.5, 3.5), 3)
    assert parts == [Span(0.5, 1.5), Span(1.5, 2.5), Span(2.5, 3.5)]
    assert equal_parts(Span(0.0, 1.0), Span(2.0, 3.0), 2) == [Span(2.0, 2.0)] * 2  # no second in common


def test_moments_of_a_clip_are_pairs_in_sync_that_share_no_second_and_the_first_is_any_of_them(shards, monkeypatch):
    """The decoders of the loader are asked for these seconds."""
    asked = {"audio": [], "video": []}
    for modality, starts in asked.items():
        name = f"decode_{modality}_clip"
        decode = getattr(read_views, name)
        monkeypatch.setattr(
            read_views, name, lambda s, start, *rest, of=decode, to=starts: to.append(start) or of(s, start, *rest)
        )
    folder, views, ranks = ShardSet(shards["train"]), AVID.views(AVIDConfig(num_negatives_same_clip=2)), []
    for epoch in range(20):
        for index in range(6):
            for starts in asked.values():
                starts.clear()
            made = read_views.raw_views(folder, index, views, IN_SYNC, seed=0, epoch=epoch)
            assert set(made) == {f"{name}{other}" for name in PAIR for other in ("", "_other_1", "_other_2")}
            video, audio = asked["video"], asked["audio"]
            assert len(video) == len(audio) == 3
            assert np.abs(np.subtract(video, audio)).max() < 0.01  # as long as each other, and in sync
            assert np.diff(np.sort(video)).min() >= 0.25 - 1 / folder.read_info(index).video_fps - 1e-6
            ranks.append(int(np.argsort(np.argsort(video))[0]))
    assert {ranks.count(rank) > 20 for rank in range(3)} == {True}  # 40 of 120 are expected: 4 standard errors
    again = read_views.raw_views(folder, 5, views, IN_SYNC, seed=0, epoch=19)
    assert torch.equal(again["audio_other_1"].media, made["audio_other_1"].media)
    assert torch.equal(again["video_other_2"].media, made["video_other_2"].media)


def test_a_clip_of_any_seconds_takes_none_from_the_other_moments(shards, monkeypatch):
    """A loss of the user's own may have a second random clip beside other moments."""
    asked = []
    decode = read_views.decode_video_clip
    monkeypatch.setattr(
        read_views, "decode_video_clip", lambda s, start, *rest: asked.append(start) or decode(s, start, *rest)
    )
    views = [View("first", "video"), View("second", "video", clip=1), View("other", "video", clip=2, other_moment=True)]
    folder = ShardSet(shards["train"])
    least = 0.25 - 1 / folder.read_info(0).video_fps - 1e-6
    for epoch in range(30):
        asked.clear()
        read_views.raw_views(folder, 0, views, IN_SYNC, seed=0, epoch=epoch)
        assert abs(asked[0] - asked[2]) >= least


def test_a_sample_without_room_for_its_moments_is_too_short(shards):
    folder, views = ShardSet(shards["train"]), AVID.views(AVIDConfig(num_negatives_same_clip=1))
    seconds = folder.read_info(0).duration_seconds
    long = ViewsConfig(video=IN_SYNC.video, audio=AudioViewConfig(seconds=seconds / 2 + 0.05), max_offset_seconds=0.0)
    with pytest.raises(
        MediaError, match=r"both video and audio; loss\.num_negatives_same_clip=1 needs .* 2 clips"
    ) as caught:
        read_views.raw_views(folder, 0, views, long, seed=0, epoch=0)
    assert caught.value.reason == "too_short"


def test_what_cannot_work_is_refused_with_what_to_do():
    views = AVID.views(AVIDConfig(num_negatives_same_clip=1))
    with pytest.raises(ValueError, match=r"max_offset_seconds is 0\.5.*set views\.max_offset_seconds=0"):
        check_views(views, ViewsConfig())
    check_views(views, IN_SYNC)
    with pytest.raises(ValueError, match=r"num_negatives_same_clip is 2 with loss\.modalities \[image, image\]"):
        SimCLR.views(SimCLRConfig(num_negatives_same_clip=2))
    with pytest.raises(ValueError, match="num_negatives_same_clip is -1"):
        MoCo.views(MoCoConfig(modalities=PAIR, num_negatives_same_clip=-1))
    assert "num_negatives_same_clip" not in vars(PairConfig(name="byol"))
    assert losses.get("avid_cma").views(losses.get("avid_cma").Config(num_negatives_same_clip=1))[-1].other_moment
