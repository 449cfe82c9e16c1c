"""Do features know the same point from two sides? Points of one view are looked for in another by their features alone.

Depth images say which pixels of two calibrated views show the same point of the scene. What a read-out trained under one camera
finds under another is bounded by whether their features are alike, and this measures it without any training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from para_video.camera import Camera
from para_video.features import VideoFeatures, sampled
from para_video.heatmap import inside

if TYPE_CHECKING:  # at run time it would need the simulator
    from para_video.sims.metaworld import CameraPlacement, MetaWorldEnv

OCCLUSION_M = 0.01
"""A point counts as seen where the depth image agrees with its own depth within this. A pixel of a table seen at 40 degrees from
1.15 m, at 128 px and a field of view of 45 degrees, spans as much."""


@dataclass(frozen=True)
class Views:
    """One scene at one moment, seen by v cameras.

    Args:
        frames: (v, 3, H, W) float in [0, 1]. depth: (v, H, W) camera z in metres. foreground: (v, H, W) bool. camera: (v,).
    """

    frames: Tensor
    depth: Tensor
    foreground: Tensor
    camera: Camera

    @classmethod
    def of(cls, env: MetaWorldEnv, placements: Sequence[CameraPlacement]) -> Views:
        """The present of a simulation from several places; the env keeps the last one."""
        shots = []
        for placement in placements:
            env.look_from(placement)
            shots.append((env.render(), env.depth(), env.foreground(), env.camera))
        frames, depth, foreground, cameras = zip(*shots, strict=True)
        return cls(
            torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(np.stack(depth)),
            torch.from_numpy(np.stack(foreground)), Camera.stack(cameras),
        )  # fmt: skip


@dataclass(frozen=True)
class Pairs:
    """Pixels (n, 2) of view `first` and where view `second` shows the same points; foreground (n,) bool."""

    first: int
    second: int
    pixels: Tensor
    truth: Tensor
    foreground: Tensor

    def where(self, chosen: Tensor) -> Pairs:
        """Those of an index or mask."""
        return replace(self, pixels=self.pixels[chosen], truth=self.truth[chosen], foreground=self.foreground[chosen])


def pixel_grid(size: tuple[int, int]) -> Tensor:
    """(H * W, 2) pixels (x, y) of an image of size (H, W), row by row."""
    rows, columns = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    return torch.stack([columns, rows], -1).flatten(0, 1).float()


def common_points(views: Views, first: int, second: int) -> Pairs:
    """All pixels of one view whose point is inside the other's image and not hidden there."""
    size = (views.depth.shape[1], views.depth.shape[2])
    pixels = pixel_grid(size)
    points = views.camera[first].lift_at_depth(pixels, views.depth[first].flatten())
    truth, depth = views.camera[second].project(points)
    column, row = truth.round().long().unbind(-1)
    surface = views.depth[second][row.clamp(0, size[0] - 1), column.clamp(0, size[1] - 1)]
    seen = (depth > 0) & inside(truth, size) & ((surface - depth).abs() < OCCLUSION_M)
    return Pairs(first, second, pixels, truth, views.foreground[first].flatten()).where(seen)


def drawn(pairs: Pairs, count: int, generator: torch.Generator) -> Pairs:
    """At most `count` points of the foreground and as many of the background, at random."""
    chosen = []
    for kind in (True, False):
        index = (pairs.foreground == kind).nonzero()[:, 0]
        chosen.append(index[torch.randperm(len(index), generator=generator)[:count]])
    return pairs.where(torch.cat(chosen))


Finder = Callable[[Pairs], Tensor]
"""Points of one view to the pixels (n, 2) at which the other is said to show them."""


def by_features(features: VideoFeatures, size: tuple[int, int]) -> Finder:
    """The pixel whose feature has the highest cosine similarity.

    Args:
        features: of v views, a batch element each; the map nearest to the present is taken, and read between cells bilinearly at
            every pixel. size: (H, W) of the frames.
    """
    maps = features.maps[:, int(features.times.abs().argmin())].float()
    everywhere = pixel_grid(size).to(maps.device)

    def at(view: int, pixels: Tensor) -> Tensor:
        cells = pixels @ features.image_to_map[:, :2].mT + features.image_to_map[:, 2]
        return F.normalize(sampled(maps[view][None], cells[None, None])[0, :, 0].mT, dim=-1)

    def find(pairs: Pairs) -> Tensor:
        similarity = at(pairs.first, pairs.pixels.to(maps.device)) @ at(pairs.second, everywhere).mT
        return everywhere[similarity.argmax(-1)].cpu()

    return find


def same_pixel(pairs: Pairs) -> Tensor:
    """A finder that believes the camera has not moved."""
    return pairs.pixels


def by_chance(size: tuple[int, int], generator: torch.Generator) -> Finder:
    """A finder that points at any pixel of an image of size (H, W)."""
    limit = torch.tensor([size[1], size[0]]).float()
    return lambda pairs: (torch.rand(pairs.pixels.shape, generator=generator) * limit).floor()


def score(error_px: Tensor, within: Sequence[float]) -> dict[str, Any]:
    """Of errors (n,): their number, their median, and the share within each of some distances (PCK). NaN for none."""
    share = {f"{px:g}": float((error_px <= px).float().mean()) for px in within}
    return {"points": len(error_px), "median_px": float(error_px.quantile(0.5)) if len(error_px) else math.nan, "pck": share}
