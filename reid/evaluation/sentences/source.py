"""The sentences of an evaluation: those of the dataset, or the captions of its queries. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.artifacts.contents import CAPTIONS_FILE, caption_text
from data.artifacts.fingerprint import digest
from data.artifacts.store import ArtifactRef
from data.errors import DataError
from data.people import JUNK, is_person
from data.splits import GALLERY, QUERY, TRAIN
from data.stages.images import IndexedImages
from reid.config.evaluate import EvaluateConfig
from reid.inputs.evaluation_rows import gallery_draws
from reid.inputs.image_rows import ImageRows, Ints, read_rows

Source = Literal["dataset", "captions"]
SOURCES: Final[dict[Source, str]] = {"dataset": "sentences of the dataset", "captions": "captions of the queries"}
"""Whose sentences they are, in words."""
RANKED: Final[dict[Source, str]] = {"dataset": "test image", "captions": "gallery image"}
"""What the sentences of each source rank, in the singular."""
VERSION: Final = 1
"""Raised when the measurement changes; evaluations without sentences do not depend on it."""
_USABLE: Final = "ok"
_EMPTY: Final[dict[Source, str]] = {
    "dataset": "none of the test images has a sentence",
    "captions": f"none of the queries has a caption with status {_USABLE}",
}


class Sentence(NamedTuple):
    """One sentence about the person in one image. number: among the sentences of the image, from 0. pid: the person."""

    path: str
    sha256: str
    number: int
    text: str
    pid: int


@dataclass(frozen=True, kw_only=True)
class Sentences:
    """The sentences to rank the gallery for, in the order of images.parquet."""

    source: Source
    rows: tuple[Sentence, ...]

    @property
    def identity(self) -> dict[str, Any]:
        """What an evaluation depends on: the texts and the content of their images, not the paths."""
        content = digest([[row.sha256, row.number, row.text] for row in self.rows])
        return {"source": self.source, "content": content, "version": VERSION}


@dataclass(frozen=True, kw_only=True)
class NoSentences:
    """Nothing to measure. reason: as the end of a sentence. lacks_captions: captions of the queries would do."""

    reason: str
    lacks_captions: bool = False


def find_sentences(
    images: IndexedImages, captions: ArtifactRef | None, config: EvaluateConfig
) -> Sentences | NoSentences:
    """Return the sentences that `config.text_to_image` asks for, or why there are none.

    captions: the caption artifact of `images`, None if they are not captioned. Raises DataError if the captions were
    made from other images.
    """
    if config.text_to_image == "off":
        return NoSentences(reason="evaluate.text_to_image=off")
    own = images.sentences() if config.text_to_image == "auto" else None
    if own is not None:
        return _checked("dataset", list(_of_dataset(own, read_rows(images))), (QUERY, GALLERY), images)
    if captions is None:
        return NoSentences(
            reason="the dataset does not have sentences of its own, and its queries are not captioned",
            lacks_captions=True,
        )
    if gallery_draws(images, config):
        return NoSentences(reason="the galleries are drawn, and captions are ranked against the gallery of the dataset")
    return _checked("captions", list(_of_captions(captions)), (GALLERY,), images)


def _of_dataset(sentences: pa.Table, rows: ImageRows) -> Iterator[Sentence]:
    """Yield the sentences of the people in queries and gallery."""
    shown = is_person(rows.split, rows.pid) & (rows.split != TRAIN)
    pid_of = dict(zip(rows.path[shown].tolist(), rows.pid[shown].tolist(), strict=True))
    names = ("image_path", "image_sha256", "number", "sentence")
    for path, sha256, number, text in zip(*(sentences[name].to_pylist() for name in names), strict=True):
        if path in pid_of:
            yield Sentence(path, sha256, number, text, pid_of[path])


def _of_captions(captions: ArtifactRef) -> Iterator[Sentence]:
    """Yield the captions of the queries that have the form of their template."""
    names = ("image_path", "image_sha256", "caption", "status", "pid")
    file = captions.folder / CAPTIONS_FILE
    try:
        table = pq.read_table(file, columns=list(names), filters=[("split", "=", QUERY), ("pid", "!=", JUNK)])
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{file} cannot be read ({error}); delete its folder and run the {captions.stage} stage again"
        ) from error
    for path, sha256, caption, status, pid in zip(*(table[name].to_pylist() for name in names), strict=True):
        if status == _USABLE and caption_text(caption):
            yield Sentence(path, sha256, 0, caption_text(caption), pid)


def _checked(
    source: Source, rows: list[Sentence], gallery: Sequence[str], images: IndexedImages
) -> Sentences | NoSentences:
    """Return the sentences if at least one has a match. gallery: the splits that are ranked."""
    if not rows:
        return NoSentences(reason=_EMPTY[source])
    table = images.rows("split", "pid")
    ranked = np.isin(table["split"].to_numpy().astype(str), gallery)
    if not np.isin([row.pid for row in rows], table["pid"].to_numpy()[ranked]).any():
        return NoSentences(reason="none of the sentences is about a person in the gallery")
    return Sentences(source=source, rows=tuple(rows))


def places_of(sentences: Sentences, images: ImageRows) -> Ints:
    """Return the position in `images`, the test images, of the image of each sentence, [S].

    Raises DataError if an image is not among them, which means that the captions were made from other images.
    """
    place = {key: at for at, key in enumerate(zip(images.path, images.sha256, strict=True))}
    unknown = [row.path for row in sentences.rows if (row.path, row.sha256) not in place]
    if unknown:
        raise DataError(
            f"the captions are of other images: {len(unknown):,} of their queries, such as {unknown[0]}, are not among "
            "the test images; run the caption stage on this dataset"
        )
    return np.array([place[row.path, row.sha256] for row in sentences.rows], dtype=np.int64)
