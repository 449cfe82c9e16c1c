"""Baselines: codes and pooling by hand, what each head is told, that each can learn, and temporal ensembling by hand."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from backbones import build_backbone
from para_video.agent import ActionHead, Batch, Query, RobotState, VideoPolicy
from para_video.baselines import (
    CAMERA_DIM,
    ROBOT_DIM,
    ActHead,
    ActionCode,
    ActionStatistics,
    GlobalRegressionHead,
    Regressed,
    TemporalEnsemble,
    gaussian_kl,
    nearest_rotation,
    on_image,
    spatial_softmax,
)
from para_video.camera import Camera, orbit
from para_video.demos import Demo
from para_video.features import VideoFeatures, stride_affine
from para_video.heads import ParaHead
from para_video.heatmap import Bins
from para_video.policy import Actions, Observation, View
from para_video.readout import ReadoutSpec, Targets, matrix_from_euler

SIZE = (64, 64)
TIMES = (1.0, 2.0, 3.0)
CHANNELS = 16
SPEC = ReadoutSpec(z=Bins(0.0, 0.4, 16), gripper_bins=2)
WIDE = replace(SPEC, z=Bins(-1.0, 1.0, 16))
STATISTICS = ActionStatistics(
    position_mean=(0.0, 0.6, 0.1),
    position_std=(0.1, 0.1, 0.05),
    displacement_mean=(0.01, 0.0, -0.02),
    displacement_std=(0.05, 0.05, 0.05),
    pixel_mean=(0.5, 0.5),
    pixel_std=(0.2, 0.2),
    shift_mean=(0.0, 0.1),
    shift_std=(0.1, 0.1),
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cameras(b: int, azimuth: float = 135.0) -> Camera:
    return Camera.from_fov(45.0, SIZE, orbit(azimuth, -40.0, 1.15, (0.0, 0.65, 0.08)).float().expand(b, 4, 4))


def make_batch(b: int = 2, seed: int = 0, azimuth: float = 135.0, frames: int = 1) -> Batch:
    """Clips of noise, grippers near the scene's middle, targets some centimetres from them."""
    camera = cameras(b, azimuth)
    position = torch.tensor([0.0, 0.6, 0.15]) + 0.05 * normal(b, 3, seed=seed)
    turned = matrix_from_euler(0.3 * normal(b, 3, seed=seed + 1))
    state = RobotState(camera, position, turned, torch.linspace(0.2, 0.9, b))
    goals = position[:, None] + 0.04 * normal(b, len(TIMES), 3, seed=seed + 2)
    gripper = normal(b, len(TIMES), seed=seed + 3).sign()
    pixels, depth = camera.project(goals)
    rotations = matrix_from_euler(0.3 * normal(b, len(TIMES), 3, seed=seed + 4))
    clip = torch.rand(b, frames, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
    return Batch(clip, Targets(pixels, depth > 0, positions=goals, gripper=gripper, rotations=rotations), state)


def make_features(b: int = 2, seed: int = 9, side: int = 16, times: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0)) -> VideoFeatures:
    when = torch.tensor(times)
    maps = normal(b, len(times), CHANNELS, side, side, seed=seed)
    return VideoFeatures(maps, when, when[:, None].expand(-1, 2), stride_affine(SIZE[0] / side))


def query() -> Query:
    return Query(torch.tensor(TIMES), SIZE)


def act_head(**options) -> ActHead:
    small = {"dim": 32, "heads": 4, "hidden": 64, "encoder_layers": 1, "latent": 8, "dropout": 0.0}
    return ActHead(CHANNELS, SPEC, STATISTICS, **(small | options))


HEADS = {
    "xyz-average": lambda: GlobalRegressionHead(CHANNELS, SPEC, STATISTICS, target="xyz", pooling="average", hidden=16),
    "xyz-softmax": lambda: GlobalRegressionHead(CHANNELS, SPEC, STATISTICS, target="xyz", pooling="softmax", hidden=16),
    "uvh-average": lambda: GlobalRegressionHead(CHANNELS, SPEC, STATISTICS, target="uvh", pooling="average", hidden=16),
    "uvh-softmax": lambda: GlobalRegressionHead(CHANNELS, SPEC, STATISTICS, target="uvh", pooling="softmax", hidden=16),
    "act": act_head,
}
every_head = pytest.mark.parametrize("name", HEADS)


