"""The read-out: lifts, rotations, gripper values and probabilities, by hand and by brute force."""

import itertools
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from para_video.camera import Camera, orbit
from para_video.heatmap import Bins, cells_to_pixels, gaussian_targets
from para_video.readout import (
    BELOW_CAMERA_M,
    PixelLogits,
    Readout,
    ReadoutSpec,
    euler_from_matrix,
    matrix_from_euler,
    one_hot_round_trip,
)

SIZE = (64, 64)
GRID = 32
HEIGHT = ReadoutSpec(z=Bins(0.0, 0.4, 32), gripper_bins=2)
DEPTH = ReadoutSpec(lift="depth", z=Bins(0.5, 2.0, 48), gripper_bins=2)
DOWN = ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0))
"""A gripper that points down: x stays, y and z turn over."""


def uniform(*shape: int, low: float = 0.0, high: float = 1.0, seed: int = 0) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def camera(azimuth: float = 135.0, elevation: float = -40.0, b: int = 1, size: tuple[int, int] = SIZE) -> Camera:
    pose = orbit(azimuth, elevation, 1.15, (0.0, 0.65, 0.08)).float()
    return Camera.from_fov(45.0, size, pose.expand(b, 4, 4))


def scene(n: int, b: int = 1, seed: int = 0) -> Tensor:
    """(b, n, 3) points over a table."""
    return torch.tensor([-0.15, 0.5, 0.03]) + uniform(b, n, 3, seed=seed) * torch.tensor([0.3, 0.3, 0.3])


@dataclass(frozen=True)
class GivenMaps:
    """What `Readout.decode` needs of ActionMaps, with the logits at the pixel given; notes where it was read."""

    heat: Tensor
    outside: Tensor
    logits: PixelLogits
    size: tuple[int, int] = SIZE
    origin: Tensor | None = None
    asked: list[Tensor] | None = None
    start: Tensor | None = None

    def read(self, pixels: Tensor) -> PixelLogits:
        if self.asked is not None:
            self.asked.append(pixels)
        return self.logits


def perfect_maps(spec: ReadoutSpec, points: Tensor, view: Camera, gripper: Tensor, rotations: Tensor | None = None) -> GivenMaps:
    """The maps of a network that has learnt its targets exactly."""
    pixels, _ = view.project(points)
    seen = torch.ones(points.shape[:2], dtype=torch.bool)
    target = gaussian_targets(pixels, seen, (GRID, GRID), SIZE, 2.0)
    z = spec.z.targets(spec.z_of(points, view)).log()
    turned = None if rotations is None else spec.angles.targets(spec.rotation_angles(rotations)).log()
    gripper_logits = (spec.gripper_targets(gripper) + 1e-6).log()
    heat = target[..., :-1].clamp_min(1e-12).log().unflatten(-1, (GRID, GRID))
    return GivenMaps(heat, torch.full(points.shape[:2], -30.0), PixelLogits(z, gripper_logits, turned))


def angle_between(first: Tensor, second: Tensor) -> Tensor:
    """Degrees between rotations (..., 3, 3), accurate near zero."""
    chord = (first - second).flatten(-2).norm(dim=-1) / (2 * math.sqrt(2))
    return torch.rad2deg(2 * torch.asin(chord.clamp(max=1)))


# -------------------------------------------------------------------- positions


@pytest.mark.parametrize("spec", [HEIGHT, DEPTH], ids=["height", "depth"])
@pytest.mark.parametrize("azimuth", [135.0, 153.0])
def test_points_come_back_through_maps_and_camera(spec: ReadoutSpec, azimuth: float) -> None:
    points, view = scene(40, b=2), camera(azimuth, b=2)
    actions = Readout(spec).decode(perfect_maps(spec, points, view, torch.ones(2, 40)), view)
    assert actions.positions.dtype == torch.float32
    assert float((actions.positions - points).norm(dim=-1).max()) < 0.004
    torch.testing.assert_close(actions.pixels, view.project(points)[0], atol=0.15, rtol=0)
    assert float(actions.visible.min()) > 0.999


@pytest.mark.parametrize("spec", [HEIGHT, DEPTH], ids=["height", "depth"])
def test_binned_scalars_and_lifts_are_inverse(spec: ReadoutSpec) -> None:
    points, view = scene(50, b=3), camera(b=3)
    pixels, _ = view.project(points)
    torch.testing.assert_close(spec.raise_pixels(pixels, spec.z_of(points, view), view), points, atol=1e-4, rtol=0)


