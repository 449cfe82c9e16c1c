"""Heatmaps and bins: values by hand, sub-pixel accuracy, gradients, masks."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from para_video.heatmap import (
    Bins,
    cells_to_pixels,
    gaussian_targets,
    inside,
    likely_path,
    masked_cross_entropy,
    pixels_to_cells,
    window_soft_argmax,
)

YES = torch.tensor(True)


def uniform(*shape: int, low: float = 0.0, high: float = 1.0, seed: int = 0) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def bump(cell: Tensor, grid: tuple[int, int], sigma: float = 1.0) -> Tensor:
    """Logits (..., h, w) of a Gaussian around fractional cells (..., 2)."""
    columns = torch.arange(grid[1]) - cell[..., :1]
    rows = torch.arange(grid[0]) - cell[..., 1:]
    return -(rows[..., :, None] ** 2 + columns[..., None, :] ** 2) / (2 * sigma**2)


# -------------------------------------------------------------------- cells and pixels


def test_cells_by_hand() -> None:
    """An image of 8 x 16 pixels under a grid of 4 x 4: cells of 2 rows and 4 columns of pixels."""
    pixels = torch.tensor([[1.5, 0.5], [-0.5, -0.5], [15.5, 7.5], [3.5, 3.5]])
    cells = torch.tensor([[0.0, 0.0], [-0.5, -0.5], [3.5, 3.5], [0.5, 1.5]])
    torch.testing.assert_close(pixels_to_cells(pixels, (4, 4), (8, 16)), cells)
    torch.testing.assert_close(cells_to_pixels(cells, (4, 4), (8, 16)), pixels)


def test_cells_of_an_equal_grid_are_the_pixels() -> None:
    pixels = uniform(10, 2, high=20.0)
    torch.testing.assert_close(pixels_to_cells(pixels, (20, 20), (20, 20)), pixels)


def test_inside_is_bounded_by_the_outer_edges() -> None:
    pixels = torch.tensor([[-0.5, -0.5], [7.5, 3.5], [7.6, 0.0], [0.0, 3.6], [-0.6, 0.0], [math.nan, 0.0]])
    assert inside(pixels, (4, 8)).tolist() == [True, True, False, False, False, False]


# -------------------------------------------------------------------- targets


def test_targets_sum_to_one_wherever_the_point_is() -> None:
    pixels = uniform(200, 2, low=-20.0, high=84.0)
    target = gaussian_targets(pixels, uniform(200, seed=1) > 0.3, (16, 16), (64, 64), 2.0)
    assert target.shape == (200, 257)
    torch.testing.assert_close(target.sum(-1), torch.ones(200))
    assert float(target.min()) >= 0


@pytest.mark.parametrize("sigma", [2.0, 4.0, 6.0])
def test_the_mean_of_a_target_is_its_pixel(sigma: float) -> None:
    """A Gaussian sampled at spacings up to its deviation keeps its mean to a thousandth; here the spacing is 2 px."""
    pixels = uniform(50, 2, low=25.0, high=38.0)
    heat = gaussian_targets(pixels, torch.ones(50, dtype=torch.bool), (32, 32), (64, 64), sigma)[:, :-1].view(-1, 32, 32)
    axis = torch.arange(32.0)
    cells = torch.stack([(heat.sum(1) * axis).sum(-1), (heat.sum(2) * axis).sum(-1)], -1)
    torch.testing.assert_close(cells_to_pixels(cells, (32, 32), (64, 64)), pixels, atol=0.01, rtol=0)


def test_target_by_hand() -> None:
    """One row of three cells, one pixel each, sigma 1: weights exp(-1/2), 1, exp(-1/2)."""
    target = gaussian_targets(torch.tensor([1.0, 0.0]), YES, (1, 3), (1, 3), 1.0)
    side = math.exp(-0.5)
    torch.testing.assert_close(target, torch.tensor([side, 1.0, side, 0.0]) / (1 + 2 * side))


@pytest.mark.parametrize(
    ("pixel", "visible"), [((5.0, 5.0), False), ((64.0, 5.0), True), ((5.0, -3.0), True), ((math.nan, 5.0), False)]
)
def test_unseen_points_are_the_last_class(pixel: tuple[float, float], visible: bool) -> None:
    target = gaussian_targets(torch.tensor(pixel), torch.tensor(visible), (8, 8), (64, 64), 2.0)
    assert target[-1] == 1 and not target[:-1].any()


def test_targets_narrower_than_a_cell_are_the_nearest_cell() -> None:
    target = gaussian_targets(torch.tensor([17.0, 33.0]), YES, (8, 8), (64, 64), 1e-2)[:-1].view(8, 8)
    assert target[4, 2] == 1


# -------------------------------------------------------------------- losses


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(4.0), 0.0]])
    target = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    first, second = -0.5 * math.log(0.25) - 0.5 * math.log(0.75), -math.log(0.8)
    torch.testing.assert_close(masked_cross_entropy(logits, target), torch.tensor((first + second) / 2))
    mask = torch.tensor([False, True])
    torch.testing.assert_close(masked_cross_entropy(logits, target, mask), torch.tensor(second))


def test_cross_entropy_of_nothing_is_zero_with_a_graph() -> None:
    logits = uniform(3, 4).requires_grad_()
    loss = masked_cross_entropy(logits, torch.full((3, 4), 0.25), torch.zeros(3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


def test_masked_entries_get_no_gradient_even_where_their_target_is_nan() -> None:
    logits = uniform(2, 4).requires_grad_()
    target = torch.stack([torch.full((4,), 0.25), torch.full((4,), math.nan)])
    loss = masked_cross_entropy(logits, target, torch.tensor([True, False]))
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert logits.grad[0].any() and not logits.grad[1].any()


def test_cross_entropy_is_float32_for_half_logits() -> None:
    logits = uniform(5, 300, low=-3, high=3)
    target = torch.softmax(uniform(5, 300, seed=1), -1)
    rounded = logits.bfloat16()
    loss = masked_cross_entropy(rounded, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, masked_cross_entropy(rounded.float(), target))


def test_gradients_of_the_cross_entropy() -> None:
    logits = uniform(2, 5).double().requires_grad_()
    target = torch.softmax(uniform(2, 5, seed=1).double(), -1)
    mask = torch.tensor([True, False])

    def loss(x: Tensor) -> Tensor:  # in float64: the float32 of the loss itself is too coarse for finite differences
        each = -(target * x.log_softmax(-1)).sum(-1)
        return each[mask].mean()

    masked_cross_entropy(logits, target, mask).backward()
    expected = torch.autograd.grad(loss(logits), logits)[0]
    torch.testing.assert_close(logits.grad, expected, atol=1e-6, rtol=1e-5)
    # and by hand: (softmax - target) of the one entry
    torch.testing.assert_close(logits.grad[0], (logits.softmax(-1) - target)[0].detach(), atol=1e-6, rtol=1e-5)


# -------------------------------------------------------------------- sub-pixel decoding


@pytest.mark.parametrize("sigma", [0.7, 1.0, 1.5])
def test_peaks_are_found_to_a_twentieth_of_a_cell(sigma: float) -> None:
    cells = uniform(300, 2, low=3.0, high=28.0)
    found = window_soft_argmax(bump(cells, (32, 32), sigma))
    assert float((found - cells).abs().max()) < 0.05


def test_decoding_follows_a_shift() -> None:
    heat = torch.full((20, 24), -9.0)
    heat[5:9, 6:10] = uniform(4, 4, seed=3)
    moved = torch.roll(heat, (7, 8), (0, 1))
    torch.testing.assert_close(window_soft_argmax(moved), window_soft_argmax(heat) + torch.tensor([8.0, 7.0]))


def test_two_modes_do_not_blend() -> None:
    left, right = torch.tensor([6.3, 10.0]), torch.tensor([25.0, 20.0])
    heat = torch.logaddexp(bump(left, (32, 32)), bump(right, (32, 32)) - 0.3)
    torch.testing.assert_close(window_soft_argmax(heat), left, atol=0.05, rtol=0)


def test_a_broad_mode_that_holds_more_beats_a_higher_spike() -> None:
    broad, spike = torch.tensor([8.0, 9.0]), torch.tensor([24.0, 22.0])
    heat = torch.logaddexp(bump(broad, (32, 32), 2.5), bump(spike, (32, 32), 0.4) + 1.0)
    torch.testing.assert_close(window_soft_argmax(heat), broad, atol=0.05, rtol=0)
    torch.testing.assert_close(window_soft_argmax(heat, window=1), spike)


def test_at_the_border_the_window_is_cut() -> None:
    heat = torch.full((4, 4), -30.0)
    heat[0, 0] = heat[0, 1] = 0.0
    torch.testing.assert_close(window_soft_argmax(heat), torch.tensor([0.5, 0.0]))
    corners = torch.tensor([[0.0, 0.0], [31.0, 31.0], [0.0, 31.0]])
    found = window_soft_argmax(bump(corners, (32, 32), 0.5))
    assert float((found - corners).abs().max()) < 0.25
    assert float(found.min()) >= 0 and float(found.max()) <= 31


def test_struck_out_cells_do_not_count() -> None:
    heat = bump(torch.tensor([5.0, 5.0]), (12, 12)).masked_fill(torch.arange(12)[:, None] < 6, -math.inf)
    found = window_soft_argmax(heat)
    assert float(found[1]) >= 6 and bool(torch.isfinite(found).all())


def test_decoding_is_float32_for_half_logits() -> None:
    assert window_soft_argmax(bump(torch.tensor([5.2, 5.0]), (12, 12)).bfloat16()).dtype == torch.float32


def test_the_expectation_has_the_gradient_of_its_window() -> None:
    """d x / d logit = p (column - x) inside the window, nothing outside."""
    heat = bump(torch.tensor([5.2, 4.9]), (12, 12)).requires_grad_()
    found = window_soft_argmax(heat, window=3)
    found[0].backward()
    window = heat.detach()[4:7, 4:7]
    p = window.flatten().softmax(0).view(3, 3)
    expected = torch.zeros(12, 12)
    expected[4:7, 4:7] = p * (torch.arange(4.0, 7.0)[None] - found[0].detach())
    torch.testing.assert_close(heat.grad, expected)


def test_nan_and_even_windows_are_refused() -> None:
    heat = torch.zeros(4, 4)
    with pytest.raises(ValueError, match="window must be odd and at least 1, got 4"):
        window_soft_argmax(heat, window=4)
    heat[1, 1] = math.nan
    with pytest.raises(ValueError, match="NaN logits"):
        window_soft_argmax(heat)


# -------------------------------------------------------------------- bins


def test_bins_by_hand() -> None:
    """Four bins over [0, 8]: centres 1, 3, 5, 7. A narrow target at 3 is the second bin; at 4 it is shared by two."""
    bins = Bins(0.0, 8.0, 4)
    assert bins.width == 2
    torch.testing.assert_close(bins.targets(torch.tensor([3.0, 4.0]), 0.1), torch.tensor([[0.0, 1, 0, 0], [0, 0.5, 0.5, 0]]))
    logits = torch.tensor([[0.0, 9.0, 0.0, 0.0], [-30.0, -30.0, 0.0, math.log(3.0)]])
    # the second: a quarter at 5 and three quarters at 7
    torch.testing.assert_close(bins.decode(logits), torch.tensor([3.0, 6.5]), atol=2e-3, rtol=0)


@pytest.mark.parametrize("circular", [False, True])
def test_bins_round_trip(circular: bool) -> None:
    bins = Bins(-math.pi, math.pi, 24, circular=circular)
    values = uniform(200, low=-math.pi + 0.4, high=math.pi - 0.4)
    target = bins.targets(values)
    torch.testing.assert_close(target.sum(-1), torch.ones(200))
    torch.testing.assert_close(bins.decode(target.log()), values, atol=0.02 * bins.width, rtol=0)


def test_values_beyond_the_edges_count_as_the_edge_bins_centre() -> None:
    bins = Bins(0.0, 1.0, 10)
    torch.testing.assert_close(bins.targets(torch.tensor([-5.0, 7.0])), bins.targets(torch.tensor([0.05, 0.95])))


def test_circular_bins_wrap() -> None:
    bins = Bins(-math.pi, math.pi, 36, circular=True)
    values = torch.tensor([math.pi - 0.01, -math.pi + 0.01, math.pi, 3.1])
    target = bins.targets(values)
    assert bool((target[:, 0] > 0.2).all() & (target[:, -1] > 0.2).all())
    away = torch.remainder(bins.decode(target.log()) - values + math.pi, 2 * math.pi) - math.pi
    assert float(away.abs().max()) < 0.02 * bins.width
    torch.testing.assert_close(bins.targets(values + 2 * math.pi), target, atol=1e-5, rtol=0)


def test_decoded_angles_stay_within_the_range() -> None:
    bins = Bins(-math.pi, math.pi, 12, circular=True)
    found = bins.decode(uniform(500, 12, low=-4, high=4))
    assert float(found.min()) >= -math.pi and float(found.max()) <= math.pi


def test_two_modes_in_bins_do_not_blend() -> None:
    bins = Bins(0.0, 1.0, 32)
    mixed = torch.logaddexp(bins.targets(torch.tensor(0.2)).log(), bins.targets(torch.tensor(0.8)).log() - 0.3)
    assert abs(float(bins.decode(mixed)) - 0.2) < 0.01


@pytest.mark.parametrize("circular", [False, True])
def test_few_bins_are_not_counted_twice(circular: bool) -> None:
    """With fewer bins than the window is wide, every bin has its own weight."""
    bins = Bins(0.0, 3.0, 3, circular=circular)
    logits = torch.tensor([0.0, math.log(2.0), 0.0])
    torch.testing.assert_close(bins.decode(logits), torch.tensor(1.5))
    logits = torch.tensor([math.log(2.0), math.log(6.0), 0.0])
    expected = (0.5 * 2 + 1.5 * 6 + 2.5) / 9
    torch.testing.assert_close(bins.decode(logits), torch.tensor(expected))


@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_few_circular_bins_lean_to_neither_side(count: int) -> None:
    bins = Bins(-math.pi, math.pi, count, circular=True)
    centres = bins.low + bins.width * (torch.arange(count) + 0.5)
    torch.testing.assert_close(bins.decode(bins.targets(centres).log()), centres)
    with pytest.raises(ValueError, match="count >= 3"):
        Bins(-math.pi, math.pi, 2, circular=True)


def test_bins_are_differentiable() -> None:
    bins = Bins(0.0, 1.0, 8)
    assert torch.autograd.gradcheck(bins.targets, uniform(4, low=0.1, high=0.9).double().requires_grad_())


def test_targets_are_differentiable_in_the_pixel() -> None:
    pixels = uniform(3, 2, low=5.0, high=20.0).double().requires_grad_()
    seen = torch.ones(3, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda p: gaussian_targets(p, seen, (6, 6), (24, 24), 3.0), pixels)


@pytest.mark.parametrize(("low", "high", "count"), [(0.0, 1.0, 1), (1.0, 1.0, 4), (0.0, math.inf, 4), (math.nan, 1.0, 4)])
def test_impossible_bins_are_refused(low: float, high: float, count: int) -> None:
    with pytest.raises(ValueError, match="bins want count >= 2 and finite low < high"):
        Bins(low, high, count)


# -------------------------------------------------------------------- paths

PLACES = torch.stack(torch.meshgrid(torch.arange(24.0), torch.arange(20.0), indexing="xy"), -1).flatten(0, 1)


def path_score(path: Tensor, heat: Tensor, start: Tensor, bend: float) -> float:
    """What `likely_path` maximises, of one clip's path (t, 2) through heat (t, n)."""
    whole = torch.cat([start[None], path])
    there = (path[:, None] - PLACES).norm(dim=-1).argmin(-1)
    bends = whole[2:] - 2 * whole[1:-1] + whole[:-2]
    return float(heat.gather(1, there[:, None]).sum() - bends.square().sum() / (2 * bend**2))


