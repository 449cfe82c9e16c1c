"""Fine-tune robot policies on a few demonstrations and measure them closed loop.

    python finetune/robot.py --demos 5
    python finetune/robot.py --task drawer-open-v3 --policies para --steps 100 --episodes 5    # a minute, to see it run

Records demonstrations of a Meta-World task, trains PARA and the baselines on them from the same video model with the same budget,
and lets each act in simulation: in the training setting, on views turned around the table, under any shift. What bounds the figures
is measured too: the expert, the read-out oracle (the expert's future through PARA's read-out, re-planned as a policy re-plans) and
a blind replay of a demonstration.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from backbones import (
    backbone_class,
    backbone_options,
    catalogue_entry,
    import_string,
    shipped_heads,
    shipped_weights,
    trusted_packages,
)
from para_video.agent import VideoPolicy
from para_video.baselines import HEADS, ActionStatistics, TemporalEnsemble
from para_video.batches import Augmentation, DemoBatches
from para_video.checkpoint import (
    WEIGHTS_FILE,
    PolicySpec,
    build_backbone,
    initialise,
    load_policy,
    read_weights,
    save_backbone,
    save_policy,
)
from para_video.demos import TUNING_SEED, Demo, DemoSet, Plan, cache_folder, cached_demos, load_demos, select_demos
from para_video.feature_cache import COST_FILE, CachedBatches, cache_features
from para_video.features import VideoBackbone
from para_video.figures import display_name, side_by_side, success_bars, told_cell, write_picture, write_report
from para_video.films import Film, heatmap_sheet, shoot
from para_video.hand import Hand
from para_video.heads import ParaHead
from para_video.policy import DEFAULT_SCHEDULE, Policy
from para_video.prediction import ClipBatches, Source, VideoPredictor, demonstrated, video_files
from para_video.readout import ReadoutSpec, one_hot_round_trip, readout_spec
from para_video.rollout import (
    Cell,
    Episode,
    ReplanningOracle,
    Replay,
    evaluate,
    evaluation_seeds,
    expert_rollout,
    rollout,
)
from para_video.runs import (
    RESUME,
    changed_options,
    check_processes,
    command_line,
    output_folder,
    per_process,
    plain_settings,
    same_settings,
    same_source,
    told_command,
    try_out,
    versions,
)
from para_video.sims.experts import recipe
from para_video.sims.metaworld import CameraPlacement, MetaWorldServo, episode_steps
from para_video.sims.shifts import NO_SHIFT, TRAINING_CAMERA, Shift, ShiftedEnv, parse_shifts
from para_video.training import FitConfig, check_precision, fit, make_accelerator, write_atomically
from para_video.video import VideoFolder, write_video

BatchMaker = Callable[[int, int, int], Dataset]
"""(seed, rank, processes) to batches, as `fit` takes them."""

OPTIMIZERS: dict[str, Literal["muon", "adamw"]] = {"para": "muon", "regression": "muon", "act": "adamw"}
LEARNING_RATES = {"para": 1e-3, "act": 3e-4, "regression": 1e-3}
"""Optimizer and peak learning rate by the first word of a policy's name: the rates that did best in docs/tuning.md. Regression
takes PARA's optimizer, ACT its authors' (Muon would triple its time)."""
VIDEO_LEARNING_RATE = 1e-3
CELLS_FILE = "cells.json"
"""In a policy's folder: what was measured of it."""
READOUT_OPTIONS = ("lift", "joint_volume", "gripper_bins")
PARA_OPTIONS = ("grid", "hidden", "layers", "mixing", "sigma_px", "jitter_px", "start", "opening", "path_px")
"""What `head_options` may name, of `ReadoutSpec` and of `ParaHead`."""


