"""What adapters of encoders share: pretrained models that see frames. Sizes and frame counts, taps, tokens to maps, loading.

Frames are scaled, filled up at the right and bottom to what the model takes, and normalised here: the libraries' own processors
need torchvision. Maps are cut to what shows the image. An adapter says how its model is called and how a tap's output is laid out.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import logging as library_log

from backbones.attention import check_attention, set_encoder_attention
from backbones.loading import Source, check_loading, configs, insert_lora, load_part
from para_video.features import FeatureSpec, VideoBackbone, VideoFeatures, capture, did_you_mean, joined, stride_affine

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


class EncoderBackbone(VideoBackbone):
    """Features of a pretrained encoder. Only what the maps are made of is trained; blocks that come after the last tap are dropped.

    Args:
        model: of the library. taps: `blocks` by number, such as "encoder.layer.8", or `norm`, the norm after the last; the maps of
            several are brought to the finest one's grid and concatenated.
        contexts: (fewest, most) observed frames. clip: frames the model takes at once, where their number is fixed; fewer are
            filled up with copies of the first. span: frames that a token covers. max_horizon: as of `FeatureSpec`.
        scale: by which images are enlarged or made smaller before the model sees them; the stride of maps is the model's over it.
        multiple: to which the sides of scaled images are filled up, by repeating the edge. most: longest side the model takes.

    Raises:
        ValueError: no tap, an unknown one, or a scale that is not positive.
    """

    model: Any  # of another library, whose types say little
    kind: Any
    """What loads it: a class with `from_pretrained`."""
    stem: tuple[str, ...] = ("embeddings",)
    """Submodules before the blocks."""
    blocks: str = "encoder.layer"
    norm: str | None = "layernorm"
    depth_option: str | None = "num_hidden_layers"
    """The config's number of blocks: what the taps do not need is then not even loaded."""
    lora_layers: tuple[str, ...] = ()
    """Projections of a block's attention that LoRA layers are put beside."""
    checkpointing = True
    """Whether the library has gradient checkpointing for the model."""
    attention: str | None = None
    attentions: tuple[str, ...] = ("sdpa", "eager")
    """Kernels of attention that can be chosen."""
    frame_by_frame = False
    """Whether a frame's map is made of that frame alone."""
    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(
        self,
        model: nn.Module,
        *,
        taps: Sequence[str],
        contexts: tuple[int, int],
        multiple: int,
        most: int | None = None,
        clip: int | None = None,
        span: int = 1,
        max_horizon: int = 0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.model, self.taps, self.scale = model, tuple(taps), scale
        known = [f"{self.blocks}.{i}" for i in range(len(model.get_submodule(self.blocks)))]  # type: ignore[arg-type]  # a list
        known += [name for name, _ in model.named_modules() if name == self.norm]
        if unknown := [tap for tap in taps if tap not in known]:
            raise ValueError(f"unknown taps {unknown}; {type(model).__name__} has {known}{did_you_mean(unknown, known)}")
        if not taps or not scale > 0:
            raise ValueError(f"taps must not be empty and scale must be positive; got {list(taps)} and {scale}")
        self.multiple, self.most, self.clip, self.cell_sizes = multiple, most, clip, [self.tap_shape(tap)[1] for tap in taps]
        finest = min(self.cell_sizes)
        self.spec = FeatureSpec(
            sum(self.tap_shape(tap)[0] for tap in taps), finest if scale == 1 else finest / scale, span=span,
            predicts=max_horizon > 0, contexts=contexts, max_horizon=max_horizon, size_multiple=1,
        )  # fmt: skip
        if self.norm not in taps:
            del model.get_submodule(self.blocks)[depth(self.taps) :]  # type: ignore[operator]
        model.requires_grad_(False)
        self.requires_grad_(True)

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        *,
        revision: str | None = None,
        dtype: str = "float32",
        device: str | None = None,
        lora_rank: int = 0,
        gradient_checkpointing: bool = False,
        attention: str | None = None,
        **options: Any,
    ) -> Self:
        """Load a model.

        Args:
            source: hub id or local folder. revision: branch, tag or commit on the hub. dtype: of the weights, such as "bfloat16".
            device: where the model goes. lora_rank: above 0, low-rank layers are added to the attention and they alone are trained
                (Hu et al. 2022; needs the package peft).
            gradient_checkpointing: training takes less memory and a third more time. attention: one of `attentions`; None leaves
                it to the library. options: of the constructor.

        Raises:
            FileNotFoundError, ValueError: see `load_part` and `check_loading`; or weights are missing, or the model knows no LoRA,
                no checkpointing or not this attention.
            ImportError: a package is needed that is not installed.
        """
        check_loading(device, lora_rank, options.get("taps"))
        if attention is not None:
            check_attention(attention, cls.attentions, cls.__name__)
        model, missing = cls.load_model(Source(source, revision, dtype), options.get("taps"))
        try:
            backbone = cls(model, **options)
        except AttributeError as error:  # what loads by its config's word may be any model
            raise ValueError(f"{source} holds a {type(model).__name__}, which {cls.__name__} does not read ({error})") from error
        lost = sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad and name in missing)
        if lost:
            raise ValueError(
                f"{source} has no weights for {lost[:2]}: it is another kind of model, or the taps are beyond its blocks"
            )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in missing:
                    parameter.zero_()  # nothing reads it; drawn anew at each loading it would pass for another model's
        if attention is not None:
            set_encoder_attention(model, attention)
            backbone.attention = attention
        if gradient_checkpointing:
            if not getattr(model, "supports_gradient_checkpointing", False):
                raise ValueError(f"{type(model).__name__} has no gradient checkpointing; leave it out")
            model.activation_checkpointing_enable()
        if lora_rank:
            backbone.add_lora(lora_rank)
        return backbone.to(device)

    @classmethod
    def load_model(cls, source: Source, taps: Sequence[str] | None) -> tuple[Any, set[str]]:
        """The model, as deep as the taps need, and the names of the parameters that the source has no weights for."""
        options: dict[str, Any] = {"output_loading_info": True}
        if cls.depth_option and taps and cls.norm not in taps:
            options[cls.depth_option] = depth(taps)
        level = library_log.get_verbosity()
        library_log.set_verbosity_error()  # of what is left out on purpose; what is missing is looked at here
        try:
            model, info = load_part(cls.kind, source, **options)
        finally:
            library_log.set_verbosity(level)
        return model, set(info["missing_keys"])

    def lora_pattern(self) -> str:
        """Of the full names of the layers that LoRA layers are put beside.

        Raises:
            ValueError: the model has none.
        """
        if not self.lora_layers:
            raise ValueError(f"{type(self).__name__} has no layers for LoRA; leave out lora_rank")
        return rf"(.*\.)?layers?\.\d+\.(.*\.)?({'|'.join(map(re.escape, self.lora_layers))})"

    def add_lora(self, rank: int) -> None:
        """Freeze the model and train low-rank layers beside its attention's projections."""
        insert_lora(self.model, rank, self.lora_pattern())
        self.requires_grad_(True)

    # ---------------------------------------------------------------- what a model says of itself

    def tap_shape(self, tap: str) -> tuple[int, int]:
        """Channels of a tap's maps, and their stride in pixels of what the model sees."""
        return self.model.config.hidden_size, side(self.model.config.patch_size)

    @abstractmethod
    def run(self, frames: Tensor, grid: tuple[int, int, int]) -> None:
        """Call the model.

        Args:
            frames: (b, t, 3, h, w), prepared. grid: (s, h, w) cells of the finest tap that show the observed frames.
        """

    @abstractmethod
    def tap_map(self, output: Tensor, b: int, grid: tuple[int, int, int]) -> Tensor:
        """A tap's output as maps (b, s, c, h, w). They may reach beyond the grid (s, h, w) at the right and bottom."""

    # ---------------------------------------------------------------- the contract

    def settings(self) -> dict[str, Any]:
        """See `VideoBackbone.settings`; what the model's config says is among them."""
        return {**super().settings(), "configs": configs(self)}

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Of what the maps are made of, or, where there are any, of the LoRA layers alone."""
        named = dict(self.model.named_parameters())
        read = tuple(f"{name}." for name in (*self.stem, self.blocks, *self.taps))
        chosen = [p for name, p in named.items() if "lora_" in name]
        chosen = chosen or [p for name, p in named.items() if name.startswith(read) and not name.endswith("mask_token")]
        for parameter in chosen:
            parameter.requires_grad_(requires_grad)
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
        """See `VideoBackbone.features`. Neither prompts nor noise play a part."""
        self.spec.check(video, horizon)
        observed, span = video.shape[1], self.spec.span
        first = 1 - observed if since is None else max(1 - observed, min(math.ceil(since), 0))
        if self.frame_by_frame:
            video = video[:, first - 1 :]
        else:
            copies = (self.clip or span * math.ceil(observed / span)) - observed
            video = torch.cat([video[:, :1].expand(-1, copies, -1, -1, -1), video], 1)
        frames = self.prepare(video)
        past, future = frames.shape[1] // span, math.ceil(horizon / span)
        h, w = (math.ceil(n / self.spec.stride - 1e-6) for n in video.shape[-2:])
        maps = self.maps(frames, (past, h, w), future)[..., :h, :w]
        last = span * (torch.arange(past + future, device=maps.device) - (past - 1.0))
        spans = torch.stack([(last - (span - 1)).clamp_min(1.0 - observed), last], -1)
        kept = last >= first  # a map of copies alone ends before the first frame
        affine = stride_affine(self.spec.stride, device=maps.device)
        return VideoFeatures(maps[:, kept].float(), spans[kept].mean(-1), spans[kept], affine)

    def maps(self, frames: Tensor, grid: tuple[int, int, int], future: int) -> Tensor:
        """Maps (b, s + future, c, h, w) of prepared frames; see `run`."""
        with capture(self.model, *self.taps, stop=True) as seen:
            self.run(frames, grid)
        return joined([self.tap_map(seen[tap], len(frames), grid) for tap in self.taps])

    def prepare(self, video: Tensor) -> Tensor:
        """Frames (b, t, 3, H, W) in [0, 1] as the model takes them: scaled, filled up and normalised, in its precision.

        Raises:
            ValueError: they are larger than the model takes.
        """
        sides = [self.multiple * math.ceil(n * self.scale / self.multiple - 1e-6) for n in video.shape[-2:]]
        if self.most is not None and max(sides) > self.most:
            fits = math.floor(1000 * self.most / max(video.shape[-2:])) / 1000
            raise ValueError(
                f"image size {tuple(video.shape[-2:])} at scale {self.scale:g} is more than the {self.most} x {self.most} pixels "
                f"this model takes: set scale to at most {fits:g}"
            )
        frames = filled(video.flatten(0, 1), sides, self.scale)
        mean, std = (frames.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return ((frames - mean) / std).to(next(self.model.parameters()).dtype).unflatten(0, video.shape[:2])


class ImageBackbone(EncoderBackbone):
    """An image model, whose frames know nothing of each other: a baseline.

    Args:
        model, taps, scale, multiple: as of `EncoderBackbone`. max_context: most observed frames.
    """

    frame_by_frame = True
    skip = 0
    """Tokens before those of the patches."""

    def __init__(self, model: nn.Module, *, taps: Sequence[str], multiple: int, scale: float, max_context: int) -> None:
        super().__init__(model, taps=taps, contexts=(1, max_context), multiple=multiple, scale=scale)

    def run(self, frames: Tensor, grid: tuple[int, int, int]) -> None:
        self.model(frames.flatten(0, 1))

    def tap_map(self, output: Tensor, b: int, grid: tuple[int, int, int]) -> Tensor:
        return token_maps(output, (1, *grid[1:]), self.skip).reshape(b, -1, output.shape[-1], *grid[1:])


def depth(taps: Sequence[str]) -> int:
    """How many blocks lead to the last of the taps, blocks by number. 0 if none is one."""
    return max((int(number) + 1 for tap in taps if (number := tap.rpartition(".")[2]).isdigit()), default=0)


def side(size: int | Sequence[int]) -> int:
    """Of a square, as configs give it: one number, or two alike.

    Raises:
        ValueError: they differ.
    """
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) > 1:
        raise ValueError(f"this adapter takes square patches and images, got a model with {size}")
    return sides.pop()


def token_maps(tokens: Tensor, grid: tuple[int, int, int], skip: int = 0) -> Tensor:
    """Tokens (b, skip + s * h * w, c) as maps (b, s, c, h, w), for a grid (s, h, w)."""
    return tokens[:, skip:].unflatten(1, grid).movedim(-1, 2)


def filled(images: Tensor, sides: Sequence[int], scale: float) -> Tensor:
    """Images (n, 3, H, W) scaled, and filled up to sides (h, w) at the right and bottom by repeating the edge."""
    # a pixel more than is needed: sizes are rounded down, and the scale is kept exact for the sake of `image_to_map`
    beyond = [math.ceil(s / scale) + (scale != 1) - n for s, n in zip(sides, images.shape[-2:], strict=True)]
    images = F.pad(images, (0, beyond[1], 0, beyond[0]), mode="replicate")
    if scale == 1:
        return images
    images = F.interpolate(images, scale_factor=scale, mode="bilinear", antialias=scale < 1, align_corners=False)
    return images[..., : sides[0], : sides[1]]
