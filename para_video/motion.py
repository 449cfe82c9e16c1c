"""Endless synthetic clips of jointed arms and of things that slide, swing, spin and bounce: motion to pretrain video models on.

As in `para_video.circles` everything is drawn flat over a texture, item i is the same bytes in any order and any worker, and
lengths are stated for images of 128 px and scale with the size.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from para_video.circles import minimum_jerk
from para_video.drawing import (
    KINDS,
    MARGIN,
    NOISE_SLACK,
    RGB,
    TEXELS,
    Shape,
    backdrop,
    bounce,
    expose,
    hsv_colour,
    paint,
    procedural_texture,
    random_drift,
    random_light,
)

ARMS = (0.15, 0.65, 0.2)
"""Probabilities of no arm, one, two."""


class MotionVideos(Dataset[Tensor]):
    """Item i is a clip (frames, 3, size, size) uint8.

    Args:
        seed: not negative. frames: of a clip, at least 1. size: height and width in pixels, at least 32. length: number of clips.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(self, seed: int = 0, frames: int = 8, size: int = 128, length: int = 2**31 - 1) -> None:
        if seed < 0 or frames < 1 or size < 32 or length < 1:
            raise ValueError(
                f"MotionVideos wants seed >= 0, frames >= 1, size >= 32, length >= 1; got {seed}, {frames}, {size}, {length}"
            )
        self.seed, self.frames, self.size, self.length = seed, frames, size, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self.length:
            raise IndexError(f"clip {index} of {self.length}: indices run from 0 to {self.length - 1}")
        rng = np.random.default_rng((self.seed, index, 3))
        texture = procedural_texture(rng, TEXELS * round(self.size * (1 + 2 * MARGIN)))
        drift = random_drift(rng, self.frames, self.size, 1.5)
        canvas = backdrop(texture, drift, self.size)
        for shape in self._shapes(rng):
            paint(canvas, shape, drift)
        blur = int(rng.integers(1, 3)) if rng.random() < 0.25 else 0
        light, noise = random_light(rng, self.frames), rng.uniform(0, 3)
        return torch.from_numpy(expose(canvas, light, blur, noise, int(rng.integers(NOISE_SLACK))))

    def _shapes(self, rng: np.random.Generator) -> list[Shape]:
        """From back to front: what rests, what moves by itself, arms."""
        resting = [self._thing(rng, self._point(rng)[None], np.zeros(1)) for _ in range(rng.poisson(2.5))]
        moving = [self._thing(rng, *self._way(rng)) for _ in range(rng.poisson(1.2))]
        arms = [part for _ in range(rng.choice(len(ARMS), p=ARMS)) for part in self._arm(rng)]
        return [*resting, *moving, *arms]

    def _point(self, rng: np.random.Generator) -> np.ndarray:
        return rng.uniform(0, self.size, 2)

    def _thing(self, rng: np.random.Generator, centre: np.ndarray, angle: np.ndarray) -> Shape:
        """A shape of any kind along a path (t or 1, 2), turned by angles (t or 1,)."""
        unit = self.size / 128
        half = (unit * rng.uniform(3, 14), unit * rng.uniform(3, 14))
        rim = _any_colour(rng) if rng.random() < 0.4 else None
        angle = angle + rng.uniform(0, 2 * np.pi)
        return Shape(str(rng.choice(KINDS)), centre, half, angle, _any_colour(rng), rim, unit * rng.uniform(1, 3))

    def _way(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A path (t, 2) and the angles (t,) along it."""
        unit, time = self.size / 128, np.arange(self.frames)
        angle = time * rng.uniform(-0.3, 0.3) * (rng.random() < 0.5)
        kind = rng.integers(3)
        if kind == 0:  # between borders
            heading, speed = rng.uniform(0, 2 * np.pi), unit * rng.uniform(0.5, 6)
            return bounce(self._point(rng), speed * np.array([math.cos(heading), math.sin(heading)]), time, self.size), angle
        if kind == 1:  # from one place of rest to another
            start, end = self._point(rng), self._point(rng)
            progress = minimum_jerk(time, rng.uniform(-10, self.frames), rng.uniform(6, 24))
            return start + progress[:, None] * (end - start), angle
        phase, speed, radii = rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 0.5), unit * rng.uniform(0, 30, 2)
        turn = phase + speed * time
        return self._point(rng) + radii * np.stack([np.cos(turn), np.sin(turn)], -1), angle

    def _arm(self, rng: np.random.Generator) -> list[Shape]:
        """A chain of two or three links from near a border, whose joints move from pose to pose, with a two-fingered hand that
        may hold something."""
        unit, links = self.size / 128, int(rng.integers(2, 4))
        side, along = int(rng.integers(4)), rng.uniform(0.15, 0.85)
        depth = rng.uniform(-0.1, 0.15)
        base = self.size * np.array([(along, depth), (along, 1 - depth), (depth, along), (1 - depth, along)][side])
        inward = (math.pi / 2, -math.pi / 2, 0.0, math.pi)[side]
        lengths = unit * rng.uniform(22, 48, links) * (1.25 if links == 2 else 1.0)
        width, tint = unit * rng.uniform(3, 8), _any_colour(rng)
        same = rng.random() < 0.5
        joint, heading, parts = np.tile(base, (self.frames, 1)), np.full(self.frames, inward), []
        for length in lengths:
            heading = heading + self._joint(rng)
            reach = length * np.stack([np.cos(heading), np.sin(heading)], -1)
            fill = tint if same else _any_colour(rng)
            parts.append(Shape("rectangle", joint + reach / 2, (length / 2, width), heading, fill))
            joint, width = joint + reach, width * rng.uniform(0.65, 1.0)
            parts.append(Shape("circle", joint, (1.15 * width, 1.15 * width), np.zeros(1), _any_colour(rng) if same else fill))
        return [*parts, *self._hand(rng, joint, heading + self._joint(rng) / 2, width)]

    def _hand(self, rng: np.random.Generator, wrist: np.ndarray, heading: np.ndarray, width: float) -> list[Shape]:
        """Two fingers at the end of an arm, and perhaps a thing between them."""
        ahead = np.stack([np.cos(heading), np.sin(heading)], -1)
        across, fill, held = np.stack([-ahead[:, 1], ahead[:, 0]], -1), _any_colour(rng), rng.random() < 0.4
        change = minimum_jerk(np.arange(self.frames), rng.uniform(-6, self.frames), 4.0) * (not held)
        start, end = rng.uniform(0.4, 1.4, 2)
        spread = (width * (start + change * (end - start)))[:, None]
        fingers = [
            Shape("rectangle", wrist + 1.6 * width * ahead + sign * spread * across, (0.9 * width, 0.25 * width), heading, fill)
            for sign in (-1, 1)
        ]
        if not held:
            return fingers
        half = (width * rng.uniform(0.4, 1.0), width * start * 0.8)
        return [Shape(str(rng.choice(KINDS[:3])), wrist + 2 * width * ahead, half, heading, _any_colour(rng)), *fingers]

    def _joint(self, rng: np.random.Generator) -> np.ndarray:
        """(t,) radians of a joint that rests, moves to another pose and rests, perhaps in the midst of it."""
        start, end = rng.uniform(-1.1, 1.1, 2)
        progress = minimum_jerk(np.arange(self.frames), rng.uniform(-14, 0.8 * self.frames), rng.uniform(8, 26))
        return start + progress * (end - start) * (rng.random() < 0.85)


def _any_colour(rng: np.random.Generator) -> RGB:
    return hsv_colour(rng.random(), rng.uniform(0, 1), rng.uniform(0.1, 1))
