"""Closed loop: who is shown which frames, what is commanded when, when an episode is over, and what the intervals are."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from para_video.camera import Camera, orbit
from para_video.demos import EVALUATION_SEED, Plan, record_demo
from para_video.policy import Actions, Observation, Schedule, StepResult, View
from para_video.rollout import (
    HELD_STEPS,
    Cell,
    Episode,
    ReplanningOracle,
    Replay,
    evaluate,
    evaluation_seeds,
    exact_round_trip,
    expert_rollout,
    horizon_for,
    rollout,
)
from para_video.sims.metaworld import MetaWorldEnv, MetaWorldServo
from para_video.statistics import wilson_interval

CAMERA = Camera.from_fov(45, (8, 8), orbit(135, -40, 1.15, (0, 0.65, 0.08)).float())
FIVE_BY_TWO = Schedule(frame_stride=5, chunk=6, executed=2)


class CountingEnv:
    """A robot whose frames show the step they were taken at; it succeeds at given steps."""

    def __init__(self, success_at: Sequence[int] = (), ends_at: int | None = None, moving_camera: bool = False) -> None:
        self.success_at, self.ends_at, self.moving_camera = set(success_at), ends_at, moving_camera
        self.camera = CAMERA

    def reset(self, seed: int) -> None:
        self.seed, self.step_count = seed, 0
        self.rendered: list[int] = []
        self.commands: list[np.ndarray] = []

    @property
    def position(self) -> np.ndarray:
        return np.array([0.0, 0.0, float(self.step_count)])

    def observe(self, *, views: bool = True) -> Observation:
        seen = {}
        if views:
            self.rendered.append(self.step_count)
            camera = Camera(CAMERA.intrinsics, CAMERA.world_T_camera.clone()) if self.moving_camera else CAMERA
            camera.world_T_camera[0, 3] += self.step_count if self.moving_camera else 0
            seen["main"] = View(torch.full((1, 3, 8, 8), self.step_count / 1000), camera)
        return Observation(seen, torch.eye(4), gripper_opening=min(1.0, self.step_count / 100))

    def step(self, command: np.ndarray) -> StepResult:
        self.commands.append(command)
        self.step_count += 1
        return StepResult(self.step_count in self.success_at, self.step_count == self.ends_at)

    def save_state(self) -> int:
        return self.step_count

    def restore_state(self, state: int) -> None:
        self.step_count = state

    def close(self) -> None: ...


class CountingPolicy:
    """Target j of decision d is (d, j, 0)."""

    def __init__(self, chunk: int = 6) -> None:
        self.chunk, self.observations = chunk, []

    def reset(self) -> None:
        self.observations = []

    def act(self, observation: Observation) -> Actions:
        decision = float(len(self.observations))
        self.observations.append(observation)
        positions = torch.stack([torch.tensor([decision, float(j), 0.0]) for j in range(self.chunk)])
        return Actions(positions[None], torch.linspace(-1, 1, self.chunk)[None])

    def clips(self) -> list[list[int]]:
        """The steps that each decision was shown."""
        return [(observation.views["main"].clip[:, 0, 0, 0] * 1000).round().int().tolist() for observation in self.observations]


class SpellingServo:
    """A command says its target, where the robot stood when it was given, and its place in the segment."""

    def commands(self, target: np.ndarray, gripper: float, position: np.ndarray, steps: int) -> np.ndarray:
        return np.array([[*target[:2], gripper, position[2], k] for k in range(steps)])


def run(env: CountingEnv, policy: CountingPolicy, schedule: Schedule, **options) -> Episode:
    return rollout(env, policy, SpellingServo(), 5, schedule, **options)


# ---------------------------------------------------------------- schedule and history


def test_each_decision_executes_its_first_targets_and_then_looks_again() -> None:
    env, policy = CountingEnv(), CountingPolicy(chunk=3)
    run(env, policy, Schedule(frame_stride=2, chunk=3, executed=2), horizon=8)
    # decision, target, gripper, where the robot was at the segment's start, place in the segment
    assert np.array(env.commands).tolist() == [
        [0, 0, -1, 0, 0],
        [0, 0, -1, 0, 1],
        [0, 1, 0, 2, 0],
        [0, 1, 0, 2, 1],
        [1, 0, -1, 4, 0],
        [1, 0, -1, 4, 1],
        [1, 1, 0, 6, 0],
        [1, 1, 0, 6, 1],
    ]


@pytest.mark.parametrize(
    ("context", "executed", "rendered", "clips"),
    [
        (1, 2, [0, 10, 20], [[0], [10], [20]]),
        (2, 2, [0, 5, 10, 15, 20, 25], [[0, 0], [5, 10], [15, 20]]),
        (3, 2, [0, 5, 10, 15, 20, 25], [[0, 0, 0], [0, 5, 10], [10, 15, 20]]),
        (2, 3, [0, 10, 15, 25], [[0, 0], [10, 15]]),
        (3, 4, [0, 10, 15, 20], [[0, 0, 0], [10, 15, 20]]),
        (1, 1, [0, 5, 10, 15, 20, 25], [[0], [5], [10], [15], [20], [25]]),
    ],
)
def test_clips_reach_back_at_the_stride_and_nothing_else_is_rendered(context, executed, rendered, clips) -> None:
    env, policy = CountingEnv(), CountingPolicy()
    run(env, policy, Schedule(frame_stride=5, executed=executed), context=context, horizon=30)
    assert env.rendered == rendered
    assert policy.clips() == clips


def test_without_context_nothing_is_rendered_and_the_state_is_current() -> None:
    env, policy = CountingEnv(), CountingPolicy()
    run(env, policy, FIVE_BY_TWO, context=0, horizon=30)
    assert env.rendered == []
    assert [observation.gripper_opening for observation in policy.observations] == pytest.approx([0, 0.1, 0.2])


def test_a_clip_comes_with_the_cameras_it_was_seen_by() -> None:
    for moving, shape in ((False, ()), (True, (3,))):
        policy = CountingPolicy()
        run(CountingEnv(moving_camera=moving), policy, FIVE_BY_TWO, context=3, horizon=20)
        assert policy.observations[-1].views["main"].camera.batch_shape == shape
    shifts = policy.observations[-1].views["main"].camera.position[:, 0] - CAMERA.position[0]
    assert shifts.tolist() == pytest.approx([0, 5, 10], abs=1e-5)


def test_decisions_can_be_watched_and_are_timed() -> None:
    seen = []
    policy = CountingPolicy()
    episode = run(CountingEnv(), policy, FIVE_BY_TWO, horizon=30, on_decision=lambda *decision: seen.append(decision))
    assert [observation for observation, _ in seen] == policy.observations and seen[1][1].positions[0, 0, 0] == 1
    assert len(episode.act_ms) == 3 and min(episode.act_ms) >= 0


# ---------------------------------------------------------------- when an episode is over


@pytest.mark.parametrize(
    ("success_at", "succeeded_at", "held", "steps"),
    [
        ([], None, False, 30),
        ([7], 7, False, 17),
        (range(7, 16), 7, False, 17),  # nine steps
        (range(7, 17), 7, True, 17),
        ([7, *range(8, 100)], 7, True, 17),
        ([7, *range(9, 100)], 7, False, 17),  # nine of the steps that are left
        (range(30, 100), 30, True, 40),  # the horizon asks for the first success, holding it may go on
        (range(31, 100), None, False, 30),
    ],
)
def test_an_episode_goes_on_to_see_whether_success_is_held(success_at, succeeded_at, held, steps) -> None:
    episode = run(CountingEnv(success_at), CountingPolicy(), FIVE_BY_TWO, horizon=30)
    assert (episode.succeeded_at, episode.held, episode.steps) == (succeeded_at, held, steps)
    assert episode.succeeded == (succeeded_at is not None) and episode.seed == 5
    assert HELD_STEPS == 10


def test_an_episode_stops_when_no_step_is_possible() -> None:
    assert run(CountingEnv(ends_at=12), CountingPolicy(), FIVE_BY_TWO, horizon=30).steps == 12


@pytest.mark.parametrize(("takes", "steps"), [((40, 90), 180), ((40, 60), 150), ((None, None), 150), ((None, 101), 202)])
def test_horizons_follow_from_the_experts_that_succeed(takes: tuple[int | None, ...], steps: int) -> None:
    class Expert(CountingEnv):
        def reset(self, seed: int) -> None:
            super().reset(seed)
            self.success_at = {takes[seed]}

        def expert_action(self) -> np.ndarray:
            return np.zeros(4, np.float32)

    assert horizon_for(Expert(), seeds=range(len(takes))) == steps


# ---------------------------------------------------------------- errors


def test_a_policy_must_give_the_targets_that_are_executed() -> None:
    with pytest.raises(ValueError, match="gave 2 targets, the schedule executes 3"):
        run(CountingEnv(), CountingPolicy(chunk=2), Schedule(executed=3))


@pytest.mark.parametrize("field", ["positions", "gripper"])
def test_targets_that_are_no_numbers_do_not_reach_the_robot(field: str) -> None:
    class Broken(CountingPolicy):
        def act(self, observation: Observation) -> Actions:
            actions = super().act(observation)
            getattr(actions, field)[0, 1] = torch.nan
            return actions

    env = CountingEnv()
    with pytest.raises(ValueError, match="no numbers"):
        run(env, Broken(), FIVE_BY_TWO)
    assert env.commands == []


@pytest.mark.parametrize("wrong", [{"executed": 0}, {"frame_stride": 0}, {"chunk": 3, "executed": 4}])
def test_a_schedule_has_to_be_possible(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="schedule"):
        Schedule(**wrong)


# ---------------------------------------------------------------- counting


def test_a_cell_counts_its_episodes() -> None:
    cell = Cell((Episode(1, 20, True, 30, (1.0, 3.0)), Episode(2, None, False, 99, (2.0,)), Episode(3, 40, False, 50)))
    assert (cell.successes, cell.held, cell.rate) == (2, 1, pytest.approx(2 / 3))
    assert cell.act_ms == pytest.approx((2.0, 2.9))
    summary = cell.summary()
    assert summary["succeeded_at"] == {"1": 20, "2": None, "3": 40} and summary["episodes"] == 3
    assert tuple(summary["wilson95"]) == cell.wilson95 == wilson_interval(2, 3)


def test_evaluation_runs_the_seeds_that_no_demo_has() -> None:
    heard = []
    cell = evaluate(lambda seed: Episode(seed, None, False, 1), evaluation_seeds(3), on_episode=heard.append)
    assert [episode.seed for episode in cell.episodes] == [EVALUATION_SEED, EVALUATION_SEED + 1, EVALUATION_SEED + 2]
    assert heard == list(cell.episodes) and cell.act_ms is None


# ---------------------------------------------------------------- the bounds, on the real simulator


@pytest.fixture(scope="module")
def pick_place():
    with MetaWorldEnv("pick-place-v3") as env:
        yield env


def test_the_round_trip_through_pixels_is_exact() -> None:
    points = torch.tensor([[0.0, 0.6, 0.02], [0.1, 0.8, 0.3], [-0.2, 0.5, 0.1]])
    lifted, gripper = exact_round_trip(points, torch.tensor([0.1, -1, 1]), CAMERA, points[0])
    assert lifted.numpy() == pytest.approx(points.numpy(), abs=1e-5) and gripper.tolist() == pytest.approx([0.1, -1, 1])


def test_the_oracle_picks_and_places_like_the_expert(pick_place: MetaWorldEnv) -> None:
    oracle = ReplanningOracle(pick_place)
    cell = evaluate(lambda seed: rollout(pick_place, oracle, MetaWorldServo(), seed, context=0), evaluation_seeds(4))
    expert = evaluate(lambda seed: expert_rollout(pick_place, seed), evaluation_seeds(4))
    assert cell.successes == expert.successes == expert.held == 4
    assert pick_place._renderer is None


def test_the_oracle_leaves_the_present_as_it_was(pick_place: MetaWorldEnv) -> None:
    pick_place.reset(0)
    before = pick_place.save_state()
    actions = ReplanningOracle(pick_place, Schedule(chunk=4)).act(pick_place.observe(views=False))
    assert np.array_equal(pick_place.save_state().physics, before.physics)
    assert actions.positions.shape == (1, 4, 3) and actions.gripper.shape == (1, 4)


def test_the_oracle_answers_what_a_demo_is_labelled_with(pick_place: MetaWorldEnv) -> None:
    demo = record_demo(pick_place, 0, Plan(1), frames=False)
    targets, gripper = demo.targets(np.array([0]), chunk=6, stride=5)
    pick_place.reset(0)
    actions = ReplanningOracle(pick_place, FIVE_BY_TWO).act(pick_place.observe(views=False))
    assert actions.positions.numpy() == pytest.approx(targets, abs=1e-5)
    assert actions.gripper.numpy() == pytest.approx(gripper)


def test_a_coarse_round_trip_breaks_the_oracle(pick_place: MetaWorldEnv) -> None:
    coarse = ReplanningOracle(pick_place, round_trip=lambda points, gripper, *_: ((points * 10).round() / 10, gripper))
    assert not rollout(pick_place, coarse, MetaWorldServo(), EVALUATION_SEED, context=0).succeeded


def test_a_replay_repeats_its_own_episode_and_no_other(pick_place: MetaWorldEnv) -> None:
    replay = Replay(record_demo(pick_place, 0, Plan(1), frames=False))
    outcomes = [rollout(pick_place, replay, MetaWorldServo(), seed, context=0).succeeded for seed in (0, EVALUATION_SEED, 0)]
    assert outcomes == [True, False, True]
