"""Cameras: values derived by hand, round trips, gradients, and what is refused."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from para_video.camera import Camera, look_at, orbit, rotation_about


def tensor(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# A camera one metre above the origin that looks straight down, x to the right and world y up in the image: 90 degrees over
# 100 rows put the focal length at 50 px and the optical axis between the middle pixels, at 49.5.
DOWN = tensor([[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 1], [0, 0, 0, 1]])


@pytest.fixture
def down() -> Camera:
    return Camera.from_fov(90.0, (100, 100), DOWN)


@pytest.fixture
def oblique() -> Camera:
    """A camera with nothing special about it: skew, unequal focal lengths, an off-centre axis."""
    intrinsics = tensor([[150, 2, 60.3], [0, 140, 66.1], [0, 0, 1]])
    return Camera(intrinsics, orbit(135.0, -40.0, 1.15, (0.0, 0.65, 0.08)))


def scene_points(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(n, 3, generator=generator, dtype=torch.float64) * tensor([0.4, 0.4, 0.3]) + tensor([-0.2, 0.45, 0.0])


def random_rotation(seed: int) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    q = q * torch.sign(torch.diagonal(r))
    return q * torch.linalg.det(q)


# ---------------------------------------------------------------- hand-derived values


def test_projection_from_above_by_hand(down: Camera) -> None:
    pixels, depth = down.project(tensor([[0, 0, 0], [0.2, 0, 0], [0, 0.2, 0], [0.2, 0, 0.5]]))
    torch.testing.assert_close(pixels, tensor([[49.5, 49.5], [59.5, 49.5], [49.5, 39.5], [69.5, 49.5]]))
    torch.testing.assert_close(depth, tensor([1.0, 1.0, 1.0, 0.5]))


def test_field_of_view_spans_the_outer_edges_of_the_image() -> None:
    camera = Camera.from_fov(60.0, (80, 120), torch.eye(4, dtype=torch.float64))
    edge = math.tan(math.radians(30))
    pixels, _ = camera.project(tensor([[0, -edge, 1], [0, edge, 1], [edge * 1.5, 0, 1]]))
    torch.testing.assert_close(pixels, tensor([[59.5, -0.5], [59.5, 79.5], [119.5, 39.5]]))


def test_ray_lift_and_distance_by_hand(down: Camera) -> None:
    pixel = tensor([[99.5, 49.5]])
    origins, directions = down.rays(pixel)
    torch.testing.assert_close(origins, tensor([[0, 0, 1]]))
    torch.testing.assert_close(directions, tensor([[1, 0, -1]]) / math.sqrt(2))
    torch.testing.assert_close(down.lift_at_height(pixel, tensor([0.25])), tensor([[0.75, 0, 0.25]]))
    torch.testing.assert_close(down.lift_at_distance(pixel, tensor([math.sqrt(2)])), tensor([[1, 0, 0]]))


def test_look_at_axes_by_hand() -> None:
    pose = look_at(tensor([0, -2, 0]), tensor([0, 5, 0]))
    axes = tensor([[1, 0, 0], [0, 0, 1], [0, -1, 0]])  # columns: right is +x, down is -z, forward is +y
    torch.testing.assert_close(pose, torch.cat([torch.cat([axes, tensor([[0], [-2], [0]])], 1), tensor([[0, 0, 0, 1]])]))


def test_orbit_by_hand() -> None:
    pose = orbit(90.0, -30.0, 2.0, (0.1, 0.2, 0.3))
    torch.testing.assert_close(pose[:3, 3], tensor([0.1, 0.2 - math.sqrt(3), 1.3]))
    torch.testing.assert_close(pose[:3, 2], tensor([0, math.sqrt(3) / 2, -0.5]))


# ---------------------------------------------------------------- round trips


def test_a_lifted_projection_is_the_point_again(oblique: Camera) -> None:
    points = scene_points(50)
    pixels, depth = oblique.project(points)
    assert (depth > 0).all()
    torch.testing.assert_close(oblique.lift_at_height(pixels, points[:, 2]), points)
    distance = (points - oblique.position).norm(dim=-1)
    torch.testing.assert_close(oblique.lift_at_distance(pixels, distance), points)


def test_float32_lifts_to_a_tenth_of_a_millimetre(oblique: Camera) -> None:
    points = scene_points(50)
    pixels, _ = oblique.project(points)
    single = oblique.to(torch.float32).lift_at_height(pixels.float(), points[:, 2].float())
    assert (single - points).abs().max() < 1e-4


@pytest.mark.parametrize(("azimuth", "elevation"), [(0.0, -10.0), (135.0, -40.0), (225.0, -75.0), (-30.0, 20.0)])
def test_orbit_is_look_at_from_where_it_stands_and_centres_its_target(azimuth: float, elevation: float) -> None:
    target = tensor([0.0, 0.65, 0.08])
    pose = orbit(azimuth, elevation, 1.15, target.tolist())
    torch.testing.assert_close(pose, look_at(pose[:3, 3], target))
    assert float((pose[:3, 3] - target).norm()) == pytest.approx(1.15)
    camera = Camera.from_fov(45.0, (128, 96), pose)
    pixels, depth = camera.project(torch.stack([target, target + tensor([0, 0, 0.01])]))
    torch.testing.assert_close(pixels[0], tensor([47.5, 63.5]))
    assert float(depth[0]) == pytest.approx(1.15)
    assert pixels[1, 1] < pixels[0, 1], "world up is towards the top of the image"


def test_batched_is_the_same_as_one_by_one() -> None:
    poses = torch.stack([orbit(float(a), -40.0, 1.0 + a / 900, (0.0, 0.65, 0.08)) for a in range(0, 180, 30)])
    batch = Camera.from_fov(45.0, (128, 128), poses.reshape(2, 3, 4, 4))
    points = torch.stack([scene_points(5) + 0.01 * i for i in range(6)]).reshape(2, 3, 5, 3)
    pixels, depth = batch.project(points)
    lifted = batch.lift_at_height(pixels, points[..., 2])
    near = batch.lift_at_distance(pixels, depth)
    assert batch.batch_shape == (2, 3)
    for i in range(2):
        for j in range(3):
            one = batch[i, j]
            torch.testing.assert_close(one.project(points[i, j]), (pixels[i, j], depth[i, j]))
            torch.testing.assert_close(one.lift_at_height(pixels[i, j], points[i, j, :, 2]), lifted[i, j])
            torch.testing.assert_close(one.lift_at_distance(pixels[i, j], depth[i, j]), near[i, j])
    stacked = Camera.stack([batch[i, 1] for i in range(2)])
    torch.testing.assert_close(stacked.world_T_camera, batch[:, 1].world_T_camera)


def test_batched_look_at_is_the_same_as_one_by_one() -> None:
    positions, target = scene_points(4) + 1, tensor([0.0, 0.6, 0.0])
    poses = look_at(positions, target.expand(4, 3))
    for position, pose in zip(positions, poses, strict=True):
        torch.testing.assert_close(look_at(position, target), pose)


# ---------------------------------------------------------------- where there is no answer


def test_a_ray_parallel_to_the_plane_or_leaving_it_lifts_to_nan() -> None:
    level = Camera.from_fov(90.0, (101, 101), look_at(tensor([0, 0, 1]), tensor([1, 0, 1])))
    pixels, plane = tensor([[50, 50], [50, 25], [50, 75.25]]), tensor([0.0, 0.0, 0.0])
    lifted = level.lift_at_height(pixels, plane)
    assert lifted[0].isnan().all(), "along the horizon"
    assert lifted[1].isnan().all(), "above the horizon the plane is behind"
    torch.testing.assert_close(lifted[2], tensor([2, 0, 0]))


def test_points_without_an_answer_leave_the_gradients_of_the_others_finite() -> None:
    level = Camera.from_fov(90.0, (101, 101), look_at(tensor([0, 0, 1]), tensor([1, 0, 1])))
    pixels = tensor([[50, 50], [50, 25], [50, 75.25]]).requires_grad_()
    height = tensor([0.0, 0.0, 0.0]).requires_grad_()
    lifted = level.lift_at_height(pixels, height)
    torch.where(lifted.isnan(), 0.0, lifted).sum().backward()
    assert pixels.grad is not None and pixels.grad.isfinite().all()
    assert height.grad is not None
    torch.testing.assert_close(height.grad, tensor([0, 0, -1]))  # x = 2 (1 - z), and z itself


def test_points_behind_and_beside_the_camera_project_to_finite_pixels_and_say_so(down: Camera) -> None:
    pixels, depth = down.project(tensor([[0.3, 0, 2], [0.3, 0.1, 1]]))
    assert depth[0] < 0 and depth[1] == 0
    assert pixels.isfinite().all()


# ---------------------------------------------------------------- gradients


def gradcheck_camera(call, intrinsics: Tensor, pose: Tensor, *inputs: Tensor) -> bool:
    leaves = [x.clone().requires_grad_() for x in (intrinsics, pose, *inputs)]
    return torch.autograd.gradcheck(lambda k, t, *rest: call(Camera(k, t), *rest), leaves)


def test_gradients_of_projection_and_lifts(oblique: Camera) -> None:
    K, pose, points = oblique.intrinsics, oblique.world_T_camera, scene_points(3)
    pixels, depth = oblique.project(points)
    assert gradcheck_camera(Camera.project, K, pose, points)
    assert gradcheck_camera(Camera.lift_at_height, K, pose, pixels, points[:, 2])
    assert gradcheck_camera(Camera.lift_at_distance, K, pose, pixels, depth)


# ---------------------------------------------------------------- warps


def test_warp_homography_is_what_projection_does() -> None:
    camera = Camera.from_fov(45.0, (128, 96), orbit(135.0, -40.0, 1.15, (0.0, 0.65, 0.08)))
    small_turn = torch.linalg.matrix_exp(tensor([[0, -0.05, 0.08], [0.05, 0, -0.03], [-0.08, 0.03, 0]]))
    new, old_H_new = camera.warped(tensor(1.2), small_turn)
    old_pixels, _ = camera.project(scene_points(20))
    new_pixels, _ = new.project(scene_points(20))
    mapped = torch.cat([new_pixels, torch.ones(20, 1, dtype=torch.float64)], -1) @ old_H_new.mT
    torch.testing.assert_close(mapped[:, :2] / mapped[:, 2:], old_pixels)
    assert (new_pixels - old_pixels).norm(dim=-1).min() > 1, "the warp moves something"
    torch.testing.assert_close(new.position, camera.position)


def test_going_around_is_a_homography_in_a_leaning_world_and_the_true_move_for_its_plane() -> None:
    where = {"elevation_deg": -40.0, "distance_m": 1.15, "target": (0.0, 0.65, 0.02)}
    camera = Camera.from_fov(45.0, (128, 128), orbit(135.0, **where))
    new, old_H_new, lean = camera.orbited(torch.deg2rad(tensor(18.0)), 0.02)
    torch.testing.assert_close(new.world_T_camera, orbit(153.0, **where))
    points = scene_points(20)
    leaning = points + lean * (points[:, 2:] - 0.02)
    torch.testing.assert_close(leaning[:, 2], points[:, 2])
    new_pixels, _ = new.project(leaning)
    mapped = torch.cat([new_pixels, torch.ones(20, 1, dtype=torch.float64)], -1) @ old_H_new.mT
    torch.testing.assert_close(mapped[:, :2] / mapped[:, 2:], camera.project(points)[0])
    flat = points * tensor([1, 1, 0]) + tensor([0, 0, 0.02])
    seen = torch.cat([new.project(flat)[0], torch.ones(20, 1, dtype=torch.float64)], -1) @ old_H_new.mT
    torch.testing.assert_close(seen[:, :2] / seen[:, 2:], camera.project(flat)[0])
    assert (leaning - points).norm(dim=-1).max() > 0.05


def test_a_camera_that_does_not_look_at_the_plane_stays() -> None:
    up = Camera.from_fov(45.0, (128, 128), torch.stack([orbit(135.0, e, 1.0, (0.0, 0.6, 0.5)) for e in (20.0, -40.0)]))
    new, old_H_new, lean = up.orbited(tensor([0.3, 0.3]), 0.0)
    torch.testing.assert_close(new.world_T_camera[0], up.world_T_camera[0])
    torch.testing.assert_close(old_H_new[0], torch.eye(3, dtype=torch.float64))
    assert (lean[0] == 0).all() and lean[1, :2].norm() > 0.1
    within, _, none = up.orbited(tensor([0.3, 0.3]), float(up.position[0, 2]))
    torch.testing.assert_close(within.world_T_camera[0], up.world_T_camera[0])
    assert (none[0] == 0).all()


def test_a_mirrored_camera_sees_the_reflected_world_in_the_flipped_image() -> None:
    camera = Camera.from_fov(45.0, (128, 96), orbit(135.0, -40.0, 1.15, (0.0, 0.65, 0.08)))
    camera = camera.warped(tensor(1.1), random_rotation(3))[0]
    across = torch.diag(tensor([-1.0, 1.0, 1.0]))
    points = scene_points(20)
    pixels, depth = camera.project(points)
    seen, seen_depth = camera.mirrored(96, across).project(points @ across)
    torch.testing.assert_close(seen, torch.stack([95 - pixels[:, 0], pixels[:, 1]], -1))
    torch.testing.assert_close(seen_depth, depth)
    twice = camera.mirrored(96, across).mirrored(96, across)
    torch.testing.assert_close(twice.world_T_camera, camera.world_T_camera)
    with pytest.raises(ValueError, match="determinant -1"):
        camera.mirrored(96, torch.eye(3, dtype=torch.float64))


def test_pure_zoom_scales_about_the_principal_point(down: Camera) -> None:
    zoomed, old_H_new = down.warped(tensor(2.0), torch.eye(3, dtype=torch.float64))
    pixels, _ = zoomed.project(tensor([[0.2, 0, 0]]))
    torch.testing.assert_close(pixels, tensor([[69.5, 49.5]]))
    torch.testing.assert_close(old_H_new @ tensor([69.5, 49.5, 1]), tensor([59.5, 49.5, 1]))


def test_warping_a_batch_is_the_same_as_one_by_one() -> None:
    batch = Camera.from_fov(45.0, (128, 96), torch.stack([orbit(a, -40.0, 1.15, (0, 0.65, 0.08)) for a in (0.0, 90.0)]))
    zoom, turns = tensor([0.9, 1.1]), torch.stack([random_rotation(0), random_rotation(1)])
    new, homographies = batch.warped(zoom, turns)
    for i in range(2):
        one, homography = batch[i].warped(zoom[i], turns[i])
        torch.testing.assert_close(one.intrinsics, new[i].intrinsics)
        torch.testing.assert_close(one.world_T_camera, new[i].world_T_camera)
        torch.testing.assert_close(homography, homographies[i])


# ---------------------------------------------------------------- lenses


@dataclass(frozen=True)
class Radial:
    """r_distorted = r (1 + k r^2), undone by Newton's method."""

    k: float

    def distort(self, ideal: Tensor) -> Tensor:
        return ideal * (1 + self.k * ideal.square().sum(-1, keepdim=True))

    def undistort(self, distorted: Tensor) -> Tensor:
        goal = distorted.norm(dim=-1, keepdim=True)
        radius = goal
        for _ in range(20):
            radius = radius - (radius + self.k * radius**3 - goal) / (1 + 3 * self.k * radius**2)
        return distorted * radius / goal.clamp_min(1e-12)


