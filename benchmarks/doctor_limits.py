"""What does the doctor catch? Every fault, at several strengths, injected into clean demonstrations of a list of tasks.

    python benchmarks/doctor_limits.py

writes results/doctor.json and the table in docs/doctor.md. Demonstrations come from the cache, or are recorded. Images
and poses are checked as for a set of a real robot; only for the order of colours the simulator is asked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from para_video.camera import rotation_about
from para_video.demos import Demo, Plan, cached_demos
from para_video.doctor import Check, check_demos, colour_order
from para_video.figures import write_table
from para_video.runs import command_line
from para_video.sims.metaworld import MetaWorldEnv
from para_video.training import write_atomically

ROOT = Path(__file__).parent.parent
HEADING = (
    "# What the doctor catches\n\nFaults injected into clean demonstrations; a check is red where it says wrong or suspicious.\n\n"
)


@dataclass(frozen=True)
class Config:
    """What is tried.

    Args:
        tasks: Meta-World's, without the version. plan: the demonstrations of each. results: the JSON file. page: of the table.
    """

    tasks: tuple[str, ...] = (
        "assembly", "bin-picking", "button-press-topdown", "coffee-pull", "door-open", "drawer-open", "handle-pull", "hammer",
        "pick-place", "push", "reach", "shelf-place",
    )  # fmt: skip
    plan: Plan = field(default_factory=lambda: Plan(3, spread_over=8))
    results: Path = ROOT / "results" / "doctor.json"
    page: Path = ROOT / "docs" / "doctor.md"


def images(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Demo], Demo]:
    return lambda demo: replace(demo, frames=np.ascontiguousarray(change(demo.frames)))


def late(frames: int) -> Callable[[Demo], Demo]:
    return images(lambda f: f[np.clip(np.arange(len(f)) - frames, 0, len(f) - 1)])


def turned(axis: tuple[float, float, float], degrees: float) -> Callable[[Demo], Demo]:
    """The given camera turned about an axis of its own."""
    turn = torch.eye(4)
    turn[:3, :3] = rotation_about(axis, degrees).float()
    return lambda demo: replace(demo, camera=replace(demo.camera, world_T_camera=demo.camera.world_T_camera @ turn))


def creeping(px: int) -> Callable[[Demo], Demo]:
    """Images that move by so many pixels to the right in the course of the episode."""
    return images(lambda f: np.stack([np.roll(g, round(px * k / (len(f) - 1)), axis=1) for k, g in enumerate(f)]))


def zoomed(factor: float) -> Callable[[Demo], Demo]:
    """The given focal length wrong, the principal point right."""
    scale = torch.tensor([[factor, factor, 1.0], [factor, factor, 1], [1, 1, 1]])
    return lambda demo: replace(demo, camera=replace(demo.camera, intrinsics=demo.camera.intrinsics * scale))


FAULTS: dict[str, tuple[str, Callable[[Demo], Demo]]] = {
    "clean": ("", lambda demo: demo),
    "flipped left to right": ("image orientation", images(lambda f: f[:, :, ::-1])),
    "flipped upside down": ("image orientation", images(lambda f: f[:, ::-1])),
    "turned by 90 degrees": ("image orientation", images(lambda f: np.rot90(f, 1, (1, 2)))),
    "turned by 180 degrees": ("image orientation", images(lambda f: np.rot90(f, 2, (1, 2)))),
    **{f"images {k:+d} frames late": ("image lag", late(k)) for k in (-1, 1, 2, 4)},
    **{f"yaw {a:+d} degrees": ("camera offset", turned((0, 1, 0), a)) for a in (-5, -2, 2, 5)},
    **{f"pitch {a:+d} degrees": ("camera offset", turned((1, 0, 0), a)) for a in (-5, -2, 2, 5)},
    **{f"roll {a:+d} degrees": ("camera roll", turned((0, 0, 1), a)) for a in (-5, 3, 5, 10)},
    **{f"focal length x {s}": ("focal length by motion", zoomed(s)) for s in (0.8, 0.9, 1.1, 1.2)},
    **{f"drifting by {px} px": ("camera over time", creeping(px)) for px in (8, 16, 24)},
    "gripper command's sign": ("gripper sign", lambda demo: replace(demo, gripper=-demo.gripper)),
    "red and blue swapped": ("colour order", images(lambda f: f[..., ::-1])),
    "one frame dropped": (
        "dropped frames",
        images(lambda f: np.concatenate([f[: len(f) // 2], f[len(f) // 2 + 1 :], f[-1:]])),
    ),
}
"""Name, the check that should turn red, and what is done to a demonstration."""


def examined(task: str, demos: Sequence[Demo]) -> list[Check]:
    with MetaWorldEnv(f"{task}-v3") as env:
        return [*check_demos(demos), colour_order(env, demos)]


def main(config: Config) -> dict[str, Any]:
    """Inject, check, write."""
    sets = {}
    for task in config.tasks:
        with MetaWorldEnv(f"{task}-v3") as env:
            sets[task] = cached_demos(env, config.plan).demos
    rows: dict[str, dict[str, list[str]]] = {}
    for name, (_, inject) in tqdm(FAULTS.items(), unit="fault"):
        checks = {task: examined(task, [inject(demo) for demo in demos]) for task, demos in sets.items()}
        rows[name] = {task: [c.name for c in found if c.verdict in ("wrong", "suspicious")] for task, found in checks.items()}
    settings = {"tasks": list(config.tasks), "demos": config.plan.count, "width": 128}
    write_atomically(config.results, (json.dumps({"settings": settings, "red": rows}, indent=1) + "\n").encode())
    table = []
    for name, by_task in rows.items():
        right = FAULTS[name][0]
        caught = sum(right in red for red in by_task.values())
        alone = sum(red == [right] for red in by_task.values())
        others = Counter(check for red in by_task.values() for check in red if check != right)
        told = ", ".join(f"{check} {count}" for check, count in others.most_common())
        table.append([name, right, f"{caught}/{len(by_task)}" if right else "", f"{alone}" if right else "", told])
    made = f"`python benchmarks/doctor_limits.py`: {len(config.tasks)} tasks, {config.plan.count} demonstrations each, 128 px."
    header = ["fault", "check", "caught", "by this check alone", "other red checks"]
    write_table(config.page, "benchmarks/doctor_limits.py", header, table, made, heading=HEADING)
    return rows


if __name__ == "__main__":
    command_line(main, Config, __doc__ or "")
