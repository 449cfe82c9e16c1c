"""The PARA head: equivariance, which map is read where, start conditioning, partial labels, joint volumes, and learning."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from para_video.agent import Batch, Query, RobotState
from para_video.camera import Camera, orbit
from para_video.features import VideoFeatures, stride_affine
from para_video.heads import ActionMaps, ParaHead, over_image
from para_video.heatmap import Bins, gaussian_targets, masked_cross_entropy
from para_video.readout import Readout, ReadoutSpec, Targets, matrix_from_euler

SIZE = (64, 64)
GRID = 32
CHANNELS = 6
TIMES = torch.tensor([1.0, 2.0])
DOWN = ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0))
FACTORISED = ReadoutSpec(z=Bins(0.0, 0.4, 16), gripper_bins=2, rotation_bins=24, reference=DOWN)
JOINT = replace(FACTORISED, joint_volume=True)
both_forms = pytest.mark.parametrize("spec", [FACTORISED, JOINT], ids=["factorised", "joint"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_features(b: int = 1, times: tuple[float, ...] = (1.0, 2.0), side: int = 16, seed: int = 0) -> VideoFeatures:
    when = torch.tensor(times)
    maps = normal(b, len(times), CHANNELS, side, side, seed=seed)
    return VideoFeatures(maps, when, when[:, None].expand(-1, 2), stride_affine(SIZE[0] / side))


def make_head(spec: ReadoutSpec = FACTORISED, seed: int = 0, **options) -> ParaHead:
    torch.manual_seed(seed)
    return ParaHead(CHANNELS, spec, **({"grid": GRID, "hidden": 16, "layers": 2, "mixing": 0} | options)).eval()


def make_state(b: int = 1, seed: int = 5) -> RobotState:
    camera = Camera.from_fov(45.0, SIZE, orbit(135.0, -40.0, 1.15, (0.0, 0.65, 0.08)).float().expand(b, 4, 4))
    position = torch.tensor([0.0, 0.6, 0.15]) + 0.04 * normal(b, 3, seed=seed)
    return RobotState(camera, position, torch.tensor(DOWN).expand(b, 3, 3), torch.full((b,), 0.5))


def make_targets(b: int = 1, seed: int = 6) -> tuple[Targets, RobotState]:
    """Poses near a gripper that points down, at the wrap of Euler x in the world frame."""
    state = make_state(b)
    positions = state.position[:, None] + 0.05 * normal(b, 2, 3, seed=seed)
    rotations = torch.tensor(DOWN) @ matrix_from_euler(0.4 * normal(b, 2, 3, seed=seed + 1))
    pixels, depth = state.camera.project(positions)
    gripper = normal(b, 2, seed=seed + 2).sign()
    return Targets(pixels, depth > 0, positions=positions, gripper=gripper, rotations=rotations), state


def run(head: ParaHead, features: VideoFeatures, times: Tensor = TIMES, **options) -> ActionMaps:
    return head(features, times=times, size=SIZE, **options)


# -------------------------------------------------------------------- equivariance


@both_forms
def test_heatmap_follows_a_shifted_feature(spec: ReadoutSpec) -> None:
    """A shift of the map by (2, 3) cells shifts the heat by twice that, away from the borders."""
    head, features = make_head(spec), make_features()
    moved = features.with_maps(torch.roll(features.maps, (2, 3), (-2, -1)))
    with torch.no_grad():
        heat, shifted = run(head, features).heat, run(head, moved).heat
    expected = torch.roll(heat, (4, 6), (-2, -1))
    torch.testing.assert_close(shifted[..., 10:-4, 12:-4], expected[..., 10:-4, 12:-4], atol=1e-4, rtol=1e-4)
    assert float((shifted - heat).abs().max()) > 0.01


def test_values_at_a_pixel_move_with_the_feature() -> None:
    head, features = make_head(), make_features()
    moved = features.with_maps(torch.roll(features.maps, (2, 3), (-2, -1)))
    pixels = torch.tensor([[[25.0, 30.0], [33.0, 21.0]]])
    with torch.no_grad():
        here = run(head, features).read(pixels)
        there = run(head, moved).read(pixels + torch.tensor([12.0, 8.0]))
    for name in ("z", "gripper", "rotation"):
        torch.testing.assert_close(getattr(there, name), getattr(here, name), atol=1e-4, rtol=1e-4)


# -------------------------------------------------------------------- which map


def test_each_time_reads_the_nearest_map_alone() -> None:
    head, features = make_head(), make_features(times=(-1.0, 0.0, 2.0))
    times = torch.tensor([0.4, 1.0, 1.5, 9.0])  # 1 lies between the maps of 0 and 2: the earlier one
    with torch.no_grad():
        usual = run(head, features, times).heat
        for index, readers in enumerate(([], [0, 1], [2, 3])):
            maps = features.maps.clone()
            maps[:, index] += 1
            changed = (run(head, features.with_maps(maps), times).heat != usual).flatten(2).any(-1)[0]
            assert changed.nonzero().flatten().tolist() == readers


def test_the_signed_offset_to_the_map_tells_times_apart() -> None:
    head, features = make_head(), make_features(times=(0.0,))
    with torch.no_grad():
        maps = run(head, features, torch.tensor([-2.0, 0.0, 2.0, 5.0]))
    for i in range(4):
        for j in range(i):
            assert float((maps.heat[:, i] - maps.heat[:, j]).abs().max()) > 0.01


def test_times_may_be_asked_for_in_any_order() -> None:
    head, features = make_head(), make_features(times=(0.0, 1.0, 2.0))
    with torch.no_grad():
        forwards, backwards = (run(head, features, t).heat for t in (TIMES, TIMES.flip(0)))
    torch.testing.assert_close(forwards, backwards.flip(1))


def pattern(pixels: Tensor) -> Tensor:
    """A smooth function of image pixels (..., 2), which is bilinear, so that resampling it is exact."""
    x, y = pixels.unbind(-1)
    return 0.3 * x - 0.2 * y + 0.01 * x * y


def map_of_pattern(affine: Tensor, shape: tuple[int, int]) -> Tensor:
    """(1, 1, 1, h, w) values of the pattern at the cells' centres."""
    rows, columns = torch.meshgrid(torch.arange(shape[0]), torch.arange(shape[1]), indexing="ij")
    cells = torch.stack([columns, rows], -1).float()
    return pattern((cells - affine[:, 2]) @ torch.linalg.inv(affine[:, :2]).mT)[None, None, None]


