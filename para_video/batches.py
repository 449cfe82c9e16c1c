"""Training batches: chunks of demonstrations, with augmentation that keeps camera and labels exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from para_video.agent import Batch, RobotState
from para_video.camera import Camera, look_at
from para_video.circles import CircleVideos
from para_video.demos import Demo
from para_video.readout import Targets, matrix_from_euler
from para_video.repaint import Palette, repainted

T = TypeVar("T")
OVERHEAD_FOV_DEG = 40.0
"""Of the camera over circles that play a robot: its image is 0.73 m wide, about as much as a robot's camera shows of a table."""


@dataclass(frozen=True)
class Augmentation:
    """Ranges of random changes, drawn once per clip.

    Args:
        roll_deg, turn_deg: the camera is rotated about its own centre: about the view axis, and sideways and up or down.
        zoom: the focal length changes by up to this factor. All three warp the image by an exact homography.
        stretch: up to this factor between the focal lengths along x and y. crop: the principal point is moved by up to this share
            of the image, as if another part were cropped. Both are homographies too.
        orbit_deg: the camera goes around the vertical axis through the point of the plane z = `plane_m` that it looks at, by up to
            this angle. The image is exact, but of a world whose upright things lean, see `para_video.camera.Camera.orbited`.
        plane_m: world z of what things stand on.
        repaint: probability that a clip's surroundings, large surfaces of one colour (table, wall, arm, floor), are painted anew,
            see `para_video.repaint`: a policy is then not to rely on how they look.
        paste: patches of other demonstrations that are pasted into a clip. paste_size: least and most of their height and width, as
            shares of the image's. paste_away: how far, as a share of its width, they stay from wherever the demonstration's
            gripper comes: what is handled is not hidden, and labels stay.
        gain, bias: standard deviations of a factor and an offset per colour channel. noise: of pixel noise.
        mirror: probability that the clip is seen in a mirror, which shows another scene at no cost: image, camera, robot and
            targets are reflected together. The robot's condition tells the two worlds apart, where a task has a handedness.
        mirror_normal: of the mirror, which stands in the world's origin; along x it stands in the robot's own symmetry plane
            for a robot that faces along y.
        shift_m: the world's origin is moved by up to this far along x and y, under camera, robot and targets alike: what is
            learned of places in the world is then smooth.
    """

    roll_deg: float = 25.0
    turn_deg: float = 8.0
    zoom: float = 1.25
    gain: float = 0.2
    bias: float = 0.1
    noise: float = 0.01
    mirror: float = 0.5
    mirror_normal: tuple[float, float, float] = (1.0, 0.0, 0.0)
    shift_m: float = 0.04
    stretch: float = 1.0
    crop: float = 0.0
    orbit_deg: float = 0.0
    plane_m: float = 0.0
    repaint: float = 0.0
    paste: int = 0
    paste_size: tuple[float, float] = (0.06, 0.25)
    paste_away: float = 0.1


class CircleBatches(Dataset):
    """Item i is the whole batch of circle clips of training step i, the same bytes whenever it is asked for.

    Most batches ask for the last observed frame and the future ones, which is what takes long to learn and costs a backbone least.
    Some ask for every observed frame too, and some show the last one alone, since that is all that most robot policies see.

    Args:
        circles: to draw clips from; `observed` frames of each are seen. batch_size: clips. track, still: shares of the batches that
            ask for every frame, and that show one. planar: whether batches are given a robot, see `circle_batch`.
        rank, processes: of this process; all draw different clips.
    """

    def __init__(
        self,
        circles: CircleVideos,
        *,
        batch_size: int,
        track: float = 0.08,
        still: float = 0.05,
        planar: bool = False,
        rank: int = 0,
        processes: int = 1,
        length: int = 2**31,
    ) -> None:
        self.circles, self.batch_size, self.track, self.still, self.planar = circles, batch_size, track, still, planar
        self.rank, self.processes, self.length = rank, processes, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, step: int) -> Batch:
        first = (step * self.processes + self.rank) * self.batch_size
        kind = np.random.default_rng((self.circles.seed, step, 1)).random()
        context = 1 if kind < self.still else self.circles.observed
        since = 1 - context if kind < self.still + self.track else 0
        return circle_batch(self.circles, range(first, first + self.batch_size), context, since, planar=self.planar)


