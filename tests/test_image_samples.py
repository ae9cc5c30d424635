"""Images in the format of shards: their members, and what was stored before there were images."""

import hashlib
import io
import json
from dataclasses import replace

import pytest
from PIL import Image

from avssl.shards.format import SampleInfo
from avssl.shards.manifest import Entry
from avssl.shards.shard_set import Sample, parse_members, write_tar
from avssl.types import MediaError
from data_prep.transcode.options import WriteOptions
from tests.test_images import saved, scene
from tests.test_shards import tar_of


def old_sample(index, video=b"video", audio=b"audio"):
    """A sample from before there were images."""
    return Sample(
        SampleInfo(
            index=index,
            key=f"class/clip_{index}",
            duration_seconds=1.5,
            video_fps=16.0 if video else 0.0,
            num_frames=24 if video else 0,
            av_offset_seconds=-0.125 if video and audio else 0.0,
            audio_rate_hz=24000 if audio else 0,
            num_audio_samples=36000 if audio else 0,
            labels={"label": ["class"]},
            source={"path": "a.mp4", "bytes": 7},
        ),
        video,
        audio,
    )


def test_shards_of_videos_have_the_bytes_they_had_before_there_were_images():
    content = io.BytesIO()
    list(write_tar(content, [old_sample(0), old_sample(1, audio=None), old_sample(2, video=None)]))
    digest_then = "e4ddabe52fc8510baba0f174536ee256d62bcd9e447fc18fe7ec343e116f58db"
    assert hashlib.sha256(content.getvalue()).hexdigest() == digest_then
    assert not {"image_quality", "pillow_version"} & WriteOptions().to_json().keys()
    line = Entry("a.mp4", "a_mp4", {}, {"container": "mov", "video": {"width": 4}}, None, 9).to_json()
    assert json.loads(line) == {
        "path": "a.mp4", "key": "a_mp4", "labels": {}, "error": None, "bytes": 9, "container": "mov",
        "duration_seconds": None, "video": {"width": 4}, "audio": None,
    }  # fmt: skip


def test_json_from_before_there_were_images_is_read():
    content = (
        b'{"audio_rate_hz": 24000, "av_offset_seconds": -0.125, "duration_seconds": 1.5, "index": 0, "key": '
        b'"class/clip_0", "labels": {"label": ["class"]}, "num_audio_samples": 36000, "num_frames": 24, "source": '
        b'{"bytes": 7, "path": "a.mp4"}, "video_fps": 16.0}\n'
    )
    info = SampleInfo.from_json(content)
    assert info == old_sample(0).info
    assert not info.has_image
    assert (info.image_height_px, info.image_width_px) == (0, 0)


def image_sample(image, **changes):
    return Sample(
        replace(old_sample(0, None, None).info, image_height_px=4, image_width_px=5, **changes), None, None, image
    )


def test_a_image_is_a_member_named_by_what_it_is():
    for format, name in (("JPEG", "class/clip_0.image.jpg"), ("PNG", "class/clip_0.image.png")):
        sample = image_sample(saved(Image.fromarray(scene(4, 5)), format))
        content = io.BytesIO()
        list(write_tar(content, [sample]))
        assert name.encode() in content.getvalue()
        assert parse_members(content.getvalue()[:-1024], "shard") == sample
    with pytest.raises(ValueError, match=r"only image\.jpg and image\.png are stored"):
        list(write_tar(io.BytesIO(), [image_sample(b"GIF89a")]))


def test_a_image_that_is_missing_unannounced_or_one_too_many_is_a_bad_sample():
    png, jpg = (saved(Image.fromarray(scene(4, 5)), format) for format in ("PNG", "JPEG"))
    with_image = ("class/clip_0.json", image_sample(png).info.to_json())
    without = ("class/clip_0.json", old_sample(0, None, None).info.to_json())
    members = [("class/clip_0.image.png", png), ("class/clip_0.image.jpg", jpg)]
    assert parse_members(tar_of([with_image, members[0]]), "shard") == image_sample(png)
    for content in ([with_image], [without, members[0]], [with_image, *members]):
        with pytest.raises(MediaError, match="bad_sample"):
            parse_members(tar_of(content), "shard")
