"""Drawing one person: shaded capsules and elliptic surfaces, ray-cast by numpy at twice the output size.

Body coordinates: X to the person's left, Y up (0 = ground, 1 = top of the head), Z forward. A heading of 0
faces the camera, 90 degrees faces right in the image, 180 shows the back. Drawing is painter's order; each
pixel also remembers which part it shows, which is what the visibility flags are counted from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from data.synthetic_people import Body, Cloth, Person, Rgb

WIDTH: Final = 64
HEIGHT: Final = 128
SUPER: Final = 2
_W: Final = WIDTH * SUPER
_H: Final = HEIGHT * SUPER

SKIN, UPPER, INNER, LOWER, SHOE, HAIR, TAIL, GLASSES, BAG, HAT, FACE, SHIN, TRIM = range(1, 14)
"""Part labels; 0 is background. ``SHIN`` is the bare or stockinged leg, ``TAIL`` the ponytail and ``TRIM`` what
of the upper garment does not have its named colour."""

_XS: Final = np.arange(_W, dtype=np.float32) + 0.5
_YS: Final = np.arange(_H, dtype=np.float32)[:, None] + 0.5

Point = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Pose:
    """How one shot shows a person. Angles in radians, offsets in output pixels or body heights."""

    heading: float
    phase: float
    stride: float
    arm_bend: tuple[float, float]
    arm_out: float
    lean: float
    pitch: float
    light: float
    scale: float
    centre: float
    ground: float
    gesture: int
    """0 walks, 1 keeps one hand up (a phone), 2 keeps the hands in the pockets, 3 stands."""


class Canvas:
    """Colour (float32 [256, 128, 3]) and part labels (uint8 [256, 128]) of one figure, twice output size."""

    def __init__(self, pose: Pose, body: Body) -> None:
        self.rgb = np.zeros((_H, _W, 3), np.float32)
        self.label = np.zeros((_H, _W), np.uint8)
        self.pose = pose
        self.cos = math.cos(pose.heading)
        self.sin = math.sin(pose.heading)
        self.scale = pose.scale * SUPER
        self.centre = pose.centre * SUPER
        self.ground = pose.ground * SUPER
        self.stoop = body.stoop
        self.pivot = body.crotch + 0.03
        self.drop = 0.0

    def bend(self, height: float | np.ndarray) -> np.ndarray:
        """Forward displacement of the spine at a body height, from stooping."""
        return np.asarray(self.stoop * np.maximum(height - self.pivot, 0.0) ** 1.5, np.float32)

    def depth(self, point: Point) -> float:
        """Distance towards the camera, relative to the body axis."""
        return point[2] * self.cos - point[0] * self.sin

    def project(self, point: Point, *, spine: bool = True) -> tuple[float, float]:
        """Canvas pixel (x, y) of a body point; `spine` moves it along with the stooping back."""
        across, up, ahead = point
        if spine:
            ahead += float(self.bend(up))
        depth = ahead * self.cos - across * self.sin
        x = across * self.cos + ahead * self.sin + self.pose.lean * (up - 0.5)
        return self.centre + self.scale * x, self.row(up) + self.scale * self.pose.pitch * depth

    def row(self, up: float) -> float:
        """Canvas row of a body height on the body axis."""
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
        left, right = max(0, int(min(x0, x1) - pad)), min(_W, int(max(x0, x1) + pad) + 1)
        top, bottom = max(0, int(min(y0, y1) - pad)), min(_H, int(max(y0, y1) + pad) + 1)
        if left >= right or top >= bottom:
            return
        xs, ys = _XS[left:right] - x0, _YS[top:bottom] - y0
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
            colour = paint.colour(nx * ra / self.scale, a[1] - along[mask] * reach)
        else:
            colour = np.asarray(paint, np.float32)
        self.rgb[top:bottom, left:right][mask] = colour * light[:, None]
        self.label[top:bottom, left:right][mask] = label

    def blob(self, centre: Point, radii: Point, rgb: Rgb, label: int, *, spine: bool = True) -> None:
        """Draw a shaded ellipsoid with semi-axes `radii` (across, up, ahead)."""
        x, y = self.project(centre, spine=spine)
        rx = self.scale * math.hypot(radii[0] * self.cos, radii[2] * self.sin)
        ry = self.scale * radii[1]
        left, right = max(0, int(x - rx)), min(_W, int(x + rx) + 2)
        top, bottom = max(0, int(y - ry)), min(_H, int(y + ry) + 2)
        if left >= right or top >= bottom:
            return
        u, v = (_XS[left:right] - x) / rx, (_YS[top:bottom] - y) / ry
        square = u * u + v * v
        mask = square < 1
        light = 0.70 + 0.32 * np.sqrt(np.maximum(1 - square, 0)) + self.pose.light * u - 0.08 * v
        self.rgb[top:bottom, left:right][mask] = np.asarray(rgb, np.float32) * light[mask][:, None]
        self.label[top:bottom, left:right][mask] = label

    def box(self, centre: Point, half: Point, paint: tuple[Rgb, Rgb], label: int) -> None:
        """Draw an upright box with rounded corners: front colour and a trim stripe; not moved by stooping."""
        x, y = self.project(centre, spine=False)
        front, side = abs(half[0] * self.cos) * self.scale, abs(half[2] * self.sin) * self.scale
        rx, ry = front + side, half[1] * self.scale
        left, right = max(0, int(x - rx)), min(_W, int(x + rx) + 2)
        top, bottom = max(0, int(y - ry)), min(_H, int(y + ry) + 2)
        if left >= right or top >= bottom:
            return
        u, v = (_XS[left:right] - x) / rx, (_YS[top:bottom] - y) / ry
        mask = (u**6 + v**6) < 1
        colour = np.where((np.abs(v + 0.35) < 0.12)[..., None], *np.asarray(paint, np.float32)[::-1])
        edge = np.where(u > (front - side) / rx, 0.78, 1.0) if self.cos * self.sin > 0 else np.where(
            u < (side - front) / rx, 0.78, 1.0)  # fmt: skip
        light = edge * (1.0 - 0.15 * v) * np.where(np.maximum(np.abs(u), np.abs(v)) > 0.82, 0.75, 1.0)
        self.rgb[top:bottom, left:right][mask] = (colour * light[..., None])[mask]
        self.label[top:bottom, left:right][mask] = label

    def surface(self, levels: np.ndarray, *, spine: bool = True) -> Surface | None:
        """Ray-cast a stack of ellipses; `levels` [N, 4] holds height (ascending), half width, half depth, Z."""
        first = max(0, round(self.row(levels[-1, 0])))
        last = min(_H, round(self.row(levels[0, 0])) + 1)
        if first >= last:
            return None
        up = self.drop + (self.ground - _YS[first:last]) / self.scale
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
        middle = self.centre + self.scale * (ahead * sin + self.pose.lean * (up - 0.5))
        left = max(0, int((middle - self.scale * half).min()))
        right = min(_W, int((middle + self.scale * half).max()) + 2)
        if left >= right:
            return None
        x = (_XS[left:right] - middle) / self.scale
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
        """Begin with a blank patch."""
        self.colour = np.zeros((*self.mask.shape, 3), np.float32)
        self.label = np.zeros(self.mask.shape, np.uint8)

    def fill(self, cloth: Cloth | Rgb, label: int) -> None:
        """Paint the whole patch."""
        if isinstance(cloth, Cloth) and cloth.pattern in ("stripes", "pinstripes", "checks"):
            u = (self.across * self.wide).ravel()
            self.colour = cloth.colour(u, self.up.ravel()).reshape(self.colour.shape)
        else:
            self.colour[:] = cloth.rgb if isinstance(cloth, Cloth) else cloth
        self.label[:] = label

    def decal(self, region: np.ndarray, rgb: Rgb, label: int | None = None) -> None:
        """Paint a boolean region of the patch, optionally relabelling it."""
        self.colour[region] = rgb
        if label is not None:
            self.label[region] = label

    def dim(self, region: np.ndarray, factor: float) -> None:
        """Darken or lighten a boolean region."""
        self.colour[region] *= factor

    def commit(self) -> None:
        """Write the patch onto its canvas."""
        rows = slice(self.top, self.top + self.mask.shape[0])
        columns = slice(self.left, self.left + self.mask.shape[1])
        self.canvas.rgb[rows, columns][self.mask] = (self.colour * self.light[..., None])[self.mask]
        self.canvas.label[rows, columns][self.mask] = self.label[self.mask]


def draw_person(person: Person, pose: Pose) -> Canvas:
    """Draw `person` in `pose` on a transparent canvas."""
    canvas = Canvas(pose, person.body)
    _Figure(person, canvas).draw()
    return canvas


def _lerp(a: Point, b: Point, t: float) -> Point:
    return a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1]), a[2] + t * (b[2] - a[2])


class _Figure:
    """One person being drawn: joints, then parts from back to front."""

    def __init__(self, person: Person, canvas: Canvas) -> None:
        self.attributes = person.attributes
        self.body = person.body
        self.details = person.details
        self.canvas = canvas
        self.upper = person.attributes["upper_type"]
        self.lower = person.attributes["lower_type"]
        self.carrying = person.attributes["carrying"]
        self.female = person.attributes["gender"] == "female"
        self.bulk = {"t-shirt": 0.004, "shirt": 0.004, "sweater": 0.008, "hoodie": 0.013, "jacket": 0.012,
                     "coat": 0.013}[self.upper] + 0.6 * person.details.ease  # fmt: skip
        self.neck_y = 1.0 - person.body.head
        self.shoulder_y = self.neck_y - 0.045
        self.legs = [self._leg(side) for side in (-1, 1)]
        canvas.drop = min(leg[2][1] for leg in self.legs) - 0.035
        self.arms = [self._arm(side) for side in (-1, 1)]

    # Joints -------------------------------------------------------------------------------------------

    def _leg(self, side: int) -> tuple[Point, Point, Point]:
        pose, body = self.canvas.pose, self.body
        hip: Point = (side * (body.hip - body.thigh + 0.006), body.crotch + 0.045, 0.0)
        swing = pose.stride * math.sin(pose.phase + (0 if side > 0 else math.pi))
        lift = pose.stride * 1.5 * max(0.0, math.cos(pose.phase + (0 if side > 0 else math.pi)))
        knee_bend = 0.06 + lift + 0.35 * max(0.0, -swing)
        half = (hip[1] - 0.035) / 2
        lower = swing - knee_bend
        foot_x = side * body.stance
        knee: Point = ((hip[0] + foot_x) / 2, hip[1] - half * math.cos(swing), half * math.sin(swing))
        ankle: Point = (foot_x, knee[1] - half * math.cos(lower), knee[2] + half * math.sin(lower))
        return hip, knee, ankle

    def _arm(self, side: int) -> tuple[Point, Point, Point]:
        pose, body = self.canvas.pose, self.body
        shoulder: Point = (side * (body.shoulder - body.arm * 0.7), self.shoulder_y - 0.02, 0.0)
        bend = pose.arm_bend[0 if side < 0 else 1]
        swing = -0.9 * pose.stride * math.sin(pose.phase + (0 if side > 0 else math.pi))
        out = pose.arm_out
        busy = self.carrying in ("handbag", "suitcase") and side == self.details.bag_side
        if busy:
            swing, bend, out = (-0.42, 0.1, 0.2) if self.carrying == "suitcase" else (0.36, 0.3, 0.18)
        elif pose.gesture == 1 and side != self.details.bag_side:
            swing, bend = 0.35, 1.9
        elif pose.gesture == 2:
            swing, bend, out = -0.25, 0.75, 0.3
        down, ahead = math.cos(swing), math.sin(swing)
        elbow: Point = (shoulder[0] + side * out * 0.17, shoulder[1] - 0.168 * down, 0.168 * ahead)
        fore = swing + bend
        inward = 0.2 if pose.gesture == 2 and not busy else 0.1 * bend
        wrist: Point = (
            elbow[0] + side * (out * 0.08 - inward * 0.14),
            elbow[1] - 0.15 * math.cos(fore),
            elbow[2] + 0.15 * math.sin(fore),
        )
        return shoulder, elbow, wrist

    # Order --------------------------------------------------------------------------------------------

    def draw(self) -> None:
        """Draw every part, far to near."""
        canvas = self.canvas
        order: list[tuple[float, Callable[[], None]]] = [
            (-0.02, self._pelvis),
            (0.0, self._torso),
            (0.01, self._neck),
            (0.03, self._head),
        ]
        for leg in self.legs:
            depth = canvas.depth(leg[1])
            order.append((-0.3 + 0.1 * depth, lambda leg=leg: self._draw_leg(leg)))  # type: ignore[misc]
        for arm in self.arms:
            depth = canvas.depth(_lerp(arm[0], arm[2], 0.5))
            key = 0.2 + 0.1 * depth if depth > -0.06 else -0.5
            order.append((key, lambda arm=arm: self._draw_arm(arm)))  # type: ignore[misc]
        facing = canvas.cos > -0.15
        behind = -0.6 if facing else 0.05
        if self.upper == "hoodie":
            order.append((-0.55 if canvas.cos > 0.3 else 0.04, self._hood))
        if self.attributes["hair"] in ("long", "ponytail"):
            order.append((behind + 0.02, self._hair_back))
        if self.attributes["hair"] == "long" and canvas.cos > -0.5:
            order.append((0.1, self._hair_front))
        order.extend(self._bags(facing=facing))
        for _, part in sorted(order, key=lambda item: item[0]):
            part()

    def _bags(self, *, facing: bool) -> list[tuple[float, Callable[[], None]]]:
        side = self.details.bag_side
        near = -side * self.canvas.sin > -0.3
        if self.carrying == "backpack":
            return [(-0.58 if facing else 0.06, self._backpack)]
        if self.carrying == "handbag":
            return [(0.4 if near else -0.52, self._handbag)]
        if self.carrying == "shoulder bag":
            return [(0.15 if -side * self.canvas.sin > -0.5 else -0.2, self._shoulder_bag)]
        if self.carrying == "suitcase":
            return [(0.4 if -side * self.canvas.sin > 0.3 or not facing else -0.6, self._suitcase)]
        return []

    # Legs and feet ------------------------------------------------------------------------------------

    def _draw_leg(self, leg: tuple[Point, Point, Point]) -> None:
        canvas, body, details = self.canvas, self.body, self.details
        hip, knee, ankle = leg
        gain = 1.0 if canvas.depth(knee) > -0.02 else 0.84
        if self.lower in ("shorts", "skirt"):
            tights = self.lower == "skirt" and details.tights is not None
            skin = details.tights if tights and details.tights is not None else details.skin
            canvas.capsule(hip, knee, (body.thigh, body.calf), skin, SHIN, spine=False, gain=gain)
            calf = _lerp(knee, ankle, 0.35)
            canvas.capsule(knee, calf, (body.calf, body.calf), skin, SHIN, spine=False, gain=gain)
            canvas.capsule(calf, ankle, (body.calf, 0.021), skin, SHIN, spine=False, gain=gain)
            if not tights and self.attributes["shoes"] != "sandals":
                top = _lerp(ankle, knee, details.sock_height / 0.22)
                canvas.capsule(top, ankle, (0.028, 0.023), details.socks, SKIN, spine=False, gain=gain)
        if self.attributes["shoes"] != "brown boots":
            self._shoe(knee, ankle, gain)
        if self.lower == "shorts":
            end = _lerp(hip, knee, 0.82 + 2 * details.lower_hem)
            radii = (body.thigh + 0.004, body.thigh + 0.002)
            canvas.capsule(hip, end, radii, details.lower, LOWER, spine=False, gain=gain)
        elif self.lower != "skirt":
            self._trouser(leg, gain)
        if self.attributes["shoes"] == "brown boots":
            self._shoe(knee, ankle, gain)

    def _trouser(self, leg: tuple[Point, Point, Point], gain: float) -> None:
        canvas, body, details = self.canvas, self.body, self.details
        hip, knee, ankle = leg
        jeans = self.lower == "jeans"
        loose = 0.0 if self.female else 0.010
        boots = self.attributes["shoes"] == "brown boots"
        flare = 0.0 if jeans or boots else loose + (0.1 if self.female else 0.3) * details.lower_flare
        radii = (body.thigh, body.calf + 0.004 + flare + (0.0 if self.female else 0.004))
        # Women's trousers are cut narrow and end above the ankle, men's wide and on the shoe.
        cropped = 0.2 if self.female else 0.12 if jeans and details.cuffs else 0.02
        low = _lerp(ankle, knee, cropped)
        if self.female:
            canvas.capsule(low, ankle, (0.024, 0.021), details.skin, SKIN, spine=False, gain=gain)
        canvas.capsule(hip, knee, radii, details.lower, LOWER, spine=False, gain=gain)
        below = (radii[1], 0.026 + 0.003 + flare)
        canvas.capsule(knee, low, below, details.lower, LOWER, spine=False, gain=gain)
        if jeans:
            self._denim(leg, low, below[1], gain)
        elif details.side_stripe:
            out = 0.6 * radii[1] * (1 if hip[0] > 0 else -1)
            if (1 if hip[0] > 0 else -1) * -canvas.sin > -0.35:
                a, b, c = ((p[0] + out * 1.3, p[1], p[2]) for p in (hip, knee, low))
                canvas.capsule(a, b, (0.006, 0.006), details.lower.second, LOWER, spine=False)
                canvas.capsule(b, c, (0.006, 0.006), details.lower.second, LOWER, spine=False)

    def _denim(self, leg: tuple[Point, Point, Point], low: Point, radius: float, gain: float) -> None:
        """Faded thighs, a pale turn-up or stitched hem."""
        canvas, details = self.canvas, self.details
        pale: Rgb = tuple(c + details.fade * (235 - c) for c in details.lower.rgb)  # type: ignore[assignment]
        a, b = _lerp(leg[0], leg[1], 0.35), _lerp(leg[0], leg[1], 0.95)
        canvas.capsule(a, b, (0.018, 0.013), pale, LOWER, spine=False, gain=gain)
        canvas.capsule(_lerp(leg[1], low, 0.25), _lerp(leg[1], low, 0.6), (0.01, 0.006), pale, LOWER,
                       spine=False, gain=gain)  # fmt: skip
        if details.cuffs:
            up = _lerp(low, leg[1], 0.1)
            whiter: Rgb = tuple(c + 0.55 * (225 - c) for c in details.lower.rgb)  # type: ignore[assignment]
            canvas.capsule(up, low, (radius + 0.004, radius + 0.004), whiter, LOWER, spine=False, gain=gain)

    def _shoe(self, knee: Point, ankle: Point, gain: float) -> None:
        canvas, details = self.canvas, self.details
        kind = self.attributes["shoes"]
        shin = math.atan2(ankle[2] - knee[2], knee[1] - ankle[1])
        tilt = min(0.0, shin + 0.1)
        ahead, down = math.cos(tilt), math.sin(tilt)
        heel: Point = (ankle[0], ankle[1] - 0.018, ankle[2] - 0.018)
        toe: Point = (ankle[0] * 1.12, ankle[1] - 0.02 + 0.085 * down, ankle[2] + 0.085 * ahead)
        if kind == "brown boots":
            top = _lerp(ankle, knee, 0.42)
            canvas.capsule(top, ankle, (0.041, 0.034), details.shoe, SHOE, spine=False, gain=gain)
        sole: Point = (0.0, -0.010, 0.0)
        if kind in ("red sneakers", "white sneakers", "brown boots"):
            a, b = _shift(heel, sole), _shift(toe, sole)
            trim = details.shoe_trim if kind != "white sneakers" else (222.0, 222.0, 222.0)
            canvas.capsule(a, b, (0.021, 0.021), trim, SHOE, spine=False, gain=gain)
        main = details.skin if kind == "sandals" else details.shoe
        canvas.capsule(heel, toe, (0.024, 0.021), main, SHOE, spine=False, gain=gain)
        if kind == "sandals":
            a, b = _lerp(heel, toe, 0.7), _lerp(heel, toe, 0.82)
            canvas.capsule(a, b, (0.023, 0.022), details.shoe, SHOE, spine=False)
            canvas.capsule(_shift(heel, sole), _shift(toe, sole), (0.012, 0.012), details.shoe_trim, SHOE,
                           spine=False)  # fmt: skip
        elif kind == "white sneakers":
            middle = _lerp(heel, toe, 0.45)
            canvas.capsule(middle, middle, (0.013, 0.013), details.shoe_trim, SHOE, spine=False)

    # Trunk --------------------------------------------------------------------------------------------

    def _levels(self, bottom: float, ease: float, flare: float = 0.0) -> np.ndarray:
        """Trunk ellipses from `bottom` up to the neck: height, half width, half depth, Z."""
        body = self.body
        waist_y = body.crotch + 0.135
        rows = [
            (body.crotch - 0.02, body.hip, body.seat, -0.006),
            (body.crotch + 0.05, body.hip, body.seat, -0.008),
            (waist_y, body.waist, body.belly, 0.004 + 0.5 * (body.belly - 0.054)),
            (self.shoulder_y - 0.085, body.chest, body.chest_depth + 0.45 * body.bust, 0.55 * body.bust),
            (self.shoulder_y - 0.02, body.shoulder - 0.008, body.chest_depth, 0.0),
            (self.shoulder_y + 0.004, body.shoulder - 0.024 - ease, body.chest_depth - 0.012, 0.0),
            (self.neck_y - 0.022, 0.062 - ease, 0.046, 0.0),
            (self.neck_y - 0.006, 0.044, 0.040, 0.0),
        ]
        table = np.array([(y, w + ease, d + ease, z) for y, w, d, z in rows])
        table[-1, 1:3] -= ease
        if bottom < table[0, 0]:
            hem = (bottom, body.hip + ease + flare, body.seat + ease + flare, 0.0)
            return np.vstack([hem, table])
        cut = [float(np.interp(bottom, table[:, 0], table[:, i])) for i in range(1, 4)]
        return np.vstack([(bottom, *cut), table[table[:, 0] > bottom]])

    def _pelvis(self) -> None:
        canvas, body, details = self.canvas, self.body, self.details
        skirt = self.lower == "skirt"
        swing = abs(self.legs[0][1][2] - self.legs[1][1][2]) / 2
        bottom = 0.30 + 1.5 * details.lower_hem if skirt else body.crotch - 0.012
        flare = details.lower_flare if skirt else 0.0
        levels = self._levels(bottom, 0.005, flare)
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
            if self.lower == "jeans":
                pocket = (surface.front < 0) & (np.abs(np.abs(surface.across) - 0.45) < 0.2)
                surface.dim(pocket & (np.abs(surface.up - body.crotch - 0.04) < 0.02), 0.75)
        surface.commit()

    def _torso(self) -> None:
        details, body = self.details, self.body
        coat = self.upper == "coat"
        bottom = body.crotch + {
            "t-shirt": 0.02, "shirt": 0.0, "sweater": 0.02, "hoodie": 0.0, "jacket": 0.035, "coat": -0.14,
        }[self.upper] + details.hem * (2.0 if coat else 1.0)  # fmt: skip
        tucked = self.upper == "shirt" and details.belt is not None
        if tucked:
            bottom = body.crotch + 0.115
            self._belt(bottom)
        levels = self._levels(bottom, self.bulk, 0.012 if coat else 0.0)
        if coat:
            levels[0, 2] += 0.35 * abs(self.legs[0][1][2] - self.legs[1][1][2])
        surface = self.canvas.surface(levels)
        if surface is None:
            return
        surface.fill(details.upper, UPPER)
        self._dress(surface, bottom)
        self._straps(surface)
        surface.commit()

    def _belt(self, at: float) -> None:
        levels = self._levels(at - 0.022, 0.007)
        surface = self.canvas.surface(levels[levels[:, 0] < at + 0.03], spine=False)
        if surface is not None and self.details.belt is not None:
            surface.fill(self.details.belt, LOWER)
            surface.commit()

    def _dress(self, s: Surface, bottom: float) -> None:
        details = self.details
        front, top = s.front > 0, self.neck_y
        if details.upper.pattern == "band":
            s.decal(np.abs(s.up - details.band_at) < details.band_width, details.upper.second, TRIM)
        if details.upper.pattern == "print":
            s.decal(self._print(s) & front, details.print_rgb, TRIM)
        if self.upper == "t-shirt":
            low = (0.03, 0.045, 0.06)[details.neckline]
            hole = front & (np.abs(s.across) * 0.09 + (top - 0.01 - s.up) * 0.8 < low * 0.8)
            s.decal(hole & (s.up > top - low), details.skin, SKIN)
        elif self.upper == "shirt":
            self._shirt(s)
        elif self.upper == "sweater":
            ribs = (s.up < bottom + 0.028) & (np.sin(s.across * 26) > -0.3)
            s.dim(s.up < bottom + 0.028, 0.80)
            s.dim(ribs, 0.88)
            s.dim(s.up > top - 0.035, 0.82)
            if details.neckline == 2:
                vee = front & (np.abs(s.across) * 0.5 < (s.up - top + 0.075) * 4)
                s.decal(vee, details.inner, INNER)
        elif self.upper == "hoodie":
            self._hoodie(s, bottom)
        else:
            self._open_front(s, bottom)

    def _print(self, s: Surface) -> np.ndarray:
        details = self.details
        u = (s.across - details.print_at[0]) / details.print_size[0]
        v = (s.up - details.print_at[1]) / details.print_size[1]
        if details.print_shape == 0:
            return np.maximum(np.abs(u), np.abs(v)) < 1
        if details.print_shape == 1:
            return u * u + v * v < 1
        if details.print_shape == 2:
            return (np.abs(u) + np.abs(v) < 1.15) & (v < 0.8)
        return (np.abs(u) < 1) & ((np.abs(v - 0.55) < 0.35) | (np.abs(v + 0.55) < 0.35))

    def _shirt(self, s: Surface) -> None:
        details, top = self.details, self.neck_y
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

    def _hoodie(self, s: Surface, bottom: float) -> None:
        details, top = self.details, self.neck_y
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

    def _open_front(self, s: Surface, bottom: float) -> None:
        """Jackets and coats: an open front over an inner layer, lapels or zip, seams on the back."""
        details, top = self.details, self.neck_y
        coat = self.upper == "coat"
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
            s.dim(~front & (np.abs(s.across) < 0.05) & (s.up < self.body.crotch + 0.08), 0.55)
            s.dim(np.abs(s.up - self.body.crotch - 0.13) < (0.012 if details.buttons else 0.0), 0.6)
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

    def _straps(self, s: Surface) -> None:
        details, top = self.details, self.neck_y
        if self.carrying == "backpack":
            strap = (np.abs(np.abs(s.across) - 0.60) < 0.13) & (s.up > top - 0.22) & (s.front > 0)
            over = (s.up > top - 0.06) & (np.abs(np.abs(s.across) - 0.60) < 0.13)
            s.decal(strap | over, details.bag, BAG)
            inner = np.abs(np.abs(s.across) - 0.60) > 0.09
            s.dim((strap | over) & inner, 0.7)
        elif self.carrying == "shoulder bag":
            # From the shoulder opposite the bag down to the hip, on both sides of the body.
            line = -details.bag_side * (s.up - (top - 0.175)) / 0.19
            s.decal(np.abs(s.across - line) < 0.15, details.bag_trim, BAG)

    def _neck(self) -> None:
        low: Point = (0.0, self.neck_y - 0.035, 0.0)
        high: Point = (0.0, self.neck_y + 0.03, 0.005)
        radius = 0.030 if self.female else 0.040
        canvas, details = self.canvas, self.details
        canvas.capsule(low, high, (radius, radius), details.skin, SKIN, gain=0.82)
        if self.upper == "sweater" and details.neckline == 0:
            rgb: Rgb = tuple(0.85 * c for c in details.upper.rgb)  # type: ignore[assignment]
            canvas.capsule(low, _lerp(low, high, 0.7), (0.04, 0.034), rgb, UPPER)
        elif self.upper in ("jacket", "coat", "shirt") and canvas.cos < 0.2:
            rgb = details.trim if self.upper == "jacket" else tuple(0.75 * c for c in details.upper.rgb)  # type: ignore[assignment]
            canvas.capsule(low, _lerp(low, high, 0.45), (0.046, 0.042), rgb, UPPER)

    def _draw_arm(self, arm: tuple[Point, Point, Point]) -> None:
        canvas, body, details = self.canvas, self.body, self.details
        shoulder, elbow, wrist = arm
        gain = 1.0 if canvas.depth(elbow) > -0.06 else 0.82
        radius = body.arm
        hand = _lerp(elbow, wrist, 1.24)
        raglan = details.upper.pattern == "raglan"
        cloth: Cloth | Rgb = details.sleeve if raglan else details.upper
        label = TRIM if raglan else UPPER
        if self.upper == "t-shirt":
            canvas.capsule(shoulder, elbow, (radius, radius * 0.9), details.skin, SKIN, gain=gain)
            canvas.capsule(elbow, wrist, (radius * 0.9, radius * 0.65), details.skin, SKIN, gain=gain)
            canvas.capsule(wrist, hand, (0.019, 0.021), details.skin, SKIN, gain=gain)
            end = _lerp(shoulder, elbow, details.sleeve_length)
            canvas.capsule(shoulder, end, (radius + 0.004, radius + 0.009), cloth, label, gain=gain)
            return
        wide = radius + 0.45 * self.bulk
        canvas.capsule(shoulder, elbow, (wide + 0.001, wide * 0.97), cloth, label, gain=gain)
        canvas.capsule(elbow, wrist, (wide * 0.97, wide * 0.75), cloth, label, gain=gain)
        if self.upper in ("sweater", "hoodie", "jacket", "shirt"):
            rgb: Rgb = tuple(0.72 * c for c in details.sleeve)  # type: ignore[assignment]
            trim = details.trim if self.upper in ("jacket", "sweater") else rgb
            start = _lerp(elbow, wrist, 0.86)
            canvas.capsule(start, _lerp(elbow, wrist, 0.94), (wide * 0.8, wide * 0.76), trim, TRIM, gain=gain)
        canvas.capsule(_lerp(elbow, wrist, 1.1), hand, (0.019, 0.022), details.skin, SKIN, gain=gain)

    # Head ---------------------------------------------------------------------------------------------

    def _head(self) -> None:
        canvas, body, details = self.canvas, self.body, self.details
        centre: Point = (0.0, self.neck_y + body.head * 0.5, 0.016 + 0.3 * canvas.stoop * 0.06)
        x0, y0 = canvas.project(centre)
        a, h, b = body.head_width * canvas.scale, body.head * 0.5 * canvas.scale, 0.060 * canvas.scale
        puff = details.hair_volume if self.attributes["hair"] != "bald" or details.hat != "none" else 1.0
        reach = 1.75 if details.hat == "sun hat" else 1.5 if details.hat == "cap" else 1.25
        rx, ry = reach * b, 1.3 * h
        left, right = max(0, int(x0 - rx)), min(_W, int(x0 + rx) + 1)
        top, bottom = max(0, int(y0 - ry)), min(_H, int(y0 + ry) + 1)
        if left >= right or top >= bottom:
            return
        x, y = _XS[left:right] - x0, y0 - _YS[top:bottom]
        patch = _HeadPatch(canvas, slice(top, bottom), slice(left, right), x, y)
        patch.skull(a, h, b)
        self._face(patch)
        patch.commit()
        patch.skull(a * puff, h * puff, b * puff)
        self._hair(patch)
        self._hat(patch)
        patch.commit()

    def _face(self, s: _HeadPatch) -> None:
        details = self.details
        p, q, r = s.across, s.up, s.front
        s.paint(s.mask, details.skin, SKIN)
        s.label[s.mask & (r > 0.15)] = FACE
        eye = (np.abs(np.abs(p) - 0.4) < 0.17) & (r > 0.2)
        s.paint(eye & (np.abs(q - 0.04) < 0.075), (40, 30, 28))
        brow: Rgb = tuple(0.45 * c for c in details.skin)  # type: ignore[assignment]
        s.paint(eye & (np.abs(q - 0.22) < 0.05), brow)
        s.dim((np.abs(p) < 0.14) & (r > 0.4) & (np.abs(q + 0.2) < 0.1), 0.82)
        lips: Rgb = (190, 70, 76) if self.female else tuple(0.68 * c for c in details.skin)  # type: ignore[assignment]
        s.paint((np.abs(p) < 0.26) & (r > 0.3) & (np.abs(q + 0.5) < 0.065), lips)
        s.dim((np.abs(r) < 0.16) & (np.abs(q + 0.05) < 0.2), 0.85)
        if self.attributes["age"] == "elderly":
            s.dim((np.abs(np.abs(p) - 0.42) < 0.08) & (np.abs(q + 0.33) < 0.16) & (r > 0), 0.85)
        if details.beard:
            jaw = (q < -0.34) & (r > -0.05) & ~((np.abs(p) < 0.2) & (np.abs(q + 0.5) < 0.06))
            s.paint(jaw, details.hair)
        self._glasses(s)

    def _glasses(self, s: _HeadPatch) -> None:
        kind = self.attributes["glasses"]
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
        s.paint((lens & ~inside) | temple | bridge, self.details.frame, GLASSES)
        s.paint(lens & inside, (214, 224, 232), GLASSES)

    def _hair(self, s: _HeadPatch) -> None:
        details, style = self.details, self.attributes["hair"]
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
        bob = self.female and style == "short"
        if bob:
            sides = (r < 0.35) & (q > -0.85) & (np.abs(p) > 0.45)
        nape = (r < -0.1) & (q > (-0.95 if bob else -0.3 if style == "short" else -0.8))
        region = s.mask & (crown | sides | nape)
        s.paint(region, details.hair, HAIR)
        s.dim(region & (np.sin(9 * p + 5 * r) > 0.6), 0.8)
        s.lift(region & (np.abs(q - 0.62) < 0.1), 18)

    def _hat(self, s: _HeadPatch) -> None:
        details = self.details
        if details.hat == "none":
            return
        p, q, r = s.across, s.up, s.front
        crown = s.mask & (q > 0.28)
        s.paint(crown, details.hat_rgb, HAT)
        if details.hat == "beanie":
            s.paint(crown & (q < 0.48), details.hat_trim, HAT)
            return
        s.paint(crown & (q < 0.42), details.hat_trim, HAT)
        brim_rgb: Rgb = tuple(0.8 * c for c in details.hat_rgb)  # type: ignore[assignment]
        canvas, radius = self.canvas, self.body.head_width * details.hair_volume
        ahead = 0.05 if details.hat == "cap" else 0.0
        wide = radius * (0.9 if details.hat == "cap" else 1.5)
        x = s.x / canvas.scale - ahead * canvas.sin
        y = s.y / canvas.scale - self.body.head * 0.16 * details.hair_volume + 0.02 * canvas.cos * (ahead > 0)
        half = math.hypot(wide * canvas.cos, (wide if ahead == 0 else 0.07) * canvas.sin)
        brim = (x / half) ** 2 + (y / (0.010 + 0.006 * abs(canvas.cos))) ** 2 < 1
        if ahead and canvas.cos < -0.3:
            brim &= False
        s.paint_flat(brim, brim_rgb, HAT)
        del p, r

    def _hair_back(self) -> None:
        canvas, details = self.canvas, self.details
        if self.attributes["hair"] == "ponytail":
            top: Point = (0.0, self.neck_y + 0.095, -0.062)
            low: Point = (0.012, self.neck_y - 0.02 - details.hair_length, -0.085)
            middle = _lerp(top, low, 0.4)
            canvas.capsule(top, _shift(middle, (0, 0, -0.016)), (0.02, 0.026), details.hair, TAIL)
            canvas.capsule(_shift(middle, (0, 0, -0.016)), low, (0.026, 0.012), details.hair, TAIL)
            canvas.capsule(top, top, (0.016, 0.016), details.hat_trim, TAIL)
            return
        length = 0.07 + details.hair_length
        width = self.body.head_width * details.hair_volume
        levels = np.array([
            (self.neck_y - length, width * 0.9, 0.024, -0.052),
            (self.neck_y - length * 0.6, width * 1.12, 0.034, -0.046),
            (self.neck_y + 0.03, width * 1.06, 0.05, -0.026),
            (self.neck_y + 0.075, width * 1.0, 0.056, -0.01),
        ])  # fmt: skip
        surface = canvas.surface(levels)
        if surface is not None:
            surface.fill(details.hair, HAIR)
            surface.dim(np.sin(surface.across * 14) > 0.4, 0.8)
            surface.commit()

    def _hair_front(self) -> None:
        details = self.details
        for side in (-1, 1):
            top: Point = (side * self.body.head_width * 0.96, self.neck_y + 0.07, 0.0)
            low: Point = (side * self.body.head_width * 1.15, self.neck_y - 0.045 - details.hair_length, 0.045)
            if -side * self.canvas.sin < -0.75:
                continue
            middle = _lerp(top, low, 0.5)
            self.canvas.capsule(top, middle, (0.012, 0.018), details.hair, HAIR)
            self.canvas.capsule(middle, low, (0.018, 0.010), details.hair, HAIR, gain=0.9)

    def _hood(self) -> None:
        canvas, details = self.canvas, self.details
        rgb: Rgb = tuple(0.8 * c for c in details.upper.rgb)  # type: ignore[assignment]
        width = 0.070 if self.female else 0.082
        centre: Point = (0.0, self.neck_y - 0.008, -0.045)
        canvas.blob(centre, (width, 0.046, 0.05), rgb, UPPER)
        if canvas.cos < 0.3:
            canvas.blob(_shift(centre, (0, 0.022, 0.0)), (width * 0.62, 0.014, 0.03), details.hood_lining, UPPER)

    # Bags ---------------------------------------------------------------------------------------------

    def _backpack(self) -> None:
        canvas, details, body = self.canvas, self.details, self.body
        size = details.bag_size
        top, bottom = self.shoulder_y + 0.03, self.shoulder_y - 0.215 * size
        half, deep = max(0.086 * size, body.shoulder * 0.86), 0.056 * size
        back = -(body.chest_depth + self.bulk + 0.65 * deep)
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
        surface.fill(details.bag, BAG)
        pocket = (surface.front < 0) & (np.abs(surface.across) < 0.68) & (surface.up < bottom + 0.09)
        surface.decal(pocket & (surface.up > bottom + 0.015), details.bag_trim)
        surface.dim(np.abs(surface.up - (top - 0.075)) < 0.006, 0.6)
        surface.commit()

    def _handbag(self) -> None:
        canvas, details = self.canvas, self.details
        arm = self.arms[0 if details.bag_side < 0 else 1]
        hand = _lerp(arm[1], arm[2], 1.15)
        size = details.bag_size
        centre: Point = (hand[0] + details.bag_side * 0.012, hand[1] - 0.115 * size, hand[2] + 0.01)
        for shift in (-0.03, 0.03):
            end: Point = (centre[0], centre[1] + 0.05, centre[2] + shift)
            canvas.capsule(hand, end, (0.006, 0.006), details.bag_trim, BAG, spine=False)
        canvas.box(centre, (0.042 * size, 0.058 * size, 0.075 * size), (details.bag, details.bag_trim), BAG)

    def _shoulder_bag(self) -> None:
        details, body = self.details, self.body
        size = details.bag_size
        centre: Point = (details.bag_side * (body.hip + 0.03), body.crotch + 0.035, -0.075)
        half = (0.045 * size, 0.062 * size, 0.085 * size)
        self.canvas.box(centre, half, (details.bag, details.bag_trim), BAG)

    def _suitcase(self) -> None:
        canvas, details = self.canvas, self.details
        arm = self.arms[0 if details.bag_side < 0 else 1]
        hand = _lerp(arm[1], arm[2], 1.1)
        size = details.bag_size
        side = details.bag_side
        centre: Point = (side * (self.body.hip + 0.075), canvas.drop + 0.025 + 0.14 * size, -0.13)
        top: Point = (centre[0], centre[1] + 0.13 * size, centre[2])
        for shift in (-0.02, 0.02):
            a: Point = (hand[0], hand[1], hand[2] + shift)
            b: Point = (top[0], top[1], top[2] + shift)
            canvas.capsule(a, b, (0.006, 0.006), (70, 70, 74), BAG, spine=False)
        canvas.box(centre, (0.062 * size, 0.14 * size, 0.085 * size), (details.bag, details.bag_trim), BAG)
        for shift in (-0.04, 0.04):
            wheel: Point = (centre[0] + 0.03 * abs(canvas.cos) * (1 if shift > 0 else -1),
                            canvas.drop + 0.012, centre[2] + shift)  # fmt: skip
            canvas.capsule(wheel, wheel, (0.014, 0.014), (30, 30, 30), BAG, spine=False)


class _HeadPatch:
    """The pixels around a head, with unit-sphere coordinates of the skull under each of them."""

    def __init__(self, canvas: Canvas, rows: slice, columns: slice, x: np.ndarray, y: np.ndarray) -> None:
        self.canvas, self.rows, self.columns, self.x, self.y = canvas, rows, columns, x, y
        shape = (y.shape[0], x.shape[0])
        self.colour = np.zeros((*shape, 3), np.float32)
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
        self.colour[region] = rgb
        if label is not None:
            self.label[region] = label

    def paint_flat(self, region: np.ndarray, rgb: Rgb, label: int) -> None:
        """Paint a region that may lie beside the skull, such as a brim."""
        self.colour[region] = rgb
        self.label[region] = label
        self.light = np.where(region, 0.9, self.light)

    def dim(self, region: np.ndarray, factor: float) -> None:
        """Darken a region."""
        self.colour[region] *= factor

    def lift(self, region: np.ndarray, amount: float) -> None:
        """Brighten a region by an amount in 0..255."""
        self.colour[region] += amount

    def commit(self) -> None:
        """Write what was painted since the last ``skull`` onto the canvas."""
        drawn = self.label > 0
        self.canvas.rgb[self.rows, self.columns][drawn] = (self.colour * self.light[..., None])[drawn]
        self.canvas.label[self.rows, self.columns][drawn] = self.label[drawn]


def _shift(point: Point, by: Point) -> Point:
    return point[0] + by[0], point[1] + by[1], point[2] + by[2]