def circle_batch(
    circles: CircleVideos, indices: Sequence[int], context: int, since: int | None = None, *, planar: bool = False
) -> Batch:
    """Clips by index, of whose observed frames the last `context` are shown; targets are the shown frames from time `since` on
    (default all) and the future ones.

    Args:
        planar: regression needs a robot and places in the world: the circle is then the gripper of one that moves in the plane
            z = 0 under a camera that looks straight down. It is told where the circle is in the last observed frame, which a head
            that is given no robot has to see.
    """
    clips = [circles.shown(i) for i in indices]
    hidden = circles.observed - context
    video = torch.stack([clip.video[hidden:] for clip in clips]).float() / 255
    first = hidden if since is None else circles.observed - 1 + since
    centres, visible = (
        torch.stack(part)[:, first:] for part in zip(*((clip.centres, clip.visible) for clip in clips), strict=True)
    )
    times = torch.arange(centres.shape[1]) + (first - circles.observed + 1.0)
    if not planar:
        return Batch(video, Targets(centres, visible), times=times)
    b, size = len(clips), (video.shape[-2], video.shape[-1])
    above = look_at(torch.tensor([0.0, 0.6, 1.0]), torch.tensor([0.0, 0.6, 0.0]), torch.tensor([0.0, 1.0, 0.0]))
    camera = Camera.from_fov(OVERHEAD_FOV_DEG, size, above.expand(b, 4, 4))
    present = torch.stack([clip.centres[circles.observed - 1] for clip in clips])
    shown = torch.cat([present[:, None], centres], 1)
    places = camera.lift_at_height(shown, torch.zeros(shown.shape[:2]))
    state = RobotState(camera, places[:, 0], torch.eye(3).expand(b, 3, 3), torch.full((b,), 0.5))
    return Batch(video, Targets(centres, visible, positions=places[:, 1:], position_mask=visible), state, times)


def warp_images(images: Tensor, homography: Tensor) -> Tensor:
    """Re-render images (b, c, H, W) through (b, 3, 3) homographies with old_pixel ~ H new_pixel; beyond the border the border is
    repeated."""
    h, w = images.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    pixels = torch.stack([columns, rows, torch.ones_like(rows)], -1).to(homography).view(1, -1, 3)
    old = pixels @ homography.mT
    old = old[..., :2] / old[..., 2:]
    grid = (old + 0.5) * torch.tensor([2 / w, 2 / h]).to(old) - 1
    return F.grid_sample(images, grid.view(-1, h, w, 2), padding_mode="border", align_corners=False)


def random_camera_warp(
    camera: Camera, augmentation: Augmentation, generator: torch.Generator, size: tuple[int, int]
) -> tuple[Camera, Tensor]:
    """Cameras (b,) of images of size (H, W), turned, zoomed, stretched and cropped at random, and the homographies (b, 3, 3) from
    new to old pixels."""
    b = camera.batch_shape[0]
    draw = lambda *shape: torch.rand(*shape, generator=generator) * 2 - 1  # noqa: E731
    angles = draw(b, 3) * torch.deg2rad(torch.tensor([augmentation.turn_deg, augmentation.turn_deg, augmentation.roll_deg]))
    zoom = augmentation.zoom ** draw(b)
    camera, homography = camera.warped(zoom, matrix_from_euler(angles))
    if augmentation.stretch == 1 and augmentation.crop == 0:
        return camera, homography
    wider = augmentation.stretch ** (draw(b) / 2)
    change = torch.diag_embed(torch.stack([wider, 1 / wider, torch.ones(b)], -1))
    change[:, :2, 2] = augmentation.crop * draw(b, 2) * torch.tensor([size[1], size[0]])
    middle = torch.tensor([[1.0, 0, (size[1] - 1) / 2], [0, 1, (size[0] - 1) / 2], [0, 0, 1]])
    change = middle @ change @ torch.linalg.inv(middle)  # new_pixel ~ change old_pixel, about the image's middle
    return replace(camera, intrinsics=change @ camera.intrinsics), homography @ torch.linalg.inv(change)


