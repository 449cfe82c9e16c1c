"""The PARA head: per-frame heatmaps of the gripper from feature maps, with everything else read at the pixel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from para_video.agent import RAY_DIM, RAYS_FROM_GRIPPER, ActionHead, Batch, Query, RobotState, VideoPolicy
from para_video.camera import Camera
from para_video.features import VideoFeatures, sampled, sinusoid
from para_video.heatmap import cell_centres, gaussian_targets, inside, masked_cross_entropy, pixels_to_cells
from para_video.layers import TokenBlock, places
from para_video.policy import Actions
from para_video.precision import autocast
from para_video.readout import PixelLogits, Readout, ReadoutSpec, Targets

TIME_DIM = 16
HEIGHT_DIM = 16
ROBOT_CONDITION = 3 + HEIGHT_DIM + 6
CONTEXT_DIM, PIXEL_DIM = 64, 256
PATCH, MIX_DIM = 4, 96
"""Cells a side of a token of the trunk's attention, and its length."""
PROBE_M, PROBE_PX = 0.1, 10.0
REACH_PX = 32.0
"""Pixels by which a displacement is divided on its way into the network: about what a gripper moves in one chunk."""


@dataclass(frozen=True)
class ActionMaps:
    """What the head says of t times of b clips.

    Args:
        heat: (b, t, h, w) logits of the gripper's cell. outside: (b, t) logit of "not visible", in the same softmax.
        embedding: (b, s, e, h', w') from which `read` takes its values at a pixel, and index: (t,) which of the s maps each time
            reads. context: (b, t, d) and start: (b, 2) pixel, or None: what it adds to them.
        size: (H, W) of the image that the maps lie over.
        head: the head that made them, for its pixel read-out.
        origin: (b,) metres that the z bins count from, or None for zero.
        volume: (b, t, z, h, w) joint logits, or None in the factorised form; then heat is its logsumexp over z.
    """

    heat: Tensor
    outside: Tensor
    embedding: Tensor
    index: Tensor
    context: Tensor
    start: Tensor | None
    size: tuple[int, int]
    head: ParaHead
    volume: Tensor | None = None
    origin: Tensor | None = None

    def read(self, pixels: Tensor) -> PixelLogits:
        """What the head reads at pixels (b, t, 2); beyond the border the border is read."""
        return self.head.read(self, pixels)

    def log_volume(self) -> Tensor:
        """(b, t, z, h, w) log-probability in nats of every cell and z bin; what is missing to one is "not visible".

        In the factorised form z is read at the embedding's cells and interpolated in between.
        """
        return self.head.log_volume(self)


