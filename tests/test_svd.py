"""Stable Video Diffusion is asked as diffusers' own pipeline asks it, and its answer is understood as its scheduler does."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler, StableVideoDiffusionPipeline
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from torch import Tensor
from transformers import CLIPImageProcessor

from backbones.clip import clip_pixels
from backbones.latent import EdmProcess, Timeline
from tests.tiny_models import saved, tiny

SCHEDULER = EulerDiscreteScheduler(
    beta_schedule="scaled_linear", prediction_type="v_prediction", sigma_max=700.0, sigma_min=0.002, timestep_type="continuous",
    timestep_spacing="leading", use_karras_sigmas=True, steps_offset=1,
)  # fmt: skip
"""As the published models have it."""


def test_the_network_is_asked_and_answers_as_in_diffusers_pipeline() -> None:
    backbone = tiny("svd", fps=9)
    asked: dict[str, Tensor] = {}

    def note(_, inputs: tuple, more: dict, output: tuple) -> None:
        asked.update(more, sample=inputs[0], time=torch.as_tensor(inputs[1]), answer=output[0])

    pipeline = StableVideoDiffusionPipeline(
        backbone.vae, backbone.image_encoder, backbone.denoiser, SCHEDULER,
        CLIPImageProcessor(),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    frame = torch.rand(1, 3, 64, 64, generator=generator)
    noise = torch.randn(1, 4, 4, 8, 8, generator=generator)
    past, timeline = frame[:, None] * 2 - 1, Timeline(1, 3, 1)
    # the pipeline makes pictures of 224 pixels for CLIP, and the tiny one takes 32: what it is shown has a test of its own
    pipeline._encode_image = lambda *_: backbone._seen_by_clip(past[:, 0])
    hook = backbone.denoiser.register_forward_hook(note, with_kwargs=True)
    pipeline(
        frame, 64, 64, num_frames=4, num_inference_steps=1, min_guidance_scale=1, max_guidance_scale=1, fps=9,
        noise_aug_strength=0, latents=noise.clone(), output_type="latent",
    )  # fmt: skip
    hook.remove()
    with torch.no_grad():
        latents = backbone.encode(past)
        condition = backbone.condition(past, latents, timeline, None)
        answer = backbone.denoise(asked["sample"][:, :, :4].transpose(1, 2), asked["time"].view(1, 1).expand(1, 4), condition)
    assert asked["added_time_ids"].tolist() == condition["added_time_ids"].tolist() == [[8, 127, 0]]
    torch.testing.assert_close(condition["beside"].transpose(1, 2), asked["sample"][:, :, 4:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(answer.transpose(1, 2), asked["answer"], atol=5e-4, rtol=1e-3)


def test_clip_is_shown_nearly_what_the_pipeline_shows_it() -> None:
    """They blur before they shrink, we average; the picture has no detail in which that would be seen."""
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    frames = F.interpolate(coarse, (320, 256), mode="bicubic").clamp(-1, 1)
    theirs = (_resize_with_antialiasing(frames, (224, 224)) + 1) / 2
    processed = CLIPImageProcessor()(
        theirs.clamp(0, 1), do_resize=False, do_center_crop=False, do_rescale=False, return_tensors="pt"
    )
    assert (clip_pixels(frames, 224) - processed.pixel_values).abs().mean() < 0.02 * processed.pixel_values.std()


def test_latents_are_scaled_as_the_autoencoder_says() -> None:
    backbone = tiny("svd")
    frames = torch.rand(1, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        modes = backbone.vae.encode(frames[0]).latent_dist.mode()
        found = backbone.encode(frames)
    factor = AutoencoderKLTemporalDecoder.from_pretrained(saved("svd") / "vae").config.scaling_factor
    assert factor == 0.18215
    torch.testing.assert_close(found[0].transpose(0, 1), factor * modes)


@pytest.mark.parametrize("step", [0, 3])
def test_levels_inputs_and_answers_are_those_of_the_scheduler(step: int) -> None:
    process, steps = EdmProcess(), 5
    SCHEDULER.set_timesteps(steps)
    generator = torch.Generator().manual_seed(1)
    sigma = SCHEDULER.sigmas[step].view(1, 1)
    x, output = (torch.randn(1, 4, 1, 8, 8, generator=generator) for _ in range(2))
    x = x * (sigma**2 + 1).sqrt().view(1, 1, 1, 1, 1)
    time = SCHEDULER.timesteps[step]
    torch.testing.assert_close(process.time(sigma).view(()), time, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(process.network_input(x, sigma), SCHEDULER.scale_model_input(x, time))
    signal = SCHEDULER.step(output, time, x).pred_original_sample
    torch.testing.assert_close(process.signal(output, x, sigma), signal, atol=1e-4, rtol=1e-4)
