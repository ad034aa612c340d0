"""The retrieval part of the report: query rows with their nearest gallery images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from flows.report_gather import Row, read_rows, take_rows, thirds
from flows.report_images import Thumbnails

_SELECTORS: Final = ("model", "mode", "query_path", "query_pid", "ap")
_GROUPS: Final = (
    ("Lowest average precision", "where the model fails"),
    ("Around the median", "what to expect"),
    ("Highest average precision", "where it succeeds"),
)


def leading_row(results: Sequence[Row], mode: str) -> Row:
    """Return the row of metrics.json that leads the page: trained, in `mode` where it was evaluated."""
    trained = [row for row in results if row["model"] == "trained"] or list(results)
    return next((row for row in trained if row["mode"] == mode), trained[0])


def query_groups(
    path: Path, thumbnail: Thumbnails, *, model: str, mode: str, each: int, top_k: int, seed: int
) -> list[dict[str, Any]]:
    """Choose queries from rankings.parquet and return them in three groups, by average precision (AP).

    The AP of the same query by the untrained model stands beside, where there is one.
    """
    rows = read_rows(path, _SELECTORS)
    shown = [index for index, row in enumerate(rows) if (row["model"], row["mode"]) == (model, mode)]
    before = {row["query_path"]: row["ap"] for row in rows if (row["model"], row["mode"]) == ("untrained", mode)}
    chosen = thirds([rows[index] for index in shown], each, value="ap", key="query_pid", seed=seed)
    groups = []
    for (title, meaning), positions in zip(_GROUPS, chosen, strict=True):
        full = take_rows(path, [shown[position] for position in positions])
        queries = [
            _query(row, thumbnail, top_k, before.get(row["query_path"]) if model != "untrained" else None)
            for row in full
        ]
        if queries:
            groups.append({"title": title, "meaning": meaning, "queries": queries})
    return groups


def _query(row: Row, thumbnail: Thumbnails, top_k: int, ap_before: float | None) -> dict[str, Any]:
    columns = (row[f"top_{name}"][:top_k] for name in ("paths", "pids", "camids", "scores"))
    hits = [
        {
            "rank": rank,
            "path": path,
            "pid": pid,
            "camid": camid,
            "score": score,
            "right": pid == row["query_pid"],
            "image": thumbnail(path),
        }
        for rank, (path, pid, camid, score) in enumerate(zip(*columns, strict=True), start=1)
    ]
    return {
        "path": row["query_path"],
        "pid": row["query_pid"],
        "camid": row["query_camid"],
        "image": thumbnail(row["query_path"]),
        "ap": row["ap"],
        "ap_before": ap_before,
        "first_hit": row["first_hit"],
        "n_relevant": row["n_relevant"],
        "n_right": sum(hit["right"] for hit in hits),
        "hits": hits,
    }
