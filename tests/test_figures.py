"""Figures: marks and peaks lie where they should to a fraction of a pixel; files are valid, complete and closed."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from para_video import figures
from para_video.statistics import Estimate

GREY = np.full((96, 128, 3), 90, np.uint8)


def change_centroid(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(x, y) centre of mass of what was drawn."""
    weight = np.abs(after.astype(float) - before).sum(-1)
    y, x = np.mgrid[: before.shape[0], : before.shape[1]]
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


def cell(successes: int, episodes: int = 50, low: float = 0.0, high: float = 1.0) -> dict:
    return {
        "successes": successes,
        "episodes": episodes,
        "held": successes,
        "rate": successes / episodes,
        "wilson95": [low, high],
    }


# ---------------------------------------------------------------- overlays and marks


@pytest.mark.parametrize("grid", [(24, 32), (12, 32), (7, 9), (96, 128)])
@pytest.mark.parametrize("place", [(0.3, 0.6), (0.7, 0.4)])
def test_overlay_peaks_at_the_pixel_of_the_hot_cell(grid: tuple[int, int], place: tuple[float, float]) -> None:
    h, w = grid
    i, j = int(place[1] * h), int(place[0] * w)
    heatmap = np.zeros(grid)
    heatmap[i, j] = 1.0
    centre = np.array([(j + 0.5) * 128 / w - 0.5, (i + 0.5) * 96 / h - 0.5])
    np.testing.assert_allclose(change_centroid(GREY, figures.overlay_heatmap(GREY, heatmap)), centre, atol=0.1)


def test_overlay_ignores_the_heatmaps_scale_and_leaves_cold_pixels_alone() -> None:
    heatmap = np.zeros((24, 32))
    heatmap[5, 6] = 0.01
    shown = figures.overlay_heatmap(GREY, heatmap)
    np.testing.assert_array_equal(shown, figures.overlay_heatmap(GREY, 100 * heatmap))
    np.testing.assert_array_equal(shown[60:], GREY[60:])
    np.testing.assert_array_equal(figures.overlay_heatmap(GREY, np.zeros((24, 32))), GREY)


@pytest.mark.parametrize("wrong", [np.full((4, 4), -1.0), np.full((4, 4), np.nan), np.zeros((1, 4, 4))])
def test_overlay_refuses_what_is_no_probability(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="pass probabilities, not logits"):
        figures.overlay_heatmap(GREY, wrong)


@pytest.mark.parametrize("style", ["dot", "cross", "ring", "trajectory"])
@pytest.mark.parametrize("point", [(40.0, 30.0), (40.5, 30.25), (41.3, 29.8)])
def test_marks_are_drawn_at_subpixel_positions(style, point: tuple[float, float]) -> None:
    drawn = figures.draw_points(GREY, [point], style=style, radius=4)
    np.testing.assert_allclose(change_centroid(GREY, drawn), point, atol=0.05)


def test_a_trajectory_joins_its_points_and_missing_points_are_left_out() -> None:
    points = np.array([[20.0, 20.0], [60.0, 20.0], [np.nan, np.nan], [100.0, 80.0]])
    drawn = figures.draw_points(GREY, points, style="trajectory", radius=4)
    assert (drawn[20, 40] != GREY[20, 40]).any(), "between two known points there is a line"
    np.testing.assert_array_equal(drawn[30:60, 70:90], GREY[30:60, 70:90])
    assert (drawn[80, 100] == figures.time_colours(4)[3]).all()


def test_points_outside_the_frame_are_harmless_and_the_input_is_not_written_to() -> None:
    frame = GREY.copy()
    figures.draw_points(frame, [[-50.0, 10.0], [500.0, 500.0], [0.0, 0.0]])
    np.testing.assert_array_equal(frame, GREY)
    np.testing.assert_array_equal(figures.draw_points(frame, [[-50.0, 10.0], [500.0, 500.0]]), GREY)


