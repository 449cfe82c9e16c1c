"""HunyuanVideo: what the contract of backbones cannot see."""

import shutil
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTokenizer,
    LlamaModel,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from backbones.hunyuan import HunyuanBackbone
from backbones.latent import Timeline, token_maps
from para_video.features import capture
from tests.tiny_models import calls, check_scaling, given, saved, tiny

both = pytest.mark.parametrize("name", ["hunyuan", "hunyuan-i2v"])


def attentive(name: str, **options) -> HunyuanBackbone:
    """A tiny model whose attention is sharp, so that wrong places show."""
    backbone = HunyuanBackbone.from_pretrained(str(saved(name)), **options).eval()
    for key, parameter in backbone.denoiser.named_parameters():
        if key.endswith(("norm_q.weight", "norm_k.weight")):
            parameter.data *= 2
    return backbone


def clip(frames: int, seed: int = 0) -> Tensor:
    return torch.rand(2, frames, 3, 48, 80, generator=torch.Generator().manual_seed(seed))


def spied(backbone: HunyuanBackbone, video: Tensor, horizon: int) -> tuple[Tensor, tuple]:
    """The maps, and what the denoiser was given for them."""
    calls: list[tuple] = []
    denoise = backbone.denoise
    backbone.denoise = lambda *given: calls.append(given) or denoise(*given)
    with torch.no_grad():
        maps = backbone.features(video, horizon=horizon).maps
    backbone.denoise = denoise
    return maps, calls[-1]


