"""Cameras of the synthetic world: the scene each one watches, and the effects of its lens, sensor and codec.

Images are float32 [128, 64, 3] in 0..255 until the sensor quantizes them to uint8.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data.synthetic.canvas import HEIGHT, WIDTH

_SCENE_W: Final = 192
_SCENE_H: Final = 152

Fill = tuple[int, int, int]


@dataclass(frozen=True, eq=False, kw_only=True)
class Camera:
    """One camera: its optics and sensor, its light, occlusion and walking directions, and its scene."""

    index: int
    gain: tuple[float, float, float]
    contrast: float
    saturation: float
    haze: float
    blur: float
    sharpen: float
    resolution: float
    """Share of the output size that the sensor resolves, in (0, 1]."""
    noise: float
    quality: int
    """JPEG quality of the files, 1..95."""
    pitch: float
    light: float
    shadow: float
    occlusion: float
    """Probability that something stands in front of the person."""
    occluders: tuple[str, ...]
    headings: tuple[float, ...]
    """Directions, in degrees, in which people mostly walk in front of this camera."""
    scene: np.ndarray
    """Background, float32 [152, 192, 3]."""


def sample_camera(rng: np.random.Generator, index: int, difficulty: float) -> Camera:
    """Sample one camera; `difficulty` in 0..1 scales color cast, blur, noise, compression and occlusion."""
    hard = 0.35 + 0.65 * difficulty
    # Cameras with adjacent indexes differ on purpose: warm next to cool, bright pairs next to dark ones.
    brightness = rng.uniform(0.0, 0.16) if index % 4 in (0, 3) else rng.uniform(-0.26, -0.04)
    exposure = float(np.exp(brightness * hard))
    warm = (1 if index % 2 else -1) * rng.uniform(0.02, 0.13) * hard
    tint = rng.uniform(-0.05, 0.05) * hard
    gain = (exposure * (1 + warm), exposure * (1 + tint), exposure * (1 - warm))
    kinds = ("post", "box", "car", "leaves", "rail")
    return Camera(
        index=index,
        gain=gain,
        contrast=float(1 + rng.uniform(-0.14, 0.14) * hard),
        saturation=float(0.92 + rng.uniform(-0.24, 0.16) * hard),
        haze=float(rng.uniform(0, 0.12) * hard * (rng.random() < 0.4)),
        blur=float(rng.uniform(0.25, 0.75) * hard),
        sharpen=float(rng.uniform(0, 60) * (rng.random() < 0.5)),
        resolution=float(1 - rng.uniform(0.0, 0.42) * hard),
        noise=float(rng.uniform(1.5, 5.0) * hard),
        quality=int(92 - rng.uniform(4, 36) * hard),
        pitch=float(rng.uniform(0.05, 0.22)),
        light=float(rng.uniform(-0.16, 0.16)),
        shadow=float(rng.uniform(0.2, 0.5)),
        occlusion=float(rng.uniform(0.04, 0.3) * difficulty),
        occluders=tuple(kinds[int(i)] for i in rng.permutation(len(kinds))[:2]),
        headings=tuple(float(h) for h in _headings(rng)),
        scene=_scene(rng, index),
    )


def _headings(rng: np.random.Generator) -> tuple[float, float]:
    """Return the two opposite directions of the path that a camera watches."""
    axis = rng.choice([0.0, 25.0, -25.0, 60.0, -60.0, 90.0])
    return axis, axis + 180.0


# Scenes -----------------------------------------------------------------------------------------------


def _scene(rng: np.random.Generator, index: int) -> np.ndarray:
    kinds: tuple[Callable[[ImageDraw.ImageDraw, np.random.Generator], None], ...] = (
        _pavement, _grass, _indoor, _road, _brick, _shopfront, _platform, _plaza,
    )  # fmt: skip
    image = Image.new("RGB", (_SCENE_W, _SCENE_H))
    offset = int(rng.integers(2)) * 4
    kinds[(index + offset) % len(kinds)](ImageDraw.Draw(image), rng)
    image = image.filter(ImageFilter.GaussianBlur(1.3))
    scene = np.asarray(image, np.float32)
    grain = rng.normal(0, 1, (_SCENE_H, _SCENE_W, 1)).astype(np.float32)
    coarse = rng.normal(0, 1, (_SCENE_H // 8, _SCENE_W // 8)).astype(np.float32)
    cloud = np.asarray(Image.fromarray(coarse).resize((_SCENE_W, _SCENE_H), Image.Resampling.BICUBIC))
    scene = scene + 2.5 * grain + 9 * cloud[..., None]
    return np.clip(scene, 0, 255).astype(np.float32)


def _near(rng: np.random.Generator, rgb: Fill, spread: int = 18) -> Fill:
    shift = int(rng.integers(-spread, spread + 1))
    red, green, blue = (max(0, min(255, c + shift + int(rng.integers(-spread // 3, spread // 3 + 1)))) for c in rgb)
    return red, green, blue


def _tiles(draw: ImageDraw.ImageDraw, top: int, line: Fill, rng: np.random.Generator) -> None:
    """Draw floor joints below row `top`, in perspective."""
    row, step = float(top), 5.0 + 4 * rng.random()
    while row < _SCENE_H:
        draw.line([(0, row), (_SCENE_W, row)], fill=line)
        row += step
        step *= 1.16
    vanish = _SCENE_W * rng.uniform(-0.2, 1.2)
    for x in range(-200, _SCENE_W + 200, int(rng.integers(22, 36))):
        draw.line([(x + 0.4 * (vanish - x), top), (x, _SCENE_H)], fill=line)


def _ground(draw: ImageDraw.ImageDraw, top: int, fill: Fill) -> None:
    draw.rectangle([0, top, _SCENE_W, _SCENE_H], fill=fill)


def _specks(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, box: tuple[int, int], fills: tuple[Fill, ...], count: int
) -> None:
    top, bottom = box
    for _ in range(count):
        x, y, r = rng.random() * _SCENE_W, rng.uniform(top, bottom), rng.uniform(0.6, 3.2)
        draw.ellipse([x - 1.6 * r, y - r, x + 1.6 * r, y + r], fill=fills[int(rng.integers(len(fills)))])


def _pavement(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    base = _near(rng, (152, 150, 148), 30)
    _ground(draw, 0, base)
    top = int(rng.integers(0, 40))
    draw.rectangle([0, 0, _SCENE_W, top], fill=_near(rng, (96, 104, 92)))
    dark: Fill = (base[0] - 26, base[1] - 26, base[2] - 24)
    _tiles(draw, top, dark, rng)
    _specks(draw, rng, (top, _SCENE_H), (dark,), 25)
    _posts(draw, rng, (80, 82, 88), 2)


def _grass(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    base = _near(rng, (104, 128, 72))
    _ground(draw, 0, base)
    fills: tuple[Fill, ...] = ((84, 108, 56), (132, 148, 92), (150, 120, 92), (112, 140, 84))
    _specks(draw, rng, (0, _SCENE_H), fills, 420)
    top = int(rng.integers(14, 46))
    draw.rectangle([0, 0, _SCENE_W, top], fill=(58, 66, 46))
    _specks(draw, rng, (0, top + 4), ((40, 52, 34), (84, 94, 62), (70, 80, 50), (120, 96, 84)), 160)
    draw.polygon([(0, 118), (_SCENE_W, 104), (_SCENE_W, 128), (0, 144)], fill=_near(rng, (164, 154, 138)))


def _indoor(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    _ground(draw, 0, _near(rng, (196, 190, 178)))
    top = int(rng.integers(60, 96))
    for x in range(int(rng.integers(0, 40)), _SCENE_W, int(rng.integers(52, 80))):
        draw.rectangle([x, 8, x + 26, top], fill=_near(rng, (150, 128, 104)))
        draw.rectangle([x + 4, 14, x + 22, 40], fill=_near(rng, (176, 190, 198)))
    floor = _near(rng, (172, 170, 168))
    _ground(draw, top, floor)
    draw.rectangle([0, top - 3, _SCENE_W, top], fill=(98, 92, 88))
    _tiles(draw, top, (floor[0] - 20, floor[1] - 20, floor[2] - 20), rng)


def _road(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    base = _near(rng, (98, 98, 102))
    _ground(draw, 0, base)
    top = int(rng.integers(10, 44))
    draw.rectangle([0, 0, _SCENE_W, top], fill=_near(rng, (158, 154, 146)))
    draw.rectangle([0, top, _SCENE_W, top + 4], fill=(190, 188, 184))
    for x in range(int(rng.integers(-20, 10)), _SCENE_W, 34):
        draw.polygon([(x, 150), (x + 16, 150), (x + 25, 100), (x + 13, 100)], fill=(206, 206, 202))
    draw.line([(0, top + 22), (_SCENE_W, top + 16)], fill=(204, 176, 84), width=3)


def _brick(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    base, line = _near(rng, (142, 102, 84)), (112, 88, 78)
    _ground(draw, 0, base)
    top = int(rng.integers(72, 108))
    for number, y in enumerate(range(0, top, 6)):
        draw.line([(0, y), (_SCENE_W, y)], fill=line)
        for x in range((number % 2) * 7, _SCENE_W, 14):
            draw.line([(x, y), (x, y + 6)], fill=line)
    x = int(rng.integers(20, 120))
    draw.rectangle([x, 10, x + 34, top - 24], fill=(82, 94, 106), outline=(190, 186, 178), width=3)
    floor = _near(rng, (134, 132, 130))
    _ground(draw, top, floor)
    _tiles(draw, top, (floor[0] - 18, floor[1] - 18, floor[2] - 18), rng)


def _shopfront(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    _ground(draw, 0, _near(rng, (72, 82, 92)))
    top = int(rng.integers(70, 104))
    for x in range(int(rng.integers(-10, 10)), _SCENE_W, 40):
        draw.rectangle([x + 3, 16, x + 36, top - 6], fill=_near(rng, (98, 112, 122), 26))
        for _ in range(5):
            y, z = int(rng.integers(24, top - 24)), int(rng.integers(4, 24))
            draw.rectangle([x + z, y, x + z + 8, y + 12], fill=_near(rng, (176, 156, 128), 60))
    draw.rectangle([0, 0, _SCENE_W, 12], fill=_near(rng, (188, 108, 82), 40))
    floor = _near(rng, (156, 152, 144))
    _ground(draw, top, floor)
    _tiles(draw, top, (floor[0] - 22, floor[1] - 22, floor[2] - 22), rng)


def _platform(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    _ground(draw, 0, _near(rng, (124, 132, 140)))
    top = int(rng.integers(40, 80))
    draw.rectangle([0, 0, _SCENE_W, top // 2], fill=_near(rng, (66, 72, 80)))
    draw.rectangle([0, top // 2, _SCENE_W, top // 2 + 6], fill=_near(rng, (70, 112, 158)))
    floor = _near(rng, (138, 140, 142))
    _ground(draw, top, floor)
    draw.rectangle([0, top, _SCENE_W, top + 7], fill=(206, 178, 70))
    _tiles(draw, top + 7, (floor[0] - 20, floor[1] - 20, floor[2] - 20), rng)
    _posts(draw, rng, (180, 184, 188), 2)


def _plaza(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    floor = _near(rng, (186, 176, 160))
    _ground(draw, 0, floor)
    top = int(rng.integers(24, 60))
    draw.rectangle([0, 0, _SCENE_W, top], fill=_near(rng, (118, 128, 124)))
    for _ in range(3):
        x = int(rng.integers(-10, _SCENE_W - 30))
        draw.rounded_rectangle([x, top - 22, x + 54, top + 4], 8, fill=_near(rng, (120, 112, 116), 70))
        draw.rectangle([x + 10, top - 19, x + 44, top - 10], fill=(60, 68, 76))
    _tiles(draw, top + 6, (floor[0] - 16, floor[1] - 16, floor[2] - 16), rng)
    _specks(draw, rng, (top + 6, _SCENE_H), ((160, 150, 134),), 30)


def _posts(draw: ImageDraw.ImageDraw, rng: np.random.Generator, rgb: Fill, count: int) -> None:
    for _ in range(count):
        x, y = int(rng.integers(0, _SCENE_W)), int(rng.integers(40, 90))
        draw.rectangle([x, 0, x + int(rng.integers(2, 6)), y], fill=_near(rng, rgb))


def background(camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """Return a randomly placed crop of the camera's scene, float32 [128, 64, 3]."""
    left = int(rng.integers(0, _SCENE_W - WIDTH + 1))
    top = int(rng.integers(0, _SCENE_H - HEIGHT + 1))
    return camera.scene[top : top + HEIGHT, left : left + WIDTH].copy()


