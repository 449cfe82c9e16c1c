"""Video models trained on action-free clips: where clips come from, the training module, and how a predicted future is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torch.utils.data import Dataset

from para_video.agent import Batch, VideoPolicy
from para_video.batches import Augmentation, random_camera_warp, random_colours, warp_images
from para_video.circles import CircleVideos, constant_velocity
from para_video.demos import Demo
from para_video.features import VideoBackbone, VideoFeatures
from para_video.heatmap import cells_to_pixels, inside, window_soft_argmax
from para_video.motion import MotionVideos
from para_video.precision import autocast
from para_video.readout import Targets
from para_video.video import VideoFolder

Source = Callable[[np.random.Generator, int], Tensor]
"""(rng, frames) to a clip (frames, 3, H, W) uint8."""
CHANGING = 0.1
"""A pixel counts as changing where a colour channel is this far from that of the last observed frame."""
DRAWN_SIDE = 4
"""Pixels to the side of a map's cell that are drawn from it."""
COLOURS = Augmentation(gain=0.1, bias=0.05, noise=0.0)
"""Of training clips; much noise would be something to predict."""


@dataclass(frozen=True)
class ClipBatch:
    """Clips (b, t, 3, H, W) in [0, 1], of which the first `observed` frames are seen."""

    clip: Tensor
    observed: int


