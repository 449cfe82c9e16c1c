"""Stable Video Diffusion (Blattmann et al. 2023): a video U-Net that continues a first frame.

The published PARA recipe reads `up_blocks.1` and `up_blocks.2` of it, one map a frame. The first frame conditions it through CLIP
and, unscaled, through the channels beside the noise, as in diffusers' pipeline_stable_video_diffusion.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from backbones.clip import clip_pixels
from backbones.latent import EdmProcess, LatentVideoBackbone, Timeline, check_all_seen
from backbones.loading import Source, load_part, load_vae
from para_video.features import did_you_mean

MOTION_BUCKET = 127.0


class SvdBackbone(LatentVideoBackbone):
    """Stable Video Diffusion's U-Net.

    Args:
        unet, vae, image_encoder: its parts. taps: of the U-Net's blocks: down_blocks.i, mid_block, up_blocks.i.
        level: sigma, at most 700. denoising_steps: by which the future is drawn down to it. max_context: most observed frames;
            by default 8, and the one that there can be at the highest level, which drowns all but the first in noise. max_horizon:
            most future frames; the published models learnt clips of 14 and 25 in all. fps: of the clips, as they are told.

    Raises:
        ValueError: see `LatentVideoBackbone`; a level at which not all observed frames would be seen.
    """

    image_encoder: Any
    attentions = ("sdpa", "xformers")
    hears_text = False

    def __init__(
        self,
        unet: UNetSpatioTemporalConditionModel,
        vae: AutoencoderKLTemporalDecoder,
        image_encoder: CLIPVisionModelWithProjection,
        *,
        taps: Sequence[str] = ("up_blocks.1", "up_blocks.2"),
        level: float | None = None,
        denoising_steps: int = 1,
        max_context: int | None = None,
        max_horizon: int = 13,
        fps: int = 7,
    ) -> None:
        process = EdmProcess()
        max_context = max_context if max_context is not None else 1 if level in (None, process.top) else 8
        check_all_seen(level, process.top, max_context)
        widths, stride = unet.config.block_out_channels, 2 ** (len(vae.config.block_out_channels) - 1)
        shapes = [unet_tap(tap, widths) for tap in taps]
        super().__init__(
            unet, vae, process=process, taps=taps, channels=[c for c, _ in shapes], strides=[stride * s for _, s in shapes],
            level=level, denoising_steps=denoising_steps, ratio=1, contexts=(1, max_context), max_horizon=max_horizon,
            size_multiple=stride * 2 ** (len(widths) - 1),
        )  # fmt: skip
        self.image_encoder, self.fps = image_encoder.requires_grad_(False).eval(), fps

    @classmethod
    def load_parts(cls, source: Source) -> dict[str, Any]:
        return {
            "unet": load_part(UNetSpatioTemporalConditionModel, source, "unet"),
            "vae": load_vae(AutoencoderKLTemporalDecoder, source),
            "image_encoder": load_part(CLIPVisionModelWithProjection, source, "image_encoder"),
        }

    def encode(self, frames: Tensor) -> Tensor:
        return self._modes(frames) * self.vae.config.scaling_factor

    def _modes(self, frames: Tensor) -> Tensor:
        """Unscaled latents, frame by frame."""
        b = len(frames)
        return self.vae.encode(frames.flatten(0, 1).to(self.vae.dtype)).latent_dist.mode().unflatten(0, (b, -1)).transpose(1, 2)

    def condition(self, past: Tensor, latents: Tensor, timeline: Timeline, prompts: list[str] | None) -> dict[str, Tensor]:
        first, n = past[:, 0], timeline.past + timeline.future
        told = first.new_tensor([self.fps - 1, MOTION_BUCKET, 0.0]).expand(len(first), -1)
        beside = latents[:, :, :1] / self.vae.config.scaling_factor
        return {"image": self._seen_by_clip(first), "beside": beside.expand(-1, -1, n, -1, -1), "added_time_ids": told}

    def _seen_by_clip(self, frame: Tensor) -> Tensor:
        """(b, 1, d) embedding of frames (b, 3, H, W) in [-1, 1]."""
        pixels = clip_pixels(frame, self.image_encoder.config.image_size)
        return self.image_encoder(pixels.to(self.image_encoder.dtype)).image_embeds[:, None]

    def denoise(self, x: Tensor, time: Tensor, condition: dict[str, Tensor]) -> Tensor:
        sample = torch.cat([x, condition["beside"]], 1).transpose(1, 2).to(self.denoiser.dtype)
        told = {"encoder_hidden_states": condition["image"], "added_time_ids": condition["added_time_ids"]}
        told = {name: value.to(sample.dtype) for name, value in told.items()}
        return self.denoiser(sample, time[:, 0], **told, return_dict=False)[0].transpose(1, 2)

    def tap_map(self, output: Tensor, b: int, grid: tuple[int, int, int]) -> Tensor:
        return output.unflatten(0, (b, -1))


def unet_tap(tap: str, widths: Sequence[int]) -> tuple[int, int]:
    """Channels of a block's output, and its stride in latent cells. An up block ends in an upsampling, but the last.

    Raises:
        ValueError: no such block.
    """
    kind, _, index = tap.partition(".")
    n = len(widths)
    if tap == "mid_block":
        return widths[-1], 2 ** (n - 1)
    if kind not in ("down_blocks", "up_blocks") or not index.isdigit() or int(index) >= n:
        known = ["mid_block", *(f"{part}_blocks.{i}" for part in ("down", "up") for i in range(n))]
        choices = f"mid_block, down_blocks.0-{n - 1}, up_blocks.0-{n - 1}"
        raise ValueError(f"unknown tap {tap!r}; choose from {choices}{did_you_mean([tap], known)}")
    i = int(index)
    if kind == "down_blocks":
        return widths[i], 2 ** min(i + 1, n - 1)
    return widths[n - 1 - i], 2 ** max(n - 2 - i, 0)
