"""Check a data set or an environment before anyone trusts a number.

    python -m para_video.doctor --demo-folder FOLDER    # as para_video.demos.save_demos writes it
    python -m para_video.doctor --task pick-place-v3    # records a few demonstrations, or takes them from the cache

Each check says ok, suspicious, wrong or not checked, with what it measured, its limit and a remedy. A picture and a JSON file go
to --out. The exit code is 1 where something is wrong. What the image checks look at is motion: frames differ where the arm moves.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from torch.nn import functional as F
from tqdm import tqdm

from para_video.demos import EVALUATION_SEED, Demo, DemoSet, Plan, cached_demos, load_demos
from para_video.figures import draw_points, label, overlay_heatmap, upscale, upscale_points, write_picture
from para_video.heads import ParaHead
from para_video.heatmap import inside
from para_video.readout import one_hot_round_trip, readout_spec
from para_video.rollout import ReplanningOracle, Replay, evaluation_seeds, expert_rollout, horizon_for, rollout
from para_video.runs import command_line
from para_video.training import write_atomically

Verdict = Literal["ok", "suspicious", "wrong", "not checked"]
COLOURS = {"ok": "blue", "suspicious": "yellow", "wrong": "bold magenta", "not checked": "dim"}
HAND_M = (0.0, -0.04, 0.05)
"""From the gripper point to the middle of what moves around it, world metres: Sawyer's hand stands above, towards its base."""
REACH = 0.22
"""Offsets up to this share of the image's width are searched."""
OFFSET_LIMIT = 0.055
"""Largest trusted offset, as a share of the width (7 px of 128). On six Meta-World tasks true cameras were off by at most 4.2 px,
cameras turned by 5 degrees by at least 10 px. Errors of 2 degrees or 5 px mostly pass."""
DRIFT_LIMIT = 0.09
"""As OFFSET_LIMIT, between the first and the second half of an episode's motion; true cameras reached 5 px at 128 px."""
LAGS = range(-4, 5)


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
    """Demonstrations to check, written by para_video.demos.save_demos; of a Meta-World set the simulator is checked too."""
    task: str | None = None
    """Meta-World task to check; its demonstrations are recorded, or read from the cache."""
    demos: int = 5
    """Demonstrations recorded for --task."""
    episodes: int = 20
    """Episodes of expert, read-out oracle and blind replay each; 0 leaves the simulator out."""
    size: int = 128
    """Side of the recorded frames in pixels for --task."""
    hand_offset: tuple[float, float, float] = HAND_M
    """From the gripper point to the middle of what moves around it (the hand), world metres; of your robot."""
    out: Path = Path("runs/doctor")
    """Folder of doctor.json and doctor.png; files of these names are replaced."""

    def __post_init__(self) -> None:
        if (self.demo_folder is None) == (self.task is None):
            raise ValueError(f"pass either --demo-folder or --task, got {self.demo_folder} and {self.task}")
        if self.demos < 1 or self.episodes < 0:
            raise ValueError(f"demos must be at least 1, episodes not negative; got {self.demos} and {self.episodes}")


# -------------------------------------------------------------------- what moves in the images


