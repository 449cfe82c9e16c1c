"""Pretrain a video model: given a frame or a few, what comes next?

    python pretrain/video.py

Records action-free clips of a simulated robot (experts, disturbed experts and random motion under random cameras, materials and
lights), mixes them with synthetic ones, and trains a generative backbone on them. Or give a folder of your own videos. What the
model says of scenes that it never saw is measured on the pixels that change, beside repeating the last frame.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from backbones import backbone_class, backbone_options, import_string, trusted_packages
from backbones.mini import MiniVideo
from para_video.agent import VideoPolicy
from para_video.checkpoint import PolicySpec, build_backbone, initialise, save_backbone
from para_video.demos import Demo
from para_video.features import FeatureSpec
from para_video.figures import error_curve, label, upscale, write_picture
from para_video.precision import autocast
from para_video.prediction import (
    ClipBatch,
    ClipBatches,
    FutureScore,
    GripperFrames,
    Source,
    VideoPredictor,
    circles,
    futures,
    gripper_errors,
    gripper_pixels,
    motion,
    recorded,
    video_files,
)
from para_video.readout import ReadoutSpec
from para_video.runs import (
    RESUME,
    changed_options,
    command_line,
    output_folder,
    per_process,
    plain_settings,
    same_settings,
    same_source,
    told_command,
    versions,
)
from para_video.training import FitConfig, check_precision, fit, make_accelerator, write_atomically
from para_video.video import VideoFolder

HELD_OUT_SEED = 50_000
"""Seeds of held-out episodes start here, away from those of training clips."""


@dataclass(frozen=True)
class VideoConfig:
    """Pretrain a video model."""

    videos: Path | None = None
    """Folder of your own videos, in place of the simulator's clips; each tenth file is kept for measuring."""
    stride: int = 1
    """Frames of your videos from one clip frame to the next."""
    procedural: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Train on synthetic clips alone, and see what the simulator's are worth."""
    synthetic: float = 0.35
    """Share of synthetic clips, half of them of circles, beside others."""
    episodes: int = 60
    """Simulated episodes of each task to train on."""
    held_out: int = 6
    """Episodes of each unseen task (or clips, per kept file) to measure on."""
    backbone: str = "mini"
    """Name in the catalogue, or package.module:Class; a generative one. It starts from the weights of its source, if it has
    one, and else, as mini does, from random ones."""
    backbone_options: Annotated[str, tyro.conf.arg(metavar="JSON")] = "{}"
    """Of the backbone, such as '{"source": "folder", "dtype": "bfloat16", "device": "cuda", "lora_rank": 16}'."""
    init: Path | None = None
    """Checkpoint to start from instead."""
    steps: int = 9000
    """Optimiser steps; 0 measures what --init holds."""
    batch_size: int = 8
    """Clips per step, over all processes."""
    learning_rate: float = 3e-3
    """Peak learning rate; it suits mini, and models with a source want less."""
    drop: float = 0.1
    """Share of training clips whose observed frames are blank, for guidance, where the backbone can draw futures."""
    draw: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Have one linear layer draw all frames from the maps that heads read too, so that these know how things at rest look; takes
    twice the time."""
    contexts: tuple[int, ...] = (1, 1, 2, 4)
    """Numbers of observed frames, one of which is drawn for each batch."""
    horizon: int = 6
    """Future frames."""
    samples: int = 8
    """Draws of each held-out future."""
    sampling_steps: int = 10
    """Steps of each draw."""
    guidance: float = 2.0
    """Of one more draw: it moves so much further away from what would be expected without a past (Ho and Salimans 2022). On scenes
    that mini was trained on, where it was chosen, that brings the gripper nearer to where it will be, and pixels further off. 1
    leaves it out, and so does --drop 0."""
    probe_steps: int = 600
    """Steps of training of the network that finds the gripper in predicted frames."""
    size: int = 128
    """Side of the square frames in pixels."""
    seed: int = 0
    """Of weights, clips and draws."""
    out: Path | None = None
    """Where everything is written; default the first free of runs/video, runs/video-2, ..."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with an interrupted run in --out, whose options are taken."""

    def __post_init__(self) -> None:
        least = {name: getattr(self, name) for name in ("stride", "episodes", "held_out", "batch_size", "horizon", "samples")}
        least |= {"sampling_steps": self.sampling_steps, "probe_steps": self.probe_steps, "contexts": min(self.contexts, default=0)}
        low = {name: value for name, value in least.items() if value < 1}
        if low or self.learning_rate <= 0 or self.seed < 0:
            raise ValueError(
                f"these must be at least 1: {low}; and learning_rate > 0, seed >= 0, got {self.learning_rate}, {self.seed}"
            )
        if self.steps < (self.init is None):
            raise ValueError(f"steps must be at least 1, or 0 to measure what --init holds; got {self.steps} and {self.init}")
        if self.guidance < 1:
            raise ValueError(f"guidance must be at least 1, which is none; got {self.guidance}")
        if not (0 <= self.synthetic <= 1 and 0 <= self.drop < 1):
            raise ValueError(f"synthetic must lie in [0, 1] and drop in [0, 1), got {self.synthetic} and {self.drop}")
        for where, applies, names in (
            ("with --videos", self.videos is not None, ("episodes", "probe_steps")),
            ("without --videos", self.videos is None, ("stride",)),
            ("with --procedural", self.procedural, ("synthetic",)),
        ):
            if applies and (idle := changed_options(self, names)):
                raise ValueError(f"{', '.join(idle)} would change nothing {where}: leave one out")
        if self.videos is not None and self.procedural:
            raise ValueError("--procedural trains on no videos; leave out one of --procedural and --videos")
        self.options  # noqa: B018 - to parse them at once

    @property
    def longest(self) -> int:
        """Frames of the longest clip."""
        return max(*self.contexts, 2) + self.horizon

    @property
    def options(self) -> dict[str, Any]:
        """What the backbone is built with."""
        return backbone_options(self.backbone, self.backbone_options)


