"""Every claim, measured: each experiment is one command and one JSON file, and the page of tables and figures follows from these.

    python benchmarks/claims.py headlines          # one experiment, or several
    python benchmarks/claims.py                    # all of them: make claims, ten to fourteen hours on two cores
    python benchmarks/claims.py --quick            # a reduced grid of each: make claims-quick, about half an hour
    python benchmarks/claims.py --estimate         # what is missing, and how long it will take

Rows go to results/claims/NAME.json cell by cell, seed by seed; run it again after a cut, and it goes on. Policies and logs are kept
in runs/claims: an experiment that needs a policy, or a cell, which another one has takes that one. After a change to how policies
are trained, remove that folder and the results.

All policies start from robot.py's own default: the shipped video model, and what fits of a PARA head that learnt circles on it: all
of PARA but its last layer, most of regression's trunk, and nothing of ACT. In the experiment heads, and in the arm scratch of
circles, heads start fresh; --init none starts every head so.

Policies are trained for 900 steps on up to five demonstrations. On more it is 1200, and in another way: half of the clips are
repainted, the demonstrations' moves were disturbed, the robot's state is told exactly, the camera is zoomed in, and the hand is
hidden (--repaint 0.5 --noise 0.3 --state-noise 0 --zoom 1.5 --hide-hand of finetune/robot.py, for every policy; disturbed has the
first three alone). Under demos and circles, which ask for the same view alone, any number is trained on as five are, so that
numbers differ in nothing else. Two tasks differ in the other way, for every policy too: shelf-place has --zoom 1.25, since nearer
the camera cuts off the upper part of the shelf, and coffee-pull's hand stays in view, since its cup would be hidden with it; under
headlines coffee-pull also has 2400 steps and --repaint 0.8, since its white cup is hard to tell from some tables. Under workspace
PARA reads the heatmaps of a decision as one path (--head-options '{"path_px": 1.5}'), and all policies, trained on the left, see
half of their clips in a mirror that stands between the halves: the right one as a mirrored camera would see it. So that all fits
into ten to fourteen hours, headlines are evaluated on 24 episodes of each training seed and view (12 to either side for the
azimuth); a new environment (look) has textures of the same procedural kinds as clips are repainted with in training, drawn anew;
regression is represented by its default form, world XYZ by spatial softmax (docs/tuning.md finds no form better than it); all other
experiments are on two tasks (disturbed on six, with as many episodes as headlines) and one training seed with 50 episodes a cell,
and where a question is about PARA alone (demonstrations other than 5 and 20, disturbed, circles, calibration, heads), about PARA
alone. --quick trains each for 600 steps, on one task, and has 16 episodes a cell (8 to either side for the azimuth); its policies
of 20 demonstrations are trained in the way of five.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from tqdm import tqdm

from finetune.robot import RobotConfig
from finetune.suite import (
    Experiment,
    Grid,
    Job,
    Suite,
    known_rates,
    missing_jobs,
    outdated,
    probed_rates,
    run_jobs,
    share_rows,
    stored,
)
from finetune.suite_page import (
    Target,
    bar,
    counted,
    estimate,
    made_by,
    means_table,
    mixed_note,
    ordered,
    outcomes,
    outdated_note,
    replayed_note,
    targets_table,
    tasks_table,
    view_name,
)
from para_video.figures import success_bars, success_curves, write_place
from para_video.rows import Row
from para_video.runs import changed_options, command_line
from para_video.sims.metaworld import CameraPlacement, height_ceiling
from para_video.sims.shifts import Shift
from para_video.training import write_atomically

ROOT = Path(__file__).parent.parent
PAGE, README = ROOT / "docs" / "claims.md", ROOT / "README.md"
STEPS, QUICK_STEPS = 900, 600
FEW, MANY = 5, {"steps": 1200, "repaint": 0.5, "noise": 0.3, "state_noise": 0.0, "zoom": 1.5, "hide_hand": True}
"""Of demonstrations that `STEPS` are enough for, and how policies are trained on more of them."""
OWN: dict[str, dict[str, Any]] = {"shelf-place-v3": {"zoom": 1.25}, "coffee-pull-v3": {"hide_hand": False}}
"""What differs for a task then: a nearer camera cuts off the upper part of the shelf, and the cup, which stands up between the
fingers, would be hidden with the hand. Chosen on development episodes, as all of `MANY` is (docs/results.md)."""
OWN_IN: dict[str, dict[str, dict[str, Any]]] = {"headlines": {"coffee-pull-v3": {"steps": 2400, "repaint": 0.8}}}
"""And in an experiment. Headlines ask for a new environment: the cup is white, as tables may be, and to tell it from them takes
more of them, and longer. Chosen so too."""
IN_ONE_WAY = ("demos", "circles")
"""Experiments that compare numbers of demonstrations: with few and with many alike."""
TASKS = ("pick-place-v3", "push-v3", "shelf-place-v3", "hammer-v3", "coffee-pull-v3", "handle-pull-v3")
SIDE = ("pick-place-v3", "coffee-pull-v3")
"""Two of them, for all but the headlines."""
POLICIES = ("para", "regression", "act")
TURNED = ("azimuth=18", "azimuth=-18")
AZIMUTHS = ("none", "azimuth=6", "azimuth=12", "azimuth=18", "azimuth=24", "azimuth=30")
LOOKS = ("none", "look=1", "look=2", "look=3")
CALIBRATION = (
    "calibration_deg=1",
    "calibration_deg=2",
    "calibration_deg=4",
    "calibration_px=2",
    "calibration_px=4",
    "calibration_px=8",
)
FRESH = {"init": "none"}
HEAD_FORMS: dict[str, dict[str, Any]] = {
    "depth along the ray": {"head_options": '{"lift": "depth"}'},
    "joint volume": {"head_options": '{"joint_volume": true}'},
    "no start": {"head_options": '{"start": false}'},
    "no gripper opening": {"head_options": '{"opening": false}'},
    "state told roughly": {"state_noise": 1.0},
    "shadows rendered": {"shadows": True},
}


def side(demos: int | tuple[int, ...], *policies: str, **others: Any) -> Grid:
    """A grid on the two tasks, one training seed."""
    return Grid(SIDE, demos if isinstance(demos, tuple) else (demos,), (0,), policies, **others)


def quick(demos: int | tuple[int, ...], *policies: str, **others: Any) -> Grid:
    """A grid on one task, for minutes."""
    return Grid(SIDE[:1], demos if isinstance(demos, tuple) else (demos,), (0,), policies, **{"episodes": 16, **others})


def split_by_demos(grid: Grid, own: Mapping[str, Mapping[str, Any]]) -> list[Grid]:
    """A grid's part of few demonstrations and those of more, which are trained on in another way; `own` are options by task, on top
    of `OWN`."""
    few, many = ([n for n in grid.demos if (n > FEW) == more] for more in (False, True))
    parts = [replace(grid, demos=tuple(few))] if few else []
    for task in grid.tasks if many else ():
        options = {**MANY, **OWN.get(task, {}), **own.get(task, {}), **grid.options}
        parts.append(replace(grid, tasks=(task,), demos=tuple(many), options=options))
    return parts


PATH = {"head_options": '{"path_px": 1.5}'}
"""How PARA's heatmaps are read in a half of the workspace that it was not trained on, chosen on development episodes too."""


