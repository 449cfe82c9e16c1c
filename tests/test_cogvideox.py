"""CogVideoX: what its transformer is told, which frames and cells its maps describe."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from transformers import T5EncoderModel, T5TokenizerFast

from backbones import loading
from backbones.cogvideox import CogVideoXBackbone
from backbones.latent import Timeline
from backbones.loading import Source, load_part
from para_video.features import capture
from tests.tiny_models import TINY, calls, cell_changed_by_latents, map_changed_by_frames, saved, sharpen, tiny

NAMES = [name for name in TINY if name.startswith("cogvideox")]
every_version = pytest.mark.parametrize("name", NAMES)


def pipeline(name: str):
    """Diffusers' own, of the same parts but for the autoencoder, whose latents have no spread here."""
    folder = saved(name)
    transformer = CogVideoXTransformer3DModel.from_pretrained(folder / "transformer")
    vae = AutoencoderKLCogVideoX.from_pretrained(folder / "vae")
    last = vae.encoder.conv_out.conv
    last.weight.data[4:], last.bias.data[4:] = 0.0, -30.0
    kind = CogVideoXImageToVideoPipeline if transformer.config.in_channels == 8 else CogVideoXPipeline
    built = kind(
        T5TokenizerFast.from_pretrained(folder / "tokenizer"),
        T5EncoderModel.from_pretrained(folder / "text_encoder"),
        vae,
        transformer,
        CogVideoXDDIMScheduler.from_pretrained(folder / "scheduler"),
    )
    built.set_progress_bar_config(disable=True)
    return built


@every_version
def test_transformer_answers_as_in_diffusers_pipeline(name: str) -> None:
    """Text, image, positions, motion strength and the order of latents: anything amiss changes the answer."""
    backbone, pipe = tiny(name), pipeline(name)
    for transformer in (backbone.denoiser, pipe.transformer):
        sharpen(transformer)
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    options = {"image": image} if backbone.continues_image else {"height": 64, "width": 64}
    run = lambda: pipe(  # noqa: E731
        prompt=["a b", "c"],
        num_frames=17,
        guidance_scale=1.0,
        num_inference_steps=2,
        max_sequence_length=6,
        output_type="latent",
        **options,
    )
    timeline = Timeline(1, 16, backbone.ratio)
    for _, told, (answer,) in calls(pipe.transformer, run):
        x = backbone._grouped(told["hidden_states"][:, :, :4])
        time = told["timestep"][:, None].expand(-1, x.shape[2])
        with torch.no_grad():
            condition = backbone.condition(image[:, None] * 2 - 1, x, timeline, ["a b", "c"])
            ours = backbone.denoise(x, time, condition)
        torch.testing.assert_close(ours, backbone._grouped(answer), atol=1e-4, rtol=1e-4)


