"""Search of a dataset by a sentence or a picture: the nearest images under a trained model.

A sentence is compared in CLIP's joint space, a picture by the retrieval features of the model, as in
`reid.evaluation.search`. The features of the datasets that were searched last stay in memory.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from data.artifacts.fingerprint import digest_bytes
from data.artifacts.inventory import Entry
from data.artifacts.store import ArtifactRef, ArtifactStore
from data.errors import ConfigError, DataError, RejectedRow
from data.images.decode import open_rgb, unusable_image
from data.people import JUNK
from data.splits import GALLERY
from data.stages.images import IndexedImages
from data.stages.stage import RunContext
from flows.ui.content.models import Models
from flows.ui.content.recent import Recent
from flows.ui.content.tables import ImageTable, Places
from flows.ui.content.work import Tell

if TYPE_CHECKING:
    from reid.embedding.embedder import Embedder

TOP: Final = 60
"""Most images of a result."""
_MOST_SETS: Final = 2
_MOST_BYTES: Final = 64 << 20

Floats = NDArray[np.float32]


class Found(NamedTuple):
    """One image of a result. score: cosine similarity."""

    rank: int
    row: int
    score: float


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to search for, a sentence or else a picture, and where.

    candidates: the rows of the dataset to search. camera: of the picture, if it is an image of the dataset.
    """

    model: Entry
    index: Entry
    table: ImageTable
    candidates: Places
    text: str
    picture: Image.Image | None
    camera: int | None = None


class Uploads:
    """Pictures to search by, in memory only; the oldest are dropped beyond `_MOST_BYTES`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    def add(self, content: bytes) -> str:
        """Keep the bytes of a picture and return its key. Raises DataError if it is not a usable image."""
        _decoded(content)
        key = digest_bytes(content)[:32]
        with self._lock:
            self._kept[key] = content
            self._kept.move_to_end(key)
            while len(self._kept) > 1 and sum(map(len, self._kept.values())) > _MOST_BYTES:
                self._kept.popitem(last=False)
        return key

    def get(self, key: str) -> Image.Image | None:
        """Return a picture in RGB, None if it was dropped."""
        with self._lock:
            content = self._kept.get(key)
        return None if content is None else _decoded(content)


def _decoded(content: bytes) -> Image.Image:
    try:
        return open_rgb(content)
    except RejectedRow as rejected:
        raise unusable_image("The picture", rejected) from rejected


class Searcher:
    """Searches with the models of `models`. Used by one thread."""

    def __init__(self, store: ArtifactStore, models: Models) -> None:
        self._store = store
        self._models = models
        self._features = Recent[Floats](_MOST_SETS)

    def search(self, wanted: Wanted, tell: Tell) -> list[Found]:
        """Return the nearest of the candidates. Raises ConfigError or DataError with one sentence."""
        from reid.embedding.embedder import JOINT

        embedder = self._models.get(wanted.model, tell)
        mode = JOINT if wanted.picture is None else embedder.modes[0]
        query = _query(embedder, wanted)
        key = (embedder.fingerprint, wanted.index.fingerprint, mode)
        features = self._features.get(key, lambda: self._encode(embedder, mode, wanted, tell))
        scores = features[wanted.candidates] @ query
        order = np.argsort(-scores, kind="stable")[:TOP]
        return [
            Found(rank, int(wanted.candidates[at]), float(scores[at]))
            for rank, at in enumerate(order.tolist(), start=1)
        ]

    def _encode(self, embedder: Embedder, mode: str, wanted: Wanted, tell: Tell) -> Floats:
        """Return the features of all searchable images, float32 [N, D]; zeros for all others."""
        from reid.inputs.pixel_cache import PixelStage, load_pixels

        def progress(done: int, total: int, note: str) -> None:
            tell(f"Encoding the images: {done:,} of {total:,}.")

        tell("Reading the images.")
        shape, rows = embedder.task.preprocess, searchable(wanted.table)
        run = RunContext(store=self._store, progress=progress, indexed=_indexed(self._store, wanted))
        pixels = load_pixels(PixelStage(height=shape.height, width=shape.width).make(run).ref)
        cameras = wanted.table.table["camid"].to_numpy()[rows]
        embedded = embedder.embed_pixels(pixels, rows, mode=mode, cameras=cameras, progress=progress)
        features = np.zeros((len(wanted.table), embedded.shape[1]), np.float32)
        features[rows] = embedded
        return features


def searchable(table: ImageTable) -> Places:
    """Return the rows to search: the gallery, or all images of a dataset without one; never junk."""
    usable = table.table["pid"].to_numpy() != JUNK
    gallery = usable & pc.equal(table.table["split"], GALLERY).to_numpy()
    return np.flatnonzero(gallery if gallery.any() else usable)


def _indexed(store: ArtifactStore, wanted: Wanted) -> IndexedImages:
    ref: ArtifactRef | None = store.find(wanted.index.stage, wanted.index.fingerprint)
    if ref is None or wanted.table.root is None:
        raise DataError("The folder of these images is not found; start clip-scgi ui --images FOLDER with it.")
    return IndexedImages(ref=ref, root=wanted.table.root)


def _query(embedder: Embedder, wanted: Wanted) -> Floats:
    if wanted.picture is None:
        vector: Floats = embedder.embed_texts([wanted.text])[0]
        return vector
    if embedder.needs_cameras and wanted.camera is None:
        raise ConfigError(
            "This model needs the camera of a picture, which is unknown; search with a sentence or with an image of "
            "the dataset, or use a model trained with train.sie=0."
        )
    cameras = None if wanted.camera is None else [wanted.camera]
    found: Floats = embedder.embed_images([wanted.picture], cameras=cameras)[0]
    return found
