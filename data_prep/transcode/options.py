"""The options that decide the bytes of the shards. All of them are recorded in index.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
IMAGE_OPTIONS = ("short_side_px", "image_quality", "samples_per_shard", "seed")
# The allowed values of options that are a choice.
CHOICES: dict[str, tuple[str, ...]] = {
    "on_missing_audio": ("skip", "keep", "error"),
    "on_missing_video": ("skip", "keep", "error"),
    "on_silent_audio": ("keep", "skip"),
    "on_still_video": ("keep", "skip"),
    "video_codec": ("libx264", "libsvtav1"),
    "preset": PRESETS,
    "entropy_coder": ("cavlc", "cabac"),
}


class PolicyError(ValueError):
    """The run has to stop, because an option says so for a file, or because an encoder is missing."""


@dataclass(frozen=True)
class WriteOptions:
    """Options of `avssl prep write`.

    short_side_px: frames and images are scaled down (never up) to this short side. fps: frames per second.
    keyframe_interval: frames between keyframes. crf: the encoder's quality, 0 (lossless) to 51. preset: x264's effort.
    audio_rate_hz: samples per second. samples_per_shard: listed files per shard; skipped files make it smaller. seed:
    of the global shuffle. on_missing_audio, on_missing_video: "skip" the file with a reason, "keep" the stream that it
    has, or stop the run with an "error". min_duration_seconds: shorter files are skipped. image_quality: of JPEG, 1 to
    100, for images that are encoded anew and were compressed with loss before.

    on_silent_audio: "skip" samples whose audio never reaches silence_dbfs (RMS of a tenth of a second, dB of full
    scale). on_still_video: "skip" samples in which no square of the frame changes by still_levels (of 255).

    video_codec: the encoder. libsvtav1 makes AV1 (smaller, faster to read, slower to write; crf 32 is about x264's 23)
    and ignores preset. entropy_coder of h264: "cavlc" is read nearly twice as fast, "cabac" makes files 5 to 10 %
    smaller, with the same frames (docs/format.md).

    Only IMAGE_OPTIONS apply to images; all options but image_quality apply to video and audio.
    """

    short_side_px: int = 256
    fps: float = 16.0
    keyframe_interval: int = 8
    crf: int = 23
    preset: str = "veryfast"
    audio_rate_hz: int = 24_000
    samples_per_shard: int = 256
    seed: int = 0
    on_missing_audio: str = "skip"
    on_missing_video: str = "skip"
    min_duration_seconds: float = 0.0
    image_quality: int = 95
    on_silent_audio: str = "keep"
    silence_dbfs: float = -60.0
    on_still_video: str = "keep"
    still_levels: float = 4.0
    video_codec: str = "libx264"
    entropy_coder: str = "cavlc"

    def __post_init__(self) -> None:
        at_least = {
            "short_side_px": 16, "fps": 0.1, "keyframe_interval": 1, "crf": 0, "audio_rate_hz": 1000,
            "samples_per_shard": 1, "seed": 0, "min_duration_seconds": 0, "image_quality": 1, "still_levels": 0,
            "silence_dbfs": -200,
        }  # fmt: skip
        for name, least in at_least.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {least}")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                given = f"--{name.replace('_', '-')} is {getattr(self, name)!r}"
                raise ValueError(f"{given}; allowed: {', '.join(allowed)}")
        if self.fps > 240 or self.short_side_px > 8192 or self.audio_rate_hz > 384_000:
            raise ValueError("allowed are at most --fps 240, --short-side-px 8192 and --audio-rate-hz 384000")
        if self.crf > 51:
            raise ValueError(f"--crf is {self.crf}; x264 takes 0 (lossless) to 51")
        if self.image_quality > 100:
            raise ValueError(f"--image-quality is {self.image_quality}; JPEG takes 1 to 100")
        if self.silence_dbfs > 0 or self.still_levels > 255:
            raise ValueError("allowed are at most --silence-dbfs 0 and --still-levels 255")

    def encoder_options(self) -> dict[str, str]:
        """The options of the encoder: without B-frames and scene cuts, so that frames are stored in order and every
        keyframe_interval-th frame is a keyframe.
        """
        if self.video_codec == "libsvtav1":
            return {"crf": str(self.crf), "preset": "8", "svtav1-params": "lp=1:scd=0"}
        options = {"crf": str(self.crf), "preset": self.preset, "bf": "0", "sc_threshold": "0"}
        return options | {"coder": self.entropy_coder}

    def to_json(self, *, images: bool = False) -> dict[str, Any]:
        """The options that apply to video and audio (or to images), and the version of the library that encodes,
        because another version may give other bytes.
        """
        if images:
            return {name: getattr(self, name) for name in IMAGE_OPTIONS} | {"pillow_version": version("pillow")}
        options = asdict(self)
        del options["image_quality"]
        return options | {"pyav_version": version("av")}
