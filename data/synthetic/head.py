"""Head, face, hair, glasses and hats of a synthetic person."""

from __future__ import annotations

import math

import numpy as np

from data.synthetic.canvas import (
    FACE,
    GLASSES,
    HAIR,
    HAT,
    SKIN,
    TAIL,
    UPPER,
    XS,
    YS,
    HeadPatch,
    Point,
    lerp,
    shift,
    window_around,
)
from data.synthetic.figure import Figure
from data.synthetic.people import Rgb, scale_rgb


def draw_head(figure: Figure) -> None:
    """Draw the skull with its face, then hair and hat on a skull a little larger."""
    canvas, body, details = figure.canvas, figure.body, figure.details
    center: Point = (0.0, figure.neck_y + body.head * 0.5, 0.016 + 0.3 * canvas.stoop * 0.06)
    x0, y0 = canvas.project(center)
    a, h, b = body.head_width * canvas.scale, body.head * 0.5 * canvas.scale, 0.060 * canvas.scale
    puff = details.hair_volume if figure.attributes["hair"] != "bald" or details.hat != "none" else 1.0
    reach = 1.75 if details.hat == "sun hat" else 1.5 if details.hat == "cap" else 1.25
    window = window_around(x0, y0, reach * b, 1.3 * h, pad=1)
    if window is None:
        return
    rows, columns = window
    patch = HeadPatch(canvas, rows, columns, XS[columns] - x0, y0 - YS[rows])
    patch.skull(a, h, b)
    _paint_face(figure, patch)
    patch.commit()
    patch.skull(a * puff, h * puff, b * puff)
    _paint_hair(figure, patch)
    _paint_hat(figure, patch)
    patch.commit()


def _paint_face(figure: Figure, s: HeadPatch) -> None:
    details = figure.details
    p, q, r = s.across, s.up, s.front
    s.paint(s.mask, details.skin, SKIN)
    s.label[s.mask & (r > 0.15)] = FACE
    eye = (np.abs(np.abs(p) - 0.4) < 0.17) & (r > 0.2)
    s.paint(eye & (np.abs(q - 0.04) < 0.075), (40, 30, 28))
    s.paint(eye & (np.abs(q - 0.22) < 0.05), scale_rgb(details.skin, 0.45))
    s.dim((np.abs(p) < 0.14) & (r > 0.4) & (np.abs(q + 0.2) < 0.1), 0.82)
    lips: Rgb = (190, 70, 76) if figure.female else scale_rgb(details.skin, 0.68)
    s.paint((np.abs(p) < 0.26) & (r > 0.3) & (np.abs(q + 0.5) < 0.065), lips)
    s.dim((np.abs(r) < 0.16) & (np.abs(q + 0.05) < 0.2), 0.85)
    if figure.attributes["age"] == "elderly":
        s.dim((np.abs(np.abs(p) - 0.42) < 0.08) & (np.abs(q + 0.33) < 0.16) & (r > 0), 0.85)
    if details.beard:
        jaw = (q < -0.34) & (r > -0.05) & ~((np.abs(p) < 0.2) & (np.abs(q + 0.5) < 0.06))
        s.paint(jaw, details.hair)
    _paint_glasses(figure, s)


def _paint_glasses(figure: Figure, s: HeadPatch) -> None:
    kind = figure.attributes["glasses"]
    if kind == "none":
        return
    p, q, r = s.across, s.up, s.front
    lens = (np.abs(np.abs(p) - 0.43) < 0.36) & (np.abs(q - 0.03) < 0.21) & (r > 0.05)
    temple = (np.abs(p) > 0.6) & (np.abs(q - 0.1) < 0.07) & (r > -0.25)
    bridge = (np.abs(p) < 0.2) & (np.abs(q - 0.1) < 0.07) & (r > 0)
    if kind == "sunglasses":
        s.paint(lens | temple | bridge, (14, 14, 18), GLASSES)
        return
    inside = (np.abs(np.abs(p) - 0.43) < 0.2) & (np.abs(q - 0.03) < 0.1)
    s.paint((lens & ~inside) | temple | bridge, figure.details.frame, GLASSES)
    s.paint(lens & inside, (214, 224, 232), GLASSES)


