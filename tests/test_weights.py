"""The weights that come with the package: they load by name, know what they were trained for, and say where they come from."""

import json

import pytest
import torch

from backbones import CATALOGUE, build_backbone, shipped_heads, shipped_weights
from finetune.robot import RobotConfig
from para_video.agent import VideoPolicy
from para_video.checkpoint import PolicySpec, load_policy
from para_video.circles import CircleVideos
from para_video.held_out import circle_errors
from para_video.motion import MotionVideos
from para_video.readout import ReadoutSpec

SHIPPED = [name for name, entry in CATALOGUE.items() if entry.weights]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_foresee_motion_better_than_repeating_the_last_frame(name: str) -> None:
    backbone = build_backbone(name).eval()
    clips = torch.stack([MotionVideos(12_345, 8, 128)[i] for i in range(12)]).float() / 255
    seen, future = clips[:, :2], clips[:, 2:]
    changing = (future - seen[:, -1:]).abs().amax(2, keepdim=True) > 0.1
    with torch.autocast("cpu", torch.bfloat16):
        expected = backbone.sample(seen, 6, steps=1).float()
    error, copied = (((guess - future).square() * changing).sum() for guess in (expected, seen[:, -1:]))
    assert error < 0.7 * copied


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_can_be_tuned_as_fast_as_fresh_ones(name: str) -> None:
    backbone = build_backbone(name)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone.shorten()
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_are_small_and_say_what_made_them(name: str) -> None:
    folder = shipped_weights(name)
    assert (folder / "model.safetensors").stat().st_size < 25e6 and (folder / "samples.png").is_file()
    card = (folder / "README.md").read_text()
    assert "python pretrain/video.py" in card and "Limits" in card
    assert json.loads((folder / "config.json").read_text())["backbone"]["target"] == CATALOGUE[name].target


def test_shipped_heads_find_circles_on_the_shipped_model() -> None:
    folder = shipped_heads("mini")
    assert (folder / "model.safetensors").stat().st_size < 25e6 and "python pretrain/circles.py" in (
        folder / "README.md"
    ).read_text()
    policy, _ = load_policy(folder)
    shipped = build_backbone("mini").state_dict()
    assert all(torch.equal(value, shipped[name]) for name, value in policy.backbone.state_dict().items())
    error = circle_errors(policy, CircleVideos(seed=12_345), 16)["error"]
    assert error[:, :4].nanmedian() < 3


def test_options_that_the_weights_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="does not fit this MiniVideo; build it with the options of the checkpoint"):
        build_backbone("mini", width=8)
    assert build_backbone("mini", tap="coarse").spec.channels == 128


def started(**options) -> VideoPolicy:
    """A PARA policy as finetune/robot.py starts it."""
    from rich.console import Console

    config = RobotConfig(**options)
    torch.manual_seed(0)
    spec = PolicySpec("backbones.mini:MiniVideo", "para_video.heads:ParaHead", head_options={"spec": ReadoutSpec()})
    policy = spec.build()
    config.start(policy, "para", Console(quiet=True))
    return policy


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_robots_start_from_the_shipped_model_and_heads_unless_told_otherwise() -> None:
    default, bare, random = started(), started(init="none"), started(backbone="mini-random")
    assert same(default.backbone, bare.backbone) and not same(default.backbone, random.backbone)
    assert same(bare.head, random.head) and not same(default.head, bare.head)
    assert not same(started(backbone="mini-procedural").backbone, default.backbone)
    heads = str(shipped_heads("mini"))
    assert same(started(backbone="mini-random", init=heads, init_part="head").head, default.head)
    assert same(started(backbone="mini-random", init=heads, init_part="head").backbone, random.backbone)
    assert same(started(backbone="mini-random", init=heads, init_part="backbone").backbone, default.backbone)
