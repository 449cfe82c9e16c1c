"""How sure a policy is of a decision: what its doubt says of its errors, and what to do about it.

A heatmap and bins are distributions: their entropy, and the log-probability of what was decoded, come with every decision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.stats import mannwhitneyu, spearmanr

from para_video.demos import ScriptedEnv
from para_video.policy import DEFAULT_SCHEDULE, Actions, Observation, Policy, Schedule
from para_video.rollout import Episode, ReplanningOracle

Measure = Literal["entropy", "surprise"]


def doubt(actions: Actions, measure: Measure = "entropy", executed: int = DEFAULT_SCHEDULE.executed) -> float:
    """Of a decision (batch 1), the mean over the targets that are carried out, in nats: the distribution's entropy, or the negative
    log-probability of what was decoded.

    Raises:
        ValueError: the policy has no distribution.
    """
    value = actions.entropy if measure == "entropy" else actions.log_probability
    if value is None:
        raise ValueError("these actions have no probability; pass those of a policy with heatmaps (ParaHead)")
    return float(value[0, :executed].mean()) * (1 if measure == "entropy" else -1)


class Cautious:
    """A policy that goes on for a shorter time, or is replaced, where it is in doubt.

    Args:
        policy: that has a distribution. limit: of the entropy `doubt` in nats, beyond which a decision is not trusted.
        executed: targets of such a decision that are carried out before the next one. fallback: a policy that decides in its place.
    """

    def __init__(self, policy: Policy, limit: float, *, executed: int = 1, fallback: Policy | None = None) -> None:
        if executed < 1:
            raise ValueError(f"executed must be at least 1, got {executed}")
        self.policy, self.limit, self.executed, self.fallback = policy, limit, executed, fallback

    def reset(self) -> None:
        self.policy.reset()
        if self.fallback is not None:
            self.fallback.reset()

    def act(self, observation: Observation) -> Actions:
        """The policy's decision, or what is done about its doubt."""
        actions = self.policy.act(observation)
        if doubt(actions) <= self.limit:
            return actions
        if self.fallback is not None:
            actions = self.fallback.act(observation)
        return replace(actions, executed=self.executed)


@dataclass(frozen=True)
class Decision:
    """One of a policy's: the episode's seed, its doubts in nats, and how far its executed targets are from the expert's (mean)."""

    seed: int
    entropy: float
    surprise: float
    error_mm: float


class Witness:
    """Writes down every decision of rollouts, beside what the expert would have done: `rollout(..., on_decision=witness)`."""

    def __init__(self, env: ScriptedEnv, schedule: Schedule = DEFAULT_SCHEDULE) -> None:
        self.oracle, self.executed = ReplanningOracle(env, schedule), schedule.executed
        self.seed, self.decisions = 0, list[Decision]()

    def __call__(self, observation: Observation, actions: Actions) -> None:
        n = self.executed
        away = (actions.positions[0, :n].cpu() - self.oracle.plan().points[:n]).norm(dim=-1).mean()
        doubts = (doubt(actions, "entropy", n), doubt(actions, "surprise", n))
        self.decisions.append(Decision(self.seed, *doubts, error_mm=1e3 * float(away)))


# -------------------------------------------------------------------- what doubt is worth


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's of (n,) and (n,); NaN where one of them is constant."""
    constant = np.ptp(first) == 0 or np.ptp(second) == 0
    return math.nan if constant else float(spearmanr(first, second).statistic)


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive's score is above a negative's, ties counting half: the area under the ROC curve of scores (n,)
    and bools (n,). NaN where all are of one kind."""
    n, m = int(positive.sum()), int((~positive).sum())
    return float(mannwhitneyu(scores[positive], scores[~positive]).statistic) / (n * m) if n and m else math.nan


def calibration(decisions: Sequence[Decision], episodes: Sequence[Episode], measure: Measure, bins: int = 5) -> dict[str, object]:
    """What a doubt says of errors and of success, as JSON values.

    Returns:
        decisions, episodes: how many. rank_correlation: of doubt and error. error_auroc: how well doubt tells the quarter of the
        largest errors. failure_auroc: how well an episode's mean doubt tells its failure. curve: by quantile of doubt its median,
        and the median and 90th percentile of errors in millimetres. What is not defined is None.
    """
    doubts = np.array([getattr(each, measure) for each in decisions])
    errors = np.array([each.error_mm for each in decisions])
    mean = {seed: doubts[[each.seed == seed for each in decisions]].mean() for seed in {each.seed for each in decisions}}
    failed = np.array([not episode.succeeded for episode in episodes])
    parts = np.array_split(np.argsort(doubts, kind="stable"), bins)
    curve = [
        {
            "doubt": float(np.median(doubts[part])),
            "error_mm": float(np.median(errors[part])),
            "error_mm_p90": float(np.percentile(errors[part], 90)),
        }
        for part in parts if len(part)
    ]  # fmt: skip
    numbers = {
        "rank_correlation": rank_correlation(doubts, errors),
        "error_auroc": area_under_curve(doubts, errors > np.percentile(errors, 75)),
        "failure_auroc": area_under_curve(np.array([mean[episode.seed] for episode in episodes]), failed),
    }
    known = {name: None if np.isnan(value) else round(value, 4) for name, value in numbers.items()}
    return {"decisions": len(decisions), "episodes": len(episodes), **known, "curve": curve}
