"""Endless synthetic clips in which a circle with two fingers fetches an object: supervision for "where will the gripper be?".

A clip shows a scene as a robot's camera would see it, drawn flat. The *gripper* is a two-tone disc with two parallel fingers.
It reaches for an object, closes its fingers, carries the object to a goal and opens them, by minimum-jerk motion (Flash and
Hogan 1985). What tells it apart and where it will go can be seen in the observed frames:

- the fingers mark the gripper: distractor circles are two-tone discs too, at rest or drifting, but have none;
- the disc's rim, the object it fetches and the outline of its goal share a hue, drawn anew for each clip; the other objects
  and outlines have other hues, so a network must compare them and cannot memorise a colour;
- the fingers point along the approach, close over the pause at the object and open over the pause at the goal.

Lengths in this file are stated for images of 128 px and scale with the size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from para_video.drawing import (
    KINDS,
    MARGIN,
    NOISE_SLACK,
    RGB,
    TEXELS,
    Drift,
    Shape,
    backdrop,
    bounce,
    coverage,
    distance_at,
    expose,
    hsv_colour,
    other_hue,
    paint,
    patch_of,
    procedural_texture,
    random_drift,
    random_light,
    vivid_colour,
)
from para_video.video import VideoFolder

OCCLUDED_FRACTION = 0.5
"""A centre counts as visible while it is inside the image and at most this fraction of the disc's drawn part is covered."""

_POOL = 64  # frames of the user's videos kept per dataset, so that decoding is paid once
_REACH = 1.5  # palm radii from the palm's centre to the cargo that the fingers hold
_GRIP_FRAMES = 3.0  # a pause at the object and one at the goal, over which the fingers close or open


class CircleClip(NamedTuple):
    """One clip and its labels (a tuple, so that the default collate of a DataLoader batches it field by field).

    Args:
        video: (t, 3, H, W) uint8 RGB, the observed frames first.
        centres: (t, 2) float32 pixel of the gripper disc's centre; the true one also where it is hidden or outside.
        radius: (t,) float32 radius of the disc in pixels.
        visible: (t,) bool; see `OCCLUDED_FRACTION`.
    """

    video: Tensor
    centres: Tensor
    radius: Tensor
    visible: Tensor


@dataclass(frozen=True)
class Scene:
    """All that a clip shows, before drawing; listed from back to front.

    Args:
        texture: (3, s, s) int16 background in 0..255, `TEXELS` to the scene pixel.
        fixtures: shapes at rest in the scene: the goal, other goals, objects and circles.
        movers: shapes that move below the gripper.
        cargo: the object that the gripper fetches.
        fingers: two shapes. palm: the disc whose centre is the label.
        occluders: shapes over everything.
        opening: (t,) of the fingers, 0 closed on the object, 1 open. held: (t,) bool, the cargo moves with the palm.
        drift: the camera. gain: (t, 3) light on each channel. blur: passes of a 1-2-1 filter. noise: standard deviation in
            grey levels. noise_start: where in the noise table the clip begins.
    """

    texture: np.ndarray
    fixtures: tuple[Shape, ...]
    movers: tuple[Shape, ...]
    cargo: Shape
    fingers: tuple[Shape, ...]
    palm: Shape
    occluders: tuple[Shape, ...]
    opening: np.ndarray
    held: np.ndarray
    drift: Drift
    gain: np.ndarray
    blur: int
    noise: float
    noise_start: int

    def first(self, frames: int) -> Scene:
        """The scene of the first frames alone."""

        def cut(shape: Shape) -> Shape:
            return replace(shape, centre=shape.centre[:frames], angle=shape.angle[:frames], scale=shape.scale[:frames])

        drift = Drift(self.drift.zoom[:frames], self.drift.angle[:frames], self.drift.offset[:frames])
        groups: dict[str, Any] = {name: tuple(map(cut, getattr(self, name))) for name in ("movers", "fingers", "occluders")}
        return replace(self, cargo=cut(self.cargo), palm=cut(self.palm), drift=drift, gain=self.gain[:frames], **groups)


