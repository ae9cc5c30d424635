"""Reading media: what a file is, and the frames and samples at any time in it, by FFmpeg through PyAV."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avssl.exports import offer

if TYPE_CHECKING:
    from avssl.media.decode import probe as probe
    from avssl.media.decode import read_audio as read_audio
    from avssl.media.decode import read_video as read_video
    from avssl.media.decode import stream_audio as stream_audio
    from avssl.media.decode import stream_frames as stream_frames
    from avssl.media.decode import stream_video as stream_video
    from avssl.media.images import probe_image as probe_image
    from avssl.media.images import read_image as read_image
    from avssl.media.info import AudioInfo as AudioInfo
    from avssl.media.info import MediaInfo as MediaInfo
    from avssl.media.info import VideoInfo as VideoInfo
    from avssl.media.readers import AudioReader as AudioReader
    from avssl.media.readers import Frame as Frame
    from avssl.media.readers import VideoReader as VideoReader
    from avssl.types import MediaError as MediaError

offer(
    __name__,
    {
        "avssl.types": "MediaError",
        "decode": "probe read_audio read_video stream_audio stream_frames stream_video",
        "images": "probe_image read_image",
        "info": "AudioInfo MediaInfo VideoInfo",
        "readers": "AudioReader Frame VideoReader",
    },
)