def halves(make: Callable[..., Grid], *policies: str) -> tuple[Grid, ...]:
    """Grids that train on one half of a widened workspace and act there and in the other."""
    return tuple(
        make(20, *policies, arm=f"{trained} to {other}", views=("none", f"workspace={other}"),
             options={"workspace": trained, "widen": 1.5, **PATH})
        for trained, other in (("left", "right"), ("near", "far"))
    )  # fmt: skip


def head_forms(make: Callable[..., Grid], demos: int) -> tuple[Grid, ...]:
    """A grid for each form of PARA's head; all start fresh, since circles' head has the form that it ships with."""
    forms = [make(demos, "para", arm="as it is", options=FRESH)]
    for arm, options in HEAD_FORMS.items():
        other_bounds = "lift" in options.get("head_options", "")
        forms.append(make(demos, "para", arm=arm, options={**FRESH, **options}, references=other_bounds))
    return tuple(forms)


def surroundings(make: Callable[..., Grid], views: tuple[str, ...], *policies: str) -> tuple[Grid, ...]:
    """Grids with and without clips whose surroundings are painted anew."""
    return (
        make(20, *policies, arm="repainted", views=views, options={"repaint": MANY["repaint"]}),
        make(20, *policies, arm="as they are", views=views, options={"repaint": 0.0}, references=False),
    )


