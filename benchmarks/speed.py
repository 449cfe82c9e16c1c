"""How fast PARA decides and trains on this machine, as ratios to what the project promises for two CPU cores.

python benchmarks/speed.py
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from backbones import backbone_options, import_string, trusted_packages
from para_video.agent import Batch, RobotState, VideoPolicy
from para_video.camera import Camera, orbit
from para_video.checkpoint import PolicySpec
from para_video.heatmap import Bins
from para_video.policy import Observation, View
from para_video.readout import ReadoutSpec, Targets
from para_video.runs import command_line
from para_video.training import FitConfig, LossBalance, make_accelerator, make_optimizers, to_device

DECISION_MS, STEP_S = 30.0, 0.25
"""What is promised: a decision within 30 ms (median) at 128 px, a training step of batch 8 within 0.25 s."""


@dataclass(frozen=True)
class SpeedConfig:
    """Time one decision and one training step."""

    backbone: str = "mini"
    """Name in the catalogue, or package.module:Class."""
    size: int = 128
    """Side of the frames in pixels."""
    batch_size: int = 8
    """Clips in a training step."""
    repeats: int = 30
    """Timed repetitions, after 5 untimed ones."""
    out: Path | None = None
    """Also write the figures to this JSON file."""


def timed(run: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of `repeats` runs, after five that are not counted."""
    for _ in range(5):
        run()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return seconds


def training_step(policy: VideoPolicy, batch: Batch) -> Callable[[], None]:
    """Forward, backward and the optimisers' step."""
    accelerator, balance = make_accelerator(), LossBalance(0.98)
    model, *optimizers = accelerator.prepare(policy, *make_optimizers(policy, FitConfig()))

    def step() -> None:
        losses = model(batch)
        model.zero_grad()
        accelerator.backward(balance.total(losses, {name: float(loss.detach()) for name, loss in losses.items()}))
        for optimizer in optimizers:
            optimizer.step()

    return step


def main(config: SpeedConfig) -> dict[str, float]:
    """Measure, print, and return the figures."""
    torch.manual_seed(0)
    spec = PolicySpec(
        import_string(config.backbone),
        "para_video.heads:ParaHead",
        backbone_options=backbone_options(config.backbone),
        head_options={"spec": ReadoutSpec(z=Bins(-0.2, 0.2, 32), relative=True)},
    )
    device = make_accelerator().device
    policy = spec.build(trusted=trusted_packages(config.backbone)).to(device)
    camera = Camera.from_fov(45.0, (config.size, config.size), orbit(135, -40, 1.15, (0, 0.65, 0.08)).float())
    clip = torch.rand(1, 3, config.size, config.size)
    observation = Observation({"main": View(clip, camera)}, torch.eye(4), 1.0)
    n, t = config.batch_size, len(spec.times)
    positions = torch.rand(n, t, 3) * 0.2 + torch.tensor([-0.1, 0.55, 0.0])
    state = RobotState(Camera.stack([camera] * n), positions[:, 0], torch.eye(3).expand(n, 3, 3), torch.ones(n))
    targets = Targets(
        state.camera.project(positions)[0], torch.ones(n, t, dtype=torch.bool), positions=positions, gripper=torch.ones(n, t)
    )
    batch = to_device(Batch(clip.expand(n, 1, 3, -1, -1).contiguous(), targets, state), device)
    with FlopCounterMode(display=False) as flops:
        policy.eval().act(observation)
    decision = 1e3 * np.array(timed(lambda: policy.act(observation), config.repeats))
    step = np.array(timed(training_step(policy.train(), batch), config.repeats))
    figures = {
        "gflop_per_decision": flops.get_total_flops() / 1e9,
        "decision_ms_p50": float(np.median(decision)),
        "decision_ms_p95": float(np.percentile(decision, 95)),
        "decision_ratio": float(np.median(decision) / DECISION_MS),
        "step_s_p50": float(np.median(step)),
        "step_ratio": float(np.median(step) / STEP_S * 8 / n),
    }
    p50, p95, ratio = (figures[f"decision_{part}"] for part in ("ms_p50", "ms_p95", "ratio"))
    print(f"decision: {p50:.1f} ms (p95 {p95:.1f}) = {ratio:.2f} x {DECISION_MS:g} ms")
    print(f"training step of {n}: {figures['step_s_p50']:.3f} s = {figures['step_ratio']:.2f} x {STEP_S:g} s per 8 clips")
    print(f"{figures['gflop_per_decision']:.2f} GFLOP a decision, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if config.out is not None:
        config.out.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


if __name__ == "__main__":
    command_line(main, SpeedConfig, __doc__ or "")
