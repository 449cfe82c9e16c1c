"""Whether a backbone keeps its promises with the weights that you have: the contract of the tests, on the real model.

    python -m backbones.verify wan2.1-t2v-1.3b --options '{"dtype": "bfloat16", "device": "cuda"}'

runs every check of `backbones.contract`, takes a fingerprint of the features, trains a small head on circles, and adds a row with
all this to a JSON file, which you are welcome to contribute. Ends with an error where a check fails.
"""

from __future__ import annotations

import copy
import hashlib
import json
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from torch import Tensor
from tqdm import tqdm

from backbones import backbone_options, build_backbone, ready, shipped_weights
from backbones.contract import Broken, Trial, checks_of, gradients_reach_all, leave_start
from para_video.checkpoint import weight_digests
from para_video.features import VideoBackbone
from para_video.rows import Row, Rows
from para_video.runs import command_line, installed

KEY = ("backbone", "options", "device")
PACKAGES = ("para_video", "torch", "diffusers", "transformers")
BITS = 64
SETTINGS = {"bits": BITS}
LEAST_SIDE = 128
"""Of frames, in pixels: trained models may take much smaller ones for something else."""


@dataclass(frozen=True)
class VerifyConfig:
    """Verify a backbone."""

    name: Annotated[str, tyro.conf.Positional]
    """Name in the catalogue (python -m backbones lists it), or package.module:Class."""
    options: Annotated[str, tyro.conf.arg(metavar="JSON")] = "{}"
    """Of the backbone, such as '{"source": "folder", "dtype": "bfloat16", "device": "cuda"}'."""
    size: tuple[int, int] | None = None
    """Height and width of the frames that the contract is tried on; by default the least square of at least 128 pixels."""
    gradients: bool = True
    """Whether gradients are looked at, which takes the most memory."""
    steps: int = 300
    """Training steps of the head that reads circles; 0 for no read-out."""
    clips: int = 128
    """Circle clips that it is trained on, and half as many that it is measured on."""
    out: Path = Path("runs/verified.json")
    """File that the row is added to."""

    def __post_init__(self) -> None:
        if self.steps < 0 or self.clips < 8:
            raise ValueError(f"steps must be at least 0 and clips at least 8, got {self.steps} and {self.clips}")
        backbone_options(self.name, self.options)  # to tell at once what is wrong with them


# -------------------------------------------------------------------- the contract


def verdicts(trial: Trial, gradients: bool = True) -> dict[str, str]:
    """What each check says of a backbone: "ok", "not checked: ..." or what is wrong."""
    checks = [check for check in checks_of(trial.backbone) if gradients or check is not gradients_reach_all]
    found = {}
    with tqdm(checks, desc="contract", unit="check") as bar:
        for check in bar:
            bar.set_postfix_str(check.__name__.replace("_", " "))
            try:
                check(trial)
                found[check.__name__] = "ok"
            except Broken as broken:
                found[check.__name__] = str(broken)
            except torch.OutOfMemoryError:
                found[check.__name__] = "not checked: out of memory"
            except Exception as error:  # whatever a model raises is a verdict of its own, and the other checks go on
                found[check.__name__] = f"{type(error).__name__}: {error}"
    return found


def failed(found: dict[str, str]) -> list[str]:
    """The checks that a backbone does not pass."""
    return [name for name, verdict in found.items() if verdict != "ok" and not verdict.startswith("not checked")]


# -------------------------------------------------------------------- the fingerprint


def fingerprint(trial: Trial) -> dict[str, Any]:
    """Of the features of a clip that is the same for everyone: on which sides of random planes they lie (Charikar 2002), as 16
    hexadecimal digits of which rounding changes few bits, and what they are like. Where features depend on noise, a device of
    another kind draws another."""
    horizon = trial.spec.max_horizon if trial.spec.predicts else 0
    try:
        maps = trial.features(trial.clip(trial.spec.contexts[0]), horizon).maps.float().cpu()
    except torch.OutOfMemoryError as error:
        return {"not measured": str(error)}
    return {"bits": sides(maps), "shape": list(maps.shape), "mean": float(maps.mean()), "std": float(maps.std())}


def sides(values: Tensor) -> str:
    """Signs of the products of normalised values with `BITS` random directions, as hexadecimal digits."""
    flat = values.flatten().double()
    flat = (flat - flat.mean()) / flat.std().clamp_min(1e-12)
    generator = torch.Generator().manual_seed(0)
    signs = [bool(flat @ torch.randn(flat.shape, generator=generator).double() > 0) for _ in range(BITS)]
    return f"{sum(sign << i for i, sign in enumerate(signs)):0{BITS // 4}x}"


def bits_apart(first: str, second: str) -> int:
    """In how many of the `BITS` two fingerprints differ: about half of them for features of another model."""
    return (int(first, 16) ^ int(second, 16)).bit_count()


