"""How hard each policy was tuned: learning rates tried for all, on episodes that no figure is taken from.

    python benchmarks/tuning_table.py

trains every policy at every rate in each of the ways below, lets it act on the tuning seeds, and writes results/tuning.json and the
table in docs/tuning.md. Finished parts are kept in --out; run it again after a cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from finetune import robot
from finetune.robot import RobotConfig
from para_video.demos import TUNING_SEED
from para_video.figures import write_table
from para_video.rows import Row, Rows, check_page
from para_video.runs import command_line, same_settings, same_source, told_command
from para_video.sims.metaworld import episode_steps
from para_video.training import make_accelerator

ROOT = Path(__file__).parent.parent
KEY = ("way", "policy", "learning_rate")
WAYS = {
    "default": RobotConfig(),
    "claims": RobotConfig(task="coffee-pull-v3", demos=20, steps=1200, repaint=0.5, noise=0.3, state_noise=0.0, zoom=1.5),
}
"""The default run, and as benchmarks/claims.py trains on twenty demonstrations, on the one of its tasks on which regression and ACT
succeed oftener than by chance."""
POLICIES = {
    "default": (
        "para", "regression-xyz-average", "regression-xyz-softmax", "regression-uvh-average", "regression-uvh-softmax", "act",
    ),
    "claims": ("para", "regression-xyz-softmax", "act"),
}  # fmt: skip
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 6e-3, 1.2e-2)
HEADING = """# How the policies were tuned

Every policy gets the same budget, the same demonstrations and learning rates to choose from. The episodes here are not those of any
figure in the README. One training seed, so that differences of a few episodes mean nothing.

"""


@dataclass(frozen=True)
class Config:
    """What is tried.

    Args:
        ways: how policies are trained. policies: default those of the way. learning_rates: of each policy.
        episodes: of each view. seed: of weights and training batches.
        out: where trainings are kept. results: the JSON file. page: the page whose table is replaced.
    """

    ways: tuple[str, ...] = tuple(WAYS)
    policies: tuple[str, ...] = ()
    learning_rates: tuple[float, ...] = RATES
    episodes: int = 50
    seed: int = 0
    out: Path = Path("runs/tuning")
    results: Path = ROOT / "results" / "tuning.json"
    page: Path = ROOT / "docs" / "tuning.md"

    def __post_init__(self) -> None:
        check_page(self)
        if unknown := sorted(set(self.ways) - set(WAYS)):
            raise ValueError(f"unknown ways {unknown}; choose from {', '.join(WAYS)}")


def main(config: Config) -> list[Row]:
    """Train and measure what is missing, then write the table of all rows."""
    console, accelerator = Console(), make_accelerator()
    rows = Rows(config.results, {"episodes": config.episodes, "seed": config.seed}, KEY)
    for way in config.ways:
        run = replace(WAYS[way], episodes=config.episodes, seed=config.seed)
        same_settings(config.out / way, run, free=("out", "resume", "policies", "episodes"), accelerator=accelerator)
        same_source(config.out / way, robot.first_backbone(run, accelerator), run.starts, accelerator)
        demos = robot.demonstrations(run, console).demos
        horizon = episode_steps(run.task, run.widen)
        for name in config.policies or POLICIES[way]:
            for rate in config.learning_rates:
                tried = replace(run, learning_rate=rate, resume=True)
                folder = config.out / way / f"{name}-{rate:g}"
                policy, cost = robot.train(name, tried, demos, folder, accelerator, console)
                for acting in (name, "act-plain") if name == "act" else (name,):
                    cells = robot.evaluate_policy(acting, policy, tried, folder / acting, horizon, tuning_seeds(tried.episodes))
                    cells = {view: {"successes": c["successes"], "episodes": c["episodes"]} for view, c in cells.items()}
                    rows.add({"way": way, "policy": acting, "learning_rate": rate, "cells": cells, **robot.trained_in([cost])})
                    console.print(f"{acting} {rate:g}: " + ", ".join(f"{view} {c['successes']}" for view, c in cells.items()))
    write(config, rows)
    return rows.find()


def tuning_seeds(episodes: int) -> Sequence[int]:
    return range(TUNING_SEED, TUNING_SEED + episodes)


def write(config: Config, rows: Rows) -> None:
    """The table, ways and policies in the order in which they are named."""
    named = {name: rank for rank, name in enumerate([*WAYS, *POLICIES["default"]])}
    found = sorted(
        rows.find(), key=lambda row: (named[row["way"]], named.get(row["policy"], len(named)), row["policy"], row["learning_rate"])
    )
    views = list(found[0]["cells"])
    table = []
    for row in found:
        run, cells = WAYS[row["way"]], (row["cells"][view] for view in views)
        told = [f"{cell['successes']}/{cell['episodes']}" for cell in cells]
        table.append(
            [f"{run.task.removesuffix('-v3')}, {run.demos} demonstrations", row["policy"], f"{row['learning_rate']:g}", *told]
        )
    ways = (told_command("finetune/robot.py", run, always=("task", "demos", "steps")) for run in WAYS.values())
    made = (
        f"`python benchmarks/tuning_table.py`, as by {' and '.join(f'`{way}`' for way in ways)}. Training seed "
        f"{rows.settings['seed']}, tuning seeds from {TUNING_SEED}."
    )
    header = ["trained on", "policy", "learning rate", *views]
    write_table(config.page, "benchmarks/tuning_table.py", header, table, made, heading=HEADING)


if __name__ == "__main__":
    command_line(main, Config, __doc__ or "")
