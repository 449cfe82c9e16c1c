"""Rows of a table: kept, told apart, refused."""

import json

import pytest

from para_video.rows import Rows

KEY = ("task", "arm")


def row(arm: str, won: str):
    return {"task": "reach-v3", "arm": arm, "won": won}


def test_rows_outlive_the_process_that_measured_them_and_one_key_has_one_row(tmp_path):
    path = tmp_path / "rows.json"
    Rows(path, {"steps": 3}, KEY).add(row("a", "0110"))
    again = Rows(path, {"steps": 3}, KEY)
    again.add(row("b", "0000"))
    again.add(row("a", "1111"))
    assert [(r["arm"], r["won"]) for r in again.find()] == [("a", "1111"), ("b", "0000")]
    assert again.find(arm="a", task="push-v3") == []
    assert json.loads(path.read_text())["settings"] == {"steps": 3}


def test_a_key_may_hold_none(tmp_path):
    rows = Rows(tmp_path / "rows.json", {}, ("tap", "level"))
    for level in (None, 0.5):
        rows.add({"tap": "fine", "level": level})
    assert [row["level"] for row in rows.find()] == [0.5, None]


def test_rows_of_other_settings_and_damaged_files_are_refused(tmp_path):
    path = tmp_path / "rows.json"
    Rows(path, {"steps": 3, "episodes": (1, 2)}, KEY).add(row("a", "1"))
    with pytest.raises(ValueError, match="steps was 3 and is 4"):
        Rows(path, {"steps": 4, "episodes": (1, 2)}, KEY)
    path.write_text('{"settings": {}')
    with pytest.raises(ValueError, match="rows.json is damaged"):
        Rows(path, {"steps": 3}, KEY)


def test_a_row_is_not_added_to_a_file_that_another_process_began_with_other_settings(tmp_path):
    path = tmp_path / "rows.json"
    few, many = Rows(path, {"episodes": 10}, KEY), Rows(path, {"episodes": 50}, KEY)
    few.add(row("a", "1"))
    with pytest.raises(ValueError, match="episodes was 10 and is 50"):
        many.add(row("b", "1"))
    assert len(few.find()) == 1
