"""Parts of the pictures of ``clip-scgi paper``: fonts, thumbnails, frames and placeholders."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Final

from PIL import Image, ImageDraw, ImageFont, ImageOps

from captioning.audit.pen import Color, Pen
from data.images.thumbnails import Thumbnail
from flows.report.charts import font_file

Line = tuple[list[str], Color]
"""Words and their color."""

INK: Final = (26, 33, 48)
SOFT: Final = (86, 96, 115)
RIGHT: Final = (21, 128, 61)
WRONG: Final = (192, 38, 38)
SCALE: Final = 2
"""Pixels per unit of length in the layout of a picture, for sharp text in print."""
MARGIN: Final = 16 * SCALE
LINE: Final = 16 * SCALE
"""Distance of two lines of text in pixels."""
_EMPTY: Final = (226, 230, 237)
_SIZES: Final = {"text": 12 * SCALE, "title": 15 * SCALE, "mark": 13 * SCALE}
_GAP: Final = 4 * SCALE  # pixels between words
_DASH: Final = 7 * SCALE  # pixels of a stroke of a dashed frame, and of the gap after it
_UNSEEN: Final = ("Cc", "Cf", "Cs")  # control characters, marks of direction, lone surrogates
_THICK: Final = 3 * SCALE  # pixels of a frame
_CORNER: Final = 19 * SCALE  # pixels of the square of a mark
_OTHER_FONTS: Final = (
    "NotoSansCJK-Regular.ttc",
    "DroidSansFallbackFull.ttf",
    "wqy-microhei.ttc",
    "msyh.ttc",
    "PingFang.ttc",
    "malgun.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSansThai-Regular.ttf",
    "Nirmala.ttf",
)
"""Fonts that are used where they are installed, for scripts that the first font does not have."""


def pen_on(image: Image.Image, kind: str = "text") -> Pen:
    """Return a pen for `image`. kind: "text", "title" or "mark"."""
    return Pen(image, _fonts(_SIZES[kind]), gap=_GAP)


@cache
def _fonts(size: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    found = [ImageFont.truetype(font_file(), size)]
    for name in _OTHER_FONTS:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:
            continue  # not installed
    return tuple(found)


def words_of(text: str, limit: int | None = None) -> list[str]:
    """Return the words of `text` without invisible characters, cut after `limit` characters with an ellipsis."""
    plain = "".join(" " if unicodedata.category(char) in _UNSEEN else char for char in text)
    words = " ".join(plain.split())
    return (words if limit is None or len(words) <= limit else f"{words[: limit - 1].rstrip()}…").split()


def lines_of(pen: Pen, text: str, width: float, ink: Color, limit: int | None = None) -> list[Line]:
    """Return the lines of `text`, wrapped at `width` pixels, with their color.

    The words of a text that runs from right to left are in the order in which they are drawn, from left to right.
    """
    step = -1 if _runs_left(text) else 1
    return [(line[::step], ink) for line in pen.wrapped(words_of(text, limit), width)]


def _runs_left(text: str) -> bool:
    """Return True if the first character with a direction is of a script that runs from right to left."""
    directions = (unicodedata.bidirectional(character) for character in text)
    return next((each for each in directions if each in ("L", "R", "AL")), "L") != "L"


def write_lines(pen: Pen, left: float, top: float, lines: Sequence[Line]) -> float:
    """Write lines below each other and return the top of the next one."""
    for words, ink in lines:
        pen.write(left, top, words, ink)
        top += LINE
    return top


def picture(thumbnail: Thumbnail, width: int, height: int) -> Image.Image:
    """Return a thumbnail on a field of that size: scaled to fit, centered; without a picture, the reason."""
    field = Image.new("RGB", (width, height), _EMPTY)
    image = thumbnail.decoded()
    if image is None:
        pen, room = pen_on(field), 4 * SCALE
        write_lines(pen, room, room, lines_of(pen, f"image {thumbnail.problem}", width - 2 * room, INK))
        return field
    fitted = ImageOps.contain(image, (width, height), Image.Resampling.LANCZOS)
    field.paste(fitted, ((width - fitted.width) // 2, (height - fitted.height) // 2))
    return field


def frame(image: Image.Image, *, right: bool | None) -> None:
    """Draw a frame on the border of `image`: solid green if right, dashed red if wrong, dark for None."""
    draw, (width, height) = ImageDraw.Draw(image), image.size
    if right is not False:
        draw.rectangle((0, 0, width - 1, height - 1), outline=INK if right is None else RIGHT, width=_THICK)
        return
    for start in range(0, width, 2 * _DASH):
        for top in (0, height - _THICK):
            draw.rectangle((start, top, start + _DASH - 1, top + _THICK - 1), fill=WRONG)
    for start in range(0, height, 2 * _DASH):
        for left in (0, width - _THICK):
            draw.rectangle((left, start, left + _THICK - 1, start + _DASH - 1), fill=WRONG)


def mark(image: Image.Image, *, right: bool) -> None:
    """Write a check mark or a cross into the lower right corner of `image`."""
    left, top = image.width - _CORNER, image.height - _CORNER
    ImageDraw.Draw(image).rectangle((left, top, image.width, image.height), fill=RIGHT if right else WRONG)
    pen_on(image, "mark").write(left + 4 * SCALE, top + SCALE, ["✓" if right else "✗"], (255, 255, 255))
