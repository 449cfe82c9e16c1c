"""Scripted experts of our own, for tasks whose Meta-World expert does what no picture shows.

handle-pull's steers to (z, z, z), a height taken for a point, whenever it is more than two centimetres off the handle's height. It
then flees the handle and comes back: its five pulls of 13 mm are what two thresholds make of each other.

hammer's and shelf-place's close the fingers while the hand still comes down, and go on before these hold anything. Whether the
object is between them by then is a race, which anyone loses who comes down a little more slowly: a policy that knows shelf-place's
expert (`ReplanningOracle`) solves about four episodes in five, where the expert itself solves all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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


class GraspExpert(ABC):
    """Comes down around an object with open fingers, closes them, waits until they hold it, and only then carries it.

    What it does follows from the observation alone: it begins again where it has lost the object.
    """

    GAIN = 10.0
    GRASP_M: tuple[float, float, float]
    """From the object to the hand that holds it."""
    HELD: float
    """Opening that fingers have closed to when they hold it; 1 is open."""
    ABOVE_M = 0.1
    """How far above that place the hand comes from the side."""
    OVER_M, DOWN_M, LOOSE_M = 0.02, 0.03, 0.04
    """How far beside that place the hand may go down, how far above it the fingers begin to close, and how far they may be off
    once they have."""

    def get_action(self, obs: np.ndarray) -> np.ndarray:
        hand, opening, place = obs[:3], obs[3], obs[4:7] + self.GRASP_M
        beside, above = np.linalg.norm(hand[:2] - place[:2]), abs(hand[2] - place[2])
        closing = opening < 0.9 and max(beside, above) < self.LOOSE_M
        if closing and opening < self.HELD:
            to, effort = self.carried(hand, obs), 1.0
        elif closing or (beside < self.OVER_M and above < self.DOWN_M):
            to, effort = place, 1.0
        elif beside < self.OVER_M:
            to, effort = place, -1.0
        else:
            to, effort = np.add(place, (0.0, 0.0, self.ABOVE_M)), -1.0
        return np.append(self.GAIN * (to - hand), effort)

    @abstractmethod
    def carried(self, hand: np.ndarray, obs: np.ndarray) -> np.ndarray:
        """Where the hand that holds the object goes."""


class HammerExpert(GraspExpert):
    """Takes the hammer by its handle, lifts it in front of the nail, and drives it in."""

    GRASP_M, HELD = (-0.035, 0.0, 0.035), 0.55
    DOWN_M, LOOSE_M = 0.012, 0.03  # it lies flat: fingers that close higher close over it
    NAIL = np.array([0.05, 0.71, 0.16])
    """Where the hand is when the nail is in."""

    def carried(self, hand: np.ndarray, obs: np.ndarray) -> np.ndarray:
        off = np.hypot(*(hand - self.NAIL)[[0, 2]])
        return self.NAIL if off < 0.02 else np.array([self.NAIL[0], hand[1], self.NAIL[2]])


class ShelfPlaceExpert(GraspExpert):
    """Takes the block, lifts it in front of its place on the shelf, no higher than needed, and sets it in."""

    GRASP_M, HELD = (0.0, 0.0, 0.043), 0.45
    GAIN = 15.0
    HIGH_M = 0.325
    """Of the hand, whose block then clears the shelf's board."""

    def carried(self, hand: np.ndarray, obs: np.ndarray) -> np.ndarray:
        shelf = obs[-3]
        if abs(hand[0] - shelf) > 0.02:
            return np.array([shelf, hand[1], self.HIGH_M])
        if hand[2] < self.HIGH_M - 0.01:
            return np.array([shelf, hand[1], self.HIGH_M + 0.03])  # a little beyond, so that the last centimetre takes no time
        return np.array([shelf, hand[1] + 0.05, self.HIGH_M])


EXPERTS: dict[str, type[Expert]] = {
    "hammer-v3": HammerExpert,
    "handle-pull-v3": HandlePullExpert,
    "shelf-place-v3": ShelfPlaceExpert,
}
"""By task."""
RECIPES = {"hammer-v3": 1, "handle-pull-v3": 1, "shelf-place-v3": 1}
"""Of what they do: raise one with every change of its expert, so that demonstrations are recorded anew."""


def recipe(task: str) -> int:
    """Of what a task's expert does; 0 where it is Meta-World's."""
    return RECIPES.get(task, 0)
