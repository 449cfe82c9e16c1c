"""What a number of episodes says of a success rate: intervals of one run, of several training seeds, and of a difference.

Outcomes are 0 or 1, and tables of them are (r, n): r training seeds, n episodes whose seeds are the same in every row and for every
policy, so that rows and policies are paired.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 10_000
Z_95 = 1.959964
NO_TASKS = "a mean over no tasks; pass at least one table of outcomes"


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion.

    Raises:
        ValueError: n below 1, or successes outside [0, n].
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"wants 0 <= successes <= n and n >= 1, got {successes} of {n}")
    z = Z_95
    centre = (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(successes * (n - successes) / n + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def success_rate(tasks: Sequence[ArrayLike]) -> Estimate:
    """Success over tasks, all of which count alike.

    A task's interval is Wilson's of its episodes, and with several training seeds, which share them, at least as wide as
    `bootstrap`'s to either side. Outcomes between 0 and 1 count as that much of a success, which is at least as wide as they
    deserve. The distances of these from their rates add up to the mean's as those of independent errors do (Zou and Donner 2008,
    "Construction of confidence limits about effect measures").

    Args:
        tasks: outcomes (r, n) of each task, in [0, 1].
    """
    if not tasks:
        raise ValueError(NO_TASKS)
    found = [_task_rate(_table(task)) for task in tasks]
    mean = sum(each.mean for each in found) / len(found)
    below = math.hypot(*(each.mean - each.low for each in found)) / len(found)
    above = math.hypot(*(each.high - each.mean for each in found)) / len(found)
    return Estimate(mean, max(0.0, mean - below), min(1.0, mean + above))


def _task_rate(table: NDArray[np.float64]) -> Estimate:
    episodes = table.mean(0)
    low, high = wilson_interval(float(episodes.sum()), len(episodes))
    if len(table) == 1:
        return Estimate(float(episodes.mean()), low, high)
    drawn = bootstrap([table])
    return Estimate(drawn.mean, min(low, drawn.low), max(high, drawn.high))


def difference(tasks: Sequence[ArrayLike], others: Sequence[ArrayLike]) -> Estimate:
    """How far the success rate of one policy lies above another's, with `bootstrap`'s interval of the paired difference. It has no
    width where every pair of episodes went alike.

    Args:
        tasks, others: outcomes (r, n) of each task, of the same training seeds and episodes.

    Raises:
        ValueError: they are not of the same tasks, training seeds or episodes.
    """
    shapes = [[_table(task).shape for task in side] for side in (tasks, others)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"outcomes {shapes[0]} cannot be paired with {shapes[1]}; compare what both were measured on")
    return bootstrap([_table(task) - _table(other) for task, other in zip(tasks, others, strict=True)])


def bootstrap(tasks: Sequence[ArrayLike], seed: int = 0, draws: int = DRAWS) -> Estimate:
    """The mean over tasks of the means of values (r, n), and its 95 % interval by a bootstrap over training seeds and episodes.

    Both are drawn with replacement, each episode for all training seeds at once since they share it (Owen 2007, the pigeonhole
    bootstrap). Tasks are not drawn: the mean is one over these tasks. With one training seed the interval is over episodes alone.
    """
    rng = np.random.default_rng(seed)
    tables = [_table(task) for task in tasks]
    if not tables:
        raise ValueError(NO_TASKS)
    drawn = np.zeros(draws)
    for table in tables:
        r, n = table.shape
        seeds = rng.multinomial(r, np.full(r, 1 / r), draws) / r
        episodes = rng.multinomial(n, np.full(n, 1 / n), draws) / n
        drawn += np.einsum("di,ij,dj->d", seeds, table, episodes, optimize=True) / len(tables)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(float(np.mean([table.mean() for table in tables])), float(low), float(high))


def _table(values: ArrayLike) -> NDArray[np.float64]:
    """Values as (r, n); those of one training seed may come as (n,)."""
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"outcomes are (training seeds, episodes), at least one of each; got shape {table.shape}")
    return table