def _paint_hair(figure: Figure, s: HeadPatch) -> None:
    details, style = figure.details, figure.attributes["hair"]
    p, q, r = s.across, s.up, s.front
    if style == "bald":
        s.paint(s.mask & (q > 0.35), details.skin, HAIR)
        if details.hairline > 0.5:
            fuzz: Rgb = tuple(0.55 * h + 0.45 * c for h, c in zip(details.hair, details.skin, strict=True))  # type: ignore[assignment]
            s.paint((r < -0.05) & (np.abs(q + 0.25) < 0.18), fuzz, HAIR)
        return
    line = details.hairline - details.fringe * (np.abs(p) < 0.75) + 0.12 * details.parting * np.sign(p)
    low_front = -0.75 if style == "long" else -0.05
    crown = q > line
    sides = (r < 0.22) & (q > low_front)
    bob = figure.female and style == "short"
    if bob:
        sides = (r < 0.35) & (q > -0.85) & (np.abs(p) > 0.45)
    nape = (r < -0.1) & (q > (-0.95 if bob else -0.3 if style == "short" else -0.8))
    region = s.mask & (crown | sides | nape)
    s.paint(region, details.hair, HAIR)
    s.dim(region & (np.sin(9 * p + 5 * r) > 0.6), 0.8)
    s.lift(region & (np.abs(q - 0.62) < 0.1), 18)


def _paint_hat(figure: Figure, s: HeadPatch) -> None:
    details = figure.details
    if details.hat == "none":
        return
    q = s.up
    crown = s.mask & (q > 0.28)
    s.paint(crown, details.hat_rgb, HAT)
    if details.hat == "beanie":
        s.paint(crown & (q < 0.48), details.hat_trim, HAT)
        return
    s.paint(crown & (q < 0.42), details.hat_trim, HAT)
    canvas, radius = figure.canvas, figure.body.head_width * details.hair_volume
    ahead = 0.05 if details.hat == "cap" else 0.0
    wide = radius * (0.9 if details.hat == "cap" else 1.5)
    x = s.x / canvas.scale - ahead * canvas.sin
    y = s.y / canvas.scale - figure.body.head * 0.16 * details.hair_volume + 0.02 * canvas.cos * (ahead > 0)
    half = math.hypot(wide * canvas.cos, (wide if ahead == 0 else 0.07) * canvas.sin)
    brim = (x / half) ** 2 + (y / (0.010 + 0.006 * abs(canvas.cos))) ** 2 < 1
    if ahead and canvas.cos < -0.3:
        brim &= False
    s.paint_flat(brim, scale_rgb(details.hat_rgb, 0.8), HAT)


def draw_hair_back(figure: Figure) -> None:
    """Draw long hair or a ponytail hanging behind."""
    canvas, details = figure.canvas, figure.details
    if figure.attributes["hair"] == "ponytail":
        top: Point = (0.0, figure.neck_y + 0.095, -0.062)
        low: Point = (0.012, figure.neck_y - 0.02 - details.hair_length, -0.085)
        middle = lerp(top, low, 0.4)
        canvas.capsule(top, shift(middle, (0, 0, -0.016)), (0.02, 0.026), details.hair, TAIL)
        canvas.capsule(shift(middle, (0, 0, -0.016)), low, (0.026, 0.012), details.hair, TAIL)
        canvas.capsule(top, top, (0.016, 0.016), details.hat_trim, TAIL)
        return
    length = 0.07 + details.hair_length
    width = figure.body.head_width * details.hair_volume
    levels = np.array([
        (figure.neck_y - length, width * 0.9, 0.024, -0.052),
        (figure.neck_y - length * 0.6, width * 1.12, 0.034, -0.046),
        (figure.neck_y + 0.03, width * 1.06, 0.05, -0.026),
        (figure.neck_y + 0.075, width * 1.0, 0.056, -0.01),
    ])  # fmt: skip
    surface = canvas.surface(levels)
    if surface is not None:
        surface.fill(details.hair, HAIR)
        surface.dim(np.sin(surface.across * 14) > 0.4, 0.8)
        surface.commit()


def draw_hair_front(figure: Figure) -> None:
    """Draw long hair falling over the shoulders."""
    details = figure.details
    for side in (-1, 1):
        top: Point = (side * figure.body.head_width * 0.96, figure.neck_y + 0.07, 0.0)
        low: Point = (side * figure.body.head_width * 1.15, figure.neck_y - 0.045 - details.hair_length, 0.045)
        if -side * figure.canvas.sin < -0.75:
            continue
        middle = lerp(top, low, 0.5)
        figure.canvas.capsule(top, middle, (0.012, 0.018), details.hair, HAIR)
        figure.canvas.capsule(middle, low, (0.018, 0.010), details.hair, HAIR, gain=0.9)


def draw_hood(figure: Figure) -> None:
    """Draw the hood lying on the shoulders."""
    canvas, details = figure.canvas, figure.details
    rgb = scale_rgb(details.upper.rgb, 0.8)
    width = 0.070 if figure.female else 0.082
    center: Point = (0.0, figure.neck_y - 0.008, -0.045)
    canvas.blob(center, (width, 0.046, 0.05), rgb, UPPER)
    if canvas.cos < 0.3:
        canvas.blob(shift(center, (0, 0.022, 0.0)), (width * 0.62, 0.014, 0.03), details.hood_lining, UPPER)
