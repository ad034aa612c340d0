"""The ``evaluate`` stage: the gallery ranked for every query, before and after training, in every inference mode.

Writes metrics.json and rankings.parquet. Importing this module loads neither torch nor numba, and a run whose artefact
is there loads no model and reads no image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.artifacts import ArtifactRef, ArtifactStore, Made, fingerprint_of
from data.errors import DataError
from data.files import read_json, write_json, write_table
from data.progress import ProgressFn, silent
from data.schemas import RANKINGS
from reid.config import TrainConfig
from reid.config_evaluate import EvaluateConfig
from reid.imagecache import load_pixels, pixels

if TYPE_CHECKING:
    from reid.metrics import Ranking
    from reid.tasks import Task

STAGE: Final = "evaluate"
STAGE_VERSION: Final = 1
JUNK: Final = -1
"""Identity of gallery images that count neither for nor against."""
_MAX_RANK: Final = 50


def evaluate_ingredients(
    store: ArtifactStore, *, images: ArtifactRef, model: ArtifactRef, config: EvaluateConfig
) -> dict[str, Any]:
    """Return what the results depend on."""
    return {
        "images": images.content,
        "model": model.digests_of("model.safetensors", "config.json"),
        "config": config.identity(),
        "version": STAGE_VERSION,
    }


def evaluate(
    store: ArtifactStore,
    *,
    images: ArtifactRef,
    model: ArtifactRef,
    images_root: Path,
    config: EvaluateConfig,
    progress: ProgressFn = silent,
) -> Made:
    """Rank the gallery of `images` for each of its queries, with the model of a train artefact.

    The untrained backbone is ranked in mode ``image``, the trained model in each of its modes.

    Args:
        store: where artefacts live.
        images: the index artefact.
        model: the train artefact.
        images_root: the folder that the image paths are relative to.
        config: how to judge.
        progress: called with images encoded, images to encode in all, and what is at work.

    Raises:
        DataError: no query, no gallery, no query with a match from another camera, or features that are not finite.
        WeightsError: the model, or the weights it was trained from, are not to be had.
    """
    ingredients = evaluate_ingredients(store, images=images, model=model, config=config)
    scratch = store.scratch(STAGE, fingerprint_of(STAGE, ingredients))

    def produce(folder: Path) -> None:
        train_config = TrainConfig.model_validate(read_json(model.folder / "config.json")["config"])
        rows = _read_rows(images)
        cache = pixels(
            store,
            images=images,
            images_root=images_root,
            height=train_config.backbone.height,
            width=train_config.backbone.width,
            progress=progress,
        )
        job = _Job(rows=rows, pixels=cache.ref, config=config, device=_device(config), scratch=scratch)
        results, tables = [], []
        for entry in _rankings(job, model, train_config, progress):
            results.append(_result(entry))
            tables.append(_ranking_table(entry, rows))
        protocol = _protocol(images, rows, results[0]["n_skipped_queries"], config)
        write_json(folder / "metrics.json", {"protocol": protocol, "results": results})
        write_table(folder / "rankings.parquet", pa.concat_tables(tables), RANKINGS)

    return store.make(STAGE, ingredients, produce)


class _Side(NamedTuple):
    """The images of one side: rows of images.parquet, paths, identities and cameras."""

    position: NDArray[np.int64]
    path: NDArray[np.object_]
    pid: NDArray[np.int64]
    camid: NDArray[np.int64]


class _Rows(NamedTuple):
    query: _Side
    gallery: _Side
    n_junk: int


class _Entry(NamedTuple):
    model: str
    mode: str
    ranking: Ranking


def _read_rows(images: ArtifactRef) -> _Rows:
    table = pq.read_table(images.folder / "images.parquet", columns=["path", "split", "pid", "camid"])
    split, pid, camid = (table[name].to_numpy() for name in ("split", "pid", "camid"))
    path = np.array(table["path"].to_pylist(), dtype=object)

    def side(chosen: NDArray[np.bool_]) -> _Side:
        position = np.flatnonzero(chosen)
        return _Side(position, path[position], pid[position], camid[position])

    junk = (split == "gallery") & (pid == JUNK)
    rows = _Rows(side(split == "query"), side((split == "gallery") & ~junk), int(junk.sum()))
    for name, part in (("query", rows.query), ("gallery", rows.gallery)):
        if not len(part.position):
            raise DataError(f"{images.folder}/images.parquet has no usable {name} image; check the data set's split")
    return rows


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What every ranking of one evaluation has in common."""

    rows: _Rows
    pixels: ArtifactRef
    config: EvaluateConfig
    device: str
    scratch: Path


