"""Training clips of video models, and the figures of a predicted future."""

import numpy as np
import pytest
import torch

from backbones.mini import MiniVideo
from para_video.camera import Camera, orbit
from para_video.demos import Demo
from para_video.features import FeatureSpec, VideoBackbone, VideoFeatures
from para_video.precision import autocast
from para_video.prediction import (
    DRAWN_SIDE,
    ClipBatch,
    ClipBatches,
    FutureScore,
    GripperFrames,
    VideoPredictor,
    drawing_loss,
    futures,
    gripper_errors,
    gripper_pixels,
    recorded,
)
from para_video.training import FitConfig, fit


def episode(frames: int = 9, size: int = 32) -> Demo:
    """Frame k is grey level 10 k, its left half brighter by one; the gripper moves along x."""
    pictures = np.repeat(10 * np.arange(frames, dtype=np.uint8), size * size * 3).reshape(frames, size, size, 3).copy()
    pictures[:, :, : size // 2] += 1
    positions = np.stack([0.02 * np.arange(frames), np.zeros(frames), np.zeros(frames)], -1).astype(np.float32)
    camera = Camera.from_fov(45.0, (size, size), orbit(90, -80, 1.0, (0, 0, 0))).to(torch.float32)
    turned = np.tile(np.eye(3, dtype=np.float32), (frames, 1, 1))
    ones = np.ones(frames, np.float32)
    return Demo(pictures, positions, turned, ones, ones, camera, "none", 0)


def square(rng: np.random.Generator, frames: int, size: int = 32) -> torch.Tensor:
    """A white square that crosses a grey image at constant velocity."""
    start, velocity = rng.uniform(6, 20, 2), rng.uniform(-3, 3, 2)
    clip = torch.full((frames, 3, size, size), 100, dtype=torch.uint8)
    for k in range(frames):
        x, y = (start + k * velocity).round().astype(int).clip(0, size - 6)
        clip[k, :, y : y + 6, x : x + 6] = 255
    return clip


class Listener(VideoBackbone):
    """A generative model that keeps the clip it was shown."""

    spec = FeatureSpec(1, 4, 1, predicts=True, contexts=(1, 8), max_horizon=8, size_multiple=4, generative=True)

    def features(self, video, **_):
        raise AssertionError("not asked for")

    def generative_loss(self, clip, observed, *, generator=None):
        self.clip = clip
        return clip.mean()


class Guided(Listener):
    """One that can draw futures, so that a blank past serves."""

    def sample(self, video, horizon, **_):
        raise AssertionError("not asked for")


# -------------------------------------------------------------------- batches


def test_an_item_is_the_same_whenever_it_is_asked_for():
    make = lambda rank: ClipBatches([(square, 1.0)], batch_size=2, contexts=(1, 2), horizon=3, seed=5, rank=rank)  # noqa: E731
    one, other = make(0), make(0)
    late = other[3]
    assert torch.equal(one[3].clip, late.clip) and one[3].observed == late.observed
    assert not torch.equal(one[3].clip, one[4].clip)
    assert not torch.equal(one[3].clip, make(1)[3].clip) and make(1)[3].observed == late.observed


def test_contexts_and_shares_are_those_asked_for():
    plain = lambda level: lambda rng, frames: torch.full((frames, 3, 4, 4), level, dtype=torch.uint8)  # noqa: E731
    batches = ClipBatches([(plain(10), 3.0), (plain(250), 1.0)], batch_size=8, contexts=(1, 1, 4), horizon=2)
    items = [batches[i] for i in range(120)]
    assert {item.clip.shape[1] for item in items} == {3, 6} and all(item.clip.shape[1] == item.observed + 2 for item in items)
    assert np.mean([item.observed == 4 for item in items]) == pytest.approx(1 / 3, abs=0.12)
    bright = torch.cat([item.clip.flatten(1).mean(1) > 0.5 for item in items])
    assert float(bright.float().mean()) == pytest.approx(0.25, abs=0.06)


def test_a_stretch_is_contiguous_and_half_are_mirrored():
    draw, rng = recorded([episode()]), np.random.default_rng(0)
    clips = [draw(rng, 4) for _ in range(60)]
    right = torch.stack([torch.minimum(clip[:, 0, 0, 0], clip[:, 0, 0, -1]) for clip in clips]).int()
    assert bool((right.diff(dim=1) == 10).all()), "one frame after the other"
    assert set(right[:, 0].tolist()) == {10 * k for k in range(6)}, "from anywhere"
    mirrored = np.mean([bool(clip[0, 0, 0, 0] < clip[0, 0, 0, -1]) for clip in clips])
    assert 0.3 < mirrored < 0.7


def test_clips_longer_than_any_episode_are_refused():
    with pytest.raises(ValueError, match="no episode has 12 frames, the longest has 9; lower the horizon"):
        recorded([episode()])(np.random.default_rng(0), 12)


def test_some_pasts_are_blank_and_the_future_never_is():
    predictor, clip = VideoPredictor(Guided(), drop=0.5), torch.rand(64, 5, 3, 8, 8)
    torch.manual_seed(0)
    predictor(ClipBatch(clip, 2))
    seen = predictor.backbone.clip
    blank = (seen[:, :2] == 0.5).flatten(1).all(1)
    assert 0.3 < float(blank.float().mean()) < 0.7
    assert torch.equal(seen[~blank], clip[~blank]) and torch.equal(seen[:, 2:], clip[:, 2:])


def test_no_past_is_blank_for_a_model_that_draws_no_future():
    predictor, clip = VideoPredictor(Listener(), drop=0.9), torch.rand(64, 5, 3, 8, 8)
    predictor(ClipBatch(clip, 2))
    assert torch.equal(predictor.backbone.clip, clip)


def test_a_model_without_generative_loss_is_refused():
    class Plain(Listener):
        spec = FeatureSpec(1, 4, 1, predicts=False, contexts=(1, 8), max_horizon=0, size_multiple=4)

    with pytest.raises(ValueError, match="Plain has no generative loss"):
        VideoPredictor(Plain())


# -------------------------------------------------------------------- figures


def test_psnr_counts_changing_pixels_alone():
    last, truth = torch.zeros(1, 3, 16, 16), torch.zeros(1, 2, 3, 16, 16)
    truth[:, 0, :, 3, 4] = 0.5  # one pixel changes in the first future frame, none in the second
    truth[:, 1] += 0.05
    guess = torch.full_like(truth, 0.25)
    score = FutureScore.empty(("guess", "copy"), 2)
    score.add({"guess": guess, "copy": torch.zeros_like(truth)}, truth, last)
    found = score.summary()
    assert found["changing_pixels"] == {"1": 1, "2": 0} and found["psnr_db"]["copy"]["2"] is None
    assert found["psnr_db"]["guess"]["1"] == pytest.approx(-10 * np.log10(0.25**2), abs=1e-4)
    assert found["psnr_db"]["copy"]["1"] == pytest.approx(-10 * np.log10(0.5**2), abs=1e-4)


def test_a_perfect_future_is_similar_and_a_copy_is_less_so():
    clip = square(np.random.default_rng(3), 4)[None].float() / 255
    score = FutureScore.empty(("true", "copy"), 3)
    score.add({"true": clip[:, 1:], "copy": clip[:, :1].expand(-1, 3, -1, -1, -1)}, clip[:, 1:], clip[:, 0])
    found = score.summary()["ssim"]
    assert found["true"]["3"] == pytest.approx(1.0) and found["copy"]["3"] < 0.9


def test_constant_velocity_is_exact_on_an_even_way_and_what_left_the_image_does_not_count(monkeypatch):
    monkeypatch.setattr("para_video.prediction.find_gripper", lambda probe, frames: torch.zeros(len(frames), 2))
    pixels = torch.tensor([[[2.0, 3.0], [4.0, 3.0], [6.0, 3.0], [40.0, 3.0]]])
    errors = gripper_errors(None, {"sample": torch.zeros(1, 2, 3, 32, 32)}, torch.zeros(1, 2, 3, 32, 32), pixels, observed=2)
    assert float(errors["constant velocity"][0, 0]) == 0.0
    assert float(errors["sample"][0, 0]) == pytest.approx(45**0.5)
    assert all(bool(error[0, 1].isnan()) for error in errors.values())


def test_gripper_frames_show_where_the_gripper_is():
    batch = GripperFrames([episode()], batch_size=6, seed=1)[2]
    where = gripper_pixels(episode())
    assert batch.clip.shape == (6, 1, 3, 32, 32) and batch.times.tolist() == [0.0]
    for clip, pixel in zip(batch.clip, batch.targets.pixels[:, 0], strict=True):
        assert bool((where == pixel).all(-1).any()) and clip.shape == (1, 3, 32, 32)


def test_a_little_training_predicts_a_square_better_than_a_copy():
    """The whole chain: batches, predictor, training, draws, figures."""
    torch.manual_seed(0)
    predictor = VideoPredictor(MiniVideo(width=16, channels=16, depth=1), drop=0.1)
    fit(
        predictor,
        lambda seed, rank, processes: ClipBatches([(square, 1.0)], batch_size=8, contexts=(2,), horizon=3, seed=seed),
        FitConfig(150, 3e-3, warmup=10, ema=0.95, precision="no"),
    )
    rng = np.random.default_rng(99)
    clips = torch.stack([square(rng, 5) for _ in range(16)]).float() / 255
    found = futures(predictor.backbone, clips[:, :2], 3, samples=4, steps=4, generator=torch.Generator().manual_seed(0))
    guided = futures(
        predictor.backbone, clips[:, :2], 3, samples=4, steps=4, generator=torch.Generator().manual_seed(0), guidance=2.0
    )
    assert all(torch.equal(guided[name], frames) for name, frames in found.items()), "the others stay as they are"
    with autocast(clips.device):
        again = predictor.backbone.sample(clips[:, :2], 3, steps=4, guidance=2.0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(guided["guided"], again.float()), "from the noise of the one draw"
    assert not torch.equal(again.float(), found["sample"])
    score = FutureScore.empty(tuple(found), 3)
    score.add(found, clips[:, 2:], clips[:, 1])
    psnr = score.summary()["psnr_db"]
    assert psnr["mean"]["3"] > psnr["copy"]["3"] + 2
    assert psnr["mean"]["3"] > psnr["sample"]["3"], "the mean of draws errs less than one"


def test_convolutions_are_shortened_without_a_change_of_what_is_predicted():
    torch.manual_seed(0)
    model = MiniVideo(width=8, channels=8, depth=1).eval()
    for parameter in model.to_frame[2].parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    fresh, long = model.up1.conv.weight.clone(), model.down2.conv1
    for layer, factor in ((model.up1.conv, 7.0), (long, 9.0)):
        layer.weight.data *= factor
        layer.bias.data *= factor
    seen = torch.rand(1, 2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        before = model.sample(seen, 3, steps=1)
        model.shorten()
        assert torch.equal(model.sample(seen, 3, steps=1), before)
    assert 0.7 < model.up1.conv.weight.norm() / fresh.norm() < 1.5
    assert 0.7 < long.weight.norm() / (long.out_channels / 3) ** 0.5 < 1.5


# -------------------------------------------------------------------- maps that draw


class Painter(Listener):
    """A generative model whose maps are what they should draw: seen frames alone, future ones in pairs."""

    spec = FeatureSpec(2 * 3 * DRAWN_SIDE**2, 4, 2, predicts=True, contexts=(1, 8), max_horizon=8, size_multiple=4, generative=True)

    def joint(self, clip, observed, *, since=None, prompts=None, generator=None):
        def told(frames: torch.Tensor) -> torch.Tensor:  # (b, n, 3, H, W), as a map of two frames
            packed = torch.nn.functional.pixel_unshuffle(2 * frames.flatten(1, 2) - 1, DRAWN_SIDE)
            return torch.nn.functional.pad(packed, (0, 0, 0, 0, self.spec.channels - packed.shape[1], 0))

        shown = observed if since is None else 1
        frames = [clip[:, k : k + 1] for k in range(observed - shown, observed)]
        frames += [clip[:, k : k + 2] for k in range(observed, clip.shape[1], 2)]
        ends = torch.arange(1.0 - shown, 1.0)
        spans = torch.cat([torch.stack([ends, ends], -1), torch.tensor([[1.0, 2.0], [3.0, 4.0]])])
        return VideoFeatures(torch.stack([told(f) for f in frames], 1), spans.mean(-1), spans, torch.eye(3)[:2]), clip.mean()


def as_it_is(predictor: VideoPredictor) -> None:
    with torch.no_grad():
        torch.nn.init.eye_(predictor.draw.weight.flatten(1))
        predictor.draw.bias.zero_()


@pytest.mark.parametrize("observed", [1, 3])
def test_frames_are_drawn_from_the_maps_that_span_them(observed):
    predictor, clip = VideoPredictor(Painter(), drop=0.0, draw=True), torch.rand(2, observed + 4, 3, 8, 8)
    as_it_is(predictor)
    for _ in range(4):  # with and without the maps of the past
        assert predictor(ClipBatch(clip, observed))["draw"] < 1e-10
    shifted = torch.cat([clip[:, 1:], clip[:, :1]], 1)
    features, _ = predictor.backbone.joint(clip, observed)
    assert drawing_loss(predictor.draw, features, shifted, observed) > 0.1


def test_drawing_teaches_the_maps_and_is_off_by_default():
    predictor = VideoPredictor(MiniVideo(width=16, channels=16, depth=1), drop=0.0, draw=True)
    predictor(ClipBatch(torch.rand(2, 4, 3, 32, 32), 1))["draw"].backward()
    assert float(predictor.backbone.stem.weight.grad.norm()) > 0
    assert VideoPredictor(MiniVideo(width=16, channels=16, depth=1)).draw is None
