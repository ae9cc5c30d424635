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
from avssl.losses.moments import moment_cross_entropy, split_moments, with_moments
from avssl.losses.simclr import SimCLR, two_way_cross_entropy
from avssl.shards.shard_set import ShardSet
from avssl.transforms.config import AudioViewConfig, VideoViewConfig, ViewsConfig, check_views
from avssl.transforms.time_sampling import other_audio_start
from avssl.types import ClipLengths, MediaError, Progress, Span
from tests.textbook import avid as textbook_avid
from tests.textbook import moco as textbook_moco
from tests.textbook import moments as textbook
from tests.textbook import simclr as textbook_simclr
from tests.textbook.gradients import gradient
from tests.tiny import Run

DIM, BATCH_SIZE, NUM_MOMENTS = 6, 5, 3
GENERATOR = np.random.default_rng(0)
VIDEO, AUDIO = GENERATOR.normal(size=(2, BATCH_SIZE, DIM))
MOMENTS = GENERATOR.normal(size=(BATCH_SIZE, NUM_MOMENTS, DIM))
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
    arrays = (VIDEO, AUDIO, MOMENTS)
    video, audio, moments = given = tensors(*arrays)
    value = moment_cross_entropy(video, audio, moments, temperature)
    assert_equals_textbook(value, given, lambda *x: textbook.moment_cross_entropy(*x, temperature), arrays)
    video, audio, moments = given = tensors(*arrays)
    value = two_way_cross_entropy(video, audio, temperature, moments)
    assert_equals_textbook(
        value, given, lambda v, a, m: textbook_simclr.two_way_cross_entropy(v, a, temperature, m), arrays
    )
    video, audio, moments = tensors(*arrays)
    value = info_nce(video, audio, torch.tensor(QUEUE), temperature, moments)
    assert_equals_textbook(
        value, [video], lambda v: textbook_moco.info_nce(v, AUDIO, QUEUE, temperature, MOMENTS), [VIDEO]
    )
    assert moments.grad is None  # keys come from the teacher


def test_moments_pass_through_the_network_with_their_pairs_and_return_to_their_samples():
    rows = torch.arange(3.0)[:, None]
    rows = with_moments({"second": rows, "other_2": rows + 20, "other_1": rows + 10}, "second")
    assert rows[:, 0].tolist() == [0, 10, 20, 1, 11, 21, 2, 12, 22]
    pairs, others = split_moments(rows, 2)
    assert pairs[:, 0].tolist() == [0, 1, 2]
    assert others[..., 0].tolist() == [[10, 20], [11, 21], [12, 22]]


@pytest.mark.parametrize("name", ["avid", "simclr", "moco"])
def test_losses_add_the_negatives_of_the_same_clip_as_the_textbook_says(name):
    run = Run(name, PAIR, num_negatives_same_clip=2, seed=3)
    index = torch.arange(8)
    outputs = run.loss(run.make_views(index, (), 0))
    assert outputs["other_moments"].shape[:2] == (8, 2)
    z = {key: value.detach().double().numpy() for key, value in outputs.items()}
    temperature = run.config.temperature
    value = run.loss.loss(outputs, index, Progress()).total.item()
    if name == "avid":
        negatives = run.loss.draw_negatives(index[:, None], Progress()).numpy()
        banks = {modality: run.loss.bank(modality).rows.double().numpy() for modality in PAIR}
        raw = {modality: z[modality] for modality in PAIR}
        expected = textbook_avid.avid(raw, banks, index.numpy(), negatives, temperature, "cross")[0]
        expected += textbook.moment_cross_entropy(z["video"], z["audio"], z["other_moments"], temperature)
    elif name == "simclr":
        expected = textbook_simclr.two_way_cross_entropy(z["first"], z["second"], temperature, z["other_moments"])
    else:
        queues = {modality: run.loss.queue(modality).rows.double().numpy() for modality in PAIR}
        video = (z["first"], z["second_key"], queues["audio"], temperature, z["other_moments"])
        audio = (z["second"], z["first_key"], queues["video"], temperature)
        expected = (textbook_moco.info_nce(*video) + textbook_moco.info_nce(*audio)) / 2
    assert value == pytest.approx(expected, rel=2e-5)