def disturbed(make: Callable[..., Grid], *, references: bool = True) -> tuple[Grid, ...]:
    """Grids with demonstrations that find back to their way, from which PARA is told the robot's state exactly, and as they are;
    seen by the camera as it stands, the hand in view."""
    arms = {"disturbed": {"noise": 0.3, "state_noise": 0.0}, "as they are": {"noise": 0.0, "state_noise": 1.0}}
    return tuple(
        make(arm=arm, options={**options, "zoom": 1.0, "hide_hand": False}, references=references and arm == "as they are")
        for arm, options in arms.items()
    )


NUMBERS = (1, 2, 5, 10, 20, 50)
EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "headlines",
            "From twenty demonstrations PARA acts where it was trained, in another environment and from other cameras, from five "
            "where it was trained alone; regression on the same features and ACT mostly fail.",
            (
                Grid(TASKS, (5, 20), (0, 1, 2), POLICIES, ("none", "look=1"), episodes=24),
                Grid(TASKS, (5, 20), (0, 1, 2), POLICIES, TURNED, episodes=12, references=False),
            ),
            (quick(20, *POLICIES, views=("none", "look=1")), quick(20, *POLICIES, views=TURNED, episodes=8, references=False)),
        ),
        Experiment(
            "demos",
            "Success grows with demonstrations, and PARA needs the fewest. (Beyond five it does not grow in this way of training: "
            "pick-place has most from twenty, coffee-pull from five.)",
            (side(NUMBERS, "para"), side((5, 20), "regression", "act", references=False)),
            (quick((5, 20), "para"), quick(20, "regression", "act", references=False)),
        ),
        Experiment(
            "azimuth",
            "As the camera turns around the table PARA loses some of its success, and stays far ahead.",
            (side(20, *POLICIES, views=AZIMUTHS),),
            (quick(20, *POLICIES, views=("none", "azimuth=18", "azimuth=30")),),
        ),
        Experiment(
            "workspace",
            "What is learned in one half of a workspace (half as wide again as the benchmark's) holds in the other.",
            halves(side, *POLICIES),
            halves(quick, "para")[:1],
        ),
        Experiment(
            "surroundings",
            "Painting surroundings anew in training makes policies hold in environments that they never saw, and costs little.",
            surroundings(side, LOOKS, *POLICIES[:2]),
            surroundings(quick, LOOKS[:2], "para"),
            baseline="as they are",
        ),
        Experiment(
            "disturbed",
            "From demonstrations whose moves were disturbed (Laskey et al. 2017) PARA learns to find back, and need not be told "
            "roughly where the gripper is.",
            (
                *disturbed(partial(Grid, TASKS, (20,), (0,), ("para",), ("none", "look=1"), episodes=24)),
                *disturbed(partial(Grid, TASKS, (20,), (0,), ("para",), TURNED, episodes=12), references=False),
            ),
            disturbed(partial(quick, 20, "para")),
            baseline="as they are",
        ),
        Experiment(
            "distractors",
            "Objects that stand around do not draw PARA away. (The figures refute it.)",
            (side(20, *POLICIES, views=("none", "distractors=3")),),
            (quick(20, *POLICIES, views=("none", "distractors=3")),),
        ),
        Experiment(
            "circles",
            "A head that was pretrained on drawn circles needs fewer demonstrations than a fresh one. (It is ahead from one; from "
            "two to fifty the figures do not show it.)",
            (side(NUMBERS, "para", arm="circles"), side(NUMBERS, "para", arm="scratch", options=FRESH, references=False)),
            (quick(5, "para", arm="circles"), quick(5, "para", arm="scratch", options=FRESH, references=False)),
            baseline="scratch",
        ),
        Experiment(
            "calibration",
            "PARA bears a camera that is not quite where it is told, turned by a degree or off by some pixels. (The figures refute "
            "it.)",
            (side(20, "para", views=("none", *CALIBRATION)),),
            (quick(20, "para", views=("none", "calibration_deg=2", "calibration_px=4")),),
        ),
        Experiment(
            "heads",
            "Heights over the table are a better form than depths along the ray. (On pick-place. That a joint volume helps, or "
            "that the head has to be told where the gripper is and how far it is open, the figures do not show.)",
            head_forms(side, 20),
            head_forms(quick, 5)[:2],
            baseline="as it is",
        ),
    )
}
SAME, LOOK = {"same view": ("none",)}, {"new environment": ("look=1",)}
CONDITIONS: dict[str, tuple[str, ...]] = {**SAME, **LOOK, "azimuth ±18°": TURNED}


