"""A small indexed dataset and models without training, for the tests of evaluation and embeddings."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data.artifacts.fingerprint import digest_bytes
from data.artifacts.store import ArtifactRef, ArtifactStore
from data.files import write_json, write_table
from data.people import UNKNOWN_CAMERA
from data.schemas import CAPTIONS, IMAGES, SENTENCES
from data.synthetic.world import training_sample
from reid.config.train import TrainConfig
from reid.tasks.build import build_task
from reid.training.checkpoint import save_model
from tests.helpers.stages import make_artifact

SEED = 66_000
PEOPLE = 6


def write_world(store: ArtifactStore, root: Path, *, cameras: int = 4, reader: str = "manifest") -> ArtifactRef:
    """Write four images each of six people, one a query; one junk image, one distractor. Return the index artifact.

    cameras: 0 if they are unknown.
    """
    rows = []
    for index in range(4 * PEOPLE):
        sample = training_sample(SEED, index)
        stream = io.BytesIO()
        Image.fromarray(sample.image).save(stream, "PNG")
        split = "query" if index % 4 == 0 else "gallery"
        pid = {4 * PEOPLE - 1: -1, 4 * PEOPLE - 2: 0}.get(index, 1 + index // 4)
        name = f"{split}/{index:03d}.png"
        (root / split).mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(stream.getvalue())
        rows.append(
            {"path": name, "split": split, "pid": pid, "width": 64, "height": 128}
            | {"camid": 1 + index % cameras if cameras else UNKNOWN_CAMERA}
            | {"sha256": digest_bytes(stream.getvalue()), "size": len(stream.getvalue())}
        )
    table = pa.Table.from_pylist(sorted(rows, key=lambda row: (row["split"], row["path"])), IMAGES)

    def produce(folder: Path) -> None:
        write_table(folder / "images.parquet", table, IMAGES)
        write_json(
            folder / "dataset.json", {"name": "toy", "reader": reader, "dataset_hash": "f" * 32, "version": "v1"}
        )

    return make_artifact(store, "index", {"rows": rows, "reader": reader}, produce).ref


def write_model(
    store: ArtifactStore,
    config: TrainConfig | None = None,
    *,
    provenance: Mapping[str, Any] | None = None,
    images: str | None = None,
) -> ArtifactRef:
    """Make a train artifact: a task whose new modules are random, as after zero steps.

    provenance: of config.json; None for a model that does not say where it comes from. images: content digest of its
    training images, which is among its ingredients.
    """
    config = config or TrainConfig(device="cpu", seed=3)

    def produce(folder: Path) -> None:
        task = build_task(config, identities=5, cameras=[1, 2, 3, 4])
        save_model(folder / "model.safetensors", task)
        described = {"config": config.model_dump(mode="json"), "identities": list(range(5))}
        write_json(folder / "config.json", described | ({"provenance": dict(provenance)} if provenance else {}))

    ingredients: dict[str, Any] = {"config": config.identity()} | (
        {"provenance": dict(provenance)} if provenance else {}
    )
    ingredients |= {"images": images} if images else {}
    return make_artifact(store, "train", ingredients, produce).ref


def write_captions(
    store: ArtifactStore, images: ArtifactRef, texts: Mapping[str, str], *, status: Mapping[str, str] | None = None
) -> ArtifactRef:
    """Write a caption artifact of `images`. texts, status: path -> caption (default: none) and status (default: ok)."""
    rows = pq.read_table(images.folder / "images.parquet").to_pylist()
    table = [
        dict.fromkeys(CAPTIONS.names)
        | {"image_path": row["path"], "image_sha256": row["sha256"]}
        | {name: row[name] for name in ("split", "pid", "camid")}
        | {"caption": texts.get(row["path"]), "status": (status or {}).get(row["path"], "ok")}
        for row in rows
    ]

    def produce(folder: Path) -> None:
        write_table(folder / "captions.parquet", pa.Table.from_pylist(table, CAPTIONS), CAPTIONS)

    said = [[row["image_path"], row["caption"], row["status"]] for row in table]
    return make_artifact(store, "caption", {"images": images.fingerprint, "said": said}, produce).ref


def describe_images(
    store: ArtifactStore, images: ArtifactRef, sentences: Iterable[tuple[str, Sequence[str]]]
) -> ArtifactRef:
    """Write the index artifact `images` again, with sentences of the dataset. sentences: path, its sentences."""
    table = pq.read_table(images.folder / "images.parquet")
    sha256 = dict(zip(table["path"].to_pylist(), table["sha256"].to_pylist(), strict=True))
    rows = [
        {"image_path": path, "image_sha256": sha256[path], "number": number, "sentence": text}
        for path, texts in sentences
        for number, text in enumerate(texts)
    ]

    def produce(folder: Path) -> None:
        for name in ("images.parquet", "dataset.json"):
            (folder / name).write_bytes((images.folder / name).read_bytes())
        write_table(folder / "sentences.parquet", pa.Table.from_pylist(rows, SENTENCES), SENTENCES)

    return make_artifact(store, "index", {"images": images.fingerprint, "sentences": rows}, produce).ref