class Trunk(nn.Module):
    """A backbone's maps laid over the image and mixed under what is known of the robot, and what is asked of them: what heads read.

    Each queried time reads the nearest map and is told the signed offset to it, so that one head serves predictive models (a map
    per time) and image models (one map, the future in the offset).

    Args:
        channels: of the feature maps. condition: length of the condition vector. side: cells a side, a multiple of `PATCH`.
        hidden: channels of the layers. layers: 3x3 convolutions. mixing: attention blocks that carry what is seen elsewhere in the
            image (where the goal is, and how high) to the cells that are read; 0 for none.
    """

    def __init__(self, channels: int, condition: int, *, side: int, hidden: int, layers: int, mixing: int) -> None:
        super().__init__()
        if side % PATCH or layers < 1 or mixing < 0:
            raise ValueError(f"side must be a multiple of {PATCH}, layers >= 1, mixing >= 0; got {side}, {layers}, {mixing}")
        self.side, self.condition = side, condition
        self.first = nn.Conv2d(channels, hidden, 3, 1, 1)
        self.start = nn.Parameter(torch.randn(hidden) * 0.5)
        self.rays = nn.Conv2d(RAY_DIM, hidden, 1, bias=False)
        self.mixer = GlobalMixer(hidden, condition, mixing) if mixing else None
        self.context = nn.Sequential(nn.Linear(2 * TIME_DIM + condition, CONTEXT_DIM), nn.SiLU())
        self.rest = nn.ModuleList(nn.Conv2d(hidden, hidden, 3, 1, 1) for _ in range(layers - 1))

    def forward(
        self, features: VideoFeatures, query: Query, start: Tensor | None, rays: Tensor | None, condition: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps (b, s, hidden, side, side), which of them each of t queried times reads (t,), and what is known at each time,
        (b, t, CONTEXT_DIM).

        Args:
            start: (b, 2) pixel of the gripper, or None. rays: (b, RAY_DIM, side, side) as `RobotState.ray_map` gives them, or
                None. condition: (b, condition); None counts as zeros.

        Raises:
            ValueError: a condition of another length than the trunk was built for.
        """
        b, t = len(features.maps), len(query.times)
        if condition is None:
            condition = features.maps.new_zeros(b, self.condition)
        if condition.shape != (b, self.condition):
            raise ValueError(f"condition must be {(b, self.condition)}, got {tuple(condition.shape)}")
        index, offset = features.nearest(query.times.to(features.times))
        used, index = index.unique(return_inverse=True)
        base = over_image(features, used, self.side, query.size)
        x = self.first(base.flatten(0, 1).contiguous(memory_format=torch.channels_last)).unflatten(0, (b, len(used)))
        if start is not None:
            x = x + (self._splat(start, query.size)[:, None, None] * self.start[:, None, None]).to(x.dtype)
        if rays is not None:
            x = x + self.rays(rays)[:, None]
        if self.mixer is not None:
            x = x + self.mixer(x, condition)
        when = torch.cat([sinusoid(offset, TIME_DIM), sinusoid(query.times.to(offset), TIME_DIM)], -1)
        context = self.context(torch.cat([when.expand(b, t, -1), condition[:, None].expand(-1, t, -1)], -1))
        x = F.silu(x).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        for layer in self.rest:
            x = F.silu(layer(x)) + x
        return x.unflatten(0, (b, len(used))), index, context

    def _splat(self, start: Tensor, size: tuple[int, int]) -> Tensor:
        """(b, h, w) bilinear weight of the start pixel on the layers' cells; nothing where it lies outside."""
        side = self.side
        cell = pixels_to_cells(start, (side, side), size)
        axis = torch.arange(side, device=start.device)
        weight_x = (1 - (axis - cell[:, :1]).abs()).clamp_min(0)
        weight_y = (1 - (axis - cell[:, 1:]).abs()).clamp_min(0)
        return weight_y[:, :, None] * weight_x[:, None, :]


class ParaHead(ActionHead):
    """Reads heatmaps off feature maps.

    What is asked (the time, the robot's state) becomes a kernel, and its product with the embedding of each cell is the cell's
    logit, as masks are drawn in MaskFormer (Cheng et al. 2021). The heatmap has `grid` cells a side; the `Trunk` works at half of
    that, and each of its cells gives four.

    Args:
        channels: of the feature maps. spec: what the bins mean. grid: heatmap cells per side. hidden, layers, mixing: see `Trunk`.
        condition: length of the condition vector; the default is that of a robot's state, see `robot_condition`.
        sigma_px: standard deviation of the target Gaussian in image pixels. jitter_px: in training, z, gripper and rotation are
            read this far (standard deviation) from the true pixel, as at test time they are read at a decoded one.
        start: whether the head is told where in the image the gripper is, and where rays go from there. opening: whether it is told
            the gripper's opening. Without them, to measure what they are worth.
        state_noise: in training, a factor on the noise of what it is told of the robot, see `RobotState.roughly`; pixels, rays and
            the height that bins count from are exact.
        path_px: how heatmaps are read, see `Readout`: 0 each by itself, else as one path of the gripper from target to target.
    """

    GRID, SIGMA_PX = 64, 2.0

    def __init__(
        self,
        channels: int,
        spec: ReadoutSpec,
        *,
        grid: int = GRID,
        hidden: int = 48,
        layers: int = 2,
        mixing: int = 2,
        condition: int = ROBOT_CONDITION,
        sigma_px: float = SIGMA_PX,
        jitter_px: float = 1.5,
        start: bool = True,
        opening: bool = True,
        state_noise: float = 1.0,
        path_px: float = 0.0,
    ) -> None:
        super().__init__()
        self.start, self.opening, self.state_noise = start, opening, state_noise
        if path_px < 0 or (path_px and not start):
            raise ValueError(f"path_px must be 0, or positive with a start to begin from; got {path_px} and start {start}")
        self.readout = Readout(spec, path_px=path_px)
        if grid % 8 or grid < 8:
            raise ValueError(f"grid must be a positive multiple of 8, got {grid}")
        if not (sigma_px > 0 and jitter_px >= 0):
            raise ValueError(f"sigma_px must be positive and jitter_px not negative, got {sigma_px} and {jitter_px}")
        self.spec, self.grid, self.sigma_px, self.jitter_px, self.condition = spec, grid, sigma_px, jitter_px, condition
        self.trunk = Trunk(channels, condition, side=grid // 2, hidden=hidden, layers=layers, mixing=mixing)
        self.kernel = nn.Linear(CONTEXT_DIM, 4 * (spec.z.count if spec.joint_volume else 1) * hidden)
        self.outside = nn.Linear(hidden + CONTEXT_DIM, 1)
        self.norm = nn.LayerNorm(hidden)
        outputs = (0 if spec.joint_volume else spec.z.count) + spec.gripper_bins + 3 * spec.rotation_bins
        self.pixel = nn.Sequential(
            nn.Linear(hidden + CONTEXT_DIM + 2, PIXEL_DIM),
            nn.SiLU(),
            nn.Linear(PIXEL_DIM, PIXEL_DIM),
            nn.SiLU(),
            nn.Linear(PIXEL_DIM, outputs),
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack memory_format

    def forward(
        self,
        features: VideoFeatures,
        *,
        times: Tensor,
        size: tuple[int, int],
        start: Tensor | None = None,
        rays: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> ActionMaps:
        """Read times (t,), in frames after the last observed one, off the features of b clips.

        Args:
            size: (H, W) of the image. start: (b, 2) pixel of the gripper in the last observed frame, or None where it is not
                known. rays: see `Trunk.forward`. condition: (b, condition) anything else the action depends on; None counts as
                zeros.

        Raises:
            ValueError: a condition of another length than the head was built for.
        """
        x, index, context = self.trunk(features, Query(times, size), start, rays, condition)
        kernel = self.kernel(context).unflatten(-1, (-1, x.shape[2])) * x.shape[2] ** -0.5
        heat = F.pixel_shuffle(_product(kernel, x, index), 2)
        whole = torch.cat([x.mean((-2, -1))[:, index], context.to(x.dtype)], -1)
        volume = heat if self.spec.joint_volume else None
        heat = heat.float().logsumexp(2) if self.spec.joint_volume else heat[:, :, 0]
        return ActionMaps(heat, self.outside(whole)[..., 0], x, index, context, start, size, self, volume)

    def read(self, maps: ActionMaps, pixels: Tensor) -> PixelLogits:
        """See `ActionMaps.read`."""
        h, w = maps.embedding.shape[-2:]
        cells = pixels_to_cells(pixels, (h, w), maps.size)
        with torch.autocast(cells.device.type, enabled=False):
            picked = self.norm(_at_cells(maps.embedding, maps.index, cells))
            moved = torch.zeros_like(pixels) if maps.start is None else (pixels - maps.start[:, None]) / REACH_PX
            logits = self.pixel(torch.cat([picked, maps.context.float(), moved.float()], -1))
        if maps.volume is not None:
            h, w = maps.volume.shape[-2:]
            cell = pixels_to_cells(pixels, (h, w), maps.size).round().long()
            flat = cell[..., 1].clamp(0, h - 1) * w + cell[..., 0].clamp(0, w - 1)
            z = maps.volume.flatten(-2).gather(-1, flat[..., None, None].expand(-1, -1, self.spec.z.count, 1))[..., 0]
        else:
            z, logits = logits[..., : self.spec.z.count], logits[..., self.spec.z.count :]
        rotation = logits[..., self.spec.gripper_bins :].unflatten(-1, (3, -1)) if self.spec.rotation_bins else None
        return PixelLogits(z, logits[..., : self.spec.gripper_bins], rotation)

    def log_volume(self, maps: ActionMaps) -> Tensor:
        """See `ActionMaps.log_volume`."""
        grid = (maps.heat.shape[-2], maps.heat.shape[-1])
        if maps.volume is not None:
            whole = torch.cat([maps.volume.float().flatten(-3), maps.outside.float()[..., None]], -1)
            return whole.log_softmax(-1)[..., :-1].unflatten(-1, (-1, *grid))
        t, (h, w) = len(maps.index), maps.embedding.shape[-2:]
        pixels = cell_centres((h, w), maps.size, maps.heat.device).repeat(t, 1).expand(len(maps.heat), -1, -1)
        everywhere = replace(
            maps, index=maps.index.repeat_interleave(h * w), context=maps.context.repeat_interleave(h * w, 1)
        )  # fmt: skip
        z = self.read(everywhere, pixels).z.log_softmax(-1).unflatten(1, (t, h, w)).movedim(-1, 2)
        z = F.interpolate(z.flatten(0, 1), grid, mode="bilinear", align_corners=False).unflatten(0, z.shape[:2]).log_softmax(2)
        heat = torch.cat([maps.heat.float().flatten(-2), maps.outside.float()[..., None]], -1).log_softmax(-1)
        return heat[..., :-1].unflatten(-1, grid)[:, :, None] + z

    # ---------------------------------------------------------------- the interface of heads

    def maps(self, features: VideoFeatures, query: Query, state: RobotState | None) -> ActionMaps:
        """The maps under a robot's state, or under none."""
        if state is None:
            return self(features, times=query.times, size=query.size)
        condition = self.robot_condition(state.roughly(self.state_noise) if self.training else state)
        rays = state.ray_map(self.trunk.side, query.size)
        if not self.start:
            rays[:, RAYS_FROM_GRIPPER] = 0
        start = state.pixel() if self.start else None
        maps = self(features, times=query.times, size=query.size, start=start, rays=rays, condition=condition)
        return replace(maps, origin=self._z(state)) if self.spec.relative else maps

    def _z(self, state: RobotState) -> Tensor:
        """(b,) the gripper's own height or distance."""
        return self.spec.z_of(state.position[:, None], state.camera)[:, 0]

    def robot_condition(self, state: RobotState) -> Tensor:
        """(b, ROBOT_CONDITION): a one that says the state is known; the gripper's opening over [-1, 1]; its height (or distance)
        in units of `PROBE_M`, with sines of it so that centimetres show; and how the image moves with the gripper, the pixels
        that it would shift by for `PROBE_M` along each world axis. They are what the camera means locally: without them a
        height cannot be told from pixels under an unknown zoom or roll.
        """
        z = self._z(state)
        opening = state.opening * 2 - 1 if self.opening else torch.zeros_like(z)
        known = torch.stack([torch.ones_like(z), opening, z / PROBE_M], -1)
        known = torch.cat([known, sinusoid(z * 100, HEIGHT_DIM)], -1)
        points = torch.cat([state.position[:, None], state.position[:, None] + PROBE_M * torch.eye(3).to(known)], 1)
        with torch.autocast(points.device.type, enabled=False):  # bf16 matrix products would drown the differences
            pixels, _ = state.camera.project(points)
        moved = (pixels[:, 1:] - pixels[:, :1]).flatten(1) / PROBE_PX
        return torch.cat([known, moved], -1)

    def loss(self, features: VideoFeatures, query: Query, batch: Batch) -> dict[str, Tensor]:
        """See `ActionHead.loss`."""
        maps = self.maps(features, query, batch.state)
        return self.losses(maps, batch.targets, batch.state.camera if batch.state else None)

    def predict(self, features: VideoFeatures, query: Query, state: RobotState) -> Actions:
        """See `ActionHead.predict`."""
        self.check_times(query.times)
        return self.readout.decode(self.maps(features, query, state), state.camera)

    def check_times(self, times: Tensor) -> None:
        """Raises ValueError where heatmaps of these times are no path from now on that `path_px` could be of."""
        if not self.readout.path_px:
            return
        even = times[:1] * torch.arange(1, len(times) + 1).to(times)
        if times[0] <= 0 or not torch.allclose(times, even):
            raise ValueError(f"path_px needs evenly spaced times that begin after now, got {times.tolist()}")

    def losses(self, maps: ActionMaps, targets: Targets, camera: Camera | None) -> dict[str, Tensor]:
        """Cross-entropies in nats of everything that is labelled, by name: heat, z, gripper, rotation.

        Args:
            maps: of b clips and t times. targets: see `Targets`. camera: (b,), needed where positions are given.
        """
        spec, grid = self.spec, (self.grid, self.grid)
        goal = gaussian_targets(targets.pixels, targets.visible, grid, maps.size, self.sigma_px)
        heat = torch.cat([maps.heat.flatten(-2), maps.outside[..., None]], -1)
        if targets.positions is None:
            return {"heat": masked_cross_entropy(heat, goal, targets.labelled)}
        known = _both(targets.visible & inside(targets.pixels, maps.size), targets.labelled)
        placed = _both(known, targets.position_mask)
        if camera is None:
            raise ValueError("the targets have positions, but there is no camera to see them by; pass one or leave positions out")
        z = spec.z_of(targets.positions, camera)
        goal_z = spec.z.targets(z if maps.origin is None else z - maps.origin[:, None])
        pixels = torch.where(known[..., None], targets.pixels, torch.zeros_like(targets.pixels))
        if self.training:
            pixels = pixels + self.jitter_px * torch.randn_like(pixels)
        read = self.read(maps, pixels)
        if maps.volume is None:
            losses = {
                "heat": masked_cross_entropy(heat, goal, targets.labelled),
                "z": masked_cross_entropy(read.z, goal_z, placed),
            }
        else:
            # one softmax over (z, h, w): entries without a position supervise its marginal, the heatmap; all count alike
            joint = torch.cat([maps.volume.flatten(-3), maps.outside[..., None]], -1)
            goal_joint = torch.cat(
                [rearrange(goal_z[..., None] * goal[..., None, :-1], "b t z n -> b t (z n)"), goal[..., -1:]], -1
            )
            flat = _both(~placed, targets.labelled)
            share = placed.sum() / (placed | flat).sum().clamp_min(1)
            whole, marginal = masked_cross_entropy(joint, goal_joint, placed), masked_cross_entropy(heat, goal, flat)
            losses = {"heat": share * whole + (1 - share) * marginal}
        if targets.gripper is not None:
            goal_gripper = spec.gripper_targets(targets.gripper)
            losses["gripper"] = masked_cross_entropy(read.gripper, goal_gripper, _both(known, targets.gripper_mask))
        if targets.rotations is not None and read.rotation is not None:
            goal_rotation = spec.angles.targets(spec.rotation_angles(targets.rotations))
            mask = _both(known, targets.rotation_mask)[..., None].expand(goal_rotation.shape[:-1])
            losses["rotation"] = masked_cross_entropy(read.rotation, goal_rotation, mask)
        return losses


@torch.no_grad()
def action_maps(policy: VideoPolicy, clip: Tensor, state: RobotState) -> ActionMaps:
    """What a policy with PARA's head says of clips (b, t, 3, H, W), in the precision of `VideoPolicy.predict`.

    Raises:
        ValueError: its head is another.
    """
    if not isinstance(policy.head, ParaHead):
        raise ValueError(f"{type(policy.head).__name__} has no heatmaps; pass a policy whose head is ParaHead")
    with autocast(clip.device):
        features, query = policy.features(clip, state=state)
        return policy.head.maps(features, query, state)


class GlobalMixer(nn.Module):
    """Attention among patches of a map and the robot's condition: what is read at the gripper's pixel depends on things elsewhere.

    Args:
        channels: of the maps. condition: length of the vector. layers: attention blocks.
    """

    def __init__(self, channels: int, condition: int, layers: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(channels, MIX_DIM, PATCH, PATCH)
        self.condition = nn.Linear(condition, MIX_DIM)
        self.blocks = nn.Sequential(*(TokenBlock(MIX_DIM, 4, 2) for _ in range(layers)))
        self.back = nn.Conv2d(MIX_DIM, channels, 1)

    def forward(self, maps: Tensor, condition: Tensor) -> Tensor:
        """What to add to maps (b, s, c, h, w) under conditions (b, condition)."""
        b, s, _, h, w = maps.shape
        patches = self.patch(F.silu(maps).flatten(0, 1).contiguous(memory_format=torch.channels_last))
        rows, columns = patches.shape[-2:]
        tokens = patches.flatten(2).mT + places(rows, columns, MIX_DIM, maps.device).to(patches.dtype)
        known = self.condition(condition).to(tokens.dtype).repeat_interleave(s, 0)[:, None]
        mixed = self.blocks(torch.cat([known, tokens], 1))[:, 1:]
        back = self.back(mixed.mT.unflatten(-1, (rows, columns)).contiguous(memory_format=torch.channels_last))
        return F.interpolate(back, (h, w), mode="bilinear", align_corners=False).unflatten(0, (b, s))


def _product(kernel: Tensor, maps: Tensor, index: Tensor) -> Tensor:
    """(b, t, k, h, w): the product of each cell of maps (b, s, c, h, w) with kernels (b, t, k, c), where time i reads map index[i].

    All kernels meet all maps: in channels_last that is one matrix product, and choosing from its few channels costs less than
    copying maps.
    """
    (t, k), (s, _, h, w) = kernel.shape[1:3], maps.shape[1:]
    cells = maps.movedim(2, -1).flatten(1, 3)
    met = (kernel.flatten(1, 2).to(cells.dtype) @ cells.mT).view(-1, t, k, s, h, w)
    return met.gather(3, index.view(1, t, 1, 1, 1, 1).expand(len(met), -1, k, -1, h, w))[:, :, :, 0]


def over_image(features: VideoFeatures, used: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """Maps (b, u, c, side, side) of the indices `used` (u,), laid over the whole image of size (H, W), whatever crop or
    padding the backbone made; beyond a map's border the border is repeated."""
    first, count = int(used[0]), len(used)
    together = int(used[-1]) - first + 1 == count  # a slice keeps the memory's layout, which an index does not
    maps = features.maps[:, first : first + count] if together else features.maps.index_select(1, used)
    affine = features.image_to_map
    step = torch.tensor([size[1] / side, size[0] / side]).to(affine)
    same = maps.shape[-2:] == (side, side) and torch.allclose(affine[:, :2].diagonal() * step, torch.ones(2).to(affine))
    if same and torch.allclose(affine[:, 2], 0.5 / step - 0.5):
        return maps
    axis = torch.arange(side, device=maps.device, dtype=affine.dtype)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    pixels = (torch.stack([columns, rows], -1) + 0.5) * step - 0.5
    with torch.autocast(maps.device.type, enabled=False):
        cells = pixels @ affine[:, :2].mT + affine[:, 2]
    return sampled(maps.flatten(0, 1), cells.expand(maps.shape[0] * maps.shape[1], -1, -1, -1)).unflatten(0, maps.shape[:2])


def _both(mask: Tensor, other: Tensor | None) -> Tensor:
    return mask if other is None else mask & other


def _at_cells(maps: Tensor, index: Tensor, cells: Tensor) -> Tensor:
    """Bilinear values (b, t, c) in float32 of maps (b, s, c, h, w) at fractional cells (b, t, 2); time i reads map index[i].
    Clamped to the map."""
    h, w = maps.shape[-2:]
    limit = cells.new_tensor([w - 1, h - 1])
    cells = torch.minimum(cells.clamp_min(0), limit)
    low = torch.minimum(cells.floor(), (limit - 1).clamp_min(0))
    part = cells - low
    corner = (index * h + low[..., 1].long()) * w + low[..., 0].long()
    corners = torch.stack([corner, corner + 1, corner + w, corner + w + 1], -1)
    x, y = part.unbind(-1)
    weight = torch.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y], -1)
    table = maps.movedim(2, -1).flatten(1, 3)
    picked = table.gather(1, corners.flatten(1, 2)[..., None].expand(-1, -1, table.shape[-1])).unflatten(1, corners.shape[1:])
    return (picked.float() * weight[..., None]).sum(-2)