def test_a_lens_bends_projection_and_is_undone_by_rays(oblique: Camera) -> None:
    bent = Camera(oblique.intrinsics, oblique.world_T_camera, Radial(0.2))
    points = scene_points(30)
    pixels, _ = bent.project(points)
    assert (pixels - oblique.project(points)[0]).norm(dim=-1).max() > 0.3
    torch.testing.assert_close(bent.lift_at_height(pixels, points[:, 2]), points)
    for derived in (bent.to(torch.float32), Camera.stack([bent, bent]), Camera.stack([bent, bent])[0]):
        assert derived.distortion == Radial(0.2)


def test_a_lens_by_hand(down: Camera) -> None:
    pixels, _ = Camera(down.intrinsics, down.world_T_camera, Radial(0.5)).project(tensor([[0.2, 0, 0]]))
    torch.testing.assert_close(pixels, tensor([[49.5 + 50 * 0.2 * 1.02, 49.5]]))


# ---------------------------------------------------------------- what is refused


def test_impossible_cameras_are_refused_with_a_remedy(down: Camera) -> None:
    K, pose = down.intrinsics, down.world_T_camera
    moved = pose.clone()
    moved[:3, 3] = tensor([0.5, 0, 1])
    with pytest.raises(ValueError, match="rigid motion.*scaled"):
        Camera(K, torch.diag(tensor([2, 2, 2, 1])) @ pose)
    with pytest.raises(ValueError, match="rigid motion.*mirrored"):
        Camera(K, torch.diag(tensor([-1, 1, 1, 1])) @ pose)
    with pytest.raises(ValueError, match="transposed"):
        Camera(K, moved.mT.contiguous())
    for wrong in (K.mT.contiguous(), 2 * K):
        with pytest.raises(ValueError, match="intrinsics must be 0 below the diagonal and end in 1.*transposed or scaled"):
            Camera(wrong, pose)
    for wrong in (K.float(), K.long()):
        with pytest.raises(ValueError, match=f"of one floating type, got {wrong.dtype} and torch.float64"):
            Camera(wrong, pose)
    with pytest.raises(ValueError, match="rigid motion"):
        Camera(K, torch.full_like(pose, torch.nan))
    with pytest.raises(ValueError, match=r"focal lengths must be finite and positive.*-50"):
        Camera(torch.diag(tensor([-50, 50, 1])), pose)
    with pytest.raises(ValueError, match=r"got \(3, 3\) and \(2, 4, 4\)"):
        Camera(K, pose.expand(2, 4, 4))


