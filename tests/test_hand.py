"""The hand that is hidden: the same from all sides, where the gripper is, in training as in use."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from para_video.agent import Batch, RobotState, VideoPolicy
from para_video.batches import DemoBatches
from para_video.camera import Camera, orbit, rotation_about
from para_video.checkpoint import PolicySpec, load_policy, save_policy
from para_video.demos import Demo
from para_video.hand import Hand, Unhidden
from para_video.heads import action_maps
from para_video.heatmap import Bins
from para_video.policy import DEFAULT_SCHEDULE, Observation, View
from para_video.readout import ReadoutSpec, Targets
from para_video.sims.metaworld import MetaWorldEnv

SIZE, TARGET, TIP = 96, (0.0, 0.65, 0.08), torch.tensor([0.0, 0.65, 0.08])


def state(azimuth: float = 135.0, opening: float = 1.0, roll: float = 0.0, tip: Tensor = TIP) -> RobotState:
    pose = orbit(azimuth, -40.0, 1.15, TARGET)
    turned, angle = torch.eye(4).to(pose), torch.deg2rad(torch.tensor(roll))
    turned[:2, :2] = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    camera = Camera.from_fov(45.0, (SIZE, SIZE), (pose @ turned).float())
    return RobotState(camera[None], tip[None], torch.eye(3)[None], torch.tensor([opening]))


def place(robot: RobotState) -> Tensor:
    """(H, W) how much of each pixel is grey; where fingertips are filled in, white remains white."""
    return 2 * (1 - Hand().hidden(torch.ones(1, 1, 3, SIZE, SIZE), robot)[0, 0, 0])


def seen(robot: RobotState, point: Tensor) -> tuple[int, int]:
    x, y = robot.camera.project(point.view(1, 1, 3))[0][0, 0].round().int().tolist()
    return y, x


def test_the_palm_looks_the_same_from_all_sides() -> None:
    first = place(state(135))
    assert 0.02 < float(first.mean()) < 0.2
    for azimuth in (117.0, 153.0, 20.0):
        torch.testing.assert_close(place(state(azimuth)), first, atol=2e-3, rtol=0)


UP, ACROSS = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.5, 0.0]) * 2**0.5


@pytest.mark.parametrize("roll", [0.0, 35.0])
def test_the_hand_is_hidden_and_what_lies_below_and_beside_it_is_not(roll: float) -> None:
    robot = state(roll=roll)
    hidden = place(robot)
    for up, aside in ((0.07, 0.0), (0.17, 0.05), (0.1, -0.05)):
        assert hidden[seen(robot, TIP + up * UP + aside * ACROSS)] == 1, (up, aside)
    for up, aside in ((-0.02, 0.0), (0.1, 0.1), (0.1, -0.1), (0.26, 0.0)):
        assert hidden[seen(robot, TIP + up * UP + aside * ACROSS)] == 0, (up, aside)


@pytest.mark.parametrize("opening", [0.3, 1.0])
def test_fingertips_vanish_in_what_is_around_them_and_an_object_between_them_stays(opening: float) -> None:
    robot = replace(state(opening=opening), rotation=torch.eye(3)[[1, 0, 2]][None])  # fingers along x
    near, thing = TIP + 0.05 * opening * torch.tensor([1.0, 0, 0]), TIP - 0.03 * UP
    clip = torch.full((1, 1, 3, SIZE, SIZE), 0.2)
    for point, colour in ((near, 1.0), (thing, 0.9)):
        y, x = seen(robot, point)
        clip[..., y - 1 : y + 2, x - 1 : x + 2] = colour
    shown = Hand().hidden(clip, robot)[0, 0, 0]
    assert 0.19 < float(shown[seen(robot, near)]) < 0.6
    if opening == 1:
        assert shown[seen(robot, thing)] == pytest.approx(0.9)
        assert float(shown[seen(robot, near)]) < 0.3
    assert (shown[seen(robot, TIP + 0.1 * UP)]) == 0.5


def test_of_the_simulator_s_hand_nearly_nothing_is_seen() -> None:
    """Turned alone, it changes the picture much, and what a policy is shown of it hardly."""
    with MetaWorldEnv("push-v3", size=SIZE) as env:
        env.reset(0)
        pictures = []
        for angle in (0.0, 18.0, -18.0):
            with turned_hand(env, angle):
                observation = env.observe()
            view, pose = observation.views["main"], observation.end_effector[None]
            rotation = rotation_about((0, 0, 1), angle).float() @ pose[:, :3, :3]
            robot = RobotState(view.camera[None], pose[:, :3, 3], rotation, torch.tensor([observation.gripper_opening]))
            pictures.append((view.clip[None], Hand().hidden(view.clip[None], robot)))
    for plain, hidden in pictures[1:]:
        before, after = (float((a - b).abs().sum()) for a, b in zip((plain, hidden), pictures[0], strict=True))
        assert before > 20 and after < 0.15 * before


@contextmanager
def turned_hand(env: MetaWorldEnv, degrees: float) -> Iterator[None]:
    """Everything that hangs on the wrist is drawn turned about the vertical line through the gripper point."""
    model, data = env._env.model, env._env.data
    wrist = model.body("hand").id
    own = [geom for geom in range(model.ngeom) if wrist in ancestors(model, model.geom_bodyid[geom])]
    kept, turn = (data.geom_xpos.copy(), data.geom_xmat.copy()), rotation_about((0, 0, 1), degrees).numpy()
    for geom in own:
        data.geom_xpos[geom] = env.position + turn @ (data.geom_xpos[geom] - env.position)
        data.geom_xmat[geom] = (turn @ data.geom_xmat[geom].reshape(3, 3)).ravel()
    try:
        yield
    finally:
        data.geom_xpos[:], data.geom_xmat[:] = kept


def ancestors(model: Any, body: int) -> list[int]:
    """A body and those that it hangs on."""
    return [body, *ancestors(model, model.body_parentid[body])] if body else []


def spec(hand: Hand | None) -> PolicySpec:
    options = {"spec": ReadoutSpec(z=Bins(-0.1, 0.1, 8), relative=True), "grid": 16, "hidden": 8}
    small = {"width": 8, "channels": 8, "depth": 1}
    return PolicySpec(
        "backbones.mini:MiniVideo", "para_video.heads:ParaHead", (1.0,), backbone_options=small, head_options=options, hand=hand
    )


def test_a_policy_that_hides_it_is_told_where_it_is_in_the_one_frame_that_it_sees(tmp_path: Path) -> None:
    policy, two = spec(Hand()).build(), replace(spec(Hand()), context=2)
    with pytest.raises(ValueError, match="hides the hand, and is not told where it is"):
        policy.features(torch.rand(1, 1, 3, SIZE, SIZE))
    with pytest.raises(ValueError, match="hidden in clips of 1 frame, got 2"):
        two.build()
    sized = replace(spec(None), size=(SIZE, SIZE))
    save_policy(sized.build(), sized, tmp_path)
    assert load_policy(tmp_path)[0].clip_shape == (1, SIZE, SIZE)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("size", "hand"):  # which checkpoints of before do not have
        del config["policy"][name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_policy(tmp_path)[0].clip_shape == (1, None, None)


def test_a_policy_does_not_see_it_in_training_nor_in_use_nor_when_it_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy, robot = spec(Hand()).build().eval(), state()
    save_policy(policy, spec(Hand()), tmp_path)
    policy, read = load_policy(tmp_path)
    assert read.hand == policy.hand == Hand()
    clip = torch.rand(1, 1, 3, SIZE, SIZE)
    inside = (place(robot) == 1).expand_as(clip)
    other = torch.where(inside, 1 - clip, clip)
    points = TIP.view(1, 1, 3) + 0.02
    targets = Targets(robot.camera.project(points)[0], torch.ones(1, 1, dtype=torch.bool), positions=points)
    torch.testing.assert_close(policy.predict(clip, robot).positions, policy.predict(other, robot).positions, atol=0, rtol=0)
    assert torch.equal(action_maps(policy, clip, robot).heat, action_maps(policy, other, robot).heat)
    assert torch.equal(policy(Batch(clip, targets, robot))["heat"], policy(Batch(other, targets, robot))["heat"])
    policy.hand = None
    assert not torch.equal(action_maps(policy, clip, robot).heat, action_maps(policy, other, robot).heat)
    assert not torch.equal(policy(Batch(clip, targets, robot))["heat"], policy(Batch(other, targets, robot))["heat"])


def test_it_may_be_beyond_the_picture_or_behind_the_camera() -> None:
    clip = torch.rand(1, 1, 3, SIZE, SIZE)
    for tip in (torch.tensor([0.0, 3.0, 0.08]), torch.tensor([0.9, -0.6, 0.9])):
        assert torch.equal(Hand().hidden(clip, state(tip=tip)), clip)
    none = replace(Hand(), aside=-1.0, finger_radius=-1.0)
    assert torch.equal(none.hidden(clip, state()), clip)


# -------------------------------------------------------------------- what is behind it

REMEMBERED = Hand(remembered=True)
WAY = torch.stack([TIP + torch.tensor([0.03 * k, 0.0, 0.01 * k]) for k in range(13)])


def episode() -> tuple[Tensor, Tensor, RobotState]:
    """A wall of many colours (3, H, W), frames (n, 1, 3, H, W) of a hand that goes along `WAY` before it, as large as it may be and
    of other colours in each, and the states."""
    generator = torch.Generator().manual_seed(0)
    wall = torch.randint(256, (3, SIZE, SIZE), generator=generator) / 255
    states = [state(tip=tip) for tip in WAY]
    frames = []
    for robot in states:
        covered = REMEMBERED.covers(robot, (SIZE, SIZE))[0]
        frames.append(torch.where(covered, torch.randint(256, wall.shape, generator=generator) / 255, wall))
    n = len(WAY)
    robots = RobotState(Camera.stack([states[0].camera[0]] * n), WAY, torch.eye(3).expand(n, 3, 3), torch.ones(n))
    return wall, torch.stack(frames)[:, None], robots


def rows(robot: RobotState, which: slice) -> RobotState:
    return RobotState(robot.camera[which], robot.position[which], robot.rotation[which], robot.opening[which])


def test_what_is_behind_the_hand_is_shown_as_it_was_seen_last() -> None:
    wall, frames, robots = episode()
    shown = Unhidden(REMEMBERED).shown(frames, robots)
    covered = REMEMBERED.covers(robots, (SIZE, SIZE))
    assert torch.equal(shown[0], REMEMBERED.hidden(frames[:1], rows(robots, slice(1)))[0])  # nothing was seen before
    known = ~covered[0]
    for k in range(1, len(frames)):
        known |= ~covered[k]
        assert torch.equal(shown[k, 0][:, known], wall[:, known])
    assert bool((covered[-1] & known).any()) and float((covered[-1] & ~known).sum()) < 0.5 * float(covered[-1].sum())


def test_frames_may_come_one_by_one_and_more_than_once() -> None:
    _, frames, robots = episode()
    one_by_one, at_once = Unhidden(REMEMBERED), Unhidden(REMEMBERED).shown(frames, robots)
    for k in range(len(frames)):
        for _ in range(2):
            shown = one_by_one.shown(frames[k : k + 1], rows(robots, slice(k, k + 1)))
            assert torch.equal(shown[0], at_once[k])


def observed(frame: Tensor, robot: RobotState) -> Observation:
    pose = torch.eye(4)
    pose[:3, 3] = robot.position[0]
    return Observation({"main": View(frame, robot.camera[0])}, pose, float(robot.opening[0]))


def seen_by(policy: VideoPolicy, frames: Tensor, robots: RobotState, which: range) -> list[Tensor]:
    return [policy.inputs(observed(frames[k], rows(robots, slice(k, k + 1))))[0][0] for k in which]


def test_a_policy_is_trained_on_what_it_sees_in_use() -> None:
    _, frames, robots = episode()
    images = (255 * frames[:, 0]).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    parts = (part.numpy() for part in (robots.position, robots.rotation, robots.opening))
    demo = Demo(images, *parts, np.ones(len(images), np.float32), robots.camera[0], "a task", 0)
    policy = spec(REMEMBERED).build()
    schedule = DEFAULT_SCHEDULE
    every = schedule.frame_stride * schedule.executed
    batches = DemoBatches([demo], batch_size=1, chunk=1, stride=schedule.frame_stride, hand=policy.hand)
    for first in range(every):
        decided = range(first, len(images) - schedule.frame_stride, every)
        policy.reset()
        seen_by(policy, frames, robots, range(1))
        for k, clip in zip(decided, seen_by(policy, frames, robots, decided), strict=True):
            torch.testing.assert_close(batches.gather([(0, k)]).clip[0], clip, atol=0.51 / 255, rtol=0)


def test_of_another_episode_or_camera_nothing_is_remembered(tmp_path: Path) -> None:
    _, frames, robots = episode()
    built, last = spec(REMEMBERED), len(frames) - 1
    save_policy(built.build(), built, tmp_path)
    policy, _ = load_policy(tmp_path)
    assert policy.hand == REMEMBERED
    fresh = seen_by(policy, frames, robots, range(last, last + 1))[0]
    policy.reset()
    whole = seen_by(policy, frames, robots, range(last + 1))[-1]
    assert not torch.equal(whole, fresh)
    turned = replace(robots, camera=Camera.stack([state(140.0).camera[0]] * len(frames)))
    assert torch.equal(
        seen_by(policy, frames, turned, range(last, last + 1))[0],
        REMEMBERED.hidden(frames[last:], rows(turned, slice(last, last + 1)))[0],
    )
    assert torch.equal(seen_by(policy, frames, robots, range(last, last + 1))[0], whole)  # which still stands where it stood
    policy.reset()
    assert torch.equal(seen_by(policy, frames, robots, range(last, last + 1))[0], fresh)
