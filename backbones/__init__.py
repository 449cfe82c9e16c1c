"""Backbones by name. Modules are imported when asked for, so that one model family's packages are not needed by another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from para_video import checkpoint
from para_video.features import VideoBackbone, import_class

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Entry:
    """A backbone of the catalogue.

    Args:
        target: "package.module:Class". source: hub id, or other name, of a model that the class's `from_pretrained` loads.
        weights: folder under backbones/weights with its pretrained weights, where they come with the package. heads: folder there
            with a PARA policy on it that was pretrained on circles. frozen: options that suit it where it is frozen, unless the
            user gives others.
    """

    target: str
    source: str | None = None
    weights: str | None = None
    heads: str | None = None
    frozen: Mapping[str, Any] = field(default_factory=dict)


ENCODER = {"tap": "encoder"}
"""Of `mini`: what attention has told of the rest of the image tells frozen features' heads which demonstration they see
(docs/results.md)."""

CATALOGUE = {
    "mini": Entry("backbones.mini:MiniVideo", weights="mini", heads="circles", frozen=ENCODER),
    "mini-procedural": Entry("backbones.mini:MiniVideo", weights="mini-procedural", frozen=ENCODER),
    "mini-random": Entry("backbones.mini:MiniVideo", frozen=ENCODER),
    "svd": Entry("backbones.svd:SvdBackbone", source="stabilityai/stable-video-diffusion-img2vid"),
    "svd-xt": Entry("backbones.svd:SvdBackbone", source="stabilityai/stable-video-diffusion-img2vid-xt"),
    "wan2.1-t2v-1.3b": Entry("backbones.wan:WanBackbone", source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
    "wan2.1-t2v-14b": Entry("backbones.wan:WanBackbone", source="Wan-AI/Wan2.1-T2V-14B-Diffusers"),
    "wan2.1-i2v-14b": Entry("backbones.wan:WanBackbone", source="Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"),
    "wan2.2-ti2v-5b": Entry("backbones.wan:WanBackbone", source="Wan-AI/Wan2.2-TI2V-5B-Diffusers"),
    "cosmos-predict2-2b": Entry("backbones.cosmos:CosmosBackbone", source="nvidia/Cosmos-Predict2-2B-Video2World"),
    "cogvideox-2b": Entry("backbones.cogvideox:CogVideoXBackbone", source="THUDM/CogVideoX-2b"),
    "cogvideox-5b": Entry("backbones.cogvideox:CogVideoXBackbone", source="THUDM/CogVideoX-5b"),
    "cogvideox-5b-i2v": Entry("backbones.cogvideox:CogVideoXBackbone", source="THUDM/CogVideoX-5b-I2V"),
    "cogvideox1.5-5b": Entry("backbones.cogvideox:CogVideoXBackbone", source="THUDM/CogVideoX1.5-5B"),
    "cogvideox1.5-5b-i2v": Entry("backbones.cogvideox:CogVideoXBackbone", source="THUDM/CogVideoX1.5-5B-I2V"),
    "mochi": Entry("backbones.mochi:MochiBackbone", source="genmo/mochi-1-preview"),
    "animatediff": Entry("backbones.animatediff:AnimateDiffBackbone", source="guoyww/animatediff-motion-adapter-v1-5-3"),
    "ltx": Entry("backbones.ltx:LtxBackbone", source="Lightricks/LTX-Video"),
    "ltx-0.9.5": Entry("backbones.ltx:LtxBackbone", source="Lightricks/LTX-Video-0.9.5"),
    "ltx-13b": Entry("backbones.ltx:LtxBackbone", source="Lightricks/LTX-Video-0.9.7-dev"),
    "hunyuan": Entry("backbones.hunyuan:HunyuanBackbone", source="hunyuanvideo-community/HunyuanVideo"),
    "hunyuan-i2v": Entry("backbones.hunyuan:HunyuanBackbone", source="hunyuanvideo-community/HunyuanVideo-I2V"),
    "hunyuan-1.5": Entry(
        "backbones.hunyuan15:Hunyuan15Backbone", source="hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v"
    ),
    "hunyuan-1.5-i2v": Entry(
        "backbones.hunyuan15:Hunyuan15Backbone", source="hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_i2v"
    ),
    "vjepa2-large": Entry("backbones.vjepa2:VJepa2Backbone", source="facebook/vjepa2-vitl-fpc64-256"),
    "vjepa2-huge": Entry("backbones.vjepa2:VJepa2Backbone", source="facebook/vjepa2-vith-fpc64-256"),
    "vjepa2-giant": Entry("backbones.vjepa2:VJepa2Backbone", source="facebook/vjepa2-vitg-fpc64-256"),
    "videomae": Entry("backbones.videomae:VideoMaeBackbone", source="MCG-NJU/videomae-base"),
    "timesformer": Entry("backbones.timesformer:TimesformerBackbone", source="facebook/timesformer-base-finetuned-k400"),
    "vivit": Entry("backbones.timesformer:VivitBackbone", source="google/vivit-b-16x2-kinetics400"),
    "dinov2": Entry("backbones.dino:Dinov2Backbone", source="facebook/dinov2-base"),
    "dinov2-registers": Entry("backbones.dino:Dinov2Backbone", source="facebook/dinov2-with-registers-base"),
    "dinov3": Entry("backbones.dino:Dinov3Backbone", source="facebook/dinov3-vitb16-pretrain-lvd1689m"),
    "dinov3-small": Entry("backbones.dino:Dinov3Backbone", source="facebook/dinov3-vits16-pretrain-lvd1689m"),
    "dinov3-convnext": Entry("backbones.dino:Dinov3ConvNextBackbone", source="facebook/dinov3-convnext-tiny-pretrain-lvd1689m"),
    "siglip": Entry("backbones.siglip:SiglipBackbone", source="google/siglip-base-patch16-224"),
    "siglip2": Entry("backbones.siglip:SiglipBackbone", source="google/siglip2-base-patch16-224"),
    "siglip2-naflex": Entry("backbones.siglip:Siglip2NaFlexBackbone", source="google/siglip2-base-patch16-naflex"),
    "efficientnet-lite0": Entry("backbones.efficientnet:EfficientNetBackbone", source="efficientnet-lite0"),
}


def catalogue_entry(name: str) -> Entry:
    """The entry of a catalogue name, or one made of a "package.module:Class" string.

    Raises:
        ValueError: an unknown name.
    """
    entry = CATALOGUE.get(name) or Entry(name)
    if ":" not in entry.target:
        lower = name.lower()
        family = [known for known in CATALOGUE if lower and known.startswith(lower)]
        near = [lower] if lower in CATALOGUE else family or get_close_matches(lower, CATALOGUE, n=1)
        meant = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(f"unknown backbone {name!r}; {meant}python -m backbones lists all, or write 'package.module:Class'")
    return entry


def import_string(name: str) -> str:
    """Of a catalogue name, or the "package.module:Class" string itself. Raises ValueError for an unknown name."""
    return catalogue_entry(name).target


def shipped_weights(name: str) -> Path | None:
    """The checkpoint of pretrained weights that comes with a backbone. Raises ValueError for an unknown name."""
    folder = catalogue_entry(name).weights
    return None if folder is None else WEIGHTS / folder


def shipped_heads(name: str) -> Path | None:
    """The checkpoint of a circles-pretrained policy that comes with a backbone. Raises ValueError for an unknown name."""
    folder = catalogue_entry(name).heads
    return None if folder is None else WEIGHTS / folder


def backbone_class(name: str) -> type[VideoBackbone]:
    """The class behind a catalogue name or a "package.module:Class" string.

    Raises:
        ValueError: an unknown name, or an import string that leads to no VideoBackbone.
    """
    return import_class(import_string(name), VideoBackbone)


def trusted_packages(name: str) -> tuple[str, ...]:
    """Packages whose code runs, beside this project's, when a backbone is built that the user named: its own."""
    return (checkpoint.package(import_string(name)),)


