"""Demonstrations: what a target means, what is kept and discarded, and that damage on disk is noticed."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock, Timeout
from safetensors.numpy import load_file, save_file

from para_video import demos as demos_module
from para_video.camera import Camera
from para_video.demos import (
    TUNING_SEED,
    DemoSet,
    Plan,
    cache_name,
    cached_demos,
    demos_digest,
    future_targets,
    load_demos,
    record_demo,
    record_demos,
    recorded_once,
    save_demos,
    select_demos,
)
from para_video.sims.metaworld import CameraPlacement, MetaWorldEnv


@pytest.fixture(scope="module")
def env():
    with MetaWorldEnv("reach-v3", size=16) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def three(env: MetaWorldEnv) -> DemoSet:
    return record_demos(env, Plan(3))


@pytest.fixture
def folder(three: DemoSet, tmp_path: Path) -> Path:
    save_demos(three, tmp_path / "set")
    return tmp_path / "set"


def same(one: DemoSet, other: DemoSet) -> bool:
    names = ("frames", "positions", "rotations", "openings", "gripper", "moves")
    return len(one) == len(other) and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for a, b in zip(one.demos, other.demos, strict=True) for name in names
    )


# ---------------------------------------------------------------- targets


def test_a_target_is_the_segments_start_plus_the_commanded_move() -> None:
    positions = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]], np.float32)
    moves = np.array([[2, 0, 0], [0, 2, 0], [0, 0, 2], [5, 0, 0]], np.float32)
    gripper = np.array([-1, -0.5, 0.5, 1], np.float32)
    targets, efforts = future_targets(positions, gripper, moves, np.array([0, 1]), chunk=3, stride=2)
    # from step 0: (0,0,0) + moves 0 and 1; (1,1,0) + moves 2 and 3; then the demonstration stands at its last position
    assert targets[0].tolist() == [[2, 2, 0], [6, 1, 2], [1, 1, 1]]
    assert efforts[0].tolist() == [-1, 0.5, 1]
    # from step 1: (1,0,0) + moves 1 and 2; (1,1,1) + move 3
    assert targets[1].tolist() == [[1, 2, 2], [6, 1, 1], [1, 1, 1]]
    assert targets.dtype == efforts.dtype == np.float32


def test_without_commands_a_target_is_where_the_gripper_went() -> None:
    positions = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    targets, _ = future_targets(positions, np.zeros(9), None, np.arange(9), chunk=2, stride=3)
    assert targets[:, 0] == pytest.approx(positions[np.minimum(np.arange(9) + 3, 8)], abs=1e-6)
    assert targets[:, 1] == pytest.approx(positions[np.minimum(np.arange(9) + 6, 8)], abs=1e-6)


def test_targets_lie_near_the_path_ahead(three: DemoSet) -> None:
    demo = three.demos[0]
    targets, _ = demo.targets(np.arange(len(demo)), chunk=2, stride=5)
    later = demo.positions[np.minimum(np.arange(len(demo)) + 5, len(demo) - 1)]
    assert np.linalg.norm(targets[:, 0] - later, axis=1).max() < 0.08  # the hand lags behind what is commanded
    assert np.linalg.norm(targets[:, 0] - later, axis=1)[-8:].max() < 0.01  # and has arrived in the end


# ---------------------------------------------------------------- recording


def test_demos_record_what_their_seed_shows(env: MetaWorldEnv, three: DemoSet) -> None:
    demo = three.demos[1]
    assert demo.seed == 1 and demo.task == "reach-v3"
    assert demo.frames.shape == (len(demo), 16, 16, 3) and demo.frames.dtype == np.uint8
    env.reset(1)
    assert np.array_equal(demo.frames[0], env.render())
    assert demo.positions[0] == pytest.approx(env.position, abs=1e-6)
    command = env.expert_action()
    assert demo.gripper[0] == command[3] and demo.moves[0] == pytest.approx(env.commanded_move(command))
    env.step(command)
    assert demo.positions[1] == pytest.approx(env.position, abs=1e-6)


def test_a_demo_stops_its_tail_after_the_success(env: MetaWorldEnv) -> None:
    short, long = (record_demo(env, 0, Plan(1, tail=tail), frames=False) for tail in (0, 7))
    assert len(long) == len(short) + 7
    assert np.array_equal(long.positions[: len(short)], short.positions)
    assert short.frames.shape == (len(short), 0, 0, 3)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"noise": -0.1}, {"noise": float("nan")}, {"scatter": -1}, {"limit": 0}])
def test_plans_that_record_nothing_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=rf"got {{'{next(iter(wrong))}': "):
        Plan(**{"count": 1, **wrong})


def test_failed_seeds_are_discarded_and_listed(env: MetaWorldEnv) -> None:
    lengths = {seed: len(record_demo(env, seed, Plan(1, tail=0), frames=False)) for seed in range(8)}
    limit = sorted(lengths.values())[3]
    heard = []
    found = record_demos(env, Plan(4, limit=limit, tail=0), on_episode=lambda seed, won: heard.append((seed, won)))
    expected = [seed for seed in lengths if lengths[seed] <= limit][:4]
    assert [demo.seed for demo in found.demos] == expected
    assert list(found.discarded) == [seed for seed in range(max(expected)) if seed not in expected] != []
    assert heard == [(seed, seed in expected) for seed in range(max(expected) + 1)]


def test_scenes_beyond_the_spread_take_the_place_of_failed_ones(env: MetaWorldEnv) -> None:
    lengths = {seed: len(record_demo(env, seed, Plan(1, tail=0), frames=False)) for seed in range(4)}
    found = record_demos(env, Plan(4, limit=max(lengths.values()) - 1, tail=0, spread_over=4))
    assert len(found) == 4 and {demo.seed for demo in found.demos} - lengths.keys() and found.discarded


def test_an_expert_that_always_fails_is_an_error(env: MetaWorldEnv) -> None:
    with pytest.raises(RuntimeError, match="limit of 2 steps"):
        record_demos(env, Plan(1, limit=2))


@pytest.mark.parametrize("seed", [-1, TUNING_SEED])
def test_demo_seeds_stay_clear_of_evaluation_seeds(env: MetaWorldEnv, seed: int) -> None:
    with pytest.raises(ValueError, match="first_seed"):
        record_demos(env, Plan(1, first_seed=seed))


def test_noise_changes_the_path_and_not_the_start(env: MetaWorldEnv) -> None:
    clean, noisy, again = (record_demo(env, 0, Plan(1, noise=noise), frames=False) for noise in (0, 0.3, 0.3))
    assert np.array_equal(clean.positions[0], noisy.positions[0])
    assert np.abs(clean.positions[10] - noisy.positions[10]).max() > 1e-3
    assert np.array_equal(noisy.positions, again.positions)


def test_scatter_moves_every_second_start_by_no_more_than_it_says_and_leaves_the_scene(env: MetaWorldEnv) -> None:
    plain, far, again = (record_demos(env, Plan(4, scatter=steps)).demos for steps in (0, 12, 12))
    assert all(np.array_equal(a.positions, b.positions) for a, b in zip(far, again, strict=True))
    moved = [np.abs(a.positions[0] - b.positions[0]).max() for a, b in zip(plain, far, strict=True)]
    assert [distance > 0 for distance in moved] == [False, True, False, True] and max(moved) < 12 * 0.01 + 0.02
    gaps = [np.linalg.norm(a.positions[-1] - b.positions[-1]) for a, b in zip(plain, far, strict=True)]
    assert max(gaps) < 0.05, "another goal is reached"


# ---------------------------------------------------------------- disk


def test_what_is_saved_is_loaded(three: DemoSet, folder: Path) -> None:
    loaded = load_demos(folder)
    assert same(loaded, three)
    assert loaded.settings == json.loads(json.dumps(dict(three.settings)))
    assert [demo.seed for demo in loaded.demos] == [0, 1, 2]
    assert np.array_equal(loaded.demos[0].camera.world_T_camera, three.demos[0].camera.world_T_camera)
    assert sorted(path.suffix for path in folder.iterdir()) == [".json"] + [".safetensors"] * 3


def test_demos_without_known_commands_are_kept_as_such(three: DemoSet, tmp_path: Path) -> None:
    save_demos(DemoSet((replace(three.demos[0], moves=None),)), tmp_path / "own")
    assert load_demos(tmp_path / "own").demos[0].moves is None


def test_the_cache_is_asked_before_the_simulator(env: MetaWorldEnv, tmp_path: Path) -> None:
    heard = []
    first, second, other = (
        cached_demos(env, plan, cache=tmp_path, on_episode=lambda seed, _: heard.append(seed))
        for plan in (Plan(1), Plan(1), Plan(1, first_seed=5))
    )
    assert heard == [0, 5]
    assert same(first, second) and not same(first, other)
    assert len([path for path in tmp_path.iterdir() if path.suffix != ".lock"]) == 2, "something is left over"


def test_while_one_records_a_set_others_wait(three: DemoSet, tmp_path: Path) -> None:
    def record() -> DemoSet:
        with pytest.raises(Timeout):
            FileLock(tmp_path / "set.lock").acquire(blocking=False)
        return three

    assert same(recorded_once(tmp_path / "set", record), three)
    assert same(recorded_once(tmp_path / "set", lambda: pytest.fail("it was there")), three)


def test_whatever_changes_a_byte_changes_the_name_in_the_cache(env: MetaWorldEnv) -> None:
    plans = [Plan(1), Plan(2), Plan(1, first_seed=5), Plan(1, noise=0.1), Plan(1, scatter=9), Plan(1, tail=3), Plan(1, limit=150)]
    names = [cache_name({**env.settings, **asdict(plan)}) for plan in plans]
    views = [{}, {"size": 24}, {"shadows": True}, {"widen": 1.5}, {"camera": CameraPlacement(azimuth_deg=140)}]
    names += [cache_name({**MetaWorldEnv("reach-v3", **view).settings, **asdict(Plan(1))}) for view in views]
    names += [cache_name({**env.settings, **asdict(Plan(1)), key: "other"}) for key in ("task", "metaworld", "mujoco")]
    assert len(set(names)) == len(names)
    assert cache_name({**env.settings, **asdict(Plan(1))}) == names[0]


def test_the_cache_goes_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PARA_VIDEO_CACHE", str(tmp_path))
    assert demos_module.cache_folder() == tmp_path / "demos"
    monkeypatch.delenv("PARA_VIDEO_CACHE")
    assert demos_module.cache_folder() == Path.home() / ".cache" / "para_video" / "demos"


def test_a_set_that_cannot_be_written_leaves_nothing_behind(three: DemoSet, tmp_path: Path) -> None:
    bad = replace(three.demos[1], gripper=three.demos[1].gripper[:-1])
    with pytest.raises(ValueError, match="gripper"):
        save_demos(DemoSet((three.demos[0], bad)), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_a_set_is_not_overwritten(three: DemoSet, folder: Path) -> None:
    with pytest.raises(FileExistsError, match="another folder"):
        save_demos(three, folder)


@pytest.mark.parametrize("keep", [0, 7, 5000])
def test_a_truncated_file_is_named(folder: Path, keep: int) -> None:
    path = folder / "demo_0001.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"demo_0001\.safetensors is damaged.*record again"):
        load_demos(folder)


def test_one_changed_byte_is_noticed(folder: Path) -> None:
    path = folder / "demo_0002.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"demo_0002\.safetensors is damaged"):
        load_demos(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "demo_0000.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"demo_0000\.safetensors"):
        load_demos(folder)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"format": 1}',
        '{"format": 1, "demos": [{}], "settings": {}, "discarded": []}',
        '{"format": 1, "demos": [], "settings": {}, "discarded": null}',
        '{"format": 1, "demos": [], "settings": null, "discarded": []}',
    ],
)
def test_a_damaged_index_is_named(folder: Path, content: str) -> None:
    (folder / "demos.json").write_text(content)
    with pytest.raises(ValueError, match=r"demos\.json is damaged"):
        load_demos(folder)


def test_another_format_is_refused(folder: Path) -> None:
    index = folder / "demos.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        load_demos(folder)


def test_no_demo_set_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"demos\.json is missing"):
        load_demos(tmp_path)


def test_files_outside_the_folder_are_not_read(tmp_path: Path, env) -> None:
    save_demos(record_demos(env, Plan(count=1)), tmp_path / "set")
    save_demos(record_demos(env, Plan(count=1)), tmp_path / "other")
    index = json.loads((tmp_path / "set" / "demos.json").read_text())
    for place in ("../other/demo_0000.safetensors", str(tmp_path / "other" / "demo_0000.safetensors")):
        index["demos"][0]["file"] = place
        (tmp_path / "set" / "demos.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match="is no name of a file beside it"):
            load_demos(tmp_path / "set")


def test_a_digest_tells_files_whose_checksum_is_not_listed(tmp_path: Path, env) -> None:
    save_demos(record_demos(env, Plan(count=1)), tmp_path / "set")
    rewritten(tmp_path / "set")
    before = demos_digest(tmp_path / "set")
    rewritten(tmp_path / "set", openings=np.zeros(3, np.float32))
    assert demos_digest(tmp_path / "set") != before


def rewritten(folder: Path, **arrays: np.ndarray) -> None:
    """Replace arrays of the first demo, as someone does who writes the files without `save_demos`."""
    path = folder / "demo_0000.safetensors"
    save_file({**load_file(path), **arrays}, path)
    index = json.loads((folder / "demos.json").read_text())
    index["demos"][0].pop("sha256", None)
    (folder / "demos.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "positions",
            lambda a: np.where(np.arange(len(a))[:, None] == 4, np.nan, a).astype(np.float32),
            "not finite at step 4",
        ),
        ("gripper", lambda a: a[:-1], r"gripper has shape"),
        ("frames", lambda a: a[..., :2].copy(), r"frames has shape"),
        ("rotations", lambda a: a.reshape(len(a), 9), r"rotations has shape"),
        ("openings", lambda a: a.astype(np.float64), "openings is float64, wanted float32"),
        ("openings", lambda a: 5 + a, r"openings lies in \[.*wanted \[0, 1\]"),
        ("gripper", lambda a: a - 40, r"gripper lies in"),
        ("rotations", lambda a: 0 * a, "no rotations"),
        ("rotations", lambda a: -a, "no rotations"),
        ("positions", lambda a: np.array(1.0, np.float32), "has shape"),
        ("world_T_camera", lambda a: 2 * a, "not a demo.*rigid"),
        ("surprise", lambda a: np.zeros(3), "not a demo.*surprise"),
    ],
)
def test_inconsistent_arrays_are_named(folder: Path, name: str, change, message: str) -> None:
    array = load_file(folder / "demo_0000.safetensors").get(name)
    rewritten(folder, **{name: change(array)})
    with pytest.raises(ValueError, match=message) as caught:
        load_demos(folder)
    assert "demo_0000.safetensors" in str(caught.value) and "record again" in str(caught.value)


def test_a_demo_without_steps_is_refused(three: DemoSet, tmp_path: Path) -> None:
    demo = three.demos[0]
    names = ("frames", "positions", "rotations", "openings", "gripper", "moves")
    empty = replace(demo, **{name: getattr(demo, name)[:0] for name in names})
    with pytest.raises(ValueError, match="shape"):
        save_demos(DemoSet((empty,)), tmp_path / "set")


def test_what_the_files_cannot_say_is_refused(three: DemoSet, folder: Path, tmp_path: Path) -> None:
    camera = three.demos[0].camera
    lens, three_of_it = replace(camera, distortion=object()), Camera.stack([camera] * 3)
    for other, message in ((lens, "undistort the frames"), (three_of_it, "one camera")):
        with pytest.raises(ValueError, match=message):
            save_demos(DemoSet((replace(three.demos[0], camera=other),)), tmp_path / "other")
    save_demos(DemoSet((replace(three.demos[0], seed=np.int64(3)),)), tmp_path / "numpy")
    assert load_demos(tmp_path / "numpy").demos[0].seed == 3
    index = json.loads((folder / "demos.json").read_text())
    index["demos"][0]["seed"] = "7"
    (folder / "demos.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="seed '7' is no integer"):
        load_demos(folder)


# ---------------------------------------------------------------- selection


def test_few_shots_are_the_first(three: DemoSet) -> None:
    assert [demo.seed for demo in select_demos(three, 2).demos] == [0, 1]


@pytest.mark.parametrize("count", [0, 4])
def test_no_more_can_be_chosen_than_there_are(three: DemoSet, count: int) -> None:
    with pytest.raises(ValueError, match=f"asked for {count}.*set of 3"):
        select_demos(three, count)


def test_a_full_disk_is_told_with_the_file_and_leaves_nothing(
    three: DemoSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*demo_0000.safetensors .*No space left on device; free some space"):
        save_demos(three, tmp_path / "set")
    assert not list(tmp_path.iterdir())
