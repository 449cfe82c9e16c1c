"""LTX-Video: what the contract of backbones cannot see."""

import shutil

import pytest
import torch
from torch import Tensor

from backbones.latent import token_maps
from backbones.ltx import LtxBackbone
from para_video.features import capture
from tests.tiny_models import saved, tiny

both = pytest.mark.parametrize("name", ["ltx", "ltx-0.9.5"])


def attentive(name: str, **options) -> LtxBackbone:
    """A tiny model whose attention is sharp, so that wrong places show."""
    backbone = LtxBackbone.from_pretrained(str(saved(name)), max_context=17, max_horizon=16, **options).eval()
    for key, parameter in backbone.denoiser.named_parameters():
        if key.endswith(("norm_q.weight", "norm_k.weight")):
            parameter.data *= 2
    return backbone


def clip(frames: int, seed: int = 0) -> Tensor:
    return torch.rand(2, frames, 3, 96, 160, generator=torch.Generator().manual_seed(seed))


def spied(backbone: LtxBackbone, video: Tensor, horizon: int) -> tuple[Tensor, tuple]:
    """The maps, and what the denoiser was given for them."""
    calls: list[tuple] = []
    denoise = backbone.denoise
    backbone.denoise = lambda *given: calls.append(given) or denoise(*given)
    with torch.no_grad():
        maps = backbone.features(video, horizon=horizon).maps
    backbone.denoise = denoise
    return maps, calls[-1]


@both
def test_the_denoiser_is_called_as_in_the_published_pipelines(name: str) -> None:
    from diffusers import LTXConditionPipeline, LTXPipeline

    backbone = attentive(name, fps=10)
    _, (x, time, condition) = spied(backbone, clip(9), 16)
    told = {"encoder_hidden_states": condition["text"], "encoder_attention_mask": condition["mask"]}
    if name == "ltx":
        told |= {"num_frames": 4, "height": 3, "width": 5, "rope_interpolation_scale": (8 / 10, 32, 32)}
    else:
        places = LTXConditionPipeline._scale_video_ids(LTXConditionPipeline._prepare_video_ids(2, 4, 3, 5)).float()
        places[:, 0] /= 10
        told |= {"video_coords": places}
    mask = LTXPipeline._pack_latents(torch.tensor([1.0, 1, 0, 0]).view(1, 1, 4, 1, 1).expand(2, 1, 4, 3, 5)).squeeze(-1)
    with torch.no_grad():
        packed = backbone.denoiser(LTXPipeline._pack_latents(x), timestep=1000 * (1 - mask), **told, return_dict=False)[0]
        found = backbone.denoise(x, time, condition)
        elsewhere = backbone.denoise(x, time, condition | {"places": condition["places"].flip(-1)})
    torch.testing.assert_close(found, LTXPipeline._unpack_latents(packed, 4, 3, 5), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found, elsewhere, atol=1e-3)


@both
def test_latents_are_normalised_as_in_the_published_pipelines(name: str) -> None:
    from diffusers import LTXPipeline

    backbone = attentive(name)
    frames = clip(9) * 2 - 1
    with torch.no_grad():
        modes = backbone.vae.encode(frames.transpose(1, 2)).latent_dist.mode()
        expected = LTXPipeline._normalize_latents(modes, backbone.vae.latents_mean, backbone.vae.latents_std)
        torch.testing.assert_close(backbone.encode(frames), expected)


@both
def test_observed_latents_go_in_clean_and_future_ones_as_noise(name: str) -> None:
    backbone = attentive(name)
    _, (x, time, _) = spied(backbone, clip(9), 16)
    with torch.no_grad():
        torch.testing.assert_close(x[:, :, :2], backbone.encode(clip(9) * 2 - 1))
    assert time.tolist() == [[0, 0, 1000, 1000]] * 2
    assert torch.equal(x[0, :, 2:], x[1, :, 2:])


