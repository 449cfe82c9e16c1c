"""Which pixels of two views show the same point, and whether features find them."""

from dataclasses import replace

import pytest
import torch

from para_video.camera import Camera, orbit
from para_video.correspondence import OCCLUSION_M, Pairs, Views, by_chance, by_features, common_points, drawn, same_pixel, score
from para_video.features import VideoFeatures, stride_affine
from para_video.sims.metaworld import CameraPlacement, MetaWorldEnv

SIZE = 32


def facing_wall(*offsets_m: float, depth_m: float = 2.0) -> Views:
    """Cameras side by side before a wall that they all look at squarely; nothing of it is foreground."""
    poses = torch.eye(4).repeat(len(offsets_m), 1, 1)
    poses[:, 0, 3] = torch.tensor(offsets_m)
    depth = torch.full((len(offsets_m), SIZE, SIZE), depth_m)
    frames = torch.zeros(len(offsets_m), 3, SIZE, SIZE)
    return Views(frames, depth, torch.zeros_like(depth, dtype=torch.bool), Camera.from_fov(45.0, (SIZE, SIZE), poses))


def pixels_to_metres(views: Views, pixels: float) -> float:
    return pixels * 2.0 / float(views.camera.intrinsics[0, 0, 0])


def features_of(maps: torch.Tensor, stride: float = 1.0) -> VideoFeatures:
    return VideoFeatures(maps[:, None], torch.zeros(1), torch.zeros(1, 2), stride_affine(stride))


def test_points_before_a_moved_camera_are_where_geometry_says() -> None:
    views = facing_wall(0.0, pixels_to_metres(facing_wall(0.0), 5))
    pairs = common_points(views, 0, 1)
    assert len(pairs.pixels) == SIZE * (SIZE - 5)
    assert torch.allclose(pairs.truth, pairs.pixels - torch.tensor([5.0, 0.0]), atol=1e-3)
    back = common_points(views, 1, 0)
    assert torch.allclose(back.truth, back.pixels + torch.tensor([5.0, 0.0]), atol=1e-3)


def test_what_something_stands_before_is_left_out() -> None:
    views = facing_wall(0.0, 0.0)
    views.depth[1, 8:16, 8:16] -= 3 * OCCLUSION_M
    pairs = common_points(views, 0, 1)
    hidden = ((pairs.pixels >= 8) & (pairs.pixels < 16)).all(-1)
    assert len(pairs.pixels) == SIZE**2 - 64 and not hidden.any()
    views.depth[1, 8:16, 8:16] += 2.5 * OCCLUSION_M
    assert len(common_points(views, 0, 1).pixels) == SIZE**2


def test_identical_views_are_matched_without_error_and_a_known_shift_is_found() -> None:
    maps = torch.randn(1, 8, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    views = facing_wall(0.0, 0.0, pixels_to_metres(facing_wall(0.0), 5))
    find = by_features(features_of(torch.cat([maps, maps, maps.roll(-5, -1)])), (SIZE, SIZE))
    for second in (1, 2):
        pairs = common_points(views, 0, second)
        assert score((find(pairs) - pairs.truth).norm(dim=-1), (1,))["pck"] == {"1": 1.0}
    still = score((same_pixel(pairs) - pairs.truth).norm(dim=-1), (4.9, 5.1))
    assert still["pck"] == {"4.9": 0.0, "5.1": 1.0} and still["median_px"] == pytest.approx(5, abs=1e-3)


def test_coarse_maps_are_read_where_the_backbone_says_they_lie() -> None:
    """Values that follow position exactly, mirrored in the second view, in maps of stride 4 that begin 6 px left of the image and
    2 px above it."""
    x, y = torch.meshgrid(4 * torch.arange(12.0) - 4.5, 4 * torch.arange(12.0) - 0.5, indexing="xy")
    angles = torch.stack([torch.stack([x, y]), torch.stack([SIZE - 1 - x, y])]) / 20
    features = features_of(torch.cat([angles.cos(), angles.sin()], 1), 4.0)
    features = replace(features, image_to_map=features.image_to_map + torch.tensor([[0, 0, 6 / 4], [0, 0, 2 / 4]]))
    pairs = common_points(facing_wall(0.0, 0.0), 0, 1)
    mirrored = torch.stack([SIZE - 1 - pairs.pixels[:, 0], pairs.pixels[:, 1]], -1)
    assert (by_features(features, (SIZE, SIZE))(pairs) - mirrored).abs().max() <= 1


def test_chance_is_as_good_as_a_disc_is_large() -> None:
    pairs = Pairs(0, 1, torch.zeros(20_000, 2), torch.full((20_000, 2), 64.0), torch.ones(20_000, dtype=torch.bool))
    guess = by_chance((128, 128), torch.Generator().manual_seed(0))(pairs)
    assert guess.min() == 0 and guess.max() == 127
    assert score((guess - pairs.truth).norm(dim=-1), (8,))["pck"]["8"] == pytest.approx(torch.pi * 64 / 128**2, abs=0.003)


def test_points_are_drawn_from_foreground_and_background_alike() -> None:
    views = facing_wall(0.0, 0.0)
    views.foreground[:, :4] = True
    pairs = common_points(views, 0, 1)
    few = drawn(pairs, 50, torch.Generator().manual_seed(0))
    assert few.foreground.sum() == 50 and len(few.pixels) == 100
    assert torch.equal(few.foreground, few.pixels[:, 1] < 4)
    assert len(drawn(pairs, 10_000, torch.Generator()).pixels) == SIZE**2


def test_simulated_views_agree_with_their_pictures() -> None:
    """Matched pixels show the same colour, and many a point of the arm is hidden from the other side."""
    middle = CameraPlacement()
    with MetaWorldEnv("hammer-v3") as env:
        env.reset(0)
        views = Views.of(env, [middle, replace(middle, azimuth_deg=middle.azimuth_deg + 18)])
    assert torch.allclose(views.camera[1].world_T_camera, orbit(153, -40, 1.15, middle.target).float())
    pairs = common_points(views, 0, 1)
    share = float(views.foreground[0].float().mean())
    assert 0.1 < share < 0.5 and 0.5 < len(pairs.pixels) / 128**2 < 0.95
    column, row = pairs.pixels.long().unbind(-1)
    first, (x, y) = views.frames[0][:, row, column], pairs.truth.round().long().unbind(-1)
    matched = (views.frames[1][:, y, x] - first).abs().mean(0).median()
    assert matched < 0.02 < (views.frames[1][:, row, column] - first).abs().mean(0).quantile(0.8)