def _rankings(job: _Job, model: ArtifactRef, train_config: TrainConfig, progress: ProgressFn) -> Iterator[_Entry]:
    """Yield one entry a model and mode."""
    from reid.checkpoint import load_task, load_untrained

    trained = load_task(model.folder, job.device)
    untrained = load_untrained(train_config, job.device)
    plan = [("untrained", "image", untrained), *(("trained", mode, trained) for mode in trained.encoders())]
    size = len(job.rows.query.position) + len(job.rows.gallery.position)
    for step, (name, mode, task) in enumerate(plan):

        def report(done: int, total: int, _: str, step: int = step, note: str = f"{name} {mode}") -> None:
            progress(step * size + done, len(plan) * size, note)

        features = _features(job, task, mode, job.scratch / f"{name}-{mode}.npy", report)
        yield _Entry(name, mode, _rank(features, job.rows, job.config))


def _features(job: _Job, task: Task, mode: str, out: Path, progress: ProgressFn) -> NDArray[np.float32]:
    import torch

    from reid.embed import embed

    query, gallery = job.rows.query, job.rows.gallery
    return embed(
        task.encoders()[mode],
        load_pixels(job.pixels),
        np.concatenate([query.position, gallery.position]),
        cameras=task.camera_numbers(np.concatenate([query.camid, gallery.camid]).tolist()),
        batch_size=job.config.batch_size,
        device=job.device,
        mean=task.preprocess.mean,
        std=task.preprocess.std,
        flip=job.config.flip,
        dtype={"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[job.config.precision],
        out=out,
        progress=progress,
    )


def _rank(features: NDArray[np.float32], rows: _Rows, config: EvaluateConfig) -> Ranking:
    from reid.metrics import evaluate_ranking

    queries = len(rows.query.position)
    return evaluate_ranking(
        features[:queries],
        features[queries:],
        rows.query.pid,
        rows.gallery.pid,
        rows.query.camid,
        rows.gallery.camid,
        max_rank=_MAX_RANK,
        top_k=config.top_k,
        exclude=config.exclude,
        rerank=config.rerank,
    )


def _result(entry: _Entry) -> dict[str, Any]:
    ranking = entry.ranking
    return {
        "model": entry.model,
        "mode": entry.mode,
        "mAP": ranking.mAP,
        "mINP": ranking.mINP,
        **{f"rank{rank}": float(ranking.cmc[rank - 1]) for rank in (1, 5, 10)},
        "cmc": ranking.cmc.tolist(),
        "n_valid_queries": ranking.n_valid,
        "n_skipped_queries": ranking.n_skipped,
    }


def _ranking_table(entry: _Entry, rows: _Rows) -> pa.Table:
    ranking, query, gallery = entry.ranking, rows.query, rows.gallery
    filled = ranking.top_index >= 0
    offsets = pa.array(np.concatenate([[0], np.cumsum(filled.sum(axis=1))]), pa.int32())
    nearest = ranking.top_index[filled]

    def lists(values: NDArray[Any]) -> pa.ListArray:
        return pa.ListArray.from_arrays(offsets, pa.array(values))

    columns = {
        "model": [entry.model] * ranking.n_valid,
        "mode": [entry.mode] * ranking.n_valid,
        "query_path": query.path[ranking.query_index],
        "query_pid": query.pid[ranking.query_index],
        "query_camid": query.camid[ranking.query_index],
        "ap": ranking.ap,
        "inp": ranking.inp,
        "first_hit": ranking.first_hit,
        "n_relevant": ranking.n_relevant,
        "top_paths": lists(gallery.path[nearest]),
        "top_pids": lists(gallery.pid[nearest]),
        "top_camids": lists(gallery.camid[nearest]),
        "top_scores": lists(ranking.top_score[filled]),
    }
    return pa.table(columns).cast(RANKINGS)


def _protocol(images: ArtifactRef, rows: _Rows, skipped: int, config: EvaluateConfig) -> dict[str, Any]:
    dataset = read_json(images.folder / "dataset.json")
    return {
        "dataset": dataset["name"],
        "dataset_hash": dataset["dataset_hash"],
        "version": dataset["version"],
        "n_query": len(rows.query.position),
        "n_gallery": len(rows.gallery.position),
        "n_junk": rows.n_junk,
        "n_skipped_queries": skipped,
        "description": describe_protocol(config),
    }


def describe_protocol(config: EvaluateConfig) -> str:
    """Say in words how the figures were got."""
    cameras = (
        "Gallery images of the query's identity from its own camera are left out; queries without a match from another "
        "camera are skipped."
        if config.exclude == "same_camera"
        else "No gallery image is left out by camera; queries without a match are skipped."
    )
    flip = " Features are averaged with those of the mirrored image." if config.flip else ""
    rerank = (
        f" k-reciprocal re-ranking with k1 = {config.rerank.k1}, k2 = {config.rerank.k2}, "
        f"lambda = {config.rerank.weight:g}."
        if config.rerank
        else " No re-ranking."
    )
    return (
        "Single query; cosine similarity of L2-normalised features (the order of Euclidean distance); junk (identity "
        f"-1) dropped. {cameras} AP is not interpolated; equal scores stand in gallery order.{flip}{rerank}"
    )


def _device(config: EvaluateConfig) -> str:
    import torch

    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"
