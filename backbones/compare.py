"""Backbones side by side: the same head, budget and questions on the frozen features of each.

    python -m backbones.compare mini efficientnet-lite0 --episodes 20

Of every backbone: how well a PARA head that is trained on its features reads circles and a robot's next moves, what a clip costs,
whether its features find a point again from another side, and, with --episodes, what a policy on it loses when the camera moves.
Each answer is kept in rows.json as soon as it is known; run it again after a cut, or with more names. NAME@random is the same
network with weights drawn anew: what is left of a figure there is the architecture's.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from backbones import backbone_class, backbone_options, build_backbone, catalogue_entry, ready
from para_video.agent import Batch, VideoPolicy
from para_video.batches import Augmentation, DemoBatches, circle_batch
from para_video.circles import CircleVideos
from para_video.correspondence import Finder, Views, by_chance, by_features, common_points, drawn, same_pixel, score
from para_video.demos import Demo, Plan, cached_demos
from para_video.feature_cache import CachedBatches, cache_features
from para_video.features import VideoBackbone, did_you_mean
from para_video.figures import labelled_points, value_grid
from para_video.heads import ParaHead
from para_video.held_out import circle_errors, demo_errors
from para_video.policy import DEFAULT_SCHEDULE
from para_video.precision import autocast, precision_of
from para_video.readout import ReadoutSpec, readout_spec
from para_video.rollout import Replay, evaluate, evaluation_seeds, rollout
from para_video.rows import Row, Rows
from para_video.runs import command_line, plain_settings
from para_video.sims.metaworld import TASKS, MetaWorldEnv, MetaWorldServo, episode_steps
from para_video.sims.shifts import TRAINING_CAMERA, Shift, ShiftedEnv
from para_video.training import FitConfig, fit, to_device

KEY = ("backbone", "options")
OBSERVED, FUTURE = 4, 6
"""Frames of a circle clip, and of the clip that costs are told of."""
WITHIN_PX = (2.0, 4.0, 8.0)
TOLD_PX = "4"
"""Of these, the one that tables and pictures show."""
MOST_EXPERT_STEPS = 60
"""Scenes are looked at after up to this many steps of the expert, so that the arm stands in many places."""


@dataclass(frozen=True)
class CompareConfig:
    """Compare backbones."""

    backbones: Annotated[tuple[str, ...], tyro.conf.Positional] = (
        "mini", "mini-procedural", "mini-random", "efficientnet-lite0", "efficientnet-lite0@random",
    )  # fmt: skip
    """Names in the catalogue, or package.module:Class; with @random for weights drawn anew."""
    options: Annotated[str, tyro.conf.arg(metavar="JSON")] = "{}"
    """Options of backbones by name, such as '{"svd": {"source": "folder", "dtype": "bfloat16"}}'."""
    steps: int = 500
    """Training steps of each head on demonstrations."""
    circle_steps: int = 500
    """Training steps of each head on circles."""
    batch_size: int = 8
    """Clips per step."""
    learning_rate: float = 3e-3
    """Peak learning rate of each head."""
    clips: int = 256
    """Circle clips that heads are trained on."""
    held_out: int = 128
    """Circle clips that they are measured on."""
    task: str = "pick-place-v3"
    """Meta-World task of the demonstrations and of the policies."""
    demos: int = 5
    """Demonstrations that heads are trained on."""
    unseen: int = 8
    """Demonstrations that they are measured on."""
    copies: int = 3
    """Augmented copies of every demonstrated step."""
    tasks: tuple[str, ...] = ("pick-place-v3", "hammer-v3", "shelf-place-v3", "coffee-pull-v3")
    """Tasks whose scenes correspondence is measured in; `mini` has seen none of them."""
    scenes: int = 4
    """Scenes of each of these tasks."""
    azimuths: tuple[float, ...] = (6.0, 12.0, 18.0, 24.0, 30.0)
    """Degrees between the two views."""
    points: int = 150
    """Points of the foreground, and as many of the background, in each pair of views."""
    episodes: int = 0
    """Episodes of a policy in each view; 0 for no policies."""
    turned_deg: float = 18.0
    """The other view of policies, in degrees of azimuth from the training camera's."""
    size: int = 128
    """Side of the square frames in pixels."""
    repeats: int = 10
    """Timed repetitions of the features of a clip."""
    seed: int = 0
    """Of weights, training batches, clips and scenes."""
    out: Path = Path("runs/compare")
    """Folder for rows.json and the pictures."""

    def __post_init__(self) -> None:
        read_outs = ("steps", "circle_steps", "batch_size", "clips", "held_out", "demos", "unseen", "copies")
        counts = (*read_outs, "scenes", "points", "repeats")
        low = {name: getattr(self, name) for name in counts if getattr(self, name) < 1}
        if low or self.episodes < 0:
            raise ValueError(f"these must be at least 1: {low}; and episodes at least 0, got {self.episodes}")
        if not self.tasks or not self.azimuths:
            raise ValueError("tasks and azimuths, in which correspondence is measured, are one at least each")
        if unknown := sorted({self.task, *self.tasks} - set(TASKS)):
            raise ValueError(f"unknown tasks {unknown}{did_you_mean(unknown, TASKS)}; choose from {', '.join(TASKS)}")
        for name in self.backbones:
            catalogue_entry(_named(name)[0])
        try:
            options = {**json.loads(self.options)}
        except (ValueError, TypeError) as error:
            raise ValueError(f"options must be a JSON object of backbones' options by name, got {self.options!r}") from error
        for name, each in options.items():
            backbone_options(_named(name)[0], json.dumps(each))  # to tell at once what is wrong with them

    def rows(self) -> Rows:
        """What is known, in the folder `out`. Raises ValueError if it was measured with other settings."""
        free = ("backbones", "options", "episodes", "repeats", "out")
        settings = {name: value for name, value in plain_settings(self).items() if name not in free}
        return Rows(self.out / "rows.json", {**settings, "schedule": asdict(DEFAULT_SCHEDULE)}, KEY)


