"""Pretrain a heatmap head (and its backbone) on synthetic circles that fetch objects.

    python pretrain/circles.py

A circle with two fingers, the stand-in for a gripper, reaches for an object and carries it to a goal. The policy sees four frames
and marks the circle in them and in the six that follow. The checkpoint is a start for robots: python finetune/robot.py --init.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from backbones import backbone_options, import_string, shipped_weights, trusted_packages
from para_video.agent import VideoPolicy
from para_video.baselines import HEADS, ActionStatistics
from para_video.batches import CircleBatches, circle_batch
from para_video.checkpoint import PolicySpec, initialise, save_policy
from para_video.circles import CircleVideos
from para_video.figures import (
    draw_points,
    error_curve,
    heatmap_strip,
    label,
    overlay_heatmap,
    upscale,
    upscale_points,
    write_picture,
)
from para_video.held_out import circle_errors, find_circles
from para_video.readout import ReadoutSpec
from para_video.runs import (
    RESUME,
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
from para_video.training import FitConfig, fit, make_accelerator, write_atomically
from para_video.video import write_video

PCK_PX = (2, 4, 8)
"""PCK is the share of visible circles found within these distances in pixels."""


@dataclass(frozen=True)
class CirclesConfig:
    """Pretrain on circle tracking."""

    out: Path | None = None
    """Where everything is written; default the first free of runs/circles, runs/circles-2, ..."""
    backbone: str = "mini"
    """Name in the catalogue (mini, efficientnet-lite0, svd, ...: backbones/__init__.py has it), or package.module:Class."""
    backbone_options: Annotated[str, tyro.conf.arg(metavar="JSON")] = "{}"
    """Of the backbone, such as '{"scale": 3}' or '{"source": "folder", "dtype": "bfloat16", "lora_rank": 16}'."""
    policy: Literal[*HEADS] = "para"  # type: ignore[valid-type]
    """PARA's head, or a baseline's, which is told where the circle is in the last frame that it sees."""
    train: Literal["all", "heads"] = "all"
    """Train backbone and head, or the head alone on a backbone that has been trained already."""
    init: Path | None = None
    """Checkpoint folder to start from, on top of the backbone's weights; those of the same name and shape are taken."""
    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 8
    """Clips per step, over all processes."""
    learning_rate: float = 3e-3
    """Peak learning rate."""
    observed: int = 4
    """Frames that the policy sees."""
    future: int = 6
    """Frames after them in which it marks the circle too."""
    size: int = 128
    """Side of the square frames in pixels."""
    videos: Path | None = None
    """Folder of videos whose frames are the backgrounds; default procedural textures."""
    held_out: int = 256
    """Clips that the figures are measured on; none of them is trained on."""
    workers: int = 0
    """Extra processes that draw clips; worth it where there are more than two cores."""
    seed: int = 0
    """Of weights, training clips and held-out clips."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with an interrupted run in --out, whose options are taken."""

    def __post_init__(self) -> None:
        if self.observed < 2 or min(self.future, self.held_out, self.steps, self.batch_size) < 1:
            raise ValueError(
                "observed must be at least 2 (two frames have a velocity); future, held_out, steps and batch_size at least 1; "
                f"got {self.observed}, {self.future}, {self.held_out}, {self.steps} and {self.batch_size}"
            )
        if self.learning_rate <= 0 or self.seed < 0:
            raise ValueError(f"learning_rate must be positive and seed not negative, got {self.learning_rate} and {self.seed}")
        backbone_options(self.backbone, self.backbone_options)  # to tell at once what is wrong with them


def circle_policy(config: CirclesConfig, circles: CircleVideos) -> PolicySpec:
    """What is trained; a baseline's targets are normalised by what circles do."""
    head, options = HEADS[config.policy]
    options = {"spec": ReadoutSpec(), **options}
    if config.policy != "para":
        options["statistics"] = ActionStatistics.of_batch(circle_batch(circles, range(256), 1, planar=True))
    return PolicySpec(
        backbone=import_string(config.backbone),
        head=head,
        times=tuple(float(t) for t in range(1, config.future + 1)),
        context=config.observed,
        backbone_options=backbone_options(config.backbone, config.backbone_options),
        head_options=options,
    )


