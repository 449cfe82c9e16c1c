"""Many runs of finetune/robot.py as one table: every cell is kept in a JSON file as soon as it is measured.

The scripts in benchmarks/ say which runs; this says how they are measured, kept and compared.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot
from rich.console import Console

from finetune import robot
from para_video.figures import display_name
from para_video.policy import DEFAULT_SCHEDULE
from para_video.rows import Row, Rows
from para_video.runs import same_settings, same_source, versions
from para_video.sims.experts import recipe
from para_video.sims.metaworld import episode_steps
from para_video.statistics import Estimate, difference, success_rate
from para_video.training import make_accelerator, write_atomically

KEY = ("task", "demos", "seed", "arm", "policy")
"""What tells rows apart."""


def measure(
    arm: str, configs: Mapping[str, robot.RobotConfig], rows: Rows, work: Path, console: Console, *, video: Path | None = None
) -> None:
    """Train, evaluate and keep those policies of an arm that have no row yet. What a cut leaves in `work` is gone on with.

    Args:
        configs: by policy; alike in task, demonstrations and seed. video: where the tuned video model of several arms is kept.

    Raises:
        ValueError: `work` has such a policy of other settings, or that began with other weights.
    """
    accelerator, folder = make_accelerator(), work
    for name, given in configs.items():
        key = {"task": given.task, "demos": given.demos, "seed": given.seed, "arm": arm, "policy": name}
        folder = setting_folder(work, given.task, given.demos, given.seed) / arm.replace(", ", "-").replace(" ", "-")
        kept = rows.find(**key)
        if any(map(counts, kept)):
            continue
        tuned_in = video or folder / "video"
        for part in (folder / name, *([tuned_in] if given.video_steps else [])):
            of_today(part, unmarked=not kept)  # older work has no mark: then its row tells
        config = replace(given, out=folder, resume=True)
        same_settings(folder / name, config, free=("out", "resume", "policies"), accelerator=accelerator)
        same_source(folder / name, robot.first_backbone(config, accelerator), config.starts, accelerator)
        demos = robot.demonstrations(config, console).demos
        tuned = robot.tune_video(config, demos, tuned_in, accelerator, console)
        policy, cost = robot.train(name, config, demos, folder / name, accelerator, console, tuned, features=folder / "features")
        cells = robot.evaluate_policy(name, policy, config, folder / name, episode_steps(config.task, config.widen))
        won = {view: digits(at is not None for at in cell["succeeded_at"].values()) for view, cell in cells.items()}
        held = {view: cell["held"] for view, cell in cells.items()}
        made = {"schedule": asdict(DEFAULT_SCHEDULE), "expert": recipe(given.task)}
        made["versions"] = versions() | robot.trained_in([cost])
        rows.add({**key, "succeeded": won, "held": held, "seconds": round(cost["seconds"], 1), **made})
        console.print(f"{' '.join(map(str, key.values()))}: " + ", ".join(f"{v} {s.count('1')}/{len(s)}" for v, s in won.items()))
    shutil.rmtree(folder / "features", ignore_errors=True)  # a gigabyte for 20 demonstrations


def of_today(part: Path, *, unmarked: bool) -> None:
    """Remove what was trained by another schedule than today's, and mark what is to come.

    Args:
        unmarked: whether what has no mark is of today.
    """
    today, mark = json.dumps(asdict(DEFAULT_SCHEDULE)), part / "schedule.json"
    if not (mark.read_text() == today if mark.is_file() else unmarked):
        shutil.rmtree(part, ignore_errors=True)
    write_atomically(mark, today.encode())


def setting_folder(work: Path, task: str, demos: int, seed: int) -> Path:
    """Where what a cut leaves is kept: another folder for demonstrations of another expert."""
    own = recipe(task)
    return work / (f"{task}-{demos}-{seed}" + (f"-expert-{own}" if own else ""))


def counts(row: Row) -> bool:
    """Whether a policy acted by the schedule of today, and, where a row tells it, learnt from today's expert."""
    return row["schedule"] == asdict(DEFAULT_SCHEDULE) and not of_another_expert(row)


