"""Where is the hand seen, and where should it be? What moves in the images, fitted to the projected motion of the end-effector.

A pixel that moves with the hand looks the same before and after a step if it is looked up along the hand's projected path, and
different if it is looked up in one place. That alone shows the hand's silhouette, without a model of the robot. The silhouette is
then followed from frame to frame, and what is left between the hand as seen and as projected is explained by a few numbers: the
frames by which images come late, the factor by which the focal length is off, the angle by which the images are rolled, the pixels
by which they are shifted. The first three are fitted to how the hand *moves*, so what it holds or looks like matters little; for
the shift its rough size has to be known. Every set is looked at in images of WIDTH pixels, which is what lengths here refer to.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from para_video.camera import Camera
from para_video.demos import Demo
from para_video.layers import gaussian_blur

WIDTH = 128
HAND_M = (0.0, 0.0, 0.15)
"""From the gripper point to the wrist, world metres: what moves with the gripper is taken for a capsule along this way."""
HAND_RADIUS_M = 0.04
MIDDLE = 1 / 3
"""The point that is followed, as a share of the way to the wrist."""
NEAR, FAR = 16, 48
"""Pixels to each side of the hand that are followed, and that are searched for its silhouette."""
BLUR_PX = 1.5
"""By which the silhouette is smoothed, standard deviation."""
STEP_PX = 4.0
"""Two frames are compared once the hand has moved as far."""
FOLLOWED = 0.6
"""Least correlation with the hand's mean picture at which a frame counts."""
TOLERANCE = {"lag": 0.25, "scale": 0.035, "roll": math.radians(1.5)}
"""Standard errors (frames, of the logarithm, radians) above which motion does not tell them; `para_video.doctor` takes twice as
much for a fault."""


@dataclass(frozen=True)
class Fault:
    """What would explain the images: they come `lag` frames late, their focal length is `scale` times the given one, they are
    turned clockwise by `roll_deg` about the principal point and then shifted by `offset` (x, y) pixels."""

    lag: float = 0.0
    scale: float = 1.0
    roll_deg: float = 0.0
    offset: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class View:
    """What a demonstration shows, at WIDTH: grey (n, H, W) in [0, 1], points (n, 3) on the hand in the world, the scaled camera."""

    grey: Tensor
    points: Tensor
    camera: Camera

    @classmethod
    def of(cls, demo: Demo, hand_m: Sequence[float]) -> View:
        height, width = demo.frames.shape[1:3]
        factor = WIDTH / width
        frames = torch.from_numpy(demo.frames.astype(np.float32).mean(-1) / 255)[:, None]
        if factor != 1:
            size = (round(height * factor), WIDTH)
            frames = F.interpolate(frames, size, mode="bilinear", align_corners=False, antialias=factor < 1)
        grey = F.avg_pool2d(frames, 3, 1, 1, count_include_pad=False)[:, 0]
        K = demo.camera.intrinsics.clone()
        K[:2] *= factor
        K[:2, 2] += (factor - 1) / 2  # an integer is a pixel's centre
        points = torch.from_numpy(demo.positions + MIDDLE * np.asarray(hand_m, np.float32))
        return cls(grey, points, replace(demo.camera, intrinsics=K))

    def path(self, fault: Fault) -> tuple[Tensor, Tensor]:
        """Pixels (n, 2) at which each frame should show the hand under a fault, and how large (n,), 1 at the median distance."""
        pixels, depth = self.camera.project(self.points)
        last = len(depth) - 1
        time = (torch.arange(len(depth)) - fault.lag).clamp(0, last)
        before = time.floor().long().clamp(max=max(last - 1, 0))
        share, after = time - before, (before + 1).clamp(max=last)
        pixels = torch.lerp(pixels[before], pixels[after], share[:, None])
        depth = torch.lerp(depth[before], depth[after], share)
        middle = self.camera.intrinsics[:2, 2]
        return (pixels - middle) @ _turn(fault).mT + middle + torch.tensor(fault.offset), depth.median() / depth


@dataclass(frozen=True)
class Track:
    """One episode's hand, at WIDTH: projected under the fault that was found and seen, (n, 2) pixels, and the correlation (n,) of
    the place with the hand's mean picture."""

    projected: Tensor
    seen: Tensor
    quality: Tensor

    @property
    def residual(self) -> Tensor:
        """(n, 2) pixels, NaN where the hand was not found."""
        return torch.where(self.quality[:, None] > FOLLOWED, self.seen - self.projected, torch.nan)


