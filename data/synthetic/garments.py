"""Type-specific details of upper garments: necklines, collars, zips, prints."""

from __future__ import annotations

import numpy as np

from data.synthetic.canvas import INNER, SKIN, TRIM, Surface
from data.synthetic.figure import Figure
from data.synthetic.people import Rgb


def paint_garment(figure: Figure, s: Surface, bottom: float) -> None:
    """Paint the details of the garment's type on the trunk."""
    details = figure.details
    front, top = s.front > 0, figure.neck_y
    if details.upper.pattern == "band":
        s.decal(np.abs(s.up - details.band_at) < details.band_width, details.upper.second, TRIM)
    if details.upper.pattern == "print":
        s.decal(_print_region(figure, s) & front, details.print_rgb, TRIM)
    if figure.upper == "t-shirt":
        low = (0.03, 0.045, 0.06)[details.neckline]
        hole = front & (np.abs(s.across) * 0.09 + (top - 0.01 - s.up) * 0.8 < low * 0.8)
        s.decal(hole & (s.up > top - low), details.skin, SKIN)
    elif figure.upper == "shirt":
        _paint_shirt(figure, s)
    elif figure.upper == "sweater":
        ribs = (s.up < bottom + 0.028) & (np.sin(s.across * 26) > -0.3)
        s.dim(s.up < bottom + 0.028, 0.80)
        s.dim(ribs, 0.88)
        s.dim(s.up > top - 0.035, 0.82)
        if details.neckline == 2:
            vee = front & (np.abs(s.across) * 0.5 < (s.up - top + 0.075) * 4)
            s.decal(vee, details.inner, INNER)
    elif figure.upper == "hoodie":
        _paint_hoodie(figure, s, bottom)
    else:
        _paint_open_front(figure, s, bottom)


def _print_region(figure: Figure, s: Surface) -> np.ndarray:
    details = figure.details
    u = (s.across - details.print_at[0]) / details.print_size[0]
    v = (s.up - details.print_at[1]) / details.print_size[1]
    if details.print_shape == 0:
        return np.maximum(np.abs(u), np.abs(v)) < 1
    if details.print_shape == 1:
        return u * u + v * v < 1
    if details.print_shape == 2:
        return (np.abs(u) + np.abs(v) < 1.15) & (v < 0.8)
    return (np.abs(u) < 1) & ((np.abs(v - 0.55) < 0.35) | (np.abs(v + 0.55) < 0.35))


def _paint_shirt(figure: Figure, s: Surface) -> None:
    details, top = figure.details, figure.neck_y
    front = s.front > 0
    s.decal(front & (np.abs(s.across) * 0.35 < (s.up - top + 0.05) * 2.2), details.skin, SKIN)
    collar = (s.up > top - 0.055) & (np.abs(s.across) < 0.52)
    lapel = front & collar & (np.abs(s.across) * 0.35 >= (s.up - top + 0.05) * 2.2)
    pale = sum(details.upper.rgb) < 420
    rgb: Rgb = tuple(0.5 * c + 122 if pale else 0.72 * c for c in details.upper.rgb)  # type: ignore[assignment]
    s.decal(lapel | (~front & (s.up > top - 0.035)), rgb)
    placket = front & (np.abs(s.across) < 0.055) & (s.up < top - 0.05)
    s.dim(placket, 0.74)
    s.decal(placket & (((s.up * 26) % 1.0) < 0.4), (245, 245, 240) if pale else (60, 55, 55))
    s.dim(~front & (np.abs(s.up - top + 0.095) < 0.005), 0.75)


def _paint_hoodie(figure: Figure, s: Surface, bottom: float) -> None:
    details, top = figure.details, figure.neck_y
    front = s.front > 0
    s.dim(s.up < bottom + 0.03, 0.76)
    pocket = front & (s.up > bottom + 0.035) & (s.up < bottom + 0.11)
    pocket &= np.abs(s.across) < 0.62 - (s.up - bottom - 0.035) * 3
    s.dim(pocket, 0.84)
    s.dim(pocket & (s.up > bottom + 0.1), 0.7)
    s.decal(front & (np.abs(s.across) * 0.3 < (s.up - top + 0.05) * 2), details.inner, INNER)
    rgb: Rgb = (240, 240, 240) if sum(details.upper.rgb) < 480 else (60, 60, 60)
    cords = front & (np.abs(np.abs(s.across) - 0.16) < 0.05) & (s.up > top - 0.14) & (s.up < top - 0.03)
    s.decal(cords, rgb)


def _paint_open_front(figure: Figure, s: Surface, bottom: float) -> None:
    """Paint a jacket or coat: an open front over an inner layer, lapels or zip, seams on the back."""
    details, top = figure.details, figure.neck_y
    coat = figure.upper == "coat"
    front = s.front > 0
    closed_below = 0.13 if coat and details.buttons else (bottom - top - 1 if not coat else 0.42)
    opening = 0.2 if not coat else np.clip(0.24 * (1 - (top - s.up) / max(closed_below, 0.01)), 0, 1)
    gap = front & (np.abs(s.across) < opening + 0.25 * np.maximum(s.up - top + 0.06, 0) / 0.06)
    s.decal(gap, details.inner, INNER)
    s.decal(gap & (s.up > top - 0.035), details.skin, SKIN)
    if coat:
        lapel = front & ~gap & (np.abs(s.across) < opening + 0.24) & (s.up > top - 0.16)
        s.dim(lapel, 0.72)
        s.dim(front & ~gap & (np.abs(s.across) < 0.05), 0.6)
        buttons = front & (np.abs(np.abs(s.across) - 0.17) < 0.05) & (s.up < top - 0.16)
        s.decal(buttons & (((s.up * 16) % 1.0) < 0.25), (40, 36, 34))
        s.dim(~front & (np.abs(s.across) < 0.05) & (s.up < figure.body.crotch + 0.08), 0.55)
        s.dim(np.abs(s.up - figure.body.crotch - 0.13) < (0.012 if details.buttons else 0.0), 0.6)
        s.dim(s.up < bottom + 0.012, 0.8)
    else:
        edge = front & ~gap & (np.abs(s.across) < opening + 0.10 + (s.up > top - 0.06) * 0.5)
        s.decal(edge & (s.up < top - 0.02), details.trim)
        s.dim(s.up < bottom + 0.032, 0.62)
        s.dim(~front & (np.abs(s.up - top + 0.10) < 0.006), 0.6)
        s.dim(~front & (np.abs(np.abs(s.across) - 0.55) < 0.03) & (s.up < top - 0.1), 0.75)
        pocket = front & (np.abs(np.abs(s.across) - 0.62) < 0.09)
        s.dim(pocket & (np.abs(s.up - bottom - 0.075) < 0.02), 0.65)
        s.decal(s.up > top - 0.03, details.trim)
