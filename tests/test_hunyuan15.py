"""HunyuanVideo 1.5: what the contract of backbones cannot see."""

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
)
from PIL import Image
from torch import Tensor
from transformers import (
    ByT5Tokenizer,
    Qwen2_5_VLTextModel,
    Qwen2Tokenizer,
    SiglipImageProcessor,
    SiglipVisionModel,
    T5EncoderModel,
)

from backbones.hunyuan15 import Hunyuan15Backbone
from backbones.latent import Timeline, token_maps
from para_video.features import capture
from tests.published import published_parts
from tests.tiny_models import calls, check_scaling, given, saved

both = pytest.mark.parametrize("name", ["hunyuan-1.5", "hunyuan-1.5-i2v"])


def attentive(name: str, **options) -> Hunyuan15Backbone:
    """A tiny model whose attention is sharp, so that wrong places show."""
    backbone = Hunyuan15Backbone.from_pretrained(str(saved(name)), **options).eval()
    for key, parameter in backbone.denoiser.named_parameters():
        if key.endswith(("norm_q.weight", "norm_k.weight")):
            parameter.data *= 2
    return backbone


def clip(frames: int, seed: int = 0) -> Tensor:
    return torch.rand(2, frames, 3, 48, 80, generator=torch.Generator().manual_seed(seed))


def spied(backbone: Hunyuan15Backbone, video: Tensor, horizon: int, prompts: list[str] | None = None) -> tuple[Tensor, tuple]:
    """The maps, and what the denoiser was given for them."""
    calls: list[tuple] = []
    denoise = backbone.denoise
    backbone.denoise = lambda *given: calls.append(given) or denoise(*given)
    with torch.no_grad():
        maps = backbone.features(video, horizon=horizon, prompts=prompts).maps
    backbone.denoise = denoise
    return maps, calls[-1]


def pipeline(name: str, backbone: Hunyuan15Backbone) -> HunyuanVideo15Pipeline | HunyuanVideo15ImageToVideoPipeline:
    """Diffusers' own with the same transformer, without a negative prompt, and for pictures of about 64 x 64 pixels."""
    folder, sees = saved(name), name.endswith("i2v")
    parts = {
        "text_encoder": Qwen2_5_VLTextModel.from_pretrained(folder / "text_encoder"),
        "tokenizer": Qwen2Tokenizer.from_pretrained(folder / "tokenizer"),
        "text_encoder_2": T5EncoderModel.from_pretrained(folder / "text_encoder_2"),
        "tokenizer_2": ByT5Tokenizer.from_pretrained(folder / "tokenizer_2"),
        "transformer": backbone.denoiser,
        "vae": AutoencoderKLHunyuanVideo15.from_pretrained(folder / "vae"),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
        "guider": ClassifierFreeGuidance(enabled=False),
    }
    if sees:
        parts["image_encoder"] = SiglipVisionModel.from_pretrained(folder / "image_encoder")
        parts["feature_extractor"] = SiglipImageProcessor(size={"height": 32, "width": 32})
    pipe = (HunyuanVideo15ImageToVideoPipeline if sees else HunyuanVideo15Pipeline)(**parts)
    pipe.target_size = 64
    pipe.set_progress_bar_config(disable=True)
    return pipe


@both
def test_the_denoiser_is_given_what_diffusers_pipeline_gives_it_and_noise_falls_as_there(name: str) -> None:
    backbone = attentive(name)
    pipe, timeline, prompts = pipeline(name, backbone), Timeline(1, 8, 4), ["a cup", 'a sign says "open"']
    pixels = (clip(1)[:1] * 255).round()
    past = (pixels / 255 * 2 - 1).expand(2, -1, -1, -1, -1)
    options: dict[str, Any] = {"height": 48, "width": 80}
    if name == "hunyuan-1.5-i2v":  # which takes the size of its picture
        options = {"image": Image.fromarray(pixels[0, 0].byte().movedim(0, -1).numpy())}
    run = lambda: pipe(prompt=prompts, num_frames=9, num_inference_steps=3, output_type="latent", **options)  # noqa: E731
    seen = calls(backbone.denoiser, run)
    assert len(seen) == 3
    with torch.no_grad():
        condition = backbone.condition(past, backbone.encode(past), timeline, prompts)
    for theirs, after in pairwise(seen):
        wanted, x = given(theirs), given(theirs)["hidden_states"][:, :4]
        level, less = (backbone._levels(given(call)["timestep"] / 1000, timeline) for call in (theirs, after))
        (ours,) = calls(backbone.denoiser, partial(backbone._answer, x, level, condition))
        found = given(ours)
        lengths = {key: value.shape[1] for key, value in found.items() if key.startswith(("encoder", "image"))}
        unread = [wanted[key][:, n:] for key, n in lengths.items() if "mask" in key or "image" in key]
        assert not any(value.any() for value in unread)  # masked text, and the zeros that stand for no image, may be left out
        wanted |= {key: wanted[key][:, :n] for key, n in lengths.items()}
        images = found.pop("image_embeds"), wanted.pop("image_embeds")
        torch.testing.assert_close(*images, atol=0.1, rtol=0)  # the pipeline rounds the pixels that it resizes
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours[2], theirs[2], atol=2e-3, rtol=1e-3)
        z = backbone.process.signal(ours[2][0], x, level)
        x = backbone.process.noisy(z, backbone.process.noise(x, z, level), less)
        torch.testing.assert_close(x, given(after)["hidden_states"][:, :4], atol=2e-3, rtol=1e-3)