def test_keys_of_other_moments_do_not_enter_mocos_queue():
    run = Run("moco", PAIR, num_negatives_same_clip=2)
    _, outputs = run.step()
    expected = torch.nn.functional.normalize(outputs["second_key"].float(), dim=1)
    assert torch.equal(run.loss.queue("audio").rows, expected)  # a queue of one batch


def test_without_the_options_nothing_changes():
    for config, cls in ((SimCLRConfig(modalities=PAIR), SimCLR), (MoCoConfig(modalities=PAIR), MoCo)):
        assert [view.name for view in cls.views(config)] == ["first", "second"]
    assert [view.name for view in AVID.views(AVIDConfig())] == ["video", "audio"]
    assert "other_moments" not in Run("avid", PAIR).step()[1]


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


@pytest.mark.parametrize("audio", [Span(0.0, 2.0), Span(0.3, 4.0)])
def test_other_moments_share_no_second_with_the_frames_and_are_uniform_elsewhere(audio):
    lengths, generator = ClipLengths(0.5, 0.5, 0.0), np.random.default_rng(0)
    for video_start in (audio.start_seconds, audio.start_seconds + 0.7, audio.end_seconds - 0.5):
        starts = np.array([other_audio_start(video_start, audio, lengths, generator) for _ in range(2000)])
        assert starts.min() >= audio.start_seconds
        assert starts.max() <= audio.end_seconds - 0.5
        assert ((starts + 0.5 <= video_start + 1e-9) | (starts >= video_start + 0.5 - 1e-9)).all()
        before = max(0.0, video_start - 0.5 - audio.start_seconds)
        after = max(0.0, audio.end_seconds - 0.5 - (video_start + 0.5))
        share = before / (before + after)
        assert (starts < video_start).mean() == pytest.approx(share, abs=0.045)  # 4 standard errors of 2,000 draws
        is_before = starts < video_start
        places = np.sort(np.where(is_before, starts - audio.start_seconds, starts - video_start - 0.5 + before))
        expected = (np.arange(2000) + 0.5) / 2000 * (before + after)
        assert np.abs(places - expected).max() < 0.045 * (before + after)  # Kolmogorov-Smirnov: p < 1e-3


def test_a_sample_without_room_for_another_moment_is_too_short():
    lengths = ClipLengths(0.5, 0.5, 0.0)
    assert other_audio_start(0.4, Span(0.0, 1.4), lengths, np.random.default_rng(0)) is None
    assert other_audio_start(0.5, Span(0.0, 1.5), lengths, np.random.default_rng(0)) is not None


def test_views_of_other_moments_are_cut_elsewhere_in_the_same_sample(shards, monkeypatch):
    """The decoders of the loader are asked for these seconds."""
    asked = []
    decode = read_views.decode_audio_clip
    monkeypatch.setattr(
        read_views, "decode_audio_clip", lambda s, start, *rest: asked.append(start) or decode(s, start, *rest)
    )
    frames = []
    decode_frames = read_views.decode_video_clip
    monkeypatch.setattr(
        read_views, "decode_video_clip", lambda s, start, *rest: frames.append(start) or decode_frames(s, start, *rest)
    )
    folder, views = ShardSet(shards["train"]), AVID.views(AVIDConfig(num_negatives_same_clip=2))
    for index in range(6):
        asked.clear(), frames.clear()
        made = read_views.raw_views(folder, index, views, IN_SYNC, seed=0, epoch=0)
        assert set(made) == {"video", "audio", "other_1", "other_2"}
        (video,), (pair, *others) = frames, asked
        assert abs(pair - video) < 0.01  # as long as the video clip, and in sync
        assert len(set(others)) == 2
        assert all(abs(other - video) >= 0.25 - 1e-6 for other in others)
    again = read_views.raw_views(folder, 5, views, IN_SYNC, seed=0, epoch=0)
    assert torch.equal(again["other_1"].media, made["other_1"].media)
    long = ViewsConfig(video=IN_SYNC.video, audio=AudioViewConfig(seconds=20.0), max_offset_seconds=0.0)
    with pytest.raises(MediaError, match=r"too_short.*num_negatives_same_clip needs 40\.25 s of audio") as caught:
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
