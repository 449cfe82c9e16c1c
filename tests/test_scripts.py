"""The two scripts and the notebook, run as a user runs them but briefly."""

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from nbclient import NotebookClient
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from backbones import build_backbone
from finetune import robot
from para_video.agent import VideoPolicy
from para_video.batches import Augmentation
from para_video.checkpoint import WEIGHTS_FILE, PolicySpec, initialise, load_policy, read_weights
from para_video.demos import TUNING_SEED, Demo, DemoSet, Plan, record_demos
from para_video.hand import Hand
from para_video.motion import MotionVideos
from para_video.prediction import VideoPredictor
from para_video.readout import ReadoutSpec
from para_video.runs import SETTINGS_FILE
from para_video.sims.metaworld import MetaWorldEnv
from para_video.sims.metaworld_clips import ClipPlan, record_clips
from para_video.sims.shifts import TRAINING_CAMERA, Shift
from para_video.video import write_video
from pretrain import circles, video
from tests.processes import run_twice
from tests.tiny_models import TINY, saved

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("circles") / "run"
    config = circles.CirclesConfig(out=out, steps=3, batch_size=2, size=64, held_out=8, workers=0)
    circles.main(config)
    return out


def test_circles_writes_figures_by_horizon_pictures_and_a_checkpoint(pretrained):
    summary = json.loads((pretrained / "summary.json").read_text())
    horizons = [str(t) for t in range(-3, 7)]
    assert list(summary["median_error_px"]) == horizons
    assert list(summary["pck"]) == horizons
    assert list(summary["constant_velocity_px"]) == horizons[4:]
    assert summary["constant_velocity_px"]["6"] > summary["constant_velocity_px"]["1"] > 0
    assert summary["steps"] == 3 and summary["seconds"] >= summary["training_seconds"] > 0
    for name in ("samples.png", "overlay-1.png", "README.md", "overlay.mp4", "error.png", "model.safetensors", "config.json"):
        assert (pretrained / name).stat().st_size > 0


@pytest.fixture(scope="module")
def own_videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i in range(2):
        write_video(folder / f"{i}.mp4", MotionVideos(seed=1, frames=8, size=48)[i].permute(0, 2, 3, 1).numpy())
    return folder


def test_a_video_model_learns_from_a_folder_and_is_taken_as_a_beginning(own_videos, tmp_path):
    out = tmp_path / "run"
    config = video.VideoConfig(
        videos=own_videos, steps=3, batch_size=2, held_out=2, horizon=3, samples=2, sampling_steps=2, size=32, out=out
    )
    summary = video.main(config)
    assert summary["unseen"] == json.loads((out / "summary.json").read_text())["unseen"] and list(summary["unseen"]) == ["1", "2"]
    figures = summary["unseen"]["2"]
    assert list(figures["psnr_db"]) == ["copy", "sample", "mean", "expected", "guided"] and list(figures["ssim"]["mean"]) == [
        "1",
        "2",
        "3",
    ]
    for name in ("model.safetensors", "config.json", "unseen-1-0.png", "psnr-2.png", "samples.png", "README.md"):
        assert (out / name).stat().st_size > 0
    assert "moving things blur" in (out / "README.md").read_text()
    again = video.main(replace(config, resume=True))
    assert again["unseen"] == summary["unseen"]
    measured = video.main(replace(config, steps=0, init=out, guidance=1.0, out=tmp_path / "measured"))
    told = {name: values for name, values in figures["psnr_db"].items() if name != "guided"}
    assert measured["unseen"]["2"]["psnr_db"] == told and not (tmp_path / "measured" / "model.safetensors").exists()
    with pytest.raises(ValueError, match="0 to measure what --init holds"):
        video.VideoConfig(steps=0)
    policy = PolicySpec("backbones.mini:MiniVideo", "para_video.heads:ParaHead", head_options={"spec": ReadoutSpec()}).build()
    taken, own = initialise(policy, out)
    assert 0 < taken < own


