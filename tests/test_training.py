"""Training: exact resume, atomic files, loss balance, learning-rate schedule."""

import errno
import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset

from backbones import build_backbone
from para_video.agent import VideoPolicy
from para_video.batches import CircleBatches
from para_video.circles import CircleVideos
from para_video.heads import ParaHead
from para_video.readout import ReadoutSpec
from para_video.training import (
    STATE_FILE,
    FitConfig,
    LossBalance,
    check_precision,
    fit,
    learning_rate_factor,
    make_accelerator,
    write_atomically,
)
from tests.processes import run_python, run_twice


def tiny_policy() -> VideoPolicy:
    torch.manual_seed(0)
    backbone = build_backbone("mini-random", tap="fine", width=8, channels=8, depth=1)
    return VideoPolicy(backbone, ParaHead(8, ReadoutSpec(), grid=16, hidden=8), (1.0, 2.0))


def batches(seed: int, rank: int, processes: int) -> Dataset:
    return CircleBatches(CircleVideos(seed=seed, size=32, observed=2, future=3), batch_size=2, rank=rank, processes=processes)


CONFIG = FitConfig(steps=4, save_every=2, warmup=1, precision="no")


class Interrupted(Exception):
    pass


def interrupted_at(step: int):
    class Cut(CircleBatches):
        def __getitem__(self, index: int):
            if index == step:
                raise Interrupted
            return super().__getitem__(index)

    return lambda seed, rank, processes: Cut(CircleVideos(seed=seed, size=32, observed=2, future=3), batch_size=2)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, optimizer):
    config = replace(CONFIG, optimizer=optimizer)
    whole, cut = tiny_policy(), tiny_policy()
    fit(whole, batches, config, folder=tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(cut, interrupted_at(3), config, folder=tmp_path / "cut")
    again = tiny_policy()
    result = fit(again, batches, config, folder=tmp_path / "cut", resume=True)
    assert result.steps == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    first, second = (load_file(tmp_path / run / STATE_FILE) for run in ("whole", "cut"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


class Pressed(Dataset):
    """Batches; while the third is made, somebody presses Ctrl-C."""

    def __init__(self, inner: Dataset, press: Callable[[], object]) -> None:
        self.inner, self.press = inner, press

    def __getitem__(self, step: int):
        if step == 2:
            self.press()
        return self.inner[step]


def press_here() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def press_everywhere() -> None:
    """As a terminal does, in every process of the group."""
    os.killpg(0, signal.SIGINT)


def test_an_interrupt_finishes_the_step_and_saves_it(tmp_path, capsys):
    config, whole, cut = replace(CONFIG, save_every=1000), tiny_policy(), tiny_policy()
    fit(whole, batches, config)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3, which is saved"):
        fit(cut, lambda *place: Pressed(batches(*place), press_here), config, folder=tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    again = tiny_policy()
    fit(again, batches, config, folder=tmp_path, resume=True)
    assert "going on from step 3" in capsys.readouterr().out
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_an_interrupt_reaches_the_step_although_workers_make_its_batches(tmp_path):
    """As from a terminal, whose Ctrl-C goes to every process of the group."""
    program = tmp_path / "train.py"
    program.write_text(f"""
import os
from dataclasses import replace
from pathlib import Path
from tests.test_training import CONFIG, Pressed, batches, press_everywhere, tiny_policy
from para_video.training import fit

if __name__ == "__main__":
    os.setpgrp()
    config = replace(CONFIG, steps=50, save_every=1000, workers=1)
    try:
        fit(tiny_policy(), lambda *place: Pressed(batches(*place), press_everywhere), config, folder=Path({str(tmp_path)!r}))
    except KeyboardInterrupt as stopped:
        print(stopped)
""")
    done = run_python(program)
    assert "which is saved" in done.stdout and (tmp_path / STATE_FILE).is_file(), done.stderr[-2000:]


def test_an_interrupt_of_one_process_stops_and_saves_all(tmp_path):
    program = tmp_path / "train.py"
    program.write_text(f"""
from dataclasses import replace
from pathlib import Path
from tests.test_training import CONFIG, Pressed, batches, press_here, tiny_policy
from para_video.training import fit, make_accelerator

accelerator = make_accelerator("no")
try:
    make = lambda *place: Pressed(batches(*place), press_here if accelerator.process_index == 1 else lambda: None)
    fit(tiny_policy(), make, replace(CONFIG, save_every=1000), folder=Path({str(tmp_path)!r}), accelerator=accelerator)
except KeyboardInterrupt as stopped:
    print(f"{{accelerator.process_index}}: {{stopped}}", flush=True)
""")
    done = run_twice(program)
    told = [f"{rank}: training stopped after step 3, which is saved" for rank in (0, 1)]
    assert all(line in done.stdout for line in told), done.stderr[-2000:]
    assert fit(tiny_policy(), batches, replace(CONFIG, save_every=1000), folder=tmp_path, resume=True).steps == 4


def test_a_gradient_that_is_not_finite_stops_training_before_it_reaches_the_weights(tmp_path):
    class Root(torch.nn.Module):
        """Its loss is finite, and the slope of a square root at 0 is not."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2, 2))

        def forward(self, _) -> dict[str, torch.Tensor]:
            return {"root": self.weight.sqrt().sum()}

    module = Root()
    with pytest.raises(FloatingPointError, match="gradient is not finite at step 0"):
        fit(module, batches, replace(CONFIG, steps=1), folder=tmp_path)
    assert torch.equal(module.weight, torch.zeros(2, 2)) and not (tmp_path / STATE_FILE).exists()


def test_a_resumed_run_may_change_how_often_it_saves_and_says_what_it_was_calculated_in(tmp_path, capsys):
    with pytest.raises(Interrupted):
        fit(tiny_policy(), interrupted_at(3), CONFIG, folder=tmp_path)
    config = replace(CONFIG, workers=1, save_every=1)
    assert fit(tiny_policy(), batches, CONFIG).precision == "float32"
    half = fit(tiny_policy(), batches, config, folder=tmp_path, resume=True, accelerator=make_accelerator("bf16"))
    assert half.precision == "bf16+float32" and "in bf16 what began in float32" in capsys.readouterr().out


def test_training_moves_the_weights_and_returns_their_average(tmp_path):
    policy = tiny_policy()
    before = {name: value.clone() for name, value in policy.named_parameters()}
    fit(policy, batches, CONFIG, folder=tmp_path)
    saved = load_file(tmp_path / STATE_FILE)
    assert not torch.equal(before["head.kernel.weight"], policy.head.kernel.weight)
    assert torch.equal(saved["average/head.kernel.weight"], policy.head.kernel.weight)
    assert not torch.equal(saved["weights/head.kernel.weight"], policy.head.kernel.weight)


def test_weights_that_learn_in_half_precision_are_refused_and_frozen_ones_are_not():
    for dtype, name in ((torch.bfloat16, "bfloat16"), (torch.float16, "float16")):
        policy = tiny_policy()
        policy.backbone.to(dtype)
        with pytest.raises(ValueError, match=rf"backbone\.\S+ and \d+ more weights are {name}.*\"float32\".*\"lora_rank\"") as told:
            fit(policy, batches, CONFIG)
        assert "\n" not in str(told.value)
    frozen = VideoPolicy(tiny_policy().backbone, tiny_policy().head, (1.0, 2.0), frozen=True)
    frozen.backbone.stem.to(torch.bfloat16)
    check_precision(frozen)


def test_a_frozen_backbone_stays(tmp_path):
    torch.manual_seed(0)
    policy = VideoPolicy(
        build_backbone("mini-random", tap="fine", width=8, channels=8, depth=1),
        ParaHead(8, ReadoutSpec(), grid=16),
        (1.0,),
        frozen=True,
    )
    before = {name: value.clone() for name, value in policy.backbone.named_parameters()}
    fit(policy, batches, CONFIG)
    assert all(torch.equal(before[name], value) for name, value in policy.backbone.named_parameters())


def test_resume_refuses_other_settings_and_other_networks(tmp_path):
    fit(tiny_policy(), batches, CONFIG, folder=tmp_path)
    with pytest.raises(ValueError, match="steps was 4 and is 8"):
        fit(tiny_policy(), batches, FitConfig(steps=8, save_every=2, warmup=1, precision="no"), folder=tmp_path, resume=True)
    other = VideoPolicy(
        build_backbone("mini-random", tap="fine", width=8, channels=8, depth=2),
        ParaHead(8, ReadoutSpec(), grid=16, hidden=8),
        (1.0,),
    )
    with pytest.raises(ValueError, match="another network"):
        fit(other, batches, CONFIG, folder=tmp_path, resume=True)


def test_a_damaged_state_is_named_with_the_remedy(tmp_path):
    (tmp_path / STATE_FILE).write_bytes(b"\x08\0\0\0\0\0\0\0not json")
    with pytest.raises(ValueError, match=r"training\.safetensors is damaged.*delete it"):
        fit(tiny_policy(), batches, CONFIG, folder=tmp_path, resume=True)


def test_a_loss_that_is_not_finite_stops_training():
    policy = tiny_policy()
    with torch.no_grad():
        policy.head.kernel.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="step 0"):
        fit(policy, batches, CONFIG)


def test_balance_divides_by_the_running_mean_and_leaves_solved_losses_small():
    balance = LossBalance(decay=0.5, floor=0.1)
    values = [4.0, 2.0]
    totals = [float(balance.total({"a": torch.tensor(v)}, {"a": v})) for v in values]
    # means corrected for their start: 4, then (0.25 * 4 + 0.5 * 2) / 0.75 = 8/3
    assert totals == pytest.approx([1.0, 2.0 / (8 / 3)])
    solved = LossBalance(decay=0.5, floor=0.1)
    assert float(solved.total({"a": torch.tensor(0.01)}, {"a": 0.01})) == pytest.approx(0.1)
    assert float(LossBalance(0.0).total({"a": torch.tensor(3.0), "b": torch.tensor(2.0)}, {})) == 5.0


def test_learning_rate_warms_up_and_falls_to_a_hundredth():
    config = FitConfig(steps=100, warmup=10)
    assert learning_rate_factor(0, config) == pytest.approx(0.1, rel=1e-3)
    assert learning_rate_factor(50, config) == pytest.approx(0.505)
    assert learning_rate_factor(100, config) == pytest.approx(0.01)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_atomically(path, b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"summary\.json .*No space left.*free some space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"ema": 1.0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"backbone_learning_rate": 0.0},
        {"backbone_learning_rate": math.nan},
        {"weight_decay": -0.1},
        {"clip_norm": 0.0},
        {"save_every": 0},
        {"optimizer": "Muon"},
        {"precision": "float32"},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"got {{.*'{next(iter(wrong))}': "):
        FitConfig(**wrong)


def test_losses_are_kept_and_finite(tmp_path):
    result = fit(tiny_policy(), batches, CONFIG, folder=tmp_path)
    assert [row["step"] for row in result.losses] == [0, 3]
    assert json.dumps(result.losses)


def test_trainings_in_one_process_may_differ_in_precision():
    assert [make_accelerator(precision).mixed_precision for precision in ("bf16", "no", "bf16")] == ["bf16", "no", "bf16"]
