"""Looks and cameras: what is added is what each saw, in the same place of the image or of the world."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from para_video.agent import RobotState, VideoPolicy
from para_video.camera import Camera, orbit
from para_video.fusion import LOOKS, FromView, Look, LookedMaps, ManyCameras, ManyLooks, fused_cameras
from para_video.heads import ParaHead
from para_video.heatmap import Bins, gaussian_targets
from para_video.policy import Observation, View
from para_video.readout import PixelLogits, Readout, ReadoutSpec, matrix_from_euler
from tests.tiny_models import Colours

SIZE, GRID, TIMES = (64, 64), 32, 2
SPEC = ReadoutSpec(z=Bins(-0.15, 0.15, 30), relative=True)
GRIPPER = torch.tensor([0.0, 0.65, 0.15])
POINTS = torch.tensor([[0.05, 0.7, 0.1], [-0.06, 0.6, 0.2]])


def camera(azimuth: float) -> Camera:
    return Camera.from_fov(45, SIZE, orbit(azimuth, -40, 1.15, (0, 0.65, 0.08)).float())


def state(cameras: Camera) -> RobotState:
    n = len(cameras.intrinsics)
    return RobotState(cameras, GRIPPER.expand(n, 3), torch.eye(3).expand(n, 3, 3), torch.ones(n))


class Painted:
    """Maps of n clips that show given pixels (n, t, 2), and say the same heights (n, t) and gripper everywhere."""

    def __init__(self, pixels: Tensor, heights: Tensor, sigma_px: float = 3.0, sigma_bins: float = 1.5) -> None:
        mass = gaussian_targets(pixels, torch.ones(pixels.shape[:2], dtype=torch.bool), (GRID, GRID), SIZE, sigma_px)
        mass = 0.99 * mass + 0.01 / mass.shape[-1]
        self.heat, self.outside = mass[..., :-1].log().unflatten(-1, (GRID, GRID)), mass[..., -1].log()
        self.z = (SPEC.z.targets(heights - GRIPPER[2], sigma_bins) + 1e-4).log()
        self.size, self.origin, self.start = SIZE, GRIPPER[2].expand(len(pixels)), None

    def log_volume(self) -> Tensor:
        return self.heat[:, :, None] + self.z.log_softmax(-1)[..., None, None]

    def read(self, pixels: Tensor) -> PixelLogits:
        gripper = torch.zeros(*pixels.shape[:2], SPEC.gripper_bins)
        gripper[:, 0, -1] = gripper[:, 1, 0] = 3
        return PixelLogits(self.z, gripper, None)


def fuse(maps: Painted, cameras: Camera):
    return fused_cameras(maps, state(cameras), SPEC, reach_m=0.25, step_m=0.01)


class Turning(Painted):
    """Of a wrist that may turn in any way."""

    def read(self, pixels: Tensor) -> PixelLogits:
        return replace(super().read(pixels), rotation=torch.zeros(*pixels.shape[:2], 3, 8))


def test_the_probability_of_a_rotation_counts() -> None:
    cameras = Camera.stack([camera(135), camera(180)])
    pixels, spec = cameras.project(POINTS.expand(2, -1, -1))[0], replace(SPEC, rotation_bins=8)
    still, turning = (kind(pixels, POINTS[:, 2].expand(2, -1)) for kind in (Painted, Turning))
    found = fused_cameras(turning, state(cameras), spec, reach_m=0.25, step_m=0.01)
    nats = 3 * math.log(8)
    torch.testing.assert_close(found.log_probability, fuse(still, cameras).log_probability - nats)
    torch.testing.assert_close(found.entropy, fuse(still, cameras).entropy + nats)
    assert found.rotations.shape == (1, TIMES, 3, 3)


def test_cameras_that_see_the_truth_meet_there() -> None:
    cameras = Camera.stack([camera(135), camera(180)])
    maps = Painted(cameras.project(POINTS.expand(2, -1, -1))[0], POINTS[:, 2].expand(2, -1))
    actions = fuse(maps, cameras)
    assert (actions.positions[0] - POINTS).norm(dim=-1).max() < 0.006
    torch.testing.assert_close(actions.pixels[0], cameras[0].project(actions.positions[0])[0])
    assert actions.gripper.tolist() == [[1, -1]]


def test_two_cameras_know_a_height_that_neither_knows() -> None:
    cameras = Camera.stack([camera(135), camera(225)])
    pixels = cameras.project(POINTS.expand(2, -1, -1))[0]
    unknown = torch.full((2, TIMES), 0.15)
    wrong = Painted(pixels, unknown, sigma_bins=40.0)  # any height may be
    error = (fuse(wrong, cameras).positions[0] - POINTS).norm(dim=-1)
    alone = Painted(pixels[:1], unknown[:1], sigma_bins=40.0)
    one = (fuse(alone, cameras[:1]).positions[0] - POINTS).norm(dim=-1)
    assert error.max() < 0.012 and one.min() > 2 * error.max()


def test_a_camera_that_does_not_see_the_place_leaves_it_to_the_other() -> None:
    away = Camera.from_fov(45, SIZE, orbit(135, -40, 1.15, (0, 2.5, 0.08)).float())
    cameras = Camera.stack([camera(135), away])
    maps = Painted(cameras[0].project(POINTS)[0].expand(2, -1, -1), POINTS[:, 2].expand(2, -1))
    maps.heat[1], maps.outside[1] = torch.full_like(maps.heat[1], -12.0), torch.zeros(TIMES)
    assert (fuse(maps, cameras).positions[0] - POINTS).norm(dim=-1).max() < 0.01


def test_distances_from_different_cameras_are_refused() -> None:
    with pytest.raises(ValueError, match="lift='height'"):
        fused_cameras(None, None, replace(SPEC, lift="depth"), reach_m=0.1, step_m=0.01)


def test_looks_are_brought_back_to_the_first() -> None:
    """Every look paints its own peak where the same point is seen; the average has it where the first sees it."""
    zoom = torch.tensor([look.zoom for look in LOOKS])
    angles = torch.tensor([look.turn_deg for look in LOOKS]).deg2rad()
    before = Camera.stack([camera(135)] * len(LOOKS))
    cameras, homography = before.warped(zoom, matrix_from_euler(angles))
    pixels = cameras.project(POINTS.expand(len(LOOKS), -1, -1))[0]
    maps = Painted(pixels, POINTS[:, 2].expand(len(LOOKS), -1))
    looked = LookedMaps.of(maps, torch.linalg.inv(homography), zoom)
    actions = Readout(SPEC).decode(looked, before[:1])
    assert (actions.pixels[0] - before[0].project(POINTS)[0]).norm(dim=-1).max() < 0.5
    assert (actions.positions[0] - POINTS).norm(dim=-1).max() < 0.015


def test_what_a_look_does_not_see_it_leaves_to_the_first() -> None:
    zoom = torch.tensor([1.0, 3.0])
    before = Camera.stack([camera(135)] * 2)
    _, homography = before.warped(zoom, torch.eye(3).expand(2, 3, 3))
    edge = torch.tensor([[8.0, 30.0], [50.0, 58.0]])
    maps = Painted(edge.expand(2, -1, -1), torch.full((2, TIMES), 0.15))
    maps.heat[1], maps.outside[1] = torch.full_like(maps.heat[1], -14.0), torch.zeros(TIMES)
    looked = LookedMaps.of(maps, torch.linalg.inv(homography), zoom)
    found = Readout(SPEC).decode(looked, before[:1]).pixels[0]
    assert (found - edge).norm(dim=-1).max() < 0.5


# -------------------------------------------------------------------- around a policy


@pytest.fixture(scope="module")
def policy() -> VideoPolicy:
    torch.manual_seed(0)
    head = ParaHead(3, SPEC, grid=GRID, hidden=16, layers=1, mixing=0)
    head.kernel.weight.data *= 30
    return VideoPolicy(Colours(), head, (1.0, 2.0)).eval()


def observation(*azimuths: float) -> Observation:
    pose = torch.eye(4)
    pose[:3, 3] = GRIPPER
    clip = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    views = {name: View(clip, camera(azimuth)) for name, azimuth in zip(("main", "side"), azimuths, strict=False)}
    return Observation(views, pose, 1.0)


def test_one_look_is_the_policy_itself(policy: VideoPolicy) -> None:
    plain, looked = policy.act(observation(135)), ManyLooks(policy, (Look(),)).act(observation(135))
    torch.testing.assert_close(looked.pixels, plain.pixels, atol=0.05, rtol=0)
    torch.testing.assert_close(looked.positions, plain.positions, atol=1e-3, rtol=0)
    assert torch.equal(looked.gripper, plain.gripper)
    torch.testing.assert_close(looked.entropy, plain.entropy, atol=1e-2, rtol=0)
    assert ManyLooks(policy).act(observation(135)).positions.isfinite().all()


def test_one_camera_is_near_the_policy_itself_and_views_are_told_apart(policy: VideoPolicy) -> None:
    seen = observation(135, 190)
    side = FromView(policy, "side").act(seen)
    moved = policy.act(replace(seen, views={"main": seen.views["side"]}))
    assert torch.equal(side.positions, moved.positions) and not torch.allclose(side.positions, policy.act(seen).positions)
    both = ManyCameras(policy, ("main", "side")).act(seen)
    assert both.positions.shape == (1, 2, 3) and both.positions.isfinite().all()
    with pytest.raises(ValueError, match="no view 'top'; it has \\['main', 'side'\\]"):
        FromView(policy, "top").act(seen)


@pytest.mark.parametrize("joint", [False, True])
def test_the_volume_sums_to_what_is_visible(joint: bool) -> None:
    torch.manual_seed(0)
    spec = replace(SPEC, joint_volume=joint)
    policy = VideoPolicy(Colours(), ParaHead(3, spec, grid=GRID, hidden=16, layers=1, mixing=0), (1.0, 2.0)).eval()
    clip, told = policy.inputs(observation(135))
    with torch.no_grad():
        maps = policy.head.maps(*policy.features(clip), told)
        mass = maps.log_volume().flatten(2).logsumexp(-1).exp()
        heat = torch.cat([maps.heat.flatten(-2), maps.outside[..., None]], -1).softmax(-1)
    assert maps.log_volume().shape == (1, 2, 30, GRID, GRID)
    torch.testing.assert_close(mass, 1 - heat[..., -1])


def test_paras_head_is_asked_for() -> None:
    with pytest.raises(ValueError, match="has no heatmaps"):
        other = VideoPolicy(Colours(), SimpleHead(), (1.0,))
        ManyLooks(other).act(observation(135))


class SimpleHead(torch.nn.Module):
    spec = SPEC
