"""Baselines on the features, inputs and targets that PARA gets: global regression, ACT, and ACT's temporal ensembling.

PARA is told the camera, the gripper's pose and its opening. So that a win is not merely "PARA knows the camera", both heads
here are told the same as one vector (`ActionCode.state`), and regression can also answer in (u, v, height) of the same camera.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from para_video.agent import RAY_DIM, ActionHead, Batch, Query, RobotState
from para_video.demos import Demo
from para_video.features import VideoFeatures, sinusoid
from para_video.heads import CONTEXT_DIM, PROBE_M, TIME_DIM, ParaHead, Trunk, over_image
from para_video.heatmap import masked_cross_entropy
from para_video.layers import places
from para_video.policy import Actions, Observation, Policy
from para_video.readout import ReadoutSpec, Targets

TargetKind = Literal["xyz", "uvh"]
Pooling = Literal["average", "softmax"]

ROBOT_DIM = 19
"""Length of what `ActionCode.state` says of the robot: position, 6D rotation, opening, pixel, depth, and how the pixel moves with
the gripper (x and y for each world axis)."""
CAMERA_DIM = 13
"""Length of the camera token: position, 6D rotation, normalised focal lengths and principal point."""
PATCH = 4
"""Map cells a side that ACT makes one token of, once a map is laid over the image."""

HEADS: dict[str, tuple[str, dict[str, str]]] = {
    "para": ("para_video.heads:ParaHead", {}),
    "act": ("para_video.baselines:ActHead", {}),
    "act-plain": ("para_video.baselines:ActHead", {}),
    "regression": ("para_video.baselines:GlobalRegressionHead", {}),
    "regression-xyz-average": ("para_video.baselines:GlobalRegressionHead", {"target": "xyz", "pooling": "average"}),
    "regression-xyz-softmax": ("para_video.baselines:GlobalRegressionHead", {"target": "xyz", "pooling": "softmax"}),
    "regression-uvh-average": ("para_video.baselines:GlobalRegressionHead", {"target": "uvh", "pooling": "average"}),
    "regression-uvh-softmax": ("para_video.baselines:GlobalRegressionHead", {"target": "uvh", "pooling": "softmax"}),
}
"""Compared heads and their options, by the names that scripts call them. The options that depend on data come beside."""


def _chosen(what: str, name: str, known: Sequence[str]) -> str:
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}; choose from {list(known)}")
    return name


# -------------------------------------------------------------------- numbers in, numbers out


@dataclass(frozen=True)
class ActionStatistics:
    """Means and standard deviations over demonstrations, as plain numbers, so that a config can hold them.

    Args:
        position_mean, position_std: of target positions, metres, world frame.
        displacement_mean, displacement_std: of target minus gripper position, metres, world frame.
        pixel_mean, pixel_std: of target pixels (x, y) as fractions of the image's width and height.
        shift_mean, shift_std: of target minus gripper pixel, as such fractions.
    """

    position_mean: tuple[float, ...]
    position_std: tuple[float, ...]
    displacement_mean: tuple[float, ...]
    displacement_std: tuple[float, ...]
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    shift_mean: tuple[float, ...]
    shift_std: tuple[float, ...]

    @classmethod
    def of(cls, demos: Sequence[Demo], *, chunk: int, stride: int, floor: float = 0.01) -> ActionStatistics:
        """The statistics of every chunk in the demos.

        Args:
            chunk, stride: targets per decision and control steps between them, as trained with. floor: least standard
                deviation, 1 cm or 1 % of the image: an axis that the demos hardly move along is not blown up (as in ACT).

        Raises:
            ValueError: no demonstrations.
        """
        if not demos:
            raise ValueError("no demonstrations to take statistics of; record at least one")
        chunks = []
        for demo in demos:
            goals = torch.from_numpy(demo.targets(np.arange(len(demo)), chunk=chunk, stride=stride)[0]).double()
            starts = torch.from_numpy(demo.positions).double()[:, None].expand_as(goals)
            camera, size = demo.camera.to(torch.float64), demo.frames.shape[1:3]
            points = [part.flatten(0, 1) for part in (goals, starts)]
            chunks.append([*points, *(_fractions(camera.project(part)[0], size) for part in points)])
        return cls._of_points([torch.cat(parts) for parts in zip(*chunks, strict=True)], floor)

    @classmethod
    def of_batch(cls, batch: Batch, *, floor: float = 0.01) -> ActionStatistics:
        """The statistics of one large batch that has a robot, over the targets that are labelled."""
        state, targets, size = _robot(batch.state), batch.targets, batch.clip.shape[-2:]
        assert targets.positions is not None and targets.position_mask is not None
        mask = targets.position_mask
        starts, seen = (x[:, None].expand(-1, mask.shape[1], -1)[mask] for x in (state.position, state.pixel()))
        goals = (targets.positions[mask], starts, _fractions(targets.pixels[mask], size), _fractions(seen, size))
        return cls._of_points([part.double() for part in goals], floor)

    @classmethod
    def _of_points(cls, points: Sequence[Tensor], floor: float) -> ActionStatistics:
        """points: goals and starts (n, 3) in the world, then their places (n, 2) in the image."""
        goals, starts, pixels, start_pixels = points
        numbers = []
        for values in (goals, goals - starts, pixels, pixels - start_pixels):
            numbers += [tuple(values.mean(0).tolist()), tuple(values.std(0, correction=0).clamp_min(floor).tolist())]
        return cls(*numbers)

    def target(self, kind: TargetKind, relative: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation, three numbers each, of what a head of that kind predicts."""
        position = (self.displacement_mean, self.displacement_std) if relative else (self.position_mean, self.position_std)
        if kind == "xyz":
            return position
        pixel = (self.shift_mean, self.shift_std) if relative else (self.pixel_mean, self.pixel_std)
        return pixel[0] + position[0][2:], pixel[1] + position[1][2:]