def test_a_loaded_model_learns_from_clips_where_its_source_left_off(own_videos, tmp_path):
    config = video.VideoConfig(
        videos=own_videos, **tiny_options("wan2.1-i2v-14b", lora_rank=2, dtype="bfloat16"), steps=4, batch_size=2, held_out=4,
        contexts=(1,), horizon=4, size=32, synthetic=0.0, out=tmp_path / "run",
    )  # fmt: skip
    summary = video.main(config)
    losses = summary["unseen_loss"]
    backbone = build_backbone("wan2.1-i2v-14b", **config.options).eval()
    assert losses["before"] == video.unseen_losses(config, VideoPredictor(backbone), video.own_videos(config)[1])
    assert losses["after"] != losses["before"] and summary["unseen"] == {}
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"| 1 | {losses['before']['1']:.4f} | {losses['after']['1']:.4f} |" in card and "blur" not in card
    table = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "results_table.py"))["video_table"](summary)
    assert f"| before training | {losses['before']['1']:.4f} |" in table and "PSNR" not in table
    learnt = read_weights(tmp_path / "run")
    assert all("lora_" in name and value.dtype == torch.float32 for name, value in learnt.items())
    taken, own = initialise(backbone_in_a_policy(config.options), tmp_path / "run")
    assert 0 < taken < own
    assert video.main(replace(config, resume=True))["unseen_loss"] == losses


def backbone_in_a_policy(options: dict) -> VideoPolicy:
    head = {"spec": ReadoutSpec(), "hidden": 16}
    return PolicySpec("backbones.wan:WanBackbone", "para_video.heads:ParaHead", backbone_options=options, head_options=head).build()


def test_video_options_are_read_at_once_and_encoders_are_refused(own_videos, tmp_path):
    with pytest.raises(ValueError, match="options of a backbone are a JSON object"):
        video.VideoConfig(backbone_options="3")
    with pytest.raises(ValueError, match="Dinov2Backbone has no generative loss"):
        video.main(video.VideoConfig(videos=own_videos, backbone="dinov2", out=tmp_path / "run"))  # whose weights are not here
    half = tiny_options("wan2.1-i2v-14b", dtype="bfloat16")
    with pytest.raises(ValueError, match='are bfloat16, .* load the backbone with "dtype": "float32".*"lora_rank"'):
        video.main(video.VideoConfig(videos=own_videos, **half, out=tmp_path / "half"))


def test_a_video_model_is_probed_for_the_gripper_on_simulated_clips(tmp_path, monkeypatch):
    with MetaWorldEnv("reach-v3", size=64) as env:
        episodes = record_clips(env, ClipPlan(3, frames=8)).demos
    monkeypatch.setattr(video, "simulated", lambda config, held_out: episodes)
    config = video.VideoConfig(
        steps=2, batch_size=2, samples=2, sampling_steps=2, probe_steps=2, horizon=3, size=64, out=tmp_path / "run"
    )
    errors = video.main(config)["unseen"]["2"]["gripper_error_px"]
    assert list(errors) == ["constant velocity", "sample", "expected", "guided", "true frames"] and list(errors["sample"]) == [
        "1",
        "2",
        "3",
    ]


def test_what_a_backbone_refuses_is_refused_before_anything_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "simulated", lambda *_, **__: pytest.fail("recorded"))
    wan = {"backbone": "wan2.1-i2v-14b", "contexts": (1,)}
    for i, (options, message) in enumerate([
        ({"horizon": 4}, "multiple of 3 future frames, got 4; .*; pass --horizon 6, or other --backbone-options"),
        ({"contexts": (9,)}, "9 observed frames; this backbone takes 1 to 8.*; pass --contexts from 1 to 8"),
        ({"size": 40}, r"\(40, 40\) must be a multiple of 16.*; pass --size 48"),
        (wan | tiny_options("wan2.1-i2v-14b", max_horizon=8), "got 6; .*; pass --horizon 8, or"),
        (wan | tiny_options("wan2.1-i2v-14b", max_horizon=4), "predicts 0 to 4 .*; pass --horizon 4, or"),
        (tiny_options("svd", offload="model", device="cpu"), 'with "offload" .* no generative loss .*: leave it out of --backbone'),
        (tiny_options("wan2.1-t2v-1.3b", truncate=True), 'with "truncate" .* no generative loss .*: leave it out of --backbone'),
        ({"horizon": 36, "backbone_options": '{"max_horizon": 36}'}, "clips of 40 frames .36 of them future.*: lower --horizon"),
    ]):  # fmt: skip
        with pytest.raises(ValueError, match=message) as told:
            video.main(video.VideoConfig(**options, out=tmp_path / str(i)))
        assert "\n" not in str(told.value)


