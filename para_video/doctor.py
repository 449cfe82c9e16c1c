"""Check a data set or an environment before anyone trusts a number.

    python -m para_video.doctor --demo-folder FOLDER    # as para_video.demos.save_demos writes it
    python -m para_video.doctor --task pick-place-v3    # records a few demonstrations, or takes them from the cache

Each check says ok, suspicious, wrong or not checked, with what it measured, its limit and a remedy. A picture and a JSON file go
to --out. The exit code is 1 where something is wrong. What the image checks look at is motion: frames differ where the arm moves.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from rich.console import Console
from tqdm import tqdm

from para_video.demos import TUNING_SEED, Demo, DemoSet, Plan, cached_demos, load_demos
from para_video.figures import draw_points, label, overlay_heatmap, upscale, upscale_points, write_picture
from para_video.heads import ParaHead
from para_video.heatmap import inside
from para_video.readout import one_hot_round_trip, readout_spec
from para_video.rollout import ReplanningOracle, Replay, evaluation_seeds, expert_rollout, horizon_for, rollout
from para_video.runs import command_line
from para_video.sightings import HAND_M, MIDDLE, TOLERANCE, look
from para_video.training import write_atomically

if TYPE_CHECKING:
    from para_video.sims.metaworld import MetaWorldEnv

Verdict = Literal["ok", "suspicious", "wrong", "not checked"]
COLOURS = {"ok": "blue", "suspicious": "yellow", "wrong": "bold magenta", "not checked": "dim"}
LIMITS = {
    "lag": 2 * TOLERANCE["lag"], "scale": 2 * TOLERANCE["scale"], "roll": 2 * math.degrees(TOLERANCE["roll"]),
    "offset": 5.0, "episode": 4.0, "drift": 3.5, "silhouette": 0.5,
}  # fmt: skip
"""What is trusted: half a frame, a share of 7 %, 3 degrees, pixels (thrice, at a width of 128), likeness. On 16 clean Meta-World
tasks (three demonstrations each) estimates lay within 0.21 frames, 5 %, 2.0 degrees, 3.7 px, 1.9 px and, on six of them, drift of
2.8 px; the hand's likeness was 0.73 or more."""
SAME_LEVELS = 2.0
"""Mean difference, of 255, up to which pictures are taken for the same: renderers round and videos are compressed."""
PROJECTED = ("frame sizes", "position jump", "principal point", "focal length", "gripper in view")
"""Checks of what projects the hand, and of what it is seen on; where one is red, images are not judged."""


@dataclass(frozen=True)
class Check:
    """What one check found. value and limit are for reading; detail holds JSON values."""

    name: str
    verdict: Verdict
    value: str
    limit: str
    remedy: str
    detail: Any = None


@dataclass(frozen=True)
class DoctorConfig:
    """Check a data set or an environment."""

    demo_folder: Path | None = None
    """Demonstrations to check, written by para_video.demos.save_demos; where they were recorded in Meta-World by this package, the
    simulator is checked too."""
    task: str | None = None
    """Meta-World task to check; its demonstrations are recorded, or read from the cache."""
    demos: int = 5
    """Demonstrations recorded for --task."""
    episodes: int = 20
    """Episodes of expert, read-out oracle and blind replay each; 0 leaves the simulator out."""
    size: int = 128
    """Side of the recorded frames in pixels for --task."""
    hand: tuple[float, float, float] = HAND_M
    """From the gripper point to the wrist, world metres; of your robot."""
    out: Path = Path("runs/doctor")
    """Folder of doctor.json and doctor.png; files of these names are replaced."""

    def __post_init__(self) -> None:
        if (self.demo_folder is None) == (self.task is None):
            raise ValueError(f"pass either --demo-folder or --task, got {self.demo_folder} and {self.task}")
        if self.demos < 1 or self.episodes < 0:
            raise ValueError(f"demos must be at least 1, episodes not negative; got {self.demos} and {self.episodes}")


# -------------------------------------------------------------------- demonstrations


