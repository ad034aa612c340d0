"""Time and peak memory of `embed_files`, which `clip-scgi embed` calls, as the number of images grows: a first run, a
run with nothing to do, and a run with one more image.

    python benchmarks/bench_embed_rows.py [--rows 100000 400000] [--million]

The options and the columns are those of `bench_scale.py`. Nothing is opened, and there is no model: embeddings are 64
made-up values, an eighth of those of CLIP's projection, so that the files stay small. What is measured is what the
command does beside the encoder; an image is a Python object while its batch is made.
"""

from __future__ import annotations

from collections.abc import Generator
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa
from bench_scale import Step, main, run_of

from data.artifacts.store import ArtifactRef
from reid.embedding.batches import EmbeddedBatch
from reid.embedding.embedder import EmbedConfig, Embedder
from reid.embedding.files import Embedded, embed_files
from reid.embedding.images import DistinctImages, ImageFiles
from reid.inputs.image_rows import read_rows

WIDTH: Final = 64
_BATCH: Final = 256


class MadeUp(Embedder):
    """An embedder that says what `embed_files` asks, without a model."""

    needs_cameras = False
    fingerprint = "f" * 32
    modes = ("image",)
    preprocessing: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        """Stand for a model that does not exist."""
        self.model = ArtifactRef(stage="train", fingerprint=self.fingerprint, content="c", path="/nowhere")
        self.config = EmbedConfig(device="cpu", batch_size=_BATCH)

    def resolve_mode(self, name: str | None) -> str:
        """Return the only mode."""
        return name or self.modes[0]

    def width(self, mode: str | None = None) -> int:
        """Return the number of values of an embedding."""
        return WIDTH


def embed_made_up(
    embedder: Embedder, images: DistinctImages, *, root: Path, mode: str
) -> Generator[EmbeddedBatch, None, None]:
    """Yield drawn vectors of length one."""
    rng = np.random.default_rng(0)
    remaining = iter(images)
    while batch := list(islice(remaining, _BATCH)):
        drawn = rng.standard_normal((len(batch), WIDTH), dtype=np.float32)
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        yield EmbeddedBatch(drawn, np.full(len(batch), "", np.str_))


def embedded(home: str, index: dict[str, str], *, all_but: int) -> Embedded:
    """Write the embeddings of the images of the index but the last `all_but`."""
    rows = read_rows(run_of(home, index).images)
    images = ImageFiles(
        paths=rows.path,
        sha256=rows.sha256,
        splits=pa.array(rows.split, pa.string()).dictionary_encode(),
        pids=pa.array(rows.pid),
        camids=pa.array(rows.camid),
        labels=pa.nulls(len(rows), pa.string()).dictionary_encode(),
    )[: len(rows) - all_but]
    del rows
    folder = Path(home)
    return embed_files(MadeUp(), images, root=folder, out=folder / "features.parquet", embed=embed_made_up)


def first(home: str, index: dict[str, str]) -> None:
    """Embed all images but one."""
    done = embedded(home, index, all_but=1)
    assert done.computed == done.images > 0


def unchanged(home: str, index: dict[str, str]) -> None:
    """Find that nothing is new."""
    assert embedded(home, index, all_but=1).computed == 0


def one_more(home: str, index: dict[str, str]) -> None:
    """Embed one more image, and write all embeddings again."""
    assert embedded(home, index, all_but=0).computed == 1


STEPS: Final[dict[str, Step]] = {"first run": first, "unchanged": unchanged, "one more image": one_more}


if __name__ == "__main__":
    main(STEPS, __doc__, ["first run"], captions=False)
