"""One shot of a synthetic person: pose, background, shadow, camera, and which attributes are visible."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import numpy as np
from PIL import Image

from data.synthetic.cameras import Camera, background, expose, occlude
from data.synthetic.canvas import (
    BAG,
    FACE,
    GLASSES,
    HAIR,
    HEIGHT,
    INNER,
    LOWER,
    SHIN,
    SHOE,
    TAIL,
    TRIM,
    UPPER,
    WIDTH,
    Canvas,
    Pose,
)
from data.synthetic.drawing import draw_person
from data.synthetic.people import Person, make_person, sample_attributes


@dataclass(frozen=True, eq=False, kw_only=True)
class Rendered:
    """One shot of a person, after the camera and before JPEG."""

    image: np.ndarray
    """uint8 [128, 64, 3], RGB."""
    visible: Mapping[str, bool]
    """Slot -> whether its value can be seen in this image."""
    view: str
    """``front``, ``side`` or ``back``."""
    colors: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    """Median RGB of the visible ``upper`` and ``lower`` garment as drawn, before the camera."""
    parts: np.ndarray = field(default_factory=lambda: np.zeros((HEIGHT, WIDTH), np.uint8))
    """uint8 [128, 64], the part of the person in each pixel (labels of ``data.synthetic.canvas``); 0 elsewhere."""


def render(
    person: Person,
    camera: Camera,
    rng: np.random.Generator,
    *,
    difficulty: float = 0.5,
    heading: float | None = None,
) -> Rendered:
    """Return one shot of `person` by `camera`.

    heading: direction walked, in degrees (0 toward the camera, 90 to the right, 180 away); None for the camera's path
    or a random one.
    """
    pose = _pose(camera, rng, difficulty, heading)
    canvas = draw_person(person, pose)
    colors = _garment_colors(canvas)
    image = background(camera, rng)
    if rng.random() < 0.10 * difficulty:
        _passer_by(image, camera, rng, difficulty)
    _cast_shadow(image, camera, pose)
    _composite(image, canvas, rng)
    covered = np.zeros((HEIGHT, WIDTH), bool)
    if rng.random() < camera.occlusion:
        covered = occlude(image, camera, rng)
    visible = _visibility(person, canvas, pose, covered)
    return Rendered(
        image=expose(image, camera, rng),
        visible=visible,
        view=_view(math.degrees(pose.heading)),
        colors=colors,
        parts=np.where(covered, 0, canvas.label[::2, ::2]).astype(np.uint8),
    )


def render_nobody(camera: Camera, rng: np.random.Generator, *, difficulty: float) -> np.ndarray:
    """Return a shot, uint8 [128, 64, 3], without a whole person: a background, usually with a passer-by cut in half."""
    image = background(camera, rng)
    if rng.random() < 0.85:
        _passer_by(image, camera, rng, difficulty)
    return expose(image, camera, rng)


def _pose(camera: Camera, rng: np.random.Generator, difficulty: float, heading: float | None) -> Pose:
    variety = 0.5 + 0.5 * difficulty
    if heading is None:
        on_path = rng.random() < 0.6
        heading = float(camera.headings[int(rng.integers(2))] if on_path else 90 * rng.integers(4))
    turned = math.radians(heading + rng.uniform(-18, 18))
    height = rng.uniform(108, 119)
    top = rng.uniform(3, 7) + rng.normal(0, 1.5) * difficulty
    if rng.random() < 0.10 * difficulty:
        height *= rng.uniform(1.08, 1.22)
        top = rng.uniform(-14, 4)
    gesture = int(rng.choice(4, p=(0.62, 0.14, 0.10, 0.14)))
    stride = 0.05 if gesture == 3 else rng.uniform(0.18, 0.30 + 0.12 * variety)
    return Pose(
        heading=turned,
        phase=float(rng.uniform(0, 2 * math.pi)),
        stride=float(stride),
        arm_bend=(float(rng.uniform(0.15, 0.5)), float(rng.uniform(0.15, 0.5))),
        arm_out=float(rng.uniform(0.08, 0.26)),
        lean=float(rng.normal(0, 0.025) * variety),
        pitch=camera.pitch,
        light=camera.light,
        scale=float(height),
        center=float(WIDTH / 2 + rng.normal(0, 2.2) * variety),
        ground=float(top + height),
        gesture=gesture,
    )


def _view(degrees: float) -> str:
    turned = abs((degrees + 180) % 360 - 180)
    return "front" if turned < 45 else "back" if turned > 135 else "side"


@lru_cache(maxsize=1)
def _folds() -> np.ndarray:
    """Return soft creases, float32 [256, 128, 1] around 1, from which random crops are taken."""
    rng = np.random.default_rng(np.random.SeedSequence((7,)))
    total = np.ones((256, 128), np.float32)
    for cells, weight in (((22, 16), 0.05), ((52, 26), 0.035)):
        grid = rng.standard_normal((cells[0], cells[1]), np.float32)
        total += weight * np.asarray(Image.fromarray(grid).resize((128, 256), Image.Resampling.BICUBIC))
    return total[..., None]


def _composite(image: np.ndarray, canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw the figure, halved in size, creased and darker toward the ground, over `image` in place."""
    mask = (canvas.label > 0).astype(np.float32)
    figure = _halve(canvas.rgb)
    # Pixels without a label are black already, so summing colors weights them by coverage.
    top, left = int(rng.integers(0, 256 - HEIGHT + 1)), int(rng.integers(0, 128 - WIDTH + 1))
    figure *= _folds()[top : top + HEIGHT, left : left + WIDTH]
    figure *= np.linspace(1.04, 0.92, HEIGHT, dtype=np.float32)[:, None, None]
    image *= 1 - _halve(mask)[..., None]
    image += figure