@pytest.mark.parametrize(
    ("scale", "shift", "shape"),
    [((1 / 4, 1 / 4), (-0.375, -0.375), (16, 16)), ((1 / 7, 1 / 7), (0.6, 1.3), (12, 13)), ((0.5, 0.25), (2.0, 0.1), (20, 40))],
    ids=["its own grid", "patch of 7 with padding", "unequal strides with padding"],
)
def test_maps_are_laid_over_the_image_whatever_the_padding(scale: tuple, shift: tuple, shape: tuple) -> None:
    affine = torch.tensor([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]])
    times = torch.zeros(1)
    features = VideoFeatures(map_of_pattern(affine, shape), times, times[:, None].expand(-1, 2), affine)
    found = over_image(features, torch.tensor([0]), 16, SIZE)
    expected = map_of_pattern(stride_affine(4.0), (16, 16))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(over_image(features, torch.tensor([0]), 16, SIZE), expected, atol=1e-3, rtol=0)


def test_beyond_a_crop_the_border_is_repeated() -> None:
    affine = stride_affine(4.0) - torch.tensor([[0, 0, 4.0], [0, 0, 0]])  # the map lacks the image's first four columns of cells
    whole = map_of_pattern(stride_affine(4.0), (16, 16))
    times = torch.zeros(1)
    features = VideoFeatures(whole[..., 4:], times, times[:, None].expand(-1, 2), affine)
    found = over_image(features, torch.tensor([0]), 16, SIZE)
    torch.testing.assert_close(found[..., 4:], whole[..., 4:], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[..., :4], whole[..., 4:5].expand_as(found[..., :4]), atol=1e-4, rtol=0)


# -------------------------------------------------------------------- what else the head is told


def test_start_moves_the_output_where_it_is() -> None:
    head, features = make_head(), make_features()
    with torch.no_grad():
        without = run(head, features).heat
        told = run(head, features, start=torch.tensor([[40.0, 22.0]])).heat
    change = (told - without)[0].abs().amax(0)
    rows, columns = (change > 1e-6).nonzero().unbind(-1)
    # the pixel lies at coarse cell (9.6, 5.1), between columns 9 and 10 and rows 5 and 6; the second convolution reaches one
    # further, and each coarse cell gives two of the heatmap
    assert sorted(set(columns.tolist())) == list(range(16, 24))
    assert sorted(set(rows.tolist())) == list(range(8, 16))
    assert float(change.max()) > 1e-3


