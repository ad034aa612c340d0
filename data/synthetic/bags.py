"""Bags of a synthetic person."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from data.synthetic.canvas import BAG, Point, lerp
from data.synthetic.figure import Figure


def bags_in_order(figure: Figure, *, facing: bool) -> list[tuple[float, Callable[[], None]]]:
    """Return the place in the painter's order and the drawing function of the bag, if there is one."""
    side = figure.details.bag.side
    near = -side * figure.canvas.sin > -0.3
    if figure.carrying == "backpack":
        return [(-0.58 if facing else 0.06, partial(_draw_backpack, figure))]
    if figure.carrying == "handbag":
        return [(0.4 if near else -0.52, partial(_draw_handbag, figure))]
    if figure.carrying == "shoulder bag":
        return [(0.15 if -side * figure.canvas.sin > -0.5 else -0.2, partial(_draw_shoulder_bag, figure))]
    if figure.carrying == "suitcase":
        return [(0.4 if -side * figure.canvas.sin > 0.3 or not facing else -0.6, partial(_draw_suitcase, figure))]
    return []


def _draw_backpack(figure: Figure) -> None:
    canvas, details, body = figure.canvas, figure.details, figure.body
    size = details.bag.size
    top, bottom = figure.shoulder_y + 0.03, figure.shoulder_y - 0.215 * size
    half, deep = max(0.086 * size, body.shoulder * 0.86), 0.056 * size
    back = -(body.chest_depth + figure.bulk + 0.65 * deep)
    levels = np.array([
        (bottom, half * 0.9, deep * 0.85, back),
        (bottom + 0.025, half, deep, back),
        (top - 0.05, half * 0.97, deep, back),
        (top - 0.015, half * 0.8, deep * 0.85, back),
        (top, half * 0.5, deep * 0.6, back),
    ])  # fmt: skip
    surface = canvas.surface(levels)
    if surface is None:
        return
    surface.fill(details.bag.rgb, BAG)
    pocket = (surface.front < 0) & (np.abs(surface.across) < 0.68) & (surface.up < bottom + 0.09)
    surface.decal(pocket & (surface.up > bottom + 0.015), details.bag.trim)
    surface.dim(np.abs(surface.up - (top - 0.075)) < 0.006, 0.6)
    surface.commit()


def _draw_handbag(figure: Figure) -> None:
    canvas, details = figure.canvas, figure.details
    arm = figure.arms[0 if details.bag.side < 0 else 1]
    hand = lerp(arm[1], arm[2], 1.15)
    size = details.bag.size
    center: Point = (hand[0] + details.bag.side * 0.012, hand[1] - 0.115 * size, hand[2] + 0.01)
    for shift in (-0.03, 0.03):
        end: Point = (center[0], center[1] + 0.05, center[2] + shift)
        canvas.capsule(hand, end, (0.006, 0.006), details.bag.trim, BAG, spine=False)
    canvas.box(center, (0.042 * size, 0.058 * size, 0.075 * size), (details.bag.rgb, details.bag.trim), BAG)


def _draw_shoulder_bag(figure: Figure) -> None:
    details, body = figure.details, figure.body
    size = details.bag.size
    center: Point = (details.bag.side * (body.hip + 0.03), body.crotch + 0.035, -0.075)
    half = (0.045 * size, 0.062 * size, 0.085 * size)
    figure.canvas.box(center, half, (details.bag.rgb, details.bag.trim), BAG)


def _draw_suitcase(figure: Figure) -> None:
    canvas, details = figure.canvas, figure.details
    arm = figure.arms[0 if details.bag.side < 0 else 1]
    hand = lerp(arm[1], arm[2], 1.1)
    size = details.bag.size
    side = details.bag.side
    center: Point = (side * (figure.body.hip + 0.075), canvas.drop + 0.025 + 0.14 * size, -0.13)
    top: Point = (center[0], center[1] + 0.13 * size, center[2])
    for shift in (-0.02, 0.02):
        a: Point = (hand[0], hand[1], hand[2] + shift)
        b: Point = (top[0], top[1], top[2] + shift)
        canvas.capsule(a, b, (0.006, 0.006), (70, 70, 74), BAG, spine=False)
    canvas.box(center, (0.062 * size, 0.14 * size, 0.085 * size), (details.bag.rgb, details.bag.trim), BAG)
    for shift in (-0.04, 0.04):
        wheel: Point = (center[0] + 0.03 * abs(canvas.cos) * (1 if shift > 0 else -1),
                        canvas.drop + 0.012, center[2] + shift)  # fmt: skip
        canvas.capsule(wheel, wheel, (0.014, 0.014), (30, 30, 30), BAG, spine=False)
