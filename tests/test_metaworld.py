"""Meta-World: what a seed, a saved state and a camera promise, over all fifty tasks."""

import itertools
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from para_video.sims import metaworld
from para_video.sims.metaworld import TASKS, CameraPlacement, MetaWorldEnv, MetaWorldServo

mujoco = metaworld.mujoco  # not imported by itself: para_video chooses its OpenGL first
PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION


def present(env: MetaWorldEnv) -> bytes:
    """Physics and the expert's view of it, as bytes."""
    state = np.empty(mujoco.mj_stateSize(env._env.model, PHYSICS))
    mujoco.mj_getState(env._env.model, env._env.data, state, PHYSICS)
    return state.tobytes() + env._raw.tobytes()


def act(env: MetaWorldEnv, steps: int) -> list[bytes]:
    """What the expert goes through."""
    seen = []
    for _ in range(steps):
        result = env.step(env.expert_action())
        seen.append(present(env) + bytes([result.success]))
    return seen


def wander(env: MetaWorldEnv, steps: int) -> None:
    for command in np.random.default_rng(0).uniform(-1, 1, (steps, 4)):
        env.step(command)


# ---------------------------------------------------------------- all tasks


@pytest.mark.parametrize("task", TASKS)
def test_seeds_states_and_first_frames_are_exact(task: str) -> None:
    with MetaWorldEnv(task, size=48) as env:
        env.reset(3)
        start, frame = present(env), env.render()
        mujoco.mj_forward(env._env.model, env._env.data)
        assert np.array_equal(frame, env.render()), "the first frame shows a stale scene"

        env.reset(3)
        first = act(env, 12)
        state = env.save_state()
        future = act(env, 12)
        wander(env, 5)
        env.restore_state(state)
        assert act(env, 12) == future, "a restored state takes another course"

        env.reset(4)
        assert present(env) != start, "two seeds give the same episode"
        wander(env, 5)
        np.random.seed(7)  # Meta-World's own resets would follow this
        env.reset(3)
        assert present(env) == start and np.array_equal(frame, env.render()), "a seed depends on what ran before"
        assert act(env, 12) == first

        env.reset(4)
        env.restore_state(state)
        assert act(env, 12) == future, "a state is lost with the episode it was saved in"


def test_there_are_fifty_tasks() -> None:
    assert len(TASKS) == 50 and "pick-place-v3" in TASKS


# ---------------------------------------------------------------- cameras


@pytest.mark.parametrize(
    "placement",
    [CameraPlacement(), CameraPlacement(azimuth_deg=153, elevation_deg=-25, fovy_deg=30, target=(0.05, 0.7, 0.1), roll_deg=25)],
)
def test_the_camera_projects_markers_to_where_they_are_rendered(placement: CameraPlacement) -> None:
    with MetaWorldEnv("reach-v3", camera=placement, size=240) as env:
        env.reset(0)
        site = env._env.model.site("goal")
        site.size[:] = 0.02
        errors, surfaces = [], []
        for point in itertools.product((-0.15, 0.0, 0.1), (0.5, 0.65, 0.75), (0.03, 0.12)):
            site.pos[:] = point
            frames = []
            for alpha in (0.0, 1.0):
                site.rgba[:] = [1, 0, 1, alpha]
                mujoco.mj_forward(env._env.model, env._env.data)
                frames.append(env.render().astype(int))
            rows, columns = np.nonzero(np.abs(frames[1] - frames[0]).sum(-1) > 30)
            pixels, depth = env.camera.project(torch.tensor([point]))
            assert depth[0] > 0
            if len(rows) > 50:  # else the arm stands before it
                errors.append(pixels[0].numpy() - [columns.mean(), rows.mean()])
                column, row = pixels[0].round().long().tolist()
                surfaces.append(float(depth[0]) - env.depth()[row, column])
        assert len(errors) > 10
        assert np.median(surfaces) == pytest.approx(0.02, abs=0.002), "the sphere's front is one radius nearer than its centre"
        assert np.median(errors, axis=0) == pytest.approx([0, 0], abs=0.1), "half a pixel is the usual mistake"


def test_roll_turns_the_picture_anticlockwise_about_its_middle() -> None:
    level, rolled = CameraPlacement(), CameraPlacement(roll_deg=90)
    above = torch.tensor([[*level.target[:2], level.target[2] + 0.1]])
    (x, y), (turned_x, turned_y) = (p.camera(101).project(above)[0][0].tolist() for p in (level, rolled))
    assert y < 45 and (turned_x - 50, turned_y - 50) == pytest.approx((y - 50, 50 - x), abs=1e-3)


def test_the_observation_is_what_the_protocol_says() -> None:
    with MetaWorldEnv("pick-place-v3", size=32) as env:
        env.reset(0)
        observation = env.observe()
        view = observation.views["main"]
        assert view.clip.shape == (1, 3, 32, 32) and view.clip.dtype == torch.float32
        assert 0 <= view.clip.min() < view.clip.max() <= 1
        assert view.camera.intrinsics.dtype == view.camera.world_T_camera.dtype == torch.float32
        pose = observation.end_effector
        assert pose[:3, 3].numpy() == pytest.approx(env.position, abs=1e-6)
        assert torch.allclose(pose[:3, :3] @ pose[:3, :3].T, torch.eye(3), atol=1e-5)
        assert observation.instruction == "pick place"


def test_shadows_and_the_view_change_the_picture_and_nothing_else() -> None:
    frames, starts = [], []
    for camera, shadows in ((CameraPlacement(), False), (CameraPlacement(), True), (CameraPlacement(azimuth_deg=120), False)):
        with MetaWorldEnv("push-v3", camera=camera, shadows=shadows, size=64) as env:
            env.reset(1)
            frames.append(env.render())
            starts.append(present(env))
    assert starts[0] == starts[1] == starts[2]
    assert not np.array_equal(frames[0], frames[1]) and not np.array_equal(frames[0], frames[2])