def summarise(errors: dict[str, Tensor], observed: int) -> dict[str, Any]:
    """Medians and PCK by horizon: "0" is the last observed frame, "-1" the one before, "3" the third future one."""
    error, guess = errors["error"], errors["constant_velocity"]
    names = [str(t - observed + 1) for t in range(error.shape[1])]
    pck = {name: {str(px): _share(error[:, t] <= px, error[:, t]) for px in PCK_PX} for t, name in enumerate(names)}
    return {
        "median_error_px": {name: float(error[:, t].nanmedian()) for t, name in enumerate(names)},
        "median_error_px_observed": float(error[:, :observed].nanmedian()),
        "constant_velocity_px": {name: float(guess[:, t].nanmedian()) for t, name in enumerate(names) if t >= observed},
        "pck": pck,
        "pck_thresholds_px": list(PCK_PX),
        "visible_share": float(errors["visible"].float().mean()),
    }


def _share(hit: Tensor, error: Tensor) -> float:
    known = ~error.isnan()
    return float((hit & known).sum() / known.sum().clamp_min(1))


def draw(policy: VideoPolicy, circles: CircleVideos, folder: Path, clips: int = 6) -> None:
    """Overlay pictures of held-out clips, and a short video of them."""
    film = []
    for i in range(clips):
        clip, batch = circles[i], circle_batch(circles, [i], circles.observed)
        times = batch.times
        pixels, heat = find_circles(policy, batch)
        frames = clip.video.permute(0, 2, 3, 1).numpy()
        truth = clip.centres.masked_fill(~clip.visible[:, None], torch.nan).numpy()
        names = [f"seen {t:+.0f}" if t <= 0 else f"predicted +{t:.0f}" for t in times]
        strip = heatmap_strip(frames, heat[0].numpy(), pixels[0].numpy(), truth=truth, labels=names, columns=5)
        write_picture(folder / ("samples.png" if i == 0 else f"overlay-{i}.png"), strip)
        shown = [frames[min(t, circles.observed - 1)] for t in range(len(frames))]  # the future is not shown to the policy
        for frame, h, p, t, name in zip(shown, heat[0].numpy(), pixels[0].numpy(), truth, names, strict=True):
            big = upscale(overlay_heatmap(frame, h), 3)
            big = draw_points(big, upscale_points(t[None], 3), style="ring", radius=9)
            film.append(label(draw_points(big, upscale_points(p[None], 3), style="cross", radius=9), name))
    write_video(folder / "overlay.mp4", np.stack(film), fps=4)


def model_card(config: CirclesConfig, summary: dict[str, Any]) -> str:
    """What a user has to know of the weights beside it, in Markdown."""
    frames = [name for name in summary["median_error_px"] if int(name) >= 0]
    rows = {config.policy: summary["median_error_px"], "constant velocity": summary["constant_velocity_px"]}
    picture = ["A held-out clip: rings are the truth, crosses what it says.", "", "![](samples.png)", ""]
    picture = picture if config.policy == "para" else []
    trained = "head on a frozen" if config.train == "heads" else "head and"
    return "\n".join([
        f"# A {config.policy} policy on circles: {trained} {config.backbone}",
        "",
        f"Finds a circle with two fingers that fetches things, in {config.observed} seen frames of {config.size} px and in the "
        f"{config.future} that follow. A start for robot policies on the same backbone.",
        "",
        f"    {summary['command']}",
        "",
        f"- Data: synthetic clips before {'procedural textures' if config.videos is None else 'frames of a folder of videos'}.",
        f"- Training: {summary['steps']} steps of {config.batch_size} clips, {summary['training_seconds'] / 3600:.2f} hours.",
        "- Limits: it knows circles, not robots; it says nothing of heights or of a gripper's opening.",
        "",
        f"Median error in pixels on {config.held_out} held-out clips, by frame (0 is the last one seen):",
        "",
        f"| | {' | '.join(frames)} |",
        "| --- |" + " --- |" * len(frames),
        *(f"| {name} | {' | '.join(f'{row[k]:.2f}' if k in row else '' for k in frames)} |" for name, row in rows.items()),
        "",
        *picture,
    ])  # fmt: skip