class CircleVideos(Dataset[CircleClip]):
    """Seeded synthetic clips: `dataset[i]` is the same bytes in any order and any worker.

    The indices are independent of each other, so shuffling gains nothing (and a sampler that lists 2^31 indices exhausts the
    memory); for a held-out set take another seed.

    Args:
        seed: not negative.
        length: number of clips.
        size: height and width of the images in pixels, at least 32.
        observed, future: frames of a clip before and after the present.
        backgrounds: a folder of videos (or a `VideoFolder`) whose frames become backgrounds; None draws textures.
        camera_drift: factor on the camera's motion, 0 for a camera at rest.
        occlusion: share of clips in which something passes over the gripper, in [0, 1].
        clutter: factor on the number of distractors.

    Raises:
        ValueError: an argument out of its range. VideoError: no video in `backgrounds`; one that cannot be read is told by
            the clip that wants it.
    """

    def __init__(
        self,
        seed: int = 0,
        length: int = 2**31 - 1,
        size: int = 128,
        observed: int = 4,
        future: int = 6,
        backgrounds: str | Path | VideoFolder | None = None,
        *,
        camera_drift: float = 1.0,
        occlusion: float = 0.2,
        clutter: float = 1.0,
    ) -> None:
        limits = {
            "seed": (seed, 0, math.inf), "length": (length, 1, 2**32 - 1), "size": (size, 32, 1024),
            "observed": (observed, 1, 1000), "future": (future, 0, 1000), "camera_drift": (camera_drift, 0, 5),
            "occlusion": (occlusion, 0, 1), "clutter": (clutter, 0, 5),
        }  # fmt: skip
        for name, (value, low, high) in limits.items():
            if not low <= value <= high:
                raise ValueError(f"CircleVideos: {name} is {value}; pass a value from {low} to {high}")
        self.seed, self.length, self.size, self.observed, self.future = seed, length, size, observed, future
        self.camera_drift, self.occlusion, self.clutter = camera_drift, occlusion, clutter
        if backgrounds is not None and not isinstance(backgrounds, VideoFolder):
            backgrounds = VideoFolder(backgrounds)
        self.backgrounds = backgrounds
        self._pool: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> CircleClip:
        return render(self.scene(index), self.size)

    def shown(self, index: int) -> CircleClip:
        """Clip `index` with the labels of all frames and the video of the observed ones, which takes half the time."""
        return render(self.scene(index), self.size, self.observed)

    def scene(self, index: int) -> Scene:
        """What clip `index` shows, before drawing.

        Raises:
            IndexError: index outside [0, length).
        """
        if not 0 <= index < self.length:
            raise IndexError(f"clip {index} of {self.length}: indices run from 0 to {self.length - 1}")
        rng = np.random.default_rng((self.seed, index))
        texture = self._background(rng)
        return _draw_scene(rng, texture, self)

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        side = round(self.size * (1 + 2 * MARGIN))
        if self.backgrounds is None:
            return procedural_texture(rng, TEXELS * side)
        entry = int(rng.integers(_POOL))
        if entry not in self._pool:
            # the last 1 keeps these streams apart from the clips' own, as numpy takes (seed, i) for (seed, i, 0)
            self._pool[entry] = self.backgrounds.frames(np.random.default_rng((self.seed, entry, 1)), 1, side)[0].numpy()
        return self._pool[entry].repeat(TEXELS, 1).repeat(TEXELS, 2).astype(np.int16)


def constant_velocity(centres_observed: Tensor, horizon: int) -> Tensor:
    """The baseline that keeps the velocity between the last two observed frames.

    Args:
        centres_observed: (*b, t, 2) pixels, t >= 2, oldest first.
        horizon: frames to predict.

    Returns:
        (*b, horizon, 2) pixels.

    Raises:
        ValueError: fewer than two observed frames.
    """
    if centres_observed.shape[-2] < 2:
        raise ValueError(f"constant_velocity needs two observed frames, got {centres_observed.shape[-2]}")
    last = centres_observed[..., -1:, :]
    steps = torch.arange(1, horizon + 1).to(centres_observed)
    return last + steps[:, None] * (last - centres_observed[..., -2:-1, :])


# -------------------------------------------------------------------- motion


def minimum_jerk(time: np.ndarray, start: float, duration: float) -> np.ndarray:
    """Progress of the point-to-point motion of least squared jerk that starts and ends at rest.

    10 s^3 - 15 s^4 + 6 s^5 (Flash and Hogan 1985, "The coordination of arm movements", eq. 7), with s = (time - start) /
    duration held in [0, 1].

    Returns:
        values in [0, 1], shaped as `time`.
    """
    s = np.clip((time - start) / duration, 0.0, 1.0)
    return s**3 * (10 + s * (6 * s - 15))


@dataclass(frozen=True)
class Motion:
    """A fetch over t frames.

    Args:
        centre: (t, 2) scene pixels of the palm. lift: (t,) in [0, 1] above the table. opening: (t,) of the fingers.
        held, placed: (t,) bool, the cargo moves with the palm, and rests at the goal.
    """

    centre: np.ndarray
    lift: np.ndarray
    opening: np.ndarray
    held: np.ndarray
    placed: np.ndarray


