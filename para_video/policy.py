"""What crosses between robots, policies and simulators: observations, actions, and the protocols they meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from para_video.camera import Camera


@dataclass(frozen=True)
class View:
    """One camera's recent frames: clip (t, 3, H, W) float in [0, 1], oldest first; camera (t,), unbatched if it is still."""

    clip: Tensor
    camera: Camera


@dataclass(frozen=True)
class Observation:
    """Everything a policy may look at.

    Args:
        views: by name; a policy looks at "main" unless it was built for another.
        end_effector: (4, 4) world_T_gripper, float32; the gripper point is the one that actions move.
        gripper_opening: in [0, 1], 0 closed, 1 open.
        instruction: what to do, in words; None where the task is fixed. For policies of one's own: those here do not read it.
    """

    views: Mapping[str, View]
    end_effector: Tensor
    gripper_opening: float
    instruction: str | None = None


@dataclass(frozen=True)
class Actions:
    """A chunk of t future targets for b observations.

    Args:
        positions: (b, t, 3) world metres of the gripper point.
        gripper: (b, t) command in [-1, 1]; -1 opens, 1 closes.
        rotations: (b, t, 3, 3) world_R_gripper, or None where the robot's wrist is fixed.
        pixels: (b, t, 2) image positions, or None for policies that have none.
        visible: (b, t) probability that the target is inside the image, or None.
        log_probability: (b, t) of the decoded action under the policy, nats. entropy: (b, t) of its distribution, nats.
        executed: how many targets to carry out before the next decision, at most the schedule's; None for as many as that says.
    """

    positions: Tensor
    gripper: Tensor
    rotations: Tensor | None = None
    pixels: Tensor | None = None
    visible: Tensor | None = None
    log_probability: Tensor | None = None
    entropy: Tensor | None = None
    executed: int | None = None


@dataclass(frozen=True)
class StepResult:
    """What a simulator step says: `success` is the task's own flag at this step, `ended` that no further step is possible."""

    success: bool
    ended: bool


@dataclass(frozen=True)
class Schedule:
    """When a policy looks and how long it acts.

    Args:
        frame_stride: control steps from one target to the next, and between the frames of a clip.
        chunk: targets in a decision. executed: how many of them are carried out before the next decision.

    Raises:
        ValueError: a number below 1, or more executed than there are.
    """

    frame_stride: int = 3
    chunk: int = 6
    executed: int = 2

    def __post_init__(self) -> None:
        if min(self.frame_stride, self.executed) < 1 or self.executed > self.chunk:
            raise ValueError(f"a schedule wants frame_stride >= 1 and 1 <= executed <= chunk, got {self}")


DEFAULT_SCHEDULE = Schedule()
"""One that does not hold back the re-planning oracle on Meta-World's hard tasks, and the best of those for trained policies:
docs/oracle.md."""


class Policy(Protocol):
    """Maps observations to chunks of actions; `reset` forgets everything of the past episode."""

    def reset(self) -> None: ...

    def act(self, observation: Observation) -> Actions: ...


class Env(Protocol):
    """A simulated robot. Rendering happens in `observe` alone, so that steps without a decision cost no frame.

    `camera` is the one of the view "main"; `position` (3,) the gripper point in world metres, float64, without a frame.
    """

    @property
    def camera(self) -> Camera: ...

    @property
    def position(self) -> np.ndarray: ...

    def reset(self, seed: int) -> None: ...

    def observe(self, *, views: bool = True) -> Observation: ...  # views=False: the robot's state alone, nothing rendered

    def step(self, command: np.ndarray) -> StepResult: ...

    def save_state(self) -> Any: ...

    def restore_state(self, state: Any) -> None: ...

    def close(self) -> None: ...


class Servo(Protocol):
    """Turns one target into the commands of a particular robot for the control steps until the next target."""

    def commands(self, target: np.ndarray, gripper: float, position: np.ndarray, steps: int) -> np.ndarray: ...

    # target (3,) and the present position (3,) in world metres, gripper in [-1, 1] -> (steps, d)
