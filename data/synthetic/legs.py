"""Legs, trousers, shorts and shoes of a synthetic person."""

from __future__ import annotations

import math

from data.synthetic.canvas import LOWER, SHIN, SHOE, SKIN, Point, lerp, shift
from data.synthetic.figure import Figure
from data.synthetic.people import mix_rgb


def draw_leg(figure: Figure, leg: tuple[Point, Point, Point]) -> None:
    """Draw one leg (hip, knee, ankle) with its trouser leg, sock and shoe."""
    canvas, body, details = figure.canvas, figure.body, figure.details
    hip, knee, ankle = leg
    gain = 1.0 if canvas.depth(knee) > -0.02 else 0.84
    if figure.lower in ("shorts", "skirt"):
        tights = figure.lower == "skirt" and details.tights is not None
        skin = details.tights if tights and details.tights is not None else details.skin
        canvas.capsule(hip, knee, (body.thigh, body.calf), skin, SHIN, spine=False, gain=gain)
        calf = lerp(knee, ankle, 0.35)
        canvas.capsule(knee, calf, (body.calf, body.calf), skin, SHIN, spine=False, gain=gain)
        canvas.capsule(calf, ankle, (body.calf, 0.021), skin, SHIN, spine=False, gain=gain)
        if not tights and figure.attributes["shoes"] != "sandals":
            top = lerp(ankle, knee, details.sock_height / 0.22)
            canvas.capsule(top, ankle, (0.028, 0.023), details.socks, SKIN, spine=False, gain=gain)
    if figure.attributes["shoes"] != "brown boots":
        _draw_shoe(figure, knee, ankle, gain)
    if figure.lower == "shorts":
        end = lerp(hip, knee, 0.82 + 2 * details.lower_hem)
        radii = (body.thigh + 0.004, body.thigh + 0.002)
        canvas.capsule(hip, end, radii, details.lower, LOWER, spine=False, gain=gain)
    elif figure.lower != "skirt":
        _draw_trouser(figure, leg, gain)
    if figure.attributes["shoes"] == "brown boots":
        _draw_shoe(figure, knee, ankle, gain)


def _draw_trouser(figure: Figure, leg: tuple[Point, Point, Point], gain: float) -> None:
    canvas, body, details = figure.canvas, figure.body, figure.details
    hip, knee, ankle = leg
    jeans = figure.lower == "jeans"
    loose = 0.0 if figure.female else 0.010
    boots = figure.attributes["shoes"] == "brown boots"
    flare = 0.0 if jeans or boots else loose + (0.1 if figure.female else 0.3) * details.lower_flare
    radii = (body.thigh, body.calf + 0.004 + flare + (0.0 if figure.female else 0.004))
    # Women's trousers are cut narrow and end above the ankle, men's wide and on the shoe.
    cropped = 0.2 if figure.female else 0.12 if jeans and details.cuffs else 0.02
    low = lerp(ankle, knee, cropped)
    if figure.female:
        canvas.capsule(low, ankle, (0.024, 0.021), details.skin, SKIN, spine=False, gain=gain)
    canvas.capsule(hip, knee, radii, details.lower, LOWER, spine=False, gain=gain)
    below = (radii[1], 0.026 + 0.003 + flare)
    canvas.capsule(knee, low, below, details.lower, LOWER, spine=False, gain=gain)
    if jeans:
        _draw_denim(figure, leg, low, below[1], gain)
    elif details.side_stripe:
        out = 0.6 * radii[1] * (1 if hip[0] > 0 else -1)
        if (1 if hip[0] > 0 else -1) * -canvas.sin > -0.35:
            a, b, c = ((p[0] + out * 1.3, p[1], p[2]) for p in (hip, knee, low))
            canvas.capsule(a, b, (0.006, 0.006), details.lower.second, LOWER, spine=False)
            canvas.capsule(b, c, (0.006, 0.006), details.lower.second, LOWER, spine=False)


def _draw_denim(figure: Figure, leg: tuple[Point, Point, Point], low: Point, radius: float, gain: float) -> None:
    """Draw the faded thigh and, on cuffed jeans, the pale turn-up."""
    canvas, details = figure.canvas, figure.details
    pale = mix_rgb(details.lower.rgb, (235, 235, 235), details.fade)
    a, b = lerp(leg[0], leg[1], 0.35), lerp(leg[0], leg[1], 0.95)
    canvas.capsule(a, b, (0.018, 0.013), pale, LOWER, spine=False, gain=gain)
    canvas.capsule(lerp(leg[1], low, 0.25), lerp(leg[1], low, 0.6), (0.01, 0.006), pale, LOWER,
                   spine=False, gain=gain)  # fmt: skip
    if details.cuffs:
        up = lerp(low, leg[1], 0.1)
        whiter = mix_rgb(details.lower.rgb, (225, 225, 225), 0.55)
        canvas.capsule(up, low, (radius + 0.004, radius + 0.004), whiter, LOWER, spine=False, gain=gain)


def _draw_shoe(figure: Figure, knee: Point, ankle: Point, gain: float) -> None:
    canvas, details = figure.canvas, figure.details
    kind = figure.attributes["shoes"]
    shin = math.atan2(ankle[2] - knee[2], knee[1] - ankle[1])
    tilt = min(0.0, shin + 0.1)
    ahead, down = math.cos(tilt), math.sin(tilt)
    heel: Point = (ankle[0], ankle[1] - 0.018, ankle[2] - 0.018)
    toe: Point = (ankle[0] * 1.12, ankle[1] - 0.02 + 0.085 * down, ankle[2] + 0.085 * ahead)
    if kind == "brown boots":
        top = lerp(ankle, knee, 0.42)
        canvas.capsule(top, ankle, (0.041, 0.034), details.shoes.rgb, SHOE, spine=False, gain=gain)
    sole: Point = (0.0, -0.010, 0.0)
    if kind in ("red sneakers", "white sneakers", "brown boots"):
        a, b = shift(heel, sole), shift(toe, sole)
        trim = details.shoes.trim if kind != "white sneakers" else (222.0, 222.0, 222.0)
        canvas.capsule(a, b, (0.021, 0.021), trim, SHOE, spine=False, gain=gain)
    main = details.skin if kind == "sandals" else details.shoes.rgb
    canvas.capsule(heel, toe, (0.024, 0.021), main, SHOE, spine=False, gain=gain)
    if kind == "sandals":
        a, b = lerp(heel, toe, 0.7), lerp(heel, toe, 0.82)
        canvas.capsule(a, b, (0.023, 0.022), details.shoes.rgb, SHOE, spine=False)
        canvas.capsule(shift(heel, sole), shift(toe, sole), (0.012, 0.012), details.shoes.trim, SHOE,
                       spine=False)  # fmt: skip
    elif kind == "white sneakers":
        middle = lerp(heel, toe, 0.45)
        canvas.capsule(middle, middle, (0.013, 0.013), details.shoes.trim, SHOE, spine=False)