def _named(name: str) -> tuple[str, bool]:
    """The catalogue's name or import string, and whether weights are drawn anew. Raises ValueError for another word than random."""
    plain, _, weights = name.partition("@")
    if weights not in ("", "random"):
        raise ValueError(f"unknown weights {weights!r} in {name!r}; write {plain!r} or '{plain}@random'")
    return plain, bool(weights)


def build(name: str, options: Mapping[str, Any], seed: int = 0) -> VideoBackbone:
    """A backbone by its name, as `CompareConfig.backbones` takes it, ready to be read.

    Raises:
        ValueError: an unknown name, or another word than random behind the @. Others: as of `build_backbone`.
    """
    plain, drawn = _named(name)
    torch.manual_seed(seed)
    backbone = build_backbone(plain, **options)
    if drawn:
        redraw(backbone)
        measure_norms(backbone, seed)
    return ready(backbone, options)


@torch.no_grad()
def redraw(module: nn.Module) -> None:
    """Give all layers the weights that they begin training with; parameters that belong to none (tokens, positions, scales) keep
    their mean and standard deviation."""
    for part in module.modules():
        if callable(reset := getattr(part, "reset_parameters", None)):
            reset()
        else:
            for parameter in part.parameters(recurse=False):
                parameter.normal_(float(parameter.mean()), float(parameter.std(correction=0)))


@torch.no_grad()
def measure_norms(backbone: VideoBackbone, seed: int) -> None:
    """Let batch norms, where there are any, take their statistics from circle clips: with those that they begin training with,
    maps of drawn weights fade from layer to layer."""
    norms = {part: part.momentum for part in backbone.modules() if isinstance(part, nn.BatchNorm2d)}
    if not norms:
        return
    for norm in norms:
        norm.train().momentum = None  # the mean of all batches, which is one
    observed = backbone.spec.contexts[0]
    clips = CircleVideos(seed, observed=observed, future=0, size=math.lcm(128, backbone.spec.size_multiple))
    backbone.features(torch.stack([clips[i].video for i in range(8)]).to(backbone.device).float() / 255)
    for norm, momentum in norms.items():
        norm.eval().momentum = momentum


