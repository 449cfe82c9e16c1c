"""What networks are calculated in: bf16 autocast where the hardware has instructions for it, else float32.

A CPU without them emulates bf16: matrix products and convolutions are then five times slower than in float32, trainings twice to
three times.
"""

from __future__ import annotations

import functools

import torch


@functools.cache
def bf16_pays(device: str) -> bool:
    """Whether bf16 is faster than float32 on a type of device, such as "cpu" or "cuda"; unknown ones count as not."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # private, but the oldest torch that setup.py takes has no public name for them
    return device == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def precision_of(device: torch.device) -> str:
    """Of calculations on a device, as it is told beside figures: "bf16" or "float32"."""
    return "bf16" if bf16_pays(device.type) else "float32"


def autocast(device: torch.device) -> torch.autocast:
    """The context that networks act and are measured in."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16_pays(device.type))
