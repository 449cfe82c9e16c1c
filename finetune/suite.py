"""Experiments as values, and the work that they ask for: cells are measured in worker processes and kept as rows.

A policy is trained once for whatever experiments act with it, in a folder named after everything that it is trained on.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import signal
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock
from rich.console import Console
from tqdm import tqdm

from backbones import shipped_weights
from finetune import robot
from finetune.grid import counts, digits
from finetune.robot import RobotConfig
from para_video.checkpoint import checkpoint_digest, weights_file
from para_video.demos import Plan, record_demo
from para_video.hand import Hand
from para_video.policy import DEFAULT_SCHEDULE
from para_video.readout import readout_spec
from para_video.rollout import Cell, evaluation_seeds
from para_video.rows import Row, Rows
from para_video.runs import plain_settings, versions
from para_video.sims.experts import recipe
from para_video.sims.metaworld import episode_steps
from para_video.sims.shifts import Shift
from para_video.training import STATE_FILE, make_accelerator, write_atomically

KEY = ("arm", "task", "demos", "seed", "policy", "view")
"""What tells an experiment's rows apart; `view` is a shift as text."""
REFERENCES = ("expert", "readout", "blind_replay")
"""Policies that are not trained, and bound those that are; their rows have seed 0."""
FREE = ("policies", "azimuths", "shifts", "episodes", "out", "resume", "seed", "head_options", "init", "learning_rate")
"""Options that a policy's folder is not named after: it is the same under them, or what they stand for is in its name."""
SCENE = ("task", "demos", "demo_folder", "size", "zoom", "spread_over", "noise", "scatter", "widen", "workspace", "shadows")
"""Those that references depend on."""
START_S, RECORD_S, REFERENCE_FACTOR, USUAL_STEPS = 8.0, 1.0, 1.5, 200
"""For the estimate: seconds until a worker works, and of a recorded demonstration; what a control step of a reference takes beside
one of a policy; control steps of an episode whose horizon is not known yet."""
PROBE_STEPS, PROBE_HORIZON = 12, 150


@dataclass(frozen=True)
class Grid:
    """Every task with every number of demonstrations, training seed and policy, acting in every view.

    Args:
        tasks, demos, seeds, policies: of the grid. views: shifts as text, see `para_video.sims.shifts`. episodes: in each view.
        arm: what an experiment that compares several ways calls this one. options: of `RobotConfig`, by which it differs.
        references: whether what bounds its policies is measured beside, in the training setting and in other workspaces.
    """

    tasks: tuple[str, ...]
    demos: tuple[int, ...]
    seeds: tuple[int, ...]
    policies: tuple[str, ...]
    views: tuple[str, ...] = ("none",)
    episodes: int = 50
    arm: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    references: bool = True


@dataclass(frozen=True)
class Experiment:
    """A name, a sentence that says what it claims, and what is measured for it.

    Args:
        grids: all of it. quick: the same in minutes. baseline: the arm that the others are compared with, if they are.
    """

    name: str
    claim: str
    grids: tuple[Grid, ...]
    quick: tuple[Grid, ...]
    baseline: str | None = None


@dataclass(frozen=True)
class Suite:
    """What all experiments share.

    Args:
        robot: steps, backbone and start of every policy. results: folder of the JSON files, one an experiment. work: folder of
            trained policies and logs. command: of the suite, but for the experiment's name, as the JSON files state it.
    """

    robot: RobotConfig
    results: Path
    work: Path
    command: str

    def rows(self, experiment: str) -> Rows:
        """What is measured. Raises ValueError where it was with other settings."""
        names = ("steps", "batch_size", "backbone", "backbone_options", "init", "train", "context", "size", "spread_over")
        settings = {name: getattr(self.robot, name) for name in names}
        starts = {"start": _digest(shipped_weights(self.robot.backbone)), "init_weights": _digest(self.robot.init_folder)}
        told = {"command": f"{self.command} {experiment}", **settings, **starts}
        return Rows(self.results / f"{experiment}.json", told, KEY)

    @property
    def policies(self) -> Path:
        """Folder of trained policies' folders."""
        return self.work / "policies"

    def horizon(self, config: RobotConfig) -> int:
        """Control steps of an episode, found once."""
        kept, key = self._horizons(), {"task": config.task, "widen": config.widen, "expert": recipe(config.task)}
        if not kept.find(**key):
            kept.add({**key, "steps": episode_steps(config.task, config.widen)})
        return kept.find(**key)[0]["steps"]

    def known_horizons(self) -> dict[tuple[str, float], int]:
        """Those that were found, by task and `widen`."""
        return {
            (row["task"], row["widen"]): row["steps"] for row in self._horizons().find() if row["expert"] == recipe(row["task"])
        }

    def _horizons(self) -> Rows:
        return Rows(self.work / "horizons.json", {"metaworld": versions()["metaworld"]}, ("task", "widen", "expert"))