def build(name: str, seed: int = 0) -> ActionHead:
    torch.manual_seed(seed)
    return HEADS[name]()


# -------------------------------------------------------------------- codes


@pytest.mark.parametrize("kind", ["xyz", "uvh"])
@pytest.mark.parametrize("relative", [False, True])
def test_perfect_outputs_decode_to_the_targets(kind: str, relative: bool) -> None:
    batch = make_batch(4)
    code = ActionCode(STATISTICS, WIDE, kind, relative=relative)
    exact, mask = code.encode(batch.targets, batch.state, SIZE)
    positions, pixels = code.decode(exact, batch.state, SIZE)
    assert mask.all()
    torch.testing.assert_close(positions, batch.targets.positions, atol=1e-5, rtol=0)
    if kind == "uvh":
        torch.testing.assert_close(pixels, batch.targets.pixels, atol=1e-3, rtol=0)
    else:
        assert pixels is None


def test_codes_by_hand() -> None:
    batch = make_batch(1)
    position = torch.tensor([[0.1, 0.7, 0.2]])
    state = replace(batch.state, position=position)
    goals = torch.tensor([[[0.1, 0.5, 0.15]]])
    targets = Targets(torch.tensor([[[31.5, 12.3]]]), torch.ones(1, 1, dtype=torch.bool), positions=goals)
    absolute = ActionCode(STATISTICS, SPEC, relative=False).encode(targets, state, SIZE)[0]
    torch.testing.assert_close(absolute, torch.tensor([[[1.0, -1.0, 1.0]]]))
    relative = ActionCode(STATISTICS, SPEC, relative=True).encode(targets, state, SIZE)[0]
    torch.testing.assert_close(relative, torch.tensor([[[-0.2, -4.0, -0.6]]]))
    pixel = ActionCode(STATISTICS, SPEC, "uvh", relative=False).encode(targets, state, SIZE)[0]
    torch.testing.assert_close(pixel, torch.tensor([[[0.0, -1.5, 1.0]]]))  # (12.3 + 0.5) / 64 = 0.2


def test_xyz_does_not_depend_on_the_camera_and_uvh_is_lifted_by_it() -> None:
    here, there = make_batch(2), make_batch(2, azimuth=160.0)
    outputs = 0.3 * normal(2, 3, 3)
    for kind, same in (("xyz", True), ("uvh", False)):
        code = ActionCode(STATISTICS, SPEC, kind, relative=False)
        first, second = (code.decode(outputs, batch.state, SIZE)[0] for batch in (here, there))
        assert torch.equal(first, second) == same
    lifted = ActionCode(STATISTICS, SPEC, "uvh", relative=False).decode(outputs, there.state, SIZE)
    torch.testing.assert_close(there.state.camera.project(lifted[0])[0], lifted[1], atol=1e-3, rtol=0)


def test_uvh_stays_on_the_image_and_within_the_heights() -> None:
    batch = make_batch(1)
    code = ActionCode(STATISTICS, SPEC, "uvh", relative=False)
    positions, pixels = code.decode(torch.tensor([[[99.0, -99.0, 99.0], [0.0, 0.0, -99.0]]]), batch.state, SIZE)
    torch.testing.assert_close(pixels[0, 0], torch.tensor([63.5, -0.5]))
    torch.testing.assert_close(positions[0, :, 2], torch.tensor([0.4, 0.0]), atol=1e-6, rtol=0)


def test_uvh_heights_are_bounded_by_the_bins_wherever_they_count_from() -> None:
    batch = make_batch(2)
    extreme = torch.tensor([[[0.0, 0.0, 99.0], [0.0, 0.0, -99.0]]]).expand(2, -1, -1)
    relative = replace(SPEC, z=Bins(-0.1, 0.05, 8), relative=True)
    positions, _ = ActionCode(STATISTICS, relative, "uvh", relative=False).decode(extreme, batch.state, SIZE)
    expected = batch.state.position[:, 2:] + torch.tensor([0.05, -0.1])
    torch.testing.assert_close(positions[..., 2], expected, atol=1e-6, rtol=0)
    depth = replace(SPEC, lift="depth", z=Bins(0.9, 1.3, 8))  # bins of distances say nothing about heights
    code = ActionCode(STATISTICS, depth, "uvh", relative=False)
    found, _ = code.decode(torch.tensor([[[0.0, 0.0, 10.0]]]).expand(2, -1, -1), batch.state, SIZE)
    torch.testing.assert_close(found[..., 2], torch.full((2, 1), 0.6), atol=1e-6, rtol=0)


