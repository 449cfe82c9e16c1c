"""Pictures of what a policy sees and does: heatmap overlays, rollout videos, charts, and a report in one HTML file.

Images are uint8 RGB arrays (H, W, 3). Pixels are (x, y) and an integer is a pixel's centre; column j of a grid with w cells
over an image W pixels wide is centred at x = (j + 0.5) * W / w - 0.5. Nothing here reads a clock, a random number or the
network: the same input gives the same picture.
"""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, get_args

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from para_video.statistics import Estimate
from para_video.training import write_atomically

Frame = NDArray[np.uint8]
Colour = tuple[int, int, int]
MarkStyle = Literal["dot", "cross", "ring", "trajectory"]

# Okabe and Ito's palette: told apart with any colour vision. Policies take them in the order in which they are given.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
SUCCESS: Colour = (0, 114, 178)
FAILURE: Colour = (184, 70, 0)
DECODED: Colour = (90, 225, 255)
BAND: Colour = (16, 18, 22)
INK, PAPER, GREY = "#1b1f24", "#ffffff", "#5a6270"


# -------------------------------------------------------------------- frames


def upscale(frame: ArrayLike, factor: int) -> Frame:
    """Enlarge a small frame (bicubic), so that marks and words drawn on it are crisp; `upscale_points` moves the points.

    Args:
        frame: uint8 (H, W, 3).
        factor: whole number, at least 1.

    Returns:
        uint8 (factor * H, factor * W, 3).
    """
    image = _frame(frame)
    if factor < 1 or factor != int(factor):
        raise ValueError(f"upscale factor must be a whole number from 1, got {factor}")
    height, width = image.shape[:2]
    return np.asarray(Image.fromarray(image).resize((int(width * factor), int(height * factor)), Image.Resampling.BICUBIC))


def upscale_points(points: ArrayLike, factor: float) -> NDArray[np.float64]:
    """Where pixels (..., 2) of a frame lie after `upscale` by the same factor."""
    return (np.asarray(points, np.float64) + 0.5) * factor - 0.5


def overlay_heatmap(frame: ArrayLike, heatmap: ArrayLike, *, alpha: float = 0.7) -> Frame:
    """Lay a heatmap over a frame: colour and opacity both follow the probability relative to the heatmap's peak.

    Args:
        frame: uint8 (H, W, 3).
        heatmap: (h, w), not negative; any scale. All zeros leaves the frame as it is.
        alpha: opacity at the peak, in [0, 1].

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: the heatmap is not a finite, non-negative (h, w) array.
    """
    image = _frame(frame)
    grid = np.asarray(heatmap, np.float32)
    if grid.ndim != 2 or not np.isfinite(grid).all() or (grid < 0).any():
        raise ValueError(f"heatmap must be (h, w), finite and not negative; got shape {grid.shape}; pass probabilities, not logits")
    if grid.max() == 0:
        return image.copy()
    # Pillow resizes in the half-pixel convention of this file: cells and pixels share their outer edges.
    dense = Image.fromarray(grid / grid.max()).resize((image.shape[1], image.shape[0]), Image.Resampling.BILINEAR)
    strength = np.clip(np.asarray(dense), 0, 1)
    colours = matplotlib.colormaps["inferno"](0.25 + 0.75 * strength)[..., :3] * 255
    return _blend(image, colours, alpha * np.sqrt(strength))


def time_colours(n: int) -> list[Colour]:
    """n colours from early (violet) to late (yellow), the order of time in every picture here."""
    ramp = matplotlib.colormaps["plasma"](np.linspace(0.1, 0.95, max(n, 1)))[:n, :3]
    return [(int(r), int(g), int(b)) for r, g, b in np.round(ramp * 255)]


