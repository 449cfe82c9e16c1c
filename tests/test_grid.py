"""Rows of measured cells: compared and drawn."""

import numpy as np
import pytest

from finetune.grid import draw_arms, gain


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


def test_arms_are_drawn(tmp_path):
    draw_arms(tmp_path / "arms.png", [row("a", "01"), row("b", "11")], ["a", "b"], ["para", "act"], "two arms")
    assert (tmp_path / "arms.png").stat().st_size > 0
