"""The results in README.md and docs/results.md, from the summaries in results/.

python benchmarks/results_table.py                               # rewrite the tables
python benchmarks/results_table.py --collect runs/robot runs/circles   # take in the summaries of these runs first
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backbones import WEIGHTS
from finetune.grid import of_another_expert
from finetune.robot import RobotConfig
from para_video.figures import display_name, markdown_table, told_cell, write_place
from para_video.runs import command_line, plain_settings, precision_in
from para_video.training import write_atomically
from pretrain.circles import CirclesConfig
from pretrain.video import VideoConfig

ROOT = Path(__file__).parent.parent
PLACE = "benchmarks/results_table.py"
KINDS = ("robot-", "video", "circles")
"""What files of summaries begin with."""
UNNAMED = ("task", "demos", "out", "resume", "workers")
"""Options that are in a result's name already, or change no figure in it."""
ROWS = {
    "para": "**PARA**",
    "regression": "global regression (XYZ, spatial softmax)",
    "act": "ACT",
    "expert": "expert",
    "readout": "read-out oracle",
    "blind_replay": "blind replay",
}


@dataclass(frozen=True)
class Config:
    """Where summaries come from and where the tables go.

    Args:
        collect: folders of finished runs, whose summary.json is copied to `results` under a name that says what it is.
        results: folder of summaries. front: the page with runs that compare policies. page: that with all others.
    """

    collect: tuple[Path, ...] = ()
    results: Path = ROOT / "results"
    front: Path = ROOT / "README.md"
    page: Path = ROOT / "docs" / "results.md"


def main(config: Config) -> None:
    """Collect, then write the tables; what they cannot tell is not taken in."""
    found = {path: json.loads(path.read_text()) for kind in KINDS for path in config.results.glob(f"{kind}*.json")}
    collected = {}
    for run in config.collect:
        summary = json.loads((run / "summary.json").read_text())
        summary["config"]["out"] = None  # a path of the machine that it ran on
        if "command" in summary:
            summary["command"] = without_out(summary["command"])
        path = config.results / f"{name_of(summary)}.json"
        refuse_another(path, summary)
        collected[path] = summary
    front, page = tables(found | collected)
    for path, summary in collected.items():
        write_atomically(path, (json.dumps(summary, indent=1) + "\n").encode())
    write_place(config.front, PLACE, front)
    write_place(config.page, PLACE, page)


def tables(summaries: Mapping[Path, dict[str, Any]]) -> tuple[str, str]:
    """Of summaries by file: of the runs that compare policies, and of all others."""
    robots, videos, circles = (
        [summary for path, summary in sorted(summaries.items()) if path.name.startswith(kind)] for kind in KINDS
    )
    compared = [summary for summary in robots if len(summary["policies"]) > 1]
    alone = [summary for summary in robots if summary not in compared]
    parts = [alone_table(alone)] if alone else []
    parts += [video_table(summary) for summary in videos] + [circles_table(summary) for summary in circles]
    return "\n\n".join(robot_table(summary) for summary in compared), "\n\n".join(parts)


def name_of(summary: dict[str, Any]) -> str:
    """circles, video, or robot-TASK-DEMOS, with every option that was not default and changes a figure, and another precision than
    bf16."""
    if "oracle" in summary:
        name, config = f"robot-{summary['task'].removesuffix('-v3')}-{summary['demos']}", RobotConfig()
    else:
        name, config = ("video", VideoConfig()) if "unseen" in summary else ("circles", CirclesConfig())
    for option, default in json.loads(json.dumps(plain_settings(config))).items():
        value = summary["config"].get(option, default)
        if option not in UNNAMED and value != default:
            told = told_init(value) if option == "init" else f"{option}-{value}"
            signed = re.sub(r"(?<![\w.])-(?=\d)", "m", told)  # else -18 and 18 would have one name
            name += "-" + re.sub(r"[^\w.]+", "-", signed).strip("-")
    precision = precision_in(summary)
    return name if precision == "bf16" else f"{name}-{precision}"


