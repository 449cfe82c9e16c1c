"""Heatmaps over an image grid and soft bins: targets, losses, sub-pixel decoding. Pure functions.

A grid of (h, w) cells tiles an image of (H, W) pixels; the centre of column j is at x = (j + 0.5) W / w - 0.5, since an integer
pixel coordinate is a pixel's centre. `Bins` does the same for a bounded scalar.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def pixels_to_cells(pixels: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Image pixels (..., 2) as (x, y) to fractional cell indices (..., 2) as (column, row)."""
    scale = pixels.new_tensor([grid[1] / size[1], grid[0] / size[0]])
    return (pixels + 0.5) * scale - 0.5


def cells_to_pixels(cells: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The inverse of `pixels_to_cells`."""
    scale = cells.new_tensor([size[1] / grid[1], size[0] / grid[0]])
    return (cells + 0.5) * scale - 0.5


def cell_centres(grid: tuple[int, int], size: tuple[int, int], device: torch.device) -> Tensor:
    """(h * w, 2) pixels of the centres of all cells, row by row."""
    h, w = grid
    axes = torch.arange(w, device=device), torch.arange(h, device=device)
    cells = torch.stack(torch.meshgrid(*axes, indexing="xy"), -1).flatten(0, 1).float()
    return cells_to_pixels(cells, grid, size)


def inside(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(...) bool: whether pixels (..., 2) lie on the image; False for NaN."""
    limit = pixels.new_tensor([size[1], size[0]]) - 0.5
    return ((pixels >= -0.5) & (pixels <= limit)).all(-1)


def gaussian_targets(pixels: Tensor, visible: Tensor, grid: tuple[int, int], size: tuple[int, int], sigma_px: float) -> Tensor:
    """Target distributions over the cells and one last class, "not visible".

    Args:
        pixels: (..., 2). visible: (...) bool. sigma_px: standard deviation of the Gaussian in image pixels.

    Returns:
        (..., h * w + 1), each summing to one: a Gaussian around the pixel, or all mass on the last class where the point is
        not visible or lies outside the image.
    """
    seen = visible & inside(pixels, size)
    cells = pixels_to_cells(torch.where(seen[..., None], pixels, torch.zeros_like(pixels)), grid, size)
    sigma_x, sigma_y = sigma_px * grid[1] / size[1], sigma_px * grid[0] / size[0]
    columns = torch.arange(grid[1], device=pixels.device) - cells[..., 0, None]
    rows = torch.arange(grid[0], device=pixels.device) - cells[..., 1, None]
    log_x, log_y = -(columns**2) / (2 * sigma_x**2), -(rows**2) / (2 * sigma_y**2)
    # softmax per axis: a separable Gaussian, normalised even where it is cut by the border or narrower than a cell
    heat = log_y.softmax(-1)[..., :, None] * log_x.softmax(-1)[..., None, :]
    seen = seen[..., None].to(heat)
    return torch.cat([heat.flatten(-2) * seen, 1 - seen], -1)


def masked_cross_entropy(logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean cross-entropy in nats of soft targets over the entries where mask is set.

    Args:
        logits: (..., n). target: (..., n), summing to one. mask: (...) bool, or None for all.

    Returns:
        a scalar in float32; zero (still attached to the graph) where nothing is set.
    """
    if mask is not None:
        # the targets and not only the loss: a NaN label would reach the gradient through its zero weight
        target = torch.where(mask[..., None], target, torch.zeros_like(target))
    loss = -(target * F.log_softmax(logits.float(), -1)).sum(-1)
    return loss.mean() if mask is None else loss.sum() / mask.sum().clamp_min(1)


def window_soft_argmax(logits: Tensor, window: int = 9) -> Tensor:
    """Where the point most probably is, with sub-cell accuracy: the expectation in the window that holds most, in float32.

    Unlike a soft-argmax over the whole map, two modes do not average into a point between them; unlike the highest cell, a broad
    mode counts for all it holds, which is what an uncertain future looks like.

    Args:
        logits: (..., h, w). window: odd side of the window in cells; it is cut at the border.

    Returns:
        (..., 2) fractional (column, row).

    Raises:
        ValueError: an even window, or logits with a NaN.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and at least 1, got {window}")
    if bool(torch.isnan(logits).any()):
        raise ValueError("window_soft_argmax got NaN logits; the network diverged or its input was NaN")
    w = logits.shape[-1]
    flat = logits.float().flatten(-2)
    probability = flat.detach().softmax(-1).view(-1, 1, *logits.shape[-2:])
    best = F.avg_pool2d(probability, window, 1, window // 2).flatten(1).argmax(-1).view(flat.shape[:-1])
    logits = flat.view(logits.shape)
    # of a sharp peak many windows hold all: centre the window on what it found
    centre = _window_mean(logits.detach(), torch.stack([best % w, best // w], -1), window)
    return _window_mean(logits, centre.round().long(), window)


def likely_path(heat: Tensor, places: Tensor, start: Tensor, bend: float, sweeps: int = 6) -> Tensor:
    """A path through heatmaps at t evenly spaced times that is likely for a point which keeps its velocity but for noise: with
    x_0 = start a high value of sum_i heat_i(x_i) - sum_i |x_{i+1} - 2 x_i + x_{i-1}|^2 / (2 bend^2).

    Found by iterated conditional modes (Besag 1986): begun at the highest place of every heatmap and at straight ways to each of
    them, each place in turn becomes the best beside the others, until none changes; the best of what these lead to. Paths that
    differ at several times may be better.

    Args:
        heat: (b, t, n) log-probabilities at n places, up to a constant at each time. places: (n, 2). start: (b, 2). bend: standard
            deviation of how the velocity changes from one time to the next, in the places' unit. sweeps: most rounds.

    Returns:
        (b, t, 2) places.
    """
    b, t, _ = heat.shape
    highest = places[heat.argmax(-1)]
    count = torch.arange(1, t + 1, device=heat.device)
    share = (count / count[:, None])[..., None]  # of the way to place k at time i; behind it the path goes on as the heatmaps say
    straight = start[:, None, None] + share * (highest - start[:, None])[:, :, None]
    path = torch.where(share <= 1, straight, highest[:, None])
    path = torch.cat([start[:, None, None].expand(-1, t, -1, -1), path], 2)  # (b, t ways, 1 + t, 2)
    chosen = torch.zeros(b, t, t, dtype=torch.long, device=heat.device)
    middle = places.mean(0)
    squares = (places - middle).square().sum(-1)
    for _ in range(sweeps):
        before = path.clone()
        for i in range(1, t + 1):
            # what each bend that x_i is part of asks of it, and how strongly; up to a constant they are one square
            asked = [(2 * path[:, :, i - 1] - path[:, :, i - 2], 1)] if i > 1 else []
            asked += [((path[:, :, i - 1] + path[:, :, i + 1]) / 2, 4)] if i < t else []
            asked += [(2 * path[:, :, i + 1] - path[:, :, i + 2], 1)] if i < t - 1 else []
            score = heat[:, None, i - 1].expand(-1, t, -1)
            if asked:
                pull = torch.stack([weight * (place - middle) for place, weight in asked]).sum(0)
                away = sum(weight for _, weight in asked) * squares - 2 * pull @ (places - middle).mT
                score = score - away / (2 * bend**2)
            chosen[:, :, i - 1] = score.argmax(-1)
            path[:, :, i] = places[chosen[:, :, i - 1]]
        if torch.equal(path, before):
            break
    bends = (path[:, :, 2:] - 2 * path[:, :, 1:-1] + path[:, :, :-2]).square().sum((-2, -1))
    there = heat[:, None].expand(-1, t, -1, -1).gather(-1, chosen[..., None])[..., 0].sum(-1)
    best = (there - bends / (2 * bend**2)).argmax(-1)
    return path[torch.arange(b, device=heat.device), best, 1:]


def _window_mean(logits: Tensor, centre: Tensor, window: int) -> Tensor:
    """The expected (column, row) under the softmax of logits (..., h, w) in the window around whole cells (..., 2)."""
    h, w = logits.shape[-2:]
    reach = torch.arange(window, device=logits.device) - window // 2
    columns, rows = (centre[..., None] + reach).unbind(-2)
    index = rows.clamp(0, h - 1)[..., :, None] * w + columns.clamp(0, w - 1)[..., None, :]
    on_grid = ((rows >= 0) & (rows < h))[..., :, None] & ((columns >= 0) & (columns < w))[..., None, :]
    local = logits.flatten(-2).gather(-1, index.flatten(-2)).unflatten(-1, (window, window))
    weight = local.masked_fill(~on_grid, -math.inf).flatten(-2).softmax(-1).unflatten(-1, (window, window))
    return torch.stack([(weight.sum(-2) * columns).sum(-1), (weight.sum(-1) * rows).sum(-1)], -1)


@dataclass(frozen=True)
class Bins:
    """A bounded scalar cut into `count` equal bins: low and high are the outer edges, in the scalar's unit.

    With `circular`, high wraps to low (an angle).
    """

    low: float
    high: float
    count: int
    circular: bool = False

    def __post_init__(self) -> None:
        least = 3 if self.circular else 2  # two on a circle do not tell which way round
        if not (self.count >= least and self.high > self.low and math.isfinite(self.high - self.low)):
            raise ValueError(
                f"bins want count >= {least} and finite low < high, got {self.count} bins over [{self.low}, {self.high}]"
            )

    @property
    def width(self) -> float:
        return (self.high - self.low) / self.count

    def targets(self, values: Tensor, sigma_bins: float = 0.7) -> Tensor:
        """(...) values to (..., count) Gaussian soft targets, summing to one; values beyond the edges count as the edge bin's
        centre, or wrap where the bins are circular."""
        position = (values - self.low) / self.width - 0.5
        if not self.circular:
            position = position.clamp(0, self.count - 1)
        away = torch.arange(self.count, device=values.device) - position[..., None]
        if self.circular:
            away = torch.remainder(away + self.count / 2, self.count) - self.count / 2
        return (-(away**2) / (2 * sigma_bins**2)).softmax(-1)

    def decode(self, logits: Tensor, window: int = 5) -> Tensor:
        """(..., count) logits to (...) values in float32: the expectation in a window of bins around the highest one."""
        logits = logits.float()
        if self.circular:
            window = min(window, self.count - 1 + self.count % 2)  # odd, and no bin counts twice
        reach = torch.arange(window, device=logits.device) - window // 2
        near = logits.argmax(-1)[..., None] + reach
        if self.circular:
            weight = logits.gather(-1, near % self.count).softmax(-1)
        else:
            off = (near < 0) | (near >= self.count)
            weight = logits.gather(-1, near.clamp(0, self.count - 1)).masked_fill(off, -math.inf).softmax(-1)
        value = self.low + ((weight * near).sum(-1) + 0.5) * self.width
        span = self.high - self.low
        return self.low + torch.remainder(value - self.low, span) if self.circular else value
