"""Features of a frozen backbone, computed once: training then reads them from disk.

A cache holds every step of some demonstrations in a number of augmented copies, each with its labels. Its folder is named after
everything that its bytes depend on: weights, demonstrations, augmentation, schedule.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from para_video.agent import Batch, VideoPolicy
from para_video.batches import DemoBatches
from para_video.checkpoint import weight_digests
from para_video.features import VideoFeatures
from para_video.precision import autocast, precision_of
from para_video.training import made_once, to_device, write_atomically

FORMAT = 2
MAKERS = (
    "para_video.features", "para_video.layers", "para_video.agent", "para_video.batches", "para_video.camera", "para_video.demos",
    "para_video.drawing", "para_video.hand", "para_video.heatmap", "para_video.policy", "para_video.readout", "para_video.repaint",
)  # fmt: skip
"""Modules whose code makes features, or the clips and labels beside them."""
COMPUTING = ("torch", "diffusers", "transformers", "numpy", "scipy", "scikit-image")
"""Packages that make them too."""
COST_FILE = "cost.json"
"""In a cache: the seconds that it took."""
T = TypeVar("T")


def cache_features(policy: VideoPolicy, batches: DemoBatches, copies: int, root: Path, *, batch_size: int = 32) -> Path:
    """Compute and store the features of every step of the demonstrations, or find them.

    Args:
        policy: its backbone is read; maps that none of its times needs are not kept. batches: says which demonstrations, how they
            are cut and augmented. copies: augmented ones of each step (1 where there is no augmentation). root: of all caches.
        batch_size: clips in one forward.

    Returns:
        the cache's folder, for `CachedBatches`.

    Raises:
        ValueError: copies below 1, batches that show the future, or features that are not finite. OSError: the disk is full.
    """
    if copies < 1 or len(batches.shown) > batches.context:
        raise ValueError(f"copies must be at least 1, got {copies}, and batches must not show the future")

    def make(folder: Path) -> None:
        begun, count = time.perf_counter(), len(batches.steps)
        for copy in tqdm(range(copies), desc="features", unit="copy"):
            shared = _write_rows(folder / f"copy_{copy:03d}.safetensors", _forwards(policy, batches, copy, batch_size), count)
        about = {"size": json.dumps(batches.frames[0].shape[-2:])}
        write_atomically(folder / "shared.safetensors", save_tensors({k: v.contiguous() for k, v in shared.items()}, about))
        write_atomically(folder / COST_FILE, json.dumps({"seconds": time.perf_counter() - begun}).encode())

    return made_once(root / cache_key(policy, batches, copies, batch_size), make)


def cache_key(policy: VideoPolicy, batches: DemoBatches, copies: int, batch_size: int) -> str:
    """Another name whenever a byte of the cache would differ, but for code that the backbone and its ancestors take from modules
    beside their own and `MAKERS`."""
    kind = type(policy.backbone)
    spec = asdict(policy.backbone.spec)
    del spec["generative"]  # whether there is a loss says nothing of features: an offloaded model has the same ones, and none
    told = {
        "format": FORMAT, "versions": {name: version(name) for name in COMPUTING},
        "backbone": [kind.__module__, kind.__qualname__],
        "code": {name: _source(name) for name in (*(each.__module__ for each in kind.__mro__), *MAKERS)},
        "spec": spec, "times": policy.times, "copies": copies, "seed": batches.seed,
        "device": policy.backbone.device.type, "precision": precision_of(policy.backbone.device), "batch_size": batch_size,
        "context": batches.context, "chunk": batches.chunk, "stride": batches.stride,
        "augmentation": None if batches.augmentation is None else asdict(batches.augmentation),
        "settings": policy.backbone.settings(), "weights": weight_digests(policy.backbone),
        **({} if policy.hand is None else {"hand": asdict(policy.hand)}),
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for demo in batches.demos:
        moves = demo.positions[:0] if demo.moves is None else demo.moves
        digest.update(repr(demo.camera.distortion).encode())
        camera = (demo.camera.intrinsics.numpy(), demo.camera.world_T_camera.numpy())
        for part in (demo.frames, demo.positions, demo.rotations, demo.openings, demo.gripper, moves, *camera):
            digest.update(f"{part.shape}{part.dtype}".encode() + np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:24]


def _source(module: str) -> str | None:
    """Its text, None where there is none to read (of a class that was typed in)."""
    try:
        return inspect.getsource(import_module(module))
    except (OSError, TypeError, ImportError):
        return None


class CachedBatches(Dataset):
    """Item i is the batch of training step i, with features and without frames; the same bytes whenever it is asked for.

    Args:
        folder: of `cache_features`. like: a batch of the demonstrations, for its structure. batch_size, seed, rank: as of
            `DemoBatches`.

    Raises:
        ValueError: the cache is damaged.
    """

    def __init__(self, folder: Path, like: Batch, *, batch_size: int, seed: int = 0, rank: int = 0, length: int = 2**31) -> None:
        self.like, self.batch_size, self.seed, self.rank, self.length = replace(like, future=None), batch_size, seed, rank, length
        try:
            self.copies = [safe_open(str(path), "pt") for path in sorted(folder.glob("copy_*.safetensors"))]
            self.labels = [{k: file.get_tensor(k) for k in file.keys() if k != "maps"} for file in self.copies]  # noqa: SIM118
            self.shared = load_file(folder / "shared.safetensors")
            with safe_open(str(folder / "shared.safetensors"), "pt") as file:
                self.size = tuple(json.loads(file.metadata()["size"]))
            self.count = len(self.labels[0]["targets.pixels"])
        except (SafetensorError, OSError, KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(
                f"the cached features in {folder} are damaged ({error!r}); remove that folder to compute them again"
            ) from error

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((self.seed, step, self.rank))
        chosen = [(int(rng.integers(len(self.copies))), int(rng.integers(self.count))) for _ in range(self.batch_size)]
        maps = torch.cat([self.copies[copy].get_slice("maps")[row : row + 1] for copy, row in chosen])
        values = {name: torch.stack([self.labels[copy][name][row] for copy, row in chosen]) for name in self.labels[0]}
        blank = torch.zeros(1).expand(self.batch_size, self.like.clip.shape[1], 3, *self.size)
        return replace(_filled(self.like, values), clip=blank, features=VideoFeatures(maps, **self.shared))


def _write_rows(path: Path, parts: Iterator[tuple[VideoFeatures, Batch]], count: int) -> dict[str, Tensor]:
    """Write maps and labels, `count` rows in all, as one safetensors file while they come: no more than one part is held.

    Returns:
        what all maps share: times, spans and image_to_map.

    Raises:
        OSError: the disk is full. What goes wrong while parts are made is raised as it is.
    """
    places: dict[str, tuple[int, int]] = {}
    row = 0
    for features, batch in parts:
        values = {"maps": features.maps, **dict(_tensors(batch))}
        # opened for each part, since what a full disk did not take is written when the file is closed
        with _full_disk_told(path), path.open("r+b" if places else "wb") as file:
            if not places:
                header, places = _header({name: value[:1].clone() for name, value in values.items()}, count)
                file.write(header)
            for name, value in values.items():
                start, size = places[name]
                file.seek(start + row * size)
                file.write(value.flatten().view(torch.uint8).numpy().data)
        row += len(features.maps)
    return {"times": features.times, "spans": features.spans, "image_to_map": features.image_to_map}


@contextlib.contextmanager
def _full_disk_told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write {path}: {error.strerror}; free some space or choose another folder (PARA_VIDEO_CACHE)"
        ) from error


def _header(rows: dict[str, Tensor], count: int) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The beginning of a safetensors file of `count` such rows, and where each tensor begins and how many bytes a row of it has."""
    written = save_tensors(rows)
    length = int.from_bytes(written[:8], "little")
    entries: dict[str, Any] = json.loads(written[8 : 8 + length])
    sizes, at = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        sizes[name] = end - begin
        entry["shape"][0], entry["data_offsets"] = count, [at, at + count * sizes[name]]
        at += count * sizes[name]
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    places = {name: (8 + len(text) + entry["data_offsets"][0], sizes[name]) for name, entry in entries.items()}
    return len(text).to_bytes(8, "little") + text, places


