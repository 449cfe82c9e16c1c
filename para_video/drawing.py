"""Flat shapes over textures, drawn as a camera would see them: what the synthetic clips are made of.

Pixels are (x, y) and an integer is a pixel's centre. *Scene* pixels are image pixels before the camera drifts.
"""

from __future__ import annotations

import colorsys
import functools
import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch

RGB = tuple[int, int, int]
KINDS = ("circle", "ellipse", "rectangle", "triangle", "star", "cross")

TEXELS = 2
"""Background texels per scene pixel: sampling the nearest one is then off by a quarter of a pixel at most."""
MARGIN = 0.14
"""Of the size: background beyond each border; holds the strongest drift at strength 1."""
NOISE_SLACK = 1 << 16
"""Different beginnings in the noise table."""
_STAR_NOTCH = 0.45


@dataclass(frozen=True)
class Drift:
    """The camera's motion: image = zoom * R(angle) scene + offset, with R turning x towards y.

    Args:
        zoom: (t,). angle: (t,) radians. offset: (t, 2) pixels.
    """

    zoom: np.ndarray
    angle: np.ndarray
    offset: np.ndarray

    def apply(self, points: np.ndarray) -> np.ndarray:
        """(t, 2) or (1, 2) scene pixels to (t, 2) image pixels."""
        c, s = self.zoom * np.cos(self.angle), self.zoom * np.sin(self.angle)
        x, y = points.T
        image = self.offset.copy()
        image[:, 0] += c * x - s * y
        image[:, 1] += s * x + c * y
        return image


@dataclass(frozen=True)
class Shape:
    """A flat shape; arrays with first dimension t follow the frames, those with 1 stand still in the scene.

    Args:
        kind: one of `KINDS`.
        centre: (t or 1, 2) scene pixels.
        half: (a, b) half extents in scene pixels along the shape's own axes (a circle uses a).
        angle: (t or 1,) radians from scene x to the shape's first axis.
        fill: RGB in 0..255, or None for an outline.
        rim: RGB of a band of `rim_width` scene pixels inside the border, or None.
        scale: (t or 1,) factor on all lengths.
    """

    kind: str
    centre: np.ndarray
    half: tuple[float, float]
    angle: np.ndarray
    fill: RGB | None
    rim: RGB | None = None
    rim_width: float = 0.0
    scale: np.ndarray = field(default_factory=lambda: np.ones(1))


# -------------------------------------------------------------------- drawing lots


def hsv_colour(hue: float, saturation: float, value: float) -> RGB:
    """Hue (any number; whole turns are the same), saturation and value in [0, 1] to RGB in 0..255."""
    red, green, blue = (round(255 * c) for c in colorsys.hsv_to_rgb(hue % 1.0, saturation, value))
    return red, green, blue


def vivid_colour(rng: np.random.Generator, hue: float) -> RGB:
    """A strong colour near a hue."""
    return hsv_colour(hue + rng.uniform(-0.02, 0.02), rng.uniform(0.7, 1.0), rng.uniform(0.65, 1.0))


def other_hue(rng: np.random.Generator, hue: float) -> float:
    """A hue at least 60 degrees from the clip's own, so that a match is a match for any eye."""
    return hue + rng.uniform(1 / 6, 5 / 6)


def bounce(start: np.ndarray, velocity: np.ndarray, time: np.ndarray, size: int) -> np.ndarray:
    """(t, 2) a straight line folded back at the borders of the image."""
    position = (start + time[:, None] * velocity) % (2 * size)
    return np.where(position > size, 2 * size - position, position)


def random_drift(rng: np.random.Generator, frames: int, size: int, strength: float) -> Drift:
    """A slow sinusoid in each of translation (up to 5 px), rotation (4 degrees) and zoom (5 %); half the cameras rest."""
    strength = strength * rng.uniform(0.3, 1.0) * (rng.random() < 0.5)
    phase, speed = rng.uniform(0, 2 * np.pi, 4), rng.uniform(0.05, 0.35, 4)
    wave = strength * np.sin(phase + np.arange(frames)[:, None] * speed)
    zoom, angle = 1 + 0.05 * wave[:, 0], 0.07 * wave[:, 1]
    turned = Drift(zoom, angle, np.zeros((frames, 2)))
    middle = np.full((1, 2), (size - 1) / 2)
    return replace(turned, offset=middle - turned.apply(middle) + 5 * size / 128 * wave[:, 2:])


def random_light(rng: np.random.Generator, frames: int) -> np.ndarray:
    """(t, 3) gain: brightness and tint of the clip, times a slow wave."""
    phase, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.9)
    wave = 1 + rng.uniform(0, 0.12) * np.sin(phase + speed * np.arange(frames))
    return rng.uniform(0.75, 1.2) * wave[:, None] * rng.uniform(0.92, 1.08, 3)