def ceiling(azimuth: float) -> float:
    """Of pick-place, with the camera turned by so many degrees; docs/oracle.md says what it is."""
    return height_ceiling(CameraPlacement().azimuth_deg + azimuth)


BESIDES = POLICIES[1:]
TARGETS = (
    Target("20 demonstrations, same view", 0.90, "headlines", 20, ("none",), besides=BESIDES),
    Target("20 demonstrations, new environment", 0.85, "headlines", 20, ("look=1",), besides=BESIDES),
    Target("20 demonstrations, azimuth ±18°", 0.75, "headlines", 20, TURNED, besides=BESIDES,
           remark=f" (single-view ceiling of pick-place {(ceiling(18) + ceiling(-18)) / 2:.0%})"),
    Target("5 demonstrations after circles", 0.60, "circles", 5, ("none",), arm="circles", other_arm="scratch"),
    Target("trained left, tested right", 0.55, "workspace", 20, ("workspace=right",), arm="left to right", besides=BESIDES),
    Target("trained near, tested far", 0.55, "workspace", 20, ("workspace=far",), arm="near to far", besides=BESIDES),
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Run experiments and write their page."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Of experiments; default all: headlines, demos, azimuth, workspace, surroundings, disturbed, distractors, circles,
    calibration, heads."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """The reduced grids; rows and page go to results/claims-quick."""
    estimate: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Say what is missing and how long it will take, and stop."""
    draw: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write the page of what is there, and stop."""
    workers: int = 2
    """Processes that measure cells, which share the cores; 0 measures in this one."""
    steps: int | None = None
    """Training steps of every policy; default 900, 1200 where there are more than five demonstrations (2400 for headlines of
    coffee-pull), or 600 with --quick."""
    backbone: str = RobotConfig.backbone
    """As finetune/robot.py takes it."""
    backbone_options: Annotated[str, tyro.conf.arg(metavar="JSON")] = RobotConfig.backbone_options
    """As finetune/robot.py takes them."""
    init: str | None = RobotConfig.init
    """Checkpoint that policies start from, as finetune/robot.py takes it."""
    train: Literal["all", "heads", "joint"] = RobotConfig.train
    """What is trained, as finetune/robot.py takes it; with joint the hand stays in view, since it would be predicted hidden."""
    tasks: tuple[str, ...] = ()
    """Other tasks than the experiments' own, to try something out; rows then go to runs/claims-tried."""
    demos: tuple[int, ...] = ()
    """Other numbers of demonstrations, as with --tasks."""
    seeds: tuple[int, ...] = ()
    """Other training seeds, as with --tasks."""
    episodes: int | None = None
    """Another number of episodes in every cell, as with --tasks."""
    results: Path | None = None
    """Folder of the JSON files; default results/claims, or as above."""
    work: Path = Path("runs/claims")
    """Folder of trained policies and logs."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in EXPERIMENTS]
        if unknown:
            raise ValueError(f"unknown experiments {unknown}; choose from {', '.join(EXPERIMENTS)}")
        if self.workers < 0 or (self.episodes is not None and self.episodes < 1):
            raise ValueError(f"workers must not be negative, episodes at least 1; got {self.workers} and {self.episodes}")

    @property
    def tried(self) -> bool:
        """Whether this is neither of the two suites as they are."""
        trained = ("steps", "backbone", "backbone_options", "init", "train")
        return bool(self.tasks or self.demos or self.seeds or self.episodes or changed_options(self, trained))

    @property
    def folder(self) -> Path:
        """Of the JSON files."""
        usual = "claims-quick" if self.quick else "claims"
        return self.results or (Path("runs/claims-tried") if self.tried else ROOT / "results" / usual)

    @property
    def page(self) -> Path:
        """Where the tables go; figures lie beside it."""
        whole = not (self.quick or self.tried or self.results)
        return PAGE if whole else self.folder / "claims.md"

    def suite(self) -> Suite:
        default = QUICK_STEPS if self.quick else STEPS
        options = {name: getattr(self, name) for name in ("backbone", "backbone_options", "init", "train")}
        said = [f"--{name.replace('_', '-')} {value}" for name, value in options.items() if value != getattr(RobotConfig, name)]
        said += ["--quick"] * self.quick + ([f"--steps {self.steps}"] if self.steps is not None else [])
        command = " ".join(["python benchmarks/claims.py", *said])
        return Suite(RobotConfig(**options, steps=default if self.steps is None else self.steps), self.folder, self.work, command)

    def grids(self, name: str) -> Sequence[Grid]:
        experiment = EXPERIMENTS[name]
        own = {part: getattr(self, part) for part in ("tasks", "demos", "seeds", "episodes") if getattr(self, part)}
        grids = [replace(grid, **own) for grid in (experiment.quick if self.quick else experiment.grids)]
        if self.quick:
            return grids
        changed = ({} if self.steps is None else {"steps": self.steps}) | ({"hide_hand": False} if self.train == "joint" else {})
        parts = grids if name in IN_ONE_WAY else [part for grid in grids for part in split_by_demos(grid, OWN_IN.get(name, {}))]
        return [replace(part, options={**part.options, **changed}) for part in parts]


def main(config: Config) -> None:
    """Measure what is missing, and write the page.

    Raises:
        RuntimeError: some cells failed; all others are kept, and the page is written.
    """
    console, suite = Console(), config.suite()
    names = config.names or tuple(EXPERIMENTS)
    if suite.robot.init_folder is None and "circles" in names:
        console.print("circles is left out: without heads to start from its two arms are one", style="yellow")
        names = tuple(name for name in names if name != "circles")
    failed: Mapping[str, str] = {}
    if not config.draw:
        grids = {name: config.grids(name) for name in names}
        if not config.estimate:
            share_rows(suite, grids)
        jobs = missing_jobs(suite, grids)
        rates = (known_rates(suite) or probed_rates(suite, jobs, config.workers)) if jobs else None
        if rates is not None:
            minutes = sum(job.seconds(rates) for job in jobs) / max(config.workers, 1) / 60
            per_step = ", ".join(f"{kind} {seconds:.2f} s" for kind, seconds in rates.step.items())
            console.print(
                f"{len(jobs)} jobs, about {minutes:.0f} minutes with {config.workers or 1} at a time (a training step: {per_step}; "
                f"an acting control step: {1e3 * rates.control:.1f} ms). Logs: {config.work / 'logs'}"
            )
        else:
            console.print("nothing is missing")
        if config.estimate:
            return
        if rates is not None:
            failed = run_jobs(jobs, suite, rates, config.workers, say)
    write(config)
    console.print(f"tables and figures: {config.page}")
    if failed:
        listed = "; ".join(f"{name}: {wrong}" for name, wrong in failed.items())
        raise RuntimeError(f"{len(failed)} of {len(jobs)} jobs failed, all others are kept; run it again for these. {listed}")


def say(job: Job, wrong: str) -> None:
    tqdm.write(f"{job.name}: {wrong or 'done'}")


# -------------------------------------------------------------------- the page

PLACE = "benchmarks/claims.py"
REMARKS = "\n\n".join((__doc__ or "").strip().split("\n\n")[-2:])
HEADING = f"""# Every claim, measured

Closed-loop success in Meta-World. This page is written by `benchmarks/claims.py` from the rows of measured cells; nothing is typed.
Percentages are means over tasks, all of which count alike. Intervals are 95 %. A task's is Wilson's of its episodes, and with
several training seeds at least as wide as of a bootstrap over training seeds and episodes; a mean's is made of its tasks'
(`para_video.statistics.success_rate`). Differences are of paired episodes, which are the same for every policy, by the bootstrap
and in percentage points. With one training seed, intervals are over episodes alone.

{REMARKS}
"""


def write(config: Config) -> None:
    """The page with its figures, and the README's table where the page is that of the whole suite."""
    suite, files = config.suite(), {name: stored(config.folder, name) for name in EXPERIMENTS}
    rows = {name: ordered(file.find(), EXPERIMENTS[name]) for name, file in files.items()}
    config.page.parent.mkdir(parents=True, exist_ok=True)
    table = targets_table(TARGETS, rows, EXPERIMENTS)
    parts = [HEADING, "## What it must show", "", table, ""]
    for name, experiment in EXPERIMENTS.items():
        parts += [f"## {name}", "", f"*Claim:* {experiment.claim}", ""]
        if not any("steps" in row for row in rows[name]):
            parts += [f"Not measured yet: `python benchmarks/claims.py {name}`.", ""]
            continue
        for figure in draw(config.page.with_name(f"{config.page.stem}-{name}.png"), name, rows[name]):
            parts += [f"![{name}]({figure.name})", ""]
        if note := outdated_note(outdated(suite, config.grids(name), rows[name])):
            parts += [note, ""]
        parts += [means_table(experiment, rows[name], conditions(name, rows[name])), ""]
        parts += [part for note in (replayed_note(rows[name]), mixed_note(rows[name])) if note for part in (note, "")]
        parts += ["<details><summary>Every task: successes out of episodes, in brackets those held for ten steps</summary>", ""]
        parts += [tasks_table(rows[name]), "", "</details>", "", made_by(files[name].settings, rows[name], config.grids(name)), ""]
    write_atomically(config.page, ("\n".join(parts).rstrip() + "\n").encode())
    if config.page == PAGE:
        write_place(README, PLACE, table)


def conditions(name: str, rows: Sequence[Row]) -> dict[str, tuple[str, ...]]:
    """The views of an experiment's rows, by what they are called."""
    if name in ("headlines", "disturbed"):
        return CONDITIONS
    return {view_name(view): (view,) for view in dict.fromkeys(row["view"] for row in rows)}


def draw(path: Path, name: str, rows: Sequence[Row]) -> list[Path]:
    """An experiment's figures, and where they are: beside each other, where there are several."""
    rows = [row for row in rows if "steps" in row]
    if name == "headlines":
        return [draw_headlines(path, demos, rows) for demos in sorted({row["demos"] for row in rows})]
    figures = {
        "demos": draw_demos, "azimuth": draw_azimuth, "workspace": draw_workspace, "circles": draw_circles,
        "calibration": draw_calibration,
    }  # fmt: skip
    if name not in figures:
        return []
    if name not in ("demos", "circles"):  # the others are of one number of demonstrations
        most = max(row["demos"] for row in rows)
        rows = [row for row in rows if row["demos"] == most]
    figures[name](path, rows)
    return [path]


def told_demos(rows: Sequence[Row]) -> str:
    """Of rows of one number of them."""
    return counted(rows[0]["demos"], "demonstration")


def policies_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["policy"] for row in rows))


