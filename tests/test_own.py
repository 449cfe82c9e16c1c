"""The programs in docs/own.md do what it says."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backbones import contract
from para_video.agent import VideoPolicy
from para_video.checkpoint import PolicySpec, load_policy, save_policy
from para_video.demos import load_demos
from para_video.heads import ParaHead
from para_video.readout import ReadoutSpec
from para_video.sims.metaworld import MetaWorldEnv

PAGE = Path(__file__).parent.parent / "docs" / "own.md"


def program(number: int) -> str:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[number]


def test_the_backbone_keeps_its_promises() -> None:
    names: dict = {"__name__": "own"}
    exec(program(0), names)
    trial = contract.Trial(names["SmallNet"]())
    for check in contract.checks_of(trial.backbone):
        check(trial)


def test_pixels_of_another_range_are_told() -> None:
    names: dict = {"__name__": "own"}
    exec(program(0), names)
    frames = torch.ones(1, 1, 3, 8, 8)
    for wrong in (255 * frames, frames - 2, torch.nan * frames):
        with pytest.raises(ValueError, match=r"values from .* divide pixels of 0 to 255 by 255"):
            names["SmallNet"]().features(wrong)


def test_the_head_learns(capsys: pytest.CaptureFixture) -> None:
    source, names = program(1), {"__name__": "own"}
    assert "STEPS = 100" in source
    exec(source.replace("STEPS = 100", "STEPS = 12"), names)
    error = float(re.search(r"batch: ([\d.]+) px", capsys.readouterr().out)[1])
    guess = (names["centres"] - 63.5).norm(dim=-1)[names["visible"]].median()
    assert error < 0.8 * guess, "than the middle of the image"


def test_a_policy_acts_on_the_observation() -> None:
    names: dict = {"__name__": "own"}
    for number in (0, 2):
        exec(program(number), names)
    backbone = names["SmallNet"]()
    policy = VideoPolicy(backbone, ParaHead(backbone.spec.channels, ReadoutSpec()), (1.0, 2.0)).eval()
    pose = torch.eye(4)
    pose[:3, 3] = torch.tensor([0.0, 0.6, 0.15])
    frames = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    assert policy.act(names["observe"](frames, pose, 1.0)).positions.shape == (1, 2, 3)
    for wrong in ((pose[:3, 3], 1.0), (pose, 5.0)):
        with pytest.raises(ValueError, match=r"end_effector \(4, 4\) and gripper_opening in \[0, 1\], got"):
            policy.act(names["observe"](frames, *wrong))
    mirror = torch.diag(torch.tensor([-1.0, 1, 1, 1]))
    for wrong_pose in (2 * pose, 0 * pose, pose * float("nan"), mirror @ pose, pose.mT):
        with pytest.raises(ValueError, match="end_effector must be a rigid motion"):
            policy.act(names["observe"](frames, wrong_pose, 1.0))
    for clip in (frames[0], frames.movedim(1, -1)):
        with pytest.raises(ValueError, match=r"the view 'main' must be \(t, 3, H, W\), got .*: channels come second"):
            seen = names["observe"](frames, pose, 1.0)
            policy.act(replace(seen, views={"main": replace(seen.views["main"], clip=clip)}))
    observed = names["observe"](frames, pose, 1.0)
    view = observed.views["main"]
    double = replace(observed, views={"main": replace(view, camera=view.camera.to(torch.float64))})
    assert torch.equal(policy.act(double).positions, policy.act(observed).positions)


def test_a_demonstration_set_is_written_and_read(tmp_path: Path) -> None:
    names: dict = {"__name__": "own"}
    exec(program(3), names)
    poses = torch.eye(4).repeat(5, 1, 1).numpy()
    frames = torch.zeros(5, 32, 32, 3, dtype=torch.uint8).numpy()
    demos = [names["demonstration"](frames, poses, [1.0] * 5, [-1.0] * 5, seed) for seed in (3, 4)]
    names["write"](demos, str(tmp_path / "mine"))
    assert [demo.seed for demo in load_demos(str(tmp_path / "mine")).demos] == [3, 4]
    poses[2, 0, 3] = float("nan")
    with pytest.raises(ValueError, match="demonstration 0: positions is not finite at step 2.*mend it, or leave it out"):
        names["write"]([names["demonstration"](frames, poses, [1.0] * 5, [-1.0] * 5, 5)], tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_policy_learns_from_a_robots_own_set_without_a_simulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict = {"__name__": "own"}
    for number in (2, 3, 4):
        exec(program(number), names)
    poses = torch.eye(4).repeat(12, 1, 1).numpy()
    poses[:, :3, 3] = [[0.01 * step - 0.05, 0.6, 0.15] for step in range(12)]
    frames = torch.randint(0, 256, (12, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    camera = names["observe"](torch.zeros(1, 3, 64, 64), torch.eye(4), 1.0).views["main"].camera
    demos = [replace(names["demonstration"](frames, poses, [1.0] * 12, [-1.0] * 12, seed), camera=camera) for seed in (0, 1)]
    names["write"](demos, tmp_path / "mine")
    monkeypatch.setattr(MetaWorldEnv, "__init__", lambda *_, **__: pytest.fail("a simulator was opened"))
    policy = names["learn"](tmp_path / "mine", tmp_path / "para", steps=2, batch_size=2, init="none", backbone="mini-random")
    saved, _ = load_policy(tmp_path / "para")
    observation = names["observe"](torch.from_numpy(frames[:1]).movedim(-1, 1), torch.from_numpy(poses[0]), 1.0)
    answers = [each.eval().cpu().act(observation).positions for each in (policy, saved)]
    torch.testing.assert_close(*answers, atol=1e-4, rtol=0)


def test_a_policy_takes_the_frames_of_its_training_alone() -> None:
    names: dict = {"__name__": "own"}
    for number in (0, 2):
        exec(program(number), names)
    backbone = names["SmallNet"]()
    policy = VideoPolicy(backbone, ParaHead(backbone.spec.channels, ReadoutSpec()), (1.0,), clip_shape=(2, 128, 128)).eval()
    pose = torch.eye(4)
    pose[:3, 3] = torch.tensor([0.0, 0.6, 0.15])
    assert policy.act(names["observe"](torch.zeros(2, 3, 128, 128, dtype=torch.uint8), pose, 1.0)).positions.shape == (1, 1, 3)
    for shape, told in (((1, 3, 128, 128), "1 frames of 128 x 128"), ((2, 3, 64, 128), "2 frames of 64 x 128")):
        with pytest.raises(ValueError, match=f"{told} pixels; this policy was trained on 2 x 128 x 128"):
            policy.act(names["observe"](torch.zeros(shape, dtype=torch.uint8), pose, 1.0))


def test_a_saved_policy_is_let_act_in_the_simulator(tmp_path: Path) -> None:
    names: dict = {"__name__": "own"}
    exec(program(5), names)
    spec = PolicySpec(
        "backbones.mini:MiniVideo", "para_video.heads:ParaHead", (1.0, 2.0), size=(128, 128),
        backbone_options={"width": 8, "channels": 8, "depth": 1}, head_options={"spec": ReadoutSpec()},
    )  # fmt: skip
    save_policy(spec.build(), spec, tmp_path, {})
    assert names["successes"](tmp_path, "reach-v3", episodes=1) in (0, 1)
