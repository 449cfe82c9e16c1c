"""What the contract cannot see of encoders: places and times of tokens, scales, what is dropped, what is refused."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from backbones import CATALOGUE, backbone_class
from backbones.encoders import EncoderBackbone, filled, side
from backbones.latent import LatentVideoBackbone
from para_video.features import stride_affine
from tests.tiny_models import TINY, saved, tiny

NAMES = [name for name in CATALOGUE if name in TINY and not issubclass(backbone_class(name), LatentVideoBackbone)]
CLIPS = ["vjepa2-large", "videomae", "timesformer", "vivit"]
TRANSFORMERS = [name for name in NAMES if name not in ("dinov3-convnext", "efficientnet-lite0")]
every_encoder = pytest.mark.parametrize("name", NAMES)
every_transformer = pytest.mark.parametrize("name", TRANSFORMERS)


def load(name: str, **options) -> EncoderBackbone:
    return backbone_class(name).from_pretrained(str(saved(name)), **options).eval()


def sharp(name: str) -> EncoderBackbone:
    """With attention that is far from even, so that a wrong position is not averaged away."""
    backbone = tiny(name)
    for key, value in backbone.named_parameters():
        if re.search(r"query|key|q_proj|k_proj|qkv", key) and value.std() < 0.1:
            value.data *= 6
    return backbone


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# -------------------------------------------------------------------- places and times


@every_encoder
def test_a_patch_in_one_frame_changes_its_own_cell_of_its_own_map_most(name: str) -> None:
    """On images that are wider than high, so that rows and columns cannot be taken for each other."""
    backbone = sharp(name)
    stride, frames = int(backbone.spec.stride), backbone.spec.contexts[1]
    video = (0.4 + 0.2 * noise(1, frames, 3, 3 * stride, 4 * stride)).expand(12, -1, -1, -1, -1)
    for frame, row, column in ((frames - 1, 0, 3), (frames - 2, 2, 1)):
        moved = video.clone()
        rows, columns = (slice(i * stride, (i + 1) * stride) for i in (row, column))
        moved[:, frame, :, rows, columns] = noise(12, 3, stride, stride, seed=1)
        with torch.no_grad():
            before, after = backbone.features(video), backbone.features(moved)
        change = (after.maps - before.maps).square().sum((0, 2))
        step, i, j = (int(n) for n in torch.unravel_index(change.argmax(), change.shape))
        first, last = before.spans[step].tolist()
        assert first <= frame - (frames - 1) <= last
        if name == "efficientnet-lite0":  # its fields of view are wide
            assert abs(i - row) <= 1 and abs(j - column) <= 1
        else:
            assert (i, j) == (row, column)


@pytest.mark.parametrize(
    ("name", "observed", "horizon", "spans"),
    [
        ("vjepa2-large", 3, 3, [[-2, -2], [-1, 0], [1, 2], [3, 4]]),
        ("vjepa2-large", 4, 1, [[-3, -2], [-1, 0], [1, 2]]),
        ("videomae", 3, 0, [[-2, -2], [-1, 0]]),
        ("videomae", 1, 0, [[0, 0]]),
        ("timesformer", 2, 0, [[-1, -1], [0, 0]]),
        ("vivit", 4, 0, [[-3, -2], [-1, 0]]),
        ("dinov2", 2, 0, [[-1, -1], [0, 0]]),
    ],
)
def test_frames_are_counted_from_the_last_one_and_copies_are_not(name: str, observed: int, horizon: int, spans: list) -> None:
    features = tiny(name).features(noise(1, observed, 3, 64, 64), horizon=horizon)
    assert features.spans.tolist() == spans


@pytest.mark.parametrize("name", CLIPS)
def test_a_missing_beginning_is_filled_with_the_first_frame(name: str) -> None:
    backbone = tiny(name)
    video = noise(2, 1, 3, 64, 64)
    whole = backbone.clip or backbone.spec.span
    short, long = backbone.features(video), backbone.features(video.expand(-1, whole, -1, -1, -1))
    assert torch.equal(short.maps[:, -1], long.maps[:, -1])


def test_image_models_look_only_at_frames_that_are_read() -> None:
    backbone, video = tiny("dinov2"), noise(2, 2, 3, 64, 64)
    late, all_of_them = backbone.features(video, since=0.0), backbone.features(video)
    assert late.times.tolist() == [0] and all_of_them.times.tolist() == [-1, 0]
    torch.testing.assert_close(late.maps[:, -1], all_of_them.maps[:, -1])


# -------------------------------------------------------------------- sizes


@pytest.mark.parametrize("scale", [1.0, 2.0, 8 / 3, 1.5, 0.5, 0.4, 0.3])
def test_scaled_images_keep_their_places_to_the_pixel(scale: float) -> None:
    """An image whose values are its columns: a scaled pixel j shows what lies at (j + 0.5) / scale - 0.5."""
    columns = torch.arange(61.0).expand(1, 3, 45, -1)
    wide, high = (16 * -(-n * scale // 16) for n in (61, 45))
    out = filled(columns, (int(high), int(wide)), scale)
    assert out.shape == (1, 3, high, wide)
    expected = (torch.arange(wide) + 0.5) / scale - 0.5
    inside = (expected > 3) & (expected < 57)
    torch.testing.assert_close(out[0, 0, 0][inside], expected[inside], atol=0.02, rtol=0)
    torch.testing.assert_close(out[0, 0, 0][expected > 63], torch.full_like(expected[expected > 63], 60))


@every_encoder
@pytest.mark.parametrize("scale", [2.0, 0.8])
def test_scaled_images_have_maps_of_the_declared_stride_that_cover_them(name: str, scale: float) -> None:
    backbone = load(name, scale=scale)
    usual = load(name).spec.stride
    features = backbone.features(noise(1, 1, 3, 25, 31))
    assert backbone.spec.stride == pytest.approx(usual / scale)
    torch.testing.assert_close(features.image_to_map, stride_affine(usual / scale))
    assert features.maps.shape[-2:] == tuple(-(-n * scale // usual) for n in (25, 31))


@pytest.mark.parametrize("name", CLIPS)
def test_an_image_beyond_the_model_is_refused_with_the_scale_that_fits(name: str) -> None:
    video = noise(1, 1, 3, 70, 90)
    with pytest.raises(
        ValueError, match=r"image size \(70, 90\) at scale 1 is more than the 64 x 64 .* set scale to at most"
    ) as caught:
        load(name).features(video)
    scale = float(str(caught.value).rpartition(" ")[2])
    maps = load(name, scale=scale).features(video).maps
    assert maps.shape[-2:] == (7, 8)


def test_sizes_in_configs_are_numbers_or_equal_pairs() -> None:
    assert side(16) == side([16, 16]) == 16
    with pytest.raises(ValueError, match=r"square patches and images, got a model with \(8, 16\)"):
        side((8, 16))


# -------------------------------------------------------------------- taps and what comes after them


@every_encoder
def test_maps_are_those_of_a_longer_forward_bit_by_bit(name: str) -> None:
    blocks = backbone_class(name).blocks
    short, last = load(name, taps=[f"{blocks}.1"]), len(tiny(name).model.get_submodule(blocks)) - 1
    long = load(name, taps=[f"{blocks}.1", f"{blocks}.{last}"])
    assert len(short.model.get_submodule(blocks)) == 2 < len(long.model.get_submodule(blocks))
    video = noise(2, 1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(short.features(video).maps, long.features(video).maps[:, :, : short.spec.channels])
    assert long.spec.channels > short.spec.channels


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("videomae", lambda model, frames: model(frames)),
        ("vivit", lambda model, frames: model(frames)),
        ("timesformer", lambda model, frames: model(frames)),
        ("dinov2-registers", lambda model, frames: model(frames[:, 0])),
        ("dinov3", lambda model, frames: model(frames[:, 0])),
        ("siglip", lambda model, frames: model(frames[:, 0], interpolate_pos_encoding=True)),
    ],
)
def test_the_norm_is_the_library_s_own_output(name: str, call) -> None:
    norm = backbone_class(name).norm
    if name == "videomae":  # the published encoder has no norm: its last block is its output
        norm = "encoder.layer.3"
    backbone = load(name, taps=[norm])
    video = noise(1, backbone.clip or 1, 3, 64, 64)
    with torch.no_grad():
        tokens = call(backbone.model, backbone.prepare(video)).last_hidden_state
        maps = backbone.features(video).maps
    if name == "timesformer":
        expected = tokens[:, 1:].reshape(1, 8, 8, backbone.clip, -1).permute(0, 3, 4, 1, 2)
    else:
        expected = tokens[:, -maps[0, :, 0].numel() :].unflatten(1, (maps.shape[1], *maps.shape[-2:])).movedim(-1, 2)
    assert torch.equal(maps, expected)


@every_encoder
def test_unknown_taps_and_scales_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"unknown taps \['nonsense'\]; .* has \["):
        load(name, taps=["nonsense"])
    with pytest.raises(ValueError, match="scale must be positive; got .* and 0"):
        load(name, scale=0)


@every_transformer
def test_a_tap_beyond_the_last_block_is_not_made_of_random_weights(name: str) -> None:
    with pytest.raises(ValueError, match=r"has no weights for .* the taps are beyond its blocks"):
        load(name, taps=[f"{backbone_class(name).blocks}.9"])


def test_another_kind_of_model_is_not_made_of_random_weights() -> None:
    with pytest.raises(ValueError, match=r"dinov3.*(has no weights for|does not load as)"):
        backbone_class("siglip").from_pretrained(str(saved("dinov3")))
    with pytest.raises(ValueError, match=r"holds a SiglipModel, which Dinov2Backbone does not read"):
        backbone_class("dinov2").from_pretrained(str(saved("siglip")))


# -------------------------------------------------------------------- training


@every_encoder
def test_checkpointing_gives_the_same_gradients_or_is_refused(name: str) -> None:
    if not backbone_class(name).checkpointing:
        with pytest.raises(ValueError, match="has no gradient checkpointing; leave it out"):
            load(name, gradient_checkpointing=True)
        return
    video = noise(1, 1, 3, 64, 64)
    gradients = []
    for checkpointing in (False, True):
        backbone = load(name, gradient_checkpointing=checkpointing).train()
        maps = backbone.features(video, horizon=min(2, backbone.spec.max_horizon)).maps
        (maps * noise(*maps.shape, seed=1)).mean().backward()
        gradients.append({key: p.grad for key, p in backbone.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 10
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value)


@every_encoder
def test_features_in_training_are_those_in_use(name: str) -> None:
    """Nothing is drawn by chance that no generator reaches."""
    backbone, video = tiny(name), noise(2, 1, 3, 64, 64)
    with torch.no_grad():
        still, moving = backbone.eval().features(video).maps, backbone.train().features(video).maps
    torch.testing.assert_close(moving, still)


@every_encoder
def test_freezing_leaves_nothing_to_train(name: str) -> None:
    backbone = tiny(name)
    assert any(p.requires_grad for p in backbone.parameters())
    backbone.requires_grad_(False)
    assert not any(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize(
    ("name", "per_block"),
    [("vjepa2-large", 4), ("videomae", 4), ("timesformer", 4), ("vivit", 4), ("dinov2", 4), ("dinov3", 4), ("siglip", 4)],
)
def test_lora_goes_beside_the_attention_of_every_block_and_nowhere_else(name: str, per_block: int) -> None:
    backbone = tiny(name)
    beside = [key for key, part in backbone.model.named_modules() if re.fullmatch(backbone.lora_pattern(), key)]
    blocks = len(backbone.model.get_submodule(backbone.blocks)) + (2 if name.startswith("vjepa2") else 0)  # its predictor's
    assert len(beside) == per_block * blocks
    assert all(isinstance(backbone.model.get_submodule(key), torch.nn.Linear) for key in beside)


def test_lora_trains_alone_or_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="EfficientNetBackbone has no layers for LoRA"):
        load("efficientnet-lite0", lora_rank=2)
    try:
        import peft  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="pip install peft"):
            load("dinov2", lora_rank=2)
        return
    for name in (n for n in NAMES if n != "efficientnet-lite0"):
        trained = [key for key, p in load(name, lora_rank=2).named_parameters() if p.requires_grad]
        assert trained and all("lora_" in key for key in trained)


@every_encoder
def test_weights_in_half_precision_give_nearly_the_same_maps(name: str) -> None:
    video = noise(2, 1, 3, 64, 64)
    with torch.no_grad():
        full, half = load(name).features(video).maps, load(name, dtype="bfloat16").features(video).maps
    assert half.dtype == torch.float32
    assert float((half - full).square().mean().sqrt() / full.std()) < 0.1


def test_naflex_patches_are_in_the_order_of_the_library_s_processor() -> None:
    from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

    backbone, video = tiny("siglip2-naflex"), noise(1, 1, 3, 32, 48)
    seen: list[Tensor] = []
    handle = backbone.model.embeddings.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    backbone.features(video)
    handle.remove()
    patches = convert_image_to_patches(backbone.prepare(video)[0, 0].numpy(), 16)
    torch.testing.assert_close(seen[0][0], torch.from_numpy(patches))
    assert seen[1].tolist() == [[2, 3]]


# -------------------------------------------------------------------- V-JEPA 2


def small_crop(backbone: EncoderBackbone, crop: int):
    """The library's model with the same weights, whose square is smaller."""
    config = type(backbone.model.config)(**{**backbone.model.config.to_dict(), "crop_size": crop})
    model = type(backbone.model)(config).eval()
    model.load_state_dict(backbone.model.state_dict())
    return model


