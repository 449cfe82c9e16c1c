"""Training on accelerate: one loop for every policy, exact resume, atomic files."""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import operator
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from datetime import timedelta
from functools import reduce
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, parse_flag_from_env
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from para_video.optim import Muon
from para_video.precision import bf16_pays

STATE_FILE = "training.safetensors"
FREE = ("save_every", "workers")
"""Of `FitConfig`: what a resumed training may change, since weights do not depend on it."""
PATIENCE = timedelta(days=1)
"""For which processes wait for one that records, or computes features: by default they give up after ten minutes."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's mallopt(3)."""
T = TypeVar("T")
Precision = Literal["auto", "bf16", "no"]
Optimizer = Literal["muon", "adamw"]


@dataclass(frozen=True)
class FitConfig:
    """How to train.

    Args:
        steps: optimiser steps in all. learning_rate: peak, after `warmup` steps; then a cosine to a hundredth of it.
        backbone_learning_rate: the backbone's own peak; None for the same. weight_decay: of matrices. clip_norm: of the gradient.
        ema: decay of the running average of the weights, which is what training returns (shorter at the start).
        balance: decay of each loss's running magnitude, by which it is divided; 0 sums the losses as they are.
        seed: of everything random. save_every: steps between resumable states. workers: processes that make batches.
        precision: "bf16" (autocast), "no", or "auto" for bf16 where it pays (see `para_video.precision`); an accelerator that is
            given has its own.
        optimizer: of matrices, "muon" or "adamw". See `para_video.optim` for what Muon gains.
    """

    steps: int = 1000
    learning_rate: float = 1e-3
    backbone_learning_rate: float | None = None
    weight_decay: float = 1e-2
    warmup: int = 50
    clip_norm: float = 1.0
    ema: float = 0.995
    balance: float = 0.98
    seed: int = 0
    save_every: int = 100
    workers: int = 0
    precision: Precision = "auto"
    optimizer: Optimizer = "muon"

    def __post_init__(self) -> None:
        sound = {
            "steps": self.steps >= 1,
            "save_every": self.save_every >= 1,
            "workers": self.workers >= 0,
            "learning_rate": 0 < self.learning_rate < math.inf,
            "backbone_learning_rate": self.backbone_learning_rate is None or 0 < self.backbone_learning_rate < math.inf,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "clip_norm": self.clip_norm > 0,
            "ema": 0 <= self.ema < 1,
            "balance": 0 <= self.balance < 1,
            "precision": self.precision in get_args(Precision),
            "optimizer": self.optimizer in get_args(Optimizer),
        }
        if wrong := {name: getattr(self, name) for name, fits in sound.items() if not fits}:
            raise ValueError(
                "steps and save_every must be >= 1, workers and weight_decay >= 0, learning rates and clip_norm > 0, ema and "
                f"balance in [0, 1), precision one of {get_args(Precision)}, optimizer of {get_args(Optimizer)}; got {wrong}"
            )


@dataclass
class FitResult:
    """What training did: optimiser steps, wall-clock seconds (those before a resume included), the losses by step, and what it was
    calculated in: "bf16", "float32", or both, joined by "+", where a resume was on another machine."""

    steps: int
    seconds: float
    losses: list[dict[str, float]] = field(default_factory=list)
    precision: str = ""


class LossBalance:
    """Divides each loss by the running average of its magnitude, so that none drowns another.

    Args:
        decay: of the average, corrected for its start; 0 switches the division off. floor: least magnitude divided by, so
            that a solved loss is not blown up.
    """

    def __init__(self, decay: float, floor: float = 0.1) -> None:
        self.decay, self.floor = decay, floor
        self.mean: dict[str, float] = {}
        self.count: dict[str, int] = {}

    def total(self, losses: dict[str, Tensor], magnitudes: dict[str, float]) -> Tensor:
        """The sum of balanced losses; magnitudes are the losses' values (averaged over processes)."""
        if not self.decay:
            return reduce(operator.add, losses.values())
        parts = []
        for name, loss in losses.items():
            self.mean[name] = self.decay * self.mean.get(name, 0.0) + (1 - self.decay) * abs(magnitudes[name])
            self.count[name] = self.count.get(name, 0) + 1
            running = self.mean[name] / (1 - self.decay ** self.count[name])
            parts.append(loss / max(running, self.floor))
        return reduce(operator.add, parts)


