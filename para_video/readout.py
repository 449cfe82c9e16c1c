"""From a head's maps to actions: targets, decoding, lifting, and the rotation convention.

Rotations are read as Euler angles (x, y, z; R = Rz Ry Rx) of reference_R_gripper, the gripper's orientation relative to a
declared reference frame. Choose the reference so that usual poses lie far from the Euler singularity at y = +-90 degrees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from para_video.camera import Camera
from para_video.demos import Demo
from para_video.heatmap import (
    Bins,
    cell_centres,
    cells_to_pixels,
    gaussian_targets,
    inside,
    likely_path,
    pixels_to_cells,
    window_soft_argmax,
)
from para_video.policy import DEFAULT_SCHEDULE, Actions, Schedule

Lift = Literal["height", "depth"]
BELOW_CAMERA_M = 0.05
"""How far below the camera a point lies at least that is answered by its height: with its own height rays meet nowhere."""
HEIGHT_BINS, HEIGHT_MARGIN_M, MOST_REACH_M = 40, 0.03, 5.0
"""Height bins reach as far up as down: the most that any demonstration rises or sinks within a chunk, and a margin more. What moves
farther than any arm is not in metres."""


@dataclass(frozen=True)
class Targets:
    """What a chunk of t times should be read as, for b clips. Parts that are None, and entries whose mask is unset, are not
    supervised: circles and point tracks label pixels alone.

    Args:
        pixels: (b, t, 2). visible: (b, t) bool; where labelled but not visible, the head learns to say so.
        labelled: (b, t) bool, whether pixels and visible are known; None means everywhere.
        positions: (b, t, 3) world metres, or None. gripper: (b, t) command in [-1, 1], or None.
        rotations: (b, t, 3, 3) world_R_gripper, or None.
        position_mask, gripper_mask, rotation_mask: (b, t) bool; None means wherever the part is given.
    """

    pixels: Tensor
    visible: Tensor
    labelled: Tensor | None = None
    positions: Tensor | None = None
    gripper: Tensor | None = None
    rotations: Tensor | None = None
    position_mask: Tensor | None = None
    gripper_mask: Tensor | None = None
    rotation_mask: Tensor | None = None


@dataclass(frozen=True)
class ReadoutSpec:
    """What a head's bins mean.

    Args:
        lift: "height" reads world z and meets the pixel's ray with that plane; "depth" reads the distance along the ray.
        z: bins of that scalar in metres.
        relative: the bins count from the gripper's present height or distance, so that heights which no demonstration reached
            can be answered.
        gripper_bins: values of the gripper command, evenly spaced over [-1, 1]; the first opens, the last closes.
        rotation_bins: circular bins per Euler angle, or 0 for a wrist that does not turn.
        reference: world_R_reference as nested tuples, the declared frame of the angles.
        joint_volume: one softmax over (z, h, w) instead of a heatmap and a z softmax at the pixel.
    """

    lift: Lift = "height"
    z: Bins = field(default_factory=lambda: Bins(0.0, 0.4, 32))
    gripper_bins: int = 21
    rotation_bins: int = 0
    reference: tuple[tuple[float, ...], ...] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    joint_volume: bool = False
    relative: bool = False

    def __post_init__(self) -> None:
        if self.lift not in ("height", "depth"):
            raise ValueError(f"unknown lift {self.lift!r}; choose 'height' or 'depth'")
        if self.gripper_bins < 2 or (self.rotation_bins and self.rotation_bins < 3):
            raise ValueError(f"gripper_bins {self.gripper_bins} must be >= 2 and rotation_bins {self.rotation_bins} 0 or >= 3")

    @property
    def angles(self) -> Bins:
        return Bins(-math.pi, math.pi, self.rotation_bins, circular=True)

    def z_of(self, positions: Tensor, camera: Camera) -> Tensor:
        """The binned scalar (b, t) of world positions (b, t, 3) seen by a camera (b,)."""
        if self.lift == "height":
            return positions[..., 2]
        return (positions - camera.position[..., None, :]).norm(dim=-1)

    def raise_pixels(self, pixels: Tensor, z: Tensor, camera: Camera) -> Tensor:
        """World positions (b, t, 3) of pixels (b, t, 2) with the binned scalar z (b, t)."""
        lift = camera.lift_at_height if self.lift == "height" else camera.lift_at_distance
        return lift(pixels, z)

    def gripper_targets(self, gripper: Tensor) -> Tensor:
        """(...) commands in [-1, 1] to (..., gripper_bins): the mass is shared between the two nearest values."""
        place = (gripper.clamp(-1, 1) + 1) / 2 * (self.gripper_bins - 1)
        values = torch.arange(self.gripper_bins, device=gripper.device)
        return (1 - (values - place[..., None]).abs()).clamp_min(0)

    def gripper_value(self, logits: Tensor) -> Tensor:
        """(..., gripper_bins) logits to the most probable command (...)."""
        return logits.argmax(-1) / (self.gripper_bins - 1) * 2.0 - 1

    def rotation_angles(self, rotations: Tensor) -> Tensor:
        """(..., 3, 3) world_R_gripper to (..., 3) Euler angles in the reference frame, radians."""
        with torch.autocast(rotations.device.type, enabled=False):
            return euler_from_matrix(rotations.new_tensor(self.reference).mT @ rotations)

    def rotation_matrix(self, angles: Tensor) -> Tensor:
        """The inverse of `rotation_angles`."""
        return angles.new_tensor(self.reference) @ matrix_from_euler(angles)


@dataclass(frozen=True)
class PixelLogits:
    """What a head reads at given pixels: z (b, t, z), gripper (b, t, g), rotation (b, t, 3, r) or None."""

    z: Tensor
    gripper: Tensor
    rotation: Tensor | None


def matrix_from_euler(angles: Tensor) -> Tensor:
    """(..., 3) angles x, y, z in radians to (..., 3, 3) R = Rz Ry Rx."""
    (cx, cy, cz), (sx, sy, sz) = angles.cos().unbind(-1), angles.sin().unbind(-1)
    rows = [
        [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
        [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
        [-sy, cy * sx, cy * cx],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def euler_from_matrix(matrix: Tensor) -> Tensor:
    """The inverse of `matrix_from_euler`, with y in [-90, 90] degrees; at its ends, where x and z turn about one axis, x is 0."""
    y = torch.asin((-matrix[..., 2, 0]).clamp(-1, 1))
    end = matrix[..., 2, 0].abs() > 1 - 1e-6
    x = torch.where(end, 0.0, torch.atan2(matrix[..., 2, 1], matrix[..., 2, 2]))
    z = torch.where(end, torch.atan2(-matrix[..., 0, 1], matrix[..., 1, 1]), torch.atan2(matrix[..., 1, 0], matrix[..., 0, 0]))
    return torch.stack([x, y, z], -1)


def _check_numbers(*logits: Tensor) -> None:
    """Minus infinity is a probability of nothing."""
    if not all(bool((each < math.inf).all()) for each in logits):
        raise ValueError("the head's logits hold NaN or infinity: the network diverged, or its input was NaN")


def _entropy(log_probability: Tensor) -> Tensor:
    return torch.special.entr(log_probability.exp()).sum(-1)  # 0 log 0 counts as 0


class Readout:
    """Decodes maps to actions in float32.

    Args:
        spec: what the bins mean. window: side in cells of the sub-pixel window.
        path_px: standard deviation, in image pixels, of how the gripper's way through the image bends from one target to the next,
            which are evenly spaced in time. What would be read further than twice that from a path which all heatmaps make likely
            from the gripper on (`para_video.heatmap.likely_path`) is read that near to it. 0 reads each heatmap by itself, as is
            done where the gripper is not in the image.
    """

    def __init__(self, spec: ReadoutSpec, window: int = 9, path_px: float = 0.0) -> None:
        self.spec, self.window, self.path_px = spec, window, path_px

    def decode(self, maps, camera: Camera, *, pixels: Tensor | None = None) -> Actions:
        """Actions from ActionMaps of b clips and t times.

        Args:
            maps: the head's output. camera: (b,) of the frame that the maps lie over. pixels: (b, t, 2) read there instead of
                at the peak (teacher forcing).

        Returns:
            Actions. Their log-probability is that of the decoded (or given) pixel's cell, of the z bin, gripper bin and rotation
            bins; the entropy is that of the heatmap (with its "not visible" class) plus that of each softmax at the pixel.

        Raises:
            ValueError: NaN or infinity in the maps or in what is read from them, or a camera none of whose rays meets the
                lift's planes.
        """
        with torch.autocast(maps.heat.device.type, enabled=False):  # bf16 matrix products would move points by millimetres
            return self._decode(maps, camera, pixels)

    def _decode(self, maps, camera: Camera, pixels: Tensor | None) -> Actions:
        heat = maps.heat.float()
        grid = heat.shape[-2:]
        _check_numbers(heat, maps.outside)
        reachable = self._reachable(heat, maps, camera)
        if pixels is None:
            pixels = self._pixels(reachable, maps)
        read = maps.read(pixels)
        _check_numbers(read.z, read.gripper, *(() if read.rotation is None else (read.rotation,)))
        z = self.spec.z.decode(read.z)
        if maps.origin is not None:
            z = z + maps.origin[:, None]
        if self.spec.lift == "height":  # a camera sees from above what is lifted so
            z = torch.minimum(z, camera.position[..., 2:] - BELOW_CAMERA_M)
        log_heat = torch.cat([heat.flatten(-2), maps.outside.float()[..., None]], -1).log_softmax(-1)
        log_z, log_gripper = read.z.float().log_softmax(-1), read.gripper.float().log_softmax(-1)
        h, w = grid
        column, row = pixels_to_cells(pixels, grid, maps.size).round().long().unbind(-1)
        cell = row.clamp(0, h - 1) * w + column.clamp(0, w - 1)
        log_probability = log_heat.gather(-1, cell[..., None])[..., 0] + log_z.amax(-1) + log_gripper.amax(-1)
        entropy = _entropy(log_heat) + _entropy(log_z) + _entropy(log_gripper)
        rotations = None
        if read.rotation is not None:
            log_rotation = read.rotation.float().log_softmax(-1)
            rotations = self.spec.rotation_matrix(self.spec.angles.decode(read.rotation))
            log_probability = log_probability + log_rotation.amax(-1).sum(-1)
            entropy = entropy + _entropy(log_rotation).sum(-1)
        return Actions(
            positions=self.spec.raise_pixels(pixels, z, camera),
            gripper=self.spec.gripper_value(read.gripper),
            rotations=rotations,
            pixels=pixels,
            visible=1 - log_heat[..., -1].exp(),
            log_probability=log_probability,
            entropy=entropy,
        )

    def _pixels(self, heat: Tensor, maps) -> Tensor:
        """(b, t, 2) where heatmaps are read."""
        b, t, h, w = heat.shape
        grid = (h, w)
        found = cells_to_pixels(window_soft_argmax(heat, self.window), grid, maps.size)
        if not self.path_px or maps.start is None:
            return found
        places, reach = cell_centres(grid, maps.size, heat.device), 2 * self.path_px
        known = inside(maps.start, maps.size)[:, None]
        path = likely_path(heat.flatten(-2), places, torch.where(known, maps.start.to(heat), 0), self.path_px)
        beside = ((places - path[:, :, None]).norm(dim=-1) > reach).view(b, t, h, w)
        near = cells_to_pixels(window_soft_argmax(heat.masked_fill(beside, -math.inf), self.window), grid, maps.size)
        return torch.where((known & ((found - path).norm(dim=-1) > reach))[..., None], near, found)

    def _reachable(self, heat: Tensor, maps, camera: Camera) -> Tensor:
        """Heat with the cells struck out whose rays never come down to the bins' planes (the sky above a horizon)."""
        if self.spec.lift == "depth":
            return heat
        h, w = heat.shape[-2:]
        _, directions = camera.rays(cell_centres((h, w), maps.size, heat.device).expand(len(heat), -1, -1))
        lowest = self.spec.z.low + (0.0 if maps.origin is None else maps.origin)
        meets = (directions[..., 2] < -1e-3) & (camera.position[..., 2] - BELOW_CAMERA_M > lowest)[..., None]
        if not bool(meets.any(-1).all()):
            bottom, eye = float(torch.as_tensor(lowest).max()), camera.position[..., 2].tolist()
            raise ValueError(
                f"no pixel's ray meets the planes from {bottom:.3g} m on: the camera at height {eye} m must stand above them and "
                "look down; use lift='depth' for other views"
            )
        return heat.masked_fill(~meets.view(len(heat), 1, h, w), -torch.inf)