def stored(results: Path, experiment: str) -> Rows:
    """An experiment's rows as they are kept, whatever they were measured with."""
    path = results / f"{experiment}.json"
    return Rows(path, json.loads(path.read_text())["settings"] if path.is_file() else {}, KEY)


# -------------------------------------------------------------------- jobs


class Job(Protocol):
    """A piece of work for a worker process: it keeps its rows itself, one by one, and does not repeat those that are there."""

    name: str

    def seconds(self, rates: Rates) -> float: ...  # about how long a worker takes

    def run(self, suite: Suite) -> None: ...


@dataclass
class Wanted:
    """Episodes that an experiment asks of a policy in a view."""

    experiment: str
    arm: str
    view: str
    episodes: int


@dataclass
class PolicyJob:
    """Train a policy where it is not yet, and let it act wherever experiments ask it to."""

    name: str
    policy: str
    config: RobotConfig
    folder: Path
    wanted: list[Wanted] = field(default_factory=list)

    def seconds(self, rates: Rates) -> float:
        steps = 0 if (self.folder / "training.json").is_file() else self.config.steps
        return START_S + steps * rates.step_of(self.policy) + _episodes(self.wanted) * rates.episode(self.config)

    def run(self, suite: Suite) -> None:
        console, config = Console(), replace(self.config, resume=True)
        with FileLock(f"{self.folder}.lock"):
            demos = robot.demonstrations(config, console)
            policy, cost = robot.train(self.policy, config, demos.demos, self.folder, make_accelerator(), console)
            (self.folder / STATE_FILE).unlink(missing_ok=True)  # finished: a state to go on from is three times the policy
            horizon = suite.horizon(config)
            for view, wanted in _by_view(self.wanted):
                begun, seeds = time.perf_counter(), evaluation_seeds(_episodes(wanted))
                measured = robot.evaluate_view(self.policy, policy, config, Shift.parse(view), horizon, seeds)
                spent = {
                    "trained_on": self.name, "steps": cost["steps"], "batch_size": config.batch_size, "horizon": horizon,
                    "seconds": round(cost["seconds"], 1), "act_seconds": round((time.perf_counter() - begun) / len(seeds), 3),
                }  # fmt: skip
                keep(suite, wanted, config, self.policy, measured, spent, versions() | robot.trained_in([cost]))


@dataclass
class ReferenceJob:
    """Measure what bounds the policies of a setting: expert, read-out oracle and blind replay."""

    name: str
    config: RobotConfig
    wanted: list[Wanted] = field(default_factory=list)

    def seconds(self, rates: Rates) -> float:
        episodes = REFERENCE_FACTOR * _episodes(self.wanted)
        return START_S + RECORD_S * self.config.demos + episodes * rates.episode(self.config)

    def run(self, suite: Suite) -> None:
        demos = robot.demonstrations(self.config, Console()).demos
        spec = readout_spec(demos, **self.config.para_options[0])
        horizon = suite.horizon(self.config)
        for view, wanted in _by_view(self.wanted):
            asked = replace(self.config, episodes=_episodes(wanted))
            measured, _ = robot.bounds(asked, demos, spec, Shift.parse(view), horizon)
            for name, cell in measured.items():
                keep(suite, wanted, self.config, name, cell, {"trained_on": self.name, "horizon": horizon}, versions())


def keep(
    suite: Suite, wanted: Iterable[Wanted], config: RobotConfig, policy: str, measured: Cell, spent: Row, made_with: Row
) -> None:
    """Add what was measured to every experiment that asked, each as many episodes as it wanted."""
    won, held = digits(each.succeeded for each in measured.episodes), digits(each.held for each in measured.episodes)
    for cell in wanted:
        key = dict(zip(KEY, (cell.arm, config.task, config.demos, config.seed, policy, cell.view), strict=True))
        episodes = {"succeeded": won[: cell.episodes], "held": held[: cell.episodes]}
        made = {"schedule": asdict(DEFAULT_SCHEDULE), "versions": made_with}
        suite.rows(cell.experiment).add({**key, **episodes, **spent, **made})


