"""What do circles teach? Few demonstrations, from a policy that was pretrained on circles, or from a part of it.

    python pretrain/circles.py --out runs/circles
    python pretrain/circles.py --policy regression --out runs/circles-regression
    python benchmarks/circle_arms.py

trains every policy from {nothing, the circles' backbone, their head, both} on top of the shipped video model, and from the shipped
heads, which were trained on the frozen video model; and lets each act. Regression starts from its own circles. Rows go to
results/circle_arms.json as they are measured, and from there into the table and picture of docs/circle_arms.md; run it again
after a cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from backbones import shipped_heads
from finetune.grid import KEY, cell, draw_arms, gain, measure, measured_alike
from finetune.robot import RobotConfig
from finetune.suite_page import made_with
from para_video.checkpoint import checkpoint_digest
from para_video.figures import write_table
from para_video.rows import Row, Rows, check_page
from para_video.runs import command_line

ROOT = Path(__file__).parent.parent
ARMS = {"none": None, "backbone": "backbone", "head": "head", "both": "both", "shipped head": "both"}
"""What is taken from circles by the arm's name."""
HEADING = """# What circles teach

Few demonstrations, and a start from nothing but the shipped video model, or from parts of a policy that learnt to track and
predict circles; "shipped head" is the one that comes with the package, which learnt them on the frozen video model. Gains are over
the arm "none" of the same policy on the tasks that both have, with 95 % intervals by bootstrap over episodes. The picture has the
tasks that were measured in every arm; an empty cell is still to be measured.

![Success by arm](circle_arms.png)

"""


@dataclass(frozen=True)
class Config:
    """The grid.

    Args:
        circles, regression: checkpoints of pretrain/circles.py, for each policy. tasks, demos, seeds, arms: of the grid. steps: of
            each policy. episodes: of each cell, in the training camera's view and at 18 degrees.
        out: where unfinished work is kept. results: the JSON file. page: the page whose table is replaced; the picture lies beside.
    """

    circles: Path = Path("runs/circles")
    regression: Path = Path("runs/circles-regression")
    tasks: tuple[str, ...] = ("pick-place-v3", "hammer-v3", "coffee-pull-v3")
    demos: tuple[int, ...] = (5,)
    seeds: tuple[int, ...] = (0,)
    arms: tuple[str, ...] = tuple(ARMS)
    steps: int = 900
    episodes: int = 50
    out: Path = Path("runs/circle-arms")
    results: Path = ROOT / "results" / "circle_arms.json"
    page: Path = ROOT / "docs" / "circle_arms.md"

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.arms) - set(ARMS)):
            raise ValueError(f"unknown arms {unknown}; choose from {', '.join(ARMS)}")
        check_page(self)


def main(config: Config) -> list[Row]:
    """Train and measure what is missing, then write the table and the picture of all rows."""
    console, shipped = Console(), shipped_heads("mini")
    assert shipped is not None
    starts = {"circles": config.circles, "regression": config.regression, "shipped": shipped}
    settings = {name: asdict(config)[name] for name in ("steps", "episodes")}
    rows = Rows(config.results, settings | {"weights": {name: checkpoint_digest(folder) for name, folder in starts.items()}}, KEY)
    for task, demos, seed, arm in itertools.product(config.tasks, config.demos, config.seeds, config.arms):
        taken = {"para": shipped} if arm == "shipped head" else {"para": config.circles, "regression": config.regression}
        configs = {
            name: RobotConfig(
                task=task, demos=demos, seed=seed, init=str(start) if ARMS[arm] else "none", init_part=ARMS[arm] or "both",
                steps=config.steps, episodes=config.episodes,
            )
            for name, start in taken.items()
        }  # fmt: skip
        measure(arm, configs, rows, config.out, console)
    write(config, rows)
    return rows.find()


def write(config: Config, rows: Rows) -> None:
    """The table and the picture."""
    found = rows.find()
    arms = [arm for arm in ARMS if rows.find(arm=arm)]
    tasks, policies = (list(dict.fromkeys(row[name] for row in found)) for name in ("task", "policy"))
    views = list(found[0]["succeeded"])
    table = []
    for policy, arm in itertools.product(policies, arms):
        cells = [cell(rows.find(policy=policy, arm=arm, task=task), view) for task in tasks for view in views]
        if any(cells):
            table.append([policy, arm, *cells, *(told_gain(rows, policy, arm, view) for view in views)])
    titles = [f"{task.removesuffix('-v3')}, {view}" for task in tasks for view in views]
    header = ["policy", "from circles", *titles, *(f"gain, {view}" for view in views)]
    demos, seeds = (", ".join(map(str, sorted({row[name] for row in found}))) for name in ("demos", "seed"))
    made = (
        f"`python benchmarks/circle_arms.py`: {demos} demonstrations, {config.steps} steps of each policy, training seeds {seeds}; "
        f"successes; {sum(row['seconds'] for row in found) / 3600:.1f} hours of training; {made_with(found)}."
    )
    write_table(config.page, "benchmarks/circle_arms.py", header, table, made, heading=HEADING)
    shown = measured_alike(found)
    title = f"{', '.join(sorted({row['task'].removesuffix('-v3') for row in shown}))}, training camera's view"
    draw_arms(config.page.with_name("circle_arms.png"), shown, arms, policies, title)


def told_gain(rows: Rows, policy: str, arm: str, view: str) -> str:
    """The gain over nothing in percentage points, on the tasks that both have."""
    with_arm = rows.find(policy=policy, arm=arm)
    tasks: Sequence[str] = [row["task"] for row in with_arm]
    without = [row for row in rows.find(policy=policy, arm="none") if row["task"] in tasks]
    if arm == "none" or len(without) != len(with_arm):
        return ""
    points = [100 * number for number in gain(with_arm, without, view)]
    return f"{points[0]:+.0f} ({points[1]:+.0f} to {points[2]:+.0f})"


if __name__ == "__main__":
    command_line(main, Config, __doc__ or "")
