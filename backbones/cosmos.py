"""Cosmos-Predict2 Video2World (NVIDIA 2025): a video transformer over Wan's autoencoder that continues observed frames.

What it is told follows diffusers' pipeline_cosmos2_video2world.py, whose noise of deviation 80 is level 80 / 81 here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel
from torch import Tensor
from transformers import T5EncoderModel, T5TokenizerFast

from backbones.latent import FlowProcess, LatentVideoBackbone, Prompts, Timeline, block_taps, token_maps
from backbones.loading import Source, load_part
from backbones.wan import text_then_zeros, wan_compression, wan_latents

TEXT_TOKENS = 512
CLEAN_TIME = 1e-4
"""What the model is told of observed latents, which it takes without noise."""


class CosmosBackbone(LatentVideoBackbone):
    """The transformer of Cosmos-Predict2 Video2World.

    Args:
        transformer, vae, prompts: its parts; the transformer's config is changed, so that the mask of padding is an input channel
            like the others. taps: transformer_blocks.i. level: sigma in (0, 80 / 81]. denoising_steps: by which the future is drawn
            down to it. max_context, max_horizon: most observed and future frames; the model learnt to continue 1 or 5 frames to 93.
        fps: of the clips, by which the model measures time.

    Raises:
        ValueError: see `LatentVideoBackbone`; a transformer without the channel of the condition's mask, or more frames than it
            has places for.
    """

    clean_past = True
    stack = "transformer_blocks"
    attentions = ()  # its processors follow the choice of the whole process alone

    def __init__(
        self,
        transformer: CosmosTransformer3DModel,
        vae: AutoencoderKLWan,
        prompts: Prompts,
        *,
        taps: Sequence[str] | None = None,
        level: float | None = None,
        denoising_steps: int = 4,
        max_context: int = 5,
        max_horizon: int = 88,
        fps: int = 16,
    ) -> None:
        taps, (ratio, cell) = block_taps(taps, transformer, self.depth, self.stack), wan_compression(vae)
        if transformer.config.concat_padding_mask:
            # its forward would resize the mask with torchvision
            transformer.register_to_config(in_channels=transformer.config.in_channels + 1, concat_padding_mask=False)
        config, stride = transformer.config, cell * transformer.config.patch_size[1]
        if config.in_channels != vae.config.z_dim + 2:
            raise ValueError(
                f"a transformer of {config.in_channels} channels, the mask of padding among them; this adapter knows Video2World's "
                f"of {vae.config.z_dim + 2}"
            )
        super().__init__(
            transformer, vae, process=FlowProcess(time_scale=1.0, top=80 / 81), taps=taps,
            channels=[config.num_attention_heads * config.attention_head_dim] * len(taps), strides=[stride] * len(taps),
            level=level, denoising_steps=denoising_steps, ratio=ratio, contexts=(1, max_context), max_horizon=max_horizon,
            size_multiple=stride,
        )  # fmt: skip
        frames, most = Timeline(max_context, max_horizon, ratio).frames, 1 + ratio * (config.max_size[0] - 1)
        if frames > most:
            raise ValueError(f"{frames} frames; this model has places for {most}: lower max_context or max_horizon")
        self.prompts, self.fps = prompts, fps

    @classmethod
    def load_parts(cls, source: Source) -> dict[str, Any]:
        tokenizer, encoder = load_part(T5TokenizerFast, source, "tokenizer"), load_part(T5EncoderModel, source, "text_encoder")
        return {
            "transformer": load_part(CosmosTransformer3DModel, source, "transformer", **source.first_blocks()),
            "vae": load_part(AutoencoderKLWan, source, "vae"),
            "prompts": Prompts.by_encoder(tokenizer, encoder, TEXT_TOKENS, masked=True),
        }

    def encode(self, frames: Tensor) -> Tensor:
        config, size = self.denoiser.config, tuple(frames.shape[-2:])
        most = self.spec.size_multiple * (min(config.max_size[1:]) // config.patch_size[1])
        if max(size) > most:
            raise ValueError(f"image size {size}; this model has places for sides of {most}: resize the frames")
        return wan_latents(self.vae, frames)

    def condition(self, past: Tensor, latents: Tensor, timeline: Timeline, prompts: list[str] | None) -> dict[str, Tensor]:
        b, _, _, h, w = latents.shape
        masks = latents.new_zeros(b, 2, timeline.past + timeline.future, h, w)
        masks[:, 0, : timeline.past] = 1  # what is observed; the other is of padding, of which there is none
        return {"text": text_then_zeros(self.prompts(prompts, b, past.device)), "masks": masks}

    def denoise(self, x: Tensor, time: Tensor, condition: dict[str, Tensor]) -> Tensor:
        dtype = self.denoiser.dtype
        return self.denoiser(
            torch.cat([x, condition["masks"]], 1).to(dtype), time.clamp_min(CLEAN_TIME)[:, None, :, None, None].to(dtype),
            condition["text"].to(dtype), fps=self.fps, return_dict=False,
        )[0]  # fmt: skip

    def tap_map(self, output: Tensor, b: int, grid: tuple[int, int, int]) -> Tensor:
        return token_maps(output, grid, self.denoiser.config.patch_size[1])
