"""Models larger than the GPU: their parts wait on the CPU, and are on the device while they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from accelerate import cpu_offload_with_hook
from torch import nn

Offload = Literal["none", "model", "blocks"]
"""model: one part of a model at a time is on the device. blocks: of its denoiser one block at a time, and the other parts."""


def check_offload(offload: str, device: str | None, trained: bool) -> None:
    """Refuse a choice before anything is loaded.

    Args:
        trained: whether options are given that only training needs.

    Raises:
        ValueError: an unknown choice, no device to run on, or a model that is to be trained.
    """
    if offload not in get_args(Offload):
        raise ValueError(f"unknown offload {offload!r}; choose from {list(get_args(Offload))}")
    if offload != "none" and device is None:
        raise ValueError(f'offload {offload!r} needs the device on which parts run, such as "device": "cuda"')
    if offload != "none" and trained:
        raise ValueError(f"a model with offload {offload!r} is not trained: leave out lora_rank and gradient_checkpointing")


def offload_parts(parts: Sequence[Any], offload: Offload, device: torch.device) -> None:
    """Hook a model's parts, so that they are moved where and when they are needed.

    Args:
        parts: in the order in which they run, the denoiser, of diffusers, last. offload: "model" or "blocks".
    """
    if offload == "model":
        hook = None
        for part in parts:
            _, hook = cpu_offload_with_hook(part, device, hook)
        return
    *others, denoiser = parts
    for part in others:
        part.to(device)
    denoiser.enable_group_offload(onload_device=device, offload_type="block_level", num_blocks_per_group=1)


def back_to_cpu(denoiser: nn.Module) -> None:
    """Move all of a denoiser: hooks leave there what was running when a forward was stopped early."""
    nn.Module.to(denoiser, "cpu")  # diffusers' own `to` does nothing where there are hooks of blocks
