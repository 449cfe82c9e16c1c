"""Layers of LoRA beside loaded weights, whatever the precision of these; and what is told of sources and options that do not do."""

import errno
import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import UMT5EncoderModel

from backbones import backbone_class, build_backbone, ready
from backbones.loading import Source, load_part
from para_video.features import FeatureSpec, VideoBackbone
from tests.tiny_models import TINY, saved, tiny

KINDS = ("svd", "wan2.1-t2v-1.3b", "hunyuan-i2v", "mochi", "vjepa2-large", "timesformer", "dinov2", "dinov3-convnext")


def load(name: str, **options) -> VideoBackbone:
    given = {key: v.format(folder=saved(name)) if isinstance(v, str) else v for key, v in TINY[name].options.items()}
    return backbone_class(name).from_pretrained(str(saved(name)), **given, **options).eval()


def maps(backbone: VideoBackbone) -> Tensor:
    return backbone.features(torch.rand(1, backbone.spec.contexts[0], 3, 64, 64, generator=torch.Generator().manual_seed(0))).maps


@pytest.mark.parametrize("name", KINDS)
def test_layers_of_lora_learn_in_full_precision_beside_weights_in_half(name: str) -> None:
    pytest.importorskip("peft", reason="needs the extra `lora`")
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


@pytest.mark.parametrize(("name", "part"), [("svd", "unet"), ("svd", "image_encoder"), ("dinov2", "")])
@pytest.mark.parametrize("cut", [True, False])
def test_damaged_weights_are_told_from_absent_ones(name: str, part: str, cut: bool, tmp_path: Path) -> None:
    folder = shutil.copytree(saved(name), tmp_path / "model")
    (file,) = (folder / part).glob("*.safetensors")
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] if cut else bytes([255]) * len(data))
    with pytest.raises(ValueError, match=rf"the weights of {folder / part} are damaged.*: download them again"):
        build_backbone(name, source=str(folder))
    file.unlink()
    with pytest.raises(FileNotFoundError, match="has no usable"):
        build_backbone(name, source=str(folder))


@pytest.mark.parametrize(
    ("name", "part", "lost"),
    [
        ("svd", "image_encoder", "vision_model.encoder.layers.1.layer_norm1.weight"),
        ("svd", "unet", "mid_block.attentions.0.proj_in.bias"),
        ("wan2.1-t2v-1.3b", "text_encoder", "encoder.block.0.layer.0.SelfAttention.q.weight"),
        ("hunyuan", "text_encoder", "layers.1.self_attn.k_proj.weight"),
        ("animatediff", "", "up_blocks.1.motion_modules.0.norm.bias"),
    ],
)
def test_a_part_without_all_of_its_weights_is_refused(name: str, part: str, lost: str, tmp_path: Path) -> None:
    """Its library would draw them at random, or leave them without memory."""
    folder = shutil.copytree(saved(name), tmp_path / "model")
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    del weights[lost]
    save_file(weights, file, {"format": "pt"})
    base = {"base": str(folder / "base")} if name == "animatediff" else {}
    with pytest.raises(ValueError, match=rf"{folder / part} has no weights for \['{lost}'\]: .* not whole; download it again"):
        build_backbone(name, source=str(folder), **base)


def test_weights_that_stand_for_others_are_not_missed() -> None:
    (file,) = (saved("wan2.1-t2v-1.3b") / "text_encoder").glob("*.safetensors")
    assert "shared.weight" in load_file(file) and "encoder.embed_tokens.weight" not in load_file(file)
    encoder = load_part(UMT5EncoderModel, Source(str(saved("wan2.1-t2v-1.3b"))), "text_encoder")
    assert torch.equal(encoder.encoder.embed_tokens.weight, load_file(file)["shared.weight"])


@pytest.mark.parametrize(
    ("name", "part", "inside"), [("dinov2", "", None), ("siglip", "", "vision_config"), ("svd", "image_encoder", None)]
)
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_leads_to_no_kernels_from_elsewhere(name: str, part: str, inside: str | None, key: str, tmp_path: Path) -> None:
    folder = shutil.copytree(saved(name), tmp_path / "model")
    file = folder / part / "config.json"
    whole = json.loads(file.read_text())
    config = whole if inside is None else whole[inside]
    for value in ("someone/some-kernel", "flash_attention_2", {"": "someone/some-kernel"}):
        config[key] = value
        file.write_text(json.dumps(whole))
        told = re.escape(f"{folder / part} names the attention {value!r}, which is not torch's own: take {key!r} out")
        with pytest.raises(ValueError, match=told):
            build_backbone(name, source=str(folder))
    for value in ("sdpa", "eager", None):
        config[key] = value
        file.write_text(json.dumps(whole))
        build_backbone(name, source=str(folder))


