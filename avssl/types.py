"""Types that all packages of avssl use. Imports no other module of avssl, and torch only for type checkers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    import torch

PUBLIC_PREFIXES = ("timm/", "hf/")  # of the names of public models
HUB_SCHEME = "hf://"  # of the addresses of exchange folders on the hub
Modality = Literal["image", "video", "audio"]
Agreement = Literal["consensus", "union", "video", "audio"]  # by which samples are positives: ops/agreement.py

FailureReason = Literal[
    "missing_file",  # listed, but absent, or cannot be opened: access refused, a pipe, a link to itself
    "empty_file",  # zero bytes
    "not_media",  # no demuxer recognizes it
    "no_video",  # no video stream, or one without a single decodable frame
    "no_audio",  # no audio stream, or one without a single decodable sample
    "no_image",  # a sample without an image
    "unsupported_codec",  # the stream is there, its decoder is not
    "changed_file",  # has another size or content than when it was listed
    "truncated",  # the data ends before the header says it does
    "too_short",  # shorter than the minimum duration
    "decode_error",  # the decoder gave up
    "silent_audio",  # silent, and silent files were to be left out
    "still_video",  # nothing moves, and still videos were to be left out
    "unreachable",  # a remote file that could not be fetched, after several tries
    "timeout",  # reading it took longer than a file may take
    "out_of_memory",  # reading it took more memory than a file may take
    "crashed",  # the process that read it died, or the program failed on it
    "no_embedding",  # the network gave a vector of length 0, or one that is not finite
    "bad_sample",  # a shard member is missing or its json does not fit the schema
]
FAILURE_REASONS: tuple[str, ...] = get_args(FailureReason)


class MediaError(ValueError):
    """A file or a sample that cannot be used, with a reason by which reports count failures.

    Args:
        reason: one of FAILURE_REASONS.
        message: the name of the file, what is wrong and what is allowed.

    >>> try:
    ...     probe("missing.mp4")
    ... except MediaError as error:
    ...     error.reason
    'missing_file'
    """

    def __init__(self, reason: FailureReason, message: str) -> None:
        super().__init__(reason, message)
        self.reason: FailureReason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class TooFewSamplesError(ValueError):
    """A corpus that is too small for an option, which `data.global_batch_size=auto` would fit to it."""


@dataclass(frozen=True)
class View:
    """A view that a loss requests from the loader: one tensor per batch, ready for the model, by name.

    augment: "train" is the run's own set of the modality (views.video.augment, views.audio.augment), "test" is
    deterministic, any other name is a set of `views.augments`; audio has "jigsaw" instead. clip: views with the same
    number are cut from the same seconds of a sample (in both modalities); another number draws other seconds.
    other_moment: that its clip shares no second with clip 0 and the clips of other such views, a frame aside.

    >>> View("second", "video", augment="simclr", clip=1).modality
    'video'
    """

    name: str
    modality: Modality
    augment: str = "train"
    clip: int = 0
    other_moment: bool = False


@dataclass(frozen=True)
class Clip:
    """Decoded media of some seconds of one sample. Start times are seconds on the sample's common clock.

    video: uint8 (T, 3, H, W) or None; audio: float32 (C, samples) in [-1, 1] or None; image: uint8 (3, H, W) or None;
    index in [0, num_samples).
    """

    index: int
    key: str
    video: torch.Tensor | None
    audio: torch.Tensor | None
    video_start_seconds: float
    audio_start_seconds: float
    image: torch.Tensor | None = None


@dataclass
class Batch:
    """Model-ready tensors: views {view name: (B, ...)}, index int64 (B,).

    failures: the number of unreadable samples of this batch by reason (see data/loader.py).
    """

    views: dict[str, torch.Tensor]
    index: torch.Tensor
    failures: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CaptionRows:
    """Embeddings of the captions of a data set by a frozen text encoder.

    rows: float32 (U, D) unit rows, one for each distinct caption. numbers: int64 (N,), for each sample the row of its
    caption in [0, U), or -1 for a sample without one.

    >>> CaptionRows(torch.eye(2), torch.tensor([0, 1, 0, -1])).numbers.shape  # the third has the caption of the first
    torch.Size([4])
    """

    rows: torch.Tensor
    numbers: torch.Tensor


@dataclass
class LossConfig:
    """Base class of the configurations of losses.

    >>> LossConfig(name="simclr").seed
    0
    """

    name: str = ""  # of the loss in avssl/losses
    seed: int = 0  # of the loss's state and random draws


@dataclass
class LossOutput:
    """The result of a loss. total: scalar with gradient; terms: detached scalars for the log.

    >>> LossOutput(torch.tensor(1.0), {"invariance": torch.tensor(0.5)}).total
    tensor(1.)
    """

    total: torch.Tensor
    terms: dict[str, torch.Tensor]


@dataclass
class Progress:
    """Counters of a run. batch counts micro-batches, step counts optimizer steps, both since the run began.

    total_steps is the step at which the run ends, for schedules; it belongs to the configuration, not to the state.

    >>> Progress(step=3, total_steps=10).state_dict()["step"]
    3
    """

    epoch: int = 0
    batch: int = 0
    batch_in_epoch: int = 0
    step: int = 0
    total_steps: int = 0

    def state_dict(self) -> dict[str, int]:
        """The counters as plain integers, for the checkpoint."""
        names = ("epoch", "batch", "batch_in_epoch", "step")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the counters from a result of `state_dict`."""
        for name, value in state.items():
            setattr(self, name, int(value))


class Span(NamedTuple):
    """Begin and end of a stream, in seconds on the clock of the sample (it may begin after 0)."""

    start_seconds: float
    end_seconds: float


@dataclass(frozen=True)
class ClipLengths:
    """The lengths of the clips, and how far the video clip may extend beyond the audio clip, in seconds.

    video_seconds is num_frames / fps (0.5 for AVID's 8 frames at 16 fps). Evaluation uses max_offset_seconds = 0.
    """

    video_seconds: float = 0.5
    audio_seconds: float = 2.0
    max_offset_seconds: float = 0.5

    def __post_init__(self) -> None:
        if not (self.video_seconds > 0 and self.audio_seconds > 0 and self.max_offset_seconds >= 0):
            raise ValueError(f"clip lengths must be positive and max_offset_seconds not negative, got {self}")