def backbone_options(name: str, options: str | Mapping[str, Any] = "{}") -> dict[str, Any]:
    """What a backbone is built with: options (as JSON, where they are text), and the catalogue's source unless they name another.

    Raises:
        ValueError: an unknown name, or text that is no JSON object.
    """
    source = catalogue_entry(name).source
    try:
        given = {**(json.loads(options) if isinstance(options, str) else options)}
    except (ValueError, TypeError) as error:
        raise ValueError(f'options of a backbone are a JSON object such as {{"scale": 2}}, got {options!r}') from error
    for place in ("source", "base"):
        if place in given and not isinstance(given[place], str):
            raise ValueError(f"{place} is a model's name on the hub or a folder, as text; got {given[place]!r}")
        if place in given and Path(given[place]).is_dir():
            given[place] = str(Path(given[place]).resolve())  # where a saved policy looks for it
    return given if source is None else {"source": source, **given}


def build_backbone(name: str, **options: Any) -> VideoBackbone:
    """A backbone from its catalogue name or import string, built with `options`, with the weights that come with it, if any.

    Raises:
        ValueError: an unknown name, or options that it does not know or with which the weights do not fit.
        FileNotFoundError, ImportError: its source is not there, or a package is not installed.
    """
    weights = shipped_weights(name)
    backbone = checkpoint.build_backbone(import_string(name), backbone_options(name, options), trusted=trusted_packages(name))
    if weights is not None:
        checkpoint.load_backbone(backbone, weights)
    return backbone


def ready(backbone: VideoBackbone, options: Mapping[str, Any]) -> VideoBackbone:
    """A backbone to be read: in eval mode, and, where its options name no device, on the one that training takes."""
    from para_video.training import make_accelerator  # which takes a second, and most who name a backbone train it

    if options.get("device") is None:
        backbone.to(make_accelerator().device)
    return backbone.eval()
