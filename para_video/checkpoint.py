"""Policies on disk: a folder with `config.json` (what to build) and `model.safetensors` (its weights). Data, never code.

Weights that a backbone has from a source, a hub or a folder, and that training left as they were, are not written: the config says
where they come from, and by a fingerprint which ones they were; text encoders are known again by what they make of no text.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from tqdm import tqdm

from para_video.agent import ActionHead, VideoPolicy
from para_video.features import VideoBackbone, did_you_mean, import_class
from para_video.hand import Hand
from para_video.policy import DEFAULT_SCHEDULE, Schedule
from para_video.training import write_atomically

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
FORMAT = 3
TRUSTED = ("para_video", "backbones")
"""Packages whose classes a checkpoint may name; the caller may allow others beside."""
TOLD_NUMBERS, TOLD_TOLERANCE = 16, 0.1
"""By how many numbers text encoders are known again, and how far these may be off, by rounding, beside their length."""


@dataclass(frozen=True)
class PolicySpec:
    """A policy as a value: what `build` makes, and what a checkpoint stores.

    Args:
        backbone, head: "package.module:Class". backbone_options, head_options: their keyword arguments: JSON values, or
            dataclasses of para_video. With a "source" among them they are those of the backbone's `from_pretrained`.
        times: queried, in frames after the last observed one. context: observed frames. size: (H, W) of these, None if it was not
            kept. schedule: the one that it was trained for. hand: hidden in clips, or None.
    """

    backbone: str
    head: str
    times: tuple[float, ...] = tuple(float(t) for t in range(1, DEFAULT_SCHEDULE.chunk + 1))
    context: int = 1
    size: tuple[int, int] | None = None
    schedule: Schedule = DEFAULT_SCHEDULE
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    head_options: Mapping[str, Any] = field(default_factory=dict)
    hand: Hand | None = None

    def __post_init__(self) -> None:
        whole = lambda *numbers: all(isinstance(number, int) and number >= 1 for number in numbers)  # noqa: E731
        fits = {
            "backbone": isinstance(self.backbone, str),
            "head": isinstance(self.head, str),
            "times": isinstance(self.times, tuple) and len(self.times) > 0 and all(isinstance(t, int | float) for t in self.times),
            "context": whole(self.context),
            "size": self.size is None or (isinstance(self.size, tuple) and len(self.size) == 2 and whole(*self.size)),
            "schedule": isinstance(self.schedule, Schedule),
            "backbone_options": isinstance(self.backbone_options, Mapping),
            "head_options": isinstance(self.head_options, Mapping),
            "hand": isinstance(self.hand, Hand | None),
        }
        if wrong := {name: getattr(self, name) for name, fit in fits.items() if not fit}:
            raise ValueError(
                "a policy has import strings, a tuple of at least one time, context >= 1, a size (height, width) or None, and "
                f"mappings of options; got {wrong}"
            )

    def build(self, *, trusted: Sequence[str] = (), frozen: bool = False, backbone: VideoBackbone | None = None) -> VideoPolicy:
        """The policy with fresh weights, drawn from torch's random state, but for those that its backbone has from a source.

        Args:
            trusted: packages that the import strings may lead into beside `TRUSTED`. frozen: whether the backbone stays as it is in
                training.
            backbone: one that `build_backbone` made of this spec's options, to be the policy's.

        Raises:
            ValueError: an import string that is not trusted, cannot be imported, or leads to no backbone or head; options that the
                head does not take; or as of `build_backbone`.
        """
        if backbone is None:
            backbone = build_backbone(self.backbone, self.backbone_options, trusted=trusted)
        kind: Any = _import(self.head, ActionHead, trusted)
        try:
            head = kind(backbone.spec.channels, **self.head_options).to(backbone.device)
        except TypeError as error:
            raise ValueError(f"{self.head} cannot be built with the options {sorted(self.head_options)}: {error}") from error
        height, width = self.size or (None, None)
        return VideoPolicy(backbone, head, self.times, frozen=frozen, clip_shape=(self.context, height, width), hand=self.hand)


def build_backbone(target: str, options: Mapping[str, Any], *, trusted: Sequence[str] = ()) -> VideoBackbone:
    """A backbone by its constructor; or by its `from_pretrained`, where the options name a source, and then it knows the digests of
    the weights that it has from there.

    Raises:
        ValueError: as of `PolicySpec.build`, or options that it does not know or lacks, or numbers that are not finite.
        FileNotFoundError, ImportError: as of `from_pretrained`.
    """
    for name, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value}")
    kind: Any = _import(target, VideoBackbone, trusted)
    known = known_options(kind)
    if (unknown := [name for name in options if name not in {"source", *known}]) and not _takes_any(kind):
        takes = sorted(name for name, default in known.items() if default is not inspect.Parameter.empty)
        raise ValueError(f"{target} cannot be built with the options {unknown}; it knows {takes}{did_you_mean(unknown, known)}")
    try:
        if "source" not in options:
            return kind(**options)
        with torch.random.fork_rng(devices=[]):  # a head's weights are the same beside a backbone that was there before
            backbone = kind.from_pretrained(**options)
    except TypeError as error:
        hint = '; a model with pretrained weights needs a "source" among them' if "source" not in options and loaders(kind) else ""
        raise ValueError(f"{target} cannot be built with the options {sorted(options)}: {error}{hint}") from error
    backbone.origin = {name: digest for name, digest in weight_digests(backbone).items() if "lora_" not in name}
    return backbone


def known_options(kind: Any) -> dict[str, Any]:
    """What a kind of backbone can be built with, by name with defaults (`inspect.Parameter.empty` where there is none): what its
    `from_pretrained` takes, if any, and its constructor."""
    parameters = [parameter for function in (*loaders(kind), kind) for parameter in inspect.signature(function).parameters.values()]
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}


def _takes_any(kind: Any) -> bool:
    """Whether a constructor takes options by any name."""
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(kind).parameters.values())


def loaders(kind: type[VideoBackbone]) -> list[Any]:
    """Each `from_pretrained` that a backbone's class and those above it define."""
    adapters = [base for base in kind.__mro__ if issubclass(base, VideoBackbone) and base is not VideoBackbone]
    return [base.from_pretrained for base in adapters if "from_pretrained" in vars(base)]


