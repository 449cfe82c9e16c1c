"""Rows of measured cells: compared and drawn."""

import json
import runpy
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from finetune import robot
from finetune.grid import KEY, draw_arms, gain, measure, measured_alike, rate, setting_folder
from finetune.suite_page import made_with
from para_video.policy import DEFAULT_SCHEDULE
from para_video.rows import Rows
from para_video.sims.experts import EXPERTS, recipe
from para_video.statistics import wilson_interval
from para_video.training import write_atomically

ROOT = Path(__file__).parent.parent


def row(arm: str, digits: str, **changes):
    return {"task": "reach-v3", "demos": 5, "seed": 0, "arm": arm, "policy": "para", "succeeded": {"same": digits}, **changes}


def test_a_gain_is_paired_and_its_interval_by_hand():
    better, worse = [row("a", "1" * 30 + "0" * 10)], [row("b", "1" * 10 + "0" * 30)]
    difference, low, high = gain(better, worse)
    spread = 1.96 * np.sqrt(0.5 * 0.5 / 40)  # 20 of 40 pairs differ, all in one direction
    assert difference == 0.5 and abs(low - (0.5 - spread)) < 0.02 and abs(high - (0.5 + spread)) < 0.02
    assert gain(better, better) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="measure what is missing"):
        gain(better, [row("b", "1" * 20)])