# -------------------------------------------------------------------- what a clip costs


def cost(name: str, options: Mapping[str, Any], size: int, repeats: int) -> dict[str, Any]:
    """What the features of one clip take, in the precision in which policies run.

    Milliseconds are those of the fastest repetition, to which what else the machine does only adds. Memory is the most MB of the
    backbone and what it computes, None where the system does not say; it is for a process of its own, as what was freed before
    would be taken again unseen.
    """
    backbone_class(_named(name)[0])  # the libraries that it imports are not its own
    before = _resident_mb("VmRSS")
    backbone = build(name, options)
    device = backbone.device
    observed, future = taken(backbone)
    clip = torch.rand(1, observed, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    horizon = future if backbone.spec.predicts else 0
    seconds = []
    if reset := _reset_peak(device):
        reset()
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        with torch.no_grad(), autocast(device):
            backbone.features(clip, horizon=horizon)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begun)
    peak = None
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 1e6
    elif reset and before is not None:
        peak = (_resident_mb("VmHWM") or math.nan) - before
    return {
        "ms": 1e3 * min(seconds[1:]),
        "memory_mb": peak,
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "channels": backbone.spec.channels,
        "stride": backbone.spec.stride,
        "threads": torch.get_num_threads(),
        "precision": precision_of(device),
    }


def taken(backbone: VideoBackbone) -> tuple[int, int]:
    """Frames of a clip that is seen and of what follows, as near to `OBSERVED` and `FUTURE` as a backbone takes them. One that does
    not predict is asked for the future all the same: its head tells it from the last frame."""
    low, high = backbone.spec.contexts
    return max(low, min(OBSERVED, high)), min(FUTURE, backbone.spec.max_horizon) if backbone.spec.predicts else FUTURE


def _resident_mb(name: str) -> float | None:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((1024 * float(line.split()[1]) / 1e6 for line in lines if line.startswith(f"{name}:")), None)


def _reset_peak(device: torch.device) -> Callable[[], object] | None:
    """What makes the most memory so far be forgotten: else that of loading would count."""
    if device.type == "cuda":
        return functools.partial(torch.cuda.reset_peak_memory_stats, device)
    clear = Path("/proc/self/clear_refs")
    return functools.partial(clear.write_text, "5") if clear.exists() else None