@dataclass(frozen=True)
class Sightings:
    """What the images of a set say of the hand. fault and tracks are of the images in the orientation found.

    Args:
        orientation: what was done to the images, a key of scores. scores: how well each explains the motion, at most 1.
        compared: pairs of frames between which the hand moved.
        errors: standard errors of what the hand's motion tells of lag, scale and roll; above `TOLERANCE` the fault is without them.
        likeness: correlation of what moves with the hand's silhouette.
        unit: pixels of the images for one at WIDTH. focal_px: of the images.
    """

    orientation: str
    scores: dict[str, float]
    compared: int
    fault: Fault
    errors: dict[str, float]
    likeness: float
    tracks: tuple[Track, ...]
    unit: float
    focal_px: float

    def episode_offsets(self) -> np.ndarray:
        """(episodes, 2) pixels between each episode's hand and the median episode's; NaN where it was mostly not found."""
        residuals = [t.residual for t in self.tracks]
        enough = [len(r) > 0 and float(r.isfinite().all(-1).float().mean()) > 0.5 for r in residuals]
        offsets = np.stack(
            [r.nanmedian(0).values.numpy() if e else np.full(2, np.nan) for r, e in zip(residuals, enough, strict=True)]
        )
        return (offsets - _nanmedian(offsets)) * self.unit

    def drift(self) -> float:
        """Pixels by which the hand as seen leaves the hand as projected from the first third of an episode to the last, median of
        the episodes; NaN where no episode has it in both."""
        moves = []
        for track in self.tracks:
            third = len(track.residual) // 3
            if third:
                early, late = (part.nanmedian(0).values for part in (track.residual[:third], track.residual[-third:]))
                moves.append((late - early).numpy())
        return float(np.linalg.norm(_nanmedian(np.stack(moves)))) * self.unit if moves else math.nan


def look(demos: Sequence[Demo], hand_m: Sequence[float] = HAND_M) -> Sightings:
    """Measure how the hand is seen to move: orientation of the images first, then in this orientation everything else.

    Args:
        demos: at least one, of two steps or more. hand_m: (3,) from the gripper point to the wrist, world metres.
    """
    views = [View.of(demo, hand_m) for demo in demos]
    scores = orientation_scores(views)
    orientation = max(scores, key=scores.__getitem__)
    views = [replace(view, grey=_restored(view.grey, *ORIENTATIONS[orientation])) for view in views]
    chosen, errors = torch.ones(len(TOLERANCE), dtype=torch.bool), torch.full((len(TOLERANCE),), math.inf)
    while True:
        fault, likeness, left = _fit(views, hand_m, chosen)
        errors[chosen] = left[chosen]
        unsure = torch.where(chosen, errors / torch.tensor(list(TOLERANCE.values())), 0.0)
        if unsure.max() <= 1:
            break
        chosen[unsure.argmax()] = False
    tracks = _follow(views, fault, NEAR)
    unit = demos[0].frames.shape[2] / WIDTH
    return Sightings(
        orientation, scores, sum(len(_pairs(view.path(fault)[0])[0]) for view in views), fault,
        dict(zip(TOLERANCE, errors.tolist(), strict=True)), likeness, tuple(tracks), unit,
        float(demos[0].camera.intrinsics[0, 0]),
    )  # fmt: skip


# -------------------------------------------------------------------- the silhouette of what moves with the hand

ORIENTATIONS = {
    " and ".join(filter(None, ["flipped left to right" * flip, f"turned by {90 * turns} degrees" * (turns > 0)])) or "as it is": (
        flip,
        turns,
    )
    for flip, turns in itertools.product((0, 1), range(4))
}
"""What was done to the images: whether flipped, and then how many quarter turns anticlockwise."""


def orientation_scores(views: Sequence[View]) -> dict[str, float]:
    """How alike what moves looks along the projected path, if the images had been flipped and turned in each way."""
    scores = {}
    for name, done in ORIENTATIONS.items():
        restored = [replace(view, grey=_restored(view.grey, *done)) for view in views]
        seen = silhouette(restored, Fault(), FAR, 6).flatten()
        scores[name] = float(seen.topk(200).values.mean())  # as many pixels as a hand has
    return scores


def _restored(grey: Tensor, flip: int, turns: int) -> Tensor:
    back = torch.rot90(grey, -turns, (1, 2))
    return back.flip(2) if flip else back


def silhouette(views: Sequence[View], fault: Fault, radius: int, every: int) -> Tensor:
    """(2 radius + 1, 2 radius + 1) in [0, 1] around the hand: by how much less a pixel changes if looked up along the hand's path
    than in one place, of the sum of both; 1 for what is part of the hand.

    Args:
        every: of the pairs of frames between which the hand moves, one in so many is looked at.
    """
    gained, total = torch.zeros(2, 2 * radius + 1, 2 * radius + 1)
    for view in views:
        pixels, size = view.path(fault)
        before, after = (index[::every] for index in _pairs(pixels))
        if not len(before):
            continue
        start = _patches(view.grey[before], pixels[before], size[before], radius)
        along = (_patches(view.grey[after], pixels[after], size[after], radius) - start).abs()
        still = (_patches(view.grey[after], pixels[before], size[before], radius) - start).abs()
        gained += (still - along).nan_to_num(0).sum(0)
        total += (still + along).nan_to_num(0).sum(0)
    gained, total = gaussian_blur(torch.stack([gained, total])[:, None], BLUR_PX)[:, 0]
    return (gained / (total + 1e-3)).clamp(min=0)


