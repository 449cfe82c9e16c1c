"""Video transformers that learnt to classify clips: TimeSformer (Bertasius et al. 2021) and ViViT (Arnab et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from transformers import TimesformerModel, VivitModel

from backbones.encoders import HALF, EncoderBackbone, side, token_maps


class _Classifier(EncoderBackbone):
    """What both share: clips of a fixed length and square frames, and a class token that comes first.

    Args:
        taps: blocks by number or `layernorm`; None for the block at three quarters of the depth, since the last ones give up places
            for the sake of the class. scale: see `EncoderBackbone`.

    Raises:
        ValueError: see `EncoderBackbone`.
    """

    def __init__(self, model, patch: int, span: int, taps: Sequence[str] | None, scale: float) -> None:
        config, size = model.config, side(model.config.image_size)
        self.row, self.steps = size // patch, config.num_frames // span
        super().__init__(
            model, taps=taps or [f"{self.blocks}.{3 * config.num_hidden_layers // 4 - 1}"], contexts=(1, config.num_frames),
            clip=config.num_frames, span=span, multiple=size, most=size, scale=scale,
        )  # fmt: skip

    def run(self, frames: Tensor, grid: tuple[int, int, int]) -> None:
        self.model(frames)


class TimesformerBackbone(_Classifier):
    """TimeSformer with divided attention; one map a frame. Arguments and errors as above."""

    kind = TimesformerModel
    lora_layers = ("qkv", "attention.output.dense", "temporal_attention.output.dense")
    attentions = ("eager",)
    mean, std = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)

    def __init__(self, model: TimesformerModel, *, taps: Sequence[str] | None = None, scale: float = 1.0) -> None:
        super().__init__(model, side(model.config.patch_size), 1, taps, scale)

    def tap_map(self, output: Tensor, b: int, grid: tuple[int, int, int]) -> Tensor:
        places = output[:, 1:].unflatten(1, (self.row, self.row, self.steps))  # time is fastest
        return places.permute(0, 3, 4, 1, 2)


class VivitBackbone(_Classifier):
    """ViViT with joint attention over space and time; one map for the frames of a tubelet. Arguments and errors as above.

    Frames are shown in [-1, 1], as the published weights saw them.
    """

    kind = VivitModel
    blocks = "layers"
    lora_layers = ("q_proj", "k_proj", "v_proj", "o_proj")
    mean, std = HALF, HALF

    def __init__(self, model: VivitModel, *, taps: Sequence[str] | None = None, scale: float = 1.0) -> None:
        span, *patch = model.config.tubelet_size
        super().__init__(model, side(patch), span, taps, scale)

    def tap_shape(self, tap: str) -> tuple[int, int]:
        return self.model.config.hidden_size, side(self.model.config.tubelet_size[1:])

    def tap_map(self, output: Tensor, b: int, grid: tuple[int, int, int]) -> Tensor:
        return token_maps(output, (self.steps, self.row, self.row), 1)