@pytest.mark.parametrize("spec", [HEIGHT, DEPTH], ids=["height", "depth"])
def test_bins_may_count_from_an_origin(spec: ReadoutSpec) -> None:
    """Each clip's bins are shifted by its own origin."""
    points, view, origin = scene(20, b=2), camera(b=2), torch.tensor([0.1, 0.25])
    shifted = replace(spec, z=Bins(spec.z.low - 0.3, spec.z.high, 64))
    maps = perfect_maps(shifted, points, view, torch.ones(2, 20))
    z = shifted.z.targets(spec.z_of(points, view) - origin[:, None]).log()
    maps = replace(maps, logits=replace(maps.logits, z=z), origin=origin)
    found = Readout(shifted).decode(maps, view).positions
    assert float((found - points).norm(dim=-1).max()) < 0.004


def test_the_round_trip_may_count_from_the_gripper() -> None:
    """Relative bins of 5 mm reach far above the table's range, wherever the gripper is."""
    spec = replace(HEIGHT, z=Bins(-0.1, 0.1, 40), relative=True)
    view, gripper = camera(size=(128, 128))[0], torch.ones(50)
    points = torch.tensor([0.0, 0.6, 0.45]) + uniform(50, 3, low=-0.05, high=0.05)
    found, _ = one_hot_round_trip(spec, 64, 2.0, (128, 128))(points, gripper, view, torch.tensor([0.0, 0.6, 0.45]))
    assert float((found - points).norm(dim=-1).max()) < 0.002


def test_depth_is_the_distance_along_the_ray() -> None:
    view = Camera.from_fov(90.0, SIZE, torch.eye(4)[None])
    points = torch.tensor([[[3.0, 0.0, 4.0]]])
    assert DEPTH.z_of(points, view).item() == pytest.approx(5.0)
    assert HEIGHT.z_of(points, view).item() == pytest.approx(4.0)


@pytest.mark.parametrize("spec", [HEIGHT, replace(DEPTH, gripper_bins=3)], ids=["height", "depth"])
def test_the_read_out_alone_errs_by_less_than_two_millimetres(spec: ReadoutSpec) -> None:
    """At the sizes that the policies use: 64 cells over 128 pixels, sigma 2 px."""
    size = (128, 128)
    view = camera(size=size)[0]
    points, gripper = scene(300)[0], torch.where(uniform(300, seed=2) > 0.5, 1.0, -1.0)
    found, values = one_hot_round_trip(spec, 64, 2.0, size)(points, gripper, view, points[0])
    error = (found - points).norm(dim=-1)
    assert float(error.max()) < 0.002, f"{float(error.max()) * 1000:.2f} mm"
    assert torch.equal(values, gripper)


def test_given_pixels_are_read_instead_of_the_peak() -> None:
    points, view = scene(5), camera()
    asked: list[Tensor] = []
    maps = replace(perfect_maps(HEIGHT, points, view, torch.ones(1, 5)), asked=asked)
    pixels = view.project(points)[0] + 4.0
    actions = Readout(HEIGHT).decode(maps, view, pixels=pixels)
    assert torch.equal(actions.pixels, pixels) and torch.equal(asked[0], pixels)
    torch.testing.assert_close(view.project(actions.positions)[0], pixels, atol=1e-3, rtol=0)


def test_cells_above_the_horizon_are_never_chosen() -> None:
    """A camera that looks level sees sky in its upper half; a strong peak there must not be decoded."""
    view = Camera.from_fov(60.0, SIZE, orbit(90.0, -5.0, 1.0, (0.0, 0.0, 1.0)).float()[None])
    heat = torch.zeros(1, 1, GRID, GRID)
    heat[..., 3, 10] = 50.0
    heat[..., 28, 20] = 10.0
    maps = GivenMaps(heat, torch.zeros(1, 1), PixelLogits(torch.zeros(1, 1, 32), torch.zeros(1, 1, 2), None))
    actions = Readout(HEIGHT, window=1).decode(maps, view)
    torch.testing.assert_close(actions.pixels[0, 0], torch.tensor([40.5, 56.5]))
    assert bool(torch.isfinite(actions.positions).all())
    sky = Readout(DEPTH, window=1).decode(replace(maps, logits=replace(maps.logits, z=torch.zeros(1, 1, 48))), view)
    torch.testing.assert_close(sky.pixels[0, 0], torch.tensor([20.5, 6.5]))  # along a ray there is always a point