def test_a_start_outside_the_image_is_no_start() -> None:
    head, features = make_head(), make_features()
    with torch.no_grad():
        assert torch.equal(run(head, features, start=torch.tensor([[-30.0, 90.0]])).heat, run(head, features).heat)


def test_mixing_carries_what_is_seen_anywhere_to_every_cell() -> None:
    near, far = make_features(), make_features()
    far.maps[..., 1, 1] += 3
    for mixing, reaches in ((0, False), (2, True)):
        head = make_head(mixing=mixing)
        with torch.no_grad():
            change = (run(head, far).heat - run(head, near).heat).abs().amax((0, 1))
        assert (change[16:, 16:].max() > 1e-4) == reaches and change[:4, :4].max() > 0.01


def test_rays_by_hand() -> None:
    """A camera 1 m above the ground that looks straight down; a cell of 4 px at focal length 32 px spans 12.5 cm there."""
    pose = torch.tensor([[[1.0, 0, 0, 0], [0, -1, 0, 0.6], [0, 0, -1, 1.0], [0, 0, 0, 1]]])
    camera = Camera.from_fov(90.0, SIZE, pose)
    state = RobotState(camera, torch.tensor([[0.1, 0.6, 0.2]]), torch.eye(3)[None], torch.tensor([0.75]))
    found = state.ray_map(16, SIZE)
    assert found.shape == (1, 6, 16, 16)
    offset = 0.125 * 2.5  # of column 10 and row 5 from the centre of the image
    ground = torch.tensor([offset / 0.3, (0.6 + offset) / 0.3])
    slope = torch.tensor([-offset, -offset])
    beside = torch.tensor([(offset * 0.8 - 0.1) / 0.3, offset * 0.8 / 0.3])
    torch.testing.assert_close(found[0, :, 5, 10], torch.cat([ground, slope, beside]), atol=1e-4, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(state.ray_map(16, SIZE), found)
    level = replace(state, camera=replace(camera, world_T_camera=orbit(0, 0, 1, (0, 0, 0.5)).float()[None]))
    assert level.ray_map(16, SIZE).isfinite().all() and level.ray_map(16, SIZE).abs().max() <= 4


def test_start_is_splatted_with_unit_mass_at_its_place() -> None:
    head = make_head()
    weight = head.trunk._splat(torch.tensor([[40.0, 22.0], [13.3, 51.7]]), SIZE)
    torch.testing.assert_close(weight.sum((1, 2)), torch.ones(2))
    axis = torch.arange(16.0)
    cells = torch.stack([(weight.sum(1) * axis).sum(-1), (weight.sum(2) * axis).sum(-1)], -1)
    torch.testing.assert_close(cells, (torch.tensor([[40.0, 22.0], [13.3, 51.7]]) + 0.5) / 4 - 0.5)


def test_condition_changes_heat_and_values_and_none_counts_as_zeros() -> None:
    head, features = make_head(condition=2), make_features()
    pixels = torch.full((1, 2, 2), 30.0)
    with torch.no_grad():
        none, zeros = run(head, features), run(head, features, condition=torch.zeros(1, 2))
        told = run(head, features, condition=torch.tensor([[1.0, -1.0]]))
        change = told.read(pixels).gripper - none.read(pixels).gripper
    assert torch.equal(none.heat, zeros.heat)
    assert float((told.heat - none.heat).abs().max()) > 0.01
    assert float(change.abs().max()) > 1e-3
    with pytest.raises(ValueError, match=r"condition must be \(1, 2\), got \(1, 3\)"):
        run(head, features, condition=torch.zeros(1, 3))


def test_values_at_a_pixel_know_how_far_it_is_from_the_start() -> None:
    head, features = make_head(), make_features(times=(0.0,))
    pixels = torch.full((1, 2, 2), 60.0)  # beyond what the start itself reaches in the map
    with torch.no_grad():
        first, second = (run(head, features, start=torch.full((1, 2), v)) for v in (10.0, 20.0))
        assert torch.equal(first.embedding[..., -1, -1], second.embedding[..., -1, -1])
        assert float((first.read(pixels).z - second.read(pixels).z).abs().max()) > 1e-3


def test_robot_condition_by_hand() -> None:
    """A camera that looks straight down from 1 m above the gripper; focal length 32 px."""
    pose = torch.tensor([[[1.0, 0, 0, 0], [0, -1, 0, 0.6], [0, 0, -1, 1.2], [0, 0, 0, 1]]])
    camera = Camera.from_fov(90.0, SIZE, pose)
    state = RobotState(camera, torch.tensor([[0.0, 0.6, 0.2]]), torch.eye(3)[None], torch.tensor([0.75]))
    head = make_head()
    found = head.robot_condition(state)[0]
    assert found.shape == (head.condition,)
    torch.testing.assert_close(found[:3], torch.tensor([1.0, 0.5, 2.0]))
    # 10 cm along world x and y move the gripper by 3.2 px to the right and up; along the view axis it stays where it is
    torch.testing.assert_close(found[-6:], torch.tensor([0.32, 0, 0, -0.32, 0, 0]), atol=1e-5, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head.robot_condition(state)[0], found)


def test_height_and_opening_are_told_roughly_in_training_alone() -> None:
    features, query, state = make_features(), Query(TIMES, SIZE), make_state()

    def repeats(head: ParaHead) -> bool:
        return torch.equal(*(head.maps(features, query, state).context for _ in range(2)))

    assert repeats(make_head()) and repeats(make_head(state_noise=0.0).train()) and not repeats(make_head().train())
    rough = make_state(512).roughly()
    off = rough.position - make_state(512).position
    assert off[:, :2].abs().max() == 0 and 0.008 < off[:, 2].std() < 0.012
    assert 0.06 < (rough.opening - 0.5).std() < 0.1 and rough.roughly(9.0).opening.max() <= 1


def test_a_head_that_is_not_told_of_start_or_opening_answers_the_same_whatever_they_are(monkeypatch) -> None:
    features, query, state = make_features(), Query(TIMES, SIZE), make_state()
    moved = replace(state, position=state.position + torch.tensor([0.05, 0.02, 0.0]))
    opened = replace(state, opening=state.opening + 0.5)

    def same(head: ParaHead, other: RobotState) -> bool:
        first, second = (head.maps(features, query, each) for each in (state, other))
        pixels = torch.full((1, 2, 2), 20.0)
        return torch.equal(first.heat, second.heat) and torch.equal(first.read(pixels).z, second.read(pixels).z)

    assert same(make_head(opening=False), opened) and not same(make_head(), opened)
    monkeypatch.setattr(ParaHead, "robot_condition", lambda head, _: torch.zeros(1, head.condition))  # which knows the height
    assert same(make_head(start=False), moved) and not same(make_head(), moved)


@pytest.mark.parametrize("lift", ["height", "depth"])
def test_relative_bins_count_from_the_gripper(lift: str) -> None:
    """Robot, camera and targets all raised by 0.7 m: the same losses, and answers raised by 0.7 m, but for what it is told of the
    height itself."""
    spec = replace(FACTORISED, lift=lift, z=Bins(-0.2, 0.2, 16), relative=True)
    head, features = make_head(spec), make_features()
    nn.init.zeros_(head.trunk.context[0].weight)
    nn.init.zeros_(head.trunk.rays.weight)
    targets, state = make_targets()
    up = torch.tensor([0.0, 0.0, 0.7])
    pose = state.camera.world_T_camera.clone()
    pose[:, :3, 3] += up
    raised = replace(state, camera=replace(state.camera, world_T_camera=pose), position=state.position + up)
    with torch.no_grad():
        here = head.predict(features, Query(TIMES, SIZE), state)
        there = head.predict(features, Query(TIMES, SIZE), raised)
        losses = [
            head.loss(features, Query(TIMES, SIZE), Batch(torch.zeros(1, 1, 3, *SIZE), t, s))
            for t, s in ((targets, state), (replace(targets, positions=targets.positions + up), raised))
        ]
    torch.testing.assert_close(there.positions, here.positions + up, atol=1e-3, rtol=0)
    torch.testing.assert_close(losses[0], losses[1], atol=1e-3, rtol=1e-3)


def test_impossible_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="grid must be a positive multiple of 8, got 36"):
        ParaHead(CHANNELS, FACTORISED, grid=36, layers=2)
    with pytest.raises(ValueError, match="layers >= 1, mixing >= 0; got 16, 0, 2"):
        ParaHead(CHANNELS, FACTORISED, grid=32, layers=0)
    for options in ({"path_px": -1.0}, {"path_px": 2.0, "start": False}):
        with pytest.raises(ValueError, match="path_px must be 0, or positive with a start"):
            make_head(**options)
    with pytest.raises(ValueError, match=r"path_px needs evenly spaced times that begin after now, got \[0.0, 1.0\]"):
        make_head(path_px=2.0).predict(make_features(), Query(torch.tensor([0.0, 1.0]), SIZE), make_state())


