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
    """One camera's recent frames: clip (t, 3, H, W) float in [0, 1], oldest first; camera (t,) or unbatched if it stands still."""

    clip: Tensor
    camera: Camera


@dataclass(frozen=True)
class Observation:
    """Everything a policy may look at.

    Args:
        views: by name.
        end_effector: (4, 4) world_T_gripper, float32; the gripper point is the one that actions move.
        gripper_opening: in [0, 1], 0 closed, 1 open.
        instruction: what to do, in words; None where the task is fixed.
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
    """

    positions: Tensor
    gripper: Tensor
    rotations: Tensor | None = None
    pixels: Tensor | None = None
    visible: Tensor | None = None
    log_probability: Tensor | None = None
    entropy: Tensor | None = None


@dataclass(frozen=True)
class StepResult:
    """What a simulator step says: `success` is the task's own flag at this step, `ended` means no further steps are possible."""

    success: bool
    ended: bool


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

    def observe(self) -> Observation: ...

    def step(self, command: np.ndarray) -> StepResult: ...

    def save_state(self) -> Any: ...

    def restore_state(self, state: Any) -> None: ...

    def close(self) -> None: ...


class Servo(Protocol):
    """Turns 3D targets into one command of a particular robot, called at every control step."""

    def command(self, target: np.ndarray, gripper: float, position: np.ndarray) -> np.ndarray: ...
