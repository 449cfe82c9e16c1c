"""Closed-loop evaluation: rollouts, paired seeds, intervals, and the checks that bound what a policy could reach.

The checks are policies too, so that they meet the same servo and schedule: `ReplanningOracle` (a policy that knows the
expert's future exactly) and `Replay` (a policy that does not look). If the oracle fails, no policy's figure means anything;
if the replay succeeds, the task needs no eyes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from para_video.camera import Camera
from para_video.demos import EVALUATION_SEED, Demo, ScriptedEnv, future_targets
from para_video.policy import DEFAULT_SCHEDULE, Actions, Env, Observation, Policy, Schedule, Servo, StepResult, View
from para_video.statistics import wilson_interval

HELD_STEPS = 10
"""A success is held when it lasts for this many steps."""

RoundTrip = Callable[[Tensor, Tensor, Camera, Tensor], tuple[Tensor, Tensor]]
"""(points (t, 3), gripper (t,), camera, gripper point (3,)) -> the same after what a read-out does to them."""


@dataclass(frozen=True)
class Episode:
    """What became of one rollout.

    Args:
        seed: of the environment. succeeded_at: step of the first success, None for a failure. held: whether the success
            lasted for `HELD_STEPS` steps. steps: carried out. act_ms: what each decision took.
    """

    seed: int
    succeeded_at: int | None
    held: bool
    steps: int
    act_ms: tuple[float, ...] = ()

    @property
    def succeeded(self) -> bool:
        return self.succeeded_at is not None


@dataclass(frozen=True)
class Cell:
    """Episodes of one policy in one setting: one cell of a table."""

    episodes: tuple[Episode, ...]

    @property
    def successes(self) -> int:
        return sum(episode.succeeded for episode in self.episodes)

    @property
    def held(self) -> int:
        return sum(episode.held for episode in self.episodes)

    @property
    def rate(self) -> float:
        return self.successes / len(self.episodes)

    @property
    def wilson95(self) -> tuple[float, float]:
        return wilson_interval(self.successes, len(self.episodes))

    @property
    def act_ms(self) -> tuple[float, float] | None:
        """Median and 95th percentile of a decision's milliseconds; None where nothing was decided."""
        taken = [ms for episode in self.episodes for ms in episode.act_ms]
        return (float(np.percentile(taken, 50)), float(np.percentile(taken, 95))) if taken else None

    def summary(self) -> dict[str, Any]:
        """The cell as JSON values, with the outcome of every seed."""
        return {
            "successes": self.successes,
            "held": self.held,
            "episodes": len(self.episodes),
            "rate": self.rate,
            "wilson95": list(self.wilson95),
            "act_ms": list(self.act_ms) if self.act_ms else None,
            "succeeded_at": {str(episode.seed): episode.succeeded_at for episode in self.episodes},
        }


def evaluation_seeds(count: int) -> range:
    """The seeds that every policy is evaluated on; no demonstration comes from them."""
    return range(EVALUATION_SEED, EVALUATION_SEED + count)


def horizon_for(env: ScriptedEnv, *, seeds: Iterable[int] = range(50), limit: int = 250) -> int:
    """Steps that every policy is given: twice what the expert took where it took longest, at least 150.

    Args:
        env: of the task. seeds: that the expert is tried on; none of them is evaluated on. limit: steps after which it failed.
    """
    took = (expert_rollout(env, seed, horizon=limit).succeeded_at for seed in seeds)
    return max(150, 2 * max((steps for steps in took if steps is not None), default=0))


# -------------------------------------------------------------------- rollouts


