"""Experiments: what they ask for is trained once, kept cell by cell, gone on with, and told as tables."""

import json
import multiprocessing
import os
import runpy
import shutil
import signal
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest

from finetune import robot, suite
from finetune.robot import RobotConfig
from finetune.suite import (
    KEY,
    Experiment,
    Grid,
    PolicyJob,
    Rates,
    ReferenceJob,
    Suite,
    missing_jobs,
    outdated,
    run_jobs,
    share_rows,
)
from finetune.suite_page import (
    Target,
    estimate,
    fewer,
    gap,
    means_table,
    measured_on,
    mixed_note,
    ordered,
    outcomes,
    outdated_note,
    replayed_note,
    targets_table,
    tasks_table,
    verdict,
)
from para_video.hand import Hand
from para_video.policy import Schedule
from para_video.rollout import Cell, Episode
from para_video.sims.shifts import Shift

ROOT = Path(__file__).parent.parent
RATES = Rates({"para": 0.5, "act": 1.0}, 0.01, {("reach-v3", 1.0): 100})
TINY = RobotConfig(task="reach-v3", steps=1, batch_size=1, size=64, spread_over=0, backbone="mini-random")
GRID = Grid(("reach-v3",), (1,), (0,), ("para",), ("none", "azimuth=18"), episodes=1)


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Suite:
    monkeypatch.setenv("PARA_VIDEO_CACHE", str(tmp_path / "cache"))
    return Suite(TINY, tmp_path / "results", tmp_path / "work", "python benchmarks/claims.py")


@pytest.fixture
def acted(monkeypatch) -> list[tuple[str, str, str]]:
    """Nothing is trained, nothing is simulated: a note of (policy, task, view) for what would be."""
    calls: list[tuple[str, str, str]] = []

    def train(name, config, demos, folder, *_, **__):
        if not (folder / "training.json").exists():
            calls.append((name, config.task, "trained"))
            folder.mkdir(parents=True)
            (folder / "training.json").write_text("{}")
        return None, {"steps": config.steps, "seconds": 3.0}

    def evaluate_view(name, policy, config, shift, horizon, seeds):
        calls.append((name, config.task, str(shift)))
        return Cell(tuple(Episode(seed, 5 if seed % 2 else None, seed % 4 == 1, 20) for seed in seeds))

    def bounds(config, *_):
        return {name: Cell((Episode(0, 3, True, 9),) * config.episodes) for name in suite.REFERENCES}, 100

    monkeypatch.setattr(robot, "demonstrations", lambda *_: robot.DemoSet(()))
    for function in (train, evaluate_view, bounds):
        monkeypatch.setattr(robot, function.__name__, function)
    monkeypatch.setattr(suite, "episode_steps", lambda *_: 100)
    return calls


def run(tiny: Suite, **experiments: Grid) -> dict[str, str]:
    return run_jobs(missing_jobs(tiny, {name: [grid] for name, grid in experiments.items()}), tiny, RATES, 0)


# ---------------------------------------------------------------- running


def test_cells_are_measured_once_and_a_policy_is_trained_once_for_all_experiments(tiny, acted):
    assert run(tiny, first=GRID) == {}
    assert acted == [("para", "reach-v3", "trained"), ("para", "reach-v3", "none"), ("para", "reach-v3", "azimuth=18")]
    rows = tiny.rows("first").find(policy="para")
    assert [(row["view"], row["succeeded"], row["steps"], row["horizon"]) for row in rows] == [
        ("azimuth=18", "0", 1, 100), ("none", "0", 1, 100),
    ]  # fmt: skip
    assert {row["policy"] for row in tiny.rows("first").find(view="none")} == {"para", *suite.REFERENCES}
    acted.clear()
    assert run(tiny, first=GRID) == {} and acted == []

    run(tiny, first=replace(GRID, views=("none", "look=1")), second=replace(GRID, episodes=4))
    assert acted == [("para", "reach-v3", "look=1"), ("para", "reach-v3", "none"), ("para", "reach-v3", "azimuth=18")]
    (row,) = tiny.rows("second").find(policy="para", view="none")
    assert (row["succeeded"], row["held"]) == ("0101", "0100")
    settings = json.loads((tiny.results / "second.json").read_text())["settings"]
    assert settings["command"] == "python benchmarks/claims.py second" and row["versions"]["torch"]


