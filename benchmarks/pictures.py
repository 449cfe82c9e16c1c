"""Pictures of what trained policies do, and the page that says what they show.

    python benchmarks/pictures.py runs/robot/{para,regression,act} runs/hammer/para runs/coffee-pull/para

    contrast    ACT beside PARA in a new environment: a video and its stills
    heatmaps    an episode of PARA: decisions by future targets
    wall        the first episodes of every PARA that is named, a task in a row
    rollouts    PARA and regression on the same backbone, in the same episode
    circles     circles that PARA is pretrained on, beside what that is worth where demonstrations are few

go to docs/pictures/. Episodes are not picked by eye: of those that are measured, it is the first that tells the difference, and the
captions in docs/pictures.md say how often each policy succeeded. `--only NAME...` makes some of the pictures. `circles` needs no
policies: its bars are of rows in results/.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from finetune.grid import measured_alike
from finetune.robot import evaluate_view, film
from finetune.suite import REFERENCES
from finetune.suite_page import bar, measured_on, outcomes
from finetune.trained import Trained, check_episodes, load_trained
from para_video.circles import CircleClip, CircleVideos
from para_video.demos import EVALUATION_SEED
from para_video.figures import (
    Frame,
    display_name,
    draw_points,
    label,
    panel_grid,
    side_by_side,
    success_bars,
    upscale_points,
    write_animation,
    write_picture,
    write_place,
)
from para_video.films import Film, heatmap_sheet, rollout_sheet
from para_video.rollout import Cell
from para_video.runs import command_line
from para_video.sims.shifts import NO_SHIFT, Shift
from para_video.video import write_video

ROOT = Path(__file__).parent.parent
NAME = "benchmarks/pictures.py"
FPS, HOLD = 12, 18
"""Frames of a video in a second, and for how many of them the end stands still."""
FEW = 5
"""Demonstrations of the bars beside the circles."""
SOURCES = ("circle_arms.json", "claims/circles.json", "claims-quick/circles.json")
"""Where rows of policies with and without circles are looked for, the best first."""
NEEDS = {"contrast": ("para", "act"), "heatmaps": ("para",), "wall": ("para",), "rollouts": ("para", "regression"), "circles": ()}
TITLES = {
    "contrast": "ACT and PARA in a new environment",
    "heatmaps": "Where will the gripper be?",
    "wall": "Episodes of PARA",
    "rollouts": "PARA and regression on the same video features",
    "circles": "What circles teach",
}
HEADING = f"""# Pictures

Made by `python {NAME} RUN...` from policies that `finetune/robot.py` trained. Dots, violet to yellow, are
where a policy's next targets are seen; the glow is PARA's heatmaps of all of them. The scene is rendered larger than policies see
it. Intervals are Wilson's, 95 %.

