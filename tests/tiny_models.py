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


def t5(folder: Path, width: int = 16) -> None:
    """A T5 encoder and its tokenizer of single letters."""
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    letters = [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters]
    tokenizer = T5TokenizerFast(vocab=pieces, extra_ids=0)
    config = T5Config(vocab_size=len(pieces), d_model=width, d_ff=32, d_kv=8, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")


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
    """save: writes a tiny model in the layout of the real one. options: of `from_pretrained`, which keep it quick."""

    save: Callable[[Path], None]
    options: dict[str, Any]


TINY = {
    "svd": Tiny(svd, {"max_context": 3, "max_horizon": 4}),
    "ltx": Tiny(ltx, {"max_context": 4, "max_horizon": 9}),
    "ltx-0.9.5": Tiny(functools.partial(ltx, newer=True), {"max_context": 10, "max_horizon": 8}),
    "hunyuan": Tiny(hunyuan, {"max_context": 3, "max_horizon": 5, "denoising_steps": 1}),
    "hunyuan-i2v": Tiny(functools.partial(hunyuan, image=True), {"max_horizon": 8}),
    "hunyuan-1.5": Tiny(hunyuan15, {"max_context": 3, "max_horizon": 5, "denoising_steps": 1}),
    "hunyuan-1.5-i2v": Tiny(functools.partial(hunyuan15, image=True), {"max_horizon": 8}),
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
