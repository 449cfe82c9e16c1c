"""Doubt: what it is, what is done about it, and what it is worth."""

from functools import partial

import numpy as np
import pytest
import torch

from para_video.confidence import Cautious, Decision, Witness, area_under_curve, calibration, doubt, rank_correlation
from para_video.policy import DEFAULT_SCHEDULE, Actions, Observation
from para_video.rollout import Episode, rollout
from para_video.sims.metaworld import MetaWorldEnv, MetaWorldServo


def decision(entropy: float, place: float = 0.0) -> Actions:
    """Six targets; the entropy of those that are not carried out is enormous."""
    nats = torch.tensor([[entropy] * 3 + [1e6] * 3])
    return Actions(torch.full((1, 6, 3), place), torch.zeros(1, 6), log_probability=-2 * nats, entropy=nats)


class Says:
    """A policy whose decisions are given, one after the other."""

    def __init__(self, *decisions: Actions) -> None:
        self.decisions, self.asked = decisions, 0

    def reset(self) -> None:
        self.asked = 0

    def act(self, observation: Observation) -> Actions:
        self.asked += 1
        return self.decisions[(self.asked - 1) % len(self.decisions)]


def test_doubt_is_of_the_targets_that_are_carried_out() -> None:
    assert doubt(decision(3.0)) == 3 and doubt(decision(3.0), "surprise") == 6
    with pytest.raises(ValueError, match="no probability"):
        doubt(Actions(torch.zeros(1, 6, 3), torch.zeros(1, 6)))


def test_a_decision_in_doubt_is_carried_out_for_a_shorter_time_or_left_to_another() -> None:
    observation = Observation({}, torch.eye(4), 1.0)
    policy, other = Says(decision(1.0), decision(5.0)), Says(decision(4.0, place=1.0))
    cautious = Cautious(policy, limit=2.0)
    assert [cautious.act(observation).executed for _ in range(2)] == [None, 1]
    helped = Cautious(policy, limit=2.0, executed=3, fallback=other)
    helped.reset()
    sure, unsure = (helped.act(observation) for _ in range(2))
    assert sure.positions.max() == 0 and sure.executed is None
    assert unsure.positions.min() == 1 and unsure.executed == 3 and other.asked == 1


def test_rollouts_ask_again_after_as_few_targets_as_a_decision_says() -> None:
    with MetaWorldEnv("reach-v3", size=16) as env:
        unsure, sure = Says(decision(5.0)), Says(decision(0.0))
        for policy in (unsure, sure):
            rollout(env, Cautious(policy, 1.0), MetaWorldServo(), 0, context=0, horizon=18)
    assert (unsure.asked, sure.asked) == (6, 6 // DEFAULT_SCHEDULE.executed)


def test_a_witness_compares_with_the_expert_and_leaves_the_episode_as_it_is() -> None:
    with MetaWorldEnv("reach-v3", size=16) as env:
        witness = Witness(env)
        act = partial(rollout, env, Says(decision(2.0)), MetaWorldServo(), 0, context=0, horizon=18)
        plain, seen = (act(on_decision=told) for told in (None, witness))
        env.reset(0)
        points = witness.oracle.plan().points[: DEFAULT_SCHEDULE.executed]
    assert plain.steps == seen.steps and len(witness.decisions) == 6 // DEFAULT_SCHEDULE.executed
    first = witness.decisions[0]
    assert (first.entropy, first.surprise) == (2, 4)
    assert first.error_mm == pytest.approx(1e3 * float(points.norm(dim=-1).mean()), rel=1e-4)


def test_ranks_by_hand() -> None:
    assert rank_correlation(np.array([1, 2, 3.0]), np.array([10, 20, 300.0])) == pytest.approx(1)
    assert rank_correlation(np.array([1, 2, 3, 4.0]), np.array([4, 3, 2, 1.0])) == pytest.approx(-1)
    assert rank_correlation(np.array([1, 1, 2.0]), np.array([1, 2, 3.0])) == pytest.approx(np.sqrt(3) / 2)
    assert np.isnan(rank_correlation(np.ones(3), np.arange(3.0)))
    scores, positive = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    assert area_under_curve(scores, positive) == 0.75 and area_under_curve(np.ones(4), positive) == 0.5
    assert np.isnan(area_under_curve(scores, positive | True))


def test_a_calibrated_doubt_rises_with_the_error() -> None:
    decisions = [Decision(seed, entropy=k, surprise=-k, error_mm=10 * k) for seed, k in enumerate((1.0, 2.0, 3.0, 4.0))]
    episodes = [Episode(seed, None if seed > 1 else 5, False, 9) for seed in range(4)]
    entropy, surprise = (calibration(decisions, episodes, measure, bins=2) for measure in ("entropy", "surprise"))
    assert entropy["rank_correlation"] == 1 and entropy["failure_auroc"] == 1 and entropy["error_auroc"] == 1
    assert surprise["rank_correlation"] == -1 and surprise["failure_auroc"] == 0
    assert [part["error_mm"] for part in entropy["curve"]] == [15, 35]
