"""Experts of our own: they succeed from everywhere, also where they are disturbed, and cannot be replayed blindly."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from para_video.demos import Plan, record_demo
from para_video.rollout import ReplanningOracle, Replay, evaluate, expert_rollout, rollout
from para_video.sims.experts import EXPERTS, recipe
from para_video.sims.metaworld import TASKS, MetaWorldEnv, MetaWorldServo

SEEDS = range(70_000, 70_008)
SLOW = "shelf-place-v3"
"""Carries its block farther than others carry anything: 91 to 123 control steps."""


@pytest.fixture(params=sorted(EXPERTS))
def env(request: pytest.FixtureRequest) -> MetaWorldEnv:
    return MetaWorldEnv(request.param, size=16)


def test_they_are_of_tasks_that_exist_and_make_demonstrations_of_their_own(env: MetaWorldEnv) -> None:
    assert env.task in TASKS
    assert recipe("reach-v3") == 0 < recipe(env.task) == env.settings["expert"]
    assert "expert" not in MetaWorldEnv("reach-v3", size=16).settings


def test_they_succeed_and_policies_that_know_them_too_but_not_a_replay(env: MetaWorldEnv) -> None:
    assert evaluate(lambda seed: expert_rollout(env, seed, horizon=150 if env.task == SLOW else 120), SEEDS).successes == len(SEEDS)
    horizon = 200 if env.task == SLOW else 150
    run = lambda policy: lambda seed: rollout(env, policy, MetaWorldServo(), seed, context=0, horizon=horizon)  # noqa: E731
    assert evaluate(run(ReplanningOracle(env)), SEEDS).successes == len(SEEDS)
    demo = record_demo(env, 3, Plan(1), frames=False)
    assert demo is not None and evaluate(run(Replay(demo)), SEEDS).successes <= 2


def test_they_find_back_when_moves_are_disturbed(env: MetaWorldEnv) -> None:
    """shelf-place's may lose the block at the shelf's edge for good: seed 0 of these."""
    lost = [seed for seed in range(8) if record_demo(env, seed, Plan(1, noise=0.3), frames=False) is None]
    assert lost == ([0] if env.task == "shelf-place-v3" else [])


def test_what_they_do_follows_from_the_observation_alone(env: MetaWorldEnv) -> None:
    expert, rng = EXPERTS[env.task](), np.random.default_rng(0)
    seen = rng.uniform(0, 0.8, (20, 39))
    first = [expert.get_action(row) for row in seen]
    again = [expert.get_action(row) for row in seen[::-1]][::-1]
    assert np.array_equal(first, again) and np.shape(first) == (20, 4)


@pytest.mark.parametrize("seen_m", [(0.01, 0.0), (-0.01, 0.0), (0.0, 0.01), (0.0, -0.01)])
def test_they_grasp_what_they_see_a_centimetre_beside_where_it_is(
    env: MetaWorldEnv, seen_m: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    expert = EXPERTS[env.task]()
    monkeypatch.setattr(env, "_expert", SimpleNamespace(get_action=lambda obs: expert.get_action(obs + displaced)))
    displaced = np.zeros(39)
    displaced[4:6] = seen_m
    assert evaluate(lambda seed: expert_rollout(env, seed, horizon=200), SEEDS[:3]).successes == 3
