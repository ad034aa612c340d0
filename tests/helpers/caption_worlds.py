"""Small folders of images and their index, for tests of the caption stage."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from captioning.captioner import identify
from captioning.config import CaptionConfig
from captioning.stage.worker import Worker
from captioning.stage.worklist import WorkList
from captioning.store.store import CaptionStore
from data.artifacts.store import ArtifactRef, ArtifactStore, Made
from data.files import write_table
from data.progress import silent
from data.schemas import IMAGES
from data.stages.images import IndexedImages
from tests.helpers.stages import make_artifact


def draw(root: Path, count: int, start: int = 0) -> Path:
    """Write `count` images of noise, numbered from `start`. A number always gives the same image."""
    root.mkdir(exist_ok=True)
    for number in range(start, start + count):
        rng = np.random.default_rng(number)
        Image.fromarray(rng.integers(0, 255, (32, 16, 3)).astype(np.uint8)).save(root / f"{number:04d}.png")
    return root


def index(store: ArtifactStore, root: Path) -> ArtifactRef:
    """Make the index artifact of a folder without decoding an image."""
    rows: list[dict[str, Any]] = [
        {
            "path": path.name,
            "split": "train",
            "pid": number // 4 + 1,
            "camid": 1,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
            "width": 16,
            "height": 32,
        }
        for number, path in enumerate(sorted(root.iterdir()))
    ]
    table = pa.Table.from_pylist(rows, schema=IMAGES)
    made = make_artifact(
        store,
        "index",
        {"rows": [row["sha256"] + row["path"] for row in rows]},
        lambda folder: write_table(folder / "images.parquet", table, IMAGES),
    )
    return made.ref


def worker_of(
    store: ArtifactStore, *, images: ArtifactRef, root: Path, config: CaptionConfig, **options: Any
) -> Worker:
    """Return a worker without the caption stage around it. options: `load` and `flush_rows` of `Worker`."""
    captions = CaptionStore(store.root, identify(config, store.memo))
    common: dict[str, Any] = {"progress": silent, "check_model": lambda: None}
    work = WorkList.of(IndexedImages(ref=images, root=root))
    return Worker(captions, images=work, root=root, config=config, **common, **options)


def captions_of(made: Made) -> pd.DataFrame:
    """Return the rows of captions.parquet."""
    return pd.read_parquet(made.ref.folder / "captions.parquet")


def captions_folder(store: ArtifactStore, config: CaptionConfig) -> Path:
    """Return the folder of the captioner's shards."""
    return CaptionStore(store.root, identify(config, store.memo)).folder


def written(folder: Path) -> list[str]:
    """Return the images of all shards, each as often as it was written."""
    found: list[str] = []
    for path in sorted(folder.glob("pa[cr][kt]-*.parquet")):
        found += pq.read_table(path)["image_sha256"].to_pylist()
    return found