# -------------------------------------------------------------------- what it costs and shows


def cost(config: VerifyConfig) -> dict[str, Any]:
    """Milliseconds and memory of a clip's features, of frames as `compare` has them, measured in a process of its own; or why they
    could not be."""
    try:
        from backbones import compare

        measured = compare.cost_apart(config.name, json.loads(config.options), compare.CompareConfig(repeats=3))
        return {"size": compare.CompareConfig.size, **{name: measured[name] for name in ("ms", "memory_mb", "threads")}}
    except Exception as error:  # a model that cannot be measured still has its verdicts
        return {"not measured": f"{type(error).__name__}: {error}"}


def read_out(backbone: VideoBackbone, config: VerifyConfig) -> dict[str, Any]:
    """Median pixels by which a head that was briefly trained on the features misses circles, or why it could not be trained."""
    try:
        from backbones import compare

        budget = compare.CompareConfig(circle_steps=config.steps, clips=config.clips, held_out=config.clips // 2)
        found = compare.circles_readout(backbone, budget)
        return {"steps": config.steps, "clips": config.clips, **{name: found[name] for name in ("px_seen", "px_future")}}
    except Exception as error:  # a model that cannot be measured still has its verdicts
        return {"not measured": f"{type(error).__name__}: {error}"}


def versions() -> dict[str, str]:
    """Of what features depend on."""
    return {"python": platform.python_version(), **installed(PACKAGES)}


def verify(config: VerifyConfig) -> Row:
    """All that is to be said of a backbone, kept in `config.out`."""
    rows = Rows(config.out, SETTINGS, KEY)
    options = json.loads(config.options)
    spent = cost(config)
    torch.manual_seed(0)
    backbone = ready(build_backbone(config.name, **backbone_options(config.name, options)), options)
    trial = Trial(backbone, config.size or Trial(backbone).sides(LEAST_SIDE), every=False)
    tried = trial
    if shipped_weights(config.name) is None and backbone.origin is None:
        tried = replace(trial, backbone=copy.deepcopy(backbone))
        leave_start(tried.backbone)
    device, dtypes = trial.device, sorted({str(p.dtype).removeprefix("torch.") for p in backbone.parameters()})
    weights = hashlib.sha256(json.dumps(sorted((backbone.origin or weight_digests(backbone)).items())).encode()).hexdigest()
    row: Row = {
        "backbone": config.name,
        "options": json.dumps(told(options), sort_keys=True),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": dtypes,
        "weights": weights[:16],
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "versions": versions(),
        "cost": spent,
        "size": list(trial.sides()),
        "verdicts": verdicts(tried, config.gradients),
    }
    if not failed(row["verdicts"]):
        row["fingerprint"] = fingerprint(trial)
    if config.steps:
        row["circles"] = read_out(backbone, config)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    rows.add(row)
    return row


def told(value: Any) -> Any:
    """Options without the paths of a machine."""
    if isinstance(value, dict):
        return {name: told(part) for name, part in value.items()}
    return Path(value).name if isinstance(value, str) and (Path(value).is_absolute() or Path(value).exists()) else value


def main(config: VerifyConfig) -> Row:
    """Verify, and say what was found.

    Raises:
        RuntimeError: a check fails, or none could be made; the row is kept all the same.
    """
    console = Console(soft_wrap=True)
    known = Rows(config.out, SETTINGS, KEY).find(backbone=config.name)
    row = verify(config)
    wrong = failed(row["verdicts"])
    for name, verdict in row["verdicts"].items():
        style = "green" if verdict == "ok" else "red" if name in wrong else "yellow"
        console.print(f"{name.replace('_', ' '):<28} {verdict}", style=style, markup=False, highlight=False)
    for name in ("cost", "fingerprint", "circles"):
        if name in row:
            values = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row[name].items())
            console.print(f"{name:<28} {', '.join(values)}", markup=False, highlight=False)
    for other in known if "fingerprint" in row else []:
        if "bits" in other.get("fingerprint", {}) and "bits" in row["fingerprint"]:
            apart = bits_apart(row["fingerprint"]["bits"], other["fingerprint"]["bits"])
            console.print(f"{apart} of {BITS} bits from the row of {other['device']}, {other['options']}", markup=False)
    kept, made = list(row["verdicts"].values()).count("ok"), len(row["verdicts"])
    unchecked = made - kept - len(wrong)
    console.print(f"{kept} of {made} promises kept, {unchecked} not checked; the row is in {config.out}", markup=False)
    if wrong:
        raise RuntimeError(f"{config.name} does not keep {len(wrong)} of {len(row['verdicts'])} promises: {', '.join(wrong)}")
    if "ok" not in row["verdicts"].values():
        raise RuntimeError(f"no check of {config.name} could be made; see the verdicts above")
    return row


if __name__ == "__main__":
    command_line(main, VerifyConfig, __doc__ or "")