@dataclass(frozen=True)
class RobotConfig:
    """Fine-tune and evaluate robot policies."""

    task: str = "pick-place-v3"
    """Any Meta-World task by name."""
    demos: int = 5
    """Demonstrations to train on."""
    demo_folder: Path | None = None
    """Folder of demonstrations of your own (as para_video.demos.save_demos writes them); default: record the scripted expert."""
    policies: str = "para,regression,act"
    """Comma-separated: para, act (act-plain without temporal ensembling), regression (its form xyz-softmax), or
    regression-{xyz,uvh}-{average,softmax}."""
    backbone: str = "mini"
    """Name in the catalogue (mini, efficientnet-lite0, svd, ...: backbones/__init__.py has it), or package.module:Class; the same
    for every policy."""
    backbone_options: Annotated[str, tyro.conf.arg(metavar="JSON")] = "{}"
    """Of the backbone, such as '{"scale": 3}' or '{"source": "folder", "dtype": "bfloat16", "lora_rank": 16}'."""
    head_options: Annotated[str, tyro.conf.arg(metavar="JSON")] = "{}"
    """Of PARA's head and its read-out, such as '{"lift": "depth", "joint_volume": true}' or '{"path_px": 2}':
    see para_video.heads.ParaHead and para_video.readout.ReadoutSpec."""
    init: str | None = None
    """Checkpoint to start from on top of the backbone's weights, such as pretrain/circles.py writes; weights of the same name and
    shape are taken. Default: the circles-pretrained heads that come with the backbone, if any; none: fresh heads."""
    init_part: Literal["both", "backbone", "head"] = "both"
    """What is taken from there."""
    train: Literal["all", "heads", "joint"] = "all"
    """Train backbone and head, the head alone on a frozen backbone (whose features are computed once; mini's are then those of its
    encoder), or both while the backbone keeps learning to predict the demonstrations' frames."""
    video_steps: int = 0
    """Steps in which the backbone first learns to predict the demonstrations' frames; all policies then start from it."""
    extra_videos: Path | None = None
    """Folder of more videos of the scene, without actions, for --video-steps; their frames as far apart as targets are."""
    copies: int = 4
    """Augmented copies of every demonstrated step whose features are kept for --train heads."""
    steps: int = 900
    """Optimiser steps of each policy."""
    batch_size: int = 8
    """Clips per step, over all processes."""
    learning_rate: float | None = None
    """Peak learning rate; default one for each kind of policy."""
    backbone_learning_rate: float | None = None
    """The backbone's own peak learning rate; default that of the head."""
    episodes: int = 50
    """Episodes of each policy on each view; the seeds are the same for all."""
    azimuths: str = "0,18"
    """Comma-separated camera azimuths to evaluate at, in degrees from the training camera; negative ones turn the other way."""
    shifts: str = ""
    """More shifts to evaluate under, separated by semicolons, such as "look=1; distractors=3; azimuth=-18,noise=0.05". Parts:
    azimuth, elevation, distance, roll, look, distractors, workspace, noise, blur, latency, state_latency, calibration_deg,
    calibration_px; see para_video.sims.shifts.Shift."""
    workspace: Literal["left", "right", "near", "far"] | None = None
    """Half of the workspace that is trained and evaluated on, where a shift does not name another; default all of it. Best with
    --widen."""
    context: int = 1
    """Frames that a policy sees."""
    size: int = 128
    """Side of the square frames in pixels."""
    zoom: float = 1.0
    """Factor by which the camera is zoomed in. 1.5 frames where grippers go in Meta-World's tasks: a pixel is then 5 mm of the
    table instead of 7."""
    spread_over: int = 64
    """Demonstrations show scenes chosen from this many so that objects and goals lie far apart; 0 takes them as they come."""
    noise: float = 0.0
    """Standard deviation of the noise on the expert's moves while demonstrations are recorded; 1 is its full speed."""
    scatter: int = 0
    """Before every second demonstration the hand is moved in a random direction for up to this many control steps of a
    centimetre. Where all begin in one place, the first move may be learnt as a direction in the picture, which a turned camera
    shows elsewhere. Try 25 with 20 demonstrations."""
    state_noise: float = 1.0
    """Factor on the noise with which every policy is told the gripper's height (1 cm) and opening (0.08) in training. Told exactly,
    the two give away the moment of a demonstration, which is then learnt by heart; but a centimetre is a pixel over an object. 0 is
    better where demonstrations were disturbed by --noise 0.3."""
    hide_hand: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Hide the hand in what policies see: they are told where it is, and what it looks like misleads them where the camera is
    turned."""
    widen: float = 1.0
    """Factor on the ranges of object and goal positions, in demonstrations and evaluation."""
    shadows: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Render shadows and reflections (four times slower)."""
    repaint: float = 0.0
    """Share of training clips whose surroundings (large surfaces of one colour: table, wall, arm) are painted anew, for every
    policy. Try 0.5 where policies are to act in other surroundings, with more demonstrations and steps than the default."""
    seed: int = 0
    """Of weights and training batches."""
    out: Path | None = None
    """Where everything is written; default the first free of runs/robot, runs/robot-2, ..."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with an interrupted run in --out: finished trainings and cells are kept. Its options are taken; --policies, --azimuths,
    --shifts and --episodes alone may be others. The report is of the policies that are named."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.policy_names if name not in HEADS]
        if unknown or not self.policy_names:
            raise ValueError(f"unknown policies {unknown}; choose from {sorted(HEADS)}")
        if self.demos < 1 or self.episodes < 1:
            raise ValueError(f"demos and episodes must be at least 1, got {self.demos} and {self.episodes}")
        if len(set(self.policy_names)) < len(self.policy_names):
            raise ValueError(f"policies names one twice: {self.policies!r}")
        if min(self.steps, self.batch_size) < 1 or self.seed < 0:
            raise ValueError(
                f"steps and batch_size must be at least 1, seed not negative; got {self.steps}, {self.batch_size} and {self.seed}"
            )
        for name in ("learning_rate", "backbone_learning_rate"):
            if (rate := getattr(self, name)) is not None and not 0 < rate < math.inf:
                raise ValueError(f"{name} must be positive, got {rate}; leave it out for the default")
        if self.video_steps < 0 or self.copies < 1:
            raise ValueError(f"video_steps must not be negative, copies at least 1; got {self.video_steps} and {self.copies}")
        if min(self.context, self.size) < 1:
            raise ValueError(f"context and size must be at least 1, got {self.context} and {self.size}")
        if changed_options(self, ["copies"]) and self.train != "heads":
            raise ValueError("copies are of features that are kept: leave them out, or add --train heads")
        if self.init_part != "both" and self.init_folder is None:
            raise ValueError("init_part is of a checkpoint to start from, and there is none: leave it out, or name one with --init")
        if not 0.1 <= self.zoom <= 10:
            raise ValueError(f"zoom must lie in [0.1, 10], got {self.zoom}; 1 leaves the camera as it is")
        if low := {n: getattr(self, n) for n in ("noise", "scatter", "spread_over", "state_noise") if getattr(self, n) < 0}:
            raise ValueError(f"these must not be negative: {low}")
        if not 0 <= self.repaint <= 1:
            raise ValueError(f"repaint must lie in [0, 1], got {self.repaint}")
        if self.hide_hand and (self.train == "joint" or self.video_steps):
            raise ValueError("hide_hand is not for a backbone that learns to predict frames, which show the hand: leave one out")
        if self.hide_hand and self.context > 1:
            raise ValueError(
                f"hide_hand needs context 1, got {self.context}: where the hand was in earlier frames a policy is not told"
            )
        recorded = ("noise", "scatter", "spread_over")
        if self.demo_folder is not None and (ours := changed_options(self, recorded)):
            raise ValueError(f"{', '.join(ours)} are of recording, and --demo-folder is recorded already: leave them out")
        if self.extra_videos is not None and not self.video_steps:
            raise ValueError("extra_videos are for the backbone alone: add --video-steps N")
        if self.backbone_learning_rate is not None and self.train == "heads":
            raise ValueError("backbone_learning_rate is for a backbone that learns: leave it out with --train heads")
        self.views, self.options, self.para_options  # noqa: B018 - to parse them at once

    @property
    def policy_names(self) -> list[str]:
        return [name.strip() for name in self.policies.split(",") if name.strip()]

    @property
    def options(self) -> dict[str, Any]:
        """What the backbone is built with where it learns, as the user gave it."""
        return backbone_options(self.backbone, self.backbone_options)

    @property
    def read_options(self) -> dict[str, Any]:
        """What the policies' backbone is built with: a frozen one may be read elsewhere."""
        return {**catalogue_entry(self.backbone).frozen, **self.options} if self.train == "heads" else self.options

    @property
    def para_options(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What PARA's read-out and its head are built with."""
        try:
            given = {**json.loads(self.head_options)}
        except (ValueError, TypeError) as error:
            raise ValueError(f'head_options are a JSON object such as {{"lift": "depth"}}, got {self.head_options!r}') from error
        unknown = sorted(given.keys() - {*READOUT_OPTIONS, *PARA_OPTIONS})
        if unknown:
            raise ValueError(f"unknown head_options {unknown}; choose from {[*READOUT_OPTIONS, *PARA_OPTIONS]}")
        readout = {name: value for name, value in given.items() if name in READOUT_OPTIONS}
        return readout, {name: value for name, value in given.items() if name in PARA_OPTIONS}

    @property
    def init_folder(self) -> Path | None:
        """The checkpoint that `init` stands for."""
        if self.init is None:
            return shipped_heads(self.backbone)
        return None if self.init.lower() == "none" else Path(self.init)

    @property
    def starts(self) -> list[Path]:
        """The checkpoints that policies start from: the backbone's, and `init` on top."""
        return [folder for folder in (shipped_weights(self.backbone), self.init_folder) if folder is not None]

    def start(self, module: nn.Module, name: str, console: Console, video: Path | None = None) -> None:
        """Load a policy's or a predictor's weights: those that come with the backbone, `init` on top, `video` last.

        Raises:
            FileNotFoundError, ValueError: as of `initialise`.
        """
        part = "" if self.init_part == "both" else self.init_part
        for folder, taken in ((shipped_weights(self.backbone), "backbone"), (self.init_folder, part), (video, "backbone")):
            if folder is not None:
                needed = "" if name == "para" or taken == "backbone" else "backbone"  # heads may be nothing to a baseline
                fitting, own = initialise(module, folder, part=taken, needed=needed)
                console.print(f"{name} starts from {folder}: {fitting} of {own} tensors")

    @property
    def views(self) -> dict[str, Shift]:
        """What is evaluated under, by the name of its cell."""
        try:
            turned = [Shift(azimuth=float(part)) for part in self.azimuths.split(",")]
        except ValueError as error:
            raise ValueError(
                f"azimuths must be numbers separated by commas, such as 0,18; got {self.azimuths!r} ({error})"
            ) from error
        return {cell_name(shift): shift for shift in [*turned, *parse_shifts(self.shifts)]}

    def env(self, shift: Shift = NO_SHIFT) -> ShiftedEnv:
        """The task in the training setting, or under a shift from there."""
        half = replace(shift, workspace=shift.workspace or self.workspace or "")
        return ShiftedEnv(self.task, half, camera=self.camera, size=self.size, shadows=self.shadows, widen=self.widen)

    @property
    def camera(self) -> CameraPlacement:
        """The training camera."""
        return TRAINING_CAMERA.wider(1 / self.zoom)

    @property
    def augmentation(self) -> Augmentation:
        """Of training clips; the camera turns by about the same share of its picture whatever the zoom."""
        return Augmentation(repaint=self.repaint, turn_deg=Augmentation.turn_deg / self.zoom)


def cell_name(shift: Shift) -> str:
    """`same` without a shift, `azimuth+18` of a camera that is turned only, else the shift as text."""
    if shift == NO_SHIFT:
        return "same"
    return f"azimuth{shift.azimuth:+g}" if shift == Shift(azimuth=shift.azimuth) else str(shift)


# -------------------------------------------------------------------- demonstrations and what bounds the figures


def demonstrations(config: RobotConfig, console: Console) -> DemoSet:
    """The demonstrations to train on, recorded (or read from the cache) or loaded."""
    if config.demo_folder is not None:
        return checked(select_demos(load_demos(config.demo_folder), config.demos), config)
    with config.env() as env, tqdm(total=config.demos, desc="demonstrations", unit="demo") as bar:
        found = cached_demos(
            env,
            Plan(config.demos, spread_over=config.spread_over, noise=config.noise, scatter=config.scatter),
            on_episode=lambda _, ok: bar.update(int(ok)),
        )
        bar.update(config.demos - bar.n)
    if found.discarded:
        console.print(f"the expert failed on seeds {list(found.discarded)}: discarded")
    return found


def checked(demos: DemoSet, config: RobotConfig) -> DemoSet:
    """Demonstrations of a user's own, as they came.

    Raises:
        ValueError: they show another task, size or camera than is evaluated, or an episode that policies are evaluated on.
    """
    acts = config.camera.camera(config.size)
    for demo in demos.demos:
        size = demo.frames.shape[1:3]
        if demo.task != config.task or size != (config.size, config.size):
            raise ValueError(
                f"{config.demo_folder}: a demonstration shows {demo.task!r} at {size} px, the evaluation is of {config.task!r} at "
                f"{(config.size, config.size)} px; pass its --task and --size"
            )
        seen = demo.camera
        if not torch.allclose(seen.intrinsics, acts.intrinsics, rtol=1e-3, atol=1e-2):
            shown, known = (camera.intrinsics.numpy().round(1).tolist() for camera in (seen, acts))
            raise ValueError(
                f"{config.demo_folder}: a demonstration was seen by another camera (intrinsics {shown} px) than policies act with "
                f"({known} px): pass the --zoom that it was recorded with, or record with para_video.sims.shifts.TRAINING_CAMERA"
            )
        if not torch.allclose(seen.world_T_camera, acts.world_T_camera, atol=1e-3):
            stood, stands = (camera.world_T_camera[:3, 3].numpy().round(3) for camera in (seen, acts))
            raise ValueError(
                f"{config.demo_folder}: a demonstration was seen by another camera, at {stood} m, than policies act with, "
                f"at {stands} m, or by one that looked elsewhere: record with para_video.sims.shifts.TRAINING_CAMERA"
            )
        if demo.seed >= TUNING_SEED:
            raise ValueError(
                f"{config.demo_folder}: seed {demo.seed} is one of tuning and evaluation, from {TUNING_SEED} on; record others"
            )
    return demos


def bounds(
    config: RobotConfig, demos: Sequence[Demo], spec: ReadoutSpec, shift: Shift = NO_SHIFT, horizon: int | None = None
) -> tuple[dict[str, Cell], int]:
    """The cells of expert, read-out oracle and blind replay, and the horizon for everyone.

    Args:
        spec: of the read-out. shift: from the training setting. horizon: default as of `episode_steps`.
    """
    seeds, servo = evaluation_seeds(config.episodes), MetaWorldServo()
    horizon = horizon or episode_steps(config.task, config.widen)
    with config.env(shift) as env:
        head = {"grid": ParaHead.GRID, "sigma_px": ParaHead.SIGMA_PX} | config.para_options[1]
        trip = one_hot_round_trip(spec, head["grid"], head["sigma_px"], (config.size, config.size))
        oracle, replay = ReplanningOracle(env, round_trip=trip), Replay(demos[0])
        runs: dict[str, Callable[[int], Episode]] = {
            "expert": lambda seed: expert_rollout(env, seed, horizon=horizon),
            "readout": lambda seed: rollout(env, oracle, servo, seed, context=0, horizon=horizon),
            "blind_replay": lambda seed: rollout(env, replay, servo, seed, context=0, horizon=horizon),
        }
        return {name: measured(run, seeds, name) for name, run in runs.items()}, horizon


def measured(run: Callable[[int], Episode], seeds: Sequence[int], name: str) -> Cell:
    """Episodes of all seeds under a progress bar."""
    with tqdm(total=len(seeds), desc=name, unit="episode") as bar:
        return evaluate(run, seeds, on_episode=lambda _: bar.update())


# -------------------------------------------------------------------- policies


def policy_spec(name: str, config: RobotConfig, demos: Sequence[Demo]) -> PolicySpec:
    """What a policy is built from."""
    head, options = HEADS[name]
    readout, own = config.para_options if name == "para" else ({}, {})
    options = {"spec": readout_spec(demos, **readout), "state_noise": config.state_noise, **options, **own}
    if name != "para":
        schedule = DEFAULT_SCHEDULE
        options["statistics"] = ActionStatistics.of(demos, chunk=schedule.chunk, stride=schedule.frame_stride)
    height, width = demos[0].frames.shape[1:3]
    return PolicySpec(
        import_string(config.backbone),
        head,
        context=config.context,
        size=(height, width),
        backbone_options=config.read_options,
        head_options=options,
        hand=Hand() if config.hide_hand else None,
    )


def first_backbone(config: RobotConfig, accelerator: Accelerator) -> VideoBackbone:
    """The backbone that policies read, with the weights of its source, if it has one.

    Raises:
        FileNotFoundError, ValueError, ImportError: it cannot be built, cannot be trained as is asked, or does not take what
            policies see. VideoError: as of `extra_videos`.
    """
    check_processes(config.options, accelerator.num_processes)
    torch.manual_seed(config.seed)
    predicts = config.train == "joint" or config.video_steps > 0
    if predicts and not backbone_class(config.backbone).generates():  # told before any weights are looked for
        raise no_generative_loss(config.backbone)
    build = partial(build_backbone, import_string(config.backbone), trusted=trusted_packages(config.backbone))
    backbone = build(config.read_options)
    if config.train != "heads" or config.video_steps:
        learner = backbone if config.read_options == config.options else build(config.options)
        if predicts:
            check_predicts(learner, config.backbone)
            extra_videos(config, learner)
        check_precision(learner.requires_grad_(True))
    try_out(backbone.eval().to(accelerator.device), PolicySpec.times, config.context, config.size)
    return backbone


def check_head(config: RobotConfig, channels: int) -> None:
    """Raise ValueError unless PARA's head can be built with its options on so many channels."""
    readout, own = config.para_options
    try:
        ParaHead(channels, ReadoutSpec(relative=True, **readout), **own)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"head_options {config.head_options} make no head: {error}") from error


