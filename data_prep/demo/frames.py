"""The frames of the demo corpus: one moving shape before a background.

The shape is the class; colors, position, size, rotation, texture, clutter and noise are drawn anew for every clip, from
the same ranges for every class.

A shape is a function of x, y (arrays of one size; the shape fills about the unit circle) that is negative inside and,
near its outline, close to the distance from the outline, which gives smooth edges at any size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.floating[Any]]

SMALLEST_SIZE = 0.55  # of the full radius, when the audio is silent


def _box(x: Plane, y: Plane, half_width: float, half_height: float) -> Plane:
    return np.asarray(np.maximum(np.abs(x) - half_width, np.abs(y) - half_height))


def disc(x: Plane, y: Plane) -> Plane:
    """A filled circle."""
    return np.asarray(np.hypot(x, y) - 0.9)


def square(x: Plane, y: Plane) -> Plane:
    """A square."""
    return _box(x, y, 0.78, 0.78)


def triangle(x: Plane, y: Plane) -> Plane:
    """An equilateral triangle."""
    side = np.maximum(0.8660254 * x - 0.5 * y, -0.8660254 * x - 0.5 * y)
    return np.asarray(np.maximum(side, y) - 0.55)


def star(x: Plane, y: Plane) -> Plane:
    """A star of five points. Each fifth of the plane is folded onto one edge between a tip and a notch."""
    fifth = 2 * np.pi / 5
    angle = np.abs((np.arctan2(y, x) + np.pi) % fifth - fifth / 2)
    radius = np.hypot(x, y)
    along, across = radius * np.cos(angle), radius * np.sin(angle)
    notch = 0.45 * np.exp(1j * fifth / 2)
    edge = notch - 1.1
    normal = np.array([edge.imag, -edge.real]) / abs(edge)
    return np.asarray((along - 1.1) * normal[0] + across * normal[1])


def cross(x: Plane, y: Plane) -> Plane:
    """A plus sign."""
    return np.minimum(_box(x, y, 1.0, 0.3), _box(x, y, 0.3, 1.0))


def ring(x: Plane, y: Plane) -> Plane:
    """A circle with a hole."""
    return np.asarray(np.abs(np.hypot(x, y) - 0.72) - 0.23)


def crescent(x: Plane, y: Plane) -> Plane:
    """A disc with a bite of another disc."""
    return np.asarray(np.maximum(np.hypot(x, y) - 1.0, 0.78 - np.hypot(x - 0.55, y)))


def bars(x: Plane, y: Plane) -> Plane:
    """Three parallel bars."""
    outer = _box(np.abs(x) - 0.62, y, 0.18, 0.78)
    return np.minimum(outer, _box(x, y, 0.18, 0.78))


SHAPES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "disc": disc,
    "square": square,
    "triangle": triangle,
    "star": star,
    "cross": cross,
    "ring": ring,
    "crescent": crescent,
    "bars": bars,
}


@dataclass(frozen=True)
class Scene:
    """What a clip shows besides its shape. Lengths are in frame widths, positions from the center."""

    radius: float  # when the audio is loudest
    start: tuple[float, float]
    drift: tuple[float, float]  # over the whole clip
    angle: float  # radians
    turn: float  # radians over the whole clip
    color: Plane  # (3,) in [0, 1]
    shade: float


def _draw_colors(generator: np.random.Generator, difficulty: float) -> tuple[Plane, Plane, Plane]:
    """Colors (3,) of the object and of two ends of the background's gradient, from which the object differs clearly.

    An easy clip shows a bright object before a dark background; with difficulty the ranges approach each other.
    """
    least = 0.75 - 0.3 * difficulty
    reach = 0.3 + 0.6 * difficulty
    while True:
        colors = generator.uniform(0, reach, (3, 3)).astype(np.float32) + 0.05
        colors[0] = 1 - colors[0]
        first, second = np.abs(colors[1:] - colors[0]).sum(axis=1)
        if min(first, second) >= least and np.abs(colors[1:].mean(axis=0) - colors[0]).sum() >= least:
            return colors[0], colors[1], colors[2]


def _draw_scene(generator: np.random.Generator, difficulty: float, color: Plane) -> Scene:
    radius = float(generator.uniform(0.36 - 0.16 * difficulty, 0.40))
    room = max(0.5 - radius, 0.08)
    start, end = generator.uniform(-room, room, (2, 2))
    turn_limit = 0.3 + 1.2 * difficulty
    angle_limit = np.pi * (0.1 + 0.9 * difficulty)
    return Scene(
        radius=radius,
        start=(float(start[0]), float(start[1])),
        drift=(float(0.6 * (end[0] - start[0])), float(0.6 * (end[1] - start[1]))),
        angle=float(generator.uniform(-angle_limit, angle_limit)),
        turn=float(generator.uniform(-turn_limit, turn_limit)),
        color=color,
        shade=float(generator.uniform(0, 0.25)),
    )


def _grid(size_px: int) -> tuple[Plane, Plane]:
    """x and y of the pixels' centers, each float32 (size, size) in [-0.5, 0.5]."""
    axis = ((np.arange(size_px) + 0.5) / size_px - 0.5).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    return x, y


