"""What heatmaps allow beyond decoding their peak, measured beside the policy as it is, on the same episodes.

    python benchmarks/beyond.py runs/robot/para

Doubt: does the entropy of a decision foretell its error and the episode's failure, and does it pay to decide again sooner, or with
more looks, where it is high? Looks: crops and rolls of the image, averaged. Cameras: a second one, alone and added. Rows go to
results/beyond.json as they are measured, and from there into the tables and the pictures of docs/beyond.md; run it again after a
cut. `--first-seed 90500 --results FILE --page FILE` looks at episodes that no figure is taken from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot

from finetune.grid import KEY, digits, draw_arms
from finetune.robot import cell_name, measured
from finetune.trained import MeasureConfig, Trained, load_trained, told
from para_video.agent import VideoPolicy
from para_video.confidence import Cautious, Decision, Witness, calibration
from para_video.demos import TUNING_SEED
from para_video.figures import display_name, write_table
from para_video.fusion import FromView, ManyCameras, ManyLooks
from para_video.policy import DEFAULT_SCHEDULE, Policy
from para_video.rollout import Cell, Episode, rollout
from para_video.rows import Row, Rows
from para_video.runs import command_line
from para_video.sims.metaworld import MetaWorldServo
from para_video.sims.shifts import ManyViews, Shift, parse_shifts

ROOT = Path(__file__).parent.parent
NAME = "benchmarks/beyond.py"
PLAIN = "as it is"
ARMS: dict[str, Callable[[VideoPolicy, float], Policy]] = {
    PLAIN: lambda policy, limit: policy,
    "decides again after one target when in doubt": Cautious,
    "more looks when in doubt": lambda policy, limit: Cautious(
        policy, limit, executed=DEFAULT_SCHEDULE.executed, fallback=ManyLooks(policy)
    ),
    "more looks": lambda policy, limit: ManyLooks(policy),
    "the other camera alone": lambda policy, limit: FromView(policy, "other"),
    "both cameras": lambda policy, limit: ManyCameras(policy, ("main", "other")),
}  # fmt: skip
"""From a policy, and the doubt in nats beyond which a decision is not trusted."""
HEADING = f"""# Beyond the peak of a heatmap

Ways to use what only a distribution over the image offers, none of which needs another training. Success on the same episodes;
gains are over the policy as it is, with 95 % intervals by bootstrap over episodes: what pays has one above zero.

![Success by what is done]({{picture}})

<!-- table: {NAME} -->
<!-- end of table -->

## Does doubt foretell errors?

Decisions of the policy as it is: Spearman's correlation of doubt with the distance from the expert's targets; how well doubt tells
the quarter of the largest errors, and an episode's mean doubt its failure (areas under the ROC curve, 0.5 is chance).

![Errors by doubt]({{doubts}})

"""


@dataclass(frozen=True)
class Config(MeasureConfig):
    """Measure what heatmaps allow beside."""

    results: Path = ROOT / "results" / "beyond.json"
    page: Path = ROOT / "docs" / "beyond.md"
    shifts: str = "none; azimuth=18"
    """What policies act under, separated by semicolons; see finetune/robot.py."""
    other: str = "azimuth=-18"
    """Where the other camera stands, as a shift from the training camera."""
    quantile: float = 0.75
    """Share of decisions, on tuning episodes in the training setting, that are not in doubt."""
    tuning_episodes: int = 20
    """Episodes from which that is taken; they are not evaluated on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tuning_episodes < 1 or self.first_seed < TUNING_SEED + self.tuning_episodes:
            raise ValueError(
                f"tuning_episodes must be at least 1, and end before first_seed: they are from {TUNING_SEED} on; "
                f"got {self.tuning_episodes} and {self.first_seed}"
            )


def main(config: Config) -> list[Row]:
    """Measure what is missing, then write tables and pictures of all rows."""
    shifts = parse_shifts(config.shifts)
    names = ("other", "quantile", "tuning_episodes", "episodes", "first_seed")
    settings = {"shifts": [str(shift) for shift in shifts], **{name: getattr(config, name) for name in names}}
    rows = Rows(config.results, settings, KEY)
    for folder in config.runs:
        trained = load_trained(folder, config.trust)
        for arm in ARMS:
            if trained.missing(rows, arm=arm):
                limit = doubt_limit(trained, config) if arm == PLAIN else rows.find(**trained.key, arm=PLAIN)[0]["limit"]
                trained.add(rows, {"limit": limit, **act(trained, arm, limit, shifts, config)}, arm=arm)
    write(config, rows)
    print(f"tables and figures: {config.page}")
    return rows.find()


def doubt_limit(trained: Trained, config: Config) -> float:
    """The quantile of doubt on tuning episodes."""
    seeds = range(TUNING_SEED, TUNING_SEED + config.tuning_episodes)
    _, decisions = episodes(trained, trained.policy, Shift(), seeds, config, "tuning", watch=True)
    return round(float(np.quantile([decision.entropy for decision in decisions], config.quantile)), 4)