def test_latents_are_scaled_as_diffusers_pipeline_undoes_it() -> None:
    backbone = attentive("hunyuan-1.5")
    pipe = pipeline("hunyuan-1.5", backbone)
    check_scaling(backbone, pipe, clip(5)[:1] * 2 - 1, pipe.vae.decoder)  # which takes one video at a time


@both
def test_the_denoiser_answers_as_in_the_published_pipelines(name: str) -> None:
    """Padding of texts and, for the text model, 729 tokens of no image change nothing."""
    backbone = attentive(name)
    prompts = ["", 'a sign says "open"']  # quoted text goes through an encoder of its own
    _, (x, time, condition) = spied(backbone, clip(1), 8, prompts)
    given = torch.zeros(2, 5, 3, 3, 5)
    seen = condition["image"]
    with torch.no_grad():
        if name == "hunyuan-1.5":
            seen = torch.zeros(2, 729, 16)
        else:
            given[:, :4, :1], given[:, 4, 0] = backbone.encode(clip(1) * 2 - 1), 1.0
        told = backbone.prompts(prompts, 2, x.device)
        assert told["text"].shape[1] == 1000 > condition["text"].shape[1]
        expected = backbone.denoiser(
            torch.cat([x, given], 1),
            timestep=time[:, -1],
            encoder_hidden_states=told["text"],
            encoder_attention_mask=told["mask"],
            encoder_hidden_states_2=told["glyphs"],
            encoder_attention_mask_2=told["glyph_mask"],
            image_embeds=seen,
            return_dict=False,
        )[0]
        torch.testing.assert_close(backbone.denoise(x, time, condition), expected, atol=1e-4, rtol=1e-3)


@both
def test_a_changed_latent_moves_the_map_of_its_cell_and_its_time_most(name: str) -> None:
    backbone = attentive(name, level=0.2, max_context=5)
    encode = backbone.encode
    with torch.no_grad():
        before = backbone.features(clip(5)).maps
    for latent, row, column in ((0, 2, 1), (1, 0, 3)):

        def changed(frames: Tensor, place: tuple[int, int, int] = (latent, row, column)) -> Tensor:
            latents = encode(frames)
            latents[:, :, *place] += 1.0
            return latents

        backbone.encode = changed
        with torch.no_grad():
            change = (backbone.features(clip(5)).maps - before).square().sum((0, 2))
        assert torch.unravel_index(change.argmax(), change.shape) == (latent, row, column)


@both
def test_maps_are_those_of_a_whole_forward(name: str) -> None:
    backbone = attentive(name)
    maps, given = spied(backbone, clip(1), 8)
    with torch.no_grad(), capture(backbone.denoiser, "transformer_blocks.1") as seen:
        backbone.denoise(*given)
    assert torch.equal(token_maps(seen["transformer_blocks.1"], (3, 3, 5)), maps)


def test_the_first_frame_reaches_the_image_model_beside_the_noise_and_by_its_encoder() -> None:
    backbone = attentive("hunyuan-1.5-i2v")
    maps, (x, _, condition) = spied(backbone, clip(1), 8)
    other, (y, _, changed) = spied(backbone, clip(1, seed=1), 8)
    assert torch.equal(x, y) and not torch.allclose(maps, other, atol=1e-3)
    assert condition["image"].shape == (2, 4, 16) and not torch.allclose(condition["image"], changed["image"], atol=1e-3)
    assert bool((condition["beside"][:, :, 1:] == 0).all()) and bool((condition["beside"][:, 4, 0] == 1).all())


def test_only_what_a_loss_reaches_is_trained() -> None:
    backbone = attentive("hunyuan-1.5")
    backbone.requires_grad_(False)
    assert not any(p.requires_grad for p in backbone.parameters())
    backbone.requires_grad_(True)
    still = {key.split(".")[1] for key, p in backbone.named_parameters() if key.startswith("denoiser") and not p.requires_grad}
    assert still == {"transformer_blocks", "context_embedder_2", "image_embedder"}
    assert all(p.requires_grad for p in backbone.denoiser.transformer_blocks[:-1].parameters())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hunyuan-1.5", {"taps": ["transformer_blocks.3"]}, "choose from transformer_blocks.0-2"),
        ("hunyuan-1.5", {"level": 1.0}, "at level 1 the model does not see all of 5 observed frames"),
        ("hunyuan-1.5-i2v", {"max_context": 2}, "at level 1 the model does not see all of 2 observed frames"),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Hunyuan15Backbone.from_pretrained(str(saved(name)), **options)


def test_an_image_encoder_that_the_model_does_not_take_is_refused() -> None:
    with torch.device("meta"):
        parts = published_parts("hunyuan-1.5")
    with pytest.raises(ValueError, match="a model of 't2v' is given no image encoder"):
        Hunyuan15Backbone(parts[0], parts[1], lambda *_: {}, torch.nn.Identity())
