"""Meta-World (v3) behind the Env protocol: one Sawyer arm on a table, fifty tasks, a scripted expert for each.

Meta-World resets from global random state, keeps stale scenes in its first frames and stops its own episodes; what is
done about each of these is said where it happens. Physics needs no OpenGL: a renderer is made at the first `observe`.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import difflib
import functools
import math
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from para_video.camera import Camera, orbit, rotation_about
from para_video.policy import Observation, StepResult, View
from para_video.rollout import horizon_for
from para_video.sims.experts import EXPERTS, Expert, recipe


def _available_opengl() -> str:
    """MuJoCo's name of an offscreen OpenGL that can be loaded here; "disabled" where there is none."""
    for name, library in (("egl", "libEGL.so.1"), ("osmesa", "libOSMesa.so.8"), ("osmesa", "libOSMesa.so.6")):
        with contextlib.suppress(OSError):
            ctypes.CDLL(library)
            return name
    return "disabled"


if sys.platform.startswith("linux"):
    # MuJoCo picks its OpenGL at import and fails there without the library, even where only physics is wanted.
    os.environ.setdefault("MUJOCO_GL", _available_opengl())

try:
    import mujoco
    from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer
    from gymnasium.spaces import Box, Space
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from metaworld.policies import ENV_POLICY_MAP
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError("Meta-World is not installed: pip install -e '.[sim]'", name=missing.name) from missing

TASKS: tuple[str, ...] = tuple(sorted(ALL_V3_ENVIRONMENTS))
"""The names of the fifty tasks."""

METRES_PER_COMMAND = 0.01
"""How far a command of 1 moves the commanded hand in one control step."""

PICK_PLACE_GOALS = np.array([[-0.1, 0.8, 0.05], [0.1, 0.9, 0.3]])
GOAL_RADIUS_M = 0.07
"""Range of pick-place's goals, and how near the object has to come."""

MOST_DRAWS = 10_000
"""Of places for object and goal in a reset."""

_FIELDS_MOVED_BY_RESET = ("body_pos", "body_quat", "site_pos", "geom_rgba")
_SCENERY = ("world", "tablelink", "RetainingWall")
"""Bodies that stand around in (nearly) every task: floor, table and the wall behind it."""
_FIELDS_OF_LOOKS = ("mat_rgba", "geom_rgba", "light_pos", "light_diffuse")
_PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION


@dataclass(frozen=True)
class CameraPlacement:
    """A camera on a sphere around a point, by MuJoCo's angles.

    Args:
        azimuth_deg: direction of view in the ground plane, anticlockwise from +x. elevation_deg: of the view direction;
            negative looks down. distance_m: from camera to target. target: (x, y, z) metres, world frame.
        fovy_deg: vertical field of view. roll_deg: about the view direction; positive turns the picture anticlockwise.
    """

    azimuth_deg: float = 135.0
    elevation_deg: float = -40.0
    distance_m: float = 1.15
    target: tuple[float, float, float] = (0.0, 0.65, 0.08)
    fovy_deg: float = 45.0
    roll_deg: float = 0.0

    def camera(self, size: int) -> Camera:
        """The calibrated camera of a square image of `size` pixels, float32."""
        pose = orbit(self.azimuth_deg, self.elevation_deg, self.distance_m, self.target)
        pose[:3, :3] = pose[:3, :3] @ rotation_about((0, 0, 1), self.roll_deg)
        return Camera.from_fov(self.fovy_deg, (size, size), pose).to(torch.float32)

    def wider(self, factor: float) -> CameraPlacement:
        """The camera whose picture, of `factor` times as many pixels a side, has this one's in its middle."""
        if factor == 1:
            return self  # to the last bit
        half = factor * math.tan(math.radians(self.fovy_deg / 2))
        return replace(self, fovy_deg=2 * math.degrees(math.atan(half)))


