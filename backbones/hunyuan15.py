"""HunyuanVideo 1.5 (Tencent 2025): an 8B video transformer on latents of 16 x 16 pixels and 4 frames.

Like HunyuanVideo it comes as a text model, whose features are read at a low level of noise, and as an image model, which is given
the first frame beside the noise and by SigLIP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLHunyuanVideo15, HunyuanVideo15Pipeline, HunyuanVideo15Transformer3DModel
from torch import Tensor
from transformers import ByT5Tokenizer, Qwen2_5_VLTextModel, Qwen2Tokenizer, SiglipVisionModel, T5EncoderModel

from backbones.hunyuan import reading
from backbones.latent import FlowProcess, LatentVideoBackbone, Prompts, Timeline, block_taps, token_maps
from backbones.loading import Source, load_part


class Hunyuan15Backbone(LatentVideoBackbone):
    """HunyuanVideo 1.5's transformer, of text or of a first frame.

    Args:
        transformer, vae, prompts, image_encoder: its parts; the last for the image model alone. taps: of its blocks,
            transformer_blocks.i; the middle one without. level: of noise, in (0, 1]; by default 0.3 for the text model and 1 for
            the image model. denoising_steps: by which the future is drawn down to it. max_context: most observed frames; by
            default 5 for the text model and the first alone for the image model. max_horizon: most future frames; the published
            models learnt clips of 121 in all.

    Raises:
        ValueError: see `LatentVideoBackbone`; an image model without its image encoder; a level at which observed frames would not
            be seen.
    """

    image_encoder: Any

    def __init__(
        self,
        transformer: HunyuanVideo15Transformer3DModel,
        vae: AutoencoderKLHunyuanVideo15,
        prompts: Prompts,
        image_encoder: SiglipVisionModel | None = None,
        *,
        taps: Sequence[str] | None = None,
        level: float | None = None,
        denoising_steps: int = 4,
        max_context: int | None = None,
        max_horizon: int = 16,
    ) -> None:
        config = transformer.config
        given = config.task_type == "i2v"
        if given != (image_encoder is not None):
            raise ValueError(f"a model of {config.task_type!r} is given {'its' if given else 'no'} image encoder")
        level, max_context = reading(level, max_context, given)
        taps = block_taps(taps, transformer, 0.5)
        width, stride = config.num_attention_heads * config.attention_head_dim, vae.spatial_compression_ratio * config.patch_size
        super().__init__(
            transformer, vae, process=FlowProcess(), taps=taps, channels=[width] * len(taps), strides=[stride] * len(taps),
            level=level, denoising_steps=denoising_steps, ratio=vae.temporal_compression_ratio, contexts=(1, max_context),
            max_horizon=max_horizon, size_multiple=stride,
        )  # fmt: skip
        vae.enable_slicing()  # its attention takes one clip at a time
        self.prompts = prompts
        self.image_encoder = None if image_encoder is None else image_encoder.requires_grad_(False).eval()
        self.requires_grad_(True)

    @classmethod
    def load_parts(cls, source: Source) -> dict[str, Any]:
        transformer = load_part(HunyuanVideo15Transformer3DModel, source, "transformer")
        vae = load_part(AutoencoderKLHunyuanVideo15, source, "vae")
        pipeline = HunyuanVideo15Pipeline(
            text_encoder=load_part(Qwen2_5_VLTextModel, source, "text_encoder"),
            tokenizer=load_part(Qwen2Tokenizer, source, "tokenizer"),
            text_encoder_2=load_part(T5EncoderModel, source, "text_encoder_2"),
            tokenizer_2=load_part(ByT5Tokenizer, source, "tokenizer_2"),
            transformer=transformer, vae=vae, scheduler=None, guider=None,
        )  # fmt: skip

        def encode(prompt: str) -> dict[str, Tensor]:
            told = pipeline.encode_prompt(prompt, device=pipeline.text_encoder.device)
            return {name: value[0] for name, value in zip(("text", "mask", "glyphs", "glyph_mask"), told, strict=True)}

        given = transformer.config.task_type == "i2v"
        image_encoder = load_part(SiglipVisionModel, source, "image_encoder") if given else None
        prompts = Prompts(encode, pipeline.text_encoder, pipeline.text_encoder_2)
        return {"transformer": transformer, "vae": vae, "prompts": prompts, "image_encoder": image_encoder}

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As of `LatentVideoBackbone`, but for what the loss does not reach: what the last block makes of the text, which nothing
        reads, the glyphs of quoted text, and the image of a text model."""
        super().requires_grad_(requires_grad)
        last = f"transformer_blocks.{len(self.denoiser.transformer_blocks) - 1}"
        unread = [f"{last}.{part}" for part in ("ff_context", "attn.add_q_proj", "attn.norm_added_q", "attn.to_add_out")]
        for name in [*unread, "context_embedder_2", *(["image_embedder"] if self.image_encoder is None else [])]:
            self.denoiser.get_submodule(name).requires_grad_(False)
        return self

    def encode(self, frames: Tensor) -> Tensor:
        modes = self.vae.encode(frames.transpose(1, 2).to(self.vae.dtype)).latent_dist.mode().float()
        return modes * self.vae.config.scaling_factor

    def condition(self, past: Tensor, latents: Tensor, timeline: Timeline, prompts: list[str] | None) -> dict[str, Tensor]:
        told = self.prompts(prompts, len(past), past.device)
        told["text"], told["mask"] = unpadded(told["text"], told["mask"])
        told["glyphs"], told["glyph_mask"] = unpadded(told["glyphs"], told["glyph_mask"])
        later = timeline.past + timeline.future - 1
        given = torch.cat([latents[:, :, :1], torch.ones_like(latents[:, :1, :1])], 1)  # and that it is given
        if self.image_encoder is None:  # one token stands for all: those of zeros are not attended to
            told["image"] = past.new_zeros(len(past), 1, self.denoiser.config.image_embed_dim)
            given = torch.zeros_like(given)
        else:
            side = self.image_encoder.config.image_size
            seen = F.interpolate(past[:, 0], (side, side), mode="bicubic", antialias=True, align_corners=False)
            told["image"] = self.image_encoder(seen.to(self.image_encoder.dtype)).last_hidden_state
        return {**told, "beside": F.pad(given, (0, 0, 0, 0, 0, later))}

    def denoise(self, x: Tensor, time: Tensor, condition: dict[str, Tensor]) -> Tensor:
        dtype = self.denoiser.dtype
        return self.denoiser(
            torch.cat([x, condition["beside"]], 1).to(dtype),
            time[:, -1].to(dtype),
            encoder_hidden_states=condition["text"].to(dtype),
            encoder_attention_mask=condition["mask"],
            encoder_hidden_states_2=condition["glyphs"].to(dtype),
            encoder_attention_mask_2=condition["glyph_mask"],
            image_embeds=condition["image"].to(dtype),
            return_dict=False,
        )[0]

    def tap_map(self, output: Tensor, b: int, grid: tuple[int, int, int]) -> Tensor:
        s, h, w = grid
        patch = self.denoiser.config.patch_size
        return token_maps(output, (s, h // patch, w // patch))


def unpadded(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (b, n, d) and their mask (b, n) up to the last one that any row attends to, and one at least. Of the 1256 most are
    padding, which nothing that is read attends to."""
    attended = mask.bool().any(0).nonzero()
    length = int(attended.max()) + 1 if len(attended) else 1
    return tokens[:, :length], mask[:, :length]
