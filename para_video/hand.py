"""Hiding a robot's hand from the policies that move it.

In all demonstrations a hand looks alike, and its looks tell where it is. A policy comes to rely on that, although it is told
where the gripper is; and from a camera that was turned, the hand looks as if it were elsewhere by a centimetre or two, which is
the difference between a grasp and none. So a policy may be shown pictures in which the hand cannot be seen, while what it reaches
for can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from para_video.layers import gaussian_blur

if TYPE_CHECKING:
    from para_video.agent import RobotState

UP_M = 0.1
"""Over which the direction and the length of an upright metre are measured in the image."""
FAINT = 1e-4
"""Share of what is seen around a pixel below which it is filled in by grey."""


@dataclass(frozen=True)
class Hand:
    """The room that a hand takes around the gripper point, in metres; the defaults are of Meta-World's.

    Args:
        aside, low, high: of an upright rectangle that faces the camera, to both sides of the vertical line through the gripper
            point and from `low` to `high` above it. It is painted grey, and looks the same from all sides.
        finger: from the gripper point to either finger with the gripper open, along the second axis of the gripper's frame; in
            between in proportion to the opening. finger_radius, finger_low, finger_high: of the upright capsule that the part of
            a finger fills which may show below the rectangle. It is filled in with what lies around it.
        grey: what the rectangle is painted, in [0, 1]. smooth: standard deviation of the smoothing that fills fingers in, over the
            image's width.
    """

    aside: float = 0.07
    low: float = 0.005
    high: float = 0.22
    finger: float = 0.05
    finger_radius: float = 0.018
    finger_low: float = -0.015
    finger_high: float = 0.03
    grey: float = 0.5
    smooth: float = 3 / 128

    def hidden(self, clip: Tensor, state: RobotState) -> Tensor:
        """Clips (b, t, 3, H, W) without the hand, where it is in the last frame; as they are where it is behind the camera."""
        b, t, _, height, width = clip.shape
        with torch.autocast(clip.device.type, enabled=False):
            palm, fingers = self._covered(state, (height, width))
            frames, hidden = clip.float().flatten(0, 1), torch.maximum(palm, fingers).repeat_interleave(t, 0)
            seen = (1 - hidden)[:, None]
            around = gaussian_blur(torch.cat([frames * seen, seen], 1), self.smooth * width)
            filled = (around[:, :3] + FAINT * self.grey) / (around[:, 3:] + FAINT)
            frames = torch.lerp(frames, filled, fingers.repeat_interleave(t, 0)[:, None])
            frames = torch.lerp(frames, torch.full_like(frames, self.grey), palm.repeat_interleave(t, 0)[:, None])
        return frames.to(clip.dtype).unflatten(0, (b, t))

    def _covered(self, state: RobotState, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Shares (b, H, W) of each pixel that the rectangle and the fingers' capsules cover."""
        up = state.position.new_tensor([0.0, 0.0, 1.0])
        across = self.finger * state.opening[:, None] * state.rotation[:, :, 1]
        ends = [state.position + side * across + z * up for side in (-1, 1) for z in (self.finger_low, self.finger_high)]
        pixels, depth = state.camera.project(torch.stack([state.position, state.position + UP_M * up, *ends], 1))
        rows, columns = torch.meshgrid(*(torch.arange(side).to(pixels) for side in size), indexing="ij")
        places = torch.stack([columns, rows], -1)
        tip, upward = pixels[:, 0], (pixels[:, 1] - pixels[:, 0]) / UP_M
        tall = upward.norm(dim=-1).clamp_min(1e-3)  # pixels of an upright metre, and of one that faces the camera
        wide = state.camera.intrinsics[:, 0, 0] / depth[:, 0].clamp_min(1e-3)
        upward, tall, wide = (upward / tall[:, None])[:, None, None], tall[:, None, None], wide[:, None, None]
        from_tip = places - tip[:, None, None]
        above = (from_tip * upward).sum(-1)
        beside = (from_tip[..., 0] * upward[..., 1] - from_tip[..., 1] * upward[..., 0]).abs()
        palm = torch.minimum(self.aside * wide - beside, torch.minimum(above - self.low * tall, self.high * tall - above))
        nearest = torch.minimum(*(_distance(places, pixels[:, i], pixels[:, i + 1]) for i in (2, 4)))
        ahead = (depth > 0).all(1)[:, None, None]
        return ahead * (palm + 0.5).clamp(0, 1), ahead * (self.finger_radius * wide - nearest + 0.5).clamp(0, 1)


def _distance(places: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """(b, H, W) from places (H, W, 2) to the line from start to end (b, 2)."""
    line, away = (end - start)[:, None, None], places - start[:, None, None]
    share = ((away * line).sum(-1, keepdim=True) / line.square().sum(-1, keepdim=True).clamp_min(1e-6)).clamp(0, 1)
    return (away - share * line).norm(dim=-1)