def draw_points(
    frame: ArrayLike,
    points: ArrayLike,
    *,
    style: MarkStyle = "dot",
    radius: float = 3.0,
    colours: Sequence[Colour] | None = None,
) -> Frame:
    """Draw points at sub-pixel positions, antialiased, each with a dark outline so that it shows on any background.

    Args:
        frame: uint8 (H, W, 3).
        points: (n, 2) pixels (x, y) in order of time; a point with a NaN is left out, one outside the frame is cut off.
        style: `trajectory` is dots joined by lines.
        radius: pixels.
        colours: n RGB triples; default `time_colours(n)`.

    Returns:
        uint8 (H, W, 3).
    """
    image = _frame(frame)
    places = np.asarray(points, np.float64).reshape(-1, 2)
    inks = time_colours(len(places)) if colours is None else list(colours)
    if len(inks) != len(places):
        raise ValueError(f"{len(places)} points want as many colours, got {len(inks)}")
    if style not in get_args(MarkStyle):
        raise ValueError(f"unknown style '{style}'; choose from {', '.join(get_args(MarkStyle))}")
    image = image.copy()
    if style == "trajectory":
        for start, end, ink in zip(places[:-1], places[1:], inks[1:], strict=True):
            _stamp(image, np.stack([start, end]), radius, lambda shape, ends: _segment_distance(shape, *ends) - radius / 4, ink)
    for place, ink in zip(places, inks, strict=True):
        _stamp(image, place[None], radius, lambda shape, at: _mark_distance(shape, at[0], style, radius), ink)
    return image


def label(frame: ArrayLike, text: str, *, place: Literal["top", "bottom"] = "top", background: Colour = BAND) -> Frame:
    """Write one line in a translucent band at the top or bottom of a frame; long text shrinks, then ends in an ellipsis.

    Args:
        frame: uint8 (H, W, 3). text: one line. place: where the band lies. background: its colour.

    Returns:
        uint8 (H, W, 3).
    """
    if place not in ("top", "bottom"):
        raise ValueError(f"unknown place '{place}'; choose from top, bottom")
    image = _frame(frame).copy()
    height = min(_band_height(image.shape[1]), image.shape[0])
    rows = slice(0, height) if place == "top" else slice(image.shape[0] - height, None)
    band = _blend(
        image[rows], np.broadcast_to(np.array(background, np.float64), image[rows].shape), np.full(image[rows].shape[:2], 0.78)
    )
    image[rows] = _write(band, text)
    return image


def heatmap_strip(
    frames: ArrayLike,
    heatmaps: ArrayLike,
    points: ArrayLike | None = None,
    *,
    truth: ArrayLike | None = None,
    labels: Sequence[str] | None = None,
    columns: int | None = None,
    factor: int | None = None,
) -> Frame:
    """One panel per time: the frame, its heatmap, the decoded point (cyan cross) and, where known, the true one (white ring).

    Args:
        frames: uint8 (n, H, W, 3), or one (H, W, 3) shared by all times.
        heatmaps: (n, h, w), one per time.
        points: (n, 2) decoded pixels. truth: (n, 2) true pixels; NaN where there is none.
        labels: n lines written above the panels. columns: panels per row, default all in one row up to 6.
        factor: enlargement, default whatever makes panels about 256 pixels wide.

    Returns:
        uint8 (rows * H' + gaps, columns * W' + gaps, 3), on white.
    """
    maps = np.asarray(heatmaps)
    n = len(maps)
    images = np.asarray(frames)
    images = np.broadcast_to(images, (n, *images.shape)) if images.ndim == 3 else images
    for name, values in (("frames", images), ("points", points), ("truth", truth), ("labels", labels)):
        if values is not None and len(np.asarray(values)) != n:
            raise ValueError(f"{n} heatmaps want as many {name}, got {len(np.asarray(values))}")
    factor = max(1, round(256 / images.shape[2])) if factor is None else factor
    radius, panels = max(3.0, images.shape[2] * factor / 32), []
    for i in range(n):
        panel = overlay_heatmap(upscale(images[i], factor), maps[i])
        layers: list[tuple[ArrayLike | None, MarkStyle, Colour]] = [
            (truth, "ring", (255, 255, 255)),
            (points, "cross", DECODED),
        ]
        for marks, style, ink in layers:
            if marks is not None:
                place = upscale_points(np.asarray(marks)[i], factor)
                panel = draw_points(panel, place, style=style, radius=radius, colours=[ink])
        panels.append(panel if labels is None else titled(panel, labels[i]))
    return panel_grid(panels, columns or min(n, 6))


