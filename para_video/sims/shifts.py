"""What differs between training and test: camera, looks, distractors, workspace, sensor and calibration, each a small value.

`ShiftedEnv` is a Meta-World task under such a shift. A seed is the same episode under all of them: only `workspace` moves objects
and goals.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from skimage.filters import gaussian
from torch import Tensor

from para_video.camera import Camera, rotation_about
from para_video.features import did_you_mean
from para_video.policy import Observation, StepResult
from para_video.sims.metaworld import CameraPlacement, MetaWorldEnv, MetaWorldState
from para_video.sims.scenery import SHAPES, Sweep, hide_distractors, paint, place_distractors, sweep_of, with_distractors

RECIPE = 1
"""Version of how looks and distractors are drawn; what was recorded with another one is not read."""

WORKSPACES = {"left": (0, False), "right": (0, True), "near": (1, False), "far": (1, True)}
"""Axis of the world, and whether it is the upper half; left and right, near and far are the robot's own."""

SMALLEST_FREEDOM_M = 0.04
EXPERT_STEPS = 250
_DRAWN = ("geom_xpos", "geom_xmat", "site_xpos", "site_xmat", "light_xpos", "light_xdir")
"""Of MuJoCo's data, what a picture depends on."""


def _part(low: float, high: float, default: float = 0.0) -> Any:
    return field(default=default, metadata={"limits": (low, high)})


@dataclass(frozen=True)
class Shift:
    """A difference from the training setting; the default is none.

    As text it is `azimuth=18,look=2`: the parts that are not at their defaults, or `none`.

    Args:
        azimuth, elevation, roll: degrees added to the camera's; see `CameraPlacement`. distance: metres added to its.
        look: 0 is the training look; every other number is another one, see `para_video.sims.scenery.paint`.
        distractors: objects that stand around; the expert, the camera and the task are not disturbed by them.
        workspace: "left", "right", "near" or "far": that half of what a reset may draw for each object and goal; "" is all of it.
        noise: standard deviation of the noise on every pixel, of a full scale of 1. blur: of the Gaussian that blurs, pixels.
        latency: control steps that frames arrive late. state_latency: control steps that what is observed of the robot does.
        calibration_deg, calibration_px: how far the camera that policies are told is turned about its own centre, and its
            principal point is moved; in a direction that each seed draws. The picture is the true camera's.

    Raises:
        ValueError: a part outside its limits.
    """

    azimuth: float = _part(-360, 360)
    elevation: float = _part(-45, 35)
    distance: float = _part(-0.6, 2)
    roll: float = _part(-360, 360)
    look: int = _part(0, 10**6, 0)
    distractors: int = _part(0, len(SHAPES), 0)
    workspace: str = ""
    noise: float = _part(0, 1)
    blur: float = _part(0, 16)
    latency: int = _part(0, 100, 0)
    state_latency: int = _part(0, 100, 0)
    calibration_deg: float = _part(0, 45)
    calibration_px: float = _part(0, 100)

    def __post_init__(self) -> None:
        if self.workspace and self.workspace not in WORKSPACES:
            raise ValueError(f"unknown workspace {self.workspace!r}; choose from {', '.join(WORKSPACES)}")
        for part in fields(self):
            if "limits" in part.metadata:
                (low, high), value = part.metadata["limits"], getattr(self, part.name)
                if not low <= value <= high:
                    raise ValueError(f"{part.name} must be between {low} and {high}, got {value}")
                if isinstance(part.default, int) and value != int(value):
                    raise ValueError(f"{part.name} must be a whole number, got {value}")

    @classmethod
    def parse(cls, text: str) -> Shift:
        """The shift that a text such as `azimuth=18,look=2` names.

        Raises:
            ValueError: an unknown part, one named twice, or a value that it does not take.
        """
        known: dict[str, Callable[[str], Any]] = {part.name: type(part.default) for part in fields(cls)}
        found: dict[str, Any] = {}
        for item in text.split(",") if text.strip() not in ("", "none") else []:
            name, _, value = (piece.strip() for piece in item.partition("="))
            if name not in known:
                raise ValueError(f"unknown shift {name!r} in {text!r}; choose from {', '.join(known)}{did_you_mean([name], known)}")
            if name in found:
                raise ValueError(f"{name} is named twice in {text!r}; name it once")
            try:
                found[name] = known[name](value)
            except ValueError as error:
                kind = "a whole number" if known[name] is int else "a number"
                raise ValueError(f"{name} wants {kind} after its =, got {item.strip()!r}") from error
        return cls(**found)

    def __str__(self) -> str:
        parts = ((part.name, getattr(self, part.name)) for part in fields(self) if getattr(self, part.name) != part.default)
        return ",".join(f"{name}={_plain(value)}" for name, value in parts) or "none"

    def __and__(self, other: Shift) -> Shift:
        """Both shifts at once.

        Raises:
            ValueError: they set the same part to different values.
        """
        mine, theirs = _set_parts(self), _set_parts(other)
        clash = [name for name in mine.keys() & theirs.keys() if mine[name] != theirs[name]]
        if clash:
            raise ValueError(f"{self} and {other} both set {', '.join(sorted(clash))}; set it in one of them")
        return Shift(**mine, **{name: value for name, value in theirs.items() if name not in mine})

    def moved(self, placement: CameraPlacement) -> CameraPlacement:
        """Where the camera stands."""
        return replace(
            placement,
            azimuth_deg=placement.azimuth_deg + self.azimuth,
            elevation_deg=placement.elevation_deg + self.elevation,
            distance_m=placement.distance_m + self.distance,
            roll_deg=placement.roll_deg + self.roll,
        )

    def miscalibrated(self, camera: Camera, seed: int) -> Camera:
        """What policies are told of a true, unbatched camera in a seed's episode."""
        rng = np.random.default_rng((seed, 4))
        axis, direction = rng.standard_normal(3), rng.uniform(0, 2 * np.pi)
        if not (self.calibration_deg or self.calibration_px):
            return camera
        K, pose = camera.intrinsics.clone(), camera.world_T_camera.clone()
        pose[:3, :3] = (pose[:3, :3].double() @ rotation_about(axis.tolist(), self.calibration_deg)).to(pose)
        K[:2, 2] += self.calibration_px * torch.tensor([math.cos(direction), math.sin(direction)]).to(K)
        return replace(camera, intrinsics=K, world_T_camera=pose)

    def sensed(self, frame: np.ndarray, seed: int, step: int) -> np.ndarray:
        """A frame (H, W, 3) uint8 after blur and noise; a step of an episode always has the same noise."""
        if not (self.blur or self.noise):
            return frame
        image = frame.astype(np.float32)
        if self.blur:
            image = gaussian(image, self.blur, mode="nearest", truncate=3, channel_axis=-1)
        if self.noise:
            image += 255 * self.noise * np.random.default_rng((seed, 6, step)).standard_normal(image.shape, np.float32)
        return np.clip(np.round(image), 0, 255).astype(np.uint8)