def check_demos(demos: Sequence[Demo], hand: Sequence[float] = HAND_M) -> list[Check]:
    """Every check that needs demonstrations alone."""
    names = ("positions", "rotations", "openings", "gripper", "moves")
    broken = [i for i, d in enumerate(demos) if any((a := getattr(d, k)) is not None and not np.isfinite(a).all() for k in names)]
    found = [_limit("not finite", len(broken), 0, "episodes", "remove or repair these episodes", detail=broken)]
    sizes = sorted({(demo.frames.shape[2], demo.frames.shape[1]) for demo in demos})
    told = ", ".join(f"{width} x {height}" for width, height in sizes)
    scale = "scale all to one size, the intrinsics with the images"
    found.append(Check("frame sizes", "ok" if len(sizes) == 1 else "wrong", f"{told} px", "one", scale))
    whole = [demo for i, demo in enumerate(demos) if i not in broken]
    checks = (_numbers, _camera_facts, _gripper, _episodes, _images)
    for check in tqdm(checks, desc="demonstrations", unit="group", disable=not whole):
        broken_first = [c.name for c in found if c.verdict == "wrong" and c.name in PROJECTED]
        if check is _images and broken_first:  # they would turn red with it, and name another cause
            found.append(Check("images", "not checked", "where the hand projects cannot be trusted", "", f"mend {broken_first[0]}"))
        elif whole:
            found += check(whole, hand)
    return found


def _limit(name: str, value: float, limit: float, unit: str, remedy: str, *, worse: Verdict = "wrong", detail: Any = None) -> Check:
    """wrong (or `worse`) where a value is above its limit."""
    verdict: Verdict = "ok" if value <= limit else worse
    return Check(name, verdict, f"{value:.3g} {unit}", f"at most {limit:.3g}", remedy, detail)


def _numbers(demos: Sequence[Demo], _: Sequence[float]) -> list[Check]:
    steps = [np.linalg.norm(np.diff(demo.positions, axis=0), axis=1) for demo in demos]
    usual = float(np.percentile(np.concatenate(steps), 95)) if any(map(len, steps)) else 0.0
    jump = max((float(s.max()) for s in steps if len(s)), default=0.0)
    defect = max(float(np.abs(d.rotations @ d.rotations.swapaxes(1, 2) - np.eye(3)).max()) for d in demos)
    mirrored = any((np.linalg.det(demo.rotations) < 0).any() for demo in demos)
    return [
        _limit("position jump", jump, max(5 * usual, 0.03), "m a step", "look for lost tracking, mixed units or joined episodes"),
        _limit(
            "rotations", 2.0 if mirrored else defect, 1e-3, "off orthonormal", "pass world_R_gripper, right-handed and not scaled"
        ),
    ]


def _camera_facts(demos: Sequence[Demo], _: Sequence[float]) -> list[Check]:
    off, focal, visible = 0.0, [], []
    for demo in demos:
        height, width = demo.frames.shape[1:3]
        K = demo.camera.intrinsics.numpy()
        off = max(off, abs(K[0, 2] - (width - 1) / 2) / width, abs(K[1, 2] - (height - 1) / 2) / height)
        focal += [float(K[0, 0] / width), float(K[1, 1] / width)]
        pixels, depth = demo.camera.project(torch.from_numpy(demo.positions))
        visible.append((inside(pixels, (height, width)) & (depth > 0)).numpy())
    share = float(np.concatenate(visible).mean())
    plausible = min(focal) >= 0.3 and max(focal) <= 5
    scaled = "scale the intrinsics with the images (cropping moves the principal point)"
    seen: Verdict = "ok" if share >= 0.9 else "suspicious" if share >= 0.5 else "wrong"
    return [
        _limit("principal point", off, 0.15, "of the image from its middle", scaled, worse="suspicious" if off < 0.5 else "wrong"),
        Check("focal length", "ok" if plausible else "wrong", f"{min(focal):.2f} to {max(focal):.2f} widths", "0.3 to 5", scaled),
        Check("gripper in view", seen, f"{share:.0%} of steps", "at least 90%", "move the camera, or mend its pose or units"),
    ]


def _gripper(demos: Sequence[Demo], _: Sequence[float]) -> list[Check]:
    commands, openings = (np.concatenate([getattr(demo, name) for demo in demos]) for name in ("gripper", "openings"))
    later = 5  # control steps that fingers are given to follow
    pairs = [(d.gripper[:-later], d.openings[later:] - d.openings[:-later]) for d in demos if len(d) > later]
    sent, change = (np.concatenate(column) for column in zip(*pairs, strict=True)) if pairs else (np.zeros(1), np.zeros(1))
    moved = float(np.abs(sent * change).sum())
    outside = max(0.0, -float(openings.min()), float(openings.max()) - 1, float(np.abs(commands).max()) - 1)
    name, limit, remedy = "gripper sign", "below -0.3", "commands are -1 to open and 1 to close; opening is 0 closed, 1 open"
    if moved < 0.5:
        sign = Check(name, "not checked", "the gripper hardly moves", limit, remedy)
    else:
        r = float((sent * change).sum()) / moved
        sign = Check(name, "ok" if r < -0.3 else "wrong" if r > 0.3 else "suspicious", f"agreement {r:.2f}", limit, remedy)
    return [
        sign,
        _limit("gripper range", outside, 1e-3, "outside", "scale openings to [0, 1] and commands to [-1, 1]"),
    ]


