"""Where the scenes of a video change: PySceneDetect's content detector on frames that our own decoder read.

The only user of PySceneDetect, which the extra avssl[scenes] brings. It opens no files here: what may be read, how a
picture is turned and when it is shown are settled in avssl/data.
"""

from __future__ import annotations

from importlib.util import find_spec

from avssl.media.decode import stream_pictures
from avssl.media.info import VideoInfo, fitted_size

SHORT_SIDE_PX = 144


def require_scenedetect() -> None:
    """ValueError that says what to install, if it is missing."""
    if find_spec("scenedetect") is None or find_spec("cv2") is None:
        raise ValueError("--scenes needs PySceneDetect, which is not installed; pip install 'avssl[scenes]'")


def find_cuts(path: str, info: VideoInfo, threshold: float) -> list[float]:
    """Seconds, from the video's first frame, of the first frame of each scene but the first.

    threshold: mean change of hue, saturation and brightness (0 to 255) between frames that makes a cut.
    """
    from scenedetect import FrameTimecode
    from scenedetect.detectors import ContentDetector

    detector = ContentDetector(threshold=threshold, min_scene_len=0)  # how long scenes must be is settled in seconds
    size = fitted_size(info.width, info.height, info.pixel_aspect, SHORT_SIDE_PX)
    cuts = []
    for number, picture in enumerate(stream_pictures(path, size)):
        # The detector compares frames and counts them; the time that counts is the decoder's.
        if detector.process_frame(FrameTimecode(number, 25.0), picture.frame.to_ndarray(format="bgr24")):
            cuts.append(picture.seconds)
    return cuts
