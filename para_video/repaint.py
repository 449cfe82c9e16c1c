"""Other colours for what surrounds a task: large surfaces of one colour are found in frames, and painted anew.

A demonstration is made on one table, before one wall, by one arm. Policies then learn how these look, and fail where they look
otherwise; nothing in an image says what matters but its size: what is handled is small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.cluster.vq import kmeans2, vq
from skimage.color import rgb2lab
from torch import Tensor

from para_video.drawing import hsv_colour, procedural_texture

CENTRES = 16
"""Colours that are told apart at first."""
JOINED = 14.0
"""Colours closer than this, in `_colour_space`, are shades of one surface."""
LIGHTNESS = 0.35
"""Weight of lightness beside hue: a surface is lit unevenly."""
CHROMA_AT, DARK = 30.0, 15.0
"""In a surface's shades chroma rises with lightness; it is told as it would be at this lightness. What is added to both, since the
hue of what is nearly black is noise."""
LEAST_SHARE = 0.012
"""Of the image that a patch covers at least to be repainted."""
GAP_PX = 2
"""Pixels that may lie between parts of a patch."""
REPAINTED = 0.8
"""Probability for each surface of a clip that is repainted."""
SAMPLED = 20_000
"""Pixels that colours are found from."""
PLAIN = 0.4
"""Share of what is painted in one colour."""
DARKEST, SHADES = 0.02, (0.3, 2.0)
"""Least mean lightness that grain is told from, and the least and most of it."""
_BITS = 3
"""Of each channel that do not matter."""


@dataclass(frozen=True)
class Palette:
    """Which surface of a scene has which colour.

    Args:
        surface: (n, n, n) uint8 with n = 256 >> `_BITS`, by red, green and blue: the number of the surface, from 1.
    """

    surface: np.ndarray

    @classmethod
    def of(cls, frames: Sequence[np.ndarray]) -> Palette:
        """Of the colours in frames, each (H, W, 3) uint8: shades that lie close are one surface's."""
        rng = np.random.default_rng(0)
        pixels = np.concatenate([frame.reshape(-1, 3) for frame in frames])
        pixels = pixels[rng.integers(len(pixels), size=SAMPLED)]
        count = min(CENTRES, len(np.unique(pixels, axis=0)))
        centres, found = kmeans2(_colour_space(pixels), count, minit="++", rng=rng)
        centres = centres[np.bincount(found, minlength=count) > 0]
        joined = fcluster(linkage(centres, "average"), JOINED, "distance") if len(centres) > 1 else np.ones(1)
        levels = np.arange(0, 256, 1 << _BITS, dtype=np.uint8) + (1 << _BITS >> 1)
        colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1)
        nearest, _ = vq(_colour_space(colours.reshape(-1, 3)), centres)
        return cls(joined.astype(np.uint8)[nearest].reshape(colours.shape[:3]))

    def surfaces(self, frames: Tensor) -> Tensor:
        """(n, H, W) uint8: the surface at each pixel of frames (n, 3, H, W) uint8, 0 where a patch of it is small."""
        near = np.ones((GAP_PX + 1, GAP_PX + 1))
        red, green, blue = (frames >> _BITS).numpy().swapaxes(0, 1)
        found = self.surface[red, green, blue]
        for frame in found:
            large = np.zeros(frame.shape, bool)
            for surface in np.flatnonzero(np.bincount(frame.ravel()) >= LEAST_SHARE * frame.size):
                where = frame == surface
                patches, count = ndimage.label(ndimage.binary_dilation(where, near))
                size = np.bincount(patches[where], minlength=count + 1)
                large |= where & (size >= LEAST_SHARE * frame.size)[patches]
            frame[~large] = 0
        return torch.from_numpy(found)


def _colour_space(pixels: np.ndarray) -> np.ndarray:
    """(n, 3) uint8 RGB to (n, 3): CIELAB, in which shades of a surface lie close."""
    lightness, chroma = np.split(rgb2lab(pixels), [1], axis=-1)
    return np.concatenate([LIGHTNESS * lightness, chroma * ((CHROMA_AT + DARK) / (lightness + DARK))], -1)


def repainted(clip: Tensor, surfaces: Tensor, rng: np.random.Generator, probability: float = REPAINTED) -> Tensor:
    """A clip (t, 3, H, W) in [0, 1], each of whose surfaces (t, H, W) is painted anew with a probability: in one colour or with a
    texture, lit as it was, with some of its grain."""
    light = clip.mean(1, keepdim=True)
    for surface in range(1, int(surfaces.max()) + 1):
        if rng.random() >= probability:
            continue
        where = (surfaces == surface)[:, None]
        if not where.any():
            continue
        shade = (light / light[where].mean().clamp_min(DARKEST)).clamp(*SHADES) ** rng.uniform()
        clip = torch.where(where, (_paint(rng, (clip.shape[-2], clip.shape[-1])) * shade).clamp(0, 1), clip)
    return clip


def _paint(rng: np.random.Generator, size: tuple[int, int]) -> Tensor:
    """(3, H, W) in [0, 1], or (3, 1, 1) of one colour."""
    if rng.random() < PLAIN:
        colour = hsv_colour(rng.random(), rng.uniform(0, 0.9), rng.uniform(0.1, 0.95))
        return torch.tensor(colour).view(3, 1, 1) / 255
    return torch.from_numpy(procedural_texture(rng, max(size)))[:, : size[0], : size[1]] / 255