def cost_apart(name: str, options: Mapping[str, Any], config: CompareConfig) -> dict[str, Any]:
    """`cost` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(cost, name, options, config.size, config.repeats).result()


# -------------------------------------------------------------------- read-outs


class Kept(Dataset[Batch]):
    """Batches with their features, which are kept in bf16; item i is one of them, the same whenever it is asked for."""

    def __init__(self, batches: Sequence[Batch], seed: int) -> None:
        self.batches, self.seed = batches, seed

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, step: int) -> Batch:
        return self.batches[int(np.random.default_rng((self.seed, step)).integers(len(self.batches)))]


def head_on(backbone: VideoBackbone, spec: ReadoutSpec, seed: int) -> VideoPolicy:
    """A policy with a fresh PARA head on a frozen backbone."""
    torch.manual_seed(seed)
    times = tuple(float(t) for t in range(1, DEFAULT_SCHEDULE.chunk + 1))
    return VideoPolicy(backbone, ParaHead(backbone.spec.channels, spec), times, frozen=True)


def circles_readout(backbone: VideoBackbone, config: CompareConfig) -> dict[str, Any]:
    """Median pixels by which a trained head misses circles of held-out clips: on seen frames, on future ones, by frame."""
    observed, future = taken(backbone)
    clips: dict[str, Any] = {"size": config.size, "observed": observed, "future": future}
    training, unseen = CircleVideos(seed=2 * config.seed, **clips), CircleVideos(seed=2 * config.seed + 1, **clips)
    policy = head_on(backbone, ReadoutSpec(), config.seed)
    device = backbone.device
    kept = []
    for first in tqdm(range(0, config.clips, config.batch_size), desc="circles' features", unit="batch"):
        # the past is asked for apart, as it is when circles are looked for
        since = 1 - observed if first // config.batch_size % 4 == 0 else 0
        batch = circle_batch(training, range(first, first + config.batch_size), observed, since)
        with torch.no_grad(), autocast(device):
            features, _ = policy.features(batch.clip.to(device), batch.times)
        blank = torch.zeros(1).expand(batch.clip.shape)
        halved = features.with_maps(features.maps.bfloat16())
        kept.append(replace(batch, clip=blank, features=to_device(halved, torch.device("cpu"))))  # all of them fill a GPU
    seconds = _train(policy, Kept(kept, config.seed), config.circle_steps, config, "circles")
    error = circle_errors(policy, unseen, config.held_out)["error"]
    return {
        "px_seen": float(error[:, :observed].nanmedian()),
        "px_future": float(error[:, observed:].nanmedian()),
        "px": {str(t + 1 - observed): float(error[:, t].nanmedian()) for t in range(error.shape[1])},
        "training_s": seconds,
        "precision": precision_of(device),
    }


def robot_readout(backbone: VideoBackbone, config: CompareConfig) -> tuple[VideoPolicy, dict[str, Any]]:
    """A policy whose head is trained on the frozen features of a few demonstrations, and its errors on others: median pixels and
    millimetres, and the share of right gripper commands."""
    shown, unseen = demonstrations(config.task, config.size, config.demos, config.unseen)
    policy = head_on(backbone, readout_spec(shown), config.seed)
    clips = DemoBatches(
        shown, batch_size=1, chunk=DEFAULT_SCHEDULE.chunk, stride=DEFAULT_SCHEDULE.frame_stride, augmentation=Augmentation(),
        context=backbone.spec.contexts[0], seed=config.seed,
    )  # fmt: skip
    config.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.out, prefix=".features-") as folder:
        cache = cache_features(policy, clips, config.copies, Path(folder))
        batches = CachedBatches(cache, clips[0], batch_size=config.batch_size, seed=config.seed)
        seconds = _train(policy, batches, config.steps, config, config.task)
    found = demo_errors(policy, unseen, backbone.spec.contexts[0])
    return policy, {**found, "training_s": seconds, "precision": precision_of(backbone.device)}


def _train(policy: VideoPolicy, batches: Dataset, steps: int, config: CompareConfig, label: str) -> float:
    return fit(policy, lambda *_: batches, FitConfig(steps, config.learning_rate, seed=config.seed), label=label).seconds


@functools.cache
def demonstrations(task: str, size: int, shown: int, unseen: int) -> tuple[Sequence[Demo], Sequence[Demo]]:
    """Demonstrations to train on and others to measure on, recorded or read from the cache."""
    with MetaWorldEnv(task, size=size) as env, tqdm(total=shown + unseen, desc="demonstrations", unit="demo") as bar:
        plan = Plan(shown + unseen, spread_over=64)
        demos = cached_demos(env, plan, on_episode=lambda _, ok: bar.update(int(ok))).demos
    return demos[:shown], demos[shown:]


def closed_loop(policy: VideoPolicy, config: CompareConfig) -> dict[str, Any]:
    """Successes of a policy by view, "same" and "turned", and their drop from the one to the other with its 95 % interval."""
    seeds, cells = evaluation_seeds(config.episodes), {}
    for view, offset in {"same": 0.0, "turned": config.turned_deg}.items():
        with ShiftedEnv(config.task, Shift(azimuth=offset), size=config.size) as env:
            run = functools.partial(
                rollout, env, policy, MetaWorldServo(), context=policy.backbone.spec.contexts[0], horizon=episode_steps(config.task)
            )
            with tqdm(total=len(seeds), desc=f"{config.task} {view}", unit="episode") as bar:
                cells[view] = evaluate(run, seeds, on_episode=lambda _: bar.update()).summary()
    return {**cells, "drop": drop(cells["same"], cells["turned"]), "blind_replay": blind_replay(config)}


def blind_replay(config: CompareConfig) -> dict[str, Any]:
    """The cell of a demonstration's replay, which needs no eyes and so knows no view."""
    demo = demonstrations(config.task, config.size, config.demos, config.unseen)[0][0]
    with MetaWorldEnv(config.task, size=config.size) as env:
        run = functools.partial(rollout, env, Replay(demo), MetaWorldServo(), context=0, horizon=episode_steps(config.task))
        return evaluate(run, evaluation_seeds(config.episodes)).summary()


