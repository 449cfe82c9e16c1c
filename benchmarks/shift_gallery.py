"""One episode under each kind of shift, as a labelled grid.

    python benchmarks/shift_gallery.py --task pick-place-v3

writes docs/shifts.png. All panels show the same seed after the same number of the expert's steps. The cross is where the camera
that policies are told puts the gripper.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from para_video.figures import draw_points, label, panel_grid, write_picture
from para_video.runs import command_line
from para_video.sims.shifts import NO_SHIFT, Shift, ShiftedEnv, parse_shifts

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Config:
    """Draw a gallery of shifts."""

    task: str = "pick-place-v3"
    """Any Meta-World task by name."""
    shifts: str = (
        "none; azimuth=-18; azimuth=18; elevation=12; distance=0.25; roll=10; look=1; look=2; look=3; look=4; distractors=4; "
        "workspace=left; workspace=right; workspace=near; workspace=far; noise=0.1; blur=1.5; latency=12; calibration_deg=4; "
        "azimuth=18,look=5,distractors=4"
    )
    """What is shown, separated by semicolons."""
    seed: int = 0
    """Of the episode."""
    steps: int = 20
    """Steps that the expert has taken."""
    widen: float = 1.5
    """Factor on the ranges of object and goal positions."""
    size: int = 192
    """Side of a panel in pixels."""
    columns: int = 5
    """Panels in a row."""
    out: Path = ROOT / "docs" / "shifts.png"
    """The picture."""


def main(config: Config) -> np.ndarray:
    """Draw, write and return the picture, (H, W, 3) uint8."""
    shifts = parse_shifts(config.shifts)
    picture = panel_grid([panel(config, shift) for shift in tqdm(shifts, unit="shift")], config.columns)
    write_picture(config.out, picture)
    return picture


def panel(config: Config, shift: Shift) -> np.ndarray:
    """What the sensor gives under a shift, and where the gripper is said to be; (size, size, 3) uint8."""
    with ShiftedEnv(config.task, shift, size=config.size, widen=config.widen) as env:
        env.reset(config.seed)
        for _ in range(config.steps):
            env.step(env.expert_action())
        pixel, _ = env.camera.project(torch.from_numpy(env.position).float()[None])
        marked = draw_points(env.render(), pixel.numpy(), style="cross", radius=7, colours=[(255, 255, 255)])
        return label(marked, "training" if shift == NO_SHIFT else str(shift))


if __name__ == "__main__":
    command_line(main, Config, __doc__ or "")
