"""A picture of people with their captions beside them: one row per identity, which shows where captions disagree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from pydantic import Field

from captioning.audit.pen import Color, Pen
from captioning.reading import Pending, load
from data.config import Config
from data.errors import DataError
from data.people import UNKNOWN_CAMERA, IdentityName, is_person


class SheetRow(NamedTuple):
    """The columns of captions.parquet that the sheet reads.

    caption: None if captioning failed. label: None if the dataset has no text labels.
    """

    image_path: str
    split: str
    pid: int
    camid: int
    caption: str | None
    status: str
    image_sha256: str
    label: str | None = None


_OPTIONAL: Final = SheetRow._field_defaults
_INK: Final = (26, 33, 48)
_SOFT: Final = (86, 96, 115)
_WRONG: Final = (192, 38, 38)
_EMPTY: Final = (226, 230, 237)
_MARGIN: Final = 12
_LINE: Final = 15


class SheetConfig(Config):
    """Size of the sheet and seed of its choices."""

    identities: Annotated[int, Field(ge=1)] = 6
    """Identities shown, one per row."""
    each: Annotated[int, Field(ge=1)] = 5
    """Images shown of each identity."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed that chooses identities and images."""
    height: Annotated[int, Field(ge=2 * _LINE)] = 176
    """Height of an image in pixels; its width is at most half of that."""
    text: Annotated[int, Field(ge=_LINE)] = 160
    """Width of a caption in pixels."""

    @property
    def cell(self) -> int:
        """Distance from one image to the next in pixels."""
        return self.height // 2 + self.text + 2 * _MARGIN


def contact_sheet(captions: pd.DataFrame, images_root: Path, config: SheetConfig) -> tuple[Image.Image, set[str]]:
    """Draw `config.identities` people with up to `config.each` images of each, taken from the cameras in turn.

    Return the sheet, and the characters that its font does not have.

    captions: `sheet_columns` of captions.parquet. Distractors and junk are left out. An image that is missing or has
    changed since it was captioned becomes a gray field with the reason. Raise DataError without known people.
    """
    people = chosen(captions, config)
    if not people:
        raise DataError("cannot draw a sheet of known people: captions.parquet lists only junk and distractors")
    band = config.height + _MARGIN
    widest = max(map(len, people))
    sheet = Image.new("RGB", (_MARGIN + widest * config.cell, _MARGIN + band * len(people)), "white")
    pen = Pen(sheet)
    for row, person in enumerate(people):
        for column, item in enumerate(person):
            left, top = _MARGIN + column * config.cell, _MARGIN + row * band
            picture = _picture(item, images_root, config)
            sheet.paste(picture, (left, top))
            beside = left + picture.width + _MARGIN // 2
            for number, (words, ink) in enumerate(_lines(item, pen, config)):
                pen.write(beside, top + _LINE * number, words, ink)
    return sheet, pen.missing


def sheet_columns(names: Sequence[str]) -> list[str]:
    """Return the columns that the sheet reads from a captions.parquet with the columns `names`."""
    return [name for name in SheetRow._fields if name in names or name not in _OPTIONAL]


def chosen(captions: pd.DataFrame, config: SheetConfig) -> list[list[SheetRow]]:
    """Return the rows to show, one list per identity: identities by a seeded draw, their images spread over cameras."""
    rng = np.random.default_rng(config.seed)
    mask = is_person(captions["split"].to_numpy(), captions["pid"].to_numpy())
    known = captions[mask].sort_values(["pid", "image_path"], kind="stable")
    pids = np.sort(known["pid"].unique())
    drawn = np.sort(rng.permutation(pids)[: config.identities])
    return [_over_cameras(known[known["pid"] == pid], config.each, rng) for pid in drawn]


def _over_cameras(rows: pd.DataFrame, count: int, rng: np.random.Generator) -> list[SheetRow]:
    shuffled = rows.iloc[rng.permutation(len(rows))]
    turn = shuffled.groupby("camid").cumcount()
    order = turn.sort_values(kind="stable").index[:count]
    columns = sheet_columns([*rows.columns])
    shown = shuffled.loc[order, columns].sort_values(["camid", "image_path"]).astype(object)
    return [SheetRow(*values) for values in shown.where(shown.notna(), None).itertuples(index=False, name=None)]


def _picture(item: SheetRow, root: Path, config: SheetConfig) -> Image.Image:
    def scaled(image: Image.Image) -> Image.Image:
        scale = min(config.height / image.height, config.height / 2 / image.width)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        return image.resize(size, Image.Resampling.LANCZOS)

    loaded = load(Pending(sha256=item.image_sha256, paths=(item.image_path,)), root, scaled)
    if loaded.image is not None:
        return loaded.image
    field = Image.new("RGB", (config.height // 2, config.height), _EMPTY)
    pen = Pen(field)
    for number, words in enumerate(pen.wrapped((loaded.reason or "").split("_"), field.width - _MARGIN)):
        pen.write(_MARGIN // 2, _MARGIN // 2 + _LINE * number, words, _INK)
    return field


def _who(item: SheetRow) -> str:
    identity = IdentityName(item.pid, item.label or "")
    known = item.camid != UNKNOWN_CAMERA
    return f"identity {identity}, camera {item.camid}" if known else f"identity {identity}"


def _lines(item: SheetRow, pen: Pen, config: SheetConfig) -> list[tuple[list[str], Color]]:
    """Return the lines beside one picture with their colors: identity and camera, a failed status, the caption."""
    lines = [(words, _SOFT) for words in pen.wrapped(_who(item).split(), config.text)]
    if item.status != "ok":
        lines += [(words, _WRONG) for words in pen.wrapped(item.status.split("_"), config.text)]
    lines += [(words, _INK) for words in pen.wrapped((item.caption or "").split(), config.text)]
    room = config.height // _LINE
    if len(lines) > room:
        lines[room - 1 :] = [(["…"], _INK)]
    return lines
