"""Rows of measured cells: kept, told apart, compared."""

import json

import numpy as np
import pytest

from finetune.grid import Rows, cell, draw_arms, gain


def row(arm: str, digits: str, **changes):
    return {"task": "reach-v3", "demos": 5, "seed": 0, "arm": arm, "policy": "para", "succeeded": {"same": digits}, **changes}


def test_rows_outlive_the_process_that_measured_them_and_one_key_has_one_row(tmp_path):
    path = tmp_path / "rows.json"
    Rows(path, {"steps": 3}).add(row("a", "0110"))
    again = Rows(path, {"steps": 3})
    again.add(row("b", "0000"))
    again.add(row("a", "1111"))
    assert [(r["arm"], r["succeeded"]["same"]) for r in again.find()] == [("a", "1111"), ("b", "0000")]
    assert cell(again.find(arm="a")) == "4/4" and again.find(arm="a", task="push-v3") == [] and cell([]) == ""
    assert json.loads(path.read_text())["settings"] == {"steps": 3}


def test_rows_of_other_settings_and_damaged_files_are_refused(tmp_path):
    path = tmp_path / "rows.json"
    Rows(path, {"steps": 3, "episodes": (1, 2)}).add(row("a", "1"))
    with pytest.raises(ValueError, match="steps was 3 and is 4"):
        Rows(path, {"steps": 4, "episodes": (1, 2)})
    path.write_text('{"settings": {}')
    with pytest.raises(ValueError, match="rows.json is damaged"):
        Rows(path, {"steps": 3})


def test_a_gain_is_paired_and_its_interval_by_hand():
    better, worse = [row("a", "1" * 30 + "0" * 10)], [row("b", "1" * 10 + "0" * 30)]
    difference, low, high = gain(better, worse)
    spread = 1.96 * np.sqrt(0.5 * 0.5 / 40)  # 20 of 40 pairs differ, all in one direction
    assert difference == 0.5 and abs(low - (0.5 - spread)) < 0.02 and abs(high - (0.5 + spread)) < 0.02
    assert gain(better, better) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="measure what is missing"):
        gain(better, [row("b", "1" * 20)])


def test_arms_are_drawn(tmp_path):
    draw_arms(tmp_path / "arms.png", [row("a", "01"), row("b", "11")], ["a", "b"], ["para", "act"], "two arms")
    assert (tmp_path / "arms.png").stat().st_size > 0
