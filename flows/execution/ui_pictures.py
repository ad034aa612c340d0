"""The picture of a few rankings for Prefect's UI: small, re-encoded, one row a query."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from data.errors import RejectedRow
from data.files import inside
from data.images.decode import open_rgb, read_bytes

_CELL: Final = (48, 96)
_FRAME: Final = 3
_GAP: Final = 4
_RIGHT, _WRONG, _QUERY, _MISSING = (5, 150, 105), (220, 38, 38), (31, 41, 55), (200, 200, 200)
_COLUMNS: Final = ["model", "mode", "query_path", "query_pid", "ap", "top_paths", "top_pids"]


def ranking_picture(rankings: Path, images_root: Path, *, queries: int, top_k: int) -> str | None:
    """Return a JPEG data URI of `queries` rows, from the worst to the best average precision; None without rankings."""
    table = pq.read_table(rankings, columns=_COLUMNS)
    models = set(table["model"].to_pylist())
    model = "trained" if "trained" in models else next(iter(sorted(models)), None)
    rows = [row for row in table.to_pylist() if row["model"] == model and row["mode"] == "image"]
    if not rows:
        return None
    rows.sort(key=lambda row: (row["ap"], row["query_path"]))
    last = len(rows) - 1
    chosen = [rows[round(last * place / max(queries - 1, 1))] for place in range(min(queries, len(rows)))]
    return _encode(_draw(chosen, images_root, top_k))


def _draw(rows: list[dict[str, Any]], images_root: Path, top_k: int) -> Image.Image:
    width, height = (side + 2 * _FRAME + _GAP for side in _CELL)
    sheet = Image.new("RGB", ((top_k + 1) * width + _GAP, len(rows) * height + _GAP), "white")
    pencil = ImageDraw.Draw(sheet)
    for line, row in enumerate(rows):
        hits = zip(row["top_paths"][:top_k], row["top_pids"][:top_k], strict=True)
        cells = [(row["query_path"], _QUERY)]
        cells += [(path, _RIGHT if pid == row["query_pid"] else _WRONG) for path, pid in hits]
        for column, (path, color) in enumerate(cells):
            left, top = _GAP + column * width, _GAP + line * height
            right, bottom = left + _CELL[0] + 2 * _FRAME - 1, top + _CELL[1] + 2 * _FRAME - 1
            pencil.rectangle((left, top, right, bottom), fill=color)
            sheet.paste(_crop(images_root, path), (left + _FRAME, top + _FRAME))
    return sheet


def _crop(images_root: Path, path: str) -> Image.Image:
    try:
        return open_rgb(read_bytes(inside(images_root, path))).resize(_CELL, Image.Resampling.BILINEAR)
    except RejectedRow:
        return Image.new("RGB", _CELL, _MISSING)


def _encode(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
