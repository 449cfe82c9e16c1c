"""The table of backbones in docs/backbones.md, from the catalogue.

python benchmarks/catalogue_table.py
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backbones.catalogue import FACTS, FAMILIES, LEGEND, TITLES, line, rows
from para_video.figures import write_table
from para_video.runs import command_line

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Config:
    """page: where the table is replaced."""

    page: Path = ROOT / "docs" / "backbones.md"


def main(config: Config) -> None:
    """Write the table, family by family."""
    lines = []
    for family in FAMILIES:
        found = rows([name for name, facts in FACTS.items() if facts.family == family])
        lines += [[f"`{row['name']}`", family, *line(row)[1:], f"`[{row['extra']}]`" if row["extra"] else ""] for row in found]
    header = [TITLES[0], "family", *TITLES[1:], "extra"]
    write_table(config.page, "benchmarks/catalogue_table.py", header, lines, f"{LEGEND}; extra: of this package, to be installed.")


if __name__ == "__main__":
    command_line(main, Config, __doc__ or "")