def test_no_episodes_are_recorded_that_nothing_is_trained_on(tmp_path, monkeypatch):
    """Of a model that draws, training episodes are for the probe; with one frame seen there is no velocity to compare it with."""
    with MetaWorldEnv("reach-v3", size=64) as env:
        episodes = record_clips(env, ClipPlan(3, frames=8)).demos
    recorded = []
    monkeypatch.setattr(video, "simulated", lambda config, held_out: recorded.append(held_out) or episodes)
    config = video.VideoConfig(
        procedural=True, contexts=(1,), steps=1, batch_size=2, samples=2, sampling_steps=2, horizon=3, size=64, out=tmp_path / "run"
    )
    assert "gripper_error_px" not in video.main(config)["unseen"]["1"] and recorded == [True]


def test_a_video_shorter_than_a_clip_is_refused_at_once(own_videos, tmp_path):
    with pytest.raises(ValueError, match="has 8 frames, clips span 10; lower --horizon or --stride"):
        video.main(video.VideoConfig(videos=own_videos, size=32, out=tmp_path / "run"))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"horizon": 0}, "at least 1"),
        ({"synthetic": 1.5}, "synthetic must lie"),
        ({"contexts": ()}, "at least 1"),
        ({"stride": 2}, "stride would change nothing without --videos"),
        ({"procedural": True, "synthetic": 0.5}, "synthetic would change nothing with --procedural"),
        ({"videos": Path("mine"), "episodes": 5}, "episodes would change nothing with --videos"),
    ],
)
def test_impossible_video_options_are_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        video.VideoConfig(**wrong)


def test_a_single_video_is_not_enough(own_videos, tmp_path):
    (tmp_path / "only.mp4").write_bytes((own_videos / "0.mp4").read_bytes())
    with pytest.raises(ValueError, match="holds one video; put at least two there"):
        video.main(video.VideoConfig(videos=tmp_path, out=tmp_path / "run"))


def test_two_processes_train_one_policy(tmp_path):
    """Gradients are averaged, so both processes hold the policy that one of them writes."""
    out = tmp_path / "run"
    options = ["--steps", "3", "--batch-size", "2", "--size", "64", "--held-out", "4", "--out", str(out)]
    done = run_twice(ROOT / "pretrain" / "circles.py", *options)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("figures and checkpoint:") == 1 and json.loads((out / "summary.json").read_text())["steps"] == 3
    assert json.loads((out / SETTINGS_FILE).read_text())["processes"] == 2
    assert load_policy(out)[0].times == (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)


def test_a_baseline_learns_from_the_same_circles(tmp_path):
    out = tmp_path / "run"
    config = circles.CirclesConfig(out=out, policy="regression", steps=3, batch_size=2, size=64, held_out=8, backbone="mini-random")
    summary = circles.main(config)
    assert (
        set(summary["median_error_px"]) == {str(k) for k in range(-3, 7)} and "samples.png" not in (out / "README.md").read_text()
    )
    policy, spec = load_policy(out)
    assert spec.head.endswith("GlobalRegressionHead") and torch.isfinite(policy.head.code.std).all()


def test_circles_refuses_a_folder_with_content_and_leaves_it(pretrained):
    before = (pretrained / "summary.json").read_bytes()
    with pytest.raises(FileExistsError, match="--resume"):
        circles.main(circles.CirclesConfig(out=pretrained))
    assert (pretrained / "summary.json").read_bytes() == before


