"""What stands around a task: looks that leave it alone, and distractors that are seen and in nobody's way."""

import numpy as np
import pytest

from para_video.sims import scenery
from para_video.sims.metaworld import MetaWorldEnv, _free_camera, mujoco
from para_video.sims.scenery import SHAPES, TEXTURES, _clear_of, _covers, _in_sight, _pixels
from para_video.sims.shifts import Shift, ShiftedEnv

TASKS = ["shelf-place-v3", "sweep-into-v3"]


def geoms_seen(env: MetaWorldEnv) -> np.ndarray:
    """(H, W) the name of the geom at each pixel."""
    env.render()
    env._renderer.update_scene(env._env.data, camera=_free_camera(env.placement))
    env._renderer.enable_segmentation_rendering()
    numbers = env._renderer.render()[..., 0]
    env._renderer.disable_segmentation_rendering()
    names = np.array([env._env.model.geom(g).name or str(g) for g in range(env._env.model.ngeom)] + [""])
    return names[numbers]


def texture_means(env: MetaWorldEnv) -> np.ndarray:
    return np.stack([_pixels(env._env.model, env._env.model.tex(name).id).mean((0, 1)) for name in TEXTURES])


def test_every_look_is_another_one_and_none_is_the_training_look() -> None:
    means = []
    for look in range(5):
        with ShiftedEnv("pick-place-v3", Shift(look=look)) as env:
            model = env._env.model
            means.append(texture_means(env))
            arm = model.geom_rgba[model.geom_bodyid == model.body("right_l3").id, :3]
            assert (np.abs(arm - scenery.ARM_RGB).max() > 0.1) == (look > 0)
            assert np.allclose(model.geom("objGeom").rgba, (1, 0, 0, 1)), "the task's own object is painted"
            assert np.allclose(model.geom("leftpad_geom").rgba, (0, 1, 1, 1))
    for look in range(1, 5):
        assert (np.abs(means[look] - means[0]).max(1) > 35).all(), "a look is near the training look"
        assert all(np.abs(means[look] - means[other]).max() > 5 for other in range(1, look))


@pytest.mark.parametrize("task", TASKS)
def test_distractors_are_seen_and_neither_touch_nor_cover_anything(task: str) -> None:
    names = {f"distractor{index}" for index in range(len(SHAPES))}
    with ShiftedEnv(task, Shift(distractors=8), size=96) as env, ShiftedEnv(task, size=96) as plain:
        model, data = env._env.model, env._env.data
        moving = [g for g in range(model.ngeom) if model.body_weldid[model.geom_bodyid[g]]]
        env.reset(2)
        plain.reset(2)
        seen = geoms_seen(env)
        shown = names & set(seen.ravel())
        assert len(shown) == 8 and all((seen == name).sum() > 8 for name in shown)
        for step in range(75):
            results = [each.step(each.expert_action()) for each in (env, plain)]
            assert results[0] == results[1] and np.array_equal(data.qpos, plain._env.data.qpos)
            if step % 25 == 0:
                gaps = [mujoco.mj_geomDistance(model, data, model.geom(n).id, g, 0.1, None) for n in shown for g in moving]
                assert min(gaps) > scenery.CLEARANCE_M / 2
                before, after = geoms_seen(plain), geoms_seen(env)
                covered = ~np.isin(after, list(shown)) | (before == after)
                low = [model.geom(g).name for g in moving if data.geom_xpos[g, 2] < 0.15 and model.geom(g).name]
                assert not np.isin(before[~covered], low).any()
        first = {name: model.body(name).pos.copy() for name in shown}
        env.reset(3)
        env.reset(2)
        assert all(np.array_equal(model.body(name).pos, place) for name, place in first.items())


def test_what_is_in_the_way_is_found() -> None:
    spots = np.array([[0.0, 0.0], [0.3, 0.0], [0.14, 0.14]])
    boxes = np.array([[-0.1, -0.1, 0.1, 0.1], [5.0, 5.0, 6.0, 6.0]])
    assert _clear_of(spots, boxes, 0.05).tolist() == [False, True, True] and not _clear_of(spots, boxes, 0.06)[2]
    balls = np.array([[0.0, 0.0, 0.5], [0.2, 0.0, 0.5], [0.0, 0.0, -0.5]])
    seen_from_above = _covers(balls, 0.1, np.array([0.0, 0.0, 1.0]), np.array([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0]]))
    assert seen_from_above.tolist() == [True, False, False], "what is beside or behind a point does not cover it"


def test_what_stands_behind_the_arm_is_not_in_sight() -> None:
    with ShiftedEnv("pick-place-v3", size=64) as env:
        env.reset(0)
        eye = env.camera.position.double().numpy()
        link = env._env.data.body("right_hand").xpos
        assert _in_sight(env, eye + 0.7 * (link - eye), 0.02, env.camera)
        assert not _in_sight(env, eye + 1.3 * (link - eye), 0.02, env.camera)


def test_where_there_is_no_room_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenery, "CANDIDATES", 1)
    with (
        ShiftedEnv("pick-place-v3", Shift(distractors=8)) as env,
        pytest.raises(RuntimeError, match="no room for 8.*ask for fewer"),
    ):
        env.reset(0)
