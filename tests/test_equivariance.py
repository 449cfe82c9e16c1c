"""Shifted crops of a larger picture: their cameras, and what answers do under them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from para_video.agent import RobotState, VideoPolicy
from para_video.equivariance import Deviations, Moment, cropped, deviations, moments
from para_video.heads import ParaHead
from para_video.heatmap import Bins
from para_video.policy import Actions, Observation, View
from para_video.readout import ReadoutSpec
from para_video.sims.metaworld import CameraPlacement, MetaWorldEnv
from tests.tiny_models import Colours

SIZE, MARGIN = 64, 16
WIDE = CameraPlacement().wider((SIZE + 2 * MARGIN) / SIZE).camera(SIZE + 2 * MARGIN)
POINTS = torch.tensor([[0.0, 0.65, 0.1], [0.02, 0.6, 0.12]])


def moment(seed: int = 0) -> Moment:
    clip = torch.rand(1, 3, SIZE + 2 * MARGIN, SIZE + 2 * MARGIN, generator=torch.Generator().manual_seed(seed))
    pose = torch.eye(4)
    pose[:3, 3] = torch.tensor([0.0, 0.6, 0.15])
    return Moment(Observation({"main": View(clip, WIDE)}, pose, 1.0), POINTS)


class Fixed:
    """Knows a pixel of the picture, or a point in the world, and answers it whatever it is shown."""

    view, backbone, clip_shape = "main", Colours(), (None, None, None)

    def __init__(self, pixel: tuple[float, float] | None = None) -> None:
        self.pixel = pixel

    inputs = VideoPolicy.inputs

    def predict(self, clip: Tensor, state: RobotState) -> Actions:
        if self.pixel is None:
            return Actions(POINTS[None], torch.zeros(1, 2))
        pixels = torch.tensor([self.pixel, self.pixel])[None]
        return Actions(state.camera.lift_at_height(pixels, torch.full((1, 2), 0.1)), torch.zeros(1, 2))


def test_the_middle_of_a_wider_picture_is_the_picture() -> None:
    with MetaWorldEnv("reach-v3", size=SIZE) as env, MetaWorldEnv("reach-v3", size=96, camera=CameraPlacement().wider(1.5)) as wide:
        env.reset(3), wide.reset(3)
        seen, crop = env.observe().views["main"], cropped(wide.observe().views["main"], SIZE, (16, 16))
    assert (seen.clip - crop.clip).abs().mean() < 2 / 255
    torch.testing.assert_close(crop.camera.intrinsics, seen.camera.intrinsics)
    torch.testing.assert_close(crop.camera.world_T_camera, seen.camera.world_T_camera)


def test_a_crops_camera_sees_points_where_the_picture_shows_them() -> None:
    view = View(torch.zeros(1, 3, 96, 96), WIDE)
    crop = cropped(view, SIZE, (10, 3))
    torch.testing.assert_close(crop.camera.project(POINTS)[0], WIDE.project(POINTS)[0] - torch.tensor([10.0, 3.0]))
    with pytest.raises(ValueError, match="render more, or shift less"):
        cropped(view, SIZE, (33, 0))


def test_answers_that_stay_on_the_picture_are_off_by_the_shift_and_those_that_stay_in_the_world_by_nothing() -> None:
    on_picture, in_world = (deviations(policy, moment(), SIZE, (3, 8)) for policy in (Fixed((30.0, 30.0)), Fixed()))
    assert on_picture.pixel_px.numpy() == pytest.approx(on_picture.shift.numpy(), abs=1e-3)
    assert on_picture.point_mm[on_picture.shift == 8].min() > on_picture.point_mm[on_picture.shift == 3].max() > 1
    assert in_world.pixel_px.max() < 1e-3 and in_world.point_mm.max() < 1e-3 and in_world.error_mm.max() < 1e-3
    assert [row["n"] for row in in_world.medians()] == [2, 8, 8]


def test_targets_that_leave_the_picture_are_left_out() -> None:
    far = Moment(moment().observation, WIDE.lift_at_height(torch.tensor([[MARGIN + 60.0, MARGIN + 32]]), torch.tensor([0.1])))
    counted = {row["shift"]: row["n"] for row in deviations(Fixed((30.0, 30.0)), far, SIZE, (2, 8)).medians()}
    assert counted == {0: 1 * 2, 2: 4 * 2, 8: 3 * 2}


def test_paras_answer_moves_with_the_image_by_whole_cells() -> None:
    """Where the network sees nothing but the image, and that is dark but for its middle."""
    torch.manual_seed(0)
    head = ParaHead(3, ReadoutSpec(z=Bins(0.0, 0.3, 8)), grid=32, hidden=16, layers=1, mixing=0).eval()
    head.kernel.weight.data *= 300
    head.kernel.bias.data *= 300
    head.maps = lambda features, query, state: head(features, times=query.times, size=query.size)
    policy = VideoPolicy(Colours(), head, (1.0, 2.0)).eval()
    seen = moment()
    dark = torch.ones(SIZE + 2 * MARGIN, SIZE + 2 * MARGIN, dtype=torch.bool)
    dark[MARGIN + 20 : MARGIN + 44, MARGIN + 20 : MARGIN + 44] = False
    seen.observation.views["main"].clip[..., dark] = 0
    found = deviations(policy, seen, SIZE, (4, 8))  # cells of the backbone, and of the trunk, are 4 pixels wide
    assert found.pixel_px.max() < 0.1
    assert deviations(policy, seen, SIZE, (2,)).pixel_px.max() > 0.1


def test_moments_are_the_experts() -> None:
    with MetaWorldEnv("reach-v3", size=32) as env:
        found = list(moments(env, (0, 1), every=10, horizon=40))
    assert len(found) >= 4 and all(each.points.shape == (6, 3) for each in found)
    assert np.linalg.norm(found[0].points[0] - found[0].observation.end_effector[:3, 3]) < 0.05


def test_medians_by_hand() -> None:
    parts = [Deviations(torch.tensor([0, 4]), *(torch.tensor([0.0, k]) for k in (1.0, 2.0, 3.0))) for _ in range(2)]
    rows = Deviations.joined(parts).medians()
    assert rows == [
        {"shift": 0, "pixel_px": 0, "point_mm": 0, "error_mm": 0, "n": 2},
        {"shift": 4, "pixel_px": 1, "point_mm": 2, "error_mm": 3, "n": 2},
    ]