def act(trained: Trained, arm: str, limit: float, shifts: Sequence[Shift], config: Config) -> Row:
    """By shift, outcomes of an arm's episodes and a decision's milliseconds; of the policy as it is, what its doubt is worth."""
    begin = time.perf_counter()
    row: dict[str, Any] = {"succeeded": {}, "act_ms": {}, "calibration": {}}
    for shift in shifts:
        view, policy = cell_name(shift), ARMS[arm](trained.policy, limit)
        cell, decisions = episodes(trained, policy, shift, config.seeds, config, arm, watch=arm == PLAIN)
        row["succeeded"][view], row["act_ms"][view] = digits(each.succeeded for each in cell.episodes), round(cell.act_ms[0], 1)
        if decisions:
            measures = ("entropy", "surprise")
            row["calibration"][view] = {measure: calibration(decisions, cell.episodes, measure) for measure in measures}
    return {**row, "seconds": round(time.perf_counter() - begin, 1)}


def episodes(
    trained: Trained, policy: Policy, shift: Shift, seeds: Sequence[int], config: Config, label: str, *, watch: bool
) -> tuple[Cell, list[Decision]]:
    """Episodes under both cameras, and every decision in them if they are watched."""
    with trained.config.env(shift) as env:
        both = ManyViews(env, {"other": Shift.parse(config.other).moved(trained.config.camera)})
        witness = Witness(env)

        def run(seed: int) -> Episode:
            witness.seed, told = seed, witness if watch else None
            return rollout(
                both, policy, MetaWorldServo(), seed, context=trained.config.context, horizon=trained.horizon, on_decision=told
            )

        return measured(run, seeds, f"{trained.name}, {cell_name(shift)}: {label}"), witness.decisions


# -------------------------------------------------------------------- the page


def write(config: Config, rows: Rows) -> None:
    """Tables and pictures."""
    found = config.found(rows)
    policies, views = list(dict.fromkeys(row["policy"] for row in found)), list(found[0]["succeeded"])
    tasks = ", ".join(dict.fromkeys(f"{row['task']} from {row['demos']} demonstrations" for row in found))
    made = (
        f"`python {NAME} RUN...`: {tasks}; {config.episodes} episodes from seed {config.first_seed}; the other camera: "
        f"{config.other}; {sum(row['seconds'] for row in found) / 60:.0f} minutes."
    )
    table = []
    for row in rows.find(arm=PLAIN):
        for view in views:
            for measure, worth in row["calibration"][view].items():
                numbers = [worth[name] for name in ("rank_correlation", "error_auroc", "failure_auroc")]
                shown = ["" if number is None else f"{number:.2f}" for number in numbers]
                table.append([f"{row['task']}, {row['demos']}", display_name(view), measure, *shown, str(worth["decisions"])])
    header = ["task, demonstrations", "seen from", "doubt", "correlation with error", "tells large errors", "tells failure", "n"]
    picture, doubts = config.page.with_suffix(".png"), config.page.with_name(f"{config.page.stem}-doubt.png")
    heading = HEADING.format(picture=picture.name, doubts=doubts.name)
    write_table(config.page, f"{NAME}, doubt", header, table, made, heading=heading)
    table = []
    for policy in policies:
        for arm in ARMS:
            cells = [text for view in views for text in told(rows, policy, arm, PLAIN, view)]
            measured_rows = rows.find(policy=policy, arm=arm)
            if measured_rows:
                cost = f"{np.median([row['act_ms'][views[0]] for row in measured_rows]):.0f}"
                table.append([display_name(policy), arm, *cells, cost])
    header = ["policy", "what is done", *(text for view in views for text in (display_name(view), "gain")), "ms a decision"]
    write_table(config.page, NAME, header, table, made)
    draw_arms(picture, found, list(ARMS), policies, f"Success, {display_name(views[0])}", views[0])
    draw_doubt(doubts, rows.find(arm=PLAIN))


def draw_doubt(path: Path, rows: Sequence[Row]) -> None:
    """Median and 90th percentile of the error by entropy, a line for each policy and view."""
    with matplotlib.style.context(["default", "tableau-colorblind10"]):
        figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
        lines = [(row, view) for row in rows for view in row["calibration"]]
        for i, (row, view) in enumerate(lines):
            curve = row["calibration"][view]["entropy"]["curve"]
            x, median, p90 = zip(*((part["doubt"], part["error_mm"], part["error_mm_p90"]) for part in curve), strict=True)
            told_name = f"{display_name(row['policy'])}, {row['task']}, {display_name(view)}"
            axes.plot(x, median, marker="os^Dv"[i % 5], color=f"C{i}", label=told_name)
            axes.plot(x, p90, color=f"C{i}", linestyle="--", label="its 90th percentile")
        axes.set(xlabel="entropy of a decision (nats)", ylabel="error against the expert (mm)")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8)
        figure.savefig(path, dpi=110)
        pyplot.close(figure)


if __name__ == "__main__":
    command_line(main, Config, __doc__ or "")
