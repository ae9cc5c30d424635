"""Reading a video stream forward, with seeks over groups of pictures (GOPs) in which no frame is requested."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from avssl.media.ffmpeg import seek

# Without an index of keyframes, a seek is worth its cost only beyond this distance.
BLIND_SEEK_SECONDS = 10.0


class SeekError(Exception):
    """The container cannot seek to a keyframe before the requested time; read the file from its beginning instead."""


class FrameCursor:
    """The frames on screen at increasing times, decoding as little as possible.

    Args:
        container, stream: PyAV's; the container is at its beginning.
        start_ticks: the timestamp of the first frame; None to find it by decoding.
        may_seek: False reads everything from the beginning.
        in_order: frames are shown in the order in which they are stored, each until the next one begins, so that
            nothing after the frame on screen needs to be decoded.
        decode: makes an iterator of (ticks, frame) from the current position of the container on.
    """

    def __init__(
        self,
        container: Any,
        stream: Any,
        start_ticks: int | None,
        may_seek: bool,
        decode: Callable[[], Iterator[tuple[int, Any]]],
        *,
        in_order: bool = False,
    ) -> None:
        self._container, self._stream, self._may_seek, self._decode = container, stream, may_seek, decode
        self._in_order = in_order
        self._frames = decode()
        self._current: Any = None
        self._pending: tuple[int, Any] | None = None  # decoded, but shown later
        if start_ticks is None:
            self._pending = next(self._frames, None)
            start_ticks = 0 if self._pending is None else self._pending[0]
        self.start_ticks: int = start_ticks
        self._reached = start_ticks
        self._shown_until = start_ticks  # when the frame on screen ends if that is known, else when it begins
        self.first = self._pending  # (ticks, frame); None also if start_ticks was given

    def on_screen(self, target: int, *, may_seek: bool = True) -> Any:
        """The latest frame with a timestamp at or before target (ticks); before the first frame the first one.

        None if the stream has no frame. Targets must not decrease from call to call. may_seek: False reads on without
        seeking. Raises SeekError.
        """
        if self._current is not None and target < self._shown_until:
            return self._current
        if may_seek and self._may_seek and self._has_keyframe_before(target):
            self._seek_before(target)
        while True:
            if self._pending is None:
                self._pending = next(self._frames, None)
                is_later = self._pending is None or self._current is None or self._pending[0] > self._reached
                if self._in_order and not is_later:
                    raise SeekError
            if self._pending is None or (self._current is not None and self._pending[0] > target):
                return self._current
            self._reached, self._current = self._pending
            self._shown_until, self._pending = self._reached, None
            if self._in_order and self._current.duration:
                self._shown_until += self._current.duration
                if target < self._shown_until:
                    return self._current

    def read_to(self, target: int) -> tuple[int, Any] | None:
        """(ticks, frame) on screen at target, without a seek: for targets close to each other. Raises SeekError."""
        frame = self.on_screen(target, may_seek=False)
        return None if frame is None else (self._reached, frame)

    def seek_to(self, target: int) -> tuple[int, Any] | None:
        """(ticks, frame) on screen at target, by a seek if that is shorter; `rest` goes on there. Raises SeekError."""
        is_far = (target - self._reached) * self._stream.time_base > BLIND_SEEK_SECONDS
        if self._may_seek and is_far and not self._has_keyframe_before(target):
            self._seek_before(target)  # some containers list only the keyframes that were read
        frame = self.on_screen(target)
        return None if frame is None else (self._reached, frame)

    def rest(self) -> Iterator[tuple[int, Any]]:
        """(ticks, frame) of all frames after the last requested one."""
        if self._pending is not None:
            yield self._pending
        yield from self._frames

    def _has_keyframe_before(self, target: int) -> bool:
        """Whether there is a keyframe after the last decoded frame (or the next one, if known), up to target."""
        reached = self._shown_until if self._pending is None else self._pending[0]
        entries = self._stream.index_entries
        if len(entries) == 0:
            return bool((target - reached) * self._stream.time_base > BLIND_SEEK_SECONDS)
        position = entries.search_timestamp(target)
        return bool(position >= 0 and entries[position].timestamp > reached)

    def _seek_before(self, target: int) -> None:
        """Seek to a keyframe before target. If the first frame there is later than target, seek earlier and earlier."""
        aim, step = target, max(1, round(1 / self._stream.time_base))
        while aim > self.start_ticks:
            if not seek(self._container, self._stream, aim):
                break
            self._frames = self._decode()
            self._pending = next(self._frames, None)
            if self._pending is not None and self._pending[0] <= target:
                return
            aim, step = aim - step, step * 4
        raise SeekError
