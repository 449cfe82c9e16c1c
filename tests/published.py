"""Backbones of the sizes that are published, on the meta device: without weights, and so without memory.

Configs are those of the published models, as far as they differ from their library's defaults.
"""

from __future__ import annotations

import functools
from typing import Any

import diffusers
import torch
import transformers

from backbones import CATALOGUE, backbone_class
from para_video.features import VideoBackbone

SD_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4, "layers_per_block": 2,
}  # fmt: skip
LTX_095_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 1024, 2048), "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "decoder_block_out_channels": (256, 512, 1024), "layers_per_block": (4, 6, 6, 2, 2), "decoder_layers_per_block": (5, 5, 5, 5),
    "spatio_temporal_scaling": (True,) * 4, "decoder_spatio_temporal_scaling": (True,) * 3, "decoder_inject_noise": (False,) * 4,
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"), "upsample_residual": (True,) * 3,
    "upsample_factor": (2, 2, 2), "timestep_conditioning": True, "spatial_compression_ratio": 32, "temporal_compression_ratio": 8,
}  # fmt: skip
WAN_22_VAE: dict[str, Any] = {
    "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "z_dim": 48, "base_dim": 160,
    "decoder_base_dim": 256, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48, "scale_factor_spatial": 16,
}  # fmt: skip
WAN: dict[str, dict[str, Any]] = {
    "wan2.1-t2v-1.3b": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "wan2.1-t2v-14b": {},
    "wan2.1-i2v-14b": {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120},
    "wan2.2-ti2v-5b": {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48},
}
COGVIDEOX_5B: dict[str, Any] = {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}
COGVIDEOX_1_5: dict[str, Any] = {
    **COGVIDEOX_5B, "patch_size_t": 2, "patch_bias": False, "sample_width": 300, "sample_height": 300,
}  # fmt: skip
COGVIDEOX: dict[str, dict[str, Any]] = {
    "cogvideox-2b": {},
    "cogvideox-5b": COGVIDEOX_5B,
    "cogvideox-5b-i2v": {**COGVIDEOX_5B, "in_channels": 32, "use_learned_positional_embeddings": True},
    "cogvideox1.5-5b": COGVIDEOX_1_5,
    "cogvideox1.5-5b-i2v": {**COGVIDEOX_1_5, "in_channels": 32, "ofs_embed_dim": 512},
}
CLIP_H: dict[str, Any] = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16, "patch_size": 14,
    "projection_dim": 1024,
}  # fmt: skip
SIGLIP_SO400M: dict[str, Any] = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 384,
    "patch_size": 14,
}  # fmt: skip
DINOV3_B: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_register_tokens": 4}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vjepa2-large": ("VJEPA2", {}),
    "vjepa2-huge": ("VJEPA2", {"hidden_size": 1280, "num_hidden_layers": 32}),
    "vjepa2-giant": ("VJEPA2", {"hidden_size": 1408, "num_hidden_layers": 40, "num_attention_heads": 22, "mlp_ratio": 48 / 11}),
    "videomae": ("VideoMAE", {}),
    "timesformer": ("Timesformer", {}),
    "vivit": ("Vivit", {}),
    "dinov2": ("Dinov2", {"image_size": 518}),
    "dinov2-registers": ("Dinov2WithRegisters", {"image_size": 518, "patch_size": 14}),
    "dinov3": ("DINOv3ViT", DINOV3_B),
    "dinov3-small": ("DINOv3ViT", {"num_register_tokens": 4}),
    "dinov3-convnext": ("DINOv3ConvNext", {}),
    "siglip": ("SiglipVision", {}),
    "siglip2": ("SiglipVision", {}),
    "siglip2-naflex": ("Siglip2Vision", {}),
}
"""What transformers calls their models and configs, and the configs."""

T5: dict[str, Any] = {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}
LLAMA_3: dict[str, Any] = {"vocab_size": 128320, "intermediate_size": 14336, "num_key_value_heads": 8}
QWEN_7B: dict[str, Any] = {
    "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4,
}  # fmt: skip
TEXT: dict[str, tuple[str, dict[str, Any]]] = {
    "t5-xxl": ("T5Encoder", T5),
    "t5-11b": ("T5Encoder", {"d_model": 1024, "d_kv": 128, "d_ff": 65536, "num_layers": 24, "num_heads": 128}),
    "umt5-xxl": ("UMT5Encoder", {"vocab_size": 256384, **T5}),
    "byt5-small": ("T5Encoder", {**T5, "vocab_size": 1510, "d_model": 1472, "d_ff": 3584, "num_layers": 12, "num_heads": 6}),
    "clip-l": ("CLIPText", {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}),
    "llama-3-8b": ("Llama", LLAMA_3),
    "llava-llama-3-8b": ("LlavaForConditionalGeneration", {"text_config": {"model_type": "llama", **LLAMA_3}}),
    "qwen2.5-7b": ("Qwen2_5_VLText", QWEN_7B),
}
"""Text encoders, as `ENCODERS`."""
TOLD_BY = {
    "wan": ["umt5-xxl"], "cosmos": ["t5-11b"], "cogvideox": ["t5-xxl"], "mochi": ["t5-xxl"], "ltx": ["t5-xxl"],
    "animatediff": ["clip-l"], "hunyuan": ["llama-3-8b", "clip-l"], "hunyuan-i2v": ["llava-llama-3-8b", "clip-l"],
    "hunyuan-1.5": ["qwen2.5-7b", "byt5-small"],
}  # fmt: skip
"""Text encoders by how the backbones' names begin; the longest beginning counts."""