# -------------------------------------------------------------------- backgrounds


@functools.lru_cache(maxsize=32)
def _stretch(cells: int, side: int) -> np.ndarray:
    """(side, cells) smooth interpolation weights, in 64ths.

    Whole numbers of 64ths make products with whole grey levels exact in float32, so that the order in which a matrix
    multiplication adds them (which varies with the threads) cannot change a bit.
    """
    position = np.linspace(0, cells - 1, side)
    left = np.minimum(position.astype(int), cells - 2)
    s = position - left
    weight = np.round(64 * s * s * (3 - 2 * s))
    matrix = np.zeros((side, cells), np.float32)
    matrix[np.arange(side), left], matrix[np.arange(side), left + 1] = 64 - weight, weight
    return matrix


def _upsample(grid: np.ndarray, side: int) -> np.ndarray:
    """(m, n) whole numbers in 0..255 to (side, side) float32 in [0, 1]."""
    down, along = (torch.from_numpy(_stretch(cells, side)) for cells in grid.shape)
    with torch.autocast("cpu", enabled=False):  # in torch, since numpy's own threads would compete with those of a training
        smooth = down @ torch.from_numpy(grid).float() @ along.T
    return smooth.numpy() * np.float32(1 / (255 * 64 * 64))


def _noise_field(rng: np.random.Generator, side: int, aspect: int = 1) -> np.ndarray:
    """(side, side) sum of octaves of value noise in [0, 1]; `aspect` stretches it along x, as wood grain is."""
    field = np.zeros((side, side), np.float32)
    amplitudes = 0.5 ** (np.arange(4) * rng.uniform(0.4, 1.5))
    for amplitude, cells in zip(amplitudes / amplitudes.sum(), (4, 8, 16, 32), strict=True):
        field += np.float32(amplitude) * _upsample(rng.integers(0, 256, (cells, max(2, cells // aspect))), side)
    return field


def _gradient(rng: np.random.Generator, side: int) -> np.ndarray:
    """A ramp in a random direction that turns back at its ends, in [0, 1]."""
    heading, start = rng.uniform(0, 2 * np.pi), rng.random()
    line = np.arange(side, dtype=np.float32) / side
    ramp = np.float32(math.cos(heading)) * line + (np.float32(math.sin(heading)) * line + np.float32(start))[:, None]
    return np.abs(2 * (ramp % 1) - 1)


def _tiles(rng: np.random.Generator, side: int) -> np.ndarray:
    """Stripes or a checker with soft edges, in [0, 1]."""
    heading, periods = rng.uniform(0, 2 * np.pi), rng.uniform(2, 9)
    line = np.arange(side, dtype=np.float32) * np.float32(2 * np.pi * periods / side)
    c, s = np.float32(math.cos(heading)), np.float32(math.sin(heading))
    field = np.sin(c * line + (s * line)[:, None])
    if rng.random() < 0.6:
        field *= np.sin(c * line[:, None] - s * line)
    return np.clip(0.5 + np.float32(4) * field, 0, 1)


def _cells(rng: np.random.Generator, side: int) -> np.ndarray:
    """Voronoi cells of random shades in [0, 1], found on a coarse grid and stretched (exact edges would cost a millisecond)."""
    coarse, count = 80, int(rng.integers(6, 20))
    line = np.arange(coarse)
    seeds = rng.integers(0, coarse, (count, 2, 1))
    distance = ((line - seeds[:, 0]) ** 2)[:, None, :] + ((line - seeds[:, 1]) ** 2)[:, :, None]
    return _upsample(rng.integers(0, 256, count)[distance.argmin(0)], side)


def procedural_texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """A muted background: gradient, noise, tiles, cells, or a wooden table before a wall.

    Returns:
        (3, side, side) int16 in 0..255.
    """
    kind = ("gradient", "noise", "tiles", "cells", "table")[rng.integers(5)]
    noise = _noise_field(rng, side, aspect=4 if kind == "table" else 1)
    pattern = {"gradient": _gradient, "tiles": _tiles, "cells": _cells}.get(kind)
    share = np.float32(rng.uniform(0.5, 0.95))
    field = noise if pattern is None else share * pattern(rng, side) + (1 - share) * noise
    level = (127 * field).astype(np.uint8)
    if kind == "table" or rng.random() < 0.15:
        beyond = _above_horizon(rng, side)
        level[beyond] = level[beyond] // 4 + 128
    level = level.ravel()
    return np.stack([channel.take(level) for channel in _palette(rng)]).reshape(3, side, side)


def _above_horizon(rng: np.random.Generator, side: int) -> np.ndarray:
    """(side, side) bool, the part above a slightly tilted line in the upper half."""
    line = np.arange(side, dtype=np.float32) / side
    edge, tilt = np.float32(rng.uniform(0.15, 0.5)), np.float32(rng.uniform(-0.15, 0.15))
    return line[:, None] + tilt * (line - np.float32(0.5)) < edge


def _palette(rng: np.random.Generator) -> np.ndarray:
    """(3, 256) int16: two ramps of 128 muted colours each, one for the pattern and one for the wall behind."""
    halves = []
    for _ in range(2):
        hue, centre = rng.random(), rng.uniform(0.15, 0.9)
        spread = rng.uniform(0.1, 0.45)
        anchors = [
            hsv_colour(hue + rng.uniform(-0.12, 0.12), rng.uniform(0, 0.4), min(max(centre + spread * e, 0.03), 1.0))
            for e in rng.uniform(-1, 1, 3)
        ]
        halves.append([np.interp(np.arange(128), (0, 64, 127), channel) for channel in zip(*anchors, strict=True)])
    return np.concatenate(halves, -1).astype(np.int16)


# -------------------------------------------------------------------- drawing


def _signed_distance(kind: str, u: np.ndarray, v: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance to the border in pixels, negative inside, exact near straight edges and circles.

    Args:
        u, v: (t, p, q) pixels in the shape's own axes. a, b: (t, 1, 1) half extents.
    """
    if kind == "circle":
        return np.sqrt(u * u + v * v) - a
    if kind == "ellipse":  # first-order distance f / |grad f| of f = |(u / a, v / b)| - 1
        radial = np.sqrt((u / a) ** 2 + (v / b) ** 2)
        return radial * (radial - 1) / np.maximum(np.sqrt((u / a**2) ** 2 + (v / b**2) ** 2), 1e-6)
    if kind == "rectangle":
        return np.maximum(np.abs(u) - a, np.abs(v) - b)
    if kind == "triangle":
        return np.maximum(v - b, (2 * b * np.abs(u) - a * (v + b)) / np.sqrt(4 * b * b + a * a))
    if kind == "cross":
        u, v = np.abs(u), np.abs(v)
        return np.minimum(np.maximum(u - a, v - 0.35 * b), np.maximum(u - 0.35 * a, v - b))
    if kind == "star":  # fold the ten half points onto one, then measure to its edge
        sector = np.pi / 5
        fold = np.abs((np.arctan2(u, -v) + sector) % (2 * sector) - sector)
        radius = np.sqrt(u * u + v * v)
        ex, ey = _STAR_NOTCH * math.cos(sector) - 1, _STAR_NOTCH * math.sin(sector)
        return ((radius * np.cos(fold) - a) * ey - radius * np.sin(fold) * ex) / math.hypot(ex, ey)
    raise ValueError(f"unknown shape {kind!r}; choose from {KINDS}")


def distance_at(shape: Shape, drift: Drift, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(t, p, q) signed distance in image pixels at columns x (t, q) and rows y (t, p)."""
    centre = drift.apply(shape.centre).astype(np.float32)
    dx, dy = (x - centre[:, :1])[:, None, :], (y - centre[:, 1:])[:, :, None]
    factor = (shape.scale * drift.zoom).astype(np.float32)[:, None, None]
    a, b = (np.float32(h) * factor for h in shape.half)
    if shape.kind == "circle":
        return _signed_distance("circle", dx, dy, a, b)
    angle = (shape.angle + drift.angle).astype(np.float32)[:, None, None]
    c, s = np.cos(angle), np.sin(angle)
    return _signed_distance(shape.kind, c * dx + s * dy, c * dy - s * dx, a, b)


def patch_of(shape: Shape, drift: Drift) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows (t, p) of the squares of pixels that hold the shape in each frame."""
    extent = shape.half[0] if shape.kind in ("circle", "star") else math.hypot(*shape.half)
    reach = math.ceil(extent * float((shape.scale * drift.zoom).max())) + 2
    corner = np.floor(drift.apply(shape.centre)).astype(np.int32) - reach + 1
    offsets = np.arange(2 * reach, dtype=np.int32)
    return corner[:, :1] + offsets, corner[:, 1:] + offsets


def coverage(distance: np.ndarray, softness: float) -> np.ndarray:
    """The part of a pixel inside a border at this distance, for an edge `softness` pixels wide."""
    return np.clip(0.5 - distance * np.float32(1 / softness), 0, 1)


def paint(canvas: np.ndarray, shape: Shape, drift: Drift, softness: float = 1.0) -> None:
    """Draw a shape onto all frames, in place.

    Args:
        canvas: (t, 3, H, W) int16 in 0..255.
        softness: width of the antialiased edge in pixels.
    """
    height, width = canvas.shape[-2:]
    x, y = patch_of(shape, drift)
    if x.min() >= width or y.min() >= height or x.max() < 0 or y.max() < 0:
        return
    distance = distance_at(shape, drift, x, y)
    layers: list[tuple[RGB, np.ndarray]] = []
    if shape.rim is None:
        assert shape.fill is not None  # a shape without a rim is all fill
        layers.append((shape.fill, coverage(distance, softness)))
    else:
        inner = distance + (shape.rim_width * shape.scale * drift.zoom).astype(np.float32)[:, None, None]
        outer, inside = coverage(distance, softness), coverage(inner, softness)
        layers.append((shape.rim, outer if shape.fill is not None else outer - inside))
        if shape.fill is not None:
            layers.append((shape.fill, inside))
    for colour, alpha in layers:
        _blend(canvas, colour, alpha, x[:, 0], y[:, 0])


def _blend(canvas: np.ndarray, colour: RGB, alpha: np.ndarray, left: np.ndarray, top: np.ndarray) -> None:
    """Lay a colour over square patches (t, p, p) of the frames with opacity alpha in [0, 1]."""
    height, width = canvas.shape[-2:]
    side = alpha.shape[-1]
    opacity = (128 * alpha + 0.5).astype(np.int16)  # 128ths: a difference of 255 times 128 still fits int16
    tone = np.array(colour, np.int16)[:, None, None]
    for frame, x0, y0, mask in zip(canvas, left.tolist(), top.tolist(), opacity, strict=True):
        xs, ys = max(0, -x0), max(0, -y0)
        xe, ye = min(side, width - x0), min(side, height - y0)
        if xs < xe and ys < ye:
            patch = frame[:, y0 + ys : y0 + ye, x0 + xs : x0 + xe]
            change = tone - patch
            change *= mask[ys:ye, xs:xe]
            change += 64
            change >>= 7
            patch += change


def backdrop(texture: np.ndarray, drift: Drift, size: int) -> np.ndarray:
    """(t, 3, size, size) int16: the nearest texel for each pixel of each frame."""
    side = texture.shape[-1]
    origin = (side / TEXELS - size) / 2
    c, s = np.cos(drift.angle) / drift.zoom, np.sin(drift.angle) / drift.zoom
    ox, oy = drift.offset.T
    line, fixed = np.arange(size), TEXELS * 65536  # 16 binary places: adding whole numbers is faster than floats

    def texels(per_x: np.ndarray, per_y: np.ndarray) -> np.ndarray:
        start = origin - per_x * ox - per_y * oy + 0.5 / TEXELS
        along = np.round(fixed * (per_x[:, None] * line + start[:, None])).astype(np.int32)
        down = np.round(fixed * (per_y[:, None] * line)).astype(np.int32)
        position = along[:, None, :] + down[:, :, None]
        position >>= 16
        return np.clip(position, 0, side - 1, out=position)

    index = texels(-s, c)
    index *= side
    index += texels(c, s)
    canvas = np.empty((len(c), 3, size, size), np.int16)
    for channel, plane in enumerate(texture.reshape(3, -1)):
        canvas[:, channel] = plane.take(index)
    return canvas


def _smooth(canvas: np.ndarray) -> None:
    """One pass of the 1-2-1 filter along both image axes, in place; the borders stay."""
    for a, b, c in (
        (canvas[..., :-2], canvas[..., 1:-1], canvas[..., 2:]),
        (canvas[..., :-2, :], canvas[..., 1:-1, :], canvas[..., 2:, :]),
    ):
        b[...] = (a + 2 * b + c + 2) >> 2


@functools.lru_cache(maxsize=4)
def _noise_table(length: int) -> np.ndarray:
    """(length,) int16 normal noise in eighths; drawing it anew for each clip would take longer than all the rest."""
    return np.round(8 * np.random.default_rng(0).standard_normal(length, np.float32)).astype(np.int16)


def expose(canvas: np.ndarray, gain: np.ndarray, blur: int, noise: float, noise_start: int) -> np.ndarray:
    """(t, 3, H, W) int16 to uint8 after light, blur and sensor noise. gain: (t, 3) light on each channel. blur: passes of a 1-2-1
    filter. noise: standard deviation in grey levels. noise_start: where in the noise table it begins."""
    for _ in range(blur):
        _smooth(canvas)
    canvas *= np.round(64 * np.clip(gain, 0, 2)).astype(np.int16)[:, :, None, None]
    canvas >>= 6
    table = _noise_table(canvas.size + NOISE_SLACK)
    grain = table[noise_start : noise_start + canvas.size] * np.int16(round(8 * noise))
    grain >>= 6
    canvas += grain.reshape(canvas.shape)
    return np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)
