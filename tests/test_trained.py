"""What is measured of trained policies: rows that are gone on with, of the weights that are there, and the pages made of them."""

import json
import re
import runpy
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
import tyro

from finetune.grid import KEY
from finetune.trained import load_trained, told
from para_video.baselines import ActionStatistics
from para_video.checkpoint import PolicySpec, save_policy
from para_video.demos import TUNING_SEED
from para_video.heatmap import Bins
from para_video.ladder import PARTS
from para_video.readout import ReadoutSpec
from para_video.rows import Rows

SPEC = ReadoutSpec(z=Bins(-0.1, 0.1, 8), relative=True)
ROOT = Path(__file__).parent.parent


def save(folder: Path, head: str = "para_video.heads:ParaHead", seed: int = 0, **options) -> Path:
    """A policy with fresh weights, as finetune/robot.py would leave it."""
    torch.manual_seed(seed)
    spec = PolicySpec(
        "backbones.mini:MiniVideo", head, head_options={"spec": SPEC, "hidden": 8, "layers": 1, "mixing": 0, **options}
    )
    save_policy(spec.build(), spec, folder)
    settings = {"task": "reach-v3", "demos": 2, "size": 48, "seed": 3, "demo_folder": None, "processes": 1}
    (folder.parent / "settings.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "robot"
    save(folder / "para", grid=16)
    unit = ((0.0, 0.6, 0.2), (0.1, 0.1, 0.1))
    statistics = ActionStatistics(*unit, *unit, *unit, *unit)
    save(folder / "regression", "para_video.baselines:GlobalRegressionHead", statistics=statistics, points=4, width=16)
    return folder


def measure(name: str, tmp_path: Path, *runs: Path, **options) -> tuple[list[dict], str]:
    """Rows and page of a benchmark, of one episode of nine steps and a short ladder."""
    names = runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"))
    names["main"].__globals__.update(RUNGS=((), ("pixel",), PARTS))
    places = {"results": tmp_path / f"{name}.json", "page": tmp_path / f"{name}.md"}
    config = names["Config"](runs=runs, episodes=1, **{"first_seed": TUNING_SEED + 20, **places, **options})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune.trained.episode_steps", lambda *_: 9)
        return names["main"](config), config.page.read_text()


def test_a_policy_on_a_backbone_of_ones_own_is_loaded_by_who_trusts_it(run: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "ownpackage.py").write_text("from backbones.mini import MiniVideo\n\n\nclass Mine(MiniVideo):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = shutil.copytree(run, tmp_path / "robot") / "para"
    config = (folder / "config.json").read_text().replace("backbones.mini:MiniVideo", "ownpackage:Mine")
    (folder / "config.json").write_text(config)
    with pytest.raises(ValueError, match="pass 'ownpackage' among `trusted`"):
        load_trained(folder)
    assert type(load_trained(folder, ["ownpackage"]).policy.backbone).__name__ == "Mine"
    for name in ("ladder", "equivariance", "beyond", "pictures"):
        parsed = tyro.cli(import_module(f"benchmarks.{name}").Config, args=["--trust", "ownpackage", str(folder)])
        assert parsed.trust == ("ownpackage",) and parsed.runs == (folder,)


def test_a_policy_is_loaded_with_the_task_of_its_run(run: Path, tmp_path: Path) -> None:
    trained = load_trained(run / "para")
    assert trained.key == {"task": "reach-v3", "demos": 2, "seed": 3, "policy": "para"} and trained.config.size == 48
    rows = Rows(tmp_path / "rows.json", {}, KEY)
    trained.add(rows, {"succeeded": {"same": "01"}}, arm="a")
    assert trained.missing(rows, arm="b") and not trained.missing(rows, arm="a")
    with pytest.raises(ValueError, match="rows of another policy, with other weights.*choose another --results"):
        replace(trained, weights="others").missing(rows, arm="a")
    with pytest.raises(FileNotFoundError, match="lies in no run of finetune/robot.py"):
        load_trained(tmp_path / "para" / "para")


def test_a_gain_is_told_beside_the_interval_of_the_rate(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.json", {}, KEY)
    for arm, outcome in (("plain", "0" * 20), ("better", "1" * 20)):
        rows.add({"task": "t", "demos": 5, "seed": 0, "policy": "para", "arm": arm, "succeeded": {"same": outcome}})
    assert told(rows, "para", "better", "plain", "same") == ("20/20 (84%-100%)", "+100 (+100 to +100)")
    assert told(rows, "para", "plain", "plain", "same") == ("0/20 (0%-16%)", "")
    assert told(rows, "act", "plain", "plain", "same") == ("", "")


def test_the_ladder_is_gone_on_with(run: Path, tmp_path: Path) -> None:
    rows, _ = measure("ladder", tmp_path, run / "para")
    assert len(rows) == 3 and all(len(row["succeeded"]["same"]) == 1 for row in rows)
    both, page = measure("ladder", tmp_path, run / "para", run / "regression")
    assert len(both) == 6 and [row["seconds"] for row in both if row["policy"] == "para"] == [row["seconds"] for row in rows]
    assert "| pixel + height + gripper + servo |" in page and page.count("<!-- end of table -->") == 2
    assert "| reach-v3, 2 | regression | same view |" in page and (tmp_path / "ladder.png").stat().st_size > 0


def test_shifted_pictures_make_a_table_and_a_picture(run: Path, tmp_path: Path) -> None:
    rows, page = measure("equivariance", tmp_path, run / "para", run / "regression", shifts=(4, 8), every=9)
    assert [[part["shift"] for part in row["medians"]] for row in rows] == [[0, 4, 8]] * 2
    assert all(row["medians"][0]["pixel_px"] < 1e-3 for row in rows)
    assert "| regression | pixel off the moved one, px | 0.0 |" in page and (tmp_path / "equivariance.png").stat().st_size > 0


@pytest.mark.parametrize("name", ["ladder", "equivariance", "beyond"])
def test_a_page_of_another_name_shows_its_own_pictures(name: str, tmp_path: Path) -> None:
    module = import_module(f"benchmarks.{name}")
    module.main(module.Config(page=tmp_path / "mine.md"))
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (tmp_path / "mine.md").read_text())
    assert shown and all(picture.startswith("mine") and (tmp_path / picture).is_file() for picture in shown)


def test_every_way_beyond_the_peak_is_measured_on_the_same_episodes(run: Path, tmp_path: Path) -> None:
    rows, page = measure("beyond", tmp_path, run / "para", shifts="none", tuning_episodes=1)
    assert len(rows) == 6 and len({row["limit"] for row in rows}) == 1
    worth = next(row for row in rows if row["arm"] == "as it is")["calibration"]["same"]
    assert worth["entropy"]["decisions"] == 2 and worth["surprise"]["episodes"] == 1
    assert page.count("<!-- end of table -->") == 2 and "| PARA | both cameras | 0/1" in page
    assert all((tmp_path / name).stat().st_size > 0 for name in ("beyond.png", "beyond-doubt.png"))


@pytest.mark.parametrize("name", ["ladder", "equivariance", "beyond", "pictures"])
def test_seeds_of_demonstrations_and_of_tuning_are_not_measured_on(name: str) -> None:
    config = import_module(f"benchmarks.{name}").Config
    for wrong in ({"first_seed": 0}, {"episodes": 0}):
        with pytest.raises(ValueError, match="seeds below are of demonstrations; got"):
            config(**wrong)
    if name == "beyond":
        with pytest.raises(ValueError, match="end before first_seed"):
            config(first_seed=TUNING_SEED)


@pytest.mark.parametrize("name", ["ladder", "equivariance", "beyond"])
def test_without_rows_the_remedy_is_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name the folders of trained policies"):
        measure(name, tmp_path)
