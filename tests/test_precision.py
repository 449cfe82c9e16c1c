"""What is calculated in bf16 follows the hardware."""

from __future__ import annotations

import pytest
import torch

from para_video import precision
from para_video.optim import SMALL, orthogonalised
from para_video.training import FitConfig, make_accelerator


@pytest.fixture
def with_instructions(monkeypatch):
    """Makes the CPU one that has instructions for bf16, or has none."""

    def set_to(avx: bool, amx: bool) -> None:
        precision.bf16_pays.cache_clear()
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)

    yield set_to
    precision.bf16_pays.cache_clear()


@pytest.mark.parametrize(("avx", "amx", "told"), [(True, False, "bf16"), (False, True, "bf16"), (False, False, "float32")])
def test_a_cpu_calculates_in_bf16_where_it_has_instructions_for_it(with_instructions, avx, amx, told):
    with_instructions(avx, amx)
    device, layer = torch.device("cpu"), torch.nn.Linear(2, 2)
    assert precision.precision_of(device) == told
    with precision.autocast(device):
        assert layer(torch.ones(1, 2)).dtype == (torch.bfloat16 if told == "bf16" else torch.float32)
    for accelerator in (make_accelerator(), make_accelerator(FitConfig().precision)):
        assert accelerator.mixed_precision == ("bf16" if told == "bf16" else "no")


def test_unknown_devices_calculate_in_float32():
    assert precision.precision_of(torch.device("mps")) == "float32"


def test_muon_s_products_are_rounded_to_bf16_only_where_that_pays(with_instructions):
    side = round(SMALL ** (1 / 3)) + 1
    matrices = torch.randn(1, side, side, generator=torch.Generator().manual_seed(0))
    found = {}
    for pays in (True, False):
        with_instructions(pays, False)
        found[pays] = orthogonalised(matrices)
    assert found[True].dtype == torch.bfloat16 and found[False].dtype == torch.float32
    torch.testing.assert_close(found[True].float(), found[False], atol=0.05, rtol=0)
