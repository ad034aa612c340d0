"""Tar shards in the stages that open images, and a dataset that moves from a folder into shards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from captioning.config import CaptionConfig
from data.artifacts.store import ArtifactStore
from data.datasets import DatasetConfig
from data.images.thumbnails import Thumbnails
from data.index.stage import index
from data.stages.images import IndexedImages
from flows.cli.search import read_query
from flows.recipes import build_recipe
from flows.summary import RunSummary
from flows.workers.jobs import CaptionJob
from reid.evaluation.search import open_query
from tests.helpers.data_trees import settle
from tests.helpers.mini_llava import save_mini_llava
from tests.helpers.shards import people_in_shards, put_shard
from tests.helpers.small_runs import FINISHED_RUN
from tests.helpers.stages import caption, pixels


def _packed(root: Path, row: dict[str, Any]) -> dict[str, bytes]:
    """Return the members of one sample, with the bytes of an indexed image."""
    labels = json.dumps({"pid": row["pid"], "camid": row["camid"]}).encode()
    stem = Path(row["path"]).stem
    return {f"{stem}.jpg": (root / row["path"]).read_bytes(), f"{stem}.json": labels}


def test_a_dataset_that_moves_into_shards_keeps_its_captions_and_its_model(finished, tmp_path):
    from flows.pipeline import caption_and_train

    before, here = finished
    home = tmp_path / "home"
    shutil.copytree(before, home, symlinks=True)
    images = IndexedImages(ref=here["index"].artifact, root=Path(here["index"].images_root or ""))
    rows = images.rows().to_pylist()
    for split in ("train", "query", "gallery"):
        packed = [_packed(images.root, row) for row in rows if row["split"] == split]
        put_shard(tmp_path / "shards", f"{split}-000000.tar", *packed)
    settle()
    settings = ["data.reader=webdataset", f"data.root={tmp_path / 'shards'}"]
    recipe = build_recipe("demo", settings, size=FINISHED_RUN)
    there = RunSummary.model_validate(caption_and_train(recipe, home=str(home)))
    assert there["index"].artifact.fingerprint != here["index"].artifact.fingerprint
    assert there["train"].artifact.fingerprint == here["train"].artifact.fingerprint
    captions = [pq.read_table(run["caption"].artifact.folder / "captions.parquet") for run in (here, there)]
    texts = [dict(zip(one["image_sha256"].to_pylist(), one["caption"].to_pylist(), strict=True)) for one in captions]
    assert texts[0] == texts[1]
    pages = [(run["report"].artifact.folder / "report.html").read_text() for run in (here, there)]
    assert pages[0].count("data:image/jpeg") == pages[1].count("data:image/jpeg") > 0
    assert not list((home / "stages").rglob("*.jpg"))


def test_captions_pixels_and_thumbnails_read_images_in_shards(tmp_path):
    store, root = ArtifactStore(tmp_path / "home"), people_in_shards(tmp_path / "set")
    config = DatasetConfig(reader="webdataset", root=str(root))
    images = index(store, config=config).images
    model = save_mini_llava(tmp_path / "llava")
    captioner = CaptionConfig(
        model=str(model), dtype="float32", max_new_tokens=4, batch_size=4, workers=2, device="cpu"
    )
    first = caption(store, images=images.ref, images_root=images.root, config=captioner)
    again = caption(store, images=index(store, config=config).images.ref, images_root=images.root, config=captioner)
    assert (first.generated, first.failed, again.made.cached, again.made.ref) == (10, 0, True, first.made.ref)
    made = pixels(store, images=images.ref, images_root=images.root, height=16, width=8)
    assert made.ref.folder.is_dir()
    thumbnails = Thumbnails(images.root, images.digests(), 16)
    assert all(thumbnails(path).problem is None for path in images.digests())
    query = root / "query-000000.tar" / "q" / "3.jpg"
    assert read_query(str(query), image=None, text=None) == query
    assert open_query(query).size == (8, 16)
    job = CaptionJob(home=str(store.root), images=images.to_json(), config=captioner)
    assert job.needed()[0] == str(root / "gallery-000000.tar")
