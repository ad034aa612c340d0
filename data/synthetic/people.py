"""Identities of the synthetic pedestrians: coarse caption attributes plus the fine details that tell two apart.

A person is drawn in two steps. The *coarse* attributes (the caption slots of ``data.slots``) are shared by
``lookalikes`` consecutive identities; everything else (exact shades, patterns, body, hair, bag) belongs to
one identity alone. Lengths are fractions of body height, colors are RGB in 0..255.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np

from data.slots import AGES, COLORS, NONE

Rgb = tuple[float, float, float]

# Hue in degrees, then saturation and value in 0..1. The boxes are disjoint with a margin, so a named color
# stays nameable under shading and a moderate camera cast.
_SHADES: Final[dict[str, tuple[tuple[float, float], ...]]] = {
    "black": ((0, 360), (0.0, 0.12), (0.07, 0.15)),
    "white": ((0, 360), (0.0, 0.04), (0.93, 1.0)),
    "gray": ((0, 360), (0.0, 0.05), (0.46, 0.60)),
    "red": ((-6, 5), (0.82, 0.95), (0.66, 0.86)),
    "orange": ((23, 30), (0.86, 0.97), (0.94, 1.0)),
    "yellow": ((50, 56), (0.66, 0.92), (0.92, 1.0)),
    "green": ((110, 152), (0.58, 0.85), (0.38, 0.64)),
    "blue": ((210, 228), (0.68, 0.90), (0.52, 0.86)),
    "purple": ((272, 284), (0.55, 0.78), (0.44, 0.64)),
    "pink": ((330, 342), (0.32, 0.48), (0.95, 1.0)),
    "brown": ((20, 30), (0.54, 0.68), (0.34, 0.44)),
}

_SKIN: Final[tuple[Rgb, ...]] = (
    (244, 208, 182),
    (232, 190, 160),
    (218, 172, 138),
    (190, 140, 104),
    (140, 96, 68),
    (98, 66, 48),
)
_HAIR_COLORS: Final[tuple[Rgb, ...]] = (
    (24, 20, 20),
    (44, 32, 26),
    (74, 48, 32),
    (116, 74, 42),
    (186, 146, 88),
    (128, 54, 30),
)
_GRAY_HAIR: Final[tuple[Rgb, ...]] = ((206, 206, 208), (180, 180, 184), (226, 224, 220))

PATTERNS: Final[dict[str, tuple[tuple[str, float], ...]]] = {
    "t-shirt": (("plain", 0.3), ("print", 0.32), ("stripes", 0.22), ("raglan", 0.16)),
    "shirt": (("plain", 0.4), ("checks", 0.32), ("pinstripes", 0.28)),
    "sweater": (("plain", 0.34), ("stripes", 0.3), ("band", 0.36)),
    "hoodie": (("plain", 0.4), ("print", 0.35), ("raglan", 0.25)),
    "jacket": (("plain", 0.5), ("band", 0.25), ("raglan", 0.25)),
    "coat": (("plain", 0.72), ("checks", 0.28)),
}
HATS: Final = ("none", "cap", "beanie", "sun hat")

_OUTFIT_SLOTS: Final = ("upper_color", "upper_type")
_OUTFIT_DETAILS: Final = (
    *("upper", "inner", "trim", "sleeve", "hem", "sleeve_length", "neckline", "ease", "buttons", "hood_lining"),
    *("print_shape", "print_rgb", "print_at", "print_size", "band_at", "band_width", "hat", "hat_rgb", "hat_trim"),
)
"""Details of what a person wears above the waist and on the head."""


@dataclass(frozen=True, kw_only=True)
class Cloth:
    """A fabric: its base color and a repeating second color over surface coordinates."""

    rgb: Rgb
    second: Rgb
    pattern: str = "plain"
    period: float = 0.05
    phase: float = 0.0
    duty: float = 0.3

    def color(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return RGB float32 [N, 3] at lateral position `u` [N] and height `v` [N], in fractions of body height."""
        base = np.empty((len(u), 3), np.float32)
        base[:] = self.rgb
        weight = self._weight(u, v)
        if weight is not None:
            base += weight[:, None] * (np.asarray(self.second, np.float32) - base)
        return base

    def _weight(self, u: np.ndarray, v: np.ndarray) -> np.ndarray | None:
        if self.pattern == "stripes":
            return (((v / self.period + self.phase) % 1.0) < self.duty).astype(np.float32)
        if self.pattern == "pinstripes":
            return (((u / (0.6 * self.period) + self.phase) % 1.0) < self.duty * 0.9).astype(np.float32)
        if self.pattern == "checks":
            across = ((u / self.period + self.phase) % 1.0) < self.duty
            along = ((v / self.period + self.phase) % 1.0) < self.duty
            return 0.36 * (across.astype(np.float32) + along)
        return None


