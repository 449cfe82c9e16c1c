"""Policies that finetune/robot.py trained, for benchmarks that go on measuring them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from finetune.grid import cell, counts, gain, rate
from finetune.robot import RobotConfig
from para_video.agent import VideoPolicy
from para_video.checkpoint import checkpoint_digest, load_policy
from para_video.demos import EVALUATION_SEED, TUNING_SEED
from para_video.policy import DEFAULT_SCHEDULE
from para_video.rows import Row, Rows, check_page
from para_video.runs import SETTINGS_FILE
from para_video.sims.metaworld import episode_steps
from para_video.training import make_accelerator


@dataclass(frozen=True)
class MeasureConfig:
    """What benchmarks of trained policies have in common; each says where its results go."""

    results: Path
    """The JSON file."""
    page: Path
    """The page whose tables are replaced; pictures lie beside."""
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders of policies that finetune/robot.py trained; without any, tables and pictures are drawn anew."""
    episodes: int = 30
    """Episodes of everything that is measured; the seeds are the same for all."""
    first_seed: int = EVALUATION_SEED
    """Of the episodes."""
    trust: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A package of your own (again for more of them) that the policies' backbones are of; their code is run."""

    def __post_init__(self) -> None:
        check_page(self)
        check_episodes(self.episodes, self.first_seed)

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.episodes)

    def found(self, rows: Rows) -> list[Row]:
        """All rows. Raises ValueError where there are none."""
        if not (found := rows.find()):
            raise ValueError(f"{self.results} has no rows: name the folders of trained policies, such as runs/robot/para")
        return found


def check_episodes(episodes: int, first_seed: int) -> None:
    """Raise ValueError where there are no episodes to measure on, or some are of seeds that demonstrations are chosen from."""
    if episodes < 1 or first_seed < TUNING_SEED:
        raise ValueError(
            f"episodes must be at least 1 and first_seed at least {TUNING_SEED}, since seeds below are of demonstrations; "
            f"got {episodes} and {first_seed}"
        )


@dataclass(frozen=True)
class Trained:
    """A policy of a run.

    Args:
        name: as finetune/robot.py calls it. config: of the run. weights: a digest of the policy's.
    """

    name: str
    policy: VideoPolicy
    config: RobotConfig
    weights: str

    @property
    def horizon(self) -> int:
        """Control steps of an episode."""
        return episode_steps(self.config.task, self.config.widen)

    @property
    def key(self) -> dict[str, Any]:
        """What tells its rows apart from those of other policies."""
        return {"task": self.config.task, "demos": self.config.demos, "seed": self.config.seed, "policy": self.name}

    def missing(self, rows: Rows, **more: Any) -> bool:
        """Whether there is no row under today's schedule; more: what else is in the rows' key.

        Raises:
            ValueError: there is one of another policy of the same name, whose place this one's would take.
        """
        kept = rows.find(**self.key, **more)
        if any(row["weights"] != self.weights for row in kept):
            raise ValueError(
                f"{rows.path} holds rows of another policy, with other weights, from the same task, demonstrations and seed "
                f"({', '.join(map(str, self.key.values()))}): choose another --results and --page"
            )
        return not any(map(counts, kept))

    def add(self, rows: Rows, measured: Row, **more: Any) -> None:
        """Keep what was measured."""
        rows.add({**self.key, **more, "weights": self.weights, "schedule": asdict(DEFAULT_SCHEDULE), **measured})


def load_trained(folder: Path, trusted: Sequence[str] = ()) -> Trained:
    """The policy in a folder of a run, such as runs/robot/para. `trusted` as of `load_policy`.

    Raises:
        FileNotFoundError: it is no checkpoint, or the run's settings are not beside it.
        ValueError: as of `load_policy`.
    """
    path = folder.parent / SETTINGS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} lies in no run of finetune/robot.py: {path} is not there")
    policy, _ = load_policy(folder, trusted=trusted, device=str(make_accelerator().device))
    settings, known = json.loads(path.read_text()), {each.name for each in fields(RobotConfig)}
    given = {name: value for name, value in settings.items() if name in known}
    given |= {name: Path(given[name]) for name in ("demo_folder", "extra_videos") if given.get(name)}
    config = RobotConfig(**given, policies=folder.name)
    return Trained(folder.name, policy, config, checkpoint_digest(folder))


def told(rows: Rows, policy: str, arm: str, before: str, view: str) -> tuple[str, str]:
    """For a table: an arm's successes with their interval, and the gain in percentage points over another arm of the same policy
    with its interval. Empty where there are none."""
    measured, others = rows.find(policy=policy, arm=arm), rows.find(policy=policy, arm=before)
    if not measured:
        return "", ""
    found = rate(measured, view)
    share = f"{cell(measured, view)} ({found.low:.0%}-{found.high:.0%})"
    if arm == before:
        return share, ""
    points = [100 * number for number in gain(measured, others, view)]
    return share, f"{points[0]:+.0f} ({points[1]:+.0f} to {points[2]:+.0f})"
