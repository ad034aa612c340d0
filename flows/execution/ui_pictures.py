"""The picture of a few rankings for Prefect's UI: small, re-encoded, one row per query."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from data.errors import RejectedRow
from data.files import inside
from data.images.decode import open_rgb, read_bytes

_CELL: Final = (48, 96)
_FRAME: Final = 3
_GAP: Final = 4
_RIGHT, _WRONG, _QUERY, _MISSING = (5, 150, 105), (220, 38, 38), (31, 41, 55), (200, 200, 200)


class Ranked(NamedTuple):
    """A query and its nearest gallery images: the columns of rankings.parquet that a picture needs."""

    query_path: str
    query_pid: int
    ap: float
    top_paths: list[str]
    top_pids: list[int]


def ranking_picture(rankings: Path, images_root: Path, *, queries: int, top_k: int) -> str | None:
    """Return a JPEG data URI of `queries` rows, from the worst to the best average precision; None without rankings."""
    rows = sorted(_read(rankings), key=lambda row: (row.ap, row.query_path))
    if not rows:
        return None
    last = len(rows) - 1
    chosen = [rows[round(last * place / max(queries - 1, 1))] for place in range(min(queries, len(rows)))]
    return _encode(_draw(chosen, images_root, top_k))


def _read(rankings: Path) -> list[Ranked]:
    """Return the rankings in image mode of the trained model or, if there is none, of another."""
    table = pq.read_table(rankings, columns=["model", "mode", *Ranked._fields])
    models = set(table["model"].to_pylist())
    model = "trained" if "trained" in models else min(models, default=None)
    wanted = [row for row in table.to_pylist() if (row["model"], row["mode"]) == (model, "image")]
    return [Ranked(**{name: row[name] for name in Ranked._fields}) for row in wanted]


def _draw(rows: list[Ranked], images_root: Path, top_k: int) -> Image.Image:
    """Return one line of crops per row: the query, then its nearest images."""
    width, height = (side + 2 * _FRAME + _GAP for side in _CELL)
    sheet = Image.new("RGB", ((top_k + 1) * width + _GAP, len(rows) * height + _GAP), "white")
    pencil = ImageDraw.Draw(sheet)
    for line, row in enumerate(rows):
        hits = zip(row.top_paths[:top_k], row.top_pids[:top_k], strict=True)
        cells = [(row.query_path, _QUERY)]
        cells += [(path, _RIGHT if pid == row.query_pid else _WRONG) for path, pid in hits]
        for column, (path, color) in enumerate(cells):
            left, top = _GAP + column * width, _GAP + line * height
            right, bottom = left + _CELL[0] + 2 * _FRAME - 1, top + _CELL[1] + 2 * _FRAME - 1
            pencil.rectangle((left, top, right, bottom), fill=color)
            sheet.paste(_crop(images_root, path), (left + _FRAME, top + _FRAME))
    return sheet


def _crop(images_root: Path, path: str) -> Image.Image:
    """Return the image at `path` in the size of a cell, or a gray cell if it cannot be read any more."""
    try:
        return open_rgb(read_bytes(inside(images_root, path))).resize(_CELL, Image.Resampling.BILINEAR)
    except RejectedRow:
        return Image.new("RGB", _CELL, _MISSING)


def _encode(image: Image.Image) -> str:
    """Return a JPEG data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