def rollout(
    env: Env,
    policy: Policy,
    servo: Servo,
    seed: int,
    schedule: Schedule = DEFAULT_SCHEDULE,
    *,
    context: int = 1,
    horizon: int = 150,
    on_decision: Callable[[Observation, Actions], None] | None = None,
) -> Episode:
    """One episode. It ends `HELD_STEPS` steps after the first success, or at the horizon without one.

    Args:
        context: frames in the clip that the policy gets, `schedule.frame_stride` steps apart, the first one repeated while
            there are fewer. 0 gives it no views, and renders nothing.
        horizon: steps within which the task has to succeed.
        on_decision: sees each observation and what was decided, for films and figures.

    Raises:
        ValueError: the policy answered with fewer targets than are executed, or with targets that are no numbers.
    """
    env.reset(seed)
    policy.reset()
    verdict, act_ms = _Verdict(horizon), []
    seen: deque[Observation] = deque(maxlen=max(context, 1))
    while True:
        seen.append(env.observe(views=context > 0))
        observation = _with_history(list(seen), context)
        begin = time.perf_counter()
        actions = policy.act(observation)
        targets, gripper = _executed(actions, schedule)  # which waits for a device that is not done yet
        act_ms.append(1e3 * (time.perf_counter() - begin))
        if on_decision is not None:
            on_decision(observation, actions)
        for segment in range(len(targets)):
            if segment > 0 and len(targets) - segment < context:  # the next decision's clip reaches back to here
                seen.append(env.observe())
            for command in servo.commands(targets[segment], gripper[segment], env.position, schedule.frame_stride):
                if verdict.add(env.step(command)):
                    return verdict.episode(seed, act_ms)


def expert_rollout(env: ScriptedEnv, seed: int, *, horizon: int = 150) -> Episode:
    """One episode of the scripted expert's own commands, by the rules of `rollout`; nothing is rendered."""
    env.reset(seed)
    verdict = _Verdict(horizon)
    while not verdict.add(env.step(env.expert_action())):
        pass
    return verdict.episode(seed)


def evaluate(run: Callable[[int], Episode], seeds: Sequence[int], *, on_episode: Callable[[Episode], None] | None = None) -> Cell:
    """Run an episode of each seed: `evaluate(lambda seed: rollout(env, policy, servo, seed), evaluation_seeds(50))`.

    Policies that are given the same seeds meet the same episodes, so that their outcomes are paired.
    """
    episodes = []
    for seed in seeds:
        episodes.append(run(seed))
        if on_episode is not None:
            on_episode(episodes[-1])
    return Cell(tuple(episodes))


class _Verdict:
    """Counts steps and successes, and says when an episode is over."""

    def __init__(self, horizon: int) -> None:
        self.horizon, self.steps, self.lasting, self.held = horizon, 0, 0, False
        self.succeeded_at: int | None = None

    def add(self, result: StepResult) -> bool:
        """Take one more step into account; True when the episode is over."""
        self.steps += 1
        self.lasting = self.lasting + 1 if result.success else 0
        self.held |= self.lasting >= HELD_STEPS
        if result.success and self.succeeded_at is None:
            self.succeeded_at = self.steps
        last = self.horizon if self.succeeded_at is None else self.succeeded_at + HELD_STEPS
        return result.ended or self.steps >= last

    def episode(self, seed: int, act_ms: Sequence[float] = ()) -> Episode:
        return Episode(seed, self.succeeded_at, self.held, self.steps, tuple(act_ms))


def _with_history(seen: Sequence[Observation], context: int) -> Observation:
    """The latest observation with clips of `context` frames."""
    padded = [seen[0]] * (context - len(seen)) + list(seen)
    views = {}
    for name, latest in seen[-1].views.items():
        cameras = [observation.views[name].camera for observation in padded]
        still = all(camera is latest.camera for camera in cameras)
        clip = torch.cat([observation.views[name].clip for observation in padded])
        views[name] = View(clip, latest.camera if still else Camera.stack(cameras))
    return replace(seen[-1], views=views)