def fetch_duration(home: np.ndarray, pick: np.ndarray, place: np.ndarray, unit: float, tempo: float) -> tuple[float, float]:
    """Frames that the reach and the carry take: longer ways take longer, but less than in proportion (Fitts's finding)."""
    reach, carry = (tempo * (8.5 + math.dist(a, b) / (5.5 * unit)) for a, b in ((home, pick), (pick, place)))
    return reach, carry


def fetch(
    time: np.ndarray, home: np.ndarray, pick: np.ndarray, place: np.ndarray, durations: tuple[float, float], arc: np.ndarray
) -> Motion:
    """From home to pick, close, on to place, open, rest there.

    Args:
        time: (t,) frames since the reach began. home, pick, place: (2,) scene pixels of the palm.
        durations: frames of the reach and of the carry.
        arc: (2,) scene pixels by which the middle of the carry leaves the straight line; the reach has half of it.
    """
    reach, carry = durations
    lifted = reach + _GRIP_FRAMES
    placed = lifted + carry
    one, two = minimum_jerk(time, 0.0, reach)[:, None], minimum_jerk(time, lifted, carry)[:, None]
    bump_one, bump_two = 16 * (one * (1 - one)) ** 2, 16 * (two * (1 - two)) ** 2
    centre = home + one * (pick - home) + two * (place - pick) + (0.5 * bump_one + bump_two) * arc
    closing = np.clip((time - reach) / _GRIP_FRAMES, 0, 1)
    opening = 1 - closing + np.clip((time - placed) / _GRIP_FRAMES, 0, 1)
    return Motion(centre, (0.5 * bump_one + bump_two)[:, 0], opening, (time >= lifted) & (time < placed), time >= placed)


# -------------------------------------------------------------------- composing a scene


def _scatter(rng: np.random.Generator, count: int, low: float, high: float, apart: float, taken: list) -> list[np.ndarray]:
    """Up to `count` points in a square, each `apart` from the others and from those taken."""
    found: list[np.ndarray] = []
    for point in rng.uniform(low, high, (4 * count, 2)):
        if len(found) == count:
            break
        if all(math.dist(point, other) >= apart for other in (*taken, *found)):
            found.append(point)
    return found


def _draw_thing(rng: np.random.Generator, centre: np.ndarray, colour: RGB, unit: float, *, outline: bool) -> Shape:
    """An object (filled) or a goal (an outline) at rest."""
    kinds = ("circle", "rectangle", "cross") if outline else KINDS[1:]
    half = unit * (rng.uniform(7, 11) if outline else rng.uniform(4.5, 7))
    other = half if outline else half * rng.uniform(0.7, 1.0)
    kind = kinds[rng.integers(len(kinds))]
    angle = rng.uniform(0, 2 * np.pi, 1)
    if outline:
        return Shape(kind, centre[None], (half, other), angle, None, colour, unit * rng.uniform(1.6, 2.6))
    return Shape(kind, centre[None], (half, other), angle, colour)


def _draw_disc(rng: np.random.Generator, centre: np.ndarray, hue: float, unit: float) -> Shape:
    """A distractor circle, made as the palm is."""
    radius = unit * rng.uniform(5.5, 10)
    body = hsv_colour(rng.random(), rng.uniform(0, 0.3), rng.uniform(0.1, 1.0))
    return Shape("circle", centre, (radius, radius), np.zeros(1), body, vivid_colour(rng, hue), 0.3 * radius)


def _draw_movers(rng: np.random.Generator, count: int, frames: int, size: int, hue: float) -> tuple[Shape, ...]:
    """Distractors that drift at constant velocity and bounce: discs, and now and then another shape."""
    unit, movers = size / 128, []
    for _ in range(count):
        heading, speed = rng.uniform(0, 2 * np.pi), unit * rng.uniform(0.5, 4)
        velocity = speed * np.array([math.cos(heading), math.sin(heading)])
        path = bounce(rng.uniform(0, size, 2), velocity, np.arange(frames), size)
        if rng.random() < 0.7:
            movers.append(_draw_disc(rng, path, other_hue(rng, hue), unit))
        else:
            thing = _draw_thing(rng, path[0], vivid_colour(rng, other_hue(rng, hue)), unit, outline=False)
            movers.append(replace(thing, centre=path, angle=thing.angle + np.arange(frames) * rng.uniform(-0.2, 0.2)))
    return tuple(movers)


