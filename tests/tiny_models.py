"""Tiny random models of every family, saved to disk as the real ones are."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from backbones import backbone_class
from para_video.features import VideoBackbone


def svd(folder: Path) -> None:
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    cross = "CrossAttnDownBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"
    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 32, 64, 64), down_block_types=(cross[0],) * 3 + ("DownBlockSpatioTemporal",),
        up_block_types=("UpBlockSpatioTemporal",) + (cross[1],) * 3, layers_per_block=1, cross_attention_dim=16,
        num_attention_heads=(2, 2, 4, 4), addition_time_embed_dim=8, projection_class_embeddings_input_dim=24, sample_size=8,
    )  # fmt: skip
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=1, sample_size=64
    )
    clip = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            projection_dim=16,
        )
    )
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    clip.save_pretrained(folder / "image_encoder")


@dataclass(frozen=True)
class Tiny:
    """save: writes a tiny model in the layout of the real one. options: of `from_pretrained`, which keep it quick."""

    save: Callable[[Path], None]
    options: dict[str, Any]


TINY = {"svd": Tiny(svd, {"max_context": 3, "max_horizon": 4})}
"""By name in the catalogue."""


@functools.cache
def saved(name: str) -> Path:
    """The folder of a tiny model, written once in a process."""
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    TINY[name].save(folder)
    return folder


def tiny(name: str) -> VideoBackbone:
    """A tiny model, loaded as a user loads the real one."""
    return backbone_class(name).from_pretrained(str(saved(name)), **TINY[name].options).eval()
