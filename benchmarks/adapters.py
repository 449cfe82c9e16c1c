"""What the adapters of video diffusion models cost beside the models themselves, as ratios.

    python benchmarks/adapters.py

Features that are read after the last block against the same calls of the model's parts without an adapter, in time and memory; the
time that the denoiser takes up to a block against the operations up to there; features from the cache against computing them. The
models have random weights and are scaled down until a forward takes seconds.
"""

from __future__ import annotations

import json
import tempfile
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder, AutoencoderKLWan, UNetSpatioTemporalConditionModel, WanTransformer3DModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from backbones.latent import LatentVideoBackbone, Prompts
from backbones.svd import SvdBackbone
from backbones.wan import WanBackbone
from para_video.agent import VideoPolicy
from para_video.batches import DemoBatches
from para_video.camera import Camera
from para_video.demos import Demo
from para_video.feature_cache import CachedBatches, cache_features
from para_video.features import capture
from para_video.heads import ParaHead
from para_video.policy import DEFAULT_SCHEDULE
from para_video.readout import ReadoutSpec
from para_video.runs import command_line

ADAPTER, SAVED = 1.03, 0.10
"""What is promised: an adapter takes at most this many times what the model does, and the time of an early stop is the share of
operations that it leaves, within a tenth."""


@dataclass(frozen=True)
class Config:
    """Measure the adapters."""

    repeats: int = 7
    """Timed repetitions of each of the things that are compared, in turns."""
    size: int = 256
    """Side of the frames in pixels."""
    out: Path | None = None
    """Also write the figures to this JSON file."""


# -------------------------------------------------------------------- models


def svd(*taps: str) -> SvdBackbone:
    """Stable Video Diffusion with a fifth of its channels."""
    torch.manual_seed(0)
    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(64, 128, 256, 256), cross_attention_dim=256, num_attention_heads=(1, 2, 4, 4), sample_size=32
    )
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32, 64, 64), down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=1
    )
    vision = CLIPVisionConfig(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4, patch_size=32, projection_dim=256
    )
    return SvdBackbone(unet, vae, CLIPVisionModelWithProjection(vision), **({"taps": taps} if taps else {}))


def wan(*taps: str) -> WanBackbone:
    """Wan 2.1 with half of its 1.3B model's channels and a quarter of its blocks."""
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=6, attention_head_dim=128, ffn_dim=4480, num_layers=8, text_dim=256, freq_dim=256
    )
    told = {"text": torch.randn(512, 256), "text_mask": torch.arange(512) < 1}
    return WanBackbone(transformer, AutoencoderKLWan(base_dim=16), Prompts(lambda _: told), taps=taps or None)


CLIPS: dict[str, tuple[int, int]] = {"svd": (1, 6), "wan": (9, 0)}
"""Observed and future frames. Wan draws a future in several forwards, so that here it sees all frames."""
EARLIER = {"svd": ("mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2"), "wan": ("blocks.1", "blocks.3", "blocks.5")}
LAST = {"svd": "up_blocks.3", "wan": "blocks.7"}
BUILDERS: dict[str, Callable[..., LatentVideoBackbone]] = {"svd": svd, "wan": wan}


@dataclass(frozen=True)
class Call:
    """A call of a model's part, with its arguments as tensors that exist already."""

    part: Callable[..., object]
    args: tuple
    kwargs: dict[str, Any]

    def __call__(self) -> object:
        return self.part(*self.args, **self.kwargs)


def noted(backbone: LatentVideoBackbone, run: Callable[[], object]) -> list[Call]:
    """The calls of the model's parts that `run` makes: encoders', then the denoiser's."""
    calls: list[Call] = []
    parts = [part for part in (backbone.denoiser, getattr(backbone, "image_encoder", None)) if part is not None]
    hooks = [p.register_forward_pre_hook(lambda *call: calls.append(Call(*call)), with_kwargs=True) for p in parts]
    encode = backbone.vae.encode

    def encoded(*args: Tensor) -> Any:
        calls.append(Call(encode, args, {}))
        return encode(*args)

    backbone.vae.encode = encoded
    run()
    backbone.vae.encode = encode
    for hook in hooks:
        hook.remove()
    return calls


# -------------------------------------------------------------------- measures


def in_turns(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of processor time of each, measured in turns after one untimed round: what else runs on the machine slows all
    of them alike or does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            begun = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - begun)
    return {name: float(np.median(each)) for name, each in seconds.items()}