def test_robot_trains_evaluates_and_reports_and_a_resume_repeats_nothing(pretrained, tmp_path, monkeypatch):
    monkeypatch.setenv("PARA_VIDEO_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "run"
    config = robot.RobotConfig(
        task="reach-v3", demos=2, policies="para,regression,act", init=str(pretrained), steps=2, batch_size=2, episodes=1,
        size=64, spread_over=4, out=out,
    )  # fmt: skip
    summary = robot.main(config)
    assert summary == json.loads((out / "summary.json").read_text())
    assert set(summary["oracle"]) == {"expert", "readout", "blind_replay"}
    assert summary["oracle"]["expert"]["successes"] == summary["oracle"]["readout"]["successes"] == 1
    for name in ("para", "regression", "act"):
        policy = summary["policies"][name]
        assert policy["steps"] == 2 and policy["seconds"] > 0 and 0 < policy["ms_per_act"]["p50"] <= policy["ms_per_act"]["p95"]
        assert list(policy["cells"]) == ["same", "azimuth+18"]
        assert {"successes", "held", "episodes", "rate", "wilson95"} <= policy["cells"]["same"].keys()
        assert load_policy(out / name)[0].times == (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    for name in ("report.html", "success.png", "heatmaps.mp4", "side_by_side.mp4"):
        assert (out / name).stat().st_size > 0

    def never(*_, **__):
        raise AssertionError("a finished part ran again")

    monkeypatch.setattr(robot, "fit", never)
    monkeypatch.setattr(robot, "draw", lambda *_: None)
    again = robot.main(robot.RobotConfig(**{**vars(config), "resume": True}))
    assert again["policies"] == summary["policies"]
    kept = json.loads((out / "para" / "cells.json").read_text())
    more = {view: {**cell, "episodes": 50} for view, cell in kept.items()}
    (out / "para" / "cells.json").write_text(json.dumps(more))
    with pytest.raises(ValueError, match="50 episodes of a view, more than --episodes 1"):
        robot.main(robot.RobotConfig(**{**vars(config), "resume": True}))
    (out / "para" / "cells.json").write_text(json.dumps(kept))
    with pytest.raises(ValueError, match="other settings.*demos was 2 and is 3"):
        robot.main(robot.RobotConfig(**{**vars(config), "resume": True, "demos": 3}))
    other = robot.main(robot.RobotConfig(**{**vars(config), "resume": True, "azimuths": "18", "shifts": "look=1,latency=2"}))
    assert list(other["policies"]["act"]["cells"]) == ["azimuth+18", "look=1,latency=2"]
    assert other["policies"]["act"]["cells"]["azimuth+18"] == summary["policies"]["act"]["cells"]["azimuth+18"]


@pytest.mark.parametrize("train", ["heads", "joint"])
def test_a_tuned_video_model_is_frozen_or_learns_on_beside_the_head(train, own_videos, tmp_path, monkeypatch):
    monkeypatch.setenv("PARA_VIDEO_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "run"
    config = robot.RobotConfig(
        task="reach-v3", demos=1, policies="para", train=train, video_steps=2, extra_videos=own_videos, steps=2, batch_size=2,
        episodes=1, azimuths="0", size=64, spread_over=0, out=out, **({"copies": 1} if train == "heads" else {}),
    )  # fmt: skip
    monkeypatch.setattr(robot, "draw", lambda *_: None)
    robot.main(config)
    tuned, policy = read_weights(out / "video"), read_weights(out / "para")
    same = all(torch.equal(value, policy[name]) for name, value in tuned.items())
    assert same == (train == "heads")
    assert load_policy(out / "para")[1].backbone_options == ({"tap": "encoder"} if train == "heads" else {})
    assert json.loads((out / "video" / "config.json").read_text())["backbone"]["options"] == {}
    losses = json.loads(safe_open(out / "para" / "training.safetensors", "pt").metadata()["state"])["losses"]
    assert ("video" in losses[0]) == (train == "joint")
    assert bool(list((tmp_path / "cache").glob("features/*/copy_000.safetensors"))) == (train == "heads")


LOADED = {"task": "reach-v3", "demos": 1, "steps": 2, "batch_size": 2, "episodes": 1, "azimuths": "0", "size": 64, "spread_over": 0}


def tiny_options(name: str, **options) -> dict[str, str]:
    """Of RobotConfig or CirclesConfig, for the tiny model of a name."""
    given = {"source": str(saved(name)), **TINY[name].options, **options}
    return {"backbone": name, "backbone_options": json.dumps(given)}


def test_heads_learn_on_a_frozen_loaded_model_which_all_policies_share(tmp_path, monkeypatch):
    monkeypatch.setenv("PARA_VIDEO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(robot, "draw", lambda *_: None)
    built, build = [], robot.build_backbone
    monkeypatch.setattr(robot, "build_backbone", lambda *args, **options: built.append(build(*args, **options)) or built[-1])
    config = robot.RobotConfig(
        **LOADED, **tiny_options("dinov2"), policies="para,regression", train="heads", copies=1, out=tmp_path / "run"
    )
    summary = robot.main(config)
    caches = [path for path in (tmp_path / "cache" / "features").iterdir() if path.is_dir()]
    assert len(built) == len(caches) == 1
    for name in ("para", "regression"):
        assert not [key for key in read_weights(tmp_path / "run" / name) if key.startswith("backbone.")]
        assert load_policy(tmp_path / "run" / name)[0].times == (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    again = robot.main(replace(config, resume=True))
    assert len(built) == 2 and again["policies"] == summary["policies"]


def test_a_run_does_not_go_on_with_other_weights_of_its_source(tmp_path, monkeypatch):
    monkeypatch.setenv("PARA_VIDEO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(robot, "draw", lambda *_: None)
    folder = tmp_path / "model"
    shutil.copytree(saved("dinov2"), folder)
    options = tiny_options("dinov2", source=str(folder))
    config = robot.RobotConfig(**LOADED, **options, policies="para", train="heads", copies=1, out=tmp_path / "run")

    def interrupted(*_, **__) -> None:
        raise KeyboardInterrupt

    cut = pytest.MonkeyPatch()
    cut.setattr(robot, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        robot.main(config)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layer.0.norm1.bias"))
    save_file({**weights, name: weights[name] + 1e-3}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="run on other weights of the backbone's source .*: bring those back or use another --out"):
        robot.main(replace(config, resume=True))
    cut.undo()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert robot.main(replace(config, resume=True))["policies"]["para"]["steps"] == 2


def test_layers_beside_a_loaded_video_model_learn_to_predict_and_to_act(tmp_path, monkeypatch):
    """The autoencoder's latents cover four frames: six targets take eight of them."""
    monkeypatch.setenv("PARA_VIDEO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(robot, "draw", lambda *_: None)
    options = tiny_options("wan2.1-i2v-14b", lora_rank=2, max_horizon=8)
    robot.main(robot.RobotConfig(**LOADED, **options, policies="para", train="joint", video_steps=1, out=tmp_path / "run"))
    for name in ("video", "para"):
        stored = [key for key in read_weights(tmp_path / "run" / name) if key.startswith("backbone.")]
        assert stored and all("lora_" in key for key in stored)
    tuned, trained = (read_weights(tmp_path / "run" / name) for name in ("video", "para"))
    assert any(not torch.equal(value, trained[key]) for key, value in tuned.items())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("svd", {"size": 100}, "multiples of 64 px, got 100: pass --size 128"),
        ("dinov2", {"context": 5}, "refuses: 5 observed frames; this backbone takes 1 to 4"),
        ("svd", {}, "refuses: horizon 6; this backbone predicts 0 to 4 .*--backbone-options"),
        (
            "wan2.1-i2v-14b",
            {"train": "joint", "backbone_options": '{"source": "FOLDER", "max_horizon": 6}'},
            "horizon 8; this backbone predicts 0 to 6 future frames",
        ),
        ("dinov2", {"train": "joint"}, "no generative loss for --train joint"),
        ("dinov2", {"train": "joint", "backbone_options": '{"source": "no/such/folder"}'}, "no generative loss for --train joint"),
        ("dinov2", {"backbone_options": '{"source": "FOLDER", "dtype": "bfloat16"}'}, 'are bfloat16, .* with "lora_rank": 16'),
        ("dinov2", {"video_steps": 2}, "no generative loss for .* --video-steps"),
        ("dinov2", {"backbone_options": '{"source": "no/such/folder"}'}, "there is no folder no/such/folder"),
        ("dinov2", {"backbone_options": '{"source": "FOLDER", "tap": 3}'}, "cannot be built with the options .*'tap'"),
    ],
)
def test_what_a_loaded_model_refuses_is_told_before_anything_is_recorded(name, options, message, tmp_path, monkeypatch):
    monkeypatch.setattr(robot, "demonstrations", lambda *_: pytest.fail("recorded"))
    config = robot.RobotConfig(**{**LOADED, **tiny_options(name), **options, "out": tmp_path / "run"})
    config = replace(config, backbone_options=config.backbone_options.replace("FOLDER", str(saved(name))))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as told:
        robot.main(config)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"video_steps": 2, "backbone_options": '{"tap": "encoder"}'}, "no generative loss .* or other --backbone-options"),
        ({"train": "heads", "backbone_options": '{"level": 0.6}'}, "leave level at 1, or name another tap"),
    ],
)
def test_where_mini_is_read_must_suit_what_is_asked_of_it(options, message, tmp_path, monkeypatch):
    monkeypatch.setattr(robot, "demonstrations", lambda *_: pytest.fail("recorded"))
    with pytest.raises(ValueError, match=message):
        robot.main(robot.RobotConfig(**LOADED, **options, out=tmp_path / "run"))


@pytest.mark.parametrize("script", [robot, circles], ids=["robot", "circles"])
def test_an_offloaded_model_is_for_one_process(script, tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr("para_video.checkpoint.build_backbone", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr(robot, "build_backbone", lambda *_, **__: pytest.fail("loaded"))
    kind = {robot: robot.RobotConfig, circles: circles.CirclesConfig}[script]
    with pytest.raises(ValueError, match="offload 'blocks' is for one process and there are 2"):
        script.main(kind(**tiny_options("svd", offload="blocks", device="cpu"), train="heads", out=tmp_path / "run"))


def test_circles_are_found_on_a_frozen_loaded_model(tmp_path):
    out = tmp_path / "run"
    config = circles.CirclesConfig(out=out, steps=2, batch_size=2, size=64, held_out=8, train="heads", **tiny_options("dinov2"))
    circles.main(config)
    assert not [key for key in read_weights(out) if key.startswith("backbone.")]
    with pytest.raises(ValueError, match="refuses: 4 observed frames"):
        circles.main(replace(config, out=tmp_path / "other", **tiny_options("dinov2", max_context=2)))


def test_policies_start_from_the_same_backbone(tmp_path, monkeypatch):
    monkeypatch.setenv("PARA_VIDEO_CACHE", str(tmp_path / "cache"))
    config = robot.RobotConfig(task="reach-v3", size=64)
    with config.env() as env:
        demos = record_demos(env, Plan(1)).demos
    weights = []
    for name in ("para", "regression-uvh-average", "act"):
        torch.manual_seed(0)
        weights.append(robot.policy_spec(name, config, demos).build().backbone.state_dict())
    assert all(torch.equal(value, other[name]) for other in weights[1:] for name, value in weights[0].items())


def test_paras_head_takes_options_and_its_depth_bins_hold_what_was_demonstrated(tmp_path):
    given = {"lift": "depth", "joint_volume": True, "start": False, "mixing": 1}
    config = robot.RobotConfig(task="reach-v3", size=64, head_options=json.dumps(given))
    with config.env() as env:
        demos = record_demos(env, Plan(1)).demos
    options = robot.policy_spec("para", config, demos).head_options
    assert options["spec"].lift == "depth" and options["spec"].joint_volume and (options["start"], options["mixing"]) == (False, 1)
    targets = torch.from_numpy(demos[0].targets(np.arange(len(demos[0])), chunk=6, stride=3)[0])
    distance = lambda points: (points - demos[0].camera.position).norm(dim=-1)  # noqa: E731
    moved = (distance(targets) - distance(torch.from_numpy(demos[0].positions))[:, None]).abs().max()
    assert options["spec"].z.high == pytest.approx(float(moved) + 0.03) and options["spec"].relative
    head = robot.policy_spec("para", config, demos).build().head
    assert not head.start and head.opening
    assert "start" not in robot.policy_spec("act", config, demos).head_options


@pytest.mark.parametrize("policy", ["para", "regression", "act"])
def test_every_policy_is_told_the_state_as_roughly_and_shown_as_much_of_the_hand_as_is_asked_for(policy):
    config = robot.RobotConfig(task="reach-v3", size=64, state_noise=0.25)
    with config.env() as env:
        demos = record_demos(env, Plan(1)).demos
    head = robot.policy_spec(policy, config, demos).build().head
    assert (head if policy == "para" else head.code).state_noise == 0.25
    built = [robot.policy_spec(policy, replace(config, hide_hand=hide), demos).build() for hide in (False, True)]
    assert [each.hand for each in built] == [None, Hand()] and {each.clip_shape for each in built} == {(1, 64, 64)}


def test_zoom_magnifies_the_picture_about_its_middle_under_every_shift_and_turns_clips_by_less():
    plain, zoomed = (robot.RobotConfig(task="reach-v3", size=64, zoom=zoom) for zoom in (1.0, 1.5))
    assert plain.camera is TRAINING_CAMERA and plain.augmentation == Augmentation()
    assert zoomed.augmentation == Augmentation(turn_deg=Augmentation.turn_deg / 1.5)
    points, middle = torch.tensor([[0.0, 0.6, 0.2], [-0.1, 0.8, 0.0]]), (64 - 1) / 2
    for shift in (Shift(), Shift(azimuth=18)):
        with plain.env(shift) as wide, zoomed.env(shift) as near:
            before, after = (env.camera.project(points)[0] - middle for env in (wide, near))
            assert after.numpy() == pytest.approx(1.5 * before.numpy(), abs=1e-3)
            assert wide.settings != near.settings, "demonstrations of both are kept apart"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policies": "para,pra"}, "unknown policies.*pra.*choose from"),
        ({"azimuths": "0;18"}, "azimuths must be numbers"),
        ({"backbone_options": "scale=2"}, "options of a backbone are a JSON object"),
        ({"backbone": "minni"}, "unknown backbone 'minni'"),
        ({"head_options": "lift=depth"}, "head_options are a JSON object"),
        ({"head_options": '{"lifts": "depth"}'}, "unknown head_options.*lifts.*choose from.*lift"),
        ({"demos": 0}, "at least 1"),
        ({"azimuths": "nan"}, "azimuths must be numbers"),
        ({"shifts": "look=1; colour=2"}, "unknown shift 'colour'"),
        ({"policies": "para,act,para"}, "names one twice"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"scatter": -1, "state_noise": -1.0}, r"must not be negative: {'scatter': -1, 'state_noise': -1.0}"),
        ({"hide_hand": True, "train": "joint"}, "hide_hand is not for a backbone that learns to predict frames"),
        ({"hide_hand": True, "context": 2}, "hide_hand needs context 1, got 2"),
        ({"zoom": 0.0}, r"zoom must lie in \[0.1, 10\], got 0.0"),
        ({"seed": -1}, "seed not negative"),
        ({"spread_over": -5}, "must not be negative: {'spread_over': -5}"),
        ({"size": 0}, "context and size must be at least 1, got 1 and 0"),
        ({"copies": 8}, "copies are of features that are kept"),
        ({"init": "none", "init_part": "head"}, "init_part is of a checkpoint to start from, and there is none"),
        ({"demo_folder": Path("set"), "noise": 0.3, "scatter": 25}, "noise, scatter are of recording"),
    ],
)
def test_robot_names_what_is_wrong_with_its_options(options, message):
    with pytest.raises(ValueError, match=message):
        robot.RobotConfig(**options)


@pytest.mark.parametrize("options", [{"observed": 1}, {"held_out": 0}, {"steps": 0}, {"learning_rate": 0.0}, {"seed": -1}])
def test_circles_names_what_is_wrong_with_its_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        circles.CirclesConfig(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "push-v3"}, "shows 'push-v3'.*evaluation is of 'reach-v3'"),
        ({"frames": np.zeros((2, 32, 32, 3), np.uint8)}, r"\(32, 32\) px.*\(64, 64\) px"),
        ({"seed": TUNING_SEED}, f"seed {TUNING_SEED} is one of tuning and evaluation"),
        ({"camera": robot.RobotConfig(zoom=1.5).camera.camera(64)}, r"intrinsics .*115.9.* than policies act with .*77.3.*--zoom"),
        ({"camera": replace(robot.TRAINING_CAMERA, azimuth_deg=100.0).camera(64)}, "by another camera, at .*TRAINING_CAMERA"),
    ],
)
def test_demonstrations_of_another_kind_or_of_the_evaluation_are_refused(change, message):
    camera = robot.TRAINING_CAMERA.camera(64)
    still = (np.zeros((2, 3), np.float32), np.tile(np.eye(3, dtype=np.float32), (2, 1, 1)), *np.zeros((2, 2), np.float32))
    demo = Demo(np.zeros((2, 64, 64, 3), np.uint8), *still, camera, "reach-v3", 0)
    config = robot.RobotConfig(task="reach-v3", size=64)
    assert robot.checked(DemoSet((demo,)), config).demos == (demo,)
    with pytest.raises(ValueError, match=message):
        robot.checked(DemoSet((replace(demo, **change),)), config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_options": '{"grid": 7}'}, "make no head: grid must be a positive multiple of 8"),
        ({"head_options": '{"hidden": "x"}'}, "head_options .* make no head"),
        ({"head_options": '{"sigma_px": "2"}'}, "head_options .* make no head"),
        ({"head_options": '{"sigma_px": 0}'}, "make no head: sigma_px must be positive"),
        ({"head_options": '{"lift": "plane"}'}, "make no head: unknown lift 'plane'"),
        ({"extra_videos": Path("no/such/folder"), "video_steps": 1}, "no/such/folder is not a folder"),
    ],
)
def test_wrong_options_are_told_before_anything_is_recorded(options, message, tmp_path, monkeypatch):
    monkeypatch.setattr(robot, "demonstrations", lambda *_: pytest.fail("recorded"))
    with pytest.raises(ValueError, match=message):
        robot.main(robot.RobotConfig(**LOADED, **options, out=tmp_path / "run"))