def test_each_experiment_gets_as_many_episodes_as_it_asked_for(tiny, acted):
    run(tiny, few=replace(GRID, episodes=2), many=replace(GRID, episodes=6))
    assert len(acted) == 3
    lengths = [len(tiny.rows(name).find(policy="para", view="none")[0]["succeeded"]) for name in ("few", "many")]
    assert lengths == [2, 6]


def test_a_cell_that_another_experiment_has_is_taken_from_it(tiny, acted):
    run(tiny, first=replace(GRID, episodes=4))
    fewer_episodes, wide = replace(GRID, arm="some", episodes=2), replace(GRID, views=("none", "look=1"), episodes=5)
    share_rows(tiny, {"second": [fewer_episodes], "third": [wide], "fourth": [replace(GRID, options={"steps": 2})]})
    assert missing_jobs(tiny, {"second": [fewer_episodes]}) == []
    rows = tiny.rows("second").find()
    assert {(row["policy"], row["view"]) for row in rows} == {
        ("para", "none"),
        ("para", "azimuth=18"),
        *((name, "none") for name in suite.REFERENCES),
    }
    assert {(row["arm"], len(row["succeeded"]), len(row["held"])) for row in rows} == {("some", 2, 2)}
    assert tiny.rows("third").find() == [], "it asks for more episodes"
    assert {row["policy"] for row in tiny.rows("fourth").find()} == set(suite.REFERENCES), (
        "policies are others, what bounds them is not"
    )


def test_cells_of_another_policy_or_another_schedule_are_measured_again(tiny, acted, monkeypatch):
    run(tiny, some=GRID)
    longer = replace(GRID, options={"steps": 2})
    assert [job.policy for job in missing_jobs(tiny, {"some": [longer]})] == ["para"], "references are not trained"
    run(tiny, some=longer)
    assert {row["steps"] for row in tiny.rows("some").find(policy="para")} == {2}
    assert missing_jobs(tiny, {"some": [longer]}) == []
    monkeypatch.setattr("finetune.grid.DEFAULT_SCHEDULE", Schedule(executed=5))
    assert len(missing_jobs(tiny, {"some": [longer]})) == 2