def extra_videos(config: RobotConfig, backbone: VideoBackbone) -> VideoFolder | None:
    """The folder of more videos to learn to predict.

    Raises:
        VideoError: no such folder, or a file that cannot be read or is too short.
    """
    if config.extra_videos is None:
        return None
    found = VideoFolder(config.extra_videos)
    found.require(config.context + shown_future(backbone, DEFAULT_SCHEDULE.chunk), "remove the file")
    return found


def check_predicts(backbone: VideoBackbone, name: str) -> None:
    """Raise ValueError unless a backbone can learn to predict what policies are trained to foresee."""
    if not backbone.spec.generative:
        raise no_generative_loss(name)
    ahead = shown_future(backbone, max(PolicySpec.times))
    try:
        backbone.spec.check_horizon(ahead)
    except ValueError as error:
        option = json.dumps({"max_horizon": ahead})
        raise ValueError(
            f"--train joint and --video-steps have {name} predict {ahead} frames: {error}, or build it with more, such as "
            f"--backbone-options '{option}'"
        ) from error


def no_generative_loss(name: str) -> ValueError:
    return ValueError(
        f"{name} has no generative loss for --train joint or --video-steps; pass --train all or --train heads alone, or other "
        "--backbone-options"
    )


def shown_future(backbone: VideoBackbone, latest: float) -> int:
    """Future frames that a generative backbone learns to predict, so that its last map is of whole frames too."""
    return backbone.spec.span * math.ceil(latest / backbone.spec.span)


