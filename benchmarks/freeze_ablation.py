"""Does a video model have to be pretrained, tuned, trained along? Every way, for PARA and for regression on the same features.

    python benchmarks/freeze_ablation.py

trains {mini-random, mini-procedural, mini} x {as it is, tuned on the demonstrations' frames} x {frozen, joint} and lets each policy
act. Rows go to results/freeze.json as they are measured, and from there into the table and picture of docs/freeze.md; run it again
after a cut, or with more tasks, demonstrations or seeds. With OMP_NUM_THREADS=1 two processes with different tasks share two cores
well.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from backbones import shipped_weights
from finetune.grid import KEY, cell, draw_arms, measure, measured_alike, setting_folder
from finetune.robot import RobotConfig
from finetune.suite_page import made_with
from para_video.checkpoint import checkpoint_digest
from para_video.figures import display_name, write_table
from para_video.rows import Row, Rows, check_page
from para_video.runs import command_line, precision_in

ROOT = Path(__file__).parent.parent
RESULTS, PAGE, README = ROOT / "results" / "freeze.json", ROOT / "docs" / "freeze.md", ROOT / "README.md"
STARTS = ("mini-random", "mini-procedural", "mini")
TAP = '{"tap": "joined"}'
"""The same features in every way."""
HEADING = """# Start, tune, freeze

The same video model from three beginnings (random weights, pretrained on synthetic clips, pretrained on simulated scenes too), as
it is or first *tuned*: trained to predict the demonstrations' frames, without actions. Then it is *frozen* under the head or
trained *jointly* with it, its generative loss going on.

![Success by arm](freeze.png)

"""


@dataclass(frozen=True)
class Config:
    """The grid.

    Args:
        tasks, demos, seeds, policies: of the grid. video_steps: of tuning. steps: of each policy. episodes: of each cell, in the
            training camera's view.
        out: where unfinished work is kept. results: the JSON file. page: the page whose table is replaced; the picture lies beside.
    """

    tasks: tuple[str, ...] = ("pick-place-v3", "hammer-v3", "coffee-pull-v3")
    demos: tuple[int, ...] = (5, 20)
    seeds: tuple[int, ...] = (0,)
    policies: tuple[str, ...] = ("para", "regression-xyz-softmax", "regression-uvh-softmax")
    video_steps: int = 400
    steps: int = 600
    episodes: int = 50
    out: Path = Path("runs/freeze")
    results: Path = RESULTS
    page: Path = PAGE

    def __post_init__(self) -> None:
        check_page(self)


@dataclass(frozen=True)
class Arm:
    """One way: where the backbone starts, whether it is tuned first, and whether it is frozen."""

    start: str
    tuned: bool
    frozen: bool

    def __str__(self) -> str:
        return f"{self.start}, {'tuned' if self.tuned else 'as is'}, {'frozen' if self.frozen else 'joint'}"


ARMS = [Arm(start, tuned, frozen) for tuned, start, frozen in itertools.product((False, True), STARTS, (True, False))]


def main(config: Config) -> list[Row]:
    """Train and measure what is missing, then write the table and the picture of all rows."""
    console = Console()
    settings = {name: asdict(config)[name] for name in ("video_steps", "steps", "episodes")}
    weights = {start: checkpoint_digest(folder) for start in STARTS if (folder := shipped_weights(start))}
    rows = Rows(config.results, settings | {"weights": weights}, KEY)
    for task, demos, seed, arm in itertools.product(config.tasks, config.demos, config.seeds, ARMS):
        run = RobotConfig(
            task=task, demos=demos, seed=seed, backbone=arm.start, backbone_options=TAP, init="none",
            train="heads" if arm.frozen else "joint",
            video_steps=config.video_steps if arm.tuned else 0, steps=config.steps, episodes=config.episodes, azimuths="0",
        )  # fmt: skip
        video = setting_folder(config.out, task, demos, seed) / f"video-{arm.start}-{config.video_steps}"
        measure(str(arm), dict.fromkeys(config.policies, run), rows, config.out, console, video=video)
    write(config, rows)
    return rows.find()


def write(config: Config, rows: Rows) -> None:
    """The table and the picture."""
    found = rows.find()
    arms = [arm for arm in map(str, ARMS) if rows.find(arm=arm)]
    columns = list(dict.fromkeys((row["task"], row["demos"], row["policy"]) for row in found))
    titles = []
    for task, demos, policy in columns:
        precisions = {precision_in(row) for row in rows.find(task=task, demos=demos, policy=policy) if "versions" in row}
        told = f" ({' and '.join(sorted(precisions))})" if precisions else ""
        titles.append(f"{task.removesuffix('-v3')}, {demos} demonstrations: {display_name(policy)}{told}")
    table = []
    for arm in arms:
        cells = [cell(rows.find(arm=arm, task=task, demos=demos, policy=policy)) for task, demos, policy in columns]
        table.append([arm, *(text or "–" for text in cells)])
    seeds = sorted({row["seed"] for row in found})
    made = (
        f"`python benchmarks/freeze_ablation.py`: {config.video_steps} steps of tuning, {config.steps} of each policy, training "
        f"seeds {', '.join(map(str, seeds))}; successes in the training camera's view; "
        f"{len(found)} of {len(ARMS) * len(columns) * len(seeds)} cells are measured (– is not); "
        f"{sum(row['seconds'] for row in found) / 3600:.1f} hours of training, that of backbones before it left out; "
        f"{made_with(found)}."
    )
    for page in (config.page, README) if config.page == PAGE else (config.page,):
        write_table(page, "benchmarks/freeze_ablation.py", ["start, tuning, training", *titles], table, made, heading=HEADING)
    policies = list(dict.fromkeys(row["policy"] for row in found))
    shown = measured_alike(found)
    settings = dict.fromkeys((row["task"], row["demos"]) for row in shown)
    title = "; ".join(f"{task.removesuffix('-v3')}, {demos} demonstrations" for task, demos in settings)
    draw_arms(config.page.with_name("freeze.png"), shown, arms, policies, title)


if __name__ == "__main__":
    command_line(main, Config, __doc__ or "")
