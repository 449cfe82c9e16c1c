"""Layers and filters that are shared."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from para_video.features import sinusoid


def places(h: int, w: int, dim: int, device: torch.device | None = None) -> Tensor:
    """(h * w, dim) sinusoids of the rows and columns of a map, row by row."""
    rows, columns = (sinusoid(torch.arange(n, device=device), dim // 2) for n in (h, w))
    return torch.cat([rows[:, None].expand(h, w, -1), columns[None].expand(h, w, -1)], -1).flatten(0, 1)


def gaussian_blur(maps: Tensor, sigma: float) -> Tensor:
    """Maps (n, c, h, w) under a Gaussian of so many cells; beyond their border there is nothing.

    As two products with banded matrices, which cost a CPU a tenth of what convolutions with one channel a group do.
    """
    reach = math.ceil(3 * sigma)
    whole = torch.exp(-torch.arange(-reach, reach + 1).to(maps).square() / (2 * sigma**2)).sum()

    def band(cells: int) -> Tensor:
        axis = torch.arange(cells).to(maps)
        away = axis[:, None] - axis
        return torch.exp(-away.square() / (2 * sigma**2)).where(away.abs() <= reach, 0.0) / whole

    return band(maps.shape[-2]) @ maps @ band(maps.shape[-1])


class TokenBlock(nn.Module):
    """Pre-norm transformer block along the last but one dimension of tokens (p, n, c).

    Scores are written out as products: for rows this short, fused attention costs several times as much on a CPU.
    """

    def __init__(self, channels: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, ratio * channels), nn.SiLU(), nn.Linear(ratio * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        x = x + self.out((scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))
