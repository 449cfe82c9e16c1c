"""CogVideoX (Yang et al. 2024): video transformers over a causal autoencoder, told by text; some continue an image.

The first versions have a token for each latent and 2 x 2 cells, those of version 1.5 for two latents. What the transformer is told
follows diffusers' pipeline_cogvideox.py and pipeline_cogvideox_image2video.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor
from transformers import T5EncoderModel, T5TokenizerFast

from backbones.latent import DdpmProcess, LatentVideoBackbone, Prompts, Timeline, block_taps, check_all_seen, check_seen, token_maps
from backbones.loading import Source, load_part

DEPTH = 0.58
"""Of the default tap: block 17 of the 30 of CogVideoX-2B, where points match best between frames (DiffTrack, Nam et al. 2025)."""
OBSERVED_LEVEL = 0.1
"""Where noise is 0.6 of the signal in CogVideoX-2B and 0.35 in the others."""
MOTION_STRENGTH = 2.0
"""What the image model of version 1.5 is told in every published example, its `ofs`."""


class CogVideoXBackbone(LatentVideoBackbone):
    """A transformer of CogVideoX. With more than one latent to a token, the first latent stands twice and alone in its token, as it
    did in training, so that token k covers the frames of whole latents.

    Args:
        transformer, vae, scheduler, prompts: its parts; whether it continues an image and how it knows places is in its config.
        taps: transformer_blocks.i. level: the step of the noise process over their number. At 1 the model sees of a clip only the
            image that it continues; that is the default where nothing else is observed, and refused where more is.
        denoising_steps: by which the future is drawn down to it. max_context, max_horizon: most observed and future frames, by
            default 1 observed where an image is continued; the first versions learnt clips of 49 at 8 fps, 1.5 of 81 at 16.

    Raises:
        ValueError: see `LatentVideoBackbone`; a level at which not all observed frames would be seen; or more frames than a model
            with learnt positions knows.
    """

    def __init__(
        self,
        transformer: CogVideoXTransformer3DModel,
        vae: AutoencoderKLCogVideoX,
        scheduler: CogVideoXDDIMScheduler,
        prompts: Prompts,
        *,
        taps: Sequence[str] | None = None,
        level: float | None = None,
        denoising_steps: int = 4,
        max_context: int | None = None,
        max_horizon: int = 40,
    ) -> None:
        config = transformer.config
        taps = block_taps(taps, transformer, DEPTH)
        continues_image = config.in_channels > vae.config.latent_channels
        max_context = max_context if max_context is not None else 1 if continues_image else 9
        if level is None and not (continues_image and max_context == 1):
            level = OBSERVED_LEVEL
        if level is not None and not continues_image:
            check_seen(level)
        check_all_seen(level, DdpmProcess.top, max_context)
        group = config.patch_size_t or 1
        stride = 2 ** (len(vae.config.block_out_channels) - 1) * config.patch_size
        super().__init__(
            transformer, vae, process=DdpmProcess(scheduler.alphas_cumprod, scheduler.config.prediction_type), taps=taps,
            channels=[config.num_attention_heads * config.attention_head_dim] * len(taps), strides=[stride] * len(taps),
            level=level, denoising_steps=denoising_steps, ratio=int(vae.config.temporal_compression_ratio) * group,
            contexts=(1, max_context), max_horizon=max_horizon, size_multiple=stride,
        )  # fmt: skip
        self.prompts, self.continues_image, self.group = prompts, continues_image, group
        if config.use_learned_positional_embeddings:
            frames = Timeline(max_context, max_horizon, self.ratio).frames
            if frames > config.sample_frames:
                raise ValueError(
                    f"{max_context} observed and {max_horizon} future frames take the positions of {frames}; this model learnt "
                    f"those of {config.sample_frames}: lower max_context or max_horizon"
                )
            cut_learnt_positions(transformer)
            cell = stride // config.patch_size
            self.spec = replace(self.spec, size=(config.sample_height * cell, config.sample_width * cell))

    @classmethod
    def load_parts(cls, source: Source) -> dict[str, Any]:
        transformer: Any = load_part(CogVideoXTransformer3DModel, source, "transformer")
        tokenizer = load_part(T5TokenizerFast, source, "tokenizer")
        encoder = load_part(T5EncoderModel, source, "text_encoder")
        return {
            "transformer": transformer,
            "vae": load_part(AutoencoderKLCogVideoX, source, "vae"),
            "scheduler": load_part(CogVideoXDDIMScheduler, source, "scheduler"),
            "prompts": Prompts.by_encoder(tokenizer, encoder, transformer.config.max_text_seq_length),
        }

    def encode(self, frames: Tensor) -> Tensor:
        latents = self._modes(frames) * self.vae.config.scaling_factor
        return self._grouped(torch.cat([latents[:, :, :1].expand(-1, -1, self.group - 1, -1, -1), latents], 2).transpose(1, 2))

    def _modes(self, frames: Tensor) -> Tensor:
        """Unscaled latents (b, c, s, h, w) of frames (b, n, 3, H, W)."""
        return self.vae.encode(frames.transpose(1, 2).to(self.vae.dtype)).latent_dist.mode()

    def _grouped(self, latents: Tensor) -> Tensor:
        """Latents (b, s g, c, h, w), as the transformer takes them, as (b, g c, s, h, w): all that a token covers is one."""
        return latents.unflatten(1, (-1, self.group)).flatten(2, 3).transpose(1, 2)

    def condition(self, past: Tensor, latents: Tensor, timeline: Timeline, prompts: list[str] | None) -> dict[str, Tensor]:
        told = self.prompts(prompts, len(past), past.device)
        if self.continues_image:
            config, n = self.vae.config, (timeline.past + timeline.future) * self.group
            scale = 1 / config.scaling_factor if config.invert_scale_latents else config.scaling_factor
            first = self._modes(past[:, :1]).transpose(1, 2) * scale
            told["image"] = F.pad(first, (0, 0, 0, 0, 0, 0, 0, n - 1))
        return told

    def denoise(self, x: Tensor, time: Tensor, condition: dict[str, Tensor]) -> Tensor:
        latents = x.transpose(1, 2).unflatten(2, (self.group, -1)).flatten(1, 2)
        if self.continues_image:
            latents = torch.cat([latents, condition["image"]], 2)
        latents = latents.to(self.denoiser.dtype)
        answer = self.denoiser(
            latents, condition["text"].to(latents.dtype), time[:, 0],
            ofs=latents.new_full((1,), MOTION_STRENGTH) if self.denoiser.config.ofs_embed_dim else None,
            image_rotary_emb=self._rotations(x.shape[2], x.shape[3], x.shape[4], x.device), return_dict=False,
        )[0]  # fmt: skip
        return self._grouped(answer)

    def _rotations(self, s: int, h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines (tokens, head dim) of the tokens' places, where the model turns queries and keys by them. The first
        versions stretch any image over the one they learnt; version 1.5 counts cells."""
        config = self.denoiser.config
        if not config.use_rotary_positional_embeddings:
            return None
        patch = config.patch_size
        cells = (h // patch, w // patch)
        if config.patch_size_t:
            return get_3d_rotary_pos_embed(
                config.attention_head_dim, None, cells, s, grid_type="slice", max_size=cells, device=device
            )
        crop = get_resize_crop_region_for_grid(cells, config.sample_width // patch, config.sample_height // patch)
        return get_3d_rotary_pos_embed(config.attention_head_dim, crop, cells, s, device=device)

    def tap_map(self, output: Tensor, b: int, grid: tuple[int, int, int]) -> Tensor:
        return token_maps(output, grid, self.denoiser.config.patch_size)


def cut_learnt_positions(transformer: Any) -> None:
    """Let a clip shorter than the learnt one have the learnt positions of its frames; diffusers would give it others, of waves."""
    embed = transformer.patch_embed
    if embed.use_learned_positional_embeddings:
        embed.use_positional_embeddings = embed.use_learned_positional_embeddings = False
        embed.register_forward_hook(lambda module, _, tokens: tokens + module.pos_embedding[:, : tokens.shape[1]].to(tokens.dtype))
