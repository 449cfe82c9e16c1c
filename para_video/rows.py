"""A table that is measured row by row: each is kept in a JSON file as soon as it is known, so that a cut loses one at most."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from para_video.training import write_atomically

Row = dict[str, Any]


class Rows:
    """Measured rows in a JSON file. Several processes may add to it.

    Args:
        path: the file; made where there is none. settings: JSON values that hold for all rows. key: names of the values that tell
            rows apart.

    Raises:
        ValueError: the file is damaged, or its rows were measured with other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], key: Sequence[str]) -> None:
        self.path, self.settings, self.key = path, json.loads(json.dumps(settings)), tuple(key)
        self._same_settings()

    def _same_settings(self) -> list[Row]:
        """The rows, if they are of these settings."""
        (kept, rows), now = self._read(), self.settings
        if kept is not None and kept != now:
            differ = [f"{k} was {kept.get(k)} and is {now.get(k)}" for k in sorted(kept | now) if kept.get(k) != now.get(k)]
            raise ValueError(f"{self.path} holds rows of other settings ({', '.join(differ)}): use the same ones, or another file")
        return rows

    def _read(self) -> tuple[dict[str, Any] | None, list[Row]]:
        if not self.path.is_file():
            return None, []
        try:
            found = json.loads(self.path.read_text())
            return dict(found["settings"]), sorted(found["rows"], key=lambda row: [_rank(row[name]) for name in self.key])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is damaged ({error!r}); restore it or choose another file") from error

    def find(self, **key: Any) -> list[Row]:
        """The rows that have these values, in the order of their keys."""
        return [row for row in self._read()[1] if all(row[name] == value for name, value in key.items())]

    def add(self, row: Row) -> None:
        """Keep a row, in place of one with the same key.

        Raises:
            ValueError: as of the constructor; another process may have begun the file since.
        """
        with FileLock(self.path.with_name(self.path.name + ".lock")):
            others = [old for old in self._same_settings() if any(old[name] != row[name] for name in self.key)]
            lines = ",\n".join(json.dumps(each) for each in [*others, row])  # a line each, so that a diff shows what is new
            write_atomically(self.path, f'{{"settings": {json.dumps(self.settings)},\n"rows": [\n{lines}\n]}}\n'.encode())


def _rank(value: Any) -> tuple[bool, Any]:
    """For sorting: None, which a key may hold, comes last."""
    return (True, 0) if value is None else (False, value)


def check_page(config: Any) -> None:
    """Raise ValueError where a page that shows the rows of one file would show those of another.

    Args:
        config: a dataclass with `results`, the file, and `page`, whose defaults belong together.
    """
    usual = type(config)
    if config.page == usual.page and config.results != usual.results:
        raise ValueError(f"{config.page.name} shows {usual.results.name}: pass a --page for what is in {config.results}")