def to_device(value: T, device: torch.device) -> T:
    """A (nested, frozen) dataclass with every tensor moved to a device."""
    if isinstance(value, Tensor):
        return cast(T, value.to(device))
    if is_dataclass(value) and not isinstance(value, type):  # of classes it is true too
        return replace(value, **{f.name: to_device(getattr(value, f.name), device) for f in fields(value)})
    return value


def learning_rate_factor(step: int, config: FitConfig) -> float:
    """Warm-up times cosine, as a factor on the peak learning rate."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return min(1.0, (step + 1) / max(config.warmup, 1)) * (0.01 + 0.99 * cosine)


def make_accelerator(precision: Precision = "auto") -> Accelerator:
    """Accelerate's defaults, in a precision as of `FitConfig`; parts of a policy may go without gradient (z bins on circles)."""
    AcceleratorState._reset_state()  # else a second training in one process could not choose another precision
    # unless it is told, accelerate has each of several processes on a machine without a GPU train alone
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    device = PartialState(cpu=cpu, timeout=PATIENCE).device
    mixed = ("bf16" if bf16_pays(device.type) else "no") if precision == "auto" else precision
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(cpu=cpu, mixed_precision=mixed, kwargs_handlers=[unused])


def check_precision(module: nn.Module) -> None:
    """Refuse weights in half precision that are to learn: a step of training, or of their average, is mostly less than the next
    number that they can hold.

    Raises:
        ValueError: there are some.
    """
    learning = {name: str(p.dtype).removeprefix("torch.") for name, p in module.named_parameters() if p.requires_grad}
    half = [name for name, dtype in learning.items() if dtype in ("bfloat16", "float16")]
    if half:
        raise ValueError(
            f"{half[0]} and {len(half) - 1} more weights are {learning[half[0]]}, in which steps of training are lost: "
            'load the backbone with "dtype": "float32", have layers beside it learn with "lora_rank": 16, or freeze it'
        )


def fit(
    policy: nn.Module,
    batches: Callable[[int, int, int], Dataset],
    config: FitConfig,
    *,
    folder: Path | None = None,
    resume: bool = False,
    label: str = "training",
    accelerator: Accelerator | None = None,
) -> FitResult:
    """Train a policy in place; it ends with the averaged weights.

    An interrupted run that is resumed ends with the same weights as one that was not: the random state of a step follows from
    the seed, the step and the process alone. At the first interrupt (Ctrl-C) the step is finished and its state saved.

    Args:
        policy: forward(batch) gives scalar losses by name. batches: (seed, rank, processes) to a dataset whose item i is
            this process's whole batch of step i. folder: for the resumable state; None keeps none. resume: continue from it
            where it is there. label: of the progress bar.

    Raises:
        ValueError: the state in `folder` belongs to other settings or another network, or is damaged; or as of `check_precision`.
        FloatingPointError: a loss or its gradient is not finite.
        KeyboardInterrupt: the user's, in whichever process.
    """
    check_precision(policy)
    _keep_freed_memory()
    accelerator = accelerator or make_accelerator(config.precision)
    state_path = folder / STATE_FILE if folder else None
    policy.to(accelerator.device).train()
    optimizers = make_optimizers(policy, config)
    average = {name: value.detach().clone() for name, value in policy.named_parameters() if value.requires_grad}
    run = _Run(config, policy, optimizers, average, LossBalance(config.balance), FitResult(0, 0.0))
    if state_path and resume and state_path.exists():
        run.load(state_path)
    begun_in, now = run.result.precision, "bf16" if accelerator.mixed_precision == "bf16" else "float32"
    if run.result.steps < config.steps:
        run.result.precision = "+".join(sorted({*begun_in.split("+"), now} - {""}))
    trained, *optimizers = accelerator.prepare(policy, *optimizers)
    loader = _loader(batches(config.seed, accelerator.process_index, accelerator.num_processes), run.result.steps, config)
    begun, before = time.perf_counter(), run.result.seconds
    bar = tqdm(
        total=config.steps,
        initial=run.result.steps,
        desc=label,
        unit="step",
        disable=not accelerator.is_main_process,
        mininterval=1,
    )
    with bar, _interrupts() as interrupts:
        if run.result.steps:
            other = "" if begun_in in ("", now) else f", in {now} what began in {begun_in}"
            bar.write(f"{label}: going on from step {run.result.steps}{other}")
        for step, batch in zip(range(run.result.steps, config.steps), loader, strict=False):
            torch.manual_seed(hash((config.seed, step, accelerator.process_index)) % 2**63)
            losses = _step(trained, optimizers, to_device(batch, accelerator.device), run, accelerator, step)
            run.result.steps, run.result.seconds = step + 1, before + time.perf_counter() - begun
            bar.update()
            if step % 10 == 0 or step + 1 == config.steps:
                run.result.losses.append({"step": step, **losses})
                bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()}, refresh=False)
            stop = _anywhere(bool(interrupts), accelerator)
            if state_path and (stop or (step + 1) % config.save_every == 0 or step + 1 == config.steps):
                if accelerator.is_main_process:
                    run.save(state_path)
                accelerator.wait_for_everyone()
            if stop:
                raise KeyboardInterrupt(f"{label} stopped after step {step + 1}" + ", which is saved" * bool(state_path))
    with torch.no_grad():
        for name, value in policy.named_parameters():
            if name in average:
                value.copy_(average[name])
    policy.zero_grad(set_to_none=True)
    policy.eval()
    accelerator.free_memory()  # else it would hold this policy and its optimizers while others are trained with it
    return run.result


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """A list that fills at the first interrupt of the block, which would else leave a step half done; the second one counts."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's alone
        yield seen
        return

    def note(number: int, frame: Any) -> None:
        if seen:
            signal.default_int_handler(number, frame)
        seen.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def _anywhere(here: bool, accelerator: Accelerator) -> bool:
    """Whether something is so in any process, told to all of them: one that stopped alone would leave the others waiting."""
    if accelerator.num_processes == 1:
        return here
    return bool(accelerator.reduce(torch.tensor(float(here), device=accelerator.device), "sum") > 0)


def _keep_freed_memory() -> None:
    """Ask glibc, where there is one, to keep freed blocks: each step allocates the same ones, and having them zeroed by the kernel
    anew takes up to a tenth of a CPU training."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # the most that it takes
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)