def weight_digests(module: nn.Module) -> dict[str, str]:
    """SHA-256 of each of a module's tensors, with its type and shape, by name."""
    weights = module.state_dict().items()
    return {name: _digest(value) for name, value in tqdm(weights, desc="fingerprint", unit="tensor", delay=2, leave=False)}


def _digest(value: Tensor) -> str:
    digest = hashlib.sha256(f"{value.dtype}{tuple(value.shape)}".encode())
    digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint(backbone: VideoBackbone) -> str | None:
    """Of the weights that it has from its source, as they were there; None without a source."""
    if backbone.origin is None:
        return None
    return hashlib.sha256(json.dumps(sorted(backbone.origin.items())).encode()).hexdigest()


def _maps(backbone: VideoBackbone) -> dict[str, float]:
    """Of what kind the maps are that a head reads."""
    return {name: getattr(backbone.spec, name) for name in ("channels", "stride", "span", "predicts")}


def _text(backbone: VideoBackbone) -> dict[str, list[float]]:
    """Numbers from all over each thing that its text encoders tell it.

    Vectors of zeros, which fill up texts, tell nothing and are left out. The first vector alone would tell little of an encoder in
    which each sees only those before it: there it has seen nothing.
    """
    return {name: _spread(value) for name, value in backbone.told().items()}