NO_SHIFT = Shift()
TRAINING_CAMERA = CameraPlacement()


def parse_shifts(text: str) -> list[Shift]:
    """The shifts of a text such as `azimuth=18; look=2,noise=0.05`, separated by semicolons.

    Raises:
        ValueError: see `Shift.parse`; or one of them is there twice.
    """
    shifts = [Shift.parse(part) for part in text.split(";") if part.strip()]
    twice = [str(shift) for index, shift in enumerate(shifts) if shift in shifts[:index]]
    if twice:
        raise ValueError(f"{text!r} names {twice[0]} twice; name each shift once")
    return shifts


def _set_parts(shift: Shift) -> dict[str, Any]:
    return {part.name: value for part in fields(shift) if (value := getattr(shift, part.name)) != part.default}


def _plain(value: float | str) -> str:
    return str(int(value)) if not isinstance(value, str) and value == int(value) else str(value)


# -------------------------------------------------------------------- the simulator


@dataclass(frozen=True)
class _Moment:
    """What there was to see at a step, and of the robot to tell."""

    step: int
    drawn: tuple[np.ndarray, ...]
    end_effector: Tensor
    gripper_opening: float


@dataclass(frozen=True)
class ShiftedState(MetaWorldState):
    """A saved present together with what is still to arrive."""

    seed: int
    moments: tuple[_Moment, ...]
    camera: Camera