def test_upscale_keeps_a_mark_under_its_point() -> None:
    big = figures.upscale(figures.draw_points(GREY, [(40.25, 30.75)], radius=4), 3)
    assert big.shape == (288, 384, 3)
    expected = figures.upscale_points((40.25, 30.75), 3)
    np.testing.assert_allclose(change_centroid(figures.upscale(GREY, 3), big), expected, atol=0.1)


def test_words_change_the_band_alone_and_long_ones_stay_inside() -> None:
    short = figures.label(GREY, "frame 3")
    np.testing.assert_array_equal(short[20:], GREY[20:])
    assert short[:12].max() > 200, "the words are light on dark"
    assert (figures.label(GREY, "frame 4") != short).any()
    long = figures.label(GREY, "a very long sentence that no frame of this size can hold", place="bottom")
    np.testing.assert_array_equal(long[:70], GREY[:70])
    assert long[-12:, -3:].max() < 60, "the words end before the edge"


def test_frames_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="multiply by 255"):
        figures.draw_points(GREY / 255.0, [[1, 1]])
    with pytest.raises(ValueError, match="choose from dot, cross, ring, trajectory"):
        figures.draw_points(GREY, [[1, 1]], style="star")  # type: ignore[arg-type]


# ---------------------------------------------------------------- sheets and videos


def test_heatmap_strip_marks_each_panel_at_its_own_point() -> None:
    heatmaps, points = np.zeros((3, 24, 32)), np.array([[20.0, 20.0], [60.0, 40.0], [100.0, 70.0]])
    strip = figures.heatmap_strip(GREY, heatmaps, points, columns=2, factor=2)
    assert strip.shape == (2 * 192 + 4, 2 * 256 + 4, 3)
    blank = figures.heatmap_strip(GREY, heatmaps, columns=2, factor=2)
    for i, corner in enumerate([(0, 0), (0, 260), (196, 0)]):
        panel = np.s_[corner[0] : corner[0] + 192, corner[1] : corner[1] + 256]
        np.testing.assert_allclose(change_centroid(blank[panel], strip[panel]), figures.upscale_points(points[i], 2), atol=0.1)
    labelled = figures.heatmap_strip(GREY, heatmaps, points, truth=points, labels=["a", "b", "c"], columns=3, factor=2)
    assert labelled.shape[0] > 192, "labels stand above the picture, not on it"


