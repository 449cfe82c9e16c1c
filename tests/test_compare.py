"""Backbones side by side: rows that are kept and gone on with, and what the figures in them mean."""

import json
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

from backbones import compare
from backbones.compare import CompareConfig, build, draw_sweep, drop, redraw, sweep, table
from para_video.features import FeatureSpec
from para_video.precision import precision_of
from para_video.rows import Rows
from para_video.statistics import wilson_interval

TINY = {
    "steps": 1, "circle_steps": 1, "batch_size": 2, "clips": 4, "held_out": 2, "task": "reach-v3", "demos": 1,
    "unseen": 1, "copies": 1,
    "tasks": ("reach-v3",), "scenes": 1, "azimuths": (6.0, 18.0), "points": 20, "size": 48, "repeats": 1,
}  # fmt: skip

COST_APART = compare.cost_apart


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch, tmp_path):
    monkeypatch.setenv("PARA_VIDEO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compare, "cost_apart", lambda name, options, config: compare.cost(name, options, config.size, 1))
    monkeypatch.setattr(compare, "episode_steps", lambda task: 10)


def test_a_comparison_is_kept_and_gone_on_with_name_by_name(tmp_path, monkeypatch):
    config = CompareConfig(("mini-random", "efficientnet-lite0@random"), out=tmp_path / "out", **TINY)
    with monkeypatch.context() as patch, pytest.raises(pytest.fail.Exception, match="cut"):
        patch.setattr(compare, "robot_readout", lambda *_: pytest.fail("cut"))
        compare.main(config)
    kept = json.loads((tmp_path / "out" / "rows.json").read_text())["rows"]
    assert [(row["backbone"], sorted(row)) for row in kept] == [
        ("mini-random", ["backbone", "circles", "correspondence", "cost", "options"])
    ]
    monkeypatch.setattr(compare, "circles_readout", lambda *_: {"px_seen": 1.0, "px_future": 2.0})
    rows = compare.main(config)
    assert rows[0]["circles"] == kept[0]["circles"] and rows[1]["circles"] == {"px_seen": 1.0, "px_future": 2.0}
    assert all(row["robot"]["px"] > 0 and row["cost"]["ms"] > 0 for row in rows)

    monkeypatch.setattr(compare, "correspondence", lambda *_: pytest.fail("measured again"))
    assert compare.compare(config) == rows
    with pytest.raises(ValueError, match="scenes was 1 and is 2"):
        CompareConfig(out=tmp_path / "out", **{**TINY, "scenes": 2}).rows()


def test_policies_are_asked_for_later_and_their_drop_is_drawn(tmp_path):
    config = CompareConfig(("mini-random",), out=tmp_path / "out", **TINY)
    before = compare.compare(config)[0]
    assert "policy" not in before and table([before], config)[0][-2:] == ["", ""]
    acting = CompareConfig(("mini-random",), episodes=1, out=tmp_path / "out", **TINY)
    after = compare.compare(acting)[0]
    assert after["policy"]["same"]["episodes"] == 1 and after["robot"]["px"] == before["robot"]["px"]
    assert {path.name for path in compare.draw([after], acting)} >= {"error_ms.png", "correspondence_drop.png"}
    titles = [row[0] for row in table([after], acting)]
    assert titles == ["mini-random", "chance", "same pixel", "blind replay"]


def test_correspondence_of_position_itself_is_no_better_than_a_camera_that_did_not_move(tmp_path):
    config = CompareConfig(out=tmp_path, **{**TINY, "size": 64})
    found = compare.guesses(config)
    still = found["same pixel"]["foreground"]
    assert still["6"]["median_px"] < still["18"]["median_px"] < found["chance"]["foreground"]["18"]["median_px"]
    assert still["all"]["points"] == still["6"]["points"] + still["18"]["points"] <= 40


def test_a_redrawn_network_has_other_weights_of_the_same_size():
    torch.manual_seed(0)
    network = torch.nn.Module()
    network.layer, network.tokens = torch.nn.Linear(64, 64), torch.nn.Parameter(3 + 0.1 * torch.randn(1000))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    redraw(network)
    for old, new in zip(before, (parameter.detach() for parameter in network.parameters()), strict=True):
        assert not torch.equal(old, new)
        assert float(new.mean()) == pytest.approx(float(old.mean()), abs=0.02)
        assert float(new.std()) == pytest.approx(float(old.std()), rel=0.2)
    with pytest.raises(ValueError, match="unknown weights 'randm'"):
        build("mini@randm", {})


def test_maps_of_drawn_weights_do_not_fade():
    maps = build("efficientnet-lite0@random", {}).features(torch.rand(2, 1, 3, 64, 64)).maps
    assert 0.1 < float(maps.detach().std()) < 10
    assert not any(part.training for part in build("efficientnet-lite0@random", {}).modules())


def test_a_drop_is_certain_only_where_cells_are_far_apart():
    cell = lambda won, n=50: {"rate": won / n, "wilson95": wilson_interval(won, n)}  # noqa: E731
    fall, low, high = drop(cell(41), cell(26))
    # by hand, Newcombe's method 10
    (l1, u1), (l2, u2) = wilson_interval(41, 50), wilson_interval(26, 50)
    assert fall == pytest.approx(0.3)
    assert low == pytest.approx(0.3 - ((0.82 - l1) ** 2 + (u2 - 0.52) ** 2) ** 0.5)
    assert high == pytest.approx(0.3 + ((u1 - 0.82) ** 2 + (0.52 - l2) ** 2) ** 0.5)
    assert low > 0 and drop(cell(2), cell(1))[1] < 0 < drop(cell(2), cell(1))[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": (1.0, 0.5)}, "every level wants its denoising_steps, got 2 levels and 4 numbers of steps"),
        ({"options": "scale=2"}, "options of a backbone are a JSON object"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_told_before_it_begins(options, message, tmp_path):
    config = import_module("benchmarks.taps").Config
    with pytest.raises(ValueError, match=message):
        config(**options)
    assert config(levels=()).denoising_steps, "nothing without levels"


def test_taps_and_levels_are_swept_once(tmp_path, monkeypatch):
    config = CompareConfig(out=tmp_path / "out", **TINY)
    rows = Rows(tmp_path / "taps.json", {}, ("tap", "level", "denoising_steps"))
    found = sweep("mini-random", ["coarse", "fine"], [(1.0, 1)], config, rows)
    assert [(row["tap"], row["level"]) for row in found] == [("coarse", 1.0), ("fine", 1.0)]
    draw_sweep(tmp_path / "taps.png", found, "px")
    assert (tmp_path / "taps.png").stat().st_size > 0
    found = sweep("mini-random", ["encoder"], [(1.0, 1), (0.5, 2)], config, rows)
    assert [(row["level"], row["denoising_steps"]) for row in found if row["tap"] == "encoder"] == [(None, 0)]
    draw_sweep(tmp_path / "both.png", found, "px")
    assert (tmp_path / "both.png").stat().st_size > 0
    monkeypatch.setattr(compare, "robot_readout", lambda *_: pytest.fail("measured again"))
    assert sweep("mini-random", ["coarse", "encoder", "fine"], [(1.0, 1)], config, rows) == found
    assert compare.tap_options("svd", "up_blocks.1+up_blocks.2", 10.0, 4) == {
        "taps": ["up_blocks.1", "up_blocks.2"], "level": 10.0, "denoising_steps": 4,
    }  # fmt: skip
    assert compare.tap_options("mini@random", "fine", None, 0) == {"tap": "fine"}


def test_costs_are_measured_in_a_process_of_its_own():
    found = COST_APART("mini-random", {"width": 8}, CompareConfig(repeats=1, size=32))
    assert found["precision"] == precision_of(torch.device("cpu"))
    assert found["ms"] > 0 and found["parameters"] < 200_000
    assert found["memory_mb"] is None or 0 < found["memory_mb"] < 500


def test_clips_are_as_long_as_a_backbone_takes_them():
    spec = {"channels": 8, "stride": 4, "span": 1, "size_multiple": 4}
    for contexts, horizon, expected in (((1, 8), 6, (4, 6)), ((6, 8), 4, (6, 4)), ((1, 2), 0, (2, 6))):
        backbone = SimpleNamespace(spec=FeatureSpec(**spec, contexts=contexts, max_horizon=horizon, predicts=horizon > 0))
        assert compare.taken(backbone) == expected


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ('{"mini": 3}', "options of a backbone are a JSON object .*, got '3'"),
        ('{"mini@random": "{}"}', "options of a backbone are a JSON object"),
        ('{"minni": {}}', "unknown backbone 'minni'; did you mean 'mini'"),
        ('{"mini@rndom": {}}', "unknown weights 'rndom'"),
        ('{"svd": {"source": 3}}', "source is a model's name on the hub or a folder, as text; got 3"),
    ],
)
def test_impossible_options_of_a_backbone_are_told_before_any_is_measured(options, told):
    with pytest.raises(ValueError, match=told):
        CompareConfig(("mini",), options=options)


@pytest.mark.parametrize(
    "options", [{"scenes": 0}, {"episodes": -1}, {"options": "[]"}, {"options": "scale=2"}, {"tasks": ()}, {"azimuths": ()}]
)
def test_impossible_settings_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        CompareConfig(**options)


def test_options_for_a_backbone_that_is_not_compared_are_refused(tmp_path):
    with pytest.raises(ValueError, match="dinov2"):
        compare.compare(CompareConfig(("mini",), options='{"dinov2": {}}', out=tmp_path, **TINY))


def test_unknown_tasks_are_told_before_anything_is_kept(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"unknown tasks \['hamer-v3'\]; did you mean 'hammer-v3'"):
        CompareConfig(tasks=("hamer-v3",), out=tmp_path)


@pytest.mark.parametrize(("name", "told"), [("efficientnet-lit0", "efficientnet-lite0"), ("mini@rndom", "unknown weights 'rndom'")])
def test_wrong_names_are_told_before_any_is_measured(name, told):
    with pytest.raises(ValueError, match=told):
        CompareConfig(("mini", name))