# Occluders --------------------------------------------------------------------------------------------


def occlude(image: np.ndarray, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """Draw an occluder over `image`, in place; return the bool mask [128, 64] of the pixels it covers."""
    kind = camera.occluders[int(rng.integers(len(camera.occluders)))]
    layer = Image.new("RGBA", (WIDTH, HEIGHT))
    _OCCLUDERS[kind](ImageDraw.Draw(layer), rng)
    pixels = np.asarray(layer.filter(ImageFilter.BoxBlur(0.6)), np.float32)
    alpha = pixels[..., 3:] / 255
    image *= 1 - alpha
    image += alpha * pixels[..., :3]
    return alpha[..., 0] > 0.5


def _post(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    x, wide = int(rng.integers(2, 56)), int(rng.integers(4, 10))
    fill = _near(rng, (110, 110, 112), 50)
    draw.rectangle([x, int(rng.integers(-20, 70)), x + wide, HEIGHT], fill=fill)
    draw.rectangle([x + wide - 1, 0, x + wide, HEIGHT], fill=(fill[0] // 2, fill[1] // 2, fill[2] // 2))


def _crate(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    x, y, wide = int(rng.integers(-20, 44)), int(rng.integers(78, 112)), int(rng.integers(24, 44))
    fill = _near(rng, (150, 120, 84), 40)
    draw.rectangle([x, y, x + wide, HEIGHT], fill=fill)
    draw.rectangle([x, y, x + wide, y + 4], fill=(min(255, fill[0] + 30), fill[1] + 20, fill[2] + 20))


def _car(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    y = int(rng.integers(84, 112))
    fill = _near(rng, (132, 134, 142), 80)
    side = int(rng.integers(2))
    nose = 20 + int(rng.integers(0, 30))
    points = [(0, y), (nose, y + 4), (WIDTH + 10, y + 18), (WIDTH + 10, HEIGHT), (0, HEIGHT)]
    draw.polygon([(WIDTH - px, py) for px, py in points] if side else points, fill=fill)
    draw.rectangle([0, HEIGHT - 8, WIDTH, HEIGHT], fill=(34, 34, 36))


def _leaves(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    side, reach = (-4 if rng.random() < 0.5 else WIDTH + 4), rng.uniform(12, 26)
    low = rng.uniform(40, 110)
    for _ in range(70):
        x, y = side + rng.normal(0, reach / 2), low + rng.normal(0, 26)
        r = rng.uniform(2, 5)
        draw.ellipse([x - r, y - r, x + r, y + r], fill=_near(rng, (70, 96, 50), 26))


def _rail(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    y, fill = int(rng.integers(76, 104)), _near(rng, (140, 142, 146), 50)
    draw.rectangle([0, y, WIDTH, y + 3], fill=fill)
    draw.rectangle([0, y + 14, WIDTH, y + 16], fill=fill)
    for x in range(int(rng.integers(0, 20)), WIDTH, 20):
        draw.rectangle([x, y, x + 2, HEIGHT], fill=fill)


_OCCLUDERS: Final[dict[str, Callable[[ImageDraw.ImageDraw, np.random.Generator], None]]] = {
    "post": _post, "box": _crate, "car": _car, "leaves": _leaves, "rail": _rail,
}  # fmt: skip


# Lens, sensor, codec ----------------------------------------------------------------------------------


def expose(image: np.ndarray, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """Return what the camera's lens and sensor record of a scene: uint8 [128, 64, 3] from float32 [128, 64, 3]."""
    flicker = np.float32(1 + rng.uniform(-0.05, 0.05))
    gray = image @ np.array([0.3, 0.59, 0.11], np.float32)
    image = gray[..., None] + np.float32(camera.saturation) * (image - gray[..., None])
    image *= flicker * np.asarray(camera.gain, np.float32)
    image = (image - 118) * np.float32(camera.contrast) + 118
    if camera.haze:
        image += np.float32(camera.haze) * (np.float32(205) - image)
    picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    picture = _defocus(picture, camera, rng)
    noise = rng.standard_normal((HEIGHT, WIDTH), np.float32) * np.float32(camera.noise)
    tint = rng.standard_normal((3, HEIGHT // 2, WIDTH // 2), np.float32) * np.float32(0.5 * camera.noise)
    sensed = np.asarray(picture, np.float32) + noise[..., None]
    sensed += np.repeat(np.repeat(tint, 2, axis=1), 2, axis=2).transpose(1, 2, 0)
    return np.clip(sensed, 0, 255).astype(np.uint8)


def _defocus(picture: Image.Image, camera: Camera, rng: np.random.Generator) -> Image.Image:
    """Apply lost resolution, defocus and the sharpening that cheap cameras add."""
    resolution = camera.resolution * rng.uniform(0.88, 1.0)
    size = (max(8, round(WIDTH * resolution)), max(16, round(HEIGHT * resolution)))
    picture = picture.resize(size, Image.Resampling.BILINEAR)
    if camera.sharpen:
        picture = picture.filter(ImageFilter.UnsharpMask(1.2, int(camera.sharpen), 2))
    picture = picture.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    blur = camera.blur * rng.uniform(0.6, 1.2)
    return picture.filter(ImageFilter.GaussianBlur(blur)) if blur > 0.2 else picture


def encode(image: np.ndarray, quality: int) -> bytes:
    """Return a uint8 [H, W, 3] image as JPEG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def decode(content: bytes) -> np.ndarray:
    """Return the uint8 [H, W, 3] image in JPEG bytes."""
    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(picture.convert("RGB"))