@dataclass(frozen=True, kw_only=True)
class Body:
    """Proportions in fractions of body height; widths and depths are half extents, radii are radii."""

    head: float
    head_width: float
    shoulder: float
    chest: float
    waist: float
    hip: float
    chest_depth: float
    belly: float
    seat: float
    bust: float
    crotch: float
    arm: float
    thigh: float
    calf: float
    stoop: float
    stance: float


class Footwear(NamedTuple):
    """Colors of a pair of shoes."""

    rgb: Rgb
    trim: Rgb


class Bag(NamedTuple):
    """One identity's bag; drawn if it carries one."""

    rgb: Rgb
    trim: Rgb
    size: float
    """Factor on the usual size of the bag's type."""
    side: int
    """1 for the person's left, -1 for the right."""


@dataclass(frozen=True, kw_only=True)
class Details:
    """One identity's exact clothes, hair, bag and accessories, beyond what captions say."""

    upper: Cloth
    lower: Cloth
    inner: Rgb
    trim: Rgb
    sleeve: Rgb
    hem: float
    sleeve_length: float
    neckline: int
    ease: float
    buttons: bool
    hood_lining: Rgb
    print_shape: int
    print_rgb: Rgb
    print_at: tuple[float, float]
    print_size: tuple[float, float]
    band_at: float
    band_width: float
    lower_hem: float
    lower_flare: float
    side_stripe: bool
    cuffs: bool
    fade: float
    belt: Rgb | None
    socks: Rgb
    sock_height: float
    tights: Rgb | None
    shoes: Footwear
    skin: Rgb
    hair: Rgb
    hair_volume: float
    hairline: float
    fringe: float
    hair_length: float
    parting: float
    beard: bool
    hat: str
    hat_rgb: Rgb
    hat_trim: Rgb
    frame: Rgb
    bag: Bag


@dataclass(frozen=True, kw_only=True)
class Person:
    """One identity: caption attributes (slot to value), body and the details that make it recognizable."""

    attributes: Mapping[str, str]
    body: Body
    details: Details
    look: Mapping[str, str]
    """Facts beyond the slots, as text: ``pattern``, ``hat``, ``upper_rgb`` and ``lower_rgb`` (``#rrggbb``)."""


def hex_color(rgb: Rgb) -> str:
    """Return an RGB triple in 0..255 as ``#rrggbb``."""
    red, green, blue = (round(min(max(channel, 0.0), 255.0)) for channel in rgb)
    return f"#{red:02x}{green:02x}{blue:02x}"


def shade(rng: np.random.Generator, name: str, spread: float = 1.0) -> Rgb:
    """Return a random shade of the named color; `spread` in 0..1 shrinks its range around the middle."""
    parts = []
    for low, high in _SHADES[name]:
        parts.append(0.5 * (low + high) + (rng.random() - 0.5) * spread * (high - low))
    hue, saturation, value = parts
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
    return 255 * red, 255 * green, 255 * blue


def scale_rgb(rgb: Rgb, factor: float) -> Rgb:
    """Return `rgb` darkened (`factor` below 1) or brightened."""
    return rgb[0] * factor, rgb[1] * factor, rgb[2] * factor


def mix_rgb(one: Rgb, other: Rgb, weight: float) -> Rgb:
    """Return the color at share `weight` of the way from `one` to `other`."""
    red, green, blue = (a + weight * (b - a) for a, b in zip(one, other, strict=True))
    return red, green, blue


_BAG_CENTERS: Final[dict[str, Rgb]] = {
    name: shade(np.random.default_rng(0), name, 0.0)
    for name in ("black", "gray", "red", "blue", "brown", "green", "orange", "white", "purple", "yellow")
}


def _pick(rng: np.random.Generator, choices: Sequence[str], weights: Sequence[float]) -> str:
    cut = rng.random() * sum(weights)
    total = 0.0
    for choice, weight in zip(choices, weights, strict=True):
        total += weight
        if cut < total:
            return choice
    return choices[-1]


