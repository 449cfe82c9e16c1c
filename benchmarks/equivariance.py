"""Do answers move with the image? Pixels and points that trained policies decode as the picture is shifted, by the shift.

    python benchmarks/equivariance.py runs/robot/para runs/robot/regression runs/robot/act

The simulator renders more than policies see; a crop of it is moved by some pixels, and the principal point of the camera that they
are told with it. A read-out that is equivariant decodes pixels that move by just as much, and the same points in space. Rows go to
results/equivariance.json, and from there into the table and the picture of docs/equivariance.md.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from tqdm import tqdm

from finetune.trained import MeasureConfig, Trained, load_trained
from para_video.equivariance import Deviations, deviations, moments
from para_video.figures import display_name, write_table
from para_video.rows import Row, Rows
from para_video.runs import command_line

ROOT = Path(__file__).parent.parent
NAME = "benchmarks/equivariance.py"
KEY = ("task", "demos", "seed", "policy")
QUANTITIES = {
    "pixel_px": "pixel off the moved one, px",
    "point_mm": "point off the unmoved one, mm",
    "error_mm": "point off the expert's, mm",
}
HEADING = """# Do answers move with the image?

The picture is moved by so many pixels, to each of the four sides, and the camera's principal point with it; nothing is padded.
Medians over the targets that stay on the picture. An answer that ignored the picture and the camera's motion would be off by the
whole shift in pixels. One that ignored the picture alone and knew the camera would be off by nothing: the error against the expert
says what an answer is worth.

![How far answers are off, by the shift]({picture})

"""


@dataclass(frozen=True)
class Config(MeasureConfig):
    """Measure how answers of trained policies move with the image."""

    results: Path = ROOT / "results" / "equivariance.json"
    page: Path = ROOT / "docs" / "equivariance.md"
    episodes: int = 10
    """Episodes of the expert from which the pictures are taken."""
    shifts: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24)
    """Pixels that the picture is moved by."""
    every: int = 9
    """Control steps between pictures."""


def main(config: Config) -> list[Row]:
    """Measure what is missing, then write table and picture of all rows."""
    settings = {name: getattr(config, name) for name in ("shifts", "episodes", "first_seed", "every")}
    rows = Rows(config.results, settings, KEY)
    for folder in config.runs:
        trained = load_trained(folder, config.trust)
        if trained.missing(rows):
            trained.add(rows, measure(trained, config))
    write(config, rows)
    print(f"tables and figures: {config.page}")
    return rows.find()


def measure(trained: Trained, config: Config) -> Row:
    """A policy's row.

    Raises:
        ValueError: it sees several frames.
    """
    given, begin = trained.config, time.perf_counter()
    if given.context != 1:
        raise ValueError(f"{trained.name} sees {given.context} frames; only policies that see one are measured")
    whole = given.size + 2 * max(config.shifts)
    with replace(given, size=whole, zoom=given.zoom * given.size / whole).env() as env:  # what the policy sees is in the middle
        seen = tqdm(moments(env, config.seeds, config.every, trained.horizon), desc=trained.name, unit="picture")
        found = [deviations(trained.policy, moment, given.size, config.shifts) for moment in seen]
    stride = trained.policy.backbone.spec.stride
    medians = Deviations.joined(found).medians()
    return {"stride": stride, "pictures": len(found), "medians": medians, "seconds": round(time.perf_counter() - begin, 1)}


def write(config: Config, rows: Rows) -> None:
    """Table and picture."""
    found = config.found(rows)
    shifts = [0, *config.shifts]
    table = []
    for row in found:
        by_shift = {part["shift"]: part for part in row["medians"]}
        for name, text in QUANTITIES.items():
            numbers = [f"{by_shift[shift][name]:.1f}" if shift in by_shift else "" for shift in shifts]
            table.append([f"{row['task']}, {row['demos']}", display_name(row["policy"]), text, *numbers])
    strides = ", ".join(dict.fromkeys(f"{row['stride']:g}" for row in found))
    made = (
        f"`python {NAME} RUN...`: {found[0]['pictures']} pictures of {config.episodes} episodes of the expert from seed "
        f"{config.first_seed}; the backbone's stride is {strides} px; {sum(row['seconds'] for row in found) / 60:.0f} minutes."
    )
    header = ["task, demonstrations", "policy", "median, moved by (px)", *map(str, shifts)]
    picture = config.page.with_suffix(".png")
    write_table(config.page, NAME, header, table, made, heading=HEADING.format(picture=picture.name))
    draw(picture, found)


def draw(path: Path, rows: Sequence[Row]) -> None:
    """A panel for each quantity, a line for each policy."""
    with matplotlib.style.context(["default", "tableau-colorblind10"]):
        figure, panels = pyplot.subplots(1, len(QUANTITIES), figsize=(4.2 * len(QUANTITIES), 3.6), layout="constrained")
        for axes, (name, text) in zip(panels, QUANTITIES.items(), strict=True):
            for i, row in enumerate(rows):
                x, y = zip(*((part["shift"], part[name]) for part in row["medians"]), strict=True)
                told = display_name(row["policy"]) + (f", {row['task']}" if len({each["task"] for each in rows}) > 1 else "")
                axes.plot(x, y, marker="os^Dv"[i % 5], label=told)
            if name == "pixel_px":
                longest = rows[0]["medians"][-1]["shift"]
                axes.plot([0, longest], [0, longest], color="grey", linestyle="--", label="stays on the picture")
                axes.legend()
            axes.set(xlabel="shift of the picture (px)", ylabel=text)
            axes.set_ylim(bottom=0)
        figure.savefig(path, dpi=110)
        pyplot.close(figure)


if __name__ == "__main__":
    command_line(main, Config, __doc__ or "")
