"""The contract that every backbone of the catalogue keeps, and a tiny one loaded by its import string."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import CATALOGUE, backbone_class, build_backbone, import_string
from backbones.contract import (
    CHECKS,
    GENERATIVE,
    Broken,
    Check,
    Trial,
    changes_in_place,
    changes_in_time,
    checks_of,
    gradients_reach_all,
    joint_gives_the_features,
    leave_start,
    places_as_declared,
    the_future_stays_out,
    the_loss_is_seeded,
)
from backbones.mini import MiniVideo, _spread, pulled
from backbones.verify import LEAST_SIDE
from para_video.features import FeatureSpec, VideoBackbone, VideoFeatures, capture, sampled, sinusoid, stride_affine
from tests.tiny_models import TINY, tiny


class TinyImage(VideoBackbone):
    """An image model with a patch of 7 pixels that pads the image's left and top by 3: its maps do not start at the corner."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.spec = FeatureSpec(channels, 7, span=1, predicts=False, contexts=(1, 4), max_horizon=0, size_multiple=4)
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
    "mini": {"width": 8, "channels": 12, "depth": 1, "max_context": 4, "max_horizon": 6},
    f"{__name__}:TinyImage": {},
}
"""Options of what is built small, without a checkpoint. A new family of the catalogue adds a line here or in `TINY`."""

NOISY = {"tap": "middle", "level": 0.6, "denoising_steps": 2}
"""Another place to read `mini` at."""

ENTRIES = [*SMALL, *TINY]
GENERATORS = [name for name in ENTRIES if backbone_class(name).generates()]
every_backbone = pytest.mark.parametrize("name", ENTRIES)
every_generator = pytest.mark.parametrize("name", GENERATORS)


def build(name: str) -> VideoBackbone:
    torch.manual_seed(0)
    return tiny(name) if name in TINY else backbone_class(name)(**SMALL[name]).eval()


def test_every_family_of_the_catalogue_is_here() -> None:
    assert {entry.target for entry in CATALOGUE.values()} <= {import_string(name) for name in ENTRIES}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clip(spec: FeatureSpec, frames: int, b: int = 2, seed: int = 1) -> Tensor:
    """Of noise, 64 x 64 pixels."""
    return torch.rand(b, frames, 3, 64, 64, generator=generator(seed))


# -------------------------------------------------------------------- the contract