def told_init(start: str) -> str:
    """Weights that ship by name; a checkpoint of the user's, whose folder says nothing of it, without."""
    path = ROOT / start
    return f"init-{path.name}" if start == "none" or path.parent == WEIGHTS else "init"


def refuse_another(path: Path, summary: dict[str, Any]) -> None:
    """Raise ValueError where a summary of other settings lies, whose place this one's would take."""
    if path.is_file():
        kept, now = json.loads(path.read_text())["config"], summary["config"]
        differ = [name for name in sorted(kept.keys() & now) if name not in UNNAMED and kept[name] != now[name]]
        if differ:
            told = ", ".join(f"{name} {kept[name]} and {now[name]}" for name in differ)
            raise ValueError(f"{path} is of a run with other settings ({told}): move it away to have this one in its place")


def without_out(command: str) -> str:
    """The command without its --out and --resume, which change no figure."""
    words, kept = iter(shlex.split(command)), []
    for word in words:
        if word == "--out":
            next(words, None)
        elif word != "--resume" and not word.startswith("--out="):
            kept.append(word)
    return shlex.join(kept)


def robot_table(summary: dict[str, Any]) -> str:
    """One row per policy, then what bounds them."""
    config, versions = summary["config"], summary["versions"]
    views = list(next(iter(summary["policies"].values()))["cells"])
    seen = ["same view" if view == "same" else re.sub(r"^azimuth([+-].*)", r"\1 degrees", view) for view in views]
    names, lines = ["policy", *seen, f"held, {seen[0]}", "training s", "ms a decision"], []
    for name, policy in summary["policies"].items():
        cells = policy["cells"]
        held = f"{cells[views[0]]['held']}/{cells[views[0]]['episodes']}"
        spent = f"{policy['seconds']:.0f}", f"{policy['ms_per_act']['p50']:.0f}"
        lines.append([ROWS.get(name, name), *(told_cell(cells[view]) for view in views), held, *spent])
    for name, cell in summary["oracle"].items():
        held = f"{cell['held']}/{cell['episodes']}" if views[0] == "same" else ""  # of the training camera's view alone
        lines.append([ROWS[name], *(told_cell(cell) if view == "same" else "" for view in views), held, "", ""])
    steps = next(iter(summary["policies"].values()))["steps"]
    took = "" if summary["seconds"] is None else f"; {summary['seconds'] / 60:.0f} minutes in all"
    made = (
        f"{summary['task']}, {summary['demos']} demonstrations{_older_expert(summary)}, {steps} steps of {config['batch_size']} "
        f"clips for each policy, training seed {summary['seed']}{took}; {precision_in(summary)}; torch {versions['torch']}, "
        f"Meta-World {versions['metaworld']}, MuJoCo {versions['mujoco']}."
    )
    return _titled(summary["command"], made, names, lines)


def alone_table(summaries: Sequence[dict[str, Any]]) -> str:
    """A row for each run of one policy."""
    names = [
        "`python finetune/robot.py ...`",
        "carried out; state told",
        "same view",
        "+18 degrees",
        "training s",
        "expert",
        "read-out oracle",
        "blind replay",
    ]
    lines = []
    for summary in summaries:
        (policy,), oracle = summary["policies"].values(), summary["oracle"]
        cells = [told_cell(policy["cells"][view]) if view in policy["cells"] else "" for view in ("same", "azimuth+18")]
        bounds = [f"{oracle[name]['successes']}/{oracle[name]['episodes']}" for name in ("expert", "readout", "blind_replay")]
        told = f"`{' '.join(summary['command'].split(maxsplit=2)[2:])}`, {precision_in(summary)}"
        lines.append([told, way(summary), *cells, f"{policy['seconds']:.0f}", *bounds])
    return markdown_table(names, lines)


