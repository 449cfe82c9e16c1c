"""Layers of LoRA beside loaded weights, whatever the precision of these."""

import pytest
import torch
from torch import Tensor

from backbones import backbone_class
from para_video.features import VideoBackbone
from tests.tiny_models import TINY, saved

pytest.importorskip("peft", reason="needs the extra `lora`")
KINDS = ("svd", "wan2.1-t2v-1.3b", "hunyuan-i2v", "mochi", "vjepa2-large", "timesformer", "dinov2", "dinov3-convnext")


def load(name: str, **options) -> VideoBackbone:
    given = {key: v.format(folder=saved(name)) if isinstance(v, str) else v for key, v in TINY[name].options.items()}
    return backbone_class(name).from_pretrained(str(saved(name)), **given, **options).eval()


def maps(backbone: VideoBackbone) -> Tensor:
    return backbone.features(torch.rand(1, backbone.spec.contexts[0], 3, 64, 64, generator=torch.Generator().manual_seed(0))).maps


@pytest.mark.parametrize("name", KINDS)
def test_layers_of_lora_learn_in_full_precision_beside_weights_in_half(name: str) -> None:
    plain, backbone = load(name, dtype="bfloat16"), load(name, dtype="bfloat16", lora_rank=2)
    trained = {key: p for key, p in backbone.named_parameters() if p.requires_grad}
    assert trained and {p.dtype for p in trained.values()} == {torch.float32}
    kinds = {key.replace(".base_layer", ""): p.dtype for key, p in backbone.named_parameters() if "lora_" not in key}
    assert kinds == {key: p.dtype for key, p in plain.named_parameters()}
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            with torch.no_grad():
                assert torch.equal(maps(backbone), maps(plain)), "fresh layers change nothing"
            backbone.zero_grad()
            maps(backbone).square().mean().backward()
        reached = [p.grad is not None and bool(p.grad.any()) for key, p in trained.items() if "lora_B" in key]
        assert sum(reached) > 0 and all(p.grad is None or p.grad.dtype == torch.float32 for p in trained.values())