@every_version
def test_noise_is_that_of_the_scheduler(name: str) -> None:
    backbone, scheduler = tiny(name), CogVideoXDDIMScheduler.from_pretrained(saved(name) / "scheduler")
    scheduler.set_timesteps(1000)
    z, n, out = torch.randn(3, 2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    assert backbone.process.time(torch.tensor([1.0, 0.001])).tolist() == [999, 0]
    for step in (0, 199, 700, 998):
        level = torch.full((2, 1), (step + 1) / 1000)
        x = backbone.process.noisy(z, n, level)
        torch.testing.assert_close(x, scheduler.add_noise(z, n, torch.tensor([step, step])), atol=1e-5, rtol=1e-5)
        wanted = scheduler.step(out, step, x).pred_original_sample
        torch.testing.assert_close(backbone.process.signal(out, x, level), wanted.float(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(backbone.process.signal(backbone.process.output(z, n, level), x, level), z, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["cogvideox-2b", "cogvideox-5b", "cogvideox1.5-5b"])
def test_tokens_are_maps_of_their_frames_and_cells(name: str) -> None:
    backbone = tiny(name)
    for place in ((0, 2, 1), (1, 1, 4), (2, 3, 5)):
        assert cell_changed_by_latents(backbone, *place) == place
    assert map_changed_by_frames(backbone, slice(1, None)) == 1


@every_version
def test_maps_are_those_of_a_whole_forward(name: str) -> None:
    backbone = tiny(name)
    video = torch.rand(1, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        early = backbone.features(video)
        timeline = Timeline(1, 0, backbone.ratio)
        latents = backbone.encode(video * 2 - 1)
        condition = backbone.condition(video * 2 - 1, latents, timeline, None)
        x, level = backbone._at_level(latents, timeline, condition, None)
        with capture(backbone.denoiser, *backbone.taps) as seen:
            backbone._answer(x, level, condition)
    assert torch.equal(early.maps, backbone.tap_map(seen[backbone.taps[0]], 1, (1, 8, 8)))


def test_a_token_of_two_latents_covers_eight_frames_and_the_first_one() -> None:
    backbone = tiny("cogvideox1.5-5b")
    features = backbone.features(torch.rand(1, 9, 3, 64, 64), horizon=8)
    assert features.spans.tolist() == [[-8, -8], [-7, 0], [1, 8]]
    assert features.times.tolist() == [-8, -3.5, 4.5]
    part = backbone.features(torch.rand(1, 2, 3, 64, 64), horizon=3)
    assert part.spans.tolist() == [[-1, 0], [1, 8]]
    frames = torch.rand(1, 9, 3, 64, 64)
    one, two, three = backbone._modes(frames).unbind(2)
    wanted = torch.stack([torch.cat([one, one], 1), torch.cat([two, three], 1)], 2) * backbone.vae.config.scaling_factor
    torch.testing.assert_close(backbone.encode(frames), wanted)


def test_only_what_is_observed_is_encoded_with_it() -> None:
    """The autoencoder normalises over frames, so that what follows would show in the latents of what is observed."""
    backbone = tiny("cogvideox-2b")
    clip = torch.rand(1, 9, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    other = clip.clone()
    other[:, 5:] = 1.0
    seen = []
    for video in (clip, other):
        generator = torch.Generator().manual_seed(0)
        (call,) = calls(backbone.denoiser, lambda v=video, g=generator: backbone.joint(v, 5, generator=g))[-1:]
        seen.append(call[0][0])
    assert torch.equal(seen[0][:, :2], seen[1][:, :2]) and not torch.equal(seen[0][:, 2:], seen[1][:, 2:])


def test_learnt_positions_are_those_of_the_first_frames() -> None:
    backbone = tiny("cogvideox-5b-i2v")
    table = CogVideoXTransformer3DModel.from_pretrained(saved("cogvideox-5b-i2v") / "transformer").patch_embed.pos_embedding
    embed = backbone.denoiser.patch_embed
    text, latents = torch.zeros(1, 6, 16), torch.zeros(1, 2, 8, 8, 8)
    with torch.no_grad():
        found = embed(text, latents) - torch.cat(
            [embed.text_proj(text), embed.proj(latents[0]).flatten(2).mT.flatten(0, 1)[None]], 1
        )
    torch.testing.assert_close(found, table[:, : 6 + 2 * 16].float())


def test_sizes_and_frames_beyond_learnt_positions_are_refused() -> None:
    backbone = tiny("cogvideox-5b-i2v")
    with pytest.raises(ValueError, match=r"image size \(64, 96\); this backbone takes \(64, 64\) alone: resize"):
        backbone.features(torch.rand(1, 1, 3, 64, 96))
    with pytest.raises(ValueError, match=r"3 observed and 16 future frames take the positions of 21; .* 17: lower max_context"):
        CogVideoXBackbone.from_pretrained(str(saved("cogvideox-5b-i2v")), max_context=3, max_horizon=16)


@pytest.mark.parametrize("name", ["cogvideox-5b-i2v", "cogvideox1.5-5b-i2v"])
def test_observed_frames_that_a_level_drowns_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="at level 1 the model does not see all of 3 observed frames; choose a level below 1, or"):
        tiny(name, level=1.0, max_context=3)
    assert tiny(name, max_context=3).level < 1 and tiny(name, level=1.0).spec.contexts == (1, 1)


def test_unknown_taps_and_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown taps \['transformer_blocks.3'\]; choose from transformer_blocks.0-2"):
        CogVideoXBackbone.from_pretrained(str(saved("cogvideox-2b")), taps=["transformer_blocks.3"])
    with pytest.raises(ValueError, match="1 prompts for 2 clips; give one each"):
        tiny("cogvideox-2b").features(torch.rand(2, 1, 3, 64, 64), prompts=["a"])


def test_a_published_tokenizer_says_which_packages_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published folders hold the tokenizer as sentencepiece wrote it."""
    shutil.copytree(saved("cogvideox-2b") / "tokenizer", tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "tokenizer.json").rename(tmp_path / "tokenizer" / "spiece.model")
    for package in ("sentencepiece", "google", "google.protobuf"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"tokenizer needs two more packages: pip install 'para_video\[text\]'"):
        load_part(T5TokenizerFast, Source(str(tmp_path)), "tokenizer")
    monkeypatch.setattr(loading, "installed", lambda extra: True)
    with pytest.raises(ValueError, match="tokenizer does not load as T5Tokenizer.*download it again"):
        load_part(T5TokenizerFast, Source(str(tmp_path)), "tokenizer")


def test_prompts_change_the_features() -> None:
    backbone = tiny("cogvideox-2b")
    video = torch.rand(1, 1, 3, 64, 64)
    maps = [backbone.features(video, prompts=[prompt]).maps for prompt in ("", "a b", "")]
    assert torch.equal(maps[0], maps[2]) and not torch.allclose(maps[0], maps[1])
    assert torch.equal(maps[0], backbone.features(video).maps) and len(backbone.prompts.known) == 2
