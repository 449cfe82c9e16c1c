"""How a script is run: its command line, and output folders that are never overwritten."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import torch
import tyro
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from rich.console import Console

from para_video.agent import horizon_of
from para_video.checkpoint import checkpoint_digest, fingerprint
from para_video.demos import demos_digest
from para_video.features import VideoBackbone
from para_video.precision import autocast, precision_of
from para_video.training import write_atomically

RUNS = Path("runs")
RESUME = "COMMAND --resume --out FOLDER"
"""How a user goes on after an interrupt of a script with an `output_folder`."""
SETTINGS_FILE, LOCK_FILE = "settings.json", ".lock"
SOURCE, STARTS, DEMO_SET = "source_weights", "start_weights", "demo_set"
"""There: the fingerprint of the weights that the backbone has from its source, the digests of those that are loaded on top, and the
digest of a folder of demonstrations."""
FREE, NOT_KEPT = "may_change", ("out", "resume")
"""There: the options that a resumed run may change, as it began with them; and those that are not there."""
C = TypeVar("C")


def command_line(main: Callable[[C], object], config: type[C], text: str, again: str = "the same command") -> None:
    """Run a script from its command line: errors that name their remedy are told in one line, and an interrupt too, after which the
    user goes on with `again`. A run that is resumed has the options that it began with, where the command line names no others.

    Set PARA_VIDEO_TRACEBACK=1 to see where an error came from.
    """
    console = Console(stderr=True, soft_wrap=True)
    try:
        main(tyro.cli(config, prog=_command(), description=text, **_given(config, sys.argv[1:])))
    except KeyboardInterrupt as interrupt:
        folder = shlex.quote(os.path.relpath(next(iter(_LOCKS)))) if _LOCKS else "FOLDER"
        how = again.replace("COMMAND", _command()).replace("FOLDER", folder)
        if int(os.environ.get("RANK", 0)) == 0:
            together = f", in {processes} processes again" if (processes := os.environ.get("WORLD_SIZE", "1")) != "1" else ""
            console.print(f"{str(interrupt) or 'stopped'}; go on with {how}{together}", markup=False)
        sys.exit(130)
    except (ValueError, OSError, RuntimeError, FloatingPointError, ImportError) as error:
        if os.environ.get("PARA_VIDEO_TRACEBACK"):
            raise
        console.print(f"{type(error).__name__}: {error} [PARA_VIDEO_TRACEBACK=1 shows where]", style="red", markup=False)
        sys.exit(2)


def _command() -> str:
    """How the running script was called: python FILE, or python -m MODULE."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python {sys.argv[0]}" if spec is None else f"python -m {spec.name.removesuffix('.__main__')}"


@dataclass(frozen=True)
class _Resumed:
    """What is looked for on a command line before anything else."""

    out: Path | None = None
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


def _given(config: type, arguments: Sequence[str]) -> dict[str, Any]:
    """What `tyro.cli` reads: arguments and, if they resume a run in its folder, the options that it has as defaults.

    Raises:
        ValueError: the run's settings are damaged.
    """
    options = get_type_hints(config)
    if not set(NOT_KEPT) <= options.keys():
        return {"args": arguments}
    asked, _ = tyro.cli(_Resumed, args=[a for a in arguments if a not in ("-h", "--help")], return_unknown_args=True)
    if not asked.resume or asked.out is None or not (asked.out / SETTINGS_FILE).is_file():
        return {"args": arguments}
    settings = _settings(asked.out)
    has = {n: _typed(options[n], value) for n, value in {**settings, **settings.get(FREE, {})}.items() if n in options}
    on = [name for name, value in has.items() if value is True]  # these flags cannot be given again
    return {"args": [a for a in arguments if a.removeprefix("--").replace("-", "_") not in on], "default": config(**has)}


def _typed(hint: Any, value: Any) -> Any:
    """An option as its dataclass has it, of the JSON value that `plain_settings` makes of it."""
    if isinstance(value, str) and Path in (hint, *get_args(hint)):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


