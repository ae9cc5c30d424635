"""Motion and stillness of a video, and which of its frames are looked at."""

import io

import numpy as np
import pytest
from PIL import Image

from data_prep.inspect.stats.collect import Thresholds
from data_prep.measures.video import measure_video, middle_frame, sampled_frames
from data_prep.transcode.encode import write_media
from tests.clips import landscape


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
