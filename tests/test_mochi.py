"""Mochi: what its transformer is told, which way its noise runs, which frames and cells its maps describe."""

from itertools import pairwise

import pytest
import torch
from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiPipeline
from transformers import T5EncoderModel, T5TokenizerFast

from backbones.latent import Timeline
from backbones.mochi import MochiBackbone
from para_video.features import capture
from tests.published import published
from tests.tiny_models import calls, cell_changed_by_latents, map_changed_by_frames, saved, sharpen, tiny


def pipeline(backbone: MochiBackbone) -> MochiPipeline:
    """Diffusers' own with the same transformer, and empty prompts as the published model learnt them."""
    folder = saved("mochi")
    pipe = MochiPipeline(
        FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        AutoencoderKLMochi.from_pretrained(folder / "vae"),
        T5EncoderModel.from_pretrained(folder / "text_encoder"),
        T5TokenizerFast.from_pretrained(folder / "tokenizer"),
        backbone.denoiser,
        force_zeros_for_empty_prompt=True,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_nothing_attends_to_the_empty_prompt_as_in_diffusers_pipeline() -> None:
    backbone = tiny("mochi")
    wanted, attended = pipeline(backbone)._get_t5_prompt_embeds("", max_sequence_length=6)
    for prompts in (None, [""]):
        told = backbone.prompts(prompts, 1, torch.device("cpu"))
        torch.testing.assert_close(told["text"], wanted)
        assert torch.equal(told["text_mask"], attended) and not attended.any()
    assert backbone.prompts(["", "a"], 2, torch.device("cpu"))["text_mask"].sum(1).tolist() == [0, 3]
    video = torch.rand(1, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = [backbone.features(video, prompts=prompts).maps for prompts in (None, [""], ["a"])]
    assert torch.equal(maps[0], maps[1]) and not torch.allclose(maps[0], maps[2])


def test_what_is_of_text_alone_does_not_learn() -> None:
    """In the published model, as in the tiny one, whose rest has gradients: the contract looks at that."""
    for backbone in (tiny("mochi"), published("mochi")):
        still = {name for name, parameter in backbone.denoiser.named_parameters() if not parameter.requires_grad}
        blocks = len(backbone.denoiser.transformer_blocks)
        assert {name for name in still if "transformer_blocks" not in name} == {
            "time_embed.caption_proj.weight", "time_embed.caption_proj.bias", "time_embed.pooler.to_kv.weight",
            "time_embed.pooler.to_q.weight", "time_embed.pooler.to_q.bias",
        }  # fmt: skip
        assert sum("transformer_blocks" in name for name in still) == 11 * blocks - 4  # the last one gives no text
        kept = {name for name, parameter in backbone.denoiser.named_parameters() if parameter.requires_grad}
        assert all(f"transformer_blocks.{blocks - 1}.attn1.{name}.weight" in kept for name in ("to_q", "to_k", "to_v", "to_out.0"))


def test_transformer_answers_and_noise_falls_as_in_diffusers_pipeline() -> None:
    backbone = tiny("mochi")
    sharpen(backbone.denoiser)
    pipe = pipeline(backbone)
    options = {"height": 64, "width": 96, "num_frames": 13, "guidance_scale": 1.0, "max_sequence_length": 6}
    run = lambda: pipe(["a b", "c"], num_inference_steps=4, output_type="latent", **options)  # noqa: E731
    seen = calls(backbone.denoiser, run)
    assert len(seen) == 4
    condition = backbone.condition(torch.zeros(2, 1, 3, 64, 96), torch.zeros(0), Timeline(1, 12, 6), ["a b", "c"])
    for (_, told, (answer,)), (_, after, _) in pairwise(seen):
        x = told["hidden_states"]
        assert x.shape == (2, 12, 3, 8, 12)
        level, less = (1 - call["timestep"][:, None].expand(-1, 3) / 1000 for call in (told, after))
        with torch.no_grad():
            ours = backbone.denoise(x, backbone.process.time(level), condition)
        torch.testing.assert_close(ours, answer, atol=1e-4, rtol=1e-4)
        z = backbone.process.signal(ours, x, level)
        torch.testing.assert_close(
            backbone.process.noisy(z, backbone.process.noise(x, z, level), less), after["hidden_states"], atol=1e-3, rtol=1e-3
        )
    assert seen[0][1]["timestep"].tolist() == [0, 0] and backbone.process.time(torch.tensor(1.0)) == 0


def test_latents_are_normalised_as_the_pipeline_undoes_it() -> None:
    backbone = tiny("mochi")
    frames = torch.rand(1, 7, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    raw = backbone.vae.encode(frames.transpose(1, 2)).latent_dist.mode()
    mean, std = (torch.tensor(v).view(1, 12, 1, 1, 1) for v in (backbone.vae.config.latents_mean, backbone.vae.config.latents_std))
    torch.testing.assert_close(backbone.encode(frames) * std + mean, raw)


def test_latents_of_half_precision_are_nearly_those_of_full() -> None:
    """Rounded to bfloat16, pixels would come out of the autoencoder's sines as others."""
    full, half = tiny("mochi"), tiny("mochi", dtype="bfloat16")
    frames = torch.rand(1, 7, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        there, near = full.encode(frames), half.encode(frames).float()
    assert half.vae.dtype == torch.bfloat16 and float((near - there).norm() / there.norm()) < 0.1


def test_tokens_are_maps_of_their_frames_and_cells() -> None:
    backbone = tiny("mochi")
    for place in ((0, 2, 1), (1, 1, 4), (2, 3, 5)):
        assert cell_changed_by_latents(backbone, *place) == place
    assert map_changed_by_frames(backbone, slice(1, None)) == 1


def test_maps_are_those_of_a_whole_forward() -> None:
    backbone = tiny("mochi")
    video = torch.rand(1, 7, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        early = backbone.features(video)
        latents, timeline = backbone.encode(video * 2 - 1), Timeline(7, 0, 6)
        condition = backbone.condition(video, latents, timeline, None)
        x, level = backbone._at_level(latents, timeline, condition, None)
        with capture(backbone.denoiser, *backbone.taps) as seen:
            backbone._answer(x, level, condition)
    assert torch.equal(early.maps, backbone.tap_map(seen[backbone.taps[0]], 1, (2, 8, 8)))
    assert early.spans.tolist() == [[-6, -6], [-5, 0]]


def test_unknown_taps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown taps \['proj_out'\]; choose from transformer_blocks.0-2"):
        MochiBackbone.from_pretrained(str(saved("mochi")), taps=["proj_out"])