def output_folder(wanted: Path | None, name: str, *, resume: bool, accelerator: Accelerator) -> Path:
    """A folder to write to, the same in every process, and no other run's while this one lives.

    Args:
        wanted: the user's choice; None for the first free of runs/name, runs/name-2, ... name: of the kind of run.
        resume: whether to go on in a folder that has content. A folder that holds settings alone is a start that failed, and free.

    Raises:
        FileExistsError: the chosen folder has content and resume is off, or another run writes to it; nothing is touched.
        ValueError: resume without a folder, or one where there is nothing to resume.
    """
    if resume:
        if wanted is None or not (wanted / SETTINGS_FILE).is_file():
            raise ValueError(
                f"--resume needs --out with the folder of the interrupted run, where {SETTINGS_FILE} lies; got {wanted}"
            )
        if accelerator.is_main_process:
            _take(wanted)
        return wanted
    chosen = [wanted]
    if wanted is None and accelerator.is_main_process:
        number = 1
        while not (_free(folder := RUNS / (name if number == 1 else f"{name}-{number}")) and _taken(folder)):
            number += 1
        chosen = [folder]
    folder = broadcast_object_list(chosen)[0]
    if accelerator.is_main_process:
        if not _free(folder):
            raise FileExistsError(f"{folder} exists already: add --resume to go on with it, or choose another --out")
        _take(folder)
        (folder / SETTINGS_FILE).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return folder


def _free(folder: Path) -> bool:
    unfinished = (SETTINGS_FILE, LOCK_FILE)
    return not folder.exists() or (folder.is_dir() and all(path.name in unfinished for path in folder.iterdir()))


_LOCKS: dict[Path, FileLock] = {}
"""Of the folders that this process writes to, until it ends."""


def _take(folder: Path) -> None:
    if not _taken(folder):
        raise FileExistsError(f"another run writes to {folder}: wait until it has ended, or choose another --out")


def _taken(folder: Path) -> bool:
    """Make a folder, where there is none, this process's own. False where it is another's."""
    if (key := folder.resolve()) not in _LOCKS:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(key / LOCK_FILE)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        _LOCKS[key] = lock
    return True


def plain_settings(config: Any) -> dict[str, Any]:
    """A script's config dataclass as JSON values."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}


def changed_options(config: Any, names: Iterable[str]) -> list[str]:
    """Those of a config dataclass's options that are not as usual."""
    return [name for name in names if getattr(config, name) != getattr(type(config), name)]


def told_command(script: str, config: Any, always: Collection[str] = ()) -> str:
    """The command that begins a run of a script with these options, which a resumed one's does not say; where the run is written to
    is left out, and so are options that are as usual, but for those of `always`."""
    words, usual = ["python", script], type(config)()
    for each in fields(config):
        value = getattr(config, each.name)
        if each.name in NOT_KEPT or (value == getattr(usual, each.name) and each.name not in always):
            continue
        told = [] if value is True else map(str, value) if isinstance(value, tuple) else [str(value)]
        words += ["--" + each.name.replace("_", "-"), *told]
    return shlex.join(words)


def same_settings(folder: Path, config: Any, *, free: Collection[str], accelerator: Accelerator) -> None:
    """Keep a run's settings in its folder, and refuse to go on there with others: what is finished would pass for theirs.

    Args:
        free: names of options that a resumed run may change, since nothing that is kept depends on them.

    Raises:
        ValueError: another option differs from what the run began with, or the file is damaged.
    """
    path = folder / SETTINGS_FILE
    plain = json.loads(json.dumps({n: value for n, value in plain_settings(config).items() if n not in NOT_KEPT}))
    may_change = {name: plain.pop(name) for name in free if name in plain}
    now = {**plain, "processes": accelerator.num_processes}
    content = _settings(folder) if path.is_file() else {}
    if content:
        before = {name: value for name, value in content.items() if name not in (SOURCE, STARTS, DEMO_SET, FREE)}
        known = {name: value for name, value in now.items() if name in before or value}  # options that came later may be off
        differ = [f"{k} was {before.get(k)} and is {now.get(k)}" for k in sorted(before | known) if before.get(k) != now.get(k)]
        if differ:
            raise ValueError(f"{folder} holds a run with other settings ({', '.join(differ)}): use the same ones or another --out")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_atomically(path, (json.dumps({**now, FREE: may_change, **content}, indent=1) + "\n").encode())
    accelerator.wait_for_everyone()


def _settings(folder: Path) -> dict[str, Any]:
    """What a run's settings hold. Raises ValueError where they are damaged."""
    path = folder / SETTINGS_FILE
    try:
        settings = dict(json.loads(path.read_text()))
        dict(settings.get(FREE, {}))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); choose another --out") from error
    return settings