class ClipBatches(Dataset):
    """Item i is the whole batch of training step i, the same bytes whenever it is asked for.

    Args:
        sources: each with its share of the clips. batch_size: clips. contexts: numbers of observed frames, one of which is drawn
            for each batch. horizon: future frames. seed, rank: of the draws; processes with different ranks draw different clips.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Source, float]],
        *,
        batch_size: int,
        contexts: Sequence[int],
        horizon: int,
        seed: int = 0,
        rank: int = 0,
        length: int = 2**31,
    ) -> None:
        self.sources = [source for source, _ in sources]
        self.shares = np.array([share for _, share in sources]) / sum(share for _, share in sources)
        self.batch_size, self.contexts, self.horizon = batch_size, tuple(contexts), horizon
        self.seed, self.rank, self.length = seed, rank, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, step: int) -> ClipBatch:
        observed = int(np.random.default_rng((self.seed, step)).choice(self.contexts))
        rng = np.random.default_rng((self.seed, step, self.rank + 1))
        chosen = rng.choice(len(self.sources), size=self.batch_size, p=self.shares)
        clip = torch.stack([self.sources[i](rng, observed + self.horizon) for i in chosen]).float() / 255
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return ClipBatch(random_colours(clip, COLOURS, generator), observed)


def recorded(episodes: Sequence[Demo]) -> Source:
    """Random stretches of episodes, half of them seen in a mirror. Episodes with fewer frames than a clip are not drawn."""

    def draw(rng: np.random.Generator, frames: int) -> Tensor:
        long = [episode for episode in episodes if len(episode) >= frames]
        if not long:
            raise ValueError(f"no episode has {frames} frames, the longest has {max(map(len, episodes))}; lower the horizon")
        episode = long[int(rng.integers(len(long)))]
        first = int(rng.integers(len(episode) - frames + 1))
        shown = episode.frames[first : first + frames]
        shown = shown[:, :, ::-1] if rng.random() < 0.5 else shown
        return torch.from_numpy(np.ascontiguousarray(shown.transpose(0, 3, 1, 2)))

    return draw


def demonstrated(demos: Sequence[Demo], stride: int, augmentation: Augmentation) -> Source:
    """Stretches of demonstrations with `stride` control steps between frames, seen by randomly turned and zoomed cameras. Beyond
    their ends they stand still, as what a policy sees does."""

    def draw(rng: np.random.Generator, frames: int) -> Tensor:
        demo = demos[int(rng.integers(len(demos)))]
        first = int(rng.integers(1 - stride, len(demo)))
        rows = np.clip(first + stride * np.arange(frames), 0, len(demo) - 1)
        clip = torch.from_numpy(demo.frames[rows].transpose(0, 3, 1, 2)).float()
        clip = clip.flip(-1) if rng.random() < augmentation.mirror else clip
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        _, homography = random_camera_warp(demo.camera[None], augmentation, generator, demo.frames.shape[1:3])
        return warp_images(clip, homography.expand(frames, -1, -1)).round().clamp(0, 255).byte()

    return draw


def circles(seed: int, size: int) -> Source:
    """Circle clips, without end."""
    return lambda rng, frames: CircleVideos(seed, observed=1, future=frames - 1, size=size)[int(rng.integers(2**31 - 1))].video


def motion(seed: int, size: int) -> Source:
    """Clips of arms and moving things, without end."""
    return lambda rng, frames: MotionVideos(seed, frames, size)[int(rng.integers(2**31 - 1))]


def video_files(videos: VideoFolder, size: int, stride: int) -> Source:
    """Random crops of stretches of video files."""
    return lambda rng, frames: videos.frames(rng, frames, size, stride=stride)


class VideoPredictor(nn.Module):
    """What is trained: a generative backbone on clips alone.

    Args:
        backbone: with `spec.generative`. drop: share of the clips whose observed frames are blank, for guidance in sampling; of
            models that have no `sample` none are.
        draw: whether one linear layer also has to draw the frames, seen and future, from the maps as heads read them. What a video
            model need not change it need not know: of things at rest, maps otherwise tell little. Twice as many clips then go
            through the model, and where maps are read below pure noise, their future is drawn first, as in use.

    Raises:
        ValueError: the backbone is no generative model.
    """

    def __init__(self, backbone: VideoBackbone, *, drop: float = 0.1, draw: bool = False) -> None:
        super().__init__()
        spec = backbone.spec
        if not spec.generative:
            raise ValueError(
                f"{type(backbone).__name__} has no generative loss (spec.generative is False); choose another backbone, or other "
                "options of it"
            )
        self.backbone, self.drop = backbone, drop if hasattr(backbone, "sample") else 0.0
        self.draw = nn.Conv2d(spec.channels, spec.span * 3 * DRAWN_SIDE**2, 1) if draw else None

    def forward(self, batch: ClipBatch) -> dict[str, Tensor]:
        clip, observed = batch.clip, batch.observed
        dropped = torch.rand(len(clip), 1, 1, 1, 1, device=clip.device) < self.drop
        seen = torch.where(dropped, torch.full_like(clip[:, :observed], 0.5), clip[:, :observed])
        clip = torch.cat([seen, clip[:, observed:]], 1)
        if self.draw is None:
            return {"flow": self.backbone.generative_loss(clip, observed)}
        since = None if float(torch.rand(())) < 0.5 else 0.0  # policies read the present and the future alone
        features, flow = self.backbone.joint(clip, observed, since=since)
        return {"flow": flow, "draw": drawing_loss(self.draw, features, clip, observed)}


def drawing_loss(draw: nn.Conv2d, features: VideoFeatures, clip: Tensor, observed: int) -> Tensor:
    """Mean squared error of frames, in [-1, 1], that a layer finds in each map: `DRAWN_SIDE` pixels to the side of a cell, for as
    many frames as a map spans; of a map that spans fewer, the last ones count.

    Args:
        features: of the first `observed` frames of clip (b, t, 3, H, W), and of the others as future; every map spans some frame.
    """
    (b, s), (h, w) = features.maps.shape[:2], features.maps.shape[-2:]
    small = F.interpolate(clip.flatten(0, 1), size=(DRAWN_SIDE * h, DRAWN_SIDE * w), mode="area").unflatten(0, (b, -1))
    drawn = F.pixel_shuffle(draw(features.maps.flatten(0, 1)).float(), DRAWN_SIDE).unflatten(1, (-1, 3)).unflatten(0, (b, s))
    errors = []
    for k, (first, last) in enumerate((features.spans + observed - 1).round().int().tolist()):
        truth = 2 * small[:, first : last + 1] - 1
        errors.append((drawn[:, k, -truth.shape[1] :] - truth).square().mean())
    return torch.stack(errors).mean()


# -------------------------------------------------------------------- how good is a future?


@torch.no_grad()
def futures(
    backbone: VideoBackbone,
    seen: Tensor,
    horizon: int,
    *,
    samples: int,
    steps: int,
    generator: torch.Generator,
    guidance: float = 1.0,
) -> dict[str, Tensor]:
    """What may be said of the future of clips seen (b, t, 3, H, W): predictions (b, horizon, 3, H, W) by name.

    "copy" repeats the last frame, "sample" is one draw, "mean" that of `samples` draws, "expected" the model's one-step answer,
    "guided" the one draw again, from the same noise, with a guidance other than 1.
    """
    same, found = generator.clone_state(), {"copy": seen[:, -1:].expand(-1, horizon, -1, -1, -1)}
    with autocast(seen.device):
        draws = torch.stack([backbone.sample(seen, horizon, steps=steps, generator=generator) for _ in range(samples)])  # type: ignore[operator]
        found |= {"sample": draws[0], "mean": draws.float().mean(0)}
        found["expected"] = backbone.sample(seen, horizon, steps=1, generator=generator)  # type: ignore[operator]
        if guidance != 1:
            found["guided"] = backbone.sample(seen, horizon, steps=steps, guidance=guidance, generator=same)  # type: ignore[operator]
    return {name: frames.float() for name, frames in found.items()}


@dataclass
class FutureScore:
    """Sums over clips, by prediction and horizon, on the pixels that change."""

    squared: dict[str, np.ndarray]
    similarity: dict[str, np.ndarray]
    pixels: np.ndarray

    @classmethod
    def empty(cls, names: Sequence[str], horizon: int) -> FutureScore:
        zeros = lambda: {name: np.zeros(horizon) for name in names}  # noqa: E731
        return cls(zeros(), zeros(), np.zeros(horizon))

    def add(self, predictions: Mapping[str, Tensor], truth: Tensor, last: Tensor) -> None:
        """truth (b, horizon, 3, H, W), last (b, 3, H, W): the last observed frame."""
        changing = ((truth - last[:, None]).abs().amax(2) > CHANGING).numpy()  # (b, horizon, H, W)
        self.pixels += changing.sum((0, 2, 3))
        for name, guess in predictions.items():
            self.squared[name] += ((guess - truth).square().mean(2).numpy() * changing).sum((0, 2, 3))
            for b, k in np.ndindex(changing.shape[:2]):
                if changing[b, k].any():
                    pair = (guess[b, k].permute(1, 2, 0).numpy(), truth[b, k].permute(1, 2, 0).numpy())
                    _, found = structural_similarity(*pair, channel_axis=-1, data_range=1.0, full=True)
                    self.similarity[name][k] += found.mean(-1)[changing[b, k]].sum()

    def summary(self) -> dict[str, Any]:
        """PSNR in dB and SSIM by prediction and horizon ("1" is the next frame); None where no pixel changes."""

        def by_horizon(values: np.ndarray) -> dict[str, float | None]:
            return {str(k + 1): float(v) if n else None for k, (v, n) in enumerate(zip(values, self.pixels, strict=True))}

        count = np.maximum(self.pixels, 1)
        return {
            "psnr_db": {name: by_horizon(-10 * np.log10(np.maximum(s / count, 1e-10))) for name, s in self.squared.items()},
            "ssim": {name: by_horizon(s / count) for name, s in self.similarity.items()},
            "changing_pixels": {str(k + 1): int(n) for k, n in enumerate(self.pixels)},
        }


# -------------------------------------------------------------------- where is the gripper in a predicted frame?


class GripperFrames(Dataset):
    """Item i is the batch of training step i: single frames of episodes, and the pixel of the gripper."""

    def __init__(self, episodes: Sequence[Demo], *, batch_size: int, seed: int = 0, rank: int = 0, length: int = 2**31) -> None:
        self.episodes, self.batch_size, self.seed, self.rank, self.length = list(episodes), batch_size, seed, rank, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((self.seed, step, self.rank))
        chosen = [self.episodes[i] for i in rng.integers(len(self.episodes), size=self.batch_size)]
        rows = [int(rng.integers(len(episode))) for episode in chosen]
        frames = np.stack([episode.frames[k] for episode, k in zip(chosen, rows, strict=True)])
        pixels = torch.stack([gripper_pixels(episode)[k] for episode, k in zip(chosen, rows, strict=True)])[:, None]
        clip = torch.from_numpy(frames.transpose(0, 3, 1, 2).copy())[:, None].float() / 255
        clip = random_colours(clip, Augmentation(noise=0.02), torch.Generator().manual_seed(int(rng.integers(2**62))))
        targets = Targets(pixels, inside(pixels, frames.shape[1:3]))
        return Batch(clip, targets, times=torch.zeros(1))


def gripper_pixels(episode: Demo) -> Tensor:
    """(n, 2) where the gripper point is seen."""
    return episode.camera[None].project(torch.from_numpy(episode.positions)[None])[0][0]


@torch.no_grad()
def find_gripper(probe: VideoPolicy, frames: Tensor) -> Tensor:
    """Pixels (n, 2) of the gripper in frames (n, 3, H, W), each looked at by itself."""
    found = []
    for part in frames.split(64):
        with autocast(part.device):
            features, query = probe.features(part[:, None], torch.zeros(1))
            heat = probe.head(features, times=query.times, size=query.size).heat.float()
        found.append(cells_to_pixels(window_soft_argmax(heat), heat.shape[-2:], query.size)[:, 0])
    return torch.cat(found)


def gripper_errors(
    probe: VideoPolicy, predictions: Mapping[str, Tensor], truth: Tensor, pixels: Tensor, observed: int
) -> dict[str, Tensor]:
    """Pixels of error (b, horizon) by name: the probe on each prediction, the probe on the true future, and constant velocity from
    the true pixels. NaN where the gripper has left the image.

    Args:
        predictions, truth: (b, horizon, 3, H, W). pixels: (b, observed + horizon, 2) true ones.
    """
    b, horizon = truth.shape[:2]
    future = pixels[:, observed:]
    guesses = {"constant velocity": constant_velocity(pixels[:, :observed], horizon)}
    for name, frames in {**predictions, "true frames": truth}.items():
        guesses[name] = find_gripper(probe, frames.flatten(0, 1)).unflatten(0, (b, horizon))
    height, width = truth.shape[-2:]
    gone = ~inside(future, (height, width))
    return {name: (guess - future).norm(dim=-1).masked_fill(gone, torch.nan) for name, guess in guesses.items()}