def _episodes(demos: Sequence[Demo], _: Sequence[float]) -> list[Check]:
    same = [
        (i, j) for (i, a), (j, b) in itertools.combinations(enumerate(demos), 2)
        if a.seed == b.seed or (len(a) == len(b) and np.allclose(a.positions, b.positions, atol=1e-5))
    ]  # fmt: skip
    evaluated = [demo.seed for demo in demos if demo.seed >= TUNING_SEED]
    return [
        _limit("duplicate episodes", len(same), 0, "pairs", "remove one of each; give every episode its own seed", detail=same),
        _limit("evaluation seeds", len(evaluated), 0, "episodes", f"record seeds below {TUNING_SEED}", detail=evaluated),
    ]


def _images(demos: Sequence[Demo], hand: Sequence[float]) -> list[Check]:
    """What the images show of the hand: orientation first, all else in the orientation found and beside the other faults found."""
    moved = [np.linalg.norm(np.diff(_hand_pixels(d, hand), axis=0), axis=1) > 0.004 * d.frames.shape[2] for d in demos]
    stuck = [(d.frames[1:] == d.frames[:-1]).all((1, 2, 3))[m] for d, m in zip(demos, moved, strict=True)]
    repeated = float(np.concatenate(stuck).mean()) if any(map(len, stuck)) else 0.0
    found = [_limit("repeated frames", repeated, 0.05, "of the steps that move", "drop them, or record every camera frame once")]
    seen = look(demos, hand)
    unjudged = (
        "too little motion" if seen.compared < 20 else "nothing moves like the hand" if seen.likeness < LIMITS["silhouette"] else ""
    )
    turned = "turn or flip the images back, or mend the camera's axes (x right, y down, z forward)"
    upright: Verdict = "ok" if seen.orientation == "as it is" else "wrong"
    if seen.compared < 20:
        upright = "not checked"
    found.append(Check("image orientation", upright, seen.orientation, "as it is", turned, seen.scores))
    if unjudged:
        pose = "the camera's or the gripper's pose is off by more than can be measured, or set --hand for your robot"
        verdict: Verdict = "not checked" if seen.compared < 20 else "wrong"
        return [*found, Check("hand found", verdict, f"{unjudged} ({seen.likeness:.2f})", f"at least {LIMITS['silhouette']}", pose)]
    fault, offset, episodes = seen.fault, np.array(seen.fault.offset) * seen.unit, np.linalg.norm(seen.episode_offsets(), axis=1)
    yaw, pitch = np.rad2deg(np.arctan(offset / (seen.focal_px * fault.scale)))
    lens = f"scale the intrinsics with the images, or mend the camera's distance: {fault.scale:.2f} of its focal length would fit"
    roll = f"turn the images or the camera's pose about its axis by {fault.roll_deg:+.1f} degrees"
    aim = (
        f"calibrate the camera's pose again: seen {yaw:+.1f} degrees to the right, {pitch:+.1f} down; or set --hand for your robot"
    )
    late = "shift positions against images, or stamp both with one clock; negative: images are early"
    moving = "the camera moved: keep one Camera for each episode, or fix its mount"
    drift = Check("camera over time", "not checked", "no episode shows the hand both early and late", "", "")
    if np.isfinite(drifts := seen.drift()):
        drift = _limit("camera over time", drifts, LIMITS["drift"] * seen.unit, "px in an episode", moving, worse="suspicious")
    apart = float(np.nan_to_num(episodes, nan=np.inf).max())  # an episode whose hand is not found is out of reach
    by_motion = {
        "lag": _limit("image lag", abs(fault.lag), LIMITS["lag"], "frames", late, detail=fault.lag),
        "scale": _limit("focal length by motion", abs(fault.scale - 1), LIMITS["scale"], "of it", lens, detail=fault.scale),
        "roll": _limit("camera roll", abs(fault.roll_deg), LIMITS["roll"], "degrees", roll, detail=fault.roll_deg),
    }
    more = "record more, in which the hand turns, stops and goes"
    for name, error in seen.errors.items():
        if error > TOLERANCE[name]:
            untold = "the hand's motion does not tell it"
            by_motion[name] = replace(by_motion[name], verdict="not checked", value=untold, remedy=more, detail=None)
    return [
        *found,
        *by_motion.values(),
        _limit("camera offset", float(np.linalg.norm(offset)), LIMITS["offset"] * seen.unit, "px", aim, detail=offset.tolist()),
        _limit("camera by episode", apart, LIMITS["episode"] * seen.unit, "px at worst", moving, worse="suspicious"),
        drift,
        Check("dropped frames", "not checked", "one missing frame is only seen as lag", "", ""),
    ]