def test_a_head_reads_heatmaps_as_one_path_where_asked() -> None:
    """Of random maps, which are no path."""
    features, state = make_features(4), make_state(4)
    with torch.no_grad():
        alone, along = (make_head(path_px=px).predict(features, Query(TIMES, SIZE), state).pixels for px in (0.0, 2.0))
    bend = lambda pixels: (pixels[:, 1] - 2 * pixels[:, 0] + state.pixel()).norm(dim=-1).sum()  # noqa: E731
    assert bend(along) < bend(alone)


# -------------------------------------------------------------------- values at a pixel


def test_reading_is_bilinear_between_cells_and_clamped_at_the_border() -> None:
    head, features = make_head(), make_features()
    with torch.no_grad():
        maps = run(head, features)
        cell = torch.tensor([[[7.25, 9.0], [7.25, 9.0]]])
        pixels = (cell + 0.5) * 4 - 0.5
        mixed = 0.75 * maps.embedding[:, :, :, 9, 7] + 0.25 * maps.embedding[:, :, :, 9, 8]
        expected = head.pixel(torch.cat([head.norm(mixed), maps.context, torch.zeros(1, 2, 2)], -1))[..., :16]
        torch.testing.assert_close(maps.read(pixels).z, expected)
        outside, corner = (torch.tensor([[[v, v], [v, v]]]) for v in (-50.0, 1.5))
        torch.testing.assert_close(maps.read(outside).z, maps.read(corner).z)