def text_parameters(name: str) -> int:
    """Of the text encoders of a catalogue name's model."""
    beginnings = sorted((beginning for beginning in TOLD_BY if name.startswith(beginning)), key=len)
    return sum(parameters(encoder) for encoder in TOLD_BY[beginnings[-1]]) if beginnings else 0


@functools.cache
def parameters(encoder: str) -> int:
    """Of one of the text encoders."""
    kind, config = TEXT[encoder]
    model, configured = (kind, "Llava") if kind.startswith("Llava") else (f"{kind}Model", kind.removesuffix("Encoder"))
    with torch.device("meta"):
        built = getattr(transformers, model)(getattr(transformers, f"{configured}Config")(**config))
    return sum(parameter.numel() for parameter in built.parameters())


def published(name: str) -> VideoBackbone:
    """The backbone of a catalogue name with its default options and without a text encoder."""
    kind: Any = backbone_class(name)
    with torch.device("meta"):
        if CATALOGUE[name].source is None:
            return kind()
        if name == "efficientnet-lite0":
            from efficientnet_lite_pytorch import EfficientNet

            return kind(EfficientNet.from_name(name))
        if name in ENCODERS:
            model, config = ENCODERS[name]
            return kind(getattr(transformers, f"{model}Model")(getattr(transformers, f"{model}Config")(**config)))
        return kind(*published_parts(name))


def published_parts(name: str) -> tuple[Any, ...]:
    """The positional arguments of a diffusion model's adapter, on the device that is set."""
    image: Any = None
    given = name.endswith("i2v")
    if name in WAN:
        if "image_dim" in WAN[name]:
            image = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**CLIP_H))
        newer = name.startswith("wan2.2")
        vae: Any = diffusers.AutoencoderKLWan(**(WAN_22_VAE if newer else {}))
        return diffusers.WanTransformer3DModel(**WAN[name]), vae, None, image, newer
    if name in COGVIDEOX:
        scheduler = diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
        return diffusers.CogVideoXTransformer3DModel(**COGVIDEOX[name]), diffusers.AutoencoderKLCogVideoX(), scheduler, None
    if name.startswith("svd"):
        image = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**CLIP_H))
        return diffusers.UNetSpatioTemporalConditionModel(), diffusers.AutoencoderKLTemporalDecoder(**SD_VAE), image
    if name.startswith("ltx"):
        large = {"num_layers": 48, "attention_head_dim": 128, "cross_attention_dim": 4096} if name == "ltx-13b" else {}
        vae = diffusers.AutoencoderKLLTXVideo(**({} if name == "ltx" else LTX_095_VAE))
        return diffusers.LTXVideoTransformer3DModel(**large), vae, None
    if name.startswith("hunyuan-1.5"):
        image = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIGLIP_SO400M)) if given else None
        transformer = diffusers.HunyuanVideo15Transformer3DModel(task_type="i2v" if given else "t2v")
        return transformer, diffusers.AutoencoderKLHunyuanVideo15(), None, image
    if name.startswith("hunyuan"):
        condition = {"image_condition_type": "token_replace"} if given else {}
        return diffusers.HunyuanVideoTransformer3DModel(**condition), diffusers.AutoencoderKLHunyuanVideo(), None
    if name == "mochi":
        return diffusers.MochiTransformer3DModel(), diffusers.AutoencoderKLMochi(), None
    if name == "cosmos-predict2-2b":
        config = {"num_attention_heads": 16, "in_channels": 17, "extra_pos_embed_type": None, "rope_scale": (1.0, 3.0, 3.0)}
        return diffusers.CosmosTransformer3DModel(**config), diffusers.AutoencoderKLWan(), None
    assert name == "animatediff", f"what is published of {name}?"
    unet = diffusers.UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    vae = diffusers.AutoencoderKL(**SD_VAE, up_block_types=("UpDecoderBlock2D",) * 4)
    return diffusers.MotionAdapter(use_motion_mid_block=False), unet, vae, diffusers.DDIMScheduler(), None
