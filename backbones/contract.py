"""What every backbone promises, as checks: the tests run them on tiny models, `backbones.verify` on real ones.

Each check is a function of a `Trial` that raises `Broken`, with what was found, where a promise is not kept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from para_video.features import FeatureSpec, VideoBackbone, VideoFeatures, whole_forwards


class Broken(Exception):
    """A promise that a backbone does not keep."""


@dataclass(frozen=True)
class Trial:
    """A backbone, and the clips that it is tried on.

    Args:
        size: (height, width) of frames; None for the least square of at least 64 pixels. every: whether gradients of all trainable
            parameters are looked at, or, to save memory, of the smallest one of each block.
        least_change: of a cell, squared, beside the mean cell squared: frames whose patches make less are not looked for.
    """

    backbone: VideoBackbone
    size: tuple[int, int] | None = None
    every: bool = True
    least_change: float = 1e-3

    @property
    def spec(self) -> FeatureSpec:
        return self.backbone.spec

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def rounding(self) -> float:
        """By which errors of rounding are larger than in float32, at most."""
        return 1.0 if all(p.dtype in (torch.float32, torch.float64) for p in self.backbone.parameters()) else 50.0

    def sides(self, least: float = 64) -> tuple[int, int]:
        """Height and width of frames; of at least so many pixels where it is left to the backbone."""
        multiple = self.spec.size_multiple
        return self.size or self.spec.size or (math.ceil(least / multiple) * multiple,) * 2

    def clip(self, frames: int, b: int = 2, seed: int = 1, least: float = 64) -> Tensor:
        """(b, frames, 3, H, W) of noise, the same on every device."""
        return torch.rand(b, frames, 3, *self.sides(least), generator=torch.Generator().manual_seed(seed)).to(self.device)

    def generator(self, seed: int = 0) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed)

    @torch.no_grad()
    def features(self, video: Tensor, horizon: int = 0, since: float | None = None, seed: int = 0) -> VideoFeatures:
        return self.backbone.features(video, horizon=horizon, since=since, generator=self.generator(seed))

    @torch.no_grad()
    def joint(self, clip: Tensor, observed: int, since: float | None = None, seed: int = 0) -> tuple[VideoFeatures, Tensor]:
        return self.backbone.joint(clip, observed, since=since, generator=self.generator(seed))

    @torch.no_grad()
    def generative_loss(self, clip: Tensor, observed: int, seed: int = 0) -> Tensor:
        return self.backbone.generative_loss(clip, observed, generator=self.generator(seed))

    def extremes(self) -> list[tuple[int, int]]:
        """(observed frames, horizon) at the edges of what is allowed."""
        return [(seen, horizon) for seen in sorted(set(self.spec.contexts)) for horizon in sorted({0, self.spec.max_horizon})]

    def whole(self) -> int:
        """The longest horizon of maps that are filled: a generative loss needs all the frames of each."""
        return self.spec.max_horizon - self.spec.max_horizon % self.spec.span


def leave_start(backbone: VideoBackbone) -> None:
    """Move fresh weights off their start, where a layer of zeros may hide a leak or keep gradients back."""
    torch.manual_seed(4)
    for parameter in backbone.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)


def need(kept: bool | Tensor, message: str) -> None:
    if not kept:
        raise Broken(message)


def need_close(found: Tensor, expected: Tensor, message: str, *, atol: float, rtol: float) -> None:
    if found.shape != expected.shape or not torch.allclose(found, expected, atol=atol, rtol=rtol):
        apart = f"{float((found - expected).abs().max()):.3g}" if found.shape == expected.shape else "shape"
        raise Broken(f"{message} (off by {apart}, allowed {atol:.3g} + {rtol:.3g} x)")


# -------------------------------------------------------------------- what is declared is what comes out


def outputs_as_declared(trial: Trial) -> None:
    """Channels, shapes, and finite values that are not all alike."""
    spec = trial.spec
    need(spec.contexts[0] >= 1 and spec.predicts == (spec.max_horizon > 0), f"the spec contradicts itself: {spec}")
    for observed, horizon in trial.extremes():
        found = trial.features(trial.clip(observed), horizon)
        b, s, c = found.maps.shape[:3]
        need((b, c) == (2, spec.channels), f"maps {tuple(found.maps.shape)} of 2 clips, declared {spec.channels} channels")
        shapes = tuple(found.times.shape), tuple(found.spans.shape), tuple(found.image_to_map.shape)
        need(shapes == ((s,), (s, 2), (2, 3)), f"{s} maps with times, spans and image_to_map of {shapes}")
        need(torch.isfinite(found.maps).all(), f"maps are not finite with {observed} observed frames and horizon {horizon}")
        need(found.maps.std() > 1e-3, f"maps are all alike with {observed} observed frames and horizon {horizon}")


def frames_in_order(trial: Trial) -> None:
    """Every frame asked for is described, in order, by a map whose time is the middle of its span."""
    for observed, horizon in trial.extremes():
        found = trial.features(trial.clip(observed), horizon)
        first, last = found.spans.cpu().unbind(-1)
        times = found.times.cpu().float()
        need(torch.allclose(times, (first + last).float() / 2), f"times {times.tolist()} of spans {found.spans.tolist()}")
        need(bool((first <= last).all()), f"maps of no frame are among the spans {found.spans.tolist()}")
        need(all(a < b for a, b in pairwise(times.tolist())), f"times are not ascending: {times.tolist()}")
        # the last map may reach beyond the horizon, where one map covers several frames
        need(float(first.min()) == 1 - observed, f"the first map begins at {float(first.min()):g}, not {1 - observed}")
        need(
            horizon <= float(last.max()) < horizon + trial.spec.span,
            f"the last map ends at {float(last.max()):g}, horizon {horizon}",
        )
        widest = float((last - first).max()) + 1
        need(widest <= trial.spec.span, f"a map covers {widest:g} frames, declared {trial.spec.span}")
        _need_described(found, range(1 - observed, horizon + 1))


def earlier_maps_left_out(trial: Trial) -> None:
    """Maps of frames before the earliest time that is read may be missing, no others."""
    observed, horizon = trial.spec.contexts[1], trial.spec.max_horizon
    for since in (1.0, 0.0, 0.5 - observed / 2):
        found = trial.features(trial.clip(observed), horizon, since)
        _need_described(found, range(math.ceil(min(since, 0)), horizon + 1))
        need(torch.isfinite(found.maps).all(), f"maps since {since:g} are not finite")
        need(len(found.times) == found.maps.shape[1], f"{found.maps.shape[1]} maps with {len(found.times)} times")


def _need_described(found: VideoFeatures, frames: range) -> None:
    first, last = found.spans.cpu().unbind(-1)
    for frame in frames:
        need(((first <= frame) & (frame <= last)).any(), f"no map describes frame {frame}")


COVER = "see `image_to_map` of para_video.features.VideoFeatures"


def places_as_declared(trial: Trial) -> None:
    """`image_to_map` has the declared stride, and the maps cover the image."""
    found = trial.features(trial.clip(trial.spec.contexts[0]))
    affine, (height, width) = found.image_to_map.cpu(), trial.sides()
    need_close(affine[:, :2], torch.eye(2) / trial.spec.stride, "image_to_map has not the declared stride", atol=1e-5, rtol=1e-5)
    corners = torch.tensor([[-0.5, -0.5], [width - 0.5, height - 0.5]]) @ affine[:, :2].mT + affine[:, 2]
    h, w = found.maps.shape[-2:]
    need(bool((corners[0] >= -0.5 - 1e-4).all()), f"the image begins at cell {corners[0].tolist()}, before the map: {COVER}")
    ends = torch.tensor([w, h]) - 0.5 + 1e-4
    need(bool((corners[1] <= ends).all()), f"the image ends at cell {corners[1].tolist()}, beyond a map of {h} x {w}: {COVER}")


PLACES = ((20, 20), (41, 23), (26, 44))
"""Of patches, in 64ths of width and height."""


def changes_in_place(trial: Trial) -> None:
    """Averaged over perturbations, the map of the last observed frame changes most where a patch of that frame is another."""
    half = trial.spec.stride
    video = trial.clip(trial.spec.contexts[0], b=16, least=max(64, 4 * half)) * 0.2 + 0.4
    before = trial.features(video)
    last = int((before.times <= 0).nonzero()[-1])
    for place in PLACES:
        moved, centre = _patched(trial, video, -1, place)
        change = (trial.features(moved).maps - before.maps)[:, last].square().sum((0, 1)).cpu()
        need(change.max() > 0, f"nothing of the last observed frame is in its map: a patch at {centre} changes nothing")
        _need_change_at(change, before, centre)


LAID_BESIDE = 0.5
"""Share of the largest change in a map that all others reach where a frame is laid beside them all."""


def changes_in_time(trial: Trial) -> None:
    """Where a patch of one observed frame is another, the map that describes this frame changes most, and there about the patch.
    Frames that features hardly show, as at a level of noise that drowns them, say nothing of it; nor do the first one, with which a
    model may begin all its maps, and the last where it is laid beside them all, so that each changes about as much."""
    observed = trial.spec.contexts[1]
    video = trial.clip(observed, b=4, least=max(64, 4 * trial.spec.stride)) * 0.2 + 0.4
    before = trial.features(video)
    seen = before.spans[:, 1] <= 0
    for frame in {observed // 2, observed - 1} - {0}:
        moved, centre = _patched(trial, video, frame, PLACES[frame % len(PLACES)])
        change = (trial.features(moved).maps - before.maps)[:, seen].square().sum(2).mean(0).cpu()
        per_map = change.sum((1, 2))
        if float(change.max()) <= trial.least_change * float(before.maps.square().sum(2).mean()):
            continue
        if frame == observed - 1 and float(per_map.min()) > LAID_BESIDE * float(per_map.max()):
            continue
        first, last = before.spans[seen][int(per_map.argmax())].tolist()
        time = frame + 1 - observed
        need(first <= time <= last, f"frame {time} changes the map of frames {first:g} to {last:g} most")
        _need_change_at(change[int(per_map.argmax())], before, centre, within=3.0)


def _patched(trial: Trial, video: Tensor, frame: int, place: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The clips with another patch in a frame, and the pixel of its centre."""
    half, (height, width) = int(trial.spec.stride), video.shape[-2:]
    x, y = place[0] * width // 64, place[1] * height // 64
    moved = video.clone()
    noise = torch.rand(len(video), 3, 2 * half, 2 * half, generator=torch.Generator().manual_seed(3))
    moved[:, frame, :, y - half : y + half, x - half : x + half] = noise.to(video)
    return moved, torch.tensor([x - 0.5, y - 0.5])  # pixels x - half ... x + half - 1