def flops(run: Callable[[], object]) -> int:
    """Operations of matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


class LargestMemory(TorchDispatchMode):
    """The most bytes of tensors, made while it is on, that were alive at once. What an operation needs inside itself does not
    count."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and (key := (storage := made.untyped_storage())._cdata) not in self.known | given:
                self.known.add(key)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._freed, key, storage.nbytes())
        return result

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def memory(run: Callable[[], object]) -> int:
    """Bytes; see `LargestMemory`."""
    with LargestMemory() as seen:
        run()
    return seen.most


# -------------------------------------------------------------------- figures


@torch.no_grad()
def adapter(name: str, config: Config) -> dict[str, float]:
    """One adapter's ratios."""
    observed, horizon = CLIPS[name]
    clip = torch.rand(1, observed, 3, config.size, config.size, generator=torch.Generator().manual_seed(0))
    backbone = BUILDERS[name](LAST[name]).eval()

    def whole() -> object:
        return backbone.features(clip, horizon=horizon)

    def stopped(tap: str) -> None:
        with capture(backbone.denoiser, tap, stop=True):
            denoise()

    calls = noted(backbone, whole)
    denoise = calls[-1]

    def bare() -> None:
        for call in calls:
            call()

    early = {tap: partial(stopped, tap) for tap in EARLIER[name]}
    seconds = in_turns({"features": whole, "bare": bare, "denoiser": denoise, **early}, config.repeats)
    tensors = [x for call in calls for x in tree_leaves((call.args, call.kwargs)) if isinstance(x, Tensor)]
    given = {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in tensors}
    figures = {
        "bare_s": seconds["bare"],
        "denoiser_s": seconds["denoiser"],
        "adapter_ratio": seconds["features"] / seconds["bare"],
        "bare_mb": (memory(bare) + sum(given.values())) / 1e6,
    }
    figures["memory_ratio"] = memory(whole) / 1e6 / figures["bare_mb"]
    for tap, run in early.items():
        left = flops(run) / flops(denoise)
        figures |= {f"{tap}_flops_left": left, f"{tap}_ratio": seconds[tap] / seconds["denoiser"] / left}
    return figures


def cached(config: Config, clips: int = 4) -> dict[str, float]:
    """Milliseconds of a clip's features from the cache, and as a share of what computing them takes."""
    side, steps = config.size, clips + DEFAULT_SCHEDULE.frame_stride - 1
    rng = np.random.default_rng(0)
    still = (
        np.zeros((steps, 3), np.float32),
        np.tile(np.eye(3, dtype=np.float32), (steps, 1, 1)),
        *np.zeros((2, steps), np.float32),
    )
    camera = Camera.from_fov(45.0, (side, side), torch.eye(4))
    demo = Demo(rng.integers(0, 256, (steps, side, side, 3), dtype=np.uint8), *still, camera, "still", 0)
    backbone = svd().eval()
    times = tuple(float(t) for t in range(1, DEFAULT_SCHEDULE.chunk + 1))
    policy = VideoPolicy(backbone, ParaHead(backbone.spec.channels, ReadoutSpec()), times, frozen=True)
    batches = DemoBatches([demo], batch_size=clips, chunk=DEFAULT_SCHEDULE.chunk, stride=DEFAULT_SCHEDULE.frame_stride)
    with tempfile.TemporaryDirectory() as folder:
        kept = CachedBatches(cache_features(policy, batches, 1, Path(folder)), batches[0], batch_size=clips)
        runs = {"computed": lambda: policy.features(batches[0].clip), "cached": lambda: kept[0]}
        seconds = in_turns(runs, max(1, config.repeats // 2))
    return {"cached_ms": 1e3 * seconds["cached"] / clips, "cached_ratio": seconds["cached"] / seconds["computed"]}


def main(config: Config) -> dict[str, dict[str, float]]:
    """Measure, print, and return the figures."""
    figures = {name: adapter(name, config) for name in BUILDERS}
    for name, found in figures.items():
        print(f"{name}: {found['adapter_ratio']:.3f} x the bare model's {found['bare_s']:.2f} s (promised: {ADAPTER:g})")
        print(f"{name}: {found['memory_ratio']:.2f} x its {found['bare_mb']:.0f} MB of tensors beside the weights")
        for tap in EARLIER[name]:
            left, ratio = found[f"{tap}_flops_left"], found[f"{tap}_ratio"]
            print(
                f"{name} up to {tap}: {ratio:.2f} x the {left:.0%} of time that its operations say (promised: within {SAVED:.0%})"
            )
    figures["cache"] = cached(config)
    print(f"from the cache: {figures['cache']['cached_ms']:.1f} ms a clip, {figures['cache']['cached_ratio']:.4f} x computing it")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    if config.out is not None:
        config.out.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


if __name__ == "__main__":
    command_line(main, Config, __doc__ or "")
