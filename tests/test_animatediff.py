"""AnimateDiff: what its U-Net is told, its noise, which frames and cells its maps describe."""

import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTokenizer

from backbones.animatediff import AnimateDiffBackbone
from backbones.latent import Timeline
from para_video.features import capture
from tests.tiny_models import calls, saved, sharpen, tiny


def test_unet_answers_as_in_diffusers_pipeline() -> None:
    backbone, folder = tiny("animatediff"), saved("animatediff")
    base = folder / "base"
    pipe = AnimateDiffPipeline(
        AutoencoderKL.from_pretrained(base / "vae"),
        CLIPTextModel.from_pretrained(base / "text_encoder"),
        CLIPTokenizer.from_pretrained(base / "tokenizer"),
        UNet2DConditionModel.from_pretrained(base / "unet"),
        MotionAdapter.from_pretrained(folder),
        DDIMScheduler.from_pretrained(base / "scheduler", beta_schedule="linear"),
    )
    pipe.set_progress_bar_config(disable=True)
    for unet in (backbone.denoiser, pipe.unet):
        sharpen(unet)
    options = {"num_frames": 3, "height": 64, "width": 96, "guidance_scale": 1.0, "output_type": "latent"}
    ((positional, _, answer),) = calls(pipe.unet, lambda: pipe(["a b", "c"], num_inference_steps=1, **options))
    x, step = positional
    with torch.no_grad():
        condition = backbone.condition(torch.zeros(2, 1, 3, 64, 96), x, Timeline(1, 2, 1), ["a b", "c"])
        ours = backbone.denoise(x, step.expand(2, 3), condition)
    torch.testing.assert_close(ours, answer.sample, atol=1e-4, rtol=1e-4)


def test_noise_is_linear_in_beta_whatever_the_base_has() -> None:
    process = tiny("animatediff").process
    torch.testing.assert_close(process.alphas_cumprod, (1 - torch.linspace(0.00085, 0.012, 1000)).cumprod(0))
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=False)
    scheduler.set_timesteps(1000)
    out, x = torch.randn(2, 1, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    assert process.predicts == "epsilon"
    found = process.signal(out, x, torch.full((1, 1), 0.261))
    torch.testing.assert_close(found, scheduler.step(out, 260, x).pred_original_sample)


def test_a_moved_blob_changes_its_cell_of_its_frame_most() -> None:
    backbone = tiny("animatediff")
    clips = 0.3 + 0.1 * torch.rand(1, 3, 3, 64, 96, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1, 1)
    clips[:, :, :, 32:48, 16:32] = 1.0
    for frame in range(3):
        moved = clips[1:].clone()
        moved[:, frame, :, 32:48, 16:32], moved[:, frame, :, 8:24, 64:80] = 0.3, 1.0
        with torch.no_grad():
            features = backbone.features(clips[:1])
            change = (features.maps - backbone.features(moved).maps)[0].norm(dim=1)
        s, y, x = torch.unravel_index(change.argmax(), change.shape)
        assert int(s) == frame
        near = [abs(float(y) - cy) <= 4 and abs(float(x) - cx) <= 4 for cx, cy in ((5.5, 9.5), (17.5, 3.5))]
        assert any(near), f"row {y}, column {x}"


def test_maps_are_those_of_a_whole_forward() -> None:
    backbone = tiny("animatediff")
    video = torch.rand(1, 2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        early = backbone.features(video)
        latents, timeline = backbone.encode(video * 2 - 1), Timeline(2, 0, 1)
        condition = backbone.condition(video, latents, timeline, None)
        x, level = backbone._at_level(latents, timeline, condition, None)
        with capture(backbone.denoiser, *backbone.taps) as seen:
            backbone._answer(x, level, condition)
    assert torch.equal(early.maps[:, :, -8:], backbone.tap_map(seen["up_blocks.2"], 1, (2, 24, 16)))
    assert early.maps.shape[-2:] == (24, 16)


def test_more_frames_than_positions_and_unknown_taps_are_refused() -> None:
    options = {"source": str(saved("animatediff")), "base": str(saved("animatediff") / "base")}
    with pytest.raises(ValueError, match="9 observed and 8 future frames; this model has positions for 16: lower max_context"):
        AnimateDiffBackbone.from_pretrained(**options, max_context=9)
    with pytest.raises(ValueError, match=r"unknown tap 'up_blocks.4'; choose from mid_block, down_blocks.0-3, up_blocks.0-3"):
        AnimateDiffBackbone.from_pretrained(**options, taps=["up_blocks.4"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "flash"}, "cannot be given attention 'flash'"),
        ({"offload": "disk"}, "unknown offload 'disk'"),
        ({"truncate": True}, "AnimateDiffBackbone cannot be truncated"),
        ({"taps": "mid_block"}, "taps is a list of names"),
        ({"device": "cudda"}, "there is no device 'cudda'"),
    ],
)
def test_wrong_choices_are_refused_before_the_model_that_carries_the_layers_is_loaded(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnimateDiffBackbone.from_pretrained("nowhere", base="nowhere", **options)
