"""The contract between feature extractors and heads.

A backbone turns observed frames into `VideoFeatures`: one map per described time, past or predicted. Heads see nothing else, so
image models, video encoders and video generators are interchangeable.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OVERSHOOT = 0.1
"""How far from [0, 1] resizing may have taken pixels; those beyond are of another range."""


@dataclass(frozen=True)
class FeatureSpec:
    """What a backbone can do, declared before anything runs.

    Args:
        channels: of every map.
        stride: image pixels per map cell, the same in x and y.
        span: most frames that one map covers (tubelets and causal video autoencoders cover several).
        predicts: whether maps of future frames can be asked for.
        contexts: (fewest, most) observed frames.
        max_horizon: most future frames; 0 where `predicts` is False.
        size_multiple: image height and width must be multiples of it.
        generative: whether `joint` gives a generative loss.
        size: the only image height and width that it takes, if it takes one alone.
    """

    channels: int
    stride: float
    span: int
    predicts: bool
    contexts: tuple[int, int]
    max_horizon: int
    size_multiple: int
    generative: bool = False
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        low, high = self.contexts
        if not 1 <= low <= high or self.span < 1 or self.max_horizon < 0 or self.predicts != (self.max_horizon > 0):
            raise ValueError(
                f"a backbone wants contexts of 1 <= fewest <= most, span >= 1 and max_horizon >= 0, above 0 where it predicts; got "
                f"{self.contexts}, {self.span}, {self.max_horizon} and predicts={self.predicts}"
            )

    def check(self, video: Tensor, horizon: int) -> None:
        """Raise ValueError, naming value, limit and remedy, unless video (b, t, 3, H, W) and horizon are allowed."""
        if video.ndim != 5 or video.shape[2] != 3 or not video.is_floating_point():
            raise ValueError(f"video must be (b, t, 3, H, W) float in [0, 1], got {tuple(video.shape)} {video.dtype}")
        if video.numel() and not video.is_meta and not torch.compiler.is_compiling():
            least, most = (float(value) for value in video.detach().aminmax())
            if not -OVERSHOOT <= least <= most <= 1 + OVERSHOOT:
                raise ValueError(
                    f"video must lie in [0, 1], got values from {least:g} to {most:g}: divide pixels of 0 to 255 by 255, and leave "
                    "normalisation to the backbone"
                )
        low, high = self.contexts
        if not low <= video.shape[1] <= high:
            raise ValueError(f"{video.shape[1]} observed frames; this backbone takes {low} to {high}: crop or repeat frames")
        self.check_horizon(horizon)
        if self.size is not None and tuple(video.shape[-2:]) != self.size:
            raise ValueError(
                f"image size {tuple(video.shape[-2:])}; this backbone takes {self.size} alone: resize or pad the frames"
            )
        if any(side % self.size_multiple for side in video.shape[-2:]):
            raise ValueError(
                f"image size {tuple(video.shape[-2:])} must be a multiple of {self.size_multiple}: resize or pad the frames"
            )

    def check_horizon(self, horizon: int) -> None:
        """Raise ValueError unless a horizon is allowed."""
        if not 0 <= horizon <= self.max_horizon:
            if not self.max_horizon:
                raise ValueError(f"horizon {horizon}; this backbone does not predict future frames: leave horizon at 0")
            raise ValueError(f"horizon {horizon}; this backbone predicts 0 to {self.max_horizon} future frames: ask for fewer")


@dataclass(frozen=True)
class VideoFeatures:
    """Feature maps and the frames they describe.

    Args:
        maps: (b, s, c, h, w).
        times: (s,) centre of the frames each map describes, in frames after the last observed one (<= 0: observed).
        spans: (s, 2) first and last frame described.
        image_to_map: (2, 3) affine from image pixels (x, y, 1) to fractional map cells (column, row). Where cell (0, 0) describes
            the image's top left stride x stride pixels, as patches and pooling have it, it is `stride_affine(stride)`: column =
            (x + 0.5) / stride - 0.5. Convolutions that are padded alike on both sides centre it on pixel 0 instead; pad them by
            more at the right and bottom, so that maps cover the image.
    """

    maps: Tensor
    times: Tensor
    spans: Tensor
    image_to_map: Tensor

    def nearest(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """The index (q,) of the map nearest to each queried time (q,), and the signed offset (q,) = query - map time.

        No blending: two maps some frames apart blend into two ghosts. Ties go to the earlier map.
        """
        distance = (times[:, None] - self.times[None]).abs()
        index = distance.argmin(-1)
        return index, times - self.times[index]

    def with_maps(self, maps: Tensor) -> VideoFeatures:
        return replace(self, maps=maps)


def drawing_device(device: torch.device, generator: torch.Generator | None) -> torch.device:
    """Where random numbers for a device are drawn: a generator draws on its own alone."""
    return device if generator is None else generator.device


def stride_affine(stride: float, **like) -> Tensor:
    """The image_to_map of a map whose cell (0, 0) covers the image's top-left stride x stride pixels."""
    scale, shift = 1 / stride, 0.5 / stride - 0.5
    return torch.tensor([[scale, 0.0, shift], [0.0, scale, shift]], **like)


