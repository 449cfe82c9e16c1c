"""LTX-Video (HaCohen et al. 2024): a fast transformer on strongly compressed latents, a token for 32 x 32 pixels and 8 frames.

Observed latents go in clean, each token with a time of its own, as in diffusers' pipelines of LTX. So one forward from pure noise
describes the future, and that is where features are read by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLLTXVideo, LTXConditionPipeline, LTXPipeline, LTXVideoTransformer3DModel
from torch import Tensor
from transformers import T5EncoderModel, T5TokenizerFast

from backbones.latent import FlowProcess, LatentVideoBackbone, Prompts, Timeline, block_taps, token_maps
from backbones.loading import Source, load_part


class LtxBackbone(LatentVideoBackbone):
    """LTX-Video's transformer, 0.9 to 0.9.8.

    Args:
        transformer, vae, prompts: its parts. taps: of its blocks, transformer_blocks.i; the middle one without. level: of the
            future's noise, in (0, 1]. denoising_steps: by which the future is drawn down to it. max_context, max_horizon: most
            observed and future frames; the published models learnt clips of up to 257. fps: of the clips, as they are told.

    Raises:
        ValueError: see `LatentVideoBackbone`.
    """

    clean_past = True

    def __init__(
        self,
        transformer: LTXVideoTransformer3DModel,
        vae: AutoencoderKLLTXVideo,
        prompts: Prompts,
        *,
        taps: Sequence[str] | None = None,
        level: float | None = None,
        denoising_steps: int = 1,
        max_context: int = 17,
        max_horizon: int = 32,
        fps: float = 25.0,
    ) -> None:
        taps = block_taps(taps, transformer, 0.5)
        width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        stride = vae.spatial_compression_ratio
        super().__init__(
            transformer, vae, process=FlowProcess(), taps=taps, channels=[width] * len(taps), strides=[stride] * len(taps),
            level=level, denoising_steps=denoising_steps, ratio=vae.temporal_compression_ratio, contexts=(1, max_context),
            max_horizon=max_horizon, size_multiple=stride,
        )  # fmt: skip
        self.prompts, self.fps = prompts, fps

    @classmethod
    def load_parts(cls, source: Source) -> dict[str, Any]:
        vae = load_part(AutoencoderKLLTXVideo, source, "vae")
        tokenizer = load_part(T5TokenizerFast, source, "tokenizer")
        encoder = load_part(T5EncoderModel, source, "text_encoder").requires_grad_(False)
        # they differ in the length and in whether the encoder sees the padding
        pipeline = (LTXConditionPipeline if of_095(vae) else LTXPipeline)(
            scheduler=None, vae=None, text_encoder=encoder, tokenizer=tokenizer, transformer=None
        )

        def encode(prompt: str) -> dict[str, Tensor]:
            text, mask, _, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False, device=encoder.device)
            return {"text": text[0], "mask": mask[0]}

        transformer = load_part(LTXVideoTransformer3DModel, source, "transformer")
        return {"transformer": transformer, "vae": vae, "prompts": Prompts(encode, encoder)}

    def encode(self, frames: Tensor) -> Tensor:
        modes = self.vae.encode(frames.transpose(1, 2).to(self.vae.dtype)).latent_dist.mode().float()
        mean, std = (values.float()[:, None, None, None] for values in (self.vae.latents_mean, self.vae.latents_std))
        return (modes - mean) * (self.vae.config.scaling_factor / std)

    def condition(self, past: Tensor, latents: Tensor, timeline: Timeline, prompts: list[str] | None) -> dict[str, Tensor]:
        s, h, w = timeline.past + timeline.future, *latents.shape[-2:]
        return {
            **self.prompts(prompts, len(past), past.device),
            "places": self.places((s, h, w)).to(past.device).expand(len(past), -1, -1),
        }

    def places(self, grid: tuple[int, int, int]) -> Tensor:
        """(3, s h w) where each token lies in time, in seconds, and in the image, in pixels (y, x)."""
        s, h, w = (torch.arange(n, dtype=torch.float32) for n in grid)
        frame = self.ratio * s
        if of_095(self.vae):  # the first latent is of one frame, and from then on the models were told so
            frame = (frame + 1 - self.ratio).clamp_min(0)
        stride = self.vae.spatial_compression_ratio
        return torch.stack(torch.meshgrid(frame / self.fps, stride * h, stride * w, indexing="ij")).flatten(1)

    def denoise(self, x: Tensor, time: Tensor, condition: dict[str, Tensor]) -> Tensor:
        dtype, grid = self.denoiser.dtype, x.shape[2:]
        answer = self.denoiser(
            x.flatten(2).mT.to(dtype),
            encoder_hidden_states=condition["text"].to(dtype),
            encoder_attention_mask=condition["mask"],
            timestep=time.repeat_interleave(grid[1] * grid[2], 1),
            video_coords=condition["places"],
            return_dict=False,
        )[0]
        return answer.mT.unflatten(2, grid)

    def tap_map(self, output: Tensor, b: int, grid: tuple[int, int, int]) -> Tensor:
        return token_maps(output, grid)


def of_095(vae: AutoencoderKLLTXVideo) -> bool:
    """Whether a model is of version 0.9.5 or later, by its autoencoder."""
    return vae.config.down_block_types[-1] == "LTXVideo095DownBlock3D"
