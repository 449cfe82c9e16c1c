"""Does an answer move with the image? Shifts of the picture, the camera's principal point moved along, and what comes of answers.

A simulator renders more of the scene than a policy sees, so that a shifted picture is a crop and nothing is padded. Under an exact
shift-equivariant read-out with a known camera, decoded pixels move by just the shift, and points in space stay.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from para_video.agent import VideoPolicy
from para_video.camera import Camera
from para_video.demos import ScriptedEnv
from para_video.heatmap import inside
from para_video.policy import Observation, View
from para_video.rollout import ReplanningOracle

DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1))


def cropped(view: View, size: int, corner: tuple[int, int]) -> View:
    """The part of a view whose top-left pixel is `corner` (x, y), as its own view.

    Raises:
        ValueError: it does not lie on the picture.
    """
    x, y = corner
    height, width = view.clip.shape[-2:]
    if not (0 <= x <= width - size and 0 <= y <= height - size):
        raise ValueError(f"a crop of {size} px at {corner} leaves the picture of {(height, width)}: render more, or shift less")
    K = view.camera.intrinsics.clone()
    K[..., :2, 2] -= K.new_tensor([x, y])
    return View(view.clip[..., y : y + size, x : x + size], replace(view.camera, intrinsics=K))


@dataclass(frozen=True)
class Moment:
    """What is seen at a decision, with a margin, and what the expert would do next: points (t, 3)."""

    observation: Observation
    points: Tensor


def moments(env: ScriptedEnv, seeds: Sequence[int], every: int, horizon: int) -> Iterator[Moment]:
    """Every so many steps of the expert's own episodes, until they succeed."""
    oracle = ReplanningOracle(env)
    for seed in seeds:
        env.reset(seed)
        for step in itertools.count():
            if step % every == 0:
                yield Moment(env.observe(), oracle.plan().points)
            if env.step(env.expert_action()).success or step + 1 >= horizon:
                break


@dataclass(frozen=True)
class Deviations:
    """What n answered targets do under shifts; those that a shift takes off the picture are not among them.

    Args:
        shift: (n,) pixels that the picture was moved by, along x or y. pixel_px: (n,) how far the decoded pixel is from the one
            that was decoded without a shift, moved along. point_mm: (n,) how far the two points are apart in space.
            error_mm: (n,) from the decoded point to the expert's.
    """

    shift: Tensor
    pixel_px: Tensor
    point_mm: Tensor
    error_mm: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Deviations]) -> Deviations:
        return cls(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(cls)))

    def medians(self) -> list[dict[str, float]]:
        """By shift, in ascending order: medians, and how many targets they are of."""
        rows = []
        for shift in self.shift.unique().tolist():
            chosen = self.shift == shift
            values = {name: getattr(self, name)[chosen].median().item() for name in ("pixel_px", "point_mm", "error_mm")}
            rows.append({"shift": shift, **{name: round(value, 3) for name, value in values.items()}, "n": int(chosen.sum())})
        return rows


def deviations(policy: VideoPolicy, moment: Moment, size: int, shifts: Sequence[int]) -> Deviations:
    """How the answers on a moment's middle crop of `size` pixels change as it is moved by each of `shifts`, in four directions.

    Raises:
        ValueError: the moment has too little margin for a shift.
    """
    view = moment.observation.views[policy.view]
    middle = (view.clip.shape[-1] - size) // 2
    moves = torch.tensor([(0, 0), *((s * x, s * y) for s in shifts for x, y in DIRECTIONS)])
    inputs = []
    for x, y in moves.tolist():
        crop = cropped(view, size, (middle - x, middle - y))  # what is seen moves by (x, y) when the crop moves the other way
        inputs.append(policy.inputs(replace(moment.observation, views={policy.view: crop})))
    answered = [policy.predict(*each).positions.cpu() for each in inputs]
    points, camera = torch.cat(answered), Camera.stack([state.camera[0].to("cpu") for _, state in inputs])
    pixels, true = (camera.project(each)[0] for each in (points, moment.points.expand_as(points)))
    change = (pixels - pixels[:1] - moves[:, None]).norm(dim=-1)
    apart, error = (points - points[:1]).norm(dim=-1), (points - moment.points).norm(dim=-1)
    kept = inside(true, (size, size)) & inside(true[:1], (size, size))
    by = moves.abs().amax(-1, keepdim=True).expand_as(kept)
    return Deviations(by[kept], change[kept], 1e3 * apart[kept], 1e3 * error[kept])