def sample_attributes(rng: np.random.Generator) -> dict[str, str]:
    """Draw one coarse attribute tuple: a value from its vocabulary for every caption slot."""
    female = rng.random() < 0.5
    age = _pick(rng, AGES, (0.42, 0.33, 0.25))
    upper_type = _pick(
        rng, ("t-shirt", "shirt", "sweater", "hoodie", "jacket", "coat"), (0.2, 0.17, 0.16, 0.15, 0.17, 0.15)
    )
    lower_type = _lower_type(rng, female=female, upper_type=upper_type)
    shoe_weights = [0.28, 0.28, 0.16, 0.16, 0.12]
    if upper_type == "coat":
        shoe_weights[4] = 0.0
    hair_weights = (0.25, 0.43, 0.32, 0.0) if female else (0.70, 0.05, 0.04, 0.21)
    return {
        "gender": "female" if female else "male",
        "age": age,
        "upper_color": _pick(rng, COLORS, (1.4, 1.3, 1.1, 1, 0.9, 0.9, 1, 1.3, 0.9, 0.9, 0.9)),
        "upper_type": upper_type,
        "lower_color": _lower_color(rng, lower_type),
        "lower_type": lower_type,
        "shoes": _pick(rng, ("black shoes", "white sneakers", "red sneakers", "brown boots", "sandals"), shoe_weights),
        "hair": _pick(rng, ("short", "long", "ponytail", "bald"), hair_weights),
        "glasses": _pick(rng, ("glasses", "sunglasses", NONE), (0.2, 0.2, 0.6)),
        "carrying": _pick(
            rng,
            ("backpack", "handbag", "shoulder bag", "suitcase", NONE),
            (0.2, 0.2 if female else 0.1, 0.17, 0.13, 0.32),
        ),
    }


def _lower_type(rng: np.random.Generator, *, female: bool, upper_type: str) -> str:
    weights = [0.3, 0.28, 0.14, 0.28] if female else [0.42, 0.38, 0.2, 0.0]
    if upper_type == "coat":
        weights[2] = 0.0
    return _pick(rng, ("pants", "jeans", "shorts", "skirt"), weights)


def _lower_color(rng: np.random.Generator, lower_type: str) -> str:
    if lower_type == "jeans":
        return _pick(rng, ("blue", "black", "gray", "white"), (0.55, 0.18, 0.15, 0.12))
    return _pick(rng, COLORS, (1.7, 1.0, 1.4, 0.7, 0.5, 0.5, 0.8, 1.2, 0.5, 0.5, 1.2))


def make_person(attributes: Mapping[str, str], rng: np.random.Generator, difficulty: float) -> Person:
    """Dress one identity: fine details for the given coarse attributes.

    `difficulty` in 0..1 shrinks the range of shades, so lookalikes resemble each other more.
    """
    spread = 1.0 - 0.55 * difficulty
    details = _details(attributes, rng, spread)
    return Person(attributes=dict(attributes), body=_body(attributes, rng), details=details, look=_look(details))


def _look(details: Details) -> dict[str, str]:
    return {
        "pattern": details.upper.pattern,
        "hat": details.hat,
        "upper_rgb": hex_color(details.upper.rgb),
        "lower_rgb": hex_color(details.lower.rgb),
    }


def sample_outfit(attributes: Mapping[str, str], rng: np.random.Generator) -> dict[str, str]:
    """Return `attributes` with another garment above the waist, drawn as for any person."""
    drawn = sample_attributes(rng)
    return {**attributes, **{slot: drawn[slot] for slot in _OUTFIT_SLOTS}}


def wear(person: Person, dressed: Person) -> Person:
    """Return `person` with what `dressed` wears above the waist and on the head; all else stays."""
    details = replace(person.details, **{name: getattr(dressed.details, name) for name in _OUTFIT_DETAILS})
    attributes = {**person.attributes, **{slot: dressed.attributes[slot] for slot in _OUTFIT_SLOTS}}
    return replace(person, attributes=attributes, details=details, look=_look(details))


