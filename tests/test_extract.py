"""Features of a file: every frame is described once, and the picture shows it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from backbones.extract import ExtractConfig, clip_frames, extract, main, principal_colours
from backbones.mini import MiniVideo
from para_video.video import write_video

SPEC = MiniVideo().spec


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, np.random.default_rng(0).integers(0, 255, (11, 70, 100, 3), dtype=np.uint8))
    return path


def test_a_file_becomes_maps_of_every_frame_and_a_picture(clip, tmp_path):
    options = json.dumps({"width": 8, "channels": 8, "depth": 1})
    said = main(ExtractConfig(clip, "mini-random", options, frames=4, horizon=3, size=64, out=tmp_path / "out"))
    assert said == {"stretches": 3, "frames": 11, "channels": 32, "cells": [16, 20]}  # 91 pixels wide are cropped to 80
    with safe_open(str(tmp_path / "out" / "features.safetensors"), "pt") as file:
        assert {name.partition(".")[0] for name in file.keys()} == {"000003", "000007", "000010"}  # noqa: SIM118
        assert file.get_tensor("000003.maps").shape == (4, 32, 16, 20)
        assert file.get_tensor("000010.times").tolist() == [-3.0, -2.0, -1.0, 0.0, 2.0]
        assert json.loads(file.metadata()["size"]) == [64, 80]
    assert (tmp_path / "out" / "features.png").stat().st_size > 0


def test_a_file_is_read_part_by_part_with_the_same_result(clip, monkeypatch):
    config = ExtractConfig(clip, stride=2, size=64)
    whole = clip_frames(config, SPEC)
    monkeypatch.setattr("backbones.extract.HELD", 2 * 70 * 100 * 3 * 4)
    assert whole.shape == (6, 3, 64, 80) and torch.equal(clip_frames(config, SPEC), whole)
    every = clip_frames(ExtractConfig(clip, size=64), SPEC)
    assert torch.equal(every[::2], whole)


def test_frames_of_the_one_size_that_a_backbone_takes_are_made(clip):
    for size in ((48, 96), (96, 48)):
        shown = clip_frames(ExtractConfig(clip, size=16), replace(SPEC, size=size))
        assert shown.shape == (11, 3, *size)
    whole = clip_frames(ExtractConfig(clip), replace(SPEC, size=(140, 200)))
    assert torch.equal(whole, clip_frames(ExtractConfig(clip, size=140), replace(SPEC, size_multiple=20))), "nothing is cut"


def test_stretches_end_with_the_clip_whatever_its_length():
    backbone = MiniVideo(width=8, channels=8, depth=1)
    for length, ends in ((1, [0]), (4, [3]), (5, [3, 4])):
        assert [end for end, _ in extract(backbone, torch.rand(length, 3, 32, 32), 4)] == ends


def test_cells_that_differ_have_other_colours():
    maps = torch.zeros(4, 8, 8)
    maps[:, :, 4:] = torch.tensor([1.0, 2.0, -1.0, 0.5])[:, None, None]
    left, right = np.split(principal_colours([maps])[0].astype(int), 2, 1)
    assert abs(left.mean() - right.mean()) > 50 and not left.std((0, 1)).any() and not right.std((0, 1)).any()


def test_impossible_options_are_refused(clip, tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        ExtractConfig(clip, frames=0)
    with pytest.raises(ValueError, match="JSON object"):
        ExtractConfig(clip, options="[1]")
    with pytest.raises(ValueError, match="does not predict future frames"):
        main(ExtractConfig(clip, "efficientnet-lite0", horizon=3, out=tmp_path))
    with pytest.raises(ValueError, match="size 8 is below 16"):
        main(ExtractConfig(clip, "mini-random", size=8, out=tmp_path))