class ShiftedEnv(MetaWorldEnv):
    """A Meta-World task under a shift: what `MetaWorldEnv` promises holds here too, and without a shift its bytes are the same.

    `camera` is the one that policies are told. `render` gives what arrives from the sensor. `position`, which servos use, is
    current.

    Args:
        task, size, shadows, widen: see `MetaWorldEnv`. camera: the training camera, from which the shift counts.

    Raises:
        ValueError: see `MetaWorldEnv`; or a workspace of a task whose objects and goals have no freedom that way.
    """

    def __init__(
        self,
        task: str,
        shift: Shift = NO_SHIFT,
        *,
        camera: CameraPlacement = TRAINING_CAMERA,
        size: int = 128,
        shadows: bool = False,
        widen: float = 1.0,
    ) -> None:
        self.shift = shift
        super().__init__(task, camera=shift.moved(camera), size=size, shadows=shadows, widen=widen)
        if shift.workspace:
            self._env._random_reset_space = _half(self._env._random_reset_space, shift.workspace, task)
        paint(self._env.model, shift.look)
        self._sweeps: dict[int, Sweep] = {}
        self._seed, self._step = 0, 0
        self._moments: deque[_Moment] = deque(maxlen=1 + max(shift.latency, shift.state_latency))

    def _task_class(self) -> type:
        return with_distractors(super()._task_class()) if self.shift.distractors else super()._task_class()

    @property
    def settings(self) -> dict[str, Any]:
        shift = {} if self.shift == NO_SHIFT else {"shift": str(self.shift), "shift_recipe": RECIPE}
        return {**super().settings, **shift}

    def reset(self, seed: int) -> None:
        if self.shift.distractors:
            self._reset_with_distractors(seed)
        else:
            super().reset(seed)
        self._seed, self._step = seed, 0
        self.camera = self.shift.miscalibrated(self.placement.camera(self.size), seed)
        self._moments.clear()
        self._moments.append(self._moment())

    def _reset_with_distractors(self, seed: int) -> None:
        hide_distractors(self)
        super().reset(seed)
        if seed not in self._sweeps:
            self._sweeps[seed] = sweep_of(self, steps=EXPERT_STEPS)
            super().reset(seed)
        rng, camera = np.random.default_rng((seed, 3)), self.placement.camera(self.size)
        place_distractors(self, self._sweeps[seed], self.shift.distractors, rng, camera, self.size)

    def step(self, command: np.ndarray) -> StepResult:
        result = super().step(command)
        self._step += 1
        self._moments.append(self._moment())
        return result

    def observe(self, *, views: bool = True) -> Observation:
        told = self._late(self.shift.state_latency)
        observation = super().observe(views=views)
        return replace(observation, end_effector=told.end_effector, gripper_opening=told.gripper_opening)

    def render(self) -> np.ndarray:
        moment = self._late(self.shift.latency)
        with self._scene_of(moment):
            return self.shift.sensed(super().render(), self._seed, moment.step)

    def save_state(self) -> ShiftedState:
        return ShiftedState(**vars(super().save_state()), seed=self._seed, moments=tuple(self._moments), camera=self.camera)

    def restore_state(self, state: MetaWorldState) -> None:
        super().restore_state(state)
        if isinstance(state, ShiftedState):
            self._seed, self._step, self.camera = state.seed, state.moments[-1].step, state.camera
            self._moments.clear()
            self._moments.extend(state.moments)

    def _moment(self) -> _Moment:
        drawn = tuple(getattr(self._env.data, name).copy() for name in _DRAWN)
        return _Moment(self._step, drawn, self.end_effector, self.gripper_opening)

    def _late(self, steps: int) -> _Moment:
        """The moment so many steps ago, or the episode's first. Raises RuntimeError where no episode has begun."""
        if not self._moments:
            raise RuntimeError("there is nothing to see before an episode has begun: call reset(seed) first")
        return self._moments[max(len(self._moments) - 1 - steps, 0)]

    @contextlib.contextmanager
    def _scene_of(self, moment: _Moment) -> Iterator[None]:
        """Let the renderer find everything where it was."""
        if moment is self._moments[-1]:
            yield
            return
        now = self._moment().drawn
        self._show(moment.drawn)
        try:
            yield
        finally:
            self._show(now)

    def _show(self, drawn: tuple[np.ndarray, ...]) -> None:
        for name, value in zip(_DRAWN, drawn, strict=True):
            getattr(self._env.data, name)[:] = value


class ManyViews:
    """An environment that more cameras look at; everything else is the environment's own.

    Args:
        env: whose view is "main". others: where the other cameras stand, by the names of their views.
    """

    def __init__(self, env: MetaWorldEnv, others: Mapping[str, CameraPlacement]) -> None:
        self._env, self._others = env, dict(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def observe(self, *, views: bool = True) -> Observation:
        """See `Env`."""
        observation, env = self._env.observe(views=views), self._env
        here, told, seen = env.placement, env.camera, dict(observation.views)
        try:
            for name, placement in self._others.items() if views else ():
                env.look_from(placement)
                seen[name] = env.observe().views["main"]
        finally:
            env.look_from(here)
            env.camera = told
        return replace(observation, views=seen)


def _half(space: Box, workspace: str, task: str) -> Box:
    """That half of a random-reset space (n points of x, y, z): each point keeps to its own half, along the axis.

    Raises:
        ValueError: no point has any freedom along the axis.
    """
    axis, upper = WORKSPACES[workspace]
    low, high = space.low.reshape(-1, 3).copy(), space.high.reshape(-1, 3).copy()
    freedom = (high - low)[:, axis].max()
    if freedom < SMALLEST_FREEDOM_M:
        raise ValueError(
            f"{task} has no workspace to split: its objects and goals vary by {freedom:.3g} m in {'xy'[axis]} (at least "
            f"{SMALLEST_FREEDOM_M} m is wanted); leave workspace={workspace} out, or choose another task"
        )
    middle = (low + high)[:, axis] / 2
    (low if upper else high)[:, axis] = middle
    return Box(low.ravel(), high.ravel(), dtype=np.float64)