def check_processes(options: Mapping[str, Any], processes: int) -> None:
    """Refuse, before anything is loaded, a backbone that several processes cannot share out.

    Args:
        options: of the backbone. processes: of the run.

    Raises:
        ValueError: it is offloaded, by hooks that keep to one device whatever the process, and there are several.
    """
    offload = options.get("offload", "none")
    if offload != "none" and processes > 1:
        raise ValueError(
            f"offload {offload!r} is for one process and there are {processes}, which would all use device "
            f'{options.get("device")!r}: run without `accelerate launch`, or leave out "offload"'
        )


def same_source(
    folder: Path, backbone: VideoBackbone, starts: Sequence[Path], accelerator: Accelerator, demo_set: Path | None = None
) -> None:
    """Keep beside a run's settings which weights its backbone has from its source, those in the folders `starts` on top, and which
    demonstrations a folder holds, and refuse to go on there with others. A run that began before they were kept goes on with those
    that are there now; of a source's the user is told.

    Raises:
        ValueError: they are not those that the run began with. FileNotFoundError: no demonstrations in that folder.
    """
    path, now = folder / SETTINGS_FILE, fingerprint(backbone)
    settings = json.loads(path.read_text())
    digests = {str(start): checkpoint_digest(start) for start in starts}
    begun = settings.setdefault(STARTS, digests)
    if list(begun.values()) != list(digests.values()):  # by their order, since a folder may have moved
        changed = sorted(name for name, digest in digests.items() if digest not in begun.values()) or sorted(digests)
        raise ValueError(f"{folder} holds a run that began with other weights than {changed} hold now: use another --out")
    if demo_set is not None:
        digest = demos_digest(demo_set)
        if settings.setdefault(DEMO_SET, digest) != digest:
            raise ValueError(f"{folder} holds a run that began with other demonstrations than {demo_set} holds: use another --out")
    if now is not None and SOURCE not in settings and not _free(folder) and accelerator.is_main_process:
        text = f"{path} does not say on which weights this run began: it goes on with those that the backbone's source has now"
        Console(stderr=True, soft_wrap=True).print(text, style="yellow", markup=False)
    before = settings.setdefault(SOURCE, now)
    if before != now:
        raise ValueError(
            f"{folder} holds a run on other weights of the backbone's source than are there now (fingerprint {str(before)[:12]}, "
            f"now {str(now)[:12]}): bring those back or use another --out"
        )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_atomically(path, (json.dumps(settings, indent=1) + "\n").encode())
    accelerator.wait_for_everyone()


@torch.no_grad()
def try_out(backbone: VideoBackbone, times: Sequence[float], frames: int, size: int) -> None:
    """Let a backbone see grey frames as a policy would show them, to hear at once what it refuses.

    Args:
        times: of the policy. frames: observed ones. size: their side in pixels.

    Raises:
        ValueError: it does not take so many frames, of this size, or does not look so far ahead.
    """
    name, multiple, device = type(backbone).__name__, backbone.spec.size_multiple, backbone.device
    if size % multiple:
        fits = multiple * math.ceil(size / multiple)
        raise ValueError(f"{name} takes frames whose sides are multiples of {multiple} px, got {size}: pass --size {fits}")
    clip = torch.full((1, frames, 3, size, size), 0.5, device=device)
    try:
        with autocast(device):
            backbone.features(clip, horizon=horizon_of(backbone, max(times)), since=float(min(times)))
    except ValueError as error:
        raise ValueError(
            f"{name} is to see {frames} frames of {size} px and refuses: {error}; change the frames, --size or --backbone-options"
        ) from error


def per_process(batch_size: int, processes: int) -> int:
    """Clips of each process, for a batch over all of them.

    Raises:
        ValueError: they cannot be shared out evenly.
    """
    if batch_size < 1 or batch_size % processes:
        raise ValueError(f"batch_size {batch_size} must be positive and a multiple of the {processes} processes")
    return batch_size // processes


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Their versions by name."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def versions() -> dict[str, str]:
    """Of what figures depend on, with the precision that this machine calculates in, as summaries and rows carry them."""
    packages = ("para_video", "torch", "metaworld", "mujoco", "numpy")
    return {"precision": precision_of(PartialState().device), **installed(packages)}


def precision_in(measured: Mapping[str, Any]) -> str:
    """What a summary or a row was calculated in; those that do not say are of when it was always bf16."""
    return measured.get("versions", {}).get("precision", "bf16")