def test_heatmap_strip_counts_what_it_is_given() -> None:
    with pytest.raises(ValueError, match="3 heatmaps want as many points, got 2"):
        figures.heatmap_strip(GREY, np.ones((3, 4, 4)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="3 heatmaps want as many frames, got 2"):
        figures.heatmap_strip(np.stack([GREY, GREY]), np.ones((3, 4, 4)))


def test_side_by_side_freezes_the_shorter_video_and_shows_outcomes_from_the_end_on() -> None:
    video = np.stack([np.full((95, 127, 3), 20 * t, np.uint8) for t in range(8)])
    film = figures.side_by_side([video, video[:3]], ("PARA", "regression"), (True, False), hold=2)
    assert len(film) == 10 and film.dtype == np.uint8
    assert film.shape[1] % 2 == 0 and film.shape[2] % 2 == 0
    middle, left, right = film.shape[1] // 2, film.shape[2] // 4, 3 * film.shape[2] // 4
    assert [int(f[middle, left, 0]) for f in film] == [0, 20, 40, 60, 80, 100, 120, 140, 140, 140]
    assert [int(f[middle, right, 0]) for f in film] == [0, 20] + [40] * 8
    footer = film[:, -3]
    assert [tuple(f[left]) == figures.SUCCESS for f in footer] == [False] * 7 + [True] * 3
    assert [tuple(f[right]) == figures.FAILURE for f in footer] == [False] * 2 + [True] * 8
    assert [tuple(f[middle, 0]) == figures.SUCCESS for f in film] == [False] * 7 + [True] * 3, "the border too"


def test_side_by_side_breaks_many_videos_into_rows() -> None:
    video = np.full((2, 40, 40, 3), 90, np.uint8)
    film = figures.side_by_side([video] * 5, "abcde", [True] * 5, columns=3, width=40)
    single = figures.side_by_side([video], "a", [True], width=40)
    assert film.shape[2] == 3 * 40 + 2 * 6 and film.shape[1] >= 2 * single.shape[1]
    assert (film[:, -10, -10] == 255).all(), "the place of a sixth stays empty"


def test_an_animation_plays_again_and_again_at_its_rate(tmp_path: Path) -> None:
    figures.write_animation(tmp_path / "a.webp", [np.full((20, 30, 3), 40 * t, np.uint8) for t in range(4)], fps=8)
    with Image.open(tmp_path / "a.webp") as image:
        assert (image.n_frames, image.size, image.info["loop"]) == (4, (30, 20), 0)
        image.seek(2)
        image.load()
        assert image.info["duration"] == 125 and abs(int(np.asarray(image.convert("RGB")).mean()) - 80) < 4


def test_a_title_stands_above_the_picture() -> None:
    shown = figures.titled(GREY, "step 3", background=figures.SUCCESS)
    np.testing.assert_array_equal(shown[-96:], GREY)
    assert len(shown) > 96 and tuple(shown[0, -1]) == figures.SUCCESS


def test_side_by_side_refuses_videos_that_do_not_match() -> None:
    with pytest.raises(ValueError, match="one size, at least a frame each"):
        figures.side_by_side([np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 9, 3), np.uint8)], "ab", (True, True))
    with pytest.raises(ValueError, match="one size, at least a frame each"):
        figures.side_by_side([np.zeros((0, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3), np.uint8)], "ab", (True, True))


# ---------------------------------------------------------------- charts


