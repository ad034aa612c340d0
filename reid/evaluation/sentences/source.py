"""The sentences of an evaluation: those of the dataset, or the captions of its queries. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.artifacts.contents import CAPTIONS_FILE, caption_texts
from data.artifacts.store import ArtifactRef
from data.columns.digests import Digests, digests_of, one_text, texts_of
from data.columns.distinct import one_array
from data.columns.json_rows import RowDigest
from data.columns.texts import Texts
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
    """The sentences to rank the gallery for, in the order of images.parquet, as columns of S sentences."""

    source: Source
    path: Texts
    sha256: Digests
    number: Ints
    text: Texts
    pid: Ints

    @classmethod
    def of(cls, source: Source, sentences: Iterable[Sentence]) -> Self:
        """Return the columns of a few sentences."""
        rows = list(sentences)
        path, sha256, number, text, pid = zip(*rows, strict=True) if rows else [()] * len(Sentence._fields)
        return cls(
            source=source,
            path=Texts(path),
            sha256=digests_of(pa.array(sha256, pa.string())),
            number=np.array(number, dtype=np.int64),
            text=Texts(text),
            pid=np.array(pid, dtype=np.int64),
        )

    def __len__(self) -> int:
        """Return the number of sentences."""
        return len(self.path)

    def row(self, at: int) -> Sentence:
        """Return one sentence."""
        sha256 = one_text(self.sha256, at)
        return Sentence(self.path[at], sha256, int(self.number[at]), self.text[at], int(self.pid[at]))

    @property
    def identity(self) -> dict[str, Any]:
        """What an evaluation depends on: the texts and the content of their images, not the paths."""
        content = RowDigest(canonical=True)
        columns = {"sha256": texts_of(self.sha256), "number": self.number, "text": self.text.array.cast(pa.string())}
        content.update(pa.table(columns))
        return {"source": self.source, "content": content.hexdigest(), "version": VERSION}


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
        return _checked(_of_dataset(own, read_rows(images)), (QUERY, GALLERY), images)
    if captions is None:
        return NoSentences(
            reason="the dataset does not have sentences of its own, and its queries are not captioned",
            lacks_captions=True,
        )
    if gallery_draws(images, config):
        return NoSentences(reason="the galleries are drawn, and captions are ranked against the gallery of the dataset")
    return _checked(_of_captions(captions), (GALLERY,), images)


def _of_dataset(sentences: pa.Table, rows: ImageRows) -> Sentences:
    """Return the sentences of the people in queries and gallery."""
    tested = rows.take(np.flatnonzero(is_person(rows.split, rows.pid) & (rows.split != TRAIN)))
    place = Texts(sentences["image_path"]).places_in(tested.path)
    kept = sentences.take(pa.array(np.flatnonzero(place >= 0)))
    return Sentences(
        source="dataset",
        path=Texts(kept["image_path"]),
        sha256=digests_of(kept["image_sha256"]),
        number=kept["number"].to_numpy().astype(np.int64),
        text=Texts(kept["sentence"]),
        pid=tested.pid[place[place >= 0]],
    )


def _of_captions(captions: ArtifactRef) -> Sentences:
    """Return the captions of the queries that have the form of their template."""
    names = ("image_path", "image_sha256", "caption", "pid")
    file = captions.folder / CAPTIONS_FILE
    wanted = [("split", "=", QUERY), ("pid", "!=", JUNK), ("status", "=", _USABLE)]
    try:
        table = pq.read_table(file, columns=list(names), filters=wanted)
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{file} cannot be read ({error}); delete its folder and run the {captions.stage} stage again"
        ) from error
    texts = Texts(caption_texts(one_array(table["caption"])))
    kept = np.flatnonzero(texts.lengths())
    table = table.take(pa.array(kept))
    return Sentences(
        source="captions",
        path=Texts(table["image_path"]),
        sha256=digests_of(table["image_sha256"]),
        number=np.zeros(len(kept), dtype=np.int64),
        text=texts[kept],
        pid=table["pid"].to_numpy(),
    )


def _checked(found: Sentences, gallery: Sequence[str], images: IndexedImages) -> Sentences | NoSentences:
    """Return the sentences if at least one has a match. gallery: the splits that are ranked."""
    if not len(found):
        return NoSentences(reason=_EMPTY[found.source])
    splits = pa.array(gallery)
    for rows in images.batches("split", "pid"):
        ranked = rows["pid"].filter(pc.is_in(rows["split"], value_set=splits)).to_numpy()
        if np.isin(ranked, found.pid).any():
            return found
    return NoSentences(reason="none of the sentences is about a person in the gallery")


def places_of(sentences: Sentences, images: ImageRows) -> Ints:
    """Return the position in `images`, the test images, of the image of each sentence, [S].

    Raises DataError if an image is not among them, which means that the captions were made from other images.
    """
    place = sentences.path.places_in(images.path)
    unknown = np.flatnonzero((place < 0) | (images.sha256[place] != sentences.sha256))
    if len(unknown):
        raise DataError(
            f"the captions are of other images: {len(unknown):,} of their queries, such as "
            f"{sentences.path[unknown[0]]}, are not among the test images; run the caption stage on this dataset"
        )
    return place
