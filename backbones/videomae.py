"""VideoMAE (Tong et al. 2022): a video transformer that learnt to fill in masked patches of clips."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import VideoMAEModel

from backbones.encoders import EncoderBackbone, side, token_maps


class VideoMaeBackbone(EncoderBackbone):
    """VideoMAE's encoder. Where an image does not fill the model's square, the patches beside it are masked, as in its training.

    Args:
        model: the encoder. taps: `encoder.layer.i` or, in models that have it, `layernorm`; None for the block at three quarters of
            the depth, since the last ones prepare what comes after them. scale: see `EncoderBackbone`.

    Raises:
        ValueError: see `EncoderBackbone`.
    """

    kind = VideoMAEModel
    lora_layers = ("query", "key", "value", "attention.output.dense")

    def __init__(self, model: VideoMAEModel, *, taps: Sequence[str] | None = None, scale: float = 1.0) -> None:
        config, size = model.config, side(model.config.image_size)
        self.row = size // side(config.patch_size)
        super().__init__(
            model, taps=taps or [f"encoder.layer.{3 * config.num_hidden_layers // 4 - 1}"], contexts=(1, config.num_frames),
            clip=config.num_frames, span=config.tubelet_size, multiple=size, most=size, scale=scale,
        )  # fmt: skip

    def run(self, frames: Tensor, grid: tuple[int, int, int]) -> None:
        s, h, w = grid
        masked = torch.ones(len(frames), s, self.row, self.row, dtype=torch.bool, device=frames.device)
        masked[:, :, :h, :w] = False
        self.model(frames, masked.flatten(1) if masked.any() else None)

    def tap_map(self, output: Tensor, b: int, grid: tuple[int, int, int]) -> Tensor:
        return token_maps(output, grid)