def pipeline(name: str, backbone: HunyuanBackbone) -> HunyuanVideoPipeline | HunyuanVideoImageToVideoPipeline:
    """Diffusers' own with the same transformer, and a scheduler as the published models have it."""
    folder, sees = saved(name), name.endswith("i2v")
    parts = {
        "text_encoder": (LlavaForConditionalGeneration if sees else LlamaModel).from_pretrained(folder / "text_encoder"),
        "tokenizer": PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"),
        "text_encoder_2": CLIPTextModel.from_pretrained(folder / "text_encoder_2"),
        "tokenizer_2": CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        "transformer": backbone.denoiser,
        "vae": AutoencoderKLHunyuanVideo.from_pretrained(folder / "vae"),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
    }
    if sees:
        parts["image_processor"] = CLIPImageProcessor.from_pretrained(folder / "image_processor")
    pipe = (HunyuanVideoImageToVideoPipeline if sees else HunyuanVideoPipeline)(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@both
def test_the_denoiser_is_given_what_diffusers_pipeline_gives_it_and_noise_falls_as_there(name: str) -> None:
    backbone = attentive(name)
    pipe, timeline, prompts = pipeline(name, backbone), Timeline(1, 8, 4), ["a red cup", ""]
    pixels = (clip(1) * 255).round()
    past = pixels / 255 * 2 - 1
    options: dict[str, Any] = {"height": 48, "width": 80, "num_frames": 9}
    if backbone.first_is_clean:  # the pipeline's own default of guidance is for another model
        images = [Image.fromarray(image) for image in pixels[:, 0].byte().movedim(1, -1).numpy()]
        options |= {"image": images, "guidance_scale": 6.0}
    seen = calls(backbone.denoiser, lambda: pipe(prompt=prompts, num_inference_steps=3, output_type="latent", **options))
    assert len(seen) == 3
    with torch.no_grad():
        latents = backbone.encode(past)
        condition = backbone.condition(past, latents, timeline, prompts)
    for theirs, after in pairwise(seen):
        wanted, x = given(theirs), given(theirs)["hidden_states"]
        if backbone.first_is_clean:
            x = torch.cat([latents, x[:, :, 1:]], 2)
        level, less = (backbone._levels(given(call)["timestep"] / 1000, timeline) for call in (theirs, after))
        (ours,) = calls(backbone.denoiser, partial(backbone._answer, x, level, condition))
        torch.testing.assert_close(given(ours), wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours[2], theirs[2], atol=1e-4, rtol=1e-4)
        z = backbone.process.signal(ours[2][0], x, level)
        x = backbone.process.noisy(z, backbone.process.noise(x, z, level), less)
        torch.testing.assert_close(x, given(after)["hidden_states"], atol=1e-4, rtol=1e-4)


def test_latents_are_scaled_as_diffusers_pipeline_undoes_it() -> None:
    backbone = attentive("hunyuan")
    pipe = pipeline("hunyuan", backbone)
    check_scaling(backbone, pipe, clip(5) * 2 - 1, pipe.vae.post_quant_conv)


@both
@pytest.mark.parametrize("tap", ["transformer_blocks.1", "single_transformer_blocks.0"])
def test_a_changed_latent_moves_the_map_of_its_cell_and_its_time_most(name: str, tap: str) -> None:
    backbone = attentive(name, taps=[tap], level=0.2, max_context=5)
    encode = backbone.encode
    with torch.no_grad():
        before = backbone.features(clip(5)).maps
    for latent, row, column in ((0, 2, 1), (1, 0, 3), (1, 1, 4)):

        def changed(frames: Tensor, place: tuple[int, int, int] = (latent, row, column)) -> Tensor:
            latents = encode(frames)
            s, i, j = place
            latents[:, :, s, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] += 1.0
            return latents

        backbone.encode = changed
        with torch.no_grad():
            change = (backbone.features(clip(5)).maps - before).square().sum((0, 2))
        assert torch.unravel_index(change.argmax(), change.shape) == (latent, row, column)


@both
@pytest.mark.parametrize("tap", ["transformer_blocks.0", "single_transformer_blocks.1"])
def test_maps_are_those_of_a_whole_forward(name: str, tap: str) -> None:
    backbone = attentive(name, taps=[tap])
    maps, given = spied(backbone, clip(1), 8)
    with torch.no_grad(), capture(backbone.denoiser, tap) as seen:
        backbone.denoise(*given)
    assert torch.equal(token_maps(seen[tap], (3, 3, 5)), maps)


def test_the_text_model_sees_noisy_frames_at_one_level() -> None:
    backbone = attentive("hunyuan", max_context=5)
    _, (x, time, _) = spied(backbone, clip(5), 4)
    assert time.tolist() == [[pytest.approx(300.0)] * 3] * 2
    with torch.no_grad():
        noise = (x[:, :, :2] - 0.7 * backbone.encode(clip(5) * 2 - 1)) / 0.3
    assert float(noise.std()) == pytest.approx(1.0, abs=0.1)
    torch.testing.assert_close(noise[0], noise[1], atol=1e-4, rtol=1e-4)


def test_the_image_model_sees_its_first_frame_clean_and_the_future_as_noise() -> None:
    backbone = attentive("hunyuan-i2v")
    _, (x, time, _) = spied(backbone, clip(1), 8)
    assert time.tolist() == [[0.0, 1000.0, 1000.0]] * 2
    with torch.no_grad():
        torch.testing.assert_close(x[:, :, :1], backbone.encode(clip(1) * 2 - 1))
    assert torch.equal(x[0, :, 1:], x[1, :, 1:])


def test_the_image_reaches_the_image_model_through_its_prompts_too() -> None:
    backbone = attentive("hunyuan-i2v")
    frames = clip(1)[:, 0]
    told = backbone.tell(None, frames)
    other = backbone.tell(None, frames.flip(0))
    assert told["text"].shape == (2, 144 + 252, 16) and told["mask"].shape == (2, 396)  # a fourth of 576 image tokens, then text
    assert bool(told["mask"][:, :144].all())
    torch.testing.assert_close(told["text"], other["text"].flip(0))
    assert not torch.allclose(told["text"][0], told["text"][1])


@both
def test_prompts_reach_the_maps_and_none_is_the_empty_one(name: str) -> None:
    backbone = tiny(name)
    video = clip(1)
    with torch.no_grad():
        none, empty, cup, mixed = (
            backbone.features(video, horizon=4, prompts=p).maps for p in (None, ["", ""], ["a cup"] * 2, ["", "a cup"])
        )
    assert torch.equal(none, empty)
    torch.testing.assert_close(mixed, torch.stack([empty[0], cup[1]]))
    assert not torch.allclose(cup, empty, atol=1e-5)
    with pytest.raises(ValueError, match="1 prompts for 2 clips"):
        backbone.features(video, prompts=[""])
    assert not any("text_encoder" in key for key in backbone.state_dict())


def test_times_under_causal_compression() -> None:
    with torch.no_grad():
        features = attentive("hunyuan", max_context=6).features(clip(6), horizon=5)
    assert features.spans.tolist() == [[-5, -4], [-3, 0], [1, 4], [5, 8]]


def test_llama_3_text_is_split_by_its_own_tokenizer_file() -> None:
    tokenizer = tiny("hunyuan").tell.pipeline.tokenizer
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("<|start_header_id|>user<|end_header_id|>\n\na red cup").input_ids)
    assert pieces == ["<|begin_of_text|>", "<|start_header_id|>", "user", "<|end_header_id|>", "\n\n", "a", "red", "cup"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hunyuan", {"taps": ["single_transformer_blocks.2"]}, "choose from transformer_blocks.0-1, single_transformer_blocks.0-1"),
        ("hunyuan", {"level": 1.0}, "at level 1 the model does not see all of 5 observed frames"),
        ("hunyuan-i2v", {"max_context": 5}, "at level 1 the model does not see all of 5 observed frames"),
        ("hunyuan-i2v", {"level": 0.0}, "0 < level <= 1"),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HunyuanBackbone.from_pretrained(str(saved(name)), **options)


def test_another_image_conditioning_is_refused() -> None:
    with torch.device("meta"):
        transformer = HunyuanVideoTransformer3DModel(image_condition_type="latent_concat", num_layers=1, num_single_layers=1)
        vae = AutoencoderKLHunyuanVideo()
    with pytest.raises(
        ValueError, match="unknown image conditioning 'latent_concat'; take hunyuanvideo-community/HunyuanVideo-I2V"
    ):
        HunyuanBackbone(transformer, vae, lambda prompts, frames: {})


def test_a_missing_tokenizer_is_named(tmp_path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved("hunyuan"), folder)
    shutil.rmtree(folder / "tokenizer_2")
    with pytest.raises(FileNotFoundError, match="model/tokenizer_2 has no usable CLIPTokenizer"):
        HunyuanBackbone.from_pretrained(str(folder))


@both
def test_what_is_told_of_no_text_is_asked_for_once_and_in_full_precision(name: str) -> None:
    backbone, asked = attentive(name), []
    tell = backbone.tell
    backbone.tell = lambda *given: asked.append(given) or tell(*given)
    with torch.autocast("cpu", torch.bfloat16):
        first = backbone.told()
    again = tell(*asked[0])
    settings = [backbone.settings()["text"] for _ in range(2)]
    assert len(asked) == 1 and settings[0] == settings[1] == attentive(name).settings()["text"]
    assert all(torch.equal(value, again[key]) for key, value in first.items())