def of_another_expert(told: Mapping[str, Any]) -> bool:
    """Whether a row or a run's summary tells that its demonstrations are of another expert than today's; not of those that a user
    gave, nor where it does not tell."""
    return told.get("expert") not in (None, recipe(told["task"]))


# -------------------------------------------------------------------- what rows say


def digits(happened: Iterable[bool]) -> str:
    """What happened in each episode, a digit 0 or 1 an episode, as rows hold it."""
    return "".join("01"[bool(each)] for each in happened)


def outcomes(rows: Sequence[Row], view: str = "same") -> np.ndarray:
    """(n,) 0 or 1 of every episode on a view."""
    return np.array([int(digit) for row in rows for digit in row["succeeded"][view]])


def tables(rows: Sequence[Row], view: str = "same") -> list[np.ndarray]:
    """(r, n) of each task and number of demonstrations: 0 or 1 of every training seed and episode."""
    settings = dict.fromkeys((row["task"], row["demos"]) for row in rows)
    return [np.stack([outcomes([row], view) for row in rows if (row["task"], row["demos"]) == setting]) for setting in settings]


def rate(rows: Sequence[Row], view: str = "same") -> Estimate:
    """Success with its interval; every task and number of demonstrations counts alike."""
    return success_rate(tables(rows, view))


def cell(rows: Sequence[Row], view: str = "same") -> str:
    """Successes of all episodes, for a table."""
    won = outcomes(rows, view)
    return f"{won.sum()}/{len(won)}" if len(won) else ""


def gain(rows: Sequence[Row], others: Sequence[Row], view: str = "same") -> tuple[float, float, float]:
    """Success rate of rows less that of others, and its 95 % interval as `para_video.statistics.difference` has it; every task and
    number of demonstrations counts alike.

    Raises:
        ValueError: the rows are not of the same tasks, demonstrations, seeds and numbers of episodes.
    """
    kind = lambda row: (row["task"], row["demos"], row["seed"], len(row["succeeded"][view]))  # noqa: E731
    if not rows or list(map(kind, rows)) != list(map(kind, others)):
        raise ValueError(f"rows of {list(map(kind, rows))} are compared with {list(map(kind, others))}; measure what is missing")
    found = difference(tables(rows, view), tables(others, view))
    return found.mean, found.low, found.high


def measured_alike(rows: Sequence[Row]) -> list[Row]:
    """The rows of those tasks and numbers of demonstrations that every policy has in each of its arms: means over others would not
    compare. All rows where there are no such."""
    measured: dict[tuple[str, str], set[tuple[str, int]]] = {}
    for row in rows:
        measured.setdefault((row["arm"], row["policy"]), set()).add((row["task"], row["demos"]))
    common = set.intersection(*measured.values())
    return [row for row in rows if (row["task"], row["demos"]) in common] or list(rows)


def draw_arms(
    path: Path, rows: Sequence[Row], arms: Sequence[str], policies: Sequence[str], title: str, view: str = "same"
) -> None:
    """Success over all tasks and demonstrations by arm, a bar for each policy, with its interval."""
    with matplotlib.style.context(["default", "tableau-colorblind10"]):
        figure, axes = pyplot.subplots(figsize=(8, 0.5 * len(arms) + 1.5), layout="constrained")
        for k, policy in enumerate(policies):
            for i, arm in enumerate(arms):
                if here := [row for row in rows if row["arm"] == arm and row["policy"] == policy]:
                    found, y = rate(here, view), i + 0.8 * (k - (len(policies) - 1) / 2) / len(policies)
                    error, name = [[found.mean - found.low], [found.high - found.mean]], None if i else display_name(policy)
                    axes.barh(y, found.mean, 0.8 / len(policies), xerr=error, color=f"C{k}", label=name)
        axes.set_yticks(range(len(arms)), arms)
        axes.invert_yaxis()
        axes.set(xlim=(0, 1), xlabel="success (95 %)", title=title)
        figure.legend(loc="outside lower center", ncols=len(policies))  # bars may reach anywhere
        figure.savefig(path, dpi=110)
        pyplot.close(figure)
