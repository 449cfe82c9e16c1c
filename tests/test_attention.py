"""The choice of attention: in every layer of its model and in no other model, or refused."""

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from diffusers.models.attention_processor import XFormersAttnProcessor
from torch import Tensor

from backbones import backbone_class
from backbones.attention import attention_processors, set_denoiser_attention, set_encoder_attention
from backbones.latent import LatentVideoBackbone
from tests.tiny_models import TINY, saved, sharpen, tiny

LATENT = [name for name in TINY if issubclass(backbone_class(name), LatentVideoBackbone)]
ENCODERS = [name for name in TINY if name not in LATENT]


def load(name: str, **options):
    given = {key: v.format(folder=saved(name)) if isinstance(v, str) else v for key, v in TINY[name].options.items()}
    return backbone_class(name).from_pretrained(str(saved(name)), **given, **options).eval()


def maps(backbone, frames: int = 1) -> Tensor:
    with torch.no_grad():
        return backbone.features(torch.rand(1, frames, 3, 64, 64, generator=torch.Generator().manual_seed(0))).maps


@pytest.mark.parametrize("name", [name for name in LATENT if backbone_class(name).attentions])
def test_a_chosen_kernel_computes_every_attention_of_a_denoiser(name: str, monkeypatch) -> None:
    backbone, plain = load(name, attention="sdpa"), tiny(name)
    calls: list[int] = [0]
    kernel = F.scaled_dot_product_attention

    def counted(*args, **named) -> Tensor:
        calls[0] += 1
        return kernel(*args, **named)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    layers = [part for part in backbone.denoiser.modules() if getattr(part, "processor", None) is not None]
    before: list[int] = []
    after: list[int] = []
    for layer in layers:
        layer.register_forward_pre_hook(lambda *_: before.append(calls[0]))
        layer.register_forward_hook(lambda *_: after.append(calls[0]))
    chosen = maps(backbone)
    assert after and all(late > early for early, late in zip(before, after, strict=True))
    # another choice of the whole process reaches the other model, or none, but not this one
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", "no such kernel")
    assert torch.equal(maps(backbone), chosen)
    if any(hasattr(each, "_attention_backend") for each in attention_processors(plain.denoiser)):
        with pytest.raises(KeyError, match="no such kernel"):
            maps(plain)


def test_the_process_s_own_choice_stays(monkeypatch) -> None:
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", "flex")
    load("wan2.1-t2v-1.3b", attention="sdpa")
    assert _AttentionBackendRegistry._active_backend == "flex"


@pytest.mark.parametrize("name", [name for name in ENCODERS if "eager" in backbone_class(name).attentions])
def test_kernels_of_encoders_agree_and_are_what_was_asked_for(name: str, monkeypatch) -> None:
    found, calls, kernel = {}, [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args, **named: calls.append(1) or kernel(*args, **named))
    for attention in backbone_class(name).attentions:
        backbone = load(name, attention=attention)
        sharpen(backbone.model)
        assert backbone.settings()["attention"] == attention
        calls.clear()
        found[attention] = maps(backbone)
        assert len(calls) >= len(backbone.model.get_submodule(backbone.blocks)) if attention == "sdpa" else not calls
    torch.testing.assert_close(found["eager"], found.get("sdpa", found["eager"]), atol=1e-5, rtol=1e-4)
    assert "attention" not in tiny(name).settings()


@pytest.mark.parametrize("name", TINY)
def test_what_would_be_ignored_or_wrong_is_refused_before_anything_is_loaded(name: str) -> None:
    kind = backbone_class(name)
    base = {"base": "nowhere"} if name == "animatediff" else {}
    for attention in {"sdpa", "eager", "xformers", "flash"} - set(kind.attentions):
        with pytest.raises(ValueError, match=f"{kind.__name__} cannot be given attention '{attention}'.*leave it out"):
            kind.from_pretrained("nowhere", attention=attention, **base)


@pytest.mark.parametrize("name", ["svd", "wan2.1-t2v-1.3b", "animatediff"])
def test_xformers_says_what_it_needs(name: str, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="xformers' needs a CUDA GPU and there is none: leave it out"):
        load(name, attention="xformers")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("backbones.attention.find_spec", lambda _: None)
    with pytest.raises(ImportError, match="pip install xformers"):
        load(name, attention="xformers")


@pytest.mark.parametrize("left", [0, 1, None])
def test_a_layer_that_stays_behind_is_noticed(left: int | None, monkeypatch) -> None:
    """left: layers that the library, in a stand-in for its xformers, leaves as they were; None for all."""
    denoiser = tiny("svd").denoiser
    layers = [part for part in denoiser.modules() if hasattr(part, "processor")]
    monkeypatch.setattr(type(denoiser), "set_attention_backend", lambda *_: None)

    def enable(*_) -> None:
        for layer in layers[len(layers) if left is None else left :]:
            layer.set_processor(XFormersAttnProcessor())

    monkeypatch.setattr(type(denoiser), "enable_xformers_memory_efficient_attention", enable)
    if left == 0:
        set_denoiser_attention(denoiser, "xformers")
        return
    with pytest.raises(ValueError, match=r"does not follow the choice of attention 'xformers' \(\['AttnProcessor2_0'\] stay\)"):
        set_denoiser_attention(denoiser, "xformers")


def test_models_whose_layers_ask_the_process_alone_do_not_follow() -> None:
    with pytest.raises(ValueError, match="does not follow the choice of attention 'sdpa'"):
        set_denoiser_attention(tiny("cosmos-predict2-2b").denoiser, "sdpa")


def test_an_encoder_that_stays_as_it_is_is_noticed(monkeypatch) -> None:
    model = tiny("dinov2").model
    monkeypatch.setattr(type(model), "set_attn_implementation", lambda *_: None)
    with pytest.raises(ValueError, match="stays with attention .*'sdpa'.*, 'eager' was asked for: leave it out"):
        set_encoder_attention(model, "eager")