def _executed(actions: Actions, schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """Targets (t, 3) and gripper commands (t,) of the first batch element, as far as they are carried out."""
    executed = min(schedule.executed, actions.executed or schedule.executed)
    targets = actions.positions[0, :executed].double().cpu().numpy()
    gripper = actions.gripper[0, :executed].double().cpu().numpy()
    if len(targets) < executed or len(gripper) < executed:
        raise ValueError(f"the policy gave {len(targets)} targets, the schedule executes {executed}; lower `executed`")
    if not (np.isfinite(targets).all() and np.isfinite(gripper).all()):
        raise ValueError(f"the policy gave targets that are no numbers: {targets.tolist()}, gripper {gripper.tolist()}")
    return targets, gripper


# -------------------------------------------------------------------- what bounds a policy


def exact_round_trip(points: Tensor, gripper: Tensor, camera: Camera, position: Tensor) -> tuple[Tensor, Tensor]:
    """Project points (t, 3) and lift their pixels back at their heights: what is left is the arithmetic's own error."""
    pixels, _ = camera.project(points)
    return camera.lift_at_height(pixels, points[..., 2]), gripper


@dataclass(frozen=True)
class ExpertPlan:
    """What the expert would do from a state, for t targets `stride` control steps apart.

    Args:
        points: (t, 3) targets, world metres. gripper: (t,) commands; see `para_video.demos.future_targets`.
        commands: (t * stride, d) of every control step.
    """

    points: Tensor
    gripper: Tensor
    commands: np.ndarray


class ReplanningOracle:
    """Answers with what the expert would do from the present state, after a read-out's round trip.

    At each decision the expert runs from here for a chunk, the state is restored, and the future becomes targets as it does
    in a demonstration. What then fails is the action representation, the schedule, the read-out's precision or the servo.

    Args:
        env: the one that the rollout steps.
        round_trip: points (t, 3), gripper (t,), camera and gripper point (3,) -> what is left of points and gripper after
            encoding and decoding.
    """

    def __init__(self, env: ScriptedEnv, schedule: Schedule = DEFAULT_SCHEDULE, round_trip: RoundTrip = exact_round_trip) -> None:
        self.env, self.schedule, self.round_trip = env, schedule, round_trip

    def reset(self) -> None:
        """Nothing is remembered between decisions."""

    def act(self, observation: Observation) -> Actions:
        """The expert's future; the observation is not looked at."""
        plan = self.plan()
        position = torch.from_numpy(self.env.position).float()
        decoded, effort = self.round_trip(plan.points, plan.gripper, self.env.camera, position)
        return Actions(decoded[None], effort[None])

    def plan(self) -> ExpertPlan:
        """What the expert would do from here; the simulator is left as it was."""
        state, (chunk, stride) = self.env.save_state(), (self.schedule.chunk, self.schedule.frame_stride)
        rows = []
        for _ in range(chunk * stride):
            command = self.env.expert_action()
            rows.append((self.env.position, command, self.env.commanded_move(command)))
            self.env.step(command)
        self.env.restore_state(state)
        positions, commands, moves = (np.stack(column) for column in zip(*rows, strict=True))
        targets, gripper = future_targets(positions, commands[:, 3], moves, np.zeros(1, int), chunk=chunk, stride=stride)
        return ExpertPlan(torch.from_numpy(targets[0]), torch.from_numpy(gripper[0]), commands)


class Replay:
    """Carries out the targets of a demonstration at its own pace, whatever it sees; then it holds the last one."""

    def __init__(self, demo: Demo, schedule: Schedule = DEFAULT_SCHEDULE) -> None:
        self.demo, self.schedule, self.step = demo, schedule, 0

    def reset(self) -> None:
        self.step = 0

    def act(self, observation: Observation) -> Actions:
        """The next chunk of the demonstration."""
        chunk, stride = self.schedule.chunk, self.schedule.frame_stride
        targets, gripper = self.demo.targets(np.array([self.step]), chunk=chunk, stride=stride)
        self.step += self.schedule.executed * stride
        return Actions(torch.from_numpy(targets), torch.from_numpy(gripper))