def drop(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[float]:
    """By how much a success rate falls from one cell to another, and the 95 % interval that follows from their Wilson intervals
    (Newcombe 1998, "Interval estimation for the difference between independent proportions", method 10)."""
    fall, ((low, high), (low2, high2)) = before["rate"] - after["rate"], (before["wilson95"], after["wilson95"])
    below = math.hypot(before["rate"] - low, high2 - after["rate"])
    above = math.hypot(high - before["rate"], after["rate"] - low2)
    return [fall, fall - below, fall + above]


# -------------------------------------------------------------------- correspondence


@functools.cache
def scenes(tasks: tuple[str, ...], count: int, azimuths: tuple[float, ...], size: int, seed: int) -> list[Views]:
    """`count` moments of each task, each seen by the training camera and by one turned by each azimuth."""
    found, placements = [], [Shift(azimuth=azimuth).moved(TRAINING_CAMERA) for azimuth in (0.0, *azimuths)]
    for task in tqdm(tasks, desc="scenes", unit="task"):
        with MetaWorldEnv(task, size=size) as env:
            for number in range(count):
                rng = np.random.default_rng((seed, number))
                env.reset(int(rng.integers(1000)))
                for _ in range(int(rng.integers(MOST_EXPERT_STEPS))):
                    env.step(env.expert_action())
                found.append(Views.of(env, placements))
    return found


def correspondence(finder: Callable[[Views], Finder], config: CompareConfig) -> dict[str, Any]:
    """How near a finder comes to the true pixels, for foreground and background, by azimuth and over "all" of them.

    Args:
        finder: made anew for each scene's views.
    """
    errors: dict[str, dict[str, list[torch.Tensor]]] = {"foreground": {}, "background": {}}
    for number, views in enumerate(scenes(config.tasks, config.scenes, config.azimuths, config.size, config.seed)):
        find = finder(views)
        for k, azimuth in enumerate(config.azimuths):
            generator = torch.Generator().manual_seed(10_000 * config.seed + 100 * number + k)
            pairs = drawn(common_points(views, 0, k + 1), config.points, generator)
            error = (find(pairs) - pairs.truth).norm(dim=-1)
            for kind, chosen in (("foreground", pairs.foreground), ("background", ~pairs.foreground)):
                for name in (f"{azimuth:g}", "all"):
                    errors[kind].setdefault(name, []).append(error[chosen])
    return {kind: {name: score(torch.cat(parts), WITHIN_PX) for name, parts in each.items()} for kind, each in errors.items()}


@torch.no_grad()
def feature_finder(backbone: VideoBackbone, views: Views) -> Finder:
    """Finds points by a backbone's features of single frames; a backbone that needs more of them sees copies."""
    device, count = backbone.device, backbone.spec.contexts[0]
    parts = [backbone.features(frame[None, None].expand(-1, count, -1, -1, -1).to(device)) for frame in views.frames]
    return by_features(parts[0].with_maps(torch.cat([part.maps for part in parts])), tuple(views.frames.shape[-2:]))  # type: ignore[arg-type]  # two sides


def guesses(config: CompareConfig) -> dict[str, dict[str, Any]]:
    """What finders without eyes reach, by name: the level that correspondence of features is to be seen against."""
    anywhere = by_chance((config.size, config.size), torch.Generator().manual_seed(config.seed))
    return {"chance": correspondence(lambda _: anywhere, config), "same pixel": correspondence(lambda _: same_pixel, config)}


# -------------------------------------------------------------------- tap and noise


def tap_options(name: str, tap: str, level: float | None, denoising_steps: int) -> dict[str, Any]:
    """Options by which a backbone is read at a tap, or several joined by +, and at a noise level, where it has such."""
    joins = "taps" in inspect.signature(backbone_class(_named(name)[0])).parameters
    read = {"taps": tap.split("+")} if joins else {"tap": tap}
    return read if level is None else {**read, "level": level, "denoising_steps": denoising_steps}


def sweep(
    name: str, taps: Sequence[str], levels: Sequence[tuple[float | None, int]], config: CompareConfig, rows: Rows, **options: Any
) -> list[Row]:
    """`robot_readout` of every tap at every level (None: the backbone, or the tap, has none) and number of denoising steps to it;
    what `rows`, told apart by tap, level and denoising_steps, holds is not measured again. `options` are of the backbone."""
    clean = backbone_class(_named(name)[0]).CLEAN_TAPS
    for tap in taps:
        for level, count in [(None, 0)] if tap in clean else levels:
            key = {"tap": tap, "level": level, "denoising_steps": count}
            if not rows.find(**key):
                backbone = build(name, {**options, **tap_options(name, tap, level, count)}, config.seed)
                rows.add({**key, **robot_readout(backbone, config)[1]})
    return rows.find()


def draw_sweep(path: Path, rows: Sequence[Row], measure: str) -> None:
    """What `sweep` measured, "px" or "mm", by tap and level."""
    taps = list(dict.fromkeys(row["tap"] for row in rows))
    levels = list(dict.fromkeys((row["level"], row["denoising_steps"]) for row in rows))
    grid = np.full((len(taps), len(levels)), np.nan)
    for row in rows:
        grid[taps.index(row["tap"]), levels.index((row["level"], row["denoising_steps"]))] = row[measure]
    names = [("none" if len(levels) > 1 else "") if level is None else f"{level:g} by {count}" for level, count in levels]
    title = f"Unseen demonstrations: median {measure}"
    value_grid(path, grid, taps, names, xlabel="noise level, by denoising steps", ylabel="tap", title=title)


# -------------------------------------------------------------------- the comparison


def compare(config: CompareConfig) -> list[Row]:
    """Measure what the rows of the named backbones lack, and give these rows in the order of the names."""
    given = json.loads(config.options)
    if unknown := sorted(given.keys() - set(config.backbones)):
        raise ValueError(f"options for {unknown}, which are not compared; name them among the backbones")
    rows = config.rows()
    return [measured(name, given.get(name, {}), config, rows) for name in config.backbones]


def measured(name: str, options: Mapping[str, Any], config: CompareConfig, rows: Rows) -> Row:
    """A backbone's row, of which what is missing is measured, and kept at once."""
    key = {"backbone": name, "options": json.dumps(options, sort_keys=True)}
    row: Row = next(iter(rows.find(**key)), dict(key))
    if "cost" not in row:
        rows.add(row := {**row, "cost": cost_apart(name, options, config)})
    acted = row.get("policy", {"same": {"episodes": 0}})["same"]["episodes"]
    acts = config.episodes not in (0, acted)
    if not acts and {"correspondence", "circles", "robot"} <= row.keys():
        return row
    backbone = build(name, options, config.seed)
    if "correspondence" not in row:
        rows.add(row := {**row, "correspondence": correspondence(lambda views: feature_finder(backbone, views), config)})
    if "circles" not in row:
        rows.add(row := {**row, "circles": circles_readout(backbone, config)})
    if "robot" not in row or acts:
        policy, row["robot"] = robot_readout(backbone, config)
        rows.add(row)
        if acts:
            rows.add(row := {**row, "policy": closed_loop(policy, config)})
    return row


LEAST_WIDTH = 132
"""Of the table, in characters."""
TITLES = (
    "backbone", "weights", "ms", "MB", "seen px", "future px", "robot px", "mm", "PCK robot", "PCK scenery", "same view", "turned"
)  # fmt: skip


def table(rows: Sequence[Row], config: CompareConfig) -> list[list[str]]:
    """A line of text for each row, and for the guesses, under `TITLES`; PCK is that of the view nearest to the policies' other."""
    lines = []
    for row in rows:
        spent, circles, robot = row["cost"], row["circles"], row["robot"]
        won = [_successes(row["policy"][view]) for view in ("same", "turned")] if "policy" in row else ["", ""]
        memory = "" if spent["memory_mb"] is None else f"{spent['memory_mb']:.0f}"
        found = _percents(row["correspondence"], config)
        lines.append([
            label(row), f"{spent['parameters'] / 1e6:.1f} M", f"{spent['ms']:.0f}", memory, f"{circles['px_seen']:.2f}",
            f"{circles['px_future']:.2f}", f"{robot['px']:.2f}", f"{robot['mm']:.1f}", *found, *won,
        ])  # fmt: skip
    lines += [[name, *[""] * 7, *_percents(found, config), "", ""] for name, found in guesses(config).items()]
    blind = [["blind replay", *[""] * 9, *[_successes(row["policy"]["blind_replay"])] * 2] for row in rows if "policy" in row]
    return lines + blind[:1]


def _successes(cell: Mapping[str, Any]) -> str:
    return f"{cell['successes']}/{cell['episodes']}"


def told_azimuth(config: CompareConfig) -> str:
    """Of the measured azimuths the one nearest to the policies' other view, as rows call it."""
    return f"{min(config.azimuths, key=lambda azimuth: abs(azimuth - config.turned_deg)):g}"


def _percents(found: Mapping[str, Any], config: CompareConfig) -> list[str]:
    return [f"{found[kind][told_azimuth(config)]['pck'][TOLD_PX]:.0%}" for kind in ("foreground", "background")]


def label(row: Row) -> str:
    """How tables and pictures call a row's backbone."""
    return row["backbone"] + ("" if row["options"] == "{}" else f" {row['options']}")


def draw(rows: Sequence[Row], config: CompareConfig) -> list[Path]:
    """Read-out error against what a clip costs, and correspondence against the policies' drop, where they have one."""
    written = []
    for name, unit in (("ms", "milliseconds a clip"), ("memory_mb", "peak memory (MB)")):
        points = {label(row): (row["cost"][name], row["robot"]["px"]) for row in rows if row["cost"][name] is not None}
        if points:
            written.append(config.out / f"error_{name}.png")
            labelled_points(written[-1], points, xlabel=unit, ylabel="robot read-out: median error (px)", log=True)
    spans = {label(row): row["policy"]["drop"] for row in rows if "policy" in row}
    if spans:
        points = {
            label(row): (row["correspondence"]["foreground"][told_azimuth(config)]["pck"][TOLD_PX], row["policy"]["drop"][0])
            for row in rows if label(row) in spans
        }  # fmt: skip
        written.append(config.out / "correspondence_drop.png")
        labelled_points(
            written[-1], points, spans={name: (low, high) for name, (_, low, high) in spans.items()},
            xlabel=f"robot and objects found again within {TOLD_PX} px", ylabel=f"success lost at {config.turned_deg:+g} degrees",
        )  # fmt: skip
    return written


def main(config: CompareConfig) -> list[Row]:
    """Compare, draw, print; returns the rows."""
    console = Console()
    console.width = max(console.width, LEAST_WIDTH)  # cut numbers could not be read
    rows = compare(config)
    pictures = draw(rows, config)
    shown = Table(
        title=f"PARA heads on frozen features; robot: {config.task}, {config.demos} demonstrations",
        caption="ms, MB: time and peak memory of a clip; seen px, future px: circles' median error in seen and in future frames; "
        "robot px, mm: that of a robot's next moves; PCK: points of robot and objects, or of the scenery, that are found within "
        f"{TOLD_PX} px from a camera turned by {told_azimuth(config)} degrees; same view, turned: a policy's successes; "
        "all on what was not trained on",
    )
    lines = table(rows, config)
    told = [k for k in range(len(TITLES)) if any(line[k] for line in lines)]
    for k in told:
        shown.add_column(TITLES[k], justify="right" if k else "left", no_wrap=k > 0, overflow="fold")
    for line in lines:
        shown.add_row(*(line[k] for k in told))
    console.print(shown)
    console.print(f"kept in {config.out / 'rows.json'}; pictures: {', '.join(map(str, pictures))}")
    return rows


if __name__ == "__main__":
    command_line(main, CompareConfig, __doc__ or "")
