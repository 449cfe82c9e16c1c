"""Scripted experts of our own, which grasp in the middle of what their grasp tolerates, and wait until the fingers hold.

Meta-World's for these tasks close the fingers while the hand still comes down, and go on before these hold anything. Whether the
object is between them by then is a race, which anyone loses who comes down a little more slowly or a centimetre beside: a policy
that knows shelf-place's expert (`ReplanningOracle`) solves about four episodes in five, where the expert itself solves all.
handle-pull's rubs the handle up from the front, from which its fingers slip again and again. docs/results.md tells what each
tolerates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np


class Expert(Protocol):
    """As Meta-World's experts: the observation (39,) to a command (4,), not yet clipped."""

    def get_action(self, obs: np.ndarray) -> np.ndarray: ...


class GraspExpert(ABC):
    """Comes down around an object with open fingers, closes them, waits until they hold it, and only then carries it.

    What it does follows from the observation alone: it begins again where it has lost the object.
    """

    RECIPE = 1
    """Of what it does: to be raised with every change, so that demonstrations are recorded anew."""
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


class PushExpert(GraspExpert):
    """Takes the puck, and draws it over the table to its goal."""

    GRASP_M, HELD = (-0.006, 0.0, 0.03), 0.6

    def carried(self, hand: np.ndarray, obs: np.ndarray) -> np.ndarray:
        return obs[-3:] + self.GRASP_M


class CoffeePullExpert(GraspExpert):
    """Takes the cup around its middle, and draws it to its place over the table."""

    GRASP_M, HELD = (0.005, -0.005, 0.05), 0.75

    def carried(self, hand: np.ndarray, obs: np.ndarray) -> np.ndarray:
        return np.add(obs[-3:], (0.0, 0.0, self.GRASP_M[2]))


class HandlePullExpert(GraspExpert):
    """Takes the right end of the handle's grip between its fingers, and lifts it slowly, since it resists."""

    RECIPE = 2
    GRASP_M, HELD = (0.015, 0.0, -0.016), 0.45
    LOOSE_M = 0.05
    LIFT_M = 0.03

    def carried(self, hand: np.ndarray, obs: np.ndarray) -> np.ndarray:
        return np.add(hand, (0.0, 0.0, self.LIFT_M))


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


EXPERTS: dict[str, type[GraspExpert]] = {
    "coffee-pull-v3": CoffeePullExpert,
    "hammer-v3": HammerExpert,
    "handle-pull-v3": HandlePullExpert,
    "push-v3": PushExpert,
    "shelf-place-v3": ShelfPlaceExpert,
}
"""By task."""


def recipe(task: str) -> int:
    """Of what a task's expert does; 0 where it is Meta-World's."""
    return EXPERTS[task].RECIPE if task in EXPERTS else 0
