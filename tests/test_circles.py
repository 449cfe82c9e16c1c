"""The circle-tracking generator: reproducible, labelled to the tenth of a pixel, purposeful."""

import colorsys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from para_video.circles import (
    KINDS,
    CircleVideos,
    Drift,
    Motion,
    Scene,
    Shape,
    constant_velocity,
    fetch,
    minimum_jerk,
    paint,
    render,
    visibility,
)
from para_video.video import write_video

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def bare(scene: Scene, size: int, **changes) -> Scene:
    """The scene in the dark: nothing but the palm, white and without rim, light and lens perfect."""
    nothing = replace(scene.cargo, centre=np.full((1, 2), -1e4), scale=np.ones(1))
    palm = replace(scene.palm, fill=WHITE, rim=None)
    scene = replace(scene, fixtures=(), movers=(), cargo=nothing, fingers=(), palm=palm, occluders=())
    scene = replace(scene, texture=np.zeros_like(scene.texture), gain=np.ones_like(scene.gain), blur=0, noise=0.0)
    return replace(scene, **changes)


def centroids(video: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(t, 2) centre of the light and (t,) lit area in pixels of (t, 3, H, W) uint8."""
    light = video.double().mean(1) / 255
    area = light.sum((1, 2))
    y, x = torch.meshgrid(torch.arange(light.shape[1]), torch.arange(light.shape[2]), indexing="ij")
    return torch.stack([(light * x).sum((1, 2)), (light * y).sum((1, 2))], -1).div(area[:, None]).numpy(), area.numpy()


def still_camera(frames: int = 1) -> Drift:
    return Drift(np.ones(frames), np.zeros(frames), np.zeros((frames, 2)))


def equal(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# -------------------------------------------------------------------- the data set


def test_a_clip_is_the_same_in_any_order():
    forwards, backwards = CircleVideos(seed=4), CircleVideos(seed=4)
    ahead = [forwards[i] for i in range(6)]
    behind = [backwards[i] for i in reversed(range(6))]
    assert all(equal(a, b) for a, b in zip(ahead, reversed(behind), strict=True))


def test_a_clip_is_the_same_in_any_worker():
    dataset = CircleVideos(seed=4, length=6, size=48)
    alone = list(DataLoader(dataset, batch_size=2, num_workers=0))
    workers = list(DataLoader(dataset, batch_size=2, num_workers=2))
    assert len(alone) == 3 and all(equal(a, b) for a, b in zip(alone, workers, strict=True))


def test_clips_differ_by_index_and_by_seed():
    clip = CircleVideos(seed=0)[1]
    assert not torch.equal(clip.video, CircleVideos(seed=0)[2].video)
    assert not torch.equal(clip.video, CircleVideos(seed=1)[1].video)


@pytest.mark.parametrize("size, observed, future", [(48, 2, 0), (128, 4, 6), (150, 1, 12)])
def test_shapes_and_types(size: int, observed: int, future: int):
    batch = next(iter(DataLoader(CircleVideos(size=size, observed=observed, future=future), batch_size=3)))
    t = observed + future
    assert batch.video.shape == (3, t, 3, size, size) and batch.video.dtype == torch.uint8
    assert batch.centres.shape == (3, t, 2) and batch.centres.dtype == torch.float32
    assert batch.radius.shape == (3, t) and batch.radius.dtype == torch.float32
    assert batch.visible.shape == (3, t) and batch.visible.dtype == torch.bool


def test_indices_outside_and_odd_arguments_are_refused():
    dataset = CircleVideos(length=3)
    assert len(dataset) == 3
    for index in (-1, 3):
        with pytest.raises(IndexError, match="0 to 2"):
            dataset[index]
    with pytest.raises(ValueError, match="occlusion is 1.5"):
        CircleVideos(occlusion=1.5)
    with pytest.raises(ValueError, match="observed is 0"):
        CircleVideos(observed=0)


def test_frames_of_a_folder_become_backgrounds(tmp_path: Path):
    blue = np.full((5, 64, 96, 3), (20, 40, 220), np.uint8)
    write_video(tmp_path / "blue.mp4", blue)
    dataset = CircleVideos(seed=1, backgrounds=tmp_path, size=64)
    for i in range(3):
        red, _, blue = dataset[i].video.flatten(2).float().median(-1).values.median(0).values
        assert blue > 120 and red < 60
    assert equal(dataset[2], CircleVideos(seed=1, backgrounds=str(tmp_path), size=64)[2])


# -------------------------------------------------------------------- labels


@pytest.mark.parametrize("size", [64, 128])
def test_the_drawn_disc_has_the_labelled_centre_and_area(size: int):
    dataset, compared = CircleVideos(seed=2, size=size, camera_drift=2.0), 0
    for i in range(25):
        clip = render(bare(dataset.scene(i), size), size)
        centre, area = centroids(clip.video)
        whole = ((clip.centres > clip.radius[:, None] + 1) & (clip.centres < size - 2 - clip.radius[:, None])).all(-1).numpy()
        assert np.abs(centre - clip.centres.numpy())[whole].max(initial=0) < 0.1
        assert area[whole] == pytest.approx(np.pi * clip.radius.numpy()[whole] ** 2, rel=0.03)
        compared += whole.sum()
    assert compared > 150


def test_the_palm_is_where_the_label_is_in_the_full_picture():
    dataset, compared = CircleVideos(seed=8, occlusion=0.0), 0
    for i in range(12):
        scene = replace(dataset.scene(i), noise=0.0, blur=0, movers=(), fingers=())
        clip, without = render(scene, 128), render(replace(scene, palm=replace(scene.palm, half=(1e-3, 1e-3))), 128)
        changed = (clip.video != without.video).any(1)
        for t in range(10):
            if clip.visible[t] and changed[t].any():
                y, x = changed[t].nonzero(as_tuple=True)
                distance = torch.stack([x, y], -1).float().sub(clip.centres[t]).norm(dim=-1)
                assert distance.max() < clip.radius[t] + 1
                compared += 1
    assert compared > 80


def test_camera_drift_moves_background_and_labels_together():
    size, found = 128, 0
    dataset = CircleVideos(seed=3, size=size, camera_drift=1.0)
    for i in range(12):
        scene = dataset.scene(i)
        if np.ptp(scene.drift.offset) == 0:
            continue
        disc = Shape("circle", np.array([[70.3, 40.8]]), (6.0, 6.0), np.zeros(1), WHITE)
        hidden = replace(scene.palm, centre=np.full((1, 2), -1e4))
        fixed, _ = centroids(render(bare(scene, size, fixtures=(disc,), palm=hidden), size).video)
        moved, _ = centroids(render(bare(scene, size, movers=(disc,), palm=hidden), size).video)
        assert np.abs(moved - scene.drift.apply(disc.centre)).max() < 0.1
        assert np.abs(fixed - moved).max() < 0.3  # the background is sampled at the nearest half pixel
        found += np.abs(moved - moved[0]).max() > 0.5
    assert found >= 2


def test_drift_turns_x_towards_y():
    drift = Drift(np.array([2.0]), np.array([np.pi / 2]), np.array([[1.0, 0.0]]))
    assert drift.apply(np.array([[3.0, 5.0]])) == pytest.approx(np.array([[1 - 10.0, 6.0]]))


@pytest.mark.parametrize("covered, seen", [(0.0, True), (0.4, True), (0.6, False), (1.0, False)])
def test_visibility_by_the_covered_part(covered: float, seen: bool):
    """A rectangle's left edge cuts the disc; of a disc the part beyond x = r cos(a) is (a - sin a cos a) / pi."""
    angles = np.linspace(0, np.pi, 10001)
    half_angle = angles[np.abs((angles - np.sin(angles) * np.cos(angles)) / np.pi - covered).argmin()]
    scene = CircleVideos(seed=0).scene(0)
    palm = replace(scene.palm, centre=np.array([[60.0, 60.0]]), half=(9.0, 9.0), scale=np.ones(1))
    edge = 60 + 9 * np.cos(half_angle)
    cover = Shape("rectangle", np.array([[edge + 20, 60.0]]), (20.0, 20.0), np.zeros(1), BLACK)
    assert visibility(replace(scene, palm=palm, occluders=(cover,), drift=still_camera()), 128).tolist() == [seen]


def test_visibility_agrees_with_the_light_that_is_left():
    dataset, counts = CircleVideos(seed=6, occlusion=1.0), np.zeros(2, int)
    for i in range(20):
        scene = bare(dataset.scene(i), 128)
        covers = tuple(replace(shape, fill=BLACK) for shape in dataset.scene(i).occluders)
        clip = render(replace(scene, occluders=covers), 128)
        whole, left = render(scene, 128).video.double().sum((1, 2, 3)), clip.video.double().sum((1, 2, 3))
        inside = ((clip.centres > -0.5) & (clip.centres < 127.5)).all(-1)
        fraction = left / whole.clamp(min=1)
        clear_cut = inside & ((fraction - 0.5).abs() > 0.05)
        assert torch.equal(clip.visible[clear_cut], fraction[clear_cut] > 0.5)
        counts += np.array([(~clip.visible & clear_cut).sum(), (clip.visible & clear_cut).sum()])
    assert counts.min() > 20


def test_a_centre_outside_the_image_is_not_visible():
    scene = CircleVideos(seed=0, occlusion=0.0).scene(0)
    for x, seen in ((-0.6, False), (-0.4, True), (127.4, True), (127.6, False)):
        palm = replace(scene.palm, centre=np.array([[x, 50.0]]), scale=np.ones(1))
        assert visibility(replace(scene, palm=palm, occluders=(), drift=still_camera()), 128).tolist() == [seen]


# -------------------------------------------------------------------- motion


def test_minimum_jerk_by_hand():
    assert minimum_jerk(np.array([-1.0, 2.0, 3.0, 4.0, 6.0, 9.0]), 2.0, 4.0) == pytest.approx([0, 0, 53 / 512, 0.5, 1, 1])
    fine = minimum_jerk(np.linspace(0, 1, 10001), 0.0, 1.0)
    velocity = np.gradient(fine, 1e-4)
    assert velocity.max() == pytest.approx(15 / 8, rel=1e-4) and velocity.argmax() == 5000
    assert abs(velocity[0]) < 1e-6 and abs(velocity[-1]) < 1e-6


def test_a_fetch_by_hand():
    """Reach for 10 frames, close for 3, carry for 8, open for 3."""
    home, pick, place, arc = np.array([0.0, 0.0]), np.array([40.0, 0.0]), np.array([40.0, 60.0]), np.array([-8.0, 0.0])
    time = np.array([0.0, 5.0, 10.0, 11.5, 13.0, 17.0, 21.0, 22.5, 24.0, 30.0])
    motion: Motion = fetch(time, home, pick, place, (10.0, 8.0), arc)
    expected = [[0, 0], [16, 0], [40, 0], [40, 0], [40, 0], [32, 30], [40, 60], [40, 60], [40, 60], [40, 60]]
    assert motion.centre == pytest.approx(np.array(expected, float))
    assert motion.opening == pytest.approx([1, 1, 1, 0.5, 0, 0, 0, 0.5, 1, 1])
    assert motion.lift == pytest.approx([0, 0.5, 0, 0, 0, 1, 0, 0, 0, 0])
    assert motion.held.tolist() == [False] * 4 + [True, True] + [False] * 4
    assert motion.placed.tolist() == [False] * 6 + [True] * 4


def test_the_cargo_moves_with_the_palm_while_held_and_rests_otherwise():
    dataset, held_frames, delivered = CircleVideos(seed=9, future=40), 0, 0
    for i in range(30):
        scene = dataset.scene(i)
        gap = np.linalg.norm(scene.cargo.centre - scene.palm.centre, axis=-1)
        grip = gap / (scene.palm.scale * scene.palm.half[0])
        assert grip[scene.held] == pytest.approx(1.5)
        resting = ~scene.held[1:] & ~scene.held[:-1]
        assert np.abs(np.diff(scene.cargo.centre, axis=0))[resting].max(initial=0) < 1e-9
        steps = np.linalg.norm(np.diff(scene.cargo.centre, axis=0), axis=-1)
        assert steps.max() < 10  # no jump when it is picked or placed
        held_frames += scene.held.sum()
        goal = scene.fixtures[0].centre[0]
        if scene.held.any() and not scene.held[-1]:
            assert scene.cargo.centre[-1] == pytest.approx(goal)
            delivered += 1
    assert held_frames > 100 and delivered > 5


def test_clips_begin_in_every_phase():
    scenes = [CircleVideos(seed=1).scene(i) for i in range(80)]
    begins_held = np.mean([scene.held[0] for scene in scenes])
    moves = np.mean([np.linalg.norm(scene.palm.centre[3] - scene.palm.centre[0]) > 3 for scene in scenes])
    assert 0.2 < begins_held < 0.7 and 0.4 < moves < 0.95


def test_the_gripper_its_object_and_its_goal_share_a_hue_that_nothing_else_has():
    def hue(colour: tuple) -> float:
        return colorsys.rgb_to_hsv(*(c / 255 for c in colour))[0]

    def apart(one: float, other: float) -> float:
        return abs((one - other + 0.5) % 1 - 0.5)

    hues, others = [], 0
    for i in range(40):
        scene = CircleVideos(seed=7).scene(i)
        own = hue(scene.palm.rim)
        goal, *distractors = scene.fixtures
        assert apart(hue(scene.cargo.fill), own) < 0.05 and apart(hue(goal.rim), own) < 0.05
        coloured = [shape.rim or shape.fill for shape in (*distractors, *scene.movers)]
        assert all(apart(hue(colour), own) > 0.1 for colour in coloured)
        hues.append(own)
        others += len(coloured)
    assert others > 100 and np.ptp(hues) > 0.8


def test_constant_velocity_by_hand():
    centres = torch.tensor([[[9.0, 9.0], [10.0, 20.0], [12.0, 19.0]]])
    assert constant_velocity(centres, 3).tolist() == [[[14.0, 18.0], [16.0, 17.0], [18.0, 16.0]]]
    with pytest.raises(ValueError, match="two observed frames"):
        constant_velocity(centres[:, :1], 3)


def test_purpose_defeats_constant_velocity_but_not_in_the_next_frame():
    dataset = CircleVideos(seed=5, camera_drift=0.0)
    centres = torch.from_numpy(np.stack([dataset.scene(i).palm.centre for i in range(150)]))
    error = (constant_velocity(centres[:, :4], 6) - centres[:, 4:]).norm(dim=-1).median(0).values
    assert error[0] < 1.5 and error[5] > 5


# -------------------------------------------------------------------- drawing


@pytest.mark.parametrize("kind", KINDS)
def test_every_shape_is_drawn_about_its_centre_with_soft_edges(kind: str):
    canvas = np.zeros((1, 3, 64, 64), np.int16)
    paint(canvas, Shape(kind, np.array([[30.4, 33.7]]), (14.0, 14.0), np.array([0.3]), WHITE), still_camera())
    image = canvas[0, 0]
    assert image[34, 30] == 255 and image[:12].max() == 0 and image[:, :10].max() == 0
    assert ((image > 0) & (image < 255)).sum() > 20  # the antialiased border
    assert np.pi * 3**2 < (image / 255).sum() < 4 * 14**2 * 1.01


def test_shapes_are_cut_at_the_borders():
    disc = Shape("circle", np.array([[0.0, -0.5]]), (8.0, 8.0), np.zeros(1), WHITE)
    canvas = np.zeros((1, 3, 32, 32), np.int16)
    paint(canvas, disc, still_camera())
    roomy = np.zeros((1, 3, 64, 64), np.int16)
    paint(roomy, replace(disc, centre=disc.centre + 16), still_camera())
    assert np.array_equal(canvas[..., :16, :16], roomy[..., 16:32, 16:32]) and canvas.any()


def test_a_rim_is_a_band_inside_the_border():
    canvas = np.zeros((1, 3, 32, 32), np.int16)
    ring = Shape("circle", np.array([[16.0, 16.0]]), (10.0, 10.0), np.zeros(1), (0, 200, 0), (200, 0, 0), 3.0)
    paint(canvas, ring, still_camera())
    assert canvas[0, :, 16, 16].tolist() == [0, 200, 0]
    assert canvas[0, :, 16, 24].tolist() == [200, 0, 0]
    assert canvas[0, :, 16, 28].tolist() == [0, 0, 0]


def test_a_clip_that_shows_the_observed_frames_alone_is_the_same_clip() -> None:
    circles = CircleVideos(seed=4, size=64)
    for index in range(12):
        whole, shown = circles[index], circles.shown(index)
        assert torch.equal(shown.video, whole.video[: circles.observed])
        assert all(torch.equal(a, b) for a, b in zip(whole[1:], shown[1:], strict=True))