def test_a_ray_that_misses_the_plane_leaves_the_gripper_where_it_is() -> None:
    batch = make_batch(1)
    level = replace(batch.state, camera=Camera.from_fov(45.0, SIZE, orbit(135.0, 0.0, 1.0, (0.0, 0.6, 0.3)).float())[None])
    code = ActionCode(STATISTICS, SPEC, "uvh", relative=False)
    upwards = torch.tensor([[[0.0, -2.0, -1.0]]])  # above the horizon, yet below the camera
    positions, _ = code.decode(upwards, level, SIZE)
    torch.testing.assert_close(positions[:, 0], level.position)


def test_codes_are_float32_under_autocast() -> None:
    batch = make_batch(2)
    for kind in ("xyz", "uvh"):
        code = ActionCode(STATISTICS, SPEC, kind, relative=True).eval()
        expected = (code.state(batch.state, SIZE), code.encode(batch.targets, batch.state, SIZE)[0])
        with torch.autocast("cpu", torch.bfloat16):
            found = (code.state(batch.state, SIZE), code.encode(batch.targets, batch.state, SIZE)[0])
            decoded = code.decode(expected[1], batch.state, SIZE)[0]
        for want, got in zip(expected, found, strict=True):
            assert got.dtype == torch.float32
            assert torch.equal(want, got)
        torch.testing.assert_close(decoded, batch.targets.positions, atol=1e-5, rtol=0)


def test_in_training_the_state_is_told_roughly() -> None:
    code, state = ActionCode(STATISTICS, SPEC, relative=False), make_batch(2).state
    exact, rough = code.eval().state(state, SIZE), code.train().state(state, SIZE)
    told = ActionCode(STATISTICS, SPEC, relative=False, state_noise=0.0).train().state(state, SIZE)
    assert torch.equal(told, exact), "without noise"
    off = (rough - exact).abs()
    assert (off[:, [2, 9]] > 0).all() and off[:, [0, 1, *range(3, 9)]].max() == 0, "height and opening"
    assert off[:, ROBOT_DIM:].max() == 0, "the camera is known"