# -------------------------------------------------------------------- the model


def first_predictor(config: VideoConfig, accelerator: Accelerator) -> VideoPredictor:
    """The model as it is before training. It has been shown grey clips, so that what it refuses is told before any are recorded.

    Raises:
        FileNotFoundError, ValueError, ImportError: it cannot be built, cannot be trained, or does not take such clips.
    """
    for option, off in (("offload", "none"), ("truncate", False)):
        if config.options.get(option, off) != off:
            raise ValueError(f'with "{option}" a model has no generative loss to learn by: leave it out of --backbone-options')
    kind = backbone_class(config.backbone)
    if not kind.generates():  # told before any weights are looked for
        raise ValueError(f"{kind.__name__} has no generative loss (spec.generative is False); choose another backbone")
    torch.manual_seed(config.seed)
    backbone = build_backbone(import_string(config.backbone), config.options, trusted=trusted_packages(config.backbone))
    predictor = VideoPredictor(backbone, drop=config.drop, draw=config.draw).to(accelerator.device)
    check_precision(predictor)
    for observed in config.contexts:
        try:
            with torch.no_grad():
                blank = torch.zeros(1, observed + config.horizon, 3, config.size, config.size, device=backbone.device)
                predictor(ClipBatch(blank, observed))
        except ValueError as error:
            raise ValueError(
                f"{config.backbone} is to predict {config.horizon} frames of {config.size} px from {observed} and refuses: "
                f"{error}; {remedy(config, backbone.spec)}"
            ) from error
    return predictor


