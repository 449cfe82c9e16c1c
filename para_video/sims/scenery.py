"""What stands around a Meta-World task: other materials and lights, and objects that have nothing to do with it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from para_video.camera import Camera
from para_video.drawing import hsv_colour, procedural_texture
from para_video.sims.metaworld import MetaWorldEnv, mujoco

TEXTURES = ("T_table", "T_floor", "T_wallmetal")
"""Of the scene that all tasks share; what a task is about has textures of its own."""
ARM_RGB = (0.5, 0.1, 0.1)
"""The colour of the arm's links and of nothing else, in the training look."""

SHAPES: tuple[tuple[str, tuple[float, float, float]], ...] = (
    ("box", (0.035, 0.022, 0.022)),
    ("cylinder", (0.022, 0.04, 0.0)),
    ("sphere", (0.028, 0.0, 0.0)),
    ("box", (0.018, 0.018, 0.045)),
    ("ellipsoid", (0.04, 0.024, 0.02)),
    ("cylinder", (0.038, 0.014, 0.0)),
    ("capsule", (0.018, 0.03, 0.0)),
    ("box", (0.045, 0.032, 0.01)),
)
"""Geoms and MuJoCo's sizes of the distractors, metres; an episode shows some of them."""

TALLEST_M = 0.1
CLEARANCE_M = 0.03
CANDIDATES = 2000
_OUT_OF_SIGHT = (0.0, 0.6, -3.0)
_PLACES_M = np.array([[-0.65, 0.25], [0.65, 0.95]])
"""Where on the table distractors may stand: x and y from, x and y to."""


def paint(model: mujoco.MjModel, look: int) -> None:
    """Give table, floor, walls, background, lights and arm another look, always the same for the same number; 0 leaves them.

    The task's own objects keep their colours, and physics stays. Call it before a renderer is made: that is when textures are read.
    """
    if look == 0:
        return
    rng = np.random.default_rng((look, 5))
    for name in TEXTURES:
        if (index := mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_TEXTURE, name)) >= 0:
            _retexture(model, index, rng)
    for index in np.flatnonzero(model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX):
        _pixels(model, int(index))[:] = _colour(rng, 0.5, (0.2, 0.9))
    arm = np.isclose(model.geom_rgba[:, :3], ARM_RGB).all(1)
    model.geom_rgba[arm, :3] = _colour(rng, 0.8, (0.35, 0.95), hues=(0.1, 0.9)) / 255  # not red again
    sideways = rng.uniform(-1, 1, (model.nlight, 2))
    model.light_dir[:] = np.column_stack([sideways, -np.ones(model.nlight)]) / np.sqrt(1 + (sideways**2).sum(1, keepdims=True))
    model.light_diffuse[:] = rng.uniform(0.15, 0.5, (model.nlight, 1)) * rng.uniform(0.8, 1.2, (model.nlight, 3))
    model.vis.headlight.ambient[:] = rng.uniform(0.3, 0.5) * rng.uniform(0.9, 1.1, 3)
    model.vis.headlight.diffuse[:] = rng.uniform(0.2, 0.5)


def _pixels(model: mujoco.MjModel, texture: int) -> np.ndarray:
    """(height, width, channels) uint8 of a texture, to write to."""
    height, width, channels = model.tex_height[texture], model.tex_width[texture], model.tex_nchannel[texture]
    start = model.tex_adr[texture]
    return model.tex_data[start : start + height * width * channels].reshape(height, width, channels)