def test_state_vector_by_hand() -> None:
    """A camera 1 m above the mean position that looks straight down; 90 degrees over 64 rows: focal length 32 px."""
    pose = torch.tensor([[[1.0, 0, 0, 0.0], [0, -1, 0, 0.6], [0, 0, -1, 1.1], [0, 0, 0, 1]]])
    position = torch.tensor([[0.1, 0.6, 0.1]])
    state = RobotState(Camera.from_fov(90.0, SIZE, pose), position, torch.eye(3)[None], torch.tensor([0.75]))
    vector = ActionCode(STATISTICS, SPEC, relative=False).eval().state(state, SIZE)[0]
    assert vector.shape == (ROBOT_DIM + CAMERA_DIM,)
    robot, camera = vector[:ROBOT_DIM], vector[ROBOT_DIM:]
    # position, rotation columns, opening, pixel (31.5 + 3.2, 31.5) on [-1, 1], depth 1 m less the mean's 1 m
    torch.testing.assert_close(robot[:13], torch.tensor([1, 0, 0, 1, 0, 0, 0, 1, 0, 0.5, 0.1, 0, 0]), atol=1e-5, rtol=0)
    # 10 cm to the side move the pixel by 3.2, a twentieth of the image; 10 cm up by 3.2 / 0.9 - 3.2
    torch.testing.assert_close(robot[13:], torch.tensor([0.5, 0, 0, -0.5, 0.5 / 9, 0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(camera, torch.tensor([0, 0, 1, 1, 0, 0, 0, -1, 0, -0.5, -0.5, 0, 0]), atol=1e-5, rtol=0)


def test_statistics_by_hand() -> None:
    """Three steps of 1 cm along x at a height of 0 under a camera 1 m above, chunk of 2: ends repeat the last step."""
    pose = torch.tensor([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 1], [0, 0, 0, 1]])
    positions = np.array([[0.0, 0, 0], [0.01, 0, 0], [0.02, 0, 0]], np.float32)
    demo = Demo(
        np.zeros((3, 64, 64, 3), np.uint8), positions, np.tile(np.eye(3, dtype=np.float32), (3, 1, 1)), np.ones(3, np.float32),
        np.ones(3, np.float32), Camera.from_fov(90.0, SIZE, pose), "task", 0,
    )  # fmt: skip
    found = ActionStatistics.of([demo], chunk=2, stride=1, floor=0.001)
    targets = np.array([0.01, 0.02, 0.02, 0.02, 0.02, 0.02])
    moved = np.array([0.01, 0.02, 0.01, 0.01, 0.0, 0.0])
    np.testing.assert_allclose(found.position_mean, [targets.mean(), 0, 0], atol=1e-7)
    np.testing.assert_allclose(found.position_std, [targets.std(), 0.001, 0.001], atol=1e-7)
    np.testing.assert_allclose(found.displacement_mean, [moved.mean(), 0, 0], atol=1e-7)
    np.testing.assert_allclose(found.displacement_std, [moved.std(), 0.001, 0.001], atol=1e-7)
    np.testing.assert_allclose(found.pixel_mean, [0.5 + targets.mean() / 2, 0.5], atol=1e-6)
    np.testing.assert_allclose(found.shift_std, [moved.std() / 2, 0.001], atol=1e-6)
    assert found.target("uvh", relative=True)[0] == (*found.shift_mean, found.displacement_mean[2])
    with pytest.raises(ValueError, match="no demonstrations"):
        ActionStatistics.of([], chunk=2, stride=1)


def test_checkpoints_carry_the_statistics() -> None:
    other = ActionStatistics(*((v[0] + 1.0,) * len(v) for v in vars(STATISTICS).values()))
    head = GlobalRegressionHead(CHANNELS, SPEC, other)
    head.load_state_dict(GlobalRegressionHead(CHANNELS, SPEC, STATISTICS).state_dict())
    torch.testing.assert_close(head.code.mean, torch.tensor(STATISTICS.displacement_mean))
    torch.testing.assert_close(head.code.position_std, torch.tensor(STATISTICS.position_std))


# -------------------------------------------------------------------- pooling


def test_spatial_softmax_by_hand() -> None:
    logits = torch.full((1, 1, 2, 4, 4), -math.inf)
    logits[0, 0, 0, 1, 3] = 0.0
    logits[0, 0, 1, 0, 0] = logits[0, 0, 1, 0, 3] = 2.0
    found = spatial_softmax(logits, on_image(4, torch.zeros(1)))
    torch.testing.assert_close(found, torch.tensor([[[[0.75, -0.25], [0.0, -0.75]]]]))


def test_spatial_softmax_follows_a_shifted_map() -> None:
    logits = torch.full((1, 1, 1, 12, 12), -20.0)
    logits[..., 3:6, 2:5] = normal(3, 3)
    moved, grid = torch.roll(logits, (4, 5), (-2, -1)), on_image(12, torch.zeros(1))
    step = torch.tensor([5.0, 4.0]) * 2 / 12
    torch.testing.assert_close(spatial_softmax(moved, grid), spatial_softmax(logits, grid) + step, atol=1e-4, rtol=0)


# -------------------------------------------------------------------- what the heads have in common


@every_head
def test_heads_are_interchangeable_in_the_policy(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone("mini-random", tap="fine", width=8, channels=CHANNELS, depth=1)
    policy = VideoPolicy(backbone, build(name), TIMES)
    batch = make_batch(2, frames=2)
    before = [batch.clip.clone(), batch.targets.positions.clone(), batch.state.position.clone()]
    with torch.autocast("cpu", torch.bfloat16):
        losses = policy(batch)
    assert set(losses) == {"position", "gripper"}
    assert all(loss.ndim == 0 and loss.dtype == torch.float32 and bool(torch.isfinite(loss)) for loss in losses.values())
    sum(losses.values()).backward()
    assert float(backbone.stem.weight.grad.abs().max()) > 0
    policy.eval()
    actions = policy.predict(batch.clip, batch.state)
    assert actions.positions.shape == (2, 3, 3) and actions.gripper.shape == (2, 3)
    assert actions.positions.dtype == torch.float32 and bool(torch.isfinite(actions.positions).all())
    assert set(actions.gripper.unique().tolist()) <= {-1.0, 1.0}
    assert (actions.pixels is not None) == name.startswith("uvh") and actions.log_probability is None
    after = [batch.clip, batch.targets.positions, batch.state.position]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@every_head
def test_every_parameter_learns(name: str) -> None:
    head = build(name)
    losses = head.loss(make_features(), query(), make_batch())
    sum(losses.values()).backward()
    idle = [key for key, parameter in head.named_parameters() if parameter.grad is None]
    assert idle == []


@every_head
def test_camera_and_gripper_change_the_answer(name: str) -> None:
    head, batch, features = build(name).eval(), make_batch(), make_features()
    told = {
        "camera": replace(batch.state, camera=cameras(2, 150.0)),
        "position": replace(batch.state, position=batch.state.position + 0.02),
        "opening": replace(batch.state, opening=1 - batch.state.opening),
        "rotation": replace(batch.state, rotation=batch.targets.rotations[:, 0]),
    }
    with torch.no_grad():
        usual = head(features, query(), batch.state).code
        for what, state in told.items():
            assert float((head(features, query(), state).code - usual).abs().max()) > 1e-5, what


@every_head
def test_features_change_the_answer(name: str) -> None:
    head, batch = build(name).eval(), make_batch()
    with torch.no_grad():
        first, second = (head(make_features(seed=s), query(), batch.state).code for s in (1, 2))
    assert float((first - second).abs().max()) > 1e-4


@every_head
def test_rows_of_a_batch_do_not_mix(name: str) -> None:
    head, batch, features = build(name).eval(), make_batch(3), make_features(3)
    with torch.no_grad():
        together = head.predict(features, query(), batch.state).positions
        state = RobotState(batch.state.camera[1:2], batch.state.position[1:2], batch.state.rotation[1:2], batch.state.opening[1:2])
        alone = head.predict(features.with_maps(features.maps[1:2]), query(), state).positions
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=0)


@every_head
def test_an_image_model_tells_times_apart_by_their_offset(name: str) -> None:
    head, batch = build(name).eval(), make_batch()
    with torch.no_grad():
        code = head(make_features(times=(0.0,)), query(), batch.state).code
    assert float((code[:, 0] - code[:, 2]).abs().max()) > 1e-4


@every_head
def test_unlabelled_entries_teach_nothing_even_where_they_are_nan(name: str) -> None:
    batch, features = make_batch(), make_features()
    mask = torch.tensor([[True, False, True], [True, True, False]])

    def gradients(filler: float) -> list[Tensor]:
        head = build(name).eval()
        positions = torch.where(mask[..., None], batch.targets.positions, torch.full((), filler))
        targets = replace(batch.targets, positions=positions, position_mask=mask, gripper_mask=mask)
        losses = head.loss(features, query(), replace(batch, targets=targets))
        sum(losses.values()).backward()
        return [p.grad for p in head.parameters() if p.grad is not None]

    for one, other in zip(gradients(0.3), gradients(math.nan), strict=True):
        assert torch.equal(one, other)


@every_head
def test_nothing_labelled_gives_a_zero_loss_with_a_graph(name: str) -> None:
    batch = make_batch()
    none = torch.zeros_like(batch.targets.visible)
    targets = replace(batch.targets, position_mask=none, gripper_mask=none)
    losses = build(name).eval().loss(make_features(), query(), replace(batch, targets=targets))
    assert losses["gripper"].item() == 0
    assert losses["position"].item() == 0  # ACT's posterior starts at the prior
    sum(losses.values()).backward()


@every_head
@pytest.mark.parametrize("what", ["state", "positions"])
def test_missing_labels_are_named(name: str, what: str) -> None:
    batch = make_batch()
    if what == "state":
        batch = replace(batch, state=None)
    else:
        batch = replace(batch, targets=replace(batch.targets, positions=None))
    with pytest.raises(ValueError, match=what if what == "positions" else "no robot state"):
        build(name).loss(make_features(), query(), batch)


@every_head
def test_each_head_learns_a_small_batch_by_heart(name: str) -> None:
    head, batch, features = build(name), make_batch(4), make_features(4)
    optimizer = torch.optim.AdamW(head.parameters(), 3e-3)
    for _ in range(150):
        losses = head.loss(features, query(), batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    head.eval()
    with torch.no_grad():
        actions = head.predict(features, query(), batch.state)
    error = (actions.positions - batch.targets.positions).norm(dim=-1).mean()
    assert error < 0.01, f"mean error {float(error) * 1000:.1f} mm, the targets are about 70 mm away"
    assert torch.equal(actions.gripper, batch.targets.gripper)


@pytest.mark.parametrize("name", ["regression", "act"])
def test_rotations_are_learnt_in_the_reference_frame(name: str) -> None:
    spec = replace(SPEC, reference=((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)))
    torch.manual_seed(0)
    if name == "act":
        head = ActHead(CHANNELS, spec, STATISTICS, rotation=True, dim=32, heads=4, hidden=64, encoder_layers=1, dropout=0.0)
    else:
        head = GlobalRegressionHead(CHANNELS, spec, STATISTICS, rotation=True, hidden=16)
    batch, features = make_batch(4), make_features(4)
    optimizer = torch.optim.AdamW(head.parameters(), 3e-3)
    for _ in range(150):
        losses = head.loss(features, query(), batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    head.eval()
    with torch.no_grad():
        found = head.predict(features, query(), batch.state).rotations
    torch.testing.assert_close(found.mT @ found, torch.eye(3).expand_as(found), atol=1e-5, rtol=0)
    cosine = ((found * batch.targets.rotations).sum((-2, -1)) - 1) / 2
    assert torch.rad2deg(torch.acos(cosine.clamp(-1, 1))).mean() < 5


def test_exact_rotation_outputs_decode_exactly() -> None:
    spec = replace(SPEC, reference=((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)))
    head = GlobalRegressionHead(CHANNELS, spec, STATISTICS, rotation=True)
    batch = make_batch(2)
    relative = torch.tensor(spec.reference).mT @ batch.targets.rotations
    six = 2.5 * torch.cat([relative[..., 0], relative[..., 1]], -1)  # their length means nothing
    actions = head.actions(Regressed(torch.zeros(2, 3, 3), torch.zeros(2, 3, 2), six), batch.state, SIZE)
    torch.testing.assert_close(actions.rotations, batch.targets.rotations, atol=1e-5, rtol=0)


def test_wrong_names_and_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown target 'uvz'; choose from \['xyz', 'uvh'\]"):
        GlobalRegressionHead(CHANNELS, SPEC, STATISTICS, target="uvz")
    with pytest.raises(ValueError, match=r"unknown pooling 'max'; choose from \['average', 'softmax'\]"):
        GlobalRegressionHead(CHANNELS, SPEC, STATISTICS, pooling="max")
    with pytest.raises(ValueError, match="layers >= 1, mixing >= 0; got 32, 0, 2"):
        GlobalRegressionHead(CHANNELS, SPEC, STATISTICS, layers=0)
    with pytest.raises(ValueError, match="multiple of 4 and of heads"):
        act_head(dim=30)
    with pytest.raises(ValueError, match="std must be three finite numbers, positive"):
        ActHead(CHANNELS, SPEC, replace(STATISTICS, position_std=(0.1, 0.0, 0.1)))


# -------------------------------------------------------------------- ACT


def test_kl_divergence_by_hand() -> None:
    mean, log_variance = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, math.log(4.0)], [0.0, 0.0]])
    first = 0.5 + 0.5 * (4 - 1 - math.log(4.0))
    torch.testing.assert_close(gaussian_kl(mean, log_variance), torch.tensor((first + 2.0) / 2))
    drawn = torch.distributions.Normal(mean, (log_variance / 2).exp())
    other = torch.distributions.kl_divergence(drawn, torch.distributions.Normal(0.0, 1.0)).sum(-1).mean()
    torch.testing.assert_close(gaussian_kl(mean, log_variance), other)


def test_latent_is_zero_at_test_and_drawn_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    head, batch, features = act_head(), make_batch(), make_features()
    torch.nn.init.normal_(head.posterior.out.weight)
    seen: list[Tensor] = []
    head.from_latent.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    head.eval()
    with torch.no_grad():
        first = head.predict(features, query(), batch.state)
        second = head.predict(features, query(), batch.state)
    assert not any(latent.any() for latent in seen)
    assert torch.equal(first.positions, second.positions)
    head.train()
    for _ in range(2):
        head.loss(features, query(), batch)
    assert seen[2].any() and not torch.equal(seen[2], seen[3])


def test_posterior_sees_the_chunk_and_the_loss_holds_its_divergence() -> None:
    torch.manual_seed(0)
    head, batch, features = act_head(kl_weight=0.0).eval(), make_batch(), make_features()
    torch.nn.init.normal_(head.posterior.out.weight)
    known = head.code.state(batch.state, SIZE)[:, :ROBOT_DIM]
    goal, mask = head.code.encode(batch.targets, batch.state, SIZE)
    chunk = torch.cat([goal, batch.targets.gripper[..., None]], -1)
    mean, log_variance = head.posterior(known, chunk, query().times, mask)
    other, _ = head.posterior(known, chunk.flip(1), query().times, mask)
    assert float((mean - other).abs().amax().detach()) > 1e-3
    bare = head.loss(features, query(), batch)["position"]
    head.kl_weight = 10.0
    weighed = head.loss(features, query(), batch)["position"]
    torch.testing.assert_close(weighed - bare, 10 * gaussian_kl(mean, log_variance), rtol=1e-4, atol=1e-4)


def test_act_attends_to_the_last_observed_and_the_predicted_maps_alone() -> None:
    torch.manual_seed(0)
    head, batch = act_head().eval(), make_batch()
    features = make_features(times=(-1.0, 0.0, 1.0, 2.0, 3.0, 4.0))
    with torch.no_grad():
        usual = head(features, query(), batch.state).code
        for index, used in enumerate((False, True, True, True, True, False)):
            maps = features.maps.clone()
            maps[:, index] += 1
            moved = head(features.with_maps(maps), query(), batch.state).code
            assert torch.equal(moved, usual) != used, f"map {index}"


def test_act_takes_maps_of_any_size() -> None:
    torch.manual_seed(0)
    head, batch = act_head().eval(), make_batch()
    for side in (4, 14, 32):
        with torch.no_grad():
            assert head(make_features(side=side), query(), batch.state).code.shape == (2, 3, 3)


# -------------------------------------------------------------------- temporal ensembling


@dataclass
class Scripted:
    """A policy whose n-th chunk is given."""

    chunks: list[Actions]
    decisions: int = 0
    resets: int = 0

    def reset(self) -> None:
        self.resets += 1

    def act(self, observation: Observation) -> Actions:
        self.decisions += 1
        return self.chunks[self.decisions - 1]


def chunk(*values: float, rotations: Tensor | None = None) -> Actions:
    positions = torch.tensor(values, dtype=torch.float32)[None, :, None] * torch.tensor([1.0, 10.0, 100.0])
    return Actions(positions, positions[..., 0], rotations)


NOTHING = Observation(views={}, end_effector=torch.eye(4), gripper_opening=1.0)


def test_ensemble_by_hand() -> None:
    """Chunks of 3, one target executed per decision: the third decision's first target has been predicted three times."""
    policy = Scripted([chunk(1, 2, 3), chunk(4, 5, 6), chunk(7, 8, 9)])
    ensemble = TemporalEnsemble(policy, executed=1, decay=math.log(2))
    torch.testing.assert_close(ensemble.act(NOTHING).gripper, torch.tensor([[1.0, 2.0, 3.0]]))
    # weights 1 and 1/2, oldest first: (2 + 4/2) / 1.5 and (3 + 5/2) / 1.5
    torch.testing.assert_close(ensemble.act(NOTHING).gripper, torch.tensor([[4 / 1.5, 5.5 / 1.5, 6.0]]))
    third = ensemble.act(NOTHING)
    expected = torch.tensor([[(3 + 5 / 2 + 7 / 4) / 1.75, (6 + 8 / 2) / 1.5, 9.0]])
    torch.testing.assert_close(third.gripper, expected)
    torch.testing.assert_close(third.positions, expected[..., None] * torch.tensor([1.0, 10.0, 100.0]))


def test_ensemble_shifts_chunks_by_what_was_executed() -> None:
    policy = Scripted([chunk(1, 2, 3, 4, 5), chunk(10, 11, 12, 13, 14), chunk(20, 21, 22, 23, 24)])
    ensemble = TemporalEnsemble(policy, executed=2, decay=0.0)
    ensemble.act(NOTHING)
    torch.testing.assert_close(ensemble.act(NOTHING).gripper, torch.tensor([[6.5, 7.5, 8.5, 13.0, 14.0]]))
    torch.testing.assert_close(ensemble.act(NOTHING).gripper, torch.tensor([[37 / 3, 17.0, 18.0, 23.0, 24.0]]))


def test_ensemble_of_chunks_executed_whole_is_the_policy() -> None:
    policy = Scripted([chunk(1, 2), chunk(3, 4)])
    ensemble = TemporalEnsemble(policy, executed=2)
    assert [ensemble.act(NOTHING).gripper.tolist() for _ in range(2)] == [[[1, 2]], [[3, 4]]]


def test_ensemble_weights_are_the_authors() -> None:
    ensemble = TemporalEnsemble(Scripted([chunk(1, 1), chunk(0, 0)]), executed=1)
    ensemble.act(NOTHING)
    torch.testing.assert_close(ensemble.act(NOTHING).gripper[0, 0], torch.tensor(1 / (1 + math.exp(-0.01))))


def test_reset_clears_the_ensemble_and_its_policy() -> None:
    policy = Scripted([chunk(1, 2, 3), chunk(4, 5, 6)])
    ensemble = TemporalEnsemble(policy, executed=1)
    ensemble.act(NOTHING)
    ensemble.reset()
    assert policy.resets == 1
    torch.testing.assert_close(ensemble.act(NOTHING).gripper, torch.tensor([[4.0, 5.0, 6.0]]))


def test_ensemble_averages_rotations_on_their_own_manifold() -> None:
    def turned(degrees: float) -> Tensor:
        return matrix_from_euler(torch.deg2rad(torch.tensor([180.0, 0.0, degrees]))).expand(1, 2, 3, 3)

    ensemble = TemporalEnsemble(Scripted([chunk(0, 0, rotations=turned(10)), chunk(0, 0, rotations=turned(50))]), 1, 0.0)
    ensemble.act(NOTHING)
    found = ensemble.act(NOTHING).rotations
    torch.testing.assert_close(found[:, 0], turned(30)[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[:, 1], turned(50)[:, 1], atol=1e-5, rtol=0)


def test_nearest_rotation_is_never_a_mirror() -> None:
    found = nearest_rotation(torch.diag(torch.tensor([1.0, 1.0, -0.1])))
    torch.testing.assert_close(torch.linalg.det(found), torch.tensor(1.0))


def test_ensemble_leaves_the_policys_chunks_as_they_are() -> None:
    given = [chunk(1, 2, 3), chunk(4, 5, 6)]
    before = [actions.positions.clone() for actions in given]
    ensemble = TemporalEnsemble(Scripted(given), executed=1)
    for _ in given:
        ensemble.act(NOTHING)
    assert all(torch.equal(actions.positions, old) for actions, old in zip(given, before, strict=True))


def test_ensemble_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="executed must be at least 1"):
        TemporalEnsemble(Scripted([]), executed=0)
    with pytest.raises(ValueError, match="executed 4 targets per decision, but the policy predicts 3"):
        TemporalEnsemble(Scripted([chunk(1, 2, 3)]), executed=4).act(NOTHING)


def test_ensemble_acts_on_a_trained_policy() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("mini-random", tap="fine", width=8, channels=CHANNELS, depth=1)
    policy = VideoPolicy(backbone, ParaHead(CHANNELS, SPEC, grid=16, hidden=8), TIMES).eval()
    batch = make_batch(1)
    view = View(batch.clip[0], batch.state.camera[0])
    observation = Observation({"main": view}, torch.eye(4), 1.0)
    actions = TemporalEnsemble(policy, executed=2).act(observation)
    assert actions.positions.shape == (1, 3, 3) and actions.pixels is None
