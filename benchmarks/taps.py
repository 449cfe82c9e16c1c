"""Where are a video model's features best read: after which block, and at which noise level?

    python benchmarks/taps.py
    python benchmarks/taps.py --backbone svd --taps up_blocks.1 up_blocks.2 up_blocks.1+up_blocks.2 --levels 700 10 1 \\
        --denoising-steps 1 4 8 --results svd-taps.json --page svd-taps.md

freezes the model, trains a PARA head on each tap and noise level from the same few demonstrations, and measures its answers on
demonstrations that it did not see. Writes results/taps.json, where every measured row is kept at once, and the table and picture of
docs/taps.md. Run it again after a cut.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backbones import backbone_options
from backbones.compare import CompareConfig, draw_sweep, sweep
from para_video.figures import write_table
from para_video.rows import Row, Rows, check_page
from para_video.runs import command_line

ROOT = Path(__file__).parent.parent
KEY = ("tap", "level", "denoising_steps")
HEADING = """# Where features are read

A frozen model, a PARA head on each tap and noise level, and its answers on demonstrations that it did not see. Below the top level
the future is first drawn down to it, from the same noise for every clip. Read at its encoder a model sees no future, and no level.

![Error by tap and noise level]({picture})

"""


@dataclass(frozen=True)
class Config:
    """What is tried.

    Args:
        backbone: name in the catalogue. options: of it, as JSON. task, demos, unseen: demonstrations to train on and to measure on.
        steps: of each head. copies: augmented ones in the cache. taps: blocks; several at once are joined by +. levels,
        denoising_steps: noise levels, and how many steps lead to each; no levels for a model that has none.
        out: for cached features. results: the JSON file. page: the page whose table is replaced; the picture lies beside it.
    """

    backbone: str = "mini"
    options: str = "{}"
    task: str = "pick-place-v3"
    demos: int = 5
    unseen: int = 8
    steps: int = 500
    copies: int = 3
    seed: int = 0
    taps: tuple[str, ...] = ("encoder", "coarse", "middle", "fine", "joined")
    levels: tuple[float, ...] = (1.0, 0.8, 0.6, 0.3)
    denoising_steps: tuple[int, ...] = (1, 1, 2, 4)
    out: Path = Path("runs/taps")
    results: Path = ROOT / "results" / "taps.json"
    page: Path = ROOT / "docs" / "taps.md"

    def __post_init__(self) -> None:
        check_page(self)
        backbone_options(self.backbone, self.options)  # tells what is wrong with them
        if self.levels and len(self.levels) != len(self.denoising_steps):
            raise ValueError(
                f"every level wants its denoising_steps, got {len(self.levels)} levels and {len(self.denoising_steps)} numbers of "
                "steps: give as many"
            )


def main(config: Config) -> list[Row]:
    """Train and measure what is missing, then write all rows."""
    settings = {
        name: getattr(config, name) for name in ("backbone", "options", "task", "demos", "unseen", "steps", "copies", "seed")
    }
    rows = Rows(config.results, settings, KEY)
    budget = CompareConfig(
        steps=config.steps, copies=config.copies, task=config.task, demos=config.demos, unseen=config.unseen, seed=config.seed,
        out=config.out,
    )  # fmt: skip
    levels = list(zip(config.levels, config.denoising_steps, strict=True)) if config.levels else [(None, 0)]
    options: dict[str, Any] = json.loads(config.options)
    write(config, sweep(config.backbone, config.taps, levels, budget, rows, **options))
    return rows.find()


def write(config: Config, rows: Sequence[Row]) -> None:
    """The table and the picture."""
    table = []
    for row in rows:
        level = "" if row["level"] is None else f"{row['level']:g}"
        numbers = (f"{row['px']:.2f}", f"{row['mm']:.1f}", f"{row['gripper']:.1%}")
        table.append([row["tap"], level, str(row["denoising_steps"]), *numbers])
    made = (
        f"`python benchmarks/taps.py`: {config.backbone}, {config.task}, {config.demos} demonstrations to train on and "
        f"{config.unseen} others to measure on, {config.steps} steps of 8 clips, one training seed."
    )
    header = ["tap", "noise level", "denoising steps", "median px", "median mm", "gripper right"]
    picture = config.page.with_suffix(".png")
    write_table(config.page, "benchmarks/taps.py", header, table, made, heading=HEADING.format(picture=picture.name))
    draw_sweep(picture, rows, "mm")


if __name__ == "__main__":
    command_line(main, Config, __doc__ or "")