def bar_top(image: np.ndarray, colour: str) -> int:
    """The highest row with a long run of a colour: the top of its bar (its legend patch is short)."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    rows = (np.abs(image[..., :3].astype(int) - rgb).sum(-1) < 6).sum(1)
    return int(np.flatnonzero(rows > 60)[0])


def test_bars_are_as_high_as_their_rates(tmp_path: Path) -> None:
    path = tmp_path / "bars.png"
    cells = {"a": {"same": cell(50)}, "b": {"same": cell(25)}, "c": {"same": cell(10)}}
    figures.success_bars(path, cells, references={"expert": 1.0, "blind_replay": cell(0)}, title="three bars")
    image = np.asarray(Image.open(path))
    full, half, fifth = (bar_top(image, figures.PALETTE[i]) for i in range(3))
    assert (half - full) / (fifth - full) == pytest.approx(0.5 / 0.8, abs=0.02)


def test_a_bar_of_a_mean_is_as_high_as_the_mean(tmp_path: Path) -> None:
    path = tmp_path / "bars.png"
    mean = {"successes": 10, "episodes": 50, "rate": 0.5, "interval95": (0.4, 0.6)}
    figures.success_bars(path, {"a": {"same": cell(50)}, "b": {"same": mean}, "c": {"same": cell(25)}})
    image = np.asarray(Image.open(path))
    assert bar_top(image, figures.PALETTE[1]) == pytest.approx(bar_top(image, figures.PALETTE[2]), abs=1)


def test_curves_are_the_same_bytes_twice_and_differ_with_their_intervals(tmp_path: Path) -> None:
    sure, unsure = ({0: Estimate(1, 1, 1), 10: Estimate(0.5, low, 0.6)} for low in (0.4, 0.1))
    for name, curve in (("sure", sure), ("again", sure), ("unsure", unsure)):
        figures.success_curves(
            tmp_path / name, {"a": {"para": curve}, "b": {"act": {0: Estimate(0, 0, 0.1)}}}, xlabels=["x", "y"],
            ceilings={"a": {0: 1.0, 10: 0.9}},
        )  # fmt: skip
    content = [(tmp_path / name).read_bytes() for name in ("sure", "again", "unsure")]
    assert content[0] == content[1] != content[2]
    with pytest.raises(ValueError, match="1 labels for 2 panels"):
        figures.success_curves(tmp_path / "x", {"a": {"para": sure}, "b": {"para": sure}}, xlabels=["x"])


def test_charts_are_the_same_bytes_twice_and_differ_with_their_data(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.png", "b.png", "c.png", "d.png", "e.png", "f.png")]
    for path, k in zip(files[:3], (20, 20, 30), strict=True):
        figures.success_bars(path, {"para": {"same": cell(k), "azimuth+18": cell(5)}, "act": {"same": cell(1)}})
    for path, worst in zip(files[3:], (9.0, 9.0, 5.0), strict=True):
        figures.error_curve(path, {"PARA": {"-1": 1.0, "10": 4.0, "4": 2.0}, "constant velocity": {-1: 1.0, 10: worst}})
    content = [path.read_bytes() for path in files]
    assert content[0] == content[1] != content[2] and content[3] == content[4] != content[5]
    for path in files:
        with Image.open(path) as image:
            assert image.format == "PNG" and min(image.size) > 400


def test_charts_refuse_numbers_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="para / same: the interval .* does not hold the rate 0.5; give both as fractions"):
        figures.success_bars(tmp_path / "x.png", {"para": {"same": cell(25, low=60, high=80)}})
    with pytest.raises(ValueError, match="at least one episode"):
        figures.success_bars(tmp_path / "x.png", {"para": {"same": {"successes": 0, "episodes": 0, "wilson95": (0, 1)}}})
    with pytest.raises(ValueError, match="got no cells"):
        figures.success_bars(tmp_path / "x.png", {})
    with pytest.raises(ValueError, match="got no points"):
        figures.error_curve(tmp_path / "x.png", {"PARA": {}})


def test_names_are_written_for_people() -> None:
    assert figures.display_name("azimuth+18") == "azimuth +18°"
    assert figures.display_name("blind_replay") == "blind replay"
    assert figures.display_name("para") == "PARA"


# ---------------------------------------------------------------- the report


class Page(HTMLParser):
    """Tags, the addresses they hold, and the text between them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "link"):
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "poster", "srcset", "data", "action")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    Image.fromarray(GREY).save(tmp_path / "picture.png")
    (tmp_path / "film.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42 not really a film")
    summary = {
        "task": "<script>alert(1)</script>",
        "policies": {
            "para": {"cells": {"same": cell(35, low=0.56, high=0.81)}, "steps": 900, "ms_per_act": {"p50": 5.125, "p95": 7.0}},
            "<b>": {"cells": {"azimuth+18": cell(3)}, "seconds": 12.3456},
        },
        "oracle": {"expert": cell(50), "readout": 0.98, "blind_replay": None},
        "median_error_px": {"0": 1.25, "8": 3.5},
        "constant_velocity_px": {"0": 1.25, "8": 7.75},
        "command": 'python finetune/robot.py --task "a & b"',
        "config": {"lr": 0.001, "policies": ["para", "</table>"]},
        "versions": {"torch": "2.13.0"},
        "seconds": 98.75,
        "not_counted": None,
        "expert": 0,
        "schedule": {"chunk": 6, "executed": 2},
    }
    media = [("Picture", "A <i>caption</i>", tmp_path / "picture.png"), ('Film "x"', "", tmp_path / "film.mp4")]
    figures.write_report(tmp_path / "report.html", summary, media, title="Run & report", intro="<img src=x>")
    return tmp_path / "report.html"


