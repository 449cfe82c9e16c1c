"""Training batches: what is drawn, and augmentation that keeps camera and labels exact."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from para_video.agent import Batch
from para_video.batches import Augmentation, DemoBatches, augmented, mirrored, orbited, shifted
from para_video.camera import Camera, orbit
from para_video.demos import Demo
from para_video.prediction import demonstrated
from para_video.readout import readout_spec

CAMERA = Camera.from_fov(45, (64, 64), orbit(135, -40, 1.15, (0, 0.65, 0.08)).float())
GEOMETRY = Augmentation(gain=0, bias=0, noise=0, mirror=0)


def painted_demo(n: int = 12) -> Demo:
    """A gripper that moves along a line; a smooth white dot is painted where the camera sees it, on black."""
    positions = np.stack([np.linspace(-0.1, 0.15, n), np.linspace(0.55, 0.75, n), np.linspace(0.02, 0.2, n)], -1).astype(np.float32)
    pixels = CAMERA.project(torch.from_numpy(positions))[0]
    yy, xx = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    square = (xx - pixels[:, 0, None, None]) ** 2 + (yy - pixels[:, 1, None, None]) ** 2
    frames = (255 * torch.exp(-square / 8)).byte()[..., None].expand(-1, -1, -1, 3).numpy()
    turned = np.linalg.qr(np.random.default_rng(0).standard_normal((n, 3, 3)))[0]
    turned *= np.linalg.det(turned)[:, None, None]
    ramp = np.linspace(0, 1, n, dtype=np.float32)
    return Demo(frames, positions, turned.astype(np.float32), ramp, 2 * ramp - 1, CAMERA, "paint", 0)


def batches(augmentation: Augmentation | None = None, **options) -> DemoBatches:
    return DemoBatches([painted_demo()], chunk=3, stride=2, augmentation=augmentation, **{"batch_size": 4, **options})


def centre_of_mass(images: Tensor) -> Tensor:
    """(b, 2) pixel around which images (b, 3, H, W) are bright."""
    weight = images.mean(1).clamp_min(0)
    weight = weight / weight.sum((1, 2), keepdim=True)
    axis = torch.arange(images.shape[-1], dtype=torch.float32)
    return torch.stack([(weight.sum(1) * axis).sum(-1), (weight.sum(2) * axis).sum(-1)], -1)


def same(a: Batch, b: Batch) -> None:
    torch.testing.assert_close(a.clip, b.clip)
    torch.testing.assert_close(a.targets.pixels, b.targets.pixels)
    torch.testing.assert_close(a.state.position, b.state.position)


def test_an_item_is_the_same_whenever_it_is_asked_for_and_differs_between_ranks() -> None:
    data, other = batches(Augmentation()), batches(Augmentation(), rank=1)
    data[0]
    same(data[7], batches(Augmentation())[7])
    assert not torch.equal(data[7].clip, data[8].clip) and not torch.equal(data[7].clip, other[7].clip)


def test_targets_are_the_demos_future_and_clips_its_past() -> None:
    demo = painted_demo()
    batch = batches(context=3).gather([(0, 5), (0, 1)])
    assert torch.equal(batch.clip[0], torch.from_numpy(demo.frames[[1, 3, 5]]).permute(0, 3, 1, 2).float() / 255)
    assert torch.equal(batch.clip[1, 0], batch.clip[1, 1] * 0 + torch.from_numpy(demo.frames[0]).permute(2, 0, 1) / 255)
    np.testing.assert_allclose(batch.targets.positions[0], demo.positions[[7, 9, 11]], atol=1e-6)
    np.testing.assert_allclose(batch.state.position, demo.positions[[5, 1]])
    np.testing.assert_allclose(batch.targets.gripper[0], demo.gripper[[5, 7, 9]])


def test_nothing_is_taught_of_what_follows_the_end() -> None:
    """The last of 12 steps sees no whole stride of 2; where it sends the gripper, its command tells alone, and how it turns
    nothing."""
    demo = painted_demo()
    steps, line = [(0, 5), (0, 6), (0, 9)], np.diff(demo.positions, axis=0)
    for moves, most, known in ((None, 11, [3, 2, 1]), (np.concatenate([line, line[-1:]]), 12, [3, 3, 1])):
        data = DemoBatches([replace(demo, moves=moves)], chunk=3, stride=2, batch_size=4)
        assert data.steps == [(0, k) for k in range(most - 1)]
        targets = data.gather(steps).targets
        for mask in (targets.labelled, targets.position_mask, targets.gripper_mask):
            assert mask.sum(-1).tolist() == known and mask[:, 0].all()
        assert targets.rotation_mask.sum(-1).tolist() == [3, 2, 1]
        ahead = targets.positions - torch.from_numpy(demo.positions[[k for _, k in steps]])[:, None]
        even = torch.tensor([2.0, 4, 6])[:, None] * torch.from_numpy(line.mean(0))
        torch.testing.assert_close(ahead[targets.position_mask], even.expand(3, 3, 3)[targets.position_mask], atol=1e-5, rtol=0)


def test_a_camera_of_double_precision_is_taken_and_frames_of_two_sizes_are_refused() -> None:
    demo = painted_demo()
    double = replace(demo, camera=demo.camera.to(torch.float64))
    same(DemoBatches([double], chunk=3, stride=2, batch_size=4)[0], batches()[0])
    clips = (demonstrated([one], 2, Augmentation())(np.random.default_rng(0), 4) for one in (double, demo))
    assert torch.equal(*clips)
    with pytest.raises(ValueError, match=r"frames of \[\(32, 64\), \(64, 64\)\]"):
        DemoBatches([demo, replace(demo, frames=demo.frames[:, :32])], chunk=3, stride=2, batch_size=4)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [{"mirror": 0}, {"mirror": 1}, {"orbit_deg": 20, "plane_m": 0.01}])
def test_the_robot_is_where_the_augmented_image_shows_it(seed: int, options: dict[str, float]) -> None:
    plain = batches().gather([(0, k) for k in (2, 5, 6, 8)])
    batch = augmented(plain, replace(GEOMETRY, **options), torch.Generator().manual_seed(seed))
    shown = centre_of_mass(batch.clip[:, -1])
    assert (shown - batch.state.pixel()).norm(dim=-1).max() < 0.15
    assert (batch.state.pixel() - plain.state.pixel()).norm(dim=-1).min() > 0.5
    again, _ = batch.state.camera.project(batch.targets.positions)
    torch.testing.assert_close(again, batch.targets.pixels)
    torch.testing.assert_close(batch.targets.positions[..., 2], plain.targets.positions[..., 2])


def test_a_mirror_reflects_the_chosen_clips_and_no_other() -> None:
    plain = batches().gather([(0, k) for k in (2, 5, 6, 8)])
    chosen = torch.tensor([True, False, True, False])
    batch = mirrored(plain, GEOMETRY, chosen)
    same(mirrored(batch, GEOMETRY, chosen), plain)
    torch.testing.assert_close(batch.targets.positions[0, :, 0], -plain.targets.positions[0, :, 0])
    torch.testing.assert_close(batch.targets.pixels[0, :, 0], 63 - plain.targets.pixels[0, :, 0])
    assert torch.equal(batch.clip[1], plain.clip[1]) and torch.equal(batch.targets.rotations[1], plain.targets.rotations[1])
    assert torch.equal(batch.clip[0], plain.clip[0].flip(-1))
    for rotations in (batch.targets.rotations, batch.state.rotation):
        torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).expand_as(rotations), atol=1e-5, rtol=0)
        assert (torch.linalg.det(rotations) > 0).all()


def test_a_shifted_world_looks_the_same() -> None:
    plain = batches().gather([(0, 2), (0, 5)])
    batch = shifted(plain, torch.tensor([[0.03, -0.02], [0.0, 0.01]]))
    assert torch.equal(batch.clip, plain.clip)
    torch.testing.assert_close(batch.state.pixel(), plain.state.pixel(), atol=1e-4, rtol=0)
    torch.testing.assert_close(batch.state.camera.project(batch.targets.positions)[0], plain.targets.pixels, atol=1e-4, rtol=0)
    moved = batch.targets.positions - plain.targets.positions
    torch.testing.assert_close(moved[0], torch.tensor([0.03, -0.02, 0.0]).expand_as(moved[0]))


def test_robot_and_targets_lean_alike_before_an_orbiting_camera() -> None:
    plain = batches().gather([(0, 2), (0, 5)])
    angle = torch.tensor([0.3, 0.0])
    batch, homography = orbited(plain, angle, 0.01)
    _, _, lean = plain.state.camera.orbited(angle, 0.01)
    moved, heights = batch.targets.positions - plain.targets.positions, plain.targets.positions[..., 2:] - 0.01
    torch.testing.assert_close(moved, lean[:, None] * heights)
    torch.testing.assert_close(batch.state.position - plain.state.position, lean * (plain.state.position[:, 2:] - 0.01))
    assert moved[0].norm(dim=-1).min() > 1e-3 and not moved[1].any()
    torch.testing.assert_close(homography[1], torch.eye(3), atol=1e-5, rtol=0)


def test_a_robot_without_demonstrations_is_refused() -> None:
    with pytest.raises(ValueError, match="record at least one"):
        DemoBatches([], batch_size=1, chunk=1, stride=1)


# -------------------------------------------------------------------- any homography, and patches of other demonstrations


def test_pixels_follow_any_camera_in_the_same_place() -> None:
    """Stretched, cropped, turned, rolled and zoomed at once: the painted dot is where the labels say, to half a pixel."""
    strong = replace(GEOMETRY, stretch=1.3, crop=0.1, roll_deg=40)
    for seed in range(6):
        data = batches(strong, seed=seed, future=3)
        item = data[0]
        seen = centre_of_mass(item.future[:, 0])
        inside = (item.targets.pixels[:, 0] > 8).all(-1) & (item.targets.pixels[:, 0] < 55).all(-1)
        assert inside.any()
        assert (seen - item.targets.pixels[:, 0])[inside].norm(dim=-1).max() < 0.5
        lifted = item.state.camera.lift_at_height(item.targets.pixels, item.targets.positions[..., 2])
        torch.testing.assert_close(lifted, item.targets.positions, atol=1e-4, rtol=0)


def test_stretch_and_crop_change_the_camera_by_as_much_as_they_say() -> None:
    still = replace(GEOMETRY, roll_deg=0, turn_deg=0, zoom=1, shift_m=0)
    stretched = batches(replace(still, stretch=1.2))[0].state.camera.intrinsics
    ratio = stretched[:, 0, 0] / stretched[:, 1, 1]
    assert ratio.min() >= 1 / 1.2 and ratio.max() <= 1.2 and ratio.std() > 0.01
    torch.testing.assert_close(stretched[:, :2, 2], CAMERA.intrinsics[:2, 2].expand(4, 2))
    cropped = batches(replace(still, crop=0.1))[0].state.camera.intrinsics[:, :2, 2] - CAMERA.intrinsics[:2, 2]
    assert 1 < cropped.abs().max() <= 6.4


def test_patches_come_from_other_demonstrations_and_keep_away_from_the_gripper() -> None:
    grey, white = (replace(painted_demo(), frames=np.full((12, 64, 64, 3), value, np.uint8)) for value in (51, 255))
    still = Augmentation(roll_deg=0, turn_deg=0, zoom=1, gain=0, bias=0, noise=0, mirror=0, shift_m=0, paste=3)
    data = DemoBatches([grey, white], batch_size=8, chunk=3, stride=2, augmentation=still)
    plain, pasted = replace_augmentation(data, None)[0], data[0]
    own = plain.clip[:, 0, 0, 0, 0]
    changed = (pasted.clip[:, 0, 0] - own[:, None, None]).abs() > 0.1
    assert changed.flatten(1).any(1).float().mean() > 0.5
    other = torch.where(own == 1, 51 / 255, 1.0)
    torch.testing.assert_close(pasted.clip[:, 0, 0][changed], other[:, None, None].expand_as(changed)[changed])
    torch.testing.assert_close(pasted.targets.pixels, plain.targets.pixels)
    path = CAMERA.project(torch.from_numpy(painted_demo().positions))[0]
    rows = changed.nonzero()[:, 1:]
    away = (rows.flip(-1)[:, None].float() - path).norm(dim=-1)
    assert away.min() >= 6.4


def replace_augmentation(data: DemoBatches, augmentation: Augmentation | None) -> DemoBatches:
    """The same draws with another augmentation."""
    return DemoBatches(data.demos, batch_size=data.batch_size, chunk=data.chunk, stride=data.stride, augmentation=augmentation)


def test_repainting_follows_the_clip_and_leaves_labels_and_robot() -> None:
    plain, painted = (batches(replace(GEOMETRY, repaint=p), context=3)[5] for p in (0.0, 1.0))
    torch.testing.assert_close(painted.targets.pixels, plain.targets.pixels)
    torch.testing.assert_close(painted.state.position, plain.state.position)
    assert (painted.clip - plain.clip).abs().mean() > 0.05, "black is a surface too"
    same(painted, batches(replace(GEOMETRY, repaint=1.0), context=3)[5])


def test_the_share_of_clips_that_is_asked_for_is_repainted() -> None:
    plain, half = (batches(replace(GEOMETRY, repaint=p), batch_size=64)[5].clip for p in (0.0, 0.5))
    assert 20 < sum(not torch.equal(*pair) for pair in zip(plain, half, strict=True)) < 44


def test_positions_that_are_not_in_metres_are_refused() -> None:
    demo = painted_demo()
    assert readout_spec([demo]).z.high < 0.5
    with pytest.raises(ValueError, match="within a chunk, more than 5 m: give positions in metres"):
        readout_spec([replace(demo, positions=1000 * demo.positions)])
