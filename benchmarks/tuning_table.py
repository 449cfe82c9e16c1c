"""How hard each policy was tuned: the same learning rates tried for all, on episodes that no figure is taken from.

    python benchmarks/tuning_table.py

trains every policy at every rate as finetune/robot.py does by default, lets it act on the tuning seeds, and writes
results/tuning.json and the table in docs/tuning.md. Finished parts are kept in --out; run it again after a cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rich.console import Console

from finetune import robot
from para_video.demos import TUNING_SEED
from para_video.figures import write_table
from para_video.rollout import horizon_for
from para_video.rows import Row, Rows
from para_video.runs import command_line, same_settings, same_source
from para_video.training import make_accelerator

ROOT = Path(__file__).parent.parent
HEADING = """# How the policies were tuned

Every policy gets the same budget, the same demonstrations and the same learning rates to choose from. The episodes here are not
those of any figure in the README. One training seed, so that differences of a few episodes mean nothing.

"""


@dataclass(frozen=True)
class Config:
    """What is tried.

    Args:
        policies, learning_rates: each of the ones with each of the others. robot: everything else, as finetune/robot.py takes it.
        out: where trainings are kept. results: the JSON file. page: the page whose table is replaced.
    """

    policies: tuple[str, ...] = (
        "para", "regression-xyz-average", "regression-xyz-softmax", "regression-uvh-average", "regression-uvh-softmax", "act",
    )  # fmt: skip
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 6e-3)
    robot: robot.RobotConfig = field(default_factory=robot.RobotConfig)
    out: Path = Path("runs/tuning")
    results: Path = ROOT / "results" / "tuning.json"
    page: Path = ROOT / "docs" / "tuning.md"


def main(config: Config) -> list[Row]:
    """Train and measure what is missing, then write the table of all rows."""
    console, accelerator = Console(), make_accelerator()
    same_settings(config.out, config.robot, free=("out", "resume", "policies", "episodes"), accelerator=accelerator)
    same_source(config.out, robot.first_backbone(config.robot, accelerator), config.robot.starts, accelerator)
    demos = robot.demonstrations(config.robot, console).demos
    with config.robot.env() as env:
        horizon = horizon_for(env)
    settings = {name: asdict(config.robot)[name] for name in ("task", "demos", "steps", "batch_size", "episodes", "seed")}
    rows = Rows(config.results, settings, ("policy", "learning_rate"))
    for name in config.policies:
        for rate in config.learning_rates:
            tried = replace(config.robot, learning_rate=rate, resume=True)
            folder = config.out / f"{name}-{rate:g}"
            policy, _ = robot.train(name, tried, demos, folder, accelerator, console)
            for acting in (name, "act-plain") if name == "act" else (name,):
                cells = robot.evaluate_policy(acting, policy, tried, folder / acting, horizon, tuning_seeds(tried.episodes))
                cells = {view: {"successes": c["successes"], "episodes": c["episodes"]} for view, c in cells.items()}
                rows.add({"policy": acting, "learning_rate": rate, "cells": cells})
                console.print(f"{acting} {rate:g}: " + ", ".join(f"{view} {c['successes']}" for view, c in cells.items()))
    write(config, rows)
    return rows.find()


def tuning_seeds(episodes: int) -> Sequence[int]:
    return range(TUNING_SEED, TUNING_SEED + episodes)


def write(config: Config, rows: Rows) -> None:
    """The table, policies in the order in which they are named."""
    named, settings = {name: rank for rank, name in enumerate(Config.policies)}, rows.settings
    found = sorted(rows.find(), key=lambda row: (named.get(row["policy"], len(named)), row["policy"], row["learning_rate"]))
    views = list(found[0]["cells"])
    table = []
    for row in found:
        cells = [f"{row['cells'][view]['successes']}/{row['cells'][view]['episodes']}" for view in views]
        table.append([row["policy"], f"{row['learning_rate']:g}", *cells])
    made = (
        f"`python benchmarks/tuning_table.py`: {settings['task']}, {settings['demos']} demonstrations, {settings['steps']} steps "
        f"of {settings['batch_size']} clips, training seed {settings['seed']}, tuning seeds from {TUNING_SEED}."
    )
    write_table(config.page, "benchmarks/tuning_table.py", ["policy", "learning rate", *views], table, made, heading=HEADING)


if __name__ == "__main__":
    command_line(main, Config, __doc__ or "")
