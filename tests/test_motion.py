"""Clips of arms and moving things: reproducible, and something moves."""

import numpy as np
import pytest
import torch

from para_video.motion import MotionVideos


def test_a_clip_is_the_same_in_any_order():
    forwards, backwards = MotionVideos(seed=4, frames=5, size=64), MotionVideos(seed=4, frames=5, size=64)
    ahead = [forwards[i] for i in range(6)]
    back = [backwards[i] for i in reversed(range(6))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(ahead, back, strict=True))
    assert not any(torch.equal(ahead[i], ahead[j]) for i in range(6) for j in range(i))
    assert not torch.equal(ahead[0], MotionVideos(seed=5, frames=5, size=64)[0])


def test_frames_are_what_they_say():
    clip = MotionVideos(frames=3, size=48)[2]
    assert clip.shape == (3, 3, 48, 48) and clip.dtype == torch.uint8


def test_things_move_in_most_clips_and_the_scene_stays():
    videos = MotionVideos(seed=1, frames=8, size=64)
    changed = []
    for i in range(40):
        clip = videos[i].float()
        changed.append(float(((clip[-1] - clip[0]).abs().amax(0) > 40).float().mean()))
    assert np.mean(np.array(changed) > 0.01) > 0.7, "most clips move"
    assert np.median(changed) < 0.5, "and most of a clip is not replaced"


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"frames": 0}, {"size": 16}, {"length": 0}])
def test_impossible_clips_are_refused(wrong):
    with pytest.raises(ValueError, match="MotionVideos wants"):
        MotionVideos(**wrong)


def test_an_index_beyond_the_end_is_refused():
    with pytest.raises(IndexError, match="clip 3 of 3"):
        MotionVideos(length=3, size=32)[3]
