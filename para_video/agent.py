"""The trainable policy: a backbone and an action head behind one interface, whatever the head."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from para_video.camera import Camera
from para_video.features import VideoBackbone, VideoFeatures
from para_video.hand import Hand
from para_video.heatmap import cell_centres
from para_video.policy import Actions, Observation
from para_video.precision import autocast
from para_video.readout import ReadoutSpec, Targets

RAY_DIM, RAY_M, RAY_LIMIT = 6, 0.3, 4.0
RAYS_FROM_GRIPPER = slice(4, 6)
"""Of a ray map's channels, those that tell where the gripper is."""
HEIGHT_NOISE_M, OPENING_NOISE = 0.01, 0.08
"""Standard deviations of what `RobotState.roughly` adds."""


@dataclass(frozen=True)
class RobotState:
    """What every compared policy is told besides the images, for b clips, at the last observed frame.

    Args:
        camera: (b,). position: (b, 3) gripper point, world metres. rotation: (b, 3, 3) world_R_gripper.
        opening: (b,) gripper opening in [0, 1].
    """

    camera: Camera
    position: Tensor
    rotation: Tensor
    opening: Tensor

    def pixel(self) -> Tensor:
        """(b, 2) where the gripper point is seen."""
        with torch.autocast(self.position.device.type, enabled=False):  # in bf16 it would be off by a tenth of a pixel
            return self.camera.project(self.position[:, None])[0][:, 0]

    def ray_map(self, side: int, size: tuple[int, int]) -> Tensor:
        """(b, RAY_DIM, side, side): where each cell's ray through an image of size (H, W) goes, in float32.

        The world (x, y) at which it meets the ground z = 0, how far (x, y) shifts for each metre of height, and where it meets the
        plane of the gripper, from the gripper; in units of `RAY_M`. A point seen in a cell has a known place but for its height,
        and these say how the two depend on each other. Rays that do not come down are cut off at `RAY_LIMIT`.
        """
        cells = cell_centres((side, side), size, self.position.device)
        with torch.autocast(self.position.device.type, enabled=False):
            origin, direction = self.camera.rays(cells.expand(len(self.opening), -1, -1))
            slope = direction[..., :2] / direction[..., 2:].clamp_max(-0.05)
            ground = origin[..., :2] - origin[..., 2:] * slope
            beside = ground + self.position[:, None, 2:] * slope - self.position[:, None, :2]
            rays = torch.cat([ground / RAY_M, slope, beside / RAY_M], -1).clamp(-RAY_LIMIT, RAY_LIMIT)
        return rays.mT.unflatten(-1, (side, side))

    def roughly(self, factor: float = 1.0) -> RobotState:
        """The state with noise on height and opening, which is how a head in training is told them.

        Told exactly, the two give away which moment of which demonstration this is, and a head learns by heart what followed. In
        closed loop the gripper is soon at heights and openings that no demonstration had, and what was learnt by heart is wrong. It
        has a price: a centimetre of height moves the place over an object by about a pixel (docs/results.md, "What was tried").
        """
        up = factor * HEIGHT_NOISE_M * torch.randn_like(self.opening)
        opening = self.opening + factor * OPENING_NOISE * torch.randn_like(self.opening)
        return replace(self, position=self.position + F.pad(up[:, None], (2, 0)), opening=opening.clamp(0, 1))

    def to(self, device: torch.device) -> RobotState:
        return RobotState(self.camera.to(device), *(part.to(device) for part in (self.position, self.rotation, self.opening)))


@dataclass(frozen=True)
class Batch:
    """What is trained on.

    Args:
        clip: (b, t, 3, H, W) float in [0, 1], the observed frames. targets: what should be read off them. state: the robot's; None
            where there is no robot. times: (q,) of the targets; None for the policy's own.
        future: (b, h, 3, H, W), the frames that follow, for a backbone that learns to predict them beside.
        features: of the clip, where they were computed before; then the clip is not looked at.
    """

    clip: Tensor
    targets: Targets
    state: RobotState | None = None
    times: Tensor | None = None
    future: Tensor | None = None
    features: VideoFeatures | None = None


@dataclass(frozen=True)
class Query:
    """What is asked of a head: times (t,) in frames after the last observed one, over images of size (H, W)."""

    times: Tensor
    size: tuple[int, int]


