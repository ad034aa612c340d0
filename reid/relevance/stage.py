"""The ``relevance`` stage: maps of chosen pairs of images of a dataset, and the faithfulness of a model's maps.

Writes ``relevance.parquet``, one row per pair, and ``faithfulness.json``. The report makes it for the queries that it
shows. Importing this module loads no model library.

Shapes: N pairs, S seeds, R rows and C columns of the image tower's grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.artifacts.fingerprint import digest
from data.artifacts.store import ArtifactRef, Produced
from data.columns.texts import TextPlaces
from data.device import resolve_device
from data.files import read_json, write_json, write_table
from data.process.environment import exact_float32
from data.stages.stage import Ingredients, RunContext, Stage
from reid.config.trained import read_trained, trained_config
from reid.inputs.image_rows import read_rows
from reid.inputs.pixel_cache import PixelStage, load_pixels
from reid.relevance.grid import Floats, Pair, PatchGrid

if TYPE_CHECKING:
    from reid.relevance.dataset import DatasetImages
    from reid.relevance.faithfulness import Faithfulness

STAGE_VERSION: Final = 2
MAPS_FILE: Final = "relevance.parquet"
FAITHFULNESS_FILE: Final = "faithfulness.json"
RELEVANCE: Final = pa.schema(
    [
        pa.field("query_path", pa.string()),
        pa.field("gallery_path", pa.string()),
        pa.field("similarity", pa.float64()),  # cosine of the two features
        pa.field("query_map", pa.list_(pa.float32())),  # R * C values, row by row from the top left; sum 1, or all 0
        pa.field("gallery_map", pa.list_(pa.float32())),
    ]
)
"""relevance.parquet: one row per pair."""


@dataclass(frozen=True, kw_only=True)
class RelevanceStage(Stage):
    """Draw what makes pairs of images similar to the model of a train artifact.

    pairs: the pairs to map. sample: pairs of different queries on which faithfulness is measured. mode: an inference
    mode of the model. device: "auto", "cpu", "cuda" or "cuda:N".

    `make` raises WeightsError when the model is unavailable.
    """

    name: ClassVar[str] = "relevance"
    model: ArtifactRef
    pairs: tuple[Pair, ...]
    sample: tuple[Pair, ...]
    mode: str
    device: str

    def ingredients(self, run: RunContext) -> Ingredients:
        """Return the model, the mode, and the paths, bytes and cameras of the images."""
        config = trained_config(read_trained(self.model.folder))
        rows = read_rows(run.images)
        named = sorted({path for pair in (*self.pairs, *self.sample) for path in pair})
        places = TextPlaces(rows.path)
        shown = [rows.row(places.of(path)) for path in named]
        return {
            **self.model.digests_of("model.safetensors"),
            "config": digest(config.identity()),
            "images": digest([(image.path, image.sha256, image.camid) for image in shown]),
            "pairs": digest(list(self.pairs)),
            "sample": digest(list(self.sample)),
            "mode": self.mode,
            "version": STAGE_VERSION,
        }

    def produce(self, run: RunContext, folder: Path, scratch: Path) -> Produced:
        """Write relevance.parquet and faithfulness.json."""
        import torch

        from reid.relevance.dataset import DatasetImages
        from reid.relevance.grid import grid_of
        from reid.training.checkpoint import load_task

        device = resolve_device(self.device, torch.cuda, "evaluate.device")
        task = load_task(self.model.folder, device)
        shape = task.preprocess
        grid = grid_of(task.backbone, shape.height, shape.width)
        cache = PixelStage(height=shape.height, width=shape.width).make(run)
        with exact_float32(torch):
            images = DatasetImages(task, self.mode, read_rows(run.images), load_pixels(cache.ref), device)
            write_table(folder / MAPS_FILE, _table(images, self.pairs), RELEVANCE)
            found = images.faithfulness(self.sample, grid) if self.sample else None
        measured = None if found is None else found._asdict()
        write_json(folder / FAITHFULNESS_FILE, {"grid": asdict(grid), "faithfulness": measured})
        return Produced()


def _table(images: DatasetImages, pairs: Sequence[Pair]) -> pa.Table:
    rows = [
        {"query_path": pair[0], "gallery_path": pair[1], **found._asdict()}
        for pair, found in zip(pairs, images.explain(pairs), strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=RELEVANCE)


class PairRelevance(NamedTuple):
    """The maps [R, C] of a pair, and the cosine similarity of its features."""

    similarity: float
    query_RC: Floats
    gallery_RC: Floats


class Relevance(NamedTuple):
    """The content of an artifact of the stage. faithfulness: None without a sample."""

    grid: PatchGrid
    pairs: dict[Pair, PairRelevance]
    faithfulness: Faithfulness | None


def read_relevance(ref: ArtifactRef) -> Relevance:
    """Return the content of an artifact of this stage."""
    from reid.relevance.faithfulness import Estimate, Faithfulness

    described = read_json(ref.folder / FAITHFULNESS_FILE)
    grid = PatchGrid(**described["grid"])
    pairs = {
        (row["query_path"], row["gallery_path"]): PairRelevance(
            row["similarity"], _on_grid(row["query_map"], grid), _on_grid(row["gallery_map"], grid)
        )
        for row in pq.read_table(ref.folder / MAPS_FILE).to_pylist()
    }
    found = described["faithfulness"]
    if found is None:
        return Relevance(grid, pairs, None)
    values: dict[str, Any] = {
        name: Estimate(*value) if isinstance(value, list) else value for name, value in found.items()
    }
    return Relevance(grid, pairs, Faithfulness(**values))


def _on_grid(values: Sequence[float], grid: PatchGrid) -> Floats:
    return np.array(values, dtype=np.float64).reshape(grid.rows, grid.columns)