@both_forms
def test_shapes_of_what_is_read(spec: ReadoutSpec) -> None:
    head = make_head(spec)
    with torch.no_grad():
        maps = run(head, make_features(3))
        read = maps.read(torch.full((3, 2, 2), 20.0))
    assert maps.heat.shape == (3, 2, GRID, GRID) and maps.outside.shape == (3, 2)
    assert read.z.shape == (3, 2, 16) and read.gripper.shape == (3, 2, 2) and read.rotation.shape == (3, 2, 3, 24)
    assert (maps.volume is None) != spec.joint_volume


def test_a_wrist_that_does_not_turn_has_no_rotation() -> None:
    head = make_head(replace(FACTORISED, rotation_bins=0))
    targets, state = make_targets()
    with torch.no_grad():
        assert run(head, make_features()).read(torch.zeros(1, 2, 2)).rotation is None
        losses = head.losses(run(head, make_features()), targets, state.camera)
        actions = head.predict(make_features(), Query(TIMES, SIZE), state)
    assert set(losses) == {"heat", "z", "gripper"} and actions.rotations is None


# -------------------------------------------------------------------- the joint volume


def test_heat_is_the_marginal_of_the_volume() -> None:
    head = make_head(JOINT)
    with torch.no_grad():
        maps = run(head, make_features())
    assert maps.volume.shape == (1, 2, 16, GRID, GRID)
    torch.testing.assert_close(maps.heat, maps.volume.exp().sum(2).log(), atol=1e-5, rtol=1e-5)


def test_the_volumes_z_is_its_column_at_the_pixel() -> None:
    head = make_head(JOINT)
    with torch.no_grad():
        maps = run(head, make_features())
        z = maps.read(torch.tensor([[[20.7, 41.0], [-9.0, 99.0]]])).z  # cells (10.1, 20.25) and beyond the lower left corner
    torch.testing.assert_close(z[0, 0], maps.volume[0, 0, :, 20, 10])
    torch.testing.assert_close(z[0, 1], maps.volume[0, 1, :, 31, 0])


