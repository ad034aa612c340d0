"""The files of an evaluation for other programs: features, rank lists, scores and their breakdown.

Layout of the folder::

    metrics.json                     as in the evaluate artifact
    rank_lists.parquet               one row per query and gallery image of its ranking (`RANK_LISTS`)
    text_rankings.parquet            one row per model and sentence, as in the evaluate artifact, if it has any
    features-<model>-<mode>.parquet  queries and gallery, as `clip-scgi embed` writes them
    camera_pairs.parquet, attributes.parquet   as in the breakdown artifact, if they have rows
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from data.artifacts.fingerprint import digest
from data.artifacts.store import ArtifactRef, ArtifactStore
from data.columns.distinct import one_array
from data.files import atomic_path, full_disk_explained
from data.people import UNKNOWN_CAMERA
from data.schemas import LABEL, SCHEMA_VERSION
from data.stages.images import IndexedImages
from data.stages.stage import RunContext
from reid.config.evaluate import JOINT
from reid.config.train import TrainConfig
from reid.embedding.images import ImageFiles
from reid.embedding.table import GROUP_ROWS, Heading, write_embeddings
from reid.evaluation.breakdown import ATTRIBUTES_FILE, CAMERA_PAIRS_FILE, BreakdownStage
from reid.evaluation.features import Encoded, load_features
from reid.evaluation.inputs import config_of, model_identity
from reid.evaluation.sentences.measure import TEXT_RANKINGS_FILE
from reid.evaluation.stage import EvaluateStage
from reid.inputs.evaluation_rows import evaluation_rows
from reid.inputs.image_rows import ImageRows
from reid.inputs.pixel_cache import RESIZE
from reid.precision import unit_rows
from reid.tasks.base import preprocess_of

Float32s = NDArray[np.float32]
RANK_LISTS_FILE: Final = "rank_lists.parquet"
RANK_LISTS: Final = pa.schema(
    [
        ("model", pa.string()),
        ("mode", pa.string()),
        ("query_path", pa.string()),
        ("rank", pa.int64()),  # from 1
        ("gallery_path", pa.string()),
        ("score", pa.float32()),  # cosine similarity, or 1 - re-ranked distance
        ("match", pa.bool_()),  # the same identity as the query
    ],
    metadata={b"clip_scgi_schema": str(SCHEMA_VERSION).encode()},
)
"""rank_lists.parquet: the nearest `evaluate.top_k` images per valid query; left-out images are not among them."""
_GROUP_QUERIES: Final = 4096


def write_download(run: RunContext, breakdown: BreakdownStage, folder: Path) -> list[Path]:
    """Write the files of an evaluation into `folder`, make first what does not exist, and return the files.

    Files of the same names are replaced, and removed if this evaluation does not have them.
    """
    tables = breakdown.make(run).ref.folder
    evaluation = breakdown.evaluation.make(run).ref.folder
    folder.mkdir(parents=True, exist_ok=True)
    with full_disk_explained(folder, f"{folder} could not be written"):
        written = [_copy(evaluation / "metrics.json", folder / "metrics.json")]
        copied = [tables / CAMERA_PAIRS_FILE, tables / ATTRIBUTES_FILE, evaluation / TEXT_RANKINGS_FILE]
        written += _copy_tables(copied, folder)
        written.append(_write_rank_lists(evaluation / "rankings.parquet", folder / RANK_LISTS_FILE))
        written += _write_features(run, breakdown.evaluation, folder)
    return sorted(written)


def _copy_tables(tables: Sequence[Path], folder: Path) -> Iterator[Path]:
    """Copy tables with rows and yield the copies; of a missing or empty one, remove that of an earlier evaluation."""
    for table in tables:
        if table.exists() and pq.read_metadata(table).num_rows:
            yield _copy(table, folder / table.name)
        else:
            (folder / table.name).unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> Path:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
    return target


def _write_rank_lists(rankings: Path, out: Path) -> Path:
    with (
        pq.ParquetFile(rankings) as file,
        atomic_path(out) as temporary,
        pq.ParquetWriter(temporary, RANK_LISTS, compression="zstd") as writer,
    ):
        for batch in file.iter_batches(_GROUP_QUERIES):
            writer.write_table(_one_row_per_place(pa.Table.from_batches([batch])))
    return out


def _one_row_per_place(rankings: pa.Table) -> pa.Table:
    """Return rows of rankings.parquet as rows of rank_lists.parquet."""
    lists = {name: rankings[f"top_{name}"].combine_chunks() for name in ("paths", "pids", "scores")}
    lengths = np.diff(lists["paths"].offsets.to_numpy())
    parent = np.repeat(np.arange(len(lengths)), lengths)
    first = np.repeat(np.cumsum(lengths) - lengths, lengths)
    flat = {name: column.flatten() for name, column in lists.items()}
    of_query = rankings.select(["model", "mode", "query_path", "query_pid"]).take(parent)
    columns = {
        **{name: of_query[name] for name in ("model", "mode", "query_path")},
        "rank": np.arange(len(parent)) - first + 1,
        "gallery_path": flat["paths"],
        "score": flat["scores"],
        "match": flat["pids"].to_numpy() == of_query["query_pid"].to_numpy(),
    }
    return pa.table(columns).cast(RANK_LISTS)


def _write_features(run: RunContext, evaluation: EvaluateStage, folder: Path) -> Iterator[Path]:
    images = _image_files(run.images, evaluation_rows(run.images, evaluation.config).images)
    for encoded in load_features(evaluation.features.make(run).ref):
        out = folder / f"features-{encoded.model}-{encoded.mode}.parquet"
        heading = Heading(_identity(run.store, evaluation, encoded), str(run.images.root))
        write_embeddings(out, heading, _blocks(images, encoded.features_ND))
        yield out


def _blocks(images: ImageFiles, features_ND: Float32s) -> Iterator[tuple[ImageFiles, Float32s]]:
    for start in range(0, len(images), GROUP_ROWS):
        part = slice(start, start + GROUP_ROWS)
        yield images[part], unit_rows(torch.from_numpy(np.array(features_ND[part]))).numpy()


def _identity(store: ArtifactStore, evaluation: EvaluateStage, encoded: Encoded) -> dict[str, Any]:
    """Return what the features depend on besides the images; without `flip` and `precision`, as for `embed_files`."""
    config, model = evaluation.config, evaluation.model
    fingerprint = model.fingerprint if isinstance(model, ArtifactRef) and encoded.model == "trained" else ""
    shape = preprocess_of(config_of(model).backbone)
    return {
        "model": fingerprint or _untrained_name(store, config_of(model)),
        "mode": encoded.mode,
        "comparable_with_texts": encoded.mode == JOINT,
        "width": int(encoded.features_ND.shape[1]),
        "preprocessing": {**asdict(shape), "mean": list(shape.mean), "std": list(shape.std), "resize": RESIZE},
        **({"flip": True} if config.flip else {}),
        **({} if config.precision == "no" else {"precision": config.precision}),
    }


def _untrained_name(store: ArtifactStore, config: TrainConfig) -> str:
    return f"untrained/{digest(model_identity(config, store))[:32]}"


def _image_files(images: IndexedImages, rows: ImageRows) -> ImageFiles:
    has_labels = LABEL.name in images.columns()
    labels = pa.nulls(len(rows), pa.string())
    if has_labels:
        labels = one_array(images.rows(LABEL.name)[LABEL.name].take(pa.array(rows.position)))
    return ImageFiles(
        paths=rows.path,
        sha256=rows.sha256,
        splits=pa.array(rows.split, pa.string()).dictionary_encode(),
        pids=pa.array(rows.pid),
        camids=pa.array(rows.camid, mask=rows.camid == UNKNOWN_CAMERA),
        labels=labels.dictionary_encode(),
    )
