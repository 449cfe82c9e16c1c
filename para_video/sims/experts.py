"""Scripted experts of our own, for tasks whose Meta-World expert no policy here learnt from.

handle-pull's steers to (z, z, z), a height taken for a point, whenever it is more than two centimetres off the handle's height. It
then flees the handle and comes back: its five pulls of 13 mm are what two thresholds make of each other, and no picture shows them.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Expert(Protocol):
    """As Meta-World's experts: the observation (39,) to a command (4,), not yet clipped."""

    def get_action(self, obs: np.ndarray) -> np.ndarray: ...


class HandlePullExpert:
    """Goes down in front of the handle, then under it, and lifts; where it slips off, it begins again.

    What it does follows from where the hand is alone, so that it finds back from anywhere.
    """

    GAIN = 20.0
    FRONT_M, UNDER_M = -0.06, -0.03
    """Along y from the handle to where the hand goes down, and to where it lifts."""
    LOW_M, HOOKED_M = 0.0, 0.025
    """Height over the handle below which the hand fits under it, and up to which it still lifts it."""

    def get_action(self, obs: np.ndarray) -> np.ndarray:
        hand, handle = obs[:3], obs[4:7]
        beside, along, above = hand - handle
        in_line = abs(beside) < 0.02
        if in_line and above < self.HOOKED_M and along > self.UNDER_M - 0.015:
            offset = (0.0, self.UNDER_M, 0.1)
        elif in_line and above < self.LOW_M:
            offset = (0.0, self.UNDER_M + 0.01, -0.05)
        elif above > self.LOW_M and along > self.FRONT_M + 0.02:  # too near to go down
            offset = (beside, self.FRONT_M - 0.02, above)
        else:
            offset = (0.0, self.FRONT_M, -0.05)
        return np.append(self.GAIN * (handle + offset - hand), 1.0)


EXPERTS: dict[str, type[Expert]] = {"handle-pull-v3": HandlePullExpert}
"""By task."""
EXPERTS_RECIPE = 1
"""Of what they do: raise it with every change, so that demonstrations are recorded anew."""