def side_by_side(
    videos: Sequence[ArrayLike],
    titles: Sequence[str],
    outcomes: Sequence[bool],
    *,
    columns: int | None = None,
    hold: int = 0,
    width: int = 320,
) -> Frame:
    """Rollouts next to each other; shorter ones freeze on their last frame. Each shows its outcome from its end on, in words and as
    the colour of the frame around it.

    Args:
        videos: uint8 (t, H, W, 3) of one H and W; t may differ. titles: above the videos. outcomes: whether each succeeded.
        columns: videos in a row, default all. hold: frames for which the last picture stands after all have ended.
        width: small videos are enlarged by a whole number to about so many pixels.

    Returns:
        uint8 (longest t + hold, H', W', 3) with H' and W' even, as video encoders want them.
    """
    takes = [np.asarray(video) for video in videos]
    if not takes or any(v.ndim != 4 or len(v) == 0 for v in takes) or len({v.shape[1:] for v in takes}) > 1:
        raise ValueError(
            f"side_by_side wants videos (t, H, W, 3) of one size, at least a frame each; got {[v.shape for v in takes]}"
        )
    factor = max(1, round(width / takes[0].shape[2]))
    frames = []
    for t in range(max(map(len, takes)) + hold):
        panels = []
        for video, title, success in zip(takes, titles, outcomes, strict=True):
            panel = upscale(video[min(t, len(video) - 1)], factor)
            words, colour = outcome_words(success) if t >= len(video) - 1 else ("", BAND)
            panels.append(np.concatenate([_bar(title, panel.shape[1]), panel, _bar(words, panel.shape[1], colour)]))
            _paint_border(panels[-1], colour)
        frames.append(_even(panel_grid(panels, columns or len(takes), gap=6)))
    return np.stack(frames)


def outcome_words(success: bool) -> tuple[str, Colour]:
    """What an episode's outcome is called, and its colour."""
    return ("✓ success", SUCCESS) if success else ("✗ failed", FAILURE)


def titled(image: ArrayLike, text: str, *, background: Colour = BAND) -> Frame:
    """A frame (H, W, 3) under a bar with one line; see `label`."""
    frame = _frame(image)
    return np.concatenate([_bar(text, frame.shape[1], background), frame])


def matches_picture(first: ArrayLike, second: ArrayLike, pixels: ArrayLike, found: ArrayLike, right: ArrayLike) -> Frame:
    """Two views side by side, with lines from points of the one to where they were found in the other.

    Args:
        first, second: (H, W, 3) frames of one size. pixels, found: (n, 2) in each. right: (n,) bool, coloured as successes are.
    """
    scale, frames = 3, [upscale(_frame(frame), 3) for frame in (first, second)]
    image = Image.fromarray(np.concatenate(frames, 1))
    pen = ImageDraw.Draw(image)
    across = np.array([frames[0].shape[1], 0])
    starts, ends = upscale_points(pixels, scale), upscale_points(found, scale) + across
    for start, end, good in zip(starts, ends, np.asarray(right), strict=True):
        colour = SUCCESS if good else FAILURE
        pen.line([*start, *end], fill=colour, width=1)
        for x, y in (start, end):
            pen.ellipse([x - 3, y - 3, x + 3, y + 3], outline=PAPER, fill=colour)
    return np.asarray(image)


def write_picture(path: str | Path, image: ArrayLike) -> None:
    """Write a PNG of a frame, uint8 (H, W, 3)."""
    Image.fromarray(_frame(image)).save(path, optimize=True)


def write_animation(path: str | Path, frames: ArrayLike, fps: float = 10.0, *, quality: int = 70) -> None:
    """Write frames, uint8 (t, H, W, 3), as an animated WebP that plays again and again, which a Markdown page shows as a picture.

    Args:
        quality: 0 to 100, of a lossy picture.
    """
    first, *rest = (Image.fromarray(_frame(frame)) for frame in np.asarray(frames))
    first.save(
        path, format="WEBP", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, quality=quality, method=6
    )


# -------------------------------------------------------------------- charts


