"""Features of a video file by any backbone, and a picture of them.

    python -m backbones.extract clip.mp4 --backbone mini

writes features.safetensors (maps, times, spans and image_to_map of every stretch of the clip that the backbone sees at once, named
after the stretch's last frame) and features.png: the frames above their maps, whose first three principal components over the whole
clip are red, green and blue.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from safetensors.torch import save as save_tensors
from torch import Tensor
from tqdm import tqdm

from backbones import backbone_options, build_backbone, ready
from para_video.features import FeatureSpec, VideoBackbone, VideoFeatures
from para_video.figures import label, write_picture
from para_video.runs import command_line
from para_video.training import to_device, write_atomically
from para_video.video import count_frames, read_video

HELD = 2**30
"""Bytes of a file's frames, in float32, that are held in full size at once. Each part opens the file anew, and PyAV decodes what
lies before it."""


@dataclass(frozen=True)
class ExtractConfig:
    """Extract the features of a video file."""

    clip: Annotated[Path, tyro.conf.Positional]
    """Video file."""
    backbone: str = "mini"
    """Name in the catalogue (python -m backbones lists it), or package.module:Class."""
    options: Annotated[str, tyro.conf.arg(metavar="JSON")] = "{}"
    """Of the backbone, such as '{"tap": "coarse"}' or '{"source": "folder", "dtype": "bfloat16"}'."""
    frames: int = 8
    """Frames that are seen at once, at most as many as the backbone takes."""
    horizon: int = 0
    """Frames beyond the clip's end whose maps are predicted as well, by a backbone that predicts."""
    stride: int = 1
    """Frames of the file from one frame to the next."""
    size: int = 128
    """Shorter side in pixels; both sides are then cropped to what the backbone takes. Of one that takes frames of one size alone,
    these are scaled to that."""
    columns: int = 8
    """Maps in a row of the picture."""
    out: Path = field(default=Path("features"))
    """Folder for features.safetensors and features.png; files of these names there are replaced."""

    def __post_init__(self) -> None:
        low = {name: getattr(self, name) for name in ("frames", "stride", "size", "columns") if getattr(self, name) < 1}
        if low or self.horizon < 0:
            raise ValueError(f"these must be at least 1: {low}; and horizon at least 0, got {self.horizon}")
        backbone_options(self.backbone, self.options)  # to tell at once what is wrong with them


