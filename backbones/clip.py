"""Frames as CLIP's image encoders take them (Radford et al. 2021)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def clip_pixels(frames: Tensor, side: int) -> Tensor:
    """(b, 3, side, side) of frames (b, 3, H, W) in [-1, 1], the whole of each squeezed into the square."""
    small = F.interpolate(frames.float(), (side, side), mode="bicubic", antialias=True, align_corners=False)
    mean, std = (small.new_tensor(values)[:, None, None] for values in (MEAN, STD))
    return ((small + 1) / 2 - mean) / std