def test_report_holds_everything_it_shows(report: Path, tmp_path: Path) -> None:
    page, text = Page(report), report.read_text()
    assert [address.split(",")[0] for address in page.addresses] == ["data:image/png;base64", "data:video/mp4;base64"]
    assert "url(" not in text and "@import" not in text
    assert not re.search(r"https?://|file:|//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))
    assert page.tags.count("img") == 1 and page.tags.count("video") == 1
    assert "default-src 'none'" in text
    assert not list(tmp_path.glob("*.part"))


def test_report_tells_the_run_s_seconds_from_those_of_training(report: Path) -> None:
    words = " ".join(Page(report).words)
    assert re.search(r"in all, s\s+98\.75", words) and "training, s" in words and "not counted" not in words
    assert words.count("scripted expert") == 1 and "executed" not in words, "what tells programs what may be compared"


def test_report_escapes_what_it_is_given(report: Path) -> None:
    page = Page(report)
    assert not page.open, "every tag is closed in order"
    assert "script" not in page.tags and "i" not in page.tags
    words = "".join(page.words)
    for shown in (
        "<script>alert(1)</script>",
        "A <i>caption</i>",
        "<img src=x>",
        "para, </table>",
        '--task "a & b"',
        "Run & report",
    ):
        assert shown in words


def test_report_tells_the_results(report: Path) -> None:
    words = " ".join(" ".join(Page(report).words).split())
    for shown in ("PARA 35/50 70% [56%, 81%] held 35", "azimuth +18°", "3/50", "read-out oracle 98%", "scripted expert 50/50"):
        assert shown in words
    for shown in ("p50 5.125", "12.35", "900", "median error px 1.25 3.5", "constant velocity px 1.25 7.75", "torch 2.13.0"):
        assert shown in words


def test_a_report_tells_references_of_the_view_that_they_are_of(tmp_path: Path) -> None:
    policies = {"para": {"cells": {"azimuth+18": cell(3)}, "seconds": 12.0}}
    figures.write_report(tmp_path / "report.html", {"policies": policies, "oracle": {"expert": cell(50)}}, [], title="t")
    words = " ".join(" ".join(Page(tmp_path / "report.html").words).split())
    assert "azimuth +18° same view" in words
    rows = (tmp_path / "report.html").read_text().split("<tr")
    (row,) = [row for row in rows if "scripted expert" in row]
    assert [bool(part.partition("</td>")[0]) for part in row.split("<td>")[1:]] == [False, True, False]


def test_report_is_the_same_bytes_twice_and_refuses_media_it_cannot_show(report: Path, tmp_path: Path) -> None:
    picture = [("Picture", "", tmp_path / "picture.png")]
    for name in ("a.html", "b.html"):
        figures.write_report(tmp_path / name, {"seed": 0}, picture, title="t")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    with pytest.raises(ValueError, match=r"cannot show 'x.svg'; choose from .png"):
        figures.write_report(tmp_path / "c.html", {}, [("x", "", tmp_path / "x.svg")], title="t")
    assert not (tmp_path / "c.html").exists()


def test_a_table_takes_its_place_and_nothing_else(tmp_path):
    page = tmp_path / "page.md"
    figures.write_table(page, "a.py", ["x", "y"], [["1", "2"]], "made by a", heading="# Title\n\n")
    page.write_text(page.read_text() + "after\n")
    figures.write_table(page, "a.py", ["x", "y"], [["3", "4"]], "made again", heading="ignored")
    text = page.read_text()
    assert text.startswith("# Title\n") and text.endswith("after\n") and "ignored" not in text
    assert "| x | y |\n| --- | --- |\n| 3 | 4 |\n\nmade again\n" in text and "| 1 | 2 |" not in text
    with pytest.raises(ValueError, match=r"page\.md has no place for the table"):
        figures.write_table(page, "b.py", ["x"], [], "")
    page.write_text(text + "<!-- table: b.py -->\n<!-- end of table -->\nlast\n")
    figures.write_place(page, "a.py", "new")
    figures.write_place(page, "b.py", "other")
    places = "<!-- table: a.py -->\n\nnew\n\n<!-- end of table -->\nafter\n<!-- table: b.py -->\n\nother\n\n"
    assert page.read_text() == f"# Title\n\n{places}<!-- end of table -->\nlast\n"