def present(cells: Mapping[str, Any]) -> dict[str, Any]:
    return {name: cell for name, cell in cells.items() if cell}


def draw_headlines(path: Path, demos: int, rows: Sequence[Row]) -> Path:
    """Policies side by side in each condition, after so many demonstrations."""
    cells = {
        policy: {
            name: bar(found) for name, views in CONDITIONS.items() if (found := outcomes(rows, views, policy=policy, demos=demos))
        }
        for policy in policies_of(rows)
    }  # fmt: skip
    path = path.with_name(f"{path.stem}-{demos}.png")
    success_bars(path, present(cells), title=f"{demos} demonstrations, mean over tasks")
    return path


def draw_demos(path: Path, rows: Sequence[Row]) -> None:
    success_curves(
        path, {"": by_number(rows)}, xlabels=["demonstrations"], title="Success against demonstrations, same view", log=True
    )


def by_number(rows: Sequence[Row]) -> dict[str, dict[float, Any]]:
    numbers = sorted({row["demos"] for row in rows})
    return {
        policy: present({demos: estimate(outcomes(rows, policy=policy, demos=demos)) for demos in numbers})
        for policy in policies_of(rows)
    }


def draw_azimuth(path: Path, rows: Sequence[Row]) -> None:
    """A panel a task, since the ceiling is pick-place's."""
    views = {view: Shift.parse(view).azimuth for view in dict.fromkeys(row["view"] for row in rows)}
    panels = {
        task.removesuffix("-v3"): {
            policy: present({angle: estimate(outcomes(rows, (view,), policy=policy, task=task)) for view, angle in views.items()})
            for policy in policies_of(rows)
        }
        for task in dict.fromkeys(row["task"] for row in rows)
    }
    limits = {"pick-place": {angle: ceiling(angle) for angle in views.values()}}
    xlabels = ["camera turned by, degrees"] * len(panels)
    title = f"Success against azimuth, one training camera, {told_demos(rows)}"
    success_curves(path, panels, xlabels=xlabels, title=title, ceilings=limits)


