"""Parts of an answer replaced by the truth: what stays, what comes, and where the ladder ends."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from para_video.agent import VideoPolicy
from para_video.camera import Camera, orbit
from para_video.heads import ParaHead
from para_video.ladder import PARTS, RUNGS, Errors, Rung, substituted
from para_video.policy import Actions, Observation
from para_video.readout import ReadoutSpec
from para_video.rollout import ExpertPlan, expert_rollout, rollout
from para_video.sims.metaworld import MetaWorldEnv, MetaWorldServo
from tests.tiny_models import Colours

CAMERA = Camera.from_fov(45, (64, 64), orbit(135, -40, 1.15, (0, 0.65, 0.08)).float())
SPEC = ReadoutSpec()
POINTS = torch.tensor([[0.05, 0.6, 0.1], [0.1, 0.7, 0.2]])
PLAN = ExpertPlan(POINTS, torch.tensor([-1.0, 1.0]), np.zeros((6, 4)))
ANSWER = Actions(POINTS[None] + torch.tensor([0.03, -0.02, 0.05]), torch.tensor([[-1.0, -1.0]]))


class Still:
    """Answers with the place where the gripper is."""

    def reset(self) -> None: ...

    def act(self, observation: Observation) -> Actions:
        return Actions(observation.end_effector[None, None, :3, 3].expand(1, 6, 3), torch.full((1, 6), -1.0))


STILL = Still()
TRAINED = SimpleNamespace(head=SimpleNamespace(spec=SPEC))


@pytest.fixture(scope="module")
def pick_place():
    with MetaWorldEnv("pick-place-v3", size=64) as env:
        yield env


def test_a_replaced_part_is_the_truth_and_the_others_are_the_answers() -> None:
    own, true = CAMERA.project(ANSWER.positions[0])[0], CAMERA.project(POINTS)[0]
    pixel = substituted(ANSWER, PLAN, CAMERA, SPEC, {"pixel"})
    torch.testing.assert_close(CAMERA.project(pixel.positions[0])[0], true, atol=1e-3, rtol=0)
    torch.testing.assert_close(pixel.positions[..., 2], ANSWER.positions[..., 2])
    height = substituted(ANSWER, PLAN, CAMERA, SPEC, {"height"})
    torch.testing.assert_close(CAMERA.project(height.positions[0])[0], own, atol=1e-3, rtol=0)
    torch.testing.assert_close(height.positions[0, :, 2], POINTS[:, 2])
    gripper = substituted(ANSWER, PLAN, CAMERA, SPEC, {"gripper"})
    assert torch.equal(gripper.positions, ANSWER.positions) and gripper.gripper.tolist() == [[-1, 1]]
    assert torch.equal(pixel.gripper, ANSWER.gripper)
    both = substituted(ANSWER, PLAN, CAMERA, SPEC, {"pixel", "height"})
    torch.testing.assert_close(both.positions[0], POINTS, atol=1e-5, rtol=0)


def test_a_distance_along_the_ray_is_replaced_as_a_height_is() -> None:
    both = substituted(ANSWER, PLAN, CAMERA, ReadoutSpec(lift="depth"), {"pixel", "height"})
    torch.testing.assert_close(both.positions[0], POINTS, atol=1e-5, rtol=0)


def test_errors_by_hand() -> None:
    errors = Errors(executed=2)
    errors.add(ANSWER, PLAN, CAMERA, SPEC)
    found = errors.summary()
    assert found["height_mm"] == pytest.approx(50, abs=0.01) and found["gripper"] == 0.5 and found["targets"] == 2
    assert found["mm"] == pytest.approx(1e3 * np.linalg.norm([0.03, 0.02, 0.05]), abs=0.01)
    away = (CAMERA.project(ANSWER.positions[0])[0] - CAMERA.project(POINTS)[0]).norm(dim=-1)
    assert found["px"] == pytest.approx(away.mean().item(), abs=0.01)


def test_the_ladder_begins_at_the_policy_and_ends_at_the_expert(pick_place: MetaWorldEnv) -> None:
    servo, ends = MetaWorldServo(), {}
    for parts in ((), PARTS[:3], PARTS):
        rung = Rung(pick_place, STILL, TRAINED, servo, parts)
        ends[parts] = rollout(pick_place, rung, rung, 0, context=0, horizon=90)
    expert = expert_rollout(pick_place, 0, horizon=90)
    assert not ends[()].succeeded and ends[PARTS[:3]].succeeded
    assert ends[PARTS].succeeded_at == expert.succeeded_at
    assert RUNGS[0] == () and RUNGS[-1] == PARTS and set(RUNGS[1:5]) == {(part,) for part in PARTS}


def test_the_servos_sum_stays_and_its_distribution_is_the_experts(pick_place: MetaWorldEnv) -> None:
    pick_place.reset(0)
    servo = MetaWorldServo()
    rung = Rung(pick_place, STILL, TRAINED, servo, {"servo"})
    rung.act(pick_place.observe(views=False))
    expert = rung.oracle.plan().commands[:3]
    target = pick_place.position + np.array([0.002, 0.001, -0.003])
    own, shared = (each.commands(target, -1.0, pick_place.position, 3) for each in (servo, rung))
    assert shared.sum(0) == pytest.approx(own.sum(0), abs=1e-5)
    assert np.diff(shared[:, :3], axis=0) == pytest.approx(np.diff(expert[:, :3], axis=0), abs=1e-5)


def test_paras_head_reads_height_and_gripper_at_the_true_pixel(pick_place: MetaWorldEnv, monkeypatch) -> None:
    torch.manual_seed(0)
    policy = VideoPolicy(Colours(), ParaHead(3, SPEC, grid=16, hidden=8, mixing=0), tuple(range(1, 7))).eval()
    pick_place.reset(0)
    observation, asked = pick_place.observe(), []
    read = ParaHead.read
    monkeypatch.setattr(ParaHead, "read", lambda self, maps, pixels: asked.append(pixels) or read(self, maps, pixels))
    rung = Rung(pick_place, policy, policy, MetaWorldServo(), {"pixel"})
    answer = rung.act(observation)
    true = pick_place.camera.project(rung.oracle.plan().points)[0]
    torch.testing.assert_close(asked[-1][0], true)
    torch.testing.assert_close(pick_place.camera.project(answer.positions[0])[0], true, atol=1e-2, rtol=0)


def test_unknown_parts_are_refused(pick_place: MetaWorldEnv) -> None:
    with pytest.raises(ValueError, match="unknown parts \\['pixels'\\]; choose from pixel, height"):
        Rung(pick_place, STILL, TRAINED, MetaWorldServo(), {"pixels"})
