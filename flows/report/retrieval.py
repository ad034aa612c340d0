"""The retrieval part of the report: query rows with their nearest gallery images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from data.images.thumbnails import Thumbnails
from flows.report.gather import Row, read_rows, take_rows, thirds

_SELECTORS: Final = ("model", "mode", "query_path", "query_pid", "ap", "first_hit")
_GROUPS: Final = ("Lowest average precision", "Around the median", "Highest average precision")
_FALLEN: Final = "Fell most against the untrained model"


def leading_row(results: Sequence[Row], mode: str) -> Row:
    """Return the row of metrics.json that leads the page: trained, in `mode` where it was evaluated."""
    trained = [row for row in results if row["model"] == "trained"] or list(results)
    return next((row for row in trained if row["mode"] == mode), trained[0])


def query_section(
    path: Path, thumbnail: Thumbnails, *, model: str, mode: str, each: int, top_k: int, seed: int
) -> dict[str, Any]:
    """Choose queries from rankings.parquet; return them in groups, and how many of all queries fail.

    Three groups by average precision (AP) and, where there is an untrained model, the queries that lost most AP
    against it.
    """
    rows = read_rows(path, _SELECTORS)
    before = {row["query_path"]: row["ap"] for row in rows if (row["model"], row["mode"]) == ("untrained", mode)}
    if model == "untrained":
        before = {}
    shown = [at for at, row in enumerate(rows) if (row["model"], row["mode"]) == (model, mode)]
    own = [rows[at] for at in shown]
    parts = dict(zip(_GROUPS, thirds(own, each, value="ap", key="query_pid", seed=seed), strict=True))
    fallen = _fallen(own, before)
    taken = {at for part in parts.values() for at in part}
    parts[_FALLEN] = [at for at in fallen if at not in taken][:each]
    groups = []
    for title, positions in parts.items():
        full = take_rows(path, [shown[at] for at in positions])
        queries = [_query(row, thumbnail, top_k, before.get(row["query_path"])) for row in full]
        if queries:
            groups.append({"title": title, "meaning": _meaning(full), "queries": queries})
    failures = {
        "total": len(own),
        "missed": sum(row["first_hit"] > 1 for row in own),
        "fallen": len(fallen) if before else None,
    }
    return {"groups": groups, "failures": failures}


def _fallen(rows: Sequence[Row], before: Mapping[str, float]) -> list[int]:
    """Return the positions of the rows with a lower AP than `before`, the greatest loss first."""
    lost = {at: before[row["query_path"]] - row["ap"] for at, row in enumerate(rows) if row["query_path"] in before}
    return sorted((at for at, loss in lost.items() if loss > 0), key=lambda at: (-lost[at], rows[at]["query_path"]))


def _meaning(rows: Sequence[Row]) -> str:
    """Return how many queries a group shows, their AP, and how many of them fail at the first image."""
    aps = sorted(100 * row["ap"] for row in rows)
    missed = sum(row["first_hit"] > 1 for row in rows)
    count = f"{len(rows)} {'query' if len(rows) == 1 else 'queries'}"
    return f"{count}, AP {aps[0]:.1f} to {aps[-1]:.1f} %, {missed} with a wrong first image"


def _query(row: Row, thumbnail: Thumbnails, top_k: int, ap_before: float | None) -> dict[str, Any]:
    columns = zip(*(row[f"top_{name}"] for name in ("paths", "pids", "camids", "scores")), strict=True)
    ranked = list(enumerate(columns, start=1))
    first = row["first_hit"]
    if top_k < first <= len(ranked):  # a row of wrong images only would not show what was looked for
        ranked = [*ranked[: top_k - 1], ranked[first - 1]]
    hits = [
        {
            "rank": rank,
            "far": rank > top_k,
            "path": path,
            "pid": pid,
            "camid": camid,
            "score": score,
            "right": pid == row["query_pid"],
            "image": thumbnail(path),
        }
        for rank, (path, pid, camid, score) in ranked[:top_k]
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
