"""Demonstrations: record them from a scripted expert, keep them on disk, choose a few of them.

A demo set is a folder: `demos.json` (what the set is, and one entry per demo) beside one safetensors file per demo. To use your
own, build `Demo`s and call `save_demos`. Nothing in a set is ever executed: no pickles.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from para_video.camera import Camera
from para_video.policy import Env
from para_video.training import made_once, whole_folder, write_atomically

FORMAT = 1
"""Version of the files; a set of another version is not read."""
INDEX_FILE = "demos.json"

TUNING_SEED, EVALUATION_SEED = 90_000, 100_000
"""Seeds of episodes that policies are tuned on, and that they are evaluated on, start here; demonstrations stay below, so that they
never meet."""


@dataclass(frozen=True)
class Demo:
    """One demonstration of n steps; row k is the state before command k.

    Args:
        frames: (n, H, W, 3) uint8.
        positions: (n, 3) float32 gripper point, world metres.
        rotations: (n, 3, 3) float32 world_R_gripper.
        openings: (n,) float32 gripper opening in [0, 1], 0 closed.
        gripper: (n,) float32 gripper command of the expert in [-1, 1], -1 opens, 1 closes.
        camera: unbatched; the one that saw the frames.
        task: what is being done. seed: of the episode.
        moves: (n, 3) float32 how far command k asked the gripper point to move, world metres. None where the commands are not
            known: then targets are where the gripper went.
    """

    frames: np.ndarray
    positions: np.ndarray
    rotations: np.ndarray
    openings: np.ndarray
    gripper: np.ndarray
    camera: Camera
    task: str
    seed: int
    moves: np.ndarray | None = None

    def __post_init__(self) -> None:
        # in the precision of the arrays that it meets, whatever it came in
        object.__setattr__(self, "camera", self.camera.to(torch.float32))

    def targets(self, steps: np.ndarray, *, chunk: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
        """What a policy should answer at the given steps (b,): see `future_targets`."""
        return future_targets(self.positions, self.gripper, self.moves, steps, chunk=chunk, stride=stride)

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True)
class DemoSet:
    """Demonstrations and the seeds whose expert failed; settings say what the set is, as JSON values."""

    demos: tuple[Demo, ...]
    discarded: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.demos)


class ScriptedEnv(Env, Protocol):
    """An Env that knows what to do: the expert's next command, and how far a command asks the gripper point to move."""

    def expert_action(self) -> np.ndarray: ...

    def commanded_move(self, command: np.ndarray) -> np.ndarray: ...


