"""Clips of the simulator for video models: what is held out, and that looks change nothing but looks."""

from dataclasses import replace

import numpy as np
import pytest

from para_video.sims.metaworld import TASKS, CameraPlacement, MetaWorldEnv
from para_video.sims.metaworld_clips import (
    HELD_OUT_FAMILIES,
    HELD_OUT_TASKS,
    SHARES_A_SCENE,
    TRAINING_TASKS,
    ClipPlan,
    cached_clips,
    record_clips,
)


def test_no_training_task_is_built_from_a_held_out_scene():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    file = {task: ALL_V3_ENVIRONMENTS[task]().model_name for task in TASKS}
    assert not {file[task] for task in TRAINING_TASKS} & {file[task] for task in HELD_OUT_TASKS}
    assert all(file[task] in {file[held] for held in HELD_OUT_TASKS} for task in SHARES_A_SCENE)
    assert {task.split("-")[0] for task in HELD_OUT_TASKS} == set(HELD_OUT_FAMILIES)
    assert sorted({*TRAINING_TASKS, *HELD_OUT_TASKS, *SHARES_A_SCENE}) == list(TASKS)


def test_a_plan_gives_the_same_bytes_and_looks_leave_the_motion_alone():
    plan = ClipPlan(3, frames=6)
    with MetaWorldEnv("drawer-open-v3", size=48) as env:
        one, again = record_clips(env, plan).demos, record_clips(env, plan).demos
        plain = record_clips(env, replace(plan, looks=0.0)).demos
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(one, again, strict=True))
    assert all(np.array_equal(a.positions, b.positions) for a, b in zip(one, plain, strict=True))
    assert not any(np.array_equal(a.frames, b.frames) for a, b in zip(one, plain, strict=True))
    assert len({tuple(a.camera.world_T_camera.flatten().tolist()) for a in one}) == 3, "a camera each"


def test_episodes_move_differently():
    with MetaWorldEnv("drawer-open-v3", size=32) as env:
        expert, disturbed, random = (
            record_clips(env, ClipPlan(1, frames=8, disturbed=d, random=r)).demos[0] for d, r in ((0, 0), (1, 0), (0, 1))
        )
    assert not np.allclose(expert.positions, disturbed.positions, atol=0.01)
    assert not np.allclose(expert.positions, random.positions, atol=0.01)


def test_looks_can_be_taken_back():
    with MetaWorldEnv("drawer-open-v3", size=48) as env:
        env.reset(0)
        own = env.render()
        env.vary_looks(np.random.default_rng(0), 1.0)
        assert not np.array_equal(env.render(), own)
        env.vary_looks(np.random.default_rng(0), 0.0)
        assert np.array_equal(env.render(), own)


def test_a_moved_camera_sees_as_one_that_was_put_there():
    with MetaWorldEnv("reach-v3", size=64) as env:
        env.reset(0)
        before = env.render()
        env.look_from(CameraPlacement(azimuth_deg=170, elevation_deg=-30, fovy_deg=50))
        fresh = MetaWorldEnv("reach-v3", size=64, camera=env.placement)
        fresh.reset(0)
        assert np.array_equal(env.render(), fresh.render()) and not np.array_equal(env.render(), before)
        assert np.allclose(env.camera.intrinsics, fresh.camera.intrinsics)
        fresh.close()


def test_recording_goes_on_task_by_task(tmp_path):
    counted = []
    plan, tasks = ClipPlan(2, frames=3), ("reach-v3", "drawer-open-v3")
    first = cached_clips(tasks[:1], plan, size=32, cache=tmp_path / "demos", on_episode=lambda: counted.append(1))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    both = cached_clips(tasks, plan, size=32, cache=tmp_path / "demos", on_episode=lambda: counted.append(1))
    assert len(first) == 2 and len(both) == 4 and len(counted) == 2 + 4
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items()) and len(kept) == 2
    assert np.array_equal(first[1].frames, both[1].frames)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"frames": 1}, {"random": 0.9}, {"first_seed": 99_999}])
def test_impossible_plans_are_refused(wrong):
    with pytest.raises(ValueError, match="a plan wants|must lie in"):
        ClipPlan(**{"count": 3, **wrong})
