"""What holds trained policies back: closed loop with parts of their answers replaced by the truth.

    python benchmarks/ladder.py runs/robot/para runs/robot/regression runs/robot/act

lets every policy act with the true pixel, height, gripper command and servo, each alone and one after the other (see
para_video/ladder.py). Rows go to results/ladder.json as they are measured, and from there into the tables and the picture of
docs/ladder.md; run it again after a cut. `--first-seed 90000 --results FILE --page FILE` looks at episodes that no figure is taken
from.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from finetune.grid import KEY, digits, draw_arms
from finetune.robot import actor, cell_name, measured
from finetune.trained import MeasureConfig, Trained, load_trained, told
from para_video.figures import display_name, write_table
from para_video.ladder import RUNGS, Rung
from para_video.rollout import rollout
from para_video.rows import Row, Rows
from para_video.runs import command_line
from para_video.sims.metaworld import MetaWorldServo
from para_video.sims.shifts import Shift, parse_shifts

ROOT = Path(__file__).parent.parent
NAME = "benchmarks/ladder.py"
HEADING = f"""# What holds a policy back

At each decision parts of a policy's answer are replaced by the truth: by what the scripted expert would do from the present state.
With pixel, height and gripper replaced a policy is the re-planning oracle; with the servo's distribution of moves as well, it is
the expert. `para_video/ladder.py` says what each part is.

![Success by what is replaced]({{picture}})

## Errors at the states that the policies visit themselves

Answers against the truth over the targets that are carried out: medians, in brackets the 90th percentile; the share of gripper
commands that are told the other way.

<!-- table: {NAME}, errors -->
<!-- end of table -->

## Success

Gains are over the policy as it is, on the same episodes, with 95 % intervals by bootstrap over episodes.

"""


@dataclass(frozen=True)
class Config(MeasureConfig):
    """Measure the ladder of trained policies."""

    results: Path = ROOT / "results" / "ladder.json"
    page: Path = ROOT / "docs" / "ladder.md"
    shifts: str = "none"
    """What policies act under, separated by semicolons; see finetune/robot.py."""


def main(config: Config) -> list[Row]:
    """Measure what is missing, then write tables and picture of all rows."""
    shifts = parse_shifts(config.shifts)
    settings = {"shifts": [str(shift) for shift in shifts], "episodes": config.episodes, "first_seed": config.first_seed}
    rows = Rows(config.results, settings, KEY)
    for folder in config.runs:
        trained = load_trained(folder, config.trust)
        for parts in RUNGS:
            if trained.missing(rows, arm=arm_of(parts)):
                trained.add(rows, climb(trained, parts, shifts, config), arm=arm_of(parts))
    write(config, rows)
    print(f"tables and figures: {config.page}")
    return rows.find()


def arm_of(parts: Sequence[str]) -> str:
    """What a rung is called."""
    return " + ".join(parts) or "nothing"


def climb(trained: Trained, parts: Sequence[str], shifts: Sequence[Shift], config: Config) -> Row:
    """Outcomes of a rung's episodes by shift, and the errors that the policy's own answers had there."""
    begin, succeeded, errors = time.perf_counter(), {}, {}
    for shift in shifts:
        with trained.config.env(shift) as env:
            rung = Rung(env, actor(trained.name, trained.policy), trained.policy, MetaWorldServo(), parts)
            run = partial(rollout, env, rung, rung, context=trained.config.context, horizon=trained.horizon)
            view = cell_name(shift)
            cell = measured(run, config.seeds, f"{trained.name}, {view}: {arm_of(parts)} replaced")
            succeeded[view] = digits(each.succeeded for each in cell.episodes)
            errors[view] = rung.errors.summary()
    return {"succeeded": succeeded, "errors": errors, "seconds": round(time.perf_counter() - begin, 1)}


# -------------------------------------------------------------------- the page


def write(config: Config, rows: Rows) -> None:
    """Tables and picture."""
    found = config.found(rows)
    policies, views = list(dict.fromkeys(row["policy"] for row in found)), list(found[0]["succeeded"])
    tasks = ", ".join(dict.fromkeys(f"{row['task']} from {row['demos']} demonstrations" for row in found))
    made = (
        f"`python {NAME} RUN...`: {tasks}; {config.episodes} episodes from seed {config.first_seed}; "
        f"{sum(row['seconds'] for row in found) / 60:.0f} minutes."
    )
    columns = [(policy, view) for policy in policies for view in views]
    titles = [f"{display_name(policy)}, {display_name(view)}" for policy, view in columns]
    table = [
        [arm, *(text for policy, view in columns for text in told(rows, policy, arm, "nothing", view))]
        for arm in map(arm_of, RUNGS)
    ]  # fmt: skip
    header = ["replaced", *(text for title in titles for text in (title, "gain"))]
    write_table(config.page, NAME, header, table, made, heading=HEADING.format(picture=f"{config.page.stem}.png"))
    header = ["task", "policy", "seen from", "pixel, px", "height, mm", "in space, mm", "gripper told otherwise"]
    table = [errors_of(row, view) for row in rows.find(arm="nothing") for view in views]
    write_table(config.page, f"{NAME}, errors", header, table, made)
    arms = [arm_of(parts) for parts in RUNGS]
    for view in views:
        suffix = "" if view == views[0] else f"-{view}"
        path = config.page.with_name(f"{config.page.stem}{suffix}.png")
        draw_arms(path, found, arms, policies, f"Success with parts replaced by the truth, {display_name(view)}", view)


def errors_of(row: Row, view: str) -> list[str]:
    """Medians and 90th percentiles of a policy's own answers."""
    errors = row["errors"][view]
    numbers = [f"{errors[name]:.1f} ({errors[f'{name}_p90']:.1f})" for name in ("px", "height_mm", "mm")]
    policy = display_name(row["policy"])
    return [f"{row['task']}, {row['demos']}", policy, display_name(view), *numbers, f"{errors['gripper']:.1%}"]


if __name__ == "__main__":
    command_line(main, Config, __doc__ or "")