@pytest.mark.parametrize(
    ("name", "other", "part", "message"),
    [
        ("svd", "svd", "unet", "is one part of a model, a UNetSpatio.*; pass the folder that holds it, such as"),
        ("wan2.1-t2v-1.3b", "wan2.1-t2v-1.3b", "transformer", "is one part of a model, a WanTransformer3DModel; pass the folder"),
        ("dinov2", "svd", "", r"[^/]config.json is expected there, and the folder holds image_encoder, unet, vae: .* another kind"),
        ("wan2.1-t2v-1.3b", "svd", "", "model_index.json is expected there, and the folder holds image_encoder, unet, vae"),
        ("svd", "dinov2", "", "unet/config.json is expected there, and the folder holds config.json, model.safetensors"),
        ("ltx", "wan2.1-t2v-1.3b", "", "it is of another kind of model, of class AutoencoderKLWan"),
    ],
)
def test_a_folder_of_another_kind_of_model_is_said_to_be_one(name: str, other: str, part: str, message: str) -> None:
    with pytest.raises((FileNotFoundError, ValueError), match=message) as told:
        build_backbone(name, source=str(saved(other) / part))
    assert "download it again" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("svd", {"dtype": "int8"}, "unknown dtype 'int8'; choose float32, bfloat16 or float16"),
        ("svd", {"fps": math.nan}, "fps must be a finite number, got nan"),
        ("svd", {"lora_rank": math.nan}, "lora_rank must be a finite number"),
        ("svd", {"lora_rank": -1}, "lora_rank must be 0 or more, got -1"),
        ("dinov2", {"lora_rank": -1}, "lora_rank must be 0 or more, got -1"),
        ("dinov2", {"scale": math.inf}, "scale must be a finite number, got inf"),
        ("svd", {"device": "cudda"}, r"there is no device 'cudda' here: pass another \"device\", one of \['cpu'"),
        ("svd", {"device": "cuda:99", "offload": "model"}, "there is no device 'cuda:99' here"),
        ("svd", {"taps": "mid_block"}, r"taps is a list of names, such as \['mid_block'\]"),
        ("dinov2", {"taps": ["layernorm", "layernorm"]}, "each tap is named once"),
        ("svd", {"taps": [1]}, r"taps is a list of names, as text; got \[1\]"),
        ("wan2.1-t2v-1.3b", {"taps": [["a"]], "truncate": True}, r"taps is a list of names, as text; got \[\['a'\]\]"),
        ("dinov2", {"taps": [None]}, r"taps is a list of names, as text; got \[None\]"),
        ("dinov2", {"taps": 3}, "taps is a list of names, as text; got 3"),
        ("svd", {"taps": ["mid_blok"]}, "unknown tap 'mid_blok'; .*; did you mean 'mid_block'?"),
        ("dinov2", {"taps": ["layernom"]}, r"unknown taps \['layernom'\]; .*; did you mean 'layernorm'?"),
        ("svd", {"tapps": []}, r"options \['tapps'\]; it knows \['attention', .*; did you mean 'taps'?"),
    ],
)
def test_options_that_do_not_do_are_refused_by_name(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_backbone(name, source=str(saved(name)), **options)


def test_code_that_a_source_brings_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it asked for on a terminal."""
    folder, ran = tmp_path / "dinov2", tmp_path / "ran"
    shutil.copytree(saved("dinov2"), folder)
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": own}))
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with pytest.raises(ValueError, match="brings code of its own, which is never run"):
        build_backbone("dinov2", source=str(folder))
    assert not ran.exists()


@pytest.mark.parametrize("source", [3, None])
def test_a_source_that_is_no_text_is_refused(source: object) -> None:
    with pytest.raises(ValueError, match=f"source is a model's name on the hub or a folder, as text; got {source}"):
        build_backbone("svd", source=source)


@pytest.mark.parametrize("name", ["svd", "animatediff"])
def test_an_autoencoder_that_float16_is_too_narrow_for_is_in_float32(name: str) -> None:
    dtypes = {dtype: tiny(name, dtype=dtype).vae.dtype for dtype in ("float16", "bfloat16")}
    assert dtypes == {"float16": torch.float32, "bfloat16": torch.bfloat16}


@pytest.mark.parametrize("wrong", [{"contexts": (1, 0)}, {"span": 0}, {"max_horizon": -1}, {"max_horizon": 0}, {"predicts": False}])
def test_a_backbone_cannot_declare_what_none_can_do(wrong: dict) -> None:
    right = {"contexts": (1, 4), "span": 1, "max_horizon": 6, "predicts": True}
    FeatureSpec(8, 4, size_multiple=4, **right)
    with pytest.raises(ValueError, match="a backbone wants contexts of 1 <= fewest <= most"):
        FeatureSpec(8, 4, size_multiple=4, **{**right, **wrong})


def test_a_backbone_without_a_source_is_not_said_to_need_one() -> None:
    with pytest.raises(ValueError, match="did you mean 'tap'") as told:
        build_backbone("mini-random", tapp=3)
    assert "source" not in str(told.value)


@pytest.mark.parametrize(("name", "meant"), [("SVD", "did you mean 'svd'?"), ("wan", "'wan2.1-t2v-1.3b' or 'wan2.1-t2v-14b' or")])
def test_names_in_other_case_and_of_families_lead_to_those_of_the_catalogue(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"unknown backbone '{name}'; .*{meant}"):
        build_backbone(name)


@pytest.mark.parametrize("source", ["./svd", "/no/svd", "~/svd", "models/of/svd"])
def test_a_mistyped_folder_is_not_asked_of_the_hub(source: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"there is no folder {source}"):
        build_backbone("svd", source=source)


@pytest.mark.parametrize("name", ["svd", "wan2.1-t2v-1.3b", "dinov2"])
def test_without_a_network_every_library_says_so_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError, match=r"models/none\S* is not on this machine and the hub cannot be reached: download it"
    ):
        build_backbone(name, source="models/none")


@pytest.mark.parametrize("name", ["svd", "wan2.1-t2v-1.3b", "dinov2"])
@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (HTTPError("read timed out"), ConnectionError, "download of models/none.* broke off .*read timed out.* goes on from there"),
        (OSError(errno.ENOSPC, "No space left on device"), OSError, "no space left to download models/none.*HF_HOME"),
    ],
)
def test_a_download_that_breaks_off_or_does_not_fit_is_told(
    name: str, error: Exception, kind: type, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    for library in ("backbones.loading", "diffusers.configuration_utils", "transformers.utils.hub"):
        monkeypatch.setattr(f"{library}.hf_hub_download", fail)
    with pytest.raises(kind, match=told):
        build_backbone(name, source="models/none")


@pytest.mark.parametrize("name", ["svd", "wan2.1-t2v-1.3b", "dinov2"])
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (GatedRepoError, "models/none is gated: accept its licence on its page, then run `hf auth login`"),
        (RepositoryNotFoundError, "there is no model models/none on the hub, nor a folder of that name"),
    ],
)
def test_what_the_hub_refuses_every_library_says_alike(name: str, error: type, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error("refused", response=SimpleNamespace(headers={}, request=None))

    for library in ("backbones.loading", "diffusers.configuration_utils", "transformers.utils.hub"):
        monkeypatch.setattr(f"{library}.hf_hub_download", refuse)
    with pytest.raises(FileNotFoundError, match=told):
        build_backbone(name, source="models/none")


def test_a_config_on_the_hub_leads_to_no_kernels_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(saved("dinov2"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {"attn_implementation": "someone/some-kernel"}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("backbones.loading.hf_hub_download", lambda name, file, **_: str(folder / file))
    with pytest.raises(ValueError, match="models/none names the attention 'someone/some-kernel', which is not torch's own"):
        build_backbone("dinov2", source="models/none")


def test_a_model_that_does_not_predict_says_so() -> None:
    backbone = load("dinov2")
    with pytest.raises(ValueError, match="horizon 4; this backbone does not predict future frames"):
        backbone.features(torch.rand(1, 1, 3, 64, 64), horizon=4)


def test_what_is_only_read_goes_where_training_would_have_it(monkeypatch) -> None:
    monkeypatch.setattr("para_video.training.make_accelerator", lambda: SimpleNamespace(device=torch.device("meta")))
    moved, kept = (ready(build_backbone("mini-random"), options) for options in ({}, {"device": "cpu"}))
    assert (moved.device.type, kept.device.type) == ("meta", "cpu") and not moved.training and not kept.training


def test_a_model_whose_weights_are_a_pickle_is_refused_with_a_remedy() -> None:
    class Pickled(torch.nn.Module):
        @classmethod
        def from_pretrained(cls, *_, **__) -> None:
            raise OSError("it cannot be loaded with `safetensors`. Please do not set `use_safetensors=True`.")

    with pytest.raises(FileNotFoundError, match="weights as a pickle alone.*name a `revision`"):
        load_part(Pickled, Source("somebody/model"))