def _hand_pixels(demo: Demo, hand: Sequence[float]) -> np.ndarray:
    return demo.camera.project(torch.from_numpy(demo.positions + MIDDLE * np.asarray(hand, np.float32)))[0].numpy()


# -------------------------------------------------------------------- simulators


def check_env(settings: Mapping[str, Any], demos: Sequence[Demo], episodes: int) -> list[Check]:
    """Reset, first frame, expert, oracle and replays of the Meta-World task that a set's settings name."""
    from para_video.sims.metaworld import CameraPlacement, MetaWorldServo  # not needed for sets of a real robot
    from para_video.sims.shifts import Shift, ShiftedEnv

    camera = CameraPlacement(**{**settings["camera"], "target": tuple(settings["camera"]["target"])})
    options = {key: settings[key] for key in ("size", "shadows", "widen")}
    half = Shift(workspace=Shift.parse(settings.get("shift", "none")).workspace)  # a turned camera is in the placement already
    seeds, servo = evaluation_seeds(episodes), MetaWorldServo()
    with (
        ShiftedEnv(settings["task"], half, camera=camera, **options) as env,
        ShiftedEnv(settings["task"], half, camera=camera, **options) as fresh,
    ):
        found = []
        env.reset(0)
        env.render()
        env.step(env.expert_action())
        env.reset(1)
        first, position, layout = env.render(), env.position, env.layout
        fresh.reset(1)
        repeats = np.array_equal(position, fresh.position) and np.array_equal(layout, fresh.layout)
        stale = int((first != fresh.render()).any(-1).sum())
        seeded = "seed every draw of the reset from its argument"
        found.append(
            Check("reset determinism", "ok" if repeats else "wrong", "same" if repeats else "differs", "same state", seeded)
        )
        found.append(
            _limit("stale first frame", stale, 0, "px differ from a fresh env's", "bring the scene up to date before rendering")
        )
        as_reset = demos[::2] if settings.get("scatter") else demos  # else the hand was moved before an episode was recorded
        found.append(colour_order(env, as_reset))
        horizon = horizon_for(env, seeds=range(10))
        trip = one_hot_round_trip(readout_spec(demos), ParaHead.GRID, ParaHead.SIGMA_PX, first.shape[:2])
        oracle, blind = ReplanningOracle(env, round_trip=trip), Replay(demos[0])
        act = lambda policy, seed: rollout(env, policy, servo, seed, context=0, horizon=horizon).succeeded  # noqa: E731
        share = {
            "expert": [expert_rollout(env, seed, horizon=horizon).succeeded for seed in _bar(seeds, "expert")],
            "replay": [act(Replay(demo), demo.seed) for demo in _bar(as_reset, "replay")],
            "oracle": [act(oracle, seed) for seed in _bar(seeds, "read-out oracle")],
            "blind": [act(blind, seed) for seed in _bar(seeds, "blind replay")],
        }
    rate = {name: float(np.mean(won)) for name, won in share.items()}
    for name, key, remedy in (
        ("expert", "expert", "the task or its horizon is not what the expert was written for"),
        ("replay from its own seed", "replay", "targets, servo or control rate lose what was demonstrated"),
        ("read-out oracle", "oracle", "no policy can do better: raise the read-out's precision or change the schedule"),
    ):
        verdict: Verdict = "ok" if rate[key] >= 0.8 else "suspicious" if rate[key] >= 0.5 else "wrong"
        found.append(Check(name, verdict, f"{rate[key]:.0%} of {len(share[key])}", "at least 80%", remedy))
    easy = "the task hardly needs eyes: widen where objects are placed"
    return [*found, _limit("blind replay", 100 * rate["blind"], 25, f"% of {episodes}", easy, worse="suspicious")]