def make_optimizers(policy: nn.Module, config: FitConfig) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon for matrices and AdamW for the rest. Matrices decay, vectors (biases, norms, embeddings) do not; the backbone
    may have its own learning rate."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("backbone."), parameter.ndim > 1), []).append(parameter)
    own = config.backbone_learning_rate
    rates = {True: config.learning_rate if own is None else own, False: config.learning_rate}
    by_kind: dict[bool, list[dict[str, Any]]] = {}
    for (backbone, matrices), members in sorted(groups.items()):
        decay = config.weight_decay if matrices else 0.0
        group = {"params": members, "peak": rates[backbone], "weight_decay": decay}
        by_kind.setdefault(matrices and config.optimizer == "muon", []).append(group)
    return [
        Muon(members, lr=config.learning_rate) if muon else torch.optim.AdamW(members, lr=config.learning_rate, fused=True)
        for muon, members in sorted(by_kind.items())
    ]


def _loader(dataset: Dataset, first: int, config: FitConfig) -> Iterator:
    steps = range(first, config.steps)
    return iter(DataLoader(dataset, batch_size=None, sampler=steps, num_workers=config.workers, worker_init_fn=_ignore_interrupts))


def _ignore_interrupts(_: int) -> None:
    """Of a process that makes batches: a terminal's Ctrl-C reaches it too, while the step that waits for its batch is finished."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _step(
    trained: nn.Module, optimizers: Sequence[torch.optim.Optimizer], batch: Any, run: _Run, accelerator: Accelerator, step: int
) -> dict[str, float]:
    """One optimiser step; returns the losses' values, averaged over processes."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = group["peak"] * learning_rate_factor(step, run.config)
    losses = trained(batch)
    values = accelerator.reduce(torch.stack([loss.detach().float() for loss in losses.values()]), "mean").tolist()
    named = dict(zip(losses, values, strict=True))
    if not all(map(math.isfinite, values)):
        raise FloatingPointError(f"loss is not finite at step {step}: {named}; lower the learning rate or check the inputs for NaN")
    trained.zero_grad()
    accelerator.backward(run.balance.total(losses, named))
    norm = accelerator.clip_grad_norm_(trained.parameters(), run.config.clip_norm)
    if norm is not None and not math.isfinite(norm):
        raise FloatingPointError(f"gradient is not finite at step {step}, where the loss is {named}; lower the learning rate")
    for optimizer in optimizers:
        optimizer.step()
    decay = min(run.config.ema, (1 + step) / (10 + step))
    with torch.no_grad():
        live = {name: value for name, value in run.policy.named_parameters() if name in run.average}
        torch._foreach_lerp_([run.average[name] for name in live], list(live.values()), 1 - decay)
    return named


