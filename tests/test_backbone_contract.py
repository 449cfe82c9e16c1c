"""The contract that every backbone of the catalogue keeps, and a tiny one loaded by its import string."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import CATALOGUE, backbone_class, import_string
from backbones.mini import pulled
from para_video.features import FeatureSpec, VideoBackbone, VideoFeatures, capture, sinusoid, stride_affine
from tests.tiny_models import TINY, saved, tiny


class TinyImage(VideoBackbone):
    """An image model with a patch of 7 pixels that pads the image's left and top by 3: its maps do not start at the corner."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.spec = FeatureSpec(channels, 7, span=1, predicts=False, contexts=(1, 3), max_horizon=0, size_multiple=4)
        self.patch = nn.Conv2d(3, channels, 7, 7)

    def features(
        self,
        video: Tensor,
        *,
        horizon: int = 0,
        since: float | None = None,
        prompts: list[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> VideoFeatures:
        self.spec.check(video, horizon)
        b, t = video.shape[:2]
        right, bottom = (-(side + 3) % 7 for side in (video.shape[-1], video.shape[-2]))
        maps = self.patch(F.pad(video.flatten(0, 1), (3, right, 3, bottom))).unflatten(0, (b, t))
        times = torch.arange(t) - (t - 1.0)
        affine = stride_affine(7.0) + torch.tensor([[0, 0, 3 / 7], [0, 0, 3 / 7]])
        return VideoFeatures(maps, times, times[:, None].expand(-1, 2), affine)


SMALL: dict[str, dict] = {
    "mini": {"width": 8, "channels": 12, "depth": 1, "max_context": 3, "max_horizon": 6},
    f"{__name__}:TinyImage": {},
}
"""Options of what is built small, without a checkpoint. A new family of the catalogue adds a line here or in `TINY`."""

NOISY = {"tap": "middle", "level": 0.6, "denoising_steps": 2}
"""Another place to read `mini` at."""

ENTRIES = [*SMALL, *TINY]
every_backbone = pytest.mark.parametrize("name", ENTRIES)


def build(name: str) -> VideoBackbone:
    torch.manual_seed(0)
    return tiny(name) if name in TINY else backbone_class(name)(**SMALL[name]).eval()


def test_every_family_of_the_catalogue_is_here() -> None:
    assert {entry.target for entry in CATALOGUE.values()} <= {import_string(name) for name in ENTRIES}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def side(spec: FeatureSpec) -> int:
    """The least allowed side of at least 64 pixels."""
    return math.ceil(64 / spec.size_multiple) * spec.size_multiple


def clip(spec: FeatureSpec, frames: int, b: int = 2, seed: int = 1) -> Tensor:
    return torch.rand(b, frames, 3, side(spec), side(spec), generator=generator(seed))


def extremes(spec: FeatureSpec) -> list[tuple[int, int]]:
    """(observed frames, horizon) at the edges of what is allowed."""
    return [(observed, horizon) for observed in sorted(set(spec.contexts)) for horizon in sorted({0, spec.max_horizon})]


def whole(spec: FeatureSpec) -> int:
    """The longest horizon of maps that are filled: a generative loss needs all the frames of each."""
    return spec.max_horizon - spec.max_horizon % spec.span


def leave_start(backbone: VideoBackbone) -> None:
    """Move the weights off their start, where a layer of zeros may hide a leak or keep gradients back."""
    torch.manual_seed(4)
    for parameter in backbone.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)


def generative(name: str) -> VideoBackbone:
    backbone = build(name)
    if not backbone.spec.generative:
        pytest.skip("not a generative model")
    return backbone


# -------------------------------------------------------------------- what is declared is what comes out


@every_backbone
def test_outputs_are_as_declared(name: str) -> None:
    backbone = build(name)
    spec = backbone.spec
    assert spec.contexts[0] >= 1 and spec.predicts == (spec.max_horizon > 0)
    for observed, horizon in extremes(spec):
        video = clip(spec, observed)
        with torch.no_grad():
            features = backbone.features(video, horizon=horizon, generator=generator())
        b, s, c = features.maps.shape[:3]
        assert (b, c) == (2, spec.channels)
        assert features.times.shape == (s,) and features.spans.shape == (s, 2) and features.image_to_map.shape == (2, 3)
        assert bool(torch.isfinite(features.maps).all())
        assert features.maps.std() > 1e-3


@every_backbone
def test_maps_cover_every_frame_asked_for_in_order(name: str) -> None:
    backbone = build(name)
    for observed, horizon in extremes(backbone.spec):
        with torch.no_grad():
            features = backbone.features(clip(backbone.spec, observed), horizon=horizon, generator=generator())
        first, last = features.spans.unbind(-1)
        torch.testing.assert_close(features.times.float(), (first + last).float() / 2)
        assert all(a < b for a, b in pairwise(features.times.tolist()))
        # the last map may reach beyond the horizon, where one map covers several frames
        assert float(first.min()) == 1 - observed and horizon <= float(last.max()) < horizon + backbone.spec.span
        assert float((last - first).max()) + 1 <= backbone.spec.span
        for frame in range(1 - observed, horizon + 1):
            assert bool(((first <= frame) & (frame <= last)).any()), f"no map describes frame {frame}"


@every_backbone
def test_maps_before_the_time_that_is_read_may_be_left_out(name: str) -> None:
    backbone = build(name)
    observed, horizon = backbone.spec.contexts[1], backbone.spec.max_horizon
    for since in (1.0, 0.0, 0.5 - observed / 2):
        with torch.no_grad():
            features = backbone.features(clip(backbone.spec, observed), horizon=horizon, since=since, generator=generator())
        first, last = features.spans.unbind(-1)
        for frame in range(math.ceil(min(since, 0)), horizon + 1):
            assert bool(((first <= frame) & (frame <= last)).any()), f"no map describes frame {frame}"
        assert bool(torch.isfinite(features.maps).all()) and len(features.times) == features.maps.shape[1]


@every_backbone
def test_image_to_map_has_the_declared_stride_and_covers_the_image(name: str) -> None:
    backbone = build(name)
    features = backbone.features(clip(backbone.spec, backbone.spec.contexts[0]))
    affine, size = features.image_to_map, side(backbone.spec)
    torch.testing.assert_close(affine[:, :2], torch.eye(2) / backbone.spec.stride)
    corners = torch.tensor([[-0.5, -0.5], [size - 0.5, size - 0.5]]) @ affine[:, :2].mT + affine[:, 2]
    h, w = features.maps.shape[-2:]
    assert bool((corners[0] >= -0.5 - 1e-4).all())
    assert bool((corners[1] <= torch.tensor([w, h]) - 0.5 + 1e-4).all())


@every_backbone
def test_a_changed_patch_changes_the_cells_that_image_to_map_names(name: str) -> None:
    """Averaged over perturbations, the map of the last observed frame changes most where the patch lies."""
    backbone = build(name)
    spec, half = backbone.spec, backbone.spec.stride
    size = math.ceil(max(side(spec), 4 * half) / spec.size_multiple) * spec.size_multiple
    video = torch.rand(16, spec.contexts[0], 3, size, size, generator=generator(1)) * 0.2 + 0.4
    for x, y in ((20, 20), (41, 23), (26, 44)):
        x, y = x * size // 64, y * size // 64
        moved = video.clone()
        patch = torch.rand(16, 3, 2 * half, 2 * half, generator=generator(3))
        moved[:, -1, :, y - half : y + half, x - half : x + half] = patch
        with torch.no_grad():
            before, after = (backbone.features(v, generator=generator()) for v in (video, moved))
        last = int((before.times <= 0).nonzero()[-1])
        change = (after.maps - before.maps)[:, last].square().sum((0, 1))
        weight = torch.where(change > 0.5 * change.max(), change, torch.zeros_like(change))
        rows, columns = torch.meshgrid(*(torch.arange(n) for n in change.shape), indexing="ij")
        found = torch.stack([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
        centre = torch.tensor([x - 0.5, y - 0.5])  # pixels x - half ... x + half - 1
        expected = before.image_to_map[:, :2] @ centre + before.image_to_map[:, 2]
        # random weights may lean to one side by a cell or so; an affine that is transposed, unscaled or unshifted is far off
        assert float((found - expected).abs().max()) < 2.0, f"expected cell {expected.tolist()}, found {found.tolist()}"


@every_backbone
def test_unsuitable_input_is_refused_with_value_and_limit(name: str) -> None:
    backbone = build(name)
    spec, (low, high) = backbone.spec, backbone.spec.contexts
    good = clip(spec, low)
    with pytest.raises(ValueError, match=rf"{high + 1} observed frames; this backbone takes {low} to {high}"):
        backbone.features(clip(spec, high + 1))
    with pytest.raises(ValueError, match=rf"horizon {spec.max_horizon + 1}; this backbone predicts 0 to {spec.max_horizon}"):
        backbone.features(good, horizon=spec.max_horizon + 1)
    with pytest.raises(ValueError, match="horizon -1"):
        backbone.features(good, horizon=-1)
    with pytest.raises(ValueError, match=r"video must be \(b, t, 3, H, W\) float in \[0, 1\].*uint8"):
        backbone.features((good * 255).byte())
    with pytest.raises(ValueError, match="video must be"):
        backbone.features(good[:, 0])
    with pytest.raises(ValueError, match="video must be"):
        backbone.features(good[:, :, :1])
    if spec.size_multiple > 1:
        with pytest.raises(ValueError, match=rf"image size .* must be a multiple of {spec.size_multiple}"):
            backbone.features(good[..., :-1])


# -------------------------------------------------------------------- how it computes


@every_backbone
def test_rows_of_a_batch_do_not_mix(name: str) -> None:
    backbone = build(name)
    video = clip(backbone.spec, backbone.spec.contexts[1], b=3)
    other = torch.cat([clip(backbone.spec, backbone.spec.contexts[1], b=1, seed=7), video[1:2], video[:1]])
    with torch.no_grad():
        first, second = (
            backbone.features(v, horizon=backbone.spec.max_horizon, generator=generator()).maps for v in (video, other)
        )
    torch.testing.assert_close(first[1], second[1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(first[0], second[0], atol=1e-3)


@every_backbone
def test_input_is_not_mutated_and_the_same_input_gives_the_same_maps(name: str) -> None:
    backbone = build(name)
    video = clip(backbone.spec, backbone.spec.contexts[1])
    kept = video.clone()
    with torch.no_grad():
        first, second = (backbone.features(video, horizon=backbone.spec.max_horizon, generator=generator(5)).maps for _ in range(2))
    assert torch.equal(video, kept)
    assert torch.equal(first, second)


@every_backbone
def test_gradients_reach_the_parameters_and_the_frames(name: str) -> None:
    backbone = build(name)
    spec = backbone.spec
    observed = spec.contexts[1]
    leave_start(backbone)
    if spec.generative:
        video = clip(spec, observed + whole(spec)).requires_grad_()
        features, loss = backbone.joint(video, observed, generator=generator())
    else:
        video = clip(spec, observed).requires_grad_()
        features, loss = backbone.features(video, horizon=spec.max_horizon), torch.zeros(())
    # random weights: a plain sum is constant where maps end in a norm
    ((features.maps * torch.randn(features.maps.shape, generator=generator(2))).mean() + loss).backward()
    idle = [key for key, p in backbone.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert idle == []
    assert all(bool(video.grad[:, frame].any()) for frame in range(observed))


@every_backbone
def test_bf16_autocast_gives_nearly_the_same_maps(name: str) -> None:
    backbone = build(name)
    video = clip(backbone.spec, backbone.spec.contexts[1])
    with torch.no_grad():
        full = backbone.features(video, horizon=backbone.spec.max_horizon, generator=generator())
        with torch.autocast("cpu", torch.bfloat16):
            half = backbone.features(video, horizon=backbone.spec.max_horizon, generator=generator())
    assert torch.equal(full.times, half.times)
    torch.testing.assert_close(half.image_to_map.float(), full.image_to_map)
    error = (half.maps.float() - full.maps).square().mean().sqrt() / full.maps.std()
    assert error < (0.1 if name in SMALL else 0.3)  # a deep network of random weights multiplies what rounding does


# -------------------------------------------------------------------- generative models


@every_backbone
def test_joint_features_are_those_of_the_observed_frames(name: str) -> None:
    backbone = generative(name)
    spec = backbone.spec
    for observed, horizon in ((spec.contexts[0], spec.span), (spec.contexts[1], whole(spec))):
        video = clip(spec, observed + horizon)
        with torch.no_grad():
            joint, loss = backbone.joint(video, observed, generator=generator())
            alone = backbone.features(video[:, :observed], horizon=horizon, generator=generator())
        torch.testing.assert_close(joint.maps, alone.maps, atol=1e-3 * float(alone.maps.std()), rtol=1e-3)
        assert torch.equal(joint.times, alone.times) and torch.equal(joint.image_to_map, alone.image_to_map)
        assert loss.ndim == 0 and bool(torch.isfinite(loss)) and loss > 0


@every_backbone
def test_the_future_reaches_the_loss_and_not_the_features(name: str) -> None:
    backbone = generative(name)
    observed, horizon = backbone.spec.contexts[1], whole(backbone.spec)
    leave_start(backbone)
    video = clip(backbone.spec, observed + horizon)
    other = video.clone()
    other[:, observed:] = 1 - other[:, observed:] ** 2
    with torch.no_grad():
        first, loss = backbone.joint(video, observed, generator=generator())
        second, changed = backbone.joint(other, observed, generator=generator())
    assert torch.equal(first.maps, second.maps)
    assert loss != changed


@every_backbone
def test_joint_gives_the_maps_that_are_read(name: str) -> None:
    backbone = generative(name)
    leave_start(backbone)
    observed = backbone.spec.contexts[1]
    video = clip(backbone.spec, observed + whole(backbone.spec))
    with torch.no_grad():
        alone = backbone.features(video[:, :observed], horizon=whole(backbone.spec), since=1.0, generator=generator())
        joint, loss = backbone.joint(video, observed, since=1.0, generator=generator())
    torch.testing.assert_close(joint.maps, alone.maps, atol=1e-3 * float(alone.maps.std()), rtol=1e-3)
    assert torch.equal(joint.times, alone.times) and bool(torch.isfinite(loss))


@every_backbone
def test_joint_is_seeded_and_works_in_bf16(name: str) -> None:
    backbone = generative(name)
    observed, horizon = backbone.spec.contexts[1], whole(backbone.spec)
    video = clip(backbone.spec, observed + horizon)
    kept = video.clone()
    with torch.no_grad():
        losses = [backbone.joint(video, observed, generator=generator(seed))[1] for seed in (0, 0, 1)]
        with torch.autocast("cpu", torch.bfloat16):
            half = backbone.joint(video, observed, generator=generator(0))[1]
    assert losses[0] == losses[1] != losses[2]
    torch.testing.assert_close(half.float(), losses[0], rtol=0.05, atol=0.01)
    assert torch.equal(video, kept)


@every_backbone
def test_joint_without_a_future_is_refused(name: str) -> None:
    backbone = build(name)
    video = clip(backbone.spec, backbone.spec.contexts[0])
    if backbone.spec.generative:
        with pytest.raises(ValueError, match="future frames"):
            backbone.joint(video, video.shape[1])
    else:
        with pytest.raises(TypeError, match=f"{type(backbone).__name__} has no generative loss"):
            backbone.joint(video, video.shape[1])


def test_mini_draws_futures_within_range_by_seed() -> None:
    backbone = build("mini")
    torch.nn.init.normal_(backbone.to_frame[2].weight, std=0.3)
    video = clip(backbone.spec, 2)
    kept = video.clone()
    drawn = [backbone.sample(video, 4, steps=4, generator=generator(seed)) for seed in (0, 0, 1)]
    assert drawn[0].shape == (2, 4, 3, 64, 64)
    assert float(drawn[0].min()) >= 0 and float(drawn[0].max()) <= 1
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert torch.equal(video, kept)
    for horizon, steps in ((0, 4), (2, 0)):
        with pytest.raises(ValueError, match=f"horizon >= 1 and steps >= 1, got {horizon} and {steps}"):
            backbone.sample(video, horizon, steps=steps)
    with pytest.raises(ValueError, match="horizon 7; this backbone predicts 0 to 6"):
        backbone.sample(video, 7)


def test_mini_begins_with_the_last_frame_and_can_pull_it_along() -> None:
    backbone = build("mini")
    video = clip(backbone.spec, 2)
    torch.testing.assert_close(backbone.sample(video, 6, steps=1), video[:, -1:].expand(-1, 6, -1, -1, -1), atol=1e-6, rtol=0)
    shift = torch.zeros(2, 3, 2, 64, 64)
    shift[:, 1, 0], shift[:, 2, 1] = 2.0, -0.5
    there, right, up = pulled(video[:, -1], shift).unbind(1)
    torch.testing.assert_close(there, video[:, -1])
    torch.testing.assert_close(right[..., :-2], video[:, -1, :, :, 2:])
    torch.testing.assert_close(up[..., 1:, :], (video[:, -1, :, 1:] + video[:, -1, :, :-1]) / 2)


def test_mini_wants_whole_groups_of_future_frames_to_learn_from() -> None:
    backbone = build("mini")
    with pytest.raises(ValueError, match="joint needs a multiple of 3 future frames, got 2; crop the clip"):
        backbone.joint(clip(backbone.spec, 4), 2)


def test_mini_learns_to_continue_a_moving_square() -> None:
    """A few steps of `joint` lower the loss well below that of noise alone."""
    backbone = build("mini").train()
    video = torch.zeros(8, 5, 3, 32, 32)
    for row in range(8):
        for frame in range(5):
            video[row, frame, :, 8:16, row + 3 * frame : row + 3 * frame + 8] = 1.0
    optimizer = torch.optim.AdamW(backbone.parameters(), 3e-3)
    losses = []
    for step in range(40):
        _, loss = backbone.joint(video, 2, generator=generator(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


# -------------------------------------------------------------------- the catalogue


def test_import_strings_and_names_lead_to_classes() -> None:
    assert backbone_class(f"{__name__}:TinyImage") is TinyImage
    assert backbone_class("mini").__name__ == "MiniVideo"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("minni", r"unknown backbone 'minni'; choose from \[.*'mini'.*or 'package.module:Class'"),
        ("no_such_package.thing:Class", "cannot be imported.*no_such_package"),
        ("backbones.mini:Missing", "cannot be imported.*Missing"),
        ("backbones.mini:STRIDE", "is no para_video.features.VideoBackbone"),
    ],
)
def test_unknown_backbones_are_named(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backbone_class(name)


# -------------------------------------------------------------------- taps


class Chain(nn.Module):
    """Three layers that count their calls; the second gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = Step(), Step(pair=True), Step()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x))[0])


class Step(nn.Module):
    def __init__(self, pair: bool = False) -> None:
        super().__init__()
        self.pair, self.calls = pair, 0

    def forward(self, x: Tensor):
        self.calls += 1
        return (x + 1, "extra") if self.pair else x + 1


def hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) for part in module.modules())


def test_capture_records_outputs_and_removes_its_hooks() -> None:
    chain = Chain()
    with capture(chain, "a", "b") as seen:
        assert float(chain(torch.zeros(()))) == 3
    assert {name: float(value) for name, value in seen.items()} == {"a": 1, "b": 2}
    assert hooks(chain) == 0
    chain(torch.zeros(()))
    assert float(seen["a"]) == 1


def test_capture_stops_early_and_skips_what_comes_later() -> None:
    chain = Chain()
    with capture(chain, "b", "a", stop=True) as seen:
        chain(torch.zeros(()))
    assert set(seen) == {"a", "b"}
    assert (chain.b.calls, chain.c.calls) == (1, 0)
    assert hooks(chain) == 0


def test_capture_removes_its_hooks_after_an_exception() -> None:
    chain = Chain()
    with pytest.raises(KeyError, match="mine"), capture(chain, "a", stop=True):
        raise KeyError("mine")
    with pytest.raises(TypeError), capture(chain, "c"):
        chain("not a tensor")
    assert hooks(chain) == 0


def test_unknown_taps_are_named() -> None:
    chain = Chain()
    with pytest.raises(ValueError, match=r"unknown tap 'd'; Chain has \['a', 'b', 'c'\]"), capture(chain, "a", "d"):
        pass
    assert hooks(chain) == 0


# -------------------------------------------------------------------- small pieces of the contract


def test_stride_affine_by_hand() -> None:
    """Stride 4: the first cell's centre is between pixels 1 and 2, at 1.5; the image's edge at -0.5 is the cell's edge."""
    affine = stride_affine(4.0)
    found = torch.tensor([[1.5, 5.5], [-0.5, -0.5]]) @ affine[:, :2].mT + affine[:, 2]
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.0], [-0.5, -0.5]]))


def test_nearest_map_and_signed_offset() -> None:
    times = torch.tensor([-1.0, 0.0, 2.0])
    features = VideoFeatures(torch.zeros(1, 3, 1, 1, 1), times, times[:, None].expand(-1, 2), stride_affine(1.0))
    index, offset = features.nearest(torch.tensor([-3.0, 0.4, 1.0, 1.2, 6.0]))
    assert index.tolist() == [0, 1, 1, 2, 2]  # 1 lies between the maps of 0 and 2: the earlier one
    torch.testing.assert_close(offset, torch.tensor([-2.0, 0.4, 1.0, -0.8, 4.0]))


def test_sinusoids_tell_values_apart() -> None:
    codes = sinusoid(torch.arange(-8, 32), 16)
    assert codes.shape == (40, 16)
    distance = torch.cdist(codes, codes) + 9 * torch.eye(40)
    assert float(distance.min()) > 0.3
    torch.testing.assert_close(sinusoid(torch.zeros(1), 4), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))


# -------------------------------------------------------------------- mini's taps and noise levels


@pytest.mark.parametrize(("tap", "channels", "stride"), [("coarse", 32, 16), ("middle", 16, 8), ("fine", 12, 4), ("joined", 36, 4)])
def test_taps_of_mini_are_as_declared_and_skip_what_comes_later(tap: str, channels: int, stride: int) -> None:
    backbone = backbone_class("mini")(**SMALL["mini"], tap=tap).eval()
    later = {"coarse": ["up2", "up1"], "middle": ["up1"]}.get(tap, [])
    with torch.no_grad(), capture(backbone, "time", "up2", "up1") as seen:
        maps = backbone.features(clip(backbone.spec, 2), horizon=6).maps
    assert (backbone.spec.channels, backbone.spec.stride) == (channels, stride)
    assert maps.shape == (2, 4, channels, 64 // stride, 64 // stride)
    assert not seen.keys() & set(later) and "time" in seen


def test_features_at_a_lower_level_are_seeded_and_the_same_for_any_batch() -> None:
    backbone = backbone_class("mini")(**SMALL["mini"], **NOISY).eval()
    leave_start(backbone)
    video = clip(backbone.spec, 2)
    with torch.no_grad():
        both, one = backbone.features(video, horizon=6).maps, backbone.features(video[:1], horizon=6).maps
        torch.testing.assert_close(both[:1], one, atol=1e-5, rtol=1e-4)
        drawn = [backbone.features(video, horizon=6, generator=generator(seed)).maps for seed in (1, 1, 2)]
        assert torch.equal(drawn[0], drawn[1]) and not torch.allclose(drawn[0], drawn[2])
        joint, _ = backbone.joint(torch.cat([video, clip(backbone.spec, 6, seed=5)], 1), 2)
        torch.testing.assert_close(joint.maps, both, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("wrong", [{"tap": "finest"}, {"level": 0.0}, {"level": 1.2}, {"denoising_steps": 0}])
def test_impossible_taps_and_levels_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="tap must be one of"):
        backbone_class("mini")(**wrong)


def test_lora_layers_alone_learn_and_begin_without_effect() -> None:
    plain, backbone = (
        tiny("svd"),
        backbone_class("svd").from_pretrained(str(saved("svd")), lora_rank=2, **TINY["svd"].options).eval(),
    )
    video = clip(plain.spec, 4)
    with torch.no_grad():
        before, after = (each.features(video[:, :2], horizon=2).maps for each in (plain, backbone))
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)
    features, loss = backbone.joint(video, 2, generator=generator())
    (features.maps.square().mean() + loss).backward()
    taught = {name for name, p in backbone.named_parameters() if p.grad is not None}
    assert taught and all("lora_" in name for name in taught)
    backbone.requires_grad_(False)
    assert not any(p.requires_grad for p in backbone.parameters())
