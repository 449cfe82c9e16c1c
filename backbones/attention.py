"""Which kernels compute a model's attention: chosen for that model alone, and seen to have been.

Left to themselves the libraries ignore a choice that a model does not know, or make it for the whole process.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch


def check_attention(attention: str, possible: Sequence[str], owner: str) -> None:
    """Refuse a choice before anything is loaded.

    Args:
        possible: choices that are right for the model. owner: its name.

    Raises:
        ValueError: it is none of them, or there is no GPU for it. ImportError: its package is not installed.
    """
    if attention not in possible:
        raise ValueError(
            f"{owner} cannot be given attention {attention!r} (it would be ignored, or lose masks, text or places): "
            + (f"choose from {list(possible)} or leave it out" if possible else "leave it out")
        )
    if attention == "xformers" and not torch.cuda.is_available():
        raise ValueError("attention 'xformers' needs a CUDA GPU and there is none: leave it out for torch's own")
    if attention == "xformers" and find_spec("xformers") is None:
        raise ImportError("attention 'xformers' needs the package xformers: pip install xformers")


def set_denoiser_attention(denoiser: Any, attention: str) -> None:
    """Have all of a diffusers model's attention computed by "sdpa" (torch's own) or "xformers".

    Raises:
        ValueError: some of it would go on as before. RuntimeError: the package is too old.
    """
    # here, since encoders do without diffusers
    from diffusers.models import attention_processor as kinds
    from diffusers.models.attention_dispatch import attention_backend

    direct = {
        "sdpa": {kinds.AttnProcessor2_0, kinds.CogVideoXAttnProcessor2_0, kinds.MochiAttnProcessor2_0},
        "xformers": {kinds.XFormersAttnProcessor},
    }[attention]  # that always compute it in this way
    backend = "native" if attention == "sdpa" else attention
    with attention_backend():  # the library's call changes the whole process's choice too; this puts that back
        denoiser.set_attention_backend(backend)
    if attention == "xformers" and any(type(each) is kinds.AttnProcessor2_0 for each in attention_processors(denoiser)):
        denoiser.enable_xformers_memory_efficient_attention()  # of U-Nets, which the call above does not reach
    processors = attention_processors(denoiser)
    unmoved = {
        type(each).__name__
        for each in processors
        if getattr(each, "_attention_backend", None) != backend and type(each) not in direct
    }
    if unmoved or not processors:
        raise ValueError(
            f"{type(denoiser).__name__} does not follow the choice of attention {attention!r} ({sorted(unmoved)} stay): leave it "
            "out"
        )


def attention_processors(denoiser: Any) -> list[Any]:
    """What computes attention in each layer of a diffusers model that has some."""
    return [part.processor for part in denoiser.modules() if getattr(part, "processor", None) is not None]


def set_encoder_attention(model: Any, attention: str) -> None:
    """Have all of a transformers model's attention computed by "sdpa" or "eager" (plain matrix products).

    Raises:
        ValueError: some of it would go on as before.
    """
    model.set_attn_implementation(attention)
    found = {part.config._attn_implementation for part in model.modules() if hasattr(part, "config")}
    if found != {attention}:
        raise ValueError(f"{type(model).__name__} stays with attention {sorted(found)}, {attention!r} was asked for: leave it out")