def test_nothing_is_rendered_unless_asked_for_and_close_can_be_undone() -> None:
    env = MetaWorldEnv("reach-v3", size=32)
    env.reset(0)
    env.step(env.expert_action())
    assert env.observe(views=False).views == {} and env._renderer is None
    frame = env.render()
    env.close()
    env.close()
    assert env._renderer is None
    assert np.array_equal(env.render(), frame)
    env.close()


# ---------------------------------------------------------------- robot and servo


def test_the_gripper_closes_on_one_and_opens_on_minus_one() -> None:
    with MetaWorldEnv("reach-v3") as env:
        env.reset(0)
        opening = []
        for effort in (1.0, -1.0):
            for _ in range(20):
                env.step(np.array([0, 0, 0, effort]))
            opening.append(env.gripper_opening)
        assert 0 <= opening[0] < 0.5 < opening[1] <= 1


def test_the_servo_moves_the_commanded_hand_by_what_the_target_asks() -> None:
    with MetaWorldEnv("reach-v3") as env:
        env.reset(0)
        move = np.array([0.03, -0.01, 0.02])
        commands = MetaWorldServo().commands(env.position + move, 0.4, env.position, 5)
        before = env._env.data.mocap_pos[0].copy()
        for command in commands:
            env.step(command)
        assert commands.shape == (5, 4) and commands[:, 3] == pytest.approx(0.4)
        assert env._env.data.mocap_pos[0] - before == pytest.approx(move, abs=1e-6)
        assert sum(env.commanded_move(command) for command in commands) == pytest.approx(move, abs=1e-6)


def test_the_servo_asks_for_no_more_than_the_robot_can() -> None:
    commands = MetaWorldServo().commands(np.array([1.0, -1.0, 0.0]), 3.0, np.zeros(3), 2)
    assert commands.tolist() == [[1, -1, 0, 1]] * 2


def test_episodes_do_not_end_by_themselves() -> None:
    with MetaWorldEnv("reach-v3") as env:
        env.reset(0)
        assert not any(env.step(np.zeros(4)).ended for _ in range(env._env.max_path_length + 5))


# ---------------------------------------------------------------- ranges


def test_widened_ranges_grow_about_their_centre_up_to_the_reach() -> None:
    space = Box(np.array([-0.1, 0.6, 0.02, -0.1, 0.8, 0.05]), np.array([0.1, 0.7, 0.02, 0.1, 0.9, 0.3]), dtype=np.float64)
    low, high = np.array([-0.5, 0.4, 0.05]), np.array([0.5, 1.0, 0.5])
    wide = metaworld._widened(space, 2, low, high)
    assert wide.low == pytest.approx([-0.2, 0.55, 0.02, -0.2, 0.75, 0.05])
    assert wide.high == pytest.approx([0.2, 0.75, 0.02, 0.2, 0.95, 0.425])
    huge = metaworld._widened(space, 100, low, high)
    assert huge.low == pytest.approx([-0.5, 0.4, 0.02, -0.5, 0.4, 0.05])
    assert huge.high == pytest.approx([0.5, 1.0, 0.02, 0.5, 1.0, 0.5])
    narrow = metaworld._widened(space, 0.5, low, high)
    assert narrow.low == pytest.approx([-0.05, 0.625, 0.02, -0.05, 0.825, 0.1125])
    assert metaworld._widened(space, 1, low, high) == space


def test_a_range_beyond_the_reach_is_kept() -> None:
    space = Box(np.array([-0.6, 0.7, -0.1]), np.array([0.6, 0.8, -0.1]), dtype=np.float64)
    wide = metaworld._widened(space, 3, np.array([-0.5, 0.4, 0.05]), np.array([0.5, 1.0, 0.5]))
    assert wide.low == pytest.approx([-0.6, 0.6, -0.1]) and wide.high == pytest.approx([0.6, 0.9, -0.1])


def test_widen_moves_the_scene() -> None:
    positions = []
    for widen in (1.0, 2.0):
        with MetaWorldEnv("pick-place-v3", widen=widen) as env:
            env.reset(0)
            positions.append(env._raw[4:6].copy())
    centre = np.array([0, 0.65])
    assert positions[1] - centre == pytest.approx(2 * (positions[0] - centre), abs=0.02)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(("task", "hint"), [("pick-place", "pick-place-v3"), ("zzz", "assembly-v3")])
def test_an_unknown_task_lists_known_ones(task: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        MetaWorldEnv(task)


@pytest.mark.parametrize("widen", [0, -1, float("nan")])
def test_a_range_cannot_be_widened_by_nothing(widen: float) -> None:
    with pytest.raises(ValueError, match="widen"):
        MetaWorldEnv("reach-v3", widen=widen)


def test_ranges_without_a_place_for_object_and_goal_are_told() -> None:
    told = r"object and goal are far enough apart in none of \d+ drawn scenes; raise widen"
    with MetaWorldEnv("coffee-pull-v3", widen=0.25) as env, pytest.raises(ValueError, match=told):
        env.reset(0)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[sim\]'"):
        runpy.run_path(str(Path(metaworld.__file__)))


def test_without_opengl_physics_runs_and_rendering_names_the_package() -> None:
    script = (
        "from para_video.sims.metaworld import MetaWorldEnv\n"
        "env = MetaWorldEnv('reach-v3'); env.reset(0); env.step(env.expert_action())\n"
        "try: env.observe()\n"
        "except RuntimeError as error: assert 'libegl1' in str(error); raise SystemExit(7)\n"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env={**os.environ, "MUJOCO_GL": "disabled"})
    assert done.returncode == 7