@torch.no_grad()
def _forwards(policy: VideoPolicy, batches: DemoBatches, copy: int, batch_size: int) -> Iterator[tuple[VideoFeatures, Batch]]:
    """Features, in bf16, and labels of every step of the demonstrations in one augmented copy."""
    device = policy.backbone.device
    for first in range(0, len(batches.steps), batch_size):
        steps = batches.steps[first : first + batch_size]
        seed = int(np.random.default_rng((batches.seed, copy, first, 5)).integers(2**62))
        batch = batches.augment(batches.gather(steps), steps, seed)
        state = None if batch.state is None else batch.state.to(device)
        with autocast(device):
            features, query = policy.features(batch.clip.to(device), state=state)
        features = to_device(features, torch.device("cpu"))
        if not features.maps.isfinite().all():
            raise ValueError(
                f"{type(policy.backbone).__name__} gives maps that are not finite, of {len(steps)} clips from {steps[0]} on: its "
                'weights are damaged, or "dtype": "float16" is too narrow for it; try "bfloat16" or "float32"'
            )
        nearest, _ = features.nearest(query.times.to(features.times))
        used = torch.cat([nearest, (features.times <= 0).nonzero()[-1]]).unique()  # ACT reads the last observed map too
        maps = features.maps[:, used].bfloat16().contiguous()
        yield VideoFeatures(maps, features.times[used], features.spans[used], features.image_to_map), batch


def _tensors(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """The labels of a batch by dotted name."""

    def walk(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
        if isinstance(value, Tensor):
            yield name, value.contiguous()
        elif is_dataclass(value):
            for f in fields(value):
                yield from walk(getattr(value, f.name), f"{name}.{f.name}")

    yield from walk(batch.targets, "targets")
    yield from walk(batch.state, "state")


def _filled(like: T, values: dict[str, Tensor], name: str = "") -> T:
    """The dataclass with the named tensors in place of its own."""
    parts: dict[str, Any] = {}
    for f in fields(like):  # type: ignore[arg-type]  # a dataclass
        old, dotted = getattr(like, f.name), f"{name}{f.name}"
        if isinstance(old, Tensor) and dotted in values:
            parts[f.name] = values[dotted]
        elif is_dataclass(old):
            parts[f.name] = _filled(old, values, f"{dotted}.")
    return replace(like, **parts)  # type: ignore[type-var]
