"""Offloaded models: the same maps and weights, one part or block at a time, and nothing left behind. On the CPU nothing moves, but
every hook runs."""

import contextlib
from pathlib import Path

import pytest
import torch
from accelerate.hooks import CpuOffload
from diffusers.hooks.group_offloading import ModuleGroup
from torch import Tensor, nn

from backbones import backbone_class, build_backbone
from backbones.contract import checks_of, gradients_reach_all
from backbones.latent import LatentVideoBackbone
from para_video.agent import VideoPolicy
from para_video.checkpoint import PolicySpec, load_policy, save_policy, weight_digests
from para_video.heatmap import Bins
from para_video.readout import ReadoutSpec
from tests.tiny_models import TINY, saved, tiny

LATENT = [name for name in TINY if issubclass(backbone_class(name), LatentVideoBackbone)]
every_model = pytest.mark.parametrize("name", LATENT)
kinds_of_models = pytest.mark.parametrize("name", ["svd", "wan2.1-t2v-1.3b", "hunyuan-i2v"])
both = pytest.mark.parametrize("offload", ["model", "blocks"])


def load(name: str, offload: str, **options) -> LatentVideoBackbone:
    given = {key: v.format(folder=saved(name)) if isinstance(v, str) else v for key, v in TINY[name].options.items()}
    kind = backbone_class(name)
    return kind.from_pretrained(str(saved(name)), **{"device": "cpu", **given, "offload": offload, **options}).eval()


