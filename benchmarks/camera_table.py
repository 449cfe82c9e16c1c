"""Where should the camera stand? How well each azimuth shows the gripper on all tasks, and what a ray leaves open.

    python benchmarks/camera_table.py

writes the table in docs/oracle.md. No policy is involved: the gripper point is visible where the depth of its pixel is not less
than its own, and a ceiling says how often a policy could place pick-place's floating goal if it knew the goal's pixel and the
range of goals exactly, and nothing of its height.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from para_video.figures import write_place
from para_video.runs import command_line
from para_video.sims.metaworld import TASKS, CameraPlacement, MetaWorldEnv, height_ceiling

ROOT = Path(__file__).parent.parent
FINGER_M = 0.04
"""The gripper point lies between the fingers: what is this much nearer to the camera does not hide it."""


@dataclass(frozen=True)
class Config:
    """What is measured.

    Args:
        azimuths: of the camera in degrees. turn: degrees to the view that policies are also evaluated on. seed: of the episodes.
        steps, every: length of an episode and steps between two looks. page: the page whose table is replaced.
    """

    azimuths: tuple[float, ...] = (105, 120, 135, 150, 165, 195, 225, 255)
    turn: float = 18.0
    seed: int = 7
    steps: int = 100
    every: int = 16
    page: Path = ROOT / "docs" / "oracle.md"


def main(config: Config) -> str:
    """Measure, write and return the table."""
    shown = {
        azimuth: [gripper_visible(task, azimuth, config) for task in TASKS] for azimuth in tqdm(config.azimuths, unit="camera")
    }
    lines = [
        f"| azimuth | gripper visible, mean of {len(TASKS)} tasks | tasks below half | ceiling | turned {config.turn:+g} |",
        "| --- | --- | --- | --- | --- |",
    ]
    for azimuth, shares in shown.items():
        ceilings = [f"{height_ceiling(a):.0%}" for a in (azimuth, azimuth + config.turn)]
        hidden = sum(share < 0.5 for share in shares)
        lines.append(f"| {azimuth:g} | {np.mean(shares):.0%} | {hidden} | {ceilings[0]} | {ceilings[1]} |")
    text = "\n".join([*lines, "", "`python benchmarks/camera_table.py`"])
    write_place(config.page, "benchmarks/camera_table.py", text)
    return text


def gripper_visible(task: str, azimuth: float, config: Config) -> float:
    """Share of the looks at an expert's episode that show the gripper point."""
    seen = []
    with MetaWorldEnv(task, camera=replace(CameraPlacement(), azimuth_deg=azimuth), size=64) as env:
        env.reset(config.seed)
        for step in range(config.steps):
            if step % config.every == config.every // 4:
                pixels, depth = env.camera.project(torch.from_numpy(env.position)[None].float())
                column, row = pixels[0].round().long().tolist()
                inside = 0 <= column < env.size and 0 <= row < env.size
                seen.append(inside and env.depth()[row, column] > float(depth[0]) - FINGER_M)
            if env.step(env.expert_action()).ended:
                break
    return float(np.mean(seen))


if __name__ == "__main__":
    command_line(main, Config, __doc__ or "")