@pytest.mark.parametrize("elevation", [30.0, -40.0])
def test_a_camera_that_sees_no_plane_is_refused(elevation: float) -> None:
    """One looks up; the other stands below the lowest plane."""
    view = Camera.from_fov(30.0, SIZE, orbit(90.0, elevation, 0.1, (0.0, 0.0, -0.1)).float()[None])
    maps = perfect_maps(HEIGHT, scene(2), camera(), torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"no pixel's ray meets the planes from 0 m on.*use lift='depth'"):
        Readout(HEIGHT).decode(maps, view)


def test_a_camera_among_the_planes_answers_what_lies_below_it() -> None:
    view = Camera.from_fov(30.0, SIZE, orbit(90.0, -20.0, 0.5, (0.0, 0.6, 0.1)).float()[None])
    eye = float(view.position[0, 2])
    assert HEIGHT.z.low < eye < HEIGHT.z.high
    points = torch.tensor([[[0.0, 0.6, 0.1], [0.02, 0.62, 0.05]]])
    maps = perfect_maps(HEIGHT, points, view, torch.ones(1, 2))
    torch.testing.assert_close(Readout(HEIGHT).decode(maps, view).positions, points, atol=0.004, rtol=0)
    highest = HEIGHT.z.targets(torch.full((1, 2), HEIGHT.z.high)).log()
    above = replace(maps, logits=replace(maps.logits, z=highest))
    found = Readout(HEIGHT).decode(above, view).positions
    torch.testing.assert_close(found[..., 2], torch.full((1, 2), eye - BELOW_CAMERA_M))


def test_nan_maps_are_refused() -> None:
    maps = perfect_maps(HEIGHT, scene(2), camera(), torch.ones(1, 2))
    maps.heat[0, 1, 4, 4] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        Readout(HEIGHT).decode(maps, camera())


@pytest.mark.parametrize("lift", ["height", "depth"])
def test_decoding_is_float32_under_autocast(lift: str) -> None:
    spec = replace(HEIGHT if lift == "height" else DEPTH, rotation_bins=24, reference=DOWN)
    points, view = scene(20), camera()
    turned = torch.tensor(DOWN) @ matrix_from_euler(uniform(1, 20, 3, low=-0.5, high=0.5))
    maps = perfect_maps(spec, points, view, torch.ones(1, 20), turned)
    plain = Readout(spec).decode(maps, view)
    with torch.autocast("cpu", torch.bfloat16):
        under = Readout(spec).decode(maps, view)
    for name in ("positions", "pixels", "rotations", "log_probability", "entropy", "visible"):
        one, other = getattr(plain, name), getattr(under, name)
        assert other.dtype == torch.float32
        assert torch.equal(one, other), name


# -------------------------------------------------------------------- gripper


def test_gripper_bins_by_hand() -> None:
    two, five = ReadoutSpec(gripper_bins=2), ReadoutSpec(gripper_bins=5)
    commands = torch.tensor([-1.0, 1.0, 0.0, 0.5, 7.0])
    expected = torch.tensor([[1.0, 0], [0, 1], [0.5, 0.5], [0.25, 0.75], [0, 1]])
    torch.testing.assert_close(two.gripper_targets(commands), expected)
    torch.testing.assert_close(five.gripper_targets(torch.tensor([0.25])), torch.tensor([[0.0, 0, 0.5, 0.5, 0]]))
    assert five.gripper_value(torch.eye(5)).tolist() == [-1, -0.5, 0, 0.5, 1]


# -------------------------------------------------------------------- rotations


