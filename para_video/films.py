"""Episodes to look at: what there was to see, larger than a policy sees it, and what the policy answered on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from para_video.agent import VideoPolicy
from para_video.figures import (
    DECODED,
    Frame,
    draw_points,
    label,
    outcome_words,
    overlay_heatmap,
    panel_grid,
    titled,
    upscale_points,
)
from para_video.heads import ParaHead, action_maps
from para_video.policy import DEFAULT_SCHEDULE, Actions, Env, Observation, Policy, Servo
from para_video.rollout import Episode, rollout


@dataclass(frozen=True)
class Decision:
    """What a policy answered.

    Args:
        step: control steps before it. points: (t, 2) pixels of the film at which its targets are seen. gripper: (t,) commands in
            [-1, 1], 1 closes. heat: (t, h, w) probabilities of a gripper in each cell; None of a policy without heatmaps.
    """

    step: int
    points: NDArray[np.float64]
    gripper: NDArray[np.float64]
    heat: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Film:
    """An episode.

    Args:
        frames: (n, H, W, 3) uint8, one at its beginning and one after every `stride` control steps. decisions: in order.
        episode: what became of it.
    """

    frames: NDArray[np.uint8]
    stride: int
    decisions: Sequence[Decision]
    episode: Episode

    def decision(self, index: int) -> Decision:
        """The latest one when a frame was taken."""
        return [each for each in self.decisions if each.step <= index * self.stride][-1]

    def answered(self, index: int) -> Frame:
        """A frame with what was last decided: all its heatmaps at once, if it has any, and the targets as a trajectory."""
        decision, frame = self.decision(index), self.frames[index]
        if decision.heat is not None:
            frame = overlay_heatmap(frame, (decision.heat / decision.heat.max((1, 2), keepdims=True)).max(0))
        return draw_points(frame, decision.points, style="trajectory", radius=frame.shape[1] / 96)

    def overlaid(self) -> NDArray[np.uint8]:
        """`answered` of all frames, (n, H, W, 3)."""
        return np.stack([self.answered(index) for index in range(len(self.frames))])


def shoot(
    env: Env,
    stage: Env,
    policy: Policy,
    servo: Servo,
    seed: int,
    *,
    context: int = 1,
    horizon: int = 150,
) -> Film:
    """Film an episode of `rollout`, a frame as often as targets are.

    Args:
        env: that the policy acts in and sees. stage: the same with square frames of the film's size; it repeats what is done.
        context, horizon: as of `rollout`.
    """
    stride = DEFAULT_SCHEDULE.frame_stride
    filmed, decisions = _Filmed(env, stage, stride), []

    def note(observation: Observation, actions: Actions) -> None:
        view = observation.views["main"]
        camera = view.camera[-1] if view.camera.batch_shape else view.camera
        pixels, _ = camera.project(actions.positions[0].float().cpu())
        points = upscale_points(pixels.numpy(), filmed.frames[0].shape[1] / view.clip.shape[-1])
        heat = None
        if isinstance(policy, VideoPolicy) and isinstance(policy.head, ParaHead):
            logits = action_maps(policy, *policy.inputs(observation)).heat[0].float()
            heat = logits.flatten(1).softmax(-1).view(logits.shape).cpu().numpy()
        decisions.append(Decision(filmed.steps, points, actions.gripper[0].double().cpu().numpy(), heat))

    episode = rollout(filmed, policy, servo, seed, context=context, horizon=horizon, on_decision=note)
    return Film(np.stack(filmed.frames), stride, decisions, episode)


class _Filmed:
    """An environment that another one follows, step by step, of which frames are kept."""

    def __init__(self, env: Env, stage: Env, stride: int) -> None:
        self._env, self._stage, self._stride = env, stage, stride
        self.frames: list[NDArray[np.uint8]] = []
        self.steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset(self, seed: int) -> None:
        self._env.reset(seed)
        self._stage.reset(seed)
        self.frames, self.steps = [self._frame()], 0

    def step(self, command: np.ndarray) -> Any:
        result = self._env.step(command)
        self._stage.step(command)
        self.steps += 1
        if self.steps % self._stride == 0:
            self.frames.append(self._frame())
        return result

    def _frame(self) -> NDArray[np.uint8]:
        clip = self._stage.observe().views["main"].clip
        return (clip[-1].permute(1, 2, 0) * 255).round().byte().numpy()


def moments(film: Film) -> dict[str, Decision]:
    """Four decisions that tell an episode's story, in order: the first, the one that first closes the gripper before the next, one
    midway from there to the end, the last. Where the gripper is not closed after the first, four spread evenly.

    Fewer where there are not as many.
    """
    decisions, last = film.decisions, len(film.decisions) - 1
    executed = DEFAULT_SCHEDULE.executed
    grasp = next((i for i, decision in enumerate(decisions) if (decision.gripper[:executed] > 0).any()), 0)
    if 0 < grasp < last:
        names = {"approach": 0, "grasp": grasp, "carry": (grasp + last + 1) // 2, "place": last}
    else:
        names = {f"decision {i + 1}": i for i in np.linspace(0, last, 4).round().astype(int)}
    seen = {index: name for name, index in names.items()}  # one that is two of them is called by the later
    return {seen[index]: decisions[index] for index in sorted(seen)}


# -------------------------------------------------------------------- sheets


def heatmap_sheet(film: Film, width: int = 900) -> Frame:
    """`moments` of a film of PARA as rows, its targets as columns: heatmap and decoded pixel, a cross, of each; (H, W, 3) uint8.

    All panels show the same square of the picture, which has all these targets in its middle.
    """
    told = moments(film)
    columns = len(film.decisions[0].points)
    side = (width - 4 * (columns - 1)) // columns
    x, y, window = _window(np.concatenate([decision.points for decision in told.values()]), film.frames.shape[1])
    rows = []
    for name, decision in told.items():
        if decision.heat is None:
            raise ValueError("a film of a policy without heatmaps has no sheet of them; film one whose head is ParaHead")
        frame, panels = film.frames[decision.step // film.stride], []
        for heat, point in zip(decision.heat, decision.points, strict=True):
            cut = Image.fromarray(overlay_heatmap(frame, heat))
            part = np.asarray(cut.resize((side, side), Image.Resampling.LANCZOS, (x, y, x + window, y + window)))
            place = (point + 0.5 - (x, y)) * side / window - 0.5
            panels.append(draw_points(part, [place], style="cross", radius=side / 20, colours=[DECODED]))
        ahead = f"the gripper in {film.stride}, {2 * film.stride}, ... {columns * film.stride} steps"
        rows.append(titled(panel_grid(panels, columns), f"{name}, step {decision.step}: {ahead}"))
    return panel_grid(rows, 1)


def _window(points: NDArray[np.float64], size: int) -> tuple[float, float, float]:
    """Left, top and side of a square inside a picture of `size` pixels, with points (n, 2) in its middle where that is possible."""
    low, high = points.min(0), points.max(0)
    side = float(np.clip(1.7 * (high - low).max(), size / 3, size))
    left, top = np.clip((low + high + 1) / 2 - side / 2, 0, size - side)
    return float(left), float(top), side


def rollout_sheet(films: Mapping[str, Film], columns: int = 5, width: int = 900) -> Frame:
    """Films by title as rows, each from its first frame to its last in even steps of its own time, with what was decided at each of
    them and its outcome above; (H, W, 3) uint8."""
    side, rows = (width - 4 * (columns - 1)) // columns, []
    for title, film in films.items():
        panels = []
        for index in np.linspace(0, len(film.frames) - 1, columns).round().astype(int):
            small = Image.fromarray(film.answered(index)).resize((side, side), Image.Resampling.LANCZOS)
            panels.append(label(np.asarray(small), f"step {index * film.stride}", place="bottom"))
        words, colour = outcome_words(film.episode.succeeded)
        rows.append(titled(panel_grid(panels, columns), f"{title}: {words}", background=colour))
    return panel_grid(rows, 1)