def _body(attributes: Mapping[str, str], rng: np.random.Generator) -> Body:
    female = attributes["gender"] == "female"
    middle, old = attributes["age"] == "middle-aged", attributes["age"] == "elderly"
    young = not middle and not old
    build = 0.8 * rng.uniform(-1, 1) + (1.0 if middle else 0.2 if old else -0.5)
    wide = 1 + 0.05 * build
    return Body(
        head=0.148 + rng.uniform(-0.004, 0.004) + (0.009 if young else 0.0),
        head_width=(0.052 if female else 0.055) + rng.uniform(-0.002, 0.002),
        shoulder=(0.091 if female else 0.134) * (1 + 0.03 * build) + rng.uniform(-0.003, 0.003),
        chest=(0.080 if female else 0.112) * wide,
        waist=(0.058 if female else 0.100) * (1 + 0.07 * build),
        hip=(0.109 if female else 0.088) * wide,
        chest_depth=0.062 * wide,
        belly=0.054 * (1 + 0.10 * build) + (0.0 if not middle else 0.006 if female else 0.016),
        seat=(0.074 if female else 0.062) * wide,
        bust=rng.uniform(0.022, 0.032) if female else 0.0,
        crotch=0.475 + rng.uniform(-0.018, 0.018) - (0.012 if old else 0.0),
        arm=(0.024 if female else 0.035) * wide,
        thigh=(0.052 if female else 0.058) * wide,
        calf=(0.030 if female else 0.040) * wide,
        stoop=rng.uniform(0.22, 0.36) if old else rng.uniform(0.0, 0.05),
        stance=(0.040 if female else 0.054) + rng.uniform(-0.004, 0.004),
    )


def _details(attributes: Mapping[str, str], rng: np.random.Generator, spread: float) -> Details:
    female = attributes["gender"] == "female"
    upper = _upper_cloth(attributes, rng, spread)
    lower = _lower_cloth(attributes, rng, spread)
    behind = {"backpack": [upper.rgb], "suitcase": [lower.rgb]}.get(attributes["carrying"], [upper.rgb, lower.rgb])
    contrast = _contrast(rng, upper.rgb)
    raglan = upper.pattern == "raglan"
    old = attributes["age"] == "elderly"
    skin = _jitter(rng, _SKIN[int(rng.integers(len(_SKIN) - (1 if old else 0)))], 6)
    hat = HATS[int(rng.integers(1, len(HATS)))] if rng.random() < 0.14 else "none"
    return Details(
        upper=upper,
        lower=lower,
        inner=shade(rng, _pick(rng, ("white", "gray", "black", "blue", "red"), (3, 2, 1.5, 1, 0.5))),
        trim=contrast if rng.random() < 0.5 else scale_rgb(upper.rgb, rng.uniform(0.6, 0.85)),
        sleeve=contrast if raglan else upper.rgb,
        hem=rng.uniform(-0.02, 0.02),
        sleeve_length=rng.uniform(0.5, 0.85),
        neckline=int(rng.integers(3)),
        ease=rng.uniform(0.0, 0.012),
        buttons=bool(rng.random() < 0.5),
        hood_lining=contrast,
        print_shape=int(rng.integers(4)),
        print_rgb=contrast,
        print_at=(float(rng.uniform(-0.25, 0.25)), float(rng.uniform(0.68, 0.74))),
        print_size=(float(rng.uniform(0.3, 0.6)), float(rng.uniform(0.02, 0.05))),
        band_at=float(rng.uniform(0.62, 0.76)),
        band_width=float(rng.uniform(0.018, 0.04)),
        lower_hem=float(rng.uniform(-0.03, 0.03)),
        lower_flare=float(rng.uniform(0.0, 0.03)),
        side_stripe=bool(rng.random() < 0.25),
        cuffs=bool(rng.random() < 0.5),
        fade=float(rng.uniform(0.15, 0.45)),
        belt=shade(rng, _pick(rng, ("brown", "black", "white"), (3, 3, 1))) if rng.random() < 0.5 else None,
        socks=shade(rng, _pick(rng, ("white", "black", "gray", "red"), (4, 2, 2, 1))),
        sock_height=float(rng.uniform(0.05, 0.14)),
        tights=shade(rng, "black") if female and rng.random() < 0.35 else None,
        shoes=_footwear(attributes["shoes"], rng, spread),
        skin=skin,
        hair=_hair_color(rng, attributes["age"]),
        hair_volume=float(rng.uniform(1.05, 1.2)),
        hairline=float(rng.uniform(0.35, 0.62)),
        fringe=float(rng.uniform(0.0, 0.3)) if female else 0.0,
        hair_length=float(rng.uniform(0.0, 0.12)),
        parting=float(rng.uniform(-0.5, 0.5)),
        beard=(not female) and bool(rng.random() < (0.25 if attributes["age"] == "young" else 0.5)),
        hat=hat,
        hat_rgb=shade(rng, COLORS[int(rng.integers(len(COLORS)))]),
        hat_trim=shade(rng, _pick(rng, ("white", "black", "red"), (1, 1, 1))),
        frame=shade(rng, _pick(rng, ("black", "brown"), (3, 1))),
        bag=_bag(attributes["carrying"], behind, rng),
    )