def _spread(value: Tensor) -> list[float]:
    vectors = value.reshape(-1, value.shape[-1])
    numbers = vectors[vectors.any(-1)].flatten()
    count = min(TOLD_NUMBERS, len(numbers))
    return numbers[torch.arange(count) * (len(numbers) - 1) // max(count - 1, 1)].float().tolist()


def _same_text(one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> bool:
    """Whether they are as near as rounding leaves them, on other machines and in other precision."""
    pairs = [(torch.tensor(one[name]), torch.tensor(other[name])) for name in one.keys() & other.keys()]
    return one.keys() == other.keys() and all(
        a.shape == b.shape and float((a - b).norm()) <= TOLD_TOLERANCE * float(a.norm()) for a, b in pairs
    )


def _own_weights(backbone: VideoBackbone, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those, with a backbone's under "backbone.", that are not as its source gives them."""
    origin = {f"backbone.{name}": digest for name, digest in (backbone.origin or {}).items()}
    return {
        name: value.detach().cpu().contiguous()
        for name, value in weights.items()
        if name not in origin or _digest(value) != origin[name]
    }


def package(target: str) -> str:
    """The package that an import string leads into."""
    return target.partition(":")[0].partition(".")[0]


def _import(target: str, kind: type, trusted: Sequence[str]) -> type:
    if isinstance(trusted, str):
        raise ValueError(f"trusted is a list of packages, such as [{trusted!r}]; got the text {trusted!r}")
    if package(target) not in (allowed := [*TRUSTED, *trusted]):
        raise ValueError(f"{target!r} is outside {allowed}; if you trust that code, pass {package(target)!r} among `trusted`")
    return import_class(target, kind)


def save_policy(policy: VideoPolicy, spec: PolicySpec, folder: Path, notes: Mapping[str, Any] | None = None) -> None:
    """Write a policy; notes (JSON values) say where it comes from. Each file is replaced whole or not at all."""
    write_atomically(folder / WEIGHTS_FILE, save_tensors(_own_weights(policy.backbone, policy.state_dict())))
    config = {
        "format": FORMAT, "policy": _plain(spec), "frozen": policy.frozen, "origin": fingerprint(policy.backbone),
        "maps": _maps(policy.backbone), "told": _text(policy.backbone), "notes": dict(notes or {}),
    }  # fmt: skip
    write_atomically(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())


def load_policy(
    folder: str | Path, *, trusted: Sequence[str] = (), backbone: VideoBackbone | None = None, device: str | None = None
) -> tuple[VideoPolicy, PolicySpec]:
    """A policy and what it was built from, ready to act.

    Args:
        trusted: packages of your own that the policy's backbone or head may be of, such as ("mypackage",).
        backbone: as of `PolicySpec.build`; for a source that has moved, or one for several policies that left theirs frozen.
        device: where it is to act, such as "cuda"; default where its backbone's options say, or the CPU.

    Raises:
        FileNotFoundError: the folder is no checkpoint, or the backbone's source is not there.
        ValueError: a damaged or newer file, weights of another shape, code outside `trusted`, a source whose weights or text
            encoders are not those that the policy was trained on, a backbone that gives maps of another kind, or one that holds
            what another policy learnt.
    """
    folder = Path(folder)
    spec, kept = _read_config(folder)
    weights = read_weights(folder)
    here = spec
    if device is not None and "source" in spec.backbone_options:  # loaded there at once, and it may be offloaded from there
        here = replace(spec, backbone_options={**spec.backbone_options, "device": device})
    policy = here.build(trusted=trusted, frozen=kept["frozen"], backbone=backbone)
    if (found := fingerprint(policy.backbone)) != kept["origin"]:
        raise ValueError(
            f"{folder} was trained on other weights of {spec.backbone_options.get('source')!r} than are there now (fingerprint "
            f"{str(kept['origin'])[:12]}, now {str(found)[:12]}): build those, as with revision=, and pass them as `backbone`"
        )
    now = _maps(policy.backbone)
    if kept["maps"] is not None and kept["maps"] != now:
        raise ValueError(
            f"{folder} was trained on other maps ({kept['maps']}) than {spec.backbone} gives now ({now}): train it again, or load "
            "it with the version of then"
        )
    if kept["told"] is not None and not _same_text(kept["told"], _text(policy.backbone)):
        raise ValueError(
            f"{folder} was trained with another text encoder than {spec.backbone_options.get('source')!r} has now: build that one, "
            "as with revision=, and pass it as `backbone`"
        )
    if backbone is not None and (taken := _learnt_elsewhere(backbone, weights)):
        raise ValueError(
            f"the backbone that was passed for {folder} holds what another policy learnt, in {taken[:4]}: build one for each "
            "policy that did not leave it frozen"
        )
    given = {f"backbone.{name}" for name in policy.backbone.origin or {}}
    _load_all(policy, weights, folder, "its config; save the policy again", given)
    return (policy if device is None else policy.to(device)).eval(), spec


def _learnt_elsewhere(backbone: VideoBackbone, weights: Mapping[str, Tensor]) -> list[str]:
    """Tensors of a backbone that are neither as its source gives them nor, under "backbone.", among the weights of a checkpoint."""
    now = weight_digests(backbone)
    changed = [name for name, digest in (backbone.origin or {}).items() if now[name] != digest]
    stored = {name: weights.get(f"backbone.{name}") for name in changed}
    return [name for name, value in stored.items() if value is None or _digest(value) != now[name]]


def save_backbone(backbone: VideoBackbone, target: str, options: Mapping[str, Any], folder: Path, notes: Mapping[str, Any]) -> None:
    """Write a backbone alone. `initialise` takes the folder as it takes a policy's.

    Args:
        target, options: "package.module:Class" and its keyword arguments. notes: JSON values that say where it comes from.
    """
    weights = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    write_atomically(folder / WEIGHTS_FILE, save_tensors(_own_weights(backbone, weights)))
    about = {"target": target, "options": _plain(options)}
    config = {"format": FORMAT, "backbone": about, "origin": fingerprint(backbone), "notes": dict(notes)}
    write_atomically(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())


def checkpoint_digest(folder: Path) -> str:
    """12 hexadecimal digits of a checkpoint's weights file: others for other weights.

    Raises:
        FileNotFoundError: no weights there.
    """
    return hashlib.sha256(weights_file(folder).read_bytes()).hexdigest()[:12]


def load_backbone(backbone: VideoBackbone, folder: Path) -> None:
    """Give a backbone all its weights from a checkpoint of a backbone or a policy.

    Raises:
        FileNotFoundError: no weights there. ValueError: a damaged file, or weights of another shape.
    """
    parts = {name.partition(".")[2]: value for name, value in read_weights(folder).items() if name.startswith("backbone.")}
    _load_all(backbone, parts, folder, f"this {type(backbone).__name__}; build it with the options of the checkpoint")


def _load_all(
    module: nn.Module, weights: Mapping[str, Tensor], folder: Path, misfit: str, given: Collection[str] = frozenset()
) -> None:
    """Load every weight but those of the names given, which may stay as they are."""
    wanted = module.state_dict()
    names = weights.keys() | wanted.keys() - given
    wrong = sorted(k for k in names if k not in wanted or k not in weights or wanted[k].shape != weights[k].shape)
    if wrong:
        raise ValueError(f"{folder / WEIGHTS_FILE} does not fit {misfit}: {wrong[:4]} differ")
    module.load_state_dict(weights, strict=False)


def _read_config(folder: Path) -> tuple[PolicySpec, dict[str, Any]]:
    """What a policy is built from; whether its backbone was "frozen", the fingerprint of the source as "origin", and of what kind
    "maps" were and what text encoders "told", or None for these two where an older version did not keep them."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no checkpoint: it has no {CONFIG_FILE}; pass a folder that save_policy wrote")
    try:
        config = json.loads(path.read_text())
        newer, alone = config["format"] > FORMAT, "backbone" in config and "policy" not in config
        spec = None if newer or alone else _rich(config["policy"])
        kept = {"frozen": False, "origin": None, "maps": None, "told": None}
        kept |= {name: config[name] for name in kept if name in config}
    except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    if newer:
        raise ValueError(f"{path} has format {config['format']}, this version reads up to {FORMAT}; update para_video")
    if alone:
        raise ValueError(f"{folder} holds a backbone alone, no policy: pass it to start one from, as with --init")
    kinds = {"frozen": bool, "origin": str | None, "maps": dict | None, "told": dict | None}
    if not (isinstance(spec, PolicySpec) and all(isinstance(kept[name], kind) for name, kind in kinds.items())):
        raise ValueError(f"{path} describes no policy")
    return spec, kept


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint.

    Raises:
        FileNotFoundError: no weights there. ValueError: a damaged file or NaN weights.
    """
    path = weights_file(folder)
    try:
        weights = load_tensors(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy or train it again") from error
    bad = [name for name, value in weights.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())]
    if bad:
        raise ValueError(f"{path} holds NaN or infinite weights in {bad[:4]}; train it again")
    return weights


def weights_file(folder: Path) -> Path:
    """Of a checkpoint. Raises FileNotFoundError where there is none."""
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        inside = [path.parent for path in sorted(folder.glob(f"*/{WEIGHTS_FILE}"))]
        remedy = f"pass one of {[str(path) for path in inside]}" if inside else f"pass a folder that holds {WEIGHTS_FILE}"
        raise FileNotFoundError(f"{folder} is no checkpoint: it has no {WEIGHTS_FILE}; {remedy}")
    return path


def initialise(policy: nn.Module, folder: Path, *, part: str = "", needed: str = "") -> tuple[int, int]:
    """Copy every weight of a checkpoint that has the same name and shape in the policy. Buffers stay: statistics of demonstrations
    belong to the policy's own.

    Args:
        part: "backbone" or "head" for that part alone. needed: of this part, where the checkpoint has it and it is taken, something
            must fit; "" is of all that is taken.

    Returns:
        how many of the policy's weights were taken, and how many it has.

    Raises:
        ValueError: none fits, and some would have to.
    """
    weights, own = read_weights(folder), dict(policy.named_parameters())
    fitting = {
        name: value for name, value in weights.items() if name.startswith(part) and name in own and own[name].shape == value.shape
    }
    if not fitting and (not needed or needed.startswith(part)) and any(name.startswith(needed) for name in weights):
        raise ValueError(f"nothing in {folder} fits this policy: another backbone, or other widths; pass the same --backbone")
    policy.load_state_dict(fitting, strict=False)
    return len(fitting), len(own)


def _plain(value: Any) -> Any:
    """Dataclasses of para_video to JSON values that say which class they were."""
    if is_dataclass(value):
        parts = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        return {"class": f"{type(value).__module__}:{type(value).__name__}", **parts}
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def _rich(value: Any) -> Any:
    """The inverse of `_plain`; lists become tuples."""
    if isinstance(value, dict) and "class" in value:
        module, _, name = value["class"].partition(":")
        found = getattr(import_module(module), name, None) if module.split(".")[0] == "para_video" else None
        if not (isinstance(found, type) and is_dataclass(found)):
            raise ValueError(f"a checkpoint may not hold a {value['class']!r}")
        return found(**{key: _rich(part) for key, part in value.items() if key != "class"})
    if isinstance(value, dict):
        return {key: _rich(part) for key, part in value.items()}
    return tuple(_rich(part) for part in value) if isinstance(value, list) else value
