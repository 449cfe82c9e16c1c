"""`mini`: a small generative video predictor made for two CPU cores.

A spatio-temporal U-Net over pixels: convolutions work inside frames, attention at the coarsest scale mixes space and time. It is
trained by flow matching (Lipman et al. 2023) to denoise future frames given observed ones. With signal z, noise n and level
sigma in [0, 1] a future frame is x = (1 - sigma) z + sigma n. The network sees (1 - sigma) x, so that at sigma = 1 nothing of the
future reaches it and its features are deterministic: that is the level at which features are read. Its output F gives the
velocity v = x - (last observed frame + F), so F at sigma = 1 is the expected change of the frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from para_video.features import FeatureSpec, VideoBackbone, VideoFeatures, sinusoid, stride_affine

STRIDE = 4


class ChannelNorm(nn.Module):
    """LayerNorm over channels of (b, c, h, w), in the input's precision: on channels_last CPU tensors the fastest norm there is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            last = x.permute(0, 2, 3, 1)
            out = F.layer_norm(last, last.shape[-1:], self.weight.to(x.dtype), self.bias.to(x.dtype))
        return out.permute(0, 3, 1, 2)


class DownBlock(nn.Module):
    """Two 3x3 convolutions with a residual."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1), ChannelNorm(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1), ChannelNorm(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride) if inputs != outputs or stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.norm1(self.conv1(x)))
        return F.silu(self.norm2(self.conv2(h)) + self.skip(x))


class UpBlock(nn.Module):
    """Joins the coarser map, upsampled, with the encoder's map of this scale.

    The two are added, not concatenated: the encoder's part is then convolved once for all frames that share it.
    """

    def __init__(self, below: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.from_below, self.from_skip = nn.Conv2d(below, outputs, 1), nn.Conv2d(skip, outputs, 3, 1, 1)
        self.conv, self.norm = nn.Conv2d(outputs, outputs, 3, 1, 1), ChannelNorm(outputs)

    def forward(self, below: Tensor, skip: Shared) -> Tensor:
        up = F.interpolate(self.from_below(below), scale_factor=2, mode="bilinear", align_corners=False)
        h = F.silu(up + skip.map(self.from_skip).frames())
        return F.silu(self.norm(self.conv(h)) + h)


@dataclass(frozen=True)
class Shared:
    """Per-frame maps of b clips: observed (b * t, c, h, w), and future (b * n, c, h, w), where n is the horizon, or 1 for one map
    that all future frames share, or future is None."""

    observed: Tensor
    future: Tensor | None
    b: int
    horizon: int

    def map(self, layer: Callable[[Tensor], Tensor]) -> Shared:
        """The layer applied to each distinct map once."""
        return replace(self, observed=layer(self.observed), future=None if self.future is None else layer(self.future))

    def frames(self) -> Tensor:
        """(b * (t + horizon), c, h, w)."""
        if self.future is None:
            return self.observed
        future = self.future.unflatten(0, (self.b, -1)).expand(-1, self.horizon, -1, -1, -1)
        return torch.cat([self.observed.unflatten(0, (self.b, -1)), future], 1).flatten(0, 1)


class TokenBlock(nn.Module):
    """Pre-norm transformer block along the last but one dimension of tokens (p, n, c).

    Scores are written out as products: for rows this short, fused attention costs several times as much on a CPU.
    """

    def __init__(self, channels: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, ratio * channels), nn.GELU(), nn.Linear(ratio * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        x = x + self.out((scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class MiniVideo(VideoBackbone):
    """The embedded default backbone. See the module's text for the process it models.

    Args:
        width: channels at stride 4; twice that at stride 8 and four times at stride 16.
        channels: of the maps it gives, at stride 4.
        depth: attention blocks inside frames, at stride 16; one through time follows.
        max_context: most observed frames. max_horizon: most future frames.
    """

    def __init__(
        self, width: int = 32, channels: int = 48, depth: int = 2, heads: int = 4, max_context: int = 8, max_horizon: int = 16
    ) -> None:
        super().__init__()
        self.spec = FeatureSpec(
            channels, STRIDE, span=1, predicts=True, contexts=(1, max_context), max_horizon=max_horizon, size_multiple=16,
            generative=True,
        )  # fmt: skip
        c, e = width, 4 * width
        self.stem = nn.Conv2d(3, c, 6, STRIDE, 1)
        self.stem_last = nn.Conv2d(3, c, 6, STRIDE, 1)
        self.is_future = nn.Parameter(torch.randn(c) * 0.02)
        self.down1, self.down2, self.down3 = DownBlock(c, c), DownBlock(c, 2 * c, 2), DownBlock(2 * c, 4 * c, 2)
        self.embed = nn.Sequential(nn.Linear(2 * e, e), nn.SiLU(), nn.Linear(e, e))
        self.space = nn.Sequential(*(TokenBlock(4 * c, heads, 4) for _ in range(depth)))
        self.time = TokenBlock(4 * c, heads, 2)
        self.up2, self.up1 = UpBlock(4 * c, 2 * c, 2 * c), UpBlock(2 * c, c, channels)
        self.to_frame = nn.Conv2d(channels, 3 * STRIDE**2, 1)
        nn.init.zeros_(self.to_frame.weight)
        nn.init.zeros_(self.to_frame.bias)
        self.to(memory_format=torch.channels_last)

    # ---------------------------------------------------------------- the network

    def _stem(self, frames: Tensor, last: Tensor) -> Tensor:
        """Frames (b, n, 3, H, W) in [-1, 1], each beside the last observed one (b, 3, H, W), to (b * n, c, h, w) at stride 4."""
        each = self.stem(frames.flatten(0, 1).contiguous(memory_format=torch.channels_last))
        beside = self.stem_last(last.contiguous(memory_format=torch.channels_last))
        return (each.unflatten(0, frames.shape[:2]) + beside[:, None]).flatten(0, 1)

    def _maps(self, observed: Tensor, scaled_future: Tensor | None, horizon: int, sigma: Tensor) -> Tensor:
        """Maps (b, t + horizon, c, h, w). scaled_future (b, horizon, 3, H, W) is (1 - sigma) x, or None where sigma is 1: the
        future frames then all look alike to the encoder, and one of them stands for all."""
        b, t = observed.shape[:2]
        last, future = observed[:, -1], None
        if horizon:
            future = torch.zeros_like(observed[:, -1:]) if scaled_future is None else scaled_future
            future = self._stem(future, last) + self.is_future[:, None, None]
        stem = Shared(self._stem(observed, last), future, b, horizon)
        fine = stem.map(F.silu).map(self.down1)
        middle = fine.map(self.down2)
        coarse = middle.map(self.down3).map(self._through_space).frames()
        coarse = self._through_time(coarse.unflatten(0, (b, t + horizon)), self._embedding(t, horizon, sigma))
        return self.up1(self.up2(coarse, middle), fine).unflatten(0, (b, t + horizon))

    def _embedding(self, t: int, horizon: int, sigma: Tensor) -> Tensor:
        """(b, t + horizon, e) of each frame's time and noise level; observed frames are clean."""
        times = torch.arange(t + horizon, device=sigma.device) - (t - 1.0)
        level = sigma[:, None] * (times > 0)
        dim = self.embed[0].in_features // 2
        known = torch.cat([sinusoid(times, dim).expand(*level.shape, dim), sinusoid(level * 32, dim)], -1)
        return self.embed(known)

    def _through_space(self, coarse: Tensor) -> Tensor:
        """Attention inside each frame, (n, c, h, w)."""
        c, h, w = coarse.shape[1:]
        rows = sinusoid(torch.arange(h, device=coarse.device), c // 2)[:, None].expand(h, w, -1)
        columns = sinusoid(torch.arange(w, device=coarse.device), c // 2)[None].expand(h, w, -1)
        tokens = coarse.permute(0, 2, 3, 1) + torch.cat([rows, columns], -1).to(coarse.dtype)
        return self.space(tokens.flatten(1, 2)).unflatten(1, (h, w)).permute(0, 3, 1, 2)

    def _through_time(self, coarse: Tensor, embedding: Tensor) -> Tensor:
        """Attention of each cell through the frames, (b, s, c, h, w) with an embedding (b, s, c); gives (b * s, c, h, w)."""
        b, s, _, h, w = coarse.shape
        tokens = coarse.permute(0, 3, 4, 1, 2) + embedding[:, None, None].to(coarse.dtype)
        tokens = self.time(tokens.flatten(0, 2))
        return tokens.view(b, h, w, s, -1).permute(0, 3, 4, 1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)

    # ---------------------------------------------------------------- the contract

    def features(
        self, video: Tensor, *, horizon: int = 0, prompts: list[str] | None = None, generator: torch.Generator | None = None
    ) -> VideoFeatures:
        """See `VideoBackbone.features`. Deterministic: no noise is drawn; prompts are ignored."""
        self.spec.check(video, horizon)
        maps = self._maps(video * 2 - 1, None, horizon, video.new_ones(len(video)))
        return self._wrap(maps, video.shape[1])

    def _wrap(self, maps: Tensor, observed: int) -> VideoFeatures:
        times = torch.arange(maps.shape[1], device=maps.device) - (observed - 1.0)
        return VideoFeatures(maps, times, times[:, None].expand(-1, 2), stride_affine(STRIDE, device=maps.device))

    def joint(
        self, clip: Tensor, observed: int, *, prompts: list[str] | None = None, generator: torch.Generator | None = None
    ) -> tuple[VideoFeatures, Tensor]:
        """See `VideoBackbone.joint`. The batch goes through once at sigma = 1, where features are read and the loss teaches the
        expected future, and once at a random sigma, where the loss teaches denoising; both in one forward."""
        b, horizon = len(clip), clip.shape[1] - observed
        self.spec.check(clip[:, :observed], horizon)
        if horizon < 1:
            raise ValueError(f"joint needs future frames: {clip.shape[1]} frames of which {observed} are observed")
        frames = clip * 2 - 1
        past, future = (part.repeat(2, 1, 1, 1, 1) for part in (frames[:, :observed], frames[:, observed:]))
        # logit-normal levels put the training where denoising is hard (Esser et al. 2024)
        drawn = torch.randn(b, device=clip.device, generator=generator).sigmoid()
        sigma = torch.cat([torch.ones_like(drawn), drawn])
        noise = torch.randn(future.shape, device=clip.device, generator=generator)
        level = sigma[:, None, None, None, None]
        noisy = (1 - level) * future + level * noise
        maps = self._maps(past, (1 - level) * noisy, horizon, sigma)
        velocity = noisy - past[:, -1:] - self._frames(maps[:, observed:])
        loss = F.mse_loss(velocity.float(), noise - future)
        return self._wrap(maps[:b], observed), loss

    def _frames(self, maps: Tensor) -> Tensor:
        """(b, s, c, h, w) maps to (b, s, 3, H, W) frame changes."""
        return F.pixel_shuffle(self.to_frame(F.silu(maps.flatten(0, 1))), STRIDE).unflatten(0, maps.shape[:2])

    @torch.no_grad()
    def sample(self, video: Tensor, horizon: int, *, steps: int = 10, generator: torch.Generator | None = None) -> Tensor:
        """Draw future frames (b, horizon, 3, H, W) in [0, 1] by Euler steps of the flow from noise to signal."""
        self.spec.check(video, horizon)
        if horizon < 1 or steps < 1:
            raise ValueError(f"sample wants horizon >= 1 and steps >= 1, got {horizon} and {steps}")
        past = video * 2 - 1
        x = torch.randn(len(video), horizon, *video.shape[2:], device=video.device, generator=generator)
        levels = torch.linspace(1, 0, steps + 1).tolist()
        for now, after in zip(levels[:-1], levels[1:], strict=True):
            maps = self._maps(past, (1 - now) * x, horizon, x.new_full((len(x),), now))
            velocity = x - past[:, -1:] - self._frames(maps[:, video.shape[1] :]).float()
            x = x + (after - now) * velocity
        return ((x + 1) / 2).clamp(0, 1)
