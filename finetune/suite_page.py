"""What a suite's rows say, as Markdown: estimates with intervals, differences, and tables that name what made them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any

import numpy as np

from finetune.grid import of_another_expert
from finetune.suite import REFERENCES, Experiment, Grid
from para_video.figures import display_name, markdown_table
from para_video.rows import Row
from para_video.runs import precision_in
from para_video.sims.shifts import Shift
from para_video.statistics import Estimate, difference, success_rate

Outcomes = dict[tuple[str, int], list[float]]
"""Episodes by task and training seed: 0 or 1, or the share of several views in which the episode succeeded."""


MOST_REPLAYED = 0.25
"""Share of episodes that a blind replay may solve for a task to tell policies apart (docs/oracle.md)."""


@dataclass(frozen=True)
class Target:
    """A line of what the project wants to show.

    Args:
        text: what is measured. share: of success that PARA is to reach. experiment, demos, views, arm: where its rows are. besides:
            policies beside it. other_arm: what PARA is compared with in place of policies. remark: printed behind.
    """

    text: str
    share: float
    experiment: str
    demos: int
    views: tuple[str, ...]
    arm: str = ""
    besides: tuple[str, ...] = ()
    other_arm: str | None = None
    remark: str = ""


def outcomes(rows: Sequence[Row], views: Sequence[str] = ("none",), **key: Any) -> Outcomes:
    """The episodes of all rows with these values of their key, averaged over the views that share them; where one of the views
    is missing, nothing."""
    by_view = {
        view: {
            (row["task"], row["seed"]): [int(digit) for digit in row["succeeded"]]
            for row in rows
            if row["view"] == view and all(row[name] == value for name, value in key.items())
        }
        for view in views
    }
    whole = [place for place in by_view[views[0]] if all(place in found for found in by_view.values())]
    return {place: [fmean(each) for each in zip(*(by_view[view][place] for view in views), strict=False)] for place in whole}


def ordered(rows: Sequence[Row], experiment: Experiment) -> list[Row]:
    """Rows in the order in which an experiment names arms, tasks, policies and views; what it does not name comes last."""
    grids = experiment.grids
    named = {
        "arm": [grid.arm for grid in grids],
        "demos": sorted({row["demos"] for row in rows}),
        "task": [task for grid in grids for task in grid.tasks],
        "seed": sorted({row["seed"] for row in rows}),
        "policy": [policy for grid in grids for policy in grid.policies] + [*REFERENCES],
        "view": [view for grid in grids for view in grid.views],
    }
    ranks = {name: {value: rank for rank, value in reversed(list(enumerate(values)))} for name, values in named.items()}
    return sorted(rows, key=lambda row: [ranks[name].get(row[name], len(named[name])) for name in named])


def by_task(found: Outcomes, places: Sequence[tuple[str, int]] | None = None) -> list[np.ndarray]:
    """Tables (r, n) of each task, of the places that are named; n is what all its training seeds have."""
    tables = []
    chosen = list(found) if places is None else places
    for task in dict.fromkeys(task for task, _ in chosen):
        episodes = [found[place] for place in chosen if place[0] == task]
        tables.append(np.array([each[: min(map(len, episodes))] for each in episodes]))
    return tables


def gap(found: Outcomes, others: Outcomes) -> Estimate | None:
    """How far a policy lies above another, on the tasks, training seeds and episodes that both have; None where there are none."""
    places = list(in_both(found, others))
    if not places:
        return None
    pairs = list(zip(by_task(found, places), by_task(others, places), strict=True))
    shared = [min(mine.shape[1], theirs.shape[1]) for mine, theirs in pairs]
    mine, theirs = ([pair[side][:, :n] for pair, n in zip(pairs, shared, strict=True)] for side in (0, 1))
    return difference(mine, theirs)


def estimate(found: Outcomes) -> Estimate | None:
    return success_rate(by_task(found)) if found else None


def bar(found: Outcomes) -> dict[str, Any]:
    """A cell for `success_bars`."""
    rate = success_rate(by_task(found))
    return {"rate": rate.mean, "interval95": (rate.low, rate.high)}


def told(rate: Estimate | None) -> str:
    return "" if rate is None else f"{rate.mean:.0%} ({rate.low:.0%} to {rate.high:.0%})"


def told_gap(found: Estimate | None) -> str:
    """In percentage points."""
    return "" if found is None else f"{100 * found.mean:+.0f} ({100 * found.low:+.0f} to {100 * found.high:+.0f})"


def fewer(found: Outcomes, most: Outcomes) -> str:
    """What part of a line that is measured on `most` a number of its is of; nothing where it is of all."""
    if not found or found.keys() >= most.keys():
        return ""
    (tasks, seeds), (all_tasks, all_seeds) = (map(set, zip(*each, strict=True)) for each in (found, most))
    parts = [counted(len(tasks), "task")] * (tasks != all_tasks) + [counted(len(seeds), "seed")] * (seeds != all_seeds)
    return f", {', '.join(parts) or f'{len(found)} of {len(most)} trainings'}"


def counted(number: int, what: str) -> str:
    """A number of things."""
    return f"{number} {what}{'s' * (number > 1)}"


def in_both(found: Outcomes, others: Outcomes) -> Outcomes:
    """Of what was found, the tasks and training seeds that others have too."""
    return {place: each for place, each in found.items() if place in others}


def measured_on(found: Outcomes, views: int = 1) -> str:
    """How many episodes outcomes are of, each in so many views."""
    seeds = Counter(task for task, _ in found)
    fewest, most = min(seeds.values(), default=0), max(seeds.values(), default=0)
    told = counted(most, "seed") if fewest == most else f"{fewest} to {most} seeds"
    return f"{counted(len(seeds), 'task')}, {told}, {views * sum(map(len, found.values()))} episodes"


def view_name(view: str) -> str:
    if view == "none":
        return "training view"
    name, _, value = view.partition("=")
    return f"azimuth {float(value):+g}°" if name == "azimuth" and "," not in view else view.replace("=", " ").replace("_", " ")


# -------------------------------------------------------------------- tables


def targets_table(targets: Sequence[Target], rows: Mapping[str, Sequence[Row]], experiments: Mapping[str, Experiment]) -> str:
    """Every line of what is to be shown, with what was measured beside, reached or not; so far, where tasks or training seeds of
    the experiment are missing. A blind replay does the same whatever is seen."""
    lines = []
    for target in targets:
        of = lambda policy="para", target=target, views=target.views, **key: outcomes(  # noqa: E731
            rows[target.experiment], views, policy=policy, demos=target.demos, **{"arm": target.arm, **key}
        )
        para = of()
        rate = estimate(para)
        others = {policy: of(policy) for policy in target.besides}
        if target.other_arm is not None:
            others = {target.other_arm: of(arm=target.other_arm)}
        beside = [f"{display_name(name)} {told(estimate(other))}{fewer(other, para)}" for name, other in others.items() if other]
        unseeing = of("blind_replay", views=[view if Shift.parse(view).workspace else "none" for view in target.views])
        beside += [f"{display_name('blind_replay')} {told(estimate(unseeing))}"] * bool(unseeing)
        ahead = [told_gap(gap(para, other)) for other in others.values() if other]
        reached = "not measured" if rate is None else verdict(rate.mean, target.share)
        if para and not para.keys() >= wanted(target, experiments[target.experiment]):
            reached = f"{reached.strip('*')}, so far"
        lines.append(
            [
                target.text + target.remark,
                f"{target.share:.0%}",
                told(rate),
                reached,
                measured_on(para, len(target.views)) * bool(para),
                "; ".join(beside),
                "; ".join(ahead),
            ]
        )
    header = ["experiment", "target", "PARA", "reached", "measured on", "beside", "PARA ahead by, points"]
    return markdown_table(header, lines)


def verdict(mean: float, share: float) -> str:
    """Whether a mean reaches a share; one that rounds up to it is told more exactly."""
    if mean >= share:
        return "**yes**"
    return f"no, {mean:.2%}" if f"{mean:.0%}" == f"{share:.0%}" else "no"


def wanted(target: Target, experiment: Experiment) -> set[tuple[str, int]]:
    """The tasks and training seeds that a target is about."""
    return {
        place
        for grid in experiment.grids
        if grid.arm == target.arm and target.demos in grid.demos and not {*target.views}.isdisjoint(grid.views)
        for place in product(grid.tasks, grid.seeds)
    }


def means_table(experiment: Experiment, rows: Sequence[Row], views: Mapping[str, Sequence[str]]) -> str:
    """Success by arm, demonstrations and condition, means over tasks; how far PARA lies above each policy, and each arm above the
    experiment's baseline.

    Args:
        views: by what a condition is called, those that it is the mean of.
    """
    policies = list(dict.fromkeys(row["policy"] for row in rows if row["policy"] not in REFERENCES))
    others = [policy for policy in policies if policy != "para"] if "para" in policies else []
    arms = list(dict.fromkeys(grid.arm for grid in experiment.grids))
    titles = [*(display_name(policy) for policy in policies), *(f"PARA - {display_name(policy)}" for policy in others)]
    titles += [f"over {experiment.baseline}"] * (experiment.baseline is not None)
    lines = []
    for demos in sorted({row["demos"] for row in rows if row["policy"] in policies}):
        for arm in arms:
            for name, merged in views.items():
                found = {policy: outcomes(rows, merged, policy=policy, arm=arm, demos=demos) for policy in policies}
                if not any(found.values()):
                    continue
                most = max(found.values(), key=lambda each: sum(map(len, each.values())))
                cells = [told(estimate(found[policy])) + fewer(found[policy], most) for policy in policies]
                cells += [above(found["para"], found[other], most) for other in others]
                if experiment.baseline is not None:
                    base = outcomes(rows, merged, policy="para", arm=experiment.baseline, demos=demos)
                    cells.append(above(found["para"], base, most) if arm != experiment.baseline else "")
                lines.append([*([arm] if any(arms) else []), str(demos), name, *cells, measured_on(most, len(merged))])
    return markdown_table([*(["arm"] if any(arms) else []), "demonstrations", "view", *titles, "measured on"], lines)


def above(found: Outcomes, others: Outcomes, most: Outcomes) -> str:
    """How far a policy lies above another where both were measured, and on what, where the line is of more."""
    return told_gap(gap(found, others)) + fewer(in_both(found, others), most)


def mixed_note(rows: Sequence[Row]) -> str:
    """Where policies or arms that are compared were calculated in several precisions, which alone moves a rate by some points;
    empty where there are none."""
    kinds: dict[tuple[int, str], dict[str, set[str]]] = {}
    for row in rows:
        if "versions" in row and row["policy"] not in REFERENCES:
            name = ", ".join(filter(None, (row["arm"], display_name(row["policy"]))))
            kinds.setdefault((row["demos"], row["task"].removesuffix("-v3")), {}).setdefault(name, set()).add(precision_in(row))
    mixed: dict[tuple[int, str], list[str]] = {}
    for (demos, task), by_name in sorted(kinds.items()):
        if len(set().union(*by_name.values())) > 1 and len(by_name) > 1:
            told = ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in sorted(by_name.items()))
            mixed.setdefault((demos, told), []).append(task)
    places = [f"from {demos} ({', '.join(tasks)}): {told}" for (demos, told), tasks in mixed.items()]
    return f"*Compared across precisions, which alone moves a rate by some points: {'; '.join(places)}.*" if places else ""


def replayed_note(rows: Sequence[Row]) -> str:
    """Which tasks a blind replay solves too often to tell policies apart; empty where there are none."""
    told = [
        f"{row['task'].removesuffix('-v3')} {won}/{len(row['succeeded'])} "
        f"({', '.join(filter(None, (row['arm'], view_name(row['view']))))}, {row['demos']} demonstrations)"
        for row in rows
        if row["policy"] == "blind_replay" and (won := row["succeeded"].count("1")) > MOST_REPLAYED * len(row["succeeded"])
    ]
    if not told:
        return ""
    return f"*A blind replay solves more than a quarter of {'; '.join(told)}. Means include it all the same.*"


def tasks_table(rows: Sequence[Row]) -> str:
    """Every task: policies with successes out of episodes of all training seeds, in brackets those held, and what bounds them."""
    policies = list(dict.fromkeys(row["policy"] for row in rows if row["policy"] not in REFERENCES))
    arms = any(row["arm"] for row in rows)
    lines = []
    for arm, demos, task, view in dict.fromkeys((row["arm"], row["demos"], row["task"], row["view"]) for row in rows):
        cells = []
        for policy in [*policies, *REFERENCES]:
            here = [
                row
                for row in rows
                if (row["arm"], row["demos"], row["task"], row["view"], row["policy"]) == (arm, demos, task, view, policy)
            ]
            won, held = ("".join(row[field] for row in here) for field in ("succeeded", "held"))
            cells.append(f"{won.count('1')}/{len(won)} ({held.count('1')})" if won else "")
        if any(cells[: len(policies)]):
            lines.append([*([arm] if arms else []), str(demos), task.removesuffix("-v3"), view_name(view), *cells])
    titles = [display_name(policy) for policy in [*policies, *REFERENCES]]
    return markdown_table([*(["arm"] if arms else []), "demonstrations", "task", "view", *titles], lines)


def outdated_note(rows: Sequence[Row]) -> str:
    """What of an experiment is `finetune.suite.outdated`; empty where nothing is."""
    kinds: dict[tuple[str, str, int], set[str]] = {}
    for row in rows:
        policy = "expert, oracle and blind replay" if row["policy"] in REFERENCES else display_name(row["policy"])
        kinds.setdefault((row["arm"], policy, row["demos"]), set()).add(row["task"].removesuffix("-v3"))
    told = [
        f"{f'{arm}, ' if arm else ''}{policy} from {demos} ({', '.join(sorted(tasks))})"
        for (arm, policy, demos), tasks in sorted(kinds.items())
    ]
    return f"*Measured in an earlier way, or from demonstrations of earlier experts: {'; '.join(told)}.*" if told else ""


def made_by(settings: Mapping[str, Any], rows: Sequence[Row], grids: Sequence[Grid]) -> str:
    """The line that says what made an experiment's rows, which are those of its grids."""
    trained = [row for row in rows if row["policy"] not in REFERENCES]
    once = {(row["arm"], row["task"], row["demos"], row["seed"], row["policy"]): row["seconds"] for row in trained}
    seeds = sorted({row["seed"] for row in trained})
    amounts = sorted({(row["steps"], row.get("batch_size", settings["batch_size"])) for row in trained})
    training = sum(once.values()) / 3600
    acting = sum(row["act_seconds"] * len(row["succeeded"]) for row in trained) / 3600
    executed = sorted({row["schedule"]["executed"] for row in trained})
    starts = dict.fromkeys(grid.options.get("init", settings["init"]) for grid in grids)
    told = " or ".join("as it ships" if start is None else "fresh" if start == "none" else str(start) for start in starts)
    return (
        f"`{settings['command']}`: backbone {settings['backbone']}, start {told}, "
        f"{', '.join(f'{steps} steps of {clips} clips' for steps, clips in amounts)}, training seeds {', '.join(map(str, seeds))}, "
        f"{' or '.join(map(str, executed))} targets of a decision carried out; "
        f"{len(once)} policies, which took {training:.1f} hours of a worker to train and {acting:.1f} to let them act; "
        f"{made_with(trained)}."
    )


def made_with(rows: Sequence[Row]) -> str:
    """The precision and the versions that rows name, and how many do where some do not; and which are of another expert than
    today's."""
    told = [row for row in rows if "versions" in row]
    if not told:
        return "versions were not kept"
    of = "" if len(told) == len(rows) else f"{len(told)} of {len(rows)} cells say their precision: "
    titles = {"torch": "torch", "metaworld": "Meta-World", "mujoco": "MuJoCo"}
    versions = [f"{title} {' and '.join(sorted({row['versions'][name] for row in told}))}" for name, title in titles.items()]
    older = sorted({row["task"].removesuffix("-v3") for row in rows if of_another_expert(row)})
    note = f"; {', '.join(older)} from demonstrations of an earlier expert" if older else ""
    return f"{of}{' and '.join(sorted({precision_in(row) for row in told}))}; {', '.join(versions)}{note}"
