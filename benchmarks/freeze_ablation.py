"""Does a video model have to be tuned? Every way to start, tune and freeze it, for PARA and for regression on the same features.

    python benchmarks/freeze_ablation.py --procedural runs/video-procedural --mini runs/video

trains {random, procedural, mini} x {as it is, tuned on the demonstrations' frames} x {frozen, joint} and lets each policy act.
Writes results/freeze.json and the table and picture of docs/freeze.md. Every finished training and cell is kept in --out: run it
again after a cut, or with more tasks, demonstrations or seeds. Features of frozen models are cached under ~/.cache/para_video,
about a gigabyte for 20 demonstrations, and may be removed at any time.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import tyro
from matplotlib import pyplot
from rich.console import Console

from finetune import robot
from para_video.figures import write_table
from para_video.rollout import horizon_for, wilson_interval
from para_video.runs import same_settings
from para_video.training import make_accelerator, write_atomically

ROOT = Path(__file__).parent.parent
HEADING = """# Start, tune, freeze

The same video model from three beginnings, as it is or first tuned on the demonstrations' frames (no actions), then frozen under
the head or trained jointly with it.

![Success by arm](freeze.png)

"""


@dataclass(frozen=True)
class Config:
    """The grid.

    Args:
        procedural, mini: checkpoints of pretrain/video.py without and with the simulator's clips. tasks, demos, seeds, policies: of
            the grid. video_steps: of tuning. steps: of each policy. episodes: of each cell, in the training camera's view.
        out: where everything is kept. results: the JSON file. page: the page whose table is replaced; the picture lies beside it.
    """

    procedural: Path
    mini: Path
    tasks: tuple[str, ...] = ("pick-place-v3", "hammer-v3", "coffee-pull-v3")
    demos: tuple[int, ...] = (5, 20)
    seeds: tuple[int, ...] = (0,)
    policies: tuple[str, ...] = ("para", "regression-xyz-softmax", "regression-uvh-softmax")
    video_steps: int = 400
    steps: int = 600
    episodes: int = 50
    out: Path = Path("runs/freeze")
    results: Path = ROOT / "results" / "freeze.json"
    page: Path = ROOT / "docs" / "freeze.md"


@dataclass(frozen=True)
class Arm:
    """One way: where the backbone starts, whether it is tuned first, and whether it is frozen."""

    start: str
    tuned: bool
    frozen: bool

    def __str__(self) -> str:
        return f"{self.start}, {'tuned' if self.tuned else 'as is'}, {'frozen' if self.frozen else 'joint'}"


ARMS = [Arm(*parts) for parts in itertools.product(("random", "procedural", "mini"), (False, True), (True, False))]


def main(config: Config) -> list[dict[str, Any]]:
    """Train and measure what is missing, then write all rows."""
    console, accelerator = Console(), make_accelerator("bf16")
    free = ("out", "tasks", "demos", "seeds", "policies", "results", "page")
    same_settings(config.out, config, free=free, accelerator=accelerator)
    rows: list[dict[str, Any]] = []
    for task, demos, seed, arm in itertools.product(config.tasks, config.demos, config.seeds, ARMS):
        for row in measured(task, demos, seed, arm, config, console):
            rows.append(row)
            console.print(f"{row['task']} {row['demos']} {row['arm']} {row['policy']}: {row['successes']}/{row['episodes']}")
    write(config, rows)
    return rows


def measured(task: str, demos: int, seed: int, arm: Arm, config: Config, console: Console) -> Iterator[dict[str, Any]]:
    """The cell of each policy of one arm."""
    folder = config.out / f"{task}-{demos}-{seed}" / str(arm).replace(", ", "-").replace(" ", "-")
    settings = robot.RobotConfig(
        task=task, demos=demos, seed=seed, init={"random": None, "procedural": config.procedural, "mini": config.mini}[arm.start],
        train="heads" if arm.frozen else "joint", video_steps=config.video_steps if arm.tuned else 0, steps=config.steps,
        episodes=config.episodes, azimuths="0", out=folder, resume=True,
    )  # fmt: skip
    accelerator = make_accelerator("bf16")
    shown = robot.demonstrations(settings, console).demos
    video = robot.tune_video(settings, shown, folder.parent / f"video-{arm.start}", accelerator, console)
    for name in config.policies:
        policy, cost = robot.train(name, settings, shown, folder / name, accelerator, console, video)
        cell = robot.evaluate_policy(name, policy, settings, folder / name, horizon_of(task))["same"]
        kept = {key: cell[key] for key in ("successes", "held", "episodes")}
        yield {"task": task, "demos": demos, "seed": seed, "arm": str(arm), "policy": name, **kept, "seconds": cost["seconds"]}


@functools.cache
def horizon_of(task: str) -> int:
    """Control steps of an episode, from the expert's."""
    with robot.RobotConfig(task=task).env() as env:
        return horizon_for(env)


def write(config: Config, rows: Sequence[dict[str, Any]]) -> None:
    """The JSON file, the table and the picture."""
    settings = {name: asdict(config)[name] for name in ("video_steps", "steps", "episodes", "seeds")}
    write_atomically(config.results, (json.dumps({"settings": settings, "rows": list(rows)}, indent=1) + "\n").encode())
    columns = list(dict.fromkeys((row["task"], row["demos"], row["policy"]) for row in rows))
    titles = [f"{task.removesuffix('-v3')}, {demos}: {policy}" for task, demos, policy in columns]
    table = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        cells = []
        for key in columns:
            found = [row for row in rows if row["arm"] == arm and (row["task"], row["demos"], row["policy"]) == key]
            cells.append(f"{sum(r['successes'] for r in found)}/{sum(r['episodes'] for r in found)}" if found else "")
        table.append([arm, *cells])
    made = (
        f"`python benchmarks/freeze_ablation.py`: {config.video_steps} steps of tuning, {config.steps} of each policy, training "
        f"seeds {', '.join(map(str, config.seeds))}; successes in the training camera's view."
    )
    header = ["start, tuning, training", *titles]
    write_table(config.page, "benchmarks/freeze_ablation.py", header, table, made, heading=HEADING)
    draw(config, rows)


def draw(config: Config, rows: Sequence[dict[str, Any]]) -> None:
    """Success over all tasks and demonstrations by arm, a bar each policy, with Wilson's intervals."""
    arms, policies = list(dict.fromkeys(row["arm"] for row in rows)), list(dict.fromkeys(row["policy"] for row in rows))
    with matplotlib.style.context("default"):
        figure, axes = pyplot.subplots(figsize=(8, 0.5 * len(arms) + 1.5), layout="constrained")
        for k, policy in enumerate(policies):
            for i, arm in enumerate(arms):
                found = [row for row in rows if row["arm"] == arm and row["policy"] == policy]
                won, n = sum(row["successes"] for row in found), sum(row["episodes"] for row in found)
                if n:
                    low, high = wilson_interval(won, n)
                    y, rate = i + 0.8 * (k - (len(policies) - 1) / 2) / len(policies), won / n
                    error = [[rate - low], [high - rate]]
                    axes.barh(y, rate, 0.8 / len(policies), xerr=error, color=f"C{k}", label=None if i else policy)
        axes.set_yticks(range(len(arms)), arms)
        axes.invert_yaxis()
        axes.set(xlim=(0, 1), xlabel="success, all tasks and demonstrations (Wilson 95 %)")
        axes.legend(loc="lower right")
        figure.savefig(config.page.with_name("freeze.png"), dpi=110)
        pyplot.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
