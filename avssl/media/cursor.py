"""Walking forward through a video stream, jumping over groups of pictures that nobody asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from avssl.media.ffmpeg import seek

# Without an index of keyframes, a jump by seeking is worth it only beyond this.
BLIND_SEEK_SECONDS = 10.0


class SeekMissed(Exception):
    """The container cannot seek to before the wanted time; read it from its beginning instead."""


class FrameCursor:
    """The frame on screen at increasing times, decoding as little as possible.

    Args:
        container, stream: PyAV's; the container stands at its beginning.
        start_ticks: the first frame's stamp, None to find it by decoding.
        may_seek: False reads through from the beginning.
        in_order: frames are shown as they are stored and each until the next one begins, so that nothing after the one
            on screen needs to be decoded.
        decode: starts an iterator of (ticks, frame) from where the container stands.
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
        self._pending: tuple[int, Any] | None = None  # decoded, its time not yet come
        if start_ticks is None:
            self._pending = next(self._frames, None)
            start_ticks = 0 if self._pending is None else self._pending[0]
        self.start_ticks: int = start_ticks
        self._reached = start_ticks
        self._shown_until = start_ticks  # the end of what is on screen where that is known, else its beginning
        self.first = self._pending  # (ticks, frame); None also where start_ticks was given

    def on_screen(self, target: int, *, may_jump: bool = True) -> Any:
        """The latest frame with a stamp at or before target (ticks); the first one before that; None if there is none.

        Targets must not decrease from call to call. may_jump: False reads on. Raises SeekMissed.
        """
        if self._current is not None and target < self._shown_until:
            return self._current
        if may_jump and self._may_seek and self._has_keyframe_before(target):
            self._jump(target)
        while True:
            if self._pending is None:
                self._pending = next(self._frames, None)
                is_later = self._pending is None or self._current is None or self._pending[0] > self._reached
                if self._in_order and not is_later:
                    raise SeekMissed
            if self._pending is None or (self._current is not None and self._pending[0] > target):
                return self._current
            self._reached, self._current = self._pending
            self._shown_until, self._pending = self._reached, None
            if self._in_order and self._current.duration:
                self._shown_until += self._current.duration
                if target < self._shown_until:
                    return self._current

    def walk_to(self, target: int) -> tuple[int, Any] | None:
        """(ticks, frame) on screen at target, by reading on: for targets close to each other. Raises SeekMissed."""
        frame = self.on_screen(target, may_jump=False)
        return None if frame is None else (self._reached, frame)

    def jump_to(self, target: int) -> tuple[int, Any] | None:
        """(ticks, frame) on screen at target, by a jump if that is shorter; go on with `rest`. Raises SeekMissed."""
        is_far = (target - self._reached) * self._stream.time_base > BLIND_SEEK_SECONDS
        if self._may_seek and is_far and not self._has_keyframe_before(target):
            self._jump(target)  # some containers list only the keyframes that were read
        frame = self.on_screen(target)
        return None if frame is None else (self._reached, frame)

    def rest(self) -> Iterator[tuple[int, Any]]:
        """(ticks, frame) of all that follow the last one asked for."""
        if self._pending is not None:
            yield self._pending
        yield from self._frames

    def _has_keyframe_before(self, target: int) -> bool:
        """Is there a keyframe between the last decoded frame and the target, beyond the next frame if that is known?"""
        reached = self._shown_until if self._pending is None else self._pending[0]
        entries = self._stream.index_entries
        if len(entries) == 0:
            return bool((target - reached) * self._stream.time_base > BLIND_SEEK_SECONDS)
        found = entries.search_timestamp(target)
        return bool(found >= 0 and entries[found].timestamp > reached)

    def _jump(self, target: int) -> None:
        """Seek to the keyframe before target; where a container misses, aim earlier and earlier."""
        aim, step = target, max(1, round(1 / self._stream.time_base))
        while aim > self.start_ticks:
            if not seek(self._container, self._stream, aim):
                break
            self._frames = self._decode()
            self._pending = next(self._frames, None)
            if self._pending is not None and self._pending[0] <= target:
                return
            aim, step = aim - step, step * 4
        raise SeekMissed