def way(summary: dict[str, Any]) -> str:
    """How many targets of a decision were carried out, and how the gripper's height and opening were told; older summaries do not
    say so. And whether the demonstrations are of another expert than today's."""
    if "schedule" not in summary or "state_noise" not in summary["config"]:
        return f"an older way{_older_expert(summary)}"
    told = "roughly" if summary["config"]["state_noise"] else "exactly"
    return f"{summary['schedule']['executed']}; {told}{_older_expert(summary)}"


def _older_expert(summary: dict[str, Any]) -> str:
    return "; an earlier expert" if of_another_expert(summary) else ""


def video_table(summary: dict[str, Any]) -> str:
    """Quality on unseen scenes by frames after the last seen one; of backbones that draw no frames the loss."""
    figures = summary["unseen"]
    if not figures:
        losses = summary["unseen_loss"]
        names = ["loss on unseen clips", *(f"{n} seen" for n in losses["after"])]
        lines = [[f"{when} training", *(f"{value:.4f}" for value in found.values())] for when, found in losses.items()]
        return _titled(summary["command"], f"{trained(summary)}.", names, lines)
    lines, shown = [], [k for k in ("1", "3", "6") if k in next(iter(figures.values()))["changing_pixels"]]
    names = [f"{n} seen, +{k}" for n in figures for k in shown]
    told = {"copy": "last frame repeated", "sample": "one draw", "mean": "mean of {samples} draws", "expected": "one-step answer"}
    told["guided"] = "one draw, guided by {guidance:g}"
    for key, text in told.items():
        if key not in next(iter(figures.values()))["psnr_db"]:
            continue
        cells = [f"{figures[n]['psnr_db'][key][k]:.2f} dB ({figures[n]['ssim'][key][k]:.2f})" for n in figures for k in shown]
        lines.append([text.format(**summary["config"]), *cells])
    kinds = dict.fromkeys(kind for n in figures for kind in figures[n].get("gripper_error_px", {}))
    for kind in kinds:
        found = [figures[n].get("gripper_error_px", {}).get(kind, {}).get(k) for n in figures for k in shown]
        lines.append([f"gripper: {kind}", *("" if value is None else f"{value:.2f} px" for value in found)])
    made = (
        f"{trained(summary)}. On {next(iter(figures.values()))['clips']} clips of scene families that it never saw: PSNR (SSIM) on "
        "the pixels that change; median error of the gripper's place, found by a network of its own in predicted frames."
    )
    return _titled(summary["command"], made, ["", *names], lines)


def trained(summary: dict[str, Any]) -> str:
    """How much a video model was trained."""
    if not summary["steps"]:
        return f"as it came, {precision_in(summary)}"
    minutes = summary["training_seconds"] / 60
    amount = f"{summary['steps']} steps of {summary['config']['batch_size']} clips"
    return f"{amount}, {minutes:.0f} minutes of training, {precision_in(summary)}"


def circles_table(summary: dict[str, Any]) -> str:
    """Median errors by horizon beside constant velocity."""
    config, error, guess = summary["config"], summary["median_error_px"], summary["constant_velocity_px"]
    name = f"{display_name(config.get('policy', 'para'))} head"
    lines = [
        [name, f"{summary['median_error_px_observed']:.2f}", *(f"{error[name]:.2f}" for name in guess)],
        ["constant velocity from the true centres", "", *(f"{value:.2f}" for value in guess.values())],
    ]
    made = (
        f"{summary['steps']} steps of {config['batch_size']} clips, {summary['training_seconds']:.0f} s of training, "
        f"{precision_in(summary)}; median pixels of error at {config['size']} px on {config['held_out']} held-out clips."
    )
    command = summary.get("command", "python pretrain/circles.py")
    return _titled(command, made, ["frame", "seen", *(f"+{name}" for name in guess)], lines)


def _titled(command: str, made: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return f"**`{command}`**: {made}\n\n{markdown_table(header, lines)}"


if __name__ == "__main__":
    command_line(main, Config, __doc__ or "")