@dataclass
class _Run:
    """Everything that a resume needs."""

    config: FitConfig
    policy: nn.Module
    optimizers: list[torch.optim.Optimizer]
    average: dict[str, Tensor]
    balance: LossBalance
    result: FitResult

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors by name but for frozen weights, which stay what they were built as. The dict refers to the live ones, so that
        loading copies into them."""
        frozen = {name for name, value in self.policy.named_parameters() if not value.requires_grad}
        tensors = {f"weights/{name}": value for name, value in self.policy.state_dict().items() if name not in frozen}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        for index, optimizer, parameter in self._optimised():
            for name, value in optimizer.state[parameter].items():
                tensors[f"optimizer/{index}/{name}"] = value
        return tensors

    def _optimised(self) -> Iterator[tuple[int, torch.optim.Optimizer, nn.Parameter]]:
        """Every trained parameter with its number and its optimizer."""
        pairs = ((o, p) for o in self.optimizers for group in o.param_groups for p in group["params"])
        return ((index, *pair) for index, pair in enumerate(pairs))

    def save(self, path: Path) -> None:
        meta = {
            "config": asdict(self.config),
            "steps": self.result.steps,
            "seconds": self.result.seconds,
            "losses": self.result.losses,
            "precision": self.result.precision,
            "balance": [self.balance.mean, self.balance.count],
        }
        tensors = {name: value.detach().contiguous() for name, value in self._tensors().items()}
        write_atomically(path, save_tensors(tensors, {"state": json.dumps(meta)}))

    def load(self, path: Path) -> None:
        try:
            with safe_open(str(path), "pt") as file:
                meta = json.loads(file.metadata()["state"])
                saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it to train from the start") from error
        now = asdict(self.config)
        differ = {k: (v, now.get(k)) for k, v in meta["config"].items() if now.get(k) != v and k not in FREE}
        if differ:
            told = ", ".join(f"{name} was {was} and is {now}" for name, (was, now) in differ.items())
            raise ValueError(f"{path} belongs to other settings ({told}); resume with the same ones or choose another folder")
        self._prime_optimizer(saved)
        live = self._tensors()
        wrong = sorted(k for k in live.keys() | saved.keys() if k not in live or k not in saved or live[k].shape != saved[k].shape)
        if wrong:
            raise ValueError(f"{path} belongs to another network: {wrong[:4]} do not match; choose another folder")
        with torch.no_grad():
            for name, value in live.items():
                value.copy_(saved[name])
        self.result = FitResult(meta["steps"], meta["seconds"], meta["losses"], meta.get("precision", ""))
        self.balance.mean, self.balance.count = meta["balance"]

    def _prime_optimizer(self, saved: dict[str, Tensor]) -> None:
        """Optimizers make a parameter's state at its first gradient: make by hand what is saved, to be filled."""
        for index, optimizer, parameter in self._optimised():
            names = [name.rpartition("/")[2] for name in saved if name.startswith(f"optimizer/{index}/")]
            for name in names:
                like = torch.zeros((), device=parameter.device) if name == "step" else torch.zeros_like(parameter)
                optimizer.state[parameter][name] = like


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, and an old one stays until then.

    Raises:
        OSError: the disk is full or not writable; the message names the file and its size, and the old file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name with nothing in it
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        size = len(content) / 2**20
        raise OSError(
            error.errno, f"cannot write {path} ({size:.1f} MB): {error.strerror}; free some space or choose another folder"
        ) from error


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write files into, which appears under its name when the block has ended well, and not at all else. Where another
    process finished the same folder first, that one stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield partial
        partial.chmod(0o755)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills where there is none. Of several processes that want it one makes it, and the others wait; what a
    killed one left is removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            for left in folder.parent.glob(f".{folder.name}-*"):
                shutil.rmtree(left, ignore_errors=True)
            with whole_folder(folder) as partial:
                make(partial)
    return folder