@both
def test_a_changed_latent_moves_the_map_of_its_cell_and_its_time_most(name: str) -> None:
    backbone = attentive(name)
    encode = backbone.encode
    with torch.no_grad():
        before = backbone.features(clip(17), horizon=8).maps
    for latent, row, column in ((0, 2, 1), (1, 0, 3), (2, 1, 4)):

        def changed(frames: Tensor, place: tuple[int, int, int] = (latent, row, column)) -> Tensor:
            latents = encode(frames)
            latents[:, :, *place] += 1.0
            return latents

        backbone.encode = changed
        with torch.no_grad():
            change = (backbone.features(clip(17), horizon=8).maps - before).square().sum((0, 2))
        assert torch.unravel_index(change.argmax(), change.shape) == (latent, row, column)


@both
def test_frames_reach_the_latents_of_their_time_and_none_before(name: str) -> None:
    backbone = attentive(name)
    for latent in (0, 1, 2):
        other = clip(17)
        other[:, max(8 * latent - 7, 0) :] = 0.5
        with torch.no_grad():
            change = (backbone.encode(other) - backbone.encode(clip(17))).abs().amax((0, 1, 3, 4))
        assert bool((change[:latent] < 1e-5).all()) and bool((change[latent:] > 1e-3).all())


def test_maps_are_those_of_a_whole_forward() -> None:
    backbone = attentive("ltx")
    maps, given = spied(backbone, clip(9), 16)
    with torch.no_grad(), capture(backbone.denoiser, "transformer_blocks.1") as seen:
        backbone.denoise(*given)
    assert torch.equal(token_maps(seen["transformer_blocks.1"], (4, 3, 5)), maps)


def test_several_blocks_are_put_beside_each_other() -> None:
    taps = ("transformer_blocks.2", "transformer_blocks.0")
    both_, last = attentive("ltx", taps=taps), attentive("ltx", taps=taps[:1])
    with torch.no_grad():
        found, expected = both_.features(clip(3)).maps, last.features(clip(3)).maps
    assert found.shape[2] == both_.spec.channels == 72
    assert torch.equal(found[:, :, :36], expected)


def test_times_under_causal_compression() -> None:
    with torch.no_grad():
        features = attentive("ltx").features(clip(10), horizon=9)
    assert features.spans.tolist() == [[-9, -8], [-7, 0], [1, 8], [9, 16]]
    assert features.times.tolist() == [-8.5, -3.5, 4.5, 12.5]


@both
def test_prompts_reach_the_maps_and_none_is_the_empty_one(name: str) -> None:
    backbone = tiny(name)
    video = clip(2)
    with torch.no_grad():
        none, empty, cup, mixed = (
            backbone.features(video, horizon=8, prompts=p).maps for p in (None, ["", ""], ["a cup"] * 2, ["", "a cup"])
        )
    assert torch.equal(none, empty)
    torch.testing.assert_close(mixed, torch.stack([empty[0], cup[1]]))
    assert not torch.allclose(cup, empty, atol=1e-4)
    assert not any("prompts" in key for key in backbone.state_dict())


@pytest.mark.parametrize("tap", ["transformer_blocks.3", "transformer_blocks.0.ff", "proj_in"])
def test_other_taps_than_blocks_are_refused(tap: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown taps \['{tap}'\]; choose from transformer_blocks.0-2"):
        attentive("ltx", taps=[tap])


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "transformer"])
def test_a_missing_part_is_named(part: str, tmp_path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved("ltx"), folder)
    shutil.rmtree(folder / part)
    with pytest.raises(FileNotFoundError, match=f"model/{part} has no usable"):
        LtxBackbone.from_pretrained(str(folder))


def test_a_tokenizer_without_its_vocabulary_is_refused(tmp_path) -> None:
    """The library would quietly build one that knows no piece."""
    folder = tmp_path / "model"
    shutil.copytree(saved("ltx"), folder)
    (folder / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="model/tokenizer has no usable T5Tokenizer: none of"):
        LtxBackbone.from_pretrained(str(folder))