def test_joint_loss_by_brute_force() -> None:
    """The cross-entropy with the product of heat target and z target; where no position is given, that of the marginal."""
    head = make_head(JOINT)
    targets, state = make_targets(2)
    mask = torch.tensor([[True, True], [True, False]])
    targets = replace(targets, position_mask=mask)
    with torch.no_grad():
        maps = run(head, make_features(2))
        found = head.losses(maps, targets, state.camera)
    goal = gaussian_targets(targets.pixels, targets.visible, (GRID, GRID), SIZE, 2.0)
    z = JOINT.z.targets(targets.positions[..., 2])
    total = 0.0
    for i in range(2):
        for j in range(2):
            every = torch.cat([maps.volume[i, j].flatten(), maps.outside[i, j].view(1)])
            log_volume = every.log_softmax(0)[:-1].view(16, -1)
            log_heat = log_volume.logsumexp(0)
            if mask[i, j]:
                total -= float((z[i, j][:, None] * goal[i, j, :-1] * log_volume).sum())
            else:
                total -= float((goal[i, j, :-1] * log_heat).sum())
    assert float(found["heat"]) == pytest.approx(total / 4, rel=1e-4)
    assert "z" not in found


# -------------------------------------------------------------------- labels


@both_forms
def test_pixels_alone_teach_the_heatmap_alone(spec: ReadoutSpec) -> None:
    """Circles and point tracks: no positions, no robot."""
    head = make_head(spec)
    targets = Targets(torch.tensor([[[20.0, 30.0], [25.0, 33.0]]]), torch.ones(1, 2, dtype=torch.bool))
    losses = head.loss(make_features(), Query(TIMES, SIZE), Batch(torch.zeros(1, 1, 3, *SIZE), targets))
    assert set(losses) == {"heat"}
    losses["heat"].backward()
    assert head.trunk.first.weight.grad.any() and head.pixel[0].weight.grad is None


@both_forms
@pytest.mark.parametrize("part", ["labelled", "position_mask", "gripper_mask", "rotation_mask"])
def test_masked_entries_teach_nothing_even_where_they_are_nan(spec: ReadoutSpec, part: str) -> None:
    targets, state = make_targets(2)
    field = {"labelled": "pixels", "position_mask": "positions", "gripper_mask": "gripper", "rotation_mask": "rotations"}[part]
    mask = torch.tensor([[True, False], [True, True]])

    def gradients(filler: float) -> list[Tensor]:
        head = make_head(spec)
        values = getattr(targets, field).clone()
        values[~mask] = filler
        losses = head.losses(run(head, make_features(2)), replace(targets, **{field: values, part: mask}), state.camera)
        sum(losses.values()).backward()
        return [p.grad for p in head.parameters() if p.grad is not None]

    for one, other in zip(gradients(0.1), gradients(math.nan), strict=True):
        assert bool(torch.isfinite(other).all())
        assert torch.equal(one, other)


def test_features_of_masked_entries_get_no_gradient() -> None:
    head = make_head()
    targets, state = make_targets(2)
    none = torch.tensor([[True, True], [False, False]])
    targets = replace(targets, labelled=none, position_mask=none, gripper_mask=none, rotation_mask=none)
    features = make_features(2)
    maps = features.maps.requires_grad_()
    losses = head.losses(run(head, features), targets, state.camera)
    sum(losses.values()).backward()
    assert maps.grad[0].any() and not maps.grad[1].any()