def maps(backbone: LatentVideoBackbone) -> Tensor:
    video = torch.rand(1, backbone.spec.contexts[1], 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return backbone.features(video, horizon=backbone.spec.max_horizon).maps


@both
@every_model
def test_maps_and_weights_are_those_of_the_model_itself_also_after_early_stops(name: str, offload: str) -> None:
    plain, backbone = tiny(name).requires_grad_(False), load(name, offload)
    expected, digests = maps(plain), weight_digests(plain)
    assert weight_digests(backbone) == digests
    assert torch.equal(maps(backbone), expected) and torch.equal(maps(backbone), expected)
    assert weight_digests(backbone) == digests
    assert backbone.settings() == plain.settings()


@kinds_of_models
def test_of_the_parts_each_runs_after_the_one_that_it_sends_away(name: str, monkeypatch) -> None:
    backbone, ran = load(name, "model"), []
    before = CpuOffload.pre_forward
    monkeypatch.setattr(
        CpuOffload, "pre_forward", lambda hook, part, *a, **k: ran.append((part, hook)) or before(hook, part, *a, **k)
    )
    maps(backbone)
    order = [part for i, (part, _) in enumerate(ran) if i == 0 or ran[i - 1][0] is not part]
    parts = [part for part in (backbone.vae, getattr(backbone, "image_encoder", None), backbone.denoiser) if part is not None]
    assert len(order) == len(parts) and all(a is b for a, b in zip(order, parts, strict=True))
    hooks = dict(ran)
    sent_away = [hooks[part].prev_module_hook and hooks[part].prev_module_hook.model for part in parts]
    assert all(a is b for a, b in zip(sent_away, [None, *parts], strict=False))


@kinds_of_models
def test_one_block_of_the_denoiser_is_there_at_a_time_and_none_is_left(name: str, monkeypatch) -> None:
    backbone, there, most = load(name, "blocks"), [], 0
    onload, offload = ModuleGroup.onload_, ModuleGroup.offload_
    blocks = {id(block) for part in backbone.denoiser.children() if isinstance(part, nn.ModuleList) for block in part}

    def on(group: ModuleGroup) -> None:
        nonlocal most
        there.extend(id(part) for part in group.modules if id(part) in blocks)
        most = max(most, len(there))
        onload(group)

    def off(group: ModuleGroup) -> None:
        there[:] = [part for part in there if part not in map(id, group.modules)]
        offload(group)

    monkeypatch.setattr(ModuleGroup, "onload_", on)
    monkeypatch.setattr(ModuleGroup, "offload_", off)
    maps(backbone)
    assert most == 1 and not there


@both
@pytest.mark.parametrize("ends", ["early", "by a failure"])
def test_all_of_the_denoiser_is_sent_back_however_a_forward_ends(ends: str, offload: str, monkeypatch) -> None:
    backbone, seen = load("wan2.1-t2v-1.3b", offload), []
    to = nn.Module.to

    def moved(module: nn.Module, *args, **named) -> nn.Module:
        if module is backbone.denoiser:
            seen.append(f"to {torch.device(args[0]).type}")
        return to(module, *args, **named)

    def ran(*_) -> None:
        seen.append("ran")
        if ends == "by a failure" and seen.count("ran") == 2:  # while blocks are there
            raise ZeroDivisionError

    monkeypatch.setattr(nn.Module, "to", moved)
    for block in backbone.denoiser.blocks:
        block.register_forward_hook(ran)
    with contextlib.suppress(ZeroDivisionError):
        maps(backbone)
    assert "ran" in seen and seen[-1] == "to cpu"


@both
def test_a_policy_leaves_an_offloaded_backbone_where_it_is(offload: str) -> None:
    """The meta device stands for another one: what is moved there has lost its values."""
    backbone = load("wan2.1-t2v-1.3b", offload)
    expected = maps(backbone)
    policy = VideoPolicy(backbone, nn.Linear(2, 2), (1.0,), frozen=True).to("meta")
    assert policy.head.weight.is_meta and torch.equal(maps(backbone), expected) and backbone.device == torch.device("cpu")


@both
def test_a_saved_policy_is_loaded_onto_an_offloaded_backbone(offload: str, tmp_path: Path) -> None:
    source = str(saved("wan2.1-t2v-1.3b"))
    spec = PolicySpec(
        "backbones.wan:WanBackbone",
        "para_video.heads:ParaHead",
        (1.0,),
        backbone_options={"source": source},
        head_options={"spec": ReadoutSpec(z=Bins(-0.3, 0.3, 8), relative=True), "grid": 16, "hidden": 16},
    )
    policy = spec.build(frozen=True).eval()
    with torch.no_grad():
        policy.backbone.denoiser.blocks[0].scale_shift_table.add_(1.0)  # as if that had been trained
    save_policy(policy, spec, tmp_path)
    offloaded = build_backbone("wan2.1-t2v-1.3b", source=source, offload=offload, device="cpu")
    found, _ = load_policy(tmp_path, backbone=offloaded)
    assert weight_digests(found.backbone) == weight_digests(policy.backbone)
    assert torch.equal(maps(found.backbone), maps(policy.backbone.requires_grad_(False)))


@both
def test_training_is_refused(offload: str) -> None:
    backbone = load("svd", offload)
    with pytest.raises(ValueError, match='an offloaded model is not trained: freeze it .* or leave out "offload"'):
        VideoPolicy(backbone, nn.Linear(2, 2), (1.0,))
    with pytest.raises(TypeError, match="has no generative loss"):
        backbone.joint(torch.zeros(1, 3, 3, 64, 64), 1)
    for option in ({"lora_rank": 2}, {"gradient_checkpointing": True}):
        with pytest.raises(ValueError, match=f"'{offload}' is not trained: leave out lora_rank and gradient_checkpointing"):
            load("svd", offload, **option)


def test_wrong_choices_are_named_before_anything_is_loaded() -> None:
    kind = backbone_class("svd")
    with pytest.raises(ValueError, match=r"unknown offload 'disk'; choose from \['none', 'model', 'blocks'\]"):
        kind.from_pretrained("nowhere", offload="disk")
    with pytest.raises(ValueError, match="'model' needs the device on which parts run"):
        kind.from_pretrained("nowhere", offload="model")


def test_features_of_an_offloaded_model_keep_nothing_for_gradients() -> None:
    backbone = load("svd", "model")
    video = torch.rand(1, 1, 3, 64, 64).requires_grad_()
    assert not backbone.features(video).maps.requires_grad and tiny("svd").features(video).maps.requires_grad
    assert gradients_reach_all not in checks_of(backbone) and gradients_reach_all in checks_of(tiny("svd"))
