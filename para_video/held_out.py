"""What policies answer on clips and demonstrations that they were not trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from para_video.agent import Batch, VideoPolicy
from para_video.batches import DemoBatches, circle_batch
from para_video.circles import CircleVideos, constant_velocity
from para_video.demos import Demo
from para_video.heads import ParaHead
from para_video.heatmap import cells_to_pixels, window_soft_argmax
from para_video.policy import DEFAULT_SCHEDULE
from para_video.precision import autocast
from para_video.training import to_device


def circle_errors(policy: VideoPolicy, circles: CircleVideos, count: int) -> dict[str, Tensor]:
    """What the policy finds on clips of a set that it was not trained on.

    Returns:
        error and constant_velocity (count, t) pixels, NaN where the circle is not visible (and, for constant velocity, on
        observed frames); visible (count, t).
    """
    errors: list[Tensor] = []
    guesses: list[Tensor] = []
    seen: list[Tensor] = []
    for first in tqdm(range(0, count, 32), desc="held-out clips", unit="batch"):
        batch = circle_batch(circles, range(first, min(first + 32, count)), circles.observed, planar=True)
        pixels = find_circles(policy, batch)[0]
        truth, visible = batch.targets.pixels, batch.targets.visible
        guess = torch.full_like(truth, torch.nan)
        guess[:, circles.observed :] = constant_velocity(truth[:, : circles.observed], truth.shape[1] - circles.observed)
        for column, found in ((errors, pixels), (guesses, guess)):
            column.append((found - truth).norm(dim=-1).masked_fill(~visible, torch.nan))
        seen.append(visible)
    return {"error": torch.cat(errors), "constant_velocity": torch.cat(guesses), "visible": torch.cat(seen)}


@torch.no_grad()
def find_circles(policy: VideoPolicy, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Pixels (b, t, 2), and PARA's heatmaps (b, t, h, w) of probabilities, at the batch's ascending times; the past is asked for
    apart, as most training batches ask for the present and the future alone."""
    device, times, found = policy.backbone.device, batch.times, []
    size = (batch.clip.shape[-2], batch.clip.shape[-1])
    assert times is not None
    heatmaps = isinstance(policy.head, ParaHead)
    state = None if batch.state is None else batch.state.to(device)
    with autocast(device):
        for asked in (times[times < 0], times[times >= 0]):
            if len(asked):
                features, query = policy.features(batch.clip.to(device), asked.to(device), state)
                if heatmaps:
                    found.append(policy.head(features, times=query.times, size=query.size).heat.float().cpu())
                else:
                    assert batch.state is not None and state is not None
                    answer = policy.head.predict(features, query, state)
                    found.append(batch.state.camera.project(answer.positions.float().cpu())[0])
    if not heatmaps:
        return torch.cat(found, 1), None
    heat = torch.cat(found, 1)
    grid = (heat.shape[-2], heat.shape[-1])
    return cells_to_pixels(window_soft_argmax(heat), grid, size), heat.flatten(-2).softmax(-1).unflatten(-1, grid)


def demo_errors(policy: VideoPolicy, demos: Sequence[Demo], context: int = 1) -> dict[str, float]:
    """Answers on `context` observed frames against targets: median pixels and millimetres over all targets, and the share of right
    gripper commands."""
    schedule, device = DEFAULT_SCHEDULE, policy.backbone.device
    batches = DemoBatches(demos, batch_size=1, chunk=schedule.chunk, stride=schedule.frame_stride, context=context)
    pixels, metres, right = [], [], []
    for first in tqdm(range(0, len(batches.steps), 64), desc="unseen demonstrations", unit="batch"):
        batch = batches.gather(batches.steps[first : first + 64 : 2])
        assert batch.state is not None and batch.targets.positions is not None and batch.targets.gripper is not None
        answer = to_device(policy.predict(batch.clip.to(device), batch.state.to(device)), torch.device("cpu"))
        assert answer.pixels is not None
        known = batch.targets.labelled if batch.targets.labelled is not None else torch.ones_like(batch.targets.visible)
        pixels.append((answer.pixels - batch.targets.pixels).norm(dim=-1)[known])
        metres.append((answer.positions - batch.targets.positions).norm(dim=-1)[known])
        right.append((answer.gripper.sign() == batch.targets.gripper.sign())[known].float())
    return {
        "px": float(torch.cat(pixels).median()),
        "mm": 1e3 * float(torch.cat(metres).median()),
        "gripper": float(torch.cat(right).mean()),
    }
