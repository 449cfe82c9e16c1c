"""Tiny random models of every family, saved to disk as the real ones are."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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


def text_parts(kind: str) -> dict[str, Any]:
    """A text encoder of 16 channels, T5 or UMT5, and its tokenizer."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = transformers.T5TokenizerFast(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0)
    return {"text_encoder": getattr(transformers, f"{kind}EncoderModel")(config), "tokenizer": tokenizer}


def wan_vae(patch: int | None = None) -> Any:
    """Of Wan 2.1, or with patches of pixels that of 2.2; 4 channels."""
    from diffusers import AutoencoderKLWan

    patched = {} if patch is None else {"patch_size": patch, "in_channels": 3 * patch**2, "out_channels": 3 * patch**2}
    return AutoencoderKLWan(
        base_dim=4, z_dim=4, num_res_blocks=1, latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.5, 0.4, 0.6, 0.5],
        is_residual=patch is not None, scale_factor_spatial=8 * (patch or 1), **patched,
    )  # fmt: skip


def wan(folder: Path, image: bool = False, patch: int | None = None) -> None:
    from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    clip = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    )
    sees = {"image_dim": 16, "added_kv_proj_dim": 24} if image else {}
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=12 if image else 4, out_channels=4, text_dim=16, freq_dim=16,
        ffn_dim=32, num_layers=4, **sees,
    )  # fmt: skip
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    parts = {"transformer": transformer, "vae": wan_vae(patch), "scheduler": scheduler, **text_parts("UMT5")}
    pipeline = WanImageToVideoPipeline(image_encoder=CLIPVisionModel(clip), **parts) if image else WanPipeline(**parts)
    pipeline.register_to_config(expand_timesteps=patch is not None)
    pipeline.save_pretrained(folder)


def cosmos(folder: Path) -> None:
    from diffusers import CosmosTransformer3DModel

    torch.manual_seed(0)
    transformer = CosmosTransformer3DModel(
        in_channels=5, out_channels=4, num_attention_heads=2, attention_head_dim=24, num_layers=4, mlp_ratio=1.0, text_embed_dim=16,
        adaln_lora_dim=8, max_size=(8, 16, 16), rope_scale=(1.0, 3.0, 3.0), extra_pos_embed_type=None,
    )  # fmt: skip
    # the pipeline that would save them together wants a checker of content to be built
    for name, part in {"transformer": transformer, "vae": wan_vae(), **text_parts("T5")}.items():
        part.save_pretrained(folder / name)


@dataclass(frozen=True)
class Tiny:
    """save: writes a tiny model in the layout of the real one. options: of `from_pretrained`, which keep it quick."""

    save: Callable[[Path], None]
    options: dict[str, Any]


CAUSAL = {"max_context": 6, "max_horizon": 7}
"""Frames that fill no whole latent, neither observed nor future."""

TINY = {
    "svd": Tiny(svd, {"max_context": 3, "max_horizon": 4}),
    "wan2.1-t2v-1.3b": Tiny(wan, CAUSAL),
    "wan2.1-i2v-14b": Tiny(partial(wan, image=True), CAUSAL),
    "wan2.2-ti2v-5b": Tiny(partial(wan, patch=2), CAUSAL),
    "cosmos-predict2-2b": Tiny(cosmos, CAUSAL),
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