def random_colours(clip: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Clips (b, t, 3, H, W) with random gain and bias per clip and channel, and pixel noise; within [0, 1]."""
    b = len(clip)
    gain = 1 + augmentation.gain * torch.randn(b, 1, 3, 1, 1, generator=generator)
    bias = augmentation.bias * torch.randn(b, 1, 3, 1, 1, generator=generator)
    noise = augmentation.noise * torch.randn(clip.shape, generator=generator)
    return ((clip - 0.5) * gain + 0.5 + bias + noise).clamp(0, 1)


class DemoBatches(Dataset):
    """Item i is the whole batch of training step i, the same bytes whenever it is asked for.

    Targets beyond a demonstration's end are not supervised: were the gripper said to rest there, a policy would learn to stop
    wherever the picture looks as it does at the end.

    Args:
        demos: to draw from. batch_size: clips. chunk: future targets. stride: control steps between frames and between targets.
        context: observed frames. future: frames to show beside the observed ones, see `Batch`. augmentation: None for none.
        seed, rank: of the draws; processes with different ranks draw different clips.

    Raises:
        ValueError: no demonstrations, or frames of different sizes.
    """

    def __init__(
        self,
        demos: Sequence[Demo],
        *,
        batch_size: int,
        chunk: int,
        stride: int,
        context: int = 1,
        future: int = 0,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        rank: int = 0,
        length: int = 2**31,
    ) -> None:
        if not demos:
            raise ValueError("no demonstrations to train on; record at least one")
        if len(sizes := {demo.frames.shape[1:3] for demo in demos}) > 1:
            raise ValueError(f"demonstrations have frames of {sorted(sizes)} (height, width); resize them, cameras with them")
        self.batch_size, self.stride, self.context, self.augmentation = batch_size, stride, context, augmentation
        self.seed, self.rank, self.length, self.chunk = seed, rank, length, chunk
        self.demos = list(demos)
        # where the gripper is sent by the last command, only the command tells
        self.known = [len(demo) - (demo.moves is None) for demo in demos]
        self.steps = [(d, k) for d, known in enumerate(self.known) for k in range(max(1, known - stride + 1))]
        self.shown = stride * np.arange(1 - context, 1 + future)
        self.ahead = stride * np.arange(1, chunk + 1)
        self.frames = [torch.from_numpy(demo.frames).permute(0, 3, 1, 2) for demo in self.demos]
        if augmentation is not None and augmentation.repaint:
            palette = Palette.of([demo.frames[k] for demo in self.demos for k in (0, len(demo) // 2, len(demo) - 1)])
            self.surfaces = [palette.surfaces(frames) for frames in self.frames]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((self.seed, step, self.rank))
        chosen = [self.steps[i] for i in rng.integers(len(self.steps), size=self.batch_size)]
        batch = self.augment(self.gather(chosen), chosen, int(rng.integers(2**62)))
        if batch.clip.shape[1] == self.context:
            return batch
        return replace(batch, clip=batch.clip[:, : self.context], future=batch.clip[:, self.context :])

    def gather(self, steps: Sequence[tuple[int, int]]) -> Batch:
        """The batch of given (demo, step) pairs, unaugmented; observed and future frames are all in its clip. Beyond its ends, a
        demonstration's first and last frame stand still."""
        rows = [self._row(d, k) for d, k in steps]
        clips, positions, gripper, rotations, known, turned, position, rotation, opening = (
            torch.stack(column) for column in zip(*rows, strict=True)
        )
        state = RobotState(Camera.stack([self.demos[d].camera for d, _ in steps]), position, rotation, opening)
        pixels, depth = state.camera.project(positions)
        masks = {"labelled": known, "position_mask": known, "gripper_mask": known, "rotation_mask": turned}
        targets = Targets(pixels, depth > 0, positions=positions, gripper=gripper, rotations=rotations, **masks)
        return Batch(clips.float() / 255, targets, state)

    def augment(self, batch: Batch, steps: Sequence[tuple[int, int]], seed: int) -> Batch:
        """What `gather` gave of steps, under random changes of a seed."""
        if self.augmentation is None:
            return batch
        if self.augmentation.repaint:
            batch = replace(
                batch, clip=self._repainted(batch.clip, steps, self.augmentation.repaint, np.random.default_rng((seed, 2)))
            )
        if self.augmentation.paste:
            batch = replace(batch, clip=self._pasted(batch.clip, steps, self.augmentation, np.random.default_rng((seed, 1))))
        return augmented(batch, self.augmentation, torch.Generator().manual_seed(seed))

    def _repainted(self, clips: Tensor, steps: Sequence[tuple[int, int]], probability: float, rng: np.random.Generator) -> Tensor:
        """Clips (b, t, 3, H, W) of steps, each with other surroundings by a probability; the rest is how a policy starts out."""
        clips = clips.clone()
        for clip, (d, k) in zip(clips, steps, strict=True):
            if rng.random() < probability:
                clip[:] = repainted(clip, self.surfaces[d][self._shown(d, k)], rng)
        return clips

    def _pasted(
        self, clips: Tensor, steps: Sequence[tuple[int, int]], augmentation: Augmentation, rng: np.random.Generator
    ) -> Tensor:
        """Clips (b, t, 3, H, W) of steps with patches of other demonstrations in them; of the same one where there is no other."""
        clips = clips.clone()
        for clip, (d, _) in zip(clips, steps, strict=True):
            path, _ = self.demos[d].camera.project(torch.from_numpy(self.demos[d].positions))
            donors = [step for step in self.steps if step[0] != d] or self.steps
            for _ in range(augmentation.paste):
                e, k = donors[rng.integers(len(donors))]
                donor = self.frames[e][self._shown(e, k)].float() / 255
                paste_patch(clip, donor, path, augmentation, rng)
        return clips

    def _shown(self, d: int, k: int) -> np.ndarray:
        """Rows of a demonstration that a clip shows; beyond its ends, the first or the last one again."""
        return np.clip(k + self.shown, 0, len(self.demos[d]) - 1)

    def _row(self, d: int, k: int) -> tuple[Tensor, ...]:
        demo = self.demos[d]
        targets, gripper = demo.targets(np.array([k]), chunk=self.chunk, stride=self.stride)
        at = k + self.ahead
        rotations = demo.rotations[np.minimum(at, len(demo) - 1)]
        masks = (at <= self.known[d], at < len(demo))  # what follows its end, a demonstration does not say
        now = (demo.positions[k], demo.rotations[k], demo.openings[k])
        return (
            self.frames[d][self._shown(d, k)],
            *map(torch.as_tensor, (targets[0], gripper[0], rotations, *masks, *now)),
        )


def paste_patch(clip: Tensor, donor: Tensor, path: Tensor, augmentation: Augmentation, rng: np.random.Generator) -> None:
    """Paste a random rectangle of a donor into a clip, both (t, 3, H, W), away from a path (n, 2) of pixels.

    Where no such place is found in a few draws, nothing is pasted.
    """
    h, w = clip.shape[-2:]
    away = augmentation.paste_away * w
    low, high = augmentation.paste_size
    for _ in range(8):
        height, width = (max(1, round(share * side)) for share, side in zip(rng.uniform(low, high, 2), (h, w), strict=True))
        y, x, from_y, from_x = (int(rng.integers(s - part + 1)) for s, part in ((h, height), (w, width)) * 2)
        corner, far = torch.tensor([x, y]), torch.tensor([x + width - 1, y + height - 1])
        nearest = torch.minimum(torch.maximum(path, corner), far)
        if (path - nearest).norm(dim=-1).min() >= away:
            clip[..., y : y + height, x : x + width] = donor[..., from_y : from_y + height, from_x : from_x + width]
            return


def _given(part: T | None, name: str) -> T:
    if part is None:
        raise ValueError(f"the batch has no {name}, which must follow the camera; clips of demonstrations have them")
    return part


def augmented(batch: Batch, augmentation: Augmentation, generator: torch.Generator) -> Batch:
    """The batch, in part mirrored and in a shifted world, seen by randomly moved, turned and zoomed cameras in random colours;
    pixel labels follow exactly."""
    batch = mirrored(batch, augmentation, torch.rand(len(batch.clip), generator=generator) < augmentation.mirror)
    batch = shifted(batch, augmentation.shift_m * (torch.rand(len(batch.clip), 2, generator=generator) * 2 - 1))
    b, t, _, *size = batch.clip.shape
    around = None
    if augmentation.orbit_deg:
        angle = torch.deg2rad(augmentation.orbit_deg * (torch.rand(b, generator=generator) * 2 - 1))
        batch, around = orbited(batch, angle, augmentation.plane_m)
    state = _given(batch.state, "robot state")
    camera, turned = random_camera_warp(state.camera, augmentation, generator, (size[0], size[1]))
    homography = turned if around is None else around @ turned
    clip = warp_images(batch.clip.flatten(0, 1), homography.repeat_interleave(t, 0)).unflatten(0, (b, t))
    clip = random_colours(clip, augmentation, generator)
    pixels, depth = camera.project(_given(batch.targets.positions, "positions"))
    targets = replace(batch.targets, pixels=pixels, visible=depth > 0)
    return Batch(clip, targets, replace(state, camera=camera))


def mirrored(batch: Batch, augmentation: Augmentation, chosen: Tensor) -> Batch:
    """The batch with the chosen clips (b,) seen in a mirror. The gripper's own frame is reflected at its first axis, so that its
    rotations stay rotations."""
    normal = torch.tensor(augmentation.mirror_normal)
    across = torch.eye(3) - 2 * normal[:, None] * normal / normal.square().sum()
    own = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
    state, targets = _given(batch.state, "robot state"), batch.targets
    flipped = state.camera.mirrored(batch.clip.shape[-1], across)

    def choose(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(chosen.view(-1, *[1] * (old.ndim - 1)), new, old)

    def reflect(points: Tensor) -> Tensor:
        return choose(points @ across, points)

    def turn(rotations: Tensor) -> Tensor:
        return choose(across @ rotations @ own, rotations)

    camera = Camera(
        choose(flipped.intrinsics, state.camera.intrinsics), choose(flipped.world_T_camera, state.camera.world_T_camera)
    )
    positions = reflect(_given(targets.positions, "positions"))
    rotations = turn(_given(targets.rotations, "rotations"))
    pixels, depth = camera.project(positions)
    return Batch(
        choose(batch.clip.flip(-1), batch.clip),
        replace(targets, pixels=pixels, visible=depth > 0, positions=positions, rotations=rotations),
        replace(state, camera=camera, position=reflect(state.position), rotation=turn(state.rotation)),
    )


def orbited(batch: Batch, angle: Tensor, plane_m: float) -> tuple[Batch, Tensor]:
    """Robot and labels before cameras that went around by angles (b,) in radians, the images as they were, and the homographies
    (b, 3, 3) from new to old pixels that are still to be applied to them; see `para_video.camera.Camera.orbited`. Rotations
    stay as they were."""
    state, targets = _given(batch.state, "robot state"), batch.targets
    camera, homography, lean = state.camera.orbited(angle, plane_m)
    shear = lambda points: points + lean[:, None] * (points[..., 2:] - plane_m)  # noqa: E731
    positions = shear(_given(targets.positions, "positions"))
    pixels, depth = camera.project(positions)
    state = replace(state, camera=camera, position=shear(state.position[:, None])[:, 0])
    return replace(batch, targets=replace(targets, pixels=pixels, visible=depth > 0, positions=positions), state=state), homography


def shifted(batch: Batch, offset: Tensor) -> Batch:
    """The same clips in worlds whose x and y are larger by offset (b, 2) metres."""
    state, offset = _given(batch.state, "robot state"), F.pad(offset, (0, 1))
    pose = state.camera.world_T_camera.clone()
    pose[:, :3, 3] += offset
    camera = replace(state.camera, world_T_camera=pose)
    targets = replace(batch.targets, positions=_given(batch.targets.positions, "positions") + offset[:, None])
    return replace(batch, targets=targets, state=replace(state, camera=camera, position=state.position + offset))
