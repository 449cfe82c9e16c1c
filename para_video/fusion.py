"""Several looks at one moment: crops and turns of one image, or several cameras, their log-probabilities added up.

Only a read-out that answers with a distribution over the image can be warped back, or lifted along rays, and added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from para_video.agent import RobotState, VideoPolicy
from para_video.batches import warp_images
from para_video.camera import Camera
from para_video.features import sampled
from para_video.heads import ActionMaps, ParaHead, action_maps
from para_video.heatmap import cell_centres, inside, pixels_to_cells, window_soft_argmax
from para_video.policy import Actions, Observation
from para_video.readout import PixelLogits, ReadoutSpec, matrix_from_euler


@dataclass(frozen=True)
class Look:
    """How a camera is changed about its own centre: factor on the focal length, and rotations in degrees about its x (up and down),
    y (sideways) and z axis (roll)."""

    zoom: float = 1.0
    turn_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)


LOOKS = (Look(), Look(1.15), Look(1 / 1.15), Look(turn_deg=(0, 0, 8)), Look(turn_deg=(0, 0, -8)))
"""The image as it is, nearer, further and rolled both ways: within what training shows."""


class ManyLooks:
    """A policy that looks at every image in several ways and decides on the average of the log-probabilities.

    Args:
        policy: with PARA's head. looks: the first is the one whose pixels the others are brought back to.
    """

    def __init__(self, policy: VideoPolicy, looks: Sequence[Look] = LOOKS) -> None:
        self.policy, self.looks = policy, tuple(looks)

    def reset(self) -> None:
        self.policy.reset()

    @torch.no_grad()
    def act(self, observation: Observation) -> Actions:
        """One observation's actions; see `VideoPolicy.act`."""
        clip, state = self.policy.inputs(observation)
        n = len(self.looks)
        zoom = torch.tensor([look.zoom for look in self.looks]).to(clip)
        angles = torch.tensor([look.turn_deg for look in self.looks]).to(clip).deg2rad()
        camera, homography = repeated(state, n).camera.warped(zoom, matrix_from_euler(angles))
        seen = warp_images(clip.expand(n, *clip.shape[1:]).flatten(0, 1), homography.repeat_interleave(clip.shape[1], 0))
        maps = action_maps(self.policy, seen.unflatten(0, (n, -1)), replace(repeated(state, n), camera=camera))
        fused = LookedMaps.of(maps, torch.linalg.inv(homography) @ homography[:1], zoom / zoom[0])
        assert isinstance(self.policy.head, ParaHead)  # it has maps
        self.policy.head.check_times(torch.tensor(self.policy.times))
        return self.policy.head.readout.decode(fused, camera[:1])


def repeated(state: RobotState, n: int) -> RobotState:
    """The state of one clip, n times."""
    return RobotState(Camera.stack([state.camera[0]] * n), *(
        part.expand(n, *part.shape[1:]) for part in (state.position, state.rotation, state.opening)
    ))  # fmt: skip


@dataclass(frozen=True)
class LookedMaps:
    """Maps of n looks at one clip in the pixels of the first, as a `Readout` takes them.

    Args:
        heat, outside, origin, start, size: as of `ActionMaps`, of batch 1. maps: of the n looks. to_look: (n, 3, 3) homographies
            from pixels of the first look to those of each.
    """

    heat: Tensor
    outside: Tensor
    origin: Tensor | None
    start: Tensor | None
    size: tuple[int, int]
    maps: ActionMaps
    to_look: Tensor

    @classmethod
    def of(cls, maps: ActionMaps, to_look: Tensor, zoom: Tensor) -> LookedMaps:
        """Average the looks' log-probabilities; zoom: (n,) of each look over the first's.

        Where a look does not see a cell, it spreads what it holds to be outside of it as the first look does.
        """
        grid = (maps.heat.shape[-2], maps.heat.shape[-1])
        log = torch.cat([maps.heat.float().flatten(-2), maps.outside.float()[..., None]], -1).log_softmax(-1)
        heat, outside = log[..., :-1], log[..., -1:]
        pixels = moved(cell_centres(grid, maps.size, log.device).expand(len(log), -1, -1), to_look)
        cells = pixels_to_cells(pixels, grid, maps.size).unflatten(1, grid)
        there = sampled(heat.unflatten(-1, grid), cells).flatten(-2) + 2 * zoom.log()[:, None, None]  # per cell of the first
        seen = inside(pixels, maps.size)[:, None]
        hidden = heat[:1] - heat[:1].masked_fill(seen, -torch.inf).logsumexp(-1, keepdim=True)
        mean = torch.where(seen, there, outside + hidden).mean(0, keepdim=True)
        origin, start = (None if part is None else part[:1] for part in (maps.origin, maps.start))
        return cls(mean.unflatten(-1, grid), outside[:1, :, 0], origin, start, maps.size, maps, to_look)

    def read(self, pixels: Tensor) -> PixelLogits:
        """The average of what the looks read at pixels (1, t, 2) of the first."""
        read = self.maps.read(moved(pixels.expand(len(self.to_look), -1, -1), self.to_look))
        return PixelLogits(averaged(read.z), averaged(read.gripper), None if read.rotation is None else averaged(read.rotation))


def averaged(logits: Tensor) -> Tensor:
    """(1, ...) the mean over n looks of log-probabilities, from logits (n, ..., bins)."""
    return logits.float().log_softmax(-1).mean(0, keepdim=True)


def moved(pixels: Tensor, homography: Tensor) -> Tensor:
    """Pixels (n, p, 2) through homographies (n, 3, 3)."""
    there = F.pad(pixels, (0, 1), value=1.0) @ homography.mT
    return there[..., :2] / there[..., 2:]


