"""AnimateDiff (Guo et al. 2024): Stable Diffusion 1.5 with layers between its own that look along time.

The published models are the layers alone; any model with the U-Net of Stable Diffusion 1.5 carries them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from diffusers import AutoencoderKL, DDIMScheduler, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from backbones.latent import DdpmProcess, LatentVideoBackbone, Prompts, Timeline, check_seen
from backbones.loading import Source, load_part, load_vae
from backbones.svd import unet_tap

BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"


class AnimateDiffBackbone(LatentVideoBackbone):
    """The U-Net of Stable Diffusion with AnimateDiff's layers.

    Args:
        motion_adapter: the layers along time. unet, vae, scheduler, prompts: parts of the model that carries them. taps: of the
            U-Net's blocks: down_blocks.i, mid_block, up_blocks.i. level: the step of the noise process over their number; the
            default is where frames of Stable Diffusion match best (DIFT, Tang et al. 2023). denoising_steps: by which the future is
            drawn down to it. max_context, max_horizon: most observed and future frames; the published models learnt clips of 16.

    Raises:
        ValueError: see `LatentVideoBackbone`; or more frames than the layers have positions for.
    """

    attentions = ("sdpa", "xformers")

    def __init__(
        self,
        motion_adapter: MotionAdapter,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: DDIMScheduler,
        prompts: Prompts,
        *,
        taps: Sequence[str] = ("up_blocks.1", "up_blocks.2"),
        level: float = 0.261,
        denoising_steps: int = 4,
        max_context: int = 8,
        max_horizon: int = 8,
    ) -> None:
        check_seen(level)
        most = motion_adapter.config.motion_max_seq_length
        if max_context + max_horizon > most:
            raise ValueError(
                f"{max_context} observed and {max_horizon} future frames; this model has positions for {most}: lower max_context "
                f"or max_horizon"
            )
        widths, stride = unet.config.block_out_channels, 2 ** (len(vae.config.block_out_channels) - 1)
        shapes = [unet_tap(tap, widths) for tap in taps]
        super().__init__(
            UNetMotionModel.from_unet2d(unet, motion_adapter), vae,
            process=DdpmProcess(scheduler.alphas_cumprod, scheduler.config.prediction_type), taps=taps,
            channels=[c for c, _ in shapes], strides=[stride * s for _, s in shapes], level=level, denoising_steps=denoising_steps,
            ratio=1, contexts=(1, max_context), max_horizon=max_horizon, size_multiple=stride * 2 ** (len(widths) - 1),
        )  # fmt: skip
        self.prompts = prompts

    @classmethod
    def from_pretrained(cls, source: str, *, base: str = BASE, dtype: str = "float32", **options: Any) -> Self:
        """See `LatentVideoBackbone.from_pretrained`.

        Args:
            source, revision: of the layers along time. base: hub id or local folder of the model that carries them.
        """
        cls.check_choices(**options)
        return super().from_pretrained(source, dtype=dtype, **cls.load_base(Source(base, dtype=dtype)), **options)

    @classmethod
    def load_parts(cls, source: Source) -> dict[str, Any]:
        return {"motion_adapter": load_part(MotionAdapter, source)}

    @classmethod
    def load_base(cls, source: Source) -> dict[str, Any]:
        """The constructor's arguments by name that come from the model that carries the layers."""
        tokenizer: Any = load_part(CLIPTokenizer, source, "tokenizer")
        encoder = load_part(CLIPTextModel, source, "text_encoder")
        return {
            "unet": load_part(UNet2DConditionModel, source, "unet"),
            "vae": load_vae(AutoencoderKL, source),
            # the layers along time were trained with other noise than the model that carries them
            "scheduler": load_part(DDIMScheduler, source, "scheduler", beta_schedule="linear"),
            "prompts": Prompts.by_encoder(tokenizer, encoder, tokenizer.model_max_length),
        }

    def encode(self, frames: Tensor) -> Tensor:
        modes = self.vae.encode(frames.flatten(0, 1).to(self.vae.dtype)).latent_dist.mode()
        return modes.unflatten(0, (len(frames), -1)).transpose(1, 2) * self.vae.config.scaling_factor

    def condition(self, past: Tensor, latents: Tensor, timeline: Timeline, prompts: list[str] | None) -> dict[str, Tensor]:
        return self.prompts(prompts, len(past), past.device)

    def denoise(self, x: Tensor, time: Tensor, condition: dict[str, Tensor]) -> Tensor:
        x = x.to(self.denoiser.dtype)
        text = condition["text"].to(x.dtype).repeat_interleave(x.shape[2], 0)
        return self.denoiser(x, time[:, 0], text, return_dict=False)[0]

    def tap_map(self, output: Tensor, b: int, grid: tuple[int, int, int]) -> Tensor:
        return output.unflatten(0, (b, -1))
