"""Runs go on with the settings they began with."""

import json

import pytest

from para_video.runs import SETTINGS_FILE, per_process, same_settings
from para_video.training import make_accelerator
from pretrain.circles import CirclesConfig


def test_a_resume_with_other_settings_is_refused_and_free_ones_may_change(tmp_path):
    accelerator = make_accelerator("no")
    same_settings(tmp_path, CirclesConfig(size=64), free=("workers",), accelerator=accelerator)
    before = (tmp_path / SETTINGS_FILE).read_bytes()
    same_settings(tmp_path, CirclesConfig(size=64, workers=2), free=("workers",), accelerator=accelerator)
    with pytest.raises(ValueError, match="size was 64 and is 128"):
        same_settings(tmp_path, CirclesConfig(), free=("workers",), accelerator=accelerator)
    assert (tmp_path / SETTINGS_FILE).read_bytes() == before
    assert json.loads(before)["processes"] == 1


def test_damaged_settings_are_named(tmp_path):
    (tmp_path / SETTINGS_FILE).write_text("{")
    with pytest.raises(ValueError, match=r"settings\.json is damaged"):
        same_settings(tmp_path, CirclesConfig(), free=(), accelerator=make_accelerator("no"))


def test_a_batch_is_shared_out_evenly_or_refused():
    assert per_process(8, 2) == 4
    for batch_size, processes in ((8, 3), (0, 1), (-4, 2)):
        with pytest.raises(ValueError, match=f"batch_size {batch_size} must be"):
            per_process(batch_size, processes)
