"""Shifts: each part changes what it says and nothing else."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from para_video.camera import Camera
from para_video.demos import Plan, record_demo
from para_video.rollout import ReplanningOracle, rollout
from para_video.sims.metaworld import CameraPlacement, MetaWorldEnv, MetaWorldServo
from para_video.sims.shifts import NO_SHIFT, WORKSPACES, ManyViews, Shift, ShiftedEnv, parse_shifts

TASK = "pick-place-v3"
EVERYTHING = "azimuth=-18,elevation=5.5,distance=0.1,roll=10,look=3,distractors=3,workspace=left,noise=0.05,blur=1,latency=4,"
EVERYTHING += "state_latency=2,calibration_deg=2,calibration_px=3"


def env(text: str = "", **options) -> ShiftedEnv:
    return ShiftedEnv(TASK, Shift.parse(text), **{"size": 48, **options})


def act(simulator: MetaWorldEnv, steps: int) -> np.ndarray:
    """What the expert goes through, the layout first."""
    seen = [simulator.layout]
    for _ in range(steps):
        simulator.step(simulator.expert_action())
        seen.append(simulator._env.data.qpos.copy())
    return np.concatenate(seen)


def picture(simulator: MetaWorldEnv, seed: int = 3, steps: int = 6) -> np.ndarray:
    simulator.reset(seed)
    act(simulator, steps)
    return simulator.render()


@pytest.fixture(scope="module")
def plain() -> Iterator[ShiftedEnv]:
    with env() as simulator:
        yield simulator


# ---------------------------------------------------------------- the value


@pytest.mark.parametrize("text", ["none", "azimuth=18", "azimuth=-0.1,look=2,noise=0.05", EVERYTHING, "distance=1e-07"])
def test_a_shift_is_its_text(text: str) -> None:
    shift = Shift.parse(text)
    assert str(shift) == text and Shift.parse(str(shift)) == shift
    backwards = ",".join(reversed(text.split(",")))
    assert Shift.parse(backwards) == shift


def test_the_order_of_composition_does_not_matter() -> None:
    parts = [Shift.parse(part) for part in EVERYTHING.split(",")]
    forwards, backwards = NO_SHIFT, NO_SHIFT
    for first, last in zip(parts, reversed(parts), strict=True):
        forwards, backwards = forwards & first, backwards & last
    assert forwards == backwards == Shift.parse(EVERYTHING)
    with pytest.raises(ValueError, match="look=1 and look=2,noise=0.1 both set look; set it in one of them"):
        Shift(look=1) & Shift(look=2, noise=0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("azimut=18", "unknown shift 'azimut'.*choose from azimuth, .*did you mean 'azimuth'"),
        ("noise", "noise wants a number after its =, got 'noise'"),
        ("look=1.5", "look wants a whole number after its =, got 'look=1.5'"),
        ("noise=-0.1", "noise must be between 0 and 1, got -0.1"),
        ("distractors=9", "distractors must be between 0 and 8, got 9"),
        ("azimuth=nan", "azimuth must be between -360 and 360, got nan"),
        ("workspace=middle", "unknown workspace 'middle'; choose from left, right, near, far"),
        ("look=1,look=2", "look is named twice"),
        ("look=1;look=1", "names look=1 twice"),
    ],
)
def test_what_is_wrong_with_a_shift_is_told_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_shifts(text)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="latency must be a whole number, got 1.5"):
        Shift(latency=1.5)  # type: ignore[arg-type]


# ---------------------------------------------------------------- what each part changes


def test_before_an_episode_there_is_nothing_to_see() -> None:
    with env("azimuth=18") as simulator:
        for look in (simulator.observe, simulator.render):
            with pytest.raises(RuntimeError, match=r"call reset\(seed\) first"):
                look()


def test_without_a_shift_every_byte_is_meta_worlds(plain: ShiftedEnv) -> None:
    with MetaWorldEnv(TASK, size=48) as own:
        assert np.array_equal(picture(plain), picture(own)) and np.array_equal(act(plain, 9), act(own, 9))
        assert plain.settings == own.settings
        seen, wanted = plain.observe(), own.observe()
        assert torch.equal(seen.views["main"].clip, wanted.views["main"].clip) and torch.equal(
            seen.end_effector, wanted.end_effector
        )


SEEN = ["azimuth=18", "elevation=9", "distance=0.2", "roll=20", "look=1", "distractors=3", "noise=0.1", "blur=1", "latency=3"]


@pytest.mark.parametrize("text", [*SEEN, "calibration_deg=3", "calibration_px=4", "state_latency=3"])
def test_a_part_leaves_the_episode_and_changes_what_is_seen_or_told(plain: ShiftedEnv, text: str) -> None:
    with env(text) as shifted:
        before, after = picture(plain), picture(shifted)
        assert np.array_equal(before, after) == (text not in SEEN)
        moved = not torch.equal(plain.camera.world_T_camera, shifted.camera.world_T_camera)
        assert moved == text.startswith(("azimuth", "elevation", "distance", "roll", "calibration_deg"))
        assert torch.equal(plain.camera.intrinsics, shifted.camera.intrinsics) == (text != "calibration_px=4")
        told, late = plain.observe(views=False), shifted.observe(views=False)
        assert torch.equal(told.end_effector, late.end_effector) == (text != "state_latency=3")
        assert np.array_equal(plain.position, shifted.position)
        assert np.array_equal(act(plain, 40), act(shifted, 40)), "the expert, the layout or the physics is another one"
        assert plain.settings != shifted.settings


def test_everything_at_once_depends_on_the_seed_alone() -> None:
    with env(EVERYTHING) as first, env(EVERYTHING) as second:
        frame, camera = picture(first), first.camera
        picture(second, seed=8, steps=20)
        assert not np.array_equal(frame, second.render())
        assert np.array_equal(frame, picture(second)) and torch.equal(camera.world_T_camera, second.camera.world_T_camera)
        assert np.array_equal(frame, second.render()), "a frame that is asked for twice is another one"
        state, course = second.save_state(), act(second, 8)
        later = second.render()
        picture(second, seed=9)
        second.restore_state(state)
        assert np.array_equal(frame, second.render()) and torch.equal(camera.intrinsics, second.camera.intrinsics)
        assert np.array_equal(act(second, 8)[6:], course[6:]) and np.array_equal(later, second.render())


def test_late_frames_are_the_frames_of_then(plain: ShiftedEnv) -> None:
    with env("latency=4") as late, env("state_latency=4,noise=0.02") as told_late:
        frames, poses = [], []
        for step in range(9):
            for simulator in (plain, late, told_late):
                simulator.step(simulator.expert_action()) if step else simulator.reset(0)
            frames.append(plain.render())
            poses.append(plain.end_effector)
            assert np.array_equal(late.render(), frames[max(step - 4, 0)])
            assert torch.equal(late.observe(views=False).end_effector, poses[step])
            assert torch.equal(told_late.observe(views=False).end_effector, poses[max(step - 4, 0)])
            assert np.array_equal(late._env.data.geom_xpos, plain._env.data.geom_xpos), "looking back moved something"
        assert not np.array_equal(frames[0], frames[4])


def test_noise_and_blur_are_as_strong_as_they_say() -> None:
    grey, edge = np.full((64, 64, 3), 128, np.uint8), np.zeros((64, 64, 3), np.uint8)
    noisy = Shift(noise=0.1).sensed(grey, 0, 0).astype(float)
    assert noisy.std() == pytest.approx(25.5, rel=0.05) and noisy.mean() == pytest.approx(128, abs=1)
    assert not np.array_equal(noisy, Shift(noise=0.1).sensed(grey, 0, 1))
    edge[:, 32:] = 255
    steps = np.diff(Shift(blur=2).sensed(edge, 0, 0)[10, :, 0].astype(float))
    centre = (steps * np.arange(63)).sum() / 255
    assert np.sqrt((steps * (np.arange(63) - centre) ** 2).sum() / 255) == pytest.approx(2, abs=0.1)
    assert np.array_equal(Shift(blur=2).sensed(grey, 0, 0), grey)


def test_calibration_is_off_by_exactly_what_it_says_in_a_direction_of_the_seed() -> None:
    true = Camera.from_fov(45, (64, 64), torch.eye(4))
    directions = set()
    for seed in range(5):
        told = Shift(calibration_deg=3, calibration_px=2).miscalibrated(true, seed)
        turned = told.world_T_camera[:3, :3].double()
        assert torch.rad2deg(torch.arccos((turned.trace() - 1) / 2)) == pytest.approx(3, abs=1e-2)
        assert torch.equal(told.position, true.position)
        off = (told.intrinsics - true.intrinsics)[:2, 2]
        assert float(off.norm()) == pytest.approx(2, abs=1e-4)
        directions.add(tuple(off.tolist()))
        alone = Shift(calibration_px=2).miscalibrated(true, seed)
        assert torch.equal(alone.intrinsics, told.intrinsics), "one error changes the other's direction"
    assert len(directions) == 5


# ---------------------------------------------------------------- workspaces


@pytest.mark.parametrize("task", [TASK, "handle-pull-v3"])
@pytest.mark.parametrize(("one", "other"), [("left", "right"), ("near", "far")])
def test_halves_are_kept_to_and_do_not_meet(task: str, one: str, other: str) -> None:
    axis = WORKSPACES[one][0]
    layouts = {}
    for workspace in ("", one, other):
        with ShiftedEnv(task, Shift(workspace=workspace), widen=1.5) as simulator:
            space = simulator._env._random_reset_space
            rows = []
            for seed in range(12):
                simulator.reset(seed)
                rows.append(simulator.layout)
        layouts[workspace] = np.stack(rows).reshape(12, -1, 3)[..., axis]
        if not workspace:
            middle = ((space.low + space.high) / 2).reshape(-1, 3)[:, axis]
            free = (space.high - space.low).reshape(-1, 3)[:, axis] > 0.01
    assert (layouts[one] <= middle)[:, free].all() and (layouts[other] >= middle)[:, free].all()
    assert np.ptp(layouts[one][:, free], axis=0).min() > 0.02, "nothing varies any more"


def test_a_task_without_that_freedom_says_so() -> None:
    with pytest.raises(ValueError, match="drawer-open-v3 has no workspace to split: .* vary by 0 m in y"):
        ShiftedEnv("drawer-open-v3", Shift(workspace="near"))


# ---------------------------------------------------------------- among the others


def test_demonstrations_under_a_shift_are_of_what_arrives_and_is_told(plain: ShiftedEnv) -> None:
    with env("noise=0.1,calibration_px=3") as shifted:
        plan = Plan(1, tail=0)
        noisy, clean = record_demo(shifted, 0, plan), record_demo(plain, 0, plan)
    assert noisy is not None and clean is not None
    assert np.array_equal(noisy.positions, clean.positions) and not np.array_equal(noisy.frames, clean.frames)
    assert not torch.equal(noisy.camera.intrinsics, clean.camera.intrinsics)


def test_the_oracle_plans_under_everything_but_does_not_look(plain: ShiftedEnv) -> None:
    with env(EVERYTHING.replace("workspace=left,", "")) as shifted:
        episodes = [rollout(each, ReplanningOracle(each), MetaWorldServo(), 0, context=0) for each in (shifted, plain)]
    assert episodes[0].succeeded_at == episodes[1].succeeded_at is not None


def test_more_cameras_see_the_same_moment_and_leave_the_first_as_it_was() -> None:
    there = Shift(azimuth=-18).moved(CameraPlacement())
    with env("calibration_deg=3") as simulator, env() as turned:
        simulator.reset(3)
        both, told = ManyViews(simulator, {"other": there}), simulator.camera
        seen, plain = both.observe(), simulator.observe()
        turned.look_from(there)
        turned.reset(3)
        assert torch.equal(seen.views["main"].clip, plain.views["main"].clip) and seen.views["main"].camera is told
        assert simulator.camera is told and both.position == pytest.approx(turned.position)
        torch.testing.assert_close(seen.views["other"].camera.world_T_camera, there.camera(simulator.size).world_T_camera)
        assert torch.equal(seen.views["other"].clip, turned.observe().views["main"].clip)
        assert not both.observe(views=False).views