@pytest.mark.parametrize(
    "change", [{"steps": 2}, {"init": "none"}, {"learning_rate": 1e-4}, {"widen": 1.5}, {"head_options": '{"start": false}'}]
)
def test_a_policy_that_is_trained_otherwise_is_another_one(change, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    config = RobotConfig(init=str(tmp_path))
    name = suite.trained_on(config, "para")
    assert suite.trained_on(replace(config, **change), "para") != name
    assert suite.trained_on(replace(config, episodes=3, azimuths="5", resume=True), "para") == name
    (tmp_path / "model.safetensors").write_bytes(b"trained on")
    assert suite.trained_on(config, "para") != name


def test_rows_of_policies_that_are_trained_otherwise_today_are_told(tiny, acted):
    run(tiny, some=GRID)
    rows, longer = tiny.rows("some").find(), replace(GRID, options={"steps": 2})
    assert rows and outdated(tiny, [GRID], rows) == [] and outdated_note([]) == ""
    old = outdated(tiny, [longer], rows)
    assert [(row["policy"], row["view"]) for row in old] == [("para", "azimuth=18"), ("para", "none")]
    assert outdated_note(old).endswith("experts: PARA from 1 (reach).*")
    assert outdated(tiny, [replace(GRID, demos=(2,))], rows) == [], "what is not wanted is not outdated"
    wider = outdated(tiny, [replace(GRID, options={"widen": 1.5})], rows)
    assert {row["policy"] for row in wider} == {"para", *suite.REFERENCES}
    assert outdated_note(wider).endswith("PARA from 1 (reach); expert, oracle and blind replay from 1 (reach).*")


def test_what_is_measured_on_fewer_seeds_says_so():
    digits = {("para", 0): "1111", ("para", 1): "0011", ("act", 0): "0111"}
    rows = [
        {"arm": "", "task": "reach-v3", "demos": 5, "seed": seed, "policy": policy, "view": "none", "succeeded": won, "held": won}
        for (policy, seed), won in digits.items()
    ]
    experiment = Experiment("few", "claim", (replace(GRID, demos=(5,), seeds=(0, 1), policies=("para", "act")),), ())
    (line,) = means_table(experiment, rows, {"same": ("none",)}).splitlines()[2:]
    para, act, ahead = (cell.strip() for cell in line.split("|")[3:6])
    assert para.startswith("75% (") and act.startswith("75% (") and act.endswith(", 1 seed") and "seed" not in para
    assert ahead.startswith("+25 (") and ahead.endswith("), 1 seed")
    target = Target("text", 0.7, "few", 5, ("none",), besides=("act",))
    (line,) = targets_table([target], {"few": rows}, {"few": experiment}).splitlines()[2:]
    measured, beside, ahead = (cell.strip() for cell in line.split("|")[5:8])
    assert measured.endswith("2 seeds, 8 episodes") and beside.startswith("ACT 75% (") and beside.endswith("), 1 seed")
    assert ahead.startswith("+25 (") and ";" not in ahead
    assert fewer({("a", 0): [1], ("b", 1): [1]}, {(task, seed): [1] for task in "ab" for seed in (0, 1)}) == ", 2 of 4 trainings"
    whole = [row for row in rows if row["seed"] == 0]
    assert "seed" not in means_table(experiment, whole, {"same": ("none",)}).split("|")[-4]
    assert "there" not in targets_table([target], {"few": whole}, {"few": experiment})


def test_tasks_that_a_blind_replay_solves_are_told():
    row = {"arm": "", "task": "reach-v3", "demos": 5, "seed": 0, "policy": "blind_replay", "view": "none"}
    assert replayed_note([{**row, "succeeded": "1000"}]) == replayed_note([{**row, "policy": "para", "succeeded": "1111"}]) == ""
    assert "a quarter of reach 2/4 (training view, 5 demonstrations)." in replayed_note([{**row, "succeeded": "1100"}])


def test_what_is_compared_across_precisions_is_told():
    row = {"arm": "a", "demos": 5, "task": "reach-v3", "policy": "para", "versions": {"precision": "bf16"}}
    other = {**row, "policy": "act", "versions": {"precision": "float32"}}
    assert mixed_note([row, {**row, "policy": "act"}, {**other, "task": "push-v3"}, {**other, "demos": 1}]) == ""
    assert "from 5 (reach): a, ACT float32, a, PARA bf16." in mixed_note([row, other])


def test_a_worker_that_is_killed_is_not_told_by_its_progress_bar(tmp_path):
    log = tmp_path / "job.log"
    log.write_text("para: 45%|####5     | 540/1200")
    assert suite._complaint(-9, log).startswith("killed by signal 9") and "540" not in suite._complaint(-9, log)
    assert suite._complaint(1, log).startswith("para: 45%") and suite._complaint(0, log) == ""


def test_a_hand_of_another_shape_that_is_hidden_is_another_policy(monkeypatch):
    config = RobotConfig(init="none")
    seen, hidden = (suite.trained_on(replace(config, hide_hand=hide), "para") for hide in (False, True))
    monkeypatch.setattr(suite, "Hand", lambda: Hand(low=0.1))
    assert suite.trained_on(config, "para") == seen
    assert len({seen, hidden, suite.trained_on(replace(config, hide_hand=True), "para")}) == 3


def test_names_outlive_options_that_are_off_and_not_another_expert_or_schedule(monkeypatch):
    config = RobotConfig(init="none")
    names = lambda: [suite.trained_on(config, policy) for policy in ("para", "references")]  # noqa: E731
    before, settings = names(), suite.plain_settings
    monkeypatch.setattr(suite, "plain_settings", lambda config: {**settings(config), "later": 0})
    assert names() == before
    monkeypatch.setattr(suite, "plain_settings", lambda config: {**settings(config), "later": 1})
    assert names()[0] != before[0] and names()[1] == before[1], "what is trained otherwise is bounded alike"
    monkeypatch.setattr(suite, "plain_settings", settings)
    for name, value in (("recipe", lambda task: 7), ("DEFAULT_SCHEDULE", Schedule(frame_stride=4))):
        with monkeypatch.context() as patch:
            patch.setattr(suite, name, value)
            assert not {*names()} & {*before}


def test_work_comes_seed_by_seed_and_references_under_workspaces_only(tiny):
    wide = replace(GRID, seeds=(0, 1), policies=("para", "act"), views=("none", "azimuth=18", "workspace=right"))
    jobs = missing_jobs(tiny, {"a": [wide], "b": [replace(wide, tasks=("push-v3",))]})
    told = [("references" if isinstance(job, ReferenceJob) else job.policy, job.config.task, job.config.seed) for job in jobs]
    zero = [(policy, task, 0) for task in ("reach-v3", "push-v3") for policy in ("references", "para", "act")]
    assert told == zero + [(policy, task, 1) for task in ("reach-v3", "push-v3") for policy in ("para", "act")]
    assert [cell.view for cell in jobs[0].wanted] == ["none", "workspace=right"]


def test_a_job_that_fails_is_told_and_the_others_go_on(tiny, acted, monkeypatch):
    broken = robot.train

    def train(name, *args, **options):
        if name == "act":
            raise FloatingPointError("loss is not finite")
        return broken(name, *args, **options)

    monkeypatch.setattr(robot, "train", train)
    failed = run(tiny, some=replace(GRID, policies=("act", "para")))
    assert list(failed.values()) == ["FloatingPointError: loss is not finite"]
    assert [row["policy"] for row in tiny.rows("some").find(view="azimuth=18")] == ["para"]
    monkeypatch.setattr(robot, "train", broken)
    assert [job.policy for job in missing_jobs(tiny, {"some": [replace(GRID, policies=("act", "para"))]})] == ["act"]


@dataclass
class Sum:
    """A job that is no training: any picklable thing with a name, seconds and run."""

    name: str
    share: int

    def seconds(self, rates: Rates) -> float:
        return 1.0

    def run(self, suite: Suite) -> None:
        suite.rows("sums").add({**dict.fromkeys(KEY, ""), "arm": self.name, "value": 6 // self.share})


def test_workers_have_logs_and_one_that_fails_does_not_stop_the_other(tiny):
    failed = run_jobs([Sum("half", 2), Sum("none", 0)], tiny, RATES, workers=2)
    assert list(failed) == ["none"]
    assert "ZeroDivisionError" in failed["none"] and str(tiny.work / "logs" / "none.log") in failed["none"]
    assert [row["value"] for row in tiny.rows("sums").find()] == [3]


def test_video_models_are_not_tuned_in_silence(tiny):
    with pytest.raises(ValueError, match="a suite does not tune video models, got video_steps 2"):
        missing_jobs(tiny, {"some": [replace(GRID, options={"video_steps": 2})]})


def test_estimates_count_steps_that_are_left_and_each_view_once(tiny, acted):
    wanted = [suite.Wanted("a", "", "none", 10), suite.Wanted("b", "", "none", 20), suite.Wanted("b", "", "look=1", 5)]
    config = replace(TINY, steps=100)
    job = PolicyJob("name", "act-plain", config, tiny.work / "p", wanted)
    assert job.seconds(RATES) == suite.START_S + 100 * 1.0 + 25 * 100 * 0.01
    (tiny.work / "p").mkdir(parents=True)
    (tiny.work / "p" / "training.json").write_text("{}")
    assert job.seconds(RATES) == suite.START_S + 25
    assert ReferenceJob("r", config, wanted).seconds(RATES) == suite.START_S + suite.RECORD_S * 5 + 1.5 * 25

    assert suite.known_rates(tiny) is None
    run(tiny, some=replace(GRID, policies=("para", "act")))
    rates = suite.known_rates(tiny)
    assert rates.step == {"para": 3.0, "act": 3.0} and rates.horizons == {("reach-v3", 1.0): 100}
    assert suite.known_rates(replace(tiny, work=tiny.work / "another machine's")) is None


def test_a_cell_is_really_measured_after_a_probe(tiny, monkeypatch):
    """As the suite does it: probe, references, a policy, its rows; then further views of the same policy."""
    jobs = missing_jobs(tiny, {"small": [replace(GRID, views=("none",))]})
    monkeypatch.setattr(suite, "PROBE_STEPS", 2)
    monkeypatch.setattr(suite, "PROBE_HORIZON", 9)
    rates = suite.probed_rates(tiny, jobs, 0)
    assert rates.step["para"] > 0 and rates.control > 0
    assert run_jobs(jobs, tiny, rates, 0) == {}
    by_policy = {row["policy"]: row for row in tiny.rows("small").find()}
    assert by_policy["expert"]["succeeded"] == by_policy["readout"]["succeeded"] == "1"
    assert by_policy["para"]["seconds"] > 0 and by_policy["para"]["act_seconds"] > 0
    assert not list(tiny.work.glob("policies/*/training.safetensors")) and list(tiny.work.glob("policies/*/model.safetensors"))


# ---------------------------------------------------------------- tables


def row(won: str, policy="para", view="none", arm="", task="reach-v3", seed=0, demos=5):
    key = {"arm": arm, "task": task, "demos": demos, "seed": seed, "policy": policy, "view": view}
    return {**key, "succeeded": won, "held": won, "steps": 3, "seconds": 1.0, "act_seconds": 0.1, "horizon": 100}


def test_outcomes_of_views_that_share_episodes_are_averaged_where_all_are_there():
    rows = [row("10", view="azimuth=18"), row("11", view="azimuth=-18"), row("00", view="azimuth=18", seed=1)]
    assert outcomes(rows, ("azimuth=18", "azimuth=-18"), policy="para") == {("reach-v3", 0): [1, 0.5]}


def test_a_gap_is_over_what_both_have():
    mine = outcomes([row("1111"), row("0000", seed=1), row("1111", task="push-v3")], policy="para")
    theirs = outcomes([row("0000", policy="act"), row("00", policy="act", task="push-v3")], policy="act")
    found = gap(mine, theirs)
    assert (found.mean, found.low, found.high) == (1, 1, 1)
    assert gap(mine, {}) is None


def test_a_line_of_what_is_to_be_shown_is_reached_or_not_or_not_measured():
    targets = [
        Target("same view", 0.9, "a", 5, ("none",), besides=("act",)),
        Target("looks", 0.6, "a", 5, ("look=1",)),
        Target("circles", 0.6, "c", 5, ("none",), arm="circles", other_arm="scratch"),
    ]
    rows = {"a": [row("1" * 19 + "0"), row("0" * 20, policy="act")], "c": [row("10", arm="circles"), row("00", arm="scratch")]}
    experiments = {
        "a": Experiment("a", "", (replace(GRID, demos=(5,), policies=("para", "act")),), ()),
        "c": Experiment("c", "", tuple(replace(GRID, demos=(5,), arm=arm) for arm in ("circles", "scratch")), ()),
    }
    table = [line.split(" | ") for line in targets_table(targets, rows, experiments).splitlines()[2:]]
    assert table[0][1:4] == ["90%", "95% (76% to 99%)", "**yes**"] and "ACT 0%" in table[0][5] and "+95 (" in table[0][6]
    assert table[1][3] == "not measured" and table[2][3] == "no" and "scratch 0%" in table[2][5]
    assert table[0][4] == "1 task, 1 seed, 20 episodes"
    assert [verdict(mean, 0.85) for mean in (0.85, 0.8495, 0.84)] == ["**yes**", "no, 84.95%", "no"]
    for missing in ({"tasks": ("reach-v3", "push-v3")}, {"seeds": (0, 1)}):
        more = {**experiments, "a": Experiment("a", "", (replace(GRID, demos=(5,), **missing),), ())}
        assert " | yes, so far | " in targets_table(targets, rows, more)


def test_tables_compare_arms_and_bring_what_bounds_them():
    arms = tuple(Grid(("reach-v3",), (5,), (0,), ("para",), arm=arm) for arm in ("circles", "scratch"))
    rows = [row("1110", arm="circles"), row("1000", arm="scratch"), row("1111", arm="circles", policy="expert")]
    rows += [row("0000", arm="circles", policy="readout", demos=20)]
    means = means_table(Experiment("c", "", arms, (), baseline="scratch"), rows, {"same": ("none",)}).splitlines()
    assert means[0] == "| arm | demonstrations | view | PARA | over scratch | measured on |"
    assert means[2].startswith("| circles | 5 | same | 75% (") and " | +50 (" in means[2] and " |  | 1 task" in means[3]
    tasks = tasks_table(rows).splitlines()
    assert tasks[2] == "| circles | 5 | reach | training view | 3/4 (3) | 4/4 (4) |  |  |"


def test_rows_stand_in_the_order_in_which_an_experiment_names_them():
    grid = replace(GRID, policies=("para", "act"), views=("none", "azimuth=6", "azimuth=12"), demos=(5, 20))
    wanted = [
        (5, "para", "azimuth=6"),
        (5, "act", "none"),
        (20, "para", "none"),
        (20, "para", "azimuth=12"),
        (20, "expert", "none"),
    ]
    rows = [row("1", demos=demos, policy=policy, view=view) for demos, policy, view in sorted(wanted)]
    found = ordered(rows, Experiment("a", "", (grid,), ()))
    assert [(each["demos"], each["policy"], each["view"]) for each in found] == wanted


# ---------------------------------------------------------------- the script


@pytest.fixture(scope="module")
def claims():
    return runpy.run_path(str(ROOT / "benchmarks" / "claims.py"))


def test_the_script_measures_draws_and_says_what_failed(claims, acted, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(suite, "probe", lambda *_: RATES)
    options = {"tasks": ("reach-v3", "push-v3"), "episodes": 4, "workers": 0, "steps": 2, "work": tmp_path / "work"}
    config = claims["Config"](**options, results=tmp_path / "results", quick=True)
    claims["main"](replace(config, estimate=True))
    assert "jobs, about" in capsys.readouterr().out and acted == []
    claims["main"](config)
    files = {path.name for path in (tmp_path / "results").iterdir() if not path.name.endswith(".lock")}
    drawn = {f"claims-{name}.png" for name in ("headlines-20", "demos", "azimuth", "workspace", "circles", "calibration")}
    assert files == {*(f"{name}.json" for name in claims["EXPERIMENTS"]), *drawn, "claims.md"}
    text = (tmp_path / "results" / "claims.md").read_text()
    assert "Not measured" not in text and "`python benchmarks/claims.py --quick --steps 2 headlines`" in text
    trained = [call for call in acted if call[2] == "trained"]
    # per task: headlines 3, PARA with 5, half a workspace, repainted, disturbed, circles' scratch, a form of the head
    assert len(trained) == 2 * 9

    def full_disk(*_, **__):
        raise OSError("no space")

    monkeypatch.setattr(robot, "train", full_disk)
    other = replace(config, names=("calibration",), results=tmp_path / "other")
    with pytest.raises(RuntimeError, match="2 of 4 jobs failed, all others are kept.*OSError: no space"):
        claims["main"](other)
    assert (tmp_path / "other" / "claims.md").is_file()


OLDER = {"act", "regression"}
"""Policies some of whose rows are of another learning rate than today's, as the page says."""


@pytest.mark.parametrize("quick", [False, True])
def test_it_goes_on_from_the_rows_that_are_shipped(claims, quick, tmp_path):
    shipped = claims["Config"](quick=quick)
    config = replace(shipped, results=tmp_path / "results", work=tmp_path / "work")
    shutil.copytree(shipped.folder, config.folder, ignore=shutil.ignore_patterns("*.lock"))
    made, grids = config.suite(), {name: config.grids(name) for name in claims["EXPERIMENTS"]}
    assert suite.known_rates(made) is None, "they are of other machines"
    suite.share_rows(made, grids)
    missing_jobs(made, grids)  # none of the files is of other settings
    if not quick:
        older = {
            row["policy"]
            for name in grids.keys() - {"disturbed"}
            for row in suite.outdated(made, grids[name], suite.stored(config.folder, name).find())
        }
        assert older <= OLDER, "policies are trained in the way that their rows say"


def test_the_readme_begins_with_what_is_measured(claims):
    rows = suite.stored(claims["Config"]().folder, "azimuth").find()
    success = {
        (policy, view): f"{100 * estimate(outcomes(rows, (view,), policy=policy, demos=20)).mean:.0f} %"
        for policy, view in [*product(("para", "regression"), ("none", "azimuth=12")), ("blind_replay", "none")]
    }
    begin = " ".join((claims["README"]).read_text().partition("![")[0].split())
    assert f"the {success['regression', 'none']} of episodes that regression solves here from twenty demonstrations" in begin
    assert f"blindly solves {success['blind_replay', 'none']}, become {success['regression', 'azimuth=12']} at twelve" in begin
    assert f"there it keeps {success['para', 'azimuth=12']} of {success['para', 'none']}." in begin


def test_policies_are_tuned_in_the_way_that_the_claims_train_them(claims):
    tuned = runpy.run_path(str(ROOT / "benchmarks" / "tuning_table.py"))["WAYS"]["claims"]
    (grid,) = (grid for grid in claims["Config"]().grids("azimuth") if tuned.task in grid.tasks)
    assert tuned == replace(claims["Config"]().suite().robot, task=tuned.task, demos=tuned.demos, **grid.options)
    assert tuned.demos in grid.demos


def test_more_demonstrations_are_trained_on_in_another_way_and_steps_are_what_is_given(claims):
    grids = claims["Config"]().grids("headlines")
    assert {(grid.demos, grid.options.get("steps"), grid.options.get("repaint")) for grid in grids} == {
        ((5,), None, None), ((20,), 1200, 0.5), ((20,), 2400, 0.8)
    }  # fmt: skip
    assert {grid.tasks for grid in grids if grid.options.get("steps") == 2400} == {("coffee-pull-v3",)}
    assert {grid.options["steps"] for grid in claims["Config"]().grids("azimuth")} == {1200}, "headlines alone"
    assert {grid.options["repaint"] for grid in claims["Config"]().grids("surroundings")} == {0.5, 0.0}
    names = ("noise", "state_noise", "zoom", "hide_hand")
    told = {tuple(grid.options[name] for name in names) for grid in claims["Config"]().grids("disturbed")}
    assert told == {(0.3, 0.0, 1.0, False), (0.0, 1.0, 1.0, False)}, "its arms differ in what it is about, as it was"
    assert {grid.demos for grid in grids if grid.references} == {(5,), (20,)}, "each way has its own bounds"
    own = {"shelf-place-v3": (1.25, True), "coffee-pull-v3": (1.5, False)}
    assert {
        task: (grid.options["zoom"], grid.options["hide_hand"]) for grid in grids if grid.demos == (20,) for task in grid.tasks
    } == {**dict.fromkeys(claims["TASKS"], (1.5, True)), **own}
    shorter = claims["Config"](steps=300).grids("headlines")
    assert {(grid.demos, grid.options.get("steps"), grid.options.get("repaint")) for grid in shorter} == {
        ((5,), 300, None), ((20,), 300, 0.5), ((20,), 300, 0.8)
    }  # fmt: skip
    assert all("steps" not in grid.options for grid in claims["Config"](quick=True).grids("demos"))
    joint = claims["Config"](train="joint")
    assert not any(grid.options.get("hide_hand") for name in claims["EXPERIMENTS"] for grid in joint.grids(name))
    for name in ("demos", "circles"):
        assert {(*grid.options, *grid.options.values()) for grid in claims["Config"]().grids(name)} <= {(), ("init", "none")}


def test_circles_are_left_out_where_no_head_is_started_from(claims, acted, tmp_path, capsys):
    config = claims["Config"](names=("circles",), init="none", workers=0, results=tmp_path / "results", work=tmp_path / "work")
    claims["main"](config)
    assert "circles is left out" in capsys.readouterr().out and acted == []


def test_a_worker_is_interrupted_when_the_process_that_started_it_is_gone(monkeypatch):
    reading, writing = os.pipe()
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: SimpleNamespace(sentinel=reading))
    os.close(writing)  # as the kernel does at a process's end
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker's own, whatever runs the tests
    try:
        with pytest.raises(KeyboardInterrupt):
            suite._stop_with_parent()
    finally:
        signal.signal(signal.SIGINT, before)
        os.close(reading)


def test_a_count_of_episodes_has_every_view():
    found = outcomes([row("10", view="azimuth=18"), row("11", view="azimuth=-18")], ("azimuth=18", "azimuth=-18"))
    assert measured_on(found, 2) == "1 task, 1 seed, 4 episodes"
    assert measured_on({("a", 0): [1, 0], ("a", 1): [1, 0], ("b", 0): [1, 0]}) == "2 tasks, 1 to 2 seeds, 6 episodes"


def test_grids_name_what_there_is(claims):
    halves = set()
    for experiment in claims["EXPERIMENTS"].values():
        for grid in (*experiment.grids, *experiment.quick):
            assert set(grid.policies) <= set(robot.HEADS)
            for task, view in product(grid.tasks, grid.views):
                config, shift = RobotConfig(task=task, **grid.options), Shift.parse(view)
                if config.workspace:
                    halves.add((task, shift.workspace or config.workspace, config.widen))
    assert {workspace for _, workspace, _ in halves} == {"left", "right", "near", "far"}
    for task, workspace, widen in halves:
        RobotConfig(task=task, workspace=workspace, widen=widen).env().close()  # which refuses a task that cannot be split
    with pytest.raises(ValueError, match="unknown experiments.*headlines"):
        claims["Config"](names=("headline",))


@pytest.mark.parametrize("quick", [False, True])
def test_arms_of_an_experiment_are_trained_in_different_ways(claims, quick, tmp_path):
    config = claims["Config"](quick=quick, results=tmp_path, work=tmp_path)
    for name in claims["EXPERIMENTS"]:
        for job in missing_jobs(config.suite(), {name: config.grids(name)}):
            assert len({wanted.arm for wanted in job.wanted}) == 1 or isinstance(job, ReferenceJob), (name, job.wanted)


def test_the_page_and_the_readme_are_those_of_the_rows(claims, tmp_path, monkeypatch):
    """No figure is typed: what the script writes from results/claims is what the pages say."""
    pages = {name: (ROOT / name).read_text() for name in ("docs/claims.md", "README.md")}
    (tmp_path / "docs").mkdir()
    for name, text in pages.items():
        (tmp_path / name).write_text(text)
    module = claims["write"].__globals__
    monkeypatch.setitem(module, "PAGE", tmp_path / "docs" / "claims.md")
    monkeypatch.setitem(module, "README", tmp_path / "README.md")
    claims["write"](claims["Config"]())
    assert {name: (tmp_path / name).read_text() for name in pages} == pages
