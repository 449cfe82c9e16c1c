"""What bounds any policy on each Meta-World task: the scripted expert, the re-planning oracle and a blind replay.

    python benchmarks/oracle_table.py

writes results/oracle.json and the table in docs/oracle.md. A task that is in the JSON file with the same settings is not run
again. Nothing is rendered.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from para_video.camera import Camera
from para_video.demos import Plan, record_demo
from para_video.figures import write_place
from para_video.policy import Schedule
from para_video.rollout import (
    Episode,
    ReplanningOracle,
    Replay,
    RoundTrip,
    evaluate,
    evaluation_seeds,
    exact_round_trip,
    expert_rollout,
    horizon_for,
    rollout,
)
from para_video.runs import command_line
from para_video.sims.metaworld import TASKS, MetaWorldEnv, MetaWorldServo
from para_video.training import write_atomically

ROOT = Path(__file__).parent.parent
COLUMNS = ("expert", "oracle", "blind")


@dataclass(frozen=True)
class Config:
    """Which tasks are measured, on how many episodes, and where it is written.

    Args:
        tasks: names. episodes: per task and column, on the evaluation seeds. widen: see MetaWorldEnv.
        gripper_levels: values that the oracle's gripper command is rounded to, evenly spaced over [-1, 1].
        schedule: of the oracle and the replay. plan: its seeds are tried once each; the experts' lengths there give the
            horizon, and their motions are replayed.
        results: the JSON file. page: the page whose table is replaced.
    """

    tasks: tuple[str, ...] = TASKS
    episodes: int = 50
    widen: float = 1.0
    gripper_levels: int = 21
    schedule: Schedule = field(default_factory=Schedule)
    plan: Plan = field(default_factory=lambda: Plan(count=50, tail=10))
    results: Path = ROOT / "results" / "oracle.json"
    page: Path = ROOT / "docs" / "oracle.md"

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("tasks must name at least one; leave them out for all")


def main(config: Config) -> dict[str, Any]:
    """Measure what is missing, write as it goes, and return what is known of all tasks that were measured alike, by task."""
    known = json.loads(config.results.read_text()) if config.results.exists() else {}
    for task in tqdm(config.tasks, unit="task"):
        with MetaWorldEnv(task, widen=config.widen) as env:
            settings = measured_with(env, config)
            if known.get(task, {}).get("settings") != settings:
                known[task] = {"settings": settings, **measure(env, config)}
                write_atomically(config.results, json.dumps(dict(sorted(known.items())), indent=1).encode())
                tqdm.write(row(task, known[task]))
    shown = {task: entry for task, entry in sorted(known.items()) if alike(entry["settings"], settings)}
    write_place(config.page, "benchmarks/oracle_table.py", table(shown))
    return shown


def measured_with(env: MetaWorldEnv, config: Config) -> dict[str, Any]:
    """All that the figures depend on, as JSON values."""
    seen = {name: value for name, value in env.settings.items() if name not in ("size", "shadows")}  # nothing is rendered
    asked = {name: value for name, value in asdict(config).items() if name in ("episodes", "gripper_levels", "schedule", "plan")}
    return json.loads(json.dumps({**seen, **asked}))


def alike(settings: dict[str, Any], others: dict[str, Any]) -> bool:
    """Whether figures of two tasks belong into one table."""
    shared = ("episodes", "gripper_levels", "schedule", "plan", "widen", "metaworld", "mujoco")
    return all(settings[name] == others[name] for name in shared)


def measure(env: MetaWorldEnv, config: Config) -> dict[str, Any]:
    """The three cells of one task, on the same evaluation seeds."""
    begin = time.perf_counter()
    tried = range(config.plan.first_seed, config.plan.first_seed + config.plan.count)
    demos = [demo for seed in tried if (demo := record_demo(env, seed, config.plan, frames=False)) is not None]
    horizon = horizon_for(env, seeds=tried)
    executed = replace(config.schedule, chunk=config.schedule.executed)  # further targets cost time and change nothing
    oracle = ReplanningOracle(env, executed, rounded_gripper(config.gripper_levels))
    replays = [Replay(demo, config.schedule) for demo in demos]
    servo, seeds = MetaWorldServo(), evaluation_seeds(config.episodes)

    def closed_loop(policy: ReplanningOracle | Replay, seed: int) -> Episode:
        return rollout(env, policy, servo, seed, config.schedule, context=0, horizon=horizon)

    cells = {
        "expert": evaluate(lambda seed: expert_rollout(env, seed, horizon=horizon), seeds),
        "oracle": evaluate(lambda seed: closed_loop(oracle, seed), seeds),
        "blind": evaluate(lambda seed: closed_loop(replays[seed % len(replays)], seed), seeds),
    }
    seconds = round(time.perf_counter() - begin)
    return {"horizon": horizon, "seconds": seconds, **{name: without_times(cell.summary()) for name, cell in cells.items()}}


def rounded_gripper(levels: int) -> RoundTrip:
    """Exact points, and gripper commands rounded to levels."""
    half = (levels - 1) / 2

    def round_trip(points: Tensor, gripper: Tensor, camera: Camera, position: Tensor) -> tuple[Tensor, Tensor]:
        return exact_round_trip(points, (gripper * half).round() / half, camera, position)

    return round_trip


def without_times(summary: dict[str, Any]) -> dict[str, Any]:
    """How long a check takes to decide is of no interest, and would change the file at every run."""
    return {name: value for name, value in summary.items() if name != "act_ms"}


def table(measured: dict[str, Any]) -> str:
    """The markdown table: successes, in brackets those that were held, and what made it."""
    lines = ["| task | horizon | expert | oracle | blind replay |", "| --- | --- | --- | --- | --- |"]
    lines += [row(task, entry) for task, entry in measured.items()]
    totals = {name: {what: sum(e[name][what] for e in measured.values()) for what in ("successes", "held")} for name in COLUMNS}
    lines.append(row("**all**", {"horizon": "", **totals}))
    entry = next(iter(measured.values()))
    settings, minutes = entry["settings"], sum(entry["seconds"] for entry in measured.values()) / 60
    schedule = settings["schedule"]
    made = (
        f"`python benchmarks/oracle_table.py`: n = {settings['episodes']} a cell, in brackets those held for 10 steps; targets "
        f"every {schedule['frame_stride']} steps, {schedule['executed']} of {schedule['chunk']} executed; "
        f"{settings['gripper_levels']} gripper levels; Meta-World {settings['metaworld']}, MuJoCo {settings['mujoco']}; "
        f"{minutes:.0f} minutes."
    )
    return "\n".join([*lines, "", made])


def row(task: str, entry: dict[str, Any]) -> str:
    cells = " | ".join(f"{entry[name]['successes']} ({entry[name]['held']})" for name in COLUMNS)
    return f"| {task.removesuffix('-v3')} | {entry['horizon']} | {cells} |"


if __name__ == "__main__":
    command_line(main, Config, __doc__ or "")
