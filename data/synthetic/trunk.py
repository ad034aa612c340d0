"""Trunk, neck and arms of a synthetic person, with belt and bag straps."""

from __future__ import annotations

import numpy as np

from data.synthetic.canvas import BAG, LOWER, SKIN, TRIM, UPPER, Point, Surface, lerp
from data.synthetic.figure import Figure
from data.synthetic.garments import paint_garment
from data.synthetic.people import Cloth, Rgb, scale_rgb


def draw_pelvis(figure: Figure) -> None:
    """Draw the garment over the hips: the top of trousers, or a skirt."""
    canvas, body, details = figure.canvas, figure.body, figure.details
    skirt = figure.lower == "skirt"
    swing = abs(figure.legs[0][1][2] - figure.legs[1][1][2]) / 2
    bottom = 0.30 + 1.5 * details.lower_hem if skirt else body.crotch - 0.012
    flare = details.lower_flare if skirt else 0.0
    levels = _trunk_levels(figure, bottom, 0.005, flare)
    levels = levels[levels[:, 0] <= body.crotch + 0.15]
    if skirt:
        levels[0, 2] += 0.7 * swing
    surface = canvas.surface(levels, spine=False)
    if surface is None:
        return
    surface.fill(details.lower, LOWER)
    if skirt:
        pleats = np.sin(surface.across * 9 + surface.front * 4)
        surface.dim((pleats > 0.55) & (surface.up < body.crotch + 0.04), 0.82)
    else:
        surface.dim((np.abs(surface.across) < 0.1) & (surface.up < body.crotch + 0.05), 0.75)
        if figure.lower == "jeans":
            pocket = (surface.front < 0) & (np.abs(np.abs(surface.across) - 0.45) < 0.2)
            surface.dim(pocket & (np.abs(surface.up - body.crotch - 0.04) < 0.02), 0.75)
    surface.commit()


def draw_torso(figure: Figure) -> None:
    """Draw the trunk in its upper garment, with the straps of a bag."""
    details, body = figure.details, figure.body
    coat = figure.upper == "coat"
    bottom = body.crotch + {
        "t-shirt": 0.02, "shirt": 0.0, "sweater": 0.02, "hoodie": 0.0, "jacket": 0.035, "coat": -0.14,
    }[figure.upper] + details.hem * (2.0 if coat else 1.0)  # fmt: skip
    tucked = figure.upper == "shirt" and details.belt is not None
    if tucked:
        bottom = body.crotch + 0.115
        _draw_belt(figure, bottom)
    levels = _trunk_levels(figure, bottom, figure.bulk, 0.012 if coat else 0.0)
    if coat:
        levels[0, 2] += 0.35 * abs(figure.legs[0][1][2] - figure.legs[1][1][2])
    surface = figure.canvas.surface(levels)
    if surface is None:
        return
    surface.fill(details.upper, UPPER)
    paint_garment(figure, surface, bottom)
    _paint_straps(figure, surface)
    surface.commit()


def _draw_belt(figure: Figure, at: float) -> None:
    levels = _trunk_levels(figure, at - 0.022, 0.007)
    surface = figure.canvas.surface(levels[levels[:, 0] < at + 0.03], spine=False)
    if surface is not None and figure.details.belt is not None:
        surface.fill(figure.details.belt, LOWER)
        surface.commit()


def _paint_straps(figure: Figure, s: Surface) -> None:
    details, top = figure.details, figure.neck_y
    if figure.carrying == "backpack":
        strap = (np.abs(np.abs(s.across) - 0.60) < 0.13) & (s.up > top - 0.22) & (s.front > 0)
        over = (s.up > top - 0.06) & (np.abs(np.abs(s.across) - 0.60) < 0.13)
        s.decal(strap | over, details.bag.rgb, BAG)
        inner = np.abs(np.abs(s.across) - 0.60) > 0.09
        s.dim((strap | over) & inner, 0.7)
    elif figure.carrying == "shoulder bag":
        # From the shoulder opposite the bag down to the hip, on both sides of the body.
        line = -details.bag.side * (s.up - (top - 0.175)) / 0.19
        s.decal(np.abs(s.across - line) < 0.15, details.bag.trim, BAG)