def _episodes(wanted: Iterable[Wanted]) -> int:
    """Of a policy in all its views: those asked for, each once."""
    most: dict[str, int] = {}
    for cell in wanted:
        most[cell.view] = max(most.get(cell.view, 0), cell.episodes)
    return sum(most.values())


def _by_view(wanted: Sequence[Wanted]) -> list[tuple[str, list[Wanted]]]:
    return [(view, [cell for cell in wanted if cell.view == view]) for view in dict.fromkeys(cell.view for cell in wanted)]


# -------------------------------------------------------------------- what is missing


def missing_jobs(suite: Suite, experiments: Mapping[str, Sequence[Grid]]) -> list[Job]:
    """The work behind all rows that are not there yet, seed by seed: a suite that is cut has something of everything.

    Args:
        experiments: grids by the experiment's name.
    """
    jobs: dict[str, tuple[int, PolicyJob | ReferenceJob]] = {}
    for experiment, grids in experiments.items():
        known = {tuple(row[name] for name in KEY): row for row in suite.rows(experiment).find()}
        for grid in grids:
            for config, policy in _policies(suite, grid):
                cell = (grid.arm, config.task, config.demos, config.seed, policy or REFERENCES[-1])
                job = _job(suite, config, policy)
                wanted = [
                    Wanted(experiment, grid.arm, view, grid.episodes)
                    for view in _views(grid, policy)
                    if not _counts(known.get((*cell, view)), job.name, grid.episodes)
                ]
                if wanted:
                    jobs.setdefault(job.name, (config.seed, job))[1].wanted.extend(wanted)
    return [job for _, job in sorted(jobs.values(), key=lambda entry: entry[0])]


def share_rows(suite: Suite, experiments: Mapping[str, Sequence[Grid]]) -> None:
    """Give experiments those cells that another one has measured: of the same policy, or references, in the same view."""
    kept: dict[tuple[str | None, str, str], Row] = {}
    for path in suite.results.glob("*.json"):
        for row in filter(counts, stored(suite.results, path.stem).find()):
            key = (row.get("trained_on"), row["policy"], row["view"])
            kept[key] = max(kept.get(key, row), row, key=lambda each: len(each["succeeded"]))
    for job in missing_jobs(suite, experiments):
        policies = (job.policy,) if isinstance(job, PolicyJob) else REFERENCES
        for cell in job.wanted:
            rows = [kept.get((job.name, policy, cell.view)) for policy in policies]
            for row in rows if all(_counts(row, job.name, cell.episodes) for row in rows) else ():
                episodes = {name: row[name][: cell.episodes] for name in ("succeeded", "held")}
                suite.rows(cell.experiment).add({**row, **episodes, "arm": cell.arm})


def _counts(row: Row | None, name: str, episodes: int) -> bool:
    """Whether a row, if there is one, is of the policy or the references, the schedule and the episodes that are wanted."""
    if row is None or len(row["succeeded"]) < episodes:
        return False
    return counts(row) and row.get("trained_on") == name


def outdated(suite: Suite, grids: Sequence[Grid], rows: Sequence[Row]) -> list[Row]:
    """Rows of policies that are trained in another way today, from other demonstrations included, and of such references."""
    names = {
        (grid.arm, config.task, config.demos, config.seed, name): trained_on(config, policy or "references")
        for grid in grids
        for config, policy in _policies(suite, grid)
        for name in ([policy] if policy else REFERENCES)
    }
    name = lambda row: names.get(tuple(row[part] for part in KEY[:-1]))  # noqa: E731
    return [row for row in rows if name(row) not in (None, row.get("trained_on"))]


def _policies(suite: Suite, grid: Grid) -> Iterable[tuple[RobotConfig, str | None]]:
    """What is trained on and the policy, None for the references."""
    for demos, task in product(grid.demos, grid.tasks):
        config = replace(suite.robot, task=task, demos=demos, **grid.options)
        if grid.references and demos == max(grid.demos):
            yield config, None
        for policy, seed in product(grid.policies, grid.seeds):
            yield replace(config, seed=seed), policy


def _views(grid: Grid, policy: str | None) -> Iterable[str]:
    if policy is not None:
        return grid.views
    return dict.fromkeys(["none", *(view for view in grid.views if Shift.parse(view).workspace)])


def _job(suite: Suite, config: RobotConfig, policy: str | None) -> PolicyJob | ReferenceJob:
    if config.video_steps:
        raise ValueError(f"a suite does not tune video models, got video_steps {config.video_steps}: leave it out")
    name = trained_on(config, policy or "references")
    if policy is None:
        return ReferenceJob(name, config)
    return PolicyJob(name, policy, config, suite.policies / name)