def one_hot_round_trip(spec: ReadoutSpec, grid: int, sigma_px: float, size: tuple[int, int]):
    """The read-out's own error: a function that sends points through target heatmap and bins and decodes them again.

    Args:
        spec, grid, sigma_px, size: as the head is trained with.

    Returns:
        f(points (t, 3), gripper (t,), camera unbatched, position (3,) of the gripper) -> (points, gripper), what a perfect
        network would act.
    """

    def through(points: Tensor, gripper: Tensor, camera: Camera, position: Tensor) -> tuple[Tensor, Tensor]:
        pixels, _ = camera.project(points)
        cells = gaussian_targets(pixels, torch.ones(len(pixels), dtype=torch.bool), (grid, grid), size, sigma_px)
        heat = cells[:, :-1].clamp_min(1e-12).log().view(-1, grid, grid)
        found = cells_to_pixels(window_soft_argmax(heat), (grid, grid), size)
        origin = spec.z_of(position[None], camera) if spec.relative else 0.0
        z = spec.z.decode(spec.z.targets(spec.z_of(points, camera) - origin).log()) + origin
        values = spec.gripper_value(spec.gripper_targets(gripper))
        return spec.raise_pixels(found, z, camera), values

    return through


def readout_spec(demos: Sequence[Demo], schedule: Schedule = DEFAULT_SCHEDULE, **options: Any) -> ReadoutSpec:
    """Height bins around how far the demonstrations go up or down within a chunk; with lift="depth", around how far they go towards
    the camera or away. options: more of `ReadoutSpec`. Raises ValueError where that is farther than any arm's reach."""
    spec, reach = ReadoutSpec(relative=True, **options), 0.0
    for demo in demos:
        targets, _ = demo.targets(np.arange(len(demo)), chunk=schedule.chunk, stride=schedule.frame_stride)
        points = torch.from_numpy(np.concatenate([demo.positions[:, None], targets], 1))
        z = spec.z_of(points, demo.camera)
        reach = max(reach, float((z[:, 1:] - z[:, :1]).abs().max()))
    if reach > MOST_REACH_M:
        raise ValueError(
            f"demonstrations rise, sink, come or go by {reach:.3g} m within a chunk, more than {MOST_REACH_M:g} m: give positions "
            "in metres"
        )
    reach += HEIGHT_MARGIN_M
    return replace(spec, z=Bins(-reach, reach, HEIGHT_BINS))