@both_forms
def test_nothing_labelled_gives_zero_losses_with_a_graph(spec: ReadoutSpec) -> None:
    head = make_head(spec)
    targets, state = make_targets(2)
    none = torch.zeros(2, 2, dtype=torch.bool)
    targets = replace(targets, labelled=none, position_mask=none, gripper_mask=none, rotation_mask=none)
    losses = head.losses(run(head, make_features(2)), targets, state.camera)
    assert all(loss.item() == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert not any(p.grad.any() for p in head.parameters() if p.grad is not None)


def test_points_outside_teach_the_outside_logit_and_nothing_at_the_pixel() -> None:
    head = make_head()
    targets, state = make_targets(1)
    targets = replace(targets, visible=torch.tensor([[False, False]]))
    maps = run(head, make_features())
    losses = head.losses(maps, targets, state.camera)
    logits = torch.cat([maps.heat.flatten(-2), maps.outside[..., None]], -1).log_softmax(-1)
    torch.testing.assert_close(losses["heat"], -logits[..., -1].mean())
    assert losses["z"].item() == losses["gripper"].item() == losses["rotation"].item() == 0


def test_jitter_reads_off_the_pixel_in_training_alone() -> None:
    targets, state = make_targets(1)
    head = make_head(jitter_px=8.0)
    maps = run(head, make_features())
    torch.manual_seed(0)
    first, second = (head.losses(maps, targets, state.camera)["z"] for _ in range(2))
    assert torch.equal(first, second)
    head.train()
    first, second = (head.losses(maps, targets, state.camera)["z"] for _ in range(2))
    assert not torch.equal(first, second)


def test_losses_are_float32_and_labels_exact_under_autocast() -> None:
    """Rotation labels pass a matrix product, which bf16 would round by tenths of a degree."""
    head = make_head()
    targets, state = make_targets(2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        maps = run(head, make_features(2), start=state.pixel())
        found = head.losses(maps, targets, state.camera)
    with torch.no_grad():
        expected = head.losses(maps, targets, state.camera)
    assert all(loss.dtype == torch.float32 for loss in found.values())
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss, msg=name)


# -------------------------------------------------------------------- learning


@both_forms
@pytest.mark.parametrize("lift", ["height", "depth"])
def test_poses_learnt_by_heart_decode_to_a_few_degrees(spec: ReadoutSpec, lift: str) -> None:
    if lift == "depth":
        spec = replace(spec, lift="depth", z=Bins(0.8, 1.6, 32))
    torch.manual_seed(0)
    head = ParaHead(CHANNELS, spec, grid=GRID, hidden=32, jitter_px=0.5)
    targets, state = make_targets(4)
    features = make_features(4)
    batch = Batch(torch.zeros(4, 1, 3, *SIZE), targets, state)
    optimizer = torch.optim.AdamW(head.parameters(), 5e-3)
    for _ in range(120):
        losses = head.loss(features, Query(TIMES, SIZE), batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    head.eval()
    with torch.no_grad():
        actions = head.predict(features, Query(TIMES, SIZE), state)
        maps = head(features, times=TIMES, size=SIZE, start=state.pixel(), condition=None)
        forced = Readout(spec).decode(maps, state.camera, pixels=targets.pixels)
    error = (actions.positions - targets.positions).norm(dim=-1).max()
    assert error < 0.02, f"{float(error) * 1000:.1f} mm"
    chord = (actions.rotations - targets.rotations).flatten(-2).norm(dim=-1) / (2 * math.sqrt(2))
    assert float(torch.rad2deg(2 * torch.asin(chord)).max()) < 5
    assert torch.equal(actions.gripper, targets.gripper)
    assert float(actions.visible.min()) > 0.9
    assert torch.equal(forced.pixels, targets.pixels)


def test_a_hidden_point_is_learnt_as_such() -> None:
    torch.manual_seed(0)
    head = ParaHead(CHANNELS, FACTORISED, grid=GRID, hidden=16)
    features = make_features(4)
    visible = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    targets = Targets(torch.full((4, 2, 2), 30.0), visible)
    optimizer = torch.optim.AdamW(head.parameters(), 5e-3)
    for _ in range(80):
        loss = head.losses(run(head, features), targets, None)["heat"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        actions = Readout(FACTORISED).decode(run(head.eval(), features), make_state(4).camera)
    assert torch.equal(actions.visible > 0.5, visible)


def test_inputs_stay_as_they_are() -> None:
    head = make_head()
    targets, state = make_targets(2)
    features = make_features(2)
    kept = [features.maps.clone(), targets.pixels.clone(), targets.positions.clone(), targets.rotations.clone()]
    head.train()
    head.loss(features, Query(TIMES, SIZE), Batch(torch.zeros(2, 1, 3, *SIZE), targets, state))
    now = [features.maps, targets.pixels, targets.positions, targets.rotations]
    assert all(torch.equal(one, other) for one, other in zip(kept, now, strict=True))


def test_losses_match_their_parts_by_brute_force() -> None:
    head = make_head()
    targets, state = make_targets(2)
    with torch.no_grad():
        maps = run(head, make_features(2))
        losses = head.losses(maps, targets, state.camera)
        read = maps.read(targets.pixels)
    z = -(FACTORISED.z.targets(targets.positions[..., 2]) * read.z.log_softmax(-1)).sum(-1).mean()
    chosen = read.gripper.log_softmax(-1).gather(-1, (targets.gripper > 0).long()[..., None])
    angles = FACTORISED.rotation_angles(targets.rotations)
    rotation = masked_cross_entropy(read.rotation, FACTORISED.angles.targets(angles))
    torch.testing.assert_close(losses["z"], z)
    torch.testing.assert_close(losses["gripper"], -chosen.mean())
    torch.testing.assert_close(losses["rotation"], rotation)
