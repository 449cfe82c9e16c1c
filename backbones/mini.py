"""`mini`: a small generative video predictor made for two CPU cores.

A spatio-temporal U-Net over pixels: convolutions work inside frames, attention at the coarsest scale mixes space and time. It is
trained by flow matching (Lipman et al. 2023) to denoise future frames given observed ones. With signal z, noise n and level
sigma in [0, 1] a future frame is x = (1 - sigma) z + sigma n. The network sees (1 - sigma) x, so that at sigma = 1 nothing of the
future reaches it and its features are deterministic: that is the level at which features are read. Its output F gives the
velocity v = x - (last observed frame + F), so F at sigma = 1 is the expected change of the frame.
"""

from __future__ import annotations

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


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with a residual; the second is modulated by an embedding (b, d) when one is given."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, embedding: int = 0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.norm1 = ChannelNorm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.norm2 = ChannelNorm(outputs)
        self.modulate = nn.Linear(embedding, 2 * outputs) if embedding else None
        self.skip = nn.Conv2d(inputs, outputs, 1, stride) if inputs != outputs or stride > 1 else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.norm1(self.conv1(x))
        if self.modulate is not None:
            scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, 1)
            h = h * (1 + scale) + shift
        return F.silu(self.norm2(self.conv2(F.silu(h))) + self.skip(x))


class TokenBlock(nn.Module):
    """Pre-norm transformer block on tokens (b, s, n, c): attention inside each frame, attention of each cell through time, MLP.

    Factorised (Bertasius et al. 2021, divided space-time attention). Scores are written out as products: for rows this
    short, fused attention costs several times as much on a CPU.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.qkv = nn.ModuleList(nn.Linear(channels, 3 * channels) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(channels, channels) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def _attention(self, x: Tensor, which: int) -> Tensor:
        """Attention along the last but one dimension of (p, q, n, c)."""
        q, k, v = self.qkv[which](self.norms[which](x)).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return self.out[which]((scores.softmax(-1).to(v.dtype) @ v).transpose(-2, -3).flatten(-2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attention(x, 0)
        x = x + self._attention(x.transpose(1, 2), 1).transpose(1, 2)
        return x + self.mlp(self.norms[2](x))


class MiniVideo(VideoBackbone):
    """The embedded default backbone. See the module's text for the process it models.

    Args:
        width: channels at stride 4; twice that at stride 8 and four times at stride 16.
        channels: of the maps it gives, at stride 4.
        depth: attention blocks at stride 16.
        max_context: most observed frames. max_horizon: most future frames.
    """

    def __init__(
        self, width: int = 32, channels: int = 64, depth: int = 2, heads: int = 4, max_context: int = 8, max_horizon: int = 16
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
        self.down1, self.down2, self.down3 = ConvBlock(c, c), ConvBlock(c, 2 * c, 2), ConvBlock(2 * c, 4 * c, 2)
        self.embed = nn.Sequential(nn.Linear(2 * e, e), nn.SiLU(), nn.Linear(e, e))
        self.blocks = nn.ModuleList(TokenBlock(4 * c, heads) for _ in range(depth))
        self.up2, self.up1 = ConvBlock(6 * c, 2 * c, embedding=e), ConvBlock(3 * c, c, embedding=e)
        self.to_map = nn.Conv2d(c, channels, 1)
        self.to_frame = nn.Conv2d(channels, 3 * STRIDE**2, 1)
        nn.init.zeros_(self.to_frame.weight)
        nn.init.zeros_(self.to_frame.bias)
        self.to(memory_format=torch.channels_last)

    # ---------------------------------------------------------------- the network

    def _encode(self, frames: Tensor, last: Tensor, future: bool) -> list[Tensor]:
        """Frames (n, 3, H, W) in [-1, 1], each beside the last observed one, to maps at strides 4, 8 and 16."""
        stem = self.stem(frames.contiguous(memory_format=torch.channels_last))
        stem = stem + self.stem_last(last.contiguous(memory_format=torch.channels_last))
        if future:
            stem = stem + self.is_future[:, None, None]
        fine = self.down1(F.silu(stem))
        middle = self.down2(fine)
        return [fine, middle, self.down3(middle)]

    def _maps(self, observed: Tensor, scaled_future: Tensor | None, horizon: int, sigma: Tensor) -> Tensor:
        """Maps (b, t + horizon, c, h, w). scaled_future (b, horizon, 3, H, W) is (1 - sigma) x, or None where sigma is 1: the
        future frames then all look alike to the encoder, and one of them stands for all."""
        b, t = observed.shape[:2]
        s = t + horizon
        last = observed[:, -1:]
        levels = [self._encode(observed.flatten(0, 1), last.expand(-1, t, -1, -1, -1).flatten(0, 1), future=False)]
        if horizon:
            future = torch.zeros_like(last) if scaled_future is None else scaled_future
            n = future.shape[1]
            levels.append(self._encode(future.flatten(0, 1), last.expand(-1, n, -1, -1, -1).flatten(0, 1), future=True))
        fine, middle, coarse = (self._join(parts, b, t, horizon) for parts in zip(*levels, strict=True))
        times = torch.arange(s, device=observed.device) - (t - 1.0)
        level = torch.where(times > 0, sigma[:, None], torch.zeros_like(sigma)[:, None])
        dim = self.embed[0].in_features // 2
        embedding = self.embed(torch.cat([sinusoid(times, dim).expand(b, s, dim), sinusoid(level * 32, dim)], -1)).flatten(0, 1)
        coarse = self._attend(coarse, embedding, b, s)
        up = lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)  # noqa: E731
        h = self.up2(torch.cat([up(coarse), middle], 1), embedding)
        h = self.up1(torch.cat([up(h), fine], 1), embedding)
        return self.to_map(h).unflatten(0, (b, s))

    @staticmethod
    def _join(parts: tuple[Tensor, ...], b: int, t: int, horizon: int) -> Tensor:
        """Per-frame maps of observed and future frames, (b * (t + horizon), c, h, w); a single future one is shared by all."""
        maps = parts[0]
        if horizon:
            future = parts[1].unflatten(0, (b, -1)).expand(-1, horizon, -1, -1, -1)
            maps = torch.cat([maps.unflatten(0, (b, t)), future], 1).flatten(0, 1)
        return maps.contiguous(memory_format=torch.channels_last)

    def _attend(self, coarse: Tensor, embedding: Tensor, b: int, s: int) -> Tensor:
        """Attention in space and time at the coarsest scale."""
        c, h, w = coarse.shape[1:]
        quarter = c // 2
        rows = sinusoid(torch.arange(h, device=coarse.device), quarter)[:, None].expand(h, w, quarter)
        columns = sinusoid(torch.arange(w, device=coarse.device), quarter)[None].expand(h, w, quarter)
        place = torch.cat([rows, columns], -1)
        tokens = coarse.permute(0, 2, 3, 1) + place.to(coarse.dtype) + embedding[:, None, None].to(coarse.dtype)
        tokens = tokens.reshape(b, s, h * w, c)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.reshape(b * s, h, w, c).permute(0, 3, 1, 2)

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