class ActionHead(nn.Module, ABC):
    """Reads actions off feature maps. Heads are compared on the same features and are told the same `RobotState`; `spec` says what
    their bins mean."""

    spec: ReadoutSpec

    @abstractmethod
    def loss(self, features: VideoFeatures, query: Query, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses by name, each over what is labelled."""

    @abstractmethod
    def predict(self, features: VideoFeatures, query: Query, state: RobotState) -> Actions:
        """Actions at the queried times, in float32."""


def horizon_of(backbone: VideoBackbone, latest: float) -> int:
    """Future frames whose maps a policy asks a backbone for, up to its latest time."""
    return max(0, math.ceil(latest)) if backbone.spec.predicts else 0


class VideoPolicy(nn.Module):
    """Backbone, then head. It is a `Policy`: `act` takes one observation.

    Args:
        backbone, head: the two parts. times: queried, in frames after the last observed one. view: which view it looks at. frozen:
            whether the backbone is left as it is in training. clip_shape: frames, height and width of the clips of training, a
            None where any will do; `act` takes no others. hand: hidden in the clips, or None for clips as they are.
    """

    def __init__(
        self,
        backbone: VideoBackbone,
        head: ActionHead,
        times: tuple[float, ...],
        *,
        view: str = "main",
        frozen: bool = False,
        clip_shape: tuple[int | None, int | None, int | None] = (None, None, None),
        hand: Hand | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.times, self.view, self.frozen = backbone, head, tuple(times), view, frozen
        self.clip_shape, self.hand = clip_shape, hand
        if hand is not None and clip_shape[0] not in (None, 1):
            raise ValueError(f"a hand is hidden in clips of 1 frame, got {clip_shape[0]}: where it was before, nothing tells")
        backbone.requires_grad_(not frozen)
        if frozen:
            backbone.eval()

    def train(self, mode: bool = True) -> Self:
        """Of the head alone where the backbone is frozen, which then computes as it does in use."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def features(self, clip: Tensor, times: Tensor | None = None, state: RobotState | None = None) -> tuple[VideoFeatures, Query]:
        """The backbone's features of clips (b, t, 3, H, W) of robots in a state, and the query to put to the head: times (q,), by
        default `times`."""
        clip, query = self._shown(clip, state), self._query(clip, times)
        horizon = horizon_of(self.backbone, float(query.times.max()))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.backbone.features(clip, horizon=horizon, since=float(query.times.min()))
        return features, query

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The head's losses on a batch, and the backbone's own as "video" where the batch shows the future."""
        if batch.future is not None:
            clip, observed = torch.cat([self._shown(batch.clip, batch.state), batch.future], 1), batch.clip.shape[1]
            query = self._query(batch.clip, batch.times)
            features, video = self.backbone.joint(clip, observed, since=float(query.times.min()))
            return {**self.head.loss(features, query, batch), "video": video}
        if batch.features is not None:
            features = batch.features  # in bf16, which autocast takes as it is
            if not torch.is_autocast_enabled(features.maps.device.type):
                features = features.with_maps(features.maps.float())
            return self.head.loss(features, self._query(batch.clip, batch.times), batch)
        features, query = self.features(batch.clip, batch.times, batch.state)
        return self.head.loss(features, query, batch)

    def _shown(self, clip: Tensor, state: RobotState | None) -> Tensor:
        if self.hand is None:
            return clip
        if state is None:
            raise ValueError("this policy hides the hand, and is not told where it is: pass the robot's state")
        return self.hand.hidden(clip, state)

    def _query(self, clip: Tensor, times: Tensor | None) -> Query:
        height, width = clip.shape[-2:]
        return Query(torch.tensor(self.times, device=clip.device) if times is None else times, (height, width))

    @torch.no_grad()
    def predict(self, clip: Tensor, state: RobotState) -> Actions:
        """Actions for clips (b, t, 3, H, W) at `times`, under `para_video.precision.autocast` with decoding in float32."""
        with autocast(clip.device):
            features, query = self.features(clip, state=state)
            return self.head.predict(features, query, state)

    def reset(self) -> None:
        """Nothing is remembered between decisions."""

    def inputs(self, observation: Observation) -> tuple[Tensor, RobotState]:
        """The clip (1, t, 3, H, W) and the robot's state of one observation.

        Raises:
            ValueError: the observation lacks the view, its frames are not as many or as large as those of training, or its gripper
                is no pose or no opening.
        """
        if self.view not in observation.views:
            raise ValueError(f"the observation has no view {self.view!r}; it has {sorted(observation.views)}")
        given, opening = torch.as_tensor(observation.end_effector), observation.gripper_opening
        if tuple(given.shape) != (4, 4) or not 0 <= opening <= 1:
            raise ValueError(
                f"an observation has end_effector (4, 4) and gripper_opening in [0, 1], got {tuple(given.shape)} and {opening}: "
                "pass a pose, and the opening over the widest"
            )
        pose = given[None].float()
        rotation, bottom = pose[0, :3, :3], pose[0, 3] - pose.new_tensor([0, 0, 0, 1])
        defect = torch.cat([(rotation @ rotation.mT - torch.eye(3).to(rotation)).flatten(), bottom]).abs().max()
        if not (bool(pose.isfinite().all()) and float(defect) <= 1e-2 and float(torch.linalg.det(rotation)) > 0):
            raise ValueError(
                f"end_effector must be a rigid motion (world_T_gripper), finite, neither scaled, mirrored nor transposed; got "
                f"{given.tolist()}"
            )
        view, device = observation.views[self.view], self.backbone.device
        if view.clip.ndim != 4 or view.clip.shape[1] != 3:
            raise ValueError(f"the view {self.view!r} must be (t, 3, H, W), got {tuple(view.clip.shape)}: channels come second")
        frames, _, *size = view.clip.shape
        if any(wanted not in (None, given) for wanted, given in zip(self.clip_shape, (frames, *size), strict=True)):
            wanted = " x ".join("any" if number is None else str(number) for number in self.clip_shape)
            raise ValueError(
                f"the view {self.view!r} has {frames} frames of {size[0]} x {size[1]} pixels; this policy was trained on {wanted} "
                "(frames, height, width): resize them, and their camera's intrinsics with them, or repeat the first one"
            )
        camera = view.camera[-1] if view.camera.batch_shape else view.camera
        state = RobotState(camera[None].to(torch.float32), pose[:, :3, 3], pose[:, :3, :3], torch.tensor([opening]).float())
        return view.clip[None].to(device), state.to(device)

    def act(self, observation: Observation) -> Actions:
        """Actions (batch 1) for one observation; see `inputs` for errors."""
        return self.predict(*self.inputs(observation))