def test_rotations_turn_anticlockwise_about_their_axis() -> None:
    torch.testing.assert_close(rotation_about((0, 0, 2), 90) @ tensor([1, 0, 3]), tensor([0, 1, 3]))
    torch.testing.assert_close(rotation_about((1, 1, 1), 120) @ tensor([1, 2, 3]), tensor([3, 1, 2]))
    assert torch.equal(rotation_about((1, 2, 3), 0), torch.eye(3, dtype=torch.float64))


def test_impossible_views_are_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"coincide at \[1.0, 2.0, 3.0\]; move"):
        look_at(tensor([1, 2, 3]), tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="parallel to `up`; pass another"):
        look_at(tensor([0, 0, 1]), tensor([0, 0, 0]))
    sideways = look_at(tensor([0, 0, 1]), tensor([0, 0, 0]), up=tensor([0, 1, 0]))
    torch.testing.assert_close(sideways, DOWN)


def test_warps_and_stacks_of_lenses_that_make_no_sense_are_refused(down: Camera) -> None:
    bent = Camera(down.intrinsics, down.world_T_camera, Radial(0.1))
    with pytest.raises(ValueError, match="undistort the images first"):
        bent.warped(tensor(1.0), torch.eye(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="undistort the images first"):
        bent.orbited(tensor(0.1), 0.0)
    with pytest.raises(ValueError, match="share one lens"):
        Camera.stack([down, bent])
    with pytest.raises(ValueError, match="share one lens"):
        Camera.stack([])
