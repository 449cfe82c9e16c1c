"""Noise, time, prompts and the drawing of futures that adapters of latent video diffusion models share."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.latent import (
    DdpmProcess,
    EdmProcess,
    FlowProcess,
    LatentVideoBackbone,
    NoiseProcess,
    Prompts,
    Timeline,
    block_taps,
    token_maps,
)
from tests.tiny_models import tiny


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -------------------------------------------------------------------- noise processes

ABAR = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)
PROCESSES = {
    "flow": FlowProcess(),
    "flow of unit time": FlowProcess(time_scale=1.0),
    "reversed flow": FlowProcess(reversed_time=True),
    "edm": EdmProcess(),
    "ddpm v": DdpmProcess(ABAR),
    "ddpm epsilon": DdpmProcess(ABAR, "epsilon"),
}
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)


def drawn(process: NoiseProcess) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Signal, noise, noisy signal (2, 3, 4, 5, 5) and levels (2, 4) from low to the top."""
    z, n = (torch.randn(2, 3, 4, 5, 5, generator=generator(seed)) for seed in (0, 1))
    level = process.top * torch.tensor([[0.002, 0.05, 0.3, 0.9], [0.01, 0.2, 0.6, 1.0]])
    return z, n, process.noisy(z, n, level), level


@every_process
def test_the_signal_follows_from_the_right_output(process: NoiseProcess) -> None:
    z, n, x, level = drawn(process)
    torch.testing.assert_close(process.signal(process.output(z, n, level), x, level), z, atol=2e-3, rtol=1e-3)


@every_process
def test_the_noise_follows_from_the_signal(process: NoiseProcess) -> None:
    z, n, x, level = drawn(process)
    torch.testing.assert_close(process.noise(x, z, level), n, atol=1e-3, rtol=1e-3)


@every_process
def test_levels_descend_from_pure_noise_to_the_last(process: NoiseProcess) -> None:
    for last, steps in ((0.1 * process.top, 1), (0.01 * process.top, 6)):
        levels = process.levels(last, steps)
        assert len(levels) == steps + 1
        assert levels[0] == pytest.approx(process.top) and levels[-1] == pytest.approx(last)
        assert all(before > after for before, after in pairwise(levels))


@every_process
def test_levels_of_training_are_seeded_and_within_range(process: NoiseProcess) -> None:
    first, again = (process.draw(500, torch.device("cpu"), generator(3)) for _ in range(2))
    assert torch.equal(first, again) and first.unique().numel() > 200
    assert bool((first > 0).all()) and (isinstance(process, EdmProcess) or bool((first <= process.top).all()))


@every_process
def test_the_top_level_is_noise_alone(process: NoiseProcess) -> None:
    a, s = process.scales(torch.tensor([process.top]))
    assert float(a / s) < 0.01


def test_what_networks_are_told_by_hand() -> None:
    level = torch.tensor([[0.25, 1.0]])
    assert FlowProcess().time(level).tolist() == [[250.0, 1000.0]]
    assert FlowProcess(reversed_time=True).time(level).tolist() == [[750.0, 0.0]]
    assert DdpmProcess(ABAR).time(level).tolist() == [[249, 999]]
    assert DdpmProcess(ABAR).time(torch.tensor([0.001, 0.0])).tolist() == [0, 0]
    torch.testing.assert_close(EdmProcess().time(torch.tensor([1.0, 700.0])), torch.tensor([0.0, 1.6378]), atol=1e-4, rtol=0)


def test_edm_shows_networks_values_of_unit_size() -> None:
    process = EdmProcess()
    z, n = (torch.randn(1, 1, 3, 100, 100, generator=generator(seed)) for seed in (0, 1))
    level = torch.tensor([[0.1, 1.0, 500.0]])
    shown = process.network_input(process.noisy(z, n, level), level)
    torch.testing.assert_close(shown.std((0, 1, 3, 4)), torch.ones(3), atol=0.03, rtol=0)


def test_an_unknown_prediction_type_is_named() -> None:
    with pytest.raises(ValueError, match="unknown prediction type 'sample'"):
        DdpmProcess(ABAR, "sample")


# -------------------------------------------------------------------- time