@pytest.mark.parametrize("crop", [64, 32])
def test_vjepa2_is_the_library_s_encoder_and_predictor_in_a_square_of_any_size(crop: int) -> None:
    """Places are relative: an image that fills a smaller square gives what a model of that square gives."""
    backbone = sharp("vjepa2-large")
    model, cells = small_crop(backbone, crop), crop // 8
    video = noise(2, 4, 3, crop, crop)
    known, unknown = torch.arange(2 * cells**2), torch.arange(2 * cells**2, 4 * cells**2)
    with torch.no_grad():
        masks = {"context_mask": [known.expand(2, -1)], "target_mask": [unknown[: cells**2].expand(2, -1)]}
        encoded = model(backbone.prepare(video), skip_predictor=True).last_hidden_state
        predicted = model.predictor(encoded, masks["context_mask"], masks["target_mask"]).last_hidden_state
        features = backbone.features(video, horizon=2)
    normal = F.layer_norm(encoded, encoded.shape[-1:]).unflatten(1, (2, cells, cells)).movedim(-1, 2)
    torch.testing.assert_close(features.maps[:, :2], normal, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features.maps[:, 2], predicted.mT.unflatten(2, (cells, cells)), atol=1e-4, rtol=1e-4)


def test_vjepa2_tells_patches_their_rows_in_images_that_are_wider_than_high() -> None:
    """With full rows and one step of time the library numbers patches rightly by itself."""
    backbone = sharp("vjepa2-large")
    video = noise(2, 2, 3, 24, 64)
    with torch.no_grad():
        encoded = backbone.model(backbone.prepare(video), skip_predictor=True).last_hidden_state
        maps = backbone.features(video).maps
    normal = F.layer_norm(encoded, encoded.shape[-1:]).unflatten(1, (1, 3, 8)).movedim(-1, 2)
    torch.testing.assert_close(maps, normal, atol=1e-4, rtol=1e-4)


def test_vjepa2_refuses_what_its_predictor_cannot_do() -> None:
    with pytest.raises(ValueError, match=r"max_horizon 2 needs taps \['encoder.layernorm'\].*got \['encoder.layer.1'\]"):
        load("vjepa2-large", taps=["encoder.layer.1"], max_context=2, max_horizon=2)
    with pytest.raises(ValueError, match="max_context 12 and max_horizon 8 are more than the 16 frames"):
        load("vjepa2-large", max_context=12, max_horizon=8)
    with pytest.raises(ValueError, match="max_context 15 and max_horizon 1 .* rounded up to a multiple of 2"):
        load("vjepa2-large", max_context=15, max_horizon=1)
    assert load("vjepa2-large").spec.contexts == (1, 8) and load("vjepa2-large").spec.max_horizon == 8
    assert not load("vjepa2-large", taps=["encoder.layer.1"]).spec.predicts
