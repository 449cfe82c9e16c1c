"""Wan (Wan Team 2025): video transformers over a causal autoencoder, told by text; some continue what was observed.

How each is told what was observed, and what stands for it in its input, follows diffusers' pipeline_wan_i2v.py.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor
from transformers import CLIPVisionModel, T5TokenizerFast, UMT5EncoderModel

from backbones.clip import clip_pixels
from backbones.latent import FlowProcess, LatentVideoBackbone, Prompts, Timeline, block_taps, check_seen, token_maps
from backbones.loading import Config, Source, load_part

OBSERVED_LEVEL = 0.3
TEXT_TOKENS = 512


class WanBackbone(LatentVideoBackbone):
    """A transformer of Wan. A model that text alone tells is shown what was observed under noise, so that pure noise says nothing
    of it; an image model has it beside the noise, behind a mask; TI2V has its latents themselves, with a time of their own.

    Args:
        transformer, vae, prompts: its parts. image_encoder: of models that see the first frame through CLIP. clean_past: whether it
            is TI2V. taps: blocks.i. level: sigma in (0, 1]; by default 1 where the model continues what was observed, else 0.3.
        denoising_steps: by which the future is drawn down to it. max_context, max_horizon: most observed and future frames; the
            models learnt clips of 81 at 16 fps, TI2V of 121 at 24, and to continue one frame.

    Raises:
        ValueError: see `LatentVideoBackbone`; a transformer that takes other channels than these models, or lacks its
            image_encoder; level 1 for a model that text alone tells.
    """

    image_encoder: Any
    stack = "blocks"
    attentions = ("sdpa", "xformers")

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        vae: AutoencoderKLWan,
        prompts: Prompts,
        image_encoder: CLIPVisionModel | None = None,
        clean_past: bool = False,
        *,
        taps: Sequence[str] | None = None,
        level: float | None = None,
        denoising_steps: int = 4,
        max_context: int = 9,
        max_horizon: int = 72,
    ) -> None:
        config, (ratio, cell) = transformer.config, wan_compression(vae)
        taps, stride, z = block_taps(taps, transformer, self.depth, self.stack), cell * config.patch_size[1], vae.config.z_dim
        if config.in_channels not in (z, ratio + 2 * z) or (config.image_dim is not None and image_encoder is None):
            raise ValueError(
                f"a transformer of {config.in_channels} channels and CLIP width {config.image_dim}; this adapter knows {z} and "
                f"{ratio + 2 * z} channels, and wants the image_encoder where the width is not None"
            )
        beside = config.in_channels > z
        if not beside and not clean_past:
            level = OBSERVED_LEVEL if level is None else level
            check_seen(level)
        super().__init__(
            transformer, vae, process=FlowProcess(), taps=taps,
            channels=[config.num_attention_heads * config.attention_head_dim] * len(taps), strides=[stride] * len(taps),
            level=level, denoising_steps=denoising_steps, ratio=ratio, contexts=(1, max_context), max_horizon=max_horizon,
            size_multiple=stride,
        )  # fmt: skip
        self.prompts, self.clean_past, self.beside = prompts, clean_past, beside
        self.image_encoder = None if image_encoder is None else image_encoder.requires_grad_(False).eval()

    @classmethod
    def load_parts(cls, source: Source) -> dict[str, Any]:
        index = load_part(Config, source, file="model_index.json")
        if index.get("boundary_ratio") is not None:
            raise ValueError(f"{source.name} has two transformers, for more and for less noise; this adapter reads models of one")
        transformer: Any = load_part(WanTransformer3DModel, source, "transformer", **source.first_blocks())
        tokenizer, encoder = load_part(T5TokenizerFast, source, "tokenizer"), load_part(UMT5EncoderModel, source, "text_encoder")
        sees = transformer.config.image_dim is not None
        return {
            "transformer": transformer,
            "vae": load_part(AutoencoderKLWan, source, "vae"),
            "prompts": Prompts.by_encoder(tokenizer, encoder, TEXT_TOKENS, masked=True),
            "image_encoder": load_part(CLIPVisionModel, source, "image_encoder") if sees else None,
            "clean_past": bool(index.get("expand_timesteps")),
        }

    def encode(self, frames: Tensor) -> Tensor:
        return wan_latents(self.vae, frames)

    def condition(self, past: Tensor, latents: Tensor, timeline: Timeline, prompts: list[str] | None) -> dict[str, Tensor]:
        cleaned = None if prompts is None else [" ".join(html.unescape(html.unescape(prompt)).split()) for prompt in prompts]
        told = {"text": text_then_zeros(self.prompts(cleaned, len(past), past.device))}
        if self.beside:
            # unknown frames are grey in this model; their latents are not all alike, as they tell of the frames before
            grey = past.new_zeros(past.shape[0], self.ratio * timeline.future, *past.shape[2:])
            known = self.encode(torch.cat([past, grey], 1)) if timeline.future else latents
            mask = torch.zeros_like(known[:, :1]).repeat(1, self.ratio, 1, 1, 1)
            mask[:, :, : timeline.past] = 1
            told["beside"] = torch.cat([mask, known], 1)
        if self.image_encoder is not None:
            pixels = clip_pixels(past[:, 0], self.image_encoder.config.image_size).to(self.image_encoder.dtype)
            told["image"] = self.image_encoder(pixels, output_hidden_states=True).hidden_states[-2]
        return told

    def denoise(self, x: Tensor, time: Tensor, condition: dict[str, Tensor]) -> Tensor:
        patch = self.denoiser.config.patch_size[1]
        tokens = x.shape[3] * x.shape[4] // patch**2
        told = {name: value.to(self.denoiser.dtype) for name, value in condition.items()}
        return self.denoiser(
            torch.cat([x.to(self.denoiser.dtype), *([told["beside"]] if self.beside else [])], 1),
            time.repeat_interleave(tokens, 1) if self.clean_past else time[:, 0],
            told["text"], encoder_hidden_states_image=told.get("image"), return_dict=False,
        )[0]  # fmt: skip

    def tap_map(self, output: Tensor, b: int, grid: tuple[int, int, int]) -> Tensor:
        return token_maps(output, grid, self.denoiser.config.patch_size[1])


def wan_compression(vae: Any) -> tuple[int, int]:
    """Frames, and pixels in x and y, to a latent of Wan's autoencoders; that of version 2.2 first makes patches of pixels."""
    halvings = vae.config.temperal_downsample
    return 2 ** sum(halvings), 2 ** len(halvings) * (vae.config.patch_size or 1)


def wan_latents(vae: Any, frames: Tensor) -> Tensor:
    """Normalised latents (b, c, s, h, w) of frames (b, 1 + ratio * k, 3, H, W) in [-1, 1]."""
    modes = vae.encode(frames.transpose(1, 2).to(vae.dtype)).latent_dist.mode()
    mean, std = (modes.new_tensor(values)[:, None, None, None] for values in (vae.config.latents_mean, vae.config.latents_std))
    return (modes - mean) / std


def text_then_zeros(told: dict[str, Tensor]) -> Tensor:
    """Embeddings (b, n, d) of masked `Prompts`, with zeros after each text's end, as their models learnt them."""
    return told["text"] * told["text_mask"][..., None]