def test_extra_videos_that_are_too_short_are_told_before_anything_is_recorded(own_videos, tmp_path, monkeypatch):
    monkeypatch.setattr(robot, "demonstrations", lambda *_: pytest.fail("recorded"))
    config = robot.RobotConfig(**LOADED, context=3, extra_videos=own_videos, video_steps=1, out=tmp_path / "run")
    with pytest.raises(ValueError, match="0.mp4 has 8 frames, clips span 9; remove the file"):
        robot.main(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "heads", "backbone_learning_rate": 1e-3}, "backbone_learning_rate is for a backbone that learns"),
        ({"policies": "act", "head_options": '{"grid": 32}'}, "head_options are PARA's: .* 'act'"),
    ],
)
def test_options_that_would_change_nothing_are_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.setattr(robot, "demonstrations", lambda *_: pytest.fail("recorded"))
    with pytest.raises(ValueError, match=message):
        robot.main(robot.RobotConfig(**options, out=tmp_path / "run"))


def test_a_baseline_may_share_nothing_with_the_heads_that_para_starts_from(tmp_path):
    """Of a frozen backbone with a source, a checkpoint holds the head alone; a backbone that does not fit is an error."""
    for part in ("head", "backbone"):
        (tmp_path / part).mkdir()
        save_file({f"{part}.kernel.weight": torch.ones(256, 64)}, tmp_path / part / WEIGHTS_FILE)
    heads, backbones = (robot.RobotConfig(backbone="mini-random", init=str(tmp_path / part)) for part in ("head", "backbone"))
    for name in ("act", "video", "para"):
        for config in (heads, backbones):
            if (config, name) in ((heads, "act"), (heads, "video")):
                config.start(torch.nn.Linear(2, 2), name, Console(quiet=True))
            else:
                with pytest.raises(ValueError, match="nothing in .* fits"):
                    config.start(torch.nn.Linear(2, 2), name, Console(quiet=True))


def test_a_frozen_backbone_is_read_where_that_suits_it_unless_told_otherwise():
    options = [
        robot.RobotConfig(train=train, backbone_options=given).read_options
        for train, given in (("all", "{}"), ("joint", "{}"), ("heads", "{}"), ("heads", '{"tap": "joined"}'))
    ]
    assert options == [{}, {}, {"tap": "encoder"}, {"tap": "joined"}]
    assert robot.RobotConfig(train="heads", backbone="backbones.mini:MiniVideo", init="none").read_options == {}
    assert robot.RobotConfig(train="heads").options == {}, "what learns to predict is not cut short"


def test_azimuths_name_their_cells():
    views = robot.RobotConfig(azimuths="0,18,-6", shifts="look=2; azimuth=18; azimuth=4,noise=0.05").views
    assert list(views) == ["same", "azimuth+18", "azimuth-6", "look=2", "azimuth=4,noise=0.05"]
    assert views["azimuth-6"] == Shift(azimuth=-6) and views["look=2"] == Shift(look=2)


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_executed_and_still_run(path, monkeypatch):
    monkeypatch.setenv("PARA_VIDEO_NOTEBOOK_STEPS", "2")
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells), "commit the notebook executed"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert all(cell.execution_count for cell in cells)
