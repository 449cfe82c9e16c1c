"""What the contract cannot see of the adapters of Wan and Cosmos: places, what the model is told, early stop, truncation."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import backbone_class
from backbones.latent import Timeline
from para_video.features import capture
from tests.tiny_models import TINY, saved, tiny

NAMES = [name for name in TINY if name.startswith(("wan", "cosmos"))]
TEXT, IMAGE, TI2V, COSMOS = NAMES
every_family = pytest.mark.parametrize("name", NAMES)


def load(name: str, **options: Any) -> Any:
    return backbone_class(name).from_pretrained(str(saved(name)), **{**TINY[name].options, **options}).eval()


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


class Seen(Exception):
    """Ends a forward whose arguments alone are wanted."""


def arguments(module: nn.Module, run: Any) -> dict[str, Any]:
    """What a module is called with first, by name."""
    seen: dict[str, Any] = {}

    def record(_, args, named):
        seen.update(dict(zip(("hidden_states", "timestep", "encoder_hidden_states"), args, strict=False)), **named)
        raise Seen

    handle = module.register_forward_pre_hook(record, with_kwargs=True)
    try:
        with torch.no_grad():
            run()
    except Seen:
        pass
    finally:
        handle.remove()
    return seen


# -------------------------------------------------------------------- where and when


def means(frames: Tensor, cell: int) -> Tensor:
    """Latents (b, 4, s, h, w) that are means of what they stand for: random autoencoders mix places and times."""
    small = F.avg_pool2d(frames.flatten(0, 1), cell).unflatten(0, frames.shape[:2])
    grouped = torch.cat([small[:, :1], small[:, 1:].unflatten(1, (-1, 4)).mean(2)], 1).transpose(1, 2)
    return torch.cat([grouped, grouped.mean(1, keepdim=True)], 1)


@every_family
def test_a_blob_changes_the_cell_and_the_latent_where_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an image that is no square; queries and keys are large, as small ones attend alike to every place."""
    backbone = load(name, max_context=9)
    stride = backbone.spec.stride
    monkeypatch.setattr(backbone, "encode", lambda frames: means(frames, stride // 2))
    with torch.no_grad():
        for key, parameter in backbone.denoiser.named_parameters():
            if key.endswith(("norm_q.weight", "norm_k.weight")):
                parameter *= 4
    without = noise(1, 9, 3, 3 * stride, 5 * stride) * 0.2 + 0.3
    # what CLIP sees of the first frame reaches every place
    for frames, latent in ((slice(0, 1), 0), (slice(1, 5), 1), (slice(5, 9), 2))[name == IMAGE :]:
        for row, column in ((0, 3), (2, 1)):
            blob = without.clone()
            blob[:, frames, :, row * stride : (row + 1) * stride, column * stride : (column + 1) * stride] = 1.0
            with torch.no_grad():
                change = (backbone.features(blob).maps - backbone.features(without).maps)[0].norm(dim=1)
            assert [int(i) for i in torch.unravel_index(change.argmax(), change.shape)] == [latent, row, column]


@every_family
def test_latents_do_not_see_later_frames(name: str) -> None:
    """What is observed is encoded without the future, and must be to the model what it was in a whole clip."""
    backbone = load(name)
    clip = noise(1, 9, 3, backbone.spec.stride, backbone.spec.stride) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(backbone.encode(clip[:, :5]), backbone.encode(clip)[:, :, :2])


@every_family
def test_maps_are_bit_equal_to_those_of_a_whole_forward(name: str) -> None:
    backbone = load(name)
    video = noise(2, 5, 3, 2 * backbone.spec.stride, 3 * backbone.spec.stride)
    told = arguments(backbone.denoiser, lambda: backbone.features(video))
    with torch.no_grad(), capture(backbone.denoiser, *backbone.taps) as seen:
        backbone.denoiser(**told)
    tokens = torch.cat([seen[tap] for tap in backbone.taps], -1)
    with torch.no_grad():
        maps = backbone.features(video).maps
    assert bool((maps == tokens.unflatten(1, (2, 2, 3)).movedim(-1, 2)).all())


# -------------------------------------------------------------------- what the model is told


@pytest.mark.parametrize("name", [TEXT, COSMOS])
def test_prompts_are_encoded_once_and_end_in_zeros(name: str) -> None:
    backbone = load(name)
    video = noise(2, 1, 3, backbone.spec.stride, backbone.spec.stride)
    with torch.no_grad():
        empty = backbone.features(video).maps
        assert list(backbone.prompts.known) == [""]
        backbone.prompts.encode = None  # what is known is not encoded again
        assert torch.equal(backbone.features(video, prompts=["", ""]).maps, empty)
        backbone = load(name)
        assert not torch.allclose(backbone.features(video, prompts=["", "lift the cup"]).maps[1], empty[1], atol=1e-4)
        text = backbone.condition(video, backbone.encode(video), Timeline(1, 0, 4), ["a", ""])["text"]
    assert text.shape == (2, 512, 16)
    assert text[0].any(-1).sum() > text[1].any(-1).sum() == 1


def test_wan_is_told_the_text_of_the_pipeline() -> None:
    from diffusers import WanPipeline

    pipeline, backbone = WanPipeline.from_pretrained(str(saved(TEXT))), load(TEXT)
    prompt = "  put the red &amp;amp; blue\n cup down "
    with torch.no_grad():
        expected = pipeline.encode_prompt(prompt, max_sequence_length=512, do_classifier_free_guidance=False)[0]
    video = noise(1, 1, 3, 16, 16)
    assert torch.equal(
        arguments(backbone.denoiser, lambda: backbone.features(video, prompts=[prompt]))["encoder_hidden_states"], expected
    )


@pytest.mark.parametrize("name", [IMAGE, TI2V])
def test_wan_is_told_of_the_first_frame_what_the_pipeline_tells(name: str) -> None:
    from diffusers import WanImageToVideoPipeline
    from transformers import BatchFeature

    from backbones.clip import clip_pixels

    backbone = load(name, max_horizon=8)
    image, text = noise(1, 3, 64, 96), torch.randn(1, 512, 16, generator=torch.Generator().manual_seed(2))
    scheduler = backbone_scheduler(name)
    pipeline = WanImageToVideoPipeline(
        None, None, backbone.vae, scheduler, image_encoder=backbone.image_encoder, transformer=backbone.denoiser,
        expand_timesteps=name == TI2V,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    pipeline.image_processor = lambda images, return_tensors: BatchFeature({"pixel_values": clip_pixels(images * 2 - 1, 32)})
    expected = arguments(
        backbone.denoiser,
        lambda: pipeline(
            image, prompt_embeds=text, negative_prompt_embeds=text, height=64, width=96, num_frames=9, num_inference_steps=2
        ),
    )
    found = arguments(backbone.denoiser, lambda: backbone.features(image[None], horizon=8))
    assert found["hidden_states"].shape == expected["hidden_states"].shape
    if name == IMAGE:
        torch.testing.assert_close(found["hidden_states"][:, 4:], expected["hidden_states"][:, 4:])
        torch.testing.assert_close(found["encoder_hidden_states_image"], expected["encoder_hidden_states_image"])
        assert found["timestep"].tolist() == [1000]
    else:
        torch.testing.assert_close(found["hidden_states"][:, :, 0], expected["hidden_states"][:, :, 0])
        assert torch.equal(found["timestep"] == 0, expected["timestep"] == 0) and found["timestep"].max() == 1000


def backbone_scheduler(name: str) -> Any:
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler.from_pretrained(str(saved(name)), subfolder="scheduler")


def test_wan_marks_all_that_was_observed() -> None:
    backbone = load(IMAGE)
    told = arguments(backbone.denoiser, lambda: backbone.features(noise(1, 5, 3, 16, 16), horizon=7))["hidden_states"]
    assert told[0, 4:8, :, 0, 0].tolist() == [[1, 1, 0, 0]] * 4


def test_cosmos_is_told_what_its_library_would_concatenate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward of diffusers, with a stand-in for the one function that it takes from torchvision, gives the same."""
    from types import SimpleNamespace

    from diffusers import CosmosTransformer3DModel
    from diffusers.models.transformers import transformer_cosmos

    resize = SimpleNamespace(resize=lambda mask, size, interpolation: F.interpolate(mask, size, mode=interpolation))
    stand_in = SimpleNamespace(functional=resize, InterpolationMode=SimpleNamespace(NEAREST="nearest"))
    monkeypatch.setattr(transformer_cosmos, "transforms", stand_in, raising=False)
    backbone = load(COSMOS, max_horizon=8)
    library = CosmosTransformer3DModel.from_pretrained(str(saved(COSMOS)), subfolder="transformer")
    assert library.config.concat_padding_mask
    video = noise(1, 5, 3, 32, 48)
    told = arguments(backbone.denoiser, lambda: backbone.features(video, horizon=8))
    x, mask = told["hidden_states"][:, :4], told["hidden_states"][:, 4:5]
    assert mask[0, 0, :, 0, 0].tolist() == [1, 1, 0, 0]
    torch.testing.assert_close(told["timestep"].flatten(), torch.tensor([1e-4, 1e-4, 80 / 81, 80 / 81]))
    with torch.no_grad():
        torch.testing.assert_close(x[:, :, :2], backbone.encode(video * 2 - 1))
        expected = library(
            x, told["timestep"], told["encoder_hidden_states"], fps=16, condition_mask=mask, padding_mask=torch.zeros(1, 1, 32, 48)
        )
        assert torch.equal(backbone.denoiser(**told)[0], expected.sample)


# -------------------------------------------------------------------- the first blocks alone


@every_family
def test_a_truncated_model_gives_the_same_maps(name: str) -> None:
    backbone, whole = load(name, truncate=True), load(name)
    assert backbone.taps == whole.taps
    assert len(getattr(backbone.denoiser, backbone.stack)) == 3 < len(getattr(whole.denoiser, whole.stack)) == 4
    horizon, video = backbone.spec.max_horizon, noise(1, 6, 3, backbone.spec.stride, backbone.spec.stride)
    assert horizon == (0 if name == TEXT else 7)  # below the top level, a whole model draws the future
    with torch.no_grad():
        assert torch.equal(backbone.features(video, horizon=horizon).maps, whole.features(video, horizon=horizon).maps)
    assert not backbone.spec.generative and backbone.spec.predicts == (horizon > 0)
    with pytest.raises(TypeError, match="has no generative loss"):
        backbone.joint(video, 2)


def test_truncation_follows_the_taps(tmp_path: Path) -> None:
    backbone = load(TI2V, truncate=True, taps=["blocks.0", "blocks.1"])
    assert len(backbone.denoiser.blocks) == 2 and backbone.spec.channels == 48
    below = load(TI2V, truncate=True, level=0.5)
    assert below.spec.max_horizon == 0 and not below.spec.predicts
    with pytest.raises(ValueError, match=r"unknown taps \['blocks.4'\]; choose from blocks.0-3"):
        load(TI2V, truncate=True, taps=["blocks.4"])
    other = shutil.copytree(saved("svd") / "unet", tmp_path / "other" / "transformer").parent
    with pytest.raises(ValueError, match="does not say num_layers: it is of another kind .* class UNetSpatioTemporalCondition"):
        backbone_class(TI2V).from_pretrained(str(other), truncate=True)
    with pytest.raises(ValueError, match="SvdBackbone cannot be truncated.*leave truncate out"):
        load("svd", truncate=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder, told in ((empty, f"{empty}/transformer has no usable Config"), (tmp_path / "none", "there is no folder")):
        with pytest.raises(FileNotFoundError, match=told):
            backbone_class(TI2V).from_pretrained(str(folder), truncate=True)


# -------------------------------------------------------------------- what is refused


def test_what_wan_cannot_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="level 1 is pure noise.*choose a lower one"):
        load(TEXT, level=1.0)
    with pytest.raises(ValueError, match=r"unknown taps \['blocks.9'\]; choose from blocks.0-3"):
        load(TEXT, taps=["blocks.9"])
    parts = backbone_class(IMAGE).load_parts(load_source(IMAGE))
    with pytest.raises(ValueError, match="12 channels and CLIP width 16; this adapter .* wants the image_encoder"):
        backbone_class(IMAGE)(**{**parts, "image_encoder": None})
    two = shutil.copytree(saved(TEXT), tmp_path / "two")
    index = json.loads((two / "model_index.json").read_text())
    (two / "model_index.json").write_text(json.dumps({**index, "boundary_ratio": 0.875}))
    with pytest.raises(ValueError, match="has two transformers"):
        backbone_class(TEXT).from_pretrained(str(two))


def load_source(name: str) -> Any:
    from backbones.loading import Source

    return Source(str(saved(name)))


def test_what_cosmos_has_no_places_for_is_refused() -> None:
    with pytest.raises(ValueError, match="33 frames; this model has places for 29: lower max_context or max_horizon"):
        load(COSMOS, max_context=5, max_horizon=28)
    with pytest.raises(ValueError, match=r"image size \(16, 144\); this model has places for sides of 128: resize the frames"):
        load(COSMOS).features(noise(1, 1, 3, 16, 144))


@every_family
def test_half_precision_weights_work(name: str) -> None:
    backbone = load(name, dtype="bfloat16")
    video = noise(1, 5, 3, backbone.spec.stride, 2 * backbone.spec.stride)
    with torch.no_grad():
        half, full = (b.features(video, horizon=4).maps for b in (backbone, tiny(name)))
    assert half.dtype == torch.float32
    assert (half - full).square().mean().sqrt() < 0.3 * full.std()