@pytest.mark.parametrize(
    ("name", "check"),
    [(name, check) for name in ENTRIES for check in CHECKS if name in GENERATORS or check not in GENERATIVE],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_the_contract_is_kept(name: str, check: Check) -> None:
    backbone = build(name)
    assert (name in GENERATORS) == backbone.spec.generative
    if check in (gradients_reach_all, the_future_stays_out, the_loss_is_seeded):
        leave_start(backbone)
    if name.startswith("svd") and check is joint_gives_the_features:
        backbone.double()  # at its level float32 rounds one batch and two of it apart by the bound, more so in threads
    check(Trial(backbone, least_change=1e-6))


def side_in_bf16(name: str) -> int:
    """Small, for CPUs without bf16 convolve in it eighty times slower than in float32; one has learnt positions of 64 pixels."""
    return 64 if name == "cogvideox-5b-i2v" else 32


@every_backbone
def test_bf16_autocast_gives_nearly_the_same_maps(name: str) -> None:
    trial = Trial(build(name))
    video = trial.clip(trial.spec.contexts[1], least=side_in_bf16(name))
    full = trial.features(video, trial.spec.max_horizon)
    with torch.autocast("cpu", torch.bfloat16):
        half = trial.features(video, trial.spec.max_horizon)
    assert torch.equal(full.times, half.times)
    torch.testing.assert_close(half.image_to_map.float(), full.image_to_map)
    error = (half.maps.float() - full.maps).square().mean().sqrt() / full.maps.std()
    assert error < (0.1 if name in SMALL else 0.3)  # a deep network of random weights multiplies what rounding does


@every_generator
def test_joint_gives_the_maps_that_are_read(name: str) -> None:
    backbone = build(name)
    leave_start(backbone)
    if name.startswith("svd"):
        backbone.double()  # as in `test_the_contract_is_kept`
    trial, observed = Trial(backbone), backbone.spec.contexts[1]
    video = trial.clip(observed + trial.whole())
    alone = trial.features(video[:, :observed], trial.whole(), since=1.0)
    joint, loss = trial.joint(video, observed, since=1.0)
    torch.testing.assert_close(joint.maps, alone.maps, atol=1e-3 * float(alone.maps.std()), rtol=1e-3)
    assert torch.equal(joint.times, alone.times) and bool(torch.isfinite(loss))


@every_generator
def test_the_generative_loss_works_in_bf16(name: str) -> None:
    backbone = build(name)
    trial = Trial(backbone)
    observed = backbone.spec.contexts[1]
    video = trial.clip(observed + trial.whole(), least=side_in_bf16(name))
    _, full = trial.joint(video, observed)
    with torch.autocast("cpu", torch.bfloat16):
        _, half = trial.joint(video, observed)
    torch.testing.assert_close(half.float(), full, rtol=0.05, atol=0.01)


# -------------------------------------------------------------------- mini


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


def test_mini_s_coarser_maps_lie_where_they_say() -> None:
    """Convolutions that are padded alike on both sides centre a strided cell on the first of those that it stands for."""
    backbone, seen = MiniVideo(width=8, channels=8, depth=1), torch.randn(1, 8, 32, 32, requires_grad=True)
    cells = []
    for x, block in ((seen, backbone.down2), (backbone.down2(seen), backbone.down3)):
        (around,) = torch.autograd.grad(block(x)[0, :, 4, 4].sum(), seen, retain_graph=True)
        rows, columns = around.abs().sum((0, 1)).nonzero().double().aminmax(dim=0)
        cells.append(((rows + columns) / 2).tolist())
    assert cells == [[8, 8], [16, 16]]
    maps = torch.arange(12.0).view(1, 1, 3, 4)
    for factor in (2, 4):
        spread = _spread(maps, factor)
        assert spread.shape[2:] == (3 * factor, 4 * factor) and torch.equal(spread[..., ::factor, ::factor], maps)
        assert float(spread[0, 0, 0, factor // 2]) == 0.5
    coarse = MiniVideo(width=8, channels=8, depth=1, tap="coarse").features(torch.rand(1, 1, 3, 32, 32))
    middle_of_its_stem_cell = torch.tensor([1.5, 1.5, 1.0])
    assert (coarse.image_to_map @ middle_of_its_stem_cell).tolist() == [0, 0]
    # what is read beyond the last cell of its own is as before
    cells = torch.rand(1, 5, 5, 2, generator=generator()) * 3 - 0.5
    torch.testing.assert_close(sampled(coarse.maps[0], cells), sampled(coarse.maps[0, ..., :-1, :-1], cells))


def test_the_last_of_two_frames_is_looked_for_in_its_own_map(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = TinyImage().eval()
    backbone.spec = replace(backbone.spec, contexts=(1, 2))
    changes_in_time(Trial(backbone))
    read = backbone.features
    monkeypatch.setattr(backbone, "features", lambda *a, **o: (found := read(*a, **o)).with_maps(found.maps.flip(1)))
    with pytest.raises(Broken, match="frame 0 changes the map of frames -1 to -1 most"):
        changes_in_time(Trial(backbone))


@pytest.mark.parametrize(
    ("name", "options", "checks"),
    [
        ("mini", {}, (places_as_declared, changes_in_place, changes_in_time)),
        ("mini-procedural", {}, (places_as_declared, changes_in_place, changes_in_time)),
        ("mini", {"tap": "coarse"}, (places_as_declared,)),
    ],
)
def test_the_shipped_weights_know_places_and_times(name: str, options: dict, checks: tuple[Check, ...]) -> None:
    trial = Trial(build_backbone(name, **options).eval(), (LEAST_SIDE, LEAST_SIDE))
    for check in checks:
        check(trial)


def test_mini_takes_frames_of_any_precision() -> None:
    backbone = build("mini")
    video = torch.rand(1, 1, 3, 32, 32).half()
    with torch.no_grad():
        assert torch.equal(backbone.features(video, horizon=3).maps, backbone.features(video.float(), horizon=3).maps)


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


class Wrapped(TinyImage):
    """Of a user who hands options on."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.given = options


def test_a_backbone_that_takes_options_by_any_name_is_given_them() -> None:
    assert build_backbone(f"{__name__}:Wrapped", width=3).given == {"width": 3}
    with pytest.raises(ValueError, match=r"options \['width'\]"):
        build_backbone(f"{__name__}:TinyImage", width=3)


def test_import_strings_and_names_lead_to_classes() -> None:
    assert backbone_class(f"{__name__}:TinyImage") is TinyImage
    assert backbone_class("mini").__name__ == "MiniVideo"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("minni", "unknown backbone 'minni'; did you mean 'mini'. python -m backbones lists all, or write 'package.module:Class'"),
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
    cells = 64 // stride + (tap == "coarse")  # the image ends beyond the last of the cells that attention sees
    assert maps.shape == (2, 4, channels, cells, cells)
    assert seen.keys() == {"time", "up2", "up1"} - set(later)
    with torch.no_grad():  # what is read while the model learns to predict is the same
        video = clip(backbone.spec, 2)
        joint, _ = backbone.joint(torch.cat([video, clip(backbone.spec, 6, seed=5)], 1), 2)
        torch.testing.assert_close(joint.maps, backbone.features(video, horizon=6).maps, atol=1e-5, rtol=1e-4)


def test_the_encoder_of_mini_is_read_before_attention_and_of_what_is_observed_alone() -> None:
    torch.manual_seed(0)
    backbone = backbone_class("mini")(**SMALL["mini"], tap="encoder").eval()
    for check in checks_of(backbone):
        check(Trial(backbone))
    with torch.no_grad(), capture(backbone, "time", "up2", "up1") as seen:
        maps = backbone.features(clip(backbone.spec, 2)).maps
    assert maps.shape == (2, 2, 56, 16, 16) and not seen
    spec = backbone.spec
    assert (spec.channels, spec.stride, spec.span, spec.max_horizon, spec.generative) == (56, 4, 1, 0, False)
    for loss in (backbone.joint, backbone.generative_loss):
        with pytest.raises(TypeError, match="no generative loss where it is read at 'encoder': name another tap"):
            loss(clip(spec, 2), 1)
    with pytest.raises(TypeError, match="no generative loss of max_horizon 0: raise it"):
        backbone_class("mini")(**{**SMALL["mini"], "max_horizon": 0}).joint(clip(spec, 2), 1)
    with pytest.raises(ValueError, match="no future that could be drawn down to level 0.6; leave level at 1, or name"):
        backbone_class("mini")(**SMALL["mini"], tap="encoder", level=0.6)


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


class Unseeded(MiniVideo):
    """Its features in `joint` know no generator."""

    def joint(self, clip: Tensor, observed: int, *, since=None, prompts=None, generator=None) -> tuple[VideoFeatures, Tensor]:
        return super().joint(clip, observed, since=since)


def test_features_at_a_lower_level_are_of_the_generator_in_joint_too() -> None:
    seeded, unseeded = (kind(**SMALL["mini"], **NOISY).eval() for kind in (MiniVideo, Unseeded))
    for backbone in (seeded, unseeded):
        leave_start(backbone)
    joint_gives_the_features(Trial(seeded))
    with pytest.raises(Broken, match="the features of joint are not those of the observed frames"):
        joint_gives_the_features(Trial(unseeded))


@pytest.mark.parametrize("wrong", [{"tap": "finest"}, {"level": 0.0}, {"level": 1.2}, {"denoising_steps": 0}])
def test_impossible_taps_and_levels_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="tap must be one of"):
        backbone_class("mini")(**wrong)


@pytest.mark.parametrize("name", ["mini", "ltx", "wan2.1-t2v-1.3b"])
def test_a_horizon_without_a_whole_latent_has_no_generative_loss(name: str) -> None:
    def build(**options: int) -> FeatureSpec:
        return (backbone_class("mini")(**options) if name == "mini" else tiny(name, **options)).spec

    ratio = build().span
    assert [build(max_horizon=horizon).generative for horizon in (0, ratio - 1, ratio)] == [False, False, True]


def test_lora_layers_alone_learn_and_begin_without_effect() -> None:
    # of double precision: this network makes much of what rounding does
    plain, backbone = tiny("svd").double(), tiny("svd", lora_rank=2).double()
    video = clip(plain.spec, 3)
    with torch.no_grad():
        before, after = (each.features(video[:, :1], horizon=2).maps for each in (plain, backbone))
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)
    features, loss = backbone.joint(video, 1, generator=generator())
    (features.maps.square().mean() + loss).backward()
    taught = {name for name, p in backbone.named_parameters() if p.grad is not None}
    assert taught and all("lora_" in name for name in taught)
    backbone.requires_grad_(False)
    assert not any(p.requires_grad for p in backbone.parameters())
