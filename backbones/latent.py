"""What adapters of latent video diffusion models share: noise processes, the time and the places of latents, taps, the two losses.

A clip is encoded to latents (b, c, s, h, w); observed latents are known, future ones are drawn down from noise to the level at
which features are read. An adapter says how its model encodes, what conditions it, how it is called and how a block's output is
laid out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.attention import check_attention, set_denoiser_attention
from backbones.loading import Config, Source, check_loading, configs, insert_lora, load_part
from backbones.offload import Offload, back_to_cpu, check_offload, offload_parts
from para_video.features import (
    FeatureSpec,
    VideoBackbone,
    VideoFeatures,
    capture,
    did_you_mean,
    drawing_device,
    joined,
    stride_affine,
)

# -------------------------------------------------------------------- noise processes
# z is the signal, n standard normal noise, x what is between them at a level (b, s), one for each latent frame.


class NoiseProcess(ABC):
    """How signal becomes noise, and what a network was trained to say of it."""

    top: float
    """The level of pure noise."""

    @abstractmethod
    def scales(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """(a, s) with x = a z + s n."""

    @abstractmethod
    def output(self, z: Tensor, n: Tensor, level: Tensor) -> Tensor:
        """What the network should give."""

    @abstractmethod
    def signal(self, output: Tensor, x: Tensor, level: Tensor) -> Tensor:
        """The signal that follows from what the network gave for x."""

    @abstractmethod
    def time(self, level: Tensor) -> Tensor:
        """What the network is told of the level."""

    @abstractmethod
    def draw(self, count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """(count,) levels for training."""

    def network_input(self, x: Tensor, level: Tensor) -> Tensor:
        """What the network is shown of x."""
        return x

    def levels(self, last: float, steps: int) -> list[float]:
        """steps + 1 levels from the top down to the last one."""
        return torch.linspace(self.top, last, steps + 1).tolist()

    def noisy(self, z: Tensor, n: Tensor, level: Tensor) -> Tensor:
        """x at the level."""
        a, s = self.scales(_wide(level))
        return a * z + s * n

    def noise(self, x: Tensor, z: Tensor, level: Tensor) -> Tensor:
        """The noise in x if z is its signal."""
        a, s = self.scales(_wide(level))
        return (x - a * z) / s.clamp_min(1e-6)


@dataclass(frozen=True)
class FlowProcess(NoiseProcess):
    """x = (1 - level) z + level n; the network gives n - z, or z - n where `reversed_time` (Mochi), and is told the level times
    `time_scale` (1 - level there). Levels of training are logit-normal (Esser et al. 2024)."""

    time_scale: float = 1000.0
    reversed_time: bool = False
    top: float = 1.0

    def scales(self, level: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - level, level

    def output(self, z: Tensor, n: Tensor, level: Tensor) -> Tensor:
        return z - n if self.reversed_time else n - z

    def signal(self, output: Tensor, x: Tensor, level: Tensor) -> Tensor:
        return x + _wide(level) * (output if self.reversed_time else -output)

    def time(self, level: Tensor) -> Tensor:
        return self.time_scale * (1 - level if self.reversed_time else level)

    def draw(self, count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        return torch.randn(count, device=drawing_device(device, generator), generator=generator).to(device).sigmoid()


@dataclass(frozen=True)
class EdmProcess(NoiseProcess):
    """x = z + level n, shown as x / sqrt(level^2 + 1); the network gives the v of Karras et al. 2022 with a signal of variance 1,
    and is told a quarter of the level's logarithm. Levels of training are log-normal, as Stable Video Diffusion's were."""

    top: float = 700.0
    log_mean: float = 0.7
    log_std: float = 1.6

    def scales(self, level: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(level), level

    def network_input(self, x: Tensor, level: Tensor) -> Tensor:
        return x / (_wide(level) ** 2 + 1).sqrt()

    def output(self, z: Tensor, n: Tensor, level: Tensor) -> Tensor:
        level = _wide(level)
        x = z + level * n
        return (x / (level**2 + 1) - z) * (level**2 + 1).sqrt() / level

    def signal(self, output: Tensor, x: Tensor, level: Tensor) -> Tensor:
        level = _wide(level)
        return x / (level**2 + 1) - level / (level**2 + 1).sqrt() * output

    def time(self, level: Tensor) -> Tensor:
        return 0.25 * level.log()

    def draw(self, count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        noise = torch.randn(count, device=drawing_device(device, generator), generator=generator).to(device)
        return (self.log_mean + self.log_std * noise).exp()

    def levels(self, last: float, steps: int) -> list[float]:
        """Even in the seventh root, as Karras et al. 2022 step."""
        return [float(root**7) for root in torch.linspace(self.top ** (1 / 7), last ** (1 / 7), steps + 1, dtype=torch.float64)]


class DdpmProcess(NoiseProcess):
    """x = sqrt(abar) z + sqrt(1 - abar) n; the network gives v = sqrt(abar) n - sqrt(1 - abar) z, or n where `predicts` is
    "epsilon", and is told the integer step. A level in (0, 1] is the step over their number.

    Args:
        alphas_cumprod: (n,) abar by step.
    """

    top = 1.0

    def __init__(self, alphas_cumprod: Tensor, predicts: str = "v_prediction") -> None:
        if predicts not in ("v_prediction", "epsilon"):
            raise ValueError(f"unknown prediction type {predicts!r}; this adapter knows v_prediction and epsilon")
        self.alphas_cumprod, self.predicts = alphas_cumprod.float(), predicts

    def time(self, level: Tensor) -> Tensor:
        return (level * len(self.alphas_cumprod)).round().long().sub(1).clamp_min(0)

    def scales(self, level: Tensor) -> tuple[Tensor, Tensor]:
        abar = self.alphas_cumprod.to(level.device)[self.time(level)]
        return abar.sqrt(), (1 - abar).sqrt()

    def output(self, z: Tensor, n: Tensor, level: Tensor) -> Tensor:
        a, s = self.scales(_wide(level))
        return a * n - s * z if self.predicts == "v_prediction" else n

    def signal(self, output: Tensor, x: Tensor, level: Tensor) -> Tensor:
        a, s = self.scales(_wide(level))
        return a * x - s * output if self.predicts == "v_prediction" else (x - s * output) / a.clamp_min(1e-3)

    def draw(self, count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        steps, place = len(self.alphas_cumprod), drawing_device(device, generator)
        return torch.randint(1, steps + 1, (count,), device=place, generator=generator).to(device) / steps


def _wide(level: Tensor) -> Tensor:
    """(b, s) against latents (b, c, s, h, w)."""
    return level[:, None, :, None, None]


# -------------------------------------------------------------------- time


@dataclass(frozen=True)
class Timeline:
    """Which frames the latents of a clip describe, where a causal autoencoder takes the first frame alone and then `ratio` at a
    time: frames 1 + ratio * k. Observed frames are filled up at their beginning, so that no latent mixes seen and unseen ones.

    Args:
        observed, horizon: frames. ratio: of the autoencoder.
    """

    observed: int
    horizon: int
    ratio: int

    @property
    def before(self) -> int:
        """Copies of the first frame that are put before it."""
        return -(self.observed - 1) % self.ratio

    @property
    def past(self) -> int:
        """Latents of observed frames."""
        return 1 + math.ceil((self.observed - 1) / self.ratio)

    @property
    def future(self) -> int:
        """Latents of future frames."""
        return math.ceil(self.horizon / self.ratio)

    @property
    def frames(self) -> int:
        """Frames that the latents stand for."""
        return 1 + self.ratio * (self.past + self.future - 1)

    def spans(self) -> Tensor:
        """(past + future, 2) first and last frame of each latent, after the last observed one; a latent of copies alone has its
        last before its first."""
        last = self.ratio * (torch.arange(self.past + self.future) - (self.past - 1.0))
        first = last - (self.ratio - 1)
        first[0] = last[0]
        return torch.stack([first.clamp_min(1.0 - self.observed), last], -1)


# -------------------------------------------------------------------- prompts


class Prompts:
    """Embeddings of prompts, each computed once. Text encoders are larger than many denoisers: they are no part of the adapter's
    module, keep their own device, and their weights are in no checkpoint.

    Args:
        encode: a prompt to named tensors without a batch. encoders: the networks that it runs.
    """

    def __init__(self, encode: Callable[[str], dict[str, Tensor]], *encoders: nn.Module) -> None:
        self.encode, self.encoders = encode, encoders
        self.known: dict[str, dict[str, Tensor]] = {}

    @classmethod
    def by_encoder(cls, tokenizer: Any, encoder: Any, length: int, masked: bool = False, unheard: bool = False) -> Self:
        """The last hidden states "text" (length, d) of a text encoder, filled up or cut to `length` tokens. Where `masked`, the
        encoder does not see what is filled up, and "text_mask" (length,) is False there; with `unheard`, the empty prompt is filled
        up altogether."""
        encoder.requires_grad_(False).eval()

        def encode(prompt: str) -> dict[str, Tensor]:
            tokens = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            ids, attended = tokens.input_ids.to(encoder.device), tokens.attention_mask.to(encoder.device)
            if unheard and not prompt:
                ids, attended = torch.zeros_like(ids), torch.zeros_like(attended)
            mask = attended if masked else None
            text = encoder(ids, attention_mask=mask)[0][0]
            return {"text": text} if mask is None else {"text": text, "text_mask": mask[0].bool()}

        return cls(encode, encoder)

    def to(self, device: str) -> None:
        """Move the encoders."""
        for encoder in self.encoders:
            encoder.to(device)

    def __call__(self, prompts: list[str] | None, b: int, device: torch.device) -> dict[str, Tensor]:
        """Tensors with a batch of b for b prompts; None is the empty one for all.

        Raises:
            ValueError: not one prompt a clip.
        """
        prompts = [""] * b if prompts is None else prompts
        if len(prompts) != b:
            raise ValueError(f"{len(prompts)} prompts for {b} clips; give one each")
        for prompt in set(prompts) - self.known.keys():
            # what is kept must not depend on who asks first: training does so in another precision
            with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
                self.known[prompt] = self.encode(prompt)
        found = [self.known[prompt] for prompt in prompts]
        return {name: torch.stack([each[name] for each in found]).to(device) for name in found[0]}


# -------------------------------------------------------------------- transformers


def block_taps(taps: Sequence[str] | None, denoiser: nn.Module, depth: float, *stacks: str) -> tuple[str, ...]:
    """The taps asked for, or the block at a `depth` from 0 to 1 of a transformer.

    Args:
        stacks: names of its lists of blocks in their order; default transformer_blocks.

    Raises:
        ValueError: a tap that is no block.
    """
    counts = {stack: len(getattr(denoiser, stack)) for stack in stacks or ("transformer_blocks",)}
    blocks = [f"{stack}.{i}" for stack, count in counts.items() for i in range(count)]
    taps = (blocks[int(depth * len(blocks))],) if taps is None else tuple(taps)
    if unknown := sorted(set(taps) - set(blocks)):
        choices = ", ".join(f"{s}.0-{n - 1}" for s, n in counts.items())
        raise ValueError(f"unknown taps {unknown}; choose from {choices}{did_you_mean(unknown, blocks)}")
    return taps


def check_seen(level: float) -> None:
    """Of a model that sees observed frames under noise alone. Raises ValueError for pure noise."""
    if level >= 1:
        raise ValueError(f"level {level:g} is pure noise, which tells this model nothing of observed frames; choose a lower one")


def check_all_seen(level: float | None, top: float, max_context: int) -> None:
    """Of a model that is given the first observed frame as it is, and sees the others under noise alone; level None is the top one.
    Raises ValueError where there are others and nothing is seen of them."""
    if max_context > 1 and level in (None, top):
        raise ValueError(
            f"at level {top:g} the model does not see all of {max_context} observed frames; choose a level below {top:g}, or "
            "max_context 1"
        )


def token_maps(tokens: Tensor, grid: tuple[int, int, int], patch: int = 1) -> Tensor:
    """Tokens (b, s h w / patch^2, c), frame by frame and row by row, as maps (b, s, c, h / patch, w / patch)."""
    s, h, w = grid
    return tokens.unflatten(1, (s, h // patch, w // patch)).movedim(-1, 2)


# -------------------------------------------------------------------- the adapter


@dataclass(frozen=True)
class _Seen:
    """Observed frames (b, n, 3, H, W) in [-1, 1], filled up, their latents, and what the denoiser is told of them."""

    frames: Tensor
    latents: Tensor
    timeline: Timeline
    condition: dict[str, Tensor]


@dataclass(frozen=True)
class _Noised:
    """Latents x (b, c, s, h, w) at levels (b, s), and what the network should say of them."""

    x: Tensor
    level: Tensor
    wanted: Tensor

    def loss(self, answer: Tensor, timeline: Timeline) -> Tensor:
        """The mean squared error on the future."""
        return (answer - self.wanted)[:, :, timeline.past :].float().square().mean()


class LatentVideoBackbone(VideoBackbone):
    """Features of a pretrained latent video diffusion model. Weights of anything but the denoiser are never trained.

    Args:
        denoiser, vae: the model's parts. process: its noise. taps: submodules of the denoiser whose outputs are the maps; several
            are brought to the finest one's grid and concatenated. level: where features are read, in the process's units.
        denoising_steps: by which the future is drawn down to the level. channels, strides: of each tap's maps; strides in pixels.
        ratio: frames of each latent after the first. contexts, max_horizon: as of `FeatureSpec`. size_multiple: of the image.

    Raises:
        ValueError: no tap, an unknown one, or a level outside (0, process.top].
    """

    denoiser: Any
    vae: Any  # parts of another library, whose types say little
    clean_past = False
    """Whether the model takes observed latents without noise, with a level of their own."""
    stack = ""
    """The denoiser's list of blocks, where each needs those before it alone, so that the first ones can be loaded without the rest;
    empty where there is no such list."""
    depth = 0.5
    """Of the block in the stack that is read unless taps are given, from 0 to 1."""
    hears_text = True
    """Whether the model is told prompts."""
    _runs_on: torch.device | None = None
    """Where parts are moved to run; None for a model that is not offloaded."""
    attention: str | None = None
    attentions: tuple[str, ...] = ("sdpa",)
    """Kernels of attention that can be chosen for the denoiser."""

    def __init__(
        self,
        denoiser: nn.Module,
        vae: nn.Module,
        *,
        process: NoiseProcess,
        taps: Sequence[str],
        channels: Sequence[int],
        strides: Sequence[int],
        level: float | None,
        denoising_steps: int,
        ratio: int,
        contexts: tuple[int, int],
        max_horizon: int,
        size_multiple: int,
    ) -> None:
        super().__init__()
        level = process.top if level is None else level
        if not taps or not 0 < level <= process.top or denoising_steps < 1:
            raise ValueError(
                f"taps must not be empty, 0 < level <= {process.top:g}, denoising_steps >= 1; got {list(taps)}, {level}, "
                f"{denoising_steps}"
            )
        known = dict(denoiser.named_modules())
        if unknown := [tap for tap in taps if tap not in known]:
            blocks = [k for k in known if k.count(".") == 1]
            raise ValueError(f"unknown taps {unknown}; {type(denoiser).__name__} has {blocks}{did_you_mean(unknown, known)}")
        self.denoiser, self.vae = denoiser, vae
        self.process, self.taps, self.level, self.denoising_steps, self.ratio = process, tuple(taps), level, denoising_steps, ratio
        self.spec = FeatureSpec(
            sum(channels), min(strides), span=ratio, predicts=max_horizon > 0, contexts=contexts, max_horizon=max_horizon,
            size_multiple=size_multiple, generative=max_horizon >= ratio,  # whole latents of the future alone
        )  # fmt: skip
        vae.requires_grad_(False).eval()

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        *,
        revision: str | None = None,
        dtype: str = "float32",
        device: str | None = None,
        truncate: bool = False,
        lora_rank: int = 0,
        gradient_checkpointing: bool = False,
        attention: str | None = None,
        offload: Offload = "none",
        text_device: str | None = None,
        **options: Any,
    ) -> Self:
        """Load a model's parts.

        Args:
            source: hub id or local folder. revision: branch, tag or commit on the hub. dtype: of the weights, such as "bfloat16".
            device: where the model goes, prompts' encoders excepted. truncate: load the denoiser's blocks up to the last tap alone.
                Maps are the same; there is no generative loss, and below the top level no future, which is drawn by the whole.
            lora_rank: above 0, low-rank layers are added to the denoiser's attention and they alone are trained (Hu et al. 2022;
                needs the package peft).
            gradient_checkpointing: training takes less memory and a third more time. attention: of the denoiser, one of
                `attentions`; None leaves it to the library.
            offload: for frozen use of a model larger than the device: "model" has the autoencoder, the image encoder and the
                denoiser there one at a time, while they run; "blocks" the denoiser's blocks one at a time, which takes least memory
                and most time, and the other parts always. text_device: where prompts' encoders go; the CPU without, which is slow
                where one looks at every clip, as hunyuan-i2v's does. options: of the constructor.

        Raises:
            FileNotFoundError, ValueError: see `load_part` and `check_choices`.
            ImportError: peft or xformers is asked for and not installed.
        """
        cls.check_choices(
            device=device, truncate=truncate, lora_rank=lora_rank, gradient_checkpointing=gradient_checkpointing,
            attention=attention, offload=offload, text_device=text_device, taps=options.get("taps"),
        )  # fmt: skip
        model = Source(source, revision, dtype)
        if truncate:
            model, options["taps"] = cls._up_to_last_tap(model, options.get("taps"))
        backbone = cls(**cls.load_parts(model), **options)
        if text_device is not None:
            backbone.move_text(text_device)
        if truncate:
            backbone._forgo_answer()
        if attention is not None:
            set_denoiser_attention(backbone.denoiser, attention)
            backbone.attention = attention
        if gradient_checkpointing:
            backbone.denoiser.enable_gradient_checkpointing()
        if lora_rank:
            backbone.add_lora(lora_rank)
        if offload == "none" or device is None:
            return backbone.to(device)
        backbone.requires_grad_(False)
        backbone.spec = replace(backbone.spec, generative=False)  # its loss is of training
        backbone._runs_on = torch.device(device)
        parts = [backbone.vae, getattr(backbone, "image_encoder", None), backbone.denoiser]
        offload_parts([part for part in parts if part is not None], offload, backbone._runs_on)
        return backbone

    @classmethod
    def check_choices(
        cls,
        *,
        device: str | None = None,
        truncate: bool = False,
        lora_rank: int = 0,
        gradient_checkpointing: bool = False,
        attention: str | None = None,
        offload: str = "none",
        text_device: str | None = None,
        taps: Sequence[str] | None = None,
        **others: Any,
    ) -> None:
        """Refuse options of `from_pretrained` before anything is loaded.

        Raises:
            ValueError, ImportError: as of `check_loading`, `check_attention` and `check_offload`; or the denoiser is no stack of
                blocks to truncate.
        """
        check_loading(device, lora_rank, taps)
        check_loading(text_device, 0, None)
        if text_device is not None and not cls.hears_text:
            raise ValueError(f"{cls.__name__} is told no text: leave text_device out")
        check_offload(offload, device, trained=bool(lora_rank or gradient_checkpointing))
        if attention is not None:
            check_attention(attention, cls.attentions, cls.__name__)
        if truncate and not cls.stack:
            raise ValueError(f"{cls.__name__} cannot be truncated: blocks need others than those before them; leave truncate out")

    @classmethod
    def _up_to_last_tap(cls, source: Source, taps: Sequence[str] | None) -> tuple[Source, tuple[str, ...]]:
        """The source of the blocks that are needed, and the taps.

        Raises:
            ValueError: a tap is none of the denoiser's blocks, or it is of another kind, whose config does not count them.
        """
        config = load_part(Config, source, "transformer")
        if not isinstance(count := config.get("num_layers"), int):
            raise ValueError(
                f"the config.json of {source.name}/transformer does not say num_layers: it is of another kind of model, of class "
                f"{config.get('_class_name', 'unknown')}"
            )
        outline = nn.ModuleDict({cls.stack: nn.ModuleList(nn.Identity() for _ in range(count))})
        taps = block_taps(taps, outline, cls.depth, cls.stack)
        return replace(source, blocks=1 + max(int(tap.rpartition(".")[2]) for tap in taps)), taps

    def _forgo_answer(self) -> None:
        """Declare what remains where the denoiser's own output means nothing."""
        horizon = self.spec.max_horizon if self.level == self.process.top else 0
        self.spec = replace(self.spec, generative=False, predicts=horizon > 0, max_horizon=horizon)

    @classmethod
    @abstractmethod
    def load_parts(cls, source: Source) -> dict[str, Any]:
        """The constructor's positional arguments by name."""

    def add_lora(self, rank: int) -> None:
        """Freeze the denoiser and train low-rank layers beside its attention's projections."""
        insert_lora(self.denoiser, rank, ["to_q", "to_k", "to_v", "to_out.0"])
        self.requires_grad_(True)

    # ---------------------------------------------------------------- what a model says of itself

    @abstractmethod
    def encode(self, frames: Tensor) -> Tensor:
        """Latents (b, c, s, h, w), as the denoiser knows them, of frames (b, 1 + ratio * k, 3, H, W) in [-1, 1]."""

    @abstractmethod
    def condition(self, past: Tensor, latents: Tensor, timeline: Timeline, prompts: list[str] | None) -> dict[str, Tensor]:
        """What the denoiser is told besides the noisy latents, each with the batch first.

        Args:
            past: (b, n, 3, H, W) observed frames in [-1, 1], filled up. latents: theirs, without noise.
        """

    @abstractmethod
    def denoise(self, x: Tensor, time: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The denoiser's answer (b, c, s, h, w) for what it is shown x (b, c, s, h, w) and told time (b, s)."""

    @abstractmethod
    def tap_map(self, output: Tensor, b: int, grid: tuple[int, int, int]) -> Tensor:
        """A tap's output as maps (b, s, c, h, w); grid (s, h, w) is that of the latents."""

    # ---------------------------------------------------------------- the contract

    def settings(self) -> dict[str, Any]:
        """See `VideoBackbone.settings`; the noise process, what the parts' configs say, and what is told are among them."""
        process = {name: v.tolist() if isinstance(v, Tensor) else v for name, v in vars(self.process).items()}
        told = {name: value.float().tolist() for name, value in sorted(self.told().items())}
        text = hashlib.sha256(json.dumps(told).encode()).hexdigest() if told else None
        return {**super().settings(), "process": [type(self.process).__name__, process], "configs": configs(self), "text": text}

    def move_text(self, device: str) -> None:
        """Have prompts' encoders, which are no part of the module, run elsewhere."""
        self.prompts.to(device)

    def told(self) -> dict[str, Tensor]:
        """The embeddings of the empty prompt, of models that take text."""
        prompts = getattr(self, "prompts", None)
        return {} if prompts is None else prompts(None, 1, torch.device("cpu"))

    @property
    def offloaded(self) -> bool:
        """Whether parts wait on the CPU until they run."""
        return self._runs_on is not None

    @property
    def device(self) -> torch.device:
        return self._runs_on or super().device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """An offloaded model is moved by its hooks alone."""
        return self if self.offloaded else super()._apply(fn, recurse)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Of the denoiser, or, where it has them, of its LoRA layers alone.

        Raises:
            ValueError: an offloaded model is to be trained.
        """
        if requires_grad and self.offloaded:
            raise ValueError('an offloaded model is not trained: freeze it (--train heads) or leave out "offload"')
        lora = [p for name, p in self.denoiser.named_parameters() if "lora_" in name]
        for parameter in lora or self.denoiser.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def train(self, mode: bool = True) -> Self:
        """Of the denoiser; what is frozen stays as it is in use."""
        super().train(False)
        self.denoiser.train(mode)
        return self

    def features(
        self,
        video: Tensor,
        *,
        horizon: int = 0,
        since: float | None = None,
        prompts: list[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> VideoFeatures:
        """See `VideoBackbone.features`. Without a `generator` the noise is that of seed 0; every clip of a batch has the same."""
        self.spec.check(video, horizon)
        timeline = Timeline(video.shape[1], horizon, self.ratio)
        past = self._filled(video, timeline)
        # parts of an offloaded model have left the device by the time that gradients would pass through them
        with torch.no_grad() if self.offloaded else contextlib.nullcontext():
            latents = self.encode(past)
            condition = self.condition(past, latents, timeline, prompts)
            try:
                x, level = self._at_level(latents, timeline, condition, generator)
                with capture(self.denoiser, *self.taps, stop=True) as seen:
                    self._answer(x, level, condition)
            finally:
                if self.offloaded:
                    back_to_cpu(self.denoiser)
            return self._wrap(seen, x, timeline, since)

    def joint(
        self,
        clip: Tensor,
        observed: int,
        *,
        since: float | None = None,
        prompts: list[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[VideoFeatures, Tensor]:
        """See `VideoBackbone.joint`. The batch goes through twice in one forward: at the level of features, without the future, and
        at random levels, where the loss is taken."""
        seen = self._seen(clip, observed, prompts)
        x, level = self._at_level(seen.latents, seen.timeline, seen.condition, generator)
        noised = self._noised(clip, seen, generator)
        twice = {name: torch.cat([value, value]) for name, value in seen.condition.items()}
        with capture(self.denoiser, *self.taps) as taps:
            answer = self._answer(torch.cat([x, noised.x]), torch.cat([level, noised.level]), twice)[len(clip) :]
        half = {name: output.unflatten(0, (2, -1))[0] for name, output in taps.items()}
        return self._wrap(half, x, seen.timeline, since), noised.loss(answer, seen.timeline)

    def generative_loss(self, clip: Tensor, observed: int, *, generator: torch.Generator | None = None) -> Tensor:
        """See `VideoBackbone.generative_loss`. The batch goes through once, at random levels."""
        seen = self._seen(clip, observed, None)
        noised = self._noised(clip, seen, generator)
        return noised.loss(self._answer(noised.x, noised.level, seen.condition), seen.timeline)

    # ---------------------------------------------------------------- how it is done

    def _seen(self, clip: Tensor, observed: int, prompts: list[str] | None) -> _Seen:
        """What training clips show of themselves.

        Raises:
            TypeError: there is no generative loss. ValueError: clips that are not allowed, or no whole latents of future frames.
        """
        if not self.spec.generative:
            super().joint(clip, observed)
        video, horizon = clip[:, :observed], clip.shape[1] - observed
        self.spec.check(video, horizon)
        if horizon < 1 or horizon % self.ratio:
            raise ValueError(f"joint needs a multiple of {self.ratio} future frames, got {horizon}; crop the clip")
        timeline = Timeline(observed, horizon, self.ratio)
        past = self._filled(video, timeline)
        latents = self.encode(past)
        return _Seen(past, latents, timeline, self.condition(past, latents, timeline, prompts))

    def _noised(self, clip: Tensor, seen: _Seen, generator: torch.Generator | None) -> _Noised:
        """Clips at random levels of noise."""
        past = seen.timeline.past
        with torch.no_grad():
            signal = self.encode(torch.cat([seen.frames, clip[:, -seen.timeline.horizon :] * 2 - 1], 1))
            # some autoencoders normalise over time: observed latents must not tell of the future
            signal = torch.cat([seen.latents, signal[:, :, past:]], 2)
        place = drawing_device(signal.device, generator)
        noise = torch.randn(signal.shape, generator=generator, device=place, dtype=signal.dtype).to(signal.device)
        level = self._levels(self.process.draw(len(clip), clip.device, generator), seen.timeline)
        return _Noised(self.process.noisy(signal, noise, level), level, self.process.output(signal, noise, level))

    def _filled(self, video: Tensor, timeline: Timeline) -> Tensor:
        return torch.cat([video[:, :1].expand(-1, timeline.before, -1, -1, -1), video], 1) * 2 - 1

    def _levels(self, level: Tensor, timeline: Timeline) -> Tensor:
        """(b,) to (b, s): observed latents have none where the model takes them clean."""
        wide = level[:, None].repeat(1, timeline.past + timeline.future)
        if self.clean_past:
            wide[:, : timeline.past] = 0
        return wide

    def _answer(self, x: Tensor, level: Tensor, condition: dict[str, Tensor]) -> Tensor:
        return self.denoise(self.process.network_input(x, level), self.process.time(level), condition)

    def _at_level(
        self, latents: Tensor, timeline: Timeline, condition: dict[str, Tensor], generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Latents (b, c, s, h, w) of past and future at the level of features, and the levels (b, s) of each. The future is drawn
        by Euler steps of the noise process, while the past is held at what is known of it."""
        b, c, past, h, w = latents.shape
        generator = generator or torch.Generator().manual_seed(0)  # of one kind of device: others draw other numbers
        shape = (1, c, past + timeline.future, h, w)
        noise = torch.randn(shape, generator=generator, device=generator.device).to(latents).expand(b, -1, -1, -1, -1)
        known = F.pad(latents, (0, 0, 0, 0, 0, timeline.future))
        whole = lambda level: self._levels(latents.new_full((b,), level, dtype=torch.float32), timeline)  # noqa: E731
        if not timeline.future or self.level == self.process.top:
            return self.process.noisy(known, noise, whole(self.level)), whole(self.level)
        x = self.process.noisy(known, noise, whole(self.process.top))
        with torch.no_grad():
            for now, after in pairwise(self.process.levels(self.level, self.denoising_steps)):
                signal = self.process.signal(self._answer(x, whole(now), condition), x, whole(now))
                drawn = self.process.noisy(signal, self.process.noise(x, signal, whole(now)), whole(after))
                held = self.process.noisy(known, noise, whole(after))
                x = torch.cat([held[:, :, :past], drawn[:, :, past:]], 2)
        # gradients pass through what is observed, not through the drawing
        held = self.process.noisy(known, noise, whole(self.level))
        return torch.cat([held[:, :, :past], x[:, :, past:]], 2), whole(self.level)

    def _wrap(self, seen: dict[str, Tensor], x: Tensor, timeline: Timeline, since: float | None) -> VideoFeatures:
        grid = (x.shape[2], x.shape[3], x.shape[4])
        maps = joined([self.tap_map(seen[tap], len(x), grid) for tap in self.taps])
        spans = timeline.spans().to(x.device)
        kept = (spans[:, 1] >= spans[:, 0]) & (spans[:, 1] >= min(-math.inf if since is None else since, 0.0))
        spans = spans[kept]
        affine = stride_affine(self.spec.stride, device=x.device)
        return VideoFeatures(maps[:, kept].float(), spans.mean(-1), spans, affine)