@pytest.mark.parametrize(
    ("observed", "horizon", "ratio", "before", "past", "future", "frames", "spans"),
    [
        (1, 0, 4, 0, 1, 0, 1, [(0, 0)]),
        (1, 8, 4, 0, 1, 2, 9, [(0, 0), (1, 4), (5, 8)]),
        (5, 4, 4, 0, 2, 1, 9, [(-4, -4), (-3, 0), (1, 4)]),
        (2, 3, 4, 3, 2, 1, 9, [None, (-1, 0), (1, 4)]),
        (6, 5, 4, 3, 3, 2, 17, [None, (-5, -4), (-3, 0), (1, 4), (5, 8)]),
        (10, 9, 8, 7, 3, 2, 33, [None, (-9, -8), (-7, 0), (1, 8), (9, 16)]),
        (3, 2, 1, 0, 3, 2, 5, [(-2, -2), (-1, -1), (0, 0), (1, 1), (2, 2)]),
    ],
)
def test_timelines_by_hand(observed, horizon, ratio, before, past, future, frames, spans) -> None:
    timeline = Timeline(observed, horizon, ratio)
    assert (timeline.before, timeline.past, timeline.future, timeline.frames) == (before, past, future, frames)
    found = [tuple(span) if span[0] <= span[1] else None for span in timeline.spans().tolist()]
    assert found == spans


# -------------------------------------------------------------------- prompts