def trained_on(config: RobotConfig, policy: str) -> str:
    """A name for a policy that is another whenever anything differs that it is trained on.

    What is off (0, None, empty) is left out: an option that comes later leaves the names of policies without it as they are.
    """
    kind, settings = policy.split("-")[0], {name: value for name, value in plain_settings(config).items() if value}
    if policy == "references":
        told = {name: value for name, value in settings.items() if name in SCENE}
    else:
        told = {name: value for name, value in settings.items() if name not in FREE}
        told |= {"start": _digest(shipped_weights(config.backbone)), "init": _digest(config.init_folder)}
        told |= {"hand": asdict(Hand())} if config.hide_hand else {}
        told |= {"rate": config.learning_rate or robot.LEARNING_RATES.get(kind), "optimizer": robot.OPTIMIZERS.get(kind)}
    told |= {"actions": (DEFAULT_SCHEDULE.chunk, DEFAULT_SCHEDULE.frame_stride), "expert": recipe(config.task)}
    readout, head = config.para_options
    if policy == "references":  # how heatmaps are read is nothing to them
        head = {name: value for name, value in head.items() if name in ("grid", "sigma_px")}
    told |= {"head": (readout, head) if policy in ("para", "references") else None}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
    return f"{config.task}-{config.demos}-{config.seed}-{policy}-{digest}"


def _digest(folder: Path | None) -> str | None:
    """Of a checkpoint's weights; None without one."""
    return None if folder is None else _digest_of(folder, weights_file(folder).stat().st_mtime_ns)


@functools.cache
def _digest_of(folder: Path, written_ns: int) -> str:
    return checkpoint_digest(folder)  # of megabytes, for hundreds of names


# -------------------------------------------------------------------- how long it takes


@dataclass(frozen=True)
class Rates:
    """Seconds of a worker: by the kind of policy those of a training step, and those of a control step of an acting policy."""

    step: Mapping[str, float]
    control: float
    horizons: Mapping[tuple[str, float], int] = field(default_factory=dict)

    def step_of(self, policy: str) -> float:
        return self.step.get(policy.split("-")[0], max(self.step.values()))

    def episode(self, config: RobotConfig) -> float:
        """Of an episode that does not succeed."""
        return self.control * self.horizons.get((config.task, config.widen), USUAL_STEPS)


def known_rates(suite: Suite) -> Rates | None:
    """From rows of policies that were trained here, whose folders are there: others may be of another machine. None without any."""
    rows: list[Row] = [row for path in suite.results.glob("*.json") for row in json.loads(path.read_text())["rows"]]
    rows = [row for row in rows if {"act_seconds", "trained_on"} <= row.keys() and (suite.policies / row["trained_on"]).is_dir()]
    if not rows:
        return None
    kinds = {row["policy"].split("-")[0] for row in rows}
    step = {
        kind: statistics.median(row["seconds"] / row["steps"] for row in rows if row["policy"].split("-")[0] == kind)
        for kind in kinds
    }
    return Rates(step, statistics.median(row["act_seconds"] / row["horizon"] for row in rows), suite.known_horizons())


def probe(config: RobotConfig, policies: Sequence[str]) -> Rates:
    """Train each kind of policy for some steps and let one act for a while, to see how fast this machine is."""
    kinds = {policy.split("-")[0]: policy for policy in policies}
    with config.env() as env:
        demo = record_demo(env, 0, Plan(1))
    if demo is None:
        raise RuntimeError(f"the expert of {config.task} failed on seed 0, which the probe records; choose another first task")
    step, short = {}, replace(config, steps=PROBE_STEPS, demos=1)
    with tempfile.TemporaryDirectory() as folder:
        for kind, name in kinds.items():
            policy, cost = robot.train(name, short, [demo], Path(folder) / name, make_accelerator(), Console(quiet=True))
            step[kind] = cost["seconds"] / cost["steps"]
        begun = time.perf_counter()
        robot.evaluate_view(name, policy, short, Shift(), PROBE_HORIZON, evaluation_seeds(1))
    return Rates(step, (time.perf_counter() - begun) / PROBE_HORIZON)


# -------------------------------------------------------------------- workers


