"""What holds a policy back: closed loop with parts of its answers replaced by the truth, and its errors at the states it visits.

The truth is what the scripted expert would do from the present state (`ReplanningOracle.plan`). An answer has four parts:

- pixel: where a target is seen. PARA then reads everything else at the true pixel.
- height (or the distance along the ray): what lifts a pixel to a point.
- gripper: the command at each target.
- servo: how the way to a target is shared out among control steps. The sum stays the one that leads to the target, its
  distribution is the expert's own.

With the first three replaced a policy is the re-planning oracle, with all four it is the expert.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from para_video.agent import VideoPolicy
from para_video.camera import Camera
from para_video.demos import ScriptedEnv
from para_video.heads import ParaHead, action_maps
from para_video.policy import DEFAULT_SCHEDULE, Actions, Observation, Policy, Schedule, Servo
from para_video.readout import Readout, ReadoutSpec
from para_video.rollout import ExpertPlan, ReplanningOracle

PARTS = ("pixel", "height", "gripper", "servo")
RUNGS: tuple[tuple[str, ...], ...] = ((), *((part,) for part in PARTS), *(PARTS[:n] for n in range(2, len(PARTS) + 1)))
"""What is replaced: nothing, each part alone, then one after the other."""


class Rung:
    """A policy and its servo with parts of the answer replaced by the truth: `rollout(env, rung, rung, seed)`.

    Args:
        env: the one that the rollout steps; its commands are (dx, dy, dz, gripper). policy: what acts: `trained`, or around it.
        trained: whose head says how pixels are lifted, and reads at the true pixel if it is PARA's. servo: as of `rollout`.
        parts: of `PARTS`.

    Raises:
        ValueError: an unknown part.
    """

    def __init__(
        self,
        env: ScriptedEnv,
        policy: Policy,
        trained: VideoPolicy,
        servo: Servo,
        parts: Collection[str],
        schedule: Schedule = DEFAULT_SCHEDULE,
    ) -> None:
        if unknown := set(parts) - set(PARTS):
            raise ValueError(f"unknown parts {sorted(unknown)}; choose from {', '.join(PARTS)}")
        self.env, self.policy, self.trained, self.servo, self.parts = env, policy, trained, servo, frozenset(parts)
        self.oracle, self.errors = ReplanningOracle(env, schedule), Errors(schedule.executed)
        self._plan: ExpertPlan | None = None
        self._step = 0

    def reset(self) -> None:
        self.policy.reset()

    @torch.no_grad()
    def act(self, observation: Observation) -> Actions:
        """The policy's answer with the truth in its place for some parts. What the answer was before goes into `errors`."""
        plan = self.oracle.plan()
        self._plan, self._step = plan, 0
        camera, spec = self.env.camera, self.trained.head.spec
        answer = self.policy.act(observation)
        self.errors.add(answer, plan, camera, spec)
        if "pixel" in self.parts and self.policy is self.trained and isinstance(self.trained.head, ParaHead):
            clip, state = self.trained.inputs(observation)
            true = camera.project(plan.points)[0].to(clip.device)
            answer = Readout(spec).decode(action_maps(self.trained, clip, state), state.camera, pixels=true[None])
        return substituted(answer, plan, camera, spec, self.parts)

    def commands(self, target: np.ndarray, gripper: float, position: np.ndarray, steps: int) -> np.ndarray:
        """See `Servo`."""
        commands = self.servo.commands(target, gripper, position, steps)
        if "servo" not in self.parts:
            return commands
        assert self._plan is not None
        expert = self._plan.commands[self._step : self._step + steps]
        self._step += steps
        commands[:, :3] = np.clip(commands[:, :3] + expert[:, :3] - expert[:, :3].mean(0), -1, 1)
        if "gripper" in self.parts:
            commands[:, 3] = expert[:, 3]
        return commands


def substituted(answer: Actions, plan: ExpertPlan, camera: Camera, spec: ReadoutSpec, parts: Collection[str]) -> Actions:
    """An answer (batch 1) with pixel, height and gripper of a plan in place of its own, as far as `parts` names them.

    Points are projected by an unbatched camera and lifted again; where a ray misses its height, the answer's own point stays.
    """
    own, camera = answer.positions.cpu(), camera[None]
    pixels, z = coordinates(own, camera, spec)
    true_pixels, true_z = coordinates(plan.points[None], camera, spec)
    pixels, z = true_pixels if "pixel" in parts else pixels, true_z if "height" in parts else z
    lifted = spec.raise_pixels(pixels, z, camera) if {"pixel", "height"} & set(parts) else own
    return replace(
        answer,
        positions=torch.where(lifted.isfinite(), lifted, own),
        gripper=plan.gripper[None] if "gripper" in parts else answer.gripper.cpu(),
    )


def coordinates(points: Tensor, camera: Camera, spec: ReadoutSpec) -> tuple[Tensor, Tensor]:
    """Pixels (b, t, 2) and height or distance (b, t) of world points (b, t, 3)."""
    return camera.project(points)[0], spec.z_of(points, camera)


@dataclass
class Errors:
    """What a policy's answers are off by, over the targets that are carried out.

    Args:
        executed: targets of a decision. px, mm: of the image position, and in space. height_mm: of the height (or distance).
        gripper: 1 where the gripper is told the other way.
    """

    executed: int
    px: list[float] = field(default_factory=list)
    height_mm: list[float] = field(default_factory=list)
    gripper: list[float] = field(default_factory=list)
    mm: list[float] = field(default_factory=list)

    def add(self, answer: Actions, plan: ExpertPlan, camera: Camera, spec: ReadoutSpec) -> None:
        """Compare an answer (batch 1) with a plan, seen by an unbatched camera."""
        n, camera = self.executed, camera[None]
        own, true = answer.positions[:, :n].cpu().float(), plan.points[None, :n]
        (pixels, z), (true_pixels, true_z) = (coordinates(points, camera, spec) for points in (own, true))
        self.px += (pixels - true_pixels).norm(dim=-1)[0].tolist()
        self.height_mm += (1e3 * (z - true_z).abs())[0].tolist()
        self.gripper += (answer.gripper[0, :n].cpu().sign() != plan.gripper[:n].sign()).float().tolist()
        self.mm += (1e3 * (own - true).norm(dim=-1))[0].tolist()

    def summary(self) -> dict[str, float]:
        """Medians and 90th percentiles, and the share of gripper commands that are told the other way."""
        found: dict[str, float] = {}
        for name in ("px", "height_mm", "mm"):
            found[name], found[f"{name}_p90"] = np.percentile(getattr(self, name), [50, 90]).round(3).tolist()
        return {**found, "gripper": round(float(np.mean(self.gripper)), 4), "targets": len(self.px)}