# -------------------------------------------------------------------- several cameras


class FromView:
    """The policy, looking at another view of the observation.

    Args:
        policy: to act. view: its name.
    """

    def __init__(self, policy: VideoPolicy, view: str) -> None:
        self.policy, self.view = policy, view

    def reset(self) -> None:
        self.policy.reset()

    def inputs(self, observation: Observation) -> tuple[Tensor, RobotState]:
        """See `VideoPolicy.inputs`."""
        if self.view not in observation.views:
            raise ValueError(f"the observation has no view {self.view!r}; it has {sorted(observation.views)}")
        return self.policy.inputs(replace(observation, views={self.policy.view: observation.views[self.view]}))

    def act(self, observation: Observation) -> Actions:
        return self.policy.predict(*self.inputs(observation))


class ManyCameras:
    """A policy that decides on what it sees from several cameras.

    Each gives log-probabilities of pixels and heights. For points of a common set in space, around the gripper, they are looked up
    and added. The cameras are taken for independent witnesses.

    Args:
        policy: with PARA's head, lift "height". views: names; pixels are those of the first. reach_m: how far the set reaches from
            the gripper along x and y. step_m: between its points; their heights are those of the bins. Each target is read by
            itself, whatever the head's `path_px`.
    """

    def __init__(self, policy: VideoPolicy, views: Sequence[str], *, reach_m: float = 0.25, step_m: float = 0.01) -> None:
        self.policy, self.looks, self.reach_m, self.step_m = policy, [FromView(policy, view) for view in views], reach_m, step_m

    def reset(self) -> None:
        self.policy.reset()

    @torch.no_grad()
    def act(self, observation: Observation) -> Actions:
        """One observation's actions; see `FromView.inputs` for errors."""
        clips, states = zip(*(look.inputs(observation) for look in self.looks), strict=True)
        camera = Camera.stack([state.camera[0] for state in states])
        state = replace(repeated(states[0], len(states)), camera=camera)
        maps = action_maps(self.policy, torch.cat(clips), state)
        return fused_cameras(maps, state, self.policy.head.spec, reach_m=self.reach_m, step_m=self.step_m)


WINDOW_M = 0.13
"""Side of the square around the most probable place over which places are averaged: about that of `Readout` in the image."""


def fused_cameras(maps: ActionMaps, state: RobotState, spec: ReadoutSpec, *, reach_m: float, step_m: float) -> Actions:
    """Actions (batch 1) from maps of one moment by n cameras; see `ManyCameras`.

    Args:
        state: the robot's, n times, with the n cameras.

    Raises:
        ValueError: z is not a height: distances from different cameras do not compare.
    """
    if spec.lift != "height":
        raise ValueError(f"cameras are fused by heights, but z is a {spec.lift}; pass a policy with lift='height'")
    with torch.autocast(maps.heat.device.type, enabled=False):
        side, window = 2 * round(reach_m / step_m) + 1, 2 * round(WINDOW_M / step_m / 2) + 1
        centre, origin = state.position[0].float(), 0.0 if maps.origin is None else maps.origin[0]
        away = (torch.arange(side).to(centre) - side // 2) * step_m
        heights = spec.z.low + (torch.arange(spec.z.count).to(centre) + 0.5) * spec.z.width + origin
        z, y, x = torch.meshgrid(heights, centre[1] + away, centre[0] + away, indexing="ij")
        fused = looked_up(maps, state.camera, torch.stack([x, y, z], -1)).sum(0)
        place = window_soft_argmax(fused.logsumexp(1), window)
        height = spec.z.decode(sampled(fused, place[:, None, None])[..., 0, 0]) + origin
        points = torch.cat([centre[:2] + (place - side // 2) * step_m, height[:, None]], -1)
        pixels, _ = state.camera.project(points.expand(len(state.opening), -1, -1))
        read = maps.read(pixels)
        gripper, rotation = averaged(read.gripper), None if read.rotation is None else averaged(read.rotation)
        parts = [fused.flatten(1)[None], gripper, *(() if rotation is None else rotation.unbind(2))]
        log = [part.log_softmax(-1) for part in parts]
        return Actions(
            positions=points[None],
            gripper=spec.gripper_value(gripper),
            rotations=None if rotation is None else spec.rotation_matrix(spec.angles.decode(rotation)),
            pixels=pixels[:1],
            log_probability=torch.stack([part.amax(-1) for part in log]).sum(0),
            entropy=torch.stack([torch.special.entr(part.exp()).sum(-1) for part in log]).sum(0),
        )


def looked_up(maps: ActionMaps, camera: Camera, points: Tensor) -> Tensor:
    """What n clips' maps, seen by cameras (n,), say of points (z, p, q, 3) at the heights of the bins: log-probabilities of their
    cells and bins, (n, t, z, p, q). Points off an image share evenly what is said to be there."""
    volume = maps.log_volume()
    n, _, count, h, w = volume.shape
    pixels, depth = camera.project(points.flatten(0, 2).expand(n, -1, -1))
    cells = pixels_to_cells(pixels, (h, w), maps.size).view(n * count, *points.shape[1:3], 2)
    there = sampled(volume.transpose(1, 2).flatten(0, 1), cells).unflatten(0, (n, count)).transpose(1, 2)
    inside_mass = volume.flatten(2).logsumexp(-1).exp().clamp(max=1 - 1e-6)
    elsewhere = torch.log1p(-inside_mass) - math.log(count * h * w)
    seen = (inside(pixels, maps.size) & (depth > 0)).view(n, 1, *points.shape[:3])
    return torch.where(seen, there, elsewhere[..., None, None, None])
