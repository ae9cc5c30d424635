"""One thing to embed, and some windows of it as they were decoded."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from avssl.media.ffmpeg import Source
from avssl.media.readers import AudioReader, VideoReader
from avssl.transforms.raw_view import RawView
from avssl.types import Span


@dataclass(frozen=True)
class Media:
    """One thing to embed: {modality: path or bytes}, and where video and sound lie on a clock that begins with the
    first of them.

    frame_seconds: how long a frame of the video lasts where all do, as in shards; 0 elsewhere. streams: of a file that
    is open, its readers; whoever reads them closes them.
    """

    key: str
    index: int
    sources: dict[str, Source] = field(default_factory=dict)
    spans: dict[str, Span] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)
    frame_seconds: float = 0.0
    streams: dict[str, VideoReader | AudioReader] = field(default_factory=dict, compare=False)

    def close(self) -> None:
        """Close the file, if it is open."""
        for stream in self.streams.values():
            stream.close()


@dataclass
class WindowBatch:
    """Some windows of one media, decoded.

    clips[modality]: raw view (n_clips, ...) or None; owners[modality]: the windows that hold each clip, one of them
    more than once where the media ends within it; is_last: no more follow.
    """

    media: Media
    grid: np.ndarray  # (n, 2) seconds
    has: dict[str, np.ndarray]  # modality -> bool (n,)
    clips: dict[str, RawView | None]
    owners: dict[str, list[list[int]]]
    is_last: bool = True