def remedy(config: VideoConfig, spec: FeatureSpec) -> str:
    """What a user may do whose clips a backbone refuses."""
    longest, (fewest, most) = spec.span * (spec.max_horizon // spec.span), spec.contexts
    change = []
    if config.horizon % spec.span or config.horizon > longest:
        change.append(f"--horizon {min(spec.span * math.ceil(config.horizon / spec.span), longest)}")
    if not fewest <= min(config.contexts) <= max(config.contexts) <= most:
        change.append(f"--contexts from {fewest} to {most}")
    if config.size % spec.size_multiple:
        change.append(f"--size {spec.size_multiple * math.ceil(config.size / spec.size_multiple)}")
    return f"pass {', '.join(change) or 'other --contexts, --horizon or --size'}, or other --backbone-options"


# -------------------------------------------------------------------- clips


def check_lengths(config: VideoConfig) -> None:
    """Raise ValueError where simulated episodes are shorter than a clip."""
    if config.videos is not None:
        return
    from para_video.sims.metaworld_clips import ClipPlan  # needs the simulator

    if config.longest > ClipPlan.frames:
        raise ValueError(
            f"clips of {config.longest} frames ({config.horizon} of them future), and simulated episodes have {ClipPlan.frames}: "
            "lower --horizon or --contexts"
        )


def simulated(config: VideoConfig, *, held_out: bool) -> list[Demo]:
    """Episodes to train on, or of unseen scenes, recorded or read from the cache."""
    from para_video.sims.metaworld_clips import HELD_OUT_TASKS, TRAINING_TASKS, ClipPlan, cached_clips  # needs the simulator

    tasks = HELD_OUT_TASKS if held_out else TRAINING_TASKS
    plan = ClipPlan(config.held_out, first_seed=HELD_OUT_SEED) if held_out else ClipPlan(config.episodes)
    with tqdm(total=len(tasks) * plan.count, desc="unseen scenes" if held_out else "episodes", unit="episode") as bar:
        return cached_clips(tasks, plan, size=config.size, on_episode=bar.update)


def own_videos(config: VideoConfig) -> tuple[VideoFolder, VideoFolder]:
    """The user's files to train on, and those kept for measuring.

    Raises:
        ValueError: fewer than two files. VideoError: a file that cannot be read, or is shorter than a clip.
    """
    assert config.videos is not None
    training, kept = VideoFolder(config.videos), VideoFolder(config.videos)
    if len(training) < 2:
        raise ValueError(f"{config.videos} holds one video; put at least two there: one is kept for measuring")
    needed = (config.longest - 1) * config.stride + 1
    training.require(needed, "lower --horizon or --stride, or remove the file")
    kept.paths = training.paths[::10]
    training.paths = [path for path in training.paths if path not in set(kept.paths)]
    return training, kept


def sources(config: VideoConfig, episodes: Sequence[Demo] | VideoFolder) -> list[tuple[Source, float]]:
    """Where training clips come from, with shares. Synthetic ones differ from those of pretrain/circles.py's measurements."""
    seed = 2 * config.seed
    drawn: list[tuple[Source, float]] = [(circles(seed, config.size), 0.5), (motion(seed, config.size), 0.5)]
    if config.procedural:
        return drawn
    real = video_files(episodes, config.size, config.stride) if isinstance(episodes, VideoFolder) else recorded(episodes)
    return [(real, 1 - config.synthetic), *((source, share * config.synthetic) for source, share in drawn if config.synthetic)]


def unseen_clips(config: VideoConfig, held: Sequence[Demo] | VideoFolder, observed: int) -> tuple[Tensor, Tensor | None]:
    """Clips (n, observed + horizon, 3, H, W) uint8 to measure on, and the gripper's pixels (n, observed + horizon, 2) where known:
    one from each episode, from anywhere in it."""
    rng, frames = np.random.default_rng((config.seed, 7)), observed + config.horizon
    if isinstance(held, VideoFolder):
        count = max(config.held_out * len(held), 1)
        return torch.stack([held.frames(rng, frames, config.size, stride=config.stride) for _ in range(count)]), None
    long = [episode for episode in held if len(episode) >= frames]
    starts = [int(rng.integers(len(episode) - frames + 1)) for episode in long]
    shown = [episode.frames[k : k + frames].transpose(0, 3, 1, 2) for episode, k in zip(long, starts, strict=True)]
    pixels = [gripper_pixels(episode)[k : k + frames] for episode, k in zip(long, starts, strict=True)]
    return torch.from_numpy(np.stack(shown)), torch.stack(pixels)


# -------------------------------------------------------------------- measuring


def train_probe(config: VideoConfig, episodes: Sequence[Demo], out: Path, accelerator: Accelerator) -> VideoPolicy:
    """A network of its own that finds the gripper in single frames, trained on true frames of training scenes."""
    torch.manual_seed(config.seed)
    probe = PolicySpec(
        "backbones.mini:MiniVideo", "para_video.heads:ParaHead", (0.0,), head_options={"spec": ReadoutSpec()}
    ).build()

    def frames(seed: int, rank: int, processes: int) -> GripperFrames:
        return GripperFrames(episodes, batch_size=16, seed=seed, rank=rank)

    fit(
        probe,
        frames,
        FitConfig(config.probe_steps, 3e-3, seed=config.seed),
        folder=out / "probe",
        resume=config.resume,
        label="probe",
        accelerator=accelerator,
    )
    return probe.cpu()


def measure(
    config: VideoConfig, predictor: VideoPredictor, clips: Tensor, pixels: Tensor | None, probe: VideoPolicy | None, observed: int
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Figures of the futures of unseen clips, and strips of some: the true future above a draw and the mean of draws."""
    generator = torch.Generator().manual_seed(config.seed)
    predictor.cpu()
    guidance = config.guidance if config.drop else 1.0
    guided = ("guided",) * (guidance != 1)
    score = FutureScore.empty(("copy", "sample", "mean", "expected", *guided), config.horizon)
    errors: dict[str, list[Tensor]] = {}
    strips: list[np.ndarray] = []
    for first in tqdm(range(0, len(clips), 16), desc="unseen clips", unit="batch"):
        part = clips[first : first + 16].float() / 255
        seen, truth = part[:, :observed], part[:, observed:]
        found = futures(
            predictor.backbone, seen, config.horizon, samples=config.samples, steps=config.sampling_steps, generator=generator,
            guidance=guidance,
        )  # fmt: skip
        score.add(found, truth, seen[:, -1])
        if probe is not None and pixels is not None:
            read = {name: found[name] for name in ("sample", "expected", *guided)}
            for name, error in gripper_errors(probe, read, truth, pixels[first : first + 16], observed).items():
                errors.setdefault(name, []).append(error)
        strips.append(strip(seen[0, -1], {"true": truth[0], "one draw": found["sample"][0], "mean of draws": found["mean"][0]}))
    summary = {"observed": observed, "clips": len(clips), **score.summary()}
    if errors:
        medians = {name: torch.cat(parts).nanmedian(0).values.tolist() for name, parts in errors.items()}
        summary["gripper_error_px"] = {
            n: {str(k + 1): None if math.isnan(v) else v for k, v in enumerate(m)} for n, m in medians.items()
        }
    return summary, strips


@torch.no_grad()
def unseen_losses(config: VideoConfig, predictor: VideoPredictor, held: Sequence[Demo] | VideoFolder) -> dict[str, float]:
    """The mean loss on unseen clips by the number of observed frames, for backbones that draw no frames; of the same noise whenever
    it is asked for."""
    device, losses = predictor.backbone.device, {}
    generator = torch.Generator(device).manual_seed(config.seed)
    for observed in measured_contexts(config):
        clips, found = unseen_clips(config, held, observed)[0], []
        for part in tqdm(clips.split(config.batch_size), desc="unseen clips", unit="batch"):
            with autocast(device):
                loss = predictor.backbone.generative_loss(part.to(device) / 255, observed, generator=generator)
            found.append(float(loss) * len(part))
        losses[str(observed)] = sum(found) / len(clips)
    return losses


def measured_contexts(config: VideoConfig) -> list[int]:
    """Numbers of observed frames that are measured: one and two where they are trained, else the least."""
    return sorted({c for c in config.contexts if c <= 2} or {min(config.contexts)})


def strip(last: Tensor, rows: dict[str, Tensor]) -> np.ndarray:
    """The last observed frame (3, H, W), then futures (horizon, 3, H, W) in rows."""
    as_frame = lambda x: (x.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)  # noqa: E731
    lines = []
    for name, future in rows.items():
        frames = [as_frame(frame) for frame in (last, *future)]
        names = ["seen", *(f"{name} +{k + 1}" for k in range(len(future)))]
        lines.append(np.concatenate([label(upscale(f, 2), text) for f, text in zip(frames, names, strict=True)], 1))
    return np.concatenate(lines)


def show(figures: dict[str, Any], console: Console) -> None:
    """Print the figures of one number of observed frames."""
    horizons = list(figures["changing_pixels"])
    table = Table(
        title=f"Unseen scenes, {figures['observed']} observed, {figures['clips']} clips: pixels that change, by future frame"
    )
    for name in ("", *horizons):
        table.add_column(name, justify="right" if name else "left")
    for kind, unit, digits in (("psnr_db", "PSNR dB", 2), ("ssim", "SSIM", 3), ("gripper_error_px", "gripper px", 2)):
        for name, values in figures.get(kind, {}).items():
            table.add_row(f"{unit}: {name}", *("-" if values[k] is None else f"{values[k]:.{digits}f}" for k in horizons))
    console.print(table)


def model_card(config: VideoConfig, summary: dict[str, Any]) -> str:
    """What a user has to know of the weights beside it, in Markdown."""
    if config.procedural:
        data = "synthetic clips alone: circles that fetch things, jointed arms, sliding and spinning shapes"
    elif config.videos is not None:
        data = f"{1 - config.synthetic:.0%} clips of a folder of videos, the rest synthetic"
    else:
        data = (
            f"{1 - config.synthetic:.0%} clips of simulated Meta-World scenes ({config.episodes} episodes a task: experts, "
            "disturbed experts and random motion under random cameras, materials and lights), the rest synthetic (circles, arms, "
            "shapes)"
        )
    seen = " or ".join(map(str, sorted(set(config.contexts))))
    blurs = "" if "unseen_loss" in summary else "moving things blur; "  # there it draws no frames in which they could
    lines = [
        f"# A video model: {config.backbone}{', trained on synthetic clips alone' * config.procedural}",
        "",
        f"Predicts {config.horizon} frames of {config.size} px from {seen} seen ones.",
        "",
        f"    {summary['command']}",
        "",
        f"- Data: {data}.",
        f"- Training: {summary['steps']} steps of {config.batch_size} clips, {summary['training_seconds'] / 3600:.1f} hours.",
        f"- Limits: trained at one frame rate and image size; {blurs}beyond the trained horizon nothing is promised.",
        "",
    ]
    if "unseen_loss" in summary:
        before, after = summary["unseen_loss"]["before"], summary["unseen_loss"]["after"]
        lines += ["Loss on scenes that it never saw, before and after:", "", "| seen | before | after |", "| --- | --- | --- |"]
        lines += [f"| {n} | {before[n]:.4f} | {after[n]:.4f} |" for n in after]
        return "\n".join([*lines, ""])
    lines.append("What it says of scenes that it never saw, on the pixels that change (PSNR in dB, SSIM in brackets):")
    for figures in summary["unseen"].values():
        horizons = list(figures["changing_pixels"])
        lines += ["", f"| {figures['observed']} seen, {figures['clips']} clips | {' | '.join(f'+{k}' for k in horizons)} |"]
        lines.append("| --- |" + " --- |" * len(horizons))
        for name, psnr in figures["psnr_db"].items():
            cells = [f"{psnr[k]:.2f} ({figures['ssim'][name][k]:.2f})" if psnr[k] is not None else "" for k in horizons]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        for name, error in figures.get("gripper_error_px", {}).items():
            cells = ["" if error[k] is None else f"{error[k]:.2f} px" for k in horizons]
            lines.append(f"| gripper, {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "Unseen scenes, drawn without choosing: the true future, one draw, the mean of draws.",
        "",
        "![](samples.png)",
        "",
    ]
    return "\n".join(lines)


# -------------------------------------------------------------------- the story


def main(config: VideoConfig) -> dict[str, Any]:
    """Record, train, measure, draw, save; returns what summary.json holds."""
    begun, console = time.perf_counter(), Console()
    accelerator = make_accelerator()
    out = output_folder(config.out, "video", resume=config.resume, accelerator=accelerator)
    free = ("out", "resume", "held_out", "samples", "sampling_steps", "guidance")
    same_settings(out, config, free=free, accelerator=accelerator)
    per_process(config.batch_size, accelerator.num_processes)
    check_lengths(config)
    predictor = first_predictor(config, accelerator)
    same_source(out, predictor.backbone, [] if config.init is None else [config.init], accelerator)
    measured = measured_contexts(config) if hasattr(predictor.backbone, "sample") else []
    probed = max(measured, default=0) > 1
    if config.init is not None:
        console.print("taken from {}: {} of {} tensors".format(config.init, *initialise(predictor, config.init)))
    with accelerator.main_process_first():
        if config.videos is not None:
            training, held = own_videos(config)
        else:
            training = [] if config.procedural and not probed else simulated(config, held_out=False)
            held = simulated(config, held_out=True)

    before = None if measured else unseen_losses(config, predictor.eval(), held)

    def batches(seed: int, rank: int, processes: int) -> ClipBatches:
        share = per_process(config.batch_size, processes)
        return ClipBatches(
            sources(config, training), batch_size=share, contexts=config.contexts, horizon=config.horizon, seed=seed, rank=rank
        )

    summary: dict[str, Any] = {"steps": 0, "training_seconds": 0.0, "unseen": {}}
    if config.steps:
        fit_config = FitConfig(config.steps, config.learning_rate, seed=config.seed, ema=0.999)
        result = fit(predictor, batches, fit_config, folder=out, resume=config.resume, label="video", accelerator=accelerator)
        summary |= {"steps": result.steps, "training_seconds": result.seconds}
    predictor.eval()
    probe = train_probe(config, training, out, accelerator) if probed and not isinstance(training, VideoFolder) else None
    if not accelerator.is_main_process:
        return {}
    notes = {"made_by": "pretrain/video.py", "steps": config.steps, "seed": config.seed, "procedural": config.procedural}
    if isinstance(predictor.backbone, MiniVideo):
        predictor.backbone.shorten()
    if config.steps:
        save_backbone(predictor.backbone, import_string(config.backbone), config.options, out, notes)
    if before is not None:
        summary["unseen_loss"] = {"before": before, "after": unseen_losses(config, predictor, held)}
        console.print(f"loss on unseen clips by seen frames: {summary['unseen_loss']}")
    for observed in measured:
        clips, pixels = unseen_clips(config, held, observed)
        figures, strips = measure(config, predictor, clips, pixels, probe if observed > 1 else None, observed)
        summary["unseen"][str(observed)] = figures
        for i, picture in enumerate(strips[:8]):
            write_picture(out / f"unseen-{observed}-{i}.png", picture)
        write_picture(out / "samples.png", np.concatenate(strips[:3]))
        if curves := {
            name: known for name, v in figures["psnr_db"].items() if (known := {k: x for k, x in v.items() if x is not None})
        }:
            error_curve(
                out / f"psnr-{observed}.png",
                curves,
                title=f"Unseen scenes, {observed} observed",
                ylabel="PSNR on changing pixels (dB)",
            )
        show(figures, console)
    summary |= {"command": told_command("pretrain/video.py", config), "config": plain_settings(config), "versions": versions()}
    summary["seconds"] = None if config.resume else time.perf_counter() - begun  # before a cut nobody counted
    if config.steps:
        write_atomically(out / "README.md", model_card(config, summary).encode())
    write_atomically(out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    console.print(f"{time.perf_counter() - begun:.0f} s. Strips, curves, figures and checkpoint: {out}")
    return summary


if __name__ == "__main__":
    command_line(main, VideoConfig, __doc__ or "", RESUME)