def tune_video(config: RobotConfig, demos: Sequence[Demo], folder: Path, accelerator: Accelerator, console: Console) -> Path | None:
    """Let the backbone learn to predict the demonstrations' frames; gives the checkpoint that policies start from."""
    if not config.video_steps:
        return None
    if config.resume and (folder / WEIGHTS_FILE).is_file():
        return folder
    torch.manual_seed(config.seed)
    target = import_string(config.backbone)
    predictor = VideoPredictor(build_backbone(target, config.options, trusted=trusted_packages(config.backbone)))
    config.start(predictor, "video", console)
    stride, horizon = DEFAULT_SCHEDULE.frame_stride, shown_future(predictor.backbone, DEFAULT_SCHEDULE.chunk)
    shown: list[tuple[Source, float]] = [(demonstrated(demos, stride, config.augmentation), 1.0)]
    if (more := extra_videos(config, predictor.backbone)) is not None:
        shown.append((video_files(more, config.size, 1), 1.0))

    def batches(seed: int, rank: int, processes: int) -> ClipBatches:
        share = per_process(config.batch_size, processes)
        return ClipBatches(shown, batch_size=share, contexts=(config.context,), horizon=horizon, seed=seed, rank=rank)

    fit_config = FitConfig(config.video_steps, VIDEO_LEARNING_RATE, seed=config.seed)
    result = fit(predictor, batches, fit_config, folder=folder, resume=config.resume, label="video", accelerator=accelerator)
    if accelerator.is_main_process:
        notes = {"made_by": "finetune/robot.py", "task": config.task, "steps": result.steps, "seconds": result.seconds}
        save_backbone(predictor.backbone, target, config.options, folder, notes)
    accelerator.wait_for_everyone()
    return folder


