"""Where are a video model's features best read: after which block, and at which noise level?

    python benchmarks/taps.py

freezes the model, trains a PARA head on each tap and noise level from the same few demonstrations, and measures its answers on
demonstrations that it did not see. Writes results/taps.json and the table and picture of docs/taps.md. Heads that are trained are
kept in --out; run it again after a cut.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import tyro
from matplotlib import pyplot
from rich.console import Console

from backbones import import_string, shipped_weights
from finetune.robot import LEARNING_RATES, readout_spec
from para_video.agent import VideoPolicy
from para_video.batches import Augmentation, DemoBatches
from para_video.checkpoint import PolicySpec, load_backbone, load_policy, save_policy
from para_video.demos import Demo, Plan, cache_folder, cached_demos
from para_video.feature_cache import CachedBatches, cache_features
from para_video.figures import write_table
from para_video.held_out import demo_errors
from para_video.policy import DEFAULT_SCHEDULE
from para_video.runs import same_settings
from para_video.sims.metaworld import MetaWorldEnv
from para_video.training import FitConfig, fit, make_accelerator, write_atomically

ROOT = Path(__file__).parent.parent
HEADING = """# Where `mini`'s features are read

A frozen model, a PARA head on each tap and noise level, and its answers on demonstrations that it did not see. Below a level of 1
the future is first drawn down to it, from the same noise for every clip.

![Error by tap and noise level](taps.png)

"""


@dataclass(frozen=True)
class Config:
    """What is tried.

    Args:
        backbone: name in the catalogue, of `mini`'s kind. task, demos, unseen: demonstrations to train on and to measure on.
        steps: of each head.
        copies: augmented ones in the cache. taps: blocks. levels, denoising_steps: noise levels, and how many steps lead to each.
        out: where heads are kept. results: the JSON file. page: the page whose table is replaced; the picture lies beside it.
    """

    backbone: str = "mini"
    task: str = "pick-place-v3"
    demos: int = 5
    unseen: int = 8
    steps: int = 400
    copies: int = 3
    seed: int = 0
    taps: tuple[str, ...] = ("coarse", "middle", "fine", "joined")
    levels: tuple[float, ...] = (1.0, 0.8, 0.6, 0.3)
    denoising_steps: tuple[int, ...] = (1, 1, 2, 4)
    out: Path = Path("runs/taps")
    results: Path = ROOT / "results" / "taps.json"
    page: Path = ROOT / "docs" / "taps.md"


def main(config: Config) -> list[dict[str, Any]]:
    """Train and measure what is missing, then write all rows."""
    console, accelerator = Console(), make_accelerator("bf16")
    same_settings(config.out, config, free=("out", "taps", "levels", "denoising_steps", "results", "page"), accelerator=accelerator)
    with MetaWorldEnv(config.task) as env:
        demos = cached_demos(env, Plan(config.demos + config.unseen, spread_over=64)).demos
    shown, unseen = demos[: config.demos], demos[config.demos :]
    rows = []
    for tap in config.taps:
        for level, steps in zip(config.levels, config.denoising_steps, strict=True):
            options = {"tap": tap, "level": level, "denoising_steps": steps}
            policy = head_on(options, config, shown, config.out / f"{tap}-{level:g}-{steps}")
            rows.append({**options, **demo_errors(policy, unseen)})
            console.print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()))
    write(config, rows)
    return rows


def head_on(options: dict[str, Any], config: Config, demos: Sequence[Demo], folder: Path) -> VideoPolicy:
    """A PARA head trained on the frozen model's features, or the one that was."""
    if (folder / "config.json").is_file():
        return load_policy(folder)[0]
    head = "para_video.heads:ParaHead"
    target, weights = import_string(config.backbone), shipped_weights(config.backbone)
    spec = PolicySpec(target, head, backbone_options=options, head_options={"spec": readout_spec(demos)})
    torch.manual_seed(config.seed)
    policy = spec.build(frozen=True)
    if weights is not None:
        load_backbone(policy.backbone, weights)
    clips = DemoBatches(
        demos, batch_size=1, chunk=DEFAULT_SCHEDULE.chunk, stride=DEFAULT_SCHEDULE.frame_stride, augmentation=Augmentation(),
        seed=config.seed,
    )  # fmt: skip
    cache = cache_features(policy, clips, config.copies, cache_folder().with_name("features"))

    def batches(seed: int, rank: int, processes: int) -> CachedBatches:
        return CachedBatches(cache, clips[0], batch_size=8, seed=seed, rank=rank)

    fit(policy, batches, FitConfig(config.steps, LEARNING_RATES["para"], seed=config.seed), label=folder.name)
    save_policy(policy, spec, folder)
    return policy


def write(config: Config, rows: Sequence[dict[str, Any]]) -> None:
    """The JSON file, the table and the picture."""
    settings = {name: asdict(config)[name] for name in ("backbone", "task", "demos", "unseen", "steps", "copies", "seed")}
    write_atomically(config.results, (json.dumps({"settings": settings, "rows": list(rows)}, indent=1) + "\n").encode())
    table = []
    for row in rows:
        numbers = (f"{row['px']:.2f}", f"{row['mm']:.1f}", f"{row['gripper']:.1%}")
        table.append([row["tap"], f"{row['level']:g}", str(row["denoising_steps"]), *numbers])
    made = (
        f"`python benchmarks/taps.py`: {settings['task']}, {settings['demos']} demonstrations to train on and {settings['unseen']} "
        f"others to measure on, {settings['steps']} steps of 8 clips, one training seed."
    )
    header = ["tap", "noise level", "denoising steps", "median px", "median mm", "gripper right"]
    write_table(config.page, "benchmarks/taps.py", header, table, made, heading=HEADING)
    draw(config, rows)


def draw(config: Config, rows: Sequence[dict[str, Any]]) -> None:
    """Millimetres by tap and level, as a coloured grid."""
    grid = np.full((len(config.taps), len(config.levels)), np.nan)
    for row in rows:
        grid[config.taps.index(row["tap"]), config.levels.index(row["level"])] = row["mm"]
    with matplotlib.style.context("default"):
        figure, axes = pyplot.subplots(figsize=(5.5, 3.2), layout="constrained")
        image = axes.imshow(grid, cmap="viridis_r", aspect="auto")
        for (i, j), value in np.ndenumerate(grid):
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", color="white")
        axes.set_xticks(range(len(config.levels)), [f"{level:g}" for level in config.levels])
        axes.set_yticks(range(len(config.taps)), config.taps)
        axes.set(xlabel="noise level", ylabel="tap", title="Error on unseen demonstrations (median mm)")
        figure.colorbar(image)
        figure.savefig(config.page.with_name("taps.png"), dpi=110)
        pyplot.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