""" + "\n".join(f"## {title}\n\n<!-- table: {NAME}, {name} -->\n<!-- end of table -->\n" for name, title in TITLES.items())


@dataclass(frozen=True)
class Config:
    """Draw pictures of trained policies."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders of policies that finetune/robot.py trained. The first PARA is shown beside the others of its run, and the first of
    each task on the wall."""
    only: tuple[str, ...] = tuple(NEEDS)
    """Pictures to make."""
    shift: str = "look=1"
    """The new environment; see finetune/robot.py."""
    episodes: int = 20
    """Episodes that success is counted in, and one to be shown is chosen from."""
    first_seed: int = EVALUATION_SEED
    """Of the episodes."""
    columns: int = 4
    """Episodes of each task on the wall."""
    trust: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A package of your own (again for more of them) that the policies' backbones are of; their code is run."""
    results: Path = ROOT / "results"
    """Folder of measured rows, for the bars beside the circles."""
    page: Path = ROOT / "docs" / "pictures.md"
    """The page of captions; pictures lie in a folder of its name."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.only if name not in NEEDS]
        if unknown:
            raise ValueError(f"unknown pictures {unknown}; choose from {', '.join(NEEDS)}")
        if self.columns < 1:
            raise ValueError(f"columns must be at least 1, got {self.columns}")
        check_episodes(self.episodes, self.first_seed)
        Shift.parse(self.shift)

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.episodes)

    @property
    def folder(self) -> Path:
        """Of the pictures."""
        return self.page.with_suffix("")


def main(config: Config) -> None:
    """Draw what is asked for, and write its captions.

    Raises:
        ValueError: a policy that a picture shows is not among the runs.
    """
    trained = [load_trained(folder, config.trust) for folder in config.runs]
    chosen = {name: cast(trained, name) for name in config.only}
    config.folder.mkdir(parents=True, exist_ok=True)
    if not config.page.exists():
        config.page.write_text(HEADING)
    draw: dict[str, Callable[[Config, list[Trained]], str]] = {
        "contrast": contrast, "heatmaps": heatmaps, "wall": wall, "rollouts": rollouts, "circles": circles,
    }  # fmt: skip
    for name in tqdm(config.only, unit="picture"):
        write_place(config.page, f"{NAME}, {name}", draw[name](config, chosen[name]))


def cast(trained: Sequence[Trained], picture: str) -> list[Trained]:
    """The policies that a picture shows: PARA and others of the same task and demonstrations, or the PARA of every task.

    Raises:
        ValueError: one of them is not there.
    """
    paras = [each for each in trained if each.name == "para"]
    if picture == "wall" and paras:
        return [next(each for each in paras if each.config.task == task) for task in dict.fromkeys(p.config.task for p in paras)]
    found = []
    for name in NEEDS[picture]:
        same = [each for each in trained if each.name == name and each.key == {**paras[0].key, "policy": name}] if paras else []
        if not same:
            raise ValueError(f"{picture} shows {name}: name its folder, such as runs/robot/{name}, or choose others with --only")
        found.append(same[0])
    return found


# -------------------------------------------------------------------- episodes


@cache
def measure(trained: Trained, shift: Shift, seeds: range) -> Cell:
    """A policy's episodes under a shift."""
    return evaluate_view(trained.name, trained.policy, trained.config, shift, trained.horizon, seeds)


def shot(trained: Trained, seed: int, shift: Shift = NO_SHIFT, size: int = 256) -> Film:
    """An episode's film, `size` pixels wide."""
    return film(trained.name, trained.policy, trained.config, seed, trained.horizon, shift, size)


def telling_seed(cells: Sequence[Cell]) -> tuple[int, str]:
    """The first episode in which two policies come to different ends, or the only one succeeds, and how it was chosen; the first of
    all where there is none."""
    first = cells[0].episodes[0]
    if len(cells) == 1:
        what, telling = "it succeeds", [episode for episode in cells[0].episodes if episode.succeeded]
    else:
        pairs = zip(*(cell.episodes for cell in cells), strict=True)
        what, telling = "they differ", [one for one, other in pairs if one.succeeded != other.succeeded]
    if telling:
        return telling[0].seed, f"the first of them in which {what}"
    return first.seed, f"the first of them, as there is none in which {what}"


def counted(cells: dict[str, Cell]) -> str:
    """Successes by policy: "PARA succeeds in 12 of 20 episodes (39%-78%), ACT in 0 (0%-16%)"."""
    parts = []
    for name, cell in cells.items():
        low, high = cell.wilson95
        verb, of = ("in", "") if parts else ("succeeds in", f" of {len(cell.episodes)} episodes")
        parts.append(f"{display_name(name)} {verb} {cell.successes}{of} ({low:.0%}-{high:.0%})")
    return ", ".join(parts)


def setting(trained: Trained, shift: Shift, seeds: range) -> str:
    """What was measured, for a caption."""
    config = trained.config
    where = "in the training setting" if shift == NO_SHIFT else f"under the shift {shift}"
    learnt = f"{config.task} from {config.demos} demonstrations in {config.steps} steps"
    return f"{learnt}, {where}, seeds {seeds[0]} to {seeds[-1]}"