@dataclass(frozen=True)
class MetaWorldState:
    """Everything that decides what happens next: physics, what a reset moves in the model, Meta-World's own attributes."""

    physics: np.ndarray
    model: Mapping[str, np.ndarray]
    attributes: Mapping[str, Any]
    raw: np.ndarray


class MetaWorldEnv:
    """One Meta-World task seen by one camera.

    The gripper point is the middle of the two fingertips. A command is (dx, dy, dz, effort), each in [-1, 1]: a move of
    the commanded hand by up to 1 cm an axis, and a gripper effort, -1 opening and 1 closing. Episodes do not end by
    themselves: Meta-World's limit of 500 steps is lifted, and the horizon is the rollout's.

    Args:
        task: one of `TASKS`, such as "pick-place-v3".
        camera: where the camera stands.
        size: height and width of the frames in pixels.
        shadows: render shadows and reflections.
        widen: factor on the ranges of object and goal positions, about their centres. A widened range is cut at the box
            that the hand can reach, and never goes below the lowest height of the original range (the table).

    Raises:
        ValueError: an unknown task, or `widen` that is not positive.
    """

    def __init__(
        self,
        task: str,
        *,
        camera: CameraPlacement = CameraPlacement(),
        size: int = 128,
        shadows: bool = False,
        widen: float = 1.0,
    ) -> None:
        if task not in ALL_V3_ENVIRONMENTS:
            close = difflib.get_close_matches(task, TASKS, n=4, cutoff=0.4) or TASKS
            raise ValueError(f"unknown Meta-World task {task!r}; close matches: {', '.join(close)}")
        if not widen > 0:
            raise ValueError(f"widen must be positive, got {widen}; 1 keeps Meta-World's own ranges")
        self.task, self.placement, self.size, self.shadows, self.widen = task, camera, size, shadows, widen
        self.camera = camera.camera(size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gymnasium's remarks on float precision
            self._env = _observable(self._task_class())
        self._env._random_reset_space = _widened(self._env._random_reset_space, widen, self._env.mocap_low, self._env.mocap_high)
        self._looks = {name: getattr(self._env.model, name).copy() for name in _FIELDS_OF_LOOKS}
        self._expert: Expert = EXPERTS.get(task, ENV_POLICY_MAP[task])()  # type: ignore[abstract]  # the map's entries are concrete
        self._renderer: mujoco.Renderer | None = None
        self._raw = np.zeros(39)

    def _task_class(self) -> type:
        """Meta-World's own environment; a simulator with more in its scene derives one from it."""
        return ALL_V3_ENVIRONMENTS[self.task]

    def __enter__(self) -> MetaWorldEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def settings(self) -> dict[str, Any]:
        """Everything about this simulator that changes a recorded byte, as JSON values."""
        # A camera without roll is told as it was before there was roll, so that what was recorded then is still found.
        camera = {name: value for name, value in asdict(self.placement).items() if name != "roll_deg" or value}
        return {
            "simulator": "metaworld",
            "task": self.task,
            "camera": camera,
            "size": self.size,
            "shadows": self.shadows,
            "widen": self.widen,
            **({"expert": recipe(self.task)} if self.task in EXPERTS else {}),
            "metaworld": version("metaworld"),
            "mujoco": version("mujoco"),
        }

    # ---------------------------------------------------------------- the Env protocol

    def reset(self, seed: int) -> None:
        """Start the episode of a seed: the same seed gives the same bytes whatever ran before."""
        self._env.seeded_rand_vec, self._env._freeze_rand_vec = True, False  # else resets draw from numpy's global state
        self._env.seed(seed)
        self._env.draws = 0
        self._raw, _ = self._env.reset()
        mujoco.mj_forward(self._env.model, self._env.data)  # else the first frame shows the goal where it last was

    def observe(self, *, views: bool = True) -> Observation:
        """The current state: rendered as one view "main", clip (1, 3, H, W), or without views, which costs no rendering."""
        seen = {}
        if views:
            seen["main"] = View(torch.from_numpy(self.render()).permute(2, 0, 1)[None].float() / 255, self.camera)
        return Observation(
            views=seen,
            end_effector=self.end_effector,
            gripper_opening=self.gripper_opening,
            instruction=self.task.removesuffix("-v3").replace("-", " "),
        )

    def step(self, command: np.ndarray) -> StepResult:
        """One control step (12.5 ms). command: (4,), clipped to [-1, 1]."""
        self._raw, _, _, _, info = self._env.step(np.clip(command, -1, 1).astype(np.float32))
        self._env.curr_path_length = 0  # Meta-World refuses steps after its limit of 500
        return StepResult(success=bool(info["success"]), ended=bool(self._env._did_see_sim_exception))

    def save_state(self) -> MetaWorldState:
        """A copy of the present; see `restore_state`."""
        model, data = self._env.model, self._env.data
        physics = np.empty(mujoco.mj_stateSize(model, _PHYSICS))
        mujoco.mj_getState(model, data, physics, _PHYSICS)
        moved = {name: getattr(model, name).copy() for name in _FIELDS_MOVED_BY_RESET}
        return MetaWorldState(physics, moved, _attributes(self._env), self._raw.copy())

    def restore_state(self, state: MetaWorldState) -> None:
        """Return to a saved present of this env: the same commands then give the same bytes."""
        model, data = self._env.model, self._env.data
        for name, value in state.model.items():
            getattr(model, name)[:] = value
        mujoco.mj_setState(model, data, state.physics, _PHYSICS)
        mujoco.mj_forward(model, data)
        mujoco.mj_setState(model, data, state.physics, _PHYSICS)  # mj_forward moved the solver's warm start
        for name in vars(self._env).keys() - state.attributes.keys():
            if not isinstance(getattr(self._env, name), _SHARED):
                delattr(self._env, name)
        for name, value in state.attributes.items():
            setattr(self._env, name, _copied(value))
        self._raw = state.raw.copy()

    def look_from(self, placement: CameraPlacement) -> None:
        """Move the camera; what is observed from now on is seen from there."""
        self.placement, self.camera = placement, placement.camera(self.size)
        self._env.model.vis.global_.fovy = placement.fovy_deg

    def vary_looks(self, rng: np.random.Generator, strength: float) -> None:
        """Tint materials and move and dim lights at random, from the task's own looks; a strength of 0 restores these, 1 may
        give any colour. Physics stays."""
        model = self._env.model
        for name in ("mat_rgba", "geom_rgba"):
            rgba, own = getattr(model, name), self._looks[name]
            share = strength * rng.random((len(own), 1))
            rgba[:, :3] = (1 - share) * own[:, :3] + share * rng.random((len(own), 3))
        model.light_pos[:] = self._looks["light_pos"] + strength * rng.normal(0, 0.7, self._looks["light_pos"].shape)
        model.light_diffuse[:] = self._looks["light_diffuse"] * (1 + strength * rng.uniform(-0.8, 0.8, (model.nlight, 1)))

    def close(self) -> None:
        """Free the renderer; the env stays usable and makes a new one when asked for a frame."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    # ---------------------------------------------------------------- the robot, without a frame

    @property
    def position(self) -> np.ndarray:
        """(3,) the gripper point, world metres, float64."""
        return self._env.tcp_center.copy()

    @property
    def end_effector(self) -> Tensor:
        """(4, 4) world_T_gripper, float32: the gripper point, turned like the hand."""
        pose = torch.eye(4)
        pose[:3, :3] = torch.from_numpy(self._env.data.body("hand").xmat.reshape(3, 3).copy())
        pose[:3, 3] = torch.from_numpy(self.position)
        return pose

    @property
    def gripper_opening(self) -> float:
        """In [0, 1], 0 closed, 1 open."""
        return float(np.clip(self._raw[3], 0, 1))

    @property
    def layout(self) -> np.ndarray:
        """(d,) what the last reset drew: positions of object and goal, metres."""
        return np.array(self._env._last_rand_vec, dtype=np.float64)

    def expert_action(self) -> np.ndarray:
        """(4,) the command of the scripted expert in the current state, clipped to [-1, 1]: Meta-World's, or one of our own
        (`para_video.sims.experts`)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the experts' gains saturate on purpose
            return np.clip(self._expert.get_action(self._raw), -1, 1).astype(np.float32)

    def commanded_move(self, command: np.ndarray) -> np.ndarray:
        """(3,) how far a command asks the gripper point to move, world metres."""
        return METRES_PER_COMMAND * np.clip(command[:3], -1, 1).astype(np.float32)

    def render(self) -> np.ndarray:
        """The current state as (H, W, 3) uint8.

        Raises:
            RuntimeError: no offscreen OpenGL on this machine.
        """
        return self._rendered().copy()

    def depth(self) -> np.ndarray:
        """(H, W) float32 metres along the view axis to what each pixel shows; to measure with, policies do not get it."""
        return self._rendered("depth").copy()

    def foreground(self) -> np.ndarray:
        """(H, W) bool: the pixel shows the robot, an object or a marker, not table, wall, floor or sky; to measure with."""
        number, kind = np.moveaxis(self._rendered("segmentation"), -1, 0)
        model = self._env.model
        around = [i for i in range(model.nbody) if model.body(i).name in _SCENERY]
        scenery = np.isin(model.body_rootid[model.geom_bodyid], around)
        geom = kind == mujoco.mjtObj.mjOBJ_GEOM
        return np.where(geom, ~scenery[np.where(geom, number, 0)], kind >= 0)

    def _rendered(self, what: Literal["colours", "depth", "segmentation"] = "colours") -> np.ndarray:
        renderer = self._renderer = self._renderer or _renderer(self._env.model, self.placement.fovy_deg, self.size, self.shadows)
        renderer.update_scene(self._env.data, camera=_free_camera(self.placement))
        if self.placement.roll_deg:  # which MuJoCo's free camera does not have
            for eye in renderer.scene.camera:
                eye.up[:] = -self.placement.camera(self.size).world_T_camera[:3, 1].numpy()
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            renderer.scene.flags[flag] = self.shadows
        if what == "colours":
            return renderer.render()
        getattr(renderer, f"enable_{what}_rendering")()
        try:
            return renderer.render()
        finally:
            getattr(renderer, f"disable_{what}_rendering")()


@functools.cache
def episode_steps(task: str, widen: float = 1.0) -> int:
    """Control steps of an episode of a task, from the expert's."""
    with MetaWorldEnv(task, size=16, widen=widen) as env:
        return horizon_for(env)


def height_ceiling(azimuth: float, draws: int = 4000) -> float:
    """How often a policy could place pick-place's floating goal, seen by a camera at `azimuth` degrees, if it knew the goal's pixel
    and the range of goals exactly, and nothing of its height: it guesses the best place along the goal's ray. Rays part as they go
    on, so that of goals that are spread evenly more are far along one than near, as the square of the distance."""
    camera = CameraPlacement()
    goals = np.random.default_rng(0).uniform(PICK_PLACE_GOALS[0], PICK_PLACE_GOALS[1], (draws, 3))
    eye = orbit(azimuth, camera.elevation_deg, camera.distance_m, camera.target)[:3, 3].numpy()
    along = goals - eye
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    ends = np.stack([(bound - eye) / along for bound in PICK_PLACE_GOALS])
    near, far = ends.min(0).max(1), ends.max(0).min(1)  # where the ray enters the box and leaves it
    guessed = np.maximum(near, far - 2 * GOAL_RADIUS_M)  # from there on, with the guess in the middle
    return float(((far**3 - guessed**3) / (far**3 - near**3)).mean())


class MetaWorldServo:
    """An even move: the way from here to the target is shared out among the control steps up to the next target.

    Within these steps nothing is fed back. Meta-World's hand lags behind its commands, and a command that chases the lag
    pushes where the expert did not; the error that is left is seen at the next target. docs/oracle.md has the figures.
    """

    def commands(self, target: np.ndarray, gripper: float, position: np.ndarray, steps: int) -> np.ndarray:
        """target (3,) and position (3,) world metres, gripper in [-1, 1] -> commands (steps, 4) float32 in [-1, 1]."""
        move = (target - position) / (METRES_PER_COMMAND * steps)
        return np.tile(np.clip(np.append(move, gripper), -1, 1).astype(np.float32), (steps, 1))


# -------------------------------------------------------------------- inside Meta-World

_SHARED = (mujoco.MjModel, mujoco.MjData, MujocoRenderer, Space)
"""Attributes that a saved state leaves where they are."""


def _observable(task_class: type) -> Any:
    """A task with the goal in the expert's observation, not tied to one of the benchmark's fixed variations."""

    class Bounded(task_class):
        """Meta-World draws places until object and goal lie apart, which small ranges do not allow: here it gives up."""

        draws = 0

        def _get_state_rand_vec(self) -> Any:
            self.draws += 1
            if self.draws > MOST_DRAWS:
                raise ValueError(
                    f"{task_class.__name__}: object and goal are far enough apart in none of {MOST_DRAWS} drawn scenes; raise "
                    "widen, or take all of the workspace"
                )
            return super()._get_state_rand_vec()

    env = Bounded()
    env._partially_observable = False
    env.__dict__.pop("sawyer_observation_space", None)  # cached while the goal was still hidden
    env._set_task_called = True
    return env


def _widened(space: Box, factor: float, reach_low: np.ndarray, reach_high: np.ndarray) -> Box:
    """Scale a random-reset space (n points of x, y, z) about its centre; see `MetaWorldEnv`."""
    if factor == 1:
        return space
    low, high = space.low.reshape(-1, 3), space.high.reshape(-1, 3)
    centre, half = (low + high) / 2, factor * (high - low) / 2
    lowest = np.column_stack([np.tile(reach_low[:2], (len(low), 1)), low[:, 2]])
    # Handles and buttons may stand beyond the hand's own reach: the original range stays allowed.
    wide_low = np.maximum(centre - half, np.minimum(low, lowest))
    wide_high = np.minimum(centre + half, np.maximum(high, reach_high))
    return Box(wide_low.ravel(), wide_high.ravel(), dtype=np.float64)


def _attributes(env: Any) -> dict[str, Any]:
    return {name: _copied(value) for name, value in vars(env).items() if not isinstance(value, _SHARED)}


def _copied(value: Any) -> Any:
    """A deep copy, except of views into the simulation: Meta-World keeps some, and they have to stay live."""
    base = value
    while isinstance(base, np.ndarray):
        base = base.base
    return value if isinstance(value, np.ndarray) and base is not None else copy.deepcopy(value)


def _renderer(model: mujoco.MjModel, fovy_deg: float, size: int, shadows: bool) -> mujoco.Renderer:
    model.vis.global_.fovy = fovy_deg
    model.vis.global_.offwidth = max(model.vis.global_.offwidth, size)
    model.vis.global_.offheight = max(model.vis.global_.offheight, size)
    model.vis.quality.offsamples = 4 if shadows else 0
    try:
        return mujoco.Renderer(model, size, size)
    except (AttributeError, ImportError, RuntimeError, mujoco.FatalError) as error:
        raise RuntimeError(
            f"no offscreen OpenGL (MUJOCO_GL is {os.environ.get('MUJOCO_GL', '')!r}): install Debian's libegl1, or libosmesa6 "
            "with MUJOCO_GL=osmesa; if mujoco was imported before para_video.sims.metaworld, set MUJOCO_GL before that"
        ) from error


def _free_camera(placement: CameraPlacement) -> mujoco.MjvCamera:
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.azimuth, camera.elevation, camera.distance = placement.azimuth_deg, placement.elevation_deg, placement.distance_m
    camera.lookat[:] = placement.target
    return camera