def motion_energy(frames: np.ndarray) -> np.ndarray:
    """frames (n, H, W, 3) uint8 -> (n - 1, H, W) float32, smoothed absolute difference between each frame and the next."""
    grey = torch.from_numpy(frames.astype(np.float32).mean(-1) / 255)
    energy = grey.diff(dim=0).abs()[:, None]
    side = 2 * max(1, round(frames.shape[2] / 50)) + 1
    for _ in range(2):
        energy = F.avg_pool2d(energy, side, stride=1, padding=side // 2)
    return energy[:, 0].numpy()


def hand_pixels(demo: Demo, hand: Sequence[float] = HAND_M) -> np.ndarray:
    """(n, 2) pixels of the hand's middle."""
    return demo.camera.project(torch.from_numpy(demo.positions + np.asarray(hand, np.float32)))[0].numpy()


def crops(maps: np.ndarray, pixels: np.ndarray, radius: int) -> np.ndarray:
    """maps (n, H, W) around pixels (n, 2), bilinear and 0 outside -> (n, 2 radius + 1, 2 radius + 1)."""
    around = torch.arange(-radius, radius + 1, dtype=torch.float32)
    offsets = torch.stack(torch.meshgrid(around, around, indexing="xy"), -1)
    places = torch.from_numpy(np.asarray(pixels, np.float32))[:, None, None] + offsets
    size = torch.tensor([maps.shape[2], maps.shape[1]], dtype=torch.float32)
    grid = (2 * places + 1) / size - 1
    return F.grid_sample(torch.from_numpy(maps)[:, None], grid, padding_mode="zeros", align_corners=False)[:, 0].numpy()


def motion_around_hand(energy: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """(2r + 1, 2r + 1) mean share of a step's motion at each offset from the hand; steps without motion count less."""
    total = energy.sum((1, 2))
    weight = np.minimum(1, total / (total.max() / 4 + 1e-6)) / np.maximum(total, 1e-6)
    between = (pixels[1:] + pixels[:-1]) / 2
    return np.einsum("n,nhw->hw", weight, crops(energy, between, round(REACH * energy.shape[2]))) / len(energy)


def peak_offset(around: np.ndarray) -> np.ndarray:
    """(2,) pixels (x, y) from the hand to where most motion is."""
    y, x = np.unravel_index(around.argmax(), around.shape)
    return np.array([x, y], float) - around.shape[0] // 2


def dihedral_scores(demos: Sequence[Demo], hand: Sequence[float] = HAND_M) -> dict[str, float]:
    """How much more motion there is on the hand's path than on average, under each way to turn and flip the images."""
    scores = dict.fromkeys([f"{'flip + ' * flip}{90 * turns} degrees" for flip in (0, 1) for turns in range(4)], 0.0)
    for demo in demos:
        energy, pixels = motion_energy(demo.frames), hand_pixels(demo, hand)
        between = (pixels[1:] + pixels[:-1]) / 2
        for (name, _), (flip, turns) in zip(scores.items(), itertools.product((0, 1), range(4)), strict=True):
            maps = np.rot90(energy[:, :, ::-1] if flip else energy, turns, axes=(1, 2))
            on_path = crops(np.ascontiguousarray(maps), between, round(0.03 * energy.shape[2])).mean((1, 2)).sum()
            scores[name] += float(on_path / max(energy.mean((1, 2)).sum(), 1e-9)) / len(demos)
    return scores


def image_lag(demo: Demo, hand: Sequence[float] = HAND_M) -> int:
    """Frames by which images come after positions: cut out around the hand's pixel, the hand stays as it is only at the right lag.

    Raises:
        ValueError: too short an episode.
    """
    edge, gap, n = max(LAGS), 2, len(demo)
    if n < 2 * edge + gap + 4:
        raise ValueError(f"an episode of {n} steps is too short to find a lag; {2 * edge + gap + 4} are needed")
    grey = F.avg_pool2d(torch.from_numpy(demo.frames.astype(np.float32).mean(-1))[:, None], 3, 1, 1)[:, 0].numpy()
    pixels, radius = hand_pixels(demo, hand), round(0.1 * grey.shape[2])
    steps = np.arange(edge, n - edge)
    changes = []
    for lag in LAGS:
        seen = crops(grey[steps], pixels[steps - lag], radius)
        changes.append(float(np.abs(seen[gap:] - seen[:-gap]).mean()))
    return LAGS[int(np.argmin(changes))]


# -------------------------------------------------------------------- demonstrations


def check_demos(demos: Sequence[Demo], hand: Sequence[float] = HAND_M) -> list[Check]:
    """Every check that needs demonstrations alone."""
    names = ("positions", "rotations", "openings", "gripper", "moves")
    broken = [i for i, d in enumerate(demos) if any((a := getattr(d, k)) is not None and not np.isfinite(a).all() for k in names)]
    found = [_limit("not finite", len(broken), 0, "episodes", "remove or repair these episodes", detail=broken)]
    whole = [demo for i, demo in enumerate(demos) if i not in broken]
    checks = (_numbers, _camera_facts, _gripper, _episodes, _images)
    for check in tqdm(checks, desc="demonstrations", unit="group", disable=not whole):
        found += check(whole, hand) if whole else []
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
    later = 8  # control steps that fingers are given to follow
    pairs = [(d.gripper[:-later], d.openings[later:]) for d in demos if len(d) > later]
    sent, followed = (np.concatenate(column) for column in zip(*pairs, strict=True)) if pairs else (np.zeros(1), np.zeros(1))
    constant = "fine where nothing is grasped; else record the commands"
    outside = max(0.0, -float(openings.min()), float(openings.max()) - 1, float(np.abs(commands).max()) - 1)
    name, limit, remedy = "gripper sign", "below -0.3", "commands are -1 to open and 1 to close; opening is 0 closed, 1 open"
    if np.ptp(sent) < 0.1 or np.ptp(followed) < 0.02:
        sign = Check(name, "not checked", "gripper or opening constant", limit, remedy)
    else:
        r = float(np.corrcoef(sent, followed)[0, 1])
        sign = Check(name, "ok" if r < -0.3 else "wrong" if r > 0.3 else "suspicious", f"correlation {r:.2f}", limit, remedy)
    moves = "ok" if np.ptp(commands) >= 0.1 else "suspicious"
    return [
        sign,
        Check("gripper constant", moves, f"commands span {np.ptp(commands):.2f}", "at least 0.1", constant),  # type: ignore[arg-type]
        _limit("gripper range", outside, 1e-3, "outside", "scale openings to [0, 1] and commands to [-1, 1]"),
    ]


def _episodes(demos: Sequence[Demo], _: Sequence[float]) -> list[Check]:
    same = [
        (i, j) for (i, a), (j, b) in itertools.combinations(enumerate(demos), 2)
        if a.seed == b.seed or (len(a) == len(b) and np.allclose(a.positions, b.positions, atol=1e-5))
    ]  # fmt: skip
    evaluated = [demo.seed for demo in demos if demo.seed >= EVALUATION_SEED]
    return [
        _limit("duplicate episodes", len(same), 0, "pairs", "remove one of each; give every episode its own seed", detail=same),
        _limit("evaluation seeds", len(evaluated), 0, "episodes", f"record seeds below {EVALUATION_SEED}", detail=evaluated),
    ]


def _images(demos: Sequence[Demo], hand: Sequence[float]) -> list[Check]:
    width = demos[0].frames.shape[2]
    moved = [np.linalg.norm(np.diff(hand_pixels(demo, hand), axis=0), axis=1) > 0.004 * width for demo in demos]
    stuck = [(d.frames[1:] == d.frames[:-1]).all((1, 2, 3))[m] for d, m in zip(demos, moved, strict=True)]
    repeated = float(np.concatenate(stuck).mean()) if any(map(len, stuck)) else 0.0
    found = [_limit("repeated frames", repeated, 0.05, "of the steps that move", "drop them, or record every camera frame once")]
    scores = dihedral_scores(demos, hand)
    (best, top), (_, second) = sorted(scores.items(), key=lambda item: -item[1])[:2]
    identity = next(iter(scores))
    upright: Verdict = "wrong" if best != identity else "ok" if top > 1.15 * second else "suspicious"
    turned = "turn or flip the images, or mend the camera's axes (x right, y down, z forward)"
    found.append(
        Check(
            "image orientation",
            upright,
            f"best: {best}, {top / max(second, 1e-9):.2f} of the next",
            "as it is, 1.15",
            turned,
            scores,
        )
    )
    found += _offsets(demos, hand)
    long = [demo for demo in demos if len(demo) >= 14]
    if not long:
        return [*found, Check("image lag", "not checked", "episodes are shorter than 14 steps", "below 2 frames", "")]
    lags = [image_lag(demo, hand) for demo in long]
    late = "shift positions against images, or stamp both with one clock; negative: images are early"
    lag = float(np.median(lags))
    return [*found, Check("image lag", "ok" if abs(lag) < 1.5 else "wrong", f"{lag:g} frames", "below 2", late, lags)]


def _offsets(demos: Sequence[Demo], hand: Sequence[float]) -> list[Check]:
    """Camera pose: where motion peaks around the projected hand, over everything, per episode, and from first to second half."""
    width = demos[0].frames.shape[2]
    every, halves = [], []
    for demo in demos:
        energy, pixels = motion_energy(demo.frames), hand_pixels(demo, hand)
        passed = energy.sum((1, 2)).cumsum()
        middle = int(np.searchsorted(passed, passed[-1] / 2)) + 1  # half of the motion, not of the time: at rest nothing is seen
        every.append(motion_around_hand(energy, pixels))
        halves.append(
            [motion_around_hand(energy[:middle], pixels[: middle + 1]), motion_around_hand(energy[middle:], pixels[middle:])]
        )
    offset = float(np.linalg.norm(peak_offset(np.mean(every, 0))))
    episodes = [float(np.linalg.norm(peak_offset(one))) for one in every]
    first, second = (peak_offset(half) for half in np.mean(halves, 0))
    limit, pose = OFFSET_LIMIT * width, "calibrate the camera's pose again, or set --hand-offset for your robot"
    moving = "the camera moved: keep one Camera for each episode, or fix its mount"
    drift = _limit("camera over time", float(np.linalg.norm(second - first)), DRIFT_LIMIT * width, "px", moving, worse="suspicious")
    if np.abs([first, second]).max() >= round(REACH * width):  # no peak within the search, as where the arm hardly moves any more
        drift = Check(drift.name, "not checked", "too little motion at the hand in one half", drift.limit, moving)
    return [
        _limit("camera offset", offset, limit, "px", pose),
        _limit("camera by episode", max(episodes), limit, "px at worst", moving, worse="suspicious", detail=episodes),
        drift,
    ]


# -------------------------------------------------------------------- simulators


def check_env(settings: Mapping[str, Any], demos: Sequence[Demo], episodes: int) -> list[Check]:
    """Reset, first frame, expert, oracle and replays of the Meta-World task that a set's settings name."""
    from para_video.sims.metaworld import CameraPlacement, MetaWorldEnv, MetaWorldServo  # not needed for sets of a real robot

    camera = CameraPlacement(**{**settings["camera"], "target": tuple(settings["camera"]["target"])})
    options = {key: settings[key] for key in ("size", "shadows", "widen")}
    seeds, servo = evaluation_seeds(episodes), MetaWorldServo()
    with (
        MetaWorldEnv(settings["task"], camera=camera, **options) as env,
        MetaWorldEnv(settings["task"], camera=camera, **options) as fresh,
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
        horizon = horizon_for(env, seeds=range(10))
        trip = one_hot_round_trip(readout_spec(demos), ParaHead.GRID, ParaHead.SIGMA_PX, first.shape[:2])
        oracle, blind = ReplanningOracle(env, round_trip=trip), Replay(demos[0])
        share = {
            "expert": [expert_rollout(env, seed, horizon=horizon).succeeded for seed in _bar(seeds, "expert")],
            "replay": [rollout(env, Replay(d), servo, d.seed, context=0, horizon=horizon).succeeded for d in _bar(demos, "replay")],
            "oracle": [
                rollout(env, oracle, servo, s, context=0, horizon=horizon).succeeded for s in _bar(seeds, "read-out oracle")
            ],
            "blind": [rollout(env, blind, servo, s, context=0, horizon=horizon).succeeded for s in _bar(seeds, "blind replay")],
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


def _bar(items: Sequence[Any], name: str) -> tqdm:
    return tqdm(items, desc=name, unit="episode")


# -------------------------------------------------------------------- the report


def picture(demos: Sequence[Demo], hand: Sequence[float] = HAND_M) -> np.ndarray:
    """Up to three episodes: where frames change, and the projected path of the hand (early violet to late yellow)."""
    panels = []
    for demo in demos[:3]:
        factor = max(1, round(320 / demo.frames.shape[2]))
        seen = upscale(overlay_heatmap(demo.frames[0], motion_energy(demo.frames).mean(0)), factor)
        path = upscale_points(hand_pixels(demo, hand)[:: max(1, len(demo) // 20)], factor)
        panels.append(label(draw_points(seen, path, style="trajectory"), f"motion and hand, seed {demo.seed}"))
    return np.concatenate(panels, axis=1)


def main(config: DoctorConfig) -> list[Check]:
    """Check, print, and write doctor.json and doctor.png."""
    console, checks = Console(soft_wrap=True), list[Check]()
    demos = DemoSet(())
    try:
        demos = _demonstrations(config)
    except ValueError as error:
        checks.append(Check("readable", "wrong", str(error), "a whole demo set", "repair the files"))
    config.out.mkdir(parents=True, exist_ok=True)
    if demos.demos:
        checks += check_demos(demos.demos, config.hand_offset)
        write_picture(config.out / "doctor.png", picture(demos.demos, config.hand_offset))
    if demos.demos and config.episodes and demos.settings.get("simulator") == "metaworld":
        checks += check_env(demos.settings, demos.demos, config.episodes)
    else:
        checks.append(Check("simulator", "not checked", "no readable Meta-World set, or --episodes 0", "", ""))
    for check in checks:
        told = f"{check.verdict:<12}{check.name}: {check.value}" + (f" (limit: {check.limit})" if check.limit else "")
        remedy = f"; {check.remedy}" if check.verdict in ("wrong", "suspicious") else ""
        console.print(told + remedy, style=COLOURS[check.verdict], markup=False, highlight=False)
    write_atomically(config.out / "doctor.json", json.dumps([asdict(check) for check in checks], indent=1).encode())
    return checks


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
