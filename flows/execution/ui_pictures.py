"""The picture of a few rankings for Prefect's UI: small, re-encoded, one row per query."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from data.errors import RejectedRow
from data.files import inside
from data.images.decode import open_rgb, read_bytes
from flows.report.gather import take_rows

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
    places = _places(rankings)
    if not len(places):
        return None
    last = len(places) - 1
    chosen = [int(places[round(last * at / max(queries - 1, 1))]) for at in range(min(queries, len(places)))]
    rows = [Ranked(**row) for row in take_rows(rankings, chosen, Ranked._fields)]
    return _encode(_draw(rows, images_root, top_k))


def _places(rankings: Path) -> NDArray[np.int64]:
    """Return the rows in image mode of the trained model or, if there is none, of another, by average precision."""
    table = pq.read_table(rankings, columns=["model", "mode", "ap", "query_path"])
    models = pc.unique(table["model"]).to_pylist()
    model = "trained" if "trained" in models else min(models, default=None)
    own = np.flatnonzero(pc.and_(pc.equal(table["model"], model), pc.equal(table["mode"], "image")).to_numpy())
    order = pc.sort_indices(table.take(pa.array(own)), sort_keys=[("ap", "ascending"), ("query_path", "ascending")])
    return own[order.to_numpy()]


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