def draw_workspace(path: Path, rows: Sequence[Row]) -> None:
    arms = dict.fromkeys(row["arm"] for row in rows)
    places = [
        (arm, view, f"{arm.split()[0]},\nas trained" if view == "none" else arm) for arm in arms for view in views_of(rows, arm)
    ]
    cells = {
        policy: {
            name: bar(found) for arm, view, name in places if (found := outcomes(rows, (view,), policy=policy, arm=arm))
        }
        for policy in policies_of(rows)
    }  # fmt: skip
    success_bars(path, present(cells), title=f"Trained on half of the workspace, {told_demos(rows)}")


def views_of(rows: Sequence[Row], arm: str) -> list[str]:
    return list(dict.fromkeys(row["view"] for row in rows if row["arm"] == arm))


def draw_circles(path: Path, rows: Sequence[Row]) -> None:
    """Of those numbers of demonstrations that both arms have on the same tasks and seeds; others would not compare."""
    found = {
        demos: {arm: outcomes(rows, policy="para", arm=arm, demos=demos) for arm in ("circles", "scratch")}
        for demos in sorted({row["demos"] for row in rows})
    }
    alike = {demos: arms for demos, arms in found.items() if arms["circles"].keys() == arms["scratch"].keys()}
    cells = {
        f"PARA, {arm}": {counted(demos, "demo"): bar(arms[arm]) for demos, arms in (alike or found).items() if arms[arm]}
        for arm in ("circles", "scratch")
    }
    success_bars(path, present(cells), title="Pretrained on circles, or not")


def draw_calibration(path: Path, rows: Sequence[Row]) -> None:
    panels: dict[str, dict[str, dict[float, Any]]] = {}
    kinds = {"calibration_deg": ("angle", "camera turned, degrees"), "calibration_px": ("pixels", "image moved, pixels")}
    for part, (title, _) in kinds.items():
        views = [view for view in views_of(rows, "") if view == "none" or part in view]
        panels[title] = {
            policy: present({getattr(Shift.parse(view), part): estimate(outcomes(rows, (view,), policy=policy)) for view in views})
            for policy in policies_of(rows)
        }
    title = f"A camera that is not where policies are told, {told_demos(rows)}"
    success_curves(path, panels, xlabels=[unit for _, unit in kinds.values()], title=title)


if __name__ == "__main__":
    command_line(main, Config, __doc__ or "")
