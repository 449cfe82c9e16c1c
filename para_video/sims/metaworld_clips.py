"""Action-free clips of Meta-World for video models: experts, disturbed experts and random motion under random cameras, materials
and lights.

Tasks share scenes, so what a video model must not have seen is held out by scene: every task of `HELD_OUT_FAMILIES`, and every
other task that is built from the model file of one of these.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from para_video.demos import TUNING_SEED, Demo, DemoSet, cache_folder, cache_name, recorded_once
from para_video.policy import DEFAULT_SCHEDULE
from para_video.sims.metaworld import TASKS, CameraPlacement, MetaWorldEnv

HELD_OUT_FAMILIES = ("reach", "push", "pick", "sweep", "window", "handle", "plate", "bin", "button", "shelf", "hammer", "coffee")
"""First words of the tasks that no training clip shows: all of the puck's, and others."""
SHARES_A_SCENE = ("hand-insert-v3",)
"""Tasks of no held-out family whose model file is that of one (sweep-into's table with a hole); a test compares the files."""

RECIPE = 3
"""Version of how episodes are drawn; clips of another one are not read."""

HELD_OUT_TASKS = tuple(task for task in TASKS if task.split("-")[0] in HELD_OUT_FAMILIES)
TRAINING_TASKS = tuple(task for task in TASKS if task not in HELD_OUT_TASKS and task not in SHARES_A_SCENE)


@dataclass(frozen=True)
class ClipPlan:
    """What to record of each task.

    Args:
        count: episodes. frames: most frames of each; an episode ends a little after success. stride: control steps between frames.
        disturbed, random: shares of episodes whose expert is pushed around, and that move at random.
        looks: most strength of random materials and lights, see `MetaWorldEnv.vary_looks`. cameras: whether the camera is drawn
            anew for each episode; else it stands where policies see from.
        first_seed: the seeds follow each other from here.
    """

    count: int
    frames: int = 36
    stride: int = DEFAULT_SCHEDULE.frame_stride
    disturbed: float = 0.35
    random: float = 0.25
    looks: float = 0.8
    cameras: bool = True
    first_seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.frames < 2 or self.stride < 1 or not 0 <= self.disturbed + self.random <= 1:
            raise ValueError(f"a plan wants count and stride >= 1, frames >= 2, shares that sum to at most 1; got {self}")
        if not 0 <= self.first_seed <= TUNING_SEED - self.count:
            raise ValueError(f"seeds {self.first_seed} and {self.count - 1} more must lie in [0, {TUNING_SEED})")


def record_clips(env: MetaWorldEnv, plan: ClipPlan, *, on_episode: Callable[[], None] | None = None) -> DemoSet:
    """Episodes of a task, one row per frame, whether they succeed or not; the same plan gives the same bytes."""
    settings, episodes = {**env.settings, **asdict(plan)}, []
    for seed in range(plan.first_seed, plan.first_seed + plan.count):
        episodes.append(_episode(env, plan, seed))
        if on_episode is not None:
            on_episode()
    return DemoSet(tuple(episodes), (), settings)


def cached_clips(
    tasks: Sequence[str],
    plan: ClipPlan,
    *,
    size: int = 128,
    on_episode: Callable[[], None] | None = None,
    cache: Path | None = None,
) -> list[Demo]:
    """The episodes of several tasks, kept on disk task by task, so that an interrupted recording goes on where it was.

    Args:
        on_episode: called after each episode, those that were on disk included. cache: default `para_video.demos.cache_folder()`.
    """
    found: list[Demo] = []
    for task in tasks:
        with MetaWorldEnv(task, size=size) as env:
            folder = (cache or cache_folder()).with_name("clips") / cache_name({**env.settings, **asdict(plan), "recipe": RECIPE})
            fresh = not folder.exists()
            found += recorded_once(folder, partial(record_clips, env, plan, on_episode=on_episode)).demos
        for _ in range(0 if fresh or on_episode is None else plan.count):
            on_episode()  # type: ignore[misc]  # not None where the range is not empty
    return found


def random_placement(rng: np.random.Generator) -> CameraPlacement:
    """A camera anywhere around the workspace but behind the robot, which would hide it."""
    x, y, z = rng.uniform((-0.1, 0.55, 0.02), (0.1, 0.75, 0.18))
    return CameraPlacement(
        azimuth_deg=rng.uniform(-160, 160) - 90,
        elevation_deg=rng.uniform(-60, -20),
        distance_m=rng.uniform(0.9, 1.5),
        target=(float(x), float(y), float(z)),
        fovy_deg=rng.uniform(38, 52),
    )


def _episode(env: MetaWorldEnv, plan: ClipPlan, seed: int) -> Demo:
    rng = np.random.default_rng((seed, zlib.crc32(env.task.encode()), 2))  # else episode k would have one camera in every task
    env.look_from(random_placement(rng) if plan.cameras else CameraPlacement())
    env.vary_looks(rng, plan.looks * rng.random())
    env.reset(seed)
    kind = rng.random()
    disturbance = rng.uniform(0.3, 1.5) if kind < plan.disturbed else 0.0
    at_random = plan.disturbed <= kind < plan.disturbed + plan.random
    push, effort = np.zeros(3), -1.0
    rows: list[tuple] = []
    left = math.inf
    while len(rows) < plan.frames and left > 0:
        frame, pose, opening = env.render(), env.end_effector.numpy(), env.gripper_opening
        succeeded = False
        for _ in range(plan.stride):
            push = 0.9 * push + 0.44 * rng.normal(size=3)  # of unit variance, and lasting some ten steps
            effort = -effort if rng.random() < 0.03 else effort
            command = np.append(push, effort) if at_random else env.expert_action()
            command[:3] += disturbance * push
            succeeded |= env.step(command.astype(np.float32)).success
        rows.append((frame, pose[:3, 3], pose[:3, :3], opening, command[3]))
        left = min(left - 1, 5) if succeeded and not at_random else left - 1
    frames, *numbers = zip(*rows, strict=True)
    positions, rotations, openings, gripper = (np.stack(part).astype(np.float32) for part in numbers)
    return Demo(np.stack(frames), positions, rotations, openings, gripper, env.camera, env.task, seed)
