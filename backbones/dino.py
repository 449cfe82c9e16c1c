"""DINOv2 (Oquab et al. 2023) and DINOv3 (Siméoni et al. 2025): image models whose patches are good features without labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from torch import Tensor
from transformers import AutoModel, Dinov2Model, DINOv3ConvNextModel, DINOv3ViTModel

from backbones.encoders import ImageBackbone, side


class Dinov2Backbone(ImageBackbone):
    """DINOv2, with or without registers.

    Args:
        model: the transformer. taps: `encoder.layer.i`, or `layernorm`, the one after the last block.
        scale: see `EncoderBackbone`. max_context: most observed frames.

    Raises:
        ValueError: see `EncoderBackbone`.
    """

    kind = AutoModel  # with registers it is another class
    lora_layers: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")

    def __init__(
        self, model: Dinov2Model, *, taps: Sequence[str] = ("layernorm",), scale: float = 1.0, max_context: int = 16
    ) -> None:
        self.skip = 1 + getattr(model.config, "num_register_tokens", 0)
        super().__init__(model, taps=taps, multiple=side(model.config.patch_size), scale=scale, max_context=max_context)


class Dinov3Backbone(Dinov2Backbone):
    """DINOv3's transformers. Arguments and errors as of `Dinov2Backbone`, with taps `model.layer.i` and `norm`."""

    kind = DINOv3ViTModel
    blocks, norm = "model.layer", "norm"

    def __init__(
        self, model: DINOv3ViTModel, *, taps: Sequence[str] = ("norm",), scale: float = 1.0, max_context: int = 16
    ) -> None:
        super().__init__(model, taps=taps, scale=scale, max_context=max_context)

    def train(self, mode: bool = True) -> Self:
        """Positions stay what they are: in training the model would stretch them by chance, and no generator reaches that."""
        super().train(mode)
        self.model.rope_embeddings.train(False)
        return self


class Dinov3ConvNextBackbone(ImageBackbone):
    """DINOv3's convolutional networks.

    Args:
        model: the network. taps: `model.stages.i`, of strides 4, 8, 16 and 32. scale: see `EncoderBackbone`.
        max_context: most observed frames.

    Raises:
        ValueError: see `EncoderBackbone`.
    """

    kind = DINOv3ConvNextModel
    stem = ()
    blocks, norm = "model.stages", None
    depth_option = None
    lora_layers = ("pointwise_conv1", "pointwise_conv2")
    checkpointing = False
    attentions = ()

    def __init__(
        self,
        model: DINOv3ConvNextModel,
        *,
        taps: Sequence[str] = ("model.stages.1", "model.stages.2"),
        scale: float = 1.0,
        max_context: int = 16,
    ) -> None:
        coarsest = 4 * 2 ** (len(model.config.hidden_sizes) - 1)
        super().__init__(model, taps=taps, multiple=coarsest, scale=scale, max_context=max_context)

    def tap_shape(self, tap: str) -> tuple[int, int]:
        stage = int(tap.rpartition(".")[2])
        return self.model.config.hidden_sizes[stage], 4 * 2**stage

    def tap_map(self, output: Tensor, b: int, grid: tuple[int, int, int]) -> Tensor:
        return output.unflatten(0, (b, -1))
