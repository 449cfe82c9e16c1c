"""SigLIP (Zhai et al. 2023) and SigLIP 2 (Tschannen et al. 2025): image encoders that learnt from captions.

The published SigLIP 2 models of one size are SigLIP's network with other weights; those called NaFlex take images of any shape as
lists of patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Siglip2VisionModel, SiglipVisionModel

from backbones.encoders import HALF, ImageBackbone, side


class SiglipBackbone(ImageBackbone):
    """SigLIP's image encoder, and SigLIP 2's of one size.

    Args:
        model: the encoder. taps: `encoder.layers.i`, or `post_layernorm`, the one after the last block; None for the last block but
            one, which vision-language models read for where things are (OpenVLA, Kim et al. 2024).
        scale: see `EncoderBackbone`. max_context: most observed frames.

    Raises:
        ValueError: see `EncoderBackbone`.
    """

    kind = SiglipVisionModel
    blocks, norm = "encoder.layers", "post_layernorm"
    lora_layers = ("q_proj", "k_proj", "v_proj", "out_proj")
    mean, std = HALF, HALF

    def __init__(
        self,
        model: SiglipVisionModel | Siglip2VisionModel,
        *,
        taps: Sequence[str] | None = None,
        scale: float = 1.0,
        max_context: int = 16,
    ) -> None:
        super().__init__(
            model, taps=taps or [f"{self.blocks}.{model.config.num_hidden_layers - 2}"], multiple=side(model.config.patch_size),
            scale=scale, max_context=max_context,
        )  # fmt: skip

    def run(self, frames: Tensor, grid: tuple[int, int, int]) -> None:
        self.model(frames.flatten(0, 1), interpolate_pos_encoding=True)


class Siglip2NaFlexBackbone(SiglipBackbone):
    """SigLIP 2's NaFlex encoder. Arguments and errors as of `SiglipBackbone`."""

    kind = Siglip2VisionModel

    def run(self, frames: Tensor, grid: tuple[int, int, int]) -> None:
        h, w = grid[1:]
        n, patch = frames.shape[0] * frames.shape[1], side(self.model.config.patch_size)
        cells = frames.flatten(0, 1).unflatten(-1, (w, patch)).unflatten(-3, (h, patch))  # (n, 3, h, p, w, p)
        patches = cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        shown = torch.ones(patches.shape[:2], dtype=torch.long, device=frames.device)
        self.model(patches, shown, torch.tensor([[h, w]] * n, device=frames.device))
