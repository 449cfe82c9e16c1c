"""The backbones that have a name, or what is known of one of them.

For example:

    python -m backbones
    python -m backbones --family image
    python -m backbones svd
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from backbones import CATALOGUE, backbone_class, catalogue_entry
from backbones.catalogue import FACTS, FAMILIES, LEGEND, TITLES, UNKNOWN, billions, line, memory, remedy, rows
from para_video.checkpoint import known_options, loaders
from para_video.runs import command_line

LEAST_WIDTH = 124
"""Of the table, in characters."""


@dataclass(frozen=True)
class ListConfig:
    """List the catalogue."""

    name: Annotated[str | None, tyro.conf.Positional] = None
    """Of one backbone: tells its taps, frames and options too."""
    family: str | None = None
    """Only those of a family: video-diffusion, video-encoder or image-model, or how one of these begins."""
    json: bool = False
    """As JSON, with all that is known."""

    def __post_init__(self) -> None:
        if not any(map(self.wants, FAMILIES)):
            raise ValueError(f"unknown family {self.family!r}; choose from {', '.join(f.replace(' ', '-') for f in FAMILIES)}")
        if self.name is not None and self.name not in CATALOGUE:
            catalogue_entry(self.name)  # tells what is wrong with a name
            raise ValueError(f"{self.name!r} is not in the catalogue, which is listed here; python -m backbones.verify takes it")
        if self.name is not None and not self.wants(family := FACTS[self.name].family):
            raise ValueError(f"{self.name} is of the family {family!r}, not {self.family!r}: leave --family out")

    def wants(self, family: str) -> bool:
        return self.family is None or family.startswith(self.family.replace("-", " "))


def table(found: list[dict[str, Any]], family: str) -> Table:
    """Those of a family, and whether they can be built here."""
    shown = Table(title=family, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in (*TITLES, "here"):
        words = title in ("backbone", "licence", "gated", "here")
        shown.add_column(title, justify="left" if words else "right", no_wrap=True)
    for row in found:
        shown.add_row(*line(row), escape(row["here"]))
    return shown


def details(row: dict[str, Any]) -> list[tuple[str, str]]:
    """What is known of one backbone, and what its class says of itself."""
    spec, kind = row["spec"], backbone_class(row["name"])
    options = {name: default for name, default in known_options(kind).items() if default is not inspect.Parameter.empty}
    taken = {
        "attention": "attentions", "lora_rank": "lora_layers", "truncate": "stack", "gradient_checkpointing": "checkpointing",
        "text_device": "hears_text",
    }  # fmt: skip
    for name, what in taken.items():
        if not getattr(kind, what, True):  # refused, whatever the value
            options.pop(name, None)
    sides = "any size" if spec["size_multiple"] == 1 else f"sides that are multiples of {spec['size_multiple']} px"
    if spec["size"] is not None:
        sides = f"{spec['size'][0]} x {spec['size'][1]} px alone"
    if row["most_px"] is not None:
        sides = f"sides up to {row['most_px']} px (at scale 1)"
    low, high = spec["contexts"]
    return [
        ("family", row["family"]),
        ("source", row["source"] or "this package"),
        ("class", row["target"]),
        (
            "parameters",
            billions(row["parameters"]) + (f", text {billions(row['text_parameters'])}" if row["text_parameters"] else ""),
        ),
        ("weights in bf16", f"{memory(row)} GB"),
        ("licence", row["licence"] or UNKNOWN),
        ("gated", UNKNOWN if row["gated"] is None else str(row["gated"]).lower()),
        ("here", f"{row['here']}: {remedy(row['here'])}"),
        ("taps", " + ".join(row["taps"])),
        ("maps", f"{spec['channels']} channels, {spec['stride']:g} px a cell, at most {spec['span']} frames a map"),
        ("frames", f"{low} to {high} observed, up to {spec['max_horizon']} future; {sides}"),
        ("generative loss", "yes" if spec["generative"] else "no"),
        ("options", ", ".join(f"{name}={value!r}" for name, value in options.items())),
        *(("loading says", inspect.getdoc(loader) or "") for loader in loaders(kind)),
        *(("class says", inspect.getdoc(base) or "") for base in kind.__mro__ if base.__module__.startswith("backbones.")),
    ]


def main(config: ListConfig) -> list[dict[str, Any]]:
    """Show the catalogue; returns its rows."""
    console = Console()
    console.width = max(console.width, LEAST_WIDTH)  # a cut name could not be typed again
    found = rows([config.name] if config.name else list(CATALOGUE))
    found = [row for row in found if config.wants(row["family"])]
    if config.json:
        console.out(json.dumps(found, indent=1))
    elif config.name:
        for title, text in details(found[0]):
            console.print(f"[bold]{title}[/]: ", end="")
            console.out(text, highlight=False)
    else:
        for family in FAMILIES:
            if kept := [row for row in found if row["family"] == family]:
                console.print(table(kept, family))
        states = sorted({row["here"] for row in found} - {"yes"})
        told = [LEGEND, *(f"{state}: {remedy(state)}" for state in states)]
        console.print("; ".join(told), style="dim", markup=False, highlight=False)
    return found


if __name__ == "__main__":
    command_line(main, ListConfig, __doc__ or "")
