"""A picture of people with their captions beside them: a row an identity, so that one sees where captions disagree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field

from captioning.reading import Pending, load
from data.config import Config
from data.errors import DataError

COLUMNS: Final = ("image_path", "pid", "camid", "caption", "status", "image_sha256")
"""What is read of captions.parquet."""

_INK: Final = (26, 33, 48)
_SOFT: Final = (86, 96, 115)
_WRONG: Final = (192, 38, 38)
_EMPTY: Final = (226, 230, 237)
_MARGIN: Final = 12
_LINE: Final = 14


class SheetConfig(Config):
    """How much is shown."""

    identities: Annotated[int, Field(ge=1)] = 6
    """Rows."""
    each: Annotated[int, Field(ge=1)] = 5
    """Images of one identity."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Who is shown."""
    height: Annotated[int, Field(ge=2 * _LINE)] = 176
    """Height of an image in pixels; it is at most half as wide."""
    text: Annotated[int, Field(ge=_LINE)] = 136
    """Width of a caption in pixels."""

    @property
    def cell(self) -> int:
        """Pixels from one image to the next."""
        return self.height // 2 + self.text + 2 * _MARGIN


def contact_sheet(captions: pd.DataFrame, images_root: Path, config: SheetConfig) -> Image.Image:
    """Draw `config.identities` people with up to `config.each` images of each, the cameras in turn.

    captions: COLUMNS of captions.parquet. Who is shown follows the seed. Distractors and junk (pid < 1) are left out.
    An image that is gone or is no longer the captioned one becomes a grey field with the reason. Raises DataError
    where there is nobody to show.
    """
    people = chosen(captions, config)
    if not people:
        raise DataError("no identity has a caption, so there is nothing to show")
    band = config.height + _MARGIN
    widest = max(map(len, people))
    sheet = Image.new("RGB", (_MARGIN + widest * config.cell, _MARGIN + band * len(people)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for row, person in enumerate(people):
        for column, item in enumerate(person):
            left, top = _MARGIN + column * config.cell, _MARGIN + row * band
            picture = _picture(item, images_root, config)
            sheet.paste(picture, (left, top))
            beside = left + picture.width + _MARGIN // 2
            for number, (line, ink) in enumerate(_lines(item, draw, font, config)):
                draw.text((beside, top + _LINE * number), line, fill=ink, font=font)
    return sheet


def chosen(captions: pd.DataFrame, config: SheetConfig) -> list[list[dict[str, Any]]]:
    """Return the rows to show, a list an identity: identities by a seeded draw, their images spread over cameras."""
    rng = np.random.default_rng(config.seed)
    known = captions[captions["pid"] > 0].sort_values(["pid", "image_path"], kind="stable")
    pids = np.sort(known["pid"].unique())
    drawn = np.sort(rng.permutation(pids)[: config.identities])
    return [_over_cameras(known[known["pid"] == pid], config.each, rng) for pid in drawn]


def _over_cameras(rows: pd.DataFrame, count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    shuffled = rows.iloc[rng.permutation(len(rows))]
    turn = shuffled.groupby("camid").cumcount()
    order = turn.sort_values(kind="stable").index[:count]
    records = shuffled.loc[order].sort_values(["camid", "image_path"]).to_dict("records")
    return [{str(name): value for name, value in record.items()} for record in records]


def _picture(item: dict[str, Any], root: Path, config: SheetConfig) -> Image.Image:
    def scaled(image: Image.Image) -> Image.Image:
        scale = min(config.height / image.height, config.height / 2 / image.width)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        return image.resize(size, Image.Resampling.LANCZOS)

    loaded = load(Pending(sha256=item["image_sha256"], paths=(item["image_path"],)), root, scaled)
    if loaded.image is not None:
        return loaded.image
    field = Image.new("RGB", (config.height // 2, config.height), _EMPTY)
    ImageDraw.Draw(field).text((6, 6), (loaded.reason or "").replace("_", "\n"), fill=_INK, font_size=11)
    return field


def _lines(
    item: dict[str, Any], draw: ImageDraw.ImageDraw, font: Any, config: SheetConfig
) -> list[tuple[str, tuple[int, int, int]]]:
    """Return the lines beside one picture with their colours: who, a status that is not ok, and what was written."""
    lines = [(f"identity {item['pid']}, camera {item['camid']}", _SOFT)]
    if item["status"] != "ok":
        lines.append((item["status"].replace("_", " "), _WRONG))
    lines += [(line, _INK) for line in wrapped((item["caption"] or "").split(), draw, font, config.text)]
    room = config.height // _LINE
    if len(lines) > room:
        lines[room - 1 :] = [("…", _INK)]
    return lines


def wrapped(words: Sequence[str], draw: ImageDraw.ImageDraw, font: Any, width: int) -> Iterator[str]:
    """Yield lines of `words` that are at most `width` pixels wide; a longer word has a line of its own."""
    line = ""
    for word in words:
        longer = f"{line} {word}".strip()
        if line and draw.textlength(longer, font=font) > width:
            yield line
            longer = word
        line = longer
    if line:
        yield line
