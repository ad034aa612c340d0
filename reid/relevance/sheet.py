"""A sheet of maps: images in rows, one column per map, with the meaning of the columns above them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from reid.relevance.grid import PatchGrid
from reid.relevance.overlay import Floats, overlay, peak

HEIGHT: Final = 256
"""Height of an image on the sheet in pixels."""
_INK: Final = (26, 33, 48)
_SOFT: Final = (86, 96, 115)
_MARGIN: Final = 16
_GAP: Final = 8
_GROUP_GAP: Final = 28
_LINE: Final = 19
_TITLE_BAND: Final = 34


class Panel(NamedTuple):
    """One map of one image. title: of its column."""

    title: str
    map_RC: Floats


class PanelGroup(NamedTuple):
    """Neighboring columns with a common title."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    """An image with its maps; all rows of a sheet have the same groups, except that a row may lack the last ones."""

    title: str
    image: Image.Image
    groups: Sequence[PanelGroup]


def draw_sheet(rows: Sequence[SheetRow], grid: PatchGrid, title: str, notes: Sequence[str]) -> Image.Image:
    """Return the sheet: the title, the rows with their images and maps, and the notes below."""
    width = round(HEIGHT * grid.width / grid.height)
    head, band = _MARGIN + _TITLE_BAND, 3 * _LINE + HEIGHT + 2 * _LINE
    foot = head + band * len(rows)
    ends = [_MARGIN + int(_font(size).getlength(text)) for text, size in ((title, 19), *((note, 13) for note in notes))]
    right = max([*ends, *(x + width for row in rows for x in _places(row, width))])
    sheet = Image.new("RGB", (right + _MARGIN, foot + _LINE * len(notes) + _MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN - 4), title, _INK, _font(19))
    for number, row in enumerate(rows):
        _draw_row(sheet, row, grid, head + band * number, width)
    for number, note in enumerate(notes):
        pen.text((_MARGIN, foot + _LINE * number), note, _SOFT, _font(13))
    return sheet


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _places(row: SheetRow, width: int) -> list[int]:
    """Return the left edge of the image and of each map in pixels."""
    places = [_MARGIN]
    for group in row.groups:
        for number in range(len(group.panels)):
            places.append(places[-1] + width + (_GAP if number else _GROUP_GAP))
    return places


def _draw_row(sheet: Image.Image, row: SheetRow, grid: PatchGrid, top: int, width: int) -> None:
    pen, pictures = ImageDraw.Draw(sheet), top + 3 * _LINE
    image = row.image.resize((width, HEIGHT), Image.Resampling.BICUBIC)
    left, *places = _places(row, width)
    pen.text((left, top), row.title, _INK, _font(15))
    sheet.paste(image, (left, pictures))
    lefts = iter(places)
    for group in row.groups:
        for number, panel in enumerate(group.panels):
            left = next(lefts)
            if not number:
                pen.text((left, top + _LINE), group.title, _INK, _font(13))
            pen.text((left, top + 2 * _LINE), panel.title, _SOFT, _font(13))
            sheet.paste(overlay(image, panel.map_RC, grid), (left, pictures))
            pen.text((left, pictures + HEIGHT + 2), f"peak {peak(panel.map_RC):.1f}x", _SOFT, _font(13))