def run_jobs(
    jobs: Sequence[Job],
    suite: Suite,
    rates: Rates,
    workers: int,
    on_done: Callable[[Job, str], None] = lambda *_: None,
    label: str = "suite",
) -> dict[str, str]:
    """Run jobs, several at a time, each in a process of its own with a log of its own; one that fails does not stop the others.

    Args:
        workers: processes, which share the processors; 0 runs the jobs in this one. on_done: told of each job that ended, and
            what went wrong, "" for nothing. label: of the progress bar.

    Returns:
        what went wrong by the job's name.

    Raises:
        KeyboardInterrupt: the user's; running jobs have kept what they had.
    """
    failed: dict[str, str] = {}
    expected = {job.name: job.seconds(rates) for job in jobs}
    finished = 0.0
    with tqdm(total=round(sum(expected.values())), desc=label, bar_format=BAR) as bar:
        for job, wrong, running in (_in_workers if workers else _in_this_process)(jobs, suite, workers):
            if job is not None:
                finished += expected[job.name]
                on_done(job, wrong)
                if wrong:
                    failed[job.name] = wrong
                    bar.set_postfix_str(f"{len(failed)} failed", refresh=False)
            bar.n = round(finished + sum(min(taken, expected[name]) for name, taken in running.items()))
            bar.refresh()
    return failed


BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
Progress = tuple[Job | None, str, Mapping[str, float]]
"""A job that ended, if one did, what went wrong, and for how many seconds the running ones have run."""


def _in_this_process(jobs: Sequence[Job], suite: Suite, workers: int) -> Iterator[Progress]:
    for job in jobs:
        try:
            job.run(suite)
        except Exception as error:  # whatever it is, other jobs do not depend on it
            yield job, f"{type(error).__name__}: {error}", {}
        else:
            yield job, "", {}


def _in_workers(jobs: Sequence[Job], suite: Suite, workers: int) -> Iterator[Progress]:
    context, waiting = multiprocessing.get_context("spawn"), deque(jobs)
    running: dict[Any, tuple[Any, Job, Path, float]] = {}
    threads = int(os.environ.get("OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // workers)))
    taken = lambda: {job.name: time.perf_counter() - begun for _, job, _, begun in running.values()}  # noqa: E731
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.popleft()
                log = suite.work / "logs" / f"{job.name}.log"
                process = context.Process(target=_logged, args=(job, suite, threads, log), name=job.name)
                process.start()
                running[process.sentinel] = (process, job, log, time.perf_counter())
            for sentinel in wait(list(running), timeout=2):
                process, job, log, _ = running.pop(sentinel)
                process.join()
                yield job, _complaint(process.exitcode, log), taken()
            yield None, "", taken()
    finally:
        for process, *_ in running.values():  # an interrupt reaches them too, and they finish their step
            process.join()


def _complaint(code: int | None, log: Path) -> str:
    """What a worker says last before it fails, and where the rest is."""
    if code == 0:
        return ""
    if code is not None and code < 0:  # it said nothing of it
        return f"killed by signal {-code}, as when memory is short: try fewer --workers ({log})"
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    return f"{next((line for line in reversed(lines) if line.strip()), f'ended with code {code}')} ({log})"


def _logged(job: Job, suite: Suite, threads: int, log: Path) -> None:
    """A worker: everything that it says, and what it fails with, goes to the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    job.run(suite)


def _stop_with_parent() -> None:
    """Interrupt this worker, which then finishes its step, when the process that started it is gone, however it went."""
    if (parent := multiprocessing.parent_process()) is not None:
        wait([parent.sentinel])
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # to the process, it may reach another thread, later


def probed_rates(suite: Suite, jobs: Sequence[Job], workers: int) -> Rates:
    """`probe` in as many processes at once as will work, since they slow each other down; the first one's answer."""
    policies = list(dict.fromkeys(job.policy for job in jobs if isinstance(job, PolicyJob)))
    if not policies:
        return Rates({"para": 0.0}, 0.005)
    config = next(job.config for job in jobs if isinstance(job, PolicyJob))
    probes = [Probe(f"probe-{index}", config, policies, suite.work / f"probe-{index}.json") for index in range(max(workers, 1))]
    failed = run_jobs(probes, suite, Rates({"para": 0.0}, 0.0), workers, label="probe")
    if failed:
        raise RuntimeError(f"the probe failed: {next(iter(failed.values()))}")
    return Rates(**json.loads(probes[0].answer.read_text()), horizons=suite.known_horizons())


@dataclass
class Probe:
    """`probe` as a job; the answer goes to a file."""

    name: str
    config: RobotConfig
    policies: Sequence[str]
    answer: Path

    def seconds(self, rates: Rates) -> float:
        return START_S

    def run(self, suite: Suite) -> None:
        found = probe(self.config, self.policies)
        write_atomically(self.answer, json.dumps({"step": found.step, "control": found.control}).encode())