class Letters:
    """Counts the letters a and b of a prompt, and its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.weight = torch.ones(1, requires_grad=True)

    def __call__(self, prompt: str) -> dict[str, Tensor]:
        self.calls.append(prompt)
        return {name: prompt.count(name) * self.weight for name in "ab"}


def test_prompts_are_encoded_once_and_batched_in_order() -> None:
    letters = Letters()
    prompts = Prompts(letters)
    found = prompts(["aab", "b", "aab"], 3, torch.device("cpu"))
    assert {name: value[:, 0].tolist() for name, value in found.items()} == {"a": [2, 0, 2], "b": [1, 1, 1]}
    assert not found["a"].requires_grad
    prompts(["b", "a"], 2, torch.device("cpu"))
    assert sorted(letters.calls) == ["a", "aab", "b"]


def test_prompts_are_encoded_in_the_encoder_s_precision_whoever_asks() -> None:
    weight = torch.randn(4, 4, generator=generator())
    prompts = Prompts(lambda prompt: {"text": weight @ weight})
    with torch.autocast("cpu", torch.bfloat16):
        found = prompts(None, 1, torch.device("cpu"))["text"][0]
    assert found.dtype == torch.float32 and torch.equal(found, weight @ weight)


def test_no_prompts_are_empty_ones() -> None:
    letters = Letters()
    prompts = Prompts(letters)
    assert prompts(None, 3, torch.device("cpu"))["a"].tolist() == [[0], [0], [0]]
    assert letters.calls == [""]
    with pytest.raises(ValueError, match="1 prompts for 2 clips; give one each"):
        prompts(["a"], 2, torch.device("cpu"))


# -------------------------------------------------------------------- transformers


def test_tokens_are_laid_out_by_time_row_and_column() -> None:
    grid = (2, 3, 4)
    tokens = torch.arange(24).expand(5, 24)[..., None] + torch.tensor([0, 100])
    maps = token_maps(tokens, grid)
    assert maps.shape == (5, 2, 2, 3, 4)
    assert maps[0, 1, 0, 2, 3] == 23 and maps[0, 1, 1, 0, 2] == 100 + 12 + 2


def test_blocks_are_named_and_the_middle_one_is_the_default() -> None:
    stacks = nn.ModuleDict({"dual": nn.ModuleList([nn.Identity()] * 2), "single": nn.ModuleList([nn.Identity()] * 5)})
    assert block_taps(None, stacks, 0.5, "dual", "single") == ("single.1",)
    assert block_taps(["single.4", "dual.0"], stacks, 0.5, "dual", "single") == ("single.4", "dual.0")
    with pytest.raises(ValueError, match=r"unknown taps \['dual.2'\]; choose from dual.0-1, single.0-4"):
        block_taps(["dual.2"], stacks, 0.5, "dual", "single")


# -------------------------------------------------------------------- the adapter


class Oracle(LatentVideoBackbone):
    """Means of 8 x 8 pixels and 4 frames as latents, and a network that knows the right answer for the clip `truth`."""

    truth: Tensor
    shown: Tensor
    told: Tensor

    def __init__(
        self, level: float | None = 0.25, *, steps: int = 3, clean: bool = False, taps: tuple[str, ...] = ("tap",)
    ) -> None:
        self.clean_past = clean
        denoiser = nn.ModuleDict({"tap": nn.Identity()})
        super().__init__(
            denoiser, nn.Identity(), process=FlowProcess(), taps=taps, channels=[3], strides=[8], level=level,
            denoising_steps=steps, ratio=4, contexts=(1, 6), max_horizon=8, size_multiple=8,
        )  # fmt: skip

    @classmethod
    def load_parts(cls, source):
        raise NotImplementedError

    def encode(self, frames: Tensor) -> Tensor:
        small = F.avg_pool2d(frames.flatten(0, 1), 8).unflatten(0, frames.shape[:2])
        grouped = [small[:, :1], *small[:, 1:].split(4, 1)]
        return torch.stack([group.mean(1) for group in grouped if group.shape[1]], 2)

    def condition(self, past, latents, timeline, prompts):
        return {"anything": torch.zeros(len(past), 1)}

    def denoise(self, x: Tensor, time: Tensor, condition: dict[str, Tensor]) -> Tensor:
        self.shown, self.told, level = x, time, time / 1000
        self.denoiser["tap"](x)
        z = self.encode(self.truth * 2 - 1).repeat(len(x) // len(self.truth), 1, 1, 1, 1)
        return torch.nan_to_num((x - z) / level[:, None, :, None, None])  # n - z, where x = z + level (n - z)

    def tap_map(self, output, b, grid):
        return output.transpose(1, 2)


CLIP = torch.rand(2, 13, 3, 16, 24, generator=generator(5))


@pytest.mark.parametrize("clean", [False, True], ids=["noisy past", "clean past"])
def test_a_network_that_is_right_leads_to_the_right_future(clean: bool) -> None:
    oracle = Oracle(clean=clean)
    oracle.truth = CLIP
    maps = oracle.features(CLIP[:, :5], horizon=8, generator=generator(1)).maps
    signal = oracle.encode(CLIP * 2 - 1)
    noise = torch.randn((1, *signal.shape[1:]), generator=generator(1))
    expected = 0.75 * signal + 0.25 * noise
    if clean:
        expected[:, :, :2] = signal[:, :, :2]
    torch.testing.assert_close(maps, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)
    assert oracle.told.tolist() == [[0.0 if clean else 250.0] * 2 + [250.0] * 2] * 2
    assert float(oracle.joint(CLIP, 5, generator=generator(1))[1]) < 1e-8


def test_the_future_goes_in_as_noise_alone_at_the_top_level() -> None:
    oracle = Oracle(None, clean=True)
    oracle.truth = CLIP
    maps = oracle.features(CLIP[:, :5], horizon=8, generator=generator(1)).maps
    noise = torch.randn((1, 3, 4, 2, 3), generator=generator(1))
    torch.testing.assert_close(maps[:, 2:], noise.transpose(1, 2)[:, 2:].expand(2, -1, -1, -1, -1))
    assert oracle.told[0].tolist() == [0.0, 0.0, 1000.0, 1000.0]


@pytest.mark.parametrize("level", [0.25, None])
def test_gradients_reach_every_observed_frame_at_any_level(level: float | None) -> None:
    oracle = Oracle(level, clean=True)
    oracle.truth, video = CLIP, CLIP[:, :5].clone().requires_grad_()
    oracle.features(video, horizon=8).maps.sum().backward()
    assert all(bool(video.grad[:, frame].any()) for frame in range(5))


def test_observed_frames_are_filled_up_at_their_beginning_and_copies_give_no_map() -> None:
    oracle = Oracle(0.001)
    oracle.truth = torch.cat([CLIP[:, :1]] * 3 + [CLIP[:, :10]], 1)
    features = oracle.features(CLIP[:, :6], horizon=4, generator=generator(1))
    assert oracle.shown.shape[2] == 4
    assert features.spans.tolist() == [[-5, -4], [-3, 0], [1, 4]] and features.times.tolist() == [-4.5, -1.5, 2.5]
    signal = oracle.encode(oracle.truth * 2 - 1).transpose(1, 2)
    torch.testing.assert_close(features.maps, signal[:, 1:], atol=0.02, rtol=0)


def test_the_past_of_the_loss_does_not_know_the_future() -> None:
    """Even with an autoencoder that takes the mean of all frames away."""
    oracle, shown = Oracle(), []
    encode = oracle.encode
    oracle.encode = lambda frames: encode(frames) - frames.mean()
    for future in (CLIP[:, 5:], 1 - CLIP[:, 5:]):
        oracle.truth = torch.cat([CLIP[:, :5], future], 1)
        oracle.joint(oracle.truth, 5, generator=generator(1))
        shown.append(oracle.shown[2:])
    assert torch.equal(shown[0][:, :, :2], shown[1][:, :, :2])
    assert not torch.allclose(shown[0][:, :, 2:], shown[1][:, :, 2:])


@pytest.mark.parametrize("level", [0.25, None], ids=["low", "top"])
def test_the_loss_alone_is_that_of_joint_and_costs_one_forward(level: float | None) -> None:
    oracle, clips = Oracle(level), []
    oracle.truth = 1 - CLIP  # it is wrong
    denoise = oracle.denoise
    oracle.denoise = lambda x, time, condition: clips.append(len(x)) or denoise(x, time, condition)
    beside, after = oracle.joint(CLIP, 5, generator=generator(1))[1], generator(1)
    torch.randn((1, 3, 4, 2, 3), generator=after)  # the noise of features, which are not wanted now
    clips.clear()
    alone = oracle.generative_loss(CLIP, 5, generator=after)
    assert clips == [2] and float(alone) > 0.01
    torch.testing.assert_close(alone, beside)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"taps": ()}, "taps must not be empty"),
        ({"taps": ("tip",)}, r"unknown taps \['tip'\]; ModuleDict has"),
        ({"level": 0.0}, "0 < level <= 1"),
        ({"level": 1.1}, "0 < level <= 1"),
        ({"steps": 0}, "denoising_steps >= 1"),
    ],
)
def test_impossible_taps_and_levels_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Oracle(**wrong)


@pytest.mark.parametrize("name", ["wan2.1-t2v-1.3b", "mochi", "cogvideox-2b", "animatediff"])
def test_models_that_text_alone_tells_are_not_read_at_pure_noise(name: str) -> None:
    with pytest.raises(ValueError, match="level 1 is pure noise, which tells this model nothing"):
        tiny(name, level=1.0)


def test_the_highest_level_is_the_highest_however_it_is_given() -> None:
    for level, most in ((None, 1), (700.0, 1), (10.0, 8)):
        assert tiny("svd", level=level, max_context=None).spec.contexts == (1, most)


@pytest.mark.parametrize("level", [None, 700.0])
def test_observed_frames_that_a_level_drowns_are_refused(level: float | None) -> None:
    told = "at level 700 the model does not see all of 2 observed frames; choose a level below 700, or max_context 1"
    with pytest.raises(ValueError, match=told):
        tiny("svd", level=level, max_context=2)
    assert tiny("svd", level=10.0, max_context=2).spec.contexts == (1, 2)


def test_a_horizon_that_fills_no_map_is_refused_in_training() -> None:
    for ask in (Oracle().joint, Oracle().generative_loss):
        with pytest.raises(ValueError, match="joint needs a multiple of 4 future frames, got 6; crop the clip"):
            ask(CLIP[:, :11], 5)


@pytest.mark.parametrize("name", ["wan2.1-t2v-1.3b", "ltx", "hunyuan", "hunyuan-i2v", "hunyuan-1.5"])
def test_encoders_of_prompts_go_where_they_are_told(name: str) -> None:
    moved = tiny(name, text_device="meta")
    told = moved.tell.pipeline.components.values() if hasattr(moved, "tell") else moved.prompts.encoders
    devices = {p.device.type for part in told if isinstance(part, torch.nn.Module) for p in part.parameters()}
    assert devices == {"meta"}
    assert {p.device.type for p in moved.parameters()} == {"cpu"}


def test_a_model_that_is_told_no_text_has_no_text_device() -> None:
    with pytest.raises(ValueError, match="SvdBackbone is told no text: leave text_device out"):
        tiny("svd", text_device="cpu")
    with pytest.raises(ValueError, match="there is no device 'nowhere'"):
        tiny("wan2.1-t2v-1.3b", text_device="nowhere")