def training_batches(
    config: RobotConfig, policy: VideoPolicy, demos: Sequence[Demo], spec: PolicySpec, features: Path
) -> tuple[BatchMaker, float]:
    """What a policy is trained on: clips, clips with their future, or features computed once (kept in the folder `features`); and
    the seconds that these took, which count for every policy that uses them."""
    schedule = spec.schedule
    options: dict[str, Any] = {
        "chunk": schedule.chunk, "stride": schedule.frame_stride, "context": config.context,
        "augmentation": config.augmentation,
        "future": shown_future(policy.backbone, max(spec.times)) if config.train == "joint" else 0,
    }  # fmt: skip
    if config.train != "heads":
        return lambda seed, rank, processes: DemoBatches(
            demos, batch_size=per_process(config.batch_size, processes), seed=seed, rank=rank, **options
        ), 0.0
    clips = DemoBatches(demos, batch_size=1, seed=config.seed, **options)
    cache = cache_features(policy, clips, config.copies, features)
    return lambda seed, rank, processes: CachedBatches(
        cache, clips[0], batch_size=per_process(config.batch_size, processes), seed=seed, rank=rank
    ), json.loads((cache / COST_FILE).read_text())["seconds"]


def train(
    name: str,
    config: RobotConfig,
    demos: Sequence[Demo],
    folder: Path,
    accelerator: Accelerator,
    console: Console,
    video: Path | None = None,
    features: Path | None = None,
    backbone: VideoBackbone | None = None,
) -> tuple[VideoPolicy, dict[str, Any]]:
    """Train a policy, or load it where a resumed run had finished it; gives it and its steps and seconds.

    Args:
        video: a backbone's checkpoint to start from, on top of the others. features: where those of a frozen backbone are cached;
            default beside the cached demonstrations. backbone: a frozen one of `first_backbone`, for all policies; default the
            policy's own.
    """
    spec = policy_spec(name, config, demos)
    trusted = trusted_packages(config.backbone)
    notes = folder / "training.json"
    if config.resume and notes.is_file():
        policy, _ = load_policy(folder, trusted=trusted, backbone=backbone)
        return policy.to(accelerator.device), json.loads(notes.read_text())
    torch.manual_seed(config.seed)  # the backbone is drawn first: its initial weights are the same for every policy
    policy = spec.build(trusted=trusted, frozen=config.train == "heads", backbone=backbone)
    config.start(policy, name, console, video)
    policy.to(accelerator.device)  # where features of a frozen backbone are computed
    kind = name.split("-")[0]
    rate = LEARNING_RATES[kind] if config.learning_rate is None else config.learning_rate
    with accelerator.main_process_first():
        batches, prepared = training_batches(config, policy, demos, spec, features or cache_folder().with_name("features"))
    fit_config = FitConfig(config.steps, rate, config.backbone_learning_rate, seed=config.seed, optimizer=OPTIMIZERS[kind])
    result = fit(policy, batches, fit_config, folder=folder, resume=config.resume, label=name, accelerator=accelerator)
    cost = {
        "steps": result.steps, "seconds": result.seconds + prepared, "learning_rate": rate, "optimizer": OPTIMIZERS[kind],
        "precision": result.precision,
    }  # fmt: skip
    if accelerator.is_main_process:
        save_policy(policy, spec, folder, {"made_by": "finetune/robot.py", "task": config.task, "demos": config.demos, **cost})
        write_atomically(notes, json.dumps(cost).encode())
    return policy, cost


