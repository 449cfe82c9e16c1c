"""`mini`: a small generative video predictor made for two CPU cores.

A spatio-temporal U-Net over pixels: convolutions work inside frames, attention at the coarsest scale mixes space and time. It is
trained by flow matching (Lipman et al. 2023) to denoise future frames given observed ones. With signal z, noise n and level
sigma in [0, 1] a future frame is x = (1 - sigma) z + sigma n. The network sees (1 - sigma) x, so that at sigma = 1 nothing of the
future reaches it and its features are deterministic: that is the level at which features are read. Its output is the expected
signal, from which the flow's velocity follows as v = (x - expected z) / sigma: a network that is narrow at its end could not carry
noise (Li and He 2025, "Back to basics: let denoising generative models denoise"). The signal is made of the last observed frame:
pulled along a field of displacements where a mask says so (as Finn et al. 2016, "Unsupervised learning for physical interaction
through video prediction"), plus what else changes. What rests is then no work, and features have to know what goes where.

Observed frames have a map each. Future frames share one by `tubelet`, as in the causal autoencoders of large video models: the
frames of a group are stacked as channels where they enter and where they leave.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from para_video.features import FeatureSpec, VideoBackbone, VideoFeatures, drawing_device, sinusoid, stride_affine
from para_video.layers import TokenBlock, places

STRIDE = 4
LEAST_LEVEL = 0.2
"""Errors at lower noise levels count as at this one."""
LEVEL_SHIFT = 4.0
"""Neighbouring pixels repeat each other, so that what moves where is still plain to see in much noise. Levels are therefore crowded
towards 1, in training and in sampling: sigma is s u / (1 + (s - 1) u) for a u as a small image would have it (Esser et al. 2024,
"Scaling rectified flow transformers", eq. 23)."""


REACH_PX = 8.0
"""Pixels of displacement that an output of one stands for."""


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
    """Maps of b clips: observed (b * t, c, h, w), and future (b * n, c, h, w), where n is `groups`, or 1 for one map that stands
    for all groups, or future is None."""

    observed: Tensor
    future: Tensor | None
    b: int
    groups: int

    def map(self, layer: Callable[[Tensor], Tensor]) -> Shared:
        """The layer applied to each distinct map once."""
        return replace(self, observed=layer(self.observed), future=None if self.future is None else layer(self.future))

    def frames(self) -> Tensor:
        """(b * (t + groups), c, h, w)."""
        if self.future is None:
            return self.observed
        # channels are put last for the while: what is joined keeps the memory's layout, or each layer after it would change it back
        observed, future = (part.permute(0, 2, 3, 1).unflatten(0, (self.b, -1)) for part in (self.observed, self.future))
        return torch.cat([observed, future.expand(-1, self.groups, -1, -1, -1)], 1).flatten(0, 1).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Decoded:
    """Maps (b * s, c, h, w) by scale, as far as they were computed, and what the encoder makes of each frame (and of the last one,
    and how it came about) before any attention, finest first."""

    encoded: tuple[Shared, Shared, Shared]
    coarse: Tensor | None = None
    middle: Tensor | None = None
    fine: Tensor | None = None

    def read(self, tap: str) -> Tensor:
        """The maps of a tap."""
        if tap == "encoder":
            return torch.cat([_spread(maps.frames(), 2**scale) for scale, maps in enumerate(self.encoded)], 1)
        if tap == "coarse":
            assert self.coarse is not None
            return _reaching_on(self.coarse)
        if tap != "joined":
            return getattr(self, tap)
        assert self.middle is not None and self.fine is not None
        return torch.cat([self.fine, self.encoded[0].frames(), _enlarged(self.middle, 2)], 1)


class MiniVideo(VideoBackbone):
    """The embedded default backbone. See the module's text for the process it models.

    Args:
        width: channels at stride 4; twice that at stride 8 and four times at stride 16.
        channels: of the maps it gives, at stride 4.
        depth: attention blocks inside frames, at stride 16; one through time follows.
        max_context: most observed frames. max_horizon: most future frames, of taps that have any. tubelet: future frames per map.
        tap: where features are read: "coarse" (stride 16, after attention), "middle" (8), "fine" (4), or "joined": fine, middle and
            what the encoder saw at the fine scale, for fine maps alone know what changes; or "encoder": what it saw at all three
            scales, before any attention, and so of observed frames alone: it predicts nothing. Later layers are left out where they
            are not needed to draw the future.
        level: the noise level that features are read at. Below 1 the future is first drawn down to it, in `denoising_steps` steps
            from the same noise for every clip.

    Raises:
        ValueError: an unknown tap, or a level outside (0, 1], or below 1 at a tap that reads no future.
    """

    CLEAN_TAPS = ("encoder",)

    def __init__(
        self,
        width: int = 32,
        channels: int = 32,
        depth: int = 2,
        heads: int = 4,
        max_context: int = 8,
        max_horizon: int = 18,
        tubelet: int = 3,
        *,
        tap: str = "joined",
        level: float = 1.0,
        denoising_steps: int = 1,
    ) -> None:
        super().__init__()
        taps = {
            "joined": (channels + 3 * width, STRIDE), "encoder": (7 * width, STRIDE), "fine": (channels, STRIDE),
            "middle": (2 * width, 2 * STRIDE), "coarse": (4 * width, 4 * STRIDE),
        }  # fmt: skip
        if tap not in taps or not 0 < level <= 1 or denoising_steps < 1:
            raise ValueError(
                f"tap must be one of {list(taps)}, 0 < level <= 1, denoising_steps >= 1; got {tap!r}, {level}, {denoising_steps}"
            )
        if tap in self.CLEAN_TAPS:
            if level < 1:
                raise ValueError(
                    f"tap {tap!r} reads no future that could be drawn down to level {level}; leave level at 1, or name another tap"
                )
            max_horizon = 0
        self.tap, self.level, self.denoising_steps = tap, level, denoising_steps
        self.spec = FeatureSpec(
            *taps[tap], span=tubelet if max_horizon else 1, predicts=max_horizon > 0, contexts=(1, max_context),
            max_horizon=max_horizon, size_multiple=16, generative=max_horizon >= tubelet,
        )  # fmt: skip
        c, e = width, 4 * width
        self.tubelet, self.embedding_dim = tubelet, e
        self.stem = nn.Conv2d(3, c, 6, STRIDE, 1)
        self.stem_last = nn.Conv2d(3, c, 6, STRIDE, 1)
        self.stem_motion = nn.Conv2d(3 * (max_context - 1), c, 6, STRIDE, 1, bias=False)
        self.stem_future = nn.Conv2d(3 * tubelet, c, 6, STRIDE, 1)
        self.down1, self.down2, self.down3 = DownBlock(c, c), DownBlock(c, 2 * c, 2), DownBlock(2 * c, 4 * c, 2)
        self.embed = nn.Sequential(nn.Linear(2 * e, e), nn.SiLU(), nn.Linear(e, e))
        self.space = nn.Sequential(*(TokenBlock(4 * c, heads, 4) for _ in range(depth)))
        self.time = TokenBlock(4 * c, heads, 2)
        self.up2, self.up1 = UpBlock(4 * c, 2 * c, 2 * c), UpBlock(2 * c, c, channels)
        self.to_frame = nn.Sequential(
            nn.Conv2d(channels, 4 * channels, 1), nn.SiLU(), nn.Conv2d(4 * channels, tubelet * (4 * STRIDE**2 + 2), 1)
        )
        for parameter in self.to_frame[2].parameters():
            nn.init.zeros_(parameter)  # the last frame, as it is
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack memory_format
        if tap in self.CLEAN_TAPS:
            super().requires_grad_(False)
            self.requires_grad_()

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Of what the maps are made of."""
        if self.tap not in self.CLEAN_TAPS:
            return super().requires_grad_(requires_grad)
        for part in (self.stem, self.stem_last, self.stem_motion, self.down1, self.down2, self.down3):
            part.requires_grad_(requires_grad)
        return self

    @torch.no_grad()
    def shorten(self) -> None:
        """Scale convolutions that a norm follows back to about the length of fresh ones; but for the norms' epsilon, what the
        network computes stays the same.

        Training lengthens them, as only their direction counts (van Laarhoven 2017, "L2 regularization versus batch and weight
        normalization"), and the longer they are, the less a step of the same size turns them: fine-tuning would be slow. Factors
        are powers of two, which round nothing in any precision.
        """
        blocks = (self.down1, self.down2, self.down3)
        followed = [conv for block in blocks for conv in (block.conv1, block.conv2)] + [self.up1.conv, self.up2.conv]
        for conv in followed:
            assert conv.bias is not None  # made with one
            fresh = math.sqrt(conv.out_channels / 3)  # of weights between -1 and 1 over the root of the inputs' number
            factor = 2.0 ** round(math.log2(fresh / float(conv.weight.norm())))
            conv.weight *= factor
            conv.bias *= factor

    # ---------------------------------------------------------------- the network

    def _maps(
        self,
        observed: Tensor,
        scaled_future: Tensor | None,
        groups: int,
        sigma: Tensor,
        shown: int | None = None,
        tap: str = "fine",
    ) -> Decoded:
        """Maps of the last `shown` (default all) of observed (b, t, 3, H, W), and of groups of future frames, as a tap needs them.
        scaled_future (b, groups, 3 * tubelet, H, W) is (1 - sigma) x, or None where sigma is 1: all groups then look alike to the
        encoder, and one stands for all."""
        b, t = observed.shape[:2]
        beside = _conv(self.stem_last, observed[:, -1])  # every map sees the present, and how it came about
        if t > 1:
            motion = observed.diff(dim=1).flip(1).flatten(1, 2).contiguous(memory_format=torch.channels_last)  # latest change first
            beside = beside + F.conv2d(motion, self.stem_motion.weight[:, : motion.shape[1]], stride=STRIDE, padding=1)
        t = shown or t
        stem, future = _conv(self.stem, observed[:, -t:].flatten(0, 1)) + beside.repeat_interleave(t, 0), None
        if groups and scaled_future is not None:
            future = _conv(self.stem_future, scaled_future.flatten(0, 1)) + beside.repeat_interleave(groups, 0)
        elif groups:
            assert self.stem_future.bias is not None  # made with one
            future = beside + self.stem_future.bias[:, None, None]
        fine = Shared(stem, future, b, groups).map(F.silu).map(self.down1)
        middle = fine.map(self.down2)
        deep = middle.map(self.down3)
        encoded = (fine, middle, deep)
        if tap == "encoder":
            return Decoded(encoded)
        coarse = deep.map(self._through_space).frames()
        coarse = self._through_time(coarse.unflatten(0, (b, t + groups)), self._embedding(t, groups, sigma))
        if tap == "coarse":
            return Decoded(encoded, coarse)
        between = self.up2(coarse, middle)
        return Decoded(encoded, coarse, between, None if tap == "middle" else self.up1(between, fine))

    def _times(self, t: int, groups: int, device: torch.device) -> Tensor:
        """(t + groups,) centres of the frames that each map describes."""
        future = self.tubelet * torch.arange(groups, device=device) + (self.tubelet + 1) / 2
        return torch.cat([torch.arange(t, device=device) - (t - 1.0), future])

    def _embedding(self, t: int, groups: int, sigma: Tensor) -> Tensor:
        """(b, t + groups, e) of each map's time and noise level; observed frames are clean."""
        times = self._times(t, groups, sigma.device)
        level = sigma[:, None] * (times > 0)
        dim = self.embedding_dim
        known = torch.cat([sinusoid(times, dim).expand(*level.shape, dim), sinusoid(level * 32, dim)], -1)
        return self.embed(known)

    def _through_space(self, coarse: Tensor) -> Tensor:
        """Attention inside each frame, (n, c, h, w)."""
        c, h, w = coarse.shape[1:]
        tokens = coarse.flatten(2).mT + places(h, w, c, coarse.device).to(coarse.dtype)
        return self.space(tokens).unflatten(1, (h, w)).permute(0, 3, 1, 2)

    def _through_time(self, coarse: Tensor, embedding: Tensor) -> Tensor:
        """Attention of each cell through the frames, (b, s, c, h, w) with an embedding (b, s, c); gives (b * s, c, h, w)."""
        b, s, _, h, w = coarse.shape
        tokens = coarse.permute(0, 3, 4, 1, 2) + embedding[:, None, None].to(coarse.dtype)
        tokens = self.time(tokens.flatten(0, 2))
        return tokens.view(b, h, w, s, -1).permute(0, 3, 4, 1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)

    # ---------------------------------------------------------------- the contract

    def features(
        self,
        video: Tensor,
        *,
        horizon: int = 0,
        since: float | None = None,
        prompts: list[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> VideoFeatures:
        """See `VideoBackbone.features`. The same frames give the same maps, but for a `generator` where `level` is below 1; prompts
        are ignored. Frames before `since` are seen as motion alone."""
        self.spec.check(video, horizon)
        t, video = video.shape[1], video.float()
        shown = _shown(t, since)
        groups, past, scaled = math.ceil(horizon / self.tubelet), video * 2 - 1, None
        if groups and self.level < 1:
            with torch.no_grad():
                generator = generator or torch.Generator().manual_seed(0)  # of one kind of device: others draw other numbers
                noise = self._noise(1, groups, video, generator).expand(len(video), -1, -1, -1, -1)
                scaled = (1 - self.level) * self._drawn(past, noise, self.level, self.denoising_steps)
        sigma = video.new_full((len(video),), self.level)
        decoded = self._maps(past, scaled, groups, sigma, shown, self.tap)
        return self._wrap(decoded.read(self.tap).unflatten(0, (len(video), -1)), shown)

    def _wrap(self, maps: Tensor, t: int) -> VideoFeatures:
        times = self._times(t, maps.shape[1] - t, maps.device)
        half = (self.tubelet - 1) / 2 * (times > 0)
        affine = stride_affine(self.spec.stride, device=maps.device)
        if self.tap == "coarse":  # see `_spread`; what is upsampled has learnt where it lies
            affine[:, 2] += 0.5 - 0.5 * STRIDE / self.spec.stride
        return VideoFeatures(maps, times, torch.stack([times - half, times + half], -1), affine)

    def joint(
        self,
        clip: Tensor,
        observed: int,
        *,
        since: float | None = None,
        prompts: list[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[VideoFeatures, Tensor]:
        """See `VideoBackbone.joint`. The batch goes through once at sigma = 1, where features are read and the loss teaches the
        expected future, and once at a random sigma, where the loss teaches denoising; both in one forward. Features of another
        level take a forward of their own."""
        self._check_predicts()
        b, shown = len(clip), _shown(observed, since)
        if self.level < 1:
            features = self.features(clip[:, :observed], horizon=clip.shape[1] - observed, since=since, generator=generator)
            return features, self.generative_loss(clip, observed, generator=generator)
        drawn = _random_levels(b, clip.device, generator)
        sigma = torch.cat([torch.ones_like(drawn), drawn])
        decoded, loss = self._flow(clip.repeat(2, 1, 1, 1, 1), observed, sigma, shown, generator)
        return self._wrap(decoded.read(self.tap).unflatten(0, (2 * b, -1))[:b], shown), loss

    def generative_loss(self, clip: Tensor, observed: int, *, generator: torch.Generator | None = None) -> Tensor:
        """See `VideoBackbone.generative_loss`. A quarter of the clips teach the expected future; half of the calls see frames
        before the last as motion alone, as features since the present do."""
        self._check_predicts()
        drawn = _random_levels(len(clip), clip.device, generator)
        place = drawing_device(clip.device, generator)
        drawn[(torch.rand(len(clip), device=place, generator=generator) < 0.25).to(clip.device)] = 1.0
        shown = 1 if float(torch.rand((), device=place, generator=generator)) < 0.5 else observed
        return self._flow(clip, observed, drawn, shown, generator)[1]

    def _check_predicts(self) -> None:
        if not self.spec.generative:
            remedy = (
                f"where it is read at {self.tap!r}: name another tap"
                if self.tap in self.CLEAN_TAPS
                else "of max_horizon 0: raise it"
            )
            raise TypeError(f"{type(self).__name__} has no generative loss {remedy}")

    def _flow(
        self, clip: Tensor, observed: int, sigma: Tensor, shown: int, generator: torch.Generator | None
    ) -> tuple[Decoded, Tensor]:
        """The maps of clips whose future is seen at noise levels sigma (b,), and the loss."""
        horizon = clip.shape[1] - observed
        self.spec.check(clip[:, :observed], horizon)
        if horizon < 1 or horizon % self.tubelet:
            raise ValueError(f"joint needs a multiple of {self.tubelet} future frames, got {horizon}; crop the clip")
        clip = clip.float()
        past, future = clip[:, :observed] * 2 - 1, self._grouped(clip[:, observed:] * 2 - 1)
        noise = torch.randn(future.shape, device=drawing_device(clip.device, generator), generator=generator).to(clip.device)
        level = sigma[:, None, None, None, None]
        noisy = (1 - level) * future + level * noise
        decoded = self._maps(past, (1 - level) * noisy, future.shape[1], sigma, shown)
        # the squared error of the velocity, but for the smallest levels, where it would drown the others
        loss = ((self._expected(decoded, past, shown) - future) / level.clamp_min(LEAST_LEVEL)).square().mean()
        return decoded, loss

    def _grouped(self, frames: Tensor) -> Tensor:
        """(b, groups * tubelet, 3, H, W) frames to (b, groups, tubelet * 3, H, W)."""
        return rearrange(frames, "b (s k) c h w -> b s (k c) h w", k=self.tubelet)

    def _expected(self, decoded: Decoded, past: Tensor, shown: int) -> Tensor:
        """The signal of future frames (b, groups, tubelet * 3, H, W), whose maps follow `shown` ones, in float32."""
        assert decoded.fine is not None
        maps = decoded.fine.unflatten(0, (len(past), -1))[:, shown:]
        (b, s), k, last = maps.shape[:2], self.tubelet, past[:, -1].float()
        fine, coarse = self.to_frame(F.silu(maps).flatten(0, 1)).float().split([4 * STRIDE**2 * k, 2 * k], 1)
        change, mask = F.pixel_shuffle(fine, STRIDE).reshape(b, s * k, 4, *last.shape[2:]).split([3, 1], 2)
        shift = F.interpolate(coarse, scale_factor=STRIDE, mode="bilinear", align_corners=False).reshape(
            b, s * k, 2, *last.shape[2:]
        )
        expected = last[:, None].lerp(pulled(last, REACH_PX * shift), mask.sigmoid()) + change
        return expected.reshape(b, s, k * 3, *last.shape[2:])

    @torch.no_grad()
    def sample(
        self, video: Tensor, horizon: int, *, steps: int = 10, guidance: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw future frames (b, horizon, 3, H, W) in [0, 1] by Euler steps of the flow from noise to signal.

        Args:
            video: (b, t, 3, H, W) in [0, 1], the observed frames. steps: 1 gives the expected future instead of a draw.
            guidance: above 1 it moves away from what is expected of a mid-grey past (Ho and Salimans 2022), for models trained with
                such.
        """
        self.spec.check(video, horizon)
        if horizon < 1 or steps < 1:
            raise ValueError(f"sample wants horizon >= 1 and steps >= 1, got {horizon} and {steps}")
        noise = self._noise(len(video), math.ceil(horizon / self.tubelet), video, generator)
        x = self._drawn(video * 2 - 1, noise, 0.0, steps, guidance)
        return ((rearrange(x, "b s (k c) h w -> b (s k) c h w", k=self.tubelet)[:, :horizon] + 1) / 2).clamp(0, 1)

    def _noise(self, b: int, groups: int, video: Tensor, generator: torch.Generator | None) -> Tensor:
        shape, place = (b, groups, 3 * self.tubelet, *video.shape[3:]), drawing_device(video.device, generator)
        return torch.randn(shape, device=place, generator=generator).to(video.device)

    def _drawn(self, past: Tensor, x: Tensor, level: float, steps: int, guidance: float = 1.0) -> Tensor:
        """Noise x (b, groups, tubelet * 3, H, W) brought down from level 1 to another by Euler steps of the flow."""
        nothing = torch.zeros_like(past)
        last = level / (LEVEL_SHIFT - (LEVEL_SHIFT - 1) * level)  # inverts _crowded
        for now, after in pairwise(_crowded(torch.linspace(1, last, steps + 1)).tolist()):
            sigma, seen = x.new_full((len(x),), now), None if now == 1 else (1 - now) * x
            expected = self._expected(self._maps(past, seen, x.shape[1], sigma), past, past.shape[1])
            if guidance != 1:
                unconditional = self._expected(self._maps(nothing, seen, x.shape[1], sigma), nothing, past.shape[1])
                expected = unconditional + guidance * (expected - unconditional)
            x = expected + after / now * (x - expected)
        return x


def pulled(image: Tensor, shift: Tensor) -> Tensor:
    """(b, n, 3, H, W): at each pixel the image (b, 3, H, W) at a displacement of shift (b, n, 2, H, W) pixels (x, y), its border
    repeated beyond it."""
    (b, n), (h, w) = shift.shape[:2], image.shape[2:]
    y, x = torch.meshgrid(torch.arange(h, device=image.device), torch.arange(w, device=image.device), indexing="ij")
    places = shift.permute(0, 1, 3, 4, 2) + torch.stack([x, y], -1)
    grid = (2 * places + 1) / places.new_tensor([w, h]) - 1
    found = F.grid_sample(image, grid.flatten(1, 2), mode="bilinear", padding_mode="border", align_corners=False)
    return found.view(b, 3, n, h, w).transpose(1, 2)


def _enlarged(maps: Tensor, factor: int) -> Tensor:
    return maps if factor == 1 else F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)


def _spread(maps: Tensor, factor: int) -> Tensor:
    """As `_enlarged`, of what strided convolutions gave: their cells lie over every factor-th of the finer ones."""
    if factor == 1:
        return maps
    h, w = maps.shape[2:]
    return F.interpolate(_reaching_on(maps), (factor * h + 1, factor * w + 1), mode="bilinear", align_corners=True)[..., :-1, :-1]


def _reaching_on(maps: Tensor) -> Tensor:
    """Of what strided convolutions gave, with the last row and column once more: cells lie so far to the left and the top of what
    they stand for that the image ends beyond them."""
    return F.pad(maps, (0, 1, 0, 1), mode="replicate")


def _shown(t: int, since: float | None) -> int:
    """How many of t observed frames have maps of their own, where what is read begins at a time."""
    return t if since is None else min(max(math.ceil(1 - since), 1), t)


def _random_levels(count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """(count,) logit-normal: training is put where denoising is hard (Esser et al. 2024)."""
    return _crowded(torch.randn(count, device=drawing_device(device, generator), generator=generator).to(device).sigmoid())


def _crowded(u: Tensor) -> Tensor:
    return LEVEL_SHIFT * u / (1 + (LEVEL_SHIFT - 1) * u)


def _conv(layer: nn.Conv2d, frames: Tensor) -> Tensor:
    return layer(frames.contiguous(memory_format=torch.channels_last))