def _need_change_at(change: Tensor, features: VideoFeatures, centre: Tensor, within: float = 2.0) -> None:
    """The middle of the strongest changes (h, w) is the cell of a pixel, give or take."""
    weight = torch.where(change > 0.5 * change.max(), change, torch.zeros_like(change))
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in change.shape), indexing="ij")
    found = torch.stack([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
    affine = features.image_to_map.cpu()
    expected = affine[:, :2] @ centre + affine[:, 2]
    # features may lean to one side by a cell or so; an affine that is transposed, unscaled or unshifted is far off
    need(
        float((found - expected).abs().max()) < within,
        f"a patch about pixel {centre.tolist()} should change cell {[round(v, 1) for v in expected.tolist()]}, "
        f"and changes {[round(v, 1) for v in found.tolist()]}",
    )


def refusals(trial: Trial) -> None:
    """What a backbone cannot take is refused with value and limit."""
    spec, features, (low, high) = trial.spec, trial.backbone.features, trial.spec.contexts
    good = trial.clip(low)
    most = f"predicts 0 to {spec.max_horizon}" if spec.max_horizon else "does not predict future frames"
    cases: list[tuple[str, Callable[[], Any]]] = [
        (rf"{high + 1} observed frames; this backbone takes {low} to {high}", lambda: features(trial.clip(high + 1))),
        (f"horizon {spec.max_horizon + 1}; this backbone {most}", lambda: features(good, horizon=spec.max_horizon + 1)),
        ("horizon -1", lambda: features(good, horizon=-1)),
        (r"video must be \(b, t, 3, H, W\) float in \[0, 1\].*uint8", lambda: features((good * 255).byte())),
        ("video must be", lambda: features(good[:, 0])),
        ("video must be", lambda: features(good[:, :, :1])),
    ]
    if spec.size_multiple > 1 and spec.size is None:
        cases.append((rf"image size .* must be a multiple of {spec.size_multiple}", lambda: features(good[..., :-1])))
    if spec.generative:
        cases.append(("future frames", lambda: trial.backbone.joint(good, low)))
    for message, run in cases:
        _need_refusal(ValueError, message, run)
    if not spec.generative:
        none = f"{type(trial.backbone).__name__} has no generative loss"
        _need_refusal(TypeError, none, lambda: trial.backbone.joint(good, low))


def _need_refusal(kind: type[Exception], message: str, run: Callable[[], Any]) -> None:
    try:
        with torch.no_grad():
            run()
    except kind as error:
        need(re.search(message, str(error)) is not None, f"the refusal says {error}, not {message!r}")
    else:
        raise Broken(f"not refused, which should be: {message!r}")


# -------------------------------------------------------------------- how it computes


def rows_apart(trial: Trial) -> None:
    """What a clip gives does not depend on the others of its batch."""
    observed, horizon = trial.spec.contexts[1], trial.spec.max_horizon
    video = trial.clip(observed, b=3)
    other = torch.cat([trial.clip(observed, b=1, seed=7), video[1:2], video[:1]])
    first, second = (trial.features(each, horizon).maps for each in (video, other))
    scale = trial.rounding * max(1.0, float(first.std()))
    need_close(first[1], second[1], "a clip's features depend on its batch", atol=1e-4 * scale, rtol=1e-4 * trial.rounding)
    need(not torch.allclose(first[0], second[0], atol=1e-3), "other clips have the same features")


def repeatable(trial: Trial) -> None:
    """The same input and generator give the same features, bit by bit, and the input stays as it was."""
    video = trial.clip(trial.spec.contexts[1])
    kept = video.clone()
    first, second = (trial.features(video, trial.spec.max_horizon, seed=5).maps for _ in range(2))
    need(torch.equal(video, kept), "the input was changed")
    need(torch.equal(first, second), "the same input and generator gave other features")


def early_stop_is_exact(trial: Trial) -> None:
    """Features are, bit by bit, those of forwards that do not end at the last tap."""
    observed, horizon = trial.spec.contexts[1], trial.spec.max_horizon
    video = trial.clip(observed)
    stopped = trial.features(video, horizon).maps
    with whole_forwards():
        whole = trial.features(video, horizon).maps
    need(torch.equal(stopped, whole), "features of the whole forward are others than those of one that stops at the last tap")


def frozen(trial: Trial) -> None:
    """With `requires_grad_(False)` neither parameters nor features ask for gradients."""
    with _as_trainable_now(trial.backbone):
        trial.backbone.requires_grad_(False)
        asking = [name for name, parameter in trial.backbone.named_parameters() if parameter.requires_grad]
        need(not asking, f"frozen, and yet these are trained: {asking[:4]}")
        video = trial.clip(trial.spec.contexts[0])
        found = trial.backbone.features(video, horizon=trial.spec.max_horizon, generator=trial.generator())
        need(not found.maps.requires_grad, "frozen, and yet the features ask for gradients")


@contextmanager
def _as_trainable_now(backbone: VideoBackbone) -> Iterator[None]:
    before = {name: parameter.requires_grad for name, parameter in backbone.named_parameters()}
    try:
        yield
    finally:
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(before[name])


def gradients_reach_all(trial: Trial) -> None:
    """What is trained, early blocks and late ones, and every observed frame has gradients: of the features, and of the generative
    loss where there is one."""
    spec, observed = trial.spec, trial.spec.contexts[1]
    looked_at = _looked_at(trial)
    video = trial.clip(observed + (trial.whole() if spec.generative else 0)).requires_grad_()
    if spec.generative:
        found, loss = trial.backbone.joint(video, observed, generator=trial.generator())
    else:
        found, loss = trial.backbone.features(video, horizon=spec.max_horizon), torch.zeros((), device=trial.device)
    # a plain sum may be constant, where maps end in a norm
    weights = torch.randn(found.maps.shape, generator=torch.Generator().manual_seed(2)).to(found.maps)
    grads = torch.autograd.grad((found.maps * weights).mean() + loss, [video, *looked_at.values()], allow_unused=True)
    idle = [name for name, grad in zip(looked_at, grads[1:], strict=True) if grad is None or not grad.any()]
    need(not idle, f"{len(idle)} trainable parameters have no gradient: {idle[:4]}")
    unseen = [frame for frame in range(observed) if grads[0] is None or not grads[0][:, frame].any()]
    need(not unseen, f"no gradient reaches the observed frames {unseen}")


def _looked_at(trial: Trial) -> dict[str, torch.nn.Parameter]:
    trained = {name: parameter for name, parameter in trial.backbone.named_parameters() if parameter.requires_grad}
    if trial.every:
        return trained
    smallest: dict[str, str] = {}
    for name, parameter in trained.items():
        block = re.sub(r"^(.*?\.\d+)\..*$", r"\1", name)
        if block not in smallest or parameter.numel() < trained[smallest[block]].numel():
            smallest[block] = name
    return {name: trained[name] for name in smallest.values()}


# -------------------------------------------------------------------- generative models


def joint_gives_the_features(trial: Trial) -> None:
    """The features of `joint` are those of the observed frames, for the same generator, and the loss is a positive number."""
    spec = trial.spec
    for observed, horizon, since in (
        (spec.contexts[0], spec.span, None),
        (spec.contexts[1], trial.whole(), None),
        (spec.contexts[1], trial.whole(), 1.0),
    ):
        video = trial.clip(observed + horizon)
        joint, loss = trial.joint(video, observed, since, seed=3)
        alone = trial.features(video[:, :observed], horizon, since, seed=3)
        atol, rtol = 1e-3 * trial.rounding * float(alone.maps.std()), 1e-3 * trial.rounding
        need_close(joint.maps, alone.maps, "the features of joint are not those of the observed frames", atol=atol, rtol=rtol)
        same = torch.equal(joint.times, alone.times) and torch.equal(joint.image_to_map, alone.image_to_map)
        need(same, "the features of joint have other times or places")
        need(loss.ndim == 0 and bool(torch.isfinite(loss)) and bool(loss > 0), f"the generative loss is {loss}")


def the_future_stays_out(trial: Trial) -> None:
    """Another future changes the generative loss and not one bit of the features."""
    observed = trial.spec.contexts[1]
    video = trial.clip(observed + trial.whole())
    other = video.clone()
    other[:, observed:] = 1 - other[:, observed:] ** 2
    first, loss = trial.joint(video, observed)
    second, changed = trial.joint(other, observed)
    need(torch.equal(first.maps, second.maps), "another future gives other features: it leaks")
    need(bool(loss != changed), "another future gives the same generative loss")


def the_loss_is_seeded(trial: Trial) -> None:
    """The generative loss, beside features and alone, is the same for the same generator alone, and the input stays as it was."""
    observed = trial.spec.contexts[1]
    video = trial.clip(observed + trial.whole())
    kept = video.clone()
    beside = lambda seed: float(trial.joint(video, observed, seed=seed)[1])  # noqa: E731
    for loss in (beside, lambda seed: float(trial.generative_loss(video, observed, seed=seed))):
        losses = [loss(seed) for seed in (0, 0, 1)]
        need(losses[0] == losses[1], f"the same generator gave the losses {losses[:2]}")
        need(losses[0] != losses[2], "another generator gave the same loss")
    need(torch.equal(video, kept), "the input was changed")


Check = Callable[[Trial], None]
GENERATIVE: tuple[Check, ...] = (joint_gives_the_features, the_future_stays_out, the_loss_is_seeded)
CHECKS: tuple[Check, ...] = (
    outputs_as_declared, frames_in_order, earlier_maps_left_out, places_as_declared, changes_in_place, changes_in_time, refusals,
    rows_apart, repeatable, early_stop_is_exact, frozen, gradients_reach_all, *GENERATIVE,
)  # fmt: skip


def checks_of(backbone: VideoBackbone) -> list[Check]:
    """Those that concern a backbone. Gradients do not concern an offloaded one, which is frozen."""
    idle = [] if backbone.spec.generative else [*GENERATIVE]
    if getattr(backbone, "offloaded", False):
        idle.append(gradients_reach_all)
    return [check for check in CHECKS if check not in idle]