def together(config: Config, policies: Sequence[Trained], shift: Shift) -> tuple[str, int]:
    """Count successes of policies in the same episodes, and choose one to show: caption and seed."""
    cells = {each.name: measure(each, shift, config.seeds) for each in policies}
    seed, why = telling_seed(list(cells.values()))
    return f"{setting(policies[0], shift, config.seeds)}: {counted(cells)}. Shown is seed {seed}, {why}.", seed


# -------------------------------------------------------------------- pictures


def contrast(config: Config, policies: list[Trained]) -> str:
    """ACT and PARA side by side, as a video, an animation and stills."""
    shift = Shift.parse(config.shift)
    caption, seed = together(config, policies, shift)
    films = {each.name: shot(each, seed, shift) for each in reversed(policies)}
    titles = [f"{display_name(name)}: {'heatmaps and targets' if name == 'para' else 'targets'}" for name in films]
    write_films(config.folder / "contrast", list(films.values()), titles)
    write_picture(config.folder / "contrast.png", rollout_sheet({display_name(name): each for name, each in films.items()}))
    return placed(config, "contrast", caption, ("webp", "png"), {"video": "mp4"})


def heatmaps(config: Config, policies: list[Trained]) -> str:
    """Decisions of an episode of PARA by future targets."""
    caption, seed = together(config, policies, NO_SHIFT)
    write_picture(config.folder / "heatmaps.png", heatmap_sheet(shot(policies[0], seed, size=384)))
    told = "Rows are decisions, columns future targets, crosses the decoded pixels."
    return placed(config, "heatmaps", f"{told} {caption}", ("png",))


def wall(config: Config, policies: list[Trained]) -> str:
    """The first episodes of PARA on several tasks."""
    seeds = config.seeds[: config.columns]
    films, titles, lines = [], [], []
    for trained in policies:
        task = trained.config.task.removesuffix("-v3")
        films += [shot(trained, seed, size=192) for seed in seeds]
        titles += [f"{task}, seed {seed}" for seed in seeds]
        cell = measure(trained, NO_SHIFT, config.seeds)
        lines.append(f"{setting(trained, NO_SHIFT, config.seeds)}: {counted({'para': cell})}")
    write_films(config.folder / "wall", films, titles, columns=len(seeds), width=192, still=True)
    caption = f"The first {len(seeds)} seeds, whatever became of them. {'; '.join(lines)}."
    return placed(config, "wall", caption, ("webp",), {"video": "mp4", "last picture": "png"})


def rollouts(config: Config, policies: list[Trained]) -> str:
    """PARA and regression in the same episode."""
    caption, seed = together(config, policies, NO_SHIFT)
    films = {display_name(each.name): shot(each, seed) for each in policies}
    write_picture(config.folder / "rollouts.png", rollout_sheet(films))
    return placed(config, "rollouts", f"Each in its own time, from its first to its last step. {caption}", ("png",))


def circles(config: Config, _: list[Trained]) -> str:
    """Training clips with their labels, beside success with and without them."""
    clips = CircleVideos(seed=0)
    rows = [row for index in range(3) for row in circle_panels(clips[index], clips.observed, side=207)]
    cells, source = starts(config.results)
    title = f"Success from {FEW} demonstrations"
    chart = label(np.full((630, 900, 3), 255, np.uint8), f"{title}: not measured")
    if cells:
        with tempfile.TemporaryDirectory() as folder:
            success_bars(Path(folder) / "bars.png", cells, title=title)
            chart = np.asarray(Image.open(Path(folder) / "bars.png").convert("RGB"))
    write_picture(config.folder / "circles.png", beside(panel_grid(rows, 2), chart))
    left = "Clips that PARA is pretrained on: now, with the centres of the next frames, and the last of these, with its label."
    return placed(config, "circles", f"{left} Beside them success by start; {source}.", ("png",))


