"""The page and the picture of people with their captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from PIL import Image

from captioning.audit.pen import Pen, missing_notice
from data.errors import counted
from data.files import atomic_path, write_text
from data.people import UNKNOWN_CAMERA
from flows.paper.captions import CaptionedImage, Gallery, Person
from flows.paper.drawing import (
    INK,
    LINE,
    MARGIN,
    SCALE,
    SOFT,
    WRONG,
    Line,
    lines_of,
    pen_on,
    picture,
    write_lines,
)
from flows.report.page import page_environment

PAGE, PICTURE = "captions.html", "captions.png"
_IMAGE: Final = (68 * SCALE, 136 * SCALE)  # width and height of an image in pixels
_TEXT: Final = 180 * SCALE  # width of a caption
_GAP: Final = 8 * SCALE
_CELL: Final = _IMAGE[0] + _GAP + _TEXT + 2 * _GAP
_COLUMNS: Final = 4
_LONGEST: Final = 400  # characters of a caption in the picture
_SIGNS: Final = (
    "= and ≠ mark an attribute on which the captions of the person disagree, with the number of captions that say so: "
    "= the most frequent value, ≠ another one."
)


class _Band(NamedTuple):
    """A row of the picture: lines above up to `_COLUMNS` images, each with the lines beside it."""

    head: Sequence[Line]
    cells: Sequence[tuple[CaptionedImage, Sequence[Line]]]

    @property
    def height(self) -> int:
        tallest = max(LINE * len(lines) for _, lines in self.cells)
        return LINE * len(self.head) + max(_IMAGE[1], tallest) + 2 * _GAP


def write_figure(folder: Path, shown: Gallery) -> tuple[list[Path], list[str]]:
    """Write the gallery as a page and as a picture; return their paths, and notices about both."""
    html = page_environment().get_template("paper/captions.html.j2").render(gallery=shown, signs=_SIGNS)
    write_text(folder / PAGE, html)
    sheet, missing = draw(shown)
    with atomic_path(folder / PICTURE) as temporary:
        sheet.save(temporary, "PNG")
    notices = list(shown.notices)
    if missing:
        notices.append(f"{missing_notice(missing, PICTURE)}; {PAGE} shows them")
    return [folder / PAGE, folder / PICTURE], notices


def draw(shown: Gallery) -> tuple[Image.Image, set[str]]:
    """Return the gallery as a picture, and the characters that no font has."""
    columns = max((min(_COLUMNS, len(person.images)) for person in shown.persons), default=1)
    width = 2 * MARGIN + max(2, columns) * _CELL
    measure = pen_on(Image.new("RGB", (1, 1)))
    head = [
        line
        for text, ink in ((shown.source, INK), (shown.rule, SOFT), (_SIGNS, SOFT), *((n, SOFT) for n in shown.notices))
        for line in lines_of(measure, text, width - 2 * MARGIN, ink)
    ]
    bands = [band for person in shown.persons for band in _bands(person, measure, width)]
    first = MARGIN + LINE + _GAP
    top = first + LINE * len(head) + _GAP
    sheet = Image.new("RGB", (width, top + sum(band.height for band in bands) + MARGIN), "white")
    title, pen = pen_on(sheet, "title"), pen_on(sheet)
    title.write(MARGIN, MARGIN, f"Captions of {shown.title}".split(), INK)
    write_lines(pen, MARGIN, first, head)
    for band in bands:
        _draw_band(sheet, pen, band, top)
        top += band.height
    return sheet, title.missing | pen.missing


def _bands(person: Person, pen: Pen, width: int) -> Iterator[_Band]:
    head = lines_of(pen, _headline(person), width - 2 * MARGIN, INK)
    for start in range(0, len(person.images), _COLUMNS):
        part = person.images[start : start + _COLUMNS]
        yield _Band(head if start == 0 else (), [(image, _beside(image, pen)) for image in part])


def _headline(person: Person) -> str:
    if person.identity is None:
        return "Unknown people"
    conflicts = "; ".join(
        f"{conflict.slot} ({', '.join(f'{value} {count}' for value, count in conflict.values)})"
        for conflict in person.conflicts
    )
    images = counted(person.n_images, "image")
    disagree = f"captions disagree on {conflicts}" if conflicts else "captions do not disagree"
    return f"Identity {person.identity}, {images}: {disagree}"


def _beside(image: CaptionedImage, pen: Pen) -> list[Line]:
    """Return the lines beside an image: camera and split, what is wrong, the caption, disputed attributes."""
    camera = "" if image.camid == UNKNOWN_CAMERA else f"camera {image.camid}, "
    lines = lines_of(pen, f"{camera}{image.split}", _TEXT, SOFT)
    if image.problem:
        lines += lines_of(pen, image.problem, _TEXT, WRONG, _LONGEST)
    lines += lines_of(pen, image.text or "no caption", _TEXT, INK if image.text else SOFT, _LONGEST)
    for attribute in image.disputed:
        text = f"{attribute.sign} {attribute.slot}: {attribute.value} ({attribute.captions}/{attribute.named})"
        lines += lines_of(pen, text, _TEXT, WRONG if attribute.minor else SOFT)
    return lines


def _draw_band(sheet: Image.Image, pen: Pen, band: _Band, top: int) -> None:
    write_lines(pen, MARGIN, top, band.head)
    top += LINE * len(band.head) + _GAP // 2
    for column, (image, lines) in enumerate(band.cells):
        left = MARGIN + column * _CELL
        sheet.paste(picture(image.image, *_IMAGE), (left, top))
        write_lines(pen, left + _IMAGE[0] + _GAP, top, lines)
