"""The hand that is hidden: the same from all sides, where the gripper is, in training as in use."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from para_video.agent import Batch, RobotState
from para_video.camera import Camera, orbit, rotation_about
from para_video.checkpoint import PolicySpec, load_policy, save_policy
from para_video.hand import Hand
from para_video.heads import action_maps
from para_video.heatmap import Bins
from para_video.layers import gaussian_blur
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


def test_blurring_is_that_of_scipy():
    maps = torch.rand(2, 3, 20, 31, generator=torch.Generator().manual_seed(0))
    expected = gaussian_filter(maps.numpy(), (0, 0, 2, 2), mode="constant", truncate=3)
    torch.testing.assert_close(gaussian_blur(maps, 2.0), torch.from_numpy(expected), atol=1e-5, rtol=1e-5)