def show(summary: dict[str, Any], console: Console) -> None:
    """Print the figures as a table."""
    table = Table(title="Held-out clips: where is the circle? Pixels of error (median) by frame")
    for name in ("frame", "error px", "constant velocity px", *(f"within {px} px" for px in PCK_PX)):
        table.add_column(name, justify="right")
    for name, error in summary["median_error_px"].items():
        guess = summary["constant_velocity_px"].get(name)
        found = [f"{summary['pck'][name][str(px)]:.0%}" for px in PCK_PX]
        table.add_row(name, f"{error:.2f}", "" if guess is None else f"{guess:.2f}", *found)
    console.print(table)


def main(config: CirclesConfig) -> dict[str, Any]:
    """Train, measure, draw, save; returns what summary.json holds."""
    begun, console = time.perf_counter(), Console()
    accelerator = make_accelerator()
    out = output_folder(config.out, "circles", resume=config.resume, accelerator=accelerator)
    same_settings(out, config, free=("out", "resume", "held_out", "workers"), accelerator=accelerator)
    clips = {"size": config.size, "observed": config.observed, "future": config.future, "backgrounds": config.videos}
    training, unseen = CircleVideos(seed=2 * config.seed, **clips), CircleVideos(seed=2 * config.seed + 1, **clips)
    per_process(config.batch_size, accelerator.num_processes)
    spec = circle_policy(config, training)
    check_processes(spec.backbone_options, accelerator.num_processes)
    torch.manual_seed(config.seed)
    policy = spec.build(trusted=trusted_packages(config.backbone), frozen=config.train == "heads")
    starts = [folder for folder in (shipped_weights(config.backbone), config.init) if folder is not None]
    same_source(out, policy.backbone, starts, accelerator)
    try_out(policy.backbone, (1 - config.observed, *spec.times), config.observed, config.size)
    if config.train == "heads" and not (starts or "source" in spec.backbone_options):
        console.print(f"{config.backbone} is frozen with random weights: pass --init", style="yellow")
    for folder in starts:
        console.print("taken from {}: {} of {} tensors".format(folder, *initialise(policy, folder)))

    def batches(seed: int, rank: int, processes: int) -> CircleBatches:
        share = per_process(config.batch_size, processes)
        return CircleBatches(training, batch_size=share, planar=config.policy != "para", rank=rank, processes=processes)

    fit_config = FitConfig(config.steps, config.learning_rate, seed=config.seed, workers=config.workers)
    result = fit(policy, batches, fit_config, folder=out, resume=config.resume, label="circles", accelerator=accelerator)
    if not accelerator.is_main_process:
        return {}
    save_policy(policy, spec, out, {"made_by": "pretrain/circles.py", "steps": result.steps, "seed": config.seed})
    summary = summarise(circle_errors(policy, unseen, config.held_out), config.observed)
    if config.policy == "para":
        draw(policy, unseen, out)
    curves = {config.policy: summary["median_error_px"], "constant velocity": summary["constant_velocity_px"]}
    error_curve(out / "error.png", curves, title="Circle tracking: held-out clips", ylabel="median error (px)")
    summary |= {
        "steps": result.steps,
        "training_seconds": result.seconds,
        "seconds": None if config.resume else time.perf_counter() - begun,  # before a cut nobody counted
        "command": told_command("pretrain/circles.py", config),
        "config": plain_settings(config),
        "versions": versions(),
    }
    write_atomically(out / "README.md", model_card(config, summary).encode())
    write_atomically(out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    show(summary, console)
    console.print(f"{time.perf_counter() - begun:.0f} s. Pictures, video, figures and checkpoint: {out}")
    return summary


if __name__ == "__main__":
    command_line(main, CirclesConfig, __doc__ or "", RESUME)