def colour_order(env: MetaWorldEnv, demos: Sequence[Demo]) -> Check:
    """Whether first frames are what the simulator renders of their seeds, or would be with red and blue swapped."""
    apart = {"red, green, blue": 0.0, "blue, green, red": 0.0}
    for demo in demos:
        env.reset(demo.seed)
        rendered = env.render().astype(np.float32)
        for name, order in zip(apart, (1, -1), strict=True):
            apart[name] = max(apart[name], float(np.abs(demo.frames[0].astype(np.float32) - rendered[..., ::order]).mean()))
    best, right = min(apart, key=apart.__getitem__), next(iter(apart))
    if apart[best] > SAME_LEVELS:
        return Check(
            "colour order", "not checked", f"first frames are {apart[best]:.1f} levels from what is rendered again", "", ""
        )
    return Check("colour order", "ok" if best == right else "wrong", best, right, "store frames as RGB", apart)


def _bar(items: Sequence[Any], name: str) -> tqdm:
    return tqdm(items, desc=name, unit="episode")


# -------------------------------------------------------------------- the report


def picture(demos: Sequence[Demo], hand: Sequence[float] = HAND_M) -> np.ndarray:
    """Up to three episodes: where frames change, and the projected path of the hand (early violet to late yellow)."""
    panels = []
    for demo in demos[:3]:
        factor = max(1, round(320 / demo.frames.shape[2]))
        grey = demo.frames.astype(np.float32).mean(-1)
        motion = np.abs(np.diff(grey, axis=0)).mean(0) if len(demo) > 1 else np.zeros_like(grey[0])
        path = upscale_points(_hand_pixels(demo, hand)[:: max(1, len(demo) // 20)], factor)
        shown = draw_points(upscale(overlay_heatmap(demo.frames[0], motion), factor), path, style="trajectory")
        panels.append(label(shown, f"motion and hand, seed {demo.seed}"))
    height = max(panel.shape[0] for panel in panels)
    return np.concatenate([np.pad(panel, ((0, height - panel.shape[0]), (0, 0), (0, 0))) for panel in panels], axis=1)


def main(config: DoctorConfig) -> list[Check]:
    """Check, print, and write doctor.json and doctor.png."""
    console, checks = Console(soft_wrap=True), list[Check]()
    demos = DemoSet(())
    try:
        demos = _demonstrations(config)
        if not demos.demos:
            checks.append(Check("demonstrations", "wrong", "none", "at least 1", "record some"))
    except ValueError as error:
        if config.demo_folder is None:  # then it is the task that is wrong
            raise
        checks.append(Check("readable", "wrong", str(error), "a whole demo set", "repair the files"))
    config.out.mkdir(parents=True, exist_ok=True)
    if demos.demos:
        checks += check_demos(demos.demos, config.hand)
        write_picture(config.out / "doctor.png", picture(demos.demos, config.hand))
    tell(checks, console)  # before the simulator's, which take minutes
    more: list[Check]
    if demos.demos and config.episodes and demos.settings.get("simulator") == "metaworld":
        try:
            more = check_env(demos.settings, demos.demos, config.episodes)
        except Exception as error:  # whatever it is, it is no verdict on the data
            more = [Check("simulator", "not checked", f"{type(error).__name__}: {error}", "", "")]
    else:
        reason = "--episodes 0" if demos.demos and not config.episodes else "the set's settings do not say that it is of Meta-World"
        more = [Check("simulator", "not checked", reason if demos.demos else "no readable set", "", "")]
    tell(more, console)
    write_atomically(config.out / "doctor.json", json.dumps([asdict(check) for check in [*checks, *more]], indent=1).encode())
    return [*checks, *more]


def tell(checks: Sequence[Check], console: Console) -> None:
    """Print checks, each on a line."""
    for check in checks:
        told = f"{check.verdict:<12}{check.name}: {check.value}" + (f" (limit: {check.limit})" if check.limit else "")
        remedy = f"; {check.remedy}" if check.verdict in ("wrong", "suspicious") else ""
        console.print(told + remedy, style=COLOURS[check.verdict], markup=False, highlight=False)


def _demonstrations(config: DoctorConfig) -> DemoSet:
    if config.demo_folder is not None:
        return load_demos(config.demo_folder)
    from para_video.sims.metaworld import MetaWorldEnv  # not needed for sets of a real robot

    assert config.task is not None
    with MetaWorldEnv(config.task, size=config.size) as env, tqdm(total=config.demos, desc="recording", unit="demo") as bar:
        return cached_demos(env, Plan(config.demos, spread_over=64), on_episode=lambda _, ok: bar.update(int(ok)))


def _run(config: DoctorConfig) -> None:
    if any(check.verdict == "wrong" for check in main(config)):
        sys.exit(1)


if __name__ == "__main__":
    command_line(_run, DoctorConfig, __doc__ or "")