def sampled(maps: Tensor, cells: Tensor) -> Tensor:
    """Bilinear values of maps (n, c, h, w) at fractional cells (n, p, q, 2); beyond the border the border's. (n, c, p, q)."""
    h, w = maps.shape[-2:]
    scale = torch.tensor([2 / w, 2 / h]).to(cells)
    grid = (cells + 0.5) * scale - 1
    # in float32: a bf16 grid would be off by a tenth of a cell
    return F.grid_sample(maps.float(), grid.float(), padding_mode="border", align_corners=False).to(maps.dtype)


def joined(maps: Sequence[Tensor]) -> Tensor:
    """Maps (b, s, c, h, w) side by side as channels, the coarser ones brought to the finest one's grid."""
    size = max((part.shape[-2:] for part in maps), key=lambda sides: sides[0])
    fitted = [
        part
        if part.shape[-2:] == size
        else F.interpolate(part.flatten(0, 1), size, mode="bilinear", align_corners=False).unflatten(0, part.shape[:2])
        for part in maps
    ]
    return torch.cat(fitted, 2)


def sinusoid(values: Tensor, dim: int, longest: float = 64.0) -> Tensor:
    """(...) values to (..., dim) sines and cosines with wavelengths from about 2 to `longest` (Vaswani et al. 2017)."""
    wavelength = 2 * (longest / 2) ** (torch.arange(dim // 2, device=values.device) / max(dim // 2 - 1, 1))
    phase = values[..., None] * (2 * math.pi / wavelength)
    return torch.cat([phase.sin(), phase.cos()], -1)


class VideoBackbone(nn.Module, ABC):
    """A feature extractor. Subclasses set `spec` and implement `features`; generative ones also `joint`."""

    spec: FeatureSpec
    CLEAN_TAPS: tuple[str, ...] = ()
    """Where observed frames alone are read, and no noise level changes anything."""
    origin: Mapping[str, str] | None = None
    """Digests, by name, of the weights that it has from a source; see `para_video.checkpoint.build_backbone`."""

    @property
    def device(self) -> torch.device:
        """Where clips have to be, and maps are."""
        return next(self.parameters()).device

    def settings(self) -> dict[str, Any]:
        """What features depend on besides weights, as values that print alike in every process; by default its plain attributes."""
        plain = (bool, int, float, str, list, tuple, type(None))
        return {
            name: value
            for name, value in sorted(vars(self).items())
            if isinstance(value, plain) and name[0] != "_" and name != "training"
        }

    def told(self) -> dict[str, Tensor]:
        """What encoders that are in no `state_dict` tell the model where nobody says anything (of the empty prompt), by name; alike
        up to rounding wherever they are the same ones. Nothing by default."""
        return {}

    @classmethod
    def generates(cls) -> bool:
        """Whether `joint` is implemented: told of a class, before any weights are looked for. `spec.generative` says it of a built
        model, which options may have cut short."""
        return cls.joint is not VideoBackbone.joint

    @classmethod
    def from_pretrained(cls, source: str, **options: Any) -> Self:
        """Load pretrained weights; adapters of published models implement it.

        Args:
            source: hub id or local folder. options: of the adapter.
        """
        raise TypeError(f"{cls.__name__} loads no pretrained weights of its own; build it and give it a checkpoint")

    @abstractmethod
    def features(
        self,
        video: Tensor,
        *,
        horizon: int = 0,
        since: float | None = None,
        prompts: list[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> VideoFeatures:
        """Maps of the observed frames and of the next `horizon` frames.

        Args:
            video: (b, t, 3, H, W) float in [0, 1]; observed frames only, oldest first.
            horizon: how many future frames to give maps of.
            since: the earliest time that will be read; a backbone may save itself the maps of frames before it, though not the
                last observed one's. None asks for all.
            prompts: one text per batch element, for models that take text.
            generator: for models whose features depend on noise.
        """

    def joint(
        self,
        clip: Tensor,
        observed: int,
        *,
        since: float | None = None,
        prompts: list[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[VideoFeatures, Tensor]:
        """One forward for the read-out and the generative loss.

        Args:
            clip: (b, t, 3, H, W) float in [0, 1]: observed frames, then future ones.
            observed: how many of the frames are observed. since: as of `features`.

        Returns:
            features equal to `features(clip[:, :observed], horizon=t - observed, since=since)`, which the future frames do not
            reach, and the scalar generative loss.

        Raises:
            TypeError: the backbone is no generative model (`spec.generative` is False).
        """
        raise TypeError(f"{type(self).__name__} has no generative loss (spec.generative is False); train it with its head alone")

    def generative_loss(self, clip: Tensor, observed: int, *, generator: torch.Generator | None = None) -> Tensor:
        """The scalar generative loss alone, where no features are wanted; arguments and errors as of `joint`."""
        return self.joint(clip, observed, generator=generator)[1]


def did_you_mean(names: Iterable[str], known: Iterable[str]) -> str:
    """The end of a message about unknown names: the nearest of the known ones, if any is near."""
    known = list(known)
    near = list(dict.fromkeys(match for name in names for match in get_close_matches(str(name), known, n=1)))
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def import_class(target: str, kind: type) -> type:
    """The class behind "package.module:Class".

    Raises:
        ValueError: it cannot be imported, or is no subclass of `kind`.
    """
    module, _, name = target.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{target!r} cannot be imported: {error}; check the spelling of 'package.module:Class'") from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ValueError(f"{target!r} is no {kind.__module__}.{kind.__name__}")
    return found


class _Captured(Exception):
    """Raised by the last tap of an early-stopped forward, caught in `capture`."""


_stops: ContextVar[bool] = ContextVar("stops", default=True)


@contextmanager
def whole_forwards() -> Iterator[None]:
    """Inside the block `capture` does not end any forward: to see that those which it ends lose nothing. What fails after the last
    tap, for blocks that are not needed may have been dropped, is let fail."""
    token = _stops.set(False)
    try:
        yield
    finally:
        _stops.reset(token)


@contextmanager
def capture(module: nn.Module, *names: str, stop: bool = False) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of named submodules during the forwards inside the block.

    Args:
        module: the parent. names: dotted submodule names, such as "up_blocks.1". stop: end the forward once every name has
            been seen; what comes later is not computed, and the forward's own output is lost.

    Yields:
        a dict that fills with name -> output (the first item where a module returns a tuple).

    Raises:
        ValueError: a name that is no submodule. The hooks are removed whatever happens.
    """
    known = dict(module.named_modules())
    for name in names:
        if name not in known:
            raise ValueError(f"unknown tap {name!r}; {type(module).__name__} has {[k for k in known if k.count('.') < 2][1:40]}")
    seen: dict[str, Tensor] = {}

    def hook(name: str):
        def record(_module, _inputs, output):
            seen[name] = output[0] if isinstance(output, tuple) else output
            if stop and _stops.get() and len(seen) == len(names):
                raise _Captured

        return record

    handles = [known[name].register_forward_hook(hook(name)) for name in names]
    try:
        yield seen
    except _Captured:
        pass
    except (RuntimeError, ValueError):
        if _stops.get() or not stop or len(seen) < len(names):
            raise
    finally:
        for handle in handles:
            handle.remove()