def _draw_occluder(rng: np.random.Generator, path: np.ndarray, unit: float) -> Shape:
    """A large shape whose straight way crosses the palm's path at one of the frames."""
    frames = len(path)
    crossing, heading = int(rng.integers(frames)), rng.uniform(0, 2 * np.pi)
    velocity = unit * rng.uniform(1, 8) * np.array([math.cos(heading), math.sin(heading)])
    centre = path[crossing] + (np.arange(frames) - crossing)[:, None] * velocity
    half = (unit * rng.uniform(6, 13), unit * rng.uniform(8, 22))
    kind = ("rectangle", "ellipse")[rng.integers(2)]
    colour = hsv_colour(rng.random(), rng.uniform(0, 0.6), rng.uniform(0.1, 1.0))
    return Shape(kind, centre, half, rng.uniform(0, np.pi, 1), colour)


def _gripper(task: _Task, grip: float, body: RGB, rim: RGB) -> tuple[Shape, tuple[Shape, ...]]:
    """The palm and its two fingers, which stand `grip` scene pixels off the axis when closed."""
    motion, radius = task.motion, task.radius
    scale, turn = _lifted(motion), np.full(1, task.angle)
    along = np.array([math.cos(task.angle), math.sin(task.angle)])
    across = np.array([-along[1], along[0]])
    palm = Shape("circle", motion.centre, (radius, radius), turn, body, rim, 0.3 * radius, scale)
    spread = scale * (grip + motion.opening * max(1.05 * radius - grip, 0.25 * radius))
    fingers = []
    for side in (-1, 1):
        centre = motion.centre + (1.15 * radius * scale)[:, None] * along + (side * spread)[:, None] * across
        fingers.append(Shape("rectangle", centre, (0.8 * radius, 0.17 * radius), turn, body, scale=scale))
    return palm, tuple(fingers)


def _lifted(motion: Motion) -> np.ndarray:
    """(t,) apparent size: what is lifted is nearer to the camera."""
    return 1 + 0.2 * motion.lift


def _carried(task: _Task, thing: Shape) -> Shape:
    """The cargo's path: at rest, then at the fingertips, then at rest on the goal."""
    motion = task.motion
    scale = np.where(motion.held, _lifted(motion), 1.0)
    along = np.array([math.cos(task.angle), math.sin(task.angle)])
    tip = motion.centre + (_REACH * task.radius * scale)[:, None] * along
    rest = np.where(motion.placed[:, None], task.goal, task.thing)
    return replace(thing, centre=np.where(motion.held[:, None], tip, rest), scale=scale)


@dataclass(frozen=True)
class _Task:
    """Where the cargo and its goal are (2,), the palm's motion, its radius and the fingers' direction in radians."""

    thing: np.ndarray
    goal: np.ndarray
    motion: Motion
    radius: float
    angle: float


def _draw_task(rng: np.random.Generator, config: CircleVideos) -> _Task:
    size, frames, unit = config.size, config.observed + config.future, config.size / 128
    angle, radius = rng.uniform(0, 2 * np.pi), unit * rng.uniform(5.5, 10)
    along = np.array([math.cos(angle), math.sin(angle)])
    thing = rng.uniform(22 * unit, size - 22 * unit, 2)
    goal = _far(rng, thing, 32 * unit, 22 * unit, size)
    pick, place = thing - _REACH * radius * along, goal - _REACH * radius * along
    border = -12 if rng.random() < 0.12 else 14  # some grippers enter the image during the clip
    home = _far(rng, pick, 32 * unit, border * unit, size)
    durations = fetch_duration(home, pick, place, unit, rng.uniform(0.9, 1.1))
    start = rng.uniform(-1.0, max(0.0, sum(durations) + 2 * _GRIP_FRAMES - config.observed))
    arc = -along * rng.uniform(0.1, 0.25) * math.dist(pick, place)  # away from the table, where the fingers point
    motion = fetch(start + np.arange(frames), home, pick, place, durations, arc)
    return _Task(thing, goal, motion, radius, angle)


