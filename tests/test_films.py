"""Films: frames and answers belong to each other, and sheets show what they say."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from para_video.camera import Camera
from para_video.figures import FAILURE, SUCCESS, upscale_points
from para_video.films import Decision, Film, heatmap_sheet, moments, rollout_sheet, shoot
from para_video.policy import DEFAULT_SCHEDULE, Actions, Observation, StepResult, View
from para_video.rollout import Episode

GRIPPER_POINT = (0.1, -0.05, 1.0)


def decision(step: int, *, closes: bool = False, heat: bool = True) -> Decision:
    """Of six targets that move to the right; their heatmaps glow there."""
    points = np.stack([np.linspace(40, 65, 6), np.full(6, 50.0)], -1)
    maps = np.zeros((6, 24, 24), np.float32)
    for t, (x, y) in enumerate(points):
        maps[t, round(y / 4), round(x / 4)] = 1 + t
    return Decision(step, points, np.full(6, 1.0 if closes else -1.0), maps if heat else None)


def film(closes: list[bool], *, succeeded: bool = True, heat: bool = True) -> Film:
    """A decision for each flag, nine steps apart, on grey."""
    decisions = [decision(9 * i, closes=flag, heat=heat) for i, flag in enumerate(closes)]
    frames = np.full((3 * len(closes) + 1, 96, 96, 3), 90, np.uint8)
    return Film(frames, 3, decisions, Episode(0, 9 if succeeded else None, succeeded, 9 * len(closes)))


class Point:
    """A point that moves by what it is told, before a still camera; a frame's grey is the number of steps."""

    def __init__(self, size: int) -> None:
        self.camera = Camera.from_fov(60.0, (size, size), torch.eye(4))
        self.size = size

    @property
    def position(self) -> np.ndarray:
        return np.zeros(3)

    def reset(self, seed: int) -> None:
        self.steps = 0

    def observe(self, *, views: bool = True) -> Observation:
        clip = torch.full((1, 3, self.size, self.size), self.steps / 255)
        return Observation({"main": View(clip, self.camera)}, torch.eye(4), 1.0)

    def step(self, command: np.ndarray) -> StepResult:
        self.steps += 1
        return StepResult(success=self.steps >= 20, ended=False)


class Pointer:
    """Always wants to be at the same point; also the servo of a robot that takes no commands."""

    def reset(self) -> None:
        pass

    def act(self, observation: Observation) -> Actions:
        return Actions(torch.tensor(GRIPPER_POINT).expand(1, 6, 3), torch.zeros(1, 6))

    def commands(self, target, gripper, position, steps) -> np.ndarray:
        return np.zeros((steps, 4))


def test_an_episode_is_filmed_larger_than_the_policy_sees_it() -> None:
    found = shoot(Point(16), Point(48), Pointer(), Pointer(), seed=5, horizon=60)
    assert (found.episode.seed, found.episode.succeeded_at, found.episode.steps) == (5, 20, 30)
    assert found.frames.shape == (11, 48, 48, 3) and found.frames[:, 0, 0, 0].tolist() == list(range(0, 31, 3))
    between = DEFAULT_SCHEDULE.frame_stride * DEFAULT_SCHEDULE.executed
    assert [each.step for each in found.decisions] == list(range(0, 30, between))
    seen, _ = Point(48).camera.project(torch.tensor([GRIPPER_POINT]))
    np.testing.assert_allclose(found.decisions[0].points, seen.expand(6, 2), atol=1e-4)


def test_a_frame_shows_the_latest_decision() -> None:
    found = film([False, True])
    assert [found.decision(i).step for i in range(7)] == [0, 0, 0, 9, 9, 9, 9]
    marked = replace(found, decisions=[found.decisions[0], replace(found.decisions[1], points=np.full((6, 2), 10.0), heat=None)])
    shown = marked.overlaid()
    assert (shown[2] == shown[0]).all() and (shown[3] != shown[2]).any()
    assert (shown[3][30:] == 90).all(), "nothing is left of the first decision"


def test_moments_follow_the_gripper() -> None:
    found = moments(film([False, False, True, True, True, True, True]))
    assert {name: each.step for name, each in found.items()} == {"approach": 0, "grasp": 18, "carry": 36, "place": 54}
    assert [each.step for each in moments(film([False, True, True])).values()] == [0, 9, 18]


@pytest.mark.parametrize("closes", [[False] * 7, [True] * 7])
def test_moments_are_spread_where_nothing_is_grasped(closes: list[bool]) -> None:
    assert [each.step for each in moments(film(closes)).values()] == [0, 18, 36, 54]
    assert [each.step for each in moments(film(closes[:2])).values()] == [0, 9]


def test_the_sheet_of_heatmaps_glows_where_its_crosses_are() -> None:
    sheet = heatmap_sheet(film([False, True, True, True]), width=596)
    rows, side = 4, 96
    bar = sheet.shape[0] // rows - side - 3
    cell = np.abs(sheet[bar : bar + side, -side:].astype(int) - 90).sum(-1)  # the last target of the first decision
    y, x = np.nonzero(cell > 60)
    span = 1.7 * 25  # pixels of the film in a panel: the targets are in its middle
    expected = (np.array([65.0, 50.0]) + 0.5 - (np.array([105, 100]) / 2 + 0.5 - span / 2)) * side / span - 0.5
    np.testing.assert_allclose([(x.min() + x.max()) / 2, (y.min() + y.max()) / 2], expected, atol=4)
    with pytest.raises(ValueError, match="without heatmaps"):
        heatmap_sheet(film([False, True], heat=False))


def test_the_sheet_of_rollouts_names_outcomes_by_colour() -> None:
    sheet = rollout_sheet({"PARA": film([False, True]), "ACT": film([False] * 4, succeeded=False, heat=False)}, 3, 308)
    half = len(sheet) // 2 + 2
    assert tuple(sheet[0, -1]) == SUCCESS and tuple(sheet[half, -1]) == FAILURE
    assert sheet.shape[1] == 308


def test_points_of_a_film_lie_as_the_frames_do() -> None:
    """The two cameras of `shoot` see a point at the same place of their pictures."""
    small, large = (Point(size).camera.project(torch.tensor([GRIPPER_POINT]))[0].numpy() for size in (16, 48))
    np.testing.assert_allclose(upscale_points(small, 3), large, atol=1e-4)
