"""The doctor: a clean set passes, and each way to corrupt it is caught by the check that is about it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from para_video.camera import Camera
from para_video.demos import TUNING_SEED, Demo, DemoSet, Plan, record_demos, save_demos
from para_video.doctor import DoctorConfig, check_demos, check_env, colour_order, main
from para_video.sims.metaworld import MetaWorldEnv
from para_video.sims.shifts import Shift, ShiftedEnv


@pytest.fixture(scope="module")
def clean() -> DemoSet:
    with MetaWorldEnv("pick-place-v3", size=64) as env:
        return record_demos(env, Plan(3))


def verdicts(demos: tuple[Demo, ...]) -> dict[str, str]:
    return {check.name: check.verdict for check in check_demos(demos)}


def test_a_clean_set_passes(clean: DemoSet) -> None:
    assert set(verdicts(clean.demos).values()) == {"ok", "not checked"}


def test_frames_of_several_sizes_are_told_and_drawn(clean: DemoSet, tmp_path: Path) -> None:
    first, second, _ = clean.demos
    half = first.camera.intrinsics * torch.tensor([[0.5], [0.5], [1.0]])
    small = replace(first, frames=first.frames[:, ::2, ::2], camera=replace(first.camera, intrinsics=half), seed=7)
    save_demos(DemoSet((second, small)), tmp_path / "set")
    found = {check.name: check for check in main(DoctorConfig(demo_folder=tmp_path / "set", out=tmp_path / "out"))}
    assert found["frame sizes"].verdict == "wrong" and found["frame sizes"].value == "32 x 32, 64 x 64 px"
    assert found["images"].remedy == "mend frame sizes" and (tmp_path / "out" / "doctor.png").is_file()


def test_a_lag_is_not_claimed_where_the_hand_moves_evenly() -> None:
    demos = []
    with MetaWorldEnv("reach-v3", size=64) as env:
        for seed, way in enumerate([(0.6, 0.3, 0), (-0.6, 0.3, 0.1), (0.3, -0.4, 0.4)]):
            env.reset(seed)
            command, rows = np.array([*way, -1], np.float32), []
            for step in range(30):
                if step >= 6:  # it moves at its full speed
                    pose = env.end_effector.numpy()
                    rows.append((env.render(), pose[:3, 3], pose[:3, :3], np.float32(env.gripper_opening), np.float32(-1)))
                env.step(command)
            demos.append(Demo(*map(np.stack, zip(*rows, strict=True)), env.camera, env.task, seed))
    found = verdicts(tuple(demos))
    assert found["image lag"] == "not checked" and set(found.values()) == {"ok", "not checked"}


def with_images(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Demo], Demo]:
    return lambda demo: replace(demo, frames=np.ascontiguousarray(change(demo.frames)))


def delayed(frames: np.ndarray, by: int) -> np.ndarray:
    return frames[np.clip(np.arange(len(frames)) - by, 0, len(frames) - 1)]


def stuck(frames: np.ndarray) -> np.ndarray:
    return np.concatenate([frames[:10], np.repeat(frames[10:11], 12, axis=0), frames[22:]])


def creeping(frames: np.ndarray) -> np.ndarray:
    """Images that move by an eighth of their width in the course of an episode."""
    way = np.linspace(0, frames.shape[2] / 8, len(frames)).round().astype(int)
    return np.stack([np.roll(frame, px, axis=1) for frame, px in zip(frames, way, strict=True)])


def turned_camera(degrees: float, axis: int) -> Callable[[Demo], Demo]:
    """The camera turned about its own x (0) or y (1) axis."""
    angle = torch.zeros(3)
    angle[axis] = np.deg2rad(degrees)
    skew = torch.tensor([[0, -angle[2], angle[1]], [angle[2], 0, -angle[0]], [-angle[1], angle[0], 0]])
    turn = torch.eye(4)
    turn[:3, :3] = torch.linalg.matrix_exp(skew)
    return lambda demo: replace(demo, camera=replace(demo.camera, world_T_camera=demo.camera.world_T_camera @ turn))


def with_nan(demo: Demo) -> Demo:
    positions = demo.positions.copy()
    positions[5, 1] = np.nan
    return replace(demo, positions=positions)


def with_jump(demo: Demo) -> Demo:
    return replace(demo, positions=demo.positions + np.where(np.arange(len(demo)) == 20, 0.2, 0).astype(np.float32)[:, None])


def zoomed(camera: Camera, factor: float) -> Camera:
    return replace(camera, intrinsics=camera.intrinsics * torch.tensor([[factor, factor, 1.0], [factor, factor, 1], [1, 1, 1]]))


@pytest.mark.parametrize(
    ("name", "corrupt"),
    [
        ("image orientation", with_images(lambda frames: frames[:, ::-1])),
        ("image orientation", with_images(lambda frames: frames[:, :, ::-1])),
        ("image orientation", with_images(lambda frames: np.rot90(frames, 1, axes=(1, 2)))),
        ("camera offset", turned_camera(5, 0)),
        ("camera offset", turned_camera(-5, 0)),
        ("camera offset", turned_camera(5, 1)),
        ("camera offset", turned_camera(-5, 1)),
        ("camera roll", turned_camera(6, 2)),
        ("focal length by motion", lambda demo: replace(demo, camera=zoomed(demo.camera, 1.2))),
        ("focal length by motion", lambda demo: replace(demo, camera=zoomed(demo.camera, 0.8))),
        ("image lag", with_images(lambda frames: delayed(frames, 1))),
        ("gripper sign", lambda demo: replace(demo, gripper=-demo.gripper)),
        ("gripper range", lambda demo: replace(demo, openings=100 * demo.openings)),
        ("image lag", with_images(lambda frames: delayed(frames, 2))),
        ("image lag", with_images(lambda frames: delayed(frames, -1))),
        ("repeated frames", with_images(stuck)),
        ("not finite", with_nan),
        ("position jump", with_jump),
        ("rotations", lambda demo: replace(demo, rotations=1.1 * demo.rotations)),
        ("evaluation seeds", lambda demo: replace(demo, seed=TUNING_SEED + demo.seed)),
    ],
)
def test_a_corruption_is_caught_by_its_check(clean: DemoSet, name: str, corrupt: Callable[[Demo], Demo]) -> None:
    found = verdicts(tuple(map(corrupt, clean.demos)))
    assert [check for check, verdict in found.items() if verdict in ("wrong", "suspicious")] == [name]


def test_a_long_lens_a_duplicate_and_a_moved_camera_in_one_episode_are_caught(clean: DemoSet) -> None:
    assert verdicts(tuple(replace(d, camera=zoomed(d.camera, 16)) for d in clean.demos))["focal length"] == "wrong"
    assert verdicts((*clean.demos, replace(clean.demos[0], seed=77)))["duplicate episodes"] == "wrong"
    assert verdicts(tuple(with_images(creeping)(d) for d in clean.demos))["camera over time"] == "suspicious"
    assert verdicts((*clean.demos[:2], turned_camera(6, 1)(clean.demos[2])))["camera by episode"] == "suspicious"


def test_the_simulator_of_a_set_passes(clean: DemoSet) -> None:
    found = {check.name: check.verdict for check in check_env(clean.settings, clean.demos, 2)}
    assert found.pop("blind replay") in ("ok", "suspicious")  # two episodes say little
    assert set(found.values()) == {"ok"}


def test_demonstrations_of_half_a_workspace_replay_from_their_own_seeds() -> None:
    with ShiftedEnv("pick-place-v3", Shift(workspace="left"), size=64) as env:
        demos = record_demos(env, Plan(2))
    found = {check.name: check for check in check_env(demos.settings, demos.demos, 1)}
    assert found["replay from its own seed"].value == "100% of 2" and found["colour order"].verdict == "ok"


def test_demonstrations_that_begin_elsewhere_than_their_seed_are_not_compared_with_it() -> None:
    with MetaWorldEnv("pick-place-v3", size=64) as env:
        demos = record_demos(env, Plan(3, scatter=25))
    found = {check.name: check for check in check_env(demos.settings, demos.demos, 1)}
    assert found["replay from its own seed"].value == "100% of 2" and found["colour order"].verdict == "ok"


def test_what_was_found_of_the_data_is_told_before_the_simulator_runs(clean, tmp_path: Path, monkeypatch, capsys) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("para_video.doctor.check_env", stopped)
    save_demos(clean, tmp_path / "set")
    with pytest.raises(KeyboardInterrupt):
        main(DoctorConfig(demo_folder=tmp_path / "set", out=tmp_path / "out"))
    assert "image orientation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "error"),
    [({}, "KeyError"), ({"task": "pick-place-v9", "size": 64}, "ValueError"), ({"camera": None}, "TypeError")],
)
def test_what_was_found_of_the_data_is_told_where_the_simulator_fails(clean, tmp_path: Path, settings: dict, error: str) -> None:
    told = {**(clean.settings if settings else {}), **settings, "simulator": "metaworld"}
    save_demos(replace(clean, settings=told), tmp_path / "set")
    *checks, last = main(DoctorConfig(demo_folder=tmp_path / "set", out=tmp_path / "out"))
    assert len(checks) > 5 and (last.name, last.verdict) == ("simulator", "not checked") and error in last.value
    assert (tmp_path / "out" / "doctor.json").is_file()


@pytest.mark.parametrize(("episodes", "told"), [(0, "--episodes 0"), (1, "the set's settings do not say that it is of Meta-World")])
def test_why_the_simulator_is_not_checked_is_told(clean: DemoSet, tmp_path: Path, episodes: int, told: str) -> None:
    save_demos(replace(clean, settings={}), tmp_path / "set")
    *_, last = main(DoctorConfig(demo_folder=tmp_path / "set", episodes=episodes, out=tmp_path / "out"))
    assert (last.name, last.verdict, last.value) == ("simulator", "not checked", told)


def test_swapped_colours_are_told_by_rendering_again(clean: DemoSet) -> None:
    def found(change: Callable[[np.ndarray], np.ndarray]) -> tuple[str, str]:
        with MetaWorldEnv("pick-place-v3", size=64) as env:
            check = colour_order(env, [with_images(change)(demo) for demo in clean.demos])
        return check.verdict, check.value

    assert found(lambda frames: frames) == ("ok", "red, green, blue")
    assert found(lambda frames: frames[..., ::-1]) == ("wrong", "blue, green, red")
    assert found(lambda frames: frames // 2)[0] == "not checked"


def test_a_folder_gets_a_picture_and_a_json(clean: DemoSet, tmp_path: Path) -> None:
    save_demos(clean, tmp_path / "set")
    checks = main(DoctorConfig(demo_folder=tmp_path / "set", episodes=0, out=tmp_path / "out"))
    written = json.loads((tmp_path / "out" / "doctor.json").read_text())
    assert [entry["name"] for entry in written] == [check.name for check in checks]
    assert (tmp_path / "out" / "doctor.png").is_file()


def test_an_unknown_task_is_no_damaged_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown Meta-World task 'pick-plce-v3'.*pick-place-v3"):
        main(DoctorConfig(task="pick-plce-v3", out=tmp_path / "doctor"))
    assert not (tmp_path / "doctor").exists()


def test_a_damaged_folder_is_wrong(clean: DemoSet, tmp_path: Path) -> None:
    save_demos(clean, tmp_path / "set")
    (tmp_path / "set" / "demo_0000.safetensors").write_bytes(b"no")
    assert main(DoctorConfig(demo_folder=tmp_path / "set", out=tmp_path / "out"))[0].verdict == "wrong"


def test_a_set_of_nothing_is_wrong_and_one_of_single_steps_is_not_judged(clean: DemoSet, tmp_path: Path) -> None:
    save_demos(DemoSet(()), tmp_path / "none")
    first, *_ = main(DoctorConfig(demo_folder=tmp_path / "none", out=tmp_path / "out"))
    assert (first.name, first.verdict, first.value) == ("demonstrations", "wrong", "none")
    names = ("frames", "positions", "rotations", "openings", "gripper", "moves")
    steps = [replace(demo, **{name: getattr(demo, name)[:1] for name in names}) for demo in clean.demos]
    save_demos(DemoSet(tuple(steps)), tmp_path / "steps")
    checks = {check.name: check for check in main(DoctorConfig(demo_folder=tmp_path / "steps", episodes=0, out=tmp_path / "out"))}
    assert checks["hand found"].verdict == checks["gripper sign"].verdict == "not checked"
    assert (tmp_path / "out" / "doctor.png").is_file()
