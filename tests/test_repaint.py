"""Other surroundings: large surfaces of one colour are found and painted, what is small stays, and so does the light."""

import numpy as np
import pytest
import torch
from torch import Tensor

from para_video.repaint import Palette, repainted

TABLE, WALL, PUCK = (120, 80, 60), (190, 190, 185), (130, 20, 20)


def scene(seed: int = 0) -> Tensor:
    """(1, 3, 64, 64) uint8: a wall above a table that is lit from the left, both with some grain, and a puck of 5 x 5 pixels."""
    rng = np.random.default_rng(seed)
    frame = np.full((64, 64, 3), TABLE, np.float64) * np.linspace(1.2, 0.8, 64)[:, None]
    frame[:24] = WALL
    frame += rng.normal(0, 3, (64, 64, 1))
    frame[40:45, 30:35] = PUCK
    return torch.from_numpy(frame.clip(0, 255).astype(np.uint8)).permute(2, 0, 1)[None]


@pytest.fixture
def palette() -> Palette:
    return Palette.of([scene(k)[0].permute(1, 2, 0).numpy() for k in range(3)])


def test_surfaces_are_found_whole_and_what_is_small_is_left(palette: Palette) -> None:
    (found,) = palette.surfaces(scene(7))
    wall, table = found[:24].flatten().mode().values, found[24:].flatten().mode().values
    assert wall and table and wall != table
    assert (found[:24] == wall).float().mean() > 0.99
    kept = found[40:45, 30:35]
    assert (kept == 0).all()
    assert (found[24:] == table).sum() >= 0.98 * (40 * 64 - 25)


def test_a_colour_can_be_large_here_and_small_there(palette: Palette) -> None:
    frame = scene(3)
    frame[:, :, 30:36, 2:8] = torch.tensor(WALL, dtype=torch.uint8).view(1, 3, 1, 1)  # something on the table, in the wall's colour
    (found,) = palette.surfaces(frame)
    assert found[10, 10] and (found[31:35, 3:7] == 0).all()


def test_shades_of_one_paint_are_one_surface_and_bands_do_not_part_it() -> None:
    frame = scene(2)
    light = torch.linspace(1.0, 0.3, 20).view(20, 1)
    arm = torch.tensor([210.0, 30.0, 30.0]).view(3, 1, 1) * light
    frame[0, :, 20:40, 40:56] = arm.to(torch.uint8)
    frame[0, :, 34:36, 40:56] = 0  # a black band above its last part, which is too small to count by itself
    palette = Palette.of([frame[0].permute(1, 2, 0).numpy()])
    (found,) = palette.surfaces(frame)
    assert found[20, 48] and (found[20:34, 41:55] == found[20, 48]).all() and (found[36:40, 41:55] == found[20, 48]).all()
    assert (found[30:34, 30:40] != found[20, 48]).all()


def test_only_surfaces_are_painted_and_stay_lit_as_they_were(palette: Palette) -> None:
    frame, rng = scene(7), np.random.default_rng(0)
    clip, surfaces = frame.float() / 255, palette.surfaces(frame)
    changed = falls = 0.0
    for _ in range(20):
        new = repainted(clip, surfaces, rng, 1.0)
        assert new.min() >= 0 and new.max() <= 1
        assert torch.equal(new[0, :, 40:45, 30:35], clip[0, :, 40:45, 30:35])
        changed += float((new - clip)[:, :, :24].abs().mean()) / 20
        falls += float(new[..., 26:, :8].mean() - new[..., 26:, -8:].mean()) / 20
    assert changed > 0.15, "another wall"
    assert falls > 0.01, "the table is still lit from the left"


def test_nothing_is_painted_without_a_chance_and_the_clip_is_left_alone(palette: Palette) -> None:
    frame = scene(7)
    clip, surfaces = frame.float() / 255, palette.surfaces(frame)
    before = clip.clone()
    assert torch.equal(repainted(clip, surfaces, np.random.default_rng(0), 0.0), before)
    repainted(clip, surfaces, np.random.default_rng(0), 1.0)
    assert torch.equal(clip, before)


def test_frames_of_a_clip_get_the_same_paint(palette: Palette) -> None:
    frames = torch.cat([scene(7), scene(7)])
    new = repainted(frames.float() / 255, palette.surfaces(frames), np.random.default_rng(0), 1.0)
    assert torch.equal(new[0], new[1])


def test_a_picture_of_one_colour_has_one_surface() -> None:
    frame = torch.full((1, 3, 32, 32), 90, dtype=torch.uint8)
    palette = Palette.of([frame[0].permute(1, 2, 0).numpy()])
    assert (palette.surfaces(frame) == palette.surfaces(frame)[0, 0, 0]).all() and palette.surfaces(frame).min() > 0