def test_no_other_place_at_one_time_makes_a_path_more_probable() -> None:
    for seed in range(5):
        heat, start = uniform(1, 4, len(PLACES), high=6.0, seed=seed), uniform(1, 2, high=19.0, seed=100 + seed)
        path = likely_path(heat, PLACES, start, 2.0)[0]
        score = path_score(path, heat[0], start[0], 2.0)
        for time, place in itertools.product(range(4), PLACES):
            other = path.clone()
            other[time] = place
            assert path_score(other, heat[0], start[0], 2.0) < score + 1e-4
        highest = PLACES[heat[0].argmax(-1)]
        straight = start + torch.arange(1, 5)[:, None] / 4 * (highest[3] - start)
        for other in (highest, straight.round()):
            assert path_score(other, heat[0], start[0], 2.0) < score + 1e-4


def test_a_path_follows_heatmaps_and_leaves_one_that_would_bend_it() -> None:
    start = torch.tensor([[2.0, 10.0]])
    true = torch.tensor([[4.0, 10.0], [6, 10], [8, 10], [10, 11], [12, 12], [13, 13]])
    heat = bump(true, (20, 24), 2.0)
    torch.testing.assert_close(likely_path(heat.flatten(1)[None], PLACES, start, 2.0)[0], true)
    heat[0] = bump(torch.tensor([2.0, 4.0]), (20, 24), 2.0).clamp_min(-4)  # the first is sure of a place on another way
    path = likely_path(heat.flatten(1)[None], PLACES, start, 1.0)[0]
    assert (path - true).norm(dim=-1).max() < 2 and path[0, 1] > 8


def test_a_path_of_one_time_is_its_peak_and_clips_are_on_their_own() -> None:
    heat, start = uniform(3, 1, len(PLACES)), uniform(3, 2, high=19.0)
    torch.testing.assert_close(likely_path(heat, PLACES, start, 2.0), PLACES[heat.argmax(-1)])
    heat = uniform(3, 4, len(PLACES), high=5.0)
    alone = torch.cat([likely_path(heat[i : i + 1], PLACES, start[i : i + 1], 2.0) for i in range(3)])
    torch.testing.assert_close(likely_path(heat, PLACES, start, 2.0), alone)
