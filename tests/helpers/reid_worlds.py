"""Small training sets for the tests of stage 2: synthetic people with their true captions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from data.artifacts.store import ArtifactRef, ArtifactStore
from data.files import write_table
from data.schemas import CAPTIONS
from data.slots import SLOTS
from data.synthetic.world import training_sample
from reid.config.train import BatchConfig, ScheduleConfig, TrainConfig
from reid.inputs.batches import TrainingSet
from reid.inputs.captions import encode_texts
from tests.helpers.stages import make_artifact
from tools.tiny_clip.text import template_sentences

SEED = 55_000


def training_set(count: int = 32) -> TrainingSet:
    """Return the first `count` images of a synthetic stream, 4 per person, with captions of what is visible."""
    samples = [training_sample(SEED, index) for index in range(count)]
    texts = [template_sentences({s: x.attributes[s] for s in SLOTS if x.visible[s]}) for x in samples]
    labels = np.array([sample.identity for sample in samples])
    return TrainingSet(
        pixels=np.stack([sample.image for sample in samples]),
        positions_N=np.arange(count),
        labels_N=np.unique(labels, return_inverse=True)[1],
        cameras_N=np.arange(count) % 4,
        caption_rows_N=np.arange(count),
        captions_MD=encode_texts(texts, config=TrainConfig().backbone, seed=0, device="cpu"),
    )


def small_config(**changes: Any) -> TrainConfig:
    """Return settings that give two steps per epoch on `training_set`, on the CPU."""
    values: dict[str, Any] = {
        "batch": BatchConfig(identities=4, images=4),
        "schedule": ScheduleConfig(epochs=2, lr_clip=1e-4, lr_new=3e-4, warmup_epochs=2, milestones=()),
        "device": "cpu",
        "log_every": 1,
        "checkpoint_every": 1,
    }
    return TrainConfig(**{**values, **changes})


class KilledError(Exception):
    """Raised by a test to stop a run in the middle."""


def weights_of(task: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the state of a task."""
    return {name: value.clone() for name, value in task.state_dict().items()}


def same_weights(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Return True if two states are equal bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def write_captions(
    store: ArtifactStore, rows: Iterable[Mapping[str, Any]], text_of: Callable[[Mapping[str, Any]], str | None]
) -> ArtifactRef:
    """Make a caption artifact for `rows` of images.parquet, with the captions `text_of(row)`."""
    records = []
    for row in rows:
        text = text_of(row)
        blank = dict.fromkeys(CAPTIONS.names)
        records.append(
            blank
            | {"image_path": row["path"], "image_sha256": row["sha256"], "split": row["split"], "pid": row["pid"]}
            | {"camid": row["camid"], "caption": text, "raw_text": text, "status": "ok" if text else "image_error"}
        )
    table = pa.Table.from_pylist(records, schema=CAPTIONS)

    def produce(folder: Path) -> None:
        write_table(folder / "captions.parquet", table, CAPTIONS)

    return make_artifact(store, "caption", {"texts": [record["caption"] for record in records]}, produce).ref
