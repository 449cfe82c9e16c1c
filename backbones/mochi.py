"""Mochi 1 (Genmo 2024): a video transformer over a causal autoencoder of six frames to a latent, told by text.

Its noise runs the other way about, as in diffusers' pipeline_mochi.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from diffusers import AutoencoderKLMochi, MochiTransformer3DModel
from torch import Tensor
from transformers import T5EncoderModel, T5TokenizerFast

from backbones.latent import FlowProcess, LatentVideoBackbone, Prompts, Timeline, block_taps, check_seen, token_maps
from backbones.loading import Source, load_part

DEPTH = 0.4
"""Of the default tap: an early one spares most of ten billion weights."""
OF_TEXT = (
    "_context.", ".add_q_proj", ".add_k_proj", ".add_v_proj", ".norm_added_", ".to_add_out", ".caption_proj", ".pooler.to_q",
    ".pooler.to_kv.weight",
)  # fmt: skip
"""In names of parameters, those that text alone reaches."""


class MochiBackbone(LatentVideoBackbone):
    """Mochi's transformer. Without prompts it attends to no text, as it learnt to go without.

    Args:
        transformer, vae, prompts: its parts. taps: transformer_blocks.i. level: share of noise, below 1.
        denoising_steps: by which the future is drawn down to it. max_context, max_horizon: most observed and future frames; the
            published model gives clips of 163 at most, at 30 fps.

    Raises:
        ValueError: see `LatentVideoBackbone`.
    """

    def __init__(
        self,
        transformer: MochiTransformer3DModel,
        vae: AutoencoderKLMochi,
        prompts: Prompts,
        *,
        taps: Sequence[str] | None = None,
        level: float = 0.2,
        denoising_steps: int = 4,
        max_context: int = 7,
        max_horizon: int = 24,
    ) -> None:
        check_seen(level)
        config = transformer.config
        taps = block_taps(taps, transformer, DEPTH)
        stride = vae.spatial_compression_ratio * config.patch_size
        super().__init__(
            transformer, vae, process=FlowProcess(reversed_time=True), taps=taps,
            channels=[config.num_attention_heads * config.attention_head_dim] * len(taps), strides=[stride] * len(taps),
            level=level, denoising_steps=denoising_steps, ratio=vae.temporal_compression_ratio, contexts=(1, max_context),
            max_horizon=max_horizon, size_multiple=stride,
        )  # fmt: skip
        self.prompts = prompts
        # it takes sines of pixels times hundreds: were they rounded before, what is rounded off would be radians
        vae.encoder.fourier_features.register_forward_hook(lambda part, inputs, output: output.to(vae.dtype))
        self.requires_grad_(True)

    @classmethod
    def load_parts(cls, source: Source) -> dict[str, Any]:
        transformer: Any = load_part(MochiTransformer3DModel, source, "transformer")
        tokenizer = load_part(T5TokenizerFast, source, "tokenizer")
        encoder = load_part(T5EncoderModel, source, "text_encoder")
        return {
            "transformer": transformer,
            "vae": load_part(AutoencoderKLMochi, source, "vae"),
            # as the published model learnt the empty prompt; diffusers' `force_zeros_for_empty_prompt`
            "prompts": Prompts.by_encoder(tokenizer, encoder, transformer.config.max_sequence_length, masked=True, unheard=True),
        }

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As of `LatentVideoBackbone`, but for what is of text alone: nothing attends to the empty prompt, with which the model
        learns here, and its pooling is of zeros."""
        super().requires_grad_(requires_grad)
        for name, parameter in self.denoiser.named_parameters():
            if any(part in name for part in OF_TEXT):
                parameter.requires_grad_(False)
        return self

    def encode(self, frames: Tensor) -> Tensor:
        config = self.vae.config
        latents = self.vae.encode(frames.transpose(1, 2).float()).latent_dist.mode()
        mean, std = (latents.new_tensor(values)[:, None, None, None] for values in (config.latents_mean, config.latents_std))
        return (latents - mean) / std * config.scaling_factor

    def condition(self, past: Tensor, latents: Tensor, timeline: Timeline, prompts: list[str] | None) -> dict[str, Tensor]:
        return self.prompts(prompts, len(past), past.device)

    def denoise(self, x: Tensor, time: Tensor, condition: dict[str, Tensor]) -> Tensor:
        x = x.to(self.denoiser.dtype)
        return self.denoiser(x, condition["text"].to(x.dtype), time[:, 0], condition["text_mask"], return_dict=False)[0]

    def tap_map(self, output: Tensor, b: int, grid: tuple[int, int, int]) -> Tensor:
        return token_maps(output, grid, self.denoiser.config.patch_size)