def success_bars(
    path: str | Path,
    cells: Mapping[str, Mapping[str, Mapping[str, Any]]],
    *,
    references: Mapping[str, Mapping[str, Any] | float] | None = None,
    title: str = "",
) -> None:
    """A bar per policy and view with its 95 % interval and its count, and the references as horizontal lines; a PNG.

    Args:
        path: where to write.
        cells: {policy: {view: cell}}, a cell holding `successes`, `episodes` and `wilson95` (low, high in [0, 1]); of a mean over
            several settings `rate` and `interval95` are drawn instead. A policy that was not run on a view has no bar there.
        references: {name: cell or rate in [0, 1]}, such as the expert, the read-out oracle and the blind replay.
        title: above the chart.

    Raises:
        ValueError: no cells, a cell without episodes, or an interval that does not hold its rate.
    """
    views = list(dict.fromkeys(view for policy in cells.values() for view in policy))
    if not views:
        raise ValueError("success_bars got no cells; pass {policy: {view: {'successes', 'episodes', 'wilson95'}}}")
    width = 0.8 / len(cells)
    with matplotlib.style.context("default"):
        figure, axes = _axes(max(6.0, 1.2 + 0.85 * len(cells) * len(views)), 4.2)
        handles: list[Any] = []
        for i, (policy, by_view) in enumerate(cells.items()):
            at = [views.index(view) + (i - (len(cells) - 1) / 2) * width for view in by_view]
            rates, below, above = np.array([_interval(policy, view, cell) for view, cell in by_view.items()]).reshape(-1, 3).T
            bars = axes.bar(at, rates, width * 0.88, color=PALETTE[i % len(PALETTE)], label=display_name(policy))
            handles.append(bars)
            axes.errorbar(at, rates, (below, above), fmt="none", ecolor=INK, elinewidth=1.3, capsize=4)
            for x, top, cell in zip(at, rates + above, by_view.values(), strict=True):
                count = f"{cell['rate']:.0%}" if "interval95" in cell else f"{cell['successes']}/{cell['episodes']}"
                axes.annotate(count, (x, top), (0, 3), textcoords="offset points", ha="center", fontsize=9)
        for (name, reference), dash in zip((references or {}).items(), cycle(["--", ":", "-."])):
            name = f"{display_name(name)}, {_rate(reference):.0%}"
            look = {"color": GREY, "linewidth": 1.8, "linestyle": dash, "zorder": 0.9, "label": name}
            handles.append(axes.axhline(_rate(reference), **look))
        axes.set(ylim=(0, 1.12), ylabel="success rate")
        axes.set_xticks(range(len(views)), [display_name(view) for view in views])
        axes.set_yticks(np.linspace(0, 1, 6), [f"{p}%" for p in range(0, 101, 20)])
        _finish(path, figure, axes, title, handles)


