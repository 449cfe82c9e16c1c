"""What benchmarks/pictures.py shows and says: seeds that are not picked, captions of what was measured, bars of rows."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from para_video.circles import CircleVideos
from para_video.rollout import Cell, Episode

SCRIPT = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "pictures.py"))


def cell(outcomes: str) -> Cell:
    """Episodes from seed 100 on."""
    return Cell(tuple(Episode(100 + i, 9 if won == "1" else None, False, 9) for i, won in enumerate(outcomes)))


def policy(name: str, task: str = "push-v3", seed: int = 0) -> SimpleNamespace:
    key = {"task": task, "demos": 5, "seed": seed, "policy": name}
    return SimpleNamespace(name=name, key=key, config=SimpleNamespace(task=task))


@pytest.mark.parametrize(
    ("cells", "seed", "why"),
    [
        (("0110", "0010"), 101, "the first of them in which they differ"),
        (("0010", "1010"), 100, "the first of them in which they differ"),  # also where the other one wins
        (("0110", "0110"), 100, "the first of them, as there is none in which they differ"),
        (("0110",), 101, "the first of them in which it succeeds"),
        (("00",), 100, "the first of them, as there is none in which it succeeds"),
    ],
)
def test_the_first_telling_episode_is_shown(cells: tuple[str, ...], seed: int, why: str) -> None:
    assert SCRIPT["telling_seed"]([cell(each) for each in cells]) == (seed, why)


def test_a_caption_counts_what_was_measured() -> None:
    told = SCRIPT["counted"]({"para": cell("1" * 12 + "0" * 8), "act": cell("0" * 20)})
    assert told == "PARA succeeds in 12 of 20 episodes (39%-78%), ACT in 0 (0%-16%)"


def test_policies_of_one_run_are_compared_and_the_wall_has_every_task() -> None:
    runs = [policy("act", seed=1), policy("para"), policy("para", "hammer-v3"), policy("para", seed=1), policy("act")]
    assert SCRIPT["cast"](runs, "contrast") == [runs[1], runs[4]]
    assert SCRIPT["cast"](runs, "wall") == [runs[1], runs[2]]
    assert SCRIPT["cast"]([], "circles") == []
    for missing, name in (("rollouts", "regression"), ("heatmaps", "para")):
        with pytest.raises(ValueError, match=f"{missing} shows {name}: name its folder"):
            SCRIPT["cast"](runs if missing == "rollouts" else runs[:1], missing)


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    same = {"task": "push-v3", "seed": 0}
    path.write_text(json.dumps({"settings": {"steps": 7}, "rows": [{**same, "demos": 5, **row} for row in rows]}))


def test_bars_are_of_the_best_rows_that_are_there(tmp_path: Path) -> None:
    assert SCRIPT["starts"](tmp_path) == ({}, "not measured")
    quick = [
        {"arm": arm, "policy": "para", "view": "none", "succeeded": won} for arm, won in (("circles", "11"), ("scratch", "01"))
    ]
    others = [{**quick[0], "demos": 20, "succeeded": "00"}, {**quick[0], "policy": "expert", "succeeded": "00"}]
    write_rows(tmp_path / "claims-quick" / "circles.json", quick + others)
    cells, told = SCRIPT["starts"](tmp_path)
    assert list(cells) == ["para"] and {arm: each["rate"] for arm, each in cells["para"].items()} == {"scratch": 0.5, "circles": 1}
    assert list(cells["para"]) == ["scratch", "circles"], "what the others are compared with comes first"
    assert told == "1 task, 1 seed, 2 episodes a bar, after 7 steps of training (results/claims-quick/circles.json)"
    write_rows(
        tmp_path / "circle_arms.json", [{"arm": "none", "policy": "para", "succeeded": {"same": "1110", "azimuth+18": "0000"}}]
    )
    cells, told = SCRIPT["starts"](tmp_path)
    assert cells["para"]["none"]["rate"] == 0.75 and "circle_arms.json" in told


def test_arms_are_compared_on_what_all_of_them_have(tmp_path: Path) -> None:
    rows = [("circles", "a", "1"), ("scratch", "a", "1"), ("scratch", "b", "0")]
    shared = {"policy": "para", "view": "none", "seed": 0}
    write_rows(tmp_path / "claims" / "circles.json", [{**shared, "arm": m, "task": t, "succeeded": won} for m, t, won in rows])
    cells, _ = SCRIPT["starts"](tmp_path)
    assert {arm: each["rate"] for arm, each in cells["para"].items()} == {"scratch": 1.0, "circles": 1.0}


def test_circles_are_drawn_with_their_labels() -> None:
    clips = CircleVideos(seed=0)
    clip = clips[0]
    now, later = SCRIPT["circle_panels"](clip, clips.observed, side=128)
    assert now.shape == later.shape == (128, 128, 3)
    for panel, index in ((now, clips.observed - 1), (later, -1)):
        x, y = (clip.centres[index] + 0.5).int().tolist()
        plain = clip.video[index].permute(1, 2, 0).numpy()
        ring = round(float(clip.radius[index]))
        changed = (panel != plain).any(-1)
        assert changed[y, x - ring - 2 : x + ring + 3].any(), "a ring lies around the disc"


def test_the_page_is_written_without_policies_and_again(tmp_path: Path) -> None:
    config = SCRIPT["Config"](only=("circles",), page=tmp_path / "pages" / "pictures.md", results=tmp_path)
    config.page.parent.mkdir()
    SCRIPT["main"](config)
    first = config.page.read_text()
    assert "![What circles teach](pictures/circles.png)" in first and "not measured" in first
    write_rows(tmp_path / "claims" / "circles.json", [{"arm": "scratch", "policy": "para", "view": "none", "succeeded": "10"}])
    SCRIPT["main"](config)
    again = config.page.read_text()
    assert "results/claims/circles.json" in again and again.count("circles.png") == 1 and again.count("<!-- table") == 5
    assert np.asarray(Image.open(config.folder / "circles.png")).shape[1] > 1300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ("walls",)}, "unknown pictures.*choose from contrast"),
        ({"episodes": 0}, "at least 1"),
        ({"shift": "lok=1"}, "lok"),
    ],
)
def test_what_is_wrong_with_options_is_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SCRIPT["Config"](**options)