def draw_background(generator: np.random.Generator, size_px: int, difficulty: float, ends: Plane) -> Plane:
    """float32 (size, size, 3) in [0, 1]: a gradient between two colors (2, 3), with waves that grow with difficulty."""
    x, y = _grid(size_px)
    angle = generator.uniform(0, 2 * np.pi)
    along = np.clip(0.5 + x * np.cos(angle) + y * np.sin(angle), 0, 1)[..., None]
    image = (1 - along) * ends[0] + along * ends[1]
    for _ in range(3):
        waves_x, waves_y = generator.uniform(-7, 7, 2)
        wave = np.sin(2 * np.pi * (waves_x * x + waves_y * y + generator.uniform()))
        image = image + 0.12 * difficulty * wave[..., None] * generator.uniform(-1, 1, 3)
    return np.asarray(np.clip(image, 0, 1), dtype=np.float32)


def _add_blobs(frames: Plane, generator: np.random.Generator, difficulty: float) -> Plane:
    """The frames with soft moving spots that are unrelated to the audio."""
    num_frames, size_px = frames.shape[:2]
    x, y = _grid(size_px)
    progress = np.linspace(0, 1, num_frames, dtype=np.float32)[:, None, None]
    for _ in range(generator.binomial(6, 0.7 * difficulty)):
        start, end = generator.uniform(-0.55, 0.55, (2, 2))
        width, height = generator.uniform(0.04, 0.13, 2)
        angle = generator.uniform(0, np.pi)
        across = x - (start[0] + progress * 0.5 * (end[0] - start[0]))
        down = y - (start[1] + progress * 0.5 * (end[1] - start[1]))
        turned = np.cos(angle) * across + np.sin(angle) * down, np.cos(angle) * down - np.sin(angle) * across
        opacity = np.exp(-((turned[0] / width) ** 2) - (turned[1] / height) ** 2)[..., None] * generator.uniform(
            0.4, 0.9
        )
        frames = frames * (1 - opacity) + opacity * generator.uniform(0, 1, 3)
    return frames.astype(np.float32)


def _cover(shape: str, scene: Scene, size_px: int, radii: Plane, heights: Plane) -> tuple[Plane, Plane]:
    """(fraction of every pixel that the object covers, its shading), each (frames, size, size)."""
    x, y = _grid(size_px)
    progress = np.linspace(0, 1, len(radii), dtype=np.float32)[:, None, None]
    limit = 0.5 - 0.6 * scene.radius
    center_x = np.clip(scene.start[0] + progress * scene.drift[0], -limit, limit)
    center_y = np.clip(scene.start[1] + progress * scene.drift[1] - heights[:, None, None], -limit, limit)
    angle = scene.angle + progress * scene.turn
    scale = radii[:, None, None]
    across, down = (x - center_x) / scale, (y - center_y) / scale
    turned_x = np.cos(angle) * across + np.sin(angle) * down
    turned_y = np.cos(angle) * down - np.sin(angle) * across
    distance_px = SHAPES[shape](turned_x, turned_y) * scale * size_px
    return np.clip(0.5 - distance_px, 0, 1), 1 + scene.shade * np.clip(turned_x, -1, 1)


def render(
    shape: str, loudness: Plane, heights: Plane, generator: np.random.Generator, *, size_px: int, difficulty: float
) -> NDArray[np.uint8]:
    """The frames of a clip of one shape: uint8 (frames, size, size, 3), RGB.

    Args:
        shape: a key of SHAPES.
        loudness: (frames,) in [0, 1]: the object's radius grows with it from 0.55 of the full radius to all of it.
        heights: (frames,) in [-1, 1]: lifts the object by up to an eighth of the frame.
        size_px: width and height. difficulty: [0, 1], strength of everything that hides the shape.
    """
    color, *ends = _draw_colors(generator, difficulty)
    scene = _draw_scene(generator, difficulty, color)
    radii = (scene.radius * (SMALLEST_SIZE + (1 - SMALLEST_SIZE) * loudness)).astype(np.float32)
    background = draw_background(generator, size_px, difficulty, np.stack(ends))
    frames = _add_blobs(np.repeat(background[None], len(radii), axis=0), generator, difficulty)
    cover, shading = _cover(shape, scene, size_px, radii, (0.125 * heights).astype(np.float32))
    frames = frames + cover[..., None] * (np.clip(shading[..., None] * scene.color, 0, 1) - frames)
    frames = frames + (0.01 + 0.07 * difficulty) * generator.standard_normal(frames.shape, dtype=np.float32)
    return np.asarray(np.round(255 * np.clip(frames, 0, 1)), dtype=np.uint8)