def trained_in(costs: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The precision that policies were trained in, as `versions` has it of acting; nothing where an older training did not say."""
    told = {part for cost in costs for part in cost.get("precision", "").split("+")} - {""}
    return {"precision": "+".join(sorted(told))} if told else {}


def actor(name: str, policy: VideoPolicy) -> Policy:
    """The policy as its authors would run it: ACT averages its overlapping chunks."""
    return TemporalEnsemble(policy, DEFAULT_SCHEDULE.executed) if name == "act" else policy


def evaluate_policy(
    name: str, policy: VideoPolicy, config: RobotConfig, folder: Path, horizon: int, seeds: Sequence[int] | None = None
) -> dict[str, Any]:
    """Cells by view; each is written as soon as it is measured, and a resumed run does not measure it again.

    Args:
        seeds: of the episodes; default the evaluation seeds.
    """
    seeds = seeds or evaluation_seeds(config.episodes)
    cells = kept_cells(config, folder)
    for view, shift in config.views.items():
        if view in cells and cells[view]["episodes"] == config.episodes:
            continue
        cells[view] = evaluate_view(name, policy, config, shift, horizon, seeds).summary()
        write_atomically(folder / CELLS_FILE, json.dumps(cells).encode())
    return {view: cells[view] for view in config.views}


def kept_cells(config: RobotConfig, folder: Path) -> dict[str, Any]:
    """Those that a resumed run has of a policy, by view.

    Raises:
        ValueError: they are of more episodes than are asked for, and would be lost.
    """
    path = folder / CELLS_FILE
    cells: dict[str, Any] = json.loads(path.read_text()) if config.resume and path.is_file() else {}
    most = max((cell["episodes"] for view, cell in cells.items() if view in config.views), default=0)
    if most > config.episodes:
        raise ValueError(f"{path} has {most} episodes of a view, more than --episodes {config.episodes}: ask for as many")
    return cells


def evaluate_view(name: str, policy: VideoPolicy, config: RobotConfig, shift: Shift, horizon: int, seeds: Sequence[int]) -> Cell:
    """The cell of a policy under a shift."""
    with config.env(shift) as env:
        run = partial(rollout, env, actor(name, policy), MetaWorldServo(), context=config.context, horizon=horizon)
        return measured(run, seeds, f"{name} {cell_name(shift)}")


# -------------------------------------------------------------------- pictures


def film(
    name: str, policy: VideoPolicy, config: RobotConfig, seed: int, horizon: int, shift: Shift = NO_SHIFT, size: int = 256
) -> Film:
    """A rollout under a shift, in frames of `size` pixels."""
    with config.env(shift) as env, replace(config, size=size).env(shift) as stage:
        return shoot(env, stage, actor(name, policy), MetaWorldServo(), seed, context=config.context, horizon=horizon)


def draw(trained: dict[str, VideoPolicy], summary: dict[str, Any], config: RobotConfig, out: Path, horizon: int) -> None:
    """Videos, bar chart and report."""
    media: list[tuple[str, str, Path]] = []
    view, shift = next(iter(config.views.items()))
    success_bars(
        out / "success.png", {name: p["cells"] for name, p in summary["policies"].items()}, references=summary["oracle"],
        title=f"{config.task}, {config.demos} demonstrations",
    )  # fmt: skip
    media.append(("Success", "Share of episodes that succeed, with Wilson 95 % intervals.", out / "success.png"))
    if "para" in trained:
        seed = _telling_seed(summary["policies"], "para", None)
        shown = film("para", trained["para"], config, seed, horizon, shift)
        write_video(out / "heatmaps.mp4", shown.overlaid(), fps=12)
        write_picture(out / "heatmaps.png", heatmap_sheet(shown))
        media.append(("Where next?", f"PARA's heatmaps and targets in episode {seed}.", out / "heatmaps.mp4"))
        for other in [name for name in trained if name != "para"][:1]:
            seed = _telling_seed(summary["policies"], "para", other)
            pair = [film(name, trained[name], config, seed, horizon, shift) for name in ("para", other)]
            clips, won = [each.overlaid() for each in pair], [each.episode.succeeded for each in pair]
            write_video(out / "side_by_side.mp4", side_by_side(clips, ("PARA", other), won, hold=10), fps=12)
            told = f"Episode {seed}, view {view}: chosen because the outcomes differ, where they do anywhere."
            media.append((f"PARA and {other}", told, out / "side_by_side.mp4"))
    intro = (
        f"{config.task} from {config.demos} demonstrations. All policies share the backbone's initial weights, inputs and steps."
    )
    write_report(out / "report.html", summary, media, title=f"para_video: {config.task}", intro=intro)


def _telling_seed(policies: dict[str, Any], winner: str, loser: str | None) -> int:
    """An evaluation seed that the winner solved (and the loser, where given, did not); else the first seed."""
    view = next(iter(policies[winner]["cells"]))
    won = policies[winner]["cells"][view]["succeeded_at"]
    lost = policies[loser]["cells"][view]["succeeded_at"] if loser else dict.fromkeys(won)
    solved = [seed for seed in won if won[seed] is not None]
    return int(next((seed for seed in solved if lost[seed] is None), (solved or list(won))[0]))


def show(summary: dict[str, Any], console: Console) -> None:
    """Print successes as a table."""
    views = list(next(iter(summary["policies"].values()))["cells"])
    table = Table(title=f"{summary['task']}, {summary['demos']} demonstrations: successes (Wilson 95 %)")
    for name in ("", *map(display_name, views), "training s", "ms per decision"):
        table.add_column(name, justify="left" if not name else "right")
    for name, policy in summary["policies"].items():
        cells = [told_cell(policy["cells"][view]) for view in views]
        table.add_row(display_name(name), *cells, f"{policy['seconds']:.0f}", f"{policy['ms_per_act']['p50']:.0f}")
    for name, cell in summary["oracle"].items():  # of the training camera's view alone
        table.add_row(display_name(name), *(told_cell(cell) if view == "same" else "" for view in views), style="dim")
    console.print(table)


# -------------------------------------------------------------------- the story


def main(config: RobotConfig) -> dict[str, Any]:
    """Record, bound, train, evaluate, draw; returns what summary.json holds."""
    begun, console = time.perf_counter(), Console()
    accelerator = make_accelerator()
    out = output_folder(config.out, "robot", resume=config.resume, accelerator=accelerator)
    same_settings(out, config, free=("out", "resume", "policies", "azimuths", "shifts", "episodes"), accelerator=accelerator)
    for name in config.policy_names:
        kept_cells(config, out / name)
    for folder in config.starts:
        read_weights(folder)  # what is wrong with them is told before anything is recorded
    for shift in config.views.values():
        config.env(shift).close()  # and whether the task has such a workspace
    if config.train == "heads" and not (config.starts or config.video_steps or "source" in config.options):
        console.print(f"{config.backbone} is frozen with random weights: pass --init or --video-steps", style="yellow")
    if config.head_options != "{}" and "para" not in config.policy_names and not config.resume:
        raise ValueError(f"head_options are PARA's: leave them out, or add para to the policies {config.policies!r}")
    per_process(config.batch_size, accelerator.num_processes)
    first: VideoBackbone | None = first_backbone(config, accelerator)
    check_head(config, first.spec.channels)
    same_source(out, first, config.starts, accelerator, config.demo_folder)
    if config.train != "heads" or "source" not in config.options:
        first = None  # each policy has its own
    with accelerator.main_process_first():
        demos = demonstrations(config, console).demos
    video = tune_video(config, demos, out / "video", accelerator, console)
    trained, policies = {}, {}
    for name in config.policy_names:
        trained[name], policies[name] = train(name, config, demos, out / name, accelerator, console, video, backbone=first)
    if not accelerator.is_main_process:
        return {}
    bounding, horizon = bounds(config, demos, readout_spec(demos, **config.para_options[0]))
    for name, policy in trained.items():
        cells = evaluate_policy(name, policy, config, out / name, horizon)
        p50, p95 = next(iter(cells.values()))["act_ms"]
        policies[name] |= {"ms_per_act": {"p50": p50, "p95": p95}, "cells": cells}
    summary = {
        "task": config.task,
        "demos": config.demos,
        "backbone": config.backbone,
        "seed": config.seed,
        "horizon": horizon,
        "expert": recipe(config.task) if config.demo_folder is None else None,
        "oracle": {name: cell.summary() for name, cell in bounding.items()},
        "policies": policies,
        "command": told_command("finetune/robot.py", config, always=("demos",)),
        "config": plain_settings(config),
        "schedule": asdict(DEFAULT_SCHEDULE),
        "versions": versions() | trained_in(policies.values()),
    }

    def write() -> None:
        summary["seconds"] = None if config.resume else time.perf_counter() - begun  # before a cut nobody counted
        write_atomically(out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())

    write()  # pictures may fail, and figures are then not lost
    draw(trained, summary, config, out, horizon)
    write()
    show(summary, console)
    console.print(f"{time.perf_counter() - begun:.0f} s. Report, videos, figures and checkpoints: {out}")
    return summary


if __name__ == "__main__":
    command_line(main, RobotConfig, __doc__ or "", RESUME)