def _halve(array: np.ndarray) -> np.ndarray:
    rows = array[0::2] + array[1::2]
    return (rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25)


def _cast_shadow(image: np.ndarray, camera: Camera, pose: Pose) -> None:
    rows = np.arange(HEIGHT, dtype=np.float32)[:, None] - pose.ground
    columns = np.arange(WIDTH, dtype=np.float32)[None, :] - pose.center - 60 * camera.light
    reach = (columns / 17) ** 2 + (rows / 5) ** 2
    image *= (1 - camera.shadow * np.exp(-reach))[..., None]


def _passer_by(image: np.ndarray, camera: Camera, rng: np.random.Generator, difficulty: float) -> None:
    """Draw someone else in the background, cut by the border of the box."""
    other = make_person(sample_attributes(rng), rng, difficulty)
    pose = _pose(camera, rng, 0.0, None)
    side = 1 if rng.random() < 0.5 else -1
    moved = {**vars(pose), "center": WIDTH / 2 + side * rng.uniform(26, 36), "ground": pose.ground - 8}
    moved["scale"] = 0.85 * pose.scale
    _composite(image, draw_person(other, Pose(**moved)), rng)


def _garment_colors(canvas: Canvas) -> dict[str, tuple[float, float, float]]:
    found = {}
    for name, label in (("upper", UPPER), ("lower", LOWER)):
        pixels = canvas.rgb[::3, ::3][canvas.label[::3, ::3] == label]
        if len(pixels) > 10:
            middle = len(pixels) // 2
            red, green, blue = np.partition(pixels, middle, axis=0)[middle]
            found[name] = (float(red), float(green), float(blue))
    return found


# Visibility ------------------------------------------------------------------------------------------

_ENOUGH: Final = {UPPER: 110, LOWER: 70, SHOE: 14, HAIR: 10, TAIL: 9, GLASSES: 3, FACE: 14, BAG: 26, SHIN: 24}
"""Least number of output pixels of a part for it to count as seen."""


def _visibility(person: Person, canvas: Canvas, pose: Pose, covered: np.ndarray) -> dict[str, bool]:
    """Return slot -> whether enough of what it describes is inside the box and not occluded."""
    label = canvas.label[::2, ::2]
    open_label = np.where(covered, 0, label)
    count = np.bincount(open_label.ravel(), minlength=16)
    whole = pose.scale * pose.scale * 0.135
    body = count[1:].sum() - count[BAG]
    seen = {part: bool(count[part] >= least) for part, least in _ENOUGH.items()}
    attributes = person.attributes
    knee = max(0, round(pose.ground - 0.27 * pose.scale))
    below = int(np.isin(open_label[knee:], (LOWER, SHIN, SHOE)).sum())
    hair = attributes["hair"]
    upper = count[UPPER] + count[INNER] + count[TRIM] >= _ENOUGH[UPPER]
    return {
        "gender": bool(body > 0.5 * whole),
        "age": bool(body > 0.5 * whole),
        "upper_color": seen[UPPER],
        "upper_type": bool(upper),
        "lower_color": seen[LOWER],
        "lower_type": bool((seen[LOWER] or count[LOWER] >= 40) and below >= 60),
        "shoes": seen[SHOE],
        "hair": seen[TAIL] if hair == "ponytail" else seen[HAIR],
        "glasses": seen[FACE] if attributes["glasses"] == "none" else seen[GLASSES],
        "carrying": seen[BAG] if attributes["carrying"] != "none" else bool(body > 0.75 * whole),
    }