def _fractions(pixels: Tensor, size: Sequence[int]) -> Tensor:
    """Pixels (..., 2) to fractions of the image: 0 and 1 are its outer edges."""
    return (pixels + 0.5) / pixels.new_tensor([size[1], size[0]])


def _six(rotation: Tensor) -> Tensor:
    """(..., 3, 3) to its first two columns, (..., 6): continuous, unlike angles (Zhou et al. 2019)."""
    return rotation[..., :2].mT.flatten(-2)


def _rotation_from_six(six: Tensor) -> Tensor:
    """(..., 6) to the rotation (..., 3, 3) whose first two columns it spans (Gram-Schmidt)."""
    x = F.normalize(six[..., :3], dim=-1)
    y = F.normalize(six[..., 3:] - (x * six[..., 3:]).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], -1)


class ActionCode(nn.Module):
    """Normalised numbers for networks that regress: the robot's state in, target positions out. Statistics are buffers, so a
    checkpoint carries them. Everything is float32 under autocast: bf16 would round a position by millimetres.

    Args:
        statistics: of the demonstrations. spec: its height bins bound the heights of "uvh", as they bound PARA's.
        kind: "xyz" world positions, or "uvh": pixel and world height, lifted by the camera.
        relative: whether targets are coded relative to the gripper's present position (or pixel and height).
        state_noise: in training, a factor on the noise of what is told of the robot, see `RobotState.roughly`.
    """

    mean: Tensor
    std: Tensor
    position_mean: Tensor
    position_std: Tensor

    def __init__(
        self,
        statistics: ActionStatistics,
        spec: ReadoutSpec,
        kind: TargetKind = "xyz",
        *,
        relative: bool,
        state_noise: float = 1.0,
    ) -> None:
        super().__init__()
        _chosen("target", kind, ("xyz", "uvh"))
        self.kind, self.relative, self.spec, self.state_noise = kind, relative, spec, state_noise
        mean, std = statistics.target(kind, relative)
        numbers = {"mean": mean, "std": std, "position_mean": statistics.position_mean, "position_std": statistics.position_std}
        for name, values in numbers.items():
            if len(values) != 3 or not all(map(math.isfinite, values)) or ("std" in name and min(values) <= 0):
                raise ValueError(f"statistics: {name} must be three finite numbers, positive if a deviation; got {values}")
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))

    def state(self, state: RobotState, size: tuple[int, int]) -> Tensor:
        """(b, ROBOT_DIM + CAMERA_DIM): all that a compared policy is told besides the images, each number of order one.

        Args:
            state: of b clips; told roughly in training, its pixel too: from an exact one, and x and y, the height would follow.
            size: (H, W) of the image, in which pixels and intrinsics are expressed.
        """
        state = state.roughly(self.state_noise) if self.training else state
        with torch.autocast(state.position.device.type, enabled=False):
            camera = state.camera
            probes = torch.cat([torch.zeros(1, 3), PROBE_M * torch.eye(3)]).to(state.position)
            pixels, depth = camera.project(state.position[:, None] + probes)
            pixels = _fractions(pixels, size) * 2 - 1
            away = camera.position - self.position_mean
            robot = [
                (state.position - self.position_mean) / self.position_std,
                _six(state.rotation),
                state.opening[:, None] * 2 - 1,
                pixels[:, 0],
                (depth[:, :1] - away.norm(dim=-1, keepdim=True)) / self.position_std.mean(),
                (pixels[:, 1:] - pixels[:, :1]).flatten(1) * 5,
            ]
            K = camera.intrinsics
            focal = torch.stack([K[:, 0, 0] / size[1], K[:, 1, 1] / size[0]], -1)
            seen = [away, _six(camera.world_T_camera[:, :3, :3]), focal - 1, _fractions(K[:, :2, 2], size) * 2 - 1]
            return torch.cat([part.float() for part in robot + seen], -1)

    def encode(self, targets: Targets, state: RobotState, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Normalised targets (b, t, 3) and their mask (b, t); entries without the mask are zeros."""
        if targets.positions is None:
            raise ValueError("the batch labels no positions, which regression learns from; pixels alone can train ParaHead")
        mask = torch.ones_like(targets.visible) if targets.position_mask is None else targets.position_mask
        if self.kind == "uvh":
            mask = mask & targets.visible
        values = self._values(targets.positions, targets.pixels, size)
        code = (values - self._origin(state, size) - self.mean) / self.std
        # zeros, and not merely a masked loss: a NaN label would reach the gradient through its zero weight
        return torch.where(mask[..., None], code, torch.zeros_like(code)), mask

    def decode(self, code: Tensor, state: RobotState, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """World positions (b, t, 3) of codes (b, t, 3), and for "uvh" their pixels (b, t, 2), kept on the image as PARA's are.

        Where a pixel's ray misses its height's plane, the gripper stays where it is.
        """
        with torch.autocast(code.device.type, enabled=False):
            values = code.float() * self.std + self.mean + self._origin(state, size)
            if self.kind == "xyz":
                return values, None
            scale = values.new_tensor([size[1], size[0]])
            pixels = values[..., :2].clamp(0, 1) * scale - 0.5
            height = values[..., 2]
            if self.spec.lift == "height":
                above = state.position[:, 2:] if self.spec.relative else torch.zeros_like(state.position[:, 2:])
                height = torch.minimum(torch.maximum(height, self.spec.z.low + above), self.spec.z.high + above)
            lifted = state.camera.lift_at_height(pixels, height)
            return torch.where(lifted.isfinite(), lifted, state.position[:, None].expand_as(lifted)), pixels

    def _values(self, positions: Tensor, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        return positions if self.kind == "xyz" else torch.cat([_fractions(pixels, size), positions[..., 2:]], -1)

    def _origin(self, state: RobotState, size: tuple[int, int]) -> Tensor:
        """(b, 1, 3) what a code of zero, were the mean zero, stands for."""
        if not self.relative:
            return torch.zeros(len(state.position), 1, 3, device=state.position.device)
        with torch.autocast(state.position.device.type, enabled=False):
            return self._values(state.position, state.pixel(), size)[:, None]


@dataclass(frozen=True)
class Regressed:
    """What a head answers for t times of b clips: code (b, t, 3) of the position, gripper (b, t, g) logits, and rotation
    (b, t, 6), the first two columns of reference_R_gripper, or None."""

    code: Tensor
    gripper: Tensor
    rotation: Tensor | None


class RegressionHead(ActionHead):
    """What global regression and ACT share: their inputs, their outputs, and the losses but for the distance's form."""

    def __init__(self, spec: ReadoutSpec, code: ActionCode, rotation: bool) -> None:
        super().__init__()
        self.spec, self.code, self.rotation = spec, code, rotation
        self.outputs = 3 + spec.gripper_bins + (6 if rotation else 0)

    def split(self, numbers: Tensor) -> Regressed:
        """(b, t, outputs) by name."""
        end = 3 + self.spec.gripper_bins
        return Regressed(numbers[..., :3], numbers[..., 3:end], numbers[..., end:] if self.rotation else None)

    def losses(self, answer: Regressed, batch: Batch, size: tuple[int, int], distance: str) -> dict[str, Tensor]:
        """Losses by name: position, gripper, rotation; each over what is labelled.

        Args:
            distance: "l1" or "smooth_l1", of codes.
        """
        state, targets = _robot(batch.state), batch.targets
        goal, mask = self.code.encode(targets, state, size)
        losses = {"position": _masked_distance(answer.code, goal, mask, distance)}
        if targets.gripper is not None:
            goal_gripper = self.spec.gripper_targets(targets.gripper)
            losses["gripper"] = masked_cross_entropy(answer.gripper, goal_gripper, targets.gripper_mask)
        if targets.rotations is not None and answer.rotation is not None:
            known = torch.ones_like(mask) if targets.rotation_mask is None else targets.rotation_mask
            with torch.autocast(targets.rotations.device.type, enabled=False):  # bf16 would turn them by a tenth of a degree
                relative = targets.rotations.new_tensor(self.spec.reference).mT @ targets.rotations
            six = torch.where(known[..., None], _six(relative), torch.zeros_like(answer.rotation))
            losses["rotation"] = _masked_distance(answer.rotation, six, known, distance)
        return losses

    def actions(self, answer: Regressed, state: RobotState, size: tuple[int, int]) -> Actions:
        """Actions in float32. They have no probability: a regression has no density."""
        positions, pixels = self.code.decode(answer.code, state, size)
        rotations = None
        if answer.rotation is not None:
            with torch.autocast(answer.rotation.device.type, enabled=False):
                reference = answer.rotation.float().new_tensor(self.spec.reference)
                rotations = reference @ _rotation_from_six(answer.rotation.float())
        return Actions(positions, self.spec.gripper_value(answer.gripper), rotations, pixels)


def _robot(state: RobotState | None) -> RobotState:
    if state is None:
        raise ValueError("the batch has no robot state, which regression is told; clips without a robot can train ParaHead")
    return state


def _masked_distance(answer: Tensor, goal: Tensor, mask: Tensor, distance: str) -> Tensor:
    """Mean distance of (b, t, n) over entries whose mask (b, t) is set; zero, attached to the graph, where none is."""
    form = {"l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}[distance]
    each = form(answer.float(), goal, reduction="none").mean(-1)
    return torch.where(mask, each, torch.zeros_like(each)).sum() / mask.sum().clamp_min(1)


# -------------------------------------------------------------------- global regression


def spatial_softmax(logits: Tensor, values: Tensor) -> Tensor:
    """What is expected of values under each map's softmax, as of places (Levine et al. 2016): (b, t, p, c) in float32.

    Args:
        logits: (b, t, p, h, w). values: (b, c, h, w).
    """
    with torch.autocast(logits.device.type, enabled=False):
        weight = logits.float().flatten(-2).softmax(-1)
        return torch.einsum("btpn,bcn->btpc", weight, values.float().flatten(2))


def on_image(side: int, like: Tensor) -> Tensor:
    """(b, 2, side, side) x and y of the cells of maps laid over the image, whose edges are at -1 and 1; b is that of `like`."""
    axis = torch.linspace(-1, 1, 2 * side + 1, device=like.device)[1::2]
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy")).expand(len(like), -1, -1, -1)


class GlobalRegressionHead(RegressionHead):
    """Pools the map of each queried time into one vector and regresses the target from it and the robot's state.

    Up to the pooling it is ParaHead: the same trunk, told the same.

    Args:
        channels: of the feature maps. spec: what the gripper's bins mean; its z range bounds the heights of "uvh".
        statistics: of the demonstrations. target: "xyz" in the world, or "uvh": pixel and height, lifted by the camera.
        pooling: "average", or "softmax": beside the average, the expected place of learned heatmaps in the image (Levine et al.
            2016) and where the rays through it go.
        relative: predict displacements from the present gripper.
        rotation: regress a 6D rotation as well. hidden, layers, mixing: of the trunk. points: learned heatmaps.
        width: of the MLP. state_noise: see `ActionCode`.
    """

    def __init__(
        self,
        channels: int,
        spec: ReadoutSpec,
        statistics: ActionStatistics,
        *,
        target: TargetKind = "xyz",
        pooling: Pooling = "softmax",
        relative: bool = True,
        rotation: bool = False,
        hidden: int = 48,
        layers: int = 2,
        mixing: int = 2,
        points: int = 32,
        width: int = 256,
        state_noise: float = 1.0,
    ) -> None:
        super().__init__(spec, ActionCode(statistics, spec, target, relative=relative, state_noise=state_noise), rotation)
        self.pooling = _chosen("pooling", pooling, ("average", "softmax"))
        known = ROBOT_DIM + CAMERA_DIM
        self.trunk = Trunk(channels, known, side=ParaHead.GRID // 2, hidden=hidden, layers=layers, mixing=mixing)
        self.points = nn.Conv2d(hidden, points, 1) if pooling == "softmax" else None
        self.norm = nn.LayerNorm(hidden)
        inputs = hidden + CONTEXT_DIM + known + ((2 + RAY_DIM) * points if pooling == "softmax" else 0)
        self.mlp = nn.Sequential(
            nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, self.outputs)
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, features: VideoFeatures, query: Query, state: RobotState) -> Regressed:
        """Answers for b clips at the queried times."""
        known, rays = self.code.state(state, query.size), state.ray_map(self.trunk.side, query.size)
        x, index, context = self.trunk(features, query, state.pixel(), rays, known)
        with torch.autocast(x.device.type, enabled=False):
            pooled = [self.norm(x.mean((-2, -1), dtype=torch.float32))]
        if self.points is not None:
            logits = self.points(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            pooled.append(spatial_softmax(logits, torch.cat([on_image(self.trunk.side, rays), rays], 1)).flatten(2))
        with torch.autocast(x.device.type, enabled=False):
            told = [context.float(), known[:, None].expand(-1, len(index), -1)]
            return self.split(self.mlp(torch.cat([*(part[:, index] for part in pooled), *told], -1)))

    def loss(self, features: VideoFeatures, query: Query, batch: Batch) -> dict[str, Tensor]:
        """See `ActionHead.loss`: position (smooth L1 of codes), gripper (cross-entropy), rotation where asked for."""
        return self.losses(self(features, query, _robot(batch.state)), batch, query.size, "smooth_l1")

    def predict(self, features: VideoFeatures, query: Query, state: RobotState) -> Actions:
        """See `ActionHead.predict`."""
        return self.actions(self(features, query, state), state, query.size)


# -------------------------------------------------------------------- ACT


class Attention(nn.Module):
    """Multi-head attention of x (b, n, d) to memory (b, m, d); positions enter queries and keys alone, as in DETR."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor, place: Tensor, memory_place: Tensor, keep: Tensor | None = None) -> Tensor:
        """keep: (b, m) bool of the tokens that may be attended to."""
        split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731
        q, k, v = split(self.q(x + place)), split(self.k(memory + memory_place)), split(self.v(memory))
        # written out: for bf16 on the CPU the backward of F.scaled_dot_product_attention takes three times as long
        score = (q * q.shape[-1] ** -0.5) @ k.mT
        if keep is not None:
            score = score.masked_fill(~keep[:, None, None], -math.inf)
        return self.out((score.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Self-attention and MLP. Pre-norm: at learning rates that suit short trainings the post-norm original does not start."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(dim), nn.LayerNorm(dim), Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, place: Tensor, keep: Tensor | None = None) -> Tensor:
        y = self.norm1(x)
        x = x + self.dropout(self.attention(y, y, place, place, keep))
        return x + self.dropout(self.mlp(self.norm2(x)))


class DecoderLayer(nn.Module):
    """Self-attention among the queries, cross-attention to the memory, MLP."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.own = EncoderLayer(dim, heads, hidden, dropout)
        self.norm, self.cross, self.dropout = nn.LayerNorm(dim), Attention(dim, heads), nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor, place: Tensor, memory_place: Tensor) -> Tensor:
        y = self.own.norm1(x)
        x = x + self.dropout(self.own.attention(y, y, place, place))
        x = x + self.dropout(self.cross(self.norm(x), memory, place, memory_place))
        return x + self.dropout(self.own.mlp(self.own.norm2(x)))


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence in nats of N(mean, exp(log_variance)) from N(0, 1), (b, n) each, summed over n and averaged over b."""
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(-1).mean()


class ActHead(RegressionHead):
    """Action chunking with transformers (Zhao et al. 2023) on feature maps.

    A conditional VAE: in training an encoder turns the robot's state and the true chunk into a latent; at test the latent is
    zero. A transformer encoder mixes tokens of the maps with the latent, the robot's state and the camera; a decoder with one
    query per time reads the chunk off them. Differences from the authors' code: one decoder layer (theirs has seven and uses
    the first one's output); the camera is a token; the gripper is classified into PARA's bins with their cross-entropy; layers
    are pre-norm; queries are embedded times, so that any times can be asked for; tokens of the maps are told where their rays go;
    the state is told roughly, and the posterior is told it with noise of its own.

    Args:
        channels: of the feature maps. spec: what the gripper's bins mean. statistics: of the demonstrations.
        relative: predict displacements from the present gripper. The authors' targets are absolute; from a handful of
            demonstrations those came out 3 cm off at the very next step.
        rotation: regress a 6D rotation as well. dim, heads, hidden: width of the tokens, attention heads, width of the MLPs.
        encoder_layers, decoder_layers, latent: as named. kl_weight: of the latent's KL divergence.
        grid: tokens a side of the last observed map; the predicted maps that the times are nearest to get half as many.
        state_noise: see `ActionCode`.
    """

    def __init__(
        self,
        channels: int,
        spec: ReadoutSpec,
        statistics: ActionStatistics,
        *,
        relative: bool = True,
        rotation: bool = False,
        dim: int = 256,
        heads: int = 8,
        hidden: int = 1024,
        encoder_layers: int = 4,
        decoder_layers: int = 1,
        latent: int = 32,
        kl_weight: float = 10.0,
        dropout: float = 0.1,
        grid: int = 8,
        state_noise: float = 1.0,
    ) -> None:
        super().__init__(spec, ActionCode(statistics, spec, relative=relative, state_noise=state_noise), rotation)
        if dim % heads or dim % 4 or grid % 2:
            raise ValueError(f"dim must be a multiple of 4 and of heads, grid even; got {dim}, {heads} and {grid}")
        self.dim, self.latent, self.kl_weight, self.grid = dim, latent, kl_weight, grid
        layer = (dim, heads, hidden, dropout)
        # a map is laid over the image with PATCH cells a token and side, so that a token keeps where in it things lie
        self.patch = nn.Conv2d(channels, dim, PATCH, PATCH)
        self.token_norm = nn.LayerNorm(dim)
        self.time = nn.Linear(TIME_DIM, dim)
        self.rays = nn.Linear(RAY_DIM, dim)
        self.robot, self.camera, self.from_latent = (nn.Linear(n, dim) for n in (ROBOT_DIM, CAMERA_DIM, latent))
        self.extra_place = nn.Parameter(torch.randn(3, dim) * 0.02)
        self.encoder = nn.ModuleList(EncoderLayer(*layer) for _ in range(encoder_layers))
        self.encoder_norm = nn.LayerNorm(dim)
        self.queries = nn.Linear(TIME_DIM, dim)
        self.decoder = nn.ModuleList(DecoderLayer(*layer) for _ in range(decoder_layers))
        self.answer_norm, self.answer = nn.LayerNorm(dim), nn.Linear(dim, self.outputs)
        self.posterior = Posterior(4 + (6 if rotation else 0), latent, layer, encoder_layers)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, features: VideoFeatures, query: Query, state: RobotState, latent: Tensor | None = None) -> Regressed:
        """Answers for b clips at the queried times, given latents (b, latent); None stands for zeros, as at test."""
        b, t = len(features.maps), len(query.times)
        known = self.code.state(state, query.size)
        latent = known.new_zeros(b, self.latent) if latent is None else latent
        with torch.autocast(known.device.type, enabled=False):
            extra = [self.from_latent(latent.float()), self.robot(known[:, :ROBOT_DIM]), self.camera(known[:, ROBOT_DIM:])]
        tokens, place = self._tokens(features, query, state)
        memory = torch.cat([torch.stack(extra, 1).to(tokens.dtype), tokens], 1)
        place = torch.cat([self.extra_place.to(place.dtype), place])
        for layer in self.encoder:
            memory = layer(memory, place)
        memory = self.encoder_norm(memory)
        asked = self.queries(sinusoid(query.times.float(), TIME_DIM))
        x = memory.new_zeros(b, t, self.dim)
        for layer in self.decoder:
            x = layer(x, memory, asked, place)
        with torch.autocast(x.device.type, enabled=False):
            return self.split(self.answer(self.answer_norm(x.float())))

    def _tokens(self, features: VideoFeatures, query: Query, state: RobotState) -> tuple[Tensor, Tensor]:
        """Tokens (b, n, d) of the last observed map and of the predicted ones in use, and their places (n, d)."""
        seen = (features.times <= 0).nonzero()[-1]
        used = features.nearest(query.times.to(features.times))[0].unique()
        used = torch.cat([seen, used[features.times[used] > 0]])
        maps = over_image(features, used, PATCH * self.grid, query.size)
        b, s = maps.shape[:2]
        patches = self.patch(maps.flatten(0, 1).contiguous(memory_format=torch.channels_last)).unflatten(0, (b, s))
        future = F.avg_pool2d(patches[:, 1:].flatten(0, 1), 2).unflatten(0, (b, s - 1))
        tokens, where = [], []
        when = self.time(sinusoid(features.times[used].float(), TIME_DIM))
        for part, times, side in ((patches[:, :1], when[:1], self.grid), (future, when[1:], self.grid // 2)):
            rays = self.rays(state.ray_map(side, query.size).flatten(2).mT)
            tokens.append((part.flatten(3).mT + rays[:, None]).flatten(1, 2))
            where.append((places(side, side, self.dim, maps.device) + times[:, None]).flatten(0, 1))
        return self.token_norm(torch.cat(tokens, 1)), torch.cat(where)

    def loss(self, features: VideoFeatures, query: Query, batch: Batch) -> dict[str, Tensor]:
        """See `ActionHead.loss`: position (L1 of codes plus the weighted KL divergence), gripper (cross-entropy), rotation.

        The KL divergence is part of "position", so that a trainer that rescales losses by name keeps ACT's ratio of the two.
        """
        state, targets = _robot(batch.state), batch.targets
        goal, mask = self.code.encode(targets, state, query.size)
        gripper = torch.zeros_like(goal[..., 0]) if targets.gripper is None else targets.gripper
        chunk = [goal, gripper[..., None]]
        if self.rotation:
            chunk.append(goal.new_zeros(*goal.shape[:2], 6) if targets.rotations is None else _six(targets.rotations))
        known = self.code.state(state, query.size)[:, :ROBOT_DIM]
        mean, log_variance = self.posterior(known, torch.cat(chunk, -1).nan_to_num(), query.times, mask)
        latent = mean
        if self.training:
            latent = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        losses = self.losses(self(features, query, state, latent), batch, query.size, "l1")
        losses["position"] = losses["position"] + self.kl_weight * gaussian_kl(mean, log_variance)
        return losses

    def predict(self, features: VideoFeatures, query: Query, state: RobotState) -> Actions:
        """See `ActionHead.predict`; the latent is zero, the prior's mean."""
        return self.actions(self(features, query, state), state, query.size)


class Posterior(nn.Module):
    """ACT's CVAE encoder: a class token beside the robot's state and the true chunk gives the latent's mean and log-variance.

    Args:
        actions: numbers per chunk step. latent: numbers given. layer: (dim, heads, hidden, dropout). layers: how many.
    """

    def __init__(self, actions: int, latent: int, layer: tuple[int, int, int, float], layers: int) -> None:
        super().__init__()
        dim = layer[0]
        self.token = nn.Parameter(torch.randn(dim) * 0.02)
        self.robot, self.action, self.time = nn.Linear(ROBOT_DIM, dim), nn.Linear(actions, dim), nn.Linear(TIME_DIM, dim)
        self.place = nn.Parameter(torch.randn(2, dim) * 0.02)
        self.layers = nn.ModuleList(EncoderLayer(*layer) for _ in range(layers))
        self.norm, self.out = nn.LayerNorm(dim), nn.Linear(dim, 2 * latent)
        # starts at the prior: a KL divergence of many nats at first would drown the positions in a trainer that rescales losses
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, robot: Tensor, chunk: Tensor, times: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (b, latent) in float32, of robot (b, ROBOT_DIM), chunk (b, t, actions) at times (t,), of which
        known (b, t) is set where a step is labelled."""
        b = len(robot)
        with torch.autocast(robot.device.type, enabled=False):
            x = torch.cat([self.token.expand(b, 1, -1), self.robot(robot)[:, None], self.action(chunk)], 1)
            place = torch.cat([self.place, self.time(sinusoid(times.float(), TIME_DIM))])
        keep = torch.cat([torch.ones_like(known[:, :1]).expand(-1, 2), known], 1)
        for layer in self.layers:
            x = layer(x, place, keep)
        with torch.autocast(robot.device.type, enabled=False):
            mean, log_variance = self.out(self.norm(x[:, 0].float())).chunk(2, -1)
        return mean, log_variance


# -------------------------------------------------------------------- temporal ensembling


class TemporalEnsemble:
    """ACT's temporal ensembling around any policy: predictions of the same future target, made at different decisions, are
    averaged with weights exp(-decay i), where i = 0 is the oldest.

    Pixels, visibility and probabilities describe one prediction, not the average, and are left out.

    Args:
        policy: gives chunks of evenly spaced targets for one observation. executed: targets executed between two decisions,
            by which chunks are shifted against each other. decay: the authors' m; at 0 old and new predictions count alike.
    """

    def __init__(self, policy: Policy, executed: int, decay: float = 0.01) -> None:
        if executed < 1 or decay < 0:
            raise ValueError(f"executed must be at least 1 and decay not negative, got {executed} and {decay}")
        self.policy, self.executed, self.decay = policy, executed, decay
        self._chunks: list[Actions] = []

    def reset(self) -> None:
        """Forget the past chunks."""
        self._chunks.clear()
        self.policy.reset()

    def act(self, observation: Observation) -> Actions:
        """The averaged chunk for one observation.

        Raises:
            ValueError: chunks shorter than what is executed of them.
        """
        new = self.policy.act(observation)
        t = new.gripper.shape[1]
        if t < self.executed:
            raise ValueError(f"executed {self.executed} targets per decision, but the policy predicts {t}: ask it for more")
        self._chunks = [*self._chunks[-((t - 1) // self.executed) :], new] if t > self.executed else [new]
        positions, gripper, rotations = zip(*(self._mean(step) for step in range(t)), strict=True)
        turned = None if new.rotations is None else torch.stack(rotations, 1)
        return Actions(torch.stack(positions, 1), torch.stack(gripper, 1), turned)

    def _mean(self, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Position (b, 3), gripper (b,) and rotation (b, 3, 3) or None of one step of the newest chunk."""
        newest = len(self._chunks) - 1
        found = [(chunk, step + self.executed * (newest - i)) for i, chunk in enumerate(self._chunks)]
        found = [(chunk, place) for chunk, place in found if place < chunk.gripper.shape[1]]
        weight = torch.exp(-self.decay * torch.arange(len(found)))
        weight = weight / weight.sum()

        def mean(parts: list[Tensor]) -> Tensor:
            return torch.einsum("i,i...->...", weight.to(parts[0]), torch.stack(parts))

        positions = mean([chunk.positions[:, place] for chunk, place in found])
        gripper = mean([chunk.gripper[:, place] for chunk, place in found])
        turned = [chunk.rotations[:, place] for chunk, place in found if chunk.rotations is not None]
        return positions, gripper, nearest_rotation(mean(turned)) if turned else None


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotation nearest to (..., 3, 3) in the Frobenius norm; of a mean of rotations, their chordal mean."""
    u, _, v = torch.linalg.svd(matrix)
    sign = torch.ones_like(u[..., 0])
    sign[..., -1] = torch.linalg.det(u @ v)
    return (u * sign[..., None, :]) @ v
