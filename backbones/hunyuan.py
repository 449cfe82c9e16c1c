"""HunyuanVideo (Kong et al. 2024): a 13B video transformer, first of blocks that keep image and text apart, then of joined ones.

The text model sees noisy frames only, so features of it are read at a low level of noise. The image model takes the first frame
clean, with a time of its own, and sees it through Llava too; its future is read at pure noise by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTokenizer,
    LlamaModel,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from backbones.latent import FlowProcess, LatentVideoBackbone, Prompts, Timeline, block_taps, token_maps
from backbones.loading import Source, load_part


class HunyuanBackbone(LatentVideoBackbone):
    """HunyuanVideo's transformer, of text or of a first frame.

    Args:
        transformer, vae: its parts. tell: prompts (one a clip, or None) and first frames (b, 3, H, W) in [0, 1] to the tensors
            text, mask and pooled. taps: of its blocks, transformer_blocks.i and then single_transformer_blocks.i; the middle one
            without. level: of noise, in (0, 1]; by default 0.3 for the text model and 1 for the image model. denoising_steps: by
            which the future is drawn down to it. max_context: most observed frames; by default 5 for the text model and the first
            alone for the image model. max_horizon: most future frames; the published models learnt clips of 129 in all.
        guidance: strength of the text, as the distilled models are told.

    Raises:
        ValueError: see `LatentVideoBackbone`; a kind of image conditioning that is not known here; a level at which observed
            frames would not be seen.
    """

    _told: dict[str, Tensor] | None = None

    def __init__(
        self,
        transformer: HunyuanVideoTransformer3DModel,
        vae: AutoencoderKLHunyuanVideo,
        tell: TextPrompts | ImagePrompts,
        *,
        taps: Sequence[str] | None = None,
        level: float | None = None,
        denoising_steps: int = 4,
        max_context: int | None = None,
        max_horizon: int = 16,
        guidance: float = 6.0,
    ) -> None:
        config = transformer.config
        if config.image_condition_type not in (None, "token_replace"):
            raise ValueError(
                f"unknown image conditioning {config.image_condition_type!r}; take hunyuanvideo-community/HunyuanVideo-I2V"
            )
        self.first_is_clean = config.image_condition_type is not None
        level, max_context = reading(level, max_context, self.first_is_clean)
        taps = block_taps(taps, transformer, 0.5, "transformer_blocks", "single_transformer_blocks")
        width, stride = config.num_attention_heads * config.attention_head_dim, vae.spatial_compression_ratio * config.patch_size
        super().__init__(
            transformer, vae, process=FlowProcess(), taps=taps, channels=[width] * len(taps), strides=[stride] * len(taps),
            level=level, denoising_steps=denoising_steps, ratio=vae.temporal_compression_ratio, contexts=(1, max_context),
            max_horizon=max_horizon, size_multiple=stride,
        )  # fmt: skip
        self.tell, self.guidance = tell, guidance

    @classmethod
    def load_parts(cls, source: Source) -> dict[str, Any]:
        transformer = load_part(HunyuanVideoTransformer3DModel, source, "transformer")
        sees = transformer.config.image_condition_type is not None
        parts = {
            "text_encoder": load_part(LlavaForConditionalGeneration if sees else LlamaModel, source, "text_encoder"),
            # Llama 3 splits bytes: the library's own LlamaTokenizer would split them as Llama 2 did
            "tokenizer": load_part(PreTrainedTokenizerFast, source, "tokenizer"),
            "text_encoder_2": load_part(CLIPTextModel, source, "text_encoder_2"),
            "tokenizer_2": load_part(CLIPTokenizer, source, "tokenizer_2"),
        }
        if sees:
            parts["image_processor"] = load_part(CLIPImageProcessor, source, "image_processor")
        return {
            "transformer": transformer,
            "vae": load_part(AutoencoderKLHunyuanVideo, source, "vae"),
            "tell": ImagePrompts(parts) if sees else TextPrompts(parts),
        }

    def encode(self, frames: Tensor) -> Tensor:
        modes = self.vae.encode(frames.transpose(1, 2).to(self.vae.dtype)).latent_dist.mode().float()
        return modes * self.vae.config.scaling_factor

    def condition(self, past: Tensor, latents: Tensor, timeline: Timeline, prompts: list[str] | None) -> dict[str, Tensor]:
        return self.tell(prompts, (past[:, 0] + 1) / 2)

    def move_text(self, device: str) -> None:
        self.tell.to(device)

    def told(self) -> dict[str, Tensor]:
        """Of a grey frame and the empty prompt; asked for once, since Llava is large."""
        if self._told is None:
            with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):  # the same whoever asks first
                self._told = self.tell(None, torch.full((1, 3, 64, 64), 0.5))
        return dict(self._told)

    def _levels(self, level: Tensor, timeline: Timeline) -> Tensor:
        wide = super()._levels(level, timeline)
        if self.first_is_clean:
            wide[:, 0] = 0
        return wide

    def denoise(self, x: Tensor, time: Tensor, condition: dict[str, Tensor]) -> Tensor:
        dtype = self.denoiser.dtype
        guided = self.denoiser.config.guidance_embeds
        return self.denoiser(
            x.to(dtype),
            time[:, -1],  # the clean first frame's own, 0, is added by the image model
            encoder_hidden_states=condition["text"].to(dtype),
            encoder_attention_mask=condition["mask"],
            pooled_projections=condition["pooled"].to(dtype),
            guidance=time.new_full((len(x),), 1000 * self.guidance) if guided else None,
            return_dict=False,
        )[0]

    def tap_map(self, output: Tensor, b: int, grid: tuple[int, int, int]) -> Tensor:
        s, h, w = grid
        patch = self.denoiser.config.patch_size
        return token_maps(output, (s, h // patch, w // patch))


def reading(level: float | None, max_context: int | None, first_is_given: bool) -> tuple[float, int]:
    """The level at which features are read and the most observed frames; None: as models do best that are given their first frame
    without noise, or none at all.

    Raises:
        ValueError: observed frames would not be seen.
    """
    level = (1.0 if first_is_given else 0.3) if level is None else level
    max_context = (1 if first_is_given else 5) if max_context is None else max_context
    if level >= 1 and not (first_is_given and max_context == 1):
        raise ValueError(f"at level {level:g} the model does not see all of {max_context} observed frames; choose one below 1")
    return level, max_context


class TextPrompts:
    """What Llama and CLIP make of prompts. They keep their own device, and their weights are in no checkpoint.

    Args:
        parts: text_encoder, tokenizer, text_encoder_2, tokenizer_2.
    """

    def __init__(self, parts: dict[str, Any]) -> None:
        self.pipeline = HunyuanVideoPipeline(**parts, transformer=None, vae=None, scheduler=None)
        self.prompts = Prompts(self._encode, self.pipeline.text_encoder, self.pipeline.text_encoder_2)

    def _encode(self, prompt: str) -> dict[str, Tensor]:
        text, pooled, mask = self.pipeline.encode_prompt(prompt, device=self.pipeline.text_encoder.device)
        return {"text": text[0], "mask": mask[0], "pooled": pooled[0]}

    def to(self, device: str) -> None:
        self.prompts.to(device)

    def __call__(self, prompts: list[str] | None, frames: Tensor) -> dict[str, Tensor]:
        return self.prompts(prompts, len(frames), frames.device)


class ImagePrompts:
    """What Llava makes of prompts and first frames, and CLIP of prompts. They keep their own device, and their weights are in no
    checkpoint. Llava has 8B parameters and is run for every clip: the option `text_device` moves it to where that is quick.

    Args:
        parts: those of `TextPrompts`, and image_processor.
    """

    INTERLEAVE = 4
    """Of the image's tokens every fourth is kept, as for the published model that takes its first frame clean."""

    def __init__(self, parts: dict[str, Any]) -> None:
        self.pipeline = HunyuanVideoImageToVideoPipeline(**parts, transformer=None, vae=None, scheduler=None)

    def to(self, device: str) -> None:
        self.pipeline.to(device)

    @torch.no_grad()
    def __call__(self, prompts: list[str] | None, frames: Tensor) -> dict[str, Tensor]:
        prompts = [""] * len(frames) if prompts is None else prompts
        if len(prompts) != len(frames):
            raise ValueError(f"{len(prompts)} prompts for {len(frames)} clips; give one each")
        pixels = (frames.detach() * 255).round().clamp(0, 255).byte().movedim(1, -1).cpu().numpy()
        device = self.pipeline.text_encoder.device
        told = [
            # one by one: the library cuts a prompt that is too long rightly in a batch of one alone
            self.pipeline.encode_prompt(Image.fromarray(image), prompt, device=device, image_embed_interleave=self.INTERLEAVE)
            for image, prompt in zip(pixels, prompts, strict=True)
        ]
        text, pooled, mask = (torch.cat(values).to(frames.device) for values in zip(*told, strict=True))
        return {"text": text, "mask": mask, "pooled": pooled}