def test_what_a_cut_left_of_other_settings_is_not_gone_on_with(tmp_path, monkeypatch):
    def cut(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(robot, "demonstrations", lambda *_: robot.DemoSet(()))
    monkeypatch.setattr(robot, "train", cut)
    rows = Rows(tmp_path / "rows.json", {}, KEY)
    config = robot.RobotConfig(task="reach-v3", steps=2)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            measure("arm", {"para": config}, rows, tmp_path / "work", Console(quiet=True))
    with pytest.raises(ValueError, match="steps was 2 and is 3"):
        measure("arm", {"para": robot.RobotConfig(task="reach-v3", steps=3)}, rows, tmp_path / "work", Console(quiet=True))


def test_what_a_cut_left_of_other_weights_is_not_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(robot, "demonstrations", lambda *_: robot.DemoSet(()))
    monkeypatch.setattr(robot, "train", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    start, rows = tmp_path / "start", Rows(tmp_path / "rows.json", {}, KEY)
    start.mkdir()
    config = robot.RobotConfig(task="reach-v3", init=str(start))
    for weights, error in ((b"first", KeyboardInterrupt), (b"first", KeyboardInterrupt), (b"second", ValueError)):
        (start / "model.safetensors").write_bytes(weights)
        with pytest.raises(error):
            measure("arm", {"para": config}, rows, tmp_path / "work", Console(quiet=True))


def test_the_interval_of_several_seeds_is_not_that_of_as_many_episodes():
    rows = [row("a", "1" * 40 + "0" * 10, seed=seed) for seed in range(3)]
    one, three = rate(rows[:1]), rate(rows)
    assert one.mean == three.mean and three.low <= one.low and three.high >= one.high
    low, high = wilson_interval(40, 50)
    assert (one.low, one.high) == pytest.approx((low, high))


def test_rows_of_another_schedule_do_not_count(tmp_path, monkeypatch):
    rows = Rows(tmp_path / "rows.json", {}, KEY)
    config = robot.RobotConfig(task="reach-v3")
    key = {"task": "reach-v3", "demos": config.demos, "seed": 0, "arm": "arm", "policy": "para"}
    monkeypatch.setattr(robot, "demonstrations", lambda *_: pytest.fail("measured"))
    rows.add({**key, "schedule": asdict(DEFAULT_SCHEDULE)})
    measure("arm", {"para": config}, rows, tmp_path / "work", Console(quiet=True))
    rows.add({**key, "schedule": asdict(replace(DEFAULT_SCHEDULE, executed=3))})
    kept = tmp_path / "work" / "reach-v3-5-0" / "arm" / "para" / "cells.json"
    shutil.rmtree(kept.parent, ignore_errors=True)
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    for left in (True, False):  # at first what it did by the other schedule, then what a cut left of today's
        with pytest.raises(pytest.fail.Exception, match="measured"):
            measure("arm", {"para": config}, rows, tmp_path / "work", Console(quiet=True))
        assert kept.exists() != left
        kept.write_text("{}")
    kept.with_name("schedule.json").write_text(json.dumps(asdict(replace(DEFAULT_SCHEDULE, executed=3))))
    with pytest.raises(pytest.fail.Exception, match="measured"):
        measure("arm", {"para": config}, Rows(tmp_path / "none.json", {}, KEY), tmp_path / "work", Console(quiet=True))
    assert not kept.exists(), "a cut left it before it had a row"
    tuned, tuning = tmp_path / "tuned" / "model.safetensors", replace(config, video_steps=2)
    for executed in (DEFAULT_SCHEDULE.executed, 3):
        write_atomically(tuned, b"weights")
        write_atomically(
            tuned.with_name("schedule.json"), json.dumps(asdict(replace(DEFAULT_SCHEDULE, executed=executed))).encode()
        )
        with pytest.raises(pytest.fail.Exception, match="measured"):
            measure("tuned", {"para": tuning}, rows, tmp_path / "work", Console(quiet=True), video=tuned.parent)
        assert tuned.exists() == (executed != 3), "a video model that was tuned by another schedule is not gone on with"


def test_rows_of_another_expert_do_not_count(tmp_path, monkeypatch):
    """Nor is what a cut left of its demonstrations gone on with."""
    monkeypatch.setattr(robot, "demonstrations", lambda *_: pytest.fail("measured"))
    rows, work = Rows(tmp_path / "rows.json", {}, KEY), tmp_path / "work"
    config = robot.RobotConfig(task="push-v3")
    told = {"task": "push-v3", "demos": config.demos, "seed": 0, "arm": "arm", "policy": "para"}
    told |= {"schedule": asdict(DEFAULT_SCHEDULE), "versions": {"torch": "2", "metaworld": "3", "mujoco": "3"}}
    rows.add(told | {"expert": recipe("push-v3")})
    measure("arm", {"para": config}, rows, work, Console(quiet=True))
    assert "expert" not in made_with(rows.find())
    rows.add(told | {"expert": recipe("push-v3") - 1})
    with pytest.raises(pytest.fail.Exception, match="measured"):
        measure("arm", {"para": config}, rows, work, Console(quiet=True))
    assert "push from demonstrations of an earlier expert" in made_with(rows.find())
    before = setting_folder(work, "push-v3", 5, 0)
    monkeypatch.setattr(EXPERTS["push-v3"], "RECIPE", recipe("push-v3") + 1)
    assert setting_folder(work, "push-v3", 5, 0) != before


def test_arms_are_drawn(tmp_path):
    draw_arms(tmp_path / "arms.png", [row("a", "01"), row("b", "11")], ["a", "b"], ["para", "act"], "two arms")
    assert (tmp_path / "arms.png").stat().st_size > 0


def test_the_freeze_ablation_is_told_as_its_rows_have_it(tmp_path, monkeypatch):
    """On its page and in the README no figure is typed."""
    script = runpy.run_path(str(ROOT / "benchmarks" / "freeze_ablation.py"))
    pages = {name: (ROOT / name).read_text() for name in ("docs/freeze.md", "README.md")}
    (tmp_path / "docs").mkdir()
    for name, text in pages.items():
        (tmp_path / name).write_text(text)
    page, results = tmp_path / "docs" / "freeze.md", tmp_path / "freeze.json"
    results.write_bytes((ROOT / "results" / "freeze.json").read_bytes())
    monkeypatch.setitem(script["write"].__globals__, "PAGE", page)
    monkeypatch.setitem(script["write"].__globals__, "README", tmp_path / "README.md")
    rows = Rows(results, json.loads(results.read_text())["settings"], KEY)
    script["write"](script["Config"](page=page), rows)
    with pytest.raises(ValueError, match="pass a --page"):
        script["Config"](results=results)
    assert {name: (tmp_path / name).read_text() for name in pages} == pages
    assert page.with_name("freeze.png").stat().st_size > 0


def test_bars_are_of_what_every_policy_has_in_each_of_its_arms():
    row = lambda task, arm, policy: {"task": task, "demos": 5, "arm": arm, "policy": policy}  # noqa: E731
    whole = [row("a", arm, policy) for arm, policy in (("none", "para"), ("both", "para"), ("none", "regression"))]
    part = [row("b", "none", "para"), row("b", "none", "regression")]
    assert measured_alike([*whole, *part]) == whole
    assert measured_alike([whole[0], part[1]]) == [whole[0], part[1]]
