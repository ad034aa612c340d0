"""Evaluations and their index, written by hand: rankings of given scores for tests of comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.artifacts.contents import contents_of_images
from data.artifacts.store import ArtifactRef, ArtifactStore
from data.files import write_json, write_table
from data.schemas import IMAGES, RANKINGS
from tests.helpers.stages import describe_by_hand, make_artifact

Row = dict[str, Any]

DESCRIPTION = "Single query. No re-ranking."


def image_rows(people: int = 8, cameras: int = 3) -> list[Row]:
    """Return the rows of images.parquet: each person is a query in camera 1, and in the gallery in the others."""
    rows = [
        {
            "path": f"{'query' if camid == 1 else 'gallery'}/{pid:03}_c{camid}_{turn}.jpg",
            "split": "query" if camid == 1 else "gallery",
            "pid": pid,
            "camid": camid,
            "sha256": f"{pid:030d}{camid:030d}{turn:04d}",
            "size": 100,
            "width": 64,
            "height": 128,
        }
        for pid in range(1, people + 1)
        for camid in range(1, cameras + 1)
        for turn in (0, 1)
    ]
    return sorted(rows, key=lambda row: (row["split"], row["path"]))


def rank(images: Sequence[Row], *, noise: float, seed: int, model: str = "trained", mode: str = "image") -> list[Row]:
    """Return the rows of rankings.parquet of features that are one center per person plus noise, ranked one by one."""
    rng = np.random.default_rng(seed)
    centers = {pid: rng.normal(size=8) for pid in sorted({row["pid"] for row in images})}
    features = {row["path"]: centers[row["pid"]] + noise * rng.normal(size=8) for row in images}
    gallery = [row for row in images if row["split"] == "gallery" and row["pid"] != -1]
    return [
        _rank_one(row, gallery, features) | {"model": model, "mode": mode} for row in images if row["split"] == "query"
    ]


def _rank_one(query: Row, gallery: Sequence[Row], features: Mapping[str, np.ndarray]) -> Row:
    probe = features[query["path"]]

    def similarity(row: Row) -> float:
        other = features[row["path"]]
        return float(probe @ other / np.linalg.norm(probe) / np.linalg.norm(other))

    order = sorted(
        (row for row in gallery if (row["pid"], row["camid"]) != (query["pid"], query["camid"])),
        key=lambda row: -similarity(row),
    )
    hits = [place for place, row in enumerate(order, start=1) if row["pid"] == query["pid"]]
    return {
        "query_path": query["path"],
        "query_pid": query["pid"],
        "query_camid": query["camid"],
        "ap": sum(count / place for count, place in enumerate(hits, start=1)) / len(hits),
        "inp": len(hits) / hits[-1],
        "first_hit": hits[0],
        "n_relevant": len(hits),
        "top_paths": [row["path"] for row in order[:50]],
        "top_pids": [row["pid"] for row in order[:50]],
        "top_camids": [row["camid"] for row in order[:50]],
        "top_scores": [similarity(row) for row in order[:50]],
    }


def write_index(store: ArtifactStore, images: Sequence[Row]) -> ArtifactRef:
    """Write an index artifact of `images`."""
    table = pa.Table.from_pylist(list(images), schema=IMAGES)

    def work(folder: Path) -> None:
        write_table(folder / "images.parquet", table, IMAGES)
        describe_by_hand(folder)

    made = make_artifact(store, "index", {"by": contents_of_images(table)}, work, contents=lambda _: _contents(images))
    return made.ref


def _contents(images: Sequence[Row]) -> dict[str, str]:
    return contents_of_images(pa.Table.from_pylist(list(images), schema=IMAGES))


def metrics_of(rows: Iterable[Row], **protocol: Any) -> Row:
    """Return metrics.json of rankings."""
    found = list(rows)
    results = []
    for model, mode in dict.fromkeys((row["model"], row["mode"]) for row in found):
        own = [row for row in found if (row["model"], row["mode"]) == (model, mode)]
        ranks = {f"rank{k}": float(np.mean([row["first_hit"] <= k for row in own])) for k in (1, 5, 10)}
        means = {name: float(np.mean([row[key] for row in own])) for name, key in (("mAP", "ap"), ("mINP", "inp"))}
        results.append({"model": model, "mode": mode, **means, **ranks})
    about = {"dataset": "drawn", "description": DESCRIPTION, "gallery_draws": 0, "n_query": len(found), "n_gallery": 9}
    return {"protocol": about | protocol, "results": results}


def write_evaluation(
    store: ArtifactStore,
    images: Sequence[Row],
    rankings: Sequence[Row],
    *,
    recipe: str = "",
    rankings_file: bool = True,
    ingredients: Mapping[str, Any] | None = None,
    **protocol: Any,
) -> ArtifactRef:
    """Write an evaluate artifact of `rankings` on `images`, and the index artifact of these."""
    write_index(store, images)

    def work(folder: Path) -> None:
        write_json(folder / "metrics.json", metrics_of(rankings, **protocol))
        if rankings_file:
            write_table(folder / "rankings.parquet", pa.Table.from_pylist(list(rankings), RANKINGS), RANKINGS)

    own = {"images": _contents(images)["ranked"], "by": [row["ap"] for row in rankings], "rules": protocol}
    ref = make_artifact(store, "evaluate", own | dict(ingredients or {}), work).ref
    if recipe:
        store.record_use(ref, dataset="drawn", recipe=recipe)
    return ref