def test_euler_angles_by_hand() -> None:
    """A quarter turn about each axis in turn, then R = Rz Ry Rx: x is applied first."""
    quarter = math.pi / 2
    x, z = matrix_from_euler(torch.tensor([[quarter, 0, 0], [0, 0, quarter]]))
    torch.testing.assert_close(x @ torch.tensor([0.0, 1, 0]), torch.tensor([0.0, 0, 1]), atol=1e-6, rtol=0)
    torch.testing.assert_close(z @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(matrix_from_euler(torch.tensor([quarter, 0, quarter])), z @ x, atol=1e-6, rtol=0)


def test_euler_angles_round_trip() -> None:
    angles = uniform(200, 3, low=-1, high=1) * torch.tensor([3.1, 1.5, 3.1])
    torch.testing.assert_close(euler_from_matrix(matrix_from_euler(angles)), angles, atol=1e-3, rtol=0)
    turned = matrix_from_euler(angles.double())
    torch.testing.assert_close(turned @ turned.mT, torch.eye(3).double().expand(200, 3, 3))


def test_rotations_are_differentiable() -> None:
    angles = uniform(4, 3, low=-1, high=1).double().requires_grad_()
    assert torch.autograd.gradcheck(matrix_from_euler, angles)
    assert torch.autograd.gradcheck(lambda a: euler_from_matrix(matrix_from_euler(a)), angles)


def test_all_quarter_turns_come_back_from_their_angles() -> None:
    """Also those at the ends of y, which are told only up to one turn."""
    quarter = torch.tensor(list(itertools.product(range(4), repeat=3))) * (math.pi / 2)
    turned = matrix_from_euler(quarter)
    torch.testing.assert_close(matrix_from_euler(euler_from_matrix(turned)), turned, atol=1e-5, rtol=0)


def test_angles_are_those_of_the_declared_frame() -> None:
    """A gripper that points down lies at the wrap of x in the world, and at zero in a frame that points down."""
    down = torch.tensor(DOWN)
    in_world = ReadoutSpec(rotation_bins=12).rotation_angles(down)
    assert abs(float(in_world[0])) == pytest.approx(math.pi)
    spec = ReadoutSpec(rotation_bins=12, reference=DOWN)
    torch.testing.assert_close(spec.rotation_angles(down), torch.zeros(3))
    torch.testing.assert_close(spec.rotation_matrix(torch.zeros(3)), down)
    turned = matrix_from_euler(uniform(20, 3, low=-0.8, high=0.8))
    torch.testing.assert_close(spec.rotation_matrix(spec.rotation_angles(turned @ down)), turned @ down, atol=1e-5, rtol=0)


@pytest.mark.parametrize("reference", [((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)), DOWN], ids=["at the wrap", "declared frame"])
def test_poses_near_the_wrap_decode_right(reference: tuple) -> None:
    """Grippers that point down, tilted to either side of the wrap of Euler x in the world frame."""
    spec = replace(HEIGHT, rotation_bins=36, reference=reference)
    tilt = torch.linspace(-0.3, 0.3, 21)
    turned = torch.tensor(DOWN) @ matrix_from_euler(torch.stack([tilt, 0.5 * tilt, 2 * tilt], -1))
    points, view = scene(21), camera()
    actions = Readout(spec).decode(perfect_maps(spec, points, view, torch.ones(1, 21), turned[None]), view)
    assert float(angle_between(actions.rotations[0], turned).max()) < 0.5
    torch.testing.assert_close(actions.rotations @ actions.rotations.mT, torch.eye(3).expand(1, 21, 3, 3), atol=1e-5, rtol=0)


def test_a_heatmap_that_leaves_the_path_is_read_near_it_and_the_others_as_they_are() -> None:
    """Two clips of wide images, the second of a gripper that is not to be seen."""
    size, grid = (64, 128), (GRID, 2 * GRID)
    start, seen = torch.tensor([[20.0, 40.0], [20, 400]]), torch.ones(2, 4, dtype=torch.bool)
    pixels = torch.tensor([[30.0, 40], [40, 41], [50, 41], [60, 43]]).repeat(2, 1, 1)
    shown = pixels.clone()
    shown[:, 0] = torch.tensor([12.0, 56.0])
    heat = (gaussian_targets(shown, seen, grid, size, 3.0)[..., :-1] + 1e-4).log().unflatten(-1, grid)
    logits = PixelLogits(torch.zeros(2, 4, 32), torch.zeros(2, 4, 2), None)
    view = camera(size=size)
    maps = GivenMaps(heat, torch.full((2, 4), -100.0), logits, size=size, start=start)
    alone, along = (Readout(HEIGHT, path_px=path_px).decode(maps, view).pixels for path_px in (0.0, 2.0))
    assert (alone - shown).norm(dim=-1).max() < 0.5 and (along[0, 0] - pixels[0, 0]).norm() < 2 * 2.0 + 2  # and one cell
    torch.testing.assert_close(along[0, 1:], alone[0, 1:])
    torch.testing.assert_close(along[1], alone[1])
    unknown = Readout(HEIGHT, path_px=2.0).decode(replace(maps, start=None), view).pixels
    torch.testing.assert_close(unknown, alone)


# -------------------------------------------------------------------- probabilities


def test_log_probability_and_entropy_by_brute_force() -> None:
    spec = ReadoutSpec(z=Bins(0.0, 0.4, 3), gripper_bins=2, rotation_bins=4, reference=DOWN)
    heat = uniform(1, 1, 4, 5, low=-2, high=2)
    heat[0, 0, 2, 3] = 4.0
    outside = torch.tensor([[0.7]])
    z, gripper, rotation = (uniform(1, 1, *shape, low=-2, high=2, seed=s) for s, shape in enumerate(((3,), (2,), (3, 4))))
    maps = GivenMaps(heat, outside, PixelLogits(z, gripper, rotation), size=(8, 10))
    actions = Readout(spec, window=3).decode(maps, camera(size=(8, 10)))
    cells = torch.cat([heat.flatten(), outside.flatten()]).exp()
    cells = cells / cells.sum()
    parts = [x.exp() / x.exp().sum() for x in (z[0, 0], gripper[0, 0], *rotation[0, 0])]
    probability = float(cells[2 * 5 + 3]) * math.prod(float(p.max()) for p in parts)
    entropy = -sum(float((p * p.log()).sum()) for p in (cells, *parts))
    assert float(actions.log_probability[0, 0]) == pytest.approx(math.log(probability), abs=1e-5)
    assert float(actions.entropy[0, 0]) == pytest.approx(entropy, abs=1e-5)
    assert float(actions.visible[0, 0]) == pytest.approx(1 - float(cells[-1]), abs=1e-6)


def test_log_probability_is_that_of_the_decoded_or_given_pixel() -> None:
    """A broad mode is decoded although a lone cell elsewhere is higher: the answer's probability is not that cell's."""
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    heat = -((rows - 20.0) ** 2 + (columns - 8.0) ** 2) / 18
    heat[8, 24] = 2.0
    pixel = PixelLogits(torch.eye(32)[None, :1] * 200, torch.tensor([[[200.0, 0.0]]]), None)
    maps = GivenMaps(heat[None, None], torch.full((1, 1), -100.0), pixel)
    log_heat = heat.flatten().log_softmax(0).view(GRID, GRID)
    found = Readout(HEIGHT).decode(maps, camera())
    assert float(found.log_probability) == pytest.approx(float(log_heat[20, 8]), abs=1e-4)
    spike = cells_to_pixels(torch.tensor([[[24.0, 8.0]]]), (GRID, GRID), maps.size)
    told = Readout(HEIGHT).decode(maps, camera(), pixels=spike)
    assert float(told.log_probability) == pytest.approx(float(log_heat[8, 24]), abs=1e-4)


def test_certain_maps_have_no_entropy_and_flat_ones_the_most() -> None:
    view, points = camera(), scene(1)
    sure = torch.full((1, 1, GRID, GRID), -100.0)
    sure[..., 16, 16] = 100.0
    peaked = PixelLogits(torch.eye(32)[None, :1] * 200, torch.tensor([[[200.0, 0.0]]]), None)
    found = Readout(HEIGHT).decode(GivenMaps(sure, torch.full((1, 1), -100.0), peaked), view)
    assert float(found.entropy) == pytest.approx(0, abs=1e-5) and float(found.log_probability) == pytest.approx(0, abs=1e-5)
    flat = PixelLogits(torch.zeros(1, 1, 32), torch.zeros(1, 1, 2), None)
    found = Readout(HEIGHT).decode(GivenMaps(torch.zeros(1, 1, GRID, GRID), torch.zeros(1, 1), flat), view)
    assert float(found.entropy) == pytest.approx(math.log(GRID**2 + 1) + math.log(32) + math.log(2), rel=1e-5)
    assert points.shape == (1, 1, 3)


@pytest.mark.parametrize("part", ["heat", "outside", "z", "gripper", "rotation"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("given", [False, True])
def test_logits_that_are_no_numbers_are_refused(part: str, value: float, given: bool) -> None:
    spec = replace(HEIGHT, rotation_bins=12)
    read = {"z": torch.zeros(1, 1, 32), "gripper": torch.zeros(1, 1, 2), "rotation": torch.zeros(1, 1, 3, 12)}
    maps = {"heat": torch.zeros(1, 1, GRID, GRID), "outside": torch.zeros(1, 1)}
    ({**maps, **read})[part].flatten()[0] = value
    pixels = torch.full((1, 1, 2), 30.0) if given else None
    with pytest.raises(ValueError, match="logits hold NaN or infinity"):
        Readout(spec).decode(GivenMaps(**maps, logits=PixelLogits(**read)), camera(), pixels=pixels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lift": "plane"}, "unknown lift 'plane'; choose 'height' or 'depth'"),
        ({"gripper_bins": 1}, "gripper_bins 1 must be >= 2"),
        ({"rotation_bins": 1}, "rotation_bins 1 0 or >= 3"),
        ({"rotation_bins": -3}, "rotation_bins -3"),
    ],
)
def test_impossible_specs_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReadoutSpec(**options)
