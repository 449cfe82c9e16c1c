"""What benchmarks/adapters.py measures with."""

import runpy
from pathlib import Path

import torch

BENCHMARK = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "adapters.py"))


def test_the_largest_memory_is_that_of_tensors_alive_at_once() -> None:
    old = torch.zeros(1000)

    def run() -> None:
        first = old + 1  # 4000 bytes
        second = first + first  # 8000 in all
        del first
        view = second.view(10, 100)
        view += 1
        (view.double(), second)  # 4000 and 8000

    assert BENCHMARK["memory"](run) == 12_000


def test_calls_of_parts_are_noted_and_repeated_without_the_adapter() -> None:
    backbone = BENCHMARK["wan"]("blocks.7").eval()
    backbone.denoiser.blocks = backbone.denoiser.blocks[:1]
    backbone.taps = ("blocks.0",)
    clip = torch.rand(1, 1, 3, 32, 32)
    with torch.no_grad():
        calls = BENCHMARK["noted"](backbone, lambda: backbone.features(clip))
        assert [call.part for call in calls][1:] == [backbone.denoiser] and len(calls) == 2
        encoded = calls[0]().latent_dist.mode()
        assert torch.equal(encoded, backbone.vae.encode(2 * clip.transpose(1, 2) - 1).latent_dist.mode())
        whole, early = BENCHMARK["flops"](calls[1]), BENCHMARK["flops"](lambda: backbone.features(clip))
        assert whole > 0 and early > 0