def _retexture(model: mujoco.MjModel, texture: int, rng: np.random.Generator) -> None:
    """Another texture, whose mean colour is far from what was there."""
    pixels = _pixels(model, texture)
    before = pixels.mean((0, 1))
    while True:
        drawn = procedural_texture(rng, pixels.shape[1]).transpose(1, 2, 0)
        if np.abs(drawn.mean((0, 1)) - before).max() > 40:
            pixels[:] = np.tile(drawn, (pixels.shape[0] // pixels.shape[1], 1, 1))
            return


def _colour(
    rng: np.random.Generator, saturation: float, values: tuple[float, float], hues: tuple[float, float] = (0.0, 1.0)
) -> np.ndarray:
    """(3,) in 0..255: a random hue and brightness, and at most this saturation."""
    return np.array(hsv_colour(rng.uniform(*hues), rng.uniform(0.3, 1) * saturation, rng.uniform(*values)), dtype=np.float64)


# -------------------------------------------------------------------- distractors


@dataclass(frozen=True)
class Sweep:
    """Where an episode of the expert leaves no room.

    Args:
        boxes: (n, 4) x and y from, x and y to: of everything that stands, or moves at some time, near the table top, metres.
        points: (m, 3) of gripper, moved objects and goal, which have to stay in sight.
        table_m: height of the table top.
    """

    boxes: np.ndarray
    points: np.ndarray
    table_m: float


def with_distractors(task_class: type) -> type:
    """A Meta-World environment whose model also holds the distractors, out of sight until they are placed.

    They are solid and do not move. Their bodies come last in the model, so that all other numbers in it stay.
    """

    class WithDistractors(task_class):
        def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
            spec = mujoco.MjSpec.from_file(self.fullpath)
            for index, (kind, size) in enumerate(SHAPES):
                body = spec.worldbody.add_body(name=_name(index), pos=_OUT_OF_SIGHT)
                kind = getattr(mujoco.mjtGeom, f"mjGEOM_{kind.upper()}")
                body.add_geom(name=_name(index), type=kind, size=size, rgba=(0, 0, 0, 0), contype=1, conaffinity=1)
            model = spec.compile()
            return model, mujoco.MjData(model)

    return WithDistractors


def sweep_of(env: MetaWorldEnv, *, steps: int, every: int = 2) -> Sweep:
    """Let the expert act in a new episode, and see what space it takes.

    Args:
        steps: most of them; it ends ten after the first success. every: steps between looks.
    """
    boxes, points, left, table_m = [], [], steps, _table_height(env)
    for step in range(steps):
        if step % every == 0:
            low, high, near, moving = _extents(env, table_m)
            boxes.append(np.column_stack([low[:, :2], high[:, :2]])[near if step == 0 else near & moving])
            points.append((low + high)[near & moving] / 2)
            points.append(env.position[None])
        left = min(left, 10) if env.step(env.expert_action()).success else left
        left -= 1
        if left <= 0:
            break
    goal = np.asarray(env._env._target_pos, dtype=np.float64).reshape(1, 3)
    boxes.append(np.concatenate([goal[:, :2], goal[:, :2]], 1))
    return Sweep(np.concatenate(boxes), np.concatenate([*points, goal]), table_m)


def _extents(env: MetaWorldEnv, table_m: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Corners (g, 3) and (g, 3) of boxes around all geoms, and masks (g,): those near the table top, and those that can move."""
    model, data = env._env.model, env._env.data
    axes = data.geom_xmat.reshape(-1, 3, 3)
    centre = data.geom_xpos + np.einsum("gij,gj->gi", axes, model.geom_aabb[:, :3])
    half = np.einsum("gij,gj->gi", np.abs(axes), model.geom_aabb[:, 3:])
    low, high = centre - half, centre + half
    near = (high[:, 2] > table_m + 0.005) & (low[:, 2] < table_m + TALLEST_M + CLEARANCE_M)
    return low, high, near & (model.geom_type != mujoco.mjtGeom.mjGEOM_PLANE), model.body_weldid[model.geom_bodyid] != 0


def _table_height(env: MetaWorldEnv) -> float:
    """Of the table top: what is lowest below the corners of where distractors may stand."""
    corners = [np.array([x, y, 1.0]) for x in _PLACES_M[:, 0] for y in _PLACES_M[:, 1]]
    return min(1 - _way(env, corner, np.array([0.0, 0.0, -1.0])) for corner in corners)


def hide_distractors(env: MetaWorldEnv) -> None:
    """Put all of them away."""
    model = env._env.model
    for index in range(len(SHAPES)):
        model.body(_name(index)).pos[:] = _OUT_OF_SIGHT
        model.geom(_name(index)).rgba[:] = 0


def place_distractors(env: MetaWorldEnv, sweep: Sweep, count: int, rng: np.random.Generator, camera: Camera, size: int) -> None:
    """Stand some of the distractors on the table: clear of the sweep and of each other, seen by the camera, before nothing of note.

    Args:
        env: after a reset, all distractors hidden. camera: true, unbatched. size: of its image in pixels.

    Raises:
        RuntimeError: there is no room.
    """
    model = env._env.model
    for index in rng.permutation(len(SHAPES))[:count]:
        geom = model.geom(_name(int(index)))
        # The half height of a geom that stands upright is its box's; its circle on the table goes through the box's corners.
        half = model.geom_aabb[geom.id, 3:]
        ground, around = float(np.hypot(*half[:2])), float(np.linalg.norm(half))
        places = rng.uniform(_PLACES_M[0], _PLACES_M[1], (CANDIDATES, 2))
        spots = np.column_stack([places, np.full(CANDIDATES, sweep.table_m + half[2])])
        yaw, colour = rng.uniform(0, np.pi), _colour(rng, 1.0, (0.4, 1.0))
        free = _clear_of(spots[:, :2], sweep.boxes, ground + CLEARANCE_M) & _inside(spots, around, camera, size)
        spots = spots[free]
        spots = spots[~_covers(spots, around, camera.position.double().numpy(), sweep.points)]
        spot = next((spot for spot in spots if _in_sight(env, spot, around, camera)), None)
        if spot is None:
            raise RuntimeError(
                f"no room for {count} distractors around what the expert does in {env.task} (seen from azimuth "
                f"{env.placement.azimuth_deg:g}); ask for fewer"
            )
        body = model.body(_name(int(index)))
        body.pos[:], body.quat[:], geom.rgba[:] = spot, (np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)), (*colour / 255, 1)
        mujoco.mj_kinematics(model, env._env.data)  # the next one is not to hide behind it
        taken = [*(spot[:2] - ground), *(spot[:2] + ground)]
        sweep = replace(sweep, boxes=np.vstack([sweep.boxes, taken]), points=np.vstack([sweep.points, spot]))


def _clear_of(spots: np.ndarray, boxes: np.ndarray, radius: float) -> np.ndarray:
    """(n,) whether circles of a radius around (n, 2) miss all (m, 4) boxes."""
    nearest = np.clip(spots[:, None], boxes[None, :, :2], boxes[None, :, 2:])
    return (((spots[:, None] - nearest) ** 2).sum(-1) > radius**2).all(1)


def _inside(spots: np.ndarray, radius: float, camera: Camera, size: int) -> np.ndarray:
    """(n,) whether balls around (n, 3) are wholly in the image."""
    pixels, depth = (part.numpy() for part in camera.project(torch.from_numpy(spots).float()))
    margin = float(camera.intrinsics[0, 0]) * radius / np.maximum(depth, 1e-3)
    return (depth > radius) & (pixels.min(1) - margin > 0) & (pixels.max(1) + margin < size - 1)


def _covers(spots: np.ndarray, radius: float, eye: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(n,) whether a ball around one of (n, 3) is on a line of sight from the eye to one of (m, 3)."""
    sight = points - eye
    share = np.clip((spots - eye) @ sight.T / (sight**2).sum(1), 0, 1)  # (n, m) how far along the line the ball is nearest
    gap = np.linalg.norm(eye + share[..., None] * sight - spots[:, None], axis=-1)
    return (gap < radius + 0.01).any(1)


def _in_sight(env: MetaWorldEnv, spot: np.ndarray, radius: float, camera: Camera) -> bool:
    """Whether nothing stands before a ball: its middle, and its left and right."""
    eye, right = camera.position.double().numpy(), camera.world_T_camera[:3, 0].double().numpy()
    rays = [spot + share * radius * right - eye for share in (-0.8, 0.0, 0.8)]
    return all(_way(env, eye, ray) > float(np.linalg.norm(ray)) - radius for ray in rays)


def _way(env: MetaWorldEnv, start: np.ndarray, ray: np.ndarray) -> float:
    """Metres along a ray to the first thing that is drawn; infinite where there is nothing."""
    drawn = np.array([1, 1, 1, 0, 0, 0], dtype=np.uint8)  # MuJoCo draws the first three groups of geoms
    model, data, met = env._env.model, env._env.data, np.zeros(1, dtype=np.int32)
    metres = mujoco.mj_ray(model, data, start, ray / np.linalg.norm(ray), drawn, 1, -1, met)
    return metres if metres >= 0 else float("inf")


def _name(index: int) -> str:
    return f"distractor{index}"
