"""Intervals against cases whose answer is known."""

import numpy as np
import pytest

from para_video.statistics import bootstrap, difference, success_rate, wilson_interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (45, 50, 0.7864, 0.9565), (1, 1, 0.2065, 1.0)],
)
def test_wilson_intervals_are_those_of_the_book(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_an_interval_wants_a_proportion(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(successes, n)


def test_one_run_has_wilsons_interval_and_so_have_episodes_that_all_went_alike() -> None:
    one = success_rate([[1] * 45 + [0] * 5])
    assert (one.mean, one.low, one.high) == (0.9, *wilson_interval(45, 50))
    never = success_rate([np.zeros((3, 25))])
    assert (never.mean, never.low, never.high) == (0.0, *wilson_interval(0, 25)), "training seeds share episodes"


def test_tasks_that_all_went_alike_are_not_certain() -> None:
    """Distances from the rates add up as those of independent errors, by hand: of two tasks each half of their root of squares."""
    low, high = 1 - wilson_interval(24, 24)[0], wilson_interval(0, 24)[1]
    found = success_rate([[1] * 24, [0] * 24])
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5 - low / 2, 0.5 + high / 2))
    four = success_rate([[0] * 24] * 4)
    assert (four.mean, four.low, four.high) == pytest.approx((0, 0, high / 2))
    more = success_rate([[0] * 24] * 3 + [[1] + [0] * 23])
    assert more.high > four.high, "an episode that succeeded is no evidence against success"


def test_intervals_of_means_over_tasks_cover_the_truth() -> None:
    rng, rates = np.random.default_rng(0), np.array([0.99, 0.95, 0.7, 0.02])
    found = [success_rate(list(rng.random((4, 24)) < rates[:, None])) for _ in range(400)]
    assert 0.93 < np.mean([each.low <= rates.mean() <= each.high for each in found]) < 0.99


def test_the_bootstrap_over_episodes_of_one_seed_is_the_binomials() -> None:
    found = bootstrap([[1] * 60 + [0] * 40])
    spread = 1.96 * np.sqrt(0.6 * 0.4 / 100)
    assert found.mean == 0.6
    assert found.low == pytest.approx(0.6 - spread, abs=0.015) and found.high == pytest.approx(0.6 + spread, abs=0.015)


def test_training_seeds_that_differ_widen_the_interval_and_more_episodes_do_not_narrow_it() -> None:
    seeds = np.array([[0.2], [0.5], [0.8]])
    alike, apart = bootstrap([np.full((3, 4), 0.5)]), bootstrap([np.repeat(seeds, 4, 1)])
    assert alike.high - alike.low == pytest.approx(0)
    many = bootstrap([np.repeat(seeds, 4000, 1)])
    # a mean of three draws from {0.2, 0.5, 0.8} is 0.2 with a probability of 1/27, more than 2.5 %
    for found in (apart, many):
        assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.2, 0.8))


def test_a_mean_over_tasks_counts_them_alike_and_is_surer_than_one() -> None:
    rng = np.random.default_rng(0)
    tasks = [rng.random((3, 25)) < 0.5 for _ in range(6)]
    whole, single = success_rate(tasks), success_rate(tasks[:1])
    assert whole.mean == pytest.approx(np.mean([task.mean() for task in tasks]))
    assert whole.high - whole.low < 0.6 * (single.high - single.low)
    unequal = success_rate([[1] * 10, [0] * 1000])
    assert unequal.mean == 0.5


def test_a_difference_is_paired() -> None:
    """Where one policy solves whatever the other does and one episode in four more, only those count."""
    worse = np.tile([1, 0, 0, 0], (1, 25))
    better = np.tile([1, 1, 0, 0], (1, 25))
    found = difference([better], [worse])
    spread = 1.96 * np.sqrt(0.25 * 0.75 / 100)
    assert found.mean == 0.25
    assert found.low == pytest.approx(0.25 - spread, abs=0.015) and found.high == pytest.approx(0.25 + spread, abs=0.015)
    same = difference([better], [better])
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        difference([np.zeros((1, 5))], [np.zeros((2, 5))])
    with pytest.raises(ValueError, match="no tasks"):
        bootstrap([])
    with pytest.raises(ValueError, match="shape"):
        bootstrap([np.zeros((0, 5))])


def test_shares_of_a_success_widen_no_less_than_successes():
    found = success_rate([[[0.5, 1.0, 0.0, 0.5, 1.0, 1.0]]])
    assert (found.mean, found.low, found.high) == pytest.approx((2 / 3, *wilson_interval(4, 6)))


@pytest.mark.parametrize("more", [[[0.5] + [0] * 23], [[1] + [0] * 23, [0] * 24, [0] * 24]], ids=["share", "training seeds"])
def test_a_success_is_no_evidence_against_success(more: list) -> None:
    none = np.zeros_like(np.asarray(more, dtype=float))
    assert success_rate([more]).high > success_rate([none]).high