def _pairs(pixels: Tensor, longest: int = 15) -> tuple[Tensor, Tensor]:
    """From every frame to the first one, at most `longest` later, in which the hand is STEP_PX away."""
    distance = torch.cdist(pixels, pixels)
    ahead = torch.arange(len(pixels)) - torch.arange(len(pixels))[:, None]
    far = (distance >= STEP_PX) & (ahead > 0) & (ahead <= longest)
    before = far.any(1).nonzero()[:, 0]
    return before, far[before].int().argmax(1)


def _patches(grey: Tensor, pixels: Tensor, size: Tensor, radius: int) -> Tensor:
    """grey (n, H, W) around pixels (n, 2), magnified by 1 / size (n,) -> (n, 2 radius + 1, 2 radius + 1), NaN outside."""
    around = torch.arange(-radius, radius + 1.0)
    offsets = torch.stack(torch.meshgrid(around, around, indexing="xy"), -1)
    places = pixels[:, None, None] + offsets * size[:, None, None, None]
    grid = (2 * places + 1) / torch.tensor([grey.shape[2], grey.shape[1]]) - 1
    seen = F.grid_sample(grey[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    return torch.where((grid.abs() <= 1).all(-1), seen, torch.nan)


def _capsule(views: Sequence[View], fault: Fault, hand_m: Sequence[float]) -> Tensor:
    """(2 NEAR + 1, 2 NEAR + 1) what the hand is taken to look like around the point that is followed."""
    hand = torch.tensor(hand_m, dtype=torch.float32)
    camera, middle = views[0].camera, torch.cat([view.points for view in views]).mean(0)
    axis, depth = camera.project(middle + hand * (torch.linspace(0, 1, 20)[:, None] - MIDDLE))
    centre = camera.project(middle[None])[0]
    axis = (axis - centre) @ _turn(fault).mT
    radius = fault.scale * HAND_RADIUS_M * camera.intrinsics[0, 0] / depth.mean()
    around = torch.arange(-NEAR, NEAR + 1.0)
    places = torch.stack(torch.meshgrid(around, around, indexing="xy"), -1)
    return torch.sigmoid(radius - torch.cdist(places.flatten(0, 1), axis).amin(1).reshape(places.shape[:2]))


def _turn(fault: Fault) -> Tensor:
    cosine, sine = math.cos(math.radians(fault.roll_deg)), math.sin(math.radians(fault.roll_deg))
    return fault.scale * torch.tensor([[cosine, -sine], [sine, cosine]])


# -------------------------------------------------------------------- following it


def _correlation(images: Tensor, template: Tensor, weight: Tensor) -> Tensor:
    """Normalised correlation with a weighted template (k, k) at each place where it fits into the images (n, h, w); NaN in images
    lies outside, and a place with more than 15 % of the weight there gets -1."""
    weight = weight / weight.sum()
    outside, images = images.isnan().float(), images.nan_to_num(0)
    centred = template - (weight * template).sum()
    kernels = torch.stack([weight, weight * centred])[:, None]
    mean, product = F.conv2d(images[:, None], kernels).unbind(1)
    square, missing = (F.conv2d(x[:, None], kernels[:1])[:, 0] for x in (images**2, outside))
    spread = ((square - mean**2).clamp(min=1e-6) * (weight * centred**2).sum().clamp(min=1e-8)).sqrt()
    return torch.where(missing < 0.15, product / spread, -1.0)


def _peak(maps: Tensor) -> tuple[Tensor, Tensor]:
    """maps (n, k, k) -> (n, 2) place (x, y) of each maximum from the middle, by a parabola through its neighbours, and its value;
    -1 where it lies on the border."""
    n, k, _ = maps.shape
    value, index = maps.flatten(1).max(1)
    row, column, each = index // k, index % k, torch.arange(n)
    border = (row == 0) | (row == k - 1) | (column == 0) | (column == k - 1)
    row, column = row.clamp(1, k - 2), column.clamp(1, k - 2)

    def vertex(before: Tensor, after: Tensor) -> Tensor:
        bend = before - 2 * maps[each, row, column] + after
        return torch.where(bend < -1e-6, (before - after) / (2 * bend), 0.0).clamp(-1, 1)

    x = column + vertex(maps[each, row, column - 1], maps[each, row, column + 1])
    y = row + vertex(maps[each, row - 1, column], maps[each, row + 1, column])
    return torch.stack([x, y], -1) - k // 2, torch.where(border, -1.0, value)


def _follow(views: Sequence[View], fault: Fault, reach: int = NEAR // 2) -> list[Track]:
    """The hand's place in every frame, at most `reach` pixels from its projection: where the frame looks most like the median of
    all frames around their projections, weighted by the silhouette."""
    weight = silhouette(views, fault, NEAR, 2) ** 2 + 1e-6
    paths = [view.path(fault) for view in views]
    wide = torch.cat([_patches(view.grey, *path, NEAR + reach) for view, path in zip(views, paths, strict=True)])
    template = wide[:, reach:-reach, reach:-reach].nanmedian(0).values.nan_to_num(0)
    moved, quality = _peak(_correlation(wide, template, weight))
    lengths = [len(pixels) for pixels, _ in paths]
    rows = zip(paths, moved.split(lengths), quality.split(lengths), strict=True)
    return [Track(pixels, pixels + m * size[:, None], q) for (pixels, size), m, q in rows]


# -------------------------------------------------------------------- what explains it


def _fit(views: Sequence[View], hand_m: Sequence[float], chosen: Tensor, rounds: int = 8) -> tuple[Fault, float, Tensor]:
    """Place the silhouette, follow it, explain its motion by what is chosen (3,) of lag, scale and roll, and again in the images so
    explained, until nothing changes. Also how alike the silhouette is, and standard errors as `_explain` has them."""
    fault, likeness, errors = Fault(), 0.0, torch.zeros(3)
    for _ in range(rounds):
        far = silhouette(views, fault, FAR, 4)[None]
        moved, alike = _peak(_correlation(far, template := _capsule(views, fault, hand_m), torch.ones_like(template)))
        likeness = float(alike)
        x, y = (moved[0] + torch.tensor(fault.offset)).tolist()
        fault = replace(fault, offset=(x, y))
        (lag, log_scale, roll), errors = _explain(views, _follow(views, fault), fault, chosen)
        fault = Fault(
            float(np.clip(fault.lag + lag, -8, 8)), float(np.clip(fault.scale * math.exp(log_scale), 0.5, 2)),
            float(np.clip(fault.roll_deg + math.degrees(roll), -40, 40)), fault.offset,
        )  # fmt: skip
        if abs(lag) < 0.02 and abs(log_scale) < 0.004 and abs(roll) < 0.004 and float(moved.norm()) < 0.2:
            break
    return fault, likeness, errors


def _explain(
    views: Sequence[View], tracks: Sequence[Track], fault: Fault, chosen: Tensor, span: int = 6
) -> tuple[list[float], Tensor]:
    """Lag (frames), logarithm of the scale and roll (radians) that explain what is left of the hand's motion over `span` frames, by
    least squares reweighted after Cauchy, and their standard errors (3,); those not chosen are 0. Motion, since a grasp moves the
    place at which a hand seems to be once and for all."""
    answer, errors = torch.zeros(3), torch.where(chosen, math.inf, 0.0)
    causes, effects = [], []
    for view, track in zip(views, tracks, strict=True):
        if len(track.projected) <= span + 2:
            continue
        (velocity,) = torch.gradient(track.projected, dim=0)
        x, y = (track.projected - view.camera.intrinsics[:2, 2] - torch.tensor(fault.offset)).unbind(-1)
        cause = torch.stack([-velocity, torch.stack([x, y], -1), torch.stack([-y, x], -1)], -1)
        causes.append(cause[span:] - cause[:-span])
        effects.append(track.residual[span:] - track.residual[:-span])
    if not causes or not chosen.any():
        return answer.tolist(), errors
    cause, effect = torch.cat(causes)[..., chosen], torch.cat(effects)
    found = effect.isfinite().all(-1)
    cause, effect, weight = cause[found], effect[found], torch.ones(int(found.sum()))
    for _ in range(10 * bool(len(weight))):
        normal = torch.einsum("n,nci,ncj->ij", weight, cause, cause) + 1e-3 * torch.eye(cause.shape[-1])
        answer[chosen] = torch.linalg.solve(normal, torch.einsum("n,nci,nc->i", weight, cause, effect))
        left = (effect - cause @ answer[chosen]).norm(dim=-1)
        # differences over `span` frames overlap: of so many one is independent
        independent = 2 * weight.sum() / span - len(normal)
        variance = (weight * left**2).sum() / span / independent.clamp_min(1e-6)
        errors[chosen] = (span * variance * torch.linalg.inv(normal).diagonal()).sqrt()
        weight = 1 / (1 + (left / (1.4826 * left.median()).clamp(min=0.1)) ** 2)
    return answer.tolist(), errors


def _nanmedian(rows: np.ndarray) -> np.ndarray:
    found = rows[np.isfinite(rows).all(-1)]
    return np.median(found, axis=0) if len(found) else np.full(rows.shape[-1], np.nan)
