"""Clips of a video with the sound around them and with sound of another moment of the same video."""

from __future__ import annotations

import torch

from avssl.data.every_sample import ClipPlan
from avssl.data.read_views import decode_audio_clip, decode_video_clip, spans
from avssl.data.sample_clips import SampleClips
from avssl.shards.shard_set import Sample, ShardSet
from avssl.transforms.config import ViewsConfig, clip_lengths
from avssl.transforms.time_sampling import Span, Windows, snap_to_frames
from avssl.transforms.view_maker import RawView, raw_audio, raw_picture, stack_raw_views


class ShiftedClips(SampleClips):
    """Of every sample, video: P clips; audio: 2 P, first those around the video clips, then the shifted ones."""

    def __init__(
        self,
        shards: str | ShardSet,
        config: ViewsConfig,
        num_positions: int,
        shift_seconds: float,
        silence_dbfs: float,
    ) -> None:
        super().__init__(shards, config, ("video", "audio"), ClipPlan(num_positions))
        if shift_seconds <= 0:
            raise ValueError(f"shift_seconds is {shift_seconds}; it must be above 0")
        self.shift_seconds, self.silence_dbfs = shift_seconds, silence_dbfs

    def decode(self, sample: Sample) -> tuple[dict[str, RawView], str]:
        """Nothing, and why, for samples that cannot tell: without one of the two, too short, silent."""
        video, audio = spans(sample)
        if video is None or sample.video is None:
            return {}, "no video"
        if audio is None or sample.audio is None:
            return {}, "no audio"
        lengths, key, last = clip_lengths(self.config), sample.info.key, bool(sample.info.index % 2)
        places = shifted_places(
            video,
            audio,
            lengths.video_seconds,
            lengths.audio_seconds,
            self.shift_seconds,
            self.plan.num_clips,
            first_backward=last,
        )
        if not places:
            return {}, "too short"
        pictures, right, wrong = [], [], []
        for start, shift in places:
            around = start + (lengths.audio_seconds - lengths.video_seconds) / 2
            window = snap_to_frames(Windows(around, start), video, sample.info.video_fps)
            shown, heard = float(window.video_start_seconds or 0.0), float(window.audio_start_seconds or 0.0)
            frames = decode_video_clip(sample.video, shown, self.config.video, video, key)
            pictures.append({"view": raw_picture("video", frames, self.config.video, None, None)})
            right.append(decode_audio_clip(sample.audio, heard, self.config.audio, audio, key))
            wrong.append(decode_audio_clip(sample.audio, heard + shift, self.config.audio, audio, key))
        waves = torch.stack([*right, *wrong])
        level_dbfs = 20 * torch.log10(waves.square().mean(dim=(1, 2)).sqrt().clamp_min(1e-10))
        if bool((level_dbfs < self.silence_dbfs).all()):
            return {}, "silent"
        sounds = stack_raw_views([{"view": raw_audio(wave, self.config.audio, None)} for wave in waves])
        return {"video": stack_raw_views(pictures)["view"], "audio": sounds["view"]}, ""


def shifted_places(
    video: Span,
    audio: Span,
    video_seconds: float,
    audio_seconds: float,
    shift_seconds: float,
    num_places: int,
    *,
    first_backward: bool,
) -> list[tuple[float, float]]:
    """(start of the right sound, shift of the wrong one in seconds) at so many places; [] if none fits.

    The right sound is centred on the video clip; all three lie within their streams. Directions take turns; where only
    one fits it is taken. Places of a direction are spread evenly over what fits.
    """
    half = (audio_seconds - video_seconds) / 2
    first, last = audio.start_seconds, audio.end_seconds - audio_seconds
    low = max(first, video.start_seconds - half)
    high = min(last, video.end_seconds - video_seconds - half)
    ranges = {1: (low, min(high, last - shift_seconds)), -1: (max(low, first + shift_seconds), high)}
    fitting = {sign: limits for sign, limits in ranges.items() if limits[0] <= limits[1] + 1e-9}
    if not fitting:
        return []
    places = []
    for number in range(num_places):
        sign = -1 if (number % 2 == 1) != first_backward else 1
        sign = sign if sign in fitting else -sign
        begin, end = fitting[sign]
        share = (number + 0.5) / num_places
        places.append((begin + share * max(0.0, end - begin), sign * shift_seconds))
    return places