def _upper_cloth(attributes: Mapping[str, str], rng: np.random.Generator, spread: float) -> Cloth:
    names, weights = zip(*PATTERNS[attributes["upper_type"]], strict=True)
    pattern = _pick(rng, names, weights)
    if pattern == "raglan" and attributes["carrying"] == "backpack":
        pattern = "plain"  # seen from behind, the sleeves would be most of what shows
    base = shade(rng, attributes["upper_color"], spread)
    return Cloth(
        rgb=base,
        second=_contrast(rng, base),
        pattern=pattern,
        period=float(rng.uniform(0.035, 0.085)),
        phase=float(rng.random()),
        duty=float(rng.uniform(0.16, 0.28)),
    )


def _lower_cloth(attributes: Mapping[str, str], rng: np.random.Generator, spread: float) -> Cloth:
    base = shade(rng, attributes["lower_color"], spread)
    if attributes["lower_type"] == "jeans" and attributes["lower_color"] == "blue":
        base = mix_rgb(base, (92, 122, 168), 0.4)
    weights = (0.7, 0.15, 0.15) if attributes["lower_type"] in ("skirt", "shorts") else (0.94, 0.0, 0.06)
    return Cloth(
        rgb=base,
        second=_contrast(rng, base),
        pattern=_pick(rng, ("plain", "stripes", "checks"), weights),
        period=float(rng.uniform(0.04, 0.08)),
        phase=float(rng.random()),
        duty=float(rng.uniform(0.12, 0.22)),
    )


def _footwear(name: str, rng: np.random.Generator, spread: float) -> Footwear:
    colors = {"black shoes": "black", "white sneakers": "white", "red sneakers": "red"}
    base = shade(rng, colors.get(name, "brown"), spread)
    trim = {
        "black shoes": (40.0, 38.0, 38.0),
        "white sneakers": shade(rng, _pick(rng, ("blue", "gray", "green", "pink"), (1, 1, 1, 1))),
        "red sneakers": (240.0, 240.0, 240.0),
        "brown boots": (46.0, 32.0, 24.0),
        "sandals": (70.0, 46.0, 30.0),
    }[name]
    return Footwear(base, trim)


def _bag(carrying: str, behind: Sequence[Rgb], rng: np.random.Generator) -> Bag:
    # One of the five colors farthest from the garments behind the bag, so that it can be told apart.
    gaps = {name: min(_distance(rgb, cloth) for cloth in behind) for name, rgb in _BAG_CENTERS.items()}
    far = sorted(gaps, key=gaps.__getitem__)[-5:]
    name = far[int(rng.integers(len(far)))]
    low, high = (0.95, 1.15) if carrying == "backpack" else (1.02, 1.28)
    base = shade(rng, name)
    return Bag(
        rgb=base,
        trim=scale_rgb(base, 0.55) if sum(base) > 260 else mix_rgb(base, (200, 200, 200), 0.45),
        size=float(rng.uniform(low, high)),
        side=1 if rng.random() < 0.5 else -1,
    )


def _hair_color(rng: np.random.Generator, age: str) -> Rgb:
    if age == "elderly":
        return _jitter(rng, _GRAY_HAIR[int(rng.integers(len(_GRAY_HAIR)))], 6)
    weights = np.cumsum((0.34, 0.24, 0.16, 0.1, 0.1, 0.06))
    base = _jitter(rng, _HAIR_COLORS[int(np.searchsorted(weights, rng.random() * weights[-1]))], 5)
    return mix_rgb(base, (150.0, 150.0, 152.0), float(rng.uniform(0.15, 0.35))) if age == "middle-aged" else base


def _contrast(rng: np.random.Generator, base: Rgb) -> Rgb:
    """Return a neutral or strong second color that stands out against `base`."""
    names = ("white", "black", "gray", "red", "blue", "yellow", "green")
    for place in rng.permutation(len(names)):
        color = shade(rng, names[int(place)], 0.6)
        if _distance(color, base) > 150:
            break
    return color


def _distance(one: Rgb, other: Rgb) -> float:
    return float(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5)


def _jitter(rng: np.random.Generator, rgb: Rgb, amount: float) -> Rgb:
    shift = float(rng.uniform(-amount, amount))
    red, green, blue = (float(c + shift + rng.uniform(-0.4, 0.4) * amount) for c in rgb)
    return red, green, blue