def draw_neck(figure: Figure) -> None:
    """Draw the neck and a collar around it."""
    low: Point = (0.0, figure.neck_y - 0.035, 0.0)
    high: Point = (0.0, figure.neck_y + 0.03, 0.005)
    radius = 0.030 if figure.female else 0.040
    canvas, details = figure.canvas, figure.details
    canvas.capsule(low, high, (radius, radius), details.skin, SKIN, gain=0.82)
    if figure.upper == "sweater" and details.neckline == 0:
        canvas.capsule(low, lerp(low, high, 0.7), (0.04, 0.034), scale_rgb(details.upper.rgb, 0.85), UPPER)
    elif figure.upper in ("jacket", "coat", "shirt") and canvas.cos < 0.2:
        rgb = details.trim if figure.upper == "jacket" else scale_rgb(details.upper.rgb, 0.75)
        canvas.capsule(low, lerp(low, high, 0.45), (0.046, 0.042), rgb, UPPER)


def draw_arm(figure: Figure, arm: tuple[Point, Point, Point]) -> None:
    """Draw one arm (shoulder, elbow, wrist) in its sleeve."""
    canvas, body, details = figure.canvas, figure.body, figure.details
    shoulder, elbow, wrist = arm
    gain = 1.0 if canvas.depth(elbow) > -0.06 else 0.82
    radius = body.arm
    hand = lerp(elbow, wrist, 1.24)
    raglan = details.upper.pattern == "raglan"
    cloth: Cloth | Rgb = details.sleeve if raglan else details.upper
    label = TRIM if raglan else UPPER
    if figure.upper == "t-shirt":
        canvas.capsule(shoulder, elbow, (radius, radius * 0.9), details.skin, SKIN, gain=gain)
        canvas.capsule(elbow, wrist, (radius * 0.9, radius * 0.65), details.skin, SKIN, gain=gain)
        canvas.capsule(wrist, hand, (0.019, 0.021), details.skin, SKIN, gain=gain)
        end = lerp(shoulder, elbow, details.sleeve_length)
        canvas.capsule(shoulder, end, (radius + 0.004, radius + 0.009), cloth, label, gain=gain)
        return
    wide = radius + 0.45 * figure.bulk
    canvas.capsule(shoulder, elbow, (wide + 0.001, wide * 0.97), cloth, label, gain=gain)
    canvas.capsule(elbow, wrist, (wide * 0.97, wide * 0.75), cloth, label, gain=gain)
    if figure.upper in ("sweater", "hoodie", "jacket", "shirt"):
        trim = details.trim if figure.upper in ("jacket", "sweater") else scale_rgb(details.sleeve, 0.72)
        start = lerp(elbow, wrist, 0.86)
        canvas.capsule(start, lerp(elbow, wrist, 0.94), (wide * 0.8, wide * 0.76), trim, TRIM, gain=gain)
    canvas.capsule(lerp(elbow, wrist, 1.1), hand, (0.019, 0.022), details.skin, SKIN, gain=gain)


def _trunk_levels(figure: Figure, bottom: float, ease: float, flare: float = 0.0) -> np.ndarray:
    """Return the trunk ellipses from `bottom` up to the neck: height, half width, half depth, Z."""
    body = figure.body
    waist_y = body.crotch + 0.135
    rows = [
        (body.crotch - 0.02, body.hip, body.seat, -0.006),
        (body.crotch + 0.05, body.hip, body.seat, -0.008),
        (waist_y, body.waist, body.belly, 0.004 + 0.5 * (body.belly - 0.054)),
        (figure.shoulder_y - 0.085, body.chest, body.chest_depth + 0.45 * body.bust, 0.55 * body.bust),
        (figure.shoulder_y - 0.02, body.shoulder - 0.008, body.chest_depth, 0.0),
        (figure.shoulder_y + 0.004, body.shoulder - 0.024 - ease, body.chest_depth - 0.012, 0.0),
        (figure.neck_y - 0.022, 0.062 - ease, 0.046, 0.0),
        (figure.neck_y - 0.006, 0.044, 0.040, 0.0),
    ]
    table = np.array([(y, w + ease, d + ease, z) for y, w, d, z in rows])
    table[-1, 1:3] -= ease
    if bottom < table[0, 0]:
        hem = (bottom, body.hip + ease + flare, body.seat + ease + flare, 0.0)
        return np.vstack([hem, table])
    cut = [float(np.interp(bottom, table[:, 0], table[:, i])) for i in range(1, 4)]
    return np.vstack([(bottom, *cut), table[table[:, 0] > bottom]])