def success_curves(
    path: str | Path,
    panels: Mapping[str, Mapping[str, Mapping[float, Estimate]]],
    *,
    xlabels: Sequence[str],
    title: str = "",
    ceilings: Mapping[str, Mapping[float, float]] | None = None,
    log: bool = False,
) -> None:
    """Success against a number, a panel beside the other, a curve with its intervals for each policy; a PNG.

    Args:
        path: where to write.
        panels: {panel: {policy: {x: estimate in [0, 1]}}}; a policy has one colour and mark in all panels.
        xlabels: below each panel. title: above the first. ceilings: {panel: {x: what no policy can pass}}. log: the x axis is
            logarithmic.

    Raises:
        ValueError: nothing to draw, or not a label for each panel.
    """
    policies = list(dict.fromkeys(policy for curves in panels.values() for policy in curves))
    if not policies or len(xlabels) != len(panels):
        raise ValueError(f"success_curves got {len(policies)} policies and {len(xlabels)} labels for {len(panels)} panels")
    with matplotlib.style.context("default"):
        figure = Figure(figsize=(2.2 + 3.4 * len(panels), 3.8), dpi=150, facecolor=PAPER, layout="constrained")
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (panel, curves), xlabel in zip(grid, panels.items(), xlabels, strict=True):
            _style(axes)
            for policy, curve in curves.items():
                i = policies.index(policy)
                x = sorted(curve)
                look = {"color": PALETTE[i % len(PALETTE)], "marker": "os^Dv"[i % 5], "markersize": 7}
                below, above = ([abs(getattr(curve[at], end) - curve[at].mean) for at in x] for end in ("low", "high"))
                axes.errorbar(x, [curve[at].mean for at in x], (below, above), capsize=4, label=display_name(policy), **look)
            if limit := (ceilings or {}).get(panel):
                x = sorted(limit)
                axes.plot(x, [limit[at] for at in x], color=GREY, linestyle="--", label="single-view ceiling")
            axes.set(ylim=(-0.03, 1.05), xlabel=xlabel, xscale="log" if log else "linear")
            if len(panels) > 1:
                axes.set_title(panel, fontsize=11)
            if log:
                ticks = sorted({at for curve in curves.values() for at in curve})
                axes.set_xticks(ticks, [f"{at:g}" for at in ticks])
                axes.minorticks_off()
        grid[0].set_ylabel("success rate")
        grid[0].set_yticks(np.linspace(0, 1, 6), [f"{p}%" for p in range(0, 101, 20)])
        handles = {name: handle for axes in grid for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        grid[-1].legend(handles.values(), handles.keys(), loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
        figure.savefig(path, format="png", metadata={"Software": None})


def error_curve(
    path: str | Path, curves: Mapping[str, Mapping[Any, float]], *, title: str = "", ylabel: str = "median error (px)"
) -> None:
    """Pixel error per horizon, one curve a method, observed frames shaded; a PNG.

    Args:
        path: where to write.
        curves: {method: {horizon: pixels}}; a horizon is in frames after the last observed one (<= 0 was seen), a number or,
            as JSON keys are, its text. The first method is drawn strongest.
        title: above the chart. ylabel: what is measured.
    """
    series = {name: sorted((float(h), float(error)) for h, error in curve.items()) for name, curve in curves.items()}
    if not any(series.values()):
        raise ValueError("error_curve got no points; pass {method: {horizon: pixels}}")
    with matplotlib.style.context("default"):
        figure, axes = _axes(6.4, 4.0)
        for i, (name, points) in enumerate(series.items()):
            look = {"color": PALETTE[i % len(PALETTE)], "marker": "os^Dv"[i % 5], "linewidth": 1.8 if i else 2.6}
            axes.plot(*zip(*points, strict=True), label=display_name(name), **look)
        horizons = sorted({horizon for points in series.values() for horizon, _ in points})
        if horizons[0] <= 0:
            axes.axvspan(horizons[0] - 0.5, 0.5, color="#e8ecf1", zorder=0, label="observed frames")
        axes.set(xlim=(horizons[0] - 0.5, horizons[-1] + 0.5), xlabel="frames after the last observed one", ylabel=ylabel)
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        _finish(path, figure, axes, title)


def labelled_points(
    path: str | Path, points: Mapping[str, tuple[float, float]], *, xlabel: str, ylabel: str, log: bool = False,
    spans: Mapping[str, tuple[float, float]] | None = None,
) -> None:  # fmt: skip
    """One point a name; a PNG.

    Args:
        points: {name: (x, y)}. log: the x axis is logarithmic, where it spans more than a decade. spans: {name: (low, high)}
            intervals of y.
    """
    places = [x for x, _ in points.values()]
    wide = log and max(places) > 10 * min(places)
    with matplotlib.style.context("default"):
        figure, axes = _axes(6.4, 4.0)
        for i, (name, (x, y)) in enumerate(points.items()):
            low, high = (spans or {}).get(name, (y, y))
            reach = [[y - low], [high - y]] if spans else None
            look = {"color": PALETTE[i % len(PALETTE)], "marker": "os^Dv"[i % 5], "markersize": 8}
            axes.errorbar(x, y, reach, label=name, linestyle="", capsize=4, **look)
        axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log" if wide else "linear")
        _finish(path, figure, axes, "")


def value_grid(
    path: str | Path, values: ArrayLike, rows: Sequence[str], columns: Sequence[str], *, xlabel: str, ylabel: str, title: str = ""
) -> None:
    """Values (rows, columns) as a coloured grid, darker where they are larger, each written into its cell; a PNG."""
    table = np.asarray(values, dtype=float)
    with matplotlib.style.context("default"):
        figure = Figure(figsize=(1.5 + 1.0 * len(columns), 1.4 + 0.55 * len(rows)), dpi=110, layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(table, cmap="viridis_r", aspect="auto")
        for (i, j), value in np.ndenumerate(table):
            ground = image.to_rgba(value)[:3]  # legible on light cells too
            colour = "white" if np.dot(ground, (0.299, 0.587, 0.114)) < 0.55 else "black"
            axes.text(j, i, f"{value:.3g}", ha="center", va="center", color=colour)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        figure.colorbar(image)
        figure.savefig(path, format="png", metadata={"Software": None})


def display_name(key: str) -> str:
    """How a summary's key reads in a chart or table: `azimuth+18` as `azimuth +18°`, `para` as `PARA`."""
    known = {"para": "PARA", "act": "ACT", "same": "same view", "readout": "read-out oracle", "expert": "scripted expert"}
    known |= {"seconds": "training, s", "ms_per_act": "per decision, ms"}
    turned = re.fullmatch(r"(azimuth|elevation)([+\-±]\d+(?:\.\d+)?)", key)
    return f"{turned[1]} {turned[2]}°" if turned else known.get(key, key.replace("_", " "))


# -------------------------------------------------------------------- the report


def write_table(
    page: Path, name: str, header: Sequence[str], rows: Sequence[Sequence[str]], made: str, *, heading: str = ""
) -> None:
    """Put a table, and a line that says what made it, in its place on a Markdown page; see `write_place`."""
    write_place(page, name, "\n".join([markdown_table(header, rows), "", made]), heading=heading)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def told_cell(cell: Mapping[str, Any]) -> str:
    """A cell's successes of its episodes, with their interval."""
    low, high = cell["wilson95"]
    return f"{cell['successes']}/{cell['episodes']} ({low:.0%}-{high:.0%})"


def write_place(page: Path, name: str, text: str, *, heading: str = "") -> None:
    """Put text in its place on a Markdown page, and leave the rest.

    Args:
        name: of what writes the text; the place lies between comments with it. heading: how a page that is not there begins.

    Raises:
        ValueError: the page has no such place.
    """
    start, end = f"<!-- table: {name} -->\n", "<!-- end of table -->"
    whole = page.read_text() if page.exists() else f"{heading}{start}{end}\n"
    before, found, rest = whole.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{page} has no place for the table: it must contain the lines {start.strip()!r} and {end!r}")
    write_atomically(page, f"{before}{start}\n{text}\n\n{end}{after}".encode())


def write_report(
    path: str | Path,
    summary: Mapping[str, Any],
    media: Sequence[tuple[str, str, str | Path]] = (),
    *,
    title: str,
    intro: str = "",
) -> None:
    """Write a run as one HTML file that needs nothing else: pictures and videos are inside, no script, no network.

    Args:
        path: where to write; replaced in one step.
        summary: plain values. `policies` {policy: {`cells`, and any other values, such as `steps`, `seconds` and `ms_per_act`
            {`p50`, `p95`}}} and `oracle` {name: cell or rate} become the results table; `command` a code block; `config` and
            `versions` tables of their own; mappings of numbers with the same keys (say errors by horizon) share one table;
            other values are listed as facts. Cells are as in `success_bars`, `held` shown where present.
        media: (title, caption, file); png, jpg, gif, mp4 or webm.
        title: the page's heading. intro: a paragraph below it.

    Raises:
        ValueError: a media file of another kind.
    """
    body = [f"<h1>{_text(title)}</h1>", f"<p>{_text(intro)}</p>" if intro else ""]
    body += [_results(summary), _numbers(summary), *(_figure(*item) for item in media)]
    if "command" in summary:
        body.append(f"<h2>Made by</h2><pre><code>{_text(summary['command'])}</code></pre>")
    facts = {k: v for k, v in summary.items() if k not in _APART and not _is_numbers(v) and v is not None}
    if "seconds" in facts:
        facts["in all, s"] = facts.pop("seconds")  # a policy's are those of its training
    for heading, values in (("Run", facts), ("Configuration", summary.get("config")), ("Versions", summary.get("versions"))):
        if values:
            rows = [[display_name(str(k)), _value(v)] for k, v in values.items()]
            body.append(f"<h2>{heading}</h2>" + _table(["", ""], rows, head=False))
    page = _PAGE.format(title=_text(title), style=_STYLE, body="\n".join(part for part in body if part))
    write_atomically(Path(path), page.encode())


_APART = ("policies", "oracle", "command", "config", "versions", "schedule", "expert")
"""What of a summary is shown in a place of its own, or tells programs with what rows may be compared."""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5a6270; --paper: #ffffff; --panel: #f3f5f8; --line: #d5dae1; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #a3abb8; --paper: #14171b; --panel: #1e2329; --line: #363d47; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .4rem 1.2rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } tbody th { white-space: nowrap; } thead th { color: var(--soft); }
td small, figcaption, .note { color: var(--soft); } td small { display: block; white-space: nowrap; }
figure { margin: 2.2rem 0; } figcaption { margin-top: .5rem; } figcaption b { color: var(--ink); display: block; }
img, video { display: block; max-width: 100%; height: auto; border-radius: 6px; background: #ffffff; }
pre { background: var(--panel); padding: .8rem 1rem; border-radius: 6px; overflow-x: auto; }
tr.reference th, tr.reference td { color: var(--soft); font-weight: 400; }
"""

_MEDIA = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".mp4": "video/mp4",
    ".webm": "video/webm",
}


def _results(summary: Mapping[str, Any]) -> str:
    """The policies' rows, then those that bound them."""
    policies, oracle = summary.get("policies") or {}, summary.get("oracle") or {}
    views = list(dict.fromkeys(view for policy in policies.values() for view in policy["cells"]))
    if not views:
        return ""
    if oracle and "same" not in views:
        views.append("same")  # where references are measured
    cost = list(dict.fromkeys(key for policy in policies.values() for key in policy if key != "cells"))
    rows = []
    for name, policy in policies.items():
        cells = [_cell(policy["cells"].get(view)) for view in views]
        rows.append([display_name(name), *cells, *(_cost(policy.get(key)) for key in cost)])
    for name, reference in oracle.items():
        if reference is not None:
            rows.append([display_name(name), *(_cell(reference) if view == "same" else "" for view in views), *[""] * len(cost)])
    table = _table(["", *map(display_name, [*views, *cost])], rows, faint=len(policies))
    return (
        f"<h2>Closed-loop success</h2>{table}<p class='note'>Successes out of episodes, with Wilson 95 % intervals. "
        "Held: the success lasted. The rows in grey are references, not policies.</p>"
    )


def _cell(cell: Mapping[str, Any] | float | None) -> str:
    """A cell as HTML."""
    if cell is None:
        return ""
    if not isinstance(cell, Mapping):
        return f"{float(cell):.0%}"
    lines = [_text(f"{cell['successes']}/{cell['episodes']}")]
    if "wilson95" in cell:
        low, high = cell["wilson95"]
        lines.append(f"<small>{_rate(cell):.0%} [{low:.0%}, {high:.0%}]</small>")
    if "held" in cell:
        lines.append(f"<small>held {_text(cell['held'])}</small>")
    return "".join(lines)


def _cost(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"<small>{_text(name)} {_value(number)}</small>" for name, number in value.items())
    return "" if value is None else _value(value)


def _numbers(summary: Mapping[str, Any]) -> str:
    """Mappings of numbers, those with the same keys as rows of one table."""
    groups: dict[tuple[str, ...], list[list[str]]] = {}
    for name, values in summary.items():
        if name not in _APART and _is_numbers(values):
            groups.setdefault(tuple(map(str, values)), []).append([display_name(name), *map(_value, values.values())])
    return "".join(f"<h2>Measured</h2>{_table(['', *keys], rows)}" for keys, rows in groups.items())


def _is_numbers(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value.values())
    )


def _figure(title: str, caption: str, path: str | Path) -> str:
    file = Path(path)
    kind = _MEDIA.get(file.suffix.lower())
    if kind is None:
        raise ValueError(f"the report cannot show '{file.name}'; choose from {', '.join(_MEDIA)}")
    source = f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode('ascii')}"
    if kind.startswith("video"):
        shown = f'<video src="{source}" controls loop muted playsinline aria-label="{_text(title)}"></video>'
    else:
        shown = f'<img src="{source}" alt="{_text(title)}">'
    return f"<figure>{shown}<figcaption><b>{_text(title)}</b>{_text(caption)}</figcaption></figure>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, head: bool = True, faint: int | None = None) -> str:
    """Rows of HTML; the first column and the header are escaped here, rows from `faint` on are references."""
    top = "<thead><tr>" + "".join(f"<th>{_text(name)}</th>" for name in header) + "</tr></thead>" if head else ""
    lines = []
    for i, (name, *values) in enumerate(rows):
        kind = ' class="reference"' if faint is not None and i >= faint else ""
        lines.append(f"<tr{kind}><th>{_text(name)}</th>" + "".join(f"<td>{value}</td>" for value in values) + "</tr>")
    return f'<div class="scroll"><table>{top}<tbody>{"".join(lines)}</tbody></table></div>'


def _value(value: Any) -> str:
    """A value as HTML."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    return _text(f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else value)


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)


# -------------------------------------------------------------------- drawing


def _frame(frame: ArrayLike) -> Frame:
    image = np.asarray(frame)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"a frame is uint8 (H, W, 3), got {image.dtype} {image.shape}; for floats in [0, 1] multiply by 255 and round"
        )
    return image


def _blend(image: Frame, colours: NDArray, opacity: NDArray) -> Frame:
    """Colours (H, W, 3) over the image with opacity (H, W) in [0, 1]."""
    cover = opacity[..., None]
    return np.round(image * (1 - cover) + colours * cover).astype(np.uint8)


def _stamp(
    image: Frame, points: NDArray, radius: float, distance: Callable[[tuple[int, ...], NDArray], NDArray], ink: Colour
) -> None:
    """Fill, in place, where a signed distance is negative; half a pixel either side of the edge is the antialiasing.

    Args:
        points: (n, 2) that the mark lies around; with a NaN there is none. radius: how far it reaches, but for an eighth and its
            outline. distance: (H, W) in pixels, of a shape and points.
    """
    if not np.isfinite(points).all():
        return
    reach = 1.125 * radius + 3
    left, top = np.floor(points.min(0) - reach).clip(0).astype(int)
    right, bottom = np.ceil(points.max(0) + reach).clip(0).astype(int)
    part = image[top:bottom, left:right]
    away = distance(part.shape, points - (left, top))
    dark = _blend(part, np.zeros(3), 0.75 * np.clip(1.5 - away, 0, 1))
    part[:] = _blend(dark, np.array(ink, np.float64), np.clip(0.5 - away, 0, 1))


def _segment_distance(shape: tuple[int, ...], start: NDArray, end: NDArray) -> NDArray:
    """Distance (H, W) of every pixel to a segment."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    offset = np.stack([x - start[0], y - start[1]], -1)
    along = end - start
    fraction = np.clip(offset @ along / max(along @ along, 1e-12), 0, 1)
    return np.linalg.norm(offset - fraction[..., None] * along, axis=-1)


def _mark_distance(shape: tuple[int, ...], place: NDArray, style: str, radius: float) -> NDArray:
    """Signed distance (H, W) to one mark."""
    if style == "cross":  # open in the middle, so that what it marks can be seen
        ways = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]) * radius
        return np.min([_segment_distance(shape, place + 0.4 * way, place + way) for way in ways], axis=0) - max(0.6, radius / 8)
    to_centre = _segment_distance(shape, place, place)
    return np.abs(to_centre - radius) - max(0.6, radius / 10) if style == "ring" else to_centre - radius


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font that Matplotlib carries, so that pictures are the same on every machine."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _band_height(width: int) -> int:
    return int(np.clip(width // 11, 12, 34))


def _write(band: Frame, text: str) -> Frame:
    """A line in white, left of the middle height of a band."""
    height, width = band.shape[:2]
    size = max(8, int(height * 0.62))
    while size > 8 and _font(size).getlength(text) > width - 8:
        size -= 1
    while len(text) > 1 and _font(size).getlength(text) > width - 8:
        text = text.rstrip("…")[:-1] + "…"
    image = Image.fromarray(band)
    ImageDraw.Draw(image).text((max(4, height // 4), height / 2), text, fill=(255, 255, 255), font=_font(size), anchor="lm")
    return np.asarray(image)


def _bar(text: str, width: int, background: Colour = BAND) -> Frame:
    return _write(np.full((_band_height(width), width, 3), background, np.uint8), text)


def panel_grid(panels: Sequence[Frame], columns: int, gap: int = 4) -> Frame:
    """Equal panels in rows of `columns` on white, with gaps between them."""
    height, width = panels[0].shape[:2]
    rows = math.ceil(len(panels) / columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, panel in enumerate(panels):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[y : y + height, x : x + width] = panel
    return sheet


def _paint_border(image: Frame, colour: Colour) -> None:
    """A line around a frame, on its outer pixels."""
    wide = max(2, image.shape[1] // 64)
    for edge in (image[:wide], image[-wide:], image[:, :wide], image[:, -wide:]):
        edge[:] = colour


def _even(image: Frame) -> Frame:
    height, width = image.shape[:2]
    return np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _rate(reference: Mapping[str, Any] | float) -> float:
    if isinstance(reference, Mapping):
        return reference["rate"] if "interval95" in reference else reference["successes"] / reference["episodes"]
    return float(reference)


def _interval(policy: str, view: str, cell: Mapping[str, Any]) -> tuple[float, float, float]:
    """A cell's rate and how far its interval reaches below and above."""
    if "interval95" not in cell and cell["episodes"] < 1:
        raise ValueError(f"{policy} / {view}: a rate needs at least one episode, got {cell['episodes']}")
    rate, (low, high) = _rate(cell), cell["interval95" if "interval95" in cell else "wilson95"]
    if not low - 1e-9 <= rate <= high + 1e-9:
        raise ValueError(f"{policy} / {view}: the interval [{low}, {high}] does not hold the rate {rate}; give both as fractions")
    return rate, max(rate - low, 0.0), max(high - rate, 0.0)


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), dpi=150, facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot()
    _style(axes)
    return figure, axes


def _style(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e3e7ec", linewidth=0.8)
    axes.set_axisbelow(True)


def _finish(path: str | Path, figure: Figure, axes: Any, title: str, handles: Sequence[Any] | None = None) -> None:
    """Title, legend beside the chart (by default in the order of drawing), file."""
    if title:
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    figure.savefig(path, format="png", metadata={"Software": None})