def circle_panels(clip: CircleClip, observed: int, side: int) -> list[Frame]:
    """A clip's last observed frame with the centres that follow, and its last frame, each with a ring around the labelled disc."""
    now, last = observed - 1, len(clip.video) - 1
    centres, scale = clip.centres.numpy(), side / clip.video.shape[-1]
    panels = []
    for index, ahead, text in ((now, slice(now + 1, None), "now"), (last, slice(0, 0), f"+{last - now}")):
        image = Image.fromarray(clip.video[index].permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.BICUBIC)
        marked = draw_points(np.asarray(image), upscale_points(centres[ahead], scale), style="trajectory", radius=3)
        ring = {"style": "ring", "radius": float(clip.radius[index]) * scale, "colours": [(255, 255, 255)]}
        panels.append(label(draw_points(marked, upscale_points(centres[[index]], scale), **ring), text))
    return panels


def starts(results: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """Bars of success by policy and start with `FEW` demonstrations, and what they were measured on; no bars where nothing was."""
    for source in SOURCES:
        path = results / source
        if not path.is_file():
            continue
        kept = json.loads(path.read_text())
        rows = [
            {**row, "view": "none", "succeeded": row["succeeded"]["same"]} if "view" not in row else row for row in kept["rows"]
        ]
        rows = [row for row in rows if row["demos"] == FEW and row["view"] == "none" and row["policy"] not in REFERENCES]
        rows = measured_alike(rows) if rows else []
        arms = sorted(dict.fromkeys(row["arm"] for row in rows), key=lambda arm: arm not in ("none", "scratch"))
        found = {
            policy: {arm: each for arm in arms if (each := outcomes(rows, policy=policy, arm=arm))}
            for policy in sorted({row["policy"] for row in rows}, key=lambda name: name != "para")
        }
        if found:
            measured = dict.fromkeys(measured_on(each) for by_arm in found.values() for each in by_arm.values())
            told = f"{' or '.join(measured)} a bar, after {kept['settings']['steps']} steps of training (results/{source})"
            return {policy: {arm: bar(each) for arm, each in by_arm.items()} for policy, by_arm in found.items()}, told
    return {}, "not measured"


def beside(*pictures: Frame) -> Frame:
    """Pictures of any heights next to each other, on white."""
    height = max(picture.shape[0] for picture in pictures)
    padded = [np.pad(each, ((0, height - len(each)), (0, 12), (0, 0)), constant_values=255) for each in pictures]
    return np.concatenate(padded, 1)


def write_films(path: Path, films: Sequence[Film], titles: Sequence[str], *, still: bool = False, **layout: Any) -> None:
    """Films side by side as .mp4 and .webp, and the last picture as .png where it is asked for."""
    ends = [each.episode.succeeded for each in films]
    frames = side_by_side([each.overlaid() for each in films], titles, ends, hold=HOLD, **layout)
    write_video(path.with_suffix(".mp4"), frames, fps=FPS, quality=23)
    write_animation(path.with_suffix(".webp"), frames, fps=FPS)
    if still:
        write_picture(path.with_suffix(".png"), frames[-1])


def placed(config: Config, name: str, caption: str, shown: Sequence[str], linked: Mapping[str, str] | None = None) -> str:
    """A picture and its caption as Markdown.

    Args:
        shown: suffixes of the files that are shown. linked: of those that are linked, by what they are.
    """
    file = f"{config.folder.name}/{name}"
    links = [f"[{text}]({file}.{suffix})" for text, suffix in (linked or {}).items()]
    told = f"{caption} Also as {' and '.join(links)}." if links else caption
    return "\n\n".join([*(f"![{TITLES[name]}]({file}.{suffix})" for suffix in shown), told])


if __name__ == "__main__":
    command_line(main, Config, __doc__ or "")
