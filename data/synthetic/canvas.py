"""The canvas of one figure: shaded capsules and elliptic surfaces, ray-cast by numpy at twice the output size.

Body coordinates: X to the person's left, Y up (0 = ground, 1 = top of the head), Z forward. A heading of 0
faces the camera, 90 degrees faces right in the image, 180 shows the back. Parts are drawn in painter's order; each
pixel also remembers which part it shows, and the visibility flags count these labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from data.synthetic.people import Body, Cloth, Rgb

WIDTH: Final = 64
HEIGHT: Final = 128
SUPER: Final = 2
CANVAS_WIDTH: Final = WIDTH * SUPER
CANVAS_HEIGHT: Final = HEIGHT * SUPER

SKIN, UPPER, INNER, LOWER, SHOE, HAIR, TAIL, GLASSES, BAG, HAT, FACE, SHIN, TRIM = range(1, 14)
"""Part labels; 0 is background. ``SHIN`` is the bare or stockinged leg, ``TAIL`` the ponytail and ``TRIM`` the parts
of the upper garment in another color than its named one."""

XS: Final = np.arange(CANVAS_WIDTH, dtype=np.float32) + 0.5
YS: Final = np.arange(CANVAS_HEIGHT, dtype=np.float32)[:, None] + 0.5

Point = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Pose:
    """The pose of a person in one shot. Angles in radians, offsets in output pixels or body heights."""

    heading: float
    phase: float
    stride: float
    arm_bend: tuple[float, float]
    arm_out: float
    lean: float
    pitch: float
    light: float
    scale: float
    center: float
    ground: float
    gesture: int
    """0 walking, 1 one hand up (a phone), 2 hands in the pockets, 3 standing."""


class Canvas:
    """Color (float32 [256, 128, 3]) and part labels (uint8 [256, 128]) of one figure, at twice the output size."""

    def __init__(self, pose: Pose, body: Body) -> None:
        self.rgb = np.zeros((CANVAS_HEIGHT, CANVAS_WIDTH, 3), np.float32)
        self.label = np.zeros((CANVAS_HEIGHT, CANVAS_WIDTH), np.uint8)
        self.pose = pose
        self.cos = math.cos(pose.heading)
        self.sin = math.sin(pose.heading)
        self.scale = pose.scale * SUPER
        self.center = pose.center * SUPER
        self.ground = pose.ground * SUPER
        self.stoop = body.stoop
        self.pivot = body.crotch + 0.03
        self.drop = 0.0

    def bend(self, height: float | np.ndarray) -> np.ndarray:
        """Return how far stooping moves the spine forward at a body height."""
        return np.asarray(self.stoop * np.maximum(height - self.pivot, 0.0) ** 1.5, np.float32)

    def depth(self, point: Point) -> float:
        """Return the distance toward the camera, relative to the body axis."""
        return point[2] * self.cos - point[0] * self.sin

    def project(self, point: Point, *, spine: bool = True) -> tuple[float, float]:
        """Return the canvas pixel (x, y) of a body point; with `spine`, moved along with the stooping back."""
        across, up, ahead = point
        if spine:
            ahead += float(self.bend(up))
        depth = ahead * self.cos - across * self.sin
        x = across * self.cos + ahead * self.sin + self.pose.lean * (up - 0.5)
        return self.center + self.scale * x, self.row(up) + self.scale * self.pose.pitch * depth

    def row(self, up: float) -> float:
        """Return the canvas row of a body height on the body axis."""
        return self.ground - self.scale * (up - self.drop)

    def capsule(
        self, a: Point, b: Point, radii: tuple[float, float], paint: Cloth | Rgb, label: int,
        *, spine: bool = True, gain: float = 1.0,
    ) -> None:  # fmt: skip
        """Draw a limb: a capsule from `a` to `b` with the two end `radii`, shaded as a cylinder."""
        x0, y0 = self.project(a, spine=spine)
        x1, y1 = self.project(b, spine=spine)
        ra, rb = radii[0] * self.scale, radii[1] * self.scale
        pad = max(ra, rb) + 1
        left, right = max(0, int(min(x0, x1) - pad)), min(CANVAS_WIDTH, int(max(x0, x1) + pad) + 1)
        top, bottom = max(0, int(min(y0, y1) - pad)), min(CANVAS_HEIGHT, int(max(y0, y1) + pad) + 1)
        if left >= right or top >= bottom:
            return
        xs, ys = XS[left:right] - x0, YS[top:bottom] - y0
        dx, dy = x1 - x0, y1 - y0
        along = xs * (dx / (dx * dx + dy * dy + 1e-6)) + ys * (dy / (dx * dx + dy * dy + 1e-6))
        along = np.minimum(np.maximum(along, 0), 1)
        ox, oy = xs - along * dx, ys - along * dy
        radius = ra + (rb - ra) * along
        square = (ox * ox + oy * oy) / (radius * radius)
        mask = square < 1
        nx = (ox / radius)[mask]
        light = gain * (0.70 + 0.32 * np.sqrt(1 - square[mask]) + self.pose.light * nx)
        if isinstance(paint, Cloth):
            reach = math.hypot(dx, dy) / self.scale
            color = paint.color(nx * ra / self.scale, a[1] - along[mask] * reach)
        else:
            color = np.asarray(paint, np.float32)
        self.rgb[top:bottom, left:right][mask] = color * light[:, None]
        self.label[top:bottom, left:right][mask] = label

    def blob(self, center: Point, radii: Point, rgb: Rgb, label: int, *, spine: bool = True) -> None:
        """Draw a shaded ellipsoid with semi-axes `radii` (across, up, ahead)."""
        x, y = self.project(center, spine=spine)
        rx = self.scale * math.hypot(radii[0] * self.cos, radii[2] * self.sin)
        ry = self.scale * radii[1]
        window = window_around(x, y, rx, ry, pad=2)
        if window is None:
            return
        u, v = (XS[window[1]] - x) / rx, (YS[window[0]] - y) / ry
        square = u * u + v * v
        mask = square < 1
        light = 0.70 + 0.32 * np.sqrt(np.maximum(1 - square, 0)) + self.pose.light * u - 0.08 * v
        self.rgb[window][mask] = np.asarray(rgb, np.float32) * light[mask][:, None]
        self.label[window][mask] = label

    def box(self, center: Point, half: Point, paint: tuple[Rgb, Rgb], label: int) -> None:
        """Draw an upright box with rounded corners, a front color and a trim stripe; stooping does not move it."""
        x, y = self.project(center, spine=False)
        front, side = abs(half[0] * self.cos) * self.scale, abs(half[2] * self.sin) * self.scale
        rx, ry = front + side, half[1] * self.scale
        window = window_around(x, y, rx, ry, pad=2)
        if window is None:
            return
        u, v = (XS[window[1]] - x) / rx, (YS[window[0]] - y) / ry
        mask = (u**6 + v**6) < 1
        color = np.where((np.abs(v + 0.35) < 0.12)[..., None], *np.asarray(paint, np.float32)[::-1])
        edge = np.where(u > (front - side) / rx, 0.78, 1.0) if self.cos * self.sin > 0 else np.where(
            u < (side - front) / rx, 0.78, 1.0)  # fmt: skip
        light = edge * (1.0 - 0.15 * v) * np.where(np.maximum(np.abs(u), np.abs(v)) > 0.82, 0.75, 1.0)
        self.rgb[window][mask] = (color * light[..., None])[mask]
        self.label[window][mask] = label

    def surface(self, levels: np.ndarray, *, spine: bool = True) -> Surface | None:
        """Ray-cast a stack of ellipses and return its visible patch, or None outside the canvas.

        levels: [N, 4], height (ascending), half width, half depth, Z.
        """
        first = max(0, round(self.row(levels[-1, 0])))
        last = min(CANVAS_HEIGHT, round(self.row(levels[0, 0])) + 1)
        if first >= last:
            return None
        up = self.drop + (self.ground - YS[first:last]) / self.scale
        wide = np.interp(up, levels[:, 0], levels[:, 1]).astype(np.float32)
        deep = np.interp(up, levels[:, 0], levels[:, 2]).astype(np.float32)
        ahead = np.interp(up, levels[:, 0], levels[:, 3]).astype(np.float32)
        if spine:
            ahead = ahead + self.bend(up)
        return self._cast(first, up, wide, deep, ahead)

    def _cast(
        self, first: int, up: np.ndarray, wide: np.ndarray, deep: np.ndarray, ahead: np.ndarray
    ) -> Surface | None:
        cos, sin = self.cos, self.sin
        half = np.sqrt((wide * cos) ** 2 + (deep * sin) ** 2)
        middle = self.center + self.scale * (ahead * sin + self.pose.lean * (up - 0.5))
        left = max(0, int((middle - self.scale * half).min()))
        right = min(CANVAS_WIDTH, int((middle + self.scale * half).max()) + 2)
        if left >= right:
            return None
        x = (XS[left:right] - middle) / self.scale
        iw, idp = 1 / wide**2, 1 / deep**2
        a = sin * sin * iw + cos * cos * idp
        b = x * (sin * cos) * (idp - iw)
        square = b * b - a * (x * x * (cos * cos * iw + sin * sin * idp) - 1)
        mask = square > 0
        t = (np.sqrt(np.maximum(square, 0)) - b) / a
        across = (x * cos - t * sin) / wide
        front = (x * sin + t * cos) / deep
        side = x / half
        light = 0.70 + 0.32 * np.sqrt(np.maximum(1 - side * side, 0)) + self.pose.light * side
        return Surface(
            canvas=self, top=first, left=left, mask=mask, across=across, front=front,
            up=np.broadcast_to(up, mask.shape), wide=wide, light=light,
        )  # fmt: skip


@dataclass(eq=False, kw_only=True)
class Surface:
    """A visible elliptic surface patch [rows, columns] with body coordinates for painting decals on it.

    ``across`` is -1..1 over the half width, ``front`` is 1 at the chest and -1 at the back, ``up`` is height.
    """

    canvas: Canvas
    top: int
    left: int
    mask: np.ndarray
    across: np.ndarray
    front: np.ndarray
    up: np.ndarray
    wide: np.ndarray
    light: np.ndarray

    def __post_init__(self) -> None:
        """Start with a blank patch."""
        self.color = np.zeros((*self.mask.shape, 3), np.float32)
        self.label = np.zeros(self.mask.shape, np.uint8)

    def fill(self, cloth: Cloth | Rgb, label: int) -> None:
        """Paint the whole patch."""
        if isinstance(cloth, Cloth) and cloth.pattern in ("stripes", "pinstripes", "checks"):
            u = (self.across * self.wide).ravel()
            self.color = cloth.color(u, self.up.ravel()).reshape(self.color.shape)
        else:
            self.color[:] = cloth.rgb if isinstance(cloth, Cloth) else cloth
        self.label[:] = label

    def decal(self, region: np.ndarray, rgb: Rgb, label: int | None = None) -> None:
        """Paint a boolean region of the patch, optionally relabelling it."""
        self.color[region] = rgb
        if label is not None:
            self.label[region] = label

    def dim(self, region: np.ndarray, factor: float) -> None:
        """Darken or lighten a boolean region."""
        self.color[region] *= factor

    def commit(self) -> None:
        """Write the patch onto its canvas."""
        rows = slice(self.top, self.top + self.mask.shape[0])
        columns = slice(self.left, self.left + self.mask.shape[1])
        self.canvas.rgb[rows, columns][self.mask] = (self.color * self.light[..., None])[self.mask]
        self.canvas.label[rows, columns][self.mask] = self.label[self.mask]


class HeadPatch:
    """The pixels around a head, with unit-sphere coordinates of the skull under each of them."""

    def __init__(self, canvas: Canvas, rows: slice, columns: slice, x: np.ndarray, y: np.ndarray) -> None:
        self.canvas, self.rows, self.columns, self.x, self.y = canvas, rows, columns, x, y
        shape = (y.shape[0], x.shape[0])
        self.color = np.zeros((*shape, 3), np.float32)
        self.label = np.zeros(shape, np.uint8)

    def skull(self, a: float, h: float, b: float) -> None:
        """Ray-cast the ellipsoid with semi-axes `a` across, `h` up and `b` ahead, in canvas pixels."""
        cos, sin = self.canvas.cos, self.canvas.sin
        x, v = self.x, self.y / h
        ia, ib = 1 / a**2, 1 / b**2
        lead = sin * sin * ia + cos * cos * ib
        cross = x * (sin * cos * (ib - ia))
        square = cross**2 - lead * (x * x * (cos * cos * ia + sin * sin * ib) - (1 - v * v))
        self.mask = square > 0
        t = (np.sqrt(np.maximum(square, 0)) - cross) / lead
        self.across, self.front = (x * cos - t * sin) / a, (x * sin + t * cos) / b
        self.up = np.broadcast_to(v, self.mask.shape)
        side = x / math.hypot(a * cos, b * sin)
        rim = np.sqrt(np.clip(1 - side * side - v * v, 0, 1))
        self.light = 0.76 + 0.26 * rim + self.canvas.pose.light * side + 0.06 * v
        self.label[:] = 0

    def paint(self, region: np.ndarray, rgb: Rgb, label: int | None = None) -> None:
        """Paint a region of the skull."""
        region = region & self.mask
        self.color[region] = rgb
        if label is not None:
            self.label[region] = label

    def paint_flat(self, region: np.ndarray, rgb: Rgb, label: int) -> None:
        """Paint a region that may lie beside the skull, such as a brim."""
        self.color[region] = rgb
        self.label[region] = label
        self.light = np.where(region, 0.9, self.light)

    def dim(self, region: np.ndarray, factor: float) -> None:
        """Darken a region."""
        self.color[region] *= factor

    def lift(self, region: np.ndarray, amount: float) -> None:
        """Brighten a region by an amount in 0..255."""
        self.color[region] += amount

    def commit(self) -> None:
        """Write everything painted since the last ``skull`` onto the canvas."""
        drawn = self.label > 0
        self.canvas.rgb[self.rows, self.columns][drawn] = (self.color * self.light[..., None])[drawn]
        self.canvas.label[self.rows, self.columns][drawn] = self.label[drawn]


def window_around(x: float, y: float, rx: float, ry: float, *, pad: int) -> tuple[slice, slice] | None:
    """Return the rows and columns of the canvas that an ellipse at (x, y) may cover, or None if it lies outside."""
    left, right = max(0, int(x - rx)), min(CANVAS_WIDTH, int(x + rx) + pad)
    top, bottom = max(0, int(y - ry)), min(CANVAS_HEIGHT, int(y + ry) + pad)
    return None if left >= right or top >= bottom else (slice(top, bottom), slice(left, right))


def lerp(a: Point, b: Point, t: float) -> Point:
    """Return the point at share `t` of the way from `a` to `b`."""
    return a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1]), a[2] + t * (b[2] - a[2])


def shift(point: Point, by: Point) -> Point:
    """Return `point` moved by `by`."""
    return point[0] + by[0], point[1] + by[1], point[2] + by[2]