def _draw_scene(rng: np.random.Generator, texture: np.ndarray, config: CircleVideos) -> Scene:
    """Draw every random choice of a clip but the background's."""
    size, frames, unit, hue = config.size, config.observed + config.future, config.size / 128, rng.random()
    task = _draw_task(rng, config)
    motion = task.motion
    thing = _draw_thing(rng, task.thing, vivid_colour(rng, hue), task.radius / 9, outline=False)
    dark_ground = texture[:, ::16, ::16].mean() < 128
    body = hsv_colour(rng.random(), rng.uniform(0, 0.25), rng.uniform(0.75, 1.0) if dark_ground else rng.uniform(0.05, 0.3))
    palm, fingers = _gripper(task, 0.85 * thing.half[1], body, vivid_colour(rng, hue))
    goal = _draw_thing(rng, task.goal, vivid_colour(rng, hue), unit, outline=True)
    occluded = rng.random() < config.occlusion
    return Scene(
        texture=texture,
        fixtures=(goal, *_draw_fixtures(rng, config, hue, [task.thing, task.goal])),
        movers=_draw_movers(rng, int(rng.poisson(1.2 * config.clutter)), frames, size, hue),
        cargo=_carried(task, thing),
        fingers=fingers,
        palm=palm,
        occluders=(_draw_occluder(rng, motion.centre, unit),) if occluded else (),
        opening=motion.opening,
        held=motion.held,
        drift=random_drift(rng, frames, size, config.camera_drift),
        gain=random_light(rng, frames),
        blur=int(rng.integers(1, 3)) if rng.random() < 0.25 else 0,
        noise=rng.uniform(0, 5),
        noise_start=int(rng.integers(NOISE_SLACK)),
    )


def _far(rng: np.random.Generator, point: np.ndarray, apart: float, margin: float, size: int) -> np.ndarray:
    """A point of the image at least `apart` from another one (the farthest of eight draws if none is)."""
    draws = rng.uniform(margin, size - margin, (8, 2))
    distances = np.linalg.norm(draws - point, axis=-1)
    return draws[int(np.argmax(distances >= apart)) if (distances >= apart).any() else int(distances.argmax())]


def _draw_fixtures(rng: np.random.Generator, config: CircleVideos, hue: float, taken: list) -> list[Shape]:
    """Distractors at rest: other objects, other goals, and discs."""
    unit, size = config.size / 128, config.size
    goals, things, discs = (int(rng.poisson(mean * config.clutter)) for mean in (0.8, 2.0, 1.0))
    points = _scatter(rng, goals + things + discs, 8 * unit, size - 8 * unit, 17 * unit, taken)
    shapes = []
    for i, point in enumerate(points):
        other = other_hue(rng, hue)
        if i < goals + things:
            shapes.append(_draw_thing(rng, point, vivid_colour(rng, other), unit, outline=i < goals))
        else:
            shapes.append(_draw_disc(rng, point[None], other, unit))
    return shapes


# -------------------------------------------------------------------- drawing


def visibility(scene: Scene, size: int) -> np.ndarray:
    """(t,) bool: the palm's centre is inside the image and its drawn part is not mostly covered (`OCCLUDED_FRACTION`)."""
    centre = scene.drift.apply(scene.palm.centre)
    seen = np.all((centre >= -0.5) & (centre <= size - 0.5), axis=-1)
    if not scene.occluders:
        return seen
    x, y = patch_of(scene.palm, scene.drift)
    inside = ((x >= 0) & (x < size))[:, None, :] & ((y >= 0) & (y < size))[:, :, None]
    disc = coverage(distance_at(scene.palm, scene.drift, x, y), 1.0) * inside
    clear = disc
    for occluder in scene.occluders:
        clear = clear * (1 - coverage(distance_at(occluder, scene.drift, x, y), 1.0))
    return seen & (clear.sum((1, 2)) >= (1 - OCCLUDED_FRACTION) * disc.sum((1, 2)))


def render(scene: Scene, size: int, frames: int | None = None) -> CircleClip:
    """Draw a scene at `size` x `size` pixels and label it; `frames` draws the first ones alone, the labels are of all."""
    side = scene.texture.shape[-1]
    texture = scene.texture.copy()
    still = Drift(np.full(1, float(TEXELS)), np.zeros(1), np.full((1, 2), (side - TEXELS * size) / 2))
    for shape in scene.fixtures:
        paint(texture[None], shape, still, softness=TEXELS)
    drawn = scene.first(frames or len(scene.gain))
    canvas = backdrop(texture, drawn.drift, size)
    for shape in (*drawn.movers, drawn.cargo, *drawn.fingers, drawn.palm, *drawn.occluders):
        paint(canvas, shape, drawn.drift)
    radius = scene.palm.half[0] * scene.palm.scale * scene.drift.zoom
    return CircleClip(
        torch.from_numpy(expose(canvas, drawn.gain, drawn.blur, drawn.noise, drawn.noise_start)),
        torch.from_numpy(scene.drift.apply(scene.palm.centre).astype(np.float32)),
        torch.from_numpy(np.broadcast_to(radius, len(scene.gain)).astype(np.float32)),
        torch.from_numpy(visibility(scene, size)),
    )