def clip_frames(config: ExtractConfig, spec: FeatureSpec) -> Tensor:
    """(t, 3, H, W) in [0, 1], resized and cropped about its middle to what a backbone takes.

    Raises:
        VideoError: a file that cannot be read. ValueError: a size below what the backbone takes.
    """
    if config.size < (multiple := spec.size_multiple):
        raise ValueError(f"size {config.size} is below {multiple}, of which this backbone's images are multiples; raise --size")
    first_frame = read_video(config.clip, [0]).frames
    sides = first_frame.shape[1:3]
    scale = config.size / min(sides) if spec.size is None else max(want / side for want, side in zip(spec.size, sides, strict=True))
    height, width = (round(side * scale) for side in sides)
    shown_height, shown_width = spec.size or (height - height % multiple, width - width % multiple)
    top, left = (height - shown_height) // 2, (width - shown_width) // 2
    wanted, parts = range(0, count_frames(config.clip), config.stride), []
    at_once = max(1, HELD // (4 * first_frame.nbytes))
    for first in range(0, len(wanted), at_once):
        part = torch.from_numpy(read_video(config.clip, wanted[first : first + at_once]).frames).movedim(-1, 1).float().div_(255)
        part = F.interpolate(part, (height, width), mode="bilinear", antialias=True).clamp_(0, 1)
        parts.append(part[..., top : top + shown_height, left : left + shown_width].clone())
    return torch.cat(parts)


@torch.no_grad()
def extract(backbone: VideoBackbone, frames: Tensor, at_once: int, horizon: int = 0) -> list[tuple[int, VideoFeatures]]:
    """Features of a clip (t, 3, H, W), stretch by stretch of at most `at_once` frames, each with the index of its last frame, from
    which its times count. The last stretch alone looks `horizon` frames beyond. A backbone that needs more frames than the first
    stretch has sees copies of the first frame before it."""
    device = backbone.device
    low, high = backbone.spec.contexts
    size = max(low, min(at_once, high))
    found = []
    for end in tqdm([*range(size - 1, len(frames) - 1, size), len(frames) - 1], desc="stretches", unit="stretch"):
        part = frames[max(0, end + 1 - size) : end + 1]
        part = torch.cat([part[:1].expand(max(0, low - len(part)), -1, -1, -1), part])
        ahead = horizon if end == len(frames) - 1 else 0
        features = backbone.features(part[None].to(device), horizon=ahead)
        found.append((end, to_device(features, torch.device("cpu"))))  # those of a long clip fill a GPU
    return found


def principal_colours(maps: list[Tensor]) -> list[np.ndarray]:
    """The first three principal components of all cells of maps (c, h, w), as pictures (h, w, 3) uint8."""
    cells = torch.cat([each.flatten(1).mT.float().cpu() for each in maps])
    some = cells[:: math.ceil(len(cells) / 50_000)]
    mean = some.mean(0)
    _, _, directions = torch.linalg.svd(some - mean, full_matrices=False)
    project = lambda x: (x - mean) @ directions[:3].mT  # noqa: E731
    low, high = project(some).quantile(torch.tensor([0.02, 0.98]), 0)
    values = ((project(cells) - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    parts = values.split([each[0].numel() for each in maps])
    return [(part.view(*each.shape[1:], 3) * 255).round().byte().numpy() for each, part in zip(maps, parts, strict=True)]


def strip(frames: Tensor, found: list[tuple[int, VideoFeatures]], columns: int) -> np.ndarray:
    """Each map below the last frame that it describes; a predicted one below the last frame there is."""
    maps, panels, drawn = [], [], -1
    for end, features in found:
        for k, last in enumerate(features.spans[:, 1].tolist()):
            frame = end + int(last)
            if frame >= 0 and drawn < frame:  # the last stretch may begin before the one before it ends
                drawn = frame
                name = f"{frame}" if frame < len(frames) else f"predicted +{last:.0f}"
                picture = (frames[min(frame, len(frames) - 1)].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
                maps.append(features.maps[0, k])
                panels.append(label(picture, name))
    for k, colours in enumerate(principal_colours(maps)):
        below = F.interpolate(torch.from_numpy(colours).permute(2, 0, 1)[None].float(), frames.shape[-2:], mode="nearest")[0]
        panels[k] = np.concatenate([panels[k], below.permute(1, 2, 0).byte().numpy()])
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    rows[-1] += [np.full_like(panels[0], 255)] * (len(rows[0]) - len(rows[-1]))
    return np.concatenate([np.concatenate(row, 1) for row in rows])


def main(config: ExtractConfig) -> dict[str, Any]:
    """Extract, write, draw; returns what was said."""
    console = Console()
    torch.manual_seed(0)
    options = backbone_options(config.backbone, config.options)
    backbone = ready(build_backbone(config.backbone, **options), options)
    backbone.spec.check_horizon(config.horizon)
    config.out.mkdir(parents=True, exist_ok=True)
    if config.frames > (most := backbone.spec.contexts[1]):
        console.print(f"{config.backbone} takes {most} frames at once, not {config.frames}", style="yellow")
    frames = clip_frames(config, backbone.spec)
    found = extract(backbone, frames, config.frames, config.horizon)
    tensors: dict[str, Tensor] = {}
    for end, features in found:
        parts = {"maps": features.maps[0], "times": features.times, "spans": features.spans, "image_to_map": features.image_to_map}
        tensors |= {f"{end:06d}.{name}": value.contiguous() for name, value in parts.items()}
    about = {"backbone": config.backbone, "options": config.options, "size": json.dumps(list(frames.shape[-2:]))}
    write_atomically(config.out / "features.safetensors", save_tensors(tensors, about))
    write_picture(config.out / "features.png", strip(frames, found, config.columns))
    channels, height, width = found[0][1].maps.shape[2:]
    console.print(f"{len(frames)} frames in {len(found)} stretches, maps of {channels} channels and {height} x {width} cells")
    console.print(f"written: {config.out / 'features.safetensors'}, {config.out / 'features.png'}")
    return {"stretches": len(found), "frames": len(frames), "channels": channels, "cells": [height, width]}


if __name__ == "__main__":
    command_line(main, ExtractConfig, __doc__ or "")