class RecordableEnv(ScriptedEnv, Protocol):
    """A ScriptedEnv that says everything a demonstration holds; `settings` are the JSON values that its bytes depend on."""

    @property
    def task(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    @property
    def gripper_opening(self) -> float: ...

    @property
    def layout(self) -> np.ndarray: ...  # (d,) where the reset put objects and goals

    @property
    def end_effector(self) -> torch.Tensor: ...

    def render(self) -> np.ndarray: ...


# -------------------------------------------------------------------- targets


def future_targets(
    positions: np.ndarray, gripper: np.ndarray, moves: np.ndarray | None, steps: np.ndarray, *, chunk: int, stride: int
) -> tuple[np.ndarray, np.ndarray]:
    """The action representation: what a policy should answer at some steps of a demonstration.

    Target j is where the gripper was at the start of segment j (of `stride` control steps), plus the move that was commanded
    during it; its gripper command is the one at the segment's start. In free motion that is where the gripper will be at the
    segment's end. Where the demonstrator pushed or accelerated, it is further along: a gripper that blocks a push shows no
    motion, and a target on the gripper would ask for none. After its last step a demonstration stands still.

    Args:
        positions: (n, 3) metres. gripper: (n,). moves: (n, 3) metres, or None for the moves that the gripper made.
        steps: (b,) of the decisions.

    Returns:
        targets (b, chunk, 3) float32 in world metres, and gripper commands (b, chunk) float32.
    """
    n = len(positions)
    if moves is None:
        moves = np.diff(positions, axis=0, append=positions[-1:])
    travelled = np.concatenate([np.zeros((1, 3)), np.cumsum(moves, axis=0, dtype=np.float64)])
    starts = np.asarray(steps)[:, None] + stride * np.arange(chunk)
    commanded = travelled[np.minimum(starts + stride, n)] - travelled[np.minimum(starts, n)]
    row = np.minimum(starts, n - 1)
    return (positions[row] + commanded).astype(np.float32), gripper[row].astype(np.float32)


# -------------------------------------------------------------------- recording


@dataclass(frozen=True)
class Plan:
    """What to record.

    Args:
        count: successful demonstrations wanted.
        first_seed: the seeds follow each other from here.
        spread_over: where positive, the demonstrations are of scenes chosen from this many seeds so that their layouts (where
            objects and goals are) lie far apart, as a person would set them up; else of one seed after the other.
        noise: standard deviation of the Gaussian noise on the executed motion (not on the gripper, nor on the recorded
            command); the expert corrects itself, so that recovery is demonstrated too.
        scatter: before every second demonstration of a set the hand is moved in a random direction for up to this many control
            steps at full speed, which is not recorded. Where all begin in the same place, a policy may learn the first move as a
            direction in the picture.
        tail: steps recorded after the first success. Few: frames of a robot at rest teach to stop as soon as the picture looks so,
            which it also does where the gripper covers a goal that is nearer or farther away.
        limit: steps after which the expert counts as failed.
    """

    count: int
    first_seed: int = 0
    spread_over: int = 0
    noise: float = 0.0
    scatter: int = 0
    tail: int = 4
    limit: int = 200

    def __post_init__(self) -> None:
        least = {"count": 1, "first_seed": 0, "spread_over": 0, "noise": 0, "scatter": 0, "tail": 0, "limit": 1}
        if low := {name: getattr(self, name) for name, value in least.items() if not getattr(self, name) >= value}:
            raise ValueError(f"a plan's numbers must be at least {least}, got {low}")


def record_demo(env: RecordableEnv, seed: int, plan: Plan, *, frames: bool = True) -> Demo | None:
    """Let the expert act from the start of an episode, or from where the plan's `scatter` takes the hand.

    Args:
        frames: False renders nothing and leaves frames (n, 0, 0, 3), where only the motion is wanted.

    Returns:
        the demonstration, or None where the expert did not succeed.
    """
    rng = np.random.default_rng((seed, 0))
    env.reset(seed)
    if plan.scatter:
        _scatter(env, np.random.default_rng((seed, 1)), plan.scatter)
    rows: list[tuple[np.ndarray | np.float32, ...]] = []
    stop, succeeded = plan.limit, False
    while len(rows) < stop:
        command, pose = env.expert_action(), env.end_effector.numpy()
        frame = env.render() if frames else np.empty((0, 0, 3), np.uint8)
        opening, gripper = np.float32(env.gripper_opening), np.float32(command[3])
        rows.append((frame, pose[:3, 3], pose[:3, :3], opening, gripper, env.commanded_move(command)))
        command[:3] += plan.noise * rng.standard_normal(3)
        if env.step(command).success and not succeeded:
            succeeded, stop = True, len(rows) + plan.tail
    if not succeeded:
        return None
    images, positions, rotations, openings, grippers, moves = (np.stack(column) for column in zip(*rows, strict=True))
    return Demo(images, positions, rotations, openings, grippers, env.camera, env.task, seed, moves)


def _scatter(env: RecordableEnv, rng: np.random.Generator, steps: int) -> None:
    """Move the hand away from where the episode starts, its gripper open."""
    direction = rng.standard_normal(3)
    command = np.append(direction / np.abs(direction).max(), -1.0).astype(np.float32)
    for _ in range(rng.integers(1, steps + 1)):
        env.step(command)


def record_demos(env: RecordableEnv, plan: Plan, *, on_episode: Callable[[int, bool], None] | None = None) -> DemoSet:
    """Record until `plan.count` demonstrations succeeded; failed seeds are discarded and listed.

    Args:
        on_episode: called with (seed, succeeded) after each episode, for a progress bar.

    Raises:
        ValueError: the seeds would run into those of tuning and evaluation.
        RuntimeError: the expert fails nearly always.
    """
    demos: list[Demo] = []
    discarded: list[int] = []
    spread = _spread_seeds(env, plan) if plan.spread_over else []
    seeds = itertools.chain(spread, itertools.count(plan.first_seed + len(spread)))  # further ones where too many of them fail
    for seed in seeds:
        if len(demos) == plan.count:
            break
        if not 0 <= seed < TUNING_SEED:
            raise ValueError(f"demo seed {seed} is outside [0, {TUNING_SEED}): choose a lower first_seed")
        demo = record_demo(env, seed, plan if len(demos) % 2 else replace(plan, scatter=0))
        if demo is None:
            discarded.append(seed)
        else:
            demos.append(demo)
        if on_episode is not None:
            on_episode(seed, demo is not None)
        if len(discarded) > 10 + 4 * plan.count:
            raise RuntimeError(
                f"the expert of {env.task} failed on {len(discarded)} of {len(discarded) + len(demos)} seeds with noise "
                f"{plan.noise} and a limit of {plan.limit} steps; lower the noise or raise the limit"
            )
    return DemoSet(tuple(demos), tuple(discarded), {**env.settings, **asdict(plan)})


def _spread_seeds(env: RecordableEnv, plan: Plan) -> list[int]:
    """Seeds ordered by farthest-point sampling of their layouts (Gonzalez 1985), from the most central one on."""
    seeds = range(plan.first_seed, plan.first_seed + max(plan.spread_over, plan.count))
    layouts = []
    for seed in seeds:
        env.reset(seed)
        layouts.append(env.layout)
    points = np.stack(layouts)
    points = (points - points.mean(0)) / np.maximum(np.ptp(points, axis=0), 1e-6)
    order = [int(np.linalg.norm(points, axis=1).argmin())]
    distance = np.full(len(points), np.inf)
    while len(order) < len(points):
        distance = np.minimum(distance, np.linalg.norm(points - points[order[-1]], axis=1))
        distance[order] = -1.0
        order.append(int(distance.argmax()))
    return [seeds[i] for i in order]


def cached_demos(
    env: RecordableEnv, plan: Plan, *, on_episode: Callable[[int, bool], None] | None = None, cache: Path | None = None
) -> DemoSet:
    """As `record_demos`, kept on disk under a key of everything that changes a byte.

    Args:
        cache: default `cache_folder()`.
    """
    folder = (cache or cache_folder()) / cache_name({**env.settings, **asdict(plan)})
    return recorded_once(folder, lambda: record_demos(env, plan, on_episode=on_episode))


def recorded_once(folder: Path, record: Callable[[], DemoSet]) -> DemoSet:
    """The set in a folder, recorded where there is none; of several processes that want it, one records and the others wait."""
    return load_demos(made_once(folder, lambda partial: _write(record(), partial)))


def cache_name(settings: Mapping[str, Any]) -> str:
    """The folder's name of a set of episodes: another one whenever a setting differs. They name at least a task and a count."""
    what = json.dumps({"format": FORMAT, **settings}, sort_keys=True)
    return f"{settings['task']}-{settings['count']}-{hashlib.sha256(what.encode()).hexdigest()[:16]}"


def cache_folder() -> Path:
    """Where recorded demonstrations are kept: $PARA_VIDEO_CACHE/demos, else ~/.cache/para_video/demos."""
    root = os.environ.get("PARA_VIDEO_CACHE")
    return (Path(root).expanduser() if root else Path.home() / ".cache" / "para_video") / "demos"


# -------------------------------------------------------------------- disk


def save_demos(demos: DemoSet, folder: str | Path) -> None:
    """Write a demo set; the folder appears complete or not at all.

    Raises:
        FileExistsError: there is such a folder already.
        ValueError: a demo that `load_demos` would refuse. OSError: the disk is full.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; remove it or choose another folder")
    with whole_folder(folder) as partial:
        _write(demos, partial)


def _write(demos: DemoSet, folder: Path) -> None:
    """The files of a demo set."""
    entries = []
    for index, demo in enumerate(demos.demos):
        name = f"demo_{index:04d}.safetensors"
        _check(demo, f"demonstration {index}", "mend it, or leave it out")
        content = save_tensors(_arrays(demo))
        write_atomically(folder / name, content)
        entries.append({"file": name, "task": demo.task, "seed": int(demo.seed), "sha256": hashlib.sha256(content).hexdigest()})
    summary = {"format": FORMAT, "settings": dict(demos.settings), "discarded": list(demos.discarded), "demos": entries}
    write_atomically(folder / INDEX_FILE, json.dumps(summary, indent=1).encode())


def load_demos(folder: str | Path) -> DemoSet:
    """Read a demo set: one of the cache's, or your own written by `save_demos`.

    Raises:
        FileNotFoundError: no demo set there, or one of its files is missing.
        ValueError: a file is damaged or from another version, or a demo is inconsistent.
    """
    folder = Path(folder)
    summary = _read_index(folder)
    demos = tuple(
        _load_demo(folder / entry["file"], entry["task"], entry["seed"], entry.get("sha256")) for entry in summary["demos"]
    )
    return DemoSet(demos, summary["discarded"], summary["settings"])


def demos_digest(folder: Path) -> str:
    """12 hexadecimal digits of a demo set: others for other demonstrations.

    Raises:
        FileNotFoundError, ValueError: no demo set there, or a damaged one.
    """
    summary = _read_index(folder)
    digest = hashlib.sha256((folder / INDEX_FILE).read_bytes())  # which mostly holds the digests of all files
    for entry in summary["demos"]:
        if "sha256" not in entry:
            digest.update(_content(folder / entry["file"]))
    return digest.hexdigest()[:12]


def _read_index(folder: Path) -> dict[str, Any]:
    """What lists a demo set, whole and of this version; it names no file but those beside it."""
    index = folder / INDEX_FILE
    if not index.is_file():
        raise FileNotFoundError(f"no demo set at {folder}: {index.name} is missing; write one with save_demos")
    try:
        summary = json.loads(index.read_text())
        known = summary["format"] == FORMAT
        for entry in summary["demos"] if known else ():
            if lacking := {"file", "task", "seed"} - entry.keys():
                raise KeyError(*lacking)
            if Path(entry["file"]).name != entry["file"]:
                raise ValueError(f"{entry['file']!r} is no name of a file beside it")
        if known:
            summary |= {"discarded": tuple(summary["discarded"]), "settings": dict(summary["settings"])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is damaged ({error!r}); {_REMEDY}") from error
    if not known:
        raise ValueError(f"{index} has format {summary['format']}, this version reads {FORMAT}; {_REMEDY}")
    return summary


def select_demos(demos: DemoSet, count: int) -> DemoSet:
    """The first `count` demonstrations.

    Raises:
        ValueError: there are fewer.
    """
    if not 0 < count <= len(demos):
        remedy = f"ask for 1 to {len(demos)}, or record more" if len(demos) else "record some"
        raise ValueError(f"asked for {count} demonstrations of a set of {len(demos)}; {remedy}")
    return DemoSet(demos.demos[:count], demos.discarded, demos.settings)


_REMEDY = "remove the folder and record again"
_ROWS = {"frames": (None, None, 3), "positions": (3,), "rotations": (3, 3), "openings": (), "gripper": (), "moves": (3,)}
"""Shape of one step in each array of a demo; None is free."""


def _arrays(demo: Demo) -> dict[str, np.ndarray]:
    arrays = {name: np.ascontiguousarray(array) for name in _ROWS if (array := getattr(demo, name)) is not None}
    camera = {name: getattr(demo.camera, name).numpy() for name in ("intrinsics", "world_T_camera")}
    return arrays | camera


def _content(path: Path) -> bytes:
    """Of a listed file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is listed in demos.json and missing; {_REMEDY}")
    return path.read_bytes()


def _load_demo(path: Path, task: str, seed: int, checksum: str | None) -> Demo:
    content = _content(path)
    if checksum is not None and hashlib.sha256(content).hexdigest() != checksum:
        raise ValueError(f"{path} is damaged: its {len(content)} bytes do not match the checksum in demos.json; {_REMEDY}")
    try:
        arrays = load_tensors(content)
        camera = Camera(torch.from_numpy(arrays.pop("intrinsics")), torch.from_numpy(arrays.pop("world_T_camera")))
        demo = Demo(**arrays, camera=camera, task=task, seed=seed)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a demo ({error}); {_REMEDY}") from error
    _check(demo, path)
    return demo


def _check(demo: Demo, what: str | Path, remedy: str = _REMEDY) -> None:
    """Refuse arrays that do not belong together or are no numbers, and what the files cannot say."""
    if demo.camera.distortion is not None:
        raise ValueError(f"{what}: its camera has a lens distortion; undistort the frames and give an ideal pinhole camera")
    if demo.camera.batch_shape:
        raise ValueError(f"{what}: its camera has batch shape {tuple(demo.camera.batch_shape)}, wanted one camera; {remedy}")
    if not isinstance(demo.seed, Integral):
        raise ValueError(f"{what}: seed {demo.seed!r} is no integer; {remedy}")
    steps = len(demo) if demo.positions.ndim else 0
    for name, row in _ROWS.items():
        array = getattr(demo, name)
        if array is None:
            continue
        shape_fits = array.ndim == 1 + len(row) and all(want in (None, got) for want, got in zip(row, array.shape[1:], strict=True))
        if not shape_fits or len(array) != steps or steps == 0:
            wanted = (steps or "n", *("H" if want is None else want for want in row))
            raise ValueError(f"{what}: {name} has shape {array.shape}, wanted {wanted}; {remedy}")
        if array.dtype != (np.uint8 if name == "frames" else np.float32):
            raise ValueError(f"{what}: {name} is {array.dtype}, wanted {'uint8' if name == 'frames' else 'float32'}; {remedy}")
        if not np.isfinite(array).all():
            row_index = int(np.argwhere(~np.isfinite(array))[0][0])
            raise ValueError(f"{what}: {name} is not finite at step {row_index}: {array[row_index]}; {remedy}")
    for name, (low, high) in {"openings": (0, 1), "gripper": (-1, 1)}.items():
        array = getattr(demo, name)
        if array.min() < low - 1e-3 or array.max() > high + 1e-3:
            raise ValueError(f"{what}: {name} lies in [{array.min():g}, {array.max():g}], wanted [{low}, {high}]; {remedy}")
    product = demo.rotations @ demo.rotations.transpose(0, 2, 1)
    if np.abs(product - np.eye(3)).max() > 1e-2 or np.linalg.det(demo.rotations).min() < 0:
        raise ValueError(f"{what}: rotations holds matrices that are no rotations; {remedy}")
